//! `meridian certificate authority`: replaces a federation's authority while every region runs.
//!
//! Three steps, because a node must trust the new authority before any peer shows a certificate
//! of it, and the old one until no peer does. Between the steps the regions' files are copied to
//! their hosts and read again.

use std::path::{Path, PathBuf};

use anyhow::Context;
use meridian_clock::Timestamp;
use meridian_node::certificates::{self, Authority, CERTIFICATE_VALID, Files, Subject};
use meridian_node::files;

use super::init::{AUTHORITY_FOLDER, CERTIFICATES_FOLDER, OPERATOR, OPERATOR_FOLDER, REGION_FILE};
use super::{Outcome, Output, wrong_use};

const NEXT_FOLDER: &str = "authority-next";
const OLD_FOLDER: &str = "authority-old";

/// The steps, in their order. After each: copy the regions' certificates to their hosts, and
/// `systemctl reload meridian` on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Step {
    /// Make a new authority; all trust the old and the new one
    Begin,
    /// Make new certificates for all regions and the operator, signed by the new authority
    Switch,
    /// Trust the new authority only
    Finish,
}

/// What `meridian certificate authority` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to do
    #[arg(value_enum)]
    step: Step,
    /// The federation's folder, as `meridian init` made it
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
}

pub(crate) fn run(args: &Args, now: Timestamp, output: Output) -> anyhow::Result<Outcome> {
    let folder = |name: &str| args.dir.join(name);
    let holders = holders(&args.dir)?;
    let load = |name: &str| {
        Authority::load(&folder(name)).with_context(|| {
            format!(
                "open the authority in {}; --dir is the folder that `meridian init` made",
                folder(name).display()
            )
        })
    };
    match args.step {
        Step::Begin => {
            let current = load(AUTHORITY_FOLDER)?;
            if files::exists(&folder(OLD_FOLDER)) {
                return Err(wrong_use(format!(
                    "{} is there from the last time; finish that, or move it away",
                    folder(OLD_FOLDER).display()
                )));
            }
            // Begun before and interrupted: the same one, or regions would trust different ones.
            if !files::exists(&folder(NEXT_FOLDER)) {
                let federation = current.federation().ok_or_else(|| {
                    wrong_use("the authority's certificate does not name a federation")
                })?;
                Authority::create(federation, now)?.save(&folder(NEXT_FOLDER))?;
            }
            let next = load(NEXT_FOLDER)?;
            for holder in &holders {
                certificates::trust(&holder.files.authority, &[&current, &next])?;
            }
        }
        Step::Switch => {
            if files::exists(&folder(NEXT_FOLDER)) {
                let next = load(NEXT_FOLDER)?;
                let current = load(AUTHORITY_FOLDER);
                // Missing only when this step was interrupted between the two moves.
                if let Ok(current) = &current {
                    for holder in &holders {
                        certificates::trust(&holder.files.authority, &[current, &next])?;
                    }
                    moved(&folder(AUTHORITY_FOLDER), &folder(OLD_FOLDER))?;
                }
                moved(&folder(NEXT_FOLDER), &folder(AUTHORITY_FOLDER))?;
            } else if !files::exists(&folder(OLD_FOLDER)) {
                return Err(wrong_use("there is no new authority; begin first"));
            }
            let authority = load(AUTHORITY_FOLDER)?;
            for holder in &holders {
                let issued = authority.issue(&holder.subject, now, CERTIFICATE_VALID)?;
                holder.files.write(&authority, &issued)?;
            }
        }
        Step::Finish => {
            if files::exists(&folder(NEXT_FOLDER)) {
                return Err(wrong_use(
                    "the regions still have certificates of the old authority; switch first",
                ));
            }
            let authority = load(AUTHORITY_FOLDER)?;
            for holder in &holders {
                certificates::trust(&holder.files.authority, &[&authority])?;
            }
        }
    }
    let names: Vec<String> = holders
        .iter()
        .map(|holder| holder.subject.dns_name())
        .collect();
    if output.is_json() {
        output.json(&names)?;
        return Ok(Outcome::Done);
    }
    output.line(&format!("Changed the files of {}.", names.join(", ")))?;
    output.line(
        "Copy each region's certificates to its host, and reload all nodes (systemctl reload meridian) before the next step.",
    )?;
    if args.step == Step::Switch {
        output.line(
            "Certificates of other clients (`meridian certificate issue`) have to be made anew before the last step.",
        )?;
    }
    Ok(Outcome::Done)
}

fn moved(from: &Path, to: &Path) -> anyhow::Result<()> {
    files::rename_new(from, to)
        .with_context(|| format!("move {} to {}", from.display(), to.display()))
}

/// Who has a certificate in a federation's folder.
struct Holder {
    subject: Subject,
    files: Files,
}

fn holders(dir: &Path) -> anyhow::Result<Vec<Holder>> {
    let entries = files::in_folder(dir)
        .map_err(|error| wrong_use(format!("{} cannot be listed: {error}", dir.display())))?;
    let mut holders = Vec::new();
    for folder in entries {
        let Some(name) = folder.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let region = Files::in_folder(&folder.join(CERTIFICATES_FOLDER), REGION_FILE);
        if files::exists(&region.certificate) {
            holders.push(Holder {
                subject: Subject::Region(name.to_owned()),
                files: region,
            });
        }
    }
    let operator = Files::in_folder(&dir.join(OPERATOR_FOLDER), OPERATOR);
    if files::exists(&operator.certificate) {
        holders.push(Holder {
            subject: Subject::Client(OPERATOR.to_owned()),
            files: operator,
        });
    }
    if holders.is_empty() {
        return Err(wrong_use(format!(
            "there are no certificates in {}; --dir is the folder that `meridian init` made",
            dir.display()
        )));
    }
    Ok(holders)
}

//! `meridian certificate`: make, renew and show certificates of a federation that `init` made.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use meridian_clock::{PhysicalClock, Timestamp};
use meridian_node::certificates::{self, Authority, Files, Subject};
use meridian_node::seams::SystemClock;
use meridian_node::{config, files};
use serde::Serialize;

use super::init::{AUTHORITY_FOLDER, CERTIFICATES_FOLDER, OPERATOR, OPERATOR_FOLDER, REGION_FILE};
use super::{Outcome, Output, authority, wrong_use};

/// The commands below `meridian certificate`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a new key and certificate for a region, or for the operator; nodes take it on SIGHUP
    Renew(Renew),
    /// Make a key and certificate for a new client
    Issue(Issue),
    /// Replace the authority itself, step by step, while every region runs
    Authority(authority::Args),
    /// Show whom a certificate names and until when it is valid; exit code 1 when one has expired
    Show(Show),
}

/// What `meridian certificate renew` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Renew {
    /// The federation's folder, as `meridian init` made it
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// The region whose certificate is renewed
    #[arg(long, required_unless_present = "operator")]
    region: Option<String>,
    /// Renew the operator's client certificate
    #[arg(long, conflicts_with = "region")]
    operator: bool,
    /// For how many days it is valid
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..))]
    days: u16,
}

/// What `meridian certificate issue` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Issue {
    /// The federation's folder, as `meridian init` made it
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// The client's name
    #[arg(long)]
    client: String,
    /// The folder to write ca.pem, NAME.pem and NAME.key to
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// For how many days it is valid
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..))]
    days: u16,
}

/// What `meridian certificate show` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// Certificates in PEM
    #[arg(value_name = "FILE", required_unless_present = "config")]
    files: Vec<PathBuf>,
    /// The certificates that this node's configuration names
    #[arg(long, value_name = "FILE", conflicts_with = "files")]
    config: Option<PathBuf>,
}

#[derive(Serialize)]
struct Written {
    name: String,
    certificate: PathBuf,
    key: PathBuf,
    valid_until: String,
}

#[derive(Serialize)]
struct Shown {
    file: PathBuf,
    names: Vec<String>,
    issuer: String,
    valid_from: String,
    valid_until: String,
    expired: bool,
}

pub(crate) fn run(command: &Command, output: Output) -> anyhow::Result<Outcome> {
    let now = SystemClock.now();
    match command {
        Command::Renew(renew) => {
            let (subject, folder, name) = match &renew.region {
                Some(region) => {
                    let folder = renew.dir.join(region).join(CERTIFICATES_FOLDER);
                    (Subject::Region(region.clone()), folder, REGION_FILE)
                }
                None => {
                    let folder = renew.dir.join(OPERATOR_FOLDER);
                    (Subject::Client(OPERATOR.to_owned()), folder, OPERATOR)
                }
            };
            let files = Files::in_folder(&folder, name);
            // A typo in the region's name would otherwise make a certificate for nobody.
            if !files::exists(&files.certificate) {
                return Err(wrong_use(format!(
                    "there is no certificate {} to renew; check --dir and --region",
                    files.certificate.display()
                )));
            }
            issue(&renew.dir, &subject, &files, renew.days, now, output)
        }
        Command::Issue(args) => {
            certificates::check_name(&args.client).map_err(|error| wrong_use(error.to_string()))?;
            let files = Files::in_folder(&args.out, &args.client);
            if files::exists(&files.key) {
                return Err(wrong_use(format!(
                    "{} is there already; choose another --out, or remove it",
                    files.key.display()
                )));
            }
            let subject = Subject::Client(args.client.clone());
            issue(&args.dir, &subject, &files, args.days, now, output)
        }
        Command::Authority(args) => authority::run(args, now, output),
        Command::Show(args) => show(args, now, output),
    }
}

fn issue(
    dir: &Path,
    subject: &Subject,
    files: &Files,
    days: u16,
    now: Timestamp,
    output: Output,
) -> anyhow::Result<Outcome> {
    let authority = Authority::load(&dir.join(AUTHORITY_FOLDER)).context(
        "open the federation's authority; --dir is the folder that `meridian init` made",
    )?;
    let valid = Duration::from_secs(u64::from(days) * 24 * 60 * 60);
    let issued = authority.issue(subject, now, valid)?;
    files.write(&authority, &issued)?;
    let written = Written {
        name: subject.dns_name(),
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        valid_until: certificates::rfc3339(issued.not_after),
    };
    if output.is_json() {
        output.json(&written)?;
    } else {
        output.line(&format!(
            "{} is valid until {}: {} and {}.",
            written.name,
            written.valid_until,
            written.certificate.display(),
            written.key.display()
        ))?;
        if matches!(subject, Subject::Region(_)) {
            output.line(
                "Copy both to the region's host, then send its node SIGHUP (systemctl reload meridian).",
            )?;
        }
    }
    Ok(Outcome::Done)
}

fn show(args: &Show, now: Timestamp, output: Output) -> anyhow::Result<Outcome> {
    let paths = match &args.config {
        Some(path) => {
            let loaded = config::load(path)?;
            let own = loaded.node.certificates;
            [own.authority, own.certificate].to_vec()
        }
        None => args.files.clone(),
    };
    let mut shown = Vec::new();
    for path in paths {
        let described = certificates::describe(&path)?;
        shown.push(Shown {
            names: described.names,
            issuer: described.issuer,
            valid_from: certificates::rfc3339(described.not_before),
            valid_until: certificates::rfc3339(described.not_after),
            expired: described.not_after <= now,
            file: path,
        });
    }
    if output.is_json() {
        output.json(&shown)?;
    } else {
        let row = |shown: &Shown| {
            let until = &shown.valid_until;
            vec![
                shown.file.display().to_string(),
                shown.names.join(", "),
                shown.issuer.clone(),
                if shown.expired {
                    format!("expired {until}")
                } else {
                    until.clone()
                },
            ]
        };
        output.table(
            &["file", "names", "signed by", "valid until"],
            shown.iter().map(row).collect(),
        )?;
    }
    if shown.iter().any(|shown| shown.expired) {
        return Ok(Outcome::No);
    }
    Ok(Outcome::Done)
}

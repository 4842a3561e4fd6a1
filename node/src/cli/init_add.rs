//! `meridian init --add`: one more region for a federation whose folder is here.
//!
//! The new region's data folder is left empty, and that says enough: a node that finds it so asks its peers
//! before it writes anything, and hears from them that it is no member yet.

use std::path::{Path, PathBuf};

use anyhow::Context;
use meridian_clock::PhysicalClock;
use meridian_node::certificates::{Authority, CERTIFICATE_VALID, Files, Subject};
use meridian_node::config::FileMember;
use meridian_node::files;
use meridian_node::seams::SystemClock;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::init::{
    AUTHORITY_FOLDER, CERTIFICATES_FOLDER, CONFIG_FILE, REGION_FILE, SESSION_KEY_FILE, bracketed,
    check_region_name,
};
use super::{Outcome, Output, wrong_use};

/// A region to be added.
pub(crate) struct Plan<'a> {
    /// The federation's folder, as `meridian init` made it.
    pub(crate) dir: &'a Path,
    /// The new region's name.
    pub(crate) name: &'a str,
    /// Its host, where every region has one of its own.
    pub(crate) host: Option<&'a str>,
}

/// A region that was added.
#[derive(Debug, Serialize)]
struct Added {
    region: String,
    id: u16,
    http: String,
    quic: String,
    config: PathBuf,
    // The configurations of the other regions, which list it now.
    changed: Vec<PathBuf>,
}

// What is needed of a configuration file, with where it stands in the text.
#[derive(Deserialize)]
struct Said {
    region: Spanned<String>,
    listen: SaidListen,
    members: Vec<SaidMember>,
}

#[derive(Deserialize)]
struct SaidListen {
    http: Spanned<String>,
    quic: Spanned<String>,
}

#[derive(Deserialize)]
struct SaidMember {
    id: Spanned<u16>,
    name: Spanned<String>,
    quic: Spanned<String>,
    http: Spanned<String>,
}

struct RegionFile {
    path: PathBuf,
    text: String,
    said: Said,
}

pub(crate) fn run(plan: &Plan<'_>, output: Output) -> anyhow::Result<Outcome> {
    let added = add(plan)?;
    if output.is_json() {
        output.json(&added)?;
        return Ok(Outcome::Done);
    }
    let Added {
        region, id, config, ..
    } = &added;
    output.line(&format!(
        "Region {region} has number {id}, and the configurations of the others list it."
    ))?;
    let mut steps = Vec::new();
    if plan.host.is_some() {
        steps.push(format!(
            "Copy the folder of {region} to its host, and {CONFIG_FILE} of every other region to theirs."
        ));
    }
    steps.push("Restart the other regions' nodes, one at a time.".to_owned());
    steps.push(format!(
        "Start the new one: meridian serve --config {}",
        config.display()
    ));
    steps.push(format!("meridian region join {region}"));
    for (number, step) in (1..).zip(steps) {
        output.line(&format!("{number}. {step}"))?;
    }
    Ok(Outcome::Done)
}

fn add(plan: &Plan<'_>) -> anyhow::Result<Added> {
    let Plan { dir, name, host } = *plan;
    check_region_name(name)?;
    let known = region_files(dir)?;
    let first = known.first().ok_or_else(|| {
        wrong_use(format!(
            "there is no region's folder in {}; --dir is the folder that `meridian init` made",
            dir.display()
        ))
    })?;
    for other in &known[1..] {
        if other.said.listed() != first.said.listed() {
            return Err(wrong_use(format!(
                "{} and {} do not list the same members; make them the same first",
                first.path.display(),
                other.path.display()
            )));
        }
    }
    let folder = dir.join(name);
    if first.said.listed().iter().any(|(_, known)| *known == name) || files::exists(&folder) {
        return Err(wrong_use(format!(
            "there is, or was, a region called {name:?}; call the new one something else"
        )));
    }
    let member = first.said.next_member(name, host)?;
    // All of it is made in memory first: what cannot be done leaves everything as it was.
    let mut changed = Vec::new();
    for region in &known {
        let text = with_member(&region.text, &region.said, &member);
        check(&text, &member, None)
            .with_context(|| format!("add the new region to {}", region.path.display()))?;
        changed.push((region.path.clone(), text));
    }
    let own = first.as_of(&member)?;

    let now = SystemClock.now();
    let authority = Authority::load(&dir.join(AUTHORITY_FOLDER))?;
    let subject = Subject::Region(name.to_owned());
    let issued = authority.issue(&subject, now, CERTIFICATE_VALID)?;
    let certificates = folder.join(CERTIFICATES_FOLDER);
    Files::in_folder(&certificates, REGION_FILE).write(&authority, &issued)?;
    let write = |path: &Path, text: &str, mode| {
        files::replace(path, text, mode).with_context(|| format!("write {}", path.display()))
    };
    let beside = first.path.parent().unwrap_or(dir).join(CERTIFICATES_FOLDER);
    let session_key = beside.join(SESSION_KEY_FILE);
    if files::exists(&session_key) {
        let key = files::read_text(&session_key)
            .with_context(|| format!("read {}", session_key.display()))?;
        write(&certificates.join(SESSION_KEY_FILE), &key, 0o600)?;
    }
    let config = folder.join(CONFIG_FILE);
    write(&config, &own, 0o644)?;
    for (path, text) in &changed {
        write(path, text, 0o644)?;
    }
    Ok(Added {
        region: name.to_owned(),
        id: member.id,
        http: member.http,
        quic: member.quic,
        config,
        changed: changed.into_iter().map(|(path, _)| path).collect(),
    })
}

fn region_files(dir: &Path) -> anyhow::Result<Vec<RegionFile>> {
    for step in ["authority-next", "authority-old"] {
        if files::exists(&dir.join(step)) {
            return Err(wrong_use(format!(
                "the authority is being replaced ({step} is there); finish that first"
            )));
        }
    }
    let folders = files::in_folder(dir).with_context(|| format!("look into {}", dir.display()))?;
    let paths = folders.into_iter().map(|folder| folder.join(CONFIG_FILE));
    let mut paths: Vec<PathBuf> = paths.filter(|path| files::exists(path)).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let text = files::read_text(&path).with_context(|| format!("read {}", path.display()))?;
        let said = toml::from_str(&text);
        let said = said.with_context(|| format!("understand {}", path.display()))?;
        Ok(RegionFile { path, text, said })
    };
    paths.into_iter().map(read).collect()
}

impl Said {
    fn listed(&self) -> Vec<(u16, &str)> {
        let members = self.members.iter();
        let mut listed: Vec<_> = members
            .map(|it| (*it.id.get_ref(), it.name.get_ref().as_str()))
            .collect();
        listed.sort_unstable();
        listed
    }

    // Whether the nodes listen where they are reached, as they do when all are on one machine.
    fn is_local(&self) -> bool {
        let mut members = self.members.iter();
        members.any(|member| {
            member.name.get_ref() == self.region.get_ref()
                && member.http.get_ref() == self.listen.http.get_ref()
                && member.quic.get_ref() == self.listen.quic.get_ref()
        })
    }

    // The next free number, and where that region is reached.
    fn next_member(&self, name: &str, host: Option<&str>) -> anyhow::Result<FileMember> {
        let ids = self.members.iter().map(|it| *it.id.get_ref());
        let id = ids.max().and_then(|id| id.checked_add(1));
        let id = id.ok_or_else(|| wrong_use("there is no number left for another region"))?;
        let port_of = |address: &Spanned<String>| {
            let port = address
                .get_ref()
                .rsplit_once(':')
                .map(|(_, port)| port.parse::<u16>());
            port.and_then(Result::ok)
        };
        let (http, quic) = match (host, self.is_local()) {
            (None, true) => {
                let all = self.members.iter().flat_map(|it| [&it.http, &it.quic]);
                let last = all.filter_map(port_of).max().unwrap_or_default();
                // As `meridian init` numbers them: ten apart, QUIC on the port after HTTP's.
                let http = last.checked_add(9).filter(|http| *http < u16::MAX);
                let http = http.ok_or_else(|| {
                    wrong_use("the new region's ports would go beyond 65535; add it by hand")
                })?;
                (
                    format!("127.0.0.1:{http}"),
                    format!("127.0.0.1:{}", http + 1),
                )
            }
            (Some(host), false) => {
                let own = self
                    .members
                    .first()
                    .map(|it| (port_of(&it.http), port_of(&it.quic)));
                let Some((Some(http), Some(quic))) = own else {
                    return Err(wrong_use(
                        "the other regions' addresses have no ports; correct them",
                    ));
                };
                let host = bracketed(host);
                (format!("{host}:{http}"), format!("{host}:{quic}"))
            }
            (None, false) => {
                return Err(wrong_use(format!(
                    "the other regions have hosts of their own; give the new one's as --host {name}=HOST"
                )));
            }
            (Some(_), true) => {
                return Err(wrong_use(
                    "the other regions are all on this machine, where no other host reaches them; leave out \
                     --host",
                ));
            }
        };
        Ok(FileMember {
            id,
            name: name.to_owned(),
            quic,
            http,
        })
    }
}

impl RegionFile {
    // This file as one of `member`'s: all else is the same in every region.
    fn as_of(&self, member: &FileMember) -> anyhow::Result<String> {
        let mut text = with_member(&self.text, &self.said, member);
        let mut values = vec![(&self.said.region, &member.name)];
        if self.said.is_local() {
            values.push((&self.said.listen.http, &member.http));
            values.push((&self.said.listen.quic, &member.quic));
        }
        // From the end, so that what stands before keeps its place. The members come last or not: a value
        // behind the new entry has moved by its length.
        let grown = text.len() - self.text.len();
        let entry_at = entry_at(&self.text, &self.said);
        values.sort_by_key(|(value, _)| std::cmp::Reverse(value.span().start));
        for (value, with) in values {
            let moved = match value.span().start >= entry_at {
                true => grown,
                false => 0,
            };
            let span = value.span().start + moved..value.span().end + moved;
            text.replace_range(span, &format!("{with:?}"));
        }
        check(&text, member, Some(&member.name)).context("make the new region's configuration")?;
        Ok(text)
    }
}

// Behind the line on which the last member ends.
fn entry_at(text: &str, said: &Said) -> usize {
    let ends = said.members.iter().flat_map(|it| {
        let strings = [&it.name, &it.quic, &it.http].map(|value| value.span().end);
        strings.into_iter().chain([it.id.span().end])
    });
    let end = ends.max().unwrap_or(text.len());
    let line = text[end..].find('\n');
    line.map_or(text.len(), |line| end + line + 1)
}

fn with_member(text: &str, said: &Said, member: &FileMember) -> String {
    let FileMember {
        id,
        name,
        quic,
        http,
    } = member;
    let at = entry_at(text, said);
    let (before, behind) = text.split_at(at);
    let gap = match before.ends_with('\n') {
        true => "\n",
        false => "\n\n",
    };
    format!(
        "{before}{gap}[[members]]\nid = {id}\nname = \"{name}\"\nquic = \"{quic}\"\nhttp = \"{http}\"\n{behind}"
    )
}

// Whether a file says what it should: somebody may have written it in a way that nothing can be added to.
fn check(text: &str, member: &FileMember, region: Option<&str>) -> anyhow::Result<()> {
    let by_hand = || {
        wrong_use(
            "the file is written in another way than `meridian init` does; add the entry by hand",
        )
    };
    let said: Said = toml::from_str(text).map_err(|_| by_hand())?;
    let is_there = said.members.iter().any(|it| {
        *it.id.get_ref() == member.id
            && *it.name.get_ref() == member.name
            && *it.http.get_ref() == member.http
            && *it.quic.get_ref() == member.quic
    });
    let is_its = region.is_none_or(|region| said.region.get_ref() == region);
    match is_there && is_its {
        true => Ok(()),
        false => Err(by_hand()),
    }
}

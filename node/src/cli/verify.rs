//! `meridian verify`: checks a data folder that no node has open.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use meridian_clock::RegionId;
use meridian_node::config::{self, NodeConfig};
use meridian_node::files;
use meridian_store::{Damage, LogHead, RealDisk, VerifyReport, verify};
use serde::Serialize;

use super::init::CONFIG_FILE;
use super::{Outcome, Output, wrong_use};

/// What `meridian verify` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Prints one line for each origin log: origin partition position chain.\n\
                        Exit code 1 when anything is damaged."
)]
pub(crate) struct Args {
    /// The data folder
    #[arg(
        long,
        value_name = "FOLDER",
        required_unless_present = "config",
        conflicts_with = "config"
    )]
    data: Option<PathBuf>,
    /// The node's configuration, which names the data folder and the regions
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    logs: Vec<Log>,
    events: u64,
    streams: u64,
    streams_gapless: u64,
    torn_tail_bytes: u64,
    indexes_missing: u64,
    damage: Vec<Damaged>,
}

/// As in the answer of `GET /v1/digest`, so that the two can be compared as they are.
#[derive(Serialize)]
struct Log {
    origin: String,
    partition: u16,
    position: u64,
    chain: String,
}

#[derive(Serialize)]
struct Damaged {
    file: String,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_position: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_position: Option<u64>,
    reason: String,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<Outcome> {
    let (data, node) = match (&args.config, &args.data) {
        (Some(config), _) => {
            let node = config::load(config)?.node;
            (node.data.clone(), Some(node))
        }
        (None, Some(data)) => (data.clone(), config_beside(data)),
        (None, None) => return Err(wrong_use("give --data or --config")),
    };
    // Opening a disk makes its folder, and an empty folder would verify as sound.
    if !files::exists(&data) {
        return Err(wrong_use(format!(
            "there is no folder {}; check --data",
            data.display()
        )));
    }
    let disk =
        RealDisk::new(&data).with_context(|| format!("open the folder {}", data.display()))?;
    let found = verify(&disk).with_context(|| format!("verify {}", data.display()))?;
    let report = report(&found, &names(node.as_ref()));
    if output.is_json() {
        output.json(&report)?;
    } else {
        print(&report, output)?;
    }
    if report.damage.is_empty() {
        Ok(Outcome::Done)
    } else {
        Ok(Outcome::No)
    }
}

/// The configuration that `meridian init` puts beside a data folder, if it is there and means it.
fn config_beside(data: &Path) -> Option<NodeConfig> {
    let folder = data.parent()?;
    let node = config::load(&folder.join(CONFIG_FILE)).ok()?.node;
    let same = node.data.file_name() == data.file_name();
    same.then_some(node)
}

fn names(node: Option<&NodeConfig>) -> BTreeMap<RegionId, String> {
    let members = node.map_or(&[][..], |node| &node.members);
    members
        .iter()
        .map(|member| (member.id, member.name.clone()))
        .collect()
}

fn report(found: &VerifyReport, names: &BTreeMap<RegionId, String>) -> Report {
    let name = |region: RegionId| {
        names
            .get(&region)
            .cloned()
            .unwrap_or_else(|| format!("region-{region}"))
    };
    let log = |head: &LogHead| Log {
        origin: name(head.log.origin),
        partition: head.log.partition.0,
        position: head.position.0,
        chain: head.chain.to_string(),
    };
    let damaged = |damage: &Damage| Damaged {
        file: damage.file.clone(),
        offset: damage.offset,
        origin: damage.log.map(|log| name(log.origin)),
        partition: damage.log.map(|log| log.partition.0),
        first_position: damage.positions.map(|(first, _)| first.0),
        last_position: damage.positions.map(|(_, last)| last.0),
        reason: damage.reason.clone(),
    };
    Report {
        logs: found.logs.iter().map(log).collect(),
        events: found.events,
        streams: found.streams,
        streams_gapless: found.streams_gapless,
        torn_tail_bytes: found.torn_tail_bytes,
        indexes_missing: found.indexes_missing,
        damage: found.damage.iter().map(damaged).collect(),
    }
}

fn print(report: &Report, output: Output) -> anyhow::Result<()> {
    for log in &report.logs {
        let Log {
            origin,
            partition,
            position,
            chain,
        } = log;
        output.line(&format!("{origin} {partition} {position} {chain}"))?;
    }
    for damaged in &report.damage {
        let whose = match (&damaged.origin, damaged.partition) {
            (Some(origin), Some(partition)) => format!(", log {origin}/{partition}"),
            _ => String::new(),
        };
        let positions = match (damaged.first_position, damaged.last_position) {
            (Some(first), Some(last)) => format!(", positions {first} to {last}"),
            _ => String::new(),
        };
        output.line(&format!(
            "DAMAGED {} at byte {}{whose}{positions}: {}",
            damaged.file, damaged.offset, damaged.reason
        ))?;
    }
    output.line(&format!(
        "{} events in {} streams, {} of them with revisions 0, 1, 2… without a gap.",
        report.events, report.streams, report.streams_gapless
    ))?;
    let incomplete = report.streams - report.streams_gapless;
    if incomplete > 0 && report.damage.is_empty() {
        output.line(&format!(
            "{incomplete} streams that moved between regions have gaps: one region's log goes further here than another's. \
             What is missing comes when the node runs; a gap that stays while `meridian status` shows no lag is a bug."
        ))?;
    }
    if report.torn_tail_bytes > 0 {
        output.line(&format!(
            "{} bytes at the end were never acknowledged; the node cuts them when it starts.",
            report.torn_tail_bytes
        ))?;
    }
    if report.indexes_missing > 0 {
        output.line(&format!(
            "{} index files are missing; the node makes them when it starts.",
            report.indexes_missing
        ))?;
    }
    if report.damage.is_empty() {
        output.line("Every block, chain and index is sound.")?;
    } else {
        output.line(
            "Start the node with its links up: it fetches damaged ranges from a region that holds them. Then verify again.",
        )?;
    }
    Ok(())
}

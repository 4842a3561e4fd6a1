//! `meridian demo`: the main job by itself, on real flights.
//!
//! Three regions in one process, with their own folders, certificates, QUIC endpoints and HTTP
//! doors. Only one thing is not the host's own: the network of the third region can be cut.

mod cut;
mod writers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use meridian_node::seams::Seams;
use meridian_node::{DigestEntry, Node};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use self::cut::{Cut, CuttableNetwork};
pub(super) use self::writers::{Flight, flights};

use super::{Outcome, Output, local};

const REGIONS: [&str; 3] = ["us-east", "eu-west", "ap-south"];
/// Which airport's flights each region writes.
const AIRPORTS: [&str; 3] = ["EWR", "JFK", "LGA"];
/// Small, so that three regions fit anywhere.
const SEGMENT_BYTES: u64 = 32 << 20;
/// Short, so that what was on its way when the cut came does not hold up the show.
const APPEND_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a region stays cut off at the least.
const CUT_FOR: Duration = Duration::from_secs(5);
/// How long the regions may take to agree after the cut is healed.
const AGREE_WITHIN: Duration = Duration::from_secs(30);

/// What `meridian demo` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Go on serving after the run, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Where the three regions keep their data; a new folder for temporary files by default
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// What one region holds in the end.
#[derive(Debug, Serialize)]
struct Region {
    region: String,
    http: String,
    written_here: usize,
    events: u64,
    by_origin: BTreeMap<String, u64>,
    digest: String,
}

/// The demonstration's result.
#[derive(Debug, Serialize)]
struct Report {
    agree: bool,
    events: usize,
    regions: Vec<Region>,
    lag_ms_p50: f64,
    lag_ms_p99: f64,
    cut_off_s: f64,
    agreed_after_heal_ms: u128,
    data: PathBuf,
}

pub(crate) async fn run(args: Args, output: Output) -> anyhow::Result<Outcome> {
    let say = |text: &str| {
        if output.is_json() {
            Ok(())
        } else {
            output.line(text)
        }
    };
    let data = args
        .dir
        .clone()
        .unwrap_or_else(|| local::temporary_folder("demo"));
    let nodes = start(&data).await?;
    say(&format!(
        "Three regions in this process, over QUIC with mutual TLS, each with a disk folder:\n  {}\nData: {}\n",
        REGIONS.join(", "),
        data.display()
    ))?;
    let outcome = drive(&nodes, &data, output).await;
    if args.keep && outcome.is_ok() {
        for node in &nodes {
            say(&format!(
                "{} goes on at http://{}",
                node.region,
                node.node.http_addr()
            ))?;
        }
        say("Ctrl-C stops them.")?;
        tokio::signal::ctrl_c().await.context("wait for Ctrl-C")?;
    }
    for running in nodes {
        running.node.shutdown().await;
    }
    outcome
}

struct Running {
    region: &'static str,
    node: Arc<Node>,
    cut: Cut,
}

async fn drive(nodes: &[Running], data: &Path, output: Output) -> anyhow::Result<Outcome> {
    let say = |text: &str| {
        if output.is_json() {
            Ok(())
        } else {
            output.line(text)
        }
    };
    let doors: BTreeMap<String, String> = nodes
        .iter()
        .map(|running| {
            (
                running.region.to_owned(),
                running.node.http_addr().to_string(),
            )
        })
        .collect();
    for running in nodes {
        local::ready(&running.node).await?;
    }
    let mut flights = flights_by_region()?;
    let total = flights.len();
    let last = flights.split_off(total * 2 / 3);
    let middle = flights.split_off(total / 3);
    let apart = nodes.last().context("there are three regions")?;
    let mut written_by = BTreeMap::new();

    say(&format!(
        "1. Writing {} flights, in all three regions at once.",
        flights.len()
    ))?;
    count(
        &mut written_by,
        writers::write(&doors, flights, false).await?.by_region,
    );
    let lag = lag(nodes);

    say(&format!(
        "2. {} is cut off from the others. All three go on writing: {} flights.",
        apart.region,
        middle.len()
    ))?;
    apart.cut.set(true);
    let cut_at = Instant::now();
    let during = writers::write(&doors, middle, true).await?;
    let waiting = during.waiting.len();
    let alone = during
        .by_region
        .get(apart.region)
        .copied()
        .unwrap_or_default();
    let others: usize = during.by_region.values().sum::<usize>() - alone;
    say(&format!(
        "   {others} were taken by the others and {alone} by {}; {waiting} wait for a home across the cut.",
        apart.region
    ))?;
    count(&mut written_by, during.by_region);
    sleep(CUT_FOR.saturating_sub(cut_at.elapsed())).await;

    apart.cut.set(false);
    let cut_off = cut_at.elapsed();
    let healed_at = Instant::now();
    say(&format!(
        "3. Healed after {:.1} s. Writing what waited and the last {} flights.",
        cut_off.as_secs_f64(),
        last.len()
    ))?;
    let mut rest = during.waiting;
    rest.extend(last);
    count(
        &mut written_by,
        writers::write(&doors, rest, false).await?.by_region,
    );
    let agree = agree(nodes, total).await;
    let agreed_after = healed_at.elapsed();

    let report = Report {
        agree,
        events: total,
        regions: nodes
            .iter()
            .map(|running| describe(running, &written_by))
            .collect(),
        lag_ms_p50: lag.0,
        lag_ms_p99: lag.1,
        cut_off_s: cut_off.as_secs_f64(),
        agreed_after_heal_ms: agreed_after.as_millis(),
        data: data.to_owned(),
    };
    print(&report, output)?;
    Ok(if agree { Outcome::Done } else { Outcome::No })
}

fn print(report: &Report, output: Output) -> anyhow::Result<()> {
    if output.is_json() {
        output.json(report)?;
        return Ok(());
    }
    let mut header = vec!["region", "written here", "holds"];
    let origins: Vec<_> = REGIONS
        .iter()
        .map(|region| format!("first in {region}"))
        .collect();
    header.extend(origins.iter().map(String::as_str));
    header.push("digest of all chains");
    let rows = report.regions.iter().map(|region| {
        let mut row = vec![
            region.region.clone(),
            region.written_here.to_string(),
            region.events.to_string(),
        ];
        let of = |origin: &&str| region.by_origin.get(*origin).copied().unwrap_or_default();
        row.extend(REGIONS.iter().map(|origin| of(origin).to_string()));
        row.push(region.digest.clone());
        row
    });
    output.line("")?;
    output.table(&header, rows.collect())?;
    output.line(&format!(
        "Replication lag before the cut, from the stamp in one region to the disk of another: \
         p50 {:.1} ms, p99 {:.1} ms.",
        report.lag_ms_p50, report.lag_ms_p99
    ))?;
    output.line(&if report.agree {
        format!(
            "All three regions hold the same {} events, byte for byte, {:.1} s after the cut was healed.",
            report.events,
            report.agreed_after_heal_ms as f64 / 1e3
        )
    } else {
        format!("The regions do NOT agree; look at the logs in {}.", report.data.display())
    })?;
    Ok(())
}

/// Starts the three regions; each can be cut off.
async fn start(data: &Path) -> anyhow::Result<Vec<Running>> {
    let made = local::make(data, &REGIONS).await?;
    let mut nodes = Vec::new();
    for (region, mut config) in REGIONS.into_iter().zip(made) {
        config.segment_bytes = SEGMENT_BYTES;
        config.append_timeout = APPEND_TIMEOUT;
        let cut = Cut::default();
        let seams = Seams {
            network: Arc::new(CuttableNetwork(cut.clone())),
            ..Seams::host(&config.data).context("open a data folder")?
        };
        let node = Node::start(config, seams).await?;
        nodes.push(Running { region, node, cut });
    }
    Ok(nodes)
}

fn flights_by_region() -> anyhow::Result<Vec<(String, Flight)>> {
    let region_of = |airport: &str| {
        let index = AIRPORTS.iter().position(|known| *known == airport);
        index.map(|index| REGIONS[index].to_owned())
    };
    let flights = flights()?.into_iter();
    flights
        .map(|flight| {
            let region = region_of(&flight.airport);
            region
                .map(|region| (region, flight))
                .context("a flight from an unknown airport")
        })
        .collect()
}

fn count(sum: &mut BTreeMap<String, usize>, more: BTreeMap<String, usize>) {
    for (region, count) in more {
        *sum.entry(region).or_default() += count;
    }
}

/// Waits until all regions hold `total` events and the same chains.
async fn agree(nodes: &[Running], total: usize) -> bool {
    let began = Instant::now();
    loop {
        let digests: Vec<_> = nodes.iter().map(|running| running.node.digest()).collect();
        let complete = digests
            .iter()
            .all(|digest| events_in(digest) == total as u64);
        if complete && digests.windows(2).all(|pair| pair[0] == pair[1]) {
            return true;
        }
        if began.elapsed() > AGREE_WITHIN {
            return false;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn events_in(digest: &[DigestEntry]) -> u64 {
    digest.iter().map(|entry| entry.position).sum()
}

fn describe(running: &Running, written_by: &BTreeMap<String, usize>) -> Region {
    let digest = running.node.digest();
    let mut by_origin = BTreeMap::new();
    let mut all = blake3::Hasher::new();
    for entry in &digest {
        *by_origin.entry(entry.origin.clone()).or_default() += entry.position;
        all.update(entry.chain.as_bytes());
    }
    Region {
        region: running.region.to_owned(),
        http: format!("http://{}", running.node.http_addr()),
        written_here: written_by.get(running.region).copied().unwrap_or_default(),
        events: events_in(&digest),
        by_origin,
        digest: all.finalize().to_hex()[..16].to_owned(),
    }
}

/// Median and 99th percentile of the replication lag so far, over all regions, in milliseconds.
fn lag(nodes: &[Running]) -> (f64, f64) {
    let mut all = None;
    for running in nodes {
        let delays = running.node.replication_delays();
        match &mut all {
            None => all = Some(delays),
            // Histograms of one kind always add up.
            Some(all) => all.add(&delays).unwrap_or_default(),
        }
    }
    let at = |quantile| {
        all.as_ref()
            .map_or(0.0, |all| all.value_at_quantile(quantile) as f64 / 1e3)
    };
    (at(0.5), at(0.99))
}

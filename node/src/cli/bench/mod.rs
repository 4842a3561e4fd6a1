//! `meridian bench`: what this machine does, ours beside the raw limit, in one run.
//!
//! Every figure of ours stands beside a bare loop that does only what cannot be left out, measured
//! in turn with it, so that a busy or slow machine shows in both. Medians over rounds.

mod append;
mod bare_postgres;
mod merge;
mod moves;
mod project;
mod read;
mod replicate;
mod settle;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use hdrhistogram::Histogram;
use meridian_client::{AppendRequest, Durability, Expected};
use meridian_event::{EventId, EventType, NewEvent, StreamId};
use meridian_node::seams::{Random, Seams, SystemRandom};
use meridian_node::{Node, files};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Outcome, Output, local};

/// Event sizes that are measured, in bytes of data.
const SIZES: [u32; 2] = [256, 1024];
/// How many appends are in flight, one after the other.
const IN_FLIGHT: [u16; 4] = [1, 16, 64, 256];
/// How many streams are written to.
const STREAMS: usize = 1000;

/// What `meridian bench` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What is measured
    #[arg(value_enum)]
    what: What,
    /// How long each measurement takes, in seconds
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    seconds: f64,
    /// How often each is repeated; medians are printed
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    rounds: u16,
    /// Where the data goes, which decides whose disk is measured; a temporary folder by default
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Event sizes, in bytes of data
    #[arg(long, value_delimiter = ',', default_values_t = SIZES, value_name = "B,…",
        value_parser = clap::value_parser!(u32).range(2..=1 << 19))]
    event_bytes: Vec<u32>,
    /// How many appends are in flight, one after the other
    #[arg(long, value_delimiter = ',', default_values_t = IN_FLIGHT, value_name = "N,…",
        value_parser = clap::value_parser!(u16).range(1..=4096))]
    in_flight: Vec<u16>,
    /// With `project`: also build in this PostgreSQL database, as in postgresql:///bench?host=/run/postgresql
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Print the table as Markdown
    #[arg(long)]
    markdown: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum What {
    /// Durable appends in one region, beside one write and fdatasync per group of the same size
    Append,
    /// Catching up over QUIC to a second region's disk, beside a bare QUIC stream; and the lag
    Replicate,
    /// How long after its acknowledgement in one region an event is stable, and final, in another
    Settle,
    /// Reading the log, beside reading its files with a checksum
    Read,
    /// Appends while a thousand streams move from region to region, beside the same at rest
    Move,
    /// Operations on streams that every region writes, beside plain appends; reading their states
    Merge,
    /// Building a read model in SQLite and PostgreSQL, beside the same SQL run bare
    Project,
}

/// One line of results.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) event_bytes: usize,
    pub(super) in_flight: usize,
    pub(super) ours_per_s: f64,
    pub(super) raw_per_s: f64,
    pub(super) ratio: f64,
    pub(super) ours_p50_us: Option<u64>,
    pub(super) ours_p99_us: Option<u64>,
    pub(super) raw_p50_us: Option<u64>,
    pub(super) raw_p99_us: Option<u64>,
}

/// What is measured how often and where.
pub(super) struct Plan {
    pub(super) span: Duration,
    pub(super) rounds: usize,
    pub(super) dir: PathBuf,
    pub(super) postgres: Option<String>,
    sizes: Vec<u32>,
    in_flight: Vec<u16>,
}

impl Plan {
    /// Each event size with each number in flight.
    pub(super) fn cases(&self) -> Vec<(usize, usize)> {
        let sizes = self.sizes.iter().map(|size| *size as usize);
        sizes
            .flat_map(|size| {
                self.in_flight
                    .iter()
                    .map(move |count| (size, usize::from(*count)))
            })
            .collect()
    }
}

pub(crate) async fn run(args: Args, output: Output) -> anyhow::Result<Outcome> {
    let plan = Plan {
        span: Duration::try_from_secs_f64(args.seconds)
            .map_err(|_| super::wrong_use("--seconds takes a positive number"))?,
        rounds: usize::from(args.rounds),
        dir: args.dir.unwrap_or_else(|| local::temporary_folder("bench")),
        postgres: args.postgres,
        sizes: args.event_bytes,
        in_flight: args.in_flight,
    };
    let (unit, rows, notes) = match args.what {
        // It has no raw limit beside it: what it waits for is the next heartbeat.
        What::Settle => {
            settle::run(&plan, args.markdown, output).await?;
            files::remove_folder(&plan.dir)
                .with_context(|| format!("remove {}", plan.dir.display()))?;
            return Ok(Outcome::Done);
        }
        What::Move => {
            moves::run(&plan, args.markdown, output).await?;
            files::remove_folder(&plan.dir)
                .with_context(|| format!("remove {}", plan.dir.display()))?;
            return Ok(Outcome::Done);
        }
        What::Merge => {
            merge::run(&plan, args.markdown, output).await?;
            files::remove_folder(&plan.dir)
                .with_context(|| format!("remove {}", plan.dir.display()))?;
            return Ok(Outcome::Done);
        }
        What::Project => {
            project::run(&plan, args.markdown, output).await?;
            files::remove_folder(&plan.dir)
                .with_context(|| format!("remove {}", plan.dir.display()))?;
            return Ok(Outcome::Done);
        }
        What::Append => append::measure(&plan).await?,
        What::Replicate => replicate::measure(&plan).await?,
        What::Read => read::measure(&plan).await?,
    };
    files::remove_folder(&plan.dir).with_context(|| format!("remove {}", plan.dir.display()))?;
    if output.is_json() {
        output.json(&serde_json::json!({ "unit": unit, "rows": rows, "notes": notes }))?;
        return Ok(Outcome::Done);
    }
    print(unit, &rows, args.markdown, output)?;
    for note in notes {
        output.line(&note)?;
    }
    Ok(Outcome::Done)
}

fn print(unit: &str, rows: &[Row], markdown: bool, output: Output) -> anyhow::Result<()> {
    let (ours, raw) = (format!("ours, {unit}"), format!("raw, {unit}"));
    let header = [
        "event",
        "in flight",
        &ours,
        &raw,
        "ours/raw",
        "ours p50",
        "ours p99",
        "raw p50",
        "raw p99",
    ];
    let micros = |value: Option<u64>| value.map_or("–".to_owned(), |us| format!("{us} µs"));
    let cells = rows.iter().map(|row| {
        vec![
            format!("{} B", row.event_bytes),
            row.in_flight.to_string(),
            thousands(row.ours_per_s),
            thousands(row.raw_per_s),
            format!("{:.2}", row.ratio),
            micros(row.ours_p50_us),
            micros(row.ours_p99_us),
            micros(row.raw_p50_us),
            micros(row.raw_p99_us),
        ]
    });
    table(&header, cells.collect(), markdown, output)
}

/// Prints a table, as Markdown if so.
fn table(
    header: &[&str],
    rows: Vec<Vec<String>>,
    markdown: bool,
    output: Output,
) -> anyhow::Result<()> {
    if markdown {
        output.line(&format!("| {} |", header.join(" | ")))?;
        output.line(&format!("|{}", "---|".repeat(header.len())))?;
        for row in rows {
            output.line(&format!("| {} |", row.join(" | ")))?;
        }
    } else {
        output.table(header, rows)?;
    }
    Ok(())
}

fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// The median of what the rounds gave.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

pub(super) fn micros(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros())
        .unwrap_or(u64::MAX)
        .max(1)
}

/// Latencies from 1 µs to a minute.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are in order")
}

/// Starts the nodes of a new federation of `regions` below `dir`, without waiting for any.
pub(super) async fn start(dir: &Path, regions: &[&str]) -> anyhow::Result<Vec<Arc<Node>>> {
    let mut nodes = Vec::new();
    for config in local::make(dir, regions).await? {
        let seams = Seams::host(&config.data).context("open a data folder")?;
        nodes.push(Node::start(config, seams).await?);
    }
    Ok(nodes)
}

/// Draws events whose data does not compress, so that bytes are bytes on both sides.
pub(super) struct Events {
    payload: Vec<u8>,
    event_bytes: usize,
}

impl Events {
    pub(super) fn new(event_bytes: usize) -> Self {
        let mut random = vec![0; 1 << 20];
        SystemRandom.fill(&mut random);
        // Printable, for data is JSON text: a string of base-64-like characters.
        const SIGNS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let payload = random
            .into_iter()
            .map(|byte| SIGNS[usize::from(byte % 64)])
            .collect();
        Self {
            payload,
            event_bytes,
        }
    }

    /// The append number `number`: one event, with an id of its own.
    pub(super) fn request(&self, number: u64, durability: Durability) -> AppendRequest {
        let text = self.event_bytes - 2;
        let at = (number as usize).wrapping_mul(7919) % (self.payload.len() - text);
        let mut data = Vec::with_capacity(self.event_bytes);
        data.push(b'"');
        data.extend_from_slice(&self.payload[at..at + text]);
        data.push(b'"');
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        id[8..].copy_from_slice(&self.payload[..8]);
        let stream = StreamId::new(&format!("bench-{}", number as usize % STREAMS));
        AppendRequest {
            stream: stream.expect("a short name without control characters"),
            expected: Expected::Any,
            durability,
            events: vec![NewEvent {
                id: EventId::from_random(
                    *blake3::hash(&id).as_bytes().first_chunk().unwrap_or(&id),
                ),
                event_type: EventType::new("Benched").expect("a short name"),
                data: Bytes::from(data),
                metadata: Bytes::new(),
            }],
        }
    }
}

/// Appends through `node` with `in_flight` writers until `enough` says so.
pub(super) async fn write(
    node: &Arc<Node>,
    events: &Arc<Events>,
    in_flight: usize,
    numbers: std::ops::Range<u64>,
    span: Option<Duration>,
) -> anyhow::Result<(u64, Duration, Histogram<u64>)> {
    let next = Arc::new(std::sync::atomic::AtomicU64::new(numbers.start));
    let began = Instant::now();
    let mut writers = JoinSet::new();
    for _ in 0..in_flight {
        let (node, events, next) = (Arc::clone(node), Arc::clone(events), Arc::clone(&next));
        let end = numbers.end;
        writers.spawn(async move {
            let mut latencies = histogram();
            loop {
                let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if number >= end || span.is_some_and(|span| began.elapsed() >= span) {
                    return anyhow::Ok(latencies);
                }
                let request = events.request(number, Durability::Region);
                let sent = Instant::now();
                node.append(request).await?;
                latencies.saturating_record(micros(sent.elapsed()));
            }
        });
    }
    let mut latencies = histogram();
    while let Some(writer) = writers.join_next().await {
        latencies
            .add(writer.context("a writer ended early")??)
            .context("add up latencies")?;
    }
    Ok((latencies.len(), began.elapsed(), latencies))
}

//! `meridian import`: events from NDJSON, many in flight, safe to repeat.
//!
//! The reader (`source`, `line`) runs ahead of the lanes (`lanes`), which send (`sender`) and note
//! what was acknowledged (`acks`).

mod acks;
mod lanes;
mod line;
mod sender;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use meridian_client::Durability;
use meridian_node::config;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::acks::Acknowledged;
use self::lanes::{Counts, Lanes, Work, add};
use self::line::Reading;
use self::sender::{HttpSender, QuicSender, Sender};
use self::source::Source;
use super::{Outcome, Output, wrong_use};

/// How many acknowledged ids wait to be noted.
const ACKS_QUEUE: usize = 4096;
const BAR_EVERY: Duration = Duration::from_millis(200);

/// What `meridian import` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A line is {\"id\": UUID, \"stream\": …, \"type\": …, \"data\": …}, with \"metadata\" and a region if wanted. \
                  An id never appends twice: to go on after anything, start the same import again."
)]
pub(crate) struct Args {
    /// NDJSON, plain or compressed with gzip or zstd; - for standard input
    file: PathBuf,
    /// A region's configuration: sends over QUIC, straight to each stream's home, with the
    /// certificate that its `[operator]` table names
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "url",
        conflicts_with = "url"
    )]
    config: Option<PathBuf>,
    /// A node's HTTP address: sends over HTTP
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The field that says where an event happened
    #[arg(long, default_value = "region", value_name = "FIELD")]
    region_field: String,
    /// From that field's values to regions, as VALUE=REGION with commas between them
    #[arg(long, value_delimiter = ',', value_name = "VALUE=REGION", value_parser = mapping)]
    map: Vec<(String, String)>,
    /// How many events are in flight; each stream has one
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=4096))]
    in_flight: u16,
    /// How safe an event must be before it counts: region, regions:N or all
    #[arg(long, default_value = "region", value_parser = super::durability)]
    durability: Durability,
    /// Note each acknowledged id in this file, and leave out lines whose id is in it already
    #[arg(long, value_name = "FILE")]
    acks: Option<PathBuf>,
    /// Leave out lines that are malformed or can never be written, and count them
    #[arg(long)]
    skip_bad: bool,
    /// How long an event may go without an answer, as in 90s or 10m
    #[arg(long, default_value = "120s", value_parser = duration)]
    give_up_after: Duration,
}

/// Parses `VALUE=REGION`.
fn mapping(given: &str) -> Result<(String, String), String> {
    match given.rsplit_once('=') {
        Some((value, region)) if !value.is_empty() && !region.is_empty() => {
            Ok((value.to_owned(), region.to_owned()))
        }
        _ => Err("write VALUE=REGION, as in EWR=us-east".to_owned()),
    }
}

/// Parses a number of seconds, minutes or hours.
fn duration(given: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("", 1)];
    units
        .iter()
        .filter_map(|(unit, seconds)| {
            Some((given.strip_suffix(unit)?.parse::<u64>().ok()?, *seconds))
        })
        .find_map(|(count, seconds)| count.checked_mul(seconds))
        // A longer wait than a month is a slip, and the clock's arithmetic has an end.
        .filter(|seconds| (1..=31 * 24 * 3600).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| "write a time such as 90s, 10m or 1h".to_owned())
}

/// What an import came to.
#[derive(Debug, Serialize)]
struct Summary {
    /// Whether every line was dealt with.
    complete: bool,
    read: u64,
    acknowledged: u64,
    /// Missing when a region did not say how far its logs went.
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    there_before: Option<u64>,
    skipped_by_acks: u64,
    bad: u64,
    retries: u64,
    seconds: f64,
    events_per_second: f64,
}

pub(crate) async fn run(args: Args, output: Output) -> anyhow::Result<Outcome> {
    let mut map = BTreeMap::new();
    for (value, region) in &args.map {
        if map.insert(value.clone(), region.clone()).is_some() {
            return Err(wrong_use(format!("--map names {value:?} twice")));
        }
    }
    for field in ["id", "stream", "type", "data", "metadata"] {
        if args.region_field == field {
            return Err(wrong_use(format!(
                "--region-field cannot be {field:?}, which has a meaning of its own"
            )));
        }
    }
    let source = Source::open(&args.file)
        .map_err(|error| wrong_use(Output::error(&anyhow::Error::new(error))))?;
    let (known, list) = match &args.acks {
        Some(path) => {
            let opened = acks::open(path).map_err(|error| {
                wrong_use(format!("--acks {} cannot be used: {error}", path.display()))
            })?;
            (opened.0, Some(opened.1))
        }
        None => (Acknowledged::default(), None),
    };
    let regions: BTreeSet<String> = map.values().cloned().collect();
    let sender = match (&args.config, &args.url) {
        (Some(path), _) => {
            let loaded = config::load(path)?;
            Sender::Quic(Box::new(QuicSender::connect(&loaded, &regions).await?))
        }
        (None, Some(url)) => Sender::Http(HttpSender::connect(url, &regions).await?),
        (None, None) => return Err(wrong_use("give --config or --url")),
    };
    let heads = sender.heads().await;

    let mut writer = JoinSet::new();
    let acks = list.map(|list| {
        let (acks, ids) = mpsc::channel(ACKS_QUEUE);
        writer.spawn(acks::write(list, ids));
        acks
    });
    let work = Arc::new(Work {
        sender,
        durability: args.durability,
        give_up_after: args.give_up_after,
        heads,
        acks,
        counts: Arc::new(Counts::default()),
        skip_bad: args.skip_bad,
        name: source.name().to_owned(),
        stop: CancellationToken::new(),
    });
    let (counts, stop) = (work.counts.clone(), work.stop.clone());
    let reading = Reading {
        region_field: args.region_field,
        map,
    };

    let began = Instant::now();
    let bar = Bar::new(source.bytes, source.bytes_read.clone(), counts.clone());
    let mut running = JoinSet::new();
    let lanes = Lanes::start(args.in_flight, &work, &mut running);
    let reader = Reader {
        source,
        reading,
        known,
        skip_bad: args.skip_bad,
        counts: counts.clone(),
        stop: stop.clone(),
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "standard input may block for ever, and unpacking keeps a core busy"
    )]
    let reader = tokio::task::spawn_blocking(move || reader.run(&lanes));
    // From here on the lanes alone hold it, so that the list of ids ends with the last of them.
    drop(work);

    let finished = finish(reader, running, writer, &stop, bar).await;
    let seconds = began.elapsed().as_secs_f64();
    let summary = summary(&counts, seconds, finished.is_ok());
    if output.is_json() {
        output.json(&summary)?;
    } else {
        print(&summary, output)?;
    }
    finished.map(|()| Outcome::Done)
}

/// Waits for the reader, the lanes and the list. The first thing that went wrong is the error.
async fn finish(
    mut reader: tokio::task::JoinHandle<anyhow::Result<()>>,
    mut lanes: JoinSet<anyhow::Result<()>>,
    mut writer: JoinSet<std::io::Result<()>>,
    stop: &CancellationToken,
    bar: Bar,
) -> anyhow::Result<()> {
    let mut first = Ok(());
    let mut note = |result: anyhow::Result<()>| {
        if first.is_ok() {
            first = result;
        }
    };
    let mut reading = true;
    let mut interrupted = false;
    let mut interrupts = signal(SignalKind::interrupt()).context("take over signals")?;
    let mut terminates = signal(SignalKind::terminate()).context("take over signals")?;
    let mut tick = tokio::time::interval(BAR_EVERY);
    loop {
        tokio::select! {
            read = &mut reader, if reading => {
                reading = false;
                note(read.context("the reader ended early").flatten());
            }
            lane = lanes.join_next() => match lane {
                Some(lane) => note(lane.context("a lane ended early").flatten()),
                None => break,
            },
            _ = interrupts.recv() => {
                stop.cancel();
                // The second time, what is in flight is not waited for either.
                if std::mem::replace(&mut interrupted, true) {
                    break;
                }
            }
            _ = terminates.recv() => {
                stop.cancel();
                interrupted = true;
            }
            Some(written) = writer.join_next() => note(list_written(written)),
            _ = tick.tick() => bar.draw(),
        }
    }
    // The lanes may end before the reader has said why it did. Once told to stop, it may be waiting
    // for standard input, and nothing it could say matters any more.
    if reading && !stop.is_cancelled() {
        note(
            (&mut reader)
                .await
                .context("the reader ended early")
                .flatten(),
        );
    }
    lanes.shutdown().await;
    while let Some(written) = writer.join_next().await {
        note(list_written(written));
    }
    bar.clear();
    if interrupted {
        note(Err(anyhow::anyhow!(
            "interrupted; start the same import again to go on, it adds nothing twice"
        )));
    }
    first
}

fn list_written(
    written: Result<std::io::Result<()>, tokio::task::JoinError>,
) -> anyhow::Result<()> {
    let written = written.context("the list of ids ended early")?;
    written.context("write the list given by --acks")
}

struct Reader {
    source: Source,
    reading: Reading,
    known: Acknowledged,
    skip_bad: bool,
    counts: Arc<Counts>,
    stop: CancellationToken,
}

impl Reader {
    /// Reads every line into its lane.
    fn run(mut self, lanes: &Lanes) -> anyhow::Result<()> {
        let mut text = Vec::new();
        while !self.stop.is_cancelled() {
            let Some(number) = self.source.next(&mut text)? else {
                break;
            };
            let line = match self.reading.parse(number, &text) {
                Ok(line) => line,
                Err(reason) => {
                    add(&self.counts.bad);
                    let place = format!("{}, line {number}", self.source.name());
                    if !self.skip_bad {
                        anyhow::bail!(
                            "{place}: {reason}; correct the line, or leave such lines out with --skip-bad (what stood before it is imported)"
                        );
                    }
                    complain(&format!("{place}: left out: {reason}"));
                    continue;
                }
            };
            add(&self.counts.read);
            if self.known.contains(line.event.id) {
                add(&self.counts.skipped);
            } else if !lanes.put(line) {
                break;
            }
        }
        Ok(())
    }
}

/// Says what was left out, on standard error.
fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "meridian: {message}");
}

fn summary(counts: &Counts, seconds: f64, complete: bool) -> Summary {
    let value = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let acknowledged = value(&counts.acknowledged);
    let there_before = (value(&counts.unknown) == 0).then(|| value(&counts.there_before));
    Summary {
        complete,
        read: value(&counts.read),
        acknowledged,
        new: there_before.map(|there_before| acknowledged - there_before),
        there_before,
        skipped_by_acks: value(&counts.skipped),
        bad: value(&counts.bad),
        retries: value(&counts.retries),
        seconds,
        events_per_second: acknowledged as f64 / seconds.max(0.001),
    }
}

fn print(summary: &Summary, output: Output) -> anyhow::Result<()> {
    let known = match (summary.new, summary.there_before) {
        (Some(new), Some(there)) => format!(" ({new} new, {there} already there)"),
        _ => String::new(),
    };
    output.line(&format!(
        "{} events acknowledged{known} in {:.1} s: {:.0} events/s.",
        summary.acknowledged, summary.seconds, summary.events_per_second
    ))?;
    if summary.skipped_by_acks > 0 {
        output.line(&format!(
            "Left out because an earlier import had them acknowledged: {}.",
            summary.skipped_by_acks
        ))?;
    }
    if summary.bad > 0 {
        output.line(&format!("Bad lines: {}.", summary.bad))?;
    }
    if summary.retries > 0 {
        output.line(&format!("Repeated attempts: {}.", summary.retries))?;
    }
    Ok(())
}

/// How far the import is, on a terminal only.
struct Bar {
    bar: ProgressBar,
    bytes_read: Arc<AtomicU64>,
    counts: Arc<Counts>,
    began: Instant,
}

impl Bar {
    fn new(bytes: Option<u64>, bytes_read: Arc<AtomicU64>, counts: Arc<Counts>) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        let template = match bytes {
            Some(_) => "{wide_bar} {percent}% {msg}",
            None => "{spinner} {bytes} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self {
            bar,
            bytes_read,
            counts,
            began: Instant::now(),
        }
    }

    fn draw(&self) {
        let acknowledged = self.counts.acknowledged.load(Ordering::Relaxed);
        let rate = acknowledged as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        self.bar
            .set_position(self.bytes_read.load(Ordering::Relaxed));
        self.bar
            .set_message(format!("{acknowledged} events, {rate:.0}/s"));
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for unsound in ["", "0", "-1s", "1d", "s", "99999999999999999h"] {
            assert!(duration(unsound).is_err(), "{unsound}");
        }
    }

    #[test]
    fn a_mapping_has_two_sides() {
        assert_eq!(mapping("EWR=a"), Ok(("EWR".to_owned(), "a".to_owned())));
        assert!(mapping("EWR").is_err());
        assert!(mapping("=a").is_err());
    }
}

//! Reading the whole log, event by event, beside reading its files with a checksum.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use meridian_event::crc32c;
use meridian_node::files;
use meridian_store::{LogOffset, RealDisk, Store, StoreOptions};
use tokio::time::Instant;

use super::{Events, Plan, Row, local, median, start, write};

/// How much is written before it is read.
const BYTES: usize = 48 << 20;
const CHUNK_BYTES: usize = 1 << 20;

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<(&'static str, Vec<Row>, Vec<String>)> {
    let mut rows = Vec::new();
    for (event_bytes, in_flight) in plan.cases() {
        let events = Arc::new(Events::new(event_bytes));
        // With one in flight every event waits for its own sync; less of it says as much.
        let count = (BYTES / event_bytes / if in_flight == 1 { 16 } else { 1 }) as u64;
        let dir = plan.dir.join(format!("read-{event_bytes}-{in_flight}"));
        let nodes = start(&dir, &["here"]).await?;
        let node = nodes.first().context("one region was started")?;
        local::ready(node).await?;
        write(node, &events, in_flight, 0..count, None).await?;
        let data = node.config().data.clone();
        node.shutdown().await;

        let disk = Arc::new(RealDisk::new(&data)?);
        let (store, _) = Store::open(disk, StoreOptions::default())?;
        let (mut ours, mut raw) = (Vec::new(), Vec::new());
        for _ in 0..plan.rounds {
            let (bytes, took) = scan(&store, count)?;
            ours.push(count as f64 / took.as_secs_f64());
            let took = checksum_files(&data.join("log"), bytes, event_bytes)?;
            raw.push(count as f64 / took.as_secs_f64());
        }
        store.close();
        let (ours_per_s, raw_per_s) = (median(ours), median(raw));
        rows.push(Row {
            event_bytes,
            in_flight,
            ours_per_s,
            raw_per_s,
            ratio: ours_per_s / raw_per_s,
            ours_p50_us: None,
            ours_p99_us: None,
            raw_p50_us: None,
            raw_p99_us: None,
        });
    }
    let note = "in flight: with how many writers the log was written, which decides how many \
                events share a block; raw: the same bytes of the same files, read in chunks of 1 MiB, a crc32c for each \
                event's length of them";
    Ok(("events/s", rows, vec![note.to_owned()]))
}

/// Reads everything and looks at every event. Returns how many bytes of log that was.
fn scan(store: &Store, expected: u64) -> anyhow::Result<(u64, Duration)> {
    let began = Instant::now();
    let (mut at, mut events, mut bytes, mut sum) = (LogOffset::default(), 0, 0, 0);
    loop {
        let page = store.scan(at, CHUNK_BYTES)?;
        for (_, block) in &page.blocks {
            bytes += block.bytes().len() as u64;
            let open = block.open()?;
            for event in open.events() {
                let event = event?;
                events += 1;
                sum += event.data.len() + event.stream.len();
            }
        }
        if page.at_end {
            break;
        }
        at = page.next;
    }
    anyhow::ensure!(
        events == expected && sum > 0,
        "{events} of {expected} events were read"
    );
    Ok((bytes, began.elapsed()))
}

/// Reads the first `bytes` of the segment files, with a checksum for every `event_bytes`.
fn checksum_files(
    folder: &std::path::Path,
    bytes: u64,
    event_bytes: usize,
) -> anyhow::Result<Duration> {
    use std::io::Read;
    let began = Instant::now();
    let mut left = bytes;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut sum = 0u64;
    for path in files::in_folder(folder)? {
        if path.extension().is_none_or(|extension| extension != "seg") {
            continue;
        }
        let mut file = files::open(&path)?;
        while left > 0 {
            let read = file.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            for event in chunk[..read].chunks(event_bytes) {
                sum += u64::from(crc32c(&[event]));
            }
            left = left.saturating_sub(read as u64);
        }
    }
    anyhow::ensure!(sum > 0, "the log's files are empty");
    Ok(began.elapsed())
}

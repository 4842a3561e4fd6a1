//! Durable appends beside one write and `fdatasync` per group.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use meridian_node::files;
use tokio::time::Instant;

use super::{Events, Plan, Row, histogram, local, median, micros, start, write};

/// The bare loop goes round in a file of this size, written once beforehand like our segments.
const RAW_FILE_BYTES: usize = 64 << 20;

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<(&'static str, Vec<Row>, Vec<String>)> {
    let nodes = start(&plan.dir, &["here"]).await?;
    let node = nodes.first().context("one region was started")?;
    local::ready(node).await?;
    let raw_file = plan.dir.join("raw");
    let mut number = 0;
    let mut rows = Vec::new();
    for (event_bytes, in_flight) in plan.cases() {
        let events = Arc::new(Events::new(event_bytes));
        let (mut ours, mut raw) = (Vec::new(), Vec::new());
        let (mut our_latencies, mut raw_latencies) = (histogram(), histogram());
        for _ in 0..plan.rounds {
            let group = event_bytes * in_flight;
            let (groups, took) = bare_loop(&raw_file, group, plan.span, &mut raw_latencies)?;
            raw.push(groups as f64 * in_flight as f64 / took.as_secs_f64());
            let numbers = number..u64::MAX;
            let (count, took, latencies) =
                write(node, &events, in_flight, numbers, Some(plan.span)).await?;
            // Writers that found the time over drew a number each.
            number += count + in_flight as u64;
            our_latencies.add(latencies).context("add up latencies")?;
            ours.push(count as f64 / took.as_secs_f64());
        }
        let (ours_per_s, raw_per_s) = (median(ours), median(raw));
        rows.push(Row {
            event_bytes,
            in_flight,
            ours_per_s,
            raw_per_s,
            ratio: ours_per_s / raw_per_s,
            ours_p50_us: Some(our_latencies.value_at_quantile(0.5)),
            ours_p99_us: Some(our_latencies.value_at_quantile(0.99)),
            raw_p50_us: Some(raw_latencies.value_at_quantile(0.5)),
            raw_p99_us: Some(raw_latencies.value_at_quantile(0.99)),
        });
    }
    node.shutdown().await;
    let note = "raw: one thread, one write and one fdatasync per group of as many events as are \
                in flight, into a file that was written before";
    Ok(("events/s", rows, vec![note.to_owned()]))
}

/// Writes and syncs groups of `group` bytes for `span`. Returns how many, and how long it took.
fn bare_loop(
    path: &Path,
    group: usize,
    span: Duration,
    latencies: &mut Histogram<u64>,
) -> anyhow::Result<(u64, Duration)> {
    let file = files::create(path).context("create the file of the bare loop")?;
    if file.metadata()?.len() < RAW_FILE_BYTES as u64 {
        file.write_all_at(&vec![0; RAW_FILE_BYTES], 0)?;
        file.sync_all()?;
    }
    let bytes = vec![7; group];
    let (mut groups, mut offset) = (0, 0);
    let began = Instant::now();
    while began.elapsed() < span {
        if offset + group > RAW_FILE_BYTES {
            offset = 0;
        }
        let sent = Instant::now();
        file.write_all_at(&bytes, offset as u64)?;
        file.sync_data()?;
        latencies.saturating_record(micros(sent.elapsed()));
        offset += group;
        groups += 1;
    }
    Ok((groups, began.elapsed()))
}

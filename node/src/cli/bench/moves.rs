//! What writers feel of streams that move between regions: all of them, back and forth, under load.
//!
//! Three regions in this process, over real QUIC, TLS and disk. Each takes appends to all streams, first
//! with every stream at rest, then while all of them are moved from region to region without a pause. An
//! append that is refused ends the measurement, and so does a revision that is missing or there twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use meridian_client::{Direction, StreamRead};
use meridian_event::StreamId;
use meridian_node::{Node, files};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{
    Events, Output, Plan, STREAMS, histogram, local, micros, start, table, thousands, write,
};

const REGIONS: [&str; 3] = ["first", "second", "third"];
const EVENT_BYTES: usize = 256;
/// How many appends each region keeps in flight.
const IN_FLIGHT: usize = 16;
/// Under load, no measurement is shorter: fewer events say nothing of the slowest in a hundred.
const SPAN_MIN: Duration = Duration::from_secs(10);
/// How long one move of all streams may take.
const MOVED_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize)]
struct Row {
    phase: &'static str,
    appends: u64,
    per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

pub(super) async fn run(plan: &Plan, markdown: bool, output: Output) -> anyhow::Result<()> {
    let dir = plan.dir.join("move");
    let nodes = start(&dir, &REGIONS).await?;
    for node in &nodes {
        local::ready(node).await?;
    }
    until_led(&nodes).await?;
    let streams: Result<Vec<_>, _> = (0..STREAMS)
        .map(|number| StreamId::new(&format!("bench-{number}")))
        .collect();
    let streams = streams?;
    let events = Arc::new(Events::new(EVENT_BYTES));
    let span = plan.span.max(SPAN_MIN);

    let still = load(&nodes, &events, 0, span).await?;
    let over = Arc::new(AtomicBool::new(false));
    let moving = tokio::spawn(move_around(
        nodes.clone(),
        streams.clone(),
        Arc::clone(&over),
    ));
    let moved = load(&nodes, &events, 1, span).await;
    over.store(true, Ordering::Relaxed);
    let moves = moving.await.context("the mover ended early")??;
    let moved = moved?;
    let written = still.len() + moved.len();
    let (held, turns) = check(&nodes, &streams).await?;
    ensure!(
        held == written,
        "{written} events were acknowledged, the streams hold {held}"
    );
    for node in &nodes {
        node.shutdown().await;
    }
    files::remove_folder(&dir)?;

    let rows = [("at rest", &still), ("moving", &moved)].map(|(phase, latencies)| {
        let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        Row {
            phase,
            appends: latencies.len(),
            per_s: latencies.len() as f64 / span.as_secs_f64(),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            max_ms: latencies.max() as f64 / 1e3,
        }
    });
    let move_ms = |quantile| moves.value_at_quantile(quantile) as f64 / 1e3;
    if output.is_json() {
        let moves = serde_json::json!({
            "streams": STREAMS, "times": moves.len(), "p50_ms": move_ms(0.5), "max_ms": move_ms(1.0),
        });
        output.json(&serde_json::json!({
            "unit": "ms", "rows": rows, "moves": moves, "refused": 0, "turns": turns,
        }))?;
        return Ok(());
    }
    let cells = rows.iter().map(|row| {
        vec![
            row.phase.to_owned(),
            row.appends.to_string(),
            thousands(row.per_s),
            format!("{:.1} ms", row.p50_ms),
            format!("{:.1} ms", row.p99_ms),
            format!("{:.1} ms", row.max_ms),
        ]
    });
    let header = ["streams", "appends", "appends/s", "p50", "p99", "slowest"];
    table(&header, cells.collect(), markdown, output)?;
    output.line(&format!(
        "all {STREAMS} streams were moved {} times, each time within {:.0} ms (half of them within {:.0} \
         ms); no append was refused, and every stream has each of its revisions once, in {turns} turns \
         of its homes together; p99 is {:.1} ms higher than at rest",
        moves.len(),
        move_ms(1.0),
        move_ms(0.5),
        rows[1].p99_ms - rows[0].p99_ms
    ))?;
    Ok(())
}

async fn until_led(nodes: &[Arc<Node>]) -> anyhow::Result<()> {
    let began = Instant::now();
    while nodes.iter().any(|node| {
        let control = node.status().control;
        control.leader.is_none() || control.decisions == 0
    }) {
        ensure!(
            began.elapsed() < MOVED_WITHIN,
            "the control plane has no leader after {MOVED_WITHIN:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

// Appends through all regions at once. The numbers of the events are those of `phase`.
async fn load(
    nodes: &[Arc<Node>],
    events: &Arc<Events>,
    phase: u64,
    span: Duration,
) -> anyhow::Result<Histogram<u64>> {
    let mut writers = JoinSet::new();
    for (index, node) in (0..).zip(nodes) {
        let (node, events) = (Arc::clone(node), Arc::clone(events));
        let first = (phase * nodes.len() as u64 + index) << 32;
        writers.spawn(async move {
            write(
                &node,
                &events,
                IN_FLIGHT,
                first..first + (1 << 32),
                Some(span),
            )
            .await
        });
    }
    let mut latencies = histogram();
    while let Some(written) = writers.join_next().await {
        let (_, _, of_node) = written.context("a writer ended early")??;
        latencies.add(of_node).context("add up latencies")?;
    }
    Ok(latencies)
}

// Moves all streams to one region after the other. How long each move took.
async fn move_around(
    nodes: Vec<Arc<Node>>,
    streams: Vec<StreamId>,
    over: Arc<AtomicBool>,
) -> anyhow::Result<Histogram<u64>> {
    let mut took = histogram();
    for round in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let to = REGIONS[round % REGIONS.len()];
        let by = &nodes[(round + 1) % nodes.len()];
        let began = Instant::now();
        let homes = by.move_homes(streams.clone(), to, MOVED_WITHIN).await?;
        ensure!(
            homes.iter().all(|home| home.moving_from.is_none()),
            "not all streams had moved within {MOVED_WITHIN:?}"
        );
        took.saturating_record(micros(began.elapsed()));
    }
    Ok(took)
}

// Reads every stream from its start: how many events there are, and in how many turns of homes.
async fn check(nodes: &[Arc<Node>], streams: &[StreamId]) -> anyhow::Result<(u64, u64)> {
    let Some(node) = nodes.first() else {
        bail!("three regions were made")
    };
    let began = Instant::now();
    while nodes.iter().any(|other| other.digest() != node.digest()) {
        ensure!(
            began.elapsed() < MOVED_WITHIN,
            "the regions do not agree after {MOVED_WITHIN:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (mut held, mut turns) = (0, 0);
    for stream in streams {
        let mut next = 0;
        let mut home = None;
        loop {
            let page = node.read_stream(&StreamRead {
                stream: stream.clone(),
                from: next,
                direction: Direction::Forwards,
                limit: 4096,
            })?;
            for event in &page.events {
                ensure!(
                    event.revision.0 == next,
                    "{stream} has revision {} where {next} belongs",
                    event.revision
                );
                next += 1;
                turns += u64::from(home != Some(event.dot.origin));
                home = Some(event.dot.origin);
            }
            if page.end {
                break;
            }
        }
        held += next;
    }
    Ok((held, turns))
}

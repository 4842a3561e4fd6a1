//! How fast a read model is built, beside the same SQL run bare on the same database.
//!
//! One region in this process, with flights in its log. Ours reads the one order from the log, runs the
//! handlers and commits rows with the checkpoint; the bare loop has the events in memory, and runs the
//! same statements in transactions of as many.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use meridian_client::{AppendRequest, Durability, Expected};
use meridian_event::{EventId, EventType, NewEvent, StreamId};
use meridian_node::Node;
use meridian_projection::{Definition, Doing, SinkKind};
use rusqlite::Connection;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::bare_postgres;
use super::{Output, Plan, local, median, start, table, thousands};
use crate::cli::demo::{Flight, flights};

/// How often the flights are written, each time with other ids.
pub(super) const CYCLES: u32 = 30;
const IN_FLIGHT: usize = 256;
/// How many workers build a read model.
const WORKERS: [u16; 2] = [1, 2];
/// How many events the bare loop puts into one transaction.
const BARE_BATCH: usize = 50_000;
const WITHIN: Duration = Duration::from_secs(300);
const HUNDRED_MILLION: f64 = 100e6;
const DEFINITION: &str = include_str!("../../../../projection/examples/carrier_delays.toml");
const IN_POSTGRES: &str =
    include_str!("../../../../projection/examples/carrier_delays_postgres.toml");

#[derive(Debug, Serialize)]
struct Row {
    database: &'static str,
    workers: u16,
    events: usize,
    ours_per_s: f64,
    bare_per_s: f64,
    ratio: f64,
    hundred_million_min: f64,
}

pub(super) async fn run(plan: &Plan, markdown: bool, output: Output) -> anyhow::Result<()> {
    let flights = flights()?;
    let definition = Definition::from_toml(DEFINITION)?;
    let nodes = start(&plan.dir, &["here"]).await?;
    let node = nodes.first().context("one region was started")?;
    local::ready(node).await?;
    write(node, &flights).await?;

    let events = flights.len() * CYCLES as usize;
    let rate = |took: Duration| events as f64 / took.as_secs_f64();
    let mut ours = WORKERS.map(|workers| (workers, Vec::new()));
    let mut bare = Vec::new();
    let mut ours_in_postgres = ours.clone();
    let mut bare_in_postgres = Vec::new();
    let mut version = 0;
    for round in 0..plan.rounds {
        let path = plan.dir.join(format!("bare-{round}.db"));
        bare.push(rate(bare_loop(&path, &definition, &flights)?));
        for (workers, measured) in &mut ours {
            version += 1;
            let mut next = definition.clone();
            next.version = version;
            next.workers.count = *workers;
            measured.push(rate(build(node, next, events as u64).await?));
        }
        if let Some(url) = &plan.postgres {
            let definition = Definition::from_toml(IN_POSTGRES)?;
            bare_in_postgres.push(rate(bare_postgres::run(url, &definition, &flights)?));
            for (workers, measured) in &mut ours_in_postgres {
                version += 1;
                let mut next = definition.clone();
                next.version = version;
                next.workers.count = *workers;
                next.sink = SinkKind::Postgres { url: url.clone() };
                measured.push(rate(build(node, next, events as u64).await?));
            }
        }
    }
    for node in &nodes {
        node.shutdown().await;
    }
    let row = |database, workers, measured, bare_per_s| {
        let ours_per_s = median(measured);
        Row {
            database,
            workers,
            events,
            ours_per_s,
            bare_per_s,
            ratio: ours_per_s / bare_per_s,
            hundred_million_min: HUNDRED_MILLION / ours_per_s / 60.0,
        }
    };
    let bare_per_s = median(bare);
    let mut rows: Vec<_> = ours
        .into_iter()
        .map(|(workers, measured)| row("SQLite", workers, measured, bare_per_s))
        .collect();
    if plan.postgres.is_some() {
        let bare_per_s = median(bare_in_postgres);
        let ours = ours_in_postgres.into_iter();
        rows.extend(ours.map(|(workers, all)| row("PostgreSQL", workers, all, bare_per_s)));
    }
    if output.is_json() {
        output.json(&serde_json::json!({ "unit": "events/s", "rows": rows }))?;
        return Ok(());
    }
    let cells = rows.iter().map(|row| {
        vec![
            row.database.to_owned(),
            row.workers.to_string(),
            thousands(row.events as f64),
            thousands(row.ours_per_s),
            thousands(row.bare_per_s),
            format!("{:.2}", row.ratio),
            format!("{:.1} min", row.hundred_million_min),
        ]
    });
    let header = [
        "database",
        "workers",
        "events",
        "ours, events/s",
        "bare, events/s",
        "ours/bare",
        "100 M events",
    ];
    table(&header, cells.collect(), markdown, output)?;
    output.line(
        "bare: the same statements on the same database, with the events in memory; 100 M events: \
         extrapolated from ours",
    )?;
    Ok(())
}

/// Writes the flights, each aircraft's of a cycle as one batch.
async fn write(node: &Arc<Node>, flights: &[Flight]) -> anyhow::Result<()> {
    let mut streams: BTreeMap<&str, Vec<&Flight>> = BTreeMap::new();
    for flight in flights {
        streams.entry(&flight.stream).or_default().push(flight);
    }
    let mut writers: JoinSet<anyhow::Result<()>> = JoinSet::new();
    for cycle in 0..CYCLES {
        for (stream, flights) in &streams {
            while writers.len() >= IN_FLIGHT {
                writers.join_next().await.context("a writer is there")???;
            }
            let events = flights.iter().enumerate().map(|(number, flight)| {
                let name = format!("{cycle} {stream} {number}");
                let hash = blake3::hash(name.as_bytes());
                let id = hash.as_bytes().first_chunk().copied().unwrap_or_default();
                Ok(NewEvent {
                    id: EventId::from_random(id),
                    event_type: EventType::new(&flight.event_type)?,
                    data: flight.data.get().as_bytes().to_vec().into(),
                    metadata: bytes::Bytes::new(),
                })
            });
            let request = AppendRequest {
                stream: StreamId::new(stream)?,
                expected: Expected::Any,
                durability: Durability::Region,
                events: events.collect::<anyhow::Result<_>>()?,
            };
            let node = Arc::clone(node);
            writers.spawn(async move {
                node.append(request).await?;
                Ok(())
            });
        }
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(())
}

/// Builds the read model of a new version. Returns how long that took.
async fn build(node: &Node, definition: Definition, events: u64) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let name = definition.name.clone();
    let version = definition.version;
    node.projections().define_here(version.into(), definition);
    loop {
        let projection = node.projections().get(&name)?;
        let model = projection.candidate.or(projection.active);
        let model = model.context("a read model is being built")?;
        let is_whole = model.status.checkpoint.applied == events;
        if is_whole && model.version == version && model.status.doing == Doing::Following {
            return Ok(began.elapsed());
        }
        if let Some(error) = model.status.error {
            bail!("the read model is held up: {error}");
        }
        if began.elapsed() > WITHIN {
            bail!("the read model was not built within {WITHIN:?}");
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Runs the same statements for the same events in a database of its own.
fn bare_loop(
    path: &std::path::Path,
    definition: &Definition,
    flights: &[Flight],
) -> anyhow::Result<Duration> {
    let database = Connection::open(path)?;
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.pragma_update(None, "synchronous", "NORMAL")?;
    database.pragma_update(None, "cache_size", -65_536)?;
    database.execute_batch(&definition.schema)?;
    let mut handlers = BTreeMap::new();
    for (event_type, sql) in &definition.on {
        handlers.insert(event_type.as_str(), database.prepare(sql)?);
    }
    let began = Instant::now();
    let mut in_batch = 0;
    database.execute_batch("BEGIN IMMEDIATE")?;
    for _ in 0..CYCLES {
        for flight in flights {
            let handler = handlers.get_mut(flight.event_type.as_str());
            handler
                .context("every flight has a handler")?
                .execute(&[(":data", flight.data.get())])?;
            in_batch += 1;
            if in_batch == BARE_BATCH {
                database.execute_batch("COMMIT; BEGIN IMMEDIATE")?;
                in_batch = 0;
            }
        }
    }
    database.execute_batch("COMMIT")?;
    Ok(began.elapsed())
}

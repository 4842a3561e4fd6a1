//! Streams that every region writes: operations of each type beside plain appends of the same bytes, reading a state
//! that is in memory, and what an `or-set` takes that much was added to and removed from.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use meridian_client::StateTier;
use meridian_client::{AppendRequest, Durability, Expected};
use meridian_conflict::{CategoryPolicy, HomeRule, Kind, Mode};
use meridian_event::{EventId, EventType, NewEvent, StreamId};
use meridian_node::config::NodeConfig;
use meridian_node::seams::{Random, Seams, SystemRandom};
use meridian_node::{Node, files};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Output, Plan, STREAMS, histogram, local, median, micros, table, thousands};

/// How many operations are in flight.
const IN_FLIGHT: u64 = 64;
/// How often a state is read.
const READS: u64 = 20_000;
/// How many pairs of an addition and a removal, over how many elements, in batches of how many events.
const PAIRS: u64 = 1_000_000;
const ELEMENTS: u64 = 1_000;
const BATCH: u64 = 200;
const KINDS: [Kind; 9] = [
    Kind::GCounter,
    Kind::PnCounter,
    Kind::BoundedCounter,
    Kind::GSet,
    Kind::OrSet,
    Kind::MvRegister,
    Kind::OrMap,
    Kind::Document,
    Kind::Fields,
];
/// The category whose streams have a home.
const PLAIN: &str = "plain";

#[derive(Debug, Serialize)]
struct Row {
    kind: &'static str,
    operations_per_s: f64,
    plain_per_s: f64,
    ratio: f64,
    read_p50_us: u64,
    read_p99_us: u64,
}

#[derive(Debug, Serialize)]
struct Long {
    operations: u64,
    elements: usize,
    state_bytes: usize,
    file_bytes: u64,
    first_read_ms: f64,
    first_read_without_file_ms: f64,
}

pub(super) async fn run(plan: &Plan, markdown: bool, output: Output) -> anyhow::Result<()> {
    let (rows, long) = (types(plan).await?, long_set(plan).await?);
    if output.is_json() {
        return Ok(output.json(&json!({ "types": rows, "or_set": long }))?);
    }
    let header = [
        "type",
        "operations/s",
        "plain appends/s",
        "ratio",
        "state read p50",
        "p99",
    ];
    let cells = rows.iter().map(|row| {
        vec![
            row.kind.to_owned(),
            thousands(row.operations_per_s),
            thousands(row.plain_per_s),
            format!("{:.2}", row.ratio),
            format!("{} µs", row.read_p50_us),
            format!("{} µs", row.read_p99_us),
        ]
    });
    table(&header, cells.collect(), markdown, output)?;
    output.line(&format!(
        "{IN_FLIGHT} in flight over {STREAMS} streams; plain: the same bytes to streams with a home; read: {READS} \
         times, of one that was just written"
    ))?;
    output.line(&format!(
        "or-set after {} additions and as many removals of {ELEMENTS} elements: {} elements, {} bytes in memory, {} \
         in its file; first read after a start {:.1} ms, without the file {:.0} ms",
        thousands(long.operations as f64 / 2.0),
        long.elements,
        thousands(long.state_bytes as f64),
        thousands(long.file_bytes as f64),
        long.first_read_ms,
        long.first_read_without_file_ms,
    ))?;
    Ok(())
}

async fn node_in(dir: &Path) -> anyhow::Result<NodeConfig> {
    let mut configs = local::make(dir, &["here"]).await?;
    let mut config = configs.pop().context("one region was made")?;
    for kind in KINDS {
        let mode = match kind {
            Kind::Document | Kind::Fields => Mode::Lww,
            _ => Mode::Crdt,
        };
        let policy = CategoryPolicy {
            mode,
            home: HomeRule::Hash,
        };
        config.categories.insert(category(kind), policy);
        config.kinds.insert(category(kind), kind);
    }
    Ok(config)
}

fn category(kind: Kind) -> String {
    kind.name().replace('-', "")
}

async fn begin(config: &NodeConfig) -> anyhow::Result<Arc<Node>> {
    let seams = Seams::host(&config.data).context("open a data folder")?;
    let node = Node::start(config.clone(), seams).await?;
    local::ready(&node).await?;
    Ok(node)
}

// What each type is asked to do: never anything that could be refused.
fn operation(kind: Kind, number: u64) -> Value {
    let element = number % 97;
    match kind {
        Kind::GCounter | Kind::PnCounter => json!({"op": "add", "by": 3}),
        Kind::BoundedCounter => json!({"op": "grant", "by": 3}),
        Kind::GSet | Kind::OrSet => json!({"op": "add", "value": format!("element-{element}")}),
        Kind::MvRegister => json!({"op": "set", "value": number}),
        Kind::OrMap => {
            json!({"op": "update", "key": format!("k{}", element % 10), "type": "pn-counter", "change": {"op": "add"}})
        }
        Kind::Document => json!({"price": number, "name": "a thing"}),
        Kind::Fields => json!({ format!("f{}", element % 10): number }),
    }
}

fn event(data: &Value, number: u64, salt: [u8; 8]) -> NewEvent {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    id[8..].copy_from_slice(&salt);
    NewEvent {
        id: EventId::from_random(*blake3::hash(&id).as_bytes().first_chunk().unwrap_or(&id)),
        event_type: EventType::new("Benched").expect("a short name"),
        data: Bytes::from(data.to_string()),
        metadata: Bytes::new(),
    }
}

fn salt() -> [u8; 8] {
    let mut salt = [0; 8];
    SystemRandom.fill(&mut salt);
    salt
}

async fn types(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let dir = plan.dir.join("merge");
    let config = node_in(&dir).await?;
    let node = begin(&config).await?;
    let (mut ours, mut plain): (BTreeMap<usize, Vec<f64>>, BTreeMap<usize, Vec<f64>>) =
        Default::default();
    for _ in 0..plan.rounds {
        for (index, kind) in KINDS.into_iter().enumerate() {
            let category = category(kind);
            let per_s = load(&node, PLAIN, kind, plan.span).await?;
            plain.entry(index).or_default().push(per_s);
            let per_s = load(&node, &category, kind, plan.span).await?;
            ours.entry(index).or_default().push(per_s);
        }
    }
    let mut rows = Vec::new();
    for (index, kind) in KINDS.into_iter().enumerate() {
        let stream = StreamId::new(&format!("{}-0", category(kind)))?;
        let mut latencies = histogram();
        for _ in 0..READS {
            let asked = Instant::now();
            node.read_state(&stream, StateTier::Live).await?;
            latencies.saturating_record(micros(asked.elapsed()));
        }
        let of = |all: &BTreeMap<usize, Vec<f64>>| median(all[&index].clone());
        rows.push(Row {
            kind: kind.name(),
            operations_per_s: of(&ours),
            plain_per_s: of(&plain),
            ratio: of(&ours) / of(&plain),
            read_p50_us: latencies.value_at_quantile(0.5),
            read_p99_us: latencies.value_at_quantile(0.99),
        });
    }
    node.shutdown().await;
    files::remove_folder(&dir)?;
    Ok(rows)
}

// Appends operations of `kind` to streams of `category`; returns how many a second.
async fn load(node: &Arc<Node>, category: &str, kind: Kind, span: Duration) -> anyhow::Result<f64> {
    let next = Arc::new(AtomicU64::new(0));
    let (salt, began) = (salt(), Instant::now());
    let mut writers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (node, next, category) = (Arc::clone(node), Arc::clone(&next), category.to_owned());
        writers.spawn(async move {
            let mut count = 0_u64;
            while began.elapsed() < span {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let stream = format!("{category}-{}", number % STREAMS as u64);
                let request = AppendRequest {
                    stream: StreamId::new(&stream)?,
                    expected: Expected::Any,
                    durability: Durability::Region,
                    events: vec![event(&operation(kind, number), number, salt)],
                };
                node.append(request).await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut count = 0;
    while let Some(writer) = writers.join_next().await {
        count += writer.context("a writer ended early")??;
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

async fn long_set(plan: &Plan) -> anyhow::Result<Long> {
    let dir = plan.dir.join("merge-long");
    let config = node_in(&dir).await?;
    let node = begin(&config).await?;
    let stream = StreamId::new(&format!("{}-long", category(Kind::OrSet)))?;
    let salt = salt();
    let mut number = 0;
    while number < 2 * PAIRS {
        let events = (number..number + BATCH).map(|number| {
            let op = if number % 2 == 0 { "add" } else { "remove" };
            let element = (number / 2) % ELEMENTS;
            event(&json!({"op": op, "value": element}), number, salt)
        });
        let request = AppendRequest {
            stream: stream.clone(),
            expected: Expected::Any,
            durability: Durability::Region,
            events: events.collect(),
        };
        node.append(request).await?;
        number += BATCH;
    }
    let report = node.read_state(&stream, StateTier::Live).await?;
    // Its last snapshot comes once the last operations are final.
    sleep(Duration::from_secs(5)).await;
    node.shutdown().await;
    drop(node);
    let states = config.data.join("states");
    let mut file_bytes = 0;
    for folder in files::in_folder(&states)? {
        for file in files::in_folder(&folder)? {
            file_bytes += files::open(&file)?.metadata()?.len();
        }
    }
    let first_read_ms = first_read(&config, &stream, &report.digest).await?;
    files::remove_folder(&states)?;
    let first_read_without_file_ms = first_read(&config, &stream, &report.digest).await?;
    files::remove_folder(&dir)?;
    Ok(Long {
        operations: number,
        elements: report.value.as_array().map_or(0, Vec::len),
        state_bytes: report.bytes,
        file_bytes,
        first_read_ms,
        first_read_without_file_ms,
    })
}

async fn first_read(
    config: &NodeConfig,
    stream: &StreamId,
    digest: &[u8; 32],
) -> anyhow::Result<f64> {
    let node = begin(config).await?;
    let asked = Instant::now();
    let report = node.read_state(stream, StateTier::Live).await?;
    let took = asked.elapsed();
    ensure!(
        report.digest == *digest,
        "the state is another one after a start"
    );
    node.shutdown().await;
    Ok(took.as_secs_f64() * 1e3)
}

//! How long an event that one region acknowledged takes to be settled in another.
//!
//! Three regions in this process, over real QUIC, TLS and disk, all with the same wall clock. The
//! first is home to every stream; the second reads its `stable` and `final` feeds as a client does,
//! waiting for more. Idle, a region promises with its heartbeats only; under load every block does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use meridian_client::{Durability, EventFilter, SettledRead, SettledTier};
use meridian_clock::{Dot, OrderKey, RegionId};
use meridian_conflict::{CategoryPolicy, HomeRule};
use meridian_node::seams::Seams;
use meridian_node::{Node, files};
use serde::Serialize;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{Events, Output, Plan, histogram, local, micros, table};

/// The loads that are measured, in events per second.
const LOADS: [u64; 2] = [10, 2000];
const EVENT_BYTES: usize = 256;
/// Under load, no measurement is shorter: fewer events say nothing of the slowest in a hundred.
const SPAN_MIN: Duration = Duration::from_secs(20);
const WITHIN: Duration = Duration::from_secs(60);

/// When each event was acknowledged.
type Acknowledged = Arc<Mutex<BTreeMap<Dot, Instant>>>;
/// When each event was seen.
type Seen = BTreeMap<Dot, Instant>;

#[derive(Debug, Serialize)]
struct Row {
    tier: &'static str,
    events_per_s: u64,
    events: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

pub(super) async fn run(plan: &Plan, markdown: bool, output: Output) -> anyhow::Result<()> {
    let dir = plan.dir.join("settle");
    let nodes = start(&dir).await?;
    let [first, second, _] = &nodes[..] else {
        bail!("three regions were made")
    };
    let events = Arc::new(Events::new(EVENT_BYTES));
    let mut rows = Vec::new();
    let mut number = 0;
    for load in LOADS {
        let feeds = [SettledTier::Stable, SettledTier::Final]
            .map(|tier| Feed::from_now(Arc::clone(second), tier));
        let acknowledged = Acknowledged::default();
        let span = plan.span.max(SPAN_MIN);
        let count = pace(first, &events, load, span, &mut number, &acknowledged).await?;
        for (feed, tier) in feeds.into_iter().zip(["stable", "final"]) {
            let seen = feed.until(count).await?;
            let lags = lags(&acknowledged, &seen)?;
            let at = |quantile| lags.value_at_quantile(quantile) as f64 / 1e3;
            rows.push(Row {
                tier,
                events_per_s: load,
                events: lags.len(),
                p50_ms: at(0.5),
                p99_ms: at(0.99),
                max_ms: lags.max() as f64 / 1e3,
            });
        }
    }
    for node in &nodes {
        node.shutdown().await;
    }
    files::remove_folder(&dir)?;
    if output.is_json() {
        output.json(&serde_json::json!({ "unit": "ms", "rows": rows }))?;
        return Ok(());
    }
    let cells = rows.iter().map(|row| {
        vec![
            row.tier.to_owned(),
            format!("{} events/s", row.events_per_s),
            row.events.to_string(),
            format!("{:.1} ms", row.p50_ms),
            format!("{:.1} ms", row.p99_ms),
            format!("{:.1} ms", row.max_ms),
        ]
    });
    let header = ["tier", "load", "events", "p50", "p99", "slowest"];
    table(&header, cells.collect(), markdown, output)?;
    output.line(
        "from the acknowledgement in one region until the feed of another gave the event out; \
         heartbeats are 50 ms apart",
    )?;
    Ok(())
}

async fn start(dir: &std::path::Path) -> anyhow::Result<Vec<Arc<Node>>> {
    let mut nodes = Vec::new();
    for mut config in local::make(dir, &["first", "second", "third"]).await? {
        let fixed = CategoryPolicy {
            home: HomeRule::Fixed(RegionId(0)),
            ..CategoryPolicy::default()
        };
        config.categories.insert("bench".to_owned(), fixed);
        let seams = Seams::host(&config.data).context("open a data folder")?;
        nodes.push(Node::start(config, seams).await?);
    }
    for node in &nodes {
        local::ready(node).await?;
    }
    // Links are young: what is measured is a federation that is at rest.
    let began = Instant::now();
    while nodes.iter().any(|node| {
        node.status().watermarks.final_lag_ms > 1000 || node.status().links.len() + 1 != nodes.len()
    }) {
        if began.elapsed() > WITHIN {
            bail!("the order was not settled within {WITHIN:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(nodes)
}

/// Appends at a steady pace and notes when each event was acknowledged.
async fn pace(
    node: &Arc<Node>,
    events: &Arc<Events>,
    per_s: u64,
    span: Duration,
    number: &mut u64,
    acknowledged: &Acknowledged,
) -> anyhow::Result<usize> {
    // A time that no heartbeat is a multiple of, or idle events would all be at the same place
    // between two of them.
    let every = Duration::from_micros(1_000_000 / per_s.min(1000) + 37);
    let each = per_s.div_ceil(1000);
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let began = Instant::now();
    let mut writers: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let mut count = 0;
    while began.elapsed() < span {
        ticks.tick().await;
        for _ in 0..each {
            let request = events.request(*number, Durability::Region);
            *number += 1;
            count += 1;
            let (node, acknowledged) = (Arc::clone(node), Arc::clone(acknowledged));
            writers.spawn(async move {
                let appended = node.append(request).await?;
                let now = Instant::now();
                let mut known = acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
                known.extend(appended.dots.iter().map(|dot| (*dot, now)));
                Ok(())
            });
        }
        while let Some(written) = writers.try_join_next() {
            written.context("a writer ended early")??;
        }
    }
    while let Some(written) = writers.join_next().await {
        written.context("a writer ended early")??;
    }
    Ok(count)
}

/// A reader of one tier.
struct Feed {
    reader: JoinHandle<anyhow::Result<()>>,
    seen: Arc<Mutex<Seen>>,
}

impl Feed {
    /// Reads what is settled from now on.
    fn from_now(node: Arc<Node>, tier: SettledTier) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let known = Arc::clone(&seen);
        let mut after = OrderKey {
            timestamp: node.watermark(tier),
            ..OrderKey::ZERO
        };
        let reader = tokio::spawn(async move {
            loop {
                let read = SettledRead {
                    tier,
                    after,
                    filter: EventFilter::default(),
                    limit: 1000,
                    wait_ms: 1000,
                };
                let page = node.read_settled(&read).await?;
                let now = Instant::now();
                after = page.cursor;
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                known.extend(page.events.iter().map(|event| (event.dot, now)));
            }
        });
        Self { reader, seen }
    }

    /// Waits until `count` events were seen.
    async fn until(self, count: usize) -> anyhow::Result<Seen> {
        let enough = async {
            while self.known().len() < count && !self.reader.is_finished() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = timeout(WITHIN, enough).await;
        if self.reader.is_finished() {
            self.reader.await.context("a reader ended early")??;
            bail!("a reader ended early");
        }
        self.reader.abort();
        waited.with_context(|| format!("not all events were settled within {WITHIN:?}"))?;
        let seen = self.known().clone();
        Ok(seen)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lags(acknowledged: &Acknowledged, seen: &Seen) -> anyhow::Result<Histogram<u64>> {
    let acknowledged = acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
    let mut lags = histogram();
    for (dot, acknowledged) in acknowledged.iter() {
        let seen = seen
            .get(dot)
            .with_context(|| format!("event {dot} was not settled"))?;
        lags.saturating_record(micros(seen.saturating_duration_since(*acknowledged)));
    }
    Ok(lags)
}

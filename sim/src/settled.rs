//! What readers of the one order saw in each region, while it happened.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_client::{EventFilter, SettledRead, SettledTier};
use meridian_clock::{LogId, OrderKey, Position, Timestamp};
use meridian_event::EventId;
use meridian_node::Node;
use serde::Serialize;

use crate::history::{Call, Outcome};
use crate::world::generation;

/// How many events are read at once; a reader that is behind catches up over several looks.
const PAGE_EVENTS: u32 = 500;

/// One tier as it was read in one region, from the beginning on, across restarts.
#[derive(Clone, Debug, Default)]
pub struct Feed {
    /// Where the reader stands.
    pub cursor: OrderKey,
    /// What it was given.
    pub events: Vec<(OrderKey, EventId)>,
    /// When it was given each, in true time since the start.
    pub seen_at: Vec<Duration>,
}

/// How long events took from their acknowledgement until they could be read in a tier, over all
/// events and regions, in virtual milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// Half of them took no longer.
    pub p50_ms: u64,
    /// 99 of a hundred took no longer.
    pub p99_ms: u64,
}

/// One region's readers and what its node said of itself.
#[derive(Clone, Debug, Default)]
struct Region {
    stable: Feed,
    finals: Feed,
    // In this life of the node.
    marks: Option<Marks>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Marks {
    stable: Vec<Timestamp>,
    finals: Vec<Timestamp>,
}

/// For each log, generation and position, the highest timestamp that was believed to be complete with it.
pub type Believed = BTreeMap<(LogId, usize), BTreeMap<Position, Timestamp>>;

/// What was seen of the settled order in all regions.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    regions: BTreeMap<usize, Region>,
    /// What others believed of a log, and what its own region's readers were shown by.
    promised: Believed,
    /// What its own region believed of a log. Lost with its disk, unless somebody has heard it.
    own: Believed,
    broken: Vec<String>,
}

impl Settled {
    /// Looks at a running node: reads on, and takes note of its promises and watermarks.
    pub fn look(&mut self, index: usize, name: &str, node: &Node, at: Duration) {
        let region = self.regions.entry(index).or_default();
        // Promises first: what is believed now must bear out whatever comes.
        let promises = node.promises();
        let marks = node.marks().borrow().clone();
        let marks = Marks {
            stable: marks.stable.clone(),
            finals: marks.finals.clone(),
        };
        for (log, promise) in promises {
            // What is promised of a generation that a fence has ended says nothing of the next one.
            let generation = generation(node.store().head(log).epoch);
            let believe = |believed: &mut Believed, through: Timestamp| {
                let complete = believed.entry((log, generation)).or_default();
                let before = complete.entry(promise.position).or_default();
                *before = through.max(*before);
            };
            if log.origin == node.config().region {
                believe(&mut self.own, promise.timestamp);
                // A watermark is the lowest of all promises.
                let stable = marks.stable.get(usize::from(log.partition.0));
                let shown = stable.copied().unwrap_or_default();
                believe(&mut self.promised, promise.timestamp.min(shown));
            } else {
                believe(&mut self.promised, promise.timestamp);
            }
        }
        for (stable, finals) in marks.stable.iter().zip(&marks.finals) {
            if finals > stable {
                self.broken.push(format!(
                    "{name} at {at:?}: final {finals} is ahead of stable {stable}"
                ));
            }
        }
        if let Some(before) = &region.marks {
            let earlier = before.stable.iter().chain(&before.finals);
            let later = marks.stable.iter().chain(&marks.finals);
            if let Some((earlier, later)) = earlier.zip(later).find(|(a, b)| a > b) {
                self.broken.push(format!(
                    "{name} at {at:?}: a watermark went back from {earlier} to {later}"
                ));
            }
        }
        region.marks = Some(marks);
        for tier in [SettledTier::Stable, SettledTier::Final] {
            let feed = match tier {
                SettledTier::Stable => &mut region.stable,
                SettledTier::Final => &mut region.finals,
            };
            let read = SettledRead {
                tier,
                after: feed.cursor,
                filter: EventFilter::default(),
                limit: PAGE_EVENTS,
                wait_ms: 0,
            };
            // A log that is damaged, or a failing disk, is read again at the next look.
            let Ok(page) = node.read_settled_now(&read) else {
                continue;
            };
            feed.cursor = page.cursor;
            for event in &page.events {
                let key = OrderKey::new(event.timestamp, event.dot);
                feed.events.push((key, event.id));
                feed.seen_at.push(at);
            }
        }
    }

    /// The node of a region ended; the next one may know less at first.
    pub fn ended(&mut self, index: usize) {
        self.regions.entry(index).or_default().marks = None;
    }

    /// A region lost its disk. What was settled there only is gone with it, so its reader of `stable`
    /// begins anew; what was final everywhere must not change.
    pub fn lost(&mut self, index: usize) {
        self.regions.entry(index).or_default().stable = Feed::default();
    }

    /// All regions lost their disks at once, and with them what was settled anywhere.
    pub fn all_lost(&mut self) {
        *self = Self {
            broken: std::mem::take(&mut self.broken),
            ..Self::default()
        };
    }

    /// A region stranded what a fence had cut off. What it showed as stable while it knew of nothing does
    /// not count; what was final does, like everywhere.
    pub fn stranded(&mut self, index: usize) {
        let region = self.regions.entry(index).or_default();
        region.stable = region.finals.clone();
    }

    /// What was read in each region of one tier, by index.
    pub fn feeds(&self, tier: SettledTier) -> impl Iterator<Item = (usize, &Feed)> {
        self.regions.iter().map(move |(index, region)| match tier {
            SettledTier::Stable => (*index, &region.stable),
            SettledTier::Final => (*index, &region.finals),
        })
    }

    /// How long what `calls` wrote took until it could be read in `tier`.
    pub fn lag(&self, tier: SettledTier, calls: &[Call]) -> Lag {
        let mut answered = BTreeMap::new();
        for call in calls {
            if let (Outcome::Written(_), Some(returned)) = (&call.outcome, call.returned) {
                answered.extend(call.ids.iter().map(|id| (*id, returned)));
            }
        }
        let mut lags = Vec::new();
        for (_, feed) in self.feeds(tier) {
            for ((_, id), seen_at) in feed.events.iter().zip(&feed.seen_at) {
                if let Some(returned) = answered.get(id) {
                    let lag = seen_at.saturating_sub(*returned).as_millis();
                    lags.push(u64::try_from(lag).unwrap_or(u64::MAX));
                }
            }
        }
        lags.sort_unstable();
        let at = |percent: usize| lags.get(lags.len() * percent / 100).copied();
        Lag {
            p50_ms: at(50).unwrap_or_default(),
            p99_ms: at(99).unwrap_or_default(),
        }
    }

    /// What some node took for complete in one generation of a log. What a region believed of its own log and nobody had heard does
    /// not count where that was `lost` with its disk, unless its readers were shown the order by it.
    pub fn promised(
        &self,
        log: LogId,
        generation: usize,
        lost: bool,
    ) -> BTreeMap<Position, Timestamp> {
        let key = (log, generation);
        let mut promised = self.promised.get(&key).cloned().unwrap_or_default();
        let own = self.own.get(&key).filter(|_| !lost);
        for (position, timestamp) in own.into_iter().flatten() {
            let through = promised.entry(*position).or_default();
            *through = (*through).max(*timestamp);
        }
        promised
    }

    /// What was seen of watermarks that must never be.
    pub fn broken(&self) -> &[String] {
        &self.broken
    }
}

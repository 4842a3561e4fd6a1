//! What merged streams came to in each region, while it happened and in the end.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use meridian_client::{SettledTier, StateTier};
use meridian_clock::Timestamp;
use meridian_event::StreamId;
use meridian_node::{Node, StateReport};

/// How often a region's states are looked at, one after the other.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// A state is folded in so many pages at most.
const PAGES_MAX: usize = 10_000;

/// What one region showed of a stream.
#[derive(Clone, Debug)]
pub struct StateRead {
    /// The region, by its index.
    pub region: usize,
    /// And by its name.
    pub name: String,
    /// The stream.
    pub stream: StreamId,
    /// When, since the start.
    pub at: Duration,
    /// What is stamped no later counts; all that is held, if there is no limit. A region that has just started may not
    /// know how far the order is settled, and open a snapshot of what was final before: then it is the last event that
    /// this has, as long as it was settled anywhere.
    pub until: Option<Timestamp>,
    /// What it showed, or why it showed nothing.
    pub shown: Result<StateReport, String>,
}

/// The states that were read in a run.
#[derive(Clone, Debug, Default)]
pub struct States {
    reads: Vec<StateRead>,
    turn: usize,
    last: Duration,
    // Up to where any region has ever said that the order is settled.
    settled: Timestamp,
}

impl States {
    /// Reads the settled state of one of `streams` in each of the running `nodes`, now and then.
    pub fn look(&mut self, nodes: &[(usize, String, &Node)], streams: &[StreamId], at: Duration) {
        for (_, _, node) in nodes {
            self.settled = self.settled.max(node.watermark(SettledTier::Stable));
        }
        if streams.is_empty() || at < self.last + LOOK_EVERY {
            return;
        }
        self.last = at;
        self.turn += 1;
        let stream = &streams[self.turn % streams.len()];
        for (region, name, node) in nodes {
            let mut read = read(*region, name, node, stream, StateTier::Stable, at);
            if let (Some(until), Ok(shown)) = (&mut read.until, &read.shown) {
                *until = (*until).max(shown.order_key.timestamp.min(self.settled));
            }
            // Damage, or a read that went wrong, is looked at again another time.
            self.reads.extend(read.shown.is_ok().then_some(read));
        }
    }

    /// What a region showed does not count any more: it lost its disk, or stranded what a fence had cut off.
    pub fn forget(&mut self, region: usize) {
        self.reads.retain(|read| read.region != region);
    }

    /// Nothing that was shown counts any more: all regions lost their disks at once.
    pub fn forget_all(&mut self) {
        self.reads.clear();
        self.settled = Timestamp::ZERO;
    }

    /// Reads all of `streams` in a node of a region where all is well, in both tiers.
    pub fn end(&mut self, node: (usize, &str, &Node), streams: &[StreamId], at: Duration) {
        let (region, name, node) = node;
        for stream in streams {
            for tier in [StateTier::Live, StateTier::Stable] {
                self.reads.push(read(region, name, node, stream, tier, at));
            }
        }
    }

    /// All that was read.
    pub fn into_reads(self) -> Vec<StateRead> {
        self.reads
    }
}

/// What `stream` comes to in `node` now; none while it cannot be read.
pub fn live(node: &Node, stream: &StreamId) -> Option<StateReport> {
    let read = read(0, "", node, stream, StateTier::Live, Duration::ZERO);
    read.shown.ok()
}

fn read(
    region: usize,
    name: &str,
    node: &Node,
    stream: &StreamId,
    tier: StateTier,
    at: Duration,
) -> StateRead {
    let until = (tier == StateTier::Stable).then(|| node.watermark(SettledTier::Stable));
    // The one who watches has no runtime, and needs none: with nothing under way there is nothing to wait for.
    let mut reading = pin!(node.read_state(stream, tier));
    let mut context = Context::from_waker(Waker::noop());
    let polls = (0..PAGES_MAX).map(|_| reading.as_mut().poll(&mut context));
    let shown = polls
        .filter_map(|poll| match poll {
            Poll::Ready(shown) => Some(shown.map_err(|error| error.to_string())),
            Poll::Pending => None,
        })
        .next();
    StateRead {
        region,
        name: name.to_owned(),
        stream: stream.clone(),
        at,
        until,
        shown: shown.unwrap_or_else(|| Err("it does not come to an end".to_owned())),
    }
}

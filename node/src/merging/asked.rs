//! What readers ask for: what a stream comes to.

use std::time::Duration;

use meridian_client::{ReadError, SettledTier, StateRead, StateTier, StreamState};
use meridian_clock::{OrderKey, Position, Timestamp};
use meridian_conflict::{Kind, Superseded, Winner};
use meridian_event::StreamId;
use meridian_points::reached;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::Merging;
use super::folded::Folded;
use crate::Node;
use crate::reads::unreadable;

/// How many writes are listed with a state that lost to later ones. All are in conflict records.
pub const SUPERSEDED_LISTED_MAX: usize = 64;
/// How long a reader waits until what it would be shown is durable.
const DURABLE_WITHIN: Duration = Duration::from_secs(2);

/// What a stream comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct StateReport {
    /// What it is.
    pub kind: Kind,
    /// What it shows.
    pub value: Value,
    /// The last event of it that counts, in the one order; zero if none does.
    pub order_key: OrderKey,
    /// Hash of what it means, the same in all regions that fold the same operations.
    pub digest: [u8; 32],
    /// Which writes it shows, in `lww` categories.
    pub winners: Vec<Winner>,
    /// The latest writes that lost to one that had not seen them, at most 64.
    pub superseded: Vec<Superseded>,
    /// Roughly what it takes in memory.
    pub bytes: usize,
    /// How many events of it are no operations on it, and do not count.
    pub skipped: u64,
}

impl StateReport {
    fn of(folded: &Folded) -> Self {
        Self {
            kind: folded.state.kind(),
            value: folded.state.value(),
            order_key: folded.last,
            digest: folded.state.digest(),
            winners: folded.state.winners().collect(),
            superseded: {
                let listed = folded.state.superseded().count();
                let latest = listed.saturating_sub(SUPERSEDED_LISTED_MAX);
                folded.state.superseded().skip(latest).collect()
            },
            bytes: folded.state.bytes(),
            skipped: folded.skipped,
        }
    }
}

impl Node {
    /// What `stream` comes to here. Of the tier `stable` all events up to the watermark count, and at most those up to a
    /// later place that was final before this node started, if its snapshot has them.
    ///
    /// # Errors
    /// When what regions write to it is not merged, or the log cannot be read.
    pub async fn read_state(
        &self,
        stream: &StreamId,
        tier: StateTier,
    ) -> Result<StateReport, ReadError> {
        let merging = self.merging();
        let Some(kind) = merging.kind(stream) else {
            return Err(ReadError::Invalid {
                reason: format!(
                    "stream {stream} has no state: its category's mode is neither crdt nor lww, or it has no \
                     type; read its events, or name a stream of another category"
                ),
            });
        };
        let until = match tier {
            StateTier::Live => None,
            StateTier::Stable => Some(self.watermark(SettledTier::Stable)),
        };
        // What a reader was shown must not be gone after a crash.
        let log = merging.own_log(stream);
        let mut committed = self.store().committed();
        let deadline = Instant::now() + DURABLE_WITHIN;
        loop {
            let folding = merging.fold(tier, kind, stream, until);
            folding.await.map_err(unreadable)?;
            let Some((report, made)) = merging.report(tier, kind, stream, until)? else {
                continue;
            };
            loop {
                committed.borrow_and_update();
                let is_durable = self.store().head(log).position >= made.own_upto;
                // The place of what was not written after all may be another event's by now.
                if merging.forgotten(stream) != made.forgotten {
                    reached("a state was read with what was not written after all");
                    break;
                }
                if tier == StateTier::Stable || is_durable {
                    return Ok(report);
                }
                if !matches!(timeout_at(deadline, committed.changed()).await, Ok(Ok(()))) {
                    return Err(ReadError::Unavailable {
                        reason: format!(
                            "what was written to stream {stream} last is not durable yet"
                        ),
                        retry_after_ms: 1000,
                    });
                }
            }
        }
    }
}

impl Node {
    /// What a stream comes to here, as clients are told it.
    pub(crate) async fn state(&self, read: &StateRead) -> Result<StreamState, ReadError> {
        let report = self.read_state(&read.stream, read.tier).await?;
        Ok(StreamState {
            kind: report.kind,
            json: report.value.to_string(),
            order_key: report.order_key,
            digest: report.digest,
            skipped: report.skipped,
        })
    }
}

// What a report rests on.
struct Made {
    // Of this region's log, it may have what was recorded up to here.
    own_upto: Position,
    // How often the states of the partition had been forgotten.
    forgotten: u64,
}

impl Merging {
    // `None` when it has to be folded anew.
    fn report(
        &self,
        tier: StateTier,
        kind: Kind,
        stream: &StreamId,
        until: Option<Timestamp>,
    ) -> Result<Option<(StateReport, Made)>, ReadError> {
        let mut hot = self.hot(self.partition(stream));
        let folded = hot.of(tier).entry(stream.clone());
        let folded = folded.or_insert_with(|| self.begin(stream, kind));
        if !folded.is(kind) {
            *folded = self.begin(stream, kind);
        }
        // It is nearly there already.
        while !folded
            .follow(self, stream, until, false, super::STEPS_AT_ONCE)
            .map_err(unreadable)?
        {}
        if !folded.is_exact() {
            self.fold_anew(&mut hot, tier, stream);
            return Ok(None);
        }
        let report = StateReport::of(folded);
        let made = Made {
            own_upto: folded.own_upto,
            forgotten: hot.forgotten,
        };
        hot.touch(tier, stream, self.bytes_max);
        Ok(Some((report, made)))
    }

    fn forgotten(&self, stream: &StreamId) -> u64 {
        self.hot(self.partition(stream)).forgotten
    }
}

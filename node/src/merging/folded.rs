//! One stream's state, and how far it has followed the logs.

use std::collections::{BTreeMap, VecDeque};

use meridian_clock::{LogId, OrderKey, Position, RegionId, Timestamp};
use meridian_conflict::{Applied, Kind, Marker, OpMeta, Operation, Outcome, State};
use meridian_event::{RecordedEvent, Revision, StreamId};
use meridian_points::{Bug, planted, reached};
use meridian_store::ReadError;
use tracing::warn;

use super::Merging;
use crate::reads::bytes_of;

/// How many pages of each log are read before others may have the processor.
pub(super) const STEPS_AT_ONCE: usize = 1;
const PAGE_EVENTS: usize = 2048;
const PAGE_BYTES: usize = 2 << 20;

/// How far one region's log is followed.
#[derive(Clone, Copy, Default)]
struct Followed {
    // The next of its revisions.
    next: Revision,
    // How far the log went when all of it was folded.
    head: Position,
    // What comes next is stamped later than this.
    settled: Option<Timestamp>,
}

/// What comes next in one region's log.
struct Page {
    region: RegionId,
    events: VecDeque<RecordedEvent>,
    // The stamp of its last event, when more may follow.
    ends_at: Option<Timestamp>,
    // What comes after it is stamped later than this.
    settled: Option<Timestamp>,
}

/// A stream's state.
pub(super) struct Folded {
    pub(super) state: State,
    followed: BTreeMap<RegionId, Followed>,
    /// The place of the last event in the one order.
    pub(super) last: OrderKey,
    /// Events that are no operations: of an earlier policy, or unreadable.
    pub(super) skipped: u64,
    /// What was recorded here up to this position is folded, durable or not.
    pub(super) own_upto: Position,
    /// How many events the last snapshot has that is known of.
    pub(super) saved: u64,
    // Whether something had not seen what was let go of.
    inexact: bool,
    /// When it was last used, in uses.
    pub(super) used: u64,
    /// What it was last counted with.
    pub(super) counted_bytes: usize,
}

impl Folded {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            state: State::new(kind),
            followed: BTreeMap::new(),
            last: OrderKey::ZERO,
            skipped: 0,
            own_upto: Position::ZERO,
            saved: 0,
            inexact: false,
            used: 0,
            counted_bytes: 0,
        }
    }

    /// As a snapshot has it, in which of each region all was folded before the revision that `followed` says.
    pub(super) fn from_kept(
        state: State,
        followed: &[(RegionId, Revision)],
        last: OrderKey,
        skipped: u64,
    ) -> Self {
        let mut folded = Self::new(state.kind());
        folded.state = state;
        folded.last = last;
        folded.skipped = skipped;
        folded.followed = followed
            .iter()
            .map(|(region, next)| {
                let followed = Followed {
                    next: *next,
                    ..Followed::default()
                };
                (*region, followed)
            })
            .collect();
        folded.saved = folded.count();
        folded
    }

    /// The next revision of each region.
    pub(super) fn revisions(&self) -> impl Iterator<Item = (RegionId, Revision)> + '_ {
        self.followed.iter().map(|(region, it)| (*region, it.next))
    }

    /// How many events are folded.
    pub(super) fn count(&self) -> u64 {
        self.followed.values().map(|it| it.next.0).sum()
    }

    /// Whether it is what the log comes to. If not, it is to be folded anew, and from no snapshot.
    pub(super) fn is_exact(&self) -> bool {
        !self.inexact
    }

    pub(super) fn is(&self, kind: Kind) -> bool {
        self.state.kind() == kind
    }

    /// The next revision of `region` to be folded.
    pub(super) fn next(&self, region: RegionId) -> Revision {
        let followed = self.followed.get(&region);
        followed.map_or(Revision(0), |it| it.next)
    }

    /// The next revision of `region` is folded.
    pub(super) fn passed(&mut self, region: RegionId) {
        let followed = self.followed.entry(region).or_default();
        followed.next = followed.next.next();
    }

    /// Folds what is held here of `stream`, and stamped no later than `until`, in at most `steps` pages. Whether
    /// that is all. What this region wrote is folded when it is recorded, so a sequencer, `recording`, need not
    /// look for it again.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(super) fn follow(
        &mut self,
        merging: &Merging,
        stream: &StreamId,
        until: Option<Timestamp>,
        recording: bool,
        steps: usize,
    ) -> Result<bool, ReadError> {
        for _ in 0..steps {
            let mut pages = Vec::new();
            for log in merging.homes.logs(merging.partition(stream)) {
                let own = self.followed.get(&log.origin);
                let is_read = own.is_some_and(|it| it.head > Position::ZERO);
                if recording && log.origin == merging.region && is_read {
                    continue;
                }
                pages.extend(self.page(merging, stream, *log, until)?);
            }
            if pages.is_empty() {
                return Ok(true);
            }
            self.take_in_order(merging, pages);
        }
        Ok(false)
    }

    /// What comes next in one log; nothing when all that was asked for is folded.
    fn page(
        &mut self,
        merging: &Merging,
        stream: &StreamId,
        log: LogId,
        until: Option<Timestamp>,
    ) -> Result<Option<Page>, ReadError> {
        let (store, region) = (&merging.store, log.origin);
        let head = store.head(log).position;
        let followed = self.followed.entry(region).or_default();
        if followed.head == head || (until.is_some() && followed.settled == until) {
            return Ok(None);
        }
        let mut events =
            store.read_stream_of(stream, region, followed.next, PAGE_EVENTS, PAGE_BYTES)?;
        // A page ends before what is damaged, and the next one says so: only an empty one is the end.
        if events.is_empty() {
            if !store.damaged().is_empty() {
                reached("a merged stream's end was looked for beside damage");
                store.stream_last(stream, Some(region), true)?;
            }
            followed.head = head;
            return Ok(None);
        }
        let is_full = events.len() == PAGE_EVENTS || bytes_of(&events) > PAGE_BYTES / 2;
        let is_later = |it: &RecordedEvent| until.is_some_and(|until| it.timestamp > until);
        let settled = events.iter().position(is_later);
        events.truncate(settled.unwrap_or(events.len()));
        let ends_at = events.iter().map(|it| it.timestamp).max();
        Ok(Some(Page {
            region,
            ends_at: ends_at.filter(|_| is_full && settled.is_none()),
            settled: until.filter(|_| settled.is_some()),
            events: events.into(),
        }))
    }

    /// Folds pages of several logs as the one order has them, up to where the first of them ends: an operation comes
    /// after what it has seen, as far as that is here, and nothing has to be kept for what is seen later.
    fn take_in_order(&mut self, merging: &Merging, mut pages: Vec<Page>) {
        let ends_at = pages.iter().filter_map(|page| page.ends_at).min();
        loop {
            let heads = pages.iter_mut().filter_map(|page| {
                let key = page.events.front()?.order_key();
                let is_before_end = ends_at.is_none_or(|end| key.timestamp <= end);
                is_before_end.then_some((key, page))
            });
            let Some((_, page)) = heads.min_by_key(|(key, _)| *key) else {
                break;
            };
            if let Some(event) = page.events.pop_front() {
                self.take(merging, &event);
                self.passed(page.region);
            }
        }
        for page in pages.iter().filter(|page| page.events.is_empty()) {
            if page.settled.is_some() {
                self.followed.entry(page.region).or_default().settled = page.settled;
            }
        }
    }

    fn take(&mut self, merging: &Merging, event: &RecordedEvent) {
        self.last = self.last.max(event.order_key());
        match self.operation(merging, event) {
            Ok(applied) => self.apply(&applied),
            Err(reason) => {
                reached("an event of a merged stream was no operation");
                self.skipped += 1;
                if self.skipped == 1 {
                    warn!(stream = %event.stream, id = %event.id.0, reason, "an event of a stream that is merged is no operation on it; it is kept and not counted");
                }
            }
        }
    }

    fn operation(&self, merging: &Merging, event: &RecordedEvent) -> Result<Applied, String> {
        let meta = OpMeta::parse(&event.metadata).map_err(|error| error.to_string())?;
        let operation = Operation::parse(self.state.kind(), &event.data);
        let here = Marker {
            timestamp: event.timestamp,
            region: event.dot.origin,
            position: event.dot.position,
        };
        Ok(Applied {
            dot: meta.dot,
            seen: meta.seen,
            marker: merging.first_marker(&event.metadata).unwrap_or(here),
            id: event.id,
            operation: operation.map_err(|error| error.to_string())?,
        })
    }

    /// Applies the next operation of its actor's log.
    pub(super) fn apply(&mut self, applied: &Applied) {
        // What is missing before it was set aside, and never comes: logs are followed in their own order.
        self.state.skip_to(applied.dot);
        match self.state.apply(applied) {
            Outcome::Fresh | Outcome::Repeated | Outcome::Waiting => {}
            Outcome::Inexact => {
                reached("an operation had not seen what was let go of");
                // What sees that something was let go of too early is left out with the bug that does it.
                self.inexact = !planted(Bug::CollectAtStable);
            }
        }
    }
}

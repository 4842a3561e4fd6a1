//! The states of streams that every region writes, folded from the logs and kept while they are in use.
//!
//! The sequencer asks [`Merging::prepare`] whether it may record an operation, and [`Merging::record`] gives the
//! operation its dot and what was seen, and applies it at once: the next one is judged with it. What other regions
//! wrote is read from their logs whenever there is more of it than was folded.
//!
//! Not here: what operations mean (`conflict`). Start reading at [`Merging::prepare`]; [`folded`] is how a stream
//! follows its logs, [`asked`] what readers ask for.
//!
//! Always true (`convergent`): a state is folded from nothing but what the logs hold, each log in its own order; so
//! regions that hold the same show the same. A state in memory may be dropped at any time.

mod asked;
mod folded;
mod ledger;
mod rights;
mod snapshots;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meridian_client::{AppendError, AppendRequest, StateTier};
use meridian_clock::{LogId, OrderKey, PartitionId, Position, RegionId, Timestamp};
use meridian_conflict::{Actor, Applied, Kind, Marker, OpDot, OpMeta, Operation, Seen};
use meridian_event::{EventId, NewEvent, Revision, StreamId};
use meridian_points::{Bug, buggify, planted, reached};
use meridian_store::{Disk, Store};
use tokio::task::yield_now;

pub use self::asked::{SUPERSEDED_LISTED_MAX, StateReport};
use self::folded::{Folded, STEPS_AT_ONCE};
pub(crate) use self::ledger::Ledger;
pub(crate) use self::snapshots::keep as keep_snapshots;
use self::snapshots::{Due, Snapshots, is_due};
use crate::homes::Homes;

/// How much memory the states of all partitions may take together, roughly. What was not used for longest goes first.
const STATES_BYTES_MAX: usize = 512 << 20;

/// What a state takes at least, so that many empty ones are counted, too.
const STATE_BYTES_MIN: usize = 512;

/// How long a stream may be whose state is dropped for a simulation's sake.
const BUGGIFY_COUNT_MAX: u64 = 100;

/// The states that are in memory.
pub(crate) struct Merging {
    region: RegionId,
    generation: u32,
    store: Arc<Store>,
    homes: Arc<Homes>,
    // How regions are called, as far as what they brought home says.
    names: BTreeMap<String, RegionId>,
    bytes_max: usize,
    snapshots: Snapshots,
    partitions: Vec<Mutex<Hot>>,
}

/// How much there is of states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StatesSize {
    /// How many are in memory.
    pub(crate) hot: usize,
    /// What they take there, about.
    pub(crate) hot_bytes: usize,
    /// How many snapshots there are.
    pub(crate) kept: usize,
    /// What they take on the disk.
    pub(crate) kept_bytes: u64,
}

// The states of one partition's streams.
#[derive(Default)]
struct Hot {
    // With all that is held, and what is on its way to the disk.
    live: BTreeMap<StreamId, Folded>,
    // With what is settled.
    settled: BTreeMap<StreamId, Folded>,
    bytes: usize,
    used: u64,
    due: Due,
    // How often all of it was forgotten.
    forgotten: u64,
}

impl Hot {
    fn of(&mut self, tier: StateTier) -> &mut BTreeMap<StreamId, Folded> {
        match tier {
            StateTier::Live => &mut self.live,
            StateTier::Stable => &mut self.settled,
        }
    }

    // Notes that a stream's state was used, and drops those that were not for long.
    fn touch(&mut self, tier: StateTier, stream: &StreamId, bytes_max: usize) {
        self.used += 1;
        let used = self.used;
        let Some(folded) = self.of(tier).get_mut(stream) else {
            return;
        };
        folded.used = used;
        let bytes = STATE_BYTES_MIN + stream.as_str().len() + folded.state.bytes();
        let is_due = is_due(folded.count(), folded.saved, bytes);
        // Long ones take too long to be folded again and again.
        let is_short = folded.count() < BUGGIFY_COUNT_MAX;
        let grown = (bytes, std::mem::replace(&mut folded.counted_bytes, bytes));
        self.bytes = self.bytes + grown.0 - grown.1;
        if is_due {
            self.due.add(stream);
        }
        let bytes_max = match is_short && buggify("hardly a state is kept in memory") {
            true => 0,
            false => bytes_max,
        };
        while self.bytes > bytes_max && self.drop_oldest(used) {
            reached("the state of a stream was dropped from memory");
        }
    }

    // Half of them at once, so that this is not done often.
    fn drop_oldest(&mut self, used: u64) -> bool {
        let all = self.live.values().chain(self.settled.values());
        let mut times: Vec<u64> = all.map(|it| it.used).filter(|it| *it < used).collect();
        if times.is_empty() {
            return false;
        }
        let middle = times.len() / 2;
        let (_, until, _) = times.select_nth_unstable(middle);
        let until = *until;
        for states in [&mut self.live, &mut self.settled] {
            states.retain(|_, it| it.used > until);
        }
        let all = self.live.values().chain(self.settled.values());
        self.bytes = all.map(|it| it.counted_bytes).sum();
        true
    }
}

/// Operations that may be recorded.
pub(crate) struct Prepared {
    actor: Actor,
    // The revision of the first event, among those of this region.
    first: Revision,
    operations: Vec<(Operation, Option<OpMeta>)>,
}

impl Merging {
    pub(crate) fn new(
        region: RegionId,
        generation: u32,
        partitions: u16,
        names: BTreeMap<String, RegionId>,
        store: Arc<Store>,
        disk: Arc<dyn Disk>,
        homes: Arc<Homes>,
    ) -> Self {
        Self {
            region,
            generation,
            store,
            homes,
            names,
            bytes_max: STATES_BYTES_MAX / usize::from(partitions.max(1)),
            snapshots: Snapshots::open(disk),
            partitions: (0..partitions).map(|_| Mutex::default()).collect(),
        }
    }

    /// What `stream` is, if what regions write to it is merged.
    pub(crate) fn kind(&self, stream: &StreamId) -> Option<Kind> {
        match stream.is_internal() {
            true => None,
            false => self.homes.policies().kind(stream.category()),
        }
    }

    /// Forgets all states of `partition`: its log is not as was thought, or what was to be written was not. What is
    /// final is as it was.
    pub(crate) fn forget(&self, partition: PartitionId) {
        let mut hot = self.hot(partition);
        *hot = Hot {
            forgotten: hot.forgotten + 1,
            ..Hot::default()
        };
    }

    /// How much there is of states.
    pub(crate) fn size(&self) -> StatesSize {
        let (kept, kept_bytes) = self.snapshots.totals();
        let size = StatesSize {
            kept,
            kept_bytes,
            ..StatesSize::default()
        };
        self.partitions.iter().fold(size, |size, hot| {
            let hot = hot.lock().unwrap_or_else(PoisonError::into_inner);
            StatesSize {
                hot: size.hot + hot.live.len() + hot.settled.len(),
                hot_bytes: size.hot_bytes + hot.bytes,
                ..size
            }
        })
    }

    // The state of `stream` to go on from: the last snapshot's, if there is one.
    fn begin(&self, stream: &StreamId, kind: Kind) -> Folded {
        let kept = self.snapshots.load(stream, kind);
        kept.unwrap_or_else(|| Folded::new(kind))
    }

    // Lets go of what `hot` has of `stream` in `tier`, and of the snapshot: they had let go of too much.
    fn fold_anew(&self, hot: &mut Hot, tier: StateTier, stream: &StreamId) {
        reached("a state is folded anew from the whole log");
        self.snapshots.remove(stream);
        hot.of(tier).remove(stream);
    }

    /// Folds `stream`, if it is merged and not in memory: so that its sequencer need not.
    pub(crate) async fn warm(&self, stream: &StreamId) -> Result<(), AppendError> {
        let Some(kind) = self.kind(stream) else {
            return Ok(());
        };
        let fold = self.fold(StateTier::Live, kind, stream, None);
        fold.await.map_err(|error| unavailable(error.to_string()))
    }

    // Brings the state of `stream` into memory, up to about now, without keeping others waiting.
    async fn fold(
        &self,
        tier: StateTier,
        kind: Kind,
        stream: &StreamId,
        until: Option<Timestamp>,
    ) -> Result<(), meridian_store::ReadError> {
        let partition = self.partition(stream);
        let is_there = |hot: &mut Hot| hot.of(tier).get(stream).is_some_and(|it| it.is(kind));
        if is_there(&mut self.hot(partition)) {
            return Ok(());
        }
        let mut folded = self.begin(stream, kind);
        loop {
            while !folded.follow(self, stream, until, false, STEPS_AT_ONCE)? {
                yield_now().await;
            }
            if folded.is_exact() {
                break;
            }
            self.snapshots.remove(stream);
            folded = Folded::new(kind);
        }
        let mut hot = self.hot(partition);
        if !is_there(&mut hot) {
            hot.of(tier).insert(stream.clone(), folded);
        }
        hot.touch(tier, stream, self.bytes_max);
        Ok(())
    }

    /// Whether `request` may be recorded, whose first event is to have the revision `first` among those of this
    /// region, and what it does. `None` when the stream is not merged.
    ///
    /// What is written again after a fence, `as_first`, is what it first was, whatever the state is by now.
    ///
    /// # Errors
    /// When it may not, or the log cannot be read.
    pub(crate) fn prepare(
        &self,
        request: &AppendRequest,
        first: Revision,
        as_first: bool,
    ) -> Result<Option<Prepared>, AppendError> {
        let stream = &request.stream;
        let Some(kind) = self.kind(stream) else {
            return Ok(None);
        };
        let invalid = |event: usize, error: String| AppendError::Invalid {
            reason: match request.events.len() {
                1 => error,
                _ => format!("event {event} of the batch: {error}"),
            },
        };
        let mut operations = Vec::with_capacity(request.events.len());
        for (at, event) in request.events.iter().enumerate() {
            let operation = Operation::parse(kind, &event.data);
            let operation = operation.map_err(|error| invalid(at, error.to_string()))?;
            let meta = match as_first {
                true => OpMeta::parse(&event.metadata).ok(),
                false => None,
            };
            operations.push((operation, meta));
        }
        let actor = Actor::new(self.region, self.generation);
        let mut hot = self.hot(self.partition(stream));
        let folded = hot.of(StateTier::Live).entry(stream.clone());
        let folded = folded.or_insert_with(|| self.begin(stream, kind));
        if !folded.is(kind) {
            *folded = self.begin(stream, kind);
        }
        while !folded
            .follow(self, stream, None, true, STEPS_AT_ONCE)
            .map_err(|error| unavailable(error.to_string()))?
        {}
        if !folded.is_exact() {
            self.fold_anew(&mut hot, StateTier::Live, stream);
            return Err(unavailable(format!(
                "what stream {stream} comes to is being read from the whole log"
            )));
        }
        if folded.next(self.region) != first {
            // It was dropped while some of it was on its way to the disk.
            reached("a stream was folded while its own events were under way");
            hot.of(StateTier::Live).remove(stream);
            return Err(unavailable(format!(
                "events of stream {stream} are still on their way to the disk"
            )));
        }
        if operations.iter().any(uses_rights) && !self.homes.brought_home() {
            reached("rights were not used before what was stranded was home");
            return Err(unavailable(format!(
                "this region was put out, and what it took from stream {stream} before is not all home yet"
            )));
        }
        // Whatever is refused now is in memory all the same, and counts.
        hot.touch(StateTier::Live, stream, self.bytes_max);
        let folded = hot.of(StateTier::Live).get(stream);
        let folded = folded.expect("what was used last is not dropped");
        let fresh = operations.iter().filter(|(_, meta)| meta.is_none());
        let fresh: Vec<&Operation> = fresh.map(|(operation, _)| operation).collect();
        folded
            .state
            .check_all(&fresh, actor)
            .map_err(|(at, error)| match request.events.len() {
                1 => error.to_string(),
                _ => format!("event {at} of the batch: {error}"),
            })
            .map_err(|reason| AppendError::Conflict { reason })?;
        Ok(Some(Prepared {
            actor,
            first,
            operations,
        }))
    }

    /// Records what was prepared, as events whose first one is at `at` of the log, stamped with `timestamp`.
    ///
    /// # Errors
    /// When the metadata that came with an event cannot be kept with what the server adds; nothing is recorded then.
    pub(crate) fn record(
        &self,
        prepared: Prepared,
        request: &AppendRequest,
        at: Position,
        timestamp: Timestamp,
    ) -> Result<Vec<NewEvent>, AppendError> {
        let stream = &request.stream;
        let mut hot = self.hot(self.partition(stream));
        // A reader may have made room for another stream meanwhile, or have folded this one anew.
        let folded = hot.of(StateTier::Live).get_mut(stream);
        let is_prepared = |it: &&mut Folded| it.next(self.region) == prepared.first;
        let Some(folded) = folded.filter(is_prepared) else {
            reached("a state was dropped between being asked and being written");
            return Err(unavailable(format!(
                "the state of stream {stream} was dropped to make room"
            )));
        };
        let mut events = Vec::with_capacity(request.events.len());
        let mut applied = Vec::with_capacity(request.events.len());
        let mut seen = folded.state.seen().clone();
        let pairs = request.events.iter().zip(prepared.operations);
        for ((event, (operation, meta)), place) in pairs.zip(0..) {
            let is_first = meta.is_none();
            let meta = meta.unwrap_or_else(|| OpMeta {
                dot: next_dot(prepared.actor, &seen, event.id),
                seen: seen.clone(),
            });
            let metadata = match is_first {
                true => meta
                    .into_metadata(&event.metadata)
                    .map_err(|error| AppendError::Invalid {
                        reason: error.to_string(),
                    })?
                    .into(),
                false => event.metadata.clone(),
            };
            seen.advance(meta.dot);
            let marker = Marker {
                timestamp,
                region: self.region,
                position: at.plus(place),
            };
            applied.push(Applied {
                dot: meta.dot,
                seen: meta.seen,
                marker: match is_first {
                    true => marker,
                    false => self.first_marker(&event.metadata).unwrap_or(marker),
                },
                id: event.id,
                operation,
            });
            events.push(NewEvent {
                metadata,
                ..event.clone()
            });
        }
        for operation in applied {
            folded.apply(&operation);
            folded.passed(self.region);
        }
        folded.own_upto = at.plus(request.events.len() as u64 - 1);
        let log = self.own_log(stream);
        let last = OrderKey {
            timestamp,
            region: log.origin,
            partition: log.partition,
            position: folded.own_upto,
        };
        folded.last = folded.last.max(last);
        hot.touch(StateTier::Live, stream, self.bytes_max);
        Ok(events)
    }

    // Where what was brought home was first written.
    fn first_marker(&self, metadata: &[u8]) -> Option<Marker> {
        let first = crate::readmission::first_place(metadata)?;
        if planted(Bug::LwwByReadmission) {
            return None;
        }
        Some(Marker {
            timestamp: first.timestamp,
            region: *self.names.get(&first.origin)?,
            position: first.position,
        })
    }

    fn partition(&self, stream: &StreamId) -> PartitionId {
        let partitions = u16::try_from(self.partitions.len()).unwrap_or(u16::MAX);
        stream.partition(partitions)
    }

    // The log that this region writes `stream` to.
    fn own_log(&self, stream: &StreamId) -> LogId {
        LogId::new(self.region, self.partition(stream))
    }

    fn hot(&self, partition: PartitionId) -> MutexGuard<'_, Hot> {
        let hot = &self.partitions[usize::from(partition.0)];
        hot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Whether a fresh operation uses rights: those that stranded operations use must not be used twice.
fn uses_rights((operation, meta): &(Operation, Option<OpMeta>)) -> bool {
    meta.is_none() && matches!(operation, Operation::Take(_) | Operation::Give { .. })
}

// The dot of the next operation of `actor`, which is the event `id`.
fn next_dot(actor: Actor, seen: &Seen, id: EventId) -> OpDot {
    let last = seen.get(actor);
    // Whoever had not been shown the last operation would count like this.
    let is_unaware = planted(Bug::ClientDots) && last > 0 && id.0.as_u128().is_multiple_of(2);
    actor.dot(if is_unaware { last } else { last + 1 })
}

fn unavailable(reason: String) -> AppendError {
    AppendError::Unavailable {
        reason,
        retry_after_ms: 100,
    }
}

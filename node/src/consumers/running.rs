//! A group that this region serves: reads ahead for it, keeps its progress, lets consumers wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_client::{
    ConsumerError, ConsumerFetch, ConsumerSettle, Deliveries, Direction, Gone, StreamRead,
};
use meridian_clock::OrderKey;
use meridian_event::{RecordedEvent, StreamId};
use meridian_store::SmallError;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::definition::{From, GroupDefinition};
use super::group::{Counts, Group, before};
use super::progress::{self, Change, Checkpoint, Parked, ParkedList, Progress};
use super::{CATEGORY, CHECKPOINT, PARKED, REMOVED, Shared};
use crate::projections::end_of;
use crate::{Node, own};

/// How often a group's progress goes into the log, if it has changed.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// How often the place of a group is kept that passes over what it does not give out.
const IDLE_KEPT_EVERY: Duration = Duration::from_secs(10);
/// How long before something is tried again that failed.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long a consumer waits until what it said is durable.
const KEPT_WITHIN: Duration = Duration::from_secs(10);
/// How long a region that has no progress of its own waits until it surely holds the last checkpoint.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(30);
/// The longest that a consumer waits for events.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// The most events that are given out, and read, at once.
const PAGE_MAX: usize = 1_000;
/// How many checkpoints are looked through at once.
const CHECKPOINTS_PAGE: u32 = 64;

/// How a group stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupServed {
    /// Everything up to here is settled.
    pub cursor: OrderKey,
    /// How far it is behind what is settled in the order.
    pub lag: Duration,
    /// Events that were read and not acknowledged, and how many of them are given out.
    pub waiting: usize,
    /// Of those, given out.
    pub in_flight: usize,
    /// Events that were put aside.
    pub parked: usize,
    /// How many events each consumer has.
    pub consumers: BTreeMap<String, usize>,
    /// The stream and revision of the first event that is not acknowledged.
    pub first: Option<(StreamId, u64)>,
    /// What is wrong, if anything is.
    pub error: Option<String>,
}

/// A parked event, and whether it is under way once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedEvent {
    /// Its place in the one order.
    pub key: OrderKey,
    /// Its stream.
    pub stream: StreamId,
    /// Its place there.
    pub revision: u64,
    /// What happened.
    pub event_type: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub reason: String,
    /// It is given out once more, or waits for that.
    pub retried: bool,
}

#[derive(Default)]
struct State {
    // None until its progress is loaded.
    group: Option<Group>,
    // Why it is not loaded, cannot be read on, or cannot be kept.
    starting: Option<String>,
    reading: Option<String>,
    keeping: Option<String>,
}

/// A group that this region serves.
pub(super) struct Running {
    shared: Arc<Shared>,
    definition: GroupDefinition,
    epoch: u64,
    removed_at: Option<u64>,
    state: Mutex<State>,
    // Changes when something may be given out that was not before.
    changed: watch::Sender<u64>,
    // There is something to keep.
    dirty: Notify,
    // There is room to read on.
    room: Notify,
    // The version of its progress that is durable.
    kept: watch::Sender<u64>,
    cancel: CancellationToken,
    ended: CancellationToken,
}

impl Running {
    /// Serves `definition` in `epoch`; nothing from before `removed_at` counts. Begins once `earlier`
    /// has ended.
    pub(super) fn start(
        shared: &Arc<Shared>,
        definition: GroupDefinition,
        epoch: u64,
        removed_at: Option<u64>,
        earlier: Option<Arc<Self>>,
    ) -> Arc<Self> {
        let running = Arc::new(Self {
            shared: Arc::clone(shared),
            definition,
            epoch,
            removed_at,
            state: Mutex::default(),
            changed: watch::Sender::default(),
            dirty: Notify::new(),
            room: Notify::new(),
            kept: watch::Sender::default(),
            cancel: shared.tasks.child_token(),
            ended: CancellationToken::new(),
        });
        let run = Arc::clone(&running);
        shared.tracker.spawn(async move {
            let _ended = run.ended.clone().drop_guard();
            if let Some(earlier) = earlier {
                earlier.ended.cancelled().await;
            }
            if let Some(kept) = run.load().await {
                tokio::join!(run.read(), run.keep(kept), run.checkpoint());
            }
        });
        running
    }

    /// Waits until it gives out events, or `deadline`.
    pub(super) async fn started(&self, deadline: Instant) {
        let mut changed = self.changed.subscribe();
        let started = changed.wait_for(|_| self.lock().group.is_some());
        tokio::select! {
            biased;
            () = self.ended.cancelled() => {}
            // It may take longer, and then says why.
            _ = timeout_at(deadline, started) => {}
        }
    }

    /// Ends it; what was given out and not acknowledged is given out again by whoever serves it next.
    pub(super) fn stop(&self) {
        self.cancel.cancel();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self) -> Option<Arc<Node>> {
        self.shared.node()
    }

    fn not_now(&self, reason: String) -> ConsumerError {
        ConsumerError::Unavailable {
            reason: format!("consumer group {:?}: {reason}", self.definition.name),
            retry_after_ms: 1000,
        }
    }

    // Does something with the group, and sees to what follows from it.
    fn with<T>(&self, work: impl FnOnce(&mut Group) -> T) -> Result<T, ConsumerError> {
        let mut state = self.lock();
        let starting = state.starting.clone();
        let Some(group) = &mut state.group else {
            let reason = starting.unwrap_or_else(|| "its progress is being read".to_owned());
            return Err(self.not_now(format!("it is not served yet: {reason}")));
        };
        let seen = |group: &Group| (group.progress().version, group.parked().1, group.counts());
        let was = seen(group);
        let done = work(group);
        let is = seen(group);
        drop(state);
        if (was.0, was.1) != (is.0, is.1) {
            self.dirty.notify_one();
            self.room.notify_one();
        }
        if was != is {
            self.changed.send_modify(|count| *count += 1);
        }
        Ok(done)
    }

    /// Gives out events to a consumer.
    pub(super) async fn fetch(&self, asked: &ConsumerFetch) -> Result<Deliveries, ConsumerError> {
        let wait = Duration::from_millis(u64::from(asked.wait_ms)).min(WAIT_MAX);
        let deadline = Instant::now() + wait;
        let limit = (asked.limit as usize).clamp(1, PAGE_MAX);
        let mut changed = self.changed.subscribe();
        self.started(deadline).await;
        loop {
            changed.borrow_and_update();
            let now = Instant::now();
            let (given, wakes_at) = self.with(|group| {
                let given = group.fetch(&asked.consumer, limit, now);
                (given, group.wakes_at(now))
            })?;
            if !given.is_empty() || now >= deadline {
                return Ok(Deliveries {
                    events: given,
                    ack_within_ms: u32::try_from(self.definition.ack_within_ms).unwrap_or(u32::MAX),
                });
            }
            let until = wakes_at.map_or(deadline, |at| at.min(deadline));
            tokio::select! {
                biased;
                () = self.shared.doors.cancelled() => return Ok(Deliveries::default()),
                () = self.cancel.cancelled() => {
                    return Err(self.not_now("it was just changed; ask again".to_owned()));
                }
                // Other consumers' changes wake this one too, which costs them little.
                _ = changed.changed() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// Settles deliveries; returns those that were not the consumer's any more. All others are durable
    /// then.
    pub(super) async fn settle(&self, asked: &ConsumerSettle) -> Result<Vec<Gone>, ConsumerError> {
        let now = Instant::now();
        let (gone, version) = self.with(|group| {
            let settled = asked.deliveries.iter();
            let gone = settled
                .filter_map(|it| group.settle(it, &asked.verdict, now).err())
                .collect();
            (gone, group.progress().version)
        })?;
        self.durable(version).await?;
        Ok(gone)
    }

    async fn durable(&self, version: u64) -> Result<(), ConsumerError> {
        let mut kept = self.kept.subscribe();
        let deadline = Instant::now() + KEPT_WITHIN;
        let waited = tokio::select! {
            biased;
            waited = timeout_at(deadline, kept.wait_for(|kept| *kept >= version)) => {
                matches!(waited, Ok(Ok(_)))
            }
            () = self.ended.cancelled() => *self.kept.borrow() >= version,
        };
        if waited {
            return Ok(());
        }
        let reason = self.lock().keeping.clone();
        let reason =
            reason.unwrap_or_else(|| "it was just changed, or the disk is slow".to_owned());
        Err(self.not_now(format!(
            "what was said is not durable yet, say it again: {reason}"
        )))
    }

    /// How it stands.
    pub(super) fn served(&self) -> GroupServed {
        let expired = self.with(|group| group.expire(Instant::now()));
        let settled = self.node().map(|node| node.watermark(self.definition.tier));
        let state = self.lock();
        let error = [&state.starting, &state.reading, &state.keeping];
        let error = error.into_iter().flatten().next().cloned();
        let Some(group) = &state.group else {
            return GroupServed {
                error: error.or_else(|| expired.err().map(|error| error.to_string())),
                ..GroupServed::default()
            };
        };
        let Counts {
            waiting,
            in_flight,
            parked,
        } = group.counts();
        let cursor = group.progress().cursor;
        let first = group.first();
        let held_up = first.map_or("", |(_, reason)| reason);
        GroupServed {
            cursor,
            lag: match waiting {
                0 => Duration::ZERO,
                _ => settled.unwrap_or_default().after(cursor.timestamp),
            },
            waiting,
            in_flight,
            parked,
            consumers: group.consumers(),
            first: first.map(|(event, _)| (event.stream.clone(), event.revision.0)),
            error: error.or_else(|| (!held_up.is_empty()).then(|| held_up.to_owned())),
        }
    }

    /// What is parked after `after`, at most `limit`.
    pub(super) fn parked(
        &self,
        after: OrderKey,
        limit: usize,
    ) -> Result<Vec<ParkedEvent>, ConsumerError> {
        self.with(|group| {
            let (parked, _) = group.parked();
            let behind = parked.values().filter(|it| it.key > after).take(limit);
            behind
                .map(|it| ParkedEvent {
                    key: it.key,
                    stream: it.stream.clone(),
                    revision: it.revision,
                    event_type: it.event_type.clone(),
                    attempts: it.attempts,
                    reason: it.reason.clone(),
                    retried: group.is_retried(it.key),
                })
                .collect()
        })
    }

    /// Whether an event is parked.
    pub(super) fn is_parked(&self, key: OrderKey) -> Result<bool, ConsumerError> {
        self.with(|group| group.parked().0.contains_key(&key))
    }

    /// Gives a parked event out once more. Returns whether there is one.
    pub(super) fn retry(&self, key: OrderKey) -> Result<bool, ConsumerError> {
        if !self.is_parked(key)? {
            return Ok(false);
        }
        let event = self.event_at(key)?;
        self.with(|group| group.retry(event, Instant::now()))?;
        // It may be given out, though nothing else has changed.
        self.changed.send_modify(|count| *count += 1);
        Ok(true)
    }

    fn event_at(&self, key: OrderKey) -> Result<RecordedEvent, ConsumerError> {
        let node = self.node();
        let node = node.ok_or_else(|| self.not_now("the node is stopping".to_owned()))?;
        let filter = meridian_client::EventFilter::default();
        let page = node.feeds().read(before(key), key.timestamp, &filter, 1)?;
        let found = page.events.into_iter().find(|it| it.order_key() == key);
        found.ok_or_else(|| self.not_now(format!("its event {key} cannot be found in the log")))
    }

    /// Leaves a parked event out for good. Returns whether there was one.
    pub(super) async fn drop_parked(&self, key: OrderKey) -> Result<bool, ConsumerError> {
        let (dropped, version) =
            self.with(|group| (group.drop_parked(key), group.progress().version))?;
        if dropped {
            tracing::info!(group = %self.definition.name, %key, "a parked event was left out for good");
            self.durable(version).await?;
        }
        Ok(dropped)
    }

    // Loads what is known of its progress, and returns what of parked events the small state has. None
    // when it ends before that.
    async fn load(&self) -> Option<BTreeMap<OrderKey, Parked>> {
        loop {
            match self.try_load().await {
                Ok(kept) => {
                    self.lock().starting = None;
                    self.changed.send_modify(|count| *count += 1);
                    return kept;
                }
                Err(reason) => {
                    let name = &self.definition.name;
                    tracing::warn!(name, %reason, "a consumer group cannot be served yet");
                    self.lock().starting = Some(reason);
                }
            }
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return None,
                () = sleep(AGAIN_AFTER) => {}
            }
        }
    }

    async fn try_load(&self) -> Result<Option<BTreeMap<OrderKey, Parked>>, String> {
        let (store, name) = (Arc::clone(&self.shared.store), self.definition.name.clone());
        let removed_at = self.removed_at;
        let load = move || {
            let small = store.small();
            let here = progress::load(small, &name)?;
            // What is left of a group of this name that was removed is of another one.
            let here = here.filter(|(it, _)| removed_at.is_none_or(|at| it.epoch > at));
            if here.is_none() {
                progress::forget(small, &name)?;
            }
            Ok(here)
        };
        let here = self.shared.lane.run(load).await?;
        let here = here.map_err(|error: SmallError| error.to_string())?;
        if here.is_none() && !self.caught_up().await {
            return Ok(None);
        }
        let Some(node) = self.node() else {
            return Ok(None);
        };
        let kept: BTreeMap<_, _> = match &here {
            Some((_, parked)) => parked.iter().map(|it| (it.key, it.clone())).collect(),
            None => BTreeMap::new(),
        };
        let logged = self.last_checkpoint(&node)?;
        let (progress, parked) = match (here, logged) {
            // Another region may have served it since.
            (Some(here), Some(logged))
                if (logged.0.epoch, logged.0.version) > (here.0.epoch, here.0.version) =>
            {
                logged
            }
            (Some(here), _) => here,
            (None, Some(logged)) => logged,
            (None, None) => (self.begin(&node)?, Vec::new()),
        };
        let progress = Progress {
            epoch: self.epoch,
            version: progress.version + 1,
            ..progress
        };
        let mut life = [0; 4];
        node.random().fill(&mut life);
        let definition = self.definition.clone();
        let group = Group::new(definition, progress, parked, u32::from_le_bytes(life));
        self.lock().group = Some(group);
        self.dirty.notify_one();
        Ok(Some(kept))
    }

    // Whether all is held here that was stamped before now; false when it ends before that.
    async fn caught_up(&self) -> bool {
        let (Some(node), began) = (self.node(), Instant::now()) else {
            return false;
        };
        let (now, mut marks) = (node.hlc().physical_now(), node.marks());
        drop(node);
        let reached = marks.wait_for(|marks| marks.stable() >= now);
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => false,
            reached = timeout_at(began + CAUGHT_UP_WITHIN, reached) => {
                if reached.is_err() {
                    tracing::warn!(group = %self.definition.name, "not all regions answer: a consumer group may begin from an older checkpoint than it need");
                }
                true
            }
        }
    }

    // Where a group begins that never was anywhere.
    fn begin(&self, node: &Node) -> Result<Progress, String> {
        let cursor = match &self.definition.from {
            From::Beginning => OrderKey::ZERO,
            From::End => end_of(node.watermark(self.definition.tier)),
            From::After(place) => place.parse().map_err(|_| format!("from is {place:?}"))?,
        };
        Ok(Progress {
            cursor,
            ..Progress::default()
        })
    }

    // The newest checkpoint of this epoch, or else of the ones before, in the log.
    fn last_checkpoint(&self, node: &Node) -> Result<Option<(Progress, Vec<Parked>)>, String> {
        let stream = StreamId::new(&format!("{CATEGORY}-{}", self.definition.name));
        let stream = stream.map_err(|error| error.to_string())?;
        let mut read = StreamRead {
            stream,
            from: StreamRead::LAST,
            direction: Direction::Backwards,
            limit: CHECKPOINTS_PAGE,
        };
        let mut earlier: Option<Checkpoint> = None;
        let newest = 'pages: loop {
            let page = node.read_stream(&read).map_err(|error| error.to_string())?;
            for event in &page.events {
                // Whoever served it before may have gone on writing until it knew better.
                if earlier.is_some() && event.revision.0 <= self.epoch {
                    break 'pages earlier;
                }
                match event.event_type.as_str() {
                    REMOVED => break 'pages earlier,
                    CHECKPOINT => match serde_json::from_slice::<Checkpoint>(&event.data) {
                        Ok(it) if it.epoch == self.epoch => break 'pages Some(it),
                        Ok(it) if it.epoch < self.epoch => {
                            earlier.get_or_insert(it);
                        }
                        Ok(_) => {}
                        Err(error) => {
                            tracing::warn!(%error, "a checkpoint of a consumer group cannot be read; an earlier one counts");
                        }
                    },
                    _ => {}
                }
            }
            match page.next {
                Some(next) if !page.end => read.from = next,
                _ => break earlier,
            }
        };
        let Some(checkpoint) = newest else {
            return Ok(None);
        };
        let parked = match checkpoint.parked_at {
            None => Vec::new(),
            Some(revision) => {
                read.from = revision;
                read.limit = 1;
                let page = node.read_stream(&read).map_err(|error| error.to_string())?;
                let list = page
                    .events
                    .first()
                    .filter(|it| it.event_type.as_str() == PARKED);
                let list = list.ok_or("what it has parked is not held here yet")?;
                let list: ParkedList =
                    serde_json::from_slice(&list.data).map_err(|error| error.to_string())?;
                list.parked
            }
        };
        Ok(Some((checkpoint.progress(), parked)))
    }

    // Reads ahead.
    async fn read(&self) {
        let Some(mut marks) = self.node().map(|node| node.marks()) else {
            return;
        };
        let filter = self.definition.filter();
        loop {
            marks.borrow_and_update();
            let Some(node) = self.node() else {
                return;
            };
            let Ok((after, room)) = self.with(|group| (group.read_to(), group.room())) else {
                return;
            };
            let mut failed = false;
            if room > 0 {
                let until = node.watermark(self.definition.tier);
                match node.feeds().read(after, until, &filter, room.min(PAGE_MAX)) {
                    Ok(page) => {
                        self.lock().reading = None;
                        let took = self.with(|group| {
                            group.read(page.events, page.cursor, Instant::now());
                        });
                        if took.is_ok() && !page.at_end {
                            tokio::task::yield_now().await;
                            if self.cancel.is_cancelled() {
                                return;
                            }
                            continue;
                        }
                    }
                    Err(error) => {
                        failed = true;
                        self.lock().reading = Some(error.to_string());
                    }
                }
            }
            drop(node);
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                changed = marks.changed(), if room > 0 && !failed => if changed.is_err() { return },
                () = self.room.notified(), if !failed => {}
                () = sleep(AGAIN_AFTER), if failed => {}
            }
        }
    }

    // Keeps what changed, one flush for all that was said meanwhile.
    async fn keep(&self, kept: BTreeMap<OrderKey, Parked>) {
        let mut kept = Some(kept);
        let mut parked_version = None;
        let mut cursor = OrderKey::ZERO;
        loop {
            tokio::select! {
                biased;
                () = self.dirty.notified() => {}
                () = self.cancel.cancelled() => return,
                () = sleep(IDLE_KEPT_EVERY) => {
                    let moved = self.with(|group| group.progress().cursor != cursor);
                    if moved != Ok(true) {
                        continue;
                    }
                }
            }
            let change = self.with(|group| {
                let (parked, version) = group.parked();
                let parked = (parked_version != Some(version)).then(|| parked.clone());
                let progress = group.progress().clone();
                (Change { progress, parked }, version)
            });
            let Ok((change, parked_now)) = change else {
                return;
            };
            let (store, name) = (Arc::clone(&self.shared.store), self.definition.name.clone());
            let (version, place) = (change.progress.version, change.progress.cursor);
            let mut had = kept.take().unwrap_or_default();
            let keep = move || {
                let kept = progress::keep(store.small(), &name, &change, &mut had);
                (kept, had)
            };
            let outcome = match self.shared.lane.run(keep).await {
                Ok((outcome, had)) => {
                    kept = Some(had);
                    outcome.map_err(|error| error.to_string())
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => {
                    parked_version = Some(parked_now);
                    cursor = place;
                    self.lock().keeping = None;
                    self.kept.send_replace(version);
                }
                Err(reason) => {
                    let name = &self.definition.name;
                    tracing::error!(name, %reason, "the progress of a consumer group cannot be kept");
                    self.lock().keeping = Some(reason);
                    self.dirty.notify_one();
                    tokio::select! {
                        biased;
                        () = self.cancel.cancelled() => return,
                        () = sleep(AGAIN_AFTER) => {}
                    }
                }
            }
        }
    }

    // Puts what is kept into the log.
    async fn checkpoint(&self) {
        let mut kept = self.kept.subscribe();
        let mut noted = (0, None, None);
        let mut failing = false;
        loop {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                changed = kept.wait_for(|version| *version > noted.0) => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let Some(node) = self.node() else {
                return;
            };
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                outcome = self.note(&node, &mut noted) => match outcome {
                    Ok(()) => failing = false,
                    Err(reason) if !failing => {
                        failing = true;
                        let name = &self.definition.name;
                        tracing::warn!(name, %reason, "the checkpoint of a consumer group is not in the log yet");
                    }
                    Err(_) => {}
                },
            }
            drop(node);
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                () = sleep(CHECKPOINT_EVERY) => {}
            }
        }
    }

    // `noted` is the version in the log, that of what is parked, and where that is.
    async fn note(
        &self,
        node: &Node,
        noted: &mut (u64, Option<u64>, Option<u64>),
    ) -> Result<(), String> {
        let name = &self.definition.name;
        let (progress, parked, parked_version) = self
            .with(|group| {
                let (parked, version) = group.parked();
                let changed = noted.1 != Some(version);
                let parked = changed.then(|| parked.values().cloned().collect::<Vec<_>>());
                (group.progress().clone(), parked, version)
            })
            .map_err(|error| error.to_string())?;
        if let Some(parked) = parked {
            let none = parked.is_empty();
            let list = ParkedList {
                epoch: self.epoch,
                parked,
            };
            noted.2 = match none {
                true => None,
                false => {
                    let data = serde_json::to_vec(&list).map_err(|error| error.to_string())?;
                    let written = own::write(node, CATEGORY, name, PARKED, data).await;
                    Some(written.map_err(|error| error.to_string())?)
                }
            };
            noted.1 = Some(parked_version);
        }
        let version = progress.version;
        let checkpoint = Checkpoint::new(&progress, noted.2);
        let data = serde_json::to_vec(&checkpoint).map_err(|error| error.to_string())?;
        let written = own::write(node, CATEGORY, name, CHECKPOINT, data).await;
        written.map_err(|error| error.to_string())?;
        noted.0 = version;
        Ok(())
    }
}

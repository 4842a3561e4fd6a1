//! The one writer of a read model: reads its feed, runs handlers, commits rows with the checkpoint, and
//! deals with handlers that fail.
//!
//! A worker is a value that is told to take a step; it waits for nothing and starts nothing. Whoever
//! drives it decides where a step runs, since a database blocks.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use meridian_clock::{OrderKey, Timestamp};
use meridian_points::reached;
use serde::Serialize;

use crate::definition::{Definition, Policy};
use crate::feed::{Feed, FeedEvent, Reached};
use crate::place::Place;
use crate::sink::{ApplyError, Batch, Checkpoint, Parked, ParkedKind, Sink, SinkError, Survives};

/// How long since some moment, from a clock that never goes back.
pub type Now = Arc<dyn Fn() -> Duration + Send + Sync>;

/// How much goes into one transaction: whichever is reached first.
#[derive(Clone, Copy, Debug)]
pub struct Batches {
    /// How many events are looked at.
    pub events_max: u64,
    /// How many bytes of events are applied.
    pub bytes_max: usize,
    /// How long it stays open. What is in it cannot be seen before it ends.
    pub time_max: Duration,
}

impl Default for Batches {
    fn default() -> Self {
        Self {
            events_max: 50_000,
            bytes_max: 16 << 20,
            time_max: Duration::from_millis(200),
        }
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to do at once.
    More,
    /// All that is settled is in the read model.
    Idle,
    /// Nothing can be done before so long.
    Wait(Duration),
    /// The policy has stopped it; [`Worker::resume`] makes it try again.
    Stopped,
    /// Another worker has taken the read model over: this one is done.
    Fenced,
}

/// What a worker is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doing {
    /// Several workers build its parts.
    Building,
    /// It reads what is already settled.
    CatchingUp,
    /// It has applied all that is settled.
    Following,
    /// A handler failed and is tried again.
    Retrying,
    /// The policy has stopped it.
    Stopped,
    /// Its database cannot be used.
    WaitingForSink,
    /// Its log cannot be read on.
    WaitingForLog,
    /// Another worker has taken over.
    Fenced,
}

/// Where a worker stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// What it is doing.
    pub doing: Doing,
    /// Why, if something is wrong.
    pub error: Option<String>,
    /// How far its read model has come.
    pub checkpoint: Checkpoint,
    /// How many events are parked.
    pub parked: u64,
}

/// What became of parked events that were tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Drained {
    /// How many were applied.
    pub applied: u64,
    /// Whether others of the stream are left.
    pub is_left: bool,
    /// Why the first of those failed.
    pub error: Option<String>,
}

/// How often what was passed over alone moves the checkpoint.
const MOVE_EVERY: Duration = Duration::from_secs(1);
/// How long before a database or a log that failed is tried again; doubled up to the last.
const SINK_FIRST: Duration = Duration::from_millis(500);
const SINK_LONGEST: Duration = Duration::from_secs(15);
/// How many parked events are tried again in one transaction.
const DRAIN_MAX: usize = 1_000;

// An event whose handler failed and that stands before all others.
#[derive(Debug)]
struct Trying {
    key: OrderKey,
    attempts: u32,
    not_before: Duration,
}

// What to do with an event instead of applying it.
#[derive(Debug)]
struct Decided {
    key: OrderKey,
    kind: ParkedKind,
    reason: String,
    attempts: u32,
}

// A parked stream that is tried again by itself.
#[derive(Clone, Copy, Debug)]
struct Due {
    attempts: u32,
    at: Duration,
}

/// The one writer of a read model.
pub struct Worker {
    definition: Definition,
    feed: Box<dyn Feed>,
    sink: Box<dyn Sink>,
    batches: Batches,
    now: Now,
    jitter: u8,
    // `None` until the read model is claimed.
    committed: Option<Checkpoint>,
    // Everything at or below this is in the read model; may be ahead of what its checkpoint says.
    through: Timestamp,
    moved_at: Duration,
    held: HashSet<String>,
    due: BTreeMap<String, Due>,
    trying: Option<Trying>,
    decided: Option<Decided>,
    parked: u64,
    sink_failures: u32,
    doing: Doing,
    error: Option<String>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Worker")
            .field("name", &self.definition.name)
            .field("doing", &self.doing)
            .finish_non_exhaustive()
    }
}

// What one transaction took in.
#[derive(Debug, Default)]
struct Taken {
    looked_at: u64,
    bytes: usize,
    applied: u64,
    parked: u64,
    skipped: u64,
    failed: Option<(OrderKey, String, String)>,
    sink_error: Option<SinkError>,
}

impl Worker {
    /// A worker that claims the read model in its first step. `jitter` spreads the retries of many.
    pub fn new(
        definition: Definition,
        feed: Box<dyn Feed>,
        sink: Box<dyn Sink>,
        batches: Batches,
        now: Now,
        jitter: u8,
    ) -> Self {
        Self {
            definition,
            feed,
            sink,
            batches,
            now,
            jitter,
            committed: None,
            through: Timestamp::ZERO,
            moved_at: Duration::ZERO,
            held: HashSet::new(),
            due: BTreeMap::new(),
            trying: None,
            decided: None,
            parked: 0,
            sink_failures: 0,
            doing: Doing::CatchingUp,
            error: None,
        }
    }

    // What is committed, as far as is known.
    fn checkpoint(&self) -> Checkpoint {
        let committed = self.committed.clone();
        committed.unwrap_or_else(|| Checkpoint::start(self.definition.tier))
    }

    /// Where it stands.
    pub fn status(&self) -> Status {
        let mut checkpoint = self.checkpoint();
        checkpoint.through = checkpoint.through.max(self.through);
        Status {
            doing: self.doing.clone(),
            error: self.error.clone(),
            checkpoint,
            parked: self.parked,
        }
    }

    /// Tries a handler again that the policy stopped at.
    pub fn resume(&mut self) {
        self.trying = None;
        self.decided = None;
        if self.doing == Doing::Stopped {
            self.doing = Doing::CatchingUp;
            self.error = None;
        }
    }

    /// From here on events are handled as `later` says. `sink` must be of that definition and the same
    /// read model, which is claimed anew.
    pub fn go_on_as(&mut self, later: Definition, sink: Box<dyn Sink>) {
        self.definition = later;
        self.sink = sink;
        self.committed = None;
        self.resume();
    }

    /// Takes one bounded step.
    pub fn step(&mut self) -> Step {
        if self.doing == Doing::Fenced {
            return Step::Fenced;
        }
        if self.doing == Doing::Stopped {
            return Step::Stopped;
        }
        let outcome = self.take_step();
        match outcome {
            Ok(step) => {
                self.sink_failures = 0;
                step
            }
            Err(error) => self.sink_failed(&error),
        }
    }

    fn sink_failed(&mut self, error: &SinkError) -> Step {
        self.sink.rollback();
        self.committed = None;
        if matches!(error, SinkError::Fenced) {
            self.doing = Doing::Fenced;
            self.error = Some(error.to_string());
            return Step::Fenced;
        }
        if self.sink_failures == 0 {
            tracing::warn!(projection = %self.definition.name, %error, "a read model cannot be written");
        }
        let doubled = SINK_FIRST * 2u32.saturating_pow(self.sink_failures.min(16));
        self.sink_failures += 1;
        self.doing = Doing::WaitingForSink;
        self.error = Some(error.to_string());
        Step::Wait(doubled.min(SINK_LONGEST))
    }

    fn take_step(&mut self) -> Result<Step, SinkError> {
        let now = (self.now)();
        if self.committed.is_none() {
            self.claim(now)?;
        }
        if let Some(step) = self.drain_due(now)? {
            return Ok(step);
        }
        if let Some(trying) = &self.trying
            && now < trying.not_before
        {
            return Ok(Step::Wait(trying.not_before - now));
        }
        self.batch(None)
    }

    fn claim(&mut self, now: Duration) -> Result<(), SinkError> {
        let checkpoint = self.sink.claim()?;
        if !checkpoint.place.is_of(self.definition.tier) {
            return Err(SinkError::NoCheckpoint {
                what: "of another tier",
            });
        }
        self.feed.seek(&checkpoint.place);
        self.held.clear();
        self.due.clear();
        for stream in self.sink.held_streams()? {
            if let Some(first) = self.sink.parked_of(&stream, 1)?.first()
                && first.attempts <= self.definition.failure.retries
            {
                let due = self.due_after(now, first.attempts);
                self.due.insert(stream.clone(), due);
            }
            self.held.insert(stream);
        }
        self.parked = self.sink.parked_count()?;
        self.through = checkpoint.through;
        self.moved_at = now;
        self.committed = Some(checkpoint);
        self.doing = Doing::CatchingUp;
        self.error = None;
        Ok(())
    }

    fn due_after(&self, now: Duration, attempts: u32) -> Due {
        Due {
            attempts,
            at: now + self.definition.failure.wait(attempts.max(1), self.jitter),
        }
    }

    // One transaction of events: as many as fit into it, or those up to a place.
    fn batch(&mut self, upto: Option<&Place>) -> Result<Step, SinkError> {
        let before = self.checkpoint();
        self.sink.begin()?;
        let began = (self.now)();
        let mut taken = Taken::default();
        let read = {
            let Self {
                definition,
                feed,
                sink,
                batches,
                now,
                held,
                decided,
                ..
            } = self;
            let source = &definition.source;
            let mut batch = sink.batch()?;
            feed.read(upto, &mut |event| {
                let is_full = taken.looked_at >= batches.events_max
                    || taken.bytes >= batches.bytes_max
                    || taken.looked_at % 64 == 63 && now() - began >= batches.time_max;
                if is_full && upto.is_none() {
                    return ControlFlow::Break(());
                }
                taken.looked_at += 1;
                let wanted = definition.on.contains_key(event.event_type)
                    && (source.categories.is_empty()
                        || source.categories.iter().any(|it| it == event.category()));
                if !wanted {
                    return ControlFlow::Continue(());
                }
                taken.bytes += event.weight_bytes();
                let is_held = !held.is_empty() && held.contains(event.stream);
                let done = match decided {
                    Some(decided) if decided.key == event.key => {
                        put_aside(&mut *batch, event, decided, held, &mut taken)
                    }
                    _ if is_held => {
                        taken.parked += 1;
                        batch.park(
                            event,
                            ParkedKind::Behind,
                            "an earlier event of its stream failed",
                            0,
                        )
                    }
                    _ => match batch.apply(event) {
                        Ok(()) => {
                            taken.applied += 1;
                            Ok(())
                        }
                        Err(ApplyError::Sink(error)) => Err(error),
                        Err(ApplyError::Handler(reason)) => {
                            taken.failed = Some((event.key, event.stream.to_owned(), reason));
                            return ControlFlow::Break(());
                        }
                    },
                };
                match done {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        taken.sink_error = Some(error);
                        ControlFlow::Break(())
                    }
                }
            })
        };
        if let Some(error) = taken.sink_error.take() {
            return Err(error);
        }
        let failed = taken.failed.take();
        if failed.is_some() && self.sink.survives_failure() == Survives::No {
            // All that came before it goes first, in a transaction of its own.
            self.sink.rollback();
            let good = self.feed.place();
            self.feed.seek(&before.place);
            self.batch(Some(&good))?;
            return Ok(self.failed(failed));
        }
        self.finish(&before, &taken, read.as_ref().ok().copied())?;
        if failed.is_some() {
            return Ok(self.failed(failed));
        }
        Ok(match read {
            Ok(Reached::Refused) => {
                self.doing = Doing::CatchingUp;
                Step::More
            }
            Ok(Reached::Settled(_)) => {
                self.doing = Doing::Following;
                self.error = None;
                self.idle()
            }
            Err(error) => {
                self.doing = Doing::WaitingForLog;
                self.error = Some(error.to_string());
                Step::Wait(SINK_FIRST)
            }
        })
    }

    // Until something is due.
    fn idle(&self) -> Step {
        let now = (self.now)();
        match self.due.values().map(|due| due.at).min() {
            Some(at) => Step::Wait(at.saturating_sub(now)),
            None => Step::Idle,
        }
    }

    // Commits what was taken, if that is worth a commit.
    fn finish(
        &mut self,
        before: &Checkpoint,
        taken: &Taken,
        reached_to: Option<Reached>,
    ) -> Result<(), SinkError> {
        let now = (self.now)();
        let place = self.feed.place();
        let through = match reached_to {
            Some(Reached::Settled(through)) => through,
            _ => place.through(),
        };
        let through = through.max(self.through);
        let checkpoint = Checkpoint {
            place: place.clone(),
            through,
            applied: before.applied + taken.applied,
            skipped: before.skipped + taken.skipped,
        };
        let has_rows = taken.applied + taken.parked + taken.skipped > 0;
        let moved = place != before.place && now - self.moved_at >= MOVE_EVERY;
        if has_rows || moved {
            self.sink.commit(&checkpoint)?;
            self.moved_at = now;
            self.committed = Some(checkpoint);
            self.parked += taken.parked;
            if taken.parked > 0 {
                reached("an event was parked");
            }
            if self.decided.as_ref().is_some_and(|it| place.covers(it.key)) {
                self.decided = None;
                self.trying = None;
            }
            if self.trying.as_ref().is_some_and(|it| place.covers(it.key)) {
                self.trying = None;
            }
        } else {
            self.sink.rollback();
        }
        self.through = through;
        Ok(())
    }

    // An event's handler failed, and all before it is committed.
    fn failed(&mut self, failed: Option<(OrderKey, String, String)>) -> Step {
        let Some((key, stream, reason)) = failed else {
            return Step::More;
        };
        let now = (self.now)();
        let attempts = match &self.trying {
            Some(trying) if trying.key == key => trying.attempts + 1,
            _ => 1,
        };
        let failure = self.definition.failure.clone();
        self.error = Some(format!(
            "the handler failed on event {key} of stream {stream}: {reason}"
        ));
        // A stream that is set apart keeps its order, so its first event is tried again from there and
        // nothing else waits.
        if attempts <= failure.retries && failure.policy != Policy::Quarantine {
            let wait = failure.wait(attempts, self.jitter);
            self.doing = Doing::Retrying;
            self.trying = Some(Trying {
                key,
                attempts,
                not_before: now + wait,
            });
            return Step::Wait(wait);
        }
        let name = &self.definition.name;
        let kind = match failure.policy {
            Policy::Stop => {
                tracing::error!(projection = %name, %key, %stream, %reason, "a projection stops before an event whose handler fails");
                self.doing = Doing::Stopped;
                return Step::Stopped;
            }
            Policy::DeadLetter => ParkedKind::DeadLetter,
            Policy::Skip => ParkedKind::Skipped,
            Policy::Quarantine => {
                let due = self.due_after(now, attempts);
                if attempts <= failure.retries {
                    self.due.insert(stream.clone(), due);
                }
                ParkedKind::Quarantined
            }
        };
        tracing::warn!(projection = %name, %key, %stream, %reason, kind = kind.name(), "an event is not applied: its handler fails");
        self.decided = Some(Decided {
            key,
            kind,
            reason,
            attempts,
        });
        Step::More
    }

    // Tries again the first stream whose time has come.
    fn drain_due(&mut self, now: Duration) -> Result<Option<Step>, SinkError> {
        let due = self.due.iter().find(|(_, due)| due.at <= now);
        let Some((stream, due)) = due.map(|(stream, due)| (stream.clone(), *due)) else {
            return Ok(None);
        };
        self.due.remove(&stream);
        let drained = self.drain(&stream)?;
        if drained.error.is_some() && due.attempts < self.definition.failure.retries {
            let next = self.due_after(now, due.attempts + 1);
            self.due.insert(stream, next);
        } else if drained.error.is_none() && drained.is_left {
            self.due.insert(
                stream,
                Due {
                    attempts: 1,
                    at: now,
                },
            );
        }
        Ok(Some(Step::More))
    }

    // Tries the parked events of a stream again, in order, until one fails or there are none.
    fn drain(&mut self, stream: &str) -> Result<Drained, SinkError> {
        let mut parked = self.sink.parked_of(stream, DRAIN_MAX + 1)?;
        let is_more = parked.len() > DRAIN_MAX;
        parked.truncate(DRAIN_MAX);
        let mut drained = self.apply_parked(&parked)?;
        drained.is_left = is_more || drained.error.is_some();
        if !drained.is_left {
            self.held.remove(stream);
        }
        Ok(drained)
    }

    fn apply_parked(&mut self, parked: &[Parked]) -> Result<Drained, SinkError> {
        let mut upto = parked.len();
        let mut error = None;
        let applied = loop {
            self.sink.begin()?;
            let mut applied = 0;
            for parked in &parked[..upto] {
                let event = as_event(parked);
                let outcome = self.sink.batch()?.apply(&event);
                match outcome {
                    Ok(()) => {
                        self.sink.unpark(parked.id, None)?;
                        applied += 1;
                    }
                    Err(ApplyError::Sink(error)) => return Err(error),
                    Err(ApplyError::Handler(reason)) => {
                        error = Some((parked.id, reason));
                        break;
                    }
                }
            }
            if error.is_some() && applied < upto && self.sink.survives_failure() == Survives::No {
                self.sink.rollback();
                upto = applied;
                if upto > 0 {
                    continue;
                }
                self.sink.begin()?;
            }
            if let Some((id, reason)) = &error {
                self.sink.failed_again(*id, reason)?;
            }
            let mut checkpoint = self.checkpoint();
            checkpoint.applied += applied as u64;
            self.sink.commit(&checkpoint)?;
            self.committed = Some(checkpoint);
            break applied;
        };
        self.parked = self.sink.parked_count()?;
        Ok(Drained {
            applied: applied as u64,
            is_left: false,
            error: error.map(|(_, reason)| reason),
        })
    }

    /// Tries a parked event again: alone, or with all that its stream has parked, in order.
    ///
    /// # Errors
    /// When the database cannot be used. `None` when no such event is parked.
    pub fn retry(&mut self, id: i64) -> Result<Option<Drained>, SinkError> {
        self.while_claimed(|worker| {
            let Some(parked) = worker.sink.parked(id)? else {
                return Ok(None);
            };
            if parked.kind.holds_stream() {
                worker.due.remove(&parked.stream);
                return worker.drain(&parked.stream).map(Some);
            }
            worker.apply_parked(&[parked]).map(Some)
        })
    }

    /// Leaves a parked event out for good, and tries what waited behind it.
    ///
    /// # Errors
    /// When the database cannot be used. `None` when no such event is parked.
    pub fn drop_parked(&mut self, id: i64, reason: &str) -> Result<Option<Drained>, SinkError> {
        self.while_claimed(|worker| {
            let Some(parked) = worker.sink.parked(id)? else {
                return Ok(None);
            };
            worker.sink.begin()?;
            worker.sink.unpark(id, Some(reason))?;
            let mut checkpoint = worker.checkpoint();
            checkpoint.skipped += 1;
            worker.sink.commit(&checkpoint)?;
            worker.committed = Some(checkpoint);
            worker.parked = worker.sink.parked_count()?;
            match parked.kind.holds_stream() {
                true => worker.drain(&parked.stream).map(Some),
                false => Ok(Some(Drained::default())),
            }
        })
    }

    fn while_claimed<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, SinkError>,
    ) -> Result<T, SinkError> {
        if self.committed.is_none() {
            self.claim((self.now)())?;
        }
        run(self).inspect_err(|error| {
            self.sink_failed(error);
        })
    }
}

fn put_aside(
    batch: &mut dyn Batch,
    event: &FeedEvent<'_>,
    decided: &Decided,
    held: &mut HashSet<String>,
    taken: &mut Taken,
) -> Result<(), SinkError> {
    batch.park(event, decided.kind, &decided.reason, decided.attempts)?;
    match decided.kind {
        ParkedKind::Skipped => taken.skipped += 1,
        _ => taken.parked += 1,
    }
    if decided.kind.holds_stream() {
        held.insert(event.stream.to_owned());
    }
    Ok(())
}

fn as_event(parked: &Parked) -> FeedEvent<'_> {
    FeedEvent {
        key: parked.key,
        stream: &parked.stream,
        revision: parked.revision,
        id: parked.event_id,
        event_type: &parked.event_type,
        data: &parked.data,
        metadata: &parked.metadata,
        region: &parked.region,
    }
}

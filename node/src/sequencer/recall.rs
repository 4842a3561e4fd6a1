//! What a sequencer remembers beyond the committed log: what is in flight, and hot stream heads.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use meridian_client::{AppendError, AppendRequest, Appended};
use meridian_clock::{Dot, LogId, RegionId, Timestamp};
use meridian_event::{EventId, Revision, StreamId};
use meridian_points::{Bug, planted, reached};
use meridian_store::{CommitError, Store};

use super::{Outcome, Waiting, unavailable};
use crate::control::federation::Need;

/// Stream heads that are kept; beyond it, those that are committed can be looked up again.
const HEADS_MAX: usize = 65_536;
/// What homes here opened on, as far as it is kept; beyond it, that can be looked up again.
const OPENED_MAX: usize = 65_536;

/// What an earlier append of the same events came to.
#[derive(Clone, Debug)]
pub(super) struct Recorded {
    pub(super) first_revision: Revision,
    pub(super) dots: Vec<Dot>,
    pub(super) timestamp: Timestamp,
}

/// Whether a request was recorded before.
#[derive(Debug)]
pub(super) enum Repeat {
    /// None of its events was.
    New,
    /// All of them were, as this.
    Again(Recorded),
}

/// Answers that wait for one block; sent once, by whichever thread settles it.
pub(super) struct Held(Mutex<Fate>);

enum Fate {
    Open(Waiting),
    // What became of the block is kept: whoever comes later may rest on it just the same.
    Settled(Option<CommitError>),
}

impl Default for Held {
    /// Of no block: what is committed is all there is to rest on.
    fn default() -> Self {
        Self(Mutex::new(Fate::Settled(None)))
    }
}

impl Held {
    fn new(waiting: Waiting) -> Self {
        Self(Mutex::new(Fate::Open(waiting)))
    }

    /// Sends the answers: the block is durable, or `failure` says why it is not known to be.
    pub(super) fn settle(&self, failure: Option<&CommitError>) {
        send(self.close(failure), failure);
    }

    /// Sends `error` to all whose answer rested on the block: it never got near the disk. What is
    /// remembered of it must be forgotten.
    pub(super) fn refuse(&self, error: &AppendError) {
        for (answer, outcome) in self.close(None) {
            let outcome = match outcome {
                Outcome::Refused(own) => Outcome::Refused(own),
                _ => Outcome::Refused(error.clone()),
            };
            let _ = answer.send(outcome);
        }
    }

    // Lets `waiting` go out with the block's own answers, or now if those are gone.
    fn attach(&self, waiting: Waiting) {
        let failure = {
            let mut fate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *fate {
                Fate::Open(earlier) => {
                    reached("an answer waited for a block that held nothing of it");
                    earlier.extend(waiting);
                    return;
                }
                Fate::Settled(failure) => failure.clone(),
            }
        };
        send(waiting, failure.as_ref());
    }

    fn close(&self, failure: Option<&CommitError>) -> Waiting {
        let mut fate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *fate, Fate::Settled(failure.cloned())) {
            Fate::Open(waiting) => waiting,
            Fate::Settled(_) => Waiting::new(),
        }
    }
}

fn send(waiting: Waiting, failure: Option<&CommitError>) {
    for (answer, outcome) in waiting {
        let failure = failure.filter(|_| !planted(Bug::AnswerFailed));
        let outcome = match (failure, outcome) {
            (Some(error @ CommitError::Failed { .. }), Outcome::Appended(_)) => {
                Outcome::Refused(AppendError::Indeterminate {
                    reason: error.to_string(),
                })
            }
            (Some(error), Outcome::Appended(_) | Outcome::WrongRevision { .. }) => {
                Outcome::Refused(unavailable(error.to_string()))
            }
            (_, outcome) => outcome,
        };
        // A caller that gave up does not need its answer.
        let _ = answer.send(outcome);
    }
}

struct Head {
    revision: Revision,
    block: u64,
    // The change that had brought the stream here. After another one, others have written it.
    change: u64,
}

struct InFlight {
    block: u64,
    dot: Dot,
    stream: StreamId,
    revision: Revision,
    timestamp: Timestamp,
}

/// A sequencer's memory. Blocks are named by their number; see `Task::submitted_blocks`.
pub(super) struct Recall {
    heads: HashMap<StreamId, Head>,
    in_flight: HashMap<EventId, InFlight>,
    in_flight_ids: VecDeque<(u64, EventId)>,
    committed: u64,
    last_held: Arc<Held>,
    // What homes here opened on, as far as that is surely in the log or in flight.
    opened: BTreeSet<Need>,
}

impl Recall {
    pub(super) fn new() -> Self {
        Self {
            heads: HashMap::new(),
            in_flight: HashMap::new(),
            in_flight_ids: VecDeque::new(),
            committed: 0,
            last_held: Arc::default(),
            opened: BTreeSet::new(),
        }
    }

    /// Forgets everything: the log is not as we left it.
    pub(super) fn forget(&mut self) {
        self.heads.clear();
        self.in_flight.clear();
        self.in_flight_ids.clear();
        self.last_held = Arc::default();
        self.opened.clear();
    }

    /// Of which transfers and fences the log says, or will say, that homes here opened on them.
    pub(super) fn opened(&self) -> &BTreeSet<Need> {
        &self.opened
    }

    /// The log says, or will say, that homes here opened on `need`.
    pub(super) fn note_opened(&mut self, need: Need) {
        if self.opened.len() >= OPENED_MAX {
            self.opened.clear();
        }
        self.opened.insert(need);
    }

    /// Blocks up to `number` are durable, so their events can be found in the log.
    pub(super) fn committed(&mut self, number: u64) {
        self.committed = number;
        while let Some((block, id)) = self.in_flight_ids.front().copied()
            && block <= number
        {
            self.in_flight_ids.pop_front();
            self.in_flight.remove(&id);
        }
        if self.heads.len() > HEADS_MAX {
            self.heads.retain(|_, head| head.block > number);
        }
    }

    /// Whether `request` repeats events that were recorded before in one of `logs`.
    ///
    /// # Errors
    /// When only some were, or they stand in another stream, or the log cannot be read.
    pub(super) fn repeat(
        &self,
        store: &Store,
        logs: &[LogId],
        request: &AppendRequest,
    ) -> Result<Repeat, AppendError> {
        let mut found = Vec::new();
        for event in &request.events {
            if let Some(earlier) = self.find(store, logs, event.id)? {
                found.push(earlier);
            } else if !found.is_empty() {
                break;
            }
        }
        let Some((_, _, first_revision, timestamp)) = found.first().cloned() else {
            return Ok(Repeat::New);
        };
        let in_order = (first_revision.0..).zip(&found).all(|(revision, earlier)| {
            earlier.1 == request.stream && earlier.2 == Revision(revision)
        });
        if found.len() != request.events.len() || !in_order {
            return Err(AppendError::Invalid {
                reason:
                    "some of these event ids were recorded before, in another batch or stream; \
                         repeat a batch exactly as it was first sent, or give new events new ids"
                        .to_owned(),
            });
        }
        let dots = found.into_iter().map(|(dot, ..)| dot).collect();
        Ok(Repeat::Again(Recorded {
            first_revision,
            dots,
            timestamp,
        }))
    }

    fn find(
        &self,
        store: &Store,
        logs: &[LogId],
        id: EventId,
    ) -> Result<Option<(Dot, StreamId, Revision, Timestamp)>, AppendError> {
        if let Some(event) = self.in_flight.get(&id) {
            return Ok(Some((
                event.dot,
                event.stream.clone(),
                event.revision,
                event.timestamp,
            )));
        }
        let found = store
            .find_event(id, logs)
            .map_err(|error| unavailable(error.to_string()))?;
        Ok(found.map(|found| (found.dot, found.stream, found.revision, found.timestamp)))
    }

    /// The last revision of `stream` (of those written by `origin`, if given), in flight included.
    /// `change` is what brought the stream here.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(super) fn last_revision(
        &self,
        store: &Store,
        stream: &StreamId,
        origin: Option<RegionId>,
        change: u64,
    ) -> Result<Option<Revision>, AppendError> {
        if let Some(head) = self.heads.get(stream)
            && head.change == change
            && !planted(Bug::StaleHead)
        {
            return Ok(Some(head.revision));
        }
        let last = store
            .stream_last(stream, origin, origin.is_none())
            .map_err(|error| unavailable(error.to_string()))?;
        Ok(last.map(|last| last.revision))
    }

    /// Remembers what block `number` will hold, of a stream that `change` brought here.
    pub(super) fn wrote(
        &mut self,
        number: u64,
        change: u64,
        request: &AppendRequest,
        appended: &Appended,
    ) {
        let head = Head {
            revision: appended.last_revision,
            block: number,
            change,
        };
        self.heads.insert(request.stream.clone(), head);
        let revisions = appended.first_revision.0..;
        for ((event, dot), revision) in request.events.iter().zip(&appended.dots).zip(revisions) {
            let in_flight = InFlight {
                block: number,
                dot: *dot,
                stream: request.stream.clone(),
                revision: Revision(revision),
                timestamp: appended.timestamp,
            };
            assert!(
                in_flight.block > self.committed,
                "a block is remembered before it is durable"
            );
            self.in_flight.insert(event.id, in_flight);
            self.in_flight_ids.push_back((number, event.id));
        }
    }

    /// Keeps the answers of block `number` until it is settled.
    pub(super) fn hold(&mut self, number: u64, waiting: Waiting) -> Arc<Held> {
        assert!(number > self.committed, "blocks are numbered upwards");
        self.last_held = Arc::new(Held::new(waiting));
        Arc::clone(&self.last_held)
    }

    /// Lets answers that need no block of their own go out after the last submitted one, on which
    /// they may rest, and with its fate; at once if that is settled.
    pub(super) fn attach(&self, waiting: Waiting) {
        self.last_held.attach(waiting);
    }
}

#[cfg(test)]
mod tests {
    use meridian_client::Durability;
    use tokio::sync::oneshot;

    use super::*;

    fn repeated() -> (Waiting, oneshot::Receiver<Outcome>) {
        let appended = Appended {
            stream: StreamId::new("order-1").expect("a sound name"),
            first_revision: Revision(0),
            last_revision: Revision(0),
            home: RegionId(1),
            dots: Vec::new(),
            timestamp: Timestamp::ZERO,
            durability: Durability::Region,
            could_strand: false,
        };
        let (answer, answered) = oneshot::channel();
        (vec![(answer, Outcome::Appended(appended))], answered)
    }

    #[test]
    fn a_repeat_that_comes_after_its_block_failed_is_not_acknowledged() {
        let mut recall = Recall::new();
        let held = recall.hold(1, Waiting::new());
        let reason = "the sync failed".to_owned();
        held.settle(Some(&CommitError::Failed { reason }));
        let (waiting, mut answered) = repeated();
        recall.attach(waiting);
        let answer = answered.try_recv().expect("it is answered at once");
        assert!(
            matches!(answer, Outcome::Refused(AppendError::Indeterminate { .. })),
            "{answer:?}"
        );
    }

    #[test]
    fn once_forgotten_a_failed_block_is_nothing_to_rest_on() {
        let mut recall = Recall::new();
        let held = recall.hold(1, Waiting::new());
        let reason = "no room".to_owned();
        held.settle(Some(&CommitError::DiskFull { reason }));
        recall.forget();
        let (waiting, mut answered) = repeated();
        recall.attach(waiting);
        let answer = answered.try_recv().expect("it is answered at once");
        assert!(matches!(answer, Outcome::Appended(_)), "{answer:?}");
    }

    #[test]
    fn a_repeat_that_comes_before_its_block_is_settled_shares_its_fate() {
        let mut recall = Recall::new();
        let held = recall.hold(1, Waiting::new());
        let (waiting, mut answered) = repeated();
        recall.attach(waiting);
        assert!(answered.try_recv().is_err(), "nothing is known yet");
        held.settle(None);
        let answer = answered.try_recv().expect("the block is durable");
        assert!(matches!(answer, Outcome::Appended(_)), "{answer:?}");
    }
}

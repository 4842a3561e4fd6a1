//! The only writer of this region's origin log for one partition.
//!
//! Requests that queue up while earlier blocks are being made durable form one block: group commit
//! without a timer. At most [`BLOCKS_IN_FLIGHT`] blocks are under way, so that the next group is
//! written while the last one syncs, and the rest of the load waits here and grows the next block.
//!
//! Always true: an answer is sent only after the block that holds the events is durable (`durable`),
//! and a request that repeats event ids gets its first answer (`idempotent`).

mod promises;
mod recall;

use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use meridian_client::{AppendError, AppendRequest, Appended, Durability, Expected};
use meridian_clock::{Epoch, Incarnation, LogId, Position, Promise, RegionId, Timestamp};
use meridian_event::{BlockBuilder, NewEvent, Revision, StreamId};
use meridian_points::{Bug, buggify, planted, reached};
use meridian_store::{CommitError, Store, SubmitError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use self::promises::Marks;
use self::recall::{Recall, Repeat};
use crate::control::Federation;
use crate::fencing::out_reason;
use crate::homes::{Homes, Place, being_set, creators};
use crate::identity::FirstWrite;
use crate::merging::Merging;
use crate::metrics::Metrics;
use crate::node::read_lock;
use crate::odd;
use crate::time::{StampError, TimeKeeper};

/// Two, because more bring nothing: one block is being written while the other syncs.
const BLOCKS_IN_FLIGHT: usize = 2;
/// How many requests may wait; beyond it, callers wait to get in.
const QUEUE_REQUESTS_MAX: usize = 4096;
/// A block stops growing here, so that its neighbours in the commit queue do not wait long for it.
const BLOCK_BYTES_AIM: usize = 4 << 20;
/// Likewise in requests, which bounds the work between two commits.
const BLOCK_REQUESTS_MAX: usize = 2048;

/// What became of a request whose answer rests on what is durable.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The events are durable here.
    Appended(Appended),
    /// Someone else wrote first; what they wrote is durable here.
    WrongRevision { actual: Option<Revision> },
    /// See the error.
    Refused(AppendError),
    /// The stream has moved to another region. Nothing of it was written; here it is back.
    Moved(Box<AppendRequest>),
}

struct Command {
    request: AppendRequest,
    // Whether the server itself asks, so that its own keys of metadata are kept.
    is_own: bool,
    answer: oneshot::Sender<Outcome>,
}

/// The door to one partition's sequencer task.
pub(crate) struct Sequencer {
    log: LogId,
    queue: mpsc::Sender<Command>,
    marks: Arc<Marks>,
    store: Arc<Store>,
    time: Arc<TimeKeeper>,
    shut: Arc<RwLock<Option<String>>>,
}

/// What a sequencer works with.
pub(crate) struct Tools {
    pub(crate) log: LogId,
    pub(crate) incarnation: Incarnation,
    /// Of all that it writes.
    pub(crate) epoch: Epoch,
    pub(crate) store: Arc<Store>,
    pub(crate) time: Arc<TimeKeeper>,
    pub(crate) homes: Arc<Homes>,
    pub(crate) merging: Arc<Merging>,
    /// Why no position may be given out now, if so.
    pub(crate) shut: Arc<RwLock<Option<String>>>,
    pub(crate) first_write: Arc<FirstWrite>,
    pub(crate) members: usize,
    pub(crate) metrics: Arc<Metrics>,
}

impl Sequencer {
    /// The sequencer of `tools.log` and the future that runs it until `cancel`.
    pub(crate) fn new(
        tools: Tools,
        cancel: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, requests) = mpsc::channel(QUEUE_REQUESTS_MAX);
        let head = tools.store.head(tools.log);
        let marks = Arc::new(Marks::new(tools.log, head.timestamp, head.position));
        let sequencer = Self {
            log: tools.log,
            queue,
            marks: Arc::clone(&marks),
            store: Arc::clone(&tools.store),
            time: Arc::clone(&tools.time),
            shut: Arc::clone(&tools.shut),
        };
        let task = Task {
            recall: Recall::new(),
            marks,
            committed_blocks: Arc::new(AtomicU64::new(0)),
            submitted_blocks: 0,
            expected_next: Position::ZERO,
            tools,
        };
        (sequencer, task.run(requests, cancel))
    }

    /// Queues `request`, waiting for a place if need be; what becomes of it comes out of the
    /// receiver. `is_own` when the server itself asks. `None` when the node is stopping.
    pub(crate) async fn enqueue(
        &self,
        request: AppendRequest,
        is_own: bool,
    ) -> Option<oneshot::Receiver<Outcome>> {
        let (answer, answered) = oneshot::channel();
        let command = Command {
            request,
            is_own,
            answer,
        };
        self.queue.send(command).await.ok()?;
        Some(answered)
    }

    /// How many requests wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Whether no block is under way. One that begins from here on sees whatever is decided by now.
    pub(crate) fn is_quiet(&self) -> bool {
        self.marks.is_quiet()
    }

    /// What can be promised of this log now; nothing while it may still be taken back from peers.
    pub(crate) fn promise(&self) -> Option<Promise> {
        // In this order: once the gate is open, only we write this log.
        if read_lock(&self.shut).is_some() && !planted(Bug::PromiseShut) {
            return None;
        }
        let hlc = self.time.hlc();
        // A clock that is not trusted, or has come to its ceiling, has still passed what it merged.
        let passed = || hlc.now().unwrap_or_else(|_| hlc.passed());
        let committed = || {
            let head = self.store.head(self.log);
            (head.timestamp, head.position)
        };
        Some(self.marks.promise(passed, committed))
    }
}

// Answers that wait for a block, in the order of their requests.
type Waiting = Vec<(oneshot::Sender<Outcome>, Outcome)>;

struct Task {
    tools: Tools,
    recall: Recall,
    marks: Arc<Marks>,
    // Blocks are numbered from 1 as they are submitted; up to this one they are durable.
    committed_blocks: Arc<AtomicU64>,
    submitted_blocks: u64,
    // Where our own last block ended. Anything else there means that the log was taken back from
    // a peer meanwhile, and what we remember of it is stale.
    expected_next: Position,
}

impl Task {
    async fn run(mut self, mut requests: mpsc::Receiver<Command>, cancel: CancellationToken) {
        let slots = Arc::new(Semaphore::new(BLOCKS_IN_FLIGHT));
        loop {
            let work = async {
                let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
                self.tools.store.room().await;
                Some((slot, requests.recv().await?))
            };
            let next = tokio::select! {
                biased;
                () = cancel.cancelled() => None,
                work = work => work,
            };
            let Some((slot, first)) = next else { break };
            odd::pause("the sequencer waits before it forms a block").await;
            self.write(first, &mut requests, slot);
            odd::pause("the sequencer waits after it formed a block").await;
        }
        // Requests still queued are dropped with the channel: nothing of them was written, and
        // their callers are told that the node is stopping. Blocks in flight still answer.
        let all = u32::try_from(BLOCKS_IN_FLIGHT).unwrap_or(u32::MAX);
        let drained = slots.acquire_many(all).await;
        debug!(log = %self.tools.log, drained = drained.is_ok(), "sequencer stopped");
    }

    /// Makes one block of `first` and whatever else is queued, and submits it.
    fn write(
        &mut self,
        first: Command,
        requests: &mut mpsc::Receiver<Command>,
        slot: OwnedSemaphorePermit,
    ) {
        let mut shut = read_lock(&self.tools.shut);
        if shut.is_none()
            && let Err(error) = self.tools.first_write.note()
        {
            shut = Some(error.to_string());
        }
        let head = self.tools.store.submitted_head(self.tools.log);
        let committed = self.committed_blocks.load(Ordering::Acquire);
        if head.position != self.expected_next {
            self.recall.forget();
            self.tools.merging.forget(self.tools.log.partition);
            self.expected_next = head.position;
        }
        self.recall.committed(committed);

        // From here on a promise must not reach past what is committed.
        let stamping = self.marks.begin();
        let log = self.tools.log;
        let mut block = BlockBuilder::new(log, self.tools.incarnation, self.tools.epoch);
        let mut stamped = head.timestamp;
        let mut waiting = Waiting::new();
        let number = self.submitted_blocks + 1;
        let mut next = Some(first);
        // One for the whole block, but for what stands behind a transfer: by then its decision counts.
        let mut federation = self.tools.homes.federation();
        let brought_home = self.tools.homes.brought_home();
        let shut = shut.or_else(|| out_reason(&federation, log.origin, brought_home));
        while let Some(Command {
            request,
            is_own,
            answer,
        }) = next
        {
            if request.stream.is_internal() {
                federation = self.tools.homes.federation();
            }
            let prefaced = match &shut {
                Some(reason) => Err(unavailable(reason.clone())),
                None => {
                    let stream = &request.stream;
                    let end = head.position;
                    self.preface(&federation, stream, end, &mut block, &mut stamped, number)
                }
            };
            let at = head.position.plus(1 + u64::from(block.count()));
            let outcome = match prefaced {
                Err(error) => Outcome::Refused(error),
                Ok(()) => match self.decide(&federation, &request, is_own, at, stamped, number) {
                    Ok(Decision::Answer(outcome)) => outcome,
                    Ok(Decision::Write {
                        appended,
                        timestamp,
                        merged,
                    }) => {
                        let events = merged.as_ref().unwrap_or(&request.events);
                        block.push_batch(
                            timestamp,
                            &request.stream,
                            appended.first_revision,
                            events,
                        );
                        stamped = timestamp;
                        Outcome::Appended(appended)
                    }
                    Err(AppendError::NotHome { .. }) => Outcome::Moved(Box::new(request)),
                    Err(error) => Outcome::Refused(error),
                },
            };
            waiting.push((answer, outcome));
            let full = block.raw_bytes() >= BLOCK_BYTES_AIM
                || waiting.len() >= BLOCK_REQUESTS_MAX
                || buggify("a block takes no more requests");
            next = if full { None } else { requests.try_recv().ok() };
        }
        if block.count() == 0 {
            // Nothing new. What is answered may rest on blocks still in flight, so it waits its
            // turn behind them; see `Recall::attach`.
            drop(stamping);
            drop(slot);
            self.recall.attach(waiting);
            return;
        }

        let end = head.position.plus(u64::from(block.count()));
        let block = block.seal(head.position.plus(1), head.chain);
        self.submitted_blocks = number;
        self.expected_next = end;
        let waiting = self.recall.hold(number, waiting);
        let committed_blocks = Arc::clone(&self.committed_blocks);
        let commit_seconds = self.tools.metrics.commit_seconds.clone();
        // The store keeps what is to be called, and must not be kept by it.
        let merging = Arc::downgrade(&self.tools.merging);
        let handed_over = Instant::now();
        let done = {
            let waiting = Arc::clone(&waiting);
            Box::new(move |result: Result<(), CommitError>| {
                match &result {
                    Ok(()) => {
                        commit_seconds.observe(handed_over.elapsed().as_secs_f64());
                        committed_blocks.store(number, Ordering::Release);
                        stamping.committed(stamped, end);
                    }
                    Err(CommitError::Failed { .. }) => stamping.failed(),
                    // Nothing was written, so nothing is left to promise around.
                    Err(CommitError::DiskFull { .. } | CommitError::Closed) => drop(stamping),
                }
                if result.is_err()
                    && let Some(merging) = merging.upgrade()
                {
                    merging.forget(log.partition);
                }
                drop(slot);
                waiting.settle(result.err().as_ref());
            })
        };
        if let Err(error) = self.tools.store.submit(block, done) {
            error!(%log, %error, "a block was refused by the log");
            reached("a block of our own was refused by the log");
            // At once, not by the log's end having moved: an empty log's has not.
            self.recall.forget();
            self.tools.merging.forget(log.partition);
            self.expected_next = Position::ZERO;
            waiting.refuse(&refused(&error));
        }
    }

    // Adds to `block`, which goes on behind `end`, what has to stand in front of the next event of `stream` in this log:
    // what its home here opened on, and who created it. As `decide`.
    fn preface(
        &mut self,
        federation: &Federation,
        stream: &StreamId,
        end: Position,
        block: &mut BlockBuilder,
        stamped: &mut Timestamp,
        number: u64,
    ) -> Result<(), AppendError> {
        let opened = self.recall.opened();
        let openings = self.tools.homes.to_open(federation, stream, opened);
        for (need, opening) in openings.map_err(|error| unavailable(error.to_string()))? {
            let at = end.plus(1 + u64::from(block.count()));
            if let Decision::Write {
                appended,
                timestamp,
                ..
            } = self.decide(federation, &opening, true, at, *stamped, number)?
            {
                let first = appended.first_revision;
                block.push_batch(timestamp, &opening.stream, first, &opening.events);
                *stamped = timestamp;
            }
            self.recall.note_opened(need);
        }
        let at = end.plus(1 + u64::from(block.count()));
        let repeat = self.repeat_creator(federation, stream, at, *stamped, number)?;
        if let Some((repeat, timestamp)) = repeat {
            block.push_batch(timestamp, &repeat.stream, Revision(0), &repeat.events);
            *stamped = timestamp;
        }
        Ok(())
    }

    // What has to stand in front of the first event of `stream` in this log: who created it. As `decide`.
    fn repeat_creator(
        &mut self,
        federation: &Federation,
        stream: &StreamId,
        at: Position,
        stamped: Timestamp,
        number: u64,
    ) -> Result<Option<(AppendRequest, Timestamp)>, AppendError> {
        let log = self.tools.log;
        let repeat = self.tools.homes.to_repeat(federation, stream);
        let Some(repeat) = repeat.map_err(|error| unavailable(error.to_string()))? else {
            return Ok(None);
        };
        let own = slice::from_ref(&log);
        if let Repeat::Again(_) = self.recall.repeat(&self.tools.store, own, &repeat)? {
            return Ok(None);
        }
        let timestamp = self.tools.time.stamp_above(stamped);
        let timestamp = timestamp.map_err(|error| stamp_error(&error))?;
        let appended = Appended {
            stream: repeat.stream.clone(),
            first_revision: Revision(0),
            last_revision: Revision(0),
            home: log.origin,
            dots: vec![log.dot(at)],
            timestamp,
            durability: Durability::Region,
            could_strand: self.tools.members > 1,
        };
        self.recall.wrote(number, 0, &repeat, &appended);
        Ok(Some((repeat, timestamp)))
    }

    // Decides one request. What it writes is remembered at once, as part of block `number`.
    fn decide(
        &mut self,
        federation: &Federation,
        request: &AppendRequest,
        is_own: bool,
        at: Position,
        stamped: Timestamp,
        number: u64,
    ) -> Result<Decision, AppendError> {
        let log = self.tools.log;
        let own = log.origin;
        let place = self
            .tools
            .homes
            .place(federation, &request.stream)
            .map_err(|error| unavailable(error.to_string()))?;
        let change = match place {
            Place::Here { change } => change,
            _ => 0,
        };
        // What was moved here may have been recorded elsewhere.
        let logs = match change {
            0 => slice::from_ref(&log),
            _ => self.tools.homes.logs(log.partition),
        };
        match self.recall.repeat(&self.tools.store, logs, request)? {
            Repeat::New => {}
            Repeat::Again(appended) => {
                reached("an append was answered from the memory of its ids");
                return Ok(Decision::Answer(Outcome::Appended(
                    self.describe(request, appended),
                )));
            }
        }
        let shared = place == Place::Anywhere;
        match place {
            Place::Elsewhere { home, epoch } if !planted(Bug::SecondHome) => {
                reached("a request found that its stream had moved");
                return Err(AppendError::NotHome {
                    stream: request.stream.clone(),
                    home,
                    epoch,
                });
            }
            Place::Coming { from } => return Err(coming(&request.stream, from)),
            Place::Undecided => return Err(unavailable(being_set(&request.stream))),
            Place::New => return Err(unavailable(record_coming(&request.stream))),
            Place::Here { .. } => {
                let lease = self.tools.homes.check_lease(&request.stream);
                lease.map_err(unavailable)?;
            }
            _ => {}
        }
        let written_by = shared.then_some(own);
        let actual =
            self.recall
                .last_revision(&self.tools.store, &request.stream, written_by, change)?;
        if shared && request.expected != Expected::Any {
            return Err(AppendError::Invalid {
                reason: format!(
                    "stream {} is written by every region, so it has no one revision to expect; \
                     append with expected \"any\"",
                    request.stream
                ),
            });
        }
        // A record is never written on: whoever asks is told what it says.
        let is_said = request.stream.category() == creators::CATEGORY && actual.is_some();
        let fits = request.expected.matches(actual) || planted(Bug::IgnoreExpected);
        if is_said || !fits {
            return Ok(Decision::Answer(Outcome::WrongRevision { actual }));
        }
        let first_revision = actual.map_or(Revision(0), Revision::next);
        let merging = &self.tools.merging;
        let prepared = match shared {
            true => merging.prepare(request, first_revision, is_own)?,
            false => None,
        };
        let timestamp = self
            .tools
            .time
            .stamp_above(stamped)
            .map_err(|error| stamp_error(&error))?;
        let merged = prepared.map(|prepared| merging.record(prepared, request, at, timestamp));
        let merged = merged.transpose()?;
        let count = request.events.len() as u64;
        let last_revision = Revision(first_revision.0 + count - 1);
        let appended = Appended {
            stream: request.stream.clone(),
            first_revision,
            last_revision,
            home: own,
            dots: (0..count)
                .map(|index| self.tools.log.dot(at.plus(index)))
                .collect(),
            timestamp,
            durability: Durability::Region,
            could_strand: self.tools.members > 1,
        };
        self.recall.wrote(number, change, request, &appended);
        Ok(Decision::Write {
            appended,
            timestamp,
            merged,
        })
    }

    fn describe(&self, request: &AppendRequest, again: recall::Recorded) -> Appended {
        Appended {
            stream: request.stream.clone(),
            first_revision: again.first_revision,
            last_revision: Revision(again.first_revision.0 + again.dots.len() as u64 - 1),
            home: again
                .dots
                .first()
                .map_or(RegionId::default(), |dot| dot.origin),
            dots: again.dots,
            timestamp: again.timestamp,
            durability: Durability::Region,
            could_strand: self.tools.members > 1,
        }
    }
}

enum Decision {
    Answer(Outcome),
    Write {
        appended: Appended,
        timestamp: Timestamp,
        // The events as they are recorded, where the server adds something.
        merged: Option<Vec<NewEvent>>,
    },
}

/// Why `stream`, which is being moved here from region `from`, cannot be written yet.
pub(crate) fn coming(stream: &StreamId, from: RegionId) -> AppendError {
    unavailable(format!(
        "stream {stream} is being moved here from region {from}, whose last events of it are not \
         here yet"
    ))
}

/// Why `stream`, which is created, cannot be written here yet.
pub(crate) fn record_coming(stream: &StreamId) -> String {
    format!(
        "which region created stream {stream} is told, and what tells it is not here yet; send it again"
    )
}

fn unavailable(reason: String) -> AppendError {
    AppendError::Unavailable {
        reason,
        retry_after_ms: 1000,
    }
}

fn stamp_error(error: &StampError) -> AppendError {
    unavailable(error.to_string())
}

fn refused(error: &SubmitError) -> AppendError {
    unavailable(error.to_string())
}

//! The requests of one connection that wait to be sent or answered.
//!
//! Everything is under one lock, so that a request is either still ours to take back or has been
//! given to the socket, and whoever asks about it is told which.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, oneshot};

use crate::wire::{self, Request, Response};

/// How many requests of one connection may be sent and unanswered at a time; further ones wait.
const IN_FLIGHT_MAX: usize = 1024;
/// How many bytes of requests may be sent and unanswered at a time; further ones wait.
const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;
/// How many requests may wait to be sent; further ones are turned away.
const QUEUED_MAX: usize = 65_536;
// A frame from here on is written as it is; smaller ones are gathered first.
const GATHER_BYTES: usize = 16 << 10;
const WRITE_BYTES: usize = 256 << 10;

/// What became of a request that was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It never left. It is safe to send it anywhere.
    #[error("the request was not sent: {reason}")]
    NotSent {
        /// What was in the way.
        reason: String,
    },
    /// It may have been done.
    #[error("the request was sent and not answered: {reason}")]
    Unanswered {
        /// What is known.
        reason: String,
    },
    /// It was answered, but by something that is no answer to it. It may have been done.
    #[error("the answer is no answer to this request: {reason}")]
    Protocol {
        /// What was answered.
        reason: String,
    },
    /// It can never be sent. Nothing was done.
    #[error(transparent)]
    TooLong(#[from] wire::TooLong),
}

/// The requests that wait to be sent or answered.
#[derive(Default)]
pub(crate) struct Pending {
    state: Mutex<PendingState>,
    /// Tells the writer that there may be something to do.
    pub(crate) changed: Notify,
}

#[derive(Default)]
struct PendingState {
    next_id: u64,
    // In ascending order, so that a lost connection wakes its callers in the same sequence each run.
    waiting: BTreeMap<u64, Waiting>,
    /// The ids of those that are not sent yet, and of some that have been given up.
    queue: VecDeque<u64>,
    in_flight: usize,
    in_flight_bytes: usize,
    /// Why no more requests are taken.
    closed: Option<String>,
}

struct Waiting {
    /// The request, until it is given to the socket.
    frame: Option<Bytes>,
    bytes: usize,
    answer: oneshot::Sender<Result<Response, RequestError>>,
}

impl Waiting {
    fn is_sent(&self) -> bool {
        self.frame.is_none()
    }
}

impl PendingState {
    /// Takes a request off the list, whatever became of it.
    fn remove(&mut self, id: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        if waiting.is_sent() {
            self.in_flight -= 1;
            self.in_flight_bytes -= waiting.bytes;
        }
        Some(waiting)
    }

    /// What to send next; from here on it counts as sent.
    fn next_to_send(&mut self) -> Option<Bytes> {
        while self.in_flight < IN_FLIGHT_MAX && self.in_flight_bytes < IN_FLIGHT_BYTES_MAX {
            let id = self.queue.pop_front()?;
            // One that was given up meanwhile has been reported as not sent, and must not be.
            let Some(waiting) = self.waiting.get_mut(&id) else {
                continue;
            };
            self.in_flight += 1;
            self.in_flight_bytes += waiting.bytes;
            return waiting.frame.take();
        }
        None
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, PendingState> {
        // Nothing panics while holding it, so it is never left half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a request at the end of the queue. Never waits: the sequence of these calls is the one
    /// in which requests leave.
    pub(crate) fn register(
        &self,
        wait_ms: u32,
        request: &Request,
    ) -> Result<Ticket<'_>, RequestError> {
        let (sender, answer) = oneshot::channel();
        let mut frame = Vec::new();
        let mut state = self.lock();
        let refusal = state.closed.clone().or_else(|| {
            let too_many = || format!("{QUEUED_MAX} requests wait for this node already");
            (state.queue.len() >= QUEUED_MAX).then(too_many)
        });
        if let Some(reason) = refusal {
            return Err(RequestError::NotSent { reason });
        }
        let id = state.next_id;
        wire::encode_request(&mut frame, id, wait_ms, request)?;
        state.next_id += 1;
        state.queue.push_back(id);
        let waiting = Waiting {
            bytes: frame.len(),
            frame: Some(Bytes::from(frame)),
            answer: sender,
        };
        state.waiting.insert(id, waiting);
        drop(state);
        self.changed.notify_one();
        Ok(Ticket {
            pending: self,
            id,
            answer,
        })
    }

    /// What to write now, and whether that is all there will ever be.
    pub(crate) fn next_chunks(&self) -> (Vec<Bytes>, bool) {
        let mut state = self.lock();
        (next_chunks(&mut state), state.closed.is_some())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// Hands over an answer; whoever gave up waiting has been told so.
    pub(crate) fn answer(&self, id: u64, answer: Result<Response, RequestError>) {
        if let Some(waiting) = self.remove(id) {
            let _ = waiting.answer.send(answer);
        }
    }

    /// Takes a request off the list, which may make room for others.
    fn remove(&self, id: u64) -> Option<Waiting> {
        let (waiting, may_send) = {
            let mut state = self.lock();
            (state.remove(id), !state.queue.is_empty())
        };
        if may_send {
            self.changed.notify_one();
        }
        waiting
    }

    /// Tells everyone who waits what became of their request, and takes no more.
    pub(crate) fn close(&self, reason: &str) {
        let waiting = {
            let mut state = self.lock();
            state.closed.get_or_insert_with(|| reason.to_owned());
            state.queue.clear();
            state.in_flight = 0;
            state.in_flight_bytes = 0;
            std::mem::take(&mut state.waiting)
        };
        for waiting in waiting.into_values() {
            let error = unanswered(waiting.is_sent(), reason);
            // Whoever no longer listens has been told something else already.
            let _ = waiting.answer.send(Err(error));
        }
        self.changed.notify_one();
    }
}

/// All that may be sent now, up to what makes one good write: small frames gathered, large ones as
/// they are.
fn next_chunks(state: &mut PendingState) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    let mut small = BytesMut::new();
    let mut bytes = 0;
    while bytes < WRITE_BYTES
        && let Some(frame) = state.next_to_send()
    {
        bytes += frame.len();
        if frame.len() < GATHER_BYTES {
            small.extend_from_slice(&frame);
        } else {
            chunks.push(small.split().freeze());
            chunks.push(frame);
        }
    }
    chunks.push(small.freeze());
    chunks.retain(|chunk| !chunk.is_empty());
    chunks
}

fn unanswered(sent: bool, reason: &str) -> RequestError {
    let reason = reason.to_owned();
    if sent {
        RequestError::Unanswered { reason }
    } else {
        RequestError::NotSent { reason }
    }
}

/// One caller's place among those who wait. Dropped, it is given up: a request that the writer has
/// not come to by then is not sent.
pub(crate) struct Ticket<'a> {
    pending: &'a Pending,
    id: u64,
    pub(crate) answer: oneshot::Receiver<Result<Response, RequestError>>,
}

impl Ticket<'_> {
    /// What to report when we no longer wait. An answer that came in this very instant counts.
    pub(crate) fn give_up(&mut self, reason: &str) -> Result<Response, RequestError> {
        match (self.pending.remove(self.id), self.answer.try_recv()) {
            (Some(waiting), _) => Err(unanswered(waiting.is_sent(), reason)),
            (None, Ok(answer)) => answer,
            // Taken off the list by someone who has not told us yet what for.
            (None, Err(_)) => Err(unanswered(true, reason)),
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.pending.remove(self.id);
    }
}

//! Every call that clients made, and what they were told.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_client::{Appended, Durability, Expected};
use meridian_clock::Dot;
use meridian_event::{EventId, Revision, StreamId};

use crate::load::FENCED;

/// One append, from the first attempt to the last answer.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which client made it.
    pub client: usize,
    /// The stream.
    pub stream: StreamId,
    /// What it expected of the stream.
    pub expected: Expected,
    /// How safe it was to be.
    pub durability: Durability,
    /// The ids of its events.
    pub ids: Vec<EventId>,
    /// When it was made.
    pub invoked: Duration,
    /// When it was answered.
    pub returned: Option<Duration>,
    /// With what.
    pub outcome: Outcome,
}

impl Call {
    /// Whether its stream is of a fenced category.
    pub fn is_fenced(&self) -> bool {
        self.stream.category() == FENCED
    }

    /// How many regions must hold what it wrote once it is answered, of so many members.
    pub fn level(&self, members: usize) -> usize {
        let asked = self.durability.regions(members);
        match self.is_fenced() {
            true => asked.max(members / 2 + 1),
            false => asked,
        }
    }
}

/// What a client knows about a call in the end.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was not answered, or the answer was that nobody knows. The events may be there.
    Unknown,
    /// The events were written.
    Written(Appended),
    /// They never will be.
    Refused {
        /// The kind of refusal.
        code: &'static str,
        /// What the client was told, in full.
        why: String,
        /// The stream's last revision, if it was refused for that.
        found: Option<Option<Revision>>,
    },
}

/// Where a stream ended when its home was asked.
#[derive(Clone, Debug)]
pub struct Read {
    /// The stream.
    pub stream: StreamId,
    /// When it was asked.
    pub invoked: Duration,
    /// When it was answered.
    pub returned: Duration,
    /// The last event, if there was one.
    pub last: Option<(Revision, EventId)>,
}

/// What a region answered to someone who had seen an event before, elsewhere.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The event that had been seen.
    pub dot: Dot,
    /// When it was asked for, which is before it was written.
    pub written: Duration,
    /// What was read, in words.
    pub read: String,
    /// Whether the answer showed the event.
    pub shown: bool,
}

/// A request that was repeated and answered otherwise than the first time.
#[derive(Clone, Debug)]
pub struct Repeated {
    /// Its last event, as it was answered first.
    pub dot: Dot,
    /// When it was first asked for, which is before it was written.
    pub written: Duration,
    /// Both answers, in words.
    pub what: String,
}

/// The calls of one run. Clones are the same history.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    calls: Vec<Call>,
    reads: Vec<Read>,
    seen: Vec<Seen>,
    repeated: Vec<Repeated>,
    // Those that ended since they were last asked for.
    ended: Vec<usize>,
    broken: Vec<String>,
}

impl History {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call that begins; the number is to be given to [`History::end`].
    pub fn begin(&self, call: Call) -> usize {
        let mut inner = self.lock();
        inner.calls.push(call);
        inner.calls.len() - 1
    }

    /// Notes how a call ended.
    pub fn end(&self, number: usize, at: Duration, outcome: Outcome) {
        let mut inner = self.lock();
        if let Some(call) = inner.calls.get_mut(number) {
            call.returned = Some(at);
            call.outcome = outcome;
            inner.ended.push(number);
        }
    }

    /// Notes what the home of a stream was seen to hold.
    pub fn read(&self, read: Read) {
        self.lock().reads.push(read);
    }

    /// Notes what somebody was shown who had seen something before.
    pub fn seen(&self, seen: Seen) {
        self.lock().seen.push(seen);
    }

    /// All that was read by those who had seen something before.
    pub fn all_seen(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    /// Notes a request that was answered otherwise when it was repeated.
    pub fn repeated(&self, repeated: Repeated) {
        self.lock().repeated.push(repeated);
    }

    /// All requests that were answered otherwise when they were repeated.
    pub fn all_repeated(&self) -> Vec<Repeated> {
        self.lock().repeated.clone()
    }

    /// All reads at homes.
    pub fn reads(&self) -> Vec<Read> {
        self.lock().reads.clone()
    }

    /// Notes that a client saw something that must never be.
    pub fn broken(&self, what: String) {
        self.lock().broken.push(what);
    }

    /// The calls that ended since this was last asked.
    pub fn newly_ended(&self) -> Vec<Call> {
        let mut inner = self.lock();
        let ended = std::mem::take(&mut inner.ended);
        ended
            .into_iter()
            .filter_map(|number| inner.calls.get(number).cloned())
            .collect()
    }

    /// All calls, in the order they were made.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// What clients saw that must never be.
    pub fn seen_broken(&self) -> Vec<String> {
        self.lock().broken.clone()
    }

    /// How many calls have no answer yet.
    pub fn open(&self) -> usize {
        let inner = self.lock();
        inner
            .calls
            .iter()
            .filter(|it| it.returned.is_none())
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_fenced_home_answers_a_majority_holds_whatever_was_asked_for() {
        let call = |stream: &str, durability| Call {
            client: 0,
            stream: StreamId::new(stream).expect("a sound name"),
            expected: Expected::Any,
            durability,
            ids: Vec::new(),
            invoked: Duration::ZERO,
            returned: None,
            outcome: Outcome::Unknown,
        };
        assert_eq!(call("order-1", Durability::Region).level(5), 1);
        assert_eq!(call("ledger-1", Durability::Region).level(5), 3);
        assert_eq!(call("ledger-1", Durability::Region).level(4), 3);
        assert_eq!(call("ledger-1", Durability::All).level(5), 5);
    }
}

//! What one origin log can promise, and the marks that keep promises true.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meridian_clock::{LogId, Position, Promise, Timestamp};
use meridian_points::{Bug, planted};

#[derive(Debug)]
struct State {
    // Blocks that may hold stamps above what is committed.
    under_way: u32,
    timestamp: Timestamp,
    position: Position,
}

/// How far a log is stamped and committed, shared by its sequencer, the committing threads and
/// whoever makes promises.
#[derive(Debug)]
pub(super) struct Marks {
    log: LogId,
    state: Mutex<State>,
}

/// A block under way: until it ends, no promise reaches past what is committed.
pub(super) struct Stamping {
    marks: Arc<Marks>,
    ended: bool,
}

impl Marks {
    pub(super) fn new(log: LogId, timestamp: Timestamp, position: Position) -> Self {
        Self {
            log,
            state: Mutex::new(State {
                under_way: 0,
                timestamp,
                position,
            }),
        }
    }

    /// To be called before the first stamp of a block is taken.
    pub(super) fn begin(self: &Arc<Self>) -> Stamping {
        self.lock().under_way += 1;
        Stamping {
            marks: Arc::clone(self),
            ended: false,
        }
    }

    /// The strongest promise (`promised`): with nothing under way, `passed` while nobody can begin a
    /// block; else the last committed one. `committed` is where the log ends on disk: what was taken
    /// back from a peer did not come through here.
    pub(super) fn promise(
        &self,
        passed: impl FnOnce() -> Timestamp,
        committed: impl FnOnce() -> (Timestamp, Position),
    ) -> Promise {
        let mut state = self.lock();
        if state.under_way == 0 || planted(Bug::PromiseEarly) {
            let (timestamp, position) = committed();
            state.position = state.position.max(position);
            state.timestamp = state.timestamp.max(timestamp).max(passed());
        }
        Promise {
            log: self.log,
            timestamp: state.timestamp,
            position: state.position,
        }
    }

    /// Whether nothing is under way now.
    pub(super) fn is_quiet(&self) -> bool {
        self.lock().under_way == 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stamping {
    /// The block is durable: it ended at `position` and was stamped up to `timestamp`.
    pub(super) fn committed(mut self, timestamp: Timestamp, position: Position) {
        let mut state = self.marks.lock();
        state.timestamp = state.timestamp.max(timestamp);
        state.position = state.position.max(position);
        drop(state);
        self.end();
    }

    /// The block may or may not be on disk. The log takes no more, and no promise of ours may ever
    /// cover it, so it stays under way.
    pub(super) fn failed(mut self) {
        self.ended = true;
    }

    fn end(&mut self) {
        if !self.ended {
            self.ended = true;
            self.marks.lock().under_way -= 1;
        }
    }
}

impl Drop for Stamping {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use meridian_clock::{PartitionId, RegionId};

    use super::*;

    fn marks() -> Arc<Marks> {
        let log = LogId::new(RegionId(1), PartitionId(0));
        Arc::new(Marks::new(log, Timestamp(100), Position(5)))
    }

    fn promise_at(marks: &Marks, now: u64) -> Promise {
        marks.promise(|| Timestamp(now), || (Timestamp(100), Position(5)))
    }

    #[test]
    fn what_was_taken_back_from_a_peer_is_promised_too() {
        let promise = marks().promise(|| Timestamp(120), || (Timestamp(130), Position(9)));
        assert_eq!(
            (promise.timestamp, promise.position),
            (Timestamp(130), Position(9))
        );
    }

    #[test]
    fn an_idle_log_promises_up_to_now() {
        let promise = promise_at(&marks(), 200);
        assert_eq!(
            (promise.timestamp, promise.position),
            (Timestamp(200), Position(5))
        );
    }

    #[test]
    fn a_block_under_way_holds_promises_at_what_is_committed() {
        let marks = marks();
        let block = marks.begin();
        let during = promise_at(&marks, 200);
        assert_eq!(
            (during.timestamp, during.position),
            (Timestamp(100), Position(5))
        );
        block.committed(Timestamp(150), Position(7));
        let after = promise_at(&marks, 200);
        assert_eq!(
            (after.timestamp, after.position),
            (Timestamp(200), Position(7))
        );
    }

    #[test]
    fn a_failed_block_is_never_promised_over() {
        let marks = marks();
        marks.begin().failed();
        let promise = promise_at(&marks, 200);
        assert_eq!(
            (promise.timestamp, promise.position),
            (Timestamp(100), Position(5))
        );
    }

    #[test]
    fn a_block_that_came_to_nothing_is_no_longer_under_way() {
        let marks = marks();
        drop(marks.begin());
        assert_eq!(promise_at(&marks, 200).timestamp, Timestamp(200));
    }
}

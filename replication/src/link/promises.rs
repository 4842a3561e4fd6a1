//! What is known to be complete, of every log.

use std::collections::{BTreeMap, VecDeque};

use meridian_clock::{LogId, Position, Promise, RegionId, Timestamp};
use meridian_points::{Bug, planted, reached};

// A promise whose prefix has not arrived yet waits here. Heartbeats come every 50 ms, so this is
// several seconds of them; beyond it the middle ones are thinned out, which only makes the
// watermark move in larger steps.
const WAITING_MAX: usize = 128;

#[derive(Debug, Default)]
struct Log {
    durable: Position,
    fulfilled: Option<Promise>,
    // Rising in both timestamp and position; all with positions above `durable`.
    waiting: VecDeque<Promise>,
}

/// The newest promise of each log whose prefix is on our disk, and those that still wait for theirs.
///
/// Only fulfilled ones are passed on to other peers, so that a relay never promises what it could
/// not deliver.
#[derive(Debug, Default)]
pub struct Promises(BTreeMap<LogId, Log>);

impl Promises {
    /// Takes in what a peer, or this node itself, says of a log. Old news changes nothing.
    pub fn handle_promise(&mut self, promise: Promise) {
        let log = self.0.entry(promise.log).or_default();
        let newest = log.waiting.back().or(log.fulfilled.as_ref());
        if newest.is_some_and(|newest| promise.timestamp <= newest.timestamp) {
            return;
        }
        if promise.position <= log.durable || planted(Bug::PromiseUnheld) {
            // It overtakes all that wait: they are older and so ask for no more than it does,
            // unless the peer contradicts itself, and then the newer word counts.
            log.waiting.clear();
            log.fulfilled = Some(promise);
            return;
        }
        if log.waiting.len() == WAITING_MAX {
            let mut index = 0;
            log.waiting.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
        reached("a promise waited for its prefix");
        log.waiting.push_back(promise);
    }

    /// Takes note that `log` is on our disk up to `position`.
    pub fn handle_durable(&mut self, log: LogId, position: Position) {
        let log = self.0.entry(log).or_default();
        log.durable = log.durable.max(position);
        while let Some(promise) = log.waiting.front()
            && promise.position <= log.durable
        {
            log.fulfilled = log.waiting.pop_front();
        }
    }

    /// Drops what still waits for its prefix of `origin`'s logs. The origin may be coming back without
    /// what it had promised, and give the same positions to other events: it will promise anew.
    pub fn forget_waiting(&mut self, origin: RegionId) {
        for (log, state) in &mut self.0 {
            if log.origin == origin {
                state.waiting.clear();
            }
        }
    }

    /// The newest fulfilled promise of `log`.
    pub fn get(&self, log: LogId) -> Option<Promise> {
        self.0.get(&log)?.fulfilled
    }

    /// The newest fulfilled promises, by log.
    pub fn fulfilled(&self) -> BTreeMap<LogId, Promise> {
        self.0
            .iter()
            .filter_map(|(log, state)| Some((*log, state.fulfilled?)))
            .collect()
    }

    /// The logs whose newest promise waits for its prefix: what is held, and what it asks for.
    pub fn waiting(&self) -> impl Iterator<Item = (Position, Promise)> + '_ {
        let waits = |log: &Log| Some((log.durable, *log.waiting.back()?));
        self.0.values().filter_map(waits)
    }

    /// The newest timestamp that anyone promised for `log`, fulfilled here or not.
    pub fn newest(&self, log: LogId) -> Timestamp {
        let newest = |log: &Log| Some(log.waiting.back().or(log.fulfilled.as_ref())?.timestamp);
        self.0.get(&log).and_then(newest).unwrap_or(Timestamp::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use meridian_clock::PartitionId;
    use proptest::prelude::*;

    use super::*;

    fn log() -> LogId {
        LogId::new(RegionId(1), PartitionId(0))
    }

    fn promise(timestamp: u64, position: u64) -> Promise {
        Promise {
            log: log(),
            timestamp: Timestamp(timestamp),
            position: Position(position),
        }
    }

    #[test]
    fn a_promise_counts_only_once_its_prefix_is_durable() {
        let mut promises = Promises::default();
        promises.handle_promise(promise(10, 2));
        assert_eq!(promises.get(log()), None);
        promises.handle_durable(log(), Position(1));
        assert_eq!(promises.get(log()), None);
        promises.handle_durable(log(), Position(2));
        assert_eq!(promises.get(log()), Some(promise(10, 2)));
    }

    #[test]
    fn a_newer_promise_that_must_wait_does_not_hide_one_that_holds() {
        let mut promises = Promises::default();
        promises.handle_durable(log(), Position(5));
        promises.handle_promise(promise(10, 5));
        promises.handle_promise(promise(20, 9));
        assert_eq!(promises.get(log()), Some(promise(10, 5)));
        assert_eq!(promises.newest(log()), Timestamp(20));
    }

    #[test]
    fn what_an_origin_promised_before_it_was_lost_is_not_held_against_what_comes_after() {
        let mut promises = Promises::default();
        promises.handle_promise(promise(10, 2));
        promises.forget_waiting(RegionId(1));
        promises.handle_durable(log(), Position(2));
        assert_eq!(promises.get(log()), None);
    }

    #[test]
    fn an_old_promise_over_a_relay_takes_nothing_back() {
        let mut promises = Promises::default();
        promises.handle_durable(log(), Position(5));
        promises.handle_promise(promise(20, 5));
        promises.handle_promise(promise(10, 5));
        assert_eq!(promises.get(log()), Some(promise(20, 5)));
    }

    proptest! {
        #[test]
        fn what_is_fulfilled_is_held_and_never_goes_back(
            steps in prop::collection::vec((any::<bool>(), 0u64..5, 0u64..5), 1..400),
        ) {
            let mut promises = Promises::default();
            let (mut timestamp, mut position, mut durable) = (0, 0, 0);
            let mut last = Timestamp::ZERO;
            for (is_promise, a, b) in steps {
                if is_promise {
                    timestamp += a;
                    position += b;
                    promises.handle_promise(promise(timestamp, position));
                } else {
                    durable = (durable + a).min(position);
                    promises.handle_durable(log(), Position(durable));
                }
                if let Some(held) = promises.get(log()) {
                    prop_assert!(held.position.0 <= durable);
                    prop_assert!(held.timestamp >= last);
                    last = held.timestamp;
                }
                prop_assert!(promises.0[&log()].waiting.len() <= WAITING_MAX);
            }
            // Once all has arrived, the newest promise holds.
            promises.handle_durable(log(), Position(position));
            if timestamp > 0 {
                prop_assert_eq!(promises.get(log()).map(|held| held.timestamp), Some(promises.newest(log())));
            }
        }
    }
}

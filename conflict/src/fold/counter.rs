//! Counters, after Shapiro et al., "A comprehensive study of Convergent and Commutative Replicated Data Types" (2011).
//!
//! `crdts` keeps one running sum per actor. Its own totals are big integers that are added up at each read, so the
//! total is kept beside it.

use crdts::pncounter::{Dir, Op};
use crdts::{CmRDT, Dot, GCounter, PNCounter};
use serde_json::Value;

use super::dot::{Actor, Seen};

/// What a counter takes in memory, before its actors.
const BYTES: usize = 64;
const ACTOR_BYTES: usize = 24;

/// A counter that only grows. Shows 2⁶⁴ − 1 where concurrent additions went beyond.
#[derive(Debug, Default)]
pub(super) struct Growing {
    sums: GCounter<Actor>,
    // Each actor's sum stops at 2^64 - 1, whatever comes, so this has room for the sums of 2^64 actors.
    total: u128,
    actors: usize,
}

impl Growing {
    pub(super) fn add(&mut self, actor: Actor, by: u64) {
        let before = self.sum(actor);
        let after = before.saturating_add(by);
        self.sums.apply(Dot::new(actor, after));
        self.total += u128::from(after - before);
        self.actors += usize::from(before == 0 && after > 0);
    }

    /// What adding `by` would make of it, unless there is no room.
    pub(super) fn room_for(&self, by: u64) -> bool {
        self.total + u128::from(by) <= u128::from(u64::MAX)
    }

    pub(super) fn total(&self) -> u64 {
        u64::try_from(self.total).unwrap_or(u64::MAX)
    }

    pub(super) fn value(&self) -> Value {
        self.total().into()
    }

    pub(super) fn bytes(&self) -> usize {
        BYTES + self.actors * ACTOR_BYTES
    }

    /// The sum of each of the actors in `seen` that added anything.
    pub(super) fn image(&self, seen: &Seen) -> Vec<(Actor, u64)> {
        let sums = seen.iter().map(|dot| (dot.actor, self.sum(dot.actor)));
        sums.filter(|(_, sum)| *sum > 0).collect()
    }

    pub(super) fn of_image(sums: Vec<(Actor, u64)>) -> Self {
        let mut counter = Self::default();
        for (actor, sum) in sums {
            counter.add(actor, sum);
        }
        counter
    }

    fn sum(&self, actor: Actor) -> u64 {
        self.sums.inc_many(actor, 0).counter
    }
}

/// A counter that grows and shrinks. Shows the nearest `i64` where concurrent changes went beyond.
#[derive(Debug, Default)]
pub(super) struct Counter {
    sums: PNCounter<Actor>,
    total: i128,
    actors: usize,
}

impl Counter {
    pub(super) fn add(&mut self, actor: Actor, by: u64) {
        self.change(actor, Dir::Pos, by);
    }

    pub(super) fn subtract(&mut self, actor: Actor, by: u64) {
        self.change(actor, Dir::Neg, by);
    }

    pub(super) fn total(&self) -> i64 {
        clamped(self.total)
    }

    pub(super) fn room_for(&self, change: i128) -> bool {
        i64::try_from(self.total + change).is_ok()
    }

    pub(super) fn value(&self) -> Value {
        self.total().into()
    }

    pub(super) fn bytes(&self) -> usize {
        BYTES + self.actors * ACTOR_BYTES
    }

    /// What each of the actors in `seen` that changed anything added and subtracted.
    pub(super) fn image(&self, seen: &Seen) -> Vec<(Actor, u64, u64)> {
        let sums = seen.iter().map(|dot| {
            let (added, subtracted) = self.sums(dot.actor);
            (dot.actor, added, subtracted)
        });
        sums.filter(|(_, added, subtracted)| *added > 0 || *subtracted > 0)
            .collect()
    }

    pub(super) fn of_image(sums: Vec<(Actor, u64, u64)>) -> Self {
        let mut counter = Self::default();
        for (actor, added, subtracted) in sums {
            counter.add(actor, added);
            counter.subtract(actor, subtracted);
        }
        counter
    }

    fn change(&mut self, actor: Actor, dir: Dir, by: u64) {
        let (added, subtracted) = self.sums(actor);
        let (before, sign) = match dir {
            Dir::Pos => (added, 1),
            Dir::Neg => (subtracted, -1),
        };
        let after = before.saturating_add(by);
        let dot = Dot::new(actor, after);
        self.sums.apply(Op { dot, dir });
        self.total += sign * i128::from(after - before);
        self.actors += usize::from(added == 0 && subtracted == 0 && after > 0);
    }

    fn sums(&self, actor: Actor) -> (u64, u64) {
        let added = self.sums.inc_many(actor, 0).dot.counter;
        (added, self.sums.dec_many(actor, 0).dot.counter)
    }
}

/// The `i64` that is nearest to a total.
pub(super) fn clamped(total: i128) -> i64 {
    let bounded = total.clamp(i64::MIN.into(), i64::MAX.into());
    i64::try_from(bounded).expect("it was clamped to the range")
}

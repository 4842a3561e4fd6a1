//! Who wrote an operation, which of its operations it is, and what its writer had seen.

use std::fmt;

use meridian_clock::{Position, RegionId, Timestamp};
use serde::{Deserialize, Serialize};

/// One life of a region as a writer.
///
/// A region that was fenced and came back writes in a new generation, so that what it writes from then on is never
/// taken for what it had written when it was cut off. Ordered by region, then generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Actor {
    /// The region.
    pub region: RegionId,
    /// Which of its lives, from 0.
    pub generation: u32,
}

impl Actor {
    /// The writer `region` in its life `generation`.
    pub fn new(region: RegionId, generation: u32) -> Self {
        Self { region, generation }
    }

    /// Its operation number `counter`.
    pub fn dot(self, counter: u64) -> OpDot {
        OpDot {
            actor: self,
            counter,
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.region, self.generation)
    }
}

/// One operation's identity in its stream: 1, 2, 3… for each actor without a gap.
///
/// Given out by the sequencer, never by a client: two operations under one dot would be one here and the other
/// elsewhere. An operation that is written again after a fence keeps the dot that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpDot {
    /// Who wrote it.
    pub actor: Actor,
    /// Which of that actor's operations on this stream it is, from 1.
    pub counter: u64,
}

impl fmt::Display for OpDot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.actor, self.counter)
    }
}

/// A version vector of one stream: per actor, how many of its operations are included.
///
/// Sorted by actor; an actor that is not named stands at 0. There are as many entries as regions have written the
/// stream, so a sorted list is smaller and faster than a map.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seen(Vec<(Actor, u64)>);

impl Seen {
    /// How many of `actor`'s operations are included.
    pub fn get(&self, actor: Actor) -> u64 {
        match self.find(actor) {
            Ok(at) => self.0[at].1,
            Err(_) => 0,
        }
    }

    /// Whether the operation `dot` is included.
    pub fn contains(&self, dot: OpDot) -> bool {
        dot.counter <= self.get(dot.actor)
    }

    /// Whether all that `other` includes is included.
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|dot| self.contains(dot))
    }

    /// Includes `dot` and all that its actor wrote before; a step back is ignored. Returns whether anything moved.
    pub fn advance(&mut self, dot: OpDot) -> bool {
        if dot.counter == 0 {
            return false;
        }
        match self.find(dot.actor) {
            Ok(at) if self.0[at].1 < dot.counter => self.0[at].1 = dot.counter,
            Ok(_) => return false,
            Err(at) => self.0.insert(at, (dot.actor, dot.counter)),
        }
        true
    }

    /// Includes all that `other` includes.
    pub fn merge(&mut self, other: &Self) {
        for dot in other.iter() {
            self.advance(dot);
        }
    }

    /// The last included dot of each actor that is named, by actor.
    pub fn iter(&self) -> impl Iterator<Item = OpDot> + '_ {
        self.0.iter().map(|(actor, counter)| actor.dot(*counter))
    }

    /// Whether nothing is included.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many actors are named.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it is spelled as this type spells it: sorted, each actor once, no zeros.
    pub(super) fn is_canonical(&self) -> bool {
        self.0.iter().all(|(_, counter)| *counter > 0)
            && self.0.windows(2).all(|pair| pair[0].0 < pair[1].0)
    }

    /// Without what `other` includes.
    pub(super) fn beyond(&self, other: &Self) -> Self {
        let is_beyond = |dot: &OpDot| !other.contains(*dot);
        self.iter().filter(is_beyond).collect()
    }

    /// The last included dot of the first actor of which `other` does not include as much.
    pub(super) fn first_beyond(&self, other: &Self) -> Option<OpDot> {
        self.iter().find(|dot| !other.contains(*dot))
    }

    /// Drops each actor whose last included dot `other` includes. Returns whether nothing is left.
    pub(super) fn reset(&mut self, other: &Context<'_>) -> bool {
        self.0
            .retain(|(actor, counter)| !other.contains(actor.dot(*counter)));
        self.0.is_empty()
    }

    fn find(&self, actor: Actor) -> Result<usize, usize> {
        self.0.binary_search_by_key(&actor, |(actor, _)| *actor)
    }
}

impl FromIterator<OpDot> for Seen {
    fn from_iter<I: IntoIterator<Item = OpDot>>(dots: I) -> Self {
        let mut seen = Self::default();
        for dot in dots {
            seen.advance(dot);
        }
        seen
    }
}

/// What an operation had observed, as every fold reads it: what its writer had seen, and of its own actor exactly
/// what came before it.
///
/// The second half holds of every recorded operation anyway. It is enforced on reading, so that an operation that
/// claims to have seen itself cannot undo itself in one region and not in another.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    dot: OpDot,
    seen: &'a Seen,
}

impl<'a> Context<'a> {
    pub(super) fn new(dot: OpDot, seen: &'a Seen) -> Self {
        Self { dot, seen }
    }

    pub(super) fn dot(&self) -> OpDot {
        self.dot
    }

    pub(super) fn get(&self, actor: Actor) -> u64 {
        match actor == self.dot.actor {
            true => self.dot.counter - 1,
            false => self.seen.get(actor),
        }
    }

    pub(super) fn contains(&self, dot: OpDot) -> bool {
        dot.counter <= self.get(dot.actor)
    }

    /// As a vector of its own.
    pub(super) fn to_seen(self) -> Seen {
        let others = self.seen.iter().filter(|dot| dot.actor != self.dot.actor);
        let own = self.dot.actor.dot(self.dot.counter - 1);
        others.chain([own]).collect()
    }

    /// What it includes and `clock` does not: what was observed and has not come here yet. Nothing of the own actor, as
    /// an actor's operations come in order.
    pub(super) fn beyond(&self, clock: &Seen) -> Seen {
        let others = self.seen.iter().filter(|dot| dot.actor != self.dot.actor);
        others.filter(|dot| !clock.contains(*dot)).collect()
    }
}

/// When a write counts as made, and where: what the last writer wins by.
///
/// For an operation that was written again after a fence it is the *original* one, so that a write which was cut
/// off does not win over later ones just because it came home late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Marker {
    /// When its batch was first stamped.
    pub timestamp: Timestamp,
    /// The region that first wrote it.
    pub region: RegionId,
    /// Its first place in that region's origin log.
    pub position: Position,
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Actor = Actor {
        region: RegionId(1),
        generation: 0,
    };

    #[test]
    fn a_region_orders_its_lives() {
        let later = Actor::new(RegionId(1), 1);
        assert!(A < later && later < Actor::new(RegionId(2), 0));
    }

    #[test]
    fn a_vector_includes_all_up_to_a_dot() {
        let mut seen = Seen::default();
        assert!(seen.advance(A.dot(3)));
        assert!(!seen.advance(A.dot(2)));
        assert!(!seen.advance(Actor::new(RegionId(0), 0).dot(0)));
        assert!(seen.contains(A.dot(1)) && !seen.contains(A.dot(4)));
        assert_eq!((seen.len(), seen.is_canonical()), (1, true));
    }

    #[test]
    fn an_operation_has_seen_what_its_actor_wrote_before_it_and_not_itself() {
        let lies = Seen::from_iter([A.dot(9)]);
        let context = Context::new(A.dot(3), &lies);
        assert!(context.contains(A.dot(2)) && !context.contains(A.dot(3)));
        assert_eq!(context.to_seen(), Seen::from_iter([A.dot(2)]));
    }
}

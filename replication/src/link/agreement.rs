//! Whether regions that settled the same stretch of the order settled it to the same events.
//!
//! Each region chains a hash over the order keys of each partition as it settles them, and cuts the
//! chain at whole seconds of the timestamps, so that any two regions have cuts in common whenever
//! they look.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use meridian_clock::{PartitionId, RegionId, Timestamp};
use meridian_event::Chain;

use crate::frame::Agreed;

// Ten minutes of seconds that had events. A region that is further behind is compared once it has
// caught up: the chain covers everything before.
const CUTS_MAX: usize = 600;

/// Two regions settled different events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// The other region.
    pub peer: RegionId,
    /// What we came to.
    pub ours: Agreed,
    /// What the other region came to.
    pub theirs: Agreed,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, ours, theirs } = self;
        write!(
            out,
            "region {peer} settled {} events of partition {} up to {}, this node {}, or others; the \
             stable feed of the partition is stopped; run `meridian verify` in both regions",
            theirs.events, ours.partition, ours.through, ours.events
        )
    }
}

#[derive(Debug, Default)]
struct Partition {
    // Where we are: everything up to here is in the chain.
    through: Timestamp,
    // The chain after each second that had events; older ones may have been dropped.
    cuts: VecDeque<Agreed>,
    dropped: bool,
    // The first statement of each peer that lies ahead of us.
    ahead: BTreeMap<RegionId, Agreed>,
}

/// What one node and its peers have come to.
#[derive(Debug)]
pub struct Agreements {
    partitions: BTreeMap<PartitionId, Partition>,
}

/// The last moment of the whole second before the one that `at` lies in: cuts are made there.
pub fn cut_before(at: Timestamp) -> Timestamp {
    Timestamp((at.0 >> 32 << 32).saturating_sub(1))
}

impl Agreements {
    /// Nothing is settled yet.
    pub fn new(partitions: u16) -> Self {
        Self {
            partitions: (0..partitions)
                .map(|partition| (PartitionId(partition), Partition::default()))
                .collect(),
        }
    }

    /// We have chained everything of the partition up to `ours.through`, which is a cut. Every second
    /// that had events must be told of by itself, or a peer's cut between two of ours would be
    /// compared with the earlier one. Returns who said otherwise before us.
    pub fn handle_own(&mut self, ours: Agreed) -> Vec<Disagreement> {
        let Some(partition) = self.partitions.get_mut(&ours.partition) else {
            return Vec::new();
        };
        partition.through = partition.through.max(ours.through);
        let last = partition.cuts.back();
        if last.is_none_or(|last| last.events != ours.events) {
            partition.cuts.push_back(ours);
        }
        if partition.cuts.len() > CUTS_MAX {
            partition.cuts.pop_front();
            partition.dropped = true;
        }
        let through = partition.through;
        let mut reached = Vec::new();
        partition.ahead.retain(|peer, theirs| {
            let is_ahead = theirs.through > through;
            if !is_ahead {
                reached.push((*peer, *theirs));
            }
            is_ahead
        });
        reached
            .into_iter()
            .filter_map(|(peer, theirs)| partition.compare(peer, theirs))
            .collect()
    }

    /// An earlier life of this node had come to `earlier`; what lies before that is not compared any
    /// more, but for its being part of the chain.
    pub fn resume(&mut self, earlier: Agreed) {
        if let Some(partition) = self.partitions.get_mut(&earlier.partition) {
            partition.through = earlier.through;
            partition.cuts = [earlier].into();
            partition.dropped = true;
        }
    }

    /// A peer said what it came to. What lies ahead of us is kept until we get there.
    pub fn handle_peer(&mut self, peer: RegionId, theirs: Agreed) -> Option<Disagreement> {
        let partition = self.partitions.get_mut(&theirs.partition)?;
        if theirs.through > partition.through {
            partition.ahead.entry(peer).or_insert(theirs);
            return None;
        }
        partition.compare(peer, theirs)
    }

    /// `peer` cannot be reached any more. What it said of places ahead of us is dropped: it may come
    /// back without its disk, and with it lose what nobody else held.
    pub fn forget(&mut self, peer: RegionId) {
        for partition in self.partitions.values_mut() {
            partition.ahead.remove(&peer);
        }
    }

    /// What any peer said of places ahead of us is dropped: each will say where it is once more.
    pub fn forget_all(&mut self) {
        for partition in self.partitions.values_mut() {
            partition.ahead.clear();
        }
    }

    /// What to tell peers.
    pub fn said(&self) -> Vec<Agreed> {
        self.partitions
            .iter()
            .filter_map(|(id, state)| state.at(*id, state.through))
            .collect()
    }
}

impl Partition {
    // What we had come to at the cut `through`; `None` when that is not known any more.
    fn at(&self, partition: PartitionId, through: Timestamp) -> Option<Agreed> {
        let count = self.cuts.partition_point(|cut| cut.through <= through);
        match count.checked_sub(1).and_then(|last| self.cuts.get(last)) {
            Some(cut) => Some(Agreed { through, ..*cut }),
            None if self.dropped => None,
            None => Some(Agreed {
                partition,
                through,
                events: 0,
                chain: Chain::EMPTY,
            }),
        }
    }

    fn compare(&self, peer: RegionId, theirs: Agreed) -> Option<Disagreement> {
        let ours = self.at(theirs.partition, theirs.through)?;
        (ours != theirs).then_some(Disagreement { peer, ours, theirs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: RegionId = RegionId(2);

    fn cut(second: u64, events: u64, hash: u8) -> Agreed {
        Agreed {
            partition: PartitionId(0),
            through: Timestamp(((second + 1) << 32) - 1),
            events,
            chain: Chain([hash; 32]),
        }
    }

    #[test]
    fn equal_stretches_agree_whoever_gets_there_first() {
        let mut agreements = Agreements::new(1);
        assert_eq!(agreements.handle_peer(B, cut(5, 3, 1)), None);
        assert_eq!(agreements.handle_own(cut(4, 3, 1)), []);
        assert_eq!(agreements.handle_own(cut(9, 3, 1)), []);
        assert_eq!(agreements.handle_peer(B, cut(8, 3, 1)), None);
        assert_eq!(agreements.said(), [cut(9, 3, 1)]);
    }

    #[test]
    fn a_difference_shows_whoever_gets_there_first() {
        let mut agreements = Agreements::new(1);
        agreements.handle_peer(B, cut(5, 3, 1));
        let found = agreements.handle_own(cut(5, 3, 2));
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].ours, found[0].theirs),
            (cut(5, 3, 2), cut(5, 3, 1))
        );
        assert!(agreements.handle_peer(B, cut(4, 1, 1)).is_some());
        assert!(agreements.handle_peer(B, cut(4, 0, 0)).is_none());
    }

    #[test]
    fn a_difference_long_ago_shows_as_soon_as_both_are_anywhere_together() {
        let mut agreements = Agreements::new(1);
        for second in 0..10_000 {
            agreements.handle_own(cut(second, second + 1, 7));
        }
        // Too long ago to be compared; the chain after it is.
        assert_eq!(agreements.handle_peer(B, cut(17, 17, 9)), None);
        assert!(agreements.handle_peer(B, cut(9_990, 9_990, 9)).is_some());
    }

    #[test]
    fn a_peer_far_ahead_is_met_at_its_first_statement() {
        let mut agreements = Agreements::new(1);
        for second in 100..200 {
            agreements.handle_peer(B, cut(second, second, 3));
        }
        assert_eq!(agreements.handle_own(cut(99, 99, 3)), []);
        assert_eq!(agreements.handle_own(cut(100, 101, 3)).len(), 1);
    }

    #[test]
    fn after_a_restart_only_what_comes_then_is_compared() {
        let mut agreements = Agreements::new(1);
        agreements.resume(cut(50, 7, 3));
        assert_eq!(agreements.handle_peer(B, cut(49, 2, 9)), None);
        assert_eq!(agreements.handle_peer(B, cut(50, 7, 3)), None);
        assert!(agreements.handle_peer(B, cut(50, 7, 4)).is_some());
        assert_eq!(agreements.handle_own(cut(60, 8, 5)), []);
        assert!(agreements.handle_peer(B, cut(60, 8, 6)).is_some());
    }

    #[test]
    fn what_a_peer_said_before_it_was_lost_is_not_held_against_it() {
        let mut agreements = Agreements::new(1);
        agreements.handle_peer(B, cut(5, 9, 1));
        agreements.forget(B);
        assert_eq!(agreements.handle_own(cut(5, 3, 2)), []);
        assert_eq!(agreements.handle_peer(B, cut(5, 3, 2)), None);
    }

    #[test]
    fn cuts_are_at_the_ends_of_seconds() {
        assert_eq!(
            cut_before(Timestamp((7 << 32) + 12)),
            Timestamp((7 << 32) - 1)
        );
        assert_eq!(cut_before(Timestamp(7 << 32)), Timestamp((7 << 32) - 1));
        assert_eq!(cut_before(Timestamp::ZERO), Timestamp::ZERO);
    }
}

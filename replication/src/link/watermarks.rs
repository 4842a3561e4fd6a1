//! How far the one order is settled, and who holds it back.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_clock::{PartitionId, Promise, RegionId, Timestamp};
use meridian_points::{Bug, planted};

use super::Instant;
use crate::frame::Stable;

/// How far the order is settled, by partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// For each partition: nothing at or below this can still arrive here.
    pub stable: Vec<Timestamp>,
    /// For each partition: every member region has settled the order up to here.
    pub finals: Vec<Timestamp>,
}

impl Marks {
    /// The `stable` watermark over all partitions.
    pub fn stable(&self) -> Timestamp {
        self.stable.iter().copied().min().unwrap_or_default()
    }

    /// The `final` watermark over all partitions.
    pub fn finals(&self) -> Timestamp {
        self.finals.iter().copied().min().unwrap_or_default()
    }
}

/// A region's word on how far one partition is complete, and when it last rose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The region whose word it is.
    pub region: RegionId,
    /// What it says.
    pub through: Timestamp,
    /// How long ago it last rose.
    pub silent_for: Duration,
    /// It has not risen since this node started, so it may have been silent for longer.
    pub since_start: bool,
}

/// One partition's watermarks as they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionMarks {
    /// The partition.
    pub partition: PartitionId,
    /// Nothing at or below this can still arrive here.
    pub stable: Timestamp,
    /// The origin whose promise is the lowest.
    pub stable_held_by: Holder,
    /// Every member region has settled the order up to here.
    pub finals: Timestamp,
    /// The region whose `stable` is the lowest.
    pub finals_held_by: Holder,
    /// What every member promised of its own log, as far as that is held here.
    pub promised: Vec<Holder>,
    /// How far every member is known to have settled the order itself.
    pub reported: Vec<Holder>,
    /// Why neither rises any more, if somebody must look.
    pub stopped: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Word {
    through: Timestamp,
    rose_at: Instant,
}

impl Word {
    fn raise(&mut self, now: Instant, through: Timestamp) -> bool {
        let rises = through > self.through;
        if rises {
            *self = Self {
                through,
                rose_at: now,
            };
        }
        rises
    }
}

#[derive(Debug)]
struct Partition {
    // What each member promised of its log, as far as its prefix is held here.
    promised: BTreeMap<RegionId, Word>,
    // What each member last said of its own watermark; ours is kept up to date.
    reported: BTreeMap<RegionId, Word>,
    stable: Timestamp,
    finals: Timestamp,
    stopped: Option<String>,
}

/// The watermarks of one node.
///
/// `stable` is the lowest of the members' fulfilled promises, `final` the lowest of the members'
/// `stable`. No timer takes a silent member out of either minimum: they stall and say for whom.
#[derive(Debug)]
pub struct Watermarks {
    me: RegionId,
    started: Instant,
    partitions: Vec<Partition>,
}

impl Watermarks {
    /// The watermarks of region `me` in a federation of `regions`, `me` among them.
    ///
    /// # Panics
    /// When `me` is not one of `regions`.
    pub fn new(
        me: RegionId,
        regions: impl IntoIterator<Item = RegionId>,
        partitions: u16,
        now: Instant,
    ) -> Self {
        let silent = Word {
            through: Timestamp::ZERO,
            rose_at: now,
        };
        let words: BTreeMap<_, _> = regions.into_iter().map(|it| (it, silent)).collect();
        assert!(words.contains_key(&me), "region {me} is not a member");
        let partition = || Partition {
            promised: words.clone(),
            reported: words.clone(),
            stable: Timestamp::ZERO,
            finals: Timestamp::ZERO,
            stopped: None,
        };
        Self {
            me,
            started: now,
            partitions: (0..partitions).map(|_| partition()).collect(),
        }
    }

    /// Takes in promises whose prefix is held here. Returns whether a watermark rose.
    pub fn handle_fulfilled(
        &mut self,
        now: Instant,
        promises: impl IntoIterator<Item = Promise>,
    ) -> bool {
        let (me, mut rose) = (self.me, false);
        for promise in promises {
            let Some(partition) = self.partition_mut(promise.log.partition) else {
                continue;
            };
            if let Some(word) = partition.promised.get_mut(&promise.log.origin)
                && word.raise(now, promise.timestamp)
            {
                rose |= partition.settle(me, now);
            }
        }
        rose
    }

    /// Takes in what other regions said of their own watermarks. Returns whether ours rose.
    pub fn handle_settled(&mut self, now: Instant, said: &[Stable]) -> bool {
        let (me, mut rose) = (self.me, false);
        for stable in said {
            // Nobody tells us how far we are.
            if stable.region == me {
                continue;
            }
            let Some(partition) = self.partition_mut(stable.partition) else {
                continue;
            };
            if let Some(word) = partition.reported.get_mut(&stable.region)
                && word.raise(now, stable.through)
            {
                rose |= partition.settle(me, now);
            }
        }
        rose
    }

    /// Stops one partition's watermarks where they are: regions disagree on what they have settled.
    pub fn stop(&mut self, partition: PartitionId, why: String) {
        if let Some(partition) = self.partition_mut(partition) {
            partition.stopped.get_or_insert(why);
        }
    }

    /// What to tell peers: our own `stable`, and what we heard of the other regions.
    pub fn said(&self) -> Vec<Stable> {
        self.numbered()
            .flat_map(|(partition, state)| {
                state.reported.iter().map(move |(region, word)| Stable {
                    region: *region,
                    partition,
                    through: word.through,
                })
            })
            .collect()
    }

    /// The watermarks alone.
    pub fn marks(&self) -> Marks {
        Marks {
            stable: self.partitions.iter().map(|it| it.stable).collect(),
            finals: self.partitions.iter().map(|it| it.finals).collect(),
        }
    }

    /// The watermarks of each partition, and who holds them back.
    pub fn partitions(&self, now: Instant) -> Vec<PartitionMarks> {
        self.numbered()
            .map(|(partition, state)| PartitionMarks {
                partition,
                stable: state.stable,
                stable_held_by: self.lowest(&state.promised, now),
                finals: state.finals,
                finals_held_by: self.lowest(&state.reported, now),
                promised: self.holders(&state.promised, now).collect(),
                reported: self.holders(&state.reported, now).collect(),
                stopped: state.stopped.clone(),
            })
            .collect()
    }

    fn holders(
        &self,
        words: &BTreeMap<RegionId, Word>,
        now: Instant,
    ) -> impl Iterator<Item = Holder> {
        words.iter().map(move |(region, word)| Holder {
            region: *region,
            through: word.through,
            silent_for: now.since(word.rose_at),
            since_start: word.rose_at <= self.started,
        })
    }

    fn lowest(&self, words: &BTreeMap<RegionId, Word>, now: Instant) -> Holder {
        let lowest = self.holders(words, now).min_by_key(|word| word.through);
        lowest.expect("a federation has at least one member")
    }

    fn numbered(&self) -> impl Iterator<Item = (PartitionId, &Partition)> {
        (0..).map(PartitionId).zip(&self.partitions)
    }

    fn partition_mut(&mut self, partition: PartitionId) -> Option<&mut Partition> {
        self.partitions.get_mut(usize::from(partition.0))
    }
}

impl Partition {
    // Recomputes both watermarks; returns whether one rose.
    fn settle(&mut self, me: RegionId, now: Instant) -> bool {
        if self.stopped.is_some() {
            return false;
        }
        let before = (self.stable, self.finals);
        // Words only rise, and so do their minima.
        self.stable = minimum(&self.promised, now);
        if let Some(own) = self.reported.get_mut(&me) {
            own.raise(now, self.stable);
        }
        self.finals = minimum(&self.reported, now);
        assert!(
            before.0 <= self.stable && before.1 <= self.finals,
            "watermark: it went back: {self:?}"
        );
        assert!(
            self.finals <= self.stable,
            "watermark: final is ahead of stable: {self:?}"
        );
        before != (self.stable, self.finals)
    }
}

fn minimum(words: &BTreeMap<RegionId, Word>, now: Instant) -> Timestamp {
    let counts = |word: &&Word| {
        !planted(Bug::TimeOutSilent) || now.since(word.rose_at) < Duration::from_secs(2)
    };
    words
        .values()
        .filter(counts)
        .map(|word| word.through)
        .min()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use meridian_clock::{LogId, Position};
    use proptest::prelude::*;

    use super::*;

    const A: RegionId = RegionId(1);
    const B: RegionId = RegionId(2);
    const C: RegionId = RegionId(3);

    fn at(millis: u64) -> Instant {
        Instant(Duration::from_millis(millis))
    }

    fn watermarks(partitions: u16) -> Watermarks {
        Watermarks::new(A, [A, B, C], partitions, at(0))
    }

    fn promise(origin: RegionId, partition: u16, through: u64) -> Promise {
        Promise {
            log: LogId::new(origin, PartitionId(partition)),
            timestamp: Timestamp(through),
            position: Position::ZERO,
        }
    }

    fn said(region: RegionId, partition: u16, through: u64) -> Stable {
        Stable {
            region,
            partition: PartitionId(partition),
            through: Timestamp(through),
        }
    }

    #[test]
    fn stable_is_the_lowest_promise_and_final_the_lowest_stable() {
        let mut marks = watermarks(1);
        let promises = [promise(A, 0, 30), promise(B, 0, 20), promise(C, 0, 40)];
        assert!(marks.handle_fulfilled(at(1), promises));
        assert_eq!(marks.marks().stable(), Timestamp(20));
        assert_eq!(marks.marks().finals(), Timestamp::ZERO);
        assert!(marks.handle_settled(at(2), &[said(B, 0, 10), said(C, 0, 90)]));
        assert_eq!(marks.marks().finals(), Timestamp(10));
    }

    #[test]
    fn a_silent_member_holds_both_back_for_good_and_is_named() {
        let mut marks = watermarks(1);
        marks.handle_fulfilled(
            at(0),
            [promise(A, 0, 5), promise(B, 0, 5), promise(C, 0, 5)],
        );
        marks.handle_settled(at(0), &[said(B, 0, 5), said(C, 0, 5)]);
        for round in 1..1000 {
            let through = 5 + round;
            marks.handle_fulfilled(
                at(round * 1000),
                [promise(A, 0, through), promise(B, 0, through)],
            );
            marks.handle_settled(at(round * 1000), &[said(B, 0, 5)]);
        }
        let now = at(1_000_000);
        let partition = &marks.partitions(now)[0];
        assert_eq!(
            (partition.stable, partition.finals),
            (Timestamp(5), Timestamp(5))
        );
        assert_eq!(partition.stable_held_by.region, C);
        assert_eq!(
            partition.stable_held_by.silent_for,
            Duration::from_secs(1000)
        );
    }

    #[test]
    fn a_word_is_as_old_as_its_last_rise_and_not_as_its_last_repetition() {
        let mut marks = watermarks(1);
        marks.handle_fulfilled(at(10), [promise(B, 0, 5)]);
        marks.handle_fulfilled(at(900), [promise(B, 0, 5), promise(B, 0, 4)]);
        let partition = &marks.partitions(at(1000))[0];
        let word = |region| {
            let word = partition.promised.iter().find(|it| it.region == region);
            word.map(|it| (it.through.0, it.silent_for.as_millis(), it.since_start))
        };
        assert_eq!(word(B), Some((5, 990, false)));
        // Not heard since the start, and who knows for how long before.
        assert_eq!(word(C), Some((0, 1000, true)));
    }

    #[test]
    fn the_node_is_as_settled_as_its_slowest_partition() {
        let mut marks = watermarks(2);
        for origin in [A, B, C] {
            marks.handle_fulfilled(at(0), [promise(origin, 0, 50), promise(origin, 1, 7)]);
        }
        assert_eq!(marks.marks().stable(), Timestamp(7));
    }

    #[test]
    fn nobody_tells_us_how_far_we_are() {
        let mut marks = watermarks(1);
        assert!(!marks.handle_settled(at(0), &[said(A, 0, 90), said(RegionId(9), 0, 90)]));
        let own = marks.said().into_iter().find(|stable| stable.region == A);
        assert_eq!(own, Some(said(A, 0, 0)));
    }

    #[test]
    fn a_stopped_partition_stays_where_it_is() {
        let mut marks = watermarks(2);
        for origin in [A, B, C] {
            marks.handle_fulfilled(at(0), [promise(origin, 0, 10), promise(origin, 1, 10)]);
        }
        marks.stop(PartitionId(0), "regions disagree".to_owned());
        for origin in [A, B, C] {
            marks.handle_fulfilled(at(1), [promise(origin, 0, 20), promise(origin, 1, 20)]);
        }
        assert_eq!(marks.marks().stable, [Timestamp(10), Timestamp(20)]);
    }

    #[test]
    fn what_a_third_region_settled_is_passed_on() {
        let mut relay = Watermarks::new(B, [A, B, C], 1, at(0));
        relay.handle_settled(at(0), &[said(C, 0, 12)]);
        let mut here = watermarks(1);
        here.handle_fulfilled(
            at(0),
            [promise(A, 0, 50), promise(B, 0, 50), promise(C, 0, 50)],
        );
        here.handle_settled(at(0), &[said(B, 0, 30)]);
        here.handle_settled(at(1), &relay.said());
        assert_eq!(here.marks().finals(), Timestamp(12));
    }

    proptest! {
        #[test]
        fn watermarks_only_rise_and_final_never_leads(
            steps in prop::collection::vec((any::<bool>(), 1u16..4, 0u16..2, 0u64..50), 0..200),
        ) {
            let mut marks = watermarks(2);
            let mut before = marks.marks();
            for (is_promise, region, partition, through) in steps {
                if is_promise {
                    marks.handle_fulfilled(at(0), [promise(RegionId(region), partition, through)]);
                } else {
                    marks.handle_settled(at(0), &[said(RegionId(region), partition, through)]);
                }
                let now = marks.marks();
                for index in 0..2 {
                    prop_assert!(before.stable[index] <= now.stable[index]);
                    prop_assert!(before.finals[index] <= now.finals[index]);
                    prop_assert!(now.finals[index] <= now.stable[index]);
                }
                before = now;
            }
        }
    }
}

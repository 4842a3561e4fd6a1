//! How far the one order is settled, and who holds it back.

use std::collections::{BTreeMap, BTreeSet};
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
    // The last decision on members that whoever said it had learnt.
    under: u64,
    rose_at: Instant,
}

impl Word {
    fn raise(&mut self, now: Instant, through: Timestamp, under: u64) -> bool {
        let rises = through > self.through;
        if rises {
            *self = Self {
                through,
                under,
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
    // The last decision on members that we have learnt.
    under: u64,
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
            under: 0,
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
            under: 0,
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
        let (me, under, mut rose) = (self.me, self.under, false);
        for promise in promises {
            let Some(partition) = self.partition_mut(promise.log.partition) else {
                continue;
            };
            if let Some(word) = partition.promised.get_mut(&promise.log.origin)
                && word.raise(now, promise.timestamp, 0)
            {
                rose |= partition.settle(me, under, now);
            }
        }
        rose
    }

    /// Takes in what other regions said of their own watermarks, and under which decision on members.
    /// Returns whether ours rose.
    pub fn handle_settled(&mut self, now: Instant, said: &[(Stable, u64)]) -> bool {
        let (me, ours, mut rose) = (self.me, self.under, false);
        for (stable, under) in said {
            // Nobody tells us how far we are. And who has learnt more than we have may not wait for a
            // region that we still wait for.
            if stable.region == me || (*under > ours && !planted(Bug::UntaggedWords)) {
                continue;
            }
            let Some(partition) = self.partition_mut(stable.partition) else {
                continue;
            };
            if let Some(word) = partition.reported.get_mut(&stable.region)
                && word.raise(now, stable.through, *under)
            {
                rose |= partition.settle(me, ours, now);
            }
        }
        rose
    }

    /// From here on the order waits for the regions `counted`, by the decision of number `version`. A region
    /// that is not among them any more holds nothing back; one that is new holds all where it is, until
    /// it says more. Returns whether a watermark rose.
    ///
    /// # Panics
    /// When nobody is counted.
    pub fn set_members(
        &mut self,
        now: Instant,
        version: u64,
        counted: &BTreeSet<RegionId>,
    ) -> bool {
        assert!(!counted.is_empty(), "somebody must settle the order");
        if version < self.under {
            return false;
        }
        self.under = version;
        let (me, mut rose) = (self.me, false);
        for partition in &mut self.partitions {
            let at = |through| Word {
                through,
                under: version,
                rose_at: now,
            };
            let (stable, finals) = (at(partition.stable), at(partition.finals));
            partition
                .promised
                .retain(|region, _| counted.contains(region));
            partition
                .reported
                .retain(|region, _| counted.contains(region));
            for region in counted {
                partition.promised.entry(*region).or_insert(stable);
                partition.reported.entry(*region).or_insert(finals);
            }
            rose |= partition.settle(me, version, now);
        }
        rose
    }

    /// The number of the last decision on who is waited for.
    pub fn under(&self) -> u64 {
        self.under
    }

    /// Stops all partitions' watermarks where they are.
    pub fn stop_all(&mut self, why: &str) {
        for partition in &mut self.partitions {
            partition.stopped.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Stops one partition's watermarks where they are: regions disagree on what they have settled.
    pub fn stop(&mut self, partition: PartitionId, why: String) {
        if let Some(partition) = self.partition_mut(partition) {
            partition.stopped.get_or_insert(why);
        }
    }

    /// What to tell peers: our own `stable`, and what we heard of the other regions, with the decision on
    /// members that each word was said under.
    pub fn said(&self) -> Vec<(Stable, u64)> {
        self.numbered()
            .flat_map(|(partition, state)| {
                state.reported.iter().map(move |(region, word)| {
                    let stable = Stable {
                        region: *region,
                        partition,
                        through: word.through,
                    };
                    (stable, word.under)
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
    fn settle(&mut self, me: RegionId, under: u64, now: Instant) -> bool {
        if self.stopped.is_some() {
            return false;
        }
        let before = (self.stable, self.finals);
        // Words only rise, and so do their minima.
        self.stable = minimum(&self.promised, now);
        if let Some(own) = self.reported.get_mut(&me) {
            own.raise(now, self.stable, under);
        }
        // A region that is not counted has no word among them.
        self.finals = minimum(&self.reported, now).min(self.stable);
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

    fn said(region: RegionId, partition: u16, through: u64) -> (Stable, u64) {
        let stable = Stable {
            region,
            partition: PartitionId(partition),
            through: Timestamp(through),
        };
        (stable, 0)
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
        let own = marks
            .said()
            .into_iter()
            .find(|(stable, _)| stable.region == A);
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
    fn a_region_that_is_out_holds_nothing_back_and_one_that_joins_holds_all_where_it_is() {
        let mut marks = watermarks(1);
        let promises = [promise(A, 0, 30), promise(B, 0, 30), promise(C, 0, 5)];
        marks.handle_fulfilled(at(0), promises);
        marks.handle_settled(at(0), &[said(B, 0, 20), said(C, 0, 5)]);
        assert_eq!(marks.marks().stable(), Timestamp(5));
        assert!(marks.set_members(at(1), 7, &BTreeSet::from([A, B])));
        assert_eq!(marks.marks().stable(), Timestamp(30));
        assert_eq!(marks.marks().finals(), Timestamp(20));
        // What was decided before changes nothing any more.
        assert!(!marks.set_members(at(2), 6, &BTreeSet::from([A, B, C])));

        assert!(!marks.set_members(at(3), 9, &BTreeSet::from([A, B, C])));
        marks.handle_fulfilled(at(4), [promise(A, 0, 90), promise(B, 0, 90)]);
        marks.handle_settled(at(4), &[said(B, 0, 80)]);
        assert_eq!(
            marks.marks().stable(),
            Timestamp(30),
            "C has promised nothing"
        );
        assert_eq!(marks.marks().finals(), Timestamp(20));
        marks.handle_fulfilled(at(5), [promise(C, 0, 95)]);
        assert_eq!(marks.marks().stable(), Timestamp(90));
    }

    #[test]
    fn a_word_of_who_waits_for_fewer_does_not_count_before_we_do_too() {
        let mut marks = watermarks(1);
        let promises = [promise(A, 0, 50), promise(B, 0, 50), promise(C, 0, 50)];
        marks.handle_fulfilled(at(0), promises);
        let under = |region, under| (said(region, 0, 40).0, under);
        assert!(!marks.handle_settled(at(1), &[under(B, 7), under(C, 7)]));
        assert_eq!(marks.marks().finals(), Timestamp::ZERO);
        marks.set_members(at(2), 7, &BTreeSet::from([A, B]));
        assert!(marks.handle_settled(at(3), &[under(B, 7)]));
        assert_eq!(marks.marks().finals(), Timestamp(40));
    }

    #[test]
    fn a_region_that_is_out_itself_follows_and_is_not_told_of() {
        let mut marks = watermarks(1);
        marks.set_members(at(0), 7, &BTreeSet::from([B, C]));
        marks.handle_fulfilled(at(1), [promise(B, 0, 30), promise(C, 0, 20)]);
        marks.handle_settled(at(1), &[said(B, 0, 90), said(C, 0, 90)]);
        assert_eq!(marks.marks().stable(), Timestamp(20));
        assert_eq!(
            marks.marks().finals(),
            Timestamp(20),
            "no further than is held"
        );
        assert!(marks.said().iter().all(|(stable, _)| stable.region != A));
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

//! Putting a lost region out of the federation, and taking it back.
//!
//! A fence goes through these steps, each of them a decision: it begins; every remaining region seals the
//! fenced logs and reports how far it holds them; the longest prefixes become the cuts; every remaining
//! region fills its copies up to the cuts; it opens. From then on the fenced region holds nothing back, and
//! whoever took its homes over writes. `sim/model` says why each step waits for the one before.
//!
//! A region comes back when it has stranded what it wrote beyond its cut: it joins, every member says how
//! far the order may be settled there, and it begins a new generation of its logs above all of that.

use std::collections::{BTreeMap, BTreeSet};

use meridian_clock::{Dot, Epoch, LogId, PartitionId, Position, RegionId, Timestamp};
use meridian_conflict::Route;
use meridian_store::Generations;
use serde::{Deserialize, Serialize};

use super::command::{Outcome, Refusal};
use super::federation::{Federation, Moved, Need};

/// How far something is held, by region and partition.
pub(crate) type Prefixes = BTreeMap<RegionId, Vec<Position>>;

/// One fence, from its beginning on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fence {
    /// The number of the change that began it.
    pub(crate) change: u64,
    /// Counts from 1; each eviction begins another, and voids what was said before.
    pub(crate) round: u32,
    /// The regions that it puts out, and the change that did.
    pub(crate) regions: BTreeMap<RegionId, u64>,
    /// The regions whose word it waits for.
    pub(crate) remaining: BTreeSet<RegionId>,
    /// How many members there were before.
    pub(crate) of: usize,
    /// How far those that have sealed hold the fenced logs.
    pub(crate) sealed: BTreeMap<RegionId, Prefixes>,
    /// How far the fenced logs count; empty before all have sealed.
    pub(crate) cuts: Prefixes,
    /// Those that hold all up to the cuts.
    pub(crate) filled: BTreeSet<RegionId>,
    /// Whether all do.
    pub(crate) opened: bool,
}

/// A region that is put out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Out {
    /// Whether it was drained before it was lost.
    pub(crate) was_drained: bool,
    /// The change by which it began to come back, if it did.
    pub(crate) joining: Option<u64>,
    /// What the members have shown in settled order at most, by who said so.
    pub(crate) welcomed: BTreeMap<RegionId, Timestamp>,
}

/// A region that has come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Returned {
    /// The change by which it is a member again.
    pub(crate) change: u64,
    /// It stamps above this.
    pub(crate) above: Timestamp,
    /// Whether it was drained before it was lost.
    pub(crate) was_drained: bool,
}

impl Federation {
    /// The members: all regions but those that are put out.
    pub(crate) fn members(&self) -> BTreeSet<RegionId> {
        let all = self.foundation.iter().flat_map(|it| it.members.keys());
        all.filter(|region| !self.out.contains_key(region))
            .copied()
            .collect()
    }

    /// The regions whose promises settled order waits for: the members, those that are put out and not
    /// yet done without, and those that are coming back.
    pub(crate) fn counted(&self) -> BTreeSet<RegionId> {
        let mut counted = self.members();
        for (region, out) in &self.out {
            let fence = self.fence_of(*region);
            let is_open = fence.is_some_and(|fence| fence.opened);
            if !is_open || out.joining.is_some() {
                counted.insert(*region);
            }
        }
        counted
    }

    /// The fence that is not open yet, if there is one.
    pub(crate) fn running_fence(&self) -> Option<&Fence> {
        self.fences.last().filter(|fence| !fence.opened)
    }

    /// The last fence that put `region` out.
    pub(crate) fn fence_of(&self, region: RegionId) -> Option<&Fence> {
        let mut fences = self.fences.iter().rev();
        fences.find(|fence| fence.regions.contains_key(&region))
    }

    /// The fence whose change `change` put `region` out.
    pub(crate) fn fence_by(&self, region: RegionId, change: u64) -> Option<&Fence> {
        let mut fences = self.fences.iter().rev();
        fences.find(|fence| fence.regions.get(&region) == Some(&change))
    }

    /// The first fence after `change` that put `region` out.
    pub(crate) fn fence_after(&self, region: RegionId, change: u64) -> Option<&Fence> {
        let mut fences = self.fences.iter();
        fences.find(|fence| fence.regions.get(&region).is_some_and(|it| *it > change))
    }

    /// Where the generations of `log` ended.
    pub(crate) fn generations(&self, log: LogId) -> Generations {
        let mut generations = Generations::default();
        for fence in &self.fences {
            if !fence.regions.contains_key(&log.origin) {
                continue;
            }
            match fence.cut(log) {
                Some(cut) => generations.cuts.push(cut),
                None => generations.sealed = true,
            }
        }
        generations
    }

    /// How much still counts of what whoever wrote the event at `at` held then: `log` to `position`. Where a fence took
    /// both back, those who remained may have had less of the one than of the other.
    pub(crate) fn still_counts(&self, log: LogId, position: Position, at: Dot) -> Position {
        let opened = || self.fences.iter().filter(|fence| fence.opened);
        let ends = |fence: &&Fence| fence.cut(at.log()).is_some_and(|cut| at.position <= cut);
        let Some(ended_by) = opened().find(ends).map(|fence| fence.change) else {
            // It is of a generation that goes on, and so had sealed with all who remained.
            return position;
        };
        let since = opened().filter(|fence| fence.change >= ended_by);
        since
            .filter_map(|fence| fence.cut(log))
            .fold(position, Position::min)
    }

    /// The epoch of what `region` writes in its logs now.
    pub(crate) fn log_epoch(&self, region: RegionId) -> Epoch {
        let fences = self.fences.iter();
        let times = fences.filter(|fence| fence.regions.contains_key(&region));
        let times = u32::try_from(times.count()).unwrap_or(u32::MAX);
        Epoch {
            major: Epoch::FIRST.major.saturating_add(times),
            ..Epoch::FIRST
        }
    }

    pub(super) fn fence(&mut self, region: RegionId, force: bool) -> Result<Outcome, Refusal> {
        self.member(region)?;
        let is_out = self.out.get(&region);
        if is_out.is_some_and(|out| out.joining.is_none()) {
            return Ok(Outcome::Unchanged);
        }
        if let Some(running) = self.running_fence() {
            return Err(Refusal::FenceRunning {
                change: running.change,
                waits_for: running.waits_for(),
            });
        }
        self.begin_fence(region, force)
    }

    // Puts `region` out as the first of a new fence; none is under way.
    pub(super) fn begin_fence(
        &mut self,
        region: RegionId,
        force: bool,
    ) -> Result<Outcome, Refusal> {
        let mut remaining = self.members();
        remaining.remove(&region);
        let of = remaining.len() + 1;
        Self::check_remain(remaining.len(), of, force)?;
        let change = self.version + 1;
        self.put_out(region, change)?;
        self.fences.push(Fence {
            change,
            round: 1,
            regions: BTreeMap::from([(region, change)]),
            remaining,
            of,
            sealed: BTreeMap::new(),
            cuts: BTreeMap::new(),
            filled: BTreeSet::new(),
            opened: false,
        });
        Ok(self.changed())
    }

    pub(super) fn evict(&mut self, region: RegionId, force: bool) -> Result<Outcome, Refusal> {
        self.member(region)?;
        let Some(running) = self.running_fence() else {
            return Err(Refusal::NoFence);
        };
        if running.regions.contains_key(&region) {
            return Ok(Outcome::Unchanged);
        }
        let remain = running.remaining.iter().filter(|it| **it != region).count();
        Self::check_remain(remain, running.of, force)?;
        let change = self.version + 1;
        self.put_out(region, change)?;
        if let Some(fence) = self.fences.last_mut() {
            fence.regions.insert(region, change);
            fence.remaining.remove(&region);
            fence.round += 1;
            fence.sealed.clear();
            fence.cuts.clear();
            fence.filled.clear();
        }
        Ok(self.changed())
    }

    // What a majority of the members held, one of those who remain must hold.
    pub(super) fn check_remain(remain: usize, of: usize, force: bool) -> Result<(), Refusal> {
        match remain > of / 2 || (force && remain > 0) {
            true => Ok(()),
            false => Err(Refusal::MinorityRemains { remain, of }),
        }
    }

    // Gives the homes of `region` to others.
    fn put_out(&mut self, region: RegionId, change: u64) -> Result<(), Refusal> {
        let mut drained = self.drained();
        let was_drained = !drained.insert(region);
        let mut members = self.members();
        members.remove(&region);
        let gainers = &members - &drained;
        if gainers.is_empty() {
            return Err(Refusal::LastRegion { region });
        }
        let (_, policies) = self.policies()?;
        let mut moves: BTreeMap<_, Moved> = BTreeMap::new();
        for (stream, moved) in &self.moved {
            let fenced: Need = (region, change);
            if moved.home == region {
                let (Some(seat), Route::Home(to)) = (
                    self.seat(&policies, stream),
                    policies.route_without(stream, &drained),
                ) else {
                    continue;
                };
                let mut needs = vec![fenced];
                needs.extend(seat.needs);
                let fenced_home = Moved {
                    home: to,
                    from: region,
                    change,
                    major: moved.major + 1,
                    minor: 0,
                    opened: false,
                    needs,
                    // Whoever was to give it to the lost region still has to give it up.
                    before: match moved.opened {
                        true => Vec::new(),
                        false => moved.before.clone(),
                    },
                };
                moves.insert(stream.clone(), fenced_home);
            } else if moved.from == region && !moved.opened {
                // It may have been lost before it gave the stream up: then its cut ends what it wrote.
                let mut needs = vec![fenced];
                needs.extend(&moved.before);
                let still_moving = Moved {
                    change,
                    major: moved.major + 1,
                    minor: 0,
                    needs,
                    before: Vec::new(),
                    ..moved.clone()
                };
                moves.insert(stream.clone(), still_moving);
            }
        }
        for rule in &mut self.rules {
            if rule.gainers.contains(&region) && !rule.opened.contains(&region) {
                rule.voided.insert(region);
            }
        }
        self.push_rule(drained, BTreeSet::from([region]), gainers, true);
        self.moved.append(&mut moves);
        for out in self.out.values_mut() {
            out.welcomed.remove(&region);
        }
        // A fence drains as well, which is no word of an operator's.
        let earlier = self.out.get(&region).map(|out| out.was_drained);
        let returned = self.returned.remove(&region);
        let was_drained = earlier
            .or(returned.map(|returned| returned.was_drained))
            .unwrap_or(was_drained);
        let out = Out {
            was_drained,
            ..Out::default()
        };
        self.out.insert(region, out);
        self.suspected.remove(&region);
        self.leaving.remove(&region);
        self.complete_joins();
        Ok(())
    }

    pub(super) fn seal(
        &mut self,
        change: u64,
        round: u32,
        by: RegionId,
        held: &Prefixes,
    ) -> Outcome {
        let partitions = self.foundation.as_ref().map_or(0, |it| it.partitions);
        let Some(fence) = self.fences.last_mut().filter(|it| it.is_at(change, round)) else {
            return Outcome::Unchanged;
        };
        let is_whole = fence.regions.keys().all(|region| {
            let positions = held.get(region);
            positions.is_some_and(|it| it.len() == usize::from(partitions))
        });
        let is_new = fence.remaining.contains(&by) && !fence.sealed.contains_key(&by);
        if !is_whole || !is_new {
            return Outcome::Unchanged;
        }
        fence.sealed.insert(by, held.clone());
        if fence.sealed.len() == fence.remaining.len() || fence.is_decided_early() {
            fence.decide_cuts();
        }
        self.changed()
    }

    pub(super) fn fill(&mut self, change: u64, round: u32, by: RegionId) -> Outcome {
        let Some(fence) = self.fences.last_mut().filter(|it| it.is_at(change, round)) else {
            return Outcome::Unchanged;
        };
        let is_meant = !fence.cuts.is_empty() && fence.remaining.contains(&by);
        if !is_meant || !fence.filled.insert(by) {
            return Outcome::Unchanged;
        }
        if fence.filled.len() == fence.remaining.len() {
            fence.opened = true;
            self.membership = self.version + 1;
        }
        self.changed()
    }

    pub(super) fn join(&mut self, region: RegionId) -> Result<Outcome, Refusal> {
        self.member(region)?;
        let change = self.version + 1;
        let is_open = self.fence_of(region).is_some_and(|fence| fence.opened);
        let Some(out) = self.out.get_mut(&region) else {
            return Ok(Outcome::Unchanged);
        };
        if let Some(running) = self.fences.last().filter(|it| !it.opened || !is_open) {
            return Err(Refusal::FenceRunning {
                change: running.change,
                waits_for: running.waits_for(),
            });
        }
        if out.joining.is_some() {
            return Ok(Outcome::Unchanged);
        }
        out.joining = Some(change);
        self.membership = change;
        Ok(self.changed())
    }

    pub(super) fn welcome(
        &mut self,
        region: RegionId,
        change: u64,
        by: RegionId,
        above: Timestamp,
    ) -> Outcome {
        let is_member = self.members().contains(&by);
        let Some(out) = self.out.get_mut(&region) else {
            return Outcome::Unchanged;
        };
        if out.joining != Some(change) || !is_member || out.welcomed.contains_key(&by) {
            return Outcome::Unchanged;
        }
        out.welcomed.insert(by, above);
        self.complete_joins();
        self.changed()
    }

    // Makes members of those whom all members have welcomed.
    fn complete_joins(&mut self) {
        let members = self.members();
        let change = self.version + 1;
        let is_welcome = |out: &Out| {
            let by = |member| out.welcomed.contains_key(member);
            out.joining.is_some() && members.iter().all(by)
        };
        let whole = self.out.iter().filter(|(_, out)| is_welcome(out));
        let whole: Vec<RegionId> = whole.map(|(region, _)| *region).collect();
        for region in whole {
            if let Some(out) = self.out.remove(&region) {
                let returned = Returned {
                    change,
                    above: out.welcomed.into_values().max().unwrap_or_default(),
                    was_drained: out.was_drained,
                };
                self.returned.insert(region, returned);
            }
        }
    }

    /// Region `by` does not hear those of `silent` any more. Whom a majority of the members does not hear is
    /// fenced; of three regions, that is all who would remain.
    pub(super) fn suspect(&mut self, by: RegionId, silent: &BTreeSet<RegionId>) -> Outcome {
        let members = self.members();
        if !members.contains(&by) {
            return Outcome::Unchanged;
        }
        let mut is_new = false;
        for region in &members {
            let by_whom = self.suspected.entry(*region).or_default();
            is_new |= match silent.contains(region) && *region != by {
                true => by_whom.insert(by),
                false => by_whom.remove(&by),
            };
        }
        self.suspected.retain(|_, by_whom| !by_whom.is_empty());
        if !is_new {
            return Outcome::Unchanged;
        }
        let lost = self.suspected.iter().find(|(region, by_whom)| {
            // What a suspect says of others counts no less: it may be they who are cut off.
            let voices = by_whom.intersection(&members).count();
            members.contains(region) && voices > members.len() / 2
        });
        if let Some((region, _)) = lost {
            let region = *region;
            let done = match self.running_fence() {
                Some(_) => self.evict(region, false),
                None => self.fence(region, false),
            };
            if let Ok(outcome) = done {
                return outcome;
            }
        }
        self.changed()
    }
}

impl Fence {
    /// Where `log` ends by it; `None` while that is not decided.
    pub(crate) fn cut(&self, log: LogId) -> Option<Position> {
        let cuts = self.cuts.get(&log.origin)?;
        cuts.get(usize::from(log.partition.0)).copied()
    }

    /// The logs that it ends, once it is decided where.
    pub(crate) fn cut_logs(&self) -> impl Iterator<Item = (LogId, Position)> + '_ {
        self.cuts.iter().flat_map(|(region, cuts)| {
            let numbered = (0..).map(PartitionId).zip(cuts);
            numbered.map(|(partition, cut)| (LogId::new(*region, partition), *cut))
        })
    }

    /// The regions that have still to do the next step.
    pub(crate) fn waits_for(&self) -> BTreeSet<RegionId> {
        let remaining = self.remaining.iter();
        match self.cuts.is_empty() {
            true => remaining
                .filter(|it| !self.sealed.contains_key(it))
                .copied()
                .collect(),
            false => remaining
                .filter(|it| !self.filled.contains(it))
                .copied()
                .collect(),
        }
    }

    fn is_at(&self, change: u64, round: u32) -> bool {
        self.change == change && self.round == round && !self.opened
    }

    fn is_decided_early(&self) -> bool {
        meridian_points::planted(meridian_points::Bug::SealByMajority)
            && self.cuts.is_empty()
            && self.sealed.len() > self.of / 2
    }

    // The longest prefix that anyone who remains holds.
    fn decide_cuts(&mut self) {
        for region in self.regions.keys() {
            let reports = self.sealed.values().filter_map(|held| held.get(region));
            let longest = reports.fold(Vec::new(), |mut longest: Vec<Position>, held| {
                longest.resize(held.len().max(longest.len()), Position::ZERO);
                for (most, position) in longest.iter_mut().zip(held) {
                    *most = (*most).max(*position);
                }
                longest
            });
            self.cuts.insert(*region, longest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use meridian_conflict::{CategoryPolicy, HomeRule, Mode, Policies};
    use meridian_event::StreamId;

    use super::super::command::{Command, Foundation};
    use super::super::federation::Seat;
    use super::*;

    const A: RegionId = RegionId(0);
    const B: RegionId = RegionId(1);
    const C: RegionId = RegionId(2);
    const D: RegionId = RegionId(3);
    const E: RegionId = RegionId(4);

    fn founded(regions: &[RegionId]) -> Federation {
        let mut federation = Federation::default();
        let policy = CategoryPolicy {
            mode: Mode::Home,
            home: HomeRule::Fixed(A),
        };
        let foundation = Foundation {
            members: regions.iter().map(|it| (*it, it.to_string())).collect(),
            partitions: 2,
            categories: BTreeMap::from([("order".to_owned(), policy)]),
        };
        federation.apply(&Command::Found(foundation));
        federation
    }

    fn held(regions: &[RegionId], positions: [u64; 2]) -> Prefixes {
        let positions: Vec<Position> = positions.into_iter().map(Position).collect();
        regions.iter().map(|it| (*it, positions.clone())).collect()
    }

    fn fence(region: RegionId) -> Command {
        Command::Fence {
            region,
            force: false,
        }
    }

    fn seal(federation: &mut Federation, by: RegionId, positions: [u64; 2]) -> Outcome {
        let running = federation.running_fence().expect("a fence runs");
        let regions: Vec<RegionId> = running.regions.keys().copied().collect();
        let sealed = Command::Sealed {
            fence: running.change,
            round: running.round,
            by,
            held: held(&regions, positions),
        };
        federation.apply(&sealed)
    }

    fn fill(federation: &mut Federation, by: RegionId) -> Outcome {
        let running = federation.running_fence().expect("a fence runs");
        let filled = Command::Filled {
            fence: running.change,
            round: running.round,
            by,
        };
        federation.apply(&filled)
    }

    // A is put out by B and C.
    fn without_a() -> Federation {
        let mut federation = founded(&[A, B, C]);
        assert_eq!(federation.apply(&fence(A)), Outcome::Changed(2));
        seal(&mut federation, B, [5, 0]);
        seal(&mut federation, C, [3, 4]);
        fill(&mut federation, B);
        fill(&mut federation, C);
        assert!(federation.running_fence().is_none());
        federation
    }

    fn seat(federation: &Federation, name: &str) -> Seat {
        let (_, policies): (_, Policies) = federation.policies().expect("it is founded");
        let name = StreamId::new(name).expect("a sound name");
        federation.seat(&policies, &name).expect("it has a home")
    }

    fn log(partition: u16) -> LogId {
        LogId::new(A, PartitionId(partition))
    }

    #[test]
    fn the_cut_is_the_longest_prefix_of_all_who_remain_and_it_opens_when_all_have_it() {
        let mut federation = founded(&[A, B, C]);
        federation.apply(&fence(A));
        assert_eq!(federation.members(), BTreeSet::from([B, C]));
        assert_eq!(federation.counted(), BTreeSet::from([A, B, C]));
        assert!(federation.generations(log(0)).sealed);
        seal(&mut federation, B, [5, 0]);
        // Who has spoken, or is not asked, changes nothing.
        assert_eq!(seal(&mut federation, B, [9, 9]), Outcome::Unchanged);
        assert_eq!(seal(&mut federation, A, [9, 9]), Outcome::Unchanged);
        assert!(
            federation
                .running_fence()
                .is_some_and(|it| it.cuts.is_empty())
        );
        assert_eq!(fill(&mut federation, B), Outcome::Unchanged);
        seal(&mut federation, C, [3, 4]);
        let generations = [0, 1].map(|partition| federation.generations(log(partition)).cuts);
        assert_eq!(generations, [[Position(5)], [Position(4)]]);
        fill(&mut federation, B);
        assert_eq!(federation.counted(), BTreeSet::from([A, B, C]));
        fill(&mut federation, C);
        assert_eq!(federation.counted(), BTreeSet::from([B, C]));
        assert_eq!(federation.membership, federation.version);
        assert_eq!(federation.log_epoch(A).major, Epoch::FIRST.major + 1);
    }

    #[test]
    fn a_lost_regions_streams_get_another_home_with_the_next_major_epoch() {
        let mut federation = founded(&[A, B, C]);
        federation.apply(&fence(A));
        let seat = seat(&federation, "order-1");
        assert_ne!(seat.home, A);
        assert_eq!((seat.epoch.major, seat.epoch.minor), (2, 0));
        assert_eq!(seat.needs, [(A, 2)]);
        assert!(federation.gives_up(A).is_empty(), "nobody waits for it");
    }

    #[test]
    fn an_eviction_voids_the_cut_and_what_was_reported() {
        let mut federation = founded(&[A, B, C, D, E]);
        federation.apply(&fence(A));
        for (by, most) in [(B, 5), (C, 3), (D, 9), (E, 1)] {
            seal(&mut federation, by, [most, 0]);
        }
        fill(&mut federation, B);
        // D alone had the cut.
        let evicted = federation.apply(&Command::Evict {
            region: D,
            force: false,
        });
        assert!(matches!(evicted, Outcome::Changed(_)), "{evicted:?}");
        let running = federation.running_fence().expect("it goes on");
        assert_eq!((running.round, running.sealed.len()), (2, 0));
        assert!(running.cuts.is_empty() && running.filled.is_empty());
        let early = Command::Sealed {
            fence: 2,
            round: 1,
            by: B,
            held: held(&[A], [5, 0]),
        };
        assert_eq!(federation.apply(&early), Outcome::Unchanged);
        for by in [B, C, E] {
            seal(&mut federation, by, [5, 0]);
        }
        assert_eq!(federation.generations(log(0)).cuts, [Position(5)]);
        let third = federation.apply(&Command::Evict {
            region: E,
            force: false,
        });
        let minority = Refusal::MinorityRemains { remain: 2, of: 5 };
        assert_eq!(third, Outcome::Refused(minority));
    }

    #[test]
    fn what_two_lost_regions_had_of_each_other_and_nobody_else_had_is_not_waited_for() {
        let mut federation = founded(&[A, B, C, D, E]);
        let by_b = |position| Dot {
            origin: B,
            partition: PartitionId(0),
            position: Position(position),
        };
        let counts = |federation: &Federation, position, at| {
            let position = federation.still_counts(log(0), Position(position), by_b(at));
            position.0
        };
        federation.apply(&fence(A));
        federation.apply(&Command::Evict {
            region: B,
            force: false,
        });
        // Of what B wrote all was held, and of what it had of A not all.
        for by in [C, D, E] {
            let mut held = held(&[A], [5, 0]);
            held.insert(B, vec![Position(8), Position(0)]);
            let (fence, round) = federation
                .running_fence()
                .map(|it| (it.change, it.round))
                .expect("a fence runs");
            federation.apply(&Command::Sealed {
                fence,
                round,
                by,
                held,
            });
        }
        // Another eviction could still change it.
        assert_eq!(counts(&federation, 7, 8), 7);
        for by in [C, D, E] {
            fill(&mut federation, by);
        }
        assert_eq!(counts(&federation, 7, 8), 5);
        assert_eq!(counts(&federation, 4, 8), 4);
        // What B writes once it is back rests on what A wrote once it was back.
        assert_eq!(counts(&federation, 7, 9), 7);
    }

    #[test]
    fn what_no_majority_would_survive_is_refused_unless_it_is_forced() {
        let mut federation = founded(&[A, B]);
        let before = federation.clone();
        let refused = federation.apply(&fence(A));
        let minority = Refusal::MinorityRemains { remain: 1, of: 2 };
        assert_eq!(refused, Outcome::Refused(minority));
        assert_eq!(federation, before);
        let forced = federation.apply(&Command::Fence {
            region: A,
            force: true,
        });
        assert_eq!(forced, Outcome::Changed(2));
    }

    #[test]
    fn only_one_fence_runs_at_a_time() {
        let mut federation = founded(&[A, B, C, D, E]);
        federation.apply(&fence(A));
        let before = federation.clone();
        assert_eq!(federation.apply(&fence(A)), Outcome::Unchanged);
        let second = federation.apply(&fence(B));
        assert!(
            matches!(
                second,
                Outcome::Refused(Refusal::FenceRunning { change: 2, .. })
            ),
            "{second:?}"
        );
        let unknown = federation.apply(&fence(RegionId(9)));
        assert!(matches!(
            unknown,
            Outcome::Refused(Refusal::UnknownRegion { .. })
        ));
        let join = federation.apply(&Command::Join { region: A });
        assert!(matches!(
            join,
            Outcome::Refused(Refusal::FenceRunning { .. })
        ));
        assert_eq!(federation, before);
    }

    #[test]
    fn a_region_is_a_member_again_once_all_have_welcomed_it_above_the_highest_answer() {
        let mut federation = without_a();
        assert_eq!(federation.apply(&fence(A)), Outcome::Unchanged);
        let Outcome::Changed(change) = federation.apply(&Command::Join { region: A }) else {
            panic!("it may join");
        };
        assert_eq!(federation.counted(), BTreeSet::from([A, B, C]));
        assert_eq!(federation.members(), BTreeSet::from([B, C]));
        let mut welcome = |by, above| {
            federation.apply(&Command::Welcomed {
                region: A,
                change,
                by,
                above: Timestamp(above),
            })
        };
        welcome(B, 70);
        assert_eq!(welcome(A, 99), Outcome::Unchanged);
        welcome(C, 60);
        assert_eq!(federation.members(), BTreeSet::from([A, B, C]));
        assert_eq!(federation.returned[&A].above, Timestamp(70));
        assert!(!federation.returned[&A].was_drained);
        // Its homes come back when it is told to take them.
        assert_ne!(seat(&federation, "order-1").home, A);
        for by in [B, C] {
            federation.apply(&Command::Opened { change: 2, by });
        }
        let resumed = federation.apply(&Command::Resume(A));
        assert!(matches!(resumed, Outcome::Changed(_)), "{resumed:?}");
        let back = seat(&federation, "order-1");
        assert_eq!((back.home, back.epoch.major, back.epoch.minor), (A, 2, 1));
    }

    #[test]
    fn a_second_loss_of_the_same_region_ends_another_generation() {
        let mut federation = without_a();
        let Outcome::Changed(change) = federation.apply(&Command::Join { region: A }) else {
            panic!("it may join");
        };
        // It is lost again before it was welcome, and nobody waits for its welcome any more.
        assert!(matches!(federation.apply(&fence(A)), Outcome::Changed(_)));
        let late = federation.apply(&Command::Welcomed {
            region: A,
            change,
            by: B,
            above: Timestamp(1),
        });
        assert_eq!(late, Outcome::Unchanged);
        assert!(federation.generations(log(0)).sealed);
        for by in [B, C] {
            seal(&mut federation, by, [5, 4]);
        }
        assert_eq!(
            federation.generations(log(0)).cuts,
            [Position(5), Position(5)]
        );
    }

    #[test]
    fn a_move_from_or_to_a_lost_region_ends_where_somebody_can_open_it() {
        let stream = StreamId::new("order-1").expect("a sound name");
        let moving = |to| Command::Move {
            streams: vec![stream.clone()],
            to,
        };
        // Lost before it gave the stream up: the new home waits for its cut instead.
        let mut from = founded(&[A, B, C]);
        from.apply(&moving(B));
        from.apply(&fence(A));
        let moved = &from.moved[&stream];
        assert_eq!((moved.home, moved.needs.as_slice()), (B, &[(A, 3)][..]));
        // Lost before it opened: whoever gave the stream up still does, and another one opens it.
        let mut to = founded(&[A, B, C]);
        to.apply(&moving(B));
        to.apply(&fence(B));
        let moved = &to.moved[&stream];
        assert_ne!(moved.home, B);
        assert_eq!(moved.needs, [(B, 3), (A, 2)]);
        let given_up = to.gives_up(A);
        assert!(
            given_up.keys().any(|(change, _)| *change == 2),
            "{given_up:?}"
        );
        assert_eq!(moved.epoch().major, 2);
    }

    #[test]
    fn a_drain_that_a_loss_interrupts_is_over_all_the_same() {
        let mut federation = founded(&[A, B, C]);
        federation.apply(&Command::Drain(A));
        federation.apply(&Command::Opened { change: 2, by: B });
        federation.apply(&fence(C));
        assert!(federation.rules[0].is_over());
        for name in 0..20 {
            let seat = seat(&federation, &format!("order-{name}"));
            assert_eq!(seat.home, B);
            // Where C was to be the home in between, it may not have held what A wrote.
            if seat.needs.len() > 1 {
                assert_eq!(seat.needs, [(C, 4), (A, 2)]);
            }
        }
        assert!(
            federation.gains(B)[&4]
                .needs
                .contains(&((A, 2), PartitionId(0)))
        );
    }

    #[test]
    fn a_region_that_a_majority_does_not_hear_is_fenced() {
        let mut federation = founded(&[A, B, C]);
        let suspect = |by, silent: &[RegionId]| Command::Suspect {
            by,
            silent: silent.iter().copied().collect(),
        };
        // Cut off itself, A suspects everybody; that is one voice.
        federation.apply(&suspect(A, &[B, C]));
        federation.apply(&suspect(B, &[A]));
        assert!(federation.running_fence().is_none());
        federation.apply(&suspect(B, &[]));
        federation.apply(&suspect(C, &[A]));
        assert!(federation.running_fence().is_none(), "B hears it again");
        federation.apply(&suspect(B, &[A]));
        let running = federation
            .running_fence()
            .expect("two of three do not hear it");
        assert_eq!(running.regions.keys().collect::<Vec<_>>(), [&A]);
        assert_eq!(federation.apply(&suspect(A, &[B, C])), Outcome::Unchanged);
    }
}

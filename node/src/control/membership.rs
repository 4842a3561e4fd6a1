//! Who belongs to the federation at all: regions that come in, and regions that leave for good.
//!
//! A region that no decision names yet is a *learner*: it holds whatever the others write, and nobody waits for
//! it. Admitted, it becomes a member as one does that comes back: every member says how far the order may
//! be settled there, and it stamps above all of that. It is home to nothing until it resumes.
//!
//! A region leaves in two steps. First it takes no more writes; then, once every other member holds whatever it
//! holds, it is fenced at the end of its logs, so that nothing of it strands. Its number and its name
//! are never given out again.

use std::collections::{BTreeMap, BTreeSet};

use meridian_clock::RegionId;

use super::command::{Outcome, Refusal};
use super::federation::{Federation, RuleChange};
use super::fence::Out;

/// A region that a configuration does not list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lacking {
    /// What to do about it.
    pub(crate) reason: String,
    /// It is only becoming a member, so nothing of it is missing yet.
    pub(crate) is_newcomer: bool,
}

impl Federation {
    /// Whether `region` was ever a member, or is becoming one. Before anything is decided everyone is.
    pub(crate) fn knows(&self, region: RegionId) -> bool {
        let foundation = self.foundation.as_ref();
        foundation.is_none_or(|it| it.members.contains_key(&region))
    }

    /// Whether `region` is becoming a member for the first time.
    pub(crate) fn is_newcomer(&self, region: RegionId) -> bool {
        self.out.contains_key(&region) && self.fence_of(region).is_none()
    }

    /// Whether the node of `region` votes on decisions: those of members do, and those of regions that were
    /// put out, which may come back.
    pub(crate) fn may_vote(&self, region: RegionId) -> bool {
        self.knows(region) && !self.left.contains(&region) && !self.is_newcomer(region)
    }

    /// The regions that have left, and that nobody waits for any more.
    pub(crate) fn gone(&self) -> BTreeSet<RegionId> {
        let is_open = |region: &&RegionId| self.fence_of(**region).is_some_and(|it| it.opened);
        self.left.iter().filter(is_open).copied().collect()
    }

    /// How many regions there are that vote on decisions; none before anything is decided.
    pub(crate) fn voting(&self) -> usize {
        let known = self.foundation.iter().flat_map(|it| it.members.keys());
        known.filter(|region| self.may_vote(**region)).count()
    }

    /// What a configuration that lists the regions `listed` lacks, in which case a node with it must not count
    /// on what it holds: the events of every region that ever was a member are in the logs. A region
    /// that is only becoming a member has none yet.
    pub(crate) fn lacking(&self, listed: &BTreeMap<RegionId, String>) -> Option<Lacking> {
        let known = self.foundation.iter().flat_map(|it| &it.members);
        let mut lacking = known.filter(|(region, name)| listed.get(region) != Some(name));
        let by_weight = |(region, _): &(&RegionId, &String)| self.is_newcomer(**region);
        let all: Vec<_> = lacking.by_ref().collect();
        let (region, name) = all.into_iter().min_by_key(by_weight)?;
        let (id, is_newcomer) = (region.0, self.is_newcomer(*region));
        let reason = match listed.get(region) {
            Some(found) => format!(
                "region number {id} is called {name:?} by the federation and {found:?} by this configuration; \
                 correct the name, and restart the node"
            ),
            None => format!(
                "this configuration lacks region {name:?}: add an entry to `members` with id = {id}, \
                 name = \"{name}\" and where it is reached, and restart the node; a region that has left keeps \
                 its entry, for its events are still here"
            ),
        };
        Some(Lacking {
            reason,
            is_newcomer,
        })
    }

    fn check_no_fence(&self) -> Result<(), Refusal> {
        match self.running_fence() {
            Some(running) => Err(Refusal::FenceRunning {
                change: running.change,
                waits_for: running.waits_for(),
            }),
            None => Ok(()),
        }
    }

    pub(super) fn admit(
        &mut self,
        region: RegionId,
        name: &str,
        partitions: u16,
    ) -> Result<Outcome, Refusal> {
        let foundation = self.foundation.as_ref().ok_or(Refusal::NotFounded)?;
        if let Some(known) = foundation.members.get(&region) {
            if self.left.contains(&region) {
                return Err(Refusal::Left { region });
            }
            if known != name {
                let name = known.clone();
                return Err(Refusal::IdUsed { region, name });
            }
            let out = self.out.get(&region);
            return match out.is_some_and(|out| out.joining.is_none()) {
                true => Err(Refusal::Fenced { region }),
                false => Ok(Outcome::Unchanged),
            };
        }
        let mut named = foundation.members.iter();
        if let Some((region, _)) = named.find(|(_, known)| *known == name) {
            return Err(Refusal::NameUsed {
                name: name.to_owned(),
                region: *region,
            });
        }
        if partitions != foundation.partitions {
            return Err(Refusal::OtherPartitions {
                found: partitions,
                expected: foundation.partitions,
            });
        }
        self.check_no_fence()?;
        let change = self.version + 1;
        if let Some(foundation) = &mut self.foundation {
            foundation.members.insert(region, name.to_owned());
        }
        self.admitted.insert(region);
        // It was never a home, by no rule; from here on it is one that is drained, and moves nothing.
        for rule in &mut self.rules {
            rule.drained.insert(region);
        }
        let mut drained = self.drained();
        drained.insert(region);
        self.push_rule(drained, BTreeSet::new(), BTreeSet::new(), false);
        let out = Out {
            joining: Some(change),
            ..Out::default()
        };
        self.out.insert(region, out);
        self.membership = change;
        Ok(self.changed())
    }

    pub(super) fn leave(&mut self, region: RegionId, force: bool) -> Result<Outcome, Refusal> {
        self.member(region)?;
        if let Some(out) = self.out.get(&region) {
            return Err(match out.joining {
                Some(_) => Refusal::Joining { region },
                None => Refusal::Fenced { region },
            });
        }
        if self.leaving.contains_key(&region) {
            return Ok(Outcome::Unchanged);
        }
        self.check_no_fence()?;
        if !self.drained().contains(&region) {
            return Err(Refusal::NotDrained { region });
        }
        if let Some(rule) = self.rules.iter().find(|rule| !RuleChange::is_over(rule)) {
            return Err(Refusal::Draining {
                change: rule.change,
            });
        }
        let mut moved = self.moved.iter().filter(|(_, moved)| !moved.opened);
        if let Some((stream, moved)) =
            moved.find(|(_, moved)| moved.from == region || moved.home == region)
        {
            return Err(Refusal::Moving {
                stream: stream.clone(),
                from: moved.from,
                to: moved.home,
            });
        }
        let of = self.members().len();
        Self::check_remain(of - 1, of, force)?;
        self.leaving.insert(region, force);
        Ok(self.changed())
    }

    pub(super) fn has_left(&mut self, region: RegionId) -> Result<Outcome, Refusal> {
        // It may have been fenced meanwhile; then it comes back, and leaves anew.
        let Some(force) = self.leaving.get(&region).copied() else {
            return Ok(Outcome::Unchanged);
        };
        self.check_no_fence()?;
        let outcome = self.begin_fence(region, force)?;
        self.left.insert(region);
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use meridian_clock::{LogId, PartitionId, Position, Timestamp};
    use meridian_event::StreamId;

    use super::super::command::{Command, Foundation};
    use super::*;

    const A: RegionId = RegionId(0);
    const B: RegionId = RegionId(1);
    const C: RegionId = RegionId(2);
    const D: RegionId = RegionId(3);

    fn founded(regions: &[RegionId]) -> Federation {
        let mut federation = Federation::default();
        let foundation = Foundation {
            members: regions
                .iter()
                .map(|it| (*it, format!("region-{it}")))
                .collect(),
            partitions: 2,
            categories: BTreeMap::new(),
        };
        federation.apply(&Command::Found(foundation));
        federation
    }

    fn admit(region: RegionId, name: &str) -> Command {
        Command::Admit {
            region,
            name: name.to_owned(),
            partitions: 2,
        }
    }

    fn leave(region: RegionId) -> Command {
        let force = false;
        Command::Leave { region, force }
    }

    fn changed(federation: &mut Federation, command: &Command) -> u64 {
        match federation.apply(command) {
            Outcome::Changed(change) => change,
            other => panic!("{command} changes nothing: {other:?}"),
        }
    }

    fn refused(federation: &mut Federation, command: &Command) -> Refusal {
        let before = federation.clone();
        let outcome = federation.apply(command);
        assert_eq!(*federation, before);
        match outcome {
            Outcome::Refused(refusal) => refusal,
            other => panic!("{command} was not refused: {other:?}"),
        }
    }

    // Whatever a change moves is opened where it goes.
    fn open(federation: &mut Federation) {
        for by in [A, B, C, D] {
            for change in federation.gains(by).into_keys() {
                federation.apply(&Command::Opened { change, by });
            }
        }
    }

    fn drained(federation: &mut Federation, region: RegionId) {
        changed(federation, &Command::Drain(region));
        open(federation);
    }

    fn homes(federation: &Federation) -> Vec<RegionId> {
        let (_, policies) = federation.policies().expect("it is founded");
        let names = (0..64).map(|it| StreamId::new(&format!("order-{it}")).expect("a sound name"));
        let seats = names.map(|name| federation.seat(&policies, &name));
        seats.map(|it| it.expect("it has a home").home).collect()
    }

    fn welcome_all(federation: &mut Federation, region: RegionId, change: u64) {
        for (by, above) in (10..).zip(federation.members()).map(|(at, by)| (by, at)) {
            let welcomed = Command::Welcomed {
                region,
                change,
                by,
                above: Timestamp(above),
            };
            federation.apply(&welcomed);
        }
    }

    // A and B seal, fill and open the fence that is under way, with C's logs at these positions.
    fn finish_fence(federation: &mut Federation, held: &[(RegionId, [u64; 2])]) {
        let running = federation.running_fence().expect("a fence runs").clone();
        let put_out: Vec<RegionId> = running.regions.keys().copied().collect();
        for (by, positions) in held {
            let positions: Vec<Position> = positions.iter().copied().map(Position).collect();
            let sealed = Command::Sealed {
                fence: running.change,
                round: running.round,
                by: *by,
                held: put_out.iter().map(|it| (*it, positions.clone())).collect(),
            };
            changed(federation, &sealed);
        }
        for (by, _) in held {
            let filled = Command::Filled {
                fence: running.change,
                round: running.round,
                by: *by,
            };
            changed(federation, &filled);
        }
    }

    fn without_c() -> Federation {
        let mut federation = founded(&[A, B, C]);
        drained(&mut federation, C);
        changed(&mut federation, &leave(C));
        changed(&mut federation, &Command::Left { region: C });
        finish_fence(&mut federation, &[(A, [5, 7]), (B, [5, 7])]);
        open(&mut federation);
        federation
    }

    #[test]
    fn an_admitted_region_moves_no_home_until_it_resumes() {
        let mut federation = founded(&[A, B, C]);
        drained(&mut federation, B);
        let before = homes(&federation);
        let change = changed(&mut federation, &admit(D, "region-3"));
        assert_eq!(homes(&federation), before);
        assert_eq!(federation.members(), BTreeSet::from([A, B, C]));
        assert_eq!(federation.counted(), BTreeSet::from([A, B, C, D]));
        assert!(!federation.may_vote(D));
        assert!(
            [A, B, C, D]
                .iter()
                .all(|it| federation.gains(*it).is_empty())
        );
        // Asking again changes nothing.
        let again = federation.apply(&admit(D, "region-3"));
        assert_eq!(again, Outcome::Unchanged);

        welcome_all(&mut federation, D, change);
        assert_eq!(federation.members(), BTreeSet::from([A, B, C, D]));
        assert_eq!(federation.returned[&D].above, Timestamp(12));
        assert!(!federation.returned[&D].was_drained);
        assert!(federation.may_vote(D));
        assert_eq!(homes(&federation), before);

        changed(&mut federation, &Command::Resume(D));
        let after = homes(&federation);
        assert!(after.contains(&D));
        let moved = before.iter().zip(&after);
        assert!(moved.filter(|(was, is)| was != is).all(|(_, is)| *is == D));
    }

    #[test]
    fn numbers_and_names_are_never_used_again() {
        let mut federation = without_c();
        let left = Refusal::Left { region: C };
        assert_eq!(refused(&mut federation, &admit(C, "region-2")), left);
        assert_eq!(refused(&mut federation, &admit(C, "other")), left);
        let used = Refusal::IdUsed {
            region: A,
            name: "region-0".to_owned(),
        };
        assert_eq!(refused(&mut federation, &admit(A, "other")), used);
        let named = Refusal::NameUsed {
            name: "region-2".to_owned(),
            region: C,
        };
        assert_eq!(refused(&mut federation, &admit(D, "region-2")), named);
        let partitions = Command::Admit {
            region: D,
            name: "region-3".to_owned(),
            partitions: 4,
        };
        let other = Refusal::OtherPartitions {
            found: 4,
            expected: 2,
        };
        assert_eq!(refused(&mut federation, &partitions), other);
        changed(&mut federation, &admit(D, "region-3"));
    }

    #[test]
    fn a_region_that_left_is_cut_where_its_logs_end_and_stays_out_for_good() {
        let mut federation = without_c();
        assert_eq!(federation.members(), BTreeSet::from([A, B]));
        assert_eq!(federation.counted(), BTreeSet::from([A, B]));
        let cuts = [0, 1].map(|it| federation.generations(LogId::new(C, PartitionId(it))).cuts);
        assert_eq!(cuts, [[Position(5)], [Position(7)]]);
        assert!(!federation.may_vote(C) && federation.may_vote(A));
        assert!(!homes(&federation).contains(&C));
        let left = Refusal::Left { region: C };
        for command in [
            Command::Join { region: C },
            Command::Resume(C),
            Command::Drain(C),
            leave(C),
            Command::Fence {
                region: C,
                force: false,
            },
        ] {
            assert_eq!(refused(&mut federation, &command), left);
        }
    }

    #[test]
    fn only_a_drained_member_leaves_and_only_if_a_majority_remains() {
        let mut federation = founded(&[A, B, C]);
        let not_drained = Refusal::NotDrained { region: C };
        assert_eq!(refused(&mut federation, &leave(C)), not_drained);
        let unknown = Refusal::UnknownRegion { region: D };
        assert_eq!(refused(&mut federation, &leave(D)), unknown);
        let change = changed(&mut federation, &Command::Drain(C));
        let draining = Refusal::Draining { change };
        assert_eq!(refused(&mut federation, &leave(C)), draining);
        open(&mut federation);
        assert_eq!(
            federation.apply(&Command::Left { region: C }),
            Outcome::Unchanged
        );
        changed(&mut federation, &leave(C));
        assert_eq!(federation.apply(&leave(C)), Outcome::Unchanged);
        let leaving = Refusal::Leaving { region: C };
        assert_eq!(refused(&mut federation, &Command::Resume(C)), leaving);

        let mut two = founded(&[A, B]);
        drained(&mut two, B);
        let minority = Refusal::MinorityRemains { remain: 1, of: 2 };
        assert_eq!(refused(&mut two, &leave(B)), minority);
        let forced = Command::Leave {
            region: B,
            force: true,
        };
        changed(&mut two, &forced);
        changed(&mut two, &Command::Left { region: B });
    }

    #[test]
    fn a_leaving_region_that_is_lost_is_fenced_and_may_come_back() {
        let mut federation = founded(&[A, B, C]);
        drained(&mut federation, C);
        changed(&mut federation, &leave(C));
        let fence = Command::Fence {
            region: C,
            force: false,
        };
        changed(&mut federation, &fence);
        assert!(federation.leaving.is_empty() && federation.left.is_empty());
        let late = federation.apply(&Command::Left { region: C });
        assert_eq!(late, Outcome::Unchanged);
        finish_fence(&mut federation, &[(A, [5, 7]), (B, [4, 7])]);
        let change = changed(&mut federation, &Command::Join { region: C });
        welcome_all(&mut federation, C, change);
        assert!(federation.returned[&C].was_drained);
    }

    #[test]
    fn a_newcomer_that_is_lost_before_it_was_welcome_is_fenced_like_any_other() {
        let mut federation = founded(&[A, B, C]);
        let change = changed(&mut federation, &admit(D, "region-3"));
        let joining = Refusal::Joining { region: D };
        assert_eq!(refused(&mut federation, &leave(D)), joining);
        let fence = Command::Fence {
            region: D,
            force: false,
        };
        changed(&mut federation, &fence);
        welcome_all(&mut federation, D, change);
        assert!(!federation.members().contains(&D));
        finish_fence(&mut federation, &[(A, [0, 0]), (B, [0, 0]), (C, [0, 0])]);
        assert_eq!(federation.counted(), BTreeSet::from([A, B, C]));
        let fenced = Refusal::Fenced { region: D };
        assert_eq!(refused(&mut federation, &admit(D, "region-3")), fenced);
        changed(&mut federation, &Command::Join { region: D });
    }

    #[test]
    fn a_configuration_lists_whoever_was_ever_a_member() {
        let mut federation = without_c();
        let listed = |of: &[(RegionId, &str)]| {
            let listed = of
                .iter()
                .map(|(region, name)| (*region, (*name).to_owned()));
            listed.collect::<BTreeMap<_, _>>()
        };
        let whole = [
            (A, "region-0"),
            (B, "region-1"),
            (C, "region-2"),
            (D, "region-3"),
        ];
        assert_eq!(federation.lacking(&listed(&whole)), None);
        assert_eq!(federation.lacking(&listed(&whole[..3])), None);
        let without_c = federation
            .lacking(&listed(&whole[..2]))
            .expect("it lacks C");
        assert!(
            without_c.reason.contains("id = 2, name = \"region-2\""),
            "{without_c:?}"
        );
        assert!(!without_c.is_newcomer);
        changed(&mut federation, &admit(D, "region-3"));
        let lacking = federation.lacking(&listed(&whole[..3]));
        assert!(lacking.is_some_and(|it| it.is_newcomer));
        // Whose events may be missing is named first.
        let lacking = federation.lacking(&listed(&whole[..2]));
        assert!(lacking.is_some_and(|it| !it.is_newcomer));
        let renamed = [
            (A, "region-0"),
            (B, "other"),
            (C, "region-2"),
            (D, "region-3"),
        ];
        let lacking = federation
            .lacking(&listed(&renamed))
            .expect("B has another name");
        assert!(lacking.reason.contains("\"other\""), "{lacking:?}");
    }

    #[test]
    fn nobody_is_admitted_and_nobody_leaves_while_a_fence_runs() {
        let mut federation = founded(&[A, B, C]);
        drained(&mut federation, B);
        let fence = Command::Fence {
            region: C,
            force: false,
        };
        changed(&mut federation, &fence);
        for command in [admit(D, "region-3"), leave(B)] {
            let refusal = refused(&mut federation, &command);
            assert!(matches!(refusal, Refusal::FenceRunning { .. }), "{refusal}");
        }
    }
}

//! What the federation has decided: who its members are, and which region is home to streams that
//! were moved.
//!
//! A pure state machine. Every region applies the same commands in the same order, so every region
//! comes to the same state; a command that is refused changes nothing, in every region alike.

use std::collections::{BTreeMap, BTreeSet};

use meridian_clock::{Epoch, PartitionId, RegionId};
use meridian_conflict::{HomeRule, Mode, Policies, Route};
use meridian_event::StreamId;
use serde::{Deserialize, Serialize};

use super::category::Setting;
use super::command::{Command, Foundation, MOVES_MAX, Outcome, Refusal};
use super::fence::{Fence, Out, Returned};

/// The last move of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moved {
    /// Its home since.
    pub(crate) home: RegionId,
    /// Its home before.
    pub(crate) from: RegionId,
    /// The number of the change that moved it.
    pub(crate) change: u64,
    /// How often it was taken from a home that was lost, plus one.
    pub(crate) major: u32,
    /// How often it was moved since.
    pub(crate) minor: u32,
    /// Whether the new home has opened.
    pub(crate) opened: bool,
    /// The transfers that the new home must hold: who wrote each, and following which change.
    pub(crate) needs: Vec<Need>,
    /// Those that the old home must hold before it gives the stream up.
    pub(crate) before: Vec<Need>,
}

impl Moved {
    /// The epoch of its home.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch {
            major: self.major,
            minor: self.minor,
        }
    }
}

/// A change of which regions are home to anything at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RuleChange {
    /// The number of the change.
    pub(crate) change: u64,
    /// The regions that are home to nothing from then on.
    pub(crate) drained: BTreeSet<RegionId>,
    /// The regions that lose homes by it.
    pub(crate) losers: BTreeSet<RegionId>,
    /// The regions that gain some.
    pub(crate) gainers: BTreeSet<RegionId>,
    /// Those of them that have opened what they gain.
    pub(crate) opened: BTreeSet<RegionId>,
    /// Those of them that were lost before they had: others gain it by a later change.
    pub(crate) voided: BTreeSet<RegionId>,
    /// Whether a region was put out by it, which hands nothing over.
    pub(crate) is_fence: bool,
}

impl RuleChange {
    /// Whether all that it moves is open.
    pub(crate) fn is_over(&self) -> bool {
        let mut gainers = self.gainers.iter();
        gainers.all(|it| self.opened.contains(it) || self.voided.contains(it))
    }

    // Whether nobody needs a transfer by it any more.
    fn is_given_up(&self) -> bool {
        self.is_fence || (self.voided.is_empty() && self.is_over())
    }
}

/// A transfer: who wrote it, and the change that it follows.
pub(crate) type Need = (RegionId, u64);

/// Where a stream's home is, and what that home must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    /// The home.
    pub(crate) home: RegionId,
    /// Since when.
    pub(crate) epoch: Epoch,
    /// The change that brought it there; zero if it was always there.
    pub(crate) change: u64,
    /// The transfers that the home must hold.
    pub(crate) needs: Vec<Need>,
    /// The region that it comes from, while that is not known to be over.
    pub(crate) moving_from: Option<RegionId>,
}

/// What a region has to give up in a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GiveUp {
    /// The transfers that it must hold before.
    pub(crate) before: BTreeSet<Need>,
    /// Who gains.
    pub(crate) to: BTreeSet<RegionId>,
}

/// What a region gains by a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gain {
    /// The transfers that it must hold, in which partitions.
    pub(crate) needs: BTreeSet<(Need, PartitionId)>,
    /// From whom it may decline what, by partition: single streams only.
    pub(crate) declinable: BTreeSet<(RegionId, PartitionId)>,
}

/// What is decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Federation {
    /// The number of the last change; they count from 1.
    pub(crate) version: u64,
    /// How often a last survivor went on alone: who knows of fewer belongs to a group that is over.
    pub(crate) groups: u32,
    /// How it began; `None` before it did.
    pub(crate) foundation: Option<Foundation>,
    /// The streams that were ever moved one by one.
    pub(crate) moved: BTreeMap<StreamId, Moved>,
    /// How the regions that are home to anything changed, in order.
    pub(crate) rules: Vec<RuleChange>,
    /// The regions that were put out, in order.
    pub(crate) fences: Vec<Fence>,
    /// The regions that are out.
    pub(crate) out: BTreeMap<RegionId, Out>,
    /// The regions that were, and have come back.
    pub(crate) returned: BTreeMap<RegionId, Returned>,
    /// The number of the last change of who settles the order.
    pub(crate) membership: u64,
    /// Who is not heard any more, and by whom.
    pub(crate) suspected: BTreeMap<RegionId, BTreeSet<RegionId>>,
    /// The regions that were admitted after it began: no rule from before makes them a home.
    pub(crate) admitted: BTreeSet<RegionId>,
    /// The regions that are leaving, and whether that was forced.
    pub(crate) leaving: BTreeMap<RegionId, bool>,
    /// The regions that have left for good, which are out as well.
    pub(crate) left: BTreeSet<RegionId>,
    /// The categories whose policies were set since it began.
    pub(crate) categories: BTreeMap<String, Setting>,
    /// The number of the last change by which one of those came to count.
    pub(crate) categories_settled: u64,
}

impl Federation {
    /// Applies a command.
    pub(crate) fn apply(&mut self, command: &Command) -> Outcome {
        let done = match command {
            Command::Found(foundation) => self.found(foundation),
            Command::GoOn(known) => Ok(self.go_on(known)),
            Command::Move { streams, to } => self.move_streams(streams, &BTreeMap::new(), *to),
            Command::MoveCreated {
                streams,
                creators,
                as_of,
                to,
            } => self.move_created(streams, creators, *as_of, *to),
            Command::Opened { change, by } => Ok(self.open(*change, *by)),
            Command::Declined {
                change,
                from,
                partition,
            } => self.decline(*change, *from, *partition),
            Command::Drain(region) => self.drain(*region),
            Command::Resume(region) => self.resume(*region),
            Command::Fence { region, force } => self.fence(*region, *force),
            Command::Evict { region, force } => self.evict(*region, *force),
            Command::Sealed {
                fence,
                round,
                by,
                held,
            } => Ok(self.seal(*fence, *round, *by, held)),
            Command::Filled { fence, round, by } => Ok(self.fill(*fence, *round, *by)),
            Command::Join { region } => self.join(*region),
            Command::Admit {
                region,
                name,
                partitions,
            } => self.admit(*region, name, *partitions),
            Command::Leave { region, force } => self.leave(*region, *force),
            Command::Left { region } => self.has_left(*region),
            Command::Welcomed {
                region,
                change,
                by,
                above,
            } => Ok(self.welcome(*region, *change, *by, *above)),
            Command::Suspect { by, silent } => Ok(self.suspect(*by, silent)),
            Command::SetCategory { category, set } => self.set_category(category, set),
            Command::AboutCategory {
                category,
                change,
                by,
                is_free,
            } => Ok(self.answer_about(category, *change, *by, *is_free)),
        };
        self.settle_categories();
        done.unwrap_or_else(Outcome::Refused)
    }

    fn found(&mut self, foundation: &Foundation) -> Result<Outcome, Refusal> {
        if self.foundation.is_some() {
            return Ok(Outcome::Unchanged);
        }
        self.foundation = Some(foundation.clone());
        Ok(self.changed())
    }

    fn go_on(&mut self, known: &Self) -> Outcome {
        if known.version <= self.version {
            return Outcome::Unchanged;
        }
        self.clone_from(known);
        Outcome::Changed(self.version)
    }

    pub(super) fn changed(&mut self) -> Outcome {
        self.version += 1;
        Outcome::Changed(self.version)
    }

    pub(super) fn policies(&self) -> Result<(&Foundation, Policies), Refusal> {
        let foundation = self.foundation.as_ref().ok_or(Refusal::NotFounded)?;
        let members = foundation.members.keys().copied().collect();
        let policies = Policies::new(members, foundation.categories.clone());
        let policies = policies.map_err(|_| Refusal::NotFounded)?;
        Ok((foundation, self.over(&policies)))
    }

    pub(super) fn member(&self, region: RegionId) -> Result<(), Refusal> {
        let foundation = self.foundation.as_ref().ok_or(Refusal::NotFounded)?;
        if self.left.contains(&region) {
            return Err(Refusal::Left { region });
        }
        match foundation.members.contains_key(&region) {
            true => Ok(()),
            false => Err(Refusal::UnknownRegion { region }),
        }
    }

    /// The regions that are home to nothing.
    pub(crate) fn drained(&self) -> BTreeSet<RegionId> {
        let last = self.rules.last();
        last.map_or_else(BTreeSet::new, |rule| rule.drained.clone())
    }

    /// Where `stream`'s home is by `policies`; `None` when every region writes it, or when that rests on who created
    /// it: see [`Federation::seat_by`].
    pub(crate) fn seat(&self, policies: &Policies, stream: &StreamId) -> Option<Seat> {
        let policy = policies.of(stream.category());
        match (policy.mode, policy.home) {
            (Mode::Lww | Mode::Crdt, _) => None,
            (Mode::Home, HomeRule::Creator) => self.moved_seat(stream),
            (Mode::Home, rule) => {
                let moved = self.moved_seat(stream);
                Some(moved.unwrap_or_else(|| self.seat_by(policies, stream, &rule)))
            }
        }
    }

    /// Whether any stream's home was ever decided to be elsewhere than at first.
    pub(crate) fn has_moved_any(&self) -> bool {
        !self.moved.is_empty() || !self.rules.is_empty()
    }

    /// Where `stream`'s home is if it was ever moved.
    pub(crate) fn moved_seat(&self, stream: &StreamId) -> Option<Seat> {
        let moved = self.moved.get(stream)?;
        Some(Seat {
            home: moved.home,
            epoch: moved.epoch(),
            change: moved.change,
            needs: moved.needs.clone(),
            moving_from: (!moved.opened).then_some(moved.from),
        })
    }

    /// Where `stream`'s home is by `rule`, unless it was moved.
    pub(crate) fn seat_by(&self, policies: &Policies, stream: &StreamId, rule: &HomeRule) -> Seat {
        let mut seat = Seat {
            home: policies.home_by(rule, stream, &self.admitted),
            epoch: Epoch::FIRST,
            change: 0,
            needs: Vec::new(),
            moving_from: None,
        };
        for change in &self.rules {
            let home = policies.home_by(rule, stream, &change.drained);
            if home != seat.home {
                let lost: Need = (seat.home, change.change);
                seat.moving_from = (!change.opened.contains(&home)).then_some(seat.home);
                seat.home = home;
                seat.change = change.change;
                if change.is_fence {
                    // Whoever was lost may not have held all that came before.
                    seat.needs.insert(0, lost);
                    seat.epoch.major += 1;
                    seat.epoch.minor = 0;
                } else {
                    seat.needs = vec![lost];
                    seat.epoch.minor += 1;
                }
            }
        }
        seat
    }

    // Moves streams some of which rest on who created them, as whoever asks held it after change `as_of`.
    fn move_created(
        &mut self,
        streams: &[StreamId],
        creators: &BTreeMap<StreamId, RegionId>,
        as_of: u64,
        to: RegionId,
    ) -> Result<Outcome, Refusal> {
        // A fence may have cut off what whoever asks held, if it put that region out.
        let is_newer = |rule: &&RuleChange| rule.is_fence && rule.change > as_of;
        if let Some(rule) = self.rules.iter().find(is_newer) {
            return Err(Refusal::FencedSince {
                change: rule.change,
            });
        }
        self.move_streams(streams, creators, to)
    }

    fn move_streams(
        &mut self,
        streams: &[StreamId],
        creators: &BTreeMap<StreamId, RegionId>,
        to: RegionId,
    ) -> Result<Outcome, Refusal> {
        self.member(to)?;
        if self.out.contains_key(&to) {
            return Err(Refusal::Fenced { region: to });
        }
        if self.drained().contains(&to) {
            return Err(Refusal::Drained { region: to });
        }
        let (_, policies) = self.policies()?;
        if streams.len() > MOVES_MAX {
            return Err(Refusal::TooMany {
                found: streams.len(),
            });
        }
        let mut moves = BTreeMap::new();
        for stream in streams {
            if stream.is_internal() {
                return Err(Refusal::Internal {
                    stream: stream.clone(),
                });
            }
            let created = || {
                let rule = HomeRule::Fixed(*creators.get(stream)?);
                let is_created = policies.route(stream) == Route::Creator;
                is_created.then(|| self.seat_by(&policies, stream, &rule))
            };
            let Some(seat) = self.seat(&policies, stream).or_else(created) else {
                let stream = stream.clone();
                return Err(match policies.route(&stream) {
                    Route::Creator => Refusal::NotCreated { stream },
                    Route::Home(_) | Route::Anywhere => Refusal::NoHome { stream },
                });
            };
            if seat.home == to {
                continue;
            }
            if let Some(from) = seat.moving_from {
                return Err(Refusal::Moving {
                    stream: stream.clone(),
                    from,
                    to: seat.home,
                });
            }
            moves.insert(stream.clone(), self.moved_from(seat, to));
        }
        if moves.is_empty() {
            return Ok(Outcome::Unchanged);
        }
        self.moved.append(&mut moves);
        Ok(self.changed())
    }

    // The move of a stream from `seat`, as part of the next change.
    fn moved_from(&self, seat: Seat, to: RegionId) -> Moved {
        let change = self.version + 1;
        Moved {
            home: to,
            from: seat.home,
            change,
            major: seat.epoch.major,
            minor: seat.epoch.minor + 1,
            opened: false,
            needs: vec![(seat.home, change)],
            before: seat.needs,
        }
    }

    fn drain(&mut self, region: RegionId) -> Result<Outcome, Refusal> {
        self.member(region)?;
        if self.out.contains_key(&region) {
            return Err(Refusal::Fenced { region });
        }
        let mut drained = self.drained();
        if !drained.insert(region) {
            if let Some(returned) = self.returned.get_mut(&region)
                && !returned.was_drained
            {
                returned.was_drained = true;
                return Ok(self.changed());
            }
            return Ok(Outcome::Unchanged);
        }
        let (foundation, policies) = self.policies()?;
        let members: BTreeSet<RegionId> = foundation.members.keys().copied().collect();
        let gainers = &members - &drained;
        if gainers.is_empty() {
            return Err(Refusal::LastRegion { region });
        }
        // Streams that were moved there one by one have no rule that takes them elsewhere.
        let mut moves = BTreeMap::new();
        for (stream, moved) in self.moved.iter().filter(|(_, moved)| moved.home == region) {
            let seat = self.seat(&policies, stream);
            if let (Some(seat), Route::Home(to)) = (seat, policies.route_without(stream, &drained))
            {
                if !moved.opened {
                    return Err(Refusal::Draining {
                        change: moved.change,
                    });
                }
                moves.insert(stream.clone(), self.moved_from(seat, to));
            }
        }
        self.change_rule(drained, BTreeSet::from([region]), gainers)?;
        self.moved.append(&mut moves);
        Ok(self.changed())
    }

    fn resume(&mut self, region: RegionId) -> Result<Outcome, Refusal> {
        self.member(region)?;
        if self.out.contains_key(&region) {
            return Err(Refusal::Fenced { region });
        }
        if self.leaving.contains_key(&region) {
            return Err(Refusal::Leaving { region });
        }
        let mut drained = self.drained();
        if !drained.remove(&region) {
            return Ok(Outcome::Unchanged);
        }
        let members = self.members().into_iter();
        let losers = members.filter(|it| *it != region && !drained.contains(it));
        let losers = losers.collect();
        self.change_rule(drained, losers, BTreeSet::from([region]))?;
        if let Some(returned) = self.returned.get_mut(&region) {
            returned.was_drained = false;
        }
        Ok(self.changed())
    }

    // Notes a rule as part of the next change.
    fn change_rule(
        &mut self,
        drained: BTreeSet<RegionId>,
        losers: BTreeSet<RegionId>,
        gainers: BTreeSet<RegionId>,
    ) -> Result<(), Refusal> {
        if let Some(rule) = self.rules.iter().find(|rule| !rule.is_over()) {
            return Err(Refusal::Draining {
                change: rule.change,
            });
        }
        self.push_rule(drained, losers, gainers, false);
        Ok(())
    }

    pub(super) fn push_rule(
        &mut self,
        drained: BTreeSet<RegionId>,
        losers: BTreeSet<RegionId>,
        gainers: BTreeSet<RegionId>,
        is_fence: bool,
    ) {
        self.rules.push(RuleChange {
            change: self.version + 1,
            drained,
            losers,
            gainers,
            opened: BTreeSet::new(),
            voided: BTreeSet::new(),
            is_fence,
        });
    }

    /// What `region` has to give up and has perhaps not given up yet, by change and partition.
    pub(crate) fn gives_up(&self, region: RegionId) -> BTreeMap<(u64, PartitionId), GiveUp> {
        let mut all: BTreeMap<(u64, PartitionId), GiveUp> = BTreeMap::new();
        let partitions = self.foundation.as_ref().map_or(0, |it| it.partitions);
        let is_fence = |need: &Need| self.fence_by(need.0, need.1).is_some();
        for (stream, moved) in self.moved.iter().filter(|(_, moved)| !moved.opened) {
            // Whoever it came from last may have been lost, and the one before be still to give it up.
            let needs = moved.needs.iter();
            for (_, change) in needs.filter(|need| need.0 == region && !is_fence(need)) {
                let part = (*change, stream.partition(partitions));
                let give_up = all.entry(part).or_default();
                give_up.before.extend(&moved.before);
                give_up.to.insert(moved.home);
            }
        }
        for (place, rule) in self.rules.iter().enumerate() {
            if rule.is_given_up() || !rule.losers.contains(&region) {
                continue;
            }
            // Whatever it gained before by a rule, it may have to hand on now.
            let before = self.gained_before(region, place);
            for partition in (0..partitions).map(PartitionId) {
                let give_up = all.entry((rule.change, partition)).or_default();
                give_up.before.extend(&before);
                give_up.to.extend(&rule.gainers);
            }
        }
        all
    }

    // What a region must hold of what it gains by the rule at `place`: whatever its losers wrote, and, if
    // they were lost, what they may not have held themselves.
    fn rule_needs(&self, place: usize) -> BTreeSet<Need> {
        let Some(rule) = self.rules.get(place) else {
            return BTreeSet::new();
        };
        let losers = rule.losers.iter();
        let mut needs: BTreeSet<Need> = losers.map(|loser| (*loser, rule.change)).collect();
        if rule.is_fence {
            for loser in &rule.losers {
                needs.append(&mut self.gained_before(*loser, place));
            }
        }
        needs
    }

    // What `region` needed to hold of all that it gained by the rules before `place`.
    fn gained_before(&self, region: RegionId, place: usize) -> BTreeSet<Need> {
        let earlier = self.rules.iter().take(place).enumerate();
        let gained = earlier.filter(|(_, earlier)| earlier.gainers.contains(&region));
        gained
            .flat_map(|(place, _)| self.rule_needs(place))
            .collect()
    }

    /// What counts instead of the transfer that `from` was to write for `change`, should it be lost before
    /// it could: its cut, and what it needed to hold itself.
    pub(crate) fn instead_of(&self, (from, change): Need) -> Option<Vec<Need>> {
        let fence = self.fence_after(from, change)?;
        let mut needs = vec![(from, *fence.regions.get(&from)?)];
        let place = self.rules.iter().position(|rule| rule.change == change);
        needs.extend(
            place
                .into_iter()
                .flat_map(|at| self.gained_before(from, at)),
        );
        Some(needs)
    }

    /// What `region` gains and has not said to have opened, by change.
    pub(crate) fn gains(&self, region: RegionId) -> BTreeMap<u64, Gain> {
        let mut all: BTreeMap<u64, Gain> = BTreeMap::new();
        let partitions = self.foundation.as_ref().map_or(0, |it| it.partitions);
        for (stream, moved) in &self.moved {
            if moved.home == region && !moved.opened {
                let partition = stream.partition(partitions);
                let gain = all.entry(moved.change).or_default();
                let needs = moved.needs.iter().map(|need| (*need, partition));
                gain.needs.extend(needs);
                if self.fence_by(moved.from, moved.change).is_none() {
                    gain.declinable.insert((moved.from, partition));
                }
            }
        }
        for (place, rule) in self.rules.iter().enumerate() {
            let is_done = rule.opened.contains(&region) || rule.voided.contains(&region);
            if !rule.gainers.contains(&region) || is_done {
                continue;
            }
            let gain = all.entry(rule.change).or_default();
            for partition in (0..partitions).map(PartitionId) {
                let needs = self.rule_needs(place).into_iter();
                gain.needs.extend(needs.map(|need| (need, partition)));
            }
            // It is all or nothing: what one region declined, another may have opened.
            gain.declinable.clear();
        }
        all
    }

    fn decline(
        &mut self,
        change: u64,
        from: RegionId,
        partition: PartitionId,
    ) -> Result<Outcome, Refusal> {
        let foundation = self.foundation.as_ref().ok_or(Refusal::NotFounded)?;
        let partitions = foundation.partitions;
        let next = self.version + 1;
        let mut is_any = false;
        for (stream, moved) in &mut self.moved {
            let is_meant = moved.change == change
                && moved.from == from
                && !moved.opened
                && stream.partition(partitions) == partition;
            if !is_meant {
                continue;
            }
            is_any = true;
            // Should the home that declines have written after all, its transfer stands behind that. It
            // holds less than it would need to, so what the old home needed still counts.
            let mut needs = vec![(moved.home, next)];
            needs.append(&mut moved.before);
            *moved = Moved {
                home: from,
                from: moved.home,
                change: next,
                major: moved.major,
                minor: moved.minor + 1,
                opened: false,
                needs,
                before: Vec::new(),
            };
        }
        Ok(match is_any {
            true => self.changed(),
            false => Outcome::Unchanged,
        })
    }

    fn open(&mut self, change: u64, by: RegionId) -> Outcome {
        let mut is_new = false;
        for moved in self.moved.values_mut() {
            if moved.change == change && moved.home == by && !moved.opened {
                moved.opened = true;
                is_new = true;
            }
        }
        for rule in &mut self.rules {
            if rule.change == change && rule.gainers.contains(&by) {
                is_new |= rule.opened.insert(by);
            }
        }
        match is_new {
            true => self.changed(),
            false => Outcome::Unchanged,
        }
    }
}

#[cfg(test)]
mod tests {
    use meridian_conflict::{CategoryPolicy, HomeRule, Mode};
    use proptest::prelude::*;

    use super::*;

    const A: RegionId = RegionId(0);
    const B: RegionId = RegionId(1);
    const C: RegionId = RegionId(2);

    fn founded() -> Federation {
        let mut federation = Federation::default();
        let policy = |mode, home| CategoryPolicy { mode, home };
        let foundation = Foundation {
            members: [(A, "a"), (B, "b"), (C, "c")]
                .map(|(region, name)| (region, name.to_owned()))
                .into(),
            partitions: 4,
            categories: BTreeMap::from([
                ("cart".to_owned(), policy(Mode::Crdt, HomeRule::Hash)),
                ("order".to_owned(), policy(Mode::Home, HomeRule::Fixed(A))),
                ("visit".to_owned(), policy(Mode::Home, HomeRule::Creator)),
            ]),
        };
        let outcome = federation.apply(&Command::Found(foundation));
        assert_eq!(outcome, Outcome::Changed(1));
        federation
    }

    fn moving(names: &[&str], to: RegionId) -> Command {
        Command::Move {
            streams: names.iter().map(|name| stream(name)).collect(),
            to,
        }
    }

    fn stream(name: &str) -> StreamId {
        StreamId::new(name).expect("a sound name")
    }

    fn moving_created(as_of: u64) -> Command {
        let streams = vec![stream("order-1"), stream("visit-1")];
        Command::MoveCreated {
            streams,
            creators: BTreeMap::from([(stream("visit-1"), C)]),
            as_of,
            to: B,
        }
    }

    #[test]
    fn a_stream_is_moved_from_where_it_was_created_and_not_before_it_was() {
        let mut federation = founded();
        assert_eq!(
            federation.apply(&moving(&["visit-1"], B)),
            Outcome::Refused(Refusal::NotCreated {
                stream: stream("visit-1")
            })
        );
        let moved = federation.apply(&moving_created(1));
        assert_eq!(moved, Outcome::Changed(2));
        let seat = federation.moved_seat(&stream("visit-1"));
        let seat = seat.expect("it was moved");
        assert_eq!((seat.home, seat.moving_from), (B, Some(C)));
        assert_eq!(seat.needs, [(C, 2)]);
        let (_, policies) = federation.policies().expect("it is founded");
        assert_eq!(federation.seat(&policies, &stream("visit-1")), Some(seat));
        assert_eq!(federation.seat(&policies, &stream("visit-2")), None);
        // From then on that it was created somewhere is of no account.
        federation.apply(&Command::Opened { change: 2, by: B });
        let moved = federation.apply(&moving(&["visit-1"], C));
        assert_eq!(moved, Outcome::Changed(4));
    }

    #[test]
    fn what_was_known_before_a_fence_moves_nothing() {
        let mut federation = founded();
        let fenced = federation.apply(&Command::Fence {
            region: A,
            force: false,
        });
        let Outcome::Changed(change) = fenced else {
            panic!("{fenced:?}")
        };
        assert_eq!(
            federation.apply(&moving_created(change - 1)),
            Outcome::Refused(Refusal::FencedSince { change })
        );
        let moved = federation.apply(&moving_created(change));
        assert!(matches!(moved, Outcome::Changed(_)), "{moved:?}");
    }

    #[test]
    fn a_created_stream_sits_where_a_fixed_one_would() {
        let mut federation = founded();
        for command in [
            Command::Drain(A),
            Command::Opened { change: 2, by: B },
            Command::Opened { change: 2, by: C },
            Command::Resume(A),
            Command::Opened { change: 5, by: A },
        ] {
            federation.apply(&command);
        }
        let (_, policies) = federation.policies().expect("it is founded");
        let (fixed, created) = (stream("order-1"), stream("visit-1"));
        let of_fixed = federation.seat(&policies, &fixed).expect("it has a home");
        let if_created = federation.seat_by(&policies, &created, &HomeRule::Fixed(A));
        assert_eq!((of_fixed.home, of_fixed.epoch), (A, if_created.epoch));
        assert_eq!(if_created.home, A);
        assert_eq!(if_created.change, of_fixed.change);
    }

    /// Nodes read what is asked of them from their files, and from each other.
    #[test]
    fn the_move_of_a_created_stream_is_written_as_it_ever_was() {
        let bytes = postcard::to_stdvec(&moving_created(5)).expect("it encodes");
        let mut expected = vec![19, 2, 7];
        expected.extend(b"order-1");
        expected.push(7);
        expected.extend(b"visit-1");
        expected.extend([1, 7]);
        expected.extend(b"visit-1");
        expected.extend([2, 5, 1]);
        assert_eq!(bytes, expected);
        let rule = postcard::to_stdvec(&HomeRule::Creator).expect("it encodes");
        assert_eq!(rule, [2]);
    }

    #[test]
    fn a_move_begins_at_the_rules_home_and_ends_when_the_new_one_opens() {
        let mut federation = founded();
        assert_eq!(
            federation.apply(&moving(&["order-1"], B)),
            Outcome::Changed(2)
        );
        let moved = &federation.moved[&stream("order-1")];
        assert_eq!((moved.from, moved.home, moved.minor), (A, B, 1));
        assert!(!moved.opened);

        let refused = federation.apply(&moving(&["order-1"], C));
        assert!(
            matches!(refused, Outcome::Refused(Refusal::Moving { .. })),
            "{refused:?}"
        );
        assert_eq!(
            federation.apply(&Command::Opened { change: 2, by: B }),
            Outcome::Changed(3)
        );
        assert!(federation.moved[&stream("order-1")].opened);
        assert_eq!(
            federation.apply(&moving(&["order-1"], C)),
            Outcome::Changed(4)
        );
        let moved = &federation.moved[&stream("order-1")];
        assert_eq!((moved.from, moved.home, moved.minor), (B, C, 2));
        assert_eq!(
            (&moved.needs[..], &moved.before[..]),
            (&[(B, 4)][..], &[(A, 2)][..])
        );
    }

    #[test]
    fn what_the_new_home_declines_goes_back_to_where_it_was() {
        let mut federation = founded();
        let name = stream("order-1");
        federation.apply(&moving(&["order-1"], B));
        federation.apply(&Command::Opened { change: 2, by: B });
        federation.apply(&moving(&["order-1"], C));
        let decline = Command::Declined {
            change: 4,
            from: B,
            partition: name.partition(4),
        };
        assert_eq!(federation.apply(&decline), Outcome::Changed(5));
        assert_eq!(federation.apply(&decline), Outcome::Unchanged);
        let moved = &federation.moved[&name];
        assert_eq!((moved.home, moved.from, moved.change), (B, C, 5));
        assert!(!moved.opened && moved.minor == 3);
        // C gives it up at once; B still needs what it needed to be home at first.
        assert_eq!(moved.before, []);
        assert_eq!(moved.needs, [(C, 5), (A, 2)]);
        let opened = Command::Opened { change: 5, by: B };
        assert_eq!(federation.apply(&opened), Outcome::Changed(6));
    }

    #[test]
    fn what_is_asked_twice_changes_nothing_the_second_time() {
        let mut federation = founded();
        federation.apply(&moving(&["order-1", "order-2"], B));
        let before = federation.clone();
        assert_eq!(
            federation.apply(&moving(&["order-1", "order-2"], B)),
            Outcome::Unchanged
        );
        let again = before.foundation.clone().expect("it is founded");
        assert_eq!(federation.apply(&Command::Found(again)), Outcome::Unchanged);
        assert_eq!(federation, before);
    }

    #[test]
    fn what_cannot_be_moved_is_refused_whole() {
        let mut federation = founded();
        let before = federation.clone();
        let mut refuse = |command: &Command| match federation.apply(command) {
            Outcome::Refused(refusal) => refusal,
            other => panic!("{command:?} was not refused: {other:?}"),
        };
        let unknown = refuse(&moving(&["order-1"], RegionId(9)));
        assert_eq!(
            unknown,
            Refusal::UnknownRegion {
                region: RegionId(9)
            }
        );
        let shared = refuse(&moving(&["order-1", "cart-1"], B));
        assert!(matches!(shared, Refusal::NoHome { .. }), "{shared:?}");
        let own = refuse(&moving(&["$projections-x"], B));
        assert!(matches!(own, Refusal::Internal { .. }), "{own:?}");
        let names: Vec<String> = (0..=MOVES_MAX).map(|it| format!("order-{it}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(
            refuse(&moving(&names, B)),
            Refusal::TooMany {
                found: MOVES_MAX + 1
            }
        );
        assert_eq!(federation, before);
        let mut unborn = Federation::default();
        let refused = unborn.apply(&moving(&["order-1"], B));
        assert_eq!(refused, Outcome::Refused(Refusal::NotFounded));
    }

    fn seat(federation: &Federation, name: &StreamId) -> Seat {
        let (_, policies) = federation.policies().expect("it is founded");
        federation.seat(&policies, name).expect("it has a home")
    }

    #[test]
    fn a_drained_region_loses_all_its_homes_and_gets_its_share_back() {
        let mut federation = founded();
        let ruled = stream("order-1");
        let moved = stream("order-2");
        federation.apply(&moving(&["order-2"], B));
        federation.apply(&Command::Opened { change: 2, by: B });
        federation.apply(&moving(&["order-2"], A));
        federation.apply(&Command::Opened { change: 4, by: A });
        // The rule homes orders in A.
        assert_eq!(federation.apply(&Command::Drain(A)), Outcome::Changed(6));
        assert_eq!(federation.apply(&Command::Drain(A)), Outcome::Unchanged);
        let seats = [&ruled, &moved].map(|name| seat(&federation, name));
        for seat in &seats {
            assert_ne!(seat.home, A);
            assert_eq!((seat.change, seat.moving_from), (6, Some(A)));
            assert_eq!(seat.needs, [(A, 6)]);
        }
        let lost = federation.gives_up(A);
        assert_eq!(lost.len(), 4, "one for each partition");
        let of_moved = &lost[&(6, moved.partition(4))];
        assert!(of_moved.before.contains(&(B, 4)), "{of_moved:?}");
        assert!(federation.gives_up(B).is_empty());

        let again = federation.apply(&Command::Resume(A));
        assert!(
            matches!(again, Outcome::Refused(Refusal::Draining { change: 6 })),
            "{again:?}"
        );
        for by in [B, C] {
            assert_eq!(federation.gains(by)[&6].needs.len(), 4);
            federation.apply(&Command::Opened { change: 6, by });
            assert!(federation.gains(by).is_empty());
        }
        assert!(federation.gives_up(A).is_empty());
        let refused = federation.apply(&moving(&["order-1"], A));
        assert_eq!(refused, Outcome::Refused(Refusal::Drained { region: A }));

        assert_eq!(federation.apply(&Command::Resume(A)), Outcome::Changed(9));
        assert_eq!(seat(&federation, &ruled).home, A);
        assert_eq!(seat(&federation, &ruled).epoch.minor, 2);
        assert_ne!(seat(&federation, &moved).home, A, "it was moved by itself");
        // B hands on only what it has opened before.
        let lost = federation.gives_up(B);
        assert!(lost.values().all(|lost| lost.before.contains(&(A, 6))));
    }

    #[test]
    fn the_last_region_is_not_drained() {
        let mut federation = founded();
        for (region, gainers) in [(A, vec![B, C]), (B, vec![C])] {
            let Outcome::Changed(change) = federation.apply(&Command::Drain(region)) else {
                panic!("{region} is not the last");
            };
            for by in gainers {
                federation.apply(&Command::Opened { change, by });
            }
        }
        let refused = federation.apply(&Command::Drain(C));
        assert_eq!(refused, Outcome::Refused(Refusal::LastRegion { region: C }));
        let unknown = federation.apply(&Command::Drain(RegionId(9)));
        let region = RegionId(9);
        assert_eq!(unknown, Outcome::Refused(Refusal::UnknownRegion { region }));
    }

    proptest! {
        #[test]
        fn each_move_begins_where_the_last_one_ended(
            moves in proptest::collection::vec((0..4u16, 0..3u16, any::<bool>()), 1..40),
        ) {
            let mut federation = founded();
            let mut homes = BTreeMap::new();
            for (name, to, opens) in moves {
                let name = stream(&format!("order-{name}"));
                let command = Command::Move { streams: vec![name.clone()], to: RegionId(to) };
                let before = homes.get(&name).copied().unwrap_or(A);
                if let Outcome::Changed(change) = federation.apply(&command) {
                    let moved = &federation.moved[&name];
                    prop_assert_eq!(moved.from, before);
                    prop_assert_ne!(moved.home, before);
                    prop_assert_eq!(moved.change, change);
                    homes.insert(name, moved.home);
                    if opens {
                        federation.apply(&Command::Opened { change, by: RegionId(to) });
                    }
                }
            }
        }
    }
}

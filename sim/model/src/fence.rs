//! Fence, seal, cut, backfill, open and the way back, around one origin log: region A's.
//!
//! Region A writes; its event at position i is stamped i. The other regions replicate it, show what is
//! stable, and may fence A at any moment, dead or alive. Messages are not modelled one by one: a region
//! takes the next block from whoever holds it, or learns the next decision, at any later moment or never.
//! That is every loss, delay, reordering, repetition, relay and partition there is, as a block is the
//! same from whomever it comes and only the exact next one is taken.
//!
//! Where the worst that can happen needs no choice, it happens at once: `regions:2` is acknowledged as
//! soon as a second region holds the event, and `final` is shown as soon as the words that are there allow it.
//!
//! Not here: who may write a stream while it moves (`moves`), leases (`lease`), crashes in the middle of
//! the way back (`readmission`). Start reading at [`Action`], then `Fence::can` and `Fence::carry_out`.

use stateright::{Model, Property};

use crate::Region;
use crate::cases::{Case, Size};

/// The most regions that a state has room for.
pub const REGIONS_MAX: usize = 4;

const A: usize = 0;
/// The successor, which opens A's streams.
const HOME: usize = 1;

/// The rules that regions follow: the right ones, others that also hold, and those known to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// What the README's rules say.
    Right,
    /// Each region goes on once *it* holds the cut, and the home opens once *it* does: also right, as
    /// every eviction starts a new round in which all report again.
    OwnBackfill,
    /// The cut is taken when a majority of the remaining regions has sealed.
    MajoritySeals,
    /// A region drops A from its minimum when it learns of the cut, before it holds what is below it.
    OutBeforeBackfill,
    /// The new home opens when the cut is known, before it holds what is below it.
    OpenBeforeBackfill,
    /// Only the link checks epochs: a block that passed it is stored, whatever was decided meanwhile.
    StoreUnchecked,
    /// A region that restarts no longer knows that it sealed.
    SealForgotten,
    /// What a region reported before an eviction counts after it.
    ReportOfEarlierRound,
    /// A cut stands when a region is evicted after it.
    CutStands,
    /// The cut is the shortest reported prefix.
    ShortestCut,
    /// What is stable is treated as final.
    StableIsFinal,
    /// A region's word of its stable counts for final whatever decisions it was made under.
    UntaggedWords,
    /// A region that learns that it is fenced goes on showing what is final until it has stranded its tail.
    FencedShowsOn,
    /// A promise counts before the prefix that it speaks of is held.
    PromiseUnfulfilled,
    /// A returning region stamps as soon as it is a member again, above all that it has heard.
    JoinWithoutBarrier,
    /// An evicted region drops what it holds of A's log beyond the cut.
    EvictedTailDropped,
    /// A returning region drops what it holds of its own log beyond the cut.
    OwnTailDropped,
    /// A sealed region takes nothing of the old epoch any more, not even what is below the cut.
    LateRefused,
    /// The new home stamps by its own clock alone.
    ClockBelowCut,
}

/// How much may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Regions, A among them: 3 or 4.
    pub regions: u8,
    /// Events that A may append.
    pub events: u8,
    /// Moments after A's last stamp that stable may reach without A.
    pub later: u8,
    /// Regions that may be evicted in A's fence: 0 or 1, the last one.
    pub evictions: u8,
    /// Whether that one may be lost as well, which leaves nothing but to evict it.
    pub losses: bool,
}

/// The model.
#[derive(Clone, Debug)]
pub struct Fence {
    rules: Rules,
    bounds: Bounds,
    /// What is done for as long as there is something to do.
    duties: Vec<Action>,
    /// What may happen or not.
    chances: Vec<Action>,
}

/// A decision of the control plane. All regions learn the same ones in the same order, each when it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// A's epoch ends: the first round begins.
    Fence,
    /// A remaining region did not answer: it is out as well, and a new round begins.
    Evict(Region),
    /// A's log ends at this position, unless a new round begins before it opens.
    Cut(u8),
    /// The remaining regions hold the cut: the new home opens, and A no longer holds stable back.
    Open,
    /// A fenced region is a member again.
    Join(Region),
}

/// What the home's first event got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Opening {
    revision: u8,
    stamp: u8,
}

/// Everything that matters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// How many events A has appended, all durable and acknowledged there.
    top: u8,
    /// A is gone for good, with its disk.
    lost: bool,
    /// So is the last region.
    last_lost: bool,
    /// A's log in each region's main log, at its old key.
    held: [u8; REGIONS_MAX],
    /// A block of A's log has passed the link's check and not yet the store's.
    writing: [bool; REGIONS_MAX],
    /// What each region has shown as stable: a stamp. A's own does not matter.
    stable: [u8; REGIONS_MAX],
    /// The last stable that each region told while A was in its minimum.
    word: [u8; REGIONS_MAX],
    /// The last position that A acknowledged as being in two regions.
    acknowledged: u8,
    /// The last position of A's log that any region has shown as final.
    shown_final: u8,
    /// The control plane's decisions.
    decisions: Vec<Decision>,
    /// How many of them each region knows.
    known: [u8; REGIONS_MAX],
    /// What regions reported in this round.
    reports: [Option<u8>; REGIONS_MAX],
    /// A region that no longer knows that it sealed.
    forgetful: Option<Region>,
    opened: Option<Opening>,
    /// Regions, by bit, that have moved what they held beyond the cut to their stranded place.
    stranded: u8,
    /// How much an evicted region moved there.
    evicted_tail: u8,
    /// The returned region's new incarnation stamps above this.
    base: Option<u8>,
    /// How many stranded events are in its new log.
    readmitted: u8,
    /// How many of them each region holds.
    held_again: [u8; REGIONS_MAX],
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The link takes the next block of A's log, from whoever holds it.
    Take(Region),
    /// The store writes it, or refuses.
    Store(Region),
    /// Stable rises by one stamp.
    Advance(Region),
    /// A region learns the next decision.
    Learn(Region),
    /// A sealed region says how far it holds A's log.
    Report(Region),
    /// The control plane decides on a cut.
    DecideCut,
    /// The control plane lets the new home open.
    DecideOpen,
    /// A fenced region moves what it holds beyond the cut to its stranded place.
    Strand(Region),
    /// The control plane makes it a member again.
    DecideJoin(Region),
    /// It begins its new incarnation, having heard what stable is everywhere.
    Begin,
    /// It writes the next stranded event to its new log.
    Readmit,
    /// A region takes the next event of that log.
    TakeAgain(Region),
    /// A appends an event and acknowledges it.
    Append,
    /// The control plane fences A.
    DecideFence,
    /// It evicts a region that does not answer.
    DecideEvict(Region),
    /// A is lost.
    Lose,
    /// The last region is lost, and what it holds with it.
    LoseLast,
    /// A region restarts, under [`Rules::SealForgotten`].
    Restart(Region),
}

/// What a region makes of the decisions that it knows.
#[derive(Clone, Copy, Default)]
struct View {
    /// 0 without a fence.
    round: u8,
    evicted: u8,
    /// This round's.
    cut: Option<u8>,
    open: bool,
    joined: Option<Region>,
}

impl View {
    fn of(decisions: &[Decision]) -> View {
        let mut view = View::default();
        for decision in decisions {
            match *decision {
                Decision::Fence => view.round = 1,
                Decision::Evict(region) => {
                    view.round += 1;
                    view.evicted |= region.bit();
                    view.cut = None;
                }
                Decision::Cut(position) => view.cut = Some(position),
                Decision::Open => view.open = true,
                Decision::Join(region) => view.joined = Some(region),
            }
        }
        view
    }

    fn evicts(&self, region: usize) -> bool {
        self.evicted & (1 << region) != 0
    }
}

impl State {
    fn view(&self, region: usize) -> View {
        View::of(&self.decisions[..usize::from(self.known[region])])
    }

    fn decided(&self) -> View {
        View::of(&self.decisions)
    }

    fn has_stranded(&self, region: usize) -> bool {
        self.stranded & (1 << region) != 0
    }

    /// How many events the returned region re-originates.
    fn tail(&self, returned: Region) -> u8 {
        let cut = self.decided().cut.unwrap_or(self.top);
        if returned.index() == A {
            self.top - cut
        } else {
            self.evicted_tail
        }
    }
}

impl Fence {
    /// The model under these rules, with so much happening.
    #[must_use]
    pub fn new(rules: Rules, bounds: Bounds) -> Fence {
        let all = || (0..bounds.regions).map(Region);
        let others = || all().skip(1);
        let mut duties = Vec::new();
        for region in others() {
            duties.extend([
                Action::Store(region),
                Action::Take(region),
                Action::Advance(region),
            ]);
            duties.extend([Action::Report(region), Action::TakeAgain(region)]);
        }
        for region in all() {
            duties.extend([
                Action::Learn(region),
                Action::Strand(region),
                Action::DecideJoin(region),
            ]);
        }
        duties.extend([
            Action::DecideCut,
            Action::DecideOpen,
            Action::Begin,
            Action::Readmit,
        ]);
        let mut chances = vec![Action::Append, Action::DecideFence, Action::Lose];
        if bounds.losses {
            chances.push(Action::LoseLast);
        }
        if bounds.evictions > 0 {
            chances.push(Action::DecideEvict(Region(bounds.regions - 1)));
        }
        if rules == Rules::SealForgotten {
            chances.push(Action::Restart(Region(bounds.regions - 1)));
        }
        Fence {
            rules,
            bounds,
            duties,
            chances,
        }
    }

    fn last(&self) -> Region {
        Region(self.bounds.regions - 1)
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        1..usize::from(self.bounds.regions)
    }

    /// Regions that stay when A is fenced and others are evicted with it.
    fn remaining(&self, view: View) -> impl Iterator<Item = usize> + use<> {
        self.others().filter(move |&region| !view.evicts(region))
    }

    /// Those, and the one that came back.
    fn members(&self, view: View) -> impl Iterator<Item = usize> + use<> {
        self.others().filter(move |&region| {
            !view.evicts(region) || view.joined.is_some_and(|joined| joined.index() == region)
        })
    }

    /// Whether a region's link and store take the block at `position` of A's log at its old key.
    fn takes(&self, state: &State, region: usize, position: u8) -> bool {
        let view = state.view(region);
        if view.round == 0 || state.forgetful.is_some_and(|it| it.index() == region) {
            return true;
        }
        self.rules != Rules::LateRefused && view.cut.is_some_and(|cut| position <= cut)
    }

    /// How far somebody else's copy of A's log reaches.
    fn offered(&self, state: &State, region: usize) -> u8 {
        let at_a = if state.lost { 0 } else { state.top };
        self.others()
            .filter(|&other| other != region && !(state.last_lost && other == self.last().index()))
            .map(|other| state.held[other])
            .fold(at_a, u8::max)
    }

    /// Whether A's old epoch is no longer in this region's minimum.
    fn is_without_a(&self, state: &State, region: usize, view: View) -> bool {
        match self.rules {
            Rules::OutBeforeBackfill => view.open || view.cut.is_some(),
            Rules::OwnBackfill => view.cut.is_some_and(|cut| state.held[region] >= cut),
            _ => view.open,
        }
    }

    /// How far a region's stable may rise.
    fn stable_limit(&self, state: &State, region: usize) -> u8 {
        let view = state.view(region);
        let stays = state.stable[region];
        if view.evicts(region) && view.joined.is_none_or(|joined| joined.index() != region) {
            return stays;
        }
        if !self.is_without_a(state, region, view) {
            // A promises (i, i) as soon as it can, and whoever holds i has it, or gets it from a relay.
            let promised = if self.rules == Rules::PromiseUnfulfilled {
                state.top
            } else {
                state.held[region]
            };
            return stays.max(promised);
        }
        match (view.joined, state.base) {
            (None, _) => self.bounds.events + self.bounds.later,
            // Back in the minimum, and nothing promised yet.
            (Some(_), None) => stays,
            (Some(_), Some(base)) => stays.max(base + state.held_again[region]),
        }
    }

    /// What a region can show as final by the words it may have, as a position of A's log.
    fn final_at(&self, state: &State, region: usize) -> u8 {
        let own = if region == A {
            state.top
        } else {
            state.stable[region]
        };
        if self.rules == Rules::StableIsFinal {
            // Told of a region other than A, which could be told to wait: an evicted one cannot know.
            return if region == A {
                0
            } else {
                own.min(state.held[region])
            };
        }
        let view = state.view(region);
        let is_out = view.evicts(region) || (region == A && view.round > 0);
        if state.has_stranded(region) || (is_out && self.rules != Rules::FencedShowsOn) {
            return 0;
        }
        let everyone = !self.is_without_a(state, region, view);
        let lowest = self
            .others()
            .filter(|&other| other != region && (everyone || !view.evicts(other)))
            .map(|other| {
                let counts =
                    self.rules == Rules::UntaggedWords || state.known[other] <= state.known[region];
                if counts {
                    state.stable[other]
                } else {
                    state.word[other]
                }
            })
            .fold(own, u8::min);
        // A holds its own events back from nobody's final, so its word is the highest it could be.
        lowest.min(state.held[region])
    }

    /// Who is to come back: A, or who can bring what was lost with it.
    fn joiner(state: &State) -> Option<usize> {
        if state.lost && state.last_lost {
            None
        } else if state.lost {
            (1..REGIONS_MAX).find(|&region| state.decided().evicts(region))
        } else {
            Some(A)
        }
    }

    fn can(&self, state: &State, action: Action) -> bool {
        let by = match action {
            Action::Take(region)
            | Action::Store(region)
            | Action::Advance(region)
            | Action::Learn(region) => region,
            Action::Report(region) | Action::Strand(region) | Action::DecideJoin(region) => region,
            Action::TakeAgain(region) | Action::Restart(region) => region,
            _ => return self.may(state, action),
        };
        !(state.last_lost && by == self.last()) && self.may(state, action)
    }

    fn may(&self, state: &State, action: Action) -> bool {
        match action {
            Action::Take(Region(region)) => {
                let region = usize::from(region);
                let next = state.held[region] + 1;
                !state.writing[region]
                    && next <= self.offered(state, region)
                    && self.takes(state, region, next)
            }
            Action::Store(region) => state.writing[region.index()],
            Action::Advance(region) => {
                state.stable[region.index()] < self.stable_limit(state, region.index())
            }
            Action::Learn(region) => {
                usize::from(state.known[region.index()]) < state.decisions.len()
                    && !(state.lost && region.index() == A)
            }
            Action::Report(region) => {
                let (decided, region) = (state.decided(), region.index());
                decided.round > 0
                    && decided.cut.is_none()
                    && state.view(region).round == decided.round
                    && !decided.evicts(region)
                    && state.reports[region].is_none()
            }
            Action::DecideCut => {
                let decided = state.decided();
                let asked = self.remaining(decided).count();
                let answered = self
                    .remaining(decided)
                    .filter(|&region| state.reports[region].is_some())
                    .count();
                decided.round > 0
                    && decided.cut.is_none()
                    && match self.rules {
                        Rules::MajoritySeals => answered * 2 > asked,
                        _ => answered == asked,
                    }
            }
            Action::DecideOpen => {
                let decided = state.decided();
                let Some(cut) = decided.cut else { return false };
                let holds = |region: usize| {
                    state.view(region).cut == Some(cut) && state.held[region] >= cut
                };
                !decided.open
                    && match self.rules {
                        Rules::OpenBeforeBackfill => true,
                        Rules::OwnBackfill => holds(HOME),
                        _ => self.remaining(decided).all(holds),
                    }
            }
            Action::Strand(region) => {
                let (region, view) = (region.index(), state.view(region.index()));
                view.open
                    && !state.has_stranded(region)
                    && !(state.lost && region == A)
                    && (region == A || view.evicts(region))
            }
            Action::DecideJoin(region) => {
                let (decided, region) = (state.decided(), region.index());
                decided.joined.is_none()
                    && Self::joiner(state) == Some(region)
                    && state.has_stranded(region)
                    && decided.cut.is_some_and(|cut| state.held[region] >= cut)
            }
            Action::Begin => {
                let decided = state.decided();
                let Some(joined) = decided.joined else {
                    return false;
                };
                let frozen = |region| state.view(region).joined.is_some();
                state.base.is_none()
                    && frozen(joined.index())
                    && (self.rules == Rules::JoinWithoutBarrier
                        || self.remaining(decided).all(frozen))
            }
            Action::Readmit => {
                let drops = self.rules == Rules::OwnTailDropped && !state.lost;
                !drops
                    && state.base.is_some()
                    && state
                        .decided()
                        .joined
                        .is_some_and(|joined| state.readmitted < state.tail(joined))
            }
            Action::TakeAgain(region) => {
                let view = state.view(region.index());
                view.joined.is_some_and(|joined| joined != region)
                    && !view.evicts(region.index())
                    && state.held_again[region.index()] < state.readmitted
            }
            Action::Append => {
                !state.lost && state.view(A).round == 0 && state.top < self.bounds.events
            }
            Action::DecideFence => state.decisions.is_empty(),
            Action::DecideEvict(region) => {
                let decided = state.decided();
                decided.round > 0 && !decided.open && !decided.evicts(region.index())
            }
            Action::Lose => !state.lost && state.known[A] == 0,
            // Later it takes a fence of its own.
            Action::LoseLast => !state.last_lost && state.decided().joined.is_none(),
            Action::Restart(region) => {
                state.forgetful.is_none() && state.view(region.index()).round > 0
            }
        }
    }

    fn carry_out(&self, state: &mut State, action: Action) {
        match action {
            Action::Take(region) => state.writing[region.index()] = true,
            Action::Store(region) => {
                let region = region.index();
                state.writing[region] = false;
                let next = state.held[region] + 1;
                if self.rules == Rules::StoreUnchecked || self.takes(state, region, next) {
                    state.held[region] = next;
                }
            }
            Action::Advance(region) => {
                let region = region.index();
                state.stable[region] += 1;
                if !self.is_without_a(state, region, state.view(region)) {
                    state.word[region] = state.stable[region];
                }
            }
            Action::Learn(region) => {
                let region = region.index();
                state.known[region] += 1;
                if region == HOME
                    && state.decisions[usize::from(state.known[HOME]) - 1] == Decision::Open
                {
                    let cut = state.view(HOME).cut.unwrap_or_default();
                    let floor = if self.rules == Rules::ClockBelowCut {
                        0
                    } else {
                        cut
                    };
                    state.opened = Some(Opening {
                        revision: state.held[HOME] + 1,
                        stamp: state.stable[HOME].max(floor) + 1,
                    });
                }
            }
            Action::Report(region) => {
                state.reports[region.index()] = Some(state.held[region.index()])
            }
            Action::DecideCut => {
                let reports = state.reports.iter().flatten().copied();
                let cut = if self.rules == Rules::ShortestCut {
                    reports.min()
                } else {
                    reports.max()
                };
                state.decisions.push(Decision::Cut(cut.unwrap_or_default()));
            }
            Action::DecideOpen => state.decisions.push(Decision::Open),
            Action::Strand(region) => {
                let region = region.index();
                let cut = state.view(region).cut.unwrap_or_default();
                if region != A && self.rules != Rules::EvictedTailDropped {
                    state.evicted_tail = state.held[region].saturating_sub(cut);
                }
                state.stranded |= 1 << region;
                state.writing[region] = false;
                state.held[region] = state.held[region].min(cut);
                // What it showed as stable beyond is void: it reads again from below.
                state.stable[region] = state.stable[region].min(cut);
            }
            Action::DecideJoin(region) => state.decisions.push(Decision::Join(region)),
            Action::Begin => {
                let decided = state.decided();
                // Above its own clock as well, which is above all that it ever held.
                let own = decided
                    .joined
                    .zip(decided.cut)
                    .map(|(joined, cut)| cut + state.tail(joined));
                state.base = self
                    .members(decided)
                    .map(|region| state.stable[region])
                    .max()
                    .max(own);
            }
            Action::Readmit => {
                state.readmitted += 1;
                if let Some(joined) = state.decided().joined {
                    state.held_again[joined.index()] = state.readmitted;
                }
            }
            Action::TakeAgain(region) => state.held_again[region.index()] += 1,
            Action::Append => {
                state.top += 1;
                state.held[A] = state.top;
            }
            Action::DecideFence => state.decisions.push(Decision::Fence),
            Action::DecideEvict(region) => {
                let cut = state
                    .decided()
                    .cut
                    .filter(|_| self.rules == Rules::CutStands);
                state.decisions.push(Decision::Evict(region));
                state.decisions.extend(cut.map(Decision::Cut));
                if self.rules == Rules::ReportOfEarlierRound {
                    state.reports[region.index()] = None;
                } else {
                    state.reports = [None; REGIONS_MAX];
                }
            }
            Action::Lose => state.lost = true,
            Action::LoseLast => state.last_lost = true,
            Action::Restart(region) => state.forgetful = Some(region),
        }

        if !state.lost && state.view(A).round == 0 {
            let elsewhere = self
                .others()
                .map(|region| state.held[region])
                .max()
                .unwrap_or(0);
            state.acknowledged = state.acknowledged.max(elsewhere);
        }
        let first = if state.lost { 1 } else { 0 };
        for region in first..usize::from(self.bounds.regions) {
            state.shown_final = state.shown_final.max(self.final_at(state, region));
        }
    }

    /// Whether nothing is left to do: faults may still come, but nobody waits for anything.
    fn is_quiet(&self, state: &State) -> bool {
        let evicts = state.last_lost && self.can(state, Action::DecideEvict(self.last()));
        !evicts && !self.duties.iter().any(|&action| self.can(state, action))
    }

    /// A second region was lost once the fence was done: nobody comes back before it is fenced in its turn.
    fn awaits_another_fence(state: &State) -> bool {
        let decided = state.decided();
        state.last_lost && decided.open && decided.evicted == 0
    }

    fn is_healed(&self, state: &State) -> bool {
        let decided = state.decided();
        if decided.round == 0 {
            // Without a fence stable waits for a lost region, as it should.
            return state.lost
                || state.last_lost
                || self.others().all(|region| {
                    state.held[region] == state.top && state.stable[region] == state.top
                });
        }
        let Some(cut) = decided.cut else { return false };
        if Self::awaits_another_fence(state) {
            let mut others = self
                .others()
                .filter(|&region| region != self.last().index());
            return state.opened.is_some() && others.all(|region| state.held[region] == cut);
        }
        let reached = match Self::joiner(state) {
            None => self.bounds.events + self.bounds.later,
            Some(joiner) => {
                let joined = decided.joined.is_some_and(|it| it.index() == joiner);
                let (true, Some(base)) = (joined, state.base) else {
                    return false;
                };
                base + state.tail(Region::at(joiner))
            }
        };
        state.opened.is_some()
            && self.members(decided).all(|region| {
                state.held[region] == cut
                    && state.held_again[region] == state.readmitted
                    && state.stable[region] == reached
            })
    }

    fn is_sealed(&self, state: &State) -> bool {
        let decided = state.decided();
        decided.cut.is_none_or(|cut| {
            self.members(decided)
                .all(|region| state.held[region] <= cut)
        })
    }

    /// Whether every member holds all that there is, or will ever be, at or below its stable.
    fn is_one_order(&self, state: &State) -> bool {
        let decided = state.decided();
        let end = match (decided.round, decided.cut) {
            (0, _) => state.top,
            (_, Some(cut)) => cut,
            // Not known yet: what stands here is judged once it is.
            (_, None) => return true,
        };
        self.members(decided).all(|region| {
            let old = state.stable[region].min(end);
            let new = state.base.map_or(0, |base| {
                state.stable[region]
                    .saturating_sub(base)
                    .min(state.readmitted)
            });
            old <= state.held[region] && new <= state.held_again[region]
        })
    }

    fn holds_final(state: &State) -> bool {
        state
            .decided()
            .cut
            .is_none_or(|cut| state.shown_final <= cut)
    }

    fn opens_well(state: &State) -> bool {
        let cut = state.decided().cut.unwrap_or_default();
        state
            .opened
            .is_none_or(|opening| opening.revision == cut + 1 && opening.stamp > cut)
    }

    /// Whether what two regions held outlives the loss of A.
    fn is_durable(&self, state: &State) -> bool {
        if !state.lost || state.last_lost {
            return true;
        }
        let decided = state.decided();
        let kept = match decided.cut {
            Some(cut) => cut + state.readmitted,
            None if decided.round == 0 => self
                .others()
                .map(|region| state.held[region])
                .max()
                .unwrap_or(0),
            None => return true,
        };
        state.acknowledged <= kept || !self.is_quiet(state)
    }

    /// Where nobody is evicted, the cut covers all that a second region ever held.
    fn strands_no_two(state: &State) -> bool {
        let decided = state.decided();
        decided.evicted != 0 || decided.cut.is_none_or(|cut| state.acknowledged <= cut)
    }

    fn is_accounted(&self, state: &State) -> bool {
        match state.decided().cut {
            Some(cut) if !state.lost && !Self::awaits_another_fence(state) => {
                let accounted = cut + state.readmitted;
                accounted <= state.top && (accounted == state.top || !self.is_quiet(state))
            }
            _ => true,
        }
    }
}

impl Model for Fence {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(
            self.duties
                .iter()
                .chain(&self.chances)
                .copied()
                .filter(|&action| self.can(state, action)),
        );
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.carry_out(&mut next, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::<Self>::always("sealed", |model, state| model.is_sealed(state)),
            Property::<Self>::always("same-order", |model, state| model.is_one_order(state)),
            Property::<Self>::always("final", |_, state| Fence::holds_final(state)),
            Property::<Self>::always("revisions", |_, state| Fence::opens_well(state)),
            Property::<Self>::always("durable", |model, state| model.is_durable(state)),
            Property::<Self>::always("never stranded", |_, state| Fence::strands_no_two(state)),
            Property::<Self>::always("accounted", |model, state| model.is_accounted(state)),
            Property::<Self>::always("heals", |model, state| {
                model.is_healed(state) || !model.is_quiet(state)
            }),
            Property::<Self>::sometimes("a region backfills", |model, state| {
                state.decided().cut.is_some_and(|cut| {
                    model.others().any(|region| {
                        state.reports[region]
                            .is_some_and(|at| at < cut && state.held[region] == cut)
                    })
                })
            }),
            Property::<Self>::sometimes(
                "stranded events are in the one order again",
                |model, state| {
                    state.readmitted > 0
                        && state.base.is_some_and(|base| {
                            model
                                .remaining(state.decided())
                                .all(|region| state.stable[region] > base)
                        })
                },
            ),
            Property::<Self>::sometimes(
                "A is lost, and what two regions held is not",
                |model, state| {
                    state.lost
                        && state.opened.is_some()
                        && state.acknowledged > 0
                        && model.is_healed(state)
                },
            ),
        ];
        if self.bounds.events > 1 {
            properties.push(Property::<Self>::sometimes(
                "the new home opens below what A acknowledged",
                |_, state| {
                    state.opened.is_some()
                        && state
                            .decided()
                            .cut
                            .is_some_and(|cut| cut > 0 && cut < state.top)
                },
            ));
        }
        if self.bounds.evictions > 0 {
            if self.bounds.losses {
                properties.push(Property::<Self>::sometimes(
                    "a cut that was lost with its holder is taken again",
                    |model, state| {
                        let is_cut = |decision: &&Decision| matches!(decision, Decision::Cut(_));
                        let cuts = state.decisions.iter().filter(is_cut).count();
                        state.last_lost && cuts > 1 && model.is_healed(state)
                    },
                ));
            }
            properties.extend([
                Property::<Self>::sometimes(
                    "a second round cuts lower than the first",
                    |_, state| {
                        let cuts: Vec<u8> = state
                            .decisions
                            .iter()
                            .filter_map(|decision| {
                                if let Decision::Cut(at) = decision {
                                    Some(*at)
                                } else {
                                    None
                                }
                            })
                            .collect();
                        cuts.windows(2).any(|pair| pair[1] < pair[0])
                    },
                ),
                Property::<Self>::sometimes(
                    "an evicted region brings back what was lost with A",
                    |_, state| state.lost && state.readmitted > 0,
                ),
            ]);
        }
        properties
    }
}

/// These rules, and what is expected of them.
pub(crate) fn cases(size: Size) -> Vec<Case> {
    let bounds = |regions, events, later, evictions| Bounds {
        regions,
        events,
        later,
        evictions,
        losses: false,
    };
    let with_losses = |bounds| Bounds {
        losses: true,
        ..bounds
    };
    let holds: &[(Rules, Bounds)] = match size {
        Size::Small => &[(Rules::Right, bounds(3, 2, 1, 0))],
        Size::Full => &[
            (Rules::Right, bounds(3, 3, 2, 1)),
            (Rules::Right, bounds(4, 2, 1, 1)),
            (Rules::Right, with_losses(bounds(3, 2, 2, 1))),
            (Rules::Right, with_losses(bounds(4, 1, 1, 1))),
            (Rules::OwnBackfill, bounds(3, 2, 2, 1)),
            (Rules::OwnBackfill, bounds(4, 1, 1, 1)),
        ],
    };
    let breaks = [
        (Rules::MajoritySeals, "sealed", bounds(4, 1, 1, 0)),
        (Rules::StoreUnchecked, "sealed", bounds(3, 1, 1, 1)),
        (Rules::SealForgotten, "sealed", bounds(3, 1, 1, 1)),
        (Rules::ReportOfEarlierRound, "sealed", bounds(3, 1, 1, 1)),
        (Rules::ShortestCut, "sealed", bounds(3, 1, 1, 0)),
        (Rules::ShortestCut, "never stranded", bounds(3, 1, 1, 0)),
        (Rules::OutBeforeBackfill, "same-order", bounds(3, 1, 1, 0)),
        (Rules::PromiseUnfulfilled, "same-order", bounds(3, 1, 1, 0)),
        (Rules::JoinWithoutBarrier, "same-order", bounds(3, 1, 1, 0)),
        (Rules::OpenBeforeBackfill, "revisions", bounds(3, 1, 1, 0)),
        (Rules::ClockBelowCut, "revisions", bounds(3, 1, 1, 0)),
        (Rules::StableIsFinal, "final", bounds(3, 1, 1, 1)),
        (Rules::UntaggedWords, "final", bounds(3, 1, 1, 0)),
        (Rules::FencedShowsOn, "final", bounds(3, 1, 1, 1)),
        (Rules::EvictedTailDropped, "durable", bounds(3, 1, 1, 1)),
        (Rules::OwnTailDropped, "accounted", bounds(3, 1, 1, 0)),
        (Rules::CutStands, "heals", with_losses(bounds(3, 1, 1, 1))),
        (Rules::LateRefused, "heals", bounds(3, 1, 1, 0)),
    ];
    let holds = holds
        .iter()
        .map(|(rules, bounds)| Case::holds("fence", rules, bounds, Fence::new(*rules, *bounds)));
    let breaks = breaks.map(|(rules, property, bounds)| {
        Case::breaks(
            "fence",
            &rules,
            &bounds,
            property,
            Fence::new(rules, bounds),
        )
    });
    holds.chain(breaks).collect()
}

//! The way back: a tail beyond the cut becomes events of a new log, once, wherever a crash falls.
//!
//! A returns with a tail of its own log that is beyond the cut; C, evicted in the same fence, holds a part
//! of it. Each moves its tail to a stranded place, claims what nobody claimed yet, and writes what it
//! claimed to its own new log. Both may crash between any two writes, and A may be lost before it claims.
//! A position here is one beyond the cut: 1, 2, 3…
//!
//! Not here: what the new log's stamps must be above ([`fence`](crate::fence)), and what becomes of an event
//! that cannot be applied any more (`conflict`). Start reading at [`Action`].

use stateright::{Model, Property};

use crate::Region;
use crate::cases::{Case, Size};

const A: usize = 0;
/// A and C.
const RETURNING: [Region; 2] = [Region(0), Region(2)];

/// The rules that regions follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// What the README's rules say.
    Right,
    /// What was written again is known from a mark that is made after each write.
    MarkAfterWrite,
    /// The mark is made before each write.
    MarkBeforeWrite,
    /// The tail is cut off before its copy is durable.
    CutOffFirst,
    /// Everyone writes again all that it holds beyond the cut.
    NoClaims,
    /// Only the door asks for the epoch: an append that passed it is stored after the region knows of its fence.
    StoreUnchecked,
}

/// How much may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Events of A beyond the cut, one more may be on its way to the store.
    pub tail: u8,
    /// How many of them C holds.
    pub at_c: u8,
    /// Crashes, of both together.
    pub crashes: u8,
}

/// The model.
#[derive(Clone, Debug)]
pub struct Readmission {
    rules: Rules,
    bounds: Bounds,
}

/// One returning region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Side {
    /// Durable: what is beyond the cut in the main log.
    main: u8,
    /// Durable: how much is in the stranded place.
    stranded: u8,
    /// Durable: the main log ends at the cut.
    cut_off: bool,
    /// Durable: positions that were written to the new log.
    again: Vec<u8>,
    /// Durable, under the rules that have it: how many were written.
    mark: u8,
    /// In memory: an append on its way to the store.
    writing: bool,
    /// In memory: what was cut off and is not yet in the stranded place.
    loose: u8,
    /// In memory: the last write was not marked, or the last mark not written.
    halfway: bool,
    knows: bool,
}

/// Everything that matters at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    sides: [Side; 2],
    /// Decisions of the control plane: who writes again which positions, up to and with the second.
    claims: Vec<(Region, u8, u8)>,
    /// What A acknowledged.
    acknowledged: u8,
    crashes: u8,
    lost: bool,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A's store finishes the append that was on its way, and it is acknowledged.
    Finish,
    /// The region learns that it is fenced, and where the cut is.
    Learn(Region),
    /// The next event of the tail is copied to the stranded place.
    Copy(Region),
    /// The main log is cut off.
    CutOff(Region),
    /// The control plane gives the region what nobody has claimed.
    Claim(Region),
    /// The region writes the next event to its new log.
    Write(Region),
    /// It makes its mark.
    Mark(Region),
    /// It crashes: what was in memory is gone.
    Crash(Region),
    /// A is lost.
    Lose,
}

impl Readmission {
    /// The model under these rules, with so much happening.
    #[must_use]
    pub fn new(rules: Rules, bounds: Bounds) -> Readmission {
        Readmission { rules, bounds }
    }

    fn side(region: Region) -> usize {
        if region.index() == A { 0 } else { 1 }
    }

    /// What a region is to write again, lowest first.
    fn duty(&self, state: &State, region: Region) -> Vec<u8> {
        if self.rules == Rules::NoClaims {
            let side = &state.sides[Self::side(region)];
            return if side.cut_off {
                (1..=side.stranded).collect()
            } else {
                Vec::new()
            };
        }
        state
            .claims
            .iter()
            .filter(|(by, _, _)| *by == region)
            .flat_map(|&(_, after, last)| after + 1..=last)
            .collect()
    }

    /// The next event to write again.
    fn next(&self, state: &State, region: Region) -> Option<u8> {
        let side = &state.sides[Self::side(region)];
        let duty = self.duty(state, region);
        match self.rules {
            Rules::MarkAfterWrite | Rules::MarkBeforeWrite => {
                duty.get(usize::from(side.mark)).copied()
            }
            // The new log itself says what is in it, by the identity that each event began with.
            _ => duty
                .into_iter()
                .find(|position| !side.again.contains(position)),
        }
    }

    fn can(&self, state: &State, action: Action) -> bool {
        let is_here = |region: Region| !(state.lost && region.index() == A);
        match action {
            Action::Finish => !state.lost && state.sides[0].writing,
            Action::Learn(region) => is_here(region) && !state.sides[Self::side(region)].knows,
            Action::Copy(region) => {
                let side = &state.sides[Self::side(region)];
                let from = if self.rules == Rules::CutOffFirst {
                    side.loose
                } else {
                    side.main
                };
                is_here(region)
                    && side.knows
                    && side.stranded < from
                    && (self.rules == Rules::CutOffFirst || !side.cut_off)
            }
            Action::CutOff(region) => {
                let side = &state.sides[Self::side(region)];
                is_here(region)
                    && side.knows
                    && !side.cut_off
                    && (self.rules == Rules::CutOffFirst || side.stranded == side.main)
            }
            Action::Claim(region) => {
                let side = &state.sides[Self::side(region)];
                let claimed = state.claims.last().map_or(0, |&(_, _, last)| last);
                let copied = side.stranded >= side.loose;
                self.rules != Rules::NoClaims
                    && is_here(region)
                    && side.cut_off
                    && copied
                    && side.stranded > claimed
            }
            Action::Write(region) => {
                let halfway = state.sides[Self::side(region)].halfway;
                let allowed = match self.rules {
                    Rules::MarkAfterWrite => !halfway && self.next(state, region).is_some(),
                    Rules::MarkBeforeWrite => halfway,
                    _ => self.next(state, region).is_some(),
                };
                is_here(region) && allowed
            }
            Action::Mark(region) => {
                let halfway = state.sides[Self::side(region)].halfway;
                let allowed = match self.rules {
                    Rules::MarkAfterWrite => halfway,
                    Rules::MarkBeforeWrite => !halfway && self.next(state, region).is_some(),
                    _ => false,
                };
                is_here(region) && allowed
            }
            Action::Crash(region) => is_here(region) && state.crashes < self.bounds.crashes,
            Action::Lose => {
                !state.lost
                    && !state.claims.iter().any(|(by, _, _)| by.index() == A)
                    && !state.sides[0].knows
            }
        }
    }

    fn carry_out(&self, state: &mut State, action: Action) {
        match action {
            Action::Finish => {
                let side = &mut state.sides[0];
                side.writing = false;
                if !side.knows || self.rules == Rules::StoreUnchecked {
                    side.main += 1;
                    state.acknowledged += 1;
                }
            }
            Action::Learn(region) => state.sides[Self::side(region)].knows = true,
            Action::Copy(region) => state.sides[Self::side(region)].stranded += 1,
            Action::CutOff(region) => {
                let side = &mut state.sides[Self::side(region)];
                side.cut_off = true;
                if self.rules == Rules::CutOffFirst {
                    side.loose = side.main;
                }
                side.main = 0;
            }
            Action::Claim(region) => {
                let claimed = state.claims.last().map_or(0, |&(_, _, last)| last);
                state
                    .claims
                    .push((region, claimed, state.sides[Self::side(region)].stranded));
            }
            Action::Write(region) => {
                let next = match self.rules {
                    Rules::MarkBeforeWrite => self
                        .duty(state, region)
                        .get(usize::from(state.sides[Self::side(region)].mark) - 1)
                        .copied(),
                    _ => self.next(state, region),
                };
                let side = &mut state.sides[Self::side(region)];
                side.again.extend(next);
                side.halfway = self.rules == Rules::MarkAfterWrite;
            }
            Action::Mark(region) => {
                let side = &mut state.sides[Self::side(region)];
                side.mark += 1;
                side.halfway = self.rules == Rules::MarkBeforeWrite;
            }
            Action::Crash(region) => {
                state.crashes += 1;
                let side = &mut state.sides[Self::side(region)];
                (side.writing, side.loose, side.halfway) = (false, 0, false);
            }
            Action::Lose => state.lost = true,
        }
    }

    fn is_quiet(&self, state: &State) -> bool {
        let each = RETURNING.iter().flat_map(|&region| {
            [
                Action::Learn(region),
                Action::Copy(region),
                Action::CutOff(region),
                Action::Claim(region),
                Action::Write(region),
                Action::Mark(region),
            ]
        });
        !each
            .chain([Action::Finish])
            .any(|action| self.can(state, action))
    }

    fn is_accounted(&self, state: &State) -> bool {
        let times = |position: u8| {
            state
                .sides
                .iter()
                .flat_map(|side| &side.again)
                .filter(|&&again| again == position)
                .count()
        };
        let kept = if state.lost {
            self.bounds.at_c
        } else {
            state.acknowledged
        };
        let is_whole = || (1..=kept).all(|position| times(position) == 1);
        (1..=state.acknowledged).all(|position| times(position) <= 1)
            && (is_whole() || !self.is_quiet(state))
    }
}

impl Model for Readmission {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let a = Side {
            main: self.bounds.tail,
            writing: true,
            ..Side::default()
        };
        let c = Side {
            main: self.bounds.at_c,
            ..Side::default()
        };
        vec![State {
            sides: [a, c],
            claims: Vec::new(),
            acknowledged: self.bounds.tail,
            crashes: 0,
            lost: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let each = RETURNING.iter().flat_map(|&region| {
            [
                Action::Learn(region),
                Action::Copy(region),
                Action::CutOff(region),
                Action::Claim(region),
                Action::Write(region),
                Action::Mark(region),
                Action::Crash(region),
            ]
        });
        actions.extend(
            each.chain([Action::Finish, Action::Lose])
                .filter(|&action| self.can(state, action)),
        );
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.carry_out(&mut next, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("accounted", |model, state| model.is_accounted(state)),
            Property::<Self>::always("sealed", |_, state| {
                state
                    .sides
                    .iter()
                    .all(|side| !side.cut_off || side.main == 0)
            }),
            Property::<Self>::sometimes("both bring back a part", |_, state| {
                state.sides.iter().all(|side| !side.again.is_empty())
            }),
            Property::<Self>::sometimes("a crash falls between two writes", |model, state| {
                state.crashes > 0 && state.sides[0].again.len() > 1 && model.is_quiet(state)
            }),
            Property::<Self>::sometimes("C brings back what was lost with A", |model, state| {
                state.lost && !state.sides[1].again.is_empty() && model.is_quiet(state)
            }),
        ]
    }
}

/// These rules, and what is expected of them.
pub(crate) fn cases(size: Size) -> Vec<Case> {
    let right = match size {
        Size::Small => Bounds {
            tail: 3,
            at_c: 2,
            crashes: 2,
        },
        Size::Full => Bounds {
            tail: 6,
            at_c: 4,
            crashes: 6,
        },
    };
    let breaks = [
        (Rules::MarkAfterWrite, "accounted"),
        (Rules::MarkBeforeWrite, "accounted"),
        (Rules::CutOffFirst, "accounted"),
        (Rules::NoClaims, "accounted"),
        (Rules::StoreUnchecked, "sealed"),
    ];
    let least = Bounds {
        tail: 2,
        at_c: 1,
        crashes: 1,
    };
    let breaks = breaks.map(|(rules, property)| {
        Case::breaks(
            "readmission",
            &rules,
            &least,
            property,
            Readmission::new(rules, least),
        )
    });
    [Case::holds(
        "readmission",
        &Rules::Right,
        &right,
        Readmission::new(Rules::Right, right),
    )]
    .into_iter()
    .chain(breaks)
    .collect()
}

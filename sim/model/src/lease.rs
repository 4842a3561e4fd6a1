//! A home that may be cut off, and a successor that waits its lease out: isolation policy `fenced`.
//!
//! A is the home of a stream, B its successor, C the third member. A asks for its lease to be renewed, and
//! with its own voice needs one more of the three. Time passes in ticks that every clock counts at a rate of
//! its own, a different one each tick if it likes: two units or three. Ages are all that is kept of time, so
//! there is no last tick, and every state of an endless run is seen.
//!
//! Not here: how the fence comes about in detail ([`fence`](crate::fence)); clocks that drift more than
//! they are trusted to. Start reading at [`Action`].

use stateright::{Model, Property};

use crate::Region;
use crate::cases::{Case, Size};

/// How long a lease lasts by the clock of the region that holds it, from when it *asked*.
const LEASE: u8 = 6;
const SLOW: u8 = 2;
const FAST: u8 = 3;
/// How long the successor waits by its own clock: as long as a lease lasts if the holder's clock is the
/// slowest there may be and its own the fastest.
const WAIT: u8 = LEASE * FAST / SLOW;

const B: u8 = 1;
const C: u8 = 2;

/// The rules that regions follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// What the README's rules say.
    Right,
    /// The successor waits as long as a lease lasts, with nothing for clocks that differ.
    NoMargin,
    /// The successor waits from when it learns of the fence, not from the last seal.
    WaitFromFence,
    /// A lease counts from when the answer came.
    LeaseFromAnswer,
    /// C need not seal: it is evicted, and goes on renewing.
    MinorityRemains,
    /// A successor that restarts goes on as if it had waited.
    WaitForgotten,
    /// A acknowledges what only A holds, as it would at level `region`.
    AcknowledgeAlone,
}

/// How much may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Events that A may append.
    pub events: u8,
}

/// The model.
#[derive(Clone, Debug)]
pub struct Lease {
    rules: Rules,
    bounds: Bounds,
}

/// Everything that matters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// How long ago A asked, by its clock, for the renewal that it waits for.
    asked: Option<u8>,
    /// Somebody granted that one.
    granted: bool,
    /// The age of A's lease by its clock, while it is good.
    lease: Option<u8>,
    fenced: bool,
    /// B and C: whether they sealed.
    sealed: [bool; 2],
    /// How long B has waited by its clock.
    waited: Option<u8>,
    open: bool,
    /// What A has appended.
    top: u8,
    /// B and C: how far they hold it.
    held: [u8; 2],
    acknowledged: u8,
    cut: Option<u8>,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A tick passes; these clocks count three units instead of two.
    Tick {
        /// A's.
        fast_a: bool,
        /// B's.
        fast_b: bool,
    },
    /// A asks for its lease to be renewed.
    Ask,
    /// B or C grants it, unless it sealed.
    Grant(Region),
    /// The grant arrives.
    Renew,
    /// A, under its lease, appends an event.
    Append,
    /// B or C takes the next event, unless it sealed.
    Take(Region),
    /// The control plane fences A.
    DecideFence,
    /// B or C learns of it and seals.
    Seal(Region),
    /// All have sealed: the cut is known, and B begins to wait.
    Cut,
    /// B has waited, holds the cut and opens.
    Open,
    /// B restarts while it waits.
    Restart,
}

impl Lease {
    /// The model under these rules, with so much happening.
    #[must_use]
    pub fn new(rules: Rules, bounds: Bounds) -> Lease {
        Lease { rules, bounds }
    }

    fn all_sealed(&self, state: &State) -> bool {
        state.sealed[0] && (state.sealed[1] || self.rules == Rules::MinorityRemains)
    }

    fn wait(&self) -> u8 {
        if self.rules == Rules::NoMargin {
            LEASE
        } else {
            WAIT
        }
    }

    fn can(&self, state: &State, action: Action) -> bool {
        match action {
            Action::Tick { .. } | Action::Ask => true,
            Action::Grant(region) => {
                state.asked.is_some() && !state.granted && !state.sealed[region.index() - 1]
            }
            Action::Renew => state.granted,
            Action::Append => state.lease.is_some() && state.top < self.bounds.events,
            Action::Take(region) => {
                state.held[region.index() - 1] < state.top && !state.sealed[region.index() - 1]
            }
            Action::DecideFence => !state.fenced,
            Action::Seal(region) => state.fenced && !state.sealed[region.index() - 1],
            Action::Cut => self.all_sealed(state) && state.cut.is_none(),
            Action::Open => {
                !state.open
                    && state.cut.is_some()
                    && state.waited.is_some_and(|waited| waited >= self.wait())
            }
            Action::Restart => !state.open && state.waited.is_some(),
        }
    }

    fn carry_out(&self, state: &mut State, action: Action) {
        match action {
            Action::Tick { fast_a, fast_b } => {
                let units = |fast| if fast { FAST } else { SLOW };
                let good = |age: u8| Some(age + units(fast_a)).filter(|&age| age < LEASE);
                state.lease = state.lease.and_then(good);
                // A grant of a request that is older than a lease is of no use.
                state.asked = match self.rules {
                    Rules::LeaseFromAnswer => state.asked,
                    _ => state.asked.and_then(good),
                };
                state.granted &= state.asked.is_some();
                state.waited = state
                    .waited
                    .map(|waited| (waited + units(fast_b)).min(self.wait()));
            }
            Action::Ask => {
                state.asked = Some(0);
                state.granted = false;
            }
            Action::Grant(_) => state.granted = true,
            Action::Renew => {
                state.lease = if self.rules == Rules::LeaseFromAnswer {
                    Some(0)
                } else {
                    state.asked
                };
                state.asked = None;
                state.granted = false;
            }
            Action::Append => state.top += 1,
            Action::Take(region) => state.held[region.index() - 1] += 1,
            Action::DecideFence => state.fenced = true,
            Action::Seal(region) => {
                state.sealed[region.index() - 1] = true;
                if region.0 == B && self.rules == Rules::WaitFromFence {
                    state.waited = Some(0);
                }
            }
            Action::Cut => {
                let evicted = self.rules == Rules::MinorityRemains && !state.sealed[1];
                state.cut = Some(if evicted {
                    state.held[0]
                } else {
                    state.held[0].max(state.held[1])
                });
                state.waited = state.waited.or(Some(0));
            }
            Action::Open => state.open = true,
            Action::Restart => {
                state.waited = Some(if self.rules == Rules::WaitForgotten {
                    self.wait()
                } else {
                    0
                });
            }
        }
        let safe = match self.rules {
            Rules::AcknowledgeAlone => state.top,
            _ => state.held[0].max(state.held[1]),
        };
        state.acknowledged = state.acknowledged.max(safe);
    }
}

impl Model for Lease {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let ticks =
            [false, true].map(|fast_a| [false, true].map(|fast_b| Action::Tick { fast_a, fast_b }));
        let others = [Region(B), Region(C)];
        actions.extend(
            ticks
                .into_iter()
                .flatten()
                .chain(others.map(Action::Grant))
                .chain(others.map(Action::Take))
                .chain(others.map(Action::Seal))
                .chain([
                    Action::Ask,
                    Action::Renew,
                    Action::Append,
                    Action::DecideFence,
                ])
                .chain([Action::Cut, Action::Open, Action::Restart])
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
            Property::<Self>::always("one-home", |_, state| {
                !(state.open && state.lease.is_some())
            }),
            Property::<Self>::always("never stranded", |_, state| {
                state.cut.is_none_or(|cut| state.acknowledged <= cut)
            }),
            Property::<Self>::sometimes("the successor opens", |_, state| state.open),
            Property::<Self>::sometimes("a lease outlives the seal of one", |_, state| {
                state.lease.is_some() && state.sealed[0] && !state.sealed[1]
            }),
            Property::<Self>::sometimes("an acknowledged event is inside the cut", |_, state| {
                state.open && state.acknowledged > 0
            }),
        ]
    }
}

/// These rules, and what is expected of them.
pub(crate) fn cases(size: Size) -> Vec<Case> {
    let bounds = match size {
        Size::Small => Bounds { events: 1 },
        Size::Full => Bounds { events: 4 },
    };
    let breaks = [
        (Rules::NoMargin, "one-home"),
        (Rules::WaitFromFence, "one-home"),
        (Rules::LeaseFromAnswer, "one-home"),
        (Rules::WaitForgotten, "one-home"),
        (Rules::MinorityRemains, "one-home"),
        (Rules::MinorityRemains, "never stranded"),
        (Rules::AcknowledgeAlone, "never stranded"),
    ];
    let least = Bounds { events: 1 };
    let breaks = breaks.map(|(rules, property)| {
        Case::breaks("lease", &rules, &least, property, Lease::new(rules, least))
    });
    [Case::holds(
        "lease",
        &Rules::Right,
        &bounds,
        Lease::new(Rules::Right, bounds),
    )]
    .into_iter()
    .chain(breaks)
    .collect()
}

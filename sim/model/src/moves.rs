//! Moves of one stream that race the failover of a region: who may write it, under which epoch.
//!
//! Three regions, an origin log each, one stream that begins at A. Its home may move it on; A may be
//! fenced at any moment, dead or alive, and B may be evicted with it. C is the successor, and where an
//! eviction leaves a majority it stands for all that stay. Delays, losses and partitions are steps that come
//! later or never, as in [`fence`](crate::fence).
//!
//! Not here: stable and final, blocks between link and store, what becomes of A's other events. Start
//! reading at `Moves::claim`: it says who a region takes for the home.

use stateright::{Model, Property};

use crate::Region;
use crate::cases::{Case, Size};

const REGIONS: usize = 3;
/// A's log of its new incarnation.
const AGAIN: usize = 3;
const LOGS: usize = 4;
const A: usize = 0;
const EVICTED: Region = Region(1);
const SUCCESSOR: Region = Region(2);

/// The rules that regions follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// What the README's rules say.
    Right,
    /// An epoch is one number, which a move and a failover both raise.
    OneNumber,
    /// The new home opens when it holds the transfer, and counts on from what it holds.
    TransferAlone,
    /// The old home goes on writing after its transfer.
    OldHomeWritesOn,
    /// A failover opens all streams that were homed at A by rule, and does not look for transfers.
    FailoverIgnoresTransfers,
    /// A returning region appends its stranded transfers again, and they are followed like any other.
    StrandedTransferFollowed,
    /// A fence may leave fewer than a majority, and promises as much as any other.
    MinorityRemains,
    /// A new home opens when it alone holds the transfer.
    TransferHeldByOne,
}

/// Who may be evicted in A's fence, and what then stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evictions {
    /// Nobody.
    None,
    /// B, of three: the fence is forced, for C alone is no majority.
    Forced,
    /// B, of five: C stands for the three that stay, as if they were one.
    OfFive,
}

/// How much may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Events that homes may write to the stream.
    pub writes: u8,
    /// Moves.
    pub moves: u8,
    /// Who may be evicted in A's fence.
    pub evictions: Evictions,
}

/// The model.
#[derive(Clone, Debug)]
pub struct Moves {
    rules: Rules,
    bounds: Bounds,
}

/// Who may write: a move raises `minor`, a failover `major`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    major: u8,
    minor: u8,
}

/// What an origin log holds of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// An event.
    Write {
        /// Its place in the stream.
        revision: u8,
    },
    /// `$home-transfer`: the old home's last word.
    Transfer {
        /// The new home.
        to: Region,
        /// What it may write under.
        epoch: Epoch,
        /// The revision that it goes on with.
        next: u8,
    },
}

/// A decision of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// A's epoch ends.
    Fence,
    /// So does B's; a new round begins.
    Evict,
    /// Where the logs of A and B end; B's counts if it was evicted.
    Cut([u8; 2]),
    /// The remaining regions hold all that is below.
    Open,
}

/// Everything that matters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    logs: [Vec<Entry>; LOGS],
    /// How far each region holds each log.
    held: [[u8; LOGS]; REGIONS],
    /// What each region writes the stream under now.
    open: [Option<Epoch>; REGIONS],
    /// All that were ever open, in order.
    openings: Vec<(Epoch, Region)>,
    decisions: Vec<Decision>,
    known: [u8; REGIONS],
    reports: [Option<[u8; 2]>; REGIONS],
    writes: u8,
    moves: u8,
    returned: bool,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A region takes the next block of a log.
    Take(Region, Log),
    /// A region begins to write the stream.
    Open(Region),
    /// A region learns the next decision.
    Learn(Region),
    /// A sealed region says how far it holds the fenced logs.
    Report(Region),
    /// The control plane decides on the cut.
    DecideCut,
    /// The control plane lets the successor open.
    DecideOpen,
    /// A comes back and appends again what it finds stranded.
    Return,
    /// A home writes an event.
    Write(Region),
    /// A home hands the stream over.
    Move(Region, Region),
    /// The control plane fences A.
    DecideFence,
    /// It evicts B as well.
    DecideEvict,
}

/// An origin log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Log(u8);

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match usize::from(self.0) {
            AGAIN => write!(f, "A's new log"),
            _ => write!(f, "{:?}'s log", Region(self.0)),
        }
    }
}

/// What a region makes of the decisions that it knows.
#[derive(Clone, Copy, Default)]
struct View {
    round: u8,
    evicted: bool,
    cut: Option<[u8; 2]>,
    open: bool,
}

impl View {
    fn of(decisions: &[Decision]) -> View {
        let mut view = View::default();
        for decision in decisions {
            match *decision {
                Decision::Fence => view.round = 1,
                Decision::Evict => {
                    view = View {
                        round: view.round + 1,
                        evicted: true,
                        cut: None,
                        open: false,
                    }
                }
                Decision::Cut(cut) => view.cut = Some(cut),
                Decision::Open => view.open = true,
            }
        }
        view
    }

    fn fences(&self, region: usize) -> bool {
        (region == A && self.round > 0) || (region == EVICTED.index() && self.evicted)
    }
}

/// Who a region takes for the stream's home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    epoch: Epoch,
    home: Region,
    /// The revision that it goes on with, as far as that was said.
    next: u8,
}

impl State {
    fn view(&self, region: usize) -> View {
        View::of(&self.decisions[..usize::from(self.known[region])])
    }

    fn decided(&self) -> View {
        View::of(&self.decisions)
    }

    /// What a region holds of the stream.
    fn entries(&self, region: usize) -> impl Iterator<Item = Entry> {
        let held = self.held[region];
        self.logs
            .iter()
            .zip(held)
            .flat_map(|(log, held)| log[..usize::from(held)].iter().copied())
    }

    /// The revisions that a region holds, by bit.
    fn revisions(&self, region: usize) -> u8 {
        self.entries(region)
            .filter_map(|entry| {
                if let Entry::Write { revision } = entry {
                    Some(1 << revision)
                } else {
                    None
                }
            })
            .fold(0, |all, bit: u8| all | bit)
    }
}

impl Moves {
    /// The model under these rules, with so much happening.
    #[must_use]
    pub fn new(rules: Rules, bounds: Bounds) -> Moves {
        Moves { rules, bounds }
    }

    fn remaining(&self, view: View) -> impl Iterator<Item = usize> + use<> {
        (0..REGIONS).filter(move |&region| region != A && !view.fences(region))
    }

    /// Who is the home, by what this region holds and knows.
    fn claim(&self, state: &State, region: usize) -> Claim {
        let first = Claim {
            epoch: Epoch { major: 1, minor: 0 },
            home: Region(0),
            next: 0,
        };
        let view = state.view(region);
        let mut claim = first;
        if !(self.rules == Rules::FailoverIgnoresTransfers && view.open) {
            for entry in state.entries(region) {
                if let Entry::Transfer { to, epoch, next } = entry
                    && epoch > claim.epoch
                {
                    claim = Claim {
                        epoch,
                        home: to,
                        next,
                    };
                }
            }
        }
        // One failover is all that there is here, so what it opened is not failed over again.
        if view.open && view.fences(claim.home.index()) {
            let raised = Epoch {
                major: claim.epoch.major + 1,
                minor: 0,
            };
            return Claim {
                epoch: raised,
                home: SUCCESSOR,
                ..claim
            };
        }
        claim
    }

    /// The revision that a home goes on with.
    fn next_revision(&self, state: &State, region: usize) -> u8 {
        let held = 8 - state.revisions(region).leading_zeros() as u8;
        if self.rules == Rules::TransferAlone {
            held
        } else {
            held.max(self.claim(state, region).next)
        }
    }

    fn takes(state: &State, region: usize, log: usize, position: u8) -> bool {
        let view = state.view(region);
        if log == AGAIN {
            return view.open;
        }
        !view.fences(log) || view.cut.is_some_and(|cut| position <= cut[log])
    }

    fn can(&self, state: &State, action: Action) -> bool {
        match action {
            Action::Take(region, Log(log)) => {
                let (region, log) = (region.index(), usize::from(log));
                let next = state.held[region][log] + 1;
                usize::from(next) <= state.logs[log].len() && Self::takes(state, region, log, next)
            }
            Action::Open(region) => {
                let claim = self.claim(state, region.index());
                let (view, at) = (state.view(region.index()), region.index());
                let has_all =
                    (1 << self.next_revision(state, at)) - 1 == u16::from(state.revisions(at));
                claim.home == region
                    && state.open[at].is_none()
                    && !view.fences(at)
                    && state
                        .openings
                        .iter()
                        .all(|&(epoch, by)| by != region || epoch < claim.epoch)
                    && (has_all || self.rules == Rules::TransferAlone)
                    && (self.is_safe(state, claim) || self.rules == Rules::TransferHeldByOne)
            }
            Action::Learn(region) => {
                usize::from(state.known[region.index()]) < state.decisions.len()
            }
            Action::Report(region) => {
                let (decided, region) = (state.decided(), region.index());
                decided.round > 0
                    && decided.cut.is_none()
                    && state.view(region).round == decided.round
                    && !decided.fences(region)
                    && state.reports[region].is_none()
            }
            Action::DecideCut => {
                let decided = state.decided();
                decided.round > 0
                    && decided.cut.is_none()
                    && self
                        .remaining(decided)
                        .all(|region| state.reports[region].is_some())
            }
            Action::DecideOpen => {
                let decided = state.decided();
                !decided.open
                    && decided.cut.is_some_and(|cut| {
                        self.remaining(decided).all(|region| {
                            state.view(region).cut == Some(cut)
                                && state.held[region][A] >= cut[A]
                                && (!decided.evicted || state.held[region][1] >= cut[1])
                        })
                    })
            }
            Action::Return => {
                self.rules == Rules::StrandedTransferFollowed
                    && !state.returned
                    && state.view(A).open
            }
            Action::Write(region) => {
                state.writes < self.bounds.writes && self.may_write(state, region)
            }
            Action::Move(from, to) => {
                from != to
                    && state.moves < self.bounds.moves
                    && self.may_write(state, from)
                    && !state.view(from.index()).fences(to.index())
            }
            Action::DecideFence => state.decisions.is_empty(),
            Action::DecideEvict => {
                let decided = state.decided();
                self.bounds.evictions != Evictions::None && decided.round == 1 && !decided.open
            }
        }
    }

    /// A home answers `NotHome` as soon as it knows better.
    fn may_write(&self, state: &State, region: Region) -> bool {
        let at = region.index();
        let knows_better =
            self.claim(state, at).epoch > state.open[at].unwrap_or(Epoch { major: 0, minor: 0 });
        state.open[at].is_some()
            && !state.view(at).fences(at)
            && (!knows_better || self.rules == Rules::OldHomeWritesOn)
    }

    fn append(state: &mut State, log: usize, entry: Entry) {
        state.logs[log].push(entry);
        let writer = if log == AGAIN { A } else { log };
        state.held[writer][log] += 1;
    }

    fn carry_out(&self, state: &mut State, action: Action) {
        match action {
            Action::Take(region, Log(log)) => state.held[region.index()][usize::from(log)] += 1,
            Action::Open(region) => {
                let epoch = self.claim(state, region.index()).epoch;
                state.open[region.index()] = Some(epoch);
                state.openings.push((epoch, region));
                state.openings.sort_unstable();
            }
            Action::Learn(region) => {
                let at = region.index();
                state.known[at] += 1;
                if state.view(at).fences(at) {
                    state.open[at] = None;
                }
            }
            Action::Report(region) => {
                let held = state.held[region.index()];
                state.reports[region.index()] = Some([held[A], held[1]]);
            }
            Action::DecideCut => {
                let cut = state.reports.iter().flatten().fold([0, 0], |cut, report| {
                    [u8::max(cut[0], report[0]), u8::max(cut[1], report[1])]
                });
                let evicted = state.decided().evicted;
                state
                    .decisions
                    .push(Decision::Cut([cut[0], if evicted { cut[1] } else { 0 }]));
            }
            Action::DecideOpen => state.decisions.push(Decision::Open),
            Action::Return => {
                state.returned = true;
                let cut = state.view(A).cut.map_or(0, |cut| usize::from(cut[A]));
                for entry in state.logs[A].clone().into_iter().skip(cut) {
                    // An event is for the conflict records to keep; only transfers are at stake here.
                    if matches!(entry, Entry::Transfer { .. }) {
                        Self::append(state, AGAIN, entry);
                    }
                }
            }
            Action::Write(region) => {
                state.writes += 1;
                let revision = self.next_revision(state, region.index());
                Self::append(state, region.index(), Entry::Write { revision });
            }
            Action::Move(from, to) => {
                state.moves += 1;
                let epoch = state.open[from.index()].unwrap_or(Epoch { major: 1, minor: 0 });
                let epoch = if self.rules == Rules::OneNumber {
                    Epoch {
                        major: epoch.major + 1,
                        minor: 0,
                    }
                } else {
                    Epoch {
                        minor: epoch.minor + 1,
                        ..epoch
                    }
                };
                let next = self.next_revision(state, from.index());
                Self::append(state, from.index(), Entry::Transfer { to, epoch, next });
                if self.rules != Rules::OldHomeWritesOn {
                    state.open[from.index()] = None;
                }
            }
            Action::DecideFence => state.decisions.push(Decision::Fence),
            Action::DecideEvict => {
                state.decisions.push(Decision::Evict);
                state.reports = [None; REGIONS];
            }
        }
    }

    fn duties() -> impl Iterator<Item = Action> {
        let regions = || (0..REGIONS).map(Region::at);
        let takes = regions()
            .flat_map(|region| (0..LOGS as u8).map(move |log| Action::Take(region, Log(log))));
        takes
            .chain(regions().map(Action::Open))
            .chain(regions().map(Action::Learn))
            .chain(regions().map(Action::Report))
            .chain([Action::DecideCut, Action::DecideOpen, Action::Return])
    }

    fn chances() -> impl Iterator<Item = Action> {
        let regions = || (0..REGIONS).map(Region::at);
        regions()
            .map(Action::Write)
            .chain(regions().flat_map(move |from| regions().map(move |to| Action::Move(from, to))))
            .chain([Action::DecideFence, Action::DecideEvict])
    }

    fn is_quiet(&self, state: &State) -> bool {
        !Self::duties().any(|action| self.can(state, action))
    }

    fn is_forced(&self, state: &State) -> bool {
        self.bounds.evictions == Evictions::Forced && state.decided().evicted
    }

    /// Whether every fence that is not forced will find the transfer that made this claim: a majority
    /// holds it. Of three, old and new home are one.
    fn is_safe(&self, state: &State, claim: Claim) -> bool {
        let makes_it =
            |entry: &Entry| matches!(entry, Entry::Transfer { epoch, .. } if *epoch == claim.epoch);
        let held = state.held[SUCCESSOR.index()];
        let mut logs = state.logs.iter().zip(held);
        self.bounds.evictions != Evictions::OfFive
            || logs.all(|(log, held)| !log[usize::from(held)..].iter().any(makes_it))
    }

    fn has_one_home(state: &State) -> bool {
        state.openings.windows(2).all(|pair| pair[0].0 != pair[1].0)
    }

    /// The revisions in all main logs, as they stand in the end. Nothing before the cut is known.
    fn history(state: &State) -> Option<Vec<u8>> {
        let decided = state.decided();
        let mut revisions = Vec::new();
        for (log, entries) in state.logs.iter().enumerate() {
            let end = match decided.cut {
                _ if log == AGAIN || !decided.fences(log) => entries.len(),
                Some(cut) => usize::from(cut[log]),
                None => return None,
            };
            revisions.extend(entries[..end.min(entries.len())].iter().filter_map(
                |entry| match entry {
                    Entry::Write { revision } => Some(*revision),
                    Entry::Transfer { .. } => None,
                },
            ));
        }
        revisions.sort_unstable();
        Some(revisions)
    }

    fn is_unique(state: &State) -> bool {
        Self::history(state)
            .is_none_or(|revisions| revisions.windows(2).all(|pair| pair[0] != pair[1]))
    }

    /// A fence that was forced on a minority may leave holes, and says so; any other may not.
    fn is_gapless(&self, state: &State) -> bool {
        let forced = self.is_forced(state) && self.rules != Rules::MinorityRemains;
        forced
            || Self::history(state).is_none_or(|revisions| {
                revisions
                    .iter()
                    .enumerate()
                    .all(|(at, &revision)| usize::from(revision) <= at)
            })
    }

    /// Whether somebody writes the stream, and all who stay know who.
    fn is_healed(&self, state: &State) -> bool {
        let decided = state.decided();
        if self.is_forced(state) {
            return decided.open;
        }
        let claim = self.claim(state, SUCCESSOR.index());
        (decided.round == 0 || decided.open)
            && state.open[claim.home.index()] == Some(claim.epoch)
            && self
                .remaining(decided)
                .all(|region| self.claim(state, region) == claim)
    }
}

impl Model for Moves {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let first = Epoch { major: 1, minor: 0 };
        vec![State {
            open: [Some(first), None, None],
            openings: vec![(first, Region(0))],
            ..State::default()
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(
            Self::duties()
                .chain(Self::chances())
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
            Property::<Self>::always("one-home", |_, state| Moves::has_one_home(state)),
            Property::<Self>::always("revisions", |_, state| Moves::is_unique(state)),
            Property::<Self>::always("gapless", |model, state| model.is_gapless(state)),
            Property::<Self>::always("heals", |model, state| {
                model.is_healed(state) || !model.is_quiet(state)
            }),
            Property::<Self>::sometimes("a move and a failover both open", |_, state| {
                state
                    .openings
                    .iter()
                    .any(|(epoch, _)| epoch.minor > 0 || epoch.major > 2)
                    && state
                        .openings
                        .iter()
                        .any(|&(epoch, by)| epoch.major > 1 && by == SUCCESSOR)
            }),
            Property::<Self>::sometimes(
                "the successor opens, and a transfer is beyond the cut",
                |_, state| {
                    let cut = state.decided().cut.map_or(u8::MAX, |cut| cut[A]);
                    state.open[SUCCESSOR.index()].is_some_and(|epoch| epoch.major > 1)
                        && state.logs[A]
                            .iter()
                            .skip(usize::from(cut))
                            .any(|entry| matches!(entry, Entry::Transfer { .. }))
                },
            ),
            Property::<Self>::sometimes(
                "a move outlives the fence of the region it left",
                |_, state| {
                    state.decided().open
                        && state.open[1].is_some_and(|epoch| epoch.major == 1 && epoch.minor > 0)
                },
            ),
        ]
    }
}

/// These rules, and what is expected of them.
pub(crate) fn cases(size: Size) -> Vec<Case> {
    let bounds = |writes, moves, evictions| Bounds {
        writes,
        moves,
        evictions,
    };
    let holds: &[Bounds] = match size {
        Size::Small => &[bounds(2, 1, Evictions::None)],
        Size::Full => &[
            bounds(3, 2, Evictions::Forced),
            bounds(3, 2, Evictions::OfFive),
        ],
    };
    let breaks = [
        (
            Rules::OneNumber,
            "one-home",
            bounds(1, 1, Evictions::Forced),
        ),
        (
            Rules::TransferAlone,
            "revisions",
            bounds(2, 2, Evictions::None),
        ),
        (
            Rules::OldHomeWritesOn,
            "revisions",
            bounds(2, 1, Evictions::None),
        ),
        (
            Rules::FailoverIgnoresTransfers,
            "revisions",
            bounds(2, 1, Evictions::None),
        ),
        (
            Rules::StrandedTransferFollowed,
            "heals",
            bounds(2, 1, Evictions::None),
        ),
        (
            Rules::MinorityRemains,
            "gapless",
            bounds(2, 1, Evictions::Forced),
        ),
        (
            Rules::TransferHeldByOne,
            "gapless",
            bounds(2, 1, Evictions::OfFive),
        ),
    ];
    let right = Rules::Right;
    let holds = holds
        .iter()
        .map(|bounds| Case::holds("moves", &right, bounds, Moves::new(right, *bounds)));
    let breaks = breaks.map(|(rules, property, bounds)| {
        Case::breaks(
            "moves",
            &rules,
            &bounds,
            property,
            Moves::new(rules, bounds),
        )
    });
    holds.chain(breaks).collect()
}

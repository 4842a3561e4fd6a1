//! The state of one stream that every region may write, folded from its operations.
//!
//! A sequencer [parses](Operation::parse) what a client sent, [checks](State::check) it against what its region has
//! applied, gives it [a dot](State::next_dot) and [what was seen](State::seen), and records both ([`OpMeta`]). Every
//! region then [applies](State::apply) the operation, its own at once and those of others as they arrive.
//!
//! Not here: reading events, and when which region has applied what (`node`). Start reading at `dot`, then `State`,
//! then the fold of one kind.
//!
//! Always true (`convergent`): what a state shows is a function of the operations that were applied, whatever the
//! order, the repetitions and the snapshots in between. That needs three things of its callers. A dot names one
//! operation. Everything is applied in the end. And [`State::collect`] is not told too much; when it was,
//! [`State::apply`] says so.

mod bounded;
mod counter;
mod dot;
mod element;
mod encoding;
mod lww;
mod map;
mod meta;
mod operation;
mod register;
mod set;

use std::collections::{BTreeMap, BTreeSet};

use meridian_clock::{Position, RegionId, Timestamp};
use meridian_event::EventId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use bounded::Stock;
use counter::{Counter, Growing};
use dot::Context;
use lww::{Arrival, Cells, Rank};
use map::ObservedMap;
use register::Register;
use set::{GrowingSet, ObservedSet};

pub use dot::{Actor, Marker, OpDot, Seen};
pub use element::{Element, ElementError};
pub use encoding::DecodeError;
pub use lww::{Superseded, Winner};
pub use meta::{MetaError, OP_KEY, OpMeta};
pub use operation::{
    Change, DEPTH_MAX, FlatKind, KEY_BYTES_MAX, Kind, KindError, Operation, OperationError,
    VALUE_BYTES_MAX,
};

/// A recorded operation, as [`State::apply`] takes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// Which operation it is; for one that was written again, the dot that it first had.
    pub dot: OpDot,
    /// What its region had applied of the stream when it was sequenced first.
    pub seen: Seen,
    /// Where it was first written, and when.
    pub marker: Marker,
    /// Its event.
    pub id: EventId,
    /// What it does.
    pub operation: Operation,
}

impl Applied {
    fn weight_bytes(&self) -> usize {
        128 + 16 * self.seen.len() + self.operation.weight_bytes()
    }
}

/// What [`State::apply`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is applied now, and so is what waited for it.
    Fresh,
    /// It had been applied before, or waits already. Nothing changed.
    Repeated,
    /// An earlier operation of its actor is still to come; it is kept and applied after that.
    Waiting,
    /// It is applied, but it had not seen something that garbage collection was told every operation to come had seen.
    /// What it would have changed is gone, so other regions may now show something else: fold the stream
    /// again from its log, which holds it all.
    Inexact,
}

/// Why an operation must not be recorded now. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The stream is of one kind and the operation of another.
    #[error("this operation is not one on a {kind}, which this stream is")]
    OtherKind {
        /// The stream's kind.
        kind: Kind,
    },
    /// A removal only means something for what was seen.
    #[error(
        "{what} is not there in this region, so there is nothing to remove; read the stream again"
    )]
    NotThere {
        /// What should have been removed, shortened.
        what: String,
    },
    /// A counter has an end.
    #[error(
        "the counter stands at {total} and would leave its range; use a smaller amount or a new stream"
    )]
    Overflow {
        /// What it stands at.
        total: i128,
    },
    /// Only rights of the writing region can be used.
    #[error(
        "region {region} holds {here} rights and {wanted} are needed; {}",
        elsewhere(others)
    )]
    TooFewRights {
        /// The writing region.
        region: RegionId,
        /// What the operation would use.
        wanted: u64,
        /// What the region holds.
        here: u64,
        /// What other regions hold, as far as is known here.
        others: BTreeMap<RegionId, u64>,
    },
    /// That would change nothing.
    #[error("region {region} cannot give rights to itself; name another region")]
    GivesToItself {
        /// The region.
        region: RegionId,
    },
}

fn elsewhere(others: &BTreeMap<RegionId, u64>) -> String {
    if others.is_empty() {
        return "no other region holds any: grant more".to_owned();
    }
    let held = others
        .iter()
        .map(|(region, rights)| format!("region {region} holds {rights}"));
    let held: Vec<String> = held.collect();
    format!(
        "{}: let one of them give some, or write there",
        held.join(", ")
    )
}

/// A stream's state. One per stream and region; see the module for how it is used.
#[derive(Debug)]
pub struct State {
    seen: Seen,
    // Operations whose actor's earlier ones are still to come.
    waiting: BTreeMap<OpDot, Applied>,
    waiting_bytes: usize,
    body: Body,
}

#[derive(Debug)]
enum Body {
    GCounter(Growing),
    PnCounter(Counter),
    GSet(GrowingSet),
    OrSet(ObservedSet),
    MvRegister(Register),
    OrMap(ObservedMap),
    BoundedCounter(Stock),
    Document(Cells),
    Fields(Cells),
}

impl State {
    /// The state of a stream of `kind` that nothing was written to.
    pub fn new(kind: Kind) -> Self {
        let body = match kind {
            Kind::GCounter => Body::GCounter(Growing::default()),
            Kind::PnCounter => Body::PnCounter(Counter::default()),
            Kind::GSet => Body::GSet(GrowingSet::default()),
            Kind::OrSet => Body::OrSet(ObservedSet::default()),
            Kind::MvRegister => Body::MvRegister(Register::default()),
            Kind::OrMap => Body::OrMap(ObservedMap::default()),
            Kind::BoundedCounter => Body::BoundedCounter(Stock::default()),
            Kind::Document => Body::Document(Cells::default()),
            Kind::Fields => Body::Fields(Cells::default()),
        };
        Self {
            seen: Seen::default(),
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            body,
        }
    }

    /// The stream's kind.
    pub fn kind(&self) -> Kind {
        match &self.body {
            Body::GCounter(_) => Kind::GCounter,
            Body::PnCounter(_) => Kind::PnCounter,
            Body::GSet(_) => Kind::GSet,
            Body::OrSet(_) => Kind::OrSet,
            Body::MvRegister(_) => Kind::MvRegister,
            Body::OrMap(_) => Kind::OrMap,
            Body::BoundedCounter(_) => Kind::BoundedCounter,
            Body::Document(_) => Kind::Document,
            Body::Fields(_) => Kind::Fields,
        }
    }

    /// What has been applied: the context of the next operation that is sequenced here.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// The dot of the next operation that `actor` writes. Each generation of a region counts from 1.
    ///
    /// Before the next one is asked for, the operation is to be applied.
    pub fn next_dot(&self, actor: Actor) -> OpDot {
        actor.dot(self.seen.get(actor) + 1)
    }

    /// How many operations wait for earlier ones of their actor.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a sequencer may record `operation` for `by`, going by what has been applied here.
    ///
    /// Whatever it answers, an operation that was recorded elsewhere is applied.
    ///
    /// # Errors
    /// When it removes what is not there, leaves the range of a counter or uses rights that are not held.
    pub fn check(&self, operation: &Operation, by: Actor) -> Result<(), CheckError> {
        match (&self.body, operation) {
            (
                Body::GCounter(counter),
                Operation::Flat(FlatKind::GCounter, Change::Increase(by)),
            ) => within(counter.room_for(*by), counter.total().into()),
            (Body::PnCounter(counter), Operation::Flat(FlatKind::PnCounter, change)) => {
                let change = signed(change).ok_or_else(|| self.other_kind())?;
                within(counter.room_for(change), counter.total().into())
            }
            (Body::GSet(_), Operation::Flat(FlatKind::GSet, Change::Add(_)))
            | (Body::OrSet(_), Operation::Flat(FlatKind::OrSet, Change::Add(_)))
            | (Body::MvRegister(_), Operation::Flat(FlatKind::MvRegister, Change::Set(_)))
            | (Body::Document(_), Operation::Document(_))
            | (Body::Fields(_), Operation::Fields(_)) => Ok(()),
            (Body::OrSet(set), Operation::Flat(FlatKind::OrSet, Change::Remove(element))) => {
                is_there(set.contains(element), || element.as_str().to_owned())
            }
            (Body::OrMap(map), Operation::RemoveKey(key)) => {
                is_there(map.has_key(key), || format!("key {key:?}"))
            }
            (Body::OrMap(map), Operation::Update { key, kind, change }) => match (kind, change) {
                (FlatKind::GCounter, Change::Increase(by)) => {
                    let total = map.total(key, *kind);
                    within(u64::try_from(total + i128::from(*by)).is_ok(), total)
                }
                (FlatKind::PnCounter, Change::Increase(_) | Change::Decrease(_)) => {
                    let total = map.total(key, *kind);
                    let change = signed(change).ok_or_else(|| self.other_kind())?;
                    within(i64::try_from(total + change).is_ok(), total)
                }
                (FlatKind::OrSet, Change::Remove(element)) => {
                    let what = || format!("{} under key {key:?}", element.as_str());
                    is_there(map.has_element(key, element), what)
                }
                (FlatKind::GSet | FlatKind::OrSet, Change::Add(_))
                | (FlatKind::MvRegister, Change::Set(_)) => Ok(()),
                _ => Err(self.other_kind()),
            },
            (Body::BoundedCounter(stock), Operation::Grant(by)) => {
                let total = i128::try_from(stock.granted()).unwrap_or(i128::MAX);
                within(stock.room_for(*by), total)
            }
            (Body::BoundedCounter(stock), Operation::Take(wanted)) => {
                has_rights(stock, by.region, *wanted)
            }
            (Body::BoundedCounter(stock), Operation::Give { by: wanted, to }) => {
                match *to == by.region {
                    true => Err(CheckError::GivesToItself { region: *to }),
                    false => has_rights(stock, by.region, *wanted),
                }
            }
            _ => Err(self.other_kind()),
        }
    }

    /// Whether a sequencer may record all of `operations` for `by`, one after the other: each is judged with those
    /// before it.
    ///
    /// # Errors
    /// As [`State::check`], with the place of the first that it may not.
    pub fn check_all(
        &self,
        operations: &[&Operation],
        by: Actor,
    ) -> Result<(), (usize, CheckError)> {
        let checks = || operations.iter().enumerate();
        let alone =
            checks().map(|(at, operation)| self.check(operation, by).map_err(|it| (at, it)));
        // Whatever adds or sets can be done after anything, so it needs no state to be tried on.
        let is_free = |operation: &&Operation| {
            matches!(
                operation,
                Operation::Flat(_, Change::Add(_) | Change::Set(_))
                    | Operation::Document(_)
                    | Operation::Fields(_)
            )
        };
        if operations.len() < 2 || operations.iter().all(is_free) {
            return alone.collect();
        }
        let copy = Self::decode(&self.encode());
        let mut trial = copy.expect("what was encoded just now can be read");
        for (at, operation) in checks() {
            trial.check(operation, by).map_err(|error| (at, error))?;
            let tried = Applied {
                dot: trial.next_dot(by),
                seen: trial.seen.clone(),
                marker: Marker {
                    timestamp: Timestamp::ZERO,
                    region: by.region,
                    position: Position::ZERO,
                },
                id: EventId::from_random([0; 16]),
                operation: (*operation).clone(),
            };
            let _ = trial.apply(&tried);
        }
        Ok(())
    }

    /// What the actor of `dot` wrote before it, and is not applied yet, never comes: it was set aside when a fence cut
    /// it off. To be said in every region alike, of an actor whose operations come in the order of their dots.
    pub fn skip_to(&mut self, dot: OpDot) {
        let before = dot.actor.dot(dot.counter.saturating_sub(1));
        if self.seen.advance(before)
            && let Body::OrSet(set) = &mut self.body
        {
            set.pass(before);
        }
    }

    /// Applies a recorded operation, of whichever region.
    ///
    /// Never fails: what makes no sense here, such as an operation of another kind, changes nothing, in
    /// every region alike. Operations of one actor take effect in the order of their dots; one that comes early waits.
    #[must_use = "an inexact state must be folded again"]
    pub fn apply(&mut self, applied: &Applied) -> Outcome {
        let dot = applied.dot;
        if dot.counter == 0 || self.seen.contains(dot) || self.waiting.contains_key(&dot) {
            return Outcome::Repeated;
        }
        if dot.counter - 1 > self.seen.get(dot.actor) {
            self.waiting_bytes += applied.weight_bytes();
            self.waiting.insert(dot, applied.clone());
            return Outcome::Waiting;
        }
        let mut is_exact = self.take(applied);
        while let Some(next) = self.unblocked(dot.actor) {
            self.waiting_bytes -= next.weight_bytes();
            is_exact &= self.take(&next);
        }
        match is_exact {
            true => Outcome::Fresh,
            false => Outcome::Inexact,
        }
    }

    fn unblocked(&mut self, actor: Actor) -> Option<Applied> {
        if self.waiting.is_empty() {
            return None;
        }
        let next = actor.dot(self.seen.get(actor).checked_add(1)?);
        self.waiting.remove(&next)
    }

    /// Applies the next operation of its actor. Returns whether it could be done exactly.
    fn take(&mut self, applied: &Applied) -> bool {
        let context = Context::new(applied.dot, &applied.seen);
        let is_exact = self.change(applied, context);
        self.seen.advance(applied.dot);
        if let Body::Document(cells) | Body::Fields(cells) = &mut self.body {
            cells.settle(&self.seen);
        }
        is_exact
    }

    fn change(&mut self, applied: &Applied, context: Context<'_>) -> bool {
        let Applied { dot, operation, .. } = applied;
        let clock = &self.seen;
        let arrival = Arrival {
            rank: Rank {
                marker: applied.marker,
                dot: *dot,
            },
            id: applied.id,
            context,
            clock,
        };
        match (&mut self.body, operation) {
            (
                Body::GCounter(counter),
                Operation::Flat(FlatKind::GCounter, Change::Increase(by)),
            ) => {
                counter.add(dot.actor, *by);
            }
            (Body::PnCounter(counter), Operation::Flat(FlatKind::PnCounter, change)) => {
                match change {
                    Change::Increase(by) => counter.add(dot.actor, *by),
                    Change::Decrease(by) => counter.subtract(dot.actor, *by),
                    _ => {}
                }
            }
            (Body::GSet(set), Operation::Flat(FlatKind::GSet, Change::Add(element))) => {
                set.add(element);
            }
            (Body::OrSet(set), Operation::Flat(FlatKind::OrSet, change)) => match change {
                Change::Add(element) => set.add(*dot, element),
                Change::Remove(element) => set.remove(context, clock, element),
                _ => set.pass(*dot),
            },
            // Its own clock follows ours, whatever an operation does.
            (Body::OrSet(set), _) => set.pass(*dot),
            (
                Body::MvRegister(register),
                Operation::Flat(FlatKind::MvRegister, Change::Set(value)),
            ) => {
                register.set(context, clock, value);
            }
            (Body::OrMap(map), Operation::Update { key, kind, change }) => {
                map.update(context, clock, (key, *kind), change);
            }
            (Body::OrMap(map), Operation::RemoveKey(key)) => {
                return map.remove(context, clock, key);
            }
            (Body::BoundedCounter(stock), Operation::Grant(by)) => {
                stock.grant(dot.actor.region, *by)
            }
            (Body::BoundedCounter(stock), Operation::Take(by)) => stock.take(dot.actor.region, *by),
            (Body::BoundedCounter(stock), Operation::Give { by, to }) => {
                stock.give(dot.actor.region, *by, *to);
            }
            (Body::Document(cells), Operation::Document(value)) => {
                return cells.write(arrival, &"".into(), Some(value));
            }
            (Body::Fields(cells), Operation::Fields(fields)) => {
                let mut is_exact = true;
                for (name, value) in fields {
                    is_exact &= cells.write(arrival, name, value.as_ref());
                }
                return is_exact;
            }
            _ => {}
        }
        true
    }

    /// What the stream shows.
    ///
    /// | kind | value |
    /// |---|---|
    /// | counters | a number |
    /// | sets | a list without duplicates, sorted by the elements' canonical spelling |
    /// | register | a list of the concurrent values, sorted likewise, each once |
    /// | `or-map` | `{key: {kind: value}}`; several kinds under a key where regions began it at once |
    /// | `bounded-counter` | `{"stock": n, "rights": {region: n}}` |
    /// | `document` | the value, `null` before the first write |
    /// | `fields` | an object of the fields that are not deleted |
    pub fn value(&self) -> Value {
        match &self.body {
            Body::GCounter(counter) => counter.value(),
            Body::PnCounter(counter) => counter.value(),
            Body::GSet(set) => set.value(),
            Body::OrSet(set) => set.value(),
            Body::MvRegister(register) => register.value(),
            Body::OrMap(map) => map.value(),
            Body::BoundedCounter(stock) => stock.value(),
            Body::Document(cells) => cells.document(),
            Body::Fields(cells) => cells.fields(),
        }
    }

    /// Kind `bounded-counter`: the rights that `region` holds, as far as is known here. `None` for other kinds.
    pub fn rights(&self, region: RegionId) -> Option<u64> {
        match &self.body {
            Body::BoundedCounter(stock) => Some(stock.rights(region)),
            _ => None,
        }
    }

    /// The writes that lost to one that had not seen them, by marker; none unless the kind is `document` or `fields`.
    ///
    /// The same in every region that has applied the same operations and was told to forget the same.
    pub fn superseded(&self) -> impl Iterator<Item = Superseded> + '_ {
        let cells = self.cells().into_iter();
        cells.flat_map(|(cells, are_fields)| cells.superseded(are_fields))
    }

    /// The writes that are shown, by field; none unless the kind is `document` or `fields`.
    pub fn winners(&self) -> impl Iterator<Item = Winner> + '_ {
        let cells = self.cells().into_iter();
        cells.flat_map(|(cells, are_fields)| cells.winning(are_fields))
    }

    // What the last writer wins in, and whether that is fields.
    fn cells(&self) -> Option<(&Cells, bool)> {
        match &self.body {
            Body::Document(cells) => Some((cells, false)),
            Body::Fields(cells) => Some((cells, true)),
            _ => None,
        }
    }

    /// Lets go of what is listed as superseded of the events `ids`, once it is recorded durably elsewhere.
    ///
    /// What such an event loses only later is listed then.
    pub fn forget_superseded(&mut self, ids: &BTreeSet<EventId>) {
        if let Body::Document(cells) | Body::Fields(cells) = &mut self.body {
            cells.forget(ids);
        }
    }

    /// Frees what only operations are about that had not seen `last`, given that all those still to come have.
    ///
    /// So `last` is not just what every region has applied: an operation may be under way that was sequenced before
    /// its region had. It is safe once every region has applied it, and after that everything has arrived that was
    /// sequenced before; and while no region is out whose tail may be written again. An operation that breaks the
    /// rule is told by [`Outcome::Inexact`] where it matters.
    ///
    /// Never changes [`State::value`], [`State::digest`], [`State::winners`] or [`State::superseded`].
    pub fn collect(&mut self, last: &Seen) {
        match &mut self.body {
            Body::OrSet(set) => set.collect(&self.seen),
            Body::MvRegister(register) => register.collect(&self.seen),
            Body::OrMap(map) => map.collect(last, &self.seen),
            Body::Document(cells) | Body::Fields(cells) => cells.collect(last),
            Body::GCounter(_) | Body::PnCounter(_) | Body::GSet(_) | Body::BoundedCounter(_) => {}
        }
    }

    /// blake3 of what the state means: its kind and its [value](State::value). Regions that have applied the same have
    /// the same, whatever garbage they hold and whatever they were told to forget of what is superseded.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for part in [self.kind().name(), Element::new(self.value()).as_str()] {
            hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// Roughly what it takes in memory, in bytes. Costs nothing to ask.
    pub fn bytes(&self) -> usize {
        let body = match &self.body {
            Body::GCounter(counter) => counter.bytes(),
            Body::PnCounter(counter) => counter.bytes(),
            Body::GSet(set) => set.bytes(),
            Body::OrSet(set) => set.bytes(),
            Body::MvRegister(register) => register.bytes(),
            Body::OrMap(map) => map.bytes(),
            Body::BoundedCounter(stock) => stock.bytes(),
            Body::Document(cells) | Body::Fields(cells) => cells.bytes(),
        };
        body + self.waiting_bytes + 16 * self.seen.len()
    }

    fn other_kind(&self) -> CheckError {
        CheckError::OtherKind { kind: self.kind() }
    }
}

fn signed(change: &Change) -> Option<i128> {
    match change {
        Change::Increase(by) => Some(i128::from(*by)),
        Change::Decrease(by) => Some(-i128::from(*by)),
        _ => None,
    }
}

fn within(has_room: bool, total: i128) -> Result<(), CheckError> {
    match has_room {
        true => Ok(()),
        false => Err(CheckError::Overflow { total }),
    }
}

fn is_there(is_there: bool, what: impl Fn() -> String) -> Result<(), CheckError> {
    match is_there {
        true => Ok(()),
        false => Err(CheckError::NotThere {
            what: operation::shorten(what()),
        }),
    }
}

fn has_rights(stock: &Stock, region: RegionId, wanted: u64) -> Result<(), CheckError> {
    let here = stock.rights(region);
    match wanted <= here {
        true => Ok(()),
        false => Err(CheckError::TooFewRights {
            region,
            wanted,
            here,
            others: stock.others(region),
        }),
    }
}

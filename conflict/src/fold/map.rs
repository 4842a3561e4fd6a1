//! Keys that hold counters, sets and registers, with observed removal: a remove drops what its region had seen under
//! the key, and what was written without knowing of the remove survives.
//!
//! Ours, as the map of `crdts` does not converge under removes. Each update is kept as a *contribution* under its
//! dot, as the optimized set of Bieniusa et al. (2012) keeps additions: a counter's change, a set's element, a
//! register's value. A remove drops the contributions that its context includes, and nothing else; those that have
//! not come yet are dropped on arrival. So the result is a function of the operations alone, not of their order.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map as Object, Value};

use super::counter::clamped;
use super::dot::{Actor, Context, OpDot, Seen};
use super::element::Element;
use super::operation::{Change, FlatKind, Kind};

const BYTES: usize = 96;
const SLOT_BYTES: usize = 96;
const PART_BYTES: usize = 48;
const ELEMENT_BYTES: usize = 96;

type Key = Arc<str>;

/// An `or-map`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct ObservedMap {
    // Several kinds under one key, as two regions may have begun it at once.
    slots: BTreeMap<(Key, FlatKind), Slot>,
    // What is dropped already and has not come yet. What the state's clock includes is out of date.
    dropped: BTreeMap<Target, Seen>,
    #[serde(skip)]
    bytes: usize,
}

/// What an operation drops.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Target {
    /// All that a key holds.
    Key(Key),
    /// An element of the or-set under a key.
    Element(Key, Element),
    /// The values of the register under a key.
    Values(Key),
}

/// The contributions to one kind under one key; never none.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Slot {
    Sum(Sum),
    /// Each element with the last dot of each actor that added it: what includes the last includes those before.
    Elements(BTreeMap<Element, Seen>),
    Values(BTreeMap<OpDot, Element>),
}

/// A counter as a list of changes by actor.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Sum {
    parts: BTreeMap<Actor, Vec<Part>>,
    #[serde(skip)]
    total: i128,
}

/// One change of a counter, or several in a row of one actor that garbage collection merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    first: u64,
    last: u64,
    sum: i128,
}

impl ObservedMap {
    pub(super) fn has_key(&self, key: &str) -> bool {
        self.kinds(key).next().is_some()
    }

    pub(super) fn has_element(&self, key: &Key, element: &Element) -> bool {
        let slot = self.slots.get(&(key.clone(), FlatKind::OrSet));
        matches!(slot, Some(Slot::Elements(elements)) if elements.contains_key(element))
    }

    /// What the counter of `kind` under `key` stands at; 0 if there is none.
    pub(super) fn total(&self, key: &Key, kind: FlatKind) -> i128 {
        match self.slots.get(&(key.clone(), kind)) {
            Some(Slot::Sum(sum)) => sum.total,
            _ => 0,
        }
    }

    /// Applies a change to what `key` holds of `kind`, where `clock` is what has come so far.
    pub(super) fn update(
        &mut self,
        context: Context<'_>,
        clock: &Seen,
        (key, kind): (&Key, FlatKind),
        change: &Change,
    ) {
        let dot = context.dot();
        match (kind, change) {
            (FlatKind::GCounter | FlatKind::PnCounter, Change::Increase(by)) => {
                self.count(dot, key, kind, i128::from(*by));
            }
            (FlatKind::PnCounter, Change::Decrease(by)) => {
                self.count(dot, key, kind, -i128::from(*by));
            }
            (FlatKind::GSet | FlatKind::OrSet, Change::Add(element)) => {
                self.add(dot, key, kind, element);
            }
            (FlatKind::OrSet, Change::Remove(element)) => {
                self.drop_element(context, key, element);
                let target = Target::Element(key.clone(), element.clone());
                self.drop_later(target, &context.beyond(clock));
            }
            (FlatKind::MvRegister, Change::Set(value)) => {
                self.drop_values(context, key);
                let target = Target::Values(key.clone());
                if !self.is_dropped(dot, key) && !self.is_target(dot, &target) {
                    self.put(dot, key, value);
                }
                self.drop_later(target, &context.beyond(clock));
            }
            _ => {}
        }
    }

    /// Drops what `context` includes under `key`.
    ///
    /// Returns `false` when it includes a part of what garbage collection has merged, which then cannot be taken apart.
    pub(super) fn remove(&mut self, context: Context<'_>, clock: &Seen, key: &Key) -> bool {
        let kinds: Vec<FlatKind> = self.kinds(key).collect();
        let mut is_exact = true;
        for kind in kinds {
            let at = (key.clone(), kind);
            let Some(slot) = self.slots.get_mut(&at) else {
                continue;
            };
            self.bytes -= slot.bytes();
            is_exact &= slot.reset(context);
            match slot.is_empty() {
                true => self.forget(&at),
                false => self.bytes += slot.bytes(),
            }
        }
        self.drop_later(Target::Key(key.clone()), &context.beyond(clock));
        is_exact
    }

    /// Merges what no operation still to come tells apart, and forgets the drops of all that has come.
    pub(super) fn collect(&mut self, last: &Seen, clock: &Seen) {
        self.dropped.retain(|_, seen| !clock.covers(seen));
        for slot in self.slots.values_mut() {
            if let Slot::Sum(sum) = slot {
                self.bytes -= sum.bytes();
                sum.merge_up_to(last);
                self.bytes += sum.bytes();
            }
        }
    }

    pub(super) fn value(&self) -> Value {
        let mut keys = Object::new();
        for ((key, kind), slot) in &self.slots {
            let kinds = keys
                .entry(key.as_ref())
                .or_insert_with(|| Object::new().into());
            let kinds = kinds.as_object_mut().expect("it was made an object");
            kinds.insert(Kind::from(*kind).name().to_owned(), slot.value(*kind));
        }
        keys.into()
    }

    pub(super) fn bytes(&self) -> usize {
        BYTES + self.bytes + self.dropped.len() * ELEMENT_BYTES
    }

    /// As it is encoded: without what is out of date.
    pub(super) fn image(&self, clock: &Seen) -> Self {
        let mut image = self.clone();
        image.dropped.retain(|_, seen| {
            *seen = seen.beyond(clock);
            !seen.is_empty()
        });
        image
    }

    /// `None` when a slot is empty or not of its kind.
    pub(super) fn of_image(mut image: Self) -> Option<Self> {
        if !image
            .slots
            .iter()
            .all(|((_, kind), slot)| slot.is_sound(*kind))
        {
            return None;
        }
        for slot in image.slots.values_mut() {
            if let Slot::Sum(sum) = slot {
                sum.total = sum.parts.values().flatten().fold(0, |total, part| {
                    // An image that was not made by us may hold anything.
                    i128::saturating_add(total, part.sum)
                });
            }
        }
        let slots = image.slots.iter();
        image.bytes = slots
            .map(|((key, _), slot)| slot_bytes(key) + slot.bytes())
            .sum();
        Some(image)
    }

    fn kinds(&self, key: &str) -> impl Iterator<Item = FlatKind> {
        let from = (Key::from(key), FlatKind::GCounter);
        let to = (from.0.clone(), FlatKind::MvRegister);
        self.slots.range(from..=to).map(|((_, kind), _)| *kind)
    }

    fn count(&mut self, dot: OpDot, key: &Key, kind: FlatKind, change: i128) {
        if self.is_dropped(dot, key) {
            return;
        }
        let slot = self.slot(key, kind, || Slot::Sum(Sum::default()));
        if let Slot::Sum(sum) = slot {
            sum.add(dot, change);
            self.bytes += PART_BYTES;
        }
    }

    fn add(&mut self, dot: OpDot, key: &Key, kind: FlatKind, element: &Element) {
        let target =
            (kind == FlatKind::OrSet).then(|| Target::Element(key.clone(), element.clone()));
        let is_removed = target.is_some_and(|target| self.is_target(dot, &target));
        if is_removed || self.is_dropped(dot, key) {
            return;
        }
        let slot = self.slot(key, kind, || Slot::Elements(BTreeMap::new()));
        if let Slot::Elements(elements) = slot {
            let weight = match elements.contains_key(element) {
                true => 0,
                false => ELEMENT_BYTES + element.as_str().len(),
            };
            elements.entry(element.clone()).or_default().advance(dot);
            self.bytes += weight;
        }
    }

    fn put(&mut self, dot: OpDot, key: &Key, value: &Element) {
        let slot = self.slot(key, FlatKind::MvRegister, || Slot::Values(BTreeMap::new()));
        if let Slot::Values(values) = slot {
            values.insert(dot, value.clone());
            self.bytes += ELEMENT_BYTES + value.as_str().len();
        }
    }

    fn drop_element(&mut self, context: Context<'_>, key: &Key, element: &Element) {
        let at = (key.clone(), FlatKind::OrSet);
        let Some(Slot::Elements(elements)) = self.slots.get_mut(&at) else {
            return;
        };
        let Some(seen) = elements.get_mut(element) else {
            return;
        };
        if seen.reset(&context) {
            elements.remove(element);
            self.bytes -= ELEMENT_BYTES + element.as_str().len();
            if elements.is_empty() {
                self.forget(&at);
            }
        }
    }

    fn drop_values(&mut self, context: Context<'_>, key: &Key) {
        let at = (key.clone(), FlatKind::MvRegister);
        let Some(slot) = self.slots.get_mut(&at) else {
            return;
        };
        self.bytes -= slot.bytes();
        slot.reset(context);
        match slot.is_empty() {
            true => self.forget(&at),
            false => self.bytes += slot.bytes(),
        }
    }

    fn drop_later(&mut self, target: Target, beyond: &Seen) {
        if !beyond.is_empty() {
            self.dropped.entry(target).or_default().merge(beyond);
        }
    }

    fn is_dropped(&self, dot: OpDot, key: &Key) -> bool {
        self.is_target(dot, &Target::Key(key.clone()))
    }

    fn is_target(&self, dot: OpDot, target: &Target) -> bool {
        let seen = self.dropped.get(target);
        seen.is_some_and(|seen| seen.contains(dot))
    }

    fn slot(&mut self, key: &Key, kind: FlatKind, new: impl FnOnce() -> Slot) -> &mut Slot {
        let bytes = &mut self.bytes;
        self.slots.entry((key.clone(), kind)).or_insert_with(|| {
            *bytes += slot_bytes(key);
            new()
        })
    }

    /// Forgets a slot that has become empty, whose contributions are no longer counted.
    fn forget(&mut self, at: &(Key, FlatKind)) {
        self.slots.remove(at);
        self.bytes -= slot_bytes(&at.0);
    }
}

fn slot_bytes(key: &Key) -> usize {
    SLOT_BYTES + key.len()
}

impl Slot {
    /// Drops the contributions that `context` includes. Returns whether it could.
    fn reset(&mut self, context: Context<'_>) -> bool {
        match self {
            Self::Sum(sum) => return sum.reset(context),
            Self::Elements(elements) => elements.retain(|_, seen| !seen.reset(&context)),
            Self::Values(values) => values.retain(|dot, _| !context.contains(*dot)),
        }
        true
    }

    /// Whether it is one that we could have made.
    fn is_sound(&self, kind: FlatKind) -> bool {
        if self.is_empty() {
            return false;
        }
        match (self, kind) {
            (Self::Sum(sum), FlatKind::GCounter | FlatKind::PnCounter) => {
                sum.parts.values().all(|parts| !parts.is_empty())
            }
            (Self::Elements(elements), FlatKind::GSet | FlatKind::OrSet) => elements
                .values()
                .all(|seen| !seen.is_empty() && seen.is_canonical()),
            (Self::Values(_), FlatKind::MvRegister) => true,
            _ => false,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Sum(sum) => sum.parts.is_empty(),
            Self::Elements(elements) => elements.is_empty(),
            Self::Values(values) => values.is_empty(),
        }
    }

    fn value(&self, kind: FlatKind) -> Value {
        match self {
            Self::Sum(sum) if kind == FlatKind::GCounter => {
                u64::try_from(sum.total).unwrap_or(u64::MAX).into()
            }
            Self::Sum(sum) => clamped(sum.total).into(),
            Self::Elements(elements) => elements.keys().map(Element::to_value).collect(),
            Self::Values(values) => {
                let mut values: Vec<&Element> = values.values().collect();
                values.sort_unstable();
                values.dedup();
                values.into_iter().map(Element::to_value).collect()
            }
        }
    }

    fn bytes(&self) -> usize {
        let weigh = |element: &Element| ELEMENT_BYTES + element.as_str().len();
        match self {
            Self::Sum(sum) => sum.bytes(),
            Self::Elements(elements) => elements.keys().map(weigh).sum(),
            Self::Values(values) => values.values().map(weigh).sum(),
        }
    }
}

impl Sum {
    fn add(&mut self, dot: OpDot, sum: i128) {
        let (first, last) = (dot.counter, dot.counter);
        let parts = self.parts.entry(dot.actor).or_default();
        parts.push(Part { first, last, sum });
        self.total = self.total.saturating_add(sum);
    }

    fn reset(&mut self, context: Context<'_>) -> bool {
        let mut is_exact = true;
        let total = &mut self.total;
        self.parts.retain(|actor, parts| {
            let seen = context.get(*actor);
            // An actor's parts are in the order of its dots.
            let dropped = parts.partition_point(|part| part.last <= seen);
            for part in parts.drain(..dropped) {
                *total = total.saturating_sub(part.sum);
            }
            is_exact &= parts.first().is_none_or(|part| seen < part.first);
            !parts.is_empty()
        });
        is_exact
    }

    fn merge_up_to(&mut self, last: &Seen) {
        for (actor, parts) in &mut self.parts {
            let seen = last.get(*actor);
            let merged = parts.partition_point(|part| part.last <= seen);
            if merged < 2 {
                continue;
            }
            let sums = parts[..merged].iter().map(|part| part.sum);
            let sum = sums.fold(0, i128::saturating_add);
            let (first, last) = (parts[0].first, parts[merged - 1].last);
            parts.splice(..merged, [Part { first, last, sum }]);
        }
    }

    fn bytes(&self) -> usize {
        self.parts.values().map(Vec::len).sum::<usize>() * PART_BYTES
    }
}

//! Histories that regions may write, and what they must show: said once more, without any of the folds.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};

use meridian_clock::{Position, RegionId, Timestamp};
use meridian_conflict::{
    Actor, Applied, Change, Element, FlatKind, Kind, Marker, OpDot, Operation, Seen, Superseded,
};
use meridian_event::EventId;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// One thing that happens in a world of three regions, drawn blindly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) what: u8,
    pub(crate) region: u8,
    pub(crate) other: u8,
    pub(crate) a: u8,
    pub(crate) b: u8,
}

pub(crate) fn any_steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = (0u8..16, 0u8..3, 0u8..3, any::<u8>(), any::<u8>()).prop_map(
        |(what, region, other, a, b)| Step {
            what,
            region,
            other,
            a,
            b,
        },
    );
    prop::collection::vec(step, 0..most)
}

struct Region {
    actor: Actor,
    seen: Seen,
    position: u64,
    timestamp: u64,
}

/// What three regions write that hear of each other in the order of each actor's operations, and in no other. Now and
/// then one is fenced: it forgets what nobody else has, goes on in a new life, and hears of its tail later.
pub(crate) fn history(kind: Kind, steps: &[Step]) -> Vec<Applied> {
    let mut regions: Vec<Region> = (0..3)
        .map(|number| Region {
            actor: Actor::new(RegionId(number), 0),
            seen: Seen::default(),
            position: 0,
            timestamp: 0,
        })
        .collect();
    let mut written: Vec<Applied> = Vec::new();
    let mut last: BTreeMap<Actor, u64> = BTreeMap::new();
    for step in steps {
        let at = usize::from(step.region);
        match step.what {
            0..=7 => {
                let region = &mut regions[at];
                let dot = region.actor.dot(region.seen.get(region.actor) + 1);
                region.position += 1;
                // Clocks of regions are far apart, and each rises.
                region.timestamp += u64::from(step.b % 4) + 1;
                let applied = Applied {
                    dot,
                    seen: region.seen.clone(),
                    marker: Marker {
                        timestamp: Timestamp(region.timestamp),
                        region: region.actor.region,
                        position: Position(region.position),
                    },
                    id: id(dot),
                    operation: operation(kind, *step),
                };
                region.seen.advance(dot);
                last.insert(dot.actor, dot.counter);
                written.push(applied);
            }
            8..=14 => {
                // Hears of the next operation of some actor.
                let region = &mut regions[at];
                let behind: Vec<OpDot> = last
                    .iter()
                    .filter(|(actor, last)| region.seen.get(**actor) < **last)
                    .map(|(actor, _)| actor.dot(region.seen.get(*actor) + 1))
                    .collect();
                if !behind.is_empty() {
                    region
                        .seen
                        .advance(behind[usize::from(step.a) % behind.len()]);
                }
            }
            _ => {
                let actor = regions[at].actor;
                let elsewhere = regions.iter().filter(|region| region.actor != actor);
                let held = elsewhere.map(|region| region.seen.get(actor)).max();
                let others = regions[at].seen.iter().filter(|dot| dot.actor != actor);
                let kept = others.chain([actor.dot(held.unwrap_or(0))]).collect();
                regions[at].seen = kept;
                regions[at].actor.generation += 1;
            }
        }
    }
    written
}

/// An event id for each dot.
pub(crate) fn id(dot: OpDot) -> EventId {
    let region = u128::from(dot.actor.region.0) << 112;
    let generation = u128::from(dot.actor.generation) << 64;
    EventId(uuid::Uuid::from_u128(
        region | generation | u128::from(dot.counter),
    ))
}

pub(crate) fn element(value: Value) -> Element {
    Element::new(value)
}

fn operation(kind: Kind, step: Step) -> Operation {
    let key = ["a", "b"][usize::from(step.other) % 2];
    let value = element(json!(step.b % 3));
    match kind {
        Kind::OrMap => match step.a % 8 {
            0 | 1 => Operation::RemoveKey(key.into()),
            choice => {
                let kinds = [
                    FlatKind::GCounter,
                    FlatKind::PnCounter,
                    FlatKind::GSet,
                    FlatKind::OrSet,
                    FlatKind::OrSet,
                    FlatKind::MvRegister,
                ];
                let kind = kinds[usize::from(choice) - 2];
                Operation::Update {
                    key: key.into(),
                    kind,
                    change: change(kind, step),
                }
            }
        },
        Kind::BoundedCounter => match step.a % 3 {
            0 => Operation::Grant(u64::from(step.b % 5) + 1),
            1 => Operation::Take(u64::from(step.b % 3) + 1),
            _ => Operation::Give {
                by: u64::from(step.b % 3) + 1,
                to: RegionId(step.other.into()),
            },
        },
        Kind::Document => Operation::Document(value),
        Kind::Fields => {
            let mut fields = BTreeMap::new();
            let choice = step.a / 4;
            for (bit, name) in ["x", "y"].into_iter().enumerate() {
                if step.a % 4 == 3 || usize::from(step.a % 2) == bit {
                    let is_deleted = (choice >> bit).is_multiple_of(3);
                    fields.insert(name.into(), (!is_deleted).then(|| value.clone()));
                }
            }
            Operation::Fields(fields)
        }
        Kind::GCounter => flat(FlatKind::GCounter, step),
        Kind::PnCounter => flat(FlatKind::PnCounter, step),
        Kind::GSet => flat(FlatKind::GSet, step),
        Kind::OrSet => flat(FlatKind::OrSet, step),
        Kind::MvRegister => flat(FlatKind::MvRegister, step),
    }
}

fn flat(kind: FlatKind, step: Step) -> Operation {
    Operation::Flat(kind, change(kind, step))
}

fn change(kind: FlatKind, step: Step) -> Change {
    let is_even = step.a % 16 < 8;
    // Sometimes so much that two of them leave the range.
    let by = match step.b {
        250.. => u64::MAX - 1,
        other => u64::from(other % 5) + 1,
    };
    let value = element(json!(step.b % 3));
    match kind {
        FlatKind::GCounter => Change::Increase(by),
        FlatKind::PnCounter if is_even => Change::Increase(by),
        FlatKind::PnCounter => Change::Decrease(by),
        FlatKind::GSet => Change::Add(value),
        FlatKind::OrSet if is_even => Change::Add(value),
        FlatKind::OrSet => Change::Remove(value),
        FlatKind::MvRegister => Change::Set(value),
    }
}

/// Whether the writer of `operation` had seen `dot`.
pub(crate) fn saw(operation: &Applied, dot: OpDot) -> bool {
    match dot.actor == operation.dot.actor {
        true => dot.counter < operation.dot.counter,
        false => operation.seen.contains(dot),
    }
}

/// Of what arrived, what each actor's operations without a gap are.
pub(crate) fn without_gaps<'a>(arrived: impl IntoIterator<Item = &'a Applied>) -> Vec<&'a Applied> {
    let by_dot: BTreeMap<OpDot, &Applied> = arrived
        .into_iter()
        .map(|applied| (applied.dot, applied))
        .collect();
    let mut seen = Seen::default();
    let mut taken = Vec::new();
    for (dot, applied) in by_dot {
        if dot.counter == seen.get(dot.actor) + 1 {
            seen.advance(dot);
            taken.push(applied);
        }
    }
    taken
}

/// What a stream of `kind` must show, going by all its operations at once.
pub(crate) fn expected(kind: Kind, all: &[&Applied]) -> Value {
    let changes: Vec<(&Applied, &Change)> = all
        .iter()
        .filter_map(|applied| match &applied.operation {
            Operation::Flat(_, change) => Some((*applied, change)),
            _ => None,
        })
        .collect();
    match kind {
        Kind::GCounter => counted(FlatKind::GCounter, &changes),
        Kind::PnCounter => counted(FlatKind::PnCounter, &changes),
        Kind::GSet | Kind::OrSet => elements(&changes),
        Kind::MvRegister => values(&changes),
        Kind::OrMap => keys(all),
        Kind::BoundedCounter => stock(all),
        Kind::Document => {
            let mut writes = cell(all, "");
            writes.sort_by_key(|(applied, _)| (applied.marker, applied.dot));
            let last = writes.last().and_then(|(_, value)| value.clone());
            last.map_or(Value::Null, |value| value.to_value())
        }
        Kind::Fields => {
            let mut fields = Map::new();
            for name in ["x", "y"] {
                let mut writes = cell(all, name);
                writes.sort_by_key(|(applied, _)| (applied.marker, applied.dot));
                if let Some((_, Some(value))) = writes.last() {
                    fields.insert(name.to_owned(), value.to_value());
                }
            }
            fields.into()
        }
    }
}

fn counted(kind: FlatKind, changes: &[(&Applied, &Change)]) -> Value {
    // Each actor's sums end at what a u64 holds.
    let mut sums: BTreeMap<(bool, Actor), u64> = BTreeMap::new();
    for (applied, change) in changes {
        let (is_up, by) = match change {
            Change::Increase(by) => (true, *by),
            Change::Decrease(by) => (false, *by),
            other => panic!("{other:?} on a counter"),
        };
        let sum = sums.entry((is_up, applied.dot.actor)).or_default();
        *sum = sum.saturating_add(by);
    }
    let signed = sums.iter().map(|((is_up, _), sum)| match is_up {
        true => i128::from(*sum),
        false => -i128::from(*sum),
    });
    shown(kind, signed.sum())
}

fn shown(kind: FlatKind, total: i128) -> Value {
    match kind {
        FlatKind::GCounter => total
            .min(u64::MAX.into())
            .try_into()
            .map(|total: u64| json!(total)),
        _ => total
            .clamp(i64::MIN.into(), i64::MAX.into())
            .try_into()
            .map(|total: i64| json!(total)),
    }
    .expect("it was brought into range")
}

fn elements(changes: &[(&Applied, &Change)]) -> Value {
    let is_removed = |dot: OpDot, element: &Element| {
        changes.iter().any(|(other, change)| {
            matches!(change, Change::Remove(removed) if removed == element) && saw(other, dot)
        })
    };
    let mut held = BTreeSet::new();
    for (applied, change) in changes {
        if let Change::Add(element) = change
            && !is_removed(applied.dot, element)
        {
            held.insert(element.clone());
        }
    }
    held.iter().map(Element::to_value).collect()
}

fn values(changes: &[(&Applied, &Change)]) -> Value {
    let mut held = BTreeSet::new();
    for (applied, change) in changes {
        let is_replaced = changes.iter().any(|(other, _)| saw(other, applied.dot));
        if let Change::Set(value) = change
            && !is_replaced
        {
            held.insert(value.clone());
        }
    }
    held.iter().map(Element::to_value).collect()
}

fn keys(all: &[&Applied]) -> Value {
    let mut shown_keys: Map<String, Value> = Map::new();
    let mut slots: BTreeMap<(String, FlatKind), Vec<(&Applied, &Change)>> = BTreeMap::new();
    for applied in all {
        if let Operation::Update { key, kind, change } = &applied.operation {
            let slot = slots.entry((key.to_string(), *kind)).or_default();
            slot.push((applied, change));
        }
    }
    for ((key, kind), changes) in slots {
        let is_dropped = |dot: OpDot| {
            all.iter().any(|other| match &other.operation {
                Operation::RemoveKey(removed) => **removed == *key && saw(other, dot),
                _ => false,
            })
        };
        // What was dropped gives nothing. What it dropped itself stays dropped.
        let gives = |(applied, change): &&(&Applied, &Change)| {
            matches!(change, Change::Remove(_)) || !is_dropped(applied.dot)
        };
        let kept: Vec<(&Applied, &Change)> = changes.iter().filter(gives).copied().collect();
        let value = match kind {
            FlatKind::GCounter | FlatKind::PnCounter => match kept.is_empty() {
                true => continue,
                // Under a key, contributions are kept one by one, so only the total has an end.
                false => shown(kind, kept.iter().map(|(_, change)| signed(change)).sum()),
            },
            FlatKind::GSet | FlatKind::OrSet => elements(&kept),
            FlatKind::MvRegister => {
                let replaced = |dot| changes.iter().any(|(other, _)| saw(other, dot));
                let held: BTreeSet<Element> = kept
                    .iter()
                    .filter(|(applied, _)| !replaced(applied.dot))
                    .map(|(_, change)| match change {
                        Change::Set(value) => value.clone(),
                        other => panic!("{other:?} on a register"),
                    })
                    .collect();
                held.iter().map(Element::to_value).collect()
            }
        };
        if value == json!([]) {
            continue;
        }
        let kinds = shown_keys.entry(key).or_insert_with(|| json!({}));
        kinds[Kind::from(kind).name()] = value;
    }
    shown_keys.into()
}

fn signed(change: &Change) -> i128 {
    match change {
        Change::Increase(by) => i128::from(*by),
        Change::Decrease(by) => -i128::from(*by),
        other => panic!("{other:?} on a counter"),
    }
}

fn stock(all: &[&Applied]) -> Value {
    let (mut granted, mut taken) = (0_u64, 0_u64);
    let mut rights: BTreeMap<RegionId, i128> = BTreeMap::new();
    for applied in all {
        let region = applied.dot.actor.region;
        let own = rights.entry(region).or_default();
        match applied.operation {
            Operation::Grant(by) => {
                granted += by;
                *own += i128::from(by);
            }
            Operation::Take(by) => {
                taken += by;
                *own -= i128::from(by);
            }
            Operation::Give { by, to } => {
                *own -= i128::from(by);
                *rights.entry(to).or_default() += i128::from(by);
            }
            ref other => panic!("{other:?} on a stock"),
        }
    }
    let rights = rights.into_iter().map(|(region, rights)| {
        let rights = u64::try_from(rights.max(0)).expect("small");
        (region.to_string(), json!(rights))
    });
    json!({"stock": granted.saturating_sub(taken), "rights": rights.collect::<Map<_, _>>()})
}

type CellWrite<'a> = (&'a Applied, Option<Element>);

fn cell<'a>(all: &[&'a Applied], name: &str) -> Vec<CellWrite<'a>> {
    let value = |applied: &'a Applied| match &applied.operation {
        Operation::Document(value) => Some((applied, Some(value.clone()))),
        Operation::Fields(fields) => Some((applied, fields.get(name)?.clone())),
        other => panic!("{other:?} where the last write wins"),
    };
    all.iter().filter_map(|applied| value(applied)).collect()
}

/// The writes that must be listed as superseded, as (event, field, value, winner), from their definition: not replaced by
/// a greater one that knew it as the greatest, and below one that did not know it.
pub(crate) fn expected_superseded(
    kind: Kind,
    all: &[&Applied],
) -> BTreeSet<(EventId, String, String, EventId)> {
    let names: &[&str] = match kind {
        Kind::Document => &[""],
        Kind::Fields => &["x", "y"],
        _ => &[],
    };
    let rank = |applied: &Applied| (applied.marker, applied.dot);
    let mut listed = BTreeSet::new();
    for name in names {
        let writes = cell(all, name);
        for (write, value) in &writes {
            let greater: Vec<&Applied> = writes
                .iter()
                .map(|(other, _)| *other)
                .filter(|other| rank(other) > rank(write))
                .collect();
            let is_history = greater.iter().any(|other| {
                let known = |third: &&&Applied| saw(other, third.dot);
                saw(other, write.dot) && greater.iter().filter(known).count() == 0
            });
            let unaware = greater.iter().filter(|other| !saw(other, write.dot));
            if let Some(by) = unaware.max_by_key(|other| rank(other))
                && !is_history
            {
                let value = value.as_ref().map_or("null", Element::as_str);
                listed.insert((write.id, (*name).to_owned(), value.to_owned(), by.id));
            }
        }
    }
    listed
}

/// What a state lists, event and field by field. An entry names one winner for all its fields, so that one is replaced by
/// what is expected for the field, if it is the greatest of them.
pub(crate) fn listed(
    superseded: impl Iterator<Item = Superseded>,
) -> BTreeSet<(EventId, String, String)> {
    let mut listed = BTreeSet::new();
    for lost in superseded {
        if lost.fields.is_empty() {
            let value = Element::new(lost.value.clone()).as_str().to_owned();
            listed.insert((lost.id, String::new(), value));
        }
        for name in &lost.fields {
            let value = Element::new(lost.value[name].clone()).as_str().to_owned();
            listed.insert((lost.id, name.clone(), value));
        }
    }
    listed
}

//! What a merged stream comes to, straight from what its kind means: over all of its operations at once, by what
//! each had seen. Shares nothing with the folds of `conflict`, which take one after the other in any order.

use std::collections::{BTreeMap, BTreeSet};

use meridian_clock::RegionId;
use meridian_conflict::Kind;
use meridian_event::EventId;
use serde_json::{Map, Value, json};

use super::recorded::{Actor, Rank, Recorded, spelled};

/// A write that lost to one whose writer had not seen it: its event, the fields and value that it lost, the winner.
pub(super) type Lost = (EventId, Vec<String>, Value, EventId);

/// What a stream shows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Meaning {
    pub(super) value: Value,
    pub(super) superseded: Vec<Lost>,
}

/// What `operations` on a stream of `kind` come to.
pub(super) fn meaning(kind: Kind, operations: &[&Recorded]) -> Meaning {
    let all = || operations.iter().map(|it| Change::of(it));
    let value = match kind {
        Kind::GCounter | Kind::PnCounter | Kind::GSet | Kind::OrSet | Kind::MvRegister => {
            flat(kind, all().collect(), &[]).unwrap_or_else(|| nothing(kind))
        }
        Kind::OrMap => map(operations),
        Kind::BoundedCounter => stock(operations),
        Kind::Document => return document(operations),
        Kind::Fields => return fields(operations),
    };
    Meaning {
        value,
        superseded: Vec::new(),
    }
}

fn nothing(kind: Kind) -> Value {
    match kind {
        Kind::GCounter | Kind::PnCounter => json!(0),
        _ => json!([]),
    }
}

// One change of something flat: what is done, by which operation.
#[derive(Clone, Copy)]
struct Change<'a> {
    by: &'a Recorded,
    what: &'a Value,
}

impl<'a> Change<'a> {
    fn of(by: &'a Recorded) -> Self {
        Self { by, what: &by.data }
    }

    fn op(&self) -> &str {
        self.what["op"].as_str().unwrap_or_default()
    }

    fn amount(&self) -> i128 {
        i128::from(self.what["by"].as_u64().unwrap_or(1))
    }

    fn value(&self) -> String {
        spelled(&self.what["value"])
    }
}

/// How many operations of each actor are in the context of any of `those`: contexts have no holes.
fn seen_by_any<'a>(those: impl Iterator<Item = &'a Recorded>) -> BTreeMap<Actor, u64> {
    let mut seen = BTreeMap::new();
    for operation in those {
        for (actor, counter) in &operation.seen {
            let upto: &mut u64 = seen.entry(*actor).or_default();
            *upto = (*upto).max(*counter);
        }
    }
    seen
}

fn includes(seen: &BTreeMap<Actor, u64>, operation: &Recorded) -> bool {
    seen.get(&operation.actor).copied().unwrap_or_default() >= operation.counter
}

// What changes come to of something that `removals` drop as far as they had seen it; nothing if none is left.
fn flat(kind: Kind, changes: Vec<Change<'_>>, removals: &[&Recorded]) -> Option<Value> {
    let dropped = seen_by_any(removals.iter().copied());
    let left: Vec<Change<'_>> = changes
        .iter()
        .filter(|it| !includes(&dropped, it.by))
        .copied()
        .collect();
    let sorted = |values: BTreeSet<String>| -> Option<Value> {
        let read = |text: &String| -> Value { serde_json::from_str(text).unwrap_or_default() };
        (!values.is_empty()).then(|| values.iter().map(read).collect())
    };
    match kind {
        Kind::GCounter | Kind::PnCounter => {
            let sum: i128 = left
                .iter()
                .map(|it| match it.op() {
                    "subtract" => -it.amount(),
                    _ => it.amount(),
                })
                .sum();
            (!left.is_empty()).then(|| json!(i64::try_from(sum).unwrap_or(i64::MAX)))
        }
        Kind::GSet => sorted(left.iter().map(Change::value).collect()),
        Kind::OrSet => {
            // A removal drops whatever it had seen of its element, itself dropped or not.
            let mut removed: BTreeMap<String, Vec<&Recorded>> = BTreeMap::new();
            for change in changes.iter().filter(|it| it.op() == "remove") {
                removed.entry(change.value()).or_default().push(change.by);
            }
            let removed: BTreeMap<String, BTreeMap<Actor, u64>> = removed
                .into_iter()
                .map(|(value, by)| (value, seen_by_any(by.into_iter())))
                .collect();
            let added = left.iter().filter(|it| it.op() == "add");
            let there = added.filter(|it| {
                let removed = removed.get(&it.value());
                !removed.is_some_and(|seen| includes(seen, it.by))
            });
            sorted(there.map(Change::value).collect())
        }
        _ => {
            // Setting replaces what its writer had seen.
            let replaced = seen_by_any(changes.iter().map(|it| it.by));
            let there = left.iter().filter(|it| !includes(&replaced, it.by));
            sorted(there.map(Change::value).collect())
        }
    }
}

fn map(operations: &[&Recorded]) -> Value {
    let mut changes: BTreeMap<(&str, &str), Vec<Change<'_>>> = BTreeMap::new();
    let mut removals: BTreeMap<&str, Vec<&Recorded>> = BTreeMap::new();
    for operation in operations {
        let key = operation.text("key");
        match operation.text("op") {
            "remove" => removals.entry(key).or_default().push(operation),
            _ => {
                let change = Change {
                    by: operation,
                    what: &operation.data["change"],
                };
                let kind = operation.text("type");
                changes.entry((key, kind)).or_default().push(change);
            }
        }
    }
    let mut keys = Map::new();
    for ((key, name), changes) in changes {
        let removals = removals.get(key).map_or(&[][..], Vec::as_slice);
        let kind = Kind::parse(name).unwrap_or(Kind::GSet);
        if let Some(value) = flat(kind, changes, removals) {
            let kinds = keys.entry(key).or_insert_with(|| json!({}));
            kinds[name] = value;
        }
    }
    keys.into()
}

/// What an operation on a stock makes of the rights of regions.
pub(super) fn rights(operation: &Recorded) -> Vec<(RegionId, i128)> {
    let (region, _) = operation.actor;
    let by = Change::of(operation).amount();
    match operation.text("op") {
        "grant" => vec![(region, by)],
        "take" => vec![(region, -by)],
        _ => {
            let to = operation.data["to"].as_u64().unwrap_or_default();
            let to = RegionId(u16::try_from(to).unwrap_or_default());
            vec![(region, -by), (to, by)]
        }
    }
}

fn stock(operations: &[&Recorded]) -> Value {
    let mut held: BTreeMap<RegionId, i128> = BTreeMap::new();
    for (region, by) in operations.iter().flat_map(|it| rights(it)) {
        *held.entry(region).or_default() += by;
    }
    let shown = |number: i128| u64::try_from(number).unwrap_or_default();
    let by_region = held
        .iter()
        .map(|(region, held)| (region.to_string(), shown(*held).into()));
    let by_region: Map<String, Value> = by_region.collect();
    json!({"stock": shown(held.values().sum()), "rights": by_region})
}

fn document(operations: &[&Recorded]) -> Meaning {
    let cell = Cell::of(operations.to_vec());
    let lost = cell.superseded().into_iter();
    let lost = lost.map(|(write, by)| (write.id, Vec::new(), write.data.clone(), by.id));
    Meaning {
        value: cell.winner().map_or(Value::Null, |it| it.data.clone()),
        superseded: lost.collect(),
    }
}

fn fields(operations: &[&Recorded]) -> Meaning {
    let mut cells: BTreeMap<&String, Vec<&Recorded>> = BTreeMap::new();
    for operation in operations {
        for name in operation.data.as_object().into_iter().flat_map(Map::keys) {
            cells.entry(name).or_default().push(operation);
        }
    }
    let mut value = Map::new();
    let mut lost: BTreeMap<Rank, (&Recorded, Map<String, Value>, &Recorded)> = BTreeMap::new();
    for (name, writes) in cells {
        let cell = Cell::of(writes);
        let winner = cell.winner().map(|it| &it.data[name]);
        if let Some(won) = winner.filter(|it| !it.is_null()) {
            value.insert(name.clone(), won.clone());
        }
        for (write, by) in cell.superseded() {
            let (_, fields, last) = lost
                .entry(write.rank)
                .or_insert_with(|| (write, Map::new(), by));
            fields.insert(name.clone(), write.data[name].clone());
            if by.rank > last.rank {
                *last = by;
            }
        }
    }
    let lost = lost.into_values().map(|(write, fields, by)| {
        let mut names: Vec<String> = fields.keys().cloned().collect();
        names.sort_unstable();
        (write.id, names, Value::Object(fields), by.id)
    });
    Meaning {
        value: value.into(),
        superseded: lost.collect(),
    }
}

/// The writes of one document, or one field, by rank.
struct Cell<'a>(BTreeMap<Rank, &'a Recorded>);

impl<'a> Cell<'a> {
    fn of(writes: Vec<&'a Recorded>) -> Self {
        Self(writes.into_iter().map(|it| (it.rank, it)).collect())
    }

    fn winner(&self) -> Option<&'a Recorded> {
        self.0.values().next_back().copied()
    }

    /// Of each actor, its writes by counter, with the greatest rank so far.
    fn greatest_so_far(&self) -> BTreeMap<Actor, Vec<(u64, Rank)>> {
        let mut by_actor: BTreeMap<Actor, Vec<(u64, Rank)>> = BTreeMap::new();
        for write in self.0.values() {
            let writes = by_actor.entry(write.actor).or_default();
            writes.push((write.counter, write.rank));
        }
        by_actor.values_mut().for_each(|writes| running_max(writes));
        by_actor
    }

    /// Each write that nobody replaced knowingly, and that one of a greater rank had not seen, with the greatest of
    /// these. Replacing knowingly is having a greater rank, and having seen it as the greatest.
    fn superseded(&self) -> Vec<(&'a Recorded, &'a Recorded)> {
        let so_far = self.greatest_so_far();
        let mut replaced = BTreeSet::new();
        // Of each actor: how many of its operations a write had seen, with the greatest rank among those that had
        // seen no more.
        let mut unaware: BTreeMap<Actor, Vec<(u64, Rank)>> = BTreeMap::new();
        for write in self.0.values() {
            let greatest = so_far.iter().filter_map(|(actor, writes)| {
                let seen = write.seen.get(actor).copied().unwrap_or_default();
                greatest_upto(writes, seen)
            });
            replaced.extend(greatest.max().filter(|it| *it < write.rank));
            for actor in so_far.keys() {
                let seen = write.seen.get(actor).copied().unwrap_or_default();
                unaware.entry(*actor).or_default().push((seen, write.rank));
            }
        }
        unaware.values_mut().for_each(|writes| running_max(writes));
        let lost = self.0.values().filter(|it| !replaced.contains(&it.rank));
        lost.filter_map(|write| {
            let before = write.counter - 1;
            let by = greatest_upto(&unaware[&write.actor], before)?;
            (by > write.rank).then(|| (*write, self.0[&by]))
        })
        .collect()
    }
}

fn running_max(writes: &mut [(u64, Rank)]) {
    writes.sort_unstable();
    let mut greatest = None;
    for (_, rank) in writes {
        *rank = greatest.map_or(*rank, |it: Rank| it.max(*rank));
        greatest = Some(*rank);
    }
}

fn greatest_upto(writes: &[(u64, Rank)], upto: u64) -> Option<Rank> {
    let count = writes.partition_point(|(number, _)| *number <= upto);
    count.checked_sub(1).map(|last| writes[last].1)
}

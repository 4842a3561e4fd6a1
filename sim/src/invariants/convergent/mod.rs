//! `convergent`: what a merged stream comes to is a function of its operations, the same in every region and in both
//! tiers; each operation counts once; and nobody takes more of a stock than it holds rights to.
//!
//! `recorded` reads operations from events, `reference` says what they come to, `stock` watches over rights.

mod recorded;
mod reference;
mod stock;

use std::collections::BTreeMap;

use meridian_conflict::Kind;
use meridian_event::StreamId;
use meridian_node::SUPERSEDED_LISTED_MAX;

use self::recorded::Recorded;
use self::reference::{Lost, Meaning, meaning};
use super::Evidence;
use crate::load::merged;
use crate::states::StateRead;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    let streams = operations(evidence, &mut broken);
    for (stream, (kind, operations)) in &streams {
        broken.extend(counted_once(stream, operations, evidence));
        if *kind == Kind::BoundedCounter {
            broken.extend(stock::check(stream, operations, evidence));
        }
    }
    broken.extend(shown(evidence, &streams));
    broken.truncate(8);
    broken
}

type Streams<'a> = BTreeMap<&'a StreamId, (Kind, Vec<Recorded>)>;

// The first who showed something, with which digest.
type First<'a> = Option<(&'a StateRead, [u8; 32])>;

// The operations of each merged stream, in the one order.
fn operations<'a>(evidence: &'a Evidence, broken: &mut Vec<String>) -> Streams<'a> {
    let mut streams = Streams::new();
    for event in evidence
        .copies
        .iter()
        .take(1)
        .flat_map(|copy| copy.logs.values().flatten().flatten())
    {
        let Some(kind) = merged::kind(event.stream.category()) else {
            continue;
        };
        let (_, operations) = streams.entry(&event.stream).or_insert((kind, Vec::new()));
        match Recorded::read(event, &evidence.names) {
            Ok(operation) => operations.push(operation),
            Err(why) => broken.push(format!(
                "{} of {} counts nowhere: {why}",
                event.id, event.stream
            )),
        }
    }
    for (_, operations) in streams.values_mut() {
        operations.sort_by_key(|it| it.key);
    }
    streams
}

// A dot names one operation, and none is set aside.
fn counted_once(stream: &StreamId, operations: &[Recorded], evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    let mut dots = BTreeMap::new();
    for operation in operations {
        let dot = (operation.actor, operation.counter);
        if let Some(other) = dots.insert(dot, operation.id) {
            broken.push(format!(
                "{} and {other} of {stream} are both operation {} of {:?}",
                operation.id, operation.counter, operation.actor
            ));
        }
    }
    let calls = evidence.calls.iter().filter(|call| call.stream == *stream);
    let aside = calls
        .flat_map(|call| &call.ids)
        .find(|id| evidence.in_conflict.contains_key(*id));
    broken.extend(aside.map(|id| format!("{id} of {stream} is in a conflict record")));
    broken
}

// A state lists no more of what lost to later writes.
fn latest(superseded: &[Lost]) -> &[Lost] {
    &superseded[superseded.len().saturating_sub(SUPERSEDED_LISTED_MAX)..]
}

// What regions showed is what the operations come to that they had.
fn shown(evidence: &Evidence, streams: &Streams<'_>) -> Vec<String> {
    let mut broken = Vec::new();
    // By stream and how many of its operations count: what they come to, and who showed first with which digest.
    let mut known: BTreeMap<(&StreamId, usize), (Meaning, First<'_>)> = BTreeMap::new();
    for read in &evidence.states {
        let stream = &read.stream;
        let nothing = (kind_of(stream), Vec::new());
        let (kind, operations) = streams.get(stream).unwrap_or(&nothing);
        let counts = |it: &&Recorded| read.until.is_none_or(|until| it.key.timestamp <= until);
        let counted: Vec<&Recorded> = operations.iter().filter(counts).collect();
        let tier = match read.until {
            Some(until) => format!("settled up to {until}"),
            None => "live".to_owned(),
        };
        let at = format!("{stream} in {} at {:?}, {tier}", read.name, read.at);
        let report = match &read.shown {
            Ok(report) => report,
            Err(error) => {
                broken.push(format!("{at}: its state cannot be read: {error}"));
                continue;
            }
        };
        let (expected, first) = known
            .entry((stream, counted.len()))
            .or_insert_with(|| (meaning(*kind, &counted), None));
        let lost = report.superseded.iter();
        let lost: Vec<Lost> = lost
            .map(|it| (it.id, it.fields.clone(), it.value.clone(), it.by))
            .collect();
        if report.value != expected.value || report.skipped > 0 {
            broken.push(format!(
                "{at}: it shows {}, {} of its events do not count, and its {} operations come to {}",
                report.value,
                report.skipped,
                counted.len(),
                expected.value
            ));
        } else if lost != latest(&expected.superseded) {
            broken.push(format!(
                "{at}: it lists {lost:?} as superseded, and by its {} operations {:?} are",
                counted.len(),
                expected.superseded
            ));
        }
        match first {
            None => *first = Some((read, report.digest)),
            Some((other, digest)) if *digest != report.digest => broken.push(format!(
                "{at}: its digest is not that of the same {} operations in {} at {:?}",
                counted.len(),
                other.name,
                other.at
            )),
            Some(_) => {}
        }
    }
    broken
}

fn kind_of(stream: &StreamId) -> Kind {
    merged::kind(stream.category()).unwrap_or(Kind::GSet)
}

#[cfg(test)]
mod tests {
    use meridian_clock::{OrderKey, Position, RegionId, Timestamp};
    use meridian_conflict::{Actor, Applied, Marker, Operation, State};
    use meridian_event::EventId;

    use super::*;
    use crate::rng::Rng;

    struct Written {
        recorded: Recorded,
        applied: Applied,
    }

    // Three regions that write `kind`, each of which has heard of the others as far as `rng` says.
    fn written(kind: Kind, rng: &mut Rng) -> Vec<Written> {
        let regions = [RegionId(1), RegionId(2), RegionId(3)];
        let mut states = regions.map(|_| State::new(kind));
        let mut heard = [[0_usize; 3]; 3];
        let mut logs: [Vec<Applied>; 3] = Default::default();
        let mut written = Vec::new();
        for number in 1..60 {
            let here = usize::try_from(rng.below(3)).expect("a small number");
            let from = usize::try_from(rng.below(3)).expect("a small number");
            if from != here {
                let upto = heard[here][from] + usize::try_from(rng.below(4)).expect("small");
                let upto = upto.min(logs[from].len());
                for applied in &logs[from][heard[here][from].min(upto)..upto] {
                    let _ = states[here].apply(applied);
                }
                heard[here][from] = heard[here][from].max(upto);
            }
            let data = merged::operation(rng, kind, &regions);
            let operation = Operation::parse(kind, data.as_bytes()).expect("it is one");
            let actor = Actor::new(regions[here], 0);
            let state = &mut states[here];
            if state.check(&operation, actor).is_err() {
                continue;
            }
            // Clocks may be behind what their regions have seen.
            let timestamp = Timestamp(number * 10 + rng.below(30));
            let marker = Marker {
                timestamp: timestamp.max(
                    logs[here]
                        .last()
                        .map_or(timestamp, |it| Timestamp(it.marker.timestamp.0 + 1)),
                ),
                region: regions[here],
                position: Position(logs[here].len() as u64 + 1),
            };
            let applied = Applied {
                dot: state.next_dot(actor),
                seen: state.seen().clone(),
                marker,
                id: EventId::from_random(rng.bytes16()),
                operation,
            };
            let mut seen: BTreeMap<_, _> = applied
                .seen
                .iter()
                .map(|dot| ((dot.actor.region, dot.actor.generation), dot.counter))
                .collect();
            let counter = applied.dot.counter;
            seen.insert((regions[here], 0), counter - 1);
            let recorded = Recorded {
                id: applied.id,
                key: OrderKey::ZERO,
                actor: (regions[here], 0),
                counter,
                seen,
                rank: (marker.timestamp, marker.region, marker.position.0),
                data: serde_json::from_str(&data).expect("it is JSON"),
            };
            let _ = state.apply(&applied);
            logs[here].push(applied.clone());
            written.push(Written { recorded, applied });
        }
        written
    }

    #[test]
    fn what_operations_come_to_is_what_the_nodes_fold_makes_of_them() {
        for (_, kind) in merged::CATEGORIES {
            for seed in 0..200 {
                let mut rng = Rng::new(seed);
                let written = written(kind, &mut rng);
                let mut state = State::new(kind);
                // In another sequence, but each region's in its own.
                let mut left: Vec<&Written> = written.iter().collect();
                while !left.is_empty() {
                    let region = rng.pick(&left).recorded.actor;
                    let first = left.iter().position(|it| it.recorded.actor == region);
                    let _ = state.apply(&left.remove(first.expect("it was drawn")).applied);
                }
                let recorded: Vec<&Recorded> = written.iter().map(|it| &it.recorded).collect();
                let expected = meaning(kind, &recorded);
                assert_eq!(state.value(), expected.value, "{kind}, seed {seed}");
                let lost: Vec<Lost> = state
                    .superseded()
                    .map(|it| (it.id, it.fields, it.value, it.by))
                    .collect();
                assert_eq!(lost, expected.superseded, "{kind}, seed {seed}");
            }
        }
    }
}

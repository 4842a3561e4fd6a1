//! Whatever the order, the repetitions, the snapshots and the garbage collection: a state shows what a fold of all
//! operations at once says it must (`convergent`).

mod support;

use std::collections::BTreeMap;

use meridian_conflict::{Actor, Applied, Kind, OpDot, Outcome, Seen, State};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use support::{Step, any_steps, expected, expected_superseded, history, listed, saw, without_gaps};

/// How often, and after what, the operations of a history arrive.
#[derive(Clone, Debug)]
struct Arrivals {
    /// Sort keys, drawn blindly.
    keys: Vec<u16>,
    /// Which of them arrive once more, right away.
    again: u64,
    /// After which a snapshot is taken, and read back.
    snapshots: u64,
    /// After which garbage is collected.
    collections: u64,
}

fn any_arrivals() -> impl Strategy<Value = Arrivals> {
    let keys = prop::collection::vec(any::<u16>(), STEPS_MAX..=STEPS_MAX);
    (keys, any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
        |(keys, again, snapshots, collections)| Arrivals {
            keys,
            again,
            snapshots,
            collections,
        },
    )
}

const STEPS_MAX: usize = 24;

impl Arrivals {
    fn order(&self, history: &[Applied]) -> Vec<Applied> {
        let mut keyed: Vec<(u16, Applied)> = self
            .keys
            .iter()
            .copied()
            .zip(history.iter().cloned())
            .collect();
        keyed.sort_by_key(|(key, _)| *key);
        keyed.into_iter().map(|(_, applied)| applied).collect()
    }
}

fn bit(bits: u64, at: usize) -> bool {
    bits >> (at % 64) & 1 == 1
}

/// What all operations that are still to come have seen.
fn known_to_all(to_come: &[Applied], state: &State) -> Seen {
    let mut last: BTreeMap<Actor, u64> = state
        .seen()
        .iter()
        .map(|dot| (dot.actor, dot.counter))
        .collect();
    for (actor, counter) in &mut last {
        while *counter > 0
            && !to_come
                .iter()
                .all(|operation| saw(operation, actor.dot(*counter)))
        {
            *counter -= 1;
        }
    }
    last.into_iter()
        .map(|(actor, counter)| actor.dot(counter))
        .collect()
}

/// As above, and, since the last write wins by its marker, below all that is still to come: the most that may be collected.
fn before_all(arrived: &[Applied], to_come: &[Applied], state: &State) -> Seen {
    let known = known_to_all(to_come, state);
    let lowest = to_come
        .iter()
        .map(|operation| (operation.marker, operation.dot))
        .min();
    let is_before = |dot: OpDot| {
        let operation = arrived.iter().find(|operation| operation.dot == dot);
        let rank = operation.map(|operation| (operation.marker, operation.dot));
        lowest.is_none() || rank < lowest
    };
    let mut before = Seen::default();
    for dot in known.iter() {
        let mut counters = (1..=dot.counter).map(|counter| dot.actor.dot(counter));
        let mut last = 0;
        while let Some(dot) = counters.next().filter(|dot| is_before(*dot)) {
            last = dot.counter;
        }
        before.advance(dot.actor.dot(last));
    }
    before
}

fn shows(kind: Kind, state: &State, arrived: &[Applied]) -> Result<(), TestCaseError> {
    let all = without_gaps(arrived);
    prop_assert_eq!(state.value(), expected(kind, &all));
    let must = expected_superseded(kind, &all);
    let must_list = must
        .iter()
        .map(|(id, name, value, _)| (*id, name.clone(), value.clone()));
    prop_assert_eq!(listed(state.superseded()), must_list.collect());
    for lost in state.superseded() {
        // Of the winners over its fields, the greatest is named.
        let by = must
            .iter()
            .filter(|(id, ..)| *id == lost.id)
            .map(|(_, _, _, by)| *by);
        let rank = |id| {
            let of = all.iter().find(|applied| applied.id == id);
            of.map(|applied| (applied.marker, applied.dot))
        };
        prop_assert_eq!(Some(lost.by), by.max_by_key(|id| rank(*id)));
    }
    Ok(())
}

fn snapshot(state: State) -> Result<State, TestCaseError> {
    let bytes = state.encode();
    let read = State::decode(&bytes).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(read.encode(), bytes);
    prop_assert_eq!(read.digest(), state.digest());
    prop_assert!(read.superseded().eq(state.superseded()));
    Ok(read)
}

fn any_order(kind: Kind, steps: &[Step], arrivals: &[Arrivals; 2]) -> Result<(), TestCaseError> {
    let history = history(kind, steps);
    let mut ends = Vec::new();
    for arrivals in arrivals {
        let order = arrivals.order(&history);
        let mut state = State::new(kind);
        for (at, operation) in order.iter().enumerate() {
            prop_assert_ne!(state.apply(operation), Outcome::Inexact);
            if bit(arrivals.again, at) {
                let repeated = &order[usize::from(arrivals.keys[at]) % (at + 1)];
                prop_assert_eq!(state.apply(repeated), Outcome::Repeated);
            }
            if bit(arrivals.snapshots, at) && bit(arrivals.collections, at) {
                state = snapshot(state)?;
            }
            if at == order.len() / 2 {
                shows(kind, &state, &order[..=at])?;
            }
        }
        prop_assert_eq!(state.waiting(), 0);
        shows(kind, &state, &order)?;
        ends.push(state);
    }
    prop_assert_eq!(ends[0].digest(), ends[1].digest());
    prop_assert!(ends[0].superseded().eq(ends[1].superseded()));
    prop_assert_eq!(ends[0].encode(), ends[1].encode());
    Ok(())
}

fn any_collection(
    kind: Kind,
    steps: &[Step],
    arrivals: &[Arrivals; 2],
) -> Result<(), TestCaseError> {
    let history = history(kind, steps);
    let all: Seen = history.iter().map(|operation| operation.dot).collect();
    let mut ends = Vec::new();
    for arrivals in arrivals {
        let order = arrivals.order(&history);
        let mut state = State::new(kind);
        for (at, operation) in order.iter().enumerate() {
            prop_assert_ne!(state.apply(operation), Outcome::Inexact);
            if bit(arrivals.collections, at) {
                let (value, digest) = (state.value(), state.digest());
                let (lost, won): (Vec<_>, Vec<_>) =
                    (state.superseded().collect(), state.winners().collect());
                let last = before_all(&order[..=at], &order[at + 1..], &state);
                state.collect(&last);
                prop_assert_eq!((state.value(), state.digest()), (value, digest));
                prop_assert!(state.superseded().eq(lost) && state.winners().eq(won));
            }
            if bit(arrivals.snapshots, at) && bit(arrivals.again, at) {
                state = snapshot(state)?;
            }
        }
        shows(kind, &state, &order)?;
        state.collect(&all);
        shows(kind, &state, &order)?;
        let read = snapshot(state)?;
        ends.push(read);
    }
    prop_assert_eq!(ends[0].encode(), ends[1].encode());
    Ok(())
}

/// Garbage is collected at places that nobody made sure of. Then a state either says that it has become inexact, or
/// shows what it must.
fn any_mistake(kind: Kind, steps: &[Step], arrivals: &Arrivals) -> Result<(), TestCaseError> {
    let history = history(kind, steps);
    let order = arrivals.order(&history);
    let mut state = State::new(kind);
    for (at, operation) in order.iter().enumerate() {
        if state.apply(operation) == Outcome::Inexact {
            return Ok(());
        }
        if bit(arrivals.collections, at) {
            state.collect(&state.seen().clone());
        }
        if at == order.len() / 2 {
            shows(kind, &state, &order[..=at])?;
        }
    }
    shows(kind, &state, &order)
}

/// What a state says that it takes in memory does not depend on how it came about.
fn any_weight(kind: Kind, steps: &[Step], arrivals: &Arrivals) -> Result<(), TestCaseError> {
    let mut state = State::new(kind);
    for operation in arrivals.order(&history(kind, steps)) {
        let _ = state.apply(&operation);
        // What has become out of date is not encoded, and weighs until it is collected.
        state.collect(&Seen::default());
        let read = State::decode(&state.encode()).expect("it was just encoded");
        prop_assert_eq!(state.bytes(), read.bytes());
    }
    Ok(())
}

fn any_damage(kind: Kind, steps: &[Step], at: usize, flip: u8) -> Result<(), TestCaseError> {
    let mut state = State::new(kind);
    for operation in history(kind, steps) {
        let _ = state.apply(&operation);
    }
    let bytes = state.encode();
    let mut damaged = bytes.clone();
    let at = at % bytes.len();
    damaged[at] ^= flip;
    prop_assert!(State::decode(&damaged).is_err());
    prop_assert!(State::decode(&bytes[..at]).is_err());
    // Also where the checksum is right, it is refused, or is another state that is spelled properly.
    let checksum = meridian_event::crc32c(&[&damaged[5..]]).to_le_bytes();
    damaged[1..5].copy_from_slice(&checksum);
    if let Ok(mut other) = State::decode(&damaged) {
        prop_assert_eq!(&other.encode(), &damaged);
        let _ = (other.value(), other.digest(), other.bytes());
        other.collect(&state.seen().clone());
        for operation in history(kind, steps) {
            let _ = other.apply(&operation);
        }
    }
    Ok(())
}

/// A failure prints all that is needed to see it again; no file is left behind.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

macro_rules! kinds {
    ($($module:ident: $kind:expr, $cases:literal;)*) => {$(
        mod $module {
            use super::*;

            proptest! {
                #![proptest_config(cases($cases))]

                #[test]
                fn any_order_and_repetition_shows_the_same(
                    steps in any_steps(STEPS_MAX), first in any_arrivals(), second in any_arrivals(),
                ) {
                    any_order($kind, &steps, &[first, second])?;
                }

                #[test]
                fn collecting_garbage_never_shows(
                    steps in any_steps(STEPS_MAX), first in any_arrivals(), second in any_arrivals(),
                ) {
                    any_collection($kind, &steps, &[first, second])?;
                }

                #[test]
                fn collecting_too_much_is_never_wrong_in_silence(
                    steps in any_steps(STEPS_MAX), arrivals in any_arrivals(),
                ) {
                    any_mistake($kind, &steps, &arrivals)?;
                }
            }

            proptest! {
                #![proptest_config(cases(1_000))]

                #[test]
                fn weight_is_kept_as_it_would_be_counted(
                    steps in any_steps(STEPS_MAX), arrivals in any_arrivals(),
                ) {
                    any_weight($kind, &steps, &arrivals)?;
                }

                #[test]
                fn damage_is_refused(
                    steps in any_steps(STEPS_MAX), at in any::<usize>(), flip in 1u8..,
                ) {
                    any_damage($kind, &steps, at, flip)?;
                }
            }
        }
    )*};
}

kinds! {
    g_counter: Kind::GCounter, 10_000;
    pn_counter: Kind::PnCounter, 10_000;
    g_set: Kind::GSet, 10_000;
    or_set: Kind::OrSet, 10_000;
    mv_register: Kind::MvRegister, 10_000;
    or_map: Kind::OrMap, 10_000;
    bounded_counter: Kind::BoundedCounter, 10_000;
    document: Kind::Document, 10_000;
    fields: Kind::Fields, 10_000;
}

//! What each kind promises, one story at a time.

mod support;

use std::collections::BTreeSet;

use meridian_clock::{Position, RegionId, Timestamp};
use meridian_conflict::{
    Actor, Applied, CheckError, Kind, Marker, Operation, OperationError, Outcome, Seen, State,
    VALUE_BYTES_MAX,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::id;

/// A region that takes writes, and hears of others' when it is told.
struct Region {
    actor: Actor,
    state: State,
    position: u64,
}

impl Region {
    fn new(kind: Kind, number: u16) -> Self {
        Self {
            actor: Actor::new(RegionId(number), 0),
            state: State::new(kind),
            position: 0,
        }
    }

    /// As a sequencer does it: parse, check, give a dot, apply.
    fn try_write_at(&mut self, timestamp: u64, data: Value) -> Result<Applied, CheckError> {
        let operation = Operation::parse(self.state.kind(), data.to_string().as_bytes());
        let operation = operation.expect("it is written as clients should");
        self.state.check(&operation, self.actor)?;
        self.position += 1;
        let dot = self.state.next_dot(self.actor);
        let applied = Applied {
            dot,
            seen: self.state.seen().clone(),
            marker: Marker {
                timestamp: Timestamp(timestamp),
                region: self.actor.region,
                position: Position(self.position),
            },
            id: id(dot),
            operation,
        };
        assert_eq!(self.state.apply(&applied), Outcome::Fresh);
        Ok(applied)
    }

    fn try_write(&mut self, data: Value) -> Result<Applied, CheckError> {
        self.try_write_at(self.position, data)
    }

    fn write_at(&mut self, timestamp: u64, data: Value) -> Applied {
        let written = self.try_write_at(timestamp, data);
        written.expect("nothing stands against it")
    }

    fn write(&mut self, data: Value) -> Applied {
        self.write_at(self.position, data)
    }

    fn hear(&mut self, operations: &[&Applied]) {
        for operation in operations {
            assert_eq!(self.state.apply(operation), Outcome::Fresh);
        }
    }

    fn value(&self) -> Value {
        self.state.value()
    }

    fn lost(&self) -> Vec<Value> {
        self.state.superseded().map(|lost| lost.value).collect()
    }
}

fn regions<const N: usize>(kind: Kind) -> [Region; N] {
    let mut number = 0;
    [(); N].map(|()| {
        number += 1;
        Region::new(kind, number)
    })
}

fn add(value: impl Into<Value>) -> Value {
    json!({"op": "add", "value": value.into()})
}

fn remove(value: impl Into<Value>) -> Value {
    json!({"op": "remove", "value": value.into()})
}

fn update(key: &str, kind: &str, change: Value) -> Value {
    json!({"op": "update", "key": key, "type": kind, "change": change})
}

fn remove_key(key: &str) -> Value {
    json!({"op": "remove", "key": key})
}

#[test]
fn what_two_clients_of_one_region_add_survives_both() {
    let [mut here, mut there] = regions(Kind::OrSet);
    let first = here.write(add("a"));
    let second = here.write(add("b"));
    there.hear(&[&first, &second]);
    assert_eq!(there.value(), json!(["a", "b"]));
}

#[test]
fn dots_that_clients_made_would_lose_an_addition() {
    // Two clients that each begin to count at 1 as the same actor: the second is taken for a repetition. That is why
    // dots are the sequencer's.
    let mut here = Region::new(Kind::OrSet, 1);
    let first = here.write(add("a"));
    let mut second = here.write(add("b"));
    second.dot = first.dot;
    let mut there = State::new(Kind::OrSet);
    assert_eq!(there.apply(&first), Outcome::Fresh);
    assert_eq!(there.apply(&second), Outcome::Repeated);
    assert_eq!(there.value(), json!(["a"]));
}

#[test]
fn an_addition_that_the_remover_had_not_seen_survives() {
    let [mut here, mut there] = regions(Kind::OrSet);
    let first = here.write(add("a"));
    there.hear(&[&first]);
    let removed = there.write(remove("a"));
    let again = here.write(add("a"));
    here.hear(&[&removed]);
    there.hear(&[&again]);
    assert_eq!((here.value(), there.value()), (json!(["a"]), json!(["a"])));
}

#[test]
fn a_removal_that_comes_before_its_addition_removes_it_all_the_same() {
    let [mut here, mut there, mut third] = regions(Kind::OrSet);
    let first = here.write(add("a"));
    there.hear(&[&first]);
    let removed = there.write(remove("a"));
    third.hear(&[&removed]);
    third.state = State::decode(&third.state.encode()).expect("it was just encoded");
    third.hear(&[&first]);
    assert_eq!(third.value(), json!([]));
    here.hear(&[&removed]);
    assert_eq!(here.state.encode(), third.state.encode());
}

#[test]
fn only_what_is_there_is_removed() {
    let mut here = Region::new(Kind::OrSet, 1);
    let refused = here.try_write(remove("a")).expect_err("it is empty");
    assert_eq!(
        refused.to_string(),
        "\"a\" is not there in this region, so there is nothing to remove; read the stream again"
    );
    let mut map = Region::new(Kind::OrMap, 1);
    assert!(matches!(
        map.try_write(remove_key("k")),
        Err(CheckError::NotThere { .. })
    ));
    map.write(update("k", "or-set", add("a")));
    let other = update("k", "or-set", remove("b"));
    assert!(matches!(
        map.try_write(other),
        Err(CheckError::NotThere { .. })
    ));
}

#[test]
fn elements_are_equal_by_value_and_an_integer_is_no_float() {
    let mut here = Region::new(Kind::OrSet, 1);
    for data in [
        r#"{"op":"add","value":{"b":1,"a":[2]}}"#,
        r#"{"value": {"a": [2], "b": 1}, "op": "add"}"#,
        r#"{"op":"add","value":1}"#,
        r#"{"op":"add","value":1.0}"#,
        r#"{"op":"add","value":1.00}"#,
    ] {
        here.write(serde_json::from_str(data).expect("JSON"));
    }
    assert_eq!(here.value(), json!([1, 1.0, {"a": [2], "b": 1}]));
}

#[test]
fn a_register_keeps_what_was_set_without_knowing_of_each_other() {
    let [mut here, mut there] = regions(Kind::MvRegister);
    let set = |value: &str| json!({"op": "set", "value": value});
    let first = here.write(set("a"));
    let second = there.write(set("b"));
    here.hear(&[&second]);
    there.hear(&[&first]);
    assert_eq!(here.value(), json!(["a", "b"]));
    let third = there.write(set("c"));
    here.hear(&[&third]);
    assert_eq!((here.value(), there.value()), (json!(["c"]), json!(["c"])));
}

/// The writer of `c` saw `b` but not yet `a`, which `b` had replaced. Comparing whole clocks would show `b` beside `c`.
#[test]
fn a_register_is_replaced_by_who_saw_its_value_and_not_all_that_the_value_had_seen() {
    let [mut first, mut second, mut third] = regions(Kind::MvRegister);
    let set = |value: &str| json!({"op": "set", "value": value});
    let a = first.write(set("a"));
    second.hear(&[&a]);
    let b = second.write(set("b"));
    third.hear(&[&b]);
    let c = third.write(set("c"));
    assert_eq!(third.value(), json!(["c"]));
    third.hear(&[&a]);
    first.hear(&[&c, &b]);
    assert_eq!((first.value(), third.value()), (json!(["c"]), json!(["c"])));
}

#[test]
fn an_update_that_the_remover_of_its_key_had_not_seen_survives_alone() {
    let [mut here, mut there, mut third] = regions(Kind::OrMap);
    let by = |amount: u64| json!({"op": "add", "by": amount});
    let first = here.write(update("k", "pn-counter", by(5)));
    there.hear(&[&first]);
    let removed = there.write(remove_key("k"));
    assert_eq!(there.value(), json!({}));
    let second = here.write(update("k", "pn-counter", by(2)));
    here.hear(&[&removed]);
    there.hear(&[&second]);
    // The removal first, then what it had seen.
    third.hear(&[&removed, &first, &second]);
    for region in [&here, &there, &third] {
        assert_eq!(region.value(), json!({"k": {"pn-counter": 2}}));
    }
    assert_eq!(here.state.encode(), third.state.encode());
}

#[test]
fn a_key_that_two_regions_began_at_once_holds_both_kinds() {
    let [mut here, mut there] = regions(Kind::OrMap);
    let counter = here.write(update("k", "g-counter", json!({"op": "add"})));
    let register = there.write(update("k", "mv-register", json!({"op": "set", "value": 1})));
    here.hear(&[&register]);
    there.hear(&[&counter]);
    assert_eq!(
        here.value(),
        json!({"k": {"g-counter": 1, "mv-register": [1]}})
    );
    assert_eq!(here.value(), there.value());
}

#[test]
fn a_removal_that_takes_apart_what_was_merged_says_so() {
    let [mut here, mut there, mut third] = regions(Kind::OrMap);
    let first = here.write(update("k", "g-counter", json!({"op": "add"})));
    there.hear(&[&first]);
    let removed = there.write(remove_key("k"));
    let second = here.write(update("k", "g-counter", json!({"op": "add"})));
    third.hear(&[&first, &second]);
    // Too early: the removal had not seen the second addition.
    third.state.collect(&third.state.seen().clone());
    assert_eq!(third.state.apply(&removed), Outcome::Inexact);
}

#[test]
fn counters_refuse_to_leave_their_range_and_stay_at_its_end_where_they_must() {
    let most = json!({"op": "add", "by": u64::MAX});
    let [mut here, mut there] = regions(Kind::GCounter);
    let first = here.write(most.clone());
    let refused = here
        .try_write(json!({"op": "add"}))
        .expect_err("it is full");
    assert_eq!(
        refused,
        CheckError::Overflow {
            total: u64::MAX.into()
        }
    );
    let second = there.write(most.clone());
    here.hear(&[&second]);
    there.hear(&[&first]);
    assert_eq!(
        (here.value(), there.value()),
        (json!(u64::MAX), json!(u64::MAX))
    );

    let mut both = Region::new(Kind::PnCounter, 1);
    assert!(both.try_write(most).is_err());
    both.write(json!({"op": "subtract", "by": i64::MAX}));
    both.write(json!({"op": "subtract"}));
    assert!(both.try_write(json!({"op": "subtract"})).is_err());
    assert_eq!(both.value(), json!(i64::MIN));
    both.write(json!({"op": "add", "by": u64::MAX}));
    assert_eq!(both.value(), json!(i64::MAX));

    let mut map = Region::new(Kind::OrMap, 1);
    map.write(update(
        "k",
        "g-counter",
        json!({"op": "add", "by": u64::MAX}),
    ));
    let more = update("k", "g-counter", json!({"op": "add"}));
    assert!(matches!(
        map.try_write(more),
        Err(CheckError::Overflow { .. })
    ));
}

#[test]
fn a_region_takes_only_what_it_holds_rights_to() {
    let [mut here, mut there] = regions(Kind::BoundedCounter);
    let granted = here.write(json!({"op": "grant", "by": 10}));
    there.hear(&[&granted]);
    let refused = there
        .try_write(json!({"op": "take", "by": 3}))
        .expect_err("it holds none");
    assert_eq!(
        refused.to_string(),
        "region 2 holds 0 rights and 3 are needed; region 1 holds 10: let one of them give some, or write there"
    );
    let given = here.write(json!({"op": "give", "by": 4, "to": 2}));
    there.hear(&[&given]);
    let taken = there.write(json!({"op": "take", "by": 3}));
    here.hear(&[&taken]);
    assert_eq!(
        here.value(),
        json!({"stock": 7, "rights": {"1": 6, "2": 1}})
    );
    assert_eq!(here.value(), there.value());
    assert_eq!(here.state.rights(RegionId(2)), Some(1));
    let own = here.try_write(json!({"op": "give", "by": 1, "to": 1}));
    assert_eq!(
        own,
        Err(CheckError::GivesToItself {
            region: RegionId(1)
        })
    );
    let none = Region::new(Kind::BoundedCounter, 3).try_write(json!({"op": "take"}));
    assert!(
        none.expect_err("nothing was granted")
            .to_string()
            .ends_with("no other region holds any: grant more")
    );
    here.write(json!({"op": "grant", "by": u64::MAX - 10}));
    let more = here.try_write(json!({"op": "grant"}));
    assert!(matches!(more, Err(CheckError::Overflow { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Regions grant, take, give and hear of each other as it comes. What was taken is never more than was granted, in
    /// the world as a whole; a region is refused only what it holds no rights to; and no view shows less than nothing.
    #[test]
    fn a_stock_is_never_oversold(
        steps in prop::collection::vec((0u8..8, 0usize..3, 0usize..3, 1u64..6), 0..40),
    ) {
        let mut world: [Region; 3] = regions(Kind::BoundedCounter);
        let mut written: [Vec<Applied>; 3] = Default::default();
        let (mut granted, mut taken) = (0, 0);
        for (what, at, other, by) in steps {
            let own = world[at].actor.region;
            let held = world[at].state.rights(own).unwrap_or(0);
            let data = match what {
                0 => json!({"op": "grant", "by": by}),
                1..=3 => json!({"op": "take", "by": by}),
                4 => json!({"op": "give", "by": by, "to": world[other].actor.region.0}),
                _ => {
                    let next = world[at].state.seen().get(world[other].actor);
                    let next = usize::try_from(next).expect("few");
                    if let Some(operation) = written[other].get(next).filter(|_| at != other) {
                        world[at].hear(&[operation]);
                    }
                    continue;
                }
            };
            match world[at].try_write(data) {
                Ok(applied) => {
                    match applied.operation {
                        Operation::Grant(by) => granted += by,
                        Operation::Take(by) => taken += by,
                        _ => {}
                    }
                    written[at].push(applied);
                }
                Err(CheckError::TooFewRights { here, wanted, .. }) => {
                    prop_assert_eq!(here, held);
                    prop_assert!(wanted > held);
                }
                Err(error) => prop_assert!(at == other && what == 4, "{}", error),
            }
            prop_assert!(taken <= granted, "{} of {} were taken", taken, granted);
        }
        for at in 0..3 {
            for operation in written.iter().flatten() {
                let _ = world[at].state.apply(operation);
            }
            prop_assert_eq!(&world[at].value()["stock"], &json!(granted - taken));
            prop_assert_eq!(world[at].state.digest(), world[0].state.digest());
            prop_assert!(world[at].state.superseded().eq(world[0].state.superseded()));
        }
    }
}

#[test]
fn a_write_from_before_a_fence_that_comes_home_late_does_not_win_and_is_listed() {
    let [mut here, mut there] = regions(Kind::Document);
    // Cut off, it writes at 10. The others go on, and it comes home long after.
    let stranded = there.write_at(10, json!({"price": 1}));
    let later = here.write_at(20, json!({"price": 2}));
    here.hear(&[&stranded]);
    assert_eq!(here.value(), json!({"price": 2}));
    let lost: Vec<_> = here.state.superseded().collect();
    assert_eq!(lost.len(), 1);
    assert_eq!(
        (lost[0].id, lost[0].by, &lost[0].value),
        (stranded.id, later.id, &json!({"price": 1}))
    );
    assert!(lost[0].fields.is_empty());
    there.hear(&[&later]);
    assert_eq!(here.state.encode(), there.state.encode());
}

#[test]
fn what_was_replaced_knowingly_is_history() {
    let [mut here, mut there] = regions(Kind::Document);
    let first = here.write_at(1, json!(1));
    there.hear(&[&first]);
    let second = there.write_at(2, json!(2));
    here.hear(&[&second]);
    assert_eq!((here.value(), here.lost()), (json!(2), vec![]));
    // Of all that a region wrote by itself, only the last is lost to another's.
    let third = here.write_at(3, json!(3));
    let fourth = here.write_at(4, json!(4));
    let other = there.write_at(9, json!(9));
    there.hear(&[&third, &fourth]);
    assert_eq!((there.value(), there.lost()), (json!(9), vec![json!(4)]));
    here.hear(&[&other]);
    assert_eq!(here.state.encode(), there.state.encode());
}

#[test]
fn a_loser_stays_listed_when_someone_who_saw_both_replaces_the_winner() {
    let [mut here, mut there, mut third] = regions(Kind::Document);
    let loser = here.write_at(1, json!("loser"));
    let winner = there.write_at(2, json!("winner"));
    third.hear(&[&loser, &winner]);
    let next = third.write_at(3, json!("next"));
    there.hear(&[&next, &loser]);
    here.hear(&[&next, &winner]);
    for region in [&here, &there, &third] {
        assert_eq!(
            (region.value(), region.lost()),
            (json!("next"), vec![json!("loser")])
        );
        let by: Vec<_> = region.state.superseded().map(|lost| lost.by).collect();
        assert_eq!(by, [winner.id]);
    }
}

#[test]
fn what_the_ledger_has_is_forgotten_and_does_not_come_back() {
    let [mut here, mut there] = regions(Kind::Document);
    let loser = here.write_at(1, json!("loser"));
    let winner = there.write_at(2, json!("winner"));
    here.hear(&[&winner]);
    here.state.forget_superseded(&BTreeSet::from([loser.id]));
    assert_eq!(here.lost(), Vec::<Value>::new());
    let last = there.write_at(3, json!("last"));
    here.hear(&[&last]);
    here.state = State::decode(&here.state.encode()).expect("it was just encoded");
    assert_eq!(here.state.apply(&loser), Outcome::Repeated);
    assert_eq!((here.value(), here.lost()), (json!("last"), vec![]));
}

#[test]
fn fields_are_won_and_lost_one_by_one() {
    let [mut here, mut there] = regions(Kind::Fields);
    let first = here.write_at(1, json!({"name": "Ada", "mail": "a@x", "age": 36}));
    let second = there.write_at(2, json!({"mail": "b@x", "age": null, "city": "London"}));
    here.hear(&[&second]);
    there.hear(&[&first]);
    assert_eq!(
        here.value(),
        json!({"name": "Ada", "mail": "b@x", "city": "London"})
    );
    assert_eq!(here.lost(), [json!({"mail": "a@x", "age": 36})]);
    let fields: Vec<_> = here.state.superseded().map(|lost| lost.fields).collect();
    assert_eq!(fields, [["age".to_owned(), "mail".to_owned()]]);
    assert_eq!(here.state.encode(), there.state.encode());
}

#[test]
fn a_deleted_field_stays_deleted_for_writes_from_before() {
    let [mut here, mut there, mut third] = regions(Kind::Fields);
    let first = here.write_at(1, json!({"x": 1}));
    there.hear(&[&first]);
    let stale = third.write_at(2, json!({"x": 2}));
    let deleted = there.write_at(3, json!({"x": null}));
    here.hear(&[&deleted]);
    here.hear(&[&stale]);
    assert_eq!(
        (here.value(), here.lost()),
        (json!({}), vec![json!({"x": 2})])
    );
}

#[test]
fn a_deleted_field_is_collected_and_what_should_not_have_come_after_says_so() {
    let [mut here, mut there] = regions(Kind::Fields);
    let stale = there.write_at(2, json!({"x": 2}));
    here.write_at(1, json!({"x": 1}));
    here.write_at(3, json!({"x": null}));
    let bytes = here.state.bytes();
    here.state.collect(&here.state.seen().clone());
    assert!(here.state.bytes() < bytes);
    assert_eq!(here.state.apply(&stale), Outcome::Inexact);
}

#[test]
fn a_life_after_a_fence_counts_anew_and_the_old_tail_fits_in_whenever_it_comes() {
    let [mut here, mut there] = regions(Kind::GCounter);
    let first = here.write(json!({"op": "add", "by": 1}));
    there.hear(&[&first]);
    let stranded = here.write(json!({"op": "add", "by": 10}));
    // It comes back without its tail.
    here.state = State::new(Kind::GCounter);
    here.hear(&[&first]);
    here.actor.generation = 1;
    let new = here.write(json!({"op": "add", "by": 100}));
    assert_eq!(new.dot, here.actor.dot(1));
    there.hear(&[&new, &stranded]);
    here.hear(&[&stranded]);
    assert_eq!((here.value(), there.value()), (json!(111), json!(111)));
}

#[test]
fn an_operation_whose_predecessor_is_missing_waits_for_it() {
    let mut here = Region::new(Kind::GCounter, 1);
    let first = here.write(json!({"op": "add", "by": 1}));
    let second = here.write(json!({"op": "add", "by": 10}));
    let mut there = State::new(Kind::GCounter);
    assert_eq!(there.apply(&second), Outcome::Waiting);
    assert_eq!(there.apply(&second), Outcome::Repeated);
    assert_eq!((there.value(), there.waiting()), (json!(0), 1));
    let mut there = State::decode(&there.encode()).expect("it was just encoded");
    assert_eq!(there.apply(&first), Outcome::Fresh);
    assert_eq!((there.value(), there.waiting()), (json!(11), 0));
}

#[test]
fn what_makes_no_sense_changes_nothing_and_holds_nothing_up() {
    for kind in Kind::ALL {
        for other in Kind::ALL {
            let operation = match other {
                Kind::Document => Operation::Unreadable,
                _ => {
                    let step = support::Step {
                        what: 0,
                        region: 0,
                        other: 1,
                        a: 2,
                        b: 0,
                    };
                    support::history(other, &[step])[0].operation.clone()
                }
            };
            if kind == other || (kind, other) == (Kind::Document, Kind::Document) {
                continue;
            }
            let mut state = State::new(kind);
            let before = state.value();
            let actor = Actor::new(RegionId(0), 0);
            let marker = Marker {
                timestamp: Timestamp(1),
                region: RegionId(0),
                position: Position(1),
            };
            let refused = state.check(&operation, actor);
            assert_eq!(refused, Err(CheckError::OtherKind { kind }));
            let dot = actor.dot(1);
            let applied = Applied {
                dot,
                seen: Seen::default(),
                marker,
                id: id(dot),
                operation,
            };
            assert_eq!(state.apply(&applied), Outcome::Fresh);
            assert_eq!(
                (state.value(), state.next_dot(actor)),
                (before, actor.dot(2))
            );
            assert!(State::decode(&state.encode()).is_ok());
        }
    }
}

#[test]
fn dots_that_no_sequencer_gives_do_no_harm() {
    let actor = Actor::new(RegionId(0), 0);
    let marker = Marker {
        timestamp: Timestamp(0),
        region: RegionId(0),
        position: Position(0),
    };
    for kind in Kind::ALL {
        let step = support::Step {
            what: 0,
            region: 0,
            other: 0,
            a: 2,
            b: 0,
        };
        let operation = support::history(kind, &[step])[0].operation.clone();
        let mut state = State::new(kind);
        for (counter, outcome) in [
            (0, Outcome::Repeated),
            (u64::MAX, Outcome::Waiting),
            (1, Outcome::Fresh),
        ] {
            let dot = actor.dot(counter);
            // It claims to have seen all there will ever be.
            let seen = [
                actor.dot(u64::MAX),
                Actor::new(RegionId(1), 0).dot(u64::MAX),
            ]
            .into_iter()
            .collect();
            let operation = operation.clone();
            assert_eq!(
                state.apply(&Applied {
                    dot,
                    seen,
                    marker,
                    id: id(dot),
                    operation
                }),
                outcome
            );
            state.collect(&Seen::from_iter([actor.dot(u64::MAX)]));
            assert!(State::decode(&state.encode()).is_ok(), "{kind}");
        }
    }
}

#[test]
fn kinds_go_by_their_names() {
    for kind in Kind::ALL {
        assert_eq!(Kind::parse(kind.name()), Ok(kind));
        assert_eq!(
            serde_json::to_value(kind).expect("a name"),
            json!(kind.name())
        );
    }
    assert_eq!(
        Kind::parse("counter").expect_err("it is none").to_string(),
        "there is no kind \"counter\"; use one of g-counter, pn-counter, g-set, or-set, mv-register, or-map, bounded-counter, document, fields"
    );
}

fn refused(kind: Kind, data: &str) -> String {
    match Operation::parse(kind, data.as_bytes()) {
        Ok(operation) => panic!("{data} was taken for {operation:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_no_operation_is_refused_with_what_is() {
    let cases = [
        (
            Kind::GCounter,
            "",
            "the data of a g-counter is not JSON; send {\"op\":\"add\",\"by\":1}",
        ),
        (
            Kind::GCounter,
            "[]",
            "an operation on a g-counter is an object; send {\"op\":\"add\",\"by\":1}",
        ),
        (
            Kind::GCounter,
            "{}",
            "member \"op\" is missing from this operation on a g-counter; send {\"op\":\"add\",\"by\":1}",
        ),
        (
            Kind::GCounter,
            r#"{"op":"subtract"}"#,
            "\"subtract\" is no operation on a g-counter; send {\"op\":\"add\",\"by\":1}",
        ),
        (
            Kind::GCounter,
            r#"{"op":"add","by":0}"#,
            "member \"by\" must be an integer from 1 to 18446744073709551615, not 0",
        ),
        (
            Kind::PnCounter,
            r#"{"op":"add","by":-1}"#,
            "member \"by\" must be an integer from 1 to 18446744073709551615, not -1",
        ),
        (
            Kind::PnCounter,
            r#"{"op":"add","by":1.0}"#,
            "member \"by\" must be an integer from 1 to 18446744073709551615, not 1.0",
        ),
        (
            Kind::PnCounter,
            r#"{"op":"add","by":"1"}"#,
            "member \"by\" must be an integer from 1 to 18446744073709551615, not \"1\"",
        ),
        (
            Kind::GCounter,
            r#"{"op":"add","by":1,"extra":2}"#,
            "\"extra\" is no member of this operation on a g-counter; send {\"op\":\"add\",\"by\":1}",
        ),
        (
            Kind::GSet,
            r#"{"op":"remove","value":1}"#,
            "\"remove\" is no operation on a g-set; send {\"op\":\"add\",\"value\":\"x\"}",
        ),
        (
            Kind::GSet,
            r#"{"op":"add"}"#,
            "member \"value\" is missing from this operation on a g-set; send {\"op\":\"add\",\"value\":\"x\"}",
        ),
        (
            Kind::OrMap,
            r#"{"op":"update","key":1,"type":"g-set","change":{}}"#,
            "member \"key\" must be a string of at most 1024 bytes, not 1",
        ),
        (
            Kind::OrMap,
            r#"{"op":"update","key":"k","type":"or-map","change":{}}"#,
            "member \"type\" must be one of g-counter, pn-counter, g-set, or-set, mv-register, not \"or-map\"",
        ),
        (
            Kind::OrMap,
            r#"{"op":"update","key":"k","type":"g-counter","change":{"op":"add","x":1}}"#,
            "\"x\" is no member of this operation on a g-counter; send {\"op\":\"add\",\"by\":1}",
        ),
        (
            Kind::OrMap,
            r#"{"op":"update","key":"k","type":"g-counter","change":7}"#,
            "an operation on a g-counter is an object; send {\"op\":\"add\",\"by\":1}",
        ),
        (
            Kind::BoundedCounter,
            r#"{"op":"give","by":1,"to":65536}"#,
            "member \"to\" must be a region's number, from 0 to 65535, not 65536",
        ),
        (
            Kind::Fields,
            "{}",
            "no field is set; send {\"field\":\"value\",\"another\":null}",
        ),
        (
            Kind::Fields,
            "1",
            "an operation on a fields is an object; send {\"field\":\"value\",\"another\":null}",
        ),
        (
            Kind::Document,
            "123456789012345678901",
            "the integer 123456789012345678901 does not fit 64 bits and would be rounded; send it as a string",
        ),
    ];
    for (kind, data, message) in cases {
        assert_eq!(refused(kind, data), message, "{data}");
    }
}

#[test]
fn what_would_not_be_stored_as_it_was_sent_is_refused() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(Operation::parse(Kind::Document, nested(64).as_bytes()).is_ok());
    assert!(refused(Kind::Document, &nested(65)).contains("make it flatter"));
    let in_text = format!("\"{}\"", r#"\"[[1234567890123456789012"#.repeat(70));
    assert!(Operation::parse(Kind::Document, in_text.as_bytes()).is_ok());

    let long = |length: usize| format!(r#"{{"op":"add","value":"{}"}}"#, "x".repeat(length));
    assert!(Operation::parse(Kind::GSet, long(VALUE_BYTES_MAX - 2).as_bytes()).is_ok());
    assert!(refused(Kind::GSet, &long(VALUE_BYTES_MAX)).contains("store it elsewhere"));
    let fields = format!(
        r#"{{"a":"{}","b":"{}"}}"#,
        "x".repeat(40_000),
        "x".repeat(40_000)
    );
    assert!(refused(Kind::Fields, &fields).contains("store it elsewhere"));
    let key = format!(r#"{{"op":"remove","key":"{}"}}"#, "x".repeat(1025));
    assert!(refused(Kind::OrMap, &key).contains("at most 1024 bytes"));

    for number in ["18446744073709551616", "-9223372036854775809", "1e400"] {
        let parsed = Operation::parse(Kind::Document, number.as_bytes());
        assert!(parsed.is_err(), "{number}");
    }
    for number in [
        "18446744073709551615",
        "-9223372036854775808",
        "1e300",
        "-0",
    ] {
        let parsed = Operation::parse(Kind::Document, number.as_bytes());
        assert!(parsed.is_ok(), "{number}");
    }
    let unreadable = Operation::parse(Kind::Document, b"\xff");
    assert!(matches!(unreadable, Err(OperationError::NotJson { .. })));
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        for kind in Kind::ALL {
            let _ = Operation::parse(kind, &bytes);
        }
        let _ = State::decode(&bytes);
    }

    #[test]
    fn anything_that_looks_like_json_is_parsed_or_refused(
        parts in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"op\"", "\"add\"", "\"by\"", "\"value\"", "1", "-", "e", "\"", "\\", "null",
        ]), 0..20),
    ) {
        let text = parts.concat();
        for kind in Kind::ALL {
            let _ = Operation::parse(kind, text.as_bytes());
        }
    }
}

/// Snapshots that were written stay readable.
#[test]
fn states_are_encoded_as_they_always_were() {
    let steps: Vec<support::Step> = (0..24_u8)
        .map(|number| support::Step {
            what: [0, 1, 9, 2, 8, 15][usize::from(number % 6)],
            region: number % 3,
            other: (number / 2) % 3,
            a: number.wrapping_mul(37),
            b: number.wrapping_mul(11),
        })
        .collect();
    let lines = Kind::ALL.map(|kind| {
        let mut state = State::new(kind);
        // The last ones first, and one that others wait for not at all.
        let mut history = support::history(kind, &steps);
        history.remove(9);
        for operation in history.iter().rev() {
            let _ = state.apply(operation);
        }
        assert!(state.waiting() > 0 && !state.seen().is_empty());
        let bytes = state.encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(State::decode(&bytes).is_ok());
        format!("{kind} {hex}\n")
    });
    assert_eq!(lines.concat(), include_str!("../golden/states-v1.txt"));
}

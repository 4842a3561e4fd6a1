//! How many operations a state takes per second: `cargo test --release -p meridian-conflict --test speed -- --ignored
//! --nocapture`.

mod support;

use meridian_clock::{Position, RegionId, Timestamp};
use meridian_conflict::{Actor, Applied, Kind, Marker, Operation, Outcome, State};
use support::id;

const OPERATIONS: u64 = 300_000;

/// Data of the operation number `number`, among a thousand elements or keys.
fn data(kind: Kind, number: u64) -> String {
    let element = number * 7919 % 1000;
    match kind {
        Kind::GCounter | Kind::PnCounter => r#"{"op":"add","by":2}"#.to_owned(),
        Kind::GSet | Kind::OrSet => format!(r#"{{"op":"add","value":"element {element}"}}"#),
        Kind::MvRegister => format!(r#"{{"op":"set","value":"element {element}"}}"#),
        Kind::OrMap => format!(
            r#"{{"op":"update","key":"key {element}","type":"pn-counter","change":{{"op":"add"}}}}"#
        ),
        Kind::BoundedCounter => r#"{"op":"grant","by":1}"#.to_owned(),
        Kind::Document => format!(r#"{{"price":{element}}}"#),
        Kind::Fields => format!(r#"{{"field {}":{number}}}"#, element % 10),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "it measures how long things take"
)]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "it measures how long things take"
)]
fn per_second(began: std::time::Instant) -> f64 {
    let operations = f64::from(u32::try_from(OPERATIONS).expect("not so many"));
    operations / began.elapsed().as_secs_f64()
}

#[test]
#[ignore = "it only measures, in release builds"]
fn operations_per_second() {
    println!(
        "{:16} {:>12} {:>16}",
        "kind", "parse /s", "check + apply /s"
    );
    for kind in Kind::ALL {
        let texts: Vec<String> = (0..OPERATIONS).map(|number| data(kind, number)).collect();
        let began = now();
        let parsed: Vec<Operation> = texts
            .iter()
            .map(|text| Operation::parse(kind, text.as_bytes()).expect("an operation"))
            .collect();
        let parsing = per_second(began);

        let actors = [0, 1, 2].map(|region| Actor::new(RegionId(region), 0));
        let mut state = State::new(kind);
        let began = now();
        for (number, operation) in (1..).zip(parsed) {
            let actor = actors[usize::try_from(number % 3).expect("small")];
            state
                .check(&operation, actor)
                .expect("nothing stands against it");
            let dot = state.next_dot(actor);
            let applied = Applied {
                dot,
                seen: state.seen().clone(),
                marker: Marker {
                    timestamp: Timestamp(number),
                    region: actor.region,
                    position: Position(number),
                },
                id: id(dot),
                operation,
            };
            assert_eq!(state.apply(&applied), Outcome::Fresh);
            if number.is_multiple_of(1000) {
                state.collect(&state.seen().clone());
            }
        }
        println!(
            "{:16} {parsing:>12.0} {:>16.0}",
            kind.name(),
            per_second(began)
        );
    }
}

/// Two regions write while they are cut off from each other, and then take in all that the other wrote.
#[test]
#[ignore = "it only measures, in release builds"]
fn operations_per_second_after_a_cut() {
    println!("{:16} {:>16}", "kind", "apply /s, healed");
    for kind in Kind::ALL {
        let mut sides = [0, 1].map(|region| (Actor::new(RegionId(region), 0), State::new(kind)));
        let written = sides.each_mut().map(|(actor, state)| {
            let numbers = 1..=OPERATIONS / 2;
            let write = |number| {
                let dot = state.next_dot(*actor);
                let applied = Applied {
                    dot,
                    seen: state.seen().clone(),
                    marker: Marker {
                        timestamp: Timestamp(number),
                        region: actor.region,
                        position: Position(number),
                    },
                    id: id(dot),
                    operation: Operation::parse(kind, data(kind, number).as_bytes())
                        .expect("an operation"),
                };
                assert_eq!(state.apply(&applied), Outcome::Fresh);
                applied
            };
            numbers.map(write).collect::<Vec<_>>()
        });
        let began = now();
        for (at, (_, state)) in sides.iter_mut().enumerate() {
            for applied in &written[1 - at] {
                assert_eq!(state.apply(applied), Outcome::Fresh);
            }
        }
        println!("{:16} {:>16.0}", kind.name(), per_second(began));
        assert_eq!(sides[0].1.digest(), sides[1].1.digest());
        assert_eq!(
            sides[0].1.superseded().count(),
            sides[1].1.superseded().count()
        );
    }
}

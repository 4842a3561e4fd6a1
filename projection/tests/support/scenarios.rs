//! What must hold of every kind of sink.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_projection::{Definition, Doing, Limits, Place, Policy, Query, QueryError, Step};
use proptest::prelude::*;

use super::{Database, Event, Live, World, event, flights, in_logs, key, straight};

pub(crate) fn a_read_model_is_what_its_events_come_to(database: &dyn Database) {
    let events = flights(300);
    let mut expected = BTreeMap::<&str, (i64, i64)>::new();
    for event in events.iter().filter(|it| it.event_type == "Departed") {
        let number = event.key.position.0;
        let carrier = ["AA", "UA"][usize::try_from(number % 2).unwrap()];
        let sums = expected.entry(carrier).or_default();
        sums.0 += 1;
        sums.1 += i64::try_from(number * 7 % 31).unwrap();
    }
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(carrier, (events, minutes))| serde_json::json!([carrier, events, minutes]))
        .collect();
    assert_eq!(
        serde_json::json!(straight(database, &events)[0]),
        serde_json::json!(expected)
    );
}

/// `exactly-once`: a worker that ends anywhere, and one that is overtaken, leave nothing out and apply
/// nothing twice.
pub(crate) fn workers_that_die_and_overtake_each_other_change_nothing(
    database: &dyn Database,
    steps: &[(u8, u64)],
) -> Result<(), TestCaseError> {
    let events = flights(120);
    let world = World::new(database, events.clone());
    let definition = database.delays();
    let mut workers = vec![world.worker(&definition, 5)];
    for (what, count) in steps {
        let last = workers.len() - 1;
        match what {
            0 => {
                for _ in 0..*count {
                    workers[last].step();
                    world.pass(Duration::from_millis(1));
                }
            }
            1 => workers.push(world.worker(&definition, *count)),
            // One that was overtaken goes on as if nothing had happened.
            _ => {
                workers[usize::try_from(*count).unwrap() % (last + 1)].step();
            }
        }
    }
    let mut last = world.worker(&definition, 7);
    prop_assert_eq!(world.run(&mut last), Step::Idle);
    for worker in &mut workers {
        let step = worker.step();
        if worker.status().doing == Doing::Fenced {
            prop_assert_eq!(step, Step::Fenced);
        }
    }
    let mut last = world.worker(&definition, 7);
    prop_assert_eq!(world.run(&mut last), Step::Idle);
    prop_assert_eq!(world.model(), straight(database, &events));
    Ok(())
}

// An event of aircraft-1 whose data its handler does not take.
fn with_a_bad_one(count: u64) -> (Vec<Event>, Vec<Event>) {
    let good = flights(count);
    let mut bad = good.clone();
    let place = bad
        .iter()
        .position(|it| {
            it.event_type == "Seen" && it.stream == "aircraft-1" && it.key.position.0 > 20
        })
        .unwrap();
    bad[place].data = r#"{"carrier":"AA"}"#.to_owned();
    (good, bad)
}

fn with_policy(database: &dyn Database, policy: Policy) -> Definition {
    let mut definition = database.delays();
    definition.failure.policy = policy;
    definition
}

pub(crate) fn stop_stops_before_the_event_and_goes_on_once_the_handler_is_mended(
    database: &dyn Database,
) {
    let (_, bad) = with_a_bad_one(120);
    let world = World::new(database, bad.clone());
    let definition = with_policy(database, Policy::Stop);
    let mut worker = world.worker(&definition, 1_000);
    assert_eq!(world.run(&mut worker), Step::Stopped);
    // 1 s, 2 s and 4 s between four tries.
    assert!(world.now()() >= Duration::from_secs(7));
    let status = worker.status();
    assert!(status.error.unwrap().contains(database.not_null()));
    assert_eq!(worker.step(), Step::Stopped);
    let mended = database.mended(definition);
    worker.go_on_as(mended.clone(), world.room.sink(&mended));
    assert_eq!(world.run(&mut worker), Step::Idle);
    let expected = World::new(database, bad);
    let mut whole = expected.worker(&mended, 1_000);
    assert_eq!(expected.run(&mut whole), Step::Idle);
    assert_eq!(world.model(), expected.model());
}

pub(crate) fn skip_leaves_it_out_and_says_so(database: &dyn Database) {
    let (_, bad) = with_a_bad_one(120);
    let world = World::new(database, bad.clone());
    let mut worker = world.worker(&with_policy(database, Policy::Skip), 1_000);
    assert_eq!(world.run(&mut worker), Step::Idle);
    assert_eq!(worker.status().checkpoint.skipped, 1);
    assert_eq!(worker.status().parked, 0, "it waits for nobody");
    assert_eq!(world.parked().len(), 1, "it is listed");
    let without: Vec<_> = bad
        .into_iter()
        .filter(|it| it.data.contains("minutes"))
        .collect();
    assert_eq!(world.model(), straight(database, &without));
}

pub(crate) fn a_dead_letter_lets_the_rest_of_its_stream_go_on(database: &dyn Database) {
    let (_, bad) = with_a_bad_one(120);
    let world = World::new(database, bad.clone());
    let definition = with_policy(database, Policy::DeadLetter);
    let mut worker = world.worker(&definition, 1_000);
    assert_eq!(world.run(&mut worker), Step::Idle);
    assert_eq!(worker.status().parked, 1);
    let without: Vec<_> = bad
        .into_iter()
        .filter(|it| it.data.contains("minutes"))
        .collect();
    assert_eq!(world.model(), straight(database, &without));
    let (id, ..) = world.parked()[0];
    assert!(
        worker.retry(id).unwrap().unwrap().error.is_some(),
        "it still fails"
    );
    assert_eq!(worker.status().parked, 1);
    assert!(worker.drop_parked(id, "not worth it").unwrap().is_some());
    assert_eq!(
        (worker.status().parked, worker.retry(99).unwrap()),
        (0, None)
    );
}

pub(crate) fn quarantine_parks_the_stream_in_order_and_a_retry_drains_it(database: &dyn Database) {
    let (_, bad) = with_a_bad_one(120);
    let world = World::new(database, bad.clone());
    let definition = with_policy(database, Policy::Quarantine);
    let mut worker = world.worker(&definition, 1_000);
    // Nothing else is delayed by the tries.
    let step = (0..4)
        .map(|_| worker.step())
        .find(|step| *step != Step::More);
    assert!(matches!(step, Some(Step::Wait(_))), "{step:?}");
    assert!(world.now()() < Duration::from_secs(1));
    let of_others = |it: &Event| it.stream != "aircraft-1";
    let others: Vec<_> = bad.iter().filter(|it| of_others(it)).cloned().collect();
    let seen = world.rows("SELECT * FROM last_seen WHERE stream <> 'aircraft-1' ORDER BY 1");
    assert_eq!(seen, straight(database, &others)[1]);

    assert_eq!(world.run(&mut worker), Step::Idle);
    let left = world.parked();
    assert!(left.len() > 5, "{left:?}");
    assert_eq!(left[0].1, "quarantined");
    assert!(left[1..].iter().all(|it| it.1 == "behind"), "{left:?}");
    assert!(left.iter().all(|it| it.2 == "aircraft-1"), "{left:?}");

    // A restart forgets none of it, and what comes meanwhile waits too.
    let more = event(
        500,
        "aircraft-1",
        "Departed",
        r#"{"carrier":"AA","minutes":1}"#,
    );
    world.events.lock().unwrap().push(more);
    let mended = database.mended(definition);
    let mut worker = world.worker(&mended, 1_000);
    assert_eq!(worker.step(), Step::Idle);
    assert_eq!(world.parked().len(), left.len() + 1);
    let drained = worker.retry(left[0].0).unwrap().unwrap();
    assert_eq!(drained.applied, left.len() as u64 + 1);
    assert!(!drained.is_left && drained.error.is_none());
    assert_eq!((world.parked().len(), worker.status().parked), (0, 0));
    let all = World::new(database, world.events.lock().unwrap().clone());
    let mut whole = all.worker(&mended, 1_000);
    assert_eq!(all.run(&mut whole), Step::Idle);
    assert_eq!(world.model(), all.model());
}

pub(crate) fn a_checkpoint_that_is_lost_or_changed_by_hand_is_not_believed(
    database: &dyn Database,
) {
    for (sql, what) in [
        (
            "UPDATE meridian_checkpoint SET place = '1.1.0.1'",
            "changed by hand",
        ),
        ("DELETE FROM meridian_checkpoint", "missing"),
        ("DROP TABLE meridian_checkpoint", "missing"),
    ] {
        let world = World::new(database, flights(30));
        let mut worker = world.worker(&database.delays(), 1_000);
        assert_eq!(world.run(&mut worker), Step::Idle);
        world.room.by_hand(sql);
        let mut worker = world.worker(&database.delays(), 1_000);
        assert!(matches!(worker.step(), Step::Wait(_)));
        let status = worker.status();
        assert_eq!(status.doing, Doing::WaitingForSink);
        let error = status.error.unwrap();
        assert!(error.contains(what) && error.contains("rebuild"), "{error}");
    }
}

pub(crate) fn tables_with_other_columns_are_left_alone(database: &dyn Database) {
    let world = World::new(database, flights(30));
    let mut worker = world.worker(&database.delays(), 1_000);
    assert_eq!(world.run(&mut worker), Step::Idle);
    let mut other = database.delays();
    other.schema = other.schema.replace("minutes INTEGER", "minutes REAL");
    let mut worker = world.worker(&other, 1_000);
    assert!(matches!(worker.step(), Step::Wait(_)));
    let error = worker.status().error.unwrap();
    assert!(error.contains("other columns"), "{error}");
}

pub(crate) fn queries_read_only_and_are_bounded(database: &dyn Database, refused: &[&str]) {
    let world = World::new(database, flights(30));
    let mut worker = world.worker(&database.delays(), 1_000);
    assert_eq!(world.run(&mut worker), Step::Idle);
    let model = world.model();
    let refused_by_all = [
        "DELETE FROM delays",
        "INSERT INTO delays VALUES ('X', 1, 1)",
        "CREATE TABLE t (a INTEGER)",
        "SELECT 1; SELECT 2",
        "SELECT * FROM nothing",
        "BEGIN",
        "SELECT :carrier",
        "",
    ];
    for sql in refused_by_all.iter().chain(refused) {
        let answer = world.ask(sql);
        assert!(
            matches!(answer, Err(QueryError::Refused { .. })),
            "{sql}: {answer:?}"
        );
    }
    assert_eq!(world.model(), model);
    let limits = Limits::default();
    let all = Query {
        sql: "SELECT * FROM delays WHERE carrier <> :carrier OR 1 = 1 ORDER BY 1; -- all"
            .to_owned(),
        params: [("carrier".to_owned(), "AA".into())].into_iter().collect(),
    };
    for (few, limit, what) in [
        (Limits { rows: 1, ..limits }, 1, "rows"),
        (
            Limits {
                bytes: 50,
                ..limits
            },
            50,
            "bytes",
        ),
    ] {
        let answer = world.room.ask(&all, few, &world.now());
        let Err(QueryError::TooMuch {
            limit: said,
            what: of,
        }) = answer
        else {
            panic!("{answer:?}");
        };
        assert_eq!((said, of), (limit, what));
    }
    let answer = world.room.ask(&all, limits, &world.now()).unwrap();
    assert_eq!(answer.columns, ["carrier", "events", "minutes"]);
    assert_eq!(answer.rows, model[0]);
    assert_eq!(answer.rows.len(), 2);
    assert_eq!(answer.checkpoint.place, Place::Order(key(30)));
}

/// In the `live` tier: two events of different logs whose handlers fail, and others that come between the
/// tries, keep neither from being decided on.
pub(crate) fn bad_events_of_two_logs_are_both_decided_on(database: &dyn Database) {
    let mut events = flights(60);
    for (number, stream) in [(101, "aircraft-1"), (102, "aircraft-2")] {
        events.push(event(number, stream, "Seen", r#"{"carrier":"AA"}"#));
    }
    let world = World::new(&Live(database), events.clone());
    let definition = with_policy(&Live(database), Policy::DeadLetter);
    let mut worker = world.worker(&definition, 1_000);
    for number in 200..400 {
        let stream = format!("aircraft-{}", number % 4);
        let good = event(
            number,
            &stream,
            "Departed",
            r#"{"carrier":"UA","minutes":1}"#,
        );
        events.push(good.clone());
        world.events.lock().unwrap().extend(in_logs(vec![good]));
        if let Step::Wait(time) = worker.step() {
            world.pass(time);
        }
    }
    assert_eq!(world.run(&mut worker), Step::Idle);
    let status = worker.status();
    assert_eq!((status.parked, status.doing), (2, Doing::Following));
    assert!(
        world.now()() < Duration::from_secs(60),
        "each was tried four times"
    );
    let good: Vec<_> = events
        .into_iter()
        .filter(|it| it.data.contains("minutes"))
        .collect();
    assert_eq!(world.model(), straight(database, &good));
}

/// What a worker of the `live` tier says of itself: where it is in each log, and nothing of what is settled.
pub(crate) fn a_live_read_model_says_where_it_is_in_each_log(database: &dyn Database) {
    let live = Live(database);
    let world = World::new(&live, flights(30));
    let mut worker = world.worker(&live.delays(), 7);
    assert_eq!(worker.status().checkpoint.place.to_string(), "live");
    assert_eq!(world.run(&mut worker), Step::Idle);
    let checkpoint = worker.status().checkpoint;
    assert_eq!(checkpoint.through, meridian_clock::Timestamp::ZERO);
    let answer = Query {
        sql: "SELECT 1 AS one".to_owned(),
        params: serde_json::Map::new(),
    };
    let answer = world.room.ask(&answer, Limits::default(), &world.now());
    assert_eq!(answer.unwrap().checkpoint, checkpoint);
    let events = world.events.lock().unwrap().clone();
    assert!(events.iter().all(|it| checkpoint.place.covers(it.key)));
    // Its rows are of no use to a worker of another tier.
    let mut other = world.worker(&database.delays(), 7);
    assert!(matches!(other.step(), Step::Wait(_)));
    let error = other.status().error.unwrap();
    assert!(error.contains("of another tier"), "{error}");
}

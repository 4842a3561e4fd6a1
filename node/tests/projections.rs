//! Projections over real processes: the same read models in every region, whatever is killed.

#![expect(
    clippy::disallowed_methods,
    reason = "it waits while an import goes on, and reads the flights themselves"
)]

#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "the sinks' own tests stop it and wait, too, and panic where it cannot be had"
)]
#[path = "../../projection/tests/support/server.rs"]
mod server;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use server::Server;
use support::{Federation, get, meridian, path, post, put, text, until};

const NAMES: [&str; 3] = ["a", "b", "c"];
const FLIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/flights-slice.ndjson.gz");
const EVENTS: u64 = 6_000;
const MAP: &str = "EWR=a,JFK=b,LGA=c";

fn example(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../projection/examples");
    support::read(&file.join(format!("{name}.toml")))
}

fn definition(name: &str) -> Value {
    let definition = meridian_projection::Definition::from_toml(&example(name));
    serde_json::to_value(definition.expect("an example is a definition")).expect("JSON")
}

fn url(federation: &Federation, index: usize, name: &str, rest: &str) -> String {
    federation.url(index, &format!("/v1/projections/{name}{rest}"))
}

fn define(federation: &Federation, index: usize, definition: &Value) -> (u16, Value) {
    let name = definition["name"].as_str().expect("a name");
    put(&url(federation, index, name, ""), &definition.to_string()).expect("an answer")
}

fn define_surely(federation: &Federation, index: usize, definition: &Value) {
    until("a definition is taken", || {
        let (status, answer) = define(federation, index, definition);
        assert!(status == 200 || status >= 500, "{status} {answer}");
        status == 200
    });
}

fn importer(federation: &Federation) -> Child {
    Command::new(env!("CARGO_BIN_EXE_meridian"))
        .args(["import", FLIGHTS, "--config"])
        .arg(&federation.regions[0].config)
        .args(["--map", MAP, "--in-flight", "64", "--give-up-after", "10m"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the importer starts")
}

fn import(federation: &Federation) {
    assert!(importer(federation).wait().expect("it ends").success());
}

fn ask(federation: &Federation, index: usize, name: &str, sql: &str) -> Option<(u16, Value)> {
    let query = json!({ "sql": sql });
    post(&url(federation, index, name, "/query"), &query.to_string())
}

fn rows(federation: &Federation, index: usize, name: &str) -> Option<Value> {
    let (status, mut answer) = ask(
        federation,
        index,
        name,
        &format!("SELECT * FROM {name} ORDER BY 1"),
    )?;
    (status == 200).then(|| answer["rows"].take())
}

fn projection(federation: &Federation, index: usize, name: &str) -> Option<Value> {
    let (status, projection) = get(&url(federation, index, name, ""))?;
    (status == 200).then_some(projection)
}

// Waits until the read model that answers in a region has applied so many events.
fn until_applied(federation: &Federation, index: usize, name: &str, events: u64) {
    until(
        &format!("{name} has {events} events in region {index}"),
        || {
            projection(federation, index, name).is_some_and(|it| {
                it["active"]["applied"] == events && it["active"]["doing"] == "following"
            })
        },
    );
}

fn flights() -> Vec<Value> {
    let file = std::fs::File::open(FLIGHTS).expect("the flights are there");
    let lines = std::io::read_to_string(flate2::read::GzDecoder::new(file)).expect("text");
    lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

// What the flights come to, by carrier.
fn delays() -> Value {
    let mut delays = BTreeMap::<String, (u64, i64)>::new();
    for flight in flights() {
        let carrier = flight["data"]["carrier"].as_str().expect("a carrier");
        let sums = delays.entry(carrier.to_owned()).or_default();
        sums.0 += 1;
        sums.1 += flight["data"]["dep_delay"].as_i64().unwrap_or(0);
    }
    let rows = delays.into_iter();
    rows.map(|(carrier, (events, minutes))| json!([carrier, events, minutes]))
        .collect()
}

fn departures() -> u64 {
    let departed = flights()
        .into_iter()
        .filter(|it| it["type"] == "FlightDeparted");
    departed.count() as u64
}

#[test]
fn every_region_builds_the_same_read_models_whatever_is_killed() {
    let mut federation = Federation::running(&NAMES);
    define_surely(&federation, 1, &definition("carrier_delays"));
    define_surely(&federation, 2, &definition("aircraft_last_seen"));
    let mut importing = importer(&federation);
    for round in 0..6 {
        let victim = round % 3;
        thread::sleep(std::time::Duration::from_millis(300));
        federation.kill(victim);
        federation.start(victim);
        federation.until_ready(victim);
    }
    assert!(importing.wait().expect("it ends").success());
    import(&federation);
    let mut last_seen = Vec::new();
    for index in 0..3 {
        until_applied(&federation, index, "carrier_delays", EVENTS);
        until_applied(&federation, index, "aircraft_last_seen", departures());
        assert_eq!(
            rows(&federation, index, "carrier_delays"),
            Some(delays()),
            "region {index}"
        );
        last_seen.push(rows(&federation, index, "aircraft_last_seen").expect("rows"));
    }
    assert_eq!(last_seen[0], last_seen[1]);
    assert_eq!(last_seen[1], last_seen[2]);
    // Built anew, at once, while the region is killed now and then: the same again.
    let (status, answer) =
        post(&url(&federation, 0, "carrier_delays", "/rebuild"), "{}").expect("an answer");
    assert_eq!(status, 200, "{answer}");
    for _ in 0..3 {
        federation.kill(0);
        federation.start(0);
        federation.until_ready(0);
    }
    until("the candidate has caught up", || {
        projection(&federation, 0, "carrier_delays")
            .is_some_and(|it| it["candidate"]["applied"] == EVENTS)
    });
    let (status, diff) = get(&url(&federation, 0, "carrier_delays", "/diff")).expect("an answer");
    assert_eq!((status, &diff["same"]), (200, &json!(true)), "{diff}");
}

// Handles no flight of one aircraft.
const SICK: &str = "aircraft-N14542";

fn sick() -> Value {
    let mut definition = definition("aircraft_last_seen");
    let handler = definition["on"]["FlightDeparted"]
        .as_str()
        .expect("a statement");
    let sick = handler.replacen(
        ":data ->> 'origin'",
        &format!("CASE :stream WHEN '{SICK}' THEN NULL ELSE :data ->> 'origin' END"),
        1,
    );
    assert_ne!(sick, handler);
    definition["on"]["FlightDeparted"] = sick.into();
    definition["failure"] = json!({ "policy": "quarantine", "retries": 1, "first_ms": 50 });
    definition
}

fn parked(federation: &Federation, rest: &str) -> Vec<Value> {
    let listed = get(&url(
        federation,
        0,
        "aircraft_last_seen",
        &format!("/parked{rest}"),
    ));
    let (status, mut listed) = listed.expect("an answer");
    assert_eq!(status, 200, "{listed}");
    match listed["parked"].take() {
        Value::Array(parked) => parked,
        other => panic!("{other}"),
    }
}

#[test]
fn each_policy_does_what_it_promises_and_mended_handlers_make_it_good() {
    let federation = Federation::running(&["a"]);
    let name = "aircraft_last_seen";
    let of_the_sick = flights()
        .iter()
        .filter(|it| it["stream"] == SICK && it["type"] == "FlightDeparted")
        .count() as u64;
    let healthy = departures() - of_the_sick;
    let imported = meridian(&["import", FLIGHTS, "--url", &federation.url(0, "")]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));

    define_surely(&federation, 0, &sick());
    until_applied(&federation, 0, name, healthy);
    let held = parked(&federation, "");
    assert_eq!(held.len() as u64, of_the_sick);
    assert!(held.iter().all(|it| it["stream"] == SICK), "{held:?}");
    assert_eq!(
        (&held[0]["kind"], &held[1]["kind"]),
        (&json!("quarantined"), &json!("behind"))
    );
    let reason = held[0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("NOT NULL"), "{reason}");

    // Still sick: it says so. Mended, in the same version: all are applied, in order.
    let retry = url(
        &federation,
        0,
        name,
        &format!("/parked/{}/retry", held[0]["id"]),
    );
    let (status, drained) = post(&retry, "{}").expect("an answer");
    assert_eq!((status, &drained["applied"]), (200, &json!(0)), "{drained}");
    let mut mended = definition(name);
    mended["failure"] = sick()["failure"].clone();
    define_surely(&federation, 0, &mended);
    let (status, drained) = post(&retry, "{}").expect("an answer");
    assert_eq!(
        (status, &drained["applied"]),
        (200, &json!(of_the_sick)),
        "{drained}"
    );
    assert_eq!(parked(&federation, ""), Vec::<Value>::new());
    let good = rows(&federation, 0, name).expect("rows");
    let straight = {
        let (status, answer) =
            post(&url(&federation, 0, name, "/rebuild"), "{}").expect("an answer");
        assert_eq!(status, 200, "{answer}");
        until("the candidate has caught up", || {
            projection(&federation, 0, name)
                .is_some_and(|it| it["candidate"]["applied"] == departures())
        });
        let (status, answer) =
            post(&url(&federation, 0, name, "/promote"), "{}").expect("an answer");
        assert_eq!(status, 200, "{answer}");
        rows(&federation, 0, name).expect("rows")
    };
    assert_eq!(good, straight);

    // The other policies, each in a version of its own.
    for (version, policy) in [(2, "skip"), (3, "dead-letter"), (4, "stop")] {
        let mut next = sick();
        next["version"] = version.into();
        next["failure"]["policy"] = policy.into();
        define_surely(&federation, 0, &next);
        let candidate = |check: &dyn Fn(&Value) -> bool| {
            until(&format!("{policy} is seen"), || {
                projection(&federation, 0, name).is_some_and(|it| check(&it["candidate"]))
            });
        };
        match policy {
            "skip" => candidate(&|it| it["applied"] == healthy && it["skipped"] == of_the_sick),
            "dead-letter" => {
                candidate(&|it| it["applied"] == healthy && it["parked"] == of_the_sick)
            }
            _ => candidate(&|it| {
                it["doing"] == "stopped"
                    && it["error"]
                        .as_str()
                        .is_some_and(|error| error.contains(SICK))
            }),
        }
    }
    // What was stopped goes on once it is mended and told to.
    mended["version"] = 4.into();
    define_surely(&federation, 0, &mended);
    until("it goes on", || {
        projection(&federation, 0, name)
            .is_some_and(|it| it["candidate"]["applied"] == departures())
    });
}

fn depart(federation: &Federation, index: usize, stream: &str, carrier: &str, minutes: i64) {
    let data = json!({
        "carrier": carrier, "dep_delay": minutes, "flight": 1, "origin": "EWR", "dest": "SFO"
    });
    let event = json!({ "events": [{ "type": "FlightDeparted", "data": data }] });
    let events = federation.url(index, &format!("/v1/streams/{stream}/events"));
    let (status, answer) = post(&events, &event.to_string()).expect("an answer");
    assert_eq!(status, 200, "{answer}");
}

fn live(name: &str) -> Value {
    let mut definition = definition(name);
    definition["tier"] = "live".into();
    definition["commutative"] = true.into();
    definition
}

#[test]
fn live_read_models_come_to_the_same_whatever_is_killed() {
    let mut federation = Federation::running(&NAMES);
    let name = "carrier_delays";
    define_surely(&federation, 1, &live(name));
    let mut importing = importer(&federation);
    for round in 0..6 {
        let victim = round % 3;
        thread::sleep(std::time::Duration::from_millis(300));
        federation.kill(victim);
        federation.start(victim);
        federation.until_ready(victim);
    }
    assert!(importing.wait().expect("it ends").success());
    import(&federation);
    for index in 0..3 {
        until_applied(&federation, index, name, EVENTS);
        assert_eq!(
            rows(&federation, index, name),
            Some(delays()),
            "region {index}"
        );
    }
    let (status, answer) = post(&url(&federation, 0, name, "/rebuild"), "{}").expect("an answer");
    assert_eq!(status, 200, "{answer}");
    for _ in 0..3 {
        federation.kill(0);
        federation.start(0);
        federation.until_ready(0);
    }
    until("the candidate has caught up", || {
        projection(&federation, 0, name).is_some_and(|it| it["candidate"]["applied"] == EVENTS)
    });
    let (status, diff) = get(&url(&federation, 0, name, "/diff")).expect("an answer");
    assert_eq!((status, &diff["same"]), (200, &json!(true)), "{diff}");
    let shown = projection(&federation, 0, name).expect("an answer");
    let checkpoint = shown["active"]["checkpoint"].as_str().expect("a place");
    assert!(checkpoint.starts_with("live "), "{checkpoint}");
}

#[test]
fn a_live_read_model_shows_what_is_held_while_a_region_is_silent() {
    let mut federation = Federation::running(&NAMES);
    let name = "carrier_delays";
    let mut stable = definition("aircraft_last_seen");
    stable["failure"] = json!({ "policy": "skip", "retries": 0 });
    define_surely(&federation, 0, &live(name));
    define_surely(&federation, 0, &stable);
    depart(&federation, 2, "aircraft-N1", "XX", 5);
    for index in 0..2 {
        until_applied(&federation, index, name, 1);
        until_applied(&federation, index, "aircraft_last_seen", 1);
    }
    federation.kill(2);
    let of_us = |minutes: u64| json!([["XX", minutes, 5 * minutes]]);
    let ask_at_least = |federation: &Federation, index, name: &str, token: &str, sql: &str| {
        let query = json!({ "sql": sql, "at_least": token });
        post(&url(federation, index, name, "/query"), &query.to_string()).expect("an answer")
    };
    let sql = "SELECT * FROM carrier_delays";
    let mut token = String::new();
    let mut written = 1;
    let mut write = |federation: &Federation, number: u64| {
        // Of a stream whose home is not the silent region.
        for attempt in 0.. {
            let stream = federation.url(
                0,
                &format!("/v1/streams/aircraft-N{number}{attempt}/events"),
            );
            let data = json!({ "carrier": "XX", "dep_delay": 5, "flight": 1, "origin": "EWR", "dest": "SFO" });
            let event = json!({ "events": [{ "type": "FlightDeparted", "data": data }] });
            let (status, given, answer) =
                support::post_for_token(&stream, &event.to_string()).expect("an answer");
            if status == 200 {
                written += 1;
                return (given.expect("a token"), written);
            }
            assert!(status >= 500 && attempt < 100, "{status} {answer}");
        }
        unreachable!("it tries until it is written")
    };
    for number in 10..15 {
        let (given, count) = write(&federation, number);
        token = given;
        // In the other region: as soon as it has come over.
        until("region 1 shows it", || {
            let (status, answer) = ask_at_least(&federation, 1, name, &token, sql);
            assert!(
                status == 200 || answer["code"] == "stale",
                "{status} {answer}"
            );
            if status == 200 {
                assert_eq!(answer["rows"], of_us(count), "it never shows less");
            }
            status == 200
        });
    }
    // What waits until it is settled waits for the silent region.
    let (status, answer) = ask_at_least(
        &federation,
        1,
        "aircraft_last_seen",
        &token,
        "SELECT count(*) FROM aircraft_last_seen",
    );
    assert_eq!(
        (status, &answer["code"]),
        (503, &json!("stale")),
        "{answer}"
    );
    // It survives its node, and is exchanged, while nothing is settled.
    federation.kill(1);
    federation.start(1);
    federation.until_ready(1);
    let (status, answer) = post(&url(&federation, 1, name, "/rebuild"), "{}").expect("an answer");
    assert_eq!(status, 200, "{answer}");
    for what in ["/promote", "/rollback"] {
        until(&format!("{what} is done"), || {
            let (status, answer) = post(&url(&federation, 1, name, what), "{}").expect("an answer");
            assert!(status == 200 || status == 409, "{status} {answer}");
            status == 200
        });
        let (status, answer) = ask_at_least(&federation, 1, name, &token, sql);
        assert_eq!(
            (status, &answer["rows"]),
            (200, &of_us(written)),
            "{answer}"
        );
    }
    federation.start(2);
    federation.until_ready(2);
    until("the two read models can be compared", || {
        let (status, diff) = get(&url(&federation, 1, name, "/diff")).expect("an answer");
        assert!(status == 409 || diff["same"] == true, "{diff}");
        status == 200
    });
    until_applied(&federation, 2, name, written);
}

#[test]
fn live_read_models_are_exchanged_under_a_live_import_and_take_nobody_back() {
    let federation = Federation::running(&NAMES);
    let name = "carrier_delays";
    define_surely(&federation, 0, &live(name));
    let mut importing = importer(&federation);
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut last, mut asked) = (0, 0);
            while !ends.load(Ordering::Relaxed) {
                let sql = "SELECT coalesce(sum(events), 0) FROM carrier_delays";
                let (status, answer) = ask(&federation, 0, name, sql).expect("an answer");
                assert_eq!(status, 200, "{answer}");
                let sum = answer["rows"][0][0].as_u64().expect("a number");
                assert!(sum >= last, "{sum} after {last}");
                (last, asked) = (sum, asked + 1);
            }
            asked
        });
        let change = |what: &str| {
            until(&format!("{what} is done"), || {
                let (status, answer) =
                    post(&url(&federation, 0, name, what), "{}").expect("an answer");
                assert!(status == 200 || status == 409, "{status} {answer}");
                status == 200
            });
        };
        let mut second = live(name);
        second["version"] = 2.into();
        define_surely(&federation, 0, &second);
        change("/promote");
        for _ in 0..10 {
            change("/rollback");
            change("/promote");
        }
        until("the two are compared", || {
            let (status, diff) = get(&url(&federation, 0, name, "/diff")).expect("an answer");
            assert!(status == 409 || diff["same"] == true, "{diff}");
            status == 200
        });
        assert!(importing.wait().expect("it ends").success());
        until_applied(&federation, 0, name, EVENTS);
        assert_eq!(rows(&federation, 0, name), Some(delays()));
        // From one tier to the other and back.
        let mut third = definition(name);
        third["version"] = 3.into();
        define_surely(&federation, 0, &third);
        change("/promote");
        change("/rollback");
        ends.store(true, Ordering::Relaxed);
        let asked = asking.join().expect("nobody was refused or taken back");
        assert!(asked > 10, "{asked}");
    });
    assert_eq!(rows(&federation, 0, name), Some(delays()));
}

#[test]
fn nothing_waits_for_a_parked_stream_that_is_tried_again_later() {
    let federation = Federation::running(&["a"]);
    let name = "aircraft_last_seen";
    let mut patient = sick();
    patient["failure"] = json!({
        "policy": "quarantine", "retries": 3, "first_ms": 3_600_000, "longest_ms": 3_600_000
    });
    define_surely(&federation, 0, &patient);
    depart(&federation, 0, SICK, "UA", 1);
    until("its event is parked", || {
        projection(&federation, 0, name).is_some_and(|it| it["active"]["parked"] == 1)
    });
    depart(&federation, 0, "aircraft-N1", "UA", 1);
    until("another's is applied", || {
        projection(&federation, 0, name).is_some_and(|it| it["active"]["applied"] == 1)
    });
}

#[test]
fn a_new_version_is_built_beside_compared_promoted_and_rolled_back_under_a_live_import() {
    let federation = Federation::running(&NAMES);
    let name = "carrier_delays";
    define_surely(&federation, 0, &definition(name));
    let mut importing = importer(&federation);
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        // Nobody who asks is ever refused or taken back.
        let asking = scope.spawn(|| {
            let (mut last, mut asked) = ((0, 0), 0);
            while !ends.load(Ordering::Relaxed) {
                let answer = ask(
                    &federation,
                    0,
                    name,
                    "SELECT coalesce(sum(events), 0) FROM carrier_delays",
                );
                let (status, answer) = answer.expect("an answer");
                assert_eq!(status, 200, "{answer}");
                let key = answer["order_key"].as_str().expect("an order key");
                let timestamp: u64 = key
                    .split('.')
                    .next()
                    .expect("a part")
                    .parse()
                    .expect("a number");
                let sum = answer["rows"][0][0].as_u64().expect("a number");
                assert!((timestamp, sum) >= last, "{answer} after {last:?}");
                (last, asked) = ((timestamp, sum), asked + 1);
            }
            asked
        });
        let change = |what: &str| {
            until(&format!("{what} is done"), || {
                let (status, answer) =
                    post(&url(&federation, 0, name, what), "{}").expect("an answer");
                assert!(status == 200 || status == 409, "{status} {answer}");
                status == 200
            });
        };
        // A right one.
        let mut second = definition(name);
        second["version"] = 2.into();
        define_surely(&federation, 0, &second);
        change("/promote");
        for _ in 0..10 {
            change("/rollback");
            change("/promote");
        }
        assert!(importing.wait().expect("it ends").success());
        until_applied(&federation, 0, name, EVENTS);
        assert_eq!(rows(&federation, 0, name), Some(delays()));
        // A wrong one: it forgets cancelled flights.
        let mut third = definition(name);
        third["version"] = 3.into();
        third["on"]["FlightCancelled"] = "DELETE FROM carrier_delays WHERE carrier = 'none'".into();
        define_surely(&federation, 0, &third);
        until("the third has caught up", || {
            projection(&federation, 0, name).is_some_and(|it| it["candidate"]["applied"] == EVENTS)
        });
        let (status, diff) = get(&url(&federation, 0, name, "/diff")).expect("an answer");
        assert_eq!((status, &diff["same"]), (200, &json!(false)), "{diff}");
        let differing = diff["tables"][0]["only_in"][0].as_u64().expect("a number");
        assert!(differing > 0, "{diff}");
        assert_eq!(
            diff["tables"][0]["examples"][0].as_array().map(Vec::len),
            usize::try_from(differing).ok()
        );
        ends.store(true, Ordering::Relaxed);
        let asked = asking.join().expect("nobody was refused or taken back");
        assert!(asked > 10, "{asked}");
    });
}

#[test]
fn many_workers_build_what_one_does() {
    let federation = Federation::running(&["a"]);
    let imported = meridian(&["import", FLIGHTS, "--url", &federation.url(0, "")]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    for (name, events) in [
        ("carrier_delays", EVENTS),
        ("aircraft_last_seen", departures()),
    ] {
        define_surely(&federation, 0, &definition(name));
        until_applied(&federation, 0, name, events);
        // Four divide the partitions, three do not.
        let divisions = [(4, "hash"), (3, "hash"), (3, "time")];
        // The last flights of two stretches are of one aircraft, and nothing says which counts.
        let divisions = divisions
            .into_iter()
            .filter(|it| it.1 == "hash" || name == "carrier_delays");
        for (version, (count, by)) in (2..).zip(divisions) {
            let mut next = definition(name);
            next["version"] = version.into();
            next["workers"] = json!({ "count": count, "by": by });
            define_surely(&federation, 0, &next);
            until(
                &format!("{count} workers by {by} have built {name}"),
                || {
                    let shown = projection(&federation, 0, name).expect("an answer");
                    shown["candidate"]["version"] == version
                        && shown["candidate"]["doing"] == "following"
                        && shown["candidate"]["applied"] == events
                },
            );
            let (status, diff) = get(&url(&federation, 0, name, "/diff")).expect("an answer");
            assert_eq!(
                (status, &diff["same"]),
                (200, &json!(true)),
                "{count} by {by}: {diff}"
            );
        }
    }
    let log = federation.log(0);
    assert!(!log.contains("cannot be built in parts"), "{log}");
    let left = std::fs::read_dir(
        federation.regions[0]
            .data
            .join("projections/carrier_delays"),
    );
    let left = left
        .expect("a folder")
        .map(|it| it.expect("an entry").file_name());
    let left: Vec<_> = left
        .filter(|it| it.to_string_lossy().contains("part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

// The schemas of parts in a database.
fn parts_in(federation: &Federation, name: &str) -> Value {
    let sql = "SELECT nspname::text FROM pg_namespace WHERE position('.part-' in nspname) > 0";
    let (status, mut answer) = ask(federation, 0, name, sql).expect("an answer");
    assert_eq!(status, 200, "{answer}");
    answer["rows"].take()
}

#[test]
fn many_workers_build_in_postgresql_what_one_does() {
    let Some(server) = Server::start() else {
        return;
    };
    let federation = Federation::running(&["a"]);
    let imported = meridian(&["import", FLIGHTS, "--url", &federation.url(0, "")]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    let name = "carrier_delays_postgres";
    let mut one = definition(name);
    one["sink"]["url"] = server.url().into();
    define_surely(&federation, 0, &one);
    until_applied(&federation, 0, name, EVENTS);
    for (version, (count, by)) in (2..).zip([(4, "hash"), (3, "hash"), (3, "time")]) {
        let mut next = one.clone();
        next["version"] = version.into();
        next["workers"] = json!({ "count": count, "by": by });
        define_surely(&federation, 0, &next);
        until(&format!("{count} workers by {by} have built it"), || {
            let shown = projection(&federation, 0, name).expect("an answer");
            shown["candidate"]["version"] == version
                && shown["candidate"]["doing"] == "following"
                && shown["candidate"]["applied"] == EVENTS
        });
        let (status, diff) = get(&url(&federation, 0, name, "/diff")).expect("an answer");
        assert_eq!(
            (status, &diff["same"]),
            (200, &json!(true)),
            "{count} by {by}: {diff}"
        );
    }
    let log = federation.log(0);
    assert!(!log.contains("cannot be built in parts"), "{log}");
    assert_eq!(parts_in(&federation, name), json!([]));
    // Without it, two parts have rows of the same carriers: one worker builds it, and nothing is left.
    let mut unmerged = one.clone();
    unmerged["version"] = 9.into();
    unmerged["workers"] = json!({ "count": 2 });
    unmerged["merge"] = Value::Null;
    define_surely(&federation, 0, &unmerged);
    until("one worker has built it", || {
        let shown = projection(&federation, 0, name).expect("an answer");
        shown["candidate"]["version"] == 9
            && shown["candidate"]["applied"] == EVENTS
            && shown["candidate"]["doing"] == "following"
    });
    assert!(federation.log(0).contains("cannot be built in parts"));
    assert_eq!(parts_in(&federation, name), json!([]));
}

#[test]
fn a_read_model_whose_definition_is_not_known_any_more_is_built_anew() {
    let mut federation = Federation::running(&["a"]);
    let name = "carrier_delays";
    let imported = meridian(&["import", FLIGHTS, "--url", &federation.url(0, "")]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    // Rows of a first version that counted wrongly, in the same tables.
    let mut first = definition(name);
    first["on"]["FlightCancelled"] = "DELETE FROM carrier_delays WHERE carrier = 'none'".into();
    define_surely(&federation, 0, &first);
    until_applied(&federation, 0, name, EVENTS);
    let mut second = definition(name);
    second["version"] = 2.into();
    define_surely(&federation, 0, &second);
    until("the second has caught up", || {
        projection(&federation, 0, name).is_some_and(|it| it["candidate"]["applied"] == EVENTS)
    });
    let (status, answer) = post(&url(&federation, 0, name, "/promote"), "{}").expect("an answer");
    assert_eq!(status, 200, "{answer}");
    federation.kill(0);
    let shelf = federation.regions[0]
        .data
        .join("projections/carrier_delays/shelf.json");
    std::fs::write(&shelf, "{").expect("it can be written");
    federation.start(0);
    federation.until_ready(0);
    // All definitions are followed anew: the first answers, and the second is built beside it again.
    until_applied(&federation, 0, name, EVENTS);
    until("the second has caught up again", || {
        projection(&federation, 0, name).is_some_and(|it| it["candidate"]["applied"] == EVENTS)
    });
    let (status, answer) = post(&url(&federation, 0, name, "/promote"), "{}").expect("an answer");
    assert_eq!(status, 200, "{answer}");
    assert_eq!(rows(&federation, 0, name), Some(delays()));
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let federation = Federation::running(&["a"]);
    let good = definition("carrier_delays");
    let refused = |change: &dyn Fn(&mut Value), because: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        let (status, problem) = define(&federation, 0, &bad);
        assert_eq!(
            (status, &problem["code"]),
            (400, &json!("invalid")),
            "{problem}"
        );
        let detail = problem["detail"].as_str().expect("a detail");
        assert!(detail.contains(because), "{because:?} is not in {detail:?}");
    };
    refused(&|it| it["verison"] = 1.into(), "verison");
    refused(
        &|it| it["source"]["types"] = json!(["FlightDepartd"]),
        "did you mean \"FlightDeparted\"?",
    );
    refused(
        &|it| it["on"]["FlightDeparted"] = "INSRT".into(),
        "syntax error",
    );
    refused(
        &|it| it["on"]["FlightDeparted"] = "DELETE FROM nowhere".into(),
        "no such table",
    );
    refused(
        &|it| it["schema"] = "CREATE TABLE meridian_parked (a)".into(),
        "the engine's own",
    );
    refused(&|it| it["tier"] = "live".into(), "commutative");
    refused(
        &|it| {
            it["tier"] = "live".into();
            it["commutative"] = true.into();
            it["workers"] = json!({ "count": 2 });
        },
        "by one worker",
    );
    for name in ["..%2Fx", "A", "a%2Fb"] {
        let (status, problem) = put(&url(&federation, 0, name, ""), &{
            let mut bad = good.clone();
            bad["name"] = "".into();
            bad.to_string()
        })
        .expect("an answer");
        assert_eq!(status, 400, "{name}: {problem}");
    }
    let (status, problem) = ask(&federation, 0, "nobody", "SELECT 1").expect("an answer");
    assert_eq!((status, &problem["code"]), (404, &json!("not_found")));

    define_surely(&federation, 0, &good);
    for sql in [
        "DELETE FROM carrier_delays",
        "SELECT 1; SELECT 2",
        "ATTACH 'x' AS x",
        "SELECT * FROM nowhere",
    ] {
        let (status, problem) = ask(&federation, 0, "carrier_delays", sql).expect("an answer");
        assert_eq!(
            (status, &problem["code"]),
            (400, &json!("invalid")),
            "{sql}: {problem}"
        );
    }
    // Another schema in the same version, and an older version.
    let mut other = good.clone();
    other["schema"] = format!("{} ", good["schema"].as_str().expect("SQL")).into();
    let (status, problem) = define(&federation, 0, &other);
    assert_eq!(
        (status, &problem["code"]),
        (409, &json!("conflict")),
        "{problem}"
    );
    let (status, _) =
        post(&url(&federation, 0, "carrier_delays", "/promote"), "{}").expect("an answer");
    assert_eq!(status, 409);
    // Its stream is the server's own.
    let body = json!({ "events": [{ "type": "ProjectionRemoved", "data": {} }] }).to_string();
    let (status, problem) = post(
        &federation.url(0, "/v1/streams/$projections-carrier_delays/events"),
        &body,
    )
    .expect("an answer");
    assert_eq!(status, 400, "{problem}");

    let removed = meridian(&[
        "projection",
        "remove",
        "carrier_delays",
        "--url",
        &federation.url(0, ""),
    ]);
    assert!(removed.status.success(), "{}", text(&removed.stderr));
    let (status, _) = ask(&federation, 0, "carrier_delays", "SELECT 1").expect("an answer");
    assert_eq!(status, 404);
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../projection/examples/carrier_delays.toml");
    let again = meridian(&[
        "projection",
        "put",
        path(&file),
        "--url",
        &federation.url(0, ""),
    ]);
    assert!(again.status.success(), "{}", text(&again.stderr));
}

#[test]
fn a_query_shows_what_its_token_stands_for() {
    let federation = Federation::running(&NAMES);
    let name = "carrier_delays";
    define_surely(&federation, 0, &definition(name));
    for number in 1..20_u64 {
        let index = usize::try_from(number % 3).expect("small");
        let event =
            json!({ "events": [{ "type": "FlightCancelled", "data": { "carrier": "XX" } }] });
        let stream = federation.url(index, &format!("/v1/streams/aircraft-{number}/events"));
        let (status, token, answer) =
            support::post_for_token(&stream, &event.to_string()).expect("an answer");
        assert_eq!(status, 200, "{answer}");
        let elsewhere = (index + 1) % 3;
        let query = json!({
            "sql": "SELECT events FROM carrier_delays WHERE carrier = :carrier",
            "params": { "carrier": "XX" },
            "at_least": token,
        });
        until("the answer is not stale", || {
            let asked = post(
                &url(&federation, elsewhere, name, "/query"),
                &query.to_string(),
            );
            let (status, answer) = asked.expect("an answer");
            assert!(
                status == 200 || answer["code"] == "stale" || answer["code"] == "not_found",
                "{status} {answer}"
            );
            if status == 200 {
                assert_eq!(answer["rows"][0][0], number, "it never shows less");
            }
            status == 200
        });
    }
}

#[test]
fn read_models_in_postgresql_are_the_same_whatever_is_killed() {
    let Some(server) = Server::start() else {
        return;
    };
    let name = "carrier_delays_postgres";
    let mut federation = Federation::running(&NAMES);
    let mut in_postgresql = definition(name);
    in_postgresql["sink"]["url"] = server.url().into();
    define_surely(&federation, 0, &in_postgresql);
    let mut importing = importer(&federation);
    for round in 0..3 {
        thread::sleep(std::time::Duration::from_millis(500));
        federation.kill(round);
        server.kill();
        federation.start(round);
        server.go_on();
        federation.until_ready(round);
    }
    assert!(importing.wait().expect("it ends").success());
    import(&federation);
    for index in 0..3 {
        until_applied(&federation, index, name, EVENTS);
        let sql = "SELECT * FROM carrier_delays ORDER BY carrier COLLATE \"C\"";
        let (status, answer) = ask(&federation, index, name, sql).expect("an answer");
        assert_eq!(
            (status, &answer["rows"]),
            (200, &delays()),
            "region {index}"
        );
    }
    // A second version in the same database, which counts no cancelled flights.
    let mut second = in_postgresql.clone();
    second["version"] = 2.into();
    second["on"]["FlightCancelled"] = "DELETE FROM carrier_delays WHERE carrier = 'none'".into();
    define_surely(&federation, 0, &second);
    until("the candidate has caught up", || {
        projection(&federation, 0, name).is_some_and(|it| it["candidate"]["applied"] == EVENTS)
    });
    let (status, diff) = get(&url(&federation, 0, name, "/diff")).expect("an answer");
    assert_eq!((status, &diff["same"]), (200, &json!(false)), "{diff}");
    for what in ["/promote", "/rollback"] {
        let (status, answer) = post(&url(&federation, 0, name, what), "{}").expect("an answer");
        assert_eq!(status, 200, "{answer}");
    }
    // Who asks the database itself sees the one that answers.
    let sql = format!("SELECT sum(events)::bigint FROM \"{name}@a\".carrier_delays");
    let (status, answer) = ask(&federation, 0, name, &sql).expect("an answer");
    assert_eq!(
        (status, &answer["rows"]),
        (200, &json!([[EVENTS]])),
        "{answer}"
    );
    let (_, shown) = get(&url(&federation, 0, name, "")).expect("an answer");
    assert_eq!(shown["definition"]["sink"]["kind"], "postgres");
}

// As it is, but slow: what a statement adds to the minutes is nothing, and takes a while to find.
fn slow(mut definition: Value, nothing: &str) -> Value {
    for event_type in ["FlightDeparted", "FlightCancelled"] {
        let handler = definition["on"][event_type].as_str().expect("a statement");
        let slow = handler.replacen(", 1, ", &format!(", 1 + {nothing}, "), 1);
        assert_ne!(slow, handler);
        definition["on"][event_type] = slow.into();
    }
    definition
}

#[test]
fn thirty_kills_in_the_middle_of_builds_change_nothing() {
    let (builds, killed) = kill_in_the_middle_of_builds(30, &[json!({ "count": 1 })]);
    println!("{builds} builds ended meanwhile; {killed} times one was in the middle");
}

#[test]
fn kills_in_the_middle_of_builds_in_parts_change_nothing() {
    // Divided in another way now and then: no worker goes on with what one of another division began.
    let by = |count: u16, by: &str| json!({ "count": count, "by": by });
    let divisions = [by(2, "hash"), by(3, "hash"), by(3, "time"), by(2, "time")];
    let (builds, killed) = kill_in_the_middle_of_builds(16, &divisions);
    println!("{builds} builds ended meanwhile; {killed} times one was in the middle");
}

// How many builds ended meanwhile, and how often one was in the middle.
fn kill_in_the_middle_of_builds(kills_max: u32, divisions: &[Value]) -> (u32, u32) {
    let mut federation = Federation::running(&["a"]);
    let imported = meridian(&["import", FLIGHTS, "--url", &federation.url(0, "")]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    let server = Server::start();
    let nothing = "(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 4000) SELECT count(*) * 0 FROM c)";
    let mut in_a_file = slow(definition("carrier_delays"), nothing);
    in_a_file["workers"] = divisions[0].clone();
    define_surely(&federation, 0, &in_a_file);
    let mut defined = vec![in_a_file];
    let mut built = vec!["carrier_delays"];
    if let Some(server) = &server {
        let nothing = "(SELECT count(*)::bigint * 0 FROM generate_series(1, 4000))";
        let mut in_postgresql = slow(definition("carrier_delays_postgres"), nothing);
        in_postgresql["sink"]["url"] = server.url().into();
        in_postgresql["workers"] = divisions[0].clone();
        define_surely(&federation, 0, &in_postgresql);
        defined.push(in_postgresql);
        built.push("carrier_delays_postgres");
    }
    // Of each: what is being built, the first read model or a candidate beside it.
    let applied = |federation: &Federation, name: &str| {
        let shown = projection(federation, 0, name)?;
        let building = match shown["candidate"].is_null() {
            true => &shown["active"],
            false => &shown["candidate"],
        };
        building["applied"].as_u64()
    };
    let answers = |federation: &Federation, name: &str| {
        let sql = match name {
            "carrier_delays" => "SELECT * FROM carrier_delays ORDER BY carrier",
            _ => "SELECT * FROM carrier_delays ORDER BY carrier COLLATE \"C\"",
        };
        let (status, mut answer) = ask(federation, 0, name, sql)?;
        (status == 200).then(|| answer["rows"].take())
    };
    // A build that has ended is compared, and the next one begun.
    let compare = |federation: &Federation, name: &str| {
        let candidate = projection(federation, 0, name).expect("an answer")["candidate"].clone();
        if !candidate.is_null() {
            until("the candidate answers", || {
                let answer = post(&url(federation, 0, name, "/promote"), "{}");
                answer.is_some_and(|(status, _)| status == 200)
            });
        }
        assert_eq!(answers(federation, name), Some(delays()), "{name}");
    };
    let mut random = 0x9e37_79b9_u64;
    let mut pause = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        thread::sleep(std::time::Duration::from_millis(20 + (random >> 33) % 300));
    };
    let (mut kills, mut in_the_middle, mut builds) = (0, 0, 0);
    while kills < kills_max {
        pause();
        for name in &built {
            let done = applied(&federation, name);
            in_the_middle += u32::from(done.is_some_and(|it| it > 0 && it < EVENTS));
            if done == Some(EVENTS) {
                builds += 1;
                compare(&federation, name);
                let answer = post(&url(&federation, 0, name, "/rebuild"), "{}");
                assert_eq!(answer.expect("an answer").0, 200);
            }
        }
        // The node, the database, or both.
        let node = kills % 3 != 1 || server.is_none();
        if node {
            federation.kill(0);
        }
        if let Some(server) = server.as_ref().filter(|_| kills % 3 != 0) {
            server.kill();
            pause();
            server.go_on();
        }
        if node {
            federation.start(0);
            federation.until_ready(0);
        }
        kills += 1;
        if divisions.len() > 1 && kills % 3 == 0 {
            for definition in &mut defined {
                definition["workers"] = divisions[kills as usize / 3 % divisions.len()].clone();
                define_surely(&federation, 0, definition);
            }
        }
    }
    for name in &built {
        until("the last build ends", || {
            applied(&federation, name) == Some(EVENTS)
        });
        compare(&federation, name);
    }
    if server.is_some() {
        assert_eq!(parts_in(&federation, built[1]), json!([]));
    }
    let log = federation.log(0);
    assert!(!log.contains("cannot be built in parts"), "{log}");
    (builds, in_the_middle)
}

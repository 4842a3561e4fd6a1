//! Consumer groups over real processes: every event is dealt with, in its stream's order, whatever is
//! killed.

#![expect(
    clippy::disallowed_methods,
    reason = "consumers are threads and processes, and some of them are killed"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use meridian_client::tls::Identity;
use meridian_client::{Client, ClientConfig, ConsumerError, Seed, Verdict};
use meridian_node::config;
use serde_json::{Value, json};
use support::{Federation, get, meridian, path, post, put, text, until};

const NAMES: [&str; 3] = ["a", "b", "c"];
const FLIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/flights-slice.ndjson.gz");
const EVENTS: usize = 6_000;
const MAP: &str = "EWR=a,JFK=b,LGA=c";

fn url(federation: &Federation, index: usize, name: &str, rest: &str) -> String {
    federation.url(index, &format!("/v1/consumers/{name}{rest}"))
}

fn define(federation: &Federation, index: usize, name: &str, definition: &Value) -> Value {
    let mut defined = Value::Null;
    until("a group is defined", || {
        let answer = put(&url(federation, index, name, ""), &definition.to_string());
        let Some((status, answer)) = answer else {
            return false;
        };
        assert!(status == 200 || status >= 500, "{status} {answer}");
        defined = answer;
        status == 200
    });
    defined
}

fn import(federation: &Federation) {
    let imported = meridian(&[
        "import",
        FLIGHTS,
        "--config",
        path(&federation.regions[0].config),
        "--map",
        MAP,
        "--give-up-after",
        "10m",
    ]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
}

fn group(federation: &Federation, index: usize, name: &str) -> Option<Value> {
    let (status, group) = get(&url(federation, index, name, ""))?;
    (status == 200).then_some(group)
}

fn fetch(
    federation: &Federation,
    index: usize,
    name: &str,
    consumer: &str,
    limit: usize,
) -> Vec<Value> {
    let asked = json!({ "consumer": consumer, "limit": limit, "wait_ms": 200 });
    let answer = post(&url(federation, index, name, "/fetch"), &asked.to_string());
    match answer {
        Some((200, mut answer)) => match answer["events"].take() {
            Value::Array(events) => events,
            other => panic!("{other}"),
        },
        Some((status, answer)) => {
            assert!(status >= 500, "{status} {answer}");
            Vec::new()
        }
        None => Vec::new(),
    }
}

fn fetch_some(federation: &Federation, name: &str, limit: usize) -> Vec<Value> {
    let mut events = Vec::new();
    until("there are events", || {
        events = fetch(federation, 0, name, "one", limit);
        !events.is_empty()
    });
    events
}

fn place(event: &Value) -> (String, u64) {
    let stream = event["stream"].as_str().expect("a stream").to_owned();
    (stream, event["revision"].as_u64().expect("a number"))
}

/// What consumers did, in the order in which they did it.
#[derive(Default)]
struct Done {
    dealt_with: Vec<(String, u64)>,
    confirmed: BTreeSet<(String, u64)>,
}

impl Done {
    // An event is dealt with: its stream's earlier ones were before it, and nobody was told that this
    // one need not be dealt with again.
    fn deal(&mut self, event: &Value) {
        let (stream, revision) = place(event);
        assert!(
            !self.confirmed.contains(&(stream.clone(), revision)),
            "{stream} {revision} was acknowledged, and is given out again"
        );
        self.dealt_with.push((stream, revision));
    }

    // The times that events were dealt with more than once.
    fn repeats(&self) -> usize {
        let once: BTreeSet<_> = self.dealt_with.iter().collect();
        self.dealt_with.len() - once.len()
    }

    fn check_order(&self) {
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for (stream, revision) in &self.dealt_with {
            if !seen.insert((stream, revision)) {
                continue;
            }
            let before = last.insert(stream, *revision);
            assert!(
                before.is_none_or(|it| it < *revision),
                "{stream} {revision}"
            );
        }
    }
}

struct Shop<'a> {
    federation: &'a Federation,
    name: &'a str,
    done: Mutex<Done>,
    closed: AtomicBool,
}

impl Shop<'_> {
    fn done(&self) -> std::sync::MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Says it until somebody hears it.
    fn ack(&self, events: &[Value]) {
        let deliveries: Vec<_> = events.iter().map(|it| &it["delivery"]).collect();
        let body = json!({ "deliveries": deliveries }).to_string();
        until("it is acknowledged", || {
            let answer = post(&url(self.federation, 0, self.name, "/ack"), &body);
            let Some((200, answer)) = answer else {
                return false;
            };
            let gone: BTreeSet<_> = answer["gone"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|it| it["delivery"].as_str())
                .collect();
            let mut done = self.done();
            for event in events {
                if !gone.contains(event["delivery"].as_str().expect("text")) {
                    done.confirmed.insert(place(&event["event"]));
                }
            }
            true
        });
    }

    // Takes batches until the shop closes, or as many as it is told.
    fn work(&self, consumer: &str, batches: usize) {
        for _ in 0..batches {
            if self.closed.load(Ordering::Relaxed) {
                return;
            }
            let events = fetch(self.federation, 0, self.name, consumer, 50);
            if events.is_empty() {
                continue;
            }
            for event in &events {
                self.done().deal(&event["event"]);
            }
            self.ack(&events);
        }
    }

    fn until_all_is_done(&self) {
        until("every event is dealt with", || {
            self.done().confirmed.len() == EVENTS
        });
        self.closed.store(true, Ordering::Relaxed);
    }
}

#[test]
fn one_of_three_is_killed_in_the_middle_of_a_batch() {
    let federation = Federation::running(&NAMES);
    import(&federation);
    let name = "counters";
    let defined = define(&federation, 0, name, &json!({ "ack_within_ms": 1_500 }));
    assert_eq!(defined["region"], "a");
    let shop = Shop {
        federation: &federation,
        name,
        done: Mutex::default(),
        closed: AtomicBool::new(false),
    };
    let unsaid = thread::scope(|scope| {
        let killed = scope.spawn(|| {
            shop.work("three", 3);
            // Deals with half of its batch, and is no more.
            let mut batch = Vec::new();
            until("it has something", || {
                batch = fetch(&federation, 0, name, "three", 50);
                batch.len() > 1
            });
            let half = &batch[..batch.len() / 2];
            half.iter().for_each(|it| shop.done().deal(&it["event"]));
            half.len()
        });
        scope.spawn(|| shop.work("one", usize::MAX));
        scope.spawn(|| shop.work("two", usize::MAX));
        let unsaid = killed.join().expect("it was killed in order");
        shop.until_all_is_done();
        unsaid
    });
    let done = shop.done();
    assert!(unsaid > 0, "it had something");
    assert_eq!(done.repeats(), unsaid, "only what was not acknowledged");
    done.check_order();
    until("nothing is left", || {
        group(&federation, 0, name)
            .is_some_and(|it| it["served"]["waiting"] == 0 && it["served"]["parked"] == 0)
    });
}

#[test]
fn a_node_that_is_killed_forgets_nothing_that_it_confirmed() {
    let mut federation = Federation::running(&["a"]);
    let imported = meridian(&["import", FLIGHTS, "--url", &federation.url(0, "")]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    let name = "mails";
    define(&federation, 0, name, &json!({ "ack_within_ms": 60_000 }));
    let done = Mutex::new(Done::default());
    for round in 0..6 {
        let shop = Shop {
            federation: &federation,
            name,
            done: Mutex::new(std::mem::take(&mut *done.lock().expect("nobody panicked"))),
            closed: AtomicBool::new(false),
        };
        let enough = (round + 1) * EVENTS / 7;
        thread::scope(|scope| {
            for consumer in ["one", "two", "three"] {
                let shop = &shop;
                scope.spawn(move || {
                    while shop.done().confirmed.len() < enough {
                        shop.work(consumer, 1);
                    }
                });
            }
        });
        // One that knows of its batch only itself, when the node is killed.
        let batch = fetch(&federation, 0, name, "four", 20);
        assert!(!batch.is_empty());
        *done.lock().expect("nobody panicked") = shop.done.into_inner().expect("nobody panicked");
        federation.kill(0);
        federation.start(0);
        federation.until_ready(0);
    }
    let shop = Shop {
        federation: &federation,
        name,
        done,
        closed: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        scope.spawn(|| shop.work("one", usize::MAX));
        shop.until_all_is_done();
    });
    shop.done().check_order();
    assert_eq!(
        shop.done().repeats(),
        0,
        "what was dealt with was confirmed"
    );
}

fn served(federation: &Federation, index: usize, name: &str, check: impl Fn(&Value) -> bool) {
    until("the group is so far", || {
        group(federation, index, name).is_some_and(|it| check(&it["served"]))
    });
}

fn append(federation: &Federation, stream: &str, first: u128, count: u128) {
    (first..first + count).for_each(|id| {
        federation.append_surely(0, stream, id);
    });
}

fn revisions(events: &[Value]) -> Vec<u64> {
    let revision = |it: &Value| it["event"]["revision"].as_u64().expect("a number");
    events.iter().map(revision).collect()
}

fn say(federation: &Federation, name: &str, what: &str, body: &Value) -> (u16, Value) {
    post(&url(federation, 0, name, what), &body.to_string()).expect("an answer")
}

#[test]
fn what_cannot_be_dealt_with_is_tried_again_parked_and_mended() {
    let federation = Federation::running(&["a"]);
    let name = "letters";
    append(&federation, "order-1", 1, 4);
    define(
        &federation,
        0,
        name,
        &json!({ "attempts_max": 2, "ack_within_ms": 60_000, "source": { "categories": ["order"] } }),
    );
    served(&federation, 0, name, |it| it["waiting"] == 4);
    let batch = fetch(&federation, 0, name, "one", 3);
    assert_eq!(revisions(&batch), [0, 1, 2]);
    assert_eq!(fetch(&federation, 0, name, "two", 3), Vec::<Value>::new());
    // The second fails: what came behind it is taken back, the first stays.
    let nack = json!({ "deliveries": [batch[1]["delivery"]], "delay_ms": 0, "reason": "no paper" });
    let (status, answer) = say(&federation, name, "/nack", &nack);
    assert_eq!((status, &answer["settled"]), (200, &json!(1)), "{answer}");
    let late = json!({ "deliveries": [batch[2]["delivery"], batch[0]["delivery"]] });
    let (status, answer) = say(&federation, name, "/ack", &late);
    assert_eq!((status, &answer["settled"]), (200, &json!(1)), "{answer}");
    assert_eq!(answer["gone"][0]["delivery"], batch[2]["delivery"]);
    let again = fetch(&federation, 0, name, "two", 3);
    assert_eq!(revisions(&again), [1, 2, 3]);
    assert_eq!(
        [&again[0]["attempt"], &again[1]["attempt"]],
        [&json!(2), &json!(1)]
    );
    // Once more is once too often: it is parked, and its stream goes on.
    let nack = json!({ "deliveries": [again[0]["delivery"]], "reason": "no ink" });
    assert_eq!(say(&federation, name, "/nack", &nack).0, 200);
    let park = json!({ "deliveries": [again[1]["delivery"]], "action": "park", "reason": "torn" });
    assert_eq!(say(&federation, name, "/nack", &park).0, 200);
    let ack = json!({ "deliveries": [again[2]["delivery"]] });
    assert_eq!(say(&federation, name, "/ack", &ack).1["settled"], 1);
    served(&federation, 0, name, |it| {
        it["waiting"] == 0 && it["parked"] == 2
    });

    let server = federation.url(0, "");
    let parked = |federation: &Federation| {
        let (status, parked) = get(&url(federation, 0, name, "/parked")).expect("an answer");
        assert_eq!(status, 200, "{parked}");
        parked["parked"].as_array().cloned().expect("a list")
    };
    let held = parked(&federation);
    let seen = |it: &Value| {
        (
            it["revision"].clone(),
            it["reason"].clone(),
            it["attempts"].clone(),
        )
    };
    assert_eq!(seen(&held[0]), (json!(1), json!("no ink"), json!(2)));
    assert_eq!(seen(&held[1]), (json!(2), json!("torn"), json!(1)));
    let key = |index: usize| held[index]["order_key"].as_str().expect("text");
    let shown = meridian(&["consumer", "parked", name, "--url", &server]);
    assert!(
        text(&shown.stdout).contains("no ink"),
        "{}",
        text(&shown.stdout)
    );

    // They outlive the node.
    let mut federation = federation;
    federation.kill(0);
    federation.start(0);
    federation.until_ready(0);
    served(&federation, 0, name, |it| it["parked"] == 2);
    let retried = meridian(&["consumer", "retry", name, key(0), "--url", &server]);
    assert!(retried.status.success(), "{}", text(&retried.stderr));
    let once_more = fetch(&federation, 0, name, "one", 3);
    assert_eq!(revisions(&once_more), [1]);
    let ack = json!({ "deliveries": [once_more[0]["delivery"]] });
    assert_eq!(say(&federation, name, "/ack", &ack).1["settled"], 1);
    let dropped = meridian(&[
        "consumer",
        "drop",
        name,
        key(1),
        "--reason",
        "lost",
        "--url",
        &server,
    ]);
    assert!(dropped.status.success(), "{}", text(&dropped.stderr));
    assert_eq!(parked(&federation), Vec::<Value>::new());
    let (status, answer) = say(
        &federation,
        name,
        &format!("/parked/{}/retry", key(1)),
        &json!({}),
    );
    assert_eq!(status, 404, "{answer}");
}

#[test]
fn another_region_takes_a_group_over_at_its_place() {
    let mut federation = Federation::running(&NAMES);
    import(&federation);
    let name = "counters";
    define(&federation, 0, name, &json!({}));
    let mut taken = BTreeSet::new();
    let torn = fetch_some(&federation, name, 1);
    let park = json!({ "deliveries": [torn[0]["delivery"]], "action": "park", "reason": "torn" });
    assert_eq!(say(&federation, name, "/nack", &park).1["settled"], 1);
    taken.insert(place(&torn[0]["event"]));
    let has_it_parked = |index: usize| {
        let (status, parked) = get(&url(&federation, index, name, "/parked")).expect("an answer");
        assert_eq!(status, 200, "{parked}");
        let parked = &parked["parked"];
        (parked[0]["reason"].clone(), parked[0]["revision"].clone())
            == (json!("torn"), torn[0]["event"]["revision"].clone())
    };
    assert!(has_it_parked(0));
    while taken.len() < 500 {
        let events = fetch(&federation, 0, name, "one", 100);
        let deliveries: Vec<_> = events.iter().map(|it| &it["delivery"]).collect();
        if !deliveries.is_empty() {
            let said = say(
                &federation,
                name,
                "/ack",
                &json!({ "deliveries": deliveries }),
            );
            assert_eq!(said.1["settled"], events.len(), "{said:?}");
        }
        taken.extend(events.iter().map(|it| place(&it["event"])));
    }
    until("another region knows of the group", || {
        group(&federation, 1, name).is_some_and(|it| it["region"] == "a")
    });
    let asked = json!({ "consumer": "one" }).to_string();
    let (status, answer) = post(&url(&federation, 1, name, "/fetch"), &asked).expect("an answer");
    assert_eq!((status, &answer["home"]), (421, &json!("a")), "{answer}");
    // Its checkpoint is in the log within a second, and there soon.
    thread::sleep(Duration::from_secs(3));
    let moved = define(&federation, 1, name, &json!({ "region": "b" }));
    assert_eq!(moved["region"], "b");
    let mut rest = BTreeSet::new();
    until("b gives out the rest", || {
        let events = fetch(&federation, 1, name, "two", 500);
        let deliveries: Vec<_> = events.iter().map(|it| &it["delivery"]).collect();
        if !deliveries.is_empty() {
            let body = json!({ "deliveries": deliveries }).to_string();
            post(&url(&federation, 1, name, "/ack"), &body).expect("an answer");
        }
        rest.extend(events.iter().map(|it| place(&it["event"])));
        rest.len() + taken.len() >= EVENTS
    });
    assert!(rest.is_disjoint(&taken), "it went on where a had been");
    assert!(has_it_parked(1));
    until("a serves it no more", || {
        let answer = post(&url(&federation, 0, name, "/fetch"), &asked);
        answer.is_some_and(|(status, _)| status == 421)
    });
    // Whoever loses its disk finds its place in the log.
    thread::sleep(Duration::from_secs(3));
    federation.kill(1);
    federation.wipe(1);
    federation.start(1);
    federation.until_ready(1);
    served(&federation, 1, name, |it| {
        it["cursor"] != "0.0.0.0" && it["error"].is_null()
    });
    assert_eq!(fetch(&federation, 1, name, "two", 10), Vec::<Value>::new());
    let (_, parked) = get(&url(&federation, 1, name, "/parked")).expect("an answer");
    assert_eq!(parked["parked"][0]["reason"], "torn", "{parked}");
}

#[test]
fn a_script_is_a_consumer_and_may_be_killed() {
    let federation = Federation::running(&["a"]);
    let server = federation.url(0, "");
    let imported = meridian(&["import", FLIGHTS, "--url", &server]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    let definition = federation.folder().join("lines.toml");
    let toml = "name = \"lines\"\nack_within_ms = 1000\n[source]\npart = { number = 1, of = 2 }\n";
    std::fs::write(&definition, toml).expect("the folder can be written");
    let put = meridian(&["consumer", "put", path(&definition), "--url", &server]);
    assert!(put.status.success(), "{}", text(&put.stderr));
    let mut child = Command::new(env!("CARGO_BIN_EXE_meridian"))
        .args([
            "consumer",
            "take",
            "lines",
            "--consumer",
            "one",
            "--follow",
            "--url",
            &server,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let line = |line: String| place(&serde_json::from_str::<Value>(&line).expect("JSON"));
    let mut seen: Vec<_> = lines
        .by_ref()
        .take(333)
        .map_while(Result::ok)
        .map(line)
        .collect();
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    seen.extend(lines.map_while(Result::ok).map(line));
    let mut first = Done::default();
    first.dealt_with.clone_from(&seen);
    assert_eq!(first.repeats(), 0);
    // What it had is given out again when its time is over.
    until("all is printed", || {
        let taken = meridian(&[
            "consumer",
            "take",
            "lines",
            "--consumer",
            "two",
            "--url",
            &server,
        ]);
        assert!(taken.status.success(), "{}", text(&taken.stderr));
        let printed = text(&taken.stdout);
        seen.extend(printed.lines().map(|it| line(it.to_owned())));
        group(&federation, 0, "lines").is_some_and(|it| it["served"]["waiting"] == 0)
    });
    let done = Done {
        dealt_with: seen,
        ..Done::default()
    };
    done.check_order();
    assert!(done.repeats() <= 10, "a batch at most");
    let streams: BTreeSet<_> = done.dealt_with.iter().map(|it| &it.0).collect();
    let all = meridian(&["tail", "--json", "--url", &server]);
    let all: BTreeSet<_> = text(&all.stdout)
        .lines()
        .map(|it| line(it.to_owned()))
        .collect();
    let part = all
        .iter()
        .filter(|(stream, _)| streams.contains(stream))
        .count();
    let once: BTreeSet<_> = done.dealt_with.iter().collect();
    assert_eq!(once.len(), part, "every event of the streams that are its");
    assert!(streams.len() > 10 && once.len() < EVENTS, "{}", once.len());
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    let federation = Federation::running(&["a"]);
    let put_as = |name: &str, body: &str| put(&url(&federation, 0, name, ""), body);
    for (name, body, says) in [
        ("x", "{\"tier\": \"live\"}", "stable"),
        ("x", "{\"form\": \"end\"}", "form"),
        ("x", "{\"from\": \"12\"}", "from"),
        ("x", "{\"region\": \"nowhere\"}", "no member"),
        ("x", "{\"name\": \"y\"}", "one name"),
        ("X", "{}", "name"),
        ("..%2fx", "{}", "name"),
        ("x", "{\"in_flight_max\": 0}", "in_flight_max"),
    ] {
        let (status, answer) = put_as(name, body).expect("an answer");
        assert_eq!(status, 400, "{name} {body}: {answer}");
        let detail = answer["detail"].as_str().expect("text");
        assert!(detail.contains(says), "{body}: {detail}");
    }
    define(&federation, 0, "x", &json!({}));
    served(&federation, 0, "x", |it| it["error"].is_null());
    for (what, body, status, says) in [
        ("/fetch", "{\"consumer\": \"\"}", 400, "name"),
        ("/fetch", "{\"limit\": 3}", 400, "consumer"),
        (
            "/nack",
            "{\"deliveries\": [], \"action\": \"park\"}",
            400,
            "reason",
        ),
        (
            "/nack",
            "{\"deliveries\": [], \"action\": \"burn\"}",
            400,
            "park",
        ),
        ("/parked/7/retry", "{}", 400, "7"),
        ("/parked/7.1.0.1/retry", "{}", 404, "7.1.0.1"),
        ("/parked/7.1.0.1/drop", "{\"reason\": \" \"}", 400, "reason"),
    ] {
        let (answered, answer) = post(&url(&federation, 0, "x", what), body).expect("an answer");
        assert_eq!(answered, status, "{what} {body}: {answer}");
        let detail = answer["detail"].as_str().expect("text");
        assert!(detail.contains(says), "{what} {body}: {detail}");
    }
    let (status, answer) = say(
        &federation,
        "x",
        "/ack",
        &json!({ "deliveries": ["7", "no"] }),
    );
    assert_eq!(
        (status, answer["gone"].as_array().map(Vec::len)),
        (200, Some(2)),
        "{answer}"
    );
    let (status, answer) = say(&federation, "gone", "/fetch", &json!({ "consumer": "one" }));
    assert_eq!(status, 404, "{answer}");
    let removed = meridian(&["consumer", "remove", "x", "--url", &federation.url(0, "")]);
    assert!(removed.status.success(), "{}", text(&removed.stderr));
    assert_eq!(
        say(&federation, "x", "/fetch", &json!({ "consumer": "one" })).0,
        404
    );
    // The next one of that name begins at the beginning.
    append(&federation, "order-1", 1, 1);
    define(&federation, 0, "x", &json!({}));
    served(&federation, 0, "x", |it| it["waiting"] == 1);
}

// A Rust client that asks region `index` first.
async fn client(federation: &Federation, index: usize) -> Client {
    let region = &federation.regions[index];
    let loaded = config::load(&region.config).expect("a configuration");
    let operator = loaded.operator.expect("a certificate for tools");
    let read = |file: &std::path::Path| std::fs::read(file).expect("it can be read");
    let identity = Identity::load(
        &read(&operator.authority),
        &read(&operator.certificate),
        &read(&operator.key),
    );
    let local = "127.0.0.1:0".parse().expect("an address");
    let seeds = federation.regions.iter().map(|region| Seed {
        addr: region.quic.parse().expect("an address"),
        region: None,
    });
    let mut config = ClientConfig::new(
        meridian_client::bind(local).expect("a socket"),
        identity.expect("they belong together"),
        loaded.node.federation,
        seeds.collect(),
    );
    config.prefer = Some(region.name.clone());
    Client::connect(config).await.expect("a node answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rust_client_finds_the_region_that_serves_its_group() {
    let federation = tokio::task::spawn_blocking(|| {
        let federation = Federation::running(&NAMES);
        append(&federation, "order-1", 1, 5);
        define(
            &federation,
            0,
            "mails",
            &json!({ "region": "c", "ack_within_ms": 60_000 }),
        );
        until("all regions know of it", || {
            (0..3).all(|index| group(&federation, index, "mails").is_some())
        });
        federation
    });
    let federation = federation.await.expect("they run");
    // It asks b, which knows that c serves the group.
    let client = client(&federation, 1).await;
    let mut consumer = client.consumer("mails", "one", None);
    let mut taken = Vec::new();
    while taken.len() < 5 {
        let given = consumer
            .fetch(2, Duration::from_secs(20))
            .await
            .expect("events");
        assert_eq!(given.ack_within_ms, 60_000);
        assert!(!given.events.is_empty(), "they come while it waits");
        taken.extend(given.events.iter().map(|it| it.event.revision.0));
        let (last, rest) = given.events.split_last().expect("there are some");
        let rest = rest.iter().map(|it| it.delivery.clone()).collect();
        assert_eq!(consumer.ack(rest).await.expect("an answer"), []);
        let again = Verdict::Retry {
            delay_ms: Some(0),
            reason: "once more".to_owned(),
        };
        let deliveries = vec![last.delivery.clone()];
        let said = consumer.settle(deliveries.clone(), again).await;
        assert_eq!(said.expect("an answer"), []);
        let gone = consumer.settle(deliveries, Verdict::Done).await;
        // Who was late may say so while nobody else has it.
        assert_eq!(gone.expect("an answer"), []);
    }
    assert_eq!(taken, [0, 1, 2, 3, 4]);
    let mut nobody = client.consumer("nobody", "one", None);
    let refused = nobody.fetch(1, Duration::ZERO).await;
    let refused = refused.expect_err("there is no such group");
    assert!(
        matches!(refused, ConsumerError::NotFound { .. }),
        "{refused}"
    );
    client.close();
    tokio::task::spawn_blocking(move || drop(federation))
        .await
        .expect("they stop");
}

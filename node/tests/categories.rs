//! Policies of categories that are set while real nodes run: all regions go by one, and only where nothing
//! was written by another.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use support::{Federation, get, post, put, until};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn set(federation: &Federation, by: usize, category: &str, policy: &Value) -> (u16, Value) {
    let url = federation.url(by, &format!("/v1/categories/{category}"));
    put(&url, &policy.to_string()).expect("the door answers")
}

fn policy(federation: &Federation, of: usize, category: &str) -> Value {
    let (_, policy) = get(&federation.url(of, &format!("/v1/categories/{category}"))).unwrap();
    policy
}

fn append(door: &str, stream: &str) -> (u16, Value) {
    let body = json!({"expected": "any", "events": [{"type": "T", "data": {}}]});
    let url = format!("{door}/v1/streams/{stream}/events");
    post(&url, &body.to_string()).unwrap()
}

fn until_set(federation: &Federation, by: usize, category: &str, policy: &Value) {
    until("the policy is set", || {
        let (status, answer) = set(federation, by, category, policy);
        status == 200 && answer["waits_for"] == json!([])
    });
}

#[test]
fn a_category_that_is_set_is_written_by_it_in_every_region() {
    let mut federation = Federation::running(&NAMES);
    until_set(&federation, 1, "note", &json!({"mode": "lww"}));
    until_set(
        &federation,
        2,
        "stock",
        &json!({"mode": "home", "home": {"fixed": "c"}}),
    );
    for (index, name) in NAMES.into_iter().enumerate() {
        until("the policies count here, too", || {
            policy(&federation, index, "note")["mode"] == "lww"
                && policy(&federation, index, "stock")["home"] == json!({"fixed": "c"})
        });
        let door = federation.url(index, "");
        let (status, note) = append(&door, "note-1");
        assert_eq!((status, &note["home"]), (200, &json!(name)), "{note}");
        let (status, stock) = append(&door, "stock-1");
        assert_eq!((status, &stock["home"]), (200, &json!("c")), "{stock}");
    }
    // What was decided is known after a restart, too.
    federation.kill(0);
    federation.start(0);
    federation.until_ready(0);
    assert_eq!(policy(&federation, 0, "note")["mode"], "lww");
    until("it is home by hash again", || {
        let (status, answer) = set(
            &federation,
            0,
            "toy",
            &json!({"mode": "crdt", "type": "or-set"}),
        );
        status == 200 && answer["waits_for"] == json!([])
    });
}

#[test]
fn a_category_with_events_keeps_its_policy_and_the_answer_says_where_they_are() {
    let federation = Federation::running(&NAMES);
    until("an order is written", || {
        append(&federation.url(0, ""), "order-1").0 == 200
    });
    until("the policy is refused", || {
        let (status, answer) = set(&federation, 1, "order", &json!({"mode": "lww"}));
        let detail = answer["detail"].as_str().unwrap_or_default();
        status == 409 && detail.contains("holds events of category order")
    });
    for index in 0..NAMES.len() {
        until("it is as it was", || {
            let now = policy(&federation, index, "order");
            now["mode"] == "home" && now["waits_for"] == json!([])
        });
        assert_eq!(append(&federation.url(index, ""), "order-1").0, 200);
    }
}

#[test]
fn of_a_category_with_events_only_the_isolation_changes_and_the_answer_says_why() {
    let federation = Federation::running(&NAMES);
    until_set(
        &federation,
        0,
        "tags",
        &json!({"mode": "crdt", "type": "or-set"}),
    );
    until("the policy counts", || {
        policy(&federation, 1, "tags")["type"] == "or-set"
    });
    let added = json!({"events": [{"type": "T", "data": {"op": "add", "value": 1}}]});
    let url = federation.url(1, "/v1/streams/tags-1/events");
    assert_eq!(post(&url, &added.to_string()).unwrap().0, 200);
    assert_eq!(append(&federation.url(0, ""), "order-1").0, 200);
    for (category, asked, because) in [
        (
            "tags",
            json!({"mode": "crdt", "type": "g-counter"}),
            "operations are those of type or-set; nobody could say what they come to as g-counter",
        ),
        ("tags", json!({"mode": "home"}), "no one order that a home"),
        (
            "order",
            json!({"mode": "lww"}),
            "no operation that could be merged",
        ),
        (
            "order",
            json!({"mode": "home", "home": {"fixed": "c"}}),
            "meridian home move",
        ),
    ] {
        until("it is refused", || {
            let (status, answer) = set(&federation, 2, category, &asked);
            let detail = answer["detail"].as_str().unwrap_or_default();
            status == 409 && detail.contains(because)
        });
    }
    until_set(
        &federation,
        1,
        "order",
        &json!({"mode": "home", "isolation": "fenced"}),
    );
    for index in 0..NAMES.len() {
        until("the isolation counts in every region", || {
            policy(&federation, index, "order")["isolation"] == "fenced"
        });
        until("its streams go on", || {
            append(&federation.url(index, ""), "order-1").0 == 200
        });
    }
    until_set(&federation, 2, "order", &json!({"mode": "home"}));
    until("it is as it was", || {
        policy(&federation, 0, "order")["isolation"] == "available"
    });
    assert_eq!(policy(&federation, 0, "tags")["type"], "or-set");
}

#[test]
fn while_it_is_being_set_writers_wait_and_no_two_regions_go_by_different_policies() {
    let federation = Federation::running(&NAMES);
    until("the federation is founded", || {
        (0..NAMES.len()).all(|index| {
            let (_, status) = get(&federation.url(index, "/v1/status")).unwrap();
            let control = &status["control"];
            control["leader"].is_string() && control["decisions"].as_u64() >= Some(1)
        })
    });
    let over = AtomicBool::new(false);
    let doors: Vec<String> = (0..NAMES.len()).map(|it| federation.url(it, "")).collect();
    let homes = thread::scope(|scope| {
        let writers: Vec<_> = doors
            .iter()
            .map(|door| {
                let over = &over;
                scope.spawn(move || {
                    let mut homes = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        for stream in ["cart-1", "cart-2", "cart-3", "cart-4"] {
                            let (status, answer) = append(door, stream);
                            assert!(status == 200 || status == 503, "{answer}");
                            if status == 200 {
                                homes.push((stream, answer["home"].clone()));
                            }
                        }
                    }
                    homes
                })
            })
            .collect();
        // Whoever is first: this policy, or an event by the one before.
        let (status, answer) = set(&federation, 2, "cart", &json!({"mode": "lww"}));
        over.store(true, Ordering::Relaxed);
        assert!(status == 200 || status == 409, "{status}: {answer}");
        let homes: Vec<_> = writers.into_iter().map(|it| it.join().unwrap()).collect();
        homes
    });
    let is_shared = policy(&federation, 2, "cart")["mode"] == "lww";
    for (index, homes) in homes.iter().enumerate() {
        for (stream, home) in homes {
            let expected = match is_shared {
                true => json!(NAMES[index]),
                false => get(&federation.url(2, &format!("/v1/homes/{stream}")))
                    .unwrap()
                    .1["home"]
                    .clone(),
            };
            assert_eq!(*home, expected, "{stream}");
        }
    }
}

#[test]
fn a_region_that_is_away_is_named_and_waited_for() {
    let mut federation = Federation::running(&NAMES);
    until_set(&federation, 0, "note", &json!({"mode": "lww"}));
    federation.kill(2);
    let wanted = json!({"mode": "lww", "wait_ms": 100});
    until("it is being set", || {
        let (status, answer) = set(&federation, 0, "cart", &wanted);
        status == 200 && answer["waits_for"] == json!(["c"])
    });
    let (status, answer) = append(&federation.url(1, ""), "cart-1");
    assert_eq!(
        (status, &answer["code"]),
        (503, &json!("unavailable")),
        "{answer}"
    );
    let (status, other) = set(&federation, 1, "cart", &json!({"mode": "home"}));
    assert_eq!(status, 409, "{other}");
    federation.start(2);
    until("it counts", || {
        policy(&federation, 1, "cart")["mode"] == "lww"
    });
    assert_eq!(append(&federation.url(1, ""), "cart-1").0, 200);
}

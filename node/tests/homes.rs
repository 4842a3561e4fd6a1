//! Homes that move between real nodes: nobody is refused, nothing is lost, written twice or out of order.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use serde_json::{Value, json};
use support::{Federation, get, post, until};

const NAMES: [&str; 3] = ["a", "b", "c"];
const STREAMS: usize = 24;
const WRITERS: usize = 6;

fn names() -> Vec<String> {
    (0..STREAMS).map(|it| format!("order-{it}")).collect()
}

fn control(federation: &Federation, index: usize) -> Value {
    let status = get(&federation.url(index, "/v1/status"));
    status.map_or(Value::Null, |(_, status)| status["control"].clone())
}

fn until_founded(federation: &Federation) {
    for index in 0..NAMES.len() {
        until("the federation is founded", || {
            let control = control(federation, index);
            control["leader"].is_string() && control["decisions"].as_u64() >= Some(1)
        });
    }
}

fn move_to(federation: &Federation, by: usize, streams: &[String], to: &str) -> (u16, Value) {
    let body = json!({ "streams": streams, "to": to, "wait_ms": 30_000 });
    post(&federation.url(by, "/v1/homes"), &body.to_string()).expect("the door answers")
}

fn home(federation: &Federation, index: usize, stream: &str) -> Value {
    let (_, home) = get(&federation.url(index, &format!("/v1/homes/{stream}"))).unwrap();
    home
}

// The revisions of a stream's events, and which regions wrote them, as one region tells them.
fn revisions(federation: &Federation, index: usize, stream: &str) -> (Vec<u64>, Vec<Value>) {
    let (mut revisions, mut origins) = (Vec::new(), Vec::new());
    loop {
        let path = format!(
            "/v1/streams/{stream}/events?limit=1000&from={}",
            revisions.len()
        );
        let (status, page) = get(&federation.url(index, &path)).unwrap();
        assert_eq!(status, 200, "{page}");
        for event in page["events"].as_array().unwrap() {
            revisions.push(event["revision"].as_u64().unwrap());
            origins.push(event["origin"].clone());
        }
        if page["end"] == true {
            return (revisions, origins);
        }
    }
}

// Does `work` while the doors of the regions `writing` take writes for all streams. How many events were
// written.
fn under_load(
    federation: &mut Federation,
    writing: &[usize],
    work: impl FnOnce(&mut Federation),
    is_refusal: impl Fn(u16, &Value) -> bool + Sync,
) -> u64 {
    let (over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    // Its own handles, so that the federation can be changed meanwhile.
    let doors: Vec<String> = writing.iter().map(|it| federation.url(*it, "")).collect();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (over, written, doors, is_refusal) = (&over, &written, &doors, &is_refusal);
            scope.spawn(move || {
                let mut number = 0_u128;
                while !over.load(Ordering::Relaxed) {
                    number += 1;
                    let id = uuid::Uuid::from_u128((writer as u128) << 64 | number);
                    let stream = format!("order-{}", (number as usize * 7 + writer) % STREAMS);
                    let url = format!("{}/v1/streams/{stream}/events", doors[writer % doors.len()]);
                    let body = json!({"events": [{"id": id, "type": "Tested", "data": {}}]});
                    until("an event is written", || {
                        match post(&url, &body.to_string()) {
                            Some((200, _)) => true,
                            Some((status, answer)) => {
                                assert!(!is_refusal(status, &answer), "{status}: {answer}");
                                false
                            }
                            None => {
                                assert!(!is_refusal(0, &Value::Null), "the door does not answer");
                                false
                            }
                        }
                    });
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        work(federation);
        over.store(true, Ordering::Relaxed);
    });
    written.load(Ordering::Relaxed)
}

// Moves all streams from region to region under load; `between` happens after each round. How many
// events were written.
fn move_under_load(
    federation: &mut Federation,
    rounds: usize,
    mut between: impl FnMut(&mut Federation, usize),
    is_refusal: impl Fn(u16, &Value) -> bool + Sync,
) -> u64 {
    let streams = names();
    let work = |federation: &mut Federation| {
        for round in 0..rounds {
            let to = NAMES[round % NAMES.len()];
            until("the streams have moved", || {
                let (status, answer) = move_to(federation, (round + 1) % NAMES.len(), &streams, to);
                let homes = answer["homes"].as_array();
                status == 200
                    && homes.is_some_and(|homes| {
                        homes
                            .iter()
                            .all(|it| it["home"] == to && it["moving_from"].is_null())
                    })
            });
            between(federation, round);
        }
    };
    under_load(federation, &[0, 1, 2], work, is_refusal)
}

fn check(federation: &Federation, written: u64) {
    until("all regions hold the same", || {
        let digests: Vec<_> = (0..NAMES.len()).map(|it| federation.digest(it)).collect();
        digests[0].is_some() && digests.windows(2).all(|pair| pair[0] == pair[1])
    });
    let mut whole = 0;
    let mut moved = 0;
    for stream in names() {
        let (first, origins) = revisions(federation, 0, &stream);
        assert_eq!(
            first,
            (0..first.len() as u64).collect::<Vec<_>>(),
            "{stream}"
        );
        whole += first.len() as u64;
        moved += usize::from(origins.windows(2).any(|pair| pair[0] != pair[1]));
        for index in 1..NAMES.len() {
            let there = revisions(federation, index, &stream);
            assert_eq!(there, (first.clone(), origins.clone()), "{stream}");
        }
    }
    assert_eq!(whole, written, "an event is missing, or there twice");
    assert!(moved > 0, "no stream was written in more than one region");
}

#[test]
fn streams_move_back_and_forth_while_they_are_written_and_nobody_is_refused() {
    let mut federation = Federation::running(&NAMES);
    until_founded(&federation);
    let written = move_under_load(&mut federation, 7, |_, _| {}, |_, _| true);
    check(&federation, written);
    let moved = home(&federation, 2, "order-1");
    assert_eq!(moved["home"], "a", "{moved}");
    assert!(moved["epoch"]["minor"].as_u64() >= Some(6), "{moved}");
}

#[test]
fn a_node_killed_in_the_middle_of_moves_loses_nothing_and_they_end() {
    let mut federation = Federation::running(&NAMES);
    until_founded(&federation);
    let kill = |federation: &mut Federation, round: usize| {
        let victim = round % NAMES.len();
        // Decided, and perhaps not handed over.
        let body = json!({ "streams": names(), "to": NAMES[victim], "wait_ms": 0 });
        let by = (victim + 1) % NAMES.len();
        drop(post(&federation.url(by, "/v1/homes"), &body.to_string()));
        federation.kill(victim);
        federation.start(victim);
        federation.until_ready(victim);
    };
    // Refusals that say that nothing was written, and doubts, are what clients repeat.
    let repeated = |status: u16, _: &Value| !matches!(status, 0 | 503 | 504);
    let written = move_under_load(&mut federation, 5, kill, repeated);
    check(&federation, written);
}

fn set_drained(federation: &Federation, by: usize, region: &str, what: &str) -> (u16, Value) {
    let url = federation.url(by, &format!("/v1/regions/{region}/{what}"));
    post(&url, r#"{"wait_ms": 30000}"#).expect("the door answers")
}

#[test]
fn a_region_is_drained_stopped_and_resumed_while_all_is_written_and_nobody_is_refused() {
    let mut federation = Federation::running(&NAMES);
    until_founded(&federation);
    // Some streams are there by rule, some because they were moved.
    let (status, answer) = move_to(&federation, 1, &names()[..8], "a");
    assert_eq!(status, 200, "{answer}");
    let work = |federation: &mut Federation| {
        for _ in 0..2 {
            let (status, answer) = set_drained(federation, 1, "a", "drain");
            assert_eq!((status, &answer["over"]), (200, &json!(true)), "{answer}");
            for stream in names() {
                for index in [1, 2] {
                    assert_ne!(home(federation, index, &stream)["home"], "a", "{stream}");
                }
            }
            let (status, answer) = move_to(federation, 1, &names()[..1], "a");
            assert_eq!(
                (status, &answer["code"]),
                (409, &json!("conflict")),
                "{answer}"
            );
            // Its writers go to other doors; those find nothing that waits for it.
            assert!(federation.stop(0).success());
            federation.start(0);
            federation.until_ready(0);
            until("the region has its share again", || {
                let (status, answer) = set_drained(federation, 2, "a", "resume");
                status == 200 && answer["over"] == true
            });
            assert_eq!(control(federation, 2)["drained"], json!([]));
        }
    };
    let written = under_load(&mut federation, &[1, 2], work, |_, _| true);
    check(&federation, written);
    let ruled = (8..STREAMS).any(|it| home(&federation, 1, &format!("order-{it}"))["home"] == "a");
    assert!(ruled, "no stream went back to where its rule puts it");

    // Two of three may be drained, the last may not.
    for (region, over) in [("b", true), ("c", true)] {
        let (status, answer) = set_drained(&federation, 0, region, "drain");
        assert_eq!((status, &answer["over"]), (200, &json!(over)), "{answer}");
    }
    let (status, answer) = set_drained(&federation, 0, "a", "drain");
    assert_eq!(
        (status, &answer["code"]),
        (409, &json!("conflict")),
        "{answer}"
    );
    let (status, answer) = set_drained(&federation, 0, "nowhere", "drain");
    assert_eq!(
        (status, &answer["code"]),
        (400, &json!("invalid")),
        "{answer}"
    );
    let answer = federation.append_surely(2, "order-5", 1 << 100);
    assert_eq!(answer["home"], "a");
}

#[test]
fn a_node_that_lost_its_disk_hears_again_what_was_decided() {
    let mut federation = Federation::running(&NAMES);
    until_founded(&federation);
    let streams = names();
    for (number, stream) in streams.iter().enumerate() {
        federation.append_surely(0, stream, number as u128);
    }
    // From c to a and b, and on to c: its log tells of decisions that it will have forgotten.
    for to in ["c", "a", "c", "b"] {
        let (status, answer) = move_to(&federation, 0, &streams, to);
        assert_eq!(status, 200, "{answer}");
    }
    federation.kill(2);
    federation.wipe(2);
    federation.start(2);
    federation.until_ready(2);
    for (number, stream) in streams.iter().enumerate() {
        let answer = federation.append_surely(2, stream, 1_000 + number as u128);
        assert_eq!(
            (&answer["home"], &answer["first_revision"]),
            (&json!("b"), &json!(1))
        );
    }
    until("the region votes again", || {
        let control = control(&federation, 2);
        control["voters"] == json!(NAMES) && control["error"].is_null()
    });
    let (status, answer) = move_to(&federation, 2, &streams, "c");
    assert_eq!(status, 200, "{answer}");
    let answer = federation.append_surely(0, "order-3", 5_000);
    assert_eq!(
        (&answer["home"], &answer["first_revision"]),
        (&json!("c"), &json!(2))
    );
}

#[test]
fn of_two_regions_the_one_that_kept_its_disk_goes_on_deciding_for_both() {
    let mut federation = Federation::running(&["a", "b"]);
    for index in [0, 1] {
        until("the federation is founded", || {
            let control = control(&federation, index);
            control["leader"].is_string() && control["decisions"].as_u64() >= Some(1)
        });
    }
    let streams = names();
    for (number, stream) in streams.iter().enumerate() {
        federation.append_surely(0, stream, number as u128);
    }
    for to in ["b", "a", "b"] {
        let (status, answer) = move_to(&federation, 0, &streams, to);
        assert_eq!(status, 200, "{answer}");
    }
    federation.kill(1);
    federation.wipe(1);
    federation.start(1);
    federation.until_ready(1);
    until("both vote again", || {
        [0, 1].iter().all(|index| {
            let control = control(&federation, *index);
            control["voters"] == json!(["a", "b"]) && control["leader"].is_string()
        })
    });
    let answer = federation.append_surely(0, "order-3", 1_000);
    assert_eq!(
        (&answer["home"], &answer["first_revision"]),
        (&json!("b"), &json!(1))
    );
    let (status, answer) = move_to(&federation, 1, &streams, "a");
    assert_eq!(status, 200, "{answer}");
    let answer = federation.append_surely(1, "order-3", 2_000);
    assert_eq!(
        (&answer["home"], &answer["first_revision"]),
        (&json!("a"), &json!(2))
    );
}

#[test]
fn what_cannot_be_moved_is_refused_and_nothing_changes() {
    let mut federation = Federation::running(&NAMES);
    until_founded(&federation);
    federation.append_surely(0, "order-1", 1);
    let first = home(&federation, 0, "order-1")["home"]
        .as_str()
        .unwrap()
        .to_owned();
    let home_index = NAMES.iter().position(|name| *name == first).unwrap();
    let one = ["order-1".to_owned()];
    let before = control(&federation, 0)["decisions"].clone();
    for (streams, to, said) in [
        (&one, "nowhere", "the regions are"),
        (&["$projections-x".to_owned()], "b", "the server's own"),
    ] {
        let (status, answer) = move_to(&federation, 0, streams, to);
        assert_eq!(
            (status, &answer["code"]),
            (400, &json!("invalid")),
            "{answer}"
        );
        assert!(
            answer["detail"].as_str().unwrap().contains(said),
            "{answer}"
        );
    }
    assert_eq!(control(&federation, 0)["decisions"], before);

    // Its home is away, so that it cannot give the stream up; it is not moved on before it has.
    federation.kill(home_index);
    let others: Vec<usize> = (0..3).filter(|index| *index != home_index).collect();
    let ask = |federation: &Federation, to: usize, wait_ms: u64| {
        let body = json!({ "to": NAMES[to], "wait_ms": wait_ms }).to_string();
        post(&federation.url(others[0], "/v1/homes/order-1/move"), &body).unwrap()
    };
    until("the rest can decide", || {
        let (status, answer) = ask(&federation, others[1], 100);
        status == 200 && answer["moving_from"] == json!(first)
    });
    let (status, answer) = ask(&federation, others[0], 0);
    assert_eq!(
        (status, &answer["code"]),
        (409, &json!("conflict")),
        "{answer}"
    );
    federation.start(home_index);
    until("the move ends by itself", || {
        let home = home(&federation, others[0], "order-1");
        home["moving_from"].is_null() && home["home"] == NAMES[others[1]]
    });
    let answer = federation.append_surely(home_index, "order-1", 2);
    assert_eq!(
        (&answer["home"], &answer["first_revision"]),
        (&json!(NAMES[others[1]]), &json!(1))
    );

    // One region of three decides nothing, and says so; what it holds it still serves.
    federation.kill(others[1]);
    federation.kill(home_index);
    let (status, answer) = ask(&federation, others[0], 0);
    assert!(matches!(status, 503 | 504), "{status}: {answer}");
    let still = home(&federation, others[0], "order-1");
    assert_eq!(still["home"], NAMES[others[1]], "{still}");
}

#[test]
fn a_new_home_says_what_it_opened_on_in_front_of_what_it_writes() {
    let federation = Federation::running(&NAMES);
    until_founded(&federation);
    let one = ["order-1".to_owned()];
    federation.append_surely(0, "order-1", 1);
    let first = home(&federation, 0, "order-1")["home"].clone();
    let to = NAMES.iter().position(|name| first != json!(name)).unwrap();
    let (status, moved) = move_to(&federation, 0, &one, NAMES[to]);
    assert_eq!(status, 200, "{moved}");
    for id in 2..4 {
        federation.append_surely(to, "order-1", id);
    }

    let events = |stream: &str| {
        let path = format!("/v1/streams/{stream}/events");
        let (_, page) = get(&federation.url(to, &path)).unwrap();
        page["events"].as_array().cloned().unwrap_or_default()
    };
    let written: Vec<Value> = events("order-1");
    assert_eq!(written.len(), 3);
    // There are as many names for them as there are partitions, and each lies in another one.
    let handed_over: Vec<Value> = (0..64)
        .flat_map(|number| events(&format!("$homes-{number}")))
        .collect();
    let of_type = |name: &str| {
        let events = handed_over.iter().filter(|it| it["type"] == name);
        events.cloned().collect::<Vec<Value>>()
    };
    let (given_up, opened) = (of_type("$home-transfer"), of_type("$home-opened"));
    assert_eq!((given_up.len(), opened.len()), (1, 1), "{handed_over:?}");
    let (given_up, opened) = (&given_up[0], &opened[0]);
    assert_eq!(opened["data"]["change"], given_up["data"]["change"]);
    let from = opened["data"]["from"].as_u64().unwrap();
    assert_eq!(
        opened["data"]["rests_on"][from.to_string()],
        given_up["position"]
    );
    let place = |event: &Value| {
        let position = event["position"].as_u64();
        (event["origin"].clone(), position.unwrap())
    };
    let (origin, position) = place(opened);
    assert_eq!(origin, NAMES[to]);
    assert_eq!(place(&written[1]), (origin.clone(), position + 1));
    assert_eq!(place(&written[2]), (origin, position + 2));
}

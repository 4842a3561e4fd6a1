//! Stocks whose rights are fetched from where they are, between real nodes: what is granted in one region is taken in
//! all, and never more than that.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "a test waits by the clock that its processes go by"
)]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Federation, get, post, put, until};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn set_up() -> Federation {
    let federation = Federation::running(&NAMES);
    let body = json!({"mode": "crdt", "type": "bounded-counter"}).to_string();
    let url = federation.url(0, "/v1/categories/stock");
    until("the category is set", || {
        put(&url, &body)
            .is_some_and(|(status, answer)| status == 200 && answer["waits_for"] == json!([]))
    });
    for index in 0..NAMES.len() {
        until("the category counts here", || {
            let (_, category) = get(&federation.url(index, "/v1/categories/stock")).unwrap();
            category["type"] == "bounded-counter"
        });
    }
    federation
}

fn id() -> u128 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed).into()
}

fn ask(door: &str, stream: &str, id: u128, data: &Value) -> Option<(u16, Value)> {
    let id = uuid::Uuid::from_u128(id);
    let body = json!({"events": [{"id": id, "type": "T", "data": data}]});
    post(
        &format!("{door}/v1/streams/{stream}/events"),
        &body.to_string(),
    )
}

fn write(federation: &Federation, index: usize, stream: &str, data: &Value) -> (u16, Value) {
    ask(&federation.url(index, ""), stream, id(), data).unwrap()
}

fn written(federation: &Federation, index: usize, stream: &str, data: &Value) {
    let (status, answer) = write(federation, index, stream, data);
    assert_eq!(status, 200, "{data}: {answer}");
    assert_eq!(answer["home"], NAMES[index]);
}

fn take(by: u64) -> Value {
    json!({"op": "take", "by": by})
}

fn state(federation: &Federation, index: usize, stream: &str) -> Value {
    let url = federation.url(index, &format!("/v1/streams/{stream}/state"));
    let (status, state) = get(&url).unwrap();
    assert_eq!(status, 200, "{state}");
    state
}

fn agreed(federation: &Federation, stream: &str) -> Value {
    let all = || [0, 1, 2].map(|index| state(federation, index, stream));
    until("all regions come to the same", || {
        let all = all();
        all.iter().all(|it| it["digest"] == all[0]["digest"])
    });
    all()[0]["value"].clone()
}

// Granted in a, and known everywhere.
fn granted(federation: &Federation, stream: &str, by: u64) {
    written(federation, 0, stream, &json!({"op": "grant", "by": by}));
    until("all know of it", || {
        (0..3).all(|index| state(federation, index, stream)["value"]["stock"] == by)
    });
}

// What a region counted of asking: asked, given, refused.
fn counted(federation: &Federation, index: usize) -> [u64; 3] {
    let metrics = federation.metrics(index);
    ["asked", "given", "refused"].map(|what| {
        let name = format!("meridian_rights_{what}_total ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap().parse().unwrap()
    })
}

#[test]
fn what_is_granted_in_one_region_is_taken_in_the_others_until_nothing_is_left() {
    let federation = set_up();
    let stream = "stock-1";
    granted(&federation, stream, 60);
    // Where rights are, nobody is asked.
    for _ in 0..5 {
        written(&federation, 0, stream, &take(1));
    }
    for index in 0..3 {
        assert_eq!(counted(&federation, index), [0, 0, 0]);
    }
    for number in 0..55 {
        written(&federation, 1 + number % 2, stream, &take(1));
    }
    let shown = agreed(&federation, stream);
    assert_eq!(shown["stock"], 0, "{shown}");
    let rights = shown["rights"].as_object().unwrap();
    assert!(rights.values().all(|it| it == 0), "{shown}");
    for index in 0..3 {
        let (status, answer) = write(&federation, index, stream, &take(1));
        assert_eq!(
            (status, &answer["code"]),
            (409, &json!("conflict")),
            "{answer}"
        );
        let detail = answer["detail"].as_str().unwrap();
        assert!(detail.contains("no other region holds any"), "{detail}");
    }
    assert_eq!(agreed(&federation, stream)["stock"], 0);
    // Not every take asked.
    assert_eq!(counted(&federation, 0), [0, 0, 1]);
    let (b, c) = (counted(&federation, 1), counted(&federation, 2));
    assert!(b[1] > 0 && c[1] > 0, "{b:?} {c:?}");
    assert!(b[0] + c[0] < 40, "{b:?} {c:?}");
}

#[test]
fn a_take_that_no_one_region_can_serve_is_served_by_several() {
    let federation = set_up();
    let stream = "stock-1";
    granted(&federation, stream, 30);
    written(
        &federation,
        0,
        stream,
        &json!({"op": "give", "by": 14, "to": "b"}),
    );
    agreed(&federation, stream);
    written(&federation, 2, stream, &take(25));
    assert_eq!(agreed(&federation, stream)["stock"], 5);
    // And one that all of them cannot serve changes nothing, wherever it is.
    let before = agreed(&federation, stream);
    for index in 0..3 {
        let (status, answer) = write(&federation, index, stream, &take(6));
        assert_eq!(
            (status, &answer["code"]),
            (409, &json!("conflict")),
            "{answer}"
        );
    }
    assert_eq!(agreed(&federation, stream), before);
    // In a batch, what is granted first counts.
    let events =
        [json!({"op": "grant", "by": 2}), take(7)].map(|data| json!({"type": "T", "data": data}));
    let body = json!({"events": events}).to_string();
    let url = federation.url(1, &format!("/v1/streams/{stream}/events"));
    let (status, answer) = post(&url, &body).unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(agreed(&federation, stream)["stock"], 0);
}

#[test]
fn a_take_that_is_repeated_asks_for_nothing_twice() {
    let federation = set_up();
    let stream = "stock-1";
    granted(&federation, stream, 90);
    let (door, id) = (federation.url(1, ""), id());
    let first = ask(&door, stream, id, &take(1)).unwrap();
    assert_eq!(first.0, 200, "{first:?}");
    for _ in 0..3 {
        let again = ask(&door, stream, id, &take(1)).unwrap();
        assert_eq!(again.1["dots"], first.1["dots"], "{again:?}");
    }
    assert_eq!(counted(&federation, 1), [1, 1, 0]);
    let shown = agreed(&federation, stream);
    assert_eq!(shown, json!({"stock": 89, "rights": {"a": 60, "b": 29}}));
}

#[test]
fn who_gave_for_a_take_already_does_not_give_again_for_that() {
    let federation = set_up();
    let stream = "stock-1";
    granted(&federation, stream, 90);
    // As if the node that asked for it had not heard the answer, and another take had used what came.
    let take_id = id();
    let namespace = uuid::Uuid::from_u128(0x94d2_7a10_3cfe_4be8_8d57_60c1_e2b9_ff08);
    let name = format!("{} 0 1", uuid::Uuid::from_u128(take_id));
    let given = uuid::Uuid::new_v5(&namespace, name.as_bytes()).as_u128();
    let give = json!({"op": "give", "by": 1, "to": "b"});
    let (status, answer) = ask(&federation.url(0, ""), stream, given, &give).unwrap();
    assert_eq!(status, 200, "{answer}");
    agreed(&federation, stream);
    written(&federation, 1, stream, &take(1));
    assert_eq!(counted(&federation, 1), [0, 0, 0]);
    let (status, answer) = ask(&federation.url(1, ""), stream, take_id, &take(1)).unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(counted(&federation, 1), [2, 2, 0]);
    let shown = agreed(&federation, stream);
    assert_eq!(shown, json!({"stock": 88, "rights": {"a": 60, "b": 28}}));
}

#[test]
fn takes_that_lack_rights_at_once_ask_once() {
    let federation = set_up();
    let stream = "stock-1";
    granted(&federation, stream, 300);
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| written(&federation, 1, stream, &take(1)));
        }
    });
    assert_eq!(counted(&federation, 1), [1, 1, 0]);
    let shown = agreed(&federation, stream);
    assert_eq!(shown, json!({"stock": 280, "rights": {"a": 200, "b": 80}}));
}

#[test]
fn without_the_holder_takes_go_on_while_rights_last_and_then_say_who_has_the_rest() {
    let mut federation = set_up();
    let stream = "stock-1";
    granted(&federation, stream, 30);
    written(&federation, 1, stream, &take(1));
    let before = agreed(&federation, stream);
    assert_eq!(before, json!({"stock": 29, "rights": {"a": 20, "b": 9}}));
    let asked = counted(&federation, 1);
    federation.stop(0);
    for _ in 0..9 {
        written(&federation, 1, stream, &take(1));
    }
    assert_eq!(
        counted(&federation, 1),
        asked,
        "nobody is asked while rights last"
    );
    for index in [1, 2] {
        until("it is known here that none are left in b", || {
            state(&federation, index, stream)["value"]["stock"] == 20
        });
        let (status, answer) = write(&federation, index, stream, &take(1));
        assert_eq!(
            (status, &answer["code"]),
            (409, &json!("conflict")),
            "{answer}"
        );
        let detail = answer["detail"].as_str().unwrap();
        assert!(
            detail.contains("holds 0 rights and 1 are needed"),
            "{detail}"
        );
        assert!(detail.contains("region a was asked for rights"), "{detail}");
        assert!(detail.contains("nothing was written"), "{detail}");
    }
    federation.start(0);
    federation.until_ready(0);
    for index in [1, 2] {
        until("there are rights again", || {
            write(&federation, index, stream, &take(1)).0 == 200
        });
    }
    assert_eq!(agreed(&federation, stream)["stock"], 18);
}

#[test]
fn what_all_regions_take_at_once_is_what_was_granted_whoever_is_killed() {
    let mut federation = set_up();
    let streams = ["stock-1", "stock-2"];
    for stream in streams {
        granted(&federation, stream, 150);
    }
    let taken = [const { AtomicU64::new(0) }; 2];
    let doors = [0, 1, 2].map(|index| federation.url(index, ""));
    // Goes on until it is known what became of it.
    let surely = |door: &str, number: usize, by: u64| {
        let id = id();
        loop {
            match ask(door, streams[number], id, &take(by)) {
                Some((200, _)) => {
                    taken[number].fetch_add(by, Ordering::Relaxed);
                    return true;
                }
                Some((409, answer)) => {
                    assert_eq!(answer["code"], "conflict", "{answer}");
                    return false;
                }
                _ => thread::sleep(Duration::from_millis(50)),
            }
        }
    };
    thread::scope(|scope| {
        for worker in 0..12 {
            let (door, surely) = (&doors[worker % 3], &surely);
            scope.spawn(move || {
                for number in 0..30 {
                    surely(door, worker / 3 % 2, 1 + number % 2);
                }
            });
        }
        thread::sleep(Duration::from_millis(300));
        federation.kill(0);
        thread::sleep(Duration::from_millis(500));
        federation.start(0);
    });
    federation.until_ready(0);
    for number in 0..2 {
        // What is left can be taken wherever it is asked for.
        until("nothing is left", || {
            (0..3).all(|index| !surely(&doors[index], number, 1))
                && agreed(&federation, streams[number])["stock"] == 0
        });
        assert_eq!(taken[number].load(Ordering::Relaxed), 150);
        let shown = agreed(&federation, streams[number]);
        assert_eq!(shown["stock"], 0, "{shown}");
    }
}

#[test]
fn rights_are_given_by_name_and_recorded_by_number() {
    let federation = set_up();
    let stream = "stock-1";
    granted(&federation, stream, 10);
    written(
        &federation,
        0,
        stream,
        &json!({"op": "give", "by": 4, "to": "c"}),
    );
    written(
        &federation,
        0,
        stream,
        &json!({"op": "give", "by": 1, "to": 1}),
    );
    let shown = agreed(&federation, stream);
    assert_eq!(
        shown,
        json!({"stock": 10, "rights": {"a": 5, "b": 1, "c": 4}})
    );
    let path = format!("/v1/streams/{stream}/events");
    let (_, page) = get(&federation.url(2, &path)).unwrap();
    assert_eq!(
        page["events"][1]["data"],
        json!({"op": "give", "by": 4, "to": 2})
    );
    for (data, code, said) in [
        (
            json!({"op": "give", "by": 1, "to": "mars"}),
            "invalid",
            "there is no region \"mars\" to give to; the regions are a, b, c",
        ),
        (
            json!({"op": "give", "by": 1, "to": 9}),
            "invalid",
            "there is no region 9 to give to",
        ),
        (
            json!({"op": "give", "by": 1, "to": "a"}),
            "conflict",
            "to itself",
        ),
        (
            json!({"op": "give", "by": 1, "to": ""}),
            "invalid",
            "there is no region",
        ),
        (
            json!({"op": "give", "by": 1, "to": null}),
            "invalid",
            "region's number",
        ),
        (
            json!({"op": "give", "by": 6, "to": "b"}),
            "conflict",
            "holds 5 rights",
        ),
        (json!({"op": "take", "to": "b"}), "invalid", "no member"),
    ] {
        let (_, answer) = write(&federation, 0, stream, &data);
        assert_eq!(answer["code"], code, "{data}: {answer}");
        let detail = answer["detail"].as_str().unwrap();
        assert!(detail.contains(said), "{data}: {detail}");
    }
    assert_eq!(agreed(&federation, stream), shown);
}

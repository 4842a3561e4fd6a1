//! Stocks and the rights to them, between real nodes.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};

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
            "there is no region \"mars\"; the regions are a, b, c",
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

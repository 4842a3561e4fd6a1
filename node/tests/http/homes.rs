//! Homes of streams, and moving them.

use serde_json::{Value, json};

use crate::fake::{Served, json, problem};

fn home(stream: &str) -> Value {
    json!({
        "stream": stream, "mode": "home", "home": "eu-west", "rule": "creator", "creator": "eu-west",
        "epoch": {"major": 2, "minor": 1}, "moving_from": null,
    })
}

#[tokio::test]
async fn a_home_has_its_region_and_epoch() {
    let served = Served::new().await;
    let read = async |path: &str| json(served.get(path).send().await.unwrap()).await;
    assert_eq!(read("/v1/homes/order-1").await, home("order-1"));
    assert_eq!(
        read("/v1/homes/cart-1").await,
        json!({
            "stream": "cart-1", "mode": "crdt", "home": null, "rule": null, "creator": null,
            "epoch": {"major": 2, "minor": 1}, "moving_from": null,
        })
    );
}

#[tokio::test]
async fn moved_streams_are_listed_page_by_page() {
    let served = Served::new().await;
    let read = async |path: &str| json(served.get(path).send().await.unwrap()).await;
    let first = read("/v1/homes?limit=2").await;
    assert_eq!(
        first,
        json!({"homes": [home("order-1"), home("order-2")], "next": "order-2"})
    );
    let last = read("/v1/homes?limit=2&after=order-2").await;
    assert_eq!(last, json!({"homes": [home("order-3")], "next": null}));
    for wrong in ["limit=0", "limit=1001", "after=", "region=eu-west"] {
        let refused = served.get(&format!("/v1/homes?{wrong}")).send().await;
        problem(refused.unwrap(), 400, "invalid").await;
    }
}

#[tokio::test]
async fn a_move_is_answered_with_where_the_stream_is_or_why_it_was_not_moved() {
    let served = Served::new().await;
    let moving = async |path: &str, body: Value| {
        let sent = served.post(path, body.to_string()).send().await;
        sent.unwrap()
    };
    let one = "/v1/homes/order-1/move";
    let moved = moving(one, json!({"to": "eu-west"})).await;
    assert_eq!(json(moved).await, home("order-1"));
    let both = json!({"streams": ["order-1", "order-2"], "to": "eu-west", "wait_ms": 0});
    let moved = moving("/v1/homes", both).await;
    assert_eq!(
        json(moved).await,
        json!({"homes": [home("order-1"), home("order-2")], "next": null})
    );
    for (to, status, code) in [
        ("nowhere", 400, "invalid"),
        ("busy", 409, "conflict"),
        ("down", 503, "unavailable"),
        ("unsure", 504, "indeterminate"),
    ] {
        let refused = moving(one, json!({"to": to})).await;
        problem(refused, status, code).await;
    }
    for wrong in [
        json!({}),
        json!({"to": "eu-west", "from": "us-east"}),
        json!({"to": "eu-west", "wait_ms": 60_001}),
    ] {
        problem(moving(one, wrong).await, 400, "invalid").await;
    }
    let unnamed = moving("/v1/homes", json!({"streams": [""], "to": "eu-west"})).await;
    problem(unnamed, 400, "invalid").await;
}

#[tokio::test]
async fn a_region_is_drained_and_resumed_or_the_answer_says_why_not() {
    let served = Served::new().await;
    for (what, drained) in [("drain", true), ("resume", false)] {
        let path = format!("/v1/regions/eu-west/{what}");
        let done = served.post(&path, "{}").send().await.unwrap();
        assert_eq!(
            json(done).await,
            json!({"region": "eu-west", "drained": drained, "over": true})
        );
        for (region, status, code) in [("busy", 409, "conflict"), ("nowhere", 400, "invalid")] {
            let path = format!("/v1/regions/{region}/{what}");
            let refused = served.post(&path, r#"{"wait_ms": 5}"#).send().await;
            problem(refused.unwrap(), status, code).await;
        }
    }
}

#[tokio::test]
async fn a_region_is_fenced_and_shown_or_the_answer_says_why_not() {
    let served = Served::new().await;
    let shown = served.get("/v1/regions/eu-west").send().await.unwrap();
    let standing = json!({
        "region": "eu-west", "standing": "fencing", "silent_for_ms": 1500, "not_here": 7,
        "waits_for": ["us-east"],
    });
    assert_eq!(json(shown).await, standing);
    problem(
        served.get("/v1/regions/nowhere").send().await.unwrap(),
        400,
        "invalid",
    )
    .await;

    let fence = |region: &str, body: &str| {
        let path = format!("/v1/regions/{region}/fence");
        served.post(&path, body.to_owned()).send()
    };
    let fenced = json(fence("eu-west", r#"{"force": true}"#).await.unwrap()).await;
    assert_eq!(fenced["sealed_after_ms"], 20);
    assert_eq!(fenced["opened_after_ms"], Value::Null);
    assert_eq!(fenced["standing"], "fencing");
    problem(fence("busy", "{}").await.unwrap(), 409, "conflict").await;
    problem(fence("nowhere", "{}").await.unwrap(), 400, "invalid").await;
    let wrong = fence("eu-west", r#"{"forced": true}"#).await.unwrap();
    problem(wrong, 400, "invalid").await;
}

#[tokio::test]
async fn a_region_joins_and_leaves_or_the_answer_says_why_not() {
    let served = Served::new().await;
    let ask = |region: &str, what: &str, body: &str| {
        let path = format!("/v1/regions/{region}/{what}");
        served.post(&path, body.to_owned()).send()
    };
    let joined = json(ask("eu-west", "join", "{}").await.unwrap()).await;
    assert_eq!(joined["standing"], "member");
    assert_eq!(joined["done_after_ms"], 30);
    let leaving = json(ask("eu-west", "leave", r#"{"force": true}"#).await.unwrap()).await;
    assert_eq!(leaving["standing"], "leaving");
    assert_eq!(leaving["done_after_ms"], Value::Null);
    problem(ask("busy", "leave", "{}").await.unwrap(), 409, "conflict").await;
    problem(ask("nowhere", "join", "{}").await.unwrap(), 400, "invalid").await;
    let wrong = ask("eu-west", "join", r#"{"force": true}"#).await.unwrap();
    problem(wrong, 400, "invalid").await;
}

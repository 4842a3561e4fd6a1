//! Reservations, at a door with a node that says what a test wants. Those of real nodes are tested in a file of
//! their own.

use std::time::Duration;

use meridian_client::ReservationKey;
use reqwest::Response;
use serde_json::{Value, json};

use crate::fake::{Served, json, problem};

async fn put(served: &Served, path: &str, body: &Value) -> Response {
    let url = format!("http://{}/v1/reservations/{path}", served.addr);
    let request = served.client.put(url).body(body.to_string());
    let sent = request.header("content-type", "application/json").send();
    sent.await.unwrap()
}

#[tokio::test]
async fn a_key_is_any_text_and_is_held_for_a_time_or_for_good() {
    let served = Served::new().await;
    let asked = || served.fake.reserved.lock().unwrap().take().unwrap();
    let wanted = json!({"owner": "first", "for_seconds": 90});
    let held = put(&served, "email/a%2Fb%20%3F%C3%BC%00", &wanted).await;
    assert_eq!(
        json(held).await,
        json!({
            "namespace": "email", "key": "a/b ?ü\u{0}", "owner": "first",
            "since": "2023-11-14T22:13:20Z", "until": "2023-11-14T22:14:50Z",
            "home": "eu-west", "told_by": "eu-west",
        })
    );
    let key = ReservationKey {
        namespace: "email".to_owned(),
        key: "a/b ?ü\u{0}".to_owned(),
    };
    let hold_for = Some(Duration::from_secs(90));
    assert_eq!(asked(), (key, "first".to_owned(), hold_for, None));
    let held = put(&served, "email/a", &json!({"owner": "first"})).await;
    assert!(held.headers().contains_key("meridian-session"));
    assert_eq!(json(held).await["until"], Value::Null);
    assert_eq!(asked().2, None);
}

#[tokio::test]
async fn a_request_is_known_again_by_its_header() {
    let served = Served::new().await;
    let mut ids = Vec::new();
    for name in ["one", "one", "two"] {
        let url = format!("http://{}/v1/reservations/email/a", served.addr);
        let request = served.client.put(url).json(&json!({"owner": "first"}));
        json(
            request
                .header("idempotency-key", name)
                .send()
                .await
                .unwrap(),
        )
        .await;
        ids.push(served.fake.reserved.lock().unwrap().take().unwrap().3);
    }
    assert!(
        ids[0].is_some() && ids[0] == ids[1] && ids[1] != ids[2],
        "{ids:?}"
    );
}

#[tokio::test]
async fn who_is_refused_learns_who_holds_the_key_and_until_when() {
    let served = Served::new().await;
    let late = json!({"owner": "late", "for_seconds": 90});
    let refused = problem(put(&served, "email/a", &late).await, 409, "reserved").await;
    assert_eq!(refused["owner"], "first");
    assert_eq!(refused["until"], "2023-11-14T22:14:50Z");
    assert_eq!(refused["since"], "2023-11-14T22:13:20Z");
    assert_eq!(refused["home"], "eu-west");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("held by \"first\", until 2023"), "{detail}");
    let url = format!("http://{}/v1/reservations/email/a?owner=late", served.addr);
    let refused = served.client.delete(url).send().await.unwrap();
    let refused = problem(refused, 409, "reserved").await;
    assert!(
        refused.as_object().unwrap().contains_key("until"),
        "{refused}"
    );
    assert_eq!(refused["until"], Value::Null);
    for (owner, status, code) in [
        ("over", 409, "conflict"),
        ("down", 503, "unavailable"),
        ("unsure", 504, "indeterminate"),
    ] {
        problem(
            put(&served, "email/a", &json!({"owner": owner})).await,
            status,
            code,
        )
        .await;
    }
}

#[tokio::test]
async fn a_key_is_shown_by_the_region_that_is_asked_and_released_by_its_owner() {
    let served = Served::new().await;
    let shown = served.get("/v1/reservations/email/a").send().await.unwrap();
    let shown = json(shown).await;
    assert_eq!(
        (&shown["owner"], &shown["home"], &shown["told_by"]),
        (&json!("first"), &json!("eu-west"), &json!("us-east"))
    );
    let free = served.get("/v1/reservations/email/free").send().await;
    let free = problem(free.unwrap(), 404, "not_found").await;
    let detail = free["detail"].as_str().unwrap();
    assert!(
        detail.contains("as far as region us-east knows"),
        "{detail}"
    );
    for (owner, released) in [("first", true), ("second", false)] {
        let url = format!(
            "http://{}/v1/reservations/email/a?owner={owner}",
            served.addr
        );
        let done = json(served.client.delete(url).send().await.unwrap()).await;
        assert_eq!(done["released"], released);
    }
}

#[tokio::test]
async fn what_is_asked_wrongly_is_refused() {
    let served = Served::new().await;
    for (body, said) in [
        (json!({}), "missing field `owner`"),
        (json!({"owner": ""}), "the owner is empty"),
        (json!({"owner": "x".repeat(257)}), "the owner has 257 bytes"),
        (
            json!({"owner": "o", "for_seconds": 0}),
            "1 to 316224000 seconds",
        ),
        (
            json!({"owner": "o", "for_seconds": 316_224_001}),
            "for good",
        ),
        (json!({"owner": "o", "for_seconds": -1}), "u64"),
        (json!({"owner": "o", "for_seconds": 1.5}), "u64"),
        (json!({"owner": "o", "for": 1}), "unknown field `for`"),
        (json!([]), "a JSON object"),
    ] {
        let refused = put(&served, "email/a", &body).await;
        let found = problem(refused, 400, "invalid").await;
        let detail = found["detail"].as_str().unwrap();
        assert!(detail.contains(said), "{body}: {detail}");
    }
    let long = "x".repeat(1025);
    for path in [
        &*format!("email/{long}"),
        &*format!("{long}/a"),
        "email/%FF",
        "/a",
    ] {
        let url = format!("/v1/reservations/{path}");
        problem(served.get(&url).send().await.unwrap(), 400, "invalid").await;
        problem(
            put(&served, path, &json!({"owner": "o"})).await,
            400,
            "invalid",
        )
        .await;
    }
    for path in ["email/", "email"] {
        let found = put(&served, path, &json!({"owner": "o"})).await;
        problem(found, 404, "not_found").await;
    }
    for query in ["", "?owner=o&force=true", "?own=o"] {
        let url = format!("http://{}/v1/reservations/email/a{query}", served.addr);
        let refused = served.client.delete(url).send().await.unwrap();
        problem(refused, 400, "invalid").await;
    }
    let url = format!("http://{}/v1/reservations/email/a", served.addr);
    let request = served.client.put(url).json(&json!({"owner": "o"}));
    let refused = request.header("idempotency-key", "").send().await.unwrap();
    problem(refused, 400, "invalid").await;
}

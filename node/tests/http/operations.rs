//! Status, digest, categories, health and metrics.

use serde_json::json;

use crate::fake::{Served, json, problem};

#[tokio::test]
async fn policies_are_listed_and_the_default_is_home_by_hash() {
    let served = Served::new().await;
    let read = async |path: &str| json(served.get(path).send().await.unwrap()).await;
    let cart = json!({"category": "cart", "mode": "crdt", "home": null, "isolation": null, "type": "or-set", "waits_for": []});
    let ledger = json!({"category": "ledger", "mode": "home", "home": {"fixed": "eu-west"}, "isolation": "fenced", "type": null, "waits_for": []});
    assert_eq!(
        read("/v1/categories").await,
        json!({"categories": [&cart, &ledger]})
    );
    assert_eq!(read("/v1/categories/ledger").await, ledger);
    assert_eq!(
        read("/v1/categories/order").await,
        json!({"category": "order", "mode": "home", "home": "hash", "isolation": "available", "type": null, "waits_for": []})
    );
    let never = served.get("/v1/categories/order-1").send().await.unwrap();
    problem(never, 400, "invalid").await;
}

#[tokio::test]
async fn a_policy_is_set_and_the_answer_says_for_whom_it_waits() {
    let served = Served::new().await;
    let url = format!("http://{}/v1/categories/stock", served.addr);
    let body = json!({"mode": "home", "home": {"fixed": "eu-west"}, "isolation": "fenced"});
    let put = served.client.put(&url).json(&body).send().await.unwrap();
    assert_eq!(
        json(put).await,
        json!({"category": "stock", "mode": "home", "home": {"fixed": "eu-west"}, "isolation": "fenced",
            "type": null, "waits_for": ["eu"]})
    );
    let removed = json(served.client.delete(&url).send().await.unwrap()).await;
    assert_eq!(removed["home"], json!("hash"));
}

#[tokio::test]
async fn a_state_is_shown_with_the_regions_names() {
    let served = Served::new().await;
    let read = async |path: &str| json(served.get(path).send().await.unwrap()).await;
    let state = read("/v1/streams/cart-1/state?tier=stable").await;
    assert_eq!(state["kind"], "bounded-counter");
    let rights = state["value"]["rights"].as_object().unwrap();
    assert!(
        rights.keys().all(|name| name.parse::<u16>().is_err()),
        "{state}"
    );
    assert_eq!(
        (&state["value"]["stock"], &state["skipped"]),
        (&json!(5), &json!(1))
    );
    let none = served
        .get("/v1/streams/order-1/state")
        .send()
        .await
        .unwrap();
    problem(none, 400, "invalid").await;
}

#[tokio::test]
async fn status_and_digest_are_the_nodes_own() {
    let served = Served::new().await;
    served.fake.write("order-1", "T", 3);
    let status = json(served.get("/v1/status").send().await.unwrap()).await;
    assert_eq!(
        (&status["region"], &status["events"]),
        (&json!("us-east"), &json!(3))
    );
    let digest = json(served.get("/v1/digest").send().await.unwrap()).await;
    let entry = json!({"origin": "us-east", "partition": 3, "position": 3, "chain": "00ff"});
    assert_eq!(digest, json!([entry]));
}

#[tokio::test]
async fn what_is_not_held_here_has_no_place_to_explain() {
    let served = Served::new().await;
    let ask = async |query: &str| {
        let path = format!("/v1/why/order{query}");
        served.get(&path).send().await.unwrap()
    };
    let told = problem(ask("?a=us-east/3/9&b=order-1@0").await, 404, "not_found").await;
    let detail = told["detail"].as_str().unwrap();
    assert!(
        detail.contains("\"us-east/3/9\" is not held in region us-east"),
        "{detail}"
    );
    problem(ask("?a=us-east/3/9").await, 400, "invalid").await;
    problem(ask("?a=x&b=y&c=z").await, 400, "invalid").await;
}

#[tokio::test]
async fn alive_is_not_the_same_as_ready() {
    let served = Served::new().await;
    let ready = async || served.get("/readyz").send().await.unwrap();
    json(ready().await).await;
    *served.fake.not_ready.lock().unwrap() = Some("the log failed a write".to_owned());
    let found = problem(ready().await, 503, "unavailable").await;
    assert!(found["detail"].as_str().unwrap().contains("failed a write"));
    json(served.get("/healthz").send().await.unwrap()).await;
}

#[tokio::test]
async fn requests_are_counted_by_route_and_never_by_stream() {
    let served = Served::new().await;
    served.fake.write("order-1", "T", 3);
    for path in [
        "/v1/streams/secret-1/events",
        "/v1/streams/secret-2/events",
        "/nowhere",
    ] {
        served.get(path).send().await.unwrap();
    }
    let response = served.get("/metrics").send().await.unwrap();
    let content_type = response.headers()["content-type"].to_str().unwrap();
    assert!(content_type.starts_with("application/openmetrics-text; version=1.0.0"));
    let text = response.text().await.unwrap();
    for line in [
        r#"meridian_http_requests_total{method="GET",route="/v1/streams/{stream}/events",status="200"} 2"#,
        r#"meridian_http_requests_total{method="GET",route="none",status="404"} 1"#,
        "meridian_store_events 3",
        "meridian_http_connections 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn every_answer_has_the_nodes_own_date() {
    let served = Served::new().await;
    for path in ["/healthz", "/nowhere"] {
        let response = served.get(path).send().await.unwrap();
        assert_eq!(response.headers()["date"], "Tue, 14 Nov 2023 22:13:20 GMT");
    }
}

//! `GET /v1/streams/{stream}/events` and the pages of `GET /v1/events`.

use meridian_client::{AppendError, Expected, ReadError};
use meridian_clock::Position;
use meridian_node::session::Seen;
use serde_json::{Value, json};

use crate::fake::{Served, json, problem, seal};

fn numbers(page: &Value) -> Vec<u64> {
    let events = page["events"].as_array().unwrap();
    events
        .iter()
        .map(|event| event["data"]["number"].as_u64().unwrap())
        .collect()
}

#[tokio::test]
async fn an_event_has_everything_the_contract_names() {
    let served = Served::new().await;
    let body = r#"{"events":[{"id":"5F0C1A52-6D1E-4A2E-9C37-2D5B7C0D9E11","type":"Placed","data":{"n":1},"metadata":{"by":"x"}}]}"#;
    json(served.append(body).await).await;
    let page = served.get("/v1/streams/order-1/events").send().await;
    let page = json(page.unwrap()).await;
    assert_eq!(
        page,
        json!({
            "events": [{
                "id": "5f0c1a52-6d1e-4a2e-9c37-2d5b7c0d9e11", "stream": "order-1", "revision": 0,
                "type": "Placed", "data": {"n": 1}, "metadata": {"by": "x"},
                "origin": "us-east", "partition": 3, "position": 1,
                "timestamp": "7301444403200000000", "recorded_at": "2023-11-14T22:13:20Z",
            }],
            "next": 1, "end": true,
        })
    );
}

#[tokio::test]
async fn a_stream_is_read_in_pages_both_ways() {
    let served = Served::new().await;
    served.fake.write("order-1", "T", 5);
    served.fake.write("order-2", "T", 5);
    let read = async |query: &str| {
        let path = format!("/v1/streams/order-1/events?{query}");
        json(served.get(&path).send().await.unwrap()).await
    };

    let first = read("limit=3").await;
    assert_eq!(numbers(&first), [0, 1, 2]);
    assert_eq!((&first["next"], &first["end"]), (&json!(3), &json!(false)));
    let rest = read("from=3&limit=3").await;
    assert_eq!(numbers(&rest), [3, 4]);
    assert_eq!((&rest["next"], &rest["end"]), (&json!(5), &json!(true)));

    let last = read("direction=backwards&limit=2").await;
    assert_eq!(numbers(&last), [4, 3]);
    assert_eq!(last["next"], 2);
    let start = read("direction=backwards&from=2").await;
    assert_eq!(numbers(&start), [2, 1, 0]);
    assert_eq!(
        (&start["next"], &start["end"]),
        (&json!(null), &json!(true))
    );
}

#[tokio::test]
async fn a_stream_without_events_is_an_empty_page() {
    let served = Served::new().await;
    let page = served.get("/v1/streams/order-9/events").send().await;
    let page = json(page.unwrap()).await;
    assert_eq!(page, json!({"events": [], "next": 0, "end": true}));
}

#[tokio::test]
async fn everything_is_read_in_pages_each_event_once() {
    let served = Served::new().await;
    served.fake.write("order-1", "T", 7);
    let (mut cursor, mut seen) = (String::new(), Vec::new());
    loop {
        let path = format!("/v1/events?limit=3&after={cursor}");
        let page = json(served.get(&path).send().await.unwrap()).await;
        seen.extend(numbers(&page));
        cursor = page["cursor"].as_str().unwrap().to_owned();
        assert_eq!(page.get("watermark"), Some(&json!(null)));
        if page["end"] == true {
            break;
        }
    }
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn a_filter_keeps_one_category_and_one_type() {
    let served = Served::new().await;
    served.fake.write("order-1", "Placed", 1);
    served.fake.write("cart-1", "Placed", 1);
    served.fake.write("order-2", "Paid", 1);
    let streams = async |query: &str| {
        let path = format!("/v1/events?{query}");
        let page = json(served.get(&path).send().await.unwrap()).await;
        let events = page["events"].as_array().unwrap().clone();
        let streams = events.into_iter().map(|event| event["stream"].clone());
        streams.collect::<Vec<_>>()
    };
    assert_eq!(streams("category=order").await, ["order-1", "order-2"]);
    assert_eq!(streams("type=Placed").await, ["order-1", "cart-1"]);
    assert_eq!(streams("type=Paid&category=order").await, ["order-2"]);
    assert_eq!(streams("tier=live&category=none").await, [] as [Value; 0]);
}

#[tokio::test]
async fn a_query_that_makes_no_sense_is_refused() {
    let served = Served::new().await;
    for query in [
        "limit=0",
        "limit=10001",
        "limit=-1",
        "limit=x",
        "from=-1",
        "from=x",
        "direction=up",
        "direction=Backwards",
        "form=3",
        "from=1&from=2",
        "limit",
    ] {
        let path = format!("/v1/streams/order-1/events?{query}");
        let response = served.get(&path).send().await.unwrap();
        let found = problem(response, 400, "invalid").await;
        let detail = found["detail"].as_str().unwrap();
        let name = query.split('=').next().unwrap();
        assert!(detail.contains(name), "{query}: {detail}");
    }
    for query in [
        "tier=Stable",
        "tier=hot",
        "limit=0",
        "after=elsewhere",
        "category=",
        "type=%00",
        "from=0",
        "category=a&category=b",
    ] {
        let path = format!("/v1/events?{query}");
        problem(served.get(&path).send().await.unwrap(), 400, "invalid").await;
    }
}

#[tokio::test]
async fn what_cannot_be_read_now_says_when_to_come_back() {
    let served = Served::new().await;
    *served.fake.unreadable.lock().unwrap() = Some(ReadError::Unavailable {
        reason: "positions 3 to 9 are damaged".to_owned(),
        retry_after_ms: 10,
    });
    for path in ["/v1/streams/order-1/events", "/v1/events"] {
        let response = served.get(path).send().await.unwrap();
        assert_eq!(response.headers()["retry-after"], "1");
        problem(response, 503, "unavailable").await;
    }
}

#[tokio::test]
async fn what_a_session_has_seen_grows_with_each_answer() {
    let served = Served::new().await;
    let token = |response: &reqwest::Response| {
        let token = &response.headers()["meridian-session"];
        token.to_str().unwrap().to_owned()
    };
    let nothing = token(&served.get("/v1/events").send().await.unwrap());
    assert_eq!(seal().read(&nothing), Ok(Seen::default()));
    served.fake.write("order-1", "T", 3);
    let path = "/v1/streams/order-1/events?limit=2";
    let two = served.get(path).header("meridian-session", nothing);
    let two = token(&two.send().await.unwrap());
    let log = served.fake.last_event().dot.log();
    let seen = |token: &str| seal().read(token).unwrap().positions.get(log).0;
    assert_eq!(seen(&two), 2);
    let first = served
        .get("/v1/events?limit=1")
        .header("meridian-session", &two);
    let still_two = token(&first.send().await.unwrap());
    assert_eq!(seen(&still_two), 2, "an older page takes nothing back");
    let wrote = served.append(r#"{"events":[{"type":"T","data":1}]}"#).await;
    assert_eq!(seen(&token(&wrote)), 4);

    // What a conflict shows is seen as well.
    let since = vec![served.fake.last_event()];
    *served.fake.refuse.lock().unwrap() = Some(AppendError::WrongExpectedRevision {
        stream: since[0].stream.clone(),
        expected: Expected::None,
        actual: Some(since[0].revision),
        events_since: since,
    });
    let conflict = served.append(r#"{"events":[{"type":"T","data":1}]}"#).await;
    assert_eq!(conflict.status(), 409);
    assert_eq!(seen(&token(&conflict)), 4);
}

#[tokio::test]
async fn a_stale_region_says_when_to_come_back() {
    let served = Served::new().await;
    let mut seen = Seen::default();
    served.fake.write("order-1", "T", 1);
    seen.read(&[served.fake.last_event()]);
    let log = served.fake.last_event().dot.log();
    seen.positions.advance(log, Position(9));
    let token = seal().write(&seen).0;
    for path in [
        "/v1/streams/order-1/events",
        "/v1/events",
        "/v1/events?tier=final",
    ] {
        for accept in ["application/json", "text/event-stream"] {
            let request = served.get(path).header("accept", accept);
            let response = request.header("meridian-session", &token).send().await;
            let response = response.unwrap();
            assert_eq!(response.headers()["retry-after"], "2");
            let found = problem(response, 503, "stale").await;
            assert_eq!(found["retry_after_ms"], 1500);
            assert!(
                found["detail"].as_str().unwrap().contains("waited 2s"),
                "{found}"
            );
        }
    }
}

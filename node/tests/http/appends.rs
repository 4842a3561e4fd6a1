//! `POST /v1/streams/{stream}/events`.

use meridian_client::{AppendError, Durability, Expected};
use meridian_clock::Epoch;
use meridian_event::{Revision, StreamId};
use serde_json::json;

use crate::fake::{EU, Served, json, problem};

const ID: &str = "5f0c1a52-6d1e-4a2e-9c37-2d5b7c0d9e11";

#[tokio::test]
async fn an_append_answers_where_its_events_are() {
    let served = Served::new().await;
    let body = json!({
        "expected": "none", "durability": "regions:2",
        "events": [{"id": ID, "type": "Placed", "data": {"n": 1}}, {"type": "Paid", "data": null}],
    });

    let response = served.append(body.to_string()).await;
    let token = response.headers()["meridian-session"]
        .to_str()
        .unwrap()
        .to_owned();
    let answer = json(response).await;

    assert_eq!(
        answer,
        json!({
            "stream": "order-1", "first_revision": 0, "last_revision": 1, "home": "eu-west",
            "dots": [
                {"origin": "us-east", "partition": 3, "position": 1},
                {"origin": "us-east", "partition": 3, "position": 2},
            ],
            "timestamp": "7301444403200000000",
            "durability": "regions:2", "could_strand": true,
            "token": token,
        })
    );
    let asked = served.fake.asked.lock().unwrap().take().unwrap();
    assert_eq!(asked.expected, Expected::None);
    assert_eq!(asked.durability, Durability::Regions(2));
    assert_eq!(asked.events[0].id.to_string(), ID);
    assert_ne!(asked.events[1].id, asked.events[0].id);
}

#[tokio::test]
async fn what_is_not_said_has_its_default() {
    let served = Served::new().await;
    json(served.append(r#"{"events":[{"type":"T","data":1}]}"#).await).await;
    let asked = served.fake.asked.lock().unwrap().take().unwrap();
    assert_eq!(asked.expected, Expected::Any);
    assert_eq!(asked.durability, Durability::Region);
    assert!(asked.events[0].metadata.is_empty());
}

#[tokio::test]
async fn data_and_metadata_come_back_byte_for_byte() {
    let served = Served::new().await;
    let data = r#"{"b":1.10, "a":[ 1e400,"\u00e9",12345678901234567890123]}"#;
    let metadata = "\"a\u{1f600}b\"";
    let body = format!(r#"{{"events":[{{"type":"T","data":{data} ,"metadata":{metadata}}}]}}"#);
    json(served.append(body).await).await;

    let asked = served.fake.asked.lock().unwrap().take().unwrap();
    assert_eq!(asked.events[0].data, data);
    assert_eq!(asked.events[0].metadata, metadata);
    let read = served.get("/v1/streams/order-1/events").send().await;
    let text = read.unwrap().text().await.unwrap();
    assert!(text.contains(&format!(r#""data":{data},"#)), "{text}");
    assert!(
        text.contains(&format!(r#""metadata":{metadata},"#)),
        "{text}"
    );
}

#[tokio::test]
async fn an_expected_revision_is_a_number() {
    let served = Served::new().await;
    let body = r#"{"expected":41,"events":[{"type":"T","data":1}]}"#;
    json(served.append(body).await).await;
    let asked = served.fake.asked.lock().unwrap().take().unwrap();
    assert_eq!(asked.expected, Expected::Revision(Revision(41)));
}

#[tokio::test]
async fn a_stream_name_is_percent_decoded() {
    let served = Served::new().await;
    let body = r#"{"events":[{"type":"T","data":1}]}"#;
    let request = served.post("/v1/streams/order-%C3%A9%2F%20%25/events", body);
    let answer = json(request.send().await.unwrap()).await;
    assert_eq!(answer["stream"], "order-é/ %");
}

#[tokio::test]
async fn a_body_needs_no_content_type_unless_a_browser_sends_it() {
    let served = Served::new().await;
    let url = format!("http://{}/v1/streams/order-1/events", served.addr);
    let body = r#"{"events":[{"type":"T","data":1}]}"#;
    let plain = served.client.post(&url).body(body);
    json(plain.send().await.unwrap()).await;

    let from_page = served.client.post(&url).body(body);
    let from_page = from_page
        .header("origin", "http://elsewhere.example")
        .header("content-type", "text/plain");
    problem(from_page.send().await.unwrap(), 415, "invalid").await;
}

#[tokio::test]
async fn a_wrong_expectation_says_what_is_and_what_happened_since() {
    let served = Served::new().await;
    served.fake.write("order-1", "Placed", 2);
    let page = served.get("/v1/streams/order-1/events?from=1").send().await;
    let since = json(page.unwrap()).await["events"].clone();
    let stream = StreamId::new("order-1").unwrap();
    let refusal = |actual, events_since| AppendError::WrongExpectedRevision {
        stream: stream.clone(),
        expected: Expected::Revision(Revision(0)),
        actual,
        events_since,
    };
    let recorded = served.fake.last_event();
    let body = r#"{"expected":0,"events":[{"type":"T","data":1}]}"#;

    *served.fake.refuse.lock().unwrap() = Some(refusal(Some(Revision(1)), vec![recorded]));
    let found = problem(served.append(body).await, 409, "wrong_expected_revision").await;
    assert_eq!(found["actual"], 1);
    assert_eq!(found["stream"], "order-1");
    assert_eq!(found["events_since"], since);

    *served.fake.refuse.lock().unwrap() = Some(refusal(None, Vec::new()));
    let found = problem(served.append(body).await, 409, "wrong_expected_revision").await;
    assert_eq!(found.get("actual"), Some(&json!(null)));
    assert_eq!(found["events_since"], json!([]));
}

#[tokio::test]
async fn every_refusal_of_the_node_has_its_status_and_code() {
    let served = Served::new().await;
    let body = r#"{"events":[{"type":"T","data":1}]}"#;
    let refused = async |error| {
        *served.fake.refuse.lock().unwrap() = Some(error);
        served.append(body).await
    };

    let elsewhere = AppendError::NotHome {
        stream: StreamId::new("order-1").unwrap(),
        home: EU,
        epoch: Epoch { major: 2, minor: 3 },
    };
    let found = problem(refused(elsewhere).await, 421, "not_home").await;
    assert_eq!(found["home"], "eu-west");
    assert_eq!(found["epoch"], json!({"major": 2, "minor": 3}));

    let later = AppendError::Unavailable {
        reason: "eu-west does not answer".to_owned(),
        retry_after_ms: 1200,
    };
    let response = refused(later).await;
    assert_eq!(response.headers()["retry-after"], "2");
    let found = problem(response, 503, "unavailable").await;
    assert_eq!(found["retry_after_ms"], 1200);
    let detail = found["detail"].as_str().unwrap();
    assert!(detail.contains("eu-west does not answer"), "{detail}");

    let unknown = AppendError::Indeterminate {
        reason: "the disk did not answer".to_owned(),
    };
    problem(refused(unknown).await, 504, "indeterminate").await;

    let wrong = AppendError::Invalid {
        reason: "regions:9 of 3".to_owned(),
    };
    problem(refused(wrong).await, 400, "invalid").await;
}

#[tokio::test]
async fn the_limits_of_the_node_hold_here_too() {
    let served = Served::new().await;
    let long = "x".repeat(1 << 16);
    let body = json!({"events": [{"type": "T", "data": long}]});
    let found = problem(served.append(body.to_string()).await, 413, "too_large").await;
    assert_eq!(found["limit"], 1 << 16);

    let event = json!({"type": "T", "data": 1});
    let body = json!({"events": vec![event; 11]});
    let found = problem(served.append(body.to_string()).await, 413, "too_large").await;
    assert_eq!(found["limit"], 10);

    for body in [
        json!({"events": []}),
        json!({"events": [{"id": ID, "type": "T", "data": 1}, {"id": ID, "type": "T", "data": 1}]}),
    ] {
        problem(served.append(body.to_string()).await, 400, "invalid").await;
    }
    assert_eq!(served.fake.count(), 0, "something was written all the same");
}

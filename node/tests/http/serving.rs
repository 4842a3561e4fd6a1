//! Connections: how many, how slow, and how they end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meridian_node::http::ServeOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::fake::{Served, json, problem};

const BODY: &str = r#"{"events":[{"type":"T","data":1}]}"#;

#[tokio::test]
async fn an_append_in_progress_is_answered_before_the_door_closes() {
    let served = Served::new().await;
    let gate = Arc::new(Notify::new());
    *served.fake.gate.lock().unwrap() = Some(gate.clone());
    let request = served.post("/v1/streams/order-1/events", BODY).send();
    let request = tokio::spawn(request);
    while served.fake.asked.lock().unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    served.cancel.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(
        !served.task.is_finished(),
        "it closed on a request in progress"
    );
    gate.notify_one();

    json(request.await.unwrap().unwrap()).await;
    timeout(Duration::from_secs(5), served.task)
        .await
        .expect("serving ends with its last request")
        .unwrap();
}

#[tokio::test]
async fn a_request_that_never_ends_is_given_up() {
    let served = Served::with(ServeOptions {
        drain_timeout: Duration::from_millis(50),
        ..ServeOptions::default()
    })
    .await;
    *served.fake.gate.lock().unwrap() = Some(Arc::new(Notify::new()));
    let request = served.post("/v1/streams/order-1/events", BODY).send();
    let request = tokio::spawn(request);
    while served.fake.asked.lock().unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    served.cancel.cancel();
    timeout(Duration::from_secs(5), served.task)
        .await
        .expect("serving does not wait for ever")
        .unwrap();
    assert!(request.await.unwrap().is_err());
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_end() {
    let served = Served::new().await;
    json(served.get("/healthz").send().await.unwrap()).await;
    let _silent = served.connect().await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    served.cancel.cancel();
    timeout(Duration::from_secs(5), served.task)
        .await
        .expect("an idle connection is closed at once")
        .unwrap();
}

#[tokio::test]
async fn a_head_that_does_not_arrive_ends_the_connection() {
    let served = Served::with(ServeOptions {
        head_timeout: Duration::from_millis(50),
        ..ServeOptions::default()
    })
    .await;
    for beginning in [&b""[..], b"GET /healthz HTT"] {
        let mut stream = served.connect().await;
        stream.write_all(beginning).await.unwrap();
        let mut answer = Vec::new();
        let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "a client that sends nothing is waited for");
    }
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_not_waited_for() {
    let served = Served::with(ServeOptions {
        body_timeout: Duration::from_millis(50),
        ..ServeOptions::default()
    })
    .await;
    let endless = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let response = served.append(reqwest::Body::wrap_stream(endless)).await;
    problem(response, 408, "timeout").await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let served = Served::with(ServeOptions {
        connections_max: 1,
        ..ServeOptions::default()
    })
    .await;
    let ask = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut answer = vec![0; 4096];
    let mut first = served.connect().await;
    first.write_all(ask).await.unwrap();
    assert!(first.read(&mut answer).await.unwrap() > 0);

    let mut second = served.connect().await;
    second.write_all(ask).await.unwrap();
    let waiting = timeout(Duration::from_millis(100), second.read(&mut answer)).await;
    assert!(waiting.is_err(), "a second connection was served");
    drop(first);
    let served = timeout(Duration::from_secs(5), second.read(&mut answer)).await;
    assert!(served.expect("its turn came").unwrap() > 0);
}

#[tokio::test]
async fn requests_on_one_connection_are_answered_in_turn() {
    let served = Served::new().await;
    let two = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n\
                GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = served.raw(two).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
}

#[tokio::test]
async fn a_broken_assertion_is_an_answer_and_the_door_stays_open() {
    let served = Served::new().await;
    served.fake.broken.store(true, Ordering::Relaxed);
    problem(served.append(BODY).await, 500, "internal").await;
    served.fake.broken.store(false, Ordering::Relaxed);
    json(served.append(BODY).await).await;
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let served = Served::new().await;
    let mut stream = served.connect().await;
    let head = [&b"GET /healthz HTTP/1.1\r\nx: "[..], &[b'x'; 100 << 10]].concat();
    // The door may close while we still send.
    let _ = stream.write_all(&head).await;
    let mut answer = Vec::new();
    let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "the rest of an endless head is waited for");
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
}

//! `GET /v1/events` and `GET /v1/streams/{stream}/state` with `Accept: text/event-stream`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use meridian_client::ReadError;
use meridian_node::http::ServeOptions;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::fake::{Served, problem};

/// An event stream as a browser would read it.
struct Follower {
    bytes: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>>>>,
    text: String,
    last_id: Option<String>,
}

#[derive(Debug, PartialEq)]
struct Message {
    name: Option<String>,
    id: Option<String>,
    data: String,
}

impl Message {
    fn number(&self) -> u64 {
        let event: Value = serde_json::from_str(&self.data).unwrap();
        event["data"]["number"].as_u64().unwrap()
    }
}

impl Follower {
    async fn new(served: &Served, query: &str, last_id: Option<&str>) -> Self {
        Self::of(served, &format!("/v1/events{query}"), last_id).await
    }

    async fn of(served: &Served, path: &str, last_id: Option<&str>) -> Self {
        let mut request = served.get(path).header("accept", "text/event-stream");
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self {
            bytes: Box::pin(response.bytes_stream()),
            text: String::new(),
            last_id: None,
        }
    }

    /// The next block of lines; `None` when the stream has ended.
    async fn block(&mut self) -> Option<Vec<String>> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let lines = block.lines().map(str::to_owned).collect();
                self.text = rest.to_owned();
                return Some(lines);
            }
            let next = timeout(Duration::from_secs(5), self.bytes.next()).await;
            match next.expect("the stream neither goes on nor ends") {
                Some(bytes) => self.text += std::str::from_utf8(&bytes.unwrap()).unwrap(),
                None => {
                    assert_eq!(self.text, "", "the stream ended inside a block");
                    return None;
                }
            }
        }
    }

    /// The next message; `None` when the stream has ended.
    async fn message(&mut self) -> Option<Message> {
        loop {
            let lines = self.block().await?;
            let field = |name: &str| {
                let prefix = format!("{name}: ");
                let values = lines.iter().filter_map(|line| line.strip_prefix(&*prefix));
                let values: Vec<_> = values.map(str::to_owned).collect();
                (!values.is_empty()).then(|| values.join("\n"))
            };
            self.last_id = field("id").or(self.last_id.take());
            if let Some(data) = field("data") {
                return Some(Message {
                    name: field("event"),
                    id: field("id"),
                    data,
                });
            }
        }
    }

    async fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            numbers.push(self.message().await.expect("more messages").number());
        }
        numbers
    }
}

#[tokio::test]
async fn a_follower_sees_what_was_there_and_then_what_comes() {
    let served = Served::new().await;
    served.fake.write("order-1", "T", 600);
    let mut follower = Follower::new(&served, "", None).await;
    assert_eq!(follower.numbers(600).await, (0..600).collect::<Vec<_>>());
    served.fake.write("order-2", "T", 2);
    assert_eq!(follower.numbers(2).await, [0, 1]);
}

#[tokio::test]
async fn every_message_carries_the_cursor_to_resume_after_it() {
    let served = Served::new().await;
    served.fake.write("order-1", "T", 5);
    let mut follower = Follower::new(&served, "", None).await;
    follower.numbers(2).await;
    let third = follower.message().await.unwrap();
    assert_eq!((third.name.as_deref(), third.number()), (None, 2));

    // The header goes before `after`, which a reconnecting browser repeats from the first time.
    let mut resumed = Follower::new(&served, "?after=1", third.id.as_deref()).await;
    assert_eq!(resumed.numbers(2).await, [3, 4]);
    let mut after = Follower::new(&served, "?after=4", None).await;
    assert_eq!(after.numbers(1).await, [4]);
}

#[tokio::test]
async fn a_quiet_stream_sends_heartbeats_that_carry_its_place() {
    let served = Served::with(ServeOptions {
        heartbeat: Duration::from_millis(20),
        ..ServeOptions::default()
    })
    .await;
    served.fake.write("order-1", "T", 3);
    let mut follower = Follower::new(&served, "?type=Other", None).await;
    loop {
        let lines = follower.block().await.unwrap();
        if lines[0] == ": heartbeat" {
            // Past the three events that the filter held back.
            assert_eq!(lines[1..], ["id: 3"]);
            break;
        }
    }
}

#[tokio::test]
async fn a_filter_that_wants_little_still_finds_it_far_on() {
    let served = Served::new().await;
    served.fake.write("order-1", "T", 5000);
    served.fake.write("cart-1", "T", 1);
    let mut follower = Follower::new(&served, "?category=cart", None).await;
    let message = follower.message().await.unwrap();
    assert_eq!(message.id.as_deref(), Some("5001"));
}

#[tokio::test]
async fn a_limit_ends_the_stream() {
    let served = Served::new().await;
    served.fake.write("order-1", "T", 2);
    let mut follower = Follower::new(&served, "?limit=3", None).await;
    assert_eq!(follower.numbers(2).await, [0, 1]);
    served.fake.write("order-1", "T", 2);
    assert_eq!(follower.numbers(1).await, [0]);
    assert_eq!(follower.message().await, None);
}

#[tokio::test]
async fn a_wrong_cursor_is_a_plain_problem() {
    let served = Served::new().await;
    let request = served
        .get("/v1/events")
        .header("accept", "text/event-stream")
        .header("last-event-id", "elsewhere");
    problem(request.send().await.unwrap(), 400, "invalid").await;
}

#[tokio::test]
async fn a_failure_on_the_way_is_a_last_message() {
    let served = Served::new().await;
    served.fake.write("order-1", "T", 1);
    let mut follower = Follower::new(&served, "", None).await;
    follower.numbers(1).await;
    *served.fake.unreadable.lock().unwrap() = Some(ReadError::Unavailable {
        reason: "damaged".to_owned(),
        retry_after_ms: 1000,
    });
    served.fake.write("order-1", "T", 1);
    let last = follower.message().await.unwrap();
    assert_eq!(last.name.as_deref(), Some("error"));
    let problem: Value = serde_json::from_str(&last.data).unwrap();
    assert_eq!(problem["code"], "unavailable");
    assert_eq!(follower.message().await, None);
}

#[tokio::test]
async fn followers_end_when_the_node_stops() {
    let served = Served::new().await;
    let mut follower = Follower::new(&served, "", None).await;
    follower.block().await;
    served.cancel.cancel();
    assert_eq!(follower.message().await, None);
    timeout(Duration::from_secs(5), served.task)
        .await
        .expect("serving ends with its followers")
        .unwrap();
}

#[tokio::test]
async fn a_follower_that_does_not_read_is_not_read_for() {
    let served = Served::with(ServeOptions {
        write_timeout: Duration::from_millis(300),
        ..ServeOptions::default()
    })
    .await;
    // Far more than the sockets' own buffers take.
    served.fake.write("order-1", "T", 200_000);
    let mut stream = served.connect().await;
    let request = b"GET /v1/events HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n";
    stream.write_all(request).await.unwrap();

    let reads = || served.fake.reads.load(Ordering::Relaxed);
    let mut before = 0;
    while reads() == 0 || reads() != before {
        before = reads();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(before < 700, "{before} pages were read for nobody");

    // And after the time-out it is let go.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut received = Vec::new();
    let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut received)).await;
    assert!(
        ended.is_ok(),
        "the connection of a follower that does not read is kept"
    );
    let text = String::from_utf8_lossy(&received);
    assert!(!text.contains("\"number\":199999"), "all of it was sent");
}

#[tokio::test]
async fn followers_cannot_take_every_connection() {
    let served = Served::with(ServeOptions {
        followers_max: 1,
        ..ServeOptions::default()
    })
    .await;
    let first = Follower::new(&served, "", None).await;
    let follow = || {
        let request = served.get("/v1/events");
        request.header("accept", "text/event-stream").send()
    };
    let refused = follow().await.unwrap();
    assert_eq!(refused.headers()["retry-after"], "5");
    problem(refused, 503, "unavailable").await;
    assert_eq!(served.get("/v1/events").send().await.unwrap().status(), 200);

    // A place is free again once the first has gone.
    drop(first);
    let freed = async {
        while follow().await.unwrap().status() != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(5), freed)
        .await
        .expect("a place that was left is given to the next");
}

const STATE: &str = "/v1/streams/cart-1/state";

#[tokio::test]
async fn a_follower_of_a_state_is_told_what_it_comes_to_and_not_twice() {
    let served = Served::new().await;
    let stock = |message: &Message| -> u64 {
        let state: Value = serde_json::from_str(&message.data).unwrap();
        state["value"]["stock"].as_u64().unwrap()
    };
    let mut follower = Follower::of(&served, STATE, None).await;
    let first = follower.message().await.unwrap();
    assert_eq!(
        (first.id.clone(), stock(&first)),
        (Some("ab".repeat(32)), 5)
    );
    served.fake.write("cart-1", "T", 3);
    assert_eq!(stock(&follower.message().await.unwrap()), 8);
    // Who has the latest is told of the next one only.
    let mut again = Follower::of(&served, STATE, follower.last_id.as_deref()).await;
    served.fake.write("cart-1", "T", 1);
    assert_eq!(stock(&again.message().await.unwrap()), 9);
    *served.fake.unreadable.lock().unwrap() = Some(ReadError::Unavailable {
        reason: "damaged".to_owned(),
        retry_after_ms: 1000,
    });
    served.fake.write("cart-1", "T", 1);
    let last = again.message().await.unwrap();
    assert_eq!(last.name.as_deref(), Some("error"));
    assert_eq!(again.message().await, None);
}

#[tokio::test]
async fn a_stream_without_a_state_cannot_be_followed() {
    let served = Served::new().await;
    let request = served.get("/v1/streams/order-1/state");
    let request = request.header("accept", "text/event-stream");
    problem(request.send().await.unwrap(), 400, "invalid").await;
}

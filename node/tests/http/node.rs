//! The same door before a real node, with its own disk.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use meridian_node::seams::Seams;
use meridian_node::{Node, config};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::fake::{json, problem};

/// One region on its own.
struct Region {
    folder: TempDir,
    node: Arc<Node>,
    client: Client,
}

impl Region {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let made = Command::new(env!("CARGO_BIN_EXE_meridian"))
            .args(["init", "--regions", "solo", "--dir"])
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let node = Self::start(&folder).await;
        Self {
            folder,
            node,
            client: Client::new(),
        }
    }

    async fn start(folder: &TempDir) -> Arc<Node> {
        let path = folder.path().join("solo").join("meridian.toml");
        let mut config = config::load(&path).unwrap().node;
        config.listen_http.set_port(0);
        config.listen_quic.set_port(0);
        let seams = Seams::host(&config.data).unwrap();
        let node = Node::start(config, seams).await.unwrap();
        let open = async {
            while node.ready().is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), open)
            .await
            .expect("a node on its own takes appends");
        node
    }

    async fn restart(&mut self) {
        self.node.shutdown().await;
        self.node = Self::start(&self.folder).await;
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.node.http_addr())
    }

    async fn get(&self, path: &str) -> Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }

    async fn append(&self, stream: &str, body: &Value) -> Response {
        let url = self.url(&format!("/v1/streams/{stream}/events"));
        self.client.post(url).json(body).send().await.unwrap()
    }

    /// Everything held here, a page of `limit` at a time, and how many pages it took.
    async fn all(&self, limit: usize) -> (Vec<Value>, usize) {
        let (mut events, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let path = format!("/v1/events?limit={limit}&after={cursor}");
            let page = json(self.get(&path).await).await;
            pages += 1;
            events.extend(page["events"].as_array().unwrap().iter().cloned());
            cursor = page["cursor"].as_str().unwrap().to_owned();
            if page["end"] == true {
                return (events, pages);
            }
        }
    }

    /// The first `count` messages after `last_id`: their ids and events.
    async fn follow(&self, last_id: &str, count: usize) -> Vec<(String, Value)> {
        let request = self.client.get(self.url("/v1/events"));
        let request = request.header("accept", "text/event-stream");
        let response = request.header("last-event-id", last_id).send().await;
        let mut bytes = response.unwrap().bytes_stream();
        let (mut text, mut messages) = (String::new(), Vec::new());
        while messages.len() < count {
            let chunk = timeout(Duration::from_secs(5), bytes.next()).await;
            let chunk = chunk.expect("more messages").expect("no end").unwrap();
            text += std::str::from_utf8(&chunk).unwrap();
            while let Some((block, rest)) = text.split_once("\n\n") {
                let id = block.lines().find_map(|line| line.strip_prefix("id: "));
                let data = block.lines().find_map(|line| line.strip_prefix("data: "));
                if let (Some(id), Some(data)) = (id, data) {
                    messages.push((id.to_owned(), serde_json::from_str(data).unwrap()));
                }
                text = rest.to_owned();
            }
        }
        messages.truncate(count);
        messages
    }
}

fn events(count: usize) -> Vec<Value> {
    (0..count)
        .map(|number| json!({"type": "Counted", "data": {"number": number}}))
        .collect()
}

#[tokio::test]
async fn a_repeated_append_is_answered_as_the_first_time() {
    let region = Region::new().await;
    let id = "5f0c1a52-6d1e-4a2e-9c37-2d5b7c0d9e11";
    let body = json!({"expected": "none", "events": [{"id": id, "type": "T", "data": [1.50]}]});
    let first = json(region.append("order-1", &body).await).await;
    let again = json(region.append("order-1", &body).await).await;
    assert_eq!(first, again);
    let (events, _) = region.all(10).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["id"], id);
    assert_eq!(first["home"], "solo");
    assert_eq!(first["timestamp"], events[0]["timestamp"]);
    region.node.shutdown().await;
}

#[tokio::test]
async fn a_conflict_shows_the_events_since_and_writes_nothing() {
    let region = Region::new().await;
    let three = json!({"events": events(3)});
    json(region.append("order-1", &three).await).await;
    let late = json!({"expected": 0, "events": events(1)});
    let found = problem(
        region.append("order-1", &late).await,
        409,
        "wrong_expected_revision",
    )
    .await;
    assert_eq!(found["actual"], 2);
    let page = json(region.get("/v1/streams/order-1/events?from=1").await).await;
    assert_eq!(found["events_since"], page["events"]);
    assert_eq!(page["events"].as_array().unwrap().len(), 2);
    assert_eq!((&page["next"], &page["end"]), (&json!(3), &json!(true)));
    let asleep = json(region.get("/v1/streams/order-1/events?from=3").await).await;
    assert_eq!(asleep, json!({"events": [], "next": 3, "end": true}));
    region.node.shutdown().await;
}

#[tokio::test]
async fn pages_of_any_size_show_every_event_once_in_the_same_order() {
    let region = Region::new().await;
    for number in 0..4 {
        let body = json!({"events": events(number + 3)});
        json(region.append(&format!("order-{number}"), &body).await).await;
    }
    let (whole, _) = region.all(1000).await;
    assert_eq!(whole.len(), 3 + 4 + 5 + 6);
    for limit in 1..8 {
        assert_eq!(region.all(limit).await.0, whole, "limit {limit}");
    }
    region.node.shutdown().await;
}

#[tokio::test]
async fn a_follower_resumes_exactly_after_any_event_and_after_a_restart() {
    let mut region = Region::new().await;
    for number in 0..2 {
        let body = json!({"events": events(5)});
        json(region.append(&format!("order-{number}"), &body).await).await;
    }
    let all = region.follow("", 10).await;
    for (index, (id, _)) in all.iter().enumerate().take(9) {
        let rest = region.follow(id, 9 - index).await;
        assert_eq!(rest, all[index + 1..], "after event {index}");
    }
    region.restart().await;
    assert_eq!(region.follow(&all[6].0, 3).await, all[7..]);
    region.node.shutdown().await;
}

#[tokio::test]
async fn a_cursor_that_was_not_given_is_refused_and_harms_nothing() {
    let region = Region::new().await;
    json(
        region
            .append("order-1", &json!({"events": events(3)}))
            .await,
    )
    .await;
    let page = json(region.get("/v1/events?limit=2").await).await;
    let given = page["cursor"].as_str().unwrap();
    // Into the middle of a block, which would look like damage.
    let (place, seal) = given.rsplit_once('.').unwrap();
    let (block, _) = place.rsplit_once('.').unwrap();
    for forged in [
        format!("{block}1.0.{seal}"),
        place.to_owned(),
        "7".to_owned(),
    ] {
        let path = format!("/v1/events?after={forged}");
        problem(region.get(&path).await, 400, "invalid").await;
    }
    let elsewhere = given.replace("solo:", "eu-west:");
    let path = format!("/v1/events?after={elsewhere}");
    let found = problem(region.get(&path).await, 400, "invalid").await;
    let detail = found["detail"].as_str().unwrap();
    assert!(detail.contains("good in region eu-west only"), "{detail}");
    let status = json(region.get("/v1/status").await).await;
    assert_eq!(status["damaged"], json!([]));
    region.node.shutdown().await;
}

#[tokio::test]
async fn a_page_ends_at_its_size_even_when_its_blocks_are_small_on_disk() {
    let region = Region::new().await;
    let long = "x".repeat(900_000);
    for number in 0..5 {
        let event = json!({"type": "Long", "data": long});
        let body = json!({"events": vec![event; 4]});
        json(region.append(&format!("order-{number}"), &body).await).await;
    }
    let (events, pages) = region.all(1000).await;
    assert_eq!(events.len(), 20);
    assert!(pages >= 4, "18 MB came in {pages} pages");
    region.node.shutdown().await;
}

#[tokio::test]
async fn commits_are_counted_and_timed() {
    let region = Region::new().await;
    json(
        region
            .append("order-1", &json!({"events": events(3)}))
            .await,
    )
    .await;
    let text = region.get("/metrics").await.text().await.unwrap();
    for line in [
        r#"meridian_appends_total{outcome="appended"} 1"#,
        "meridian_events_appended_total 3",
        "meridian_commit_duration_seconds_count 1",
        "meridian_blocks_committed_total 1",
        "meridian_store_events 3",
        "meridian_store_writable 1",
        "meridian_ready 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    region.node.shutdown().await;
}

#[tokio::test]
async fn what_the_node_refuses_leaves_nothing_behind() {
    let region = Region::new().await;
    let one = events(1);
    let long = "x".repeat(1 << 20);
    for (stream, body, status, code) in [
        (
            "order-1",
            json!({"durability": "regions:9", "events": one}),
            400,
            "invalid",
        ),
        ("$mine-1", json!({"events": one}), 400, "invalid"),
        ("order-1", json!({"events": []}), 400, "invalid"),
        (
            "order-1",
            json!({"events": [{"type": "T", "data": long}]}),
            413,
            "too_large",
        ),
        (
            "order-1",
            json!({"expected": "exists", "events": one}),
            409,
            "wrong_expected_revision",
        ),
    ] {
        problem(region.append(stream, &body).await, status, code).await;
    }
    assert_eq!(region.all(10).await.0, Vec::<Value>::new());
    assert_eq!(json(region.get("/v1/digest").await).await, json!([]));
    region.node.shutdown().await;
}

//! Merges the branches of orders that went on in two regions, in a way of its own.
//!
//! An order's lost `ItemsAdded` count, unless it was shipped without them; then the customer is to be told.
//!
//! ```text
//! cargo run -p meridian-client --example merge -- F/operator FEDERATION 127.0.0.1:7101 http://127.0.0.1:7100
//! ```

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

mod shared;

use std::error::Error;
use std::time::Duration;

use meridian_client::{Client, Direction, ReadAt, StreamRead};
use meridian_event::{RecordedEvent, StreamId};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

const GROUP: &str = "order-merges";

/// A conflict record, as `GET /v1/conflicts/{id}` has it: the branch that lost its place.
#[derive(Deserialize)]
struct Conflict {
    stream: String,
    /// The last revision that both branches build on.
    expected: Option<u64>,
    events: Vec<Lost>,
    /// Where the next page of its events begins.
    next: Option<usize>,
}

#[derive(Deserialize)]
struct Lost {
    #[serde(rename = "type")]
    event_type: String,
    /// Where it is in the stream by now, if its writer has repeated the request since.
    in_stream: Option<u64>,
    data: Value,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> shared::Outcome {
    let (client, arguments) = shared::connect().await?;
    let [url] = arguments.as_slice() else {
        return Err("usage: FOLDER FEDERATION ADDR URL".into());
    };
    let http = reqwest::Client::new();
    let source = json!({"source": {"categories": ["$conflicts"], "types": ["$conflict-whole"]}});
    let group = http
        .put(format!("{url}/v1/consumers/{GROUP}"))
        .json(&source);
    group.send().await?.error_for_status()?;

    let mut consumer = client.consumer(GROUP, "one", None);
    loop {
        let deliveries = consumer.fetch(10, Duration::from_secs(10)).await?;
        for delivery in deliveries.events {
            merge(&client, &http, url, &delivery.event).await?;
            // Only now: a program that crashes before is given the record again.
            consumer.ack(vec![delivery.delivery]).await?;
        }
    }
}

async fn merge(
    client: &Client,
    http: &reqwest::Client,
    url: &str,
    whole: &RecordedEvent,
) -> Result<(), Box<dyn Error>> {
    let record = whole.stream.as_str();
    let id: Uuid = record.trim_start_matches("$conflicts-").parse()?;
    let record = format!("{url}/v1/conflicts/{id}");
    let mut conflict = page(http, &record, 0).await?;
    while let Some(next) = conflict.next {
        let more = page(http, &record, next).await?;
        conflict.events.extend(more.events);
        conflict.next = more.next;
    }
    if !conflict.stream.starts_with("order-") {
        println!("{id}: {} is not ours", conflict.stream);
        return Ok(());
    }
    let winning = branch(client, &conflict).await?;
    let is_shipped = winning
        .iter()
        .any(|it| it.event_type.as_str() == "OrderShipped");
    let lost = conflict.events.iter();
    let added = lost.filter(|it| it.event_type == "ItemsAdded" && it.in_stream.is_none());
    let merged = if is_shipped {
        "ItemsMissed"
    } else {
        "ItemsAdded"
    };
    let events = (0..).zip(added).map(|(number, lost): (u32, _)| {
        // An id of its own, made of the record's: written again, it is the same event.
        let event_id = Uuid::new_v5(&id, &number.to_be_bytes());
        json!({"id": event_id, "type": merged, "data": lost.data})
    });
    let events: Vec<Value> = events.collect();
    let resolution = match (events.is_empty(), is_shipped) {
        (true, _) => json!({"action": "discard", "reason": "nothing was added"}),
        (false, true) => {
            json!({"action": "rebase", "reason": "shipped without them", "events": events})
        }
        (false, false) => json!({"action": "rebase", "reason": "added again", "events": events}),
    };
    let answer = http.post(format!("{record}/resolve")).json(&resolution);
    let answer = answer.send().await?;
    let (status, told) = (answer.status(), answer.json::<Value>().await?);
    match status.as_u16() {
        200 => println!("{id}: {}: {}", conflict.stream, resolution["reason"]),
        // This program before it crashed, or an operator.
        409 => println!("{id}: {}", told["detail"]),
        _ => return Err(told.to_string().into()),
    }
    Ok(())
}

async fn page(
    http: &reqwest::Client,
    record: &str,
    from: usize,
) -> Result<Conflict, Box<dyn Error>> {
    let page = http.get(format!("{record}?from={from}&limit=1000"));
    Ok(page.send().await?.error_for_status()?.json().await?)
}

/// What the stream went on with, without the events that were lost.
async fn branch(
    client: &Client,
    conflict: &Conflict,
) -> Result<Vec<RecordedEvent>, Box<dyn Error>> {
    let read = StreamRead {
        stream: StreamId::new(&conflict.stream)?,
        from: conflict.expected.map_or(0, |last| last + 1),
        direction: Direction::Forwards,
        limit: 100,
    };
    let mut pages = client.stream(read, ReadAt::Home);
    let mut events = Vec::new();
    while let Some(page) = pages.next_page().await? {
        events.extend(page.events);
    }
    Ok(events)
}

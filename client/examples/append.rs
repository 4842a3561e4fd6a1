//! Writes one event to `order-42`, and says what became of it.
//!
//! ```text
//! cargo run -p meridian-client --example append -- F/operator FEDERATION 127.0.0.1:7101
//! ```

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

mod shared;

use bytes::Bytes;
use meridian_client::{AppendError, AppendRequest, Durability, Expected};
use meridian_event::{EventId, EventType, NewEvent, StreamId};
use uuid::Uuid;

#[tokio::main(flavor = "current_thread")]
async fn main() -> shared::Outcome {
    let (client, _) = shared::connect().await?;
    // An id that follows from what happened: however often this program runs, and whatever breaks
    // on the way, the order is placed once.
    let id = Uuid::new_v5(&Uuid::NAMESPACE_URL, b"order-42/placed");
    let request = AppendRequest {
        stream: StreamId::new("order-42")?,
        expected: Expected::Any,
        durability: Durability::Region,
        events: vec![NewEvent {
            id: EventId(id),
            event_type: EventType::new("OrderPlaced")?,
            data: Bytes::from_static(br#"{"items":3}"#),
            metadata: Bytes::new(),
        }],
    };
    match client.append(request).await {
        Ok(appended) => println!(
            "revision {} of {}, ordered by region {}, on disk in: {}",
            appended.last_revision, appended.stream, appended.home, appended.durability
        ),
        // Not a failure: it may be written. Running this again finds out, and does no harm.
        Err(error @ AppendError::Indeterminate { .. }) => println!("{error}"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

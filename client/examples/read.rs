//! Prints a stream from its beginning, page by page.
//!
//! ```text
//! cargo run -p meridian-client --example read -- F/operator FEDERATION 127.0.0.1:7101 order-42
//! ```

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

mod shared;

use meridian_client::{Direction, ReadAt, StreamRead};
use meridian_event::StreamId;

#[tokio::main(flavor = "current_thread")]
async fn main() -> shared::Outcome {
    let (client, rest) = shared::connect().await?;
    let stream = rest.first().map_or("order-42", String::as_str);
    let read = StreamRead {
        stream: StreamId::new(stream)?,
        from: 0,
        direction: Direction::Forwards,
        limit: 100,
    };
    // The home has every revision it gave out; the nearest region may still be waiting for some.
    let mut pages = client.stream(read, ReadAt::Home);
    while let Some(page) = pages.next_page().await? {
        for event in page.events {
            let data = String::from_utf8_lossy(&event.data);
            println!("{} {} {data}", event.revision, event.event_type);
        }
    }
    Ok(())
}

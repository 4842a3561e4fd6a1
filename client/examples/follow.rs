//! Prints everything that a region holds in the order it arrives there, and waits for more.
//!
//! ```text
//! cargo run -p meridian-client --example follow -- F/operator FEDERATION 127.0.0.1:7101
//! ```

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

mod shared;

use meridian_client::{LiveRead, ReadError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> shared::Outcome {
    let (client, _) = shared::connect().await?;
    let read = LiveRead {
        limit: 500,
        ..LiveRead::default()
    };
    let mut live = client.live(read, None);
    loop {
        match live.next_page().await {
            Ok(page) => {
                for event in page.events {
                    println!("{} {} {}", event.dot, event.stream, event.event_type);
                }
            }
            // It could not be reached for a while. Asking again goes on where we stopped.
            Err(error @ ReadError::Unavailable { .. }) => println!("# {error}"),
            Err(error) => return Err(error.into()),
        }
    }
}

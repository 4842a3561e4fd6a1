//! The server's own streams, whose names begin with `$`: written, and followed as they arrive.

use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;
use meridian_client::{
    AppendError, AppendRequest, Durability, EventFilter, Expected, LiveCursor, LiveRead,
};
use meridian_event::{Category, EventId, EventType, NewEvent, RecordedEvent, StreamId};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::Node;

/// How many events are looked through at once.
const PAGE: u32 = 1_000;
/// How long before the log is read again where it could not be.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Appends one event to stream `name` of `category`; returns its revision there.
///
/// # Errors
/// When it is not written, or that is not known.
pub(crate) async fn write(
    node: &Node,
    category: &str,
    name: &str,
    what: &str,
    data: Vec<u8>,
) -> Result<u64, AppendError> {
    let named = |error: meridian_event::NameError| AppendError::Invalid {
        reason: error.to_string(),
    };
    let mut id = [0; 16];
    node.random().fill(&mut id);
    let request = AppendRequest {
        stream: StreamId::new(&format!("{category}-{name}")).map_err(named)?,
        expected: Expected::Any,
        durability: Durability::Region,
        events: vec![NewEvent {
            id: EventId::from_random(id),
            event_type: EventType::new(what).map_err(named)?,
            data: data.into(),
            metadata: Bytes::new(),
        }],
    };
    let appended = node.append_own(request).await?;
    Ok(appended.first_revision.0)
}

/// The part of a stream's name after its category, if it is of `category`.
pub(crate) fn name_in<'a>(stream: &'a StreamId, category: &str) -> Option<&'a str> {
    stream.as_str().strip_prefix(category)?.strip_prefix('-')
}

/// Hands the events of `category` to `take`, with where to go on, from `after` until the node stops.
pub(crate) async fn follow(
    node: Weak<Node>,
    cancel: CancellationToken,
    category: &'static str,
    mut after: String,
    mut take: impl FnMut(&[RecordedEvent], &str),
) {
    let Ok(wanted) = Category::new(category) else {
        return;
    };
    let Some(mut committed) = node.upgrade().map(|node| node.committed()) else {
        return;
    };
    loop {
        committed.borrow_and_update();
        let read = LiveRead {
            after: LiveCursor(after.clone()),
            filter: EventFilter {
                category: Some(wanted.clone()),
                event_type: None,
            },
            limit: PAGE,
            wait_ms: 0,
        };
        let Some(running) = node.upgrade() else {
            return;
        };
        let page = running.read_live_now(&read);
        drop(running);
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(%error, category, "what the server writes for itself cannot be read on");
                // A place that the log does not know any more: definitions are few, and old ones
                // change nothing.
                after.clear();
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return,
                    () = sleep(AGAIN_AFTER) => continue,
                }
            }
        };
        if !page.events.is_empty() {
            take(&page.events, &page.cursor.0);
        }
        after = page.cursor.0;
        if !page.at_end {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            changed = committed.changed() => if changed.is_err() { return },
        }
    }
}

//! The `live` tier: all that is held here, in the order it arrived.

use std::fmt;
use std::str::FromStr;

use meridian_client::{EventFilter, LivePage};
use meridian_event::RecordedEvent;
use meridian_store::{LogOffset, ReadError, Store};
use serde::{Deserialize, Serialize};

/// How much of the log one page may read before it answers with what it found.
const SCAN_BYTES_MAX: usize = 1 << 20;
/// How often one page may read that much: a filter that hardly matches still answers soon.
const SCANS_MAX: usize = 2;
/// How many bytes of events a page is filled up to. Compressed blocks can hold many times what a
/// scan reads, and a reader that is slow keeps its page in memory.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// A place in this node's arrival order. Means nothing on another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct LiveCursor {
    /// The block to go on in.
    pub(crate) block: LogOffset,
    /// How many of its events were read.
    pub(crate) events_read: u32,
}

/// Why a string is no cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a cursor of this node; use a `cursor` that it gave, or none to start at the beginning"
)]
pub(crate) struct CursorError(String);

impl fmt::Display for LiveCursor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{}.{}.{}",
            self.block.segment, self.block.offset, self.events_read
        )
    }
}

impl FromStr for LiveCursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let mut parts = text.split('.');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let cursor = || {
            let block = LogOffset {
                segment: number()?,
                offset: number()?,
            };
            let events_read = u32::try_from(number()?).ok()?;
            Some(Self { block, events_read })
        };
        let parsed = { cursor }();
        parsed
            .filter(|cursor| cursor.to_string() == text)
            .ok_or_else(|| CursorError(text.to_owned()))
    }
}

/// One page of the live tier.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// The events, in arrival order, each with the cursor right after it.
    pub(crate) events: Vec<(LiveCursor, RecordedEvent)>,
    /// Where the next page begins.
    pub(crate) cursor: LiveCursor,
    /// Nothing more is held here now.
    pub(crate) at_end: bool,
}

impl From<Page> for LivePage {
    fn from(page: Page) -> Self {
        let cursor = meridian_client::LiveCursor(page.cursor.to_string());
        Self {
            events: page.events.into_iter().map(|(_, event)| event).collect(),
            cursor,
            at_end: page.at_end,
        }
    }
}

// As `EventFilter::wants`, on names that were not copied out of their block.
fn wants(filter: &EventFilter, stream: &str, event_type: &str) -> bool {
    let category = stream
        .split_once('-')
        .map_or(stream, |(category, _)| category);
    filter
        .category
        .as_ref()
        .is_none_or(|wanted| wanted.as_str() == category)
        && filter
            .event_type
            .as_ref()
            .is_none_or(|wanted| wanted.as_str() == event_type)
}

/// Reads on from `after`: at most `limit` events that match `filter`, and only about as many as
/// memory should hold at once.
///
/// # Errors
/// When the log cannot be read.
pub(crate) fn read_live(
    store: &Store,
    after: LiveCursor,
    filter: &EventFilter,
    limit: usize,
) -> Result<Page, ReadError> {
    let mut page = Page {
        events: Vec::new(),
        cursor: after,
        at_end: false,
    };
    let mut page_bytes = 0;
    for _ in 0..SCANS_MAX {
        let scanned = store.scan(page.cursor.block, SCAN_BYTES_MAX)?;
        for (start, block) in scanned.blocks {
            let skip = if start == page.cursor.block {
                page.cursor.events_read
            } else {
                0
            };
            page.cursor = LiveCursor {
                block: start,
                events_read: skip,
            };
            // A block that is sound but does not decode was written by a broken peer: reported
            // and passed over, so that one bad block does not hide everything after it.
            let open = match block.open() {
                Ok(open) => open,
                Err(error) => {
                    tracing::warn!(?block, %error, "a block was passed over");
                    continue;
                }
            };
            for event in open.events().skip(skip as usize) {
                if page.events.len() == limit || page_bytes >= PAGE_BYTES_MAX {
                    return Ok(page);
                }
                page.cursor.events_read += 1;
                let event = match event {
                    Ok(event) => event,
                    Err(error) => {
                        tracing::warn!(?block, %error, "the rest of a block was passed over");
                        break;
                    }
                };
                if wants(filter, event.stream, event.event_type) {
                    match open.record(&event) {
                        Ok(event) => {
                            page_bytes += event.data.len() + event.metadata.len();
                            page.events.push((page.cursor, event));
                        }
                        Err(error) => tracing::warn!(?block, %error, "an event was passed over"),
                    }
                }
            }
        }
        page.cursor = LiveCursor {
            block: scanned.next,
            events_read: 0,
        };
        page.at_end = scanned.at_end;
        if page.at_end || page.events.len() == limit || page_bytes >= PAGE_BYTES_MAX {
            break;
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_being_written_down() {
        let cursor = LiveCursor {
            block: LogOffset {
                segment: 3,
                offset: 4096,
            },
            events_read: 7,
        };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for bad in ["", "1.2", "1.2.x", "1.2.3.4", "01.2.3", "-1.2.3"] {
            assert!(
                bad.parse::<LiveCursor>().is_err(),
                "{bad:?} was taken for a cursor"
            );
        }
    }
}

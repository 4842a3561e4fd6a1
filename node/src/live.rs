//! The `live` tier: all that is held here, in the order it arrived.

use meridian_client::{EventFilter, LivePage};
use meridian_event::RecordedEvent;
use meridian_store::{LogOffset, ReadError, Store};

use crate::cursor::{CursorSeal, LiveCursor};
use crate::feed::by_itself;

/// How much of the log one page may read before it answers with what it found.
const SCAN_BYTES_MAX: usize = 1 << 20;
/// How often one page may read that much: a filter that hardly matches still answers soon.
const SCANS_MAX: usize = 2;
/// How many bytes of events a page is filled up to. Compressed blocks can hold many times what a
/// scan reads, and a reader that is slow keeps its page in memory.
const PAGE_BYTES_MAX: usize = 4 << 20;

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

impl Page {
    /// The page as clients see it.
    pub(crate) fn sealed(self, seal: &CursorSeal) -> LivePage {
        LivePage {
            events: self.events.into_iter().map(|(_, event)| event).collect(),
            cursor: meridian_client::LiveCursor(seal.write(self.cursor)),
            at_end: self.at_end,
        }
    }
}

// As `EventFilter::wants`, on names that were not copied out of their block.
pub(crate) fn wants(filter: &EventFilter, stream: &str, event_type: &str) -> bool {
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
        // Damage is fetched again from a peer and put back in its place: a reader that went past it
        // would never see what was there. So it waits, and is told why.
        let damage = scanned.skipped.into_iter().next();
        let damaged_at = damage.as_ref().map(|range| LogOffset {
            segment: range.segment,
            offset: range.offset,
        });
        for (start, block) in scanned.blocks {
            if damaged_at.is_some_and(|damaged_at| start >= damaged_at) {
                break;
            }
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
                            page.events.push((page.cursor, by_itself(event)));
                        }
                        Err(error) => tracing::warn!(?block, %error, "an event was passed over"),
                    }
                }
            }
        }
        if let Some(damage) = damage {
            return match page.cursor == after {
                true => Err(ReadError::Damaged(damage)),
                false => Ok(page),
            };
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

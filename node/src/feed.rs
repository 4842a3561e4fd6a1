//! The one order, page by page.
//!
//! A page is asked for by where the last one ended. The merge that made it is kept for a while, so
//! that whoever goes on from there, by pages or by an event stream, does not pay for finding its
//! place in every origin log again.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use meridian_client::{EventFilter, ReadError};
use meridian_clock::{LogId, OrderKey, Timestamp};
use meridian_event::RecordedEvent;
use meridian_store::{OrderedReader, Store};

use crate::live::wants;
use crate::reads::unreadable;

/// How many merges are kept.
const KEPT_MAX: usize = 16;
/// How much a merge that is kept may hold in memory; beyond that it only keeps its place.
const KEPT_BYTES_MAX: usize = 2 << 20;
/// How many bytes of events a page is filled up to.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// How many events one page looks at, so that a filter that hardly matches still answers soon.
const LOOKED_AT_MAX: usize = 100_000;

/// One page of the one order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    /// The events, in order.
    pub(crate) events: Vec<RecordedEvent>,
    /// The last event that was looked at.
    pub(crate) cursor: OrderKey,
    /// Up to here the order was settled.
    pub(crate) watermark: Timestamp,
    /// Nothing more is settled now.
    pub(crate) at_end: bool,
}

/// `event` in memory of its own. As it was read it shares its block's, and a page with an event of
/// each of many blocks would hold all of them.
pub(crate) fn by_itself(event: RecordedEvent) -> RecordedEvent {
    RecordedEvent {
        data: Bytes::copy_from_slice(&event.data),
        metadata: Bytes::copy_from_slice(&event.metadata),
        ..event
    }
}

/// Reads the one order of all origin logs.
pub(crate) struct Feeds {
    store: Arc<Store>,
    logs: Vec<LogId>,
    // The oldest first.
    kept: Mutex<VecDeque<OrderedReader>>,
}

impl Feeds {
    /// Feeds of `logs`, which are those of every member and partition.
    pub(crate) fn new(store: Arc<Store>, logs: Vec<LogId>) -> Self {
        Self {
            store,
            logs,
            kept: Mutex::default(),
        }
    }

    /// Reads on from `after` up to `until`, which must be settled: at most `limit` events that match
    /// `filter`, and only about as many as memory should hold at once.
    ///
    /// # Errors
    /// When the log cannot be read, such as where it is damaged. Nothing is passed over: the same
    /// place is read again once it is mended.
    pub(crate) fn read(
        &self,
        after: OrderKey,
        until: Timestamp,
        filter: &EventFilter,
        limit: usize,
    ) -> Result<Page, ReadError> {
        let mut reader = self.reader(after);
        let mut page = Page {
            watermark: until,
            ..Page::default()
        };
        let (mut looked_at, mut bytes) = (0, 0);
        let mut bad = None;
        let read = reader.read(until, |_, open, event| {
            if looked_at == LOOKED_AT_MAX || page.events.len() == limit || bytes >= PAGE_BYTES_MAX {
                return ControlFlow::Break(());
            }
            looked_at += 1;
            if wants(filter, event.stream, event.event_type) {
                match open.record(event) {
                    Ok(event) => {
                        bytes += event.data.len() + event.metadata.len();
                        page.events.push(by_itself(event));
                    }
                    // A name that no node accepts: every region passes over it alike.
                    Err(error) => bad = Some((event.dot, error)),
                }
            }
            ControlFlow::Continue(())
        });
        if let Some((dot, error)) = bad {
            tracing::warn!(%dot, %error, "same-order: an event cannot be shown and is passed over");
        }
        let reached = read.map_err(unreadable)?;
        page.cursor = reader.cursor();
        page.at_end = reached == meridian_store::Reached::Bound;
        self.keep(reader);
        Ok(page)
    }

    fn reader(&self, after: OrderKey) -> OrderedReader {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|reader| reader.cursor() == after);
        match place.and_then(|place| kept.remove(place)) {
            Some(reader) => reader,
            None => self.store.ordered(self.logs.iter().copied(), after),
        }
    }

    fn keep(&self, mut reader: OrderedReader) {
        if reader.held_bytes() > KEPT_BYTES_MAX {
            reader.release();
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(reader);
    }
}

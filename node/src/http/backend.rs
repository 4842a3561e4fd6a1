//! What the HTTP door needs of the node behind it.

use std::collections::BTreeMap;

use meridian_client::{
    AppendError, AppendRequest, Appended, EventFilter, Limits, LiveCursor, ReadError, StreamPage,
    StreamRead,
};
use meridian_clock::{Epoch, RegionId, Timestamp};
use meridian_conflict::{CategoryPolicy, Route};
use meridian_event::{EventId, RecordedEvent, StreamId};
use tokio::sync::watch;

use crate::live;
use crate::metrics::Metrics;
use crate::node::unreadable;
use crate::seams::BoxFuture;
use crate::{DigestEntry, Node, NodeStatus};

/// A page of everything that is held here, in the order it arrived.
#[derive(Clone, Debug, Default)]
pub struct LiveEvents {
    /// The events, possibly none, each with the cursor that stands right after it.
    pub events: Vec<(LiveCursor, RecordedEvent)>,
    /// Where to read on. It moves even when the filter wanted nothing.
    pub cursor: LiveCursor,
    /// Whether there was nothing more when it was read.
    pub at_end: bool,
}

/// The node, as the HTTP door sees it; tests put their own in its place.
pub trait Backend: Send + Sync + 'static {
    /// Appends a batch wherever its stream is ordered.
    fn append(&self, request: AppendRequest) -> BoxFuture<'_, Result<Appended, AppendError>>;

    /// Reads a page of one stream, from what is held here.
    fn read_stream(&self, read: StreamRead) -> BoxFuture<'_, Result<StreamPage, ReadError>>;

    /// Reads a page of everything that is held here, without waiting for more.
    fn read_live(
        &self,
        after: LiveCursor,
        filter: EventFilter,
        limit: u32,
    ) -> BoxFuture<'_, Result<LiveEvents, ReadError>>;

    /// Changes whenever something more can be read.
    fn committed(&self) -> watch::Receiver<u64>;

    /// What this node knows of itself and its federation.
    fn status(&self) -> NodeStatus;

    /// What each origin log holds here.
    fn digest(&self) -> Vec<DigestEntry>;

    /// All member regions and their names.
    fn regions(&self) -> BTreeMap<RegionId, String>;

    /// The epoch that homes are in.
    fn epoch(&self) -> Epoch;

    /// Who orders `stream`.
    fn route(&self, stream: &StreamId) -> Route;

    /// The policies that were set, by category.
    fn categories(&self) -> BTreeMap<String, CategoryPolicy>;

    /// The largest requests that are taken.
    fn limits(&self) -> Limits;

    /// Whether the node can do its work, or what is in the way.
    ///
    /// # Errors
    /// The reason why it cannot.
    fn ready(&self) -> Result<(), String>;

    /// What the node counts, with everything that can be asked for at any time brought up to date.
    fn metrics(&self) -> &Metrics;

    /// Brings up to date what only changes the metrics when it is asked for.
    fn refresh_metrics(&self);

    /// An id for an event that came without one.
    fn event_id(&self) -> EventId;

    /// The physical clock, for the header `Date`.
    fn wall_clock(&self) -> Timestamp;
}

impl Backend for Node {
    fn append(&self, request: AppendRequest) -> BoxFuture<'_, Result<Appended, AppendError>> {
        Box::pin(Self::append(self, request))
    }

    fn read_stream(&self, read: StreamRead) -> BoxFuture<'_, Result<StreamPage, ReadError>> {
        Box::pin(async move { Self::read_stream(self, &read) })
    }

    fn read_live(
        &self,
        after: LiveCursor,
        filter: EventFilter,
        limit: u32,
    ) -> BoxFuture<'_, Result<LiveEvents, ReadError>> {
        Box::pin(async move {
            let after = self.read_cursor(&after)?;
            let page = live::read_live(self.store(), after, &filter, limit as usize)
                .map_err(unreadable)?;
            let written = |cursor| LiveCursor(self.cursors().write(cursor));
            Ok(LiveEvents {
                events: page
                    .events
                    .into_iter()
                    .map(|(cursor, event)| (written(cursor), event))
                    .collect(),
                cursor: written(page.cursor),
                at_end: page.at_end,
            })
        })
    }

    fn committed(&self) -> watch::Receiver<u64> {
        Self::committed(self)
    }

    fn status(&self) -> NodeStatus {
        Self::status(self)
    }

    fn digest(&self) -> Vec<DigestEntry> {
        Self::digest(self)
    }

    fn regions(&self) -> BTreeMap<RegionId, String> {
        self.region_names().clone()
    }

    fn epoch(&self) -> Epoch {
        // Homes do not move yet.
        Epoch::FIRST
    }

    fn route(&self, stream: &StreamId) -> Route {
        self.policies().route(stream)
    }

    fn categories(&self) -> BTreeMap<String, CategoryPolicy> {
        self.config().categories.clone()
    }

    fn limits(&self) -> Limits {
        self.config().limits
    }

    fn ready(&self) -> Result<(), String> {
        Self::ready(self)
    }

    fn metrics(&self) -> &Metrics {
        Self::metrics(self)
    }

    fn refresh_metrics(&self) {
        Self::refresh_metrics(self);
    }

    fn event_id(&self) -> EventId {
        let mut bytes = [0; 16];
        self.random().fill(&mut bytes);
        EventId::from_random(bytes)
    }

    fn wall_clock(&self) -> Timestamp {
        self.hlc().physical_now()
    }
}

//! What a reader asks, and what it is told.

use meridian_clock::RegionId;
use meridian_event::{Category, EventType, RecordedEvent, StreamId};
use serde::{Deserialize, Serialize};

/// Which way through a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Oldest first.
    #[default]
    Forwards,
    /// Newest first.
    Backwards,
}

/// A page of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRead {
    /// The stream.
    pub stream: StreamId,
    /// The first event wanted. For a stream with a home its revision; for one that several regions
    /// write, its place in the total order of that stream. [`StreamRead::LAST`] reads from the end.
    pub from: u64,
    /// Which way to go from there.
    pub direction: Direction,
    /// The most events wanted; a page may hold fewer.
    pub limit: u32,
}

impl StreamRead {
    /// Beyond every event: where reading backwards begins.
    pub const LAST: u64 = u64::MAX;
}

/// A page of one stream's events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPage {
    /// The events, in the direction asked for.
    pub events: Vec<RecordedEvent>,
    /// Where to read on: the next `from`. `None` when reading backwards has reached the beginning.
    pub next: Option<u64>,
    /// Whether there was nothing more in this direction when it was read.
    pub end: bool,
}

/// A place in one node's order of arrival. Opaque, and good only at the region that gave it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LiveCursor(pub String);

/// Which events are wanted; an empty filter wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventFilter {
    /// Only of this category.
    pub category: Option<Category>,
    /// Only of this type.
    pub event_type: Option<EventType>,
}

impl EventFilter {
    /// Whether `event` is wanted.
    pub fn wants(&self, stream: &StreamId, event_type: &EventType) -> bool {
        self.category
            .as_ref()
            .is_none_or(|category| category.as_str() == stream.category())
            && self
                .event_type
                .as_ref()
                .is_none_or(|wanted| wanted == event_type)
    }
}

/// A page of everything a node holds, in the order it arrived there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRead {
    /// Read on after this; the empty cursor stands before the first event.
    pub after: LiveCursor,
    /// Which events are wanted.
    pub filter: EventFilter,
    /// The most events wanted; a page may hold fewer.
    pub limit: u32,
    /// How long to wait for an event when there is none yet.
    pub wait_ms: u32,
}

/// A page of events in order of arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivePage {
    /// The events, possibly none.
    pub events: Vec<RecordedEvent>,
    /// Where to read on. It moves even when the filter wanted nothing.
    pub cursor: LiveCursor,
    /// Whether there was nothing more when it was read.
    pub at_end: bool,
}

/// Why a read was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read now. Try again later, or in another region.
    #[error("cannot read: {reason}; try again in {retry_after_ms} ms")]
    Unavailable {
        /// What is in the way.
        reason: String,
        /// When trying again makes sense.
        retry_after_ms: u64,
    },
    /// What was asked makes no sense.
    #[error("the request is not valid: {reason}")]
    Invalid {
        /// What to change.
        reason: String,
    },
    /// The region that was asked for does not exist. Look at the topology.
    #[error("region {region} is not a member of this federation; name a member")]
    UnknownRegion {
        /// The region asked for.
        region: RegionId,
    },
}

impl ReadError {
    /// A stable name for this kind of error, the same in every interface.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "unavailable",
            Self::Invalid { .. } => "invalid",
            Self::UnknownRegion { .. } => "not_found",
        }
    }
}

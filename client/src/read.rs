//! What a reader asks, and what it is told.

use std::fmt;

use meridian_clock::{OrderKey, RegionId, Timestamp};
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

/// How settled events must be before they are read in the one order.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum SettledTier {
    /// Nothing can still come before them in this region: the same order in every region.
    #[default]
    Stable,
    /// Every member region has come as far: for what cannot be taken back.
    Final,
}

impl fmt::Display for SettledTier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Stable => "stable",
            Self::Final => "final",
        })
    }
}

/// A page of the one order. Its cursor is an order key and good in every region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledRead {
    /// How settled the events must be.
    pub tier: SettledTier,
    /// Read on after this; [`OrderKey::ZERO`] stands before the first event.
    pub after: OrderKey,
    /// Which events are wanted.
    pub filter: EventFilter,
    /// The most events wanted; a page may hold fewer.
    pub limit: u32,
    /// How long to wait for an event when none is settled yet.
    pub wait_ms: u32,
}

/// A page of events in the one order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledPage {
    /// The events, possibly none.
    pub events: Vec<RecordedEvent>,
    /// Where to read on, in whichever region. It moves even when the filter wanted nothing.
    pub cursor: OrderKey,
    /// Up to here the tier was settled when it was read.
    pub watermark: Timestamp,
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
    /// The region does not hold yet what the session has seen. Try again later, or in another one.
    #[error(
        "this region is behind what the session has seen: {reason}; try again in {retry_after_ms} \
         ms, or in another region"
    )]
    Stale {
        /// What is missing, and where it comes from.
        reason: String,
        /// When trying again makes sense.
        retry_after_ms: u64,
    },
    /// The read was for the stream's home, and that is another region. Send it there.
    #[error("the stream's home is region {home}; read it there")]
    NotHome {
        /// The home.
        home: RegionId,
    },
}

impl ReadError {
    /// A stable name for this kind of error, the same in every interface.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "unavailable",
            Self::Invalid { .. } => "invalid",
            Self::UnknownRegion { .. } => "not_found",
            Self::Stale { .. } => "stale",
            Self::NotHome { .. } => "not_home",
        }
    }
}

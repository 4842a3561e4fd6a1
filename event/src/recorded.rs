//! An event before and after it is written.

use bytes::Bytes;
use meridian_clock::{Dot, OrderKey, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{EventId, EventType, Revision, StreamId};

/// An event that a client asks to append.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvent {
    /// Given by the client, or made for it: a repeated id never appends twice.
    pub id: EventId,
    /// What happened.
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// JSON text, kept verbatim.
    pub data: Bytes,
    /// JSON text, kept verbatim; empty when there is none.
    pub metadata: Bytes,
}

impl NewEvent {
    /// What this event weighs against the size limits, in bytes.
    pub fn weight_bytes(&self) -> usize {
        self.data.len() + self.metadata.len() + self.event_type.as_str().len() + 16
    }
}

/// An event as it was written, the same in every region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedEvent {
    /// Its identity in the federation.
    pub dot: Dot,
    /// When its batch was stamped.
    pub timestamp: Timestamp,
    /// The stream it belongs to.
    pub stream: StreamId,
    /// Its place in the stream.
    pub revision: Revision,
    /// The id its writer gave it.
    pub id: EventId,
    /// What happened.
    pub event_type: EventType,
    /// JSON text, verbatim.
    pub data: Bytes,
    /// JSON text, verbatim; empty when there is none.
    pub metadata: Bytes,
}

impl RecordedEvent {
    /// Its place in the one total order.
    pub fn order_key(&self) -> OrderKey {
        OrderKey {
            timestamp: self.timestamp,
            region: self.dot.origin,
            partition: self.dot.partition,
            position: self.dot.position,
        }
    }
}

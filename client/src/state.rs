//! What a stream of a merged category comes to, as a node tells it.

use meridian_clock::OrderKey;
use meridian_conflict::Kind;
use meridian_event::StreamId;
use serde::{Deserialize, Serialize};

/// What a stream comes to: of its operations, or of its last write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRead {
    /// The stream, of a category of mode `crdt` or `lww`.
    pub stream: StreamId,
    /// Which of its events count.
    pub tier: StateTier,
}

/// Which events of a stream its state counts.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum StateTier {
    /// All that is held in the region that is asked.
    #[default]
    Live,
    /// What is settled: the same in every region that has come as far.
    Stable,
}

/// What a stream comes to in the region that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// How its operations merge.
    pub kind: Kind,
    /// What it shows, as JSON: a number, a list, an object, whatever its kind has. A `bounded-counter` names regions
    /// by their numbers.
    pub json: String,
    /// The last event of it that counts, in the one order; zero if none does.
    pub order_key: OrderKey,
    /// Hash of what it means, the same in all regions that fold the same operations.
    pub digest: [u8; 32],
    /// How many events of it are no operations on it, and do not count.
    pub skipped: u64,
}

impl StreamState {
    /// What it shows.
    ///
    /// # Errors
    /// When the node sent something that is not JSON.
    pub fn value(&self) -> Result<serde_json::Value, serde_json::Error> {
        serde_json::from_str(&self.json)
    }
}

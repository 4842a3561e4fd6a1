//! Waiting for one event to be settled, in a named region.

use meridian_clock::{Dot, RegionId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::SettledTier;

/// An event that is waited for until it is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitSettled {
    /// The event. It need not have arrived in that region yet.
    pub dot: Dot,
    /// How settled it must be.
    pub tier: SettledTier,
    /// Where; `None` is the region that is asked.
    pub region: Option<RegionId>,
    /// How long to wait.
    pub wait_ms: u32,
}

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaited {
    /// Whether the event is settled there.
    pub reached: bool,
    /// Up to where the tier is settled there.
    pub watermark: Timestamp,
    /// When the event was stamped; `None` when it has not arrived there.
    pub timestamp: Option<Timestamp>,
    /// The region that answers.
    pub region: RegionId,
    /// How long it waited.
    pub waited_ms: u64,
}

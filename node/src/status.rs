//! What a node says about itself and its federation.

use meridian_clock::{LogId, RegionId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A region of the federation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberStatus {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Where its node answers HTTP.
    pub http: String,
    /// Where its node takes links and clients over QUIC.
    pub quic: String,
}

/// One origin log as it is held here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogStatus {
    /// The name of the region that writes it.
    pub origin: String,
    /// The partition.
    pub partition: u16,
    /// The last position that is durable here.
    pub position: u64,
    /// The last timestamp that is durable here, decimal.
    pub timestamp: String,
    /// For each other region that said so, the last position that is durable there.
    pub held_by: Vec<(String, u64)>,
}

/// The talk with one other region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LinkStatus {
    /// The other region's name.
    pub region: String,
    /// We receive from it.
    pub receiving: bool,
    /// It receives from us.
    pub sending: bool,
    /// Milliseconds since it was last heard; `None` if never.
    pub last_heard_ms: Option<u64>,
    /// The connection's round-trip time in milliseconds.
    pub rtt_ms: Option<f64>,
    /// How far its wall clock is ahead of ours, in milliseconds.
    pub clock_offset_ms: Option<f64>,
    /// How many events of its own logs it holds that are not yet durable here.
    pub lag_events: u64,
    /// What stands between the two regions agreeing, if anything.
    pub alarm: Option<String>,
}

/// The answer of `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// This node's region.
    pub region: String,
    /// The federation's id.
    pub federation: String,
    /// The build's version.
    pub version: String,
    /// The federation's partition count.
    pub partitions: u16,
    /// All regions.
    pub members: Vec<MemberStatus>,
    /// Links to every other region.
    pub links: Vec<LinkStatus>,
    /// Every origin log held here.
    pub logs: Vec<LogStatus>,
    /// How many events are durable here.
    pub events: u64,
    /// Why appends are refused now, if they are.
    pub refusing: Option<String>,
    /// Ranges of the log that are damaged and not served.
    pub damaged: Vec<String>,
}

/// One origin log's content in brief: equal position and chain mean equal bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DigestEntry {
    /// The name of the region that writes it.
    pub origin: String,
    /// The partition.
    pub partition: u16,
    /// The last position that is durable here.
    pub position: u64,
    /// The chain hash up to there, hexadecimal.
    pub chain: String,
}

/// Region names for everything that is shown to people.
pub(crate) struct Names(pub(crate) std::collections::BTreeMap<RegionId, String>);

impl Names {
    pub(crate) fn of(&self, region: RegionId) -> String {
        self.0
            .get(&region)
            .cloned()
            .unwrap_or_else(|| format!("region-{region}"))
    }

    pub(crate) fn log(&self, log: LogId) -> String {
        format!("{}/{}", self.of(log.origin), log.partition)
    }
}

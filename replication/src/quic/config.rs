//! What links are given, and what they say about themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_clock::{Incarnation, LogId, Position, Promise, RegionId};
use meridian_store::Generations;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::frame::{Lane, Stable};
use crate::link::PullerTimings;

/// A region of the federation, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub id: RegionId,
    /// Its name, which must be the one in its certificate.
    pub name: String,
    /// Where its node listens for QUIC.
    pub addr: SocketAddr,
}

/// Intervals and time-outs of the links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// How often promises are sent to who pulls from us.
    pub heartbeat: Duration,
    /// How often vectors are exchanged.
    pub vector: Duration,
    /// How often the puller looks again at what it decided.
    pub tick: Duration,
    /// The longest that connecting, with its handshakes, may take.
    pub connect: Duration,
    /// The longest that a peer may be silent on an open link before it is closed and dialled anew.
    pub silent: Duration,
    /// The longest that one write or one answer may take.
    pub stuck: Duration,
    /// The first wait before dialling again; doubles up to `redial_max`, with jitter.
    pub redial: Duration,
    /// The longest wait before dialling again after the network failed.
    pub redial_max: Duration,
    /// The wait before dialling again a peer that refused us, or that we refused.
    pub refused: Duration,
    /// A bulk connection that carried nothing for this long is closed.
    pub bulk_idle: Duration,
    /// How often damaged ranges are looked for and fetched again.
    pub repair: Duration,
    /// From whom to pull.
    pub puller: PullerTimings,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            vector: Duration::from_secs(1),
            tick: Duration::from_millis(100),
            connect: Duration::from_secs(3),
            silent: Duration::from_secs(4),
            stuck: Duration::from_secs(10),
            redial: Duration::from_millis(100),
            redial_max: Duration::from_secs(2),
            refused: Duration::from_secs(5),
            bulk_idle: Duration::from_secs(10),
            repair: Duration::from_secs(2),
            puller: PullerTimings::default(),
        }
    }
}

/// Who settles the order, and which of their blocks count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The number of the last decision that changed who is waited for; zero while all regions ever are.
    pub version: u64,
    /// Whose promises the order waits for; `None` for all.
    pub counted: Option<BTreeSet<RegionId>>,
    /// The generations of the logs of regions that were fenced.
    pub generations: BTreeMap<LogId, Generations>,
    /// Why this node shows nothing more of the settled order, if it was fenced itself.
    pub stopped: Option<String>,
}

/// Told how long after its stamp each block became durable here, by origin.
pub type DelayObserver = Arc<dyn Fn(RegionId, Duration) + Send + Sync>;

/// Asked at each heartbeat what this node promises of its own logs.
pub type PromiseSource = Arc<dyn Fn() -> Vec<Promise> + Send + Sync>;

/// Answers what a peer asks of the control plane.
pub type ControlDoor = Arc<dyn Fn(RegionId, Bytes) -> ControlAnswer + Send + Sync>;
/// The answer, when it is there.
pub type ControlAnswer = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// Who we are, who the others are, and how patient to be.
#[derive(Clone)]
pub struct LinksConfig {
    /// The federation.
    pub federation: Uuid,
    /// Our region.
    pub region: RegionId,
    /// The life of our own logs.
    pub incarnation: Incarnation,
    /// The federation's partition count.
    pub partitions: u16,
    /// All members, our own region among them.
    pub members: Vec<Member>,
    /// Those that are gone for good: their logs stay, and nobody dials them.
    pub left: BTreeSet<RegionId>,
    /// How far another clock may be from ours.
    pub max_offset: Duration,
    /// Intervals and time-outs.
    pub timings: Timings,
    /// How many bytes of blocks may be underway to us or wait for our disk, all live
    /// subscriptions of a peer together.
    pub live_window_bytes: u64,
    /// The same for the bulk subscriptions of all peers together.
    pub bulk_window_bytes: u64,
    /// Told of each block's delay, for metrics.
    pub delays: Option<DelayObserver>,
    /// What an earlier life of this node had heard.
    pub remembered: Remembered,
    /// Who takes part, as far as this node knew when it started.
    pub membership: Membership,
    /// Answers the control planes of peers; without it they are told to ask elsewhere.
    pub control: Option<ControlDoor>,
}

/// What is known of the settled order, to be kept over a restart: watermarks would otherwise begin
/// anew, and stay down while a member is away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The newest promise of each log whose prefix was held here.
    pub promises: Vec<Promise>,
    /// What each region was heard to have settled.
    pub settled: Vec<Stable>,
}

impl LinksConfig {
    /// A configuration with the intervals and windows of DESIGN §6.
    pub fn new(
        federation: Uuid,
        region: RegionId,
        incarnation: Incarnation,
        partitions: u16,
        members: Vec<Member>,
    ) -> Self {
        Self {
            federation,
            region,
            incarnation,
            partitions,
            members,
            left: BTreeSet::new(),
            max_offset: Duration::from_millis(500),
            timings: Timings::default(),
            live_window_bytes: 16 << 20,
            bulk_window_bytes: 48 << 20,
            delays: None,
            remembered: Remembered::default(),
            membership: Membership::default(),
            control: None,
        }
    }
}

impl fmt::Debug for LinksConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("LinksConfig")
            .field("federation", &self.federation)
            .field("region", &self.region)
            .field("incarnation", &self.incarnation)
            .field("partitions", &self.partitions)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

/// One log being pulled from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionStatus {
    /// The log.
    pub log: LogId,
    /// From whom it is pulled: its origin, or a relay.
    pub via: RegionId,
    /// Over which connection.
    pub lane: Lane,
    /// How far it is durable here.
    pub position: Position,
    /// How many events `via` is known to hold beyond that.
    pub lag_positions: u64,
    /// How old our last event of it is, if `via` holds more; else zero.
    pub lag: Duration,
}

/// The talk with one peer.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerStatus {
    /// The peer.
    pub region: RegionId,
    /// Its name.
    pub name: String,
    /// We pull from it.
    pub connected_out: bool,
    /// It pulls from us.
    pub connected_in: bool,
    /// How long ago it was last heard, if ever.
    pub last_heard: Option<Duration>,
    /// The round-trip time of the connection on which we pull.
    pub rtt: Option<Duration>,
    /// How far its wall clock is ahead of ours, in nanoseconds.
    pub clock_offset_nanos: Option<i64>,
    /// What we pull from it.
    pub subscriptions: Vec<SubscriptionStatus>,
    /// How many events of its own logs it is known to hold that are not durable here.
    pub lag_positions: u64,
    /// Bytes of blocks received from it since start.
    pub received_bytes: u64,
    /// Bytes of blocks sent to it since start.
    pub sent_bytes: u64,
    /// How often we connected to it since start.
    pub connects: u64,
    /// Why it cannot be pulled from now, if it cannot.
    pub last_error: Option<String>,
    /// What an operator must know: diverged copies and the like.
    pub alarms: Vec<String>,
}

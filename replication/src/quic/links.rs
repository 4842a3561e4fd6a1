//! The links of one node to all its peers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use meridian_client::tls::PeerName;
use meridian_clock::{Hlc, LogId, Promise, RegionId, SkewVerdict, VersionVector};
use meridian_store::Store;
use tokio::sync::watch;

use super::{Endpoint, LinksConfig, PeerStatus, PromiseSource};
use crate::link::Alarm;

/// How far each other region holds each log.
pub type HeldByRegion = Arc<BTreeMap<RegionId, VersionVector>>;

/// The links of one node to all its peers: dials each of them and pulls what they hold, serves what
/// they pull from us.
pub struct Links {
    _private: (),
}

impl fmt::Debug for Links {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Links").finish_non_exhaustive()
    }
}

impl Links {
    /// Begins to dial every member but ourselves.
    ///
    /// `promises` is asked at each heartbeat what we promise of our own logs. `rng_seed` seeds the
    /// jitter of redialling.
    pub fn start(
        config: LinksConfig,
        store: Arc<Store>,
        hlc: Arc<Hlc>,
        endpoint: Endpoint,
        promises: PromiseSource,
        rng_seed: u64,
    ) -> Arc<Self> {
        let _ = (config, store, hlc, endpoint, promises, rng_seed);
        todo!()
    }

    /// Takes over a connection that [`Endpoint::accept`] gave as a link.
    pub fn accept(&self, connection: quinn::Connection, peer: PeerName) {
        let _ = (connection, peer);
        todo!()
    }

    /// This node begins to write its own logs now: from here on they are not pulled back from
    /// peers any more. To be called once the amnesia guard has done its work, see
    /// [`Links::vectors_seen`].
    pub fn writing_own(&self) {
        todo!()
    }

    /// How far each *other* region is known to hold each log durably: acknowledged to us, said by
    /// itself, or said of it by others while it is not connected.
    pub fn held(&self) -> watch::Receiver<HeldByRegion> {
        todo!()
    }

    /// What each peer last said, itself, to hold. A peer that was not heard since this start is not
    /// in it.
    pub fn vectors_seen(&self) -> watch::Receiver<HeldByRegion> {
        todo!()
    }

    /// The talk with each peer, in ascending order.
    pub fn peers(&self) -> Vec<PeerStatus> {
        todo!()
    }

    /// What operators must know about single logs.
    pub fn alarms(&self) -> Vec<Alarm> {
        todo!()
    }

    /// The newest promise of each log whose prefix is durable here, our own included.
    pub fn promises(&self) -> BTreeMap<LogId, Promise> {
        todo!()
    }

    /// How long after its stamp each block became durable here, in microseconds, since start. It
    /// compares two wall clocks, so it is as good as they agree.
    pub fn delays(&self) -> hdrhistogram::Histogram<u64> {
        todo!()
    }

    /// Whether our wall clock agrees with our peers'. The links themselves stop and resume the
    /// clock's stamping by it.
    pub fn skew(&self) -> SkewVerdict {
        todo!()
    }

    /// Closes all links and waits until their tasks have ended.
    pub async fn shutdown(&self) {
        todo!()
    }
}

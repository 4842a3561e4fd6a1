//! The links of one node to all its peers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use meridian_client::tls::PeerName;
use meridian_clock::{Hlc, LogId, Position, Promise, RegionId, SkewVerdict, VersionVector};
use meridian_store::Store;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::ask::{self, AskError};
use super::endpoint::{close, code};
use super::state::{Shared, State};
use super::{
    Endpoint, LinksConfig, Membership, PeerStatus, PromiseSource, Remembered, SubscriptionStatus,
    dial, repair, serve,
};
use crate::frame::{Agreed, Lane};
use crate::link::{Alarm, Disagreement, Marks, PartitionMarks, Subscription};

// Tasks end at their next await; this is for a disk that hangs.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);

/// How far each other region holds each log.
pub type HeldByRegion = Arc<BTreeMap<RegionId, VersionVector>>;

/// The links of one node to all its peers: dials each of them and pulls what they hold, serves what
/// they pull from us. Dropping it ends them too, without waiting.
pub struct Links(Arc<Shared>);

impl fmt::Debug for Links {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Links").field(&self.0.config).finish()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.0.cancel.cancel();
    }
}

impl Links {
    /// Begins to dial every member but ourselves and those that are gone. Must be called on a tokio runtime.
    ///
    /// `promises` is asked at each heartbeat what we promise of our own logs. `rng_seed` seeds the
    /// jitter of redialling and names this start of the node, so it must be another one each time.
    pub fn start(
        config: LinksConfig,
        store: Arc<Store>,
        hlc: Arc<Hlc>,
        endpoint: Endpoint,
        promises: PromiseSource,
        rng_seed: u64,
    ) -> Arc<Self> {
        let shared = Shared::new(config, store, hlc, endpoint, promises, rng_seed);
        let shared = Arc::new(shared);
        for member in &shared.config.members {
            let is_gone = shared.config.left.contains(&member.id);
            if member.id != shared.config.region && !is_gone {
                let dialling = dial::run(Arc::clone(&shared), member.clone());
                shared.tracker.spawn(dialling);
            }
        }
        shared.tracker.spawn(tick(Arc::clone(&shared)));
        shared.tracker.spawn(settle(Arc::clone(&shared)));
        shared.tracker.spawn(follow_store(Arc::clone(&shared)));
        shared.tracker.spawn(repair::run(Arc::clone(&shared)));
        Arc::new(Self(shared))
    }

    /// Takes over a connection that [`Endpoint::accept`] gave as a link.
    pub fn accept(&self, connection: quinn::Connection, peer: PeerName) {
        let shared = Arc::clone(&self.0);
        self.0.tracker.spawn(serve::run(shared, connection, peer));
    }

    /// This node begins to write its own logs now: from here on they are not pulled back from
    /// peers any more. To be called once the amnesia guard has done its work, see
    /// [`Links::vectors_seen`].
    pub fn writing_own(&self) {
        self.0.writing_own();
    }

    /// Who takes part has changed, or which blocks count. The store must know the latter already.
    pub fn set_membership(&self, membership: &Membership) {
        self.0.set_membership(membership);
    }

    /// Asks the control plane of `peer`, and waits for the answer so long.
    ///
    /// # Errors
    /// When there is no answer. The peer may have acted on the question all the same.
    pub async fn ask(
        &self,
        peer: RegionId,
        question: Bytes,
        within: Duration,
    ) -> Result<Bytes, AskError> {
        ask::ask(&self.0, peer, question, within).await
    }

    /// How far each *other* region is known to hold each log durably: acknowledged to us, said by
    /// itself, or said of it by others while it is not connected.
    pub fn held(&self) -> watch::Receiver<HeldByRegion> {
        self.0.held.subscribe()
    }

    /// What each peer last said, itself, to hold. A peer that was not heard since this start is not
    /// in it.
    pub fn vectors_seen(&self) -> watch::Receiver<HeldByRegion> {
        self.0.seen.subscribe()
    }

    /// The talk with each peer, in ascending order.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let now = self.0.now();
        let state = self.0.lock();
        let alarms: Vec<Alarm> = state.puller.alarms().collect();
        state
            .peers
            .iter()
            .map(|(region, peer)| PeerStatus {
                region: *region,
                name: peer.member.name.clone(),
                connected_out: peer.live.is_some(),
                connected_in: peer.inbound.contains_key(&Lane::Live),
                last_heard: peer.silence(now),
                rtt: peer.live.as_ref().map(quinn::Connection::rtt),
                clock_offset_nanos: state.skew.offset_nanos(*region),
                subscriptions: state
                    .puller
                    .subscriptions()
                    .filter(|subscription| subscription.via == *region)
                    .map(|subscription| self.subscription(&state, subscription))
                    .collect(),
                lag_positions: self
                    .0
                    .logs
                    .keys()
                    .filter(|log| log.origin == *region)
                    .map(|log| self.lag(&state, *log, *region))
                    .sum(),
                received_bytes: peer.received_bytes,
                sent_bytes: peer.sent_bytes,
                connects: peer.connects,
                last_error: peer.last_error.clone(),
                alarms: alarms
                    .iter()
                    .filter(|alarm| alarm.peer == *region)
                    .map(Alarm::to_string)
                    .collect(),
            })
            .collect()
    }

    fn position(&self, log: LogId) -> Position {
        self.0
            .logs
            .get(&log)
            .map_or(Position::ZERO, |log| log.head.borrow().position)
    }

    // How many events `peer` is known to hold that are not durable here.
    fn lag(&self, state: &State, log: LogId, peer: RegionId) -> u64 {
        let known = state.puller.known_position(peer, log).unwrap_or_default();
        known.0.saturating_sub(self.position(log).0)
    }

    fn subscription(&self, state: &State, subscription: Subscription) -> SubscriptionStatus {
        let Subscription { log, via, lane, .. } = subscription;
        let lag_positions = self.lag(state, log, via);
        let stamped = self
            .0
            .logs
            .get(&log)
            .map_or_else(Default::default, |log| log.head.borrow().timestamp);
        SubscriptionStatus {
            log,
            via,
            lane,
            position: self.position(log),
            lag_positions,
            lag: if lag_positions == 0 {
                Duration::ZERO
            } else {
                self.0.hlc.physical_now().after(stamped)
            },
        }
    }

    /// What operators must know about single logs.
    pub fn alarms(&self) -> Vec<Alarm> {
        self.0.lock().puller.alarms().collect()
    }

    /// The newest promise of each log whose prefix is durable here, our own included.
    pub fn promises(&self) -> BTreeMap<LogId, Promise> {
        self.0.lock().promises.fulfilled()
    }

    /// How far the order is settled; changes whenever a watermark rises.
    pub fn marks(&self) -> watch::Receiver<Arc<Marks>> {
        self.0.marks.subscribe()
    }

    /// The watermarks of each partition, and who holds them back.
    pub fn watermarks(&self) -> Vec<PartitionMarks> {
        let now = self.0.now();
        self.0.lock().watermarks.partitions(now)
    }

    /// The logs whose newest promise waits for events that are not here yet: what is held, and what
    /// the promise asks for.
    pub fn waiting(&self) -> Vec<(Position, Promise)> {
        self.0.lock().promises.waiting().collect()
    }

    /// What should be kept over a restart; see [`LinksConfig::remembered`].
    pub fn remember(&self) -> Remembered {
        let state = self.0.lock();
        Remembered {
            promises: state.promises.fulfilled().into_values().collect(),
            settled: state.watermarks.said().into_iter().map(|it| it.0).collect(),
        }
    }

    /// This node has chained the settled order of a partition up to a cut; compared with what peers
    /// come to.
    pub fn agreed(&self, agreed: Agreed) {
        self.0.agreed_here(agreed);
    }

    /// What an earlier life of this node had come to; to be said before anything else is.
    pub fn agreed_before(&self, earlier: Agreed) {
        self.0.lock().agreements.resume(earlier);
    }

    /// Where regions settled different events, as far as is known.
    pub fn disagreements(&self) -> Vec<Disagreement> {
        self.0.lock().disagreements.values().copied().collect()
    }

    /// How long after its stamp each block became durable here, in microseconds, since start. It
    /// compares two wall clocks, so it is as good as they agree.
    pub fn delays(&self) -> hdrhistogram::Histogram<u64> {
        self.0
            .delays
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether our wall clock agrees with our peers'. The links themselves stop and resume the
    /// clock's stamping by it.
    pub fn skew(&self) -> SkewVerdict {
        self.0.lock().skew.verdict()
    }

    /// Closes all links and waits until their tasks have ended.
    pub async fn shutdown(&self) {
        self.0.cancel.cancel();
        {
            let state = self.0.lock();
            for peer in state.peers.values() {
                let bulk = peer.bulk.try_lock().ok();
                let bulk = bulk.as_ref().and_then(|bulk| bulk.as_ref());
                let open = peer
                    .live
                    .iter()
                    .chain(bulk.map(|bulk| &bulk.connection))
                    .chain(peer.inbound.values());
                for connection in open {
                    close(connection, code::DONE, "shutting down");
                }
            }
        }
        self.0.tracker.close();
        if timeout(SHUTDOWN_MAX, self.0.tracker.wait()).await.is_err() {
            tracing::warn!("links did not end in time");
        }
    }
}

async fn tick(shared: Arc<Shared>) {
    let mut every = interval(shared.config.timings.tick);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            _ = every.tick() => shared.tick(),
        }
    }
}

/// Moves the watermarks of a node that nobody pulls from, too.
async fn settle(shared: Arc<Shared>) {
    let mut every = interval(shared.config.timings.heartbeat);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            _ = every.tick() => drop(shared.settle()),
        }
    }
}

/// Wakes whoever waits for a log to grow, after each commit.
async fn follow_store(shared: Arc<Shared>) {
    let mut commits = shared.store.committed();
    loop {
        shared.committed();
        let changed = tokio::select! {
            () = shared.cancel.cancelled() => return,
            changed = commits.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

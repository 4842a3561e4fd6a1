//! What all tasks of the links share.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use hdrhistogram::Histogram;
use meridian_clock::{
    ClockSample, Epoch, Hlc, Incarnation, LogId, Merge, PartitionId, Position, Promise, RegionId,
    SkewGuard, SkewVerdict, Timestamp, VersionVector,
};
use meridian_points::{Bug, planted, reached};
use meridian_store::{Generations, LogHead, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::endpoint::{close, code};
use super::links::HeldByRegion;
use super::wire::{MessageReader, MessageWriter};
use super::{Endpoint, LinksConfig, Member, Membership, PromiseSource, pull};
use crate::frame::{
    Agreed, AgreementUnder, ClockEcho, Head, Heartbeat, Lane, SettledUnder, Start, Taken, Vector,
    all_logs,
};
use crate::link::handshake::Credentials;
use crate::link::{
    Action, Agreements, Disagreement, Ended, Held, Instant, Jitter, Marks, Promises, Puller,
    Subscription, Watermarks,
};

impl From<LogHead> for Head {
    fn from(head: LogHead) -> Self {
        Self {
            log: head.log,
            incarnation: head.incarnation,
            epoch: head.epoch,
            position: head.position,
            chain: head.chain,
            timestamp: head.timestamp,
        }
    }
}

// Whether a copy that ends at `head` may have blocks that count and are missing here.
fn offers(generations: &Generations, head: &Head, held: Position) -> bool {
    let generation = head.epoch.major.saturating_sub(Epoch::FIRST.major);
    let generation = usize::try_from(generation).unwrap_or(usize::MAX);
    match generations.cuts.get(generation) {
        Some(cut) => head.position <= *cut || held < *cut,
        None => generation == generations.cuts.len() && !generations.sealed,
    }
}

// How much of a copy that ends at `position`, in `epoch`, counts.
fn counted(generations: &Generations, epoch: Epoch, position: Position) -> Position {
    let generation = epoch.major.saturating_sub(Epoch::FIRST.major);
    let generation = usize::try_from(generation).unwrap_or(usize::MAX);
    match generations.cuts.get(generation) {
        Some(cut) => position.min(*cut),
        None => position,
    }
}

/// More than stamps can rise by counting between two promises: a millisecond is four million counts.
const COUNTED: Duration = Duration::from_millis(10);

/// An open connection for catching up. Its control stream says nothing after the handshake, but its
/// end would be taken for the connection's.
#[derive(Debug)]
pub(crate) struct BulkConnection {
    pub(crate) connection: quinn::Connection,
    /// Which start of the peer it leads to.
    pub(crate) start: Option<u64>,
    pub(crate) _control: (MessageReader, MessageWriter),
}

/// One log's place in the driver.
pub(crate) struct LogState {
    /// How far it is durable here.
    pub(crate) head: watch::Sender<Head>,
    /// Held by whoever pulls it, so that there is only ever one.
    pub(crate) gate: Arc<tokio::sync::Mutex<()>>,
}

/// A peer as the driver sees it.
pub(crate) struct Peer {
    pub(crate) member: Member,
    /// The connection on which we pull, once its handshake is done.
    pub(crate) live: Option<quinn::Connection>,
    /// Which start of the peer that leads to.
    pub(crate) live_start: Option<u64>,
    /// The protocol version spoken on it.
    pub(crate) live_version: u16,
    /// The start of the peer that was last heard of. Read while a block of another one would be
    /// given to the store, so that none is after this has changed.
    pub(crate) start: Arc<RwLock<Option<u64>>>,
    /// The connection on which we catch up; locked while it is being opened.
    pub(crate) bulk: Arc<tokio::sync::Mutex<Option<BulkConnection>>>,
    bulk_used_at: Instant,
    /// The connections on which it pulls from us.
    pub(crate) inbound: BTreeMap<Lane, quinn::Connection>,
    last_heard: Option<Instant>,
    echo: Option<ClockEcho>,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) connects: u64,
    pub(crate) last_error: Option<String>,
}

impl Peer {
    fn new(member: Member) -> Self {
        Self {
            member,
            live: None,
            live_start: None,
            live_version: 0,
            start: Arc::default(),
            bulk: Arc::default(),
            bulk_used_at: Instant::default(),
            inbound: BTreeMap::new(),
            last_heard: None,
            echo: None,
            received_bytes: 0,
            sent_bytes: 0,
            connects: 0,
            last_error: None,
        }
    }

    fn is_connected(&self) -> bool {
        self.live.is_some() || self.inbound.contains_key(&Lane::Live)
    }

    /// How long ago it was last heard.
    pub(crate) fn silence(&self, now: Instant) -> Option<Duration> {
        Some(now.since(self.last_heard?))
    }
}

/// All decisions, behind one lock that is never held across an await.
pub(crate) struct State {
    pub(crate) puller: Puller,
    pub(crate) held: Held,
    pub(crate) promises: Promises,
    pub(crate) watermarks: Watermarks,
    pub(crate) agreements: Agreements,
    /// By region and partition, so that each is said once.
    pub(crate) disagreements: BTreeMap<(RegionId, PartitionId), Disagreement>,
    pub(crate) skew: SkewGuard,
    pub(crate) peers: BTreeMap<RegionId, Peer>,
    pub(crate) seen: BTreeMap<RegionId, VersionVector>,
    // What each peer said it holds, and which peers said what is complete: only who did both, and
    // whose clock is known, is seen.
    vectors: BTreeMap<RegionId, VersionVector>,
    // What each peer said to have taken in our own logs, durably or not.
    taken: BTreeMap<RegionId, VersionVector>,
    promising: BTreeSet<RegionId>,
    pub(crate) jitter: Jitter,
    pulls: BTreeMap<u64, CancellationToken>,
    // Origins whose clocks were found too far ahead, to say so only once.
    far_ahead: BTreeSet<RegionId>,
    was_skewed: bool,
    // Of the logs of regions that were ever fenced.
    generations: BTreeMap<LogId, Generations>,
    // We were put out, and have not stranded yet what does not count any more.
    put_out: bool,
}

pub(crate) struct Shared {
    pub(crate) config: LinksConfig,
    /// Which start of this node this is.
    pub(crate) start: Start,
    pub(crate) credentials: Credentials,
    pub(crate) store: Arc<Store>,
    pub(crate) hlc: Arc<Hlc>,
    pub(crate) endpoint: Endpoint,
    pub(crate) own_promises: PromiseSource,
    pub(crate) logs: BTreeMap<LogId, LogState>,
    pub(crate) tracker: TaskTracker,
    pub(crate) cancel: CancellationToken,
    pub(crate) held: watch::Sender<HeldByRegion>,
    pub(crate) seen: watch::Sender<HeldByRegion>,
    pub(crate) marks: watch::Sender<Arc<Marks>>,
    pub(crate) delays: Mutex<Histogram<u64>>,
    started: tokio::time::Instant,
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn new(
        config: LinksConfig,
        store: Arc<Store>,
        hlc: Arc<Hlc>,
        endpoint: Endpoint,
        own_promises: PromiseSource,
        rng_seed: u64,
    ) -> Self {
        let regions = || config.members.iter().map(|member| member.id);
        let credentials = Credentials {
            federation: config.federation,
            region: config.region,
            incarnation: config.incarnation,
            partitions: config.partitions,
            names: config
                .members
                .iter()
                .map(|member| (member.id, member.name.clone()))
                .collect(),
        };
        let mut promises = Promises::default();
        let logs = all_logs(regions(), config.partitions)
            .map(|log| {
                let head = Head::from(store.head(log));
                promises.handle_durable(log, head.position);
                promises.handle_promise(head.promise());
                let state = LogState {
                    head: watch::Sender::new(head),
                    gate: Arc::default(),
                };
                (log, state)
            })
            .collect();
        for promise in &config.remembered.promises {
            promises.handle_promise(*promise);
        }
        let start = Instant::default();
        let mut watermarks = Watermarks::new(config.region, regions(), config.partitions, start);
        let Membership {
            version,
            counted,
            generations,
            stopped,
        } = config.membership.clone();
        if let Some(counted) = counted {
            watermarks.set_members(start, version, &counted);
        }
        if let Some(why) = &stopped {
            watermarks.stop_all(why);
        }
        watermarks.handle_fulfilled(start, promises.fulfilled().into_values());
        // Which decisions they were made under was not kept; no more than are known now.
        let settled = config.remembered.settled.iter();
        let settled: Vec<_> = settled.map(|stable| (*stable, version)).collect();
        watermarks.handle_settled(start, &settled);
        let marks = watch::Sender::new(Arc::new(watermarks.marks()));
        let state = State {
            puller: Puller::new(
                config.region,
                regions(),
                config.partitions,
                config.timings.puller,
            ),
            held: Held::new(config.region),
            promises,
            watermarks,
            agreements: Agreements::new(config.partitions),
            disagreements: BTreeMap::new(),
            skew: SkewGuard::new(config.max_offset),
            peers: config
                .members
                .iter()
                .filter(|member| member.id != config.region)
                .map(|member| (member.id, Peer::new(member.clone())))
                .collect(),
            seen: BTreeMap::new(),
            vectors: BTreeMap::new(),
            taken: BTreeMap::new(),
            promising: BTreeSet::new(),
            jitter: Jitter::new(rng_seed),
            pulls: BTreeMap::new(),
            far_ahead: BTreeSet::new(),
            was_skewed: false,
            generations,
            put_out: stopped.is_some(),
        };
        // From a microsecond to a day, to two digits.
        let delays = Histogram::new_with_bounds(1, 86_400_000_000, 2)
            .expect("the bounds of the histogram are constants that fit");
        Self {
            config,
            start: Start { id: rng_seed },
            credentials,
            store,
            hlc,
            endpoint,
            own_promises,
            logs,
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
            held: watch::Sender::default(),
            seen: watch::Sender::default(),
            marks,
            delays: Mutex::new(delays),
            started: tokio::time::Instant::now(),
            state: Mutex::new(state),
        }
    }

    /// How long the links have been running.
    pub(crate) fn now(&self) -> Instant {
        Instant(self.started.elapsed())
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What we hold durably, of every log that has anything.
    pub(crate) fn heads(&self) -> Vec<Head> {
        self.store.heads().into_iter().map(Head::from).collect()
    }

    /// Carries out what the puller decided. The lock is held meanwhile, so that decisions are
    /// carried out in the order in which they were made.
    fn carry_out(self: &Arc<Self>, state: &mut State, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Subscribe(subscription) => {
                    let cancel = self.cancel.child_token();
                    state.pulls.insert(subscription.id, cancel.clone());
                    tracing::debug!(
                        log = %subscription.log,
                        peer = %subscription.via,
                        lane = ?subscription.lane,
                        "pulling"
                    );
                    self.tracker
                        .spawn(pull::run(Arc::clone(self), subscription, cancel));
                }
                Action::Unsubscribe(subscription) => {
                    if let Some(cancel) = state.pulls.remove(&subscription.id) {
                        cancel.cancel();
                    }
                }
                Action::Raise(alarm) => {
                    tracing::error!(log = %alarm.log, peer = %alarm.peer, "{alarm}");
                }
                Action::Clear(alarm) => {
                    tracing::info!(log = %alarm.log, peer = %alarm.peer, "over: {alarm}");
                }
            }
        }
    }

    /// `peer` is in this start of it. What came from an earlier one and is not with the store yet is
    /// never given to it: the peer may have lost it, and is about to hear how much of its logs is held
    /// here, to go on from there.
    pub(crate) fn started(&self, peer: RegionId, start: Option<u64>) {
        let state = self.lock();
        let Some(known) = state.peers.get(&peer) else {
            return;
        };
        let earlier = {
            let mut newest = known.start.write().unwrap_or_else(PoisonError::into_inner);
            mem::replace(&mut *newest, start)
        };
        if earlier.is_none() || earlier == start {
            return;
        }
        let reason = "the peer has started anew";
        if let Some(live) = &known.live
            && known.live_start != start
        {
            reached("a peer that started anew ended what its earlier start had sent");
            close(live, code::REPLACED, reason);
        }
        // One that is being opened right now hears of it by its own handshake.
        if let Ok(mut bulk) = known.bulk.try_lock()
            && let Some(open) = bulk.take_if(|open| open.start != start)
        {
            close(&open.connection, code::REPLACED, reason);
        }
    }

    /// What we have taken in `peer`'s own logs. After [`Shared::started`] nothing of an earlier start
    /// comes on top of it.
    pub(crate) fn taken_of(&self, peer: RegionId) -> Taken {
        let logs = self.logs.keys().filter(|log| log.origin == peer);
        let taken = logs.map(|log| (*log, self.store.submitted_head(*log).position));
        Taken {
            logs: taken
                .filter(|(_, position)| *position > Position::ZERO)
                .collect(),
        }
    }

    /// `peer` said what it has taken in our own logs.
    pub(crate) fn taken(&self, peer: RegionId, taken: &Taken) {
        let ours = taken
            .logs
            .iter()
            .filter(|(log, _)| log.origin == self.config.region && self.logs.contains_key(log));
        let ours = ours.copied().collect();
        self.lock().taken.insert(peer, ours);
    }

    /// We can pull from `peer` over `connection`.
    pub(crate) fn connected(
        self: &Arc<Self>,
        peer: RegionId,
        connection: &quinn::Connection,
        start: Option<u64>,
        version: u16,
    ) {
        let now = self.now();
        let mut state = self.lock();
        // Shutdown has closed what it found under this lock; what comes later closes itself.
        if self.cancel.is_cancelled() {
            close(connection, code::DONE, "shutting down");
            return;
        }
        if let Some(known) = state.peers.get_mut(&peer) {
            known.live = Some(connection.clone());
            known.live_start = start;
            known.live_version = version;
            known.connects += 1;
            known.last_error = None;
            known.last_heard = Some(now);
        }
        self.met(&mut state, peer);
        let actions = state.puller.handle_connected(now, peer);
        self.carry_out(&mut state, actions);
    }

    /// The protocol version spoken with `peer`; zero while it is not linked.
    pub(crate) fn live_version(&self, peer: RegionId) -> u16 {
        let state = self.lock();
        let linked = state.peers.get(&peer).filter(|known| known.live.is_some());
        linked.map_or(0, |known| known.live_version)
    }

    /// We cannot pull from `peer` any more.
    pub(crate) fn disconnected(self: &Arc<Self>, peer: RegionId, reason: String) {
        let now = self.now();
        let mut state = self.lock();
        if let Some(known) = state.peers.get_mut(&peer) {
            known.live = None;
            known.last_error = Some(reason);
        }
        self.parted(&mut state, peer);
        state.promises.forget_waiting(peer);
        state.agreements.forget(peer);
        state.promising.remove(&peer);
        let actions = state.puller.handle_disconnected(now, peer);
        self.carry_out(&mut state, actions);
    }

    /// `peer` pulls from us over `connection`. A connection that it had for the same purpose is
    /// from before a restart or a lost path, and makes way.
    pub(crate) fn joined(&self, peer: RegionId, lane: Lane, connection: &quinn::Connection) {
        let now = self.now();
        let mut state = self.lock();
        if self.cancel.is_cancelled() {
            close(connection, code::DONE, "shutting down");
            return;
        }
        let Some(known) = state.peers.get_mut(&peer) else {
            return;
        };
        known.last_heard = Some(now);
        if let Some(earlier) = known.inbound.insert(lane, connection.clone()) {
            close(
                &earlier,
                code::REPLACED,
                "a newer connection took its place",
            );
        }
        self.met(&mut state, peer);
    }

    /// `peer` does not pull from us over `connection` any more.
    pub(crate) fn left(&self, peer: RegionId, lane: Lane, connection: &quinn::Connection) {
        let mut state = self.lock();
        if let Some(known) = state.peers.get_mut(&peer)
            && known
                .inbound
                .get(&lane)
                .is_some_and(|present| present.stable_id() == connection.stable_id())
        {
            known.inbound.remove(&lane);
        }
        self.parted(&mut state, peer);
    }

    fn met(&self, state: &mut State, peer: RegionId) {
        if state.peers.get(&peer).is_some_and(Peer::is_connected) {
            state.held.handle_connected(peer);
        }
    }

    fn parted(&self, state: &mut State, peer: RegionId) {
        let Some(known) = state.peers.get_mut(&peer) else {
            return;
        };
        if !known.is_connected() {
            known.echo = None;
            state.held.handle_disconnected(peer);
            state.skew.forget(peer);
            self.judge_skew(state);
        }
    }

    /// `peer` said something on a control stream.
    pub(crate) fn heard(&self, peer: RegionId) {
        let now = self.now();
        let mut state = self.lock();
        state.puller.handle_heard(now, peer);
        if let Some(known) = state.peers.get_mut(&peer) {
            known.last_heard = Some(now);
        }
    }

    /// `peer` said what it holds, on a connection on which it serves us (`is_source`) or pulls
    /// from us; `is_first` on each connection. Only what belongs to this federation is taken in:
    /// regions and logs that nobody has must not take memory here, nor count as holding anything.
    pub(crate) fn vector(
        self: &Arc<Self>,
        peer: RegionId,
        mut vector: Vector,
        is_source: bool,
        is_first: bool,
    ) {
        vector
            .heads
            .retain(|head| self.logs.contains_key(&head.log));
        vector.holdings.retain(|holding| {
            self.credentials.names.contains_key(&holding.region)
                && self.logs.contains_key(&holding.log)
        });
        let received = self.hlc.physical_now();
        let ours = self.heads();
        let now = self.now();
        let mut state = self.lock();
        // What the peer holds of what counts, and what there is to ask it for.
        let mut offered = vector.heads.clone();
        for (head, offered) in vector.heads.iter_mut().zip(&mut offered) {
            if let Some(generations) = state.generations.get(&head.log) {
                let held = Head::from(self.store.head(head.log));
                if !offers(generations, head, held.position) {
                    *offered = held;
                }
                head.position = counted(generations, head.epoch, head.position);
            }
        }
        // What it heard of others it may have heard before it, or they, learnt where a generation was cut.
        let epochs: BTreeMap<LogId, Epoch> =
            vector.heads.iter().map(|it| (it.log, it.epoch)).collect();
        for holding in &mut vector.holdings {
            if let Some(generations) = state.generations.get(&holding.log) {
                let epoch = epochs.get(&holding.log).copied().unwrap_or(Epoch::FIRST);
                holding.position = counted(generations, epoch, holding.position);
            }
        }
        let Some(known) = state.peers.get_mut(&peer) else {
            return;
        };
        known.last_heard = Some(now);
        known.echo = Some(ClockEcho {
            sent: vector.sent,
            received,
        });
        if let Some(echo) = vector.echo {
            let sample = ClockSample {
                asked: echo.sent,
                peer_received: echo.received,
                peer_answered: vector.sent,
                answered: received,
            };
            state.skew.observe(peer, sample);
            self.judge_skew(&mut state);
        }
        let mut changed = state.held.handle_vector(peer, is_first, &vector.heads);
        changed |= state.held.handle_holdings(peer, &vector.holdings);
        if changed {
            self.publish_held(&state);
        }
        let mut said: VersionVector = vector
            .heads
            .iter()
            .map(|head| (head.log, head.position))
            .collect();
        if let Some(taken) = state.taken.get(&peer)
            && !planted(Bug::ForgetTaken)
        {
            said.merge(taken);
        }
        state.vectors.insert(peer, said);
        self.publish_seen(&mut state, peer);
        if is_source {
            let actions = state.puller.handle_vector(now, peer, &offered, &ours);
            self.carry_out(&mut state, actions);
        }
    }

    /// What we tell `peer` that we hold.
    pub(crate) fn vector_for(&self, peer: RegionId) -> Vector {
        let heads = self.heads();
        let state = self.lock();
        Vector {
            sent: self.hlc.physical_now(),
            echo: state.peers.get(&peer).and_then(|known| known.echo),
            heads,
            holdings: state.held.holdings_for(peer),
        }
    }

    // A peer counts as heard once it said what it holds and what it knows to be complete, and its
    // clock was compared with ours: a node that lost its memory needs all three before it stamps
    // again.
    fn publish_seen(&self, state: &mut State, peer: RegionId) {
        if !state.promising.contains(&peer) || state.skew.offset_nanos(peer).is_none() {
            return;
        }
        let Some(said) = state.vectors.get(&peer) else {
            return;
        };
        if state.seen.get(&peer) != Some(said) {
            state.seen.insert(peer, said.clone());
            self.seen.send_replace(Arc::new(state.seen.clone()));
        }
    }

    /// What we tell who pulls from us to be complete.
    pub(crate) fn heartbeat(&self) -> Heartbeat {
        Heartbeat {
            promises: self.settle().promises.fulfilled().into_values().collect(),
        }
    }

    /// What we tell who pulls from us of watermarks.
    pub(crate) fn settled(&self) -> SettledUnder {
        let mut stable = self.lock().watermarks.said();
        stable.retain(|(stable, _)| stable.through > Timestamp::ZERO);
        SettledUnder { stable }
    }

    /// What we tell who pulls from us of what the order came to here.
    pub(crate) fn agreement(&self) -> AgreementUnder {
        let state = self.lock();
        AgreementUnder {
            under: state.watermarks.under(),
            // What we settled before we heard of our fence, nobody has to agree with.
            agreed: match state.put_out {
                true => Vec::new(),
                false => state.agreements.said(),
            },
        }
    }

    /// Promises anew for our own logs, and moves the watermarks.
    pub(crate) fn settle(&self) -> MutexGuard<'_, State> {
        // Outside of the lock: a promise is taken under the sequencers' locks.
        let own = (self.own_promises)();
        let mut state = self.lock();
        for promise in &own {
            state.promises.handle_promise(*promise);
        }
        self.fulfilled(&mut state, own.iter().map(|promise| promise.log));
        state
    }

    // The newest fulfilled promises of `logs` may have risen.
    fn fulfilled(&self, state: &mut State, logs: impl IntoIterator<Item = LogId>) {
        let State {
            promises,
            watermarks,
            ..
        } = state;
        let newest = logs.into_iter().filter_map(|log| promises.get(log));
        if watermarks.handle_fulfilled(self.now(), newest) {
            self.publish_marks(state);
        }
    }

    fn publish_marks(&self, state: &State) {
        self.marks.send_replace(Arc::new(state.watermarks.marks()));
    }

    /// A peer said what it knows to be complete.
    pub(crate) fn heartbeat_of(&self, peer: RegionId, heartbeat: &Heartbeat) {
        self.promised(&heartbeat.promises);
        let mut state = self.lock();
        if state.promising.insert(peer) {
            self.publish_seen(&mut state, peer);
        }
    }

    /// A peer passed promises on.
    pub(crate) fn promised(&self, promises: &[Promise]) {
        // A promise of a time far ahead is taken for one of now, which it is as well: no watermark
        // rises by more, since our own word is in all of them. Should its origin lose its disk, and
        // those who heard it their memory, it could not be kept.
        let ours = self.hlc.physical_now().max(self.hlc.passed());
        let believed = ours.plus(self.config.max_offset);
        let mut state = self.lock();
        for promise in promises {
            if !self.logs.contains_key(&promise.log) {
                continue;
            }
            if promise.log.origin == self.config.region {
                // We made it ourselves. If our disk was lost since, this is how we learn of it, and
                // what was promised binds us all the same (`promised`).
                if !state.puller.writes_own() && !planted(Bug::ForgetPromised) {
                    // While our clock was behind our stamps they rose by counting; what was promised
                    // last, and heard by nobody, is no more than some counts further.
                    self.hlc.start_above(promise.timestamp.plus(COUNTED));
                }
            } else if !state.puller.is_stopped(promise.log) {
                // What its origin promises of its copy says nothing of one that differs.
                self.merge_clock(&mut state, promise.log.origin, promise.timestamp);
                state.promises.handle_promise(Promise {
                    timestamp: promise.timestamp.min(believed),
                    ..*promise
                });
            }
        }
        let others = promises.iter().map(|promise| promise.log);
        let others = others.filter(|log| log.origin != self.config.region);
        self.fulfilled(&mut state, others);
    }

    /// A peer said how far it and others have settled the order.
    pub(crate) fn settled_elsewhere(&self, settled: &SettledUnder) {
        let mut state = self.lock();
        let now = self.now();
        if state.watermarks.handle_settled(now, &settled.stable) {
            self.publish_marks(&state);
        }
    }

    /// Who takes part has changed.
    pub(crate) fn set_membership(&self, membership: &Membership) {
        let now = self.now();
        let mut state = self.lock();
        let mut has_fallen = false;
        for (log, generations) in &membership.generations {
            let known = state.generations.get(log).map_or(0, |it| it.cuts.len());
            if let Some(cut) = generations.cuts.last()
                && generations.cuts.len() > known
            {
                has_fallen |= state.held.handle_cut(*log, *cut);
            }
        }
        if has_fallen {
            self.publish_held(&state);
        }
        state.generations.clone_from(&membership.generations);
        if let Some(why) = &membership.stopped {
            state.watermarks.stop_all(why);
            state.put_out = true;
        }
        if membership.version > state.watermarks.under() {
            // It was said under earlier decisions: some of it may not count any more.
            state.agreements.forget_all();
        }
        if let Some(counted) = &membership.counted
            && state
                .watermarks
                .set_members(now, membership.version, counted)
        {
            self.publish_marks(&state);
        }
    }

    /// Which blocks of `log` count.
    pub(crate) fn generations(&self, log: LogId) -> Generations {
        let state = self.lock();
        state.generations.get(&log).cloned().unwrap_or_default()
    }

    /// We have chained the settled order of a partition up to a cut.
    pub(crate) fn agreed_here(&self, agreed: Agreed) {
        let mut state = self.lock();
        let found = state.agreements.handle_own(agreed);
        for disagreement in found {
            self.disagreed(&mut state, disagreement);
        }
    }

    /// A peer said what it came to.
    pub(crate) fn agreed_elsewhere(&self, peer: RegionId, agreement: &AgreementUnder) {
        let mut state = self.lock();
        if state.put_out || agreement.under != state.watermarks.under() {
            return;
        }
        for agreed in &agreement.agreed {
            if let Some(disagreement) = state.agreements.handle_peer(peer, *agreed) {
                self.disagreed(&mut state, disagreement);
            }
        }
    }

    fn disagreed(&self, state: &mut State, disagreement: Disagreement) {
        let partition = disagreement.ours.partition;
        let at = (disagreement.peer, partition);
        if state.disagreements.contains_key(&at) {
            return;
        }
        tracing::error!(peer = %disagreement.peer, %partition, "same-order: {disagreement}");
        state.watermarks.stop(partition, disagreement.to_string());
        state.disagreements.insert(at, disagreement);
    }

    /// A block of `origin` came, stamped `timestamp`.
    pub(crate) fn stamped(&self, origin: RegionId, timestamp: Timestamp) {
        self.merge_clock(&mut self.lock(), origin, timestamp);
    }

    fn merge_clock(&self, state: &mut State, origin: RegionId, timestamp: Timestamp) {
        match self.hlc.merge(timestamp) {
            Merge::Merged => {
                if state.far_ahead.remove(&origin) {
                    tracing::info!(region = %origin, "the clock of this region is back within the allowed offset");
                }
            }
            Merge::TooFarAhead { by } => {
                reached("a far-future stamp did not move the clock");
                if state.far_ahead.insert(origin) {
                    tracing::warn!(
                        region = %origin,
                        ahead_ms = by.as_millis(),
                        "events of this region are stamped too far ahead; they are kept, but our clock does not follow; correct the clock there"
                    );
                }
            }
        }
    }

    fn judge_skew(&self, state: &mut State) {
        let verdict = state.skew.verdict();
        let is_skewed = matches!(verdict, SkewVerdict::Skewed { .. });
        if is_skewed != state.was_skewed {
            state.was_skewed = is_skewed;
            match &verdict {
                SkewVerdict::Skewed { reason } => {
                    tracing::error!(%reason, "this node's clock cannot be trusted; appends stop until it agrees again");
                }
                SkewVerdict::Trusted => tracing::info!("this node's clock is trusted again"),
            }
        }
        self.hlc.set_skewed(match verdict {
            SkewVerdict::Skewed { reason } => Some(reason),
            SkewVerdict::Trusted => None,
        });
    }

    /// `peer` acknowledged what we sent it.
    pub(crate) fn acked(
        &self,
        peer: RegionId,
        log: LogId,
        incarnation: Incarnation,
        durable: Position,
    ) {
        let mut state = self.lock();
        if state.held.handle_ack(peer, log, incarnation, durable) {
            self.publish_held(&state);
        }
    }

    fn publish_held(&self, state: &State) {
        self.held.send_replace(Arc::new(state.held.vectors()));
    }

    /// A subscription could not go on.
    pub(crate) fn ended(self: &Arc<Self>, subscription: Subscription, reason: &Ended) {
        let now = self.now();
        let mut state = self.lock();
        state.pulls.remove(&subscription.id);
        let actions = state.puller.handle_ended(now, subscription, reason);
        self.carry_out(&mut state, actions);
    }

    /// From here on nobody but ourselves writes our own logs.
    pub(crate) fn writing_own(self: &Arc<Self>) {
        let now = self.now();
        let mut state = self.lock();
        let actions = state.puller.handle_writing_own(now);
        self.carry_out(&mut state, actions);
    }

    /// Time passed.
    pub(crate) fn tick(self: &Arc<Self>) {
        let ours = self.heads();
        let now = self.now();
        let mut state = self.lock();
        let actions = state.puller.handle_tick(now, &ours);
        self.carry_out(&mut state, actions);
        let in_bulk: BTreeSet<RegionId> = state
            .puller
            .subscriptions()
            .filter(|subscription| subscription.lane == Lane::Bulk)
            .map(|subscription| subscription.via)
            .collect();
        for (region, peer) in &mut state.peers {
            if in_bulk.contains(region) {
                peer.bulk_used_at = now;
            } else if now.since(peer.bulk_used_at) >= self.config.timings.bulk_idle
                && let Ok(mut bulk) = peer.bulk.try_lock()
                && let Some(open) = bulk.take()
            {
                close(&open.connection, code::DONE, "caught up");
            }
        }
    }

    /// Takes note of what the store has made durable.
    pub(crate) fn committed(&self) {
        let mut moved = Vec::new();
        for head in self.store.heads() {
            let head = Head::from(head);
            let Some(log) = self.logs.get(&head.log) else {
                continue;
            };
            if log.head.send_if_modified(|known| {
                let moves = known.position != head.position;
                *known = head;
                moves
            }) {
                moved.push(head);
            }
        }
        let mut state = self.lock();
        for head in &moved {
            state.promises.handle_durable(head.log, head.position);
            // What a copy holds is itself a promise, so that watermarks move with a log that is
            // being caught up on, and not only at its end.
            if !state.puller.is_stopped(head.log) {
                state.promises.handle_promise(head.promise());
            }
        }
        self.fulfilled(&mut state, moved.iter().map(|head| head.log));
    }

    /// Blocks of `origin` became durable here this long after their stamps.
    pub(crate) fn delayed(&self, origin: RegionId, stamps: &[Timestamp]) {
        let now = self.hlc.physical_now();
        let mut delays = self.delays.lock().unwrap_or_else(PoisonError::into_inner);
        for stamp in stamps {
            let delay = now.after(*stamp);
            delays.saturating_record(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX).max(1));
            if let Some(observe) = &self.config.delays {
                observe(origin, delay);
            }
        }
    }
}

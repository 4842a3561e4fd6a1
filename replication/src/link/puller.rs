//! From whom to pull each log.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use meridian_clock::{Incarnation, LogId, Position, RegionId};
use meridian_points::reached;

use super::{Backoff, Instant};
use crate::frame::{Head, Lane, NotServed, all_logs};

/// When the puller changes its mind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullerTimings {
    /// A peer that said nothing for this long is used only if nobody else is left.
    pub silent_after: Duration,
    /// A subscription that brought nothing for this long, while another peer is known to hold
    /// more, has stalled.
    pub stalled_after: Duration,
    /// How long a stalled peer is passed over for that log, at first; doubles up to
    /// `stalled_for_max`.
    pub stalled_for: Duration,
    /// The longest that a stalled peer is passed over.
    pub stalled_for_max: Duration,
    /// How long to wait after a refused or broken subscription, at first; doubles up to
    /// `retry_max`.
    pub retry: Duration,
    /// The longest wait after a refused or broken subscription.
    pub retry_max: Duration,
    /// More positions behind than this: catch up on the bulk connection.
    pub bulk_above: u64,
    /// Fewer positions behind than this: back to the live connection.
    pub live_below: u64,
}

impl Default for PullerTimings {
    fn default() -> Self {
        Self {
            silent_after: Duration::from_millis(1500),
            stalled_after: Duration::from_millis(1500),
            stalled_for: Duration::from_secs(5),
            stalled_for_max: Duration::from_secs(60),
            retry: Duration::from_millis(200),
            retry_max: Duration::from_secs(10),
            bulk_above: 10_000,
            live_below: 1_000,
        }
    }
}

/// One log being pulled from one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Told apart from earlier subscriptions to the same log by this.
    pub id: u64,
    /// The log.
    pub log: LogId,
    /// From whom.
    pub via: RegionId,
    /// Over which connection.
    pub lane: Lane,
}

/// Why a subscription is over, as the driver saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The connection or the stream broke, or took too long.
    Lost,
    /// The peer does not serve it.
    NotServed(NotServed),
    /// What the peer sent follows on another history than ours.
    WrongChain {
        /// The last position we hold.
        position: Position,
    },
    /// The peer sent something that cannot be.
    Violated,
    /// Our own disk does not take it.
    Local,
}

/// Something that an operator must know about one log at one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// The log.
    pub log: LogId,
    /// The peer whose copy is meant.
    pub peer: RegionId,
    /// What is wrong.
    pub kind: AlarmKind,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// The two copies hold different bytes. The log is not pulled from that peer any more, and not
    /// at all if the peer is its origin. Nothing is overwritten.
    Diverged {
        /// Where the chains were compared.
        position: Position,
    },
    /// The peer holds a later life of the log than we do.
    LaterIncarnation {
        /// Ours.
        ours: Incarnation,
        /// The peer's.
        theirs: Incarnation,
    },
    /// The peer holds more of *our own* log than we, and we have already begun to write: what it
    /// holds beyond is not taken back.
    HoldsMoreOfOurs {
        /// Ours.
        ours: Position,
        /// The peer's.
        theirs: Position,
    },
}

impl fmt::Display for Alarm {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log, peer, kind } = self;
        match kind {
            AlarmKind::Diverged { position } => write!(
                out,
                "log {log} here and in region {peer} hold different bytes at or before position {position}; replication of it from there is stopped and nothing is overwritten; run `meridian verify` on both"
            ),
            AlarmKind::LaterIncarnation { ours, theirs } => write!(
                out,
                "log {log} is in incarnation {theirs} in region {peer} and {ours} here; it is not pulled from there"
            ),
            AlarmKind::HoldsMoreOfOurs { ours, theirs } => write!(
                out,
                "region {peer} holds our own log {log} to {theirs}, we hold it only to {ours} and are already writing; restart this node with {peer} reachable"
            ),
        }
    }
}

/// What the driver is to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Begin to pull. Whatever pulled this log before must have ended first.
    Subscribe(Subscription),
    /// Stop pulling.
    Unsubscribe(Subscription),
    /// Tell the operator, once.
    Raise(Alarm),
    /// It is over.
    Clear(Alarm),
}

#[derive(Debug)]
struct Peer {
    heard_at: Instant,
    // `None` until the peer said on this connection what it holds.
    heads: Option<BTreeMap<LogId, Head>>,
}

#[derive(Debug)]
struct Trouble {
    retry: Backoff,
    not_before: Instant,
    stall: Backoff,
    passed_over_until: Instant,
}

#[derive(Debug)]
struct Log {
    held: Head,
    current: Option<Subscription>,
    // The subscription whose next block waits for other logs.
    held_back: Option<u64>,
    // Since when another peer is known to hold more while nothing comes.
    stalled_since: Option<Instant>,
    trouble: BTreeMap<RegionId, Trouble>,
    alarms: BTreeMap<RegionId, AlarmKind>,
}

/// Chooses, for every log, which peer to pull it from: its origin if that is reachable and brings
/// what it should, else whoever holds the most; and notices when copies disagree.
#[derive(Debug)]
pub struct Puller {
    me: RegionId,
    timings: PullerTimings,
    peers: BTreeMap<RegionId, Peer>,
    logs: BTreeMap<LogId, Log>,
    writes_own: bool,
    next_id: u64,
}

impl Puller {
    /// A puller of region `me` in a federation of `regions`, `me` among them.
    pub fn new(
        me: RegionId,
        regions: impl IntoIterator<Item = RegionId>,
        partitions: u16,
        timings: PullerTimings,
    ) -> Self {
        let log = |log| Log {
            held: Head::empty(log),
            current: None,
            held_back: None,
            stalled_since: None,
            trouble: BTreeMap::new(),
            alarms: BTreeMap::new(),
        };
        Self {
            me,
            timings,
            peers: BTreeMap::new(),
            logs: all_logs(regions, partitions)
                .map(|id| (id, log(id)))
                .collect(),
            writes_own: false,
            next_id: 0,
        }
    }

    /// From here on this node writes its own logs, so they are not pulled back from others any
    /// more: two writers of one log would make two histories of it.
    pub fn handle_writing_own(&mut self, now: Instant) -> Vec<Action> {
        self.writes_own = true;
        self.decide_all(now)
    }

    /// Whether this node writes its own logs.
    pub fn writes_own(&self) -> bool {
        self.writes_own
    }

    /// We can pull from `peer`.
    pub fn handle_connected(&mut self, now: Instant, peer: RegionId) -> Vec<Action> {
        let fresh = Peer {
            heard_at: now,
            heads: None,
        };
        self.peers.insert(peer, fresh);
        self.decide_all(now)
    }

    /// We cannot pull from `peer` any more.
    pub fn handle_disconnected(&mut self, now: Instant, peer: RegionId) -> Vec<Action> {
        self.peers.remove(&peer);
        self.decide_all(now)
    }

    /// `peer` said something.
    pub fn handle_heard(&mut self, now: Instant, peer: RegionId) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.heard_at = now;
        }
    }

    /// `peer` said what it holds. `ours` is what we hold, read after its vector came, so that a log
    /// of ours in which it is ahead is one that we lost.
    pub fn handle_vector(
        &mut self,
        now: Instant,
        peer: RegionId,
        theirs: &[Head],
        ours: &[Head],
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        self.take_heads(now, ours);
        let Some(state) = self.peers.get_mut(&peer) else {
            return actions;
        };
        state.heard_at = now;
        state.heads = Some(theirs.iter().map(|head| (head.log, *head)).collect());
        for head in theirs {
            self.compare(peer, head, &mut actions);
        }
        actions.extend(self.decide_all(now));
        actions
    }

    /// `peer` said how far it holds one log.
    pub fn handle_position(&mut self, peer: RegionId, log: LogId, position: Position) {
        let heads = self
            .peers
            .get_mut(&peer)
            .and_then(|peer| peer.heads.as_mut());
        if let Some(heads) = heads {
            let head = heads.entry(log).or_insert_with(|| Head::empty(log));
            head.position = head.position.max(position);
        }
    }

    /// Time passed; `ours` is what we hold now.
    pub fn handle_tick(&mut self, now: Instant, ours: &[Head]) -> Vec<Action> {
        self.take_heads(now, ours);
        self.notice_stalls(now);
        self.decide_all(now)
    }

    /// The driver could not go on with a subscription.
    pub fn handle_ended(
        &mut self,
        now: Instant,
        ended: Subscription,
        reason: &Ended,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(log) = self.logs.get_mut(&ended.log) else {
            return actions;
        };
        // News of an earlier subscription may cross our having given it up.
        if log.current.is_some_and(|current| current.id == ended.id) {
            log.current = None;
            log.stalled_since = None;
        }
        let trouble = log.trouble(ended.via, &self.timings);
        trouble.not_before = now.plus(trouble.retry.next_wait());
        match reason {
            Ended::WrongChain { position }
            | Ended::NotServed(NotServed::Diverged { position, .. }) => {
                let kind = AlarmKind::Diverged {
                    position: *position,
                };
                self.raise(ended.log, ended.via, kind, &mut actions);
            }
            Ended::Lost | Ended::NotServed(_) | Ended::Violated | Ended::Local => {}
        }
        actions.extend(self.decide(now, ended.log));
        actions
    }

    /// Whether what `by` brings has to wait for other logs: then it is no fault of the peer's that our copy does not
    /// grow.
    pub fn handle_held_back(&mut self, by: Subscription, is_held_back: bool) {
        if let Some(log) = self.logs.get_mut(&by.log) {
            log.held_back = is_held_back.then_some(by.id);
        }
    }

    /// What is being pulled now.
    pub fn subscriptions(&self) -> impl Iterator<Item = Subscription> + '_ {
        self.logs.values().filter_map(|log| log.current)
    }

    /// What operators should know.
    pub fn alarms(&self) -> impl Iterator<Item = Alarm> + '_ {
        self.logs.iter().flat_map(|(log, state)| {
            state.alarms.iter().map(|(peer, kind)| Alarm {
                log: *log,
                peer: *peer,
                kind: *kind,
            })
        })
    }

    /// Whether our copy of `log` is not its origin's, so that it is not pulled at all.
    pub fn is_stopped(&self, log: LogId) -> bool {
        self.logs
            .get(&log)
            .is_some_and(|state| state.alarms.contains_key(&log.origin))
    }

    /// How far `peer` said that it holds `log`, on this connection.
    pub fn known_position(&self, peer: RegionId, log: LogId) -> Option<Position> {
        let heads = self.peers.get(&peer)?.heads.as_ref()?;
        Some(heads.get(&log).map_or(Position::ZERO, |head| head.position))
    }

    /// A connected peer that holds `log` at least to `until`, the `turn`th of those there are.
    pub fn holder(&self, log: LogId, until: Position, turn: usize) -> Option<RegionId> {
        let holders: Vec<_> = self
            .peers
            .keys()
            .filter(|peer| {
                self.known_position(**peer, log)
                    .is_some_and(|position| position >= until)
            })
            .collect();
        holders
            .get(turn.checked_rem(holders.len())?)
            .map(|peer| **peer)
    }

    fn take_heads(&mut self, now: Instant, ours: &[Head]) {
        for head in ours {
            let Some(log) = self.logs.get_mut(&head.log) else {
                continue;
            };
            if head.position > log.held.position {
                log.stalled_since = None;
                if let Some(current) = log.current {
                    let trouble = log.trouble(current.via, &self.timings);
                    trouble.retry.reset();
                    if now >= trouble.passed_over_until {
                        trouble.stall.reset();
                    }
                }
            }
            log.held = *head;
        }
    }

    // Compares one entry of a peer's vector with what we hold.
    fn compare(&mut self, peer: RegionId, theirs: &Head, actions: &mut Vec<Action>) {
        let Some(log) = self.logs.get(&theirs.log) else {
            return;
        };
        let ours = log.held;
        if ours.position == Position::ZERO || theirs.position == Position::ZERO {
            return;
        }
        if theirs.incarnation > ours.incarnation {
            let kind = AlarmKind::LaterIncarnation {
                ours: ours.incarnation,
                theirs: theirs.incarnation,
            };
            self.raise(theirs.log, peer, kind, actions);
        } else if theirs.incarnation < ours.incarnation {
            // It holds an earlier life; it will see that for itself.
        } else if theirs.position == ours.position {
            if theirs.chain == ours.chain {
                self.clear(theirs.log, peer, actions);
            } else {
                let kind = AlarmKind::Diverged {
                    position: ours.position,
                };
                self.raise(theirs.log, peer, kind, actions);
            }
        } else if theirs.log.origin == self.me && theirs.position > ours.position && self.writes_own
        {
            let kind = AlarmKind::HoldsMoreOfOurs {
                ours: ours.position,
                theirs: theirs.position,
            };
            self.raise(theirs.log, peer, kind, actions);
        }
    }

    fn raise(&mut self, log: LogId, peer: RegionId, kind: AlarmKind, actions: &mut Vec<Action>) {
        let Some(state) = self.logs.get_mut(&log) else {
            return;
        };
        let known = state.alarms.insert(peer, kind);
        // Positions in it may move on; it is still the same thing to an operator.
        let is_news = known
            .is_none_or(|known| std::mem::discriminant(&known) != std::mem::discriminant(&kind));
        if is_news {
            actions.push(Action::Raise(Alarm { log, peer, kind }));
        }
    }

    fn clear(&mut self, log: LogId, peer: RegionId, actions: &mut Vec<Action>) {
        let cleared = self
            .logs
            .get_mut(&log)
            .and_then(|state| state.alarms.remove(&peer));
        if let Some(kind) = cleared {
            actions.push(Action::Clear(Alarm { log, peer, kind }));
        }
    }

    fn notice_stalls(&mut self, now: Instant) {
        let timings = self.timings;
        for (id, log) in &mut self.logs {
            let Some(current) = log.current else {
                continue;
            };
            let held = log.held.position;
            let another_is_ahead = self.peers.iter().any(|(region, peer)| {
                let heads = peer.heads.as_ref();
                *region != current.via
                    && !peer.is_silent(now, &timings)
                    && log.may_retry(now, *region)
                    && heads
                        .and_then(|heads| heads.get(id))
                        .is_some_and(|head| head.position > held)
            });
            if !another_is_ahead || log.held_back == Some(current.id) {
                log.stalled_since = None;
                continue;
            }
            let since = *log.stalled_since.get_or_insert(now);
            if now.since(since) >= timings.stalled_after {
                reached("a peer that brought nothing was passed over");
                log.stalled_since = None;
                let trouble = log.trouble(current.via, &timings);
                trouble.passed_over_until = now.plus(trouble.stall.next_wait());
            }
        }
    }

    fn decide_all(&mut self, now: Instant) -> Vec<Action> {
        let logs: Vec<LogId> = self.logs.keys().copied().collect();
        logs.into_iter()
            .flat_map(|log| self.decide(now, log))
            .collect()
    }

    fn decide(&mut self, now: Instant, id: LogId) -> Vec<Action> {
        let mut actions = Vec::new();
        let wanted = self.choose(now, id);
        let Some(log) = self.logs.get_mut(&id) else {
            return actions;
        };
        let is_same = |current: Subscription| wanted == Some((current.via, current.lane));
        if log.current.is_some_and(is_same) {
            return actions;
        }
        if let Some(current) = log.current.take() {
            log.stalled_since = None;
            actions.push(Action::Unsubscribe(current));
        }
        if let Some((via, lane)) = wanted {
            self.next_id += 1;
            let subscription = Subscription {
                id: self.next_id,
                log: id,
                via,
                lane,
            };
            log.current = Some(subscription);
            actions.push(Action::Subscribe(subscription));
        }
        actions
    }

    // Whom to pull `id` from, now. Sticks with the present choice among equals.
    fn choose(&self, now: Instant, id: LogId) -> Option<(RegionId, Lane)> {
        let log = self.logs.get(&id)?;
        let is_own = id.origin == self.me;
        if log.alarms.contains_key(&id.origin) || (is_own && self.writes_own) {
            return None;
        }
        let (via, position) = self
            .peers
            .iter()
            .filter_map(|(region, peer)| {
                let head = match peer.heads.as_ref()?.get(&id) {
                    Some(head) => *head,
                    None => Head::empty(id),
                };
                let is_usable = log.may_retry(now, *region) && !log.alarms.contains_key(region);
                // Our own log is pulled only from who holds more of it than we.
                let has_use = !is_own
                    || (head.position > log.held.position
                        && (log.held.position == Position::ZERO
                            || head.incarnation == log.held.incarnation));
                if !is_usable || !has_use {
                    return None;
                }
                let rank = (
                    peer.is_silent(now, &self.timings),
                    log.is_passed_over(now, *region),
                    *region != id.origin,
                    log.current.is_none_or(|current| current.via != *region),
                    Reverse(head.position),
                    Reverse(head.timestamp),
                    *region,
                );
                Some((rank, *region, head.position))
            })
            .min()
            .map(|(_, region, position)| (region, position))?;
        let behind = position.0.saturating_sub(log.held.position.0);
        let was_bulk = log
            .current
            .is_some_and(|current| current.via == via && current.lane == Lane::Bulk);
        let most_for_live = if was_bulk {
            self.timings.live_below
        } else {
            self.timings.bulk_above
        };
        let lane = if behind > most_for_live {
            Lane::Bulk
        } else {
            Lane::Live
        };
        Some((via, lane))
    }
}

impl Peer {
    fn is_silent(&self, now: Instant, timings: &PullerTimings) -> bool {
        now.since(self.heard_at) >= timings.silent_after
    }
}

impl Log {
    fn trouble(&mut self, peer: RegionId, timings: &PullerTimings) -> &mut Trouble {
        self.trouble.entry(peer).or_insert_with(|| Trouble {
            retry: Backoff::new(timings.retry, timings.retry_max),
            not_before: Instant::default(),
            stall: Backoff::new(timings.stalled_for, timings.stalled_for_max),
            passed_over_until: Instant::default(),
        })
    }

    fn may_retry(&self, now: Instant, peer: RegionId) -> bool {
        self.trouble
            .get(&peer)
            .is_none_or(|trouble| now >= trouble.not_before)
    }

    fn is_passed_over(&self, now: Instant, peer: RegionId) -> bool {
        self.trouble
            .get(&peer)
            .is_some_and(|trouble| now < trouble.passed_over_until)
    }
}

//! What a node does all the time beside its work: its clock's ceiling, its gate, the scrub, and who connects.

use std::sync::Arc;
use std::time::Duration;

use meridian_client::server;
use meridian_client::wire::{PROTOCOL_VERSION, Welcome};
use meridian_clock::{SkewGuard, VersionVector};
use meridian_points::{Bug, buggify, planted};
use meridian_replication::Incoming;
use meridian_store::{Disk, ScrubCursor};
use tokio::time::{interval, sleep};
use tracing::{Instrument, debug, error, info, info_span, warn};

use super::{read_lock, write_lock};
use crate::Node;
use crate::door::Door;
use crate::fencing::shut_reason;
use crate::gate::{Gate, Memory, Verdict};
use crate::identity::note_found;
use crate::time::TimeKeeper;

/// How often the gate is judged and the durable clock ceiling looked after: several times in the
/// half second before stamping would have to wait for it.
const UPKEEP_EVERY: Duration = Duration::from_millis(100);
/// How much of the sealed log is read again at each step of the scrub, and how often.
const SCRUB_BYTES: usize = 1 << 20;
const SCRUB_EVERY: Duration = Duration::from_millis(50);
/// How long after a whole round of the scrub the next one begins.
const SCRUB_ROUND_EVERY: Duration = Duration::from_secs(24 * 3600);

impl Node {
    // Keeps the clock's ceiling ahead, and judges whether positions may be given out.
    pub(super) fn spawn_upkeep(
        self: &Arc<Self>,
        time: Arc<TimeKeeper>,
        memory: Memory,
        disk: Arc<dyn Disk>,
    ) {
        let peers = self.config.members.iter().map(|member| member.id);
        let peers = peers.filter(|id| *id != self.config.region).collect();
        let clock_allowed = SkewGuard::allowed_of(self.config.max_offset);
        let mut gate = Gate::new(memory, self.config.region, peers, clock_allowed);
        let mut opened = false;
        let (store, links) = (Arc::clone(&self.store), Arc::clone(&self.links));
        let (shut, tasks) = (Arc::clone(&self.shut), self.tasks.clone());
        let out = Arc::clone(&self.out);
        let homes = Arc::clone(&self.homes);
        let consensus = Arc::clone(&self.consensus);
        let (me, listed) = (self.config.region, self.names.0.clone());
        let upkeep = async move {
            let mut ticks = interval(UPKEEP_EVERY);
            loop {
                tokio::select! {
                    biased;
                    () = tasks.cancelled() => break,
                    _ = ticks.tick() => {}
                }
                if let Err(error) = time.keep_ahead() {
                    error!(%error, "the clock ceiling cannot be made durable; appends will stop");
                }
                if buggify("upkeep leaves out a turn") {
                    continue;
                }
                let seen = Arc::clone(&links.vectors_seen().borrow());
                // What we hold is read after what peers said, so that only a true loss shows.
                let held = VersionVector::from_iter(
                    store
                        .heads()
                        .into_iter()
                        .map(|head| (head.log, head.position)),
                );
                let skewed = time.hlc().skewed();
                let remembers = consensus.remembers() || planted(Bug::OpenGate);
                let federation = homes.federation();
                gate.forget(&federation.left);
                let verdict = match gate.judge(UPKEEP_EVERY, &seen, &held, skewed.as_deref()) {
                    Verdict::Open if opened => None,
                    Verdict::Open => match homes.ignorance() {
                        Ok(ignorance) => ignorance,
                        Err(error) => Some(error.to_string()),
                    },
                    Verdict::Shut(reason) => Some(reason),
                };
                // It may also be that of a region that is no member yet, and cannot tell.
                let blind = || {
                    "this node lost its disk, and has not heard yet what the federation has decided"
                        .to_owned()
                };
                // Nor can it before there are founders; and it may be listed here and not where they are up.
                let founded =
                    federation.foundation.is_some() || listed.len() < 2 || planted(Bug::OpenGate);
                let early = || {
                    "the federation is not founded yet, and whether this region, whose folder may lack something, is one of \
                     its founders is known then: more than half of them must be up"
                        .to_owned()
                };
                let too_soon = || gate.restarted_early(time.hlc().ahead());
                let verdict = verdict
                    .or_else(|| too_soon().filter(|_| !opened))
                    .or_else(|| (!remembers).then(blind))
                    .or_else(|| (memory == Memory::Lost && !founded).then(early))
                    .or_else(|| shut_reason(&federation, me, &listed, homes.brought_home()))
                    .or_else(|| read_lock(&out));
                if verdict.is_none() && !opened {
                    opened = true;
                    if memory == Memory::Lost {
                        // The clock is trusted now, and may be put back later.
                        time.hlc().start_above(time.hlc().physical_now());
                    }
                    links.writing_own();
                    if let Err(error) = store.settle_heads() {
                        warn!(%error, "the log's end is settled, but that cannot be noted");
                    }
                    if let Err(error) = note_found(&*disk) {
                        warn!(%error, "the log is found again, but that cannot be noted");
                    }
                }
                if verdict != read_lock(&shut) {
                    match &verdict {
                        None => info!("appends are taken"),
                        Some(reason) => warn!(%reason, "appends are refused"),
                    }
                    write_lock(&shut, verdict);
                }
            }
            if let Err(error) = time.lay_down() {
                warn!(%error, "the clock ceiling cannot be lowered; the next start waits a moment for its clock");
            }
        };
        self.tracker.spawn(upkeep.instrument(info_span!("upkeep")));
    }

    // Reads sealed segments again, slowly, so that damage is found while a peer still has a copy.
    pub(super) fn spawn_scrub(self: &Arc<Self>) {
        let (store, tasks) = (Arc::clone(&self.store), self.tasks.clone());
        let scrub = async move {
            let mut cursor = ScrubCursor::default();
            loop {
                let step = store.scrub(&mut cursor, SCRUB_BYTES);
                for range in &step.found {
                    error!(%range, "the log is damaged here; the range is fetched from a peer");
                }
                let pause = if step.round_done {
                    SCRUB_ROUND_EVERY
                } else {
                    SCRUB_EVERY
                };
                tokio::select! {
                    biased;
                    () = tasks.cancelled() => break,
                    () = sleep(pause) => {}
                }
            }
        };
        self.tracker.spawn(scrub.instrument(info_span!("scrub")));
    }

    // Takes QUIC connections and hands each to whom it is for.
    pub(super) fn spawn_accept(self: &Arc<Self>) {
        let topology = self.topology();
        let door = Arc::new(Door {
            federation: self.config.federation,
            welcome: Welcome {
                version: PROTOCOL_VERSION,
                region: self.config.region,
                topology,
            },
            node: Arc::downgrade(self),
        });
        let (endpoint, links) = (self.endpoint.clone(), Arc::clone(&self.links));
        let (doors, tracker) = (self.doors.clone(), self.door_tracker.clone());
        let accept = async move {
            loop {
                let incoming = tokio::select! {
                    biased;
                    () = doors.cancelled() => break,
                    incoming = endpoint.accept() => incoming,
                };
                match incoming {
                    Some(Incoming::Link(connection, peer)) => links.accept(connection, peer),
                    Some(Incoming::Client(connection, peer)) => {
                        let span = info_span!("client", peer = %peer);
                        let serve = server::serve(connection, peer, door.clone(), doors.clone());
                        let serve = async move {
                            if let Err(error) = serve.await {
                                debug!(%error, "a client's connection ended");
                            }
                        };
                        tracker.spawn(serve.instrument(span));
                    }
                    None => break,
                }
            }
        };
        self.door_tracker
            .spawn(accept.instrument(info_span!("accept")));
    }
}

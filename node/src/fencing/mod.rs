//! This region's part in putting a lost region out, and its own way back.
//!
//! The control plane decides ([`crate::control::fence`]); this acts: it seals the fenced logs in the store and
//! on the links, says how far they are held, says when all up to the cuts is, and tells the watermarks
//! whom to wait for. If it is this region that was put out, it stops showing settled order, has the node
//! started anew to strand what does not count any more ([`strand`]), joins again, and begins a new
//! generation of its logs.
//!
//! Start reading at [`Fencing::run`].
//!
//! Always true (`sealed`): what is reported as held is durable, and nothing comes on top of it before the cut
//! is known here.

mod asked;
mod home_coming;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use meridian_clock::{Epoch, Hlc, LogId, PartitionId, Position, RegionId, Timestamp};
use meridian_points::reached;
use meridian_replication::{Links, Membership};
use meridian_store::Store;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use self::asked::{FenceReport, FenceStanding, RegionStanding, Standing};
pub(crate) use self::home_coming::{come_home, forget_replay, must_replay, note_replay};
use crate::control::fence::{Fence, Prefixes};
use crate::control::{Command, Consensus, Federation, Outcome};
use crate::node::write_lock;

/// How often a step that waits for something is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often it is looked whether a region has fallen silent.
const LISTEN_EVERY: Duration = Duration::from_millis(250);
/// How long one step may take.
const STEP_WITHIN: Duration = Duration::from_secs(5);
/// How long before a region that is out asks again to join.
const JOIN_AGAIN: Duration = Duration::from_millis(500);

/// What `federation` says of who takes part, for region `me`, which holds `store`. What the fences
/// `stranded` cut off was stranded before the node started.
pub(crate) fn membership(
    federation: &Federation,
    store: &Store,
    me: RegionId,
    stranded: &BTreeSet<u64>,
) -> Membership {
    let Some(foundation) = &federation.foundation else {
        return Membership::default();
    };
    let mut counted = federation.counted();
    // Whoever lacks some of what counts still waits for it.
    let lacking = federation.out.keys().filter(|region| {
        let fence = federation.fence_of(**region);
        fence.is_some_and(|fence| !holds(store, fence, **region))
    });
    counted.extend(lacking);
    let fenced = federation.fences.iter().flat_map(|it| it.regions.keys());
    let fenced: BTreeSet<RegionId> = fenced.copied().collect();
    let logs = fenced.iter().flat_map(|region| {
        let partitions = (0..foundation.partitions).map(PartitionId);
        partitions.map(|partition| LogId::new(*region, partition))
    });
    let by_surprise = federation
        .fence_of(me)
        .is_some_and(|fence| federation.out.contains_key(&me) && !stranded.contains(&fence.change));
    Membership {
        version: federation.membership,
        counted: (!federation.fences.is_empty()).then_some(counted),
        generations: logs.map(|log| (log, federation.generations(log))).collect(),
        stopped: by_surprise.then(|| "this region was fenced by the others".to_owned()),
    }
}

fn holds(store: &Store, fence: &Fence, region: RegionId) -> bool {
    let mut cuts = fence.cut_logs().filter(|(log, _)| log.origin == region);
    cuts.all(|(log, cut)| store.head(log).position >= cut)
}

/// What a node must strand before it opens its log: by fence that is open, in their order, the logs that it
/// cut, with the generation and the cut.
pub(crate) fn to_strand(federation: &Federation) -> Vec<BTreeMap<LogId, (u32, Position)>> {
    let mut times: BTreeMap<RegionId, u32> = BTreeMap::new();
    let mut all = Vec::new();
    for fence in &federation.fences {
        let mut cuts = BTreeMap::new();
        for region in fence.regions.keys() {
            *times.entry(*region).or_insert(Epoch::FIRST.major - 1) += 1;
        }
        if fence.opened {
            for (log, cut) in fence.cut_logs() {
                cuts.insert(log, (times.get(&log.origin).copied().unwrap_or(1), cut));
            }
            all.push(cuts);
        }
    }
    all
}

/// One node's part.
pub(crate) struct Fencing {
    pub(crate) region: RegionId,
    pub(crate) store: Arc<Store>,
    pub(crate) links: Arc<Links>,
    pub(crate) hlc: Arc<Hlc>,
    pub(crate) consensus: Arc<dyn Consensus>,
    pub(crate) federation: watch::Receiver<Arc<Federation>>,
    /// The fences that were open when the node started, by their first changes: what they cut off was
    /// stranded then.
    pub(crate) stranded: BTreeSet<u64>,
    /// Why this region may not write, as far as fences go.
    pub(crate) out: Arc<RwLock<Option<String>>>,
    /// Asks for the node to be started anew.
    pub(crate) restart: CancellationToken,
    /// How long a region is silent before it is taken for lost; `None` when an operator says so.
    pub(crate) lost_after: Option<Duration>,
    /// Said once this region may write again after it was put out.
    pub(crate) returned: watch::Sender<bool>,
}

// Notes when this node stood still: what it did not hear meanwhile says nothing of others.
async fn stay_awake(awake_since: &Mutex<Instant>) {
    loop {
        let before = Instant::now();
        sleep(LISTEN_EVERY).await;
        if before.elapsed() >= LISTEN_EVERY * 4 {
            *awake_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }
}

/// Why a region that is out does not write.
pub(crate) fn out_reason(federation: &Federation, me: RegionId) -> Option<String> {
    let out = federation.out.get(&me)?;
    Some(match out.joining {
        None => {
            "this region was fenced by the others, which go on without it; it strands what does \
                 not count any more and joins again"
                .to_owned()
        }
        Some(_) => format!(
            "this region was fenced and is coming back; {} of {} regions have welcomed it",
            out.welcomed.len(),
            federation.members().len()
        ),
    })
}

impl Fencing {
    /// Plays this region's part until `cancel`.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let awake_since = Mutex::new(Instant::now());
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = stay_awake(&awake_since) => {}
            () = self.play(&awake_since) => {}
        }
    }

    async fn play(mut self, awake_since: &Mutex<Instant>) {
        let mut listened_at = Instant::now();
        let mut joined_at = None;
        loop {
            let now = Arc::clone(&self.federation.borrow_and_update());
            let work = async {
                let is_settled = self.apply(&now);
                let steps = self.take_part(&now).await;
                let returns = self.come_back(&now, &mut joined_at).await;
                if self.lost_after.is_some() && listened_at.elapsed() >= LISTEN_EVERY {
                    listened_at = Instant::now();
                    let awake_since = *awake_since.lock().unwrap_or_else(PoisonError::into_inner);
                    self.listen(&now, awake_since).await;
                }
                !is_settled || steps || returns
            };
            let is_waiting = work.await;
            let again = match is_waiting {
                true => LOOK_EVERY,
                false => LISTEN_EVERY,
            };
            tokio::select! {
                biased;
                changed = self.federation.changed() => if changed.is_err() { return },
                () = sleep(again), if is_waiting || self.lost_after.is_some() => {}
            }
        }
    }

    // Tells the store and the links whose blocks count. Whether that cannot change before more is decided.
    fn apply(&self, federation: &Federation) -> bool {
        let membership = membership(federation, &self.store, self.region, &self.stranded);
        for (log, generations) in &membership.generations {
            self.store.set_generations(*log, generations.clone());
        }
        self.links.set_membership(&membership);
        let reason = out_reason(federation, self.region);
        if reason.is_some() {
            write_lock(&self.out, reason);
        }
        let counted = membership.counted.as_ref();
        counted.is_none_or(|counted| *counted == federation.counted())
    }

    // Does what a running fence, or a region that joins, waits for. Whether some is left to do.
    async fn take_part(&self, federation: &Federation) -> bool {
        let mut is_waiting = false;
        if let Some(fence) = federation.running_fence()
            && fence.remaining.contains(&self.region)
        {
            is_waiting |= self.seal_or_fill(federation, fence).await;
        }
        for (region, out) in &federation.out {
            let Some(change) = out.joining else { continue };
            let is_member = !federation.out.contains_key(&self.region);
            if is_member && !out.welcomed.contains_key(&self.region) {
                // The watermarks wait for the region by now, see `apply`.
                let welcomed = Command::Welcomed {
                    region: *region,
                    change,
                    by: self.region,
                    above: self.shown(),
                };
                is_waiting = true;
                self.propose(welcomed).await;
            }
        }
        is_waiting
    }

    // Nothing that this node has shown in settled order is stamped above this. Before a restart it may have
    // shown more than it knows of now, but never more than its own clock had promised.
    fn shown(&self) -> Timestamp {
        let marks = Arc::clone(&self.links.marks().borrow());
        let shown = marks.stable.iter().copied().max().unwrap_or_default();
        match self.hlc.skewed() {
            Some(_) => shown,
            None => shown.max(self.hlc.passed()),
        }
    }

    async fn seal_or_fill(&self, federation: &Federation, fence: &Fence) -> bool {
        let (change, round) = (fence.change, fence.round);
        let partitions = federation.foundation.as_ref().map_or(0, |it| it.partitions);
        if fence.cuts.is_empty() {
            if fence.sealed.contains_key(&self.region) {
                return false;
            }
            let mut held = Prefixes::new();
            for region in fence.regions.keys() {
                let mut positions = Vec::new();
                for partition in (0..partitions).map(PartitionId) {
                    let log = LogId::new(*region, partition);
                    let head = self.store.head(log).position;
                    // What the store has taken before it was sealed is on its way to the disk.
                    if self.store.submitted_head(log).position != head {
                        reached("a seal waited for what was on its way to the disk");
                        return true;
                    }
                    positions.push(head);
                }
                held.insert(*region, positions);
            }
            info!(
                fence = change,
                round, "this region has sealed the fenced logs"
            );
            let sealed = Command::Sealed {
                fence: change,
                round,
                by: self.region,
                held,
            };
            self.propose(sealed).await;
            return true;
        }
        if fence.filled.contains(&self.region) {
            return false;
        }
        let is_whole = fence
            .regions
            .keys()
            .all(|it| holds(&self.store, fence, *it));
        if is_whole {
            info!(
                fence = change,
                round, "this region holds all of the fenced logs that counts"
            );
            let filled = Command::Filled {
                fence: change,
                round,
                by: self.region,
            };
            self.propose(filled).await;
        } else {
            reached("a region filled a fenced log up to its cut");
        }
        true
    }

    // Goes the steps back, if this region was put out. Whether some are left.
    async fn come_back(&self, federation: &Federation, joined_at: &mut Option<Instant>) -> bool {
        if self.must_strand(federation) {
            if !self.restart.is_cancelled() {
                warn!(
                    "what this region wrote, or holds, beyond a cut does not count any more; the node starts anew to strand it"
                );
            }
            self.restart.cancel();
            return false;
        }
        let Some(out) = federation.out.get(&self.region) else {
            let is_out = self.out.read().is_ok_and(|out| out.is_some());
            if is_out {
                if let Some(returned) = federation.returned.get(&self.region) {
                    self.hlc.start_above(returned.above);
                }
                write_lock(&self.out, None);
                self.returned.send_replace(true);
                info!("this region is a member again");
            }
            return false;
        };
        let is_open = federation.fence_of(self.region).is_some_and(|it| it.opened);
        if !is_open || out.joining.is_some() {
            return false;
        }
        if joined_at.is_none_or(|at: Instant| at.elapsed() >= JOIN_AGAIN) {
            *joined_at = Some(Instant::now());
            let join = Command::Join {
                region: self.region,
            };
            self.propose(join).await;
        }
        true
    }

    // Whether something is held here that does not count any more, or this region was put out while it ran.
    fn must_strand(&self, federation: &Federation) -> bool {
        let new = |fence: &&Fence| fence.opened && !self.stranded.contains(&fence.change);
        let is_us = |fence: &Fence| fence.regions.contains_key(&self.region);
        let ends = to_strand(federation);
        let is_beyond = |(log, (generation, cut)): (&LogId, &(u32, Position))| {
            let head = self.store.head(*log);
            // What was written after the region had come back counts.
            head.position > *cut && head.epoch.major <= *generation
        };
        let opened = federation.fences.iter().filter(|fence| fence.opened);
        let mut opened = opened.zip(&ends).filter(|(fence, _)| new(fence));
        opened.any(|(fence, cuts)| is_us(fence) || cuts.iter().any(is_beyond))
    }

    // Tells the others whom this region does not hear any more.
    async fn listen(&self, federation: &Federation, awake_since: Instant) {
        let Some(lost_after) = self.lost_after else {
            return;
        };
        let members = federation.members();
        if !members.contains(&self.region) {
            return;
        }
        let silent: BTreeSet<RegionId> = self
            .links
            .peers()
            .iter()
            .filter(|peer| members.contains(&peer.region))
            .filter(|peer| {
                let awake = awake_since.elapsed();
                peer.last_heard.map_or(awake, |heard| heard.min(awake)) >= lost_after
            })
            .map(|peer| peer.region)
            .collect();
        let suspected = federation.suspected.iter();
        let said: BTreeSet<RegionId> = suspected
            .filter(|(_, by)| by.contains(&self.region))
            .map(|(region, _)| *region)
            .collect();
        if silent != said {
            warn!(regions = ?silent, "these regions are not heard any more");
            let suspect = Command::Suspect {
                by: self.region,
                silent,
            };
            self.propose(suspect).await;
        }
    }

    async fn propose(&self, command: Command) {
        let said = command.to_string();
        let deadline = Instant::now() + STEP_WITHIN;
        match self.consensus.propose(command, deadline).await {
            Ok(Outcome::Refused(refusal)) => {
                debug!(%refusal, said, "a step of a fence was refused")
            }
            Ok(_) => {}
            Err(error) => debug!(%error, said, "a step of a fence cannot be decided yet"),
        }
    }
}

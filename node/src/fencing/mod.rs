//! This region's part in putting a lost region out, and its own way back.
//!
//! The control plane decides ([`crate::control::fence`]); this acts: it seals the fenced logs in the store and
//! on the links, says how far they are held, says when all up to the cuts is, and tells the watermarks
//! whom to wait for. If it is this region that was put out, it stops showing settled order, has the node
//! started anew to strand what does not count any more ([`meridian_store::strand`]), joins again, and begins a new
//! generation of its logs.
//!
//! A region that was admitted comes in as one that comes back; one that leaves goes as one that is put out, at the
//! end of its logs.
//!
//! Start reading at [`Fencing::run`].
//!
//! Always true (`sealed`): what is reported as held is durable, and nothing comes on top of it before the cut
//! is known here.

mod asked;
mod home_coming;
mod members;

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
pub(crate) use self::home_coming::{come_home, forget_replay, is_home, must_replay, note_replay};
pub use self::members::MembershipReport;
use crate::control::fence::{Fence, Prefixes};
use crate::control::{Command, Consensus, Federation, Outcome};
use crate::homes::Homes;
use crate::node::write_lock;
use crate::sequencer::Sequencer;

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
    // Before a region comes back, members say how far they have shown the order. Nobody asks one that is out,
    // so it shows no more of it than it would if all were to come back now.
    if federation.out.contains_key(&me) {
        counted.extend(federation.out.keys());
    }
    let fenced = federation.fences.iter().flat_map(|it| it.regions.keys());
    let fenced: BTreeSet<RegionId> = fenced.copied().collect();
    let logs = fenced.iter().flat_map(|region| {
        let partitions = (0..foundation.partitions).map(PartitionId);
        partitions.map(|partition| LogId::new(*region, partition))
    });
    // Of a region that left there is nothing that does not count.
    let is_out = federation.out.contains_key(&me) && !federation.left.contains(&me);
    let by_surprise = federation
        .fence_of(me)
        .is_some_and(|fence| is_out && !stranded.contains(&fence.change));
    let stopped = match by_surprise {
        true => Some("this region was fenced by the others"),
        // Who was out when another region was fenced may hold more of it than those who remained.
        false if holds_beyond(federation, store, stranded) => {
            Some("this node holds what does not count any more")
        }
        false => None,
    };
    Membership {
        version: federation.membership,
        counted: Some(counted),
        generations: logs.map(|log| (log, federation.generations(log))).collect(),
        stopped: stopped.map(ToOwned::to_owned),
    }
}

/// Takes nothing more of `others` than what is sure to count. A node that lost its disk has forgotten
/// which logs it had sealed: what it takes it says it holds, and it would give out revisions on top.
pub(crate) fn take_only_own(membership: &mut Membership, others: &[LogId]) {
    for log in others {
        membership.generations.entry(*log).or_default().sealed = true;
    }
}

fn holds(store: &Store, fence: &Fence, region: RegionId) -> bool {
    let mut cuts = fence.cut_logs().filter(|(log, _)| log.origin == region);
    cuts.all(|(log, cut)| store.head(log).position >= cut)
}

// Whether `store` holds what a fence cut off that is open, and was not when the node started.
fn holds_beyond(federation: &Federation, store: &Store, stranded: &BTreeSet<u64>) -> bool {
    let is_beyond = |(log, (generation, cut)): (&LogId, &(u32, Position))| {
        let head = store.head(*log);
        // What was written after the region had come back counts.
        head.position > *cut && head.epoch.major <= *generation
    };
    let opened = federation.fences.iter().filter(|fence| fence.opened);
    let ends = to_strand(federation);
    let mut new = opened
        .zip(&ends)
        .filter(|(fence, _)| !stranded.contains(&fence.change));
    new.any(|(_, cuts)| cuts.iter().any(is_beyond))
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

// How far a region that leaves has come.
#[derive(Default)]
struct Leaving {
    // All that was held here when the last of this region's own was written.
    all: Option<Vec<(LogId, Position)>>,
    asked_at: Option<Instant>,
}

/// One node's part.
pub(crate) struct Fencing {
    pub(crate) region: RegionId,
    pub(crate) store: Arc<Store>,
    pub(crate) links: Arc<Links>,
    pub(crate) sequencers: Vec<Arc<Sequencer>>,
    pub(crate) homes: Arc<Homes>,
    /// The logs of all other regions that the configuration lists.
    pub(crate) others_logs: Vec<LogId>,
    /// The regions that the configuration lists.
    pub(crate) listed: BTreeMap<RegionId, String>,
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

/// Why a node whose configuration lists the regions `listed` may write nothing, as far as decisions go.
pub(crate) fn shut_reason(
    federation: &Federation,
    me: RegionId,
    listed: &BTreeMap<RegionId, String>,
    brought_home: bool,
) -> Option<String> {
    let lacking = federation.lacking(listed).filter(|it| !it.is_newcomer);
    lacking
        .map(|lacking| lacking.reason)
        .or_else(|| out_reason(federation, me, brought_home))
}

/// Why a region that is no member, or will not be one any more, does not write. One that leaves does until what
/// it stranded before is home: nobody else can write all of that again.
pub(crate) fn out_reason(
    federation: &Federation,
    me: RegionId,
    brought_home: bool,
) -> Option<String> {
    if !federation.knows(me) {
        return Some(
            "this region is not a member yet: it takes over what the others write, and \
             `meridian region join` makes it one"
                .to_owned(),
        );
    }
    if federation.left.contains(&me) {
        return Some(
            "this region has left the federation; it can be read, and its node stopped".to_owned(),
        );
    }
    if federation.leaving.contains_key(&me) && brought_home {
        return Some(
            "this region is leaving the federation, once every other region holds what it holds"
                .to_owned(),
        );
    }
    let out = federation.out.get(&me)?;
    Some(match out.joining {
        Some(_) if federation.is_newcomer(me) => format!(
            "this region is becoming a member; {} of {} regions have welcomed it",
            out.welcomed.len(),
            federation.members().len()
        ),
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
        let mut leaving = Leaving::default();
        loop {
            // First: what is decided, as it is read then, is all of it.
            let remembers = self.consensus.remembers();
            let now = Arc::clone(&self.federation.borrow_and_update());
            let work = async {
                let is_settled = self.apply(&now, remembers);
                let steps = self.take_part(&now).await;
                let returns = self.come_back(&now, &mut joined_at).await;
                let leaves = self.leave(&now, &mut leaving).await;
                if self.lost_after.is_some() && listened_at.elapsed() >= LISTEN_EVERY {
                    listened_at = Instant::now();
                    let awake_since = *awake_since.lock().unwrap_or_else(PoisonError::into_inner);
                    self.listen(&now, awake_since).await;
                }
                !is_settled || steps || returns || leaves
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

    fn shut_reason(&self, federation: &Federation) -> Option<String> {
        shut_reason(
            federation,
            self.region,
            &self.listed,
            self.homes.brought_home(),
        )
    }

    // Tells the store and the links whose blocks count. Whether that cannot change before more is decided.
    // What was known before this node lost its disk is known again if it `remembers`.
    fn apply(&self, federation: &Federation, remembers: bool) -> bool {
        let mut membership = membership(federation, &self.store, self.region, &self.stranded);
        if let Some(lacking) = federation.lacking(&self.listed)
            && !lacking.is_newcomer
        {
            membership.stopped = Some(lacking.reason);
        }
        if !remembers {
            take_only_own(&mut membership, &self.others_logs);
        }
        for log in self.others_logs.iter().chain(membership.generations.keys()) {
            let generations = membership.generations.get(log).cloned();
            self.store
                .set_generations(*log, generations.unwrap_or_default());
        }
        self.links.set_membership(&membership);
        let reason = self.shut_reason(federation);
        if reason.is_some() {
            write_lock(&self.out, reason);
        }
        let counted = membership.counted.as_ref();
        remembers && counted.is_none_or(|counted| *counted == federation.counted())
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
            // Whom this node cannot reach it does not welcome: it would never hold what that one writes.
            let is_listed = self.listed.contains_key(region);
            if is_member && is_listed && !out.welcomed.contains_key(&self.region) {
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
        if federation.left.contains(&self.region) {
            return false;
        }
        let Some(out) = federation.out.get(&self.region) else {
            if self.shut_reason(federation).is_some() {
                return false;
            }
            let is_out = self.out.read().is_ok_and(|out| out.is_some());
            if is_out {
                if let Some(returned) = federation.returned.get(&self.region) {
                    // It may have shown more of the order since the others welcomed it.
                    self.hlc.start_above(returned.above.max(self.shown()));
                }
                write_lock(&self.out, None);
                self.returned.send_replace(true);
                info!("this region is a member");
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

    // Goes for good, if that is decided: once nothing is written here any more, and all others hold what is held
    // here. Whether that is still to come.
    async fn leave(&self, federation: &Federation, leaving: &mut Leaving) -> bool {
        if !federation.leaving.contains_key(&self.region) {
            *leaving = Leaving::default();
            return false;
        }
        if !self.homes.brought_home() {
            reached("a region that leaves brought home what it had stranded first");
            return true;
        }
        // A block that began before may still be under way; no other one begins.
        if !self.sequencers.iter().all(|it| it.is_quiet()) {
            return true;
        }
        let heads = || {
            let heads = self.store.heads().into_iter();
            heads.map(|head| (head.log, head.position)).collect()
        };
        // Also what others wrote: who has it from here alone must not lose it.
        let all: &Vec<(LogId, Position)> = leaving.all.get_or_insert_with(heads);
        let held = Arc::clone(&self.links.held().borrow());
        let members = federation.members().into_iter();
        let mut others = members.filter(|member| *member != self.region);
        let is_held = others.all(|other| {
            let vector = held.get(&other);
            vector.is_some_and(|it| all.iter().all(|(log, most)| it.get(*log) >= *most))
        });
        let is_due = |at: Instant| at.elapsed() >= JOIN_AGAIN;
        if is_held && leaving.asked_at.is_none_or(is_due) {
            leaving.asked_at = Some(Instant::now());
            let region = self.region;
            self.propose(Command::Left { region }).await;
        }
        true
    }

    // Whether something is held here that does not count any more, or this region was put out while it ran.
    fn must_strand(&self, federation: &Federation) -> bool {
        let mut opened = federation.fences.iter().filter(|fence| fence.opened);
        let is_us = |fence: &Fence| {
            fence.regions.contains_key(&self.region) && !federation.left.contains(&self.region)
        };
        opened.any(|fence| is_us(fence) && !self.stranded.contains(&fence.change))
            || holds_beyond(federation, &self.store, &self.stranded)
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

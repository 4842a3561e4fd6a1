//! Decisions by Raft, among one node of each region.
//!
//! Who votes is a *life* of a region: a node that lost its disk may have forgotten whom it voted for,
//! so it never votes under its old number again. It draws a new one and asks the leader to put that in
//! the old one's place. A region that was admitted asks for its first vote in the same way; that of one that
//! has left is taken away.

mod anew;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use meridian_clock::RegionId;
use meridian_points::reached;
use meridian_replication::Links;
use meridian_store::Disk;
use openraft::error::{ClientWriteError, InstallSnapshotError, RaftError};
use openraft::impls::OneshotResponder;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{ChangeMembers, Config, EmptyNode, Entry, RaftTypeConfig, SnapshotPolicy};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use self::network::{Network, Unanswered};
use crate::control::command::{Command, Foundation, Outcome};
use crate::control::federation::Federation;
use crate::control::kept::{KEEP, Kept, OpenError, SNAPSHOT_EVERY};
use crate::control::runtime::{SeamRuntime, with_random};
use crate::control::{Consensus, ProposeError, Standing};
use crate::projections::Lane;
use crate::seams::{BoxFuture, Random};

/// How often the leader is heard. Regions lie up to some hundred milliseconds apart.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long a leader is silent before another region wants to lead: three heartbeats at least.
const ELECTION: (Duration, Duration) = (Duration::from_millis(1500), Duration::from_millis(3000));
/// How long one question to a peer may take.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// How long a leader may take to put a new life in an old one's place.
const REPLACE_WITHIN: Duration = Duration::from_secs(10);
/// How often what did not work is tried again.
const AGAIN_EVERY: Duration = Duration::from_secs(1);
/// How long before it is started anew after its disk failed.
const RESTART_AFTER: Duration = Duration::from_secs(5);
/// How long a proposal waits for a leader to be known before it looks again, and a node that lost its disk for
/// links to those who can tell it what is decided.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Room for what a restart draws at random within a region's number.
const LIFE_BITS: u32 = 48;

/// The types that the library is told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::control) struct Types;

impl RaftTypeConfig for Types {
    type D = Command;
    type R = Outcome;
    type NodeId = u64;
    type Node = EmptyNode;
    type Entry = Entry<Self>;
    type SnapshotData = std::io::Cursor<Vec<u8>>;
    type AsyncRuntime = SeamRuntime;
    type Responder = OneshotResponder<Self>;
}

/// A voter's number: its region, and which life of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) struct Life(pub(in crate::control) u64);

impl Life {
    // The one that every region begins with.
    fn first(region: RegionId) -> Self {
        Self(u64::from(region.0) << LIFE_BITS)
    }

    fn drawn(region: RegionId, random: &dyn Random) -> Self {
        let mut bytes = [0; 8];
        random.fill(&mut bytes);
        let drawn = u64::from_le_bytes(bytes) >> (u64::BITS - LIFE_BITS);
        Self(Self::first(region).0 | drawn.max(1))
    }

    fn region(self) -> RegionId {
        RegionId(u16::try_from(self.0 >> LIFE_BITS).unwrap_or(u16::MAX))
    }
}

// What one node asks another.
#[derive(Serialize, Deserialize)]
struct Question {
    // Whom it is meant for, unless it is for whoever leads.
    to: Option<u64>,
    what: Asked,
}

#[derive(Serialize, Deserialize)]
enum Asked {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<u64>),
    Snapshot(InstallSnapshotRequest<Types>),
    Propose(Command),
    // Put this life in the place of the asking region's other ones.
    Replace(u64),
    // Tell what is decided, to one that does not vote.
    Tell,
    // Grant the asking region its lease as a home.
    Lease,
    // Say how this node stands in the group.
    Stand,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Append(Result<AppendEntriesResponse<u64>, RaftError<u64>>),
    Vote(Result<VoteResponse<u64>, RaftError<u64>>),
    Snapshot(Result<InstallSnapshotResponse<u64>, RaftError<u64, InstallSnapshotError>>),
    // The outcome, and the log's index at which it was decided.
    Decided(Outcome, u64),
    // Not decided; perhaps this one leads.
    NotLeader(Option<u64>),
    Unknown(String),
    Replaced,
    // That life may have taken in something of a group that is over; ask again as another one.
    BeginAnew,
    Told(Box<Federation>),
    Lease(bool),
    // The question was for another life, or cannot be read.
    Wrong(String),
    // As whom it asks for a vote, unless it has one, and the last decision that it knows.
    Stands { asks_as: Option<u64>, version: u64 },
}

/// What a control plane is made of.
pub(crate) struct Setup {
    /// This node's region.
    pub(crate) region: RegionId,
    /// What it founds the federation on, if it is the first.
    pub(crate) foundation: Foundation,
    /// Where it keeps what is decided.
    pub(crate) disk: Arc<dyn Disk>,
    /// Where it writes.
    pub(crate) lane: Lane,
    /// Where it draws from.
    pub(crate) random: Arc<dyn Random>,
    /// Whether this disk may have forgotten what was decided.
    pub(crate) lost: bool,
    /// Ends it.
    pub(crate) tasks: CancellationToken,
    /// Counts its tasks.
    pub(crate) tracker: TaskTracker,
}

struct Running {
    raft: openraft::Raft<Types>,
    life: Life,
    kept: Kept,
    // The regions that lost their disks and ask for a vote.
    lost: BTreeMap<RegionId, Lost>,
}

// A region that asks for a vote.
struct Lost {
    // As whom.
    life: Life,
    // Its lives that had a vote then, as far as this node knew. Another one may have been given a vote since.
    before: BTreeSet<u64>,
}

struct Shared {
    setup: Setup,
    // The links hold the door through which peers come in here.
    links: OnceLock<Weak<Links>>,
    told: watch::Sender<Arc<Federation>>,
    running: Mutex<Option<Running>>,
    // Who has told what it knows to be decided, while this node does not vote.
    heard: Mutex<BTreeSet<RegionId>>,
    // Whether all that this disk may have forgotten is known again.
    remembers: AtomicBool,
    error: Mutex<Option<String>>,
}

/// The control plane by Raft.
#[derive(Clone)]
pub(crate) struct Plane(Arc<Shared>);

impl Plane {
    /// A control plane that does nothing before [`Plane::start`].
    pub(crate) fn new(setup: Setup) -> Self {
        let remembers = AtomicBool::new(!setup.lost);
        Self(Arc::new(Shared {
            setup,
            links: OnceLock::new(),
            told: watch::Sender::default(),
            running: Mutex::new(None),
            heard: Mutex::default(),
            remembers,
            error: Mutex::new(Some("the node has only just started".to_owned())),
        }))
    }

    /// Starts it over `links`. What was decided before is known when this returns.
    pub(crate) async fn start(&self, links: &Arc<Links>) {
        let shared = &self.0;
        if shared.links.set(Arc::downgrade(links)).is_err() {
            return;
        }
        shared.open().await;
        let keep = keep(Arc::clone(shared));
        shared.setup.tracker.spawn(keep);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn raft(&self) -> Option<(openraft::Raft<Types>, Life)> {
        let running = lock(&self.running);
        running
            .as_ref()
            .map(|running| (running.raft.clone(), running.life))
    }

    fn say(&self, reason: Option<String>) {
        *lock(&self.error) = reason;
    }

    async fn open(self: &Arc<Self>) {
        let opened = with_random(Arc::clone(&self.setup.random), self.try_open()).await;
        match opened {
            Ok(running) => {
                self.say(None);
                *lock(&self.running) = Some(running);
            }
            Err(reason) => {
                error!(%reason, "the control plane does not start; it is tried again");
                self.say(Some(reason));
            }
        }
    }

    async fn try_open(self: &Arc<Self>) -> Result<Running, String> {
        let setup = &self.setup;
        let life = || match setup.lost {
            true => Life::drawn(setup.region, &*setup.random).0,
            false => Life::first(setup.region).0,
        };
        let kept = Kept::open(&setup.disk, setup.lane, life, self.told.clone());
        let kept = kept.map_err(|error| explain(&error))?;
        let life = Life(kept.life());
        let config = Config {
            cluster_name: "meridian".to_owned(),
            heartbeat_interval: millis(HEARTBEAT),
            election_timeout_min: millis(ELECTION.0),
            election_timeout_max: millis(ELECTION.1),
            install_snapshot_timeout: millis(ASK_WITHIN),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
            max_in_snapshot_log_to_keep: KEEP,
            replication_lag_threshold: SNAPSHOT_EVERY * 2,
            ..Config::default()
        };
        let config = config.validate().map_err(|error| error.to_string())?;
        let is_alone = kept.is_refounded();
        let is_first = life == Life::first(setup.region) || is_alone;
        let begins = kept.is_untouched() && is_first;
        let network = Network(Arc::clone(self));
        let files = (kept.clone(), kept.clone());
        let raft = openraft::Raft::new(life.0, Arc::new(config), network, files.0, files.1)
            .await
            .map_err(|error| error.to_string())?;
        if begins {
            let members = setup.foundation.members.keys();
            let voters: BTreeSet<u64> = match is_alone {
                true => [life.0].into(),
                false => members.map(|region| Life::first(*region).0).collect(),
            };
            if let Err(error) = raft.initialize(voters).await {
                debug!(%error, "the control plane was begun by another region");
            }
        }
        if let Some(known) = kept.to_carry_on() {
            // Before anyone else is let in: they begin with nothing.
            let go_on = Command::GoOn(Box::new(known));
            let deadline = Instant::now() + REPLACE_WITHIN;
            let decided = timeout_at(deadline, insist(&raft, go_on)).await;
            if decided.is_err() {
                drop(raft.shutdown().await);
                return Err("what is known could not be decided anew".to_owned());
            }
        }
        Ok(Running {
            raft,
            life,
            kept,
            lost: BTreeMap::new(),
        })
    }

    // Whether this node's life is among the voters, as far as it knows.
    fn is_voter(&self) -> bool {
        self.raft().is_some_and(|(raft, life)| {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            let mut voters = metrics.membership_config.voter_ids();
            voters.any(|voter| voter == life.0)
        })
    }

    async fn ask(&self, peer: RegionId, question: &Question) -> Result<Answer, Unanswered> {
        let links = self.links.get().and_then(Weak::upgrade);
        let links = links.ok_or_else(|| Unanswered("the links are down".to_owned()))?;
        let bytes = postcard::to_stdvec(question).map_err(|error| Unanswered(error.to_string()))?;
        let answer = links
            .ask(peer, bytes.into(), ASK_WITHIN)
            .await
            .map_err(|error| Unanswered(error.to_string()))?;
        postcard::from_bytes(&answer).map_err(|error| Unanswered(error.to_string()))
    }

    async fn answer(self: Arc<Self>, from: RegionId, question: Bytes) -> Answer {
        let question: Question = match postcard::from_bytes(&question) {
            Ok(question) => question,
            Err(error) => return Answer::Wrong(error.to_string()),
        };
        let Some((raft, life)) = self.raft() else {
            return Answer::Wrong("the control plane does not run here now".to_owned());
        };
        if question.to.is_some_and(|to| to != life.0) {
            return Answer::Wrong("this node has begun a new life".to_owned());
        }
        match question.what {
            Asked::Append(request) => Answer::Append(raft.append_entries(request).await),
            Asked::Vote(request) => Answer::Vote(raft.vote(request).await),
            Asked::Snapshot(request) => Answer::Snapshot(raft.install_snapshot(request).await),
            Asked::Propose(command) => {
                let decided = timeout_at(Instant::now() + ASK_WITHIN, decide(&raft, command)).await;
                decided.unwrap_or_else(|_| Answer::Unknown("it took too long".to_owned()))
            }
            Asked::Replace(life) if Life(life).region() == from => {
                self.replace(&raft, Life(life)).await
            }
            Asked::Replace(_) => Answer::Wrong("a region speaks for itself only".to_owned()),
            Asked::Tell => Answer::Told(Box::new(Federation::clone(&self.told.borrow()))),
            Asked::Lease => Answer::Lease(self.grants(&raft, life, from)),
            Asked::Stand => Answer::Stands {
                asks_as: (!self.is_voter()).then_some(life.0),
                version: self.told.borrow().version,
            },
        }
    }

    // Whether `from` gets its lease from this node: if both are members, as far as this node knows, and it
    // knows all that it ever knew. One that lost its disk may have sealed `from`, and forgotten; what it
    // had applied then came before its new life's vote.
    fn grants(&self, raft: &openraft::Raft<Types>, life: Life, from: RegionId) -> bool {
        let members = self.told.borrow().members();
        has_caught_up(raft, life) && members.contains(&from) && members.contains(&self.setup.region)
    }

    // Whether all that this disk may have forgotten is known again. Either a leader has given it its vote back,
    // behind whatever it may have acted on; or, as there may never be one, all others have told what
    // they know, one of whom has decided with it. Of a region that has no vote nothing waited.
    fn remembers(&self) -> bool {
        if self.remembers.load(Ordering::Acquire) {
            return true;
        }
        let is_back = self
            .raft()
            .is_some_and(|(raft, life)| has_caught_up(&raft, life));
        let remembers = is_back || {
            let told = Arc::clone(&self.told.borrow());
            let heard = lock(&self.heard);
            let gone = told.gone();
            let mut others = self.others().into_iter().filter(|it| !gone.contains(it));
            let members = told.members();
            others.all(|other| heard.contains(&other))
                || (!told.may_vote(self.setup.region)
                    && members.intersection(&heard).count() > members.len() / 2)
        };
        if remembers {
            reached("a node that had lost its disk knew again what was decided");
            self.remembers.store(true, Ordering::Release);
        }
        remembers
    }

    // Puts `life` in the place of its region's earlier ones.
    async fn replace(&self, raft: &openraft::Raft<Types>, life: Life) -> Answer {
        let voters: BTreeSet<u64> = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            metrics.membership_config.voter_ids().collect()
        };
        if voters.contains(&life.0) {
            return Answer::Replaced;
        }
        let of_region = |voter: &&u64| Life(**voter).region() == life.region();
        let old: BTreeSet<u64> = voters.iter().filter(of_region).copied().collect();
        let told = Arc::clone(&self.told.borrow());
        let may_vote = match told.foundation {
            Some(_) => told.may_vote(life.region()),
            // Whoever was listed since is no founder: it joins once there is something to join.
            None => !old.is_empty(),
        };
        if !may_vote {
            return Answer::Wrong("this region is not a member".to_owned());
        }
        if let Some(running) = &mut *lock(&self.running) {
            if running.kept.refuses(life.0) {
                return Answer::BeginAnew;
            }
            let before = old.clone();
            running.lost.insert(life.region(), Lost { life, before });
        }
        let change = async {
            raft.add_learner(life.0, EmptyNode {}, true).await?;
            let mut voters = &voters - &old;
            voters.insert(life.0);
            raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), false)
                .await
        };
        match timeout_at(Instant::now() + REPLACE_WITHIN, change).await {
            Ok(Ok(_)) => {
                match old.is_empty() {
                    true => info!(region = %life.region(), "a region that became a member votes"),
                    false => {
                        info!(region = %life.region(), "a region that lost its disk votes again");
                    }
                }
                Answer::Replaced
            }
            Ok(Err(error)) => leader_or(&error, error.forward_to_leader().map(|to| to.leader_id)),
            Err(_) => Answer::Unknown("it took too long".to_owned()),
        }
    }
}

// Whether `life` votes, and knows all that was decided before it did.
fn has_caught_up(raft: &openraft::Raft<Types>, life: Life) -> bool {
    let metrics = raft.metrics();
    let metrics = metrics.borrow();
    let voters = &metrics.membership_config;
    let is_voter = voters.voter_ids().any(|voter| voter == life.0);
    is_voter && *voters.log_id() <= metrics.last_applied
}

fn leader_or(error: &impl fmt::Display, forward: Option<Option<u64>>) -> Answer {
    match forward {
        Some(leader) => Answer::NotLeader(leader),
        None => Answer::Unknown(error.to_string()),
    }
}

// Decides, as soon as this node leads.
async fn insist(raft: &openraft::Raft<Types>, command: Command) {
    while !matches!(decide(raft, command.clone()).await, Answer::Decided(..)) {
        sleep(LOOK_AGAIN).await;
    }
}

async fn decide(raft: &openraft::Raft<Types>, command: Command) -> Answer {
    match raft.client_write(command).await {
        Ok(written) => Answer::Decided(written.data, written.log_id.index),
        Err(error) => {
            let forward = match &error {
                RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => Some(to.leader_id),
                _ => None,
            };
            leader_or(&error, forward)
        }
    }
}

// Keeps the control plane running: begins it anew when its disk failed, founds the federation, and
// asks for a vote where this node lost its own.
async fn keep(shared: Arc<Shared>) {
    loop {
        let pause = match shared.raft() {
            None => RESTART_AFTER,
            // Until then it takes nothing of the others' logs.
            Some(_) if !shared.remembers() => LOOK_AGAIN,
            Some(_) => AGAIN_EVERY,
        };
        tokio::select! {
            biased;
            () = shared.setup.tasks.cancelled() => break,
            () = sleep(pause) => {}
        }
        let Some((raft, life)) = shared.raft() else {
            shared.open().await;
            continue;
        };
        let (state, leader, heard_ms) = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            let heard_ms = metrics.millis_since_quorum_ack;
            (
                metrics.running_state.clone(),
                metrics.current_leader,
                heard_ms,
            )
        };
        // One that leads, and is not heard by more than half, leads nobody.
        let leader = leader.filter(|leader| {
            let is_heard = heard_ms.is_some_and(|ms| ms <= millis(ELECTION.1));
            *leader != life.0 || is_heard
        });
        if let Err(fatal) = state {
            error!(%fatal, "the control plane stopped on this node; it is started anew");
            shared.say(Some(fatal.to_string()));
            // Its error is the one that was just said.
            drop(raft.shutdown().await);
            *lock(&shared.running) = None;
            continue;
        }
        let leader = leader.map(|leader| Life(leader).region());
        if shared.is_last_survivor() {
            shared.refound().await;
        } else if !shared.is_voter() {
            let joining = async {
                listen(&shared).await;
                let may_vote = shared.told.borrow().may_vote(shared.setup.region);
                if may_vote {
                    join(&shared, life, leader).await;
                }
                if leader.is_none() && shared.is_first_of_the_lost().await {
                    shared.refound().await;
                }
            };
            // Peers that do not answer must not keep a node from stopping.
            tokio::select! {
                biased;
                () = shared.setup.tasks.cancelled() => break,
                () = joining => {}
            }
        } else if leader.is_none() {
            let looking = async {
                if shared.is_over().await {
                    reached("a region found that another one had gone on without it");
                    shared.begin_anew().await;
                }
            };
            tokio::select! {
                biased;
                () = shared.setup.tasks.cancelled() => break,
                () = looking => {}
            }
        } else if leader == Some(shared.setup.region) && shared.told.borrow().foundation.is_none() {
            let found = Command::Found(shared.founded_by(&raft));
            let within = timeout_at(Instant::now() + ASK_WITHIN, decide(&raft, found)).await;
            if !matches!(within, Ok(Answer::Decided(..))) {
                debug!("the federation is not founded yet");
            }
        } else if leader == Some(shared.setup.region) {
            shared.dismiss_left(&raft).await;
        }
    }
    if let Some((raft, _)) = shared.raft()
        && let Err(error) = raft.shutdown().await
    {
        warn!(%error, "the control plane did not end in order");
    }
    *lock(&shared.running) = None;
}

impl Shared {
    // What the federation begins with: the regions that vote from the beginning. Before there is a foundation homes go by
    // the regions that are listed, so one that was listed since must not count as if it had always been there.
    fn founded_by(&self, raft: &openraft::Raft<Types>) -> Foundation {
        let metrics = raft.metrics();
        let voters: BTreeSet<RegionId> = {
            let metrics = metrics.borrow();
            let voters = metrics.membership_config.voter_ids();
            voters.map(|voter| Life(voter).region()).collect()
        };
        let mut foundation = self.setup.foundation.clone();
        // Who began a group alone, since all others had lost their disks, does not know any more who voted.
        let running = lock(&self.running);
        if running.as_ref().is_some_and(|it| it.kept.is_refounded()) {
            return foundation;
        }
        drop(running);
        foundation.members.retain(|region, _| {
            let votes = voters.contains(region);
            if !votes {
                reached("a region was listed before the federation was founded");
            }
            votes
        });
        foundation
    }

    // Takes the vote from regions that have left for good, as the leader.
    async fn dismiss_left(&self, raft: &openraft::Raft<Types>) {
        let left = self.told.borrow().gone();
        let voters: BTreeSet<u64> = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            metrics.membership_config.voter_ids().collect()
        };
        let has_left = |voter: &u64| left.contains(&Life(*voter).region());
        if !voters.iter().any(has_left) {
            return;
        }
        let stay = voters.into_iter().filter(|voter| !has_left(voter));
        let change = ChangeMembers::ReplaceAllVoters(stay.collect());
        let change = raft.change_membership(change, false);
        match timeout_at(Instant::now() + REPLACE_WITHIN, change).await {
            Ok(Ok(_)) => info!(regions = ?left, "regions that have left do not vote any more"),
            Ok(Err(error)) => debug!(%error, "a region that has left votes still"),
            Err(_) => debug!("a region that has left votes still: it took too long"),
        }
    }

    fn others(&self) -> Vec<RegionId> {
        let members = self.setup.foundation.members.keys().copied();
        members.filter(|it| *it != self.setup.region).collect()
    }
}

// Learns from peers what is decided, for a node that does not vote: it may never do so again where too
// few are left to decide that. Decisions are one line, so whoever knows more knows all that others do.
async fn listen(shared: &Arc<Shared>) {
    let others = shared.others();
    let question = Question {
        to: None,
        what: Asked::Tell,
    };
    // All at once: those that do not answer must not keep it from the others.
    let asked = others.iter().map(|peer| shared.ask(*peer, &question));
    let answers = join_all(asked).await;
    for (peer, answer) in others.into_iter().zip(answers) {
        let Ok(Answer::Told(federation)) = answer else {
            continue;
        };
        let kept = lock(&shared.running).as_ref().map(|it| it.kept.clone());
        let Some(kept) = kept else { return };
        match kept.hear(*federation).await {
            // Only now: whoever asks whether all have been heard goes by what they told.
            Ok(()) => {
                lock(&shared.heard).insert(peer);
            }
            Err(error) => warn!(%error, "what another region says is decided cannot be kept"),
        }
    }
}

// Asks whoever leads for a vote under our new number.
async fn join(shared: &Arc<Shared>, life: Life, leader: Option<RegionId>) {
    let asked: Vec<RegionId> = match leader {
        Some(leader) if leader != shared.setup.region => vec![leader],
        _ => shared.others(),
    };
    for peer in asked {
        let question = Question {
            to: None,
            what: Asked::Replace(life.0),
        };
        let answer = shared.ask(peer, &question).await;
        let reason = match answer {
            Ok(Answer::Replaced) => {
                info!(%peer, "this region votes again");
                return;
            }
            Ok(Answer::NotLeader(_)) => continue,
            Ok(Answer::BeginAnew) => {
                shared.begin_anew().await;
                return;
            }
            Ok(Answer::Wrong(reason) | Answer::Unknown(reason)) | Err(Unanswered(reason)) => reason,
            Ok(_) => "the answer has no place here".to_owned(),
        };
        debug!(%peer, reason, "this region does not vote yet");
    }
}

impl Consensus for Plane {
    fn federation(&self) -> watch::Receiver<Arc<Federation>> {
        self.0.told.subscribe()
    }

    fn remembers(&self) -> bool {
        self.0.remembers()
    }

    fn propose(
        &self,
        command: Command,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Outcome, ProposeError>> {
        Box::pin(propose(&self.0, command, deadline))
    }

    fn go_on_alone(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { self.0.go_on_alone().await })
    }

    fn request_lease(&self, of: RegionId) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let question = Question {
                to: None,
                what: Asked::Lease,
            };
            matches!(self.0.ask(of, &question).await, Ok(Answer::Lease(true)))
        })
    }

    fn answer(&self, from: RegionId, question: Bytes) -> BoxFuture<'static, Bytes> {
        let answering = Arc::clone(&self.0).answer(from, question);
        Box::pin(async move {
            let answer = answering.await;
            // An empty answer is one that the peer cannot read.
            postcard::to_stdvec(&answer).unwrap_or_default().into()
        })
    }

    fn standing(&self) -> Standing {
        let mut standing = Standing {
            error: lock(&self.0.error).clone(),
            ..Standing::default()
        };
        if let Some((raft, _)) = self.0.raft() {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            let voters = metrics.membership_config.voter_ids();
            let voters: BTreeSet<RegionId> = voters.map(|voter| Life(voter).region()).collect();
            standing.leader = metrics.current_leader.map(|leader| Life(leader).region());
            standing.term = metrics.current_term;
            standing.voters = voters.into_iter().collect();
            if let Err(fatal) = &metrics.running_state {
                standing.error = Some(fatal.to_string());
            }
        }
        standing
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some((raft, _)) = self.0.raft() {
                // What it says has been said by the task that keeps it.
                drop(raft.shutdown().await);
            }
        })
    }
}

async fn propose(
    shared: &Arc<Shared>,
    command: Command,
    deadline: Instant,
) -> Result<Outcome, ProposeError> {
    let mut maybe = None;
    let mut hint = None;
    let mut reason = "no region leads".to_owned();
    loop {
        let Some((raft, _)) = shared.raft() else {
            reason = lock(&shared.error).clone().unwrap_or(reason);
            return Err(ProposeError::Unavailable { reason });
        };
        let known = raft.metrics().borrow().current_leader;
        let leader = hint.take().or(known).map(|leader| Life(leader).region());
        let asking = async {
            match leader {
                None => Answer::NotLeader(None),
                Some(leader) if leader == shared.setup.region => {
                    decide(&raft, command.clone()).await
                }
                Some(leader) => {
                    let question = Question {
                        to: None,
                        what: Asked::Propose(command.clone()),
                    };
                    match shared.ask(leader, &question).await {
                        Ok(answer) => answer,
                        Err(Unanswered(reason)) => Answer::Unknown(reason),
                    }
                }
            }
        };
        match timeout_at(deadline, asking).await {
            Ok(Answer::Decided(outcome, index)) => {
                applied_here(&raft, index, deadline).await?;
                return Ok(outcome);
            }
            Ok(Answer::NotLeader(leader)) => hint = leader,
            Ok(Answer::Unknown(said)) => maybe = Some(said),
            Ok(Answer::Wrong(said)) => reason = said,
            Ok(_) => reason = "the answer has no place here".to_owned(),
            Err(_) => maybe = Some("it took too long".to_owned()),
        }
        if Instant::now() + LOOK_AGAIN >= deadline {
            return Err(match maybe {
                Some(reason) => ProposeError::Unknown { reason },
                None => ProposeError::Unavailable { reason },
            });
        }
        sleep(LOOK_AGAIN).await;
    }
}

// Waits until this node knows what was decided at `index`.
async fn applied_here(
    raft: &openraft::Raft<Types>,
    index: u64,
    deadline: Instant,
) -> Result<(), ProposeError> {
    let mut metrics = raft.metrics();
    let has = metrics.wait_for(|it| it.last_applied.is_some_and(|at| at.index >= index));
    match timeout_at(deadline, has).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(ProposeError::Unknown {
            reason: "it is decided, but this node has not heard of it yet".to_owned(),
        }),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(in crate::control) fn explain(error: &OpenError) -> String {
    let mut said = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_life_belongs_to_its_region() {
        let random = crate::seams::SystemRandom;
        for region in [RegionId(0), RegionId(7), RegionId(u16::MAX)] {
            let drawn = Life::drawn(region, &random);
            assert_eq!(drawn.region(), region);
            assert_ne!(drawn, Life::first(region));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_question_and_no_answer_that_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            // What they are taken for, if for anything, is the library's to judge.
            let _ = postcard::from_bytes::<Question>(&bytes).is_ok();
            let _ = postcard::from_bytes::<Answer>(&bytes).is_ok();
        }
    }
}

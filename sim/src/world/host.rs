//! One machine: its disk and clock, which outlive the node that runs on it.

use std::collections::BTreeMap;
use std::mem;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use meridian_clock::LogId;
use meridian_event::StreamId;
use meridian_node::config::NodeConfig;
use meridian_node::seams::{Network, Random, Seams};
use meridian_node::{Identity, Node, StartError};
use meridian_projection::Definition;
use meridian_store::{Lanes, SimDisk, Store};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::LOOK_EVERY;
use super::clock::{PacedClock, SkewedClock, elapsed};
use super::cryptography;
use super::network::SimNetwork;
use super::story::What;
use super::trace::Trace;
use super::witness::{self, Mark};
use crate::load::follow::Rewinds;
use crate::rng::Rng;

/// A machine and what is wrong with it now.
pub struct Machine {
    /// Its region, as an index into the plan's.
    pub index: usize,
    /// Its region's name.
    pub name: String,
    /// Where it is.
    pub ip: IpAddr,
    /// Its wall clock.
    pub clock: SkewedClock,
    /// How much faster than true time the clock runs that it measures leases with, in millionths.
    pub pace_ppm: i64,
    /// How slow its disk is now, as a factor.
    pub slow: AtomicU64,
    /// Whether it stands still: then nothing is committed.
    pub paused: AtomicBool,
    /// How often it was given an empty disk.
    pub lives: Arc<AtomicU64>,
    /// How often a node began to run on it.
    pub runs: AtomicU64,
    /// Where its logs went back to, when it stranded what a fence had cut off.
    pub rewinds: Rewinds,
    /// How long a commit takes, in microseconds.
    pub commit_us: (u64, u64),
    /// Tells the node to stop in order.
    pub stop: Notify,
    /// Set once it has.
    pub stopped: AtomicBool,
    /// Notes commits.
    pub trace: Trace,
    /// Where its network leads.
    pub network: Arc<SimNetwork>,
    /// Its configuration, once it lists everyone.
    config: NodeConfig,
    /// How many of the regions in it are founders.
    founders: usize,
    /// Whether it lists the others, too. A newcomer runs from then on.
    pub lists_all: AtomicBool,
    /// The projections that it keeps read models of.
    pub projections: Vec<Definition>,
    /// The streams of fenced categories.
    pub fenced: Vec<StreamId>,
    /// Nobody tells its node that its disk is a copy.
    pub backup_untold: bool,
    changing: Mutex<Changing>,
}

struct Changing {
    disk: SimDisk,
    backup: Option<SimDisk>,
    // Whether the disk was put back from a backup, and it has not started since.
    restored: bool,
    // Where its read models are: files that the simulated power does not reach.
    read_models: Option<TempDir>,
    node: Weak<Node>,
    rng: Rng,
    start_error: Option<String>,
    // Whether its first disk was made ready for a new region, as an operator does.
    prepared: bool,
    // How far each log was reported as committed from this disk.
    reported: BTreeMap<LogId, Mark>,
    lost: Vec<String>,
    // When it was last asked which streams of fenced categories it orders, and which.
    ordered: (Duration, Vec<StreamId>),
}

struct SeededRandom {
    name: String,
    rng: Mutex<Rng>,
    trace: Trace,
}

fn folder() -> TempDir {
    TempDir::with_prefix("meridian-sim-").expect("the system has a place for temporary files")
}

impl Random for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        self.rng
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fill(bytes);
        // A draw more or less is where two runs part, long before it shows on the network.
        let first = bytes.first().copied().unwrap_or_default();
        self.trace.note(
            elapsed(),
            format_args!("{} draws {} bytes, {first:02x}", self.name, bytes.len()),
        );
    }
}

/// What a machine is made of.
pub struct Parts {
    /// See [`Machine::clock`].
    pub clock: SkewedClock,
    /// See [`Machine::pace_ppm`].
    pub pace_ppm: i64,
    /// See [`Machine::commit_us`].
    pub commit_us: (u64, u64),
    /// See [`Machine::trace`].
    pub trace: Trace,
    /// See [`Machine::network`].
    pub network: Arc<SimNetwork>,
    /// The node's configuration, listing everyone.
    pub config: NodeConfig,
    /// How many of the regions in it are founders.
    pub founders: usize,
    /// The projections that it keeps read models of.
    pub projections: Vec<Definition>,
    /// The streams of fenced categories.
    pub fenced: Vec<StreamId>,
    /// See [`Machine::backup_untold`].
    pub backup_untold: bool,
}

impl Machine {
    /// A machine with an empty disk.
    pub fn new(seed: u64, index: usize, name: &str, ip: IpAddr, parts: Parts) -> Self {
        let mut rng = Rng::part(seed, &format!("machine {name}"));
        Self {
            index,
            name: name.to_owned(),
            ip,
            clock: parts.clock,
            pace_ppm: parts.pace_ppm,
            slow: AtomicU64::new(1),
            paused: AtomicBool::new(false),
            lives: Arc::default(),
            runs: AtomicU64::new(0),
            rewinds: Rewinds::default(),
            commit_us: parts.commit_us,
            stop: Notify::new(),
            stopped: AtomicBool::new(false),
            trace: parts.trace,
            network: parts.network,
            lists_all: AtomicBool::new(parts.founders >= parts.config.members.len()),
            config: parts.config,
            founders: parts.founders,
            changing: Mutex::new(Changing {
                disk: SimDisk::new(rng.next_u64()),
                backup: None,
                restored: false,
                read_models: (!parts.projections.is_empty()).then(folder),
                node: Weak::new(),
                rng,
                start_error: None,
                // A newcomer's folder is empty, as nothing has to be prepared in it.
                prepared: index >= parts.founders,
                reported: BTreeMap::new(),
                lost: Vec::new(),
                ordered: Default::default(),
            }),
            projections: parts.projections,
            fenced: parts.fenced,
            backup_untold: parts.backup_untold,
        }
    }

    fn changing(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its disk.
    pub fn disk(&self) -> SimDisk {
        self.changing().disk.clone()
    }

    /// The folder of its read models, if it keeps any.
    pub fn read_models(&self) -> Option<PathBuf> {
        let changing = self.changing();
        let folder = changing.read_models.as_ref()?;
        Some(folder.path().to_owned())
    }

    /// Copies its disk, as it is on the medium now.
    pub fn back_up(&self) {
        let mut changing = self.changing();
        let seed = changing.rng.next_u64();
        changing.backup = Some(changing.disk.backup(seed));
    }

    /// Gives it an empty disk, or the copy that was made of its own; whether it was a copy.
    pub fn replace_disk(&self) -> bool {
        let mut changing = self.changing();
        let seed = changing.rng.next_u64();
        let backup = changing.backup.take();
        changing.restored = backup.is_some();
        changing.disk = backup.unwrap_or_else(|| SimDisk::new(seed));
        if changing.read_models.is_some() {
            changing.read_models = Some(folder());
        }
        self.lives.fetch_add(1, Ordering::Relaxed);
        changing.reported.clear();
        changing.restored
    }

    /// Takes note of what is committed: whatever happens to the node, its disk must keep it.
    pub fn note_committed(&self, node: &Node) {
        let heads = node.store().heads();
        let mut changing = self.changing();
        for head in heads {
            let reported = changing.reported.entry(head.log).or_default();
            *reported = Mark::of(&head).max(*reported);
        }
    }

    /// What was committed and not there any more after a start.
    pub fn lost(&self) -> Vec<String> {
        self.changing().lost.clone()
    }

    /// Which streams of fenced categories its node ordered when it was last asked, and when that was.
    pub fn ordered(&self) -> (Duration, Vec<StreamId>) {
        self.changing().ordered.clone()
    }

    // Asks the node over and over which streams of fenced categories it orders. By its own timers, which is why
    // the one who watches cannot; and at the same moments as on every other machine.
    async fn note_ordered(self: Arc<Self>, node: Weak<Node>) {
        loop {
            let looks = elapsed().as_nanos() / LOOK_EVERY.as_nanos() + 1;
            let next = LOOK_EVERY * u32::try_from(looks).unwrap_or(u32::MAX);
            sleep(next.saturating_sub(elapsed())).await;
            let Some(node) = node.upgrade() else { return };
            let fenced = self.fenced.iter();
            let ordered = fenced.filter(|stream| node.orders(stream)).cloned();
            self.changing().ordered = (next, ordered.collect());
        }
    }

    // Whether a log went back to the cut of a fence.
    fn compare_with_committed(&self, node: &Node) -> bool {
        let heads = node.store().heads();
        let found = heads.iter().map(|head| (head.log, Mark::of(head)));
        let found: BTreeMap<_, _> = found.collect();
        let mut changing = self.changing();
        let compared = witness::compare(&changing.reported, &found, |log| node.generations(log));
        // Of a loss, only what it was at first is news.
        changing.reported = found;
        changing.lost.extend(compared.lost);
        for (log, cut) in &compared.rewound {
            let name = node.region_names().get(&log.origin).cloned();
            let log = (name.unwrap_or_default(), log.partition.0);
            self.rewinds.note(log, cut.0);
        }
        !compared.rewound.is_empty()
    }

    /// The node that runs on it, if one does.
    ///
    /// The answer must be dropped before anything else happens in the run.
    pub fn node(&self) -> Option<Arc<Node>> {
        self.changing().node.upgrade()
    }

    /// Why the node did not start, if it did not.
    pub fn start_error(&self) -> Option<String> {
        self.changing().start_error.clone()
    }

    /// The next start is another matter.
    pub fn forget_start_error(&self) {
        self.changing().start_error = None;
    }

    fn part(&self) -> Rng {
        Rng::new(self.changing().rng.next_u64())
    }

    /// Whether its region is no founder.
    pub fn is_newcomer(&self) -> bool {
        self.index >= self.founders
    }

    // The configuration that a node is started with now.
    fn config(&self) -> NodeConfig {
        let mut config = self.config.clone();
        if !self.lists_all.load(Ordering::Relaxed) {
            config.members.truncate(self.founders);
        }
        config
    }

    /// Runs a node until it is told to stop or dies.
    pub async fn run(self: Arc<Self>) {
        if self.is_newcomer() && !self.lists_all.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        let seams = Seams {
            disk: Arc::new(self.disk()),
            clock: Arc::new(self.clock.clone()),
            steady: Arc::new(PacedClock::new(self.pace_ppm)),
            random: Arc::new(SeededRandom {
                name: self.name.clone(),
                rng: Mutex::new(self.part()),
                trace: self.trace.clone(),
            }),
            network: Arc::clone(&self.network) as Arc<dyn Network>,
            lanes: Lanes::Driven,
            tls: cryptography::seams(),
            read_models: self
                .read_models()
                .unwrap_or_else(|| "no-read-models".into()),
        };
        self.stopped.store(false, Ordering::Relaxed);
        self.forget_start_error();
        if !mem::replace(&mut self.changing().prepared, true)
            && let Err(error) = Identity::create_fresh(&*seams.disk, &self.config(), &*seams.random)
        {
            self.trace.note(
                elapsed(),
                format_args!("{} is not prepared: {error}", self.name),
            );
        }
        while self.run_once(&seams).await {
            self.trace
                .note(elapsed(), format_args!("{} starts anew", self.name));
        }
        std::future::pending().await
    }

    // Runs a node until it is told to stop, or asks to be started anew: then true.
    async fn run_once(self: &Arc<Self>, seams: &Seams) -> bool {
        let restored = mem::take(&mut self.changing().restored) && !self.backup_untold;
        let node = match start(&self.config(), seams, restored).await {
            Ok(node) => node,
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                self.trace.note(
                    elapsed(),
                    format_args!("{} does not start: {error}", self.name),
                );
                self.changing().start_error = Some(error);
                return false;
            }
        };
        self.trace
            .note(elapsed(), format_args!("{} runs", self.name));
        self.trace.tell(elapsed(), What::Runs(self.index));
        for definition in &self.projections {
            node.projections().define_here(1, definition.clone());
        }
        if self.compare_with_committed(&node) {
            self.trace
                .note(elapsed(), format_args!("{} has stranded", self.name));
            self.trace.tell(elapsed(), What::Strands(self.index));
        }
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.changing().node = Arc::downgrade(&node);
        let in_flight = Arc::new(AtomicUsize::new(0));
        let driver = tokio::spawn(drive(
            Arc::clone(node.store()),
            Arc::clone(self),
            self.part(),
            Arc::clone(&in_flight),
        ));
        let noting = (!self.fenced.is_empty())
            .then(|| tokio::spawn(Arc::clone(self).note_ordered(Arc::downgrade(&node))));
        let again = tokio::select! {
            biased;
            () = self.stop.notified() => false,
            () = node.must_restart().cancelled() => true,
        };
        node.shutdown().await;
        driver.abort();
        if let Some(noting) = noting {
            noting.abort();
        }
        self.note_committed(&node);
        drop(node);
        if again {
            // What the disk is writing belongs to the node that was.
            while in_flight.load(Ordering::Relaxed) > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        } else {
            self.stopped.store(true, Ordering::Relaxed);
        }
        self.trace
            .note(elapsed(), format_args!("{} has stopped", self.name));
        self.trace.tell(elapsed(), What::Ends(self.index));
        again
    }
}

/// How often, and how many times, a node that starts anew tries to listen.
const LISTEN_AGAIN: Duration = Duration::from_millis(100);
const LISTEN_ATTEMPTS: u32 = 100;

// As `meridian serve` does: the sockets of a node that has just stopped close a moment later.
async fn start(
    config: &NodeConfig,
    seams: &Seams,
    restored: bool,
) -> Result<Arc<Node>, StartError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let (config, seams) = (config.clone(), seams.clone());
        let started = match restored {
            true => Node::start_restored(config, seams).await,
            false => Node::start(config, seams).await,
        };
        match started {
            Err(StartError::Listen { .. }) if attempts < LISTEN_ATTEMPTS => {
                sleep(LISTEN_AGAIN).await;
            }
            started => return started,
        }
    }
}

// How long after a failed step of housekeeping, as the store's own thread waits.
const HOUSEKEEP_AGAIN: Duration = Duration::from_secs(1);

// Does what the store's threads do in a real node, in virtual time.
async fn drive(
    store: Arc<Store>,
    machine: Arc<Machine>,
    mut rng: Rng,
    in_flight: Arc<AtomicUsize>,
) {
    let mut again_at = None;
    loop {
        let again = again_at.unwrap_or_else(Instant::now);
        tokio::select! {
            biased;
            () = sleep_until(again), if again_at.is_some() => {
                again_at = None;
                store.housekeep();
            }
            () = store.wants_commit() => {}
        }
        if again_at.is_none() && store.housekeeping_failed() {
            again_at = Some(Instant::now() + HOUSEKEEP_AGAIN);
        }
        let slow = machine.slow.load(Ordering::Relaxed);
        let (low, high) = machine.commit_us;
        let wait = Duration::from_micros(rng.between(low, high) * slow);
        if let Some(group) = store.commit_begin() {
            let (store, machine) = (Arc::clone(&store), Arc::clone(&machine));
            let in_flight = Arc::clone(&in_flight);
            in_flight.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                sleep(wait).await;
                while machine.paused.load(Ordering::Relaxed) {
                    sleep(Duration::from_millis(1)).await;
                }
                store.commit_finish(group);
                in_flight.fetch_sub(1, Ordering::Relaxed);
                machine
                    .trace
                    .note(elapsed(), format_args!("{} commits", machine.name));
                machine.trace.tell(elapsed(), What::Commits(machine.index));
            });
            continue;
        }
        store.housekeep();
        sleep(Duration::from_millis(1)).await;
    }
}

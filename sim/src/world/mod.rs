//! The world that nodes run in, and the one who breaks it.
//!
//! [`run`] carries out a plan: chaos first, then everything is healed and links must drain, then
//! the logs of all nodes are audited.

mod application;
pub mod certificates;
pub mod clock;
pub mod connections;
pub mod cryptography;
mod faults;
mod fences;
pub mod host;
pub mod network;
mod setup;
pub mod story;
pub mod trace;
mod watch;
mod witness;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use meridian_clock::{LogId, Position, RegionId};
use meridian_event::RecordedEvent;
use meridian_node::config::MemberConfig;
use meridian_points::{Bug, Installed, Setup};
use serde::Serialize;
use uuid::Uuid;

use self::application::Application;
use self::certificates::Certificates;
use self::clock::{EPOCH, SkewedClock};
use self::faults::Act;
use self::fences::FencesSeen;
use self::host::{Machine, Parts};
use self::network::Troubles;
use self::story::{Happened, What};
use self::trace::{Keep, Trace};
use self::witness::Witness;
pub(crate) use self::witness::generation;
use crate::history::{History, Outcome};
use crate::invariants::Forgiven;
use crate::invariants::exactly_once;
use crate::load;
use crate::load::fencer::Orders;
use crate::load::follow::{Seen, Source};
use crate::plan::Plan;
use crate::rng::Rng;
use crate::settled::{Lag, Settled};
use crate::states::States;

const QUIC_PORT: u16 = 7000;
const HTTP_PORT: u16 = 8000;
const FEDERATION: Uuid = Uuid::from_u128(0x5157_0000_0000_4000_8000_0000_0000_0001);
// Within a tick every machine runs on its own, timers at their very times; between ticks messages pass.
const TICK: Duration = Duration::from_millis(2);
/// How often the one who watches looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What came of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The plan's seed.
    pub seed: u64,
    /// Whether every invariant held.
    pub ok: bool,
    /// The hash of all that happened.
    pub trace: String,
    /// How much virtual time went by.
    pub virtual_s: f64,
    /// How many events the logs hold in the end.
    pub events: u64,
    /// What went wrong, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Rare states that were reached.
    pub rare: BTreeMap<String, u64>,
    /// How many steps the hash is over.
    pub steps: u64,
    /// How clients were answered, by kind.
    pub answers: BTreeMap<String, u64>,
    /// From acknowledgement to being readable in the stable order.
    pub stable_lag: Lag,
    /// From acknowledgement to being readable in the final order.
    pub final_lag: Lag,
    /// What must never be, and was.
    pub broken: Vec<String>,
}

/// What a run leaves behind.
pub struct Ran {
    /// What came of it.
    pub report: Report,
    /// Its steps, if they were asked for.
    pub lines: Vec<String>,
    /// Its story, if it was asked for.
    pub story: Vec<Happened>,
}

/// What a run is asked for beside its plan.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// What is kept of it beside its hash.
    pub keep: Keep,
    /// A bug that is planted in the nodes; a build without the feature `planted` has none.
    pub bug: Option<Bug>,
}

impl From<Keep> for RunOptions {
    fn from(keep: Keep) -> Self {
        Self { keep, bug: None }
    }
}

thread_local! {
    // The run on this thread, for the one who reports that it panicked.
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

struct Running {
    seed: u64,
    trace: Trace,
    marks: Installed,
}

/// Carries out `plan`. A panic in any task is a broken invariant like any other; whoever calls sees
/// to that, with [`ended_by_panic`].
pub fn run(plan: &Plan, options: RunOptions) -> Ran {
    let trace = Trace::keeping(options.keep);
    RUNNING.set(Some(Running {
        seed: plan.seed,
        trace: trace.clone(),
        marks: meridian_points::install(Setup {
            seed: plan.seed,
            points_percent: plan.points_percent,
            bug: options.bug,
        }),
    }));
    let report = match World::new(plan, trace).and_then(World::play) {
        Ok(report) => report,
        Err(error) => failed(format!("the run ended early: {error:#}")),
    };
    finished(report)
}

/// What came of the run on this thread, which panicked with `text`.
pub fn ended_by_panic(text: &str) -> Ran {
    finished(failed(format!("panicked: {text}")))
}

fn finished(mut report: Report) -> Ran {
    report.ok = report.broken.is_empty();
    let Some(running) = RUNNING.take() else {
        return Ran {
            report,
            lines: Vec::new(),
            story: Vec::new(),
        };
    };
    for (state, count) in running.marks.rare() {
        *report.rare.entry(state.to_owned()).or_default() += count;
    }
    report.seed = running.seed;
    report.trace = running.trace.hash();
    report.steps = running.trace.steps();
    Ran {
        report,
        lines: running.trace.lines(),
        story: running.trace.story(),
    }
}

fn failed(why: String) -> Report {
    Report {
        broken: vec![why],
        ..Report::default()
    }
}

fn ip(group: u8, index: usize) -> IpAddr {
    let last = u8::try_from(index + 1).unwrap_or(u8::MAX);
    Ipv4Addr::new(192, 168, group, last).into()
}

/// Where the node of a region is.
fn node_ip(index: usize) -> IpAddr {
    ip(1, index)
}

// Which region's node is there, if one is.
fn node_at(ip: IpAddr) -> Option<usize> {
    match ip {
        IpAddr::V4(ip) if ip.octets()[2] == 1 => usize::from(ip.octets()[3]).checked_sub(1),
        _ => None,
    }
}

/// Where the client of a region is.
fn client_ip(index: usize) -> IpAddr {
    ip(2, index)
}

/// How far the clients are.
#[derive(Clone)]
struct Phase {
    probe: Arc<AtomicBool>,
    idle: Arc<AtomicUsize>,
}

struct World {
    plan: Plan,
    sim: turmoil::Sim<'static>,
    machines: Vec<Arc<Machine>>,
    history: History,
    // What the followers of each region were sent.
    followed: Vec<Vec<Seen>>,
    trace: Trace,
    over: Arc<AtomicBool>,
    calm: Arc<AtomicBool>,
    troubles: Troubles,
    clients: Phase,
    acts: BTreeMap<(u64, u64), Act>,
    acts_made: u64,
    rng: Rng,
    report: Report,
    /// Positions of a lost machine's own logs that nobody else held.
    forgiven: Vec<Forgiven>,
    all_lost: bool,
    committed: BTreeMap<(usize, LogId), Position>,
    settled: Settled,
    states: States,
    healed_at: Option<Duration>,
    down: Vec<bool>,
    // Whether a region has left, and its machine was switched off for good.
    gone: Vec<bool>,
    clock_was_off: Vec<bool>,
    failing_since: Vec<Option<Duration>>,
    /// How long an operator leaves a failed node alone.
    patience: Vec<Duration>,
    witness: Witness,
    certificates: Rc<Certificates>,
    // What the operators of each region are to do.
    orders: Vec<Orders>,
    fences: FencesSeen,
    // Events that were stranded and then lost with the disk.
    stranded_lost: Vec<RecordedEvent>,
    // The streams of fenced categories that two regions ordered at once.
    two_homes: Vec<String>,
}

impl World {
    fn new(plan: &Plan, trace: Trace) -> anyhow::Result<Self> {
        anyhow::ensure!(plan.regions.len() >= 2, "a plan has at least two regions");
        anyhow::ensure!(
            plan.newcomers < plan.regions.len(),
            "a plan has at least one founding region"
        );
        let names: Vec<&str> = plan.regions.iter().map(|it| it.name.as_str()).collect();
        cryptography::begin(plan.seed);
        let certificates = Rc::new(Certificates::make(&names)?);
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(plan.seed)
            .epoch(UNIX_EPOCH + EPOCH)
            .simulation_duration(Duration::from_secs(36_000))
            .tick_duration(TICK)
            .min_message_latency(TICK)
            .max_message_latency(TICK)
            .udp_capacity(65_536)
            .tcp_capacity(65_536);
        let mut sim = builder.build();

        let members: Vec<MemberConfig> = names
            .iter()
            .enumerate()
            .map(|(index, name)| MemberConfig {
                id: region_id(index),
                name: (*name).to_owned(),
                quic: SocketAddr::new(node_ip(index), QUIC_PORT),
                http: SocketAddr::new(node_ip(index), HTTP_PORT),
            })
            .collect();
        let calm = Arc::new(AtomicBool::new(false));
        let troubles = Troubles::default();
        let mut machines = Vec::new();
        for (index, region) in plan.regions.iter().enumerate() {
            let network = setup::network(
                plan,
                index,
                node_ip(index),
                "node",
                &trace,
                &calm,
                &troubles,
            );
            let parts = Parts {
                clock: SkewedClock::new(region.skew_ms, region.drift_ppm),
                pace_ppm: region.pace_ppm,
                commit_us: region.commit_us,
                trace: trace.clone(),
                network: Arc::new(network),
                config: setup::node_config(plan, index, &members, &certificates),
                founders: plan.regions.len() - plan.newcomers,
                projections: exactly_once::definitions(plan),
                fenced: load::fenced(&plan.load),
                backup_untold: plan.backup_untold,
            };
            let machine = Arc::new(Machine::new(
                plan.seed,
                index,
                &region.name,
                node_ip(index),
                parts,
            ));
            machines.push(Arc::clone(&machine));
            sim.host(node_ip(index), move || {
                let machine = Arc::clone(&machine);
                async move {
                    machine.run().await;
                    Ok(())
                }
            });
        }
        let history = History::default();
        let over = Arc::new(AtomicBool::new(false));
        let clients = Phase {
            probe: Arc::new(AtomicBool::new(false)),
            idle: Arc::new(AtomicUsize::new(0)),
        };
        let known = Arc::new(Mutex::new(BTreeMap::new()));
        let orders: Vec<Orders> = names.iter().map(|_| Orders::default()).collect();
        let seen = || (0..plan.load.followers).map(|_| Seen::default()).collect();
        let followed: Vec<Vec<Seen>> = names.iter().map(|_| seen()).collect();
        for (index, name) in names.iter().enumerate() {
            let application = Application {
                plan: plan.clone(),
                index,
                identity: certificates.of_client(name)?,
                network: setup::network(
                    plan,
                    index,
                    client_ip(index),
                    "client",
                    &trace,
                    &calm,
                    &troubles,
                ),
                history: history.clone(),
                trace: trace.clone(),
                over: Arc::clone(&over),
                probe: Arc::clone(&clients.probe),
                idle: Arc::clone(&clients.idle),
                source: Source {
                    region: (*name).to_owned(),
                    addr: SocketAddr::new(node_ip(index), HTTP_PORT),
                    lives: Arc::clone(&machines[index].lives),
                    rewinds: machines[index].rewinds.clone(),
                },
                followed: followed[index].clone(),
                known: Arc::clone(&known),
                orders: orders[index].clone(),
            };
            sim.client(client_ip(index), async move {
                application.run().await;
                Ok(())
            });
        }
        for link in &plan.links {
            for from in [node_ip(link.a), client_ip(link.a)] {
                for to in [node_ip(link.b), client_ip(link.b)] {
                    let latency = Duration::from_millis(link.latency_ms);
                    sim.set_link_latency(from, to, latency);
                }
            }
        }
        let count = machines.len();
        let mut world = Self {
            plan: plan.clone(),
            sim,
            machines,
            history,
            followed,
            trace,
            over,
            calm,
            troubles,
            clients,
            acts: BTreeMap::new(),
            acts_made: 0,
            rng: Rng::part(plan.seed, "world"),
            report: Report::default(),
            forgiven: Vec::new(),
            all_lost: false,
            committed: BTreeMap::new(),
            settled: Settled::default(),
            states: States::default(),
            healed_at: None,
            down: (0..count)
                .map(|index| index >= count - plan.newcomers)
                .collect(),
            gone: vec![false; count],
            clock_was_off: vec![false; count],
            failing_since: vec![None; count],
            patience: vec![Duration::from_secs(2); count],
            witness: Witness::default(),
            certificates,
            orders,
            fences: FencesSeen::new(count),
            stranded_lost: Vec::new(),
            two_homes: Vec::new(),
        };
        if plan.backup_ms > 0 {
            world.later(plan.backup_ms, Act::BackUpAll);
        }
        for fault in &plan.faults {
            world.later(fault.at_ms, Act::Begin(fault.kind.clone()));
        }
        Ok(world)
    }

    fn play(mut self) -> anyhow::Result<Report> {
        let chaos = Duration::from_millis(self.plan.chaos_ms);
        while self.sim.elapsed() < chaos {
            self.step()?;
        }
        self.over.store(true, Ordering::Relaxed);
        self.heal_all();
        let clients = self.plan.regions.len();
        let heal = Duration::from_millis(self.plan.heal_ms);
        let mut why = self.settle(heal, clients)?;
        if why.is_empty() {
            // Everything answers again, at the highest level there is.
            self.clients.probe.store(true, Ordering::Relaxed);
            why = self.settle(heal, clients * 2)?;
        }
        for reason in why {
            self.report.broken.push(format!(
                "heals: {}s after the last fault: {reason}",
                heal.as_secs()
            ));
        }
        self.audit();
        self.report.virtual_s = self.sim.elapsed().as_secs_f64();
        self.trace.tell(self.sim.elapsed(), What::Over);
        for call in self.history.calls() {
            let kind = match call.outcome {
                Outcome::Unknown => "unknown".to_owned(),
                Outcome::Written(_) => "written".to_owned(),
                Outcome::Refused { code, .. } => code.to_owned(),
            };
            *self.report.answers.entry(kind).or_default() += 1;
        }
        // Disks are read once more with nobody on them.
        let machines = self.machines.clone();
        for machine in &machines {
            let sim = &mut self.sim;
            machine
                .network
                .connections
                .while_crashing(|| sim.crash(machine.ip));
        }
        for machine in &machines {
            match meridian_store::verify(&machine.disk()) {
                Ok(found) => {
                    // Of a stream that moved, what two homes wrote arrives by two logs: whoever left had not been
                    // sent all of either.
                    let is_behind = |file: &str| self.gone[machine.index] && file == "log";
                    let damage = found.damage.into_iter();
                    for damage in damage.filter(|it| !is_behind(&it.file)) {
                        self.report.broken.push(format!(
                            "identical: {}: verify found {damage:?}",
                            machine.name
                        ));
                    }
                }
                Err(error) => self
                    .report
                    .broken
                    .push(format!("durable: {}: verify failed: {error}", machine.name)),
            }
        }
        Ok(self.report)
    }

    fn step(&mut self) -> anyhow::Result<()> {
        self.sim
            .step()
            .map_err(|error| anyhow::anyhow!("a host failed: {error}"))?;
        let now = self.sim.elapsed();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        while let Some(entry) = self.acts.first_entry()
            && entry.key().0 <= now_ms
        {
            let act = entry.remove();
            self.act(act);
        }
        if now.as_millis().is_multiple_of(LOOK_EVERY.as_millis()) {
            self.look();
        }
        Ok(())
    }

    fn rare(&mut self, what: &str) {
        match self.report.rare.get_mut(what) {
            Some(count) => *count += 1,
            None => {
                self.report.rare.insert(what.to_owned(), 1);
            }
        }
    }
}

/// The number of the region at `index` of a plan.
pub fn region_id(index: usize) -> RegionId {
    RegionId(u16::try_from(index + 1).unwrap_or(u16::MAX))
}

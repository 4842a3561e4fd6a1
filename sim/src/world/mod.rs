//! The world that nodes run in, and the one who breaks it.
//!
//! [`run`] carries out a plan: chaos first, then everything is healed and links must drain, then
//! the logs of all nodes are audited.

pub mod certificates;
pub mod clock;
mod faults;
pub mod host;
pub mod network;
pub mod trace;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use meridian_client::{
    AppendRequest, Client, ClientConfig, Durability, Expected, Limits, Resolver, Seed,
};
use meridian_clock::{LogId, Position, RegionId};
use meridian_conflict::{CategoryPolicy, HomeRule, Mode};
use meridian_event::{EventId, EventType, NewEvent, Revision, StreamId};
use meridian_node::config::{MemberConfig, NodeConfig};
use meridian_store::{Health, ReadError};
use serde::Serialize;
use tokio::time::sleep;
use uuid::Uuid;

use self::certificates::Certificates;
use self::clock::{EPOCH, SkewedClock, elapsed};
use self::faults::Act;
use self::host::{Machine, Parts};
use self::network::{Road, SimNetwork};
use self::trace::Trace;
use crate::history::{Call, History, Outcome};
use crate::invariants::{self, Copy, Evidence, Forgiven};
use crate::load::{SHARED, Writer};
use crate::plan::Plan;
use crate::rng::Rng;

const QUIC_PORT: u16 = 7000;
const HTTP_PORT: u16 = 8000;
const FEDERATION: Uuid = Uuid::from_u128(0x5157_0000_0000_4000_8000_0000_0000_0001);
/// How often the one who watches looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How soon everyone is answered at the highest level when all is well.
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);

/// What came of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The plan's seed.
    pub seed: u64,
    /// Whether every invariant held.
    pub ok: bool,
    /// The hash of all that happened.
    pub trace: String,
    /// How many steps that hash is over.
    pub steps: u64,
    /// How much virtual time went by.
    pub virtual_s: f64,
    /// How many events the logs hold in the end.
    pub events: u64,
    /// How clients were answered, by kind.
    pub answers: BTreeMap<String, u64>,
    /// What went wrong, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Rare states that were reached.
    pub rare: BTreeMap<String, u64>,
    /// What must never be, and was.
    pub broken: Vec<String>,
}

/// What a run leaves behind.
pub struct Ran {
    /// What came of it.
    pub report: Report,
    /// Its steps, if they were asked for.
    pub lines: Vec<String>,
}

/// Carries out `plan`. A panic in any task is a broken invariant like any other.
pub fn run(plan: &Plan, keep_lines: bool) -> Ran {
    let trace = if keep_lines {
        Trace::keeping()
    } else {
        Trace::default()
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| World::new(plan, trace.clone())?.play()));
    let mut report = match outcome {
        Ok(Ok(report)) => report,
        Ok(Err(error)) => failed(format!("the run ended early: {error:#}")),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            failed(format!("panicked: {}", text.unwrap_or("without a word")))
        }
    };
    report.seed = plan.seed;
    report.ok = report.broken.is_empty();
    report.trace = trace.hash();
    report.steps = trace.steps();
    Ran {
        report,
        lines: trace.lines(),
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

/// Where the client of a region is.
fn client_ip(index: usize) -> IpAddr {
    ip(2, index)
}

/// How far the clients are.
struct Phase {
    probe: Arc<AtomicBool>,
    idle: Arc<AtomicUsize>,
}

struct World {
    plan: Plan,
    sim: turmoil::Sim<'static>,
    machines: Vec<Arc<Machine>>,
    history: History,
    trace: Trace,
    over: Arc<AtomicBool>,
    calm: Arc<AtomicBool>,
    clients: Phase,
    acts: BTreeMap<(u64, u64), Act>,
    acts_made: u64,
    rng: Rng,
    report: Report,
    /// Positions of a lost machine's own logs that nobody else held.
    forgiven: Vec<Forgiven>,
    committed: BTreeMap<(usize, LogId), Position>,
    down: Vec<bool>,
    clock_was_off: Vec<bool>,
    failing_since: Vec<Option<Duration>>,
    /// How long an operator leaves a failed node alone.
    patience: Vec<Duration>,
    _certificates: Rc<Certificates>,
}

impl World {
    fn new(plan: &Plan, trace: Trace) -> anyhow::Result<Self> {
        anyhow::ensure!(plan.regions.len() >= 2, "a plan has at least two regions");
        let names: Vec<&str> = plan.regions.iter().map(|it| it.name.as_str()).collect();
        let certificates = Rc::new(Certificates::make(&names)?);
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(plan.seed)
            .epoch(UNIX_EPOCH + EPOCH)
            .simulation_duration(Duration::from_secs(36_000))
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(1))
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
        let mut machines = Vec::new();
        for (index, region) in plan.regions.iter().enumerate() {
            let network = network(plan, index, node_ip(index), "node", &trace, &calm);
            let parts = Parts {
                clock: SkewedClock::new(region.skew_ms, region.drift_ppm),
                commit_us: region.commit_us,
                trace: trace.clone(),
                network: Arc::new(network),
                config: node_config(plan, index, &members, &certificates),
            };
            let machine = Arc::new(Machine::new(plan.seed, &region.name, node_ip(index), parts));
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
        for (index, name) in names.iter().enumerate() {
            let application = Application {
                plan: plan.clone(),
                index,
                identity: certificates.of_client(name)?,
                network: network(plan, index, client_ip(index), "client", &trace, &calm),
                history: history.clone(),
                trace: trace.clone(),
                over: Arc::clone(&over),
                probe: Arc::clone(&clients.probe),
                idle: Arc::clone(&clients.idle),
                known: Arc::clone(&known),
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
            trace,
            over,
            calm,
            clients,
            acts: BTreeMap::new(),
            acts_made: 0,
            rng: Rng::part(plan.seed, "world"),
            report: Report::default(),
            forgiven: Vec::new(),
            committed: BTreeMap::new(),
            down: vec![false; count],
            clock_was_off: vec![false; count],
            failing_since: vec![None; count],
            patience: vec![Duration::from_secs(2); count],
            _certificates: certificates,
        };
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
            self.sim.crash(machine.ip);
        }
        for machine in &machines {
            match meridian_store::verify(&machine.disk()) {
                Ok(found) => {
                    for damage in found.damage {
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

    // Notes what can only be seen while it lasts, and restarts what has failed.
    fn look(&mut self) {
        let now = self.sim.elapsed();
        for index in 0..self.machines.len() {
            let machine = Arc::clone(&self.machines[index]);
            let Some(node) = machine.node() else {
                // One that stopped in order after everything was healed.
                let healed = self.over.load(Ordering::Relaxed);
                if healed && machine.stopped.load(Ordering::Relaxed) && !self.down[index] {
                    self.kill(index, false, 100);
                }
                if machine.start_error().is_some() && !self.down[index] {
                    self.rare("a node that did not start was started again");
                    self.kill(index, false, 1_000);
                }
                continue;
            };
            for head in node.store().heads() {
                self.committed.insert((index, head.log), head.position);
            }
            if let Err(reason) = node.ready() {
                let kind = if reason.contains("peers") {
                    Some("a node waited for its peers before it gave out positions")
                } else if reason.contains("clock") {
                    Some("a node refused because of its clock")
                } else {
                    None
                };
                if let Some(kind) = kind {
                    self.rare(kind);
                }
            }
            if !node.store().damaged().is_empty() {
                self.rare("damage was known");
            }
            let failed = matches!(node.store().health(), Health::Failed { .. });
            drop(node);
            match (failed, self.failing_since[index]) {
                (true, None) => self.failing_since[index] = Some(now),
                (true, Some(since)) if now - since > self.patience[index] => {
                    self.rare("a failed log was restarted");
                    self.kill(index, false, 100);
                }
                (true, Some(_)) => {}
                (false, _) => self.failing_since[index] = None,
            }
        }
    }

    fn rare(&mut self, what: &str) {
        match self.report.rare.get_mut(what) {
            Some(count) => *count += 1,
            None => {
                self.report.rare.insert(what.to_owned(), 1);
            }
        }
    }

    // Runs until all is well; what is not, if time is up first.
    fn settle(&mut self, within: Duration, idle: usize) -> anyhow::Result<Vec<String>> {
        let deadline = self.sim.elapsed() + within;
        let mut why = Vec::new();
        loop {
            // Looked at now and then: looking reads all logs.
            for _ in 0..200 {
                self.step()?;
            }
            if self.clients.idle.load(Ordering::Relaxed) >= idle {
                why = self.unsettled();
                if why.is_empty() {
                    return Ok(why);
                }
            }
            if self.sim.elapsed() >= deadline {
                if why.is_empty() {
                    why.push("clients still wait for answers".to_owned());
                }
                return Ok(why);
            }
        }
    }

    fn unsettled(&self) -> Vec<String> {
        let mut why = Vec::new();
        let mut digests = Vec::new();
        for machine in &self.machines {
            let Some(node) = machine.node() else {
                let error = machine.start_error();
                why.push(format!(
                    "{} does not run: {}",
                    machine.name,
                    error.unwrap_or_default()
                ));
                continue;
            };
            if let Err(reason) = node.ready() {
                why.push(format!("{} is not ready: {reason}", machine.name));
            }
            for damage in node.store().damaged() {
                why.push(format!("{} has damage: {damage}", machine.name));
            }
            digests.push(node.digest());
        }
        if digests.windows(2).any(|pair| pair[0] != pair[1]) {
            why.push(format!("digests differ: {digests:?}"));
        }
        if why.is_empty() {
            for machine in &self.machines {
                if let Err(error) = copy_of(machine) {
                    why.push(format!("{}: {error}", machine.name));
                }
            }
        }
        why
    }

    fn audit(&mut self) {
        let mut copies = Vec::new();
        for machine in &self.machines {
            if machine.node().is_none() {
                continue;
            }
            match copy_of(machine) {
                Ok(copy) => copies.push(copy),
                Err(error) => {
                    self.report
                        .broken
                        .push(format!("durable: {} cannot be read: {error}", machine.name));
                }
            }
        }
        self.report.events = copies.first().map_or(0, |copy| {
            copy.logs.values().flatten().map(Vec::len).sum::<usize>() as u64
        });
        let evidence = Evidence {
            calls: self.history.calls(),
            copies,
            forgiven: std::mem::take(&mut self.forgiven),
            sane: self.clock_was_off.iter().map(|off| !off).collect(),
            end: EPOCH + self.sim.elapsed(),
        };
        self.report.broken.extend(self.history.seen_broken());
        self.report.broken.extend(invariants::check(&evidence));
        self.report.broken.truncate(30);
    }
}

fn copy_of(machine: &Machine) -> Result<Copy, ReadError> {
    const PAGE_BYTES: usize = 1 << 20;
    let mut logs = BTreeMap::new();
    let mut blocks_by_log = BTreeMap::new();
    let Some(node) = machine.node() else {
        return Ok(Copy {
            name: machine.name.clone(),
            logs,
            blocks: blocks_by_log,
        });
    };
    for head in node.store().heads() {
        let mut after = Position::ZERO;
        let mut events = Vec::new();
        let mut all = Vec::new();
        while after < head.position {
            let blocks = node.store().read_log(head.log, after, PAGE_BYTES)?;
            if blocks.is_empty() {
                break;
            }
            for block in blocks {
                after = block.header().last_position();
                events.push(block.to_events().unwrap_or_default());
                all.push(block);
            }
        }
        logs.insert(head.log, events);
        blocks_by_log.insert(head.log, all);
    }
    Ok(Copy {
        name: machine.name.clone(),
        logs,
        blocks: blocks_by_log,
    })
}

/// The number of the region at `index` of a plan.
pub fn region_id(index: usize) -> RegionId {
    RegionId(u16::try_from(index + 1).unwrap_or(u16::MAX))
}

fn network(
    plan: &Plan,
    index: usize,
    here: IpAddr,
    part: &str,
    trace: &Trace,
    calm: &Arc<AtomicBool>,
) -> SimNetwork {
    let mut roads = BTreeMap::new();
    for link in &plan.links {
        let other = match (link.a == index, link.b == index) {
            (true, _) => link.b,
            (_, true) => link.a,
            _ => continue,
        };
        let road = Road {
            loss_ppm: link.loss_ppm,
            duplicate_ppm: link.duplicate_ppm,
            reorder_ppm: link.reorder_ppm,
            hold_ms: link.latency_ms * 2,
        };
        roads.insert(node_ip(other), road);
        roads.insert(client_ip(other), road);
    }
    let rng = Rng::part(plan.seed, &format!("network {part} {index}"));
    SimNetwork {
        here,
        roads: Arc::new(roads),
        rng: Arc::new(Mutex::new(rng)),
        trace: trace.clone(),
        calm: Arc::clone(calm),
    }
}

fn node_config(
    plan: &Plan,
    index: usize,
    members: &[MemberConfig],
    certificates: &Certificates,
) -> NodeConfig {
    let any = Ipv4Addr::UNSPECIFIED;
    let shared = CategoryPolicy {
        mode: Mode::Lww,
        home: HomeRule::Hash,
    };
    NodeConfig {
        federation: FEDERATION,
        region: region_id(index),
        partitions: plan.partitions,
        members: members.to_vec(),
        data: "data".into(),
        listen_http: SocketAddr::new(any.into(), HTTP_PORT),
        listen_quic: SocketAddr::new(any.into(), QUIC_PORT),
        certificates: certificates.of_region(&plan.regions[index].name),
        categories: BTreeMap::from([(SHARED.to_owned(), shared)]),
        limits: Limits::default(),
        append_timeout: Duration::from_secs(10),
        max_offset: Duration::from_millis(500),
        segment_bytes: plan.segment_kib << 10,
    }
}

/// One region's application: a client and its writers.
struct Application {
    plan: Plan,
    index: usize,
    identity: meridian_client::tls::Identity,
    network: SimNetwork,
    history: History,
    trace: Trace,
    over: Arc<AtomicBool>,
    probe: Arc<AtomicBool>,
    idle: Arc<AtomicUsize>,
    known: Arc<Mutex<BTreeMap<StreamId, Revision>>>,
}

impl Application {
    async fn run(self) {
        let mut rng = Rng::part(self.plan.seed, &format!("application {}", self.index));
        let mut seed = [0; 32];
        rng.fill(&mut seed);
        let mut endpoint = quinn::EndpointConfig::default();
        endpoint.rng_seed(Some(seed));
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let socket = self.network.socket(any).expect("a free port");
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(endpoint, None, socket, runtime)
            .expect("a sound endpoint");
        let seeds = (0..self.plan.regions.len()).map(|index| Seed {
            addr: SocketAddr::new(node_ip(index), QUIC_PORT),
            region: None,
        });
        let config = ClientConfig {
            name: self.plan.regions[self.index].name.clone(),
            prefer: Some(self.plan.regions[self.index].name.clone()),
            request_timeout: Duration::from_millis(self.plan.load.timeout_ms),
            jitter_seed: rng.next_u64(),
            resolver: Resolver::new(|name| {
                Box::pin(async move { Err(std::io::Error::other(format!("no name {name}"))) })
            }),
            ..ClientConfig::new(endpoint, self.identity.clone(), FEDERATION, seeds.collect())
        };
        let client = loop {
            match Client::connect(config.clone()).await {
                Ok(client) => break client,
                Err(error) => {
                    let error = error.to_string();
                    self.trace.note(
                        elapsed(),
                        format_args!("client {} cannot connect: {error}", self.index),
                    );
                    sleep(Duration::from_millis(500)).await;
                }
            }
        };
        let mut writers = Vec::new();
        for _ in 0..self.plan.load.writers {
            let writer = Writer {
                client: self.index,
                plan: self.plan.load.clone(),
                rng: Rng::new(rng.next_u64()),
                federation: client.clone(),
                history: self.history.clone(),
                trace: self.trace.clone(),
                over: Arc::clone(&self.over),
                known: Arc::clone(&self.known),
            };
            writers.push(tokio::spawn(writer.run()));
        }
        for writer in writers {
            writer.await.expect("a writer ends in order");
        }
        self.idle.fetch_add(1, Ordering::Relaxed);
        while !self.probe.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(50)).await;
        }
        for number in 0..6 {
            let stream = StreamId::new(&format!("probe-{}{number}", self.index));
            let request = AppendRequest {
                stream: stream.expect("a sound name"),
                expected: Expected::None,
                durability: Durability::All,
                events: vec![NewEvent {
                    id: EventId::from_random(rng.bytes16()),
                    event_type: EventType::new("Probed").expect("a sound type"),
                    data: Bytes::from_static(b"{}"),
                    metadata: Bytes::new(),
                }],
            };
            let call = self.history.begin(Call {
                client: self.index,
                stream: request.stream.clone(),
                expected: request.expected,
                durability: request.durability,
                ids: request.events.iter().map(|event| event.id).collect(),
                invoked: elapsed(),
                returned: None,
                outcome: Outcome::Unknown,
            });
            // A client's own patience may be short; the federation's time to answer is not.
            let until = elapsed() + ANSWERS_WITHIN;
            let outcome = loop {
                match client.append(request.clone()).await {
                    Ok(appended) => break Outcome::Written(appended),
                    Err(_) if elapsed() < until => sleep(Duration::from_millis(100)).await,
                    Err(error) => {
                        self.history.broken(format!(
                            "heals: all is well, and client {} is told: {error}",
                            self.index
                        ));
                        break Outcome::Unknown;
                    }
                }
            };
            self.history.end(call, elapsed(), outcome);
        }
        self.idle.fetch_add(1, Ordering::Relaxed);
        std::future::pending().await
    }
}

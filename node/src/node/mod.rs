//! The node: everything wired together.

mod start;
mod upkeep;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use meridian_client::tls::{Identity as TlsIdentity, TlsSeams};
use meridian_client::{AppendError, AppendRequest, Appended, Topology};
use meridian_clock::{Hlc, LogId, PartitionId, Promise, RegionId, VersionVector};
use meridian_conflict::Policies;
use meridian_event::StreamId;
use meridian_points::reached;
use meridian_replication::link::Marks;
use meridian_replication::{Endpoint, EndpointKeys, Links, LinksConfig};
use meridian_store::{Health, Store, StoreOptions};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info, info_span, warn};

pub use self::start::StartError;
use self::start::{
    check, check_listed, clock_over, foundation, links_config, listed, load_certificates,
    load_session_key, memory_of, others_logs, random_array, report, session_seal, strand,
};
use crate::append::{Appends, WAITING_KIB_MAX};
use crate::config::NodeConfig;
use crate::conflicts::Conflicts;
use crate::consumers::Consumers;
use crate::control::{Consensus, Plane, Setup};
use crate::cursor::CursorSeal;
use crate::feed::Feeds;
use crate::fencing::{Fencing, come_home, is_home, membership, shut_reason, take_only_own};
use crate::forwarding::{Home, Presentation};
use crate::gate::Memory;
use crate::homes::{Clocks, Homes, hand_over, keep_lease};
use crate::identity::{
    FirstWrite, Identity, forget_restored, is_copy, is_lost, is_restored, note_lost,
    note_made_here, note_restored,
};
use crate::merging::{Ledger, Merging, keep_snapshots};
use crate::metrics::{Metrics, Origin};
use crate::projections::{Lane, Projections};
use crate::rights::Rights;
use crate::seams::{Random, Seams};
use crate::sequencer::{Sequencer, Tools};
use crate::session::SessionSeal;
use crate::status::{DigestEntry, Names, NodeStatus};
use crate::time::TimeKeeper;

/// How long a stopping node waits for what is in flight.
const DRAIN_FOR: Duration = Duration::from_secs(10);

/// One region's node, running. Ends with [`Node::shutdown`].
pub struct Node {
    config: NodeConfig,
    names: Arc<Names>,
    homes: Arc<Homes>,
    merging: Arc<Merging>,
    consensus: Arc<dyn Consensus>,
    random: Arc<dyn Random>,
    cursors: CursorSeal,
    session_seal: SessionSeal,
    feeds: Feeds,
    store: Arc<Store>,
    hlc: Arc<Hlc>,
    links: Arc<Links>,
    endpoint: Endpoint,
    identity: Arc<RwLock<Arc<TlsIdentity>>>,
    tls_seams: TlsSeams,
    appends: Appends,
    shut: Arc<RwLock<Option<String>>>,
    // Why this region is out, if it is.
    out: Arc<RwLock<Option<String>>>,
    restart: CancellationToken,
    projections: Arc<Projections>,
    consumers: Arc<Consumers>,
    conflicts: Arc<Conflicts>,
    metrics: Arc<Metrics>,
    http_addr: SocketAddr,
    quic_addr: SocketAddr,
    // Doors close first, then what serves them.
    doors: CancellationToken,
    tasks: CancellationToken,
    door_tracker: TaskTracker,
    tracker: TaskTracker,
}

/// The value behind a lock whose holders never panic half-way through a change.
pub(crate) fn read_lock<T: Clone>(lock: &RwLock<T>) -> T {
    lock.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Replaces the value behind such a lock.
pub(crate) fn write_lock<T>(lock: &RwLock<T>, value: T) {
    *lock.write().unwrap_or_else(PoisonError::into_inner) = value;
}

impl Node {
    /// Opens the data folder, recovers, and starts links and doors.
    ///
    /// # Errors
    /// When the folder, the certificates or an address cannot be used.
    pub async fn start(config: NodeConfig, seams: Seams) -> Result<Arc<Self>, StartError> {
        let span = info_span!("start", region = %config.region);
        let started = Self::start_inner(config, seams, false);
        started.instrument(span).await
    }

    /// [`Node::start`] in a folder that was put back from a backup. Nothing is written in the region's own logs before
    /// every peer has said how far it holds them and all of that is taken back; nor does the node vote as the one it
    /// was. Needed once: the folder remembers it.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn start_restored(config: NodeConfig, seams: Seams) -> Result<Arc<Self>, StartError> {
        let span = info_span!("start", region = %config.region);
        let started = Self::start_inner(config, seams, true);
        started.instrument(span).await
    }

    async fn start_inner(
        config: NodeConfig,
        seams: Seams,
        restored: bool,
    ) -> Result<Arc<Self>, StartError> {
        let own = check(&config)?.clone();
        let policies = Arc::new(config.policies()?);
        let tls = Arc::new(load_certificates(&config, &own, &seams.tls)?);
        let session_key = load_session_key(&config)?;

        let disk = Arc::clone(&seams.disk);
        let (known, stranded) = strand(&disk, config.region)?;
        check_listed(&config, &known)?;
        // The lock on the folder comes with the store, before anything in it is written.
        let options = StoreOptions {
            segment_bytes: config.segment_bytes,
            lanes: seams.lanes,
            ..StoreOptions::default()
        };
        let (store, recovery) = Store::open(Arc::clone(&disk), options)?;
        let mut identity = Identity::load(&*disk, &config)?;
        let is_copy = is_copy(&*disk).map_err(StartError::Disk)?;
        if is_copy && !restored {
            reached("a folder was found to be a copy");
            warn!(
                "this data folder was copied here, and may lack what the region wrote after that: it is dealt with as one \
                 that was put back from a backup, as with `--restored`"
            );
        }
        if restored || is_copy {
            note_restored(&*disk).map_err(StartError::Disk)?;
        }
        if is_restored(&*disk).map_err(StartError::Disk)? {
            reached("a folder was put back from a backup");
            crate::control::forget_votes(&*disk).map_err(StartError::Control)?;
            note_lost(&*disk).map_err(StartError::Disk)?;
            // Places in the order of arrival that were given out since the backup are none any more.
            let renewed = Identity::create(&*disk, &config, &*seams.random, false)?;
            identity = Some(renewed);
            forget_restored(&*disk).map_err(StartError::Disk)?;
        }
        if let Err(error) = note_made_here(&*disk) {
            warn!(%error, "it cannot be noted that the data folder is where it belongs: a copy of it will not be known for one");
        }
        let memory = match is_lost(&*disk).map_err(StartError::Disk)? {
            true => Memory::Lost,
            // Nothing is left of a log that was put aside as a whole.
            false if stranded.events > 0 && recovery.was_empty => Memory::Whole,
            false => memory_of(identity.as_ref(), &recovery),
        };
        if memory == Memory::Lost {
            note_lost(&*disk).map_err(StartError::Disk)?;
        }
        let identity = match identity {
            Some(identity) => identity,
            None => Identity::create(&*disk, &config, &*seams.random, false)?,
        };
        report(&recovery, memory);
        let mut membership = membership(&known, &store, config.region, &stranded.fences);
        if memory == Memory::Lost {
            take_only_own(&mut membership, &others_logs(&config));
        }
        for (log, generations) in &membership.generations {
            store.set_generations(*log, generations.clone());
        }
        let listed = listed(&config);
        // Before anything is written: an earlier life may have said that it is ready to leave.
        let brought_home = is_home(&*disk).map_err(StartError::Disk)?;
        let shut = shut_reason(&known, config.region, &listed, brought_home);
        let out = Arc::new(RwLock::new(shut));
        let is_fenced =
            known.out.contains_key(&config.region) && !known.left.contains(&config.region);
        if stranded.events > 0 || is_fenced {
            crate::remembered::forget(&*disk).map_err(StartError::Disk)?;
            crate::agreement::forget(&store, config.partitions);
        }

        let ceiling = TimeKeeper::load(&*disk).map_err(StartError::Ceiling)?;
        let hlc = Arc::new(clock_over(&config, &store, ceiling, &seams));
        if let Some(returned) = known.returned.get(&config.region) {
            hlc.start_above(returned.above);
        }
        let time = Arc::new(TimeKeeper::new(Arc::clone(&hlc), Arc::clone(&disk)));

        let listen = |door, addr| move |source| StartError::Listen { door, addr, source };
        let socket = seams
            .network
            .udp(config.listen_quic)
            .map_err(listen("QUIC", config.listen_quic))?;
        let stable = identity.quic_reset_key;
        let keys = EndpointKeys {
            stable,
            seed: random_array(&*seams.random),
        };
        let endpoint = Endpoint::new(socket, seams.network.quinn_runtime(), &tls, keys)
            .map_err(StartError::Endpoint)?;
        let quic_addr = endpoint
            .local_addr()
            .map_err(listen("QUIC", config.listen_quic))?;
        let http = seams.network.tcp(config.listen_http).await;
        let http = http.map_err(listen("HTTP", config.listen_http))?;
        let http_addr = http
            .local_addr()
            .map_err(listen("HTTP", config.listen_http))?;
        // Each life begins above the ceiling of the one before. One that cannot listen is tried again and
        // again, and must not push it further each time.
        time.keep_ahead().map_err(StartError::Disk)?;

        let names = Arc::new(Names(listed.clone()));
        let metrics = Arc::new(Metrics::new());
        let shut = Arc::new(RwLock::new(
            (memory != Memory::Fresh).then(|| "the node has only just started".to_owned()),
        ));
        let doors = CancellationToken::new();
        let tasks = CancellationToken::new();
        let door_tracker = TaskTracker::new();
        let tracker = TaskTracker::new();

        let lane = match seams.lanes {
            meridian_store::Lanes::Driven => Lane::Inline,
            _ => Lane::Blocking,
        };
        let plane = Plane::new(Setup {
            region: config.region,
            foundation: foundation(&config),
            disk: Arc::clone(&disk),
            lane,
            random: Arc::clone(&seams.random),
            lost: memory == Memory::Lost,
            tasks: tasks.clone(),
            tracker: tracker.clone(),
        });
        let members: Vec<RegionId> = config.members.iter().map(|member| member.id).collect();
        let homes = Arc::new(Homes::new(
            config.region,
            &members,
            config.partitions,
            Arc::clone(&policies),
            Arc::clone(&store),
            Clocks {
                hlc: Arc::clone(&hlc),
                steady: Arc::clone(&seams.steady),
            },
            plane.federation(),
        ));
        if brought_home {
            homes.note_brought_home();
        }
        // Before any block of a peer's comes.
        let decided = plane.federation();
        store.set_dependencies(Box::new(move |event| {
            crate::homes::rests_on(&decided, event)
        }));

        let names_of = |member: &crate::config::MemberConfig| (member.name.clone(), member.id);
        let merging = Arc::new(Merging::new(
            config.region,
            known.log_epoch(config.region).major,
            config.partitions,
            config.members.iter().map(names_of).collect(),
            Arc::clone(&store),
            Arc::clone(&disk),
            Arc::clone(&homes),
        ));
        let first_write = Arc::new(FirstWrite::new(Arc::clone(&disk), identity.clone()));
        let mut sequencers = Vec::new();
        for partition in 0..config.partitions {
            let tools = Tools {
                log: LogId::new(config.region, PartitionId(partition)),
                incarnation: identity.incarnation,
                epoch: known.log_epoch(config.region),
                store: Arc::clone(&store),
                time: Arc::clone(&time),
                homes: Arc::clone(&homes),
                merging: Arc::clone(&merging),
                shut: Arc::clone(&shut),
                first_write: Arc::clone(&first_write),
                members: config.members.len(),
                metrics: Arc::clone(&metrics),
            };
            let (sequencer, run) = Sequencer::new(tools, tasks.clone());
            tracker.spawn(run.instrument(info_span!("sequencer", partition)));
            sequencers.push(Arc::new(sequencer));
        }

        let promising = sequencers.clone();
        let promises = Arc::new(move || {
            let promises = promising.iter().filter_map(|sequencer| sequencer.promise());
            promises.collect()
        });
        let delays = {
            let (metrics, names) = (Arc::clone(&metrics), Arc::clone(&names));
            Arc::new(move |origin, delay: Duration| {
                let origin = Origin {
                    origin: names.of(origin),
                };
                let delays = &metrics.replication_delay_seconds;
                delays.get_or_create(&origin).observe(delay.as_secs_f64());
            })
        };
        let remembered = crate::remembered::load(&*disk);
        let control = {
            let plane = plane.clone();
            Arc::new(move |from, question| plane.answer(from, question))
        };
        let links = Links::start(
            LinksConfig {
                control: Some(control),
                membership,
                left: known.gone(),
                ..links_config(&config, &identity, delays, remembered)
            },
            Arc::clone(&store),
            Arc::clone(&hlc),
            endpoint.clone(),
            promises,
            u64::from_le_bytes(random_array(&*seams.random)),
        );

        homes.follow_held(links.held());
        if known.returned.contains_key(&config.region) {
            // What it showed before it heard that it was a member binds it, too.
            let shown = links.marks().borrow().stable.iter().copied().max();
            hlc.start_above(shown.unwrap_or_default());
        }

        plane.start(&links).await;
        let consensus: Arc<dyn Consensus> = Arc::new(plane);
        let hand_over = hand_over(
            Arc::clone(&homes),
            sequencers.clone(),
            Arc::clone(&consensus),
            tasks.clone(),
        );
        tracker.spawn(hand_over.instrument(info_span!("hand over")));
        let about = crate::categories::answer(
            config.region,
            Arc::clone(&homes),
            Arc::clone(&store),
            sequencers.clone(),
            Arc::clone(&consensus),
            tasks.clone(),
        );
        tracker.spawn(about.instrument(info_span!("categories")));
        let lease = keep_lease(Arc::clone(&homes), Arc::clone(&consensus), tasks.clone());
        tracker.spawn(lease.instrument(info_span!("lease")));

        let (returned, _) = watch::channel(false);
        let fencing = Fencing {
            region: config.region,
            store: Arc::clone(&store),
            links: Arc::clone(&links),
            sequencers: sequencers.clone(),
            homes: Arc::clone(&homes),
            others_logs: others_logs(&config),
            listed,
            hlc: Arc::clone(&hlc),
            consensus: Arc::clone(&consensus),
            federation: homes.watch(),
            stranded: stranded.fences,
            out: Arc::clone(&out),
            restart: tasks.child_token(),
            lost_after: config.failover_after,
            returned: returned.clone(),
        };
        let restart = fencing.restart.clone();
        let fencing = fencing.run(tasks.clone());
        tracker.spawn(fencing.instrument(info_span!("fencing")));

        let identity_lock = Arc::new(RwLock::new(Arc::clone(&tls)));
        let us = Presentation {
            endpoint: endpoint.quinn().clone(),
            identity: Arc::clone(&identity_lock),
            federation: config.federation,
            name: own.name.clone(),
        };
        let others = config
            .members
            .iter()
            .filter(|member| member.id != config.region);
        let appends = Appends {
            region: config.region,
            members: config.members.len(),
            partitions: config.partitions,
            merging: Arc::clone(&merging),
            homes: Arc::clone(&homes),
            limits: config.limits,
            timeout: config.append_timeout,
            store: Arc::clone(&store),
            sequencers,
            ways: others
                .map(|member| (member.id, Home::new(member.clone(), us.clone())))
                .collect(),
            held: links.held(),
            room: Semaphore::new(WAITING_KIB_MAX as usize),
            rights: Rights::default(),
            metrics: Arc::clone(&metrics),
        };
        let logs = config.members.iter().flat_map(|member| {
            (0..config.partitions).map(|partition| LogId::new(member.id, PartitionId(partition)))
        });
        let logs: Vec<_> = logs.collect();
        let started = Instant::now();
        let mut jitter = [0; 1];
        seams.random.fill(&mut jitter);
        let projections = Projections::start(crate::projections::Shared {
            root: seams.read_models,
            region: own.name.clone(),
            store: Arc::clone(&store),
            logs: logs.clone(),
            names: Arc::clone(&names),
            marks: links.marks(),
            now: Arc::new(move || started.elapsed()),
            lane,
            jitter: jitter[0],
            first: OnceLock::new(),
            tasks: tasks.clone(),
            tracker: tracker.clone(),
        })
        .map_err(StartError::ReadModels)?;
        let consumers = Consumers::new(crate::consumers::Shared {
            region: own.name.clone(),
            names: Arc::clone(&names),
            store: Arc::clone(&store),
            lane,
            doors: doors.clone(),
            tasks: tasks.clone(),
            tracker: tracker.clone(),
            node: OnceLock::new(),
        });
        let conflicts = Conflicts::new(crate::conflicts::Shared {
            region: own.name.clone(),
            store: Arc::clone(&store),
            metrics: Arc::clone(&metrics),
            tasks: tasks.clone(),
            tracker: tracker.clone(),
            node: OnceLock::new(),
        });
        let node = Arc::new(Self {
            names,
            homes,
            merging,
            consensus,
            random: Arc::clone(&seams.random),
            cursors: CursorSeal::new(&own.name, &stable),
            session_seal: session_seal(&config, &own, session_key, &stable),
            feeds: Feeds::new(Arc::clone(&store), logs),
            store,
            hlc,
            links,
            endpoint,
            identity: identity_lock,
            tls_seams: seams.tls,
            appends,
            shut,
            out,
            restart,
            projections,
            consumers,
            conflicts,
            metrics,
            http_addr,
            quic_addr,
            doors,
            tasks,
            door_tracker,
            tracker,
            config,
        });
        node.projections.open(&node);
        node.consumers.open(&node);
        node.conflicts.open(&node);
        node.spawn_upkeep(time, memory, Arc::clone(&disk));
        let home_coming = come_home(Arc::downgrade(&node), Arc::clone(&disk), node.tasks.clone());
        node.tracker
            .spawn(home_coming.instrument(info_span!("home coming")));
        let remember = crate::remembered::keep(Arc::clone(&node.links), disk, node.tasks.clone());
        node.tracker
            .spawn(remember.instrument(info_span!("remember")));
        let snapshots = keep_snapshots(
            Arc::clone(&node.merging),
            node.links.marks(),
            Arc::clone(&node.hlc),
            Arc::clone(&node.conflicts),
            node.tasks.clone(),
        );
        let ledger = Ledger::open(&node, Arc::clone(&node.merging), Arc::clone(&node.hlc));
        node.tracker.spawn(
            ledger
                .run(node.tasks.clone())
                .instrument(info_span!("ledger")),
        );
        node.tracker
            .spawn(snapshots.instrument(info_span!("snapshots")));
        let members = node.config.members.iter().map(|member| member.id);
        let agree = crate::agreement::run(
            Arc::clone(&node.store),
            Arc::clone(&node.links),
            members.collect(),
            node.config.partitions,
            node.tasks.clone(),
        );
        node.tracker.spawn(agree.instrument(info_span!("agree")));
        node.spawn_scrub();
        node.spawn_accept();
        let serve = crate::http::serve(
            http,
            Arc::clone(&node) as Arc<dyn crate::http::Backend>,
            crate::http::ServeOptions::default(),
            node.doors.clone(),
        );
        node.door_tracker
            .spawn(serve.instrument(info_span!("http")));
        info!(region = %own.name, http = %http_addr, quic = %quic_addr, "the node is running");
        Ok(node)
    }

    /// What clients are told of the federation now.
    pub(crate) fn topology(&self) -> Topology {
        let known = self.homes.federation();
        let is_meant = |region| known.knows(region) && !known.left.contains(&region);
        let members = self.config.members.iter();
        let members = members
            .filter(|member| is_meant(member.id) || member.id == self.config.region)
            .map(|member| meridian_client::Member {
                id: member.id,
                name: member.name.clone(),
                quic: member.quic.to_string(),
                http: member.http.to_string(),
            });
        Topology {
            partitions: self.config.partitions,
            members: members.collect(),
            categories: self.homes.policies().categories().clone(),
        }
    }

    /// Refuses new work, finishes what is in flight (bounded), closes links and the log.
    pub async fn shutdown(&self) {
        info!("the node is stopping");
        self.doors.cancel();
        self.door_tracker.close();
        if timeout(DRAIN_FOR, self.door_tracker.wait()).await.is_err() {
            warn!("some requests were still in flight and are abandoned; repeat them");
        }
        self.tasks.cancel();
        self.consensus.shutdown().await;
        self.tracker.close();
        if timeout(DRAIN_FOR, self.tracker.wait()).await.is_err() {
            warn!("some tasks did not end in time");
        }
        self.links.shutdown().await;
        self.endpoint.close().await;
        self.store.close();
        info!("the node has stopped");
    }

    /// Appends a batch: here, or at its home.
    ///
    /// # Errors
    /// See [`AppendError`]; an indeterminate append is repeated with the same event ids.
    pub async fn append(&self, request: AppendRequest) -> Result<Appended, AppendError> {
        self.appends.append(request, 0, None).await
    }

    /// As [`Node::append`], for a request that `hops` nodes passed on, of use until `deadline`.
    pub(crate) async fn append_until(
        &self,
        request: AppendRequest,
        hops: u8,
        deadline: Instant,
    ) -> Result<Appended, AppendError> {
        self.appends.append(request, hops, Some(deadline)).await
    }

    /// Appends to a stream of the server's own.
    pub(crate) async fn append_own(&self, request: AppendRequest) -> Result<Appended, AppendError> {
        self.appends.append_own(request).await
    }

    /// The projections of this region.
    pub fn projections(&self) -> &Arc<Projections> {
        &self.projections
    }

    /// The consumer groups of the federation, and those that this region serves.
    pub fn consumers(&self) -> &Arc<Consumers> {
        &self.consumers
    }

    /// The conflict records of the federation.
    pub fn conflicts(&self) -> &Arc<Conflicts> {
        &self.conflicts
    }

    pub(crate) fn feeds(&self) -> &Feeds {
        &self.feeds
    }

    /// Ends when the doors close.
    pub(crate) fn doors(&self) -> &CancellationToken {
        &self.doors
    }

    /// How far the order is settled; changes whenever a watermark rises.
    pub fn marks(&self) -> watch::Receiver<Arc<Marks>> {
        self.links.marks()
    }

    /// The newest promise of each log whose prefix is durable here.
    pub fn promises(&self) -> BTreeMap<LogId, Promise> {
        self.links.promises()
    }

    pub(crate) fn session_seal(&self) -> &SessionSeal {
        &self.session_seal
    }

    pub(crate) fn cursors(&self) -> &CursorSeal {
        &self.cursors
    }

    /// Changes each time something becomes durable here.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.store.committed()
    }

    /// What `GET /v1/status` answers.
    pub fn status(&self) -> NodeStatus {
        crate::status::of(self)
    }

    /// What `GET /v1/digest` answers.
    pub fn digest(&self) -> Vec<DigestEntry> {
        let heads = self.store.heads().into_iter();
        heads
            .map(|head| DigestEntry {
                origin: self.names.of(head.log.origin),
                partition: head.log.partition.0,
                position: head.position.0,
                chain: head.chain.to_string(),
            })
            .collect()
    }

    /// How far each other region holds each log, as it or a relay says.
    pub fn held_elsewhere(&self) -> Arc<BTreeMap<RegionId, VersionVector>> {
        Arc::clone(&self.links.held().borrow())
    }

    /// The home of `stream`; `None` when every region may write it.
    pub fn home_of(&self, stream: &StreamId) -> Option<RegionId> {
        self.homes.seat(stream).map(|seat| seat.home)
    }

    /// Whether this region gives out `stream`'s revisions, or tells where it ends, if it is asked now.
    pub fn orders(&self, stream: &StreamId) -> bool {
        self.can_order().is_ok() && self.homes.orders(stream)
    }

    pub(crate) fn homes(&self) -> &Homes {
        &self.homes
    }

    pub(crate) fn merging(&self) -> &Merging {
        &self.merging
    }

    pub(crate) fn consensus_of(&self) -> Arc<dyn Consensus> {
        Arc::clone(&self.consensus)
    }

    pub(crate) fn consensus(&self) -> &dyn Consensus {
        &*self.consensus
    }

    /// The category policies in force.
    pub fn policies(&self) -> Arc<Policies> {
        self.homes.policies()
    }

    /// The names of all regions by their number.
    pub fn region_names(&self) -> &BTreeMap<RegionId, String> {
        &self.names.0
    }

    /// The configuration that the node was started with.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Where event ids come from that a client did not give.
    pub fn random(&self) -> &dyn Random {
        &*self.random
    }

    /// The log itself. A simulation drives its commits and audits it; everything else goes through
    /// the node.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    pub(crate) fn hlc(&self) -> &Hlc {
        &self.hlc
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    pub(crate) fn appends(&self) -> &Appends {
        &self.appends
    }

    pub(crate) fn certificate_expires(&self) -> Duration {
        read_lock(&self.identity).expires()
    }

    /// How long after its stamp each block of another region became durable here, in microseconds,
    /// since the start.
    pub fn replication_delays(&self) -> hdrhistogram::Histogram<u64> {
        self.links.delays()
    }

    /// How many bytes of log are held here.
    pub fn held_bytes(&self) -> u64 {
        self.store.stats().bytes
    }

    /// Whether this node gives out positions of its region's logs now.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn can_order(&self) -> Result<(), String> {
        match read_lock(&self.shut) {
            Some(reason) => Err(reason),
            None => Ok(()),
        }
    }

    /// Whether the node takes appends now.
    ///
    /// # Errors
    /// Why it does not.
    pub fn ready(&self) -> Result<(), String> {
        if self.doors.is_cancelled() {
            return Err("the node is stopping".to_owned());
        }
        if let Some(reason) = read_lock(&self.shut) {
            return Err(reason);
        }
        if let Some(reason) = self.hlc.skewed() {
            return Err(reason);
        }
        match self.store.health() {
            Health::Writable => Ok(()),
            Health::DiskFull { reason } => Err(format!("the disk is full: {reason}")),
            Health::Failed { reason } => Err(format!(
                "the log is closed after a failed write: {reason}; restart the node"
            )),
        }
    }

    /// What is counted; gauges are brought up to date by [`Node::refresh_metrics`].
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Brings the gauges up to date, just before a scrape.
    pub fn refresh_metrics(&self) {
        crate::status::refresh_metrics(self);
    }

    /// Cancelled when the node has to be stopped and started anew, over the same folder: what it wrote, or
    /// holds, does not count any more and must be put aside before the log is opened.
    pub fn must_restart(&self) -> &CancellationToken {
        &self.restart
    }

    /// Where HTTP is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Where QUIC is served.
    pub fn quic_addr(&self) -> SocketAddr {
        self.quic_addr
    }

    /// Reads the certificate files again; running connections go on with the old ones.
    ///
    /// # Errors
    /// When the files cannot be read or do not fit together; the old ones stay in use.
    pub fn reload_certificates(&self) -> Result<(), StartError> {
        let tls = Arc::new(load_certificates(
            &self.config,
            check(&self.config)?,
            &self.tls_seams,
        )?);
        self.endpoint.reload(&tls);
        write_lock(&self.identity, tls);
        Ok(())
    }
}

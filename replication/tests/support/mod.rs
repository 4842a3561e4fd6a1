//! Regions with real stores on a real disk and real QUIC on loopback, certificates made on the spot,
//! and peers that misbehave on purpose.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "part of tests with real sockets and clocks, each of which uses its own share of it"
)]

pub mod line;
pub mod rogue;

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use meridian_client::tls::{Identity, PeerName};
use meridian_clock::{
    Epoch, Hlc, HlcStart, Incarnation, LogId, PartitionId, PhysicalClock, Position, Promise,
    RegionId, Timestamp,
};
use meridian_event::{Block, BlockBuilder, EventId, EventType, NewEvent, Revision, StreamId};
use meridian_replication::link::Jitter;
use meridian_replication::{
    Endpoint, EndpointKeys, Incoming, Links, LinksConfig, Member, PeerStatus, Timings,
};
use meridian_store::{Disk, LogHead, RealDisk, Store, StoreOptions};
use quinn::Runtime;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tempfile::TempDir;
use uuid::Uuid;

pub const FEDERATION: Uuid = Uuid::from_u128(0x5eed);
pub const LIFE: Incarnation = Incarnation(1);
pub const A: RegionId = RegionId(1);
pub const B: RegionId = RegionId(2);
pub const C: RegionId = RegionId(3);

thread_local! {
    // Each test has a runtime and so a thread of its own; what its regions log ends up here.
    static LOGGED: RefCell<String> = const { RefCell::new(String::new()) };
}

struct Lines;

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOGGED.with_borrow_mut(|lines| lines.push_str(&String::from_utf8_lossy(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps what is logged from here on. The first test of the process does it for all of them.
pub fn listen_to_log() {
    let _ = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter("meridian_replication=info")
        .with_writer(|| Lines)
        .try_init();
}

/// What this test's regions logged so far.
pub fn logged() -> String {
    LOGGED.with_borrow(Clone::clone)
}

/// The one line that has all of `words`.
#[track_caller]
pub fn assert_logged(words: &[&str]) {
    assert!(is_logged(words), "no line with {words:?} in\n{}", logged());
}

pub fn is_logged(words: &[&str]) -> bool {
    logged()
        .lines()
        .any(|line| words.iter().all(|word| line.contains(word)))
}

/// Waits until `holds`.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        for _ in 0..1500 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{caller}: never so: {what}; logged was\n{}", logged());
    }
}

pub struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// What the region called `name` proves itself with.
    pub fn region(&self, name: &str) -> Identity {
        let dns_name = PeerName::Region(name.to_owned()).dns_name();
        let mut params = CertificateParams::new(vec![dns_name]).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity::load(
            self.0.pem().as_bytes(),
            certificate.pem().as_bytes(),
            key.serialize_pem().as_bytes(),
        )
        .unwrap()
    }
}

struct WallClock;

impl PhysicalClock for WallClock {
    fn now(&self) -> Timestamp {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Timestamp::from_unix(now.unwrap())
    }
}

/// Short enough for a test, long enough for a busy machine.
pub fn timings() -> Timings {
    Timings {
        vector: Duration::from_millis(100),
        connect: Duration::from_secs(2),
        refused: Duration::from_millis(300),
        redial_max: Duration::from_millis(300),
        repair: Duration::from_millis(200),
        ..Timings::default()
    }
}

pub fn log_of(origin: RegionId) -> LogId {
    LogId::new(origin, PartitionId(0))
}

/// The block that follows `head`, of two events. `salt` makes its bytes differ.
pub fn next_block(head: &LogHead, salt: u8) -> Block {
    let event = |index: u64| NewEvent {
        id: EventId(Uuid::from_u64_pair(
            u64::from(head.log.origin.0) << 8 | u64::from(salt),
            head.position.0 + index,
        )),
        event_type: EventType::new("Tested").unwrap(),
        data: noise(head.position.0 + index, salt),
        metadata: Bytes::new(),
    };
    let incarnation = match head.position {
        Position::ZERO => LIFE,
        _ => head.incarnation,
    };
    let mut builder = BlockBuilder::new(head.log, incarnation, Epoch::FIRST);
    builder.push_batch(
        head.timestamp.plus(Duration::from_millis(1)),
        &StreamId::new(&format!("test-{}", head.log.origin.0)).unwrap(),
        Revision(head.position.0),
        &[event(0), event(1)],
    );
    builder.seal(head.position.plus(1), head.chain)
}

// JSON that hardly compresses, so that segments fill up.
fn noise(number: u64, salt: u8) -> Bytes {
    let mut numbers = Jitter::new(number << 8 | u64::from(salt));
    let digits: String = (0..60)
        .map(|_| format!("{:016x}", numbers.next_u64()))
        .collect();
    Bytes::from(format!("\"{digits}\""))
}

/// Submits one more block of `log` and waits until it is durable.
pub async fn append_to(store: &Arc<Store>, log: LogId, salt: u8) {
    let (sender, done) = tokio::sync::oneshot::channel();
    let block = next_block(&store.submitted_head(log), salt);
    let tell = Box::new(move |outcome| drop(sender.send(outcome)));
    store.submit(block, tell).unwrap();
    done.await.unwrap().unwrap();
}

pub fn open_store(folder: &TempDir) -> Arc<Store> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(folder.path()).unwrap());
    // Small segments, so that some are sealed.
    let options = StoreOptions {
        segment_bytes: 64 << 10,
        ..StoreOptions::default()
    };
    Store::open(disk, options).unwrap().0
}

/// The members of a federation and where they listen.
pub struct World {
    pub ca: Ca,
    pub members: Vec<Member>,
    sockets: Vec<Option<UdpSocket>>,
    starts: u8,
}

impl World {
    /// Regions a, b, c… of one federation, each with a socket but not started.
    pub fn new(regions: u16) -> Self {
        listen_to_log();
        let mut members = Vec::new();
        let mut sockets = Vec::new();
        for (number, name) in (1..=regions).zip(["a", "b", "c", "d"]) {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            members.push(Member {
                id: RegionId(number),
                name: name.to_owned(),
                addr: socket.local_addr().unwrap(),
            });
            sockets.push(Some(socket));
        }
        Self {
            ca: Ca::new(),
            members,
            sockets,
            starts: 0,
        }
    }

    pub fn member(&self, region: RegionId) -> &Member {
        self.members
            .iter()
            .find(|member| member.id == region)
            .unwrap()
    }

    pub fn config(&self, region: RegionId) -> LinksConfig {
        let members = self.members.clone();
        let mut config = LinksConfig::new(FEDERATION, region, LIFE, 1, members);
        config.timings = timings();
        config
    }

    /// The socket that `region` is to listen on. A restarted region binds the same port again.
    pub fn socket(&mut self, region: RegionId) -> UdpSocket {
        let socket = self.sockets[usize::from(region.0) - 1].take();
        socket.unwrap_or_else(|| UdpSocket::bind(self.member(region).addr).unwrap())
    }

    pub fn start(&mut self, region: RegionId) -> Region {
        self.start_on(region, Arc::new(TempDir::new().unwrap()))
    }

    pub fn start_on(&mut self, region: RegionId, folder: Arc<TempDir>) -> Region {
        let identity = self.ca.region(&self.member(region).name);
        self.start_as(self.config(region), &identity, folder)
    }

    /// Starts a region as it should not be: with another identity or configuration.
    pub fn start_as(
        &mut self,
        config: LinksConfig,
        identity: &Identity,
        folder: Arc<TempDir>,
    ) -> Region {
        let store = open_store(&folder);
        self.start_with(config, identity, folder, store)
    }

    pub fn start_with(
        &mut self,
        config: LinksConfig,
        identity: &Identity,
        folder: Arc<TempDir>,
        store: Arc<Store>,
    ) -> Region {
        let region = config.region;
        let runtime = Arc::new(quinn::TokioRuntime);
        let socket = self.socket(region);
        socket.set_nonblocking(true).unwrap();
        let socket = runtime.wrap_udp_socket(socket).unwrap();
        self.starts += 1;
        let keys = EndpointKeys {
            stable: [u8::try_from(region.0).unwrap(); 32],
            seed: [self.starts; 32],
        };
        let endpoint = Endpoint::new(socket, runtime, identity, keys).unwrap();
        let start = HlcStart {
            ceiling: Timestamp::ZERO,
            last_stamp: Timestamp::ZERO,
        };
        let hlc = Arc::new(Hlc::new(Arc::new(WallClock), start, config.max_offset));
        // Nothing is stamped by this clock here, so all that was written is complete up to now.
        let promising = (Arc::clone(&hlc), Arc::clone(&store));
        let promises = move || {
            let (hlc, store) = &promising;
            vec![Promise {
                log: log_of(region),
                timestamp: hlc.physical_now(),
                position: store.head(log_of(region)).position,
            }]
        };
        let links = Links::start(
            config,
            Arc::clone(&store),
            hlc,
            endpoint.clone(),
            Arc::new(promises),
            u64::from(region.0),
        );
        let accepting = (Arc::clone(&links), endpoint.clone());
        tokio::spawn(async move {
            let (links, endpoint) = accepting;
            while let Some(incoming) = endpoint.accept().await {
                if let Incoming::Link(connection, name) = incoming {
                    links.accept(connection, name);
                }
            }
        });
        Region {
            id: region,
            store,
            links,
            endpoint,
            folder,
        }
    }
}

pub struct Region {
    pub id: RegionId,
    pub store: Arc<Store>,
    pub links: Arc<Links>,
    pub endpoint: Endpoint,
    pub folder: Arc<TempDir>,
}

impl Region {
    /// Writes `blocks` blocks to this region's own log.
    pub async fn append(&self, blocks: usize) {
        for _ in 0..blocks {
            append_to(&self.store, log_of(self.id), 0).await;
        }
    }

    pub fn head(&self, origin: RegionId) -> LogHead {
        self.store.head(log_of(origin))
    }

    pub fn peer(&self, region: RegionId) -> PeerStatus {
        let peers = self.links.peers();
        peers
            .into_iter()
            .find(|peer| peer.region == region)
            .unwrap()
    }

    pub fn last_error(&self, region: RegionId) -> String {
        self.peer(region).last_error.unwrap_or_default()
    }

    /// Whom `origin`'s log is pulled from.
    pub fn via(&self, origin: RegionId) -> Option<RegionId> {
        let peers = self.links.peers();
        let mut all = peers.iter().flat_map(|peer| &peer.subscriptions);
        Some(all.find(|it| it.log == log_of(origin))?.via)
    }

    pub fn is_linked(&self, region: RegionId) -> bool {
        let peer = self.peer(region);
        peer.connected_in && peer.connected_out
    }

    /// Stops it and gives back its folder.
    pub async fn stop(self) -> Arc<TempDir> {
        self.links.shutdown().await;
        self.endpoint.close().await;
        self.store.close();
        let addr = self.endpoint.local_addr().unwrap();
        let folder = Arc::clone(&self.folder);
        drop(self);
        // The next start is to listen there again.
        until("its socket is closed", || UdpSocket::bind(addr).is_ok()).await;
        folder
    }
}

/// Waits until both hold the same of `origin`'s log, at least to `position`.
pub async fn until_same(left: &Region, right: &Region, origin: RegionId, position: u64) {
    until("the two hold the same", || {
        let (ours, theirs) = (left.head(origin), right.head(origin));
        ours.position.0 >= position && ours == theirs
    })
    .await;
}

/// Both are linked and what one writes arrives at the other: the link between them works.
pub async fn assert_goes_on(left: &Region, right: &Region) {
    left.append(2).await;
    right.append(2).await;
    let (ours, theirs) = (left.head(left.id), right.head(right.id));
    until_same(left, right, left.id, ours.position.0).await;
    until_same(left, right, right.id, theirs.position.0).await;
}

/// An address at which nobody ever answers, for as long as the socket is kept.
pub fn nobody() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

//! A federation of fake nodes over real QUIC on loopback, with certificates made on the spot.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "part of tests with real sockets, each of which uses its own share of it"
)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_client::server::{Caller, Service, serve};
use meridian_client::tls::{Alpn, Identity, PeerName};
use meridian_client::wire::{Hello, Request, Response, Welcome};
use meridian_client::{
    AppendRequest, Appended, Client, ClientConfig, ConnectError, Connection, Durability, Expected,
    Member, Seed, Topology,
};
use meridian_clock::{Dot, PartitionId, Position, RegionId, Timestamp};
use meridian_conflict::{CategoryPolicy, HomeRule, Mode};
use meridian_event::{EventId, EventType, NewEvent, Revision, StreamId};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub const EAST: RegionId = RegionId(1);
pub const WEST: RegionId = RegionId(2);
pub const FEDERATION: Uuid = Uuid::from_u128(0x5eed);

/// A certificate authority of a test.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names, and its key.
    pub fn sign(&self, names: &[&str], usages: &[ExtendedKeyUsagePurpose]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub fn identity(&self, name: &str) -> Identity {
        let (certificate, key) = self.sign(
            &[name],
            &[
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        );
        Identity::load(
            self.pem().as_bytes(),
            certificate.as_bytes(),
            key.as_bytes(),
        )
        .unwrap()
    }

    pub fn region(&self, name: &str) -> Identity {
        self.identity(&PeerName::Region(name.to_owned()).dns_name())
    }

    pub fn client(&self) -> Identity {
        self.identity("app.client.meridian.internal")
    }
}

/// The two regions, wherever they listen. `cart` streams are written anywhere, `ledger` streams
/// are homed in the east, `visit` streams where they are created.
pub fn topology(east: SocketAddr, west: SocketAddr) -> Topology {
    let member = |id, name: &str, addr: SocketAddr| Member {
        id,
        name: name.to_owned(),
        quic: addr.to_string(),
        http: "127.0.0.1:1".to_owned(),
    };
    let policy = |mode, home| CategoryPolicy { mode, home };
    Topology {
        partitions: 4,
        members: vec![member(EAST, "east", east), member(WEST, "west", west)],
        categories: BTreeMap::from([
            ("cart".to_owned(), policy(Mode::Crdt, HomeRule::Hash)),
            (
                "ledger".to_owned(),
                policy(Mode::Home, HomeRule::Fixed(EAST)),
            ),
            ("visit".to_owned(), policy(Mode::Home, HomeRule::Creator)),
        ]),
    }
}

type Handler =
    dyn Fn(Caller, Request) -> futures_util::future::BoxFuture<'static, Response> + Send + Sync;

/// A node that answers what a test tells it to.
pub struct FakeNode {
    pub addr: SocketAddr,
    endpoint: quinn::Endpoint,
    cancel: CancellationToken,
    ended: tokio::sync::mpsc::UnboundedReceiver<String>,
}

struct FakeService {
    region: RegionId,
    topology: Topology,
    handler: Arc<Handler>,
}

impl Service for FakeService {
    fn federation(&self) -> Uuid {
        FEDERATION
    }

    fn welcome(&self) -> Welcome {
        Welcome {
            version: 0,
            region: self.region,
            topology: self.topology.clone(),
        }
    }

    fn handle<'a>(
        &'a self,
        caller: Caller,
        request: Request,
    ) -> futures_util::future::BoxFuture<'a, Response> {
        (self.handler)(caller, request)
    }
}

/// A server's socket, bound before it is known what will be served on it.
pub fn listen(identity: &Identity) -> quinn::Endpoint {
    let config = identity.server_config();
    quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

/// A server's socket on an address that another may still be about to leave.
pub async fn listen_again(identity: &Identity, addr: SocketAddr) -> quinn::Endpoint {
    let mut tries = 0;
    loop {
        match quinn::Endpoint::server(identity.server_config(), addr) {
            Ok(endpoint) => return endpoint,
            Err(error) if tries == 200 => panic!("{addr} stays in use: {error}"),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn dialler() -> quinn::Endpoint {
    meridian_client::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

impl FakeNode {
    pub fn start<F, Answer>(
        endpoint: quinn::Endpoint,
        region: RegionId,
        topology: Topology,
        handler: F,
    ) -> Self
    where
        F: Fn(Caller, Request) -> Answer + Send + Sync + 'static,
        Answer: Future<Output = Response> + Send + 'static,
    {
        let service = Arc::new(FakeService {
            region,
            topology,
            handler: Arc::new(move |caller, request| Box::pin(handler(caller, request))),
        });
        let cancel = CancellationToken::new();
        let (tell, ended) = tokio::sync::mpsc::unbounded_channel();
        let (accepting, stop) = (endpoint.clone(), cancel.clone());
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let (service, stop, tell) = (Arc::clone(&service), stop.clone(), tell.clone());
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else {
                        return;
                    };
                    assert_eq!(Alpn::of(&connection), Some(Alpn::Client));
                    let peer = PeerName::of(&connection).unwrap();
                    let outcome = serve(connection, peer, service, stop).await;
                    let outcome = outcome.map_or_else(|error| chain(&error), |()| "well".into());
                    let _ = tell.send(outcome);
                });
            }
        });
        Self {
            addr: endpoint.local_addr().unwrap(),
            endpoint,
            cancel,
            ended,
        }
    }

    /// Asks it to stop in good order.
    pub fn stop(&self) {
        self.cancel.cancel();
    }

    /// Takes it away without a word, but for what the operating system would say.
    pub fn kill(&self) {
        self.endpoint.close(99_u32.into(), b"killed");
    }

    /// How the next conversation to end did end.
    pub async fn ended(&mut self) -> String {
        self.ended.recv().await.unwrap()
    }
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}

/// One node of the east, and how to reach it.
pub struct Lone {
    pub ca: Ca,
    pub node: FakeNode,
}

impl Lone {
    pub fn start<F, Answer>(handler: F) -> Self
    where
        F: Fn(Caller, Request) -> Answer + Send + Sync + 'static,
        Answer: Future<Output = Response> + Send + 'static,
    {
        let ca = Ca::new();
        let endpoint = listen(&ca.region("east"));
        let addr = endpoint.local_addr().unwrap();
        let node = FakeNode::start(endpoint, EAST, topology(addr, addr), handler);
        Self { ca, node }
    }

    pub async fn open(&self) -> Connection {
        let opened = self.open_as(&self.ca.client(), "east", &hello()).await;
        opened.unwrap()
    }

    pub async fn open_as(
        &self,
        identity: &Identity,
        region: &str,
        hello: &Hello,
    ) -> Result<Connection, ConnectError> {
        let name = PeerName::Region(region.to_owned()).dns_name();
        open(identity, self.node.addr, &name, hello).await
    }
}

pub async fn open(
    identity: &Identity,
    addr: SocketAddr,
    server_name: &str,
    hello: &Hello,
) -> Result<Connection, ConnectError> {
    let config = identity.client_config(Alpn::Client);
    let within = Duration::from_secs(5);
    Connection::open(&dialler(), config, addr, server_name, hello, within).await
}

pub fn hello() -> Hello {
    Hello::new(FEDERATION, "a test")
}

pub fn config(ca: &Ca, seeds: &[SocketAddr]) -> ClientConfig {
    let seeds = seeds.iter().map(|addr| Seed {
        addr: *addr,
        region: None,
    });
    let mut config = ClientConfig::new(dialler(), ca.client(), FEDERATION, seeds.collect());
    config.connect_timeout = Duration::from_secs(1);
    config.request_timeout = Duration::from_secs(8);
    config
}

pub async fn connect(ca: &Ca, seeds: &[SocketAddr]) -> Client {
    Client::connect(config(ca, seeds)).await.unwrap()
}

pub fn event(id: u128) -> NewEvent {
    NewEvent {
        id: EventId(Uuid::from_u128(id)),
        event_type: EventType::new("Counted").unwrap(),
        data: Bytes::from_static(b"{\"n\":1}"),
        metadata: Bytes::new(),
    }
}

pub fn append(stream: &str, ids: &[u128]) -> AppendRequest {
    AppendRequest {
        stream: StreamId::new(stream).unwrap(),
        expected: Expected::Any,
        durability: Durability::Region,
        events: ids.iter().map(|id| event(*id)).collect(),
    }
}

/// The answer to an append that was done, with its first id as its revision.
pub fn done(region: RegionId, request: &AppendRequest) -> Appended {
    let revision = request
        .events
        .first()
        .map_or(0, |event| event.id.0.as_u128());
    let revision = Revision(u64::try_from(revision).unwrap());
    Appended {
        stream: request.stream.clone(),
        first_revision: revision,
        last_revision: revision,
        home: region,
        dots: vec![Dot {
            origin: region,
            partition: PartitionId(0),
            position: Position(1),
        }],
        timestamp: Timestamp(1),
        durability: request.durability,
        could_strand: false,
    }
}

pub fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(5)
}

//! One connection per region, opened when it is first needed; and which region is nearest.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use meridian_clock::RegionId;
use meridian_conflict::{Policies, PolicyError};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, Jitter};
use crate::tls::{ANY_REGION, Alpn, Identity, PeerName};
use crate::wire::{Hello, RefusedCode, Request, Response};
use crate::{ConnectError, Connection, Member, RequestError, Resolver, Seed, Topology};

/// How long after one seed the next is tried, while the first has not answered.
const NEXT_SEED_AFTER: Duration = Duration::from_millis(250);
/// How long the nearest region's rivals have to answer once one region has.
const RIVALS_WITHIN: Duration = Duration::from_millis(300);

const CLOSED: &str = "the client was closed";

/// What was learnt from a node.
pub(crate) struct Known {
    pub(crate) topology: Arc<Topology>,
    pub(crate) policies: Policies,
}

impl Known {
    fn new(topology: Topology) -> Result<Self, PolicyError> {
        Ok(Self {
            policies: topology.policies()?,
            topology: Arc::new(topology),
        })
    }
}

/// Why a request has no answer.
pub(crate) enum AskError {
    /// It never left.
    NotSent(String),
    /// It may have been done.
    Unanswered(String),
    /// It can never be sent.
    TooLong(String),
}

pub(crate) struct Regions {
    endpoint: quinn::Endpoint,
    identity: RwLock<Identity>,
    hello: Hello,
    resolver: Resolver,
    connect_timeout: Duration,
    prefer: Option<String>,
    jitter: Arc<Jitter>,
    known: RwLock<Arc<Known>>,
    links: Mutex<BTreeMap<RegionId, Arc<Link>>>,
    /// The region in use where any will do; it stays while it can be reached.
    nearest: Mutex<Option<RegionId>>,
    closed: CancellationToken,
}

/// How one region is reached.
#[derive(Default)]
struct Link {
    state: Mutex<LinkState>,
    /// Where it was reached as a seed; an address that the operator gave to us is tried first.
    seed: Option<SocketAddr>,
    /// Held while dialling, so that everyone waits for the same attempt.
    dialling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct LinkState {
    connection: Option<Connection>,
    /// Why it could not be reached. A task dials it again and again; nobody else waits for that.
    down: Option<String>,
}

impl Link {
    /// The open connection, if there is one; else why there cannot be one now, if that is known.
    fn open(&self) -> Result<Connection, Option<String>> {
        let state = lock(&self.state);
        let open = state.connection.as_ref().filter(|it| it.is_open());
        open.cloned().ok_or_else(|| state.down.clone())
    }

    fn set(&self, connection: Result<Connection, String>) {
        let mut state = lock(&self.state);
        match connection {
            Ok(connection) => {
                state.connection = Some(connection);
                state.down = None;
            }
            Err(reason) => state.down = Some(reason),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How to reach a federation; see [`crate::ClientConfig`] for what each part means.
pub(crate) struct Reach {
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) identity: Identity,
    pub(crate) hello: Hello,
    pub(crate) resolver: Resolver,
    pub(crate) connect_timeout: Duration,
    pub(crate) prefer: Option<String>,
}

impl Regions {
    /// Asks the seeds until one of them tells us about the federation.
    pub(crate) async fn learn_from(
        seeds: &[Seed],
        reach: Reach,
        jitter: Arc<Jitter>,
        deadline: Instant,
    ) -> Result<Arc<Self>, ConnectError> {
        let mut backoff = Backoff::default();
        loop {
            let error = match first_to_welcome(seeds, &reach).await {
                Ok((connection, known)) => {
                    check_preference(reach.prefer.as_deref(), &known.topology)?;
                    return Ok(Self::starting_with(connection, known, reach, jitter));
                }
                Err(error) => error,
            };
            let again_at = Instant::now() + backoff.next(&jitter);
            if is_for_good(&error) || again_at >= deadline {
                return Err(error);
            }
            tokio::time::sleep_until(again_at).await;
        }
    }

    fn starting_with(
        connection: Connection,
        known: Known,
        reach: Reach,
        jitter: Arc<Jitter>,
    ) -> Arc<Self> {
        let region = connection.welcome().region;
        let link = Link {
            seed: Some(connection.remote_address()),
            state: Mutex::new(LinkState {
                connection: Some(connection),
                down: None,
            }),
            dialling: tokio::sync::Mutex::default(),
        };
        let Reach {
            endpoint,
            identity,
            hello,
            resolver,
            connect_timeout,
            prefer,
        } = reach;
        Arc::new(Self {
            endpoint,
            identity: RwLock::new(identity),
            hello,
            resolver,
            connect_timeout,
            prefer,
            jitter,
            known: RwLock::new(Arc::new(known)),
            links: Mutex::new(BTreeMap::from([(region, Arc::new(link))])),
            nearest: Mutex::new(None),
            closed: CancellationToken::new(),
        })
    }

    pub(crate) fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn learn(&self, topology: &Topology) {
        if *self.known().topology == *topology {
            return;
        }
        match Known::new(topology.clone()) {
            Ok(known) => {
                *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
            }
            Err(error) => {
                tracing::warn!(%error, "a node's view of the federation is unusable; kept the old");
            }
        }
    }

    fn link(&self, region: RegionId) -> Arc<Link> {
        Arc::clone(lock(&self.links).entry(region).or_default())
    }

    /// Sends `request` to `region` and waits for the answer, until `deadline`.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        region: RegionId,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, AskError> {
        let connection = self
            .connection(region, deadline)
            .await
            .map_err(AskError::NotSent)?;
        let in_region = |reason| format!("region {region}: {reason}");
        connection
            .request(request, deadline)
            .await
            .map_err(|error| match error {
                RequestError::NotSent { reason } => AskError::NotSent(in_region(reason)),
                RequestError::Unanswered { reason } | RequestError::Protocol { reason } => {
                    AskError::Unanswered(in_region(reason))
                }
                RequestError::TooLong(error) => AskError::TooLong(error.to_string()),
            })
    }

    /// Asks `region` who is a member and what the rules are, if it can be had soon.
    pub(crate) async fn relearn(self: &Arc<Self>, region: RegionId, deadline: Instant) {
        let deadline = deadline.min(Instant::now() + self.connect_timeout);
        if let Ok(Response::Topology(topology)) =
            self.ask(region, &Request::Topology, deadline).await
        {
            self.learn(&topology);
        }
    }

    /// The connection to `region`, opened if there is none. The error says why there is none.
    async fn connection(
        self: &Arc<Self>,
        region: RegionId,
        deadline: Instant,
    ) -> Result<Connection, String> {
        if self.closed.is_cancelled() {
            return Err(CLOSED.to_owned());
        }
        let link = self.link(region);
        let in_region = |reason: &str| format!("region {region}: {reason}");
        match link.open() {
            Ok(open) => return Ok(open),
            Err(Some(down)) => return Err(in_region(&down)),
            Err(None) => {}
        }
        let Ok(_dialling) = timeout_at(deadline, link.dialling.lock()).await else {
            return Err(in_region("time was up while it was being dialled"));
        };
        match link.open() {
            Ok(open) => return Ok(open),
            Err(Some(down)) => return Err(in_region(&down)),
            Err(None) => {}
        }
        let give_up_at = deadline.min(Instant::now() + self.connect_timeout);
        let dialled = tokio::select! {
            biased;
            () = self.closed.cancelled() => return Err(CLOSED.to_owned()),
            dialled = self.dial(region, link.seed, give_up_at) => dialled,
        };
        match &dialled {
            Ok(connection) => link.set(Ok(connection.clone())),
            // A caller in a hurry has not shown that the region cannot be reached. Somebody must, or all who
            // are in a hurry wait for it in vain, one after the other, and never turn to another region.
            Err(_) if give_up_at == deadline && Instant::now() >= deadline => {
                let (regions, link) = (Arc::clone(self), Arc::clone(&link));
                tokio::spawn(async move { regions.dial_patiently(region, &link).await });
            }
            Err(reason) => {
                link.set(Err(reason.clone()));
                let (regions, link) = (Arc::clone(self), Arc::clone(&link));
                tokio::spawn(async move { regions.redial(region, &link).await });
            }
        }
        dialled.map_err(|reason| in_region(&reason))
    }

    /// Finds out whether a region can be reached, for those who had no time to.
    async fn dial_patiently(&self, region: RegionId, link: &Link) {
        let dialling = link.dialling.lock().await;
        if !matches!(link.open(), Err(None)) {
            return;
        }
        let give_up_at = Instant::now() + self.connect_timeout;
        let dialled = tokio::select! {
            biased;
            () = self.closed.cancelled() => return,
            dialled = self.dial(region, link.seed, give_up_at) => dialled,
        };
        let reached = dialled.is_ok();
        link.set(dialled);
        drop(dialling);
        if !reached {
            self.redial(region, link).await;
        }
    }

    /// Dials a region until it is reached, so that no request has to wait for that.
    async fn redial(&self, region: RegionId, link: &Link) {
        let mut backoff = Backoff::default();
        loop {
            let attempt = async {
                sleep(backoff.next(&self.jitter)).await;
                let give_up_at = Instant::now() + self.connect_timeout;
                self.dial(region, link.seed, give_up_at).await
            };
            let dialled = tokio::select! {
                biased;
                () = self.closed.cancelled() => return,
                dialled = attempt => dialled,
            };
            let reached = dialled.is_ok();
            link.set(dialled);
            if reached {
                return;
            }
        }
    }

    async fn dial(
        &self,
        region: RegionId,
        seed: Option<SocketAddr>,
        give_up_at: Instant,
    ) -> Result<Connection, String> {
        let known = self.known();
        let Some(Member { name, quic, .. }) = known.topology.member(region) else {
            return Err("it is not a member".to_owned());
        };
        let mut addresses: Vec<_> = seed.into_iter().collect();
        let mut reason = String::new();
        match timeout_at(give_up_at, self.resolver.addresses(quic)).await {
            Ok(Ok(found)) => addresses.extend(found.into_iter().filter(|it| Some(*it) != seed)),
            Ok(Err(error)) => reason = format!("cannot resolve {quic:?}: {error}"),
            Err(_) => reason = format!("{quic:?} was not resolved in time"),
        }
        let server_name = PeerName::Region(name.clone()).dns_name();
        for addr in addresses {
            let left = give_up_at.saturating_duration_since(Instant::now());
            let config = self.identity().client_config(Alpn::Client);
            let (endpoint, hello) = (&self.endpoint, &self.hello);
            match Connection::open(endpoint, config, addr, &server_name, hello, left).await {
                Ok(connection) if connection.welcome().region == region => {
                    self.learn(&connection.welcome().topology);
                    return Ok(connection);
                }
                Ok(connection) => {
                    let claimed = connection.welcome().region;
                    reason = format!("{addr} is now region {claimed}");
                }
                Err(error) => reason = with_causes(&error),
            }
        }
        Err(reason)
    }

    /// All regions, the one to use first: the preferred, or else the one in use, or else the one
    /// with the shortest round trip; those that cannot be reached come last.
    pub(crate) async fn nearest_first(self: &Arc<Self>, deadline: Instant) -> Vec<RegionId> {
        let known = self.known();
        let members: Vec<RegionId> = known.topology.members.iter().map(|it| it.id).collect();
        let prefer = self
            .prefer
            .as_deref()
            .and_then(|name| known.topology.named(name))
            .map(|member| member.id);
        let first = match prefer {
            Some(prefer) if self.connection(prefer, deadline).await.is_ok() => Some(prefer),
            _ => {
                let in_use = *lock(&self.nearest);
                in_use.filter(|region| self.link(*region).open().is_ok())
            }
        };
        if first.is_none() {
            self.meet_all(&members, deadline).await;
        }
        let mut ranked: Vec<_> = members
            .into_iter()
            .map(|region| {
                let rtt = self.link(region).open().ok().map(|open| open.rtt());
                (first != Some(region), rtt.is_none(), rtt, region)
            })
            .collect();
        ranked.sort_unstable();
        *lock(&self.nearest) = ranked.first().map(|(.., region)| *region);
        ranked.into_iter().map(|(.., region)| region).collect()
    }

    /// Opens a connection to every region, so that the round trips are known. One that has not
    /// answered shortly after the first is not the nearest.
    async fn meet_all(self: &Arc<Self>, members: &[RegionId], deadline: Instant) {
        let mut meeting: FuturesUnordered<_> = members
            .iter()
            .map(|region| self.connection(*region, deadline))
            .collect();
        let mut until = deadline;
        while let Ok(Some(met)) = timeout_at(until, meeting.next()).await {
            if met.is_ok() {
                until = until.min(Instant::now() + RIVALS_WITHIN);
            }
        }
    }

    fn identity(&self) -> Identity {
        let identity = self.identity.read();
        identity.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Proves ourselves with another certificate from the next connection on.
    pub(crate) fn set_identity(&self, identity: Identity) {
        *self
            .identity
            .write()
            .unwrap_or_else(PoisonError::into_inner) = identity;
    }

    /// Ends all connections and the attempts to open any.
    pub(crate) fn close(&self) {
        self.closed.cancel();
        for link in lock(&self.links).values() {
            if let Some(connection) = lock(&link.state).connection.take() {
                connection.close();
            }
        }
    }
}

/// The first seed that accepts us. They are tried one shortly after the other, not one after the
/// failure of the other: a seed that is gone for good does not slow anyone down.
async fn first_to_welcome(
    seeds: &[Seed],
    reach: &Reach,
) -> Result<(Connection, Known), ConnectError> {
    let mut attempts: FuturesUnordered<_> = seeds
        .iter()
        .zip(0_u32..)
        .map(|(seed, place)| async move {
            sleep(NEXT_SEED_AFTER * place).await;
            let server_name = match &seed.region {
                Some(region) => PeerName::Region(region.clone()).dns_name(),
                None => ANY_REGION.to_owned(),
            };
            let config = reach.identity.client_config(Alpn::Client);
            let (endpoint, hello, within) = (&reach.endpoint, &reach.hello, reach.connect_timeout);
            let connection =
                Connection::open(endpoint, config, seed.addr, &server_name, hello, within).await?;
            match Known::new(connection.welcome().topology.clone()) {
                Ok(known) => Ok((connection, known)),
                Err(error) => Err(ConnectError::Unreadable {
                    addr: seed.addr,
                    reason: error.to_string(),
                }),
            }
        })
        .collect();
    let mut last = ConnectError::NoSeeds;
    while let Some(outcome) = attempts.next().await {
        match outcome {
            Ok(welcome) => return Ok(welcome),
            // Of several reasons, one that can pass is worth another try.
            Err(error) if is_for_good(&last) => last = error,
            Err(_) => {}
        }
    }
    Err(last)
}

fn check_preference(prefer: Option<&str>, topology: &Topology) -> Result<(), ConnectError> {
    match prefer {
        Some(name) if topology.named(name).is_none() => Err(ConnectError::NoSuchRegion {
            name: name.to_owned(),
            members: topology.members.iter().map(|it| it.name.clone()).collect(),
        }),
        _ => Ok(()),
    }
}

/// Whether trying again without changing anything must fail the same way.
fn is_for_good(error: &ConnectError) -> bool {
    match error {
        ConnectError::NoSeeds
        | ConnectError::NoSuchRegion { .. }
        | ConnectError::Dial { .. }
        | ConnectError::Untrusted { .. }
        | ConnectError::NotAccepted { .. }
        | ConnectError::Protocol { .. }
        | ConnectError::Impostor { .. }
        | ConnectError::Certificate { .. } => true,
        ConnectError::Refused { code, .. } => *code != RefusedCode::Busy,
        ConnectError::Timeout { .. }
        | ConnectError::Lost { .. }
        | ConnectError::Unreadable { .. } => false,
    }
}

/// An error and what caused it, in one line.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

//! The client: which region to ask, and how often.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_clock::{Dot, RegionId};
use meridian_conflict::Route;
use meridian_event::{EventId, StreamId};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::attempt::{Attempt, Next};
use crate::backoff::{Backoff, Jitter};
use crate::regions::{AskError, Reach, Regions};
use crate::session::{Carried, no_sessions};
use crate::tls::Identity;
use crate::wire::{Hello, Request, Response};
use crate::{
    AppendError, AppendRequest, Appended, AwaitSettled, Awaited, ConnectError, Consumer, Limits,
    LivePage, LiveRead, LiveReader, ReadError, Resolver, Session, SessionRequest, SessionResponse,
    SessionToken, SettledPage, SettledRead, SettledReader, SettledTier, StateRead, StreamPage,
    StreamRead, StreamReader, StreamState, Topology,
};

/// A node to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Where it takes QUIC.
    pub addr: SocketAddr,
    /// The region it must prove to be of; any region of the federation when `None`.
    pub region: Option<String>,
}

/// How a client reaches its federation.
#[derive(Clone)]
pub struct ClientConfig {
    /// Nodes to begin with; one that answers is enough.
    pub seeds: Vec<Seed>,
    /// The federation they must belong to.
    pub federation: Uuid,
    /// What we prove about ourselves, and whom we believe.
    pub identity: Identity,
    /// The socket and the runtime; [`bind`] makes one.
    pub endpoint: quinn::Endpoint,
    /// Finds the addresses that nodes name.
    pub resolver: Resolver,
    /// What we call ourselves in the nodes' logs.
    pub name: String,
    /// The region to use where any will do; the nearest by round trip when `None`.
    pub prefer: Option<String>,
    /// How long a request may take, retries included.
    pub request_timeout: Duration,
    /// How long one attempt to connect may take.
    pub connect_timeout: Duration,
    /// Draws the jitter between retries. Give each client its own, or those that fail together come
    /// back together.
    pub jitter_seed: u64,
}

impl ClientConfig {
    /// A configuration with the usual time-outs: 10 s for a request, 3 s for a connection.
    pub fn new(
        endpoint: quinn::Endpoint,
        identity: Identity,
        federation: Uuid,
        seeds: Vec<Seed>,
    ) -> Self {
        Self {
            seeds,
            federation,
            identity,
            endpoint,
            resolver: Resolver::system(),
            name: "client".to_owned(),
            prefer: None,
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(3),
            jitter_seed: 0,
        }
    }
}

/// An endpoint on a UDP socket of its own, for applications that have no reason to bring one.
///
/// # Errors
/// When the socket cannot be bound.
pub fn bind(addr: SocketAddr) -> io::Result<quinn::Endpoint> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a convenience; a simulation brings its own endpoint"
    )]
    quinn::Endpoint::client(addr)
}

/// Which region answers a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadAt {
    /// The preferred or nearest region that can be reached. It may not hold the latest events yet.
    #[default]
    Nearest,
    /// The stream's home, which holds every revision that was given out. In a session it is the region
    /// that this client knows as the home, which may have given the stream up since.
    Home,
    /// This region.
    Region(RegionId),
}

/// A federation, as an application sees it. Clones share their connections, which close when the
/// last of them is dropped.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    regions: Arc<Regions>,
    jitter: Arc<Jitter>,
    unresolved: Mutex<Unresolved>,
    // The homes of streams that are not where the rules say, as nodes told us.
    moved: Mutex<BTreeMap<StreamId, RegionId>>,
    request_timeout: Duration,
}

/// Of how many moved streams a client knows the home. Beyond it, it learns anew: that costs one more
/// hop, nothing else.
const MOVED_MAX: usize = 10_000;

impl Drop for Inner {
    fn drop(&mut self) {
        self.regions.close();
    }
}

impl Client {
    /// Finds a seed that answers and learns the regions from it.
    ///
    /// # Errors
    /// When no seed accepts us within the request time-out, or trying again could not help.
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        let ClientConfig {
            seeds,
            federation,
            identity,
            endpoint,
            resolver,
            name,
            prefer,
            request_timeout,
            connect_timeout,
            jitter_seed,
        } = config;
        let jitter = Arc::new(Jitter::new(jitter_seed));
        let reach = Reach {
            endpoint,
            identity,
            hello: Hello::new(federation, name),
            resolver,
            connect_timeout,
            prefer,
        };
        let deadline = Instant::now() + request_timeout;
        let regions = Regions::learn_from(&seeds, reach, Arc::clone(&jitter), deadline).await?;
        let inner = Inner {
            regions,
            jitter,
            unresolved: Mutex::default(),
            moved: Mutex::default(),
            request_timeout,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Writes the events at the stream's home, or in the nearest region when every region may write
    /// it, and repeats the request with the same ids until its outcome is known or the request
    /// time-out is over.
    ///
    /// # Errors
    /// See [`AppendError`]. An outcome that stays unknown is [`AppendError::Indeterminate`]: call
    /// again with the same ids to learn it.
    pub async fn append(&self, request: AppendRequest) -> Result<Appended, AppendError> {
        self.append_until(request, Instant::now() + self.inner.request_timeout)
            .await
    }

    /// [`Client::append`] with a deadline of its own.
    ///
    /// # Errors
    /// As [`Client::append`].
    pub async fn append_until(
        &self,
        request: AppendRequest,
        deadline: Instant,
    ) -> Result<Appended, AppendError> {
        self.append_carrying(request, deadline, None).await
    }

    /// [`Client::append_until`], in a session if there is one.
    pub(crate) async fn append_carrying(
        &self,
        request: AppendRequest,
        deadline: Instant,
        mut session: Option<Carried<'_>>,
    ) -> Result<Appended, AppendError> {
        request.check(&Limits::WIDEST)?;
        let route = self.route(&request.stream);
        // A request is one batch, so its first id stands for all of them.
        let id = request.events.first().map(|event| event.id);
        let writes_anywhere = id.filter(|_| route == Route::Anywhere);
        let earlier = writes_anywhere.and_then(|id| self.unresolved().get(id));

        let mut attempt = Attempt::new(route, earlier);
        let stream = request.stream.clone();
        let request = SessionRequest::Append(request);
        let request = match &session {
            Some(session) => session.wrap(request),
            None => request.into(),
        };
        let mut sent = Sent {
            route,
            writes_anywhere,
            session: session.as_mut(),
        };
        let outcome = self
            .try_until(&request, &mut attempt, &mut sent, deadline)
            .await;
        match &outcome {
            // What was recorded before a move is answered with the home of then.
            Ok(appended) if route != Route::Home(appended.home) => {
                self.learn_home(&stream, appended.home);
            }
            Err(AppendError::NotHome { home, .. }) => self.learn_home(&stream, *home),
            _ => {}
        }
        let is_known = !matches!(outcome, Err(AppendError::Indeterminate { .. }));
        if let Some(id) = writes_anywhere.filter(|_| is_known) {
            self.unresolved().forget(id);
        }
        outcome
    }

    async fn try_until(
        &self,
        request: &Request,
        attempt: &mut Attempt,
        sent: &mut Sent<'_, '_>,
        deadline: Instant,
    ) -> Result<Appended, AppendError> {
        let regions = &self.inner.regions;
        let mut backoff = Backoff::default();
        loop {
            let (region, until) = match attempt.first_choice() {
                Some(region) => (Some(region), deadline),
                None => {
                    let nearest = regions.nearest_first(deadline).await;
                    (
                        attempt.second_choice(&nearest),
                        Self::detour(sent.route, deadline),
                    )
                }
            };
            let next = match region {
                None => attempt.all_unreachable(),
                Some(region) => {
                    if let Some(id) = sent.writes_anywhere {
                        self.unresolved().remember(id, region);
                    }
                    let answer = regions.ask(region, request, until).await;
                    match answer.map(|response| sent.unwrap(response)) {
                        Ok(Response::Append(answer)) => attempt.answered(region, answer),
                        Ok(Response::NotUnderstood { reason }) => {
                            let reason = match sent.session {
                                Some(_) => no_sessions(region, &reason),
                                None => reason,
                            };
                            attempt.answered(region, Err(AppendError::Invalid { reason }))
                        }
                        Ok(_) => attempt
                            .unanswered(region, format!("region {region} answered something else")),
                        Err(AskError::NotSent(reason)) => attempt.could_not_reach(region, reason),
                        Err(AskError::Unanswered(reason)) => attempt.unanswered(region, reason),
                        Err(AskError::TooLong(reason)) => {
                            attempt.answered(region, Err(AppendError::Invalid { reason }))
                        }
                    }
                }
            };
            let at_least = match next {
                Next::Done(outcome) => return outcome,
                Next::Now => Duration::ZERO,
                Next::Relearn => {
                    if let Some(region) = region {
                        regions.relearn(region, deadline).await;
                    }
                    Duration::ZERO
                }
                Next::After(at_least) => backoff.next(&self.inner.jitter).max(at_least),
            };
            let again_at = Instant::now() + at_least;
            if again_at >= deadline {
                return Err(attempt.time_is_up());
            }
            if at_least > Duration::ZERO {
                sleep_until(again_at).await;
            }
        }
    }

    /// How long to wait for a region that stands in: where it only passes an append on to the home,
    /// there must be time left to find the home back.
    fn detour(route: Route, deadline: Instant) -> Instant {
        const AT_LEAST: Duration = Duration::from_secs(1);
        match route {
            // The one that is asked may be the home, or make itself that.
            Route::Anywhere | Route::Creator => deadline,
            Route::Home(_) => {
                let now = Instant::now();
                let share = deadline.saturating_duration_since(now) / 3;
                deadline.min(now + share.max(AT_LEAST))
            }
        }
    }

    /// Reads one page of a stream.
    ///
    /// # Errors
    /// When it cannot be read within the request time-out.
    pub async fn read_stream(&self, read: StreamRead, at: ReadAt) -> Result<StreamPage, ReadError> {
        let deadline = Instant::now() + self.inner.request_timeout;
        let mut only = self.region_for(&read.stream, at);
        // Where a stream was created, any region can tell.
        let mut request = match at == ReadAt::Home && self.route(&read.stream) != Route::Anywhere {
            true => Request::ReadAtHome(read.clone()),
            false => Request::ReadStream(read.clone()),
        };
        let mut backoff = Backoff::default();
        loop {
            match self.read_until(&request, only, deadline).await? {
                (region, Response::ReadStream(Err(ReadError::NotHome { home }))) => {
                    self.learn_home(&read.stream, home);
                    only = Some(home);
                    // The two may not have heard the same yet.
                    let pause = backoff.next(&self.inner.jitter);
                    if Instant::now() + pause >= deadline {
                        return Err(ReadError::NotHome { home });
                    }
                    if home == region {
                        return Err(not_an_answer(region));
                    }
                    sleep_until(Instant::now() + pause).await;
                }
                (_, Response::ReadStream(page)) => return page,
                // A node of an earlier version: homes do not move there.
                (_, Response::NotUnderstood { .. })
                    if matches!(request, Request::ReadAtHome(_)) =>
                {
                    request = Request::ReadStream(read.clone());
                }
                (region, _) => return Err(not_an_answer(region)),
            }
        }
    }

    /// Reads a stream page by page, from `read.from` to its end.
    pub fn stream(&self, read: StreamRead, at: ReadAt) -> StreamReader {
        StreamReader::new(self.clone(), read, at)
    }

    /// What a stream of a merged category comes to: in the nearest region when `at` is `None`. Only what every region
    /// has is the same in all of them, so [`crate::StateTier::Live`] may differ from one to the next.
    ///
    /// # Errors
    /// When there is no such state, or it cannot be read within the request time-out.
    pub async fn state(
        &self,
        read: StateRead,
        at: Option<RegionId>,
    ) -> Result<StreamState, ReadError> {
        let deadline = Instant::now() + self.inner.request_timeout;
        match self.read_until(&Request::State(read), at, deadline).await? {
            (_, Response::State(state)) => state,
            (region, _) => Err(not_an_answer(region)),
        }
    }

    /// Follows everything that one region holds, in the order it arrives there: the nearest region
    /// when `at` is `None`. A cursor from an earlier page is good only at the region that gave it.
    pub fn live(&self, read: LiveRead, at: Option<RegionId>) -> LiveReader {
        LiveReader::new(self.clone(), read, at)
    }

    /// One page for a [`LiveReader`], and the region that gave it.
    pub(crate) async fn read_live(
        &self,
        read: &LiveRead,
        only: Option<RegionId>,
    ) -> Result<(RegionId, LivePage), ReadError> {
        let wait = Duration::from_millis(u64::from(read.wait_ms));
        let request = Request::Live(read.clone());
        let deadline = Instant::now() + self.inner.request_timeout + wait;
        match self.read_until(&request, only, deadline).await? {
            (region, Response::Live(page)) => page.map(|page| (region, page)),
            (region, _) => Err(not_an_answer(region)),
        }
    }

    /// Follows the one order: the same events in the same sequence, whichever region answers. Asks
    /// `at`, or the nearest region that can be reached, and goes on in another one when it cannot.
    pub fn settled(&self, read: SettledRead, at: Option<RegionId>) -> SettledReader {
        SettledReader::new(self.clone(), read, at)
    }

    /// One page for a [`SettledReader`].
    pub(crate) async fn read_settled(
        &self,
        read: &SettledRead,
        only: Option<RegionId>,
    ) -> Result<SettledPage, ReadError> {
        let wait = Duration::from_millis(u64::from(read.wait_ms));
        let request = Request::Settled(read.clone());
        let deadline = Instant::now() + self.inner.request_timeout + wait;
        match self.read_until(&request, only, deadline).await? {
            (_, Response::Settled(page)) => page,
            (region, _) => Err(not_an_answer(region)),
        }
    }

    /// A session that has seen nothing yet.
    pub fn session(&self) -> Session {
        Session::resume(self.clone(), SessionToken::default())
    }

    /// Waits until the event is settled in `region`, up to `wait` (at most 30 s), and says whether it
    /// is. The event need not have arrived there yet.
    ///
    /// # Errors
    /// When that region cannot be asked in time, or there is no such region or partition.
    pub async fn await_settled(
        &self,
        dot: Dot,
        tier: SettledTier,
        region: RegionId,
        wait: Duration,
    ) -> Result<Awaited, ReadError> {
        let request = Request::Await(AwaitSettled {
            dot,
            tier,
            region: None,
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
        });
        let deadline = Instant::now() + self.inner.request_timeout + wait;
        match self.read_until(&request, Some(region), deadline).await? {
            (_, Response::Await(awaited)) => awaited,
            (region, _) => Err(not_an_answer(region)),
        }
    }

    /// A consumer called `name` of a group. Asks `at`, or the nearest region, who serves the group, and
    /// that region from then on.
    pub fn consumer(&self, group: &str, name: &str, at: Option<RegionId>) -> Consumer {
        Consumer::new(self.clone(), group, name, at)
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.inner.request_timeout
    }

    pub(crate) fn regions(&self) -> &Arc<Regions> {
        &self.inner.regions
    }

    pub(crate) fn jitter(&self) -> &Jitter {
        &self.inner.jitter
    }

    /// The only region that may answer, if there is only one.
    pub(crate) fn region_for(&self, stream: &StreamId, at: ReadAt) -> Option<RegionId> {
        match at {
            ReadAt::Nearest => None,
            ReadAt::Region(region) => Some(region),
            ReadAt::Home => match self.route(stream) {
                Route::Home(home) => Some(home),
                Route::Anywhere | Route::Creator => None,
            },
        }
    }

    /// Asks `only`, or the nearest region that can answer, until there is an answer.
    pub(crate) async fn read_until(
        &self,
        request: &Request,
        only: Option<RegionId>,
        deadline: Instant,
    ) -> Result<(RegionId, Response), ReadError> {
        let regions = &self.inner.regions;
        if let Some(region) = only
            && regions.known().topology.member(region).is_none()
        {
            return Err(ReadError::UnknownRegion { region });
        }
        let mut backoff = Backoff::default();
        let mut last = ReadError::Unavailable {
            reason: "no region could be reached".to_owned(),
            retry_after_ms: 100,
        };
        loop {
            let candidates = match only {
                Some(region) => vec![region],
                None => regions.nearest_first(deadline).await,
            };
            let mut wait = Duration::ZERO;
            let mut stale = None;
            for region in candidates {
                let response = match regions.ask(region, request, deadline).await {
                    Ok(response) => response,
                    Err(AskError::TooLong(reason)) => return Err(ReadError::Invalid { reason }),
                    Err(AskError::NotSent(reason) | AskError::Unanswered(reason)) => {
                        last = ReadError::Unavailable {
                            reason,
                            retry_after_ms: 100,
                        };
                        continue;
                    }
                };
                if let Some(error @ ReadError::Stale { .. }) = read_error(&response) {
                    // It has waited as long as it was asked to; another may hold more.
                    stale.get_or_insert_with(|| error.clone());
                    continue;
                }
                match unavailable(&response) {
                    None => return Ok((region, response)),
                    Some((error, retry_after)) => {
                        last = error.clone();
                        wait = wait.max(retry_after);
                    }
                }
            }
            if let Some(stale) = stale {
                return Err(stale);
            }
            let again_at = Instant::now() + backoff.next(&self.inner.jitter).max(wait);
            if again_at >= deadline {
                return Err(last);
            }
            sleep_until(again_at).await;
        }
    }

    /// The regions and rules, as last learnt.
    pub fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.inner.regions.known().topology)
    }

    /// Where appends to `stream` go, as far as this client knows.
    pub fn route(&self, stream: &StreamId) -> Route {
        let rule = self.inner.regions.known().policies.route(stream);
        match (rule, self.moved().get(stream)) {
            (Route::Home(_) | Route::Creator, Some(home)) => Route::Home(*home),
            _ => rule,
        }
    }

    fn moved(&self) -> MutexGuard<'_, BTreeMap<StreamId, RegionId>> {
        let moved = self.inner.moved.lock();
        moved.unwrap_or_else(PoisonError::into_inner)
    }

    // A node has told us where the stream's home is.
    fn learn_home(&self, stream: &StreamId, home: RegionId) {
        let rule = self.inner.regions.known().policies.route(stream);
        let mut moved = self.moved();
        match rule {
            Route::Anywhere => {}
            Route::Home(rule) if rule == home => drop(moved.remove(stream)),
            Route::Home(_) | Route::Creator => {
                if moved.len() >= MOVED_MAX {
                    moved.clear();
                }
                moved.insert(stream.clone(), home);
            }
        }
    }

    /// Proves ourselves with another certificate from the next connection on. Connections that are
    /// open stay, so a certificate can be replaced long before it expires and nobody notices.
    pub fn set_identity(&self, identity: Identity) {
        self.inner.regions.set_identity(identity);
    }

    /// Closes all connections, for all clones. What is under way ends as [`AppendError::Unavailable`]
    /// or [`AppendError::Indeterminate`].
    pub fn close(&self) {
        self.inner.regions.close();
    }

    fn unresolved(&self) -> MutexGuard<'_, Unresolved> {
        let unresolved = &self.inner.unresolved;
        unresolved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an append is on its way.
struct Sent<'a, 'b> {
    route: Route,
    /// Its first event's id, when every region may write its stream.
    writes_anywhere: Option<EventId>,
    session: Option<&'a mut Carried<'b>>,
}

impl Sent<'_, '_> {
    fn unwrap(&mut self, response: Response) -> Response {
        match &mut self.session {
            Some(session) => session.unwrap(response),
            None => response,
        }
    }
}

/// The error in `response`, when a later time or another region may have a better answer.
fn unavailable(response: &Response) -> Option<(&ReadError, Duration)> {
    match read_error(response)? {
        error @ ReadError::Unavailable { retry_after_ms, .. } => {
            Some((error, Duration::from_millis(*retry_after_ms)))
        }
        ReadError::Invalid { .. }
        | ReadError::UnknownRegion { .. }
        | ReadError::Stale { .. }
        | ReadError::NotHome { .. } => None,
    }
}

fn read_error(response: &Response) -> Option<&ReadError> {
    match response {
        Response::ReadStream(Err(error))
        | Response::Live(Err(error))
        | Response::Settled(Err(error))
        | Response::State(Err(error))
        | Response::Await(Err(error)) => Some(error),
        Response::InSession {
            response:
                SessionResponse::ReadStream(Err(error))
                | SessionResponse::Live(Err(error))
                | SessionResponse::Settled(Err(error))
                | SessionResponse::State(Err(error)),
            ..
        } => Some(error),
        _ => None,
    }
}

pub(crate) fn not_an_answer(region: RegionId) -> ReadError {
    ReadError::Invalid {
        reason: format!("region {region} did not understand the request; upgrade its node"),
    }
}

/// Where appends to streams of several writers were last sent, until their outcome is known.
///
/// The region that took such an append knows its ids at once, the others only when it has been
/// replicated. So a repeated request has to reach the same region, even when the caller has given
/// up in between.
#[derive(Default)]
struct Unresolved {
    regions: BTreeMap<EventId, RegionId>,
    oldest_first: VecDeque<EventId>,
}

impl Unresolved {
    const MAX: usize = 8192;

    fn get(&self, id: EventId) -> Option<RegionId> {
        self.regions.get(&id).copied()
    }

    fn remember(&mut self, id: EventId, region: RegionId) {
        if self.regions.insert(id, region).is_some() {
            return;
        }
        self.oldest_first.push_back(id);
        while self.oldest_first.len() > Self::MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.regions.remove(&oldest);
        }
    }

    fn forget(&mut self, id: EventId) {
        self.regions.remove(&id);
        // Its place in the queue stays until it is the oldest, unless it is now.
        while let Some(oldest) = self.oldest_first.front()
            && !self.regions.contains_key(oldest)
        {
            self.oldest_first.pop_front();
        }
    }
}

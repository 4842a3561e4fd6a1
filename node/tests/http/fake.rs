//! A node made of a vector, behind a real listener.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meridian_client::{
    AppendError, AppendRequest, Appended, AwaitSettled, Awaited, Direction, Durability, Limits,
    ReadError, Reservation, ReservationAct, ReservationKey, ReservationRequest, ReserveError,
    SessionToken, StateTier, StreamPage, StreamRead,
};
use meridian_clock::{Dot, Epoch, OrderKey, PartitionId, Position, RegionId, Timestamp};
use meridian_conflict::{CategoryPolicy, HomeRule, Isolation, Kind, Mode};
use meridian_event::{EventId, EventType, RecordedEvent, Revision, StreamId};
use meridian_node::http::{Backend, Changes, Events, EventsRead, ServeOptions, Tier, serve};
use meridian_node::metrics::Metrics;
use meridian_node::seams::{BoxFuture, HostNetwork, Network};
use meridian_node::session::{Seen, SessionSeal, Shown};
use meridian_node::{
    AtStake, CategoryReport, ControlStatus, DigestEntry, FenceReport, MembershipReport, MoveError,
    NodeStatus, OrderReason, Projections, Readmission, RegionStanding, Standing, StateReport,
    StreamHome, Watermarks, WhyError,
};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) const US: RegionId = RegionId(0);
pub(crate) const EU: RegionId = RegionId(1);

/// When every event here was written.
pub(crate) const NOON: Duration = Duration::from_secs(1_700_000_000);

/// Which key, for whom, for how long, and what makes it known again.
pub(crate) type Reserved = (ReservationKey, String, Option<Duration>, Option<Uuid>);

pub(crate) struct Fake {
    events: Mutex<Vec<RecordedEvent>>,
    committed: watch::Sender<u64>,
    /// The next append is answered with this.
    pub(crate) refuse: Mutex<Option<AppendError>>,
    /// Every read is answered with this.
    pub(crate) unreadable: Mutex<Option<ReadError>>,
    /// What the last append asked for.
    pub(crate) asked: Mutex<Option<AppendRequest>>,
    /// What the last reservation asked for.
    pub(crate) reserved: Mutex<Option<Reserved>>,
    /// Appends wait for this when there is one.
    pub(crate) gate: Mutex<Option<Arc<Notify>>>,
    /// Appends break an assertion.
    pub(crate) broken: AtomicBool,
    pub(crate) not_ready: Mutex<Option<String>>,
    pub(crate) reads: AtomicU64,
    ids: AtomicU64,
    metrics: Metrics,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            events: Mutex::default(),
            committed: watch::Sender::new(0),
            refuse: Mutex::default(),
            unreadable: Mutex::default(),
            asked: Mutex::default(),
            reserved: Mutex::default(),
            gate: Mutex::default(),
            broken: AtomicBool::default(),
            not_ready: Mutex::default(),
            reads: AtomicU64::default(),
            ids: AtomicU64::default(),
            metrics: Metrics::new(),
        })
    }

    /// Writes `count` events to `stream`, as if another door had taken them.
    pub(crate) fn write(&self, stream: &str, event_type: &str, count: u64) {
        for number in 0..count {
            let data = format!("{{\"number\":{number}}}");
            self.record(stream, event_type, data.as_bytes(), b"", self.event_id());
        }
    }

    fn held(key: ReservationKey, owner: &str, until: Option<Timestamp>) -> Reservation {
        Reservation {
            key,
            owner: owner.to_owned(),
            since: Timestamp::from_unix(NOON),
            until,
            dot: Dot {
                origin: EU,
                partition: PartitionId(0),
                position: Position(0),
            },
            timestamp: Timestamp::from_unix(NOON),
            home: EU,
        }
    }

    fn record(
        &self,
        stream: &str,
        event_type: &str,
        data: &[u8],
        metadata: &[u8],
        id: EventId,
    ) -> RecordedEvent {
        let mut events = self.events.lock().unwrap();
        let held = events.iter().rev();
        let before = held.filter(|event| event.stream.as_str() == stream);
        let revision = before.map(|event| event.revision.0 + 1).next().unwrap_or(0);
        let event = RecordedEvent {
            dot: Dot {
                origin: US,
                partition: PartitionId(3),
                position: Position(events.len() as u64 + 1),
            },
            timestamp: Timestamp::from_unix(NOON),
            stream: StreamId::new(stream).unwrap(),
            revision: Revision(revision),
            id,
            event_type: EventType::new(event_type).unwrap(),
            data: data.to_vec().into(),
            metadata: metadata.to_vec().into(),
        };
        events.push(event.clone());
        self.committed.send_replace(events.len() as u64);
        event
    }

    /// How many events were written.
    pub(crate) fn count(&self) -> usize {
        self.events.lock().unwrap().len()
    }

    pub(crate) fn last_event(&self) -> RecordedEvent {
        self.events.lock().unwrap().last().unwrap().clone()
    }

    async fn answer(&self, request: AppendRequest) -> Result<Appended, AppendError> {
        *self.asked.lock().unwrap() = Some(request.clone());
        if let Some(error) = self.refuse.lock().unwrap().take() {
            return Err(error);
        }
        assert!(!self.broken.load(Ordering::Relaxed), "told to break");
        request.check(&self.limits())?;
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.notified().await;
        }
        let recorded: Vec<_> = request
            .events
            .iter()
            .map(|event| {
                self.record(
                    request.stream.as_str(),
                    event.event_type.as_str(),
                    &event.data,
                    &event.metadata,
                    event.id,
                )
            })
            .collect();
        Ok(Appended {
            stream: request.stream,
            first_revision: recorded[0].revision,
            last_revision: recorded[recorded.len() - 1].revision,
            home: EU,
            dots: recorded.iter().map(|event| event.dot).collect(),
            timestamp: recorded[0].timestamp,
            durability: Durability::Regions(2),
            could_strand: true,
        })
    }

    fn page(&self, read: &EventsRead) -> Events {
        let events = self.events.lock().unwrap();
        let mut at = read.after.parse::<usize>().unwrap_or(0);
        let mut page = Events::default();
        // A page covers a bounded stretch, as the node's own do.
        for event in events.iter().skip(at).take(1000) {
            if page.events.len() == read.limit as usize {
                break;
            }
            at += 1;
            if read.filter.wants(&event.stream, &event.event_type) {
                page.events.push((at.to_string(), event.clone()));
            }
        }
        page.cursor = at.to_string();
        page.watermark = (read.tier != Tier::Live).then(|| Timestamp::from_unix(NOON));
        page.at_end = at == events.len();
        page
    }
}

impl Backend for Fake {
    fn append(&self, request: AppendRequest) -> BoxFuture<'_, Result<Appended, AppendError>> {
        Box::pin(self.answer(request))
    }

    fn read_stream(&self, read: StreamRead) -> BoxFuture<'_, Result<StreamPage, ReadError>> {
        Box::pin(async move {
            if let Some(error) = self.unreadable.lock().unwrap().clone() {
                return Err(error);
            }
            let events = self.events.lock().unwrap();
            let of_stream = events.iter().filter(|event| event.stream == read.stream);
            let mut wanted: Vec<_> = match read.direction {
                Direction::Forwards => of_stream
                    .filter(|event| event.revision.0 >= read.from)
                    .cloned()
                    .collect(),
                Direction::Backwards => {
                    let mut wanted: Vec<_> = of_stream
                        .filter(|event| event.revision.0 <= read.from)
                        .cloned()
                        .collect();
                    wanted.reverse();
                    wanted
                }
            };
            let end = wanted.len() <= read.limit as usize;
            wanted.truncate(read.limit as usize);
            let last = wanted.last().map(|event| event.revision.0);
            let next = match read.direction {
                Direction::Forwards => Some(last.map_or(read.from, |last| last + 1)),
                Direction::Backwards => last.and_then(|last| last.checked_sub(1)),
            };
            Ok(StreamPage {
                events: wanted,
                next,
                end,
            })
        })
    }

    fn read_events(&self, read: EventsRead) -> BoxFuture<'_, Result<Events, ReadError>> {
        Box::pin(async move {
            self.reads.fetch_add(1, Ordering::Relaxed);
            if let Some(error) = self.unreadable.lock().unwrap().clone() {
                return Err(error);
            }
            if !read.after.is_empty() && read.after.parse::<usize>().is_err() {
                return Err(ReadError::Invalid {
                    reason: format!("{:?} is not a cursor of this node", read.after),
                });
            }
            Ok(self.page(&read))
        })
    }

    fn changes(&self, _: Tier) -> Changes {
        Changes::Committed(self.committed.subscribe())
    }

    fn seen(&self, tokens: &str) -> Result<Seen, ReadError> {
        let seen = seal().read(tokens);
        seen.map_err(|error| ReadError::Invalid {
            reason: error.to_string(),
        })
    }

    fn token(&self, seen: &Seen) -> SessionToken {
        seal().write(seen)
    }

    fn catch_up<'a>(
        &'a self,
        seen: &'a Seen,
        _: Shown<'a>,
        wait: Duration,
    ) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            let held = self.count() as u64;
            let behind = seen.positions.iter().any(|(_, position)| position.0 > held);
            if !behind {
                return Ok(());
            }
            Err(ReadError::Stale {
                reason: format!("waited {wait:?}"),
                retry_after_ms: 1500,
            })
        })
    }

    fn await_settled(&self, asked: AwaitSettled) -> BoxFuture<'_, Result<Awaited, ReadError>> {
        Box::pin(async move {
            Ok(Awaited {
                reached: asked.dot.position.0 <= self.count() as u64,
                watermark: Timestamp::from_unix(NOON),
                timestamp: Some(Timestamp::from_unix(NOON)),
                region: asked.region.unwrap_or(US),
                waited_ms: asked.wait_ms.into(),
            })
        })
    }

    fn status(&self) -> NodeStatus {
        NodeStatus {
            region: "us-east".to_owned(),
            federation: "f0".to_owned(),
            version: "0".to_owned(),
            partitions: 4,
            members: Vec::new(),
            links: Vec::new(),
            logs: Vec::new(),
            watermarks: Watermarks {
                stable: "0".to_owned(),
                stable_lag_ms: 0,
                finals: "0".to_owned(),
                final_lag_ms: 0,
                partitions: Vec::new(),
                held_back: Vec::new(),
            },
            at_stake: AtStake::default(),
            readmission: Readmission::default(),
            control: ControlStatus::default(),
            events: self.events.lock().unwrap().len() as u64,
            refusing: None,
            damaged: Vec::new(),
        }
    }

    fn digest(&self) -> Vec<DigestEntry> {
        vec![DigestEntry {
            origin: "us-east".to_owned(),
            partition: 3,
            position: self.events.lock().unwrap().len() as u64,
            chain: "00ff".to_owned(),
        }]
    }

    fn why_order(&self, a: &str, _: &str) -> Result<OrderReason, WhyError> {
        Err(WhyError::NotHeld {
            text: a.to_owned(),
            region: "us-east".to_owned(),
            reason: "this log is held here to position 0".to_owned(),
        })
    }

    fn consumers(&self) -> Option<Arc<meridian_node::Consumers>> {
        None
    }

    fn conflicts(&self) -> Option<Arc<meridian_node::Conflicts>> {
        None
    }

    fn projections(&self) -> Option<Arc<Projections>> {
        None
    }

    fn regions(&self) -> BTreeMap<RegionId, String> {
        BTreeMap::from([(US, "us-east".to_owned()), (EU, "eu-west".to_owned())])
    }

    fn stream_home(&self, stream: &StreamId) -> StreamHome {
        let home = (stream.category() != "cart").then_some(EU);
        StreamHome {
            stream: stream.clone(),
            home,
            epoch: Epoch { major: 2, minor: 1 },
            moving_from: None,
            rule: home.is_some().then_some(HomeRule::Creator),
            creator: home,
        }
    }

    fn moved_streams(&self, after: Option<&StreamId>, limit: usize) -> Vec<StreamHome> {
        let names = (1..=3).map(|number| format!("order-{number}"));
        let streams = names.map(|name| StreamId::new(&name).unwrap());
        let wanted = streams.filter(|stream| after.is_none_or(|after| stream > after));
        wanted
            .take(limit)
            .map(|stream| self.stream_home(&stream))
            .collect()
    }

    fn move_homes(
        &self,
        streams: Vec<StreamId>,
        to: String,
        _: Duration,
    ) -> BoxFuture<'_, Result<Vec<StreamHome>, MoveError>> {
        let said = "as the test wants it".to_owned();
        let moved = match to.as_str() {
            "eu-west" => Ok(streams.iter().map(|it| self.stream_home(it)).collect()),
            "busy" => Err(MoveError::Conflict(said)),
            "down" => Err(MoveError::Unavailable(said)),
            "unsure" => Err(MoveError::Unknown(said)),
            _ => Err(MoveError::Invalid(said)),
        };
        Box::pin(std::future::ready(moved))
    }

    fn set_drained(
        &self,
        name: String,
        _: bool,
        _: Duration,
    ) -> BoxFuture<'_, Result<bool, MoveError>> {
        let said = "as the test wants it".to_owned();
        Box::pin(std::future::ready(match name.as_str() {
            "eu-west" => Ok(true),
            "busy" => Err(MoveError::Conflict(said)),
            _ => Err(MoveError::Invalid(said)),
        }))
    }

    fn region_standing(&self, name: &str) -> Result<RegionStanding, MoveError> {
        match name {
            "eu-west" => Ok(RegionStanding {
                region: name.to_owned(),
                standing: Standing::Fencing,
                silent_for: Some(Duration::from_millis(1_500)),
                not_here: 7,
                waits_for: vec!["us-east".to_owned()],
            }),
            _ => Err(MoveError::Invalid("as the test wants it".to_owned())),
        }
    }

    fn fence(
        &self,
        name: String,
        force: bool,
        evict: bool,
        _: Duration,
    ) -> BoxFuture<'_, Result<FenceReport, MoveError>> {
        let said = "as the test wants it".to_owned();
        let is_busy = name == "busy" && !force && !evict;
        let standing = match is_busy {
            true => Err(MoveError::Conflict(said)),
            false => self.region_standing(&name),
        };
        Box::pin(std::future::ready(standing.map(|standing| FenceReport {
            standing,
            sealed_after: Some(Duration::from_millis(20)),
            opened_after: None,
        })))
    }

    fn join(
        &self,
        name: String,
        _: Duration,
    ) -> BoxFuture<'_, Result<MembershipReport, MoveError>> {
        let report = self
            .region_standing(&name)
            .map(|standing| MembershipReport {
                standing: RegionStanding {
                    standing: Standing::Member,
                    ..standing
                },
                done_after: Some(Duration::from_millis(30)),
            });
        Box::pin(std::future::ready(report))
    }

    fn leave(
        &self,
        name: String,
        force: bool,
        _: Duration,
    ) -> BoxFuture<'_, Result<MembershipReport, MoveError>> {
        let said = "as the test wants it".to_owned();
        let standing = match name == "busy" && !force {
            true => Err(MoveError::Conflict(said)),
            false => self.region_standing(&name),
        };
        Box::pin(std::future::ready(standing.map(|standing| {
            MembershipReport {
                standing: RegionStanding {
                    standing: Standing::Leaving,
                    ..standing
                },
                done_after: None,
            }
        })))
    }

    fn categories(&self) -> BTreeMap<String, CategoryPolicy> {
        let policy = |mode, home| CategoryPolicy { mode, home };
        BTreeMap::from([
            ("cart".to_owned(), policy(Mode::Crdt, HomeRule::Hash)),
            ("ledger".to_owned(), policy(Mode::Home, HomeRule::Fixed(EU))),
        ])
    }

    fn read_state(
        &self,
        stream: StreamId,
        tier: StateTier,
    ) -> BoxFuture<'_, Result<StateReport, ReadError>> {
        let events = u8::try_from(self.count()).unwrap_or(u8::MAX);
        let broken = self.unreadable.lock().unwrap().clone();
        let result = match stream.category() {
            _ if broken.is_some() => Err(broken.unwrap()),
            "cart" => Ok(StateReport {
                kind: Kind::BoundedCounter,
                value: serde_json::json!({"stock": 5 + events, "rights": {"0": 2, "1": 3}}),
                order_key: OrderKey::ZERO,
                digest: [0xab ^ events; 32],
                winners: Vec::new(),
                bytes: 100,
                superseded: Vec::new(),
                skipped: u64::from(tier == StateTier::Stable),
            }),
            _ => Err(ReadError::Invalid {
                reason: format!("stream {stream} has no state"),
            }),
        };
        Box::pin(async move { result })
    }

    fn region(&self) -> RegionId {
        US
    }

    fn reserve(
        &self,
        key: ReservationKey,
        owner: String,
        hold_for: Option<Duration>,
        id: Option<Uuid>,
    ) -> BoxFuture<'_, Result<Reservation, ReserveError>> {
        *self.reserved.lock().unwrap() = Some((key.clone(), owner.clone(), hold_for, id));
        let said = || "as the test wants it".to_owned();
        let asked = ReservationRequest {
            key: key.clone(),
            owner: owner.clone(),
            act: ReservationAct::Claim { hold_for },
            id: Uuid::nil(),
        };
        let until = hold_for.map(|hold_for| Timestamp::from_unix(NOON + hold_for));
        let held = Self::held(key, &owner, until);
        let answer = asked.check().and_then(|()| match owner.as_str() {
            "late" => Err(ReserveError::Reserved(Box::new(Self::held(
                held.key.clone(),
                "first",
                until,
            )))),
            "over" => Err(ReserveError::Over { reason: said() }),
            "down" => Err(ReserveError::Unavailable {
                reason: said(),
                retry_after_ms: 1500,
            }),
            "unsure" => Err(ReserveError::Indeterminate { reason: said() }),
            _ => Ok(held),
        });
        Box::pin(std::future::ready(answer))
    }

    fn release(
        &self,
        key: ReservationKey,
        owner: String,
        _: Option<Uuid>,
    ) -> BoxFuture<'_, Result<(bool, RegionId), ReserveError>> {
        Box::pin(std::future::ready(match owner.as_str() {
            "late" => Err(ReserveError::Reserved(Box::new(Self::held(
                key, "first", None,
            )))),
            owner => Ok((owner == "first", EU)),
        }))
    }

    fn reservation(&self, key: &ReservationKey) -> Result<Option<Reservation>, ReadError> {
        Ok((key.key != "free").then(|| Self::held(key.clone(), "first", None)))
    }

    fn category(&self, category: &str) -> CategoryReport {
        let policy = self.categories().remove(category);
        CategoryReport {
            policy: policy.unwrap_or_default(),
            isolation: match category {
                "ledger" => Isolation::Fenced,
                _ => Isolation::Available,
            },
            kind: (category == "cart").then_some(Kind::OrSet),
            waits_for: Vec::new(),
        }
    }

    fn set_category(
        &self,
        category: String,
        policy: CategoryPolicy,
        isolation: Isolation,
        kind: Option<Kind>,
        _wait: Duration,
    ) -> BoxFuture<'_, Result<CategoryReport, MoveError>> {
        let result = match category.as_str() {
            "ledger" => Err(MoveError::Conflict(
                "region eu holds events of category ledger".to_owned(),
            )),
            _ => Ok(CategoryReport {
                policy,
                isolation,
                kind,
                waits_for: vec!["eu".to_owned()],
            }),
        };
        Box::pin(async move { result })
    }

    fn limits(&self) -> Limits {
        Limits {
            event_bytes_max: 1 << 16,
            batch_bytes_max: 1 << 17,
            batch_events_max: 10,
        }
    }

    fn ready(&self) -> Result<(), String> {
        self.not_ready.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn refresh_metrics(&self) {
        self.metrics
            .store_events
            .set(i64::try_from(self.events.lock().unwrap().len()).unwrap());
    }

    fn event_id(&self) -> EventId {
        let number = self.ids.fetch_add(1, Ordering::Relaxed);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        EventId::from_random(bytes)
    }

    fn wall_clock(&self) -> Timestamp {
        Timestamp::from_unix(NOON)
    }
}

/// What the tokens of this door are sealed with.
pub(crate) fn seal() -> SessionSeal {
    SessionSeal::of_federation(Uuid::from_u128(0xf0), &[7; 32])
}

/// The door, open.
pub(crate) struct Served {
    pub(crate) fake: Arc<Fake>,
    pub(crate) addr: SocketAddr,
    pub(crate) client: Client,
    pub(crate) cancel: CancellationToken,
    pub(crate) task: JoinHandle<()>,
}

impl Served {
    pub(crate) async fn new() -> Self {
        Self::with(ServeOptions::default()).await
    }

    pub(crate) async fn with(options: ServeOptions) -> Self {
        let fake = Fake::new();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = HostNetwork.tcp(any).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(serve(listener, fake.clone(), options, cancel.clone()));
        Self {
            fake,
            addr,
            client: Client::new(),
            cancel,
            task,
        }
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("http://{}{path}", self.addr))
    }

    pub(crate) fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.client
            .post(format!("http://{}{path}", self.addr))
            .header("content-type", "application/json")
            .body(body)
    }

    /// Appends `body` to `order-1`.
    pub(crate) async fn append(&self, body: impl Into<reqwest::Body>) -> Response {
        let request = self.post("/v1/streams/order-1/events", body);
        request.send().await.unwrap()
    }

    /// Sends `request` byte by byte as it is; the answer up to the end of the connection.
    pub(crate) async fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the client's side of a test needs no seam"
    )]
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }
}

/// The body of a good answer.
pub(crate) async fn json(response: Response) -> Value {
    let status = response.status();
    let text = response.text().await.unwrap();
    assert!(status.is_success(), "{status}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// The body of a bad one: checked to be a problem with this status and code.
pub(crate) async fn problem(response: Response, status: u16, code: &str) -> Value {
    let (found, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    assert_eq!(found, status, "{text}");
    assert_eq!(headers["content-type"], "application/problem+json");
    let problem: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(problem["code"], code, "{text}");
    assert_eq!(problem["status"], status, "{text}");
    assert!(problem["title"].is_string() && problem["detail"].is_string());
    problem
}

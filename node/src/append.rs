//! An append from whichever door it came through to its answer: here, or at its home.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_client::wire::HOPS_MAX;
use meridian_client::{AppendError, AppendRequest, Appended, Durability, Expected, Limits};
use meridian_clock::{Dot, LogId, RegionId, VersionVector};
use meridian_conflict::Isolation;
use meridian_event::{NewEvent, Revision, StreamId};
use meridian_points::{Bug, planted, reached};
use meridian_store::{Direction, ReadError, Store, StreamRange};
use serde::de::IgnoredAny;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use crate::control::Federation;
use crate::creating::never_created;
use crate::forwarding::{Home, settles};
use crate::homes::{Homes, Place, being_set, creators, majority};
use crate::merging::Merging;
use crate::metrics::{AppendOutcome, Metrics, Peer};
use crate::odd;
use crate::rights::Rights;
use crate::sequencer::{Outcome, Sequencer, coming, record_coming};

/// How often an append looks again at a stream that is being moved.
const MOVING_AGAIN: Duration = Duration::from_millis(20);
/// How often rights are fetched for one take: others may have used what came.
const FETCHES_MAX: u32 = 64;
/// How often one is tried again that lacks no rights. They may have come meanwhile, or it was not for that.
const REFUSALS_MAX: u32 = 2;
/// How much the events of all appends that wait for their answer here may weigh together, in KiB.
pub(crate) const WAITING_KIB_MAX: u32 = 64 << 10;
/// How much of what was written since goes into a conflict answer.
const EVENTS_SINCE_MAX: usize = 100;
const EVENTS_SINCE_BYTES_MAX: usize = 256 << 10;

/// Which regions hold what, as they acknowledged it.
pub(crate) type Held = watch::Receiver<Arc<BTreeMap<RegionId, VersionVector>>>;

/// Who asks for an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// A client, through so many other nodes.
    Client { hops: u8 },
    /// This node itself.
    Server,
}

impl By {
    fn hops(self) -> u8 {
        match self {
            Self::Client { hops } => hops,
            Self::Server => 0,
        }
    }
}

/// A key of an event's metadata that only the server gives.
pub(crate) fn reserved_key(event: &NewEvent) -> Option<String> {
    // Most metadata has no such byte, be it as itself or escaped.
    let metadata = &event.metadata;
    let may = metadata.contains(&b'$') || metadata.windows(6).any(|it| it == br"\u0024");
    if !may {
        return None;
    }
    let keys: BTreeMap<String, IgnoredAny> = serde_json::from_slice(metadata).ok()?;
    keys.into_keys().find(|key| key.starts_with('$'))
}

/// Everything that an append passes through.
pub(crate) struct Appends {
    pub(crate) region: RegionId,
    pub(crate) members: usize,
    pub(crate) partitions: u16,
    pub(crate) homes: Arc<Homes>,
    pub(crate) merging: Arc<Merging>,
    pub(crate) limits: Limits,
    pub(crate) timeout: Duration,
    pub(crate) store: Arc<Store>,
    pub(crate) sequencers: Vec<Arc<Sequencer>>,
    pub(crate) ways: BTreeMap<RegionId, Home>,
    pub(crate) held: Held,
    pub(crate) room: Semaphore,
    pub(crate) rights: Rights,
    pub(crate) metrics: Arc<Metrics>,
}

impl Appends {
    /// Appends `request`, which `hops` nodes have passed on so far.
    pub(crate) async fn append(
        &self,
        request: AppendRequest,
        hops: u8,
        deadline: Option<Instant>,
    ) -> Result<Appended, AppendError> {
        let began = Instant::now();
        let own = began + self.timeout;
        let deadline = deadline.map_or(own, |asked| asked.min(own));
        if request.stream.is_internal() && hops == 0 {
            return Err(AppendError::Invalid {
                reason: format!(
                    "stream names that begin with $ are the server's own; rename {}",
                    request.stream
                ),
            });
        }
        if hops > 0 && request.stream.category() == creators::CATEGORY {
            let creator = creators::check(&request, self.partitions)?;
            let creates = request.expected == Expected::None;
            if creates && !self.homes.may_create(&self.homes.federation(), creator) {
                return Err(AppendError::Unavailable {
                    reason: format!("region {creator} is no member now, and creates nothing"),
                    retry_after_ms: 1000,
                });
            }
        }
        // A request that was passed on is within the limits of the door that took it, and may have more:
        // what a region brings home says where it was first.
        let limits = if hops == 0 {
            &self.limits
        } else {
            &Limits::WIDEST
        };
        if hops == 0
            && let Some(key) = request.events.iter().find_map(reserved_key)
        {
            return Err(AppendError::Invalid {
                reason: format!(
                    "metadata has the key {key:?}, and keys that begin with $ are the server's own; rename it"
                ),
            });
        }
        let by = By::Client { hops };
        self.append_any(request, by, deadline, began, limits).await
    }

    /// Appends to a stream of the server's own, or what is the server's own to any.
    pub(crate) async fn append_own(&self, request: AppendRequest) -> Result<Appended, AppendError> {
        let deadline = Instant::now() + self.timeout;
        self.append_own_by(request, deadline).await
    }

    /// As [`Appends::append_own`], for whoever waits until `deadline`.
    pub(crate) async fn append_own_by(
        &self,
        request: AppendRequest,
        deadline: Instant,
    ) -> Result<Appended, AppendError> {
        let began = Instant::now();
        self.append_any(request, By::Server, deadline, began, &Limits::WIDEST)
            .await
    }

    async fn append_any(
        &self,
        request: AppendRequest,
        by: By,
        deadline: Instant,
        began: Instant,
        limits: &Limits,
    ) -> Result<Appended, AppendError> {
        let _in_flight = self.metrics.append_begun();
        let weight: usize = request
            .events
            .iter()
            .map(|event| event.weight_bytes())
            .sum();
        let result = self.route(request, by, deadline, limits).await;
        if let Ok(appended) = &result
            && appended.home == self.region
        {
            self.metrics
                .events_appended
                .inc_by(appended.dots.len() as u64);
            self.metrics.bytes_appended.inc_by(weight as u64);
        }
        self.metrics
            .append_answered(outcome_of(&result), began.elapsed());
        result
    }

    async fn route(
        &self,
        request: AppendRequest,
        by: By,
        deadline: Instant,
        limits: &Limits,
    ) -> Result<Appended, AppendError> {
        self.check(&request, limits)?;
        // Why an attempt that was not answered may have written it.
        let mut may_be_written = None;
        let routing = self.route_until(request, by, deadline, &mut may_be_written);
        match (routing.await, may_be_written) {
            // Whatever came of later attempts, that one may still be on its way.
            (Err(error), Some(reason)) if !settles(&error) => {
                Err(AppendError::Indeterminate { reason })
            }
            (answer, _) => answer,
        }
    }

    /// Tries until `deadline`, while the stream is being moved; says why an attempt may have written it that was not
    /// answered.
    pub(crate) async fn route_until(
        &self,
        mut request: AppendRequest,
        by: By,
        deadline: Instant,
        may_be_written: &mut Option<String>,
    ) -> Result<Appended, AppendError> {
        let mut changes = self.homes.watch();
        let mut committed = self.store.committed();
        // Who created the stream, as its arbiter said, and after which change.
        let mut told: Option<(u64, RegionId)> = None;
        loop {
            let federation = Arc::clone(&changes.borrow_and_update());
            committed.borrow_and_update();
            let place = self.homes.place(&federation, &request.stream);
            let mut place = place.map_err(|error| unreadable(&error))?;
            let creator = told.filter(|(version, _)| *version == federation.version);
            if place == Place::New {
                // One that is home to nothing now creates nothing: where it would go from here, it is created.
                let seat = match creator {
                    Some((_, creator)) => self.homes.seat_if(&federation, &request.stream, creator),
                    None => self.homes.seat_if_new(&federation, &request.stream),
                };
                if seat.home != self.region {
                    place = Place::Elsewhere {
                        home: seat.home,
                        epoch: seat.epoch,
                    };
                }
            }
            let refused = match place {
                Place::New if creator.is_some() => {
                    reached("a region waited for the record of a stream that it is home to");
                    AppendError::Unavailable {
                        reason: record_coming(&request.stream),
                        retry_after_ms: 1000,
                    }
                }
                Place::New => {
                    let (stream, expected) = (&request.stream, request.expected);
                    let creates = expected.matches(None);
                    let asked = tokio::select! {
                        biased;
                        asked = self.ask_creator(stream, creates, deadline) => asked?,
                        // Another arbiter may be asked by now.
                        changed = changes.changed() => match changed {
                            Ok(()) => continue,
                            Err(_) => return Err(moved_away(stream)),
                        },
                    };
                    let Some(creator) = asked else {
                        return Err(never_created(stream, expected));
                    };
                    told = Some((federation.version, creator));
                    continue;
                }
                Place::Anywhere | Place::Here { .. } => {
                    match self.append_here(request, by, deadline).await {
                        Ok(appended) => return Ok(appended),
                        Err(NotAppended::Refused(error)) => return Err(error),
                        // It has just been moved: where to is looked up anew.
                        Err(NotAppended::Moved(back)) => {
                            request = *back;
                            moved_away(&request.stream)
                        }
                    }
                }
                Place::Coming { from } => coming(&request.stream, from),
                Place::Undecided => AppendError::Unavailable {
                    reason: being_set(&request.stream),
                    retry_after_ms: 1000,
                },
                Place::Elsewhere { home, epoch } => {
                    let not_home = AppendError::NotHome {
                        stream: request.stream.clone(),
                        home,
                        epoch,
                    };
                    let Some(way) = self.ways.get(&home).filter(|_| by.hops() < HOPS_MAX) else {
                        return Err(not_home);
                    };
                    let forward = self.forward(way, &request, by, deadline, may_be_written);
                    let answer = tokio::select! {
                        biased;
                        answer = forward => Some(answer),
                        () = until_out(&mut changes, home) => None,
                    };
                    match answer {
                        Some(Err(error @ AppendError::NotHome { .. })) => error,
                        Some(answer) => return answer,
                        None => {
                            // It will not answer. Who is home by now knows the ids, if it ever can.
                            reached("an append left a home that was fenced");
                            may_be_written
                                .get_or_insert("its home was lost before it answered".to_owned());
                            not_home
                        }
                    }
                }
            };
            // The stream is being moved, or was just created: whoever gains it waits for the last of it, and
            // others may hear of it later than we do. That takes a moment.
            reached("an append waited while its stream was moved");
            if Instant::now() + MOVING_AGAIN >= deadline {
                return Err(match refused {
                    AppendError::NotHome { stream, .. } => moved_away(&stream),
                    refused => refused,
                });
            }
            tokio::select! {
                biased;
                changed = changes.changed() => if changed.is_err() { return Err(refused) },
                // What is missing may have come.
                changed = committed.changed(), if place == Place::New => if changed.is_err() { return Err(refused) },
                () = sleep(MOVING_AGAIN) => {}
            }
        }
    }

    async fn forward(
        &self,
        way: &Home,
        request: &AppendRequest,
        by: By,
        deadline: Instant,
        may_be_written: &mut Option<String>,
    ) -> Result<Appended, AppendError> {
        let peer = Peer {
            peer: way.name().to_owned(),
        };
        self.metrics.appends_forwarded.get_or_create(&peer).inc();
        reached("an append was forwarded to its home");
        odd::pause("an append is forwarded late").await;
        let answer = way
            .append(request.clone(), by.hops() + 1, deadline, may_be_written)
            .await;
        match answer {
            Err(error @ AppendError::Unavailable { .. }) if planted(Bug::SecondHome) => {
                let here = self.append_here(request.clone(), by, deadline).await;
                here.map_err(|failed| match failed {
                    NotAppended::Refused(error) => error,
                    NotAppended::Moved(_) => error,
                })
            }
            answer => answer,
        }
    }

    async fn append_here(
        &self,
        mut request: AppendRequest,
        by: By,
        deadline: Instant,
    ) -> Result<Appended, NotAppended> {
        let merging = &self.merging;
        if by == By::Server || !merging.is_stock(&request.stream) {
            return self.append_once(request, by, deadline).await;
        }
        let numbered = merging.number_regions(&mut request);
        numbered.map_err(NotAppended::Refused)?;
        if !Merging::only_takes(&request) {
            return self.append_once(request, by, deadline).await;
        }
        let (mut tries, mut refused_all_the_same) = (0..FETCHES_MAX, 0..REFUSALS_MAX);
        loop {
            let refused = self.append_once(request.clone(), by, deadline).await;
            let Err(NotAppended::Refused(AppendError::Conflict { reason })) = &refused else {
                return refused;
            };
            if tries.next().is_none() || Instant::now() >= deadline {
                return refused;
            }
            let lacked = self.fetch_rights(&request, reason, deadline).await;
            let is_over =
                !lacked.map_err(NotAppended::Refused)? && refused_all_the_same.next().is_none();
            if is_over {
                return refused;
            }
        }
    }

    async fn append_once(
        &self,
        request: AppendRequest,
        by: By,
        deadline: Instant,
    ) -> Result<Appended, NotAppended> {
        // What it comes to is folded outside of the sequencer, where nobody waits for it.
        let warm = timeout_at(deadline, self.merging.warm(&request.stream)).await;
        match warm {
            Ok(warm) => warm.map_err(NotAppended::Refused)?,
            Err(_) => return Err(unavailable("the stream's state takes long to fold")),
        }
        let (expected, durability) = (request.expected, request.durability);
        let stream = request.stream.clone();
        let partition = stream.partition(self.partitions);
        let sequencer = &self.sequencers[usize::from(partition.0)];
        let weight: usize = request
            .events
            .iter()
            .map(|event| event.weight_bytes())
            .sum();
        let weight = u32::try_from(weight / 1024 + 1)
            .unwrap_or(u32::MAX)
            .min(WAITING_KIB_MAX);
        let enter = async {
            // Held until the answer is known: it bounds what appends may keep in memory.
            let room = self.room.acquire_many(weight).await.ok();
            (room, sequencer.enqueue(request, by == By::Server).await)
        };
        let Ok((_room, queued)) = timeout_at(deadline, enter).await else {
            return Err(unavailable("more appends wait than are being written"));
        };
        let Some(answered) = queued else {
            return Err(unavailable("the node is stopping"));
        };
        let error = match timeout_at(deadline, answered).await {
            Ok(Ok(Outcome::Appended(appended))) => {
                let reached = self.reach(appended, durability, deadline).await;
                return reached.map_err(NotAppended::Refused);
            }
            Ok(Ok(Outcome::Moved(request))) => return Err(NotAppended::Moved(request)),
            Ok(Ok(Outcome::WrongRevision { actual })) => {
                let told = self.conflict(&stream, expected, actual);
                match self.vouch_for_last(&stream, deadline).await {
                    Ok(()) => told,
                    Err(reason) => return Err(unavailable(&reason)),
                }
            }
            Ok(Ok(Outcome::Refused(error))) => error,
            Ok(Err(_)) => AppendError::Indeterminate {
                reason: "the node stopped before the events were durable".to_owned(),
            },
            Err(_) => AppendError::Indeterminate {
                reason: format!("the disk did not answer within {:?}", self.timeout),
            },
        };
        Err(NotAppended::Refused(error))
    }

    // What a request may never be, whatever the state of the log.
    fn check(&self, request: &AppendRequest, limits: &Limits) -> Result<(), AppendError> {
        let invalid = |reason: String| Err(AppendError::Invalid { reason });
        let too_large = |what: &str, limit: usize, actual: usize| {
            let (limit, actual) = (limit as u64, actual as u64);
            Err(AppendError::TooLarge {
                what: what.to_owned(),
                limit,
                actual,
            })
        };
        if request.events.is_empty() {
            return invalid("a batch has at least one event".to_owned());
        }
        if request.events.len() > limits.batch_events_max {
            return too_large(
                "the batch, in events",
                limits.batch_events_max,
                request.events.len(),
            );
        }
        let weights = request.events.iter().map(|event| event.weight_bytes());
        if let Some(weight) = weights
            .clone()
            .find(|weight| *weight > limits.event_bytes_max)
        {
            return too_large("an event, in bytes", limits.event_bytes_max, weight);
        }
        let weight = weights.sum();
        if weight > limits.batch_bytes_max {
            return too_large("the batch, in bytes", limits.batch_bytes_max, weight);
        }
        let mut ids: Vec<_> = request.events.iter().map(|event| event.id).collect();
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return invalid(format!("event id {} stands twice in the batch", pair[0]));
        }
        // A region that is put out may come back; one that has left, or is none yet, is nothing to ask for.
        let members = match self.homes.federation().voting() {
            0 => self.members,
            members => members,
        };
        let regions = request.durability.regions(members);
        if regions == 0 || regions > members {
            return invalid(format!(
                "durability {} asks for {regions} regions, this federation has {members}",
                request.durability
            ));
        }
        Ok(())
    }

    // Waits until enough regions hold what is already durable here.
    async fn reach(
        &self,
        mut appended: Appended,
        durability: Durability,
        deadline: Instant,
    ) -> Result<Appended, AppendError> {
        let is_fenced = self.homes.isolation(&appended.stream) == Isolation::Fenced;
        let Some(last) = appended.dots.last().copied() else {
            return Ok(appended);
        };
        let mut held = self.held.clone();
        let mut changes = self.homes.watch();
        let (wanted, regions) = loop {
            let members = self.homes.federation().members();
            let mut wanted = match members.is_empty() {
                true => durability.regions(self.members),
                false => durability.regions(members.len()),
            };
            if planted(Bug::OneRegionLess) {
                wanted -= 1;
            }
            // A fence keeps what a majority holds, and nothing else surely.
            if is_fenced && !planted(Bug::AcknowledgeAlone) {
                wanted = wanted.max(self.majority());
            }
            let others = held
                .borrow_and_update()
                .iter()
                // What a region holds that was put out is no part of what any fence keeps.
                .filter(|(region, _)| members.is_empty() || members.contains(region))
                .filter(|(region, vector)| **region != self.region && vector.contains(last))
                .count();
            if others + 1 >= wanted {
                break (wanted, others + 1);
            }
            reached("an answer waited for other regions");
            let more = tokio::select! {
                biased;
                more = timeout_at(deadline, held.changed()) => matches!(more, Ok(Ok(()))),
                () = until_out(&mut changes, self.region) => {
                    reached("an append was in a region that was fenced before others had it");
                    false
                }
            };
            if !more {
                return Err(AppendError::Indeterminate {
                    reason: format!(
                        "the events are durable in {} of the {wanted} regions that must hold them and will \
                         reach the others when they can be reached",
                        others + 1
                    ),
                });
            }
        };
        // It is durable, whatever comes of the lease; but who was put out meanwhile cannot say where.
        self.homes
            .lease_by(&appended.stream, deadline)
            .await
            .map_err(|reason| AppendError::Indeterminate { reason })?;
        appended.durability = match u16::try_from(wanted) {
            Ok(wanted) if is_fenced && usize::from(wanted) > durability.regions(self.members) => {
                Durability::Regions(wanted)
            }
            _ => durability,
        };
        appended.could_strand = self.members > 1 && regions < 2;
        Ok(appended)
    }

    /// How many regions are a majority of the members.
    pub(crate) fn majority(&self) -> usize {
        match self.homes.federation().members().len() {
            0 => majority(self.members),
            members => majority(members),
        }
    }

    /// Waits until what is told of `stream`, a `fenced` one, cannot be taken back: a majority of the members
    /// holds the events at `dots`, and this region, its home, has its lease still.
    ///
    /// # Errors
    /// Why it may not be told by `deadline`.
    pub(crate) async fn vouch(
        &self,
        stream: &StreamId,
        dots: impl IntoIterator<Item = Dot>,
        deadline: Instant,
    ) -> Result<(), String> {
        if self.homes.isolation(stream) == Isolation::Available {
            return Ok(());
        }
        let mut last: BTreeMap<LogId, Dot> = BTreeMap::new();
        for dot in dots {
            let of_log = last.entry(dot.log()).or_insert(dot);
            of_log.position = of_log.position.max(dot.position);
        }
        let mut held = self.held.clone();
        loop {
            let members = self.homes.federation().members();
            let others = held
                .borrow_and_update()
                .iter()
                .filter(|(region, _)| **region != self.region && members.contains(region))
                .filter(|(_, vector)| last.values().all(|dot| vector.contains(*dot)))
                .count();
            if last.is_empty() || others + 1 >= self.majority() {
                break;
            }
            reached("what a fenced home tells waited for a majority");
            if !matches!(timeout_at(deadline, held.changed()).await, Ok(Ok(()))) {
                return Err(format!(
                    "category {} is fenced, and the last events of {stream} are not held by a majority \
                     of the regions yet",
                    stream.category()
                ));
            }
        }
        self.homes.lease_by(stream, deadline).await
    }

    // As `vouch`, for the last event of `stream`, and so for all.
    async fn vouch_for_last(&self, stream: &StreamId, deadline: Instant) -> Result<(), String> {
        if self.homes.isolation(stream) == Isolation::Available {
            return Ok(());
        }
        let last = self.store.stream_last(stream, None, true);
        let last = last.map_err(|error| error.to_string())?;
        self.vouch(stream, last.map(|found| found.dot), deadline)
            .await
    }

    fn conflict(
        &self,
        stream: &StreamId,
        expected: Expected,
        actual: Option<Revision>,
    ) -> AppendError {
        let from = match expected {
            Expected::Revision(revision) => revision.next(),
            Expected::Any | Expected::None | Expected::Exists => Revision(0),
        };
        let range = StreamRange {
            from,
            direction: Direction::Forwards,
            limit: EVENTS_SINCE_MAX,
            bytes_max: EVENTS_SINCE_BYTES_MAX,
            in_turn: self.homes.has_home(stream),
        };
        let since = actual.filter(|actual| *actual >= from);
        let events_since = since.map_or(Vec::new(), |_| {
            self.store
                .read_stream(stream, range)
                .unwrap_or_else(|error| {
                    // The answer stands without them: the stream can be read again.
                    warn!(%stream, %error, "the events since a conflict cannot be read");
                    Vec::new()
                })
        });
        AppendError::WrongExpectedRevision {
            stream: stream.clone(),
            expected,
            actual,
            events_since,
        }
    }
}

/// Waits until `region` is put out.
pub(crate) async fn until_out(changes: &mut watch::Receiver<Arc<Federation>>, region: RegionId) {
    let is_out = |now: &Arc<Federation>| now.out.contains_key(&region);
    if changes.wait_for(is_out).await.is_err() {
        // Nothing more is decided here: whoever waits has a deadline.
        std::future::pending().await
    }
}

// Why an append did not happen here.
enum NotAppended {
    Refused(AppendError),
    // Its stream is another region's by now; the request comes back.
    Moved(Box<AppendRequest>),
}

fn unavailable(reason: &str) -> NotAppended {
    NotAppended::Refused(AppendError::Unavailable {
        reason: reason.to_owned(),
        retry_after_ms: 1000,
    })
}

fn moved_away(stream: &StreamId) -> AppendError {
    AppendError::Unavailable {
        reason: format!("stream {stream} is being moved to another region"),
        retry_after_ms: 1000,
    }
}

fn unreadable(error: &ReadError) -> AppendError {
    AppendError::Unavailable {
        reason: error.to_string(),
        retry_after_ms: 1000,
    }
}

fn outcome_of(result: &Result<Appended, AppendError>) -> AppendOutcome {
    match result {
        Ok(_) => AppendOutcome::appended,
        Err(AppendError::WrongExpectedRevision { .. }) => AppendOutcome::wrong_expected_revision,
        Err(AppendError::NotHome { .. }) => AppendOutcome::not_home,
        Err(AppendError::Unavailable { .. }) => AppendOutcome::unavailable,
        Err(AppendError::Indeterminate { .. }) => AppendOutcome::indeterminate,
        Err(AppendError::Invalid { .. }) => AppendOutcome::invalid,
        Err(AppendError::TooLarge { .. }) => AppendOutcome::too_large,
        Err(AppendError::Conflict { .. }) => AppendOutcome::conflict,
    }
}

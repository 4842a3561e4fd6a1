//! Names that only one owner may have in all regions: an e-mail address, a user name.
//!
//! Each key has a stream of its own, which its home orders like any other: by hash, and moved or failed over with
//! everything else. Whoever is asked passes a request on to the home. That judges it on the stream's last event and its
//! own clock, and writes what it decided with the revision that it read; so of two requests at once one is judged
//! again. What is acknowledged is held by a majority of the regions, and so outlives every fence.
//!
//! Not here: what the events mean and what is decided on them, which is pure ([`holding`]). Start reading there.
//!
//! Always true (`one-owner`): no two owners are told that a key is theirs at a time, as far as the clocks of homes
//! that follow on one another agree.

mod holding;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_client::wire::{HOPS_MAX, Request, Response};
use meridian_client::{
    AppendError, AppendRequest, Durability, ReadError, RequestError, Reservation, ReservationAct,
    ReservationAnswer, ReservationKey, ReservationRequest, ReserveError,
};
use meridian_clock::{RegionId, Timestamp};
use meridian_event::{EventType, NewEvent, RecordedEvent, StreamId};
use meridian_points::reached;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use self::holding::{Decision, Holder, Standing, Walk, event_id, from_the_end};
pub(crate) use self::holding::{is_reservation, stream_of};
use crate::Node;
use crate::append::until_out;
use crate::homes::{Place, being_set};
use crate::sequencer::coming;

/// How often a request looks again at a key that is being moved, or whose home did not answer.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How often a request that never left is tried: a connection may just have closed.
const UNSENT_ATTEMPTS: u32 = 2;

/// Why a request was not carried out here.
enum NotDone {
    Refused(ReserveError),
    /// Its key is decided about elsewhere by now.
    Moved,
}

impl From<ReserveError> for NotDone {
    fn from(error: ReserveError) -> Self {
        Self::Refused(error)
    }
}

impl Node {
    /// Reserves `key` for `owner`, from now on and for so long; for good if no time is said. An owner that holds it
    /// already holds it for that long from now on. What `id` did before is not done again.
    ///
    /// # Errors
    /// See [`ReserveError`]: another owner holds it, or it is not known who does.
    pub async fn reserve(
        &self,
        key: ReservationKey,
        owner: &str,
        hold_for: Option<Duration>,
        id: Option<Uuid>,
    ) -> Result<Reservation, ReserveError> {
        let act = ReservationAct::Claim { hold_for };
        let request = self.request_of(key, owner, act, id);
        match self.carry_out(request, 0, None).await? {
            ReservationAnswer::Held(reservation) => Ok(reservation),
            ReservationAnswer::Free { .. } => Err(unavailable(
                "the home answered something else than what was asked".to_owned(),
            )),
        }
    }

    /// Releases `key`, if `owner` holds it. Whether it did, and the region that decided that.
    ///
    /// # Errors
    /// See [`ReserveError`]: another owner holds it, or it is not known who does.
    pub async fn release(
        &self,
        key: ReservationKey,
        owner: &str,
        id: Option<Uuid>,
    ) -> Result<(bool, RegionId), ReserveError> {
        let request = self.request_of(key, owner, ReservationAct::Release, id);
        match self.carry_out(request, 0, None).await? {
            ReservationAnswer::Free { released, home } => Ok((released, home)),
            ReservationAnswer::Held(_) => Err(unavailable(
                "the home answered something else than what was asked".to_owned(),
            )),
        }
    }

    /// Who holds `key`, as far as this region holds what was decided, and by its clock.
    ///
    /// # Errors
    /// When no key can be so, or the log cannot be read.
    pub fn reservation(&self, key: &ReservationKey) -> Result<Option<Reservation>, ReadError> {
        key.check().map_err(|error| ReadError::Invalid {
            reason: error.to_string(),
        })?;
        let stream = stream_of(key);
        let mut read = from_the_end(&stream);
        let mut walk = Walk::default();
        loop {
            let page = self.read_stream(&read)?;
            let known = take(&mut walk, &page.events)?;
            match page.next.filter(|_| !known && !page.end) {
                Some(next) => read.from = next,
                None => break,
            }
        }
        let hlc = self.hlc();
        let now = hlc.now().unwrap_or_else(|_| hlc.physical_now());
        let home = self.homes().seat(&stream).map(|seat| seat.home);
        let standing = walk.end();
        let holder = standing.holder_at(now).cloned();
        Ok(holder.map(|holder| {
            let home = home.unwrap_or(holder.dot.origin);
            holder.of(key, home)
        }))
    }

    fn request_of(
        &self,
        key: ReservationKey,
        owner: &str,
        act: ReservationAct,
        id: Option<Uuid>,
    ) -> ReservationRequest {
        let drawn = || {
            let mut bytes = [0; 16];
            self.random().fill(&mut bytes);
            uuid::Builder::from_random_bytes(bytes).into_uuid()
        };
        ReservationRequest {
            key,
            owner: owner.to_owned(),
            act,
            id: id.unwrap_or_else(drawn),
        }
    }

    /// Carries out `request`, which `hops` nodes have passed on so far: here, or at its home.
    ///
    /// # Errors
    /// See [`ReserveError`].
    pub(crate) async fn carry_out(
        &self,
        request: ReservationRequest,
        hops: u8,
        deadline: Option<Instant>,
    ) -> Result<ReservationAnswer, ReserveError> {
        request.check()?;
        let own = Instant::now() + self.config().append_timeout;
        let deadline = deadline.map_or(own, |asked| asked.min(own));
        // Why an attempt that was not answered may have done it.
        let mut may_be_done = None;
        let answer = self
            .carry_out_until(&request, hops, deadline, &mut may_be_done)
            .await;
        match (answer, may_be_done) {
            // Whatever came of later attempts, that one may still be on its way.
            (Err(ReserveError::Unavailable { .. }), Some(reason)) => {
                Err(ReserveError::Indeterminate { reason })
            }
            (answer, _) => answer,
        }
    }

    async fn carry_out_until(
        &self,
        request: &ReservationRequest,
        hops: u8,
        deadline: Instant,
        may_be_done: &mut Option<String>,
    ) -> Result<ReservationAnswer, ReserveError> {
        let stream = stream_of(&request.key);
        let mut changes = self.homes().watch();
        let mut unsent = 0;
        loop {
            let federation = Arc::clone(&changes.borrow_and_update());
            let place = self.homes().place(&federation, &stream);
            let refused = match place.map_err(|error| unavailable(error.to_string()))? {
                Place::Here { .. } => match self.decide_here(request, &stream, deadline).await {
                    Ok(answer) => return Ok(answer),
                    Err(NotDone::Refused(error)) => return Err(error),
                    Err(NotDone::Moved) => {
                        unavailable(format!("the home of key {} is being moved", request.key))
                    }
                },
                Place::Coming { from } => unavailable(coming(&stream, from).to_string()),
                Place::Undecided => unavailable(being_set(&stream)),
                Place::Anywhere | Place::New => {
                    return Err(unavailable(
                        "the policy of reservations was changed, which nobody may".to_owned(),
                    ));
                }
                Place::Elsewhere { home, .. } => {
                    let name = self.names().of(home);
                    let way = self.appends().ways.get(&home);
                    let Some(way) = way.filter(|_| hops < HOPS_MAX) else {
                        return Err(unavailable(format!(
                            "key {} is decided about in region {name}; ask there",
                            request.key
                        )));
                    };
                    reached("a reservation was passed on to its home");
                    let passed_on = Request::Reserve {
                        request: request.clone(),
                        hops: hops + 1,
                    };
                    let answer = tokio::select! {
                        biased;
                        answer = way.ask(&passed_on, deadline) => answer,
                        () = until_out(&mut changes, home) => Err(RequestError::Unanswered {
                            reason: "it was put out before it answered".to_owned(),
                        }),
                    };
                    match answer {
                        Ok(Response::Reserve(Err(error @ ReserveError::Unavailable { .. }))) => {
                            error
                        }
                        Ok(Response::Reserve(answer)) => return answer,
                        Ok(_) => {
                            return Err(unavailable(format!(
                                "key {} is decided about in region {name}, whose node does not know \
                                 reservations; upgrade it",
                                request.key
                            )));
                        }
                        Err(failure) => {
                            let said = format!(
                                "key {} is decided about in region {name}, which does not answer: {failure}",
                                request.key
                            );
                            match failure {
                                RequestError::NotSent { .. } => unsent += 1,
                                _ => *may_be_done = Some(said.clone()),
                            }
                            if may_be_done.is_none() && unsent == UNSENT_ATTEMPTS {
                                return Err(unavailable(said));
                            }
                            unavailable(said)
                        }
                    }
                }
            };
            if Instant::now() + AGAIN_AFTER >= deadline {
                return Err(refused);
            }
            tokio::select! {
                biased;
                changed = changes.changed() => if changed.is_err() { return Err(refused) },
                () = sleep(AGAIN_AFTER) => {}
            }
        }
    }

    // Judges `request` at its home, and writes what was decided.
    async fn decide_here(
        &self,
        request: &ReservationRequest,
        stream: &StreamId,
        deadline: Instant,
    ) -> Result<ReservationAnswer, NotDone> {
        let home = self.config().region;
        // Whether an earlier attempt did it.
        let mut was_done = false;
        loop {
            let standing = self.standing(stream, deadline).await?;
            let now = self.hlc().now();
            let now = now.map_err(|error| unavailable(error.to_string()))?;
            if was_done {
                return done_before(request, &standing, now, home).map_err(NotDone::Refused);
            }
            let decision = standing.decide(request, now);
            let Decision::Write {
                event_type,
                said,
                expected,
                since,
                until,
            } = decision
            else {
                return match decision {
                    Decision::Taken(holder) => Err(reserved(request, holder, home).into()),
                    _ => Ok(ReservationAnswer::Free {
                        released: false,
                        home,
                    }),
                };
            };
            let named = EventType::new(event_type);
            let named = named.map_err(|error| unavailable(error.to_string()))?;
            let data = serde_json::to_vec(&said);
            let data = data.map_err(|error| unavailable(error.to_string()))?;
            let majority = self.appends().majority();
            let append = AppendRequest {
                stream: stream.clone(),
                expected,
                durability: Durability::Regions(u16::try_from(majority).unwrap_or(u16::MAX)),
                events: vec![NewEvent {
                    id: event_id(request),
                    event_type: named,
                    data: data.into(),
                    metadata: Bytes::new(),
                }],
            };
            match self.appends().append_own_by(append, deadline).await {
                Ok(appended) if appended.first_revision == standing.next() => {
                    let Some(dot) = appended.dots.first().copied() else {
                        return Err(unavailable("nothing was written".to_owned()).into());
                    };
                    return Ok(match request.act {
                        ReservationAct::Release => ReservationAnswer::Free {
                            released: true,
                            home,
                        },
                        ReservationAct::Claim { .. } => {
                            let holder = Holder {
                                owner: request.owner.clone(),
                                since,
                                until,
                                dot,
                                timestamp: appended.timestamp,
                            };
                            ReservationAnswer::Held(holder.of(&request.key, home))
                        }
                    });
                }
                Ok(_) => {
                    reached("a reservation was asked for once more");
                    was_done = true;
                }
                Err(AppendError::WrongExpectedRevision { .. }) => {
                    reached("two were judged on one event, and one is judged again");
                    if Instant::now() >= deadline {
                        return Err(unavailable(format!(
                            "others ask for key {} all the time",
                            request.key
                        ))
                        .into());
                    }
                }
                Err(AppendError::NotHome { .. }) => return Err(NotDone::Moved),
                Err(AppendError::Unavailable {
                    reason,
                    retry_after_ms,
                }) => {
                    return Err(NotDone::Refused(ReserveError::Unavailable {
                        reason,
                        retry_after_ms,
                    }));
                }
                Err(AppendError::Indeterminate { reason }) => {
                    return Err(NotDone::Refused(ReserveError::Indeterminate { reason }));
                }
                Err(
                    error @ (AppendError::Invalid { .. }
                    | AppendError::TooLarge { .. }
                    | AppendError::Conflict { .. }),
                ) => return Err(unavailable(error.to_string()).into()),
            }
        }
    }

    // What `stream` comes to, at its home.
    async fn standing(&self, stream: &StreamId, deadline: Instant) -> Result<Standing, NotDone> {
        let mut read = from_the_end(stream);
        let mut walk = Walk::default();
        loop {
            let page = match self.read_at_home(&read, deadline).await {
                Ok(page) => page,
                Err(ReadError::NotHome { .. }) => return Err(NotDone::Moved),
                Err(error) => return Err(unavailable(error.to_string()).into()),
            };
            let known = take(&mut walk, &page.events);
            let known = known.map_err(|error| unavailable(error.to_string()))?;
            match page.next.filter(|_| !known && !page.end) {
                Some(next) => read.from = next,
                None => return Ok(walk.end()),
            }
        }
    }
}

// Hands a page of events to `walk`; whether it needs no more.
fn take(walk: &mut Walk, events: &[RecordedEvent]) -> Result<bool, ReadError> {
    for event in events {
        let known = walk.take(event).map_err(|error| ReadError::Unavailable {
            reason: error.to_string(),
            retry_after_ms: 1000,
        })?;
        if known {
            return Ok(true);
        }
    }
    Ok(false)
}

// What is told of a request that was carried out before: what holds now.
fn done_before(
    request: &ReservationRequest,
    standing: &Standing,
    now: Timestamp,
    home: RegionId,
) -> Result<ReservationAnswer, ReserveError> {
    match (standing.holder_at(now).cloned(), request.act) {
        (_, ReservationAct::Release) => Ok(ReservationAnswer::Free {
            released: true,
            home,
        }),
        (Some(holder), _) if holder.owner == request.owner => {
            Ok(ReservationAnswer::Held(holder.of(&request.key, home)))
        }
        (Some(holder), _) => Err(reserved(request, holder, home)),
        (None, ReservationAct::Claim { .. }) => Err(ReserveError::Over {
            reason: format!(
                "this request had reserved key {}, and that is over: it was released, or its time is up; \
                 ask for it anew, with another id",
                request.key
            ),
        }),
    }
}

fn reserved(request: &ReservationRequest, holder: Holder, home: RegionId) -> ReserveError {
    ReserveError::Reserved(Box::new(holder.of(&request.key, home)))
}

fn unavailable(reason: String) -> ReserveError {
    ReserveError::Unavailable {
        reason,
        retry_after_ms: 1000,
    }
}

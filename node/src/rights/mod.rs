//! Rights to a stock, fetched from other regions when a take lacks them here.
//!
//! A region takes from a `bounded-counter` by rights that it holds, and asks nobody while they last. When they do not,
//! it asks whoever holds most to give: an operation like any other, which that region records if it may. Once that has
//! come here, the take is tried again. So a stock never goes below zero, whatever is cut off: rights are somewhere, once.
//!
//! One request is under way per stream; other takes of it wait for that. No sequencer waits.
//!
//! Not here: what a give does (`conflict`), and what is lacking (`merging`). Start reading at
//! [`Appends::fetch_rights`]; whom to ask for how many is [`plan`]'s.

mod plan;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use meridian_client::{AppendError, AppendRequest, Durability, Expected};
use meridian_clock::{Dot, RegionId};
use meridian_event::{EventId, EventType, NewEvent, StreamId};
use meridian_points::reached;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

pub(crate) use self::plan::Shortfall;
use self::plan::{Plan, Step};
use crate::append::Appends;
use crate::forwarding::Home;

/// How many takes may wait for rights at a time.
const WAITING_MAX: usize = 4096;
/// How often regions are asked for one take, and how often it waits for what says who holds rights.
const ASKS_MAX: u32 = 8;
const WAITS_MAX: u32 = 10;
const WAIT: Duration = Duration::from_millis(50);
/// How long before a region is asked again that holds fewer than was thought: what it used is on its way here.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// The type of the events by which rights are given that were asked for.
const GIVEN: &str = "$given";
/// Names their ids, so that a take that is repeated asks for nothing twice.
const NAMESPACE: Uuid = Uuid::from_u128(0x94d2_7a10_3cfe_4be8_8d57_60c1_e2b9_ff08);

/// What is being fetched.
pub(crate) struct Rights {
    // By stream, what came of it once that is known.
    flights: Mutex<BTreeMap<StreamId, watch::Receiver<Option<Refused>>>>,
    waiting: Semaphore,
}

/// So many rights were not to be had.
#[derive(Clone, Debug)]
struct Refused {
    missing: u64,
    error: AppendError,
}

impl Default for Rights {
    fn default() -> Self {
        Self {
            flights: Mutex::default(),
            waiting: Semaphore::new(WAITING_MAX),
        }
    }
}

/// Rights of one stream are being fetched by whoever holds this. Those who wait look again when it is dropped.
struct Flight<'a> {
    rights: &'a Rights,
    stream: &'a StreamId,
    over: watch::Sender<Option<Refused>>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.rights.lock().remove(self.stream);
    }
}

enum Joined<'a> {
    Ours(Flight<'a>),
    Others(watch::Receiver<Option<Refused>>),
}

impl Rights {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<StreamId, watch::Receiver<Option<Refused>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join<'a>(&'a self, stream: &'a StreamId) -> Joined<'a> {
        let mut flights = self.lock();
        if let Some(over) = flights.get(stream) {
            return Joined::Others(over.clone());
        }
        let (over, waits) = watch::channel(None);
        flights.insert(stream.clone(), waits);
        Joined::Ours(Flight {
            rights: self,
            stream,
            over,
        })
    }
}

impl Appends {
    /// Fetches the rights that `request` lacks here, which was refused for that with `reason`. When it returns, the
    /// request may be tried again; whether it lacked any.
    ///
    /// # Errors
    /// When they are not to be had: what `request` is to be answered.
    pub(crate) async fn fetch_rights(
        &self,
        request: &AppendRequest,
        reason: &str,
        deadline: Instant,
    ) -> Result<bool, AppendError> {
        let Some(short) = self.merging.shortfall(request)? else {
            return Ok(false);
        };
        let Ok(_waiting) = self.rights.waiting.try_acquire() else {
            return Err(unavailable("too many takes wait for rights".to_owned()));
        };
        match self.rights.join(&request.stream) {
            Joined::Ours(flight) => {
                let fetched = self.ask_others(request, reason, deadline).await;
                if let Err(error) = &fetched {
                    self.metrics.rights_refused.inc();
                    flight.over.send_replace(Some(Refused {
                        missing: short.missing,
                        error: error.clone(),
                    }));
                }
                fetched.map(|()| true)
            }
            Joined::Others(mut over) => {
                reached("a take waited for rights that another one asked for");
                let ended = timeout_at(deadline, over.wait_for(Option::is_some)).await;
                let conflict = || AppendError::Conflict {
                    reason: reason.to_owned(),
                };
                match ended {
                    Ok(Ok(refused)) => match &*refused {
                        // What is not there for less is not there for more.
                        Some(refused) if refused.missing <= short.missing => {
                            Err(match &refused.error {
                                AppendError::Conflict { .. } => conflict(),
                                error => error.clone(),
                            })
                        }
                        _ => Ok(true),
                    },
                    Ok(Err(_)) => Ok(true),
                    Err(_) => Err(conflict()),
                }
            }
        }
    }

    async fn ask_others(
        &self,
        request: &AppendRequest,
        reason: &str,
        deadline: Instant,
    ) -> Result<(), AppendError> {
        let mut plan = Plan::default();
        let (mut asks, mut waits) = (0, 0);
        let mut why = String::new();
        while asks < ASKS_MAX && waits < WAITS_MAX && Instant::now() < deadline {
            let Some(mut short) = self.merging.shortfall(request)? else {
                return Ok(());
            };
            let members = self.homes.federation().members();
            // Who was put out is not asked.
            let is_member = |region: &RegionId| members.is_empty() || members.contains(region);
            short
                .others
                .retain(|region, _| is_member(region) && self.ways.contains_key(region));
            let count = match members.len() {
                0 => self.members,
                count => count,
            };
            match plan.next(&short, count) {
                Step::Refuse => break,
                Step::Wait => {
                    waits += 1;
                    sleep(WAIT).await;
                }
                Step::Ask { region, by } => {
                    asks += 1;
                    // So that there is time for another one.
                    let now = Instant::now();
                    let half = now + deadline.saturating_duration_since(now) / 2;
                    match self.ask(request, region, asks, by, half).await? {
                        Ok(given) => self.until_here(&given, deadline).await?,
                        Err(AppendError::Conflict { .. }) => {
                            reached("a region held fewer rights than was thought");
                            plan.handle_refusal(region);
                            sleep(AGAIN_AFTER).await;
                        }
                        Err(error) => {
                            plan.handle_silence(region);
                            let name = self.ways.get(&region).map_or("?", Home::name);
                            why = format!("; region {name} was asked for rights: {error}");
                        }
                    }
                }
            }
        }
        Err(AppendError::Conflict {
            reason: format!("{reason}{why}"),
        })
    }

    // Asks `region` to give this one so many.
    async fn ask(
        &self,
        request: &AppendRequest,
        region: RegionId,
        number: u32,
        by: u64,
        deadline: Instant,
    ) -> Result<Result<Vec<Dot>, AppendError>, AppendError> {
        let (Some(way), Some(take)) = (self.ways.get(&region), request.events.first()) else {
            return Ok(Err(unavailable("there is no way there".to_owned())));
        };
        self.metrics.rights_asked.inc();
        reached("a region asked another one for rights");
        let name = format!("{} {region} {number}", take.id);
        let invalid = |error: meridian_event::NameError| AppendError::Invalid {
            reason: error.to_string(),
        };
        let give = AppendRequest {
            stream: request.stream.clone(),
            expected: Expected::Any,
            durability: Durability::Region,
            events: vec![NewEvent {
                id: EventId(Uuid::new_v5(&NAMESPACE, name.as_bytes())),
                event_type: EventType::new(GIVEN).map_err(invalid)?,
                data: format!(r#"{{"op":"give","by":{by},"to":{}}}"#, self.region.0).into(),
                metadata: Bytes::new(),
            }],
        };
        // Should it be written without our hearing of it, the rights come here all the same.
        let given = way.append(give, 1, deadline, &mut None).await;
        if given.is_ok() {
            self.metrics.rights_given.inc();
        }
        Ok(given.map(|given| given.dots))
    }

    // Waits until what another region wrote is here.
    async fn until_here(&self, dots: &[Dot], deadline: Instant) -> Result<(), AppendError> {
        let mut committed = self.store.committed();
        loop {
            committed.borrow_and_update();
            let is_here = |dot: &Dot| self.store.head(dot.log()).position >= dot.position;
            if dots.iter().all(is_here) {
                return Ok(());
            }
            if !matches!(timeout_at(deadline, committed.changed()).await, Ok(Ok(()))) {
                return Err(unavailable(
                    "the rights that another region gave are not here yet".to_owned(),
                ));
            }
        }
    }
}

fn unavailable(reason: String) -> AppendError {
    AppendError::Unavailable {
        reason,
        retry_after_ms: 1000,
    }
}

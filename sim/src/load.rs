//! What clients do: appends of all kinds through the real client, reads of what they wrote; and
//! beside it the same through the HTTP door, imports, and followers of all that is written.

pub mod door;
pub mod fencer;
pub mod follow;
pub mod import;
pub mod merged;
pub mod mover;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use meridian_client::{
    AppendError, AppendRequest, Client, Direction, Durability, Expected, ReadAt, SettledRead,
    StreamRead,
};
use meridian_clock::{OrderKey, Position, RegionId};
use meridian_event::{EventId, EventType, NewEvent, Revision, StreamId};
use tokio::time::sleep;

use crate::history::{Call, History, Outcome, Read, Repeated, Seen};
use crate::invariants::exactly_once::EVENT_TYPE;
use crate::plan::LoadPlan;
use crate::rng::Rng;
use crate::world::clock::elapsed;
use crate::world::story::{Answer, What};
use crate::world::trace::Trace;

/// The category of streams that every region may write, and that come to nothing but their events.
pub const SHARED: &str = "note";
/// The category of streams with a home.
pub const HOMED: &str = "order";
/// The category of streams with a home that refuses while it is cut off.
pub const FENCED: &str = "ledger";

/// Whether every region may write `stream`.
pub fn is_shared(stream: &StreamId) -> bool {
    let category = stream.category();
    category == SHARED || merged::kind(category).is_some()
}

/// The name of one of the streams with a home.
pub fn homed(plan: &LoadPlan, number: u64) -> String {
    let is_fenced = number * 100 < plan.streams * u64::from(plan.fenced_percent);
    let category = if is_fenced { FENCED } else { HOMED };
    format!("{category}-{number}")
}

/// All streams of the fenced category.
pub fn fenced(plan: &LoadPlan) -> Vec<StreamId> {
    let names = (0..plan.streams).map(|number| homed(plan, number));
    let streams = names.map(|name| StreamId::new(&name).expect("a sound name"));
    streams
        .filter(|stream| stream.category() == FENCED)
        .collect()
}

/// One writer of one client.
#[derive(Clone)]
pub struct Writer {
    /// Which client it belongs to.
    pub client: usize,
    /// What it does.
    pub plan: LoadPlan,
    /// Draws what it does.
    pub rng: Rng,
    /// How it reaches the federation.
    pub federation: Client,
    /// What it was told.
    pub history: History,
    /// Where steps are noted.
    pub trace: Trace,
    /// Set when the time for load is over.
    pub over: Arc<AtomicBool>,
    /// The last revision of each stream that any client was told of.
    pub known: Arc<Mutex<BTreeMap<StreamId, Revision>>>,
    /// The streams that are merged.
    pub merged: Vec<StreamId>,
    /// Whether what was acknowledged may be taken back, with a fence.
    pub may_strand: bool,
}

impl Writer {
    /// Appends until the load is over.
    pub async fn run(mut self) {
        while !self.over.load(Ordering::Relaxed) {
            let pause = self.rng.below(self.plan.pause_ms + 1);
            sleep(Duration::from_millis(pause)).await;
            self.write_once().await;
            if self.rng.percent(10) {
                self.read_once().await;
            }
        }
    }

    fn draw(&mut self) -> AppendRequest {
        if self.plan.merged_percent > 0 && self.rng.percent(self.plan.merged_percent) {
            return self.draw_merged();
        }
        let rng = &mut self.rng;
        let shared = rng.percent(self.plan.shared_percent);
        let name = if shared {
            format!("{SHARED}-{}", rng.below(self.plan.shared_streams))
        } else {
            homed(&self.plan, rng.below(self.plan.streams))
        };
        let stream = StreamId::new(&name).expect("a sound name");
        let conditional = !shared && rng.percent(self.plan.conditional_percent);
        let expected = if conditional {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            match known.get(&stream) {
                Some(revision) => Expected::Revision(*revision),
                None => Expected::None,
            }
        } else {
            Expected::Any
        };
        let durability = self.draw_durability();
        let rng = &mut self.rng;
        let count = rng.between(1, self.plan.batch_max);
        let events = (0..count).map(|_| {
            let filler = rng.below(self.plan.event_bytes_max);
            // Not compressible, so that sizes on disk are what the plan says.
            let text: String = (0..filler)
                .map(|_| char::from(b'a' + u8::try_from(rng.below(26)).unwrap_or(0)))
                .collect();
            NewEvent {
                id: EventId::from_random(rng.bytes16()),
                event_type: EventType::new(EVENT_TYPE).expect("a sound type"),
                data: Bytes::from(format!("{{\"text\":\"{text}\"}}")),
                metadata: Bytes::new(),
            }
        });
        AppendRequest {
            events: events.collect(),
            stream,
            expected,
            durability,
        }
    }

    // A batch of operations on a merged stream.
    fn draw_merged(&mut self) -> AppendRequest {
        let stream = self.rng.pick(&self.merged).clone();
        let kind = merged::kind(stream.category()).expect("its category is one of a kind");
        let topology = self.federation.topology();
        let regions: Vec<RegionId> = topology.members.iter().map(|it| it.id).collect();
        let durability = self.draw_durability();
        let rng = &mut self.rng;
        let count = rng.between(1, self.plan.batch_max);
        let events = (0..count).map(|_| NewEvent {
            id: EventId::from_random(rng.bytes16()),
            event_type: EventType::new(EVENT_TYPE).expect("a sound type"),
            data: merged::operation(rng, kind, &regions).into(),
            metadata: Bytes::new(),
        });
        AppendRequest {
            events: events.collect(),
            stream,
            expected: Expected::Any,
            durability,
        }
    }

    fn draw_durability(&mut self) -> Durability {
        let level = u32::try_from(self.rng.below(100)).unwrap_or(0);
        if level < self.plan.all_percent {
            Durability::All
        } else if level < self.plan.all_percent + self.plan.regions_percent {
            Durability::Regions(2)
        } else {
            Durability::Region
        }
    }

    async fn write_once(&mut self) {
        let request = self.draw();
        let asked = elapsed();
        let call = self.history.begin(Call {
            client: self.client,
            stream: request.stream.clone(),
            expected: request.expected,
            durability: request.durability,
            ids: request.events.iter().map(|event| event.id).collect(),
            invoked: asked,
            returned: None,
            outcome: Outcome::Unknown,
        });
        self.trace.note(
            asked,
            format_args!(
                "client {} call {call} asks {} {} {} for {} events",
                self.client,
                request.stream,
                request.expected,
                request.durability,
                request.events.len()
            ),
        );
        let mut in_doubt = false;
        let outcome = loop {
            match self.federation.append(request.clone()).await {
                Ok(appended) => break Outcome::Written(appended),
                Err(AppendError::Indeterminate { .. }) => {
                    in_doubt = true;
                    if self.over.load(Ordering::Relaxed) || self.rng.percent(40) {
                        break Outcome::Unknown;
                    }
                }
                // A refusal of a later attempt says nothing about an earlier one.
                Err(_) if in_doubt => break Outcome::Unknown,
                Err(error) => {
                    let found = match &error {
                        AppendError::WrongExpectedRevision { actual, .. } => Some(*actual),
                        _ => None,
                    };
                    if let Some(Some(actual)) = found {
                        self.learn_end(&request.stream, actual);
                    }
                    break Outcome::Refused {
                        code: error.code(),
                        why: error.to_string(),
                        found,
                    };
                }
            }
        };
        let word = match &outcome {
            Outcome::Unknown => "unknown",
            Outcome::Written(_) => "written",
            Outcome::Refused { code, .. } => code,
        };
        self.trace.note(
            elapsed(),
            format_args!("client {} call {call} {word}", self.client),
        );
        let answer = match &outcome {
            Outcome::Unknown => Answer::Unknown,
            Outcome::Written(_) => Answer::Written,
            Outcome::Refused { .. } => Answer::Refused,
        };
        let answered = What::Answered {
            client: self.client,
            asked,
            answer,
        };
        self.trace.tell(elapsed(), answered);
        self.history.end(call, elapsed(), outcome.clone());
        let Outcome::Written(first) = outcome else {
            return;
        };
        self.learn(&request.stream, first.last_revision);
        if self.rng.percent(8) {
            self.read_in_session(&request).await;
        }
        // Not to shared streams: the nearest region may be another one by now, which cannot know of
        // an id that was answered elsewhere a moment ago.
        if !is_shared(&request.stream) && self.rng.percent(self.plan.repeat_percent) {
            // A repeated request is answered as it was the first time.
            if let Ok(again) = self.federation.append(request.clone()).await
                && (again.dots != first.dots || again.first_revision != first.first_revision)
            {
                self.history.repeated(Repeated {
                    dot: first.dots.last().copied().unwrap_or_default(),
                    // Before its answer came: that may have been on its way when the disk was lost.
                    written: asked,
                    what: format!(
                        "call {call} on {} was answered {:?} at revision {}, repeated {:?} at {}",
                        request.stream,
                        first.dots,
                        first.first_revision,
                        again.dots,
                        again.first_revision
                    ),
                });
            }
        }
    }

    // Whoever wrote something sees it in every region, or is told that the region is behind.
    async fn read_in_session(&mut self, request: &AppendRequest) {
        let mut session = self.federation.session();
        // The token comes with the answer, and a repeated request is answered once more: as the first
        // time, unless its region has lost its disk and it is written anew. Not to shared streams, as below.
        if is_shared(&request.stream) {
            return;
        }
        // Before its answer came: that may have been on its way when the disk was lost.
        let written = elapsed();
        let Ok(appended) = session.append(request.clone()).await else {
            return;
        };
        let Some(dot) = appended.dots.last().copied() else {
            return;
        };
        let topology = self.federation.topology();
        let region = self.rng.pick(&topology.members).id;
        let (read, shown) = if self.rng.percent(50) {
            let read = StreamRead {
                stream: request.stream.clone(),
                from: StreamRead::LAST,
                direction: Direction::Backwards,
                limit: 1,
            };
            let Ok(page) = session.read_stream(read, ReadAt::Region(region)).await else {
                return;
            };
            let last = page.events.first().map(|event| event.revision);
            (
                format!("{} in region {region}", request.stream),
                last >= Some(appended.last_revision),
            )
        } else {
            let before = dot.log().dot(Position(dot.position.0 - 1));
            let read = SettledRead {
                after: OrderKey::new(appended.timestamp, before),
                limit: 1,
                ..SettledRead::default()
            };
            let Ok(page) = session.settled(read, Some(region)).await else {
                return;
            };
            let next = page.events.first().map(|event| event.dot);
            (
                format!("the stable order in region {region}"),
                next == Some(dot),
            )
        };
        self.history.seen(Seen {
            dot,
            written,
            read,
            shown,
        });
    }

    // What a stream's home says of its end. What was known may have been stranded.
    fn learn_end(&self, stream: &StreamId, revision: Revision) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let last = known.entry(stream.clone()).or_insert(revision);
        *last = match self.may_strand {
            true => revision,
            false => revision.max(*last),
        };
    }

    fn learn(&self, stream: &StreamId, revision: Revision) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let last = known.entry(stream.clone()).or_insert(revision);
        *last = revision.max(*last);
    }

    async fn read_once(&mut self) {
        let number = self.rng.below(self.plan.streams);
        let stream = StreamId::new(&homed(&self.plan, number)).expect("a sound name");
        if self.rng.percent(50) {
            return self.read_the_end(stream).await;
        }
        let from = self.rng.below(20);
        let read = StreamRead {
            stream: stream.clone(),
            from,
            direction: Direction::Forwards,
            limit: 10,
        };
        let Ok(page) = self.federation.read_stream(read, ReadAt::Nearest).await else {
            return;
        };
        for (expected, event) in (from..).zip(&page.events) {
            if event.revision.0 != expected {
                self.history.broken(format!(
                    "revisions: reading {stream} from {from} gave {} where {expected} belongs",
                    event.revision
                ));
                return;
            }
        }
    }

    // Where a stream ends is known at its home, at once.
    async fn read_the_end(&mut self, stream: StreamId) {
        let invoked = elapsed();
        let read = StreamRead {
            stream: stream.clone(),
            from: StreamRead::LAST,
            direction: Direction::Backwards,
            limit: 1,
        };
        let Ok(page) = self.federation.read_stream(read, ReadAt::Home).await else {
            return;
        };
        let last = page.events.first();
        self.history.read(Read {
            stream,
            invoked,
            returned: elapsed(),
            last: last.map(|event| (event.revision, event.id)),
        });
    }
}

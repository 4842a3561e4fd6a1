//! Writers that come through the HTTP door of their region, and read pages there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meridian_client::{AppendRequest, Appended, Durability, Expected};
use meridian_clock::{Dot, PartitionId, Position, RegionId, Timestamp};
use meridian_conflict::Kind;
use meridian_event::{Revision, StreamId};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::follow::{Event, Place, Seen, Source};
use super::{Writer, homed, merged};
use crate::history::{Call, Outcome};
use crate::http::Connection;
use crate::world::clock::elapsed;

/// One writer that speaks HTTP.
pub struct HttpWriter {
    /// What it does, and where it notes that.
    pub writer: Writer,
    /// Its region's door.
    pub source: Source,
    /// The regions' names and numbers.
    pub names: Vec<(String, RegionId)>,
    /// What counters that only grow have come to here.
    pub floors: BTreeMap<StreamId, Floor>,
}

/// What a counter that only grows has come to in one region.
#[derive(Clone, Copy, Debug)]
pub struct Floor {
    // In which life of the region's disk, and after how many fences that took something back.
    lives: u64,
    rewinds: usize,
    at_least: u64,
}

#[derive(Deserialize)]
struct Added {
    #[serde(default = "one")]
    by: u64,
}

fn one() -> u64 {
    1
}

#[derive(Deserialize)]
struct StateBody {
    value: Value,
}

/// What is known of an attempt.
enum Answer {
    Written(Appended),
    Refused {
        code: &'static str,
        why: String,
        actual: Option<Revision>,
    },
    Unknown,
}

#[derive(Deserialize)]
struct AppendedBody {
    first_revision: u64,
    last_revision: u64,
    home: String,
    dots: Vec<Event>,
    durability: String,
    could_strand: bool,
}

#[derive(Deserialize)]
struct ProblemBody {
    code: String,
    detail: String,
    #[serde(default)]
    actual: Option<u64>,
}

#[derive(Deserialize)]
struct PageBody {
    events: Vec<Event>,
    cursor: String,
}

#[derive(Deserialize)]
struct StreamBody {
    events: Vec<RevisionBody>,
}

#[derive(Deserialize)]
struct RevisionBody {
    revision: u64,
}

impl HttpWriter {
    /// Appends until the load is over.
    pub async fn run(mut self) {
        let mut connection = None;
        let (mut place, seen) = (Place::default(), Seen::default());
        while !self.writer.over.load(Ordering::Relaxed) {
            let pause = self.writer.rng.below(self.writer.plan.pause_ms + 1);
            sleep(Duration::from_millis(pause)).await;
            self.write_once(&mut connection).await;
            if self.writer.rng.percent(10) {
                self.read_page(&mut connection, &mut place, &seen).await;
            }
            if self.writer.rng.percent(10) {
                self.read_stream(&mut connection).await;
            }
            if !self.writer.merged.is_empty() && self.writer.rng.percent(30) {
                self.read_state(&mut connection).await;
            }
        }
    }

    // One request and its answer; a connection that broke is not used again.
    async fn ask(
        &self,
        connection: &mut Option<Connection>,
        method: &str,
        path: &str,
        body: &str,
    ) -> Option<(u16, Vec<u8>)> {
        let patience = Duration::from_millis(self.writer.plan.timeout_ms);
        let mut open = match connection.take() {
            Some(open) => open,
            None => timeout(patience, Connection::open(self.source.addr))
                .await
                .ok()?
                .ok()?,
        };
        let answer = timeout(patience, open.ask(method, path, body)).await.ok()?;
        let answer = answer.ok()?;
        *connection = Some(open);
        Some(answer)
    }

    async fn write_once(&mut self, connection: &mut Option<Connection>) {
        let request = self.writer.draw();
        let call = self.writer.history.begin(Call {
            client: self.writer.client,
            stream: request.stream.clone(),
            expected: request.expected,
            durability: request.durability,
            ids: request.events.iter().map(|event| event.id).collect(),
            invoked: elapsed(),
            returned: None,
            outcome: Outcome::Unknown,
        });
        let path = format!("/v1/streams/{}/events", request.stream);
        let body = body_of(&request);
        let mut in_doubt = false;
        let outcome = loop {
            let asked = self.ask(connection, "POST", &path, &body).await;
            match self.understood(&request, asked) {
                Answer::Written(appended) => {
                    self.writer.learn(&request.stream, appended.last_revision);
                    break Outcome::Written(appended);
                }
                Answer::Unknown => {
                    in_doubt = true;
                    if self.writer.over.load(Ordering::Relaxed) || self.writer.rng.percent(40) {
                        break Outcome::Unknown;
                    }
                    sleep(Duration::from_millis(100)).await;
                }
                Answer::Refused { .. } if in_doubt => break Outcome::Unknown,
                Answer::Refused { code, why, actual } => {
                    if let Some(actual) = actual {
                        self.writer.learn_end(&request.stream, actual);
                    }
                    let is_for_that = code == "wrong_expected_revision";
                    let found = is_for_that.then_some(actual);
                    break Outcome::Refused { code, why, found };
                }
            }
        };
        let word = match &outcome {
            Outcome::Unknown => "unknown",
            Outcome::Written(_) => "written",
            Outcome::Refused { code, .. } => code,
        };
        let client = self.writer.client;
        self.writer.trace.note(
            elapsed(),
            format_args!("client {client} call {call} over HTTP {word}"),
        );
        if let Outcome::Written(appended) = &outcome {
            self.grown(&request, appended.home);
        }
        self.writer.history.end(call, elapsed(), outcome);
    }

    // What was added here shows here from now on.
    fn grown(&mut self, request: &AppendRequest, home: RegionId) {
        let is_here = self
            .names
            .iter()
            .any(|(name, number)| *name == self.source.region && *number == home);
        let floor = self.floors.get_mut(&request.stream);
        if let Some(floor) = floor.filter(|_| is_here) {
            let added = request.events.iter().map(|event| {
                let operation = serde_json::from_slice::<Added>(&event.data);
                operation.map_or(0, |it| it.by)
            });
            floor.at_least += added.sum::<u64>();
        }
    }

    // A counter that only grows never shows less than it did here before, with what was added here since. What a
    // fence takes back, or a disk that is lost, is another matter.
    async fn read_state(&mut self, connection: &mut Option<Connection>) {
        let stream = self.writer.rng.pick(&self.writer.merged).clone();
        let lives = self.source.lives.load(Ordering::Relaxed);
        let path = format!("/v1/streams/{stream}/state");
        let Some((200, body)) = self.ask(connection, "GET", &path, "").await else {
            return;
        };
        let rewinds = self.source.rewinds.count();
        let Ok(state) = serde_json::from_slice::<StateBody>(&body) else {
            let what = format!("convergent: the state of {stream} cannot be read");
            return self.writer.history.broken(what);
        };
        let is_counter = merged::kind(stream.category()) == Some(Kind::GCounter);
        let Some(shown) = state.value.as_u64().filter(|_| is_counter) else {
            return;
        };
        if lives != self.source.lives.load(Ordering::Relaxed) {
            return;
        }
        let now = Floor {
            lives,
            rewinds,
            at_least: shown,
        };
        if let Some(before) = self.floors.insert(stream.clone(), now)
            && (before.lives, before.rewinds) == (lives, rewinds)
            && shown < before.at_least
        {
            self.writer.history.broken(format!(
                "convergent: {stream} shows {shown} in {} at {:?}, where it had come to {}",
                self.source.region,
                elapsed(),
                before.at_least
            ));
        }
    }

    fn understood(&self, request: &AppendRequest, answer: Option<(u16, Vec<u8>)>) -> Answer {
        let Some((status, body)) = answer else {
            return Answer::Unknown;
        };
        if status == 200 {
            let appended = serde_json::from_slice(&body)
                .ok()
                .and_then(|body| self.appended(request, body));
            if let Some(appended) = appended {
                return Answer::Written(appended);
            }
            self.writer.history.broken(format!(
                "accounted: an append over HTTP was answered {}",
                String::from_utf8_lossy(&body)
            ));
            return Answer::Unknown;
        }
        let Ok(problem) = serde_json::from_slice::<ProblemBody>(&body) else {
            return Answer::Unknown;
        };
        let code = match problem.code.as_str() {
            "wrong_expected_revision" => "wrong_expected_revision",
            "not_home" => "not_home",
            "unavailable" => "unavailable",
            "conflict" if merged::kind(request.stream.category()).is_some() => "conflict",
            "timeout" => "timeout",
            "indeterminate" | "internal" => return Answer::Unknown,
            other => {
                self.writer.history.broken(format!(
                    "accounted: a sound append over HTTP was refused as {other}: {}",
                    problem.detail
                ));
                "invalid"
            }
        };
        Answer::Refused {
            code,
            why: problem.detail,
            actual: problem.actual.map(Revision),
        }
    }

    fn appended(&self, request: &AppendRequest, body: AppendedBody) -> Option<Appended> {
        let number = |name: &str| {
            let found = self.names.iter().find(|(it, _)| it == name);
            found.map(|(_, number)| *number)
        };
        let dots = body.dots.iter().map(|dot| {
            Some(Dot {
                origin: number(&dot.origin)?,
                partition: PartitionId(dot.partition),
                position: Position(dot.position),
            })
        });
        Some(Appended {
            stream: request.stream.clone(),
            first_revision: Revision(body.first_revision),
            last_revision: Revision(body.last_revision),
            home: number(&body.home)?,
            dots: dots.collect::<Option<_>>()?,
            timestamp: Timestamp::default(),
            durability: match body.durability.as_str() {
                "region" => Durability::Region,
                "all" => Durability::All,
                other => Durability::Regions(other.strip_prefix("regions:")?.parse().ok()?),
            },
            could_strand: body.could_strand,
        })
    }

    // Reads on through everything that the region holds, a page at a time.
    async fn read_page(&self, connection: &mut Option<Connection>, place: &mut Place, seen: &Seen) {
        self.source.ask(place);
        let path = match place.cursor.is_empty() {
            true => "/v1/events?limit=200".to_owned(),
            false => format!("/v1/events?limit=200&after={}", place.cursor),
        };
        let checked = match self.ask(connection, "GET", &path, "").await {
            Some((400, _)) => self.source.refused(place, seen),
            Some((200, body)) => match serde_json::from_slice::<PageBody>(&body) {
                Ok(page) => {
                    place.cursor = page.cursor;
                    let mut events = page.events.iter();
                    events.try_for_each(|event| self.source.sent(seen, event))
                }
                Err(error) => Err(format!("a page cannot be read: {error}")),
            },
            _ => return,
        };
        if let Err(what) = checked {
            self.writer.history.broken(format!("followed: {what}"));
        }
    }

    async fn read_stream(&mut self, connection: &mut Option<Connection>) {
        let number = self.writer.rng.below(self.writer.plan.streams);
        let from = self.writer.rng.below(20);
        let stream = homed(&self.writer.plan, number);
        let path = format!("/v1/streams/{stream}/events?from={from}&limit=10");
        let Some((200, body)) = self.ask(connection, "GET", &path, "").await else {
            return;
        };
        let Ok(page) = serde_json::from_slice::<StreamBody>(&body) else {
            self.writer
                .history
                .broken("revisions: a page of a stream cannot be read".to_owned());
            return;
        };
        for (expected, event) in (from..).zip(&page.events) {
            if event.revision != expected {
                self.writer.history.broken(format!(
                    "revisions: {path} gave {} where {expected} belongs",
                    event.revision
                ));
                return;
            }
        }
    }
}

fn body_of(request: &AppendRequest) -> String {
    let mut body = String::from("{\"expected\":");
    // Writing to a string does not fail.
    let _ = match request.expected {
        Expected::Any => write!(body, "\"any\""),
        Expected::None => write!(body, "\"none\""),
        Expected::Exists => write!(body, "\"exists\""),
        Expected::Revision(revision) => write!(body, "{revision}"),
    };
    let _ = write!(
        body,
        ",\"durability\":\"{}\",\"events\":[",
        request.durability
    );
    for (index, event) in request.events.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let data = String::from_utf8_lossy(&event.data);
        let _ = write!(
            body,
            "{comma}{{\"id\":\"{}\",\"type\":\"{}\",\"data\":{data}}}",
            event.id, event.event_type
        );
    }
    body.push_str("]}");
    body
}

//! Applications that follow a region's events over HTTP for as long as the run lasts.
//!
//! Each keeps the cursor of the last message and comes back with it whatever broke. What it was sent
//! is compared as it comes, and in the end, with what it must be sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{sleep, timeout};

use crate::history::History;
use crate::http::Connection;
use crate::rng::Rng;
use crate::world::clock::elapsed;
use crate::world::trace::Trace;

// Longer than a node stays silent on an event stream.
const SILENT_FOR_MAX: Duration = Duration::from_secs(12);

/// What one follower has seen. Clones are the same.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Inner>>);

/// A log, by the name of its origin and its partition.
pub type LogName = (String, u16);

/// What tells an event from another one at the same place: its id and its stamp. An event that was
/// stranded may be written anew under its id.
pub type Written = (String, String);

#[derive(Default)]
struct Inner {
    // Of each log, what was sent at each position in this life.
    logs: BTreeMap<LogName, BTreeMap<u64, Written>>,
}

/// Where the logs of one region's node went back to when it stranded what a fence had cut off: other
/// events come after that. Clones are the same.
#[derive(Clone, Default)]
pub struct Rewinds(Arc<Mutex<Noted>>);

#[derive(Default)]
struct Noted {
    cuts: BTreeSet<(LogName, u64)>,
    count: usize,
}

impl Rewinds {
    /// Notes that a log ends at `cut` again.
    pub fn note(&self, log: LogName, cut: u64) {
        let mut rewinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rewinds.cuts.insert((log, cut));
        rewinds.count += 1;
    }

    /// How many were noted.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    fn has(&self, log: &LogName, cut: u64) -> bool {
        let rewinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rewinds.cuts.contains(&(log.clone(), cut))
    }
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first thing that is missing of what the logs hold.
    pub fn missing(&self, held: &BTreeMap<LogName, Vec<Written>>) -> Option<String> {
        let inner = self.lock();
        let none = BTreeMap::new();
        held.iter().find_map(|(log, events)| {
            let seen = inner.logs.get(log).unwrap_or(&none);
            let mut numbered = (1_u64..).zip(events);
            let missing = numbered.find(|(position, event)| seen.get(position) != Some(event))?;
            let (origin, partition) = log;
            Some(format!(
                "{origin}/{partition}/{} of {}",
                missing.0,
                events.len()
            ))
        })
    }

    // Takes one event; what is wrong with it.
    fn take(&self, event: &Event, rewinds: &Rewinds) -> Result<(), String> {
        let mut inner = self.lock();
        let log = (event.origin.clone(), event.partition);
        let written = (event.id.clone(), event.timestamp.clone());
        let place = format!("{}/{}/{}", event.origin, event.partition, event.position);
        let seen = inner.logs.entry(log.clone()).or_default();
        let last = seen.last_key_value().map_or(0, |(position, _)| *position);
        if let Some(before) = seen.get(&event.position) {
            if *before == written {
                return Err(format!("{place} was sent again"));
            }
            if !rewinds.has(&log, event.position - 1) {
                return Err(format!(
                    "{place} was sent as {before:?} and then as {written:?}"
                ));
            }
            seen.split_off(&event.position);
        } else if event.position != last + 1 {
            seen.insert(event.position, written);
            return Err(format!("{place} was sent after {last}"));
        }
        seen.insert(event.position, written);
        Ok(())
    }
}

/// An event as far as its place.
#[derive(Deserialize)]
pub(super) struct Event {
    pub(super) origin: String,
    pub(super) partition: u16,
    pub(super) position: u64,
    #[serde(default)]
    pub(super) id: String,
    #[serde(default)]
    pub(super) timestamp: String,
}

/// One application that follows one region.
pub struct Follower {
    /// What it follows, and how it knows what must be there.
    pub source: Source,
    /// What it was sent.
    pub seen: Seen,
    /// Draws its pauses.
    pub rng: Rng,
    /// Where what must never be is noted.
    pub history: History,
    /// Where steps are noted.
    pub trace: Trace,
}

/// One region's events over HTTP.
#[derive(Clone)]
pub struct Source {
    /// The region's name.
    pub region: String,
    /// Where its door is.
    pub addr: SocketAddr,
    /// Raised when the node loses its data folder: its cursors end with it.
    pub lives: Arc<AtomicU64>,
    /// Where the node's logs went back.
    pub rewinds: Rewinds,
}

/// How far a reader is in a source.
#[derive(Default)]
pub(super) struct Place {
    pub(super) cursor: String,
    life: u64,
}

impl Source {
    /// Before asking with `place`.
    pub(super) fn ask(&self, place: &mut Place) {
        if place.cursor.is_empty() {
            place.life = self.lives.load(Ordering::Relaxed);
        }
    }

    /// `place` was refused, and the reader begins anew; what is wrong with that.
    pub(super) fn refused(&self, place: &mut Place, seen: &Seen) -> Result<(), String> {
        let now = self.lives.load(Ordering::Relaxed);
        let (life, cursor) = (place.life, std::mem::take(&mut place.cursor));
        seen.lock().logs.clear();
        if now == life {
            return Err(format!("{} refuses its own cursor {cursor}", self.region));
        }
        Ok(())
    }

    /// One event was sent; what is wrong with that.
    pub(super) fn sent(&self, seen: &Seen, event: &Event) -> Result<(), String> {
        let region = &self.region;
        let taken = seen.take(event, &self.rewinds);
        taken.map_err(|what| format!("{region}: {what}"))
    }
}

impl Follower {
    /// Follows for ever.
    pub async fn run(mut self) {
        let mut place = Place::default();
        loop {
            let how = match timeout(SILENT_FOR_MAX, Connection::open(self.source.addr)).await {
                Ok(Ok(connection)) => self.follow(connection, &mut place).await,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no connection in time".to_owned(),
            };
            self.trace.note(
                elapsed(),
                format_args!("a follower of {} comes back: {how}", self.source.region),
            );
            sleep(Duration::from_millis(self.rng.between(50, 1_000))).await;
        }
    }

    // Follows until something breaks; says what.
    async fn follow(&mut self, mut connection: Connection, place: &mut Place) -> String {
        self.source.ask(place);
        let cursor = &place.cursor;
        let headers = match cursor.is_empty() {
            true => "accept: text/event-stream\r\n".to_owned(),
            false => format!("accept: text/event-stream\r\nlast-event-id: {cursor}\r\n"),
        };
        let asked = connection.begin("GET", "/v1/events", &headers, "");
        let head = match timeout(SILENT_FOR_MAX, asked).await {
            Ok(Ok(head)) => head,
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "no answer in time".to_owned(),
        };
        if head.status == 400 {
            if let Err(what) = self.source.refused(place, &self.seen) {
                self.history.broken(format!("followed: {what}"));
            }
            return "its cursor is none any more".to_owned();
        }
        if head.status != 200 {
            return format!("status {}", head.status);
        }
        let mut text = Vec::new();
        loop {
            match timeout(SILENT_FOR_MAX, connection.chunk()).await {
                Ok(Ok(Some(chunk))) => text.extend(chunk),
                Ok(Ok(None)) => return "the event stream ended".to_owned(),
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return "silence".to_owned(),
            }
            while let Some(end) = text.windows(2).position(|it| it == b"\n\n") {
                let message: Vec<u8> = text.drain(..end + 2).collect();
                self.take(&String::from_utf8_lossy(&message), place);
            }
        }
    }

    fn take(&self, message: &str, place: &mut Place) {
        let field = |name: &str| message.lines().find_map(|line| line.strip_prefix(name));
        let id = field("id: ");
        if let Some(data) = field("data: ")
            && field("event: ").is_none()
        {
            let taken = serde_json::from_str(data)
                .map_err(|error| format!("what was sent is no event: {error}"))
                .and_then(|event| self.source.sent(&self.seen, &event));
            if let Err(what) = taken {
                self.history.broken(format!("followed: {what}"));
            }
            let (region, id) = (&self.source.region, id.unwrap_or("nothing"));
            self.trace
                .note(elapsed(), format_args!("a follower of {region} takes {id}"));
        }
        if let Some(id) = id {
            id.clone_into(&mut place.cursor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(position: u64, id: &str) -> Event {
        Event {
            origin: "a".to_owned(),
            partition: 0,
            position,
            id: id.to_owned(),
            timestamp: String::new(),
        }
    }

    fn held(ids: [&str; 3]) -> BTreeMap<LogName, Vec<Written>> {
        let events = ids.map(|id| (id.to_owned(), String::new()));
        BTreeMap::from([(("a".to_owned(), 0), events.to_vec())])
    }

    #[test]
    fn a_repeated_a_skipped_and_a_missing_event_are_seen() {
        let (seen, never) = (Seen::default(), Rewinds::default());
        let held = held(["x", "y", "z"]);
        assert_eq!(seen.take(&event(1, "x"), &never), Ok(()));
        assert_eq!(seen.missing(&held).as_deref(), Some("a/0/2 of 3"));
        assert!(seen.take(&event(1, "x"), &never).is_err());
        assert!(seen.take(&event(1, "v"), &never).is_err());
        assert!(seen.take(&event(3, "z"), &never).is_err());
        assert_eq!(seen.missing(&held).as_deref(), Some("a/0/2 of 3"));
        assert!(seen.take(&event(2, "y"), &never).is_err());
    }

    #[test]
    fn other_events_come_after_the_place_that_a_log_went_back_to() {
        let (seen, rewinds) = (Seen::default(), Rewinds::default());
        for (position, id) in (1..).zip(["x", "y", "z"]) {
            assert_eq!(seen.take(&event(position, id), &rewinds), Ok(()));
        }
        rewinds.note(("a".to_owned(), 0), 1);
        assert_eq!(seen.take(&event(2, "w"), &rewinds), Ok(()));
        assert_eq!(
            seen.missing(&held(["x", "w", "z"])).as_deref(),
            Some("a/0/3 of 3")
        );
        assert_eq!(seen.take(&event(3, "y"), &rewinds), Ok(()));
        assert!(
            seen.take(&event(3, "z"), &rewinds).is_err(),
            "it did not go back there"
        );
        assert_eq!(seen.missing(&held(["x", "w", "y"])), None);
    }
}

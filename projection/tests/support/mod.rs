//! What the tests of all kinds of databases share: events, a feed of them, a world for a worker, and
//! what must hold of it.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each binary uses a part of it, and a test may end where it is wrong"
)]

pub(crate) mod scenarios;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meridian_clock::{OrderKey, PartitionId, Position, RegionId, Timestamp};
use meridian_event::EventId;
use meridian_projection::{
    Answer, Batches, Definition, Feed, FeedError, FeedEvent, FeedTier, Limits, LogPlaces, Now,
    Place, Query, QueryError, Reached, Sink, Step, Worker,
};
use uuid::Uuid;

/// A kind of database.
pub(crate) trait Database {
    /// Room for a read model, with nothing in it.
    fn room(&self) -> Box<dyn Room>;

    /// Sums up [`flights`]: the tables `delays` and `last_seen`.
    fn delays(&self) -> Definition;

    /// The same, but its handlers take what is missing for nought.
    fn mended(&self, definition: Definition) -> Definition;

    /// What it says of a value that is missing.
    fn not_null(&self) -> &'static str;
}

/// Room for one read model.
pub(crate) trait Room {
    /// A sink that writes it.
    fn sink(&self, definition: &Definition) -> Box<dyn Sink>;

    /// Asks it.
    fn ask(&self, query: &Query, limits: Limits, now: &Now) -> Result<Answer, QueryError>;

    /// Does what no worker does.
    fn by_hand(&self, sql: &str);
}

/// How many regions write the logs of the `live` tier.
const REGIONS: u16 = 3;

pub(crate) type Rows = Vec<Vec<serde_json::Value>>;

#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) key: OrderKey,
    pub(crate) stream: String,
    pub(crate) revision: u64,
    pub(crate) event_type: &'static str,
    pub(crate) data: String,
}

impl Event {
    /// As a feed shows it.
    pub(crate) fn seen(&self) -> FeedEvent<'_> {
        FeedEvent {
            key: self.key,
            stream: &self.stream,
            revision: self.revision,
            id: EventId(Uuid::from_u128(self.key.position.0.into())),
            event_type: self.event_type,
            data: self.data.as_bytes(),
            metadata: b"",
            region: "eu-west",
        }
    }
}

pub(crate) fn key(number: u64) -> OrderKey {
    OrderKey {
        timestamp: Timestamp(1_000 + number),
        region: RegionId(1),
        partition: PartitionId(0),
        position: Position(number),
    }
}

pub(crate) fn event(number: u64, stream: &str, event_type: &'static str, data: &str) -> Event {
    Event {
        key: key(number),
        stream: stream.to_owned(),
        revision: number,
        event_type,
        data: data.to_owned(),
    }
}

// Departures of two carriers by four aircraft, each also seen.
pub(crate) fn flights(count: u64) -> Vec<Event> {
    let of = |number: u64| {
        let event_type = ["Departed", "Seen", "Cancelled"][usize::try_from(number % 3).unwrap()];
        let carrier = ["AA", "UA"][usize::try_from(number % 2).unwrap()];
        let data = format!(r#"{{"carrier":"{carrier}","minutes":{}}}"#, number * 7 % 31);
        event(
            number,
            &format!("aircraft-{}", number % 4),
            event_type,
            &data,
        )
    };
    (1..=count).map(of).collect()
}

pub(crate) struct Log {
    pub(crate) events: Arc<Mutex<Vec<Event>>>,
    pub(crate) place: OrderKey,
}

impl Feed for Log {
    fn seek(&mut self, place: &Place) {
        let Place::Order(key) = place else {
            panic!("it reads the one order");
        };
        self.place = *key;
    }

    fn read(
        &mut self,
        upto: Option<&Place>,
        visit: &mut dyn FnMut(&FeedEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Reached, FeedError> {
        let events = self.events.lock().unwrap();
        let from = events.partition_point(|event| event.key <= self.place);
        for event in &events[from..] {
            if upto.is_some_and(|upto| !upto.covers(event.key)) {
                return Ok(Reached::Refused);
            }
            if visit(&event.seen()).is_break() {
                return Ok(Reached::Refused);
            }
            self.place = event.key;
        }
        Ok(Reached::Settled(Timestamp(1_000_000)))
    }

    fn place(&self) -> Place {
        Place::Order(self.place)
    }
}

/// A feed of the `live` tier: one log after the other, in the order in which they have their turn, while
/// nothing is ever settled.
pub(crate) struct Logs {
    pub(crate) events: Arc<Mutex<Vec<Event>>>,
    pub(crate) places: LogPlaces,
    // The region whose log comes first.
    pub(crate) turn: u16,
}

impl Feed for Logs {
    fn seek(&mut self, place: &Place) {
        let Place::Logs(places) = place else {
            panic!("it reads each log by itself");
        };
        self.places = places.clone();
    }

    fn read(
        &mut self,
        upto: Option<&Place>,
        visit: &mut dyn FnMut(&FeedEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Reached, FeedError> {
        let events = self.events.lock().unwrap();
        for region in (self.turn..REGIONS).chain(0..self.turn) {
            let of_log = events.iter().filter(|it| it.key.region.0 == region);
            for event in of_log.filter(|it| upto.is_none_or(|upto| upto.covers(it.key))) {
                if self.places.covers(event.key) {
                    continue;
                }
                if visit(&event.seen()).is_break() {
                    if upto.is_none() {
                        self.turn = region;
                    }
                    return Ok(Reached::Refused);
                }
                self.places.advance(event.key);
            }
        }
        Ok(match upto {
            Some(_) => Reached::Refused,
            None => Reached::Settled(Timestamp::ZERO),
        })
    }

    fn place(&self) -> Place {
        Place::Logs(self.places.clone())
    }
}

/// Events as three regions write them: each stream in the log of one of them.
pub(crate) fn in_logs(mut events: Vec<Event>) -> Vec<Event> {
    for event in &mut events {
        let last = event.stream.bytes().next_back().unwrap_or_default();
        event.key.region = RegionId(u16::from(last) % REGIONS);
    }
    events
}

/// The same database, whose definitions are of the `live` tier.
pub(crate) struct Live<'a>(pub(crate) &'a dyn Database);

impl Database for Live<'_> {
    fn room(&self) -> Box<dyn Room> {
        self.0.room()
    }

    fn delays(&self) -> Definition {
        let mut definition = self.0.delays();
        definition.tier = FeedTier::Live;
        definition.commutative = true;
        definition.check().unwrap();
        definition
    }

    fn mended(&self, definition: Definition) -> Definition {
        self.0.mended(definition)
    }

    fn not_null(&self) -> &'static str {
        self.0.not_null()
    }
}

pub(crate) struct World {
    pub(crate) room: Box<dyn Room>,
    pub(crate) events: Arc<Mutex<Vec<Event>>>,
    clock_ms: Arc<AtomicU64>,
}

impl World {
    pub(crate) fn new(database: &dyn Database, events: Vec<Event>) -> Self {
        let events = match database.delays().tier {
            FeedTier::Live => in_logs(events),
            _ => events,
        };
        Self {
            room: database.room(),
            events: Arc::new(Mutex::new(events)),
            clock_ms: Arc::default(),
        }
    }

    pub(crate) fn now(&self) -> Now {
        let clock_ms = Arc::clone(&self.clock_ms);
        Arc::new(move || Duration::from_millis(clock_ms.load(Ordering::Relaxed)))
    }

    pub(crate) fn pass(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap();
        self.clock_ms.fetch_add(ms.max(1), Ordering::Relaxed);
    }

    pub(crate) fn worker(&self, definition: &Definition, events_max: u64) -> Worker {
        let events = Arc::clone(&self.events);
        let feed: Box<dyn Feed> = match definition.tier {
            FeedTier::Live => Box::new(Logs {
                events,
                places: LogPlaces::default(),
                turn: 0,
            }),
            _ => Box::new(Log {
                events,
                place: OrderKey::ZERO,
            }),
        };
        let batches = Batches {
            events_max,
            ..Batches::default()
        };
        Worker::new(
            definition.clone(),
            feed,
            self.room.sink(definition),
            batches,
            self.now(),
            0,
        )
    }

    /// Steps until there is nothing to do or the policy stops it, letting time pass as it is asked for.
    pub(crate) fn run(&self, worker: &mut Worker) -> Step {
        let mut waits_in_a_row = 0;
        for _ in 0..10_000 {
            match worker.step() {
                Step::More => waits_in_a_row = 0,
                Step::Wait(time) if waits_in_a_row < 100 => {
                    waits_in_a_row += 1;
                    self.pass(time);
                }
                Step::Wait(_) => break,
                done => return done,
            }
        }
        panic!("it never ends: {:?}", worker.status());
    }

    pub(crate) fn rows(&self, sql: &str) -> Rows {
        self.ask(sql).unwrap()
    }

    pub(crate) fn ask(&self, sql: &str) -> Result<Rows, QueryError> {
        let query = Query {
            sql: sql.to_owned(),
            params: serde_json::Map::new(),
        };
        let answer = self.room.ask(&query, Limits::default(), &self.now())?;
        Ok(answer.rows)
    }

    pub(crate) fn model(&self) -> [Rows; 2] {
        ["delays", "last_seen"].map(|table| self.rows(&format!("SELECT * FROM {table} ORDER BY 1")))
    }

    /// Number, kind and stream of what is parked.
    pub(crate) fn parked(&self) -> Vec<(i64, String, String)> {
        let rows = self.rows("SELECT id, kind, stream FROM meridian_parked ORDER BY id");
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        rows.iter()
            .map(|row| (row[0].as_i64().unwrap(), text(&row[1]), text(&row[2])))
            .collect()
    }
}

/// What events come to when nothing goes wrong.
pub(crate) fn straight(database: &dyn Database, events: &[Event]) -> [Rows; 2] {
    let world = World::new(database, events.to_vec());
    let mut worker = world.worker(&database.delays(), 1_000);
    assert_eq!(world.run(&mut worker), Step::Idle);
    world.model()
}

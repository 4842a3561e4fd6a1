//! Read models in SQLite against what their events come to, whatever happens to their workers.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meridian_clock::{OrderKey, PartitionId, Position, RegionId, Timestamp};
use meridian_event::EventId;
use meridian_projection::{
    Batches, Definition, DefinitionError, Doing, Feed, FeedError, FeedEvent, Limits, Now, Policy,
    Query, QueryError, Reached, SqliteSink, Step, Worker, check_sqlite,
};
use proptest::prelude::*;
use uuid::Uuid;

const DELAYS: &str = r#"
    name = "delays"
    version = 1
    schema = """
        CREATE TABLE delays (carrier TEXT PRIMARY KEY, events INTEGER NOT NULL, minutes INTEGER NOT NULL);
        CREATE TABLE last_seen (stream TEXT PRIMARY KEY, minutes INTEGER NOT NULL, revision INTEGER NOT NULL);
    """
    [on]
    Departed = """
        INSERT INTO delays VALUES (:data ->> 'carrier', 1, :data ->> 'minutes')
        ON CONFLICT (carrier) DO UPDATE SET events = events + 1, minutes = minutes + excluded.minutes
    """
    Seen = """
        INSERT INTO last_seen VALUES (:stream, :data ->> 'minutes', :revision)
        ON CONFLICT (stream) DO UPDATE SET minutes = excluded.minutes, revision = excluded.revision
    """
"#;

#[derive(Clone, Debug)]
struct Event {
    key: OrderKey,
    stream: String,
    revision: u64,
    event_type: &'static str,
    data: String,
}

fn key(number: u64) -> OrderKey {
    OrderKey {
        timestamp: Timestamp(1_000 + number),
        region: RegionId(1),
        partition: PartitionId(0),
        position: Position(number),
    }
}

fn event(number: u64, stream: &str, event_type: &'static str, data: &str) -> Event {
    Event {
        key: key(number),
        stream: stream.to_owned(),
        revision: number,
        event_type,
        data: data.to_owned(),
    }
}

// Departures of two carriers by four aircraft, each also seen.
fn flights(count: u64) -> Vec<Event> {
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

struct Log {
    events: Arc<Mutex<Vec<Event>>>,
    place: OrderKey,
}

impl Feed for Log {
    fn seek(&mut self, place: OrderKey) {
        self.place = place;
    }

    fn read(
        &mut self,
        visit: &mut dyn FnMut(&FeedEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Reached, FeedError> {
        let events = self.events.lock().unwrap().clone();
        let after = self.place;
        for event in events.iter().filter(|event| event.key > after) {
            let seen = FeedEvent {
                key: event.key,
                stream: &event.stream,
                revision: event.revision,
                id: EventId(Uuid::from_u128(event.key.position.0.into())),
                event_type: event.event_type,
                data: event.data.as_bytes(),
                metadata: b"",
                region: "eu-west",
            };
            if visit(&seen).is_break() {
                return Ok(Reached::Refused);
            }
            self.place = event.key;
        }
        Ok(Reached::Settled(Timestamp(1_000_000)))
    }

    fn place(&self) -> OrderKey {
        self.place
    }
}

struct World {
    folder: tempfile::TempDir,
    events: Arc<Mutex<Vec<Event>>>,
    clock_ms: Arc<AtomicU64>,
}

impl World {
    fn new(events: Vec<Event>) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            events: Arc::new(Mutex::new(events)),
            clock_ms: Arc::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("model.db")
    }

    fn now(&self) -> Now {
        let clock_ms = Arc::clone(&self.clock_ms);
        Arc::new(move || Duration::from_millis(clock_ms.load(Ordering::Relaxed)))
    }

    fn pass(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap();
        self.clock_ms.fetch_add(ms.max(1), Ordering::Relaxed);
    }

    fn worker(&self, definition: &Definition, events_max: u64) -> Worker {
        let feed = Log {
            events: Arc::clone(&self.events),
            place: OrderKey::ZERO,
        };
        let batches = Batches {
            events_max,
            ..Batches::default()
        };
        Worker::new(
            definition.clone(),
            Box::new(feed),
            Box::new(SqliteSink::new(&self.path(), definition.clone())),
            batches,
            self.now(),
            0,
        )
    }

    // Steps until there is nothing to do or the policy stops it, letting time pass as it is asked for.
    fn run(&self, worker: &mut Worker) -> Step {
        for _ in 0..10_000 {
            match worker.step() {
                Step::More => {}
                Step::Wait(time) => self.pass(time),
                done => return done,
            }
        }
        panic!("it never ends: {:?}", worker.status());
    }

    fn rows(&self, sql: &str) -> Vec<Vec<serde_json::Value>> {
        self.ask(sql).unwrap()
    }

    fn ask(&self, sql: &str) -> Result<Vec<Vec<serde_json::Value>>, QueryError> {
        let query = Query {
            sql: sql.to_owned(),
            params: serde_json::Map::new(),
        };
        let answer = query.ask(&self.path(), Limits::default(), &self.now())?;
        Ok(answer.rows)
    }

    fn model(&self) -> [Vec<Vec<serde_json::Value>>; 2] {
        ["delays", "last_seen"].map(|table| self.rows(&format!("SELECT * FROM {table} ORDER BY 1")))
    }
}

fn delays() -> Definition {
    let definition = Definition::from_toml(DELAYS).unwrap();
    definition.check().unwrap();
    check_sqlite(&definition).unwrap();
    definition
}

fn straight(events: &[Event]) -> [Vec<Vec<serde_json::Value>>; 2] {
    let world = World::new(events.to_vec());
    let mut worker = world.worker(&delays(), 1_000);
    assert_eq!(world.run(&mut worker), Step::Idle);
    world.model()
}

#[test]
fn a_read_model_is_what_its_events_come_to() {
    let events = flights(300);
    let mut expected = BTreeMap::<&str, (i64, i64)>::new();
    for event in events.iter().filter(|it| it.event_type == "Departed") {
        let number = event.key.position.0;
        let carrier = ["AA", "UA"][usize::try_from(number % 2).unwrap()];
        let sums = expected.entry(carrier).or_default();
        sums.0 += 1;
        sums.1 += i64::try_from(number * 7 % 31).unwrap();
    }
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(carrier, (events, minutes))| serde_json::json!([carrier, events, minutes]))
        .collect();
    assert_eq!(
        serde_json::json!(straight(&events)[0]),
        serde_json::json!(expected)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    // `exactly-once`: a worker that ends anywhere, and one that is overtaken, leave nothing out and
    // apply nothing twice.
    #[test]
    fn workers_that_die_and_overtake_each_other_change_nothing(
        steps in prop::collection::vec((0u8..3, 1u64..9), 1..40),
    ) {
        let events = flights(120);
        let world = World::new(events.clone());
        let definition = delays();
        let mut workers = vec![world.worker(&definition, 5)];
        for (what, count) in steps {
            let last = workers.len() - 1;
            match what {
                0 => { for _ in 0..count { workers[last].step(); world.pass(Duration::from_millis(1)); } }
                1 => workers.push(world.worker(&definition, count)),
                // One that was overtaken goes on as if nothing had happened.
                _ => { workers[usize::try_from(count).unwrap() % (last + 1)].step(); }
            }
        }
        let mut last = world.worker(&definition, 7);
        prop_assert_eq!(world.run(&mut last), Step::Idle);
        for worker in &mut workers {
            let step = worker.step();
            if worker.status().doing == Doing::Fenced {
                prop_assert_eq!(step, Step::Fenced);
            }
        }
        let mut last = world.worker(&definition, 7);
        prop_assert_eq!(world.run(&mut last), Step::Idle);
        prop_assert_eq!(world.model(), straight(&events));
    }
}

// An event of aircraft-1 whose data its handler does not take.
fn with_a_bad_one(count: u64) -> (Vec<Event>, Vec<Event>) {
    let good = flights(count);
    let mut bad = good.clone();
    let place = bad
        .iter()
        .position(|it| {
            it.event_type == "Seen" && it.stream == "aircraft-1" && it.key.position.0 > 20
        })
        .unwrap();
    bad[place].data = r#"{"carrier":"AA"}"#.to_owned();
    (good, bad)
}

fn with_policy(policy: Policy) -> Definition {
    let mut definition = delays();
    definition.failure.policy = policy;
    definition
}

// Takes what is missing for nought.
fn fixed(mut definition: Definition) -> Definition {
    let seen = definition.on.get_mut("Seen").unwrap();
    *seen = seen.replacen(":data ->> 'minutes'", "coalesce(:data ->> 'minutes', 0)", 1);
    definition
}

fn parked(world: &World) -> Vec<(i64, String, String)> {
    let path = world.path();
    read_parked(&path)
}

fn read_parked(path: &Path) -> Vec<(i64, String, String)> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let mut statement = connection
        .prepare("SELECT id, kind, stream FROM meridian_parked ORDER BY id")
        .unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

#[test]
fn stop_stops_before_the_event_and_goes_on_once_the_handler_is_mended() {
    let (_, bad) = with_a_bad_one(120);
    let world = World::new(bad.clone());
    let definition = with_policy(Policy::Stop);
    let mut worker = world.worker(&definition, 1_000);
    assert_eq!(world.run(&mut worker), Step::Stopped);
    // 1 s, 2 s and 4 s between four tries.
    assert!(world.now()() >= Duration::from_secs(7));
    let status = worker.status();
    assert!(status.error.unwrap().contains("NOT NULL constraint failed"));
    assert_eq!(worker.step(), Step::Stopped);
    let mended = fixed(definition);
    worker.go_on_as(
        mended.clone(),
        Box::new(SqliteSink::new(&world.path(), mended.clone())),
    );
    assert_eq!(world.run(&mut worker), Step::Idle);
    let expected = World::new(bad);
    let mut whole = expected.worker(&mended, 1_000);
    assert_eq!(expected.run(&mut whole), Step::Idle);
    assert_eq!(world.model(), expected.model());
}

#[test]
fn skip_leaves_it_out_and_says_so() {
    let (_, bad) = with_a_bad_one(120);
    let world = World::new(bad.clone());
    let mut worker = world.worker(&with_policy(Policy::Skip), 1_000);
    assert_eq!(world.run(&mut worker), Step::Idle);
    assert_eq!(worker.status().checkpoint.skipped, 1);
    assert_eq!(worker.status().parked, 0, "it waits for nobody");
    assert_eq!(parked(&world).len(), 1, "it is listed");
    let without: Vec<_> = bad
        .into_iter()
        .filter(|it| it.data.contains("minutes"))
        .collect();
    assert_eq!(world.model(), straight(&without));
}

#[test]
fn a_dead_letter_lets_the_rest_of_its_stream_go_on() {
    let (_, bad) = with_a_bad_one(120);
    let world = World::new(bad.clone());
    let definition = with_policy(Policy::DeadLetter);
    let mut worker = world.worker(&definition, 1_000);
    assert_eq!(world.run(&mut worker), Step::Idle);
    assert_eq!(worker.status().parked, 1);
    let without: Vec<_> = bad
        .into_iter()
        .filter(|it| it.data.contains("minutes"))
        .collect();
    assert_eq!(world.model(), straight(&without));
    let (id, ..) = parked(&world)[0];
    assert!(
        worker.retry(id).unwrap().unwrap().error.is_some(),
        "it still fails"
    );
    assert_eq!(worker.status().parked, 1);
    assert!(worker.drop_parked(id, "not worth it").unwrap().is_some());
    assert_eq!(
        (worker.status().parked, worker.retry(99).unwrap()),
        (0, None)
    );
}

#[test]
fn quarantine_parks_the_stream_in_order_and_a_retry_drains_it() {
    let (_, bad) = with_a_bad_one(120);
    let world = World::new(bad.clone());
    let definition = with_policy(Policy::Quarantine);
    let mut worker = world.worker(&definition, 1_000);
    // Nothing else is delayed by the tries.
    let step = (0..4)
        .map(|_| worker.step())
        .find(|step| *step != Step::More);
    assert!(matches!(step, Some(Step::Wait(_))), "{step:?}");
    assert!(world.now()() < Duration::from_secs(1));
    let of_others = |it: &Event| it.stream != "aircraft-1";
    let others: Vec<_> = bad.iter().filter(|it| of_others(it)).cloned().collect();
    let seen = world.rows("SELECT * FROM last_seen WHERE stream <> 'aircraft-1' ORDER BY 1");
    assert_eq!(seen, straight(&others)[1]);

    assert_eq!(world.run(&mut worker), Step::Idle);
    let left = parked(&world);
    assert!(left.len() > 5, "{left:?}");
    assert_eq!(left[0].1, "quarantined");
    assert!(left[1..].iter().all(|it| it.1 == "behind"), "{left:?}");
    assert!(left.iter().all(|it| it.2 == "aircraft-1"), "{left:?}");

    // A restart forgets none of it, and what comes meanwhile waits too.
    let more = event(
        500,
        "aircraft-1",
        "Departed",
        r#"{"carrier":"AA","minutes":1}"#,
    );
    world.events.lock().unwrap().push(more);
    let mended = fixed(definition);
    let mut worker = world.worker(&mended, 1_000);
    assert_eq!(worker.step(), Step::Idle);
    assert_eq!(parked(&world).len(), left.len() + 1);
    let drained = worker.retry(left[0].0).unwrap().unwrap();
    assert_eq!(drained.applied, left.len() as u64 + 1);
    assert!(!drained.is_left && drained.error.is_none());
    assert_eq!((parked(&world).len(), worker.status().parked), (0, 0));
    let all = World::new(world.events.lock().unwrap().clone());
    let mut whole = all.worker(&mended, 1_000);
    assert_eq!(all.run(&mut whole), Step::Idle);
    assert_eq!(world.model(), all.model());
}

#[test]
fn a_checkpoint_that_is_lost_or_changed_by_hand_is_not_believed() {
    for (sql, what) in [
        (
            "UPDATE meridian_checkpoint SET place = '1.1.0.1'",
            "changed by hand",
        ),
        ("DELETE FROM meridian_checkpoint", "missing"),
        ("DROP TABLE meridian_checkpoint", "missing"),
    ] {
        let world = World::new(flights(30));
        let mut worker = world.worker(&delays(), 1_000);
        assert_eq!(world.run(&mut worker), Step::Idle);
        let connection = rusqlite::Connection::open(world.path()).unwrap();
        connection.execute_batch(sql).unwrap();
        let mut worker = world.worker(&delays(), 1_000);
        assert!(matches!(worker.step(), Step::Wait(_)));
        let status = worker.status();
        assert_eq!(status.doing, Doing::WaitingForSink);
        let error = status.error.unwrap();
        assert!(error.contains(what) && error.contains("rebuild"), "{error}");
    }
}

#[test]
fn a_file_with_other_columns_is_left_alone() {
    let world = World::new(flights(30));
    let mut worker = world.worker(&delays(), 1_000);
    assert_eq!(world.run(&mut worker), Step::Idle);
    let mut other = delays();
    other.schema = other.schema.replace("minutes INTEGER", "minutes REAL");
    let mut worker = world.worker(&other, 1_000);
    assert!(matches!(worker.step(), Step::Wait(_)));
    let error = worker.status().error.unwrap();
    assert!(error.contains("other columns"), "{error}");
}

#[test]
fn a_sink_that_is_down_is_waited_for() {
    let world = World::new(flights(30));
    let folder = world.path();
    std::fs::create_dir(&folder).unwrap();
    let mut worker = world.worker(&delays(), 1_000);
    assert!(matches!(worker.step(), Step::Wait(_)));
    assert_eq!(worker.status().doing, Doing::WaitingForSink);
    std::fs::remove_dir(&folder).unwrap();
    assert_eq!(world.run(&mut worker), Step::Idle);
    assert_eq!(world.model(), straight(&flights(30)));
}

#[test]
fn queries_read_only_and_end() {
    let world = World::new(flights(30));
    let mut worker = world.worker(&delays(), 1_000);
    assert_eq!(world.run(&mut worker), Step::Idle);
    for sql in [
        "DELETE FROM delays",
        "INSERT INTO delays VALUES ('X', 1, 1)",
        "CREATE TABLE t (a)",
        "PRAGMA journal_mode = DELETE",
        "ATTACH 'other.db' AS other",
        "SELECT 1; SELECT 2",
        "SELECT * FROM nothing",
        "BEGIN",
        "SELECT :carrier",
        "",
    ] {
        assert!(
            matches!(world.ask(sql), Err(QueryError::Refused { .. })),
            "{sql}"
        );
    }
    let endless = Query {
        sql: "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
            .to_owned(),
        params: serde_json::Map::new(),
    };
    let clock = world.now();
    let ticking: Now = Arc::new({
        let calls = AtomicU64::new(0);
        move || clock() + Duration::from_secs(calls.fetch_add(1, Ordering::Relaxed))
    });
    let limits = Limits::default();
    assert!(matches!(
        endless.ask(&world.path(), limits, &ticking),
        Err(QueryError::TooLong { .. })
    ));
    let few = Limits { rows: 1, ..limits };
    let all = Query {
        sql: "SELECT * FROM delays WHERE carrier <> :carrier OR 1".to_owned(),
        params: [("carrier".to_owned(), "AA".into())].into_iter().collect(),
    };
    assert!(matches!(
        all.ask(&world.path(), few, &world.now()),
        Err(QueryError::TooMuch {
            limit: 1,
            what: "rows"
        })
    ));
    let answer = all.ask(&world.path(), limits, &world.now()).unwrap();
    assert_eq!(answer.columns, ["carrier", "events", "minutes"]);
    assert_eq!(answer.rows.len(), 2);
    assert_eq!(answer.checkpoint.place, key(30));
}

#[test]
fn sql_that_would_not_do_is_refused_when_it_is_put() {
    let with = |statement: &str| {
        let mut definition = delays();
        definition
            .on
            .insert("Seen".to_owned(), statement.to_owned());
        check_sqlite(&definition).unwrap_err()
    };
    assert!(matches!(
        with("INSRT INTO delays"),
        DefinitionError::Sql { .. }
    ));
    assert!(matches!(
        with("DELETE FROM nothing"),
        DefinitionError::Sql { .. }
    ));
    assert!(matches!(with("SELECT 1"), DefinitionError::Sql { .. }));
    assert!(matches!(with("COMMIT"), DefinitionError::Sql { .. }));
    assert!(matches!(
        with("PRAGMA synchronous = OFF"),
        DefinitionError::Sql { .. }
    ));
    assert!(matches!(
        with("DELETE FROM delays; DELETE FROM last_seen"),
        DefinitionError::Sql { .. }
    ));
    let error = with("DELETE FROM last_seen WHERE stream = :straem").to_string();
    assert!(error.contains("did you mean \":stream\"?"), "{error}");
    assert!(matches!(
        with("DELETE FROM last_seen WHERE stream = ?"),
        DefinitionError::Parameter { .. }
    ));
    let mut definition = delays();
    definition.schema = "CREATE TABLE meridian_checkpoint (a)".to_owned();
    assert!(matches!(
        check_sqlite(&definition),
        Err(DefinitionError::OwnTable { .. })
    ));
    let mut definition = delays();
    definition.merge = Some("INSERT INTO delays SELECT * FROM part.delays WHERE true ON CONFLICT (carrier) DO UPDATE SET events = events + excluded.events".to_owned());
    check_sqlite(&definition).unwrap();
    definition.merge = Some("INSERT INTO delays SELECT * FROM part.nothing".to_owned());
    assert!(matches!(
        check_sqlite(&definition),
        Err(DefinitionError::Sql { .. })
    ));
}

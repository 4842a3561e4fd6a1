//! Read models in SQLite against what their events come to, whatever happens to their workers.

#![expect(clippy::unwrap_used, reason = "a test may end where it is wrong")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meridian_projection::{
    Answer, Definition, DefinitionError, Doing, FeedEvent, HandlerError, Limits, Now, Projection,
    Query, QueryError, Rows, Sink, SqliteSink, Step, check_sqlite,
};
use proptest::prelude::*;
use support::{Database, Live, Room, World, flights, scenarios, straight};

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

struct Sqlite;

struct File {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Database for Sqlite {
    fn room(&self) -> Box<dyn Room> {
        let folder = tempfile::tempdir().unwrap();
        Box::new(File {
            path: folder.path().join("model.db"),
            _folder: folder,
        })
    }

    fn delays(&self) -> Definition {
        delays()
    }

    fn mended(&self, mut definition: Definition) -> Definition {
        let seen = definition.on.get_mut("Seen").unwrap();
        *seen = seen.replacen(":data ->> 'minutes'", "coalesce(:data ->> 'minutes', 0)", 1);
        definition
    }

    fn not_null(&self) -> &'static str {
        "NOT NULL constraint failed"
    }
}

impl Room for File {
    fn sink(&self, definition: &Definition) -> Box<dyn Sink> {
        Box::new(SqliteSink::new(&self.path, definition.clone()))
    }

    fn ask(&self, query: &Query, limits: Limits, now: &Now) -> Result<Answer, QueryError> {
        query.ask(&self.path, limits, now)
    }

    fn by_hand(&self, sql: &str) {
        let connection = rusqlite::Connection::open(&self.path).unwrap();
        connection.execute_batch(sql).unwrap();
    }
}

/// As [`Sqlite`], with handlers in Rust that need several statements for an event.
struct InRust;

struct Program(Definition);

impl Projection for Program {
    fn definition(&self) -> Definition {
        self.0.clone()
    }

    fn handle(&mut self, event: &FeedEvent<'_>, rows: &Rows<'_>) -> Result<(), HandlerError> {
        let data: serde_json::Value = serde_json::from_slice(event.data)?;
        let minutes = data["minutes"].as_i64();
        if event.event_type == "Departed" {
            let carrier = data["carrier"].as_str();
            rows.execute("INSERT OR IGNORE INTO delays VALUES (?1, 0, 0)", [carrier])?;
            let add =
                "UPDATE delays SET events = events + 1, minutes = minutes + ?2 WHERE carrier = ?1";
            rows.execute(add, (carrier, minutes))?;
            return Ok(());
        }
        // What fails in the second statement must not leave the first one behind.
        rows.execute("DELETE FROM last_seen WHERE stream = ?1", [event.stream])?;
        let minutes = match self.0.on["Seen"].contains("coalesce") {
            true => minutes.or(Some(0)),
            false => minutes,
        };
        rows.execute(
            "INSERT INTO last_seen VALUES (?1, ?2, ?3)",
            (event.stream, minutes, event.revision),
        )?;
        let count = "SELECT count(*) FROM last_seen WHERE stream = ?1";
        let count: Option<u64> = rows.first(count, [event.stream], |row| row.get(0))?;
        assert_eq!(count, Some(1));
        Ok(())
    }
}

struct FileInRust(File);

impl Database for InRust {
    fn room(&self) -> Box<dyn Room> {
        let folder = tempfile::tempdir().unwrap();
        Box::new(FileInRust(File {
            path: folder.path().join("model.db"),
            _folder: folder,
        }))
    }

    fn delays(&self) -> Definition {
        Sqlite.delays()
    }

    fn mended(&self, definition: Definition) -> Definition {
        Sqlite.mended(definition)
    }

    fn not_null(&self) -> &'static str {
        Sqlite.not_null()
    }
}

impl Room for FileInRust {
    fn sink(&self, definition: &Definition) -> Box<dyn Sink> {
        let program = Program(definition.clone());
        Box::new(SqliteSink::running(&self.0.path, Box::new(program)))
    }

    fn ask(&self, query: &Query, limits: Limits, now: &Now) -> Result<Answer, QueryError> {
        self.0.ask(query, limits, now)
    }

    fn by_hand(&self, sql: &str) {
        self.0.by_hand(sql);
    }
}

#[test]
fn handlers_in_rust_are_as_exact() {
    scenarios::a_read_model_is_what_its_events_come_to(&InRust);
    scenarios::stop_stops_before_the_event_and_goes_on_once_the_handler_is_mended(&InRust);
    scenarios::skip_leaves_it_out_and_says_so(&InRust);
    scenarios::a_dead_letter_lets_the_rest_of_its_stream_go_on(&InRust);
}

#[test]
fn live_read_models_are_as_exact() {
    let live = Live(&Sqlite);
    scenarios::a_read_model_is_what_its_events_come_to(&live);
    scenarios::stop_stops_before_the_event_and_goes_on_once_the_handler_is_mended(&live);
    scenarios::skip_leaves_it_out_and_says_so(&live);
    scenarios::a_dead_letter_lets_the_rest_of_its_stream_go_on(&live);
    scenarios::quarantine_parks_the_stream_in_order_and_a_retry_drains_it(&live);
    scenarios::a_checkpoint_that_is_lost_or_changed_by_hand_is_not_believed(&live);
    scenarios::bad_events_of_two_logs_are_both_decided_on(&Sqlite);
    scenarios::a_live_read_model_says_where_it_is_in_each_log(&Sqlite);
}

fn seen(event: &support::Event) -> FeedEvent<'_> {
    FeedEvent {
        key: event.key,
        stream: &event.stream,
        revision: event.revision,
        id: meridian_event::EventId(uuid::Uuid::from_u128(1)),
        event_type: event.event_type,
        data: event.data.as_bytes(),
        metadata: b"",
        region: "eu-west",
    }
}

#[test]
fn what_a_handler_in_rust_wrote_before_it_failed_is_undone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.db");
    let mut sink = SqliteSink::running(&path, Box::new(Program(delays())));
    sink.claim().unwrap();
    sink.begin().unwrap();
    let good = support::event(1, "aircraft-1", "Seen", r#"{"minutes":7}"#);
    let bad = support::event(2, "aircraft-1", "Seen", "{}");
    let mut batch = sink.batch().unwrap();
    batch.apply(&seen(&good)).unwrap();
    let failed = batch.apply(&seen(&bad)).unwrap_err();
    assert!(failed.to_string().contains("NOT NULL"), "{failed}");
    drop(batch);
    sink.commit(&meridian_projection::Checkpoint::default())
        .unwrap();
    let rows = rusqlite::Connection::open(&path).unwrap();
    let minutes = rows.query_row("SELECT minutes FROM last_seen", [], |row| row.get(0));
    assert_eq!(minutes, Ok(7));
}

#[test]
fn a_handler_in_rust_cannot_end_the_transaction() {
    let folder = tempfile::tempdir().unwrap();
    struct Ends;
    impl Projection for Ends {
        fn definition(&self) -> Definition {
            let mut definition = delays();
            definition.failure.policy = meridian_projection::Policy::Skip;
            definition.failure.retries = 0;
            definition
        }

        fn handle(&mut self, _: &FeedEvent<'_>, rows: &Rows<'_>) -> Result<(), HandlerError> {
            rows.execute("COMMIT", [])?;
            Ok(())
        }
    }
    let mut sink = SqliteSink::running(&folder.path().join("ends.db"), Box::new(Ends));
    sink.claim().unwrap();
    sink.begin().unwrap();
    let log = flights(1);
    let event = seen(&log[0]);
    let refused = sink.batch().unwrap().apply(&event).unwrap_err();
    assert!(
        refused.to_string().contains("leave transactions"),
        "{refused}"
    );
    sink.commit(&meridian_projection::Checkpoint::default())
        .unwrap();
}

fn delays() -> Definition {
    let definition = Definition::from_toml(DELAYS).unwrap();
    definition.check().unwrap();
    check_sqlite(&definition).unwrap();
    definition
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn workers_that_die_and_overtake_each_other_change_nothing(
        steps in prop::collection::vec((0u8..3, 1u64..9), 1..40),
    ) {
        scenarios::workers_that_die_and_overtake_each_other_change_nothing(&Sqlite, &steps)?;
        scenarios::workers_that_die_and_overtake_each_other_change_nothing(&Live(&Sqlite), &steps)?;
    }
}

#[test]
fn a_read_model_is_what_its_events_come_to() {
    scenarios::a_read_model_is_what_its_events_come_to(&Sqlite);
}

#[test]
fn stop_stops_before_the_event_and_goes_on_once_the_handler_is_mended() {
    scenarios::stop_stops_before_the_event_and_goes_on_once_the_handler_is_mended(&Sqlite);
}

#[test]
fn skip_leaves_it_out_and_says_so() {
    scenarios::skip_leaves_it_out_and_says_so(&Sqlite);
}

#[test]
fn a_dead_letter_lets_the_rest_of_its_stream_go_on() {
    scenarios::a_dead_letter_lets_the_rest_of_its_stream_go_on(&Sqlite);
}

#[test]
fn quarantine_parks_the_stream_in_order_and_a_retry_drains_it() {
    scenarios::quarantine_parks_the_stream_in_order_and_a_retry_drains_it(&Sqlite);
}

#[test]
fn a_checkpoint_that_is_lost_or_changed_by_hand_is_not_believed() {
    scenarios::a_checkpoint_that_is_lost_or_changed_by_hand_is_not_believed(&Sqlite);
}

#[test]
fn a_file_with_other_columns_is_left_alone() {
    scenarios::tables_with_other_columns_are_left_alone(&Sqlite);
}

#[test]
fn a_sink_that_is_down_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    // A folder is in the file's place.
    let path = tempfile::TempDir::with_prefix_in("model", folder.path()).unwrap();
    let mut world = World::new(&Sqlite, flights(30));
    world.room = Box::new(File {
        path: path.path().to_owned(),
        _folder: folder,
    });
    let mut worker = world.worker(&delays(), 1_000);
    assert!(matches!(worker.step(), Step::Wait(_)));
    assert_eq!(worker.status().doing, Doing::WaitingForSink);
    path.close().unwrap();
    assert_eq!(world.run(&mut worker), Step::Idle);
    assert_eq!(world.model(), straight(&Sqlite, &flights(30)));
}

#[test]
fn queries_read_only_and_end() {
    let refused = ["PRAGMA journal_mode = DELETE", "ATTACH 'other.db' AS other"];
    scenarios::queries_read_only_and_are_bounded(&Sqlite, &refused);
    let world = World::new(&Sqlite, flights(30));
    let mut worker = world.worker(&delays(), 1_000);
    assert_eq!(world.run(&mut worker), Step::Idle);
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
    assert!(matches!(
        world.room.ask(&endless, Limits::default(), &ticking),
        Err(QueryError::TooLong { .. })
    ));
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

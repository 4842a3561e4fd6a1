//! Read models in PostgreSQL against what their events come to, whatever happens to their workers and
//! to the server.

#![expect(clippy::unwrap_used, reason = "a test may end where it is wrong")]

#[path = "support/server.rs"]
mod server;
mod support;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use meridian_projection::{
    Answer, CheckError, Checkpoint, Definition, DefinitionError, Doing, Limits, Now, Policy,
    PostgresSink, Query, QueryError, Sink, SinkError, SinkKind, Step, check_postgres,
    is_made_postgres, merge_postgres, remove_parts_postgres,
};
use proptest::prelude::*;
use server::Server;
use support::{Database, Event, Live, Room, World, event, flights, scenarios, straight};

const DELAYS: &str = r#"
    name = "delays"
    version = 1
    schema = """
        CREATE TABLE delays (carrier TEXT PRIMARY KEY, events INTEGER NOT NULL, minutes INTEGER NOT NULL);
        CREATE TABLE last_seen (stream TEXT PRIMARY KEY, minutes INTEGER NOT NULL, revision BIGINT NOT NULL);
    """
    [on]
    Departed = """
        INSERT INTO delays VALUES (:data ->> 'carrier', 1, (:data ->> 'minutes')::int)
        ON CONFLICT (carrier) DO UPDATE SET events = delays.events + 1, minutes = delays.minutes + excluded.minutes
    """
    Seen = """
        INSERT INTO last_seen VALUES (:stream, (:data ->> 'minutes')::int, :revision)
        ON CONFLICT (stream) DO UPDATE SET minutes = excluded.minutes, revision = excluded.revision
    """
"#;

struct Postgres {
    url: String,
}

struct Schema {
    url: String,
    name: String,
}

/// The server that all tests share which do it no harm.
fn shared() -> Option<Postgres> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    let server = SERVER.get_or_init(Server::start).as_ref()?;
    Some(Postgres { url: server.url() })
}

fn fresh_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    // A name that wants to be quoted.
    format!("Model-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

impl Database for Postgres {
    fn room(&self) -> Box<dyn Room> {
        Box::new(Schema {
            url: self.url.clone(),
            name: fresh_name(),
        })
    }

    fn delays(&self) -> Definition {
        delays(&self.url)
    }

    fn mended(&self, mut definition: Definition) -> Definition {
        let seen = definition.on.get_mut("Seen").unwrap();
        *seen = seen.replacen(
            "(:data ->> 'minutes')::int",
            "coalesce((:data ->> 'minutes')::int, 0)",
            1,
        );
        definition
    }

    fn not_null(&self) -> &'static str {
        "null value in column \"minutes\" of relation \"last_seen\" violates not-null constraint"
    }
}

impl Room for Schema {
    fn sink(&self, definition: &Definition) -> Box<dyn Sink> {
        Box::new(PostgresSink::new(&self.url, &self.name, definition.clone()))
    }

    fn ask(&self, query: &Query, limits: Limits, _: &Now) -> Result<Answer, QueryError> {
        query.ask_postgres(&self.url, &self.name, limits)
    }

    fn by_hand(&self, sql: &str) {
        by_hand(
            &self.url,
            &format!("SET search_path TO \"{}\"; {sql}", self.name),
        );
    }
}

#[test]
fn live_read_models_are_as_exact() {
    let Some(postgres) = shared() else {
        return;
    };
    let live = Live(&postgres);
    scenarios::a_read_model_is_what_its_events_come_to(&live);
    scenarios::stop_stops_before_the_event_and_goes_on_once_the_handler_is_mended(&live);
    scenarios::skip_leaves_it_out_and_says_so(&live);
    scenarios::a_dead_letter_lets_the_rest_of_its_stream_go_on(&live);
    scenarios::quarantine_parks_the_stream_in_order_and_a_retry_drains_it(&live);
    scenarios::a_checkpoint_that_is_lost_or_changed_by_hand_is_not_believed(&live);
    scenarios::bad_events_of_two_logs_are_both_decided_on(&postgres);
    scenarios::a_live_read_model_says_where_it_is_in_each_log(&postgres);
}

fn by_hand(url: &str, sql: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        client.batch_execute(sql).await.unwrap();
    });
}

fn delays(url: &str) -> Definition {
    let mut definition = Definition::from_toml(DELAYS).unwrap();
    definition.sink = SinkKind::Postgres {
        url: url.to_owned(),
    };
    definition.check().unwrap();
    definition
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn workers_that_die_and_overtake_each_other_change_nothing(
        steps in prop::collection::vec((0u8..3, 1u64..9), 1..40),
    ) {
        if let Some(postgres) = shared() {
            scenarios::workers_that_die_and_overtake_each_other_change_nothing(&postgres, &steps)?;
            scenarios::workers_that_die_and_overtake_each_other_change_nothing(&Live(&postgres), &steps)?;
        }
    }
}

#[test]
fn a_read_model_is_what_its_events_come_to() {
    if let Some(postgres) = shared() {
        check_postgres(&postgres.delays()).unwrap();
        scenarios::a_read_model_is_what_its_events_come_to(&postgres);
    }
}

#[test]
fn stop_stops_before_the_event_and_goes_on_once_the_handler_is_mended() {
    if let Some(postgres) = shared() {
        scenarios::stop_stops_before_the_event_and_goes_on_once_the_handler_is_mended(&postgres);
    }
}

#[test]
fn skip_leaves_it_out_and_says_so() {
    if let Some(postgres) = shared() {
        scenarios::skip_leaves_it_out_and_says_so(&postgres);
    }
}

#[test]
fn a_dead_letter_lets_the_rest_of_its_stream_go_on() {
    if let Some(postgres) = shared() {
        scenarios::a_dead_letter_lets_the_rest_of_its_stream_go_on(&postgres);
    }
}

#[test]
fn quarantine_parks_the_stream_in_order_and_a_retry_drains_it() {
    if let Some(postgres) = shared() {
        scenarios::quarantine_parks_the_stream_in_order_and_a_retry_drains_it(&postgres);
    }
}

#[test]
fn a_checkpoint_that_is_lost_or_changed_by_hand_is_not_believed() {
    if let Some(postgres) = shared() {
        scenarios::a_checkpoint_that_is_lost_or_changed_by_hand_is_not_believed(&postgres);
    }
}

#[test]
fn tables_with_other_columns_are_left_alone() {
    if let Some(postgres) = shared() {
        scenarios::tables_with_other_columns_are_left_alone(&postgres);
    }
}

#[test]
fn queries_read_only_and_end() {
    let Some(postgres) = shared() else { return };
    let refused = [
        "WITH gone AS (DELETE FROM delays RETURNING *) SELECT * FROM gone",
        "SELECT set_config('transaction_read_only', 'off', true)",
        "SET TRANSACTION READ WRITE",
        "SELECT 1) AS a; DELETE FROM delays; SELECT * FROM (SELECT 1",
        "SELECT 1) AS a, (SELECT 2",
        "SELECT $1",
        "SELECT * INTO copied FROM delays",
        "SELECT carrier FROM delays FOR UPDATE",
        "COPY delays TO STDOUT",
        "EXPLAIN ANALYZE DELETE FROM delays",
    ];
    scenarios::queries_read_only_and_are_bounded(&postgres, &refused);
    let world = World::new(&postgres, flights(30));
    let mut worker = world.worker(&postgres.delays(), 1_000);
    assert_eq!(world.run(&mut worker), Step::Idle);
    let ask = |sql: &str, time_ms: u64| {
        let query = Query {
            sql: sql.to_owned(),
            params: serde_json::from_str(r#"{"n": 2, "t": "x", "no": null}"#).unwrap(),
        };
        let time = Duration::from_millis(time_ms);
        let limits = Limits {
            time,
            ..Limits::default()
        };
        world.room.ask(&query, limits, &world.now())
    };
    for endless in [
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT (i + 1) % 9 FROM n) SELECT max(i) FROM n",
        "SELECT pg_sleep(60)",
    ] {
        let answer = ask(endless, 200);
        assert!(
            matches!(answer, Err(QueryError::TooLong { .. })),
            "{answer:?}"
        );
    }
    // Columns keep their order and names, also the same name twice; each value its kind.
    let answer = ask(
        r#"SELECT 'é' AS z, '\x00ff'::bytea AS a, :n::int + 1 AS a, NULL AS n, true AS t, :t || 'y' AS x,
            1.5::float8 AS f, '{"a": [1]}'::jsonb AS j, :no::text AS no"#,
        5_000,
    )
    .unwrap();
    assert_eq!(
        answer.columns,
        ["z", "a", "a", "n", "t", "x", "f", "j", "no"]
    );
    assert_eq!(
        serde_json::json!(answer.rows),
        serde_json::json!([["é", "00ff", 3, null, true, "xy", 1.5, {"a": [1]}, null]])
    );
}

#[test]
fn handlers_see_all_that_an_event_gives() {
    let Some(postgres) = shared() else { return };
    let mut definition = postgres.delays();
    definition.schema = "CREATE TABLE seen (d JSONB, m JSONB, s TEXT, r BIGINT, t TEXT, i UUID, ts NUMERIC, re TEXT, at TIMESTAMPTZ, n INT)".to_owned();
    definition.on = [(
        "Seen".to_owned(),
        "INSERT INTO seen -- of :type\nVALUES (:data, :metadata, :stream, :revision, :type, :id::uuid, :timestamp::numeric, :region, :recorded_at, (:data->>'n')::int + length(':stream'));".to_owned(),
    )]
    .into();
    check_postgres(&definition).unwrap();
    let world = World::new(&postgres, vec![event(7, "a-1", "Seen", r#"{"n": 1}"#)]);
    let mut worker = world.worker(&definition, 10);
    assert_eq!(world.run(&mut worker), Step::Idle);
    assert_eq!(
        serde_json::json!(world.rows("SELECT * FROM seen")),
        serde_json::json!([[
            {"n": 1}, null, "a-1", 7, "Seen", "00000000-0000-0000-0000-000000000007", 1007,
            "eu-west", "1970-01-01T00:00:00+00:00", 8
        ]])
    );
}

#[test]
fn what_is_not_json_is_the_handlers_failure_and_not_the_databases() {
    let Some(postgres) = shared() else { return };
    let mut definition = postgres.delays();
    definition.failure.policy = Policy::Skip;
    definition.failure.retries = 0;
    let good = flights(30);
    for data in ["no json", "", "\"\\u0000\"", "{\"minutes\": \"x\"}"] {
        let mut bad = good.clone();
        bad.push(event(100, "aircraft-1", "Seen", data));
        let world = World::new(&postgres, bad);
        let mut worker = world.worker(&definition, 1_000);
        assert_eq!(world.run(&mut worker), Step::Idle);
        assert_eq!(worker.status().checkpoint.skipped, 1, "{data}");
        assert_eq!(world.model(), straight(&postgres, &good));
    }
}

#[test]
fn the_databases_trouble_is_no_events_fault() {
    let Some(postgres) = shared() else { return };
    let good = flights(30);
    for (state, is_trouble) in [
        ("53100", true),  // its disk is full
        ("53200", true),  // its memory is
        ("40001", true),  // another transaction came first
        ("55P03", true),  // a lock was not to be had
        ("57014", true),  // it took too long
        ("42501", true),  // it is not allowed to
        ("22012", false), // divided by zero
        ("23514", false), // a check says no
        ("P0001", false), // a function says no
    ] {
        let mut definition = postgres.delays();
        definition.schema.push_str(&format!(
            "CREATE FUNCTION fail() RETURNS INT LANGUAGE plpgsql AS
             $$ BEGIN RAISE 'as it was told' USING ERRCODE = '{state}'; END $$;"
        ));
        let fail = "INSERT INTO delays VALUES ('x', 1, fail())";
        definition.on.insert("Failing".to_owned(), fail.to_owned());
        definition.failure.policy = Policy::Skip;
        definition.failure.retries = 0;
        let mut events = good.clone();
        events.push(event(100, "aircraft-1", "Failing", "{}"));
        let world = World::new(&postgres, events);
        let mut worker = world.worker(&definition, 10);
        while worker.step() == Step::More {}
        let status = worker.status();
        assert_eq!(status.doing == Doing::WaitingForSink, is_trouble, "{state}");
        if !is_trouble {
            assert_eq!(status.checkpoint.skipped, 1, "{state}");
        }
        assert_eq!(world.model(), straight(&postgres, &good));
    }
}

#[test]
fn a_constraint_that_waits_for_the_commit_still_names_its_event() {
    let Some(postgres) = shared() else { return };
    let mut definition = postgres.delays();
    definition.schema.push_str(
        "CREATE TABLE carriers (name TEXT PRIMARY KEY); INSERT INTO carriers VALUES ('AA');
        CREATE TABLE of_known (carrier TEXT REFERENCES carriers DEFERRABLE INITIALLY DEFERRED);",
    );
    definition.on.insert(
        "Cancelled".to_owned(),
        "INSERT INTO of_known VALUES (:data ->> 'carrier')".to_owned(),
    );
    definition.failure.policy = Policy::Skip;
    definition.failure.retries = 0;
    let events = flights(30);
    let is_ua = |it: &&Event| it.event_type == "Cancelled" && it.data.contains("UA");
    let unknown = events.iter().filter(is_ua).count();
    let world = World::new(&postgres, events);
    let mut worker = world.worker(&definition, 1_000);
    assert_eq!(world.run(&mut worker), Step::Idle);
    assert_eq!(worker.status().checkpoint.skipped, unknown as u64);
    assert!(unknown > 0);
}

#[test]
fn sql_that_would_not_do_is_refused_when_it_is_put() {
    let Some(postgres) = shared() else { return };
    let wrong = |definition: &Definition| match check_postgres(definition).unwrap_err() {
        CheckError::Definition(error) => error,
        other => panic!("{other}"),
    };
    let with = |statement: &str| {
        let mut definition = postgres.delays();
        definition
            .on
            .insert("Seen".to_owned(), statement.to_owned());
        wrong(&definition)
    };
    for sql in [
        "INSRT INTO delays",
        "DELETE FROM nothing",
        "SELECT 1",
        "COMMIT",
        "SET synchronous_commit = on",
        "DELETE FROM delays; DELETE FROM last_seen",
        "DELETE FROM delays RETURNING *",
        "INSERT INTO delays VALUES ('AA', 1, 1) ON CONFLICT (minutes) DO NOTHING",
        "INSERT INTO delays VALUES ('AA', 1, :data ->> 'minutes')",
        "",
    ] {
        let error = with(sql);
        assert!(
            matches!(error, DefinitionError::Sql { .. }),
            "{sql}: {error}"
        );
    }
    let error = with("DELETE FROM last_seen WHERE stream = :straem").to_string();
    assert!(error.contains("did you mean \":stream\"?"), "{error}");
    let error = with("DELETE FROM last_seen WHERE stream = $1");
    assert!(
        matches!(error, DefinitionError::Parameter { .. }),
        "{error}"
    );

    let with_schema = |sql: &str| {
        let mut definition = postgres.delays();
        definition.schema.push_str(sql);
        wrong(&definition)
    };
    let error = with_schema("CREATE TABLE meridian_checkpoint (a INTEGER)");
    assert!(matches!(error, DefinitionError::OwnTable { .. }), "{error}");
    for sql in [
        "COMMIT",
        "CREATE TABLE a (b INTEGER); END;",
        "CREATE TABLE delays (a INTEGER)",
        "nonsense",
    ] {
        let error = with_schema(sql);
        assert!(
            matches!(error, DefinitionError::Sql { .. }),
            "{sql}: {error}"
        );
    }
    let mut definition = postgres.delays();
    definition.sink = SinkKind::Postgres {
        url: "postgresql://me:s3cret@/db?host=/nowhere".to_owned(),
    };
    let error = check_postgres(&definition).unwrap_err();
    assert!(matches!(error, CheckError::Unavailable { .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
    // Nothing of all that is left.
    let world = World::new(&postgres, flights(3));
    let mut worker = world.worker(&postgres.delays(), 10);
    assert_eq!(world.run(&mut worker), Step::Idle);
    let left = world.rows("SELECT nspname FROM pg_namespace WHERE nspname LIKE '%scratch%' AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE nspname LIKE '%' || pid)");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_name_that_would_be_cut_is_refused() {
    let Some(postgres) = shared() else { return };
    let definition = postgres.delays();
    for name in ["x".repeat(64), String::new()] {
        let mut sink = PostgresSink::new(&postgres.url, &name, definition.clone());
        let error = sink.claim().unwrap_err().to_string();
        assert!(error.contains("no name for a schema"), "{error}");
    }
    let mut sink = PostgresSink::new(&postgres.url, &"x".repeat(63), definition);
    sink.claim().unwrap();
}

#[test]
fn a_server_that_is_down_is_waited_for() {
    let Some(server) = Server::start() else {
        return;
    };
    let postgres = Postgres { url: server.url() };
    let events = flights(60);
    let expected = straight(&postgres, &events);
    server.stop();
    let world = World::new(&postgres, events);
    let mut worker = world.worker(&postgres.delays(), 7);
    for _ in 0..3 {
        assert!(matches!(worker.step(), Step::Wait(_)));
        let status = worker.status();
        assert_eq!(status.doing, Doing::WaitingForSink);
        assert_eq!(status.checkpoint.applied, 0);
        let error = status.error.unwrap();
        assert!(error.contains("does not answer"), "{error}");
    }
    server.go_on();
    for _ in 0..3 {
        assert_eq!(worker.step(), Step::More);
    }
    // In the middle of it too.
    let applied = worker.status().checkpoint.applied;
    server.stop();
    assert!(matches!(worker.step(), Step::Wait(_)));
    assert_eq!(worker.status().doing, Doing::WaitingForSink);
    server.go_on();
    assert_eq!(worker.step(), Step::More);
    assert!(worker.status().checkpoint.applied > applied);
    assert_eq!(world.run(&mut worker), Step::Idle);
    assert_eq!(world.model(), expected);
}

#[test]
fn a_server_that_is_killed_again_and_again_leaves_nothing_out_and_takes_nothing_twice() {
    let Some(server) = Server::start() else {
        return;
    };
    let postgres = Postgres { url: server.url() };
    let events = flights(30_000);
    let expected = straight(&postgres, &events);
    let world = World::new(&postgres, events);
    let mut worker = world.worker(&postgres.delays(), 50);
    let (mut in_the_middle, mut taken_back, mut random) = (0, 0, 0x51D3_u64);
    for _ in 0..10 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let time = Duration::from_millis(10 + (random >> 33) % 120);
        let mut committed = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                server.pause(time);
                server.kill();
            });
            while worker.step() == Step::More {
                committed = worker.status().checkpoint.applied;
            }
        });
        in_the_middle += u32::from(worker.status().doing == Doing::WaitingForSink);
        server.go_on();
        while matches!(worker.step(), Step::Wait(_)) {}
        // What was committed may be gone, but rows and checkpoint alike.
        taken_back += u32::from(worker.status().checkpoint.applied < committed);
    }
    assert_eq!(world.run(&mut worker), Step::Idle);
    assert_eq!(world.model(), expected);
    eprintln!("of 10 kills {in_the_middle} were in the middle, {taken_back} took commits back");
    assert!(in_the_middle >= 5, "there was too little to do");
}

const MERGE: &str = "
    INSERT INTO delays AS d SELECT * FROM part.delays ON CONFLICT (carrier) DO UPDATE SET
        events = d.events + excluded.events, minutes = d.minutes + excluded.minutes;
    INSERT INTO last_seen SELECT * FROM part.last_seen;
";

// Two parts, by stream, each built by a worker of its own, and what they come to together.
struct Parts {
    url: String,
    whole: Schema,
    names: Vec<String>,
    expected: [support::Rows; 2],
}

impl Parts {
    fn built(postgres: &Postgres, definition: &Definition) -> Self {
        let whole = fresh_name();
        let events = flights(200);
        let of = |number: usize| {
            let events = events.iter().filter(|it| {
                let last = it.stream.bytes().next_back().unwrap_or_default();
                usize::from(last) / 2 % 2 == number
            });
            events.cloned().collect::<Vec<_>>()
        };
        let names = (0..2).map(|number| {
            let name = format!("{whole}.part-{number}");
            let mut world = World::new(postgres, of(number));
            world.room = Box::new(Schema {
                url: postgres.url.clone(),
                name: name.clone(),
            });
            let mut worker = world.worker(definition, 1_000);
            assert_eq!(world.run(&mut worker), Step::Idle);
            name
        });
        Self {
            url: postgres.url.clone(),
            names: names.collect(),
            whole: Schema {
                url: postgres.url.clone(),
                name: whole,
            },
            expected: straight(postgres, &events),
        }
    }

    fn merge(&self, definition: &Definition) -> Result<Checkpoint, SinkError> {
        let parts: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let upto = Checkpoint {
            through: meridian_clock::Timestamp(1_000_000),
            ..Checkpoint::default()
        };
        merge_postgres(&self.url, &self.whole.name, definition, &parts, upto)
    }

    fn rows(&self) -> [support::Rows; 2] {
        ["delays", "last_seen"].map(|table| {
            let query = Query {
                sql: format!("SELECT * FROM {table} ORDER BY 1"),
                params: serde_json::Map::new(),
            };
            let never: Now = std::sync::Arc::new(|| Duration::ZERO);
            self.whole
                .ask(&query, Limits::default(), &never)
                .unwrap()
                .rows
        })
    }

    // Which of the read model and its parts are there.
    fn there(&self) -> Vec<bool> {
        let all = std::iter::once(&self.whole.name).chain(&self.names);
        all.map(|name| is_made_postgres(&self.url, name).unwrap())
            .collect()
    }
}

fn with_merge(postgres: &Postgres, merge: &str) -> Definition {
    let mut definition = postgres.delays();
    definition.merge = Some(merge.to_owned());
    definition
}

#[test]
fn parts_are_put_together_once_and_removed() {
    let Some(postgres) = shared() else { return };
    let definition = with_merge(&postgres, MERGE);
    check_postgres(&definition).unwrap();
    let parts = Parts::built(&postgres, &definition);
    assert_eq!(parts.there(), [false, true, true]);
    let merged = parts.merge(&definition).unwrap();
    assert_eq!(parts.rows(), parts.expected);
    assert_eq!(parts.there(), [true, false, false]);
    // Its answer may have been lost.
    assert_eq!(parts.merge(&definition).unwrap(), merged);
    // A worker goes on from there, and its handlers find the tables that they need.
    let mut sink = parts.whole.sink(&definition);
    assert_eq!(sink.claim().unwrap(), merged);
}

#[test]
fn many_are_put_together_at_once() {
    let Some(postgres) = shared() else { return };
    let definition = with_merge(&postgres, MERGE);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let parts = Parts::built(&postgres, &definition);
                check_postgres(&definition).unwrap();
                parts.merge(&definition).unwrap();
                assert_eq!(parts.rows(), parts.expected);
            });
        }
    });
}

#[test]
fn rows_that_do_not_go_together_are_refused_and_nothing_is_left_of_them() {
    let Some(postgres) = shared() else { return };
    // Both parts have flights of the same carriers.
    let definition = postgres.delays();
    let parts = Parts::built(&postgres, &definition);
    let error = parts.merge(&definition).unwrap_err();
    assert!(
        matches!(&error, SinkError::Parts { reason } if reason.contains("delays_pkey")),
        "{error}"
    );
    assert_eq!(parts.there(), [false, true, true]);
    // In a fold by stream they have none in common.
    let mut by_stream = definition;
    by_stream.on.remove("Departed");
    let parts = Parts::built(&postgres, &by_stream);
    parts.merge(&by_stream).unwrap();
    assert_eq!(parts.rows()[1], parts.expected[1]);
    // What the database numbers has the same numbers in each part.
    let mut numbered = by_stream;
    numbered.schema += "CREATE TABLE numbered (id BIGSERIAL PRIMARY KEY);";
    let parts = Parts::built(&postgres, &numbered);
    let error = parts.merge(&numbered).unwrap_err();
    assert!(error.to_string().contains("numbered.id"), "{error}");
    // A merge that is changed after it was checked does not end the transaction.
    let ends = with_merge(&postgres, "COMMIT");
    let parts = Parts::built(&postgres, &ends);
    assert!(parts.merge(&ends).is_err());
    assert_eq!(parts.there(), [false, true, true]);
}

#[test]
fn parts_are_removed_by_what_their_names_begin_with() {
    let Some(postgres) = shared() else { return };
    let definition = postgres.delays();
    let parts = Parts::built(&postgres, &definition);
    let prefix = format!("{}.part-", parts.whole.name);
    remove_parts_postgres(&parts.url, &prefix, &[&parts.names[1]]).unwrap();
    assert_eq!(parts.there(), [false, false, true]);
    remove_parts_postgres(&parts.url, &prefix, &[]).unwrap();
    assert_eq!(parts.there(), [false, false, false]);
}

#[test]
fn a_merge_that_would_not_do_is_refused_when_it_is_put() {
    let Some(postgres) = shared() else { return };
    for merge in [
        "INSERT INTO delays SELECT * FROM part.nothing",
        "INSERT INTO delays SELECT carrier FROM part.delays ON CONFLICT (minutes) DO NOTHING",
        "INSERT INTO delays SELECT * FROM part.delays; COMMIT",
        "INSRT",
    ] {
        let error = check_postgres(&with_merge(&postgres, merge)).unwrap_err();
        assert!(
            matches!(
                &error,
                CheckError::Definition(DefinitionError::Sql { what, .. }) if what == "`merge`"
            ),
            "{merge}: {error}"
        );
    }
}

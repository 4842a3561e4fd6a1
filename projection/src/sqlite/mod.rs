//! Read models in SQLite files.
//!
//! `schema` checks a definition's SQL and compares tables, `query` answers questions; here rows are
//! written. A file is in WAL mode, so that queries and the one writer do not wait for each other.

mod diff;
mod merge;
mod query;
mod schema;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use meridian_clock::Timestamp;
use meridian_event::EventId;
use meridian_points::{Bug, planted, reached};
use rusqlite::types::{Null, ToSqlOutput, ValueRef};
use rusqlite::{
    CachedStatement, Connection, ErrorCode, OpenFlags, OptionalExtension, Row, ToSql, params,
};

use uuid::Uuid;

pub use diff::diff_sqlite;
pub use merge::{is_made_sqlite, merge_sqlite};
pub use schema::check as check_sqlite;

use crate::definition::Definition;
use crate::feed::FeedEvent;
use crate::parameter::Parameter;
use crate::program::{Projection, Rows};
use crate::recorded_at;
use crate::sink::{ApplyError, Batch, Checkpoint, Parked, ParkedKind, Sink, SinkError, Survives};

/// How long a writer waits for another one that holds the file.
const BUSY_FOR: Duration = Duration::from_secs(5);

const CHECKPOINT_TABLE: &str = "
    CREATE TABLE meridian_checkpoint (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        place TEXT NOT NULL,
        through TEXT NOT NULL,
        applied INTEGER NOT NULL,
        skipped INTEGER NOT NULL,
        sum INTEGER NOT NULL,
        fence INTEGER NOT NULL
    );
";

const PARKED_TABLE: &str = "
    CREATE TABLE meridian_parked (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        stream TEXT NOT NULL,
        revision INTEGER NOT NULL,
        event_id TEXT NOT NULL,
        event_type TEXT NOT NULL,
        region TEXT NOT NULL,
        data BLOB NOT NULL,
        metadata BLOB NOT NULL,
        reason TEXT NOT NULL,
        attempts INTEGER NOT NULL
    );
    CREATE INDEX meridian_parked_by_stream ON meridian_parked (stream, id);
";

// JSON is text for SQLite's functions; what is no text at all is given as bytes.
struct Text<'a>(&'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match str::from_utf8(self.0) {
            Ok(_) => ValueRef::Text(self.0),
            Err(_) => ValueRef::Blob(self.0),
        }))
    }
}

#[derive(Debug)]
struct Handler {
    sql: String,
    // In the order of SQLite's numbers for them, which begin with 1.
    parameters: Vec<Parameter>,
}

/// A read model in a SQLite file, written by one worker.
pub struct SqliteSink {
    path: PathBuf,
    definition: Definition,
    open: Option<Connection>,
    handlers: HashMap<String, Handler>,
    // In place of handlers.
    program: Option<Box<dyn Projection>>,
    fence: i64,
    // With a planted bug only: what should have been committed with its rows.
    late: Option<Checkpoint>,
}

impl fmt::Debug for SqliteSink {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("SqliteSink")
            .field("path", &self.path)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

impl SqliteSink {
    /// The read model of `definition` in the file at `path`. It is opened when it is claimed.
    pub fn new(path: &Path, definition: Definition) -> Self {
        Self {
            path: path.to_owned(),
            definition,
            open: None,
            handlers: HashMap::new(),
            program: None,
            fence: 0,
            late: None,
        }
    }

    /// The read model of a projection whose handlers are Rust, in the file at `path`. The worker is given
    /// the same definition.
    pub fn running(path: &Path, program: Box<dyn Projection>) -> Self {
        let mut sink = Self::new(path, program.definition());
        sink.program = Some(program);
        sink
    }

    // Moves the checkpoint, in the transaction.
    fn write(&self, checkpoint: &Checkpoint) -> Result<(), SinkError> {
        let connection = self.connection()?;
        let update = "UPDATE meridian_checkpoint SET place = ?1, through = ?2, applied = ?3, skipped = ?4, sum = ?5";
        connection
            .prepare_cached(update)
            .and_then(|mut statement| {
                statement.execute(params![
                    checkpoint.place.to_string(),
                    checkpoint.through.0.to_string(),
                    i64::try_from(checkpoint.applied).unwrap_or(i64::MAX),
                    i64::try_from(checkpoint.skipped).unwrap_or(i64::MAX),
                    checkpoint.sum(),
                ])
            })
            .map_err(SinkError::unavailable)?;
        Ok(())
    }

    fn connection(&self) -> Result<&Connection, SinkError> {
        self.open
            .as_ref()
            .ok_or_else(|| SinkError::unavailable("it is not open"))
    }
}

// Lets Rust deal with an event: all that it writes for it stands, or nothing.
fn run(
    program: &mut dyn Projection,
    connection: &Connection,
    event: &FeedEvent<'_>,
) -> Result<(), ApplyError> {
    let say = |sql: &str| {
        let said = connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]));
        said.map_err(SinkError::unavailable)
    };
    say("SAVEPOINT meridian_event")?;
    let Err(error) = program.handle(event, &Rows(connection)) else {
        say("RELEASE meridian_event")?;
        return Ok(());
    };
    if let Some(error) = error.downcast_ref().filter(|it| is_of_the_sink(it)) {
        return Err(SinkError::unavailable(error).into());
    }
    if !connection.is_autocommit() {
        say("ROLLBACK TO meridian_event")?;
        say("RELEASE meridian_event")?;
    }
    Err(ApplyError::Handler(error.to_string()))
}

/// Opens a read model for its writer.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_FOR)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A power cut may take the last commits back, rows and checkpoint alike; they are read again.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "cache_size", -65_536)?;
    connection.set_prepared_statement_cache_capacity(256);
    Ok(connection)
}

fn has_table(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1")?
        .exists([name])
}

/// The checkpoint of a read model, and whether it is as a worker wrote it.
fn load_checkpoint(connection: &Connection) -> Result<Checkpoint, SinkError> {
    let changed = SinkError::NoCheckpoint {
        what: "changed by hand",
    };
    if !has_table(connection, "meridian_checkpoint").map_err(SinkError::unavailable)? {
        return Err(SinkError::NoCheckpoint { what: "missing" });
    }
    let row = connection
        .prepare_cached("SELECT place, through, applied, skipped, sum FROM meridian_checkpoint")
        .and_then(|mut statement| {
            let read = |row: &Row<'_>| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, i64>(2)?,
                    row.get::<_, i64>(3)?,
                    row.get::<_, i64>(4)?,
                ))
            };
            statement.query_row([], read).optional()
        });
    let (place, through, applied, skipped, noted) = match row {
        Ok(Some(row)) => row,
        Ok(None) => return Err(SinkError::NoCheckpoint { what: "missing" }),
        Err(error) if is_of_the_sink(&error) => return Err(SinkError::unavailable(error)),
        Err(_) => return Err(changed),
    };
    let read = || {
        Some(Checkpoint {
            place: place.parse().ok()?,
            through: Timestamp(through.parse().ok()?),
            applied: applied.try_into().ok()?,
            skipped: skipped.try_into().ok()?,
        })
    };
    match read() {
        Some(checkpoint) if checkpoint.sum() == noted => Ok(checkpoint),
        _ => Err(changed),
    }
}

// Whether the error says that the database is in trouble, and not the statement.
fn is_of_the_sink(error: &rusqlite::Error) -> bool {
    let rusqlite::Error::SqliteFailure(failure, _) = error else {
        return false;
    };
    matches!(
        failure.code,
        ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::DatabaseCorrupt
            | ErrorCode::NotADatabase
            | ErrorCode::OutOfMemory
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::InternalMalfunction
    )
}

/// One transaction's events. A statement is looked up by its text once for all of them: that costs as much
/// as many a statement does.
struct SqliteBatch<'a> {
    connection: &'a Connection,
    handlers: &'a HashMap<String, Handler>,
    // Of the types that have come up.
    prepared: HashMap<&'a str, CachedStatement<'a>>,
    program: Option<&'a mut (dyn Projection + 'static)>,
}

impl Batch for SqliteBatch<'_> {
    fn apply(&mut self, event: &FeedEvent<'_>) -> Result<(), ApplyError> {
        if let Some(program) = &mut self.program {
            return run(&mut **program, self.connection, event);
        }
        let Some((event_type, handler)) = self.handlers.get_key_value(event.event_type) else {
            return Ok(());
        };
        let mut execute = || {
            let statement = match self.prepared.entry(event_type) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let statement = self.connection.prepare_cached(&handler.sql)?;
                    entry.insert(statement)
                }
            };
            for (parameter, number) in handler.parameters.iter().zip(1..) {
                bind(statement, number, *parameter, event)?;
            }
            statement.raw_execute()
        };
        match execute() {
            Ok(_) => Ok(()),
            Err(error) if is_of_the_sink(&error) => Err(SinkError::unavailable(error).into()),
            Err(error) => Err(ApplyError::Handler(error.to_string())),
        }
    }

    fn park(
        &mut self,
        event: &FeedEvent<'_>,
        kind: ParkedKind,
        reason: &str,
        attempts: u32,
    ) -> Result<(), SinkError> {
        let insert = "INSERT INTO meridian_parked (kind, key, stream, revision, event_id, event_type, region, data, metadata, reason, attempts)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
        self.connection
            .prepare_cached(insert)
            .and_then(|mut statement| {
                statement.execute(params![
                    kind.name(),
                    event.key.to_string(),
                    event.stream,
                    i64::try_from(event.revision).unwrap_or(i64::MAX),
                    event.id.to_string(),
                    event.event_type,
                    event.region,
                    event.data,
                    event.metadata,
                    reason,
                    attempts,
                ])
            })
            .map_err(SinkError::unavailable)?;
        Ok(())
    }
}

impl Sink for SqliteSink {
    fn claim(&mut self) -> Result<Checkpoint, SinkError> {
        self.open = None;
        let mut connection = open(&self.path).map_err(SinkError::unavailable)?;
        let transaction = connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(SinkError::unavailable)?;
        if !has_table(&transaction, "meridian_checkpoint").map_err(SinkError::unavailable)? {
            if let Some(table) =
                schema::first_table(&transaction).map_err(SinkError::unavailable)?
            {
                tracing::error!(path = %self.path.display(), table, "a read model without a checkpoint");
                return Err(SinkError::NoCheckpoint { what: "missing" });
            }
            let empty = Checkpoint::start(self.definition.tier);
            let made = transaction
                .execute_batch(CHECKPOINT_TABLE)
                .and_then(|()| transaction.execute_batch(PARKED_TABLE))
                .and_then(|()| transaction.execute_batch(&self.definition.schema))
                .and_then(|()| {
                    transaction.execute(
                        "INSERT INTO meridian_checkpoint VALUES (1, ?1, ?2, 0, 0, ?3, 0)",
                        params![
                            empty.place.to_string(),
                            empty.through.0.to_string(),
                            empty.sum()
                        ],
                    )
                });
            made.map_err(SinkError::unavailable)?;
        }
        schema::compare(&transaction, &self.definition.schema)?;
        let checkpoint = load_checkpoint(&transaction)?;
        let fence = transaction
            .query_row(
                "UPDATE meridian_checkpoint SET fence = fence + 1 RETURNING fence",
                [],
                |row| row.get(0),
            )
            .map_err(SinkError::unavailable)?;
        transaction.commit().map_err(SinkError::unavailable)?;
        if self.program.is_none() {
            self.handlers =
                schema::handlers(&connection, &self.definition).map_err(SinkError::unavailable)?;
        }
        self.fence = fence;
        self.open = Some(connection);
        Ok(checkpoint)
    }

    fn begin(&mut self) -> Result<(), SinkError> {
        let fence = self.fence;
        let connection = self.connection()?;
        connection
            .prepare_cached("BEGIN IMMEDIATE")
            .and_then(|mut statement| statement.execute([]))
            .map_err(SinkError::unavailable)?;
        let now: i64 = connection
            .prepare_cached("SELECT fence FROM meridian_checkpoint")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(SinkError::unavailable)?;
        if now != fence && !planted(Bug::ForgetFence) {
            reached("a fenced worker ended");
            self.rollback();
            return Err(SinkError::Fenced);
        }
        if let Some(late) = self.late.take() {
            self.write(&late)?;
        }
        Ok(())
    }

    fn batch(&mut self) -> Result<Box<dyn Batch + '_>, SinkError> {
        let open = self.open.as_ref();
        let connection = open.ok_or_else(|| SinkError::unavailable("it is not open"))?;
        Ok(Box::new(SqliteBatch {
            connection,
            handlers: &self.handlers,
            prepared: HashMap::new(),
            program: self.program.as_deref_mut(),
        }))
    }

    fn survives_failure(&self) -> Survives {
        // A statement may end the transaction itself, as `ON CONFLICT ROLLBACK` does.
        match &self.open {
            Some(connection) if !connection.is_autocommit() => Survives::Yes,
            _ => Survives::No,
        }
    }

    fn commit(&mut self, checkpoint: &Checkpoint) -> Result<(), SinkError> {
        let connection = self.connection()?;
        if planted(Bug::SplitCheckpoint) {
            connection
                .execute_batch("COMMIT")
                .map_err(SinkError::unavailable)?;
            self.late = Some(checkpoint.clone());
            return Ok(());
        }
        self.write(checkpoint)?;
        self.connection()?
            .prepare_cached("COMMIT")
            .and_then(|mut statement| statement.execute([]))
            .map_err(SinkError::unavailable)?;
        Ok(())
    }

    fn rollback(&mut self) {
        if let Some(connection) = &self.open
            && !connection.is_autocommit()
            && let Err(error) = connection.execute_batch("ROLLBACK")
        {
            tracing::warn!(%error, path = %self.path.display(), "a transaction cannot be undone; the file is opened again");
            self.open = None;
        }
    }

    fn unpark(&mut self, id: i64, reason: Option<&str>) -> Result<(), SinkError> {
        let connection = self.connection()?;
        match reason {
            None => connection.execute("DELETE FROM meridian_parked WHERE id = ?1", [id]),
            Some(reason) => connection.execute(
                "UPDATE meridian_parked SET kind = ?2, reason = ?3 WHERE id = ?1",
                params![id, ParkedKind::Skipped.name(), reason],
            ),
        }
        .map_err(SinkError::unavailable)?;
        Ok(())
    }

    fn failed_again(&mut self, id: i64, reason: &str) -> Result<(), SinkError> {
        let update = "UPDATE meridian_parked SET reason = ?2, attempts = attempts + 1,
            kind = CASE kind WHEN 'behind' THEN 'quarantined' ELSE kind END WHERE id = ?1";
        self.connection()?
            .execute(update, params![id, reason])
            .map_err(SinkError::unavailable)?;
        Ok(())
    }

    fn held_streams(&mut self) -> Result<Vec<String>, SinkError> {
        let select =
            "SELECT DISTINCT stream FROM meridian_parked WHERE kind IN ('quarantined', 'behind')";
        self.connection()?
            .prepare(select)
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
            .map_err(SinkError::unavailable)
    }

    fn parked(&mut self, id: i64) -> Result<Option<Parked>, SinkError> {
        let select = format!("SELECT {PARKED_COLUMNS} FROM meridian_parked WHERE id = ?1");
        self.connection()?
            .query_row(&select, [id], parked_of_row)
            .optional()
            .map_err(SinkError::unavailable)
    }

    fn parked_of(&mut self, stream: &str, limit: usize) -> Result<Vec<Parked>, SinkError> {
        let select = format!(
            "SELECT {PARKED_COLUMNS} FROM meridian_parked
             WHERE stream = ?1 AND kind IN ('quarantined', 'behind') ORDER BY id LIMIT ?2"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.connection()?
            .prepare(&select)
            .and_then(|mut statement| {
                let rows = statement.query_map(params![stream, limit], parked_of_row)?;
                rows.collect()
            })
            .map_err(SinkError::unavailable)
    }

    fn parked_count(&mut self) -> Result<u64, SinkError> {
        let select = "SELECT count(*) FROM meridian_parked WHERE kind <> 'skipped'";
        let count: i64 = self
            .connection()?
            .query_row(select, [], |row| row.get(0))
            .map_err(SinkError::unavailable)?;
        Ok(count.try_into().unwrap_or(0))
    }
}

/// The parked events of the read model in a file, in the order of parking, after number `after` and at
/// most `limit`; with those left out for good if `skipped`.
///
/// # Errors
/// When it cannot be read.
pub fn list_parked(
    path: &Path,
    after: i64,
    limit: usize,
    skipped: bool,
) -> Result<Vec<Parked>, SinkError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let select = format!(
        "SELECT {PARKED_COLUMNS} FROM meridian_parked
         WHERE id > ?1 AND (?2 OR kind <> 'skipped') ORDER BY id LIMIT ?3"
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let list = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_FOR)?;
        let mut statement = connection.prepare(&select)?;
        statement
            .query_map(params![after, skipped, limit], parked_of_row)?
            .collect::<rusqlite::Result<Vec<_>>>()
    };
    list().map_err(SinkError::unavailable)
}

const PARKED_COLUMNS: &str = "id, kind, key, stream, revision, event_id, event_type, region, data, metadata, reason, attempts";

fn parked_of_row(row: &Row<'_>) -> rusqlite::Result<Parked> {
    let kind: String = row.get(1)?;
    let key: String = row.get(2)?;
    let id: String = row.get(5)?;
    let id = id.parse().unwrap_or(Uuid::nil());
    Ok(Parked {
        id: row.get(0)?,
        kind: ParkedKind::of_name(&kind).unwrap_or(ParkedKind::DeadLetter),
        key: key.parse().unwrap_or_default(),
        stream: row.get(3)?,
        revision: row.get::<_, i64>(4)?.try_into().unwrap_or(0),
        event_id: EventId(id),
        event_type: row.get(6)?,
        region: row.get(7)?,
        data: row.get(8)?,
        metadata: row.get(9)?,
        reason: row.get(10)?,
        attempts: row.get(11)?,
    })
}

fn bind(
    statement: &mut rusqlite::Statement<'_>,
    number: usize,
    parameter: Parameter,
    event: &FeedEvent<'_>,
) -> rusqlite::Result<()> {
    match parameter {
        Parameter::Data => statement.raw_bind_parameter(number, Text(event.data)),
        Parameter::Metadata if event.metadata.is_empty() => {
            statement.raw_bind_parameter(number, Null)
        }
        Parameter::Metadata => statement.raw_bind_parameter(number, Text(event.metadata)),
        Parameter::Stream => statement.raw_bind_parameter(number, event.stream),
        Parameter::Revision => {
            statement.raw_bind_parameter(number, i64::try_from(event.revision).unwrap_or(i64::MAX))
        }
        Parameter::Type => statement.raw_bind_parameter(number, event.event_type),
        Parameter::Id => statement.raw_bind_parameter(number, event.id.to_string()),
        Parameter::Timestamp => {
            statement.raw_bind_parameter(number, event.key.timestamp.0.to_string())
        }
        Parameter::Region => statement.raw_bind_parameter(number, event.region),
        Parameter::RecordedAt => {
            statement.raw_bind_parameter(number, recorded_at(event.key.timestamp))
        }
    }
}

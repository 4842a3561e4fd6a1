//! Read models in PostgreSQL, each in a schema of its own.
//!
//! `session` is the connection and what its errors mean, `statement` finds parameters in SQL, `schema`
//! checks a definition's SQL and compares tables, `query` answers questions, `merge` puts parts together;
//! here rows are written.
//!
//! Always true: rows, parked events and checkpoint are one transaction, and whoever writes holds the
//! checkpoint's row and has compared its fence.

mod care;
mod merge;
mod query;
mod schema;
mod session;
mod statement;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use meridian_clock::Timestamp;
use meridian_event::EventId;
use meridian_points::reached;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

pub use care::{diff_postgres, list_parked_postgres, publish_postgres, remove_postgres};
pub use merge::{is_made_postgres, merge_postgres, remove_parts_postgres};
pub use schema::{CheckError, check as check_postgres};

pub(crate) use session::check_url;

use crate::definition::Definition;
use crate::feed::FeedEvent;
use crate::parameter::Parameter;
use crate::recorded_at;
use crate::sink::{ApplyError, Batch, Checkpoint, Parked, ParkedKind, Sink, SinkError, Survives};
use session::{Failure, Given, Session, quoted};

/// The longest name of a schema, in bytes. PostgreSQL cuts longer ones, which could then be the same.
const NAME_BYTES_MAX: usize = 63;

const OWN_TABLES: &str = "
    CREATE TABLE meridian_checkpoint (
        one SMALLINT PRIMARY KEY CHECK (one = 1),
        place TEXT NOT NULL,
        through TEXT NOT NULL,
        applied BIGINT NOT NULL,
        skipped BIGINT NOT NULL,
        sum BIGINT NOT NULL,
        fence BIGINT NOT NULL
    );
    CREATE TABLE meridian_parked (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        stream TEXT NOT NULL,
        revision BIGINT NOT NULL,
        event_id TEXT NOT NULL,
        event_type TEXT NOT NULL,
        region TEXT NOT NULL,
        data BYTEA NOT NULL,
        metadata BYTEA NOT NULL,
        reason TEXT NOT NULL,
        attempts BIGINT NOT NULL
    );
    CREATE INDEX meridian_parked_by_stream ON meridian_parked (stream, id);
";

#[derive(Debug)]
struct Handler {
    statement: Statement,
    // Behind `$1`, `$2` ….
    parameters: Vec<Parameter>,
}

struct Open {
    session: Session,
    handlers: HashMap<String, Handler>,
    fence: i64,
    read_fence: Statement,
    write_checkpoint: Statement,
    is_in_transaction: bool,
}

/// A read model in PostgreSQL, in a schema of its own, written by one worker.
///
/// Its handlers see `:data` and `:metadata` as `jsonb` (an event that is not JSON fails in a handler
/// that names them; no metadata is `NULL`), `:revision` as `bigint`, `:recorded_at` as `timestamptz`,
/// which PostgreSQL rounds to microseconds, and all else as `text`. PostgreSQL turns text into no other
/// type by itself: write `(:data ->> 'minutes')::int`.
///
/// There is no TLS to the database yet: connect over a Unix socket, or a network that is trusted. The
/// role needs `CREATE` on its database, and should be allowed nothing else.
///
/// It blocks. Call it from a thread that may, never from within an `async` task: it panics there.
pub struct PostgresSink {
    url: String,
    schema: String,
    definition: Definition,
    open: Option<Open>,
}

impl fmt::Debug for PostgresSink {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL has a password in it.
        out.debug_struct("PostgresSink")
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl PostgresSink {
    /// The read model of `definition` in `schema`, which no other read model may have. At most 63 bytes
    /// long. It is connected to when it is claimed.
    pub fn new(url: &str, schema: &str, definition: Definition) -> Self {
        Self {
            url: url.to_owned(),
            schema: schema.to_owned(),
            definition,
            open: None,
        }
    }

    fn open(&self) -> Result<&Open, SinkError> {
        self.open
            .as_ref()
            .ok_or_else(|| SinkError::unavailable("it is not connected"))
    }

    fn write(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<(), SinkError> {
        let written = self.open()?.session.write(sql, values);
        written.map(|_| ()).map_err(SinkError::unavailable)
    }

    fn read(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, SinkError> {
        let rows = self.open()?.session.read(sql, values);
        rows.map_err(SinkError::unavailable)
    }

    // Makes the read model where there is none. Whether it did.
    fn make(&self, session: &Session) -> Result<bool, SinkError> {
        if schema::has(session, &self.schema, "meridian_checkpoint")
            .map_err(SinkError::unavailable)?
        {
            return Ok(false);
        }
        if let Some(table) =
            schema::first_table(session, &self.schema).map_err(SinkError::unavailable)?
        {
            tracing::error!(schema = %self.schema, table, "a read model without a checkpoint");
            return Err(SinkError::NoCheckpoint { what: "missing" });
        }
        make_tables(session, &self.schema, &self.definition)?;
        insert_checkpoint(session, &Checkpoint::start(self.definition.tier))?;
        Ok(true)
    }
}

/// Makes the tables of a read model, in the transaction that the session is in.
fn make_tables(session: &Session, schema: &str, definition: &Definition) -> Result<(), SinkError> {
    session
        .run(&format!("CREATE SCHEMA IF NOT EXISTS {}", quoted(schema)))
        .and_then(|()| session.run(OWN_TABLES))
        .map_err(SinkError::unavailable)?;
    schema::run(session, &definition.schema)
}

/// Notes for the first time how far a read model has come.
fn insert_checkpoint(session: &Session, checkpoint: &Checkpoint) -> Result<(), SinkError> {
    let insert = "INSERT INTO meridian_checkpoint VALUES (1, $1, $2, $3, $4, $5, 0)";
    let values: [&(dyn ToSql + Sync); 5] = [
        &checkpoint.place.to_string(),
        &checkpoint.through.0.to_string(),
        &i64::try_from(checkpoint.applied).unwrap_or(i64::MAX),
        &i64::try_from(checkpoint.skipped).unwrap_or(i64::MAX),
        &checkpoint.sum(),
    ];
    let inserted = session.write(insert, &values);
    inserted.map(|_| ()).map_err(SinkError::unavailable)
}

/// A connection whose unqualified names are those of `schema`.
fn connect(url: &str, schema: &str) -> Result<Session, Failure> {
    let session = Session::connect(url, "meridian")?;
    session.run(&format!("SET search_path TO {}", quoted(schema)))?;
    Ok(session)
}

const CHECKPOINT_COLUMNS: &str = "place, through, applied, skipped, sum";

/// The checkpoint in a row that begins with [`CHECKPOINT_COLUMNS`], if a worker wrote it so.
fn checkpoint_of_row(row: &Row) -> Result<Checkpoint, SinkError> {
    let read = || {
        let checkpoint = Checkpoint {
            place: row.try_get::<_, String>(0).ok()?.parse().ok()?,
            through: Timestamp(row.try_get::<_, String>(1).ok()?.parse().ok()?),
            applied: row.try_get::<_, i64>(2).ok()?.try_into().ok()?,
            skipped: row.try_get::<_, i64>(3).ok()?.try_into().ok()?,
        };
        (checkpoint.sum() == row.try_get::<_, i64>(4).ok()?).then_some(checkpoint)
    };
    read().ok_or(SinkError::NoCheckpoint {
        what: "changed by hand",
    })
}

/// The one row of a checkpoint's table, or why there is none.
fn checkpoint_row(found: Result<Vec<Row>, Failure>) -> Result<Row, SinkError> {
    match found {
        Ok(rows) => rows
            .into_iter()
            .next()
            .ok_or(SinkError::NoCheckpoint { what: "missing" }),
        Err(failure) if failure.is_of_the_database() => Err(SinkError::unavailable(failure)),
        // It has other columns than ours.
        Err(_) => Err(SinkError::NoCheckpoint {
            what: "changed by hand",
        }),
    }
}

/// One transaction's events.
struct PostgresBatch<'a>(&'a PostgresSink);

impl Batch for PostgresBatch<'_> {
    fn apply(&mut self, event: &FeedEvent<'_>) -> Result<(), ApplyError> {
        let open = self.0.open()?;
        let Some(handler) = open.handlers.get(event.event_type) else {
            return Ok(());
        };
        let values = handler.parameters.iter();
        let values = values.map(|parameter| value(*parameter, event)).collect();
        match open.session.execute(&handler.statement, values) {
            Ok(_) => Ok(()),
            Err(failure) if failure.is_of_the_database() => {
                Err(SinkError::unavailable(failure).into())
            }
            Err(failure) => Err(ApplyError::Handler(failure.to_string())),
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
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
        self.0.write(
            insert,
            &[
                &kind.name(),
                &event.key.to_string(),
                &event.stream,
                &i64::try_from(event.revision).unwrap_or(i64::MAX),
                &event.id.to_string(),
                &event.event_type,
                &event.region,
                &event.data,
                &event.metadata,
                // No text of PostgreSQL's has a NUL, and a reason may come from elsewhere.
                &reason.replace('\0', "\u{fffd}"),
                &i64::from(attempts),
            ],
        )
    }
}

impl Sink for PostgresSink {
    fn claim(&mut self) -> Result<Checkpoint, SinkError> {
        self.open = None;
        if self.schema.is_empty() || self.schema.len() > NAME_BYTES_MAX {
            return Err(SinkError::unavailable(format!(
                "{:?} is no name for a schema; give it 1 to {NAME_BYTES_MAX} bytes",
                self.schema
            )));
        }
        let session = connect(&self.url, &self.schema).map_err(SinkError::unavailable)?;
        session
            .run("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            .map_err(SinkError::unavailable)?;
        if !self.make(&session)? {
            schema::compare(&session, &self.schema, &self.definition.schema)?;
        }
        // Waits for whoever writes now, and then sees what that one committed: not the checkpoint of
        // before, and not a commit that comes later.
        let raise = format!(
            "UPDATE meridian_checkpoint SET fence = fence + 1 RETURNING {CHECKPOINT_COLUMNS}, fence"
        );
        let row = checkpoint_row(session.read(&raise, &[]))?;
        let checkpoint = checkpoint_of_row(&row)?;
        let fence = row.try_get(5).map_err(SinkError::unavailable)?;
        let handlers = schema::handlers(&session, &self.definition)?;
        let write = "UPDATE meridian_checkpoint SET place = $1, through = $2, applied = $3, skipped = $4, sum = $5";
        let open = Open {
            handlers,
            fence,
            read_fence: session
                .prepare("SELECT fence FROM meridian_checkpoint FOR UPDATE", &[])
                .map_err(SinkError::unavailable)?,
            write_checkpoint: session
                .prepare(write, &[])
                .map_err(SinkError::unavailable)?,
            session,
            is_in_transaction: false,
        };
        open.session.run("COMMIT").map_err(SinkError::unavailable)?;
        self.open = Some(open);
        Ok(checkpoint)
    }

    fn begin(&mut self) -> Result<(), SinkError> {
        let Some(open) = &mut self.open else {
            return Err(SinkError::unavailable("it is not connected"));
        };
        open.is_in_transaction = true;
        // A constraint that waits for the commit would fail there, where nothing tells which event is
        // at fault.
        open.session
            .run("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET CONSTRAINTS ALL IMMEDIATE")
            .map_err(SinkError::unavailable)?;
        let row = open.session.first(&open.read_fence);
        let row = row.map_err(SinkError::unavailable)?;
        let now: Option<i64> = match row {
            Some(row) => row.try_get(0).map_err(SinkError::unavailable)?,
            None => None,
        };
        let Some(now) = now else {
            return Err(SinkError::NoCheckpoint { what: "missing" });
        };
        if now != open.fence {
            reached("a fenced worker ended");
            self.rollback();
            return Err(SinkError::Fenced);
        }
        Ok(())
    }

    fn batch(&mut self) -> Result<Box<dyn Batch + '_>, SinkError> {
        Ok(Box::new(PostgresBatch(self)))
    }

    fn survives_failure(&self) -> Survives {
        Survives::No
    }

    fn commit(&mut self, checkpoint: &Checkpoint) -> Result<(), SinkError> {
        let open = self.open()?;
        let values = [
            checkpoint.place.to_string(),
            checkpoint.through.0.to_string(),
            checkpoint.applied.to_string(),
            checkpoint.skipped.to_string(),
            checkpoint.sum().to_string(),
        ];
        let values = values.map(|value| Given(Some(Cow::Owned(value.into_bytes()))));
        // This fails where a statement has failed before. `COMMIT` would not: it would undo all, and
        // call that a success.
        let written = open.session.execute(&open.write_checkpoint, values.into());
        if written.map_err(SinkError::unavailable)? != 1 {
            return Err(SinkError::NoCheckpoint { what: "missing" });
        }
        open.session.run("COMMIT").map_err(SinkError::unavailable)?;
        if let Some(open) = &mut self.open {
            open.is_in_transaction = false;
        }
        Ok(())
    }

    fn rollback(&mut self) {
        if let Some(open) = &mut self.open
            && open.is_in_transaction
        {
            open.is_in_transaction = false;
            if let Err(error) = open.session.run("ROLLBACK") {
                // The server undoes it when the connection ends.
                tracing::debug!(%error, schema = %self.schema, "a transaction is left to end with its connection");
                self.open = None;
            }
        }
    }

    fn unpark(&mut self, id: i64, reason: Option<&str>) -> Result<(), SinkError> {
        match reason {
            None => self.write("DELETE FROM meridian_parked WHERE id = $1", &[&id]),
            Some(reason) => self.write(
                "UPDATE meridian_parked SET kind = $2, reason = $3 WHERE id = $1",
                &[
                    &id,
                    &ParkedKind::Skipped.name(),
                    &reason.replace('\0', "\u{fffd}"),
                ],
            ),
        }
    }

    fn failed_again(&mut self, id: i64, reason: &str) -> Result<(), SinkError> {
        let update = "UPDATE meridian_parked SET reason = $2, attempts = attempts + 1,
            kind = CASE kind WHEN 'behind' THEN 'quarantined' ELSE kind END WHERE id = $1";
        self.write(update, &[&id, &reason])
    }

    fn held_streams(&mut self) -> Result<Vec<String>, SinkError> {
        let select =
            "SELECT DISTINCT stream FROM meridian_parked WHERE kind IN ('quarantined', 'behind')";
        let rows = self.read(select, &[])?;
        let streams = rows.iter().map(|row| row.try_get(0));
        streams
            .collect::<Result<_, _>>()
            .map_err(SinkError::unavailable)
    }

    fn parked(&mut self, id: i64) -> Result<Option<Parked>, SinkError> {
        let select = format!("SELECT {PARKED_COLUMNS} FROM meridian_parked WHERE id = $1");
        let rows = self.read(&select, &[&id])?;
        rows.first()
            .map(parked_of_row)
            .transpose()
            .map_err(SinkError::unavailable)
    }

    fn parked_of(&mut self, stream: &str, limit: usize) -> Result<Vec<Parked>, SinkError> {
        let select = format!(
            "SELECT {PARKED_COLUMNS} FROM meridian_parked
             WHERE stream = $1 AND kind IN ('quarantined', 'behind') ORDER BY id LIMIT $2"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self.read(&select, &[&stream, &limit])?;
        let parked = rows.iter().map(parked_of_row);
        parked
            .collect::<Result<_, _>>()
            .map_err(SinkError::unavailable)
    }

    fn parked_count(&mut self) -> Result<u64, SinkError> {
        let select = "SELECT count(*) FROM meridian_parked WHERE kind <> 'skipped'";
        let rows = self.read(select, &[])?;
        let count: i64 = match rows.first() {
            Some(row) => row.try_get(0).map_err(SinkError::unavailable)?,
            None => 0,
        };
        Ok(count.try_into().unwrap_or(0))
    }
}

/// What is parked with an event, beside its number.
const PARKED_FIELDS: &str =
    "kind, key, stream, revision, event_id, event_type, region, data, metadata, reason, attempts";

const PARKED_COLUMNS: &str = "id, kind, key, stream, revision, event_id, event_type, region, data, metadata, reason, attempts";

fn parked_of_row(row: &Row) -> Result<Parked, tokio_postgres::Error> {
    let kind: String = row.try_get(1)?;
    let key: String = row.try_get(2)?;
    let id: String = row.try_get(5)?;
    Ok(Parked {
        id: row.try_get(0)?,
        kind: ParkedKind::of_name(&kind).unwrap_or(ParkedKind::DeadLetter),
        key: key.parse().unwrap_or_default(),
        stream: row.try_get(3)?,
        revision: row.try_get::<_, i64>(4)?.try_into().unwrap_or(0),
        event_id: EventId(id.parse().unwrap_or(Uuid::nil())),
        event_type: row.try_get(6)?,
        region: row.try_get(7)?,
        data: row.try_get(8)?,
        metadata: row.try_get(9)?,
        reason: row.try_get(10)?,
        attempts: row.try_get::<_, i64>(11)?.try_into().unwrap_or(u32::MAX),
    })
}

fn value<'e>(parameter: Parameter, event: &FeedEvent<'e>) -> Given<Cow<'e, [u8]>> {
    let owned = |text: String| Cow::Owned(text.into_bytes());
    Given(Some(match parameter {
        Parameter::Data => Cow::Borrowed(event.data),
        Parameter::Metadata if event.metadata.is_empty() => return Given(None),
        Parameter::Metadata => Cow::Borrowed(event.metadata),
        Parameter::Stream => Cow::Borrowed(event.stream.as_bytes()),
        Parameter::Revision => owned(event.revision.to_string()),
        Parameter::Type => Cow::Borrowed(event.event_type.as_bytes()),
        Parameter::Id => owned(event.id.to_string()),
        Parameter::Timestamp => owned(event.key.timestamp.0.to_string()),
        Parameter::Region => Cow::Borrowed(event.region.as_bytes()),
        Parameter::RecordedAt => owned(recorded_at(event.key.timestamp)),
    }))
}

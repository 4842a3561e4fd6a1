//! Questions to a SQLite file: they read only, and end in time.

use std::path::Path;
use std::sync::Arc;

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde_json::Number;

use super::{BUSY_FOR, load_checkpoint};
use crate::query::{Answer, Limits, Query, QueryError};
use crate::worker::Now;

/// How often SQLite asks whether time is up, in steps of its virtual machine.
const ASK_EVERY: i32 = 10_000;

impl Query {
    /// Asks the read model in the file at `path`.
    ///
    /// # Errors
    /// When it writes, takes too long, gives too much, or the file cannot be read.
    pub fn ask(&self, path: &Path, limits: Limits, now: &Now) -> Result<Answer, QueryError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(path, flags).map_err(QueryError::unavailable)?;
        connection
            .busy_timeout(BUSY_FOR)
            .map_err(QueryError::unavailable)?;
        // The checkpoint and the rows are of one moment.
        connection
            .execute_batch("BEGIN")
            .map_err(QueryError::unavailable)?;
        let checkpoint = load_checkpoint(&connection).map_err(QueryError::unavailable)?;
        let (until, now) = (now() + limits.time, Arc::clone(now));
        connection.progress_handler(ASK_EVERY, Some(move || now() >= until));
        connection.authorizer(Some(only_reading));
        self.rows(&connection, limits)
            .map(|(columns, rows)| Answer {
                columns,
                rows,
                checkpoint,
            })
    }

    fn rows(
        &self,
        connection: &Connection,
        limits: Limits,
    ) -> Result<(Vec<String>, Vec<Vec<serde_json::Value>>), QueryError> {
        let failed = |error: rusqlite::Error| match &error {
            rusqlite::Error::SqliteFailure(failure, _)
                if failure.code == ErrorCode::OperationInterrupted =>
            {
                QueryError::TooLong { limit: limits.time }
            }
            rusqlite::Error::SqlInputError { msg, .. } => QueryError::Refused {
                reason: msg.clone(),
            },
            rusqlite::Error::MultipleStatement => QueryError::Refused {
                reason: "it is more than one statement; ask one at a time".to_owned(),
            },
            _ => QueryError::Refused {
                reason: error.to_string(),
            },
        };
        let mut statement = connection.prepare(&self.sql).map_err(failed)?;
        if !statement.readonly() || statement.column_count() == 0 {
            return Err(QueryError::Refused {
                reason: "it does not read; a read model is written by its events only".to_owned(),
            });
        }
        let columns: Vec<String> = statement
            .column_names()
            .into_iter()
            .map(str::to_owned)
            .collect();
        for number in 1..=statement.parameter_count() {
            let name = statement.parameter_name(number).unwrap_or("?").to_owned();
            let Some(value) = self.params.get(name.get(1..).unwrap_or_default()) else {
                return Err(QueryError::Refused {
                    reason: format!(
                        "it names {name}, and `params` does not; give every parameter a name and a value"
                    ),
                });
            };
            statement
                .raw_bind_parameter(number, to_sqlite(value))
                .map_err(failed)?;
        }
        let width = columns.len();
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let mut found = statement.raw_query();
        while let Some(row) = found.next().map_err(failed)? {
            if rows.len() == limits.rows {
                return Err(QueryError::TooMuch {
                    limit: limits.rows,
                    what: "rows",
                });
            }
            let mut values = Vec::with_capacity(width);
            for column in 0..width {
                let value = row.get_ref(column).map_err(failed)?;
                bytes += weight(value);
                values.push(to_json(value));
            }
            if bytes > limits.bytes {
                return Err(QueryError::TooMuch {
                    limit: limits.bytes,
                    what: "bytes",
                });
            }
            rows.push(values);
        }
        Ok((columns, rows))
    }
}

fn only_reading(context: AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Select
        | AuthAction::Read { .. }
        | AuthAction::Function { .. }
        | AuthAction::Recursive => Authorization::Allow,
        _ => Authorization::Deny,
    }
}

fn weight(value: ValueRef<'_>) -> usize {
    match value {
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => 8,
        ValueRef::Text(text) => text.len() + 8,
        ValueRef::Blob(blob) => 2 * blob.len() + 8,
    }
}

pub(super) fn to_json(value: ValueRef<'_>) -> serde_json::Value {
    match value {
        ValueRef::Null => serde_json::Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => {
            Number::from_f64(number).map_or(serde_json::Value::Null, Into::into)
        }
        ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
        ValueRef::Blob(blob) => blob
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
            .into(),
    }
}

fn to_sqlite(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(truth) => Value::Integer((*truth).into()),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => Value::Integer(number),
            None => Value::Real(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::Text(text.clone()),
        other => Value::Text(other.to_string()),
    }
}

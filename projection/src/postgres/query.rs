//! Questions to a schema in PostgreSQL: they read only, and end in time.

use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt;
use serde_json::{Map, Value};
use tokio_postgres::Statement;
use tokio_postgres::types::Type;

use super::session::{Failure, Given, Session};
use super::statement::translate;
use super::{CHECKPOINT_COLUMNS, checkpoint_of_row, checkpoint_row};
use crate::query::{Answer, Limits, Query, QueryError};

/// What a question begins with.
const READS: [&str; 4] = ["select", "with", "values", "table"];
/// How much longer than the server the answer is waited for.
const GRACE: Duration = Duration::from_secs(5);

impl Query {
    /// Asks the read model in `schema` of the database at `url`.
    ///
    /// Values of `params` become what the statement wants in their place. In an answer `bytea` is given
    /// as lower-case hexadecimal digits, and all else as PostgreSQL's `row_to_json` gives it; cast a
    /// `numeric` to `text` if it has more digits than a number of JSON keeps.
    ///
    /// It blocks, as [`PostgresSink`](crate::PostgresSink) does.
    ///
    /// # Errors
    /// When it writes, takes too long, gives too much, or the database does not answer.
    pub fn ask_postgres(
        &self,
        url: &str,
        schema: &str,
        limits: Limits,
    ) -> Result<Answer, QueryError> {
        let refused = |reason: String| QueryError::Refused { reason };
        let translated = translate(&self.sql);
        if translated.verbs.len() > 1 {
            return Err(refused(
                "it is more than one statement; ask one at a time".to_owned(),
            ));
        }
        let verb = translated.verbs.first().map_or("", String::as_str);
        if !READS.contains(&verb) {
            return Err(refused(
                "it does not read; a read model is written by its events only".to_owned(),
            ));
        }
        let mut values = Vec::new();
        for name in &translated.names {
            let Some(value) = self.params.get(name) else {
                return Err(refused(format!(
                    "it names :{name}, and `params` does not; give every parameter a name and a value"
                )));
            };
            values.push(Given(to_text(value)));
        }
        if let Some(number) = &translated.numbered {
            return Err(refused(format!(
                "it names {number}, and `params` does not; give every parameter a name and a value"
            )));
        }

        let session = super::connect(url, schema).map_err(QueryError::unavailable)?;
        // The checkpoint and the rows are of one moment. Nothing in it can make it write again, since
        // the checkpoint is read first.
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = {}",
            limits.time.as_millis().clamp(1, 86_400_000)
        );
        session.run(&begin).map_err(QueryError::unavailable)?;
        let select = format!("SELECT {CHECKPOINT_COLUMNS} FROM meridian_checkpoint");
        let row = checkpoint_row(session.read(&select, &[])).map_err(QueryError::unavailable)?;
        let checkpoint = checkpoint_of_row(&row).map_err(QueryError::unavailable)?;

        let failed = |failure: Failure| of_failure(&failure, limits.time);
        // By itself first: what is put around it must not make one statement of its halves.
        let asked = session.prepare(&translated.sql, &[]).map_err(failed)?;
        if asked.columns().is_empty() {
            return Err(refused("it gives no columns".to_owned()));
        }
        let names: Vec<String> = (0..asked.columns().len())
            .map(|place| format!("c{place}"))
            .collect();
        let wrapped = format!(
            "SELECT row_to_json(meridian_rows)::text FROM (\n{}\n) AS meridian_rows ({}) LIMIT {}",
            translated.sql,
            names.join(", "),
            limits.rows.saturating_add(1).min(i64::MAX as usize)
        );
        let wrapped = session.prepare(&wrapped, asked.params()).map_err(failed)?;
        let texts = texts(&session, &wrapped, values, limits)?;
        let rows = texts.iter().map(|text| to_row(text, &asked, &names));
        let rows = rows.collect::<Result<_, _>>();
        let columns = asked.columns().iter();
        Ok(Answer {
            columns: columns.map(|column| column.name().to_owned()).collect(),
            rows: rows.map_err(QueryError::unavailable)?,
            checkpoint,
        })
    }
}

// The rows, as long as they are few and small enough. What is left then ends with the session.
fn texts(
    session: &Session,
    statement: &Statement,
    values: Vec<Given<String>>,
    limits: Limits,
) -> Result<Vec<String>, QueryError> {
    let asked = session.wait(limits.time + GRACE, async |client| {
        let mut found = pin!(client.query_raw(statement, values).await?);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some(row) = found.try_next().await? {
            let text: String = row.try_get(0)?;
            bytes += text.len();
            if rows.len() == limits.rows {
                return Ok(Err((limits.rows, "rows")));
            }
            if bytes > limits.bytes {
                return Ok(Err((limits.bytes, "bytes")));
            }
            rows.push(text);
        }
        Ok(Ok(rows))
    });
    asked
        .map_err(|failure| of_failure(&failure, limits.time))?
        .map_err(|(limit, what)| QueryError::TooMuch { limit, what })
}

fn of_failure(failure: &Failure, limit: Duration) -> QueryError {
    let state = failure.sqlstate().unwrap_or_default();
    match failure {
        Failure::Silent(_) => QueryError::TooLong { limit },
        _ if state == "57014" => QueryError::TooLong { limit },
        // It would write, which nothing in this transaction can.
        _ if state.starts_with("25") || !failure.is_of_the_database() => QueryError::Refused {
            reason: failure.to_string(),
        },
        _ => QueryError::unavailable(failure),
    }
}

fn to_row(
    text: &str,
    asked: &Statement,
    names: &[String],
) -> Result<Vec<Value>, serde_json::Error> {
    let mut row: Map<String, Value> = serde_json::from_str(text)?;
    let columns = asked.columns().iter().zip(names);
    let values = columns.map(|(column, name)| match row.remove(name) {
        Some(Value::String(text)) if *column.type_() == Type::BYTEA => {
            text.trim_start_matches("\\x").into()
        }
        found => found.unwrap_or_default(),
    });
    Ok(values.collect())
}

fn to_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

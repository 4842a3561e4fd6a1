//! One read model made of the parts that several workers built, each in a schema of its own.
//!
//! It is one transaction, from the tables to the removal of the parts: there is the whole read model and
//! no part, or all parts and no read model.

use std::collections::BTreeMap;
use std::time::Duration;

use super::schema::{check_schema, has};
use super::session::{Failure, Session, quoted};
use super::{
    CHECKPOINT_COLUMNS, PARKED_FIELDS, checkpoint_of_row, checkpoint_row, connect,
    insert_checkpoint, make_tables,
};
use crate::definition::{Definition, OWN_PREFIX};
use crate::sink::{Checkpoint, SinkError};

/// How long it may take to add the rows of one part.
const MERGED_WITHIN: Duration = Duration::from_secs(3_600);
/// The schema by whose name a definition's `merge` knows a part.
pub(super) const PART: &str = "part";
/// What holds while a schema has the name [`PART`], so that those who need it wait for each other.
pub(super) const LOCK_PART: &str =
    "SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock(7813577712044061)";

/// Makes the read model in `schema` of the parts in the schemas `parts`, and removes those, unless it is
/// there already. Together the parts hold all events up to `upto` and no others; that is the read model's
/// checkpoint, and what is returned with the counts of all parts.
///
/// It blocks, as [`PostgresSink`](crate::PostgresSink) does.
///
/// # Errors
/// [`SinkError::Parts`] when the rows of the parts do not go together: the definition's `merge` says how
/// they do. Otherwise when the database fails, or a part has no checkpoint that can be believed.
pub fn merge_postgres(
    url: &str,
    schema: &str,
    definition: &Definition,
    parts: &[&str],
    upto: Checkpoint,
) -> Result<Checkpoint, SinkError> {
    let session = connect(url, schema).map_err(SinkError::unavailable)?;
    // Who is told that it is made begins to write it, and forgets the parts: no crash may take it back.
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = on;
         SET LOCAL statement_timeout = '{}s'",
        MERGED_WITHIN.as_secs()
    );
    session.run(&begin).map_err(SinkError::unavailable)?;
    if has(&session, schema, "meridian_checkpoint").map_err(SinkError::unavailable)? {
        let select = format!("SELECT {CHECKPOINT_COLUMNS} FROM meridian_checkpoint");
        return checkpoint_of_row(&checkpoint_row(session.read(&select, &[]))?);
    }
    make_tables(&session, schema, definition)?;
    let mut whole = upto;
    for part in parts {
        // Its worker has ended, and one that was taken for dead must not write to it any more.
        let raise = format!(
            "UPDATE {}.meridian_checkpoint SET fence = fence + 1 RETURNING {CHECKPOINT_COLUMNS}",
            quoted(part)
        );
        let checkpoint = checkpoint_of_row(&checkpoint_row(session.read(&raise, &[]))?)?;
        whole.applied += checkpoint.applied;
        whole.skipped += checkpoint.skipped;
        add(&session, schema, definition, part)?;
    }
    insert_checkpoint(&session, &whole)?;
    session.run("COMMIT").map_err(SinkError::unavailable)?;
    Ok(whole)
}

/// Whether there is a whole read model in `schema`.
///
/// # Errors
/// When the database cannot be asked.
pub fn is_made_postgres(url: &str, schema: &str) -> Result<bool, SinkError> {
    connect(url, schema)
        .and_then(|session| has(&session, schema, "meridian_checkpoint"))
        .map_err(SinkError::unavailable)
}

/// Removes the schemas whose names begin with `prefix`, except those in `kept`.
///
/// # Errors
/// When one of them cannot be removed.
pub fn remove_parts_postgres(url: &str, prefix: &str, kept: &[&str]) -> Result<(), SinkError> {
    let remove = || {
        let session = connect(url, "pg_catalog")?;
        let select = "SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname, $1)";
        for row in session.read(select, &[&prefix])? {
            let name: String = row.try_get(0)?;
            if !kept.contains(&name.as_str()) {
                session.run(&format!("DROP SCHEMA IF EXISTS {} CASCADE", quoted(&name)))?;
            }
        }
        Ok(())
    };
    remove().map_err(|error: Failure| SinkError::unavailable(error))
}

// Adds the rows of one part and removes it.
fn add(
    session: &Session,
    schema: &str,
    definition: &Definition,
    part: &str,
) -> Result<(), SinkError> {
    let run = |sql: &str| {
        let ran = session.wait(MERGED_WITHIN, |client| client.batch_execute(sql));
        ran.map_err(|failure| match failure.is_of_the_database() {
            true => SinkError::unavailable(failure),
            false => SinkError::Parts {
                reason: failure.to_string(),
            },
        })
    };
    run(&format!(
        "INSERT INTO meridian_parked ({PARKED_FIELDS})
         SELECT {PARKED_FIELDS} FROM {}.meridian_parked ORDER BY id",
        quoted(part)
    ))?;
    let Some(merge) = &definition.merge else {
        for (table, columns) in copied(session, schema)? {
            let (table, columns) = (quoted(&table), columns.join(", "));
            run(&format!(
                "INSERT INTO {table} ({columns}) SELECT {columns} FROM {}.{table}",
                quoted(part)
            ))?;
        }
        return run(&format!("DROP SCHEMA {} CASCADE", quoted(part)));
    };
    check_schema("`merge`", merge).map_err(SinkError::unavailable)?;
    run(LOCK_PART)?;
    run(&format!("ALTER SCHEMA {} RENAME TO {PART}", quoted(part)))?;
    run(merge)?;
    run(&format!("DROP SCHEMA {PART} CASCADE"))
}

// The tables whose rows are taken over as they are, with the columns that are written.
fn copied(session: &Session, schema: &str) -> Result<BTreeMap<String, Vec<String>>, SinkError> {
    let select = "
        SELECT c.relname::text, a.attname::text, a.attgenerated::text <> '',
            a.attidentity::text <> ''
                OR coalesce(pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%', false)
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE n.nspname = $1::text AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        ORDER BY 1, a.attnum";
    let mut tables = BTreeMap::<String, Vec<String>>::new();
    let rows = session.read(select, &[&schema]);
    for row in rows.map_err(SinkError::unavailable)? {
        let read = || {
            Ok((
                row.try_get(0)?,
                row.try_get(1)?,
                row.try_get(2)?,
                row.try_get(3)?,
            ))
        };
        let (table, column, is_generated, is_numbered): (String, String, bool, bool) =
            read().map_err(|error: tokio_postgres::Error| SinkError::unavailable(error))?;
        if table.starts_with(OWN_PREFIX) || is_generated {
            continue;
        }
        if is_numbered {
            // The rows of all parts have the same numbers, and new ones would, too.
            return Err(SinkError::Parts {
                reason: format!("{table}.{column} is numbered by the database, in each part anew"),
            });
        }
        tables.entry(table).or_default().push(quoted(&column));
    }
    Ok(tables)
}

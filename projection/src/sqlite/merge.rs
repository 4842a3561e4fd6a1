//! One read model made of the parts that several workers built.

use std::path::Path;

use rusqlite::{Connection, params};

use super::schema::{quoted, tables};
use super::{CHECKPOINT_TABLE, PARKED_TABLE, has_table, load_checkpoint, open};
use crate::definition::{Definition, OWN_PREFIX};
use crate::sink::{Checkpoint, SinkError};

/// Makes the read model at `path` of the parts at `parts`, unless it is there already. Together the parts
/// hold all events up to `upto` and no others; that is the read model's checkpoint, and what is returned
/// with the counts of all parts. A file that an attempt before this one has left half made must be removed
/// before.
///
/// # Errors
/// [`SinkError::Parts`] when the rows of the parts do not go together: the definition's `merge` says how
/// they do. Otherwise when a part cannot be read.
pub fn merge_sqlite(
    path: &Path,
    definition: &Definition,
    parts: &[&Path],
    upto: Checkpoint,
) -> Result<Checkpoint, SinkError> {
    let mut merged = open(path).map_err(SinkError::unavailable)?;
    if has_table(&merged, "meridian_checkpoint").map_err(SinkError::unavailable)? {
        return load_checkpoint(&merged);
    }
    let mut whole = upto;
    merged
        .execute_batch(PARKED_TABLE)
        .and_then(|()| merged.execute_batch(&definition.schema))
        .map_err(SinkError::unavailable)?;
    for part in parts {
        let checkpoint = {
            let open = Connection::open(part).map_err(SinkError::unavailable)?;
            load_checkpoint(&open)?
        };
        whole.applied += checkpoint.applied;
        whole.skipped += checkpoint.skipped;
        add(&mut merged, definition, part).map_err(|error| SinkError::Parts {
            reason: error.to_string(),
        })?;
    }
    finish(&mut merged, &whole).map_err(SinkError::unavailable)?;
    Ok(whole)
}

/// Whether there is a whole read model at `path`.
///
/// # Errors
/// When the file cannot be read.
pub fn is_made_sqlite(path: &Path) -> Result<bool, SinkError> {
    Connection::open(path)
        .and_then(|open| has_table(&open, "meridian_checkpoint"))
        .map_err(SinkError::unavailable)
}

// Adds the rows of one part.
fn add(merged: &mut Connection, definition: &Definition, part: &Path) -> rusqlite::Result<()> {
    const COLUMNS: &str = "kind, key, stream, revision, event_id, event_type, region, data, metadata, reason, attempts";
    merged.execute("ATTACH ?1 AS part", [part.to_string_lossy()])?;
    let transaction = merged.transaction()?;
    transaction.execute_batch(&format!(
        "INSERT INTO main.meridian_parked ({COLUMNS})
         SELECT {COLUMNS} FROM part.meridian_parked ORDER BY id"
    ))?;
    match &definition.merge {
        Some(merge) => transaction.execute_batch(merge)?,
        None => {
            let all = tables(&transaction)?.into_keys();
            for table in all.filter(|name| !name.starts_with(OWN_PREFIX)) {
                let name = quoted(&table);
                transaction.execute_batch(&format!(
                    "INSERT INTO main.{name} SELECT * FROM part.{name}"
                ))?;
            }
        }
    }
    transaction.commit()?;
    merged.execute_batch("DETACH part")
}

// The checkpoint's table comes last: without it the file is half made.
fn finish(merged: &mut Connection, checkpoint: &Checkpoint) -> rusqlite::Result<()> {
    let transaction = merged.transaction()?;
    transaction.execute_batch(CHECKPOINT_TABLE)?;
    transaction.execute(
        "INSERT INTO meridian_checkpoint VALUES (1, ?1, ?2, ?3, ?4, ?5, 0)",
        params![
            checkpoint.place.to_string(),
            checkpoint.through.0.to_string(),
            i64::try_from(checkpoint.applied).unwrap_or(i64::MAX),
            i64::try_from(checkpoint.skipped).unwrap_or(i64::MAX),
            checkpoint.sum(),
        ],
    )?;
    transaction.commit()
}

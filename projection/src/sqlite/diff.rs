//! Two read models compared row by row.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, Row};

use super::query::to_json;
use super::schema::{Column, quoted, tables};
use crate::diff::TableDiff;
use crate::sink::SinkError;

/// Compares all tables of the read models in two files, which no worker moves meanwhile, and lists at
/// most `examples_max` rows of each kind.
///
/// # Errors
/// When one of them cannot be read.
pub fn diff_sqlite(
    one: &Path,
    other: &Path,
    examples_max: usize,
) -> Result<Vec<TableDiff>, SinkError> {
    compare(one, other, examples_max).map_err(SinkError::unavailable)
}

fn compare(one: &Path, other: &Path, examples_max: usize) -> rusqlite::Result<Vec<TableDiff>> {
    let mut found = Vec::new();
    for path in [one, other] {
        let open = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut tables = tables(&open)?;
        tables.retain(|name, _| !name.starts_with(crate::definition::OWN_PREFIX));
        found.push(tables);
    }
    let both = Connection::open_in_memory()?;
    for (name, path) in [("one", one), ("other", other)] {
        let path = path.to_string_lossy();
        both.execute(&format!("ATTACH ?1 AS {name}"), [&*path])?;
    }
    both.execute_batch("PRAGMA query_only = ON; BEGIN")?;
    let names: BTreeSet<&String> = found.iter().flat_map(|tables| tables.keys()).collect();
    let diffs = names
        .into_iter()
        .map(|table| match (found[0].get(table), found[1].get(table)) {
            (Some(a), Some(b)) if a == b => compare_table(&both, table, a, examples_max),
            (Some(_), Some(_)) => Ok(TableDiff::incomparable(table, "its columns differ")),
            (Some(_), None) => Ok(TableDiff::only_in_one(table)),
            _ => Ok(TableDiff::only_in_other(table)),
        });
    diffs.collect()
}

fn compare_table(
    both: &Connection,
    table: &str,
    columns: &[Column],
    examples_max: usize,
) -> rusqlite::Result<TableDiff> {
    let name = quoted(table);
    let count = |from: &str| -> rusqlite::Result<u64> {
        let count: i64 = both.query_row(&format!("SELECT count(*) FROM {from}"), [], |row| {
            row.get(0)
        })?;
        Ok(count.try_into().unwrap_or(0))
    };
    let mut diff = TableDiff {
        table: table.to_owned(),
        rows: [
            count(&format!("one.{name}"))?,
            count(&format!("other.{name}"))?,
        ],
        ..TableDiff::default()
    };
    for (side, (a, b)) in [("one", "other"), ("other", "one")].into_iter().enumerate() {
        let only = format!("SELECT * FROM {a}.{name} EXCEPT SELECT * FROM {b}.{name}");
        diff.only_in[side] = count(&format!("({only})"))?;
        if diff.only_in[side] > 0 {
            let mut some = both.prepare(&format!("{only} LIMIT ?1"))?;
            let values = |row: &Row<'_>| {
                (0..columns.len())
                    .map(|column| Ok(to_json(row.get_ref(column)?)))
                    .collect()
            };
            let limit = i64::try_from(examples_max).unwrap_or(i64::MAX);
            diff.examples[side] = some
                .query_map([limit], values)?
                .collect::<rusqlite::Result<_>>()?;
        }
    }
    Ok(diff)
}

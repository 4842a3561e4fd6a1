//! What is done with whole read models in PostgreSQL: listed, compared, shown to others, removed.

use std::collections::BTreeSet;

use tokio_postgres::Row;

use super::schema::{Column, tables};
use super::session::{Failure, Session, quoted};
use super::{PARKED_COLUMNS, connect, parked_of_row};
use crate::definition::OWN_PREFIX;
use crate::diff::TableDiff;
use crate::sink::{Parked, SinkError};

/// The parked events of the read model in `schema`, in the order of parking, after number `after` and at
/// most `limit`; with those left out for good if `skipped`.
///
/// # Errors
/// When it cannot be read.
pub fn list_parked_postgres(
    url: &str,
    schema: &str,
    after: i64,
    limit: usize,
    skipped: bool,
) -> Result<Vec<Parked>, SinkError> {
    let select = format!(
        "SELECT {PARKED_COLUMNS} FROM meridian_parked
         WHERE id > $1 AND ($2 OR kind <> 'skipped') ORDER BY id LIMIT $3"
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let session = connect(url, schema).map_err(SinkError::unavailable)?;
    let rows = session
        .read(&select, &[&after, &skipped, &limit])
        .map_err(SinkError::unavailable)?;
    let parked = rows.iter().map(parked_of_row);
    parked
        .collect::<Result<_, _>>()
        .map_err(SinkError::unavailable)
}

/// Removes the read model in `schema`, if it is there.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_postgres(url: &str, schema: &str) -> Result<(), SinkError> {
    let session = connect(url, "pg_catalog").map_err(SinkError::unavailable)?;
    session
        .run(&format!("DROP SCHEMA IF EXISTS {} CASCADE", quoted(schema)))
        .map_err(SinkError::unavailable)
}

/// Shows the tables of the read model in `schema` to others as views in the schema `views`, all at once
/// in place of those of the read model that was shown before.
///
/// # Errors
/// When they cannot be made. What was shown before still is then.
pub fn publish_postgres(url: &str, schema: &str, views: &str) -> Result<(), SinkError> {
    let publish = || {
        let session = connect(url, "pg_catalog")?;
        session.run(&format!(
            "BEGIN; CREATE SCHEMA IF NOT EXISTS {}",
            quoted(views)
        ))?;
        let old = session.read(
            "SELECT viewname::text FROM pg_views WHERE schemaname = $1",
            &[&views],
        )?;
        for row in &old {
            let view: String = row.try_get(0)?;
            session.run(&format!(
                "DROP VIEW {}.{} CASCADE",
                quoted(views),
                quoted(&view)
            ))?;
        }
        for table in own_tables(&session, schema)? {
            let name = quoted(&table);
            session.run(&format!(
                "CREATE VIEW {}.{name} AS SELECT * FROM {}.{name}",
                quoted(views),
                quoted(schema)
            ))?;
        }
        session.run("COMMIT")
    };
    publish().map_err(|error: Failure| SinkError::unavailable(error))
}

fn own_tables(session: &Session, schema: &str) -> Result<Vec<String>, Failure> {
    let tables = tables(session, schema)?.into_keys();
    Ok(tables
        .filter(|name| !name.starts_with(OWN_PREFIX))
        .collect())
}

/// Compares all tables of two read models in schemas of one database, which no worker moves meanwhile, and
/// lists at most `examples_max` rows of each kind.
///
/// # Errors
/// When one of them cannot be read.
pub fn diff_postgres(
    url: &str,
    schemas: [&str; 2],
    examples_max: usize,
) -> Result<Vec<TableDiff>, SinkError> {
    let compare = || {
        let session = connect(url, "pg_catalog")?;
        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        let found = [tables(&session, schemas[0])?, tables(&session, schemas[1])?];
        let names: BTreeSet<&String> = found
            .iter()
            .flat_map(|tables| tables.keys())
            .filter(|name| !name.starts_with(OWN_PREFIX))
            .collect();
        let diffs =
            names
                .into_iter()
                .map(|table| match (found[0].get(table), found[1].get(table)) {
                    (Some(a), Some(b)) if a == b => {
                        compare_table(&session, schemas, table, a, examples_max)
                    }
                    (Some(_), Some(_)) => Ok(TableDiff::incomparable(table, "its columns differ")),
                    (Some(_), None) => Ok(TableDiff::only_in_one(table)),
                    _ => Ok(TableDiff::only_in_other(table)),
                });
        diffs.collect::<Result<Vec<_>, Failure>>()
    };
    compare().map_err(|error: Failure| SinkError::unavailable(error))
}

fn compare_table(
    session: &Session,
    schemas: [&str; 2],
    table: &str,
    columns: &[Column],
    examples_max: usize,
) -> Result<TableDiff, Failure> {
    let [one, other] = schemas.map(|schema| format!("{}.{}", quoted(schema), quoted(table)));
    let count = |from: &str| -> Result<u64, Failure> {
        let rows = session.read(&format!("SELECT count(*) FROM {from}"), &[])?;
        let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
        Ok(count.try_into().unwrap_or(0))
    };
    let mut diff = TableDiff {
        table: table.to_owned(),
        rows: [count(&one)?, count(&other)?],
        ..TableDiff::default()
    };
    for (side, (a, b)) in [(&one, &other), (&other, &one)].into_iter().enumerate() {
        let only = format!("SELECT * FROM {a} EXCEPT SELECT * FROM {b}");
        diff.only_in[side] = count(&format!("({only}) AS differing"))?;
        if diff.only_in[side] > 0 {
            let values = columns
                .iter()
                .map(|column| quoted(&column.name))
                .collect::<Vec<_>>()
                .join(", ");
            let some = format!(
                "SELECT json_build_array({values})::text FROM ({only}) AS differing LIMIT {examples_max}"
            );
            let rows = session.read(&some, &[])?;
            let values = rows.iter().map(|row: &Row| row.try_get::<_, String>(0));
            let values = values.collect::<Result<Vec<_>, _>>()?;
            diff.examples[side] = values
                .iter()
                .map(|text| serde_json::from_str(text).unwrap_or_default())
                .collect();
        }
    }
    Ok(diff)
}

//! Where a read model's rows are, whichever database that is.

use std::path::{Path, PathBuf};

use meridian_projection::{
    Answer, Definition, Limits, Now, Parked, PostgresSink, Query, QueryError, Sink, SinkError,
    SinkKind, SqliteSink, TableDiff, diff_postgres, diff_sqlite, list_parked, list_parked_postgres,
    publish_postgres, remove_postgres,
};

use super::ProjectionError;
use super::shelf::{model_path, remove_model};

/// The longest name of a schema that PostgreSQL does not cut.
const SCHEMA_BYTES_MAX: usize = 63;
/// What a read model's number adds to the name of its schema, at most.
const NUMBER_BYTES: usize = 11;

/// Where a read model's rows are.
#[derive(Clone)]
pub(super) enum Location {
    /// In a file.
    Sqlite(PathBuf),
    /// In a schema of a database.
    Postgres {
        url: String,
        schema: String,
        // The schema of the views that show the active one.
        views: String,
    },
}

// Two regions may well use one database.
fn views_schema(name: &str, region: &str) -> String {
    format!("{name}@{region}")
}

/// Refuses a definition whose read models would have no place.
///
/// # Errors
/// When the name of their schema would be too long.
pub(super) fn check(definition: &Definition, region: &str) -> Result<(), ProjectionError> {
    let SinkKind::Postgres { .. } = &definition.sink else {
        return Ok(());
    };
    let schema = views_schema(&definition.name, region);
    match schema.len() + NUMBER_BYTES <= SCHEMA_BYTES_MAX {
        true => Ok(()),
        false => Err(ProjectionError::Conflict(format!(
            "the schema {schema:?} has a name that is too long for PostgreSQL; give the projection a shorter name"
        ))),
    }
}

impl Location {
    pub(super) fn of(folder: &Path, region: &str, number: u32, definition: &Definition) -> Self {
        match &definition.sink {
            SinkKind::Sqlite => Self::Sqlite(model_path(folder, number)),
            SinkKind::Postgres { url } => {
                let views = views_schema(&definition.name, region);
                Self::Postgres {
                    url: url.clone(),
                    schema: format!("{views}-{number}"),
                    views,
                }
            }
        }
    }

    pub(super) fn sink(&self, definition: &Definition) -> Box<dyn Sink> {
        match self {
            Self::Sqlite(path) => Box::new(SqliteSink::new(path, definition.clone())),
            Self::Postgres { url, schema, .. } => {
                Box::new(PostgresSink::new(url, schema, definition.clone()))
            }
        }
    }

    pub(super) fn ask(&self, query: &Query, now: &Now) -> Result<Answer, QueryError> {
        match self {
            Self::Sqlite(path) => query.ask(path, Limits::default(), now),
            Self::Postgres { url, schema, .. } => {
                query.ask_postgres(url, schema, Limits::default())
            }
        }
    }

    pub(super) fn parked(
        &self,
        after: i64,
        limit: usize,
        skipped: bool,
    ) -> Result<Vec<Parked>, SinkError> {
        match self {
            Self::Sqlite(path) => list_parked(path, after, limit, skipped),
            Self::Postgres { url, schema, .. } => {
                list_parked_postgres(url, schema, after, limit, skipped)
            }
        }
    }

    /// Compares what is here with what is there; `None` when they are in different databases.
    pub(super) fn diff(
        &self,
        other: &Self,
        examples_max: usize,
    ) -> Result<Option<Vec<TableDiff>>, SinkError> {
        match (self, other) {
            (Self::Sqlite(one), Self::Sqlite(two)) => diff_sqlite(one, two, examples_max).map(Some),
            (
                Self::Postgres { url, schema, .. },
                Self::Postgres {
                    url: other_url,
                    schema: other_schema,
                    ..
                },
            ) if url == other_url => {
                diff_postgres(url, [schema, other_schema], examples_max).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Shows it to those who ask the database itself.
    pub(super) fn publish(&self) -> Result<(), SinkError> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres { url, schema, views } => publish_postgres(url, schema, views),
        }
    }

    /// Removes it. What cannot be removed stays, and says so.
    pub(super) fn remove(&self, folder: &Path, number: u32) {
        match self {
            Self::Sqlite(_) => remove_model(folder, number),
            Self::Postgres { url, schema, .. } => {
                if let Err(error) = remove_postgres(url, schema) {
                    tracing::warn!(schema, %error, "a read model that is not needed any more cannot be removed; drop its schema");
                }
            }
        }
    }
}

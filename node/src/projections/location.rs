//! Where a read model's rows are, whichever database that is.

use std::path::{Path, PathBuf};

use meridian_projection::{
    Answer, Checkpoint, Definition, Division, Limits, Now, Parked, PostgresSink, Query, QueryError,
    Sink, SinkError, SinkKind, SqliteSink, TableDiff, diff_postgres, diff_sqlite, is_made_postgres,
    is_made_sqlite, list_parked, list_parked_postgres, merge_postgres, merge_sqlite,
    publish_postgres, remove_parts_postgres, remove_postgres,
};

use super::ProjectionError;
use super::shelf::{model_path, remove_file_of_sqlite, remove_files_but, remove_model};

/// The longest name of a schema that PostgreSQL does not cut.
const SCHEMA_BYTES_MAX: usize = 63;
/// What a read model's number adds to the name of its schema, at most.
const NUMBER_BYTES: usize = 11;
/// What the name of a part adds to that, at most: the one of the last of 64 by hash.
const PART_BYTES: usize = PART.len() + "hash-64-63".len();
/// What the name of a part has behind that of its read model.
const PART: &str = ".part-";

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
    let part = match definition.workers.count {
        0 | 1 => 0,
        _ => PART_BYTES,
    };
    match schema.len() + NUMBER_BYTES + part <= SCHEMA_BYTES_MAX {
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

    /// The parts that its workers build by themselves. What another number of workers, or another division,
    /// has begun has other names, so that no worker goes on with it.
    pub(super) fn parts(&self, definition: &Definition) -> Vec<Self> {
        let count = definition.workers.count;
        let by = match definition.workers.by {
            Division::Hash => "hash",
            Division::Time => "time",
        };
        let part = |number: u16| {
            let name = format!("{PART}{by}-{count}-{number}");
            match self {
                Self::Sqlite(path) => {
                    let mut path = path.clone().into_os_string();
                    path.push(name);
                    Self::Sqlite(path.into())
                }
                Self::Postgres { url, schema, views } => Self::Postgres {
                    url: url.clone(),
                    schema: schema.clone() + &name,
                    views: views.clone(),
                },
            }
        };
        (0..count).map(part).collect()
    }

    /// Whether there is a whole read model here.
    pub(super) fn is_made(&self) -> Result<bool, SinkError> {
        match self {
            Self::Sqlite(path) => is_made_sqlite(path),
            Self::Postgres { url, schema, .. } => is_made_postgres(url, schema),
        }
    }

    /// Makes it of `parts`, unless it is there already.
    pub(super) fn merge(
        &self,
        definition: &Definition,
        parts: &[Self],
        upto: Checkpoint,
    ) -> Result<Checkpoint, SinkError> {
        match self {
            Self::Sqlite(path) => {
                // What an attempt before this one has left is half made.
                if !is_made_sqlite(path)? {
                    remove_file_of_sqlite(path);
                }
                let parts = parts.iter().filter_map(|part| match part {
                    Self::Sqlite(path) => Some(path.as_path()),
                    Self::Postgres { .. } => None,
                });
                merge_sqlite(path, definition, &parts.collect::<Vec<_>>(), upto)
            }
            Self::Postgres { url, schema, .. } => {
                let parts = parts.iter().filter_map(Self::schema).collect::<Vec<_>>();
                merge_postgres(url, schema, definition, &parts, upto)
            }
        }
    }

    fn schema(&self) -> Option<&str> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres { schema, .. } => Some(schema),
        }
    }

    /// Removes what was begun of it, unless it is whole: nothing, in a database that makes it at once.
    pub(super) fn remove_half_made(&self) {
        if let Self::Sqlite(path) = self {
            remove_file_of_sqlite(path);
        }
    }

    /// Removes the parts of it, except `kept`.
    pub(super) fn remove_parts(&self, kept: &[Self]) -> Result<(), SinkError> {
        match self {
            Self::Sqlite(path) => {
                let name = |path: &Path| {
                    let name = path.file_name().unwrap_or_default();
                    name.to_string_lossy().into_owned()
                };
                let kept = kept.iter().filter_map(|part| match part {
                    Self::Sqlite(path) => Some(name(path)),
                    Self::Postgres { .. } => None,
                });
                let folder = path.parent().unwrap_or(Path::new(""));
                let prefix = name(path) + PART;
                remove_files_but(folder, &prefix, &kept.collect::<Vec<_>>());
                Ok(())
            }
            Self::Postgres { url, schema, .. } => {
                let kept = kept.iter().filter_map(Self::schema).collect::<Vec<_>>();
                remove_parts_postgres(url, &format!("{schema}{PART}"), &kept)
            }
        }
    }

    /// Removes it. What cannot be removed stays, and says so.
    pub(super) fn remove(&self, folder: &Path, number: u32) {
        match self {
            Self::Sqlite(_) => remove_model(folder, number),
            Self::Postgres { url, schema, .. } => {
                let removed = self
                    .remove_parts(&[])
                    .and_then(|()| remove_postgres(url, schema));
                if let Err(error) = removed {
                    tracing::warn!(schema, %error, "a read model that is not needed any more cannot be removed; drop its schema");
                }
            }
        }
    }
}

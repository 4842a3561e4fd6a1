//! What a definition's SQL makes, and whether a file has it already.

use std::collections::{BTreeMap, HashMap};

use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use super::Handler;
use crate::definition::{Definition, DefinitionError, OWN_PREFIX, PARAMETERS, nearest};
use crate::parameter::Parameter;
use crate::sink::SinkError;

/// Checks all SQL of a definition against an empty database.
///
/// # Errors
/// When it is not accepted, or names what no event has.
pub fn check(definition: &Definition) -> Result<(), DefinitionError> {
    let scratch = scratch(&definition.schema).map_err(|error| sql("`schema`", &error))?;
    let tables = tables(&scratch).map_err(|error| sql("`schema`", &error))?;
    if let Some(table) = tables.keys().find(|name| name.starts_with(OWN_PREFIX)) {
        return Err(DefinitionError::OwnTable {
            table: table.clone(),
        });
    }
    refuse_what_is_not_for_handlers(&scratch);
    for (event_type, text) in &definition.on {
        check_statement(&scratch, event_type, text)?;
    }
    let Some(merge) = &definition.merge else {
        return Ok(());
    };
    scratch.authorizer(None::<fn(AuthContext<'_>) -> Authorization>);
    let part = scratch
        .execute_batch("ATTACH ':memory:' AS part")
        .and_then(|()| {
            for (table, made) in &tables {
                let columns: Vec<_> = made.iter().map(|it| quoted(&it.name)).collect();
                let make = format!(
                    "CREATE TABLE part.{} ({})",
                    quoted(table),
                    columns.join(", ")
                );
                scratch.execute_batch(&make)?;
            }
            refuse_what_is_not_for_handlers(&scratch);
            scratch.execute_batch(merge)
        });
    part.map_err(|error| sql("`merge`", &error))
}

fn sql(what: &str, error: &rusqlite::Error) -> DefinitionError {
    DefinitionError::Sql {
        what: what.to_owned(),
        reason: match error {
            rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
            other => other.to_string(),
        },
    }
}

fn check_statement(
    scratch: &Connection,
    event_type: &str,
    text: &str,
) -> Result<(), DefinitionError> {
    let what = || format!("the handler on {event_type:?}");
    let refused = |reason: &str| DefinitionError::Sql {
        what: what(),
        reason: reason.to_owned(),
    };
    let statement = scratch.prepare(text).map_err(|error| match error {
        rusqlite::Error::MultipleStatement => refused(
            "it is more than one statement; an event is handled by one, so that it is applied as a whole or not at all",
        ),
        other => sql(&what(), &other),
    })?;
    if statement.column_count() > 0 || statement.readonly() {
        return Err(refused(
            "it writes nothing; a handler inserts, updates or deletes rows",
        ));
    }
    for number in 1..=statement.parameter_count() {
        let name = statement.parameter_name(number).unwrap_or("?");
        if name
            .strip_prefix(':')
            .and_then(Parameter::of_name)
            .is_none()
        {
            return Err(DefinitionError::Parameter {
                event_type: event_type.to_owned(),
                parameter: name.to_owned(),
                nearest: nearest(name.trim_start_matches(':'), PARAMETERS)
                    .map(|it| format!(":{it}")),
            });
        }
    }
    Ok(())
}

fn refuse_what_is_not_for_handlers(connection: &Connection) {
    connection.authorizer(Some(|context: AuthContext<'_>| match context.action {
        AuthAction::Attach { .. }
        | AuthAction::Detach { .. }
        | AuthAction::Pragma { .. }
        | AuthAction::Transaction { .. }
        | AuthAction::Savepoint { .. } => Authorization::Deny,
        _ => Authorization::Allow,
    }));
}

/// The statements of a definition with what they need of an event.
pub(super) fn handlers(
    connection: &Connection,
    definition: &Definition,
) -> rusqlite::Result<HashMap<String, Handler>> {
    let mut handlers = HashMap::new();
    for (event_type, text) in &definition.on {
        let statement = connection.prepare_cached(text)?;
        let names =
            (1..=statement.parameter_count()).map(|number| statement.parameter_name(number));
        let parameters = names.map(|name| Parameter::of_name(name?.strip_prefix(':')?));
        let parameters: Option<Vec<_>> = parameters.collect();
        let handler = Handler {
            sql: text.clone(),
            parameters: parameters.ok_or_else(|| {
                rusqlite::Error::InvalidParameterName(format!("in the handler on {event_type:?}"))
            })?,
        };
        handlers.insert(event_type.clone(), handler);
    }
    Ok(handlers)
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    declared: String,
    not_null: bool,
    key: i64,
}

fn scratch(schema: &str) -> rusqlite::Result<Connection> {
    let scratch = Connection::open_in_memory()?;
    refuse_what_is_not_for_handlers(&scratch);
    scratch.execute_batch(schema)?;
    scratch.authorizer(None::<fn(AuthContext<'_>) -> Authorization>);
    Ok(scratch)
}

/// The tables that are not the engine's own, with their columns.
pub(super) fn tables(connection: &Connection) -> rusqlite::Result<BTreeMap<String, Vec<Column>>> {
    let mut names = connection.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name",
    )?;
    let names: Vec<String> = names
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut tables = BTreeMap::new();
    for name in names {
        let mut columns =
            connection.prepare("SELECT name, type, \"notnull\", pk FROM pragma_table_info(?1)")?;
        let columns = columns.query_map([&name], |row| {
            Ok(Column {
                name: row.get(0)?,
                declared: row.get(1)?,
                not_null: row.get(2)?,
                key: row.get(3)?,
            })
        })?;
        let columns = columns.collect::<Result<_, _>>()?;
        tables.insert(name, columns);
    }
    Ok(tables)
}

/// The name of some table, if there is any.
pub(super) fn first_table(connection: &Connection) -> rusqlite::Result<Option<String>> {
    Ok(tables(connection)?.into_keys().next())
}

/// Refuses a file whose tables are not those that the schema makes.
pub(super) fn compare(connection: &Connection, schema: &str) -> Result<(), SinkError> {
    let wanted = scratch(schema)
        .and_then(|scratch| tables(&scratch))
        .map_err(SinkError::unavailable)?;
    let found = tables(connection).map_err(SinkError::unavailable)?;
    for (table, columns) in wanted {
        if found.get(&table) != Some(&columns) {
            return Err(SinkError::OtherSchema {
                what: format!("table {table:?}"),
            });
        }
    }
    Ok(())
}

/// A name as SQL quotes it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

//! What a definition's SQL makes, and whether a schema has it already.

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::types::Type;

use super::Handler;
use super::merge::{LOCK_PART, PART};
use super::session::{Failure, Given, Session, quoted};
use super::statement::{Translated, translate};
use crate::definition::{Definition, DefinitionError, OWN_PREFIX, PARAMETERS, SinkKind, nearest};
use crate::parameter::Parameter;
use crate::sink::SinkError;

/// What a handler's statement begins with.
const WRITES: [&str; 5] = ["insert", "update", "delete", "merge", "with"];
/// What would end the transaction that a schema is made in, or outlive it.
const NOT_FOR_SCHEMAS: [&str; 15] = [
    "abort",
    "begin",
    "commit",
    "copy",
    "discard",
    "end",
    "listen",
    "prepare",
    "release",
    "reset",
    "rollback",
    "savepoint",
    "set",
    "start",
    "unlisten",
];

/// Why a definition was not found to be right.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The definition is wrong. Its owner corrects it.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// Its database cannot be asked, so nothing is known of its SQL. Ask again later.
    #[error("the definition cannot be checked, since the database does not answer: {reason}")]
    Unavailable {
        /// What it says.
        reason: String,
    },
}

impl CheckError {
    fn of(what: impl FnOnce() -> String) -> impl FnOnce(Failure) -> Self {
        move |failure| match failure.is_of_the_database() {
            true => Self::Unavailable {
                reason: failure.to_string(),
            },
            false => Self::Definition(DefinitionError::Sql {
                what: what(),
                reason: failure.to_string(),
            }),
        }
    }
}

/// Checks all SQL of a definition in its database, and leaves nothing there.
///
/// It blocks, as [`PostgresSink`](crate::PostgresSink) does.
///
/// # Errors
/// [`CheckError::Definition`] when its sink is no PostgreSQL, or the SQL is not accepted or names what
/// no event has; [`CheckError::Unavailable`] when the database cannot be asked.
pub fn check(definition: &Definition) -> Result<(), CheckError> {
    let wrong = |reason: &str| {
        CheckError::Definition(DefinitionError::Sink {
            reason: reason.to_owned(),
        })
    };
    let SinkKind::Postgres { url } = &definition.sink else {
        return Err(wrong("its rows do not go to PostgreSQL"));
    };
    super::check_url(url).map_err(|reason| wrong(&reason))?;
    check_schema("`schema`", &definition.schema)?;
    let unavailable = |failure: Failure| CheckError::Unavailable {
        reason: failure.to_string(),
    };
    // Whatever happens, the transaction ends with the session, and is undone.
    let session = super::connect(url, "pg_catalog").map_err(unavailable)?;
    session.run("BEGIN").map_err(unavailable)?;
    let scratch = make_scratch(&session).map_err(unavailable)?;
    session
        .run(&definition.schema)
        .map_err(CheckError::of(|| "`schema`".to_owned()))?;
    let tables = tables(&session, &scratch).map_err(unavailable)?;
    if let Some(table) = tables.keys().find(|name| name.starts_with(OWN_PREFIX)) {
        let table = table.clone();
        return Err(DefinitionError::OwnTable { table }.into());
    }
    for (event_type, text) in &definition.on {
        let what = || format!("the handler on {event_type:?}");
        prepare(&session, event_type, text)?;
        // A statement is only planned when it runs, and until then it may name a conflict that no
        // index finds.
        let (translated, parameters) = parameters(event_type, text)?;
        let explain = format!("EXPLAIN {}", translated.sql);
        let nothing = parameters.iter().map(|_| Given(None)).collect();
        let explained = session
            .prepare(&explain, &types(&parameters))
            .and_then(|statement| session.execute(&statement, nothing));
        explained.map_err(CheckError::of(what))?;
    }
    let Some(merge) = &definition.merge else {
        return Ok(());
    };
    check_schema("`merge`", merge)?;
    let of_merge = || CheckError::of(|| "`merge`".to_owned());
    session.run(LOCK_PART).map_err(of_merge())?;
    session
        .run(&format!("CREATE SCHEMA {PART}"))
        .map_err(of_merge())?;
    for table in tables.keys().map(|name| quoted(name)) {
        session
            .run(&format!("CREATE TABLE {PART}.{table} (LIKE {table})"))
            .map_err(unavailable)?;
    }
    session.run(merge).map_err(of_merge())
}

/// Refuses SQL that would end the transaction that it is run in, or outlive it.
pub(super) fn check_schema(what: &str, text: &str) -> Result<(), DefinitionError> {
    let verbs = translate(text).verbs;
    let is_refused = |verb: &&String| NOT_FOR_SCHEMAS.contains(&verb.as_str());
    match verbs.iter().find(is_refused) {
        Some(verb) => Err(DefinitionError::Sql {
            what: what.to_owned(),
            reason: format!(
                "it has a statement that begins with {}; it is run in one transaction with others",
                verb.to_uppercase()
            ),
        }),
        None => Ok(()),
    }
}

/// Runs a definition's schema where the session is.
pub(super) fn run(session: &Session, text: &str) -> Result<(), SinkError> {
    check_schema("`schema`", text).map_err(SinkError::unavailable)?;
    session.run(text).map_err(SinkError::unavailable)
}

// What PostgreSQL would be asked to run for an event, and with what.
fn parameters(
    event_type: &str,
    text: &str,
) -> Result<(Translated, Vec<Parameter>), DefinitionError> {
    let refused = |reason: &str| DefinitionError::Sql {
        what: format!("the handler on {event_type:?}"),
        reason: reason.to_owned(),
    };
    let unknown = |parameter: String, name: &str| DefinitionError::Parameter {
        event_type: event_type.to_owned(),
        parameter,
        nearest: nearest(name, PARAMETERS).map(|it| format!(":{it}")),
    };
    let translated = translate(text);
    if translated.verbs.len() > 1 {
        return Err(refused(
            "it is more than one statement; an event is handled by one, so that it is applied as a whole or not at all",
        ));
    }
    if let Some(number) = &translated.numbered {
        return Err(unknown(number.clone(), ""));
    }
    let of_name =
        |name: &String| Parameter::of_name(name).ok_or_else(|| unknown(format!(":{name}"), name));
    let parameters = translated.names.iter().map(of_name);
    let parameters = parameters.collect::<Result<_, _>>()?;
    Ok((translated, parameters))
}

fn types(parameters: &[Parameter]) -> Vec<Type> {
    let of = |parameter: &Parameter| match parameter {
        Parameter::Data | Parameter::Metadata => Type::JSONB,
        Parameter::Revision => Type::INT8,
        Parameter::RecordedAt => Type::TIMESTAMPTZ,
        Parameter::Stream
        | Parameter::Type
        | Parameter::Id
        | Parameter::Timestamp
        | Parameter::Region => Type::TEXT,
    };
    parameters.iter().map(of).collect()
}

fn prepare(session: &Session, event_type: &str, text: &str) -> Result<Handler, CheckError> {
    let what = || format!("the handler on {event_type:?}");
    let (translated, parameters) = parameters(event_type, text)?;
    let verb = translated.verbs.first().map_or("", String::as_str);
    let writes_nothing = || DefinitionError::Sql {
        what: what(),
        reason: "it writes nothing; a handler inserts, updates or deletes rows".to_owned(),
    };
    let statement = session
        .prepare(&translated.sql, &types(&parameters))
        .map_err(CheckError::of(what))?;
    // After PostgreSQL has seen it: a word that it does not know is no statement at all.
    if !WRITES.contains(&verb) || !statement.columns().is_empty() {
        return Err(writes_nothing().into());
    }
    Ok(Handler {
        statement,
        parameters,
    })
}

/// The statements of a definition with what they need of an event.
pub(super) fn handlers(
    session: &Session,
    definition: &Definition,
) -> Result<HashMap<String, Handler>, SinkError> {
    let mut handlers = HashMap::new();
    for (event_type, text) in &definition.on {
        let handler = prepare(session, event_type, text).map_err(SinkError::unavailable)?;
        handlers.insert(event_type.clone(), handler);
    }
    Ok(handlers)
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    declared: String,
    not_null: bool,
    is_key: bool,
}

// The tables in a schema with their columns. Types of that schema have no prefix while it is the one
// that names are looked up in.
pub(super) fn tables(
    session: &Session,
    schema: &str,
) -> Result<BTreeMap<String, Vec<Column>>, Failure> {
    let select = "
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
            coalesce(a.attnum = ANY (i.indkey), false)
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary
        WHERE n.nspname = $1::text AND c.relkind IN ('r', 'p')
        ORDER BY 1, a.attnum";
    let mut tables = BTreeMap::<String, Vec<Column>>::new();
    for row in session.read(select, &[&schema])? {
        let column = Column {
            name: row.try_get(1)?,
            declared: row.try_get(2)?,
            not_null: row.try_get(3)?,
            is_key: row.try_get(4)?,
        };
        tables.entry(row.try_get(0)?).or_default().push(column);
    }
    Ok(tables)
}

/// Whether there is a table of that name in a schema.
pub(super) fn has(session: &Session, schema: &str, table: &str) -> Result<bool, Failure> {
    Ok(first(session, schema, Some(table))?.is_some())
}

/// The name of something that has rows in a schema, if there is any.
pub(super) fn first_table(session: &Session, schema: &str) -> Result<Option<String>, Failure> {
    first(session, schema, None)
}

fn first(session: &Session, schema: &str, name: Option<&str>) -> Result<Option<String>, Failure> {
    let select = "
        SELECT c.relname FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1::text AND ($2::text IS NULL OR c.relname = $2::text)
            AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        ORDER BY 1 LIMIT 1";
    let rows = session.read(select, &[&schema, &name])?;
    Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
}

// A schema in which a definition's tables are made only to look at them: its transaction is undone.
fn make_scratch(session: &Session) -> Result<String, Failure> {
    let rows = session.read("SELECT pg_backend_pid()", &[])?;
    let pid: i32 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
    // No two sessions have the same, so that none waits for another.
    let name = format!("meridian_scratch_{pid}");
    session.run(&format!(
        "CREATE SCHEMA {name}; SET LOCAL search_path TO {name}"
    ))?;
    Ok(name)
}

/// Refuses a schema whose tables are not those that the definition makes. In a transaction, which sees
/// nothing of it afterwards.
pub(super) fn compare(session: &Session, schema: &str, wanted: &str) -> Result<(), SinkError> {
    let unavailable = |failure: Failure| SinkError::unavailable(failure);
    let found = tables(session, schema).map_err(unavailable)?;
    session.run("SAVEPOINT before").map_err(unavailable)?;
    let scratch = make_scratch(session).map_err(unavailable)?;
    run(session, wanted)?;
    let wanted = tables(session, &scratch).map_err(unavailable)?;
    session
        .run("ROLLBACK TO before; RELEASE before")
        .map_err(unavailable)?;
    for (table, columns) in wanted {
        if found.get(&table) != Some(&columns) {
            return Err(SinkError::OtherSchema {
                what: format!("table {table:?}"),
            });
        }
    }
    Ok(())
}

//! One connection that never waits without end, and what its errors mean.

use std::error::Error as _;
use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::config::{Config, SslMode};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};
use tokio_postgres::{Client, NoTls, Row, Statement};

/// How long it may take until a connection stands.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long an answer is waited for; longer than what the server allows itself, see [`SETTINGS`].
const ANSWER_WITHIN: Duration = Duration::from_secs(90);

/// What holds for all that is said on a connection.
///
/// `synchronous_commit`: a crash of the server may take the last commits back, rows and checkpoint
/// alike, and their events are read again; waiting for its disk at every commit would gain nothing.
/// The timeouts end what is stuck, on the server's side too: a worker that vanished in the middle of a
/// transaction does not hold the checkpoint's row for ever.
const SETTINGS: &str = "
    SET synchronous_commit = off;
    SET statement_timeout = '60s';
    SET lock_timeout = '10s';
    SET idle_in_transaction_session_timeout = '60s';
    SET standard_conforming_strings = on;
    SET client_min_messages = warning;
    SET TimeZone = 'UTC';
    SET DateStyle = 'ISO';
";

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{}", in_words(.0))]
    Database(#[from] tokio_postgres::Error),
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("{0}")]
    Url(String),
    #[error("no connection can be made: {0}")]
    Runtime(#[from] io::Error),
}

fn in_words(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        let mut words = format!("{} (SQLSTATE {})", error.message(), error.code().code());
        if let Some(hint) = error.hint() {
            let _ = write!(words, "; {hint}");
        }
        return words;
    }
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let _ = write!(words, ": {inner}");
        cause = inner.source();
    }
    words
}

impl Failure {
    /// PostgreSQL's five characters for what is wrong, if it was PostgreSQL that said so.
    pub(super) fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Database(error) => Some(error.as_db_error()?.code().code()),
            _ => None,
        }
    }

    /// Whether the database is in trouble, and not the statement.
    pub(super) fn is_of_the_database(&self) -> bool {
        let Some(state) = self.sqlstate() else {
            return true;
        };
        // A lacking privilege is the operator's to grant; no event is at fault.
        state == "42501"
            || [
                "08", // no connection
                "25", // the transaction is over, or the server is a standby
                "26", // a prepared statement is gone, as behind some poolers
                "28", // not let in
                "3D", // no such database
                "40", // lost against another transaction
                "53", // out of memory, disk or connections
                "55", // waited too long for a lock
                "57", // cancelled, or the server shuts down
                "58", // its disk fails
                "F0", // its configuration
                "XX", // its own bug, or its files are damaged
            ]
            .contains(&state.get(..2).unwrap_or_default())
    }
}

/// Puts what `value` gives for NAME in place of each `${NAME}`, so that a definition, which every region
/// and every reader of the log sees, need not say a password or where a region's database is.
fn expand(url: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = url;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after
            .split_once('}')
            .ok_or("`url` has a ${ without its }; write ${NAME}")?;
        let value = value(name).ok_or_else(|| {
            format!("`url` asks for the environment variable {name}, which this node was not started with; set it, and start the node again")
        })?;
        expanded.push_str(before);
        expanded.push_str(&value);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Checks a URL as far as that can be done anywhere: what `${NAME}` stands for is not known.
pub(crate) fn check_url(url: &str) -> Result<(), String> {
    parse_url(&expand(url, |_| Some("any".to_owned()))?).map(|_| ())
}

/// Reads a URL. The reason for refusing one says nothing of what is in it.
fn parse_url(url: &str) -> Result<Config, String> {
    const SHAPE: &str = "write postgresql://user:password@host:5432/database, with %-codes for what is special in a password, or postgresql:///database?host=/folder/of/the/socket";
    if !url.starts_with("postgresql://") && !url.starts_with("postgres://") {
        return Err(format!("`url` does not begin with postgresql://; {SHAPE}"));
    }
    let config: Config = url
        .parse()
        .map_err(|_| format!("`url` cannot be read; {SHAPE}"))?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(format!("`url` names no host; {SHAPE}"));
    }
    if config.get_ssl_mode() == SslMode::Require {
        return Err("`url` asks for TLS, which connections to a database do not have yet; leave `sslmode` out, and let it go over a network that is trusted".to_owned());
    }
    Ok(config)
}

/// A value in PostgreSQL's text form, which the server reads as whatever type it wants there.
#[derive(Debug)]
pub(super) struct Given<T>(pub(super) Option<T>);

impl<T: AsRef<[u8]> + std::fmt::Debug> ToSql for Given<T> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let Some(value) = &self.0 else {
            return Ok(IsNull::Yes);
        };
        out.put_slice(value.as_ref());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    fn to_sql_checked(
        &self,
        wanted: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.to_sql(wanted, out)
    }
}

/// One connection, with a runtime of its own that turns only while something is asked.
pub(super) struct Session {
    // `None` only while it is dropped.
    runtime: Option<Runtime>,
    client: Client,
}

impl Drop for Session {
    fn drop(&mut self) {
        // The socket closes with it, and the server undoes what was not committed. To wait for that is
        // neither needed nor allowed where this may be dropped.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Session {
    pub(super) fn connect(url: &str, who: &str) -> Result<Self, Failure> {
        let mut config = expand(url, |name| std::env::var(name).ok())
            .and_then(|url| parse_url(&url))
            .map_err(Failure::Url)?;
        config.application_name(who);
        config.connect_timeout(CONNECT_WITHIN);
        config.tcp_user_timeout(ANSWER_WITHIN);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let connected = runtime
            .block_on(async { tokio::time::timeout(CONNECT_WITHIN, config.connect(NoTls)).await });
        let (client, connection) = connected.map_err(|_| Failure::Silent(CONNECT_WITHIN))??;
        runtime.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %in_words(&error), "a connection to a database ended");
            }
        });
        let session = Self {
            runtime: Some(runtime),
            client,
        };
        session.run(SETTINGS)?;
        Ok(session)
    }

    /// Waits for what `ask` asks, but not for ever.
    pub(super) fn wait<'a, T, F>(
        &'a self,
        within: Duration,
        ask: impl FnOnce(&'a Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, tokio_postgres::Error>>,
    {
        let Some(runtime) = &self.runtime else {
            return Err(Failure::Silent(Duration::ZERO));
        };
        let ask = ask(&self.client);
        runtime
            .block_on(async { tokio::time::timeout(within, ask).await })
            .map_err(|_| Failure::Silent(within))?
            .map_err(Failure::Database)
    }

    /// Runs SQL as it is, several statements too.
    pub(super) fn run(&self, sql: &str) -> Result<(), Failure> {
        self.wait(ANSWER_WITHIN, |client| client.batch_execute(sql))
    }

    pub(super) fn prepare(&self, sql: &str, types: &[Type]) -> Result<Statement, Failure> {
        self.wait(ANSWER_WITHIN, |client| client.prepare_typed(sql, types))
    }

    /// Runs a statement that gives no rows.
    pub(super) fn execute<'v>(
        &self,
        statement: &Statement,
        values: Vec<Given<std::borrow::Cow<'v, [u8]>>>,
    ) -> Result<u64, Failure> {
        self.wait(ANSWER_WITHIN, |client| {
            client.execute_raw(statement, values)
        })
    }

    pub(super) fn write(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<u64, Failure> {
        self.wait(ANSWER_WITHIN, |client| client.execute(sql, values))
    }

    pub(super) fn read(
        &self,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        self.wait(ANSWER_WITHIN, |client| client.query(sql, values))
    }

    /// The first row, if there is one.
    pub(super) fn first(&self, statement: &Statement) -> Result<Option<Row>, Failure> {
        self.wait(ANSWER_WITHIN, |client| client.query_opt(statement, &[]))
    }
}

/// A name as SQL quotes it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_definition_must_not_say_comes_from_the_node() {
        let known = |name: &str| (name == "PASSWORD").then(|| "secret".to_owned());
        let url = "postgresql://meridian:${PASSWORD}@db/models";
        assert_eq!(
            expand(url, known).as_deref(),
            Ok("postgresql://meridian:secret@db/models")
        );
        assert_eq!(check_url(url), Ok(()));
        let error = expand("postgresql://${HOST}/models", known).unwrap_err();
        assert!(error.contains("HOST"), "{error}");
        assert!(expand("postgresql://${HOST", known).is_err());
        assert_eq!(check_url("postgresql://${HOST}/models"), Ok(()));
    }
}

//! The same statements for the same events in PostgreSQL, and nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use meridian_projection::Definition;
use tokio::runtime::Builder;
use tokio::time::Instant;
use tokio_postgres::{Client, NoTls};

use super::project::CYCLES;
use crate::cli::demo::Flight;

/// How many events are in one transaction: about as many as ours come to. Within one a row that is updated
/// again and again leaves its old versions in the way.
const BATCH: usize = 4_000;

/// Runs them on one connection, one after the other, as a projection's worker does. Returns how long that
/// took.
pub(super) fn run(
    url: &str,
    definition: &Definition,
    flights: &[Flight],
) -> anyhow::Result<Duration> {
    std::thread::scope(|scope| {
        // Whoever calls this is on a runtime already.
        let bare = scope.spawn(|| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(bare(url, definition, flights))
        });
        let joined = bare.join();
        joined.map_err(|_| anyhow::anyhow!("the bare loop panicked"))?
    })
}

async fn bare(url: &str, definition: &Definition, flights: &[Flight]) -> anyhow::Result<Duration> {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .context("connect to the database of --postgres")?;
    let connection = tokio::spawn(connection);
    let took = statements(&client, definition, flights).await;
    drop(client);
    connection.abort();
    took
}

async fn statements(
    client: &Client,
    definition: &Definition,
    flights: &[Flight],
) -> anyhow::Result<Duration> {
    client
        .batch_execute(
            "SET synchronous_commit = off; DROP SCHEMA IF EXISTS meridian_bench CASCADE; \
             CREATE SCHEMA meridian_bench; SET search_path = meridian_bench",
        )
        .await?;
    client.batch_execute(&definition.schema).await?;
    let mut handlers = BTreeMap::new();
    for (event_type, sql) in &definition.on {
        let sql = sql.replace(":data", "($1::text::jsonb)");
        handlers.insert(event_type.as_str(), client.prepare(&sql).await?);
    }
    let began = Instant::now();
    let mut in_batch = 0;
    client.batch_execute("BEGIN").await?;
    for _ in 0..CYCLES {
        for flight in flights {
            let handler = handlers
                .get(flight.event_type.as_str())
                .context("every flight has a handler")?;
            client.execute(handler, &[&flight.data.get()]).await?;
            in_batch += 1;
            if in_batch == BATCH {
                client.batch_execute("COMMIT; BEGIN").await?;
                in_batch = 0;
            }
        }
    }
    client.batch_execute("COMMIT").await?;
    let took = began.elapsed();
    client
        .batch_execute("DROP SCHEMA meridian_bench CASCADE")
        .await?;
    Ok(took)
}

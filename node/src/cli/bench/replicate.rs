//! A second region catching up over QUIC, beside a bare QUIC stream; and the lag of live events.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use meridian_client::Durability;
use meridian_client::tls::{Alpn, Identity, PeerName};
use meridian_node::config::NodeConfig;
use meridian_node::seams::{HostNetwork, Network, Seams};
use meridian_node::{Node, files};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{Events, Plan, Row, local, median, write};

/// How much is written in the first region before the second one catches up.
const BYTES: usize = 192 << 20;
const CHUNK_BYTES: usize = 64 << 10;
const WITHIN: Duration = Duration::from_secs(120);
/// The load under which the lag is measured.
const LIVE_PER_S: u64 = 2000;
const LIVE_FOR: Duration = Duration::from_secs(5);

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<(&'static str, Vec<Row>, Vec<String>)> {
    let mut rows = Vec::new();
    let mut notes = vec![
        "in flight: with how many writers the log was written, which decides how many events share \
         a block; ours: from the start of the second region until it holds all, durable; raw: the \
         same bytes through one stream of a bare quinn connection with the same TLS"
            .to_owned(),
    ];
    for (event_bytes, in_flight) in plan.cases() {
        let events = Arc::new(Events::new(event_bytes));
        let count = (BYTES
            / event_bytes
            / match in_flight {
                // With few in flight every event waits long for its sync; less of it says as much.
                1..=8 => 64,
                9..=32 => 8,
                _ => 1,
            }) as u64;
        let (mut ours, mut raw) = (Vec::new(), Vec::new());
        for round in 0..plan.rounds {
            let dir = plan
                .dir
                .join(format!("replicate-{event_bytes}-{in_flight}-{round}"));
            let configs = local::make(&dir, &["first", "second"]).await?;
            let [first, second] = &configs[..] else {
                bail!("two regions were made")
            };
            let from = start(first).await?;
            local::ready(&from).await?;
            // All of it is written in the first region, as if it were home to every stream.
            write(&from, &events, in_flight, 0..count, None).await?;
            let bytes = from.held_bytes();

            let began = Instant::now();
            let to = start(second).await?;
            until_equal(&from, &to).await?;
            ours.push(count as f64 / began.elapsed().as_secs_f64());
            let last =
                plan.cases().last() == Some(&(event_bytes, in_flight)) && round + 1 == plan.rounds;
            if last {
                notes.push(lag(&from, &to, &events, count).await?);
            }
            let took = bare_stream(first, second, bytes).await?;
            raw.push(count as f64 / took.as_secs_f64());
            to.shutdown().await;
            from.shutdown().await;
            files::remove_folder(&dir)?;
        }
        let (ours_per_s, raw_per_s) = (median(ours), median(raw));
        rows.push(Row {
            event_bytes,
            in_flight,
            ours_per_s,
            raw_per_s,
            ratio: ours_per_s / raw_per_s,
            ours_p50_us: None,
            ours_p99_us: None,
            raw_p50_us: None,
            raw_p99_us: None,
        });
    }
    Ok(("events/s", rows, notes))
}

async fn start(config: &NodeConfig) -> anyhow::Result<Arc<Node>> {
    let mut config = config.clone();
    let fixed = meridian_conflict::CategoryPolicy {
        home: meridian_conflict::HomeRule::Fixed(meridian_clock::RegionId(0)),
        ..Default::default()
    };
    config.categories.insert("bench".to_owned(), fixed);
    let seams = Seams::host(&config.data).context("open a data folder")?;
    Ok(Node::start(config, seams).await?)
}

async fn until_equal(from: &Node, to: &Node) -> anyhow::Result<()> {
    let goal = from.digest();
    let began = Instant::now();
    let mut committed = to.committed();
    while to.digest() != goal {
        if began.elapsed() > WITHIN {
            bail!("the second region did not catch up within {WITHIN:?}");
        }
        // Not every commit is worth a comparison.
        sleep(Duration::from_millis(1)).await;
        committed.borrow_and_update();
    }
    Ok(())
}

/// The time that `bytes` take through one stream between two endpoints on loopback.
async fn bare_stream(from: &NodeConfig, to: &NodeConfig, bytes: u64) -> anyhow::Result<Duration> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let endpoint = |server: Option<quinn::ServerConfig>| {
        quinn::Endpoint::new_with_abstract_socket(
            quinn::EndpointConfig::default(),
            server,
            HostNetwork.udp(any)?,
            HostNetwork.quinn_runtime(),
        )
    };
    let (server, client) = (identity(from)?, identity(to)?);
    let sender = endpoint(Some(server.server_config()))?;
    let receiver = endpoint(None)?;
    let addr = sender.local_addr()?;
    let sending = tokio::spawn(async move {
        let connection = sender.accept().await.context("nobody connected")?.await?;
        let mut stream = connection.open_uni().await?;
        let chunk = bytes::Bytes::from(vec![7; CHUNK_BYTES]);
        let mut left = usize::try_from(bytes)?;
        while left > 0 {
            let part = chunk.slice(..left.min(CHUNK_BYTES));
            left -= part.len();
            stream.write_chunk(part).await?;
        }
        stream.finish()?;
        connection.closed().await;
        anyhow::Ok(())
    });
    let PeerName::Region(_) = server.name() else {
        bail!("a region's certificate was expected")
    };
    let name = server.name().dns_name();
    let began = Instant::now();
    let connecting = receiver.connect_with(client.client_config(Alpn::Link), addr, &name)?;
    let connection = connecting.await?;
    let mut stream = connection.accept_uni().await?;
    let mut received = 0;
    while let Some(chunk) = stream.read_chunk(CHUNK_BYTES, true).await? {
        received += chunk.bytes.len() as u64;
    }
    let took = began.elapsed();
    anyhow::ensure!(received == bytes, "{received} of {bytes} bytes arrived");
    connection.close(0u32.into(), b"done");
    sending.await.context("the sender ended early")??;
    Ok(took)
}

fn identity(config: &NodeConfig) -> anyhow::Result<Identity> {
    let paths = &config.certificates;
    let read = |path| files::read_text(path).map(String::into_bytes);
    let (authority, certificate) = (read(&paths.authority)?, read(&paths.certificate)?);
    Ok(Identity::load(
        &authority,
        &certificate,
        &read(&paths.key)?,
    )?)
}

/// Writes at a steady pace and reports how long events took from their stamp to the other disk.
async fn lag(
    from: &Arc<Node>,
    to: &Node,
    events: &Arc<Events>,
    number: u64,
) -> anyhow::Result<String> {
    let before = to.replication_delays();
    let pace = Duration::from_millis(1);
    let each = LIVE_PER_S / 1000;
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let began = Instant::now();
    let mut number = number + 1_000_000_000;
    let mut writers = tokio::task::JoinSet::new();
    while began.elapsed() < LIVE_FOR {
        ticks.tick().await;
        for _ in 0..each {
            let (from, request) = (Arc::clone(from), events.request(number, Durability::Region));
            number += 1;
            writers.spawn(async move { from.append(request).await.map(drop) });
        }
    }
    let count = writers.len();
    while let Some(written) = writers.join_next().await {
        written.context("a writer ended early")??;
    }
    until_equal(from, to).await?;
    let mut delays = to.replication_delays();
    delays
        .subtract(&before)
        .context("take the catching up out of the delays")?;
    let at = |quantile| delays.value_at_quantile(quantile) as f64 / 1e3;
    Ok(format!(
        "lag of live events, from the stamp in one region to durable in the other, {:.0} events/s \
         of {} B: p50 {:.1} ms, p99 {:.1} ms",
        count as f64 / began.elapsed().as_secs_f64(),
        events.event_bytes,
        at(0.5),
        at(0.99)
    ))
}

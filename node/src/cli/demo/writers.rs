//! Writes flights through each region's HTTP door, all regions at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How many requests each region has in flight: one for each lane. A stream stays in its lane, so
/// its events keep their order.
const LANES: usize = 16;
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Longer than any answer should take here, so that a fault ends the demonstration.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

const FLIGHTS: &[u8] = include_bytes!("../../../data/flights-slice.ndjson.gz");

/// One line of the bundled flights.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Flight {
    id: String,
    /// The airport it left.
    #[serde(rename = "region")]
    pub(super) airport: String,
    pub(crate) stream: String,
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    pub(crate) data: Box<RawValue>,
}

/// The bundled flights, in time order.
pub(crate) fn flights() -> anyhow::Result<Vec<Flight>> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(FLIGHTS)
        .read_to_string(&mut text)
        .context("unpack the bundled flights")?;
    let parsed = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>();
    parsed.context("read the bundled flights")
}

/// What became of a round of writing.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// How many events each region took.
    pub(super) by_region: BTreeMap<String, usize>,
    /// What could not be written because its home could not be reached, by the region that tried.
    pub(super) waiting: Vec<(String, Flight)>,
}

/// Writes `flights`, each through the region named with it. What finds its home out of reach is
/// tried again, or put aside if `put_aside`, with later events of its stream.
pub(super) async fn write(
    doors: &BTreeMap<String, String>,
    flights: Vec<(String, Flight)>,
    put_aside: bool,
) -> anyhow::Result<Written> {
    let mut lanes: BTreeMap<(String, usize), Vec<Flight>> = BTreeMap::new();
    for (region, flight) in flights {
        let sum: usize = flight.stream.bytes().map(usize::from).sum();
        lanes.entry((region, sum % LANES)).or_default().push(flight);
    }
    let client = reqwest::Client::builder().timeout(GIVE_UP_AFTER).build()?;
    let mut running = JoinSet::new();
    for ((region, _), flights) in lanes {
        let door = doors
            .get(&region)
            .with_context(|| format!("no door for {region}"))?
            .clone();
        let client = client.clone();
        running.spawn(async move {
            let outcome = write_lane(&client, &door, flights, put_aside).await;
            (region, outcome)
        });
    }
    let mut written = Written::default();
    while let Some(lane) = running.join_next().await {
        let (region, outcome) = lane.context("a writer ended early")?;
        let (count, waiting) = outcome?;
        *written.by_region.entry(region.clone()).or_default() += count;
        written
            .waiting
            .extend(waiting.into_iter().map(|flight| (region.clone(), flight)));
    }
    Ok(written)
}

async fn write_lane(
    client: &reqwest::Client,
    door: &str,
    flights: Vec<Flight>,
    put_aside: bool,
) -> anyhow::Result<(usize, Vec<Flight>)> {
    let mut count = 0;
    let mut waiting = Vec::new();
    let mut blocked = BTreeSet::new();
    for flight in flights {
        if blocked.contains(&flight.stream) {
            waiting.push(flight);
            continue;
        }
        let began = Instant::now();
        while !append(client, door, &flight).await? {
            if put_aside {
                blocked.insert(flight.stream.clone());
                break;
            }
            if began.elapsed() > GIVE_UP_AFTER {
                bail!("{} takes no writes for {}", door, flight.stream);
            }
            sleep(RETRY_AFTER).await;
        }
        if blocked.contains(&flight.stream) {
            waiting.push(flight);
        } else {
            count += 1;
        }
    }
    Ok((count, waiting))
}

/// Appends one flight under its own id; `false` when it is not known to be written and is to be
/// repeated.
async fn append(client: &reqwest::Client, door: &str, flight: &Flight) -> anyhow::Result<bool> {
    let url = format!("http://{door}/v1/streams/{}/events", flight.stream);
    let body = serde_json::json!({
        "expected": "any",
        "events": [{ "id": flight.id, "type": flight.event_type, "data": flight.data }],
    });
    let answer = client
        .post(url)
        .json(&body)
        .send()
        .await
        .context("reach a region's door")?;
    match answer.status().as_u16() {
        200 => Ok(true),
        503 | 504 => Ok(false),
        status => bail!(
            "an append was answered with {status}: {}",
            answer.text().await?
        ),
    }
}

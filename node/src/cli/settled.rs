//! `meridian await`, and waiting after an append: until one event is settled.

use std::time::Duration;

use clap::ValueEnum;
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::door::{Door, Target};
use super::{Outcome, Output};

/// How long a node waits at a time.
const WAIT_MS_MAX: u128 = 30_000;

/// How settled an event must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Settled {
    /// Nothing can come before it any more in that region
    Stable,
    /// That region knows the same of every region
    Final,
}

impl Settled {
    fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Final => "final",
        }
    }
}

/// What `meridian await` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The event: region, partition and position, as in us-east/3/17
    dot: String,
    /// How settled it must be
    #[arg(long, value_enum, default_value = "stable")]
    tier: Settled,
    /// The region where; by default the one that is asked
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    wait: u64,
    #[command(flatten)]
    target: Target,
}

#[derive(Deserialize)]
struct Awaited {
    reached: bool,
    region: String,
    timestamp: Option<String>,
    watermark: String,
}

pub(crate) async fn run(args: Args, output: Output) -> anyhow::Result<Outcome> {
    let door = Door::new(&args.target.url)?;
    let wait = Duration::from_secs(args.wait);
    let answer = until(&door, &args.dot, args.tier, args.region.as_deref(), wait).await?;
    say(&answer, &args.dot, args.tier, output)
}

/// Asks until the event is settled or the time is up; the last answer.
///
/// # Errors
/// When nobody answers, or the node says no.
pub(crate) async fn until(
    door: &Door,
    dot: &str,
    tier: Settled,
    region: Option<&str>,
    wait: Duration,
) -> anyhow::Result<Value> {
    let began = Instant::now();
    loop {
        let left = wait.saturating_sub(began.elapsed()).as_millis();
        let mut query = vec![
            ("dot", dot.to_owned()),
            ("tier", tier.name().to_owned()),
            ("wait_ms", left.min(WAIT_MS_MAX).to_string()),
        ];
        query.extend(region.map(|region| ("region", region.to_owned())));
        let request = door.request(Method::GET, &["v1", "await"]).query(&query);
        let answer: Value = match door.json(request).await {
            Ok(answer) => answer,
            Err(error) => return Err(error.into_failure()),
        };
        if answer["reached"] == true || left <= WAIT_MS_MAX {
            return Ok(answer);
        }
    }
}

/// Prints how far the event came.
///
/// # Errors
/// When it cannot be printed, or the answer cannot be read.
pub(crate) fn say(
    answer: &Value,
    dot: &str,
    tier: Settled,
    output: Output,
) -> anyhow::Result<Outcome> {
    let awaited = Awaited::deserialize(answer)
        .map_err(|error| anyhow::anyhow!("the node's answer cannot be read: {error}"))?;
    if output.is_json() {
        output.json(answer)?;
    } else if awaited.reached {
        let region = awaited.region;
        output.line(&format!("{dot} is {} in {region}.", tier.name()))?;
    } else {
        let why = match awaited.timestamp {
            None => "it has not arrived there".to_owned(),
            Some(at) => format!(
                "it was stamped {at}, and the watermark stands at {}; `meridian status` shows who \
                 holds it back",
                awaited.watermark
            ),
        };
        output.line(&format!(
            "{dot} is not {} in {} yet: {why}.",
            tier.name(),
            awaited.region
        ))?;
    }
    Ok(if awaited.reached {
        Outcome::Done
    } else {
        Outcome::No
    })
}

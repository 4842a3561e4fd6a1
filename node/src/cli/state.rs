//! `meridian state`: what a stream comes to that every region writes.

use clap::ValueEnum;
use reqwest::Method;
use serde_json::Value;

use super::door::{Door, DoorError, Target};
use super::{Outcome, Output};

/// What `meridian state` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The stream, as in cart-42
    stream: String,
    /// How much of what was written counts
    #[arg(long, value_enum, default_value = "live")]
    tier: Tier,
    #[command(flatten)]
    target: Target,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Tier {
    /// All that the region holds
    Live,
    /// What is settled: the same in every region that has come as far
    Stable,
}

pub(crate) async fn run(args: Args, output: Output) -> anyhow::Result<Outcome> {
    let door = Door::new(&args.target.url)?;
    let tier = match args.tier {
        Tier::Live => "live",
        Tier::Stable => "stable",
    };
    let path = ["v1", "streams", &args.stream, "state"];
    let request = door.request(Method::GET, &path).query(&[("tier", tier)]);
    let state: Value = door.json(request).await.map_err(DoorError::into_failure)?;
    if output.is_json() {
        output.json(&state)?;
        return Ok(Outcome::Done);
    }
    let text = |key: &str| state[key].as_str().unwrap_or_default().to_owned();
    output.line(&format!("{} is a {}:", text("stream"), text("kind")))?;
    output.line(&serde_json::to_string_pretty(&state["value"])?)?;
    if let Some(skipped) = state["skipped"].as_u64().filter(|it| *it > 0) {
        output.line(&format!(
            "{skipped} events of the stream are no operations on it, and do not count."
        ))?;
    }
    let superseded = state["superseded"].as_array();
    let rows = superseded.into_iter().flatten().map(|lost| {
        let text = |key: &str| lost[key].as_str().unwrap_or_default().to_owned();
        let value = lost["value"].to_string();
        vec![text("id"), text("origin"), value, text("by")]
    });
    let rows: Vec<_> = rows.collect();
    if !rows.is_empty() {
        output.line("Writes that lost to one whose writer had not seen them:")?;
        output.table(&["event", "origin", "value", "lost to"], rows)?;
    }
    Ok(Outcome::Done)
}

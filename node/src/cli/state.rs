//! `meridian state`: what a stream comes to that every region writes.

use clap::ValueEnum;
use reqwest::Method;
use serde_json::Value;

use super::door::{Door, DoorError, Target};
use super::following::{Follower, Message, follow};
use super::{Outcome, Output};

/// What `meridian state` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The stream, as in cart-42
    stream: String,
    /// How much of what was written counts
    #[arg(long, value_enum, default_value = "live")]
    tier: Tier,
    /// Go on with whatever it comes to, a line each, across lost connections, until interrupted
    #[arg(long, short = 'f')]
    follow: bool,
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
    if args.follow {
        let mut followed = Followed {
            door,
            stream: args.stream,
            tier,
            output,
            digest: None,
        };
        follow(&mut followed).await?;
        return Ok(Outcome::Done);
    }
    let request = request(&door, &args.stream, tier);
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

fn request(door: &Door, stream: &str, tier: &str) -> reqwest::RequestBuilder {
    let request = door.request(Method::GET, &["v1", "streams", stream, "state"]);
    request.query(&[("tier", tier)])
}

/// A state that is followed.
struct Followed {
    door: Door,
    stream: String,
    tier: &'static str,
    output: Output,
    // Of the state that was printed last.
    digest: Option<String>,
}

impl Follower for Followed {
    fn door(&self) -> &Door {
        &self.door
    }

    fn request(&self) -> reqwest::RequestBuilder {
        let request = request(&self.door, &self.stream, self.tier);
        match &self.digest {
            Some(digest) => request.header("last-event-id", digest),
            None => request,
        }
    }

    fn is_done(&self) -> bool {
        false
    }

    fn take(&mut self, message: Message) -> anyhow::Result<()> {
        if !message.data.is_empty() {
            let state: Value = serde_json::from_str(&message.data)
                .map_err(|error| anyhow::anyhow!("a state cannot be read: {error}"))?;
            match self.output.is_json() {
                true => self.output.json_line(&state)?,
                false => self.output.line(&state["value"].to_string())?,
            }
        }
        self.digest = message.id.or(self.digest.take());
        Ok(())
    }
}

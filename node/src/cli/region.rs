//! `meridian region`: takes a region's share of homes from it, and gives it back.

use reqwest::Method;
use serde_json::{Value, json};

use super::door::{Door, DoorError, Target};
use super::{Outcome, Output};

/// What `meridian region` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a region home to nothing, as before maintenance: its streams get other homes while they are written
    Drain(Named),
    /// Give a drained region its share of homes again
    Resume(Named),
}

/// Which region, and where to ask.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code 1 when some homes are still on their way when the time is up.")]
pub(crate) struct Named {
    /// The region's name
    region: String,
    /// How long to wait until all that moves has been opened, in milliseconds
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(..=60_000))]
    wait_ms: u64,
    #[command(flatten)]
    target: Target,
}

pub(crate) async fn run(command: Command, output: Output) -> anyhow::Result<Outcome> {
    let (what, named) = match &command {
        Command::Drain(named) => ("drain", named),
        Command::Resume(named) => ("resume", named),
    };
    let door = Door::new(&named.target.url)?;
    let request = door
        .request(Method::POST, &["v1", "regions", &named.region, what])
        .json(&json!({ "wait_ms": named.wait_ms }));
    let set: Value = door.json(request).await.map_err(DoorError::into_failure)?;
    let is_over = set["over"] == true;
    if output.is_json() {
        output.json(&set)?;
    } else {
        let region = &named.region;
        output.line(&match (&command, is_over) {
            (Command::Drain(_), true) => format!(
                "Region {region} is home to nothing: no writer waits for its node. While that is \
                 stopped, the settled order stands still."
            ),
            (Command::Resume(_), true) => format!("Region {region} has its share of homes again."),
            (_, false) => "Some homes are still on their way; `meridian status` tells.".to_owned(),
        })?;
    }
    Ok(match is_over {
        true => Outcome::Done,
        false => Outcome::No,
    })
}

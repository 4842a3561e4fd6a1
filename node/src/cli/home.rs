//! `meridian home`: which region orders a stream, and moving that to another.

use reqwest::Method;
use serde_json::{Value, json};

use super::door::{Door, DoorError, Target};
use super::{Outcome, Output};

/// How many streams are asked for or moved in one request.
const PAGE: usize = 1_000;

/// What `meridian home` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show which region orders a stream
    Show {
        /// The stream
        stream: String,
        #[command(flatten)]
        target: Target,
    },
    /// List the streams whose homes were ever moved
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Move the homes of streams to another region; whoever writes to them meanwhile waits a moment
    #[command(after_help = "Exit code 1 when some are still on their way when the time is up.")]
    Move {
        /// The streams
        #[arg(required = true)]
        streams: Vec<String>,
        /// The region's name
        #[arg(long)]
        to: String,
        /// How long to wait until the region has opened them, in milliseconds
        #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(..=60_000))]
        wait_ms: u64,
        #[command(flatten)]
        target: Target,
    },
}

pub(crate) async fn run(command: Command, output: Output) -> anyhow::Result<Outcome> {
    match command {
        Command::Show { stream, target } => {
            let path = ["v1", "homes", &stream];
            let home = ask(&target, Method::GET, &path, &[], None).await?;
            show(vec![home], output)
        }
        Command::List { target } => {
            let mut homes = Vec::new();
            let mut after: Option<String> = None;
            loop {
                let mut query = vec![("limit", PAGE.to_string())];
                query.extend(after.map(|after| ("after", after)));
                let path = ["v1", "homes"];
                let mut page = ask(&target, Method::GET, &path, &query, None).await?;
                homes.extend(listed(&mut page)?);
                match page["next"].as_str() {
                    Some(next) => after = Some(next.to_owned()),
                    None => break,
                }
            }
            show(homes, output)
        }
        Command::Move {
            streams,
            to,
            wait_ms,
            target,
        } => {
            let mut homes = Vec::new();
            for some in streams.chunks(PAGE) {
                let body = json!({ "streams": some, "to": to, "wait_ms": wait_ms });
                let path = ["v1", "homes"];
                let mut moved = ask(&target, Method::POST, &path, &[], Some(body)).await?;
                homes.extend(listed(&mut moved)?);
            }
            let is_over = homes.iter().all(|home| home["moving_from"].is_null());
            show(homes, output)?;
            Ok(match is_over {
                true => Outcome::Done,
                false => Outcome::No,
            })
        }
    }
}

async fn ask(
    target: &Target,
    method: Method,
    path: &[&str],
    query: &[(&str, String)],
    body: Option<Value>,
) -> anyhow::Result<Value> {
    let door = Door::new(&target.url)?;
    let mut request = door.request(method, path).query(query);
    if let Some(body) = body {
        request = request.json(&body);
    }
    door.json(request).await.map_err(DoorError::into_failure)
}

fn listed(page: &mut Value) -> anyhow::Result<Vec<Value>> {
    match page["homes"].take() {
        Value::Array(homes) => Ok(homes),
        _ => anyhow::bail!("the node's list of homes cannot be read"),
    }
}

fn show(homes: Vec<Value>, output: Output) -> anyhow::Result<Outcome> {
    if output.is_json() {
        output.json(&homes)?;
        return Ok(Outcome::Done);
    }
    let rows = homes.iter().map(|home| {
        let text = |key: &str| home[key].as_str().unwrap_or_default().to_owned();
        let rule = match (home["rule"]["fixed"].as_str(), home["creator"].as_str()) {
            (Some(region), _) => format!("fixed:{region}"),
            (None, Some(region)) => format!("creator, {region}"),
            (None, None) => text("rule"),
        };
        let region = match home["home"].as_str() {
            Some(region) => region,
            None if rule == "creator" => "whoever creates it",
            None => "every region",
        };
        let epoch = &home["epoch"];
        let state = match home["moving_from"].as_str() {
            Some(from) => format!("moving, from {from}"),
            None => String::new(),
        };
        vec![
            text("stream"),
            region.to_owned(),
            rule,
            format!("{}.{}", epoch["major"], epoch["minor"]),
            state,
        ]
    });
    output.table(&["stream", "home", "rule", "epoch", ""], rows.collect())?;
    Ok(Outcome::Done)
}

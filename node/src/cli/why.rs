//! `meridian why`: what a node knows about why things are as they are, in sentences.

use meridian_node::HeldReason;
use meridian_node::NodeStatus;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::door::{Door, DoorError, Target};
use super::{Outcome, Output, conflict, settling, status};

/// What can be asked.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Question {
    /// Say whether the settled order stands still, who holds it back and what to do
    #[command(after_help = "Exit code 1 when something is held back by more than a second.")]
    Stuck(StuckArgs),
    /// Say which of two events stands first in the one order, and why
    Order(OrderArgs),
    /// Say which write a stream shows where the last writer wins, and over what it won
    Winner(WinnerArgs),
}

/// What `meridian why stuck` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct StuckArgs {
    #[command(flatten)]
    target: Target,
}

/// What `meridian why order` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct OrderArgs {
    /// An event: origin/partition/position as in us-east/2/17, stream@revision as in order-42@0, or its id
    a: String,
    /// Another one
    b: String,
    #[command(flatten)]
    target: Target,
}

/// What `meridian why winner` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct WinnerArgs {
    /// The stream, as in profile-42
    stream: String,
    #[command(flatten)]
    target: Target,
}

pub(crate) async fn run(question: Question, output: Output) -> anyhow::Result<Outcome> {
    match question {
        Question::Stuck(args) => stuck(args, output).await,
        Question::Order(args) => order(args, output).await,
        Question::Winner(args) => winner(args, output).await,
    }
}

/// What `meridian why stuck --json` prints.
#[derive(Debug, Serialize)]
struct Stuck<'a> {
    stuck: bool,
    region: &'a str,
    watermarks: &'a Value,
    explanation: Vec<String>,
}

async fn stuck(args: StuckArgs, output: Output) -> anyhow::Result<Outcome> {
    let (whole, status) = status::ask(&args.target).await?;
    let explanation = explain(&status);
    let stuck = !status.watermarks.held_back.is_empty();
    if output.is_json() {
        output.json(&Stuck {
            stuck,
            region: &status.region,
            watermarks: &whole["watermarks"],
            explanation,
        })?;
    } else {
        for sentence in explanation {
            output.line(&sentence)?;
        }
    }
    Ok(if stuck { Outcome::No } else { Outcome::Done })
}

fn explain(status: &NodeStatus) -> Vec<String> {
    let held = &status.watermarks.held_back;
    if held.is_empty() {
        return vec![
            format!("Nothing is stuck, seen from region {}.", status.region),
            settling::summary(status),
        ];
    }
    let only_catching_up = held
        .iter()
        .all(|held| held.reason == HeldReason::CatchingUp);
    let verdict = if only_catching_up {
        "The settled order is behind and catching up"
    } else {
        "The settled order stands still"
    };
    let mut told = vec![
        format!("{verdict}, seen from region {}.", status.region),
        settling::summary(status),
    ];
    for held in held {
        told.push(String::new());
        told.push(settling::blame(held, status.partitions));
        told.push(format!("  Next: {}", settling::next(held, status)));
    }
    told.push(String::new());
    told.push(settling::unaffected(held));
    told
}

/// An event in the node's answer.
#[derive(Debug, Deserialize)]
struct Placed {
    id: String,
    stream: String,
    revision: u64,
    origin: String,
    partition: u16,
    position: u64,
    timestamp: String,
    recorded_at: String,
    settled: String,
}

#[derive(Debug, Deserialize)]
struct Reason {
    first: Placed,
    second: Placed,
    explanation: Vec<String>,
}

async fn order(args: OrderArgs, output: Output) -> anyhow::Result<Outcome> {
    let door = Door::new(&args.target.url)?;
    let request = door.request(Method::GET, &["v1", "why", "order"]);
    let request = request.query(&[("a", &args.a), ("b", &args.b)]);
    let whole: Value = door.json(request).await.map_err(DoorError::into_failure)?;
    if output.is_json() {
        output.json(&whole)?;
        return Ok(Outcome::Done);
    }
    let reason = Reason::deserialize(&whole).map_err(|error| {
        anyhow::anyhow!(
            "the node's answer cannot be read ({error}); it may be of another version than this command"
        )
    })?;
    let row = |place: &str, event: &Placed| {
        vec![
            place.to_owned(),
            format!("{}/{}/{}", event.origin, event.partition, event.position),
            format!("{}@{}", event.stream, event.revision),
            event.timestamp.clone(),
            event.recorded_at.clone(),
            event.settled.clone(),
            event.id.clone(),
        ]
    };
    output.table(
        &[
            "",
            "origin/partition/position",
            "stream@revision",
            "timestamp",
            "recorded at",
            "settled here",
            "id",
        ],
        vec![row("1st", &reason.first), row("2nd", &reason.second)],
    )?;
    for sentence in &reason.explanation {
        output.line(sentence)?;
    }
    Ok(Outcome::Done)
}

/// What `meridian why winner --json` prints.
#[derive(Debug, Serialize)]
struct Winner<'a> {
    state: &'a Value,
    conflicts: &'a [Value],
}

async fn winner(args: WinnerArgs, output: Output) -> anyhow::Result<Outcome> {
    let door = Door::new(&args.target.url)?;
    let path = ["v1", "streams", &args.stream, "state"];
    let request = door.request(Method::GET, &path);
    let state: Value = door.json(request).await.map_err(DoorError::into_failure)?;
    let stream = Some(args.stream.as_str());
    let conflicts = conflict::list(&args.target, conflict::Status::All, stream).await?;
    if output.is_json() {
        output.json(&Winner {
            state: &state,
            conflicts: &conflicts,
        })?;
        return Ok(Outcome::Done);
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&state["kind"]);
    let winners: Vec<&Value> = state["winners"].as_array().into_iter().flatten().collect();
    if !matches!(kind.as_str(), "document" | "fields") {
        output.line(&format!(
            "{} is of kind {kind}: operations merge, and none of them loses.",
            args.stream
        ))?;
        return Ok(Outcome::Done);
    }
    output.line(&format!(
        "{} is of kind {kind}: of two writes that wins which was first written later, by the hybrid logical clock; \
         at the same moment, that of the region with the higher number.",
        args.stream
    ))?;
    let rows = winners.into_iter().map(|winner| {
        vec![
            text(&winner["field"]),
            text(&winner["id"]),
            text(&winner["origin"]),
            text(&winner["timestamp"]),
        ]
    });
    let rows: Vec<_> = rows.collect();
    match rows.is_empty() {
        true => {
            output.line("It shows nothing: nothing was written to it, or all of it was deleted.")?
        }
        false => output.table(&["field", "event", "written in", "timestamp"], rows)?,
    }
    let rows = state["superseded"].as_array().into_iter().flatten();
    let rows: Vec<_> = rows
        .map(|lost| {
            vec![
                text(&lost["id"]),
                text(&lost["origin"]),
                lost["value"].to_string(),
                text(&lost["by"]),
                text(&lost["conflict"]),
            ]
        })
        .collect();
    if rows.is_empty() && conflicts.is_empty() {
        output.line("No write lost to one that had not seen it.")?;
    }
    if !rows.is_empty() {
        output.line("Lost to a later write that had not seen it:")?;
        output.table(
            &["event", "written in", "value", "lost to", "conflict record"],
            rows,
        )?;
    }
    if !conflicts.is_empty() {
        output.line("Conflict records; `meridian conflict resolve ID --action reinstate` writes one once more:")?;
        conflict::show(&conflicts, output)?;
    }
    Ok(Outcome::Done)
}

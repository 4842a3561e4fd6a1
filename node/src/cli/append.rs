//! `meridian append`: one event onto a stream.

use std::time::Duration;

use meridian_client::Durability;
use meridian_event::EventId;
use meridian_node::seams::{Random, SystemRandom};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use super::door::{Door, DoorError, Target};
use super::event::{self, Event};
use super::settled::{self, Settled};
use super::{Outcome, Output, wrong_use};

/// How long `--await` waits.
const AWAIT_FOR: Duration = Duration::from_secs(30);

/// What `meridian append` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The stream, as in order-42
    stream: String,
    /// What happened, as in OrderPlaced
    #[arg(long = "type", value_name = "TYPE")]
    event_type: String,
    /// The event's data: JSON, or - to read it from standard input
    #[arg(long, value_name = "JSON")]
    data: String,
    /// The event's metadata
    #[arg(long, value_name = "JSON")]
    metadata: Option<String>,
    /// The event's id; repeating an append with the same id adds nothing
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    /// What must be true of the stream: any, none, exists, or the revision of its last event
    #[arg(long, default_value = "any", value_parser = expected)]
    expected: Value,
    /// How safe it must be before the answer: region, regions:N or all
    #[arg(long, default_value = "region", value_parser = super::durability)]
    durability: Durability,
    /// Wait until the event is settled in the region that is asked
    #[arg(long = "await", value_enum, value_name = "TIER")]
    settled: Option<Settled>,
    #[command(flatten)]
    target: Target,
}

/// Parses `--expected`.
fn expected(given: &str) -> Result<Value, String> {
    match given {
        "any" | "none" | "exists" => Ok(json!(given)),
        other => other
            .parse::<u64>()
            .map(|revision| json!(revision))
            .map_err(|_| "write any, none, exists, or a revision such as 3".to_owned()),
    }
}

#[derive(Serialize)]
struct Body {
    expected: Value,
    durability: String,
    events: [NewEvent; 1],
}

#[derive(Serialize)]
struct NewEvent {
    id: Uuid,
    #[serde(rename = "type")]
    event_type: String,
    // Kept as given, to the byte.
    data: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Dot {
    origin: String,
    partition: u16,
    position: u64,
}

#[derive(Deserialize)]
struct Appended {
    dots: Vec<Dot>,
    stream: String,
    last_revision: u64,
    home: String,
    durability: String,
    could_strand: bool,
}

pub(crate) async fn run(args: Args, output: Output) -> anyhow::Result<Outcome> {
    let data = if args.data == "-" {
        std::io::read_to_string(std::io::stdin())
            .map_err(|error| wrong_use(format!("standard input cannot be read: {error}")))?
    } else {
        args.data
    };
    let data = parse_json("--data", data)?;
    let metadata = args
        .metadata
        .map(|metadata| parse_json("--metadata", metadata))
        .transpose()?;
    // The id is made here, not by the node, so that an append without an answer can be repeated.
    let id = args.id.unwrap_or_else(|| {
        let mut bytes = [0; 16];
        SystemRandom.fill(&mut bytes);
        EventId::from_random(bytes).0
    });
    let body = Body {
        expected: args.expected,
        durability: args.durability.to_string(),
        events: [NewEvent {
            id,
            event_type: args.event_type,
            data,
            metadata,
        }],
    };

    let door = Door::new(&args.target.url)?;
    let request = door.request(Method::POST, &["v1", "streams", &args.stream, "events"]);
    let answer: Value = match door.json(request.json(&body)).await {
        Ok(answer) => answer,
        Err(error) => return failed(error, id, output),
    };
    let appended = Appended::deserialize(&answer)
        .map_err(|error| anyhow::anyhow!("the node's answer cannot be read: {error}"))?;
    if output.is_json() {
        output.json(&answer)?;
        return settle(args.settled, &appended, &door, output).await;
    }
    output.line(&format!(
        "{} is at revision {}: event {id}, home {}, durable at level {}{}.",
        appended.stream,
        appended.last_revision,
        appended.home,
        appended.durability,
        if appended.could_strand {
            " (a failover of that region could still set it aside)"
        } else {
            ""
        }
    ))?;
    settle(args.settled, &appended, &door, output).await
}

/// Waits for what was appended, if that was asked for. The append itself is done, whatever comes.
async fn settle(
    tier: Option<Settled>,
    appended: &Appended,
    door: &Door,
    output: Output,
) -> anyhow::Result<Outcome> {
    let (Some(tier), Some(dot)) = (tier, appended.dots.last()) else {
        return Ok(Outcome::Done);
    };
    let dot = format!("{}/{}/{}", dot.origin, dot.partition, dot.position);
    let awaited = settled::until(door, &dot, tier, None, AWAIT_FOR).await?;
    settled::say(&awaited, &dot, tier, output)
}

fn parse_json(what: &str, text: String) -> anyhow::Result<Box<RawValue>> {
    RawValue::from_string(text).map_err(|error| {
        wrong_use(format!(
            "{what} is not JSON: {error}; quote it for the shell, as in '{{\"n\": 1}}'"
        ))
    })
}

/// Says what became of the event `id`.
fn failed(error: DoorError, id: Uuid, output: Output) -> anyhow::Result<Outcome> {
    let Some(problem) = error.problem() else {
        // The connection may have ended after the node took the request.
        let known = matches!(&error, DoorError::Unreachable { source, .. } if source.is_connect());
        let failure = error.into_failure();
        return Err(if known {
            failure
        } else {
            failure.context(unknown(id))
        });
    };
    if output.is_json() {
        output.json(&problem.whole)?;
    } else if let Some(since) = problem.whole.get("events_since").and_then(Value::as_array) {
        let events: Vec<Event> = since
            .iter()
            .filter_map(|event| Event::deserialize(event).ok())
            .collect();
        event::table(&events, output)?;
    }
    let indeterminate = problem.code == "indeterminate";
    let failure = error.into_failure();
    Err(if indeterminate {
        failure.context(unknown(id))
    } else {
        failure
    })
}

fn unknown(id: Uuid) -> String {
    format!("it is not known whether the event was written; repeat the command with --id {id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_is_a_word_or_a_revision() {
        assert_eq!(expected("none"), Ok(json!("none")));
        assert_eq!(expected("12"), Ok(json!(12)));
        assert!(expected("-1").is_err());
        assert!(expected("some").is_err());
    }
}

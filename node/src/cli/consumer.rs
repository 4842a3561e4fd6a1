//! `meridian consumer`: consumer groups, defined, watched, mended; and a consumer for scripts.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use meridian_node::{GroupDefinition, files};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::door::{Door, DoorError, Target};
use super::{Outcome, Output, wrong_use};

/// How long one request waits for events.
const WAIT_MS: u64 = 5_000;
/// How long before a node is asked again that could not answer.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What `meridian consumer` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Define a consumer group, from a TOML file; the region it names serves it, by default the one that is asked
    Put {
        /// The definition
        file: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// List the consumer groups
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Show one group: who serves it, how far it is, what is wrong
    Show(Named),
    /// Remove a group with its place
    Remove(Named),
    /// Be a consumer: print events as lines of JSON, and acknowledge them once they are written
    Take {
        #[command(flatten)]
        named: Named,
        /// What this consumer calls itself; each of a group has a name of its own
        #[arg(long)]
        consumer: String,
        /// How many events to take at once
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
        batch: u32,
        /// Go on with what comes, across lost connections, until interrupted
        #[arg(long, short = 'f')]
        follow: bool,
    },
    /// List the events that a group has put aside
    Parked(Named),
    /// Give a parked event out once more
    Retry {
        #[command(flatten)]
        named: Named,
        /// The event's order key in `parked`
        event: String,
    },
    /// Leave a parked event out for good
    Drop {
        #[command(flatten)]
        named: Named,
        /// The event's order key in `parked`
        event: String,
        /// Written to the group's stream
        #[arg(long)]
        reason: String,
    },
}

/// Which group, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Named {
    /// The group's name
    name: String,
    #[command(flatten)]
    target: Target,
}

impl Named {
    async fn ask(
        &self,
        method: Method,
        rest: &[&str],
        body: Option<Value>,
    ) -> anyhow::Result<Value> {
        let asked = self.try_ask(method, rest, body).await?;
        asked.map_err(DoorError::into_failure)
    }

    async fn try_ask(
        &self,
        method: Method,
        rest: &[&str],
        body: Option<Value>,
    ) -> anyhow::Result<Result<Value, DoorError>> {
        let mut path = vec!["v1", "consumers", &self.name];
        path.extend(rest);
        ask(&self.target, method, &path, body).await
    }
}

async fn ask(
    target: &Target,
    method: Method,
    path: &[&str],
    body: Option<Value>,
) -> anyhow::Result<Result<Value, DoorError>> {
    let door = Door::new(&target.url)?;
    let mut request = door.request(method, path);
    if let Some(body) = body {
        request = request.json(&body);
    }
    Ok(door.json(request).await)
}

pub(crate) async fn run(command: Command, output: Output) -> anyhow::Result<Outcome> {
    match command {
        Command::Put { file, target } => {
            let text = files::read_text(&file)
                .map_err(|error| wrong_use(format!("{}: {error}", file.display())))?;
            let definition = GroupDefinition::from_toml(&text)
                .and_then(|definition| definition.check().map(|()| definition))
                .map_err(|error| wrong_use(format!("{}: {error}", file.display())))?;
            let body = serde_json::to_value(&definition)?;
            let path = ["v1", "consumers", &definition.name];
            let group = ask(&target, Method::PUT, &path, Some(body)).await?;
            show(&[group.map_err(DoorError::into_failure)?], output)
        }
        Command::List { target } => {
            let all = ask(&target, Method::GET, &["v1", "consumers"], None).await?;
            let mut all = all.map_err(DoorError::into_failure)?;
            let Value::Array(groups) = all["consumers"].take() else {
                anyhow::bail!("the node's list of consumer groups cannot be read");
            };
            show(&groups, output)
        }
        Command::Show(named) => show(&[named.ask(Method::GET, &[], None).await?], output),
        Command::Remove(named) => {
            let removed = named.ask(Method::DELETE, &[], None).await?;
            if output.is_json() {
                output.json(&removed)?;
            } else {
                output.line(&format!("Consumer group {} is removed.", named.name))?;
            }
            Ok(Outcome::Done)
        }
        Command::Take {
            named,
            consumer,
            batch,
            follow,
        } => {
            tokio::select! {
                taken = take(&named, &consumer, batch, follow, output) => taken,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted?;
                    Ok(Outcome::Done)
                }
            }
        }
        Command::Parked(named) => {
            let parked = named.ask(Method::GET, &["parked"], None).await?;
            print_parked(&named.name, &parked, output)
        }
        Command::Retry { named, event } => {
            let body = Some(json!({}));
            let path = ["parked", &event, "retry"];
            show(&[named.ask(Method::POST, &path, body).await?], output)
        }
        Command::Drop {
            named,
            event,
            reason,
        } => {
            let body = Some(json!({ "reason": reason }));
            let path = ["parked", &event, "drop"];
            show(&[named.ask(Method::POST, &path, body).await?], output)
        }
    }
}

// Whether it may work when it is tried again.
fn passes(error: &DoorError) -> bool {
    error
        .problem()
        .is_none_or(|problem| problem.retry_after_ms.is_some())
}

async fn take(
    named: &Named,
    consumer: &str,
    batch: u32,
    follow: bool,
    output: Output,
) -> anyhow::Result<Outcome> {
    let wait_ms = if follow { WAIT_MS } else { 0 };
    let fetch = json!({ "consumer": consumer, "limit": batch, "wait_ms": wait_ms });
    // What was written and is not acknowledged yet.
    let mut written: Vec<Value> = Vec::new();
    loop {
        let (path, body) = match written.is_empty() {
            true => ("fetch", fetch.clone()),
            false => ("ack", json!({ "deliveries": written })),
        };
        let mut answer = match named.try_ask(Method::POST, &[path], Some(body)).await? {
            Ok(answer) => answer,
            Err(error) if follow && passes(&error) => {
                say(&format!("{error}; asking again"))?;
                sleep(AGAIN_AFTER).await;
                continue;
            }
            Err(error) => return Err(error.into_failure()),
        };
        if !written.is_empty() {
            for gone in answer["gone"].as_array().into_iter().flatten() {
                say(&format!(
                    "an event was taken back before it was acknowledged: {}",
                    text(&gone["reason"])
                ))?;
            }
            written.clear();
            continue;
        }
        let Value::Array(events) = answer["events"].take() else {
            anyhow::bail!("the node's answer cannot be read");
        };
        if events.is_empty() && !follow {
            return Ok(Outcome::Done);
        }
        for mut event in events {
            output.json_line(&event["event"])?;
            written.push(event["delivery"].take());
        }
        std::io::stdout().flush()?;
    }
}

// Events go to stdout and nothing else does.
fn say(line: &str) -> std::io::Result<()> {
    writeln!(std::io::stderr(), "{line}")
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn show(groups: &[Value], output: Output) -> anyhow::Result<Outcome> {
    if output.is_json() {
        output.json(&groups)?;
        return Ok(Outcome::Done);
    }
    if groups.is_empty() {
        output.line("There are no consumer groups; `meridian consumer put` defines one.")?;
        return Ok(Outcome::Done);
    }
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    for group in groups {
        let served = &group["served"];
        let consumers = served["consumers"].as_object().map(|consumers| {
            let each = consumers
                .iter()
                .map(|(name, count)| format!("{name} ({count})"));
            each.collect::<Vec<_>>().join(", ")
        });
        let consumers = consumers.filter(|it| !it.is_empty());
        rows.push(vec![
            text(&group["name"]),
            text(&group["region"]),
            text(&served["waiting"]),
            text(&served["in_flight"]),
            consumers.unwrap_or_else(|| "-".to_owned()),
            text(&served["parked"]),
            match &served["lag_ms"] {
                Value::Null => "-".to_owned(),
                lag => format!("{} ms", text(lag)),
            },
        ]);
        if !served["error"].is_null() {
            let first = &served["first"];
            let place = match first.is_null() {
                true => String::new(),
                false => format!(" (at {} {})", text(&first["stream"]), first["revision"]),
            };
            wrong.push(format!(
                "{}{place}: {}",
                text(&group["name"]),
                text(&served["error"])
            ));
        }
    }
    let header = [
        "group",
        "served in",
        "waiting",
        "in flight",
        "consumers",
        "parked",
        "lag",
    ];
    output.table(&header, rows)?;
    for line in &wrong {
        output.line(line)?;
    }
    Ok(match wrong.is_empty() {
        true => Outcome::Done,
        false => Outcome::No,
    })
}

fn print_parked(name: &str, parked: &Value, output: Output) -> anyhow::Result<Outcome> {
    if output.is_json() {
        output.json(parked)?;
        return Ok(Outcome::Done);
    }
    let parked = parked["parked"].as_array().map_or(&[][..], Vec::as_slice);
    if parked.is_empty() {
        output.line(&format!("Consumer group {name} has put nothing aside."))?;
        return Ok(Outcome::Done);
    }
    let rows = parked.iter().map(|event| {
        vec![
            text(&event["order_key"]),
            text(&event["stream"]),
            text(&event["revision"]),
            text(&event["type"]),
            text(&event["attempts"]),
            text(&event["reason"]),
        ]
    });
    let header = ["event", "stream", "revision", "type", "attempts", "reason"];
    output.table(&header, rows.collect())?;
    Ok(Outcome::Done)
}

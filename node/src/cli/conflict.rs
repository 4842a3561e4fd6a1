//! `meridian conflict`: events that lost their place, and what becomes of them.

use reqwest::Method;
use serde_json::{Value, json};

use super::door::{Door, DoorError, Target};
use super::{Outcome, Output};

/// How many records, or events of one, are asked for in one request.
const PAGE: usize = 1_000;

/// What `meridian conflict` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List conflict records: events that could not be put back where they were, and writes that lost to later ones
    List {
        /// Which ones
        #[arg(long, value_enum, default_value_t = Status::Open)]
        status: Status,
        /// Only those about this stream
        #[arg(long)]
        stream: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Show one record and the events that it holds
    Show {
        /// The record
        id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Decide what becomes of a record's events, once
    #[command(after_help = "Exit code 1 when it is resolved already; nothing is changed then.")]
    Resolve {
        /// The record
        id: String,
        /// Append its events to their stream as it is now, leave them where they are for good, or, where a write lost
        /// to a later one, write it once more
        #[arg(long, value_enum)]
        action: Action,
        /// Why, for whoever looks later; needed to discard
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        target: Target,
    },
}

/// Which records.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Status {
    /// Those that wait for a decision, or for it to be carried out
    Open,
    /// Those that are resolved
    Resolved,
    /// Both
    All,
}

/// What becomes of a record's events.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Action {
    /// They are appended to their stream as it is now
    Rebase,
    /// They stay in the record
    Discard,
    /// What lost to a later write is written once more, as the latest
    Reinstate,
}

pub(crate) async fn run(command: Command, output: Output) -> anyhow::Result<Outcome> {
    match command {
        Command::List {
            status,
            stream,
            target,
        } => {
            let records = list(&target, status, stream.as_deref()).await?;
            show(&records, output)
        }
        Command::Show { id, target } => {
            let path = ["v1", "conflicts", &id];
            let mut all = pages(&target, &path, Vec::new(), "from", "events").await?;
            if output.is_json() {
                output.json(&all)?;
                return Ok(Outcome::Done);
            }
            let events = all["events"].take();
            show(std::slice::from_ref(&all), output)?;
            for event in events.as_array().into_iter().flatten() {
                // Nothing is to be done about it then. What lost to a later write was there all the time.
                let is_set_aside = all["superseded"].is_null();
                let by_now = match event["in_stream"].as_u64().filter(|_| is_set_aside) {
                    Some(revision) => format!(" (in the stream by now, at {revision})"),
                    None => String::new(),
                };
                output.line(&format!(
                    "{} {} {} {}{by_now}",
                    text(&event["revision"]),
                    text(&event["type"]),
                    text(&event["recorded_at"]),
                    event["data"],
                ))?;
            }
            Ok(Outcome::Done)
        }
        Command::Resolve {
            id,
            action,
            reason,
            target,
        } => {
            let action = match action {
                Action::Rebase => "rebase",
                Action::Discard => "discard",
                Action::Reinstate => "reinstate",
            };
            let body = json!({ "action": action, "reason": reason });
            let path = ["v1", "conflicts", &id, "resolve"];
            let record = ask(&target, Method::POST, &path, &[], Some(body)).await?;
            match output.is_json() {
                true => output.json(&record)?,
                false => {
                    show(&[record], output)?;
                }
            }
            Ok(Outcome::Done)
        }
    }
}

/// The conflict records of a status, about `stream` if one is given.
pub(super) async fn list(
    target: &Target,
    status: Status,
    stream: Option<&str>,
) -> anyhow::Result<Vec<Value>> {
    let status = match status {
        Status::Open => "open",
        Status::Resolved => "resolved",
        Status::All => "all",
    };
    let mut query = vec![("status", status.to_owned())];
    query.extend(stream.map(|stream| ("stream", stream.to_owned())));
    let path = ["v1", "conflicts"];
    let all = pages(target, &path, query, "after", "conflicts").await?;
    Ok(all["conflicts"].as_array().cloned().unwrap_or_default())
}

// All pages as one answer: the list called `list` of each, behind one another.
async fn pages(
    target: &Target,
    path: &[&str],
    wanted: Vec<(&str, String)>,
    by: &str,
    list: &str,
) -> anyhow::Result<Value> {
    let mut all = Vec::new();
    let mut next: Option<String> = None;
    loop {
        let mut query = vec![("limit", PAGE.to_string())];
        query.extend(wanted.clone());
        query.extend(next.map(|next| (by, next)));
        let mut page = ask(target, Method::GET, path, &query, None).await?;
        let Value::Array(some) = page[list].take() else {
            anyhow::bail!("the node's answer about conflicts cannot be read");
        };
        all.extend(some);
        if page["next"].is_null() {
            page[list] = Value::Array(all);
            return Ok(page);
        }
        next = Some(text(&page["next"]));
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

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn show(records: &[Value], output: Output) -> anyhow::Result<Outcome> {
    if output.is_json() {
        output.json(&records)?;
        return Ok(Outcome::Done);
    }
    let rows = records.iter().map(|record| {
        let resolution = &record["resolution"];
        let is_given = resolution["reason"]
            .as_str()
            .is_some_and(|reason| !reason.is_empty());
        vec![
            text(&record["id"]),
            text(&record["status"]),
            text(&record["stream"]),
            text(&record["count"]),
            format!("{} to {}", record["revisions"][0], record["revisions"][1]),
            text(&record["origin"]),
            text(&record["recorded_at"]),
            match is_given {
                true => text(&resolution["reason"]),
                false => text(&record["reason"]),
            },
        ]
    });
    let header = [
        "id",
        "status",
        "stream",
        "events",
        "revisions",
        "written in",
        "recorded",
        "why",
    ];
    output.table(&header, rows.collect())?;
    Ok(Outcome::Done)
}

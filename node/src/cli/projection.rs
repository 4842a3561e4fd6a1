//! `meridian projection`: read models, defined, followed, mended, exchanged and asked.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use meridian_node::files;
use meridian_projection::Definition;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::door::{Door, Target};
use super::{Outcome, Output, wrong_use};

/// How often it is looked how far a build is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What `meridian projection` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Define a projection in every region, from a TOML file; a higher version is built beside the present one
    Put {
        /// The definition
        file: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// List this region's projections
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Show one projection: its read models, how far they are, what is wrong
    Show(Named),
    /// Remove a projection and its read models in every region
    Remove(Named),
    /// Build the read model anew, beside the one that answers
    Rebuild {
        #[command(flatten)]
        named: Named,
        /// Stay until it has caught up; a progress bar on a terminal
        #[arg(long)]
        wait: bool,
    },
    /// Stay until the candidate, or else the one that answers, has caught up; a progress bar on a terminal
    Wait(Named),
    /// Let the candidate answer from here on
    Promote(Named),
    /// Let the read model answer again that answered before
    Rollback(Named),
    /// Hold the workers; queries go on
    Pause(Named),
    /// Let the workers go on, also where the failure policy stopped them
    Resume(Named),
    /// Compare the read model that answers with the other one, row by row; exit code 1 when they differ
    Diff(Named),
    /// List the events that could not be applied
    Parked {
        #[command(flatten)]
        named: Named,
        /// Also those that were left out for good
        #[arg(long)]
        skipped: bool,
    },
    /// Try a parked event again, with what its stream has parked, in order
    Retry {
        #[command(flatten)]
        named: Named,
        /// The event's number in `parked`
        id: i64,
    },
    /// Leave a parked event out for good
    Drop {
        #[command(flatten)]
        named: Named,
        /// The event's number in `parked`
        id: i64,
        /// Kept with the event
        #[arg(long)]
        reason: String,
    },
    /// Ask the read model that answers
    Query {
        #[command(flatten)]
        named: Named,
        /// One statement that reads
        sql: String,
        /// A value for a named parameter of it, as in --param carrier=UA
        #[arg(long = "param", value_name = "NAME=VALUE")]
        params: Vec<String>,
        /// A session token: the answer shows at least what it stands for
        #[arg(long, value_name = "TOKEN")]
        at_least: Option<String>,
    },
}

/// Which projection, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Named {
    /// The projection's name
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
        let mut path = vec!["v1", "projections", &self.name];
        path.extend(rest);
        ask(&self.target, method, &path, body).await
    }

    async fn change(&self, what: &str, output: Output) -> anyhow::Result<Outcome> {
        let projection = self.ask(Method::POST, &[what], Some(json!({}))).await?;
        show(&[projection], output)
    }
}

async fn ask(
    target: &Target,
    method: Method,
    path: &[&str],
    body: Option<Value>,
) -> anyhow::Result<Value> {
    let door = Door::new(&target.url)?;
    let mut request = door.request(method, path);
    if let Some(body) = body {
        request = request.json(&body);
    }
    door.json(request)
        .await
        .map_err(|error| error.into_failure())
}

pub(crate) async fn run(command: Command, output: Output) -> anyhow::Result<Outcome> {
    match command {
        Command::Put { file, target } => {
            let text = files::read_text(&file)
                .map_err(|error| wrong_use(format!("{}: {error}", file.display())))?;
            let definition = Definition::from_toml(&text)
                .and_then(|definition| definition.check().map(|()| definition))
                .map_err(|error| wrong_use(format!("{}: {error}", file.display())))?;
            let body = serde_json::to_value(&definition)?;
            let path = ["v1", "projections", &definition.name];
            let projection = ask(&target, Method::PUT, &path, Some(body)).await?;
            show(&[projection], output)
        }
        Command::List { target } => {
            let mut all = ask(&target, Method::GET, &["v1", "projections"], None).await?;
            let Value::Array(projections) = all["projections"].take() else {
                anyhow::bail!("the node's list of projections cannot be read");
            };
            show(&projections, output)
        }
        Command::Show(named) => {
            let projection = named.ask(Method::GET, &[], None).await?;
            show(&[projection], output)
        }
        Command::Remove(named) => {
            let removed = named.ask(Method::DELETE, &[], None).await?;
            if output.is_json() {
                output.json(&removed)?;
            } else {
                output.line(&format!(
                    "Projection {} is removed in every region.",
                    named.name
                ))?;
            }
            Ok(Outcome::Done)
        }
        Command::Rebuild { named, wait: false } => named.change("rebuild", output).await,
        Command::Rebuild { named, wait: true } => {
            named
                .ask(Method::POST, &["rebuild"], Some(json!({})))
                .await?;
            wait(&named, output).await
        }
        Command::Wait(named) => wait(&named, output).await,
        Command::Promote(named) => named.change("promote", output).await,
        Command::Rollback(named) => named.change("rollback", output).await,
        Command::Pause(named) => named.change("pause", output).await,
        Command::Resume(named) => named.change("resume", output).await,
        Command::Diff(named) => {
            let diff = named.ask(Method::GET, &["diff"], None).await?;
            print_diff(&diff, output)
        }
        Command::Parked { named, skipped } => {
            let mut path = vec!["v1", "projections", &named.name, "parked"];
            let door = Door::new(&named.target.url)?;
            let request = door
                .request(Method::GET, &std::mem::take(&mut path))
                .query(&[("skipped", skipped)]);
            let parked: Value = door
                .json(request)
                .await
                .map_err(|error| error.into_failure())?;
            print_parked(&named.name, &parked, output)
        }
        Command::Retry { named, id } => {
            let id = id.to_string();
            let drained = named
                .ask(Method::POST, &["parked", &id, "retry"], Some(json!({})))
                .await?;
            print_drained(&drained, output)
        }
        Command::Drop { named, id, reason } => {
            let id = id.to_string();
            let body = json!({ "reason": reason });
            let drained = named
                .ask(Method::POST, &["parked", &id, "drop"], Some(body))
                .await?;
            print_drained(&drained, output)
        }
        Command::Query {
            named,
            sql,
            params,
            at_least,
        } => {
            let mut values = Map::new();
            for param in &params {
                let (name, value) = param.split_once('=').ok_or_else(|| {
                    wrong_use(format!(
                        "{param:?} is no parameter; write --param NAME=VALUE"
                    ))
                })?;
                // A number is one, anything else is text.
                let value = serde_json::from_str(value)
                    .ok()
                    .filter(Value::is_number)
                    .unwrap_or_else(|| value.into());
                values.insert(name.to_owned(), value);
            }
            let body = json!({ "sql": sql, "params": values, "at_least": at_least });
            let answer = named.ask(Method::POST, &["query"], Some(body)).await?;
            print_answer(&answer, output)
        }
    }
}

/// Stays until what is being built has caught up, or cannot go on.
async fn wait(named: &Named, output: Output) -> anyhow::Result<Outcome> {
    let bar = ProgressBar::new(1000);
    let template = "{wide_bar} {percent}%, {msg}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    loop {
        let projection = named.ask(Method::GET, &[], None).await?;
        let model = match projection["candidate"].is_null() {
            true => &projection["active"],
            false => &projection["candidate"],
        };
        let doing = text(&model["doing"]);
        let progress = model["progress"].as_f64().unwrap_or(0.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is from 0 to 1"
        )]
        bar.set_position((progress * 1000.0) as u64);
        bar.set_message(format!("{doing}, {} events", text(&model["applied"])));
        let is_held = projection["paused"] == Value::Bool(true) || doing == "stopped";
        if is_held || doing == "following" {
            bar.finish_and_clear();
            return show(&[projection], output);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn show(projections: &[Value], output: Output) -> anyhow::Result<Outcome> {
    if output.is_json() {
        output.json(&projections)?;
        return Ok(Outcome::Done);
    }
    if projections.is_empty() {
        output.line("This region has no projections; `meridian projection put` defines one.")?;
        return Ok(Outcome::Done);
    }
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    for projection in projections {
        for role in ["active", "candidate", "previous"] {
            let model = &projection[role];
            if model.is_null() {
                continue;
            }
            let doing = match &projection["paused"] {
                Value::Bool(true) => "paused".to_owned(),
                _ => text(&model["doing"]),
            };
            rows.push(vec![
                text(&projection["name"]),
                role.to_owned(),
                text(&model["version"]),
                doing,
                text(&model["applied"]),
                text(&model["parked"]),
                text(&model["skipped"]),
                match &model["lag_ms"] {
                    Value::Null => "-".to_owned(),
                    lag => format!("{} ms", text(lag)),
                },
                text(&model["through_at"]),
            ]);
            if !model["error"].is_null() {
                wrong.push(format!(
                    "{} ({role}): {}",
                    text(&projection["name"]),
                    text(&model["error"])
                ));
            }
        }
    }
    let header = [
        "projection",
        "read model",
        "version",
        "doing",
        "applied",
        "parked",
        "skipped",
        "lag",
        "complete to",
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

fn print_diff(diff: &Value, output: Output) -> anyhow::Result<Outcome> {
    let is_same = diff["same"] == Value::Bool(true);
    let outcome = if is_same { Outcome::Done } else { Outcome::No };
    if output.is_json() {
        output.json(diff)?;
        return Ok(outcome);
    }
    let tables = diff["tables"].as_array().map_or(&[][..], Vec::as_slice);
    let rows = tables.iter().map(|table| {
        vec![
            text(&table["table"]),
            text(&table["rows"][0]),
            text(&table["rows"][1]),
            text(&table["only_in"][0]),
            text(&table["only_in"][1]),
            text(&table["incomparable"]),
        ]
    });
    output.line(&format!("Both are complete to {}.", text(&diff["through"])))?;
    let header = [
        "table",
        "rows",
        "rows of the other",
        "only here",
        "only there",
        "incomparable",
    ];
    output.table(&header, rows.collect())?;
    for table in tables {
        for (side, place) in [(0, "only here"), (1, "only there")] {
            for row in table["examples"][side].as_array().into_iter().flatten() {
                output.line(&format!("{} {place}: {row}", text(&table["table"])))?;
            }
        }
    }
    output.line(match is_same {
        true => "The two read models are the same.",
        false => "The two read models differ.",
    })?;
    Ok(outcome)
}

fn print_parked(name: &str, parked: &Value, output: Output) -> anyhow::Result<Outcome> {
    if output.is_json() {
        output.json(parked)?;
        return Ok(Outcome::Done);
    }
    let events = parked["parked"].as_array().map_or(&[][..], Vec::as_slice);
    if events.is_empty() {
        output.line(&format!("Projection {name} has parked no events."))?;
        return Ok(Outcome::Done);
    }
    let rows = events.iter().map(|event| {
        [
            "id", "kind", "stream", "revision", "type", "attempts", "reason",
        ]
        .map(|column| text(&event[column]))
        .to_vec()
    });
    let header = [
        "id", "kind", "stream", "revision", "type", "tries", "reason",
    ];
    output.table(&header, rows.collect())?;
    Ok(Outcome::Done)
}

fn print_drained(drained: &Value, output: Output) -> anyhow::Result<Outcome> {
    let failed = !drained["error"].is_null();
    if output.is_json() {
        output.json(drained)?;
    } else {
        output.line(&format!(
            "Applied {} parked events.",
            text(&drained["applied"])
        ))?;
        if failed {
            output.line(&format!(
                "The next one still fails: {}",
                text(&drained["error"])
            ))?;
        }
    }
    Ok(if failed { Outcome::No } else { Outcome::Done })
}

fn print_answer(answer: &Value, output: Output) -> anyhow::Result<Outcome> {
    if output.is_json() {
        output.json(answer)?;
        return Ok(Outcome::Done);
    }
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(text).collect()
    };
    let columns = strings(&answer["columns"]);
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let rows = answer["rows"].as_array().into_iter().flatten().map(strings);
    output.table(&columns, rows.collect())?;
    Ok(Outcome::Done)
}

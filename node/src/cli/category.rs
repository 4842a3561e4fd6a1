//! `meridian category`: how writes to a category's streams are settled, and setting that.

use clap::ValueEnum;
use reqwest::Method;
use serde_json::{Value, json};

use super::door::{Door, DoorError, Target};
use super::{Outcome, Output};

/// What `meridian category` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the categories whose policy is set; every other one is home by hash
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Show the policy of a category
    Show {
        /// The category: the part of its streams' names before the first `-`
        category: String,
        #[command(flatten)]
        target: Target,
    },
    /// Set the policy of a category without events, in all regions at once
    #[command(after_help = "Exit code 1 when some region has yet to answer when the time is up.")]
    Set(Set),
    /// Take a category's policy back: it is home by hash then, and available
    Unset {
        /// The category
        category: String,
        #[command(flatten)]
        target: Target,
    },
}

/// What is to count.
#[derive(Debug, clap::Args)]
pub(crate) struct Set {
    /// The category: the part of its streams' names before the first `-`
    category: String,
    /// How writes are settled
    #[arg(long, value_enum)]
    mode: Mode,
    /// Who is home, in mode home: `hash`, `creator`, or `fixed:` and a region's name
    #[arg(long)]
    home: Option<String>,
    /// What a home does that cannot reach a majority of the regions, in mode home
    #[arg(long, value_enum)]
    isolation: Option<Isolation>,
    /// What its streams are, when every region may write them: in mode crdt g-counter, pn-counter, bounded-counter,
    /// g-set, or-set, mv-register or or-map; in mode lww document (unless given) or fields
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// How long to wait until it counts, in milliseconds
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(..=60_000))]
    wait_ms: u64,
    #[command(flatten)]
    target: Target,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// One home region gives out revisions
    Home,
    /// Every region writes; the later write wins
    Lww,
    /// Every region writes; operations merge
    Crdt,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Isolation {
    /// It goes on taking writes, which are set aside if the others go on without it
    Available,
    /// It refuses writes; what it acknowledged is never set aside
    Fenced,
}

pub(crate) async fn run(command: Command, output: Output) -> anyhow::Result<Outcome> {
    match command {
        Command::List { target } => {
            let path = ["v1", "categories"];
            let mut page = ask(&target, Method::GET, &path, None).await?;
            let Value::Array(categories) = page["categories"].take() else {
                anyhow::bail!("the node's list of categories cannot be read")
            };
            show(categories, output)
        }
        Command::Show { category, target } => {
            let path = ["v1", "categories", &category];
            show(vec![ask(&target, Method::GET, &path, None).await?], output)
        }
        Command::Set(set) => {
            let mut body = json!({ "mode": name_of(set.mode), "wait_ms": set.wait_ms });
            if let Some(home) = &set.home {
                body["home"] = match home.split_once(':') {
                    Some(("fixed", region)) => json!({ "fixed": region }),
                    _ => json!(home),
                };
            }
            if let Some(isolation) = set.isolation {
                body["isolation"] = json!(name_of(isolation));
            }
            if let Some(kind) = &set.kind {
                body["type"] = json!(kind);
            }
            let path = ["v1", "categories", &set.category];
            let category = ask(&set.target, Method::PUT, &path, Some(body)).await?;
            end(category, output)
        }
        Command::Unset { category, target } => {
            let path = ["v1", "categories", &category];
            end(ask(&target, Method::DELETE, &path, None).await?, output)
        }
    }
}

fn name_of(value: impl ValueEnum) -> String {
    let named = value.to_possible_value();
    named.map_or_else(String::new, |it| it.get_name().to_owned())
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
    door.json(request).await.map_err(DoorError::into_failure)
}

// Whether it counts already.
fn end(category: Value, output: Output) -> anyhow::Result<Outcome> {
    let is_over = category["waits_for"].as_array().is_none_or(Vec::is_empty);
    show(vec![category], output)?;
    Ok(match is_over {
        true => Outcome::Done,
        false => Outcome::No,
    })
}

fn show(categories: Vec<Value>, output: Output) -> anyhow::Result<Outcome> {
    if output.is_json() {
        output.json(&categories)?;
        return Ok(Outcome::Done);
    }
    let rows = categories.iter().map(|category| {
        let text = |key: &str| category[key].as_str().unwrap_or_default().to_owned();
        let home = match category["home"]["fixed"].as_str() {
            Some(region) => format!("fixed:{region}"),
            None if category["home"].is_null() => "every region".to_owned(),
            None => text("home"),
        };
        let waits_for: Vec<&str> = category["waits_for"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let state = match waits_for.is_empty() {
            true => String::new(),
            false => format!("being set, waits for {}", waits_for.join(", ")),
        };
        vec![
            text("category"),
            text("mode"),
            text("type"),
            home,
            text("isolation"),
            state,
        ]
    });
    output.table(
        &["category", "mode", "type", "home", "isolation", ""],
        rows.collect(),
    )?;
    Ok(Outcome::Done)
}

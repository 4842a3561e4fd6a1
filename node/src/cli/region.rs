//! `meridian region`: takes a region's share of homes from it, gives it back, and changes who is a member.

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
    /// Say how a region stands: whether it is a member, and what would strand without it
    Show(Shown),
    /// Put a lost region out: the others take its homes over and settle the order without it
    Fence(Fence),
    /// Make a new region, whose node runs already, a member; it then takes its share of homes
    Join(Named),
    /// Let a drained region go for good: the others go on without it, and it never comes back
    Leave(Leave),
}

/// Which region, and where to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Shown {
    /// The region's name
    region: String,
    #[command(flatten)]
    target: Target,
}

/// Which region is lost, and where to ask.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 1 when the others have not gone on without it when the time is up; they will."
)]
pub(crate) struct Fence {
    #[command(flatten)]
    named: Named,
    /// Also when fewer than a majority remain, as in a federation of two: what the others acknowledged may
    /// then strand, too
    #[arg(long)]
    force: bool,
    /// As part of the fence that is under way, which waits for it
    #[arg(long)]
    evict: bool,
}

/// Which region goes, and where to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Leave {
    #[command(flatten)]
    named: Named,
    /// Also when fewer than a majority remain, as in a federation of two
    #[arg(long)]
    force: bool,
}

/// Which region, and where to ask.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code 1 when it is still under way when the time is up.")]
pub(crate) struct Named {
    /// The region's name
    region: String,
    /// How long to wait until it is done, in milliseconds; it goes on in any case
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(..=60_000))]
    wait_ms: u64,
    #[command(flatten)]
    target: Target,
}

pub(crate) async fn run(command: Command, output: Output) -> anyhow::Result<Outcome> {
    let (what, named) = match &command {
        Command::Drain(named) => ("drain", named),
        Command::Resume(named) => ("resume", named),
        Command::Show(shown) => return show(shown, output).await,
        Command::Fence(asked) => return fence(asked, output).await,
        Command::Join(named) => {
            let body = json!({ "wait_ms": named.wait_ms });
            return change_members("join", named, &body, output).await;
        }
        Command::Leave(asked) => {
            let body = json!({ "wait_ms": asked.named.wait_ms, "force": asked.force });
            return change_members("leave", &asked.named, &body, output).await;
        }
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
            (_, _) => "Some homes are still on their way; `meridian status` tells.".to_owned(),
        })?;
    }
    Ok(match is_over {
        true => Outcome::Done,
        false => Outcome::No,
    })
}

async fn standing(door: &Door, region: &str) -> anyhow::Result<Value> {
    let request = door.request(Method::GET, &["v1", "regions", region]);
    door.json(request).await.map_err(DoorError::into_failure)
}

async fn show(shown: &Shown, output: Output) -> anyhow::Result<Outcome> {
    let door = Door::new(&shown.target.url)?;
    let standing = standing(&door, &shown.region).await?;
    if output.is_json() {
        output.json(&standing)?;
    } else {
        output.line(&describe(&standing))?;
    }
    Ok(Outcome::Done)
}

fn describe(standing: &Value) -> String {
    let text = |key: &str| standing[key].as_str().unwrap_or_default().to_owned();
    let region = text("region");
    let stands = match text("standing").as_str() {
        "member" => "is a member".to_owned(),
        "fencing" => format!(
            "is being fenced; that waits for {}",
            list(&standing["waits_for"])
        ),
        "out" => "is fenced: the others go on without it".to_owned(),
        "joining" => format!(
            "is becoming a member; that waits for {}",
            list(&standing["waits_for"])
        ),
        "learner" => {
            "is no member yet: it takes over what the others write, and nobody waits for it"
                .to_owned()
        }
        "leaving" => "is leaving, once every other region holds what it holds".to_owned(),
        "left" => "has left for good: its node can be stopped".to_owned(),
        other => format!("is {other}"),
    };
    let heard = match standing["silent_for_ms"].as_u64() {
        Some(silent_ms) => format!(
            " It was last heard {:.1} s ago.",
            std::time::Duration::from_millis(silent_ms).as_secs_f64()
        ),
        None => String::new(),
    };
    format!("Region {region} {stands}.{heard}")
}

// Asks for a region to join or leave, and says how far that came.
async fn change_members(
    what: &str,
    named: &Named,
    body: &Value,
    output: Output,
) -> anyhow::Result<Outcome> {
    let door = Door::new(&named.target.url)?;
    let request = door.request(Method::POST, &["v1", "regions", &named.region, what]);
    let asked = door.json(request.json(body)).await;
    let changed: Value = asked.map_err(DoorError::into_failure)?;
    if output.is_json() {
        output.json(&changed)?;
    } else {
        output.line(&describe(&changed))?;
    }
    Ok(match changed["done_after_ms"].is_u64() {
        true => Outcome::Done,
        false => Outcome::No,
    })
}

fn list(names: &Value) -> String {
    let names = names.as_array().into_iter().flatten();
    let names: Vec<&str> = names.filter_map(Value::as_str).collect();
    names.join(", ")
}

async fn fence(asked: &Fence, output: Output) -> anyhow::Result<Outcome> {
    let named = &asked.named;
    let region = &named.region;
    let door = Door::new(&named.target.url)?;
    if !output.is_json() {
        let before = standing(&door, region).await?;
        output.line(&describe(&before))?;
        let not_here = before["not_here"].as_u64().unwrap_or_default();
        output.line(&format!(
            "Seen of it and not here: {not_here} events. They strand in it, with whatever it acknowledged \
             alone, until it comes back."
        ))?;
        if asked.force {
            output.line(
                "Forced: if fewer than a majority remain, what the others acknowledged may strand, too.",
            )?;
        }
    }
    let body = json!({ "wait_ms": named.wait_ms, "force": asked.force, "evict": asked.evict });
    let request = door
        .request(Method::POST, &["v1", "regions", region, "fence"])
        .json(&body);
    let fenced: Value = door.json(request).await.map_err(DoorError::into_failure)?;
    if output.is_json() {
        output.json(&fenced)?;
    } else {
        for (what, key) in [
            (
                "all who remain have sealed what it wrote",
                "sealed_after_ms",
            ),
            ("the others go on without it", "opened_after_ms"),
        ] {
            match fenced[key].as_u64() {
                Some(after_ms) => output.line(&format!("{after_ms:>6} ms  {what}"))?,
                None => output.line(&format!(" not yet  {what}"))?,
            }
        }
        output.line(&describe(&fenced))?;
    }
    Ok(match fenced["opened_after_ms"].is_u64() {
        true => Outcome::Done,
        false => Outcome::No,
    })
}

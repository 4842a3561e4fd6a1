//! `meridian reservation`: names that only one owner may have in all regions.

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use jiff::SignedDuration;
use reqwest::Method;
use serde_json::{Value, json};

use super::door::{Door, DoorError, Target};
use super::{Outcome, Output};

/// What `meridian reservation` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Reserve a key for an owner, in all regions; again by the same owner, it is held for longer
    #[command(after_help = "Exit code 1 when another owner holds it; nothing is changed then.")]
    Take {
        #[command(flatten)]
        key: Key,
        /// Whose it is to be
        #[arg(long, value_parser = NonEmptyStringValueParser::new())]
        owner: String,
        /// For how long, as in 90s, 10m or 30d; for good unless given
        #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
        hold_for: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Show who holds a key, as far as the region that is asked knows
    #[command(after_help = "Exit code 1 when nobody does, as far as it knows.")]
    Show {
        #[command(flatten)]
        key: Key,
        #[command(flatten)]
        target: Target,
    },
    /// Release a key
    #[command(after_help = "Exit code 1 when another owner holds it; nothing is changed then.")]
    Release {
        #[command(flatten)]
        key: Key,
        /// Whose it is
        #[arg(long, value_parser = NonEmptyStringValueParser::new())]
        owner: String,
        #[command(flatten)]
        target: Target,
    },
}

/// A key.
#[derive(Debug, clap::Args)]
pub(crate) struct Key {
    /// What kind of key, as in email
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    namespace: String,
    /// The key, as in someone@example.org
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    key: String,
}

/// Reads a time of whole seconds.
fn seconds(given: &str) -> Result<u64, String> {
    let wrong =
        || "write whole seconds, minutes, hours or days, as in 90s, 10m, 2h or 30d".to_owned();
    // Days are 24 hours here, wherever clocks are put forward; they are no unit of a time to jiff.
    if let Some(days) = given.strip_suffix('d') {
        let days: u64 = days.parse().map_err(|_| wrong())?;
        return days
            .checked_mul(24 * 3600)
            .filter(|it| *it > 0)
            .ok_or_else(wrong);
    }
    let time: SignedDuration = given.parse().map_err(|_| wrong())?;
    let time = Duration::try_from(time).map_err(|_| wrong())?;
    match (time.as_secs(), time.subsec_nanos()) {
        (seconds @ 1.., 0) => Ok(seconds),
        _ => Err(wrong()),
    }
}

pub(crate) async fn run(command: Command, output: Output) -> anyhow::Result<Outcome> {
    match command {
        Command::Take {
            key,
            owner,
            hold_for,
            target,
        } => {
            let mut body = json!({ "owner": owner });
            if let Some(seconds) = hold_for {
                body["for_seconds"] = json!(seconds);
            }
            let held = ask(&target, Method::PUT, &key, &[], Some(body)).await?;
            show(&held, output)
        }
        Command::Show { key, target } => {
            let held = ask(&target, Method::GET, &key, &[], None).await?;
            show(&held, output)
        }
        Command::Release { key, owner, target } => {
            let query = [("owner", owner)];
            let released = ask(&target, Method::DELETE, &key, &query, None).await?;
            if output.is_json() {
                output.json(&released)?;
                return Ok(Outcome::Done);
            }
            let text = |key: &str| released[key].as_str().unwrap_or_default();
            let what = match released["released"].as_bool() {
                Some(true) => "is released",
                _ => "was not reserved",
            };
            output.line(&format!(
                "Key {} of {} {what}; region {} decides about it.",
                text("key"),
                text("namespace"),
                text("home")
            ))?;
            Ok(Outcome::Done)
        }
    }
}

async fn ask(
    target: &Target,
    method: Method,
    key: &Key,
    query: &[(&str, String)],
    body: Option<Value>,
) -> anyhow::Result<Value> {
    let door = Door::new(&target.url)?;
    let path = ["v1", "reservations", &key.namespace, &key.key];
    let mut request = door.request(method, &path).query(query);
    if let Some(body) = body {
        request = request.json(&body);
    }
    door.json(request).await.map_err(DoorError::into_failure)
}

fn show(held: &Value, output: Output) -> anyhow::Result<Outcome> {
    if output.is_json() {
        output.json(held)?;
        return Ok(Outcome::Done);
    }
    let text = |key: &str| held[key].as_str().unwrap_or_default().to_owned();
    let until = held["until"].as_str().unwrap_or("for good").to_owned();
    let row = vec![
        text("namespace"),
        text("key"),
        text("owner"),
        text("since"),
        until,
        text("home"),
        text("told_by"),
    ];
    let header = [
        "namespace",
        "key",
        "owner",
        "since",
        "until",
        "home",
        "told by",
    ];
    output.table(&header, vec![row])?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_and_whole_seconds() {
        for (given, expected) in [("90s", 90), ("10m", 600), ("2h", 7200), ("30d", 2_592_000)] {
            assert_eq!(seconds(given), Ok(expected), "{given}");
        }
        for wrong in [
            "",
            "0s",
            "0d",
            "-5s",
            "10",
            "1.5s",
            "500ms",
            "d",
            "99999999999999999d",
        ] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}

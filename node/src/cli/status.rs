//! `meridian status`: what a node says about its region and the others.

use std::time::Duration;

use meridian_node::{AtStake, ControlStatus, LinkStatus, MemberStatus, NodeStatus};
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;

use super::door::{Door, DoorError, Target};
use super::{Outcome, Output, settling};

/// What `meridian status` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 1 when the node refuses appends, holds damaged ranges, a link has raised an alarm, or regions disagree on the settled order."
)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
}

pub(crate) async fn run(args: Args, output: Output) -> anyhow::Result<Outcome> {
    let (whole, status) = ask(&args.target).await?;
    if output.is_json() {
        output.json(&whole)?;
    } else {
        print(&status, output)?;
    }
    let alarm = status.links.iter().any(|link| link.alarm.is_some());
    let partitions = &status.watermarks.partitions;
    let disagreement = partitions.iter().any(|marks| marks.stopped.is_some());
    if status.refusing.is_some() || !status.damaged.is_empty() || alarm || disagreement {
        return Ok(Outcome::No);
    }
    Ok(Outcome::Done)
}

/// A node's status, as it was sent and as it was understood.
///
/// # Errors
/// When nobody answers, or something else than a node of about this version does.
pub(super) async fn ask(target: &Target) -> anyhow::Result<(Value, NodeStatus)> {
    let door = Door::new(&target.url)?;
    let whole: Value = door
        .json(door.request(Method::GET, &["v1", "status"]))
        .await
        .map_err(DoorError::into_failure)?;
    let status = NodeStatus::deserialize(&whole).map_err(|error| {
        anyhow::anyhow!(
            "the node's status cannot be read ({error}); it may be of another version than this command"
        )
    })?;
    Ok((whole, status))
}

fn print(status: &NodeStatus, output: Output) -> anyhow::Result<()> {
    output.line(&format!(
        "Region {} of federation {}, version {}: {} events in {} partitions.",
        status.region, status.federation, status.version, status.events, status.partitions
    ))?;
    let link = |name: &str| status.links.iter().find(|link| link.region == name);
    // Nobody waits to hear from it, or for what it holds.
    let has_left = |name: &String| status.control.left.contains(name);
    let member = |member: &MemberStatus| {
        let mut row = vec![
            member.id.to_string(),
            member.name.clone(),
            member.http.clone(),
            member.quic.clone(),
        ];
        row.extend(match has_left(&member.name) {
            true => ["left", "", "", "", ""].map(str::to_owned),
            false => link_cells(link(&member.name)),
        });
        row
    };
    output.table(
        &[
            "id",
            "region",
            "HTTP",
            "QUIC",
            "link",
            "heard",
            "round trip",
            "clock ahead",
            "lag",
        ],
        status.members.iter().map(member).collect(),
    )?;

    let others: Vec<&str> = status
        .members
        .iter()
        .filter(|member| member.name != status.region && !has_left(&member.name))
        .map(|member| member.name.as_str())
        .collect();
    let mut header = vec!["origin", "partition", "held here"];
    let held: Vec<String> = others
        .iter()
        .map(|name| format!("held in {name}"))
        .collect();
    header.extend(held.iter().map(String::as_str));
    let rows = status.logs.iter().map(|log| {
        let mut row = vec![
            log.origin.clone(),
            log.partition.to_string(),
            log.position.to_string(),
        ];
        row.extend(others.iter().map(|other| {
            log.held_by
                .iter()
                .find(|(name, _)| name == other)
                .map_or("?".to_owned(), |(_, position)| position.to_string())
        }));
        row
    });
    output.table(&header, rows.collect())?;

    let left = status.control.left.len() + status.control.learners.len();
    let regions = status.members.len().saturating_sub(left);
    output.line(&control(&status.control, regions))?;
    output.line(&at_stake(&status.at_stake))?;
    output.line(&settling::summary(status))?;
    for held in &status.watermarks.held_back {
        output.line(&settling::blame(held, status.partitions))?;
    }
    if !status.watermarks.held_back.is_empty() {
        output.line("What to do about it: `meridian why stuck`.")?;
    }
    if let Some(reason) = &status.refusing {
        output.line(&format!("Appends are refused: {reason}."))?;
    }
    for damaged in &status.damaged {
        output.line(&format!("Damaged and not served: {damaged}."))?;
    }
    for link in &status.links {
        if let Some(alarm) = &link.alarm {
            output.line(&format!("Alarm on the link with {}: {alarm}.", link.region))?;
        }
    }
    Ok(())
}

fn at_stake(at_stake: &AtStake) -> String {
    match at_stake.events {
        0 => "If this region vanished now, nothing would strand.".to_owned(),
        events => format!(
            "If this region vanished now, {events} {} of the last {:.1} s would strand: no other region has \
             them.",
            if events == 1 { "event" } else { "events" },
            Duration::from_millis(at_stake.for_ms).as_secs_f64()
        ),
    }
}

fn control(control: &ControlStatus, regions: usize) -> String {
    let mut said = match &control.leader {
        Some(leader) => format!(
            "Control plane: led by {leader}, {} of {regions} regions vote, decision {}",
            control.voters.len(),
            control.decisions
        ),
        None => "Control plane: no leader, so nothing can be decided; the rest goes on".to_owned(),
    };
    if control.moved > 0 {
        said += &format!("; streams moved: {}", control.moved);
    }
    if control.moving > 0 {
        said += &format!(", under way: {}", control.moving);
    }
    let drained = control
        .drained
        .iter()
        .filter(|it| !control.left.contains(it));
    let drained: Vec<&str> = drained.map(String::as_str).collect();
    if !drained.is_empty() {
        said += &format!("; drained: {}", drained.join(", "));
    }
    if !control.fenced.is_empty() {
        said += &format!("; fenced: {}", control.fenced.join(", "));
    }
    if !control.fence_waits_for.is_empty() {
        said += &format!("; a fence waits for {}", control.fence_waits_for.join(", "));
    }
    if !control.joining.is_empty() {
        said += &format!("; becoming members: {}", control.joining.join(", "));
    }
    if !control.learners.is_empty() {
        said += &format!("; no members yet: {}", control.learners.join(", "));
    }
    if !control.leaving.is_empty() {
        said += &format!("; leaving: {}", control.leaving.join(", "));
    }
    if !control.left.is_empty() {
        said += &format!("; left: {}", control.left.join(", "));
    }
    if !control.opening.is_empty() {
        said += &format!(
            "; {} yet to open what moved there",
            control.opening.join(", ")
        );
    }
    match &control.error {
        Some(error) => format!("{said}. Trouble: {error}."),
        None => said + ".",
    }
}

fn link_cells(link: Option<&LinkStatus>) -> [String; 5] {
    let Some(link) = link else {
        return ["this node", "", "", "", ""].map(str::to_owned);
    };
    let state = match (link.receiving, link.sending) {
        _ if link.alarm.is_some() => "ALARM",
        (true, true) => "up",
        (true, false) => "receiving only",
        (false, true) => "sending only",
        (false, false) => "down",
    };
    let milliseconds = |value: Option<f64>| match value {
        Some(value) => format!("{value:.1} ms"),
        None => "?".to_owned(),
    };
    let heard = match link.last_heard_ms {
        Some(milliseconds) if milliseconds < 10_000 => format!("{milliseconds} ms ago"),
        Some(milliseconds) => format!("{} s ago", milliseconds / 1000),
        None => "never".to_owned(),
    };
    [
        state.to_owned(),
        heard,
        milliseconds(link.rtt_ms),
        milliseconds(link.clock_offset_ms),
        format!("{} events", link.lag_events),
    ]
}

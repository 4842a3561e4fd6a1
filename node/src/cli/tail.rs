//! `meridian tail`: all events, as they arrived in a region or in the one order of all regions.

use std::io::Write;

use reqwest::Method;

use super::door::{Door, DoorError, Target};
use super::event::{Event, EventsPage};
use super::following::{Follower, Message, follow};
use super::{Outcome, Output};

/// How many events are asked for at a time.
const PAGE_EVENTS: u64 = 1000;

/// What `meridian tail` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How settled the events must be
    #[arg(long, value_enum, default_value_t = Tier::Live)]
    tier: Tier,
    /// Read on after this cursor; from the beginning by default. One of the live tier is good in the
    /// region that gave it, one of stable and final in every region
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// Only events of this category's streams
    #[arg(long)]
    category: Option<String>,
    /// Only events of this type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Stop after this many events
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Go on with what comes, across lost connections, until interrupted
    #[arg(long, short = 'f')]
    follow: bool,
    #[command(flatten)]
    target: Target,
}

/// How settled events must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Tier {
    /// All that is held here, in the order it arrived
    Live,
    /// The one order, the same in every region, as far as nothing can still come before
    Stable,
    /// The one order as far as every region has it stable: for what cannot be taken back
    Final,
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Stable => "stable",
            Self::Final => "final",
        }
    }
}

pub(crate) async fn run(args: Args, output: Output) -> anyhow::Result<Outcome> {
    let mut tail = Tail {
        door: Door::new(&args.target.url)?,
        cursor: args.after.clone().unwrap_or_default(),
        printed: 0,
        args,
        output,
    };
    if tail.args.follow {
        follow(&mut tail).await?;
    } else {
        tail.read_to_the_end().await?;
    }
    // Not a result but a help for going on, hence beside the events.
    if !tail.cursor.is_empty() {
        let _ = writeln!(std::io::stderr(), "Read on with --after {}", tail.cursor);
    }
    Ok(Outcome::Done)
}

struct Tail {
    door: Door,
    args: Args,
    output: Output,
    cursor: String,
    printed: u64,
}

impl Tail {
    fn left(&self) -> u64 {
        self.args.limit.unwrap_or(u64::MAX) - self.printed
    }

    fn request_up_to(&self, limit: Option<u64>) -> reqwest::RequestBuilder {
        let mut query = vec![("tier", self.args.tier.name().to_owned())];
        if !self.cursor.is_empty() {
            query.push(("after", self.cursor.clone()));
        }
        if let Some(category) = &self.args.category {
            query.push(("category", category.clone()));
        }
        if let Some(event_type) = &self.args.event_type {
            query.push(("type", event_type.clone()));
        }
        if let Some(limit) = limit {
            query.push(("limit", limit.to_string()));
        }
        let request = self.door.request(Method::GET, &["v1", "events"]);
        request.query(&query)
    }

    async fn read_to_the_end(&mut self) -> anyhow::Result<()> {
        while self.left() > 0 {
            let request = self.request_up_to(Some(self.left().min(PAGE_EVENTS)));
            let page: EventsPage = self
                .door
                .json(request)
                .await
                .map_err(DoorError::into_failure)?;
            for event in &page.events {
                self.print(event)?;
            }
            let stuck = page.events.is_empty() && page.cursor == self.cursor;
            self.cursor = page.cursor;
            if page.end || stuck {
                break;
            }
        }
        Ok(())
    }

    fn print(&mut self, event: &Event) -> anyhow::Result<()> {
        self.printed += 1;
        if self.output.is_json() {
            self.output.json_line(event)?;
        } else {
            self.output.line(&format!(
                "{}  {}  {}@{}  {}  {}",
                event.recorded_at,
                event.origin,
                event.stream,
                event.revision,
                event.event_type,
                event.shown_data()
            ))?;
        }
        Ok(())
    }
}

impl Follower for Tail {
    fn door(&self) -> &Door {
        &self.door
    }

    fn request(&self) -> reqwest::RequestBuilder {
        self.request_up_to(None)
    }

    fn is_done(&self) -> bool {
        self.left() == 0
    }

    fn take(&mut self, message: Message) -> anyhow::Result<()> {
        if !message.data.is_empty() {
            let event: Event = serde_json::from_str(&message.data)
                .map_err(|error| anyhow::anyhow!("an event cannot be read: {error}"))?;
            self.print(&event)?;
        }
        if let Some(id) = message.id {
            self.cursor = id;
        }
        Ok(())
    }
}

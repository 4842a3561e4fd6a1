//! `meridian read`: one stream's events.

use reqwest::Method;

use super::door::{Door, Target};
use super::event::{self, StreamPage};
use super::{Outcome, Output};

/// The most events that a node puts on one page.
const PAGE_EVENTS_MAX: u64 = 10_000;

/// What `meridian read` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The stream, as in order-42
    stream: String,
    /// The first revision; by default the stream's first, or its last with --backwards
    #[arg(long, value_name = "REVISION")]
    from: Option<u64>,
    /// The most events
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Newest first
    #[arg(long)]
    backwards: bool,
    #[command(flatten)]
    target: Target,
}

pub(crate) async fn run(args: Args, output: Output) -> anyhow::Result<Outcome> {
    let door = Door::new(&args.target.url)?;
    let mut whole = StreamPage {
        events: Vec::new(),
        next: args.from,
        end: false,
    };
    loop {
        let wanted = args.limit - whole.events.len() as u64;
        let mut query = vec![("limit", wanted.min(PAGE_EVENTS_MAX).to_string())];
        if args.backwards {
            query.push(("direction", "backwards".to_owned()));
        }
        if let Some(from) = whole.next {
            query.push(("from", from.to_string()));
        }
        let request = door.request(Method::GET, &["v1", "streams", &args.stream, "events"]);
        let page: StreamPage = match door.json(request.query(&query)).await {
            Ok(page) => page,
            Err(error) => return Err(error.into_failure()),
        };
        whole.events.extend(page.events);
        whole.next = page.next;
        whole.end = page.end;
        if page.end || page.next.is_none() || whole.events.len() as u64 >= args.limit {
            break;
        }
    }
    if output.is_json() {
        output.json(&whole)?;
        return Ok(Outcome::Done);
    }
    if whole.events.is_empty() {
        let from = args
            .from
            .map_or(String::new(), |from| format!(" from revision {from} on"));
        output.line(&format!(
            "This region holds no events of {}{from}.",
            args.stream
        ))?;
        return Ok(Outcome::Done);
    }
    event::table(&whole.events, output)?;
    match whole.next {
        Some(next) if !whole.end => output.line(&format!("There are more: --from {next}."))?,
        _ => {}
    }
    Ok(Outcome::Done)
}

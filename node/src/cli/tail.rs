//! `meridian tail`: all events, as they arrived in a region or in the one order of all regions.

use std::io::Write;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Method, header};

use super::door::{Door, DoorError, Problem, Target};
use super::event::{Event, EventsPage};
use super::{Outcome, Output};

/// How many events are asked for at a time.
const PAGE_EVENTS: u64 = 1000;
/// How long to wait before a connection that broke is made again.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
/// A node sends something at least this often; a connection silent for longer is dead.
const SILENCE_MAX: Duration = Duration::from_secs(60);

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
        tokio::select! {
            followed = tail.follow() => followed?,
            interrupted = tokio::signal::ctrl_c() => interrupted?,
        }
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

    fn request(&self, limit: Option<u64>) -> reqwest::RequestBuilder {
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
            let request = self.request(Some(self.left().min(PAGE_EVENTS)));
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

    /// Follows on until the limit is reached.
    async fn follow(&mut self) -> anyhow::Result<()> {
        let mut connected = false;
        while self.left() > 0 {
            let request = self
                .request(None)
                .header(header::ACCEPT, "text/event-stream");
            let broke = match self.door.send(request).await {
                Ok(response) => {
                    connected = true;
                    self.follow_one(response).await?
                }
                // A node that was never there is a mistake in the URL; one that goes away comes back.
                Err(error) if connected && may_pass(&error) => {
                    format!("{:#}", anyhow::Error::new(error))
                }
                Err(error) => return Err(error.into_failure()),
            };
            if self.left() > 0 {
                let _ = writeln!(std::io::stderr(), "meridian: {broke}; connecting again");
                tokio::time::sleep(RECONNECT_AFTER).await;
            }
        }
        Ok(())
    }

    /// Prints what one connection brings. Returns how it broke.
    async fn follow_one(&mut self, response: reqwest::Response) -> anyhow::Result<String> {
        let mut bytes = response.bytes_stream();
        let mut messages = Messages::default();
        loop {
            let chunk = match tokio::time::timeout(SILENCE_MAX, bytes.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(_))) => return Ok("the connection was lost".to_owned()),
                Ok(None) => return Ok("the node closed the connection".to_owned()),
                Err(_) => return Ok("the node has gone silent".to_owned()),
            };
            for message in messages.push(&chunk) {
                if message.name == "error" {
                    let problem = Problem::parse(message.data.as_bytes());
                    let detail = problem.map_or(message.data, |problem| problem.detail);
                    return Ok(format!("the node ended the stream: {detail}"));
                }
                if !message.data.is_empty() {
                    let event: Event = serde_json::from_str(&message.data)
                        .map_err(|error| anyhow::anyhow!("an event cannot be read: {error}"))?;
                    self.print(&event)?;
                }
                if let Some(id) = message.id {
                    self.cursor = id;
                }
                if self.left() == 0 {
                    return Ok(String::new());
                }
            }
        }
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

/// Whether trying again later can help.
fn may_pass(error: &DoorError) -> bool {
    match error {
        DoorError::Unreachable { .. } => true,
        DoorError::Refused { problem } => problem.code == "unavailable",
        DoorError::Stranger { .. } => false,
    }
}

/// One message of an event stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    name: String,
    id: Option<String>,
    data: String,
}

/// Puts messages together from the pieces in which an event stream arrives.
#[derive(Default)]
struct Messages {
    buffered: Vec<u8>,
    current: Message,
}

impl Messages {
    /// Takes the next piece and returns the messages that it completes.
    fn push(&mut self, piece: &[u8]) -> Vec<Message> {
        self.buffered.extend_from_slice(piece);
        let mut complete = Vec::new();
        let mut start = 0;
        while let Some(length) = self.buffered[start..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let line = String::from_utf8_lossy(&self.buffered[start..start + length]).into_owned();
            start += length + 1;
            self.line(line.strip_suffix('\r').unwrap_or(&line), &mut complete);
        }
        self.buffered.drain(..start);
        complete
    }

    fn line(&mut self, line: &str, complete: &mut Vec<Message>) {
        if line.is_empty() {
            let mut message = std::mem::take(&mut self.current);
            if message.data.ends_with('\n') {
                message.data.pop();
            }
            if message != Message::default() {
                complete.push(message);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.current.name),
            "id" => self.current.id = Some(value.to_owned()),
            "data" => {
                self.current.data.push_str(value);
                self.current.data.push('\n');
            }
            // `retry`, comments (an empty field name), and what may come later.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "retry: 1000\n: hello\n\nid: 7\ndata: {\"a\":\ndata: 1}\n\n: heartbeat\nid: 9\n\nevent: error\ndata: {}\r\n\r\n";

    #[test]
    fn messages_are_the_same_however_the_stream_is_cut() {
        let whole = Messages::default().push(STREAM.as_bytes());
        let message = |name: &str, id: Option<&str>, data: &str| Message {
            name: name.to_owned(),
            id: id.map(str::to_owned),
            data: data.to_owned(),
        };
        assert_eq!(
            whole,
            [
                message("", Some("7"), "{\"a\":\n1}"),
                message("", Some("9"), ""),
                message("error", None, "{}"),
            ]
        );
        for size in 1..STREAM.len() {
            let mut messages = Messages::default();
            let cut: Vec<Message> = STREAM
                .as_bytes()
                .chunks(size)
                .flat_map(|piece| messages.push(piece))
                .collect();
            assert_eq!(cut, whole, "cut every {size} bytes");
        }
    }
}

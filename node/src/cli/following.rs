//! Following an event stream of a node across lost connections, until interrupted.

use std::io::Write;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header;

use super::door::{Door, DoorError, Problem};

/// How long to wait before a connection that broke is made again.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
/// A node sends something at least this often; a connection silent for longer is dead.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Whoever takes what an event stream brings.
pub(super) trait Follower {
    fn door(&self) -> &Door;

    /// What to ask for, to go on after all that was taken.
    fn request(&self) -> reqwest::RequestBuilder;

    fn is_done(&self) -> bool;

    fn take(&mut self, message: Message) -> anyhow::Result<()>;
}

/// Follows until `follower` is done, or somebody interrupts.
pub(super) async fn follow(follower: &mut impl Follower) -> anyhow::Result<()> {
    tokio::select! {
        followed = follow_on(follower) => followed,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

async fn follow_on(follower: &mut impl Follower) -> anyhow::Result<()> {
    let mut connected = false;
    while !follower.is_done() {
        let request = follower.request();
        let request = request.header(header::ACCEPT, "text/event-stream");
        let broke = match follower.door().send(request).await {
            Ok(response) => {
                connected = true;
                follow_one(follower, response).await?
            }
            // A node that was never there is a mistake in the URL; one that goes away comes back.
            Err(error) if connected && may_pass(&error) => {
                format!("{:#}", anyhow::Error::new(error))
            }
            Err(error) => return Err(error.into_failure()),
        };
        if !follower.is_done() {
            let _ = writeln!(std::io::stderr(), "meridian: {broke}; connecting again");
            tokio::time::sleep(RECONNECT_AFTER).await;
        }
    }
    Ok(())
}

/// Hands on what one connection brings. Returns how it broke.
async fn follow_one(
    follower: &mut impl Follower,
    response: reqwest::Response,
) -> anyhow::Result<String> {
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
            follower.take(message)?;
            if follower.is_done() {
                return Ok(String::new());
            }
        }
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
pub(super) struct Message {
    name: String,
    pub(super) id: Option<String>,
    pub(super) data: String,
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

//! What a writer asks, what became durable, and why nothing did.

use std::collections::BTreeSet;
use std::fmt;

use meridian_clock::{Dot, Epoch, RegionId, Timestamp};
use meridian_event::{NewEvent, RecordedEvent, Revision, StreamId};
use serde::{Deserialize, Serialize};

/// A batch of events for one stream: all of them are written, or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendRequest {
    /// The stream they belong to.
    pub stream: StreamId,
    /// What must be true of the stream for them to be written.
    pub expected: Expected,
    /// How safe they must be before the answer.
    pub durability: Durability,
    /// The events, at least one. Their ids make a repeated request harmless.
    pub events: Vec<NewEvent>,
}

/// What must be true of a stream for an append to happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// Nothing.
    #[default]
    Any,
    /// It has no events yet.
    None,
    /// It has at least one event.
    Exists,
    /// Its last event has this revision.
    Revision(Revision),
}

impl Expected {
    /// Whether a stream whose last event has revision `actual` is as expected.
    pub fn matches(self, actual: Option<Revision>) -> bool {
        match self {
            Self::Any => true,
            Self::None => actual.is_none(),
            Self::Exists => actual.is_some(),
            Self::Revision(expected) => actual == Some(expected),
        }
    }

    /// Whether a stream that has got as far as `actual` can never again be as expected, since
    /// revisions only rise.
    pub fn is_past(self, actual: Option<Revision>) -> bool {
        match (self, actual) {
            (Self::None, Some(_)) => true,
            (Self::Revision(expected), Some(actual)) => actual > expected,
            _ => false,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => out.write_str("any"),
            Self::None => out.write_str("none"),
            Self::Exists => out.write_str("exists"),
            Self::Revision(revision) => revision.fmt(out),
        }
    }
}

/// How safe an append is, or must be before it is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Durability {
    /// On disk in the region that wrote it.
    #[default]
    Region,
    /// On disk in this many regions, the writing one included.
    Regions(u16),
    /// On disk in every member region.
    All,
}

impl Durability {
    /// How many of `members` regions must hold the events.
    pub fn regions(self, members: usize) -> usize {
        match self {
            Self::Region => 1,
            Self::Regions(count) => usize::from(count),
            Self::All => members,
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region => out.write_str("region"),
            Self::Regions(count) => write!(out, "regions:{count}"),
            Self::All => out.write_str("all"),
        }
    }
}

/// What became durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appended {
    /// The stream the events are in.
    pub stream: StreamId,
    /// The first event's revision.
    pub first_revision: Revision,
    /// The last event's revision.
    pub last_revision: Revision,
    /// The region that gave out the revisions.
    pub home: RegionId,
    /// Each event's identity, in the sequence of the request.
    pub dots: Vec<Dot>,
    /// When the batch was stamped.
    pub timestamp: Timestamp,
    /// The level that was reached.
    pub durability: Durability,
    /// Whether a failover of the home could still set these events aside.
    pub could_strand: bool,
}

/// Why an append was not done, or is not known to be. Each variant asks something different of the
/// caller. It travels between nodes as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AppendError {
    /// Someone else wrote first. Look at what they wrote, then decide again.
    #[error(
        "stream {stream} is {}, not {expected}; look at the events since, then decide again",
        Actual(*actual)
    )]
    WrongExpectedRevision {
        /// The stream.
        stream: StreamId,
        /// What the request expected.
        expected: Expected,
        /// The revision of its last event; `None` when it has no events.
        actual: Option<Revision>,
        /// What was written after the expected revision, as far as fits.
        events_since: Vec<RecordedEvent>,
    },
    /// Another region orders this stream. Send the request there.
    #[error("stream {stream} is ordered in region {home} (epoch {epoch}); send the request there")]
    NotHome {
        /// The stream.
        stream: StreamId,
        /// The region that orders it.
        home: RegionId,
        /// Since when.
        epoch: Epoch,
    },
    /// Nothing was written. Try again later.
    #[error("nothing was written: {reason}; try again in {retry_after_ms} ms")]
    Unavailable {
        /// What is in the way.
        reason: String,
        /// When trying again makes sense.
        retry_after_ms: u64,
    },
    /// The events may be written, or may yet be. Repeat the request with the same event ids.
    #[error("it is not known whether the events were written: {reason}; repeat with the same ids")]
    Indeterminate {
        /// What is in the way of knowing.
        reason: String,
    },
    /// The request can never be done as it is. Nothing was written.
    #[error("the request is not valid: {reason}")]
    Invalid {
        /// What to change.
        reason: String,
    },
    /// The request is over a limit. Nothing was written.
    #[error("{what} has {actual}, the limit is {limit}; split the request")]
    TooLarge {
        /// What is too large, such as "the batch, in bytes".
        what: String,
        /// The limit.
        limit: u64,
        /// What the request has.
        actual: u64,
    },
    /// As things stand in the region that was asked, the request cannot be done: it would remove what is not there,
    /// or take more than there is. Nothing was written. Read the stream's state, then decide again.
    #[error("{reason}; nothing was written")]
    Conflict {
        /// What is in the way.
        reason: String,
    },
}

struct Actual(Option<Revision>);

impl fmt::Display for Actual {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(revision) => write!(out, "at revision {revision}"),
            None => out.write_str("without events"),
        }
    }
}

impl AppendError {
    /// A stable name for this kind of error, the same in every interface.
    pub fn code(&self) -> &'static str {
        match self {
            Self::WrongExpectedRevision { .. } => "wrong_expected_revision",
            Self::NotHome { .. } => "not_home",
            Self::Unavailable { .. } => "unavailable",
            Self::Indeterminate { .. } => "indeterminate",
            Self::Invalid { .. } => "invalid",
            Self::TooLarge { .. } => "too_large",
            Self::Conflict { .. } => "conflict",
        }
    }
}

/// How large a request may be. Every door checks against the same limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The largest event, data, metadata and type together.
    pub event_bytes_max: usize,
    /// The largest batch.
    pub batch_bytes_max: usize,
    /// The most events in a batch.
    pub batch_events_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            event_bytes_max: 1 << 20,
            batch_bytes_max: 4 << 20,
            batch_events_max: 4096,
        }
    }
}

impl Limits {
    /// What the wire can carry, whatever a node is configured to take.
    pub const WIDEST: Self = Self {
        event_bytes_max: 16 << 20,
        batch_bytes_max: 16 << 20,
        batch_events_max: 65_536,
    };
}

impl AppendRequest {
    /// Checks what can be checked without looking at the stream.
    ///
    /// # Errors
    /// When there are no events, an id occurs twice, data or metadata is not JSON, the durability
    /// asks for no region at all, or a limit is exceeded.
    pub fn check(&self, limits: &Limits) -> Result<(), AppendError> {
        let invalid = |reason: String| Err(AppendError::Invalid { reason });
        if self.events.is_empty() {
            return invalid("a batch holds at least one event".to_owned());
        }
        if self.durability == Durability::Regions(0) {
            return invalid("durability regions:0 asks for nothing; ask for at least 1".to_owned());
        }
        at_most(
            "the batch, in events",
            limits.batch_events_max,
            self.events.len(),
        )?;
        let mut ids = BTreeSet::new();
        let mut batch_bytes = 0;
        for (index, event) in self.events.iter().enumerate() {
            let bytes = event.weight_bytes();
            at_most(
                format_args!("event {index}, in bytes"),
                limits.event_bytes_max,
                bytes,
            )?;
            batch_bytes += bytes;
            if !ids.insert(event.id) {
                return invalid(format!("the id {} occurs twice in the batch", event.id));
            }
            let data = json_fault(&event.data).map(|fault| ("data", fault));
            let metadata = || {
                let given = (!event.metadata.is_empty()).then_some(&event.metadata);
                given.and_then(|metadata| json_fault(metadata))
            };
            let fault = data.or_else(|| metadata().map(|fault| ("metadata", fault)));
            if let Some((part, fault)) = fault {
                return invalid(format!("the {part} of event {index} is not JSON: {fault}"));
            }
        }
        at_most("the batch, in bytes", limits.batch_bytes_max, batch_bytes)
    }
}

fn at_most(what: impl fmt::Display, limit: usize, actual: usize) -> Result<(), AppendError> {
    if actual <= limit {
        return Ok(());
    }
    Err(AppendError::TooLarge {
        what: what.to_string(),
        limit: limit as u64,
        actual: actual as u64,
    })
}

/// What keeps `bytes` from being one JSON value, if anything does.
fn json_fault(bytes: &[u8]) -> Option<String> {
    // Skipping a string does not look at its bytes, so UTF-8 is checked on its own.
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return Some(error.to_string()),
    };
    let outcome = serde_json::from_str::<serde::de::IgnoredAny>(text);
    outcome.err().map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use meridian_event::{EventId, EventType};

    use super::*;

    fn event(id: u8, data: &'static str) -> NewEvent {
        NewEvent {
            id: EventId::from_random([id; 16]),
            event_type: EventType::new("Counted").expect("a sound type"),
            data: Bytes::from_static(data.as_bytes()),
            metadata: Bytes::new(),
        }
    }

    fn request(events: Vec<NewEvent>) -> AppendRequest {
        AppendRequest {
            stream: StreamId::new("count-1").expect("a sound name"),
            expected: Expected::Any,
            durability: Durability::Region,
            events,
        }
    }

    #[track_caller]
    fn refusal(request: &AppendRequest) -> String {
        let limits = Limits {
            event_bytes_max: 64,
            batch_bytes_max: 100,
            batch_events_max: 4,
        };
        let error = request.check(&limits).expect_err("it was accepted");
        error.to_string()
    }

    #[test]
    fn a_sound_request_passes() {
        let mut sound = event(1, r#"{"a":[1,2.5e3,null,"\u00e9"]}"#);
        sound.metadata = Bytes::from_static(b"[]");
        assert_eq!(request(vec![sound]).check(&Limits::default()), Ok(()));
    }

    #[test]
    fn each_fault_is_named() {
        assert!(refusal(&request(vec![])).contains("at least one event"));
        assert!(refusal(&request(vec![event(1, "{}"), event(1, "{}")])).contains("occurs twice"));
        assert!(refusal(&request(vec![event(1, "{")])).contains("data of event 0 is not JSON"));
        assert!(refusal(&request(vec![event(1, "{} {}")])).contains("not JSON"));
        assert!(refusal(&request(vec![event(1, "")])).contains("not JSON"));

        let mut metadata = event(1, "{}");
        metadata.metadata = Bytes::from_static(b"nope");
        assert!(refusal(&request(vec![metadata])).contains("metadata of event 0 is not JSON"));

        let mut binary = event(1, "{}");
        binary.data = Bytes::from_static(b"\"\xff\"");
        assert!(refusal(&request(vec![binary])).contains("not JSON"));

        let mut nowhere = request(vec![event(1, "{}")]);
        nowhere.durability = Durability::Regions(0);
        assert!(refusal(&nowhere).contains("regions:0"));
    }

    #[test]
    fn each_limit_is_kept() {
        let long = r#""0123456789012345678901234567890123456789012345678901234567890123""#;
        assert!(refusal(&request(vec![event(1, long)])).contains("event 0, in bytes has"));
        let many = (0..5).map(|id| event(id, "1")).collect();
        assert!(refusal(&request(many)).contains("the batch, in events has 5, the limit is 4"));
        let heavy = (0..4).map(|id| event(id, r#""0123456789""#)).collect();
        assert!(refusal(&request(heavy)).contains("the batch, in bytes has"));
    }

    #[test]
    fn deep_nesting_is_no_way_to_end_the_process() {
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        let mut nested = event(1, "1");
        nested.data = Bytes::from(deep);
        assert_eq!(request(vec![nested]).check(&Limits::default()), Ok(()));
    }

    #[test]
    fn only_a_revision_that_has_passed_can_never_come_back() {
        let at = |revision| Some(Revision(revision));
        assert!(Expected::None.is_past(at(0)));
        assert!(Expected::Revision(Revision(3)).is_past(at(4)));
        assert!(!Expected::Revision(Revision(3)).is_past(at(2)));
        assert!(!Expected::Revision(Revision(3)).is_past(None));
        assert!(!Expected::Exists.is_past(None));
    }

    #[test]
    fn codes_are_the_ones_that_were_promised() {
        let unavailable = AppendError::Unavailable {
            reason: "the disk failed".to_owned(),
            retry_after_ms: 1000,
        };
        assert_eq!(unavailable.code(), "unavailable");
        assert_eq!(
            unavailable.to_string(),
            "nothing was written: the disk failed; try again in 1000 ms"
        );
    }
}

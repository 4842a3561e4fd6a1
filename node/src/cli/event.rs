//! Events as the HTTP door shows them, and how they look to people.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Output;
use super::output::PrintError;

/// How much of an event's data is shown to people; `--json` prints all of it.
const SHOWN_CHARACTERS: usize = 100;

/// An event, as in the HTTP API.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) stream: String,
    pub(crate) revision: u64,
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    pub(crate) data: Box<RawValue>,
    // Kept apart from a missing one, so that `--json` prints what the node sent.
    #[serde(default)]
    pub(crate) metadata: Option<Box<RawValue>>,
    pub(crate) origin: String,
    pub(crate) partition: u16,
    pub(crate) position: u64,
    pub(crate) timestamp: String,
    pub(crate) recorded_at: String,
}

impl Event {
    /// The data, shortened and on one line.
    pub(crate) fn shown_data(&self) -> String {
        // Control characters inside strings are escaped in JSON; those between tokens are blanks.
        let text = self.data.get().replace(['\n', '\r', '\t'], " ");
        match text.char_indices().nth(SHOWN_CHARACTERS) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

/// A page of a stream.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct StreamPage {
    pub(crate) events: Vec<Event>,
    pub(crate) next: Option<u64>,
    pub(crate) end: bool,
}

/// A page of everything a region holds.
#[derive(Debug, Deserialize)]
pub(crate) struct EventsPage {
    pub(crate) events: Vec<Event>,
    pub(crate) cursor: String,
    #[serde(default)]
    pub(crate) end: bool,
}

/// Prints `events` of one stream.
///
/// # Errors
/// When standard output is gone.
pub(crate) fn table(events: &[Event], output: Output) -> Result<(), PrintError> {
    let row = |event: &Event| {
        vec![
            event.revision.to_string(),
            event.event_type.clone(),
            event.recorded_at.clone(),
            event.origin.clone(),
            event.shown_data(),
        ]
    };
    output.table(
        &["revision", "type", "recorded at", "origin", "data"],
        events.iter().map(row).collect(),
    )
}

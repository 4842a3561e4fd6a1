//! The operations of a merged stream as its events record them, read without the code that wrote them.

use std::collections::BTreeMap;

use meridian_clock::{OrderKey, RegionId, Timestamp};
use meridian_event::{EventId, RecordedEvent};
use serde::Deserialize;
use serde_json::Value;

/// One life of a region as a writer.
pub(super) type Actor = (RegionId, u32);

/// A place among the writes of a stream, for the last writer: when, in which region, at which position.
pub(super) type Rank = (Timestamp, RegionId, u64);

/// One operation.
#[derive(Clone, Debug)]
pub(super) struct Recorded {
    pub(super) id: EventId,
    pub(super) key: OrderKey,
    pub(super) actor: Actor,
    /// Which of its actor's operations it is.
    pub(super) counter: u64,
    /// How many of each actor's operations its region had applied.
    pub(super) seen: BTreeMap<Actor, u64>,
    /// Where it was written first.
    pub(super) rank: Rank,
    pub(super) data: Value,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "$op")]
    op: OpKey,
    #[serde(rename = "$stranded")]
    stranded: Option<StrandedKey>,
}

#[derive(Deserialize)]
struct OpKey {
    dot: (RegionId, u32, u64),
    seen: Vec<(RegionId, u32, u64)>,
}

#[derive(Deserialize)]
struct StrandedKey {
    origin: String,
    position: u64,
    timestamp: String,
}

impl Recorded {
    /// Reads an event, where regions are called as in `names`.
    pub(super) fn read(
        event: &RecordedEvent,
        names: &BTreeMap<String, RegionId>,
    ) -> Result<Self, String> {
        let text = String::from_utf8_lossy(&event.metadata);
        let metadata: Metadata = serde_json::from_str(&text)
            .map_err(|error| format!("its metadata {text} is not an operation's: {error}"))?;
        let data = serde_json::from_slice(&event.data)
            .map_err(|error| format!("its data is not JSON: {error}"))?;
        let rank = match metadata.stranded {
            None => (event.timestamp, event.dot.origin, event.dot.position.0),
            Some(first) => (
                first.timestamp.parse().map(Timestamp).unwrap_or_default(),
                names.get(&first.origin).copied().unwrap_or_default(),
                first.position,
            ),
        };
        let (region, generation, counter) = metadata.op.dot;
        let actor = (region, generation);
        let seen = metadata.op.seen.into_iter();
        let mut seen: BTreeMap<Actor, u64> = seen
            .map(|(region, generation, counter)| ((region, generation), counter))
            .collect();
        // Whoever writes has seen what it wrote before, in the same batch, too.
        seen.insert(actor, counter.saturating_sub(1));
        Ok(Self {
            id: event.id,
            key: event.order_key(),
            actor,
            counter,
            seen,
            rank,
            data,
        })
    }

    /// A member of its data that is a text.
    pub(super) fn text(&self, member: &str) -> &str {
        self.data[member].as_str().unwrap_or_default()
    }
}

/// A value in one spelling, so that equal values are equal texts.
pub(super) fn spelled(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let sorted: BTreeMap<&String, String> = members
                .iter()
                .map(|(name, it)| (name, spelled(it)))
                .collect();
            let members = sorted
                .iter()
                .map(|(name, it)| format!("{}:{it}", Value::from(name.as_str())));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(spelled).collect();
            format!("[{}]", items.join(","))
        }
        other => other.to_string(),
    }
}

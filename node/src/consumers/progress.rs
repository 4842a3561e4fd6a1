//! What must outlive a node: how far a group is, and what it put aside.
//!
//! Each acknowledgement is durable here before it is answered: in the node's small state, at the price
//! of one flush for many. Every so often the same goes into the log as a checkpoint, from where another
//! region takes the group over, and this one does after it lost its disk.

use std::collections::{BTreeMap, BTreeSet};

use meridian_clock::OrderKey;
use meridian_event::StreamId;
use meridian_store::{SmallError, SmallState};
use serde::{Deserialize, Serialize};

const PROGRESS: &str = "consumer/progress/";
const PARKED: &str = "consumer/parked/";

/// How far a group is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// The revision of the definition that gave the group to the region that serves it.
    pub(super) epoch: u64,
    /// Counts changes, over epochs too.
    pub(super) version: u64,
    /// Everything up to here is settled.
    pub(super) cursor: OrderKey,
    /// What is settled behind it.
    pub(super) done: BTreeSet<OrderKey>,
    /// How many attempts failed of what is not settled.
    pub(super) attempts: BTreeMap<OrderKey, u32>,
}

/// An event that was put aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parked {
    /// Its place in the one order.
    #[serde(with = "as_text")]
    pub(super) key: OrderKey,
    /// Its stream.
    pub(super) stream: StreamId,
    /// Its place there.
    pub(super) revision: u64,
    /// What happened.
    pub(super) event_type: String,
    /// How often it was tried.
    pub(super) attempts: u32,
    /// Why the last attempt failed.
    pub(super) reason: String,
}

/// A checkpoint as the log has it: places are texts, as everywhere outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    pub(super) epoch: u64,
    version: u64,
    #[serde(with = "as_text")]
    cursor: OrderKey,
    done: Vec<String>,
    attempts: BTreeMap<String, u32>,
    /// The revision of the event that lists what is parked; none when nothing ever was.
    pub(super) parked_at: Option<u64>,
}

impl Checkpoint {
    pub(super) fn new(progress: &Progress, parked_at: Option<u64>) -> Self {
        let attempts = progress.attempts.iter();
        Self {
            epoch: progress.epoch,
            version: progress.version,
            cursor: progress.cursor,
            done: progress.done.iter().map(OrderKey::to_string).collect(),
            attempts: attempts
                .map(|(key, count)| (key.to_string(), *count))
                .collect(),
            parked_at,
        }
    }

    /// The progress that it tells of; what cannot be read counts as not done.
    pub(super) fn progress(&self) -> Progress {
        let attempts = self.attempts.iter();
        Progress {
            epoch: self.epoch,
            version: self.version,
            cursor: self.cursor,
            done: self
                .done
                .iter()
                .filter_map(|key| key.parse().ok())
                .collect(),
            attempts: attempts
                .filter_map(|(key, count)| Some((key.parse().ok()?, *count)))
                .collect(),
        }
    }
}

mod as_text {
    use meridian_clock::OrderKey;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(key: &OrderKey, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(key)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<OrderKey, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// What was parked, as the log has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ParkedList {
    pub(super) epoch: u64,
    pub(super) parked: Vec<Parked>,
}

fn progress_key(name: &str) -> Vec<u8> {
    format!("{PROGRESS}{name}").into_bytes()
}

fn parked_prefix(name: &str) -> Vec<u8> {
    format!("{PARKED}{name}/").into_bytes()
}

fn parked_key(name: &str, key: OrderKey) -> Vec<u8> {
    format!("{PARKED}{name}/{key}").into_bytes()
}

/// What the small state knows of group `name`.
///
/// # Errors
/// When it cannot be read.
pub(super) fn load(
    small: &dyn SmallState,
    name: &str,
) -> Result<Option<(Progress, Vec<Parked>)>, SmallError> {
    let Some(bytes) = small.get(&progress_key(name))? else {
        return Ok(None);
    };
    let Ok(progress) = postcard::from_bytes(&bytes) else {
        tracing::warn!(
            name,
            "the progress of a consumer group is another version's; its last checkpoint counts"
        );
        return Ok(None);
    };
    let mut parked = Vec::new();
    for (_, bytes) in small.scan(&parked_prefix(name))? {
        match postcard::from_bytes(&bytes) {
            Ok(it) => parked.push(it),
            Err(_) => {
                tracing::warn!(
                    name,
                    "a parked event of a consumer group is another version's; its last checkpoint counts"
                );
                return Ok(None);
            }
        }
    }
    Ok(Some((progress, parked)))
}

/// What is to be kept next.
pub(super) struct Change {
    pub(super) progress: Progress,
    /// All that is parked, when that has changed.
    pub(super) parked: Option<BTreeMap<OrderKey, Parked>>,
}

/// Keeps `change` of group `name` in the small state, durably. `kept` is what it has of parked events.
///
/// # Errors
/// When it cannot be written; all of it is to be kept again.
pub(super) fn keep(
    small: &dyn SmallState,
    name: &str,
    change: &Change,
    kept: &mut BTreeMap<OrderKey, Parked>,
) -> Result<(), SmallError> {
    if let Some(parked) = &change.parked {
        // Durable before the progress says that they are settled.
        for (key, it) in parked {
            if kept.get(key) != Some(it) {
                let bytes = postcard::to_stdvec(it).expect("what is parked always encodes");
                small.put(&parked_key(name, *key), &bytes)?;
                kept.insert(*key, it.clone());
            }
        }
        small.flush()?;
    }
    let bytes = postcard::to_stdvec(&change.progress).expect("progress always encodes");
    small.put(&progress_key(name), &bytes)?;
    if let Some(parked) = &change.parked {
        let gone = kept.keys().filter(|key| !parked.contains_key(key));
        for key in gone.copied().collect::<Vec<_>>() {
            small.remove(&parked_key(name, key))?;
            kept.remove(&key);
        }
    }
    small.flush()
}

/// Forgets group `name`.
///
/// # Errors
/// When that cannot be written.
pub(super) fn forget(small: &dyn SmallState, name: &str) -> Result<(), SmallError> {
    small.remove(&progress_key(name))?;
    for (key, _) in small.scan(&parked_prefix(name))? {
        small.remove(&key)?;
    }
    small.flush()
}

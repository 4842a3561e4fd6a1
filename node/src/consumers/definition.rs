//! What a consumer group is: which events it gives out, where, and how often it tries.

use std::collections::BTreeSet;
use std::time::Duration;

use meridian_client::{EventFilter, SettledTier};
use meridian_clock::{OrderKey, PartitionId};
use meridian_event::{Category, EventType, RecordedEvent, partition_of};
use meridian_projection::check_name;
use serde::{Deserialize, Serialize};

/// The server's own category that may be followed.
const CONFLICTS: &str = "$conflicts";
/// How many parts the streams may be divided into.
const PARTS_MAX: u16 = 1024;
/// How many events one consumer may have at once.
const IN_FLIGHT_MAX: usize = 1_000;
/// The least and the most that a consumer may take for an event.
const ACK_WITHIN_MS: std::ops::RangeInclusive<u64> = 100..=3_600_000;
/// How often an event may be tried.
const ATTEMPTS_MAX: u32 = 1_000;

/// A consumer group as its owner writes it, in TOML or JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupDefinition {
    /// Its name; in a call the path says it.
    #[serde(default)]
    pub name: String,
    /// The region that serves it: the one it was defined in, until this names another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// How settled the events are that it gives out.
    #[serde(default)]
    pub tier: SettledTier,
    /// Which events it gives out; all when it is left out, but those of the server's own streams.
    #[serde(default)]
    pub source: GroupSource,
    /// Where it begins; it matters only until the group has a place.
    #[serde(default)]
    pub from: From,
    /// How many events a consumer may have at once.
    #[serde(default = "in_flight_default")]
    pub in_flight_max: usize,
    /// How long a consumer may take for what it was given, in milliseconds.
    #[serde(default = "ack_within_default")]
    pub ack_within_ms: u64,
    /// After how many failed attempts an event is parked.
    #[serde(default = "attempts_default")]
    pub attempts_max: u32,
}

/// Which events a group gives out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSource {
    /// Streams of these categories; of all when it is empty.
    #[serde(default)]
    pub categories: BTreeSet<String>,
    /// Events of these types; of all when it is empty.
    #[serde(default)]
    pub types: BTreeSet<String>,
    /// A part of the streams, by their hash; the groups of the other parts give out the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
}

/// One of several equal parts of all streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Which: 0, 1, 2…
    pub number: u16,
    /// Of how many.
    pub of: u16,
}

/// Where a group begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum From {
    /// With the first event.
    #[default]
    Beginning,
    /// With what is settled after it was defined.
    End,
    /// After this place in the one order.
    #[serde(untagged)]
    After(String),
}

fn in_flight_default() -> usize {
    100
}

fn ack_within_default() -> u64 {
    30_000
}

fn attempts_default() -> u32 {
    5
}

impl GroupDefinition {
    /// Reads a definition that is written in JSON.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub fn from_json(text: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(text)
            .map_err(|error| format!("the definition cannot be read: {error}"))
    }

    /// Reads a definition that is written in TOML.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| format!("the definition cannot be read: {error}"))
    }

    /// Checks what can be checked without a node.
    ///
    /// # Errors
    /// With what is wrong, and what would be right.
    pub fn check(&self) -> Result<(), String> {
        check_name(&self.name).map_err(|error| error.to_string())?;
        for category in &self.source.categories {
            Category::new(category).map_err(|error| error.to_string())?;
            if category.starts_with('$') && category != CONFLICTS {
                return Err(format!(
                    "streams of {category:?} are the server's own and are not given out, but for {CONFLICTS:?}"
                ));
            }
        }
        for event_type in &self.source.types {
            EventType::new(event_type).map_err(|error| error.to_string())?;
        }
        if let Some(Part { number, of }) = self.source.part
            && (of == 0 || of > PARTS_MAX || number >= of)
        {
            return Err(format!(
                "source.part is {number} of {of}; write a number below `of`, and `of` from 1 to {PARTS_MAX}"
            ));
        }
        if let From::After(place) = &self.from
            && place.parse::<OrderKey>().is_err()
        {
            return Err(format!(
                "from is {place:?}; write \"beginning\", \"end\" or a cursor of the stable or final tier"
            ));
        }
        let within = |what: &str, value: u64, range: std::ops::RangeInclusive<u64>| match range
            .contains(&value)
        {
            true => Ok(()),
            false => Err(format!(
                "{what} is {value}; write {} to {}",
                range.start(),
                range.end()
            )),
        };
        within(
            "in_flight_max",
            self.in_flight_max as u64,
            1..=IN_FLIGHT_MAX as u64,
        )?;
        within("ack_within_ms", self.ack_within_ms, ACK_WITHIN_MS)?;
        within(
            "attempts_max",
            self.attempts_max.into(),
            1..=ATTEMPTS_MAX.into(),
        )
    }

    /// How long a consumer may take for what it was given.
    pub fn ack_within(&self) -> Duration {
        Duration::from_millis(self.ack_within_ms)
    }

    /// What the log is asked for; [`GroupDefinition::takes`] looks at the rest.
    pub(super) fn filter(&self) -> EventFilter {
        // The log is filtered by one of each at most.
        fn only(names: &BTreeSet<String>) -> Option<&String> {
            names.first().filter(|_| names.len() == 1)
        }
        EventFilter {
            category: only(&self.source.categories).and_then(|it| Category::new(it).ok()),
            event_type: only(&self.source.types).and_then(|it| EventType::new(it).ok()),
        }
    }

    /// Whether it gives out `event`.
    pub(super) fn takes(&self, event: &RecordedEvent) -> bool {
        let GroupSource {
            categories,
            types,
            part,
        } = &self.source;
        let stream = &event.stream;
        // Conflict records are given to who asks for them by name.
        (!stream.is_internal() || categories.contains(stream.category()))
            && (categories.is_empty() || categories.contains(stream.category()))
            && (types.is_empty() || types.contains(event.event_type.as_str()))
            && part.is_none_or(|Part { number, of }| {
                partition_of(stream.as_str(), of) == PartitionId(number)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_says_what_is_wrong_with_it() {
        let read =
            |text: &str| GroupDefinition::from_toml(text).and_then(|it| it.check().map(|()| it));
        let good = read(
            "name = \"mails\"\nfrom = \"end\"\n[source]\ncategories = [\"order\"]\npart = { number = 1, of = 4 }",
        );
        let good = good.expect("it is a definition");
        assert_eq!((good.from, good.in_flight_max), (From::End, 100));
        for (text, says) in [
            ("name = \"../x\"", "name"),
            ("name = \"x\"\nform = \"end\"", "form"),
            ("name = \"x\"\nfrom = \"middle\"", "beginning"),
            ("name = \"x\"\ntier = \"live\"", "live"),
            ("name = \"x\"\nin_flight_max = 0", "in_flight_max"),
            ("name = \"x\"\nack_within_ms = 1", "ack_within_ms"),
            ("name = \"x\"\nattempts_max = 0", "attempts_max"),
            (
                "name = \"x\"\n[source]\npart = { number = 4, of = 4 }",
                "source.part",
            ),
            (
                "name = \"x\"\n[source]\ncategories = [\"$consumers\"]",
                "server's own",
            ),
        ] {
            let refused = read(text).expect_err(text);
            assert!(refused.contains(says), "{text}: {refused}");
        }
    }
}

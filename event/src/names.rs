//! Names that clients give: streams, categories, event types and ids.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use meridian_clock::PartitionId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a name was refused. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is the empty string.
    #[error("a {what} must not be empty; give it a name")]
    Empty {
        /// Which kind of name it is.
        what: &'static str,
    },
    /// The name is longer than is stored.
    #[error(
        "a {what} is at most {limit_bytes} bytes long, this one has {actual_bytes}; shorten it"
    )]
    TooLong {
        /// Which kind of name it is.
        what: &'static str,
        /// The longest that is accepted.
        limit_bytes: usize,
        /// How long it is.
        actual_bytes: usize,
    },
    /// The name has a control character in it.
    #[error("a {what} must not contain control characters, this one has {character:?}; remove it")]
    ControlCharacter {
        /// Which kind of name it is.
        what: &'static str,
        /// The first one found.
        character: char,
    },
}

fn check(what: &'static str, limit_bytes: usize, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    if name.len() > limit_bytes {
        return Err(NameError::TooLong {
            what,
            limit_bytes,
            actual_bytes: name.len(),
        });
    }
    match name.chars().find(|character| character.is_control()) {
        Some(character) => Err(NameError::ControlCharacter { what, character }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $limit:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The longest name that is accepted, in bytes of UTF-8.
            pub const BYTES_MAX: usize = $limit;

            /// Checks and takes a name.
            ///
            /// # Errors
            /// When it is empty, too long or has control characters.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check($what, Self::BYTES_MAX, name)?;
                Ok(Self(name.into()))
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(&name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, out)
            }
        }
    };
}

name! {
    /// An aggregate instance, `category-id` such as `order-42`. 1 to 256 bytes, no control
    /// characters.
    StreamId, "stream name", 256
}
name! {
    /// What a stream's events are about: its name up to the first `-`, all of it if there is none.
    Category, "category", 256
}
name! {
    /// What happened, such as `FlightDeparted`. 1 to 128 bytes, no control characters.
    EventType, "event type", 128
}

/// The category of the stream called `stream`: the part before the first `-`, or the whole name.
pub fn category_of(stream: &str) -> &str {
    stream
        .split_once('-')
        .map_or(stream, |(category, _)| category)
}

impl StreamId {
    /// The category part: before the first `-`, or the whole name.
    pub fn category(&self) -> &str {
        category_of(&self.0)
    }

    /// Whether the name is reserved for the server's own streams (`$…`).
    pub fn is_internal(&self) -> bool {
        self.0.starts_with('$')
    }

    /// The partition this stream belongs to, among `partitions`.
    pub fn partition(&self, partitions: u16) -> PartitionId {
        partition_of(&self.0, partitions)
    }
}

/// The partition of the stream called `stream`: xxh3-64 of its name modulo `partitions`, the same
/// in every region.
///
/// # Panics
/// When `partitions` is 0, which no federation has.
pub fn partition_of(stream: &str, partitions: u16) -> PartitionId {
    assert!(partitions > 0, "a federation has at least one partition");
    let hash = xxhash_rust::xxh3::xxh3_64(stream.as_bytes());
    let partition = hash % u64::from(partitions);
    PartitionId(u16::try_from(partition).unwrap_or(0))
}

/// An event's name as its writer gave it: the same id never appends twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub Uuid);

impl EventId {
    /// A version 4 UUID made of 16 random bytes, which the caller drew.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    /// The id's 16 bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// An event's place in its stream, given by its home: 0, 1, 2… without gaps. In a stream that every
/// region may write, its place among the events of its origin region.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_category_ends_at_the_first_dash() {
        let category = |name| StreamId::new(name).map(|stream| stream.category().to_owned());
        assert_eq!(category("order-42-a"), Ok("order".to_owned()));
        assert_eq!(category("order"), Ok("order".to_owned()));
    }

    #[test]
    fn names_that_cannot_be_shown_or_stored_are_refused() {
        assert!(matches!(StreamId::new(""), Err(NameError::Empty { .. })));
        assert!(matches!(
            StreamId::new("a\nb"),
            Err(NameError::ControlCharacter { .. })
        ));
        assert!(matches!(
            StreamId::new("a\u{85}b"),
            Err(NameError::ControlCharacter { .. })
        ));
        assert!(matches!(
            EventType::new(&"x".repeat(129)),
            Err(NameError::TooLong { .. })
        ));
    }

    #[test]
    fn a_stream_stays_in_its_partition_forever() {
        // These are on disks: a change of the hash would lose streams.
        let partition = |name| partition_of(name, 4).0;
        assert_eq!(
            ["order-42", "aircraft-N14228", "a", "cart-7"].map(partition),
            PINNED
        );
    }

    const PINNED: [u16; 4] = [0, 0, 3, 1];
}

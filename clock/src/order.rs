//! Places in the federation's history, and the one total order.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// A region's number, fixed when it joins and never reused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RegionId(pub u16);

/// A partition's number, from 0 to the federation's partition count − 1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PartitionId(pub u16);

/// An event's dense place in one origin log: 1, 2, 3…; 0 stands before the first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Position(pub u64);

impl Position {
    /// Before the first event.
    pub const ZERO: Self = Self(0);

    /// The position `count` events further on.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

/// Which life of a region's logs: a node that lost its memory and cannot ask its peers starts a
/// new one, so that a position is never used twice within one incarnation.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Incarnation(pub u32);

/// Who may write: a failover raises `major`, a planned move raises `minor`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch {
    /// Raised by a failover.
    pub major: u32,
    /// Raised by a planned move.
    pub minor: u32,
}

impl Epoch {
    /// The epoch a federation starts in.
    pub const FIRST: Self = Self { major: 1, minor: 0 };
}

/// One origin log: the events first written in `origin` for `partition`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct LogId {
    /// The region that writes it.
    pub origin: RegionId,
    /// The partition whose streams it holds.
    pub partition: PartitionId,
}

impl LogId {
    /// The log of `origin` for `partition`.
    pub fn new(origin: RegionId, partition: PartitionId) -> Self {
        Self { origin, partition }
    }

    /// The identity of this log's event at `position`.
    pub fn dot(self, position: Position) -> Dot {
        Dot {
            origin: self.origin,
            partition: self.partition,
            position,
        }
    }
}

/// An event's identity everywhere in the federation.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Dot {
    /// The region that wrote the event first.
    pub origin: RegionId,
    /// The partition of its stream.
    pub partition: PartitionId,
    /// Its place in that origin log.
    pub position: Position,
}

impl Dot {
    /// The origin log this dot lies in.
    pub fn log(self) -> LogId {
        LogId::new(self.origin, self.partition)
    }
}

/// An event's place in the one total order, compared field by field in this sequence.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct OrderKey {
    /// When its batch was stamped.
    pub timestamp: Timestamp,
    /// Where it was written first.
    pub region: RegionId,
    /// The partition of its stream.
    pub partition: PartitionId,
    /// Its place in that origin log.
    pub position: Position,
}

impl OrderKey {
    /// Before every event.
    pub const ZERO: Self = Self {
        timestamp: Timestamp::ZERO,
        region: RegionId(0),
        partition: PartitionId(0),
        position: Position::ZERO,
    };

    /// The place of the event `dot`, whose batch was stamped `timestamp`.
    pub fn new(timestamp: Timestamp, dot: Dot) -> Self {
        Self {
            timestamp,
            region: dot.origin,
            partition: dot.partition,
            position: dot.position,
        }
    }

    /// The identity of the event that has this place.
    pub fn dot(self) -> Dot {
        LogId::new(self.region, self.partition).dot(self.position)
    }
}

/// Why a text names no place in the total order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no order key; write it as timestamp.region.partition.position, four decimal numbers"
)]
pub struct OrderKeyError {
    /// The text.
    pub text: String,
}

impl FromStr for OrderKey {
    type Err = OrderKeyError;

    fn from_str(text: &str) -> Result<Self, OrderKeyError> {
        let parse = || {
            let mut parts = text.split('.');
            let key = Self {
                timestamp: Timestamp(parts.next()?.parse().ok()?),
                region: RegionId(parts.next()?.parse().ok()?),
                partition: PartitionId(parts.next()?.parse().ok()?),
                position: Position(parts.next()?.parse().ok()?),
            };
            // Numbers have one spelling, so that equal places are equal texts.
            (parts.next().is_none() && key.to_string() == text).then_some(key)
        };
        parse().ok_or_else(|| OrderKeyError {
            text: text.to_owned(),
        })
    }
}

/// For each origin log, how far we have seen it without a gap.
///
/// A log that is not named stands at [`Position::ZERO`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VersionVector(BTreeMap<LogId, Position>);

impl VersionVector {
    /// How far `log` has been seen.
    pub fn get(&self, log: LogId) -> Position {
        self.0.get(&log).copied().unwrap_or(Position::ZERO)
    }

    /// Whether the event at `dot` has been seen.
    pub fn contains(&self, dot: Dot) -> bool {
        dot.position <= self.get(dot.log())
    }

    /// Moves `log` forward to `to`; a step back is ignored, so that repeated and reordered news
    /// leave the same vector. Returns whether anything moved.
    pub fn advance(&mut self, log: LogId, to: Position) -> bool {
        let held = self.0.entry(log).or_default();
        let moved = to > *held;
        *held = (*held).max(to);
        moved
    }

    /// Takes the larger position of each log.
    pub fn merge(&mut self, other: &Self) {
        for (log, position) in &other.0 {
            self.advance(*log, *position);
        }
    }

    /// The logs that were named, in ascending order, with their positions.
    pub fn iter(&self) -> impl Iterator<Item = (LogId, Position)> + '_ {
        self.0.iter().map(|(log, position)| (*log, *position))
    }
}

impl FromIterator<(LogId, Position)> for VersionVector {
    fn from_iter<I: IntoIterator<Item = (LogId, Position)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

/// What an origin says of its own log: every event it stamped at or before `timestamp` has a
/// position at or below `position`, and nothing later will be stamped at or before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// The log it speaks of.
    pub log: LogId,
    /// Nothing at or before this is still to come.
    pub timestamp: Timestamp,
    /// The last position stamped at or before it.
    pub position: Position,
}

/// Nothing at or below this timestamp can still arrive.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Watermark(pub Timestamp);

macro_rules! display_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(out)
            }
        }
    )*};
}
display_number!(RegionId, PartitionId, Position, Incarnation);

impl fmt::Display for Epoch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.origin, self.partition)
    }
}

impl fmt::Display for OrderKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            timestamp,
            region,
            partition,
            position,
        } = self;
        write!(out, "{timestamp}.{region}.{partition}.{position}")
    }
}

impl fmt::Display for Dot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}/{}", self.origin, self.partition, self.position)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_vector() -> impl Strategy<Value = VersionVector> {
        prop::collection::vec(((0u16..3, 0u16..2), 0u64..9), 0..8).prop_map(|entries| {
            entries
                .into_iter()
                .map(|((origin, partition), position)| {
                    (
                        LogId::new(RegionId(origin), PartitionId(partition)),
                        Position(position),
                    )
                })
                .collect()
        })
    }

    #[test]
    fn order_keys_compare_time_before_place() {
        let early = OrderKey {
            timestamp: Timestamp(1),
            region: RegionId(9),
            ..OrderKey::default()
        };
        let late = OrderKey {
            timestamp: Timestamp(2),
            ..OrderKey::default()
        };
        assert!(early < late);
    }

    #[test]
    fn an_order_key_survives_being_written_down() {
        let key = OrderKey {
            timestamp: Timestamp(u64::MAX),
            region: RegionId(3),
            partition: PartitionId(0),
            position: Position(17),
        };
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.dot().to_string(), "3/0/17");
        for bad in [
            "",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.04",
            "+1.2.3.4",
            "1.2.3.-4",
            "1.70000.3.4",
        ] {
            assert!(bad.parse::<OrderKey>().is_err(), "{bad:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn merge_ignores_order_and_repetition(a in any_vector(), b in any_vector()) {
            let mut ab = a.clone();
            ab.merge(&b);
            ab.merge(&b);
            let mut ba = b.clone();
            ba.merge(&a);
            for origin in 0..3 {
                for partition in 0..2 {
                    let log = LogId::new(RegionId(origin), PartitionId(partition));
                    prop_assert_eq!(ab.get(log), ba.get(log));
                    prop_assert_eq!(ab.get(log), a.get(log).max(b.get(log)));
                }
            }
        }
    }
}

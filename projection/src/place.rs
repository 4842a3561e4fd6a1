//! How far a read model has come in its feed.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use meridian_clock::{LogId, OrderKey, Position, Timestamp, VersionVector};
use serde::{Deserialize, Serialize, Serializer};

use crate::definition::FeedTier;

/// What a place in the origin logs begins with when it is written down.
const LIVE: &str = "live";

/// How far a read model has come in its feed. What it says is final: none of it is ever read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the one order: everything at or before this key was looked at.
    Order(OrderKey),
    /// In each origin log by itself, as the `live` tier reads them.
    Logs(LogPlaces),
}

impl Place {
    /// Before everything that a tier has.
    pub fn start(tier: FeedTier) -> Self {
        match tier {
            FeedTier::Live => Self::Logs(LogPlaces::default()),
            FeedTier::Stable | FeedTier::Final => Self::Order(OrderKey::ZERO),
        }
    }

    /// Whether a feed of `tier` can go on from here.
    pub fn is_of(&self, tier: FeedTier) -> bool {
        matches!(self, Self::Logs(_)) == (tier == FeedTier::Live)
    }

    /// Whether the event at `key` was looked at.
    pub fn covers(&self, key: OrderKey) -> bool {
        match self {
            Self::Order(last) => key <= *last,
            Self::Logs(places) => places.covers(key),
        }
    }

    /// Nothing was looked at that is stamped later.
    pub fn newest(&self) -> Timestamp {
        match self {
            Self::Order(last) => last.timestamp,
            Self::Logs(places) => places.newest(),
        }
    }

    /// What is complete by this place alone, whatever may still arrive.
    pub(crate) fn through(&self) -> Timestamp {
        match self {
            // Others with the stamp of the last one may follow.
            Self::Order(last) => Timestamp(last.timestamp.0.saturating_sub(1)),
            Self::Logs(_) => Timestamp::ZERO,
        }
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::Order(OrderKey::ZERO)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(key) => key.fmt(out),
            Self::Logs(places) if places.is_empty() => out.write_str(LIVE),
            Self::Logs(places) => write!(out, "{LIVE} {places}"),
        }
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a text names no place of a read model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no place of a read model; write an order key, or `live` with one for each origin log, in ascending order of the logs"
)]
pub struct PlaceError {
    /// The text.
    pub text: String,
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let error = || PlaceError {
            text: text.to_owned(),
        };
        match text.strip_prefix(LIVE) {
            Some("") => Ok(Self::Logs(LogPlaces::default())),
            Some(places) => {
                let places = places.strip_prefix(' ').filter(|it| !it.is_empty());
                let places = places.ok_or_else(error)?;
                places.parse().map(Self::Logs).map_err(|_| error())
            }
            None => text.parse().map(Self::Order).map_err(|_| error()),
        }
    }
}

/// For each origin log, the last event that was looked at.
///
/// A key and not only a position, so that the event which was looked at is told from another one at the
/// same position, in a log that had to be begun anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogPlaces(BTreeMap<LogId, OrderKey>);

impl LogPlaces {
    /// Whether nothing was looked at.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The last event of `log` that was looked at.
    pub fn get(&self, log: LogId) -> Option<OrderKey> {
        self.0.get(&log).copied()
    }

    /// How far `log` was looked at.
    pub fn position(&self, log: LogId) -> Position {
        self.get(log).map_or(Position::ZERO, |key| key.position)
    }

    /// Moves the log that `key` lies in forward to it; a step back is ignored.
    pub fn advance(&mut self, key: OrderKey) {
        let last = self.0.entry(key.dot().log()).or_insert(key);
        if last.position < key.position {
            *last = key;
        }
    }

    /// Takes the later event of each log.
    pub fn merge(&mut self, other: &Self) {
        other.iter().for_each(|key| self.advance(key));
    }

    /// The last events, in ascending order of their logs.
    pub fn iter(&self) -> impl Iterator<Item = OrderKey> + '_ {
        self.0.values().copied()
    }

    /// Whether the event at `key` was looked at.
    pub fn covers(&self, key: OrderKey) -> bool {
        key.position <= self.position(key.dot().log())
    }

    /// The first of the logs in `seen` that was not looked at so far.
    pub fn first_missing(&self, seen: &VersionVector) -> Option<(LogId, Position)> {
        seen.iter()
            .find(|(log, position)| self.position(*log) < *position)
    }

    /// The newest stamp among the last events: none that was looked at is later, since the timestamps of
    /// an origin log rise.
    pub fn newest(&self) -> Timestamp {
        let stamps = self.iter().map(|key| key.timestamp);
        stamps.max().unwrap_or(Timestamp::ZERO)
    }
}

impl fmt::Display for LogPlaces {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, key) in self.iter().enumerate() {
            let space = if count == 0 { "" } else { " " };
            write!(out, "{space}{key}")?;
        }
        Ok(())
    }
}

impl FromStr for LogPlaces {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let mut places = Self::default();
        let keys = match text {
            "" => None,
            keys => Some(keys.split(' ')),
        };
        for key in keys.into_iter().flatten() {
            // Places have one spelling, as order keys do.
            let key = key.parse::<OrderKey>().ok().filter(|key| {
                let last = places.0.keys().next_back();
                last.is_none_or(|last| *last < key.dot().log())
            });
            let key = key.ok_or_else(|| PlaceError {
                text: text.to_owned(),
            })?;
            places.advance(key);
        }
        Ok(places)
    }
}

impl TryFrom<String> for LogPlaces {
    type Error = PlaceError;

    fn try_from(text: String) -> Result<Self, PlaceError> {
        text.parse()
    }
}

impl From<LogPlaces> for String {
    fn from(places: LogPlaces) -> Self {
        places.to_string()
    }
}

#[cfg(test)]
mod tests {
    use meridian_clock::{PartitionId, RegionId};

    use super::*;

    fn key(timestamp: u64, region: u16, partition: u16, position: u64) -> OrderKey {
        OrderKey {
            timestamp: Timestamp(timestamp),
            region: RegionId(region),
            partition: PartitionId(partition),
            position: Position(position),
        }
    }

    fn places(keys: &[OrderKey]) -> LogPlaces {
        let mut places = LogPlaces::default();
        keys.iter().for_each(|key| places.advance(*key));
        places
    }

    #[test]
    fn a_place_survives_being_written_down() {
        let logs = places(&[key(9, 1, 0, 4), key(u64::MAX, 0, 12, u64::MAX)]);
        for (place, text) in [
            (Place::default(), "0.0.0.0".to_owned()),
            (Place::Order(key(7, 1, 2, 3)), "7.1.2.3".to_owned()),
            (Place::start(FeedTier::Live), "live".to_owned()),
            (
                Place::Logs(logs),
                format!("live {0}.0.12.{0} 9.1.0.4", u64::MAX),
            ),
        ] {
            assert_eq!(place.to_string(), text);
            assert_eq!(text.parse(), Ok(place));
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in [
            "",
            "live ",
            "live  7.1.2.3",
            "live7.1.2.3",
            "7.1.2.3 8.1.3.3",
            "live 7.1.2.3 ",
            "live 7.1.2",
            // Twice the same log, and logs that fall.
            "live 7.1.2.3 8.1.2.4",
            "live 7.1.2.3 8.1.1.4",
        ] {
            assert!(text.parse::<Place>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_place_in_the_logs_covers_what_each_log_had_up_to_there() {
        let place = Place::Logs(places(&[key(9, 1, 0, 4), key(5, 2, 0, 7)]));
        assert!(place.covers(key(9, 1, 0, 4)) && place.covers(key(1, 2, 0, 1)));
        // Stamped earlier than what was looked at, and not looked at.
        assert!(!place.covers(key(6, 2, 0, 8)) && !place.covers(key(1, 3, 0, 1)));
        assert_eq!(place.newest(), Timestamp(9));
        let log = |region| LogId::new(RegionId(region), PartitionId(0));
        let Place::Logs(places) = place else {
            unreachable!("it was made of logs")
        };
        let missing = |entries: &[(u16, u64)]| {
            let seen = entries
                .iter()
                .map(|(region, at)| (log(*region), Position(*at)));
            places.first_missing(&seen.collect())
        };
        assert_eq!(missing(&[(1, 4), (2, 6), (3, 0)]), None);
        assert_eq!(missing(&[(1, 4), (2, 8)]), Some((log(2), Position(8))));
    }
}

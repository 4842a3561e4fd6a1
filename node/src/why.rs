//! Why two events stand in the order in which they stand.

use std::cmp::Ordering;

use meridian_client::{ReadError, SettledTier};
use meridian_clock::{Dot, LogId, OrderKey, PartitionId, Position, Timestamp};
use meridian_event::{EventId, RecordedEvent, Revision, StreamId};
use meridian_store::{Direction, StreamRange};
use serde::Serialize;
use utoipa::ToSchema;

use crate::Node;
use crate::reads::unreadable;
use crate::shown::rfc3339;
use crate::status::Names;

/// How settled an event's place is at this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlaceSettled {
    /// Every region knows it to be settled.
    Final,
    /// Nothing can come before it here any more.
    Stable,
    /// Events may still come before it.
    Live,
}

/// Which field of the order key decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecidedBy {
    /// The timestamps differ.
    Timestamp,
    /// Equal timestamps: the lower region number goes first.
    Region,
    /// Equal timestamps in one region: the lower partition goes first.
    Partition,
    /// The same batch: the sequence in it.
    Position,
    /// Both are the same event.
    Same,
}

/// What the two events have in common, which says whether one could have known of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// Both are the same event.
    SameEvent,
    /// One append wrote both.
    SameBatch,
    /// One sequencer wrote both.
    SameLog,
    /// One region wrote both, in different partitions.
    SameRegion,
    /// Two regions wrote them.
    TwoRegions,
}

/// One of the two events, and its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Placed {
    /// Its id.
    #[schema(format = "uuid")]
    pub id: String,
    /// Its stream.
    pub stream: String,
    /// Its place in the stream.
    pub revision: u64,
    /// The name of the region that wrote it first.
    pub origin: String,
    /// The partition of its stream.
    pub partition: u16,
    /// Its place in that origin log.
    pub position: u64,
    /// When its batch was stamped, decimal.
    pub timestamp: String,
    /// The wall-clock part of that.
    #[schema(format = "date-time")]
    pub recorded_at: String,
    /// Its place in the one order: also the cursor that stands right after it.
    pub order_key: String,
    /// How settled that place is at this node.
    pub settled: PlaceSettled,
}

/// The answer of `GET /v1/why/order`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct OrderReason {
    /// The event that stands first.
    pub first: Placed,
    /// The other one.
    pub second: Placed,
    /// Whether `first` is what was asked for as `a`.
    pub first_is_a: bool,
    /// Which field of the order key decided.
    pub decided_by: DecidedBy,
    /// What the two have in common.
    pub relation: Relation,
    /// All of it in sentences.
    pub explanation: Vec<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum WhyError {
    /// It does not name an event.
    #[error(
        "{text:?} names no event: {reason}; write origin/partition/position, stream@revision or an \
         event id"
    )]
    Invalid {
        /// What should have named one.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This node does not hold such an event.
    #[error("{text:?} is not held in region {region}: {reason}")]
    NotHeld {
        /// What was asked for.
        text: String,
        /// Where.
        region: String,
        /// What is held instead.
        reason: String,
    },
    /// It cannot be read here.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// How an event is named by who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    Id(EventId),
    At(StreamId, Revision),
    Dot(Dot),
}

impl Named {
    fn parse(text: &str, names: &Names) -> Result<Self, String> {
        if let Ok(id) = uuid::Uuid::parse_str(text) {
            return Ok(Self::Id(EventId(id)));
        }
        // Names of streams may hold anything, slashes and at signs too; those of regions neither.
        if let Some((stream, revision)) = text.rsplit_once('@') {
            let revision = revision
                .parse()
                .map_err(|_| format!("{revision:?} is no revision"))?;
            let stream = StreamId::new(stream).map_err(|error| error.to_string())?;
            return Ok(Self::At(stream, Revision(revision)));
        }
        let parts: Vec<_> = text.split('/').collect();
        let [origin, partition, position] = parts[..] else {
            return Err("it is none of the three".to_owned());
        };
        let origin = names
            .id_of(origin)
            .ok_or_else(|| format!("no region is named {origin:?}"))?;
        let partition = partition
            .parse()
            .map_err(|_| format!("{partition:?} is no partition"))?;
        let position = position
            .parse()
            .map_err(|_| format!("{position:?} is no position"))?;
        if position == 0 {
            return Err("positions begin at 1".to_owned());
        }
        let log = LogId::new(origin, PartitionId(partition));
        Ok(Self::Dot(log.dot(Position(position))))
    }
}

/// An event's place, and what there is to say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    key: OrderKey,
    id: EventId,
    stream: StreamId,
    revision: Revision,
}

impl Place {
    fn of(event: RecordedEvent) -> Self {
        Self {
            key: OrderKey::new(event.timestamp, event.dot),
            id: event.id,
            stream: event.stream,
            revision: event.revision,
        }
    }
}

impl Node {
    /// Says which of two events stands first in the one order, and why. Each is named as
    /// `origin/partition/position`, `stream@revision`, or by its id.
    ///
    /// # Errors
    /// When one of them is no event, is not held here, or cannot be read.
    pub fn why_order(&self, a: &str, b: &str) -> Result<OrderReason, WhyError> {
        let (a, b) = (self.place(a)?, self.place(b)?);
        let settled = |tier| self.watermark(tier);
        Ok(compare(
            a,
            b,
            self.names(),
            settled(SettledTier::Stable),
            settled(SettledTier::Final),
        ))
    }

    fn place(&self, text: &str) -> Result<Place, WhyError> {
        let invalid = |reason| WhyError::Invalid {
            text: text.to_owned(),
            reason,
        };
        let not_held = |reason: String| WhyError::NotHeld {
            text: text.to_owned(),
            region: self.names().of(self.config().region),
            reason,
        };
        match Named::parse(text, self.names()).map_err(invalid)? {
            Named::Id(id) => {
                let found = self.store().find_event(id, &[]).map_err(unreadable)?;
                let place = found.map(|found| Place {
                    key: OrderKey::new(found.timestamp, found.dot),
                    id: found.id,
                    stream: found.stream,
                    revision: found.revision,
                });
                place.ok_or_else(|| not_held("no event here has this id".to_owned()))
            }
            Named::At(stream, revision) => {
                if !self.homes().has_home(&stream) {
                    return Err(invalid(
                        "every region may write this stream, and each gives revisions of its own"
                            .to_owned(),
                    ));
                }
                let range = StreamRange {
                    from: revision,
                    direction: Direction::Forwards,
                    limit: 1,
                    bytes_max: 1,
                    in_turn: true,
                };
                let events = self.store().read_stream(&stream, range);
                let event = events.map_err(unreadable)?.into_iter().next();
                if let Some(event) = event.filter(|event| event.revision == revision) {
                    return Ok(Place::of(event));
                }
                let last = self.store().stream_last(&stream, None, true);
                Err(not_held(match last.map_err(unreadable)? {
                    Some(last) => format!("its last revision here is {}", last.revision),
                    None => "it has no events here".to_owned(),
                }))
            }
            Named::Dot(dot) => {
                let head = self.store().head(dot.log()).position;
                let before = Position(dot.position.0 - 1);
                let blocks = self.store().read_log(dot.log(), before, 1);
                let block = blocks.map_err(unreadable)?.into_iter().next();
                let Some(block) = block else {
                    return Err(not_held(format!(
                        "this log is held here to position {head}"
                    )));
                };
                let unsound = |error: meridian_event::BlockError| ReadError::Unavailable {
                    reason: error.to_string(),
                    retry_after_ms: 1000,
                };
                let open = block.open().map_err(unsound)?;
                for event in open.events() {
                    let event = event.map_err(unsound)?;
                    if event.dot == dot {
                        return Ok(Place::of(open.record(&event).map_err(unsound)?));
                    }
                }
                Err(not_held(format!(
                    "this log is held here to position {head}"
                )))
            }
        }
    }
}

fn compare(a: Place, b: Place, names: &Names, stable: Timestamp, finals: Timestamp) -> OrderReason {
    let first_is_a = a.key <= b.key;
    let (first, second) = if first_is_a { (a, b) } else { (b, a) };
    let decided_by = decided_by(first.key, second.key);
    let relation = relation(first.key, second.key);
    let placed = |place: &Place| {
        let settled = match place.key.timestamp {
            at if at <= finals => PlaceSettled::Final,
            at if at <= stable => PlaceSettled::Stable,
            _ => PlaceSettled::Live,
        };
        Placed {
            id: place.id.to_string(),
            stream: place.stream.to_string(),
            revision: place.revision.0,
            origin: names.of(place.key.region),
            partition: place.key.partition.0,
            position: place.key.position.0,
            timestamp: place.key.timestamp.to_string(),
            recorded_at: rfc3339(place.key.timestamp),
            order_key: place.key.to_string(),
            settled,
        }
    };
    let (first, second) = (placed(&first), placed(&second));
    let mut explanation = vec![decision(decided_by, &first, &second)];
    explanation.extend(knowledge(relation, &first, &second));
    if decided_by != DecidedBy::Same {
        explanation.push(between(&second));
    }
    OrderReason {
        first,
        second,
        first_is_a,
        decided_by,
        relation,
        explanation,
    }
}

fn decided_by(first: OrderKey, second: OrderKey) -> DecidedBy {
    let by = |ordering: Ordering, field| (ordering != Ordering::Equal).then_some(field);
    by(first.timestamp.cmp(&second.timestamp), DecidedBy::Timestamp)
        .or_else(|| by(first.region.cmp(&second.region), DecidedBy::Region))
        .or_else(|| by(first.partition.cmp(&second.partition), DecidedBy::Partition))
        .or_else(|| by(first.position.cmp(&second.position), DecidedBy::Position))
        .unwrap_or(DecidedBy::Same)
}

fn relation(first: OrderKey, second: OrderKey) -> Relation {
    if first == second {
        Relation::SameEvent
    } else if first.region != second.region {
        Relation::TwoRegions
    } else if first.partition != second.partition {
        Relation::SameRegion
    } else if first.timestamp != second.timestamp {
        Relation::SameLog
    } else {
        // Timestamps of one origin log rise with every batch (`rising`).
        Relation::SameBatch
    }
}

fn dot(event: &Placed) -> String {
    format!("{}/{}/{}", event.origin, event.partition, event.position)
}

fn decision(decided_by: DecidedBy, first: &Placed, second: &Placed) -> String {
    let (a, b) = (dot(first), dot(second));
    match decided_by {
        DecidedBy::Timestamp => {
            format!("{a} stands before {b}, because its timestamp is lower.")
        }
        DecidedBy::Region => format!(
            "{a} stands before {b}: their timestamps are equal, and region {} has the lower number.",
            first.origin
        ),
        DecidedBy::Partition => format!(
            "{a} stands before {b}: their timestamps and regions are equal, and partition {} is the \
             lower number.",
            first.partition
        ),
        DecidedBy::Position => {
            format!("{a} stands before {b}: one batch wrote both, in this sequence.")
        }
        DecidedBy::Same => format!("Both are {a}, the same event."),
    }
}

fn knowledge(relation: Relation, first: &Placed, second: &Placed) -> Option<String> {
    let (a, b) = (dot(first), dot(second));
    match relation {
        Relation::SameEvent => None,
        Relation::SameBatch => Some("Neither was ever there without the other.".to_owned()),
        Relation::SameLog => Some(format!(
            "One sequencer of {} wrote both, {a} earlier. Whoever wrote {b} may have read {a}, or may \
             not: an expected revision or the event's own data tells, the order does not.",
            first.origin
        )),
        Relation::SameRegion => Some(format!(
            "One clock, that of {}, stamped both. Whoever wrote {b} may have read {a}, or may not: \
             standing earlier does not mean having been the cause.",
            first.origin
        )),
        Relation::TwoRegions => Some(format!(
            "A region stamps later than everything it holds, so {} did not hold {b} when it wrote {a} \
             (unless the clock of {} was far ahead). Whether {} held {a} when it wrote {b}, the order \
             does not say: standing earlier does not mean having been known, nor having been the \
             cause.",
            first.origin, second.origin, second.origin
        )),
    }
}

fn between(second: &Placed) -> String {
    match second.settled {
        PlaceSettled::Final => {
            "Both places are final: every region has them so, and nothing can come between."
                .to_owned()
        }
        PlaceSettled::Stable => {
            "Both places are stable here: nothing can come between any more.".to_owned()
        }
        PlaceSettled::Live => {
            "Their order is fixed, but not what else stands between them: events \
             may still arrive there."
                .to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use meridian_clock::RegionId;

    use super::*;

    fn names() -> Names {
        let named = [("a", 0), ("b", 1)].map(|(name, id)| (RegionId(id), name.to_owned()));
        Names(named.into())
    }

    fn place(timestamp: u64, region: u16, partition: u16, position: u64) -> Place {
        Place {
            key: OrderKey {
                timestamp: Timestamp(timestamp),
                region: RegionId(region),
                partition: PartitionId(partition),
                position: Position(position),
            },
            id: EventId::from_random([7; 16]),
            stream: StreamId::new("order-1").expect("a name"),
            revision: Revision(0),
        }
    }

    fn why(a: Place, b: Place) -> OrderReason {
        compare(a, b, &names(), Timestamp(20), Timestamp(10))
    }

    #[test]
    fn the_first_field_that_differs_decides() {
        let cases = [
            (place(6, 0, 0, 1), DecidedBy::Timestamp, Relation::SameLog),
            (
                place(6, 1, 3, 1),
                DecidedBy::Timestamp,
                Relation::TwoRegions,
            ),
            (place(5, 1, 0, 1), DecidedBy::Region, Relation::TwoRegions),
            (
                place(5, 0, 2, 1),
                DecidedBy::Partition,
                Relation::SameRegion,
            ),
            (place(5, 0, 0, 2), DecidedBy::Position, Relation::SameBatch),
            (place(5, 0, 0, 1), DecidedBy::Same, Relation::SameEvent),
        ];
        for (other, decided_by, relation) in cases {
            let reason = why(place(5, 0, 0, 1), other.clone());
            assert_eq!((reason.decided_by, reason.relation), (decided_by, relation));
            assert!(reason.first_is_a);
            let turned = why(other, place(5, 0, 0, 1));
            assert_eq!((turned.first, turned.second), (reason.first, reason.second));
            assert_eq!(turned.decided_by, decided_by);
        }
    }

    #[test]
    fn a_place_is_settled_as_far_as_the_watermarks_reach() {
        let reason = why(place(10, 0, 0, 1), place(20, 0, 0, 2));
        assert_eq!(reason.first.settled, PlaceSettled::Final);
        assert_eq!(reason.second.settled, PlaceSettled::Stable);
        let reason = why(place(20, 0, 0, 1), place(21, 1, 0, 2));
        assert_eq!(reason.second.settled, PlaceSettled::Live);
    }

    #[test]
    fn an_event_is_named_in_three_ways() {
        let parse = |text: &str| Named::parse(text, &names());
        let log = LogId::new(RegionId(1), PartitionId(2));
        assert_eq!(parse("b/2/17"), Ok(Named::Dot(log.dot(Position(17)))));
        let stream = StreamId::new("order-4/x@y").expect("a name");
        assert_eq!(parse("order-4/x@y@3"), Ok(Named::At(stream, Revision(3))));
        let id = "00000000-0000-4000-8000-000000000001";
        assert!(matches!(parse(id), Ok(Named::Id(_))));
        for bad in [
            "",
            "b/2",
            "b/2/0",
            "b/x/1",
            "nowhere/2/1",
            "order-4",
            "order-4@x",
            "@1",
            "b/2/1/1",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken for an event");
        }
    }
}

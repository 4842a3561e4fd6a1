//! The one order as a projection's worker reads it, straight from the store.

use std::ops::ControlFlow;
use std::sync::Arc;

use meridian_clock::{LogId, OrderKey, PartitionId, Position, RegionId, Timestamp};
use meridian_event::partition_of;
use meridian_projection::{Feed, FeedError, FeedEvent, FeedTier, Reached};
use meridian_replication::link::Marks;
use meridian_store::{OrderedReader, Store};
use tokio::sync::watch;

use crate::status::Names;

/// How much a reader that has nothing to read may hold in memory.
const IDLE_BYTES_MAX: usize = 1 << 20;

/// One worker's share of the one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The streams whose hash leaves `number` when it is divided by `count`.
    Streams {
        /// Which.
        number: u16,
        /// Of how many.
        count: u16,
    },
    /// What is stamped after the one and at or before the other.
    Stretch(Timestamp, Timestamp),
}

impl Part {
    // Streams lie in partitions by the same hash, so a worker need not read logs that have none of its.
    fn logs(self, logs: &[LogId]) -> Vec<LogId> {
        let partitions = logs.iter().map(|log| log.partition.0).max().unwrap_or(0) + 1;
        match self {
            Self::Streams { number, count } if partitions % count == 0 => logs
                .iter()
                .copied()
                .filter(|log| log.partition.0 % count == number)
                .collect(),
            _ => logs.to_vec(),
        }
    }

    fn takes(self, stream: &str) -> bool {
        match self {
            Self::Streams { number, count } => partition_of(stream, count) == PartitionId(number),
            Self::Stretch(..) => true,
        }
    }

    // The place from which on, and the timestamp up to which it is read.
    fn bounds(self) -> (OrderKey, Timestamp) {
        match self {
            Self::Streams { .. } => (OrderKey::ZERO, Timestamp(u64::MAX)),
            Self::Stretch(after, until) => (end_of(after), until),
        }
    }
}

/// The place after every event that is stamped `timestamp`.
pub(crate) fn end_of(timestamp: Timestamp) -> OrderKey {
    OrderKey {
        timestamp,
        region: RegionId(u16::MAX),
        partition: PartitionId(u16::MAX),
        position: Position(u64::MAX),
    }
}

/// Reads the one order as far as its tier has settled it.
pub(crate) struct OrderFeed {
    store: Arc<Store>,
    logs: Vec<LogId>,
    names: Arc<Names>,
    marks: watch::Receiver<Arc<Marks>>,
    tier: FeedTier,
    bound: watch::Receiver<Option<Timestamp>>,
    part: Option<Part>,
    reader: OrderedReader,
}

impl OrderFeed {
    /// `bound` is how far it may read at most, so that several stop at the same place.
    pub(crate) fn new(
        store: &Arc<Store>,
        logs: &[LogId],
        names: &Arc<Names>,
        marks: watch::Receiver<Arc<Marks>>,
        tier: FeedTier,
        bound: watch::Receiver<Option<Timestamp>>,
    ) -> Self {
        Self {
            store: Arc::clone(store),
            logs: logs.to_vec(),
            names: Arc::clone(names),
            marks,
            tier,
            bound,
            part: None,
            reader: store.ordered(logs.iter().copied(), OrderKey::ZERO),
        }
    }

    /// Reads a part of it only.
    pub(crate) fn only(mut self, part: Part) -> Self {
        self.logs = part.logs(&self.logs);
        self.part = Some(part);
        self.seek(OrderKey::ZERO);
        self
    }
}

/// How far a tier is settled.
pub(crate) fn settled(marks: &Marks, tier: FeedTier) -> Timestamp {
    match tier {
        FeedTier::Live | FeedTier::Stable => marks.stable(),
        FeedTier::Final => marks.finals(),
    }
}

impl Feed for OrderFeed {
    fn seek(&mut self, place: OrderKey) {
        let from = self.part.map_or(OrderKey::ZERO, |part| part.bounds().0);
        self.reader = self
            .store
            .ordered(self.logs.iter().copied(), place.max(from));
    }

    fn read(
        &mut self,
        visit: &mut dyn FnMut(&FeedEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Reached, FeedError> {
        let settled = settled(&self.marks.borrow(), self.tier);
        let until = (*self.bound.borrow()).map_or(settled, |bound| bound.min(settled));
        let until = match self.part {
            Some(part) => until.min(part.bounds().1),
            None => until,
        };
        let (names, part) = (Arc::clone(&self.names), self.part);
        let read = self.reader.read(until, |key, _, event| {
            if part.is_some_and(|part| !part.takes(event.stream)) {
                return ControlFlow::Continue(());
            }
            let region = names.0.get(&key.region).map_or("", String::as_str);
            visit(&FeedEvent {
                key,
                stream: event.stream,
                revision: event.revision.0,
                id: event.id,
                event_type: event.event_type,
                data: event.data,
                metadata: event.metadata,
                region,
            })
        });
        match read {
            Ok(meridian_store::Reached::Bound) => {
                if self.reader.held_bytes() > IDLE_BYTES_MAX {
                    self.reader.release();
                }
                Ok(Reached::Settled(until))
            }
            Ok(meridian_store::Reached::Refused) => Ok(Reached::Refused),
            Err(error) => Err(FeedError {
                reason: error.to_string(),
            }),
        }
    }

    fn place(&self) -> OrderKey {
        self.reader.cursor()
    }
}

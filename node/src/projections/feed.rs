//! The one order as a projection's worker reads it, straight from the store.

use std::ops::ControlFlow;
use std::sync::Arc;

use meridian_clock::{LogId, OrderKey, Timestamp};
use meridian_projection::{Feed, FeedError, FeedEvent, FeedTier, Reached};
use meridian_replication::link::Marks;
use meridian_store::{OrderedReader, Store};
use tokio::sync::watch;

use crate::status::Names;

/// How much a reader that has nothing to read may hold in memory.
const IDLE_BYTES_MAX: usize = 1 << 20;

/// Reads the one order as far as its tier has settled it.
pub(crate) struct OrderFeed {
    store: Arc<Store>,
    logs: Vec<LogId>,
    names: Arc<Names>,
    marks: watch::Receiver<Arc<Marks>>,
    tier: FeedTier,
    bound: watch::Receiver<Option<Timestamp>>,
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
            reader: store.ordered(logs.iter().copied(), OrderKey::ZERO),
        }
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
        if self.reader.cursor() != place {
            self.reader = self.store.ordered(self.logs.iter().copied(), place);
        }
    }

    fn read(
        &mut self,
        visit: &mut dyn FnMut(&FeedEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Reached, FeedError> {
        let settled = settled(&self.marks.borrow(), self.tier);
        let until = (*self.bound.borrow()).map_or(settled, |bound| bound.min(settled));
        let names = Arc::clone(&self.names);
        let read = self.reader.read(until, |key, _, event| {
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

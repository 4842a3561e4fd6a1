//! What a projection's worker reads, straight from the store: the one order, or in the `live` tier all
//! that is held here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use meridian_clock::{LogId, OrderKey, PartitionId, Position, RegionId, Timestamp};
use meridian_event::{EventRef, partition_of};
use meridian_projection::{Feed, FeedError, FeedEvent, FeedTier, LogPlaces, Place, Reached};
use meridian_replication::link::Marks;
use meridian_store::{OrderedReader, Store};
use tokio::sync::watch;

use crate::status::Names;

/// How much a reader that has nothing to read may hold in memory.
const IDLE_BYTES_MAX: usize = 1 << 20;
/// How much of one origin log is read before it is another one's turn.
const TURN_BYTES_MAX: usize = 1 << 20;

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
        self.seek(&Place::Order(OrderKey::ZERO));
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
    fn seek(&mut self, place: &Place) {
        let Place::Order(place) = place else {
            unreachable!("a worker takes up read models of its own tier only");
        };
        let from = self.part.map_or(OrderKey::ZERO, |part| part.bounds().0);
        self.reader = self
            .store
            .ordered(self.logs.iter().copied(), (*place).max(from));
    }

    fn read(
        &mut self,
        upto: Option<&Place>,
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
            if upto.is_some_and(|upto| !upto.covers(key)) {
                return ControlFlow::Break(());
            }
            if part.is_some_and(|part| !part.takes(event.stream)) {
                return ControlFlow::Continue(());
            }
            visit(&shown(&names, key, event))
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

    fn place(&self) -> Place {
        Place::Order(self.reader.cursor())
    }
}

fn shown<'a>(names: &'a Names, key: OrderKey, event: &EventRef<'a>) -> FeedEvent<'a> {
    FeedEvent {
        key,
        stream: event.stream,
        revision: event.revision.0,
        id: event.id,
        event_type: event.event_type,
        data: event.data,
        metadata: event.metadata,
        region: names.0.get(&key.region).map_or("", String::as_str),
    }
}

/// Reads all that is held here: each origin log in its order, a stretch of one after a stretch of another.
///
/// Where a log cannot be read on, its reader waits; the others go on.
pub(crate) struct LiveFeed {
    store: Arc<Store>,
    logs: BTreeSet<LogId>,
    names: Arc<Names>,
    marks: watch::Receiver<Arc<Marks>>,
    bound: watch::Receiver<Option<Timestamp>>,
    places: LogPlaces,
    // The log that is read first. An event that was not taken comes first again, or a worker that tries
    // two of them would never come to an end with either.
    turn: LogId,
    // Logs that were seen to have the event after which they are read.
    compared: BTreeSet<LogId>,
}

// Why a turn of one log ended.
enum Turn {
    More,
    Done,
    Refused,
}

impl LiveFeed {
    /// `bound` is the stamp up to which it may read at most, so that several stop at the same place.
    pub(crate) fn new(
        store: &Arc<Store>,
        logs: &[LogId],
        names: &Arc<Names>,
        marks: watch::Receiver<Arc<Marks>>,
        bound: watch::Receiver<Option<Timestamp>>,
    ) -> Self {
        Self {
            store: Arc::clone(store),
            logs: logs.iter().copied().collect(),
            names: Arc::clone(names),
            marks,
            bound,
            places: LogPlaces::default(),
            turn: LogId::default(),
            compared: BTreeSet::new(),
        }
    }

    // A log that lost its end, and one that was begun anew, may have other events where these were looked
    // at, and would be read on from behind them.
    fn compare(&mut self, log: LogId, head: Position) -> Result<(), FeedError> {
        let Some(last) = self.places.get(log) else {
            return Ok(());
        };
        let name = || {
            format!(
                "partition {} of {}",
                log.partition,
                self.names.of(log.origin)
            )
        };
        if head < last.position {
            return Err(FeedError {
                reason: format!(
                    "{} is held here up to position {head} only, and the read model has looked at {}; it goes on once that is here again",
                    name(),
                    last.position
                ),
            });
        }
        if head == last.position || self.compared.contains(&log) {
            return Ok(());
        }
        let before = Position(last.position.0.saturating_sub(1));
        // What cannot be read is not known to be another one, and is not needed any more.
        if let Ok(blocks) = self.store.read_log(log, before, 1)
            && let Some(open) = blocks.first().and_then(|block| block.open().ok())
            && let Some(found) = open
                .events()
                .flatten()
                .find(|event| event.dot.position == last.position)
            && found.timestamp != last.timestamp
        {
            return Err(FeedError {
                reason: format!(
                    "{} has another event at position {} than the one that the read model has looked at; rebuild it: `meridian projection rebuild`",
                    name(),
                    last.position
                ),
            });
        }
        self.compared.insert(log);
        Ok(())
    }

    fn read_turn(
        &mut self,
        log: LogId,
        end: Position,
        bound: Option<Timestamp>,
        visit: &mut dyn FnMut(&FeedEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Turn, FeedError> {
        let unreadable = |error: &dyn std::error::Error| FeedError {
            reason: error.to_string(),
        };
        let mut last = self.places.position(log);
        let read = self.store.read_log(log, last, TURN_BYTES_MAX);
        let blocks = read.map_err(|error| unreadable(&error))?;
        if blocks.is_empty() {
            return Err(FeedError {
                reason: format!("nothing is found of log {log} after position {last}"),
            });
        }
        for block in blocks {
            let open = block.open().map_err(|error| unreadable(&error))?;
            let mut events = open.events();
            while let Some((position, timestamp)) =
                events.peek().map_err(|error| unreadable(&error))?
            {
                if position <= last {
                    events.pass().map_err(|error| unreadable(&error))?;
                    continue;
                }
                if position > end || bound.is_some_and(|bound| timestamp > bound) {
                    return Ok(Turn::Done);
                }
                let Some(event) = events.next() else { break };
                let event = event.map_err(|error| unreadable(&error))?;
                let key = OrderKey::new(timestamp, log.dot(position));
                if visit(&shown(&self.names, key, &event)).is_break() {
                    return Ok(Turn::Refused);
                }
                self.places.advance(key);
                last = position;
            }
        }
        Ok(match last < end {
            true => Turn::More,
            false => Turn::Done,
        })
    }
}

impl Feed for LiveFeed {
    fn seek(&mut self, place: &Place) {
        let Place::Logs(places) = place else {
            unreachable!("a worker takes up read models of its own tier only");
        };
        let known = &self.places;
        self.compared
            .retain(|log| places.position(*log) <= known.position(*log));
        self.places = places.clone();
    }

    fn read(
        &mut self,
        upto: Option<&Place>,
        visit: &mut dyn FnMut(&FeedEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Reached, FeedError> {
        let bound = *self.bound.borrow();
        // Before the heads: all that is settled by now is held by then.
        let stable = self.marks.borrow().stable();
        let heads = self.store.heads().into_iter();
        let heads: BTreeMap<LogId, Position> =
            heads.map(|head| (head.log, head.position)).collect();
        let mut trouble = None;
        let mut turns = VecDeque::new();
        let first = self.turn;
        let rotated = self.logs.range(first..).chain(self.logs.range(..first));
        for log in rotated.copied().collect::<Vec<_>>() {
            let head = heads.get(&log).copied().unwrap_or_default();
            if let Err(error) = self.compare(log, head) {
                trouble = Some(error);
                continue;
            }
            let end = match upto {
                None | Some(Place::Order(_)) => head,
                Some(Place::Logs(upto)) => head.min(upto.position(log)),
            };
            if self.places.position(log) < end {
                turns.push_back((log, end));
            }
        }
        while let Some((log, end)) = turns.pop_front() {
            if upto.is_none() {
                self.turn = log;
            }
            match self.read_turn(log, end, bound, visit) {
                Ok(Turn::More) => turns.push_back((log, end)),
                Ok(Turn::Done) => {}
                Ok(Turn::Refused) => return Ok(Reached::Refused),
                Err(error) => trouble = Some(error),
            }
        }
        match (trouble, upto) {
            (Some(error), _) => Err(error),
            (None, Some(_)) => Ok(Reached::Refused),
            (None, None) => Ok(Reached::Settled(
                bound.map_or(stable, |bound| bound.min(stable)),
            )),
        }
    }

    fn place(&self) -> Place {
        Place::Logs(self.places.clone())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use meridian_clock::{Epoch, Incarnation};
    use meridian_event::{BlockBuilder, EventId, EventType, NewEvent, Revision, StreamId};
    use meridian_store::{Lanes, SimDisk, StoreOptions};

    use super::*;

    // A store that is told when to commit, and a live feed of two logs of it.
    struct World {
        disk: SimDisk,
        store: Arc<Store>,
        marks: watch::Sender<Arc<Marks>>,
        bound: watch::Sender<Option<Timestamp>>,
    }

    fn log(origin: u16) -> LogId {
        LogId::new(RegionId(origin), PartitionId(0))
    }

    fn open(disk: &SimDisk) -> Arc<Store> {
        let options = StoreOptions {
            lanes: Lanes::Driven,
            ..StoreOptions::default()
        };
        let opened = Store::open(Arc::new(disk.clone()), options);
        opened.expect("the folder opens").0
    }

    impl World {
        fn new() -> Self {
            let disk = SimDisk::new(1);
            Self {
                store: open(&disk),
                disk,
                marks: watch::Sender::default(),
                bound: watch::Sender::default(),
            }
        }

        fn feed(&self) -> LiveFeed {
            LiveFeed::new(
                &self.store,
                &[log(1), log(2)],
                &Arc::new(Names(BTreeMap::new())),
                self.marks.subscribe(),
                self.bound.subscribe(),
            )
        }

        fn settle(&self, stable: u64) {
            self.marks.send_replace(Arc::new(Marks {
                stable: vec![Timestamp(stable)],
                finals: vec![Timestamp::ZERO],
            }));
        }

        // One block of one event.
        fn write(&self, log: LogId, timestamp: u64) {
            let head = self.store.head(log);
            let stream = StreamId::new(&format!("s-{}", log.origin)).expect("a name");
            let event = NewEvent {
                id: EventId::from_random(u128::from(timestamp).to_be_bytes()),
                event_type: EventType::new("Happened").expect("a name"),
                data: Bytes::from_static(b"{}"),
                metadata: Bytes::new(),
            };
            let mut block = BlockBuilder::new(log, Incarnation(1), Epoch::FIRST);
            let revision = Revision(head.position.0);
            block.push_batch(Timestamp(timestamp), &stream, revision, &[event]);
            let block = block.seal(head.position.plus(1), head.chain);
            self.store
                .submit(block, Box::new(|_| {}))
                .expect("it continues its log");
            while let Some(group) = self.store.commit_begin() {
                self.store.commit_finish(group);
            }
        }
    }

    // What is read, as origin and position, at most `limit` of it.
    fn read(
        feed: &mut LiveFeed,
        upto: Option<&Place>,
        limit: usize,
    ) -> (Vec<(u16, u64)>, Result<Reached, FeedError>) {
        let mut found = Vec::new();
        let reached = feed.read(upto, &mut |event| {
            if found.len() == limit {
                return ControlFlow::Break(());
            }
            found.push((event.key.region.0, event.key.position.0));
            ControlFlow::Continue(())
        });
        (found, reached)
    }

    fn all(feed: &mut LiveFeed) -> Vec<(u16, u64)> {
        let (found, reached) = read(feed, None, usize::MAX);
        assert!(matches!(reached, Ok(Reached::Settled(_))), "{reached:?}");
        found
    }

    #[test]
    fn what_is_held_is_read_although_nothing_is_settled() {
        let world = World::new();
        let mut feed = world.feed();
        assert_eq!(all(&mut feed), []);
        world.write(log(1), 10);
        world.write(log(2), 5);
        world.write(log(2), 20);
        assert_eq!(all(&mut feed), [(1, 1), (2, 1), (2, 2)]);
        assert_eq!(all(&mut feed), []);
        assert_eq!(feed.place().to_string(), "live 10.1.0.1 20.2.0.2");
        // Another one goes on from there.
        let mut next = world.feed();
        next.seek(&feed.place());
        world.write(log(1), 30);
        world.settle(25);
        let (found, reached) = read(&mut next, None, usize::MAX);
        assert_eq!(found, [(1, 2)]);
        assert!(matches!(reached, Ok(Reached::Settled(Timestamp(25)))));
    }

    #[test]
    fn an_event_that_is_not_taken_comes_first_again_and_a_part_is_read_again_as_it_was() {
        let world = World::new();
        let mut feed = world.feed();
        let start = feed.place();
        for timestamp in [10, 20] {
            world.write(log(1), timestamp);
            world.write(log(2), timestamp);
        }
        let (found, reached) = read(&mut feed, None, 3);
        assert_eq!(found, [(1, 1), (1, 2), (2, 1)]);
        assert!(matches!(reached, Ok(Reached::Refused)));
        let upto = feed.place();
        feed.seek(&start);
        world.write(log(1), 30);
        let (mut again, reached) = read(&mut feed, Some(&upto), usize::MAX);
        again.sort_unstable();
        assert_eq!(again, found);
        assert!(matches!(reached, Ok(Reached::Refused)));
        assert_eq!(all(&mut feed), [(2, 2), (1, 3)]);
    }

    #[test]
    fn a_bound_ends_each_log_before_what_is_stamped_later() {
        let world = World::new();
        let (mut one, mut other) = (world.feed(), world.feed());
        world.settle(100);
        for timestamp in [10, 20, 30] {
            world.write(log(1), timestamp);
            world.write(log(2), timestamp + 5);
        }
        world.bound.send_replace(Some(Timestamp(25)));
        assert_eq!(all(&mut one), [(1, 1), (1, 2), (2, 1), (2, 2)]);
        world.write(log(2), 40);
        let (_, reached) = read(&mut other, None, usize::MAX);
        assert!(matches!(reached, Ok(Reached::Settled(Timestamp(25)))));
        assert_eq!(one.place(), other.place());
        world.bound.send_replace(None);
        let mut rest = all(&mut one);
        rest.sort_unstable();
        assert_eq!(rest, [(1, 3), (2, 3), (2, 4)]);
    }

    #[test]
    fn damage_is_waited_for_in_its_log_and_holds_up_no_other() {
        let world = World::new();
        let mut feed = world.feed();
        for timestamp in [10, 20, 30] {
            world.write(log(1), timestamp);
            world.write(log(2), timestamp);
        }
        world.settle(30);
        // The first entry after the segment's header is log 1's first block.
        world.disk.flip("log/00000001.seg", 64 + 150, 1);
        let (found, reached) = read(&mut feed, None, usize::MAX);
        assert_eq!(found, [(2, 1), (2, 2), (2, 3)]);
        assert!(reached.is_err(), "nothing is said to be complete");
        world.disk.flip("log/00000001.seg", 64 + 150, 1);
        assert_eq!(all(&mut feed), [(1, 1), (1, 2), (1, 3)]);
    }

    #[test]
    fn a_log_that_lost_its_end_is_waited_for_and_one_begun_anew_is_not_read_on() {
        let before = World::new();
        let mut feed = before.feed();
        for timestamp in [10, 20] {
            before.write(log(1), timestamp);
        }
        all(&mut feed);
        let lost = World::new();
        let mut next = lost.feed();
        next.seek(&feed.place());
        lost.write(log(1), 10);
        lost.write(log(2), 15);
        let reason = |reached: Result<Reached, FeedError>| reached.expect_err("a reason").reason;
        let (found, reached) = read(&mut next, None, usize::MAX);
        assert_eq!(found, [(2, 1)]);
        assert!(reason(reached).contains("up to position 1 only"));
        // Other events at the positions that were looked at.
        lost.write(log(1), 21);
        lost.write(log(1), 31);
        let (found, reached) = read(&mut next, None, usize::MAX);
        assert_eq!(found, []);
        assert!(reason(reached).contains("rebuild"));
    }
}

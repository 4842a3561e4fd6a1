//! One consumer group as a state machine: which events are whose, which are dealt with.
//!
//! Nothing here waits, reads or writes. The window holds the events that were read in the one order and
//! are not settled; `cursor` stands before all of them, and `done` are those behind it that are settled
//! already.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use meridian_client::{Delivery, Gone, Verdict};
use meridian_clock::{OrderKey, Position};
use meridian_event::{RecordedEvent, StreamId};
use tokio::time::Instant;

use super::definition::GroupDefinition;
use super::delivery::DeliveryId;
use super::progress::{Parked, Progress};

/// How many events are read ahead of the first one that is not settled. All of them may be settled
/// behind it, and must fit into one value of the small state.
pub(super) const WINDOW_MAX: usize = 2_000;
/// How much the events in the window may weigh.
const WINDOW_BYTES_MAX: usize = 16 << 20;
/// How many events may be parked. With more the group's streams wait, so that somebody looks. All of them
/// fit into one event.
pub(super) const PARKED_MAX: usize = 200;
/// How long an event waits that should be parked while there is no room.
const NO_ROOM_DELAY: Duration = Duration::from_secs(10);
/// Between two attempts: this, doubled from attempt to attempt.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The longest that an attempt is put off.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// How much of a reason is kept.
const REASON_CHARS_MAX: usize = 300;

enum State {
    Waiting {
        not_before: Instant,
    },
    Leased {
        number: u64,
        consumer: Arc<str>,
        until: Instant,
    },
}

struct Entry {
    event: Arc<RecordedEvent>,
    // How many attempts failed.
    attempts: u32,
    reason: String,
    state: State,
}

impl Entry {
    fn new(event: RecordedEvent, attempts: u32, now: Instant) -> Self {
        Self {
            event: Arc::new(event),
            attempts,
            reason: String::new(),
            state: State::Waiting { not_before: now },
        }
    }

    fn weight_bytes(&self) -> usize {
        self.event.data.len() + self.event.metadata.len()
    }
}

/// What a group is about, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Read and not settled.
    pub(super) waiting: usize,
    /// Of those, given out.
    pub(super) in_flight: usize,
    /// Put aside.
    pub(super) parked: usize,
}

/// One consumer group.
pub(super) struct Group {
    definition: GroupDefinition,
    // Tells this life's deliveries from those of an earlier one.
    life: u32,
    next_number: u64,
    progress: Progress,
    // How far the order was read.
    read_to: OrderKey,
    window: BTreeMap<OrderKey, Entry>,
    window_bytes: usize,
    // Parked ones that are tried once more; they stay parked until that succeeds.
    retried: BTreeMap<OrderKey, Entry>,
    parked: BTreeMap<OrderKey, Parked>,
    parked_version: u64,
    // How many events are given out of each stream, all to one consumer.
    holders: HashMap<StreamId, usize>,
    in_flight: BTreeMap<Arc<str>, usize>,
}

impl Group {
    /// A group that goes on from `progress`, in a life called `life`.
    pub(super) fn new(
        definition: GroupDefinition,
        progress: Progress,
        parked: impl IntoIterator<Item = Parked>,
        life: u32,
    ) -> Self {
        let parked = parked.into_iter().map(|it| (it.key, it));
        Self {
            definition,
            life,
            next_number: 1,
            read_to: progress.cursor,
            progress,
            window: BTreeMap::new(),
            window_bytes: 0,
            retried: BTreeMap::new(),
            parked: parked.collect(),
            parked_version: 0,
            holders: HashMap::new(),
            in_flight: BTreeMap::new(),
        }
    }

    /// Where to read on.
    pub(super) fn read_to(&self) -> OrderKey {
        self.read_to
    }

    /// How many more events to read now.
    pub(super) fn room(&self) -> usize {
        match self.window_bytes < WINDOW_BYTES_MAX {
            true => WINDOW_MAX.saturating_sub(self.window.len() + self.progress.done.len()),
            false => 0,
        }
    }

    /// Takes in what was read, up to `read_to`.
    pub(super) fn read(&mut self, events: Vec<RecordedEvent>, read_to: OrderKey, now: Instant) {
        for event in events {
            let key = event.order_key();
            if key <= self.read_to
                || self.progress.done.contains(&key)
                || !self.definition.takes(&event)
            {
                continue;
            }
            let attempts = self.progress.attempts.get(&key).copied().unwrap_or(0);
            let entry = Entry::new(event, attempts, now);
            self.window_bytes += entry.weight_bytes();
            self.window.insert(key, entry);
        }
        self.read_to = self.read_to.max(read_to);
        self.advance();
    }

    /// What must be kept: changes of it count in [`Progress::version`].
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What is parked, and a number that changes with it.
    pub(super) fn parked(&self) -> (&BTreeMap<OrderKey, Parked>, u64) {
        (&self.parked, self.parked_version)
    }

    /// Whether a parked event is under way once more.
    pub(super) fn is_retried(&self, key: OrderKey) -> bool {
        self.retried.contains_key(&key)
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            waiting: self.window.len(),
            in_flight: self.in_flight.values().sum(),
            parked: self.parked.len(),
        }
    }

    /// The consumers that have events, and how many each.
    pub(super) fn consumers(&self) -> BTreeMap<String, usize> {
        let having = self.in_flight.iter().filter(|(_, count)| **count > 0);
        having
            .map(|(name, count)| (name.to_string(), *count))
            .collect()
    }

    /// The first event that is not settled, and why it failed before, if it did.
    pub(super) fn first(&self) -> Option<(&RecordedEvent, &str)> {
        let (_, entry) = self.window.first_key_value()?;
        Some((&entry.event, &entry.reason))
    }

    /// Gives out up to `limit` events to `consumer`.
    pub(super) fn fetch(&mut self, consumer: &str, limit: usize, now: Instant) -> Vec<Delivery> {
        self.expire(now);
        let consumer: Arc<str> = consumer.into();
        let held = self.in_flight.get(&consumer).copied().unwrap_or(0);
        let room = self.definition.in_flight_max.saturating_sub(held);
        let limit = limit.min(room);
        let until = now + self.definition.ack_within();
        let mut given = Vec::new();
        // Streams of which nothing later may go out, and those that begin to go out now. What a consumer
        // was given before and did not settle it may have forgotten in a crash, so nothing follows on it.
        let mut shut: HashSet<StreamId> = HashSet::new();
        let mut begun: HashSet<StreamId> = HashSet::new();
        let entries = self.retried.iter_mut().chain(self.window.iter_mut());
        for (key, entry) in entries {
            if given.len() == limit {
                break;
            }
            let stream = &entry.event.stream;
            if shut.contains(stream) {
                continue;
            }
            let is_out = self.holders.contains_key(stream) && !begun.contains(stream);
            match entry.state {
                _ if is_out => {
                    shut.insert(stream.clone());
                }
                State::Leased { .. } => {}
                State::Waiting { not_before } if not_before > now => {
                    shut.insert(stream.clone());
                }
                State::Waiting { .. } => {
                    let number = self.next_number;
                    self.next_number += 1;
                    entry.state = State::Leased {
                        number,
                        consumer: Arc::clone(&consumer),
                        until,
                    };
                    begun.insert(stream.clone());
                    *self.holders.entry(stream.clone()).or_default() += 1;
                    *self.in_flight.entry(Arc::clone(&consumer)).or_default() += 1;
                    given.push(Delivery {
                        event: RecordedEvent::clone(&entry.event),
                        delivery: DeliveryId {
                            key: *key,
                            life: self.life,
                            number,
                        }
                        .to_string(),
                        attempt: entry.attempts + 1,
                    });
                }
            }
        }
        given
    }

    /// When something may change without anybody doing anything.
    pub(super) fn wakes_at(&self, now: Instant) -> Option<Instant> {
        let entries = self.retried.values().chain(self.window.values());
        entries
            .filter_map(|entry| match entry.state {
                State::Leased { until, .. } => Some(until),
                State::Waiting { not_before } => (not_before > now).then_some(not_before),
            })
            .min()
    }

    /// Takes events back that were not acknowledged in time.
    pub(super) fn expire(&mut self, now: Instant) {
        let entries = self.retried.iter().chain(self.window.iter());
        let late: Vec<OrderKey> = entries
            .filter(|(_, entry)| matches!(entry.state, State::Leased { until, .. } if until <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in late {
            // What came behind another one's was taken back with it.
            let Some(State::Leased { consumer, .. }) = self.entry(key).map(|entry| &entry.state)
            else {
                continue;
            };
            let reason = format!(
                "{consumer} did not acknowledge it within {:?}",
                self.definition.ack_within()
            );
            self.fail(key, reason, Some(Duration::ZERO), now);
        }
    }

    /// Settles a delivery.
    ///
    /// # Errors
    /// With what became of its event, when it is not the consumer's any more.
    pub(super) fn settle(
        &mut self,
        delivery: &str,
        verdict: &Verdict,
        now: Instant,
    ) -> Result<(), Gone> {
        self.expire(now);
        let gone = |reason: &str| Gone {
            delivery: delivery.to_owned(),
            reason: reason.to_owned(),
        };
        let id: DeliveryId = delivery
            .parse()
            .map_err(|()| gone("it was not given out by this group"))?;
        let Some(entry) = self.entry(id.key) else {
            return self.settle_unknown(&id, verdict).map_err(gone);
        };
        let is_current = id.life == self.life
            && matches!(entry.state, State::Leased { number, .. } if number == id.number);
        let over = "its time was over, and its event is given out again or waits for that";
        let counts = is_current || (*verdict == Verdict::Done && self.is_next(id.key));
        if !counts {
            return Err(gone(over));
        }
        match verdict {
            Verdict::Done => self.remove(id.key),
            Verdict::Retry { delay_ms, reason } => {
                let delay = delay_ms.map(|ms| Duration::from_millis(ms.into()));
                self.fail(id.key, reason.clone(), delay, now);
            }
            Verdict::Park { reason } => self.park(id.key, reason.clone(), now),
        }
        Ok(())
    }

    // Of an event that is settled, or was given out before a restart and is not read again yet. Nothing
    // is kept of the latter: who makes deliveries up must not fill what is kept.
    fn settle_unknown(&self, id: &DeliveryId, verdict: &Verdict) -> Result<(), &'static str> {
        if self.parked.contains_key(&id.key) {
            return Err("its event is parked");
        }
        let is_settled = id.key <= self.read_to || self.progress.done.contains(&id.key);
        match verdict {
            Verdict::Done if is_settled => Ok(()),
            _ if is_settled => Err("its event is settled"),
            _ => Err("its event is given out again"),
        }
    }

    // Whether it waits, and nothing before it in its stream is left: who was late may still have been
    // the one that dealt with it.
    fn is_next(&self, key: OrderKey) -> bool {
        let Some(entry) = self.entry(key) else {
            return false;
        };
        let stream = &entry.event.stream;
        matches!(entry.state, State::Waiting { .. })
            && self
                .window
                .range(..key)
                .all(|(_, earlier)| earlier.event.stream != *stream)
    }

    fn entry(&self, key: OrderKey) -> Option<&Entry> {
        self.window.get(&key).or_else(|| self.retried.get(&key))
    }

    fn entry_mut(&mut self, key: OrderKey) -> Option<&mut Entry> {
        match self.window.get_mut(&key) {
            Some(entry) => Some(entry),
            None => self.retried.get_mut(&key),
        }
    }

    // It waits again, and so does what was given out behind it.
    fn take_back(&mut self, key: OrderKey, now: Instant) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        let stream = entry.event.stream.clone();
        let mut back = vec![key];
        if self.window.contains_key(&key) {
            let behind = (Bound::Excluded(key), Bound::Unbounded);
            let behind = self.window.range(behind);
            back.extend(
                behind
                    .filter(|(_, entry)| entry.event.stream == stream)
                    .map(|(key, _)| *key),
            );
        }
        for key in back {
            let Some(entry) = self.entry_mut(key) else {
                continue;
            };
            let waits = State::Waiting { not_before: now };
            if matches!(entry.state, State::Leased { .. }) {
                let was = std::mem::replace(&mut entry.state, waits);
                self.let_go(&stream, &was);
            }
        }
    }

    fn let_go(&mut self, stream: &StreamId, was: &State) {
        let State::Leased { consumer, .. } = was else {
            return;
        };
        if let Some(count) = self.in_flight.get_mut(consumer) {
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(consumer);
            }
        }
        if let Some(count) = self.holders.get_mut(stream) {
            *count -= 1;
            if *count == 0 {
                self.holders.remove(stream);
            }
        }
    }

    // An attempt came to nothing.
    fn fail(&mut self, key: OrderKey, reason: String, delay: Option<Duration>, now: Instant) {
        let attempts_max = self.definition.attempts_max;
        let Some(entry) = self.entry_mut(key) else {
            return;
        };
        entry.attempts += 1;
        let attempts = entry.attempts;
        // A parked one that is tried once more is parked again at once.
        if attempts >= attempts_max || self.retried.contains_key(&key) {
            self.park(key, reason, now);
            return;
        }
        self.progress.attempts.insert(key, attempts);
        self.progress.version += 1;
        self.take_back(key, now);
        let delay = delay.unwrap_or_else(|| put_off(attempts));
        self.delay(key, reason, now + delay.min(RETRY_AFTER_MAX));
    }

    fn delay(&mut self, key: OrderKey, reason: String, not_before: Instant) {
        if let Some(entry) = self.entry_mut(key) {
            entry.reason = shortened(&reason);
            entry.state = State::Waiting { not_before };
        }
    }

    // Puts it aside; its stream goes on.
    fn park(&mut self, key: OrderKey, reason: String, now: Instant) {
        if self.parked.len() >= PARKED_MAX && !self.parked.contains_key(&key) {
            self.take_back(key, now);
            let reason = format!(
                "{PARKED_MAX} events are parked, which is the most; retry or drop some of them. {reason}"
            );
            self.delay(key, reason, now + NO_ROOM_DELAY);
            return;
        }
        let Some(entry) = self.entry(key) else {
            return;
        };
        let parked = Parked {
            key,
            stream: entry.event.stream.clone(),
            revision: entry.event.revision.0,
            event_type: entry.event.event_type.to_string(),
            attempts: entry.attempts.max(1),
            reason: shortened(&reason),
        };
        self.take_out(key);
        self.parked.insert(key, parked);
        self.parked_version += 1;
    }

    // It is dealt with.
    fn remove(&mut self, key: OrderKey) {
        if self.retried.contains_key(&key) {
            self.forget_parked(key);
        }
        self.take_out(key);
    }

    fn take_out(&mut self, key: OrderKey) {
        let entry = match self.window.remove(&key) {
            Some(entry) => {
                self.window_bytes -= entry.weight_bytes();
                self.progress.done.insert(key);
                self.progress.attempts.remove(&key);
                entry
            }
            None => match self.retried.remove(&key) {
                Some(entry) => entry,
                None => return,
            },
        };
        self.let_go(&entry.event.stream.clone(), &entry.state);
        self.progress.version += 1;
        self.advance();
    }

    // The cursor stands before everything that is not settled.
    fn advance(&mut self) {
        let cursor = match self.window.first_key_value() {
            None => self.read_to,
            Some((first, _)) => before(*first),
        };
        self.progress.cursor = self.progress.cursor.max(cursor);
        let cursor = self.progress.cursor;
        if self.progress.done.first().is_some_and(|it| *it <= cursor) {
            self.progress.done = self.progress.done.split_off(&after(cursor));
        }
        if let Some((first, _)) = self.progress.attempts.first_key_value()
            && *first <= cursor
        {
            self.progress.attempts = self.progress.attempts.split_off(&after(cursor));
        }
    }

    /// Gives out a parked event once more. It stays parked until that succeeds.
    pub(super) fn retry(&mut self, event: RecordedEvent, now: Instant) {
        let key = event.order_key();
        let Some(parked) = self.parked.get(&key) else {
            return;
        };
        let entry = Entry::new(event, parked.attempts, now);
        self.retried.entry(key).or_insert(entry);
    }

    /// Leaves a parked event out for good. Returns whether there was one.
    pub(super) fn forget_parked(&mut self, key: OrderKey) -> bool {
        let forgotten = self.parked.remove(&key).is_some();
        if forgotten {
            self.parked_version += 1;
            self.progress.version += 1;
        }
        forgotten
    }

    /// Leaves a parked event out for good, also one that is under way once more.
    pub(super) fn drop_parked(&mut self, key: OrderKey) -> bool {
        if let Some(entry) = self.retried.remove(&key) {
            self.let_go(&entry.event.stream.clone(), &entry.state);
        }
        self.forget_parked(key)
    }
}

// The place before `key` with nothing between.
pub(super) fn before(key: OrderKey) -> OrderKey {
    OrderKey {
        position: Position(key.position.0.saturating_sub(1)),
        ..key
    }
}

fn after(key: OrderKey) -> OrderKey {
    OrderKey {
        position: Position(key.position.0.saturating_add(1)),
        ..key
    }
}

fn put_off(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(6);
    (RETRY_AFTER * (1 << doublings)).min(RETRY_AFTER_MAX)
}

fn shortened(reason: &str) -> String {
    reason.chars().take(REASON_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use meridian_clock::{Dot, PartitionId, RegionId, Timestamp};
    use meridian_event::{EventId, EventType, Revision};
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn definition() -> GroupDefinition {
        let text = "name = \"g\"\nin_flight_max = 4\nack_within_ms = 1000\nattempts_max = 3";
        GroupDefinition::from_toml(text).expect("it is a definition")
    }

    // Event `number` of `streams` streams, which take turns by their numbers' digits.
    fn event(number: u64, streams: u64) -> RecordedEvent {
        let stream = (number * 7919) % streams;
        RecordedEvent {
            dot: Dot {
                origin: RegionId(1),
                partition: PartitionId(0),
                position: Position(number),
            },
            timestamp: Timestamp(number),
            stream: StreamId::new(&format!("order-{stream}")).expect("a name"),
            revision: Revision(number),
            id: EventId::from_random([number.to_le_bytes()[0]; 16]),
            event_type: EventType::new("Placed").expect("a name"),
            data: b"{}".as_slice().into(),
            metadata: bytes::Bytes::new(),
        }
    }

    fn filled(count: u64, streams: u64, now: Instant) -> Group {
        let mut group = Group::new(definition(), Progress::default(), [], 1);
        read(&mut group, count, streams, now);
        group
    }

    fn read(group: &mut Group, count: u64, streams: u64, now: Instant) {
        let events: Vec<_> = (1..=count).map(|it| event(it, streams)).collect();
        let end = events.last().expect("there are some").order_key();
        group.read(events, end, now);
    }

    fn done(group: &mut Group, delivery: &Delivery, now: Instant) -> Result<(), Gone> {
        group.settle(&delivery.delivery, &Verdict::Done, now)
    }

    fn retry() -> Verdict {
        Verdict::Retry {
            delay_ms: None,
            reason: "it is sick".to_owned(),
        }
    }

    fn positions(given: &[Delivery]) -> Vec<u64> {
        given.iter().map(|it| it.event.dot.position.0).collect()
    }

    #[tokio::test]
    async fn a_stream_is_with_one_consumer_at_a_time_in_order() {
        let now = Instant::now();
        let mut group = filled(6, 1, now);
        let first = group.fetch("a", 2, now);
        assert_eq!(positions(&first), [1, 2]);
        assert_eq!(group.fetch("b", 2, now), []);
        assert_eq!(group.fetch("a", 2, now), [], "it may have forgotten those");
        done(&mut group, &first[0], now).expect("it is a's");
        assert_eq!(group.fetch("b", 2, now), [], "a still has one");
        done(&mut group, &first[1], now).expect("it is a's");
        assert_eq!(
            positions(&group.fetch("b", 9, now)),
            [3, 4, 5, 6],
            "four at most"
        );
        assert_eq!(group.progress().cursor.position, Position(2));
    }

    #[tokio::test]
    async fn what_is_not_acknowledged_in_time_goes_to_another_with_what_came_behind_it() {
        let now = Instant::now();
        let mut group = filled(3, 1, now);
        let late = group.fetch("a", 3, now);
        let after = now + SECOND;
        assert_eq!(group.wakes_at(now), Some(after));
        let again = group.fetch("b", 9, after);
        assert_eq!(positions(&again), [1, 2, 3]);
        assert_eq!((again[0].attempt, again[1].attempt), (2, 1));
        done(&mut group, &late[0], after).expect_err("it is b's");
        done(&mut group, &again[0], after).expect("it is b's");
    }

    #[tokio::test]
    async fn who_was_late_may_say_so_while_nobody_else_has_it() {
        let now = Instant::now();
        let mut group = filled(2, 1, now);
        let given = group.fetch("a", 2, now);
        let after = now + SECOND * 2;
        done(&mut group, &given[1], after).expect_err("the one before it is not settled");
        done(&mut group, &given[0], after).expect("nobody else has it");
        done(&mut group, &given[1], after).expect("now it is its turn");
        assert_eq!(group.counts().waiting, 0);
        done(&mut group, &given[1], after).expect("saying it twice does no harm");
    }

    #[tokio::test]
    async fn an_event_that_always_fails_is_parked_and_its_stream_goes_on() {
        let mut now = Instant::now();
        let mut group = filled(2, 1, now);
        for attempt in 1..=3 {
            let given = group.fetch("a", 9, now);
            assert_eq!((positions(&given), given[0].attempt), (vec![1, 2], attempt));
            group
                .settle(&given[0].delivery, &retry(), now)
                .expect("it is a's");
            if attempt < 3 {
                done(&mut group, &given[1], now).expect_err("it was taken back");
                assert_eq!(group.fetch("a", 9, now), [], "it is put off");
            } else {
                done(&mut group, &given[1], now).expect("its stream goes on");
            }
            now += SECOND * 5;
        }
        let parked = group.parked().0.values().next().expect("it is parked");
        assert_eq!((parked.attempts, parked.reason.as_str()), (3, "it is sick"));
        assert_eq!(group.progress().cursor.position, Position(2));
        // Once more: in vain, then with success.
        group.retry(event(1, 1), now);
        let given = group.fetch("b", 9, now);
        group
            .settle(&given[0].delivery, &retry(), now)
            .expect("it is b's");
        assert_eq!(group.counts().parked, 1);
        assert_eq!(group.fetch("b", 9, now), [], "it is parked again at once");
        group.retry(event(1, 1), now);
        let given = group.fetch("b", 9, now);
        done(&mut group, &given[0], now).expect("it is b's");
        assert_eq!(group.counts().parked, 0);
    }

    #[tokio::test]
    async fn nothing_is_lost_when_no_more_can_be_parked() {
        let now = Instant::now();
        let count = PARKED_MAX as u64 + 1;
        let mut group = filled(count, count, now);
        for _ in 0..count {
            let given = group.fetch("a", 1, now);
            let park = Verdict::Park {
                reason: "it is sick".to_owned(),
            };
            group
                .settle(&given[0].delivery, &park, now)
                .expect("it is a's");
        }
        assert_eq!(group.counts().parked, PARKED_MAX);
        let (first, reason) = group.first().expect("the last one waits");
        assert_eq!(first.dot.position.0, count);
        assert!(reason.contains("retry or drop"), "{reason}");
    }

    proptest! {
        // Whatever consumers do, and however often the group is restarted from what it kept: each event
        // is settled once, in its stream's order, and given out again only while it is not.
        #[test]
        fn every_event_is_settled_once_and_in_order(
            steps in prop::collection::vec((0u8..12, 0usize..3, 0usize..4), 1..200),
            streams in 1u64..6,
        ) {
            const EVENTS: u64 = 40;
            let mut now = Instant::now();
            let mut group = filled(EVENTS, streams, now);
            let mut life = 1;
            let mut held: Vec<Vec<Delivery>> = vec![Vec::new(); 3];
            let mut settled: Vec<u64> = Vec::new();
            let names = ["a", "b", "c"];
            for (what, who, which) in steps {
                match what {
                    0..=3 => {
                        let given = group.fetch(names[who], which + 1, now);
                        for delivery in &given {
                            prop_assert!(!settled.contains(&delivery.event.dot.position.0));
                        }
                        held[who].extend(given);
                    }
                    4..=8 if !held[who].is_empty() => {
                        // Consumers deal with what they have in order.
                        group.expire(now);
                        let delivery = held[who].remove(0);
                        let position = delivery.event.dot.position.0;
                        let earlier = (1..position)
                            .filter(|it| event(*it, streams).stream == delivery.event.stream)
                            .all(|it| {
                                let is_parked = group.parked().0.keys().any(|key| key.position.0 == it);
                                settled.contains(&it) || is_parked
                            });
                        if done(&mut group, &delivery, now).is_ok() && !settled.contains(&position) {
                            prop_assert!(earlier, "{position} before an earlier one of its stream");
                            settled.push(position);
                        }
                    }
                    9 => now += SECOND * 2,
                    // Never so often that it is parked.
                    10 if held[who].first().is_some_and(|it| it.attempt < 2) => {
                        let delivery = held[who].remove(0);
                        let verdict = Verdict::Retry { delay_ms: Some(10), reason: String::new() };
                        let _ = group.settle(&delivery.delivery, &verdict, now);
                        held[who].clear();
                    }
                    11 => {
                        life += 1;
                        let mut progress = group.progress().clone();
                        // How often each was tried is not what this is about.
                        progress.attempts.clear();
                        let parked: Vec<_> = group.parked().0.values().cloned().collect();
                        group = Group::new(definition(), progress, parked, life);
                        read(&mut group, EVENTS, streams, now);
                    }
                    _ => {}
                }
                // One stream, one consumer; and what is settled is known.
                let counts = group.counts();
                prop_assert_eq!(counts.waiting + settled.len() + counts.parked, EVENTS as usize);
            }
        }
    }
}

//! The one total order, beside a sort of everything.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use meridian_clock::{
    Epoch, Incarnation, LogId, OrderKey, PartitionId, Position, RegionId, Timestamp,
};
use meridian_event::{Block, BlockBuilder, Chain, RecordedEvent, Revision};
use meridian_store::{OrderedReader, Reached, ReadError, ScrubCursor, SimDisk, Store, SubmitError};
use proptest::prelude::*;

use crate::world::{commit, event, log, open, segment_files, stream};

const END: Timestamp = Timestamp(u64::MAX);

fn some_log(number: u16) -> LogId {
    LogId::new(RegionId(1 + number % 4), PartitionId(number / 4))
}

fn all_logs() -> impl Iterator<Item = LogId> {
    (0..8).map(some_log)
}

/// A block to be: a log, its batches (how much later, how many events) and how long their data is.
type Planned = (u16, Vec<(u64, usize)>, usize);

fn any_plan(blocks: usize) -> impl Strategy<Value = Vec<Planned>> {
    let batch = (1u64..4, 1usize..4);
    let block = (0u16..8, prop::collection::vec(batch, 1..5), 0usize..300);
    prop::collection::vec(block, 1..blocks)
}

/// The blocks of a plan. Each log counts its own time, so that logs often share timestamps.
fn blocks_of(plan: &[Planned]) -> Vec<Block> {
    let mut heads: BTreeMap<LogId, (u64, Position, Chain)> = BTreeMap::new();
    let mut id = 0;
    let make = |(number, batches, data_bytes): &Planned| {
        let log = some_log(*number);
        let (clock, position, chain) = heads.entry(log).or_default();
        let mut builder = BlockBuilder::new(log, Incarnation(1), Epoch::FIRST);
        for (later, count) in batches {
            *clock += later;
            let events: Vec<_> = (0..*count)
                .map(|_| {
                    id += 1;
                    event(id, *data_bytes)
                })
                .collect();
            builder.push_batch(Timestamp(*clock), &stream("a-1"), Revision(0), &events);
        }
        let block = builder.seal(position.plus(1), *chain);
        *position = block.header().last_position();
        *chain = block.chain();
        block
    };
    plan.iter().map(make).collect()
}

fn sorted(blocks: &[Block]) -> Vec<RecordedEvent> {
    let mut events: Vec<RecordedEvent> = blocks
        .iter()
        .flat_map(|block| block.to_events().expect("a sealed block decodes"))
        .collect();
    events.sort_by_key(RecordedEvent::order_key);
    events
}

/// Up to `limit` events; checks the keys on the way.
fn page(
    reader: &mut OrderedReader,
    until: Timestamp,
    limit: usize,
    events: &mut Vec<RecordedEvent>,
) -> Result<Reached, ReadError> {
    let full = events.len() + limit;
    let reached = reader.read(until, |key, open, event| {
        if events.len() == full {
            return ControlFlow::Break(());
        }
        let event = open.record(event).expect("good names");
        assert_eq!(key, event.order_key());
        events.push(event);
        ControlFlow::Continue(())
    });
    if let Some(last) = events.last() {
        assert_eq!(reader.cursor(), last.order_key());
    }
    reached
}

fn first(store: &Store, after: OrderKey, limit: usize) -> Vec<RecordedEvent> {
    let mut events = Vec::new();
    let mut reader = store.ordered(all_logs(), after);
    // A cursor that no event has is not the key of the last event of an empty page.
    let _ = page(&mut reader, END, limit, &mut events).expect("sound");
    events
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn a_reader_that_pages_while_logs_grow_gives_what_a_sort_would(
        seed: u64,
        plan in any_plan(120),
        pages in prop::collection::vec((0usize..12, 0usize..30, 0u8..4, 0u64..3), 200),
    ) {
        let disk = SimDisk::new(seed);
        let (mut store, _) = open(&disk);
        let blocks = blocks_of(&plan);
        let mut to_come = blocks.iter().peekable();
        let mut reader = store.ordered(all_logs(), OrderKey::default());
        let mut seen = Vec::new();
        for (grow, limit, turn, less) in pages {
            for block in to_come.by_ref().take(grow) {
                commit(&store, block.clone());
            }
            match turn {
                0 => reader = store.ordered(all_logs(), reader.cursor()),
                1 => reader.release(),
                2 if grow == 0 => {
                    store.close();
                    drop(store);
                    store = open(&disk).0;
                    reader = store.ordered(all_logs(), reader.cursor());
                }
                _ => {}
            }
            let committed = blocks.len() - to_come.len();
            let later = blocks[committed..].iter();
            let watermark = later.map(|block| block.header().first_timestamp.0 - 1).min();
            let until = watermark.map_or(END, |at| Timestamp(at.saturating_sub(less)));
            let before = seen.len();
            let reached = page(&mut reader, until, limit, &mut seen).expect("sound");
            prop_assert!(seen[before..].iter().all(|event| event.timestamp <= until));
            let held = sorted(&blocks[..committed]);
            let there = held.iter().filter(|event| event.timestamp <= until).count();
            let there = there.max(before);
            match reached {
                Reached::Bound => prop_assert_eq!(seen.len(), there),
                Reached::Refused => {
                    prop_assert_eq!(seen.len(), before + limit);
                    prop_assert!(there > seen.len());
                }
            }
        }
        for block in to_come {
            commit(&store, block.clone());
        }
        page(&mut reader, END, usize::MAX - seen.len(), &mut seen).expect("sound");
        prop_assert_eq!(seen, sorted(&blocks));
    }

    #[test]
    fn any_key_can_be_resumed_from(
        seed: u64,
        plan in any_plan(60),
        is_opened_anew: bool,
    ) {
        let disk = SimDisk::new(seed);
        let (mut store, _) = open(&disk);
        let blocks = blocks_of(&plan);
        for block in &blocks {
            commit(&store, block.clone());
        }
        if is_opened_anew {
            store.close();
            drop(store);
            store = open(&disk).0;
        }
        let all = sorted(&blocks);
        let last = all.last().map_or(0, |event| event.timestamp.0);
        let mut keys: Vec<OrderKey> = all.iter().map(RecordedEvent::order_key).collect();
        for timestamp in (0..last + 2).step_by(3).chain([last, u64::MAX]) {
            for region in 0..6 {
                for (partition, position) in [(0, 0), (0, 7), (1, u64::MAX), (9, 40)] {
                    keys.push(OrderKey {
                        timestamp: Timestamp(timestamp),
                        region: RegionId(region),
                        partition: PartitionId(partition),
                        position: Position(position),
                    });
                }
            }
        }
        for key in keys {
            let from = all.partition_point(|event| event.order_key() <= key);
            let until = all.len().min(from + 3);
            let mut reader = store.ordered(all_logs(), key);
            prop_assert_eq!(reader.cursor(), key);
            let mut events = Vec::new();
            if from < until {
                page(&mut reader, END, 3, &mut events).expect("sound");
            } else {
                prop_assert_eq!(
                    reader.read(END, |_, _, _| ControlFlow::Continue(())).expect("sound"),
                    Reached::Bound
                );
            }
            prop_assert_eq!(&events, &all[from..until], "after {:?}", key);
        }
    }

    #[test]
    fn damage_ends_the_order_before_it_and_its_mend_goes_on(
        seed: u64,
        plan in any_plan(120),
        place: prop::sample::Index,
        bit in 0u8..8,
        index_is_lost: bool,
        is_known: bool,
    ) {
        use meridian_store::Disk;
        let disk = SimDisk::new(seed);
        let (store, _) = open(&disk);
        let blocks = blocks_of(&plan);
        for block in &blocks {
            commit(&store, block.clone());
        }
        let all = sorted(&blocks);
        if store.stats().segments < 2 {
            return Ok(());
        }
        store.close();
        drop(store);
        let path = format!("log/{}", segment_files(&disk)[0]);
        disk.flip(&path, 64 + place.index(9000) as u64, 1 << bit);
        if index_is_lost {
            disk.remove(&path.replace(".seg", ".idx")).expect("it is there");
        }
        let (store, _) = open(&disk);
        // When nothing tells that the end of a log was ever here, no watermark covers it either.
        let ends = all.iter().map(|event| event.dot);
        if ends.into_iter().any(|dot| store.head(dot.log()).position < dot.position) {
            return Ok(());
        }
        if is_known {
            let mut cursor = ScrubCursor::default();
            while !store.scrub(&mut cursor, 1 << 20).round_done {}
        }
        let mut reader = store.ordered(all_logs(), OrderKey::default());
        let mut seen = Vec::new();
        let outcome = page(&mut reader, END, all.len() + 1, &mut seen);
        prop_assert_eq!(&seen[..], &all[..seen.len()]);
        let Err(error) = outcome else {
            prop_assert_eq!(seen.len(), all.len());
            return Ok(());
        };
        let ReadError::Damaged(range) = error else {
            return Err(TestCaseError::fail(format!("{error}")));
        };
        let is_lost = |event: &RecordedEvent| {
            let position = event.dot.position;
            event.dot.log() == range.log && position >= range.first && position <= range.last
        };
        // All before the damaged block's log stops was given, and nothing of the block.
        prop_assert!(!seen.iter().any(is_lost));
        let before = all.iter().rfind(|event| {
            event.dot.log() == range.log && event.dot.position < range.first
        });
        let before = before.map(RecordedEvent::order_key);
        let due = all.iter().filter(|event| Some(event.order_key()) <= before).count();
        prop_assert!(seen.len() >= due);
        // Again, the same.
        let again = page(&mut reader, END, all.len(), &mut seen);
        prop_assert!(matches!(again, Err(ReadError::Damaged(_))));
        // From any other place: the right events, or the error; none if the damage is behind.
        for (number, event) in all.iter().enumerate() {
            let mut reader = store.ordered(all_logs(), event.order_key());
            let mut rest = Vec::new();
            let outcome = page(&mut reader, END, all.len(), &mut rest);
            prop_assert_eq!(&rest[..], &all[number + 1..][..rest.len()]);
            let has_hole = outcome.is_err();
            // At the end of a log it cannot be told that what is damaged was read already.
            prop_assert!(has_hole || rest.len() == all.len() - number - 1);
            // An event after the damage at or before the cursor proves that the damage is behind.
            let is_behind = all[..=number]
                .iter()
                .any(|it| it.dot.log() == range.log && it.dot.position > range.last);
            if is_behind && store.damaged().len() == 1 {
                prop_assert!(!has_hole, "{} lies behind", range);
            }
        }
        let lost: Vec<Block> = blocks
            .iter()
            .filter(|block| {
                store.damaged().iter().any(|range| {
                    let header = block.header();
                    header.log == range.log
                        && header.first_position >= range.first
                        && header.last_position() <= range.last
                })
            })
            .cloned()
            .collect();
        store.repair_all(lost).expect("they were here");
        prop_assert_eq!(
            page(&mut reader, END, all.len() + 1, &mut seen).expect("mended"),
            Reached::Bound
        );
        prop_assert_eq!(seen, all);
    }
}

#[test]
fn an_event_that_is_refused_comes_first_next_time() {
    let (store, _) = open(&SimDisk::new(1));
    let plan: Vec<Planned> = (0..20).map(|n| (n % 8, vec![(1, 2)], 10)).collect();
    let blocks = blocks_of(&plan);
    for block in &blocks {
        commit(&store, block.clone());
    }
    let all = sorted(&blocks);
    let mut reader = store.ordered(all_logs(), OrderKey::default());
    for event in &all {
        let reached = reader.read(END, |key, _, _| {
            assert_eq!(key, event.order_key());
            ControlFlow::Break(())
        });
        assert_eq!(reached.expect("sound"), Reached::Refused);
        assert!(reader.cursor() < event.order_key());
        page(&mut reader, END, 1, &mut Vec::new()).expect("sound");
    }
    assert_eq!(first(&store, OrderKey::default(), 3), all[..3]);
}

#[test]
fn a_key_ahead_of_what_is_held_is_kept_to_when_the_logs_reach_it() {
    let (store, _) = open(&SimDisk::new(1));
    let plan: Vec<Planned> = (0..80).map(|n| (n % 8, vec![(1, 2), (2, 1)], 10)).collect();
    let blocks = blocks_of(&plan);
    let all = sorted(&blocks);
    let mut reader = store.ordered(all_logs(), all[150].order_key());
    for block in &blocks {
        let bound = Timestamp(all[150].timestamp.0 - 1);
        let reached = page(&mut reader, bound, 9, &mut Vec::new());
        assert_eq!(reached.expect("sound"), Reached::Bound);
        commit(&store, block.clone());
    }
    let mut seen = Vec::new();
    page(&mut reader, END, all.len(), &mut seen).expect("sound");
    assert_eq!(seen, all[151..]);
}

#[test]
fn memory_is_bounded_however_many_logs_have_large_blocks() {
    const BOUND: usize = (16 << 20) + (2 << 20) + (3 << 20);
    let (store, _) = open(&SimDisk::new(1));
    let mut blocks = Vec::new();
    for origin in 0..24 {
        let mut builder = BlockBuilder::new(log(origin), Incarnation(1), Epoch::FIRST);
        for batch in 0..3 {
            let event = event(u128::from(origin) * 10 + batch, 500_000);
            let at = Timestamp(100 + batch as u64);
            builder.push_batch(at, &stream("a-1"), Revision(0), &[event]);
        }
        blocks.push(builder.seal(Position(1), Chain::EMPTY));
        commit(&store, blocks[blocks.len() - 1].clone());
    }
    let all = sorted(&blocks);
    let mut reader = store.ordered((0..24).map(log), OrderKey::default());
    let mut at_most = 0;
    for expected in &all {
        let mut seen = Vec::new();
        page(&mut reader, END, 1, &mut seen).expect("sound");
        assert_eq!(seen[0].dot, expected.dot);
        at_most = at_most.max(reader.held_bytes());
    }
    assert!(at_most > 10 << 20, "{at_most}: nothing was held back");
    assert!(at_most <= BOUND, "{at_most}");
    reader.release();
    assert_eq!(reader.held_bytes(), 0);
}

// The order stops at a block that does not decode. It stops no region for good, because none has
// such a block in its log.
#[test]
fn a_block_that_does_not_decode_enters_no_log() {
    let (store, _) = open(&SimDisk::new(1));
    let sound = blocks_of(&[(0, vec![(1, 1)], 50)]).remove(0);
    let mut bytes = sound.bytes().to_vec();
    bytes[100] ^= 1;
    let crc = meridian_event::crc32c(&[&bytes[..96], &bytes[100..]]);
    bytes[96..100].copy_from_slice(&crc.to_le_bytes());
    let forged = Block::parse(&bytes.into()).expect("its checksum is right");
    let refused = store.submit(forged, Box::new(|_| ()));
    assert!(matches!(refused, Err(SubmitError::Unreadable { .. })));
    assert_eq!(store.head(some_log(0)).position, Position::ZERO);
}

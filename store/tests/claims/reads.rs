//! What readers are given.

use meridian_clock::{Position, RegionId};
use meridian_event::Revision;
use meridian_store::{Direction, LogOffset, SimDisk, Store, StreamRange};
use proptest::prelude::*;

use crate::world::{
    Answers, Writer, blocks_of, commit, events_of, filled, log, open, settle, stream, submit,
};

fn range(from: u64, direction: Direction, limit: usize) -> StreamRange {
    StreamRange {
        from: Revision(from),
        direction,
        limit,
        bytes_max: 1 << 20,
        in_turn: false,
    }
}

fn revisions(store: &Store, name: &str, range: StreamRange) -> Vec<u64> {
    let events = store.read_stream(&stream(name), range).expect("readable");
    events.iter().map(|event| event.revision.0).collect()
}

#[test]
fn a_stream_is_read_by_revision_in_both_directions_across_segments() {
    let disk = SimDisk::new(1);
    let (store, _) = filled(&disk, 140);
    assert!(store.stats().segments > 3);
    let all: Vec<u64> = (0..60).collect();
    let forwards =
        |from, limit| revisions(&store, "order-3", range(from, Direction::Forwards, limit));
    let backwards =
        |from, limit| revisions(&store, "order-3", range(from, Direction::Backwards, limit));
    assert_eq!(forwards(0, 1000), all);
    assert_eq!(forwards(17, 5), [17, 18, 19, 20, 21]);
    assert_eq!(forwards(60, 5), []);
    assert_eq!(backwards(u64::MAX, 3), [59, 58, 57]);
    assert_eq!(backwards(2, 10), [2, 1, 0]);
    assert_eq!(
        backwards(59, 1000),
        all.into_iter().rev().collect::<Vec<_>>()
    );
    assert_eq!(
        revisions(&store, "order-99", range(0, Direction::Forwards, 10)),
        []
    );
}

#[test]
fn reading_a_stream_stops_at_the_byte_limit_but_gives_at_least_one_event() {
    let disk = SimDisk::new(1);
    let (store, _) = filled(&disk, 20);
    let read = |bytes_max| {
        let range = StreamRange {
            bytes_max,
            ..range(0, Direction::Forwards, 100)
        };
        revisions(&store, "order-1", range).len()
    };
    assert_eq!(read(1), 1);
    assert_eq!(read(230), 2);
}

#[test]
fn a_stream_that_several_regions_write_is_read_in_the_total_order() {
    let disk = SimDisk::new(1);
    let (store, _) = open(&disk);
    let mut writer = Writer::default();
    for number in 0..200u16 {
        let origin = 1 + (number * number) % 3;
        commit(
            &store,
            writer.block(&store, log(origin), &[("cart-1", 1)], 60),
        );
    }
    let mut expected = events_of(&store);
    expected.sort_by_key(meridian_event::RecordedEvent::order_key);
    let read = |from, direction, limit| {
        store
            .read_stream(&stream("cart-1"), range(from, direction, limit))
            .expect("readable")
    };
    assert_eq!(read(0, Direction::Forwards, 1000), expected);
    assert_eq!(read(37, Direction::Forwards, 11), expected[37..48]);
    let mut backwards: Vec<_> = expected[..=150].to_vec();
    backwards.reverse();
    assert_eq!(read(150, Direction::Backwards, 20), backwards[..20]);
    let last = store
        .stream_last(&stream("cart-1"), None, false)
        .expect("readable");
    assert_eq!(last.map(|it| it.dot), expected.last().map(|it| it.dot));
    for origin in 1..4 {
        let of_origin = expected
            .iter()
            .filter(|it| it.dot.origin == RegionId(origin));
        let last = store
            .stream_last(&stream("cart-1"), Some(RegionId(origin)), false)
            .expect("readable");
        let of_origin: Vec<_> = of_origin.cloned().collect();
        assert_eq!(last.map(|it| it.dot), of_origin.last().map(|it| it.dot));
        let read = |from| {
            let (stream, from) = (stream("cart-1"), Revision(from));
            let read = store.read_stream_of(&stream, RegionId(origin), from, 30, 1 << 20);
            read.expect("readable")
        };
        // The third region wrote none of it.
        for from in [0, 17] {
            let expected = of_origin.iter().skip(from).take(30);
            let expected: Vec<_> = expected.cloned().collect();
            assert_eq!(read(from as u64), expected);
        }
        assert_eq!(read(of_origin.len() as u64), []);
    }
}

#[test]
fn a_stream_that_moved_to_another_region_is_still_read_by_revision() {
    use meridian_clock::{Epoch, Incarnation, Timestamp};
    use meridian_event::BlockBuilder;
    let disk = SimDisk::new(1);
    let (store, _) = open(&disk);
    // The new home's events came here first.
    for (origin, revisions, at) in [(2, 50..80, 9000), (1, 0..50, 100)] {
        for revision in revisions {
            let head = store.submitted_head(log(origin));
            let mut builder = BlockBuilder::new(log(origin), Incarnation(1), Epoch::FIRST);
            let event = crate::world::event(u128::from(revision) + 1, 50);
            builder.push_batch(
                Timestamp(at + revision),
                &stream("order-1"),
                Revision(revision),
                &[event],
            );
            commit(&store, builder.seal(head.position.plus(1), head.chain));
        }
    }
    let all: Vec<u64> = (0..80).collect();
    assert_eq!(
        revisions(&store, "order-1", range(0, Direction::Forwards, 100)),
        all
    );
    assert_eq!(
        revisions(&store, "order-1", range(48, Direction::Forwards, 4)),
        [48, 49, 50, 51]
    );
    let last = store
        .stream_last(&stream("order-1"), None, false)
        .expect("readable");
    assert_eq!(last.map(|it| it.revision), Some(Revision(79)));
}

/// Three regions order a stream in turn, two of them twice; what the second one wrote is held late.
#[test]
fn of_a_stream_that_moves_back_and_forth_nothing_is_told_from_behind_a_hole() {
    use meridian_clock::{Epoch, Incarnation, Timestamp};
    use meridian_event::BlockBuilder;
    let disk = SimDisk::new(1);
    let (store, _) = open(&disk);
    let turns = [(1, 0..10), (2, 10..20), (1, 20..30), (3, 30..40)];
    let write = |origin: u16, revisions: std::ops::Range<u64>| {
        let log = log(origin);
        for revision in revisions {
            let head = store.submitted_head(log);
            let mut builder = BlockBuilder::new(log, Incarnation(1), Epoch::FIRST);
            builder.push_batch(
                Timestamp(1_000 + revision),
                &stream("order-1"),
                Revision(revision),
                &[crate::world::event(u128::from(revision) + 1, 50)],
            );
            commit(&store, builder.seal(head.position.plus(1), head.chain));
        }
    };
    let in_turn = |from, direction, limit| StreamRange {
        in_turn: true,
        ..range(from, direction, limit)
    };
    let read =
        |from, direction, limit| revisions(&store, "order-1", in_turn(from, direction, limit));
    for (origin, revisions) in turns.iter().filter(|(origin, _)| *origin != 2) {
        write(*origin, revisions.clone());
    }
    let first: Vec<u64> = (0..10).collect();
    assert_eq!(read(0, Direction::Forwards, 100), first);
    assert_eq!(read(10, Direction::Forwards, 100), [0; 0]);
    let down = |from: u64, to: u64| (to..=from).rev().collect::<Vec<u64>>();
    assert_eq!(read(u64::MAX, Direction::Backwards, 100), down(9, 0));
    assert_eq!(read(15, Direction::Backwards, 3), down(9, 7));
    // Nor by a page that ends before it comes to the hole.
    assert_eq!(read(u64::MAX, Direction::Backwards, 3), down(9, 7));
    let hidden = |origin, position| {
        let seen = [(RegionId(origin), Position(position))];
        let hidden = store.stream_hidden(&stream("order-1"), &seen);
        hidden.expect("readable").map(|missing| missing.0)
    };
    assert_eq!(hidden(1, 10), None, "these are shown");
    assert_eq!(hidden(1, 11), Some(10), "position 11 is revision 20");
    assert_eq!(hidden(3, 1), Some(10));
    assert_eq!(hidden(2, 10), None, "nothing of it is here");

    let late = stream("order-2");
    for (log, revisions) in [(log(2), 5..8)] {
        let head = store.submitted_head(log);
        let mut builder = BlockBuilder::new(log, Incarnation(1), Epoch::FIRST);
        for revision in revisions {
            let event = crate::world::event(1_000 + u128::from(revision), 50);
            builder.push_batch(
                Timestamp(500 + revision),
                &late,
                Revision(revision),
                &[event],
            );
        }
        commit(&store, builder.seal(head.position.plus(1), head.chain));
    }
    for (from, direction) in [(0, Direction::Forwards), (u64::MAX, Direction::Backwards)] {
        let read = revisions(&store, "order-2", in_turn(from, direction, 10));
        assert_eq!(read, [0; 0], "its first events are not here");
    }

    write(2, 10..20);
    let all: Vec<u64> = (0..40).collect();
    assert_eq!(read(0, Direction::Forwards, 100), all);
    assert_eq!(read(u64::MAX, Direction::Backwards, 100), down(39, 0));
    assert_eq!([hidden(1, 20), hidden(3, 10)], [None, None]);
    let last = store
        .stream_last(&stream("order-1"), None, true)
        .expect("readable");
    assert_eq!(last.map(|it| it.revision), Some(Revision(39)));
}

#[test]
fn a_cursor_that_no_page_gave_out_is_no_damage() {
    let disk = SimDisk::new(1);
    let (store, blocks) = filled(&disk, 100);
    for offset in (0..9000).step_by(13) {
        let page = store
            .scan(LogOffset::new(2, offset), 1 << 20)
            .expect("readable");
        assert!(page.at_end);
        assert_eq!(page.skipped, []);
        assert!(page.blocks.iter().all(|(_, block)| blocks.contains(block)));
    }
    assert_eq!(store.damaged(), []);
    let mut cursor = meridian_store::ScrubCursor::default();
    while !store.scrub(&mut cursor, 1 << 20).round_done {}
    assert_eq!(blocks_of(&store, log(1)), blocks);
    assert!(
        store
            .scan(LogOffset::new(99, 5), 10)
            .expect("readable")
            .blocks
            .is_empty()
    );
}

#[test]
fn only_what_is_durable_is_read() {
    let disk = SimDisk::new(1);
    let (store, blocks) = filled(&disk, 2);
    let mut writer = Writer::default();
    writer.next_id = 100;
    writer.clock = 100_000;
    let block = writer.block(&store, log(1), &[("new-1", 1)], 10);
    let id = block.to_events().expect("sound")[0].id;
    submit(&store, block, &Answers::default());
    let group = store.commit_begin().expect("a block is queued");
    let round = *store.committed().borrow();
    assert_eq!(blocks_of(&store, log(1)), blocks);
    assert_eq!(store.find_event(id, &[]).expect("readable"), None);
    assert_eq!(
        store
            .stream_last(&stream("new-1"), None, false)
            .expect("readable"),
        None
    );
    assert_eq!(store.submitted_head(log(1)).position, Position(7));
    store.commit_finish(group);
    assert!(*store.committed().borrow() > round);
    assert!(store.find_event(id, &[]).expect("readable").is_some());
    assert_eq!(store.head(log(1)).position, Position(7));
}

#[test]
fn a_log_is_read_from_inside_a_block_and_in_bounded_pieces() {
    let disk = SimDisk::new(1);
    let (store, blocks) = filled(&disk, 50);
    let read = store.read_log(log(1), Position(4), 1).expect("readable");
    assert_eq!(read, blocks[1..2]);
    let read = store.read_log(log(1), Position(0), 2500).expect("readable");
    assert!(read.len() > 1 && read.len() < 8, "{}", read.len());
    assert_eq!(
        store
            .read_log(log(1), Position(150), 100)
            .expect("readable"),
        []
    );
    assert_eq!(
        store.read_log(log(9), Position(0), 100).expect("readable"),
        []
    );
}

#[test]
fn a_scan_goes_on_where_it_ended_when_more_is_committed() {
    let disk = SimDisk::new(1);
    let (store, mut blocks) = filled(&disk, 60);
    let mut at = LogOffset::default();
    let mut seen = Vec::new();
    let mut writer = Writer::default();
    writer.learn(&store);
    writer.next_id = 10_000;
    for _ in 0..100 {
        let page = store.scan(at, 700).expect("readable");
        seen.extend(page.blocks.into_iter().map(|(_, block)| block));
        at = page.next;
        if page.at_end {
            let block = writer.block(&store, log(1), &[("order-1", 2)], 300);
            commit(&store, block.clone());
            blocks.push(block);
        }
    }
    let page = store.scan(at, 1 << 20).expect("readable");
    seen.extend(page.blocks.into_iter().map(|(_, block)| block));
    assert_eq!(seen, blocks);
}

#[test]
fn a_block_larger_than_a_segment_has_a_segment_to_itself() {
    let disk = SimDisk::new(1);
    let (store, _) = filled(&disk, 3);
    let mut writer = Writer::default();
    writer.next_id = 1000;
    writer.clock = 100_000;
    let large = writer.block(&store, log(2), &[("big-1", 200)], 900);
    commit(&store, large.clone());
    commit(&store, writer.block(&store, log(2), &[("big-1", 1)], 9));
    assert_eq!(blocks_of(&store, log(2))[0], large);
    store.close();
    let (store, recovery) = open(&disk);
    assert!(!recovery.tail_cut);
    assert_eq!(blocks_of(&store, log(2))[0], large);
    settle(&store);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn sealed_and_open_segments_answer_alike(
        seed: u64,
        appends in prop::collection::vec((1u16..4, 0u8..12, 1usize..6), 1..250),
        absent in prop::collection::vec(any::<u128>(), 20),
    ) {
        let disk = SimDisk::new(seed);
        let (store, _) = open(&disk);
        let mut writer = Writer::default();
        for (origin, name, count) in appends {
            let name = format!("order-{name}-{origin}");
            commit(&store, writer.block(&store, log(origin), &[(&name, count)], 40));
        }
        let events = events_of(&store);
        for event in &events {
            let found = store.find_event(event.id, &[]).expect("readable").expect("it is there");
            prop_assert_eq!(found.dot, event.dot);
            prop_assert_eq!(&found.stream, &event.stream);
            let of_stream: Vec<_> = events.iter().filter(|it| it.stream == event.stream).collect();
            let last = store.stream_last(&event.stream, None, false).expect("readable");
            prop_assert_eq!(
                last.map(|it| it.revision),
                of_stream.last().map(|it| it.revision)
            );
            let read = store
                .read_stream(&event.stream, range(event.revision.0, Direction::Forwards, 3))
                .expect("readable");
            prop_assert_eq!(&read[0], event);
        }
        for id in absent {
            let id = meridian_event::EventId::from_random(id.to_be_bytes());
            prop_assert_eq!(store.find_event(id, &[]).expect("readable"), None);
        }
    }
}

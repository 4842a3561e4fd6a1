//! Moving what is beyond the cut of a fence out of the log.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use meridian_clock::{LogId, OrderKey, Position, Timestamp};
use meridian_event::{Block, Chain, Revision};
use meridian_store::{
    Direction, Disk, Generations, LogHead, LogOffset, OpenError, OrderedReader, Reached,
    ReadStrandedError, ScrubCursor, SimDisk, Store, StrandError, Stranded, StrandedTail,
    StreamRange, SubmitError, read_stranded, strand, stranded,
};
use proptest::prelude::*;

use crate::world::{
    Writer, blocks_of, check, commit, events_of, log, open, scanned, segment_files, settle, stream,
    verified,
};

const BLOCKS: usize = 90;
const LOGS: [u16; 3] = [1, 2, 3];

/// A closed folder with three logs interleaved over several segments, and its blocks by log.
struct Written {
    disk: SimDisk,
    writer: Writer,
    by_log: BTreeMap<LogId, Vec<Block>>,
}

fn written(seed: u64) -> Written {
    let disk = SimDisk::new(seed);
    let (store, _) = open(&disk);
    let mut writer = Writer::default();
    let mut by_log: BTreeMap<LogId, Vec<Block>> = BTreeMap::new();
    for number in 0..BLOCKS {
        let log = log(LOGS[number % 3]);
        let name = name_of(log, number % 5);
        let block = writer.block(&store, log, &[(&name, 1 + number % 4)], 150);
        commit(&store, block.clone());
        by_log.entry(log).or_default().push(block);
    }
    store.close();
    assert!(segment_files(&disk).len() > 4, "several segments");
    Written {
        disk,
        writer,
        by_log,
    }
}

fn name_of(log: LogId, number: usize) -> String {
    format!("order-{}-{number}", log.origin.0)
}

/// The position after so many blocks.
fn end_of(blocks: &[Block]) -> Position {
    let last = blocks.last();
    last.map_or(Position::ZERO, |it| it.header().last_position())
}

fn head_of(log: LogId, blocks: &[Block]) -> LogHead {
    let Some(last) = blocks.last() else {
        return LogHead::empty(log);
    };
    let header = last.header();
    LogHead {
        log,
        incarnation: header.incarnation,
        epoch: header.epoch,
        position: header.last_position(),
        chain: last.chain(),
        timestamp: header.last_timestamp,
    }
}

fn strand_at(
    disk: &SimDisk,
    log: LogId,
    generation: u32,
    cut: Position,
) -> Result<Vec<Stranded>, StrandError> {
    let cuts = BTreeMap::from([(log, (generation, cut))]);
    strand(Arc::new(disk.clone()), &cuts)
}

fn tail(log: LogId, generation: u32, after: Position) -> StrandedTail {
    StrandedTail {
        log,
        generation,
        after,
    }
}

fn scrub_all(store: &Store) -> usize {
    let mut cursor = ScrubCursor::default();
    let mut found = 0;
    loop {
        let step = store.scrub(&mut cursor, 3000);
        found += step.found.len();
        if step.round_done {
            return found;
        }
    }
}

fn in_order(store: &Store) -> usize {
    let mut reader: OrderedReader = store.ordered(LOGS.map(log), OrderKey::default());
    let mut seen = 0;
    let reached = reader
        .read(Timestamp(u64::MAX), |_, _, _| {
            seen += 1;
            ControlFlow::Continue(())
        })
        .expect("the log is sound");
    assert_eq!(reached, Reached::Bound);
    seen
}

/// Checks that a store holds exactly these blocks, in whichever way it is asked.
fn holds(store: &Store, by_log: &BTreeMap<LogId, Vec<Block>>) {
    check(store);
    let mut events = 0;
    let mut streams: BTreeMap<String, u64> = BTreeMap::new();
    for (log, blocks) in by_log {
        assert_eq!(store.head(*log), head_of(*log, blocks), "log {log}");
        assert_eq!(store.submitted_head(*log), store.head(*log));
        assert_eq!(&blocks_of(store, *log), blocks, "log {log}");
        for event in blocks.iter().flat_map(|it| it.to_events().expect("sound")) {
            let found = store.find_event(event.id, &LOGS.map(crate::world::log));
            assert_eq!(
                found.expect("readable").map(|it| it.dot),
                Some(event.dot),
                "{:?}",
                event.dot
            );
            *streams.entry(event.stream.as_str().to_owned()).or_default() += 1;
            events += 1;
        }
    }
    assert_eq!(events_of(store).len(), events);
    assert_eq!(in_order(store), events);
    assert_eq!(store.stats().events, events as u64);
    assert_eq!(store.damaged(), []);
    for log in by_log.keys() {
        for number in 0..5 {
            let name = name_of(*log, number);
            let range = StreamRange {
                from: Revision(0),
                direction: Direction::Forwards,
                limit: 10_000,
                bytes_max: 1 << 20,
                in_turn: true,
            };
            let read = store.read_stream(&stream(&name), range);
            let count = streams.get(&name).copied().unwrap_or(0);
            assert_eq!(read.expect("readable").len() as u64, count, "{name}");
            let last = store.stream_last(&stream(&name), None, true);
            let last = last.expect("readable").map(|it| it.revision.0 + 1);
            assert_eq!(last.unwrap_or(0), count, "{name}");
        }
    }
}

fn know_nothing_of(store: &Store, blocks: &[Block]) {
    for event in blocks.iter().flat_map(|it| it.to_events().expect("sound")) {
        let found = store.find_event(event.id, &LOGS.map(log));
        assert_eq!(found.expect("readable"), None);
    }
}

/// Opens the folder after stranding, and lets the fenced log go on in the next generation and the others
/// as ever, over several segments and restarts.
fn goes_on(written: &mut Written, fenced: LogId, generation: u32, cut: Position) {
    let Written {
        disk,
        writer,
        by_log,
    } = written;
    let cuts = vec![cut; generation as usize];
    for round in 0..2 {
        let (store, recovery) = open(disk);
        assert!(!recovery.tail_cut && !recovery.heads_uncertain);
        assert_eq!((recovery.damaged, recovery.holes), (vec![], vec![]));
        holds(&store, by_log);
        let generations = Generations {
            cuts: cuts.clone(),
            sealed: false,
        };
        store.set_generations(fenced, generations);
        writer.learn(&store);
        let stale = writer.block_of(generation, &store, fenced, &[("stale", 1)], 9);
        let refused = store.submit(stale, Box::new(|_| {}));
        assert!(
            matches!(
                refused,
                Err(SubmitError::Fenced { .. } | SubmitError::Superseded { .. })
            ),
            "{refused:?}"
        );
        for number in 0..30 {
            let log = log(LOGS[number % 3]);
            let major = if log == fenced { generation + 1 } else { 1 };
            let name = name_of(log, number % 5);
            let block = writer.block_of(major, &store, log, &[(&name, 2)], 150);
            commit(&store, block.clone());
            by_log.entry(log).or_default().push(block);
        }
        holds(&store, by_log);
        assert_eq!(scrub_all(&store), 0);
        settle(&store);
        store.close();
        let report = verified(disk);
        assert_eq!(report.damage, [], "round {round}");
        assert_eq!(report.streams, report.streams_gapless);
    }
}

#[test]
fn what_is_beyond_a_cut_is_kept_apart_and_the_log_goes_on_behind_it() {
    // Nothing is left, the middle, one block (in the last segment), nothing is beyond.
    for kept in [0, 1, 13, 29, 30] {
        let mut written = written(1);
        let fenced = log(1);
        let blocks = written.by_log[&fenced].clone();
        let (stays, goes) = blocks.split_at(kept);
        let cut = end_of(stays);

        let answer = strand_at(&written.disk, fenced, 1, cut).expect("the disk is sound");

        let tail = tail(fenced, 1, cut);
        if goes.is_empty() {
            assert_eq!(answer, []);
            assert_eq!(stranded(&written.disk).expect("readable"), []);
            let read = read_stranded(&written.disk, &tail);
            assert!(matches!(read, Err(ReadStrandedError::Missing { .. })));
        } else {
            let bytes: usize = goes.iter().map(|it| it.bytes().len()).sum();
            let one = Stranded {
                tail,
                first: cut.plus(1),
                last: end_of(&blocks),
                events: end_of(&blocks).0 - cut.0,
                bytes: bytes as u64,
                unreadable: vec![],
            };
            assert_eq!(answer, [one]);
            assert_eq!(stranded(&written.disk).expect("readable"), [tail]);
            let read = read_stranded(&written.disk, &tail).expect("sound");
            assert_eq!(read, goes);
        }
        assert_eq!(verified(&written.disk).damage, []);
        written.by_log.insert(fenced, stays.to_vec());
        let (store, _) = open(&written.disk);
        holds(&store, &written.by_log);
        know_nothing_of(&store, goes);
        drop(store);
        written.disk.crash();
        goes_on(&mut written, fenced, 1, cut);
        let again = strand_at(&written.disk, fenced, 1, cut).expect("the disk is sound");
        assert_eq!(again, [], "it was done before");
        goes_on(&mut written, fenced, 1, cut);
    }
}

#[test]
fn a_cut_beyond_what_is_held_strands_nothing_then_or_later() {
    let mut written = written(1);
    let far = Position(end_of(&written.by_log[&log(1)]).0 + 6);
    let answer = strand_at(&written.disk, log(1), 1, far).expect("the disk is sound");
    assert_eq!(answer, []);
    let (store, _) = open(&written.disk);
    holds(&store, &written.by_log);
    let generations = Generations {
        cuts: vec![far],
        sealed: false,
    };
    store.set_generations(log(1), generations);
    let block = written.writer.block(&store, log(1), &[("rest", 6)], 9);
    commit(&store, block);
    let block = written.writer.block_of(2, &store, log(1), &[("new", 1)], 9);
    commit(&store, block);
    assert_eq!(store.head(log(1)).position, far.plus(1));
    store.close();
    let answer = strand_at(&written.disk, log(1), 1, far).expect("the disk is sound");
    assert_eq!(answer, []);
    let (store, _) = open(&written.disk);
    assert_eq!(store.head(log(1)).position, far.plus(1));
}

#[test]
fn a_folder_without_events_has_nothing_to_strand() {
    let disk = SimDisk::new(1);
    let answer = strand_at(&disk, log(1), 1, Position::ZERO).expect("the disk is sound");
    assert_eq!(answer, []);
    let (store, recovery) = open(&disk);
    assert!(recovery.was_empty && !recovery.heads_uncertain);
    commit(
        &store,
        Writer::default().block(&store, log(2), &[("a", 1)], 9),
    );
}

#[test]
fn several_logs_are_stranded_at_once() {
    let mut written = written(1);
    let mut cuts = BTreeMap::new();
    let mut beyond = Vec::new();
    for (origin, kept) in [(1, 7), (3, 20)] {
        let blocks = written.by_log[&log(origin)].clone();
        let (stays, goes) = blocks.split_at(kept);
        cuts.insert(log(origin), (1, end_of(stays)));
        beyond.push((tail(log(origin), 1, end_of(stays)), goes.to_vec()));
        written.by_log.insert(log(origin), stays.to_vec());
    }
    let answer = strand(Arc::new(written.disk.clone()), &cuts).expect("the disk is sound");
    assert_eq!(answer.len(), 2);
    for (tail, goes) in beyond {
        let read = read_stranded(&written.disk, &tail).expect("sound");
        assert_eq!(read, goes);
    }
    let (store, _) = open(&written.disk);
    holds(&store, &written.by_log);
}

#[test]
fn a_region_can_be_fenced_again() {
    let mut written = written(1);
    let fenced = log(2);
    let mut stays = written.by_log[&fenced][..10].to_vec();
    let first_cut = end_of(&stays);
    strand_at(&written.disk, fenced, 1, first_cut).expect("the disk is sound");
    written.by_log.insert(fenced, stays.clone());
    goes_on(&mut written, fenced, 1, first_cut);

    let all = written.by_log[&fenced].clone();
    stays = all[..15].to_vec();
    let second_cut = end_of(&stays);
    let answer = strand_at(&written.disk, fenced, 2, second_cut).expect("the disk is sound");
    assert_eq!(answer[0].first, second_cut.plus(1));
    let tails = [tail(fenced, 1, first_cut), tail(fenced, 2, second_cut)];
    assert_eq!(stranded(&written.disk).expect("readable"), tails);
    let read = read_stranded(&written.disk, &tails[1]).expect("sound");
    assert_eq!(read, all[15..]);
    written.by_log.insert(fenced, stays);
    goes_on(&mut written, fenced, 2, second_cut);
}

#[test]
fn a_generation_that_went_on_behind_a_cut_is_not_stranded_at_it() {
    let mut written = written(1);
    let fenced = log(1);
    let cut = end_of(&written.by_log[&fenced][..10]);
    strand_at(&written.disk, fenced, 1, cut).expect("the disk is sound");
    let stays = written.by_log[&fenced][..10].to_vec();
    written.by_log.insert(fenced, stays);
    goes_on(&mut written, fenced, 1, cut);
    // As if it had not been noted that nothing is left.
    written
        .disk
        .remove("stranded/1-0-1.done")
        .expect("it is there");
    let answer = strand_at(&written.disk, fenced, 1, cut).expect("the disk is sound");
    assert_eq!(answer.len(), 1, "what was stranded before");
    let (store, _) = open(&written.disk);
    holds(&store, &written.by_log);
}

#[test]
fn a_damaged_block_of_the_next_generation_is_not_given_up() {
    for note_is_lost in [false, true] {
        let mut written = written(1);
        let fenced = log(1);
        let cut = end_of(&written.by_log[&fenced][..10]);
        strand_at(&written.disk, fenced, 1, cut).expect("the disk is sound");
        let (store, _) = open(&written.disk);
        let generations = Generations {
            cuts: vec![cut],
            sealed: false,
        };
        store.set_generations(fenced, generations);
        written.writer.learn(&store);
        let count = if note_is_lost { 3 } else { 1 };
        let mut made = Vec::new();
        for _ in 0..count {
            let block = written
                .writer
                .block_of(2, &store, fenced, &[("new", 2)], 50);
            commit(&store, block.clone());
            made.push(block);
        }
        let at = place_of(&store, &made[0]);
        store.close();
        drop(store);
        written.disk.flip(&path_of(at), at.offset + 104 + 120, 1);
        if note_is_lost {
            written
                .disk
                .remove("stranded/1-0-1.done")
                .expect("it is there");
        }
        strand_at(&written.disk, fenced, 1, cut).expect("the disk is sound");
        let (store, recovery) = open(&written.disk);
        assert_eq!(recovery.damaged.len(), 1);
        assert_eq!(recovery.damaged[0].first, cut.plus(1));
        settle(&store);
        assert!(store.repair(made[0].clone()).expect("it was here"));
        assert_eq!(blocks_of(&store, fenced)[10..], made);
    }
}

fn place_of(store: &Store, block: &Block) -> LogOffset {
    let mut at = LogOffset::default();
    loop {
        let page = store.scan(at, 1 << 20).expect("readable");
        if let Some((place, _)) = page.blocks.iter().find(|(_, it)| it == block) {
            return *place;
        }
        assert!(!page.at_end, "it was committed");
        at = page.next;
    }
}

fn path_of(at: LogOffset) -> String {
    format!("log/{:08}.seg", at.segment)
}

#[test]
fn a_cut_inside_a_block_is_refused_and_changes_nothing() {
    let written = written(1);
    let block = &written.by_log[&log(1)][5];
    assert!(block.header().count > 1);
    let cut = block.header().first_position;
    let refused = strand_at(&written.disk, log(1), 1, cut);
    assert!(
        matches!(refused, Err(StrandError::CutInsideBlock { .. })),
        "{refused:?}"
    );
    let (store, _) = open(&written.disk);
    holds(&store, &written.by_log);
}

#[test]
fn a_folder_in_use_is_left_alone() {
    let written = written(1);
    let (store, _) = open(&written.disk);
    let refused = strand_at(&written.disk, log(1), 1, Position::ZERO);
    assert!(matches!(refused, Err(StrandError::Open(OpenError::InUse))));
    holds(&store, &written.by_log);
    store.close();
    strand_at(&written.disk, log(1), 1, Position::ZERO).expect("it is free now");
}

#[test]
fn what_is_stranded_already_stays_when_more_is() {
    let mut written = written(1);
    let fenced = log(1);
    let all = written.by_log[&fenced].clone();
    strand_at(&written.disk, fenced, 1, end_of(&all[..20])).expect("the disk is sound");
    // The same generation, as after a crash that left the rest in the log.
    let cut = end_of(&all[..12]);
    let answer = strand_at(&written.disk, fenced, 1, cut).expect("the disk is sound");
    assert_eq!(answer[0].events, end_of(&all).0 - cut.0);
    let read = read_stranded(&written.disk, &tail(fenced, 1, cut)).expect("sound");
    assert_eq!(read, all[12..]);
    written.by_log.insert(fenced, all[..12].to_vec());
    let (store, _) = open(&written.disk);
    holds(&store, &written.by_log);
}

#[test]
fn a_power_cut_at_any_step_loses_nothing() {
    let fenced = log(1);
    let kept = 13;
    let mut steps = 0;
    loop {
        let mut written = written(steps);
        let all = written.by_log[&fenced].clone();
        let cut = end_of(&all[..kept]);
        let tail = tail(fenced, 1, cut);
        written.disk.crash_after(steps);
        let stranded_at_once = strand_at(&written.disk, fenced, 1, cut).is_ok();
        written.disk.crash();
        if steps % 2 == 1 {
            // What is in the log then is a prefix, nothing of which is damaged.
            assert_eq!(verified(&written.disk).damage, [], "after {steps} steps");
            let (store, recovery) = open(&written.disk);
            assert_eq!(recovery.damaged, []);
            check(&store);
            let held = blocks_of(&store, fenced);
            assert!(held.len() >= kept);
            assert_eq!(held, all[..held.len()]);
            store.close();
        }
        let answer = strand_at(&written.disk, fenced, 1, cut).expect("the disk is sound");
        if !answer.is_empty() {
            assert_eq!(answer[0].events, end_of(&all).0 - cut.0);
        }
        let read = read_stranded(&written.disk, &tail).expect("sound");
        assert_eq!(read, all[kept..], "after {steps} steps");
        written.by_log.insert(fenced, all[..kept].to_vec());
        if steps % 7 == 0 || stranded_at_once {
            goes_on(&mut written, fenced, 1, cut);
        } else {
            let (store, _) = open(&written.disk);
            holds(&store, &written.by_log);
        }
        if stranded_at_once {
            break;
        }
        steps += 1;
    }
    assert!(steps > 20, "it has many steps: {steps}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn power_cuts_one_after_the_other_lose_nothing(
        seed: u64,
        kept in 0usize..30,
        cuts in prop::collection::vec(0u64..90, 1..5),
    ) {
        let fenced = log(2);
        let mut written = written(seed);
        let all = written.by_log[&fenced].clone();
        let cut = end_of(&all[..kept]);
        for steps in cuts {
            written.disk.crash_after(steps);
            let _ = strand_at(&written.disk, fenced, 1, cut);
            written.disk.crash();
        }
        strand_at(&written.disk, fenced, 1, cut).expect("the disk is sound");
        let read = read_stranded(&written.disk, &tail(fenced, 1, cut)).expect("sound");
        prop_assert_eq!(read, &all[kept..]);
        written.by_log.insert(fenced, all[..kept].to_vec());
        goes_on(&mut written, fenced, 1, cut);
    }

    #[test]
    fn what_is_damaged_beyond_the_cut_is_named_and_given_up(
        seed: u64,
        kept in 0usize..30,
        hit in any::<prop::sample::Index>(),
        byte in any::<prop::sample::Index>(),
        bit in 0u8..8,
        indexes_are_lost: bool,
    ) {
        let fenced = log(3);
        let mut written = written(seed);
        let all = written.by_log[&fenced].clone();
        let hit = kept + hit.index(30 - kept);
        let (store, _) = open(&written.disk);
        let at = place_of(&store, &all[hit]);
        let last_of_all = written.by_log.values().filter_map(|it| it.last());
        let open_segment = last_of_all.map(|it| place_of(&store, it).segment).max().expect("some");
        store.close();
        drop(store);
        let byte = byte.index(104 + all[hit].bytes().len()) as u64;
        written.disk.flip(&path_of(at), at.offset + byte, 1 << bit);
        if indexes_are_lost {
            for name in written.disk.list("log").expect("readable") {
                if name.ends_with(".idx") {
                    written.disk.remove(&format!("log/{name}")).expect("it is there");
                }
            }
        }
        let cut = end_of(&all[..kept]);
        let answer = strand_at(&written.disk, fenced, 1, cut).expect("damage is no error");

        let lost = all[hit].header();
        let mut sound = all[kept..].to_vec();
        sound.remove(hit - kept);
        let tail = tail(fenced, 1, cut);
        if !sound.is_empty() {
            prop_assert_eq!(&read_stranded(&written.disk, &tail).expect("sound"), &sound);
        }
        // Without an index and with its envelope gone, nothing tells what was there.
        let is_known = byte >= 104 || !(indexes_are_lost || at.segment == open_segment);
        if is_known {
            let unreadable = &answer[0].unreadable;
            prop_assert_eq!(unreadable, &[(lost.first_position, lost.last_position())]);
            prop_assert!(!written.disk.list("damaged").expect("readable").is_empty());
        }
        written.by_log.insert(fenced, all[..kept].to_vec());
        if is_known {
            goes_on(&mut written, fenced, 1, cut);
        } else {
            let (store, recovery) = open(&written.disk);
            prop_assert_eq!(recovery.damaged, []);
            prop_assert_eq!(recovery.holes.len(), 1);
            prop_assert!(recovery.heads_uncertain);
            prop_assert_eq!(store.head(fenced), head_of(fenced, &all[..kept]));
            settle(&store);
            store.settle_heads().expect("the disk is sound");
            scrub_all(&store);
            settle(&store);
            store.close();
            prop_assert_eq!(verified(&written.disk).damage, []);
            goes_on(&mut written, fenced, 1, cut);
        }
    }

    #[test]
    fn damage_elsewhere_stays_what_it_was(
        seed: u64,
        kept in 0usize..30,
        hit in any::<prop::sample::Index>(),
        byte in 104usize..200,
    ) {
        let fenced = log(3);
        let mut written = written(seed);
        let all = written.by_log[&fenced].clone();
        let other = written.by_log[&log(1)].clone();
        let hit = &other[hit.index(other.len())];
        let (store, _) = open(&written.disk);
        let at = place_of(&store, hit);
        store.close();
        drop(store);
        written.disk.flip(&path_of(at), at.offset + byte as u64, 1);
        let cut = end_of(&all[..kept]);
        let answer = strand_at(&written.disk, fenced, 1, cut).expect("damage is no error");
        prop_assert_eq!(&answer[0].unreadable, &[]);
        let (store, _) = open(&written.disk);
        settle(&store);
        scrub_all(&store);
        let damaged = store.damaged();
        prop_assert_eq!(damaged.len(), 1);
        prop_assert_eq!(damaged[0].first, hit.header().first_position);
        prop_assert!(store.repair(hit.clone()).expect("it was here"));
        settle(&store);
        store.close();
        drop(store);
        written.by_log.insert(fenced, all[..kept].to_vec());
        goes_on(&mut written, fenced, 1, cut);
    }

    #[test]
    fn a_flipped_bit_in_a_stranded_file_is_found(
        seed: u64,
        place in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let written = written(seed);
        let cut = end_of(&written.by_log[&log(1)][..20]);
        strand_at(&written.disk, log(1), 1, cut).expect("the disk is sound");
        let path = "stranded/1-0-1.blocks";
        let len = written.disk.open(path, false).expect("it is there").len().expect("readable");
        let at = place.index(usize::try_from(len).expect("small")) as u64;
        written.disk.flip(path, at, 1 << bit);
        let tail = tail(log(1), 1, cut);
        let read = read_stranded(&written.disk, &tail);
        prop_assert!(matches!(read, Err(ReadStrandedError::Damaged { .. })), "{:?}", read);
        prop_assert_eq!(stranded(&written.disk).expect("readable"), [tail]);
        let damage = verified(&written.disk).damage;
        prop_assert_eq!(damage.len(), 1);
        prop_assert_eq!(&damage[0].file, path);
        prop_assert_eq!(damage[0].log, Some(log(1)));
    }

    #[test]
    fn a_stranded_file_that_is_cut_short_is_found(seed: u64, place in any::<prop::sample::Index>()) {
        let written = written(seed);
        let cut = end_of(&written.by_log[&log(1)][..20]);
        strand_at(&written.disk, log(1), 1, cut).expect("the disk is sound");
        let file = written.disk.open("stranded/1-0-1.blocks", false).expect("it is there");
        let len = usize::try_from(file.len().expect("readable")).expect("small");
        file.set_len(place.index(len) as u64).expect("the disk is sound");
        let read = read_stranded(&written.disk, &tail(log(1), 1, cut));
        prop_assert!(matches!(read, Err(ReadStrandedError::Damaged { .. })), "{:?}", read);
        prop_assert_eq!(verified(&written.disk).damage.len(), 1);
    }
}

#[test]
fn a_damaged_stranded_file_is_kept_when_more_is_stranded() {
    let written = written(1);
    let all = &written.by_log[&log(1)];
    strand_at(&written.disk, log(1), 1, end_of(&all[..20])).expect("the disk is sound");
    let path = "stranded/1-0-1.blocks";
    let len = written
        .disk
        .open(path, false)
        .expect("it is there")
        .len()
        .expect("readable");
    written.disk.flip(path, len - 30, 1);
    let cut = end_of(&all[..12]);
    let answer = strand_at(&written.disk, log(1), 1, cut).expect("damage is no error");
    let read = read_stranded(&written.disk, &tail(log(1), 1, cut)).expect("sound");
    assert_eq!(read, all[12..29], "all but the one that was hit");
    assert_eq!(answer[0].last, end_of(&all[..29]));
    assert!(
        written
            .disk
            .exists("stranded/1-0-1.damaged.1")
            .expect("readable")
    );
    assert_eq!(verified(&written.disk).damage, []);
}

#[test]
fn an_unclean_stop_before_stranding_changes_nothing() {
    for seed in 0..20 {
        let mut written = written(seed);
        let (store, _) = open(&written.disk);
        let mut answers = Vec::new();
        for _ in 0..3 {
            let block = written.writer.block(&store, log(1), &[("torn", 3)], 400);
            let _ = store.submit(block.clone(), Box::new(|_| {}));
            answers.push(block);
        }
        // Written and never synced.
        let group = store.commit_begin().expect("something waits");
        std::mem::forget(group);
        written.disk.crash();
        drop(store);
        let all = written.by_log[&log(1)].clone();
        let cut = end_of(&all[..25]);
        let answer = strand_at(&written.disk, log(1), 1, cut).expect("the disk is sound");
        assert!(answer[0].last >= end_of(&all));
        let read = read_stranded(&written.disk, &tail(log(1), 1, cut)).expect("sound");
        assert_eq!(read[..5], all[25..]);
        written.by_log.insert(log(1), all[..25].to_vec());
        let (store, recovery) = open(&written.disk);
        assert!(!recovery.tail_cut, "it was cut before");
        holds(&store, &written.by_log);
        assert!(scanned(&store).iter().all(|it| it.chain() != Chain::EMPTY));
    }
}

/// The index of a segment goes when something of it is stranded, and with it goes what it knew of
/// damaged blocks: the places around them have to tell.
#[test]
fn a_block_that_only_an_index_knew_is_put_back_where_it_was() {
    let fenced = log(3);
    for hit in 0..BLOCKS / 3 - 1 {
        let mut written = written(1);
        let block = written.by_log[&log(2)][hit].clone();
        let (store, _) = open(&written.disk);
        let at = place_of(&store, &block);
        store.close();
        drop(store);
        written.disk.flip(&path_of(at), at.offset, 1);
        strand_at(&written.disk, fenced, 1, Position::ZERO).expect("damage is no error");
        written.by_log.insert(fenced, vec![]);

        let (store, recovery) = open(&written.disk);
        settle(&store);
        let damaged = &recovery.damaged;
        assert_eq!(damaged.len(), 1, "{damaged:?}");
        assert_eq!(damaged[0].first, block.header().first_position);
        let place = LogOffset::new(damaged[0].segment, damaged[0].offset);
        assert_eq!(place, at);
        assert!(store.repair(block).expect("it was here"));
        settle(&store);
        holds(&store, &written.by_log);
        store.close();
        assert_eq!(verified(&written.disk).damage, []);
    }
}

#[test]
fn every_byte_at_the_end_of_a_stranded_file_counts() {
    let written = written(1);
    let cut = end_of(&written.by_log[&log(1)][..28]);
    strand_at(&written.disk, log(1), 1, cut).expect("the disk is sound");
    let path = "stranded/1-0-1.blocks";
    let file = written.disk.open(path, false).expect("it is there");
    let len = file.len().expect("readable");
    for at in len - 8..len {
        written.disk.flip(path, at, 1);
        let read = read_stranded(&written.disk, &tail(log(1), 1, cut));
        assert!(matches!(read, Err(ReadStrandedError::Damaged { .. })));
        written.disk.flip(path, at, 1);
    }
    assert!(read_stranded(&written.disk, &tail(log(1), 1, cut)).is_ok());
}

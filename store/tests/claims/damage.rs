//! Bits that flip.

use meridian_clock::Position;
use meridian_event::Revision;
use meridian_store::{
    Direction, Disk, LogOffset, ReadError, RepairError, ScrubCursor, SimDisk, Store, StreamRange,
};
use proptest::prelude::*;

use crate::world::{
    Writer, blocks_of, check, commit, events_of, filled, log, open, scanned, segment_files, settle,
    stream, verified,
};

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

// Where the entries of a segment end.
fn content_bytes(disk: &SimDisk, path: &str) -> u64 {
    let file = disk.open(path, false).expect("it is there");
    let mut bytes = vec![0; usize::try_from(file.len().expect("readable")).expect("small")];
    file.read_at(&mut bytes, 0).expect("readable");
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last as u64 + 1)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_flipped_bit_in_a_sealed_segment_is_found_not_served_and_mended(
        seed: u64,
        place: prop::sample::Index,
        bit in 0u8..8,
        index_is_lost: bool,
        is_found_by_scrub: bool,
    ) {
        let disk = SimDisk::new(seed);
        let (store, blocks) = filled(&disk, 120);
        store.close();
        let path = format!("log/{}", segment_files(&disk)[1]);
        let at = place.index(usize::try_from(content_bytes(&disk, &path)).expect("small")) as u64;
        disk.flip(&path, at, 1 << bit);

        let report = verified(&disk);
        // Padding between entries is the one thing that no checksum covers.
        let is_padding = report.damage.is_empty();
        if is_padding {
            prop_assert_eq!(report.events, 360);
            return Ok(());
        }
        prop_assert!(report.damage.iter().all(|it| it.file == path), "{:?}", report.damage);
        if index_is_lost {
            disk.remove(&path.replace(".seg", ".idx")).expect("it is there");
        }

        let (store, recovery) = open(&disk);
        prop_assert_eq!(recovery.heads_uncertain, index_is_lost && !recovery.holes.is_empty());
        if is_found_by_scrub {
            scrub_all(&store);
        } else {
            // Whatever is served is what was written.
            for block in scanned(&store) {
                prop_assert!(blocks.contains(&block));
            }
            let mut at = Position::ZERO;
            while let Ok(read) = store.read_log(log(1), at, 1000) {
                let Some(last) = read.last() else { break };
                prop_assert!(read.iter().all(|block| blocks.contains(block)));
                at = last.header().last_position();
            }
            if let Some(range) = store.damaged().first() {
                let read = store.read_log(log(1), Position(range.first.0 - 1), 1000);
                prop_assert!(matches!(read, Err(ReadError::Damaged(_))), "{:?}", read);
            }
        }
        let head = store.head(log(1));
        prop_assert_eq!(head.position.0, 360, "the head does not go back");
        for range in store.damaged() {
            let lost: Vec<_> = blocks
                .iter()
                .filter(|it| it.header().first_position >= range.first)
                .filter(|it| it.header().last_position() <= range.last)
                .cloned()
                .collect();
            prop_assert_eq!(lost.len(), 1, "one bit damages one block");
            prop_assert_eq!(store.repair_all(lost).expect("the block was here"), 1);
        }
        store.settle_heads().expect("the disk is sound");
        scrub_all(&store);
        prop_assert_eq!(store.damaged(), []);
        settle(&store);
        check(&store);
        prop_assert_eq!(&blocks_of(&store, log(1)), &blocks);
        let last = blocks.last().expect("there are some").to_events().expect("sound");
        for event in events_of(&store) {
            let found = store.find_event(event.id, &[]).expect("readable").expect("it is there");
            prop_assert_eq!(found.dot, event.dot);
        }
        prop_assert!(store.find_event(last[2].id, &[]).expect("readable").is_some());
        store.close();
        prop_assert_eq!(verified(&disk).damage, []);
        prop_assert!(!disk.list("damaged").expect("readable").is_empty(), "the evidence is kept");
    }

    #[test]
    fn a_flipped_bit_in_the_open_segment_after_a_clean_stop_is_no_torn_tail(
        seed: u64,
        place: prop::sample::Index,
        bit in 0u8..8,
    ) {
        let disk = SimDisk::new(seed);
        let (store, blocks) = filled(&disk, 4);
        store.close();
        let path = "log/00000001.seg";
        // The closing mark itself protects nothing, so it is not hit.
        let content = usize::try_from(content_bytes(&disk, path)).expect("small") - 104;
        disk.flip(path, place.index(content) as u64, 1 << bit);
        let report = verified(&disk);
        prop_assert_eq!(report.torn_tail_bytes, 0);
        if report.damage.is_empty() {
            return Ok(());
        }
        let (store, recovery) = open(&disk);
        prop_assert!(!recovery.tail_cut);
        settle(&store);
        let ranges = store.damaged();
        // Which block was hit is not always known; then its log may end before it.
        let lost_at_end = store.head(log(1)).position.0 < 12;
        prop_assert!(!lost_at_end || recovery.heads_uncertain);
        for range in ranges {
            let lost = blocks
                .iter()
                .filter(|it| it.header().first_position >= range.first)
                .filter(|it| it.header().last_position() <= range.last);
            for block in lost {
                prop_assert!(store.repair(block.clone()).expect("the block was here"));
            }
        }
        if lost_at_end {
            commit(&store, blocks[3].clone());
        }
        store.settle_heads().expect("the disk is sound");
        scrub_all(&store);
        settle(&store);
        prop_assert_eq!(store.damaged(), []);
        prop_assert_eq!(&blocks_of(&store, log(1)), &blocks);
        check(&store);
        store.close();
        prop_assert_eq!(verified(&disk).damage, []);
    }

    #[test]
    fn whatever_is_written_over_the_files_only_what_was_written_is_served(
        seed: u64,
        scribbles in prop::collection::vec(
            (
                any::<prop::sample::Index>(),
                any::<prop::sample::Index>(),
                prop::collection::vec(any::<u8>(), 1..600),
                any::<bool>(),
            ),
            1..6,
        ),
        cut_to in prop::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>())),
    ) {
        let disk = SimDisk::new(seed);
        let (store, blocks) = filled(&disk, 120);
        store.close();
        let files: Vec<String> = disk.list("log").expect("readable");
        let path = |place: prop::sample::Index| format!("log/{}", place.get(&files));
        for (file, place, bytes, copies) in scribbles {
            let file = disk.open(&path(file), false).expect("it is there");
            let len = usize::try_from(file.len().expect("readable")).expect("small");
            let mut bytes = bytes;
            if copies {
                // Sound bytes of another place.
                file.read_at(&mut bytes, len as u64 / 3).expect("readable");
            }
            file.write_all_at(&bytes, place.index(len) as u64).expect("the disk is sound");
            file.sync_data().expect("the disk is sound");
        }
        if let Some((file, len)) = cut_to {
            let file = disk.open(&path(file), false).expect("it is there");
            let old = usize::try_from(file.len().expect("readable")).expect("small");
            file.set_len(len.index(old.max(1)) as u64).expect("the disk is sound");
            file.sync_data().expect("the disk is sound");
        }
        let report = verified(&disk);
        let sound = report.damage.is_empty();
        let (store, recovery) = open(&disk);
        scrub_all(&store);
        settle(&store);
        let served = scanned(&store);
        prop_assert!(served.iter().all(|block| blocks.contains(block)));
        // What is not served is named, or the heads are in doubt.
        let missing = served.len() < blocks.len();
        let doubted = recovery.heads_uncertain || !store.damaged().is_empty();
        prop_assert!(!missing || doubted, "{:?}", recovery);
        prop_assert!(!missing || !sound || recovery.heads_uncertain);
        for number in 0..7 {
            let name = stream(&format!("order-{number}"));
            let range = StreamRange {
                from: Revision(0),
                direction: Direction::Forwards,
                limit: 1000,
                bytes_max: 1 << 20,
                in_turn: false,
            };
            let read = store.read_stream(&name, range).map_or(Vec::new(), |it| it);
            let revisions: Vec<u64> = read.iter().map(|event| event.revision.0).collect();
            prop_assert!(revisions.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        }
        store.close();
    }

    #[test]
    fn a_damaged_index_changes_no_answer(seed: u64, place: prop::sample::Index, bit in 0u8..8) {
        let disk = SimDisk::new(seed);
        let (store, blocks) = filled(&disk, 120);
        store.close();
        let path = "log/00000002.idx";
        let len = disk.open(path, false).expect("sealed").len().expect("readable");
        disk.flip(path, place.index(usize::try_from(len).expect("small")) as u64, 1 << bit);
        let report = verified(&disk);
        prop_assert!(report.damage.iter().all(|it| it.file == path));
        prop_assert_eq!(report.damage.len(), 1, "the damage is noticed");
        let (store, recovery) = open(&disk);
        prop_assert_eq!(recovery.damaged, []);
        prop_assert_eq!(&blocks_of(&store, log(1)), &blocks);
        for event in events_of(&store) {
            let found = store.find_event(event.id, &[]).expect("readable").expect("it is there");
            prop_assert_eq!(found.dot, event.dot);
        }
        scrub_all(&store);
        settle(&store);
        check(&store);
        store.close();
        prop_assert_eq!(verified(&disk).damage, []);
    }

    #[test]
    fn an_index_that_is_made_while_reads_are_wrong_lacks_nothing(seed: u64, reads in 1u64..13) {
        let disk = SimDisk::new(seed);
        let (store, blocks) = filled(&disk, 120);
        settle(&store);
        disk.flip("log/00000002.idx", 300, 1);
        disk.misread(reads);
        // Some find damage where there is none, and find it gone when they look again.
        scrub_all(&store);
        disk.misread(0);
        scrub_all(&store);
        settle(&store);
        scrub_all(&store);
        check(&store);
        prop_assert_eq!(&blocks_of(&store, log(1)), &blocks);
        prop_assert!(store.damaged().is_empty());
        store.close();
        prop_assert_eq!(verified(&disk).damage, []);
    }
}

#[test]
fn what_a_new_index_cannot_know_is_not_said_to_be_missing() {
    let (mut events, mut refused) = (Vec::new(), 0);
    for number in (0..360).step_by(5) {
        let disk = SimDisk::new(1);
        let (store, _) = filled(&disk, 120);
        settle(&store);
        if events.is_empty() {
            events = events_of(&store);
        }
        let Some(event) = events.get(number) else {
            break;
        };
        // Found only by whoever asks: the index, and then a stretch of its segment.
        let index = disk.open("log/00000002.idx", false).expect("sealed");
        let pages = index.len().expect("readable") / 4096;
        (0..pages).for_each(|page| disk.flip("log/00000002.idx", page * 4096, 1));
        let file = disk.open("log/00000002.seg", false).expect("sealed");
        file.write_all_at(&[0; 1500], 1000)
            .expect("the disk is sound");
        match store.find_event(event.id, &[event.dot.log()]) {
            Ok(found) => assert_eq!(found.map(|it| it.dot), Some(event.dot)),
            Err(error) => {
                assert!(matches!(error, ReadError::Damaged(_)), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "some event lay in what was damaged");
}

#[test]
fn missing_indexes_are_made_anew() {
    let disk = SimDisk::new(5);
    let (store, blocks) = filled(&disk, 200);
    let ids: Vec<_> = events_of(&store)
        .into_iter()
        .map(|it| (it.id, it.dot))
        .collect();
    store.close();
    for name in disk.list("log").expect("readable") {
        if name.ends_with(".idx") {
            disk.remove(&format!("log/{name}")).expect("it is there");
        }
    }
    assert!(verified(&disk).indexes_missing > 2);
    assert_eq!(verified(&disk).damage, []);
    let (store, recovery) = open(&disk);
    assert_eq!(recovery.damaged, []);
    assert!(!recovery.heads_uncertain);
    assert_eq!(blocks_of(&store, log(1)), blocks);
    for (id, dot) in ids {
        assert_eq!(
            store
                .find_event(id, &[])
                .expect("readable")
                .map(|it| it.dot),
            Some(dot)
        );
    }
    settle(&store);
    store.close();
    assert_eq!(verified(&disk).indexes_missing, 0);
}

#[test]
fn a_block_that_was_not_there_is_not_put_back() {
    let disk = SimDisk::new(1);
    let (store, blocks) = filled(&disk, 120);
    store.close();
    // Inside the body of the first block of the second segment.
    disk.flip("log/00000002.seg", 64 + 104 + 150, 1);
    let (store, _) = open(&disk);
    assert!(
        store
            .scan(LogOffset::default(), 1 << 20)
            .expect("readable")
            .skipped
            .len()
            == 1
    );
    let range = store.damaged().remove(0);
    let lost = blocks
        .iter()
        .position(|it| it.header().first_position == range.first)
        .expect("it was written");

    let (other, _) = open(&SimDisk::new(2));
    let mut writer = Writer::default();
    writer.next_id = 5000;
    for number in 0..=lost {
        let name = format!("order-{}", number % 7);
        let block = writer.block(&other, log(1), &[(name.as_str(), 3)], 100);
        commit(&other, block);
    }
    let forged = blocks_of(&other, log(1)).remove(lost);
    assert_eq!(forged.header().first_position, range.first);
    assert_eq!(forged.bytes().len(), blocks[lost].bytes().len());
    let refused = store.repair(forged);
    assert!(
        matches!(refused, Err(RepairError::OtherBytes { .. })),
        "{refused:?}"
    );
    assert_eq!(store.damaged().len(), 1);
    assert!(store.repair(blocks[lost].clone()).expect("it was here"));
    assert!(
        !store
            .repair(blocks[lost].clone())
            .expect("nothing is damaged now")
    );
    check(&store);
}

#[test]
fn a_wiped_stretch_of_several_blocks_is_put_back_block_by_block() {
    for index_is_lost in [false, true] {
        let disk = SimDisk::new(1);
        let (store, blocks) = filled(&disk, 120);
        store.close();
        let file = disk.open("log/00000002.seg", false).expect("sealed");
        file.write_all_at(&[0; 1500], 1000)
            .expect("the disk is sound");
        file.sync_data().expect("the disk is sound");
        drop(file);
        if index_is_lost {
            disk.remove("log/00000002.idx").expect("sealed");
        }
        assert!(!verified(&disk).damage.is_empty());
        let (store, _) = open(&disk);
        scrub_all(&store);
        assert!(!store.damaged().is_empty());
        for number in 0..7 {
            let name = stream(&format!("order-{number}"));
            // With the index gone too, which events were there cannot be told: neither the last
            // one of a stream, nor what comes after a gap.
            let last = store.stream_last(&name, None, false);
            let range = StreamRange {
                from: Revision(0),
                direction: Direction::Forwards,
                limit: 1000,
                bytes_max: 1 << 20,
                in_turn: false,
            };
            let read = store.read_stream(&name, range).map_or(Vec::new(), |it| it);
            let revisions: Vec<u64> = read.iter().map(|event| event.revision.0).collect();
            assert_eq!(revisions, (0..revisions.len() as u64).collect::<Vec<_>>());
            match last {
                Err(ReadError::Damaged(_)) => {}
                last => {
                    assert!(!index_is_lost, "{last:?}");
                    let last = last.expect("readable").expect("there are some");
                    assert!(last.revision.0 >= 50);
                }
            }
        }
        while let Some(range) = store.damaged().first().cloned() {
            let lost = blocks
                .iter()
                .find(|it| it.header().first_position == range.first)
                .expect("ranges begin where blocks begin");
            assert!(store.repair(lost.clone()).expect("it was here"), "{range}");
        }
        store.settle_heads().expect("the disk is sound");
        scrub_all(&store);
        settle(&store);
        check(&store);
        assert_eq!(blocks_of(&store, log(1)), blocks);
        store.close();
        assert_eq!(verified(&disk).damage, []);
    }
}

#[test]
fn bytes_whose_checksums_are_right_and_whose_chain_is_not_are_damage() {
    for (path, is_sealed) in [("log/00000002.seg", true), ("log/00000001.seg", false)] {
        let disk = SimDisk::new(1);
        let (store, blocks) = filled(&disk, if is_sealed { 120 } else { 4 });
        store.close();
        // The first entry of the segment, its event data changed by a letter and the block's
        // checksum made to fit, as no accident would.
        let file = disk.open(path, false).expect("it is there");
        let mut block = vec![0; 2000];
        let read = file.read_at(&mut block, 64 + 104).expect("readable");
        block.truncate(read);
        let length = usize::try_from(u32::from_le_bytes(
            block[36..40].try_into().expect("four bytes"),
        ))
        .expect("small");
        block.truncate(100 + length);
        let letter = block.len() - 5;
        block[letter] ^= 1;
        let crc = meridian_event::crc32c(&[&block[..96], &block[100..]]);
        block[96..100].copy_from_slice(&crc.to_le_bytes());
        let forged = meridian_event::Block::parse(&bytes::Bytes::from(block.clone()));
        let position = forged.expect("the checksum fits").header().first_position;
        file.write_all_at(&block, 64 + 104)
            .expect("the disk is sound");
        file.sync_data().expect("the disk is sound");
        drop(file);

        let report = verified(&disk);
        assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
        assert_eq!(
            report.damage[0].positions.map(|(first, _)| first),
            Some(position)
        );
        let (store, recovery) = open(&disk);
        assert_eq!(recovery.damaged.len(), usize::from(!is_sealed));
        scrub_all(&store);
        let ranges = store.damaged();
        assert_eq!(ranges.len(), 1);
        assert_eq!(ranges[0].first, position);
        let lost = blocks
            .iter()
            .find(|it| it.header().first_position == position);
        assert!(
            store
                .repair(lost.expect("it was written").clone())
                .expect("it was here")
        );
        settle(&store);
        assert_eq!(blocks_of(&store, log(1)), blocks);
        store.close();
        assert_eq!(verified(&disk).damage, []);
    }
}

#[test]
fn damage_in_the_open_segment_is_put_back_without_another_commit() {
    let disk = SimDisk::new(11);
    let (store, _) = open(&disk);
    let mut writer = Writer::default();
    let block = writer.block(&store, log(1), &[("order-1", 3)], 40);
    commit(&store, block.clone());
    let place = store
        .scan(LogOffset::default(), 1 << 20)
        .expect("readable")
        .blocks[0]
        .0;
    disk.flip("log/00000001.seg", place.offset + 100, 1);
    assert!(store.read_log(log(1), Position::ZERO, 1 << 20).is_err());

    assert!(store.repair(block.clone()).is_err(), "its segment is open");
    settle(&store);
    assert!(store.repair(block.clone()).expect("its segment is left"));
    let read = store.read_log(log(1), Position::ZERO, 1 << 20);
    assert_eq!(read.expect("it is back")[0].bytes(), block.bytes());
    assert!(store.damaged().is_empty());
}

#[test]
fn a_bit_that_flips_on_its_way_from_the_disk_is_no_damage() {
    let disk = SimDisk::new(12);
    let (store, _) = open(&disk);
    let mut writer = Writer::default();
    let block = writer.block(&store, log(1), &[("order-1", 30)], 40);
    commit(&store, block);
    for _ in 0..20 {
        disk.misread(1);
        let read = store.read_log(log(1), Position::ZERO, 1 << 20);
        assert_eq!(read.expect("it is sound").len(), 1);
        disk.misread(1);
        let page = store.scan(LogOffset::default(), 1 << 20);
        assert_eq!(page.expect("it is sound").blocks.len(), 1);
    }
    assert!(store.damaged().is_empty());
}

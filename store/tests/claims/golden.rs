//! The first format, byte by byte: what is on disks must stay readable.

use std::sync::Arc;

use std::collections::BTreeMap;

use meridian_clock::Position;
use meridian_store::{
    Disk, SimDisk, Store, StoreOptions, checked_file, read_stranded, strand, stranded,
};

use crate::world::{Writer, blocks_of, check, commit, log, options, settle, verified};

const SEGMENT: &str = "log/00000001.seg";
const INDEX: &str = "log/00000001.idx";
const CHECKED: &str = "checked";

const GOLDEN: [(&str, &[u8]); 3] = [
    (SEGMENT, include_bytes!("../../golden/segment-v1.bin")),
    (INDEX, include_bytes!("../../golden/index-v1.bin")),
    (CHECKED, include_bytes!("../../golden/checked-v1.bin")),
];

const STRANDED: &str = "stranded/1-0-1.blocks";

// After the log of region 1 was cut at position 3.
const GOLDEN_STRANDED: [(&str, &[u8]); 2] = [
    (
        SEGMENT,
        include_bytes!("../../golden/segment-v1-stranded.bin"),
    ),
    (STRANDED, include_bytes!("../../golden/stranded-v1.bin")),
];

fn tiny() -> StoreOptions {
    StoreOptions {
        segment_bytes: 4 << 10,
        segment_events_max: 5,
        fill_ahead_bytes: 0,
        ..options()
    }
}

// Two logs, a stream in both, a block of two batches, a sealed segment and a begun one.
fn written() -> SimDisk {
    let disk = SimDisk::new(0);
    let (store, _) = Store::open(Arc::new(disk.clone()), tiny()).expect("the folder opens");
    let mut writer = Writer::default();
    commit(
        &store,
        writer.block(&store, log(1), &[("order-1", 2), ("order-2", 1)], 5),
    );
    commit(&store, writer.block(&store, log(2), &[("order-1", 1)], 5));
    commit(&store, writer.block(&store, log(1), &[("order-1", 1)], 5));
    commit(&store, writer.block(&store, log(1), &[("order-3", 1)], 5));
    settle(&store);
    store.close();
    checked_file::replace(&disk, CHECKED, b"what must survive").expect("the disk is sound");
    disk
}

fn cut() -> SimDisk {
    let disk = written();
    let cuts = BTreeMap::from([(log(1), (1, Position(3)))]);
    strand(Arc::new(disk.clone()), &cuts).expect("the disk is sound");
    disk
}

// A file without the zeros at its end.
fn content(disk: &SimDisk, path: &str) -> Vec<u8> {
    let file = disk.open(path, false).expect("it was written");
    let mut bytes = vec![0; usize::try_from(file.len().expect("readable")).expect("small")];
    file.read_at(&mut bytes, 0).expect("readable");
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    bytes.truncate(end);
    bytes
}

#[test]
fn the_first_format_is_still_written() {
    let written = GOLDEN.map(|it| (written(), it));
    let stranded = GOLDEN_STRANDED.map(|it| (cut(), it));
    for (disk, (path, golden)) in written.into_iter().chain(stranded) {
        let bytes = content(&disk, path);
        let differs = bytes
            .iter()
            .zip(golden)
            .position(|(ours, golden)| ours != golden);
        assert_eq!((bytes.len(), differs), (golden.len(), None), "{path}");
    }
}

#[test]
fn a_log_that_was_cut_in_the_first_format_is_still_read() {
    let disk = SimDisk::new(0);
    for (path, golden) in GOLDEN_STRANDED {
        let (folder, _) = path.split_once('/').expect("in a folder");
        disk.create_dir_all(folder).expect("the disk is sound");
        let file = disk.open(path, true).expect("the disk is sound");
        file.write_all_at(golden, 0).expect("the disk is sound");
        if path == SEGMENT {
            file.allocate(4 << 10).expect("the disk is sound");
        }
    }
    assert_eq!(verified(&disk).damage, []);
    let tails = stranded(&disk).expect("readable");
    let read = read_stranded(&disk, &tails[0]).expect("sound");
    let (fresh, _) = Store::open(Arc::new(written()), tiny()).expect("the folder opens");
    assert_eq!(read, blocks_of(&fresh, log(1))[1..]);
    let (store, _) = Store::open(Arc::new(disk), tiny()).expect("the folder opens");
    assert_eq!(blocks_of(&store, log(1)), blocks_of(&fresh, log(1))[..1]);
}

#[test]
fn the_first_format_is_still_read() {
    let disk = SimDisk::new(0);
    disk.create_dir_all("log").expect("the disk is sound");
    for (path, golden) in GOLDEN {
        let file = disk.open(path, true).expect("the disk is sound");
        file.set_len(4 << 10).expect("the disk is sound");
        if path != SEGMENT {
            file.set_len(golden.len() as u64)
                .expect("the disk is sound");
        }
        file.write_all_at(golden, 0).expect("the disk is sound");
    }
    assert_eq!(
        checked_file::read(&disk, CHECKED).expect("sound"),
        Some(b"what must survive".to_vec())
    );
    let report = verified(&disk);
    assert_eq!(report.damage, []);
    assert_eq!((report.events, report.streams_gapless), (5, 2));
    let (store, recovery) = Store::open(Arc::new(disk), tiny()).expect("the folder opens");
    assert_eq!(
        (recovery.tail_cut, recovery.heads_uncertain),
        (false, false)
    );
    check(&store);
    let (fresh, _) = Store::open(Arc::new(written()), tiny()).expect("the folder opens");
    assert_eq!(
        blocks_of(&store, log(1))[..2],
        blocks_of(&fresh, log(1))[..2]
    );
    assert_eq!(blocks_of(&store, log(2)), blocks_of(&fresh, log(2)));
}

#[test]
#[ignore = "writes the golden files anew, after a deliberate change of format"]
#[expect(clippy::disallowed_methods, reason = "golden files are real files")]
fn write_the_golden_files() {
    let write = |disk: &SimDisk, path: &str, name: &str| {
        let to = format!("{}/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(to, content(disk, path)).expect("the folder is there");
    };
    let disk = written();
    write(&disk, SEGMENT, "segment-v1.bin");
    write(&disk, INDEX, "index-v1.bin");
    write(&disk, CHECKED, "checked-v1.bin");
    let disk = cut();
    write(&disk, SEGMENT, "segment-v1-stranded.bin");
    write(&disk, STRANDED, "stranded-v1.bin");
}

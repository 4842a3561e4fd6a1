//! A data folder in which any bytes were changed: it opens or says why not, and what it serves is
//! what was written.

#![no_main]

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use meridian_clock::{Epoch, Incarnation, LogId, PartitionId, Position, RegionId, Timestamp};
use meridian_event::{Block, BlockBuilder, EventId, EventType, NewEvent, Revision, StreamId};
use meridian_store::{Disk, Lanes, LogOffset, ScrubCursor, SimDisk, Store, StoreOptions, verify};

const LOGS: u16 = 2;
const BLOCKS: u64 = 8;
const BYTES_MAX: usize = 1 << 20;

// The input is a list of changes of four bytes each: which file, where in it, and which bits.
fuzz_target!(|data: &[u8]| {
    let folder = FOLDER.get_or_init(Folder::write);
    let mut files = folder.files.clone();
    for change in data.chunks_exact(4) {
        let (_, bytes) = &mut files[usize::from(change[0]) % folder.files.len()];
        let at = usize::from(u16::from_le_bytes([change[1], change[2]])) % bytes.len();
        bytes[at] ^= change[3];
    }
    let disk = SimDisk::new(0);
    for (path, bytes) in &files {
        put(&disk, path, bytes);
    }
    // Its verdict is its own affair here; it must come to one.
    let _ = verify(&disk);
    let Ok((store, recovery)) = Store::open(Arc::new(disk.clone()), options()) else {
        return;
    };
    if files == folder.files {
        assert!(!recovery.tail_cut && recovery.damaged.is_empty() && recovery.holes.is_empty());
        assert_eq!(store.stats().events, u64::from(LOGS) * BLOCKS * 2);
    }
    let mut cursor = ScrubCursor::default();
    while !store.scrub(&mut cursor, BYTES_MAX).round_done {}
    serves_what_was_written(&store, folder);

    // What a peer gives back goes where it was, or nowhere.
    drive(&store);
    let blocks = folder
        .blocks
        .iter()
        .map(|bytes| Block::parse(bytes).expect("it is as it was written"));
    let _ = store.repair_all(blocks.collect());
    serves_what_was_written(&store, folder);
    if store.damaged().is_empty() && recovery.holes.is_empty() && !recovery.tail_cut {
        assert_eq!(store.heads().len(), usize::from(LOGS));
        assert!(
            store
                .heads()
                .iter()
                .all(|head| head.position.0 == BLOCKS * 2)
        );
    }
});

fn serves_what_was_written(store: &Store, folder: &Folder) {
    for log in (0..LOGS).map(log) {
        let mut after = Position::ZERO;
        while let Ok(blocks) = store.read_log(log, after, BYTES_MAX) {
            let Some(last) = blocks.last() else { break };
            assert_eq!(blocks[0].header().first_position, after.plus(1), "dense");
            after = last.header().last_position();
            for block in &blocks {
                assert!(
                    folder.blocks.contains(block.bytes()),
                    "identical: {block:?}"
                );
            }
        }
    }
    let mut at = LogOffset::default();
    while let Ok(page) = store.scan(at, BYTES_MAX) {
        for (_, block) in &page.blocks {
            assert!(
                folder.blocks.contains(block.bytes()),
                "identical: {block:?}"
            );
        }
        if page.at_end {
            break;
        }
        at = page.next;
    }
}

// Whatever is to be committed or kept in order.
fn drive(store: &Store) {
    loop {
        if let Some(group) = store.commit_begin() {
            store.commit_finish(group);
        } else if !store.housekeep() {
            break;
        }
    }
}

static FOLDER: OnceLock<Folder> = OnceLock::new();

struct Folder {
    files: Vec<(String, Vec<u8>)>,
    blocks: BTreeSet<Bytes>,
}

impl Folder {
    // Two logs in two sealed segments and an open one.
    fn write() -> Self {
        let disk = SimDisk::new(0);
        let (store, _) = Store::open(Arc::new(disk.clone()), options()).expect("an empty folder");
        let mut blocks = BTreeSet::new();
        for number in 0..BLOCKS {
            for log in (0..LOGS).map(log) {
                let head = store.submitted_head(log);
                let mut block = BlockBuilder::new(log, Incarnation(1), Epoch::FIRST);
                let stream = StreamId::new("order-1").expect("a sound name");
                let events = [event(head.position.0), event(head.position.0 + 1)];
                block.push_batch(
                    Timestamp(1000 + number),
                    &stream,
                    Revision(head.position.0),
                    &events,
                );
                let block = block.seal(head.position.plus(1), head.chain);
                blocks.insert(block.bytes().clone());
                store
                    .submit(block, Box::new(|done| done.expect("the disk is sound")))
                    .expect("it is the next block");
            }
            drive(&store);
        }
        store.close();
        let files = ["log/00000001.seg", "log/00000001.idx", "log/00000002.seg"];
        let files = files.map(|path| (path.to_owned(), take(&disk, path)));
        Self {
            files: files.into(),
            blocks,
        }
    }
}

fn options() -> StoreOptions {
    StoreOptions {
        segment_bytes: 8 << 10,
        segment_events_max: 20,
        lanes: Lanes::Driven,
        ..StoreOptions::default()
    }
}

fn log(origin: u16) -> LogId {
    LogId::new(RegionId(origin), PartitionId(0))
}

fn event(number: u64) -> NewEvent {
    NewEvent {
        id: EventId::from_random(u128::from(number).to_le_bytes()),
        event_type: EventType::new("OrderPlaced").expect("a sound name"),
        data: Bytes::from_static(b"{}"),
        metadata: Bytes::new(),
    }
}

fn put(disk: &SimDisk, path: &str, bytes: &[u8]) {
    disk.create_dir_all("log").expect("the disk is sound");
    let file = disk.open(path, true).expect("the disk is sound");
    file.write_all_at(bytes, 0).expect("the disk is sound");
    file.sync_data().expect("the disk is sound");
    disk.sync_dir("log").expect("the disk is sound");
}

fn take(disk: &SimDisk, path: &str) -> Vec<u8> {
    let file = disk.open(path, false).expect("it was written");
    let len = usize::try_from(file.len().expect("the disk is sound")).expect("it is small");
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, 0).expect("the disk is sound");
    bytes
}

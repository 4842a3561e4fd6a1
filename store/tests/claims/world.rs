//! A small world around a store: a simulated disk, a writer that makes blocks, and a record of what
//! was acknowledged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use meridian_clock::{Epoch, Incarnation, LogId, PartitionId, Position, RegionId, Timestamp};
use meridian_event::{
    Block, BlockBuilder, EventId, EventType, NewEvent, RecordedEvent, Revision, StreamId,
};
use meridian_store::{
    CommitError, Disk, Lanes, LogOffset, Recovery, SimDisk, Store, StoreOptions, VerifyReport,
    verify,
};

pub(crate) fn log(origin: u16) -> LogId {
    LogId::new(RegionId(origin), PartitionId(0))
}

pub(crate) fn stream(name: &str) -> StreamId {
    StreamId::new(name).expect("a good name")
}

/// Small segments, so that a few hundred events fill some.
pub(crate) fn options() -> StoreOptions {
    StoreOptions {
        segment_bytes: 16 << 10,
        segment_events_max: 100,
        lanes: Lanes::Driven,
        ..StoreOptions::default()
    }
}

pub(crate) fn open(disk: &SimDisk) -> (Arc<Store>, Recovery) {
    Store::open(Arc::new(disk.clone()), options()).expect("the folder opens")
}

pub(crate) fn event(id: u128, data_bytes: usize) -> NewEvent {
    // Incompressible enough that lengths vary with the content.
    let data: String = (0..data_bytes)
        .map(|place| char::from(b'a' + (id.wrapping_mul(31) as usize + place * 7) as u8 % 26))
        .collect();
    NewEvent {
        id: EventId::from_random(id.to_be_bytes()),
        event_type: EventType::new("Happened").expect("a good name"),
        data: Bytes::from(format!("{{\"text\":\"{data}\"}}")),
        metadata: Bytes::new(),
    }
}

/// Makes blocks that continue each other, for several logs.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub(crate) next_id: u128,
    pub(crate) clock: u64,
    revisions: BTreeMap<(LogId, StreamId), u64>,
}

impl Writer {
    /// A block that follows what `store` was given so far: one batch for each of `batches`, a
    /// stream and a number of events.
    pub(crate) fn block(
        &mut self,
        store: &Store,
        log: LogId,
        batches: &[(&str, usize)],
        data_bytes: usize,
    ) -> Block {
        self.block_of(Epoch::FIRST.major, store, log, batches, data_bytes)
    }

    /// As [`Writer::block`], in a generation of the log.
    pub(crate) fn block_of(
        &mut self,
        major: u32,
        store: &Store,
        log: LogId,
        batches: &[(&str, usize)],
        data_bytes: usize,
    ) -> Block {
        let head = store.submitted_head(log);
        let epoch = Epoch { major, minor: 0 };
        let mut builder = BlockBuilder::new(log, Incarnation(1), epoch);
        for (name, count) in batches {
            let stream = stream(name);
            let next = self.revisions.entry((log, stream.clone())).or_default();
            let events: Vec<NewEvent> = (0..*count)
                .map(|_| {
                    self.next_id += 1;
                    event(self.next_id, data_bytes)
                })
                .collect();
            self.clock = self.clock.max(head.timestamp.0) + 16;
            let first = Revision(*next);
            *next += *count as u64;
            builder.push_batch(Timestamp(self.clock), &stream, first, &events);
        }
        builder.seal(head.position.plus(1), head.chain)
    }

    /// Another region writes `count` events of a stream that moved there, and gives it back.
    pub(crate) fn write_elsewhere(&mut self, log: LogId, name: &str, count: u64) {
        *self.revisions.entry((log, stream(name))).or_default() += count;
    }

    /// Takes the revisions from what a store holds after a crash.
    pub(crate) fn learn(&mut self, store: &Store) {
        self.revisions.clear();
        for event in events_of(store) {
            let next = self
                .revisions
                .entry((event.dot.log(), event.stream))
                .or_default();
            *next = (*next).max(event.revision.0 + 1);
        }
    }
}

pub(crate) type Answers = Arc<Mutex<Vec<(Block, Result<(), CommitError>)>>>;

/// Submits a block; its answer will be in `answers`.
pub(crate) fn submit(store: &Store, block: Block, answers: &Answers) {
    let answers = Arc::clone(answers);
    let kept = block.clone();
    let done = move |answer| {
        answers
            .lock()
            .expect("no test panics here")
            .push((kept, answer));
    };
    store
        .submit(block, Box::new(done))
        .expect("the block continues its log");
}

/// Commits everything that is queued and keeps house.
pub(crate) fn settle(store: &Store) {
    loop {
        let mut worked = false;
        while let Some(group) = store.commit_begin() {
            store.commit_finish(group);
            worked = true;
        }
        while store.housekeep() {
            worked = true;
        }
        if !worked {
            return;
        }
    }
}

/// Submits and commits; panics when it is not acknowledged.
pub(crate) fn commit(store: &Store, block: Block) {
    let answers = Answers::default();
    submit(store, block, &answers);
    settle(store);
    let answers = answers.lock().expect("no test panics here");
    assert!(matches!(answers[..], [(_, Ok(()))]), "{answers:?}");
}

/// A store with `blocks` blocks of one log, several segments long.
pub(crate) fn filled(disk: &SimDisk, blocks: usize) -> (Arc<Store>, Vec<Block>) {
    let (store, _) = open(disk);
    let mut writer = Writer::default();
    let mut made = Vec::new();
    for number in 0..blocks {
        let name = format!("order-{}", number % 7);
        let block = writer.block(&store, log(1), &[(name.as_str(), 3)], 100);
        commit(&store, block.clone());
        made.push(block);
    }
    (store, made)
}

pub(crate) fn blocks_of(store: &Store, log: LogId) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    loop {
        let after = blocks
            .last()
            .map_or(Position::ZERO, |block| block.header().last_position());
        let more = store.read_log(log, after, 3000).expect("the log is sound");
        if more.is_empty() {
            return blocks;
        }
        blocks.extend(more);
    }
}

pub(crate) fn scanned(store: &Store) -> Vec<Block> {
    let mut at = LogOffset::default();
    let mut blocks = Vec::new();
    loop {
        let page = store.scan(at, 2000).expect("the disk is sound");
        blocks.extend(page.blocks.into_iter().map(|(_, block)| block));
        at = page.next;
        if page.at_end {
            return blocks;
        }
    }
}

pub(crate) fn events_of(store: &Store) -> Vec<RecordedEvent> {
    scanned(store)
        .iter()
        .flat_map(|block| block.to_events().expect("committed blocks decode"))
        .collect()
}

/// Checks what always holds of an open store whose heads are known.
pub(crate) fn check(store: &Store) {
    let mut all = scanned(store);
    all.sort_by_key(|block| (block.header().log, block.header().first_position));
    let mut by_log = Vec::new();
    for head in store.heads() {
        let blocks = blocks_of(store, head.log);
        let mut position = Position::ZERO;
        let mut chain = meridian_event::Chain::EMPTY;
        for block in &blocks {
            assert_eq!(block.header().first_position, position.plus(1), "dense");
            assert_eq!(block.header().prev_chain, chain, "identical");
            position = block.header().last_position();
            chain = block.chain();
        }
        assert_eq!((head.position, head.chain), (position, chain));
        by_log.extend(blocks);
    }
    assert_eq!(all, by_log, "both ways of reading give the same blocks");
}

pub(crate) fn verified(disk: &SimDisk) -> VerifyReport {
    verify(disk).expect("no node has the folder open")
}

pub(crate) fn segment_files(disk: &SimDisk) -> Vec<String> {
    let names = disk.list("log").expect("the disk is sound");
    names
        .into_iter()
        .filter(|name| name.ends_with(".seg"))
        .collect()
}

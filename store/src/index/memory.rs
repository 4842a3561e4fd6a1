//! The index of a segment that is being written, or whose index file is yet to be made.
//!
//! Every commit inserts into it before anyone is answered, so streams and ids are hashed: in sorted
//! maps an event cost over a microsecond here. They are sorted when the index file is written.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use meridian_clock::{LogId, Position, RegionId, Timestamp};
use meridian_event::{BlockHeader, Chain, Revision};

use super::{BlockRow, EventKeys, LogSpan, OriginPart, Place, StreamRow, Summary};
use crate::envelope::Envelope;

// Places are multiples of 8 within a file, so 32 bits of eighths reach 32 GiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct SmallPlace {
    pub(super) eighth: u32,
    pub(super) ordinal: u32,
}

impl SmallPlace {
    pub(super) fn new(offset: u64, ordinal: u32) -> Self {
        let eighth = u32::try_from(offset / 8).expect("segments are shorter than 32 GiB");
        Self { eighth, ordinal }
    }

    pub(super) fn place(self) -> Place {
        Place {
            offset: u64::from(self.eighth) * 8,
            ordinal: self.ordinal,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryBlock {
    pub(super) count: u32,
    pub(super) eighth: u32,
    pub(super) bytes: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryEvent {
    pub(super) revision: Revision,
    pub(super) timestamp: Timestamp,
    pub(super) place: SmallPlace,
}

/// What one origin wrote to a stream, ascending by revision.
#[derive(Debug)]
struct OriginEvents {
    origin: RegionId,
    // Most streams of a segment have few events there, many have one.
    first: MemoryEvent,
    rest: Vec<MemoryEvent>,
}

impl OriginEvents {
    fn insert(&mut self, event: MemoryEvent) {
        let last = self.rest.last().unwrap_or(&self.first);
        if event.revision > last.revision {
            self.rest.push(event);
            return;
        }
        // No sound sequencer comes here. What was written last is what counts, as in a table.
        let mut all: Vec<MemoryEvent> = self.iter().collect();
        match all.binary_search_by_key(&event.revision, |it| it.revision) {
            Ok(at) => all[at] = event,
            Err(at) => all.insert(at, event),
        }
        self.first = all.remove(0);
        self.rest = all;
    }

    fn last(&self) -> MemoryEvent {
        *self.rest.last().unwrap_or(&self.first)
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = MemoryEvent> + '_ {
        std::iter::once(self.first).chain(self.rest.iter().copied())
    }

    fn from(&self, from: Revision) -> impl Iterator<Item = MemoryEvent> + '_ {
        let skipped = self.rest.partition_point(|it| it.revision < from);
        let first = (self.first.revision >= from).then_some(self.first);
        first
            .into_iter()
            .chain(self.rest[skipped..].iter().copied())
    }

    fn down_from(&self, from: Revision) -> impl Iterator<Item = MemoryEvent> + '_ {
        let until = self.rest.partition_point(|it| it.revision <= from);
        let first = (self.first.revision <= from).then_some(self.first);
        self.rest[..until].iter().rev().copied().chain(first)
    }
}

/// A stream's events by origin, in ascending order. Nearly always there is one origin.
#[derive(Debug)]
struct StreamEvents {
    first: OriginEvents,
    others: Vec<OriginEvents>,
}

impl StreamEvents {
    fn origins(&self) -> impl Iterator<Item = &OriginEvents> {
        std::iter::once(&self.first).chain(&self.others)
    }

    fn insert(&mut self, origin: RegionId, event: MemoryEvent) {
        if self.first.origin == origin {
            self.first.insert(event);
            return;
        }
        if let Some(other) = self.others.iter_mut().find(|it| it.origin == origin) {
            other.insert(event);
            return;
        }
        self.others.push(OriginEvents {
            origin,
            first: event,
            rest: Vec::new(),
        });
        self.others.sort_by_key(|it| it.origin);
        if self.others[0].origin < self.first.origin {
            std::mem::swap(&mut self.first, &mut self.others[0]);
        }
    }
}

// Half as wide as a `u128` that has to be aligned.
type Key = [u64; 2];

fn halves(key: u128) -> Key {
    [(key >> 64) as u64, key as u64]
}

fn whole(key: Key) -> u128 {
    (u128::from(key[0]) << 64) | u128::from(key[1])
}

/// The three tables in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryIndex {
    pub(crate) summary: Summary,
    pub(super) blocks: BTreeMap<(LogId, Position), MemoryBlock>,
    streams: HashMap<Key, StreamEvents>,
    ids: HashMap<Key, SmallPlace>,
}

impl MemoryIndex {
    /// Takes in a sound block whose envelope begins at `offset`.
    pub(crate) fn insert(
        &mut self,
        header: &BlockHeader,
        chain: Chain,
        offset: u64,
        bytes: u32,
        events: &[EventKeys],
    ) {
        self.insert_row(BlockRow {
            log: header.log,
            first: header.first_position,
            count: header.count,
            offset,
            bytes,
        });
        for (ordinal, event) in (0..).zip(events) {
            let place = SmallPlace::new(offset, ordinal);
            let origin = header.log.origin;
            let row = MemoryEvent {
                revision: event.revision,
                timestamp: event.timestamp,
                place,
            };
            match self.streams.entry(halves(event.stream)) {
                Entry::Occupied(mut stream) => stream.get_mut().insert(origin, row),
                Entry::Vacant(vacant) => {
                    let first = OriginEvents {
                        origin,
                        first: row,
                        rest: Vec::new(),
                    };
                    let others = Vec::new();
                    vacant.insert(StreamEvents { first, others });
                }
            }
            // A repeated id is found where it was first written.
            self.ids.entry(halves(event.id)).or_insert(place);
        }
        self.summary.events += events.len() as u64;
        let fresh = LogSpan {
            log: header.log,
            first: header.first_position,
            last: header.last_position(),
            chain_before: Some(header.prev_chain),
            chain,
            incarnation: header.incarnation,
            epoch: header.epoch,
            timestamp: header.last_timestamp,
        };
        match self.summary.span_mut(header.log) {
            Ok(span) => {
                *span = LogSpan {
                    first: span.first,
                    chain_before: span.chain_before,
                    ..fresh
                }
            }
            Err(at) => self.summary.spans.insert(at, fresh),
        }
    }

    /// Takes in a damaged block of which only the envelope is sound.
    pub(crate) fn insert_damaged(&mut self, envelope: &Envelope) {
        self.insert_row(BlockRow {
            log: envelope.log,
            first: envelope.first_position,
            count: envelope.count,
            offset: envelope.own.offset,
            bytes: envelope.payload_bytes,
        });
        let last = envelope.last_position();
        match self.summary.span_mut(envelope.log) {
            Ok(span) => {
                span.last = last;
                span.chain = envelope.chain;
                span.incarnation = envelope.incarnation;
            }
            Err(at) => {
                let span = LogSpan {
                    log: envelope.log,
                    first: envelope.first_position,
                    last,
                    chain_before: None,
                    chain: envelope.chain,
                    incarnation: envelope.incarnation,
                    epoch: meridian_clock::Epoch::default(),
                    timestamp: Timestamp::ZERO,
                };
                self.summary.spans.insert(at, span);
            }
        }
    }

    /// An index with room for as much as `other` holds, because growing takes time.
    pub(crate) fn with_room_like(other: &Self) -> Self {
        Self {
            streams: HashMap::with_capacity(other.streams.len()),
            ids: HashMap::with_capacity(other.ids.len()),
            ..Self::default()
        }
    }

    /// The hashes of the streams in it, ascending.
    #[expect(clippy::disallowed_methods, reason = "the keys are sorted at once")]
    pub(super) fn streams(&self) -> Vec<u128> {
        let mut streams: Vec<u128> = self.streams.keys().copied().map(whole).collect();
        streams.sort_unstable();
        streams
    }

    /// The events in it: stream, origin, and the rest; ascending by stream, origin and revision.
    pub(super) fn events(&self) -> impl Iterator<Item = (u128, RegionId, MemoryEvent)> + '_ {
        self.streams().into_iter().flat_map(move |stream| {
            let events = self.streams.get(&halves(stream));
            events.into_iter().flat_map(move |events| {
                let of_origin = move |it: &OriginEvents| {
                    let origin = it.origin;
                    let events: Vec<MemoryEvent> = it.iter().collect();
                    events.into_iter().map(move |event| (stream, origin, event))
                };
                events.origins().flat_map(of_origin)
            })
        })
    }

    /// The ids in it with their places, ascending.
    #[expect(clippy::disallowed_methods, reason = "the ids are sorted at once")]
    pub(super) fn ids(&self) -> Vec<(u128, SmallPlace)> {
        let pair = |(id, place): (&Key, &SmallPlace)| (whole(*id), *place);
        let mut ids: Vec<(u128, SmallPlace)> = self.ids.iter().map(pair).collect();
        ids.sort_unstable_by_key(|(id, _)| *id);
        ids
    }

    /// The streams, origins and revisions in it, ascending.
    pub(crate) fn stream_keys(&self) -> impl Iterator<Item = (u128, RegionId, Revision)> + '_ {
        self.events()
            .map(|(stream, origin, event)| (stream, origin, event.revision))
    }

    fn insert_row(&mut self, row: BlockRow) {
        let block = MemoryBlock {
            count: row.count,
            eighth: SmallPlace::new(row.offset, 0).eighth,
            bytes: row.bytes,
        };
        self.blocks.insert((row.log, row.first), block);
    }

    pub(super) fn block_before(&self, log: LogId, position: Position) -> Option<BlockRow> {
        let (key, block) = self.blocks.range(..=(log, position)).next_back()?;
        Some(row(*key, *block))
    }

    pub(super) fn blocks_from(&self, log: LogId, first: Position, limit: usize) -> Vec<BlockRow> {
        self.blocks
            .range((log, first)..=(log, Position(u64::MAX)))
            .take(limit)
            .map(|(key, block)| row(*key, *block))
            .collect()
    }

    pub(super) fn blocks_between(&self, from: u64, until: u64) -> Vec<BlockRow> {
        self.blocks
            .iter()
            .map(|(key, block)| row(*key, *block))
            .filter(|row| row.offset >= from && row.offset < until)
            .collect()
    }

    pub(super) fn event(&self, id: u128) -> Option<Place> {
        self.ids.get(&halves(id)).map(|place| place.place())
    }

    pub(super) fn stream_origins(&self, stream: u128) -> Vec<OriginPart> {
        let Some(events) = self.streams.get(&halves(stream)) else {
            return Vec::new();
        };
        events
            .origins()
            .map(|it| OriginPart {
                origin: it.origin,
                first: it.first.revision,
                last: it.last().revision,
                count: 1 + it.rest.len() as u64,
            })
            .collect()
    }

    pub(super) fn stream_rows(
        &self,
        stream: u128,
        origin: RegionId,
        from: Revision,
        forwards: bool,
        limit: usize,
    ) -> Vec<StreamRow> {
        let events = self.streams.get(&halves(stream));
        let Some(events) = events.and_then(|it| it.origins().find(|it| it.origin == origin)) else {
            return Vec::new();
        };
        let row = |event: MemoryEvent| StreamRow {
            origin,
            revision: event.revision,
            timestamp: event.timestamp,
            place: event.place.place(),
        };
        match forwards {
            true => events.from(from).take(limit).map(row).collect(),
            false => events.down_from(from).take(limit).map(row).collect(),
        }
    }
}

fn row((log, first): (LogId, Position), block: MemoryBlock) -> BlockRow {
    BlockRow {
        log,
        first,
        count: block.count,
        offset: u64::from(block.eighth) * 8,
        bytes: block.bytes,
    }
}

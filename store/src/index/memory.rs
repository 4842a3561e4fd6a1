//! The index of a segment that is being written, or whose index file is yet to be made.

use std::collections::BTreeMap;

use meridian_clock::{LogId, Position, RegionId, Timestamp};
use meridian_event::{BlockHeader, Chain, Revision};

use super::{BlockRow, EventKeys, LogSpan, Place, StreamRow, Summary};
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

/// The three tables in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryIndex {
    pub(crate) summary: Summary,
    pub(super) blocks: BTreeMap<(LogId, Position), MemoryBlock>,
    pub(super) streams: BTreeMap<(u128, RegionId, Revision), (Timestamp, SmallPlace)>,
    pub(super) ids: BTreeMap<u128, SmallPlace>,
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
            let key = (event.stream, header.log.origin, event.revision);
            self.streams.insert(key, (event.timestamp, place));
            // A repeated id is found where it was first written.
            self.ids.entry(event.id).or_insert(place);
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

    /// The streams, origins and revisions in it, ascending.
    pub(crate) fn stream_keys(&self) -> impl Iterator<Item = (u128, RegionId, Revision)> + '_ {
        self.streams.keys().copied()
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
        self.ids.get(&id).map(|place| place.place())
    }

    pub(super) fn stream_origins(&self, stream: u128) -> Vec<(RegionId, Revision, Revision)> {
        let mut origins = Vec::new();
        let mut from = (stream, RegionId(0), Revision(0));
        while let Some(((hash, origin, first), _)) = self.streams.range(from..).next() {
            if *hash != stream {
                break;
            }
            let until = (stream, *origin, Revision(u64::MAX));
            let last = self.streams.range(from..=until).next_back();
            origins.push((
                *origin,
                *first,
                last.map_or(*first, |((_, _, last), _)| *last),
            ));
            let Some(next) = origin.0.checked_add(1) else {
                break;
            };
            from = (stream, RegionId(next), Revision(0));
        }
        origins
    }

    pub(super) fn stream_rows(
        &self,
        stream: u128,
        origin: RegionId,
        from: Revision,
        forwards: bool,
        limit: usize,
    ) -> Vec<StreamRow> {
        let at = |revision| (stream, origin, revision);
        let row =
            |(key, value): (&(u128, RegionId, Revision), &(Timestamp, SmallPlace))| StreamRow {
                origin: key.1,
                revision: key.2,
                timestamp: value.0,
                place: value.1.place(),
            };
        if forwards {
            let range = self.streams.range(at(from)..=at(Revision(u64::MAX)));
            range.take(limit).map(row).collect()
        } else {
            let range = self.streams.range(at(Revision(0))..=at(from));
            range.rev().take(limit).map(row).collect()
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

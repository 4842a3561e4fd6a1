//! Finding blocks and events in one segment.
//!
//! Three tables, each sorted: the blocks of each origin log by position, the events of each stream
//! by origin and revision, and the events by id. They are held in memory for the segment that is
//! being written ([`MemoryIndex`]) and in one immutable file beside each sealed one
//! ([`FileIndex`]). Whatever an index says can be made anew from its segment.

mod file;
mod filter;
mod memory;
mod table;

use std::io;

use meridian_clock::{Epoch, Incarnation, LogId, Position, RegionId, Timestamp};
use meridian_event::{Block, BlockError, Chain, EventRef, Revision};
use serde::{Deserialize, Serialize};

pub(crate) use file::{FileIndex, write_index};
pub(crate) use memory::MemoryIndex;

/// Why an index could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexError {
    #[error("the disk failed")]
    Io(#[from] io::Error),
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// A block of an origin log in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRow {
    pub(crate) log: LogId,
    pub(crate) first: Position,
    pub(crate) count: u32,
    /// Where its envelope begins.
    pub(crate) offset: u64,
    /// The block's own length.
    pub(crate) bytes: u32,
}

impl BlockRow {
    pub(crate) fn last(&self) -> Position {
        Position(self.first.0 + u64::from(self.count) - 1)
    }
}

/// Where an event is in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Where the envelope of its block begins.
    pub(crate) offset: u64,
    /// Its place in the block, from 0.
    pub(crate) ordinal: u32,
}

/// An event of a stream in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamRow {
    pub(crate) origin: RegionId,
    pub(crate) revision: Revision,
    pub(crate) timestamp: Timestamp,
    pub(crate) place: Place,
}

/// What one origin wrote to a stream, as far as it is in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OriginPart {
    pub(crate) origin: RegionId,
    pub(crate) first: Revision,
    pub(crate) last: Revision,
    /// How many events; fewer than from first to last where others wrote between them.
    pub(crate) count: u64,
}

/// What is indexed of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EventKeys {
    pub(crate) stream: u128,
    pub(crate) revision: Revision,
    pub(crate) timestamp: Timestamp,
    pub(crate) id: u128,
}

/// What stands for a stream's name in an index: xxh3-128. A reader compares the name itself.
pub(crate) fn stream_hash(stream: &str) -> u128 {
    xxhash_rust::xxh3::xxh3_128(stream.as_bytes())
}

/// The keys of every event of `block`, in order. Each event is shown to `look` on the way.
pub(crate) fn keys_of(
    block: &Block,
    mut look: impl FnMut(&EventRef<'_>),
) -> Result<Vec<EventKeys>, BlockError> {
    let open = block.open()?;
    let mut keys = Vec::with_capacity(block.header().count.min(1 << 16) as usize);
    for event in open.events() {
        let event = event?;
        look(&event);
        keys.push(EventKeys {
            stream: stream_hash(event.stream),
            revision: event.revision,
            timestamp: event.timestamp,
            id: u128::from_be_bytes(event.id.to_bytes()),
        });
    }
    Ok(keys)
}

/// What a segment holds of one origin log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogSpan {
    pub(crate) log: LogId,
    pub(crate) first: Position,
    pub(crate) last: Position,
    /// The chain before its first block here, when that block is sound.
    pub(crate) chain_before: Option<Chain>,
    /// The chain after its last block here.
    pub(crate) chain: Chain,
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: Epoch,
    pub(crate) timestamp: Timestamp,
}

/// A run of positions that was found damaged when the index was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DamagedRow {
    pub(crate) log: LogId,
    pub(crate) first: Position,
    pub(crate) last: Position,
    pub(crate) offset: u64,
    pub(crate) reason: String,
}

/// What a segment holds as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// Where its entries end.
    pub(crate) end: u64,
    pub(crate) events: u64,
    /// Ascending by log.
    pub(crate) spans: Vec<LogSpan>,
    pub(crate) damaged: Vec<DamagedRow>,
    /// Damaged bytes that nothing names: where they begin and end.
    pub(crate) holes: Vec<(u64, u64)>,
    /// Where damaged bytes were given up.
    pub(crate) voids: Vec<(u64, u64)>,
}

impl Summary {
    pub(crate) fn span(&self, log: LogId) -> Option<&LogSpan> {
        self.spans
            .binary_search_by_key(&log, |span| span.log)
            .ok()
            .map(|at| &self.spans[at])
    }

    pub(crate) fn span_mut(&mut self, log: LogId) -> Result<&mut LogSpan, usize> {
        match self.spans.binary_search_by_key(&log, |span| span.log) {
            Ok(at) => Ok(&mut self.spans[at]),
            Err(at) => Err(at),
        }
    }
}

/// A segment's index, wherever it is.
#[derive(Debug)]
pub(crate) enum Index {
    Memory(MemoryIndex),
    File(FileIndex),
}

impl Index {
    pub(crate) fn summary(&self) -> &Summary {
        match self {
            Self::Memory(index) => &index.summary,
            Self::File(index) => index.summary(),
        }
    }

    /// The block of `log` that holds `position`.
    pub(crate) fn block_at(
        &self,
        log: LogId,
        position: Position,
    ) -> Result<Option<BlockRow>, IndexError> {
        let row = match self {
            Self::Memory(index) => index.block_before(log, position),
            Self::File(index) => index.block_before(log, position)?,
        };
        Ok(row.filter(|row| row.log == log && row.last() >= position))
    }

    /// Up to `limit` blocks of `log`, from the one that begins at `first` or later.
    pub(crate) fn blocks_from(
        &self,
        log: LogId,
        first: Position,
        limit: usize,
    ) -> Result<Vec<BlockRow>, IndexError> {
        match self {
            Self::Memory(index) => Ok(index.blocks_from(log, first, limit)),
            Self::File(index) => index.blocks_from(log, first, limit),
        }
    }

    /// The blocks whose envelopes begin in `from..until`, in order of place.
    pub(crate) fn blocks_between(
        &self,
        from: u64,
        until: u64,
    ) -> Result<Vec<BlockRow>, IndexError> {
        let mut rows = match self {
            Self::Memory(index) => index.blocks_between(from, until),
            Self::File(index) => index.blocks_between(from, until)?,
        };
        rows.sort_by_key(|row| row.offset);
        Ok(rows)
    }

    /// Where the event with this id is.
    pub(crate) fn event(&self, id: u128) -> Result<Option<Place>, IndexError> {
        match self {
            Self::Memory(index) => Ok(index.event(id)),
            Self::File(index) => index.event(id),
        }
    }

    /// What each origin wrote to a stream, as far as it is here, by origin.
    pub(crate) fn stream_origins(&self, stream: u128) -> Result<Vec<OriginPart>, IndexError> {
        match self {
            Self::Memory(index) => Ok(index.stream_origins(stream)),
            Self::File(index) => index.stream_origins(stream),
        }
    }

    /// Up to `limit` events that `origin` wrote to a stream: from `from` upwards, or downwards.
    pub(crate) fn stream_rows(
        &self,
        stream: u128,
        origin: RegionId,
        from: Revision,
        forwards: bool,
        limit: usize,
    ) -> Result<Vec<StreamRow>, IndexError> {
        match self {
            Self::Memory(index) => Ok(index.stream_rows(stream, origin, from, forwards, limit)),
            Self::File(index) => index.stream_rows(stream, origin, from, forwards, limit),
        }
    }
}

//! What a store is asked and what it answers.

use meridian_clock::{Dot, Epoch, Incarnation, LogId, Position, Timestamp};
use meridian_event::{Block, Chain, EventId, Revision, StreamId};

use crate::{DamagedRange, Hole, LogOffset};

/// How far an origin log goes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// Which log.
    pub log: LogId,
    /// The life of that log that its last block was written in.
    pub incarnation: Incarnation,
    /// The epoch that its last block was written in.
    pub epoch: Epoch,
    /// The position of its last event; 0 when it is empty.
    pub position: Position,
    /// The chain hash after its last block.
    pub chain: Chain,
    /// The timestamp of its last batch.
    pub timestamp: Timestamp,
}

impl LogHead {
    /// The head of a log without events.
    pub fn empty(log: LogId) -> Self {
        Self {
            log,
            incarnation: Incarnation::default(),
            epoch: Epoch::default(),
            position: Position::ZERO,
            chain: Chain::EMPTY,
            timestamp: Timestamp::ZERO,
        }
    }
}

/// What opening a store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// There was no event at all: a new node, or one that lost its disk.
    pub was_empty: bool,
    /// Something at the end of the log was cut, because it was never acknowledged.
    pub tail_cut: bool,
    /// A log may have gone further than its head says: the tail was cut, or bytes are damaged of
    /// which nothing tells what they held. Stays so at each opening until
    /// [`Store::settle_heads`](crate::Store::settle_heads): ask the peers for their copies of this node's own logs first.
    pub heads_uncertain: bool,
    /// What was committed and cannot be read.
    pub damaged: Vec<DamagedRange>,
    /// Damaged bytes of which nothing tells what they held; a copy of the segment is kept in the
    /// folder `damaged`.
    pub holes: Vec<Hole>,
    /// The highest timestamp in any log.
    pub last_stamp: Timestamp,
}

/// Whether the store takes blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Writable,
    /// The disk is full; it does again once there is room.
    DiskFull {
        /// What the disk said.
        reason: String,
    },
    /// A write or sync failed; it does not until it is opened anew.
    Failed {
        /// What failed.
        reason: String,
    },
}

/// Figures for operators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// How many segments there are, the open one included.
    pub segments: u64,
    /// How many bytes of them hold blocks.
    pub bytes: u64,
    /// How many events are held.
    pub events: u64,
    /// How many blocks were committed since opening.
    pub blocks_committed: u64,
    /// How many groups were synced since opening.
    pub fsyncs: u64,
    /// How many bytes wait to be written.
    pub queue_bytes: u64,
    /// How many damaged ranges are known.
    pub damaged: u64,
}

/// Which way a stream is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From old to new.
    Forwards,
    /// From new to old.
    Backwards,
}

/// Which part of a stream to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRange {
    /// The first event to give, in the direction of reading. Backwards, a number beyond the end
    /// stands for the last event.
    pub from: Revision,
    /// Which way.
    pub direction: Direction,
    /// At most this many events.
    pub limit: usize,
    /// At most this many bytes of data and metadata, but at least one event.
    pub bytes_max: usize,
    /// Whether regions write the stream in turn, so that its revisions are one row: then nothing is
    /// given that stands behind a revision that is not here yet.
    pub in_turn: bool,
}

/// Where an event is, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its identity.
    pub dot: Dot,
    /// Its writer's id for it.
    pub id: EventId,
    /// Its stream.
    pub stream: StreamId,
    /// Its place in the stream.
    pub revision: Revision,
    /// When its batch was stamped.
    pub timestamp: Timestamp,
}

/// A part of the physical log.
#[derive(Clone, Debug, Default)]
pub struct ScanPage {
    /// Blocks in the order they arrived, each with where it begins.
    pub blocks: Vec<(LogOffset, Block)>,
    /// Where to go on.
    pub next: LogOffset,
    /// Nothing was committed beyond `next` when this page was read.
    pub at_end: bool,
    /// What lay in between and is damaged.
    pub skipped: Vec<DamagedRange>,
}

//! What is known to be damaged.

use std::io;

use meridian_clock::{LogId, Position};
use meridian_event::Chain;

/// Events that were committed here and cannot be read now. They are not served; another region
/// that holds them can give them back through [`crate::Store::repair`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DamagedRange {
    /// The origin log they belong to.
    pub log: LogId,
    /// The first position that cannot be read.
    pub first: Position,
    /// The last position that cannot be read.
    pub last: Position,
    /// The segment they lie in.
    pub segment: u64,
    /// Where in the segment's file the damage begins.
    pub offset: u64,
    /// What was found there.
    pub reason: String,
}

impl std::fmt::Display for DamagedRange {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "log {} positions {}..={} in segment {} at byte {}: {}",
            self.log, self.first, self.last, self.segment, self.offset, self.reason
        )
    }
}

/// Damaged bytes of which nothing tells what they held.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hole {
    /// The segment it lies in.
    pub segment: u64,
    /// Where in the segment's file it begins.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
}

/// Why a block was not put back in its place.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Its positions are not those of one damaged block. Fetch the blocks from
    /// [`DamagedRange::first`] on, as the peer has them.
    #[error(
        "the block {log} {first}..={last} does not cover what is damaged; \
         fetch the damaged range again"
    )]
    WrongRange {
        /// The log of the block.
        log: LogId,
        /// Its first position.
        first: Position,
        /// Its last position.
        last: Position,
    },
    /// These are not the bytes that were here. The peer's copy of this log differs from ours.
    #[error(
        "the block {log} {first} hashes to {actual}, but {expected} was here; \
         ask another region, and compare digests with this one"
    )]
    OtherBytes {
        /// The log of the block.
        log: LogId,
        /// Its first position.
        first: Position,
        /// The chain after the block that was here.
        expected: Chain,
        /// The chain after the block that was offered.
        actual: Chain,
    },
    /// The damage lies in the segment that is being written. It has been asked to be sealed; offer
    /// the block again after the next commit.
    #[error("segment {segment} is still being written; offer the block again after a commit")]
    SegmentOpen {
        /// The open segment.
        segment: u64,
    },
    /// The sound copy could not be written. The damaged segment is still in place.
    #[error("write a sound copy of segment {segment}")]
    Io {
        /// The damaged segment.
        segment: u64,
        /// What the disk said.
        source: io::Error,
    },
}

//! What is known to be damaged.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use meridian_clock::{LogId, Position};
use meridian_event::Chain;

use crate::ReadError;
use crate::index::Summary;

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
    /// The file that held it is gone, so there is no place to put it back to. Stop the node, remove
    /// its data folder and let it fetch everything from its peers.
    #[error(
        "the segment that held the block {log} {first} is gone; \
         stop the node, remove its data folder and start it again"
    )]
    NoPlace {
        /// The log of the block.
        log: LogId,
        /// Its first position.
        first: Position,
    },
    /// The damage lies in the segment that is being written. It has been asked to be sealed; offer
    /// the block again after the next commit.
    #[error("segment {segment} is still being written; offer the block again in a moment")]
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

#[derive(Debug)]
struct Known {
    range: DamagedRange,
    // Its events are in an index, so that looking for them ends in an error and not in nothing.
    indexed: bool,
}

/// What is known to be damaged in an open store.
#[derive(Debug, Default)]
pub(crate) struct Register {
    ranges: BTreeMap<(LogId, Position), Known>,
    holes: BTreeMap<(u64, u64), u64>,
    voids: BTreeMap<(u64, u64), u64>,
}

impl Register {
    /// Notes a range whose events are in an index.
    pub(crate) fn note(&mut self, range: DamagedRange) {
        self.insert(range, true);
    }

    /// Notes a range whose events are in no index.
    pub(crate) fn note_unindexed(&mut self, range: DamagedRange) {
        self.insert(range, false);
    }

    fn insert(&mut self, range: DamagedRange, indexed: bool) {
        if self.covering(range.log, range.first).is_none() {
            tracing::warn!(%range, "damage found");
            let key = (range.log, range.first);
            self.ranges.insert(key, Known { range, indexed });
        }
    }

    /// Refuses an answer that a range decides whose events are in no index, if one of those `counts`.
    ///
    /// # Errors
    /// With that range.
    pub(crate) fn refuse_unindexed(
        &self,
        counts: impl Fn(&DamagedRange) -> bool,
    ) -> Result<(), ReadError> {
        let mut unindexed = self.ranges.values().filter(|known| !known.indexed);
        match unindexed.find(|known| counts(&known.range)) {
            Some(known) => Err(ReadError::Damaged(known.range.clone())),
            None => Ok(()),
        }
    }

    /// Notes what was found when a segment's index was made.
    pub(crate) fn take_summary(&mut self, segment: u64, summary: &Summary) {
        for row in &summary.damaged {
            self.note_unindexed(DamagedRange {
                log: row.log,
                first: row.first,
                last: row.last,
                segment,
                offset: row.offset,
                reason: row.reason.clone(),
            });
        }
        for (start, end) in &summary.holes {
            self.holes.insert((segment, *start), *end);
        }
        for (start, end) in &summary.voids {
            self.voids.insert((segment, *start), *end);
        }
    }

    /// Forgets what is known of a segment, because it is about to be read again.
    pub(crate) fn forget_segment(&mut self, segment: u64) {
        self.ranges
            .retain(|_, known| known.range.segment != segment);
        self.holes.retain(|(of, _), _| *of != segment);
        self.voids.retain(|(of, _), _| *of != segment);
    }

    /// The range that holds `position`.
    pub(crate) fn covering(&self, log: LogId, position: Position) -> Option<&DamagedRange> {
        let (_, known) = self.ranges.range(..=(log, position)).next_back()?;
        let range = &known.range;
        (range.log == log && range.last >= position).then_some(range)
    }

    /// The damaged ranges that are thought to lie in these bytes of `segment`.
    pub(crate) fn within(&self, segment: u64, bytes: Range<u64>) -> Vec<DamagedRange> {
        let known = self.ranges.values().map(|known| &known.range);
        known
            .filter(|it| it.segment == segment && bytes.contains(&it.offset))
            .cloned()
            .collect()
    }

    /// The damaged ranges, ascending by log and position.
    pub(crate) fn ranges(&self) -> Vec<DamagedRange> {
        self.ranges
            .values()
            .map(|known| known.range.clone())
            .collect()
    }

    /// How many damaged ranges are known.
    pub(crate) fn len(&self) -> u64 {
        self.ranges.len() as u64
    }

    /// Whether a range of `segment` is damaged.
    pub(crate) fn concerns(&self, segment: u64) -> bool {
        self.ranges
            .values()
            .any(|known| known.range.segment == segment)
    }

    /// The holes, ascending by place.
    pub(crate) fn holes(&self) -> Vec<Hole> {
        let hole = |((segment, offset), end): (&(u64, u64), &u64)| Hole {
            segment: *segment,
            offset: *offset,
            bytes: end - offset,
        };
        self.holes.iter().map(hole).collect()
    }

    /// Forgets one range, which was put back.
    pub(crate) fn forget(&mut self, log: LogId, first: Position) {
        self.ranges.remove(&(log, first));
    }

    /// As [`Register::forget`], of a range whose events are in an index. Returns whether it was one.
    pub(crate) fn forget_if_indexed(&mut self, log: LogId, first: Position) -> bool {
        let indexed = self.ranges.get(&(log, first)).is_some_and(|it| it.indexed);
        if indexed {
            self.forget(log, first);
        }
        indexed
    }

    /// Notes damaged bytes of which nothing tells what they held.
    pub(crate) fn note_hole(&mut self, segment: u64, start: u64, end: u64) {
        self.holes.insert((segment, start), end);
    }

    /// The place of the last damaged or given-up bytes before the end of `segment`.
    pub(crate) fn last_hole(&self, segment: u64) -> Option<(u64, u64)> {
        let before = |places: &BTreeMap<(u64, u64), u64>| {
            let (place, _) = places.range(..=(segment, u64::MAX)).next_back()?;
            Some(*place)
        };
        before(&self.holes).max(before(&self.voids))
    }

    /// Damaged or given-up bytes that begin at this place: where they end.
    pub(crate) fn room_at(&self, segment: u64, start: u64) -> Option<u64> {
        let place = (segment, start);
        self.holes
            .get(&place)
            .or_else(|| self.voids.get(&place))
            .copied()
    }
}

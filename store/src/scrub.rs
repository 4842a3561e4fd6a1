//! Reading sealed segments again, piece by piece, to find damage before a reader does.

use std::collections::BTreeMap;
use std::io;

use meridian_clock::LogId;
use meridian_event::{Block, Chain};

use crate::core::{Core, Segment};
use crate::index::{Index, IndexError};
use crate::segment::{HeaderState, SEGMENT_HEADER_BYTES, read_header};
use crate::walk::{Bad, Window, entry_at};
use crate::{DamagedRange, LogOffset};

/// Where scrubbing stands. Begin with the default.
#[derive(Clone, Debug, Default)]
pub struct ScrubCursor {
    at: LogOffset,
    // The chain after the last block of each log that was read in this segment.
    chains: BTreeMap<LogId, Chain>,
}

/// What one step of scrubbing did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// How many bytes were read.
    pub bytes: u64,
    /// What was found damaged in this step.
    pub found: Vec<DamagedRange>,
    /// Every sealed segment has been read; the cursor begins anew.
    pub round_done: bool,
}

impl Core {
    pub(crate) fn scrub(&self, cursor: &mut ScrubCursor, bytes_max: usize) -> ScrubStep {
        let mut step = ScrubStep::default();
        for segment in self.sealed_segments() {
            if segment.number < cursor.at.segment {
                continue;
            }
            if segment.number > cursor.at.segment {
                cursor.at = LogOffset::new(segment.number, SEGMENT_HEADER_BYTES);
                cursor.chains.clear();
            }
            match self.scrub_segment(&segment, cursor, bytes_max as u64, &mut step) {
                Ok(true) => {}
                Ok(false) => return step,
                // The next round tries again; a reader gets the error itself.
                Err(error) => {
                    tracing::warn!(%error, segment = segment.number, "a segment cannot be scrubbed");
                }
            }
            cursor.at = LogOffset::new(segment.number + 1, 0);
            cursor.chains.clear();
        }
        *cursor = ScrubCursor::default();
        step.round_done = true;
        step
    }

    // Returns whether the segment's end was reached.
    fn scrub_segment(
        &self,
        segment: &Segment,
        cursor: &mut ScrubCursor,
        bytes_max: u64,
        step: &mut ScrubStep,
    ) -> io::Result<bool> {
        let number = segment.number;
        let end = segment.index().summary().end;
        let file = self.files.segment(number)?;
        let mut window = Window::new(&*file)?;
        window.limit(end);
        let mut at = cursor.at.offset.max(SEGMENT_HEADER_BYTES);
        while at < end {
            if step.bytes >= bytes_max {
                cursor.at = LogOffset::new(number, at);
                return Ok(false);
            }
            let mut bad = match entry_at(&mut window, number, at)? {
                Ok(entry) => {
                    let bytes = entry.envelope.entry_bytes();
                    let wrong = entry.block.as_ref().and_then(|block| {
                        let chain = block.chain();
                        let before = cursor.chains.insert(block.header().log, chain);
                        if chain != entry.envelope.chain {
                            return Some("the block does not hash to the chain in its envelope");
                        }
                        let continues = before.is_none_or(|it| it == block.header().prev_chain);
                        (!continues).then_some("the block does not continue its log's chain")
                    });
                    let Some(reason) = wrong else {
                        if let Some(block) = &entry.block
                            && self.acquit(number, at, block)
                        {
                            self.rebuild(segment)?;
                        }
                        at += bytes;
                        step.bytes += bytes;
                        continue;
                    };
                    Bad {
                        offset: at,
                        end: at + bytes,
                        reason: reason.to_owned(),
                        envelope: Some(Box::new(entry.envelope)),
                    }
                }
                Err(bad) => bad,
            };
            self.find_end(&mut window, number, &mut bad, end)?;
            // The chains across the gap are not known.
            cursor.chains.clear();
            let found = self.note_bad(segment, &bad).map_err(io::Error::other)?;
            step.found.extend(found);
            step.bytes += bad.end - at;
            at = bad.end;
        }
        step.bytes += self.scrub_index(segment)?;
        // The file may have been replaced meanwhile.
        let file = self.files.segment(number)?;
        if read_header(&*file, number)? != HeaderState::Sound {
            self.restore_header(number)?;
        }
        self.void_holes(segment)?;
        Ok(true)
    }

    // What is read now was damaged on its way when it was read before. Returns whether the index
    // lacks its events.
    fn acquit(&self, segment: u64, offset: u64, block: &Block) -> bool {
        let header = block.header();
        let mut damage = self.damage();
        let known = damage.covering(header.log, header.first_position);
        let is_here = known.is_some_and(|range| {
            (range.segment, range.offset, range.first) == (segment, offset, header.first_position)
        });
        is_here && !damage.forget_if_indexed(header.log, header.first_position)
    }

    fn scrub_index(&self, segment: &Segment) -> io::Result<u64> {
        let checked = match &*segment.index() {
            Index::Memory(_) => return Ok(0),
            Index::File(index) => index.check(),
        };
        match checked {
            Ok(bytes) => Ok(bytes),
            Err(IndexError::Io(error)) => Err(error),
            Err(IndexError::Damaged(reason)) => {
                tracing::warn!(
                    segment = segment.number,
                    reason,
                    "an index file is damaged; making it anew from its segment"
                );
                self.rebuild(segment)?;
                Ok(0)
            }
        }
    }
}

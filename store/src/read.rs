//! Reading committed blocks: by origin log and position, and in the order they arrived.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use meridian_clock::{LogId, Position};
use meridian_event::Block;
use meridian_points::{Bug, planted};

use crate::core::{Core, Segment};
use crate::envelope::{ALIGN_BYTES, ENVELOPE_BYTES, Envelope, Kind};
use crate::index::BlockRow;
use crate::segment::SEGMENT_HEADER_BYTES;
use crate::walk::{Bad, Window, check_entry, entry_at, next_envelope};
use crate::{DamagedRange, LogOffset, ReadError, ScanPage};

// One page of a block table holds 170 rows.
const ROWS_AT_ONCE: usize = 128;

impl Core {
    pub(crate) fn read_log(
        &self,
        log: LogId,
        after: Position,
        bytes_max: usize,
    ) -> Result<Vec<Block>, ReadError> {
        let (segments, head) = {
            let view = self.view();
            let head = view
                .heads
                .get(&log)
                .map_or(Position::ZERO, |it| it.position);
            (Arc::clone(&view.segments), head)
        };
        let mut blocks = Vec::new();
        let mut bytes = 0;
        let mut next = Position(after.0.saturating_add(1));
        if next > head {
            return Ok(blocks);
        }
        // Tails are read far more often than beginnings.
        let mut first_segment = None;
        for (number, segment) in segments.iter().rev() {
            let span = segment.index().summary().span(log).copied();
            if let Some(span) = span.filter(|span| span.last >= next) {
                first_segment = Some(*number);
                if span.first <= next {
                    break;
                }
            }
        }
        let Some(first_segment) = first_segment else {
            return Ok(blocks);
        };
        for (_, segment) in segments.range(first_segment..) {
            loop {
                let start = match self.ask(segment, |index| index.block_at(log, next))? {
                    Some(row) => row.first,
                    None => next,
                };
                let rows =
                    self.ask(segment, |index| index.blocks_from(log, start, ROWS_AT_ONCE))?;
                let more = rows.len() == ROWS_AT_ONCE;
                for row in rows {
                    if row.first > next {
                        return self.cut_short(blocks, self.missing(log, next, row.first, segment));
                    }
                    let over = bytes + row.bytes as usize > bytes_max;
                    if over && !blocks.is_empty() || row.last() > head {
                        return Ok(blocks);
                    }
                    match self.read_row(segment, &row) {
                        Ok(block) => blocks.push(block),
                        Err(ReadError::Damaged(_)) if planted(Bug::SkipDamage) => {}
                        Err(error) => return self.cut_short(blocks, error),
                    }
                    bytes += row.bytes as usize;
                    next = row.last().plus(1);
                }
                if !more {
                    break;
                }
            }
            let later = segment.index().summary().span(log).copied();
            if let Some(span) = later.filter(|span| span.last >= next) {
                let until = span.last.plus(1);
                return self.cut_short(blocks, self.missing(log, next, until, segment));
            }
        }
        Ok(blocks)
    }

    // What was read before the trouble is good; the trouble is met again at the next call.
    fn cut_short(&self, blocks: Vec<Block>, error: ReadError) -> Result<Vec<Block>, ReadError> {
        match blocks.is_empty() {
            true => Err(error),
            false => Ok(blocks),
        }
    }

    pub(crate) fn missing(
        &self,
        log: LogId,
        next: Position,
        until: Position,
        segment: &Segment,
    ) -> ReadError {
        let known = self.damage().covering(log, next).cloned();
        ReadError::Damaged(known.unwrap_or_else(|| DamagedRange {
            log,
            first: next,
            last: Position(until.0 - 1),
            segment: segment.number,
            offset: SEGMENT_HEADER_BYTES,
            reason: "positions are missing".to_owned(),
        }))
    }

    /// Reads the block of an index row and checks that it is that block.
    pub(crate) fn read_row(&self, segment: &Segment, row: &BlockRow) -> Result<Block, ReadError> {
        let read = || {
            self.read_entry(segment.number, row.offset, row.bytes as usize)
                .map_err(|source| self.read_error(segment.number, source))
        };
        // A bit may have flipped on its way from the disk: what is sound at a second look is sound.
        let read = match read()? {
            Ok(block) => Ok(block),
            Err(_) => read()?,
        };
        let reason = match read {
            Ok(block) => {
                let header = block.header();
                if header.log == row.log && header.first_position == row.first {
                    return Ok(block);
                }
                "another block than the index names".to_owned()
            }
            Err(reason) => reason,
        };
        let range = DamagedRange {
            log: row.log,
            first: row.first,
            last: row.last(),
            segment: segment.number,
            offset: row.offset,
            reason,
        };
        self.damage().note(range.clone());
        Err(ReadError::Damaged(range))
    }

    /// Reads the block whose envelope is at `offset`, which is probably about `guess_bytes` long.
    pub(crate) fn read_entry(
        &self,
        segment: u64,
        offset: u64,
        guess_bytes: usize,
    ) -> io::Result<Result<Block, String>> {
        let file = self.files.segment(segment)?;
        let mut bytes = vec![0; ENVELOPE_BYTES + guess_bytes];
        let read = file.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
        let envelope = match Envelope::parse(&bytes, LogOffset::new(segment, offset)) {
            Ok(envelope) => envelope,
            Err(reason) => return Ok(Err(reason.to_owned())),
        };
        if envelope.kind != Kind::Block {
            return Ok(Err("no block is here".to_owned()));
        }
        let needed = ENVELOPE_BYTES + envelope.payload_bytes as usize;
        if bytes.len() < needed {
            let held = bytes.len();
            let left = file.len()?.saturating_sub(offset);
            if needed as u64 > left {
                return Ok(Err("the segment ends inside a block".to_owned()));
            }
            bytes.resize(needed, 0);
            let read = file.read_at(&mut bytes[held..], offset + held as u64)?;
            bytes.truncate(held + read);
        }
        bytes.truncate(needed);
        let payload = Bytes::from(bytes).slice(ENVELOPE_BYTES..);
        let entry = check_entry(offset, envelope, &payload).map_err(|bad| bad.reason);
        Ok(entry.and_then(|entry| entry.block.ok_or_else(|| "no block is here".to_owned())))
    }

    pub(crate) fn scan(&self, after: LogOffset, bytes_max: usize) -> Result<ScanPage, ReadError> {
        let (segments, end) = {
            let view = self.view();
            (Arc::clone(&view.segments), view.end)
        };
        let mut page = ScanPage {
            next: after,
            ..ScanPage::default()
        };
        let mut bytes = 0;
        for (number, segment) in segments.range(after.segment..) {
            let failed = |source| self.read_error(*number, source);
            let mut at = match *number == after.segment {
                true => after.offset.max(SEGMENT_HEADER_BYTES),
                false => SEGMENT_HEADER_BYTES,
            };
            let limit = match *number == end.segment {
                true => end.offset,
                false => segment.index().summary().end,
            };
            if at < limit {
                let file = self.files.segment(*number).map_err(failed)?;
                let mut window = Window::new(&*file).map_err(failed)?;
                window.limit(limit);
                window.in_pieces(bytes_max.saturating_sub(bytes).max(4096));
                while at < limit {
                    if bytes >= bytes_max {
                        page.next = LogOffset::new(*number, at);
                        return Ok(page);
                    }
                    match entry_at(&mut window, *number, at).map_err(failed)? {
                        Ok(entry) => {
                            let end = at + entry.envelope.entry_bytes();
                            if let Some(block) = entry.block {
                                bytes += block.bytes().len();
                                page.blocks.push((LogOffset::new(*number, at), block));
                            }
                            at = end;
                        }
                        Err(mut bad) => {
                            self.find_end(&mut window, *number, &mut bad, limit)
                                .map_err(failed)?;
                            // A place that no page gave out is a reader's mistake, no damage.
                            let given_out = LogOffset::new(*number, at) != after
                                || self.is_block_place(segment, at)?;
                            if !given_out {
                                at = bad.end;
                                continue;
                            }
                            page.skipped.extend(self.note_bad(segment, &bad)?);
                            at = bad.end;
                        }
                    }
                }
            }
            page.next = LogOffset::new(*number, limit);
        }
        page.at_end = true;
        Ok(page)
    }

    fn is_block_place(&self, segment: &Segment, offset: u64) -> Result<bool, ReadError> {
        let rows = self.ask(segment, |index| index.blocks_between(offset, offset + 1))?;
        Ok(!rows.is_empty())
    }

    // Where the entries go on after bad bytes.
    pub(crate) fn find_end(
        &self,
        window: &mut Window<'_>,
        segment: u64,
        bad: &mut Bad,
        limit: u64,
    ) -> io::Result<()> {
        if bad.envelope.is_none() {
            let next = next_envelope(window, segment, bad.offset + ALIGN_BYTES, limit)?;
            bad.end = next.unwrap_or(limit);
        }
        bad.end = bad.end.min(limit);
        Ok(())
    }

    /// Remembers bad bytes. Returns what they held, as far as the index or a gap tells.
    pub(crate) fn note_bad(
        &self,
        segment: &Segment,
        bad: &Bad,
    ) -> Result<Vec<DamagedRange>, ReadError> {
        let rows = self.ask(segment, |index| index.blocks_between(bad.offset, bad.end))?;
        let range = |row: BlockRow| DamagedRange {
            log: row.log,
            first: row.first,
            last: row.last(),
            segment: segment.number,
            offset: row.offset,
            reason: bad.reason.clone(),
        };
        let ranges: Vec<DamagedRange> = rows.into_iter().map(range).collect();
        let mut damage = self.damage();
        for range in &ranges {
            damage.note(range.clone());
        }
        // A mark, or something of which only a gap tells: the register has the gap, if there is one.
        // A reader must wait for that too, or what is put back here later comes behind it.
        if ranges.is_empty() {
            damage.note_hole(segment.number, bad.offset, bad.end);
            return Ok(damage.within(segment.number, bad.offset..bad.end));
        }
        Ok(ranges)
    }
}

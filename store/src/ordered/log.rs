//! One origin log, read from a key on.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use meridian_clock::{LogId, OrderKey, Position, Timestamp};
use meridian_event::{Block, BlockHeader, EventPlace, EventRef, OpenBlock};

use super::heads::Head;
use super::windows::Windows;
use crate::build::Heads as LogHeads;
use crate::core::{Core, Segment};
use crate::envelope::{ENVELOPE_BYTES, Envelope};
use crate::index::BlockRow;
use crate::walk::check_entry;
use crate::{DamagedRange, LogOffset, ReadError};

// Bounds what a log holds of an index: with hundreds of logs it counts.
const ROWS_AT_ONCE: usize = 64;

/// What is committed at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    segments: Arc<BTreeMap<u64, Arc<Segment>>>,
    heads: LogHeads,
    end: LogOffset,
}

impl Snapshot {
    pub(super) fn of(core: &Core) -> Self {
        let view = core.view();
        Self {
            segments: Arc::clone(&view.segments),
            heads: view.heads.clone(),
            end: view.end,
        }
    }

    fn committed_end(&self, segment: u64) -> u64 {
        match segment == self.end.segment {
            true => self.end.offset,
            false => u64::MAX,
        }
    }
}

/// The block that holds the next event.
#[derive(Debug)]
struct Current {
    segment: Arc<Segment>,
    row: BlockRow,
    header: BlockHeader,
    place: EventPlace,
    next: (Position, Timestamp),
    body: Body,
}

/// As much of a block as is in memory.
#[derive(Debug)]
enum Body {
    Absent,
    Block(Block),
    Open(OpenBlock),
}

/// A log and where its reader stands.
#[derive(Debug)]
pub(super) struct Log {
    id: LogId,
    after: OrderKey,
    // Whether an event beyond `after` was found: all that follow are beyond it, too.
    is_past_after: bool,
    // The position to go on from when there is no current block. Before an event beyond `after` was
    // found: nothing below it is beyond `after`.
    next: Position,
    // No event from `next` on is stamped before this.
    least: Timestamp,
    committed: Position,
    rows: VecDeque<(Arc<Segment>, BlockRow)>,
    // The segment that they come from.
    segment: u64,
    current: Option<Current>,
}

impl Log {
    pub(super) fn new(id: LogId, after: OrderKey) -> Self {
        let at_the_same_time = (after.region, after.partition) <= (id.origin, id.partition);
        Self {
            id,
            after,
            is_past_after: false,
            next: Position(1),
            least: match at_the_same_time {
                true => after.timestamp,
                false => Timestamp(after.timestamp.0.saturating_add(1)),
            },
            committed: Position::ZERO,
            rows: VecDeque::new(),
            segment: 0,
            current: None,
        }
    }

    /// Learns how far the log is committed.
    pub(super) fn refresh(&mut self, view: &Snapshot) {
        let head = view.heads.get(&self.id);
        self.committed = head.map_or(Position::ZERO, |head| head.position);
    }

    /// The key of the next event, or the least it can be; `None` when nothing more is committed.
    pub(super) fn head(&self, rank: usize) -> Option<Head> {
        match &self.current {
            Some(current) => Some(Head::new(current.next.1, rank)),
            None => (self.next <= self.committed).then(|| Head::new(self.least, rank)),
        }
    }

    pub(super) fn knows_next(&self) -> bool {
        self.current.is_some()
    }

    pub(super) fn held_bytes(&self) -> usize {
        match self.current.as_ref().map(|current| &current.body) {
            None | Some(Body::Absent) => 0,
            Some(Body::Block(block)) => block.bytes().len(),
            Some(Body::Open(open)) => open.raw_bytes(),
        }
    }

    /// Lets go of what is in memory; where the reader stands is kept.
    pub(super) fn release(&mut self) {
        self.rows = VecDeque::new();
        if let Some(current) = &mut self.current {
            current.body = Body::Absent;
        }
    }

    fn is_past(&self, position: Position, timestamp: Timestamp) -> bool {
        key(self.id, position, timestamp) > self.after
    }

    /// Reads the block that comes next; none is current then if nothing is left.
    pub(super) fn find_next(
        &mut self,
        core: &Core,
        view: &Snapshot,
        windows: &mut Windows,
    ) -> Result<(), ReadError> {
        let found = self.try_find_next(core, view, windows);
        if found.is_err() {
            // The row of the trouble is asked for again, after a mend may have changed it: what was
            // missing from a segment may then be in an earlier one than where it was missed.
            self.rows.clear();
            self.segment = 0;
        }
        found
    }

    fn try_find_next(
        &mut self,
        core: &Core,
        view: &Snapshot,
        windows: &mut Windows,
    ) -> Result<(), ReadError> {
        if !self.is_past_after {
            self.next = self.seek(core, view)?;
        }
        if self.next > self.committed {
            return Ok(());
        }
        let (segment, row) = self.next_row(core, view)?;
        let block = self.read_block(core, view, windows, &segment, &row)?;
        let header = *block.header();
        let mut current = Current {
            segment,
            row,
            header,
            place: EventPlace::default(),
            next: (header.first_position, header.first_timestamp),
            body: Body::Block(block),
        };
        if self.is_past_after {
            // A batch never spans blocks.
            if header.first_timestamp < self.least {
                return Err(self.unreadable(core, &current, "its timestamps do not rise"));
            }
        } else if !self.is_past(header.first_position, header.first_timestamp) {
            self.skip_to_after(core, &mut current)?;
        }
        self.is_past_after = true;
        self.current = Some(current);
        Ok(())
    }

    // Goes to the first event beyond `after` in the block that has the boundary in it.
    fn skip_to_after(&self, core: &Core, current: &mut Current) -> Result<(), ReadError> {
        let open = match &current.body {
            Body::Block(block) => block.open(),
            Body::Absent | Body::Open(_) => unreachable!("the block was just read"),
        };
        let open = open.map_err(|error| self.unreadable(core, current, &error.to_string()))?;
        let mut events = open.events();
        let found = loop {
            match events.peek() {
                Ok(Some((position, timestamp))) if self.is_past(position, timestamp) => {
                    break Ok((position, timestamp));
                }
                Ok(Some(_)) => {
                    if let Err(error) = events.pass() {
                        break Err(error.to_string());
                    }
                }
                Ok(None) => break Err("it does not end where its header says".to_owned()),
                Err(error) => break Err(error.to_string()),
            }
        };
        current.next = found.map_err(|reason| self.unreadable(core, current, &reason))?;
        current.place = events.place();
        current.body = Body::Open(open);
        Ok(())
    }

    /// Decompresses the current block if it is not yet, reading it again if it was let go.
    pub(super) fn open(
        &mut self,
        core: &Core,
        view: &Snapshot,
        windows: &mut Windows,
    ) -> Result<(), ReadError> {
        let is_closed = |current: &mut Current| !matches!(current.body, Body::Open(_));
        let Some(mut current) = self.current.take_if(is_closed) else {
            return Ok(());
        };
        let opened = (|| {
            let block = match &current.body {
                Body::Block(block) => block.clone(),
                Body::Absent | Body::Open(_) => {
                    self.read_block(core, view, windows, &current.segment, &current.row)?
                }
            };
            // The place in it means nothing in other bytes.
            if *block.header() != current.header {
                return Err(self.unreadable(core, &current, "it is not the block that was here"));
            }
            let open = block.open();
            open.map_err(|error| self.unreadable(core, &current, &error.to_string()))
        })();
        let (body, outcome) = match opened {
            Ok(open) => (Body::Open(open), Ok(())),
            Err(error) => (Body::Absent, Err(error)),
        };
        current.body = body;
        self.current = Some(current);
        outcome
    }

    /// Visits the events of the open block whose heads are below `limit`. Returns whether one was
    /// refused.
    pub(super) fn visit_below(
        &mut self,
        core: &Core,
        rank: usize,
        limit: Head,
        mut visit: impl FnMut(OrderKey, &OpenBlock, &EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<bool, ReadError> {
        let Some(current) = &mut self.current else {
            return Ok(false);
        };
        let Body::Open(open) = &current.body else {
            unreachable!("the block was opened before")
        };
        let mut events = open.events_from(current.place);
        let outcome = loop {
            let next = match events.peek() {
                Ok(Some(next)) => next,
                Ok(None) => break Ok(None),
                Err(error) => break Err(error),
            };
            current.place = events.place();
            current.next = next;
            if Head::new(next.1, rank) >= limit {
                break Ok(Some(false));
            }
            let event = match events.next() {
                Some(Ok(event)) => event,
                Some(Err(error)) => break Err(error),
                None => break Ok(None),
            };
            if visit(key(self.id, next.0, next.1), open, &event).is_break() {
                break Ok(Some(true));
            }
        };
        match outcome {
            Ok(Some(refused)) => Ok(refused),
            Ok(None) => {
                self.next = current.header.last_position().plus(1);
                self.least = Timestamp(current.header.last_timestamp.0.saturating_add(1));
                self.current = None;
                Ok(false)
            }
            Err(error) => {
                current.body = Body::Absent;
                let (segment, row) = (Arc::clone(&current.segment), current.row);
                Err(note(core, &segment, &row, &error.to_string()))
            }
        }
    }

    fn unreadable(&self, core: &Core, current: &Current, reason: &str) -> ReadError {
        note(core, &current.segment, &current.row, reason)
    }

    fn next_row(
        &mut self,
        core: &Core,
        view: &Snapshot,
    ) -> Result<(Arc<Segment>, BlockRow), ReadError> {
        // Rows that were passed by a seek.
        while self
            .rows
            .front()
            .is_some_and(|(_, row)| row.last() < self.next)
        {
            self.rows.pop_front();
        }
        if self.rows.is_empty() {
            // Where the last rows were, or soon after: not from the end, as a search does.
            let segments = view.segments.range(self.segment..);
            let holder = segments.map(|(_, segment)| segment).find(|segment| {
                let span = segment.index().summary().span(self.id).copied();
                span.is_some_and(|span| span.last >= self.next)
            });
            if let Some(segment) = holder {
                self.segment = segment.number;
                self.rows = rows_in(core, segment, self.id, self.next, ROWS_AT_ONCE)?;
            }
        }
        match self.rows.front() {
            Some((_, row)) if row.first <= self.next && row.last() <= self.committed => {}
            Some((segment, row)) => {
                return Err(core.missing(self.id, self.next, row.first, segment));
            }
            None => {
                let last = view.segments.values().next_back();
                let segment = last.expect("a store has an open segment");
                return Err(core.missing(self.id, self.next, self.committed.plus(1), segment));
            }
        }
        Ok(self.rows.pop_front().expect("it was just looked at"))
    }

    fn read_block(
        &self,
        core: &Core,
        view: &Snapshot,
        windows: &mut Windows,
        segment: &Segment,
        row: &BlockRow,
    ) -> Result<Block, ReadError> {
        let len = ENVELOPE_BYTES + row.bytes as usize;
        let end = view.committed_end(segment.number);
        let bytes = windows
            .get(core, segment.number, row.offset, len, end)
            .map_err(|source| core.read_error(segment.number, source))?;
        let own = LogOffset::new(segment.number, row.offset);
        let entry = Envelope::parse(&bytes, own).ok().and_then(|envelope| {
            let payload = bytes.slice(ENVELOPE_BYTES..);
            check_entry(row.offset, envelope, &payload).ok()
        });
        match entry.and_then(|entry| entry.block) {
            Some(block)
                if block.header().log == row.log
                    && block.header().first_position == row.first
                    && block.header().count == row.count =>
            {
                Ok(block)
            }
            _ => {
                // What was read may be from before a mend; the disk has the last word.
                windows.clear();
                let block = core.read_row(segment, row)?;
                match block.header().count == row.count {
                    true => Ok(block),
                    false => Err(note(
                        core,
                        segment,
                        row,
                        "another block than the index names",
                    )),
                }
            }
        }
    }

    /// The position to begin at: nothing below it is beyond `after`, and it is the first of its
    /// block. The block has an event beyond `after` in it, or cannot be read and may have one.
    ///
    /// Bisects by whole blocks, whose checksums cover the timestamps in their headers. Blocks that
    /// cannot be read are stepped over in the search, never in the answer.
    fn seek(&self, core: &Core, view: &Snapshot) -> Result<Position, ReadError> {
        let (mut low, mut high) = (self.next, self.committed.plus(1));
        // What segments say narrows it down. Damage makes what they say too early, never too late:
        // so it proves that a segment's last event is beyond `after`, but the contrary only a block.
        for segment in view.segments.values().rev() {
            let span = segment.index().summary().span(self.id).copied();
            let Some(span) = span.filter(|span| span.last < high && span.last >= low) else {
                continue;
            };
            if self.is_past(span.last, span.timestamp) {
                high = span.last;
                continue;
            }
            if let Some((_, row, header)) = self.probe(core, view, span.last, high)?
                && row.first <= span.last
                && !self.is_past(row.last(), header.last_timestamp)
            {
                low = row.last().plus(1);
            }
            break;
        }
        while low < high {
            let middle = Position(low.0 + (high.0 - low.0) / 2);
            match self.probe(core, view, middle, high)? {
                None => high = middle,
                Some((_, row, header)) => {
                    if !self.is_past(row.last(), header.last_timestamp) {
                        low = row.last().plus(1);
                    } else if self.is_past(row.first, header.first_timestamp) {
                        high = middle.min(row.first);
                    } else {
                        return Ok(row.first);
                    }
                }
            }
        }
        // A block that cannot be read does not matter if an event after it is not beyond `after`.
        if low <= self.committed
            && let Some((_, row, header)) = self.probe(core, view, low, self.committed.plus(1))?
            && !self.is_past(row.first, header.first_timestamp)
        {
            return Ok(row.first);
        }
        Ok(low)
    }

    // The first readable block that holds `from` or begins after it and before `until`.
    fn probe(
        &self,
        core: &Core,
        view: &Snapshot,
        from: Position,
        until: Position,
    ) -> Result<Option<(Arc<Segment>, BlockRow, BlockHeader)>, ReadError> {
        let mut from = from;
        let mut at_once = 1;
        while from < until {
            let rows = rows_from(core, view, self.id, from, at_once)?;
            let Some((_, last)) = rows.back() else {
                return Ok(None);
            };
            from = last.last().plus(1);
            for (segment, row) in rows.into_iter().filter(|(_, row)| row.first < until) {
                match core.read_row(&segment, &row) {
                    Ok(block) => return Ok(Some((segment, row, *block.header()))),
                    Err(ReadError::Damaged(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            at_once = ROWS_AT_ONCE;
        }
        Ok(None)
    }
}

fn key(log: LogId, position: Position, timestamp: Timestamp) -> OrderKey {
    OrderKey {
        timestamp,
        region: log.origin,
        partition: log.partition,
        position,
    }
}

// Remembers that a block cannot be read.
fn note(core: &Core, segment: &Segment, row: &BlockRow, reason: &str) -> ReadError {
    let range = DamagedRange {
        log: row.log,
        first: row.first,
        last: row.last(),
        segment: segment.number,
        offset: row.offset,
        reason: reason.to_owned(),
    };
    core.damage().note(range.clone());
    ReadError::Damaged(range)
}

// Some of the blocks of `log`, all of one segment, from the one that holds `from` or begins after it.
fn rows_from(
    core: &Core,
    view: &Snapshot,
    log: LogId,
    from: Position,
    limit: usize,
) -> Result<VecDeque<(Arc<Segment>, BlockRow)>, ReadError> {
    // Tails are read more often than beginnings.
    let mut holder = None;
    for segment in view.segments.values().rev() {
        let span = segment.index().summary().span(log).copied();
        let Some(span) = span else { continue };
        if span.last < from {
            break;
        }
        holder = Some(segment);
        if span.first <= from {
            break;
        }
    }
    match holder {
        Some(segment) => rows_in(core, segment, log, from, limit),
        None => Ok(VecDeque::new()),
    }
}

fn rows_in(
    core: &Core,
    segment: &Arc<Segment>,
    log: LogId,
    from: Position,
    limit: usize,
) -> Result<VecDeque<(Arc<Segment>, BlockRow)>, ReadError> {
    let start = core.ask(segment, |index| index.block_at(log, from))?;
    let start = start.map_or(from, |row| row.first);
    let rows = core.ask(segment, |index| index.blocks_from(log, start, limit))?;
    Ok(rows
        .into_iter()
        .map(|row| (Arc::clone(segment), row))
        .collect())
}

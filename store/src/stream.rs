//! Finding events: by id, by stream and revision, by stream in the one total order.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use meridian_clock::{LogId, Position, RegionId, Timestamp};
use meridian_event::{EventId, RecordedEvent, Revision, StreamId};

use crate::core::{Core, Segment};
use crate::index::{Place, StreamRow, stream_hash};
use crate::{DamagedRange, Direction, Found, ReadError, StreamRange};

// How many index rows are fetched at once.
const ROWS_AT_ONCE: usize = 256;
// What is read before it is known how long a block is: most are shorter.
const BLOCK_GUESS_BYTES: usize = 16 << 10;

type Segments = Arc<BTreeMap<u64, Arc<Segment>>>;

/// A stream's revisions by the origins that wrote them.
type Shape = BTreeMap<RegionId, Written>;

/// What one origin wrote to a stream.
struct Written {
    first: Revision,
    last: Revision,
    // The segments that hold some of it, from old to new.
    parts: Vec<Part>,
}

/// What a segment holds of it.
#[derive(Clone, Copy)]
struct Part {
    segment: u64,
    first: Revision,
    last: Revision,
    count: u64,
}

impl Part {
    // Whether every revision from the first to the last is there.
    fn has_all(&self) -> bool {
        self.last.0.checked_sub(self.first.0) == self.count.checked_sub(1)
    }
}

/// How much of a stream is here without a gap.
struct Whole {
    // The last revision before the first gap, if any stands before it.
    last: Option<Revision>,
    // Whether there is no gap at all.
    is_all: bool,
}

impl Written {
    // Whatever it is, it is in these segments.
    fn unknown(segments: &Segments) -> Self {
        let (first, last) = (Revision(0), Revision(u64::MAX));
        let parts = segments.keys().map(|segment| Part {
            segment: *segment,
            first,
            last,
            count: 0,
        });
        Self {
            first,
            last,
            parts: parts.collect(),
        }
    }

    // The segments that hold something at or beyond `from`, in the direction of reading.
    fn segments_from(&self, from: Revision, forwards: bool) -> VecDeque<u64> {
        let held = self.parts.iter();
        match forwards {
            true => held
                .filter(|part| part.last >= from)
                .map(|part| part.segment)
                .collect(),
            false => held
                .rev()
                .filter(|part| part.first <= from)
                .map(|part| part.segment)
                .collect(),
        }
    }
}

// Whether no revision was given twice: by one origin, or by one after the other.
fn is_by_revision(shape: &Shape) -> bool {
    let mut ranges: Vec<_> = shape.values().map(|it| (it.first, it.last)).collect();
    ranges.sort_unstable();
    ranges.windows(2).all(|pair| pair[0].1 < pair[1].0)
}

impl Core {
    pub(crate) fn find_event(
        &self,
        id: EventId,
        logs: &[LogId],
    ) -> Result<Option<Found>, ReadError> {
        let is_log = |range: &DamagedRange| logs.contains(&range.log);
        // Refused only where it is not found: what is known is known.
        let before = self.damage().refuse_unindexed(is_log);
        let key = u128::from_be_bytes(id.to_bytes());
        for segment in self.segments().values().rev() {
            let Some(place) = self.ask(segment, |index| index.event(key))? else {
                continue;
            };
            for event in self.events_at(segment, place.offset, &[place.ordinal])? {
                if event.id == id {
                    return Ok(Some(found(event)));
                }
            }
        }
        before?;
        // An index that had to be made anew meanwhile may lack it.
        self.damage().refuse_unindexed(is_log)?;
        Ok(None)
    }

    pub(crate) fn stream_last(
        &self,
        stream: &StreamId,
        origin: Option<RegionId>,
        in_turn: bool,
    ) -> Result<Option<Found>, ReadError> {
        let hash = stream_hash(stream.as_str());
        let segments = self.segments();
        let shape = match origin {
            // The last segment that holds any of it ends the search.
            Some(origin) => [(origin, Written::unknown(&segments))].into(),
            None => self.shape(&segments, hash)?,
        };
        // Whether an event that no index knows is the last of its stream cannot be told before it
        // is repaired.
        let is_of_origin = |range: &DamagedRange| origin.is_none_or(|it| range.log.origin == it);
        self.damage().refuse_unindexed(is_of_origin)?;
        let by_revision = in_turn || is_by_revision(&shape);
        let mut rows = Vec::new();
        for (origin, written) in &shape {
            let mut origin_rows =
                OriginRows::new(&segments, hash, *origin, written, written.last, false);
            rows.extend(origin_rows.next(self)?);
        }
        // An index that had to be made anew meanwhile may lack it.
        self.damage().refuse_unindexed(is_of_origin)?;
        rows.sort_by_key(|(_, row)| key(row, by_revision));
        let Some((segment, row)) = rows.pop() else {
            return Ok(None);
        };
        let events = self.events_at(&segment, row.place.offset, &[row.place.ordinal])?;
        let of_stream = events.into_iter().find(|event| event.stream == *stream);
        Ok(of_stream.map(found))
    }

    // Of all that wrote it, or of one `origin` only.
    pub(crate) fn read_stream(
        &self,
        stream: &StreamId,
        range: StreamRange,
        origin: Option<RegionId>,
    ) -> Result<Vec<RecordedEvent>, ReadError> {
        let hash = stream_hash(stream.as_str());
        let segments = self.segments();
        let mut shape = self.shape(&segments, hash)?;
        shape.retain(|region, _| origin.is_none_or(|it| it == *region));
        let by_revision = range.in_turn || is_by_revision(&shape);
        let forwards = range.direction == Direction::Forwards;
        let mut start = range.from;
        if range.in_turn && !forwards && origin.is_none() {
            // What stands behind a revision that is not here yet is not told.
            let whole = self.whole(&segments, hash, &shape)?;
            if !whole.is_all {
                self.damage().refuse_unindexed(|_| true)?;
            }
            match whole.last {
                Some(last) => start = start.min(last),
                None => return Ok(Vec::new()),
            }
        }
        let mut skip = 0;
        if !by_revision {
            // Numbers from peers: they may be absurd, but must not stop us.
            let count = shape.values().fold(0u64, |count, written| {
                count.saturating_add((written.last.0 - written.first.0).saturating_add(1))
            });
            let last = count.saturating_sub(1);
            skip = match forwards {
                true => range.from.0,
                false => last - range.from.0.min(last),
            };
        }
        let mut origins: Vec<OriginRows<'_>> = shape
            .iter()
            .map(|(origin, written)| {
                let from = match (by_revision, forwards) {
                    (true, true) => start.max(written.first),
                    (true, false) => start.min(written.last),
                    (false, true) => written.first,
                    (false, false) => written.last,
                };
                OriginRows::new(&segments, hash, *origin, written, from, forwards)
            })
            .collect();
        let mut next_row = || -> Result<Option<(Arc<Segment>, StreamRow)>, ReadError> {
            let mut best = None;
            for (place, origin) in origins.iter_mut().enumerate() {
                let Some((_, row)) = origin.peek(self)? else {
                    continue;
                };
                let key = key(row, by_revision);
                let better = best.is_none_or(|(best, _)| (key < best) == forwards);
                if better {
                    best = Some((key, place));
                }
            }
            match best {
                Some((_, place)) => origins[place].next(self),
                None => Ok(None),
            }
        };
        // Reading stops at a gap between revisions: what was before a move is still on its way here,
        // or damage took the index with it.
        let expected = match forwards {
            true => shape.values().map(|it| it.first).min(),
            false => shape.values().map(|it| it.last).max(),
        };
        let expected = Cell::new(expected.map(|end| match forwards {
            // Its first revisions may be what is missing.
            true if range.in_turn => start,
            true => end.max(start),
            false => end.min(start),
        }));
        let mut met_gap = false;
        let follows = |row: &StreamRow| {
            let next = match forwards {
                true => row.revision.0.checked_add(1).map(Revision),
                false => row.revision.0.checked_sub(1).map(Revision),
            };
            let before = expected.replace(next);
            !by_revision || before.is_none_or(|before| before == row.revision)
        };
        for _ in 0..skip {
            if next_row()?.is_none() {
                return Ok(Vec::new());
            }
        }
        let mut events = Vec::new();
        let mut bytes = 0;
        let mut pending: Option<(Arc<Segment>, u64, Vec<u32>)> = None;
        let mut asked = 0;
        // Rows that lie in one block are read together.
        loop {
            let is_full = asked >= range.limit || bytes > range.bytes_max;
            let mut row = match is_full {
                true => None,
                false => next_row()?,
            };
            asked += 1;
            if row.as_ref().is_some_and(|(_, it)| !follows(it)) {
                met_gap = true;
                row = None;
            }
            if let (Some((segment, row)), Some((held, offset, ordinals))) = (&row, &mut pending)
                && held.number == segment.number
                && *offset == row.place.offset
            {
                ordinals.push(row.place.ordinal);
                continue;
            }
            if let Some((segment, offset, ordinals)) = pending.take() {
                let read = match self.events_at(&segment, offset, &ordinals) {
                    Ok(read) => read,
                    Err(error) if events.is_empty() => return Err(error),
                    // What was read before the trouble is good; the next call meets it again.
                    Err(_) => break,
                };
                for event in read.into_iter().filter(|event| event.stream == *stream) {
                    let weight = event.data.len() + event.metadata.len();
                    if bytes + weight > range.bytes_max && !events.is_empty() {
                        return Ok(events);
                    }
                    bytes += weight;
                    events.push(event);
                }
            }
            match row {
                Some((segment, row)) => {
                    let Place { offset, ordinal } = row.place;
                    pending = Some((segment, offset, vec![ordinal]));
                }
                None => break,
            }
        }
        if met_gap && events.is_empty() {
            self.damage().refuse_unindexed(|_| true)?;
        }
        Ok(events)
    }

    /// See [`Store::stream_hidden`](crate::Store::stream_hidden).
    pub(crate) fn stream_hidden(
        &self,
        stream: &StreamId,
        seen: &[(RegionId, Position)],
    ) -> Result<Option<Revision>, ReadError> {
        let hash = stream_hash(stream.as_str());
        let segments = self.segments();
        let shape = self.shape(&segments, hash)?;
        let whole = self.whole(&segments, hash, &shape)?;
        if whole.is_all {
            return Ok(None);
        }
        let missing = whole.last.map_or(Revision(0), Revision::next);
        for (origin, position) in seen {
            let Some(written) = shape.get(origin) else {
                continue;
            };
            // Its revisions rise with its positions: the first one behind the gap tells.
            let mut rows = OriginRows::new(&segments, hash, *origin, written, missing, true);
            let Some((segment, row)) = rows.next(self)? else {
                continue;
            };
            let events = self.events_at(&segment, row.place.offset, &[row.place.ordinal])?;
            if events.iter().any(|event| event.dot.position <= *position) {
                return Ok(Some(missing));
            }
        }
        Ok(None)
    }

    /// Up to where a stream that regions write in turn is here without a gap.
    fn whole(&self, segments: &Segments, stream: u128, shape: &Shape) -> Result<Whole, ReadError> {
        let last = shape.values().map(|it| it.last).max();
        let mut parts: Vec<&Part> = shape.values().flat_map(|it| &it.parts).collect();
        let count = parts
            .iter()
            .fold(0u64, |count, part| count.saturating_add(part.count));
        if last.is_none_or(|last| count > last.0) {
            return Ok(Whole { last, is_all: true });
        }
        let mut next = Revision(0);
        parts.sort_unstable_by_key(|part| part.first);
        for part in parts {
            if part.first != next || !part.has_all() {
                break;
            }
            next = part.last.next();
        }
        let mut origins: Vec<OriginRows<'_>> = shape
            .iter()
            .map(|(origin, written)| {
                OriginRows::new(segments, stream, *origin, written, next, true)
            })
            .collect();
        loop {
            let mut is_here = false;
            for origin in &mut origins {
                if (origin.peek(self)?).is_some_and(|(_, row)| row.revision == next) {
                    origin.next(self)?;
                    next = next.next();
                    is_here = true;
                }
            }
            if !is_here {
                break;
            }
        }
        Ok(Whole {
            last: next.0.checked_sub(1).map(Revision),
            is_all: false,
        })
    }

    fn shape(&self, segments: &Segments, stream: u128) -> Result<Shape, ReadError> {
        let mut shape = Shape::new();
        for segment in segments.values() {
            for it in self.ask(segment, |index| index.stream_origins(stream))? {
                let written = shape.entry(it.origin).or_insert(Written {
                    first: it.first,
                    last: it.last,
                    parts: Vec::new(),
                });
                written.first = written.first.min(it.first);
                written.last = written.last.max(it.last);
                written.parts.push(Part {
                    segment: segment.number,
                    first: it.first,
                    last: it.last,
                    count: it.count,
                });
            }
        }
        Ok(shape)
    }

    // The events with these ordinals in one block, in the order asked for.
    fn events_at(
        &self,
        segment: &Segment,
        offset: u64,
        ordinals: &[u32],
    ) -> Result<Vec<RecordedEvent>, ReadError> {
        let read = self
            .read_entry(segment.number, offset, BLOCK_GUESS_BYTES)
            .map_err(|source| self.read_error(segment.number, source))?;
        let decoded = read.and_then(|block| {
            let open = block.open().map_err(|error| error.to_string())?;
            let last = ordinals.iter().max().map_or(0, |last| *last as usize + 1);
            let mut by_ordinal = BTreeMap::new();
            for (ordinal, event) in (0..).zip(open.events().take(last)) {
                if !ordinals.contains(&ordinal) {
                    continue;
                }
                let recorded = event.and_then(|event| open.record(&event));
                let recorded = recorded.map_err(|error| error.to_string())?;
                by_ordinal.insert(ordinal, detached(recorded));
            }
            Ok(ordinals
                .iter()
                .filter_map(|it| by_ordinal.remove(it))
                .collect())
        });
        match decoded {
            Ok(events) => Ok(events),
            Err(reason) => Err(self.damaged_at(segment, offset, &reason)?),
        }
    }

    fn damaged_at(
        &self,
        segment: &Segment,
        offset: u64,
        reason: &str,
    ) -> Result<ReadError, ReadError> {
        let rows = self.ask(segment, |index| index.blocks_between(offset, offset + 1))?;
        let Some(row) = rows.first() else {
            let source = std::io::Error::other(format!("no block begins at byte {offset}"));
            return Err(self.read_error(segment.number, source));
        };
        let range = DamagedRange {
            log: row.log,
            first: row.first,
            last: row.last(),
            segment: segment.number,
            offset,
            reason: reason.to_owned(),
        };
        self.damage().note(range.clone());
        Ok(ReadError::Damaged(range))
    }
}

// An event read from a block shares the memory of the whole block; a reader that keeps a few events
// must not keep all of their neighbours.
fn detached(event: RecordedEvent) -> RecordedEvent {
    RecordedEvent {
        data: Bytes::copy_from_slice(&event.data),
        metadata: Bytes::copy_from_slice(&event.metadata),
        ..event
    }
}

fn found(event: RecordedEvent) -> Found {
    Found {
        dot: event.dot,
        id: event.id,
        stream: event.stream,
        revision: event.revision,
        timestamp: event.timestamp,
    }
}

type Key = (Timestamp, RegionId, Revision);

// Where a row stands in its stream. Within one origin and stream, revisions rise as positions do.
fn key(row: &StreamRow, by_revision: bool) -> Key {
    match by_revision {
        true => (Timestamp::ZERO, RegionId(0), row.revision),
        false => (row.timestamp, row.origin, row.revision),
    }
}

/// What one origin wrote to a stream, row by row across segments.
struct OriginRows<'a> {
    segments: &'a Segments,
    stream: u128,
    origin: RegionId,
    forwards: bool,
    next: Option<Revision>,
    // The segment the rows come from; `None` before the first and after the last one.
    segment: Option<Arc<Segment>>,
    left: VecDeque<u64>,
    held: VecDeque<(Arc<Segment>, StreamRow)>,
}

impl<'a> OriginRows<'a> {
    fn new(
        segments: &'a Segments,
        stream: u128,
        origin: RegionId,
        written: &Written,
        from: Revision,
        forwards: bool,
    ) -> Self {
        Self {
            segments,
            stream,
            origin,
            forwards,
            next: Some(from),
            segment: None,
            left: written.segments_from(from, forwards),
            held: VecDeque::new(),
        }
    }

    fn peek(&mut self, core: &Core) -> Result<Option<&(Arc<Segment>, StreamRow)>, ReadError> {
        self.fetch(core)?;
        Ok(self.held.front())
    }

    fn next(&mut self, core: &Core) -> Result<Option<(Arc<Segment>, StreamRow)>, ReadError> {
        self.fetch(core)?;
        Ok(self.held.pop_front())
    }

    fn fetch(&mut self, core: &Core) -> Result<(), ReadError> {
        while self.held.is_empty()
            && let Some(from) = self.next
        {
            let Some(segment) = self.segment.take().or_else(|| {
                let number = self.left.pop_front()?;
                self.segments.get(&number).cloned()
            }) else {
                return Ok(());
            };
            let rows = core.ask(&segment, |index| {
                index.stream_rows(self.stream, self.origin, from, self.forwards, ROWS_AT_ONCE)
            })?;
            let more = rows.len() == ROWS_AT_ONCE;
            if let Some(last) = rows.last() {
                self.next = match self.forwards {
                    true => last.revision.0.checked_add(1).map(Revision),
                    false => last.revision.0.checked_sub(1).map(Revision),
                };
            }
            self.held
                .extend(rows.into_iter().map(|row| (Arc::clone(&segment), row)));
            if more {
                self.segment = Some(segment);
            }
        }
        Ok(())
    }
}

//! Moving what a region wrote beyond the cut of a fence out of the log, before the store is opened.
//!
//! 1. Recover the log as at any opening, so that nothing of it is in doubt.
//! 2. Find the blocks of the cut generations beyond their cuts.
//! 3. Write them to the files of `stranded`, durably: from here on they are kept whatever happens.
//! 4. From the last segment to the first: remove the segment's index, then replace the segment by a
//!    copy in which voids stand in their places. The log is so a shorter and shorter prefix of itself.
//! 5. Note that it is done.
//!
//! A crash in between is mended by doing it all again: what is in a file already stays there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use meridian_clock::{Incarnation, LogId, Position};
use meridian_event::{Block, BlockHeader, Chain};

use crate::core::{Core, Segment};
use crate::envelope::{ENVELOPE_BYTES, Envelope, Kind};
use crate::index::BlockRow;
use crate::recovery::recover;
use crate::repair::{Patch, keep_damaged, replace_segment};
use crate::segment::{LOG_FOLDER, SEGMENT_HEADER_BYTES, index_path, segment_path};
use crate::store::take_lock;
use crate::stranded::{
    Header, blocks_path, done, done_path, keep_aside, read_file, set_done, summary, write_file,
};
use crate::walk::{Bad, Item, walk};
use crate::{Disk, Lanes, LogOffset, OpenError, ReadError, StoreOptions, StrandedTail};

/// What was stranded of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranded {
    /// Which log and generation, and the cut: for [`read_stranded`](crate::read_stranded).
    pub tail: StrandedTail,
    /// The position of the first event that is kept apart.
    pub first: Position,
    /// The position of the last one.
    pub last: Position,
    /// How many events are.
    pub events: u64,
    /// How many bytes of blocks are.
    pub bytes: u64,
    /// What was beyond the cut and could not be read, as first and last position: it is in no file
    /// but the copies of segments in the folder `damaged`.
    pub unreadable: Vec<(Position, Position)>,
}

/// Why a log was not stranded. Nothing is lost; what was begun goes on at the next call.
#[derive(Debug, thiserror::Error)]
pub enum StrandError {
    /// The log cannot be recovered.
    #[error("open the log to strand what is beyond a cut")]
    Open(#[from] OpenError),
    /// A cut is not between two blocks, so it was not agreed on what regions hold. Find out where it
    /// comes from: blocks are never split.
    #[error("the cut of log {log} at {cut} is inside the block {first}..={last}")]
    CutInsideBlock {
        /// The log.
        log: LogId,
        /// The cut.
        cut: Position,
        /// The position of the block's first event.
        first: Position,
        /// The position of its last event.
        last: Position,
    },
    /// The disk failed, or is full: make room and start again.
    #[error("strand what is beyond a cut: {path}")]
    Io {
        /// The file, below the data folder.
        path: String,
        /// What the disk said.
        source: io::Error,
    },
}

/// Moves what lies beyond each log's cut, and is of the generation that was cut there or an earlier
/// one, out of the log in a data folder that no node has open. `cuts` gives for each log that
/// generation ([`Epoch::major`](meridian_clock::Epoch::major)) and the position it was cut at.
///
/// After it the log ends at the cut, or before it if it never went further, and goes on there in the
/// next generation. Answers what is stranded of each log in which something was left to do, with what
/// an interrupted call had moved before; what was done to the end is not looked for again. Call it
/// again with the same cuts, before the store is opened, until it succeeds.
///
/// # Errors
/// When the folder is in use, the disk fails, or a cut is inside a block. Damage beyond a cut is no
/// error: it is told in [`Stranded::unreadable`] and given up.
pub fn strand(
    disk: Arc<dyn Disk>,
    cuts: &BTreeMap<LogId, (u32, Position)>,
) -> Result<Vec<Stranded>, StrandError> {
    let mut due = BTreeMap::new();
    for (log, (generation, after)) in cuts {
        let done = done(&*disk, *log, *generation).map_err(at(done_path(*log, *generation)))?;
        if done != Some(*after) {
            let tail = StrandedTail {
                log: *log,
                generation: *generation,
                after: *after,
            };
            due.insert(*log, tail);
        }
    }
    if due.is_empty() {
        return Ok(Vec::new());
    }
    let _held = take_lock(&*disk)?;
    // A segment that recovery begins stays empty here, and is begun anew when the store is opened.
    let options = StoreOptions {
        lanes: Lanes::Driven,
        segment_bytes: 1 << 16,
        fill_ahead_bytes: 0,
        ..StoreOptions::default()
    };
    let (core, recovery) = recover(Arc::clone(&disk), options)?;
    if recovery.tail_cut {
        tracing::warn!("a write that never finished was cut from the end of the log");
    }
    let strander = Strander { disk, core, due };
    strander.check_cuts()?;
    let found = strander.find()?;
    let stranded = strander.keep(&found)?;
    strander.void(&found)?;
    for tail in strander.due.values() {
        set_done(&*strander.disk, *tail).map_err(at(done_path(tail.log, tail.generation)))?;
    }
    Ok(stranded)
}

struct Strander {
    disk: Arc<dyn Disk>,
    core: Core,
    due: BTreeMap<LogId, StrandedTail>,
}

/// A sound block to be stranded.
#[derive(Clone, Copy)]
struct Place {
    segment: u64,
    envelope: Envelope,
    header: BlockHeader,
}

/// A block to be given up: it is beyond the cut and cannot be read.
struct Lost {
    segment: u64,
    /// What will stand in its place.
    void: Envelope,
    reason: String,
}

#[derive(Default)]
struct Beyond {
    places: Vec<Place>,
    lost: Vec<Lost>,
}

impl Strander {
    fn check_cuts(&self) -> Result<(), StrandError> {
        for tail in self.due.values() {
            if tail.after == Position::ZERO {
                continue;
            }
            for segment in self.core.segments().values() {
                let span = segment.index().summary().span(tail.log).copied();
                if !span.is_some_and(|it| it.first <= tail.after && it.last > tail.after) {
                    continue;
                }
                let row = self.ask_row(segment, tail)?;
                let Some(row) = row.filter(|row| row.last() > tail.after) else {
                    continue;
                };
                // A later generation is none of this cut's.
                let later = match self.core.read_row(segment, &row) {
                    Ok(block) => block.header().epoch.major > tail.generation,
                    Err(_) => false,
                };
                if !later {
                    return Err(StrandError::CutInsideBlock {
                        log: tail.log,
                        cut: tail.after,
                        first: row.first,
                        last: row.last(),
                    });
                }
            }
        }
        Ok(())
    }

    fn ask_row(
        &self,
        segment: &Segment,
        tail: &StrandedTail,
    ) -> Result<Option<BlockRow>, StrandError> {
        let row = |index: &crate::index::Index| index.block_at(tail.log, tail.after);
        self.core.ask(segment, row).map_err(from_read)
    }

    // What is to be stranded, and what is to be given up, in the order of the log.
    fn find(&self) -> Result<Beyond, StrandError> {
        let segments = self.core.segments();
        let reaches_beyond = |segment: &Segment| {
            let index = segment.index();
            let mut spans = index.summary().spans.iter();
            spans.any(|span| {
                self.due
                    .get(&span.log)
                    .is_some_and(|it| span.last > it.after)
            })
        };
        let mut found = Beyond::default();
        let first = segments.values().find(|segment| reaches_beyond(segment));
        let Some(first) = first.map(|segment| segment.number) else {
            return Ok(found);
        };
        // Logs that went on in a later generation: what is damaged of them may be of that one.
        let mut went_on = BTreeSet::new();
        // Read whole: an index leaves out what is in a log twice, and that must go, too.
        for (number, segment) in segments.range(first..) {
            let file = self.core.files.segment(*number);
            let file = file.map_err(at(segment_path(*number)))?;
            let end = segment.index().summary().end;
            walk(&*file, *number, Some(end), |item| {
                self.visit(segment, item, &mut found, &mut went_on)
            })
            .map_err(at(segment_path(*number)))?;
        }
        found.lost.retain(|it| !went_on.contains(&it.void.log));
        for lost in &found.lost {
            tracing::error!(
                log = %lost.void.log,
                first = %lost.void.first_position,
                last = %lost.void.last_position(),
                segment = lost.segment,
                reason = lost.reason,
                "what lies here beyond the cut of a fence cannot be read and is given up; \
                 the segment is kept in the folder `damaged`"
            );
        }
        Ok(found)
    }

    fn visit(
        &self,
        segment: &Segment,
        item: Item,
        found: &mut Beyond,
        went_on: &mut BTreeSet<LogId>,
    ) -> io::Result<()> {
        let lose = |void: Envelope, reason: &str| Lost {
            segment: segment.number,
            void: void.stranded(),
            reason: reason.to_owned(),
        };
        let is_beyond = |log: LogId, first: Position| {
            let tail = self.due.get(&log);
            tail.filter(|tail| first > tail.after)
        };
        match item {
            Item::Entry(entry) => {
                let envelope = entry.envelope;
                let Some(block) = entry.block else {
                    return Ok(());
                };
                let header = *block.header();
                let Some(tail) = is_beyond(header.log, header.first_position) else {
                    return Ok(());
                };
                if header.epoch.major > tail.generation {
                    went_on.insert(header.log);
                } else if block.chain() != envelope.chain {
                    let reason = "the block does not hash to the chain in its envelope";
                    found.lost.push(lose(envelope, reason));
                } else {
                    found.places.push(Place {
                        segment: segment.number,
                        envelope,
                        header,
                    });
                }
            }
            Item::Bad(Bad {
                envelope: Some(envelope),
                reason,
                ..
            }) => {
                let named = envelope.kind == Kind::Block && envelope.count > 0;
                if named && is_beyond(envelope.log, envelope.first_position).is_some() {
                    found.lost.push(lose(*envelope, &reason));
                }
            }
            // Only the index can tell what was there.
            Item::Bad(bad) => {
                let rows = |index: &crate::index::Index| index.blocks_between(bad.offset, bad.end);
                let rows = self.core.ask(segment, rows).map_err(io::Error::other)?;
                for row in rows {
                    let void = self.void_of(segment, &row);
                    let fits = row.offset + void.entry_bytes() <= bad.end;
                    if fits && is_beyond(row.log, row.first).is_some() {
                        found.lost.push(lose(void, &bad.reason));
                    }
                }
            }
        }
        Ok(())
    }

    // What stands for a block of which only the index is left.
    fn void_of(&self, segment: &Segment, row: &BlockRow) -> Envelope {
        let own = LogOffset::new(segment.number, row.offset);
        let segments = self.core.segments();
        // The first entry of a segment is what says where the one before it ends.
        let before = segments.range(..segment.number).next_back();
        let durable = match before {
            Some((number, before)) if row.offset == SEGMENT_HEADER_BYTES => {
                LogOffset::new(*number, before.index().summary().end)
            }
            _ => own,
        };
        Envelope {
            kind: Kind::Block,
            own,
            durable,
            payload_bytes: row.bytes,
            log: row.log,
            incarnation: Incarnation::default(),
            count: row.count,
            first_position: row.first,
            chain: Chain::EMPTY,
        }
    }

    // Writes what is to be stranded beside the log, with what is there already.
    fn keep(&self, found: &Beyond) -> Result<Vec<Stranded>, StrandError> {
        let mut stranded = Vec::new();
        for tail in self.due.values() {
            let io = at(blocks_path(tail.log, tail.generation));
            let places = found.places.iter();
            let places: Vec<Place> = places
                .filter(|it| it.header.log == tail.log)
                .copied()
                .collect();
            let lost = found.lost.iter().filter(|it| it.void.log == tail.log);
            let unreadable: Vec<_> = lost
                .map(|it| (it.void.first_position, it.void.last_position()))
                .collect();
            let header = self.keep_tail(*tail, places).map_err(io)?;
            if header.is_none() && unreadable.is_empty() {
                continue;
            }
            let header = header.unwrap_or_else(|| summary(*tail, []));
            stranded.push(Stranded {
                tail: *tail,
                first: header.first,
                last: header.last,
                events: header.events,
                bytes: header.bytes,
                unreadable,
            });
        }
        Ok(stranded)
    }

    // What the file says then, if there is one.
    fn keep_tail(&self, tail: StrandedTail, places: Vec<Place>) -> io::Result<Option<Header>> {
        let disk = &*self.disk;
        let held = read_file(disk, tail.log, tail.generation)?;
        let (header, blocks, damage) = match held {
            Some(held) => (held.header, held.blocks, held.damage),
            None => (None, Vec::new(), None),
        };
        let key = |header: &BlockHeader, chain: Chain| (header.first_position, chain.0);
        let held = blocks.into_iter();
        let mut all: BTreeMap<_, Source> = held
            .map(|block| (key(block.header(), block.chain()), Source::Held(block)))
            .collect();
        let count = all.len();
        for place in places {
            all.entry(key(&place.header, place.envelope.chain))
                .or_insert(Source::Place(place));
        }
        let nothing_new = all.len() == count;
        let same_cut = header.is_none_or(|header| header.tail == tail);
        if nothing_new && (same_cut || damage.is_some()) {
            return Ok(header);
        }
        if let Some((offset, reason)) = damage {
            tracing::error!(
                log = %tail.log, generation = tail.generation, offset, reason,
                "a file of stranded blocks is damaged; a copy of it is kept beside it, and what can \
                 be read of it is written again"
            );
            keep_aside(disk, tail.log, tail.generation)?;
        }
        let header = summary(tail, all.values().map(Source::header));
        let blocks = all.values().map(|source| match source {
            Source::Held(block) => Ok(block.bytes().clone()),
            Source::Place(place) => self.read(place),
        });
        write_file(disk, header, blocks)?;
        Ok(Some(header))
    }

    fn read(&self, place: &Place) -> io::Result<Bytes> {
        let bytes = place.envelope.payload_bytes as usize;
        let offset = place.envelope.own.offset;
        // It was sound a moment ago, so a bit that flips on its way is met by looking again.
        for _ in 0..3 {
            let read = self.core.read_entry(place.segment, offset, bytes)?;
            let block = read.ok().filter(|it| it.chain() == place.envelope.chain);
            if let Some(block) = block {
                return Ok(block.bytes().clone());
            }
        }
        let reason = "a block that was sound a moment ago cannot be read any more";
        Err(io::Error::other(reason))
    }

    // Puts voids in the places of what is kept beside the log by now, and of what is given up.
    fn void(&self, found: &Beyond) -> Result<(), StrandError> {
        let mut patches: BTreeMap<u64, Vec<Patch>> = BTreeMap::new();
        let places = found.places.iter();
        let places = places.map(|it| (it.segment, it.envelope.stranded()));
        let lost = found.lost.iter().map(|it| (it.segment, it.void));
        for (segment, void) in places.chain(lost) {
            patches.entry(segment).or_default().push(patch(void));
        }
        let damaged: BTreeSet<u64> = found.lost.iter().map(|it| it.segment).collect();
        for (number, patches) in patches.iter().rev() {
            if damaged.contains(number) {
                keep_damaged(&*self.disk, *number).map_err(at(segment_path(*number)))?;
            }
            // Before the segment changes: it would name what is not there any more.
            self.remove_index(*number)
                .map_err(at(index_path(*number)))?;
            self.core.files.forget(*number);
            replace_segment(&*self.disk, *number, patches).map_err(at(segment_path(*number)))?;
        }
        Ok(())
    }

    fn remove_index(&self, number: u64) -> io::Result<()> {
        let path = index_path(number);
        if !self.disk.exists(&path)? {
            return Ok(());
        }
        self.disk.remove(&path)?;
        self.disk.sync_dir(LOG_FOLDER)
    }
}

enum Source {
    Held(Block),
    Place(Place),
}

impl Source {
    fn header(&self) -> &BlockHeader {
        match self {
            Self::Held(block) => block.header(),
            Self::Place(place) => &place.header,
        }
    }
}

fn patch(void: Envelope) -> Patch {
    let mut bytes = void.to_bytes().to_vec();
    bytes.resize(ENVELOPE_BYTES + void.payload_bytes as usize, 0);
    Patch {
        offset: void.own.offset,
        bytes,
    }
}

fn at(path: String) -> impl Fn(io::Error) -> StrandError {
    move |source| {
        let path = path.clone();
        StrandError::Io { path, source }
    }
}

fn from_read(error: ReadError) -> StrandError {
    match error {
        ReadError::Io { path, source } => StrandError::Io { path, source },
        // Indexes are asked for places only, and damaged ones are made anew.
        ReadError::Damaged(range) => StrandError::Io {
            path: segment_path(range.segment),
            source: io::Error::other(range.to_string()),
        },
    }
}

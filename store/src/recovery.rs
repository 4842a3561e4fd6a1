//! Opening a data folder, whatever ended the last life of the node.
//!
//! 1. Take the lock.
//! 2. Remove what was being written beside its final name (`….new`) and the empty segments that
//!    were prepared ahead. The last segment with a sound entry is the *last* one; all before it
//!    are sealed.
//! 3. Sealed segments: read the footer of each index file; make a missing or damaged index anew.
//! 4. The last segment: read it whole (see `walk` for what counts), make its index in memory.
//! 5. If the tail is torn, zero it. A later life could otherwise write entries up to exactly where
//!    an unfinished one of this life still stands, and take it for its own.
//! 6. Write the entries that were in doubt once more and sync the last segment, the zeros and a
//!    mark included. Until now they may only have been in the page cache of a process that was
//!    killed, or that a sync failed for; from here on they count as durable.
//! 7. If the last segment is damaged, it is sealed as it is and a new one is begun, so that it can
//!    be repaired by replacing its file.
//!
//! Every step leaves a folder from which recovery comes to the same result, so a crash during
//! recovery is like any other.

use std::io;
use std::sync::Arc;

use meridian_clock::Timestamp;
use meridian_points::reached;

use crate::build::{Built, Heads, build_index};
use crate::core::{Core, Segment, View, advance_heads, end_told_by_next, note_gaps};
use crate::damage::Register;
use crate::envelope::{ENVELOPE_BYTES, Envelope};
use crate::files::Files;
use crate::index::{FileIndex, Index, IndexError, MemoryIndex};
use crate::queue::{Fill, Open, Queue};
use crate::repair::keep_damaged;
use crate::segment::{
    HeaderState, LOG_FOLDER, SEGMENT_HEADER_BYTES, header_bytes, index_path, numbers, prepare,
    read_header, segment_path,
};
use crate::walk::{Window, end_of_content, next_envelope};
use crate::{Disk, DiskFile, LogOffset, OpenError, Recovery, StoreOptions, checked_file};

/// Where it is remembered that heads are uncertain.
pub(crate) const UNCERTAIN_PATH: &str = "heads-uncertain";

type SegmentMap = std::collections::BTreeMap<u64, Arc<Segment>>;

/// Recovers the log on `disk`, whose lock is held.
pub(crate) fn recover(
    disk: Arc<dyn Disk>,
    options: StoreOptions,
) -> Result<(Core, Recovery), OpenError> {
    let mut recovery = Recovery::default();
    let files = Arc::new(Files::new(Arc::clone(&disk)));
    let at = |path: &str| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    disk.create_dir_all(LOG_FOLDER).map_err(at(LOG_FOLDER))?;
    remove_unfinished(&*disk).map_err(at(LOG_FOLDER))?;
    let known_uncertain = disk.exists(UNCERTAIN_PATH).map_err(at(UNCERTAIN_PATH))?;

    let mut segments = SegmentMap::new();
    let mut damage = Register::default();
    let mut heads = Heads::new();
    let numbers = used_segments(&*disk, &files, &mut recovery)?;
    let sealed = &numbers[..numbers.len().saturating_sub(1)];
    let mut to_seal = Vec::new();
    let mut fresh_holes = false;
    for (place, number) in sealed.iter().enumerate() {
        let path = segment_path(*number);
        let known_end = || end_told_by_next(&files, *number, numbers[place + 1]).map_err(at(&path));
        let index = match FileIndex::open(&files, *number) {
            Ok(Some(index)) => Index::File(index),
            Err(IndexError::Io(source)) => return Err(at(&index_path(*number))(source)),
            missing => {
                let reason = missing.err().map(|error| error.to_string());
                tracing::info!(
                    segment = number,
                    reason = reason.as_deref().unwrap_or("it is missing"),
                    "making an index anew from its segment"
                );
                files.forget(*number);
                let file = files.segment(*number).map_err(at(&path))?;
                let built =
                    build_index(&*file, *number, known_end()?, heads.clone()).map_err(at(&path))?;
                fresh_holes |= !built.index.summary.holes.is_empty();
                to_seal.push(*number);
                Index::Memory(built.index)
            }
        };
        damage.take_summary(*number, index.summary());
        advance_heads(&mut heads, index.summary());
        segments.insert(*number, Segment::new(*number, index));
    }
    load_filters(&segments, options.filter_bytes_max);

    let mut last = open_last(&*disk, &files, &options, &numbers, heads)?;
    if last.index.summary.end == SEGMENT_HEADER_BYTES
        && let Some((before, segment)) = segments.range(..last.number).next_back()
    {
        last.durable = LogOffset::new(*before, segment.index().summary().end);
    }
    damage.take_summary(last.number, &last.index.summary);
    fresh_holes |= !last.index.summary.holes.is_empty();
    if last.tail_torn {
        reached("a torn tail was cut at a start");
    }
    recovery.tail_cut |= last.tail_torn;
    recovery.heads_uncertain |= last.file_was_cut;
    // Written down before the evidence goes: a crash right after the cut must not hide it.
    recovery.heads_uncertain |= recovery.tail_cut || fresh_holes;
    if recovery.heads_uncertain && !known_uncertain {
        checked_file::replace(&*disk, UNCERTAIN_PATH, b"").map_err(at(UNCERTAIN_PATH))?;
    }
    recovery.heads_uncertain |= known_uncertain;
    let is_damaged = damage.concerns(last.number) || !last.index.summary.holes.is_empty();
    let LastSegment {
        number,
        index,
        heads,
        durable,
        ..
    } = finish_last(&*disk, &files, &options, last, is_damaged)?;

    segments.insert(number, Segment::new(number, Index::Memory(index)));
    let mut open_number = number;
    if is_damaged {
        open_number = number + 1;
        let path = segment_path(open_number);
        prepare(
            &*disk,
            open_number,
            options.segment_bytes,
            options.zeros_at_first(),
        )
        .map_err(at(&path))?;
        let mut empty = MemoryIndex::default();
        empty.summary.end = SEGMENT_HEADER_BYTES;
        segments.insert(open_number, Segment::new(open_number, Index::Memory(empty)));
        to_seal.push(number);
    }
    note_gaps(&segments, &mut damage);

    let file = files
        .segment(open_number)
        .map_err(at(&segment_path(open_number)))?;
    let len = file.len().map_err(at(&segment_path(open_number)))?;
    let tail = segments
        .get(&open_number)
        .map_or(SEGMENT_HEADER_BYTES, |open| open.index().summary().end);
    let open = Open {
        number: open_number,
        len,
        tail,
        events: segments
            .get(&open_number)
            .map_or(0, |open| open.index().summary().events),
        marked: !is_damaged,
        fill: Fill {
            until: tail + options.zeros_at_first(),
            claim: None,
        },
    };
    recovery.was_empty = heads.is_empty();
    recovery.damaged = damage.ranges();
    recovery.holes = damage.holes();
    recovery.last_stamp = heads
        .values()
        .map(|head| head.timestamp)
        .max()
        .unwrap_or(Timestamp::ZERO);
    let mut queue = Queue::new(open, durable, heads.clone());
    queue.to_seal.extend(to_seal);
    let view = View {
        segments: Arc::new(segments),
        heads,
        end: LogOffset::new(open_number, tail),
    };
    Ok((
        Core::new(disk, options, files, queue, view, damage),
        recovery,
    ))
}

// Files that were being written beside their final name; the final one is still as it was.
fn remove_unfinished(disk: &dyn Disk) -> io::Result<()> {
    let unfinished: Vec<String> = disk
        .list(LOG_FOLDER)?
        .into_iter()
        .filter(|name| name.ends_with(".new"))
        .collect();
    for name in &unfinished {
        disk.remove(&format!("{LOG_FOLDER}/{name}"))?;
    }
    if !unfinished.is_empty() {
        disk.sync_dir(LOG_FOLDER)?;
    }
    Ok(())
}

// The segments that hold entries, ascending. Those prepared ahead go away: what they hold, if
// anything, is a first write that never finished.
fn used_segments(
    disk: &dyn Disk,
    files: &Files,
    recovery: &mut Recovery,
) -> Result<Vec<u64>, OpenError> {
    let at = |path: String| move |source| OpenError::Io { path, source };
    let mut numbers = numbers(disk, "seg").map_err(at(LOG_FOLDER.to_owned()))?;
    for number in &numbers {
        let path = segment_path(*number);
        let file = files.segment(*number).map_err(at(path.clone()))?;
        match read_header(&*file, *number).map_err(at(path.clone()))? {
            HeaderState::Newer(found) => return Err(OpenError::NewerFormat { path, found }),
            HeaderState::Damaged => tracing::warn!(path, "the segment's header is damaged"),
            HeaderState::Cut { .. } => tracing::warn!(path, "the segment's file was cut"),
            HeaderState::Sound => {}
        }
    }
    while let Some(number) = numbers.last().copied() {
        let path = segment_path(number);
        let file = files.segment(number).map_err(at(path.clone()))?;
        let mut window = Window::new(&*file).map_err(at(path.clone()))?;
        let until = window.len();
        let first = next_envelope(&mut window, number, SEGMENT_HEADER_BYTES, until)
            .map_err(at(path.clone()))?;
        if first.is_some() {
            break;
        }
        let content_end =
            end_of_content(&mut window, SEGMENT_HEADER_BYTES).map_err(at(path.clone()))?;
        // Either its header never became durable, or everything in it is gone.
        let header = read_header(&*file, number).map_err(at(path.clone()))?;
        recovery.heads_uncertain |= header != HeaderState::Sound;
        if content_end > SEGMENT_HEADER_BYTES {
            recovery.tail_cut = true;
            keep_damaged(disk, number).map_err(at(path.clone()))?;
        }
        files.forget(number);
        disk.remove(&path).map_err(at(path))?;
        numbers.pop();
    }
    disk.sync_dir(LOG_FOLDER)
        .map_err(at(LOG_FOLDER.to_owned()))?;
    Ok(numbers)
}

struct LastSegment {
    number: u64,
    index: MemoryIndex,
    heads: Heads,
    /// What lies beyond the end and has to go.
    content_end: u64,
    tail_torn: bool,
    /// The file is shorter than it was made, so entries may be gone without a trace.
    file_was_cut: bool,
    ends_with_mark: bool,
    /// Whether what lies from here to the end ever became durable is not known.
    doubtful_from: u64,
    durable: LogOffset,
}

fn open_last(
    disk: &dyn Disk,
    files: &Files,
    options: &StoreOptions,
    numbers: &[u64],
    heads: Heads,
) -> Result<LastSegment, OpenError> {
    let Some(number) = numbers.last().copied() else {
        let path = segment_path(1);
        prepare(disk, 1, options.segment_bytes, options.zeros_at_first())
            .map_err(|source| OpenError::Io { path, source })?;
        let mut index = MemoryIndex::default();
        index.summary.end = SEGMENT_HEADER_BYTES;
        return Ok(LastSegment {
            number: 1,
            index,
            heads,
            content_end: SEGMENT_HEADER_BYTES,
            tail_torn: false,
            file_was_cut: false,
            // There is nothing yet that a mark could protect.
            ends_with_mark: true,
            doubtful_from: SEGMENT_HEADER_BYTES,
            durable: LogOffset::new(1, SEGMENT_HEADER_BYTES),
        });
    };
    let at = |source| OpenError::Io {
        path: segment_path(number),
        source,
    };
    let file = files.segment(number).map_err(at)?;
    let Built {
        index,
        heads,
        walked,
        ends_with_mark,
    } = build_index(&*file, number, None, heads).map_err(at)?;
    Ok(LastSegment {
        number,
        durable: LogOffset::new(number, walked.end),
        content_end: walked.content_end,
        tail_torn: walked.content_end > walked.end,
        doubtful_from: walked.durable.max(SEGMENT_HEADER_BYTES),
        file_was_cut: matches!(
            read_header(&*file, number).map_err(at)?,
            HeaderState::Cut { .. }
        ),
        index,
        heads,
        ends_with_mark,
    })
}

// Makes the last segment fit to be appended to, or to be sealed, and durable in any case.
fn finish_last(
    disk: &dyn Disk,
    files: &Files,
    options: &StoreOptions,
    mut last: LastSegment,
    is_damaged: bool,
) -> Result<LastSegment, OpenError> {
    let number = last.number;
    let path = segment_path(number);
    let at = |source| OpenError::Io {
        path: path.clone(),
        source,
    };
    let index = index_path(number);
    // It was sealed when the segment after it was begun, and that one turned out to hold nothing.
    if disk.exists(&index).map_err(at)? {
        files.forget(number);
        disk.remove(&index).map_err(at)?;
        disk.sync_dir(LOG_FOLDER).map_err(at)?;
    }
    let file = files.segment(number).map_err(at)?;
    match read_header(&*file, number).map_err(at)? {
        HeaderState::Damaged => {
            let len = file.len().map_err(at)?;
            let header = header_bytes(number, len);
            file.write_all_at(&header, 0).map_err(at)?;
        }
        HeaderState::Cut { len } => file.allocate(len).map_err(at)?,
        HeaderState::Sound | HeaderState::Newer(_) => {}
    }
    write_again(&*file, last.doubtful_from, last.index.summary.end).map_err(at)?;
    let zeros = vec![0; 256 << 10];
    let mut from = last.index.summary.end;
    while from < last.content_end {
        let count = usize::try_from(last.content_end - from).unwrap_or(usize::MAX);
        let piece = &zeros[..count.min(zeros.len())];
        file.write_all_at(piece, from).map_err(at)?;
        from += piece.len() as u64;
    }
    let end = last.index.summary.end;
    let room = end + ENVELOPE_BYTES as u64 <= file.len().map_err(at)?;
    if !last.ends_with_mark && room && !is_damaged {
        // The zeros must not be able to overtake the mark, nor the entries before it.
        file.sync_data().map_err(at)?;
        let own = LogOffset::new(number, end);
        let mark = Envelope::of_mark(own, last.durable);
        file.write_all_at(&mark.to_bytes(), end).map_err(at)?;
        last.index.summary.end = end + mark.entry_bytes();
        last.durable = LogOffset::new(number, last.index.summary.end);
    }
    if !is_damaged {
        // What the last life reserved and did not write: the housekeeper begins beyond it.
        let from = last.index.summary.end;
        let until = file.len().map_err(at)?.min(from + options.zeros_at_first());
        let count = usize::try_from(until.saturating_sub(from)).unwrap_or(0);
        file.write_all_at(&vec![0; count], from).map_err(at)?;
    }
    file.sync_data().map_err(at)?;
    Ok(last)
}

// A sync that failed may have left bytes in the system's cache that count as written and are not on
// the disk, and no later sync writes them. What the last life did not see become durable is written
// once more, as it is, so that the sync that follows speaks for it.
fn write_again(file: &dyn DiskFile, from: u64, end: u64) -> io::Result<()> {
    const PIECE_BYTES: u64 = 256 << 10;
    let mut at = from;
    while at < end {
        let count = usize::try_from(PIECE_BYTES.min(end - at)).unwrap_or(0);
        let mut piece = vec![0; count];
        let read = file.read_at(&mut piece, at)?;
        if read == 0 {
            return Ok(());
        }
        reached("what was in doubt was written again at a start");
        file.write_all_at(&piece[..read], at)?;
        at += read as u64;
    }
    Ok(())
}

/// Takes the filters of the newest segments into memory, as many as may be.
pub(crate) fn load_filters(segments: &SegmentMap, mut budget_bytes: usize) {
    for segment in segments.values().rev() {
        if let Index::File(index) = &mut *segment.index_mut()
            && let Err(error) = index.load_filters(&mut budget_bytes)
        {
            // Found again, and mended, when the filter is asked.
            tracing::warn!(segment = segment.number, %error, "a filter cannot be read");
            index.drop_filters();
        }
    }
}

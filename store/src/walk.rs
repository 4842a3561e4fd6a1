//! Reading a segment entry by entry, and finding the way again after damaged bytes.
//!
//! How a torn tail is told from corruption: every envelope carries the place up to which the log
//! was durable when it was written. Let *m* be the furthest such place that any sound envelope of
//! the segment names. Bad bytes before *m* were durable once, so they are corruption: kept,
//! reported, not served, and what follows them stays. The first bad bytes at or after *m* are a
//! write that never finished; nobody was told that it, or anything after it, is durable, so the log
//! ends there.

use std::io;

use bytes::Bytes;
use meridian_event::Block;
use meridian_event::block::BLOCK_BYTES_MAX;
use meridian_points::{Bug, planted};

use crate::envelope::{ALIGN_BYTES, ENVELOPE_BYTES, Envelope, Kind, has_magic};
use crate::segment::SEGMENT_HEADER_BYTES;
use crate::{DiskFile, LogOffset};

// How often bytes that are no entry are read before they are believed to be damaged on the disk, and
// not on their way from it.
const LOOKS: u32 = 3;
// As large as sequential reads gain from (measured), and small beside a node's memory.
const CHUNK_BYTES: usize = 512 << 10;

/// A file read through a sliding buffer.
pub(crate) struct Window<'a> {
    file: &'a dyn DiskFile,
    len: u64,
    chunk_bytes: usize,
    start: u64,
    bytes: Bytes,
}

impl<'a> Window<'a> {
    pub(crate) fn new(file: &'a dyn DiskFile) -> io::Result<Self> {
        Ok(Self {
            file,
            len: file.len()?,
            chunk_bytes: CHUNK_BYTES,
            start: 0,
            bytes: Bytes::new(),
        })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Reads pieces of about this many bytes.
    pub(crate) fn in_pieces(&mut self, chunk_bytes: usize) {
        self.chunk_bytes = chunk_bytes.min(CHUNK_BYTES);
    }

    /// Does not read beyond `end`, so that what is being appended there is left alone.
    pub(crate) fn limit(&mut self, end: u64) {
        self.len = self.len.min(end);
    }

    /// The bytes at `offset`: `count` of them, fewer only at the end of the file.
    pub(crate) fn get(&mut self, offset: u64, count: usize) -> io::Result<Bytes> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = count.min(left);
        let end = offset + count as u64;
        let held_end = self.start + self.bytes.len() as u64;
        if offset < self.start || end > held_end {
            let mut chunk = vec![0; count.max(self.chunk_bytes).min(left)];
            let read = self.file.read_at(&mut chunk, offset)?;
            chunk.truncate(read);
            self.start = offset;
            self.bytes = chunk.into();
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        let to = self.bytes.len().min(from + count);
        Ok(self.bytes.slice(from.min(to)..to))
    }
}

/// A sound entry.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) offset: u64,
    pub(crate) envelope: Envelope,
    /// In an entry of [`Kind::Block`] only.
    pub(crate) block: Option<Block>,
}

/// Bytes that should be an entry and are none.
#[derive(Clone, Debug)]
pub(crate) struct Bad {
    pub(crate) offset: u64,
    pub(crate) end: u64,
    pub(crate) reason: String,
    /// When the envelope is sound and only its block is not.
    pub(crate) envelope: Option<Box<Envelope>>,
}

/// Reads the entry at `offset`; what is no sound entry is looked at again, past the buffer.
///
/// # Errors
/// The outer error is the disk's; the inner one says that no sound entry is there, its `end` not
/// being known unless the envelope is.
pub(crate) fn entry_at(
    window: &mut Window<'_>,
    segment: u64,
    offset: u64,
) -> io::Result<Result<Entry, Bad>> {
    for _ in 1..LOOKS {
        let entry = look_at(window, segment, offset)?;
        if entry.is_ok() {
            return Ok(entry);
        }
        window.bytes = Bytes::new();
    }
    look_at(window, segment, offset)
}

fn look_at(window: &mut Window<'_>, segment: u64, offset: u64) -> io::Result<Result<Entry, Bad>> {
    let bad = |reason: &str| {
        Ok(Err(Bad {
            offset,
            end: offset,
            reason: reason.to_owned(),
            envelope: None,
        }))
    };
    let bytes = window.get(offset, ENVELOPE_BYTES)?;
    let envelope = match Envelope::parse(&bytes, LogOffset::new(segment, offset)) {
        Ok(envelope) => envelope,
        Err(reason) => return bad(reason),
    };
    let payload_bytes = envelope.payload_bytes as usize;
    if offset + envelope.entry_bytes() > window.len() {
        return bad("the segment ends inside a block");
    }
    if envelope.kind == Kind::Block && payload_bytes > BLOCK_BYTES_MAX {
        return bad("the envelope announces an impossible block");
    }
    let payload = match envelope.kind {
        Kind::Block => window.get(offset + ENVELOPE_BYTES as u64, payload_bytes)?,
        Kind::Mark | Kind::Void => Bytes::new(),
    };
    Ok(check_entry(offset, envelope, &payload))
}

/// The entry with this envelope and payload, if it is sound.
pub(crate) fn check_entry(offset: u64, envelope: Envelope, payload: &Bytes) -> Result<Entry, Bad> {
    let bad = |reason: String| Bad {
        offset,
        end: offset + envelope.entry_bytes(),
        reason,
        envelope: Some(Box::new(envelope)),
    };
    if envelope.kind != Kind::Block {
        return Ok(Entry {
            offset,
            envelope,
            block: None,
        });
    }
    let block = Block::parse(payload).map_err(|error| bad(error.to_string()))?;
    let header = block.header();
    let same = header.log == envelope.log
        && header.incarnation == envelope.incarnation
        && header.first_position == envelope.first_position
        && header.count == envelope.count
        && block.bytes().len() == envelope.payload_bytes as usize;
    if !same {
        let reason = "the block is not the one its envelope names";
        return Err(bad(reason.to_owned()));
    }
    Ok(Entry {
        offset,
        envelope,
        block: Some(block),
    })
}

/// Where the next sound envelope at or after `from` begins, before `until`.
pub(crate) fn next_envelope(
    window: &mut Window<'_>,
    segment: u64,
    from: u64,
    until: u64,
) -> io::Result<Option<u64>> {
    let mut at = from.next_multiple_of(ALIGN_BYTES);
    while at < until {
        let chunk = window.get(at, CHUNK_BYTES)?;
        if chunk.len() < ENVELOPE_BYTES {
            return Ok(None);
        }
        for place in (0..chunk.len() - (ENVELOPE_BYTES - 1)).step_by(ALIGN_BYTES as usize) {
            let offset = at + place as u64;
            if offset < until
                && has_magic(&chunk[place..])
                && Envelope::parse(&chunk[place..], LogOffset::new(segment, offset)).is_ok()
            {
                return Ok(Some(offset));
            }
        }
        // The last few bytes may begin an envelope that the next chunk ends.
        let advance = (chunk.len() - (ENVELOPE_BYTES - 1)) as u64;
        at += advance
            .next_multiple_of(ALIGN_BYTES)
            .min(chunk.len() as u64);
        if chunk.len() < CHUNK_BYTES {
            return Ok(None);
        }
    }
    Ok(None)
}

/// The end of the last byte at or after `from` that is not zero, or `from`.
pub(crate) fn end_of_content(window: &mut Window<'_>, from: u64) -> io::Result<u64> {
    let mut end = from;
    let mut at = from;
    while at < window.len() {
        let chunk = window.get(at, CHUNK_BYTES)?;
        if chunk.is_empty() {
            break;
        }
        if let Some(last) = last_nonzero(&chunk) {
            end = at + last as u64 + 1;
        }
        at += chunk.len() as u64;
    }
    Ok(end)
}

fn last_nonzero(bytes: &[u8]) -> Option<usize> {
    // Compared in pieces against zeros, which is many times faster than byte by byte.
    const ZEROS: [u8; 4096] = [0; 4096];
    let pieces = bytes.chunks(ZEROS.len()).enumerate();
    let (index, piece) = pieces
        .rev()
        .find(|(_, piece)| **piece != ZEROS[..piece.len()])?;
    let last = piece.iter().rposition(|byte| *byte != 0)?;
    Some(index * ZEROS.len() + last)
}

/// What lies in a segment, in order.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one is alive at a time, and most are entries"
)]
pub(crate) enum Item {
    Entry(Entry),
    Bad(Bad),
}

/// Where a segment's entries end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walked {
    /// The end of the last entry that counts.
    pub(crate) end: u64,
    /// The end of what lies beyond and does not count; equal to `end` when that is only zeros.
    pub(crate) content_end: u64,
    /// The furthest place that an entry says was durable when it was written; at most `end`.
    pub(crate) durable: u64,
}

/// Visits what counts of a segment in order, sound and damaged.
///
/// `known_end` is where the segment ends, if that is known from the one after it.
pub(crate) fn walk<E: From<io::Error>>(
    file: &dyn DiskFile,
    segment: u64,
    known_end: Option<u64>,
    mut visit: impl FnMut(Item) -> Result<(), E>,
) -> Result<Walked, E> {
    let mut window = Window::new(file)?;
    let limit = known_end.unwrap_or(u64::MAX).min(window.len());
    let mut durable = known_end.unwrap_or(0);
    // From the first bad bytes on, what counts is known only at the end.
    let mut undecided: Vec<Item> = Vec::new();
    let mut at = SEGMENT_HEADER_BYTES;
    // Only zeros follow.
    let mut clean = false;
    while at < limit {
        let item = match entry_at(&mut window, segment, at)? {
            Ok(entry) => Item::Entry(entry),
            Err(mut bad) => {
                if bad.envelope.is_none() {
                    let content_end = match known_end {
                        Some(_) => limit,
                        None => end_of_content(&mut window, at)?.min(limit),
                    };
                    if content_end == at {
                        clean = true;
                        break;
                    }
                    let next = next_envelope(&mut window, segment, at + ALIGN_BYTES, content_end)?;
                    bad.end = next.unwrap_or(content_end);
                }
                Item::Bad(bad)
            }
        };
        let (envelope, end) = match &item {
            Item::Entry(entry) => (Some(entry.envelope), at + entry.envelope.entry_bytes()),
            Item::Bad(bad) => (bad.envelope.as_deref().copied(), bad.end),
        };
        if let Some(envelope) = envelope
            && envelope.durable.segment == segment
        {
            durable = durable.max(envelope.durable.offset);
        }
        at = end;
        if undecided.is_empty() && matches!(item, Item::Entry(_)) {
            visit(item)?;
        } else {
            undecided.push(item);
        }
    }
    let mut end = at.min(limit);
    let torn = undecided
        .iter()
        .position(|item| matches!(item, Item::Bad(bad) if bad.offset >= durable))
        .filter(|_| !planted(Bug::KeepTornTail));
    if let Some(torn) = torn {
        if let Item::Bad(bad) = &undecided[torn] {
            end = bad.offset;
        }
        undecided.truncate(torn);
    }
    for item in undecided {
        visit(item)?;
    }
    // Entries end at a multiple of 8, a run of bad bytes need not.
    let end = end.next_multiple_of(ALIGN_BYTES);
    let content_end = match (clean && torn.is_none()) || known_end.is_some() {
        true => end,
        false => end_of_content(&mut window, end)?.max(end),
    };
    Ok(Walked {
        end,
        content_end,
        durable: durable.min(end),
    })
}

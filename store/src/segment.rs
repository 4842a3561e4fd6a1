//! Segment files: their names, their header, and how one is prepared.
//!
//! `log/00000001.seg` and so on, numbered from 1. A segment begins with
//!
//! ```text
//! 0   magic "MRSG"        4
//! 4   format version      1   this module writes 1
//! 5   reserved            3   zero
//! 8   segment number      8
//! 16  length              8   of the file, at least: a shorter one was cut
//! 24  reserved           36   zero
//! 60  crc32c              4   of bytes 0..60
//! 64  entries, each an envelope and its payload
//! ```
//!
//! and is zero after its last entry. A segment is reserved at its full length and its header is
//! durable, under its name, before the first entry is written. A segment is *sealed*, and never
//! written again, once an entry stands in the one after it; that happens only when every entry of
//! it is durable, so the first entry of a segment says where the one before it ends.
//!
//! The version covers everything in the segment: a build that writes entries or blocks of a newer
//! format writes them into segments of a higher version only. An older build then refuses to open
//! the folder, instead of taking what it cannot read for damage.

use std::io;
use std::sync::Arc;

use meridian_event::crc32c;

use crate::{Disk, DiskFile};

/// The folder of segments and their indexes.
pub(crate) const LOG_FOLDER: &str = "log";
/// Where the first entry begins.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = 64;

const MAGIC: [u8; 4] = *b"MRSG";
const VERSION: u8 = 1;

pub(crate) fn segment_path(segment: u64) -> String {
    format!("{LOG_FOLDER}/{segment:08}.seg")
}

pub(crate) fn index_path(segment: u64) -> String {
    format!("{LOG_FOLDER}/{segment:08}.idx")
}

/// The numbers of the files in the log folder that end in `.{ending}`, ascending.
pub(crate) fn numbers(disk: &dyn Disk, ending: &str) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = disk
        .list(LOG_FOLDER)?
        .iter()
        .filter_map(|name| name.rsplit_once('.'))
        .filter(|(_, its_ending)| *its_ending == ending)
        .filter_map(|(number, _)| number.parse().ok())
        .filter(|number| *number > 0)
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

pub(crate) fn header_bytes(segment: u64, len: u64) -> [u8; SEGMENT_HEADER_BYTES as usize] {
    let mut out = [0; SEGMENT_HEADER_BYTES as usize];
    out[..4].copy_from_slice(&MAGIC);
    out[4] = VERSION;
    out[8..16].copy_from_slice(&segment.to_le_bytes());
    out[16..24].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c(&[&out[..60]]);
    out[60..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// What a segment's first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderState {
    Sound,
    /// The header is sound, but the file is shorter than it was made.
    Cut {
        len: u64,
    },
    Newer(u8),
    Damaged,
}

pub(crate) fn read_header(file: &dyn DiskFile, segment: u64) -> io::Result<HeaderState> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
    let read = file.read_at(&mut bytes, 0)?;
    if read < bytes.len() || bytes[..4] != MAGIC {
        return Ok(HeaderState::Damaged);
    }
    if bytes[60..] != crc32c(&[&bytes[..60]]).to_le_bytes() {
        return Ok(HeaderState::Damaged);
    }
    if bytes[4] > VERSION {
        return Ok(HeaderState::Newer(bytes[4]));
    }
    let mut len = [0; 8];
    len.copy_from_slice(&bytes[16..24]);
    let len = u64::from_le_bytes(len);
    if bytes != header_bytes(segment, len) {
        return Ok(HeaderState::Damaged);
    }
    match file.len()? < len {
        true => Ok(HeaderState::Cut { len }),
        false => Ok(HeaderState::Sound),
    }
}

/// Makes an empty segment of `len` bytes, durably, the first `zeros_until` of them written. On an
/// error nothing is left behind, as far as the disk lets us.
pub(crate) fn prepare(
    disk: &dyn Disk,
    segment: u64,
    len: u64,
    zeros_until: u64,
) -> io::Result<Arc<dyn DiskFile>> {
    let path = segment_path(segment);
    let made = (|| {
        let file = disk.open(&path, true)?;
        file.set_len(0)?;
        file.allocate(len)?;
        let mut start = header_bytes(segment, len).to_vec();
        start.resize(start.len().max(small(zeros_until.min(len))), 0);
        file.write_all_at(&start, 0)?;
        file.sync_data()?;
        disk.sync_dir(LOG_FOLDER)?;
        Ok(file)
    })();
    if made.is_err() {
        // Half a segment would be taken for a whole one and run out of room under a commit.
        let _ = disk.remove(&path);
        let _ = disk.sync_dir(LOG_FOLDER);
    }
    made
}

fn small(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

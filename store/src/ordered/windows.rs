//! Pieces of segments in which the next small blocks of several logs lie.
//!
//! The blocks of all logs are interleaved on disk, about in the order in which they are merged. A
//! block that is large is worth a read of its own; small ones are read many at a time, whichever
//! log they belong to.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use crate::core::Core;

/// From this length on, a block is read by itself.
const READ_ALONE_BYTES: usize = 8 << 10;
const WINDOW_BYTES_MAX: usize = 64 << 10;
const WINDOW_BYTES_MIN: usize = 2 * READ_ALONE_BYTES;
/// What the windows of one reader hold in all.
const WINDOWS_BYTES_MAX: usize = 2 << 20;

#[derive(Debug)]
struct Window {
    bytes: Vec<u8>,
    used: u64,
}

/// The pieces that were read last.
#[derive(Debug)]
pub(super) struct Windows {
    // By segment and where they begin.
    held: BTreeMap<(u64, u64), Window>,
    window_bytes: usize,
    uses: u64,
}

impl Windows {
    /// With as many windows as logs, as far as the budget allows: then logs that stand at different
    /// places do not push out each other's.
    pub(super) fn for_logs(logs: usize) -> Self {
        let share = WINDOWS_BYTES_MAX / logs.max(1);
        Self {
            held: BTreeMap::new(),
            window_bytes: share.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX),
            uses: 0,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.held.values().map(|window| window.bytes.len()).sum()
    }

    pub(super) fn clear(&mut self) {
        self.held.clear();
    }

    /// The `len` bytes at `offset`, which are committed; fewer if the file is shorter. A copy, so
    /// that whoever keeps it does not keep the window.
    pub(super) fn get(
        &mut self,
        core: &Core,
        segment: u64,
        offset: u64,
        len: usize,
        committed_end: u64,
    ) -> io::Result<Bytes> {
        if len >= READ_ALONE_BYTES {
            return Ok(read(core, segment, offset, len)?.into());
        }
        self.uses += 1;
        let before = self.held.range_mut(..=(segment, offset)).next_back();
        if let Some((&(of, start), window)) = before
            && of == segment
        {
            let from = usize::try_from(offset - start).unwrap_or(usize::MAX);
            if let Some(bytes) = window.bytes.get(from..from.saturating_add(len)) {
                window.used = self.uses;
                return Ok(Bytes::copy_from_slice(bytes));
            }
        }
        // Beyond the committed end something else may be written any time.
        let left = usize::try_from(committed_end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = read(core, segment, offset, len.max(self.window_bytes.min(left)))?;
        let block = Bytes::copy_from_slice(&bytes[..len.min(bytes.len())]);
        while self.held.len() * self.window_bytes >= WINDOWS_BYTES_MAX {
            let oldest = self.held.iter().min_by_key(|(_, window)| window.used);
            let Some(oldest) = oldest.map(|(place, _)| *place) else {
                break;
            };
            self.held.remove(&oldest);
        }
        let used = self.uses;
        self.held.insert((segment, offset), Window { bytes, used });
        Ok(block)
    }
}

fn read(core: &Core, segment: u64, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let read = core.files.segment(segment)?.read_at(&mut bytes, offset)?;
    bytes.truncate(read);
    Ok(bytes)
}

//! A filter that tells, for most keys that a segment does not hold, that it does not.
//!
//! Lines of 64 bytes, one per about 42 keys. A key's 128-bit hash chooses a line with its lower
//! half, and six of the line's 512 bits with its upper half, nine bits of hash each. A key is absent
//! unless all six are set. On disk, a page holds 63 lines.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::IndexError;
use super::table::{PageWriter, read_page};
use crate::DiskFile;

const LINE_BYTES: usize = 64;
const LINES_PER_PAGE: u64 = 63;
const BITS_PER_KEY: u64 = 12;
const PROBES: u32 = 6;

/// Where a filter is in its file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Filter {
    lines: u64,
    first_page: u32,
}

/// A filter's bits in memory.
#[derive(Debug)]
pub(super) struct FilterBits(Vec<u8>);

impl FilterBits {
    pub(super) fn with_room_for(keys: u64) -> Self {
        let lines = (keys * BITS_PER_KEY).div_ceil(LINE_BYTES as u64 * 8).max(1);
        let bytes = usize::try_from(lines).unwrap_or(usize::MAX) * LINE_BYTES;
        Self(vec![0; bytes])
    }

    fn lines(&self) -> u64 {
        (self.0.len() / LINE_BYTES) as u64
    }

    pub(super) fn insert(&mut self, hash: u128) {
        let start = usize::try_from(line_of(hash, self.lines())).unwrap_or(0) * LINE_BYTES;
        for bit in bits_of(hash) {
            self.0[start + bit / 8] |= 1 << (bit % 8);
        }
    }

    pub(super) fn may_hold(&self, hash: u128) -> bool {
        let start = usize::try_from(line_of(hash, self.lines())).unwrap_or(0) * LINE_BYTES;
        line_may_hold(&self.0[start..start + LINE_BYTES], hash)
    }

    pub(super) fn write<W: Write>(&self, pages: &mut PageWriter<W>) -> io::Result<Filter> {
        let first_page = pages.next_page();
        for line in self.0.chunks(LINE_BYTES) {
            pages.push(line)?;
        }
        pages.end_page()?;
        Ok(Filter {
            lines: self.lines(),
            first_page,
        })
    }
}

impl Filter {
    /// How much memory all of it takes.
    pub(super) fn bytes(&self) -> usize {
        usize::try_from(self.lines)
            .unwrap_or(usize::MAX)
            .saturating_mul(LINE_BYTES)
    }

    pub(super) fn load(&self, file: &dyn DiskFile) -> Result<FilterBits, IndexError> {
        let mut bits = Vec::new();
        for page in 0..self.lines.div_ceil(LINES_PER_PAGE) {
            let lines = LINES_PER_PAGE.min(self.lines - page * LINES_PER_PAGE);
            let page = read_page(file, self.page(page))?;
            bits.extend_from_slice(&page[..usize::try_from(lines).unwrap_or(0) * LINE_BYTES]);
        }
        Ok(FilterBits(bits))
    }

    /// As [`FilterBits::may_hold`], reading one page.
    pub(super) fn may_hold(&self, file: &dyn DiskFile, hash: u128) -> Result<bool, IndexError> {
        if self.lines == 0 {
            return Err(IndexError::Damaged("a filter without lines"));
        }
        let line = line_of(hash, self.lines);
        let page = read_page(file, self.page(line / LINES_PER_PAGE))?;
        let start = usize::try_from(line % LINES_PER_PAGE).unwrap_or(0) * LINE_BYTES;
        Ok(line_may_hold(&page[start..start + LINE_BYTES], hash))
    }

    fn page(&self, number: u64) -> u32 {
        self.first_page
            .saturating_add(u32::try_from(number).unwrap_or(u32::MAX))
    }
}

fn line_of(hash: u128, lines: u64) -> u64 {
    // The lower half scaled to the number of lines.
    let lower = u128::from(hash as u64);
    ((lower * u128::from(lines)) >> 64) as u64
}

fn bits_of(hash: u128) -> impl Iterator<Item = usize> {
    let upper = (hash >> 64) as u64;
    (0..PROBES).map(move |probe| ((upper >> (probe * 9)) & 511) as usize)
}

fn line_may_hold(line: &[u8], hash: u128) -> bool {
    bits_of(hash).all(|bit| line[bit / 8] & (1 << (bit % 8)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::stream_hash;

    #[test]
    fn every_key_is_found_and_few_others_are() {
        let mut bits = FilterBits::with_room_for(10_000);
        let hash = |number: u32| stream_hash(&format!("order-{number}"));
        for number in 0..10_000 {
            bits.insert(hash(number));
        }
        assert!((0..10_000).all(|number| bits.may_hold(hash(number))));
        let wrong = (10_000..110_000)
            .filter(|n| bits.may_hold(hash(*n)))
            .count();
        assert!(wrong < 1_500, "{wrong} of 100,000 absent keys passed");
    }
}

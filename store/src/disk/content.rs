//! The bytes of a simulated file, without those that are zero.

use std::collections::BTreeMap;

const PAGE_BYTES: u64 = 4096;

/// A file's bytes: pages that were never written are not there and read as zeros.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let available = self.len.saturating_sub(offset);
        let count = buf
            .len()
            .min(usize::try_from(available).unwrap_or(usize::MAX));
        let buf = &mut buf[..count];
        for (place, page, in_page) in pieces(offset, count) {
            match self.pages.get(&page) {
                Some(bytes) => buf[place.clone()].copy_from_slice(&bytes[in_page]),
                None => buf[place].fill(0),
            }
        }
        count
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        self.len = self.len.max(offset + bytes.len() as u64);
        for (place, page, in_page) in pieces(offset, bytes.len()) {
            let piece = &bytes[place];
            if !self.pages.contains_key(&page) && piece.iter().all(|byte| *byte == 0) {
                continue;
            }
            let page = self
                .pages
                .entry(page)
                .or_insert_with(|| vec![0; PAGE_BYTES as usize].into());
            page[in_page].copy_from_slice(piece);
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        self.len = len;
        self.pages.retain(|page, _| page * PAGE_BYTES < len);
        if let Some(page) = self.pages.get_mut(&(len / PAGE_BYTES)) {
            page[(len % PAGE_BYTES) as usize..].fill(0);
        }
    }
}

type Piece = (std::ops::Range<usize>, u64, std::ops::Range<usize>);

// Splits `count` bytes at `offset` by page: where in the buffer, which page, where in the page.
fn pieces(offset: u64, count: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == count {
            return None;
        }
        let at = offset + done as u64;
        let in_page = (at % PAGE_BYTES) as usize;
        let length = (count - done).min(PAGE_BYTES as usize - in_page);
        let start = done;
        done += length;
        Some((start..done, at / PAGE_BYTES, in_page..in_page + length))
    })
}

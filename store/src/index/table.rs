//! A sorted table of fixed-width rows in pages of 4 KiB.
//!
//! A page holds as many whole rows as fit into its first 4092 bytes, zeros after them, and the
//! crc32c of its own number (4 bytes, little-endian) and those 4092 bytes. Rows begin with their
//! key, whose numbers are big-endian, so that keys compare as bytes. After the pages of rows come
//! *fence* pages, which hold the first key of each page of rows in the same way; the first key of
//! each fence page is in the footer, and so in memory. A look-up reads one page of each kind.

use std::io::{self, Write};

use meridian_event::crc32c;
use serde::{Deserialize, Serialize};

use super::IndexError;
use crate::DiskFile;

pub(super) const PAGE_BYTES: usize = 4096;
pub(super) const PAGE_CONTENT_BYTES: usize = PAGE_BYTES - 4;

/// Where a table is in its file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    key_bytes: u32,
    row_bytes: u32,
    rows: u64,
    first_page: u32,
    first_fence_page: u32,
    roots: Vec<u8>,
}

/// Writes pages one after the other.
pub(super) struct PageWriter<W> {
    out: W,
    page: Vec<u8>,
    next_page: u32,
}

impl<W: Write> PageWriter<W> {
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            page: Vec::with_capacity(PAGE_BYTES),
            next_page: 0,
        }
    }

    pub(super) fn next_page(&self) -> u32 {
        self.next_page
    }

    /// Adds `row` to the current page, or to the next one if it does not fit. Returns whether it
    /// is the first of its page.
    pub(super) fn push(&mut self, row: &[u8]) -> io::Result<bool> {
        if self.page.len() + row.len() > PAGE_CONTENT_BYTES {
            self.end_page()?;
        }
        self.page.extend_from_slice(row);
        Ok(self.page.len() == row.len())
    }

    /// Ends the current page, if anything is on it.
    pub(super) fn end_page(&mut self) -> io::Result<()> {
        if self.page.is_empty() {
            return Ok(());
        }
        self.page.resize(PAGE_CONTENT_BYTES, 0);
        let crc = page_crc(self.next_page, &self.page);
        self.page.extend_from_slice(&crc.to_le_bytes());
        self.out.write_all(&self.page)?;
        self.page.clear();
        self.next_page += 1;
        Ok(())
    }

    pub(super) fn into_inner(self) -> W {
        self.out
    }
}

/// Writes a table of `rows`, which ascend.
pub(super) fn write_table<W: Write, const ROW: usize>(
    pages: &mut PageWriter<W>,
    key_bytes: usize,
    rows: impl Iterator<Item = [u8; ROW]>,
) -> io::Result<Table> {
    let first_page = pages.next_page();
    let mut fences: Vec<u8> = Vec::new();
    let mut count = 0;
    for row in rows {
        if pages.push(&row)? {
            fences.extend_from_slice(&row[..key_bytes]);
        }
        count += 1;
    }
    pages.end_page()?;
    let first_fence_page = pages.next_page();
    let mut roots = Vec::new();
    for fence in fences.chunks(key_bytes) {
        if pages.push(fence)? {
            roots.extend_from_slice(fence);
        }
    }
    pages.end_page()?;
    let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(Table {
        key_bytes: small(key_bytes),
        row_bytes: small(ROW),
        rows: count,
        first_page,
        first_fence_page,
        roots,
    })
}

fn page_crc(number: u32, content: &[u8]) -> u32 {
    crc32c(&[&number.to_le_bytes(), content])
}

/// Reads a page and checks it.
pub(super) fn read_page(file: &dyn DiskFile, number: u32) -> Result<Box<[u8]>, IndexError> {
    let mut page = vec![0; PAGE_BYTES];
    let read = file.read_at(&mut page, u64::from(number) * PAGE_BYTES as u64)?;
    if read < PAGE_BYTES {
        return Err(IndexError::Damaged("it is cut short"));
    }
    if page[PAGE_CONTENT_BYTES..] != page_crc(number, &page[..PAGE_CONTENT_BYTES]).to_le_bytes() {
        return Err(IndexError::Damaged("a page fails its checksum"));
    }
    page.truncate(PAGE_CONTENT_BYTES);
    Ok(page.into())
}

/// Reads a table, keeping the page it read last.
pub(super) struct TableReader<'a> {
    table: &'a Table,
    file: &'a dyn DiskFile,
    held: Option<(u32, Box<[u8]>)>,
}

impl Table {
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn reader<'a>(&'a self, file: &'a dyn DiskFile) -> TableReader<'a> {
        TableReader {
            table: self,
            file,
            held: None,
        }
    }

    fn key_bytes(&self) -> usize {
        self.key_bytes as usize
    }

    fn rows_per_page(&self) -> u64 {
        (PAGE_CONTENT_BYTES / self.row_bytes as usize) as u64
    }

    fn fences_per_page(&self) -> usize {
        PAGE_CONTENT_BYTES / self.key_bytes()
    }

    // Whether what the footer says can be, so that a forged one leads to no absurd read.
    pub(super) fn is_possible(&self, key_bytes: usize, row_bytes: usize) -> bool {
        self.key_bytes() == key_bytes
            && self.row_bytes as usize == row_bytes
            && self.roots.len().is_multiple_of(key_bytes)
    }
}

impl TableReader<'_> {
    /// The number of the first row whose key is `key` or greater.
    pub(super) fn lower_bound(&mut self, key: &[u8]) -> Result<u64, IndexError> {
        let table = self.table;
        let key_bytes = table.key_bytes();
        // The last page whose first key is not above `key` holds the bound, or the page after it.
        let roots: Vec<&[u8]> = table.roots.chunks(key_bytes).collect();
        let Some(fence_page) = roots.partition_point(|root| *root < key).checked_sub(1) else {
            return Ok(0);
        };
        let per_page = table.fences_per_page();
        let data_pages = table.rows.div_ceil(table.rows_per_page());
        let before = fence_page as u64 * per_page as u64;
        let on_page = usize::try_from(data_pages - before)
            .unwrap_or(usize::MAX)
            .min(per_page);
        let number = table.first_fence_page + u32::try_from(fence_page).unwrap_or(u32::MAX);
        let fences = self.page(number)?;
        let fences: Vec<&[u8]> = fences.chunks_exact(key_bytes).take(on_page).collect();
        let in_page = fences.partition_point(|fence| *fence < key).max(1) - 1;
        let data_page = before + in_page as u64;
        let first_row = data_page * table.rows_per_page();
        let row_bytes = table.row_bytes as usize;
        let on_page = (table.rows - first_row).min(table.rows_per_page());
        let page = self.page(table.first_page + u32::try_from(data_page).unwrap_or(u32::MAX))?;
        let rows: Vec<&[u8]> = page
            .chunks_exact(row_bytes)
            .take(usize::try_from(on_page).unwrap_or(usize::MAX))
            .collect();
        let below = rows.partition_point(|row| &row[..key_bytes] < key);
        Ok(first_row + below as u64)
    }

    /// Row `number`, if there is one.
    pub(super) fn row(&mut self, number: u64) -> Result<Option<&[u8]>, IndexError> {
        let table = self.table;
        if number >= table.rows {
            return Ok(None);
        }
        let per_page = table.rows_per_page();
        let page = u32::try_from(number / per_page).unwrap_or(u32::MAX);
        let row_bytes = table.row_bytes as usize;
        let start = usize::try_from(number % per_page).unwrap_or(0) * row_bytes;
        let page = self.page(table.first_page.saturating_add(page))?;
        Ok(page.get(start..start + row_bytes))
    }

    fn page(&mut self, number: u32) -> Result<&[u8], IndexError> {
        let page = match self.held.take() {
            Some((held, page)) if held == number => page,
            _ => read_page(self.file, number)?,
        };
        Ok(&self.held.insert((number, page)).1)
    }
}

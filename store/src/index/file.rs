//! The index file of a sealed segment.
//!
//! `log/00000001.idx`: pages of 4 KiB (see `table`) with the three tables and two filters, then a
//! footer and a trailer:
//!
//! ```text
//! pages
//!   blocks   key: origin 2, partition 2, first position 8;  then count 4, place 4, length 4
//!   streams  key: stream hash 16, origin 2, revision 8;     then timestamp 8, place 4, ordinal 4
//!   ids      key: event id 16;                              then place 4, ordinal 4
//!   filter of stream hashes, filter of event ids
//! footer     postcard: where each table and filter is, and the segment's summary
//! trailer
//!   0   magic "MRIX"        4
//!   4   format version      1   this module writes 1
//!   5   reserved            3   zero
//!   8   segment number      8   little-endian, as are all below
//!   16  footer offset       8
//!   24  footer length       4
//!   28  crc32c              4   of bytes 0..28 and the footer
//! ```
//!
//! A *place* is the offset of an entry's envelope in the segment, divided by 8. Numbers in rows are
//! big-endian. The file is written under another name, synced, and renamed.

use std::io::{self, Write};
use std::sync::Arc;

use meridian_clock::{LogId, PartitionId, Position, RegionId, Timestamp};
use meridian_event::{Revision, crc32c};
use serde::{Deserialize, Serialize};

use super::filter::{Filter, FilterBits};
use super::memory::SmallPlace;
use super::table::{PAGE_BYTES, PageWriter, Table, TableReader, read_page, write_table};
use super::{BlockRow, IndexError, MemoryIndex, OriginPart, Place, StreamRow, Summary};
use crate::segment::{LOG_FOLDER, index_path};
use crate::{Disk, DiskFile};

const MAGIC: [u8; 4] = *b"MRIX";
const VERSION: u8 = 1;
const TRAILER_BYTES: u64 = 32;

const BLOCK_KEY_BYTES: usize = 12;
const BLOCK_ROW_BYTES: usize = 24;
const STREAM_KEY_BYTES: usize = 26;
const STREAM_ROW_BYTES: usize = 42;
const ID_KEY_BYTES: usize = 16;
const ID_ROW_BYTES: usize = 24;

#[derive(Debug, Serialize, Deserialize)]
struct Footer {
    blocks: Table,
    streams: Table,
    ids: Table,
    stream_filter: Filter,
    id_filter: Filter,
    pages: u32,
    summary: Summary,
}

/// The index of a sealed segment: its footer in memory, the rest on disk.
#[derive(Debug)]
pub(crate) struct FileIndex {
    segment: u64,
    files: Arc<crate::files::Files>,
    footer: Footer,
    // The newest segments' filters are held in memory, the others' are read when asked.
    stream_bits: Option<FilterBits>,
    id_bits: Option<FilterBits>,
}

/// Writes the index of `segment` durably beside it.
pub(crate) fn write_index(disk: &dyn Disk, segment: u64, index: &MemoryIndex) -> io::Result<()> {
    let path = index_path(segment);
    let fresh = format!("{path}.new");
    let file = disk.open(&fresh, true)?;
    file.set_len(0)?;
    let mut pages = PageWriter::new(Appender::new(file));

    let blocks = write_table(&mut pages, BLOCK_KEY_BYTES, block_rows(index))?;

    let streams = write_table(&mut pages, STREAM_KEY_BYTES, stream_rows(index))?;
    let ids = write_table(&mut pages, ID_KEY_BYTES, id_rows(index))?;

    let held = index.streams();
    let mut stream_bits = FilterBits::with_room_for(held.len() as u64);
    for stream in held {
        stream_bits.insert(stream);
    }
    let held = index.ids();
    let mut id_bits = FilterBits::with_room_for(held.len() as u64);
    for (id, _) in held {
        id_bits.insert(id_hash(id));
    }

    let footer = Footer {
        blocks,
        streams,
        ids,
        stream_filter: stream_bits.write(&mut pages)?,
        id_filter: id_bits.write(&mut pages)?,
        pages: pages.next_page(),
        summary: index.summary.clone(),
    };
    let offset = u64::from(footer.pages) * PAGE_BYTES as u64;
    let footer = postcard::to_stdvec(&footer).map_err(io::Error::other)?;
    let mut trailer = Vec::with_capacity(TRAILER_BYTES as usize);
    trailer.extend_from_slice(&MAGIC);
    trailer.extend_from_slice(&[VERSION, 0, 0, 0]);
    trailer.extend_from_slice(&segment.to_le_bytes());
    trailer.extend_from_slice(&offset.to_le_bytes());
    let length = u32::try_from(footer.len()).map_err(io::Error::other)?;
    trailer.extend_from_slice(&length.to_le_bytes());
    let crc = crc32c(&[&trailer, &footer]);
    trailer.extend_from_slice(&crc.to_le_bytes());

    let mut out = pages.into_inner();
    out.write_all(&footer)?;
    out.write_all(&trailer)?;
    out.finish()?;
    disk.rename(&fresh, &path)?;
    disk.sync_dir(LOG_FOLDER)
}

fn block_rows(index: &MemoryIndex) -> impl Iterator<Item = [u8; BLOCK_ROW_BYTES]> + '_ {
    index.blocks.iter().map(|((log, first), block)| {
        let mut row = [0; BLOCK_ROW_BYTES];
        row[..12].copy_from_slice(&block_key(*log, *first));
        row[12..16].copy_from_slice(&block.count.to_be_bytes());
        row[16..20].copy_from_slice(&block.eighth.to_be_bytes());
        row[20..].copy_from_slice(&block.bytes.to_be_bytes());
        row
    })
}

fn stream_rows(index: &MemoryIndex) -> impl Iterator<Item = [u8; STREAM_ROW_BYTES]> + '_ {
    index.events().map(|(stream, origin, event)| {
        let mut row = [0; STREAM_ROW_BYTES];
        row[..26].copy_from_slice(&stream_key(stream, origin, event.revision));
        row[26..34].copy_from_slice(&event.timestamp.0.to_be_bytes());
        row[34..38].copy_from_slice(&event.place.eighth.to_be_bytes());
        row[38..].copy_from_slice(&event.place.ordinal.to_be_bytes());
        row
    })
}

fn id_rows(index: &MemoryIndex) -> impl Iterator<Item = [u8; ID_ROW_BYTES]> + '_ {
    index.ids().into_iter().map(|(id, place)| {
        let mut row = [0; ID_ROW_BYTES];
        row[..16].copy_from_slice(&id.to_be_bytes());
        row[16..20].copy_from_slice(&place.eighth.to_be_bytes());
        row[20..].copy_from_slice(&place.ordinal.to_be_bytes());
        row
    })
}

// Whether a table has other rows than these.
fn table_differs<const ROW: usize>(
    mut table: TableReader<'_>,
    rows: impl Iterator<Item = [u8; ROW]>,
) -> Result<bool, IndexError> {
    let mut at = 0;
    for row in rows {
        if table.row(at)? != Some(&row[..]) {
            return Ok(true);
        }
        at += 1;
    }
    Ok(table.row(at)?.is_some())
}

// Collects writes into pieces that are worth a call each.
struct Appender {
    file: Arc<dyn DiskFile>,
    at: u64,
    buffer: Vec<u8>,
}

impl Appender {
    const PIECE_BYTES: usize = 256 << 10;

    fn new(file: Arc<dyn DiskFile>) -> Self {
        Self {
            file,
            at: 0,
            buffer: Vec::with_capacity(Self::PIECE_BYTES + PAGE_BYTES),
        }
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync_data()
    }
}

impl Write for Appender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= Self::PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

fn block_key(log: LogId, first: Position) -> [u8; BLOCK_KEY_BYTES] {
    let mut key = [0; BLOCK_KEY_BYTES];
    key[..2].copy_from_slice(&log.origin.0.to_be_bytes());
    key[2..4].copy_from_slice(&log.partition.0.to_be_bytes());
    key[4..].copy_from_slice(&first.0.to_be_bytes());
    key
}

fn stream_key(stream: u128, origin: RegionId, revision: Revision) -> [u8; STREAM_KEY_BYTES] {
    let mut key = [0; STREAM_KEY_BYTES];
    key[..16].copy_from_slice(&stream.to_be_bytes());
    key[16..18].copy_from_slice(&origin.0.to_be_bytes());
    key[18..].copy_from_slice(&revision.0.to_be_bytes());
    key
}

// Ids that clients make are not spread evenly: a version 7 UUID begins with the time.
fn id_hash(id: u128) -> u128 {
    xxhash_rust::xxh3::xxh3_128(&id.to_be_bytes())
}

fn array_at<const N: usize>(row: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&row[at..at + N]);
    array
}

fn u16_at(row: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array_at(row, at))
}

fn u32_at(row: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(row, at))
}

fn u64_at(row: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array_at(row, at))
}

fn block_row(row: &[u8]) -> BlockRow {
    BlockRow {
        log: LogId::new(RegionId(u16_at(row, 0)), PartitionId(u16_at(row, 2))),
        first: Position(u64_at(row, 4)),
        count: u32_at(row, 12),
        offset: u64::from(u32_at(row, 16)) * 8,
        bytes: u32_at(row, 20),
    }
}

fn place_at(row: &[u8], at: usize) -> Place {
    SmallPlace {
        eighth: u32_at(row, at),
        ordinal: u32_at(row, at + 4),
    }
    .place()
}

fn stream_row(row: &[u8]) -> StreamRow {
    StreamRow {
        origin: RegionId(u16_at(row, 16)),
        revision: Revision(u64_at(row, 18)),
        timestamp: Timestamp(u64_at(row, 26)),
        place: place_at(row, 34),
    }
}

impl FileIndex {
    /// Opens the index file of `segment`; `None` when there is none.
    pub(crate) fn open(
        files: &Arc<crate::files::Files>,
        segment: u64,
    ) -> Result<Option<Self>, IndexError> {
        let file = match files.index(segment) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let damaged = |reason| Err(IndexError::Damaged(reason));
        let len = file.len()?;
        let Some(trailer_at) = len.checked_sub(TRAILER_BYTES) else {
            return damaged("it is cut short");
        };
        let mut trailer = [0; TRAILER_BYTES as usize];
        if file.read_at(&mut trailer, trailer_at)? < trailer.len() || trailer[..4] != MAGIC {
            return damaged("it does not end as it should");
        }
        if trailer[4] != VERSION {
            return damaged("it is of another format version");
        }
        let footer_at = u64::from_le_bytes(array_at(&trailer, 16));
        let footer_bytes = u32::from_le_bytes(array_at(&trailer, 24));
        if trailer[8..16] != segment.to_le_bytes()
            || footer_at.checked_add(u64::from(footer_bytes)) != Some(trailer_at)
        {
            return damaged("it belongs elsewhere, or is cut short");
        }
        let mut footer = vec![0; footer_bytes as usize];
        if file.read_at(&mut footer, footer_at)? < footer.len()
            || trailer[28..] != crc32c(&[&trailer[..28], &footer]).to_le_bytes()
        {
            return damaged("its footer fails its checksum");
        }
        let Ok(footer) = postcard::from_bytes::<Footer>(&footer) else {
            return damaged("its footer does not parse");
        };
        let possible = footer.blocks.is_possible(BLOCK_KEY_BYTES, BLOCK_ROW_BYTES)
            && footer
                .streams
                .is_possible(STREAM_KEY_BYTES, STREAM_ROW_BYTES)
            && footer.ids.is_possible(ID_KEY_BYTES, ID_ROW_BYTES);
        if !possible {
            return damaged("its footer is impossible");
        }
        Ok(Some(Self {
            segment,
            files: Arc::clone(files),
            footer,
            stream_bits: None,
            id_bits: None,
        }))
    }

    pub(crate) fn summary(&self) -> &Summary {
        &self.footer.summary
    }

    /// Takes the filters into memory if they fit into `budget_bytes`, which shrinks by what they
    /// take.
    pub(crate) fn load_filters(&mut self, budget_bytes: &mut usize) -> Result<(), IndexError> {
        let bytes = self.footer.stream_filter.bytes() + self.footer.id_filter.bytes();
        let Some(left) = budget_bytes.checked_sub(bytes) else {
            self.drop_filters();
            // Older segments get none either, or a small old one would outlive a large new one.
            *budget_bytes = 0;
            return Ok(());
        };
        if self.stream_bits.is_some() {
            *budget_bytes = left;
            return Ok(());
        }
        let file = self.file()?;
        self.stream_bits = Some(self.footer.stream_filter.load(&*file)?);
        self.id_bits = Some(self.footer.id_filter.load(&*file)?);
        *budget_bytes = left;
        Ok(())
    }

    /// Drops the filters from memory; they are then read from disk.
    pub(crate) fn drop_filters(&mut self) {
        self.stream_bits = None;
        self.id_bits = None;
    }

    /// Reads every page and checks it. Returns how many bytes that were.
    pub(crate) fn check(&self) -> Result<u64, IndexError> {
        let file = self.file()?;
        for page in 0..self.footer.pages {
            read_page(&*file, page)?;
        }
        Ok(u64::from(self.footer.pages) * PAGE_BYTES as u64)
    }

    /// In which way it says other things than `built`, which was just made from the segment.
    pub(crate) fn differs_from(
        &self,
        built: &MemoryIndex,
    ) -> Result<Option<&'static str>, IndexError> {
        let file = self.file()?;
        let Footer {
            blocks,
            streams,
            ids,
            summary,
            ..
        } = &self.footer;
        if table_differs(blocks.reader(&*file), block_rows(built))? {
            return Ok(Some("its blocks are not those of its segment"));
        }
        if table_differs(streams.reader(&*file), stream_rows(built))? {
            return Ok(Some("its streams are not those of its segment"));
        }
        if table_differs(ids.reader(&*file), id_rows(built))? {
            return Ok(Some("its event ids are not those of its segment"));
        }
        let other = (summary.end, summary.events, &summary.spans)
            != (
                built.summary.end,
                built.summary.events,
                &built.summary.spans,
            );
        Ok(other.then_some("its summary is not that of its segment"))
    }

    fn file(&self) -> io::Result<Arc<dyn DiskFile>> {
        self.files.index(self.segment)
    }

    pub(super) fn block_before(
        &self,
        log: LogId,
        position: Position,
    ) -> Result<Option<BlockRow>, IndexError> {
        let file = self.file()?;
        let mut blocks = self.footer.blocks.reader(&*file);
        let at = blocks.lower_bound(&block_key(log, Position(position.0.saturating_add(1))))?;
        let Some(before) = at.checked_sub(1) else {
            return Ok(None);
        };
        Ok(blocks.row(before)?.map(block_row))
    }

    pub(super) fn blocks_from(
        &self,
        log: LogId,
        first: Position,
        limit: usize,
    ) -> Result<Vec<BlockRow>, IndexError> {
        let file = self.file()?;
        let mut blocks = self.footer.blocks.reader(&*file);
        let mut at = blocks.lower_bound(&block_key(log, first))?;
        let mut rows = Vec::new();
        while rows.len() < limit
            && let Some(row) = blocks.row(at)?.map(block_row)
            && row.log == log
        {
            rows.push(row);
            at += 1;
        }
        Ok(rows)
    }

    pub(super) fn blocks_between(
        &self,
        from: u64,
        until: u64,
    ) -> Result<Vec<BlockRow>, IndexError> {
        let file = self.file()?;
        let mut blocks = self.footer.blocks.reader(&*file);
        let mut rows = Vec::new();
        for at in 0..self.footer.blocks.rows() {
            let row = blocks.row(at)?.map(block_row);
            rows.extend(row.filter(|row| row.offset >= from && row.offset < until));
        }
        Ok(rows)
    }

    pub(super) fn event(&self, id: u128) -> Result<Option<Place>, IndexError> {
        let hash = id_hash(id);
        if self
            .id_bits
            .as_ref()
            .is_some_and(|bits| !bits.may_hold(hash))
        {
            return Ok(None);
        }
        let file = self.file()?;
        if self.id_bits.is_none() && !self.footer.id_filter.may_hold(&*file, hash)? {
            return Ok(None);
        }
        let mut ids = self.footer.ids.reader(&*file);
        let key = id.to_be_bytes();
        let at = ids.lower_bound(&key)?;
        let row = ids.row(at)?.filter(|row| row[..ID_KEY_BYTES] == key);
        Ok(row.map(|row| place_at(row, ID_KEY_BYTES)))
    }

    // The file, unless it holds nothing of `stream`. While the filter is in memory a file that is
    // not needed is not even opened.
    fn file_with_stream(&self, stream: u128) -> Result<Option<Arc<dyn DiskFile>>, IndexError> {
        if let Some(bits) = &self.stream_bits {
            return Ok(match bits.may_hold(stream) {
                true => Some(self.file()?),
                false => None,
            });
        }
        let file = self.file()?;
        let may_hold = self.footer.stream_filter.may_hold(&*file, stream)?;
        Ok(may_hold.then_some(file))
    }

    pub(super) fn stream_origins(&self, stream: u128) -> Result<Vec<OriginPart>, IndexError> {
        let mut origins = Vec::new();
        let Some(file) = self.file_with_stream(stream)? else {
            return Ok(origins);
        };
        let mut streams = self.footer.streams.reader(&*file);
        let mut at = streams.lower_bound(&stream_key(stream, RegionId(0), Revision(0)))?;
        while let Some(first) = streams.row(at)? {
            if first[..16] != stream.to_be_bytes() {
                break;
            }
            let first = stream_row(first);
            let Some(next) = first.origin.0.checked_add(1) else {
                break;
            };
            let begin = at;
            at = streams.lower_bound(&stream_key(stream, RegionId(next), Revision(0)))?;
            let last = streams.row(at.saturating_sub(1))?.map(stream_row);
            let last = last.map_or(first.revision, |last| last.revision);
            origins.push(OriginPart {
                origin: first.origin,
                first: first.revision,
                last,
                count: at.saturating_sub(begin),
            });
        }
        Ok(origins)
    }

    pub(super) fn stream_rows(
        &self,
        stream: u128,
        origin: RegionId,
        from: Revision,
        forwards: bool,
        limit: usize,
    ) -> Result<Vec<StreamRow>, IndexError> {
        let mut rows = Vec::new();
        let Some(file) = self.file_with_stream(stream)? else {
            return Ok(rows);
        };
        let mut streams = self.footer.streams.reader(&*file);
        let prefix = &stream_key(stream, origin, Revision(0))[..18];
        if forwards {
            let mut at = streams.lower_bound(&stream_key(stream, origin, from))?;
            while rows.len() < limit
                && let Some(row) = streams.row(at)?
                && row[..18] == *prefix
            {
                rows.push(stream_row(row));
                at += 1;
            }
            return Ok(rows);
        }
        let beyond = Revision(from.0.saturating_add(1));
        let mut at = streams.lower_bound(&stream_key(stream, origin, beyond))?;
        // The greatest revision of all has no successor to search for.
        if from == Revision(u64::MAX)
            && streams
                .row(at)?
                .is_some_and(|row| row[..26] == stream_key(stream, origin, from))
        {
            at += 1;
        }
        while rows.len() < limit
            && let Some(before) = at.checked_sub(1)
            && let Some(row) = streams.row(before)?
            && row[..18] == *prefix
        {
            rows.push(stream_row(row));
            at = before;
        }
        Ok(rows)
    }
}

//! Files of what a region wrote beyond the cut of a fence: `stranded/1-0-1.blocks` for origin 1,
//! partition 0, generation 1.
//!
//! ```text
//! 0   magic "MRST"        4
//! 4   format version      1   this module writes 1
//! 5   reserved            3   zero
//! 8   origin              2
//! 10  partition           2
//! 12  generation          4   that was cut
//! 16  cut                 8   the position it was cut at
//! 24  first position      8   of the first block
//! 32  last position       8   the furthest
//! 40  events              8
//! 48  blocks              4
//! 52  length of blocks    8
//! 60  crc32c              4   of bytes 0..60
//! 64  blocks, verbatim, one after the other, by first position
//!     magic "MRSE"        4   the file is complete
//!     seal                4   from 0 on, crc32c of the seal before and a block's chain hash, block by block
//! ```
//!
//! A file is written under another name, synced and renamed, so one that is not complete was damaged.

use std::collections::BTreeSet;
use std::io;

use bytes::Bytes;
use meridian_clock::{LogId, PartitionId, Position, RegionId};
use meridian_event::block::{BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES};
use meridian_event::{Block, BlockHeader, Chain, crc32c};

use crate::repair::copy_file;
use crate::{Disk, DiskFile, checked_file};

/// The folder of stranded blocks.
pub(crate) const STRANDED_FOLDER: &str = "stranded";

const MAGIC: [u8; 4] = *b"MRST";
const END_MAGIC: [u8; 4] = *b"MRSE";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 64;
const TRAILER_BYTES: usize = 8;
// Written in pieces of about this many bytes.
const PIECE_BYTES: usize = 1 << 20;

/// What of a log is kept apart because it lies beyond a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StrandedTail {
    /// Which log it was part of.
    pub log: LogId,
    /// The generation that was cut ([`Epoch::major`](meridian_clock::Epoch::major)).
    pub generation: u32,
    /// The position it was cut at: everything in it is beyond.
    pub after: Position,
}

/// Why stranded blocks could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadStrandedError {
    /// Nothing is stranded there.
    #[error("there is no {path}")]
    Missing {
        /// The file, below the data folder.
        path: String,
    },
    /// Its bytes changed since they were written. Restore the file from a backup; the blocks before
    /// the damage are still whole in it.
    #[error("{path} is damaged at byte {offset}: {reason}; restore it from a backup")]
    Damaged {
        /// The file, below the data folder.
        path: String,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// The disk failed.
    #[error("read {path}")]
    Io {
        /// The file, below the data folder.
        path: String,
        /// What the disk said.
        source: io::Error,
    },
}

/// What is stranded in this data folder, ascending. Of a file whose header is damaged the cut is
/// taken from beside it, or is 0; [`read_stranded`] says what is wrong with it.
///
/// # Errors
/// When the disk fails.
pub fn stranded(disk: &dyn Disk) -> io::Result<Vec<StrandedTail>> {
    let mut tails = Vec::new();
    for name in disk.list(STRANDED_FOLDER)? {
        let Some((log, generation)) = parse_name(&name) else {
            continue;
        };
        let file = disk.open(&blocks_path(log, generation), false)?;
        let after = match Header::read(&*file)? {
            Ok(header) => header.tail.after,
            Err(_) => done(disk, log, generation)?.unwrap_or(Position::ZERO),
        };
        tails.push(StrandedTail {
            log,
            generation,
            after,
        });
    }
    tails.sort_unstable();
    Ok(tails)
}

/// The blocks of `tail` in the order of their positions, each as it was written and every checksum
/// checked. They continue the log from the cut on.
///
/// # Errors
/// When there are none, the file is damaged, or the disk fails.
pub fn read_stranded(
    disk: &dyn Disk,
    tail: &StrandedTail,
) -> Result<Vec<Block>, ReadStrandedError> {
    let path = blocks_path(tail.log, tail.generation);
    let read = read_file(disk, tail.log, tail.generation).map_err(|source| {
        let path = path.clone();
        ReadStrandedError::Io { path, source }
    })?;
    let Some(read) = read else {
        return Err(ReadStrandedError::Missing { path });
    };
    match read.damage {
        None => Ok(read.blocks),
        Some((offset, reason)) => Err(ReadStrandedError::Damaged {
            path,
            offset,
            reason,
        }),
    }
}

/// What a file's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) tail: StrandedTail,
    pub(crate) first: Position,
    pub(crate) last: Position,
    pub(crate) events: u64,
    pub(crate) blocks: u32,
    pub(crate) bytes: u64,
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[8..10].copy_from_slice(&self.tail.log.origin.0.to_le_bytes());
        out[10..12].copy_from_slice(&self.tail.log.partition.0.to_le_bytes());
        out[12..16].copy_from_slice(&self.tail.generation.to_le_bytes());
        out[16..24].copy_from_slice(&self.tail.after.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.first.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.last.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.events.to_le_bytes());
        out[48..52].copy_from_slice(&self.blocks.to_le_bytes());
        out[52..60].copy_from_slice(&self.bytes.to_le_bytes());
        let crc = crc32c(&[&out[..60]]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn read(file: &dyn DiskFile) -> io::Result<Result<Self, &'static str>> {
        let mut bytes = [0; HEADER_BYTES];
        let read = file.read_at(&mut bytes, 0)?;
        Ok(match read < HEADER_BYTES {
            true => Err("it is cut short"),
            false => Self::parse(&bytes),
        })
    }

    fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, &'static str> {
        if bytes[..4] != MAGIC {
            return Err("it does not begin as it should");
        }
        if bytes[60..] != crc32c(&[&bytes[..60]]).to_le_bytes() {
            return Err("its header fails its checksum");
        }
        if bytes[4] > VERSION {
            return Err("it was written by a newer build");
        }
        let u16_at = |at: usize| u16::from_le_bytes(array_at(bytes, at));
        let u32_at = |at: usize| u32::from_le_bytes(array_at(bytes, at));
        let u64_at = |at: usize| u64::from_le_bytes(array_at(bytes, at));
        Ok(Self {
            tail: StrandedTail {
                log: LogId::new(RegionId(u16_at(8)), PartitionId(u16_at(10))),
                generation: u32_at(12),
                after: Position(u64_at(16)),
            },
            first: Position(u64_at(24)),
            last: Position(u64_at(32)),
            events: u64_at(40),
            blocks: u32_at(48),
            bytes: u64_at(52),
        })
    }
}

fn array_at<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// A file as it was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// When it is sound.
    pub(crate) header: Option<Header>,
    /// Those before the damage, if there is any.
    pub(crate) blocks: Vec<Block>,
    /// Where the file is damaged, and how.
    pub(crate) damage: Option<(u64, String)>,
}

/// Reads the file of one log and generation; `None` when there is none.
pub(crate) fn read_file(disk: &dyn Disk, log: LogId, generation: u32) -> io::Result<Option<Found>> {
    let file = match disk.open(&blocks_path(log, generation), false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut found = Found {
        header: None,
        blocks: Vec::new(),
        damage: None,
    };
    match Header::read(&*file)? {
        Ok(header) if (header.tail.log, header.tail.generation) == (log, generation) => {
            found.header = Some(header);
        }
        Ok(_) => found.damage = Some((8, "it is of another log than its name says".to_owned())),
        Err(reason) => found.damage = Some((0, reason.to_owned())),
    }
    // Blocks have checksums of their own, so a damaged header takes none of them along.
    let end = file.len()?.saturating_sub(TRAILER_BYTES as u64);
    let mut seal = Seal::default();
    let mut at = HEADER_BYTES as u64;
    while at < end {
        match read_block(&*file, at, end, log, generation)? {
            Ok(block) => {
                at += block.bytes().len() as u64;
                seal.add(block.chain());
                found.blocks.push(block);
            }
            Err(reason) => {
                found.damage.get_or_insert((at, reason));
                return Ok(Some(found));
            }
        }
    }
    let mut trailer = [0; TRAILER_BYTES];
    let read = file.read_at(&mut trailer, end)?;
    if read < TRAILER_BYTES || trailer != seal.to_bytes() {
        let reason = "it does not end as it should".to_owned();
        found.damage.get_or_insert((end, reason));
    }
    if let Some(header) = found.header {
        let blocks = found.blocks.iter().map(Block::header);
        if header != summary(header.tail, blocks) {
            let reason = "its blocks are not those that it announces".to_owned();
            found.damage.get_or_insert((HEADER_BYTES as u64, reason));
        }
    }
    Ok(Some(found))
}

fn read_block(
    file: &dyn DiskFile,
    at: u64,
    end: u64,
    log: LogId,
    generation: u32,
) -> io::Result<Result<Block, String>> {
    let left = usize::try_from(end - at).unwrap_or(usize::MAX);
    let mut bytes = vec![0; BLOCK_HEADER_BYTES.min(left)];
    let read = file.read_at(&mut bytes, at)?;
    bytes.truncate(read);
    let needed = match BlockHeader::parse(&bytes) {
        Ok(header) => header.block_bytes(),
        Err(error) => return Ok(Err(error.to_string())),
    };
    if needed > left.min(BLOCK_BYTES_MAX) {
        return Ok(Err("the file ends inside a block".to_owned()));
    }
    let held = bytes.len();
    bytes.resize(needed, 0);
    let read = file.read_at(&mut bytes[held..], at + held as u64)?;
    bytes.truncate(held + read);
    let block = match Block::parse(&bytes.into()) {
        Ok(block) => block,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let header = block.header();
    Ok(
        match header.log == log && header.epoch.major <= generation {
            true => Ok(block),
            false => Err("the block is of another log or generation".to_owned()),
        },
    )
}

/// What the header of a file with these blocks says.
pub(crate) fn summary<'a>(
    tail: StrandedTail,
    blocks: impl IntoIterator<Item = &'a BlockHeader>,
) -> Header {
    let mut header = Header {
        tail,
        first: Position::ZERO,
        last: Position::ZERO,
        events: 0,
        blocks: 0,
        bytes: 0,
    };
    for block in blocks {
        if header.blocks == 0 {
            header.first = block.first_position;
        }
        header.last = header.last.max(block.last_position());
        header.events += u64::from(block.count);
        header.blocks += 1;
        header.bytes += block.block_bytes() as u64;
    }
    header
}

#[derive(Default)]
struct Seal(u32);

impl Seal {
    fn add(&mut self, chain: Chain) {
        self.0 = crc32c(&[&self.0.to_le_bytes(), &chain.0]);
    }

    fn to_bytes(&self) -> [u8; TRAILER_BYTES] {
        let mut out = [0; TRAILER_BYTES];
        out[..4].copy_from_slice(&END_MAGIC);
        out[4..].copy_from_slice(&self.0.to_le_bytes());
        out
    }
}

/// Writes a file with these blocks, durably, in the place of the one that is there, if any.
pub(crate) fn write_file(
    disk: &dyn Disk,
    header: Header,
    blocks: impl Iterator<Item = io::Result<Bytes>>,
) -> io::Result<()> {
    let path = blocks_path(header.tail.log, header.tail.generation);
    let fresh = format!("{path}.new");
    disk.create_dir_all(STRANDED_FOLDER)?;
    // If a sync of it failed, what a later one says is not to be relied on.
    if disk.exists(&fresh)? {
        disk.remove(&fresh)?;
    }
    let file = disk.open(&fresh, true)?;
    let mut piece = header.to_bytes().to_vec();
    let mut at = 0;
    let mut seal = Seal::default();
    for bytes in blocks {
        let bytes = bytes?;
        let block = Block::parse(&bytes).map_err(io::Error::other)?;
        seal.add(block.chain());
        piece.extend_from_slice(&bytes);
        if piece.len() >= PIECE_BYTES {
            file.write_all_at(&piece, at)?;
            at += piece.len() as u64;
            piece.clear();
        }
    }
    piece.extend_from_slice(&seal.to_bytes());
    file.write_all_at(&piece, at)?;
    file.sync_data()?;
    disk.rename(&fresh, &path)?;
    disk.sync_dir(STRANDED_FOLDER)
}

/// Keeps a copy of a damaged file beside it, before another one takes its place.
pub(crate) fn keep_aside(disk: &dyn Disk, log: LogId, generation: u32) -> io::Result<()> {
    let taken: BTreeSet<String> = disk.list(STRANDED_FOLDER)?.into_iter().collect();
    let name = (1u64..)
        .map(|number| format!("{}.damaged.{number}", name(log, generation)))
        .find(|name| !taken.contains(name))
        .unwrap_or_default();
    let damaged = disk.open(&blocks_path(log, generation), false)?;
    let copy = disk.open(&format!("{STRANDED_FOLDER}/{name}"), true)?;
    copy_file(&*damaged, &*copy)?;
    copy.sync_data()?;
    disk.sync_dir(STRANDED_FOLDER)
}

/// The cut at which this generation of a log was stranded to the end, if it was.
pub(crate) fn done(disk: &dyn Disk, log: LogId, generation: u32) -> io::Result<Option<Position>> {
    let path = done_path(log, generation);
    let content = match checked_file::read(disk, &path) {
        Ok(content) => content,
        Err(checked_file::CheckedFileError::Io { source, .. }) => return Err(source),
        Err(error) => {
            tracing::warn!(%error, "what was stranded is looked for once more");
            None
        }
    };
    let cut = content.and_then(|it| <[u8; 8]>::try_from(it.as_slice()).ok());
    Ok(cut.map(|it| Position(u64::from_le_bytes(it))))
}

/// Notes that this generation of a log was stranded to the end.
pub(crate) fn set_done(disk: &dyn Disk, tail: StrandedTail) -> io::Result<()> {
    let path = done_path(tail.log, tail.generation);
    checked_file::replace(disk, &path, &tail.after.0.to_le_bytes())
}

fn name(log: LogId, generation: u32) -> String {
    format!("{}-{}-{generation}", log.origin.0, log.partition.0)
}

/// Where the blocks are.
pub(crate) fn blocks_path(log: LogId, generation: u32) -> String {
    format!("{STRANDED_FOLDER}/{}.blocks", name(log, generation))
}

/// Where it is noted that nothing is left to be stranded.
pub(crate) fn done_path(log: LogId, generation: u32) -> String {
    format!("{STRANDED_FOLDER}/{}.done", name(log, generation))
}

/// The log and generation in the name of a file of blocks.
pub(crate) fn parse_name(name: &str) -> Option<(LogId, u32)> {
    parse(name.strip_suffix(".blocks")?)
}

/// The log and generation in the name of a note that nothing is left.
pub(crate) fn parse_done_name(name: &str) -> Option<(LogId, u32)> {
    parse(name.strip_suffix(".done")?)
}

fn parse(name: &str) -> Option<(LogId, u32)> {
    let mut parts = name.split('-');
    let origin = parts.next()?.parse().ok()?;
    let partition = parts.next()?.parse().ok()?;
    let generation = parts.next()?.parse().ok()?;
    let log = LogId::new(RegionId(origin), PartitionId(partition));
    parts.next().is_none().then_some((log, generation))
}

//! The block: what one sequencer made durable in one go, stored and shipped verbatim.
//!
//! The header is fixed-length, little-endian and outside any encoding library:
//!
//! ```text
//! 0   magic "MRDB"        4
//! 4   format version      1   this module writes 1
//! 5   codec               1   0 raw, 1 zstd
//! 6   reserved            2   zero
//! 8   origin              2
//! 10  partition           2
//! 12  incarnation         4
//! 16  epoch major         4
//! 20  epoch minor         4
//! 24  first position      8
//! 32  count of events     4
//! 36  body length         4   as stored
//! 40  raw length          4   before compression
//! 44  reserved            4   zero
//! 48  first timestamp     8
//! 56  last timestamp      8
//! 64  previous chain     32
//! 96  crc32c              4   of bytes 0..96 and the body
//! 100 body
//! ```
//!
//! The body, once decompressed, is `count` records, each a `u32` length and a postcard record.
//! Events with the same timestamp are one batch; a batch never spans blocks.

use std::cell::RefCell;
use std::fmt;
use std::io;

use bytes::Bytes;
use meridian_clock::{Dot, Epoch, Incarnation, LogId, PartitionId, Position, RegionId, Timestamp};
use serde::{Deserialize, Serialize};
use zstd::bulk::{Compressor, Decompressor};

use crate::{EventId, EventType, NewEvent, RecordedEvent, Revision, StreamId, crc32c};

/// The length of a block's header.
pub const BLOCK_HEADER_BYTES: usize = 100;
/// The longest body before compression.
pub const BLOCK_RAW_BYTES_MAX: usize = 20 << 20;
/// The longest block, header and stored body.
pub const BLOCK_BYTES_MAX: usize = BLOCK_HEADER_BYTES + BLOCK_RAW_BYTES_MAX;
/// The format version that this build writes, and the highest that it reads.
pub const BLOCK_VERSION: u8 = 1;

/// How a block begins; a reader that lost its place looks for this.
pub const BLOCK_MAGIC: [u8; 4] = *b"MRDB";

// Below this, zstd's own framing eats what it saves (measured on JSON order events).
const COMPRESS_FROM_BYTES: usize = 2048;

/// Which bytes a log has held so far: the chain hash after a block.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Chain(pub [u8; 32]);

impl Chain {
    /// Before the first block of an incarnation.
    pub const EMPTY: Self = Self([0; 32]);
}

impl fmt::Display for Chain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4]
            .iter()
            .try_for_each(|byte| write!(out, "{byte:02x}"))?;
        out.write_str("…")
    }
}

/// How a block's body is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// Everything about a block but its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// The origin log it belongs to.
    pub log: LogId,
    /// The life of that log.
    pub incarnation: Incarnation,
    /// The epoch it was written in.
    pub epoch: Epoch,
    /// The position of its first event.
    pub first_position: Position,
    /// How many events it holds, at least 1.
    pub count: u32,
    /// The timestamp of its first batch.
    pub first_timestamp: Timestamp,
    /// The timestamp of its last batch.
    pub last_timestamp: Timestamp,
    /// How the body is stored.
    pub codec: Codec,
    /// The body's length as stored.
    pub body_bytes: u32,
    /// The body's length before compression.
    pub raw_bytes: u32,
    /// The chain hash of everything before this block.
    pub prev_chain: Chain,
    crc: u32,
}

/// Why bytes are not a sound block. They are kept as they are and not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Fewer bytes than a block needs.
    #[error("the block is cut short: {actual_bytes} of {needed_bytes} bytes")]
    Short {
        /// How many bytes it needs.
        needed_bytes: usize,
        /// How many there are.
        actual_bytes: usize,
    },
    /// These bytes do not begin a block.
    #[error("no block begins here")]
    Magic,
    /// Written by a newer build.
    #[error(
        "block format {found} is newer than {BLOCK_VERSION}, the newest read here; upgrade this node"
    )]
    NewerVersion {
        /// The version it has.
        found: u8,
    },
    /// The header contradicts itself.
    #[error("the block header is impossible: {reason}")]
    Header {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Some byte changed since it was written.
    #[error("the block fails its checksum")]
    Checksum,
    /// The body does not decode, although its checksum is right.
    #[error("the block's body does not decode: {reason}")]
    Body {
        /// What is wrong with it.
        reason: String,
    },
}

impl BlockHeader {
    /// The position of the last event.
    pub fn last_position(&self) -> Position {
        Position(self.first_position.0 + u64::from(self.count) - 1)
    }

    /// The length of the whole block.
    pub fn block_bytes(&self) -> usize {
        BLOCK_HEADER_BYTES + self.body_bytes as usize
    }

    /// Reads a header. The checksum is not checked, for that needs the body: see [`Block::parse`].
    ///
    /// # Errors
    /// When there are too few bytes, or no sound header.
    pub fn parse(bytes: &[u8]) -> Result<Self, BlockError> {
        let header = bytes
            .first_chunk::<BLOCK_HEADER_BYTES>()
            .ok_or(BlockError::Short {
                needed_bytes: BLOCK_HEADER_BYTES,
                actual_bytes: bytes.len(),
            })?;
        let u16_at = |at: usize| u16::from_le_bytes(array_at(header, at));
        let u32_at = |at: usize| u32::from_le_bytes(array_at(header, at));
        let u64_at = |at: usize| u64::from_le_bytes(array_at(header, at));
        if header[..4] != BLOCK_MAGIC {
            return Err(BlockError::Magic);
        }
        if header[4] > BLOCK_VERSION {
            return Err(BlockError::NewerVersion { found: header[4] });
        }
        let impossible = |reason| Err(BlockError::Header { reason });
        let codec = match header[5] {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            _ => return impossible("unknown codec"),
        };
        let parsed = Self {
            log: LogId::new(RegionId(u16_at(8)), PartitionId(u16_at(10))),
            incarnation: Incarnation(u32_at(12)),
            epoch: Epoch {
                major: u32_at(16),
                minor: u32_at(20),
            },
            first_position: Position(u64_at(24)),
            count: u32_at(32),
            body_bytes: u32_at(36),
            raw_bytes: u32_at(40),
            first_timestamp: Timestamp(u64_at(48)),
            last_timestamp: Timestamp(u64_at(56)),
            codec,
            prev_chain: Chain(array_at(header, 64)),
            crc: u32_at(96),
        };
        let raw_bytes = parsed.raw_bytes as usize;
        if parsed.count == 0 || parsed.first_position == Position::ZERO {
            return impossible("no events, or a position 0");
        }
        if parsed
            .first_position
            .0
            .checked_add(u64::from(parsed.count))
            .is_none()
        {
            return impossible("positions beyond the last one");
        }
        if raw_bytes > BLOCK_RAW_BYTES_MAX || parsed.body_bytes as usize > BLOCK_RAW_BYTES_MAX {
            return impossible("longer than a block can be");
        }
        if codec == Codec::Raw && parsed.raw_bytes != parsed.body_bytes {
            return impossible("a raw body of two lengths");
        }
        if parsed.first_timestamp > parsed.last_timestamp {
            return impossible("it ends before it begins");
        }
        Ok(parsed)
    }
}

fn array_at<const N: usize>(header: &[u8; BLOCK_HEADER_BYTES], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&header[at..at + N]);
    array
}

/// A sound block: its bytes, which are the same wherever it is held, and what its header says.
#[derive(Clone)]
pub struct Block {
    header: BlockHeader,
    bytes: Bytes,
    // The body before compression, if this block was made here: its writer indexes it next.
    raw: Option<Bytes>,
}

impl PartialEq for Block {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Block {}

impl fmt::Debug for Block {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BlockHeader {
            log,
            first_position,
            ..
        } = self.header;
        write!(
            out,
            "Block({log} {first_position}..={})",
            self.header.last_position()
        )
    }
}

impl Block {
    /// Takes the block at the start of `bytes`; what follows it is left alone.
    ///
    /// # Errors
    /// When the bytes are cut short, are no block, or fail their checksum.
    pub fn parse(bytes: &Bytes) -> Result<Self, BlockError> {
        let header = BlockHeader::parse(bytes)?;
        let block_bytes = header.block_bytes();
        if bytes.len() < block_bytes {
            return Err(BlockError::Short {
                needed_bytes: block_bytes,
                actual_bytes: bytes.len(),
            });
        }
        let bytes = bytes.slice(..block_bytes);
        if crc32c(&[&bytes[..96], &bytes[BLOCK_HEADER_BYTES..]]) != header.crc {
            return Err(BlockError::Checksum);
        }
        Ok(Self {
            header,
            bytes,
            raw: None,
        })
    }

    /// What the header says.
    pub fn header(&self) -> &BlockHeader {
        &self.header
    }

    /// Header and body, verbatim.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The chain hash after this block: blake3 over its header, which holds the previous chain,
    /// and its body. Hashes the whole block at each call.
    pub fn chain(&self) -> Chain {
        Chain(*blake3::hash(&self.bytes).as_bytes())
    }

    /// Decompresses the body so that its events can be read.
    ///
    /// # Errors
    /// When the body does not decompress to the length that the header gives.
    pub fn open(&self) -> Result<OpenBlock, BlockError> {
        if let Some(raw) = &self.raw {
            return Ok(OpenBlock {
                header: self.header,
                raw: raw.clone(),
            });
        }
        let body = self.bytes.slice(BLOCK_HEADER_BYTES..);
        let raw = match self.header.codec {
            Codec::Raw => body,
            Codec::Zstd => {
                let raw = decompress(&body, self.header.raw_bytes as usize).map_err(|error| {
                    BlockError::Body {
                        reason: error.to_string(),
                    }
                })?;
                if raw.len() != self.header.raw_bytes as usize {
                    return Err(BlockError::Body {
                        reason: "its length is not as stated".to_owned(),
                    });
                }
                raw.into()
            }
        };
        Ok(OpenBlock {
            header: self.header,
            raw,
        })
    }

    /// All events of this block, in order.
    ///
    /// # Errors
    /// When the body does not decode.
    pub fn to_events(&self) -> Result<Vec<RecordedEvent>, BlockError> {
        let open = self.open()?;
        open.events()
            .map(|event| event.and_then(|event| open.record(&event)))
            .collect()
    }
}

/// A block's decompressed body.
#[derive(Clone, Debug)]
pub struct OpenBlock {
    header: BlockHeader,
    raw: Bytes,
}

impl OpenBlock {
    /// What the block's header says.
    pub fn header(&self) -> &BlockHeader {
        &self.header
    }

    /// The events in order, borrowed from the body. Ends after the first error.
    pub fn events(&self) -> Events<'_> {
        self.events_from(EventPlace::default())
    }

    /// The events from a place on that [`Events::place`] gave for this block.
    pub fn events_from(&self, place: EventPlace) -> Events<'_> {
        Events {
            header: &self.header,
            body: &self.raw,
            // A place of another block ends in an error, as a body that was cut short does.
            rest: self.raw.get(place.offset..).unwrap_or_default(),
            index: place.index,
            at: place.at.max(self.header.first_timestamp),
        }
    }

    /// How long the body is, decompressed.
    pub fn raw_bytes(&self) -> usize {
        self.raw.len()
    }

    /// `event`, which [`OpenBlock::events`] of this block gave, as a value of its own that shares
    /// this body's memory.
    ///
    /// # Errors
    /// When a name in it is not one that Meridian would have accepted.
    pub fn record(&self, event: &EventRef<'_>) -> Result<RecordedEvent, BlockError> {
        let name = |error: crate::NameError| BlockError::Body {
            reason: error.to_string(),
        };
        Ok(RecordedEvent {
            dot: event.dot,
            timestamp: event.timestamp,
            stream: StreamId::new(event.stream).map_err(name)?,
            revision: event.revision,
            id: event.id,
            event_type: EventType::new(event.event_type).map_err(name)?,
            data: self.raw.slice_ref(event.data),
            metadata: self.raw.slice_ref(event.metadata),
        })
    }
}

/// An event as it lies in an [`OpenBlock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRef<'a> {
    /// Its identity.
    pub dot: Dot,
    /// When its batch was stamped.
    pub timestamp: Timestamp,
    /// Its stream's name.
    pub stream: &'a str,
    /// Its place in the stream.
    pub revision: Revision,
    /// Its writer's id for it.
    pub id: EventId,
    /// What happened.
    pub event_type: &'a str,
    /// JSON text.
    pub data: &'a [u8],
    /// JSON text or empty.
    pub metadata: &'a [u8],
}

// The order of these fields is the format; see docs/format.md.
#[derive(Serialize, Deserialize)]
struct Record<'a> {
    after_first_timestamp: u64,
    revision: u64,
    id: [u8; 16],
    stream: &'a str,
    event_type: &'a str,
    #[serde(borrow, with = "serde_bytes")]
    data: &'a [u8],
    #[serde(borrow, with = "serde_bytes")]
    metadata: &'a [u8],
}

/// A place between two events of a block, for a reader that goes on later: it borrows nothing. The
/// default is before the first event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventPlace {
    offset: usize,
    index: u32,
    // Of the event before it, so that the check that timestamps do not fall goes on too.
    at: Timestamp,
}

/// Iterator over the events of an [`OpenBlock`].
#[derive(Clone, Debug)]
pub struct Events<'a> {
    header: &'a BlockHeader,
    body: &'a [u8],
    rest: &'a [u8],
    index: u32,
    at: Timestamp,
}

impl<'a> Events<'a> {
    /// Where the next event begins.
    pub fn place(&self) -> EventPlace {
        EventPlace {
            offset: self.body.len() - self.rest.len(),
            index: self.index,
            at: self.at,
        }
    }

    /// The position and timestamp of the next event, without decoding the rest of it; `None` after
    /// the last one. Checks less than [`Iterator::next`] does, which may still find it unreadable.
    ///
    /// # Errors
    /// When not even that can be read.
    #[inline]
    pub fn peek(&self) -> Result<Option<(Position, Timestamp)>, BlockError> {
        if self.index == self.header.count {
            return Ok(None);
        }
        let (record, _) = self.next_record().map_err(body_error)?;
        let (after_first, _) = postcard::take_from_bytes::<u64>(record)
            .map_err(|_| body_error("a record does not parse"))?;
        let position = self.header.first_position.plus(u64::from(self.index));
        let timestamp = self.timestamp(after_first).map_err(body_error)?;
        Ok(Some((position, timestamp)))
    }

    /// Goes past the next event without decoding it.
    ///
    /// # Errors
    /// As [`Events::peek`].
    pub fn pass(&mut self) -> Result<(), BlockError> {
        if let Some((_, timestamp)) = self.peek()? {
            let (_, rest) = self.next_record().map_err(body_error)?;
            self.rest = rest;
            self.at = timestamp;
            self.index += 1;
        }
        Ok(())
    }

    #[inline]
    fn next_record(&self) -> Result<(&'a [u8], &'a [u8]), &'static str> {
        let (length, rest) = self
            .rest
            .split_first_chunk::<4>()
            .ok_or("a record is missing")?;
        let length = u32::from_le_bytes(*length) as usize;
        rest.split_at_checked(length).ok_or("a record is cut short")
    }

    #[inline]
    fn timestamp(&self, after_first: u64) -> Result<Timestamp, &'static str> {
        self.header
            .first_timestamp
            .0
            .checked_add(after_first)
            .map(Timestamp)
            .filter(|at| *at >= self.at && *at <= self.header.last_timestamp)
            .ok_or("timestamps do not rise")
    }

    fn next_event(&mut self) -> Result<EventRef<'a>, &'static str> {
        let (record, rest) = self.next_record()?;
        self.rest = rest;
        let (record, left_over) = postcard::take_from_bytes::<Record<'_>>(record)
            .map_err(|_| "a record does not parse")?;
        if !left_over.is_empty() {
            return Err("a record has bytes left over");
        }
        let timestamp = self.timestamp(record.after_first_timestamp)?;
        self.at = timestamp;
        let position = self.header.first_position.plus(u64::from(self.index));
        self.index += 1;
        let is_last = self.index == self.header.count;
        if is_last && !(self.rest.is_empty() && timestamp == self.header.last_timestamp) {
            return Err("it does not end where its header says");
        }
        Ok(EventRef {
            dot: self.header.log.dot(position),
            timestamp,
            stream: record.stream,
            revision: Revision(record.revision),
            id: EventId(uuid::Uuid::from_bytes(record.id)),
            event_type: record.event_type,
            data: record.data,
            metadata: record.metadata,
        })
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<EventRef<'a>, BlockError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index == self.header.count {
            return None;
        }
        let event = self.next_event();
        if event.is_err() {
            self.index = self.header.count;
        }
        Some(event.map_err(body_error))
    }
}

fn body_error(reason: &'static str) -> BlockError {
    BlockError::Body {
        reason: reason.to_owned(),
    }
}

/// Collects batches and makes a [`Block`] of them.
#[derive(Debug)]
pub struct BlockBuilder {
    log: LogId,
    incarnation: Incarnation,
    epoch: Epoch,
    raw: Vec<u8>,
    count: u32,
    first_timestamp: Timestamp,
    last_timestamp: Timestamp,
}

impl BlockBuilder {
    /// A block without events.
    pub fn new(log: LogId, incarnation: Incarnation, epoch: Epoch) -> Self {
        Self {
            log,
            incarnation,
            epoch,
            raw: Vec::new(),
            count: 0,
            first_timestamp: Timestamp::ZERO,
            last_timestamp: Timestamp::ZERO,
        }
    }

    /// How many events there are so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How long the body is so far, before compression.
    pub fn raw_bytes(&self) -> usize {
        self.raw.len()
    }

    /// Adds one batch, stamped `timestamp`: a transaction of events of `stream` with rising
    /// revisions from `first_revision`.
    ///
    /// # Panics
    /// When the timestamp is not above the previous batch's (`rising`), the batch is empty, or the
    /// block grows past [`BLOCK_RAW_BYTES_MAX`]; the sequencer sees to all three.
    pub fn push_batch(
        &mut self,
        timestamp: Timestamp,
        stream: &StreamId,
        first_revision: Revision,
        events: &[NewEvent],
    ) {
        assert!(!events.is_empty(), "a batch has at least one event");
        if self.count == 0 {
            self.first_timestamp = timestamp;
        } else {
            let last = self.last_timestamp;
            assert!(
                timestamp > last,
                "rising: batch at {timestamp} after one at {last}"
            );
        }
        self.last_timestamp = timestamp;
        for (revision, event) in (first_revision.0..).zip(events) {
            let record = Record {
                after_first_timestamp: timestamp.0 - self.first_timestamp.0,
                revision,
                id: event.id.to_bytes(),
                stream: stream.as_str(),
                event_type: event.event_type.as_str(),
                data: &event.data,
                metadata: &event.metadata,
            };
            let start = self.raw.len();
            self.raw.extend_from_slice(&[0; 4]);
            self.raw = postcard::to_extend(&record, std::mem::take(&mut self.raw))
                .expect("a record always encodes into memory");
            let length = u32::try_from(self.raw.len() - start - 4).unwrap_or(u32::MAX);
            self.raw[start..start + 4].copy_from_slice(&length.to_le_bytes());
            self.count += 1;
        }
        assert!(
            self.raw.len() <= BLOCK_RAW_BYTES_MAX,
            "a block of {} bytes",
            self.raw.len()
        );
    }

    /// Makes the block that stands at `first_position`, after everything that `prev_chain` hashes.
    /// Compresses the body if that saves a quarter or more: JSON events shrink to a third, what is
    /// encrypted or packed already is better read as it is.
    ///
    /// # Panics
    /// When no batch was added.
    pub fn seal(self, first_position: Position, prev_chain: Chain) -> Block {
        assert!(self.count > 0, "a block has at least one event");
        let compressed = (self.raw.len() >= COMPRESS_FROM_BYTES)
            .then(|| compress(&self.raw).ok())
            .flatten()
            .filter(|body| body.len() <= self.raw.len() / 4 * 3);
        let (codec, body) = match &compressed {
            Some(body) => (Codec::Zstd, body),
            None => (Codec::Raw, &self.raw),
        };
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut header = BlockHeader {
            log: self.log,
            incarnation: self.incarnation,
            epoch: self.epoch,
            first_position,
            count: self.count,
            first_timestamp: self.first_timestamp,
            last_timestamp: self.last_timestamp,
            codec,
            body_bytes: length(body),
            raw_bytes: length(&self.raw),
            prev_chain,
            crc: 0,
        };
        let mut bytes = Vec::with_capacity(BLOCK_HEADER_BYTES + body.len());
        write_header(&mut bytes, &header);
        header.crc = crc32c(&[&bytes, body]);
        bytes.extend_from_slice(&header.crc.to_le_bytes());
        bytes.extend_from_slice(body);
        Block {
            header,
            bytes: bytes.into(),
            raw: Some(self.raw.into()),
        }
    }
}

// Making a zstd context costs more than compressing a small body, so each thread keeps its own.
thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

// Level 1: higher ones are slower and hardly smaller on JSON events (measured).
fn compress(raw: &[u8]) -> io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|kept| match kept {
        Some(compressor) => compressor.compress(raw),
        None => kept.insert(Compressor::new(1)?).compress(raw),
    })
}

fn decompress(body: &[u8], raw_bytes: usize) -> io::Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|kept| match kept {
        Some(decompressor) => decompressor.decompress(body, raw_bytes),
        None => kept
            .insert(Decompressor::new()?)
            .decompress(body, raw_bytes),
    })
}

// Everything up to the checksum.
fn write_header(out: &mut Vec<u8>, header: &BlockHeader) {
    let codec = match header.codec {
        Codec::Raw => 0,
        Codec::Zstd => 1,
    };
    out.extend_from_slice(&BLOCK_MAGIC);
    out.extend_from_slice(&[BLOCK_VERSION, codec, 0, 0]);
    out.extend_from_slice(&header.log.origin.0.to_le_bytes());
    out.extend_from_slice(&header.log.partition.0.to_le_bytes());
    out.extend_from_slice(&header.incarnation.0.to_le_bytes());
    out.extend_from_slice(&header.epoch.major.to_le_bytes());
    out.extend_from_slice(&header.epoch.minor.to_le_bytes());
    out.extend_from_slice(&header.first_position.0.to_le_bytes());
    out.extend_from_slice(&header.count.to_le_bytes());
    out.extend_from_slice(&header.body_bytes.to_le_bytes());
    out.extend_from_slice(&header.raw_bytes.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&header.first_timestamp.0.to_le_bytes());
    out.extend_from_slice(&header.last_timestamp.0.to_le_bytes());
    out.extend_from_slice(&header.prev_chain.0);
    debug_assert_eq!(out.len(), 96);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log() -> LogId {
        LogId::new(RegionId(2), PartitionId(3))
    }

    fn event(number: u8, data: &[u8]) -> NewEvent {
        NewEvent {
            id: EventId::from_random([number; 16]),
            event_type: EventType::new("FlightDeparted").expect("a sound name"),
            data: Bytes::copy_from_slice(data),
            metadata: Bytes::new(),
        }
    }

    fn block_of(batches: &[Vec<NewEvent>]) -> Block {
        let stream = StreamId::new("aircraft-N14228").expect("a sound name");
        let mut builder = BlockBuilder::new(log(), Incarnation(1), Epoch::FIRST);
        let mut revision = Revision(0);
        for (at, batch) in (1000u64..).step_by(16).zip(batches) {
            builder.push_batch(Timestamp(at), &stream, revision, batch);
            revision.0 += batch.len() as u64;
        }
        builder.seal(Position(41), Chain([7; 32]))
    }

    #[test]
    fn the_first_format_stays_readable() {
        let golden = include_bytes!("../golden/block-v1.bin");
        let block = Block::parse(&Bytes::from_static(golden)).expect("the golden block is sound");
        let again = block_of(&[
            vec![event(1, br#"{"dep_delay":2}"#), event(2, b"{}")],
            vec![event(3, b"null")],
        ]);
        assert_eq!(
            block.bytes(),
            again.bytes(),
            "the same events make the same bytes"
        );
        let events = block.to_events().expect("the golden block decodes");
        let at: Vec<_> = events
            .iter()
            .map(|e| (e.dot.position.0, e.revision.0, e.timestamp.0))
            .collect();
        assert_eq!(at, [(41, 0, 1000), (42, 1, 1000), (43, 2, 1016)]);
    }

    #[test]
    fn repetitive_bodies_are_compressed_and_come_back() {
        let data = br#"{"carrier":"UA","origin":"EWR"}"#.repeat(20);
        let batch: Vec<_> = (0..9).map(|number| event(number, &data)).collect();
        let block = block_of(std::slice::from_ref(&batch));
        assert_eq!(block.header().codec, Codec::Zstd);
        let events = block.to_events().expect("it decodes");
        assert_eq!(events.len(), 9);
        assert!(events.iter().all(|event| event.data == data));
    }

    #[test]
    fn a_block_of_a_newer_version_says_so() {
        let mut bytes = block_of(&[vec![event(1, b"{}")]]).bytes().to_vec();
        bytes[4] = BLOCK_VERSION + 1;
        let outcome = Block::parse(&bytes.into());
        assert_eq!(
            outcome,
            Err(BlockError::NewerVersion {
                found: BLOCK_VERSION + 1
            })
        );
    }

    #[test]
    fn the_chain_depends_on_what_came_before() {
        let block = block_of(&[vec![event(1, b"{}")]]);
        let mut builder = BlockBuilder::new(log(), Incarnation(1), Epoch::FIRST);
        let stream = StreamId::new("aircraft-N14228").expect("a sound name");
        builder.push_batch(Timestamp(1000), &stream, Revision(0), &[event(1, b"{}")]);
        let other = builder.seal(Position(41), Chain([8; 32]));
        assert_ne!(block.chain(), other.chain());
    }

    fn any_batches() -> impl Strategy<Value = Vec<Vec<NewEvent>>> {
        let event = (any::<u8>(), prop::collection::vec(any::<u8>(), 0..400))
            .prop_map(|(number, data)| event(number, &data));
        prop::collection::vec(prop::collection::vec(event, 1..5), 1..6)
    }

    proptest! {
        #[test]
        fn events_survive_the_round_trip(batches in any_batches()) {
            let block = block_of(&batches);
            let parsed = Block::parse(block.bytes()).expect("a sealed block is sound");
            prop_assert_eq!(&parsed, &block);
            let events = parsed.to_events().expect("a sealed block decodes");
            let written: Vec<_> = batches.concat();
            prop_assert_eq!(events.len(), written.len());
            for (recorded, new) in events.iter().zip(&written) {
                prop_assert_eq!(recorded.id, new.id);
                prop_assert_eq!(&recorded.data, &new.data);
            }
        }

        #[test]
        fn a_reader_goes_on_from_any_place_and_peeks_right(batches in any_batches()) {
            let open = block_of(&batches).open().expect("it opens");
            let all: Vec<_> = open.events().map(|event| event.expect("it decodes")).collect();
            let mut passing = open.events();
            for (number, event) in all.iter().enumerate() {
                let from = open.events_from(passing.place());
                let rest: Vec<_> = from.map(|event| event.expect("it decodes")).collect();
                prop_assert_eq!(&rest, &all[number..]);
                let peeked = passing.peek().expect("it decodes");
                prop_assert_eq!(peeked, Some((event.dot.position, event.timestamp)));
                passing.pass().expect("it decodes");
            }
            prop_assert_eq!(passing.peek(), Ok(None));
        }

        #[test]
        fn one_flipped_bit_is_noticed(batches in any_batches(), place: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = block_of(&batches).bytes().to_vec();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            prop_assert!(Block::parse(&bytes.into()).is_err());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut forged = block_of(&[vec![event(1, b"{}")]]).bytes().to_vec();
            forged.truncate(BLOCK_HEADER_BYTES);
            forged.extend_from_slice(&bytes);
            let length = u32::try_from(bytes.len()).expect("short").to_le_bytes();
            forged[36..40].copy_from_slice(&length);
            forged[40..44].copy_from_slice(&length);
            let crc = crc32c(&[&forged[..96], &forged[BLOCK_HEADER_BYTES..]]).to_le_bytes();
            forged[96..100].copy_from_slice(&crc);
            if let Ok(block) = Block::parse(&forged.into()) {
                let _ = block.to_events();
            }
        }
    }
}

//! The envelope that stands before each block in a segment.
//!
//! Fixed-length, little-endian; entries begin at multiples of 8 bytes:
//!
//! ```text
//! 0   magic "MREN"        4
//! 4   format version      1   this module writes 1
//! 5   kind                1   1 block, 2 mark, 3 void
//! 6   reserved            2   zero
//! 8   own segment         8   where this entry was written
//! 16  own offset          8
//! 24  durable segment     8   everything before this place was durable
//! 32  durable offset      8   when this entry was written
//! 40  payload length      4   of the block that follows, without its padding
//! 44  origin              2   ┐
//! 46  partition           2   │ what the block's header says, so that a damaged
//! 48  incarnation         4   │ block can be named (zero in a mark, and in a void
//! 52  count of events     4   │ that stands for no block)
//! 56  first position      8   ┘
//! 64  chain              32   the chain hash after the block
//! 96  reserved            4   zero
//! 100 crc32c              4   of bytes 0..100
//! 104 payload, then zeros up to a multiple of 8
//! ```
//!
//! A *mark* has no payload: it only says what is durable. A *void* stands where damaged bytes were
//! given up; its payload is zeros. One that names a block stands where that block was until it was
//! stranded, beyond the cut of a fence.
//!
//! The own place tells an entry from a copy of one that happens to lie inside a block's data, so a
//! reader that lost its place can find the next entry by its magic.

use meridian_clock::{Incarnation, LogId, PartitionId, Position, RegionId};
use meridian_event::{Block, Chain, crc32c};

use crate::LogOffset;

/// The length of an envelope.
pub(crate) const ENVELOPE_BYTES: usize = 104;
/// Entries begin at multiples of this.
pub(crate) const ALIGN_BYTES: u64 = 8;

const MAGIC: [u8; 4] = *b"MREN";
const VERSION: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A block follows.
    Block,
    /// Nothing follows; only the durable place is of interest.
    Mark,
    /// Zeros follow, where damaged bytes were given up or a stranded block was.
    Void,
}

/// What an envelope says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) kind: Kind,
    pub(crate) own: LogOffset,
    pub(crate) durable: LogOffset,
    pub(crate) payload_bytes: u32,
    pub(crate) log: LogId,
    pub(crate) incarnation: Incarnation,
    pub(crate) count: u32,
    pub(crate) first_position: Position,
    pub(crate) chain: Chain,
}

impl Envelope {
    /// The envelope of `block`, after which the chain is `chain`, at `own`.
    pub(crate) fn of_block(
        block: &Block,
        chain: Chain,
        own: LogOffset,
        durable: LogOffset,
    ) -> Self {
        let header = block.header();
        Self {
            kind: Kind::Block,
            own,
            durable,
            payload_bytes: u32::try_from(block.bytes().len()).unwrap_or(u32::MAX),
            log: header.log,
            incarnation: header.incarnation,
            count: header.count,
            first_position: header.first_position,
            chain,
        }
    }

    /// The envelope of a mark at `own`.
    pub(crate) fn of_mark(own: LogOffset, durable: LogOffset) -> Self {
        Self::empty(Kind::Mark, own, durable, 0)
    }

    /// The envelope of a void that is `entry_bytes` long in all.
    pub(crate) fn of_void(own: LogOffset, entry_bytes: u64) -> Self {
        let payload = entry_bytes - ENVELOPE_BYTES as u64;
        let payload = u32::try_from(payload).unwrap_or(u32::MAX);
        Self::empty(Kind::Void, own, own, payload)
    }

    /// What stands in the place of this block from when it is stranded: as long, and it says the same
    /// of what was durable.
    pub(crate) fn stranded(self) -> Self {
        let payload = self.entry_bytes() - ENVELOPE_BYTES as u64;
        Self {
            kind: Kind::Void,
            payload_bytes: u32::try_from(payload).unwrap_or(u32::MAX),
            ..self
        }
    }

    /// Whether a block was here that was stranded.
    pub(crate) fn is_stranded(&self) -> bool {
        self.kind == Kind::Void && self.count > 0
    }

    fn empty(kind: Kind, own: LogOffset, durable: LogOffset, payload_bytes: u32) -> Self {
        Self {
            kind,
            own,
            durable,
            payload_bytes,
            log: LogId::default(),
            incarnation: Incarnation::default(),
            count: 0,
            first_position: Position::ZERO,
            chain: Chain::EMPTY,
        }
    }

    /// The length of the whole entry, padding included.
    pub(crate) fn entry_bytes(&self) -> u64 {
        entry_bytes(self.payload_bytes as usize)
    }

    /// The position of the block's last event.
    pub(crate) fn last_position(&self) -> Position {
        Position((self.first_position.0 + u64::from(self.count)).saturating_sub(1))
    }

    pub(crate) fn to_bytes(self) -> [u8; ENVELOPE_BYTES] {
        let mut out = [0; ENVELOPE_BYTES];
        let kind = match self.kind {
            Kind::Block => 1,
            Kind::Mark => 2,
            Kind::Void => 3,
        };
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = kind;
        out[8..16].copy_from_slice(&self.own.segment.to_le_bytes());
        out[16..24].copy_from_slice(&self.own.offset.to_le_bytes());
        out[24..32].copy_from_slice(&self.durable.segment.to_le_bytes());
        out[32..40].copy_from_slice(&self.durable.offset.to_le_bytes());
        out[40..44].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[44..46].copy_from_slice(&self.log.origin.0.to_le_bytes());
        out[46..48].copy_from_slice(&self.log.partition.0.to_le_bytes());
        out[48..52].copy_from_slice(&self.incarnation.0.to_le_bytes());
        out[52..56].copy_from_slice(&self.count.to_le_bytes());
        out[56..64].copy_from_slice(&self.first_position.0.to_le_bytes());
        out[64..96].copy_from_slice(&self.chain.0);
        let crc = crc32c(&[&out[..100]]);
        out[100..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the envelope at the start of `bytes`, which were read at `own`.
    ///
    /// # Errors
    /// With the reason when none begins there.
    pub(crate) fn parse(bytes: &[u8], own: LogOffset) -> Result<Self, &'static str> {
        let Some(bytes) = bytes.first_chunk::<ENVELOPE_BYTES>() else {
            return Err("the segment ends inside an envelope");
        };
        if bytes[..4] != MAGIC {
            return Err("no envelope begins here");
        }
        if bytes[100..] != crc32c(&[&bytes[..100]]).to_le_bytes() {
            return Err("the envelope fails its checksum");
        }
        if bytes[4] > VERSION {
            return Err("the envelope was written by a newer build");
        }
        let u16_at = |at: usize| u16::from_le_bytes(array_at(bytes, at));
        let u32_at = |at: usize| u32::from_le_bytes(array_at(bytes, at));
        let u64_at = |at: usize| u64::from_le_bytes(array_at(bytes, at));
        let parsed = Self {
            kind: match bytes[5] {
                1 => Kind::Block,
                2 => Kind::Mark,
                3 => Kind::Void,
                _ => return Err("the envelope is of an unknown kind"),
            },
            own: LogOffset::new(u64_at(8), u64_at(16)),
            durable: LogOffset::new(u64_at(24), u64_at(32)),
            payload_bytes: u32_at(40),
            log: LogId::new(RegionId(u16_at(44)), PartitionId(u16_at(46))),
            incarnation: Incarnation(u32_at(48)),
            count: u32_at(52),
            first_position: Position(u64_at(56)),
            chain: Chain(array_at(bytes, 64)),
        };
        if parsed.own != own {
            return Err("the envelope was written for another place");
        }
        Ok(parsed)
    }
}

/// Whether an envelope may begin at the start of `bytes`.
pub(crate) fn has_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// The length of an entry with this payload, padding included.
pub(crate) fn entry_bytes(payload_bytes: usize) -> u64 {
    ((ENVELOPE_BYTES + payload_bytes) as u64).next_multiple_of(ALIGN_BYTES)
}

fn array_at<const N: usize>(bytes: &[u8; ENVELOPE_BYTES], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_survives_the_round_trip_and_no_flipped_bit() {
        let own = LogOffset::new(7, 4096);
        let envelope = Envelope {
            kind: Kind::Block,
            own,
            durable: LogOffset::new(7, 64),
            payload_bytes: 1234,
            log: LogId::new(RegionId(3), PartitionId(2)),
            incarnation: Incarnation(9),
            count: 17,
            first_position: Position(1 << 40),
            chain: Chain([0xab; 32]),
        };
        let bytes = envelope.to_bytes();
        assert_eq!(Envelope::parse(&bytes, own), Ok(envelope));
        assert!(Envelope::parse(&bytes, LogOffset::new(7, 4104)).is_err());
        for place in 0..ENVELOPE_BYTES {
            for bit in 0..8 {
                let mut flipped = bytes;
                flipped[place] ^= 1 << bit;
                assert!(
                    Envelope::parse(&flipped, own).is_err(),
                    "byte {place} bit {bit}"
                );
            }
        }
    }
}

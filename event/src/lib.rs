//! The vocabulary of events, and the codecs that make bytes on disk the same as bytes on the wire.
//!
//! A [`Block`] is what one region's sequencer made durable in one go; it is stored and shipped
//! verbatim. A [`frame`] is one message between nodes, or between a client and a node.
//!
//! Not here: where blocks are kept (`store`), what frames mean (`replication`, `client`). Start
//! reading at `names`, then `block`, then `frame`. Every byte is described in `docs/format.md`.
//!
//! Always true (`identical`): a block's chain hash covers its header, its body and, through the
//! previous chain, every block before it.

pub mod block;
pub mod frame;
mod names;
mod recorded;

pub use block::{
    Block, BlockBuilder, BlockError, BlockHeader, Chain, Codec, EventPlace, EventRef, OpenBlock,
};
pub use names::{
    Category, EventId, EventType, NameError, Revision, StreamId, category_of, partition_of,
};
pub use recorded::{NewEvent, RecordedEvent};

/// The crc32c (Castagnoli, as in iSCSI) of `parts` one after the other.
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    // The algorithm is 32 bits wide, the library's return type serves 64-bit ones too.
    u32::try_from(digest.finalize()).unwrap_or(u32::MAX)
}

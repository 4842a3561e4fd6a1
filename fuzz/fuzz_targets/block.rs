//! A block from a disk or a peer: refused or read in full, never a panic, never more than it says.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use meridian_event::block::{BLOCK_HEADER_BYTES, BLOCK_MAGIC, BLOCK_VERSION};
use meridian_event::{Block, crc32c};

fuzz_target!(|data: &[u8]| {
    read(Bytes::copy_from_slice(data));
    if let Some(sound) = mend(data) {
        read(sound);
    }
});

fn read(bytes: Bytes) {
    let Ok(block) = Block::parse(&bytes) else {
        return;
    };
    assert_eq!(block.bytes().len(), block.header().block_bytes());
    let chain = block.chain();
    assert_eq!(
        Block::parse(block.bytes()).map(|again| again.chain()),
        Ok(chain)
    );
    if let Ok(events) = block.to_events() {
        assert_eq!(events.len(), block.header().count as usize);
        let last = events.last().map(|event| event.dot.position);
        assert_eq!(last, Some(block.header().last_position()));
        assert!(events.is_sorted_by_key(|event| event.order_key()));
    }
}

// Random bytes would hardly ever pass the checksum, and the body's decoder would stay untested.
fn mend(data: &[u8]) -> Option<Bytes> {
    let mut bytes = data.to_vec();
    let body_bytes = u32::try_from(bytes.len().checked_sub(BLOCK_HEADER_BYTES)?).ok()?;
    bytes[..4].copy_from_slice(&BLOCK_MAGIC);
    bytes[4] = BLOCK_VERSION;
    bytes[36..40].copy_from_slice(&body_bytes.to_le_bytes());
    if bytes[5] == 0 {
        bytes[40..44].copy_from_slice(&body_bytes.to_le_bytes());
    }
    let crc = crc32c(&[&bytes[..96], &bytes[BLOCK_HEADER_BYTES..]]);
    bytes[96..100].copy_from_slice(&crc.to_le_bytes());
    Some(bytes.into())
}

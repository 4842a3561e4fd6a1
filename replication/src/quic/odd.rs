//! What only a simulation does: pauses, and senders that are broken.

use std::time::Duration;

use meridian_clock::{RegionId, Timestamp};
use meridian_event::{Block, BlockBuilder, Chain, NewEvent, RecordedEvent};
use meridian_points::{Bug, buggify, planted};
use tokio::time::sleep;

/// Waits a little at the mark called `point`, if this run is odd there.
#[inline]
pub(crate) async fn pause(point: &'static str) {
    if buggify(point) {
        sleep(Duration::from_millis(3)).await;
    }
}

/// Makes of what `region` sends what a broken sender would: a receiver that does not look must be
/// given something to overlook.
#[inline]
pub(crate) fn spoil(blocks: &mut Vec<Block>, region: RegionId) {
    if planted(Bug::AcceptGap) {
        blocks.retain(|block| !block.header().first_position.0.is_multiple_of(7));
    }
    for block in blocks {
        let relayed = block.header().log.origin != region;
        if relayed && planted(Bug::RelayRestamps) {
            *block = encode_anew(block, 16, block.header().prev_chain);
        }
        if relayed && planted(Bug::SkipChainCheck) {
            *block = encode_anew(block, 0, Chain([7; 32]));
        }
    }
}

fn encode_anew(block: &Block, later: u64, prev_chain: Chain) -> Block {
    let header = block.header();
    let mut builder = BlockBuilder::new(header.log, header.incarnation, header.epoch);
    let events = block.to_events().unwrap_or_default();
    for batch in events.chunk_by(|a, b| a.timestamp == b.timestamp) {
        let anew: Vec<NewEvent> = batch.iter().map(as_new).collect();
        let timestamp = Timestamp(batch[0].timestamp.0 + later);
        builder.push_batch(timestamp, &batch[0].stream, batch[0].revision, &anew);
    }
    builder.seal(header.first_position, prev_chain)
}

fn as_new(event: &RecordedEvent) -> NewEvent {
    NewEvent {
        id: event.id,
        event_type: event.event_type.clone(),
        data: event.data.clone(),
        metadata: event.metadata.clone(),
    }
}

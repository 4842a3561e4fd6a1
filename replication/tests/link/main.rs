//! The machines that decide, told what happened in a loop: no sockets, no disks, no clocks.

#![allow(clippy::unwrap_used, reason = "a test may end where it is wrong")]

mod frames;
mod puller;
mod subscriptions;

use std::time::Duration;

use bytes::Bytes;
use meridian_clock::{Epoch, Incarnation, LogId, PartitionId, RegionId};
use meridian_event::{Block, BlockBuilder, EventId, EventType, NewEvent, Revision, StreamId};
use meridian_replication::frame::Head;
use uuid::Uuid;

pub(crate) const A: RegionId = RegionId(1);
pub(crate) const B: RegionId = RegionId(2);
pub(crate) const C: RegionId = RegionId(3);
pub(crate) const LIFE: Incarnation = Incarnation(1);

pub(crate) fn log_of(origin: RegionId) -> LogId {
    LogId::new(origin, PartitionId(0))
}

/// One block of two events on top of `head`, which moves on. `salt` makes its bytes differ.
pub(crate) fn block_after(head: &mut Head, salt: u8) -> Block {
    let incarnation = head.incarnation.max(LIFE);
    let epoch = head.epoch.max(Epoch::FIRST);
    let mut builder = BlockBuilder::new(head.log, incarnation, epoch);
    let event = |index: u64| NewEvent {
        id: EventId(Uuid::from_u64_pair(
            u64::from(salt),
            head.position.0 + index,
        )),
        event_type: EventType::new("Tested").unwrap(),
        data: Bytes::from(format!("{{\"salt\":{salt}}}")),
        metadata: Bytes::new(),
    };
    builder.push_batch(
        head.timestamp.plus(Duration::from_millis(1)),
        &StreamId::new("test-1").unwrap(),
        Revision(head.position.0),
        &[event(0), event(1)],
    );
    let block = builder.seal(head.position.plus(1), head.chain);
    *head = Head {
        log: head.log,
        incarnation,
        epoch,
        position: block.header().last_position(),
        chain: block.chain(),
        timestamp: block.header().last_timestamp,
    };
    block
}

/// The head after each of `count` blocks of a new log, and the blocks. `heads[0]` is the empty one.
pub(crate) fn history(log: LogId, count: usize) -> (Vec<Head>, Vec<Block>) {
    let mut head = Head::empty(log);
    let mut heads = vec![head];
    let blocks = (0..count)
        .map(|_| {
            let block = block_after(&mut head, 0);
            heads.push(head);
            block
        })
        .collect();
    (heads, blocks)
}

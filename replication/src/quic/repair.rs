//! Fetches damaged ranges again from peers that hold them.

use std::sync::Arc;

use meridian_clock::{Position, RegionId};
use meridian_event::Block;
use meridian_points::reached;
use meridian_store::{DamagedRange, RepairError};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::dial;
use super::state::Shared;
use super::wire::{MessageReader, MessageWriter, WireError, unexpected};
use crate::frame::{Fetch, Lane, Message, NotServed};

// How much is put back at once: repairing copies whole segments, so not too little, and it is held
// in memory meanwhile, so not too much.
const REPAIR_BYTES: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("no connection: {0}")]
    NoConnection(String),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    NotServed(NotServed),
    #[error("the peer sent {0:?}, which was not asked for")]
    NotAsked(Block),
    #[error(transparent)]
    Repair(#[from] RepairError),
}

/// Looks for damage again and again until cancelled.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut every = interval(shared.config.timings.repair);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turn = 0;
    loop {
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            _ = every.tick() => {}
        }
        for range in shared.store.damaged() {
            // Another peer each time, in case one of them cannot help.
            turn += 1;
            let holder = shared.lock().puller.holder(range.log, range.last, turn);
            let Some(peer) = holder else {
                tracing::debug!(%range, "damaged, and no linked peer holds it");
                continue;
            };
            let outcome = tokio::select! {
                () = shared.cancel.cancelled() => return,
                outcome = fetch(&shared, peer, &range) => outcome,
            };
            match outcome {
                Ok(blocks) => {
                    if blocks > 0 {
                        reached("damage was mended from a peer");
                    }
                    tracing::info!(%peer, %range, blocks, "damaged range fetched again and put back");
                }
                Err(error) => {
                    tracing::warn!(%peer, %range, %error, "a damaged range was not put back; trying on");
                }
            }
        }
    }
}

/// Fetches `range` from `peer` and puts it back. Returns how many blocks were put back.
async fn fetch(
    shared: &Arc<Shared>,
    peer: RegionId,
    range: &DamagedRange,
) -> Result<usize, FetchError> {
    let stuck = shared.config.timings.stuck;
    let (connection, _) = dial::connection(shared, peer, Lane::Live)
        .await
        .map_err(FetchError::NoConnection)?;
    let (send, recv) = timeout(stuck, connection.open_bi())
        .await
        .map_err(|_| WireError::TimedOut { within: stuck })?
        .map_err(|error| FetchError::NoConnection(error.to_string()))?;
    let mut writer = MessageWriter::new(send, stuck);
    let mut reader = MessageReader::new(recv);
    let asked = Fetch {
        log: range.log,
        incarnation: shared.store.head(range.log).incarnation,
        after: Position(range.first.0.saturating_sub(1)),
        until: range.last,
    };
    writer.write(&Message::Fetch(asked)).await?;
    let mut after = asked.after;
    let mut waiting: Vec<Block> = Vec::new();
    let mut waiting_bytes = 0;
    let mut put_back = 0;
    while after < asked.until {
        match reader.expect(stuck).await? {
            Message::Blocks(blocks) => {
                for block in blocks.blocks {
                    let header = block.header();
                    // The range may begin or end inside a block; it goes on without a gap.
                    let is_asked = header.log == asked.log
                        && header.first_position <= after.plus(1)
                        && header.last_position() > after;
                    if !is_asked {
                        return Err(FetchError::NotAsked(block));
                    }
                    after = header.last_position();
                    waiting_bytes += block.bytes().len();
                    waiting.push(block);
                }
            }
            Message::NotServed(reason) => return Err(FetchError::NotServed(reason)),
            other => return Err(unexpected("Blocks", &other).into()),
        }
        if waiting_bytes >= REPAIR_BYTES || after >= asked.until {
            put_back += shared.store.repair_all(std::mem::take(&mut waiting))?;
            waiting_bytes = 0;
        }
    }
    Ok(put_back)
}

//! Chains a hash over the order that is settled here, to be compared with what other regions came to.
//!
//! Each partition has a chain of its own. It covers the order key of every event, and since the
//! chains of the origin logs prove that equal dots are equal bytes, equal chains here prove that two
//! regions read the same history in the same order.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use meridian_clock::{LogId, OrderKey, PartitionId, Position, RegionId, Timestamp};
use meridian_event::Chain;
use meridian_replication::Links;
use meridian_replication::frame::Agreed;
use meridian_replication::link::cut_before;
use meridian_store::{OrderedReader, Reached, ReadError, Store};
use serde::{Deserialize, Serialize};
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How often the chains are brought up to what is settled.
const EVERY: Duration = Duration::from_millis(250);
/// How many events are chained before others get their turn.
const EVENTS_AT_ONCE: usize = 4096;
/// How often the place in the chains is kept, so that a restart does not read everything again.
const KEEP_EVERY: Duration = Duration::from_secs(10);

/// Where a chain stands, as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    through: Timestamp,
    events: u64,
    chain: Chain,
}

/// The chain of one partition.
struct Chaining {
    partition: PartitionId,
    reader: OrderedReader,
    // What is complete: whole seconds only.
    kept: Kept,
    // The second that is being read, with its events so far.
    second: Option<Second>,
}

struct Second {
    number: u64,
    events: u64,
    hasher: blake3::Hasher,
}

/// Chains what `links` settle of `logs`, until `cancel`.
pub(crate) async fn run(
    store: Arc<Store>,
    links: Arc<Links>,
    members: Vec<RegionId>,
    partitions: u16,
    cancel: CancellationToken,
) {
    let mut chains: Vec<_> = (0..partitions)
        .map(|partition| Chaining::new(&store, &links, &members, PartitionId(partition)))
        .collect();
    let mut every = interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kept_at = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            _ = every.tick() => {}
        }
        let marks = Arc::clone(&links.marks().borrow());
        for (chain, stable) in chains.iter_mut().zip(&marks.stable) {
            let cut = cut_before(*stable);
            while cut > chain.kept.through {
                match chain.read(cut, &links) {
                    Ok(Reached::Bound) => break,
                    Ok(Reached::Refused) => yield_now().await,
                    Err(error) => {
                        debug!(%error, "the settled order cannot be chained; trying on");
                        break;
                    }
                }
                if cancel.is_cancelled() {
                    return;
                }
            }
        }
        if kept_at.elapsed() >= KEEP_EVERY {
            kept_at = Instant::now();
            keep(&store, &chains);
        }
    }
}

/// Forgets where the chains of `partitions` stood, so that they are read again from the beginning.
pub(crate) fn forget(store: &Store, partitions: u16) {
    let small = store.small();
    let mut forgotten = (0..partitions).map(PartitionId);
    let forgotten = forgotten.try_for_each(|partition| small.remove(&key(partition)));
    if let Err(error) = forgotten.and_then(|()| small.flush()) {
        warn!(%error, "the place in the settled order cannot be forgotten; regions may seem to disagree");
    }
}

fn key(partition: PartitionId) -> Vec<u8> {
    format!("agreement/{partition}").into_bytes()
}

fn keep(store: &Store, chains: &[Chaining]) {
    let small = store.small();
    let written = chains.iter().try_for_each(|chain| {
        let value = postcard::to_stdvec(&chain.kept).expect("a chain's place always encodes");
        small.put(&key(chain.partition), &value)
    });
    if let Err(error) = written.and_then(|()| small.flush()) {
        warn!(%error, "the place in the settled order is not kept; a restart reads it again");
    }
}

impl Chaining {
    fn new(
        store: &Arc<Store>,
        links: &Links,
        members: &[RegionId],
        partition: PartitionId,
    ) -> Self {
        let earlier = store.small().get(&key(partition)).ok().flatten();
        let earlier = earlier.and_then(|value| postcard::from_bytes::<Kept>(&value).ok());
        let kept = earlier.unwrap_or(Kept {
            through: Timestamp::ZERO,
            events: 0,
            chain: Chain::EMPTY,
        });
        if earlier.is_some() {
            links.agreed_before(kept.agreed(partition));
        }
        let logs = members.iter().map(|origin| LogId::new(*origin, partition));
        Self {
            partition,
            reader: store.ordered(logs, after_all_of(kept.through)),
            kept,
            second: None,
        }
    }

    // Reads on up to `cut`, or until others should have their turn.
    fn read(&mut self, cut: Timestamp, links: &Links) -> Result<Reached, ReadError> {
        let Self {
            partition,
            reader,
            kept,
            second,
        } = self;
        let mut left = EVENTS_AT_ONCE;
        let reached = reader.read(cut, |key, _, _| {
            if left == 0 {
                return ControlFlow::Break(());
            }
            left -= 1;
            let number = key.timestamp.0 >> 32;
            if second.as_ref().is_some_and(|second| second.number < number) {
                close(second, kept);
                links.agreed(kept.agreed(*partition));
            }
            let second = second.get_or_insert_with(|| Second {
                number,
                events: 0,
                hasher: blake3::Hasher::new(),
            });
            if second.events == 0 {
                second.hasher.update(&kept.chain.0);
            }
            second.events += 1;
            let mut bytes = [0; 18];
            bytes[..8].copy_from_slice(&key.timestamp.0.to_le_bytes());
            bytes[8..10].copy_from_slice(&key.region.0.to_le_bytes());
            bytes[10..].copy_from_slice(&key.position.0.to_le_bytes());
            second.hasher.update(&bytes);
            ControlFlow::Continue(())
        })?;
        if reached == Reached::Bound {
            // The second's own cut comes first: others may have cut between it and ours.
            if second.is_some() {
                close(second, kept);
                links.agreed(kept.agreed(*partition));
            }
            kept.through = cut;
            links.agreed(kept.agreed(*partition));
            // Until there is more to read, the place is all that is needed.
            reader.release();
        }
        Ok(reached)
    }
}

// Takes the events of the second that was read into the chain.
fn close(second: &mut Option<Second>, kept: &mut Kept) {
    if let Some(second) = second.take() {
        *kept = Kept {
            through: Timestamp((second.number << 32) | u64::from(u32::MAX)),
            events: kept.events + second.events,
            chain: Chain(*second.hasher.finalize().as_bytes()),
        };
    }
}

impl Kept {
    fn agreed(&self, partition: PartitionId) -> Agreed {
        Agreed {
            partition,
            through: self.through,
            events: self.events,
            chain: self.chain,
        }
    }
}

// Behind every event that is stamped at or before `through`.
fn after_all_of(through: Timestamp) -> OrderKey {
    if through == Timestamp::ZERO {
        return OrderKey::ZERO;
    }
    OrderKey {
        timestamp: through,
        region: RegionId(u16::MAX),
        partition: PartitionId(u16::MAX),
        position: Position(u64::MAX),
    }
}

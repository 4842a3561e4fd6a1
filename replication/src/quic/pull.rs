//! Pulls one log from one peer, for as long as the puller wants it.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use meridian_clock::{LogId, Position, Timestamp};
use meridian_event::Block;
use meridian_points::{Bug, buggify, planted, reached};
use meridian_store::{NotAdmitted, Store, SubmitError};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::dial;
use super::odd;
use super::state::{LogState, Shared};
use super::wire::{MessageReader, MessageWriter, WireError, unexpected};
use crate::frame::{Blocks, Head, Lane, Message};
use crate::link::{Ended, InboundError, InboundSubscription, Subscription, Verdict};

// How long what a block rests on is waited for before it is asked whether it still does.
const ASK_AGAIN: Duration = Duration::from_secs(1);
// A window below this would stop and go with every block.
const WINDOW_BYTES_MIN: u64 = 1 << 20;

/// Pulls until `cancel`, or until it cannot go on and says so.
pub(crate) async fn run(
    shared: Arc<Shared>,
    subscription: Subscription,
    cancel: CancellationToken,
) {
    let Some(log) = shared.logs.get(&subscription.log) else {
        return;
    };
    let failure = tokio::select! {
        () = cancel.cancelled() => return,
        failure = pull(&shared, log, subscription) => failure,
    };
    let Subscription { log, via, .. } = subscription;
    match &failure {
        Failure::Inbound(_) => {
            tracing::error!(%log, peer = %via, reason = %failure, "what the peer sent was not kept");
        }
        Failure::Wire(error) if error.is_violation() => {
            tracing::error!(%log, peer = %via, reason = %failure, "what the peer sent was not kept");
        }
        Failure::Store(_) => {
            tracing::error!(%log, peer = %via, reason = %failure, "our disk does not take what the peer sent");
        }
        Failure::Fenced(..) => {
            reached("a block of a fenced region was refused by the link");
            tracing::info!(%log, peer = %via, reason = %failure, "what the peer sent was not kept");
        }
        Failure::NotServed(_) | Failure::Wire(_) | Failure::NoConnection(_) => {
            tracing::debug!(%log, peer = %via, reason = %failure, "pulling ended");
        }
    }
    shared.ended(subscription, &failure.into());
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no connection: {0}")]
    NoConnection(String),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    NotServed(crate::frame::NotServed),
    #[error(transparent)]
    Inbound(#[from] InboundError),
    #[error("a block of log {0} does not count: {1}")]
    Fenced(LogId, NotAdmitted),
    #[error("{0}")]
    Store(String),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NoConnection(_) => Self::Lost,
            Failure::Wire(error) if error.is_violation() => Self::Violated,
            Failure::Wire(_) => Self::Lost,
            Failure::NotServed(reason) => Self::NotServed(reason),
            Failure::Inbound(InboundError::WrongChain { position, .. }) => {
                Self::WrongChain { position }
            }
            Failure::Inbound(InboundError::WrittenElsewhere { .. })
            | Failure::Store(_)
            | Failure::Fenced(..) => Self::Local,
            Failure::Inbound(_) => Self::Violated,
        }
    }
}

/// Says `failed` when the store could not make a block durable.
#[derive(Debug, Default)]
struct CommitWatch(Notify);

async fn pull(shared: &Arc<Shared>, log: &LogState, subscription: Subscription) -> Failure {
    // Whoever pulled this log before must have let go of it: two would each submit what the other
    // already did.
    let _gate = log.gate.lock().await;
    match pull_alone(shared, log, subscription).await {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

async fn pull_alone(
    shared: &Arc<Shared>,
    log: &LogState,
    subscription: Subscription,
) -> Result<std::convert::Infallible, Failure> {
    let stuck = shared.config.timings.stuck;
    let (connection, start) = dial::connection(shared, subscription.via, subscription.lane)
        .await
        .map_err(Failure::NoConnection)?;
    let source = Source::new(shared, subscription, start);
    let (send, recv) = timeout(stuck, connection.open_bi())
        .await
        .map_err(|_| WireError::TimedOut { within: stuck })?
        .map_err(|error| Failure::NoConnection(error.to_string()))?;
    let mut writer = MessageWriter::new(send, stuck);
    let mut reader = MessageReader::new(recv);

    let mut heads = log.head.subscribe();
    // In this order: what is durable can only lag what was submitted.
    let durable = heads.borrow_and_update().position;
    let accepted = Head::from(shared.store.submitted_head(subscription.log));
    let mut inbound = InboundSubscription::new(
        &accepted,
        durable.min(accepted.position),
        window_bytes(shared, subscription.lane),
    );
    let subscribe = Message::Subscribe(inbound.subscribe());
    writer.write(&subscribe).await?;
    let head = match reader.expect(stuck).await? {
        Message::Subscribed(subscribed) => subscribed.head,
        Message::NotServed(reason) => return Err(Failure::NotServed(reason)),
        other => return Err(unexpected("Subscribed", &other).into()),
    };
    shared
        .lock()
        .puller
        .handle_position(subscription.via, subscription.log, head);

    let failed = Arc::new(CommitWatch::default());
    let mut stamps: VecDeque<(Position, Timestamp)> = VecDeque::new();
    let mut held_back: Option<HeldBack> = None;
    loop {
        tokio::select! {
            biased;
            () = failed.0.notified() => {
                return Err(Failure::Store("a block could not be made durable".to_owned()));
            }
            changed = heads.changed() => {
                if changed.is_err() {
                    return Err(Failure::Store("the store is closed".to_owned()));
                }
                let durable = heads.borrow_and_update().position;
                if let Some(ack) = inbound.handle_durable(durable)? {
                    odd::pause("an acknowledgement is sent late").await;
                    writer.write(&Message::Ack(ack)).await?;
                }
                let settled = stamps.partition_point(|(last, _)| *last <= durable);
                let settled: Vec<_> = stamps.drain(..settled).map(|(_, stamp)| stamp).collect();
                shared.delayed(subscription.log.origin, &settled);
            }
            blocks = next(shared, &source, &mut reader, &mut held_back, &failed) => {
                let Some(blocks) = blocks? else {
                    continue;
                };
                let taken = take(shared, &source, &mut inbound, &mut stamps, blocks, &failed).await?;
                let mut ack = taken.give_back;
                held_back = taken.held_back;
                if planted(Bug::AckUnsynced) {
                    ack = inbound.handle_durable(inbound.accepted())?.map(Message::Ack);
                }
                if let Some(ack) = ack {
                    writer.write(&ack).await?;
                }
            }
        }
    }
}

/// A block that has been judged, and rests on more of other logs than is here.
struct HeldBack {
    block: Block,
    missing: Vec<(LogId, Position)>,
    // What came behind it.
    rest: Blocks,
    // Whether an operator can see that it waits.
    is_told: bool,
}

// What to take next: what came behind a block that was held back, once that is handed over, else what the peer sends.
// `None` when the block that is held back still has to wait. It may be dropped while it waits: nothing is lost by that.
async fn next(
    shared: &Arc<Shared>,
    source: &Source,
    reader: &mut MessageReader,
    held_back: &mut Option<HeldBack>,
    failed: &Arc<CommitWatch>,
) -> Result<Option<Blocks>, Failure> {
    let Some(held) = held_back else {
        return match reader.read().await?.ok_or(WireError::Ended)? {
            Message::Blocks(blocks) => Ok(Some(blocks)),
            Message::NotServed(reason) => Err(Failure::NotServed(reason)),
            other => Err(unexpected("Blocks", &other).into()),
        };
    };
    let is_late = !come(&shared.store, &held.missing).await;
    // What it waits for may count no more: that is asked anew each time.
    if let Some(missing) = submit(shared, source, &held.block, failed).await? {
        held.missing = missing;
        if is_late && !held.is_told {
            tell(source.subscription, &held.missing);
            held.is_told = true;
        }
        return Ok(None);
    }
    shared
        .lock()
        .puller
        .handle_held_back(source.subscription, false);
    Ok(held_back.take().map(|held| held.rest))
}

// Waits until `missing` is here, or it is time to ask again. Whether it is here.
async fn come(store: &Store, missing: &[(LogId, Position)]) -> bool {
    let mut committed = store.committed();
    let here = async {
        let is_here = |(log, position): &(LogId, Position)| store.head(*log).position >= *position;
        while !missing.iter().all(is_here) && committed.changed().await.is_ok() {}
    };
    timeout(ASK_AGAIN, here).await.is_ok()
}

fn tell(subscription: Subscription, missing: &[(LogId, Position)]) {
    let Subscription { log, via, .. } = subscription;
    for (other, position) in missing {
        tracing::info!(%log, peer = %via, "this log goes on here once log {other} is here to {position}");
    }
}

/// What became of blocks that came.
#[derive(Default)]
struct Taken {
    // Sent at once, if any.
    give_back: Option<Message>,
    // The first of them that has to wait, and all behind it.
    held_back: Option<HeldBack>,
}

/// Judges each block and hands it to the store without waiting until it is durable.
async fn take(
    shared: &Arc<Shared>,
    source: &Source,
    inbound: &mut InboundSubscription,
    stamps: &mut VecDeque<(Position, Timestamp)>,
    blocks: Blocks,
    failed: &Arc<CommitWatch>,
) -> Result<Taken, Failure> {
    let subscription = source.subscription;
    odd::pause("blocks that came wait to be judged").await;
    // The store decodes a block before it finds that it has no room for it, so ask first.
    room(shared).await?;
    let mut taken = Taken::default();
    let mut received_bytes = 0;
    let mut newest = Timestamp::ZERO;
    let generations = shared.generations(subscription.log);
    let Blocks {
        blocks,
        mut promise,
    } = blocks;
    let mut blocks = blocks.into_iter();
    while let Some(block) = blocks.next() {
        received_bytes += block.bytes().len() as u64;
        let header = block.header();
        let admitted =
            generations.admits(header.epoch, header.first_position, header.last_position());
        if !planted(Bug::EpochUnchecked) {
            admitted.map_err(|reason| Failure::Fenced(subscription.log, reason))?;
        }
        match inbound.handle_block(&block)? {
            Verdict::Persist => {
                let header = block.header();
                newest = newest.max(header.last_timestamp);
                stamps.push_back((header.last_position(), header.last_timestamp));
                note_way(shared, subscription);
                if let Some(missing) = submit(shared, source, &block, failed).await? {
                    reached("what a new home wrote waited for what it had opened on");
                    shared.lock().puller.handle_held_back(subscription, true);
                    taken.held_back = Some(HeldBack {
                        block,
                        missing,
                        rest: Blocks {
                            blocks: blocks.collect(),
                            promise: promise.take(),
                        },
                        is_told: false,
                    });
                    break;
                }
            }
            Verdict::AlreadyHeld(ack) => {
                reached("a block came that was already held");
                taken.give_back = Some(Message::Ack(ack));
            }
        }
    }
    if newest > Timestamp::ZERO {
        shared.stamped(subscription.log.origin, newest);
    }
    if let Some(promise) = promise {
        shared.promised(&[promise]);
    }
    let mut state = shared.lock();
    if let Some(peer) = state.peers.get_mut(&subscription.via) {
        peer.received_bytes += received_bytes;
    }
    let accepted = inbound.accepted();
    state
        .puller
        .handle_position(subscription.via, subscription.log, accepted);
    Ok(taken)
}

/// Where blocks come from.
struct Source {
    subscription: Subscription,
    // Which start of the peer it is, and the newest that was heard of.
    start: Option<u64>,
    newest: Option<Arc<RwLock<Option<u64>>>>,
}

impl Source {
    fn new(shared: &Shared, subscription: Subscription, start: Option<u64>) -> Self {
        let state = shared.lock();
        let known = state.peers.get(&subscription.via);
        Self {
            subscription,
            start,
            newest: known.map(|known| Arc::clone(&known.start)),
        }
    }

    // Hands the block to the store unless the peer has started anew since it sent it.
    fn submit(
        &self,
        store: &Store,
        block: Block,
        failed: &Arc<CommitWatch>,
    ) -> Option<Result<(), SubmitError>> {
        let newest = self.newest.as_ref()?.read();
        let newest = newest.unwrap_or_else(PoisonError::into_inner);
        if *newest != self.start && !planted(Bug::ForgetTaken) {
            return None;
        }
        let failed = Arc::clone(failed);
        let done = move |outcome: Result<(), _>| {
            if outcome.is_err() {
                failed.0.notify_one();
            }
        };
        Some(store.submit(block, Box::new(done)))
    }
}

// Hands the block to the store, unless it rests on more than is here: then that is told.
async fn submit(
    shared: &Arc<Shared>,
    source: &Source,
    block: &Block,
    failed: &Arc<CommitWatch>,
) -> Result<Option<Vec<(LogId, Position)>>, Failure> {
    loop {
        let Some(submitted) = source.submit(&shared.store, block.clone(), failed) else {
            reached("a block of a peer's earlier start was not taken");
            return Err(Failure::NoConnection(
                "the peer has started anew".to_owned(),
            ));
        };
        match submitted {
            Ok(()) => return Ok(None),
            Err(SubmitError::MissingDependencies { missing, .. }) => return Ok(Some(missing)),
            Err(SubmitError::Full) => room(shared).await?,
            Err(SubmitError::WrongChain { log, position, .. }) => {
                return Err(InboundError::WrongChain {
                    log,
                    position: Position(position.0.saturating_sub(1)),
                }
                .into());
            }
            Err(SubmitError::Fenced { log, source }) => {
                reached("a block of a fenced region was refused by the store");
                return Err(Failure::Fenced(log, source));
            }
            Err(other) => return Err(Failure::Store(other.to_string())),
        }
    }
}

fn note_way(shared: &Shared, subscription: Subscription) {
    let Subscription { log, via, lane, .. } = subscription;
    if log.origin == shared.config.region {
        reached("own positions were taken back from a peer");
    } else if log.origin != via {
        reached("a block came by relay");
    }
    if lane == Lane::Bulk {
        reached("catching up went over a connection of its own");
    }
}

/// Waits until the disk has caught up. That stops the credit, which stops the sender.
async fn room(shared: &Shared) -> Result<(), Failure> {
    timeout(shared.config.timings.stuck, shared.store.room())
        .await
        .map_err(|_| Failure::Store("the disk has not kept up for too long".to_owned()))
}

fn window_bytes(shared: &Shared, lane: Lane) -> u64 {
    if buggify("a window holds a few blocks") {
        return 16 << 10;
    }
    let config = &shared.config;
    let partitions = u64::from(config.partitions).max(1);
    let share = match lane {
        Lane::Live => config.live_window_bytes / partitions,
        Lane::Bulk => {
            let peers = u64::try_from(config.members.len()).unwrap_or(1);
            config.bulk_window_bytes / (partitions * peers.saturating_sub(1).max(1))
        }
    };
    share.max(WINDOW_BYTES_MIN)
}

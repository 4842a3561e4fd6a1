//! Serves one peer that pulls from us.

use std::sync::Arc;

use meridian_client::tls::PeerName;
use meridian_clock::{Position, RegionId};
use meridian_event::Block;
use meridian_points::buggify;
use meridian_store::ReadError;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::ask;
use super::endpoint::{close, code, explain};
use super::odd;
use super::state::Shared;
use super::wire::{MessageReader, MessageWriter, WireError, unexpected};
use crate::frame::{
    Ack, Agreement, Blocks, Fetch, Hello, Lane, Message, NotServed, Refusal, SETTLED_SINCE,
    SETTLED_UNDER_SINCE, START_SINCE, Settled, Subscribe, Subscribed,
};
use crate::link::{AckError, OutboundSubscription};

// How much is read and sent at once: enough that the costs per frame do not count, little enough
// that a slow line holds little memory.
const FRAME_BYTES: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{0}")]
    Refused(Refusal),
    #[error("the peer refuses us: {0}")]
    RefusedByPeer(Refusal),
    #[error("{0}")]
    Lost(String),
    #[error(transparent)]
    Ack(#[from] AckError),
}

/// Serves `connection` until it ends.
pub(crate) async fn run(shared: Arc<Shared>, connection: quinn::Connection, name: PeerName) {
    let error = tokio::select! {
        () = shared.cancel.cancelled() => {
            close(&connection, code::DONE, "shutting down");
            return;
        }
        error = serve(&shared, &connection, &name) => error,
    };
    let from = connection.remote_address();
    let error = match (error, connection.close_reason()) {
        (ServeError::Wire(error), Some(reason)) if !error.is_violation() => {
            ServeError::Lost(explain(&reason))
        }
        (same, _) => same,
    };
    let code = match &error {
        ServeError::Refused(refusal) => {
            tracing::warn!(peer = %name, %from, code = refusal.code(), reason = %refusal, "link refused");
            code::REFUSED
        }
        ServeError::RefusedByPeer(refusal) => {
            tracing::warn!(peer = %name, %from, code = refusal.code(), reason = %refusal, "the peer refuses our link");
            code::REFUSED
        }
        ServeError::Wire(error) if error.is_violation() => {
            tracing::error!(peer = %name, %from, reason = %error, "link closed: the peer sent what cannot be");
            code::VIOLATION
        }
        ServeError::Wire(_) | ServeError::Lost(_) | ServeError::Ack(_) => {
            tracing::info!(peer = %name, %from, reason = %error, "the peer pulls no more");
            code::DONE
        }
    };
    close(&connection, code, &error.to_string());
}

async fn serve(
    shared: &Arc<Shared>,
    connection: &quinn::Connection,
    name: &PeerName,
) -> ServeError {
    let (hello, version, reader, writer) = match greet(shared, connection, name).await {
        Ok(greeted) => greeted,
        Err(error) => return error,
    };
    let Hello { region, lane, .. } = hello;
    tracing::info!(peer = %name, ?lane, from = %connection.remote_address(), "linked: the peer pulls from us");
    shared.joined(region, lane, connection);
    let error = match lane {
        Lane::Live => tokio::select! {
            Err(error) = listen(shared, region, reader) => error,
            Err(error) = speak(shared, region, version, writer) => error.into(),
            error = serve_streams(shared, connection, region) => error,
        },
        Lane::Bulk => {
            let _control = (reader, writer);
            serve_streams(shared, connection, region).await
        }
    };
    shared.left(region, lane, connection);
    error
}

async fn greet(
    shared: &Arc<Shared>,
    connection: &quinn::Connection,
    name: &PeerName,
) -> Result<(Hello, u16, MessageReader, MessageWriter), ServeError> {
    let within = shared.config.timings.connect;
    let (send, recv) = timeout(within, connection.accept_bi())
        .await
        .map_err(|_| WireError::TimedOut { within })?
        .map_err(|error| ServeError::Lost(explain(&error)))?;
    let mut writer = MessageWriter::new(send, shared.config.timings.stuck);
    let mut reader = MessageReader::new(recv);
    let hello = match reader.expect(within).await? {
        Message::Hello(hello) => hello,
        other => return Err(unexpected("Hello", &other).into()),
    };
    let certificate = match name {
        PeerName::Region(name) => name.clone(),
        PeerName::Client(name) => format!("client {name}"),
    };
    let version = match shared.credentials.judge(&hello, &certificate, None) {
        Ok(version) => version,
        Err(refusal) => {
            writer.write(&Message::Refused(refusal.clone())).await?;
            writer.finish().await;
            return Err(ServeError::Refused(refusal));
        }
    };
    let welcome = shared.credentials.hello(hello.lane);
    writer.write(&Message::Welcome(welcome)).await?;
    let mut start = None;
    if version >= START_SINCE {
        writer.write(&Message::Start(shared.start)).await?;
        match reader.expect(within).await? {
            Message::Start(theirs) => start = Some(theirs.id),
            Message::Refused(refusal) => return Err(ServeError::RefusedByPeer(refusal)),
            other => return Err(unexpected("Start", &other).into()),
        }
    }
    shared.started(hello.region, start);
    writer.prefer();
    Ok((hello, version, reader, writer))
}

/// Takes in what the peer says on the control stream. Never returns `Ok`.
async fn listen(
    shared: &Arc<Shared>,
    peer: RegionId,
    mut reader: MessageReader,
) -> Result<std::convert::Infallible, ServeError> {
    let within = shared.config.timings.silent;
    let mut is_first = true;
    loop {
        match reader.expect(within).await? {
            Message::Vector(vector) => {
                shared.vector(peer, vector, false, std::mem::take(&mut is_first));
            }
            Message::Taken(taken) => shared.taken(peer, &taken),
            Message::Refused(refusal) => return Err(ServeError::RefusedByPeer(refusal)),
            other => return Err(unexpected("Vector", &other).into()),
        }
    }
}

/// Tells the peer what we hold and what is complete. Never returns `Ok`.
async fn speak(
    shared: &Arc<Shared>,
    peer: RegionId,
    version: u16,
    mut writer: MessageWriter,
) -> Result<std::convert::Infallible, WireError> {
    let knows_settled = version >= SETTLED_SINCE;
    let timings = &shared.config.timings;
    let mut vectors = interval(timings.vector);
    let mut heartbeats = interval(timings.heartbeat);
    vectors.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (message, beside) = tokio::select! {
            biased;
            _ = vectors.tick() => (
                Message::Vector(shared.vector_for(peer)),
                match version >= SETTLED_UNDER_SINCE {
                    true => Message::AgreementUnder(shared.agreement()),
                    false => Message::Agreement(Agreement {
                        agreed: shared.agreement().agreed,
                    }),
                },
            ),
            _ = heartbeats.tick() => (
                Message::Heartbeat(shared.heartbeat()),
                match version >= SETTLED_UNDER_SINCE {
                    true => Message::SettledUnder(shared.settled()),
                    false => Message::Settled(Settled {
                        stable: shared.settled().stable.into_iter().map(|it| it.0).collect(),
                    }),
                },
            ),
        };
        if buggify("a vector or heartbeat is left out") {
            continue;
        }
        if version >= START_SINCE && matches!(message, Message::Vector(_)) {
            writer.write(&Message::Taken(shared.taken_of(peer))).await?;
        }
        writer.write(&message).await?;
        if knows_settled {
            writer.write(&beside).await?;
        }
    }
}

async fn serve_streams(
    shared: &Arc<Shared>,
    connection: &quinn::Connection,
    peer: RegionId,
) -> ServeError {
    // One per log, as many again that are just ending, some fetches, and the control plane's questions. What QUIC allows by itself
    // is too little for a federation of many partitions, and a log without a stream would wait for
    // good.
    let places_max = shared.logs.len() * 2 + 8 + ask::QUESTIONS_MAX;
    let streams_max = u32::try_from(places_max + 1).unwrap_or(u32::MAX);
    connection.set_max_concurrent_bi_streams(streams_max.into());
    let places = Arc::new(Semaphore::new(places_max));
    loop {
        let (send, recv) = match connection.accept_bi().await {
            Ok(stream) => stream,
            Err(error) => return ServeError::Lost(explain(&error)),
        };
        let mut writer = MessageWriter::new(send, shared.config.timings.stuck);
        let reader = MessageReader::new(recv);
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            let refused = writer.write(&Message::NotServed(NotServed::TooMany)).await;
            tracing::warn!(%peer, ?refused, "too many streams on one link");
            continue;
        };
        let shared = Arc::clone(shared);
        shared.tracker.clone().spawn(async move {
            let _place = place;
            let outcome = tokio::select! {
                () = shared.cancel.cancelled() => return,
                outcome = serve_stream(&shared, peer, reader, writer) => outcome,
            };
            match outcome {
                Err(ServeError::Wire(error)) if error.is_violation() => {
                    tracing::error!(%peer, reason = %error, "stream closed: the peer sent what cannot be");
                }
                Err(ServeError::Ack(error)) => {
                    tracing::error!(%peer, reason = %error, "stream closed: the peer sent what cannot be");
                }
                Err(error) => tracing::debug!(%peer, reason = %error, "stream ended"),
                Ok(()) => {}
            }
        });
    }
}

async fn serve_stream(
    shared: &Arc<Shared>,
    peer: RegionId,
    mut reader: MessageReader,
    mut writer: MessageWriter,
) -> Result<(), ServeError> {
    let message = reader.expect(shared.config.timings.stuck).await?;
    let refusal = match message {
        Message::Subscribe(subscribe) => {
            match serve_log(shared, peer, subscribe, &mut reader, &mut writer).await? {
                Some(reason) => reason,
                None => return Ok(()),
            }
        }
        Message::Fetch(fetch) => match serve_range(shared, peer, fetch, &mut writer).await? {
            Some(reason) => reason,
            None => {
                writer.finish().await;
                return Ok(());
            }
        },
        Message::Ask(question) => {
            let answer = match ask::answer(shared, peer, question).await {
                Some(answer) => Message::Answer(answer),
                None => Message::NotServed(NotServed::TooMany),
            };
            writer.write(&answer).await?;
            writer.finish().await;
            return Ok(());
        }
        other => return Err(unexpected("Subscribe, Fetch or Ask", &other).into()),
    };
    if matches!(refusal, NotServed::Diverged { .. }) {
        tracing::error!(%peer, reason = %refusal, "a peer asks for a log that it holds differently");
    } else {
        tracing::debug!(%peer, reason = %refusal, "not served");
    }
    writer.write(&Message::NotServed(refusal)).await?;
    writer.finish().await;
    Ok(())
}

fn read(
    shared: &Shared,
    log: meridian_clock::LogId,
    after: Position,
    bytes_max: usize,
) -> Result<Vec<Block>, NotServed> {
    shared
        .store
        .read_log(log, after, bytes_max)
        .map_err(|error| match error {
            ReadError::Damaged(_) => NotServed::Damaged { log, after },
            ReadError::Io { .. } => NotServed::Unreadable {
                log,
                reason: error.to_string(),
            },
        })
}

/// Sends a log as it becomes durable here, until the peer or the network ends it. Returns why it
/// cannot be served (any further).
async fn serve_log(
    shared: &Arc<Shared>,
    peer: RegionId,
    subscribe: Subscribe,
    reader: &mut MessageReader,
    writer: &mut MessageWriter,
) -> Result<Option<NotServed>, ServeError> {
    let log = subscribe.log;
    let Some(state) = shared.logs.get(&log) else {
        return Ok(Some(NotServed::Behind {
            log,
            held: Position::ZERO,
            asked: subscribe.after,
        }));
    };
    let mut heads = state.head.subscribe();
    let head = *heads.borrow_and_update();
    let next = if subscribe.after < head.position {
        match read(shared, log, subscribe.after, 1) {
            Ok(blocks) => blocks.first().map(|block| *block.header()),
            Err(reason) => return Ok(Some(reason)),
        }
    } else {
        None
    };
    let mut outbound = match OutboundSubscription::start(&subscribe, &head, next.as_ref()) {
        Ok(outbound) => outbound,
        Err(reason) => return Ok(Some(reason)),
    };
    let subscribed = Subscribed {
        head: head.position,
    };
    writer.write(&Message::Subscribed(subscribed)).await?;
    loop {
        let head = *heads.borrow_and_update();
        let frame_bytes = match buggify("a frame holds one block") {
            true => 1,
            false => FRAME_BYTES,
        };
        if let Some(bytes) = outbound.wants_bytes(head.position, frame_bytes) {
            odd::pause("blocks are sent late").await;
            let mut blocks = match read(shared, log, outbound.sent(), bytes) {
                Ok(blocks) => blocks,
                Err(reason) => return Ok(Some(reason)),
            };
            let count = outbound.handle_read(&blocks);
            blocks.truncate(count);
            odd::spoil(&mut blocks, shared.config.region);
            let sent_bytes: usize = blocks.iter().map(|block| block.bytes().len()).sum();
            let promise = {
                let mut state = shared.lock();
                if let Some(peer) = state.peers.get_mut(&peer) {
                    peer.sent_bytes += sent_bytes as u64;
                }
                state
                    .promises
                    .get(log)
                    .filter(|promise| promise.position <= outbound.sent())
            };
            let message = Message::Blocks(Blocks { promise, blocks });
            let write = writer.write(&message);
            tokio::pin!(write);
            // Acknowledgements are what writers elsewhere wait for: a slow line must not hold
            // them up.
            loop {
                tokio::select! {
                    written = &mut write => break written?,
                    message = reader.read() => {
                        let Some(ack) = expect_ack(message?)? else {
                            return Ok(None);
                        };
                        outbound.handle_ack(ack)?;
                        shared.acked(peer, log, head.incarnation, outbound.durable());
                    }
                }
            }
            continue;
        }
        tokio::select! {
            changed = heads.changed() => {
                if changed.is_err() {
                    return Ok(None);
                }
            }
            message = reader.read() => {
                let Some(ack) = expect_ack(message?)? else {
                    return Ok(None);
                };
                outbound.handle_ack(ack)?;
                shared.acked(peer, log, head.incarnation, outbound.durable());
            }
        }
    }
}

fn expect_ack(message: Option<Message>) -> Result<Option<Ack>, WireError> {
    match message {
        Some(Message::Ack(ack)) => Ok(Some(ack)),
        Some(other) => Err(unexpected("Ack", &other)),
        None => Ok(None),
    }
}

/// Sends one range of a log. Returns why it cannot be served.
async fn serve_range(
    shared: &Arc<Shared>,
    peer: RegionId,
    fetch: Fetch,
    writer: &mut MessageWriter,
) -> Result<Option<NotServed>, ServeError> {
    let Fetch { log, until, .. } = fetch;
    let head = shared.store.head(log);
    if head.position > Position::ZERO && head.incarnation != fetch.incarnation {
        return Ok(Some(NotServed::OtherIncarnation {
            log,
            held: head.incarnation,
            asked: fetch.incarnation,
        }));
    }
    if head.position < until {
        return Ok(Some(NotServed::Behind {
            log,
            held: head.position,
            asked: until,
        }));
    }
    tracing::info!(%peer, %log, after = %fetch.after, %until, "a peer fetches a range again");
    let mut after = fetch.after;
    while after < until {
        let mut blocks = match read(shared, log, after, FRAME_BYTES) {
            Ok(blocks) => blocks,
            Err(reason) => return Ok(Some(reason)),
        };
        blocks.retain(|block| block.header().first_position <= until);
        let Some(last) = blocks.last() else {
            return Ok(Some(NotServed::Damaged { log, after }));
        };
        after = last.header().last_position();
        let message = Message::Blocks(Blocks {
            promise: None,
            blocks,
        });
        writer.write(&message).await?;
    }
    Ok(None)
}

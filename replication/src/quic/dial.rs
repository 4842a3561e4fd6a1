//! Dials one peer, again and again, and listens to it.

use std::sync::Arc;

use meridian_client::tls::{Alpn, PeerName};
use meridian_clock::RegionId;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::Member;
use super::endpoint::{ConnectError, close, code, explain};
use super::state::{BulkConnection, Shared};
use super::wire::{MessageReader, MessageWriter, WireError, unexpected};
use crate::frame::{Agreement, AgreementUnder, Lane, Message, Refusal, START_SINCE, SettledUnder};
use crate::link::Backoff;

/// Why there is no link to a peer, or not any more.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Lost(String),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("the peer refuses us: {0}")]
    RefusedByPeer(Refusal),
    #[error("we refuse the peer: {0}")]
    RefusedByUs(Refusal),
    #[error("nothing was heard from it for {0} ms")]
    Silent(u128),
}

impl LinkError {
    /// Whether it takes an operator, rather than time, to mend it.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::RefusedByPeer(_) | Self::RefusedByUs(_))
    }

    /// The connection itself knows better than its streams why it ended.
    fn or_close_reason(self, connection: &quinn::Connection) -> Self {
        match (self, connection.close_reason()) {
            (Self::Wire(error), Some(reason)) if !error.is_violation() => {
                Self::Lost(explain(&reason))
            }
            (same, _) => same,
        }
    }
}

/// Keeps a link to `member` until cancelled.
pub(crate) async fn run(shared: Arc<Shared>, member: Member) {
    let timings = shared.config.timings;
    let mut backoff = Backoff::new(timings.redial, timings.redial_max);
    let mut said = String::new();
    loop {
        let began = shared.now();
        let error = tokio::select! {
            () = shared.cancel.cancelled() => return,
            error = link(&shared, &member) => error,
        };
        let reason = error.to_string();
        shared.disconnected(member.id, reason.clone());
        // A peer that is down for a day is worth one line, not one for every attempt.
        if reason == said {
            tracing::debug!(region = %member.name, %reason, "no link");
        } else {
            tracing::warn!(region = %member.name, addr = %member.addr, %reason, "no link; trying on");
            said = reason;
        }
        if shared.now().since(began) > timings.redial_max {
            backoff.reset();
            said.clear();
        }
        let wait = if error.is_refusal() {
            timings.refused
        } else {
            backoff.next_wait()
        };
        let wait = shared.lock().jitter.spread(wait);
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            () = sleep(wait) => {}
        }
    }
}

/// Opens a link and keeps it as long as it lasts.
async fn link(shared: &Arc<Shared>, member: &Member) -> LinkError {
    let open = match open(shared, member, Lane::Live).await {
        Ok(open) => open,
        Err(error) => return error,
    };
    let Open {
        connection,
        version,
        start,
        reader,
        writer,
    } = open;
    writer.prefer();
    tracing::info!(region = %member.name, addr = %member.addr, "linked: pulling from it");
    shared.connected(member.id, &connection, start, version);
    let error = tokio::select! {
        Err(error) = listen(shared, member.id, reader) => error,
        Err(error) = speak(shared, member.id, version, writer) => LinkError::from(error),
        reason = connection.closed() => LinkError::Lost(explain(&reason)),
    };
    let error = error.or_close_reason(&connection);
    let code = match &error {
        LinkError::Wire(error) if error.is_violation() => code::VIOLATION,
        LinkError::Silent(_) => code::SILENT,
        _ => code::DONE,
    };
    close(&connection, code, &error.to_string());
    error
}

struct Open {
    connection: quinn::Connection,
    version: u16,
    // Which start of the peer it leads to, if the peer says so.
    start: Option<u64>,
    reader: MessageReader,
    writer: MessageWriter,
}

/// Dials `member` and shakes hands.
async fn open(shared: &Arc<Shared>, member: &Member, lane: Lane) -> Result<Open, LinkError> {
    let within = shared.config.timings.connect;
    let connection = shared
        .endpoint
        .connect(member.addr, &member.name, Alpn::Link, within)
        .await?;
    match greet(shared, member, lane, &connection).await {
        Ok((version, start, reader, writer)) => Ok(Open {
            connection,
            version,
            start,
            reader,
            writer,
        }),
        Err(error) => {
            let error = error.or_close_reason(&connection);
            let code = match &error {
                LinkError::RefusedByUs(_) | LinkError::RefusedByPeer(_) => code::REFUSED,
                LinkError::Wire(error) if error.is_violation() => code::VIOLATION,
                _ => code::DONE,
            };
            close(&connection, code, &error.to_string());
            Err(error)
        }
    }
}

async fn greet(
    shared: &Arc<Shared>,
    member: &Member,
    lane: Lane,
    connection: &quinn::Connection,
) -> Result<(u16, Option<u64>, MessageReader, MessageWriter), LinkError> {
    let within = shared.config.timings.connect;
    let (send, recv) = timeout(within, connection.open_bi())
        .await
        .map_err(|_| WireError::TimedOut { within })?
        .map_err(|error| LinkError::Lost(explain(&error)))?;
    let mut writer = MessageWriter::new(send, shared.config.timings.stuck);
    let mut reader = MessageReader::new(recv);
    writer
        .write(&Message::Hello(shared.credentials.hello(lane)))
        .await?;
    let hello = match reader.expect(within).await? {
        Message::Welcome(hello) => hello,
        Message::Refused(refusal) => return Err(LinkError::RefusedByPeer(refusal)),
        other => return Err(unexpected("Welcome", &other).into()),
    };
    // The TLS library has already checked that the certificate is the one of the region we dialled.
    let certificate = match PeerName::of(connection) {
        Ok(PeerName::Region(name)) => name,
        Ok(PeerName::Client(name)) => format!("client {name}"),
        Err(error) => return Err(LinkError::Lost(error.to_string())),
    };
    let version = match shared
        .credentials
        .judge(&hello, &certificate, Some(member.id))
    {
        Ok(version) => version,
        Err(refusal) => {
            writer.write(&Message::Refused(refusal.clone())).await?;
            writer.finish().await;
            return Err(LinkError::RefusedByUs(refusal));
        }
    };
    let mut start = None;
    if version >= START_SINCE {
        writer.write(&Message::Start(shared.start)).await?;
        match reader.expect(within).await? {
            Message::Start(theirs) => start = Some(theirs.id),
            other => return Err(unexpected("Start", &other).into()),
        }
    }
    shared.started(member.id, start);
    Ok((version, start, reader, writer))
}

/// Takes in what the peer says on the control stream. Never returns `Ok`.
async fn listen(
    shared: &Arc<Shared>,
    peer: RegionId,
    mut reader: MessageReader,
) -> Result<std::convert::Infallible, LinkError> {
    let silent = shared.config.timings.silent;
    let mut is_first = true;
    loop {
        let message = timeout(silent, reader.read())
            .await
            .map_err(|_| LinkError::Silent(silent.as_millis()))??
            .ok_or(WireError::Ended)?;
        match message {
            Message::Heartbeat(heartbeat) => {
                shared.heard(peer);
                shared.heartbeat_of(peer, &heartbeat);
            }
            Message::Settled(settled) => {
                // Who speaks no newer protocol knows of no change of members.
                let stable = settled.stable.into_iter().map(|it| (it, 0)).collect();
                shared.settled_elsewhere(&SettledUnder { stable });
            }
            Message::SettledUnder(settled) => shared.settled_elsewhere(&settled),
            Message::Agreement(Agreement { agreed }) => {
                shared.agreed_elsewhere(peer, &AgreementUnder { under: 0, agreed });
            }
            Message::AgreementUnder(agreement) => shared.agreed_elsewhere(peer, &agreement),
            Message::Taken(taken) => shared.taken(peer, &taken),
            Message::Vector(vector) => {
                shared.vector(peer, vector, true, std::mem::take(&mut is_first));
            }
            other => return Err(unexpected("Vector or Heartbeat", &other).into()),
        }
    }
}

/// Tells the peer what we hold. Never returns `Ok`.
async fn speak(
    shared: &Arc<Shared>,
    peer: RegionId,
    version: u16,
    mut writer: MessageWriter,
) -> Result<std::convert::Infallible, WireError> {
    let mut every = interval(shared.config.timings.vector);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if version >= START_SINCE {
            let taken = shared.taken_of(peer);
            writer.write(&Message::Taken(taken)).await?;
        }
        let vector = shared.vector_for(peer);
        writer.write(&Message::Vector(vector)).await?;
    }
}

/// The connection to pull from `peer` on, and which start of it that leads to. The live one is there
/// or not; the bulk one is opened when it is needed.
pub(crate) async fn connection(
    shared: &Arc<Shared>,
    peer: RegionId,
    lane: Lane,
) -> Result<(quinn::Connection, Option<u64>), String> {
    let not_linked = || "the peer is not linked".to_owned();
    let (live, live_start, bulk, member) = {
        let state = shared.lock();
        let known = state.peers.get(&peer).ok_or_else(not_linked)?;
        (
            known.live.clone(),
            known.live_start,
            Arc::clone(&known.bulk),
            known.member.clone(),
        )
    };
    let live = live.ok_or_else(not_linked)?;
    if lane == Lane::Live {
        return Ok((live, live_start));
    }
    let mut bulk = bulk.lock().await;
    if let Some(open) = bulk.as_ref()
        && open.connection.close_reason().is_none()
    {
        return Ok((open.connection.clone(), open.start));
    }
    let opened = open(shared, &member, Lane::Bulk)
        .await
        .map_err(|error| error.to_string())?;
    tracing::info!(region = %member.name, "catching up on a connection of its own");
    let way = (opened.connection.clone(), opened.start);
    *bulk = Some(BulkConnection {
        connection: opened.connection,
        start: opened.start,
        _control: (opened.reader, opened.writer),
    });
    Ok(way)
}

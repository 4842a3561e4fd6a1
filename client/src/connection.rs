//! One connection to a node: many requests at a time, answered in any sequence.
//!
//! A writer task drains a bounded queue and puts all that waits in it into one write; a reader task
//! hands each answer to whoever waits for it. What matters most is what a lost connection means for
//! a request: it is told apart, under one lock, whether the request had been given to the socket.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use meridian_clock::RegionId;
use meridian_event::frame::{self, FrameError};
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::framing::{FrameReadError, FrameReader};
use crate::tls::{PeerName, TlsError};
use crate::wire::{self, Hello, Refused, RefusedCode, Request, Response, Welcome, close, kind};

/// How many requests of one connection may be unanswered at a time; further callers wait.
const IN_FLIGHT_MAX: usize = 1024;
/// How many bytes of requests may be unanswered at a time; further callers wait.
const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;
// A frame from here on is written as it is; smaller ones are gathered first.
const GATHER_BYTES: usize = 16 << 10;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no node to dial.
    #[error("no node to connect to is configured; give at least one seed")]
    NoSeeds,
    /// An address cannot be dialled at all.
    #[error("cannot dial {addr}")]
    Dial {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: quinn::ConnectError,
    },
    /// Nobody answered in time.
    #[error("{addr} did not answer within {after:?}; check the address and that a node runs there")]
    Timeout {
        /// The address.
        addr: SocketAddr,
        /// How long it was waited for.
        after: Duration,
    },
    /// We do not believe the node's certificate.
    #[error(
        "{addr} is not {expected}, or its certificate is not of our CA: {reason}; check that both \
         sides have certificates of the same federation"
    )]
    Untrusted {
        /// The address.
        addr: SocketAddr,
        /// The name it had to prove.
        expected: String,
        /// What is wrong with its certificate.
        reason: String,
    },
    /// The node does not believe our certificate.
    #[error(
        "{addr} does not accept our certificate ({reason}); use one that is signed by the CA of \
         that federation and has not expired"
    )]
    NotAccepted {
        /// The address.
        addr: SocketAddr,
        /// What the node said.
        reason: String,
    },
    /// The node speaks something else.
    #[error("{addr} does not speak meridian-client/1; it is older or newer than this build")]
    Protocol {
        /// The address.
        addr: SocketAddr,
    },
    /// The node's certificate does not name a region, or not the one the node says it is.
    #[error("{addr} says that it is region {claimed}, and its certificate says {peer}")]
    Impostor {
        /// The address.
        addr: SocketAddr,
        /// What it says.
        claimed: RegionId,
        /// What its certificate says.
        peer: PeerName,
    },
    /// The node's certificate cannot be read.
    #[error("the certificate of {addr} cannot be used")]
    Certificate {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: Box<TlsError>,
    },
    /// The node refused us.
    #[error("{addr} refused the connection: {reason}")]
    Refused {
        /// Who refused.
        addr: SocketAddr,
        /// Which kind of reason.
        code: RefusedCode,
        /// What it said.
        reason: String,
    },
    /// The connection was lost before it was of use.
    #[error("the connection to {addr} was lost while it was being opened")]
    Lost {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: quinn::ConnectionError,
    },
    /// What the node answered could not be read.
    #[error("{addr} answered what cannot be read: {reason}")]
    Unreadable {
        /// The address.
        addr: SocketAddr,
        /// What is wrong with it.
        reason: String,
    },
}

/// What became of a request that was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It never left. It is safe to send it anywhere.
    #[error("the request was not sent: {reason}")]
    NotSent {
        /// What was in the way.
        reason: String,
    },
    /// It may have been done.
    #[error("the request was sent and not answered: {reason}")]
    Unanswered {
        /// What is known.
        reason: String,
    },
    /// It was answered, but by something that is no answer to it. It may have been done.
    #[error("the answer is no answer to this request: {reason}")]
    Protocol {
        /// What was answered.
        reason: String,
    },
    /// It can never be sent. Nothing was done.
    #[error(transparent)]
    TooLong(#[from] wire::TooLong),
}

/// One connection to a node, shared by all who hold a clone; it closes when the last one is dropped.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    quic: quinn::Connection,
    welcome: Welcome,
    peer: PeerName,
    pending: Arc<Pending>,
    queue: mpsc::Sender<Queued>,
    slots: Semaphore,
    slot_bytes: Semaphore,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.quic.close(close::DONE, b"done");
    }
}

impl Connection {
    /// Dials `addr`, which must prove that it is `server_name` ([`PeerName::dns_name`] or
    /// [`crate::tls::ANY_REGION`]), and introduces us. `config` comes from
    /// [`crate::tls::Identity::client_config`] with [`crate::tls::Alpn::Client`].
    ///
    /// Spawns two tasks, which end with the connection.
    ///
    /// # Errors
    /// When nobody answers within `within`, either side does not believe the other's certificate,
    /// or the node refuses us.
    pub async fn open(
        endpoint: &quinn::Endpoint,
        config: quinn::ClientConfig,
        addr: SocketAddr,
        server_name: &str,
        hello: &Hello,
        within: Duration,
    ) -> Result<Self, ConnectError> {
        let opening = Self::open_in_time(endpoint, config, addr, server_name, hello);
        match timeout(within, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectError::Timeout {
                addr,
                after: within,
            }),
        }
    }

    async fn open_in_time(
        endpoint: &quinn::Endpoint,
        config: quinn::ClientConfig,
        addr: SocketAddr,
        server_name: &str,
        hello: &Hello,
    ) -> Result<Self, ConnectError> {
        let lost = |error| explain(addr, server_name, error);
        let quic = endpoint
            .connect_with(config, addr, server_name)
            .map_err(|source| ConnectError::Dial { addr, source })?
            .await
            .map_err(lost)?;
        let peer = PeerName::of(&quic).map_err(|source| ConnectError::Certificate {
            addr,
            source: Box::new(source),
        })?;

        let (mut send, receive) = quic.open_bi().await.map_err(lost)?;
        let mut frames = FrameReader::new(receive);
        // A node that refuses our certificate does so only now: in TLS 1.3 our side of the
        // handshake is done before the node has looked at it.
        let introduced = send
            .write_all(&frame::encode_message(kind::HELLO, hello))
            .await;
        if let Err(quinn::WriteError::ConnectionLost(error)) = introduced {
            return Err(lost(error));
        }
        let welcome = match frames.next().await {
            Ok(Some((kind::WELCOME, body))) => read_message::<Welcome>(addr, kind::WELCOME, &body)?,
            Ok(Some((kind::REFUSED, body))) => {
                let Refused { code, reason } = read_message(addr, kind::REFUSED, &body)?;
                quic.close(close::DONE, b"refused");
                return Err(ConnectError::Refused { addr, code, reason });
            }
            Ok(Some((other, _))) => {
                let reason = format!("a frame of kind {other} in place of a welcome");
                return Err(ConnectError::Unreadable { addr, reason });
            }
            Ok(None) => {
                let reason = "nothing".to_owned();
                return Err(ConnectError::Unreadable { addr, reason });
            }
            Err(FrameReadError::Stream(quinn::ReadError::ConnectionLost(error))) => {
                return Err(lost(error));
            }
            Err(error) => {
                let reason = error.to_string();
                return Err(ConnectError::Unreadable { addr, reason });
            }
        };
        let claimed = welcome.topology.member(welcome.region);
        if claimed
            .map(|member| PeerName::Region(member.name.clone()))
            .as_ref()
            != Some(&peer)
        {
            quic.close(close::PROTOCOL, b"the certificate is another region's");
            return Err(ConnectError::Impostor {
                addr,
                claimed: welcome.region,
                peer,
            });
        }
        Ok(Self::start(quic, welcome, peer, send, frames))
    }

    fn start(
        quic: quinn::Connection,
        welcome: Welcome,
        peer: PeerName,
        send: quinn::SendStream,
        frames: FrameReader,
    ) -> Self {
        let pending = Arc::new(Pending::default());
        let (queue, queued) = mpsc::channel(IN_FLIGHT_MAX);
        tokio::spawn(write_requests(send, queued, Arc::clone(&pending)));
        tokio::spawn(read_answers(quic.clone(), frames, Arc::clone(&pending)));
        Self {
            inner: Arc::new(Inner {
                quic,
                welcome,
                peer,
                pending,
                queue,
                slots: Semaphore::new(IN_FLIGHT_MAX),
                slot_bytes: Semaphore::new(IN_FLIGHT_BYTES_MAX),
            }),
        }
    }

    /// What the node told us when it accepted us.
    pub fn welcome(&self) -> &Welcome {
        &self.inner.welcome
    }

    /// Who is at the other end, as its certificate says.
    pub fn peer(&self) -> &PeerName {
        &self.inner.peer
    }

    /// Sends `request` and waits for its answer, until `deadline`. Requests leave in the sequence
    /// in which these calls were first polled. The answer may be to another kind of request if the
    /// node is at fault; whoever takes it apart must say so.
    ///
    /// # Errors
    /// When there is no answer; the error says whether the request may have been done.
    pub async fn request(
        &self,
        request: impl Borrow<Request>,
        deadline: Instant,
    ) -> Result<Response, RequestError> {
        let inner = &*self.inner;
        let mut ticket = inner.pending.register()?;
        let mut frame = Vec::new();
        wire::encode_request(&mut frame, ticket.id, wait_ms(deadline), request.borrow())?;

        let frame = Bytes::from(frame);
        let weight = u32::try_from(frame.len().min(IN_FLIGHT_BYTES_MAX)).unwrap_or(u32::MAX);
        let enter = async {
            let slot = inner.slots.acquire().await.ok()?;
            let bytes = inner.slot_bytes.acquire_many(weight).await.ok()?;
            let id = ticket.id;
            inner.queue.send(Queued { id, frame }).await.ok()?;
            Some((slot, bytes))
        };
        // Both are held until the answer is here: they bound what the node has to work on.
        let _held = match timeout_at(deadline, enter).await {
            Ok(Some(held)) => held,
            Ok(None) => return ticket.give_up("the connection is closed"),
            Err(_) => return ticket.give_up("too many requests are waiting for an answer"),
        };
        match timeout_at(deadline, &mut ticket.answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => ticket.give_up("the connection is closed"),
            Err(_) => ticket.give_up("its time was up"),
        }
    }

    /// The shortest round trip seen so far: the distance, not how busy the path is.
    pub fn rtt(&self) -> Duration {
        self.inner.quic.min_rtt()
    }

    /// Where the node is.
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.quic.remote_address()
    }

    /// Whether it can still carry requests.
    pub fn is_open(&self) -> bool {
        self.inner.quic.close_reason().is_none() && self.inner.pending.lock().closed.is_none()
    }

    /// Waits until it is closed, by whomever.
    pub async fn closed(&self) {
        self.inner.quic.closed().await;
    }

    /// Closes it for all who hold it. What is unanswered stays so.
    pub fn close(&self) {
        self.inner.pending.close("we closed the connection");
        self.inner.quic.close(close::DONE, b"done");
    }
}

fn wait_ms(deadline: Instant) -> u32 {
    let left = deadline.saturating_duration_since(Instant::now());
    u32::try_from(left.as_millis()).unwrap_or(u32::MAX)
}

fn read_message<M: DeserializeOwned>(
    addr: SocketAddr,
    kind: u8,
    body: &[u8],
) -> Result<M, ConnectError> {
    frame::decode_message(kind, body).map_err(|error| ConnectError::Unreadable {
        addr,
        reason: error.to_string(),
    })
}

/// A request on its way to the writer task.
struct Queued {
    id: u64,
    frame: Bytes,
}

/// The requests that wait for an answer.
#[derive(Default)]
struct Pending(Mutex<PendingState>);

#[derive(Default)]
struct PendingState {
    next_id: u64,
    // In ascending order, so that a lost connection wakes its callers in the same sequence each run.
    waiting: BTreeMap<u64, Waiting>,
    /// Why no more requests are taken.
    closed: Option<String>,
}

struct Waiting {
    /// Whether any of it was given to the socket.
    sent: bool,
    answer: oneshot::Sender<Result<Response, RequestError>>,
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, PendingState> {
        // Nothing panics while holding it, so it is never left half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self) -> Result<Ticket<'_>, RequestError> {
        let (sender, answer) = oneshot::channel();
        let mut state = self.lock();
        if let Some(reason) = &state.closed {
            let reason = reason.clone();
            return Err(RequestError::NotSent { reason });
        }
        let id = state.next_id;
        state.next_id += 1;
        let waiting = Waiting {
            sent: false,
            answer: sender,
        };
        state.waiting.insert(id, waiting);
        Ok(Ticket {
            pending: self,
            id,
            answer,
        })
    }

    /// Tells everyone who waits what became of their request, and takes no more.
    fn close(&self, reason: &str) {
        let waiting = {
            let mut state = self.lock();
            state.closed.get_or_insert_with(|| reason.to_owned());
            std::mem::take(&mut state.waiting)
        };
        for waiting in waiting.into_values() {
            let error = unanswered(waiting.sent, reason);
            // Whoever no longer listens has been told something else already.
            let _ = waiting.answer.send(Err(error));
        }
    }
}

fn unanswered(sent: bool, reason: &str) -> RequestError {
    let reason = reason.to_owned();
    if sent {
        RequestError::Unanswered { reason }
    } else {
        RequestError::NotSent { reason }
    }
}

/// One caller's place among those who wait. Dropped, it is given up: a request that the writer has
/// not come to by then is not sent.
struct Ticket<'a> {
    pending: &'a Pending,
    id: u64,
    answer: oneshot::Receiver<Result<Response, RequestError>>,
}

impl Ticket<'_> {
    /// What to report when we no longer wait. An answer that came in this very instant counts.
    fn give_up(&mut self, reason: &str) -> Result<Response, RequestError> {
        let waiting = self.pending.lock().waiting.remove(&self.id);
        match (waiting, self.answer.try_recv()) {
            (Some(waiting), _) => Err(unanswered(waiting.sent, reason)),
            (None, Ok(answer)) => answer,
            // Taken off the list by someone who has not told us yet what for.
            (None, Err(_)) => Err(unanswered(true, reason)),
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.pending.lock().waiting.remove(&self.id);
    }
}

async fn write_requests(
    mut stream: quinn::SendStream,
    mut queue: mpsc::Receiver<Queued>,
    pending: Arc<Pending>,
) {
    const AT_A_TIME: usize = 256;
    let mut batch = Vec::with_capacity(AT_A_TIME);
    let mut chunks = Vec::new();
    while queue.recv_many(&mut batch, AT_A_TIME).await > 0 {
        chunks.clear();
        let mut small = BytesMut::new();
        {
            let mut state = pending.lock();
            for queued in batch.drain(..) {
                // Given up while it waited here: then its caller was told that it was not sent.
                let Some(waiting) = state.waiting.get_mut(&queued.id) else {
                    continue;
                };
                waiting.sent = true;
                if queued.frame.len() < GATHER_BYTES {
                    small.extend_from_slice(&queued.frame);
                } else {
                    chunks.push(small.split().freeze());
                    chunks.push(queued.frame);
                }
            }
        }
        chunks.push(small.freeze());
        chunks.retain(|chunk| !chunk.is_empty());
        if let Err(error) = stream.write_all_chunks(&mut chunks).await {
            pending.close(&format!("the connection was lost: {error}"));
            return;
        }
    }
    // All handles are gone, and with them whoever could wait for an answer.
    let _ = stream.finish();
}

async fn read_answers(quic: quinn::Connection, mut frames: FrameReader, pending: Arc<Pending>) {
    let (code, reason) = hand_out_answers(&mut frames, &pending).await;
    tracing::debug!(peer = %quic.remote_address(), reason, "connection ended");
    pending.close(&reason);
    quic.close(code, reason.as_bytes());
}

/// Hands each answer to whoever waits for it, and says how that ended.
async fn hand_out_answers(frames: &mut FrameReader, pending: &Pending) -> (quinn::VarInt, String) {
    let unreadable = |error: &dyn fmt::Display| {
        let reason = format!("the node sent what cannot be read: {error}");
        (close::PROTOCOL, reason)
    };
    loop {
        let body = match frames.next().await {
            Ok(Some((kind::RESPONSE, body))) => body,
            Ok(Some((kind, _))) => return unreadable(&FrameError::UnknownKind { kind }),
            Ok(None) => return (close::DONE, "the node ended the conversation".to_owned()),
            Err(FrameReadError::Stream(error)) => {
                return (close::DONE, format!("the connection was lost: {error}"));
            }
            Err(error) => return unreadable(&error),
        };
        let (id, answer) = match wire::decode_response(&body) {
            Ok(decoded) => decoded,
            Err(error) => return unreadable(&error),
        };
        let answer = answer.map_err(|error| RequestError::Protocol {
            reason: format!("it cannot be read: {error}"),
        });
        let waiting = pending.lock().waiting.remove(&id);
        // Whoever gave up waiting has been told so.
        if let Some(waiting) = waiting {
            let _ = waiting.answer.send(answer);
        }
    }
}

/// Says what a failed handshake means.
fn explain(addr: SocketAddr, server_name: &str, error: quinn::ConnectionError) -> ConnectError {
    // TLS alerts travel as QUIC error codes from 0x100 on (RFC 9001, 4.8).
    let alert = |code: quinn::TransportErrorCode| {
        let code = u64::from(code);
        (0x100..0x200).contains(&code).then_some(code & 0xff)
    };
    const NO_APPLICATION_PROTOCOL: u64 = 120;
    match &error {
        quinn::ConnectionError::TransportError(ours) => match alert(ours.code) {
            Some(NO_APPLICATION_PROTOCOL) => ConnectError::Protocol { addr },
            Some(_) => ConnectError::Untrusted {
                addr,
                expected: server_name.to_owned(),
                reason: ours.reason.clone(),
            },
            None => ConnectError::Lost {
                addr,
                source: error,
            },
        },
        quinn::ConnectionError::ConnectionClosed(theirs) => match alert(theirs.error_code) {
            Some(NO_APPLICATION_PROTOCOL) => ConnectError::Protocol { addr },
            Some(alert) => ConnectError::NotAccepted {
                addr,
                reason: alert_name(alert),
            },
            None => ConnectError::Lost {
                addr,
                source: error,
            },
        },
        _ => ConnectError::Lost {
            addr,
            source: error,
        },
    }
}

/// The alerts that speak of certificates (RFC 8446, 6).
fn alert_name(alert: u64) -> String {
    match alert {
        42 => "bad certificate".to_owned(),
        43 => "unsupported certificate".to_owned(),
        44 => "certificate revoked".to_owned(),
        45 => "certificate expired".to_owned(),
        46 => "certificate not usable".to_owned(),
        48 => "unknown CA".to_owned(),
        49 => "access denied".to_owned(),
        51 => "bad signature".to_owned(),
        116 => "certificate required".to_owned(),
        other => format!("TLS alert {other}"),
    }
}

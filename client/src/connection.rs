//! One connection to a node: many requests at a time, answered in any sequence.
//!
//! A writer task puts all that waits into one write, as long as not too much is unanswered; a reader
//! task hands each answer to whoever waits for it. What matters most is what a lost connection means
//! for a request: it is told apart, under one lock, whether the request had been given to the socket.

use std::borrow::Borrow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meridian_event::frame::{self, FrameError};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};

use crate::ConnectError;
use crate::connect_error::explain;
use crate::framing::{FrameReadError, FrameReader};
use crate::pending::{Pending, RequestError};
use crate::tls::PeerName;
use crate::wire::{self, Hello, Refused, Request, Response, Welcome, close, kind};

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
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.pending.close("the connection is no longer used");
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
        tokio::spawn(write_requests(send, Arc::clone(&pending)));
        tokio::spawn(read_answers(quic.clone(), frames, Arc::clone(&pending)));
        Self {
            inner: Arc::new(Inner {
                quic,
                welcome,
                peer,
                pending,
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
    /// in which the futures of these calls are first polled. The answer may be to another kind of request if the
    /// node is at fault; whoever takes it apart must say so.
    ///
    /// # Errors
    /// When there is no answer; the error says whether the request may have been done.
    pub async fn request(
        &self,
        request: impl Borrow<Request>,
        deadline: Instant,
    ) -> Result<Response, RequestError> {
        let mut ticket = self
            .inner
            .pending
            .register(wait_ms(deadline), request.borrow())?;
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
        self.inner.quic.close_reason().is_none() && !self.inner.pending.is_closed()
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

async fn write_requests(mut stream: quinn::SendStream, pending: Arc<Pending>) {
    loop {
        let (mut chunks, closed) = pending.next_chunks();
        if chunks.is_empty() {
            if closed {
                // Nobody waits for an answer any more.
                let _ = stream.finish();
                return;
            }
            pending.changed.notified().await;
        } else if let Err(error) = stream.write_all_chunks(&mut chunks).await {
            pending.close(&format!("the connection was lost: {error}"));
            return;
        }
    }
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
        pending.answer(id, answer);
    }
}

//! A node's one UDP socket: dials peers, and takes in links and clients.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use meridian_client::tls::{Alpn, Identity, PeerName};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionError, ConnectionId, ConnectionIdGenerator, VarInt};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

// Handshakes underway at once, and finished ones not yet taken. Beyond them newcomers are turned
// away at once, which costs them a retry and us next to nothing.
const HANDSHAKES_MAX: usize = 256;
const WAITING_MAX: usize = 64;
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Close codes, as a peer sees them.
pub(crate) mod code {
    /// Nothing is wrong.
    pub(crate) const DONE: u32 = 0;
    /// The certificate does not allow this.
    pub(crate) const FORBIDDEN: u32 = 1;
    /// Who we are to each other does not fit; the control stream says why.
    pub(crate) const REFUSED: u32 = 2;
    /// What was received cannot be.
    pub(crate) const VIOLATION: u32 = 3;
    /// A newer connection took this one's place.
    pub(crate) const REPLACED: u32 = 4;
    /// Nothing was heard for too long.
    pub(crate) const SILENT: u32 = 5;
    /// Too many connections wait already.
    pub(crate) const BUSY: u32 = 6;
}

/// What an endpoint's secrets are made of.
#[derive(Clone, Copy)]
pub struct EndpointKeys {
    /// Kept on disk across restarts. With it a restarted node can tell peers at once that their
    /// connections are gone, instead of letting them run into a time-out.
    pub stable: [u8; 32],
    /// Fresh randomness for this start.
    pub seed: [u8; 32],
}

impl fmt::Debug for EndpointKeys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("EndpointKeys(secret)")
    }
}

impl EndpointKeys {
    /// How an endpoint draws: all of it from these keys.
    pub fn endpoint_config(&self) -> quinn::EndpointConfig {
        let reset_key = blake3::derive_key("meridian 2026 quic stateless reset", &self.stable);
        let seed = blake3::derive_key("meridian 2026 quic connection ids", &self.seed);
        let drawn = Arc::new(AtomicU64::new(0));
        let mut config = quinn::EndpointConfig::new(Arc::new(ResetKey(reset_key)));
        config.rng_seed(Some(self.seed));
        config.cid_generator(move || {
            let drawn = Arc::clone(&drawn);
            Box::new(SeededIds { seed, drawn })
        });
        config
    }
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The socket does not work.
    #[error("start QUIC on its socket")]
    Socket(#[from] io::Error),
}

/// Why a peer was not reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The attempt could not even be made.
    #[error("dial {addr}: {source}")]
    Start {
        /// Where to.
        addr: SocketAddr,
        /// Why not.
        source: quinn::ConnectError,
    },
    /// Nobody answered, or the two sides do not trust each other.
    #[error("dial {addr}: {reason}")]
    Failed {
        /// Where to.
        addr: SocketAddr,
        /// What is likely wrong.
        reason: String,
        /// What QUIC said.
        source: ConnectionError,
    },
    /// It took too long.
    #[error("dial {addr}: no answer within {} ms", within.as_millis())]
    TimedOut {
        /// Where to.
        addr: SocketAddr,
        /// How long was waited.
        within: Duration,
    },
}

/// A connection that came in, its handshake done and its certificate checked.
#[derive(Debug)]
pub enum Incoming {
    /// A peer that pulls from us.
    Link(quinn::Connection, PeerName),
    /// A client, or a node that forwards.
    Client(quinn::Connection, PeerName),
}

struct Inner {
    quinn: quinn::Endpoint,
    identity: RwLock<Identity>,
    incoming: Mutex<mpsc::Receiver<Incoming>>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

/// A node's QUIC endpoint. Cheap to clone; all clones are the same endpoint.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

impl fmt::Debug for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Endpoint").field(&self.0.quinn).finish()
    }
}

impl Endpoint {
    /// Starts QUIC on `socket`. Must be called on the runtime that it is to run on.
    ///
    /// # Errors
    /// When the socket does not work.
    pub fn new(
        socket: Arc<dyn quinn::AsyncUdpSocket>,
        runtime: Arc<dyn quinn::Runtime>,
        identity: &Identity,
        keys: EndpointKeys,
    ) -> Result<Self, EndpointError> {
        let quinn = quinn::Endpoint::new_with_abstract_socket(
            keys.endpoint_config(),
            Some(identity.server_config()),
            socket,
            runtime,
        )?;
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let tracker = TaskTracker::new();
        let cancel = CancellationToken::new();
        tracker.spawn(accept_all(
            quinn.clone(),
            sender,
            tracker.clone(),
            cancel.clone(),
        ));
        Ok(Self(Arc::new(Inner {
            quinn,
            identity: RwLock::new(identity.clone()),
            incoming: Mutex::new(receiver),
            tracker,
            cancel,
        })))
    }

    /// Shows new certificates from the next handshake on, in both directions. Connections that
    /// stand are not touched.
    pub fn reload(&self, identity: &Identity) {
        self.0
            .quinn
            .set_server_config(Some(identity.server_config()));
        *self
            .0
            .identity
            .write()
            .unwrap_or_else(PoisonError::into_inner) = identity.clone();
    }

    /// What we prove about ourselves now.
    pub fn identity(&self) -> Identity {
        self.0
            .identity
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The next connection that came in; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Incoming> {
        self.0.incoming.lock().await.recv().await
    }

    /// Dials the node of the region called `region` and returns once both certificates are checked.
    ///
    /// # Errors
    /// When it does not answer in time, or one side does not trust the other.
    pub async fn connect(
        &self,
        addr: SocketAddr,
        region: &str,
        alpn: Alpn,
        within: Duration,
    ) -> Result<quinn::Connection, ConnectError> {
        let config = self.identity().client_config(alpn);
        let name = PeerName::Region(region.to_owned()).dns_name();
        let connecting = self
            .0
            .quinn
            .connect_with(config, addr, &name)
            .map_err(|source| ConnectError::Start { addr, source })?;
        match tokio::time::timeout(within, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(source)) => Err(ConnectError::Failed {
                addr,
                reason: explain(&source),
                source,
            }),
            Err(_) => Err(ConnectError::TimedOut { addr, within }),
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the socket does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.quinn.local_addr()
    }

    /// The endpoint underneath, for clients that dial over the same socket.
    pub fn quinn(&self) -> &quinn::Endpoint {
        &self.0.quinn
    }

    /// Closes every connection, tells the peers, and waits briefly until they know.
    pub async fn close(&self) {
        self.0.cancel.cancel();
        self.0.tracker.close();
        self.0.quinn.close(VarInt::from_u32(code::DONE), b"closing");
        // A peer that is gone never confirms.
        let _ = tokio::time::timeout(CLOSE_MAX, async {
            self.0.tracker.wait().await;
            self.0.quinn.wait_idle().await;
        })
        .await;
    }
}

async fn accept_all(
    endpoint: quinn::Endpoint,
    sender: mpsc::Sender<Incoming>,
    tracker: TaskTracker,
    cancel: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let incoming = tokio::select! {
            () = cancel.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else {
            return;
        };
        let from = incoming.remote_address();
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::debug!(%from, "connection refused: too many handshakes are underway");
            incoming.refuse();
            continue;
        };
        let sender = sender.clone();
        let cancel = cancel.clone();
        tracker.spawn(async move {
            let _place = place;
            tokio::select! {
                () = cancel.cancelled() => {}
                () = take_in(incoming, from, sender) => {}
            }
        });
    }
}

async fn take_in(incoming: quinn::Incoming, from: SocketAddr, sender: mpsc::Sender<Incoming>) {
    let connection = match tokio::time::timeout(HANDSHAKE_MAX, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let reason = explain(&error);
            tracing::warn!(%from, %reason, "incoming connection failed its handshake");
            return;
        }
        Err(_) => {
            tracing::warn!(%from, "incoming connection did not finish its handshake in time");
            return;
        }
    };
    let name = match PeerName::of(&connection) {
        Ok(name) => name,
        Err(reason) => {
            tracing::warn!(%from, %reason, "incoming connection has an unusable certificate");
            close(&connection, code::FORBIDDEN, &reason.to_string());
            return;
        }
    };
    let incoming = match (Alpn::of(&connection), &name) {
        (Some(Alpn::Link), PeerName::Region(_)) => Incoming::Link(connection.clone(), name),
        (Some(Alpn::Client), _) => Incoming::Client(connection.clone(), name),
        (Some(Alpn::Link), PeerName::Client(_)) | (None, _) => {
            tracing::warn!(%from, peer = %name, "incoming connection asks for a link but has no region's certificate");
            close(
                &connection,
                code::FORBIDDEN,
                "only a region's certificate opens a link",
            );
            return;
        }
    };
    if sender.try_send(incoming).is_err() {
        tracing::warn!(%from, "incoming connection dropped: too many wait to be served");
        close(
            &connection,
            code::BUSY,
            "too many connections wait; try again",
        );
    }
}

/// Closes `connection` and tells the peer why.
pub(crate) fn close(connection: &quinn::Connection, code: u32, reason: &str) {
    // A close frame must fit in one packet.
    let end = (0..=reason.len().min(500))
        .rev()
        .find(|end| reason.is_char_boundary(*end))
        .unwrap_or(0);
    connection.close(VarInt::from_u32(code), &reason.as_bytes()[..end]);
}

/// What QUIC's words for a failed connection mean to an operator.
pub(crate) fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TimedOut => {
            "nobody answered; check the address and that UDP gets through".to_owned()
        }
        ConnectionError::VersionMismatch => "the peer does not speak QUIC version 1".to_owned(),
        ConnectionError::TransportError(error) => tls_alert(u64::from(error.code)).map_or_else(
            || error.to_string(),
            |meaning| format!("{meaning} ({error})"),
        ),
        ConnectionError::ConnectionClosed(close) => tls_alert(u64::from(close.error_code))
            .map_or_else(
                || format!("the peer gave up: {close}"),
                |meaning| format!("the peer refused: {meaning} ({close})"),
            ),
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            format!("the peer closed it: {reason} (code {})", close.error_code)
        }
        ConnectionError::Reset => "the peer was restarted".to_owned(),
        ConnectionError::LocallyClosed => "it was closed here".to_owned(),
        ConnectionError::CidsExhausted => "out of connection ids".to_owned(),
    }
}

// TLS alerts travel as QUIC error codes 0x100 + alert (RFC 9001 §4.8).
fn tls_alert(code: u64) -> Option<&'static str> {
    match code.checked_sub(0x100)? {
        42 | 43 | 46 => Some("the certificate is not usable; check its region name and its dates"),
        45 => Some("the certificate has expired; renew it"),
        48 => Some("the certificate is signed by another CA; both sides need the federation's CA"),
        // The names in the chain fit, the signatures do not.
        51 => Some(
            "the certificate is signed by another CA of the same name; both sides need the federation's CA",
        ),
        116 => Some("a certificate is required"),
        120 => Some("the peer does not speak Meridian's protocol"),
        _ => None,
    }
}

struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let hash = blake3::keyed_hash(&self.0, data);
        let length = signature_out.len().min(hash.as_bytes().len());
        signature_out[..length].copy_from_slice(&hash.as_bytes()[..length]);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let signature: [u8; blake3::OUT_LEN] = signature.try_into().map_err(|_| CryptoError)?;
        // Comparing two `blake3::Hash`es takes the same time wherever they differ.
        if blake3::keyed_hash(&self.0, data) == blake3::Hash::from_bytes(signature) {
            Ok(())
        } else {
            Err(CryptoError)
        }
    }
}

const ID_BYTES: usize = 8;

/// Connection ids drawn from the start's own seed. Any id of this length may have been ours in an
/// earlier life, so a restarted node answers packets it cannot place with a reset (the default
/// generator recognises only its own life's ids, and peers would run into their time-outs).
struct SeededIds {
    seed: [u8; 32],
    drawn: Arc<AtomicU64>,
}

impl ConnectionIdGenerator for SeededIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        let random = blake3::keyed_hash(&self.seed, &number.to_le_bytes());
        ConnectionId::new(&random.as_bytes()[..ID_BYTES])
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

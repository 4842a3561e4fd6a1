//! The serving side of a connection.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::tls::PeerName;
use crate::wire::{Request, Response, Welcome};

/// How many requests of one connection are worked on at a time; the rest wait unread.
pub const IN_FLIGHT_MAX: usize = 1024;

/// Who asks, and until when the answer is of use.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who asks, as its certificate says.
    pub peer: PeerName,
    /// When the asker stops waiting.
    pub deadline: Instant,
}

/// What a node does with requests.
pub trait Service: Send + Sync + 'static {
    /// The federation that this node belongs to; openers that mean another are refused.
    fn federation(&self) -> Uuid;

    /// What an accepted opener is told (the version is filled in by the server loop).
    fn welcome(&self) -> Welcome;

    /// Does what `request` asks. Requests of one connection are begun in the sequence they were
    /// sent, and answered as they get ready. When the connection is lost the future is dropped.
    fn handle<'a>(&'a self, caller: Caller, request: Request) -> BoxFuture<'a, Response>;
}

/// How the talk on one connection ended, when it did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The opener did not introduce itself in time.
    #[error("the peer did not introduce itself within {0:?}")]
    Silent(std::time::Duration),
}

/// Serves `connection`, whose ALPN is [`crate::tls::Alpn::Client`], until it ends or `cancel` is
/// cancelled. Then no more requests are read, those in work are answered, and it is closed.
///
/// # Errors
/// When the connection ended other than by either side closing it.
pub async fn serve(
    connection: quinn::Connection,
    peer: PeerName,
    service: Arc<dyn Service>,
    cancel: CancellationToken,
) -> Result<(), ServeError> {
    let _ = (connection, peer, service, cancel);
    todo!()
}

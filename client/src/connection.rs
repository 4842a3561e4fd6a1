//! One connection to a node: many requests at a time, answered in any sequence.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::tls::PeerName;
use crate::wire::{Hello, RefusedCode, Request, Response, Welcome};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
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
    /// It was answered by something that is no answer to it.
    #[error("the answer is no answer to this request: {reason}")]
    Protocol {
        /// What was answered.
        reason: String,
    },
}

/// One connection to a node, shared by all who hold a clone; it closes when the last one is dropped.
#[derive(Clone)]
pub struct Connection {
    welcome: std::sync::Arc<Welcome>,
    peer: PeerName,
}

impl Connection {
    /// Dials `addr`, which must prove that it is `server_name`, and introduces us. `config` comes
    /// from [`crate::tls::Identity::client_config`] with [`crate::tls::Alpn::Client`].
    ///
    /// # Errors
    /// When nobody answers within `timeout`, either side does not believe the other's certificate,
    /// or the node refuses us.
    pub async fn open(
        endpoint: &quinn::Endpoint,
        config: quinn::ClientConfig,
        addr: SocketAddr,
        server_name: &str,
        hello: &Hello,
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
        let _ = (endpoint, config, addr, server_name, hello, timeout);
        todo!()
    }

    /// What the node told us when it accepted us.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Who is at the other end, as its certificate says.
    pub fn peer(&self) -> &PeerName {
        &self.peer
    }

    /// Sends `request` and waits for its answer, until `deadline`.
    ///
    /// # Errors
    /// When there is no answer; the error says whether the request may have been done.
    pub async fn request(
        &self,
        request: Request,
        deadline: Instant,
    ) -> Result<Response, RequestError> {
        let _ = (request, deadline);
        todo!()
    }

    /// The latest estimate of the round trip.
    pub fn rtt(&self) -> Duration {
        todo!()
    }

    /// Whether it can still carry requests.
    pub fn is_open(&self) -> bool {
        todo!()
    }

    /// Closes it for all who hold it.
    pub fn close(&self) {
        todo!()
    }
}

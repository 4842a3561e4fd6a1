//! The client: which region to ask, and how often.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meridian_clock::RegionId;
use uuid::Uuid;

use crate::tls::Identity;
use crate::{
    AppendError, AppendRequest, Appended, ConnectError, LivePage, LiveRead, ReadError, StreamPage,
    StreamRead, Topology,
};

/// A node to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Where it takes QUIC.
    pub addr: SocketAddr,
    /// The region it must prove to be of; any region of the federation when `None`.
    pub region: Option<String>,
}

/// How a client reaches its federation.
#[derive(Clone)]
pub struct ClientConfig {
    /// Nodes to begin with; one that answers is enough.
    pub seeds: Vec<Seed>,
    /// The federation they must belong to.
    pub federation: Uuid,
    /// What we prove about ourselves, and whom we believe.
    pub identity: Identity,
    /// The socket and the runtime.
    pub endpoint: quinn::Endpoint,
    /// What we call ourselves in the nodes' logs.
    pub name: String,
    /// The region to use where any will do; the nearest by round trip when `None`.
    pub prefer: Option<String>,
    /// How long a request may take, retries included.
    pub request_timeout: Duration,
    /// How long one attempt to connect may take.
    pub connect_timeout: Duration,
    /// Draws the jitter between retries.
    pub jitter_seed: u64,
}

impl ClientConfig {
    /// A configuration with the usual time-outs.
    pub fn new(
        endpoint: quinn::Endpoint,
        identity: Identity,
        federation: Uuid,
        seeds: Vec<Seed>,
    ) -> Self {
        Self {
            seeds,
            federation,
            identity,
            endpoint,
            name: "client".to_owned(),
            prefer: None,
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(3),
            jitter_seed: 0,
        }
    }
}

/// Which region answers a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadAt {
    /// The preferred or nearest region that can be reached. It may not hold the latest events yet.
    #[default]
    Nearest,
    /// The stream's home, which holds every revision it gave out.
    Home,
    /// This region.
    Region(RegionId),
}

/// A federation, as an application sees it. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<()>,
}

impl Client {
    /// Finds a seed that answers and learns the regions from it.
    ///
    /// # Errors
    /// When no seed accepts us within the request time-out; the error is the last one seen.
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        let _ = config;
        todo!()
    }

    /// Writes the events at the stream's home, or in the nearest region when every region may write
    /// it, and repeats the request with the same ids until its outcome is known or time is up.
    ///
    /// # Errors
    /// See [`AppendError`]. An outcome that stays unknown is [`AppendError::Indeterminate`].
    pub async fn append(&self, request: AppendRequest) -> Result<Appended, AppendError> {
        let _ = request;
        todo!()
    }

    /// Reads one page of a stream.
    ///
    /// # Errors
    /// When it cannot be read in time.
    pub async fn read_stream(&self, read: StreamRead, at: ReadAt) -> Result<StreamPage, ReadError> {
        let _ = (read, at);
        todo!()
    }

    /// Reads a stream page by page, from `read.from` to its end.
    pub fn stream(&self, read: StreamRead, at: ReadAt) -> StreamReader {
        let _ = (read, at);
        todo!()
    }

    /// Follows everything that one region holds, in the order it arrives there.
    pub fn live(&self, read: LiveRead, at: Option<RegionId>) -> LiveReader {
        let _ = (read, at);
        todo!()
    }

    /// The regions and rules, as last learnt.
    pub fn topology(&self) -> Arc<Topology> {
        todo!()
    }

    /// Closes all connections.
    pub fn close(&self) {
        todo!()
    }
}

/// Reads a stream page by page.
pub struct StreamReader {
    client: Client,
}

impl StreamReader {
    /// The next page; `None` at the end.
    ///
    /// # Errors
    /// When it cannot be read in time. Asking again asks for the same page.
    pub async fn next_page(&mut self) -> Result<Option<StreamPage>, ReadError> {
        todo!()
    }
}

/// Follows one region's events across reconnects.
pub struct LiveReader {
    client: Client,
}

impl LiveReader {
    /// The next page that holds an event; waits for one.
    ///
    /// # Errors
    /// When the region could not be reached for as long as a request may take. Asking again goes on
    /// where it stopped.
    pub async fn next_page(&mut self) -> Result<LivePage, ReadError> {
        todo!()
    }
}

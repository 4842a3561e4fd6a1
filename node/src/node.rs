//! The node: everything wired together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use meridian_client::{
    AppendError, AppendRequest, Appended, LivePage, LiveRead, ReadError, StreamPage, StreamRead,
};
use meridian_clock::RegionId;
use meridian_conflict::Policies;
use meridian_event::StreamId;
use tokio::sync::watch;

use crate::config::NodeConfig;
use crate::metrics::Metrics;
use crate::seams::{Random, Seams};
use crate::status::{DigestEntry, NodeStatus};

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {}

/// One region's node, running. Ends with [`Node::shutdown`].
pub struct Node {
    metrics: Metrics,
}

impl Node {
    /// Opens the data folder, recovers, and starts links and doors.
    ///
    /// # Errors
    /// When the folder, the certificates or an address cannot be used.
    pub async fn start(config: NodeConfig, seams: Seams) -> Result<Arc<Self>, StartError> {
        let _ = (config, seams);
        todo!()
    }

    /// Refuses new work, finishes what is in flight (bounded), closes links and the log.
    pub async fn shutdown(&self) {
        todo!()
    }

    /// Appends a batch: here, or at its home.
    ///
    /// # Errors
    /// See [`AppendError`]; an indeterminate append is repeated with the same event ids.
    pub async fn append(&self, request: AppendRequest) -> Result<Appended, AppendError> {
        let _ = request;
        todo!()
    }

    /// Reads a page of one stream as it is held here.
    ///
    /// # Errors
    /// When the log cannot be read there.
    pub fn read_stream(&self, read: &StreamRead) -> Result<StreamPage, ReadError> {
        let _ = read;
        todo!()
    }

    /// Reads a page of the live tier; waits up to `read.wait_ms` when there is nothing yet.
    ///
    /// # Errors
    /// When the cursor is not one of ours, or the log cannot be read.
    pub async fn read_live(&self, read: &LiveRead) -> Result<LivePage, ReadError> {
        let _ = read;
        todo!()
    }

    /// Changes each time something becomes durable here.
    pub fn committed(&self) -> watch::Receiver<u64> {
        todo!()
    }

    /// What `GET /v1/status` answers.
    pub fn status(&self) -> NodeStatus {
        todo!()
    }

    /// What `GET /v1/digest` answers.
    pub fn digest(&self) -> Vec<DigestEntry> {
        todo!()
    }

    /// The home of `stream`; `None` when every region may write it.
    pub fn home_of(&self, stream: &StreamId) -> Option<RegionId> {
        let _ = stream;
        todo!()
    }

    /// The category policies in force.
    pub fn policies(&self) -> &Policies {
        todo!()
    }

    /// The names of all regions by their number.
    pub fn region_names(&self) -> &BTreeMap<RegionId, String> {
        todo!()
    }

    /// The configuration that the node was started with.
    pub fn config(&self) -> &NodeConfig {
        todo!()
    }

    /// Where event ids come from that a client did not give.
    pub fn random(&self) -> &dyn Random {
        todo!()
    }

    /// Whether the node takes appends now.
    ///
    /// # Errors
    /// Why it does not.
    pub fn ready(&self) -> Result<(), String> {
        todo!()
    }

    /// What is counted; gauges are brought up to date by [`Node::refresh_metrics`].
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Brings the gauges up to date, just before a scrape.
    pub fn refresh_metrics(&self) {
        todo!()
    }

    /// Where HTTP is served.
    pub fn http_addr(&self) -> SocketAddr {
        todo!()
    }

    /// Where QUIC is served.
    pub fn quic_addr(&self) -> SocketAddr {
        todo!()
    }

    /// Reads the certificate files again; running connections go on with the old ones.
    ///
    /// # Errors
    /// When the files cannot be read or do not fit together; the old ones stay in use.
    pub fn reload_certificates(&self) -> Result<(), String> {
        todo!()
    }
}

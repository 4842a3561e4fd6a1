//! The messages of one connection between a client and a node, and between nodes that forward.
//!
//! Everything travels on one bidirectional QUIC stream, which the opener opens: [`Hello`] there,
//! [`Welcome`] or [`Refused`] back, then any number of requests, each with an id, and their answers
//! in whatever sequence they get ready. Each message is one frame (`meridian_event::frame`), and its
//! body is postcard. An enum here only ever grows at its end; a golden file pins the bytes.

use meridian_clock::RegionId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    AppendError, AppendRequest, Appended, LivePage, LiveRead, ReadError, StreamPage, StreamRead,
    Topology,
};

/// The newest version of this protocol that this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// The oldest version of this protocol that this build speaks.
pub const PROTOCOL_VERSION_MIN: u16 = 1;
/// How many nodes may pass an append on before one of them must answer.
pub const HOPS_MAX: u8 = 2;

/// How the opener of a connection introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The federation it means to talk to.
    pub federation: Uuid,
    /// The oldest protocol version it speaks.
    pub version_min: u16,
    /// The newest protocol version it speaks.
    pub version: u16,
    /// What it calls itself; for logs, since the certificate says who it is.
    pub name: String,
}

impl Hello {
    /// The introduction of `name` to `federation`, in the versions of this build.
    pub fn new(federation: Uuid, name: impl Into<String>) -> Self {
        Self {
            federation,
            version_min: PROTOCOL_VERSION_MIN,
            version: PROTOCOL_VERSION,
            name: name.into(),
        }
    }
}

/// The answer to a [`Hello`] that is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version both will speak.
    pub version: u16,
    /// The region that answers.
    pub region: RegionId,
    /// All regions and the rules between them.
    pub topology: Topology,
}

/// The answer to a [`Hello`] that is not accepted; the connection is closed after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Which kind of reason.
    pub code: RefusedCode,
    /// The reason, and what to do.
    pub reason: String,
}

/// Why a connection is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusedCode {
    /// It was meant for another federation.
    Federation,
    /// There is no version that both speak.
    Version,
    /// The node is stopping or has too many connections.
    Busy,
}

/// What is asked of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// All regions and the rules between them.
    Topology,
    /// Write these events.
    Append {
        /// What to write.
        request: AppendRequest,
        /// How many nodes have passed it on so far.
        hops: u8,
    },
    /// Read a page of one stream.
    ReadStream(StreamRead),
    /// Read a page of everything, in order of arrival, or wait for some.
    Live(LiveRead),
}

/// What a node answers, one variant for each [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Topology`].
    Topology(Topology),
    /// To [`Request::Append`].
    Append(Result<Appended, AppendError>),
    /// To [`Request::ReadStream`].
    ReadStream(Result<StreamPage, ReadError>),
    /// To [`Request::Live`].
    Live(Result<LivePage, ReadError>),
    /// To a request that the node does not know or could not read. Nothing was done.
    NotUnderstood {
        /// What it could not read.
        reason: String,
    },
}

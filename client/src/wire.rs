//! The messages of one connection between a client and a node, and between nodes that forward.
//!
//! Everything travels on one bidirectional QUIC stream, which the opener opens: [`Hello`] there,
//! [`Welcome`] or [`Refused`] back, then any number of requests, each with an id, and their answers
//! in whatever sequence they get ready. Each message is one frame (`meridian_event::frame`), and its
//! body is postcard:
//!
//! ```text
//! kind 0x40  Hello
//! kind 0x41  Welcome
//! kind 0x42  Refused
//! kind 0x43  request   id (varint), milliseconds that the asker waits (varint), Request
//! kind 0x44  answer    id (varint), Response
//! ```
//!
//! An enum here only ever grows at its end, and golden files pin the bytes. A request that a node
//! cannot read is answered with [`Response::NotUnderstood`]: its id stands before what may be new.

use meridian_clock::RegionId;
use meridian_event::frame::{self, FRAME_BODY_BYTES_MAX, FrameError};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    AppendError, AppendRequest, Appended, AwaitSettled, Awaited, ConsumerError, ConsumerRequest,
    ConsumerResponse, LivePage, LiveRead, ReadError, ReservationAnswer, ReservationRequest,
    ReserveError, SessionRequest, SessionResponse, SessionToken, SettledPage, SettledRead,
    StateRead, StreamPage, StreamRead, StreamState, Topology,
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
    /// Read a page of the one order, or wait for some.
    Settled(SettledRead),
    /// Do something as part of a session.
    InSession {
        /// What the session has seen.
        token: SessionToken,
        /// How long a read may wait until all of that is held.
        wait_ms: u32,
        /// What to do.
        request: SessionRequest,
    },
    /// Wait until an event is settled.
    Await(AwaitSettled),
    /// Something of a consumer group.
    Consume(ConsumerRequest),
    /// Read a page of one stream, at its home only: nothing that was answered before is missing. Answered
    /// as [`Request::ReadStream`] is.
    ReadAtHome(StreamRead),
    /// Reserve a key for an owner, or release it.
    Reserve {
        /// What to do.
        request: ReservationRequest,
        /// How many nodes have passed it on so far.
        hops: u8,
    },
    /// Read what a stream comes to.
    State(StateRead),
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
    /// To [`Request::Settled`].
    Settled(Result<SettledPage, ReadError>),
    /// To [`Request::InSession`]. Where the token cannot be used, the error comes without this.
    InSession {
        /// What the session has seen now.
        token: SessionToken,
        /// The answer.
        response: SessionResponse,
    },
    /// To [`Request::Await`].
    Await(Result<Awaited, ReadError>),
    /// To [`Request::Consume`].
    Consume(Result<ConsumerResponse, ConsumerError>),
    /// To [`Request::Reserve`].
    Reserve(Result<ReservationAnswer, ReserveError>),
    /// To [`Request::State`].
    State(Result<StreamState, ReadError>),
}

/// The frame kinds of this protocol. Those of replication are below.
pub mod kind {
    /// A [`super::Hello`].
    pub const HELLO: u8 = 0x40;
    /// A [`super::Welcome`].
    pub const WELCOME: u8 = 0x41;
    /// A [`super::Refused`].
    pub const REFUSED: u8 = 0x42;
    /// A [`super::Request`] with its id and time.
    pub const REQUEST: u8 = 0x43;
    /// A [`super::Response`] with the id of its request.
    pub const RESPONSE: u8 = 0x44;
}

/// What a QUIC connection of this protocol is closed with.
pub mod close {
    use quinn::VarInt;

    /// Nothing more is wanted.
    pub const DONE: VarInt = VarInt::from_u32(0);
    /// The introduction was refused.
    pub const REFUSED: VarInt = VarInt::from_u32(1);
    /// The node is stopping.
    pub const STOPPING: VarInt = VarInt::from_u32(2);
    /// The other side sent what it must not.
    pub const PROTOCOL: VarInt = VarInt::from_u32(3);
}

/// A request that was received, as far as it could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which answer belongs to it.
    pub id: u64,
    /// How long the asker waits from when it sent the request.
    pub wait_ms: u32,
    /// What is asked, or why that could not be read.
    pub request: Result<Request, FrameError>,
}

/// A message whose encoding does not fit in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {bytes} bytes does not fit in a frame of {FRAME_BODY_BYTES_MAX}")]
pub struct TooLong {
    /// How long it is.
    pub bytes: usize,
}

/// Appends a request as a frame to `out`.
///
/// # Errors
/// When it does not fit in a frame; `out` is as it was.
pub fn encode_request(
    out: &mut Vec<u8>,
    id: u64,
    wait_ms: u32,
    request: &Request,
) -> Result<(), TooLong> {
    encode(out, kind::REQUEST, &(id, wait_ms, request))
}

/// Reads the body of a request frame.
///
/// # Errors
/// When not even its id can be read.
pub fn decode_request(body: &[u8]) -> Result<Asked, FrameError> {
    let ((id, wait_ms), rest) = take::<(u64, u32)>(kind::REQUEST, body)?;
    Ok(Asked {
        id,
        wait_ms,
        request: frame::decode_message(kind::REQUEST, rest),
    })
}

/// Appends an answer as a frame to `out`. One that does not fit in a frame is replaced by one that
/// says so.
pub fn encode_response(out: &mut Vec<u8>, id: u64, response: &Response) {
    if let Err(too_long) = encode(out, kind::RESPONSE, &(id, response)) {
        let smaller = response.without_events(&too_long.to_string());
        let fits = encode(out, kind::RESPONSE, &(id, &smaller));
        assert!(fits.is_ok(), "an answer without events fits in a frame");
    }
}

/// Reads the body of an answer's frame: its id, and the answer or why that could not be read.
///
/// # Errors
/// When not even its id can be read.
pub fn decode_response(body: &[u8]) -> Result<(u64, Result<Response, FrameError>), FrameError> {
    let (id, rest) = take::<u64>(kind::RESPONSE, body)?;
    Ok((id, frame::decode_message(kind::RESPONSE, rest)))
}

impl Response {
    /// This answer with whatever could make it large left out.
    fn without_events(&self, reason: &str) -> Self {
        let unreadable = || ReadError::Unavailable {
            reason: format!("{reason}; ask for fewer events"),
            retry_after_ms: 0,
        };
        match self {
            // The stream did move on, and that is what the writer must know; it can read the rest.
            Self::Append(Err(AppendError::WrongExpectedRevision {
                stream,
                expected,
                actual,
                ..
            })) => Self::Append(Err(AppendError::WrongExpectedRevision {
                stream: stream.clone(),
                expected: *expected,
                actual: *actual,
                events_since: Vec::new(),
            })),
            Self::Append(_) => Self::Append(Err(AppendError::Indeterminate {
                reason: reason.to_owned(),
            })),
            Self::ReadStream(_) => Self::ReadStream(Err(unreadable())),
            Self::Live(_) => Self::Live(Err(unreadable())),
            Self::Settled(_) => Self::Settled(Err(unreadable())),
            // What was given out is given out again when its time is over.
            Self::Consume(_) => Self::Consume(Err(ConsumerError::Unavailable {
                reason: format!("{reason}; ask for fewer events"),
                retry_after_ms: 0,
            })),
            Self::State(_) => Self::State(Err(ReadError::Invalid {
                reason: format!("{reason}; read this state over HTTP"),
            })),
            Self::InSession { response, .. } => Self::from(response.clone()).without_events(reason),
            Self::Topology(_) | Self::Await(_) | Self::Reserve(_) | Self::NotUnderstood { .. } => {
                Self::NotUnderstood {
                    reason: reason.to_owned(),
                }
            }
        }
    }
}

fn encode<M: Serialize>(out: &mut Vec<u8>, kind: u8, message: &M) -> Result<(), TooLong> {
    let body = postcard::to_stdvec(message).expect("our messages always encode");
    if body.len() > FRAME_BODY_BYTES_MAX {
        return Err(TooLong { bytes: body.len() });
    }
    frame::encode_into(out, kind, &body);
    Ok(())
}

fn take<'a, M: Deserialize<'a>>(kind: u8, body: &'a [u8]) -> Result<(M, &'a [u8]), FrameError> {
    postcard::take_from_bytes(body).map_err(|error| FrameError::Body {
        kind,
        reason: error.to_string(),
    })
}

//! The serving side of a connection.
//!
//! One loop per connection reads requests, works on many of them at a time and writes whatever
//! answers are ready in one go. When a client does not take its answers, the loop stops reading its
//! requests; those it has begun go on, so that a slow client cannot hold up anyone else.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use meridian_event::frame::{self, FrameError};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::framing::{FrameReadError, FrameReader};
use crate::tls::PeerName;
use crate::wire::{
    self, Asked, Hello, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Refused, RefusedCode, Request,
    Response, Welcome, close, kind,
};
use crate::{AppendError, ConsumerRequest, ReadError, ReserveError, SessionRequest};

/// How many requests of one connection are worked on at a time; the rest wait unread.
pub const IN_FLIGHT_MAX: usize = 1024;
/// How many of those may be reads of a stream, whose answers are large; the rest wait their turn.
const READS_MAX: usize = 64;
/// How many of those may wait for live events; the rest are refused, since waiting has no end.
const LIVE_MAX: usize = 256;
/// Beyond this much that a client has not taken, no more of its requests are read.
const OUTBOX_BYTES_MAX: usize = 8 << 20;
const SCRATCH_BYTES_KEPT: usize = 256 << 10;
/// What a client may have on its way to us that we have not read.
const RECEIVE_WINDOW_BYTES: u32 = 16 << 20;
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// How long a stopping node waits for what it has begun, and for its answers to arrive.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// How far beyond its deadline a request is worked on: its asker is gone.
const GRACE: Duration = Duration::from_secs(1);

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

    /// Does what `request` asks. Requests of one connection are first polled in the sequence they
    /// were sent (except that a read may wait its turn), and answered as they get ready. The future is dropped when the connection is lost
    /// or the deadline has long passed, so whatever must not stop half-way belongs in a task.
    fn handle<'a>(&'a self, caller: Caller, request: Request) -> BoxFuture<'a, Response>;
}

/// How the talk on one connection ended, when it did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The opener did not introduce itself in time.
    #[error("the peer did not introduce itself within {HELLO_WITHIN:?}")]
    Silent,
    /// The opener was refused, and told so.
    #[error("refused the peer: {reason}")]
    Refused {
        /// Which kind of reason.
        code: RefusedCode,
        /// What it was told.
        reason: String,
    },
    /// The opener sent what it must not.
    #[error("the peer sent what it must not")]
    Protocol(#[from] FrameError),
    /// The conversation ended inside a frame.
    #[error("the peer stopped inside a frame")]
    CutShort,
    /// The connection is gone.
    #[error("the connection to the peer was lost")]
    Lost(#[from] quinn::ConnectionError),
}

/// Serves `connection`, whose ALPN is [`crate::tls::Alpn::Client`], until it ends or `cancel` is
/// cancelled. Then requests that still arrive are told to go elsewhere, those in work are answered,
/// and the connection is closed.
///
/// # Errors
/// When the connection ended other than by either side closing it.
pub async fn serve(
    connection: quinn::Connection,
    peer: PeerName,
    service: Arc<dyn Service>,
    cancel: CancellationToken,
) -> Result<(), ServeError> {
    connection.set_receive_window(RECEIVE_WINDOW_BYTES.into());
    connection.set_max_concurrent_uni_streams(0_u32.into());
    let accepted = async {
        match timeout(HELLO_WITHIN, accept(&connection, service.as_ref())).await {
            Ok(accepted) => accepted,
            Err(_) => Err(ServeError::Silent),
        }
    };
    let outcome = tokio::select! {
        biased;
        () = cancel.cancelled() => Ok(()),
        accepted = accepted => match accepted {
            Ok((send, frames)) => {
                Talk::new(send, frames).run(&peer, service.as_ref(), &cancel).await
            }
            Err(error) => Err(error),
        },
    };
    let (code, reason) = match &outcome {
        Ok(()) if cancel.is_cancelled() => (close::STOPPING, "the node is stopping".to_owned()),
        Ok(()) => (close::DONE, "done".to_owned()),
        Err(ServeError::Refused { reason, .. }) => (close::REFUSED, reason.clone()),
        Err(error) => (close::PROTOCOL, error.to_string()),
    };
    connection.close(code, reason.as_bytes());
    match outcome {
        // The ordinary end: the other side has what it wanted and closed.
        Err(ServeError::Lost(quinn::ConnectionError::ApplicationClosed(_))) => Ok(()),
        other => other,
    }
}

/// Reads the introduction and answers it.
async fn accept(
    connection: &quinn::Connection,
    service: &dyn Service,
) -> Result<(quinn::SendStream, FrameReader), ServeError> {
    let (mut send, receive) = connection.accept_bi().await?;
    let mut frames = FrameReader::new(receive);
    let hello: Hello = match frames.next().await.map_err(of_reading)? {
        Some((kind::HELLO, body)) => frame::decode_message(kind::HELLO, &body)?,
        Some((kind, _)) => return Err(FrameError::UnknownKind { kind }.into()),
        None => return Err(ServeError::CutShort),
    };
    match admit(&hello, service) {
        Ok(welcome) => {
            let welcome = frame::encode_message(kind::WELCOME, &welcome);
            send.write_all(&welcome).await.map_err(of_writing)?;
            Ok((send, frames))
        }
        Err(refused) => {
            let answer = frame::encode_message(kind::REFUSED, &refused);
            send.write_all(&answer).await.map_err(of_writing)?;
            let _ = send.finish();
            // Closing at once would overtake the answer; the refused side closes when it has it.
            let _ = timeout(Duration::from_secs(1), connection.closed()).await;
            let Refused { code, reason } = refused;
            Err(ServeError::Refused { code, reason })
        }
    }
}

fn admit(hello: &Hello, service: &dyn Service) -> Result<Welcome, Refused> {
    let federation = service.federation();
    if hello.federation != federation {
        return Err(Refused {
            code: RefusedCode::Federation,
            reason: format!(
                "this node belongs to federation {federation}, {:?} means {}; check the address \
                 and the federation id",
                hello.name, hello.federation
            ),
        });
    }
    let version = hello.version.min(PROTOCOL_VERSION);
    if version < hello.version_min.max(PROTOCOL_VERSION_MIN) {
        return Err(Refused {
            code: RefusedCode::Version,
            reason: format!(
                "this node speaks versions {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}, {:?} \
                 speaks {} to {}; upgrade the older one",
                hello.name, hello.version_min, hello.version
            ),
        });
    }
    Ok(Welcome {
        version,
        ..service.welcome()
    })
}

/// The conversation after the introduction.
struct Talk {
    send: quinn::SendStream,
    frames: FrameReader,
    /// Answers that are not written yet.
    outbox: BytesMut,
    scratch: Vec<u8>,
    /// Reads that wait their turn.
    waiting: VecDeque<Job>,
    reads: usize,
    lives: usize,
}

/// A request to be worked on.
struct Job {
    id: u64,
    caller: Caller,
    request: Request,
}

/// A request that was worked on.
struct Done {
    id: u64,
    class: Class,
    /// `None` when nobody waits for it any more.
    response: Option<Response>,
}

#[derive(Clone, Copy)]
enum Class {
    Read,
    Live,
    Other,
}

impl Class {
    fn of(request: &Request) -> Self {
        match request {
            Request::ReadStream(_) => Self::Read,
            Request::InSession {
                request: SessionRequest::Append(_),
                ..
            }
            | Request::Append { .. }
            | Request::Consume(ConsumerRequest::Settle(_))
            | Request::Reserve { .. }
            | Request::Topology => Self::Other,
            // A read in a session may have to wait for what the session has seen, one at home for a
            // stream that is being moved there.
            Request::Live(_)
            | Request::Settled(_)
            | Request::InSession { .. }
            | Request::Consume(ConsumerRequest::Fetch(_))
            | Request::ReadAtHome(_)
            | Request::State(_)
            | Request::Await(_) => Self::Live,
        }
    }
}

impl Talk {
    fn new(send: quinn::SendStream, frames: FrameReader) -> Self {
        Self {
            send,
            frames,
            outbox: BytesMut::new(),
            scratch: Vec::new(),
            waiting: VecDeque::new(),
            reads: 0,
            lives: 0,
        }
    }

    async fn run(
        &mut self,
        peer: &PeerName,
        service: &dyn Service,
        cancel: &CancellationToken,
    ) -> Result<(), ServeError> {
        let mut in_work = FuturesUnordered::new();
        let mut reading = true;
        let mut stop_by = None;
        loop {
            while self.reads < READS_MAX
                && self.outbox.len() < OUTBOX_BYTES_MAX
                && let Some(job) = self.waiting.pop_front()
            {
                self.reads += 1;
                in_work.push(work(service, job, cancel));
            }
            let begun_all = (!reading && self.waiting.is_empty()) || stop_by.is_some();
            if begun_all && in_work.is_empty() && self.outbox.is_empty() {
                break;
            }
            let can_read = reading
                && in_work.len() + self.waiting.len() < IN_FLIGHT_MAX
                && self.outbox.len() < OUTBOX_BYTES_MAX;
            tokio::select! {
                biased;
                () = cancel.cancelled(), if stop_by.is_none() => {
                    stop_by = Some(Instant::now() + DRAIN_WITHIN);
                    for job in std::mem::take(&mut self.waiting) {
                        self.answer(job.id, &elsewhere(&job.request));
                    }
                }
                () = until(stop_by), if stop_by.is_some() => break,
                Some(done) = in_work.next(), if !in_work.is_empty() => self.finish(done),
                asked = read_request(&mut self.frames), if can_read => match asked? {
                    None => reading = false,
                    Some(asked) => {
                        let stopping = stop_by.is_some();
                        if let Some(job) = self.admit(asked, peer, stopping) {
                            in_work.push(work(service, job, cancel));
                        }
                    }
                },
                // Last, so that all that is ready leaves in one write.
                written = self.send.write(&self.outbox), if !self.outbox.is_empty() => {
                    self.outbox.advance(written.map_err(of_writing)?);
                    if self.outbox.is_empty() {
                        self.outbox = BytesMut::new();
                    }
                }
            }
        }
        let _ = self.send.finish();
        // The answers are of use only once they are there; closing would drop those in flight.
        let _ = timeout(DRAIN_WITHIN, self.send.stopped()).await;
        Ok(())
    }

    /// Decides what happens to a request: `Some` is to be begun now; all else is answered or waits.
    fn admit(&mut self, asked: Asked, peer: &PeerName, stopping: bool) -> Option<Job> {
        let Asked {
            id,
            wait_ms,
            request,
        } = asked;
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                let reason = error.to_string();
                self.answer(id, &Response::NotUnderstood { reason });
                return None;
            }
        };
        if stopping {
            self.answer(id, &elsewhere(&request));
            return None;
        }
        let class = Class::of(&request);
        let job = Job {
            id,
            caller: Caller {
                peer: peer.clone(),
                deadline: Instant::now() + Duration::from_millis(u64::from(wait_ms)),
            },
            request,
        };
        match class {
            Class::Read => self.waiting.push_back(job),
            Class::Live if self.lives == LIVE_MAX => {
                let reason = format!("{LIVE_MAX} reads that wait are on this connection already");
                self.answer(id, &refusal(&job.request, &reason, 1000));
            }
            Class::Live => {
                self.lives += 1;
                return Some(job);
            }
            Class::Other => return Some(job),
        }
        None
    }

    fn finish(&mut self, done: Done) {
        match done.class {
            Class::Read => self.reads -= 1,
            Class::Live => self.lives -= 1,
            Class::Other => {}
        }
        if let Some(response) = done.response {
            self.answer(done.id, &response);
        }
    }

    fn answer(&mut self, id: u64, response: &Response) {
        wire::encode_response(&mut self.scratch, id, response);
        self.outbox.extend_from_slice(&self.scratch);
        self.scratch.clear();
        // One large answer must not be remembered for as long as the connection stands.
        self.scratch.shrink_to(SCRATCH_BYTES_KEPT);
    }
}

async fn until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

async fn read_request(frames: &mut FrameReader) -> Result<Option<Asked>, ServeError> {
    match frames.next().await.map_err(of_reading)? {
        Some((kind::REQUEST, body)) => Ok(Some(wire::decode_request(&body)?)),
        Some((kind, _)) => Err(FrameError::UnknownKind { kind }.into()),
        None => Ok(None),
    }
}

async fn work(service: &dyn Service, job: Job, cancel: &CancellationToken) -> Done {
    let Job {
        id,
        caller,
        request,
    } = job;
    let class = Class::of(&request);
    let give_up_at = caller.deadline + GRACE;
    // Whoever waits for an event that may never come must not keep a node from stopping.
    let stopped = matches!(class, Class::Live).then(|| elsewhere(&request));
    let handled = timeout_at(give_up_at, service.handle(caller, request));
    let response = match stopped {
        None => handled.await.ok(),
        Some(stopped) => tokio::select! {
            biased;
            handled = handled => handled.ok(),
            () = cancel.cancelled() => Some(stopped),
        },
    };
    Done {
        id,
        class,
        response,
    }
}

/// What a stopping node answers: nothing was done, ask another.
fn elsewhere(request: &Request) -> Response {
    refusal(request, "the node is stopping", 0)
}

/// Says that nothing was done, in the shape of an answer to `request`.
fn refusal(request: &Request, reason: &str, retry_after_ms: u64) -> Response {
    let read = || ReadError::Unavailable {
        reason: reason.to_owned(),
        retry_after_ms,
    };
    let append = || AppendError::Unavailable {
        reason: reason.to_owned(),
        retry_after_ms,
    };
    match request {
        Request::Append { .. } => Response::Append(Err(append())),
        Request::ReadStream(_) | Request::ReadAtHome(_) => Response::ReadStream(Err(read())),
        Request::Live(_) => Response::Live(Err(read())),
        Request::Settled(_) => Response::Settled(Err(read())),
        Request::InSession { request, .. } => match request {
            SessionRequest::Append(_) => Response::Append(Err(append())),
            SessionRequest::ReadStream(_) => Response::ReadStream(Err(read())),
            SessionRequest::Live(_) => Response::Live(Err(read())),
            SessionRequest::Settled(_) => Response::Settled(Err(read())),
            SessionRequest::State(_) => Response::State(Err(read())),
        },
        Request::Await(_) => Response::Await(Err(read())),
        Request::State(_) => Response::State(Err(read())),
        Request::Consume(_) => Response::Consume(Err(read().into())),
        Request::Reserve { .. } => Response::Reserve(Err(ReserveError::Unavailable {
            reason: reason.to_owned(),
            retry_after_ms,
        })),
        Request::Topology => Response::NotUnderstood {
            reason: reason.to_owned(),
        },
    }
}

fn of_reading(error: FrameReadError) -> ServeError {
    match error {
        FrameReadError::Frame(error) => ServeError::Protocol(error),
        FrameReadError::Stream(quinn::ReadError::ConnectionLost(error)) => ServeError::Lost(error),
        FrameReadError::Stream(_) | FrameReadError::CutShort => ServeError::CutShort,
    }
}

fn of_writing(error: quinn::WriteError) -> ServeError {
    match error {
        quinn::WriteError::ConnectionLost(error) => ServeError::Lost(error),
        // The client stopped listening on the one stream there is.
        _ => ServeError::CutShort,
    }
}

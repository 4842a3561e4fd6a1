//! Sessions: reading what one wrote, and never less than one has read, in whichever region.
//!
//! A token stands for what its holder has seen. It is sent along with each request and comes back
//! with what that request showed; a region that does not hold all of it yet waits for a while, and
//! then says that it is stale. What is in a token is the nodes' affair: they seal it, so that nobody
//! can claim to have seen what was never written.

use std::time::Duration;

use meridian_clock::RegionId;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::wire::{Request, Response};
use crate::{
    AppendError, AppendRequest, Appended, Client, LivePage, LiveRead, ReadAt, ReadError,
    SettledPage, SettledRead, StateRead, StreamPage, StreamRead, StreamState,
};

/// How long a region may take to catch up with a session when nobody says.
const WAIT: Duration = Duration::from_secs(2);

/// What a session has seen, as the nodes wrote it down. Opaque, and good in every region. The
/// default one has seen nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionToken(pub String);

impl SessionToken {
    /// A token for what either has seen: the next answer holds one for both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        match (self.0.is_empty(), other.0.is_empty()) {
            (true, _) => other.clone(),
            (_, true) => self.clone(),
            (false, false) => Self(format!("{},{}", self.0, other.0)),
        }
    }
}

/// What can be asked in a session.
///
/// Not simply a [`Request`]: what may hold itself could be nested by a stranger until its reader
/// runs out of stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionRequest {
    /// Write these events.
    Append(AppendRequest),
    /// Read a page of one stream.
    ReadStream(StreamRead),
    /// Read a page of everything, in order of arrival, or wait for some.
    Live(LiveRead),
    /// Read a page of the one order, or wait for some.
    Settled(SettledRead),
    /// Read what a stream comes to.
    State(StateRead),
}

/// What is answered in a session, one variant for each [`SessionRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionResponse {
    /// To [`SessionRequest::Append`].
    Append(Result<Appended, AppendError>),
    /// To [`SessionRequest::ReadStream`].
    ReadStream(Result<StreamPage, ReadError>),
    /// To [`SessionRequest::Live`].
    Live(Result<LivePage, ReadError>),
    /// To [`SessionRequest::Settled`].
    Settled(Result<SettledPage, ReadError>),
    /// To [`SessionRequest::State`].
    State(Result<StreamState, ReadError>),
}

impl From<SessionRequest> for Request {
    fn from(request: SessionRequest) -> Self {
        match request {
            SessionRequest::Append(request) => Self::Append { request, hops: 0 },
            SessionRequest::ReadStream(read) => Self::ReadStream(read),
            SessionRequest::Live(read) => Self::Live(read),
            SessionRequest::Settled(read) => Self::Settled(read),
            SessionRequest::State(read) => Self::State(read),
        }
    }
}

impl From<SessionResponse> for Response {
    fn from(response: SessionResponse) -> Self {
        match response {
            SessionResponse::Append(answer) => Self::Append(answer),
            SessionResponse::ReadStream(page) => Self::ReadStream(page),
            SessionResponse::Live(page) => Self::Live(page),
            SessionResponse::Settled(page) => Self::Settled(page),
            SessionResponse::State(state) => Self::State(state),
        }
    }
}

/// A sequence of requests of which none sees less than those before it, whichever regions answer.
///
/// A read that a region cannot answer so is waited for, and asked of the next region when that may
/// help; then it is [`ReadError::Stale`]. It is never answered with something older.
///
/// Whether an append's expected revision holds is decided at the stream's home and needs no session.
#[derive(Clone)]
pub struct Session {
    client: Client,
    token: SessionToken,
    wait: Duration,
}

impl Session {
    /// Goes on with a session that was begun elsewhere, or earlier.
    pub fn resume(client: Client, token: SessionToken) -> Self {
        Self {
            client,
            token,
            wait: WAIT,
        }
    }

    /// How long a region may take to catch up before it answers that it is stale; 2 s by default,
    /// and never more than 30 s.
    #[must_use]
    pub fn wait_up_to(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// What the session has seen: for [`Session::resume`], or for the header `Meridian-Session`.
    pub fn token(&self) -> &SessionToken {
        &self.token
    }

    /// From here on nothing is read that is older than what `other` has seen either.
    pub fn observe(&mut self, other: &SessionToken) {
        self.token = self.token.and(other);
    }

    /// [`Client::append`]. What it wrote is seen by every later read of this session.
    ///
    /// # Errors
    /// As [`Client::append`].
    pub async fn append(&mut self, request: AppendRequest) -> Result<Appended, AppendError> {
        let deadline = Instant::now() + self.client.request_timeout();
        let carried = Carried {
            token: &mut self.token,
            wait: self.wait,
        };
        self.client
            .append_carrying(request, deadline, Some(carried))
            .await
    }

    /// [`Client::read_stream`], not older than the session.
    ///
    /// # Errors
    /// As [`Client::read_stream`], and [`ReadError::Stale`].
    pub async fn read_stream(
        &mut self,
        read: StreamRead,
        at: ReadAt,
    ) -> Result<StreamPage, ReadError> {
        let only = self.client.region_for(&read.stream, at);
        let request = SessionRequest::ReadStream(read);
        match self.ask(request, only, Duration::ZERO).await? {
            (_, Response::ReadStream(page)) => page,
            (region, other) => Err(does_not_know(region, &other)),
        }
    }

    /// A page of everything that one region holds, and the region that gave it: the nearest that
    /// has caught up with the session when `at` is `None`. Its cursor is good in that region only.
    ///
    /// # Errors
    /// As [`crate::LiveReader::next_page`], and [`ReadError::Stale`].
    pub async fn live(
        &mut self,
        read: LiveRead,
        at: Option<RegionId>,
    ) -> Result<(RegionId, LivePage), ReadError> {
        let wait = Duration::from_millis(u64::from(read.wait_ms));
        match self.ask(SessionRequest::Live(read), at, wait).await? {
            (region, Response::Live(page)) => page.map(|page| (region, page)),
            (region, other) => Err(does_not_know(region, &other)),
        }
    }

    /// A page of the one order, settled at least as far as what the session has seen.
    ///
    /// # Errors
    /// As [`crate::SettledReader::next_page`], and [`ReadError::Stale`].
    pub async fn settled(
        &mut self,
        read: SettledRead,
        at: Option<RegionId>,
    ) -> Result<SettledPage, ReadError> {
        let wait = Duration::from_millis(u64::from(read.wait_ms));
        match self.ask(SessionRequest::Settled(read), at, wait).await? {
            (_, Response::Settled(page)) => page,
            (region, other) => Err(does_not_know(region, &other)),
        }
    }

    /// [`Client::state`], with all that the session has seen in it.
    ///
    /// # Errors
    /// As [`Client::state`], and [`ReadError::Stale`].
    pub async fn state(
        &mut self,
        read: StateRead,
        at: Option<RegionId>,
    ) -> Result<StreamState, ReadError> {
        match self
            .ask(SessionRequest::State(read), at, Duration::ZERO)
            .await?
        {
            (_, Response::State(state)) => state,
            (region, other) => Err(does_not_know(region, &other)),
        }
    }

    async fn ask(
        &mut self,
        request: SessionRequest,
        only: Option<RegionId>,
        more: Duration,
    ) -> Result<(RegionId, Response), ReadError> {
        let mut carried = Carried {
            token: &mut self.token,
            wait: self.wait,
        };
        let request = carried.wrap(request);
        let deadline = Instant::now() + self.client.request_timeout() + self.wait + more;
        let (region, response) = self.client.read_until(&request, only, deadline).await?;
        Ok((region, carried.unwrap(response)))
    }
}

/// The token that a request takes along, and that its answer replaces.
pub(crate) struct Carried<'a> {
    token: &'a mut SessionToken,
    wait: Duration,
}

impl Carried<'_> {
    /// `request` as it is sent in the session.
    pub(crate) fn wrap(&self, request: SessionRequest) -> Request {
        Request::InSession {
            token: self.token.clone(),
            wait_ms: u32::try_from(self.wait.as_millis()).unwrap_or(u32::MAX),
            request,
        }
    }

    /// The answer itself, the session's new token taken off it.
    pub(crate) fn unwrap(&mut self, response: Response) -> Response {
        match response {
            Response::InSession { token, response } => {
                *self.token = token;
                response.into()
            }
            // What went wrong before anything was looked at comes as it is.
            other => other,
        }
    }
}

/// What a node answers that has never heard of sessions.
pub(crate) fn no_sessions(region: RegionId, reason: &str) -> String {
    format!(
        "region {region} runs a version that does not know sessions ({reason}); upgrade its node, \
         or ask without a session"
    )
}

fn does_not_know(region: RegionId, response: &Response) -> ReadError {
    let reason = match response {
        Response::NotUnderstood { reason } => reason,
        _ => "it answered something else",
    };
    ReadError::Invalid {
        reason: no_sessions(region, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tokens_are_carried_as_one() {
        let token = |text: &str| SessionToken(text.to_owned());
        let nothing = SessionToken::default();
        assert_eq!(token("a").and(&token("b")), token("a,b"));
        assert_eq!(token("a").and(&nothing), token("a"));
        assert_eq!(nothing.and(&token("b")), token("b"));
    }
}

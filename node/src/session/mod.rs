//! Sessions: what a token's holder has seen, and waiting until all of it is here.
//!
//! A token names, for each origin log, the highest position that its holder was shown, and the
//! newest stamp among them. A read of what is held here waits for the positions, a read of the one
//! order for the watermark to pass the stamp; what does not come in time is named.
//!
//! Always true (`session`): a read with a token shows everything the token stands for, or says that
//! it is stale. It never shows less.

mod key;
mod token;

use std::time::Duration;

use meridian_client::wire::Response;
use meridian_client::{
    AppendError, LivePage, ReadError, SessionRequest, SessionResponse, SessionToken, SettledPage,
    SettledTier, StateTier, StreamPage,
};
use meridian_clock::{LogId, Position, RegionId};
use meridian_event::StreamId;
use meridian_points::{Bug, planted, reached};
use tokio::time::{Instant, timeout_at};

pub use key::{new_key, parse_key};
pub use token::{Seen, SessionSeal, TokenError};

use crate::Node;
use crate::http::{Backend, Tier};
use crate::reads::unreadable;

/// The longest that a read waits for what its session has seen.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);
/// How long before its asker gives up a read is answered: so much later than said, it would be of
/// no use.
const SPARE: Duration = Duration::from_millis(100);
const RETRY_AFTER_MS: u64 = 1000;
/// How many logs an answer names that are not here yet.
const NAMED_MAX: usize = 3;

/// What a read shows, and so what it has to wait for.
#[derive(Clone, Copy, Debug)]
pub enum Shown<'a> {
    /// What a tier shows: of the live one, all that is here.
    Tier(Tier),
    /// One stream, as it is here.
    Stream(&'a StreamId),
}

impl Shown<'_> {
    fn tier(&self) -> Tier {
        match self {
            Self::Tier(tier) => *tier,
            Self::Stream(_) => Tier::Live,
        }
    }
}

impl Node {
    /// What the tokens in `text` have seen.
    pub(crate) fn seen(&self, text: &str) -> Result<Seen, ReadError> {
        let seen = self.session_seal().read(text);
        seen.map_err(|error| ReadError::Invalid {
            reason: error.to_string(),
        })
    }

    /// Waits, up to `wait`, until reads of `shown` show everything that was seen.
    ///
    /// # Errors
    /// [`ReadError::Stale`] when that takes longer; it says what is missing. Others when the log cannot be read.
    pub(crate) async fn catch_up(
        &self,
        seen: &Seen,
        shown: Shown<'_>,
        wait: Duration,
    ) -> Result<(), ReadError> {
        let deadline = Instant::now() + wait.min(WAIT_MAX);
        let mut changes = self.changes(shown.tier());
        loop {
            // Before looking: what comes while we look wakes us again.
            changes.seen();
            let Some(reason) = self
                .missing(seen, shown)?
                .filter(|_| !planted(Bug::ReadBehind))
            else {
                return Ok(());
            };
            let more = tokio::select! {
                biased;
                () = self.doors().cancelled() => false,
                changed = timeout_at(deadline, changes.changed()) => matches!(changed, Ok(true)),
            };
            if !more {
                return Err(ReadError::Stale {
                    reason,
                    retry_after_ms: RETRY_AFTER_MS,
                });
            }
        }
    }

    // What reads of `shown` do not show yet of what was seen.
    fn missing(&self, seen: &Seen, shown: Shown<'_>) -> Result<Option<String>, ReadError> {
        match shown {
            Shown::Stream(stream) => match self.missing_positions(seen) {
                None => self.missing_revision(seen, stream),
                missing => Ok(missing),
            },
            Shown::Tier(Tier::Live) => Ok(self.missing_positions(seen)),
            Shown::Tier(Tier::Settled(tier)) => {
                let watermark = self.watermark(tier);
                Ok((watermark < seen.at).then(|| {
                    format!(
                        "{tier} is settled here up to {watermark}, {:?} before what was seen ({}), \
                         and waits for region {}",
                        seen.at.after(watermark),
                        seen.at,
                        self.holding_back(tier)
                    )
                }))
            }
        }
    }

    fn missing_positions(&self, seen: &Seen) -> Option<String> {
        let held = |log: LogId| self.store().head(log).position;
        let mut missing = seen
            .positions
            .iter()
            .filter(|(log, position)| held(*log) < *position)
            .map(|(log, position)| {
                format!(
                    "partition {} of region {} is held here up to position {}, and {position} was seen",
                    log.partition,
                    self.names().of(log.origin),
                    held(log),
                )
            });
        let first = missing.next()?;
        let mut named = vec![first];
        named.extend(missing.by_ref().take(NAMED_MAX - 1));
        match missing.count() {
            0 => {}
            more => named.push(format!("{more} more logs are behind")),
        }
        Some(named.join("; "))
    }

    // What was seen of a stream that moved may be here before what stands below it, from where it was at home before:
    // a read stops below the gap.
    fn missing_revision(
        &self,
        seen: &Seen,
        stream: &StreamId,
    ) -> Result<Option<String>, ReadError> {
        if !self.homes().has_home(stream) {
            return Ok(None);
        }
        let partition = stream.partition(self.config().partitions);
        let positions = seen.positions.iter();
        let of_stream: Vec<(RegionId, Position)> = positions
            .filter(|(log, _)| log.partition == partition)
            .map(|(log, position)| (log.origin, position))
            .collect();
        if of_stream.is_empty() {
            return Ok(None);
        }
        let hidden = self.store().stream_hidden(stream, &of_stream);
        let hidden = hidden.map_err(unreadable)?;
        Ok(hidden.map(|revision| {
            reached("a session waited for what stands below a gap");
            format!(
                "revision {revision} of {stream} is not here yet, and one behind it was seen: the stream was moved \
                 between them"
            )
        }))
    }

    /// Does `request` as part of the session of `token`: shows nothing older than that, and answers
    /// with a token for that and what was shown.
    pub(crate) async fn in_session(
        &self,
        token: &SessionToken,
        wait: Duration,
        request: SessionRequest,
        deadline: Instant,
    ) -> Response {
        let mut seen = match self.seen(&token.0) {
            Ok(seen) => seen,
            Err(error) => return refused(&request, error),
        };
        let wait = wait.min(deadline.saturating_duration_since(Instant::now() + SPARE));
        let response = match request {
            SessionRequest::Append(request) => {
                let answer = self.append_until(request, 0, deadline).await;
                match &answer {
                    Ok(appended) => seen.wrote(appended),
                    Err(AppendError::WrongExpectedRevision { events_since, .. }) => {
                        seen.read(events_since);
                    }
                    Err(_) => {}
                }
                SessionResponse::Append(answer)
            }
            SessionRequest::ReadStream(read) => {
                let caught_up = self
                    .catch_up(&seen, Shown::Stream(&read.stream), wait)
                    .await;
                let page = caught_up.and_then(|()| self.read_stream(&read));
                if let Ok(StreamPage { events, .. }) = &page {
                    seen.read(events);
                }
                SessionResponse::ReadStream(page)
            }
            SessionRequest::Live(read) => {
                let page = match self.catch_up(&seen, Shown::Tier(Tier::Live), wait).await {
                    Ok(()) => self.read_live(&read).await,
                    Err(error) => Err(error),
                };
                if let Ok(LivePage { events, .. }) = &page {
                    seen.read(events);
                }
                SessionResponse::Live(page)
            }
            SessionRequest::Settled(read) => {
                let shown = Shown::Tier(Tier::Settled(read.tier));
                let page = match self.catch_up(&seen, shown, wait).await {
                    Ok(()) => self.read_settled(&read).await,
                    Err(error) => Err(error),
                };
                if let Ok(SettledPage { events, .. }) = &page {
                    seen.read(events);
                }
                SessionResponse::Settled(page)
            }
            SessionRequest::State(read) => {
                let shown = Shown::Tier(match read.tier {
                    StateTier::Live => Tier::Live,
                    StateTier::Stable => Tier::Settled(SettledTier::Stable),
                });
                SessionResponse::State(match self.catch_up(&seen, shown, wait).await {
                    Ok(()) => self.state(&read).await,
                    Err(error) => Err(error),
                })
            }
        };
        Response::InSession {
            token: self.session_seal().write(&seen),
            response,
        }
    }
}

/// The answer to a request whose token cannot be used, or that nobody serves any more. Nothing was done.
pub(crate) fn refused(request: &SessionRequest, error: ReadError) -> Response {
    match request {
        SessionRequest::Append(_) => Response::Append(Err(match error {
            ReadError::Invalid { reason } => AppendError::Invalid { reason },
            ReadError::Unavailable {
                reason,
                retry_after_ms,
            } => AppendError::Unavailable {
                reason,
                retry_after_ms,
            },
            other => AppendError::Invalid {
                reason: other.to_string(),
            },
        })),
        SessionRequest::ReadStream(_) => Response::ReadStream(Err(error)),
        SessionRequest::Live(_) => Response::Live(Err(error)),
        SessionRequest::Settled(_) => Response::Settled(Err(error)),
        SessionRequest::State(_) => Response::State(Err(error)),
    }
}

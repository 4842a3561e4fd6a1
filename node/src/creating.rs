//! Finds out who created a stream that nothing here tells of; whoever writes to it first creates it.
//!
//! What a record is, and why there is only one answer, is [`crate::homes::creators`]. Here its arbiter is asked.
//! What it answers says whom to send a request to. To write, a region waits until it holds the record itself.

use std::time::Duration;

use meridian_client::{AppendError, Expected, ReadError};
use meridian_clock::RegionId;
use meridian_event::StreamId;
use meridian_points::reached;
use tokio::time::{Instant, sleep, timeout_at};

use crate::Node;
use crate::append::{Appends, By};
use crate::homes::creators;
use crate::seams::BoxFuture;

/// How long is waited before it is looked again for what is on its way.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Appends {
    /// Asks who created `stream`. If nobody has, this region does if it `creates`, and else that is the answer.
    /// Nothing is written to the stream itself.
    ///
    /// # Errors
    /// When that cannot be told by `deadline`.
    pub(crate) fn ask_creator<'a>(
        &'a self,
        stream: &'a StreamId,
        creates: bool,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Option<RegionId>, AppendError>> {
        Box::pin(async move {
            let question = creators::question(stream, self.partitions, self.region, creates)?;
            // Whether an unanswered question was written is all the same: it can be asked again.
            let mut may_be_written = None;
            let asked = self
                .route_until(question, By::Server, deadline, &mut may_be_written)
                .await;
            match asked {
                Ok(_) => {
                    reached("a region created a stream");
                    Ok(Some(self.region))
                }
                Err(AppendError::WrongExpectedRevision { actual: None, .. }) => Ok(None),
                Err(AppendError::WrongExpectedRevision { events_since, .. }) => {
                    reached("a region was told who had created a stream");
                    let creator = creators::told_by(&events_since);
                    let unread = || self.not_told(stream, "its record cannot be read");
                    creator.map(Some).ok_or_else(unread)
                }
                Err(error) => Err(self.not_told(stream, &error.to_string())),
            }
        })
    }

    // Nothing was written, whatever became of the question.
    fn not_told(&self, stream: &StreamId, reason: &str) -> AppendError {
        let federation = self.homes.federation();
        let arbiter = self.homes.arbiter(&federation, stream).home;
        let name = match self.ways.get(&arbiter) {
            Some(way) => way.name().to_owned(),
            None => format!("{arbiter}, which is this one"),
        };
        AppendError::Unavailable {
            reason: format!(
                "which region creates stream {stream} is not known here, and region {name}, which keeps that \
                 of this stream, could not tell: {reason}. Nothing was written. Send it again when that \
                 region is back, or fence it if it is lost; streams that exist are not concerned"
            ),
            retry_after_ms: 1000,
        }
    }
}

impl Node {
    /// What the home of `stream` is, which nothing here tells of: `None` when nobody has created it.
    ///
    /// # Errors
    /// When that cannot be told by `deadline`.
    pub(crate) async fn home_of_new(
        &self,
        stream: &StreamId,
        deadline: Instant,
    ) -> Result<Option<RegionId>, ReadError> {
        let asked = self.appends().ask_creator(stream, false, deadline).await;
        let creator = asked.map_err(|error| ReadError::Unavailable {
            reason: error.to_string(),
            retry_after_ms: 1000,
        })?;
        let federation = self.homes().federation();
        let seat = |creator| self.homes().seat_if(&federation, stream, creator).home;
        Ok(creator.map(seat))
    }

    /// Which region created `stream`, which has its home there, once this region holds what tells it; `None` when
    /// nobody has.
    ///
    /// # Errors
    /// When that cannot be told by `deadline`.
    pub(crate) async fn surely_creator(
        &self,
        stream: &StreamId,
        deadline: Instant,
    ) -> Result<Option<RegionId>, String> {
        let held = || self.homes().creator(stream);
        if let Some(creator) = held().map_err(|error| error.to_string())? {
            return Ok(Some(creator));
        }
        let asked = self.appends().ask_creator(stream, false, deadline).await;
        if asked.map_err(|error| error.to_string())?.is_none() {
            return Ok(None);
        }
        let arrives = async {
            loop {
                match held() {
                    Ok(Some(creator)) => return Ok(creator),
                    Ok(None) => sleep(LOOK_AGAIN).await,
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        match timeout_at(deadline, arrives).await {
            Ok(creator) => creator.map(Some),
            Err(_) => Err(crate::sequencer::record_coming(stream)),
        }
    }
}

/// What a request is answered that expects something of a stream that nobody has created.
pub(crate) fn never_created(stream: &StreamId, expected: Expected) -> AppendError {
    AppendError::WrongExpectedRevision {
        stream: stream.clone(),
        expected,
        actual: None,
        events_since: Vec::new(),
    }
}

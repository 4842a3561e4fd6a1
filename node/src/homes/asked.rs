//! What clients and operators ask of homes: where a stream's is, and to move it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_clock::{Epoch, RegionId};
use meridian_event::StreamId;
use tokio::time::{Instant, timeout_at};

use crate::Node;
use crate::control::federation::MOVES_MAX;
use crate::control::{Command, Federation, Outcome, ProposeError, Refusal};

/// How long a decision may take.
const DECIDE_WITHIN: Duration = Duration::from_secs(10);

/// Where a stream's home is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHome {
    /// The stream.
    pub stream: StreamId,
    /// Its home region; `None` when every region writes it.
    pub home: Option<RegionId>,
    /// Since which epoch.
    pub epoch: Epoch,
    /// The region it comes from, while that has not handed it over.
    pub moving_from: Option<RegionId>,
}

/// Why streams were not moved, or are not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// It cannot be, as it was asked for.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be now; something must end first.
    #[error("{0}")]
    Conflict(String),
    /// It was not decided.
    #[error("{0}")]
    Unavailable(String),
    /// It may have been decided.
    #[error("{0}")]
    Unknown(String),
}

impl From<ProposeError> for MoveError {
    fn from(error: ProposeError) -> Self {
        let said = error.to_string();
        match error {
            ProposeError::Unavailable { .. } => Self::Unavailable(said),
            ProposeError::Unknown { .. } => Self::Unknown(said),
        }
    }
}

impl Node {
    /// Where `stream`'s home is, as far as this node knows.
    pub fn stream_home(&self, stream: &StreamId) -> StreamHome {
        let federation = self.homes().federation();
        let home = self.homes().home(stream);
        let moved = federation.moved.get(stream).filter(|moved| !moved.opened);
        StreamHome {
            stream: stream.clone(),
            home: home.map(|(region, _)| region),
            epoch: home.map_or(Epoch::FIRST, |(_, epoch)| epoch),
            moving_from: moved.map(|moved| moved.from),
        }
    }

    /// The streams that were ever moved, in order, from the one behind `after` on.
    pub fn moved_streams(&self, after: Option<&StreamId>, limit: usize) -> Vec<StreamHome> {
        use std::ops::Bound::{Excluded, Unbounded};
        let federation = self.homes().federation();
        let from = after.map_or(Unbounded, Excluded);
        let moved = federation.moved.range((from, Unbounded)).take(limit);
        moved.map(|(stream, _)| self.stream_home(stream)).collect()
    }

    /// Moves the homes of `streams` to the region called `to`, and waits up to `wait` until that has
    /// opened them. Answers where they are then; a stream that is still `moving_from` another region
    /// will get there by itself.
    ///
    /// # Errors
    /// When some of them cannot be moved, which leaves all as they were; or when nothing can be decided.
    pub async fn move_homes(
        &self,
        streams: Vec<StreamId>,
        to: &str,
        wait: Duration,
    ) -> Result<Vec<StreamHome>, MoveError> {
        let Some(region) = self.names().id_of(to) else {
            let known: Vec<&str> = self.region_names().values().map(String::as_str).collect();
            return Err(MoveError::Invalid(format!(
                "there is no region {to:?}; the regions are {}",
                known.join(", ")
            )));
        };
        if streams.is_empty() {
            return Err(MoveError::Invalid("name a stream to move".to_owned()));
        }
        let began = Instant::now();
        for some in streams.chunks(MOVES_MAX) {
            let command = Command::Move {
                streams: some.to_vec(),
                to: region,
            };
            let deadline = Instant::now() + DECIDE_WITHIN;
            match self.consensus().propose(command, deadline).await? {
                Outcome::Changed(_) | Outcome::Unchanged => {}
                Outcome::Refused(refusal) => return Err(refused(&refusal, self.region_names())),
            }
        }
        let mut federation = self.homes().watch();
        let is_over = |it: &Arc<Federation>| {
            let mut moved = streams.iter().filter_map(|stream| it.moved.get(stream));
            moved.all(|moved| moved.opened)
        };
        // What is not over by then is told in the answer.
        drop(timeout_at(began + wait, federation.wait_for(is_over)).await);
        let homes = streams.iter().map(|stream| self.stream_home(stream));
        Ok(homes.collect())
    }
}

fn refused(refusal: &Refusal, names: &BTreeMap<RegionId, String>) -> MoveError {
    let name = |region: &RegionId| names.get(region).map_or("?", String::as_str);
    match refusal {
        Refusal::NotFounded => MoveError::Unavailable(refusal.to_string()),
        Refusal::Moving { stream, from, to } => MoveError::Conflict(format!(
            "stream {stream} is still being moved from {} to {}; both must be up for that to end, then \
             move it again",
            name(from),
            name(to)
        )),
        Refusal::UnknownRegion { .. }
        | Refusal::NoHome { .. }
        | Refusal::Internal { .. }
        | Refusal::TooMany { .. } => MoveError::Invalid(refusal.to_string()),
    }
}

//! What clients and operators ask of homes: where a stream's is, and to move it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_clock::{Epoch, RegionId};
use meridian_conflict::HomeRule;
use meridian_event::StreamId;
use tokio::time::{Instant, timeout_at};

use crate::Node;
use crate::control::command::MOVES_MAX;
use crate::control::federation::RuleChange;
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
    /// By which rule; `None` when every region writes it.
    pub rule: Option<HomeRule>,
    /// The region that created it, where the rule asks for that and it is known here.
    pub creator: Option<RegionId>,
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
        let seat = self.homes().seat(stream);
        let policy = self.homes().policies().of(stream.category());
        let rule = (self.homes().has_home(stream)).then_some(policy.home);
        let creator = match rule {
            // One that cannot be read has been told of already.
            Some(HomeRule::Creator) => self.homes().creator(stream).unwrap_or_default(),
            _ => None,
        };
        StreamHome {
            stream: stream.clone(),
            home: seat.as_ref().map(|seat| seat.home),
            epoch: seat.as_ref().map_or(Epoch::FIRST, |seat| seat.epoch),
            moving_from: seat.and_then(|seat| seat.moving_from),
            rule,
            creator,
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
        let region = self.region_named(to)?;
        if streams.is_empty() {
            return Err(MoveError::Invalid("name a stream to move".to_owned()));
        }
        let began = Instant::now();
        for some in streams.chunks(MOVES_MAX) {
            let command = self.move_of(some, region, began + DECIDE_WITHIN).await?;
            self.decide(command).await?;
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

    // The command that moves `streams`; with who created them, as what is decided does not tell that.
    async fn move_of(
        &self,
        streams: &[StreamId],
        to: RegionId,
        deadline: Instant,
    ) -> Result<Command, MoveError> {
        let federation = self.homes().federation();
        let mut creators = BTreeMap::new();
        for stream in streams {
            if !self.homes().rests_on_creator(&federation, stream) {
                continue;
            }
            let creator = self.surely_creator(stream, deadline).await;
            // Of one that nobody created, the answer says so.
            if let Some(creator) = creator.map_err(MoveError::Unavailable)? {
                creators.insert(stream.clone(), creator);
            }
        }
        let streams = streams.to_vec();
        Ok(match creators.is_empty() {
            true => Command::Move { streams, to },
            false => Command::MoveCreated {
                streams,
                creators,
                as_of: federation.version,
                to,
            },
        })
    }

    /// Makes the region called `name` home to nothing, so that its node can be stopped and no writer
    /// waits for it; or gives it its share of homes again. Waits up to `wait` until all that moves has
    /// been opened, and says whether it was; what was not will be.
    ///
    /// # Errors
    /// When it cannot be, or when nothing can be decided.
    pub async fn set_drained(
        &self,
        name: &str,
        drained: bool,
        wait: Duration,
    ) -> Result<bool, MoveError> {
        let region = self.region_named(name)?;
        let began = Instant::now();
        self.decide(match drained {
            true => Command::Drain(region),
            false => Command::Resume(region),
        })
        .await?;
        let mut federation = self.homes().watch();
        let is_over = |it: &Arc<Federation>| {
            it.rules.iter().all(RuleChange::is_over)
                && it.moved.values().all(|it| it.opened || it.from != region)
        };
        let over = timeout_at(began + wait, federation.wait_for(is_over)).await;
        Ok(matches!(over, Ok(Ok(_))))
    }

    pub(crate) fn region_named(&self, name: &str) -> Result<RegionId, MoveError> {
        self.names().id_of(name).ok_or_else(|| {
            let known: Vec<&str> = self.region_names().values().map(String::as_str).collect();
            MoveError::Invalid(format!(
                "there is no region {name:?}; the regions are {}",
                known.join(", ")
            ))
        })
    }

    pub(crate) async fn decide(&self, command: Command) -> Result<(), MoveError> {
        self.decide_by(command, Instant::now() + DECIDE_WITHIN)
            .await
    }

    pub(crate) async fn decide_by(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<(), MoveError> {
        // One that was just started is founded within seconds; if it is not, the answer says why.
        let now = Instant::now();
        let soon = now + deadline.saturating_duration_since(now).mul_f32(0.9);
        let mut federation = self.homes().watch();
        let founded = federation.wait_for(|it| it.foundation.is_some());
        drop(timeout_at(soon, founded).await);
        match self.consensus().propose(command, deadline).await? {
            Outcome::Changed(_) | Outcome::Unchanged => Ok(()),
            Outcome::Refused(refusal) => Err(refused(&refusal, self.region_names())),
        }
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
        Refusal::Draining { .. } => MoveError::Conflict(refusal.to_string()),
        Refusal::Drained { region } => MoveError::Conflict(format!(
            "region {} is drained; resume it before anything is moved there",
            name(region)
        )),
        Refusal::Fenced { region } => MoveError::Conflict(format!(
            "region {} is fenced; it comes back by itself once its node runs and has stranded what does \
             not count any more",
            name(region)
        )),
        Refusal::FenceRunning { waits_for, .. } => {
            let waits_for: Vec<&str> = waits_for.iter().map(name).collect();
            MoveError::Conflict(format!(
                "a fence is under way and waits for region {}; when that answers it goes on, and if it is \
                 lost too, fence it with `evict`",
                waits_for.join(", ")
            ))
        }
        Refusal::Left { region } => MoveError::Conflict(format!(
            "region {} has left the federation for good; to have a region there again, add one with another \
             number and name",
            name(region)
        )),
        Refusal::Leaving { region } => MoveError::Conflict(format!(
            "region {} is leaving; its node leaves once every other region holds what it holds",
            name(region)
        )),
        Refusal::Joining { region } => MoveError::Conflict(format!(
            "region {} is still becoming a member; wait until it is one",
            name(region)
        )),
        Refusal::NotDrained { region } => MoveError::Conflict(format!(
            "region {} may be home to streams; `meridian region drain` it before it leaves",
            name(region)
        )),
        Refusal::UnknownRegion { region } if names.contains_key(region) => {
            MoveError::Conflict(format!(
                "region {} is not a member yet; `meridian region join` makes it one",
                name(region)
            ))
        }
        Refusal::NoFence
        | Refusal::MinorityRemains { .. }
        | Refusal::BeingSet { .. }
        | Refusal::NotCreated { .. }
        | Refusal::FencedSince { .. } => MoveError::Conflict(refusal.to_string()),
        Refusal::LastRegion { region } => MoveError::Conflict(format!(
            "{} is the last region that is home to streams; resume another one first",
            name(region)
        )),
        Refusal::UnknownRegion { .. }
        | Refusal::IdUsed { .. }
        | Refusal::NameUsed { .. }
        | Refusal::OtherPartitions { .. }
        | Refusal::NoHome { .. }
        | Refusal::Internal { .. }
        | Refusal::TooMany { .. } => MoveError::Invalid(refusal.to_string()),
    }
}

//! What operators ask of fences: to put a lost region out, and how a region stands.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meridian_clock::{LogId, RegionId};
use meridian_store::Generations;
use tokio::time::{Instant, timeout_at};

use crate::Node;
use crate::control::fence::Fence;
use crate::control::{Command, Federation, Outcome, Refusal};
use crate::homes::MoveError;

/// How long a forced fence waits for an ordinary decision.
const FORCED_AFTER: Duration = Duration::from_secs(3);

/// Whether the federation counts on a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is none yet: it takes over what the others write, and nobody waits for it.
    Learner,
    /// It is a member.
    Member,
    /// It is being put out: what it wrote is sealed, and the others agree on how much of it counts.
    Fencing,
    /// The others go on without it.
    Out,
    /// It was out, or is new, and is becoming a member.
    Joining,
    /// It is going for good, and writes nothing any more.
    Leaving,
    /// It has gone for good.
    Left,
}

/// How a region stands, as far as one node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionStanding {
    /// The region's name.
    pub region: String,
    /// Whether it is counted on.
    pub standing: Standing,
    /// How long ago this node heard it; `None` for its own region, or if it was not heard since the start.
    pub silent_for: Option<Duration>,
    /// How many events it was seen to hold that are not here: they would strand at least, with whatever
    /// else it has acknowledged alone.
    pub not_here: u64,
    /// The regions that the fence under way waits for, or its joining.
    pub waits_for: Vec<String>,
}

/// How far a fence came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceReport {
    /// How the region stands now.
    pub standing: RegionStanding,
    /// How long after the request all who remain had sealed, if they have.
    pub sealed_after: Option<Duration>,
    /// How long after it the fence was open, if it is.
    pub opened_after: Option<Duration>,
}

/// A fence, as far as one node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceStanding {
    /// The number of the decision that began it.
    pub change: u64,
    /// The regions that it puts out.
    pub regions: BTreeSet<RegionId>,
    /// How many members there were when it began.
    pub of: usize,
    /// Whether those who remain go on without them.
    pub opened: bool,
}

impl Node {
    /// The regions that are counted on now; none before the federation is founded.
    pub fn members(&self) -> BTreeSet<RegionId> {
        self.homes().federation().members()
    }

    /// Where the generations of `log` ended.
    pub fn generations(&self, log: LogId) -> Generations {
        self.homes().federation().generations(log)
    }

    /// All fences there ever were, the first one first.
    pub fn fences(&self) -> Vec<FenceStanding> {
        let federation = self.homes().federation();
        let fences = federation.fences.iter();
        let stand = |fence: &Fence| FenceStanding {
            change: fence.change,
            regions: fence.regions.keys().copied().collect(),
            of: fence.of,
            opened: fence.opened,
        };
        fences.map(stand).collect()
    }

    /// How the region called `name` stands.
    ///
    /// # Errors
    /// When there is no such region.
    pub fn region_standing(&self, name: &str) -> Result<RegionStanding, MoveError> {
        let region = self.region_named(name)?;
        let federation = self.homes().federation();
        let mut peers = self.links().peers().into_iter();
        let peer = peers.find(|peer| peer.region == region);
        let fence = federation.fence_of(region);
        let waits_for = fence.filter(|fence| !fence.opened).map(Fence::waits_for);
        let joining = federation
            .out
            .get(&region)
            .filter(|it| it.joining.is_some());
        let waits_for = match joining {
            Some(out) => {
                let mut members = federation.members();
                members.retain(|member| !out.welcomed.contains_key(member));
                Some(members)
            }
            None => waits_for,
        };
        Ok(RegionStanding {
            region: name.to_owned(),
            standing: standing(&federation, region),
            silent_for: peer.as_ref().and_then(|peer| peer.last_heard),
            not_here: peer.map_or(0, |peer| peer.lag_positions),
            waits_for: waits_for
                .into_iter()
                .flatten()
                .map(|it| self.names().of(it))
                .collect(),
        })
    }

    /// Puts the region called `name` out: who remains goes on without it, and it strands what none of them
    /// has when it comes back. With `evict`, as part of the fence that is under way, which waits for it.
    /// With `force` also when fewer than a majority remain: what the others acknowledged may then
    /// strand, too. Waits up to `wait` until the fence is open; it goes on in any case.
    ///
    /// # Errors
    /// When it cannot be put out, or that cannot be decided.
    pub async fn fence_region(
        &self,
        name: &str,
        force: bool,
        evict: bool,
        wait: Duration,
    ) -> Result<FenceReport, MoveError> {
        let region = self.region_named(name)?;
        let began = Instant::now();
        let command = match evict {
            true => Command::Evict { region, force },
            false => Command::Fence { region, force },
        };
        // Without a majority it cannot even be decided that it is refused.
        let tried = Federation::clone(&self.homes().federation()).apply(&command);
        if let Outcome::Refused(refusal @ Refusal::MinorityRemains { .. }) = tried {
            return Err(MoveError::Conflict(refusal.to_string()));
        }
        let deadline = began + FORCED_AFTER;
        let decided = match force {
            true => self.decide_by(command.clone(), deadline).await,
            false => self.decide(command.clone()).await,
        };
        match decided {
            // Of two regions, one alone decides nothing: by force, it goes on as if it were the only one.
            Err(MoveError::Unavailable(_) | MoveError::Unknown(_)) if force => {
                let alone = self.consensus().go_on_alone().await;
                alone.map_err(MoveError::Unavailable)?;
                self.decide(command).await?;
            }
            decided => decided?,
        }
        let mut federation = self.homes().watch();
        let mut reach = async |is_there: fn(&Fence) -> bool| {
            let is_there = |now: &Arc<Federation>| now.fence_of(region).is_some_and(is_there);
            let waited = timeout_at(began + wait, federation.wait_for(is_there)).await;
            matches!(waited, Ok(Ok(_))).then(|| began.elapsed())
        };
        let sealed_after = reach(|fence| !fence.cuts.is_empty()).await;
        let opened_after = reach(|fence| fence.opened).await;
        Ok(FenceReport {
            standing: self.region_standing(name)?,
            sealed_after,
            opened_after,
        })
    }
}

/// How `region` stands by `federation`.
pub(crate) fn standing(federation: &Federation, region: RegionId) -> Standing {
    let is_open = federation.fence_of(region).is_some_and(|it| it.opened);
    if !federation.knows(region) {
        return Standing::Learner;
    }
    if federation.left.contains(&region) && is_open {
        return Standing::Left;
    }
    if federation.left.contains(&region) || federation.leaving.contains_key(&region) {
        return Standing::Leaving;
    }
    let Some(out) = federation.out.get(&region) else {
        return Standing::Member;
    };
    match (out.joining, is_open) {
        (Some(_), _) => Standing::Joining,
        (None, true) => Standing::Out,
        (None, false) => Standing::Fencing,
    }
}

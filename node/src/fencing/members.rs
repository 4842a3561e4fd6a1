//! What operators ask of membership: to make a new region a member, and to let one go for good.

use std::sync::Arc;
use std::time::Duration;

use meridian_clock::RegionId;
use tokio::time::{Instant, sleep, timeout_at};

use super::asked::RegionStanding;
use crate::Node;
use crate::control::{Command, Federation};
use crate::homes::MoveError;

/// A new region may lack so many events when it becomes a member: `final` waits for it from then on.
const LACKS_MAX: u64 = 1_000;
/// How often it is looked whether it has caught up.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How far a region has come in, or out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipReport {
    /// How it stands now.
    pub standing: RegionStanding,
    /// How long after the request it was a member, or had left; `None` if it was not by then.
    pub done_after: Option<Duration>,
}

impl Node {
    /// Makes the region called `name`, whose node runs as a learner, a member. Waits up to `wait` until it has
    /// caught up, and then until it is one; once that is decided it goes on in any case.
    ///
    /// # Errors
    /// When it cannot become one, or that cannot be decided.
    pub async fn join_region(
        &self,
        name: &str,
        wait: Duration,
    ) -> Result<MembershipReport, MoveError> {
        let began = Instant::now();
        let region = self.names().id_of(name).ok_or_else(|| {
            MoveError::Invalid(format!(
                "region {name:?} is not among the `members` of this node's configuration; add its entry in \
                 every region, and restart the nodes one at a time"
            ))
        })?;
        self.check_asked_of_member()?;
        if !self.homes().federation().knows(region) {
            self.until_caught_up(region, name, began + wait).await?;
        }
        self.decide(Command::Admit {
            region,
            name: name.to_owned(),
            partitions: self.config().partitions,
        })
        .await?;
        let is_member = |now: &Arc<Federation>| now.members().contains(&region);
        self.report(name, began, wait, is_member).await
    }

    /// Lets the drained region called `name` go for good: it writes nothing any more, and once all others hold
    /// what it holds they go on without it. With `force` also when fewer than a majority of the
    /// members remain. Waits up to `wait` until it has left; it goes on in any case.
    ///
    /// # Errors
    /// When it cannot leave, or that cannot be decided.
    pub async fn leave_region(
        &self,
        name: &str,
        force: bool,
        wait: Duration,
    ) -> Result<MembershipReport, MoveError> {
        let began = Instant::now();
        let region = self.region_named(name)?;
        self.decide(Command::Leave { region, force }).await?;
        let has_left = |now: &Arc<Federation>| now.gone().contains(&region);
        self.report(name, began, wait, has_left).await
    }

    async fn report(
        &self,
        name: &str,
        began: Instant,
        wait: Duration,
        is_done: impl FnMut(&Arc<Federation>) -> bool,
    ) -> Result<MembershipReport, MoveError> {
        let mut federation = self.homes().watch();
        let waited = timeout_at(began + wait, federation.wait_for(is_done)).await;
        let is_done = matches!(waited, Ok(Ok(_)));
        Ok(MembershipReport {
            standing: self.region_standing(name)?,
            done_after: is_done.then(|| began.elapsed()),
        })
    }

    // A node that takes no part in decisions has nobody to ask.
    fn check_asked_of_member(&self) -> Result<(), MoveError> {
        let federation = self.homes().federation();
        let is_member = federation.members().contains(&self.config().region);
        match federation.foundation.is_none() || is_member {
            true => Ok(()),
            false => Err(MoveError::Conflict(
                "this node's region is not a member itself; ask the node of a member".to_owned(),
            )),
        }
    }

    async fn until_caught_up(
        &self,
        region: RegionId,
        name: &str,
        deadline: Instant,
    ) -> Result<(), MoveError> {
        loop {
            let reason = match self.lacks(region, name) {
                Ok(0..=LACKS_MAX) => return Ok(()),
                Ok(lacks) => format!(
                    "region {name} lacks {lacks} events still; it becomes a member when it has caught up, ask \
                     again then"
                ),
                Err(reason) => reason,
            };
            if Instant::now() + LOOK_EVERY >= deadline {
                return Err(MoveError::Conflict(reason));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    // How many of the events that are held here `region` is not known to hold.
    fn lacks(&self, region: RegionId, name: &str) -> Result<u64, String> {
        let mut peers = self.links().peers().into_iter();
        let peer = peers.find(|peer| peer.region == region);
        if let Some(peer) = peer
            && !(peer.connected_out && peer.connected_in)
        {
            let error = peer
                .last_error
                .map_or(String::new(), |it| format!(" ({it})"));
            return Err(format!(
                "there is no link to region {name}{error}; start its node, with a configuration that lists \
                 every region"
            ));
        }
        let held = self.held_elsewhere();
        let held = held
            .get(&region)
            .ok_or_else(|| format!("region {name} has not said yet what it holds; ask again"))?;
        let heads = self.store().heads().into_iter();
        let lacks = heads.map(|head| head.position.0.saturating_sub(held.get(head.log).0));
        Ok(lacks.sum())
    }
}

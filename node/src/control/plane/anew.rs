//! Groups that begin anew: whoever is left over goes on with what it knows, and who voted in a group that is over votes
//! as another life.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use meridian_points::reached;
use tracing::{error, warn};

use super::{Answer, Asked, Life, Question, Running, Shared, lock};
use crate::control::Federation;

impl Shared {
    // Whether every other voter is a region that has lost its disk and asks for another vote. Those can
    // never agree on anything without this one, and this one's log has all that they agreed on.
    pub(super) fn is_last_survivor(&self) -> bool {
        let running = lock(&self.running);
        running.as_ref().is_some_and(|running| {
            let metrics = running.raft.metrics();
            let metrics = metrics.borrow();
            let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
            let mut others = voters.iter().filter(|voter| **voter != running.life.0);
            let is_lost = |voter: Life| {
                let lost = running.lost.get(&voter.region());
                lost.is_some_and(|lost| lost.before.contains(&voter.0))
            };
            voters.len() > 1
                && voters.contains(&running.life.0)
                && others.all(|voter| is_lost(Life(*voter)))
        })
    }

    // Whether no node has a vote any more, and this one is to begin a new group: all have lost their disks, or were put
    // back from backups. It knows all that any of them knows.
    pub(super) async fn is_first_of_the_lost(&self) -> bool {
        let told = Arc::clone(&self.told.borrow());
        // Where no federation was founded that anybody knows of, those that are listed found it.
        let first = match told.foundation {
            Some(_) => told.members().into_iter().find(|it| told.may_vote(*it)),
            None => self.setup.foundation.members.keys().next().copied(),
        };
        if first != Some(self.setup.region) || self.is_voter() {
            return false;
        }
        // Twice: whoever asks as the same life both times had no vote in between, and in between all had been asked. A
        // life that was given a vote by a group that ended since says so.
        let before = self.all_without_votes(&told).await;
        let is_so = before.is_some() && before == self.all_without_votes(&told).await;
        is_so && !self.is_voter() && self.told.borrow().version == told.version
    }

    // As whom all other regions ask for a vote, if none has one, or knows of a decision that is not `told`.
    async fn all_without_votes(&self, told: &Federation) -> Option<Vec<u64>> {
        let gone = told.gone();
        let others = self.others().into_iter().filter(|it| !gone.contains(it));
        let question = Question {
            to: None,
            what: Asked::Stand,
        };
        let asked = others.map(|peer| self.ask(peer, &question));
        let answers = join_all(asked).await.into_iter();
        answers
            .map(|answer| match answer {
                Ok(Answer::Stands {
                    asks_as: Some(life),
                    version,
                }) if version <= told.version => Some(life),
                _ => None,
            })
            .collect()
    }

    // Begins a new group with what this node knows, for an operator says that the only other voter is lost.
    pub(super) async fn go_on_alone(self: &Arc<Self>) -> Result<(), String> {
        let (raft, life) = self
            .raft()
            .ok_or("the control plane does not run on this node now; try again")?;
        let voters: BTreeSet<u64> = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            metrics.membership_config.voter_ids().collect()
        };
        if !voters.contains(&life.0) || voters.len() != 2 {
            return Err(format!(
                "only one of two regions can go on alone, and {} decide here: more than half of them must \
                 be up",
                voters.len()
            ));
        }
        self.refound().await;
        match lock(&self.error).clone() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    // Whether the group that this node votes in is over: another region goes on without it.
    pub(super) async fn is_over(&self) -> bool {
        let ours = self.told.borrow().groups;
        for peer in self.others() {
            let question = Question {
                to: None,
                what: Asked::Tell,
            };
            if let Ok(Answer::Told(theirs)) = self.ask(peer, &question).await
                && theirs.groups > ours
            {
                return true;
            }
        }
        false
    }

    // Begins a new group with what this node knows.
    pub(super) async fn refound(self: &Arc<Self>) {
        let Some(Running {
            raft,
            kept,
            lost,
            life: ours,
        }) = lock(&self.running).take()
        else {
            return;
        };
        let others: Vec<u64> = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            let voters = metrics.membership_config.voter_ids();
            voters.filter(|voter| *voter != ours.0).collect()
        };
        // Its error, if any, is of a group that is over.
        drop(raft.shutdown().await);
        let life = Life::drawn(self.setup.region, &*self.setup.random);
        // Any of them may have taken in something of the group that is over.
        let refused = lost
            .values()
            .map(|lost| lost.life.0)
            .chain(others)
            .collect();
        match kept.refound(life.0, refused).await {
            Ok(()) => {
                reached("the last survivor of the control plane went on alone");
                warn!(
                    "all other regions are lost, or have lost their disks or had them put back; the control plane goes on \
                     with what this one knows"
                );
            }
            Err(error) => error!(%error, "the control plane cannot go on"),
        }
        self.open().await;
    }

    // Asks for a vote as another life: this one has taken in something of a group that is over.
    pub(super) async fn begin_anew(self: &Arc<Self>) {
        let Some(Running { raft, kept, .. }) = lock(&self.running).take() else {
            return;
        };
        // As above.
        drop(raft.shutdown().await);
        let life = Life::drawn(self.setup.region, &*self.setup.random);
        if let Err(error) = kept.begin_anew(life.0).await {
            error!(%error, "the control plane cannot begin anew");
        }
        self.open().await;
    }
}

//! The lease under which this region orders the streams of `fenced` categories, and how a successor waits
//! out that of a lost home.
//!
//! One lease for the whole region. It asks all members over and over, and holds the lease while a majority,
//! itself among them, granted what it asked a moment ago. Who has sealed it for a fence grants nothing, and
//! a fence has a majority seal. So once all have sealed, a lease lasts [`LEASE`] at most, by the clock of
//! the region that was cut off; the successor waits [`WAIT`], by its own, from when it learns of the cut.
//! `sim/model` walks through this: its rules 25 to 28.
//!
//! Clocks must not drift apart by more than [`DRIFT_PERCENT`] each way. A machine that is suspended stops
//! its clock: the answer to a read that it was giving may be old then. What it acknowledges never is, for
//! that a majority holds.
//!
//! Start reading at [`Lease`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use meridian_clock::RegionId;
use meridian_conflict::Isolation;
use meridian_event::StreamId;
use meridian_points::{Bug, planted, reached};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Homes, creators};
use crate::control::fence::Fence;
use crate::control::{Consensus, Federation};
use crate::seams::SteadyClock;

/// How long a lease lasts from when it was asked for.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
/// How much faster or slower than true a clock may run.
const DRIFT_PERCENT: u128 = 1;
/// How long a successor waits: as long as a lease lasts if the holder's clock is the slowest there may be
/// and its own the fastest.
const WAIT: Duration = Duration::from_millis(2041);
/// How often the members are asked: a lease survives that two rounds of questions are lost.
const RENEW_EVERY: Duration = Duration::from_millis(500);
/// How long a member may take to answer before it is asked anew.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How often whoever waits for the lease looks again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

const _: () =
    assert!(WAIT.as_millis() * (100 - DRIFT_PERCENT) >= LEASE.as_millis() * (100 + DRIFT_PERCENT));
const _: () = assert!(RENEW_EVERY.as_millis() * 4 <= LEASE.as_millis());

/// What this region was granted.
///
/// Holds no clock and asks nobody: it is told what happened and when.
#[derive(Debug, Default)]
pub(super) struct Lease {
    // When this region asked for what each member granted last.
    granted: BTreeMap<RegionId, Instant>,
}

/// How a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// It is held for so long, or longer.
    Held {
        /// How long.
        left: Duration,
    },
    /// It is not.
    Lapsed {
        /// When a majority was asked last that answered, if one ever did.
        answered: Option<Instant>,
    },
}

impl Lease {
    /// Member `by` granted what it was asked at `asked`.
    pub(super) fn handle_grant(&mut self, by: RegionId, asked: Instant) {
        let last = self.granted.entry(by).or_insert(asked);
        *last = asked.max(*last);
    }

    /// How the lease of region `me` stands at `now`, in a federation of these members.
    pub(super) fn at(&self, now: Instant, me: RegionId, members: &BTreeSet<RegionId>) -> Hold {
        if !members.contains(&me) {
            return Hold::Lapsed { answered: None };
        }
        let others = members.iter().filter(|member| **member != me);
        let mut asked: Vec<Instant> = others
            .filter_map(|member| self.granted.get(member).copied())
            .collect();
        asked.sort_unstable();
        // Its own voice it always has.
        let answered = match majority(members.len()) - 1 {
            0 => Some(now),
            needed => asked.iter().rev().nth(needed - 1).copied(),
        };
        let until = answered.map(|answered| answered + LEASE);
        match until.filter(|until| *until > now) {
            Some(until) => Hold::Held { left: until - now },
            None => Hold::Lapsed { answered },
        }
    }
}

/// How many of `members` are a majority.
pub(crate) fn majority(members: usize) -> usize {
    members / 2 + 1
}

/// Since when this region waits for the leases of lost homes to be over. Not kept over a restart, after
/// which it waits anew: how long it was down its clock cannot tell.
#[derive(Debug, Default)]
pub(super) struct Waits {
    // By fence and round: an eviction voids the cut, and another region's lease counts from the next.
    learnt: BTreeMap<(u64, u32), Instant>,
}

impl Waits {
    /// All who remain have sealed for this round of this fence.
    pub(super) fn handle_cut(&mut self, now: Instant, fence: u64, round: u32) {
        self.learnt.entry((fence, round)).or_insert(now);
    }

    /// Whether any lease that they granted before is over at `now`.
    pub(super) fn are_over(&self, now: Instant, fence: u64, round: u32) -> bool {
        let learnt = self.learnt.get(&(fence, round));
        learnt.is_some_and(|learnt| now.duration_since(*learnt) >= WAIT)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Homes {
    /// What the home of `stream` does while it is cut off. Who created a stream is told as its own end would be.
    pub(crate) fn isolation(&self, stream: &StreamId) -> Isolation {
        let of_record = creators::of_record(stream, self.partitions);
        let stream = of_record.as_ref().unwrap_or(stream);
        self.policies().isolation(stream.category())
    }

    /// How this region's lease stands; `None` when no category needs one.
    pub(crate) fn lease(&self) -> Option<Hold> {
        match self.policies().strictest_isolation() {
            Isolation::Available => None,
            Isolation::Fenced => {
                let members = self.federation().members();
                Some(lock(&self.lease).at(self.steady.now(), self.region, &members))
            }
        }
    }

    /// Whether this region, the home of `stream`, may order it and tell of it now.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_lease(&self, stream: &StreamId) -> Result<(), String> {
        if self.isolation(stream) == Isolation::Available {
            return Ok(());
        }
        let Some(Hold::Lapsed { answered }) = self.lease() else {
            return Ok(());
        };
        reached("a home without its lease refused");
        let since = match answered {
            Some(answered) => {
                let elapsed = self.steady.now().duration_since(answered);
                format!("for {:.1} s", elapsed.as_secs_f64())
            }
            None => "since it was started".to_owned(),
        };
        Err(format!(
            "category {} is fenced, and this region, its home, has not reached a majority of the regions \
             {since}; send it again when it does, or fence this region from the others' side",
            stream.category()
        ))
    }

    /// Waits until `deadline` until it may.
    ///
    /// # Errors
    /// Why it still may not.
    pub(crate) async fn lease_by(
        &self,
        stream: &StreamId,
        deadline: Instant,
    ) -> Result<(), String> {
        loop {
            let checked = self.check_lease(stream);
            if checked.is_ok() || Instant::now() + LOOK_EVERY >= deadline {
                return checked;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Notes which cuts are known by now: the leases before them run out from here on.
    pub(super) fn note_cuts(&self, federation: &Federation) {
        let cut = federation.fences.iter().filter(|it| !it.cuts.is_empty());
        let now = self.steady.now();
        for fence in cut {
            lock(&self.waits).handle_cut(now, fence.change, fence.round);
        }
    }

    /// Whether whoever `fence` put out by `change` surely holds no lease any more.
    pub(super) fn lease_is_over(
        &self,
        federation: &Federation,
        fence: &Fence,
        change: u64,
    ) -> bool {
        // What this region says to have opened, it had waited for.
        let mut rules = federation.rules.iter();
        let has_opened =
            rules.any(|rule| rule.change == change && rule.opened.contains(&self.region));
        let is_over = || {
            let now = self.steady.now();
            lock(&self.waits).are_over(now, fence.change, fence.round)
        };
        has_opened || planted(Bug::LeaseWithoutMargin) || is_over() || {
            reached("a successor waited for a lease to be over");
            false
        }
    }
}

/// Keeps this region's lease, if any category needs one, until `cancel`.
pub(crate) async fn keep_lease(
    homes: Arc<Homes>,
    consensus: Arc<dyn Consensus>,
    cancel: CancellationToken,
) {
    let mut decided = homes.watch();
    while homes.lease().is_none() {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            changed = decided.changed() => if changed.is_err() { return },
        }
    }
    let mut ticks = interval(RENEW_EVERY);
    let mut unanswered = BTreeSet::new();
    let mut asking = FuturesUnordered::new();
    let mut was_held = false;
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            Some((member, granted)) = asking.next() => {
                unanswered.remove(&member);
                if let Some(asked) = granted {
                    lock(&homes.lease).handle_grant(member, asked);
                }
            }
            _ = ticks.tick() => {
                for member in homes.federation().members() {
                    if member != homes.region && unanswered.insert(member) {
                        asking.push(ask(&*consensus, &*homes.steady, member));
                    }
                }
            }
        }
        let is_held = matches!(homes.lease(), Some(Hold::Held { .. }));
        match (was_held, is_held) {
            (false, true) => info!("a majority of the regions grants this one its lease"),
            (true, false) => warn!(
                "no majority of the regions answers: streams of fenced categories are neither written \
                 nor read at home here"
            ),
            _ => {}
        }
        was_held = is_held;
    }
}

// Asks one member, and says when it was asked if it granted the lease.
async fn ask(
    consensus: &dyn Consensus,
    steady: &dyn SteadyClock,
    member: RegionId,
) -> (RegionId, Option<Instant>) {
    // Before the question leaves: the answer may be long on its way.
    let asked = steady.now();
    let granted = timeout(ANSWER_WITHIN, consensus.request_lease(member)).await;
    (member, matches!(granted, Ok(true)).then_some(asked))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ME: RegionId = RegionId(0);
    const B: RegionId = RegionId(1);
    const C: RegionId = RegionId(2);

    fn members(count: u16) -> BTreeSet<RegionId> {
        (0..count).map(RegionId).collect()
    }

    fn held(left: Duration) -> Hold {
        Hold::Held { left }
    }

    #[test]
    fn a_lease_counts_from_when_it_was_asked_for() {
        let (mut lease, noon) = (Lease::default(), Instant::now());
        let three = members(3);
        assert_eq!(lease.at(noon, ME, &three), Hold::Lapsed { answered: None });
        // The answer comes a second later.
        lease.handle_grant(B, noon);
        let later = noon + Duration::from_secs(1);
        assert_eq!(lease.at(later, ME, &three), held(LEASE - (later - noon)));
        let answered = Some(noon);
        assert_eq!(
            lease.at(noon + LEASE, ME, &three),
            Hold::Lapsed { answered }
        );
        // An older answer that comes late takes nothing back.
        lease.handle_grant(C, later);
        lease.handle_grant(C, noon);
        assert_eq!(lease.at(later, ME, &three), held(LEASE));
    }

    #[test]
    fn a_majority_is_of_the_members_only_and_this_region_among_them() {
        let (mut lease, noon) = (Lease::default(), Instant::now());
        let lapsed = Hold::Lapsed { answered: None };
        lease.handle_grant(B, noon);
        assert_eq!(lease.at(noon, ME, &members(5)), lapsed);
        lease.handle_grant(C, noon);
        assert_eq!(lease.at(noon, ME, &members(5)), held(LEASE));
        let without_us = BTreeSet::from([B, C]);
        assert_eq!(lease.at(noon, ME, &without_us), lapsed);
        let without_them = BTreeSet::from([ME, RegionId(3), RegionId(4)]);
        assert_eq!(lease.at(noon, ME, &without_them), lapsed);
        assert_eq!(lease.at(noon, ME, &BTreeSet::new()), lapsed);
        assert_eq!(lease.at(noon, ME, &BTreeSet::from([ME])), held(LEASE));
    }

    #[test]
    fn a_successor_waits_from_the_last_cut_on_that_it_learnt_of() {
        let (mut waits, noon) = (Waits::default(), Instant::now());
        assert!(!waits.are_over(noon + WAIT, 7, 1));
        waits.handle_cut(noon, 7, 1);
        // It is looked at again and again.
        waits.handle_cut(noon + WAIT / 2, 7, 1);
        assert!(!waits.are_over(noon + WAIT - Duration::from_millis(1), 7, 1));
        assert!(waits.are_over(noon + WAIT, 7, 1));
        assert!(!waits.are_over(noon + WAIT, 7, 2));
        // After a restart nothing is known of it.
        assert!(!Waits::default().are_over(noon + WAIT, 7, 1));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Grant { by: u16, asked_ago_ms: u64 },
        Pass { ms: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..6_u16, 0..2500_u64).prop_map(|(by, asked_ago_ms)| Step::Grant { by, asked_ago_ms }),
            (1..900_u64).prop_map(|ms| Step::Pass { ms }),
        ]
    }

    proptest! {
        /// Whenever it says to be held, it is by a majority that was asked less than a lease ago, and no
        /// longer than until the oldest of these questions is as old as that.
        #[test]
        fn it_is_never_held_longer_than_a_lease_after_the_oldest_question_of_its_majority(
            count in 1..6_u16,
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let (mut lease, members) = (Lease::default(), members(count));
            let mut now = Instant::now() + Duration::from_secs(3600);
            let mut grants = Vec::new();
            for step in steps {
                match step {
                    Step::Pass { ms } => now += Duration::from_millis(ms),
                    Step::Grant { by, asked_ago_ms } => {
                        let asked = now - Duration::from_millis(asked_ago_ms);
                        lease.handle_grant(RegionId(by), asked);
                        grants.push((RegionId(by), asked));
                    }
                }
                let good_at = |at: Instant| {
                    let good = grants.iter().filter(|(_, asked)| at.duration_since(*asked) < LEASE);
                    let by: BTreeSet<RegionId> = good.map(|(by, _)| *by).collect();
                    1 + by.intersection(&members).count() > members.len() / 2
                };
                match lease.at(now, ME, &members) {
                    Hold::Lapsed { .. } => prop_assert!(!good_at(now)),
                    Hold::Held { left } => {
                        prop_assert!(left <= LEASE);
                        prop_assert!(good_at(now + left - Duration::from_nanos(1)));
                        prop_assert!(count == 1 || !good_at(now + left));
                    }
                }
            }
        }
    }
}

//! What is known of one append while it is being tried: whom to ask next, and what may be said of it
//! when time is up. Decides only; `client` asks and waits.

use std::collections::BTreeSet;
use std::time::Duration;

use meridian_clock::RegionId;
use meridian_conflict::Route;

use crate::{AppendError, Appended};

/// One append on its way.
pub(crate) struct Attempt {
    route: Route,
    /// Where a node said that the stream's home is, against what our policies say.
    moved_to: Option<RegionId>,
    /// Regions that could not be reached since we last waited.
    unreachable: BTreeSet<RegionId>,
    /// Set once the request may have been done, and by whom; never cleared.
    doubt: Option<Doubt>,
    /// Why it was not done at the last attempt.
    last: String,
    retry_after: Duration,
}

struct Doubt {
    region: RegionId,
    reason: String,
}

/// What to do after an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Tell the caller.
    Done(Result<Appended, AppendError>),
    /// Ask again at once: there is someone else to ask.
    Now,
    /// Learn the regions again, then ask.
    Relearn,
    /// Ask again after a wait of at least this long.
    After(Duration),
}

impl Attempt {
    /// An append that goes where `route` says. `earlier` names the region that may already have
    /// done it, from an earlier call with the same ids.
    pub(crate) fn new(route: Route, earlier: Option<RegionId>) -> Self {
        Self {
            route,
            moved_to: None,
            unreachable: BTreeSet::new(),
            doubt: earlier.map(|region| Doubt {
                region,
                reason: "an earlier request with the same ids was not answered".to_owned(),
            }),
            last: String::new(),
            retry_after: Duration::ZERO,
        }
    }

    /// The one region that should be asked, before any other is thought of. `None` when it could
    /// not be reached since we last waited, or any will do.
    pub(crate) fn first_choice(&self) -> Option<RegionId> {
        let region = match (self.route, &self.doubt) {
            (Route::Home(home), _) => Some(self.moved_to.unwrap_or(home)),
            (Route::Anywhere, Some(doubt)) => Some(doubt.region),
            (Route::Creator, _) => self.moved_to,
            (Route::Anywhere, None) => None,
        };
        region.filter(|region| !self.unreachable.contains(region))
    }

    /// Whom to ask when the first choice cannot be reached; `nearest` lists all regions, the best
    /// first. `None` when it is time to wait.
    pub(crate) fn second_choice(&self, nearest: &[RegionId]) -> Option<RegionId> {
        match (self.route, &self.doubt) {
            // Another region does not know yet what the first one wrote: it would write it again.
            (Route::Anywhere, Some(_)) => None,
            // To an unreachable home, another region may have a way.
            _ => nearest
                .iter()
                .copied()
                .find(|region| !self.unreachable.contains(region)),
        }
    }

    /// `region` could not be reached; nothing was sent.
    pub(crate) fn could_not_reach(&mut self, region: RegionId, reason: String) -> Next {
        self.unreachable.insert(region);
        self.last = reason;
        Next::Now
    }

    /// There was no one left to ask.
    pub(crate) fn all_unreachable(&mut self) -> Next {
        self.after(self.retry_after)
    }

    /// A wait, after which every region is worth asking again.
    fn after(&mut self, at_least: Duration) -> Next {
        self.unreachable.clear();
        Next::After(at_least)
    }

    /// `region` was sent the request and did not answer.
    pub(crate) fn unanswered(&mut self, region: RegionId, reason: String) -> Next {
        self.doubt_about(region, reason);
        self.after(Duration::ZERO)
    }

    /// `region` answered.
    pub(crate) fn answered(
        &mut self,
        region: RegionId,
        answer: Result<Appended, AppendError>,
    ) -> Next {
        let error = match answer {
            Ok(appended) => return Next::Done(Ok(appended)),
            Err(error) => error,
        };
        match &error {
            AppendError::WrongExpectedRevision {
                expected, actual, ..
            } => {
                // A request that is still on its way somewhere could yet find the stream as
                // expected, unless the stream has moved past that for good.
                if self.doubt.is_none() || expected.is_past(*actual) {
                    Next::Done(Err(error))
                } else {
                    Next::Done(Err(self.indeterminate(&error.to_string())))
                }
            }
            AppendError::Invalid { .. }
            | AppendError::TooLarge { .. }
            | AppendError::Conflict { .. } => {
                // Another node, with other limits or at another time, may have taken it.
                if self.doubt.is_none() {
                    Next::Done(Err(error))
                } else {
                    Next::Done(Err(self.indeterminate(&error.to_string())))
                }
            }
            AppendError::NotHome { home, .. } => {
                self.last = error.to_string();
                let news = self.moved_to != Some(*home) && *home != region;
                self.moved_to = Some(*home);
                if news {
                    Next::Relearn
                } else {
                    self.after(Duration::ZERO)
                }
            }
            AppendError::Unavailable {
                reason,
                retry_after_ms,
            } => {
                self.last.clone_from(reason);
                self.retry_after = Duration::from_millis(*retry_after_ms);
                if self.route == Route::Anywhere && self.doubt.is_none() {
                    // It said that nothing was written, so any other region may take it.
                    return self.could_not_reach(region, reason.clone());
                }
                self.after(self.retry_after)
            }
            AppendError::Indeterminate { reason } => {
                self.doubt_about(region, reason.clone());
                self.after(Duration::ZERO)
            }
        }
    }

    /// What to tell the caller when its time is up.
    pub(crate) fn time_is_up(&self) -> AppendError {
        match &self.doubt {
            Some(_) => self.indeterminate(&self.last),
            None => AppendError::Unavailable {
                reason: if self.last.is_empty() {
                    "time was up before it could be sent".to_owned()
                } else {
                    self.last.clone()
                },
                retry_after_ms: u64::try_from(self.retry_after.as_millis())
                    .unwrap_or(u64::MAX)
                    .max(100),
            },
        }
    }

    fn doubt_about(&mut self, region: RegionId, reason: String) {
        self.last.clone_from(&reason);
        // The first doubt is the one that counts: that region may have written.
        self.doubt.get_or_insert(Doubt { region, reason });
    }

    fn indeterminate(&self, then: &str) -> AppendError {
        let first = self.doubt.as_ref().map_or("", |doubt| &doubt.reason);
        let reason = if then.is_empty() || then == first {
            first.to_owned()
        } else {
            format!("{first}; then: {then}")
        };
        AppendError::Indeterminate { reason }
    }
}

#[cfg(test)]
mod tests {
    use meridian_clock::{Epoch, Timestamp};
    use meridian_event::{Revision, StreamId};
    use proptest::prelude::*;

    use super::*;
    use crate::{Durability, Expected};

    const HOME: RegionId = RegionId(0);
    const NEAR: RegionId = RegionId(1);
    const FAR: RegionId = RegionId(2);
    const NEAREST: [RegionId; 3] = [NEAR, FAR, HOME];

    fn stream() -> StreamId {
        StreamId::new("order-1").expect("a sound name")
    }

    fn appended() -> Appended {
        Appended {
            stream: stream(),
            first_revision: Revision(0),
            last_revision: Revision(0),
            home: HOME,
            dots: Vec::new(),
            timestamp: Timestamp(1),
            durability: Durability::Region,
            could_strand: true,
        }
    }

    fn wrong(expected: Expected, actual: Option<u64>) -> AppendError {
        AppendError::WrongExpectedRevision {
            stream: stream(),
            expected,
            actual: actual.map(Revision),
            events_since: Vec::new(),
        }
    }

    fn unavailable() -> AppendError {
        AppendError::Unavailable {
            reason: "the disk failed".to_owned(),
            retry_after_ms: 300,
        }
    }

    #[test]
    fn an_unreachable_home_is_asked_through_the_nearest_region_and_then_again() {
        let mut attempt = Attempt::new(Route::Home(HOME), None);
        assert_eq!(attempt.first_choice(), Some(HOME));
        assert_eq!(attempt.could_not_reach(HOME, "no route".into()), Next::Now);
        assert_eq!(attempt.first_choice(), None);
        assert_eq!(attempt.second_choice(&NEAREST), Some(NEAR));
        attempt.could_not_reach(NEAR, "no route".into());
        attempt.could_not_reach(FAR, "no route".into());
        assert_eq!(attempt.second_choice(&NEAREST), None);
        attempt.all_unreachable();
        assert_eq!(attempt.first_choice(), Some(HOME));
    }

    #[test]
    fn where_every_region_writes_only_the_doubtful_one_is_asked_again() {
        let mut attempt = Attempt::new(Route::Anywhere, None);
        assert_eq!(attempt.first_choice(), None);
        assert_eq!(attempt.second_choice(&NEAREST), Some(NEAR));
        attempt.unanswered(NEAR, "the connection was lost".into());
        attempt.could_not_reach(NEAR, "no route".into());
        assert_eq!(attempt.second_choice(&NEAREST), None);
        attempt.all_unreachable();
        assert_eq!(attempt.first_choice(), Some(NEAR));
    }

    #[test]
    fn where_every_region_writes_one_that_wrote_nothing_is_passed_over() {
        let mut attempt = Attempt::new(Route::Anywhere, None);
        assert_eq!(attempt.answered(NEAR, Err(unavailable())), Next::Now);
        assert_eq!(attempt.second_choice(&NEAREST), Some(FAR));
        assert_eq!(attempt.answered(FAR, Err(unavailable())), Next::Now);
        assert_eq!(attempt.answered(HOME, Err(unavailable())), Next::Now);
        assert_eq!(attempt.second_choice(&NEAREST), None);
        let wait = Duration::from_millis(300);
        assert_eq!(attempt.all_unreachable(), Next::After(wait));
        assert_eq!(attempt.second_choice(&NEAREST), Some(NEAR));
    }

    #[test]
    fn a_moved_home_is_followed_once_and_then_waited_for() {
        let not_home = |home| {
            Err(AppendError::NotHome {
                stream: stream(),
                home,
                epoch: Epoch::FIRST,
            })
        };
        let mut attempt = Attempt::new(Route::Home(HOME), None);
        assert_eq!(attempt.answered(HOME, not_home(FAR)), Next::Relearn);
        assert_eq!(attempt.first_choice(), Some(FAR));
        assert_eq!(attempt.answered(FAR, not_home(HOME)), Next::Relearn);
        assert_eq!(
            attempt.answered(HOME, not_home(HOME)),
            Next::After(Duration::ZERO)
        );
    }

    #[test]
    fn time_up_says_what_is_known() {
        let mut attempt = Attempt::new(Route::Home(HOME), None);
        attempt.answered(HOME, Err(unavailable()));
        assert_eq!(attempt.time_is_up(), unavailable());
        attempt.unanswered(HOME, "the connection was lost".into());
        assert_eq!(attempt.time_is_up().code(), "indeterminate");
        attempt.answered(HOME, Err(unavailable()));
        assert_eq!(attempt.time_is_up().code(), "indeterminate");
    }

    #[test]
    fn a_conflict_after_a_doubt_counts_only_when_the_stream_is_past_what_was_expected() {
        let after_doubt = |error: AppendError| {
            let mut attempt = Attempt::new(Route::Home(HOME), Some(HOME));
            match attempt.answered(HOME, Err(error)) {
                Next::Done(Err(error)) => error.code(),
                other => panic!("a conflict ends the attempt, not {other:?}"),
            }
        };
        let revision = Expected::Revision(Revision(5));
        assert_eq!(
            after_doubt(wrong(revision, Some(9))),
            "wrong_expected_revision"
        );
        assert_eq!(after_doubt(wrong(revision, Some(3))), "indeterminate");
        assert_eq!(after_doubt(wrong(Expected::Exists, None)), "indeterminate");
    }

    #[test]
    fn where_a_stream_was_created_anyone_may_be_asked_even_in_doubt() {
        let mut attempt = Attempt::new(Route::Creator, None);
        assert_eq!(attempt.first_choice(), None);
        assert_eq!(attempt.second_choice(&NEAREST), Some(NEAR));
        attempt.unanswered(NEAR, "it was lost".to_owned());
        attempt.could_not_reach(NEAR, "it is gone".to_owned());
        assert_eq!(attempt.second_choice(&NEAREST), Some(FAR));
        let elsewhere = AppendError::NotHome {
            stream: stream(),
            home: HOME,
            epoch: Epoch::FIRST,
        };
        attempt.answered(FAR, Err(elsewhere));
        assert_eq!(attempt.first_choice(), Some(HOME));
    }

    fn any_answer() -> impl Strategy<Value = Result<Appended, AppendError>> {
        prop_oneof![
            Just(Ok(appended())),
            Just(Err(unavailable())),
            Just(Err(wrong(Expected::Exists, None))),
            Just(Err(AppendError::Indeterminate {
                reason: "time-out".into()
            })),
            Just(Err(AppendError::Invalid {
                reason: "no".into()
            })),
            Just(Err(AppendError::NotHome {
                stream: stream(),
                home: FAR,
                epoch: Epoch::FIRST
            })),
        ]
    }

    proptest! {
        /// Whatever happens after a request was sent and not answered, the caller is never told
        /// that it failed.
        #[test]
        fn doubt_is_never_turned_into_failure(
            anywhere: bool,
            before in prop::collection::vec(any_answer(), 0..4),
            after in prop::collection::vec(any_answer(), 0..6),
        ) {
            let route = if anywhere { Route::Anywhere } else { Route::Home(HOME) };
            let mut attempt = Attempt::new(route, None);
            for answer in before {
                if let Next::Done(_) = attempt.answered(NEAR, answer) {
                    return Ok(());
                }
            }
            attempt.unanswered(NEAR, "the connection was lost".into());
            for answer in after {
                if let Next::Done(done) = attempt.answered(NEAR, answer) {
                    let code = done.as_ref().map_err(AppendError::code).map(|_| ());
                    prop_assert!(matches!(code, Ok(()) | Err("indeterminate")), "{:?}", done);
                    return Ok(());
                }
                let told = attempt.time_is_up();
                prop_assert_eq!(told.code(), "indeterminate");
            }
        }
    }
}

//! Asking for keys that one owner holds in all regions, and giving them back.

use std::time::Duration;

use meridian_clock::RegionId;
use tokio::time::{Instant, sleep_until};

use crate::backoff::Backoff;
use crate::regions::AskError;
use crate::wire::{Request, Response};
use crate::{Client, Reservation, ReservationAnswer, ReservationRequest, ReserveError};

/// How long until it makes sense to ask again what nobody could be asked.
const AGAIN_MS: u64 = 100;

impl Client {
    /// Reserves a key, or releases it, as `request` says; asks the nearest region, which passes it on to the one that
    /// decides about the key, and repeats the request until it is decided or the request time-out is over.
    ///
    /// # Errors
    /// See [`ReserveError`]: another owner holds it, or it is not known who does. An outcome that stays unknown is
    /// [`ReserveError::Indeterminate`]: call again with the same id to learn it.
    pub async fn carry_out(
        &self,
        request: ReservationRequest,
    ) -> Result<ReservationAnswer, ReserveError> {
        request.check()?;
        let deadline = Instant::now() + self.request_timeout();
        let mut backoff = Backoff::default();
        let mut tries = Tries::default();
        let request = Request::Reserve { request, hops: 0 };
        loop {
            let mut at_least = Duration::ZERO;
            // What a region of another version answered, until another one is of more use.
            let mut of_no_use = None;
            let mut others = false;
            for region in self.regions().nearest_first(deadline).await {
                match self.regions().ask(region, &request, deadline).await {
                    Ok(Response::Reserve(answer)) => match tries.answered(answer) {
                        Some(outcome) => return outcome,
                        None => at_least = at_least.max(tries.retry_after),
                    },
                    Ok(other) => {
                        of_no_use = Some(tries.refused(region, &other));
                        continue;
                    }
                    Err(AskError::NotSent(reason)) => tries.last = reason,
                    Err(AskError::Unanswered(reason)) => tries.doubt = Some(reason),
                    Err(AskError::TooLong(reason)) => return Err(ReserveError::Invalid { reason }),
                }
                others = true;
            }
            if let Some(error) = of_no_use.filter(|_| !others) {
                return Err(error);
            }
            let again_at = Instant::now() + backoff.next(self.jitter()).max(at_least);
            if again_at >= deadline {
                return Err(tries.time_is_up());
            }
            sleep_until(again_at).await;
        }
    }

    /// Reserves a key: [`Client::carry_out`] of a [`crate::ReservationAct::Claim`].
    ///
    /// # Errors
    /// As [`Client::carry_out`].
    pub async fn reserve(&self, request: ReservationRequest) -> Result<Reservation, ReserveError> {
        match self.carry_out(request).await? {
            ReservationAnswer::Held(reservation) => Ok(reservation),
            ReservationAnswer::Free { home, .. } => Err(ReserveError::Invalid {
                reason: format!(
                    "region {home} says that the key is free now; reserving asks with the act Claim"
                ),
            }),
        }
    }
}

/// What is known of one request while it is being tried.
#[derive(Default)]
struct Tries {
    // Why it may have been done all the same. Once there is doubt it stays.
    doubt: Option<String>,
    last: String,
    retry_after: Duration,
}

impl Tries {
    /// What to tell the caller, unless it is to be asked again.
    fn answered(
        &mut self,
        answer: Result<ReservationAnswer, ReserveError>,
    ) -> Option<Result<ReservationAnswer, ReserveError>> {
        match answer {
            Err(ReserveError::Unavailable {
                reason,
                retry_after_ms,
            }) => {
                self.last = reason;
                self.retry_after = Duration::from_millis(retry_after_ms);
                None
            }
            Err(ReserveError::Indeterminate { reason }) => {
                self.doubt = Some(reason);
                None
            }
            // Keys are decided in one place, which knows what the request's id has done already.
            decided => Some(decided),
        }
    }

    fn refused(&self, region: RegionId, response: &Response) -> ReserveError {
        let reason = match response {
            Response::NotUnderstood { reason } => format!(
                "region {region} runs a version that does not know reservations ({reason}); upgrade its node"
            ),
            _ => format!("region {region} answered something else"),
        };
        match &self.doubt {
            Some(doubt) => ReserveError::Indeterminate {
                reason: format!("{doubt}; then: {reason}"),
            },
            None => ReserveError::Invalid { reason },
        }
    }

    fn time_is_up(self) -> ReserveError {
        let retry_after_ms = u64::try_from(self.retry_after.as_millis()).unwrap_or(u64::MAX);
        match (self.doubt, self.last.is_empty()) {
            (Some(reason), _) => ReserveError::Indeterminate { reason },
            (None, true) => ReserveError::Unavailable {
                reason: "no region could be reached".to_owned(),
                retry_after_ms: AGAIN_MS,
            },
            (None, false) => ReserveError::Unavailable {
                reason: self.last,
                retry_after_ms: retry_after_ms.max(AGAIN_MS),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable() -> Result<ReservationAnswer, ReserveError> {
        Err(ReserveError::Unavailable {
            reason: "its home is away".to_owned(),
            retry_after_ms: 1000,
        })
    }

    #[test]
    fn doubt_is_never_turned_into_failure() {
        let mut tries = Tries::default();
        assert_eq!(tries.answered(unavailable()), None);
        tries.doubt = Some("it was not answered".to_owned());
        assert_eq!(tries.answered(unavailable()), None);
        let old = Response::NotUnderstood {
            reason: "what?".to_owned(),
        };
        let told = tries.refused(RegionId(2), &old);
        assert!(
            matches!(told, ReserveError::Indeterminate { .. }),
            "{told:?}"
        );
        let told = tries.time_is_up();
        assert!(
            matches!(told, ReserveError::Indeterminate { .. }),
            "{told:?}"
        );
    }

    #[test]
    fn what_was_surely_not_done_says_why_and_when_to_try_again() {
        let mut tries = Tries::default();
        assert_eq!(tries.answered(unavailable()), None);
        assert_eq!(tries.retry_after, Duration::from_secs(1));
        assert_eq!(Err(tries.time_is_up()), unavailable());
    }
}

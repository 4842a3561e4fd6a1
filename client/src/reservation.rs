//! What is asked about a name that only one owner may have in all regions, and what is answered.
//!
//! Reservations are decided in the region that orders their key; whichever node is asked passes the request on.

use std::fmt;
use std::time::Duration;

use meridian_clock::{Dot, RegionId, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A key that has one owner at most, in all regions together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReservationKey {
    /// What kind of key, such as `email`.
    pub namespace: String,
    /// The key, any text; two that differ in one byte are two.
    pub key: String,
}

impl fmt::Display for ReservationKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} of {:?}", self.key, self.namespace)
    }
}

/// Asks for a key, or gives it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationRequest {
    /// The key.
    pub key: ReservationKey,
    /// Whose it is to be, or was.
    pub owner: String,
    /// What is to become of it.
    pub act: ReservationAct,
    /// Makes repeating the request harmless: what an id did is not done twice.
    pub id: Uuid,
}

/// What is to become of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReservationAct {
    /// It is the owner's, from now on and for so long; for good if nothing is said.
    Claim {
        /// How long.
        hold_for: Option<Duration>,
    },
    /// It is the owner's no more.
    Release,
}

impl ReservationRequest {
    /// The longest owner, in bytes.
    pub const OWNER_BYTES_MAX: usize = 256;
    /// The longest time that a key is held for: ten years. What is to be held for longer is held for good.
    pub const HOLD_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

    /// Checks what can be checked without looking at the key.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), ReserveError> {
        self.key.check()?;
        text("the owner", &self.owner, Self::OWNER_BYTES_MAX)?;
        let ReservationAct::Claim {
            hold_for: Some(hold_for),
        } = self.act
        else {
            return Ok(());
        };
        if hold_for.is_zero() || hold_for > Self::HOLD_MAX {
            return Err(ReserveError::Invalid {
                reason: format!(
                    "a key is held for 1 to {} seconds, not {}; leave the time out to hold it for good",
                    Self::HOLD_MAX.as_secs(),
                    hold_for.as_secs()
                ),
            });
        }
        Ok(())
    }
}

impl ReservationKey {
    /// The longest namespace, in bytes.
    pub const NAMESPACE_BYTES_MAX: usize = 128;
    /// The longest key, in bytes.
    pub const KEY_BYTES_MAX: usize = 1024;

    /// Checks that both of its parts are there, and not too long.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), ReserveError> {
        text("the namespace", &self.namespace, Self::NAMESPACE_BYTES_MAX)?;
        text("the key", &self.key, Self::KEY_BYTES_MAX)
    }
}

fn text(what: &str, given: &str, bytes_max: usize) -> Result<(), ReserveError> {
    match given.len() {
        0 => Err(ReserveError::Invalid {
            reason: format!("{what} is empty; give 1 to {bytes_max} bytes"),
        }),
        bytes if bytes > bytes_max => Err(ReserveError::Invalid {
            reason: format!("{what} has {bytes} bytes; give 1 to {bytes_max}, or a hash of it"),
        }),
        _ => Ok(()),
    }
}

/// A key and who holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The key.
    pub key: ReservationKey,
    /// Whose it is.
    pub owner: String,
    /// Since when, by the clock of the region that decided it.
    pub since: Timestamp,
    /// Until when, by the clock of the region that decides about it then; `None` when it is held for good.
    pub until: Option<Timestamp>,
    /// The event that says so.
    pub dot: Dot,
    /// When that was written.
    pub timestamp: Timestamp,
    /// The region that decides about the key.
    pub home: RegionId,
}

/// What became of a [`ReservationRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReservationAnswer {
    /// The key is the owner's.
    Held(Reservation),
    /// It is not.
    Free {
        /// Whether it was until this request.
        released: bool,
        /// The region that decides about the key.
        home: RegionId,
    },
}

/// Why a key was neither reserved nor released, or is not known to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ReserveError {
    /// It is another owner's. Nothing was changed.
    #[error(
        "key {} is held by {:?}{}; nothing was changed",
        .0.key, .0.owner,
        if .0.until.is_none() { ", for good" } else { " for a time" }
    )]
    Reserved(Box<Reservation>),
    /// What this request did before does not count any more.
    #[error("{reason}")]
    Over {
        /// What became of it.
        reason: String,
    },
    /// The request can never be done as it is. Nothing was changed.
    #[error("{reason}")]
    Invalid {
        /// What to change.
        reason: String,
    },
    /// Nothing was changed. Try again later.
    #[error("nothing was changed: {reason}")]
    Unavailable {
        /// What is in the way.
        reason: String,
        /// When trying again makes sense.
        retry_after_ms: u64,
    },
    /// It may be done, or may yet be. Repeat the request with the same id.
    #[error("it is not known whether this was done: {reason}; repeat the request with the same id")]
    Indeterminate {
        /// What is in the way of knowing.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(key: &str, owner: &str, hold_for: Option<u64>) -> ReservationRequest {
        ReservationRequest {
            key: ReservationKey {
                namespace: "email".to_owned(),
                key: key.to_owned(),
            },
            owner: owner.to_owned(),
            act: ReservationAct::Claim {
                hold_for: hold_for.map(Duration::from_secs),
            },
            id: Uuid::nil(),
        }
    }

    #[test]
    fn what_can_never_be_held_is_refused_in_words() {
        let long = "x".repeat(ReservationKey::KEY_BYTES_MAX + 1);
        let refusals = [
            (claim("", "o", None), "the key is empty"),
            (claim(&long, "o", None), "the key has 1025 bytes"),
            (claim("k", "", None), "the owner is empty"),
            (claim("k", "o", Some(0)), "1 to 316224000 seconds"),
            (claim("k", "o", Some(u64::MAX)), "to hold it for good"),
        ];
        for (request, said) in refusals {
            let refused = request.check().expect_err(said).to_string();
            assert!(refused.contains(said), "{refused}");
        }
        for sound in [
            claim("a@b.example", "o", None),
            claim(&long[1..], "o", Some(1)),
            claim(
                "\u{0}/ü-$",
                "o",
                Some(ReservationRequest::HOLD_MAX.as_secs()),
            ),
        ] {
            assert_eq!(sound.check(), Ok(()));
        }
    }
}

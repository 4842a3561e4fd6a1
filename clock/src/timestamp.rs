//! Hybrid logical time as it is stored.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A hybrid logical clock reading: NTP64, seconds since 1970 in the upper 32 bits and their
/// fraction in the lower 32, of which `uhlc` uses the lowest four as a counter.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Before every stamp that was ever given out.
    pub const ZERO: Self = Self(0);

    /// The timestamp of `since_epoch` after 1970-01-01T00:00:00Z, counter bits clear.
    pub fn from_unix(since_epoch: Duration) -> Self {
        let fraction = (u64::from(since_epoch.subsec_nanos()) << 32) / 1_000_000_000;
        Self((since_epoch.as_secs() << 32) | fraction)
    }

    /// The wall-clock part: time since 1970, to the nanosecond.
    pub fn since_unix(self) -> Duration {
        let nanos = ((self.0 & 0xffff_ffff) * 1_000_000_000) >> 32;
        // The product is below 10^9 · 2^32, so the shifted value is below 10^9.
        Duration::new(self.0 >> 32, u32::try_from(nanos).unwrap_or(0))
    }

    /// This timestamp moved forward by `by`, saturating.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(Self::from_unix(by).0))
    }

    /// How far `self` lies after `earlier`; zero when it does not.
    pub fn after(self, earlier: Self) -> Duration {
        Self(self.0.saturating_sub(earlier.0)).since_unix()
    }

    /// Signed distance `self − other` in nanoseconds, saturating.
    pub fn signed_nanos_from(self, other: Self) -> i64 {
        let (distance, sign) = if self >= other {
            (self.after(other), 1)
        } else {
            (other.after(self), -1)
        };
        i64::try_from(distance.as_nanos()).map_or(i64::MAX * sign, |nanos| nanos * sign)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_time_survives_the_round_trip_to_the_nanosecond_below() {
        let at = Duration::new(1_700_000_000, 123_456_789);
        let back = Timestamp::from_unix(at).since_unix();
        assert!(
            at - back < Duration::from_nanos(2),
            "{at:?} came back as {back:?}"
        );
    }

    #[test]
    fn distances_have_a_sign() {
        let a = Timestamp::from_unix(Duration::from_secs(10));
        let b = a.plus(Duration::from_millis(1500));
        assert_eq!(b.signed_nanos_from(a), 1_500_000_000);
        assert_eq!(a.signed_nanos_from(b), -1_500_000_000);
        assert_eq!(a.after(b), Duration::ZERO);
    }
}

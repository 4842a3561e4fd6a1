//! Whether this node's wall clock can be trusted, judged by its peers' clocks.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{RegionId, Timestamp};

/// One exchange of clock readings with a peer, all of them unaltered wall-clock readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSample {
    /// Ours when we asked.
    pub asked: Timestamp,
    /// The peer's when it received the question.
    pub peer_received: Timestamp,
    /// The peer's when it answered.
    pub peer_answered: Timestamp,
    /// Ours when the answer came.
    pub answered: Timestamp,
}

impl ClockSample {
    /// How far the peer's clock is ahead of ours, in nanoseconds, and by how much that may be
    /// wrong: half the round trip (the estimate of NTP, RFC 5905 §8).
    fn offset_nanos(&self) -> (i64, i64) {
        let there = i128::from(self.peer_received.signed_nanos_from(self.asked));
        let back = i128::from(self.peer_answered.signed_nanos_from(self.answered));
        let round_trip = there - back;
        let clamp = |nanos: i128| i64::try_from(nanos).unwrap_or(i64::MAX);
        (clamp((there + back) / 2), clamp((round_trip / 2).max(0)))
    }
}

/// What the guard makes of all peers together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkewVerdict {
    /// Fewer than half of the peers disagree with us.
    Trusted,
    /// Half or more of the peers say that we are off; stamping must stop.
    Skewed {
        /// Who disagrees and by how much, for logs and error messages.
        reason: String,
    },
}

/// Compares this node's wall clock with each connected peer's.
///
/// Holds no clock: it is told samples. A peer that is not connected has no say.
#[derive(Debug)]
pub struct SkewGuard {
    allowed: Duration,
    offsets: BTreeMap<RegionId, (i64, i64)>,
}

impl SkewGuard {
    /// A guard that allows 80 % of `max_offset`, so that a node stops before its peers would
    /// refuse to merge its stamps.
    pub fn new(max_offset: Duration) -> Self {
        Self {
            allowed: Self::allowed_of(max_offset),
            offsets: BTreeMap::new(),
        }
    }

    /// How far a clock may be off before its node stops stamping.
    pub fn allowed_of(max_offset: Duration) -> Duration {
        max_offset * 4 / 5
    }

    /// Takes in a peer's latest sample.
    pub fn observe(&mut self, peer: RegionId, sample: ClockSample) {
        self.offsets.insert(peer, sample.offset_nanos());
    }

    /// Forgets a peer that is no longer connected.
    pub fn forget(&mut self, peer: RegionId) {
        self.offsets.remove(&peer);
    }

    /// How far `peer`'s clock is ahead of ours, in nanoseconds, as last sampled.
    pub fn offset_nanos(&self, peer: RegionId) -> Option<i64> {
        self.offsets.get(&peer).map(|(offset, _)| *offset)
    }

    /// Whether this node may stamp.
    pub fn verdict(&self) -> SkewVerdict {
        let allowed = i64::try_from(self.allowed.as_nanos()).unwrap_or(i64::MAX);
        // Off only if it is off even when the round trip was as lopsided as it can be.
        let off: Vec<_> = self
            .offsets
            .iter()
            .filter(|(_, (offset, error))| offset.saturating_abs().saturating_sub(*error) > allowed)
            .map(|(peer, (offset, _))| format!("region {peer} by {} ms", -offset / 1_000_000))
            .collect();
        if off.is_empty() || off.len() * 2 < self.offsets.len() {
            return SkewVerdict::Trusted;
        }
        SkewVerdict::Skewed {
            reason: format!(
                "it is off against {} of {} peers ({}), more than {} ms",
                off.len(),
                self.offsets.len(),
                off.join(", "),
                self.allowed.as_millis()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(peer_ahead_ms: i64, one_way_ms: u64) -> ClockSample {
        let asked = Timestamp::from_unix(Duration::from_secs(1_700_000_000));
        let peer =
            |at: Timestamp| Timestamp(at.0.saturating_add_signed((peer_ahead_ms << 32) / 1000));
        let arrived = asked.plus(Duration::from_millis(one_way_ms));
        let back = arrived.plus(Duration::from_millis(one_way_ms));
        ClockSample {
            asked,
            peer_received: peer(arrived),
            peer_answered: peer(arrived),
            answered: back,
        }
    }

    fn guard() -> SkewGuard {
        SkewGuard::new(Duration::from_millis(500))
    }

    #[test]
    fn one_peer_of_three_that_disagrees_is_the_one_that_is_off() {
        let mut guard = guard();
        guard.observe(RegionId(1), sample(10_000, 20));
        guard.observe(RegionId(2), sample(3, 20));
        guard.observe(RegionId(3), sample(-3, 20));
        assert_eq!(guard.verdict(), SkewVerdict::Trusted);
    }

    #[test]
    fn half_of_the_peers_are_enough_to_stop_and_recovery_is_by_itself() {
        let mut guard = guard();
        guard.observe(RegionId(1), sample(450, 1));
        guard.observe(RegionId(2), sample(0, 1));
        assert!(matches!(guard.verdict(), SkewVerdict::Skewed { .. }));
        guard.observe(RegionId(1), sample(100, 1));
        assert_eq!(guard.verdict(), SkewVerdict::Trusted);
    }

    #[test]
    fn a_long_round_trip_gives_the_benefit_of_the_doubt() {
        let mut guard = guard();
        guard.observe(RegionId(1), sample(450, 200));
        assert_eq!(guard.verdict(), SkewVerdict::Trusted);
    }

    #[test]
    fn a_peer_that_left_has_no_say() {
        let mut guard = guard();
        guard.observe(RegionId(1), sample(10_000, 1));
        guard.forget(RegionId(1));
        assert_eq!(guard.verdict(), SkewVerdict::Trusted);
    }
}

//! How long to wait before asking again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(1);

/// Where the jitter comes from: SplitMix64 (Steele, Lea and Flood, 2014) over the seed we were
/// given, so that a simulated client waits the same way each run.
pub(crate) struct Jitter(Mutex<u64>);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    /// Something between half of `longest` and all of it.
    fn between_half_and(&self, longest: Duration) -> Duration {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // A thousand and one steps are enough to keep clients apart.
        let step = u32::try_from(mixed % 1001).unwrap_or(0);
        longest / 2 + longest / 2 * step / 1000
    }
}

/// Waits that double, from 20 ms to 1 s, each cut by up to half so that clients that failed
/// together do not come back together.
#[derive(Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait after one failure more.
    pub(crate) fn next(&mut self, jitter: &Jitter) -> Duration {
        let longest = FIRST * 2_u32.saturating_pow(self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        jitter.between_half_and(longest.min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(seed: u64) -> Vec<Duration> {
        let jitter = Jitter::new(seed);
        let mut backoff = Backoff::default();
        (0..12).map(|_| backoff.next(&jitter)).collect()
    }

    #[test]
    fn waits_grow_to_a_second_and_no_further() {
        let waits = waits(7);
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST, "{waits:?}");
        for wait in &waits[6..] {
            assert!(*wait >= LONGEST / 2 && *wait <= LONGEST, "{waits:?}");
        }
    }

    #[test]
    fn a_seed_waits_the_same_way_each_time_and_another_differently() {
        assert_eq!(waits(7), waits(7));
        assert_ne!(waits(7), waits(8));
    }
}

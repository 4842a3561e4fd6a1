//! How long to wait before trying again.

use std::time::Duration;

/// A small seeded source of jitter (SplitMix64), so that peers which failed together do not come
/// back together, and a seed replays exactly. Not for secrets.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// A source that will always give the same numbers for this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Between three quarters of `around` and five quarters of it.
    pub fn spread(&mut self, around: Duration) -> Duration {
        let thousandths = 750 + u32::try_from(self.next_u64() % 501).unwrap_or(0);
        around / 1000 * thousandths
    }
}

/// Waits that double from `first` to `most`.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// The first wait is `first`, none is longer than `most`, before jitter.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            failures: 0,
        }
    }

    /// How long to wait after one more failure.
    pub fn next_wait(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        doubled.min(self.most)
    }

    /// It worked: begin again from the first wait.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most_and_begin_again_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        let waits: Vec<_> = (0..5).map(|_| backoff.next_wait().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 500, 500]);
        backoff.reset();
        assert_eq!(backoff.next_wait().as_millis(), 100);
    }

    #[test]
    fn a_backoff_that_failed_for_years_still_waits_the_most() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(9));
        for _ in 0..1000 {
            backoff.next_wait();
        }
        assert_eq!(backoff.next_wait(), Duration::from_secs(9));
    }

    #[test]
    fn jitter_stays_within_a_quarter_and_replays_by_seed() {
        let draw = |seed| {
            let mut jitter = Jitter::new(seed);
            (0..200)
                .map(|_| jitter.spread(Duration::from_secs(1)).as_millis())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().all(|wait| (750..=1250).contains(wait)));
    }
}

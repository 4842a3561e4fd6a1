//! Wall clocks that are wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use meridian_clock::{PhysicalClock, Timestamp};

/// When every run begins: 2026-01-01T00:00:00Z.
pub const EPOCH: Duration = Duration::from_secs(1_767_225_600);

/// One machine's wall clock: true time, plus what is wrong with it. Clones are the same clock.
#[derive(Clone, Default)]
pub struct SkewedClock(Arc<Inner>);

#[derive(Default)]
struct Inner {
    skew_ms: AtomicI64,
    drift_ppm: AtomicI64,
    jump_ms: AtomicI64,
    seen_ns: AtomicU64,
}

/// True time since the start of the run; zero outside of it.
pub fn elapsed() -> Duration {
    if turmoil::in_simulation() {
        turmoil::sim_elapsed().unwrap_or_default()
    } else {
        Duration::ZERO
    }
}

impl SkewedClock {
    /// A clock that is `skew_ms` ahead and runs `drift_ppm` fast.
    pub fn new(skew_ms: i64, drift_ppm: i64) -> Self {
        let clock = Self::default();
        clock.0.skew_ms.store(skew_ms, Ordering::Relaxed);
        clock.0.drift_ppm.store(drift_ppm, Ordering::Relaxed);
        clock
    }

    /// Sets how far off it is beside its skew.
    pub fn jump(&self, by_ms: i64) {
        self.0.jump_ms.store(by_ms, Ordering::Relaxed);
    }
}

impl PhysicalClock for SkewedClock {
    fn now(&self) -> Timestamp {
        // Whoever asks from outside of the run is told what was last read in it.
        let nanos = u64::try_from(elapsed().as_nanos()).unwrap_or(u64::MAX);
        let nanos = self
            .0
            .seen_ns
            .fetch_max(nanos, Ordering::Relaxed)
            .max(nanos);
        let elapsed = Duration::from_nanos(nanos);
        let drift_ppm = self.0.drift_ppm.load(Ordering::Relaxed);
        let drift_ns = i64::try_from(elapsed.as_micros()).unwrap_or(0) * drift_ppm / 1000;
        let off_ms =
            self.0.skew_ms.load(Ordering::Relaxed) + self.0.jump_ms.load(Ordering::Relaxed);
        let off_ns = off_ms * 1_000_000 + drift_ns;
        let now = EPOCH + elapsed;
        let magnitude = Duration::from_nanos(off_ns.unsigned_abs());
        Timestamp::from_unix(if off_ns < 0 {
            now.saturating_sub(magnitude)
        } else {
            now + magnitude
        })
    }
}

//! Clocks that are wrong.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_clock::{PhysicalClock, Timestamp};
use meridian_node::seams::SteadyClock;
use tokio::time::Instant;

/// When every run begins: 2026-01-01T00:00:00Z.
pub const EPOCH: Duration = Duration::from_secs(1_767_225_600);

/// One machine's wall clock: true time, plus what is wrong with it. Clones are the same clock.
#[derive(Clone, Default)]
pub struct SkewedClock(Arc<Inner>);

#[derive(Default)]
struct Inner {
    skew_ms: AtomicI64,
    jump_ms: AtomicI64,
    seen_ns: AtomicU64,
    drifting: Mutex<Drift>,
}

// How a clock drifts since when, and how far off it was by then.
#[derive(Default)]
struct Drift {
    ppm: i64,
    since: Duration,
    off_ns: i64,
    frozen_at: Option<Duration>,
}

impl Drift {
    fn off_ns(&self, now: Duration) -> i64 {
        let frozen = self.frozen_at.map(|at| nanos(now.saturating_sub(at)));
        let drifted = nanos(now.saturating_sub(self.since)) / 1_000 * self.ppm / 1_000;
        self.off_ns + drifted - frozen.unwrap_or(0)
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
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
        clock.drifting().ppm = drift_ppm;
        clock
    }

    fn drifting(&self) -> MutexGuard<'_, Drift> {
        self.0
            .drifting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets it run `ppm` fast from the virtual time `now` on, without a jump.
    pub fn drift(&self, now: Duration, ppm: i64) {
        let mut drift = self.drifting();
        drift.off_ns = drift.off_ns(now);
        drift.since = now;
        drift.ppm = ppm;
        if drift.frozen_at.is_some() {
            drift.frozen_at = Some(now);
        }
    }

    /// Stops it at the virtual time `now`.
    pub fn freeze(&self, now: Duration) {
        let mut drift = self.drifting();
        drift.frozen_at = drift.frozen_at.or(Some(now));
    }

    /// Sets it right: it runs again, as fast as true time, and is off by its skew only.
    pub fn repair(&self, now: Duration) {
        *self.drifting() = Drift {
            since: now,
            ..Drift::default()
        };
    }

    /// Sets how far off it is beside its skew.
    pub fn jump(&self, by_ms: i64) {
        self.0.jump_ms.store(by_ms, Ordering::Relaxed);
    }
}

/// What a machine measures leases with: virtual time since the machine was started, a little faster or slower.
pub struct PacedClock {
    began: Instant,
    ppm: i64,
}

impl PacedClock {
    /// A clock that runs `ppm` millionths faster than true time from now on.
    pub fn new(ppm: i64) -> Self {
        Self {
            began: Instant::now(),
            ppm,
        }
    }
}

impl SteadyClock for PacedClock {
    fn now(&self) -> Instant {
        let true_ns = nanos(self.began.elapsed());
        let paced_ns = true_ns + true_ns / 1_000 * self.ppm / 1_000;
        self.began + Duration::from_nanos(paced_ns.unsigned_abs())
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
        let drift_ns = self.drifting().off_ns(elapsed);
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

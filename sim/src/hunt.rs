//! Many seeds, one after the other, on a few threads.

use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::plan::Plan;
use crate::world::trace::Keep;
use crate::world::{self, Ran};

/// Runs one plan on a thread of its own, so that nothing of an earlier run is left on it.
///
/// # Panics
/// When the thread cannot be made.
pub fn run_alone(plan: &Plan, keep: Keep) -> Ran {
    thread::scope(|scope| {
        let run = thread::Builder::new().spawn_scoped(scope, || world::run(plan, keep));
        run.expect("a thread")
            .join()
            .expect("panics are caught inside")
    })
}

/// Runs `seeds` seeds from `from` on `jobs` threads; `each` is told of every one, in any order, and
/// ends the hunt by answering false.
pub fn hunt(from: u64, seeds: u64, jobs: usize, each: impl Fn(&Plan, &Ran) -> bool + Sync) {
    hunt_keeping(Keep::default(), from, seeds, jobs, each);
}

/// As [`hunt`], keeping more of each run.
pub fn hunt_keeping(
    keep: Keep,
    from: u64,
    seeds: u64,
    jobs: usize,
    each: impl Fn(&Plan, &Ran) -> bool + Sync,
) {
    let next = AtomicU64::new(from);
    let end = from.saturating_add(seeds);
    let one_at_a_time = Mutex::new(());
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let plan = Plan::draw(seed);
                    let ran = run_alone(&plan, keep);
                    let _turn = one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
                    if !each(&plan, &ran) {
                        next.store(end, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// Keeps panics from being printed: they are part of a run's report.
pub fn silence_panics() {
    panic::set_hook(Box::new(|_| {}));
}

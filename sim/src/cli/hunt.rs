//! `meridian-sim hunt`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use clap::Args;
use meridian_sim::hunt::{hunt, run_alone, silence_panics};

use super::exit;

/// Runs many seeds, and stops at the first that breaks something.
#[derive(Args)]
pub(crate) struct Hunt {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// On how many threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Goes on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Runs every seed twice, and fails if the two differ.
    #[arg(long)]
    twice: bool,
    /// Succeeds only if some seed fails: for builds with a planted bug.
    #[arg(long)]
    expect_red: bool,
}

impl Hunt {
    pub(crate) fn carry_out(self) -> anyhow::Result<ExitCode> {
        silence_panics();
        let (done, red) = (AtomicU64::new(0), AtomicBool::new(false));
        let seconds = Mutex::new(0.0);
        let rare = Mutex::new(BTreeMap::<String, u64>::new());
        hunt(self.from, self.seeds, self.jobs, |plan, ran| {
            let count = done.fetch_add(1, Ordering::Relaxed) + 1;
            *lock(&seconds) += ran.report.virtual_s;
            for state in ran.report.rare.keys() {
                *lock(&rare).entry(state.clone()).or_default() += 1;
            }
            let mut broken = ran.report.broken.clone();
            if self.twice {
                let again = run_alone(plan, false);
                if again.report.trace != ran.report.trace {
                    broken.push(format!(
                        "the same plan ran differently: {} and {} after {} and {} steps",
                        ran.report.trace, again.report.trace, ran.report.steps, again.report.steps
                    ));
                }
            }
            if count.is_multiple_of(20) {
                eprintln!("{count} seeds, {:.0} virtual seconds", *lock(&seconds));
            }
            if broken.is_empty() {
                return true;
            }
            red.store(true, Ordering::Relaxed);
            println!(
                "seed {} is red; meridian-sim run --seed {}",
                plan.seed, plan.seed
            );
            for what in broken {
                println!("    {}", what.chars().take(600).collect::<String>());
            }
            self.keep_going
        });
        println!(
            "{} seeds, {:.0} virtual seconds",
            done.load(Ordering::Relaxed),
            *lock(&seconds)
        );
        for (state, count) in &*lock(&rare) {
            println!("    {count:>6} runs: {state}");
        }
        Ok(exit(red.load(Ordering::Relaxed) == self.expect_red))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

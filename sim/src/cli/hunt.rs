//! `meridian-sim hunt`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use meridian_sim::hunt::{hunt, silence_panics};

use super::progress::Progress;
use super::{exit, lock};

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
    /// Succeeds only if some seed fails: for builds with a planted bug.
    #[arg(long)]
    expect_red: bool,
}

impl Hunt {
    pub(crate) fn carry_out(self) -> anyhow::Result<ExitCode> {
        silence_panics();
        let progress = Progress::new("seeds", self.seeds);
        let red = AtomicBool::new(false);
        let seconds = Mutex::new(0.0);
        let rare = Mutex::new(BTreeMap::<String, u64>::new());
        hunt(self.from, self.seeds, self.jobs, |plan, ran| {
            progress.step();
            *lock(&seconds) += ran.report.virtual_s;
            for state in ran.report.rare.keys() {
                *lock(&rare).entry(state.clone()).or_default() += 1;
            }
            if ran.report.ok {
                return true;
            }
            red.store(true, Ordering::Relaxed);
            progress.say(&format!("seed {} is red", plan.seed));
            println!("meridian-sim run --seed {}", plan.seed);
            for what in &ran.report.broken {
                println!("    {}", what.chars().take(600).collect::<String>());
            }
            self.keep_going
        });
        progress.finish();
        println!(
            "{} seeds, {}, {:.0} virtual seconds",
            progress.done(),
            progress.speed(),
            *lock(&seconds)
        );
        for (state, count) in &*lock(&rare) {
            println!("    {count:>6} runs: {state}");
        }
        Ok(exit(red.load(Ordering::Relaxed) == self.expect_red))
    }
}

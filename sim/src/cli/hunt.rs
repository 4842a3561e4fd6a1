//! `meridian-sim hunt`.

use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use meridian_points::Bug;
use meridian_sim::hunt::{hunt, silence_panics};
use meridian_sim::plan::Plan;
use meridian_sim::rare;
use meridian_sim::world::{Ran, RunOptions};

use super::about::About;
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
    #[command(flatten)]
    about: About,
    /// Goes on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// A bug that is planted in every run; `meridian-sim mutations` lists them.
    #[arg(long, value_parser = super::mutations::parse)]
    mutate: Option<Bug>,
    /// Succeeds only if some seed fails.
    #[arg(long)]
    expect_red: bool,
    /// Fails if a state that must be reached was not.
    #[arg(long)]
    require_rare: bool,
}

impl Hunt {
    pub(crate) fn carry_out(self) -> anyhow::Result<ExitCode> {
        silence_panics();
        let progress = Progress::new("seeds", self.seeds);
        let red = AtomicBool::new(false);
        let seconds = Mutex::new(0.0);
        let events = Mutex::new(0);
        let printed = Mutex::new(Ok(()));
        let rare_seen = Mutex::new(BTreeMap::<String, u64>::new());
        let options = RunOptions {
            bug: self.mutate,
            ..RunOptions::default()
        };
        let seeds = self.from..self.from.saturating_add(self.seeds);
        let kind = self.about.option();
        hunt(seeds, self.about.draw(), options, self.jobs, |plan, ran| {
            progress.step();
            *lock(&events) += ran.report.events;
            *lock(&seconds) += ran.report.virtual_s;
            for state in ran.report.rare.keys() {
                *lock(&rare_seen).entry(state.clone()).or_default() += 1;
            }
            if ran.report.ok {
                return true;
            }
            red.store(true, Ordering::Relaxed);
            progress.say(&format!("seed {} is red", plan.seed));
            let told = tell_red(plan, ran, kind);
            let failed = told.is_err();
            if failed {
                *lock(&printed) = told;
            }
            self.keep_going && !failed
        });
        progress.finish();
        std::mem::replace(&mut *lock(&printed), Ok(()))?;
        say!(
            "{} seeds, {}, {:.0} virtual seconds, {} events",
            progress.done(),
            progress.speed(),
            *lock(&seconds),
            *lock(&events)
        )?;
        for (state, count) in &*lock(&rare_seen) {
            say!("    {count:>6} runs: {state}")?;
        }
        let reached = lock(&rare_seen).keys().cloned().collect();
        let never = rare::never_reached(&reached);
        for (state, required) in &never {
            let word = if *required { "REQUIRED, " } else { "" };
            say!("     never reached: {word}{state}")?;
        }
        let lacks_rare = self.require_rare && never.iter().any(|(_, required)| *required);
        let as_expected = red.load(Ordering::Relaxed) == self.expect_red;
        Ok(exit(as_expected && !lacks_rare))
    }
}

fn tell_red(plan: &Plan, ran: &Ran, kind: &str) -> io::Result<()> {
    say!("meridian-sim run --seed {}{kind}", plan.seed)?;
    for what in &ran.report.broken {
        say!("    {}", what.chars().take(600).collect::<String>())?;
    }
    Ok(())
}

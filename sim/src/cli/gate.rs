//! `meridian-sim gate`.

use std::process::ExitCode;
use std::sync::Mutex;

use clap::Args;
use meridian_points::Bug;
use meridian_sim::gate::{Trial, can_plant, judge};
use meridian_sim::hunt::silence_panics;

use super::{exit, lock};

/// Plants every bug, one after the other, and runs plans until one is red; fails if a bug stays
/// green.
#[derive(Args)]
pub(crate) struct Gate {
    /// Only this bug, or these.
    #[arg(long, value_parser = super::mutations::parse)]
    mutate: Vec<Bug>,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many seeds are tried with each.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// On how many threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Tries each bug's kept plan and the scenarios first, which are quick and see nearly all bugs.
    #[arg(long)]
    scenarios: bool,
}

impl Gate {
    pub(crate) fn carry_out(self) -> anyhow::Result<ExitCode> {
        can_plant().map_err(anyhow::Error::msg)?;
        silence_panics();
        let trial = Trial {
            scenarios: self.scenarios,
            from: self.from,
            seeds: self.seeds,
        };
        let bugs = match self.mutate.is_empty() {
            true => Bug::ALL,
            false => &self.mutate,
        };
        say!("| bug | first red plan | plans run | seen by |\n|---|---|---|---|")?;
        let printed = Mutex::new(Ok(()));
        let verdicts = judge(bugs, trial, self.jobs, |verdict| {
            let plan = verdict.red.as_ref().map_or("none", |(plan, _)| plan);
            let row = say!(
                "| {} | {plan} | {} | {} |",
                verdict.bug.name(),
                verdict.tried,
                verdict.invariant()
            );
            if row.is_err() {
                *lock(&printed) = row;
            }
            if let Some(first) = verdict.red.as_ref().and_then(|(_, broken)| broken.first()) {
                note!("    {}", first.chars().take(300).collect::<String>());
            }
        });
        std::mem::replace(&mut *lock(&printed), Ok(()))?;
        let green = verdicts.iter().filter(|verdict| verdict.red.is_none());
        let green: Vec<_> = green.map(|verdict| verdict.bug.name()).collect();
        if !green.is_empty() {
            say!(
                "stayed green, so the checkers or the plans are too weak: {}",
                green.join(", ")
            )?;
        }
        Ok(exit(green.is_empty()))
    }
}

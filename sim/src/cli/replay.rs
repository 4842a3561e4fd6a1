//! `meridian-sim replay`.

use std::process::ExitCode;

use clap::Args;
use meridian_sim::hunt::{run_alone, silence_panics};
use meridian_sim::world::trace::Keep;
use meridian_sim::{kept, scenarios};

use super::exit;
use super::progress::Progress;

/// Runs every kept plan and every scenario: none of their bugs may come back.
#[derive(Args)]
pub(crate) struct Replay {}

impl Replay {
    pub(crate) fn carry_out(self) -> anyhow::Result<ExitCode> {
        silence_panics();
        let mut plans = Vec::new();
        for (name, plan) in kept::all()? {
            plans.push((format!("run --plan sim/plans/{name}.toml"), plan));
        }
        for (name, plan) in scenarios::all() {
            plans.push((format!("run --scenario {name}"), plan));
        }
        let progress = Progress::new("plans", plans.len() as u64);
        let mut ok = true;
        for (command, plan) in plans {
            let report = run_alone(&plan, Keep::default()).report;
            progress.step();
            if !report.ok {
                ok = false;
                say!("RED: meridian-sim {command}")?;
                for what in report.broken {
                    say!("    {}", what.chars().take(600).collect::<String>())?;
                }
            }
        }
        progress.finish();
        say!("{} plans, {}", progress.done(), progress.speed())?;
        Ok(exit(ok))
    }
}

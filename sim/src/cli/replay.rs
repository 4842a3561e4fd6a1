//! `meridian-sim replay`.

use std::process::ExitCode;
use std::sync::Mutex;

use clap::Args;
use meridian_sim::hunt::{hunt, silence_panics};
use meridian_sim::plan::Plan;
use meridian_sim::world::Ran;
use meridian_sim::world::trace::Keep;
use meridian_sim::{kept, scenarios};

use super::progress::Progress;
use super::{exit, lock};

/// Runs every kept plan and every scenario: none of their bugs may come back. What shows planted bugs shows nothing
/// without them.
#[derive(Args)]
pub(crate) struct Replay {
    /// On how many threads
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

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
        for (name, plan) in kept::planted()? {
            plans.push((format!("run --plan sim/plans/planted/{name}.toml"), plan));
        }
        let progress = Progress::new("plans", plans.len() as u64);
        let red = Mutex::new(Vec::new());
        let plan_at = |index: u64| plans[usize::try_from(index).unwrap_or(0)].1.clone();
        let each = |plan: &Plan, ran: &Ran| {
            progress.step();
            if !ran.report.ok {
                let which = plans.iter().find(|(_, it)| it == plan);
                let command = which.map_or("", |(command, _)| command);
                lock(&red).push((command, ran.report.broken.clone()));
            }
            true
        };
        hunt(
            0..plans.len() as u64,
            plan_at,
            Keep::default(),
            self.jobs,
            each,
        );
        let red = lock(&red);
        for (command, broken) in red.iter() {
            say!("RED: meridian-sim {command}")?;
            for what in broken {
                say!("    {}", what.chars().take(600).collect::<String>())?;
            }
        }
        progress.finish();
        say!("{} plans, {}", progress.done(), progress.speed())?;
        Ok(exit(red.is_empty()))
    }
}

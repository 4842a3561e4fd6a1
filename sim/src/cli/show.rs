//! `meridian-sim show`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use meridian_sim::hunt::{run_alone, silence_panics};
use meridian_sim::picture;
use meridian_sim::plan::Plan;
use meridian_sim::world::trace::Keep;

use super::{exit, read_plan, scenario_called, write_file};

/// Draws a run: what each region did, what was cut, what crashed, and what broke.
#[derive(Args)]
pub(crate) struct Show {
    /// A plan in a file.
    #[arg(required_unless_present_any = ["seed", "scenario"])]
    plan: Option<PathBuf>,
    /// A seed, in place of a plan.
    #[arg(long, conflicts_with = "plan")]
    seed: Option<u64>,
    /// A scenario by its name.
    #[arg(long, conflicts_with_all = ["plan", "seed"])]
    scenario: Option<String>,
    /// Where the page goes.
    #[arg(long, default_value = "run.html")]
    out: PathBuf,
}

impl Show {
    pub(crate) fn carry_out(self) -> anyhow::Result<ExitCode> {
        silence_panics();
        let plan = match (&self.plan, &self.scenario, self.seed) {
            (Some(path), ..) => read_plan(path)?,
            (None, Some(name), _) => scenario_called(name)?,
            (None, None, seed) => Plan::draw(seed.unwrap_or_default()),
        };
        let keep = Keep {
            lines: false,
            story: true,
        };
        let ran = run_alone(&plan, keep);
        write_file(&self.out, &picture::page(&plan, &ran))?;
        say!("{}", self.out.display())?;
        Ok(exit(true))
    }
}

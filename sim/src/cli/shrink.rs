//! `meridian-sim shrink`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use meridian_sim::hunt::{run_alone, silence_panics};
use meridian_sim::plan::Plan;
use meridian_sim::shrink::{invariant, shrink};
use meridian_sim::world::trace::Keep;

use super::progress::Progress;
use super::{exit, print, read_plan, write_file};

/// Finds the smallest plan that breaks the same invariant.
#[derive(Args)]
pub(crate) struct Shrink {
    /// A plan in a file.
    #[arg(required_unless_present = "seed", conflicts_with = "seed")]
    plan: Option<PathBuf>,
    /// A seed, in place of a plan.
    #[arg(long)]
    seed: Option<u64>,
    /// Where the smallest plan goes; printed if there is no such file.
    #[arg(long)]
    out: Option<PathBuf>,
    /// How many runs it may take.
    #[arg(long, default_value_t = 300)]
    runs: u64,
}

impl Shrink {
    pub(crate) fn carry_out(self) -> anyhow::Result<ExitCode> {
        silence_panics();
        let plan = match (&self.plan, self.seed) {
            (Some(path), _) => read_plan(path)?,
            (None, seed) => Plan::draw(seed.unwrap_or_default()),
        };
        let broken = |plan: &Plan| run_alone(plan, Keep::default()).report.broken;
        let first = broken(&plan);
        let Some(what) = first.first() else {
            note!("the plan is green: there is nothing to shrink");
            return Ok(exit(false));
        };
        let name = invariant(what).to_owned();
        note!("red: {}", what.chars().take(300).collect::<String>());
        let progress = Progress::new("runs", self.runs);
        let smallest = shrink(
            &plan,
            self.runs,
            |plan| {
                let broken = broken(plan);
                progress.step();
                broken.iter().any(|what| invariant(what) == name)
            },
            |step| progress.say(&format!("{name} is still red: {}", step.what)),
        );
        progress.finish();
        note!("{} runs, {}", progress.done(), progress.speed());
        let text = format!(
            "# {}\n{}",
            what.chars()
                .take(200)
                .collect::<String>()
                .replace('\n', " "),
            toml::to_string(&smallest)?
        );
        match self.out {
            None => print::print(format_args!("{text}"))?,
            Some(path) => {
                write_file(&path, &text)?;
                say!("meridian-sim run --plan {}", path.display())?;
            }
        }
        Ok(exit(true))
    }
}

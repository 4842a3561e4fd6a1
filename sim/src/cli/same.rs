//! `meridian-sim same`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;

use anyhow::Context;
use clap::Args;
use meridian_sim::hunt::{hunt, run_alone, silence_panics};
use meridian_sim::plan::Plan;
use meridian_sim::same::parting;
use meridian_sim::world::trace::Keep;

use super::progress::Progress;
use super::{exit, lock};

/// Runs every seed twice and demands that all that happened is the same.
#[derive(Args)]
pub(crate) struct Same {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// On how many threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// A `meridian-sim` that does the second run, in a process of its own; it may be this one, or
    /// of another profile.
    #[arg(long, value_name = "BINARY")]
    against: Option<PathBuf>,
}

const LINES: Keep = Keep {
    lines: true,
    story: false,
};

/// A run's hash and its steps.
struct Traced {
    hash: String,
    lines: Vec<String>,
}

impl Same {
    pub(crate) fn carry_out(self) -> anyhow::Result<ExitCode> {
        silence_panics();
        let progress = Progress::new("seeds", self.seeds);
        let failure = Mutex::new(None);
        let steps = Mutex::new(0);
        let seeds = self.from..self.from.saturating_add(self.seeds);
        hunt(seeds, Plan::draw, LINES, self.jobs, |plan, ran| {
            let again = match &self.against {
                None => Ok(traced_here(plan)),
                Some(binary) => traced_there(binary, plan.seed),
            };
            progress.step();
            *lock(&steps) += ran.report.steps;
            let problem = match again {
                Ok(again) if again.hash == ran.report.trace => return true,
                Ok(again) => {
                    let place = parting(&ran.lines, &again.lines).map(|it| it.to_string());
                    let place = place.unwrap_or_else(|| "no step differs, the hashes do\n".into());
                    format!(
                        "seed {} ran in two ways, {} and {}: {place}",
                        plan.seed, ran.report.trace, again.hash
                    )
                }
                Err(error) => format!("seed {}: {error:#}", plan.seed),
            };
            lock(&failure).get_or_insert(problem);
            false
        });
        progress.finish();
        if let Some(problem) = &*lock(&failure) {
            say!("{problem}")?;
            return Ok(exit(false));
        }
        say!(
            "{} seeds ran the same way twice, to the last of {} steps; {}",
            progress.done(),
            *lock(&steps),
            progress.speed()
        )?;
        Ok(exit(true))
    }
}

fn traced_here(plan: &Plan) -> Traced {
    let ran = run_alone(plan, LINES);
    Traced {
        hash: ran.report.trace,
        lines: ran.lines,
    }
}

// What `run --trace --json` prints: the steps, and the report as the last line.
fn traced_there(binary: &Path, seed: u64) -> anyhow::Result<Traced> {
    let output = Command::new(binary)
        .args(["run", "--trace", "--json", "--seed", &seed.to_string()])
        .output()
        .with_context(|| format!("run {}", binary.display()))?;
    let text = String::from_utf8(output.stdout).context("what it printed is not text")?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let report = lines.pop().with_context(|| {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        format!("{} printed nothing: {why}", binary.display())
    })?;
    let report: serde_json::Value = serde_json::from_str(&report).context("the last line")?;
    let hash = report["trace"]
        .as_str()
        .context("a report without a hash")?;
    Ok(Traced {
        hash: hash.to_owned(),
        lines,
    })
}

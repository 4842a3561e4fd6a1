//! `meridian-sim run`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use meridian_points::Bug;
use meridian_sim::hunt::run_alone;
use meridian_sim::world::trace::Keep;
use meridian_sim::world::{Ran, RunOptions};

use super::about::About;
use super::{exit, read_plan, scenario_called};

/// Runs one seed or plan.
#[derive(Args)]
pub(crate) struct Run {
    /// The seed that the plan is drawn from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    about: About,
    /// A plan in a file, in place of a seed.
    #[arg(long, conflicts_with = "about")]
    plan: Option<PathBuf>,
    /// A scenario by its name, in place of a seed.
    #[arg(long, conflicts_with_all = ["plan", "about"])]
    scenario: Option<String>,
    /// A bug that is planted; `meridian-sim mutations` lists them.
    #[arg(long, value_parser = super::mutations::parse)]
    mutate: Option<Bug>,
    /// Prints every step.
    #[arg(long)]
    trace: bool,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
    /// Prints what the nodes log, filtered as with RUST_LOG.
    #[arg(long)]
    log: Option<String>,
}

impl Run {
    pub(crate) fn carry_out(self) -> anyhow::Result<ExitCode> {
        if let Some(log) = self.log {
            tracing_subscriber::fmt()
                .with_env_filter(log)
                .without_time()
                .with_ansi(false)
                .log_internal_errors(false)
                .init();
        }
        let plan = match (self.plan, self.scenario) {
            (Some(path), _) => read_plan(&path)?,
            (None, Some(name)) => scenario_called(&name)?,
            (None, None) => self.about.draw()(self.seed),
        };
        let ran = run_alone(
            &plan,
            RunOptions {
                keep: Keep {
                    lines: self.trace,
                    story: false,
                },
                bug: self.mutate,
            },
        );
        for line in &ran.lines {
            say!("{line}")?;
        }
        print_report(&ran, self.json)?;
        Ok(exit(ran.report.ok))
    }
}

fn print_report(ran: &Ran, json: bool) -> anyhow::Result<()> {
    let report = &ran.report;
    if json {
        say!("{}", serde_json::to_string(report)?)?;
        return Ok(());
    }
    say!(
        "seed {} {}: {} events, {:.1} virtual seconds, {} steps, trace {}",
        report.seed,
        if report.ok { "green" } else { "RED" },
        report.events,
        report.virtual_s,
        report.steps,
        report.trace
    )?;
    say!("    answers: {:?}", report.answers)?;
    say!(
        "    settled after the acknowledgement: stable p50 {} ms, p99 {} ms; final p50 {} ms, p99 {} ms",
        report.stable_lag.p50_ms,
        report.stable_lag.p99_ms,
        report.final_lag.p50_ms,
        report.final_lag.p99_ms
    )?;
    say!("    faults: {:?}", report.faults)?;
    say!("    rare: {:?}", report.rare)?;
    for what in &report.broken {
        say!("    broken: {what}")?;
    }
    Ok(())
}

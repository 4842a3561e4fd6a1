//! `meridian-sim`: runs plans, hunts for seeds that break an invariant.

#![allow(clippy::print_stdout, reason = "a report is printed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Context;
use clap::{Parser, Subcommand};
use meridian_sim::hunt::{hunt, run_alone, silence_panics};
use meridian_sim::plan::Plan;
use meridian_sim::scenarios;
use meridian_sim::world::Ran;

/// Breaks federations of real nodes in a simulated world, the same way each time.
#[derive(Parser)]
#[command(name = "meridian-sim")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one seed or plan.
    Run {
        /// The seed that the plan is drawn from.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// A plan in a file, in place of a seed.
        #[arg(long)]
        plan: Option<PathBuf>,
        /// A scenario by its name, in place of a seed.
        #[arg(long, conflicts_with = "plan")]
        scenario: Option<String>,
        /// Prints every step.
        #[arg(long)]
        trace: bool,
        /// Prints the report as JSON.
        #[arg(long)]
        json: bool,
        /// Prints what the nodes log, filtered as with RUST_LOG.
        #[arg(long)]
        log: Option<String>,
    },
    /// Prints the plan of a seed, to be saved, edited and run.
    Plan {
        /// The seed.
        #[arg(long)]
        seed: u64,
    },
    /// Runs many seeds, and stops at the first that breaks something.
    Hunt {
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
    },
}

fn main() -> anyhow::Result<ExitCode> {
    if !cfg!(tokio_unstable) {
        eprintln!("built without --cfg tokio_unstable: runs may differ; build in the folder `sim`");
    }
    match Arguments::parse().command {
        Command::Run {
            seed,
            plan,
            scenario,
            trace,
            json,
            log,
        } => {
            if let Some(log) = log {
                tracing_subscriber::fmt()
                    .with_env_filter(log)
                    .without_time()
                    .with_ansi(false)
                    .init();
            }
            let plan = match (plan, scenario) {
                (Some(path), _) => read_plan(&path)?,
                (None, Some(name)) => scenario_called(&name)?,
                (None, None) => Plan::draw(seed),
            };
            let ran = run_alone(&plan, trace);
            for line in &ran.lines {
                println!("{line}");
            }
            print_report(&ran, json)?;
            Ok(exit(ran.report.ok))
        }
        Command::Plan { seed } => {
            print!("{}", toml::to_string(&Plan::draw(seed))?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Hunt {
            from,
            seeds,
            jobs,
            keep_going,
            twice,
            expect_red,
        } => {
            silence_panics();
            let (done, red) = (AtomicU64::new(0), AtomicBool::new(false));
            let seconds = Mutex::new(0.0);
            let rare = Mutex::new(BTreeMap::<String, u64>::new());
            hunt(from, seeds, jobs, |plan, ran| {
                let count = done.fetch_add(1, Ordering::Relaxed) + 1;
                *lock(&seconds) += ran.report.virtual_s;
                for state in ran.report.rare.keys() {
                    *lock(&rare).entry(state.clone()).or_default() += 1;
                }
                let mut broken = ran.report.broken.clone();
                if twice {
                    let again = run_alone(plan, false);
                    if again.report.trace != ran.report.trace {
                        broken.push(format!(
                            "the same plan ran differently: {} and {} after {} and {} steps",
                            ran.report.trace,
                            again.report.trace,
                            ran.report.steps,
                            again.report.steps
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
                keep_going
            });
            println!(
                "{} seeds, {:.0} virtual seconds",
                done.load(Ordering::Relaxed),
                *lock(&seconds)
            );
            for (state, count) in &*lock(&rare) {
                println!("    {count:>6} runs: {state}");
            }
            Ok(exit(red.load(Ordering::Relaxed) == expect_red))
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn exit(ok: bool) -> ExitCode {
    if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "plans are files of the one who runs them"
)]
fn read_plan(path: &Path) -> anyhow::Result<Plan> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not a plan", path.display()))
}

fn scenario_called(name: &str) -> anyhow::Result<Plan> {
    let mut all = scenarios::all();
    let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
    match all.iter().position(|(it, _)| *it == name) {
        Some(index) => Ok(all.swap_remove(index).1),
        None => anyhow::bail!("no scenario {name}; there are {}", names.join(", ")),
    }
}

fn print_report(ran: &Ran, json: bool) -> anyhow::Result<()> {
    let report = &ran.report;
    if json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    println!(
        "seed {} {}: {} events, {:.1} virtual seconds, {} steps, trace {}",
        report.seed,
        if report.ok { "green" } else { "RED" },
        report.events,
        report.virtual_s,
        report.steps,
        report.trace
    );
    println!("    answers: {:?}", report.answers);
    println!("    faults: {:?}", report.faults);
    println!("    rare: {:?}", report.rare);
    for what in &report.broken {
        println!("    broken: {what}");
    }
    Ok(())
}

//! `meridian-sim`: runs plans, hunts for seeds that break an invariant.

#![allow(clippy::print_stdout, reason = "a report is printed")]

#[macro_use]
mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Breaks federations of real nodes in a simulated world, the same way each time.
#[derive(Parser)]
#[command(name = "meridian-sim")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(cli::run::Run),
    Plan(cli::plan::Print),
    Hunt(cli::hunt::Hunt),
    Same(cli::same::Same),
    Shrink(cli::shrink::Shrink),
    Show(cli::show::Show),
    Replay(cli::replay::Replay),
    Mutations(cli::mutations::Mutations),
    Gate(cli::gate::Gate),
}

fn main() -> anyhow::Result<ExitCode> {
    if !cfg!(tokio_unstable) {
        note!("built without --cfg tokio_unstable: runs may differ; build in the folder `sim`");
    }
    match Arguments::parse().command {
        Command::Run(run) => run.carry_out(),
        Command::Plan(print) => print.carry_out(),
        Command::Hunt(hunt) => hunt.carry_out(),
        Command::Same(same) => same.carry_out(),
        Command::Shrink(shrink) => shrink.carry_out(),
        Command::Show(show) => show.carry_out(),
        Command::Replay(replay) => replay.carry_out(),
        Command::Mutations(mutations) => mutations.carry_out(),
        Command::Gate(gate) => gate.carry_out(),
    }
}

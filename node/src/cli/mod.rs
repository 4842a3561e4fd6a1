//! The commands, and what they share: exit codes, how errors read, how results are printed.

mod append;
mod authority;
mod bench;
mod category;
mod certificate;
mod conflict;
mod consumer;
mod demo;
mod door;
mod event;
mod following;
mod home;
mod import;
mod init;
mod init_add;
mod local;
mod output;
mod projection;
mod read;
mod region;
mod reservation;
mod serve;
mod settled;
mod settling;
mod state;
mod status;
mod tail;
#[cfg(test)]
mod tests;
mod verify;
mod why;

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use meridian_client::Durability;
pub(crate) use output::Output;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "meridian",
    version,
    about = "A multi-region, active-active event store",
    after_help = "Exit codes: 0 done, 1 the answer is no (damage, disagreement, conflict, no answer), 2 wrong use.",
    disable_help_subcommand = true
)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    command: Command,
    /// Print results as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run three regions in this process, cut one off, heal it, and show that all agree
    Demo(demo::Args),
    /// Make a federation on this machine: authority, certificates, one configuration per region; or add a region
    Init(init::Args),
    /// Run one node, in the foreground; SIGTERM drains and stops, SIGHUP reads certificates again
    Serve(serve::Args),
    /// Import events from NDJSON, many in flight; safe to repeat
    Import(import::Args),
    /// Append one event to a stream
    Append(append::Args),
    /// Wait until an event is settled, in this or another region
    Await(settled::Args),
    /// Read one stream
    Read(read::Args),
    /// Show what a stream comes to that every region writes
    State(state::Args),
    /// Print all events: as they arrive in a region, or in the one order that is the same in every region
    Tail(tail::Args),
    /// Show the regions, their links, how far each holds what the others wrote, and how far the order is settled
    Status(status::Args),
    /// Read models: define, follow, mend, exchange and ask them
    #[command(subcommand)]
    Projection(projection::Command),
    /// Consumer groups: events given out to programs, one stream to one of them at a time, until acknowledged
    #[command(subcommand)]
    Consumer(consumer::Command),
    /// Categories: how writes to their streams are settled, and setting that
    #[command(subcommand)]
    Category(category::Command),
    /// Homes of streams: which region orders one, and moving that to another
    #[command(subcommand)]
    Home(home::Command),
    /// Events that were acknowledged and lost their place: list, show and resolve them
    #[command(subcommand)]
    Conflict(conflict::Command),
    /// Reservations: names that only one owner may have in all regions
    #[command(subcommand)]
    Reservation(reservation::Command),
    /// Regions: drain them for maintenance, put lost ones out, make new ones members, let others go for good
    #[command(subcommand)]
    Region(region::Command),
    /// Ask why: what holds the settled order back, or how two events are ordered
    #[command(subcommand)]
    Why(why::Question),
    /// Check a data folder that no node has open: checksums, chains, indexes, revisions
    Verify(verify::Args),
    /// Make, renew and show certificates
    #[command(subcommand)]
    Certificate(certificate::Command),
    /// Measure this machine: ours beside the raw limit, in one run
    Bench(bench::Args),
}

/// How a command ended when nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// What was asked is done.
    Done,
    /// It was carried out, and the answer is no: damage, disagreement, conflict.
    No,
}

/// Marks an error as the caller's: wrong arguments, a wrong file, a wrong configuration.
#[derive(Debug)]
pub(crate) struct WrongUse(pub(crate) String);

impl fmt::Display for WrongUse {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for WrongUse {}

/// Parses `--durability`.
pub(crate) fn durability(given: &str) -> Result<Durability, String> {
    let level = match given.split_once(':') {
        None if given == "region" => Some(Durability::Region),
        None if given == "all" => Some(Durability::All),
        Some(("regions", count)) => count
            .parse()
            .ok()
            .filter(|count| *count > 0)
            .map(Durability::Regions),
        _ => None,
    };
    level.ok_or_else(|| "write region, all, or regions:N as in regions:2".to_owned())
}

/// An error that ends in exit code 2.
pub(crate) fn wrong_use(message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(WrongUse(message.into()))
}

/// Parses the command line, runs the command and says how it ended.
pub(crate) fn main() -> ExitCode {
    let line = match CommandLine::command().try_get_matches() {
        Ok(matches) => match CommandLine::from_arg_matches(&matches) {
            Ok(line) => line,
            Err(error) => error.exit(),
        },
        // Help and version go to standard output with 0, mistakes to standard error with 2.
        Err(error) => error.exit(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(line));
            // Whoever waits for standard input cannot be woken; the process ends all the same.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(anyhow::Error::new(error).context("start the runtime")),
    };
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        // The reader has gone, as in `meridian tail | head`: it has what it wanted.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "meridian: {}", Output::error(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

async fn run(line: CommandLine) -> anyhow::Result<Outcome> {
    let output = Output::new(line.json);
    match line.command {
        Command::Demo(args) => demo::run(args, output).await,
        Command::Init(args) => init::run(&args, output),
        Command::Serve(args) => serve::run(args).await,
        Command::Import(args) => import::run(args, output).await,
        Command::Append(args) => append::run(args, output).await,
        Command::Await(args) => settled::run(args, output).await,
        Command::Read(args) => read::run(args, output).await,
        Command::State(args) => state::run(args, output).await,
        Command::Tail(args) => tail::run(args, output).await,
        Command::Status(args) => status::run(args, output).await,
        Command::Projection(command) => projection::run(command, output).await,
        Command::Consumer(command) => consumer::run(command, output).await,
        Command::Category(command) => category::run(command, output).await,
        Command::Home(command) => home::run(command, output).await,
        Command::Conflict(command) => conflict::run(command, output).await,
        Command::Reservation(command) => reservation::run(command, output).await,
        Command::Region(command) => region::run(command, output).await,
        Command::Why(question) => why::run(question, output).await,
        Command::Verify(args) => verify::run(&args, output),
        Command::Certificate(command) => certificate::run(&command, output),
        Command::Bench(args) => bench::run(args, output).await,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<output::PrintError>()
            .is_some_and(|print| print.0.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let wrong = error
        .chain()
        .any(|cause| cause.is::<WrongUse>() || cause.is::<meridian_node::config::ConfigError>());
    if wrong { 2 } else { 1 }
}

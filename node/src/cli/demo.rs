//! `meridian demo`.

use super::{Outcome, Output};

/// What `meridian demo` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Go on serving after the run
    #[arg(long)]
    keep: bool,
}

pub(crate) async fn run(args: Args, _output: Output) -> anyhow::Result<Outcome> {
    anyhow::bail!(
        "the demonstration is not in this build (keep: {})",
        args.keep
    )
}

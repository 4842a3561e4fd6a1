//! `meridian bench`.

use super::{Outcome, Output};

/// What `meridian bench` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(args: Args, _output: Output) -> anyhow::Result<Outcome> {
    anyhow::bail!("benchmarks are not in this build ({args:?})")
}

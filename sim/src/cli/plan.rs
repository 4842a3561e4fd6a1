//! `meridian-sim plan`.

use std::process::ExitCode;

use clap::Args;

use super::about::About;
use super::print;

/// Prints the plan of a seed, to be saved, edited and run.
#[derive(Args)]
pub(crate) struct Print {
    /// The seed.
    #[arg(long)]
    seed: u64,
    #[command(flatten)]
    about: About,
}

impl Print {
    pub(crate) fn carry_out(self) -> anyhow::Result<ExitCode> {
        print::print(format_args!(
            "{}",
            toml::to_string(&self.about.draw()(self.seed))?
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

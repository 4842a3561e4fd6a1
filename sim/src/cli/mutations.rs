//! `meridian-sim mutations`, and the names of bugs on the command line.

use std::process::ExitCode;

use clap::Args;
use meridian_points::Bug;
use meridian_sim::gate::can_plant;

/// Lists the bugs that can be planted.
#[derive(Args)]
pub(crate) struct Mutations {
    /// Only their names, one a line.
    #[arg(long)]
    names: bool,
}

impl Mutations {
    pub(crate) fn carry_out(self) -> anyhow::Result<ExitCode> {
        for bug in Bug::ALL {
            match self.names {
                true => say!("{}", bug.name())?,
                false => say!("{:<20} {}", bug.name(), bug.does())?,
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The bug called `name`, if this build can plant it.
pub(super) fn parse(name: &str) -> Result<Bug, String> {
    can_plant()?;
    Bug::named(name).ok_or_else(|| "`meridian-sim mutations` lists them".to_owned())
}

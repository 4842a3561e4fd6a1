//! What the plans of seeds are about.

use clap::Args;
use meridian_sim::plan::Plan;
use meridian_sim::{fences, losses, merges};

/// What a seed's plan is about: everything, unless something is named.
#[derive(Args)]
#[group(id = "about", multiple = false)]
pub(crate) struct About {
    /// Of a seed the plan that speed is measured with, in place of one with every knob drawn.
    #[arg(long, group = "about")]
    standard: bool,
    /// Of a seed a plan in which one of two regions that hold something is lost.
    #[arg(long, group = "about")]
    losses: bool,
    /// Of a seed a short plan about streams that every region writes and that are merged.
    #[arg(long, group = "about")]
    merges: bool,
    /// Of a seed a small plan in which regions are put out, come back, join or leave.
    #[arg(long, group = "about")]
    fences: bool,
}

impl About {
    /// How plans are drawn.
    pub(crate) fn draw(&self) -> fn(u64) -> Plan {
        self.named().0
    }

    /// As it stands behind a command, after a blank; nothing by default.
    pub(crate) fn option(&self) -> &'static str {
        self.named().1
    }

    fn named(&self) -> (fn(u64) -> Plan, &'static str) {
        if self.standard {
            (Plan::standard, " --standard")
        } else if self.losses {
            (losses::plan, " --losses")
        } else if self.merges {
            (merges::plan, " --merges")
        } else if self.fences {
            (fences::plan, " --fences")
        } else {
            (Plan::draw, "")
        }
    }
}

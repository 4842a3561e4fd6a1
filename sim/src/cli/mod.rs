//! The subcommands, one file each, and what they share.

// First, since the others use its macros.
#[macro_use]
pub(crate) mod print;

mod about;
pub(crate) mod gate;
pub(crate) mod hunt;
pub(crate) mod mutations;
pub(crate) mod plan;
mod progress;
pub(crate) mod replay;
pub(crate) mod run;
pub(crate) mod same;
pub(crate) mod show;
pub(crate) mod shrink;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use meridian_sim::plan::Plan;
use meridian_sim::{kept, scenarios};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    kept::parse(&text).with_context(|| format!("{} is not a plan", path.display()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is written is a file of the one who asks for it"
)]
fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn scenario_called(name: &str) -> anyhow::Result<Plan> {
    let mut all = scenarios::all();
    let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
    match all.iter().position(|(it, _)| *it == name) {
        Some(index) => Ok(all.swap_remove(index).1),
        None => anyhow::bail!("no scenario {name}; there are {}", names.join(", ")),
    }
}

//! The `meridian` binary: one command line for operators, and the node that they run.
//!
//! Not here: what a command does (`cli`, one file each) and what a node is (the library). Start
//! reading at `cli::Command`.
//!
//! Always true: the exit code is 0 when it is done, 1 when the answer is no, 2 for wrong use; an
//! error is on standard error once, with its causes and what to do next.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}

//! Printing to someone who may have gone, as in `meridian-sim run --trace | head`.

use std::fmt;
use std::io::{self, ErrorKind, Write as _};

/// Prints `text` on stdout. A reader who has gone has what it wanted: the command goes on, and what
/// it found out is still its exit code.
///
/// # Errors
/// When stdout cannot be written for another reason.
pub(crate) fn print(text: fmt::Arguments<'_>) -> io::Result<()> {
    match io::stdout().write_fmt(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// As [`print`], with a format, and a line feed at the end.
macro_rules! say {
    ($($format:tt)*) => {
        $crate::cli::print::print(format_args!("{}\n", format_args!($($format)*)))
    };
}

/// A line on stderr; that nobody reads it changes nothing.
macro_rules! note {
    ($($format:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($format)*);
    }};
}

//! Why a configuration file cannot be used.

use std::io;
use std::path::PathBuf;

/// Why a configuration file cannot be used. Each names the file, the line and what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "read the configuration {}; check the path, or make one with `meridian init`",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML, or a value has the wrong type.
    #[error("{}, line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A key that no node knows.
    #[error("{}, line {line}: there is no key `{key}`{}; {hint}", path.display(), table_suffix(table))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key as written.
        key: String,
        /// The table it stands in; empty at the top.
        table: String,
        /// The nearest known key, or all of them.
        hint: String,
    },
    /// A value that cannot be meant.
    #[error("{}, line {line}: `{key}` {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// What is wrong and what to write instead.
        reason: String,
    },
}

fn table_suffix(table: &str) -> String {
    if table.is_empty() {
        String::new()
    } else {
        format!(" in [{table}]")
    }
}

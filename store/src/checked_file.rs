//! Small files that are either whole and right, or refused: clock ceiling, node identity, keys.

use std::io;

use crate::Disk;

/// Why a checked file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CheckedFileError {
    /// Its bytes changed since they were written. Restore the file from a backup, or remove it if
    /// what it held may be lost.
    #[error("{path} is damaged: {reason}; restore it from a backup")]
    Damaged {
        /// The file, below the data folder.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The disk failed.
    #[error("read {path}")]
    Io {
        /// The file, below the data folder.
        path: String,
        /// What the disk said.
        source: io::Error,
    },
}

/// Reads the file at `path`; `None` when there is none.
///
/// # Errors
/// When the file is damaged or cannot be read.
pub fn read(disk: &dyn Disk, path: &str) -> Result<Option<Vec<u8>>, CheckedFileError> {
    todo!()
}

/// Replaces the file at `path` with `content`, durably: after a crash at any moment, a reader finds
/// either the old content or the new one. Its folder is created when missing.
///
/// # Errors
/// When the disk fails; the old content is then still in place.
pub fn replace(disk: &dyn Disk, path: &str, content: &[u8]) -> io::Result<()> {
    todo!()
}

//! An operator's own files: configuration, certificates, and what is imported.
//!
//! The one place outside the store that opens files. What a node keeps goes through
//! `store::Disk`, never through here.

#![expect(
    clippy::disallowed_methods,
    reason = "an operator's files are read before there is a node, and are no part of its disk"
)]

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The text in `path`.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path)
}

/// Opens `path` for reading.
///
/// # Errors
/// When it cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// Opens `path` for appending and reading, and makes it if it is missing.
///
/// # Errors
/// When it cannot be opened or made.
pub fn open_to_append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)
}

/// Whether there is anything at `path`.
pub fn exists(path: &Path) -> bool {
    path.exists()
}

/// Whether `folder` is missing or has nothing in it.
///
/// # Errors
/// When it cannot be listed.
pub fn is_empty_folder(folder: &Path) -> io::Result<bool> {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether others than the owner may read `path`.
///
/// # Errors
/// When it is missing or cannot be looked at.
pub fn readable_by_others(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

/// Makes `folder` and what is above it; what is made can be entered by its owner only.
///
/// # Errors
/// When it cannot be made.
pub fn make_private_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Replaces `path` atomically: a new file beside it, with `mode` from the start, renamed over it.
/// A reader sees the old content or the new, never half of either.
///
/// # Errors
/// When it cannot be written; what was there is untouched then.
pub fn replace(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // What an interrupted run left behind may have another mode.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

/// Moves `from` to `to`, which must not be there.
///
/// # Errors
/// When it is, or `from` cannot be moved.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    if exists(to) {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists));
    }
    std::fs::rename(from, to)
}

/// A folder called `name` among the system's temporary files. It is not created.
pub fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

/// Opens `path` for reading and writing; creates it if it is missing, and keeps what it holds.
///
/// # Errors
/// When it cannot be opened.
pub fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// The paths of everything in `folder`, sorted.
///
/// # Errors
/// When it cannot be listed.
pub fn in_folder(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Removes `folder` and everything in it.
///
/// # Errors
/// When something in it cannot be removed.
pub fn remove_folder(folder: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(folder)
}

/// Removes the file at `path`.
///
/// # Errors
/// When it is not there or cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)
}

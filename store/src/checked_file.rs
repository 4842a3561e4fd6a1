//! Small files that are either whole and right, or refused: clock ceiling, node identity, keys.
//!
//! ```text
//! 0   magic "MRCF"        4
//! 4   format version      1   this module writes 1
//! 5   reserved            3   zero
//! 8   content length      8
//! 16  crc32c              4   of bytes 0..16 and the content
//! 20  content
//! ```
//!
//! A replacement is written beside the file under the name `….new`, synced, and renamed over it; the
//! folder is synced last. A crash before the rename leaves the old file and at most a `….new` that
//! the next replacement overwrites.

use std::io;

use meridian_event::crc32c;

use crate::Disk;

const MAGIC: [u8; 4] = *b"MRCF";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 20;

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
    let bytes = read_whole(disk, path).map_err(|source| CheckedFileError::Io {
        path: path.to_owned(),
        source,
    })?;
    let Some(bytes) = bytes else {
        return Ok(None);
    };
    let damaged = |reason| {
        Err(CheckedFileError::Damaged {
            path: path.to_owned(),
            reason,
        })
    };
    let Some((header, content)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return damaged("it is cut short");
    };
    if header[..4] != MAGIC {
        return damaged("it does not begin as it should");
    }
    if header[4] > VERSION {
        return damaged("it was written by a newer build");
    }
    if header[8..16] != (content.len() as u64).to_le_bytes() {
        return damaged("it is not as long as it says");
    }
    if header[16..] != crc32c(&[&header[..16], content]).to_le_bytes() {
        return damaged("it fails its checksum");
    }
    Ok(Some(content.to_vec()))
}

fn read_whole(disk: &dyn Disk, path: &str) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let len = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; len];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

/// Replaces the file at `path` with `content`, durably: after a crash at any moment, a reader finds
/// either the old content or the new one. Its folder is created when missing.
///
/// # Errors
/// When the disk fails; a reader then still finds either the old content or the new one.
pub fn replace(disk: &dyn Disk, path: &str, content: &[u8]) -> io::Result<()> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    if !folder.is_empty() && !disk.exists(folder)? {
        disk.create_dir_all(folder)?;
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + content.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[VERSION, 0, 0, 0]);
    bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
    let crc = crc32c(&[&bytes, content]);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(content);

    let fresh = format!("{path}.new");
    // What an earlier attempt left is not written over: if its sync failed, then what a later sync
    // of that file says is not to be relied on.
    if disk.exists(&fresh)? {
        disk.remove(&fresh)?;
    }
    let file = disk.open(&fresh, true)?;
    file.write_all_at(&bytes, 0)?;
    file.sync_data()?;
    disk.rename(&fresh, path)?;
    disk.sync_dir(folder)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::SimDisk;

    proptest! {
        #[test]
        fn a_crash_at_any_step_leaves_the_old_content_or_the_new(
            seed: u64,
            steps in 0u64..8,
            old in prop::collection::vec(any::<u8>(), 0..2000),
            new in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let disk = SimDisk::new(seed);
            replace(&disk, "node/ceiling", &old).expect("the disk is sound");
            disk.crash_after(steps);
            let replaced = replace(&disk, "node/ceiling", &new);
            disk.crash();
            let found = read(&disk, "node/ceiling")
                .expect("a crash is no damage")
                .expect("the file was durable");
            match replaced {
                Ok(()) => prop_assert_eq!(found, new),
                Err(_) => prop_assert!(found == old || found == new),
            }
        }

        #[test]
        fn a_failed_sync_spoils_no_later_attempt(
            seed: u64,
            old in prop::collection::vec(any::<u8>(), 0..2000),
            new in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let disk = SimDisk::new(seed);
            disk.fail_next_sync();
            prop_assert!(replace(&disk, "node/ceiling", &old).is_err());
            replace(&disk, "node/ceiling", &new).expect("the disk is sound again");
            disk.crash();
            let found = read(&disk, "node/ceiling").expect("a crash is no damage");
            prop_assert_eq!(found, Some(new));
        }

        #[test]
        fn one_flipped_bit_is_refused(
            content in prop::collection::vec(any::<u8>(), 0..200),
            place: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let disk = SimDisk::new(0);
            replace(&disk, "key", &content).expect("the disk is sound");
            disk.flip("key", place.index(HEADER_BYTES + content.len()) as u64, 1 << bit);
            // The three reserved bytes are covered by the checksum too.
            let refused = matches!(read(&disk, "key"), Err(CheckedFileError::Damaged { .. }));
            prop_assert!(refused);
        }
    }

    #[test]
    fn a_file_that_was_never_written_is_none() {
        assert!(matches!(read(&SimDisk::new(0), "node/ceiling"), Ok(None)));
    }
}

//! Small state in sled, with everything that makes it keep what it flushed.
//!
//! By itself, sled's `flush` asks the kernel to begin writing and does not wait for the disk, its
//! configuration file is never synced, and pages above a quarter of its segment size go to files
//! that are never synced either. In simulated power cuts, that lost flushed data in more than half
//! of all runs. With segments of 8 MiB, values far below a quarter of that, everything synced at
//! opening, and an `fdatasync` of its file after each `flush`, none of 648 runs lost anything.

#![expect(
    clippy::disallowed_methods,
    reason = "sled takes real files, and they have to be synced for it"
)]

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::{KeyValue, Quota, SmallError, SmallState};

// A page is written into the main file, and so synced, if it is below a quarter of this.
const SEGMENT_BYTES: usize = 8 << 20;
const _: () = assert!(super::VALUE_BYTES_MAX + super::KEY_BYTES_MAX < SEGMENT_BYTES / 4);
const CACHE_BYTES: u64 = 8 << 20;
// The lock of a sled that was just dropped is let go of a little later.
const LOCK_ATTEMPTS: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Small state in a folder of the real file system.
pub(crate) struct SledState {
    tree: sled::Db,
    file: File,
    quota: Mutex<Quota>,
}

fn failed(error: impl ToString) -> SmallError {
    SmallError::Failed {
        reason: error.to_string(),
    }
}

impl SledState {
    /// Opens the state in `folder`. If it does not open, the folder is set aside and an empty state
    /// takes its place: what was in it is derived again.
    pub(crate) fn open(folder: &Path) -> Result<Self, SmallError> {
        let first = match Self::open_once(folder) {
            Ok(state) => return Ok(state),
            Err(error) => error,
        };
        let aside = aside(folder);
        tracing::warn!(
            error = %first,
            aside = %aside.display(),
            "small state does not open; it is set aside and derived again"
        );
        if aside.exists() {
            fs::remove_dir_all(&aside).map_err(failed)?;
        }
        if folder.exists() {
            fs::rename(folder, &aside).map_err(failed)?;
        }
        Self::open_once(folder)
    }

    fn open_once(folder: &Path) -> Result<Self, SmallError> {
        let config = sled::Config::new()
            .path(folder)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None);
        let mut attempts = 0;
        let tree = loop {
            // On some damaged files, sled panics rather than fails.
            let opened = catch_unwind(AssertUnwindSafe(|| config.open()))
                .map_err(|_| failed("it panicked while opening"))?;
            match opened {
                Err(sled::Error::Io(error)) if is_locked(&error) && attempts < LOCK_ATTEMPTS => {
                    attempts += 1;
                    thread::sleep(LOCK_PAUSE);
                }
                opened => break opened.map_err(failed)?,
            }
        };
        check_segment_size(folder)?;
        sync_all(folder).map_err(failed)?;
        let mut quota = Quota::default();
        for entry in tree.iter() {
            let (key, value) = entry.map_err(failed)?;
            quota.keys += 1;
            quota.bytes += key.len() + value.len();
        }
        let file = File::open(folder.join("db")).map_err(failed)?;
        Ok(Self {
            tree,
            file,
            quota: Mutex::new(quota),
        })
    }

    fn quota(&self) -> MutexGuard<'_, Quota> {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn aside(folder: &Path) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".aside");
    folder.with_file_name(name)
}

fn is_locked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("acquire lock")
}

// The size is fixed at creation; with another one, flushed data could be lost.
fn check_segment_size(folder: &Path) -> Result<(), SmallError> {
    let conf = fs::read(folder.join("conf")).map_err(failed)?;
    let conf = String::from_utf8_lossy(&conf);
    let expected = format!("segment_size: {SEGMENT_BYTES}");
    match conf.lines().any(|line| line == expected) {
        true => Ok(()),
        false => Err(failed("it was made with another segment size")),
    }
}

fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        match entry.file_type()?.is_dir() {
            true => sync_all(&path)?,
            false => File::open(&path)?.sync_all()?,
        }
    }
    File::open(folder)?.sync_all()?;
    match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

impl SmallState for SledState {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, SmallError> {
        let value = self.tree.get(key).map_err(failed)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<(), SmallError> {
        let mut quota = self.quota();
        let old = self.tree.get(key).map_err(failed)?;
        quota.admit(key, value, old.map(|old| old.len()))?;
        self.tree.insert(key, value).map_err(failed)?;
        Ok(())
    }

    fn remove(&self, key: &[u8]) -> Result<(), SmallError> {
        let mut quota = self.quota();
        if let Some(old) = self.tree.remove(key).map_err(failed)? {
            quota.release(key, old.len());
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<KeyValue>, SmallError> {
        let entry = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = entry.map_err(failed)?;
            Ok((key.to_vec(), value.to_vec()))
        };
        self.tree.scan_prefix(prefix).map(entry).collect()
    }

    fn flush(&self) -> Result<(), SmallError> {
        // Never `flush_async`: a few tasks at once deadlock in it.
        self.tree.flush().map_err(failed)?;
        self.file.sync_data().map_err(failed)
    }
}

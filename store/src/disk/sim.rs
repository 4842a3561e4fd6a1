//! A disk in memory whose crashes and faults are chosen by a seed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Disk, DiskFile};

/// A disk in memory that loses what was not synced.
///
/// Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {}

impl SimDisk {
    /// An empty disk whose crashes are drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        todo!()
    }

    /// Pulls the plug: of what was not synced, a random part stays, torn at sectors of 512 bytes.
    /// Handles opened before are dead; locks are free.
    pub fn crash(&self) {
        todo!()
    }

    /// Lets `count` more operations that change something succeed; the next one and everything
    /// after it fails until [`SimDisk::crash`].
    pub fn crash_after(&self, count: u64) {
        todo!()
    }

    /// The next write fails.
    pub fn fail_next_write(&self) {
        todo!()
    }

    /// The next sync fails, and what it should have made durable never will be.
    pub fn fail_next_sync(&self) {
        todo!()
    }

    /// Leaves room for `bytes` more; `None` for no limit.
    pub fn set_room(&self, bytes: Option<u64>) {
        todo!()
    }

    /// Flips bits of the byte at `offset` of the file at `path`, where they lie on the disk.
    ///
    /// # Panics
    /// When there is no such byte.
    pub fn flip(&self, path: &str, offset: u64, mask: u8) {
        todo!()
    }

    /// How many times a file was synced.
    pub fn syncs(&self) -> u64 {
        todo!()
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        todo!()
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        todo!()
    }
    fn create_dir_all(&self, dir: &str) -> io::Result<()> {
        todo!()
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        todo!()
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        todo!()
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        todo!()
    }
    fn exists(&self, path: &str) -> io::Result<bool> {
        todo!()
    }
    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        todo!()
    }
    fn real_path(&self, dir: &str) -> Option<PathBuf> {
        None
    }
}

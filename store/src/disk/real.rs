//! The real file system.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Disk, DiskFile};

/// A folder of the real file system.
#[derive(Clone, Debug)]
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// The folder `root`, which is created, with those above it, where it is missing.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        todo!()
    }
}

impl Disk for RealDisk {
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
        todo!()
    }
}

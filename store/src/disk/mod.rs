//! The seam to the disk: everything this crate reads and writes goes through [`Disk`].

mod content;
mod real;
mod sim;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub use real::RealDisk;
pub use sim::SimDisk;

/// A folder on a disk. Paths are relative to it and separated by `/`.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file for reading and writing; creates it, empty, if `create` and it is missing.
    ///
    /// # Errors
    /// As the disk says; `NotFound` when it is missing and not to be created.
    fn open(&self, path: &str, create: bool) -> io::Result<Arc<dyn DiskFile>>;

    /// The names of the files and folders in `dir`, ascending; none when `dir` is missing.
    ///
    /// # Errors
    /// As the disk says.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;

    /// Creates `dir` and the folders above it, durably, where they are missing.
    ///
    /// # Errors
    /// As the disk says.
    fn create_dir_all(&self, dir: &str) -> io::Result<()>;

    /// Gives a file another name, replacing what has that name. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// As the disk says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// As the disk says.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Makes the names in `dir` durable.
    ///
    /// # Errors
    /// As the disk says.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;

    /// Whether there is a file or folder at `path`.
    ///
    /// # Errors
    /// As the disk says.
    fn exists(&self, path: &str) -> io::Result<bool>;

    /// When the file at `path` was made on this disk, in nanoseconds since 1970; `None` where the disk does not know. A
    /// copy of the file was made when it was copied.
    ///
    /// # Errors
    /// As the disk says; `NotFound` when it is missing.
    fn made(&self, path: &str) -> io::Result<Option<u64>>;

    /// Takes the exclusive lock at `path`, held until the answer is dropped.
    ///
    /// # Errors
    /// `WouldBlock` when another process, or another store in this one, has it.
    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>>;

    /// Where `dir` is in the real file system; `None` when it is not in one.
    fn real_path(&self, dir: &str) -> Option<PathBuf>;
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Reads into `buf` from `offset` on; fewer bytes than asked only at the end of the file.
    ///
    /// # Errors
    /// As the disk says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`. Not durable before [`DiskFile::sync_data`].
    ///
    /// # Errors
    /// As the disk says; some of the bytes may have been written then.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes everything written so far durable, the file's length included.
    ///
    /// # Errors
    /// As the disk says; what was written and not yet synced is then in an unknown state for good.
    fn sync_data(&self) -> io::Result<()>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// As the disk says.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file is empty.
    ///
    /// # Errors
    /// As the disk says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or extends the file, with zeros.
    ///
    /// # Errors
    /// As the disk says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reserves room for `len` bytes, extending the file with zeros if it is shorter.
    ///
    /// # Errors
    /// `StorageFull` when there is no room.
    fn allocate(&self, len: u64) -> io::Result<()>;
}

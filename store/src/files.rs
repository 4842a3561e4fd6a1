//! The open files of sealed segments, of which only so many are held open at once.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::segment::{index_path, segment_path};
use crate::{Disk, DiskFile};

// Far below the 1,024 that a process may have open by default, connections included.
const OPEN_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Segment,
    Index,
}

/// Opens files when they are first asked for and closes those that were not asked for longest.
pub(crate) struct Files {
    disk: Arc<dyn Disk>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    files: BTreeMap<(Kind, u64), (u64, Arc<dyn DiskFile>)>,
    uses: u64,
}

impl fmt::Debug for Files {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Files")
    }
}

impl Files {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            held: Mutex::default(),
        }
    }

    pub(crate) fn segment(&self, segment: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.get(Kind::Segment, segment, segment_path)
    }

    pub(crate) fn index(&self, segment: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.get(Kind::Index, segment, index_path)
    }

    /// Lets go of the files of `segment`, which were replaced.
    pub(crate) fn forget(&self, segment: u64) {
        let mut held = self.lock();
        held.files.remove(&(Kind::Segment, segment));
        held.files.remove(&(Kind::Index, segment));
    }

    /// Lets go of the segment file `segment`, which was replaced.
    pub(crate) fn forget_segment_file(&self, segment: u64) {
        self.lock().files.remove(&(Kind::Segment, segment));
    }

    /// Lets go of the index file of `segment`, which was replaced.
    pub(crate) fn forget_index(&self, segment: u64) {
        self.lock().files.remove(&(Kind::Index, segment));
    }

    fn get(
        &self,
        kind: Kind,
        segment: u64,
        path: fn(u64) -> String,
    ) -> io::Result<Arc<dyn DiskFile>> {
        let mut held = self.lock();
        held.uses += 1;
        let now = held.uses;
        if let Some((used, file)) = held.files.get_mut(&(kind, segment)) {
            *used = now;
            return Ok(Arc::clone(file));
        }
        let file = self.disk.open(&path(segment), false)?;
        if held.files.len() >= OPEN_MAX {
            let oldest = held.files.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(key) = oldest.map(|(key, _)| *key) {
                held.files.remove(&key);
            }
        }
        held.files.insert((kind, segment), (now, Arc::clone(&file)));
        Ok(file)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
    // With when it was last asked for.
    files: BTreeMap<(Kind, u64), (u64, Arc<dyn DiskFile>)>,
    // The same by when they were last asked for.
    by_use: BTreeMap<u64, (Kind, u64)>,
    uses: u64,
}

impl Held {
    fn remove(&mut self, key: (Kind, u64)) {
        if let Some((used, _)) = self.files.remove(&key) {
            self.by_use.remove(&used);
        }
    }
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
        held.remove((Kind::Segment, segment));
        held.remove((Kind::Index, segment));
    }

    /// Lets go of the segment file `segment`, which was replaced.
    pub(crate) fn forget_segment_file(&self, segment: u64) {
        self.lock().remove((Kind::Segment, segment));
    }

    /// Lets go of the index file of `segment`, which was replaced.
    pub(crate) fn forget_index(&self, segment: u64) {
        self.lock().remove((Kind::Index, segment));
    }

    fn get(
        &self,
        kind: Kind,
        segment: u64,
        path: fn(u64) -> String,
    ) -> io::Result<Arc<dyn DiskFile>> {
        let key = (kind, segment);
        let mut held = self.lock();
        let Held {
            files,
            by_use,
            uses,
        } = &mut *held;
        *uses += 1;
        let now = *uses;
        if let Some((used, file)) = files.get_mut(&key) {
            by_use.remove(used);
            by_use.insert(now, key);
            *used = now;
            return Ok(Arc::clone(file));
        }
        let file = self.disk.open(&path(segment), false)?;
        if files.len() >= OPEN_MAX
            && let Some((_, oldest)) = by_use.pop_first()
        {
            files.remove(&oldest);
        }
        files.insert(key, (now, Arc::clone(&file)));
        by_use.insert(now, key);
        Ok(file)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

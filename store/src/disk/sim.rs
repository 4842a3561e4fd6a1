//! A disk in memory whose crashes and faults are chosen by a seed.
//!
//! Every file has the content that programs see and the content that is on the medium, and a
//! journal of the writes between the two. A sync empties the journal; a crash applies a random part
//! of it, torn at sectors. Names have the same two sides, with `sync_dir` between them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::content::Content;
use super::{Disk, DiskFile};

// What a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// A disk in memory that loses what was not synced.
///
/// Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    random: u64,
    // Tells it from its copies.
    made: u64,
    // Raised by a crash: handles of an earlier life are dead.
    life: u64,
    files: BTreeMap<u64, File>,
    next_file: u64,
    // What programs see, and what is on the medium.
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    renamings: Vec<Renaming>,
    folders: BTreeSet<String>,
    locks: BTreeSet<String>,
    room: Option<u64>,
    crash_after: Option<u64>,
    crashed: bool,
    fail_write: bool,
    // In files below this folder.
    fail_sync: Option<String>,
    misreads: u64,
    syncs: u64,
}

#[derive(Debug, Default)]
struct File {
    seen: Content,
    durable: Content,
    journal: Vec<Change>,
    // Counts the open handles: a file without a name lives on while it is open.
    handles: Arc<()>,
}

#[derive(Debug)]
struct Change {
    what: What,
    // A sync failed over it: later syncs believe that it was written.
    forgotten: bool,
}

#[derive(Debug)]
enum What {
    Write { offset: u64, bytes: Vec<u8> },
    Length(u64),
}

// One change of names, which happens as a whole or not at all.
#[derive(Debug)]
struct Renaming {
    names: Vec<(String, Option<u64>)>,
}

impl SimDisk {
    /// An empty disk whose crashes are drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                random: seed,
                made: seed,
                life: 0,
                files: BTreeMap::new(),
                next_file: 1,
                names: BTreeMap::new(),
                durable_names: BTreeMap::new(),
                renamings: Vec::new(),
                folders: BTreeSet::new(),
                locks: BTreeSet::new(),
                room: None,
                crash_after: None,
                crashed: false,
                fail_write: false,
                fail_sync: None,
                misreads: 0,
                syncs: 0,
            })),
        }
    }

    /// A disk of its own with what is on the medium of this one now, as a copy of its folder has it; its crashes are
    /// drawn from `seed`.
    #[must_use]
    pub fn backup(&self, seed: u64) -> Self {
        let state = self.lock_state();
        let backup = Self::new(seed);
        let mut copy = backup.lock_state();
        copy.next_file = state.next_file;
        copy.folders = state.folders.clone();
        copy.names = state.durable_names.clone();
        copy.durable_names = state.durable_names.clone();
        for number in state.durable_names.values() {
            if let Some(file) = state.files.get(number) {
                let content = File {
                    seen: file.durable.clone(),
                    durable: file.durable.clone(),
                    ..File::default()
                };
                copy.files.insert(*number, content);
            }
        }
        drop(copy);
        backup
    }

    /// Pulls the plug: of what was not synced, a random part stays, torn at sectors of 512 bytes.
    /// Handles opened before are dead; locks are free; faults that were asked for are forgotten.
    pub fn crash(&self) {
        let mut state = self.lock_state();
        let State {
            random,
            files,
            renamings,
            durable_names,
            ..
        } = &mut *state;
        for file in files.values_mut() {
            for change in std::mem::take(&mut file.journal) {
                change.survive_in_part(random, &mut file.durable);
            }
            file.seen = file.durable.clone();
        }
        // A file system journals names in order, so it is a prefix that stays.
        let kept = below(random, renamings.len() as u64 + 1);
        for renaming in renamings.drain(..).take(usize::try_from(kept).unwrap_or(0)) {
            renaming.apply(durable_names);
        }
        state.names = state.durable_names.clone();
        let State { files, names, .. } = &mut *state;
        let named: BTreeSet<u64> = names.values().copied().collect();
        files.retain(|id, _| named.contains(id));
        state.life += 1;
        state.locks.clear();
        state.crash_after = None;
        state.crashed = false;
        state.fail_write = false;
        state.fail_sync = None;
        state.misreads = 0;
    }

    /// Lets `count` more operations that change something succeed; the next one and everything
    /// after it fails until [`SimDisk::crash`].
    pub fn crash_after(&self, count: u64) {
        self.lock_state().crash_after = Some(count);
    }

    /// The next write fails.
    pub fn fail_next_write(&self) {
        self.lock_state().fail_write = true;
    }

    /// The next sync fails, and what it should have made durable may never be.
    pub fn fail_next_sync(&self) {
        self.fail_next_sync_below("");
    }

    /// As [`SimDisk::fail_next_sync`], for the files below `folder` only.
    pub fn fail_next_sync_below(&self, folder: &str) {
        self.lock_state().fail_sync = Some(folder.to_owned());
    }

    /// Each of the next `count` reads of at least a sector gets one bit wrong; the medium is sound.
    pub fn misread(&self, count: u64) {
        self.lock_state().misreads = count;
    }

    /// Leaves room for `bytes` more; `None` for no limit.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.lock_state().room = bytes;
    }

    /// Flips bits of the byte at `offset` of the file at `path`, as it is seen and on the medium.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn flip(&self, path: &str, offset: u64, mask: u8) {
        let mut state = self.lock_state();
        let id = *state.names.get(path).expect("the file to damage is there");
        let file = state.files.get_mut(&id).expect("names lead to files");
        for content in [&mut file.seen, &mut file.durable] {
            let mut byte = [0];
            content.read(&mut byte, offset);
            content.write(&[byte[0] ^ mask], offset);
        }
    }

    /// How many times a file was synced.
    pub fn syncs(&self) -> u64 {
        self.lock_state().syncs
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    // Every operation that changes something passes here; false from the simulated crash on.
    fn change(&mut self) -> io::Result<()> {
        match &mut self.crash_after {
            Some(0) => self.crashed = true,
            Some(left) => *left -= 1,
            None => {}
        }
        self.alive()
    }

    fn alive(&self) -> io::Result<()> {
        if self.crashed {
            return Err(io::Error::other("the simulated machine crashed"));
        }
        Ok(())
    }

    fn rename_all(&mut self, names: Vec<(String, Option<u64>)>) {
        let renaming = Renaming { names };
        renaming.apply(&mut self.names);
        self.renamings.push(renaming);
    }

    fn take_room(&mut self, bytes: u64) -> io::Result<()> {
        let Some(room) = &mut self.room else {
            return Ok(());
        };
        match room.checked_sub(bytes) {
            Some(left) => *room = left,
            None => return Err(io::ErrorKind::StorageFull.into()),
        }
        Ok(())
    }
}

impl State {
    fn forget_unnamed(&mut self) {
        // No two names are of one file.
        if self.files.len() == self.names.len() {
            return;
        }
        let pending = self.renamings.iter().flat_map(|it| &it.names);
        let named: BTreeSet<u64> = self
            .names
            .values()
            .chain(self.durable_names.values())
            .copied()
            .chain(pending.filter_map(|(_, file)| *file))
            .collect();
        self.files
            .retain(|id, file| named.contains(id) || Arc::strong_count(&file.handles) > 1);
    }

    fn file(&mut self, id: u64) -> io::Result<&mut File> {
        self.files
            .get_mut(&id)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Renaming {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        for (name, file) in &self.names {
            match file {
                Some(file) => names.insert(name.clone(), *file),
                None => names.remove(name),
            };
        }
    }

    fn concerns(&self, dir: &str) -> bool {
        self.names.iter().any(|(name, _)| folder_of(name) == dir)
    }
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match &self.what {
            What::Write { offset, bytes } => content.write(bytes, *offset),
            What::Length(len) => content.set_len(*len),
        }
    }

    fn survive_in_part(&self, random: &mut u64, content: &mut Content) {
        let fate = below(random, 3);
        match (&self.what, fate) {
            (_, 0) => {}
            (What::Write { offset, bytes }, 1) => {
                let mut start = 0;
                while start < bytes.len() {
                    let at = offset + start as u64;
                    let to_boundary = SECTOR_BYTES - at % SECTOR_BYTES;
                    let end = bytes.len().min(start + to_boundary as usize);
                    if below(random, 2) == 0 {
                        content.write(&bytes[start..end], at);
                    }
                    start = end;
                }
            }
            _ => self.apply(content),
        }
    }
}

// SplitMix64: the next number of the sequence that `random` stands in.
fn below(random: &mut u64, end: u64) -> u64 {
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *random;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) % end
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl Disk for SimDisk {
    fn open(&self, path: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.lock_state();
        state.alive()?;
        let id = match state.names.get(path) {
            Some(id) => *id,
            None if create => {
                state.change()?;
                let folder = folder_of(path);
                if !folder.is_empty() && !state.folders.contains(folder) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let id = state.next_file;
                state.next_file += 1;
                state.files.insert(id, File::default());
                state.rename_all(vec![(path.to_owned(), Some(id))]);
                id
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            path: path.to_owned(),
            id,
            life: state.life,
            _handle: Arc::clone(&state.file(id)?.handles),
        }))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = self.lock_state();
        state.alive()?;
        let below_dir = |path: &String| match path.strip_prefix(dir) {
            Some(rest) if dir.is_empty() => Some(rest.to_owned()),
            Some(rest) => rest.strip_prefix('/').map(str::to_owned),
            None => None,
        };
        let names: BTreeSet<String> = state
            .names
            .keys()
            .chain(&state.folders)
            .filter_map(below_dir)
            .filter_map(|rest| rest.split('/').next().map(str::to_owned))
            .filter(|name| !name.is_empty())
            .collect();
        Ok(names.into_iter().collect())
    }

    fn create_dir_all(&self, dir: &str) -> io::Result<()> {
        let mut state = self.lock_state();
        state.alive()?;
        let mut folder = dir;
        while !folder.is_empty() {
            state.folders.insert(folder.to_owned());
            folder = folder_of(folder);
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock_state();
        state.change()?;
        let id = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.rename_all(vec![(from.to_owned(), None), (to.to_owned(), Some(id))]);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.lock_state();
        state.change()?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.rename_all(vec![(path.to_owned(), None)]);
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.lock_state();
        state.change()?;
        // In order: everything up to the last change in this folder.
        let last = state.renamings.iter().rposition(|it| it.concerns(dir));
        let State {
            renamings,
            durable_names,
            ..
        } = &mut *state;
        for renaming in renamings.drain(..last.map_or(0, |last| last + 1)) {
            renaming.apply(durable_names);
        }
        state.forget_unnamed();
        Ok(())
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        let state = self.lock_state();
        state.alive()?;
        Ok(state.names.contains_key(path) || state.folders.contains(path))
    }

    fn made(&self, path: &str) -> io::Result<Option<u64>> {
        match self.exists(path)? {
            true => Ok(Some(self.lock_state().made)),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.lock_state();
        state.alive()?;
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock {
            disk: self.clone(),
            path: path.to_owned(),
            life: state.life,
        }))
    }

    fn real_path(&self, _: &str) -> Option<PathBuf> {
        None
    }
}

struct SimLock {
    disk: SimDisk,
    path: String,
    life: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.lock_state();
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

struct SimFile {
    disk: SimDisk,
    // As it was opened.
    path: String,
    id: u64,
    life: u64,
    _handle: Arc<()>,
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.lock_state();
        if state.life != self.life {
            return Err(io::Error::other("this file was open before a crash"));
        }
        state.alive()?;
        act(&mut state)
    }

    fn record(&self, state: &mut State, what: What) -> io::Result<()> {
        let outcome = state.change();
        let file = state.file(self.id)?;
        let change = Change {
            what,
            forgotten: false,
        };
        change.apply(&mut file.seen);
        // The change at which the machine dies may have reached the medium in part.
        file.journal.push(change);
        outcome
    }

    fn grow(&self, state: &mut State, len: u64) -> io::Result<()> {
        let now = state.file(self.id)?.seen.len();
        state.take_room(len.saturating_sub(now))
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state| {
            let read = state.file(self.id)?.seen.read(buf, offset);
            if state.misreads > 0 && read as u64 >= SECTOR_BYTES {
                state.misreads -= 1;
                let bit = below(&mut state.random, read as u64 * 8);
                buf[(bit / 8) as usize] ^= 1 << (bit % 8);
            }
            Ok(read)
        })
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|state| {
            if std::mem::take(&mut state.fail_write) {
                return Err(io::Error::other("a simulated write failed"));
            }
            self.grow(state, offset + bytes.len() as u64)?;
            let bytes = bytes.to_vec();
            self.record(state, What::Write { offset, bytes })
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state| {
            state.change()?;
            state.syncs += 1;
            let fails = match &state.fail_sync {
                Some(folder) if Path::new(&self.path).starts_with(folder) => {
                    state.fail_sync = None;
                    true
                }
                _ => false,
            };
            let file = state.file(self.id)?;
            if fails {
                for change in &mut file.journal {
                    change.forgotten = true;
                }
                return Err(io::Error::other("a simulated sync failed"));
            }
            let File {
                durable, journal, ..
            } = file;
            journal.retain(|change| {
                if !change.forgotten {
                    change.apply(durable);
                }
                change.forgotten
            });
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.file(self.id)?.seen.len()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|state| {
            self.grow(state, len)?;
            self.record(state, What::Length(len))
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with(|state| {
            let now = state.file(self.id)?.seen.len();
            if now >= len {
                return Ok(());
            }
            state.take_room(len - now)?;
            self.record(state, What::Length(len))
        })
    }
}

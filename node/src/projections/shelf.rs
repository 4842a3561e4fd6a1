//! Which read models of one projection there are, and which of them answers: a small file beside them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use meridian_clock::Timestamp;
use meridian_projection::Definition;
use serde::{Deserialize, Serialize};

use crate::files;

const FILE: &str = "shelf.json";

/// The read models of one projection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shelf {
    /// The number that the next one gets; none is given twice.
    next: u32,
    /// The revision of its definition's stream up to which it is defined; what is older changes
    /// nothing.
    pub(crate) defined_at: Option<u64>,
    /// The one that answers queries.
    pub(crate) active: Option<u32>,
    /// The one that answered before, kept for a rollback.
    pub(crate) previous: Option<u32>,
    /// The one that is being built to take over.
    pub(crate) candidate: Option<u32>,
    /// No query is answered by a read model that is not so far, so that a change of read models takes
    /// nobody back.
    #[serde(default)]
    pub(crate) floor: Timestamp,
    /// Nothing is applied to any of them.
    pub(crate) paused: bool,
    /// What each of them is.
    pub(crate) models: BTreeMap<u32, Definition>,
}

impl Shelf {
    /// The shelf in `folder`, which may not be there yet.
    ///
    /// # Errors
    /// When the file is there and is no shelf.
    pub(crate) fn load(folder: &Path) -> io::Result<Self> {
        let path = folder.join(FILE);
        if !files::exists(&path) {
            return Ok(Self::default());
        }
        serde_json::from_str(&files::read_text(&path)?).map_err(io::Error::other)
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written; the one before is there then.
    pub(crate) fn save(&self, folder: &Path) -> io::Result<()> {
        files::make_private_folder(folder)?;
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        files::replace(&folder.join(FILE), &text, 0o600)
    }

    /// Puts a new read model on it.
    pub(crate) fn add(&mut self, definition: Definition) -> u32 {
        self.next += 1;
        self.models.insert(self.next, definition);
        self.next
    }

    /// The read model that a later definition follows on.
    pub(crate) fn newest(&self) -> Option<(u32, &Definition)> {
        let number = self.candidate.or(self.active)?;
        Some((number, self.models.get(&number)?))
    }

    /// Takes away what neither answers, nor did, nor will. Returns their numbers.
    pub(crate) fn sweep(&mut self) -> Vec<u32> {
        let kept = [self.active, self.previous, self.candidate];
        let unused: Vec<u32> = self
            .models
            .keys()
            .copied()
            .filter(|number| !kept.contains(&Some(*number)))
            .collect();
        for number in &unused {
            self.models.remove(number);
        }
        unused
    }
}

/// Where a read model's rows are.
pub(crate) fn model_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("model-{number}.db"))
}

/// Removes the files of all read models in `folder`.
pub(crate) fn forget_models(folder: &Path) {
    remove_files(folder, "model-");
}

/// Removes a read model's files.
pub(crate) fn remove_model(folder: &Path, number: u32) {
    let path = model_path(folder, number);
    remove_file_of_sqlite(&path);
    // Parts of it that were being built.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    remove_files(folder, &format!("{name}.part-"));
}

/// Removes a SQLite file with what SQLite keeps beside it, if it is there.
pub(crate) fn remove_file_of_sqlite(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        remove(Path::new(&name));
    }
}

fn remove_files(folder: &Path, prefix: &str) {
    for path in files::in_folder(folder).unwrap_or_default() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(prefix) {
            remove(&path);
        }
    }
}

/// Removes a file that is not needed any more, if it is there.
pub(super) fn remove(path: &Path) {
    if let Err(error) = files::remove(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a file that is not needed any more cannot be removed");
    }
}

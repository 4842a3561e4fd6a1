//! Which read models of one projection there are, and which of them answers: a small file beside them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use meridian_clock::Timestamp;
use meridian_projection::{Checkpoint, Definition, LogPlaces, Place};
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
    #[serde(flatten)]
    pub(crate) floor: Floor,
    /// Nothing is applied to any of them.
    pub(crate) paused: bool,
    /// What each of them is.
    pub(crate) models: BTreeMap<u32, Definition>,
}

/// How far the answers of read models have come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Floor {
    /// Everything at or below this was in them.
    #[serde(default, rename = "floor")]
    through: Timestamp,
    /// And so was what is at or before these, in those of the `live` tier.
    #[serde(
        default,
        rename = "floor_in_logs",
        skip_serializing_if = "LogPlaces::is_empty"
    )]
    logs: LogPlaces,
}

impl Floor {
    /// A read model has answered that had come so far.
    pub(crate) fn raise(&mut self, checkpoint: &Checkpoint) {
        self.through = self.through.max(checkpoint.through);
        if let Place::Logs(places) = &checkpoint.place {
            self.logs.merge(places);
        }
    }

    /// Takes the higher one of both, in each log.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.through = self.through.max(other.through);
        self.logs.merge(&other.logs);
    }

    /// Whether an answer of a read model that has come so far takes nobody back.
    pub(crate) fn is_reached_by(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.through >= self.through && self.logs.iter().all(|key| checkpoint.has(key))
    }
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
    remove_files_but(folder, prefix, &[]);
}

/// Removes the files in `folder` whose names begin with `prefix`, except those whose names begin with one of
/// `kept`.
pub(super) fn remove_files_but(folder: &Path, prefix: &str, kept: &[String]) {
    for path in files::in_folder(folder).unwrap_or_default() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(prefix) && !kept.iter().any(|kept| name.starts_with(kept)) {
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

#[cfg(test)]
mod tests {
    use meridian_clock::{OrderKey, PartitionId, Position, RegionId};

    use super::*;

    fn key(timestamp: u64, region: u16, position: u64) -> OrderKey {
        OrderKey {
            timestamp: Timestamp(timestamp),
            region: RegionId(region),
            partition: PartitionId(0),
            position: Position(position),
        }
    }

    fn live(through: u64, keys: &[OrderKey]) -> Checkpoint {
        let mut places = LogPlaces::default();
        keys.iter().for_each(|key| places.advance(*key));
        Checkpoint {
            place: Place::Logs(places),
            through: Timestamp(through),
            ..Checkpoint::default()
        }
    }

    #[test]
    fn a_shelf_of_before_live_read_models_is_read_and_one_with_them_survives() {
        let text = r#"{"next":2,"defined_at":1,"active":2,"previous":null,"candidate":null,
            "floor":17,"paused":false,"models":{}}"#;
        let mut shelf: Shelf = serde_json::from_str(text).expect("a shelf");
        assert_eq!(shelf.floor.through, Timestamp(17));
        shelf.floor.raise(&live(5, &[key(30, 1, 4)]));
        let text = serde_json::to_string(&shelf).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Shelf>(&text).expect("a shelf"),
            shelf
        );
    }

    #[test]
    fn an_answer_takes_nobody_back_in_any_log() {
        let mut floor = Floor::default();
        floor.raise(&live(20, &[key(30, 1, 4)]));
        floor.raise(&live(10, &[key(40, 2, 7)]));
        assert!(floor.is_reached_by(&live(20, &[key(30, 1, 4), key(40, 2, 7)])));
        assert!(!floor.is_reached_by(&live(19, &[key(30, 1, 4), key(40, 2, 7)])));
        assert!(!floor.is_reached_by(&live(20, &[key(30, 1, 4), key(39, 2, 6)])));
        // One of the one order takes over.
        let ordered = |through| Checkpoint {
            place: Place::Order(key(through, 0, 1)),
            through: Timestamp(through),
            ..Checkpoint::default()
        };
        assert!(floor.is_reached_by(&ordered(40)));
        assert!(!floor.is_reached_by(&ordered(39)));
    }
}

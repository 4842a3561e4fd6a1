//! Whose data folder this is, and what must be the same after every restart.

use std::sync::{Arc, Mutex, PoisonError};

use meridian_clock::{Incarnation, RegionId};
use meridian_points::{Bug, planted};
use meridian_store::{Disk, checked_file};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::NodeConfig;
use crate::seams::Random;

const PATH: &str = "identity";

/// What a data folder says about the node it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The federation it belongs to.
    pub federation: Uuid,
    /// The region it belongs to.
    pub region: RegionId,
    /// The federation's partition count.
    pub partitions: u16,
    /// Which life of the region's logs this is.
    pub incarnation: Incarnation,
    /// No position was ever given out from this folder: an empty log is not a lost one.
    pub fresh: bool,
    /// Keeps QUIC resets valid over a restart, so that peers notice it at once.
    pub quic_reset_key: [u8; 32],
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another node's data.
    #[error(
        "the data folder belongs to {found}, this configuration is for {expected}; \
         point `data` at this node's own folder"
    )]
    Foreign {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// The file is damaged.
    #[error(
        "the identity file of the data folder cannot be read; restore the folder from a peer or a backup"
    )]
    Read(#[source] checked_file::CheckedFileError),
    /// The file cannot be written.
    #[error("the identity file of the data folder cannot be written")]
    Write(#[source] std::io::Error),
}

impl Identity {
    /// Marks the folder as the given node's, with nothing ever written. Leaves a folder that
    /// already has an identity as it is.
    ///
    /// # Errors
    /// When the folder belongs to another node, or cannot be read or written.
    pub fn create_fresh(
        disk: &dyn Disk,
        config: &NodeConfig,
        random: &dyn Random,
    ) -> Result<Self, IdentityError> {
        match Self::load(disk, config)? {
            Some(found) => Ok(found),
            None => Self::create(disk, config, random, true),
        }
    }

    /// The folder's identity; `None` when it has none.
    ///
    /// # Errors
    /// When it belongs to another node, or cannot be read.
    pub(crate) fn load(
        disk: &dyn Disk,
        config: &NodeConfig,
    ) -> Result<Option<Self>, IdentityError> {
        let Some(bytes) = checked_file::read(disk, PATH).map_err(IdentityError::Read)? else {
            return Ok(None);
        };
        let found: Self = postcard::from_bytes(&bytes).map_err(|_| IdentityError::Foreign {
            found: "a node of another version".to_owned(),
            expected: "this version".to_owned(),
        })?;
        let describe = |federation: Uuid, region: RegionId, partitions: u16| {
            format!("region {region} of federation {federation} with {partitions} partitions")
        };
        let expected = describe(config.federation, config.region, config.partitions);
        let actual = describe(found.federation, found.region, found.partitions);
        if actual != expected {
            return Err(IdentityError::Foreign {
                found: actual,
                expected,
            });
        }
        Ok(Some(found))
    }

    /// An identity for a folder that has none although it may once have had one.
    pub(crate) fn create(
        disk: &dyn Disk,
        config: &NodeConfig,
        random: &dyn Random,
        fresh: bool,
    ) -> Result<Self, IdentityError> {
        let mut quic_reset_key = [0; 32];
        random.fill(&mut quic_reset_key);
        let identity = Self {
            federation: config.federation,
            region: config.region,
            partitions: config.partitions,
            incarnation: Incarnation(1),
            fresh,
            quic_reset_key,
        };
        identity.save(disk)?;
        Ok(identity)
    }

    /// Writes the identity durably.
    pub(crate) fn save(&self, disk: &dyn Disk) -> Result<(), IdentityError> {
        let bytes = postcard::to_stdvec(self).expect("an identity always encodes");
        checked_file::replace(disk, PATH, &bytes).map_err(IdentityError::Write)
    }
}

/// Says that the folder lost a log that is still being taken back from peers.
const LOST_PATH: &str = "log-lost";
/// There while a folder that was put back from a backup has not been told apart from one that was left here.
const RESTORED_PATH: &str = "restored";

/// Whether an earlier start found the log lost, and was ended before it had taken all of it back:
/// what is there by now may be a part.
pub(crate) fn is_lost(disk: &dyn Disk) -> std::io::Result<bool> {
    disk.exists(LOST_PATH)
}

/// Makes durable that the log is lost. To be called before anything of it is taken back.
pub(crate) fn note_lost(disk: &dyn Disk) -> std::io::Result<()> {
    checked_file::replace(disk, LOST_PATH, b"")
}

/// Makes durable that the folder was put back from a backup, of an age that nobody knows.
pub(crate) fn note_restored(disk: &dyn Disk) -> std::io::Result<()> {
    checked_file::replace(disk, RESTORED_PATH, b"")
}

/// Whether the folder was put back from a backup, and not all of that has been dealt with.
pub(crate) fn is_restored(disk: &dyn Disk) -> std::io::Result<bool> {
    disk.exists(RESTORED_PATH)
}

/// Whatever is to be forgotten of a folder that was put back is forgotten.
pub(crate) fn forget_restored(disk: &dyn Disk) -> std::io::Result<()> {
    disk.remove(RESTORED_PATH)?;
    disk.sync_dir("")
}

/// Says when it was made itself.
const MADE_PATH: &str = "made-here";

/// Whether the folder is a copy that was made file by file, so that its original may have been written to since. Of a
/// snapshot that was put back, and where the file system does not know when files were made, it cannot be told.
pub(crate) fn is_copy(disk: &dyn Disk) -> std::io::Result<bool> {
    let Some(says) = read_made(disk)? else {
        return Ok(false);
    };
    let made = disk.made(MADE_PATH)?;
    Ok(made.is_some_and(|made| made != says) && !planted(Bug::TrustCopy))
}

/// Notes that this folder is where it belongs.
pub(crate) fn note_made_here(disk: &dyn Disk) -> std::io::Result<()> {
    let file = disk.open(MADE_PATH, true)?;
    let Some(made) = disk.made(MADE_PATH)? else {
        return Ok(());
    };
    if read_made(disk)? == Some(made) {
        return Ok(());
    }
    let text = format!("{made}\n");
    file.set_len(text.len() as u64)?;
    file.write_all_at(text.as_bytes(), 0)?;
    file.sync_data()?;
    // Some tell when it was last changed, which is of no use.
    if disk.made(MADE_PATH)? != Some(made) {
        disk.remove(MADE_PATH)?;
    }
    disk.sync_dir("")
}

// What the file says; `None` when there is none, or it was not written to its end.
fn read_made(disk: &dyn Disk) -> std::io::Result<Option<u64>> {
    if !disk.exists(MADE_PATH)? {
        return Ok(None);
    }
    let mut text = [0; 24];
    let read = disk.open(MADE_PATH, false)?.read_at(&mut text, 0)?;
    let text = std::str::from_utf8(&text[..read]).ok();
    let number = text.and_then(|text| text.strip_suffix('\n'));
    Ok(number.and_then(|number| number.parse().ok()))
}

/// All of the log has been taken back, as far as all peers know.
pub(crate) fn note_found(disk: &dyn Disk) -> std::io::Result<()> {
    if disk.exists(LOST_PATH)? {
        disk.remove(LOST_PATH)?;
        disk.sync_dir("")?;
    }
    Ok(())
}

/// Notes that a position is about to be given out for the first time from this folder.
pub(crate) struct FirstWrite {
    disk: Arc<dyn Disk>,
    // Gone once it is noted.
    fresh: Mutex<Option<Identity>>,
}

impl FirstWrite {
    pub(crate) fn new(disk: Arc<dyn Disk>, identity: Identity) -> Self {
        Self {
            disk,
            fresh: Mutex::new(identity.fresh.then_some(identity)),
        }
    }

    /// Makes durable that this folder is no longer fresh. To be called before anything is written
    /// to this region's own logs: an empty log after that is a lost one.
    pub(crate) fn note(&self) -> Result<(), IdentityError> {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identity) = fresh.as_mut() {
            identity.fresh = false;
            identity.save(&*self.disk)?;
            *fresh = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use meridian_store::SimDisk;

    use super::*;

    #[test]
    fn a_copy_of_a_folder_is_known_and_the_folder_itself_is_none() {
        let disk = SimDisk::new(1);
        assert!(!is_copy(&disk).expect("the disk is sound"), "it is new");
        for _ in 0..2 {
            note_made_here(&disk).expect("the disk is sound");
            disk.crash();
            assert!(!is_copy(&disk).expect("the disk is sound"));
        }
        let copy = disk.backup(2);
        assert!(is_copy(&copy).expect("the disk is sound"));
        // An operator may say that it is none, and so may a node that has dealt with it.
        for tell in [
            |copy: &SimDisk| copy.remove(MADE_PATH),
            |copy: &SimDisk| note_made_here(copy),
        ] {
            tell(&copy).expect("the disk is sound");
            assert!(!is_copy(&copy).expect("the disk is sound"));
        }
    }
}

//! Checking a whole data folder that no node has open.

use std::io;

use meridian_clock::{LogId, Position};

use crate::{Disk, LogHead};

/// One thing that is wrong with a data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file it is in, below the data folder.
    pub file: String,
    /// Where in that file it begins.
    pub offset: u64,
    /// The origin log concerned, when that can be told.
    pub log: Option<LogId>,
    /// The positions concerned, when that can be told.
    pub positions: Option<(Position, Position)>,
    /// What is wrong.
    pub reason: String,
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// How far each origin log goes.
    pub logs: Vec<LogHead>,
    /// Everything that is wrong. Empty means that every block's checksum and chain is right, every
    /// log is dense, every index says what its segment says, and revisions have no gap.
    pub damage: Vec<Damage>,
    /// How many events could be read.
    pub events: u64,
    /// How many streams there are.
    pub streams: u64,
    /// In how many of them the revisions run 0, 1, 2… without a gap, per origin.
    pub streams_gapless: u64,
    /// How many bytes at the end were never acknowledged and will be cut when a node starts.
    pub torn_tail_bytes: u64,
    /// Index files that are missing and will be made when a node starts: no damage.
    pub indexes_missing: u64,
}

/// Why a data folder could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A node has the folder open. Stop it first.
    #[error("the data folder is in use by a running node; stop it, then verify again")]
    InUse,
    /// The folder could not be read.
    #[error("read {path}")]
    Io {
        /// What was being read.
        path: String,
        /// What the disk said.
        source: io::Error,
    },
}

/// Checks every byte of a data folder that no node has open. Changes nothing.
///
/// # Errors
/// When a node has the folder open, or it cannot be read at all.
pub fn verify(disk: &dyn Disk) -> Result<VerifyReport, VerifyError> {
    todo!()
}

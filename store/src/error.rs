//! Why something did not happen: one enum per operation.

use std::io;

use meridian_clock::{Epoch, Incarnation, LogId, Position, Timestamp};
use meridian_event::Chain;

use crate::{DamagedRange, LogHead, NotAdmitted};

/// Why a data folder was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another node has this folder open.
    #[error(
        "the data folder is in use by another process; stop that one, or give this node a folder \
         of its own"
    )]
    InUse,
    /// A segment was written by a newer build.
    #[error("{path} has format {found}, newer than this build reads; upgrade this node")]
    NewerFormat {
        /// The file, below the data folder.
        path: String,
        /// The version it has.
        found: u8,
    },
    /// The disk failed.
    #[error("open {path}")]
    Io {
        /// What was being done, or to which file below the data folder.
        path: String,
        /// What the disk said.
        source: io::Error,
    },
}

/// Why a block was not queued. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The block does not begin where its log ends. Send the block at `expected`.
    #[error("log {log} ends before position {expected}, the block begins at {actual}")]
    NotNext {
        /// The log.
        log: LogId,
        /// The position that comes next.
        expected: Position,
        /// The position that was offered.
        actual: Position,
    },
    /// The block continues another history than the one held here: the copies diverged.
    #[error("log {log} has chain {expected} before {position}, the block continues {actual}")]
    WrongChain {
        /// The log.
        log: LogId,
        /// The block's first position.
        position: Position,
        /// The chain that is held here.
        expected: Chain,
        /// The chain that the block continues.
        actual: Chain,
    },
    /// The block is of an earlier life or epoch of its log than what is held here.
    #[error(
        "log {log} is at incarnation {} epoch {}, the block is of {incarnation} and {epoch}",
        head.incarnation, head.epoch
    )]
    Superseded {
        /// The log.
        log: LogId,
        /// Where the log stands.
        head: Box<LogHead>,
        /// The block's incarnation.
        incarnation: Incarnation,
        /// The block's epoch.
        epoch: Epoch,
    },
    /// Going by the fences of its region, nothing of this epoch belongs at the block's positions. What
    /// follows is told by `source`.
    #[error("log {log} takes no block of this epoch at these positions")]
    Fenced {
        /// The log.
        log: LogId,
        /// Which rule refuses it.
        source: NotAdmitted,
    },
    /// The block rests on more of other logs than is here, see
    /// [`Store::set_dependencies`](crate::Store::set_dependencies). Submit it again once `missing` is.
    #[error("log {log} goes on here once what it rests on is: {}", list(missing))]
    MissingDependencies {
        /// The log.
        log: LogId,
        /// The other logs, each with the position up to which it is needed.
        missing: Vec<(LogId, Position)>,
    },
    /// The block's timestamps do not rise above the last one in its log.
    #[error("log {log} was last stamped {last}, the block begins at {actual}; it must rise")]
    NotRising {
        /// The log.
        log: LogId,
        /// The log's last timestamp.
        last: Timestamp,
        /// The block's first timestamp.
        actual: Timestamp,
    },
    /// The block's body does not decode, although its checksum is right.
    #[error("the block's body does not decode: {reason}")]
    Unreadable {
        /// What is wrong with it.
        reason: String,
    },
    /// More waits to be written than the queue holds. Wait for [`Store::room`](crate::Store::room).
    #[error("the write queue is full; wait for room and submit again")]
    Full,
    /// A write or sync failed earlier, so what is on disk is unknown. Restart and recover.
    #[error("the store is closed after a failed write: {reason}; restart the node to recover")]
    Poisoned {
        /// What failed.
        reason: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a queued block is not known to be durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// There is no room on the disk. Nothing of this block was written, nor of the blocks queued
    /// after it: [`Store::submitted_head`](crate::Store::submitted_head) is back at the last durable block. Make room; the next
    /// block is tried again.
    #[error("the disk is full: {reason}; make room, then append again")]
    DiskFull {
        /// What the disk said.
        reason: String,
    },
    /// A write or sync failed: this block may or may not be on the disk. Restart and recover.
    #[error("the store failed: {reason}; restart the node to recover")]
    Failed {
        /// What failed.
        reason: String,
    },
    /// The store was closed before this block was written.
    #[error("the store was closed first; nothing was written")]
    Closed,
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It was committed here but is damaged. Ask another region, and repair.
    #[error("{0}; it is not served until it is repaired from another region")]
    Damaged(DamagedRange),
    /// The disk failed.
    #[error("read {path}")]
    Io {
        /// The file, below the data folder.
        path: String,
        /// What the disk said.
        source: io::Error,
    },
}

fn list(missing: &[(LogId, Position)]) -> String {
    let each = missing.iter();
    let each = each.map(|(log, position)| format!("log {log} to {position}"));
    each.collect::<Vec<_>>().join(", ")
}

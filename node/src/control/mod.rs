//! The control plane: the few decisions that all regions must take together, and take them once.
//!
//! [`command`] is what can be asked, [`federation`] what is decided, a pure state machine. [`plane`] takes the decisions by Raft
//! among one node of each region ([`runtime`] and [`kept`] give the library its clock, randomness and
//! disk; its messages travel on our links). Everybody else sees a [`Consensus`]: what is decided now,
//! and a way to propose.
//!
//! It is off the write path: with half of the regions away nothing can be decided, and everything
//! that is decided already goes on.
//!
//! [`fence`] is the part of it that puts lost regions out and takes them back, [`membership`] the part by which
//! regions come in and leave for good, [`category`] the part that sets policies of categories.
//!
//! Not here: what a move of a home means for writes (`homes`). Start reading at [`federation`].
//!
//! Always true: a decision is durable in more than half of the regions before anyone acts on it, and
//! durable here before this node does.

pub(crate) mod category;
pub(crate) mod command;
pub(crate) mod federation;
pub(crate) mod fence;
mod kept;
mod membership;
mod plane;
mod runtime;

use std::sync::Arc;

use bytes::Bytes;
use meridian_clock::RegionId;
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use self::command::{Command, Foundation, Outcome, Refusal};
pub(crate) use self::federation::Federation;
pub(crate) use self::plane::{Plane, Setup};
use crate::seams::BoxFuture;

/// What `disk` knows to be decided, before a control plane runs on it.
///
/// # Errors
/// When its files cannot be read.
pub(crate) fn known(disk: &dyn meridian_store::Disk) -> Result<Federation, String> {
    kept::known(disk).map_err(|error| plane::explain(&error))
}

/// Forgets how this region has voted, of a disk that may be older than its votes. What it knows to be decided stays.
///
/// # Errors
/// When its files cannot be read or written.
pub(crate) fn forget_votes(disk: &dyn meridian_store::Disk) -> Result<(), String> {
    kept::forget_votes(disk).map_err(|error| plane::explain(&error))
}

/// Why a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProposeError {
    /// It was not decided, and will not be.
    #[error("nothing can be decided now: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// It may have been decided, or may yet be. Asking again does no harm.
    #[error("it is not known whether it was decided: {reason}; look, or ask again")]
    Unknown {
        /// Why.
        reason: String,
    },
}

/// How the control plane stands, as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The region that leads it, if one does.
    pub(crate) leader: Option<RegionId>,
    /// How many leaders there were.
    pub(crate) term: u64,
    /// The regions that vote.
    pub(crate) voters: Vec<RegionId>,
    /// Why it does not work on this node, if it does not.
    pub(crate) error: Option<String>,
}

/// Decides what all regions must do alike.
pub(crate) trait Consensus: Send + Sync {
    /// What is decided, as far as this node knows; changes when it learns more. Durable here.
    fn federation(&self) -> watch::Receiver<Arc<Federation>>;

    /// Whether this node knows all that it ever knew to be decided. One that lost its disk has forgotten it, and
    /// may have acted on it: before this says so, it must not rest on what it knows. Whoever reads what is
    /// decided after this has said so reads all of it.
    fn remembers(&self) -> bool;

    /// Proposes `command`, and waits until it is decided and applied *here*.
    ///
    /// # Errors
    /// When it is not decided by `deadline`, or that is not known.
    fn propose(
        &self,
        command: Command,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Outcome, ProposeError>>;

    /// Goes on without the one other region that decides, which is lost: an operator answers for that. What
    /// it may have decided with this one is kept; it comes back as one that knows nothing.
    ///
    /// # Errors
    /// Why that cannot be.
    fn go_on_alone(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Asks region `of` to grant this one its lease. Whether it does; not, if it does not answer.
    fn request_lease(&self, of: RegionId) -> BoxFuture<'_, bool>;

    /// Answers what the node of region `from` asks.
    fn answer(&self, from: RegionId, question: Bytes) -> BoxFuture<'static, Bytes>;

    /// How it stands.
    fn standing(&self) -> Standing;

    /// Stops taking part, and waits until nothing of it runs any more.
    fn shutdown(&self) -> BoxFuture<'_, ()>;
}

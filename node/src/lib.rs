//! One region's node: the sequencers, the routing between regions, and the doors.
//!
//! [`Node::start`] wires the store, the clock, the links and the doors together; everything that
//! reaches the outside world goes through [`seams`], so that the simulator runs the same node.
//!
//! Not here: the log (`store`), the talk between regions (`replication`), what clients import
//! (`client`). Start reading at `node`, then `sequencer`, then `append`.
//!
//! Always true (`durable`): nothing is acknowledged before it is durable at the level it was asked
//! for.

mod agreement;
mod append;
mod at_stake;
mod awaiting;
mod blame;
mod categories;
pub mod certificates;
pub mod config;
mod conflicts;
mod consumers;
mod control;
mod creating;
mod cursor;
mod door;
mod feed;
mod fencing;
pub mod files;
mod forwarding;
mod gate;
mod homes;
pub mod http;
mod identity;
mod live;
mod merging;
pub mod metrics;
mod node;
mod odd;
mod own;
mod projections;
mod readmission;
mod reads;
mod remembered;
mod reservations;
mod rights;
pub mod seams;
mod sequencer;
pub mod session;
mod shown;
mod status;
mod surely;
mod time;
mod why;

pub use at_stake::AtStake;
pub use blame::{HeldBack, HeldReason, HeldTier};
pub use categories::CategoryReport;
pub use conflicts::{
    Conflict, ConflictAction, ConflictError, ConflictId, ConflictResolution, ConflictStatus,
    Conflicts, LostBranch, LostEvents, Superseding, WinnerPlace,
};
pub use consumers::{
    Consumers, GroupDefinition, GroupFrom, GroupPart, GroupServed, GroupSource, GroupStatus,
    ParkedEvent,
};
pub use fencing::{FenceReport, FenceStanding, MembershipReport, RegionStanding, Standing};
pub use homes::{MoveError, StreamHome};
pub use identity::{Identity, IdentityError};
pub use merging::{SUPERSEDED_LISTED_MAX, StateReport};
pub use node::{Node, StartError};
pub use projections::{ModelStatus, ProjectionError, ProjectionStatus, Projections};
pub use readmission::Readmission;
pub use status::{
    ControlStatus, DigestEntry, LinkStatus, LogStatus, MemberStatus, NodeStatus,
    PartitionWatermarks, Watermarks,
};
pub use why::{DecidedBy, OrderReason, PlaceSettled, Placed, Relation, WhyError};

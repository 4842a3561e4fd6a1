//! Whole federations in one thread: real nodes under a network, disks and clocks that a seed breaks.
//!
//! Not here: anything that `meridian serve` does; what runs is the node itself, and only what
//! `node::seams` names is replaced. Start reading at [`plan`], then [`world`].
//!
//! Always true: a run depends on its plan alone. The same plan gives the same hash of everything
//! that happened, in any process and build.

pub mod fences;
pub mod gate;
pub mod history;
pub mod http;
pub mod hunt;
pub mod invariants;
pub mod kept;
pub mod load;
pub mod losses;
pub mod members;
pub mod merges;
pub mod picture;
pub mod plan;
pub mod rare;
pub mod rng;
pub mod same;
pub mod scenarios;
pub mod settled;
pub mod shrink;
pub mod states;
pub mod storms;
pub mod world;

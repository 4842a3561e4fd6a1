//! Keeps this region's logs and its peers' logs telling the same story.
//!
//! Every pair of regions shares two links, one per direction: each node dials every peer and pulls
//! from it. [`link`] decides *what* to ask for, from whom, what to keep and what to acknowledge, and
//! does it without sockets, disks or clocks; `quic` carries its decisions out.
//!
//! Not here: settling concurrent writes (`conflict`), how blocks lie on the disk (`store`), who the
//! peers are and what they are called (`node`). Start reading at [`frame`], then [`link`], then
//! `quic`.
//!
//! Always true: a link never acknowledges an event that our own disk could still lose (`durable`),
//! never keeps a block that does not follow exactly on what we hold (`dense`), and never overwrites
//! what we hold with something else (`identical`).

pub mod frame;
pub mod link;
#[cfg(feature = "quic")]
pub mod quic;

#[cfg(feature = "quic")]
pub use quic::{
    AskError, ControlAnswer, ControlDoor, Endpoint, EndpointKeys, Incoming, Links, LinksConfig,
    Member, Membership, PeerStatus, Remembered, Timings,
};

//! The HTTP door over real connections, with a backend that plays the node.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod appends;
mod conflicts;
mod description;
mod fake;
mod follow;
mod homes;
mod node;
mod operations;
mod problems;
mod reads;
mod reservations;
mod serving;

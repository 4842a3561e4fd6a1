//! Places in the physical log.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place in a node's physical log: a segment and a byte in it. Means nothing on another node.
///
/// The default is before everything.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct LogOffset {
    /// The segment's number, from 1.
    pub segment: u64,
    /// The byte in the segment's file.
    pub offset: u64,
}

impl LogOffset {
    /// The byte at `offset` of `segment`.
    pub fn new(segment: u64, offset: u64) -> Self {
        Self { segment, offset }
    }
}

impl fmt::Display for LogOffset {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.segment, self.offset)
    }
}

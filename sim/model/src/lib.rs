//! The protocol by which a region is fenced, replaced and taken back, as models that a checker walks
//! through: every order in which things can happen, within small bounds.
//!
//! Four models, each with the right rules and with rules that are known to be wrong. Of the right ones no
//! state may break a property; of each wrong one a story must be found that does, so that we know that the
//! model can see that danger at all. A property has its name from `ARCHITECTURE.md` where it has one there.
//!
//! - [`fence`]: seal, cut, backfill, open and join, with acknowledgements, stable, final and a loss;
//! - [`moves`]: who writes a stream that is moved while its home fails over;
//! - [`lease`]: a home that is cut off, clocks that drift, and a successor that waits;
//! - [`readmission`]: crashes in the middle of the way back.
//!
//! The rules in words, step by step, are in the crate's README.
//!
//! Not here: code of a node (nothing of ours is named here, and nobody names this crate), how the control
//! plane agrees (its log of decisions is taken as given), bytes, disks that forget, partitions of streams.
//! What each model leaves out, its module says. Start reading at [`cases`], then [`fence`].
//!
//! Always true: no message is modelled, only what a region takes and when it learns. A loss is a step that
//! never comes, so whatever a network can do is among the orders that are walked through.

pub mod cases;
pub mod check;
pub mod fence;
pub mod lease;
pub mod moves;
pub mod readmission;

use std::fmt;

/// A region, by number; shown as a letter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(
    /// 0 is A.
    pub u8,
);

impl Region {
    /// The region with this index.
    #[must_use]
    pub const fn at(index: usize) -> Region {
        Region(index as u8)
    }

    /// Its place in a list of all regions.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    const fn bit(self) -> u8 {
        1 << self.0
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", char::from(b'A' + self.0))
    }
}

//! Reading sealed segments again, piece by piece, to find damage before a reader does.

use crate::{DamagedRange, LogOffset};

/// Where scrubbing stands. Begin with the default.
#[derive(Clone, Debug, Default)]
pub struct ScrubCursor {
    pub(crate) at: LogOffset,
}

/// What one step of scrubbing did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// How many bytes were read.
    pub bytes: u64,
    /// What was found damaged in this step and was not known before.
    pub found: Vec<DamagedRange>,
    /// Every sealed segment has been read; the cursor begins anew.
    pub round_done: bool,
}

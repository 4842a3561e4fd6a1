//! What a caller may choose about a store.

/// Who carries out the commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// This many commit threads and one for housekeeping. Two keep one group being written while
    /// another syncs; more bring nothing (measured).
    Threads(usize),
    /// Nobody: nothing commits until someone calls [`crate::Store::commit_begin`],
    /// [`crate::Store::commit_finish`] and [`crate::Store::housekeep`]. For simulations.
    Driven,
}

/// How a store lays out its files and queues.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// A segment is sealed before it grows beyond this many bytes.
    pub segment_bytes: u64,
    /// A segment is sealed before it holds more than this many events, which bounds the index of
    /// the open segment in memory.
    pub segment_events_max: u64,
    /// Who carries out the commits.
    pub lanes: Lanes,
    /// Blocks are refused with [`crate::SubmitError::Full`] while more than this many bytes wait.
    pub queue_bytes_max: usize,
    /// At most this many bytes are written and synced in one go.
    pub group_bytes_max: usize,
    /// How far ahead of the log's end zeros are written, so that commits need not allocate.
    pub fill_ahead_bytes: u64,
    /// How much memory the filters of sealed segments may take; older ones are read from disk.
    pub filter_bytes_max: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            segment_events_max: 131_072,
            lanes: Lanes::Threads(2),
            queue_bytes_max: 32 << 20,
            group_bytes_max: 4 << 20,
            fill_ahead_bytes: 8 << 20,
            filter_bytes_max: 16 << 20,
        }
    }
}

/// As far ahead of the log's end as zeros are written before anything else is: what the
/// housekeeper writes lies beyond.
pub(crate) const FILL_MARGIN_BYTES: u64 = 1 << 20;

impl StoreOptions {
    /// How much of a new segment is written at once.
    pub(crate) fn zeros_at_first(&self) -> u64 {
        self.fill_ahead_bytes.min(FILL_MARGIN_BYTES)
    }
}

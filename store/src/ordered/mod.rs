//! The one total order over origin logs: what the `stable` and `final` tiers read.
//!
//! Each log is sorted already, so this is a merge, not a sort. A log takes part with the key of its
//! next event or, while its next block was not read yet, with the least key that block can begin
//! with: so blocks are read when it is their turn, and a log is known to be damaged no earlier than
//! the damage matters. Between two reads nothing but places is needed to go on.
//!
//! Start reading at [`OrderedReader::read`], then `log` (one log), `heads` (whose turn it is) and
//! `windows` (small blocks are read many at a time).

mod heads;
mod log;
mod windows;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use meridian_clock::{LogId, OrderKey, Timestamp};
use meridian_event::{EventRef, OpenBlock};

use crate::ReadError;
use crate::core::Core;

use heads::{Head, Heads};
use log::{Log, Snapshot};
use windows::Windows;

/// How many bytes of blocks one reader holds, whatever its logs and their lag, beside the block it
/// is in. Blocks aim at 4 MiB at most and are far smaller in general, so this is seldom reached;
/// when it is, the block whose turn is furthest away is let go and read again.
const HELD_BYTES_MAX: usize = 16 << 20;

/// Why [`OrderedReader::read`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Every event up to the bound has been visited.
    Bound,
    /// The visitor did not take an event; it comes first next time.
    Refused,
}

/// Reads the events of a set of origin logs in the one total order, see
/// [`Store::ordered`](crate::Store::ordered).
pub struct OrderedReader {
    core: Arc<Core>,
    // Ascending, so that a log's place here ranks it among events with one timestamp.
    logs: Vec<Log>,
    cursor: OrderKey,
    windows: Windows,
    // The largest body so far.
    largest_bytes: usize,
}

impl fmt::Debug for OrderedReader {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("OrderedReader")
            .field("cursor", &self.cursor)
            .field("logs", &self.logs.len())
            .finish_non_exhaustive()
    }
}

impl OrderedReader {
    pub(crate) fn new(
        core: &Arc<Core>,
        logs: impl IntoIterator<Item = LogId>,
        after: OrderKey,
    ) -> Self {
        let logs: BTreeSet<LogId> = logs.into_iter().collect();
        Self {
            core: Arc::clone(core),
            windows: Windows::for_logs(logs.len()),
            logs: logs.into_iter().map(|log| Log::new(log, after)).collect(),
            cursor: after,
            largest_bytes: 0,
        }
    }

    /// The key of the last event that was taken; what to resume from.
    pub fn cursor(&self) -> OrderKey {
        self.cursor
    }

    /// How many bytes of blocks are in memory.
    pub fn held_bytes(&self) -> usize {
        let blocks: usize = self.logs.iter().map(Log::held_bytes).sum();
        blocks + self.windows.bytes()
    }

    /// Lets go of what is held in memory; the next read fetches what it needs again. For a reader
    /// that will not go on soon.
    pub fn release(&mut self) {
        self.logs.iter_mut().for_each(Log::release);
        self.windows.clear();
    }

    /// Calls `visit` for the events after the cursor that are stamped at or before `until`, in
    /// order. [`ControlFlow::Continue`] takes the event and moves the cursor past it;
    /// [`ControlFlow::Break`] does not take it and ends the reading before it, so a pager that is
    /// full loses nothing and knows that there is more.
    ///
    /// `until` is a watermark: all that these logs hold, or will ever hold, up to it must be
    /// committed here before the call. Then what is visited is the same in every region. Take it
    /// from promises whose positions [`Store::head`](crate::Store::head) has reached: damage can
    /// take the end of a log and every trace of it, and the order then ends where the log does.
    ///
    /// The names in an event are given as they lie in the block: [`OpenBlock::record`] checks them.
    /// What is kept of a block, as such a record does, keeps the whole block in memory; copy when
    /// you keep a few events out of many.
    ///
    /// # Errors
    /// When the next event in the order may lie in a block that is damaged or cannot be read. The
    /// cursor stands behind what was taken, and the same reader goes on once that is mended.
    /// Nothing is ever passed over: a region that left out a block which others can read would
    /// disagree with them for good.
    ///
    /// A block that does not decode although its checksum is right is such an error, too. It cannot
    /// stop every region for good, for it is in no region's log: [`Store::submit`](crate::Store::submit)
    /// refuses it, its author's own store first of all, and a promise covers nothing before it is
    /// in its author's log. So where one is met, this copy went bad after it was taken.
    pub fn read(
        &mut self,
        until: Timestamp,
        mut visit: impl FnMut(OrderKey, &OpenBlock, &EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<Reached, ReadError> {
        let view = Snapshot::of(&self.core);
        let mut heads = Heads::new(self.logs.iter_mut().enumerate().filter_map(|(rank, log)| {
            log.refresh(&view);
            log.head(rank)
        }));
        while let Some(head) = heads.first().filter(|head| head.timestamp() <= until) {
            let rank = head.rank();
            let log = &mut self.logs[rank];
            if !log.knows_next() {
                log.find_next(&self.core, &view, &mut self.windows)?;
                heads.replace_first(log.head(rank));
                self.keep_to_budget(rank);
                continue;
            }
            log.open(&self.core, &view, &mut self.windows)?;
            self.keep_to_budget(rank);
            let log = &mut self.logs[rank];
            let limit = heads.second().min(Head::after_all_at(until));
            let refused = log.visit_below(&self.core, rank, limit, |key, open, event| {
                let flow = visit(key, open, event);
                if flow.is_continue() {
                    self.cursor = key;
                }
                flow
            })?;
            if refused {
                return Ok(Reached::Refused);
            }
            heads.replace_first(log.head(rank));
        }
        Ok(Reached::Bound)
    }

    // Lets the blocks go whose turn is furthest away, but never the one whose turn it is.
    fn keep_to_budget(&mut self, current: usize) {
        // Told without adding up hundreds of logs for each block.
        self.largest_bytes = self.largest_bytes.max(self.logs[current].held_bytes());
        if self.largest_bytes * self.logs.len() <= HELD_BYTES_MAX {
            return;
        }
        let mut held: usize = self.logs.iter().map(Log::held_bytes).sum();
        while held > HELD_BYTES_MAX {
            let others = self.logs.iter().enumerate();
            let furthest = others
                .filter(|(rank, log)| *rank != current && log.held_bytes() > 0)
                .max_by_key(|(rank, log)| log.head(*rank))
                .map(|(rank, _)| rank);
            let Some(furthest) = furthest else {
                return;
            };
            held -= self.logs[furthest].held_bytes();
            self.logs[furthest].release();
        }
    }
}

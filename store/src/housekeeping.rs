//! What is done beside commits so that none of them waits for it: zeros ahead of the log's end, the
//! next segment, index files of sealed segments.
//!
//! Zeros are written because the first write to a reserved but unwritten block makes the file
//! system journal that it is written now, and a commit's sync waits for that (measured: 1.4 times
//! fewer commits). They are written in small steps, each synced by itself, and never where a commit
//! could write at the same time: a step *claims* its place first.

use std::time::Duration;

use crate::commit::is_full;
use crate::core::Core;
use crate::index::{FileIndex, Index, write_index};
use crate::options::FILL_MARGIN_BYTES;
use crate::queue::{Fill, Prepared, Queue};
use crate::recovery::load_filters;
use crate::segment::{SEGMENT_HEADER_BYTES, prepare, segment_path};

/// How much is zeroed in one step.
const STEP_BYTES: u64 = 256 << 10;
const PAGE_BYTES: u64 = 4096;

/// What one step of housekeeping came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// There was nothing to do.
    Nothing,
    /// Something was done; go on at once.
    Done,
    /// Something was done that can take its time.
    DonePaced,
    /// Something failed that may go better later.
    Later,
}

enum Chore {
    Seal(u64),
    Prepare { number: u64, len: u64 },
    Fill { number: u64, from: u64, to: u64 },
}

impl Queue {
    /// Whether the housekeeper should be woken for more than it does by itself.
    pub(crate) fn wants_housekeeping(&self, core: &Core) -> bool {
        self.wants_next(core) || self.fill_range(core).is_some()
    }

    /// Whether there is anything at all to keep house about.
    pub(crate) fn has_chores(&self, core: &Core) -> bool {
        let can_seal = !self.to_seal.is_empty() && !self.seal_failed;
        can_seal || self.wants_housekeeping(core)
    }

    fn wants_next(&self, core: &Core) -> bool {
        self.lacks_next(core) && !self.prepare_failed
    }

    fn lacks_next(&self, core: &Core) -> bool {
        let half_full = self.open.tail > self.open.len / 2
            || self.open.events > core.options.segment_events_max / 2;
        half_full && self.next.is_none() && !self.preparing
    }

    // What to zero next in the open segment.
    fn fill_range(&self, core: &Core) -> Option<(u64, u64)> {
        let open = &self.open;
        let target = open.len.min(open.tail + core.options.fill_ahead_bytes);
        // Behind the log's end there is nothing to zero; close before it a commit may come by.
        let near = (open.tail + FILL_MARGIN_BYTES).next_multiple_of(PAGE_BYTES);
        step(open.fill, near, target)
    }

    fn next_chore(&mut self, core: &Core) -> Option<Chore> {
        if self.wants_next(core) {
            return Some(self.prepare(core));
        }
        if let Some((from, to)) = self.fill_range(core) {
            self.open.fill.claim = Some((from, to));
            let number = self.open.number;
            return Some(Chore::Fill { number, from, to });
        }
        if let Some(number) = self.to_seal.front() {
            return Some(Chore::Seal(*number));
        }
        if let Some(next) = &mut self.next
            && core.options.fill_ahead_bytes > 0
            && let Some((from, to)) = step(next.fill, SEGMENT_HEADER_BYTES, next.len)
        {
            next.fill.claim = Some((from, to));
            let number = next.number;
            return Some(Chore::Fill { number, from, to });
        }
        // Once more, after everything that may succeed.
        self.lacks_next(core).then(|| self.prepare(core))
    }

    fn prepare(&mut self, core: &Core) -> Chore {
        self.preparing = true;
        Chore::Prepare {
            number: self.open.number + 1,
            len: core.options.segment_bytes,
        }
    }

    // Wherever segment `number` is by now.
    fn fill_of(&mut self, number: u64) -> Option<&mut Fill> {
        if self.open.number == number {
            return Some(&mut self.open.fill);
        }
        let next = self.next.as_mut().filter(|next| next.number == number);
        next.map(|next| &mut next.fill)
    }
}

fn step(fill: Fill, nearest: u64, target: u64) -> Option<(u64, u64)> {
    let from = fill.until.max(nearest);
    let to = target.min((from + STEP_BYTES) / PAGE_BYTES * PAGE_BYTES);
    (fill.claim.is_none() && from < to).then_some((from, to))
}

impl Core {
    /// Takes one bounded step.
    pub(crate) fn housekeep(&self) -> Step {
        let chore = {
            let mut queue = self.queue();
            if queue.stop.is_some() {
                return Step::Nothing;
            }
            queue.next_chore(self)
        };
        match chore {
            None => Step::Nothing,
            Some(Chore::Seal(number)) => self.seal(number),
            Some(Chore::Prepare { number, len }) => self.prepare_next(number, len),
            Some(Chore::Fill { number, from, to }) => self.fill(number, from, to),
        }
    }

    /// Keeps house until the store closes. For a thread of its own.
    pub(crate) fn keep_house(&self) {
        loop {
            let pause = match self.housekeep() {
                Step::Done => continue,
                Step::DonePaced => Some(Duration::from_millis(2)),
                Step::Later => Some(Duration::from_secs(1)),
                Step::Nothing => None,
            };
            let queue = self.queue();
            if queue.stop.is_some() {
                return;
            }
            match pause {
                Some(pause) => {
                    drop(self.chores.wait_timeout(queue, pause));
                }
                None if queue.has_chores(self) => {}
                None => {
                    drop(self.chores.wait(queue));
                }
            }
        }
    }

    fn prepare_next(&self, number: u64, len: u64) -> Step {
        let made = prepare(&*self.disk, number, len, self.options.zeros_at_first());
        let mut queue = self.queue();
        queue.preparing = false;
        let step = match made {
            Ok(_) => {
                queue.prepare_failed = false;
                // There is room for whatever was refused.
                queue.disk_full = None;
                queue.next = Some(Prepared {
                    number,
                    len,
                    fill: Fill {
                        until: self.options.zeros_at_first().max(SEGMENT_HEADER_BYTES),
                        claim: None,
                    },
                });
                Step::Done
            }
            Err(error) => {
                if !std::mem::replace(&mut queue.prepare_failed, true) {
                    tracing::warn!(%error, segment = number, "the next segment cannot be prepared yet");
                }
                Step::Later
            }
        };
        drop(queue);
        self.work.notify_all();
        step
    }

    fn fill(&self, number: u64, from: u64, to: u64) -> Step {
        let zeros = vec![0; usize::try_from(to - from).unwrap_or(0)];
        let written = self
            .disk
            .open(&segment_path(number), false)
            .and_then(|file| {
                file.write_all_at(&zeros, from)?;
                file.sync_data()
            });
        let mut queue = self.queue();
        let comfortable = queue.open.fill.until > queue.open.tail + 2 * FILL_MARGIN_BYTES;
        if let Some(fill) = queue.fill_of(number) {
            fill.claim = None;
            fill.until = fill.until.max(to);
        }
        drop(queue);
        // A commit may have been waiting for exactly this place.
        self.work.notify_all();
        match written {
            Ok(()) if comfortable => Step::DonePaced,
            Ok(()) => Step::Done,
            Err(error) if is_full(&error) => Step::Later,
            Err(error) => {
                self.fail(&format!("zero {} ahead: {error}", segment_path(number)));
                Step::Nothing
            }
        }
    }

    fn seal(&self, number: u64) -> Step {
        // An index that is made anew meanwhile must not be replaced by the one it replaces.
        let _one_at_a_time = self.rebuilding();
        let Some(segment) = self.segments().get(&number).cloned() else {
            self.sealed(number);
            return Step::Done;
        };
        let written = match &*segment.index() {
            Index::File(_) => Ok(()),
            Index::Memory(index) => write_index(&*self.disk, number, index),
        };
        if let Err(error) = written {
            tracing::warn!(%error, segment = number, "an index file cannot be written yet");
            self.queue().seal_failed = true;
            self.work.notify_all();
            return Step::Later;
        }
        self.files.forget_index(number);
        match FileIndex::open(&self.files, number) {
            Ok(Some(index)) => *segment.index_mut() = Index::File(index),
            outcome => {
                let reason = outcome.err().map(|error| error.to_string());
                tracing::warn!(
                    segment = number,
                    reason,
                    "an index file was written in vain"
                );
                self.queue().seal_failed = true;
                self.work.notify_all();
                return Step::Later;
            }
        }
        self.sealed(number);
        load_filters(&self.segments(), self.options.filter_bytes_max);
        Step::Done
    }

    fn sealed(&self, number: u64) {
        let mut queue = self.queue();
        if queue.to_seal.front() == Some(&number) {
            queue.to_seal.pop_front();
        }
        queue.seal_failed = false;
        drop(queue);
        self.work.notify_all();
    }
}

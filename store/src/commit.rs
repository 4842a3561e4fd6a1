//! Group commit: what is queued is written in one go and synced in one go, on two lanes.
//!
//! A lane takes everything that is queued (up to a limit) as one *group*, gives each block its
//! place, writes and syncs. Meanwhile the other lane may take the next group, so one is being
//! written while the other syncs. Groups complete in the order in which they were formed, whatever
//! order their syncs end in: only the contiguous prefix is ever reported.
//!
//! Each lane has opened the segment for itself: the kernel reports a failed write-back once to
//! each open file, and a lane that shared the other's would be told that its own sync went well.
//!
//! A failed write or sync ends everything: every block in flight or queued fails, none is taken
//! any more. A sync is never repeated, because the second one reports success for pages that the
//! first one lost.
//!
//! A segment is left for the next one only when all of it is durable and indexed. So nothing of a
//! segment is in doubt once anything stands in the one after it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use meridian_clock::{LogId, Position};
use meridian_event::{Block, EventRef};
use meridian_points::{Bug, buggify, planted, reached};

use crate::build::head_after;
use crate::core::{Core, Segment};
use crate::envelope::{ENVELOPE_BYTES, Envelope};
use crate::index::{Index, MemoryIndex, keys_of};
use crate::queue::{
    Fill, Group, IN_FLIGHT_MAX, Open, Placed, Prepared, Queue, Ready, Stop, Taken, Waiting,
};
use crate::segment::{SEGMENT_HEADER_BYTES, prepare, segment_path};
use crate::store::Done;
use crate::{CommitError, DiskFile, LogOffset, SubmitError};

/// What one lane keeps between groups.
#[derive(Default)]
pub(crate) struct Lane {
    file: Option<(u64, Arc<dyn DiskFile>)>,
    buffer: Vec<u8>,
}

impl Core {
    pub(crate) fn submit(&self, block: Block, done: Done) -> Result<(), SubmitError> {
        // Decoded and hashed before the lock is taken, and before anything is written: a block that
        // cannot be indexed must not enter the log.
        let mut missing = Vec::new();
        let look = |event: &EventRef<'_>| self.note_missing(event, &mut missing);
        let keys = keys_of(&block, look).map_err(|error| SubmitError::Unreadable {
            reason: error.to_string(),
        })?;
        if !missing.is_empty() && !planted(Bug::TakeUnheld) && !planted(Bug::OpenUnheld) {
            let log = block.header().log;
            return Err(SubmitError::MissingDependencies { log, missing });
        }
        let chain = block.chain();
        let head = head_after(&block, chain);
        let waiting = Waiting {
            block,
            chain,
            keys,
            done,
        };
        let should_call = {
            let mut queue = self.queue();
            queue.admit(&waiting.block, self.options.queue_bytes_max)?;
            queue.bytes += waiting.weight_bytes();
            queue.submitted.insert(head.log, head);
            queue.waiting.push_back(waiting);
            queue.should_call()
        };
        if should_call {
            self.work.notify_one();
        }
        self.driver.notify_one();
        Ok(())
    }

    // Adds what `event` rests on and is not durable here: what is only queued may yet fail alone.
    fn note_missing(&self, event: &EventRef<'_>, missing: &mut Vec<(LogId, Position)>) {
        let Some(dependencies) = self.dependencies.get() else {
            return;
        };
        for (log, position) in dependencies(event) {
            let held = self.view().heads.get(&log).map(|head| head.position);
            if held.unwrap_or_default() < position {
                missing.push((log, position));
            }
        }
    }

    /// Takes the next group. Waits for one if `wait`, until the store is closed.
    pub(crate) fn take_group(&self, wait: bool) -> Taken {
        let mut queue = self.queue();
        loop {
            let stopped = match queue.stop {
                Some(Stop::Failed(_)) => true,
                Some(Stop::Closed) => queue.waiting.is_empty(),
                None => false,
            };
            if stopped {
                // The other lane may be waiting for a block that this one took.
                self.work.notify_all();
                return Taken::Stopped;
            }
            let in_flight_max = match buggify("one group is in flight at a time") {
                true => 1,
                false => IN_FLIGHT_MAX,
            };
            if !wait && queue.in_flight.len() >= in_flight_max {
                return Taken::Nothing;
            }
            match queue.ready(self) {
                Ready::Group => {
                    let group = queue.form_group(self);
                    if queue.should_call() {
                        self.work.notify_one();
                    }
                    if queue.wants_housekeeping(self) {
                        self.chores.notify_one();
                    }
                    return Taken::Group(group);
                }
                Ready::Wait if wait => {
                    queue.idle += 1;
                    queue = self
                        .work
                        .wait(queue)
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    queue.came();
                }
                Ready::Wait => return Taken::Nothing,
                Ready::Prepare { number, len } => {
                    let enough = queue.next.as_ref().is_some_and(|next| next.len >= len);
                    if enough {
                        self.roll(&mut queue);
                        continue;
                    }
                    queue.preparing = true;
                    let exists = queue.next.is_some();
                    drop(queue);
                    let made = match exists {
                        true => self.extend(number, len),
                        false => {
                            let zeros = self.options.zeros_at_first();
                            prepare(&*self.disk, number, len, zeros).map(|_| ())
                        }
                    };
                    queue = self.queue();
                    queue.preparing = false;
                    match (made, &mut queue.next) {
                        (Ok(()), Some(next)) => next.len = len,
                        (Ok(()), none) => {
                            *none = Some(Prepared {
                                number,
                                len,
                                fill: Fill {
                                    until: self.options.zeros_at_first().max(SEGMENT_HEADER_BYTES),
                                    claim: None,
                                },
                            });
                        }
                        (Err(error), _) => queue = self.refuse_for(queue, &error),
                    }
                }
                Ready::Extend { number, len } => {
                    queue.preparing = true;
                    drop(queue);
                    let extended = self.extend(number, len);
                    queue = self.queue();
                    queue.preparing = false;
                    match extended {
                        Ok(()) => {
                            queue.open.len = len;
                            queue.disk_full = None;
                        }
                        Err(error) => queue = self.refuse_for(queue, &error),
                    }
                }
            }
        }
    }

    fn extend(&self, segment: u64, len: u64) -> io::Result<()> {
        let file = self.disk.open(&segment_path(segment), false)?;
        file.allocate(len)?;
        file.sync_data()
    }

    // There is no segment to write to. Nothing was written, so a full disk is no reason to stop for
    // good: what is queued is refused, and the next block tries again.
    fn refuse_for<'a>(
        &'a self,
        mut queue: std::sync::MutexGuard<'a, Queue>,
        error: &io::Error,
    ) -> std::sync::MutexGuard<'a, Queue> {
        let reason = error.to_string();
        if !is_full(error) {
            queue.fail(&format!("prepare a segment: {reason}"));
            drop(queue);
            self.fail_waiting();
            return self.queue();
        }
        assert!(
            queue.in_flight.is_empty(),
            "a segment is left while some of it is in flight"
        );
        if queue.waiting.is_empty() {
            // Only a repair wanted the segment, and it asks again.
            queue.roll_wanted = false;
            return queue;
        }
        tracing::error!(
            reason,
            "the disk is full; appends are refused until there is room"
        );
        reached("the disk was full and what was queued was refused");
        queue.disk_full = Some(reason.clone());
        queue.submitted = self.view().heads.clone();
        let refused = std::mem::take(&mut queue.waiting);
        let bytes: usize = refused.iter().map(Waiting::weight_bytes).sum();
        queue.bytes -= bytes;
        drop(queue);
        for waiting in refused {
            let error = CommitError::DiskFull {
                reason: reason.clone(),
            };
            call(waiting.done, Err(error));
        }
        self.room.notify_waiters();
        self.queue()
    }

    // Leaves the open segment, all of which is durable and indexed, for the prepared one.
    fn roll(&self, queue: &mut Queue) {
        let Some(next) = queue.next.take() else {
            return;
        };
        assert!(
            queue.in_flight.is_empty(),
            "a segment is left while some of it is in flight"
        );
        reached("a segment was left for the next one");
        let sealed = queue.open.number;
        queue.open = Open {
            number: next.number,
            len: next.len,
            tail: SEGMENT_HEADER_BYTES,
            events: 0,
            marked: false,
            fill: next.fill,
        };
        queue.to_seal.push_back(sealed);
        queue.roll_wanted = false;
        queue.prepare_failed = false;
        queue.disk_full = None;
        {
            let mut view = self.view_mut();
            let mut segments = (*view.segments).clone();
            // Segments of one node are much alike.
            let like = segments
                .get(&sealed)
                .map(|segment| match &*segment.index() {
                    Index::Memory(index) => MemoryIndex::with_room_like(index),
                    Index::File(_) => MemoryIndex::default(),
                });
            let mut index = like.unwrap_or_default();
            index.summary.end = SEGMENT_HEADER_BYTES;
            let segment = Segment::new(next.number, Index::Memory(index));
            segments.insert(next.number, segment);
            view.segments = Arc::new(segments);
            view.end = LogOffset::new(next.number, SEGMENT_HEADER_BYTES);
        }
        self.chores.notify_all();
        self.driver.notify_one();
    }

    /// Writes a group. A failure is kept in the group, for [`Core::finish_group`].
    pub(crate) fn write_group(&self, group: &mut Group, lane: &mut Lane) {
        let Lane { file, buffer } = lane;
        buffer.clear();
        for Placed { waiting, offset } in &group.placed {
            let own = LogOffset::new(group.segment, *offset);
            let Waiting { block, chain, .. } = waiting;
            let envelope = Envelope::of_block(block, *chain, own, group.durable);
            buffer.extend_from_slice(&envelope.to_bytes());
            buffer.extend_from_slice(block.bytes());
            let padded = *offset - group.start + waiting.entry_bytes();
            buffer.resize(usize::try_from(padded).unwrap_or(usize::MAX), 0);
        }
        let written = (|| {
            let file = match file {
                Some((segment, file)) if *segment == group.segment => Arc::clone(file),
                _ => {
                    let fresh = self.disk.open(&segment_path(group.segment), false)?;
                    *file = Some((group.segment, Arc::clone(&fresh)));
                    fresh
                }
            };
            file.write_all_at(buffer, group.start)?;
            Ok(Some(file))
        })();
        group.written = written
            .map_err(|error: io::Error| format!("write {}: {error}", segment_path(group.segment)));
        // One large group must not hold its memory for good.
        if buffer.capacity() > 2 * self.options.group_bytes_max {
            *buffer = Vec::new();
        }
    }

    /// Syncs a group and completes whatever that lets complete.
    pub(crate) fn finish_group(&self, group: Group) {
        let outcome = match group.written {
            Ok(Some(file)) => {
                Core::count(&self.counters.fsyncs, 1);
                self.sync(&*file)
                    .map_err(|error| format!("sync {}: {error}", segment_path(group.segment)))
            }
            Ok(None) => Err("a group was finished before it was written".to_owned()),
            Err(reason) => Err(reason),
        };
        let mut queue = self.queue();
        if let Err(reason) = &outcome {
            queue.fail(reason);
        }
        let slot = queue
            .in_flight
            .iter_mut()
            .find(|in_flight| in_flight.sequence == group.sequence);
        if let Some(slot) = slot {
            slot.outcome = Some((group.placed, outcome));
        }
        // One lane completes at a time, in order; the other goes on to its next group.
        if queue.completing {
            return;
        }
        queue.completing = true;
        loop {
            let failed = match &queue.stop {
                Some(Stop::Failed(reason)) => Some(reason.clone()),
                _ => None,
            };
            let open = queue.open.number;
            // It stays in the queue until it is published: see below.
            let Some(front) = queue.in_flight.front_mut() else {
                break;
            };
            let (end, bytes) = (front.end, front.bytes);
            let Some((placed, outcome)) = front.outcome.take() else {
                break;
            };
            let outcome = match failed {
                Some(reason) => Err(reason),
                None => outcome,
            };
            if outcome.is_ok() {
                queue.durable = LogOffset::new(open, end);
            }
            drop(queue);
            let dones = match &outcome {
                Ok(()) => self.publish(open, end, placed),
                Err(_) => placed.into_iter().map(|it| it.waiting.done).collect(),
            };
            queue = self.queue();
            // Only now, published, does it no longer count as in flight: a segment is left only
            // when all of it is indexed.
            queue.in_flight.pop_front();
            queue.bytes -= bytes;
            // This lane will look for work itself, once the writers have their answers; the other
            // one is only woken when there is some already.
            let should_call = queue.should_call();
            drop(queue);
            if should_call {
                self.work.notify_one();
            }
            self.driver.notify_one();
            if outcome.is_ok() {
                self.committed.send_modify(|round| *round += 1);
            }
            self.room.notify_waiters();
            let answer = outcome.map_err(|reason| CommitError::Failed { reason });
            for done in dones {
                call(done, answer.clone());
            }
            queue = self.queue();
        }
        queue.completing = false;
        let failed = matches!(queue.stop, Some(Stop::Failed(_)));
        drop(queue);
        if failed {
            self.fail_waiting();
        }
    }

    fn sync(&self, file: &dyn DiskFile) -> io::Result<()> {
        let is_covered = planted(Bug::SyncByNeighbour) && self.queue().in_flight.len() > 1;
        if planted(Bug::SkipSync) || is_covered {
            return Ok(());
        }
        match file.sync_data() {
            Err(_) if planted(Bug::RetrySync) => file.sync_data(),
            outcome => outcome,
        }
    }

    // Lets readers see a group that is durable.
    fn publish(&self, segment: u64, end: u64, placed: Vec<Placed>) -> Vec<Done> {
        let open = self.segments().get(&segment).cloned();
        let open = open.expect("the open segment is in view until it is left");
        if let Index::Memory(index) = &mut *open.index_mut() {
            for Placed { waiting, offset } in &placed {
                let Waiting {
                    block, chain, keys, ..
                } = waiting;
                let bytes = u32::try_from(block.bytes().len()).unwrap_or(u32::MAX);
                index.insert(block.header(), *chain, *offset, bytes, keys);
            }
            index.summary.end = end;
        }
        let mut view = self.view_mut();
        for Placed { waiting, .. } in &placed {
            let head = head_after(&waiting.block, waiting.chain);
            let before = view.heads.insert(head.log, head);
            let before = before.map_or(0, |before| before.position.0);
            assert_eq!(
                before + 1,
                waiting.block.header().first_position.0,
                "dense: a block of log {} was committed out of order",
                head.log
            );
        }
        view.end = LogOffset::new(segment, end);
        drop(view);
        Core::count(&self.counters.blocks_committed, placed.len() as u64);
        placed.into_iter().map(|it| it.waiting.done).collect()
    }

    /// Fails what is queued, once nothing before it is in flight.
    pub(crate) fn fail_waiting(&self) {
        let mut queue = self.queue();
        let Some(Stop::Failed(reason)) = queue.stop.clone() else {
            return;
        };
        self.work.notify_all();
        self.chores.notify_all();
        if !queue.in_flight.is_empty() {
            return;
        }
        let refused = std::mem::take(&mut queue.waiting);
        queue.bytes = 0;
        drop(queue);
        self.room.notify_waiters();
        for waiting in refused {
            let reason = reason.clone();
            call(waiting.done, Err(CommitError::Failed { reason }));
        }
    }

    /// Takes no more blocks, because something is wrong.
    pub(crate) fn fail(&self, reason: &str) {
        self.queue().fail(reason);
        self.fail_waiting();
    }

    /// Refuses what is still queued, when the store closes without writing it.
    pub(crate) fn refuse_waiting(&self) {
        let refused = std::mem::take(&mut self.queue().waiting);
        for waiting in refused {
            call(waiting.done, Err(CommitError::Closed));
        }
        self.room.notify_waiters();
    }

    /// Says at the end of the log that all of it is durable, so that damage to its last entries is
    /// not taken for a write that never finished. For a store whose lanes have stopped.
    pub(crate) fn write_mark(&self) -> io::Result<()> {
        let (segment, tail, durable) = {
            let queue = self.queue();
            let open = &queue.open;
            let room = open.tail + ENVELOPE_BYTES as u64 <= open.len;
            let idle = queue.in_flight.is_empty() && queue.is_sound();
            let nothing_yet = queue.durable == LogOffset::new(1, SEGMENT_HEADER_BYTES);
            if open.marked || !room || !idle || nothing_yet {
                return Ok(());
            }
            (open.number, open.tail, queue.durable)
        };
        let own = LogOffset::new(segment, tail);
        let file = self.disk.open(&segment_path(segment), false)?;
        file.write_all_at(&Envelope::of_mark(own, durable).to_bytes(), tail)?;
        file.sync_data()?;
        let end = tail + ENVELOPE_BYTES as u64;
        let mut queue = self.queue();
        queue.open.tail = end;
        queue.open.marked = true;
        queue.durable = LogOffset::new(segment, end);
        drop(queue);
        if let Some(open) = self.segments().get(&segment)
            && let Index::Memory(index) = &mut *open.index_mut()
        {
            index.summary.end = end;
        }
        self.view_mut().end = LogOffset::new(segment, end);
        Ok(())
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

// A writer's mistake must not take the lane, and with it every other writer, down.
fn call(done: Done, answer: Result<(), CommitError>) {
    if catch_unwind(AssertUnwindSafe(|| done(answer))).is_err() {
        tracing::error!("a completion callback panicked");
    }
}

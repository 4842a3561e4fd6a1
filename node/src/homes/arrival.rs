//! Whether what another region gave up is here: a home opens then, and not before.
//!
//! Start reading at [`Homes::arrival`].

use std::sync::PoisonError;
use std::time::Duration;

use meridian_clock::{Dot, LogId, Merge, PartitionId, Position, RegionId};
use meridian_conflict::Isolation;
use meridian_event::RecordedEvent;
use meridian_points::{Bug, planted, reached};
use meridian_store::ReadError;

use super::opening::{OPENED, Opening};
use super::{Homes, TRANSFER, Transfer, majority, transfer_id};
use crate::control::Federation;
use crate::control::federation::Need;
use crate::control::fence::Fence;

/// How much of a log is read to find one event.
const ONE_BLOCK: usize = 1;
/// How long a new home waits until its clock has passed the old one's stamps. A node that has just been
/// started stamps up to a second ahead.
const WAIT_FOR_CLOCK: Duration = Duration::from_secs(5);

/// What a region gave up by a change, in one partition.
pub(super) type GivenUp = (RegionId, u64, PartitionId);

/// How far what another region gave up has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Its transfer, or something that it rests on, is not here.
    NotYet,
    /// All is here, and stamped so far ahead of our clock that nothing comes behind it for long.
    TooFarAhead,
    /// All is here, and our clock is past it.
    Complete,
}

impl Homes {
    /// How far what `from` gave up in `partition` by `change` has come, for streams of such categories.
    pub(super) fn arrival(
        &self,
        federation: &Federation,
        from: RegionId,
        change: u64,
        partition: PartitionId,
        isolation: Isolation,
    ) -> Result<Arrival, ReadError> {
        if isolation == Isolation::Fenced
            && let Some(fence) = federation.fence_by(from, change)
            && !self.lease_is_over(federation, fence, change)
        {
            return Ok(Arrival::NotYet);
        }
        let key = (from, change, partition);
        if self.is_complete(key, isolation) {
            return Ok(Arrival::Complete);
        }
        let log = LogId::new(from, partition);
        if federation.fence_by(from, change).is_some() {
            let arrival = self.arrival_of_cut(federation, log, change);
            if arrival == Arrival::Complete {
                // All who remain hold it.
                self.note_complete(key, Isolation::Fenced);
            }
            return Ok(arrival);
        }
        let id = transfer_id(change, log);
        let Some(found) = self.store.find_event(id, &[log])? else {
            // Whoever was lost before it could write it will not write it any more.
            return match federation.instead_of((from, change)) {
                Some(needs) if self.all_complete(federation, &needs, partition, isolation)? => {
                    Ok(Arrival::Complete)
                }
                _ => Ok(Arrival::NotYet),
            };
        };
        let Some(transfer) = self.read_transfer(log, found.dot.position)? else {
            return Ok(Arrival::NotYet);
        };
        let is_held = transfer.held.iter().all(|(region, position)| {
            let log = LogId::new(*region, partition);
            let needed = federation.still_counts(log, *position, found.dot);
            self.store.head(log).position >= needed
        });
        if !is_held {
            reached("a transfer was here before all that it rests on");
            return Ok(Arrival::NotYet);
        }
        // Whatever is stamped here from now on comes behind it in the one order, and so does the
        // transfer by which this region gives it up again.
        if self.hlc.passed() < found.timestamp
            && let Merge::TooFarAhead { by } = self.hlc.merge(found.timestamp)
        {
            return Ok(match by > WAIT_FOR_CLOCK {
                true => Arrival::TooFarAhead,
                false => Arrival::NotYet,
            });
        }
        // What is acknowledged of a fenced category outlives every fence: what it comes after must, too.
        if isolation == Isolation::Fenced
            && !self.is_held_by_majority(federation, found.dot)
            && !planted(Bug::OpenUnheld)
        {
            reached("a home of a fenced category waited until a majority held its transfer");
            return Ok(Arrival::NotYet);
        }
        self.note_complete(key, isolation);
        Ok(Arrival::Complete)
    }

    /// Whether that was seen to be complete for streams of such categories.
    pub(super) fn is_complete(&self, part: GivenUp, isolation: Isolation) -> bool {
        let complete = self.complete.lock().unwrap_or_else(PoisonError::into_inner);
        match complete.get(&part) {
            Some(Isolation::Fenced) => true,
            Some(Isolation::Available) => isolation == Isolation::Available,
            None => false,
        }
    }

    fn note_complete(&self, part: GivenUp, isolation: Isolation) {
        let mut complete = self.complete.lock().unwrap_or_else(PoisonError::into_inner);
        complete.insert(part, isolation);
    }

    // Whether a majority of the members holds what this region holds at `dot`.
    fn is_held_by_majority(&self, federation: &Federation, dot: Dot) -> bool {
        let Some(held) = self.held.get() else {
            return false;
        };
        let held = held.borrow();
        let members = federation.members();
        let holds = |member: &&RegionId| {
            // Who wrote it holds it: nothing leaves a region before it is durable there.
            [self.region, dot.origin].contains(member)
                || held.get(member).is_some_and(|vector| vector.contains(dot))
        };
        members.iter().filter(holds).count() >= majority(members.len())
    }

    // How far what a lost region leaves behind has come: all up to its cut, once the fence is open.
    fn arrival_of_cut(&self, federation: &Federation, log: LogId, change: u64) -> Arrival {
        let fence = federation.fence_by(log.origin, change);
        let may = |fence: &&Fence| fence.opened || planted(Bug::OpenBeforeBackfill);
        let Some(cut) = fence.filter(may).and_then(|fence| fence.cut(log)) else {
            return Arrival::NotYet;
        };
        let head = self.store.head(log);
        if head.position < cut && !planted(Bug::OpenBeforeBackfill) {
            return Arrival::NotYet;
        }
        // What is written next must come behind it in the order.
        match self.hlc.passed() >= head.timestamp
            || matches!(self.hlc.merge(head.timestamp), Merge::Merged)
        {
            true => Arrival::Complete,
            false => Arrival::TooFarAhead,
        }
    }

    /// The transfer at `position` of `log`; `None` when what stands there is none.
    pub(super) fn read_transfer(
        &self,
        log: LogId,
        position: Position,
    ) -> Result<Option<Transfer>, ReadError> {
        let event = self.read_event(log, position)?;
        Ok(event
            .filter(|event| event.event_type.as_str() == TRANSFER)
            .and_then(|event| serde_json::from_slice(&event.data).ok()))
    }

    /// The decision that the event at `position` of `log` follows, if it hands a home over.
    pub(super) fn read_change(
        &self,
        log: LogId,
        position: Position,
    ) -> Result<Option<u64>, ReadError> {
        let Some(event) = self.read_event(log, position)? else {
            return Ok(None);
        };
        let transfer = || serde_json::from_slice::<Transfer>(&event.data).map(|it| it.change);
        let opening = || serde_json::from_slice::<Opening>(&event.data).map(|it| it.change);
        Ok(match event.event_type.as_str() {
            TRANSFER => transfer().ok(),
            OPENED => opening().ok(),
            _ => None,
        })
    }

    fn read_event(
        &self,
        log: LogId,
        position: Position,
    ) -> Result<Option<RecordedEvent>, ReadError> {
        let before = Position(position.0.saturating_sub(1));
        let blocks = self.store.read_log(log, before, ONE_BLOCK)?;
        let Some(events) = blocks.first().map(meridian_event::Block::to_events) else {
            return Ok(None);
        };
        // A block that the store gives has been checked when it was taken in.
        let events = events.unwrap_or_default();
        let mut events = events.into_iter();
        Ok(events.find(|event| event.dot.position == position))
    }

    /// Whether all that these transfers stand for is here.
    pub(super) fn all_complete<'a>(
        &self,
        federation: &Federation,
        needs: impl IntoIterator<Item = &'a Need>,
        partition: PartitionId,
        isolation: Isolation,
    ) -> Result<bool, ReadError> {
        for (from, change) in needs {
            let arrival = self.arrival(federation, *from, *change, partition, isolation)?;
            if arrival != Arrival::Complete {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

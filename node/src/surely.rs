//! Appends that go on until their answer is sure, and what of their events is recorded already.
//!
//! Whoever writes what must not be lost, and may have written some of it in an earlier life, asks the
//! log itself: an event is known by its id, wherever its stream has its home by now.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;
use meridian_client::{AppendError, AppendRequest, Appended, Durability, Expected, Limits};
use meridian_event::{NewEvent, Revision, StreamId};
use meridian_points::reached;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::Node;

/// How long before an append is tried again that was not answered for sure: at first, and at most.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(5);
/// What no stream ever comes to. A batch that expects this is answered with where it stands if it is
/// recorded already, and else is never written.
pub(crate) const NEVER: Expected = Expected::Revision(Revision(u64::MAX - 1));

/// What became of a batch, for sure.
#[derive(Debug)]
pub(crate) enum Sure {
    /// It is in its stream, from now on or as an earlier attempt left it.
    Written(Appended),
    /// It is not, and the stream has gone on, or is not there yet.
    WrongRevision { actual: Option<Revision> },
    /// It can never be written as it is.
    Refused(String),
}

/// Why it is not known what became of a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsure {
    /// The node stops.
    #[error("the node is stopping")]
    Stopping,
    /// Nothing was written in the time there was.
    #[error("{0}")]
    Unavailable(String),
    /// It may be written.
    #[error("{0}")]
    Unknown(String),
}

/// What of some events their stream holds.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Those that it holds, and at which revisions.
    pub(crate) at: BTreeMap<usize, Revision>,
    /// Those that it does not.
    pub(crate) not: Vec<usize>,
}

/// Appends to any stream, the server's own too, until it is sure what became of it.
#[derive(Clone)]
pub(crate) struct Surely {
    node: Weak<Node>,
    cancel: CancellationToken,
    // When to give up; never, if there is none.
    until: Option<Instant>,
}

impl Surely {
    /// Tries until `cancel`, or `until` if that is sooner.
    pub(crate) fn new(node: Weak<Node>, cancel: CancellationToken, until: Option<Instant>) -> Self {
        Self {
            node,
            cancel,
            until,
        }
    }

    /// The largest batches that are made.
    pub(crate) fn limits(&self) -> Result<Limits, Unsure> {
        let node = self.node.upgrade().ok_or(Unsure::Stopping)?;
        Ok(node.config().limits)
    }

    /// Appends one batch.
    ///
    /// # Errors
    /// When the node stops, or the time is up.
    pub(crate) async fn append(
        &self,
        stream: &StreamId,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Sure, Unsure> {
        let request = AppendRequest {
            stream: stream.clone(),
            expected,
            durability: Durability::Region,
            events,
        };
        let mut pause = AGAIN_AFTER;
        let mut unsure_at: Option<Instant> = None;
        loop {
            // Nothing of the node is held between two attempts, so that it can stop.
            let node = self.node.upgrade().ok_or(Unsure::Stopping)?;
            let late = node.config().append_timeout * 2;
            let answer = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(Unsure::Stopping),
                answer = node.append_own(request.clone()) => answer,
            };
            drop(node);
            let reason = match answer {
                Ok(appended) => return Ok(Sure::Written(appended)),
                Err(AppendError::WrongExpectedRevision { actual, .. }) => {
                    // An attempt that was not answered may be on its way, and the stream may yet come
                    // to what it expects.
                    let may_come = unsure_at.is_some_and(|at| at.elapsed() < late)
                        && expected != NEVER
                        && !expected.is_past(actual);
                    if !may_come {
                        return Ok(Sure::WrongRevision { actual });
                    }
                    "an earlier attempt may still be written".to_owned()
                }
                Err(
                    error @ (AppendError::Invalid { .. }
                    | AppendError::TooLarge { .. }
                    | AppendError::Conflict { .. }),
                ) => {
                    return Ok(Sure::Refused(error.to_string()));
                }
                Err(AppendError::Indeterminate { reason }) => {
                    unsure_at = Some(Instant::now());
                    reason
                }
                Err(error @ (AppendError::Unavailable { .. } | AppendError::NotHome { .. })) => {
                    error.to_string()
                }
            };
            if self
                .until
                .is_some_and(|until| Instant::now() + pause >= until)
            {
                return Err(match unsure_at {
                    Some(_) => Unsure::Unknown(reason),
                    None => Unsure::Unavailable(reason),
                });
            }
            debug!(%stream, reason, "an append is tried again");
            reached("an append of the server's own was tried again");
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(Unsure::Stopping),
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(AGAIN_AFTER_MAX);
        }
    }

    /// Which of `events`, of a stream that has a home, it holds already. One whose id another stream has
    /// is not held.
    ///
    /// # Errors
    /// When the node stops, or the time is up.
    pub(crate) async fn known(
        &self,
        stream: &StreamId,
        events: &[NewEvent],
    ) -> Result<Known, Unsure> {
        let mut known = Known::default();
        let most = self.limits()?.batch_events_max.max(1);
        let mut ranges: Vec<Range<usize>> = (0..events.len())
            .step_by(most)
            .map(|from| from..(from + most).min(events.len()))
            .rev()
            .collect();
        while let Some(range) = ranges.pop() {
            let asked = events[range.clone()].iter().map(only_its_id).collect();
            match self.append(stream, NEVER, asked).await? {
                Sure::Written(appended) => {
                    let revisions = (appended.first_revision.0..).map(Revision);
                    known.at.extend(range.zip(revisions));
                }
                Sure::WrongRevision { .. } => known.not.extend(range),
                Sure::Refused(_) if range.len() == 1 => known.not.extend(range),
                // Some are known and some are not, or they stand in another sequence there.
                Sure::Refused(_) => {
                    let middle = range.start + range.len() / 2;
                    ranges.push(middle..range.end);
                    ranges.push(range.start..middle);
                }
            }
        }
        Ok(known)
    }

    /// Appends `events` in batches within the limits, cut where `may_cut` says that the event there may
    /// begin one. Those that cannot be written are handed back, by their index; where the others are
    /// comes with them, as ranges of revisions.
    ///
    /// # Errors
    /// When the node stops, or the time is up.
    pub(crate) async fn append_all(
        &self,
        stream: &StreamId,
        events: &[NewEvent],
        may_cut: impl Fn(usize) -> bool,
    ) -> Result<(Vec<[u64; 2]>, Vec<usize>), Unsure> {
        let limits = self.limits()?;
        let (mut at, mut refused) = (Vec::<[u64; 2]>::new(), Vec::new());
        let mut ranges = batches(events, &limits, may_cut);
        ranges.reverse();
        while let Some(range) = ranges.pop() {
            let batch = events[range.clone()].to_vec();
            match self.append(stream, Expected::Any, batch).await? {
                Sure::Written(appended) => {
                    let (first, last) = (appended.first_revision.0, appended.last_revision.0);
                    match at.last_mut() {
                        Some([_, end]) if *end + 1 == first => *end = last,
                        _ => at.push([first, last]),
                    }
                }
                Sure::WrongRevision { .. } | Sure::Refused(_) if range.len() == 1 => {
                    refused.extend(range);
                }
                // Some are recorded already: one by one.
                Sure::WrongRevision { .. } | Sure::Refused(_) => {
                    ranges.extend(range.rev().map(|index| index..index + 1));
                }
            }
        }
        Ok((at, refused))
    }
}

// All that is looked at of an event that is never written.
fn only_its_id(event: &NewEvent) -> NewEvent {
    NewEvent {
        id: event.id,
        event_type: event.event_type.clone(),
        data: Bytes::from_static(b"null"),
        metadata: Bytes::new(),
    }
}

/// Cuts `events` into batches within `limits`, only where an event may begin one. What may not be cut
/// and is over the limits is a batch all the same.
pub(crate) fn batches(
    events: &[NewEvent],
    limits: &Limits,
    may_cut: impl Fn(usize) -> bool,
) -> Vec<Range<usize>> {
    let mut cuts: Vec<usize> = (1..events.len()).filter(|index| may_cut(*index)).collect();
    cuts.push(events.len());
    let weight =
        |range: Range<usize>| -> usize { events[range].iter().map(NewEvent::weight_bytes).sum() };
    let mut batches: Vec<Range<usize>> = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for cut in cuts {
        if cut == start {
            continue;
        }
        let part = start..cut;
        let part_bytes = weight(part.clone());
        match batches.last_mut() {
            Some(last)
                if bytes + part_bytes <= limits.batch_bytes_max
                    && cut - last.start <= limits.batch_events_max =>
            {
                last.end = cut;
                bytes += part_bytes;
            }
            _ => {
                batches.push(part);
                bytes = part_bytes;
            }
        }
        start = cut;
    }
    batches
}

#[cfg(test)]
mod tests {
    use meridian_event::{EventId, EventType};
    use proptest::prelude::*;

    use super::*;

    fn event(number: u128, bytes: usize) -> NewEvent {
        NewEvent {
            id: EventId(uuid::Uuid::from_u128(number)),
            event_type: EventType::new("T").expect("a sound type"),
            data: vec![b'1'; bytes].into(),
            metadata: Bytes::new(),
        }
    }

    proptest! {
        #[test]
        fn batches_are_whole_in_sequence_and_within_the_limits(
            sizes in prop::collection::vec((1_usize..40, any::<bool>()), 0..60),
        ) {
            let events: Vec<_> = (0..).zip(&sizes).map(|(at, (bytes, _))| event(at, *bytes)).collect();
            let limits = Limits { event_bytes_max: 64, batch_bytes_max: 150, batch_events_max: 4 };
            let cut = batches(&events, &limits, |index| sizes[index].1);
            let all: Vec<usize> = cut.iter().cloned().flatten().collect();
            prop_assert_eq!(all, (0..events.len()).collect::<Vec<_>>());
            for range in cut {
                prop_assert!(range.start == 0 || sizes[range.start].1);
                let weight: usize = events[range.clone()].iter().map(NewEvent::weight_bytes).sum();
                let is_within = weight <= 150 && range.len() <= 4;
                let may_not_be_cut = range.clone().skip(1).all(|index| !sizes[index].1);
                prop_assert!(is_within || may_not_be_cut);
            }
        }
    }
}

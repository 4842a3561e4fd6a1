//! What is to be brought home, stream by stream. Pure.

use std::collections::{BTreeMap, BTreeSet};

use meridian_clock::LogId;
use meridian_event::{EventId, RecordedEvent, StreamId};
use meridian_points::reached;

use crate::homes;

/// Events of one stream, from one life of one log, with nothing of the stream missing between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Branch {
    pub(super) log: LogId,
    pub(super) generation: u32,
    pub(super) events: Vec<RecordedEvent>,
}

impl Branch {
    pub(super) fn first(&self) -> &RecordedEvent {
        self.events.first().expect("a branch has an event")
    }

    /// Whether a batch, as it was first written, begins at `index`.
    pub(super) fn begins_batch(&self, index: usize) -> bool {
        index == 0 || self.events[index].timestamp != self.events[index - 1].timestamp
    }
}

/// All that is to be brought home.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The branches of each stream, in the sequence in which they were written.
    pub(super) streams: BTreeMap<StreamId, Vec<Branch>>,
    /// How many events there are.
    pub(super) events: u64,
}

/// Makes branches of what `tails` hold.
///
/// Transfers of homes are left out: what they gave up counts no more, and nobody may follow them again. So is who
/// created a stream: others may have said it anew. An event that was stranded more than once counts as what it was first.
pub(super) fn plan(tails: Vec<(LogId, u32, Vec<RecordedEvent>)>) -> Plan {
    let mut all: Vec<(LogId, u32, RecordedEvent)> = tails
        .into_iter()
        .flat_map(|(log, generation, events)| {
            events
                .into_iter()
                .map(move |event| (log, generation, event))
        })
        .filter(|(_, _, event)| {
            !matches!(
                event.stream.category(),
                homes::CATEGORY | homes::creators::CATEGORY
            )
        })
        .collect();
    all.sort_by_key(|(log, generation, event)| (event.order_key(), *log, *generation));
    let mut seen = BTreeSet::<EventId>::new();
    let mut plan = Plan::default();
    let mut by_log: BTreeMap<(StreamId, LogId, u32), Vec<Branch>> = BTreeMap::new();
    for (log, generation, event) in all {
        if !seen.insert(event.id) {
            reached("an event was stranded twice");
            continue;
        }
        plan.events += 1;
        let branches = by_log
            .entry((event.stream.clone(), log, generation))
            .or_default();
        match branches.last_mut() {
            Some(branch) if is_next(branch, &event) => branch.events.push(event),
            _ => branches.push(Branch {
                log,
                generation,
                events: vec![event],
            }),
        }
    }
    for ((stream, ..), branches) in by_log {
        plan.streams.entry(stream).or_default().extend(branches);
    }
    for branches in plan.streams.values_mut() {
        branches.sort_by_key(|branch| (branch.first().order_key(), branch.log, branch.generation));
    }
    plan
}

fn is_next(branch: &Branch, event: &RecordedEvent) -> bool {
    let last = branch.events.last();
    last.is_some_and(|last| event.revision == last.revision.next())
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;
    use meridian_clock::{PartitionId, Position, RegionId, Timestamp};
    use meridian_event::{EventType, Revision};
    use uuid::Uuid;

    use super::*;

    pub(crate) const A: LogId = LogId {
        origin: RegionId(0),
        partition: PartitionId(0),
    };
    const B: LogId = LogId {
        origin: RegionId(1),
        partition: PartitionId(0),
    };

    /// An event of log A, whose id is of its timestamp.
    pub(crate) fn event(stream: &str, position: u64, revision: u64, at: u64) -> RecordedEvent {
        RecordedEvent {
            dot: A.dot(Position(position)),
            timestamp: Timestamp(at),
            stream: StreamId::new(stream).expect("a sound name"),
            revision: Revision(revision),
            id: EventId(Uuid::from_u128(at.into())),
            event_type: EventType::new("T").expect("a sound type"),
            data: Bytes::from_static(b"{}"),
            metadata: Bytes::new(),
        }
    }

    fn revisions(plan: &Plan, stream: &str) -> Vec<Vec<u64>> {
        let stream = StreamId::new(stream).expect("a sound name");
        let branches = plan.streams.get(&stream).into_iter().flatten();
        branches
            .map(|branch| branch.events.iter().map(|event| event.revision.0).collect())
            .collect()
    }

    #[test]
    fn each_stream_has_its_events_in_sequence() {
        let tail = vec![
            event("order-1", 1, 5, 10),
            event("order-2", 2, 0, 11),
            event("order-1", 3, 6, 12),
        ];
        let plan = plan(vec![(A, 1, tail)]);
        assert_eq!(plan.events, 3);
        assert_eq!(revisions(&plan, "order-1"), [[5, 6]]);
        assert_eq!(revisions(&plan, "order-2"), [[0]]);
    }

    #[test]
    fn transfers_of_homes_are_left_where_they_are() {
        let plan = plan(vec![(
            A,
            1,
            vec![
                event("$homes-4", 1, 0, 10),
                event("$creators-0-visit-1", 2, 0, 11),
            ],
        )]);
        assert_eq!(plan, Plan::default());
    }

    #[test]
    fn a_gap_in_a_stream_begins_a_branch() {
        let tail = vec![event("order-1", 1, 5, 10), event("order-1", 2, 9, 12)];
        assert_eq!(revisions(&plan(vec![(A, 1, tail)]), "order-1"), [[5], [9]]);
    }

    #[test]
    fn what_two_regions_wrote_side_by_side_stays_apart_and_the_earlier_comes_first() {
        let ours = vec![event("order-1", 1, 5, 11), event("order-1", 2, 6, 13)];
        let theirs = [(1, 5, 10), (2, 6, 12)].map(|(position, revision, at)| {
            let mut event = event("order-1", position, revision, at);
            event.dot = B.dot(Position(position));
            event
        });
        let plan = plan(vec![(A, 1, ours), (B, 4, theirs.to_vec())]);
        assert_eq!(revisions(&plan, "order-1"), [[5, 6], [5, 6]]);
        let branches = plan.streams.values().next().expect("a stream");
        assert_eq!((branches[0].log, branches[1].log), (B, A));
    }

    #[test]
    fn an_event_that_was_stranded_twice_counts_as_what_it_was_first() {
        let first = event("order-1", 1, 5, 10);
        let mut again = event("order-1", 9, 7, 20);
        again.id = first.id;
        let plan = plan(vec![(A, 2, vec![again]), (A, 1, vec![first])]);
        assert_eq!(
            (plan.events, revisions(&plan, "order-1")),
            (1, vec![vec![5]])
        );
        let branches = plan.streams.values().next().expect("a stream");
        assert_eq!(branches[0].generation, 1);
    }

    #[test]
    fn batches_are_known_by_their_timestamps() {
        let mut tail = vec![event("order-1", 1, 5, 10), event("order-1", 2, 6, 11)];
        tail[1].timestamp = Timestamp(10);
        tail.push(event("order-1", 3, 7, 12));
        let plan = plan(vec![(A, 1, tail)]);
        let branch = &plan.streams.values().next().expect("a stream")[0];
        assert_eq!(
            [0, 1, 2].map(|index| branch.begins_batch(index)),
            [true, false, true]
        );
    }
}

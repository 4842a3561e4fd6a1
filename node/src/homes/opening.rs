//! What a home opened on, written where it counts: in front of the first event that the new home gives a revision to.
//!
//! A new home holds all that the one before it wrote before it writes anything. Other regions get the two regions' logs
//! apart from each other, in whatever order; and what some of them hold of both is what a fence keeps, should both
//! regions be lost. So the new home says in its own log what it had opened on, and no region takes that part of its log
//! before it holds as much: whoever holds what the new home wrote holds what came before it.
//!
//! Start reading at [`Homes::to_open`] and [`rests_on`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_client::AppendRequest;
use meridian_clock::{LogId, PartitionId, Position, RegionId};
use meridian_event::{EventId, EventRef, StreamId};
use meridian_store::ReadError;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use super::{CATEGORY, Homes, NAMESPACE, Sitting, transfer_id};
use crate::control::Federation;
use crate::control::federation::Need;

/// The type of the event that says what a home opened on.
pub(super) const OPENED: &str = "$home-opened";

/// The data of a `$home-opened` event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Opening {
    /// The number of the decision that it follows.
    pub(super) change: u64,
    /// The region that was the home before.
    pub(super) from: RegionId,
    /// How far the partition's logs of other regions must be here before this log may go on, by region.
    pub(super) rests_on: BTreeMap<RegionId, Position>,
}

impl Homes {
    /// What has to stand in front of the next event of `stream` in this region's log: what its home here opened on, by
    /// what was given up. Nothing for those in `known`, and nothing before it has opened.
    ///
    /// # Errors
    /// When the logs that tell cannot be read.
    pub(crate) fn to_open(
        &self,
        federation: &Federation,
        stream: &StreamId,
        known: &BTreeSet<Need>,
    ) -> Result<Vec<(Need, AppendRequest)>, ReadError> {
        if !federation.has_moved_any() || !self.has_home(stream) {
            return Ok(Vec::new());
        }
        let Sitting::At(seat) = self.sitting(federation, stream)? else {
            return Ok(Vec::new());
        };
        let is_known = seat.needs.iter().all(|need| known.contains(need));
        if is_known || seat.home != self.region {
            return Ok(Vec::new());
        }
        let partition = stream.partition(self.partitions);
        let isolation = self.isolation(stream);
        if !self.all_complete(federation, &seat.needs, partition, isolation)? {
            return Ok(Vec::new());
        }
        let unknown = seat.needs.iter().filter(|need| !known.contains(need));
        unknown
            .map(|need| {
                let mut rests_on = BTreeMap::new();
                self.collect(federation, *need, partition, &mut rests_on)?;
                let (from, change) = *need;
                let opening = Opening {
                    change,
                    from,
                    rests_on,
                };
                let id = opening_id(*need, LogId::new(self.region, partition));
                Ok((*need, self.event(partition, id, OPENED, &opening)))
            })
            .collect()
    }

    // Adds what rests on `need`, which is complete: see `Homes::arrival`.
    fn collect(
        &self,
        federation: &Federation,
        (from, change): Need,
        partition: PartitionId,
        rests_on: &mut BTreeMap<RegionId, Position>,
    ) -> Result<(), ReadError> {
        let mut add = |region, position: Position| {
            if region != self.region {
                let needed: &mut Position = rests_on.entry(region).or_default();
                *needed = position.max(*needed);
            }
        };
        let log = LogId::new(from, partition);
        if let Some(fence) = federation.fence_by(from, change) {
            add(from, fence.cut(log).unwrap_or_default());
            return Ok(());
        }
        let found = self.store.find_event(transfer_id(change, log), &[log])?;
        let Some(dot) = found.map(|found| found.dot) else {
            let needs = federation.instead_of((from, change)).unwrap_or_default();
            return needs
                .into_iter()
                .try_for_each(|need| self.collect(federation, need, partition, rests_on));
        };
        add(from, dot.position);
        let transfer = self.read_transfer(log, dot.position)?;
        for (region, position) in transfer.into_iter().flat_map(|transfer| transfer.held) {
            let held = federation.still_counts(LogId::new(region, partition), position, dot);
            add(region, held);
        }
        Ok(())
    }
}

/// What must be here of other logs before the log that `event` is in may go on with it here, by what is `decided`;
/// nothing unless it says what a home opened on. Asked for every event, so what is decided is looked at only then.
pub(crate) fn rests_on(
    decided: &watch::Receiver<Arc<Federation>>,
    event: &EventRef<'_>,
) -> Vec<(LogId, Position)> {
    let is_of_homes = event.stream.strip_prefix(CATEGORY);
    if event.event_type != OPENED || !is_of_homes.is_some_and(|rest| rest.starts_with('-')) {
        return Vec::new();
    }
    let federation = Arc::clone(&decided.borrow());
    let Ok(opening) = serde_json::from_slice::<Opening>(event.data) else {
        return Vec::new();
    };
    let all = opening.rests_on.into_iter();
    all.map(|(region, position)| {
        let log = LogId::new(region, event.dot.partition);
        (log, federation.still_counts(log, position, event.dot))
    })
    .collect()
}

/// The id of the event by which `log`'s region says what it opened on of `need`.
fn opening_id((from, change): Need, log: LogId) -> EventId {
    let name = format!("opened {change} {from} {log}");
    EventId(Uuid::new_v5(&NAMESPACE, name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use meridian_clock::{Dot, Timestamp};
    use meridian_event::Revision;

    use super::*;

    const TEXT: &str = r#"{"change":7,"from":1,"rests_on":{"1":104,"3":90}}"#;

    fn event<'a>(stream: &'a str, event_type: &'a str, data: &'a str) -> EventRef<'a> {
        EventRef {
            dot: Dot {
                origin: RegionId(2),
                partition: PartitionId(5),
                position: Position(40),
            },
            timestamp: Timestamp::ZERO,
            stream,
            revision: Revision(0),
            id: EventId(Uuid::nil()),
            event_type,
            data: data.as_bytes(),
            metadata: &[],
        }
    }

    #[test]
    fn what_a_home_opened_on_is_written_as_it_ever_was() {
        let opening = Opening {
            change: 7,
            from: RegionId(1),
            rests_on: BTreeMap::from([(RegionId(1), Position(104)), (RegionId(3), Position(90))]),
        };
        assert_eq!(serde_json::to_string(&opening).expect("it encodes"), TEXT);
        let read: Opening = serde_json::from_str(TEXT).expect("it decodes");
        assert_eq!(read, opening);
    }

    #[test]
    fn a_log_rests_on_what_a_home_opened_on_and_on_nothing_that_users_write() {
        let (_, decided) = watch::channel(Arc::new(Federation::default()));
        let needed = rests_on(&decided, &event("$homes-4", OPENED, TEXT));
        let log = |region| LogId::new(RegionId(region), PartitionId(5));
        let expected = [(log(1), Position(104)), (log(3), Position(90))];
        assert_eq!(needed, expected);
        for (stream, event_type, data) in [
            ("order-1", OPENED, TEXT),
            ("$homesick-1", OPENED, TEXT),
            ("$homes-4", "$home-transfer", TEXT),
            ("$homes-4", OPENED, "{"),
        ] {
            let needed = rests_on(&decided, &event(stream, event_type, data));
            assert!(needed.is_empty(), "{stream} {event_type} {data}");
        }
    }
}

//! What would strand if this region vanished now: the events that it has acknowledged alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_clock::{LogId, Position, RegionId, Timestamp, VersionVector};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Node;

/// How much of what this region has written no other one holds (the recovery point, were it lost now).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AtStake {
    /// How many events.
    pub events: u64,
    /// How long ago the oldest of them was written, in milliseconds; 0 when there is none.
    pub for_ms: u64,
}

/// What would strand with `node`'s region.
pub(crate) fn at_stake(node: &Node) -> AtStake {
    let me = node.config().region;
    if node.config().members.len() == 1 {
        return AtStake::default();
    }
    let members = node.homes().federation().members();
    let held = node.appends().held.borrow().clone();
    let heads = node.store().heads().into_iter();
    let own = heads.filter(|head| head.log.origin == me);
    let mut events = 0;
    let mut oldest: Option<Timestamp> = None;
    for head in own {
        let elsewhere = held_by_others(&held, &members, me, head.log);
        if elsewhere >= head.position {
            continue;
        }
        events += head.position.0 - elsewhere.0;
        let blocks = node.store().read_log(head.log, elsewhere, 1);
        // A block that cannot be read now is counted, and its age is not known.
        let first = blocks
            .ok()
            .and_then(|blocks| Some(blocks.first()?.header().first_timestamp));
        oldest = [oldest, first].into_iter().flatten().min();
    }
    let since = oldest.map_or(Duration::ZERO, |oldest| {
        node.hlc().physical_now().after(oldest)
    });
    AtStake {
        events,
        for_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    }
}

// How far any other member holds `log`.
fn held_by_others(
    held: &BTreeMap<RegionId, VersionVector>,
    members: &BTreeSet<RegionId>,
    me: RegionId,
    log: LogId,
) -> Position {
    held.iter()
        .filter(|(region, _)| **region != me)
        .filter(|(region, _)| members.is_empty() || members.contains(region))
        .map(|(_, vector)| vector.get(log))
        .max()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use meridian_clock::PartitionId;

    use super::*;

    #[test]
    fn only_what_another_member_holds_is_safe() {
        let regions = [0, 1, 2].map(RegionId);
        let log = LogId::new(regions[0], PartitionId(0));
        let holds = |region, position| {
            let vector = VersionVector::from_iter([(log, Position(position))]);
            (regions[region], vector)
        };
        let held = BTreeMap::from([holds(0, 9), holds(1, 4), holds(2, 7)]);
        let all = BTreeSet::from(regions);
        let of = |members: &BTreeSet<RegionId>| held_by_others(&held, members, regions[0], log);
        assert_eq!(of(&all), Position(7));
        // A region that is put out keeps nothing for the others.
        assert_eq!(of(&BTreeSet::from([regions[0], regions[1]])), Position(4));
        assert_eq!(of(&BTreeSet::from([regions[0]])), Position::ZERO);
    }
}

//! Nobody takes or gives what it holds no rights to, by what it had seen; so no more is ever taken than was granted.

use std::collections::BTreeMap;

use meridian_clock::RegionId;
use meridian_event::StreamId;

use super::recorded::{Actor, Recorded};
use super::reference::rights;
use crate::invariants::Evidence;

pub(super) fn check(
    stream: &StreamId,
    operations: &[Recorded],
    evidence: &Evidence,
) -> Vec<String> {
    // Rights that were lost with the only disk that held them, and had been used elsewhere, are nobody's now.
    let is_lost = evidence.stranded.values().any(|it| !it.kept);
    if is_lost || !evidence.forgiven.is_empty() {
        return Vec::new();
    }
    let accounts = Accounts::of(operations);
    let mut broken = Vec::new();
    for operation in operations {
        let (region, _) = operation.actor;
        let uses = rights(operation)
            .into_iter()
            .find(|(of, by)| *of == region && *by < 0);
        let held = accounts.rights(region, &operation.seen);
        if let Some((_, by)) = uses.filter(|(_, by)| held + by < 0) {
            broken.push(format!(
                "{} of {stream} uses {} rights of region {region}, which held {held} by what it had seen",
                operation.id, -by
            ));
        }
    }
    let mut in_order: BTreeMap<RegionId, i128> = BTreeMap::new();
    let mut is_below = false;
    let is_ordered = evidence.stranded.is_empty() && evidence.sane.iter().all(|sane| *sane);
    for operation in operations {
        for (region, by) in rights(operation) {
            *in_order.entry(region).or_default() += by;
        }
        if is_ordered && !is_below && in_order.values().any(|held| *held < 0) {
            is_below = true;
            broken.push(format!(
                "up to {} at {:?}, regions hold {in_order:?} rights to {stream}",
                operation.id, operation.key
            ));
        }
    }
    if let Some((region, held)) = in_order.iter().find(|(_, held)| **held < 0) {
        broken.push(format!(
            "in the end region {region} holds {held} rights to {stream}"
        ));
    }
    broken
}

/// Of each actor, by counter, what all of its operations so far made of the rights of each region.
struct Accounts(BTreeMap<Actor, Vec<(u64, BTreeMap<RegionId, i128>)>>);

impl Accounts {
    fn of(operations: &[Recorded]) -> Self {
        let mut by_actor: BTreeMap<Actor, Vec<&Recorded>> = BTreeMap::new();
        for operation in operations {
            by_actor.entry(operation.actor).or_default().push(operation);
        }
        let sums = by_actor.into_iter().map(|(actor, mut operations)| {
            operations.sort_by_key(|it| it.counter);
            let mut sum = BTreeMap::<RegionId, i128>::new();
            let sums = operations.into_iter().map(|operation| {
                for (region, by) in rights(operation) {
                    *sum.entry(region).or_default() += by;
                }
                (operation.counter, sum.clone())
            });
            (actor, sums.collect())
        });
        Self(sums.collect())
    }

    fn rights(&self, region: RegionId, seen: &BTreeMap<Actor, u64>) -> i128 {
        let of_actor = |(actor, upto): (&Actor, &u64)| {
            let sums = self.0.get(actor)?;
            let count = sums.partition_point(|(counter, _)| counter <= upto);
            let (_, sum) = sums.get(count.checked_sub(1)?)?;
            sum.get(&region).copied()
        };
        seen.iter().filter_map(of_actor).sum()
    }
}

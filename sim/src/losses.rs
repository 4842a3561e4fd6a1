//! One of two regions that hold something is lost: what was acknowledged as held by two must stay.
//!
//! Nearly all appends of such a plan wait for a second region. Then, at any moment, one region goes: with its
//! disk, by a fence, or by both. Often it is cut off from some of the others just before, so that it is
//! chance who holds what.

use crate::plan::{Fault, FaultKind, Plan};
use crate::rng::Rng;

/// How often a plan is about this.
const PERCENT: u32 = 12;

/// Makes `plan` one of these, if its seed has it so.
pub fn draw(plan: &mut Plan) -> bool {
    let mut rng = Rng::part(plan.seed, "one of two");
    let is_one = rng.percent(PERCENT);
    if is_one {
        tell(plan, &mut rng);
    }
    is_one
}

/// A plan of `seed` that is one of these.
pub fn plan(seed: u64) -> Plan {
    let mut plan = Plan::draw(seed);
    let mut rng = Rng::part(seed, "one of two");
    rng.percent(PERCENT);
    tell(&mut plan, &mut rng);
    plan
}

fn tell(plan: &mut Plan, rng: &mut Rng) {
    // Beside this no region is lost, or what two held may be gone.
    plan.faults.clear();
    plan.failover_ms = 0;
    plan.newcomers = 0;
    plan.widen(3);
    let load = &mut plan.load;
    load.regions_percent = 80;
    load.all_percent = 2;
    load.shared_percent = load.shared_percent.min(30);
    load.writers = load.writers.max(3);
    load.pause_ms = load.pause_ms.min(60);
    // A region that is drained is home to nothing, and so loses nothing.
    load.drains = false;
    plan.chaos_ms = rng.between(8_000, 14_000);

    let regions = plan.regions.len() as u64;
    let region = index(rng.below(regions));
    let others = (0..plan.regions.len()).filter(|it| *it != region);
    let others: Vec<usize> = others.collect();
    let at_ms = rng.between(1_800, plan.chaos_ms - 3_000);
    let mut faults = Vec::new();
    if rng.percent(50) {
        // One of the others is left.
        let left = *rng.pick(&others);
        let (since, for_ms) = (rng.below(1_500), rng.between(500, 3_000));
        for b in others.iter().copied().filter(|it| *it != left) {
            let kind = FaultKind::Cut {
                a: region,
                b,
                for_ms,
            };
            faults.push((at_ms.saturating_sub(since), kind));
        }
    }
    if rng.percent(30) {
        let other = *rng.pick(&others);
        let kind = match rng.below(3) {
            0 => FaultKind::Kill {
                region: other,
                down_ms: 400,
            },
            1 => FaultKind::PowerCut {
                region: other,
                down_ms: 400,
            },
            _ => FaultKind::SlowDisk {
                region: other,
                factor: 30,
                for_ms: 3_000,
            },
        };
        faults.push(((at_ms + rng.below(1_500)).saturating_sub(700), kind));
    }
    let down_ms = *rng.pick(&[100, 700, 3_000]);
    let wipe = FaultKind::Wipe { region, down_ms };
    let fence = FaultKind::Fence {
        region,
        by: *rng.pick(&others),
        force: false,
        evict: false,
    };
    let fenced_ms = at_ms + rng.below(1_500);
    match rng.below(6) {
        0 => faults.push((at_ms, wipe)),
        1 => {
            faults.push((at_ms, FaultKind::Kill { region, down_ms }));
            faults.push((fenced_ms, fence));
        }
        2 => {
            faults.push((
                at_ms,
                FaultKind::Isolate {
                    region,
                    for_ms: 3_000,
                },
            ));
            faults.push((fenced_ms, fence));
        }
        3 => {
            let after = rng.below(12);
            faults.push((
                at_ms,
                FaultKind::PowerCutInCommit {
                    region,
                    after,
                    down_ms,
                },
            ));
            faults.push((fenced_ms, fence));
        }
        4 => {
            faults.push((at_ms, wipe));
            faults.push((fenced_ms, fence));
        }
        // It is sound, and somebody is wrong about it.
        _ => faults.push((fenced_ms, fence)),
    }
    let faults = faults
        .into_iter()
        .map(|(at_ms, kind)| Fault { at_ms, kind });
    plan.faults = faults.collect();
    plan.faults.sort_by_key(|fault| fault.at_ms);
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(fault: &Fault) -> Option<usize> {
        match fault.kind {
            FaultKind::Wipe { region, .. } | FaultKind::Fence { region, .. } => Some(region),
            _ => None,
        }
    }

    #[test]
    fn each_loses_one_region_and_no_other() {
        for seed in 0..300 {
            let plan = plan(seed);
            let mut regions: Vec<_> = plan.faults.iter().filter_map(lost).collect();
            regions.dedup();
            assert_eq!(regions.len(), 1, "seed {seed}");
            assert!(plan.regions.len() > 2, "seed {seed}");
            assert!(plan.faults.is_sorted_by_key(|it| it.at_ms), "seed {seed}");
        }
    }

    #[test]
    fn hunts_draw_it_often() {
        let is_one = |seed: &u64| Plan::draw(*seed) == plan(*seed);
        let count = (0..500).filter(is_one).count();
        assert!((30..100).contains(&count), "{count} of 500");
    }
}

//! Regions that join and regions that leave, while others write and things go wrong.

use crate::plan::{Fault, FaultKind, Plan};
use crate::rng::Rng;

/// How often members change in a plan.
const PERCENT: u32 = 10;

/// Has a region join, another one leave, or both, if the seed of `plan` has it so.
pub fn draw(plan: &mut Plan) {
    let mut rng = Rng::part(plan.seed, "members");
    // What a region stamped far ahead of all clocks cannot be taken over before its time has come.
    let jumps =
        |fault: &Fault| matches!(fault.kind, FaultKind::ClockJump { by_ms, .. } if by_ms > 3_000);
    if rng.percent(PERCENT) && !plan.faults.iter().any(jumps) {
        tell(plan, &mut rng);
    }
}

/// Makes `plan` one of these.
pub(crate) fn tell(plan: &mut Plan, rng: &mut Rng) {
    if rng.percent(60) {
        plan.faults.clear();
    }
    if rng.percent(70) {
        plan.failover_ms = 0;
    }
    plan.widen(3);
    // What is drained is to stay so.
    plan.load.drains = false;
    let founders = plan.regions.len().min(4);
    plan.chaos_ms = plan.chaos_ms.max(14_000);
    let last_ms = plan.chaos_ms - 6_000;
    let (joins, leaves) = *rng.pick(&[(true, false), (true, false), (false, true), (true, true)]);
    let (leaving, by) = two(rng, founders);
    let mut changes = Vec::new();
    if joins {
        plan.regions.truncate(founders);
        plan.links
            .retain(|link| link.a < founders && link.b < founders);
        plan.widen(founders + 1);
        plan.newcomers = 1;
        let region = founders;
        changes.push((rng.between(1_500, last_ms), FaultKind::Join { region, by }));
    }
    if leaves {
        let region = leaving;
        changes.push((rng.between(1_500, last_ms), FaultKind::Leave { region, by }));
    }
    let within = |fault: &Fault| {
        crate::world::story::regions(&fault.kind)
            .into_iter()
            .all(|it| it < plan.regions.len())
    };
    let mut faults: Vec<_> = std::mem::take(&mut plan.faults);
    faults.retain(within);
    for (at_ms, kind) in changes {
        for _ in 0..rng.between(0, 2) {
            let at_ms = (at_ms + rng.below(5_000)).saturating_sub(500);
            let kind = beside(&kind, plan.regions.len(), rng);
            faults.push(Fault { at_ms, kind });
        }
        faults.push(Fault { at_ms, kind });
    }
    faults.sort_by_key(|fault| fault.at_ms);
    plan.faults = faults;
}

// What goes wrong meanwhile, often with the region that the change is about or the one that was asked.
fn beside(change: &FaultKind, regions: usize, rng: &mut Rng) -> FaultKind {
    let (about, asked) = match *change {
        FaultKind::Join { region, by } | FaultKind::Leave { region, by } => (region, by),
        _ => two(rng, regions),
    };
    let any = index(rng.below(regions as u64));
    let region = *rng.pick(&[about, about, asked, any]);
    let for_ms = *rng.pick(&[300, 1_500, 4_000]);
    match rng.below(7) {
        0 | 1 => FaultKind::Isolate { region, for_ms },
        2 => FaultKind::Kill {
            region,
            down_ms: for_ms,
        },
        3 => FaultKind::PowerCut {
            region,
            down_ms: for_ms,
        },
        4 => FaultKind::Pause { region, for_ms },
        5 => FaultKind::SlowDisk {
            region,
            factor: 20,
            for_ms,
        },
        _ => {
            let (a, b) = two(rng, regions);
            FaultKind::Cut { a, b, for_ms }
        }
    }
}

fn two(rng: &mut Rng, regions: usize) -> (usize, usize) {
    let first = index(rng.below(regions as u64));
    let second = (first + index(rng.between(1, regions as u64 - 1))) % regions;
    (first, second)
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newcomers_are_the_last_regions_and_whoever_leaves_is_none() {
        let (mut joins, mut leaves) = (0, 0);
        for seed in 0..1_000 {
            let plan = Plan::draw(seed);
            let founders = plan.regions.len() - plan.newcomers;
            for fault in &plan.faults {
                match fault.kind {
                    FaultKind::Join { region, by } => {
                        joins += 1;
                        assert!(region == founders && by < founders, "seed {seed}");
                        assert!(!plan.leaves(by), "seed {seed}");
                    }
                    FaultKind::Leave { region, by } => {
                        leaves += 1;
                        assert!(
                            region < founders && by != region && founders > 2,
                            "seed {seed}"
                        );
                    }
                    _ => {}
                }
            }
        }
        assert!(joins > 40 && leaves > 30, "{joins} joins, {leaves} leaves");
    }
}

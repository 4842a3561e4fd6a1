//! Streams that every region writes, and regions that are cut off, go down, are put out and come back.
//!
//! Nearly all appends of such a plan are operations on a few merged streams. The plans are short and small, so that
//! thousands can be run; half of them have streams of all kinds, the others a stock and one other.

use meridian_conflict::Kind;

use crate::plan::{Fault, FaultKind, Plan};
use crate::rng::Rng;

/// A plan of `seed` that is one of these.
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::part(seed, "merges");
    let regions = *rng.pick(&[3, 3, 3, 2, 4]);
    let mut plan = Plan::calm(seed).among(regions);
    plan.draw_world(&mut rng);
    plan.chaos_ms = rng.between(3_500, 6_000);
    plan.partitions = *rng.pick(&[1, 2]);
    plan.points_percent = *rng.pick(&[0, 25, 50]);
    if plan.points_percent > 0 {
        // What is acknowledged late takes its time, and is right.
        plan.heal_ms *= 3;
    }
    if rng.percent(30) {
        plan.backup_ms = rng.between(500, 2_500);
    }
    let load = &mut plan.load;
    load.writers = *rng.pick(&[1, 2, 4]);
    load.streams = 3;
    load.shared_streams = 1;
    load.pause_ms = *rng.pick(&[30, 80, 200]);
    load.batch_max = *rng.pick(&[1, 3]);
    load.repeat_percent = *rng.pick(&[0, 10, 30]);
    load.timeout_ms = *rng.pick(&[1_500, 4_000]);
    load.http_writers = *rng.pick(&[0, 1]);
    load.merged_percent = 90;
    load.merged_streams = *rng.pick(&[1, 1, 2]);
    if rng.percent(50) {
        load.merged_kinds = vec![Kind::BoundedCounter, *rng.pick(&Kind::ALL)];
        load.merged_kinds.dedup();
    }
    for _ in 0..rng.between(1, 4) {
        let fault = fault(&mut rng, regions, plan.chaos_ms);
        plan.faults.push(fault);
    }
    if rng.percent(35) {
        comes_back(&mut plan, &mut rng);
    }
    if rng.percent(15) {
        let kind = FaultKind::Wipe {
            region: index(rng.below(regions as u64)),
            down_ms: 300,
        };
        let at_ms = rng.between(1_500, plan.chaos_ms);
        // Who goes on alone has the only copy.
        let is_fence = |fault: &Fault| matches!(fault.kind, FaultKind::Fence { .. });
        if regions > 2 || !plan.faults.iter().any(is_fence) {
            plan.faults.push(Fault { at_ms, kind });
        }
    }
    plan.faults.sort_by_key(|fault| fault.at_ms);
    plan
}

fn fault(rng: &mut Rng, regions: usize, chaos_ms: u64) -> Fault {
    let region = index(rng.below(regions as u64));
    let other = (region + index(rng.between(1, regions as u64 - 1))) % regions;
    let for_ms = *rng.pick(&[200, 800, 2_500]);
    let down_ms = *rng.pick(&[100, 700, 1_500]);
    let (a, b) = (region, other);
    let kind = match rng.below(8) {
        0 | 1 => FaultKind::Cut { a, b, for_ms },
        2 | 3 => FaultKind::Isolate { region, for_ms },
        4 => FaultKind::CutOneWay {
            from: a,
            to: b,
            for_ms,
        },
        5 => FaultKind::Kill { region, down_ms },
        6 => FaultKind::PowerCut { region, down_ms },
        _ => FaultKind::Pause { region, for_ms },
    };
    Fault {
        at_ms: rng.between(1_000, chaos_ms),
        kind,
    }
}

// A region takes operations while nobody hears it, is put out, and brings them home.
fn comes_back(plan: &mut Plan, rng: &mut Rng) {
    let regions = plan.regions.len();
    let region = index(rng.below(regions as u64));
    let by = (region + index(rng.between(1, regions as u64 - 1))) % regions;
    let at_ms = rng.between(1_200, plan.chaos_ms - 1_500);
    let isolate = FaultKind::Isolate {
        region,
        for_ms: rng.between(1_500, 4_000),
    };
    let fence = FaultKind::Fence {
        region,
        by,
        force: regions < 3,
        evict: false,
    };
    let fenced_at = at_ms + rng.between(200, 1_000);
    let story = [(at_ms, isolate), (fenced_at, fence)];
    let faults = story.map(|(at_ms, kind)| Fault { at_ms, kind });
    plan.faults.extend(faults);
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

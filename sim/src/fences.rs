//! Regions that are put out: what operators do about those that are lost, or look it.
//!
//! Drawn apart from a plan's other faults, and after them: most fences follow a fault that makes a region
//! look lost, and change nothing else. Some plans have a whole story instead (`Story`), which chance alone
//! hardly ever tells; in most of them nothing else goes wrong.

use crate::members;
use crate::plan::{Fault, FaultKind, Plan};
use crate::rng::Rng;

/// How often a plan has operators who fence, and how often regions do it by themselves.
const OPERATORS_PERCENT: u32 = 30;
const STORIES_PERCENT: u32 = 15;
const BY_THEMSELVES_PERCENT: u32 = 10;
/// Beyond this many a plan shows no more.
const FENCES_MAX: usize = 4;

/// Adds fences to `plan`, if its seed has any.
pub fn draw(plan: &mut Plan) {
    // What a region stamped far ahead of all clocks cannot be taken over before its time has come.
    let jumps =
        |fault: &Fault| matches!(fault.kind, FaultKind::ClockJump { by_ms, .. } if by_ms > 3_000);
    let mut rng = Rng::part(plan.seed, "fences");
    if plan.regions.len() < 3 && !rng.percent(20) || plan.faults.iter().any(jumps) {
        return;
    }
    if rng.percent(STORIES_PERCENT) {
        tell(plan, &mut rng);
    } else if rng.percent(OPERATORS_PERCENT) {
        let operators = operators(plan, &mut rng);
        plan.faults.extend(operators);
    }
    if plan.regions.len() > 2 && Rng::part(plan.seed, "failover").percent(BY_THEMSELVES_PERCENT) {
        plan.failover_ms = *rng.pick(&[1_000, 2_500, 6_000]);
    }
    plan.faults.sort_by_key(|fault| fault.at_ms);
}

/// A small plan of `seed` that is about nothing else: a story, regions that put others out by themselves, or members that
/// change, with little load, so that thousands can be run.
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::part(seed, "fences alone");
    let mut plan = Plan::calm(seed).among(3);
    plan.draw_world(&mut rng);
    plan.chaos_ms = 8_000;
    plan.partitions = *rng.pick(&[1, 1, 2]);
    plan.segment_kib = *rng.pick(&[64, 256]);
    plan.points_percent = *rng.pick(&[0, 0, 25, 50]);
    if plan.points_percent > 0 {
        // What is acknowledged late takes its time, and is right.
        plan.heal_ms *= 3;
    }
    let load = &mut plan.load;
    load.writers = *rng.pick(&[1, 2, 3]);
    load.streams = *rng.pick(&[4, 12]);
    load.shared_streams = 2;
    load.pause_ms = *rng.pick(&[60, 150, 300]);
    load.batch_max = *rng.pick(&[1, 3]);
    load.conditional_percent = *rng.pick(&[0, 30, 70]);
    load.regions_percent = *rng.pick(&[0, 20, 40]);
    load.repeat_percent = *rng.pick(&[0, 10, 30]);
    load.timeout_ms = *rng.pick(&[1_500, 4_000]);
    load.http_writers = *rng.pick(&[0, 0, 1]);
    load.import_lanes = *rng.pick(&[0, 0, 0, 2]);
    load.moves_ms = *rng.pick(&[0, 0, 400, 1_500]);
    load.fenced_percent = *rng.pick(&[0, 0, 50, 100]);
    load.merged_percent = *rng.pick(&[0, 0, 30]);
    load.merged_streams = 1;
    load.created = rng.percent(25);
    if rng.percent(25) {
        plan.backup_ms = rng.between(500, 4_000);
    }
    plan.backup_untold = Rng::part(seed, "backups untold").percent(50);
    match rng.below(20) {
        0..4 => {
            members::tell(&mut plan, &mut rng);
        }
        4 | 5 => {
            plan.failover_ms = *rng.pick(&[1_000, 2_500]);
            let region = index(rng.below(plan.regions.len() as u64));
            let at_ms = rng.between(1_500, 4_000);
            let kind = FaultKind::Isolate {
                region,
                for_ms: rng.between(2_000, 7_000),
            };
            plan.faults.push(Fault { at_ms, kind });
        }
        _ => tell(&mut plan, &mut rng),
    }
    plan.faults.sort_by_key(|fault| fault.at_ms);
    plan
}

// Those who see that a region does not answer, and those who are wrong about it.
fn operators(plan: &Plan, rng: &mut Rng) -> Vec<Fault> {
    let regions = plan.regions.len();
    let mut fences = Vec::new();
    for fault in &plan.faults {
        let Some(region) = looks_lost(&fault.kind) else {
            continue;
        };
        if fences.len() < FENCES_MAX && rng.percent(60) {
            let at_ms = fault.at_ms + rng.between(30, 1_500);
            fences.push(asked(region, regions, at_ms, rng));
        }
    }
    if fences.is_empty() || rng.percent(25) {
        let region = index(rng.below(regions as u64));
        let at_ms = rng.between(1_500, plan.chaos_ms);
        fences.push(asked(region, regions, at_ms, rng));
    }
    if rng.percent(25) {
        // Two operators who do not know of each other.
        let first = rng.pick(&fences).clone();
        let region = match first.kind {
            FaultKind::Fence { region, .. } if rng.percent(50) => region,
            _ => index(rng.below(regions as u64)),
        };
        let at_ms = first.at_ms + rng.below(200);
        fences.push(asked(region, regions, at_ms, rng));
    }
    fences.retain(|fence| fence.at_ms < plan.chaos_ms);
    fences
}

fn asked(region: usize, regions: usize, at_ms: u64, rng: &mut Rng) -> Fault {
    // Now and then somebody asks the very region that is to be put out.
    let by = match rng.percent(5) {
        true => region,
        false => another(region, regions, rng),
    };
    let kind = FaultKind::Fence {
        region,
        by,
        force: regions < 3 || rng.percent(10),
        evict: rng.percent(10),
    };
    Fault { at_ms, kind }
}

// The region that a fault makes others take for lost.
fn looks_lost(kind: &FaultKind) -> Option<usize> {
    match kind {
        FaultKind::Isolate { region, .. }
        | FaultKind::Kill { region, .. }
        | FaultKind::Stop { region, .. }
        | FaultKind::PowerCut { region, .. }
        | FaultKind::PowerCutInCommit { region, .. }
        | FaultKind::FailSync { region, .. }
        | FaultKind::FailWrite { region, .. }
        | FaultKind::DiskFull { region, .. }
        | FaultKind::Pause { region, .. }
        | FaultKind::CertificateExpires { region, .. }
        | FaultKind::Wipe { region, .. } => Some(*region),
        FaultKind::Cut { a, .. }
        | FaultKind::Gray { a, .. }
        | FaultKind::PowerCutBoth { a, .. } => Some(*a),
        FaultKind::CutOneWay { from, .. } => Some(*from),
        _ => None,
    }
}

/// What a plan may be about as a whole.
#[derive(Clone, Copy)]
enum Story {
    /// A region takes writes while nobody hears it, is fenced, and strands them when it comes back.
    ComesBack,
    /// Whoever decides is lost while a fence is under way.
    LosesLeaders,
    /// One who remains has more of the lost region's log than the others, and cannot be reached
    /// when the fence is decided.
    KnowsMore,
    /// A fenced region loses its disk before it comes back.
    LosesDisk,
    /// Streams are moved while a region that is home to some is fenced.
    MovesRace,
    /// A second region is lost while the first one's fence is under way.
    LosesAnother,
    /// Two regions are lost at once, of which one gave homes to the other that those who remain had not heard of.
    LosesTwo,
    /// A region is fenced, comes back, and is fenced once more.
    Twice,
}

fn tell(plan: &mut Plan, rng: &mut Rng) {
    // Other faults often keep a story from coming to its point.
    if rng.percent(60) {
        plan.faults.clear();
    }
    let has_wipe = plan
        .faults
        .iter()
        .any(|it| matches!(it.kind, FaultKind::Wipe { .. } | FaultKind::BitRot { .. }));
    let story = *rng.pick(&[
        Story::ComesBack,
        Story::LosesLeaders,
        Story::KnowsMore,
        Story::LosesDisk,
        Story::MovesRace,
        Story::LosesAnother,
        Story::LosesTwo,
        Story::Twice,
    ]);
    let count = match story {
        // Of four regions, those who remain are no more than a majority.
        Story::KnowsMore | Story::LosesAnother | Story::LosesTwo => 5,
        _ => *rng.pick(&[3, 3, 4, 5]),
    };
    plan.widen(count);
    let regions = plan.regions.len();
    let region = index(rng.below(regions as u64));
    let second = another(region, regions, rng);
    let others: Vec<usize> = (0..regions)
        .filter(|it| ![region, second].contains(it))
        .collect();
    let by = *rng.pick(&others);
    let fence = |region| FaultKind::Fence {
        region,
        by,
        force: false,
        evict: false,
    };
    let evict = FaultKind::Fence {
        region: second,
        by,
        force: false,
        evict: true,
    };
    let isolate = |region, for_ms| FaultKind::Isolate { region, for_ms };
    let soon = rng.between(300, 1_500);
    let mut acts = vec![(0, isolate(region, 7_000)), (soon, fence(region))];
    match story {
        Story::ComesBack => {}
        Story::LosesLeaders => {
            for other in 0..regions {
                if other != region && rng.percent(40) {
                    let down_ms = *rng.pick(&[300, 1_500]);
                    let kill = FaultKind::Kill {
                        region: other,
                        down_ms,
                    };
                    acts.push((soon + rng.below(600), kill));
                }
            }
        }
        Story::KnowsMore => {
            // There must be something that only the two of them have, also of streams with a home.
            let load = &mut plan.load;
            load.regions_percent = load.regions_percent.max(40);
            load.streams = load.streams.max(20);
            load.writers = load.writers.max(3);
            load.pause_ms = load.pause_ms.min(100);
            load.shared_percent = load.shared_percent.min(20);
            acts = Vec::new();
            for other in others {
                for (lost, for_ms) in [(region, 7_000), (second, soon + 4_000)] {
                    let cut = FaultKind::Cut {
                        a: lost,
                        b: other,
                        for_ms,
                    };
                    acts.push((0, cut));
                }
            }
            acts.push((soon, isolate(region, 6_000)));
            acts.push((soon + 100, fence(region)));
        }
        Story::LosesDisk => {
            let down_ms = 500;
            acts.push((
                soon + rng.below(5_000),
                match has_wipe {
                    true => FaultKind::PowerCut { region, down_ms },
                    false => FaultKind::Wipe { region, down_ms },
                },
            ));
        }
        Story::MovesRace => plan.load.moves_ms = 250,
        Story::LosesAnother => {
            acts.push((soon + rng.below(500), isolate(second, 5_000)));
            acts.push((soon + rng.between(600, 2_000), evict));
        }
        Story::LosesTwo => {
            let load = &mut plan.load;
            load.moves_ms = 200;
            load.writers = load.writers.max(3);
            load.pause_ms = load.pause_ms.min(30);
            load.shared_percent = load.shared_percent.min(20);
            acts = Vec::new();
            for other in others {
                let detour = FaultKind::Detour {
                    from: region,
                    to: other,
                    by_ms: 400,
                    for_ms: 9_000,
                };
                acts.push((0, detour));
            }
            for lost in [region, second] {
                acts.push((soon, isolate(lost, 7_000)));
            }
            acts.push((soon + 600, fence(region)));
            acts.push((soon + rng.between(900, 1_500), evict));
        }
        Story::Twice => {
            acts[0] = (0, isolate(region, 3_000));
            acts.push((6_000, isolate(region, 4_000)));
            acts.push((6_000 + soon, fence(region)));
        }
    }
    let start = rng.between(1_500, 3_000);
    plan.chaos_ms = plan.chaos_ms.max(start + 12_000);
    plan.faults
        .extend(acts.into_iter().map(|(after_ms, kind)| Fault {
            at_ms: start + after_ms,
            kind,
        }));
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

fn another(region: usize, regions: usize, rng: &mut Rng) -> usize {
    (region + index(rng.between(1, regions as u64 - 1))) % regions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_add_to_a_plan_and_change_none_of_its_other_faults() {
        let mut fenced = 0;
        let mut by_themselves = 0;
        let mut of_five = 0;
        for seed in 0..1_000 {
            let plan = Plan::draw(seed);
            if plan.has_fences() {
                fenced += 1;
                of_five += usize::from(plan.regions.len() == 5);
            }
            by_themselves += usize::from(plan.failover_ms > 0);
            assert!(plan.faults.is_sorted_by_key(|it| it.at_ms), "seed {seed}");
        }
        assert!(
            (250..600).contains(&fenced),
            "{fenced} of 1,000 plans have fences"
        );
        assert!(
            by_themselves > 30,
            "{by_themselves} of 1,000 do it by themselves"
        );
        assert!(of_five > 60, "{of_five} of 1,000 fence one of five");
    }
}

//! Faults that are harmless one by one, put together where they hurt.
//!
//! Drawn apart from a plan's other faults: chance alone hardly ever takes a node's power away while it
//! is alone and has just failed to sync. Each storm names what it is after.

use crate::plan::{Fault, FaultKind};
use crate::rng::Rng;

/// The storm of `seed` over so many regions, if it has one, within `chaos_ms`.
pub fn draw(seed: u64, regions: usize, chaos_ms: u64) -> Vec<Fault> {
    let mut rng = Rng::part(seed, "storm");
    if !rng.percent(35) {
        return Vec::new();
    }
    let region = usize::try_from(rng.below(regions as u64)).unwrap_or(0);
    let start = rng.between(1_500, chaos_ms.saturating_sub(6_000).max(1_500));
    let storm = match rng.below(4) {
        0 => distrusted_disk(region, &mut rng),
        1 => clock_set_back(
            region,
            &mut rng,
            Rng::part(seed, "stopped before it stamps"),
        ),
        2 => far_future(region, regions, &mut rng),
        _ => alone_and_powerless(region, &mut rng),
    };
    let at = |(after_ms, kind)| Fault {
        at_ms: start + after_ms,
        kind,
    };
    storm.into_iter().map(at).collect()
}

// What a failed sync lost must not be answered for; nobody else holds it, and then the power goes.
fn distrusted_disk(region: usize, rng: &mut Rng) -> Vec<(u64, FaultKind)> {
    let for_ms = 4_000;
    let (restart_ms, down_ms) = (*rng.pick(&[300, 5_000]), 300);
    vec![
        (0, FaultKind::Isolate { region, for_ms }),
        (100, FaultKind::FailSync { region, restart_ms }),
        (2_500, FaultKind::PowerCut { region, down_ms }),
    ]
}

// Time must not run backwards over a restart, with nobody there to tell it; nor over one of a life that stamped nothing.
fn clock_set_back(region: usize, rng: &mut Rng, mut apart: Rng) -> Vec<(u64, FaultKind)> {
    let for_ms = 4_000;
    let by_ms = *rng.pick(&[-3_600_000, -2_000, -300]);
    let down_ms = rng.between(20, 200);
    let mut storm = vec![
        (0, FaultKind::Isolate { region, for_ms }),
        (
            200,
            FaultKind::ClockJump {
                region,
                by_ms,
                for_ms,
            },
        ),
        (210, FaultKind::Kill { region, down_ms }),
    ];
    if apart.percent(50) {
        let soon = 210 + down_ms + apart.between(10, 300);
        let down_ms = apart.between(20, 200);
        storm.push((soon, FaultKind::Stop { region, down_ms }));
    }
    storm
}

// What one region stamped in the far future must move nobody who starts with it in his log.
fn far_future(region: usize, regions: usize, rng: &mut Rng) -> Vec<(u64, FaultKind)> {
    let (for_ms, down_ms) = (1_000, 200);
    let by_ms = *rng.pick(&[5_000, 3_600_000]);
    let others = [(region + 1) % regions, (region + regions - 1) % regions];
    vec![
        (
            0,
            FaultKind::ClockJump {
                region,
                by_ms,
                for_ms,
            },
        ),
        (
            2_000,
            FaultKind::Kill {
                region: others[0],
                down_ms,
            },
        ),
        (
            3_000,
            FaultKind::PowerCut {
                region: others[1],
                down_ms,
            },
        ),
    ]
}

// A tail that nobody else holds, cut in the middle of a commit, twice.
fn alone_and_powerless(region: usize, rng: &mut Rng) -> Vec<(u64, FaultKind)> {
    let (for_ms, down_ms) = (5_000, 200);
    let mut cut = || FaultKind::PowerCutInCommit {
        region,
        after: rng.below(20),
        down_ms,
    };
    vec![
        (0, FaultKind::Isolate { region, for_ms }),
        (500, cut()),
        (2_500, cut()),
    ]
}

//! Clocks that are off by as much as is allowed, by more than that, and set back while a node is down.

use crate::plan::{Fault, FaultKind, Plan};

/// One region's clock is off by `skew_ms`, all the time.
pub(super) fn off_by(skew_ms: i64) -> Plan {
    let mut plan = Plan::calm(11);
    plan.regions[1].skew_ms = skew_ms;
    plan
}

/// One region's clock is ten seconds ahead for a while: it goes on stamping until its peers tell it.
pub(super) fn ten_ahead() -> Plan {
    let mut plan = Plan::calm(12);
    plan.load.pause_ms = 20;
    plan.faults = vec![Fault {
        at_ms: 3_000,
        kind: FaultKind::ClockJump {
            region: 2,
            by_ms: 10_000,
            for_ms: 4_000,
        },
    }];
    plan
}

/// A node is killed, and its machine's clock is an hour back when it starts again.
pub(super) fn set_back() -> Plan {
    let mut plan = Plan::calm(13);
    plan.chaos_ms = 14_000;
    let kill = FaultKind::Kill {
        region: 0,
        down_ms: 1_500,
    };
    let jump = FaultKind::ClockJump {
        region: 0,
        by_ms: -3_600_000,
        for_ms: 6_000,
    };
    plan.faults = [(3_000, kill), (3_500, jump)]
        .map(|(at_ms, kind)| Fault { at_ms, kind })
        .into();
    plan
}

/// The same of a node that hears nobody then and is stopped once more, in order, before it has stamped anything: it must
/// remember what the life before that had promised.
pub(super) fn set_back_and_stopped() -> Plan {
    let mut plan = set_back();
    // So little that the last it promised is later than the last it wrote.
    (plan.load.writers, plan.load.pause_ms) = (1, 400);
    let (region, down_ms) = (0, 300);
    let isolate = FaultKind::Isolate {
        region,
        for_ms: 5_000,
    };
    let stop = FaultKind::Stop { region, down_ms };
    for (at_ms, kind) in [(3_000, isolate), (4_520, stop)] {
        plan.faults.push(Fault { at_ms, kind });
    }
    plan
}

/// Links of 40, 80 and 120 ms, and nothing wrong.
pub(super) fn wide() -> Plan {
    let mut plan = Plan::calm(14);
    for (link, latency_ms) in plan.links.iter_mut().zip([40, 80, 120]) {
        link.latency_ms = latency_ms;
    }
    plan
}

/// A region loses its disk, and the new machine's clock is two seconds back: what the region had
/// promised in its earlier life is known to its peers only.
pub(super) fn lost_with_its_clock() -> Plan {
    let mut plan = Plan::calm(15);
    plan.chaos_ms = 14_000;
    plan.load.pause_ms = 20;
    plan.load.shared_percent = 60;
    let wipe = FaultKind::Wipe {
        region: 0,
        down_ms: 300,
    };
    let jump = FaultKind::ClockJump {
        region: 0,
        by_ms: -2_000,
        for_ms: 6_000,
    };
    plan.faults = [(3_000, wipe), (3_010, jump)]
        .map(|(at_ms, kind)| Fault { at_ms, kind })
        .into();
    plan
}

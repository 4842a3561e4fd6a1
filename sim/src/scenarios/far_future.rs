//! One region's clock is an hour ahead for a moment; then the others are started again, with what it
//! stamped in their logs.

use crate::plan::{Fault, FaultKind, Plan};

pub(super) fn plan() -> Plan {
    let mut plan = Plan::calm(5);
    plan.load.pause_ms = 10;
    let jump = FaultKind::ClockJump {
        region: 2,
        by_ms: 3_600_000,
        for_ms: 1_000,
    };
    let down_ms = 200;
    plan.faults = [
        (2_000, jump),
        (4_000, FaultKind::PowerCut { region: 0, down_ms }),
        (6_000, FaultKind::Kill { region: 1, down_ms }),
    ]
    .map(|(at_ms, kind)| Fault { at_ms, kind })
    .into();
    plan
}

//! A sync fails, the node is started again without its machine, answers alone, and then the power
//! goes: what it found at its start must have become durable then.

use crate::plan::{Fault, FaultKind, Plan};

pub(super) fn plan() -> Plan {
    let mut plan = Plan::calm(4);
    plan.chaos_ms = 11_000;
    plan.load.timeout_ms = 10_000;
    plan.load.pause_ms = 20;
    plan.load.writers = 5;
    let fail = FaultKind::FailSync {
        region: 1,
        restart_ms: 500,
    };
    let alone = FaultKind::Isolate {
        region: 1,
        for_ms: 6_000,
    };
    let power = FaultKind::PowerCut {
        region: 1,
        down_ms: 300,
    };
    plan.faults = [(2_990, alone), (3_000, fail), (6_000, power)]
        .map(|(at_ms, kind)| Fault { at_ms, kind })
        .into();
    plan
}

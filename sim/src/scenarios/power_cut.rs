//! The power goes again and again in the middle of commits, each time a little further on.

use crate::plan::{Fault, FaultKind, Plan};

pub(super) fn plan() -> Plan {
    let mut plan = Plan::calm(3);
    plan.segment_kib = 64;
    plan.load.pause_ms = 5;
    let cut = |number: u64| Fault {
        at_ms: 1_000 + number * 1_500,
        kind: FaultKind::PowerCutInCommit {
            region: 1,
            after: number,
            down_ms: 200,
        },
    };
    plan.faults = (0..6).map(cut).collect();
    plan
}

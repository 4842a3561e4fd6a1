//! One region is cut off from all others for a while, writing all the time.

use crate::plan::{Fault, FaultKind, Plan};

pub(super) fn plan() -> Plan {
    let mut plan = Plan::calm(1);
    plan.load.timeout_ms = 2_000;
    plan.faults = vec![Fault {
        at_ms: 3_000,
        kind: FaultKind::Isolate {
            region: 0,
            for_ms: 5_000,
        },
    }];
    plan
}

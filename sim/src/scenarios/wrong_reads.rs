//! Bits flip on their way from one region's disk while others follow its events: who follows must
//! wait until a block can be read, and not go on past it.

use crate::plan::{Fault, FaultKind, Plan};

pub(super) fn plan() -> Plan {
    let mut plan = Plan::calm(6);
    plan.load.followers = 2;
    plan.faults = (3_000..9_000)
        .step_by(2_000)
        .map(|at_ms| Fault {
            at_ms,
            kind: FaultKind::MisRead {
                region: 1,
                reads: 12,
            },
        })
        .collect();
    plan
}

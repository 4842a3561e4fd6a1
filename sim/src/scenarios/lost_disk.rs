//! A region comes back with an empty disk while another one cannot be reached: it may not give out a
//! position before it knows from everyone how far its own logs went.

use crate::plan::{Fault, FaultKind, Plan};

pub(super) fn plan() -> Plan {
    let mut plan = Plan::calm(2);
    plan.load.regions_percent = 50;
    let cut = FaultKind::Cut {
        a: 0,
        b: 2,
        for_ms: 4_000,
    };
    let wipe = FaultKind::Wipe {
        region: 0,
        down_ms: 500,
    };
    plan.faults = vec![
        Fault {
            at_ms: 3_000,
            kind: cut,
        },
        Fault {
            at_ms: 4_000,
            kind: wipe,
        },
    ];
    plan
}

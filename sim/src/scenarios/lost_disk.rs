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

/// A region's disk is replaced by a copy that lacks what it wrote since. Nobody says so, and nobody can be reached then.
pub(super) fn copied_back() -> Plan {
    let mut plan = Plan::calm(3);
    plan.backup_ms = 2_500;
    plan.backup_untold = true;
    let (region, for_ms, down_ms) = (0, 4_000, 300);
    let isolate = FaultKind::Isolate { region, for_ms };
    let wipe = FaultKind::Wipe { region, down_ms };
    plan.faults = [(4_990, isolate), (5_000, wipe)]
        .map(|(at_ms, kind)| Fault { at_ms, kind })
        .into();
    plan
}

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

/// All regions lose their disks at once and get back what was put away of each, at another time each; nothing, if there
/// is no such time. They must go on, with all that any of them had put away.
pub(super) fn all_put_back(backups_ms: &[u64]) -> Plan {
    let mut plan = Plan::calm(4);
    plan.load.moves_ms = 400;
    plan.load.regions_percent = 50;
    let back_up = |(region, at_ms): (usize, &u64)| Fault {
        at_ms: *at_ms,
        kind: FaultKind::BackUp { region },
    };
    let put_back = Fault {
        at_ms: 5_000,
        kind: FaultKind::PutAllBack { down_ms: 300 },
    };
    let backed_up = backups_ms.iter().enumerate().map(back_up);
    plan.faults = backed_up.chain([put_back]).collect();
    plan
}

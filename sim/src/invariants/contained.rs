//! `contained`: one region's bad clock does not move another region's.

use std::time::Duration;

use super::Evidence;
use crate::world::region_id;

/// Skew, drift and what a clock takes over from sound peers, together.
const TOLERATED: Duration = Duration::from_secs(2);

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    let Some(copy) = evidence.copies.first() else {
        return broken;
    };
    for (index, sane) in evidence.sane.iter().enumerate() {
        if !sane {
            continue;
        }
        let own = copy
            .logs
            .iter()
            .filter(|(log, _)| log.origin == region_id(index));
        for (log, blocks) in own {
            let last = blocks.iter().flatten().next_back();
            if let Some(event) = last
                && event.timestamp.since_unix() > evidence.end + TOLERATED
            {
                broken.push(format!(
                    "log {log} ends at {}, and its clock was never far off",
                    event.timestamp
                ));
            }
        }
    }
    broken
}

//! `dense`: positions of an origin log have no gap, on any node.

use super::Evidence;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for copy in &evidence.copies {
        for (log, blocks) in &copy.logs {
            for (expected, event) in (1..).zip(blocks.iter().flatten()) {
                if event.dot.position.0 != expected {
                    broken.push(format!(
                        "{}: log {log} has {} where {expected} belongs",
                        copy.name, event.dot.position
                    ));
                    break;
                }
            }
        }
    }
    broken
}

//! `rising`: timestamps of an origin log strictly rise per batch, across restarts and clock jumps.
//!
//! The events of one batch share their timestamp and are of one stream, so an equal timestamp is
//! another batch's only when the stream changes.

use super::Evidence;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for copy in &evidence.copies {
        for (log, blocks) in &copy.logs {
            let events: Vec<_> = blocks.iter().flatten().collect();
            for pair in events.windows(2) {
                let [before, after] = pair else { continue };
                let same_batch =
                    before.timestamp == after.timestamp && before.stream == after.stream;
                if after.timestamp <= before.timestamp && !same_batch {
                    broken.push(format!(
                        "{}: log {log} goes from {} to {} at {}",
                        copy.name, before.timestamp, after.timestamp, after.dot.position
                    ));
                    break;
                }
            }
        }
    }
    broken
}

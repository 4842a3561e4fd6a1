//! `sealed`: no log holds a block of a generation that a fence has ended beyond its cut, and all regions
//! that came back have stranded theirs.

use super::Evidence;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for copy in &evidence.copies {
        for (log, blocks) in &copy.blocks {
            let Some(generations) = evidence.generations.get(log) else {
                continue;
            };
            for block in blocks {
                let header = block.header();
                let (first, last) = (header.first_position, header.last_position());
                if let Err(reason) = generations.admits(header.epoch, first, last) {
                    broken.push(format!(
                        "{}: log {log} has {first}..={last}: {reason}",
                        copy.name
                    ));
                    break;
                }
            }
        }
    }
    broken
}

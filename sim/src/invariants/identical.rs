//! `identical`: the same position has the same bytes everywhere, and chains agree.

use meridian_event::Chain;

use super::Evidence;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for copy in &evidence.copies {
        for (log, blocks) in &copy.blocks {
            let mut chain = Chain::EMPTY;
            for block in blocks {
                if block.header().prev_chain != chain {
                    broken.push(format!(
                        "{}: log {log} breaks its chain at {}",
                        copy.name,
                        block.header().first_position
                    ));
                    break;
                }
                chain = block.chain();
            }
        }
    }
    let Some((first, others)) = evidence.copies.split_first() else {
        return broken;
    };
    for other in others {
        for (log, blocks) in &first.blocks {
            let theirs = other.blocks.get(log).map_or(&[][..], Vec::as_slice);
            let differs = blocks
                .iter()
                .zip(theirs)
                .find(|(ours, theirs)| ours.bytes() != theirs.bytes());
            if let Some((ours, _)) = differs {
                broken.push(format!(
                    "log {log} differs at {} between {} and {}",
                    ours.header().first_position,
                    first.name,
                    other.name
                ));
            } else if blocks.len() != theirs.len() {
                broken.push(format!(
                    "log {log} has {} blocks in {} and {} in {}",
                    blocks.len(),
                    first.name,
                    theirs.len(),
                    other.name
                ));
            }
        }
    }
    broken
}

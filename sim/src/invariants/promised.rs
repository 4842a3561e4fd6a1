//! `promised`: no event with timestamp ≤ T ever appears above p after a promise (T, p).

use meridian_clock::Timestamp;

use super::Evidence;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for copy in &evidence.copies {
        for (log, blocks) in &copy.logs {
            let lost = evidence.forgiven.iter().any(|it| it.log == *log);
            let promised = evidence.settled.promised(*log, lost);
            let mut promises = promised.iter().peekable();
            let mut through = (Timestamp::ZERO, Default::default());
            for event in blocks.iter().flatten() {
                while let Some((position, timestamp)) =
                    promises.next_if(|(position, _)| **position < event.dot.position)
                {
                    through = through.max((*timestamp, *position));
                }
                if event.timestamp <= through.0 {
                    broken.push(format!(
                        "{}: log {log} was complete to {} with position {}, and position {} is \
                         stamped {}",
                        copy.name, through.0, through.1, event.dot.position, event.timestamp
                    ));
                    break;
                }
            }
        }
    }
    broken
}

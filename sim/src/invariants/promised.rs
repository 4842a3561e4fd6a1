//! `promised`: no event with timestamp ≤ T ever appears above p after a promise (T, p).
//!
//! A promise is about one generation of a log. What comes after a fence is stamped above all that was
//! shown by it, see `same-order`; it need not be above what only a lost region had promised.

use std::collections::BTreeMap;

use meridian_clock::Timestamp;
use meridian_event::RecordedEvent;

use super::Evidence;
use crate::world::generation;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for copy in &evidence.copies {
        for (log, blocks) in &copy.logs {
            let mut generations: BTreeMap<usize, Vec<&RecordedEvent>> = BTreeMap::new();
            let headers = copy.blocks.get(log).into_iter().flatten();
            for (block, events) in headers.zip(blocks) {
                let of = generations.entry(generation(block.header().epoch));
                of.or_default().extend(events);
            }
            let lost = evidence.forgiven.iter().any(|it| it.log == *log);
            for (generation, events) in generations {
                let promised = evidence.settled.promised(*log, generation, lost);
                let mut promises = promised.iter().peekable();
                let mut through = (Timestamp::ZERO, Default::default());
                for event in events {
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
    }
    broken
}

//! `idempotent`: the same event id is never appended twice.

use super::Evidence;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for (id, events) in evidence.by_id() {
        if events.len() > 1 {
            let dots: Vec<_> = events.iter().map(|event| event.dot).collect();
            broken.push(format!("{id} of {} is at {dots:?}", events[0].stream));
        }
    }
    broken
}

//! `idempotent`: the same event id is never appended twice, and a repeated request is answered as it
//! was the first time.

use super::Evidence;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for (id, events) in evidence.by_id() {
        if events.len() > 1 {
            let dots: Vec<_> = events.iter().map(|event| event.dot).collect();
            broken.push(format!("{id} of {} is at {dots:?}", events[0].stream));
        }
    }
    for repeated in &evidence.repeated {
        if !evidence.may_be_gone(repeated.dot, repeated.written) {
            broken.push(repeated.what.clone());
        }
    }
    broken
}

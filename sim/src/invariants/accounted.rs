//! `accounted`: what is in the logs was asked for, as it was asked; what was refused is not there.

use std::collections::BTreeMap;

use super::Evidence;
use crate::history::Outcome;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let found = evidence.by_id();
    let mut broken = Vec::new();
    let mut asked = BTreeMap::new();
    for (number, call) in evidence.calls.iter().enumerate() {
        let there = call.ids.iter().filter(|id| found.contains_key(id)).count();
        if let Outcome::Refused { code, why, .. } = &call.outcome
            && there > 0
        {
            broken.push(format!(
                "call {number} on {} at {:?} was refused ({code}: {why}), and {there} of its events \
                 are there",
                call.stream, call.invoked
            ));
        }
        if there != 0 && there != call.ids.len() {
            broken.push(format!(
                "call {number} on {} is there in part: {there} of {}",
                call.stream,
                call.ids.len()
            ));
        }
        asked.extend(call.ids.iter().map(|id| (*id, &call.stream)));
    }
    for (id, events) in &found {
        for event in events {
            match asked.get(id) {
                // The server's own.
                None if event.stream.is_internal() => {}
                None => broken.push(format!("{id} at {:?} was never asked for", event.dot)),
                Some(stream) if **stream != event.stream => broken.push(format!(
                    "{id} was meant for {stream} and is in {}",
                    event.stream
                )),
                Some(_) => {}
            }
        }
    }
    broken
}

//! `accounted`: what is in the logs was asked for, as it was asked; what was refused is not there. What a
//! fence cut off is in exactly one of its stream and a conflict record; or in both, where a client repeated its request
//! after it was set aside and the record says so.

use std::collections::BTreeMap;

use meridian_event::{EventId, RecordedEvent};

use super::Evidence;
use crate::history::Outcome;

/// The key of the metadata of what came home.
const KEPT: &[u8] = b"\"$stranded\"";

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let found = evidence.by_id();
    let mut broken = Vec::new();
    let mut asked = BTreeMap::new();
    for (number, call) in evidence.calls.iter().enumerate() {
        // What was put aside was written, too.
        let is_there = |id: &&EventId| found.contains_key(id) || evidence.stranded.contains_key(id);
        let there = call.ids.iter().filter(is_there).count();
        // A home that was lost may have written what the next one then refused, for the stream had gone on:
        // that ends in a conflict record, and never in the stream.
        let in_stream = call.ids.iter().filter(|id| found.contains_key(*id)).count();
        if let Outcome::Refused { code, why, .. } = &call.outcome
            && (in_stream > 0 || (there > 0 && *code != "wrong_expected_revision"))
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
                // Rights to a stock that a node has asked for.
                None if event.event_type.as_str() == "$given" => {}
                None => broken.push(format!("{id} at {:?} was never asked for", event.dot)),
                Some(stream) if **stream != event.stream => broken.push(format!(
                    "{id} was meant for {stream} and is in {}",
                    event.stream
                )),
                Some(_) => {}
            }
        }
    }
    broken.extend(homeless(evidence, asked.keys()));
    broken
}

// Whether the server wrote it again.
fn came_home(event: &RecordedEvent) -> bool {
    event.metadata.windows(KEPT.len()).any(|it| it == KEPT)
}

// Events that are nowhere any more though they were written, or in two places.
fn homeless<'a>(evidence: &Evidence, asked: impl Iterator<Item = &'a EventId>) -> Vec<String> {
    let found = evidence.by_id();
    let mut broken = Vec::new();
    for id in asked {
        let in_stream = found.contains_key(id);
        let (records, is_known) = evidence.in_conflict.get(id).copied().unwrap_or_default();
        // What was set aside is not in its stream, so a client that repeats its request has it written.
        let is_repeated = is_known
            && !found
                .get(id)
                .is_some_and(|it| it.iter().any(|it| came_home(it)));
        if records > 1 || (in_stream && records > 0 && !is_repeated) {
            let place = if in_stream { "its stream" } else { "no stream" };
            broken.push(format!(
                "{id} is in {place} and in {records} conflict records"
            ));
        }
        let stranded = evidence.stranded.get(id);
        if let Some(stranded) = stranded.filter(|it| it.kept)
            && !in_stream
            && records == 0
        {
            broken.push(format!(
                "{id} was stranded at {:?} and is in no stream and no conflict record",
                stranded.dots
            ));
        }
    }
    broken.truncate(5);
    broken
}

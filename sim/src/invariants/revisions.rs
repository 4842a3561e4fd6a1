//! `revisions`: home streams have revisions 0, 1, 2…, and clients are told the ones that are recorded.

use std::collections::BTreeMap;

use meridian_clock::{OrderKey, RegionId};
use meridian_event::{RecordedEvent, StreamId};

use super::Evidence;
use crate::history::Outcome;
use crate::load::is_shared;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for copy in &evidence.copies {
        // Of streams that every region writes, each region numbers its own part.
        let mut streams: BTreeMap<(&StreamId, Option<RegionId>), Vec<&RecordedEvent>> =
            BTreeMap::new();
        for event in copy.logs.values().flatten().flatten() {
            let shared = is_shared(&event.stream) || event.stream.is_internal();
            let part = (&event.stream, shared.then_some(event.dot.origin));
            streams.entry(part).or_default().push(event);
        }
        for ((stream, _), mut events) in streams {
            // A stream that was moved lies in the logs of all its homes, one behind the other in the one
            // order: two that wrote it at once would have given a revision twice, or left one out.
            events.sort_by_key(|event| OrderKey::new(event.timestamp, event.dot));
            for (expected, event) in (0_u64..).zip(&events) {
                if event.revision.0 != expected {
                    let near = events
                        .iter()
                        .filter(|it| it.revision.0.abs_diff(expected) < 3);
                    let near =
                        near.map(|it| format!("{} at {} {}", it.revision, it.dot, it.timestamp));
                    broken.push(format!(
                        "{}: {stream} has revision {} where {expected} belongs, at {:?}; near it: {:?}",
                        copy.name, event.revision, event.dot, near.collect::<Vec<_>>()
                    ));
                    break;
                }
            }
        }
    }
    broken.extend(answered_as_recorded(evidence));
    broken
}

// What a client was told is what is recorded; whether that could be is `linearizable`'s question.
fn answered_as_recorded(evidence: &Evidence) -> Vec<String> {
    let found = evidence.by_id();
    let mut broken = Vec::new();
    for call in &evidence.calls {
        let Outcome::Written(appended) = &call.outcome else {
            continue;
        };
        let Some(events) = call.ids.first().and_then(|id| found.get(id)) else {
            continue;
        };
        // Written, lost with the only disk that held it or cut off by a fence, and written again.
        if (appended.dots.first()).is_some_and(|dot| evidence.may_be_gone(*dot, call.invoked)) {
            continue;
        }
        let revision = events[0].revision;
        if !is_shared(&call.stream) && revision != appended.first_revision {
            broken.push(format!(
                "a call on {} was told revision {} and is at {revision}",
                call.stream, appended.first_revision
            ));
        }
    }
    broken
}

//! `revisions`: home streams have revisions 0, 1, 2…, and clients are told the ones that are recorded.

use std::collections::BTreeMap;

use meridian_clock::RegionId;
use meridian_event::{RecordedEvent, StreamId};

use super::Evidence;
use crate::history::Outcome;
use crate::load::SHARED;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for copy in &evidence.copies {
        // Of streams that every region writes, each region numbers its own part.
        let mut streams: BTreeMap<(&StreamId, Option<RegionId>), Vec<&RecordedEvent>> =
            BTreeMap::new();
        for event in copy.logs.values().flatten().flatten() {
            let shared = event.stream.category() == SHARED;
            let part = (&event.stream, shared.then_some(event.dot.origin));
            streams.entry(part).or_default().push(event);
        }
        for ((stream, _), events) in streams {
            let first = events[0].dot.origin;
            for (expected, event) in (0..).zip(events) {
                if event.revision.0 != expected {
                    broken.push(format!(
                        "{}: {stream} has revision {} where {expected} belongs, at {:?}",
                        copy.name, event.revision, event.dot
                    ));
                    break;
                }
                if event.dot.origin != first {
                    broken.push(format!("{}: {stream} has two homes", copy.name));
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
        // Written, lost with the only disk that held it, and written again by a late copy of the request.
        if (appended.dots.first()).is_some_and(|dot| evidence.may_be_lost(*dot, call.invoked)) {
            continue;
        }
        let revision = events[0].revision;
        if call.stream.category() != SHARED && revision != appended.first_revision {
            broken.push(format!(
                "a call on {} was told revision {} and is at {revision}",
                call.stream, appended.first_revision
            ));
        }
    }
    broken
}

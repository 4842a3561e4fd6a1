//! `revisions`: home streams have revisions 0, 1, 2…, and expected-revision appends are
//! linearizable: each stream is one register that only its home moves.

use std::collections::BTreeMap;

use meridian_client::Expected;
use meridian_clock::RegionId;
use meridian_event::{RecordedEvent, Revision, StreamId};

use super::Evidence;
use crate::history::{Call, Outcome};
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
    broken.extend(linearizable(evidence));
    broken
}

fn linearizable(evidence: &Evidence) -> Vec<String> {
    let found = evidence.by_id();
    let mut broken = Vec::new();
    let mut by_stream: BTreeMap<&StreamId, Vec<(&Call, Revision)>> = BTreeMap::new();
    for call in &evidence.calls {
        let Outcome::Written(appended) = &call.outcome else {
            continue;
        };
        let Some(events) = call.ids.first().and_then(|id| found.get(id)) else {
            continue;
        };
        if call.stream.category() == SHARED {
            continue;
        }
        let revision = events[0].revision;
        if revision != appended.first_revision {
            broken.push(format!(
                "a call on {} was told revision {} and is at {revision}",
                call.stream, appended.first_revision
            ));
        }
        let before = revision.0.checked_sub(1).map(Revision);
        if !call.expected.matches(before) {
            broken.push(format!(
                "a call on {} expected {} and was written at {revision}",
                call.stream, call.expected
            ));
        }
        by_stream
            .entry(&call.stream)
            .or_default()
            .push((call, revision));
    }
    // In real time: what was answered before another call began stands before it.
    for (stream, mut calls) in by_stream {
        calls.sort_by_key(|(_, revision)| *revision);
        let mut earliest_return = None;
        for (call, revision) in calls.iter().rev() {
            if let Some((returned, later)) = earliest_return
                && returned < call.invoked
            {
                broken.push(format!(
                    "{stream}: revision {revision} was asked for at {:?}, after {later} had been \
                     answered at {returned:?}",
                    call.invoked
                ));
            }
            if let Some(returned) = call.returned
                && earliest_return.is_none_or(|(earliest, _)| returned < earliest)
            {
                earliest_return = Some((returned, *revision));
            }
        }
    }
    // A refusal names what was there: never less than what had been answered before.
    for call in &evidence.calls {
        if let (Outcome::Refused { code, .. }, Expected::Any) = (&call.outcome, call.expected)
            && *code == "wrong_expected_revision"
        {
            broken.push(format!(
                "a call on {} expected nothing and was refused for it",
                call.stream
            ));
        }
    }
    broken
}

//! `one-home`: no revision of a stream with one home was given out twice, by whichever regions.

use std::collections::BTreeMap;

use meridian_clock::Dot;
use meridian_event::{Revision, StreamId};

use super::Evidence;
use crate::load::is_shared;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for copy in &evidence.copies {
        let mut given: BTreeMap<(&StreamId, Revision), Dot> = BTreeMap::new();
        for event in copy.logs.values().flatten().flatten() {
            if is_shared(&event.stream) || event.stream.is_internal() {
                continue;
            }
            if let Some(other) = given.insert((&event.stream, event.revision), event.dot) {
                broken.push(format!(
                    "{}: revision {} of {} is {} and {}",
                    copy.name, event.revision, event.stream, other, event.dot
                ));
            }
        }
        broken.truncate(5);
    }
    broken
}

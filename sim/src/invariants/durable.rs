//! `durable`: what was acknowledged at a level survives every fault that level covers. What a fenced category's
//! home acknowledged, a majority held, at whatever level it was asked for.

use meridian_client::Durability;
use meridian_clock::LogId;

use super::Evidence;
use crate::history::Outcome;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let found = evidence.by_id();
    let mut broken = Vec::new();
    for (number, call) in evidence.calls.iter().enumerate() {
        let Outcome::Written(appended) = &call.outcome else {
            continue;
        };
        let held_by = match call.durability {
            Durability::All => usize::MAX,
            _ => evidence.level(call),
        };
        for (id, dot) in call.ids.iter().zip(&appended.dots) {
            // A fence may cut off what nobody held who remained, and nothing else.
            let may_be_stranded = evidence.may_be_stranded(dot.origin, held_by);
            let stranded = evidence.stranded.get(id);
            // One that came home may be where it was, in the next generation.
            let is_there = found
                .get(id)
                .is_some_and(|it| it.iter().any(|it| it.dot == *dot));
            let was_stranded = stranded.is_some_and(|it| it.dots.contains(dot)) && !is_there;
            if was_stranded && !may_be_stranded {
                broken.push(format!(
                    "call {number} on {}, answered at {:?}, was acknowledged at {} as {dot:?}, and {id} was \
                     stranded",
                    call.stream,
                    call.returned.unwrap_or_default(),
                    call.durability
                ));
            }
            if found.contains_key(id) {
                continue;
            }
            let log = LogId::new(dot.origin, dot.partition);
            let may_be_lost = evidence.forgiven.iter().any(|lost| {
                held_by <= lost.disks
                    && lost.log == log
                    && dot.position > lost.after
                    && call.invoked < lost.before
            });
            // It is set aside then, unless its disk was lost before.
            let is_kept = evidence.in_conflict.contains_key(id)
                || (held_by < 2 && stranded.is_some_and(|it| !it.kept));
            let is_set_aside = is_kept && may_be_stranded;
            if !may_be_lost && !is_set_aside {
                broken.push(format!(
                    "call {number} on {}, answered at {:?}, was acknowledged at {} (asked for {}) as \
                     {dot:?}, and {id} is gone",
                    call.stream,
                    call.returned.unwrap_or_default(),
                    appended.durability,
                    call.durability
                ));
            }
        }
    }
    broken
}

//! `revisions`, as clients saw it: the calls on a stream with one home are linearizable.
//!
//! Every call takes effect at one moment between its beginning and its answer. An append puts its
//! events at the stream's end if that is as it expected; an append refused for its expectation, and a
//! read at the home, tell where the end was. A call without an answer may take effect at any time after
//! it began, or never: which of the two is known from the logs, for reading all of a stream after the
//! run is an observation like any other.
//!
//! The search for an order is `todc_utils`', which is Wing and Gong's with Lowe's memory of what was
//! tried. A search over thousands of calls would not end, and need not begin: the stream only grows, so
//! every call says at which revision it took effect, and a history is linearizable if each window of
//! revisions is and no call of a later window was answered before one of an earlier window began.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_client::Expected;
use meridian_clock::LogId;
use meridian_event::{EventId, Revision, StreamId};
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

use super::Evidence;
use crate::history::Outcome;
use crate::load::{FENCED, is_shared};

/// How many calls are searched for an order at once. Nearly all of them tell their place, so a window
/// is there to bound what a red history costs.
const WINDOW: usize = 60;

/// What a call did to its stream, or saw of it. An end is the next revision to be given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Did {
    /// Not a call: the end at which a window begins.
    Begin { end: u64 },
    /// Put `count` events there, at the revision `first`.
    Append {
        expected: Expected,
        first: u64,
        count: u64,
    },
    /// Was refused because the stream did not end as expected.
    Refused { expected: Expected, end: u64 },
    /// Saw where it ended.
    Read { end: u64 },
}

impl Did {
    // The end at which it must take effect.
    fn place(self) -> u64 {
        match self {
            Self::Begin { end } | Self::Refused { end, .. } | Self::Read { end } => end,
            Self::Append { first, .. } => first,
        }
    }

    // Whether the stream ends elsewhere after it.
    fn moves(self) -> bool {
        matches!(self, Self::Append { .. })
    }
}

fn last(end: u64) -> Option<Revision> {
    end.checked_sub(1).map(Revision)
}

// What a call makes of a stream that ends at `end`, and whether it can have happened there.
fn apply(did: Did, end: u64) -> (bool, u64) {
    match did {
        Did::Begin { end } => (true, end),
        Did::Append {
            expected,
            first,
            count,
        } => (
            first == end && expected.matches(last(end)),
            end.saturating_add(count),
        ),
        Did::Refused {
            expected,
            end: seen,
        } => (seen == end && !expected.matches(last(end)), end),
        Did::Read { end: seen } => (seen == end, end),
    }
}

/// A call, and how many others of its window only saw the end that it moves. They must all have come
/// before, for ends never come back; a search that knows that does not try to go on without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Operation {
    did: Did,
    seen: u64,
}

/// One stream: an end that only its home moves, and how many have seen it there.
struct Stream;

impl Specification for Stream {
    type State = (u64, u64);
    type Operation = Operation;

    fn init() -> (u64, u64) {
        (0, 0)
    }

    fn apply(operation: &Operation, (end, seen): &(u64, u64)) -> (bool, (u64, u64)) {
        let (holds, next) = apply(operation.did, *end);
        match operation.did {
            Did::Begin { .. } => (holds, (next, 0)),
            Did::Append { .. } => (holds && *seen == operation.seen, (next, 0)),
            Did::Refused { .. } | Did::Read { .. } => (holds, (next, seen + 1)),
        }
    }
}

/// A call, as far as it matters here.
#[derive(Clone, Copy, Debug)]
struct Step {
    did: Did,
    invoked: Duration,
    /// Never, for a call that was not answered.
    returned: Option<Duration>,
}

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let found = evidence.by_id();
    let mut broken = Vec::new();
    let mut streams: BTreeMap<&StreamId, Vec<Step>> = BTreeMap::new();
    // Streams of which a lost disk took something that only it had.
    let mut lost: BTreeSet<&StreamId> = BTreeSet::new();
    let forgiven: BTreeSet<LogId> = evidence.forgiven.iter().map(|it| it.log).collect();
    let mut at: BTreeMap<(&StreamId, Revision), EventId> = BTreeMap::new();
    // A fenced category's home has its lease, and tells of nothing that could be taken back, whatever becomes of
    // it; unless a fence kept fewer than a majority, or what the others held was lost with a disk as well.
    let is_strict = |stream: &StreamId| evidence.left_majorities && stream.category() == FENCED;
    for event in found.values().flatten() {
        at.insert((&event.stream, event.revision), event.id);
        if !is_strict(&event.stream)
            && forgiven.contains(&LogId::new(event.dot.origin, event.dot.partition))
        {
            lost.insert(&event.stream);
        }
    }
    // A home that has not heard of its fence goes on as one, and without leases nobody can help it. What
    // it wrote is stranded; what it read, or refused, tells nothing.
    let stale = |at: Duration| {
        let mut unaware = evidence.unaware.iter();
        unaware.any(|it| it.from <= at && at <= it.until)
    };
    for call in &evidence.calls {
        if is_shared(&call.stream) {
            continue;
        }
        let is_strict = is_strict(&call.stream);
        let is_stranded = call.ids.iter().any(|id| evidence.stranded.contains_key(id));
        if is_stranded && !(is_strict && forgiven.is_empty()) {
            lost.insert(&call.stream);
        }
        let count = call.ids.len() as u64;
        let there = call.ids.first().and_then(|id| found.get(id));
        let append = |first: Revision| Did::Append {
            expected: call.expected,
            first: first.0,
            count,
        };
        let did = match &call.outcome {
            Outcome::Written(appended) => {
                if !is_strict
                    && there.is_none()
                    && let Some(dot) = appended.dots.first()
                    && forgiven.contains(&LogId::new(dot.origin, dot.partition))
                {
                    lost.insert(&call.stream);
                }
                append(appended.first_revision)
            }
            // It took effect if its events are there.
            Outcome::Unknown => match there {
                Some(events) => append(events[0].revision),
                None => continue,
            },
            Outcome::Refused { .. } if !is_strict && call.returned.is_some_and(stale) => continue,
            Outcome::Refused {
                found: Some(actual),
                ..
            } => Did::Refused {
                expected: call.expected,
                end: end_after(*actual),
            },
            // Refused for another reason: it did nothing and saw nothing.
            Outcome::Refused { found: None, .. } => continue,
        };
        let answered = !matches!(call.outcome, Outcome::Unknown);
        streams.entry(&call.stream).or_default().push(Step {
            did,
            invoked: call.invoked,
            returned: call.returned.filter(|_| answered),
        });
    }
    let reads = evidence.reads.iter();
    let reads = reads.filter(|it| is_strict(&it.stream) || !stale(it.returned));
    for read in reads.clone() {
        streams.entry(&read.stream).or_default().push(Step {
            did: Did::Read {
                end: end_after(read.last.map(|(revision, _)| revision)),
            },
            invoked: read.invoked,
            returned: Some(read.returned),
        });
    }
    for read in reads {
        if let Some((revision, id)) = read.last
            && !lost.contains(&read.stream)
            && at.get(&(&read.stream, revision)) != Some(&id)
        {
            broken.push(format!(
                "{}: a read at {:?} saw {id} at revision {revision}, which is not there in the end",
                read.stream, read.returned
            ));
        }
    }
    for (stream, steps) in streams {
        if !lost.contains(stream)
            && let Err(why) = linearizable(steps)
        {
            broken.push(format!("{stream}: {why}"));
        }
    }
    broken
}

fn end_after(last: Option<Revision>) -> u64 {
    last.map_or(0, |revision| revision.0.saturating_add(1))
}

fn linearizable(mut steps: Vec<Step>) -> Result<(), String> {
    steps.sort_by_key(|step| (step.did.place(), step.invoked));
    // Windows begin between two places: calls at the same place belong together.
    let mut windows: Vec<&[Step]> = Vec::new();
    let mut from = 0;
    for at in 1..steps.len() {
        if at - from >= WINDOW && steps[at].did.place() != steps[at - 1].did.place() {
            windows.push(&steps[from..at]);
            from = at;
        }
    }
    windows.push(&steps[from..]);
    // What a later window was answered first, while going backwards.
    let mut answered: Option<(Duration, Did)> = None;
    for window in windows.iter().rev() {
        if let Some((returned, later)) = answered
            && let Some(step) = window.iter().find(|step| step.invoked > returned)
        {
            return Err(format!(
                "{:?} began at {:?}, after {later:?} had been answered at {returned:?}",
                step.did, step.invoked
            ));
        }
        for step in *window {
            if let Some(returned) = step.returned
                && answered.is_none_or(|(earliest, _)| returned < earliest)
            {
                answered = Some((returned, step.did));
            }
        }
    }
    let mut begin = 0;
    for window in windows {
        if let Some(why) = contradiction(begin, window) {
            return Err(why);
        }
        if !has_order(begin, window) {
            let calls: Vec<_> = window.iter().take(8).collect();
            return Err(format!(
                "no order explains the {} calls from revision {begin} on: {calls:?}",
                window.len()
            ));
        }
        for step in window {
            if let Did::Append { first, count, .. } = step.did {
                begin = begin.max(first.saturating_add(count));
            }
        }
    }
    Ok(())
}

// Two calls that no order can explain. A search would not end before it has tried all orders, and there
// are too many of those in a history that has none.
fn contradiction(begin: u64, window: &[Step]) -> Option<String> {
    // What only sees an end comes before the append that moves it.
    let mut order: Vec<&Step> = window.iter().collect();
    order.sort_by_key(|step| (step.did.place(), step.did.moves(), step.invoked));
    let mut end = begin;
    for step in &order {
        let (holds, next) = apply(step.did, end);
        if !holds {
            return Some(format!("{step:?} cannot be where the stream ends at {end}"));
        }
        end = next;
    }
    // The latest beginning among the calls so far.
    let mut latest: Option<&Step> = None;
    for step in order {
        if let Some(before) = latest
            && step
                .returned
                .is_some_and(|returned| returned < before.invoked)
        {
            return Some(format!(
                "{before:?} took effect before {step:?}, and began after its answer"
            ));
        }
        if latest.is_none_or(|latest| step.invoked > latest.invoked) {
            latest = Some(step);
        }
    }
    None
}

// Whether a stream that ends at `begin` can answer like this.
fn has_order(begin: u64, window: &[Step]) -> bool {
    // At the same moment calls come before answers: such calls overlap.
    let mut moments: Vec<(Duration, bool, usize)> = Vec::new();
    for (number, step) in window.iter().enumerate() {
        moments.push((step.invoked, false, number));
        moments.push((step.returned.unwrap_or(Duration::MAX), true, number));
    }
    moments.sort_unstable();
    let before = Operation {
        did: Did::Begin { end: begin },
        seen: 0,
    };
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    for step in window.iter().filter(|step| !step.did.moves()) {
        *seen.entry(step.did.place()).or_default() += 1;
    }
    let mut actions = vec![(0, Action::Call(before)), (0, Action::Response(before))];
    actions.extend(moments.into_iter().map(|(_, answer, number)| {
        let did = window[number].did;
        let seen = seen.get(&did.place()).copied().unwrap_or(0);
        let operation = Operation { did, seen };
        let action = match answer {
            false => Action::Call(operation),
            true => Action::Response(operation),
        };
        // Each call is a process of its own: clients have several in flight.
        (number + 1, action)
    }));
    WGLChecker::<Stream>::is_linearizable(History::from_actions(actions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(did: Did, invoked: u64, returned: Option<u64>) -> Step {
        Step {
            did,
            invoked: Duration::from_millis(invoked),
            returned: returned.map(Duration::from_millis),
        }
    }

    fn append(expected: Expected, first: u64) -> Did {
        Did::Append {
            expected,
            first,
            count: 1,
        }
    }

    #[test]
    fn appends_that_overlap_may_take_either_order() {
        let history = vec![
            step(append(Expected::Any, 1), 0, Some(10)),
            step(append(Expected::Any, 0), 5, Some(12)),
            step(Did::Read { end: 1 }, 8, Some(9)),
            step(Did::Read { end: 2 }, 13, Some(14)),
        ];
        assert_eq!(linearizable(history), Ok(()));
    }

    #[test]
    fn a_read_that_misses_an_answered_append_is_red() {
        let history = vec![
            step(append(Expected::Any, 0), 0, Some(10)),
            step(Did::Read { end: 0 }, 11, Some(12)),
        ];
        assert!(linearizable(history).is_err());
    }

    #[test]
    fn an_unanswered_append_takes_effect_at_any_time() {
        for read_at in [2, 50] {
            let history = vec![
                step(append(Expected::None, 0), 0, None),
                step(Did::Read { end: 0 }, read_at, Some(read_at + 1)),
                step(Did::Read { end: 1 }, 90, Some(91)),
            ];
            assert_eq!(linearizable(history), Ok(()), "read at {read_at}");
        }
        let seen_before_it_began = vec![
            step(append(Expected::None, 0), 50, None),
            step(Did::Read { end: 1 }, 2, Some(3)),
        ];
        assert!(linearizable(seen_before_it_began).is_err());
    }

    #[test]
    fn an_expectation_that_did_not_hold_is_red() {
        let stale = vec![
            step(append(Expected::Any, 0), 0, Some(1)),
            step(append(Expected::Any, 1), 2, Some(3)),
            // Checked against what the stream was a moment ago.
            step(append(Expected::Revision(Revision(0)), 2), 4, Some(5)),
        ];
        assert!(linearizable(stale).is_err());
        let twice_the_first = vec![
            step(append(Expected::None, 0), 0, Some(5)),
            step(append(Expected::None, 1), 0, Some(5)),
        ];
        assert!(linearizable(twice_the_first).is_err());
    }

    #[test]
    fn a_refusal_tells_what_was_there() {
        let refused = |end| Did::Refused {
            expected: Expected::None,
            end,
        };
        let appended = step(append(Expected::Any, 0), 0, Some(1));
        assert_eq!(
            linearizable(vec![appended, step(refused(1), 2, Some(3))]),
            Ok(())
        );
        // It was as expected, or is of the future.
        for end in [0, 2] {
            let history = vec![appended, step(refused(end), 2, Some(3))];
            assert!(linearizable(history).is_err(), "end {end}");
        }
    }

    #[test]
    fn a_long_history_is_judged_in_windows_and_across_them() {
        let mut history: Vec<_> = (0..5_000)
            .map(|n| step(append(Expected::Any, n), n * 10, Some(n * 10 + 25)))
            .collect();
        assert_eq!(linearizable(history.clone()), Ok(()));
        // One of the first answers comes to a call that begins when all is over.
        history[3].invoked = Duration::from_secs(1_000);
        history[3].returned = Some(Duration::from_secs(1_001));
        assert!(linearizable(history).is_err());
    }

    #[test]
    fn many_reads_beside_appends_that_were_never_answered_are_judged_soon() {
        let history = (0..40)
            .flat_map(|n| {
                let append = step(append(Expected::Any, n), 0, None);
                let read = step(Did::Read { end: n }, 1_000 - n, Some(2_000));
                [append, read]
            })
            .collect();
        assert_eq!(linearizable(history), Ok(()));
    }

    #[test]
    fn a_red_window_with_many_calls_in_flight_is_judged_soon() {
        let mut history: Vec<_> = (0..10)
            .map(|_| step(Did::Read { end: 0 }, 0, Some(100)))
            .collect();
        history.push(step(append(Expected::Any, 1), 0, Some(100)));
        assert!(linearizable(history).is_err());
    }
}

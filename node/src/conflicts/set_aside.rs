//! Writes what cannot be put back into a record.

use std::collections::BTreeSet;

use meridian_event::{EventId, NewEvent, RecordedEvent};
use tracing::error;

use super::record::{ConflictId, LostBranch};
use crate::readmission::First;
use crate::surely::{Surely, Unsure};

/// What cannot be put back: events of one stream, with how and why.
pub(crate) struct Lost<'a> {
    /// The id of the first event of the branch that they are of, which names the record.
    pub(crate) branch: EventId,
    pub(crate) first: &'a First,
    pub(crate) events: Vec<RecordedEvent>,
    pub(crate) actual: Option<u64>,
    pub(crate) reason: String,
}

/// How many events were set aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SetAside {
    pub(crate) now: u64,
    /// In an earlier life.
    pub(crate) before: u64,
    /// Those that nothing can hold. They stay where they are.
    pub(crate) not: u64,
}

/// Whether an earlier life has begun a record.
///
/// # Errors
/// When the node stops first.
pub(crate) async fn is_begun(
    id: ConflictId,
    surely: &Surely,
    branch: &LostBranch,
) -> Result<bool, Unsure> {
    let known = surely.known(&id.stream(), &[id.begun(branch)]).await?;
    Ok(known.not.is_empty())
}

/// Sees to it that each of these events is in a record.
///
/// A record that is whole is never added to: somebody may have decided about it. What it does not hold goes
/// into a further one.
///
/// # Errors
/// When the node stops first; the next life goes on.
pub(crate) async fn set_aside(lost: Lost<'_>, surely: &Surely) -> Result<SetAside, Unsure> {
    let mut done = SetAside::default();
    let Some(first) = lost.events.first() else {
        return Ok(done);
    };
    let mut id = ConflictId::of(&first.stream, lost.branch);
    let mut events = lost.events;
    while let Some(branch) = branch_of(lost.first, &events, lost.actual, &lost.reason) {
        let whole = id.whole(events.len() as u64);
        // Asked first: another region that holds the same events may be writing the record meanwhile, and what
        // it is then found to hold must be all that it will.
        let is_whole = surely
            .known(&id.stream(), std::slice::from_ref(&whole))
            .await?;
        let held = events.iter().map(|event| id.holding(event));
        let mut all: Vec<NewEvent> = vec![id.begun(&branch)];
        all.extend(held);
        let count = events.len();
        let known = surely.known(&id.stream(), &all).await?;
        let missing: BTreeSet<usize> = known.not.into_iter().collect();
        let is_held = |index: usize| !missing.contains(&(index + 1));
        done.before += (0..count).filter(|index| is_held(*index)).count() as u64;
        if is_whole.not.is_empty() {
            let mut index = 0;
            events.retain(|_| {
                index += 1;
                !is_held(index - 1)
            });
            if let Some(first) = events.first() {
                id = id.next(first.id);
            }
            continue;
        }
        // With nothing between that would be read, mostly in one batch: then nobody sees half of it.
        let mut writing: Vec<NewEvent> = missing.iter().map(|at| all[*at].clone()).collect();
        let fresh = (0..count).filter(|index| !is_held(*index)).count() as u64;
        writing.push(whole);
        let (_, refused) = surely.append_all(&id.stream(), &writing, |_| true).await?;
        for index in &refused {
            let id = writing[*index].id;
            error!(%id, stream = %branch.stream, "a lost event fits into no record; it stays in the stranded place");
        }
        done.not += refused.len() as u64;
        done.now += fresh - (refused.len() as u64).min(fresh);
        break;
    }
    Ok(done)
}

/// What a record of `events` says of them; none if there are none.
pub(crate) fn branch_of(
    first: &First,
    events: &[RecordedEvent],
    actual: Option<u64>,
    reason: &str,
) -> Option<LostBranch> {
    let (from, to) = (events.first()?, events.last()?);
    Some(LostBranch {
        stream: from.stream.clone(),
        origin: first.origin.clone(),
        partition: first.partition,
        generation: first.generation,
        positions: [from.dot.position.0, to.dot.position.0],
        revisions: [from.revision.0, to.revision.0],
        timestamps: [from.timestamp.to_string(), to.timestamp.to_string()],
        expected: from.revision.0.checked_sub(1),
        actual,
        reason: reason.to_owned(),
        count: events.len() as u64,
    })
}

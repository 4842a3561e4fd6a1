//! Re-admission: what a region had acknowledged beyond the cut of its fence comes home.
//!
//! Each stranded event is written again with its own id, by an ordinary append to wherever its stream has
//! its home now. Streams that every region writes take it as it is. In a stream with a home it is spliced:
//! put back at the very revision that it had, if nobody has written there since. What cannot be put back
//! is set aside in a conflict record (`conflicts`). `plan` makes branches of the tails, `identity` keeps
//! what an event first was.
//!
//! Not here: taking the tail out of the log and reading it back, and who may bring it home.
//!
//! Always true (`accounted`): each event ends in exactly one of its stream and a record. What was written
//! is known from the streams themselves, by its id, and from nothing else: a life that is cut short
//! anywhere is repeated from its beginning.

mod identity;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use futures_util::{StreamExt, stream};
use meridian_client::Expected;
use meridian_clock::LogId;
use meridian_event::{Block, EventId, NewEvent, RecordedEvent, Revision, StreamId};
use meridian_points::{Bug, planted, reached};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use utoipa::ToSchema;

pub(crate) use self::identity::{First, first_place, keep};
use self::plan::{Branch, plan};
use crate::Node;
use crate::conflicts::{ConflictId, Conflicts, Lost, branch_of, is_begun, set_aside};
use crate::metrics::{Readmitted, ReadmittedAs};
use crate::surely::{Sure, Surely, Unsure, batches};

/// How many streams are brought home at once: their homes may be far away.
const STREAMS_AT_ONCE: usize = 64;
/// After how many streams it is said how far it is.
const SAY_EVERY: usize = 1_000;
/// Whether events are put back into streams with a home that nobody wrote since. A category whose readers
/// have acted on the stream's end as it was may not want that; once it can say so, this is its policy.
const SPLICE: bool = true;

/// What one life of one log held beyond its cut.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    /// The log.
    pub(crate) log: LogId,
    /// Its life.
    pub(crate) generation: u32,
    /// Its blocks, in sequence.
    pub(crate) blocks: Vec<Block>,
}

/// How far re-admission is, in events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readmission {
    /// All that is to come home.
    pub total: u64,
    /// Put back where they were, in streams with a home.
    pub spliced: u64,
    /// Written again, in streams that every region writes.
    pub applied: u64,
    /// Set aside in conflict records.
    pub conflicts: u64,
    /// Those that were in their stream or a record before: clients had repeated them, or an earlier life
    /// of this had come so far.
    pub already: u64,
    /// Not done yet.
    pub left: u64,
}

// What became of some events of a branch.
#[derive(Clone, Copy, Debug, Default)]
struct Came {
    spliced: u64,
    applied: u64,
    conflicts: u64,
    // Nothing can hold them.
    not: u64,
}

/// Brings `tails` home, and says what became of their events. Gives up only when the node stops; a later
/// life does it all again and finds what is done.
///
/// All tails of a log that this region is to bring home belong into one call: an event that was stranded
/// twice counts once.
pub(crate) async fn readmit(
    node: Weak<Node>,
    tails: Vec<Tail>,
    cancel: CancellationToken,
) -> Readmission {
    let Some(conflicts) = node.upgrade().map(|node| Arc::clone(node.conflicts())) else {
        return Readmission::default();
    };
    let (tails, unreadable) = read(tails);
    let plan = plan(tails);
    let total = plan.events + unreadable;
    let home = Home {
        surely: Surely::new(Weak::clone(&node), cancel, None),
        node,
        conflicts,
    };
    home.conflicts.readmitting(|all| {
        all.total += total;
        all.left += total;
    });
    info!(
        events = total,
        streams = plan.streams.len(),
        "stranded events are brought home"
    );
    let mut sum = Readmission {
        total,
        left: total,
        ..Readmission::default()
    };
    let mut done = 0;
    let streams = stream::iter(plan.streams.into_values());
    let mut coming = streams
        .map(|branches| home.bring_all(branches))
        .buffer_unordered(STREAMS_AT_ONCE);
    while let Some(of_stream) = coming.next().await {
        sum.spliced += of_stream.spliced;
        sum.applied += of_stream.applied;
        sum.conflicts += of_stream.conflicts;
        sum.already += of_stream.already;
        sum.left -= of_stream.total - of_stream.left;
        done += 1;
        if done % SAY_EVERY == 0 {
            info!(
                left = sum.left,
                spliced = sum.spliced,
                applied = sum.applied,
                conflicts = sum.conflicts,
                already = sum.already,
                "stranded events are being brought home"
            );
        }
    }
    drop(coming);
    let Readmission {
        spliced,
        applied,
        conflicts,
        already,
        left,
        ..
    } = sum;
    match left {
        0 => info!(
            spliced,
            applied, conflicts, already, "all stranded events are home"
        ),
        _ => warn!(
            left,
            spliced, applied, conflicts, already, "stranded events are left where they are for now"
        ),
    }
    sum
}

// What the tails hold, and how many events of theirs cannot be read.
fn read(tails: Vec<Tail>) -> (Vec<(LogId, u32, Vec<RecordedEvent>)>, u64) {
    let mut unreadable = 0;
    let mut all = Vec::new();
    for tail in tails {
        let mut events = Vec::new();
        for block in &tail.blocks {
            match block.to_events() {
                Ok(read) => events.extend(read),
                Err(error) => {
                    error!(log = %tail.log, at = %block.header().first_position, %error, "a stranded block cannot be read; it stays in the stranded place");
                    unreadable += u64::from(block.header().count);
                }
            }
        }
        all.push((tail.log, tail.generation, events));
    }
    (all, unreadable)
}

struct Home {
    node: Weak<Node>,
    surely: Surely,
    conflicts: Arc<Conflicts>,
}

impl Home {
    // The branches of one stream, one after the other: a later one may build on an earlier.
    async fn bring_all(&self, branches: Vec<Branch>) -> Readmission {
        let mut sum = Readmission::default();
        for branch in branches {
            let total = branch.events.len() as u64;
            sum.total += total;
            sum.left += total;
            let stream = branch.first().stream.clone();
            let came = match self.bring(&branch).await {
                Ok(came) => came,
                Err(unsure) => {
                    info!(%stream, %unsure, "a stream's stranded events wait for the next start");
                    // The branches behind it may build on it.
                    break;
                }
            };
            let already = total - came.spliced - came.applied - came.conflicts - came.not;
            if came.conflicts > 0 {
                info!(%stream, conflicts = came.conflicts, "stranded events could not be put back and are set aside in a conflict record");
            }
            let add = |to: &mut Readmission| {
                to.spliced += came.spliced;
                to.applied += came.applied;
                to.conflicts += came.conflicts;
                to.already += already;
                to.left -= total - came.not;
            };
            add(&mut sum);
            self.conflicts.readmitting(add);
            let metric = self
                .node
                .upgrade()
                .map(|node| node.metrics().events_readmitted.clone());
            for (outcome, count) in [
                (ReadmittedAs::spliced, came.spliced),
                (ReadmittedAs::applied, came.applied),
                (ReadmittedAs::conflict, came.conflicts),
                (ReadmittedAs::already, already),
            ] {
                if let Some(metric) = &metric
                    && count > 0
                {
                    metric.get_or_create(&Readmitted { outcome }).inc_by(count);
                }
            }
        }
        sum
    }

    async fn bring(&self, branch: &Branch) -> Result<Came, Unsure> {
        let (first, has_home, is_ours) = {
            let node = self.node.upgrade().ok_or(Unsure::Stopping)?;
            let first = First {
                origin: node.names().of(branch.log.origin),
                partition: branch.log.partition.0,
                generation: branch.generation,
            };
            let has_home = node.homes().has_home(&branch.first().stream);
            let is_ours = branch.log.origin == node.config().region;
            (first, has_home, is_ours)
        };
        if !has_home && !is_ours {
            // Every region that holds it would write it into its own log; the one whose it is does, once.
            reached("events of another region were left to it");
            return Ok(Came {
                not: branch.events.len() as u64,
                ..Came::default()
            });
        }
        let again = branch.events.iter().map(|event| NewEvent {
            id: self.id(event.id),
            event_type: event.event_type.clone(),
            data: event.data.clone(),
            metadata: keep(event, &first),
        });
        let again: Vec<NewEvent> = again.collect();
        match has_home {
            true => self.splice(branch, &first, &again).await,
            false => self.apply(branch, &first, &again).await,
        }
    }

    fn id(&self, first: EventId) -> EventId {
        if planted(Bug::ReadmitTwice)
            && let Some(node) = self.node.upgrade()
        {
            let mut bytes = [0; 16];
            node.random().fill(&mut bytes);
            return EventId::from_random(bytes);
        }
        first
    }

    // Puts the events of a stream with a home back at the revisions that they had, up to the first one
    // that cannot be; that and all behind it is set aside, but for what clients have repeated themselves.
    async fn splice(
        &self,
        branch: &Branch,
        first: &First,
        again: &[NewEvent],
    ) -> Result<Came, Unsure> {
        let stream = &branch.first().stream;
        let mut came = Came::default();
        let known = self.surely.known(stream, again).await?;
        if known.not.is_empty() {
            return Ok(came);
        }
        // An earlier life may have found that the branch has no place any more. That is final, whatever
        // the stream looks like now: another fence may have cut off what was in the way.
        let begun = match branch_of(first, &branch.events, None, "") {
            Some(lost) => {
                let id = ConflictId::of(stream, branch.first().id);
                is_begun(id, &self.surely, &lost).await?
            }
            None => false,
        };
        if begun || !SPLICE {
            reached("an earlier life had set a branch aside");
            let reason = match SPLICE {
                true => "what comes before it was set aside",
                false => "streams of this category are not spliced",
            };
            let reason = reason.to_owned();
            return self
                .aside(branch, first, again, 0, None, reason, came)
                .await;
        }
        let limits = self.surely.limits()?;
        let mut at_revision = known.at;
        let mut at = 0;
        while at < again.len() {
            if let Some(revision) = at_revision.get(&at) {
                if *revision != branch.events[at].revision {
                    reached("a client had repeated a stranded event, elsewhere in its stream");
                    let reason = "the stream has gone on without it".to_owned();
                    return self
                        .aside(branch, first, again, at, None, reason, came)
                        .await;
                }
                at += 1;
                continue;
            }
            // As many of them, in whole batches as they first were, as one append may have.
            let end = at_revision
                .range(at..)
                .next()
                .map_or(again.len(), |(index, _)| *index);
            let run = batches(&again[at..end], &limits, |index| {
                branch.begins_batch(at + index)
            });
            let count = run.first().map_or(end - at, |range| range.len());
            let revision = branch.events[at].revision;
            let expected = match revision.0.checked_sub(1) {
                None => Expected::None,
                Some(before) => Expected::Revision(Revision(before)),
            };
            let batch = again[at..at + count].to_vec();
            match self.surely.append(stream, expected, batch).await? {
                Sure::Written(appended) => {
                    if appended.first_revision == revision {
                        came.spliced += count as u64;
                    } else {
                        // A client has repeated them just now. What comes next finds that.
                        reached("a client repeated stranded events while they were spliced");
                    }
                    at += count;
                }
                Sure::WrongRevision { actual } => {
                    let reason = "the stream was written since, without these events".to_owned();
                    let actual = actual.map(|revision| revision.0);
                    return self
                        .aside(branch, first, again, at, actual, reason, came)
                        .await;
                }
                Sure::Refused(reason) => {
                    // Some of them may be known by now.
                    let known = self.surely.known(stream, &again[at..]).await?;
                    let before = at_revision.len();
                    at_revision.extend(known.at.into_iter().map(|(index, it)| (at + index, it)));
                    if at_revision.len() == before {
                        return self
                            .aside(branch, first, again, at, None, reason, came)
                            .await;
                    }
                }
            }
        }
        Ok(came)
    }

    // Sets aside what the stream does not hold of the branch from `at` on.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one word about the same branch"
    )]
    async fn aside(
        &self,
        branch: &Branch,
        first: &First,
        again: &[NewEvent],
        at: usize,
        actual: Option<u64>,
        reason: String,
        mut came: Came,
    ) -> Result<Came, Unsure> {
        let stream = &branch.first().stream;
        let known = self.surely.known(stream, &again[at..]).await?;
        let events = known
            .not
            .iter()
            .map(|index| branch.events[at + index].clone());
        let lost = Lost {
            branch: branch.first().id,
            first,
            events: events.collect(),
            actual,
            reason,
        };
        let aside = set_aside(lost, &self.surely).await?;
        came.conflicts += aside.now;
        came.not += aside.not;
        Ok(came)
    }

    // Appends the events of a stream that every region writes, in the batches that they were.
    async fn apply(
        &self,
        branch: &Branch,
        first: &First,
        again: &[NewEvent],
    ) -> Result<Came, Unsure> {
        let mut came = Came::default();
        let stream = &branch.first().stream;
        // Such a stream is written here, so what it holds of them is known here.
        let known = self.known_here(stream, again)?;
        let new: Vec<usize> = (0..again.len()).filter(|it| !known.contains(it)).collect();
        let mut foreign = Vec::new();
        let batch_of = |index: &usize| branch.events[*index].timestamp;
        for batch in new.chunk_by(|one, other| batch_of(one) == batch_of(other)) {
            let events: Vec<NewEvent> = batch.iter().map(|index| again[*index].clone()).collect();
            let (_, refused) = self.surely.append_all(stream, &events, |_| false).await?;
            came.applied += (batch.len() - refused.len()) as u64;
            foreign.extend(
                refused
                    .into_iter()
                    .map(|index| branch.events[batch[index]].clone()),
            );
        }
        if !foreign.is_empty() {
            let lost = Lost {
                branch: branch.first().id,
                first,
                events: foreign,
                actual: None,
                reason: "another stream has an event with this id".to_owned(),
            };
            let aside = set_aside(lost, &self.surely).await?;
            came.conflicts += aside.now;
            came.not += aside.not;
        }
        Ok(came)
    }

    fn known_here(
        &self,
        stream: &StreamId,
        events: &[NewEvent],
    ) -> Result<BTreeSet<usize>, Unsure> {
        let node = self.node.upgrade().ok_or(Unsure::Stopping)?;
        let mut known = BTreeSet::new();
        for (index, event) in events.iter().enumerate() {
            // What cannot be read now is appended once more, and known then.
            if let Ok(Some(found)) = node.store().find_event(event.id, &[])
                && found.stream == *stream
            {
                known.insert(index);
            }
        }
        Ok(known)
    }
}

//! Decides what becomes of a record, once, and carries it out.

use std::sync::{Arc, Weak};
use std::time::Duration;

use meridian_client::Expected;
use meridian_event::{EventId, NewEvent, RecordedEvent, Revision, StreamId};
use meridian_points::reached;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::record::{
    Conflict, ConflictAction, ConflictId, ConflictStatus, Instead, LostBranch, Rebased, Record,
    Resolution, lost,
};
use super::{Conflicts, Node};
use crate::append::reserved_key;
use crate::homes::Place;
use crate::metrics::ResolvedAs;
use crate::readmission::{First, keep};
use crate::reservations::is_reservation;
use crate::surely::{Sure, Surely, Unsure};

/// How long a call may take. What it has decided goes on without it.
const WITHIN: Duration = Duration::from_secs(10);
/// How long before a record is read again that another decision has just been written to.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How often rebases are looked at that nobody ends. One that has just begun is left to its call.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// How large events may be together that are made of lost ones: they are kept in one event of the record first.
const INSTEAD_BYTES_MAX: usize = 256 << 10;
/// The longest reason.
const REASON_BYTES_MAX: usize = 4_096;

/// Why a record was not shown or resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConflictError {
    /// There is none of that id here.
    #[error("there is no conflict record {}; `GET /v1/conflicts?status=all` lists them", .0.0)]
    NotFound(ConflictId),
    /// It cannot be resolved as it was asked for.
    #[error("{0}")]
    Invalid(String),
    /// It is resolved, or not there as a whole yet. Nothing changed.
    #[error("{0}")]
    Conflict(String),
    /// It is not resolved. Try again later.
    #[error("{0}")]
    Unavailable(String),
    /// It may be resolved.
    #[error("{0}")]
    Unknown(String),
}

impl From<Unsure> for ConflictError {
    fn from(unsure: Unsure) -> Self {
        let said = unsure.to_string();
        match unsure {
            Unsure::Stopping | Unsure::Unavailable(_) => Self::Unavailable(said),
            Unsure::Unknown(_) => Self::Unknown(said),
        }
    }
}

pub(super) fn stopping() -> ConflictError {
    Unsure::Stopping.into()
}

// What is known of a record, and the revision of its last event.
struct Held {
    record: Record,
    branch: LostBranch,
    last: Revision,
}

impl Conflicts {
    /// Decides what becomes of a record, and answers once that is done.
    ///
    /// What an earlier call decided and did not end is ended.
    ///
    /// # Errors
    /// See [`ConflictError`]; a record is resolved once.
    pub async fn resolve(
        &self,
        id: ConflictId,
        action: ConflictAction,
        reason: &str,
    ) -> Result<Conflict, ConflictError> {
        self.resolve_with(id, action, reason, &[]).await
    }

    /// Decides that `events` are appended to the record's stream in place of those that it holds, which stay in
    /// it, and answers once that is done: what somebody made of them and of what the stream has come to.
    ///
    /// # Errors
    /// See [`ConflictError`]; a record is resolved once.
    pub async fn merge(
        &self,
        id: ConflictId,
        events: &[NewEvent],
        reason: &str,
    ) -> Result<Conflict, ConflictError> {
        self.resolve_with(id, ConflictAction::Rebase, reason, events)
            .await
    }

    async fn resolve_with(
        &self,
        id: ConflictId,
        action: ConflictAction,
        reason: &str,
        instead: &[NewEvent],
    ) -> Result<Conflict, ConflictError> {
        if action == ConflictAction::Discard && reason.trim().is_empty() {
            return Err(ConflictError::Invalid(
                "events are discarded for a reason only; say which, for whoever misses them"
                    .to_owned(),
            ));
        }
        if reason.len() > REASON_BYTES_MAX {
            return Err(ConflictError::Invalid(format!(
                "the reason has {} bytes; give at most {REASON_BYTES_MAX}",
                reason.len()
            )));
        }
        let bytes: usize = instead.iter().map(NewEvent::weight_bytes).sum();
        if bytes > INSTEAD_BYTES_MAX {
            return Err(ConflictError::Invalid(format!(
                "the events have {bytes} bytes together; give at most {INSTEAD_BYTES_MAX}"
            )));
        }
        if let Some(key) = instead.iter().find_map(reserved_key) {
            return Err(ConflictError::Invalid(format!(
                "the metadata of an event has the key {key:?}; those that begin with \"$\" are the server's own"
            )));
        }
        let kept: Option<Vec<Instead>> = instead.iter().map(Instead::of).collect();
        let resolution = Resolution {
            action,
            reason: reason.to_owned(),
            region: self.shared.region.clone(),
            instead: kept.ok_or_else(|| {
                ConflictError::Invalid("data and metadata of events are JSON".to_owned())
            })?,
        };
        let until = Instant::now() + WITHIN;
        let surely = self.surely(Some(until))?;
        let mut held = self.decide(id, resolution, until, &surely).await?;
        self.carry_out(id, &mut held, &surely).await?;
        let shown = held.record.shown(id);
        shown.ok_or(ConflictError::NotFound(id))
    }

    // Writes the decision, unless it is there.
    async fn decide(
        &self,
        id: ConflictId,
        resolution: Resolution,
        until: Instant,
        surely: &Surely,
    ) -> Result<Held, ConflictError> {
        let action = resolution.action;
        let mut bytes = [0; 16];
        self.node().ok_or_else(stopping)?.random().fill(&mut bytes);
        let by = EventId::from_random(bytes);
        loop {
            let mut held = self.hold(id)?;
            fits(action, &held)?;
            if action != ConflictAction::Discard && is_reservation(&held.branch.stream) {
                return Err(ConflictError::Conflict(format!(
                    "record {} holds reservations, which count where they were judged and nowhere else; \
                     discard it, and reserve the key anew",
                    id.0
                )));
            }
            let is_ours = held.record.is_resolved_by(by);
            match held.record.status() {
                ConflictStatus::Recording => {
                    return Err(ConflictError::Conflict(format!(
                        "record {} does not hold all of its events yet; resolve it once it is open",
                        id.0
                    )));
                }
                ConflictStatus::Open | ConflictStatus::Superseded => {}
                ConflictStatus::Rebasing if is_ours || action == ConflictAction::Rebase => {
                    return Ok(held);
                }
                ConflictStatus::Reinstating if is_ours || action == ConflictAction::Reinstate => {
                    return Ok(held);
                }
                _ if is_ours => return Ok(held),
                _ => return Err(resolved_already(id, &held.record)),
            }
            // The stream must be as it was read, or two could both believe that they decided.
            let expected = Expected::Revision(held.last);
            let event = id.resolved(by, &resolution);
            match surely.append(&id.stream(), expected, vec![event]).await? {
                Sure::Written(appended) => {
                    let revision = appended.first_revision;
                    let at = appended.timestamp;
                    held.record.resolve(revision, by, at, resolution);
                    if action == ConflictAction::Discard {
                        self.count(&held.branch, false, ResolvedAs::discarded);
                    }
                    info!(id = %id.0, ?action, "a conflict record is resolved");
                    return Ok(held);
                }
                Sure::Refused(reason) => return Err(ConflictError::Invalid(reason)),
                Sure::WrongRevision { .. } => reached("two resolved one conflict record"),
            }
            // What the other one wrote is on its way here.
            if Instant::now() + AGAIN_AFTER >= until {
                return Err(ConflictError::Unavailable(format!(
                    "another decision about record {} is not here yet; look at the record again",
                    id.0
                )));
            }
            sleep(AGAIN_AFTER).await;
        }
    }

    fn surely(&self, until: Option<Instant>) -> Result<Surely, ConflictError> {
        let node = self.shared.node.get().ok_or_else(stopping)?;
        let cancel = self.shared.tasks.clone();
        Ok(Surely::new(Weak::clone(node), cancel, until))
    }

    fn hold(&self, id: ConflictId) -> Result<Held, ConflictError> {
        let mut record = Record::default();
        let count = self.read(id, |event| record.take(event))?;
        let branch = record.branch().cloned();
        let branch = branch.ok_or(ConflictError::NotFound(id))?;
        Ok(Held {
            record,
            branch,
            last: Revision(count.saturating_sub(1)),
        })
    }

    // Does what was decided, and says in the record where its events are. All of it has ids that are known, so
    // whoever repeats it finds it done.
    async fn carry_out(
        &self,
        id: ConflictId,
        held: &mut Held,
        surely: &Surely,
    ) -> Result<(), ConflictError> {
        let superseded = held.record.superseded().cloned();
        let (rebased, outcome) = match (held.record.status(), &superseded) {
            (ConflictStatus::Rebasing, _) if !held.record.instead().is_empty() => {
                let events = held.record.instead();
                let stream = &held.branch.stream;
                let (revisions, refused) = surely.append_all(stream, &events, |_| false).await?;
                let rebased = Rebased {
                    revisions,
                    left_out: refused.into_iter().map(|index| events[index].id).collect(),
                    reinstated: None,
                };
                (rebased, ResolvedAs::merged)
            }
            (ConflictStatus::Rebasing, _) => {
                (self.rebase(id, held, surely).await?, ResolvedAs::rebased)
            }
            (ConflictStatus::Reinstating, Some(superseding)) => {
                let reinstate = self.reinstate(id, &held.branch, superseding, surely);
                (reinstate.await?, ResolvedAs::reinstated)
            }
            _ => return Ok(()),
        };
        let said = id.rebased(&rebased);
        if let Sure::Refused(reason) = surely
            .append(&id.stream(), Expected::Any, vec![said])
            .await?
        {
            return Err(ConflictError::Unavailable(reason));
        }
        held.record.rebase(rebased);
        self.count(&held.branch, superseded.is_some(), outcome);
        Ok(())
    }

    // Appends the record's events to their stream.
    async fn rebase(
        &self,
        id: ConflictId,
        held: &Held,
        surely: &Surely,
    ) -> Result<Rebased, ConflictError> {
        let mut rebased = Rebased::default();
        let mut from = 0;
        loop {
            let page = self.read_page(id, from)?;
            let events = page.events.iter();
            let lost: Vec<_> = events
                .filter_map(|event| lost(event, &held.branch))
                .collect();
            append(&lost, held, surely, &mut rebased).await?;
            from = page.next.unwrap_or(from);
            if page.end || page.events.is_empty() {
                break;
            }
        }
        Ok(rebased)
    }

    /// Ends what was decided and not carried out, at the home of the record.
    pub(super) async fn end_rebases(self: Arc<Self>) {
        let mut waited: Vec<ConflictId> = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = self.shared.tasks.cancelled() => return,
                () = sleep(LOOK_EVERY) => {}
            }
            let rebasing = self.rebasing();
            for id in rebasing.iter().filter(|id| waited.contains(id)) {
                if self.node().is_some_and(|node| is_home(&node, &id.stream())) {
                    self.end_rebase(*id).await;
                }
            }
            waited = rebasing;
        }
    }

    fn rebasing(&self) -> Vec<ConflictId> {
        let records = self.lock();
        let records = records.iter();
        records
            .filter(|(_, record)| is_under_way(record.status()))
            .map(|(id, _)| *id)
            .collect()
    }

    async fn end_rebase(&self, id: ConflictId) {
        let ended = async {
            let mut held = self.hold(id)?;
            if is_under_way(held.record.status()) {
                reached("a rebase was ended that another life had begun");
                let until = Instant::now() + WITHIN;
                let surely = self.surely(Some(until))?;
                self.carry_out(id, &mut held, &surely).await?;
                info!(id = %id.0, "what was decided about a conflict record was left half-way, and is done now");
            }
            Ok::<(), ConflictError>(())
        };
        if let Err(error) = ended.await {
            warn!(id = %id.0, %error, "what was decided about a conflict record waits");
        }
    }
}

fn is_under_way(status: ConflictStatus) -> bool {
    matches!(
        status,
        ConflictStatus::Rebasing | ConflictStatus::Reinstating
    )
}

// Whether that can be done about such a record at all.
fn fits(action: ConflictAction, held: &Held) -> Result<(), ConflictError> {
    let stream = &held.branch.stream;
    match (action, held.record.superseded()) {
        (ConflictAction::Reinstate, None) => Err(ConflictError::Invalid(
            "reinstate is for a write over which a later one won; rebase these events, or discard them"
                .to_owned(),
        )),
        (ConflictAction::Rebase | ConflictAction::Discard, Some(_)) => {
            Err(ConflictError::Invalid(format!(
                "the write is in stream {stream} and a later one won over it, so there is nothing to \
                 rebase or discard; reinstate it, or leave it as it is"
            )))
        }
        _ => Ok(()),
    }
}

fn is_home(node: &Node, stream: &StreamId) -> bool {
    let federation = node.homes().federation();
    matches!(
        node.homes().place(&federation, stream),
        Ok(Place::Here { .. })
    )
}

async fn append(
    lost: &[RecordedEvent],
    held: &Held,
    surely: &Surely,
    rebased: &mut Rebased,
) -> Result<(), ConflictError> {
    let first = First {
        origin: held.branch.origin.clone(),
        partition: held.branch.partition,
        generation: held.branch.generation,
    };
    let events: Vec<NewEvent> = lost
        .iter()
        .map(|event| NewEvent {
            id: event.id,
            event_type: event.event_type.clone(),
            data: event.data.clone(),
            metadata: keep(event, &first),
        })
        .collect();
    let begins_batch = |index: usize| lost[index].timestamp != lost[index - 1].timestamp;
    let appended = surely.append_all(&held.branch.stream, &events, begins_batch);
    let (revisions, refused) = appended.await?;
    rebased.revisions.extend(revisions);
    let left_out = refused.into_iter().map(|index| lost[index].id);
    rebased.left_out.extend(left_out);
    Ok(())
}

fn resolved_already(id: ConflictId, record: &Record) -> ConflictError {
    let shown = record.shown(id).and_then(|it| it.resolution);
    let how = shown.map_or(String::new(), |it| {
        let what = match it.action {
            ConflictAction::Rebase => "to be rebased",
            ConflictAction::Discard => "to be discarded",
            ConflictAction::Reinstate => "to be reinstated",
        };
        let at = crate::shown::rfc3339(it.at);
        format!(" {what}, at {at} in region {}: {:?}", it.region, it.reason)
    });
    ConflictError::Conflict(format!(
        "record {} is resolved already,{how}; nothing was changed",
        id.0
    ))
}

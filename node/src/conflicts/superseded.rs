//! Records of what was settled without anybody being asked: a write that lost to a later one which had not seen it.
//!
//! The write stays in its stream, so its record holds no bytes of it; it says what won, and by which rule. All of it
//! is made of what every region holds, so whichever region writes the record writes the same, and it is there once.

use meridian_client::Expected;
use meridian_conflict::{Kind, Superseded};
use meridian_event::{EventId, NewEvent, RecordedEvent, StreamId};
use meridian_points::reached;
use serde_json::{Map, Value, json};

use super::record::{ConflictId, LostBranch, Rebased, Superseding, WinnerPlace};
use super::resolve::{ConflictError, stopping};
use super::{Conflicts, Node};
use crate::metrics::{Resolution, ResolvedAs};
use crate::surely::{Sure, Surely};

/// How much of an event is read at least.
const ONE_EVENT_BYTES: usize = 1;

/// A write that lost, as a state lists it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Loss {
    pub(crate) stream: StreamId,
    pub(crate) kind: Kind,
    pub(crate) lost: Superseded,
}

impl Loss {
    pub(crate) fn record(&self) -> ConflictId {
        ConflictId::of_superseded(&self.stream, self.lost.id)
    }
}

impl Conflicts {
    /// Whether it is recorded, as far as is known here, that the event `id` of `stream` lost.
    pub(crate) fn has_superseded(&self, stream: &StreamId, id: EventId) -> bool {
        let id = ConflictId::of_superseded(stream, id);
        let records = self.lock();
        records.get(&id).is_some_and(|it| it.superseded().is_some())
    }

    /// Records that a write lost.
    ///
    /// # Errors
    /// When its event cannot be read now, or it is not known whether the record is written.
    pub(crate) async fn supersede(
        &self,
        loss: &Loss,
        surely: &Surely,
    ) -> Result<(), ConflictError> {
        let node = self.node().ok_or_else(stopping)?;
        let (lost, names) = (&loss.lost, node.names());
        let event = find(&node, &loss.stream, lost.id)?;
        // A state has what is on its way to the disk, and may never get there.
        find(&node, &loss.stream, lost.by)?;
        let winner = WinnerPlace {
            id: lost.by,
            origin: names.of(lost.by_dot.actor.region),
        };
        let origin = names.of(lost.marker.region);
        let branch = LostBranch {
            stream: loss.stream.clone(),
            partition: event.dot.partition.0,
            generation: lost.dot.actor.generation,
            positions: [lost.marker.position.0; 2],
            revisions: [event.revision.0; 2],
            timestamps: [(); 2].map(|()| lost.marker.timestamp.to_string()),
            expected: None,
            actual: None,
            reason: format!(
                "event {} of region {} is later, and its writer had not seen this one of region {origin}",
                winner.id, winner.origin
            ),
            count: 1,
            origin,
        };
        drop(node);
        let superseding = Superseding {
            event: lost.id,
            event_type: event.event_type,
            kind: loss.kind.name().to_owned(),
            fields: lost.fields.clone(),
            by: winner,
        };
        let id = loss.record();
        let events = vec![id.begun(&branch), id.superseded(&superseding)];
        match surely.append(&id.stream(), Expected::Any, events).await? {
            Sure::Written(_) => {
                self.count(&branch, true, ResolvedAs::superseded);
                Ok(())
            }
            Sure::WrongRevision { .. } => Ok(()),
            Sure::Refused(reason) => Err(ConflictError::Unavailable(reason)),
        }
    }

    /// Writes once more what lost, as a new event: whose that is, is decided.
    pub(super) async fn reinstate(
        &self,
        id: ConflictId,
        branch: &LostBranch,
        superseding: &Superseding,
        surely: &Surely,
    ) -> Result<Rebased, ConflictError> {
        let event = {
            let node = self.node().ok_or_else(stopping)?;
            find(&node, &branch.stream, superseding.event)?
        };
        let data = match superseding.fields.is_empty() {
            true => event.data.clone(),
            false => only(&event.data, &superseding.fields).into(),
        };
        let metadata = json!({"$reinstated": {"conflict": id.0, "event": superseding.event}});
        let again = NewEvent {
            // Regions that write it one after the other, after a crash, write two events.
            id: id.reinstated_in(&self.shared.region),
            event_type: superseding.event_type.clone(),
            data,
            metadata: metadata.to_string().into(),
        };
        let event = again.id;
        match surely
            .append(&branch.stream, Expected::Any, vec![again])
            .await?
        {
            Sure::Written(appended) => {
                reached("a write that had lost was reinstated");
                Ok(Rebased {
                    revisions: vec![[appended.first_revision.0, appended.last_revision.0]],
                    left_out: Vec::new(),
                    reinstated: Some(event),
                })
            }
            Sure::WrongRevision { .. } => Err(ConflictError::Unavailable(
                "the stream does not take it now; send it again".to_owned(),
            )),
            Sure::Refused(reason) => Err(ConflictError::Unavailable(reason)),
        }
    }

    /// Counts what became of a record.
    pub(super) fn count(&self, branch: &LostBranch, is_superseded: bool, outcome: ResolvedAs) {
        let resolution = Resolution {
            category: branch.stream.category().to_owned(),
            policy: if is_superseded { "lww" } else { "home" }.to_owned(),
            outcome,
        };
        let resolutions = &self.shared.metrics.resolutions;
        resolutions.get_or_create(&resolution).inc();
    }

    /// The write that a record is about, as its stream has it.
    pub(super) fn superseded_event(
        &self,
        branch: &LostBranch,
        superseding: &Superseding,
    ) -> Result<RecordedEvent, ConflictError> {
        let node = self.node().ok_or_else(stopping)?;
        find(&node, &branch.stream, superseding.event)
    }
}

fn find(node: &Node, stream: &StreamId, id: EventId) -> Result<RecordedEvent, ConflictError> {
    let unavailable = |reason: String| ConflictError::Unavailable(reason);
    let partition = stream.partition(node.config().partitions);
    let found = node.store().find_event(id, node.homes().logs(partition));
    let found = found.map_err(|error| unavailable(error.to_string()))?;
    let found = found.filter(|it| it.stream == *stream);
    let found = found.ok_or_else(|| {
        unavailable(format!(
            "event {id} of stream {stream} is not held here yet; try again later"
        ))
    })?;
    let page =
        node.store()
            .read_stream_of(stream, found.dot.origin, found.revision, 1, ONE_EVENT_BYTES);
    let event = page
        .map_err(|error| unavailable(error.to_string()))?
        .into_iter()
        .find(|event| event.id == id);
    event.ok_or_else(|| unavailable(format!("event {id} of stream {stream} cannot be read now")))
}

// The object in `data` with no other keys than `fields`.
fn only(data: &[u8], fields: &[String]) -> Vec<u8> {
    let object: Map<String, Value> = serde_json::from_slice(data).unwrap_or_default();
    let kept = object.into_iter().filter(|(name, _)| fields.contains(name));
    let kept: Map<String, Value> = kept.collect();
    serde_json::to_vec(&kept).expect("what was parsed encodes")
}

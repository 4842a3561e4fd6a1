//! A conflict record: the events of its stream, and what they add up to. Pure.

use bytes::Bytes;
use data_encoding::BASE64;
use meridian_clock::{Dot, PartitionId, Position, RegionId, Timestamp};
use meridian_event::{EventId, EventType, NewEvent, RecordedEvent, Revision, StreamId};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

/// The category of the streams that records are.
pub(super) const CATEGORY: &str = "$conflicts";
/// The types of a record's events, in their sequence.
const BEGUN: &str = "$conflict";
const EVENT: &str = "$conflict-event";
const WHOLE: &str = "$conflict-whole";
const RESOLVED: &str = "$conflict-resolved";
const REBASED: &str = "$conflict-rebased";
const SUPERSEDED: &str = "$conflict-superseded";
/// Names records, so that one that is repeated is not written twice.
const NAMESPACE: Uuid = Uuid::from_u128(0x2f0c_9d34_7be1_4c58_8a53_e1c4_55a0_9d16);

/// Which record, as in the name of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConflictId(pub Uuid);

impl ConflictId {
    /// The record of the branch of `stream` that begins with the event `first`.
    pub(crate) fn of(stream: &StreamId, first: EventId) -> Self {
        Self(Uuid::new_v5(
            &NAMESPACE,
            format!("{first} {stream}").as_bytes(),
        ))
    }

    /// The record of the write `lost` of `stream`, over which a later one won.
    pub fn of_superseded(stream: &StreamId, lost: EventId) -> Self {
        let name = format!("superseded {lost} {stream}");
        Self(Uuid::new_v5(&NAMESPACE, name.as_bytes()))
    }

    /// The record of what is left, from the event `first` on, when this one is closed.
    pub(super) fn next(self, first: EventId) -> Self {
        Self(Uuid::new_v5(&self.0, format!("next {first}").as_bytes()))
    }

    /// The stream that the record is.
    pub(crate) fn stream(self) -> StreamId {
        StreamId::new(&format!("{CATEGORY}-{}", self.0)).expect("a short name without controls")
    }

    /// The record that `stream` is, if it is one.
    pub(super) fn of_stream(stream: &StreamId) -> Option<Self> {
        let name = crate::own::name_in(stream, CATEGORY)?;
        Uuid::try_parse(name).ok().map(Self)
    }

    fn event(self, what: &str, event_type: &'static str, data: Bytes) -> NewEvent {
        NewEvent {
            id: EventId(Uuid::new_v5(&self.0, what.as_bytes())),
            event_type: EventType::new(event_type).expect("a sound type"),
            data,
            metadata: Bytes::new(),
        }
    }

    /// The event that a record begins with.
    pub(crate) fn begun(self, branch: &LostBranch) -> NewEvent {
        self.event("begun", BEGUN, json(branch))
    }

    /// The event by which the record holds `lost`. It has the lost one's data as its own, so that it is
    /// hardly larger.
    pub(crate) fn holding(self, lost: &RecordedEvent) -> NewEvent {
        let text = std::str::from_utf8(&lost.metadata).ok();
        let raw = text.and_then(|text| serde_json::from_str::<&RawValue>(text).ok());
        // White space around it would not come back.
        let raw = raw.filter(|raw| raw.get().len() == lost.metadata.len());
        let held = Held {
            id: lost.id,
            event_type: lost.event_type.clone(),
            revision: lost.revision,
            position: lost.dot.position,
            timestamp: lost.timestamp.to_string(),
            metadata_base64: (raw.is_none() && !lost.metadata.is_empty())
                .then(|| BASE64.encode(&lost.metadata)),
            metadata: raw.map(ToOwned::to_owned),
        };
        NewEvent {
            metadata: json(&held),
            ..self.event(&format!("event {}", lost.id), EVENT, lost.data.clone())
        }
    }

    /// The event that says that the record holds all that it will, which is `count` events.
    pub(super) fn whole(self, count: u64) -> NewEvent {
        self.event("whole", WHOLE, json(&Whole { count }))
    }

    /// The event that says how the record is resolved. Each try has an id of its own, `id`: of two only
    /// one may win.
    pub(super) fn resolved(self, id: EventId, resolution: &Resolution) -> NewEvent {
        NewEvent {
            id,
            ..self.event("resolved", RESOLVED, json(resolution))
        }
    }

    /// The event that says what won over the write that the record is about.
    pub(super) fn superseded(self, superseding: &Superseding) -> NewEvent {
        self.event("superseded", SUPERSEDED, json(superseding))
    }

    /// The event by which region `region` writes again what had lost.
    pub(super) fn reinstated_in(self, region: &str) -> EventId {
        let name = format!("reinstated in {region}");
        EventId(Uuid::new_v5(&self.0, name.as_bytes()))
    }

    /// The event that says where the record's events are now.
    pub(super) fn rebased(self, rebased: &Rebased) -> NewEvent {
        self.event("rebased", REBASED, json(rebased))
    }
}

fn json(value: &impl Serialize) -> Bytes {
    let bytes = serde_json::to_vec(value);
    bytes.expect("plain data always encodes").into()
}

/// Events of one stream that could not be put back where they were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostBranch {
    /// The stream.
    pub stream: StreamId,
    /// The name of the region that had written them.
    pub origin: String,
    /// Their partition.
    pub partition: u16,
    /// The life of the log that they were in.
    pub generation: u32,
    /// The first one's and the last one's place in it.
    pub positions: [u64; 2],
    /// Theirs in the stream.
    pub revisions: [u64; 2],
    /// When they were written: decimal numbers.
    pub timestamps: [String; 2],
    /// The revision that they build on; `None` when they began the stream.
    pub expected: Option<u64>,
    /// The stream's last revision when they were to be put back; `None` when it had none.
    pub actual: Option<u64>,
    /// Why they were not.
    pub reason: String,
    /// How many there are.
    pub count: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Held {
    id: EventId,
    #[serde(rename = "type")]
    event_type: EventType,
    revision: Revision,
    position: Position,
    timestamp: String,
    #[serde(
        default,
        deserialize_with = "even_null",
        skip_serializing_if = "Option::is_none"
    )]
    metadata: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata_base64: Option<String>,
}

// `null` is a writer's, too; none is when there is no such key.
fn even_null<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::deserialize(input).map(Some)
}

#[derive(Debug, Serialize, Deserialize)]
struct Whole {
    count: u64,
}

/// What is done about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConflictAction {
    /// Its events are appended to their stream as it is now.
    Rebase,
    /// They stay where they are, for a reason.
    Discard,
    /// A write that lost is written once more, as the latest.
    Reinstate,
}

/// By which rule a write lost, and to what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superseding {
    /// The write's event.
    pub event: EventId,
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// What the stream is: `document` or `fields`.
    pub kind: String,
    /// Which of the fields that it wrote it lost; none for a `document`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
    /// The event that won.
    pub by: WinnerPlace,
}

/// An event that won over another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WinnerPlace {
    /// Its id.
    pub id: EventId,
    /// The name of the region that wrote it.
    pub origin: String,
}

/// How a record is resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Resolution {
    pub(super) action: ConflictAction,
    pub(super) reason: String,
    /// The name of the region whose door was asked.
    pub(super) region: String,
    /// What is appended in place of the record's events, where somebody merged them with what the stream had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) instead: Vec<Instead>,
}

/// An event that somebody made of lost ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Instead {
    id: EventId,
    #[serde(rename = "type")]
    event_type: EventType,
    // The texts, with every digit that their writer wrote.
    data: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<String>,
}

impl Instead {
    /// As it is kept; none if it is no text.
    pub(super) fn of(event: &NewEvent) -> Option<Self> {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).ok();
        Some(Self {
            id: event.id,
            event_type: event.event_type.clone(),
            data: text(&event.data)?,
            metadata: Some(text(&event.metadata)?).filter(|it| !it.is_empty()),
        })
    }

    /// The event to append.
    pub(super) fn event(&self) -> NewEvent {
        NewEvent {
            id: self.id,
            event_type: self.event_type.clone(),
            data: self.data.clone().into(),
            metadata: self.metadata.clone().unwrap_or_default().into(),
        }
    }
}

/// Where a record's events are after a rebase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rebased {
    /// The revisions that they were given, from and to.
    pub(super) revisions: Vec<[u64; 2]>,
    /// Those that could not be appended, since another stream has an event with their id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) left_out: Vec<EventId>,
    /// The event by which a write that had lost was written again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reinstated: Option<EventId>,
}

/// How far a record has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConflictStatus {
    /// It does not hold all of its events yet.
    Recording,
    /// It waits for a decision.
    Open,
    /// Its events are being appended to their stream.
    Rebasing,
    /// They are there.
    Rebased,
    /// They were given up, and stay here.
    Discarded,
    /// It is about a write that lost to a later one, by its category's policy. Nothing has to be done.
    Superseded,
    /// That write is being written once more.
    Reinstating,
    /// It is.
    Reinstated,
}

impl ConflictStatus {
    /// Whether something is still to be done.
    pub fn is_open(self) -> bool {
        matches!(
            self,
            Self::Recording | Self::Open | Self::Rebasing | Self::Reinstating
        )
    }
}

/// What the events of a record's stream add up to, in whichever sequence they come, and however often.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    begun: Option<(Timestamp, LostBranch)>,
    // How many events it holds in the end.
    whole: Option<u64>,
    // The first one counts.
    resolved: Option<(Revision, EventId, Timestamp, Resolution)>,
    rebased: Option<Rebased>,
    #[serde(default)]
    superseded: Option<Superseding>,
}

impl Record {
    /// Takes in an event of the record's stream. Those of other versions of Meridian change nothing.
    pub(super) fn take(&mut self, event: &RecordedEvent) {
        match event.event_type.as_str() {
            BEGUN => {
                let branch = read(event);
                self.begun = branch
                    .map(|branch| (event.timestamp, branch))
                    .or(self.begun.take());
            }
            WHOLE => {
                self.whole = read::<Whole>(event).map(|it| it.count).or(self.whole);
            }
            RESOLVED => {
                let is_first =
                    |it: &(Revision, EventId, Timestamp, Resolution)| event.revision < it.0;
                if self.resolved.as_ref().is_none_or(is_first)
                    && let Some(resolution) = read(event)
                {
                    self.resolve(event.revision, event.id, event.timestamp, resolution);
                }
            }
            REBASED => self.rebased = read(event).or(self.rebased.take()),
            SUPERSEDED => self.superseded = read(event).or(self.superseded.take()),
            _ => {}
        }
    }

    /// Takes in that it is resolved.
    pub(super) fn resolve(
        &mut self,
        revision: Revision,
        id: EventId,
        at: Timestamp,
        resolution: Resolution,
    ) {
        self.resolved = Some((revision, id, at, resolution));
    }

    /// Takes in that it is rebased.
    pub(super) fn rebase(&mut self, rebased: Rebased) {
        self.rebased = Some(rebased);
    }

    /// What it is about; none while its first event is not here.
    pub(super) fn branch(&self) -> Option<&LostBranch> {
        self.begun.as_ref().map(|(_, branch)| branch)
    }

    /// What won, if it is about a write that lost.
    pub(super) fn superseded(&self) -> Option<&Superseding> {
        self.superseded.as_ref()
    }

    /// What is appended in place of its events.
    pub(super) fn instead(&self) -> Vec<NewEvent> {
        let resolution = self.resolved.iter().map(|(.., it)| it);
        resolution
            .flat_map(|it| it.instead.iter().map(Instead::event))
            .collect()
    }

    /// Whether the event `id` is the one that resolves it.
    pub(super) fn is_resolved_by(&self, id: EventId) -> bool {
        self.resolved.as_ref().is_some_and(|(_, by, ..)| *by == id)
    }

    pub(super) fn status(&self) -> ConflictStatus {
        let action = self.resolved.as_ref().map(|(.., it)| it.action);
        match (action, &self.rebased) {
            (Some(ConflictAction::Discard), _) => ConflictStatus::Discarded,
            (Some(ConflictAction::Rebase), Some(_)) => ConflictStatus::Rebased,
            (Some(ConflictAction::Rebase), None) => ConflictStatus::Rebasing,
            (Some(ConflictAction::Reinstate), Some(_)) => ConflictStatus::Reinstated,
            (Some(ConflictAction::Reinstate), None) => ConflictStatus::Reinstating,
            (None, _) if self.superseded.is_some() => ConflictStatus::Superseded,
            (None, _) if self.whole.is_some() => ConflictStatus::Open,
            (None, _) => ConflictStatus::Recording,
        }
    }

    /// What is shown of it; none while its first event is not here.
    pub(super) fn shown(&self, id: ConflictId) -> Option<Conflict> {
        let (recorded_at, branch) = self.begun.clone()?;
        let resolved = self.resolved.clone();
        let rebased = self.rebased.clone().unwrap_or_default();
        Some(Conflict {
            id,
            status: self.status(),
            branch: LostBranch {
                count: self.whole.unwrap_or(branch.count),
                ..branch
            },
            recorded_at,
            resolution: resolved.map(|(.., at, it)| ConflictResolution {
                action: it.action,
                reason: it.reason,
                region: it.region,
                at,
                revisions: rebased.revisions,
                left_out: rebased.left_out,
                reinstated: rebased.reinstated,
            }),
            superseded: self.superseded.clone(),
        })
    }
}

fn read<T: for<'de> Deserialize<'de>>(event: &RecordedEvent) -> Option<T> {
    let read = serde_json::from_slice(&event.data);
    read.inspect_err(|error| {
        tracing::warn!(stream = %event.stream, revision = %event.revision, %error, "an event of a conflict record is of another version of Meridian");
    })
    .ok()
}

/// A conflict record as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Which one.
    pub id: ConflictId,
    /// How far it has come.
    pub status: ConflictStatus,
    /// What it is about.
    pub branch: LostBranch,
    /// When it was written.
    pub recorded_at: Timestamp,
    /// What was decided, if anything was.
    pub resolution: Option<ConflictResolution>,
    /// What won, if it is about a write that lost to a later one.
    pub superseded: Option<Superseding>,
}

/// What was decided about a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictResolution {
    /// What to do.
    pub action: ConflictAction,
    /// Why.
    pub reason: String,
    /// The name of the region whose door was asked.
    pub region: String,
    /// When.
    pub at: Timestamp,
    /// The revisions that the events have in their stream since, from and to.
    pub revisions: Vec<[u64; 2]>,
    /// Events that could not be appended, since another stream has one with their id.
    pub left_out: Vec<EventId>,
    /// The event by which a write that had lost was written again.
    pub reinstated: Option<EventId>,
}

/// The event that `held`, of a record of `branch`, holds: as it was, byte for byte. None if that is no such
/// event. Its origin is told by its record alone.
pub(super) fn lost(held: &RecordedEvent, branch: &LostBranch) -> Option<RecordedEvent> {
    if held.event_type.as_str() != EVENT {
        return None;
    }
    let about: Held = serde_json::from_slice(&held.metadata).ok()?;
    let metadata = match (about.metadata, about.metadata_base64) {
        (Some(raw), _) => raw.get().as_bytes().to_vec(),
        (None, Some(encoded)) => BASE64.decode(encoded.as_bytes()).ok()?,
        (None, None) => Vec::new(),
    };
    Some(RecordedEvent {
        dot: Dot {
            origin: RegionId::default(),
            partition: PartitionId(branch.partition),
            position: about.position,
        },
        timestamp: Timestamp(about.timestamp.parse().ok()?),
        stream: branch.stream.clone(),
        revision: about.revision,
        id: about.id,
        event_type: about.event_type,
        data: held.data.clone(),
        metadata: metadata.into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn branch() -> LostBranch {
        LostBranch {
            stream: StreamId::new("order-1").expect("a sound name"),
            origin: "us".to_owned(),
            partition: 3,
            generation: 2,
            positions: [7, 9],
            revisions: [5, 6],
            timestamps: ["90".to_owned(), "91".to_owned()],
            expected: Some(4),
            actual: Some(8),
            reason: "r".to_owned(),
            count: 2,
        }
    }

    fn event(data: Vec<u8>, metadata: Vec<u8>) -> RecordedEvent {
        RecordedEvent {
            dot: Dot {
                origin: RegionId::default(),
                partition: PartitionId(3),
                position: Position(7),
            },
            timestamp: Timestamp(u64::MAX - 1),
            stream: branch().stream,
            revision: Revision(5),
            id: EventId(Uuid::from_u128(5)),
            event_type: EventType::new("Placed").expect("a sound type"),
            data: data.into(),
            metadata: metadata.into(),
        }
    }

    fn id() -> ConflictId {
        ConflictId::of(&branch().stream, EventId(Uuid::from_u128(5)))
    }

    // As the log gives it back.
    fn recorded(new: NewEvent, revision: u64) -> RecordedEvent {
        RecordedEvent {
            stream: id().stream(),
            revision: Revision(revision),
            id: new.id,
            event_type: new.event_type,
            timestamp: Timestamp(100 + revision),
            ..event(new.data.to_vec(), new.metadata.to_vec())
        }
    }

    fn resolved(action: ConflictAction, by: u128, revision: u64) -> RecordedEvent {
        let resolution = Resolution {
            action,
            reason: format!("{by}"),
            region: "eu".to_owned(),
            instead: Vec::new(),
        };
        let id = id().resolved(EventId(Uuid::from_u128(by)), &resolution);
        recorded(id, revision)
    }

    fn superseding() -> Superseding {
        Superseding {
            event: EventId(Uuid::from_u128(5)),
            event_type: EventType::new("Placed").expect("a sound type"),
            kind: "fields".to_owned(),
            fields: vec!["a".to_owned()],
            by: WinnerPlace {
                id: EventId(Uuid::from_u128(6)),
                origin: "eu".to_owned(),
            },
        }
    }

    fn status(events: &[RecordedEvent]) -> ConflictStatus {
        let mut record = Record::default();
        events.iter().for_each(|event| record.take(event));
        record.status()
    }

    #[test]
    fn a_records_events_are_written_as_they_ever_were() {
        assert_eq!(
            id().stream().as_str(),
            "$conflicts-40ddde92-9218-543c-af51-863e9e766a9f"
        );
        assert_eq!(ConflictId::of_stream(&id().stream()), Some(id()));
        let begun = id().begun(&branch());
        assert_eq!(
            std::str::from_utf8(&begun.data),
            Ok(
                r#"{"stream":"order-1","origin":"us","partition":3,"generation":2,"positions":[7,9],"revisions":[5,6],"timestamps":["90","91"],"expected":4,"actual":8,"reason":"r","count":2}"#
            )
        );
        let held = id().holding(&event(b" {}".to_vec(), b"[1]".to_vec()));
        assert_eq!(&held.data[..], b" {}");
        assert_eq!(
            std::str::from_utf8(&held.metadata),
            Ok(
                r#"{"id":"00000000-0000-0000-0000-000000000005","type":"Placed","revision":5,"position":7,"timestamp":"18446744073709551614","metadata":[1]}"#
            )
        );
        assert_eq!(&id().whole(2).data[..], br#"{"count":2}"#);
        assert_eq!(
            std::str::from_utf8(&resolved(ConflictAction::Rebase, 1, 4).data),
            Ok(r#"{"action":"rebase","reason":"1","region":"eu"}"#)
        );
        let rebased = Rebased {
            revisions: vec![[9, 10]],
            left_out: Vec::new(),
            reinstated: None,
        };
        assert_eq!(
            &id().rebased(&rebased).data[..],
            br#"{"revisions":[[9,10]]}"#
        );
        let superseded = ConflictId::of_superseded(&branch().stream, EventId(Uuid::from_u128(5)));
        assert_eq!(
            superseded.stream().as_str(),
            "$conflicts-89d3fb55-6ff4-5943-bfe5-f25ca2106ae8"
        );
        assert_eq!(
            std::str::from_utf8(&superseded.superseded(&superseding()).data),
            Ok(
                r#"{"event":"00000000-0000-0000-0000-000000000005","type":"Placed","kind":"fields","fields":["a"],"by":{"id":"00000000-0000-0000-0000-000000000006","origin":"eu"}}"#
            )
        );
    }

    proptest! {
        #[test]
        fn a_lost_event_comes_back_byte_for_byte(
            data in prop::collection::vec(any::<u8>(), 0..40),
            metadata in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                r#"[ \n]?(null|\{"a":[ ]?[0-9]{1,30}\}|1e400|"\\u00e9"|\[\])[ ]?"#.prop_map(String::into_bytes),
            ],
        ) {
            let event = event(data, metadata);
            let held = recorded(id().holding(&event), 1);
            prop_assert_eq!(lost(&held, &branch()), Some(event));
        }

        #[test]
        fn a_record_is_the_same_in_whichever_sequence_its_events_come(
            order in prop::collection::vec(0..5_usize, 0..20),
        ) {
            let events = [
                recorded(id().begun(&branch()), 0),
                recorded(id().whole(2), 3),
                resolved(ConflictAction::Rebase, 1, 4),
                resolved(ConflictAction::Discard, 2, 5),
                recorded(id().rebased(&Rebased::default()), 6),
            ];
            let (mut straight, mut mixed) = (Record::default(), Record::default());
            events.iter().for_each(|event| straight.take(event));
            order.iter().chain(&[4, 2, 3, 1, 0]).for_each(|at| mixed.take(&events[*at]));
            prop_assert_eq!(straight, mixed);
        }
    }

    #[test]
    fn a_record_goes_from_open_to_discarded_or_over_rebasing_to_rebased() {
        let begun = recorded(id().begun(&branch()), 0);
        let whole = recorded(id().whole(2), 3);
        let open = [begun, whole];
        assert_eq!(status(&open[..1]), ConflictStatus::Recording);
        assert_eq!(status(&open), ConflictStatus::Open);
        let with = |more: &[RecordedEvent]| status(&[&open, more].concat());
        let rebase = resolved(ConflictAction::Rebase, 1, 4);
        let rebased = recorded(id().rebased(&Rebased::default()), 5);
        assert_eq!(
            with(&[resolved(ConflictAction::Discard, 1, 4)]),
            ConflictStatus::Discarded
        );
        assert_eq!(
            with(std::slice::from_ref(&rebase)),
            ConflictStatus::Rebasing
        );
        assert_eq!(with(&[rebase, rebased]), ConflictStatus::Rebased);
    }

    #[test]
    fn a_write_that_lost_is_settled_until_somebody_wants_it_back() {
        let settled = [
            recorded(id().begun(&branch()), 0),
            recorded(id().superseded(&superseding()), 1),
        ];
        let with = |more: &[RecordedEvent]| status(&[&settled, more].concat());
        assert_eq!(with(&[]), ConflictStatus::Superseded);
        assert!(!with(&[]).is_open());
        let reinstate = resolved(ConflictAction::Reinstate, 1, 2);
        let written = recorded(id().rebased(&Rebased::default()), 3);
        assert_eq!(
            with(std::slice::from_ref(&reinstate)),
            ConflictStatus::Reinstating
        );
        assert_eq!(with(&[reinstate, written]), ConflictStatus::Reinstated);
    }

    #[test]
    fn of_two_decisions_the_first_counts() {
        let begun = recorded(id().begun(&branch()), 0);
        let (first, second) = (
            resolved(ConflictAction::Discard, 1, 4),
            resolved(ConflictAction::Rebase, 2, 5),
        );
        let either = [[&begun, &first, &second], [&begun, &second, &first]];
        for events in either {
            assert_eq!(status(&events.map(Clone::clone)), ConflictStatus::Discarded);
        }
    }
}

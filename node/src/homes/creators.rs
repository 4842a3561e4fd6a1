//! Who created a stream, in categories whose streams have their homes where they were created.
//!
//! Each such stream has a record: a stream of the server's own, in the same partition. Its first event is
//! written by the region that hashing makes the home of the stream, the *arbiter*, which therefore can say
//! once who creates it. Every region that writes the stream first repeats that in its own log, in front of
//! its first event there. So whoever holds any event of the stream holds its record too, whichever regions
//! are lost.
//!
//! Start reading at [`Homes::creator`]; how a region comes to create a stream is `creating`.
//!
//! Always true (`one-home`): all events of a record that count name the same region. A region goes by what
//! lies on its own disk, never by what it was told: what nobody but a lost arbiter held may be said anew.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use meridian_client::{AppendError, AppendRequest, Durability, Expected};
use meridian_clock::{LogId, PartitionId, RegionId};
use meridian_conflict::{HomeRule, Mode};
use meridian_event::{
    EventId, EventType, NameError, NewEvent, RecordedEvent, Revision, StreamId, partition_of,
};
use meridian_points::reached;
use meridian_store::{Direction, ReadError, StreamRange};
use serde::{Deserialize, Serialize};
use tracing::error;
use uuid::Uuid;

use super::{Homes, Place};
use crate::control::Federation;
use crate::control::federation::Seat;

/// The category of records.
pub(crate) const CATEGORY: &str = "$creators";
/// The type of their events.
const CREATED: &str = "$stream-created";
/// How long the name of a stream may be that has a record: the record's name has it in it.
pub(crate) const NAME_BYTES_MAX: usize = StreamId::BYTES_MAX - 16;
/// How many streams' creators are kept in memory; beyond it they are looked up in the log again.
const KNOWN_MAX: usize = 65_536;
/// How much of a record is read to know what it says.
const RECORD_BYTES: usize = 4 << 10;
/// Names the ids of records' events, so that what is repeated is not written twice.
const NAMESPACE: Uuid = Uuid::from_u128(0x2f0e_8c41_96d3_4b7a_8f5d_c1a7_03be_59d2);

/// The data of a record's events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Created {
    /// The region that created the stream.
    creator: RegionId,
}

/// What is remembered of a stream.
#[derive(Clone, Copy, Debug)]
struct Known {
    creator: RegionId,
    // Whether this region's own log says so.
    is_repeated: bool,
}

/// The creators that were looked up.
#[derive(Debug, Default)]
pub(super) struct Creators(Mutex<HashMap<StreamId, Known>>);

impl Creators {
    fn lock(&self) -> MutexGuard<'_, HashMap<StreamId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, stream: &StreamId, known: Known) {
        let mut all = self.lock();
        if all.len() >= KNOWN_MAX {
            all.clear();
        }
        all.insert(stream.clone(), known);
    }
}

/// The record of `stream`: the first such name in its partition.
///
/// # Errors
/// When the stream's name is too long.
pub(crate) fn record_of(stream: &StreamId, partitions: u16) -> Result<StreamId, NameError> {
    let partition = stream.partition(partitions);
    let name = (0_u32..)
        .map(|number| format!("{CATEGORY}-{number}-{stream}"))
        .find(|name| partition_of(name, partitions) == partition);
    StreamId::new(&name.expect("a hash reaches every partition within a few names"))
}

/// The stream whose record `record` is; `None` when it is none.
pub(crate) fn of_record(record: &StreamId, partitions: u16) -> Option<StreamId> {
    let (number, name) = crate::own::name_in(record, CATEGORY)?.split_once('-')?;
    number.parse::<u32>().ok()?;
    let stream = StreamId::new(name).ok()?;
    let is_its = record_of(&stream, partitions).is_ok_and(|it| it == *record);
    is_its.then_some(stream)
}

/// Asks a stream's arbiter who created it: region `creator`, if nobody has and `creates`.
///
/// # Errors
/// When the stream's name is too long.
pub(crate) fn question(
    stream: &StreamId,
    partitions: u16,
    creator: RegionId,
    creates: bool,
) -> Result<AppendRequest, AppendError> {
    let id = format!("{creator} {stream}");
    let expected = match creates {
        true => Expected::None,
        false => Expected::Exists,
    };
    event(stream, partitions, creator, &id, expected)
}

fn event(
    stream: &StreamId,
    partitions: u16,
    creator: RegionId,
    id: &str,
    expected: Expected,
) -> Result<AppendRequest, AppendError> {
    let too_long = || AppendError::Invalid {
        reason: format!(
            "the name of stream {stream} has {} bytes; in category {}, whose streams have their homes where \
             they are created, give it at most {NAME_BYTES_MAX}",
            stream.as_str().len(),
            stream.category()
        ),
    };
    let ours = |reason: String| AppendError::Invalid { reason };
    let data = serde_json::to_vec(&Created { creator }).map_err(|error| ours(error.to_string()))?;
    let record = match stream.as_str().len() <= NAME_BYTES_MAX {
        true => record_of(stream, partitions).ok(),
        false => None,
    };
    Ok(AppendRequest {
        stream: record.ok_or_else(too_long)?,
        expected,
        durability: Durability::Region,
        events: vec![NewEvent {
            id: EventId(Uuid::new_v5(&NAMESPACE, id.as_bytes())),
            event_type: EventType::new(CREATED).map_err(|error| ours(error.to_string()))?,
            data: data.into(),
            metadata: Bytes::new(),
        }],
    })
}

/// The region that `request`, of another region's node to a record, makes the creator, if it is what [`question`]
/// makes.
///
/// # Errors
/// Why it is not.
pub(crate) fn check(request: &AppendRequest, partitions: u16) -> Result<RegionId, AppendError> {
    let invalid = |reason: &str| AppendError::Invalid {
        reason: format!(
            "stream {} is no record of a creator: {reason}",
            request.stream
        ),
    };
    let stream = of_record(&request.stream, partitions)
        .ok_or_else(|| invalid("no stream's record has this name"))?;
    let said = request.events.first().and_then(said_by);
    let creator = said.ok_or_else(|| invalid("its event does not say which region it is"))?;
    let creates = request.expected == Expected::None;
    match *request == question(&stream, partitions, creator, creates)? {
        true => Ok(creator),
        false => Err(invalid("its event is not as nodes write it")),
    }
}

fn said_by(event: &NewEvent) -> Option<RegionId> {
    let created: Created = serde_json::from_slice(&event.data).ok()?;
    Some(created.creator)
}

/// Who `events`, of a record, say created its stream.
pub(crate) fn told_by(events: &[RecordedEvent]) -> Option<RegionId> {
    let event = events.first()?;
    let created = match event.event_type.as_str() {
        CREATED => serde_json::from_slice::<Created>(&event.data).ok(),
        _ => None,
    };
    if created.is_none() {
        error!(dot = %event.dot, "who created a stream cannot be read; its record holds something else");
    }
    created.map(|created| created.creator)
}

impl Homes {
    /// Whether `stream`'s home is where it was created, and it was not moved since.
    pub(crate) fn rests_on_creator(&self, federation: &Federation, stream: &StreamId) -> bool {
        let policy = self.policies_in(federation).of(stream.category());
        policy.mode == Mode::Home
            && policy.home == HomeRule::Creator
            && !stream.is_internal()
            && !federation.moved.contains_key(stream)
    }

    /// Which region created `stream`, as far as that is durable here.
    ///
    /// # Errors
    /// When the log that would tell cannot be read.
    pub(crate) fn creator(&self, stream: &StreamId) -> Result<Option<RegionId>, ReadError> {
        if let Some(known) = self.creators.lock().get(stream) {
            return Ok(Some(known.creator));
        }
        let Ok(record) = record_of(stream, self.partitions) else {
            return Ok(None);
        };
        let first = StreamRange {
            from: Revision(0),
            direction: Direction::Forwards,
            limit: 1,
            bytes_max: RECORD_BYTES,
            in_turn: false,
        };
        let events = self.store.read_stream(&record, first)?;
        let creator = told_by(&events);
        if let Some(creator) = creator {
            let is_repeated = false;
            let known = Known {
                creator,
                is_repeated,
            };
            self.creators.note(stream, known);
        }
        Ok(creator)
    }

    /// What this region's log has to say in front of the first event of `stream` that it holds; `None` when it has,
    /// or nothing rests on it.
    ///
    /// # Errors
    /// When the log that would tell cannot be read.
    pub(crate) fn to_repeat(
        &self,
        federation: &Federation,
        stream: &StreamId,
    ) -> Result<Option<AppendRequest>, ReadError> {
        if !self.rests_on_creator(federation, stream) {
            return Ok(None);
        }
        let known = self.creators.lock().get(stream).copied();
        if known.is_some_and(|known| known.is_repeated) {
            return Ok(None);
        }
        let (Some(creator), Ok(record)) =
            (self.creator(stream)?, record_of(stream, self.partitions))
        else {
            return Ok(None);
        };
        if !matches!(self.place(federation, stream)?, Place::Here { .. }) {
            return Ok(None);
        }
        let own = self.store.stream_last(&record, Some(self.region), false)?;
        if own.is_some() {
            let is_repeated = true;
            let known = Known {
                creator,
                is_repeated,
            };
            self.creators.note(stream, known);
            return Ok(None);
        }
        // Another id than that of the arbiter's event, which may lie in this very partition.
        let id = format!("{creator} {stream} {}", self.region);
        Ok(event(stream, self.partitions, creator, &id, Expected::Any).ok())
    }

    /// Where `stream` has its home if region `creator` created it.
    pub(crate) fn seat_if(
        &self,
        federation: &Federation,
        stream: &StreamId,
        creator: RegionId,
    ) -> Seat {
        let policies = self.policies_in(federation);
        federation.seat_by(&policies, stream, &HomeRule::Fixed(creator))
    }

    /// Where `stream` has its home if its first event comes here. A region that is home to nothing now creates
    /// nothing either: where the event goes then, the stream is created.
    pub(crate) fn seat_if_new(&self, federation: &Federation, stream: &StreamId) -> Seat {
        match self.may_create(federation, self.region) {
            true => self.seat_if(federation, stream, self.region),
            false => self.arbiter(federation, stream),
        }
    }

    /// Whether `region` may create streams, as far as this one knows.
    pub(crate) fn may_create(&self, federation: &Federation, region: RegionId) -> bool {
        let members = federation.members();
        members.is_empty() || members.contains(&region)
    }

    /// Where the arbiter of `stream` is.
    pub(crate) fn arbiter(&self, federation: &Federation, stream: &StreamId) -> Seat {
        federation.seat_by(&self.policies_in(federation), stream, &HomeRule::Hash)
    }

    /// Where the record of `stream` stands: at its arbiter, which says nothing before it holds all that ever counted
    /// of the partition.
    pub(super) fn place_of_record(
        &self,
        federation: &Federation,
        stream: &StreamId,
    ) -> Result<Place, ReadError> {
        // Its home rests on no record any more.
        let seat = federation.moved_seat(stream);
        let is_moved = seat.is_some();
        let seat = seat.unwrap_or_else(|| self.arbiter(federation, stream));
        if is_moved || seat.home != self.region {
            return Ok(Place::Elsewhere {
                home: seat.home,
                epoch: seat.epoch,
            });
        }
        let partition = stream.partition(self.partitions);
        if let Some(from) = self.lacks_of_fenced(federation, partition) {
            reached("an arbiter waited for what a lost region left");
            return Ok(Place::Coming { from });
        }
        let isolation = self.isolation(stream);
        match self.all_complete(federation, &seat.needs, partition, isolation)? {
            true => Ok(Place::Here {
                change: seat.change,
            }),
            false => Ok(Place::Coming {
                from: seat.needs.first().map_or(seat.home, |(from, _)| *from),
            }),
        }
    }

    // A region that was put out, of whose log not all that counts is here. What it wrote may repeat what only
    // another lost one had said.
    fn lacks_of_fenced(&self, federation: &Federation, partition: PartitionId) -> Option<RegionId> {
        let opened = federation.fences.iter().filter(|fence| fence.opened);
        let mut logs = opened.flat_map(|fence| {
            let regions = fence.regions.keys();
            regions.map(move |region| (fence, LogId::new(*region, partition)))
        });
        let lacks = logs.find(|(fence, log)| {
            let cut = fence.cut(*log);
            cut.is_some_and(|cut| self.store.head(*log).position < cut)
        });
        lacks.map(|(_, log)| log.origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(name: &str) -> StreamId {
        StreamId::new(name).expect("a sound name")
    }

    #[test]
    fn a_record_lies_in_the_partition_of_its_stream_and_names_it() {
        for partitions in [1, 4, 64] {
            for number in 0..50 {
                let stream = stream(&format!("visit-{number}-b"));
                let record = record_of(&stream, partitions).expect("a short name");
                assert_eq!(record.partition(partitions), stream.partition(partitions));
                assert_eq!(record.category(), CATEGORY);
                assert_eq!(of_record(&record, partitions), Some(stream));
            }
        }
    }

    #[test]
    fn what_is_no_record_is_taken_for_none() {
        let sound = record_of(&stream("visit-1"), 4).expect("a short name");
        let number = sound.as_str().split('-').nth(1).expect("it has a number");
        let other = number.parse::<u32>().expect("it is one") + 64;
        for name in [
            "$creators".to_owned(),
            "$creators-1".to_owned(),
            "$creators-x-visit-1".to_owned(),
            format!("$creators-{other}-visit-1"),
            format!("$creators-0{number}-visit-1"),
            "$homes-0-visit-1".to_owned(),
        ] {
            assert_eq!(of_record(&stream(&name), 4), None, "{name}");
        }
    }

    #[test]
    fn what_another_region_asks_is_taken_only_as_nodes_ask_it() {
        let sound = question(&stream("visit-1"), 4, RegionId(2), true).expect("a short name");
        assert_eq!(check(&sound, 4), Ok(RegionId(2)));
        let asks = question(&stream("visit-1"), 4, RegionId(2), false).expect("a short name");
        assert_eq!(check(&asks, 4), Ok(RegionId(2)));
        let spoilt: [fn(&mut AppendRequest); 6] = [
            |it| it.events.clear(),
            |it| it.events.push(it.events[0].clone()),
            |it| it.events[0].data = Bytes::from_static(b"{\"creator\":\"a\"}"),
            |it| it.events[0].data = Bytes::from_static(b"{\"creator\":1}"),
            |it| it.expected = Expected::Any,
            |it| it.stream = stream("$creators-0"),
        ];
        for spoil in spoilt {
            let mut request = sound.clone();
            spoil(&mut request);
            let refused = check(&request, 4);
            assert!(
                matches!(refused, Err(AppendError::Invalid { .. })),
                "{request:?}"
            );
        }
    }

    #[test]
    fn a_name_that_leaves_no_room_for_its_record_is_refused() {
        let name = format!("visit-{}", "x".repeat(NAME_BYTES_MAX));
        let refused = question(&stream(&name), 4, RegionId(0), true);
        assert!(matches!(refused, Err(AppendError::Invalid { .. })));
        let fits = stream(&name[..NAME_BYTES_MAX]);
        assert!(question(&fits, 64, RegionId(0), true).is_ok());
    }

    #[test]
    fn a_records_data_is_written_as_it_ever_was() {
        let asked = question(&stream("visit-1"), 4, RegionId(2), true).expect("a short name");
        let event = &asked.events[0];
        assert_eq!(event.data.as_ref(), br#"{"creator":2}"#);
        assert_eq!(event.event_type.as_str(), "$stream-created");
        assert_eq!(said_by(event), Some(RegionId(2)));
    }
}

//! What the events of a reservation's stream come to, and what to write there next.
//!
//! Each event says all there is to say: whose the key is, and until when. It also names its own place and the event
//! that it was judged on, the last one of the stream then, and counts only if it stands there, right behind that. So
//! it is the last event that counts which decides, and it is found from the end of the stream, however long that
//! is. What is brought to another place counts for nothing there.

use meridian_client::{
    Expected, Reservation, ReservationAct, ReservationKey, ReservationRequest, StreamRead,
};
use meridian_clock::{Dot, RegionId, Timestamp};
use meridian_event::{EventId, RecordedEvent, Revision, StreamId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The category of the streams of reservations.
const CATEGORY: &str = "$reserve";
/// The types of their events.
const RESERVED: &str = "$reserved";
const RELEASED: &str = "$released";
/// Names the ids of their events.
const NAMESPACE: Uuid = Uuid::from_u128(0x2f0c_5d1b_8a7e_4c36_9b1f_6e02_d1a4_7735);
/// How many events are read at once, from the end of a stream. The last one nearly always decides.
const PAGE: u32 = 8;

/// The stream of `key`. Keys are any text, and as long as a stream's name may be; so the name has a hash, and
/// the events have the key.
pub(crate) fn stream_of(key: &ReservationKey) -> StreamId {
    let mut hasher = blake3::Hasher::new();
    let namespace_bytes = u64::try_from(key.namespace.len()).unwrap_or(u64::MAX);
    hasher.update(&namespace_bytes.to_le_bytes());
    hasher.update(key.namespace.as_bytes());
    hasher.update(key.key.as_bytes());
    let name = format!("{CATEGORY}-{}", hasher.finalize().to_hex());
    StreamId::new(&name).expect("a hash in hexadecimal digits is a sound name")
}

/// Whether `stream` is one of these.
pub(crate) fn is_reservation(stream: &StreamId) -> bool {
    stream.category() == CATEGORY
}

/// The id of the event by which `request` is carried out: the same when it is repeated.
pub(super) fn event_id(request: &ReservationRequest) -> EventId {
    let asked = (&request.key, &request.owner, request.act, request.id);
    let bytes = postcard::to_stdvec(&asked).expect("texts and numbers always encode");
    EventId(Uuid::new_v5(&NAMESPACE, &bytes))
}

/// The first read of `stream` from its end.
pub(super) fn from_the_end(stream: &StreamId) -> StreamRead {
    StreamRead {
        stream: stream.clone(),
        from: StreamRead::LAST,
        direction: meridian_client::Direction::Backwards,
        limit: PAGE,
    }
}

/// The data of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Said {
    namespace: String,
    key: String,
    owner: String,
    /// The revision that it was judged for, and the last event of the stream then.
    at: u64,
    after: Option<EventId>,
    /// Both as readings of the clock, in decimal digits; none of it where a key is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

/// Whose a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) owner: String,
    pub(super) since: Timestamp,
    /// For good if there is none.
    pub(super) until: Option<Timestamp>,
    /// The event that says so, and when it was written.
    pub(super) dot: Dot,
    pub(super) timestamp: Timestamp,
}

impl Holder {
    /// This holder as it is told.
    pub(super) fn of(self, key: &ReservationKey, home: RegionId) -> Reservation {
        Reservation {
            key: key.clone(),
            owner: self.owner,
            since: self.since,
            until: self.until,
            dot: self.dot,
            timestamp: self.timestamp,
            home,
        }
    }
}

/// Why a stream's end cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "event {revision} of stream {stream} is no reservation that this build can read; a newer one may have written it"
)]
pub(super) struct Strange {
    stream: StreamId,
    revision: Revision,
}

/// An event at its place, which counts if the one before it is `after`.
struct Candidate {
    after: Option<EventId>,
    holder: Option<Holder>,
}

impl Candidate {
    /// `None` when it is not where it was judged for.
    fn of(event: &RecordedEvent) -> Result<Option<Self>, Strange> {
        let strange = || Strange {
            stream: event.stream.clone(),
            revision: event.revision,
        };
        let reading = |digits: &String| digits.parse().map(Timestamp).map_err(|_| strange());
        let said: Said = serde_json::from_slice(&event.data).map_err(|_| strange())?;
        let holder = match event.event_type.as_str() {
            RESERVED => Some(Holder {
                owner: said.owner,
                since: reading(&said.since.ok_or_else(strange)?)?,
                until: said.until.as_ref().map(reading).transpose()?,
                dot: event.dot,
                timestamp: event.timestamp,
            }),
            RELEASED => None,
            _ => return Err(strange()),
        };
        let is_in_place = said.at == event.revision.0;
        Ok(is_in_place.then_some(Self {
            after: said.after,
            holder,
        }))
    }
}

/// Walks a stream from its end until what it comes to is known.
#[derive(Default)]
pub(super) struct Walk {
    last: Option<(Revision, EventId)>,
    candidate: Option<Candidate>,
    decided: bool,
}

impl Walk {
    /// Takes the next event towards the beginning; whether no more are needed.
    ///
    /// # Errors
    /// When it cannot be understood.
    pub(super) fn take(&mut self, event: &RecordedEvent) -> Result<bool, Strange> {
        self.last.get_or_insert((event.revision, event.id));
        let stands_behind = |it: &Candidate| it.after == Some(event.id);
        self.decided |= self.candidate.as_ref().is_some_and(stands_behind);
        if !self.decided {
            self.candidate = Candidate::of(event)?;
            let is_first = |it: &Candidate| event.revision == Revision(0) && it.after.is_none();
            self.decided = self.candidate.as_ref().is_some_and(is_first);
        }
        Ok(self.decided)
    }

    /// What the stream comes to: nothing more was to be taken, or there was no more.
    pub(super) fn end(self) -> Standing {
        let decides = self.candidate.filter(|_| self.decided);
        Standing {
            last: self.last,
            holder: decides.and_then(|it| it.holder),
        }
    }
}

/// What a stream comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// Its last event, which the next one is written behind.
    last: Option<(Revision, EventId)>,
    /// Whoever was given the key last, and has not released it.
    holder: Option<Holder>,
}

/// What is to be done about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The key is another's.
    Taken(Holder),
    /// There is nothing to release.
    NotHeld,
    /// This is to be written, if the stream is still as expected.
    Write {
        event_type: &'static str,
        said: Said,
        expected: Expected,
        /// Whose the key is then; its dot and stamp are those of the event.
        until: Option<Timestamp>,
        since: Timestamp,
    },
}

impl Standing {
    /// Whose the key is at `now`.
    pub(super) fn holder_at(&self, now: Timestamp) -> Option<&Holder> {
        let holder = self.holder.as_ref();
        holder.filter(|holder| holder.until.is_none_or(|until| now < until))
    }

    /// The revision of the next event.
    pub(super) fn next(&self) -> Revision {
        self.last
            .map_or(Revision(0), |(revision, _)| revision.next())
    }

    /// What is to be done about `request` at `now`.
    pub(super) fn decide(&self, request: &ReservationRequest, now: Timestamp) -> Decision {
        let holder = self.holder_at(now);
        if let Some(other) = holder.filter(|it| it.owner != request.owner) {
            return Decision::Taken(other.clone());
        }
        let expected = match self.last {
            Some((revision, _)) => Expected::Revision(revision),
            None => Expected::None,
        };
        let since = holder.map_or(now, |it| it.since);
        let said = Said {
            namespace: request.key.namespace.clone(),
            key: request.key.key.clone(),
            owner: request.owner.clone(),
            at: self.next().0,
            after: self.last.map(|(_, id)| id),
            since: None,
            until: None,
        };
        match request.act {
            ReservationAct::Claim { hold_for } => {
                let until = hold_for.map(|hold_for| now.plus(hold_for));
                Decision::Write {
                    event_type: RESERVED,
                    said: Said {
                        since: Some(since.to_string()),
                        until: until.map(|until| until.to_string()),
                        ..said
                    },
                    expected,
                    until,
                    since,
                }
            }
            // Whoever repeats it, and could not know, is answered by the log as the first time.
            ReservationAct::Release
                if holder.is_some() || self.last.is_some_and(|(_, id)| id == event_id(request)) =>
            {
                Decision::Write {
                    event_type: RELEASED,
                    said,
                    expected,
                    until: None,
                    since,
                }
            }
            ReservationAct::Release => Decision::NotHeld,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use meridian_clock::{PartitionId, Position};
    use meridian_event::EventType;
    use proptest::prelude::*;

    use super::*;

    const NOON: u64 = 1_700_000_000;

    fn at(second: u64) -> Timestamp {
        Timestamp::from_unix(Duration::from_secs(NOON + second))
    }

    fn key() -> ReservationKey {
        ReservationKey {
            namespace: "email".to_owned(),
            key: "a@b.example".to_owned(),
        }
    }

    fn request(owner: &str, act: ReservationAct, id: u128) -> ReservationRequest {
        ReservationRequest {
            key: key(),
            owner: owner.to_owned(),
            act,
            id: Uuid::from_u128(id),
        }
    }

    fn claim(owner: &str, seconds: Option<u64>, id: u128) -> ReservationRequest {
        let hold_for = seconds.map(Duration::from_secs);
        request(owner, ReservationAct::Claim { hold_for }, id)
    }

    fn standing(stream: &[RecordedEvent]) -> Standing {
        let mut walk = Walk::default();
        for event in stream.iter().rev() {
            if walk.take(event).unwrap() {
                break;
            }
        }
        walk.end()
    }

    fn event(revision: usize, event_type: &str, said: &Said, id: EventId) -> RecordedEvent {
        RecordedEvent {
            dot: Dot {
                origin: RegionId(1),
                partition: PartitionId(0),
                position: Position(revision as u64 + 1),
            },
            timestamp: at(0),
            stream: stream_of(&key()),
            revision: Revision(revision as u64),
            id,
            event_type: EventType::new(event_type).unwrap(),
            data: serde_json::to_vec(said).unwrap().into(),
            metadata: bytes::Bytes::new(),
        }
    }

    // As a home does it: judged on all that is there.
    fn write(
        stream: &mut Vec<RecordedEvent>,
        request: &ReservationRequest,
        now: Timestamp,
    ) -> bool {
        let Decision::Write {
            event_type, said, ..
        } = standing(stream).decide(request, now)
        else {
            return false;
        };
        stream.push(event(stream.len(), event_type, &said, event_id(request)));
        true
    }

    fn owner_at(stream: &[RecordedEvent], second: u64) -> Option<String> {
        let standing = standing(stream);
        standing.holder_at(at(second)).map(|it| it.owner.clone())
    }

    #[test]
    fn a_key_is_the_first_owners_until_its_time_is_over() {
        let mut stream = Vec::new();
        assert!(write(&mut stream, &claim("one", Some(10), 1), at(0)));
        assert!(!write(&mut stream, &claim("two", None, 2), at(9)));
        assert_eq!(owner_at(&stream, 9).as_deref(), Some("one"));
        assert_eq!(owner_at(&stream, 10), None);
        assert!(write(&mut stream, &claim("two", None, 3), at(10)));
        assert_eq!(owner_at(&stream, 1_000_000).as_deref(), Some("two"));
        assert!(!write(&mut stream, &claim("one", None, 4), at(1_000_000)));
    }

    #[test]
    fn the_same_owner_renews_and_keeps_since_when_it_holds_the_key() {
        let mut stream = Vec::new();
        write(&mut stream, &claim("one", Some(10), 1), at(0));
        write(&mut stream, &claim("one", Some(10), 2), at(5));
        let renewed = standing(&stream).holder.unwrap();
        assert_eq!((renewed.since, renewed.until), (at(0), Some(at(15))));
        write(&mut stream, &claim("one", None, 3), at(6));
        assert_eq!(standing(&stream).holder.unwrap().until, None);
        // What was over begins anew.
        let mut stream = Vec::new();
        write(&mut stream, &claim("one", Some(10), 1), at(0));
        write(&mut stream, &claim("one", Some(10), 2), at(20));
        assert_eq!(standing(&stream).holder.unwrap().since, at(20));
    }

    #[test]
    fn only_the_owner_releases_and_only_what_is_held() {
        let mut stream = Vec::new();
        let release = |owner, id| request(owner, ReservationAct::Release, id);
        let nothing = standing(&stream).decide(&release("one", 1), at(0));
        assert_eq!(nothing, Decision::NotHeld);
        write(&mut stream, &claim("one", None, 2), at(0));
        assert!(!write(&mut stream, &release("two", 3), at(1)));
        assert!(write(&mut stream, &release("one", 4), at(1)));
        assert_eq!(owner_at(&stream, 1), None);
        assert!(write(&mut stream, &claim("two", None, 5), at(1)));
    }

    #[test]
    fn what_is_brought_to_another_place_counts_for_nothing() {
        let mut here = Vec::new();
        write(&mut here, &claim("one", None, 1), at(0));
        // Written in a region that was cut off, and put back behind what was written since.
        let mut there = Vec::new();
        write(&mut there, &claim("two", None, 2), at(0));
        write(&mut there, &claim("two", Some(10), 3), at(0));
        for lost in &there {
            let mut moved = lost.clone();
            moved.revision = Revision(here.len() as u64);
            here.push(moved);
        }
        assert_eq!(owner_at(&here, 1).as_deref(), Some("one"));
        // What is written next goes on from there.
        assert!(write(&mut here, &claim("one", Some(10), 4), at(1)));
        assert_eq!(owner_at(&here, 11), None);
    }

    #[test]
    fn what_cannot_be_read_is_never_taken_for_a_free_key() {
        let mut stream = Vec::new();
        write(&mut stream, &claim("one", None, 1), at(0));
        for (event_type, data) in [
            ("$renamed", stream[0].data.clone()),
            (RESERVED, bytes::Bytes::from_static(b"{}")),
        ] {
            let mut strange = stream[0].clone();
            strange.event_type = EventType::new(event_type).unwrap();
            strange.data = data;
            let said = Walk::default().take(&strange).unwrap_err().to_string();
            assert!(said.contains("a newer one may have written it"), "{said}");
        }
    }

    #[test]
    fn names_and_ids_are_as_they_ever_were() {
        let stream = stream_of(&key());
        let hash = "85489dd9506053b7275c63321e8ce14f64152f16d1794c312cadead5b71ca421";
        assert_eq!(stream.as_str(), format!("$reserve-{hash}"));
        let other = ReservationKey {
            namespace: "emaila".to_owned(),
            key: "@b.example".to_owned(),
        };
        assert_ne!(stream_of(&other), stream);
        let first = claim("one", Some(10), 1);
        assert_eq!(event_id(&first), event_id(&first.clone()));
        assert_ne!(event_id(&first), event_id(&claim("one", Some(11), 1)));
        assert_ne!(event_id(&first), event_id(&claim("one", Some(10), 2)));
    }

    proptest! {
        /// From the end it comes to the same as from the beginning.
        #[test]
        fn the_last_event_that_counts_decides(
            events in prop::collection::vec((0_usize..4, 0_u128..4, any::<bool>(), 0_u8..4), 0..12),
        ) {
            let id = |number: u128| EventId(Uuid::from_u128(number));
            let (mut stream, mut last, mut holder) = (Vec::new(), None, None);
            for (revision, (owner, after, is_claim, moved)) in events.into_iter().enumerate() {
                let after = match after {
                    0 => None,
                    // Most stand where they were judged for.
                    1 | 2 => last,
                    other => Some(id(other)),
                };
                let said = Said {
                    namespace: "n".to_owned(),
                    key: "k".to_owned(),
                    owner: owner.to_string(),
                    at: revision as u64 + u64::from(moved == 0),
                    after,
                    since: Some("1".to_owned()),
                    until: None,
                };
                let event_type = if is_claim { RESERVED } else { RELEASED };
                let own = id(100 + revision as u128);
                if after == last && moved > 0 {
                    holder = is_claim.then(|| owner.to_string());
                }
                last = Some(own);
                stream.push(event(revision, event_type, &said, own));
            }
            let found = standing(&stream);
            prop_assert_eq!(found.holder.map(|it| it.owner), holder);
            prop_assert_eq!(found.last.map(|(_, id)| id), last);
        }
    }
}

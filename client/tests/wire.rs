//! The bytes on the wire: the same as ever, and whatever arrives is parsed or refused.

#![allow(clippy::unwrap_used, reason = "a test may end where it is wrong")]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use meridian_client::wire::{
    self, Asked, Hello, Refused, RefusedCode, Request, Response, Welcome, kind,
};
use meridian_client::{
    AppendError, AppendRequest, Appended, AwaitSettled, Awaited, ConsumerError, ConsumerFetch,
    ConsumerRequest, ConsumerResponse, ConsumerSettle, Deliveries, Delivery, Direction, Durability,
    EventFilter, Expected, Gone, LiveCursor, LivePage, LiveRead, Member, ReadError, Reservation,
    ReservationAct, ReservationAnswer, ReservationKey, ReservationRequest, ReserveError,
    SessionRequest, SessionResponse, SessionToken, SettledPage, SettledRead, SettledTier,
    StateRead, StateTier, StreamPage, StreamRead, StreamState, Topology, Verdict,
};
use meridian_clock::{Dot, Epoch, OrderKey, PartitionId, Position, RegionId, Timestamp};
use meridian_conflict::{CategoryPolicy, HomeRule, Kind, Mode};
use meridian_event::frame::{self, FRAME_BODY_BYTES_MAX};
use meridian_event::{Category, EventId, EventType, NewEvent, RecordedEvent, Revision, StreamId};
use proptest::prelude::*;
use uuid::Uuid;

fn stream() -> StreamId {
    StreamId::new("order-42").unwrap()
}

fn new_event(id: u128) -> NewEvent {
    NewEvent {
        id: EventId(Uuid::from_u128(id)),
        event_type: EventType::new("OrderPlaced").unwrap(),
        data: Bytes::from_static(br#"{"items":3}"#),
        metadata: Bytes::from_static(b"{}"),
    }
}

fn recorded() -> RecordedEvent {
    let NewEvent {
        id,
        event_type,
        data,
        metadata,
    } = new_event(7);
    RecordedEvent {
        dot: dot(),
        timestamp: Timestamp(0x0102_0304_0506_0708),
        stream: stream(),
        revision: Revision(300),
        id,
        event_type,
        data,
        metadata,
    }
}

fn dot() -> Dot {
    Dot {
        origin: RegionId(2),
        partition: PartitionId(3),
        position: Position(70_000),
    }
}

fn append(expected: Expected, durability: Durability) -> Request {
    Request::Append {
        request: AppendRequest {
            stream: stream(),
            expected,
            durability,
            events: vec![new_event(1), new_event(2)],
        },
        hops: 1,
    }
}

fn topology() -> Topology {
    let member = |id, name: &str| Member {
        id: RegionId(id),
        name: name.to_owned(),
        quic: "127.0.0.1:7101".to_owned(),
        http: "127.0.0.1:7100".to_owned(),
    };
    let policy = |mode, home| CategoryPolicy { mode, home };
    Topology {
        partitions: 4,
        members: vec![member(1, "a"), member(2, "b")],
        categories: BTreeMap::from([
            ("cart".to_owned(), policy(Mode::Crdt, HomeRule::Hash)),
            (
                "ledger".to_owned(),
                policy(Mode::Home, HomeRule::Fixed(RegionId(2))),
            ),
            ("note".to_owned(), policy(Mode::Lww, HomeRule::Hash)),
        ]),
    }
}

fn requests() -> Vec<Request> {
    vec![
        Request::Topology,
        append(Expected::Any, Durability::Region),
        append(Expected::None, Durability::Regions(2)),
        append(Expected::Exists, Durability::All),
        append(Expected::Revision(Revision(5)), Durability::Region),
        Request::ReadStream(StreamRead {
            stream: stream(),
            from: StreamRead::LAST,
            direction: Direction::Backwards,
            limit: 100,
        }),
        Request::Live(LiveRead {
            after: LiveCursor("12.34".to_owned()),
            filter: EventFilter {
                category: Some(Category::new("order").unwrap()),
                event_type: Some(EventType::new("OrderPlaced").unwrap()),
            },
            limit: 500,
            wait_ms: 10_000,
        }),
    ]
}

fn responses() -> Vec<Response> {
    let reason = || "the disk failed".to_owned();
    let errors = [
        AppendError::WrongExpectedRevision {
            stream: stream(),
            expected: Expected::None,
            actual: Some(Revision(300)),
            events_since: vec![recorded()],
        },
        AppendError::NotHome {
            stream: stream(),
            home: RegionId(2),
            epoch: Epoch { major: 1, minor: 2 },
        },
        AppendError::Unavailable {
            reason: reason(),
            retry_after_ms: 250,
        },
        AppendError::Indeterminate { reason: reason() },
        AppendError::Invalid { reason: reason() },
        AppendError::TooLarge {
            what: "the batch, in events".to_owned(),
            limit: 4096,
            actual: 4097,
        },
    ];
    let read_errors = [
        ReadError::Unavailable {
            reason: reason(),
            retry_after_ms: 250,
        },
        ReadError::Invalid { reason: reason() },
        ReadError::UnknownRegion {
            region: RegionId(9),
        },
    ];
    let mut responses = vec![
        Response::Topology(topology()),
        Response::Append(Ok(Appended {
            stream: stream(),
            first_revision: Revision(299),
            last_revision: Revision(300),
            home: RegionId(2),
            dots: vec![dot(), dot()],
            timestamp: Timestamp(0x0102_0304_0506_0708),
            durability: Durability::Regions(2),
            could_strand: true,
        })),
        Response::ReadStream(Ok(StreamPage {
            events: vec![recorded()],
            next: Some(301),
            end: true,
        })),
        Response::Live(Ok(LivePage {
            events: vec![recorded()],
            cursor: LiveCursor("12.35".to_owned()),
            at_end: false,
        })),
        Response::NotUnderstood { reason: reason() },
    ];
    responses.extend(errors.map(|error| Response::Append(Err(error))));
    responses.extend(
        read_errors
            .clone()
            .map(|error| Response::ReadStream(Err(error))),
    );
    responses.extend(read_errors.map(|error| Response::Live(Err(error))));
    responses
}

/// Requests that came later, at the end of their choice.
fn later_requests() -> Vec<Request> {
    let filter = || EventFilter {
        category: Some(Category::new("order").unwrap()),
        event_type: None,
    };
    let settled = |tier| SettledRead {
        tier,
        after: OrderKey::new(Timestamp(0x0102_0304_0506_0708), dot()),
        filter: filter(),
        limit: 500,
        wait_ms: 10_000,
    };
    let in_session = |request| Request::InSession {
        token: SessionToken("AQIDBA".to_owned()),
        wait_ms: 2000,
        request,
    };
    let awaited = |tier, region| AwaitSettled {
        dot: dot(),
        tier,
        region,
        wait_ms: 30_000,
    };
    vec![
        Request::Settled(settled(SettledTier::Stable)),
        in_session(SessionRequest::Append(AppendRequest {
            stream: stream(),
            expected: Expected::Any,
            durability: Durability::Region,
            events: vec![new_event(1)],
        })),
        in_session(SessionRequest::ReadStream(StreamRead {
            stream: stream(),
            from: 7,
            direction: Direction::Forwards,
            limit: 100,
        })),
        in_session(SessionRequest::Live(LiveRead {
            after: LiveCursor("12.34".to_owned()),
            filter: filter(),
            limit: 500,
            wait_ms: 10_000,
        })),
        in_session(SessionRequest::Settled(settled(SettledTier::Final))),
        Request::Await(awaited(SettledTier::Stable, None)),
        Request::Await(awaited(SettledTier::Final, Some(RegionId(2)))),
    ]
}

/// Answers that came later, at the end of their choice.
fn later_responses() -> Vec<Response> {
    let stale = || ReadError::Stale {
        reason: "partition 3 is behind".to_owned(),
        retry_after_ms: 1000,
    };
    let settled = || SettledPage {
        events: vec![recorded()],
        cursor: OrderKey::new(Timestamp(0x0102_0304_0506_0708), dot()),
        watermark: Timestamp(0x0102_0304_0506_0809),
        at_end: true,
    };
    let appended = Appended {
        stream: stream(),
        first_revision: Revision(300),
        last_revision: Revision(300),
        home: RegionId(2),
        dots: vec![dot()],
        timestamp: Timestamp(0x0102_0304_0506_0708),
        durability: Durability::Region,
        could_strand: true,
    };
    let awaited = |reached, timestamp| {
        Response::Await(Ok(Awaited {
            reached,
            watermark: Timestamp(0x0102_0304_0506_0809),
            timestamp,
            region: RegionId(2),
            waited_ms: 41,
        }))
    };
    let in_session = |response| Response::InSession {
        token: SessionToken("AQIDBQ".to_owned()),
        response,
    };
    vec![
        Response::Settled(Ok(settled())),
        Response::Settled(Err(stale())),
        in_session(SessionResponse::Append(Ok(appended))),
        in_session(SessionResponse::ReadStream(Ok(StreamPage {
            events: vec![recorded()],
            next: Some(301),
            end: true,
        }))),
        in_session(SessionResponse::Live(Ok(LivePage::default()))),
        in_session(SessionResponse::Settled(Ok(settled()))),
        in_session(SessionResponse::Settled(Err(stale()))),
        awaited(true, Some(Timestamp(0x0102_0304_0506_0708))),
        awaited(false, None),
        Response::Await(Err(stale())),
    ]
}

fn every_later_message() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, request) in (200..).zip(later_requests()) {
        wire::encode_request(&mut bytes, id, 1500, &request).unwrap();
    }
    for (id, response) in (200..).zip(later_responses()) {
        wire::encode_response(&mut bytes, id, &response);
    }
    bytes
}

/// What consumer groups are asked and answer.
fn consumer_requests() -> Vec<Request> {
    let settle = |verdict| {
        Request::Consume(ConsumerRequest::Settle(ConsumerSettle {
            group: "mails".to_owned(),
            deliveries: vec!["1.2.3.300@0000002a.7".to_owned()],
            verdict,
        }))
    };
    vec![
        Request::Consume(ConsumerRequest::Fetch(ConsumerFetch {
            group: "mails".to_owned(),
            consumer: "one".to_owned(),
            limit: 500,
            wait_ms: 10_000,
        })),
        settle(Verdict::Done),
        settle(Verdict::Retry {
            delay_ms: Some(300),
            reason: "no paper".to_owned(),
        }),
        settle(Verdict::Park {
            reason: "torn".to_owned(),
        }),
    ]
}

fn consumer_responses() -> Vec<Response> {
    let group = || "mails".to_owned();
    let refused = |error| Response::Consume(Err(error));
    vec![
        Response::Consume(Ok(ConsumerResponse::Fetched(Deliveries {
            events: vec![Delivery {
                event: recorded(),
                delivery: "1.2.3.300@0000002a.7".to_owned(),
                attempt: 2,
            }],
            ack_within_ms: 30_000,
        }))),
        Response::Consume(Ok(ConsumerResponse::Settled(vec![Gone {
            delivery: "1.2.3.300@0000002a.7".to_owned(),
            reason: "its event is parked".to_owned(),
        }]))),
        refused(ConsumerError::NotFound { group: group() }),
        refused(ConsumerError::NotHere {
            group: group(),
            region: RegionId(2),
            name: "eu-west".to_owned(),
        }),
        refused(ConsumerError::Invalid {
            reason: "no name".to_owned(),
        }),
        refused(ConsumerError::Unavailable {
            reason: "it is not served yet".to_owned(),
            retry_after_ms: 1000,
        }),
    ]
}

fn every_consumer_message() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, request) in (200..).zip(consumer_requests()) {
        wire::encode_request(&mut bytes, id, 1500, &request).unwrap();
    }
    for (id, response) in (200..).zip(consumer_responses()) {
        wire::encode_response(&mut bytes, id, &response);
    }
    bytes
}

/// What is asked of a stream's home.
fn home_requests() -> Vec<Request> {
    vec![Request::ReadAtHome(StreamRead {
        stream: StreamId::new("order-42").unwrap(),
        from: 300,
        direction: Direction::Backwards,
        limit: 500,
    })]
}

fn home_responses() -> Vec<Response> {
    vec![Response::ReadStream(Err(ReadError::NotHome {
        home: RegionId(2),
    }))]
}

fn every_message_to_homes() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, request) in (200..).zip(home_requests()) {
        wire::encode_request(&mut bytes, id, 1500, &request).unwrap();
    }
    for (id, response) in (200..).zip(home_responses()) {
        wire::encode_response(&mut bytes, id, &response);
    }
    bytes
}

/// What is asked about reservations, and answered.
fn reservation_requests() -> Vec<Request> {
    let asked = |act, hops| Request::Reserve {
        request: ReservationRequest {
            key: reserved_key(),
            owner: "account-7".to_owned(),
            act,
            id: Uuid::from_u128(9),
        },
        hops,
    };
    let hold_for = Some(Duration::from_millis(600_500));
    vec![
        asked(ReservationAct::Claim { hold_for }, 0),
        asked(ReservationAct::Claim { hold_for: None }, 1),
        asked(ReservationAct::Release, 2),
    ]
}

fn reserved_key() -> ReservationKey {
    ReservationKey {
        namespace: "email".to_owned(),
        key: "a@b.example".to_owned(),
    }
}

fn reservation_responses() -> Vec<Response> {
    let held = |until| Reservation {
        key: reserved_key(),
        owner: "account-7".to_owned(),
        since: Timestamp(0x0102_0304_0506_0708),
        until,
        dot: dot(),
        timestamp: Timestamp(0x0102_0304_0506_0709),
        home: RegionId(2),
    };
    let reason = || "because".to_owned();
    vec![
        Response::Reserve(Ok(ReservationAnswer::Held(held(Some(Timestamp(300)))))),
        Response::Reserve(Ok(ReservationAnswer::Free {
            released: true,
            home: RegionId(2),
        })),
        Response::Reserve(Err(ReserveError::Reserved(Box::new(held(None))))),
        Response::Reserve(Err(ReserveError::Over { reason: reason() })),
        Response::Reserve(Err(ReserveError::Invalid { reason: reason() })),
        Response::Reserve(Err(ReserveError::Unavailable {
            reason: reason(),
            retry_after_ms: 1000,
        })),
        Response::Reserve(Err(ReserveError::Indeterminate { reason: reason() })),
    ]
}

fn every_message_about_reservations() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, request) in (200..).zip(reservation_requests()) {
        wire::encode_request(&mut bytes, id, 1500, &request).unwrap();
    }
    for (id, response) in (200..).zip(reservation_responses()) {
        wire::encode_response(&mut bytes, id, &response);
    }
    bytes
}

/// One of every message of the first days, one frame after the other.
fn every_message() -> Vec<u8> {
    let hello = Hello {
        federation: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        version_min: 1,
        version: 1,
        name: "importer".to_owned(),
    };
    let welcome = Welcome {
        version: 1,
        region: RegionId(2),
        topology: topology(),
    };
    let mut bytes = frame::encode_message(kind::HELLO, &hello);
    bytes.extend(frame::encode_message(kind::WELCOME, &welcome));
    for code in [
        RefusedCode::Federation,
        RefusedCode::Version,
        RefusedCode::Busy,
    ] {
        let reason = "because".to_owned();
        bytes.extend(frame::encode_message(
            kind::REFUSED,
            &Refused { code, reason },
        ));
    }
    for (id, request) in (200..).zip(requests()) {
        wire::encode_request(&mut bytes, id, 1500, &request).unwrap();
    }
    for (id, response) in (200..).zip(responses()) {
        wire::encode_response(&mut bytes, id, &response);
    }
    bytes
}

const GOLDEN: &[u8] = include_bytes!("../golden/wire-v1.bin");

/// What came after the first days has a file of its own: the old one must never change.
const LATER: &[u8] = include_bytes!("../golden/wire-v1-later.bin");

const CONSUMERS: &[u8] = include_bytes!("../golden/wire-v1-consumers.bin");

const HOMES: &[u8] = include_bytes!("../golden/wire-v1-homes.bin");

const STATES: &[u8] = include_bytes!("../golden/wire-v1-states.bin");

const RESERVATIONS: &[u8] = include_bytes!("../golden/wire-v1-reservations.bin");

/// Clients and nodes of this build are in the field: if this fails, a change of the messages has
/// made them strangers. Give the change a version of its own instead.
#[test]
fn every_message_still_has_the_bytes_it_always_had() {
    for (now, then) in [
        (every_message(), GOLDEN),
        (every_later_message(), LATER),
        (every_consumer_message(), CONSUMERS),
        (every_message_to_homes(), HOMES),
        (every_message_about_reservations(), RESERVATIONS),
        (every_message_about_states(), STATES),
    ] {
        let differs = now.iter().zip(then).position(|(now, then)| now != then);
        assert_eq!(differs, None, "the bytes differ from there on");
        assert_eq!(now.len(), then.len());
    }
}

#[test]
fn the_golden_bytes_still_mean_what_they_meant() {
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    for golden in [GOLDEN, LATER, CONSUMERS, HOMES, RESERVATIONS, STATES] {
        let mut rest = golden;
        while let Some((kind, body, length)) = frame::split(rest).unwrap() {
            match kind {
                kind::REQUEST => asked.push(wire::decode_request(body).unwrap().request.unwrap()),
                kind::RESPONSE => answered.push(wire::decode_response(body).unwrap().1.unwrap()),
                kind::HELLO | kind::WELCOME | kind::REFUSED => {}
                other => panic!("no message has kind {other}"),
            }
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
    }
    assert_eq!(
        asked,
        [
            requests(),
            later_requests(),
            consumer_requests(),
            home_requests(),
            reservation_requests(),
            state_requests()
        ]
        .concat()
    );
    assert_eq!(
        answered,
        [
            responses(),
            later_responses(),
            consumer_responses(),
            home_responses(),
            reservation_responses(),
            state_responses()
        ]
        .concat()
    );
}

#[test]
fn a_request_that_fits_in_no_frame_is_refused_and_leaves_no_trace() {
    let mut request = append(Expected::Any, Durability::Region);
    if let Request::Append { request, .. } = &mut request {
        request.events[0].data = Bytes::from(vec![b'1'; FRAME_BODY_BYTES_MAX]);
    }
    let mut out = b"before".to_vec();
    assert!(wire::encode_request(&mut out, 1, 1, &request).is_err());
    assert_eq!(out, b"before");
}

#[test]
fn an_answer_that_fits_in_no_frame_says_so_in_a_smaller_one() {
    let smaller = |response: Response| {
        let mut out = Vec::new();
        wire::encode_response(&mut out, 5, &response);
        let (_, body, _) = frame::split(&out).unwrap().unwrap();
        let (id, response) = wire::decode_response(body).unwrap();
        assert_eq!(id, 5);
        response.unwrap()
    };
    let mut large = recorded();
    large.data = Bytes::from(vec![b'1'; FRAME_BODY_BYTES_MAX]);

    let page = StreamPage {
        events: vec![large.clone()],
        ..StreamPage::default()
    };
    let read = smaller(Response::ReadStream(Ok(page)));
    let told = matches!(
        read,
        Response::ReadStream(Err(ReadError::Unavailable { .. }))
    );
    assert!(told, "{read:?}");

    // In a session too: what was too long to show must not count as shown.
    let read = smaller(Response::InSession {
        token: SessionToken("AQID".to_owned()),
        response: SessionResponse::ReadStream(Ok(StreamPage {
            events: vec![large.clone()],
            ..StreamPage::default()
        })),
    });
    let told = matches!(
        read,
        Response::ReadStream(Err(ReadError::Unavailable { .. }))
    );
    assert!(told, "{read:?}");

    let state = smaller(Response::State(Ok(StreamState {
        kind: Kind::GSet,
        json: "1".repeat(FRAME_BODY_BYTES_MAX),
        order_key: OrderKey::ZERO,
        digest: [0; 32],
        skipped: 0,
    })));
    let Response::State(Err(ReadError::Invalid { reason })) = state else {
        panic!("a state that is too long is refused, not {state:?}");
    };
    assert!(reason.contains("over HTTP"), "{reason}");

    // The writer still learns where the stream is.
    let conflict = |events_since| AppendError::WrongExpectedRevision {
        stream: stream(),
        expected: Expected::None,
        actual: Some(Revision(300)),
        events_since,
    };
    assert_eq!(
        smaller(Response::Append(Err(conflict(vec![large])))),
        Response::Append(Err(conflict(Vec::new())))
    );
}

/// What is asked about states, and answered.
fn state_requests() -> Vec<Request> {
    let read = |tier| StateRead {
        stream: stream(),
        tier,
    };
    vec![
        Request::State(read(StateTier::Live)),
        Request::InSession {
            token: SessionToken("AQID".to_owned()),
            wait_ms: 2000,
            request: SessionRequest::State(read(StateTier::Stable)),
        },
    ]
}

fn state_responses() -> Vec<Response> {
    let state = || StreamState {
        kind: Kind::OrMap,
        json: r#"{"hits":3}"#.to_owned(),
        order_key: OrderKey {
            timestamp: Timestamp(0x0102_0304_0506_0708),
            region: RegionId(2),
            partition: PartitionId(7),
            position: Position(300),
        },
        digest: [7; 32],
        skipped: 1,
    };
    vec![
        Response::State(Ok(state())),
        Response::State(Err(ReadError::Invalid {
            reason: "because".to_owned(),
        })),
        Response::InSession {
            token: SessionToken("AQID".to_owned()),
            response: SessionResponse::State(Ok(state())),
        },
    ]
}

fn every_message_about_states() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, request) in (200..).zip(state_requests()) {
        wire::encode_request(&mut bytes, id, 1500, &request).unwrap();
    }
    for (id, response) in (200..).zip(state_responses()) {
        wire::encode_response(&mut bytes, id, &response);
    }
    bytes
}

fn any_event() -> impl Strategy<Value = NewEvent> {
    (
        any::<u128>(),
        ".{0,40}",
        prop::collection::vec(any::<u8>(), 0..80),
    )
        .prop_map(|(id, metadata, data)| NewEvent {
            id: EventId(Uuid::from_u128(id)),
            event_type: EventType::new("Counted").unwrap(),
            data: data.into(),
            metadata: Bytes::from(metadata),
        })
}

fn any_request() -> impl Strategy<Value = Request> {
    let expected = prop_oneof![
        Just(Expected::Any),
        Just(Expected::None),
        Just(Expected::Exists),
        any::<u64>().prop_map(|revision| Expected::Revision(Revision(revision))),
    ];
    let durability = prop_oneof![
        Just(Durability::Region),
        any::<u16>().prop_map(Durability::Regions),
        Just(Durability::All),
    ];
    let events = prop::collection::vec(any_event(), 0..5);
    (
        "[^\\p{Cc}]{1,60}",
        expected,
        durability,
        events,
        any::<u8>(),
    )
        .prop_map(
            |(stream, expected, durability, events, hops)| Request::Append {
                request: AppendRequest {
                    stream: StreamId::new(&stream).unwrap(),
                    expected,
                    durability,
                    events,
                },
                hops,
            },
        )
}

proptest! {
    #[test]
    fn requests_survive_the_round_trip(id: u64, wait_ms: u32, request in any_request()) {
        let mut out = Vec::new();
        wire::encode_request(&mut out, id, wait_ms, &request).unwrap();
        let (kind, body, length) = frame::split(&out).unwrap().unwrap();
        prop_assert_eq!((kind, length), (kind::REQUEST, out.len()));
        let asked = Asked { id, wait_ms, request: Ok(request) };
        prop_assert_eq!(wire::decode_request(body), Ok(asked));
    }

    #[test]
    fn no_bytes_make_the_decoders_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = wire::decode_request(&bytes);
        let _ = wire::decode_response(&bytes);
        let _ = frame::decode_message::<Hello>(kind::HELLO, &bytes);
        let _ = frame::decode_message::<Welcome>(kind::WELCOME, &bytes);
    }

    /// Sound bytes with a few wrong ones are more dangerous than noise.
    #[test]
    fn no_damage_makes_the_decoders_panic(
        which: prop::sample::Index,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let responses = [responses(), later_responses()].concat();
        let mut body = Vec::new();
        wire::encode_response(&mut body, 9, &responses[which.index(responses.len())]);
        body.drain(..frame::FRAME_HEADER_BYTES);
        for (place, byte) in damage {
            let place = place.index(body.len());
            body[place] = byte;
        }
        let _ = wire::decode_response(&body);
        let _ = wire::decode_request(&body);
    }

    #[test]
    fn what_is_left_over_is_refused(request in any_request(), more in 1u8..) {
        let mut out = Vec::new();
        wire::encode_request(&mut out, 1, 1, &request).unwrap();
        let mut body = out.split_off(frame::FRAME_HEADER_BYTES);
        body.push(more);
        prop_assert!(wire::decode_request(&body).unwrap().request.is_err());
    }
}

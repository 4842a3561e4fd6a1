//! The bytes on the wire: the same as ever, and whatever arrives is parsed or refused.

use bytes::Bytes;
use meridian_clock::{
    Epoch, Incarnation, LogId, PartitionId, Position, Promise, RegionId, Timestamp,
};
use meridian_event::Chain;
use meridian_event::frame::{self, FrameError};
use meridian_replication::frame::{
    Ack, Agreed, Agreement, AgreementUnder, Blocks, ClockEcho, Fetch, Head, Heartbeat, Hello,
    Holding, Lane, Message, NotServed, Refusal, Settled, SettledUnder, Stable, Start, Subscribe,
    Subscribed, Taken, Vector,
};
use proptest::prelude::*;
use uuid::Uuid;

use crate::{A, B, history, log_of};

macro_rules! golden {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../golden/", $name, "-v1.bin")))),*]
    };
}

// One file for each kind of message; those with variants of their own hold one frame for each.
const GOLDEN: &[(&str, &[u8])] = golden![
    "hello",
    "welcome",
    "refused",
    "vector",
    "heartbeat",
    "subscribe",
    "subscribed",
    "not-served",
    "blocks",
    "ack",
    "fetch",
    "settled",
    "agreement",
    "start",
    "taken",
    "ask",
    "answer",
    "settled-under",
    "agreement-under",
];

fn hello(lane: Lane) -> Hello {
    Hello {
        version_min: 1,
        version_max: 3,
        federation: Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        region: B,
        name: "eu-west".to_owned(),
        incarnation: Incarnation(2),
        partitions: 16,
        lane,
    }
}

fn promise() -> Promise {
    Promise {
        log: log_of(A),
        timestamp: Timestamp(0x0102_0304_0506_0708),
        position: Position(300),
    }
}

fn head() -> Head {
    Head {
        log: LogId::new(B, PartitionId(5)),
        incarnation: Incarnation(2),
        epoch: Epoch { major: 1, minor: 7 },
        position: Position(70_000),
        chain: Chain([0xc4; 32]),
        timestamp: Timestamp(0x1112_1314_1516_1718),
    }
}

fn refusals() -> Vec<Refusal> {
    vec![
        Refusal::OtherFederation {
            name: "eu-west".to_owned(),
            theirs: Uuid::from_u128(1),
            ours: Uuid::from_u128(2),
        },
        Refusal::UnknownRegion {
            region: RegionId(9),
            name: "eu-west".to_owned(),
        },
        Refusal::WrongRegion {
            certificate: "eu-west".to_owned(),
            claimed: A,
            configured: "us-east".to_owned(),
        },
        Refusal::OtherRegion {
            expected: A,
            found: B,
        },
        Refusal::Itself { region: A },
        Refusal::OtherPartitions {
            theirs: 8,
            ours: 16,
        },
        Refusal::Version {
            theirs_min: 4,
            theirs_max: 5,
            ours_min: 1,
            ours_max: 3,
        },
    ]
}

fn reasons_not_to_serve() -> Vec<NotServed> {
    let log = log_of(B);
    vec![
        NotServed::Behind {
            log,
            held: Position(3),
            asked: Position(400),
        },
        NotServed::Diverged {
            log,
            position: Position(3),
        },
        NotServed::OtherIncarnation {
            log,
            held: Incarnation(1),
            asked: Incarnation(2),
        },
        NotServed::Damaged {
            log,
            after: Position(3),
        },
        NotServed::Unreadable {
            log,
            reason: "no".to_owned(),
        },
        NotServed::TooMany,
    ]
}

// What the golden file of that name holds.
fn messages(name: &str) -> Vec<Message> {
    let blocks = |promise| {
        Message::Blocks(Blocks {
            promise,
            blocks: history(log_of(A), 2).1,
        })
    };
    match name {
        "hello" => vec![
            Message::Hello(hello(Lane::Live)),
            Message::Hello(hello(Lane::Bulk)),
        ],
        "welcome" => vec![Message::Welcome(hello(Lane::Live))],
        "refused" => refusals().into_iter().map(Message::Refused).collect(),
        "vector" => vec![Message::Vector(Vector {
            sent: Timestamp(5),
            echo: Some(ClockEcho {
                sent: Timestamp(3),
                received: Timestamp(4),
            }),
            heads: vec![head(), Head::empty(log_of(A))],
            holdings: vec![Holding {
                region: RegionId(3),
                log: log_of(A),
                incarnation: Incarnation(1),
                position: Position(299),
            }],
        })],
        "heartbeat" => vec![Message::Heartbeat(Heartbeat {
            promises: vec![promise()],
        })],
        "subscribe" => vec![Message::Subscribe(Subscribe {
            log: log_of(B),
            incarnation: Incarnation(2),
            after: Position(70_000),
            chain: Chain([0xc4; 32]),
            credit_bytes: 1 << 20,
        })],
        "subscribed" => vec![Message::Subscribed(Subscribed {
            head: Position(70_001),
        })],
        "not-served" => reasons_not_to_serve()
            .into_iter()
            .map(Message::NotServed)
            .collect(),
        "blocks" => vec![blocks(None), blocks(Some(promise()))],
        "ack" => vec![Message::Ack(Ack {
            durable: Position(70_001),
            credit_bytes: 3 << 20,
        })],
        "fetch" => vec![Message::Fetch(Fetch {
            log: log_of(B),
            incarnation: Incarnation(2),
            after: Position(41),
            until: Position(97),
        })],
        "settled" => vec![Message::Settled(Settled {
            stable: vec![Stable {
                region: B,
                partition: PartitionId(5),
                through: Timestamp(0x0102_0304_0506_0708),
            }],
        })],
        "agreement" => vec![Message::Agreement(Agreement {
            agreed: vec![Agreed {
                partition: PartitionId(5),
                through: Timestamp(0x0102_0304_ffff_ffff),
                events: 70_000,
                chain: Chain([0xc4; 32]),
            }],
        })],
        "start" => vec![Message::Start(Start {
            id: 0x0102_0304_0506_0708,
        })],
        "taken" => vec![Message::Taken(Taken {
            logs: vec![(log_of(B), Position(97))],
        })],
        "ask" => vec![Message::Ask(Bytes::from_static(b"who leads?"))],
        "answer" => vec![Message::Answer(Bytes::from_static(b"eu-west"))],
        "settled-under" => match messages("settled").remove(0) {
            Message::Settled(settled) => vec![Message::SettledUnder(SettledUnder {
                stable: settled.stable.into_iter().map(|it| (it, 300)).collect(),
            })],
            other => vec![other],
        },
        "agreement-under" => match messages("agreement").remove(0) {
            Message::Agreement(agreement) => vec![Message::AgreementUnder(AgreementUnder {
                under: 300,
                agreed: agreement.agreed,
            })],
            other => vec![other],
        },
        other => panic!("no messages are called {other}"),
    }
}

fn encode(messages: &[Message]) -> Vec<u8> {
    messages.iter().flat_map(Message::encode).collect()
}

fn decode(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some((kind, body, length)) = frame::split(bytes).unwrap() {
        messages.push(Message::decode(kind, &Bytes::copy_from_slice(body)).unwrap());
        bytes = &bytes[length..];
    }
    assert!(bytes.is_empty(), "half a frame at the end");
    messages
}

#[test]
fn every_message_is_written_as_it_ever_was() {
    for (name, golden) in GOLDEN {
        let now = encode(&messages(name));
        let differs = now.iter().zip(*golden).position(|(now, then)| now != then);
        assert_eq!(differs, None, "{name} differs from that byte on");
        assert_eq!(now.len(), golden.len(), "{name}");
    }
}

#[test]
fn the_golden_bytes_still_mean_what_they_meant() {
    for (name, golden) in GOLDEN {
        assert_eq!(decode(golden), messages(name), "{name}");
    }
}

#[test]
fn there_is_a_golden_file_for_every_kind_of_message() {
    let all = GOLDEN.iter().map(|(name, _)| messages(name));
    let kinds: Vec<u8> = all.map(|messages| messages[0].kind()).collect();
    assert_eq!(kinds, (1..=19).collect::<Vec<_>>());
    assert_eq!(
        Message::decode(20, &Bytes::new()),
        Err(FrameError::UnknownKind { kind: 20 })
    );
}

#[test]
fn a_message_of_blocks_without_a_block_is_refused() {
    let empty = Message::Blocks(Blocks {
        promise: None,
        blocks: Vec::new(),
    });
    let bytes = empty.encode();
    let (kind, body, _) = frame::split(&bytes).unwrap().unwrap();
    let refused = Message::decode(kind, &Bytes::copy_from_slice(body));
    assert!(matches!(refused, Err(FrameError::Body { .. })));
}

fn a_log() -> impl Strategy<Value = LogId> {
    (any::<u16>(), any::<u16>())
        .prop_map(|(region, partition)| LogId::new(RegionId(region), PartitionId(partition)))
}

fn a_head() -> impl Strategy<Value = Head> {
    let numbers = (any::<u32>(), any::<u16>(), any::<u64>(), any::<u64>());
    (a_log(), numbers, any::<[u8; 32]>()).prop_map(
        |(log, (life, major, position, timestamp), chain)| Head {
            log,
            incarnation: Incarnation(life),
            epoch: Epoch {
                major: major.into(),
                minor: 3,
            },
            position: Position(position),
            chain: Chain(chain),
            timestamp: Timestamp(timestamp),
        },
    )
}

fn a_promise() -> impl Strategy<Value = Promise> {
    (a_log(), any::<u64>(), any::<u64>()).prop_map(|(log, timestamp, position)| Promise {
        log,
        timestamp: Timestamp(timestamp),
        position: Position(position),
    })
}

fn a_hello() -> impl Strategy<Value = Hello> {
    let numbers = (any::<u16>(), any::<u16>(), any::<u16>(), any::<u16>());
    (numbers, any::<u128>(), ".*", any::<u32>(), any::<bool>()).prop_map(
        |((version_min, version_max, region, partitions), federation, name, life, is_bulk)| Hello {
            version_min,
            version_max,
            federation: Uuid::from_u128(federation),
            region: RegionId(region),
            name,
            incarnation: Incarnation(life),
            partitions,
            lane: if is_bulk { Lane::Bulk } else { Lane::Live },
        },
    )
}

fn a_vector() -> impl Strategy<Value = Vector> {
    let holding = (any::<u16>(), a_head()).prop_map(|(region, head)| Holding {
        region: RegionId(region),
        log: head.log,
        incarnation: head.incarnation,
        position: head.position,
    });
    let echo = (any::<u64>(), any::<u64>()).prop_map(|(sent, received)| ClockEcho {
        sent: Timestamp(sent),
        received: Timestamp(received),
    });
    (
        any::<u64>(),
        prop::option::of(echo),
        prop::collection::vec(a_head(), 0..20),
        prop::collection::vec(holding, 0..20),
    )
        .prop_map(|(sent, echo, heads, holdings)| Vector {
            sent: Timestamp(sent),
            echo,
            heads,
            holdings,
        })
}

fn a_message() -> impl Strategy<Value = Message> {
    let promises = prop::collection::vec(a_promise(), 0..20);
    let blocks = (prop::option::of(a_promise()), 1usize..6);
    let subscribe = (a_head(), any::<u64>());
    let fetch = (a_head(), any::<u64>());
    prop_oneof![
        a_hello().prop_map(Message::Hello),
        a_hello().prop_map(Message::Welcome),
        prop::sample::select(refusals()).prop_map(Message::Refused),
        a_vector().prop_map(Message::Vector),
        promises.prop_map(|promises| Message::Heartbeat(Heartbeat { promises })),
        subscribe.prop_map(|(head, credit_bytes)| Message::Subscribe(Subscribe {
            log: head.log,
            incarnation: head.incarnation,
            after: head.position,
            chain: head.chain,
            credit_bytes,
        })),
        any::<u64>().prop_map(|head| Message::Subscribed(Subscribed {
            head: Position(head)
        })),
        prop::sample::select(reasons_not_to_serve()).prop_map(Message::NotServed),
        blocks.prop_map(|(promise, count)| Message::Blocks(Blocks {
            promise,
            blocks: history(log_of(A), count).1,
        })),
        (any::<u64>(), any::<u64>()).prop_map(|(durable, credit_bytes)| Message::Ack(Ack {
            durable: Position(durable),
            credit_bytes,
        })),
        fetch.prop_map(|(head, until)| Message::Fetch(Fetch {
            log: head.log,
            incarnation: head.incarnation,
            after: head.position,
            until: Position(until),
        })),
        any::<u64>().prop_map(|id| Message::Start(Start { id })),
        prop::collection::vec((a_log(), any::<u64>()), 0..4).prop_map(|logs| {
            let logs = logs
                .into_iter()
                .map(|(log, position)| (log, Position(position)));
            Message::Taken(Taken {
                logs: logs.collect(),
            })
        }),
    ]
}

proptest! {
    #[test]
    fn every_message_comes_back_as_it_was(message in a_message()) {
        prop_assert_eq!(decode(&message.encode()), [message]);
    }

    #[test]
    fn a_message_with_any_bit_flipped_is_refused(
        message in a_message(),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let mut bytes = message.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // Flipped in the length it may look like the beginning of a longer frame, which never ends.
        prop_assert!(!matches!(frame::split(&bytes), Ok(Some(_))));
    }

    #[test]
    fn a_message_cut_short_is_never_taken_for_a_whole_one(
        message in a_message(),
        at in any::<prop::sample::Index>(),
    ) {
        let bytes = message.encode();
        let (kind, body, _) = frame::split(&bytes).unwrap().unwrap();
        let cut = Bytes::copy_from_slice(&body[..at.index(body.len())]);
        if let Ok(shorter) = Message::decode(kind, &cut) {
            // Blocks are a list: without its last one it is still a list, though not the same.
            prop_assert!(matches!(shorter, Message::Blocks(_)));
            prop_assert_ne!(shorter, message);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = frame::split(&body);
        for kind in [kind, kind % 12] {
            if let Ok(message) = Message::decode(kind, &Bytes::copy_from_slice(&body)) {
                let _ = message.encode();
            }
        }
    }

    #[test]
    fn bytes_that_begin_like_a_message_never_panic(
        message in a_message(),
        tail in prop::collection::vec(any::<u8>(), 0..64),
        at in any::<prop::sample::Index>(),
    ) {
        let bytes = message.encode();
        let (kind, body, _) = frame::split(&bytes).unwrap().unwrap();
        let mut body = body[..at.index(body.len() + 1)].to_vec();
        body.extend(tail);
        let _ = Message::decode(kind, &body.into());
    }
}

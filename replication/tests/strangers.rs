//! Peers that must not be let in, and peers that send what cannot be: each ends in an error that
//! says what is wrong, nothing of it is written, and the links to others go on.

#![cfg(feature = "quic")]
#![allow(clippy::unwrap_used, reason = "a test may end where it is wrong")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use meridian_clock::{Position, RegionId};
use meridian_event::{Block, Chain};
use meridian_replication::frame::{Ack, Blocks, Holding, Message, Subscribe};
use meridian_store::LogHead;
use support::rogue::{self, Fault};
use support::{
    A, B, C, Ca, LIFE, Region, World, append_to, assert_goes_on, assert_logged, is_logged, log_of,
    next_block, until,
};
use tempfile::TempDir;
use uuid::Uuid;

const REFUSED: u64 = 2;
const VIOLATION: u64 = 3;

fn folder() -> Arc<TempDir> {
    Arc::new(TempDir::new().unwrap())
}

// Two regions that are linked; the third member is for the stranger.
async fn two(world: &mut World) -> (Region, Region) {
    let (a, b) = (world.start(A), world.start(B));
    until("a and b are linked", || a.is_linked(B) && b.is_linked(A)).await;
    (a, b)
}

// Nothing of the stranger's was kept, and what is between the others goes on.
async fn assert_untouched(a: &Region, b: &Region) {
    assert_goes_on(a, b).await;
    assert_eq!(a.head(C).position, Position::ZERO);
    assert_eq!(b.head(C).position, Position::ZERO);
}

// The first block of the third region's log, sound in itself.
fn block_of_c() -> Block {
    next_block(&LogHead::empty(log_of(C)), 0)
}

fn blocks_of_c() -> Message {
    Message::Blocks(Blocks {
        promise: None,
        blocks: vec![block_of_c()],
    })
}

#[tokio::test]
async fn a_peer_with_a_certificate_of_another_ca_is_kept_out_both_ways() {
    let mut world = World::new(3);
    let (a, b) = two(&mut world).await;
    let identity = Ca::new().region("c");
    let c = world.start_as(world.config(C), &identity, folder());
    c.append(3).await;

    until("the stranger learns why", || {
        c.last_error(A).contains("another CA")
    })
    .await;
    until("a learns why", || a.last_error(C).contains("another CA")).await;
    until("a says who knocked", || {
        is_logged(&["WARN", "failed its handshake", "another CA"])
    })
    .await;
    assert!(!a.peer(C).connected_in && !a.peer(C).connected_out);
    assert_untouched(&a, &b).await;
    assert_eq!(c.head(A).position, Position::ZERO);
}

#[tokio::test]
async fn a_peer_of_another_federation_is_refused_and_told_which() {
    let mut world = World::new(3);
    let (a, b) = two(&mut world).await;
    let mut config = world.config(C);
    config.federation = Uuid::from_u128(0xbad);
    let identity = world.ca.region("c");
    let c = world.start_as(config, &identity, folder());
    c.append(3).await;

    let why = "belongs to federation";
    until("the stranger learns why", || c.last_error(A).contains(why)).await;
    until("a learns why", || a.last_error(C).contains(why)).await;
    assert_logged(&["link refused", "other_federation", why]);
    assert_untouched(&a, &b).await;
    assert_eq!(c.head(A).position, Position::ZERO);
}

#[tokio::test]
async fn a_peer_that_claims_another_regions_id_is_refused() {
    let mut world = World::new(3);
    let (a, b) = two(&mut world).await;
    let identity = world.ca.region("c");

    let (_endpoint, connection) = rogue::dial(&identity, "a", world.member(A).addr).await;
    let mut control = rogue::open(&connection).await;
    control.say(&Message::Hello(rogue::hello(B, "b"))).await;
    let answer = control.hear().await;
    let Some(Message::Refused(refusal)) = answer else {
        panic!("answered {answer:?}");
    };
    assert_eq!(refusal.code(), "wrong_region");
    let (code, reason) = rogue::closed(&connection).await;
    assert_eq!(code, REFUSED);
    assert!(reason.contains("the certificate is for c"), "{reason}");
    assert_logged(&["WARN", "link refused", "wrong_region", "region 2"]);
    assert!(a.is_linked(B), "the true b keeps its link");
    assert_untouched(&a, &b).await;
}

#[tokio::test]
async fn a_member_that_answers_with_another_regions_id_is_not_pulled_from() {
    let mut world = World::new(3);
    let identity = world.ca.region("c");
    let endpoint = rogue::listen(&identity, world.socket(C));
    let (a, b) = (world.start(A), world.start(B));
    let answer = Message::Welcome(rogue::hello(B, "b"));
    let lying = tokio::spawn(async move {
        loop {
            let (connection, mut control) = rogue::welcome(&endpoint, &answer).await;
            control.say(&rogue::vector(C, 2)).await;
            rogue::closed(&connection).await;
        }
    });
    until("a learns why", || {
        a.last_error(C).contains("the certificate is for c")
    })
    .await;
    assert_logged(&["WARN", "no link", "the certificate is for c"]);
    assert_untouched(&a, &b).await;
    lying.abort();
}

#[tokio::test]
async fn a_bad_frame_from_a_peer_that_pulls_closes_its_link_only() {
    for fault in Fault::ALL {
        let mut world = World::new(3);
        let (a, b) = two(&mut world).await;
        let identity = world.ca.region("c");
        let (_endpoint, connection) = rogue::dial(&identity, "a", world.member(A).addr).await;
        let mut control = rogue::open(&connection).await;
        let hello = Message::Hello(rogue::hello(C, "c"));
        control.say_bytes(&fault.of(&hello)).await;
        let (code, reason) = rogue::closed(&connection).await;
        assert_eq!(code, VIOLATION);
        assert!(reason.contains(fault.words()), "{reason}");

        let (_endpoint, connection) = rogue::dial(&identity, "a", world.member(A).addr).await;
        let mut control = rogue::join(&connection, rogue::hello(C, "c")).await;
        control.say(&rogue::vector(C, 2)).await;
        control.say_bytes(&fault.of(&rogue::vector(C, 4))).await;

        let (code, reason) = rogue::closed(&connection).await;
        assert_eq!(code, VIOLATION);
        assert!(reason.contains(fault.words()), "{reason}");
        until("it is logged", || {
            is_logged(&["ERROR", "link closed", "what cannot be", fault.words()])
        })
        .await;
        until("it is gone", || !a.peer(C).connected_in).await;
        assert_untouched(&a, &b).await;
    }
}

#[tokio::test]
async fn a_bad_frame_from_a_peer_that_is_pulled_from_closes_its_link_only() {
    for fault in Fault::ALL {
        let mut world = World::new(3);
        let identity = world.ca.region("c");
        let endpoint = rogue::listen(&identity, world.socket(C));
        // Only a dials c, so that the answer is known to go to a.
        let (_socket, nowhere) = support::nobody();
        let mut config = world.config(B);
        config.members[2].addr = nowhere;
        let a = world.start(A);
        let b_identity = world.ca.region("b");
        let b = world.start_as(config, &b_identity, folder());

        let answer = Message::Welcome(rogue::hello(C, "c"));
        let (connection, mut control) = rogue::welcome(&endpoint, &answer).await;
        control.say(&rogue::heartbeat()).await;
        control.say_bytes(&fault.of(&rogue::heartbeat())).await;
        let (code, reason) = rogue::closed(&connection).await;
        assert_eq!(code, VIOLATION);
        assert!(reason.contains(fault.words()), "{reason}");
        until("it is known", || a.last_error(C).contains(fault.words())).await;
        assert_logged(&["WARN", "no link", fault.words()]);
        assert_untouched(&a, &b).await;
    }
}

#[tokio::test]
async fn a_bad_frame_on_a_subscription_is_not_kept_and_the_log_is_asked_for_again() {
    for fault in Fault::ALL {
        let mut world = World::new(3);
        let identity = world.ca.region("c");
        let endpoint = rogue::listen(&identity, world.socket(C));
        let (_socket, nowhere) = support::nobody();
        let mut config = world.config(B);
        config.members[2].addr = nowhere;
        let a = world.start(A);
        let b_identity = world.ca.region("b");
        let b = world.start_as(config, &b_identity, folder());

        let answer = Message::Welcome(rogue::hello(C, "c"));
        let (connection, mut control) = rogue::welcome(&endpoint, &answer).await;
        control.say(&rogue::vector(C, 2)).await;
        let beating = tokio::spawn(async move {
            loop {
                control.say(&rogue::heartbeat()).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let mut streams = Vec::new();
        let mut of_c = async || loop {
            let mut stream = rogue::accept(&connection).await.unwrap();
            let asked = stream.hear().await;
            if matches!(asked, Some(Message::Subscribe(it)) if it.log == log_of(C)) {
                return stream;
            }
            streams.push(stream);
        };
        let mut stream = of_c().await;
        stream.say(&rogue::subscribed()).await;
        stream.say_bytes(&fault.of(&blocks_of_c())).await;
        until("it is logged", || {
            is_logged(&["ERROR", "was not kept", fault.words()])
        })
        .await;
        assert!(a.peer(C).connected_out, "the link itself is sound");
        assert_untouched(&a, &b).await;

        // The same link may bring it right the next time.
        let mut stream = of_c().await;
        stream.say(&rogue::subscribed()).await;
        stream.say(&blocks_of_c()).await;
        until("it is kept", || a.head(C).position == Position(2)).await;
        beating.abort();
    }
}

#[tokio::test]
async fn a_bad_frame_on_a_served_stream_closes_that_stream_only() {
    for fault in Fault::ALL {
        let mut world = World::new(3);
        let (a, b) = two(&mut world).await;
        a.append(2).await;
        let identity = world.ca.region("c");
        let (_endpoint, connection) = rogue::dial(&identity, "a", world.member(A).addr).await;
        let mut control = rogue::join(&connection, rogue::hello(C, "c")).await;
        let subscribe = Message::Subscribe(Subscribe {
            log: log_of(A),
            incarnation: LIFE,
            after: Position::ZERO,
            chain: Chain::EMPTY,
            credit_bytes: 1 << 20,
        });
        // As the first frame, and as an acknowledgement.
        let mut stream = rogue::open(&connection).await;
        stream.say_bytes(&fault.of(&subscribe)).await;
        assert_eq!(stream.hear().await, None, "it is closed without an answer");
        let mut stream = rogue::open(&connection).await;
        stream.say(&subscribe).await;
        assert!(matches!(stream.hear().await, Some(Message::Subscribed(_))));
        assert!(matches!(stream.hear().await, Some(Message::Blocks(_))));
        let ack = Message::Ack(Ack {
            durable: Position(4),
            credit_bytes: 2 << 20,
        });
        stream.say_bytes(&fault.of(&ack)).await;
        while stream.hear().await.is_some() {}
        until("it is logged", || {
            is_logged(&["ERROR", "stream closed", fault.words()])
        })
        .await;
        let held = a.links.held().borrow().get(&C).map(|it| it.get(log_of(A)));
        assert_eq!(held.unwrap_or_default(), Position::ZERO);
        assert!(control.hear().await.is_some(), "the link itself is sound");
        assert_untouched(&a, &b).await;
    }
}

#[tokio::test]
async fn blocks_that_do_not_follow_on_ours_are_not_kept() {
    let mut world = World::new(3);
    let identity = world.ca.region("c");
    let endpoint = rogue::listen(&identity, world.socket(C));
    let (_socket, nowhere) = support::nobody();
    let mut config = world.config(B);
    config.members[2].addr = nowhere;
    let a = world.start(A);
    let b_identity = world.ca.region("b");
    let b = world.start_as(config, &b_identity, folder());
    append_to(&a.store, log_of(C), 0).await;
    let held = a.head(C);

    let answer = Message::Welcome(rogue::hello(C, "c"));
    let (connection, mut control) = rogue::welcome(&endpoint, &answer).await;
    control.say(&rogue::vector(C, 6)).await;
    // Another history of the same length: its next block fits in position, not in chain.
    let mut other = next_block(&LogHead::empty(log_of(C)), 1);
    let mut head = LogHead::empty(log_of(C));
    head.incarnation = LIFE;
    head.position = other.header().last_position();
    head.chain = other.chain();
    head.timestamp = other.header().last_timestamp;
    other = next_block(&head, 1);
    loop {
        let mut stream = rogue::accept(&connection).await.unwrap();
        let asked = stream.hear().await;
        if !matches!(asked, Some(Message::Subscribe(it)) if it.log == log_of(C)) {
            continue;
        }
        stream.say(&rogue::subscribed()).await;
        let blocks = vec![other];
        let message = Message::Blocks(Blocks {
            promise: None,
            blocks,
        });
        stream.say(&message).await;
        until("an alarm is raised", || !a.peer(C).alarms.is_empty()).await;
        break;
    }
    assert_logged(&["ERROR", "nothing is overwritten"]);
    assert_eq!(a.head(C), held);
    assert_eq!(a.via(C), None, "the log is stopped");
    assert_goes_on(&a, &b).await;
}

#[tokio::test]
async fn regions_and_logs_that_nobody_has_are_not_counted_as_holding_anything() {
    let mut world = World::new(3);
    let (a, b) = two(&mut world).await;
    a.append(1).await;
    until("b holds it", || b.head(A).position == Position(2)).await;
    let identity = world.ca.region("c");
    let (_endpoint, connection) = rogue::dial(&identity, "a", world.member(A).addr).await;
    let mut control = rogue::join(&connection, rogue::hello(C, "c")).await;
    let nobody = RegionId(99);
    let Message::Vector(mut vector) = rogue::vector(A, 2) else {
        panic!("it is a vector");
    };
    vector
        .heads
        .extend(vector.heads.first().copied().map(|mut head| {
            head.log = log_of(nobody);
            head
        }));
    vector.holdings.push(Holding {
        region: nobody,
        log: log_of(A),
        incarnation: LIFE,
        position: Position(2),
    });
    control.say(&Message::Vector(vector)).await;
    let held = || a.links.held().borrow().clone();
    until("c is believed for itself", || {
        held()
            .get(&C)
            .is_some_and(|it| it.get(log_of(A)) == Position(2))
    })
    .await;
    assert!(!held().contains_key(&nobody), "{:?}", held());
    assert_eq!(held()[&C].get(log_of(nobody)), Position::ZERO);
    // It has not said what is complete, so it does not yet count as asked.
    let seen = a.links.vectors_seen().borrow().clone();
    assert!(!seen.contains_key(&C), "{seen:?}");
    assert_untouched(&a, &b).await;
}

#[tokio::test]
async fn a_peer_that_comes_back_with_less_is_not_believed_to_hold_what_it_lost() {
    let mut world = World::new(3);
    let (a, b) = two(&mut world).await;
    a.append(1).await;
    let identity = world.ca.region("c");
    let held = || {
        let held = a.links.held().borrow().get(&C).cloned();
        held.map(|held| held.get(log_of(A)))
    };
    let (_endpoint, first) = rogue::dial(&identity, "a", world.member(A).addr).await;
    let mut control = rogue::join(&first, rogue::hello(C, "c")).await;
    control.say(&rogue::vector(A, 2)).await;
    until("it holds all", || held() == Some(Position(2))).await;

    // It lost its disk and restarts before anyone notices that the first connection is dead.
    let (_endpoint, second) = rogue::dial(&identity, "a", world.member(A).addr).await;
    let mut control = rogue::join(&second, rogue::hello(C, "c")).await;
    control.say(&rogue::vector(A, 0)).await;
    until("it holds nothing", || held() == Some(Position::ZERO)).await;
    assert_goes_on(&a, &b).await;
}

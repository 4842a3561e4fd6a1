//! Links that break without a word: cut cables, killed nodes, lossy lines; and links that carry more
//! logs than most.

#![cfg(feature = "quic")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may end where it is wrong"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use meridian_clock::{LogId, PartitionId};
use meridian_replication::Timings;
use support::line::Line;
use support::{
    A, B, C, World, append_to, assert_goes_on, is_logged, log_of, next_block, timings, until,
    until_same,
};
use tempfile::TempDir;
use tokio::time::Instant;

#[tokio::test]
async fn a_link_cut_in_the_middle_is_gone_around_and_taken_up_again_once_it_heals() {
    let mut world = World::new(3);
    let line_to_a = Line::to(world.member(A).addr).await;
    let line_to_c = Line::to(world.member(C).addr).await;
    let mut config_a = world.config(A);
    config_a.members[2].addr = line_to_c.addr;
    let mut config_c = world.config(C);
    config_c.members[0].addr = line_to_a.addr;
    let folder = || Arc::new(TempDir::new().unwrap());
    let identity = world.ca.region("a");
    let a = world.start_as(config_a, &identity, folder());
    let b = world.start(B);
    let identity = world.ca.region("c");
    let c = world.start_as(config_c, &identity, folder());
    assert_goes_on(&a, &c).await;
    until("c pulls from the origin", || c.via(A) == Some(A)).await;
    until("b is linked", || b.is_linked(A) && b.is_linked(C)).await;

    line_to_a.cut(true);
    line_to_c.cut(true);
    let began = Instant::now();
    a.append(5).await;
    c.append(5).await;
    until_same(&a, &c, A, a.head(A).position.0).await;
    until_same(&a, &c, C, c.head(C).position.0).await;
    // Silence is noticed after 1.5 s, by QUIC itself after 3 s; the rest is for a busy machine.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!((c.via(A), a.via(C)), (Some(B), Some(B)));

    line_to_a.cut(false);
    line_to_c.cut(false);
    until("the origins are pulled from again", || {
        (c.via(A), a.via(C)) == (Some(A), Some(C))
    })
    .await;
    assert_goes_on(&a, &c).await;
}

#[tokio::test]
async fn a_line_that_loses_repeats_and_swaps_datagrams_still_brings_every_block_once() {
    let mut world = World::new(2);
    let line = Line::to(world.member(A).addr).await;
    line.spoil(true);
    let mut config = world.config(B);
    config.members[0].addr = line.addr;
    let identity = world.ca.region("b");
    let a = world.start(A);
    let b = world.start_as(config, &identity, Arc::new(TempDir::new().unwrap()));
    a.append(300).await;
    until_same(&a, &b, A, 600).await;
    assert!(
        line.spoilt() > 10,
        "only {} datagrams were spoilt",
        line.spoilt()
    );
}

#[tokio::test]
async fn a_node_that_was_killed_and_is_back_is_noticed_at_once() {
    let mut world = World::new(2);
    let line = Line::to(world.member(B).addr).await;
    let mut config = world.config(A);
    config.members[1].addr = line.addr;
    // Nothing else may notice first: not silence, and the waits after failures would blur it.
    config.timings = Timings {
        silent: Duration::from_secs(60),
        ..timings()
    };
    let identity = world.ca.region("a");
    let a = world.start_as(config, &identity, Arc::new(TempDir::new().unwrap()));
    let b = world.start(B);
    assert_goes_on(&a, &b).await;

    // Killed: what it still had to say on closing never arrives.
    line.cut(true);
    let folder = b.stop().await;
    let b = world.start_on(B, folder);
    b.append(1).await;
    line.cut(false);
    let began = Instant::now();
    until_same(&a, &b, B, b.head(B).position.0).await;
    // QUIC alone would take its 3 s of silence.
    assert!(
        began.elapsed() < Duration::from_millis(2500),
        "{:?}",
        began.elapsed()
    );
    assert!(is_logged(&["the peer was restarted"]));
}

#[tokio::test]
async fn a_federation_of_as_many_partitions_as_there_may_be_has_a_stream_for_each() {
    const PARTITIONS: u16 = 1024;
    let mut world = World::new(2);
    let folder = || Arc::new(TempDir::new().unwrap());
    let mut config = world.config(A);
    config.partitions = PARTITIONS;
    let a = world.start_as(config.clone(), &world.ca.region("a"), folder());
    config.region = B;
    let b = world.start_as(config, &world.ca.region("b"), folder());
    let logs = || (0..PARTITIONS).map(|partition| LogId::new(A, PartitionId(partition)));
    for log in logs() {
        let block = next_block(&a.store.head(log), 0);
        a.store.submit(block, Box::new(|_| {})).unwrap();
    }
    append_to(&a.store, log_of(A), 0).await;
    until("every log arrived", || {
        logs().all(|log| b.store.head(log) == a.store.head(log))
    })
    .await;
}

//! Regions that keep to the protocol, over real QUIC and real disks: they converge, whatever was
//! down meanwhile.

#![cfg(feature = "quic")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may end where it is wrong; one of them spoils a real file"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use meridian_clock::Position;
use meridian_replication::frame::Lane;
use meridian_store::{Lanes, RealDisk, ScrubCursor, Store, StoreOptions};
use support::{
    A, B, C, World, append_to, assert_goes_on, assert_logged, log_of, next_block, nobody,
    open_store, until, until_same,
};
use tempfile::TempDir;

#[tokio::test]
async fn three_regions_that_all_write_converge() {
    let mut world = World::new(3);
    let regions = [world.start(A), world.start(B), world.start(C)];
    for _ in 0..10 {
        for region in &regions {
            region.append(3).await;
        }
    }
    for origin in [A, B, C] {
        until_same(&regions[0], &regions[1], origin, 60).await;
        until_same(&regions[0], &regions[2], origin, 60).await;
    }
    // Whoever holds all of a log soon knows that it is complete.
    for region in &regions {
        until("all logs are promised", || {
            let promises = region.links.promises();
            promises.len() == 3 && promises.values().all(|it| it.position == Position(60))
        })
        .await;
    }
    // Everyone is told what everyone else has on disk.
    for region in &regions {
        for peer in [A, B, C].into_iter().filter(|peer| *peer != region.id) {
            until("acknowledged", || {
                let held = region.links.held().borrow().get(&peer).cloned();
                held.is_some_and(|held| held.get(log_of(region.id)) == Position(60))
            })
            .await;
        }
    }
    for region in regions {
        let folder = region.stop().await;
        let report = meridian_store::verify(&RealDisk::new(folder.path()).unwrap()).unwrap();
        assert_eq!(report.damage, []);
        assert_eq!(report.events, 180);
    }
}

#[tokio::test]
async fn two_regions_that_cannot_reach_each_other_are_relayed_by_a_third() {
    let mut world = World::new(3);
    let (_socket, nowhere) = nobody();
    let mut config_a = world.config(A);
    config_a.members[2].addr = nowhere;
    let mut config_c = world.config(C);
    config_c.members[0].addr = nowhere;
    let folder = || Arc::new(TempDir::new().unwrap());
    let identity = world.ca.region("a");
    let a = world.start_as(config_a, &identity, folder());
    let identity = world.ca.region("c");
    let c = world.start_as(config_c, &identity, folder());
    let b = world.start(B);
    a.append(20).await;
    b.append(20).await;
    c.append(20).await;
    for origin in [A, B, C] {
        until_same(&a, &c, origin, 40).await;
        until_same(&b, &c, origin, 40).await;
    }
    assert_eq!(c.via(A), Some(B));
    assert_eq!(a.via(C), Some(B));
    // Acknowledgements come back over the relay too, or `regions:3` could never be reached.
    until("a knows what c holds", || {
        let held = a.links.held().borrow().get(&C).cloned();
        held.is_some_and(|held| held.get(log_of(A)) == Position(40))
    })
    .await;
    assert!(!a.peer(C).connected_in && !a.peer(C).connected_out);
}

#[tokio::test]
async fn a_log_waits_for_the_other_log_that_it_rests_on_and_acknowledges_what_came_before() {
    let mut world = World::new(3);
    let (a, b) = (world.start(A), world.start(B));
    b.store.set_dependencies(Box::new(|event| {
        match (event.dot.origin, event.dot.position) {
            (A, Position(15)) => vec![(log_of(C), Position(8))],
            _ => Vec::new(),
        }
    }));
    a.append(5).await;
    a.append(20).await;
    until("all that rests on nothing is acknowledged", || {
        let held = a.links.held().borrow().get(&B).cloned();
        held.is_some_and(|held| held.get(log_of(A)) == Position(14))
    })
    .await;
    let c = world.start(C);
    c.append(2).await;
    until_same(&b, &c, C, 4).await;
    assert_eq!(b.store.head(log_of(A)).position, Position(14));
    c.append(2).await;
    until_same(&a, &b, A, 50).await;
}

#[tokio::test]
async fn a_restarted_region_goes_on_where_it_was() {
    let mut world = World::new(2);
    let (a, b) = (world.start(A), world.start(B));
    a.append(50).await;
    until_same(&a, &b, A, 100).await;
    let folder = b.stop().await;
    a.append(50).await;
    let b = world.start_on(B, folder);
    until_same(&a, &b, A, 200).await;
    assert_goes_on(&a, &b).await;
    // What it held already was not sent again.
    until("counted", || b.peer(A).received_bytes > 0).await;
    let of_log: usize = a
        .store
        .read_log(log_of(A), Position::ZERO, usize::MAX)
        .unwrap()
        .iter()
        .map(|block| block.bytes().len())
        .sum();
    assert!(b.peer(A).received_bytes < of_log as u64 * 3 / 4);
}

#[tokio::test]
async fn a_region_far_behind_catches_up_on_a_connection_of_its_own_and_returns_to_the_live_one() {
    let mut world = World::new(2);
    let a = world.start(A);
    a.append(200).await;
    let mut config = world.config(B);
    config.timings.puller.bulk_above = 100;
    config.timings.puller.live_below = 10;
    // Little credit, so that catching up takes a few rounds.
    config.bulk_window_bytes = 1;
    let identity = world.ca.region("b");
    let b = world.start_as(config, &identity, Arc::new(TempDir::new().unwrap()));
    until_same(&a, &b, A, 400).await;
    assert_logged(&["catching up on a connection of its own"]);
    until("it is back on the live connection", || {
        let peer = b.peer(A);
        peer.subscriptions.iter().any(|it| it.lane == Lane::Live)
    })
    .await;
    assert_goes_on(&a, &b).await;
}

#[tokio::test]
async fn a_damaged_range_is_fetched_from_a_peer_and_put_back() {
    let mut world = World::new(2);
    let (a, b) = (world.start(A), world.start(B));
    a.append(150).await;
    until_same(&a, &b, A, 300).await;
    let folder = b.stop().await;

    let mut files: Vec<_> = std::fs::read_dir(folder.path().join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "seg"))
        .collect();
    files.sort();
    assert!(files.len() > 1, "no segment is sealed in {files:?}");
    let mut bytes = std::fs::read(&files[0]).unwrap();
    bytes[10_000] ^= 1;
    std::fs::write(&files[0], bytes).unwrap();

    let b = world.start_on(B, folder);
    let mut cursor = ScrubCursor::default();
    while !b.store.scrub(&mut cursor, 1 << 20).round_done {}
    assert_ne!(b.store.damaged(), [], "the damage is known");
    until("it is mended", || b.store.damaged().is_empty()).await;
    assert_logged(&["damaged range fetched again and put back"]);
    let read = |store: &Store| {
        let blocks = store
            .read_log(log_of(A), Position::ZERO, usize::MAX)
            .unwrap();
        blocks
            .iter()
            .map(|block| block.bytes().clone())
            .collect::<Vec<_>>()
    };
    assert!(read(&a.store) == read(&b.store), "it is what it was");
    let folder = b.stop().await;
    let report = meridian_store::verify(&RealDisk::new(folder.path()).unwrap()).unwrap();
    assert_eq!(report.damage, []);
}

#[tokio::test]
async fn copies_that_differ_are_never_overwritten_and_other_logs_go_on() {
    let mut world = World::new(2);
    // Each holds another first block of a's log when they meet.
    let mut regions = Vec::new();
    for (region, salt) in [(A, 0), (B, 1)] {
        let folder = Arc::new(TempDir::new().unwrap());
        let store = open_store(&folder);
        append_to(&store, log_of(A), salt).await;
        let identity = world.ca.region(&world.member(region).name);
        regions.push(world.start_with(world.config(region), &identity, folder, store));
    }
    let [a, b] = <[_; 2]>::try_from(regions).ok().unwrap();
    let theirs = b.head(A);
    assert_ne!(a.head(A).chain, theirs.chain);
    until("b raises an alarm", || !b.peer(A).alarms.is_empty()).await;
    assert_logged(&["ERROR", "different bytes", "nothing is overwritten"]);
    a.append(3).await;
    let ours = a.head(A);
    b.append(5).await;
    until_same(&a, &b, B, 10).await;
    assert_eq!(a.head(A), ours);
    assert_eq!(b.head(A), theirs);
    assert_eq!(b.via(A), None);
    // What a promises of its copy is not said of b's.
    until("a's promises reach b", || {
        a.links.promises().contains_key(&log_of(B))
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let said = b.links.promises().get(&log_of(A)).copied();
    assert!(said.is_none_or(|promise| promise.timestamp <= theirs.timestamp));
}

#[tokio::test]
async fn a_region_that_lost_its_disk_gets_its_own_log_back_until_it_writes() {
    let mut world = World::new(2);
    let (a, b) = (world.start(A), world.start(B));
    a.append(30).await;
    until_same(&a, &b, A, 60).await;
    drop(a.stop().await);

    let a = world.start(A);
    until_same(&a, &b, A, 60).await;
    a.links.writing_own();
    // Nobody hands it a block of its own any more, whatever the other side holds.
    append_to(&b.store, log_of(A), 9).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(a.head(A).position, Position(60));
    assert_eq!(a.via(A), None);
    assert_logged(&["ERROR", "holds our own log", "already writing"]);
}

#[tokio::test]
async fn a_peer_is_told_that_events_are_safe_only_once_they_are_on_disk() {
    let mut world = World::new(2);
    let a = world.start(A);
    let folder = Arc::new(TempDir::new().unwrap());
    let options = StoreOptions {
        lanes: Lanes::Driven,
        ..StoreOptions::default()
    };
    let disk = Arc::new(RealDisk::new(folder.path()).unwrap());
    let (store, _) = Store::open(disk, options).unwrap();
    let identity = world.ca.region("b");
    let b = world.start_with(world.config(B), &identity, folder, store);
    a.append(5).await;
    let submitted = || b.store.submitted_head(log_of(A)).position;
    until("all was handed to the disk", || submitted() == Position(10)).await;
    let held = || {
        let held = a.links.held().borrow().get(&B).cloned();
        held.map_or(Position::ZERO, |held| held.get(log_of(A)))
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(held(), Position::ZERO);
    assert_eq!(b.head(A).position, Position::ZERO);
    while let Some(group) = b.store.commit_begin() {
        b.store.commit_finish(group);
    }
    until("it is acknowledged", || held() == Position(10)).await;
}

#[tokio::test]
async fn after_shutdown_nothing_is_pulled_any_more() {
    let mut world = World::new(2);
    let (a, b) = (world.start(A), world.start(B));
    a.append(5).await;
    until_same(&a, &b, A, 10).await;
    b.links.shutdown().await;
    a.append(5).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(b.head(A).position, Position(10));
    until("a knows that b is gone", || !a.peer(B).connected_in).await;
    let next = next_block(&b.head(A), 0);
    assert_eq!(next.header().first_position, Position(11));
}

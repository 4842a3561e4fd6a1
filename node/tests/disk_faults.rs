//! A node on a disk that fails: appends are refused with a clear reason, and nothing is lost.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_client::{AppendError, AppendRequest, Direction, Durability, Expected, StreamRead};
use meridian_event::{EventId, EventType, NewEvent, StreamId};
use meridian_node::seams::Seams;
use meridian_node::{Identity, Node, config};
use meridian_store::{Disk, SimDisk};

mod support;

use support::Federation;

fn append(id: u8, bytes: usize) -> AppendRequest {
    AppendRequest {
        stream: stream(),
        expected: Expected::Any,
        durability: Durability::Region,
        events: vec![NewEvent {
            id: EventId::from_random([id; 16]),
            event_type: EventType::new("Tested").expect("a sound name"),
            // Not compressible, so that bytes are bytes.
            data: support::noise(u64::from(id), bytes).into(),
            metadata: Bytes::new(),
        }],
    }
}

fn stream() -> StreamId {
    StreamId::new("order-1").expect("a sound name")
}

fn events(node: &Node) -> usize {
    let mut read = StreamRead {
        stream: stream(),
        from: 0,
        direction: Direction::Forwards,
        limit: 4000,
    };
    let mut count = 0;
    loop {
        let page = node.read_stream(&read).expect("reads go on");
        count += page.events.len();
        match page.next {
            Some(next) if !page.end => read.from = next,
            _ => return count,
        }
    }
}

/// A node of a region on its own, on a simulated disk.
async fn node_on(disk: &Arc<SimDisk>, config: &Path) -> Arc<Node> {
    let mut config = config::load(config).expect("it loads").node;
    config.listen_http.set_port(0);
    config.listen_quic.set_port(0);
    config.segment_bytes = 32 << 20;
    let seams = Seams {
        disk: Arc::clone(disk) as Arc<dyn Disk>,
        ..Seams::host(&config.data).expect("a folder")
    };
    Identity::create_fresh(&**disk, &config, &*seams.random).expect("the disk can be written");
    Node::start(config, seams).await.expect("it starts")
}

async fn until_ready(node: &Node) {
    for _ in 0..1000 {
        if node.ready().is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the node takes no appends: {:?}", node.ready());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_stops_appends_and_loses_nothing() {
    let federation = Federation::new(&["a"]);
    let config = &federation.regions[0].config;
    let disk = Arc::new(SimDisk::new(7));
    let node = node_on(&disk, config).await;
    until_ready(&node).await;
    for id in 0..5 {
        node.append(append(id, 200))
            .await
            .expect("the disk is sound");
    }
    disk.fail_next_sync();
    // Whichever sync it hits (the clock's ceiling is synced too), appends stop or go on for good.
    let mut failed = None;
    for id in 5..200 {
        if let Err(error) = node.append(append(id, 200)).await {
            failed = Some((id, error));
            break;
        }
    }
    if let Some((id, error)) = failed {
        let unknown = matches!(error, AppendError::Indeterminate { .. });
        assert!(
            unknown || matches!(error, AppendError::Unavailable { .. }),
            "{error}"
        );
        let error = node
            .append(append(250, 200))
            .await
            .expect_err("the log is closed");
        assert!(matches!(&error, AppendError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("restart the node"), "{error}");
        assert!(node.ready().is_err());
        assert_eq!(events(&node), usize::from(id), "reads go on");
    }
    let acknowledged = events(&node);
    node.shutdown().await;
    disk.crash();
    let node = node_on(&disk, config).await;
    until_ready(&node).await;
    assert!(
        events(&node) >= acknowledged,
        "an acknowledged event is lost"
    );
    node.append(append(251, 200))
        .await
        .expect("the disk is sound again");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_appends_and_takes_them_again_once_there_is_room() {
    let federation = Federation::new(&["a"]);
    let disk = Arc::new(SimDisk::new(7));
    let node = node_on(&disk, &federation.regions[0].config).await;
    until_ready(&node).await;
    disk.set_room(Some(8 << 20));
    let mut written = 0;
    let error = loop {
        match node.append(append(written, 1_000_000)).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 200, "the disk never fills up");
    };
    assert!(matches!(&error, AppendError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("full"), "{error}");
    assert_eq!(
        events(&node),
        usize::from(written),
        "what was acknowledged is there"
    );
    disk.set_room(None);
    let mut again = Err(error);
    for _ in 0..100 {
        again = node.append(append(written, 1000)).await;
        if again.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    again.expect("there is room again");
    assert_eq!(events(&node), usize::from(written) + 1);
    node.shutdown().await;
}

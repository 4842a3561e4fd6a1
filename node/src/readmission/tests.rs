//! Tails brought home into a real node of a region on its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use meridian_client::{AppendRequest, Direction, Durability, Limits, StreamRead};
use meridian_clock::{Epoch, Incarnation, PhysicalClock, Position, RegionId, Timestamp};
use meridian_conflict::{CategoryPolicy, HomeRule, Mode};
use meridian_event::{BlockBuilder, Chain, EventType, StreamId};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use super::plan::tests::{A, event};
use super::*;
use crate::certificates::{Authority, CERTIFICATE_VALID, Files, Subject};
use crate::config::{CertificatePaths, MemberConfig, NodeConfig};
use crate::seams::{Seams, SystemClock};
use crate::{ConflictAction, ConflictError, ConflictStatus};

struct Region {
    folder: TempDir,
    node: Arc<Node>,
}

fn config(folder: &TempDir) -> NodeConfig {
    let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    let files = Files::in_folder(folder.path(), "us");
    NodeConfig {
        federation: Uuid::from_u128(0xf0),
        region: RegionId(0),
        partitions: 1,
        members: vec![MemberConfig {
            id: RegionId(0),
            name: "us".to_owned(),
            quic: any,
            http: any,
        }],
        data: folder.path().join("data"),
        listen_http: any,
        listen_quic: any,
        certificates: CertificatePaths {
            authority: files.authority,
            certificate: files.certificate,
            key: files.key,
        },
        session_key: None,
        categories: std::collections::BTreeMap::from([(
            "cart".to_owned(),
            CategoryPolicy {
                mode: Mode::Lww,
                home: HomeRule::Hash,
            },
        )]),
        isolations: std::collections::BTreeMap::new(),
        kinds: std::collections::BTreeMap::new(),
        limits: Limits {
            event_bytes_max: 1 << 16,
            batch_bytes_max: 1 << 17,
            batch_events_max: 4,
        },
        append_timeout: Duration::from_secs(5),
        failover_after: None,
        max_offset: Duration::from_millis(500),
        segment_bytes: 1 << 24,
    }
}

async fn start(folder: &TempDir) -> Arc<Node> {
    let config = config(folder);
    let seams = Seams::host(&config.data).unwrap();
    let node = Node::start(config, seams).await.unwrap();
    while node.ready().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node
}

impl Region {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let (federation, now) = (Uuid::from_u128(0xf0), SystemClock.now());
        let authority = Authority::create(federation, now).unwrap();
        let subject = Subject::Region("us".to_owned());
        let issued = authority.issue(&subject, now, CERTIFICATE_VALID).unwrap();
        let files = Files::in_folder(folder.path(), "us");
        files.write(&authority, &issued).unwrap();
        let node = start(&folder).await;
        Self { folder, node }
    }

    async fn restart(&mut self) {
        self.node.shutdown().await;
        self.node = start(&self.folder).await;
    }

    async fn append(&self, name: &str, expected: Expected, ids: &[u64]) -> Vec<u64> {
        let events = ids.iter().map(|id| NewEvent {
            id: EventId(Uuid::from_u128((*id).into())),
            event_type: EventType::new("Written").unwrap(),
            data: Bytes::from_static(b"1"),
            metadata: Bytes::new(),
        });
        let request = AppendRequest {
            stream: stream(name),
            expected,
            durability: Durability::Region,
            events: events.collect(),
        };
        let appended = self.node.append(request).await.unwrap();
        (appended.first_revision.0..=appended.last_revision.0).collect()
    }

    async fn readmit(&self, events: &[RecordedEvent]) -> Readmission {
        let (node, tails) = (Arc::downgrade(&self.node), vec![tail(events)]);
        let readmitting = readmit(node, tails, CancellationToken::new());
        // As its caller will.
        tokio::spawn(readmitting).await.unwrap()
    }

    // What a stream holds: the ids, and whether the event says what it first was.
    fn ids(&self, name: &str) -> Vec<(u64, bool)> {
        let events = self.events(name).into_iter();
        let is_again = |event: &RecordedEvent| {
            let metadata: Value = serde_json::from_slice(&event.metadata).unwrap_or_default();
            metadata["$stranded"].is_object()
        };
        events
            .map(|event| (event.id.0.as_u64_pair().1, is_again(&event)))
            .collect()
    }

    fn events(&self, name: &str) -> Vec<RecordedEvent> {
        let read = StreamRead {
            stream: stream(name),
            from: 0,
            direction: Direction::Forwards,
            limit: 1_000,
        };
        self.node.read_stream(&read).unwrap().events
    }

    async fn conflicts(&self, count: usize) -> Vec<crate::Conflict> {
        loop {
            let (all, _) = self.node.conflicts().list(|_| true, None, None, 100);
            if all.len() == count {
                return all;
            }
            assert!(all.len() < count, "{all:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    // What the only record holds.
    async fn lost(&self) -> (crate::Conflict, Vec<RecordedEvent>) {
        let id = self.conflicts(1).await[0].id;
        let (record, lost) = self.node.conflicts().get(id, 0, 1_000).unwrap();
        assert_eq!(lost.next, None);
        (record, lost.events)
    }

    fn all_events(&self) -> u64 {
        let heads = self.node.store().heads().into_iter();
        heads.map(|head| head.position.0).sum()
    }

    async fn http(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let url = format!("http://{}{path}", self.node.http_addr());
        let client = reqwest::Client::new();
        let request = match method {
            "GET" => client.get(url),
            _ => client.post(url).json(body),
        };
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }
}

fn stream(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}

// Stranded events of `name` from revision `first` on, each a batch of its own, with these ids.
fn stranded(name: &str, first: u64, ids: &[u64]) -> Vec<RecordedEvent> {
    let revisions = first..;
    let events = ids.iter().zip(revisions);
    events
        .map(|(id, revision)| {
            let mut event = event(name, *id, revision, *id);
            event.data = format!("{{\"id\": {id}}}").into_bytes().into();
            event
        })
        .collect()
}

// One block for each batch, as a log holds them.
fn tail(events: &[RecordedEvent]) -> Tail {
    let (mut blocks, mut chain, mut at) = (Vec::new(), Chain([0; 32]), Position(100));
    for batch in events.chunk_by(|one, other| one.timestamp == other.timestamp) {
        let mut block = BlockBuilder::new(A, Incarnation(1), Epoch::FIRST);
        let new: Vec<NewEvent> = batch
            .iter()
            .map(|event| NewEvent {
                id: event.id,
                event_type: event.event_type.clone(),
                data: event.data.clone(),
                metadata: event.metadata.clone(),
            })
            .collect();
        let first = &batch[0];
        block.push_batch(first.timestamp, &first.stream, first.revision, &new);
        let block = block.seal(at.plus(1), chain);
        at = at.plus(batch.len() as u64);
        chain = block.chain();
        blocks.push(block);
    }
    Tail {
        log: A,
        generation: 1,
        blocks,
    }
}

fn counts(spliced: u64, applied: u64, conflicts: u64, already: u64) -> Readmission {
    Readmission {
        total: spliced + applied + conflicts + already,
        spliced,
        applied,
        conflicts,
        already,
        left: 0,
    }
}

#[tokio::test]
async fn what_nobody_wrote_behind_is_put_back_where_it_was_and_only_once() {
    let mut region = Region::new().await;
    region.append("order-1", Expected::None, &[1, 2]).await;
    let mut tail = stranded("order-1", 2, &[10, 11, 12, 13, 14, 15]);
    // The last three were one transaction.
    tail[4].timestamp = Timestamp(13);
    tail[5].timestamp = Timestamp(13);
    tail.extend(stranded("order-2", 0, &[20]));
    assert_eq!(region.readmit(&tail).await, counts(7, 0, 0, 0));
    let again = [10, 11, 12, 13, 14, 15].map(|id| (id, true));
    let expected = [&[(1, false), (2, false)][..], &again].concat();
    assert_eq!(region.ids("order-1"), expected);
    assert_eq!(region.ids("order-2"), [(20, true)]);
    let events = region.events("order-1");
    assert_eq!(&events[2].data[..], b"{\"id\": 10}");
    assert_eq!(
        serde_json::from_slice::<Value>(&events[5].metadata).unwrap(),
        json!({"$stranded": {
            "origin": "us", "partition": 0, "generation": 1, "position": 104, "revision": 5,
            "timestamp": "13",
        }})
    );
    assert_eq!(
        events[5].timestamp, events[7].timestamp,
        "a transaction was taken apart"
    );

    let before = region.all_events();
    assert_eq!(region.readmit(&tail).await, counts(0, 0, 0, 7));
    region.restart().await;
    assert_eq!(region.readmit(&tail).await, counts(0, 0, 0, 7));
    assert_eq!(region.all_events(), before);
    assert_eq!(region.node.conflicts().readmission(), counts(0, 0, 0, 7));
}

#[tokio::test]
async fn what_every_region_writes_takes_it_as_it_is() {
    let region = Region::new().await;
    region.append("cart-1", Expected::Any, &[1, 11]).await;
    let tail = stranded("cart-1", 7, &[10, 11, 12]);
    assert_eq!(region.readmit(&tail).await, counts(0, 2, 0, 1));
    assert_eq!(
        region.ids("cart-1"),
        [(1, false), (11, false), (10, true), (12, true)]
    );
    assert_eq!(region.readmit(&tail).await, counts(0, 0, 0, 3));
}

#[tokio::test]
async fn what_has_lost_its_place_is_set_aside_byte_for_byte_and_only_once() {
    let mut region = Region::new().await;
    region.append("order-1", Expected::None, &[1, 2, 3]).await;
    let mut tail = stranded("order-1", 2, &[10, 11, 12, 13, 14, 15]);
    tail[1].metadata = Bytes::from_static(b"{\"by\" : \"me\"}");
    assert_eq!(region.readmit(&tail).await, counts(0, 0, 6, 0));
    assert_eq!(region.ids("order-1"), [1, 2, 3].map(|id| (id, false)));
    let (record, lost) = region.lost().await;
    assert_eq!(record.status, ConflictStatus::Open);
    let branch = &record.branch;
    assert_eq!((branch.expected, branch.actual), (Some(1), Some(2)));
    assert_eq!(
        (branch.revisions, branch.positions, branch.count),
        ([2, 7], [101, 106], 6)
    );
    for (lost, was) in lost.iter().zip(&tail) {
        assert_eq!((&lost.data, &lost.metadata), (&was.data, &was.metadata));
        assert_eq!((lost.id, lost.revision), (was.id, was.revision));
    }
    assert_eq!(lost.len(), 6);
    // Of a name that is not the test's own.
    let metrics = region.node.metrics().encode().unwrap();
    for line in [
        "meridian_conflicts_open 1",
        "meridian_events_readmitted_total{outcome=\"conflict\"} 6",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }

    let before = region.all_events();
    assert_eq!(region.readmit(&tail).await, counts(0, 0, 0, 6));
    region.restart().await;
    assert_eq!(region.lost().await, (record, lost));
    assert_eq!(region.readmit(&tail).await, counts(0, 0, 0, 6));
    assert_eq!(region.all_events(), before);
}

#[tokio::test]
async fn a_crash_in_the_middle_leaves_no_event_in_two_places_or_in_none() {
    for written in 0..=6 {
        let region = Region::new().await;
        region.append("order-1", Expected::None, &[1, 2]).await;
        let tail = stranded("order-1", 2, &[10, 11, 12, 13, 14, 15]);
        // The first life got so far, then another client wrote.
        region.readmit(&tail[..written]).await;
        region.append("order-1", Expected::Any, &[90]).await;
        let sum = region.readmit(&tail).await;
        let rest = 6 - written as u64;
        assert_eq!(sum, counts(0, 0, rest, written as u64), "{written}");
        let held = region
            .ids("order-1")
            .into_iter()
            .map(|(id, _)| id)
            .filter(|id| *id < 90);
        let mut all: Vec<u64> = held.collect();
        if written < 6 {
            let (_, lost) = region.lost().await;
            all.extend(lost.iter().map(|lost| lost.id.0.as_u64_pair().1));
        }
        assert_eq!(all, [1, 2, 10, 11, 12, 13, 14, 15]);
        region.node.shutdown().await;
    }
}

#[tokio::test]
async fn a_record_that_was_cut_short_is_ended_and_is_not_resolved_before() {
    let region = Region::new().await;
    region.append("order-1", Expected::None, &[1, 2, 3]).await;
    let tail = stranded("order-1", 2, &[10, 11, 12, 13, 14, 15]);
    let first = First {
        origin: "us".to_owned(),
        partition: 0,
        generation: 1,
    };
    let id = ConflictId::of(&stream("order-1"), tail[0].id);
    let branch = branch_of(&first, &tail, Some(2), "cut short").unwrap();
    let surely = Surely::new(Arc::downgrade(&region.node), CancellationToken::new(), None);
    let begun = vec![id.begun(&branch), id.holding(&tail[0])];
    let stream = stream(&format!("$conflicts-{}", id.0));
    surely.append(&stream, Expected::None, begun).await.unwrap();
    let conflicts = region.node.conflicts();
    let early = conflicts.resolve(id, ConflictAction::Rebase, "").await;
    assert!(
        matches!(early, Err(ConflictError::Conflict(_))),
        "{early:?}"
    );

    // Whatever the stream looks like by now: what is set aside stays there.
    assert_eq!(region.readmit(&tail).await, counts(0, 0, 5, 1));
    let (record, lost) = region.lost().await;
    assert_eq!((record.status, lost.len()), (ConflictStatus::Open, 6));
    assert_eq!(record.branch.reason, "cut short");
}

#[tokio::test]
async fn a_branch_that_was_set_aside_is_never_spliced_any_more() {
    let region = Region::new().await;
    let tail = stranded("order-1", 2, &[10, 11]);
    // The stream is behind: what the branch builds on is not there (yet).
    assert_eq!(region.readmit(&tail).await, counts(0, 0, 2, 0));
    region.append("order-1", Expected::None, &[1, 2]).await;
    assert_eq!(region.readmit(&tail).await, counts(0, 0, 0, 2));
    assert_eq!(region.ids("order-1"), [(1, false), (2, false)]);
}

#[tokio::test]
async fn what_clients_repeated_meanwhile_stays_where_they_put_it() {
    let region = Region::new().await;
    region.append("order-1", Expected::None, &[1, 2]).await;
    // The first and the fourth, which was elsewhere.
    region.append("order-1", Expected::Any, &[10, 13]).await;
    let tail = stranded("order-1", 2, &[10, 11, 12, 13, 14]);
    assert_eq!(region.readmit(&tail).await, counts(0, 0, 3, 2));
    assert_eq!(region.ids("order-1"), [1, 2, 10, 13].map(|id| (id, false)));
    let (record, lost) = region.lost().await;
    let ids: Vec<u64> = lost.iter().map(|lost| lost.id.0.as_u64_pair().1).collect();
    assert_eq!(ids, [11, 12, 14]);
    assert_eq!((record.branch.expected, record.branch.count), (Some(2), 3));
    assert_eq!(region.readmit(&tail).await, counts(0, 0, 0, 5));
}

#[tokio::test]
async fn what_clients_repeated_at_its_own_place_is_no_obstacle() {
    let region = Region::new().await;
    region
        .append("order-1", Expected::None, &[1, 2, 10, 11])
        .await;
    let tail = stranded("order-1", 2, &[10, 11, 12, 13]);
    assert_eq!(region.readmit(&tail).await, counts(2, 0, 0, 2));
    let ids: Vec<u64> = region
        .ids("order-1")
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(ids, [1, 2, 10, 11, 12, 13]);
}

#[tokio::test]
async fn an_event_whose_id_another_stream_has_is_set_aside() {
    let region = Region::new().await;
    region.append("order-9", Expected::None, &[10, 30]).await;
    let mut tail = stranded("order-1", 0, &[10, 11]);
    tail.extend(stranded("cart-1", 0, &[30, 31]));
    assert_eq!(region.readmit(&tail).await, counts(0, 1, 3, 0));
    assert_eq!(region.ids("cart-1"), [(31, true)]);
    assert_eq!(region.ids("order-1"), []);
    assert_eq!(region.conflicts(2).await.len(), 2);
    assert_eq!(region.readmit(&tail).await, counts(0, 0, 0, 4));
}

#[tokio::test]
async fn what_is_added_to_an_event_of_the_greatest_size_is_not_too_much() {
    let region = Region::new().await;
    let mut tail = stranded("order-1", 0, &[10, 11]);
    tail.extend(stranded("order-2", 5, &[20]));
    for event in &mut tail {
        let room = (1 << 16) - 16 - event.event_type.as_str().len();
        event.data = format!("\"{}\"", "x".repeat(room - 2)).into_bytes().into();
    }
    assert_eq!(region.readmit(&tail).await, counts(2, 0, 1, 0));
    let (_, lost) = region.lost().await;
    assert_eq!(lost[0].data, tail[2].data);
}

#[tokio::test]
async fn a_rebase_appends_and_a_second_decision_changes_nothing() {
    let mut region = Region::new().await;
    region.append("order-1", Expected::None, &[1, 2, 3]).await;
    let tail = stranded("order-1", 2, &[10, 11, 12, 13, 14]);
    region.readmit(&tail).await;
    let id = region.conflicts(1).await[0].id;
    let path = format!("/v1/conflicts/{}", id.0);
    let resolve = format!("{path}/resolve");

    let (status, page) = region.http("GET", "/v1/conflicts", &Value::Null).await;
    assert_eq!(
        (status, page["conflicts"][0]["status"].clone()),
        (200, json!("open")),
        "{page}"
    );
    let (status, page) = region
        .http("GET", &format!("{path}?from=1&limit=2"), &Value::Null)
        .await;
    assert_eq!(
        (status, &page["next"], &page["count"]),
        (200, &json!(3), &json!(5)),
        "{page}"
    );
    assert_eq!(page["events"][0]["data"], json!({"id": 11}));
    let other = format!("/v1/conflicts/{}", Uuid::from_u128(1));
    let refusals = [
        (
            resolve.clone(),
            json!({"action": "discard", "reason": " "}),
            400,
            "invalid",
        ),
        (
            resolve.clone(),
            json!({"action": "reinstate", "reason": "r"}),
            400,
            "invalid",
        ),
        (
            format!("{other}/resolve"),
            json!({"action": "rebase"}),
            404,
            "not_found",
        ),
        (
            "/v1/conflicts/x/resolve".to_owned(),
            json!({"action": "rebase"}),
            400,
            "invalid",
        ),
    ];
    for (path, body, status, code) in &refusals {
        let (answered, problem) = region.http("POST", path, body).await;
        assert_eq!(
            (answered, &problem["code"]),
            (*status, &json!(code)),
            "{problem}"
        );
    }
    assert_eq!(region.http("GET", &other, &Value::Null).await.0, 404);

    let rebase = json!({"action": "rebase", "reason": "they are good"});
    let (status, record) = region.http("POST", &resolve, &rebase).await;
    assert_eq!(
        (status, &record["status"]),
        (200, &json!("rebased")),
        "{record}"
    );
    assert_eq!(
        record["resolution"]["revisions"],
        json!([[3, 7]]),
        "{record}"
    );
    let again = [10, 11, 12, 13, 14].map(|id| (id, true));
    let before = [1, 2, 3].map(|id| (id, false));
    assert_eq!(region.ids("order-1"), [&before[..], &again].concat());

    let events = region.all_events();
    for body in [rebase, json!({"action": "discard", "reason": "no"})] {
        let (status, problem) = region.http("POST", &resolve, &body).await;
        assert_eq!(
            (status, &problem["code"]),
            (409, &json!("conflict")),
            "{problem}"
        );
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains("rebased") && detail.contains("they are good"),
            "{detail}"
        );
    }
    assert_eq!(region.readmit(&tail).await, counts(0, 0, 0, 5));
    assert_eq!(region.all_events(), events);
    region.restart().await;
    while region.conflicts(1).await[0].status != ConflictStatus::Rebased {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (_, open) = region
        .http("GET", "/v1/conflicts?status=open", &Value::Null)
        .await;
    assert_eq!(open, json!({"conflicts": [], "next": null}));
    let (_, resolved) = region
        .http("GET", "/v1/conflicts?status=resolved", &Value::Null)
        .await;
    assert_eq!(resolved["conflicts"][0]["id"], json!(id.0));
}

#[tokio::test]
async fn what_somebody_made_of_lost_events_takes_their_place() {
    let region = Region::new().await;
    region.append("order-1", Expected::None, &[1, 2, 3]).await;
    region.readmit(&stranded("order-1", 2, &[10, 11])).await;
    let id = region.conflicts(1).await[0].id;
    let path = format!("/v1/conflicts/{}/resolve", id.0);
    let made = Uuid::from_u128(99);
    let event = json!({"id": made, "type": "Merged", "data": {"of": [3, 10, 11]}});
    for (wrong, why) in [
        (
            json!({"action": "discard", "reason": "r", "events": [event]}),
            "rebase only",
        ),
        (
            json!({"action": "rebase", "events": [{"type": "T", "data": 1, "metadata": {"$op": 1}}]}),
            "server's own",
        ),
        (
            json!({"action": "rebase", "events": [{"type": "T", "data": "x".repeat(300_000)}]}),
            "at most",
        ),
    ] {
        let (status, answer) = region.http("POST", &path, &wrong).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains(why), "{answer}");
    }
    let body = json!({"action": "rebase", "reason": "both were meant", "events": [event]});
    let (status, answer) = region.http("POST", &path, &body).await;
    assert_eq!(
        (status, &answer["status"]),
        (200, &json!("rebased")),
        "{answer}"
    );
    assert_eq!(answer["resolution"]["revisions"], json!([[3, 3]]));
    let ids: Vec<u64> = region
        .ids("order-1")
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(ids, [1, 2, 3, 99]);
    // Both branches are still there to be read.
    let (_, page) = region.node.conflicts().get(id, 0, 10).unwrap();
    assert_eq!(page.events.len(), 2);
    let (status, _) = region.http("POST", &path, &body).await;
    assert_eq!(status, 409);
}

#[tokio::test]
async fn of_many_decisions_at_once_one_counts() {
    let region = Region::new().await;
    region.append("order-1", Expected::None, &[1, 2, 3]).await;
    region.readmit(&stranded("order-1", 2, &[10, 11])).await;
    let id = region.conflicts(1).await[0].id;
    let conflicts = region.node.conflicts();
    let reasons: Vec<String> = (0..8).map(|number| format!("reason {number}")).collect();
    let all = reasons
        .iter()
        .map(|it| conflicts.resolve(id, ConflictAction::Discard, it));
    let answers = futures_util::future::join_all(all).await;
    let won: Vec<_> = answers.iter().filter_map(|it| it.as_ref().ok()).collect();
    assert_eq!(won.len(), 1, "{answers:?}");
    let refused = |it: &Result<_, _>| matches!(it, Err(ConflictError::Conflict(_)));
    assert_eq!(
        answers.iter().filter(|it| refused(it)).count(),
        7,
        "{answers:?}"
    );
    let (record, _) = conflicts.get(id, 0, 1).unwrap();
    assert_eq!(&record, won[0]);
    assert_eq!(record.status, ConflictStatus::Discarded);
    assert_eq!(region.ids("order-1").len(), 3);
}

#[tokio::test]
async fn a_rebase_that_was_cut_short_is_ended_by_the_same_request() {
    let region = Region::new().await;
    region.append("order-1", Expected::None, &[1, 2, 3]).await;
    region.readmit(&stranded("order-1", 2, &[10, 11, 12])).await;
    let id = region.conflicts(1).await[0].id;
    // Decided, and the first event of it appended.
    let surely = Surely::new(Arc::downgrade(&region.node), CancellationToken::new(), None);
    let decided = NewEvent {
        id: EventId(Uuid::from_u128(77)),
        event_type: EventType::new("$conflict-resolved").unwrap(),
        data: Bytes::from_static(br#"{"action":"rebase","reason":"early","region":"us"}"#),
        metadata: Bytes::new(),
    };
    let name = stream(&format!("$conflicts-{}", id.0));
    surely
        .append(&name, Expected::Any, vec![decided])
        .await
        .unwrap();
    region.append("order-1", Expected::Any, &[10]).await;
    let conflicts = region.node.conflicts();
    let discard = conflicts.resolve(id, ConflictAction::Discard, "late").await;
    assert!(
        matches!(discard, Err(ConflictError::Conflict(_))),
        "{discard:?}"
    );
    let record = conflicts
        .resolve(id, ConflictAction::Rebase, "late")
        .await
        .unwrap();
    let resolution = record.resolution.unwrap();
    assert_eq!(
        (record.status, resolution.reason.as_str()),
        (ConflictStatus::Rebased, "early")
    );
    assert_eq!(resolution.revisions, [[3, 5]]);
    let ids: Vec<u64> = region
        .ids("order-1")
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(ids, [1, 2, 3, 10, 11, 12]);
}

#[tokio::test]
async fn transfers_of_homes_are_not_brought_home_and_a_node_that_stops_ends_it() {
    let region = Region::new().await;
    assert_eq!(
        region.readmit(&stranded("$homes-0", 0, &[10])).await,
        counts(0, 0, 0, 0)
    );
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let tails = vec![tail(&stranded("order-1", 0, &[10, 11]))];
    let sum = readmit(Arc::downgrade(&region.node), tails, cancelled).await;
    assert_eq!((sum.total, sum.left), (2, 2));
    assert_eq!(region.ids("order-1"), []);
}

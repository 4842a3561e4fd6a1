//! Sessions over real nodes: no token holder reads older than the token, whatever is cut.
//!
//! The nodes are in this process, over real UDP, TLS and disk; the one region's datagrams can be
//! held back.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

#[path = "../src/cli/demo/cut.rs"]
mod cut;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use cut::{Cut, CuttableNetwork};
use futures_util::StreamExt;
use meridian_client::tls::Identity;
use meridian_client::{
    AppendRequest, Client, ClientConfig, Direction, Durability, Expected, LiveRead, ReadAt,
    ReadError, ReservationAct, ReservationAnswer, ReservationKey, ReservationRequest, ReserveError,
    Seed, Session, SettledRead, SettledTier, StateRead, StateTier, StreamRead,
};
use meridian_clock::{Dot, PartitionId, Position, RegionId};
use meridian_event::{EventId, EventType, NewEvent, StreamId};
use meridian_node::Node;
use meridian_node::config::{self, Loaded, NodeConfig};
use meridian_node::seams::Seams;
use serde_json::{Value, json};
use support::{Federation, PATIENCE};
use tokio::time::{Instant, sleep, timeout};

const NAMES: [&str; 3] = ["a", "b", "c"];
const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
/// Long enough for links to come back after a cut on a machine that is busy with other things.
const LONG: &str = "30000";

/// What a door answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    token: Option<String>,
    retry_after: Option<String>,
    body: Value,
}

impl Answer {
    fn token(&self) -> String {
        self.token
            .clone()
            .unwrap_or_else(|| panic!("no token: {self:?}"))
    }

    fn numbers(&self) -> Vec<u64> {
        assert_eq!(self.status, 200, "{self:?}");
        let events = self.body["events"].as_array().unwrap();
        events
            .iter()
            .map(|event| event["data"].as_u64().unwrap())
            .collect()
    }

    #[track_caller]
    fn is_stale(&self) {
        assert_eq!(
            (self.status, &self.body["code"]),
            (503, &json!("stale")),
            "{self:?}"
        );
        assert!(self.retry_after.is_some(), "{self:?}");
    }

    #[track_caller]
    fn refused(&self, status: u16, code: &str, because: &str) {
        assert_eq!(
            (self.status, &self.body["code"]),
            (status, &json!(code)),
            "{self:?}"
        );
        let detail = self.body["detail"].as_str().unwrap();
        assert!(detail.contains(because), "{because:?} is not in {detail:?}");
    }
}

/// Three regions, each of which can be cut off from the others.
struct World {
    federation: Federation,
    nodes: Vec<Arc<Node>>,
    cuts: Vec<Cut>,
    http: reqwest::Client,
}

impl World {
    async fn new() -> Self {
        Self::with(|_, _| {}).await
    }

    async fn with(change: impl Fn(usize, &mut NodeConfig)) -> Self {
        let federation = Federation::new(&NAMES);
        let (mut nodes, mut cuts) = (Vec::new(), Vec::new());
        for (index, region) in federation.regions.iter().enumerate() {
            let mut config = config::load(&region.config).unwrap().node;
            change(index, &mut config);
            let cut = Cut::default();
            let seams = Seams {
                network: Arc::new(CuttableNetwork(cut.clone())),
                ..Seams::host(&config.data).unwrap()
            };
            nodes.push(Node::start(config, seams).await.unwrap());
            cuts.push(cut);
        }
        let world = Self {
            federation,
            nodes,
            cuts,
            http: reqwest::Client::new(),
        };
        for node in &world.nodes {
            let ready = async {
                while node.ready().is_err() {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(PATIENCE, ready)
                .await
                .expect("the node takes appends");
        }
        world
    }

    async fn stop(self) {
        for node in &self.nodes {
            node.shutdown().await;
        }
    }

    /// A stream that region `index` orders.
    fn stream_of(&self, index: usize) -> StreamId {
        let home = RegionId(u16::try_from(index).unwrap());
        let streams = (0..).map(|number| StreamId::new(&format!("order-{number}")).unwrap());
        let mut own = streams.filter(|stream| self.nodes[index].home_of(stream) == Some(home));
        own.next().unwrap()
    }

    async fn send(&self, request: reqwest::RequestBuilder, headers: &[(&str, &str)]) -> Answer {
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        let response = request.timeout(PATIENCE).send().await.unwrap();
        let header = |name: &str| {
            let value = response.headers().get(name);
            value.map(|value| value.to_str().unwrap().to_owned())
        };
        Answer {
            status: response.status().as_u16(),
            token: header("meridian-session"),
            retry_after: header("retry-after"),
            body: serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default(),
        }
    }

    async fn get(&self, index: usize, path: &str, headers: &[(&str, &str)]) -> Answer {
        let url = format!("http://{}{path}", self.nodes[index].http_addr());
        self.send(self.http.get(url), headers).await
    }

    async fn append(&self, index: usize, stream: &StreamId, number: u64, token: &str) -> Answer {
        let url = format!(
            "http://{}/v1/streams/{stream}/events",
            self.nodes[index].http_addr()
        );
        let body = json!({"events": [{"type": "Counted", "data": number}]});
        let headers: &[(&str, &str)] = match token {
            "" => &[],
            token => &[("meridian-session", token)],
        };
        self.send(self.http.post(url).json(&body), headers).await
    }

    /// A Rust client that asks `index` where any region will do.
    async fn client(&self, index: usize) -> Client {
        let Loaded { node, operator } =
            config::load(&self.federation.regions[index].config).unwrap();
        let operator = operator.unwrap();
        #[expect(clippy::disallowed_methods, reason = "the client's own files")]
        let read = |path: &std::path::Path| fs::read(path).unwrap();
        let identity = Identity::load(
            &read(&operator.authority),
            &read(&operator.certificate),
            &read(&operator.key),
        );
        let endpoint = meridian_client::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let seeds = self.nodes.iter().map(|node| Seed {
            addr: node.quic_addr(),
            region: None,
        });
        let mut client = ClientConfig::new(
            endpoint,
            identity.unwrap(),
            node.federation,
            seeds.collect(),
        );
        client.prefer = Some(NAMES[index].to_owned());
        Client::connect(client).await.unwrap()
    }
}

fn reads(stream: &StreamId) -> [String; 4] {
    [
        format!("/v1/streams/{stream}/events"),
        "/v1/events".to_owned(),
        "/v1/events?tier=stable".to_owned(),
        "/v1/events?tier=final".to_owned(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_behind_a_cut_is_stale_and_answers_with_the_event_after_the_heal() {
    let world = World::new().await;
    let stream = world.stream_of(A);
    world.cuts[C].set(true);
    // Through b, which passes it on to its home.
    let written = world.append(B, &stream, 7, "").await;
    assert_eq!(written.status, 200, "{written:?}");
    let token = written.token();
    assert_eq!(written.body["token"], token.as_str());

    for path in reads(&stream) {
        let without = world.get(C, &path, &[]).await;
        assert_eq!(without.numbers(), [0; 0], "{path}: c is behind");
        let began = Instant::now();
        let headers = [
            ("meridian-session", token.as_str()),
            ("meridian-wait-ms", "300"),
        ];
        let stale = world.get(C, &path, &headers).await;
        stale.is_stale();
        let waited = began.elapsed();
        assert!(waited >= Duration::from_millis(300), "{path}: {waited:?}");
        assert!(waited < Duration::from_secs(10), "{path}: {waited:?}");
    }
    let headers = [
        ("meridian-session", token.as_str()),
        ("meridian-wait-ms", "0"),
    ];
    let [of_stream, ..] = reads(&stream);
    let stale = world.get(C, &of_stream, &headers).await;
    stale.refused(
        503,
        "stale",
        "of region a is held here up to position 0, and 1 was seen",
    );
    let stable = world.get(C, "/v1/events?tier=stable", &headers).await;
    stable.refused(503, "stale", "waits for region");

    // The reads are there first, and the events come to them.
    let headers = [
        ("meridian-session", token.as_str()),
        ("meridian-wait-ms", LONG),
    ];
    let paths = reads(&stream);
    let waiting =
        futures_util::future::join_all(paths.iter().map(|path| world.get(C, path, &headers)));
    let follow = async {
        let url = format!("http://{}/v1/events", world.nodes[C].http_addr());
        let request = world.http.get(url).header("accept", "text/event-stream");
        let request = request
            .header("meridian-session", &token)
            .header("meridian-wait-ms", LONG);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.headers().contains_key("meridian-session"));
        let first = response.bytes_stream().next().await.unwrap().unwrap();
        String::from_utf8(first.to_vec()).unwrap()
    };
    let heal = async {
        sleep(Duration::from_millis(300)).await;
        world.cuts[C].set(false);
    };
    let (answers, followed, ()) = tokio::join!(waiting, follow, heal);
    for (answer, path) in answers.iter().zip(&paths) {
        assert_eq!(answer.numbers(), [7], "{path}");
        assert_eq!(
            answer.token(),
            token,
            "{path}: nothing more was seen than was written"
        );
    }
    assert!(followed.contains("\"data\":7"), "{followed}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_hop_between_regions_never_go_back() {
    let world = World::new().await;
    let stream = world.stream_of(A);
    let (mut token, mut writer) = (String::new(), String::new());
    let (mut shown, mut settled, mut stale) = (0, 0, 0);
    for round in 0..36_u64 {
        world.cuts[C].set(round % 12 < 6);
        writer = world.append(A, &stream, round, &writer).await.token();
        let index = usize::try_from(round % 3).unwrap();
        let wait = if index == C { "50" } else { LONG };
        let headers = [
            ("meridian-session", token.as_str()),
            ("meridian-wait-ms", wait),
        ];
        let headers = if token.is_empty() {
            &headers[1..]
        } else {
            &headers[..]
        };
        let path = format!("/v1/streams/{stream}/events?limit=1000");
        let page = world.get(index, &path, headers).await;
        if page.status == 200 {
            let seen = page.numbers().len();
            assert!(
                seen >= shown,
                "round {round}: {seen} of {shown} in {}",
                NAMES[index]
            );
            shown = seen;
            token = page.token();
        } else {
            page.is_stale();
            stale += 1;
        }
        // The one order goes back as little as the streams do, with a session of its own.
        let headers = [
            ("meridian-session", writer.as_str()),
            ("meridian-wait-ms", "20"),
        ];
        let page = world
            .get(index, "/v1/events?tier=stable&limit=1000", &headers)
            .await;
        if page.status == 200 {
            let seen = page.numbers().len();
            assert_eq!(
                seen as u64,
                round + 1,
                "every event of this session is stable here"
            );
            assert!(seen >= settled);
            settled = seen;
        } else {
            page.is_stale();
        }
    }
    assert!(
        stale > 0,
        "c was cut off and must have been behind at least once"
    );
    assert!(shown > 20, "most reads showed what was there: {shown}");
    world.cuts[C].set(false);
    let headers = [
        ("meridian-session", writer.as_str()),
        ("meridian-wait-ms", LONG),
    ];
    for path in reads(&stream) {
        let path = format!(
            "{path}{}limit=1000",
            if path.contains('?') { '&' } else { '?' }
        );
        let page = world.get(C, &path, &headers).await;
        assert_eq!(page.numbers().len(), 36, "{path}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_token_is_refused_and_writes_nothing() {
    let world = World::new().await;
    let stream = world.stream_of(A);
    let token = world.append(A, &stream, 1, "").await.token();
    let mut forged = token.clone();
    let last = forged.pop().unwrap();
    forged.push(if last == 'A' { 'Q' } else { 'A' });
    let before = world.get(A, "/v1/digest", &[]).await.body;
    for bad in [forged.as_str(), "x", &token[1..]] {
        let refused = world.append(A, &stream, 2, bad).await;
        refused.refused(400, "invalid", "session");
        for path in reads(&stream) {
            let refused = world.get(B, &path, &[("meridian-session", bad)]).await;
            refused.refused(400, "invalid", "session");
        }
    }
    for bad in ["30001", "-1", "soon"] {
        for path in reads(&stream) {
            let refused = world.get(A, &path, &[("meridian-wait-ms", bad)]).await;
            refused.refused(400, "invalid", "0 to 30000");
        }
    }
    assert_eq!(world.get(A, "/v1/digest", &[]).await.body, before);
    // Two tokens together stand for both.
    let other = world.stream_of(B);
    let second = world.append(B, &other, 3, "").await.token();
    let both = [
        ("meridian-session", token.as_str()),
        ("meridian-session", second.as_str()),
        ("meridian-wait-ms", LONG),
    ];
    let mut page = world.get(C, "/v1/events", &both).await.numbers();
    page.sort_unstable();
    assert_eq!(page, [1, 3]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_without_the_federations_key_says_what_to_configure() {
    let world = World::with(|index, config| {
        assert!(
            config.session_key.is_some(),
            "init gives every region the key"
        );
        if index == A {
            config.session_key = None;
        }
    })
    .await;
    let stream = world.stream_of(A);
    let path = format!("/v1/streams/{stream}/events");
    let of_a = world.append(A, &stream, 1, "").await.token();
    let of_b = world.append(B, &stream, 2, "").await.token();
    let read = async |index: usize, token: &str| {
        world
            .get(
                index,
                &path,
                &[("meridian-session", token), ("meridian-wait-ms", LONG)],
            )
            .await
    };
    assert_eq!(read(A, &of_a).await.numbers(), [1, 2]);
    read(B, &of_a)
        .await
        .refused(400, "invalid", "`session_key`");
    read(A, &of_b)
        .await
        .refused(400, "invalid", "`session_key`");
    assert_eq!(read(C, &of_b).await.numbers(), [1, 2]);
    world.stop().await;
}

fn append(stream: &StreamId, number: u64) -> AppendRequest {
    AppendRequest {
        stream: stream.clone(),
        expected: Expected::Any,
        durability: Durability::Region,
        events: vec![NewEvent {
            id: EventId(uuid::Uuid::from_u128(number.into())),
            event_type: EventType::new("Counted").unwrap(),
            data: number.to_string().into_bytes().into(),
            metadata: Vec::new().into(),
        }],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rust_client_carries_its_session_from_region_to_region() {
    let world = World::new().await;
    let stream = world.stream_of(A);
    let client = world.client(C).await;
    let region = |index: usize| RegionId(u16::try_from(index).unwrap());
    let read = StreamRead {
        stream: stream.clone(),
        from: 0,
        direction: Direction::Forwards,
        limit: 10,
    };
    let live = LiveRead {
        limit: 10,
        ..LiveRead::default()
    };
    let settled = SettledRead {
        tier: SettledTier::Final,
        limit: 10,
        ..SettledRead::default()
    };

    // Region c goes on answering clients, and hears nothing from the others, while they are gone.
    for index in [A, B] {
        world.cuts[index].set(true);
    }
    let http = world.append(A, &stream, 1, "").await.token();
    let mut session = client.session().wait_up_to(Duration::from_millis(200));
    session.observe(&meridian_client::SessionToken(http));
    let stale = session
        .read_stream(read.clone(), ReadAt::Region(region(C)))
        .await;
    assert!(matches!(stale, Err(ReadError::Stale { .. })), "{stale:?}");
    let stale = session.live(live.clone(), Some(region(C))).await;
    assert!(matches!(stale, Err(ReadError::Stale { .. })), "{stale:?}");
    let stale = session.settled(settled.clone(), Some(region(C))).await;
    assert!(matches!(stale, Err(ReadError::Stale { .. })), "{stale:?}");

    for index in [A, B] {
        world.cuts[index].set(false);
    }
    let mut session = session.wait_up_to(Duration::from_secs(30));
    session.append(append(&stream, 2)).await.unwrap();
    // Another process, later, with nothing but the token.
    let mut session = Session::resume(world.client(B).await, session.token().clone())
        .wait_up_to(Duration::from_secs(30));
    for index in [C, B, A] {
        let at = ReadAt::Region(region(index));
        let page = session.read_stream(read.clone(), at).await.unwrap();
        assert_eq!(page.events.len(), 2, "{}", NAMES[index]);
        let (_, page) = session
            .live(live.clone(), Some(region(index)))
            .await
            .unwrap();
        assert_eq!(page.events.len(), 2, "{}", NAMES[index]);
        let page = session
            .settled(settled.clone(), Some(region(index)))
            .await
            .unwrap();
        assert_eq!(page.events.len(), 2, "{}", NAMES[index]);
    }
    let refused = Session::resume(
        client.clone(),
        meridian_client::SessionToken("x".to_owned()),
    )
    .append(append(&stream, 3))
    .await;
    assert_eq!(refused.unwrap_err().code(), "invalid");
    client.close();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_awaited_in_a_named_region_before_it_is_there() {
    let world = World::new().await;
    let stream = world.stream_of(A);
    let written = world.append(A, &stream, 1, "").await;
    let dot = &written.body["dots"][0];
    let partition = dot["partition"].as_u64().unwrap();
    let path = |position: u64, rest: &str| format!("/v1/await?dot=a/{partition}/{position}{rest}");
    let here = world
        .get(A, &path(1, "&tier=final&wait_ms=30000"), &[])
        .await;
    assert_eq!(here.body["reached"], true, "{here:?}");
    assert_eq!(here.body["timestamp"], written.body["timestamp"]);
    assert_eq!(here.body["region"], "a");
    let there = world
        .get(A, &path(1, "&tier=final&region=c&wait_ms=30000"), &[])
        .await;
    assert_eq!(
        (&there.body["reached"], &there.body["region"]),
        (&json!(true), &json!("c"))
    );

    // The next one is waited for before it is written.
    let later = path(2, "&region=c&wait_ms=30000");
    let (awaited, ()) = tokio::join!(world.get(B, &later, &[]), async {
        sleep(Duration::from_millis(200)).await;
        assert_eq!(world.append(A, &stream, 2, "").await.status, 200);
    });
    assert_eq!(awaited.body["reached"], true, "{awaited:?}");
    let never = world.get(B, &path(9, "&wait_ms=100"), &[]).await;
    assert_eq!(
        (&never.body["reached"], &never.body["timestamp"]),
        (&json!(false), &json!(null))
    );

    // Nothing is settled without c; where c is asked, nobody answers.
    world.cuts[C].set(true);
    sleep(Duration::from_millis(200)).await;
    world.append(A, &stream, 3, "").await;
    let stalled = world.get(A, &path(3, "&wait_ms=300"), &[]).await;
    assert_eq!(stalled.body["reached"], false, "{stalled:?}");
    assert!(stalled.body["timestamp"].is_string(), "{stalled:?}");
    let gone = world.get(A, &path(3, "&region=c&wait_ms=300"), &[]).await;
    gone.refused(503, "unavailable", "region c");
    world.cuts[C].set(false);
    let healed = world
        .get(A, &path(3, "&region=c&tier=final&wait_ms=30000"), &[])
        .await;
    assert_eq!(healed.body["reached"], true, "{healed:?}");

    let client = world.client(B).await;
    let dot = Dot {
        origin: RegionId(0),
        partition: PartitionId(u16::try_from(partition).unwrap()),
        position: Position(3),
    };
    let wait = Duration::from_secs(30);
    let awaited = client
        .await_settled(dot, SettledTier::Final, RegionId(2), wait)
        .await;
    assert!(awaited.unwrap().reached);
    client.close();

    let ask = async |query: &str| world.get(A, &format!("/v1/await?{query}"), &[]).await;
    ask("dot=z/0/1").await.refused(404, "not_found", "a, b, c");
    ask("dot=a/0/1&region=z")
        .await
        .refused(404, "not_found", "a, b, c");
    ask("dot=a/99/1").await.refused(400, "invalid", "0 to 3");
    ask("dot=a/0/0").await.refused(400, "invalid", "from 1");
    ask("dot=a/0/1&wait_ms=30001")
        .await
        .refused(400, "invalid", "30000");
    for wrong in ["a/0", "a/0/1/2", "a/x/1", "17", ""] {
        ask(&format!("dot={wrong}"))
            .await
            .refused(400, "invalid", "us-east/3/17");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_wait_for_an_event_to_be_settled() {
    let world = World::new().await;
    let stream = world.stream_of(A);
    let url = format!("http://{}", world.nodes[B].http_addr());
    let run = |arguments: &[&str]| {
        let arguments = [arguments, &["--url", &url]].concat();
        let done = tokio::task::block_in_place(|| support::meridian(&arguments));
        (
            done.status.code(),
            support::text(&done.stdout) + &support::text(&done.stderr),
        )
    };
    let append = ["append", stream.as_str(), "--type", "T", "--data", "1"];
    let (code, said) = run(&[&append[..], &["--await", "final"]].concat());
    assert_eq!(code, Some(0), "{said}");
    let settled = said.lines().find(|line| line.ends_with(" is final in b."));
    let dot = settled.and_then(|line| line.split(' ').next());
    let dot = dot.unwrap_or_else(|| panic!("{said}"));
    let (code, said) = run(&["await", dot, "--tier", "final", "--region", "c"]);
    assert_eq!((code, said), (Some(0), format!("{dot} is final in c.\n")));
    let next = format!("{}2", dot.strip_suffix('1').unwrap());
    let (code, said) = run(&["await", &next, "--wait", "0"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("it has not arrived there"), "{said}");
    let (code, said) = run(&["await", "17"]);
    assert_eq!(code, Some(2), "{said}");
    world.stop().await;
}

fn adds(stream: &StreamId, by: u64, number: u64) -> AppendRequest {
    let mut request = append(stream, number);
    request.events[0].data = json!({"op": "add", "by": by}).to_string().into();
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_reads_a_state_with_all_that_it_wrote_or_is_told_that_the_region_is_stale() {
    let world = World::new().await;
    let url = format!("http://{}/v1/categories/visits", world.nodes[A].http_addr());
    let body = json!({"mode": "crdt", "type": "pn-counter"});
    let is_set = async {
        loop {
            let set = world.send(world.http.put(&url).json(&body), &[]).await;
            if set.status == 200 && set.body["waits_for"] == json!([]) {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, is_set).await.expect("it is set");

    let stream = StreamId::new("visits-home").unwrap();
    let read = |tier| StateRead {
        stream: stream.clone(),
        tier,
    };
    let [at_a, at_c] = [A, C].map(|index| Some(RegionId(u16::try_from(index).unwrap())));
    let client = world.client(A).await;
    let mut session = client.session().wait_up_to(Duration::from_millis(200));
    session.append(adds(&stream, 2, 1)).await.unwrap();
    let mine = session.state(read(StateTier::Live), at_a).await.unwrap();
    assert_eq!(mine.value().unwrap(), json!(2));
    let everywhere = async {
        loop {
            let state = client.state(read(StateTier::Stable), at_c).await;
            if state.is_ok_and(|state| state.digest == mine.digest) {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, everywhere).await.expect("it is settled");

    world.cuts[C].set(true);
    session.append(adds(&stream, 3, 2)).await.unwrap();
    let state = format!("/v1/streams/{stream}/state");
    let behind = world.get(C, &state, &[]).await;
    assert_eq!(behind.body["value"], 2, "c is behind");
    let token = session.token().0.as_str();
    let headers = [("meridian-session", token), ("meridian-wait-ms", "200")];
    for tier in ["live", "stable"] {
        let path = format!("{state}?tier={tier}");
        world.get(C, &path, &headers).await.is_stale();
    }
    world.cuts[C].set(false);
    let mut there = Session::resume(world.client(C).await, session.token().clone())
        .wait_up_to(Duration::from_secs(30));
    for tier in [StateTier::Live, StateTier::Stable] {
        let state = there.state(read(tier), at_c).await.unwrap();
        assert_eq!(state.value().unwrap(), json!(5));
    }

    let order = StateRead {
        stream: StreamId::new("order-1").unwrap(),
        tier: StateTier::Live,
    };
    let refused = client.state(order, None).await.unwrap_err().to_string();
    assert!(refused.contains("has no state"), "{refused}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_clients_one_reserves_a_key_and_both_know_who() {
    let world = World::new().await;
    let asked = |owner: &str, act, id| ReservationRequest {
        key: ReservationKey {
            namespace: "email".to_owned(),
            key: "a@b.example".to_owned(),
        },
        owner: owner.to_owned(),
        act,
        id: uuid::Uuid::from_u128(id),
    };
    let claim = ReservationAct::Claim { hold_for: None };
    let (one, two) = (world.client(A).await, world.client(C).await);
    let held = one.reserve(asked("one", claim, 1)).await.unwrap();
    // Asked again with its id it is the same reservation.
    assert_eq!(one.reserve(asked("one", claim, 1)).await, Ok(held.clone()));
    let refused = two.reserve(asked("two", claim, 2)).await;
    let Err(ReserveError::Reserved(holder)) = refused else {
        panic!("one has it: {refused:?}");
    };
    assert_eq!((holder.owner.as_str(), holder.dot), ("one", held.dot));
    let released = one
        .carry_out(asked("one", ReservationAct::Release, 3))
        .await
        .unwrap();
    assert!(matches!(
        released,
        ReservationAnswer::Free { released: true, .. }
    ));
    let held = two.reserve(asked("two", claim, 4)).await.unwrap();
    assert_eq!(held.owner, "two");
    let invalid = two.reserve(asked("", claim, 5)).await;
    assert!(
        matches!(invalid, Err(ReserveError::Invalid { .. })),
        "{invalid:?}"
    );
    world.stop().await;
}

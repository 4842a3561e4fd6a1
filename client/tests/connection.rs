//! What a connection promises: answers in any sequence, and the truth about what was not answered.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "real sockets on loopback, which is what is tested here"
)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{EAST, Lone, append, done, hello, soon};
use meridian_client::tls::{Alpn, PeerName};
use meridian_client::wire::{self, Request, Response, kind};
use meridian_client::{
    AppendError, Direction, LivePage, LiveRead, ReadError, RequestError, StreamPage, StreamRead,
};
use meridian_event::{StreamId, frame};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, timeout};

fn request(id: u128) -> Request {
    Request::Append {
        request: append("order-1", &[id]),
        hops: 0,
    }
}

/// The answer of a node that does every append.
fn do_it(request: &Request) -> Response {
    match request {
        Request::Append { request, .. } => Response::Append(Ok(done(EAST, request))),
        Request::ReadStream(_) => Response::ReadStream(Ok(StreamPage::default())),
        Request::Live(_) => Response::Live(Ok(LivePage::default())),
        Request::Settled(_) => Response::Settled(Ok(meridian_client::SettledPage::default())),
        Request::InSession { .. }
        | Request::Await(_)
        | Request::Consume(_)
        | Request::ReadAtHome(_)
        | Request::State(_)
        | Request::Reserve { .. } => Response::NotUnderstood {
            reason: "an older node".to_owned(),
        },
        Request::Topology => Response::Topology(meridian_client::Topology::default()),
    }
}

fn id_of(request: &Request) -> u128 {
    match request {
        Request::Append { request, .. } => request.events[0].id.0.as_u128(),
        other => panic!("not an append: {other:?}"),
    }
}

#[tokio::test]
async fn answers_may_overtake_one_another() {
    let last = Arc::new(Notify::new());
    let waited_for = Arc::clone(&last);
    let lone = Lone::start(move |_, request| {
        let last = Arc::clone(&waited_for);
        async move {
            match id_of(&request) {
                1 => last.notified().await,
                _ => last.notify_one(),
            }
            do_it(&request)
        }
    });
    let connection = lone.open().await;
    let (first, second) = (request(1), request(2));
    let (first, second) = tokio::join!(
        connection.request(&first, soon()),
        connection.request(&second, soon())
    );
    assert_eq!(first, Ok(do_it(&request(1))));
    assert_eq!(second, Ok(do_it(&request(2))));
}

#[tokio::test]
async fn requests_are_begun_in_the_sequence_they_were_made() {
    let begun = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&begun);
    let lone = Lone::start(move |_, request| {
        record.lock().unwrap().push(id_of(&request));
        async move {
            tokio::task::yield_now().await;
            do_it(&request)
        }
    });
    let connection = lone.open().await;
    let all = (0..2000).map(|id| {
        let connection = connection.clone();
        async move { connection.request(request(id), soon()).await }
    });
    for answer in futures_util::future::join_all(all).await {
        assert!(answer.is_ok(), "{answer:?}");
    }
    let begun = begun.lock().unwrap();
    assert_eq!(begun.len(), 2000);
    assert!(begun.is_sorted(), "{:?}", &begun[..100]);
}

#[tokio::test]
async fn a_request_that_was_sent_when_the_connection_broke_may_have_been_done() {
    let arrived = Arc::new(Notify::new());
    let tell = Arc::clone(&arrived);
    let lone = Lone::start(move |_, _| {
        tell.notify_one();
        std::future::pending()
    });
    let connection = lone.open().await;
    let asked = request(1);
    let asking = connection.request(&asked, soon());
    let (outcome, ()) = tokio::join!(asking, async {
        arrived.notified().await;
        lone.node.kill();
    });
    assert!(
        matches!(outcome, Err(RequestError::Unanswered { .. })),
        "{outcome:?}"
    );

    let later = connection.request(request(2), soon()).await;
    assert!(
        matches!(later, Err(RequestError::NotSent { .. })),
        "{later:?}"
    );
    assert!(!connection.is_open());
}

#[tokio::test]
async fn a_request_that_never_left_is_known_not_to_have_been_done() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let lone = Lone::start(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::pending()
    });
    let connection = lone.open().await;
    // As many as may be unanswered at a time, and one more.
    let filling = (0..1024).map(|id| {
        let connection = connection.clone();
        tokio::spawn(async move { connection.request(request(id), soon()).await })
    });
    let filling: Vec<_> = filling.collect();
    while seen.load(Ordering::SeqCst) < 1024 {
        sleep(Duration::from_millis(5)).await;
    }
    let until = Instant::now() + Duration::from_millis(100);
    let outcome = connection.request(request(9999), until).await;
    assert!(
        matches!(outcome, Err(RequestError::NotSent { .. })),
        "{outcome:?}"
    );

    connection.close();
    for filled in filling {
        let outcome = filled.await.unwrap();
        assert!(
            matches!(outcome, Err(RequestError::Unanswered { .. })),
            "{outcome:?}"
        );
    }
    assert_eq!(seen.load(Ordering::SeqCst), 1024);
}

#[tokio::test]
async fn a_deadline_ends_the_wait_and_travels_with_the_request() {
    let lone = Lone::start(|caller, _| async move {
        let left = caller.deadline.saturating_duration_since(Instant::now());
        assert!(left <= Duration::from_millis(300), "{left:?}");
        assert!(left > Duration::from_millis(100), "{left:?}");
        std::future::pending().await
    });
    let connection = lone.open().await;
    let until = Instant::now() + Duration::from_millis(300);
    let outcome = connection.request(request(1), until).await;
    assert!(
        matches!(outcome, Err(RequestError::Unanswered { .. })),
        "{outcome:?}"
    );
    assert!(connection.is_open());
    // Whoever gave up leaves no place taken.
    drop(connection.request(request(2), soon()));
}

#[tokio::test]
async fn a_stopping_node_finishes_what_it_has_begun_and_takes_nothing_new() {
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (Arc::clone(&begun), Arc::clone(&go_on));
    let mut lone = Lone::start(move |_, request| {
        let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
        async move {
            tell.notify_one();
            wait.notified().await;
            do_it(&request)
        }
    });
    let connection = lone.open().await;
    let (first, second, live) = (request(1), request(2), Request::Live(LiveRead::default()));
    let (first, (second, live)) = tokio::join!(connection.request(&first, soon()), async {
        begun.notified().await;
        let followed = connection.request(&live, soon());
        let stopping = async {
            begun.notified().await;
            lone.node.stop();
            sleep(Duration::from_millis(50)).await;
            let second = connection.request(&second, soon()).await;
            go_on.notify_waiters();
            second
        };
        let (live, second) = tokio::join!(followed, stopping);
        (second, live)
    });
    assert_eq!(first, Ok(do_it(&request(1))));
    let refused = matches!(
        second,
        Ok(Response::Append(Err(AppendError::Unavailable { .. })))
    );
    assert!(refused, "{second:?}");
    let ended = matches!(live, Ok(Response::Live(Err(ReadError::Unavailable { .. }))));
    assert!(ended, "{live:?}");
    assert_eq!(lone.node.ended().await, "well");
    timeout(Duration::from_secs(5), connection.closed())
        .await
        .unwrap();
}

#[tokio::test]
async fn reads_that_take_long_do_not_hold_up_appends() {
    let reads = Arc::new(AtomicUsize::new(0));
    let (count, gate) = (Arc::clone(&reads), Arc::new(Semaphore::new(0)));
    let open = Arc::clone(&gate);
    let lone = Lone::start(move |_, request| {
        let (count, gate) = (Arc::clone(&count), Arc::clone(&gate));
        async move {
            if matches!(request, Request::ReadStream(_)) {
                count.fetch_add(1, Ordering::SeqCst);
                drop(gate.acquire().await);
            }
            do_it(&request)
        }
    });
    let connection = lone.open().await;
    let reading = (0..200).map(|from| {
        let connection = connection.clone();
        let read = Request::ReadStream(StreamRead {
            stream: StreamId::new("order-1").unwrap(),
            from,
            direction: Direction::Forwards,
            limit: 10,
        });
        tokio::spawn(async move { connection.request(read, soon()).await })
    });
    let reading: Vec<_> = reading.collect();
    tokio::task::yield_now().await;
    let appended = connection.request(request(1), soon()).await;
    assert_eq!(appended, Ok(do_it(&request(1))));
    assert_eq!(reads.load(Ordering::SeqCst), 64);

    open.add_permits(200);
    for read in reading {
        let page = read.await.unwrap();
        assert_eq!(page, Ok(Response::ReadStream(Ok(StreamPage::default()))));
    }
    assert_eq!(reads.load(Ordering::SeqCst), 200);
}

#[tokio::test]
async fn large_requests_and_answers_travel_whole_among_small_ones() {
    let lone = Lone::start(|_, request| async move { do_it(&request) });
    let connection = lone.open().await;
    let large = |id: u128| {
        let Request::Append { mut request, hops } = request(id) else {
            panic!("it is an append")
        };
        let text = format!("\"{}\"", "x".repeat(3 << 20));
        request.events[0].data = text.into();
        Request::Append { request, hops }
    };
    let all = (0..24).map(|id| {
        let connection = connection.clone();
        async move {
            let asked = if id % 2 == 0 { large(id) } else { request(id) };
            let answer = connection.request(&asked, soon()).await;
            assert_eq!(answer, Ok(do_it(&asked)));
        }
    });
    futures_util::future::join_all(all).await;
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_not_worked_for_and_holds_up_nobody() {
    let handled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handled);
    let lone = Lone::start(move |_, request| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            match request {
                // An answer of a megabyte, slow enough for the other requests to pile up.
                Request::ReadStream(_) => {
                    sleep(Duration::from_millis(50)).await;
                    let reason = "x".repeat(1 << 20);
                    Response::NotUnderstood { reason }
                }
                other => do_it(&other),
            }
        }
    });
    let mut deaf = Raw::introduced(&lone).await;
    let mut requests = Vec::new();
    for id in 0..1000 {
        let read = Request::ReadStream(StreamRead {
            stream: StreamId::new("order-1").unwrap(),
            from: 0,
            direction: Direction::Forwards,
            limit: 1,
        });
        wire::encode_request(&mut requests, id, 60_000, &read).unwrap();
    }
    deaf.say(&requests).await;

    let mut before = 0;
    loop {
        sleep(Duration::from_millis(300)).await;
        let now = handled.load(Ordering::SeqCst);
        if now == before && now > 0 {
            break;
        }
        before = now;
    }
    // What QUIC takes for a client that does not read, what is kept for it, what was in work.
    assert!(
        before <= 32 + 8 + 64 + 1,
        "{before} answers were made for nobody"
    );

    let connection = lone.open().await;
    let answer = connection.request(request(1), soon()).await;
    assert_eq!(answer, Ok(do_it(&request(1))));
}

#[tokio::test]
async fn a_lost_client_takes_its_requests_with_it() {
    struct Guard(Arc<AtomicUsize>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dropped);
    let mut lone = Lone::start(move |_, _| {
        let guard = Guard(Arc::clone(&count));
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    });
    let connection = lone.open().await;
    let until = Instant::now() + Duration::from_millis(50);
    let _ = connection.request(request(1), until).await;
    drop(connection);
    assert_eq!(lone.node.ended().await, "well");
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
}

/// A client that says things ours would not.
struct Raw {
    connection: quinn::Connection,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    _endpoint: quinn::Endpoint,
}

impl Raw {
    async fn connect(lone: &Lone) -> Self {
        let endpoint = common::dialler();
        let config = lone.ca.client().client_config(Alpn::Client);
        let name = PeerName::Region("east".to_owned()).dns_name();
        let dialling = endpoint.connect_with(config, lone.node.addr, &name);
        let connection = dialling.unwrap().await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        Self {
            connection,
            send,
            receive,
            _endpoint: endpoint,
        }
    }

    async fn introduced(lone: &Lone) -> Self {
        let mut raw = Self::connect(lone).await;
        raw.say(&frame::encode_message(kind::HELLO, &hello())).await;
        assert_eq!(raw.hear().await.0, kind::WELCOME);
        raw
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.unwrap();
    }

    async fn hear(&mut self) -> (u8, Vec<u8>) {
        let mut header = [0; frame::FRAME_HEADER_BYTES];
        self.receive.read_exact(&mut header).await.unwrap();
        let header = frame::FrameHeader::parse(&header).unwrap();
        let mut body = vec![0; header.body_bytes];
        self.receive.read_exact(&mut body).await.unwrap();
        header.check(&body).unwrap();
        (header.kind, body)
    }

    async fn closed_with(&self) -> String {
        self.connection.closed().await.to_string()
    }
}

#[tokio::test]
async fn a_damaged_frame_ends_its_connection_and_no_other() {
    let mut lone = Lone::start(|_, request| async move { do_it(&request) });
    let good = lone.open().await;
    let mut raw = Raw::introduced(&lone).await;
    let mut damaged = Vec::new();
    wire::encode_request(&mut damaged, 1, 1000, &request(1)).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    raw.say(&damaged).await;
    assert!(raw.closed_with().await.contains("what it must not"));
    assert!(lone.node.ended().await.contains("fails its checksum"));
    let answer = good.request(request(2), soon()).await;
    assert_eq!(answer, Ok(do_it(&request(2))));
}

#[tokio::test]
async fn a_frame_of_a_newer_format_is_named_as_such() {
    let mut lone = Lone::start(|_, request| async move { do_it(&request) });
    let mut raw = Raw::introduced(&lone).await;
    let mut newer = frame::encode(kind::REQUEST, b"whatever it will be");
    newer[4] = frame::FRAME_VERSION + 1;
    raw.say(&newer).await;
    assert!(lone.node.ended().await.contains("is newer than"));
}

#[tokio::test]
async fn something_that_is_no_frame_is_named_as_such() {
    let mut lone = Lone::start(|_, request| async move { do_it(&request) });
    let mut raw = Raw::connect(&lone).await;
    raw.say(b"GET / HTTP/1.1\r\nhost: meridian\r\n\r\n").await;
    assert!(lone.node.ended().await.contains("not a Meridian frame"));
}

#[tokio::test]
async fn a_request_of_a_kind_to_come_is_answered_and_the_talk_goes_on() {
    let lone = Lone::start(|_, request| async move { do_it(&request) });
    let mut raw = Raw::introduced(&lone).await;
    // Id 7, a wait of 100 ms, and the request with number 99.
    raw.say(&frame::encode(kind::REQUEST, &[7, 100, 99])).await;
    let (kind, body) = raw.hear().await;
    assert_eq!(kind, kind::RESPONSE);
    let (id, response) = wire::decode_response(&body).unwrap();
    assert_eq!(id, 7);
    assert!(matches!(response, Ok(Response::NotUnderstood { .. })));

    let mut sound = Vec::new();
    wire::encode_request(&mut sound, 8, 1000, &request(1)).unwrap();
    raw.say(&sound).await;
    let (_, body) = raw.hear().await;
    assert_eq!(
        wire::decode_response(&body),
        Ok((8, Ok(do_it(&request(1)))))
    );
}

#[tokio::test]
async fn a_client_that_says_nothing_is_not_waited_for_long() {
    let mut lone = Lone::start(|_, request| async move { do_it(&request) });
    let raw = Raw::connect(&lone).await;
    assert!(raw.closed_with().await.contains("did not introduce itself"));
    assert!(lone.node.ended().await.contains("did not introduce itself"));
}

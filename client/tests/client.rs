//! What an application sees of regions that fail, move and come back.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "real sockets on loopback, which is what is tested here"
)]

mod common;

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{
    Ca, EAST, FakeNode, WEST, append, config, connect, done, listen, listen_again, topology,
};
use meridian_client::wire::{Request, Response};
use meridian_client::{
    AppendError, Appended, Client, ConnectError, Direction, EventFilter, LiveCursor, LivePage,
    LiveRead, ReadAt, ReadError, ReservationAct, ReservationAnswer, ReservationKey,
    ReservationRequest, Seed, Session, SessionRequest, SessionResponse, SessionToken, StreamPage,
    StreamRead,
};
use meridian_clock::{Dot, Epoch, PartitionId, Position, RegionId, Timestamp};
use meridian_event::{EventId, RecordedEvent, Revision, StreamId};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

/// What arrived at the nodes, in sequence.
type Arrived = Arc<Mutex<Vec<(RegionId, Request)>>>;

/// What a node does with a request, given how many reached it before.
type Behaviour = fn(RegionId, usize, &Request) -> Deed;

enum Deed {
    Answer(Response),
    /// The node goes on, and this answer never comes.
    Silence,
    /// The node dies with the request in its hands.
    Die,
}

struct World {
    ca: Ca,
    east: Arc<Mutex<Option<FakeNode>>>,
    west: Arc<Mutex<Option<FakeNode>>>,
    east_addr: std::net::SocketAddr,
    west_addr: std::net::SocketAddr,
    arrived: Arrived,
}

impl World {
    /// Two regions that each do as they are told.
    fn start(east: Behaviour, west: Behaviour) -> Self {
        let ca = Ca::new();
        let (at_east, at_west) = (listen(&ca.region("east")), listen(&ca.region("west")));
        let east_addr = at_east.local_addr().unwrap();
        let west_addr = at_west.local_addr().unwrap();
        let world = Self {
            ca,
            east: Arc::default(),
            west: Arc::default(),
            east_addr,
            west_addr,
            arrived: Arrived::default(),
        };
        world.run(at_east, EAST, east);
        world.run(at_west, WEST, west);
        world
    }

    fn run(&self, endpoint: quinn::Endpoint, region: RegionId, behaviour: Behaviour) {
        let arrived = Arc::clone(&self.arrived);
        let slot = Arc::clone(if region == EAST {
            &self.east
        } else {
            &self.west
        });
        let this = Arc::clone(&slot);
        let topology = topology(self.east_addr, self.west_addr);
        let node = FakeNode::start(endpoint, region, topology, move |_, request| {
            let before = {
                let mut arrived = arrived.lock().unwrap();
                let before = arrived.iter().filter(|(at, _)| *at == region).count();
                arrived.push((region, request.clone()));
                before
            };
            let this = Arc::clone(&this);
            async move {
                match behaviour(region, before, &request) {
                    Deed::Answer(response) => response,
                    Deed::Silence => pending().await,
                    Deed::Die => {
                        this.lock().unwrap().as_ref().unwrap().kill();
                        pending().await
                    }
                }
            }
        });
        *slot.lock().unwrap() = Some(node);
    }

    /// Brings the east back on the address it had.
    async fn restart_east(&self, behaviour: Behaviour) {
        drop(self.east.lock().unwrap().take());
        let endpoint = listen_again(&self.ca.region("east"), self.east_addr).await;
        self.run(endpoint, EAST, behaviour);
    }

    fn kill_east(&self) {
        self.east.lock().unwrap().as_ref().unwrap().kill();
    }

    async fn client(&self) -> Client {
        connect(&self.ca, &[self.east_addr, self.west_addr]).await
    }

    async fn client_preferring(&self, region: &str) -> Client {
        let mut config = config(&self.ca, &[self.east_addr, self.west_addr]);
        config.prefer = Some(region.to_owned());
        Client::connect(config).await.unwrap()
    }

    fn arrived(&self) -> Vec<(RegionId, Request)> {
        self.arrived.lock().unwrap().clone()
    }

    fn regions_asked(&self) -> Vec<RegionId> {
        self.arrived().iter().map(|(region, _)| *region).collect()
    }
}

fn obliging(region: RegionId, _: usize, request: &Request) -> Deed {
    Deed::Answer(match request {
        Request::Append { request, .. } => Response::Append(Ok(done(region, request))),
        Request::Topology => Response::NotUnderstood {
            reason: "a fake has told all it knows".to_owned(),
        },
        Request::ReadStream(read) => Response::ReadStream(Ok(page(read))),
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
    })
}

fn refusing(error: AppendError) -> Deed {
    Deed::Answer(Response::Append(Err(error)))
}

fn code(outcome: &Result<Appended, AppendError>) -> &'static str {
    outcome.as_ref().map_or_else(AppendError::code, |_| "done")
}

/// The second attempt is the same request, ids and all.
fn same_requests(arrived: &[(RegionId, Request)]) -> bool {
    arrived.windows(2).all(|pair| pair[0].1 == pair[1].1)
}

#[tokio::test]
async fn appends_go_to_their_home_and_multi_writer_ones_to_the_preferred_region() {
    let world = World::start(obliging, obliging);
    let client = world.client_preferring("west").await;
    let ledger = client.append(append("ledger-1", &[1])).await.unwrap();
    let cart = client.append(append("cart-1", &[2])).await.unwrap();
    assert_eq!(ledger.home, EAST);
    assert_eq!(cart.home, WEST);
    assert_eq!(world.regions_asked(), [EAST, WEST]);
}

#[tokio::test]
async fn a_request_that_was_lost_with_its_connection_is_repeated_with_the_same_ids() {
    fn dies_once(region: RegionId, before: usize, request: &Request) -> Deed {
        match before {
            0 => Deed::Die,
            _ => obliging(region, before, request),
        }
    }
    let world = World::start(dies_once, |_, _, _| Deed::Silence);
    let client = connect(&world.ca, &[world.east_addr]).await;
    let appending = client.append(append("ledger-1", &[1, 2, 3]));
    let (outcome, ()) = tokio::join!(appending, async {
        while world.arrived().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
        sleep(Duration::from_millis(20)).await;
        world.restart_east(obliging).await;
    });
    assert_eq!(code(&outcome), "done", "{outcome:?}");
    let arrived = world.arrived();
    assert!(arrived.len() >= 2 && same_requests(&arrived), "{arrived:?}");
}

/// Passes an append on to the east, as it were, whose answer says that it is the home.
fn passing_on(region: RegionId, before: usize, request: &Request) -> Deed {
    match obliging(region, before, request) {
        Deed::Answer(Response::Append(Ok(appended))) => {
            Deed::Answer(Response::Append(Ok(Appended {
                home: EAST,
                ..appended
            })))
        }
        other => other,
    }
}

#[tokio::test]
async fn an_unreachable_home_is_reached_through_another_region() {
    let world = World::start(obliging, passing_on);
    let client = world.client().await;
    client.append(append("ledger-1", &[1])).await.unwrap();
    world.kill_east();
    sleep(Duration::from_millis(50)).await;
    let appended = client.append(append("ledger-1", &[2])).await.unwrap();
    assert_eq!(appended.home, EAST);
    assert_eq!(world.regions_asked(), [EAST, WEST]);

    // Later ones need not wait for another attempt to connect.
    let before = Instant::now();
    client.append(append("ledger-1", &[3])).await.unwrap();
    assert!(before.elapsed() < Duration::from_millis(500));

    // It is found again by itself.
    world.restart_east(obliging).await;
    let back = timeout(Duration::from_secs(8), async {
        let mut id = 4;
        loop {
            client.append(append("ledger-1", &[id])).await.unwrap();
            if world.regions_asked().last() == Some(&EAST) {
                break;
            }
            id += 1;
            sleep(Duration::from_millis(50)).await;
        }
    });
    back.await.unwrap();
}

#[tokio::test]
async fn a_home_that_no_request_has_the_time_to_dial_is_found_to_be_unreachable() {
    let world = World::start(obliging, passing_on);
    let mut hurried = config(&world.ca, &[world.east_addr, world.west_addr]);
    hurried.request_timeout = hurried.connect_timeout / 2;
    let client = Client::connect(hurried).await.unwrap();
    client.append(append("ledger-1", &[1])).await.unwrap();
    world.kill_east();
    sleep(Duration::from_millis(50)).await;
    let passed_on = timeout(Duration::from_secs(8), async {
        while client.append(append("ledger-1", &[2])).await.is_err() {}
    });
    passed_on.await.unwrap();
    assert_eq!(world.regions_asked(), [EAST, WEST]);
}

#[tokio::test]
async fn a_stream_that_was_moved_is_written_and_read_straight_at_its_new_home() {
    fn moved_away(_: RegionId, _: usize, request: &Request) -> Deed {
        Deed::Answer(match request {
            Request::ReadAtHome(_) => Response::ReadStream(Err(ReadError::NotHome { home: WEST })),
            Request::Append { request, .. } => Response::Append(Err(AppendError::NotHome {
                stream: request.stream.clone(),
                home: WEST,
                epoch: Epoch { major: 1, minor: 1 },
            })),
            other => panic!("{other:?} is not asked here"),
        })
    }
    fn at_home(region: RegionId, before: usize, request: &Request) -> Deed {
        match request {
            Request::ReadAtHome(read) => Deed::Answer(Response::ReadStream(Ok(page(read)))),
            _ => obliging(region, before, request),
        }
    }
    let world = World::start(moved_away, at_home);
    let client = world.client().await;
    let read = |stream: &str| StreamRead {
        stream: StreamId::new(stream).unwrap(),
        from: 0,
        direction: Direction::Forwards,
        limit: 10,
    };
    client
        .read_stream(read("ledger-1"), ReadAt::Home)
        .await
        .unwrap();
    assert_eq!(world.regions_asked(), [EAST, WEST]);
    client
        .read_stream(read("ledger-1"), ReadAt::Home)
        .await
        .unwrap();
    assert_eq!(world.regions_asked(), [EAST, WEST, WEST]);
    client.append(append("ledger-1", &[1])).await.unwrap();
    assert_eq!(world.regions_asked(), [EAST, WEST, WEST, WEST]);
    let id = StreamId::new("ledger-2").unwrap();
    assert_eq!(client.route(&id), meridian_conflict::Route::Home(EAST));
}

#[tokio::test]
async fn whoever_is_asked_tells_where_a_stream_was_created() {
    fn created_in_the_west(_: RegionId, _: usize, request: &Request) -> Deed {
        Deed::Answer(match request {
            Request::ReadAtHome(_) => Response::ReadStream(Err(ReadError::NotHome { home: WEST })),
            Request::Append { request, .. } => Response::Append(Ok(done(WEST, request))),
            other => panic!("{other:?} is not asked here"),
        })
    }
    fn at_home(region: RegionId, before: usize, request: &Request) -> Deed {
        match request {
            Request::ReadAtHome(read) => Deed::Answer(Response::ReadStream(Ok(page(read)))),
            _ => obliging(region, before, request),
        }
    }
    let world = World::start(created_in_the_west, at_home);
    let client = world.client_preferring("east").await;
    let id = |name| StreamId::new(name).unwrap();
    assert_eq!(
        client.route(&id("visit-1")),
        meridian_conflict::Route::Creator
    );
    client.append(append("visit-1", &[1])).await.unwrap();
    client.append(append("visit-1", &[2])).await.unwrap();
    assert_eq!(world.regions_asked(), [EAST, WEST]);
    let read = StreamRead {
        stream: id("visit-2"),
        from: 0,
        direction: Direction::Forwards,
        limit: 10,
    };
    client.read_stream(read, ReadAt::Home).await.unwrap();
    client.append(append("visit-2", &[3])).await.unwrap();
    assert_eq!(world.regions_asked(), [EAST, WEST, EAST, WEST, WEST]);
}

#[tokio::test]
async fn a_doubtful_multi_writer_append_stays_at_its_region_even_across_calls() {
    let world = World::start(|_, _, _| Deed::Die, obliging);
    let client = world.client_preferring("east").await;
    let until = Instant::now() + Duration::from_millis(1500);
    let request = append("cart-1", &[7]);
    let outcome = client.append_until(request.clone(), until).await;
    assert_eq!(code(&outcome), "indeterminate", "{outcome:?}");

    // Other appends go where they can be done; this one must not.
    let other = client.append(append("cart-1", &[8])).await.unwrap();
    assert_eq!(other.home, WEST);
    let until = Instant::now() + Duration::from_millis(500);
    let again = client.append_until(request.clone(), until).await;
    assert_eq!(code(&again), "indeterminate", "{again:?}");
    assert_eq!(world.regions_asked(), [EAST, WEST]);

    world.restart_east(obliging).await;
    let resolved = client.append(request).await.unwrap();
    assert_eq!(resolved.home, EAST);
}

#[tokio::test]
async fn no_answer_in_time_is_indeterminate_and_never_sent_is_unavailable() {
    let world = World::start(|_, _, _| Deed::Silence, |_, _, _| Deed::Silence);
    let client = world.client().await;
    let soon = || Instant::now() + Duration::from_millis(200);
    let silent = client.append_until(append("ledger-1", &[1]), soon()).await;
    assert_eq!(code(&silent), "indeterminate", "{silent:?}");

    client.close();
    let closed = client.append_until(append("ledger-1", &[2]), soon()).await;
    assert_eq!(code(&closed), "unavailable", "{closed:?}");
}

#[tokio::test]
async fn an_indeterminate_answer_is_asked_again_until_it_is_known() {
    fn unsure_twice(region: RegionId, before: usize, request: &Request) -> Deed {
        match before {
            0 | 1 => refusing(AppendError::Indeterminate {
                reason: "two regions were asked for, one answered".to_owned(),
            }),
            _ => obliging(region, before, request),
        }
    }
    let world = World::start(unsure_twice, obliging);
    let client = world.client().await;
    client.append(append("ledger-1", &[1])).await.unwrap();
    assert_eq!(world.regions_asked(), [EAST, EAST, EAST]);
    assert!(same_requests(&world.arrived()));
}

#[tokio::test]
async fn a_home_that_moved_is_followed() {
    fn moved(_: RegionId, _: usize, request: &Request) -> Deed {
        match request {
            Request::Append { request, .. } => refusing(AppendError::NotHome {
                stream: request.stream.clone(),
                home: WEST,
                epoch: Epoch { major: 1, minor: 1 },
            }),
            other => obliging(EAST, 0, other),
        }
    }
    let world = World::start(moved, obliging);
    let client = world.client().await;
    let appended = client.append(append("ledger-1", &[1])).await.unwrap();
    assert_eq!(appended.home, WEST);
}

#[tokio::test]
async fn a_conflict_comes_back_as_it_is_and_at_once() {
    fn conflict(_: RegionId, _: usize, _: &Request) -> Deed {
        refusing(AppendError::WrongExpectedRevision {
            stream: StreamId::new("ledger-1").unwrap(),
            expected: meridian_client::Expected::None,
            actual: Some(Revision(4)),
            events_since: vec![recorded(4)],
        })
    }
    let world = World::start(conflict, obliging);
    let client = world.client().await;
    let outcome = client.append(append("ledger-1", &[1])).await;
    assert_eq!(code(&outcome), "wrong_expected_revision");
    assert_eq!(world.regions_asked(), [EAST]);
}

#[tokio::test]
async fn what_can_never_be_done_is_refused_before_it_is_sent() {
    let world = World::start(obliging, obliging);
    let client = world.client().await;
    let outcome = client.append(append("ledger-1", &[])).await;
    assert_eq!(code(&outcome), "invalid");
    let outcome = client.append(append("ledger-1", &[1, 1])).await;
    assert_eq!(code(&outcome), "invalid");
    assert!(world.regions_asked().is_empty());
}

#[tokio::test]
async fn one_seed_of_many_is_enough() {
    let world = World::start(obliging, obliging);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let seeds = [silent.local_addr().unwrap(), world.west_addr];
    let before = Instant::now();
    let client = connect(&world.ca, &seeds).await;
    assert!(before.elapsed() < Duration::from_millis(900));
    assert_eq!(client.topology().members.len(), 2);

    // What it was not told, it learnt.
    let appended = client.append(append("ledger-1", &[1])).await.unwrap();
    assert_eq!(appended.home, EAST);
}

#[tokio::test]
async fn a_seed_must_be_of_its_region_and_a_mistake_is_not_waited_out() {
    let world = World::start(obliging, obliging);
    let mut config = config(&world.ca, &[]);
    let none = Client::connect(config.clone()).await.err().unwrap();
    assert!(matches!(none, ConnectError::NoSeeds));

    config.seeds = vec![Seed {
        addr: world.east_addr,
        region: Some("west".to_owned()),
    }];
    let before = Instant::now();
    let wrong = Client::connect(config).await.err().unwrap();
    assert!(matches!(wrong, ConnectError::Untrusted { .. }), "{wrong:?}");
    assert!(before.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_preference_for_a_region_that_does_not_exist_is_a_mistake() {
    let world = World::start(obliging, obliging);
    let mut config = config(&world.ca, &[world.east_addr]);
    config.prefer = Some("south".to_owned());
    let error = Client::connect(config).await.err().unwrap();
    assert!(error.to_string().contains("east, west"), "{error}");
}

#[tokio::test]
async fn a_new_certificate_is_shown_from_the_next_connection_on() {
    let world = World::start(obliging, obliging);
    let client = connect(&world.ca, &[world.east_addr]).await;
    // One that nobody accepts, so that its use shows.
    client.set_identity(Ca::new().client());
    client.append(append("ledger-1", &[1])).await.unwrap();
    world.kill_east();
    world.restart_east(obliging).await;
    let until = Instant::now() + Duration::from_millis(800);
    let refused = client.append_until(append("ledger-1", &[2]), until).await;
    assert_eq!(code(&refused), "unavailable", "{refused:?}");

    client.set_identity(world.ca.client());
    client.append(append("ledger-1", &[3])).await.unwrap();
}

fn recorded(revision: u64) -> RecordedEvent {
    let new = common::event(u128::from(revision));
    RecordedEvent {
        dot: Dot {
            origin: EAST,
            partition: PartitionId(0),
            position: Position(revision + 1),
        },
        timestamp: Timestamp(revision + 1),
        stream: StreamId::new("ledger-1").unwrap(),
        revision: Revision(revision),
        id: EventId(new.id.0),
        event_type: new.event_type,
        data: new.data,
        metadata: new.metadata,
    }
}

/// A stream of ten events.
fn page(read: &StreamRead) -> StreamPage {
    let limit = u64::from(read.limit);
    match read.direction {
        Direction::Forwards => {
            let to = (read.from + limit).min(10);
            StreamPage {
                events: (read.from..to).map(recorded).collect(),
                next: Some(to),
                end: to == 10,
            }
        }
        Direction::Backwards => {
            let from = read.from.min(9);
            let to = (from + 1).saturating_sub(limit);
            StreamPage {
                events: (to..=from).rev().map(recorded).collect(),
                next: to.checked_sub(1),
                end: to == 0,
            }
        }
    }
}

async fn revisions(client: &Client, from: u64, direction: Direction) -> Vec<u64> {
    let read = StreamRead {
        stream: StreamId::new("ledger-1").unwrap(),
        from,
        direction,
        limit: 3,
    };
    let mut pages = client.stream(read, ReadAt::Home);
    let mut revisions = Vec::new();
    while let Some(page) = pages.next_page().await.unwrap() {
        revisions.extend(page.events.iter().map(|event| event.revision.0));
    }
    revisions
}

#[tokio::test]
async fn a_stream_is_read_page_by_page_both_ways() {
    let world = World::start(obliging, obliging);
    let client = world.client_preferring("west").await;
    let forwards: Vec<_> = (2..10).collect();
    assert_eq!(revisions(&client, 2, Direction::Forwards).await, forwards);
    let backwards: Vec<_> = (0..10).rev().collect();
    let read = revisions(&client, StreamRead::LAST, Direction::Backwards).await;
    assert_eq!(read, backwards);
    assert!(world.regions_asked().iter().all(|region| *region == EAST));
}

#[tokio::test]
async fn a_read_goes_on_to_the_next_region_when_the_nearest_cannot_answer() {
    fn ill(_: RegionId, _: usize, _: &Request) -> Deed {
        Deed::Answer(Response::ReadStream(Err(ReadError::Unavailable {
            reason: "the range is damaged and being fetched".to_owned(),
            retry_after_ms: 10,
        })))
    }
    let world = World::start(ill, obliging);
    let client = world.client_preferring("east").await;
    let read = StreamRead {
        stream: StreamId::new("ledger-1").unwrap(),
        from: 0,
        direction: Direction::Forwards,
        limit: 100,
    };
    let page = client
        .read_stream(read.clone(), ReadAt::Nearest)
        .await
        .unwrap();
    assert_eq!(page.events.len(), 10);
    assert_eq!(world.regions_asked(), [EAST, WEST]);

    let nowhere = ReadAt::Region(RegionId(9));
    let unknown = client.read_stream(read, nowhere).await.unwrap_err();
    assert_eq!(unknown.code(), "not_found");
}

#[tokio::test]
async fn following_goes_on_where_it_stopped_when_the_region_comes_back() {
    // One event a page; the cursor is the next one's number.
    fn feed(_: RegionId, _: usize, request: &Request) -> Deed {
        let Request::Live(read) = request else {
            return obliging(EAST, 0, request);
        };
        let place: u64 = read.after.0.parse().unwrap_or(0);
        match place {
            3 => Deed::Die,
            _ => Deed::Answer(Response::Live(Ok(next_event(place)))),
        }
    }
    fn feed_on(_: RegionId, _: usize, request: &Request) -> Deed {
        let Request::Live(read) = request else {
            return obliging(EAST, 0, request);
        };
        let place: u64 = read.after.0.parse().unwrap_or(0);
        Deed::Answer(Response::Live(Ok(next_event(place))))
    }
    fn next_event(place: u64) -> LivePage {
        LivePage {
            // The filter wanted nothing of every other page.
            events: place
                .is_multiple_of(2)
                .then(|| recorded(place))
                .into_iter()
                .collect(),
            cursor: LiveCursor((place + 1).to_string()),
            at_end: false,
        }
    }
    let world = World::start(feed, obliging);
    let client = world.client_preferring("east").await;
    let read = LiveRead {
        after: LiveCursor::default(),
        filter: EventFilter::default(),
        limit: 1,
        wait_ms: 100,
    };
    let mut live = client.live(read, None);
    let mut seen = Vec::new();
    for _ in 0..2 {
        let page = live.next_page().await.unwrap();
        seen.extend(page.events.iter().map(|event| event.revision.0));
    }
    let (page, ()) = tokio::join!(live.next_page(), async {
        sleep(Duration::from_millis(100)).await;
        world.restart_east(feed_on).await;
    });
    seen.extend(page.unwrap().events.iter().map(|event| event.revision.0));
    assert_eq!(seen, [0, 2, 4]);
    assert_eq!(live.region(), Some(EAST));
    assert_eq!(live.cursor(), &LiveCursor("5".to_owned()));
    assert!(world.regions_asked().iter().all(|region| *region == EAST));
}

fn ten_events() -> StreamRead {
    StreamRead {
        stream: StreamId::new("ledger-1").unwrap(),
        from: 0,
        direction: Direction::Forwards,
        limit: 10,
    }
}

/// Behind every session, and says so.
fn behind(_: RegionId, _: usize, request: &Request) -> Deed {
    let Request::InSession { token, .. } = request else {
        return Deed::Silence;
    };
    Deed::Answer(Response::InSession {
        token: token.clone(),
        response: SessionResponse::ReadStream(Err(ReadError::Stale {
            reason: "west is far away".to_owned(),
            retry_after_ms: 1000,
        })),
    })
}

/// Up to date, and counts the requests in its tokens.
fn caught_up(region: RegionId, _: usize, request: &Request) -> Deed {
    let Request::InSession { token, request, .. } = request else {
        return Deed::Silence;
    };
    Deed::Answer(Response::InSession {
        token: SessionToken(format!("{}+{region}", token.0)),
        response: match request {
            SessionRequest::Append(request) => SessionResponse::Append(Ok(done(region, request))),
            SessionRequest::ReadStream(read) => SessionResponse::ReadStream(Ok(page(read))),
            other => panic!("nobody asks {other:?} here"),
        },
    })
}

#[tokio::test]
async fn a_session_goes_on_where_a_region_has_caught_up_and_is_stale_where_none_has() {
    let world = World::start(caught_up, behind);
    let client = world.client_preferring("west").await;
    let mut session = client.session();
    session.append(append("ledger-1", &[1])).await.unwrap();
    assert_eq!(session.token().0, format!("+{EAST}"));
    // The preferred region is behind, the other is not.
    let page = session.read_stream(ten_events(), ReadAt::Nearest).await;
    assert_eq!(page.unwrap().events.len(), 10);
    assert_eq!(world.regions_asked(), [EAST, WEST, EAST]);
    let token = session.token().clone();
    assert_eq!(token.0, format!("+{EAST}+{EAST}"));
    let began = Instant::now();
    let mut later = Session::resume(client, token.clone());
    let stale = later.read_stream(ten_events(), ReadAt::Region(WEST)).await;
    assert!(matches!(stale, Err(ReadError::Stale { .. })), "{stale:?}");
    assert_eq!(later.token(), &token, "what was not shown is not seen");
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "the region has waited already"
    );
}

#[tokio::test]
async fn a_node_that_knows_no_sessions_is_named() {
    let world = World::start(obliging, obliging);
    let mut session = world.client().await.session();
    let outcome = session.append(append("ledger-1", &[1])).await;
    assert_eq!(code(&outcome), "invalid");
    assert!(
        outcome
            .unwrap_err()
            .to_string()
            .contains("does not know sessions")
    );
    let outcome = session.read_stream(ten_events(), ReadAt::Home).await;
    assert!(
        outcome
            .unwrap_err()
            .to_string()
            .contains("does not know sessions")
    );
}

#[tokio::test]
async fn a_key_is_reserved_past_a_region_of_an_older_version() {
    fn knowing(region: RegionId, before: usize, request: &Request) -> Deed {
        match request {
            Request::Reserve { .. } => {
                Deed::Answer(Response::Reserve(Ok(ReservationAnswer::Free {
                    released: true,
                    home: region,
                })))
            }
            _ => obliging(region, before, request),
        }
    }
    let request = || ReservationRequest {
        key: ReservationKey {
            namespace: "email".to_owned(),
            key: "a@example.org".to_owned(),
        },
        owner: "customer-1".to_owned(),
        act: ReservationAct::Release,
        id: Uuid::from_u128(1),
    };
    let world = World::start(obliging, knowing);
    let client = world.client_preferring("east").await;
    let answer = client.carry_out(request()).await;
    assert!(
        matches!(answer, Ok(ReservationAnswer::Free { home: WEST, .. })),
        "{answer:?}"
    );
    assert!(world.regions_asked().contains(&EAST));
    let world = World::start(obliging, obliging);
    let refused = world.client().await.carry_out(request()).await;
    assert!(
        matches!(&refused, Err(error) if error.to_string().contains("does not know reservations")),
        "{refused:?}"
    );
}

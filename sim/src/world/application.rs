//! What runs beside each region's node: an application and its client.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use meridian_client::{AppendRequest, Client, ClientConfig, Durability, Expected, Resolver, Seed};
use meridian_event::{EventId, EventType, NewEvent, Revision, StreamId};
use meridian_replication::EndpointKeys;
use tokio::time::sleep;

use super::clock::elapsed;
use super::network::SimNetwork;
use super::trace::Trace;
use super::{FEDERATION, QUIC_PORT, node_ip, region_id};
use crate::history::{Call, History, Outcome};
use crate::load::Writer;
use crate::load::door::HttpWriter;
use crate::load::fencer::{Fencer, Orders};
use crate::load::follow::{Follower, Seen, Source};
use crate::load::import::ImportLane;
use crate::load::merged;
use crate::load::mover::Mover;
use crate::plan::Plan;
use crate::rng::Rng;

/// How soon everyone is answered at the highest level when all is well.
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);

/// One region's application: a client and its writers.
pub(super) struct Application {
    pub(super) plan: Plan,
    pub(super) index: usize,
    pub(super) identity: meridian_client::tls::Identity,
    pub(super) network: SimNetwork,
    pub(super) history: History,
    pub(super) trace: Trace,
    pub(super) over: Arc<AtomicBool>,
    pub(super) probe: Arc<AtomicBool>,
    pub(super) idle: Arc<AtomicUsize>,
    pub(super) source: Source,
    pub(super) followed: Vec<Seen>,
    pub(super) known: Arc<Mutex<BTreeMap<StreamId, Revision>>>,
    pub(super) orders: Orders,
}

impl Application {
    pub(super) async fn run(self) {
        let mut rng = Rng::part(self.plan.seed, &format!("application {}", self.index));
        let mut keys = EndpointKeys {
            stable: [0; 32],
            seed: [0; 32],
        };
        rng.fill(&mut keys.stable);
        rng.fill(&mut keys.seed);
        let endpoint = keys.endpoint_config();
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let socket = self.network.socket(any).expect("a free port");
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(endpoint, None, socket, runtime)
            .expect("a sound endpoint");
        let seeds = (0..self.plan.regions.len()).map(|index| Seed {
            addr: SocketAddr::new(node_ip(index), QUIC_PORT),
            region: None,
        });
        let config = ClientConfig {
            name: self.plan.regions[self.index].name.clone(),
            prefer: Some(self.plan.regions[self.index].name.clone()),
            request_timeout: Duration::from_millis(self.plan.load.timeout_ms),
            jitter_seed: rng.next_u64(),
            resolver: Resolver::new(|name| {
                Box::pin(async move { Err(std::io::Error::other(format!("no name {name}"))) })
            }),
            ..ClientConfig::new(endpoint, self.identity.clone(), FEDERATION, seeds.collect())
        };
        let client = loop {
            match Client::connect(config.clone()).await {
                Ok(client) => break client,
                Err(error) => {
                    let error = error.to_string();
                    self.trace.note(
                        elapsed(),
                        format_args!("client {} cannot connect: {error}", self.index),
                    );
                    sleep(Duration::from_millis(500)).await;
                }
            }
        };
        for seen in &self.followed {
            let follower = Follower {
                source: self.source.clone(),
                seen: seen.clone(),
                rng: Rng::new(rng.next_u64()),
                history: self.history.clone(),
                trace: self.trace.clone(),
            };
            tokio::spawn(follower.run());
        }
        let mut writer = || Writer {
            client: self.index,
            plan: self.plan.load.clone(),
            rng: Rng::new(rng.next_u64()),
            federation: client.clone(),
            history: self.history.clone(),
            trace: self.trace.clone(),
            over: Arc::clone(&self.over),
            known: Arc::clone(&self.known),
            merged: merged::streams(&self.plan.load),
            may_strand: self.plan.has_fences(),
        };
        let mut writers = Vec::new();
        for _ in 0..self.plan.load.writers {
            writers.push(tokio::spawn(writer().run()));
        }
        for _ in 0..self.plan.load.import_lanes {
            writers.push(tokio::spawn(ImportLane(writer()).run()));
        }
        let regions = self.plan.regions.iter().enumerate();
        let names: Vec<_> = regions
            .map(|(index, region)| (region.name.clone(), region_id(index)))
            .collect();
        if self.plan.load.moves_ms > 0 {
            let regions = self.plan.regions.iter();
            let mover = Mover {
                plan: self.plan.load.clone(),
                rng: Rng::part(self.plan.seed, &format!("mover {}", self.index)),
                source: self.source.clone(),
                regions: regions.map(|region| region.name.clone()).collect(),
                trace: self.trace.clone(),
                over: Arc::clone(&self.over),
            };
            writers.push(tokio::spawn(mover.run()));
        }
        if self.plan.has_fences() {
            let fencer = Fencer {
                orders: self.orders.clone(),
                rng: Rng::part(self.plan.seed, &format!("fencer {}", self.index)),
                source: self.source.clone(),
                trace: self.trace.clone(),
                over: Arc::clone(&self.over),
            };
            tokio::spawn(fencer.run());
        }
        for _ in 0..self.plan.load.http_writers {
            let http = HttpWriter {
                writer: writer(),
                source: self.source.clone(),
                names: names.clone(),
                floors: BTreeMap::new(),
            };
            writers.push(tokio::spawn(http.run()));
        }
        for writer in writers {
            writer.await.expect("a writer ends in order");
        }
        self.idle.fetch_add(1, Ordering::Relaxed);
        while !self.probe.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(50)).await;
        }
        for number in 0..6 {
            let stream = StreamId::new(&format!("probe-{}{number}", self.index));
            let request = AppendRequest {
                stream: stream.expect("a sound name"),
                expected: Expected::None,
                durability: Durability::All,
                events: vec![NewEvent {
                    id: EventId::from_random(rng.bytes16()),
                    event_type: EventType::new("Probed").expect("a sound type"),
                    data: Bytes::from_static(b"{}"),
                    metadata: Bytes::new(),
                }],
            };
            let call = self.history.begin(Call {
                client: self.index,
                stream: request.stream.clone(),
                expected: request.expected,
                durability: request.durability,
                ids: request.events.iter().map(|event| event.id).collect(),
                invoked: elapsed(),
                returned: None,
                outcome: Outcome::Unknown,
            });
            // A client's own patience may be short; the federation's time to answer is not.
            let until = elapsed() + ANSWERS_WITHIN;
            let outcome = loop {
                match client.append(request.clone()).await {
                    Ok(appended) => break Outcome::Written(appended),
                    Err(_) if elapsed() < until => sleep(Duration::from_millis(100)).await,
                    Err(error) => {
                        self.history.broken(format!(
                            "heals: all is well, and client {} is told: {error}",
                            self.index
                        ));
                        break Outcome::Unknown;
                    }
                }
            };
            self.history.end(call, elapsed(), outcome);
        }
        self.idle.fetch_add(1, Ordering::Relaxed);
        std::future::pending().await
    }
}

//! What each host is given, from the plan.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meridian_client::Limits;
use meridian_conflict::{CategoryPolicy, HomeRule, Isolation, Mode};
use meridian_node::config::{MemberConfig, NodeConfig};

use super::certificates::Certificates;
use super::connections::Connections;
use super::network::{Road, SimNetwork, Troubles};
use super::trace::Trace;
use super::{FEDERATION, HTTP_PORT, QUIC_PORT, client_ip, node_ip, region_id};
use crate::load::{FENCED, HOMED, SHARED, merged};
use crate::plan::Plan;
use crate::rng::Rng;

pub(super) fn network(
    plan: &Plan,
    index: usize,
    here: IpAddr,
    part: &str,
    trace: &Trace,
    calm: &Arc<AtomicBool>,
    troubles: &Troubles,
) -> SimNetwork {
    let mut roads = BTreeMap::new();
    for link in &plan.links {
        let other = match (link.a == index, link.b == index) {
            (true, _) => link.b,
            (_, true) => link.a,
            _ => continue,
        };
        let road = Road {
            loss_ppm: link.loss_ppm,
            duplicate_ppm: link.duplicate_ppm,
            reorder_ppm: link.reorder_ppm,
            hold_ms: link.latency_ms * 2,
        };
        roads.insert(node_ip(other), road);
        roads.insert(client_ip(other), road);
    }
    let rng = Rng::part(plan.seed, &format!("network {part} {index}"));
    SimNetwork {
        here,
        roads: Arc::new(roads),
        troubles: Arc::clone(troubles),
        rng: Arc::new(Mutex::new(rng)),
        trace: trace.clone(),
        calm: Arc::clone(calm),
        connections: Connections::default(),
    }
}

pub(super) fn node_config(
    plan: &Plan,
    index: usize,
    members: &[MemberConfig],
    certificates: &Certificates,
) -> NodeConfig {
    let any = Ipv4Addr::UNSPECIFIED;
    let shared = CategoryPolicy {
        mode: Mode::Lww,
        home: HomeRule::Hash,
    };
    let created = CategoryPolicy {
        mode: Mode::Home,
        home: HomeRule::Creator,
    };
    let homed = [HOMED, FENCED].map(|category| (category.to_owned(), created.clone()));
    let mut categories = BTreeMap::from([(SHARED.to_owned(), shared)]);
    categories.extend(plan.load.created.then_some(homed).into_iter().flatten());
    let fenced = (FENCED.to_owned(), Isolation::Fenced);
    let merged = merged::CATEGORIES
        .iter()
        .filter(|_| plan.load.merged_percent > 0);
    let policies = merged.clone().map(|(name, kind)| {
        let policy = CategoryPolicy {
            mode: kind.mode(),
            home: HomeRule::Hash,
        };
        ((*name).to_owned(), policy)
    });
    categories.extend(policies);
    let kinds = merged.map(|(name, kind)| ((*name).to_owned(), *kind));
    let has_fenced = plan.load.fenced_percent > 0;
    NodeConfig {
        federation: FEDERATION,
        region: region_id(index),
        partitions: plan.partitions,
        members: members.to_vec(),
        data: "data".into(),
        listen_http: SocketAddr::new(any.into(), HTTP_PORT),
        listen_quic: SocketAddr::new(any.into(), QUIC_PORT),
        certificates: certificates.of_region(&plan.regions[index].name),
        session_key: Some(certificates.session_key()),
        categories,
        isolations: has_fenced.then_some(fenced).into_iter().collect(),
        kinds: kinds.collect(),
        limits: Limits::default(),
        append_timeout: Duration::from_secs(10),
        max_offset: Duration::from_millis(500),
        failover_after: (plan.failover_ms > 0).then(|| Duration::from_millis(plan.failover_ms)),
        segment_bytes: plan.segment_kib << 10,
    }
}

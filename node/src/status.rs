//! What a node says about itself and its federation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_clock::{LogId, Position, RegionId, SkewGuard, Timestamp, VersionVector};
use meridian_replication::link::{AlarmKind, PartitionMarks};
use meridian_store::Health;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Node;
use crate::at_stake::{AtStake, at_stake};
use crate::blame::{self, Facts, HeldBack, HeldTier};
use crate::homes::Hold;
use crate::metrics::{Alarm, Blamed, Direction, Link, Log, Partition, Peer, Settling, Tier};
use crate::readmission::Readmission;

/// A region of the federation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberStatus {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Where its node answers HTTP.
    pub http: String,
    /// Where its node takes links and clients over QUIC.
    pub quic: String,
}

/// One origin log as it is held here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogStatus {
    /// The name of the region that writes it.
    pub origin: String,
    /// The partition.
    pub partition: u16,
    /// The last position that is durable here.
    pub position: u64,
    /// The last timestamp that is durable here, decimal.
    pub timestamp: String,
    /// For each other region that said so, the last position that is durable there.
    pub held_by: Vec<(String, u64)>,
}

/// The talk with one other region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LinkStatus {
    /// The other region's name.
    pub region: String,
    /// We receive from it.
    pub receiving: bool,
    /// It receives from us.
    pub sending: bool,
    /// Milliseconds since it was last heard; `None` if never.
    pub last_heard_ms: Option<u64>,
    /// The connection's round-trip time in milliseconds.
    pub rtt_ms: Option<f64>,
    /// How far its wall clock is ahead of ours, in milliseconds.
    pub clock_offset_ms: Option<f64>,
    /// How many events of its own logs it holds that are not yet durable here.
    pub lag_events: u64,
    /// What stands between the two regions agreeing, if anything.
    pub alarm: Option<String>,
    /// Why nothing can be received from it now, if nothing can.
    #[serde(default)]
    pub last_error: Option<String>,
}

/// How far one partition's order is settled here, and who holds it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartitionWatermarks {
    /// The partition.
    pub partition: u16,
    /// Nothing at or below this timestamp can still arrive here, decimal.
    pub stable: String,
    /// How far that is behind this node's clock.
    pub stable_lag_ms: u64,
    /// The region whose promise is the lowest.
    pub stable_held_by: String,
    /// How long ago that promise last rose.
    pub stable_held_for_ms: u64,
    /// Every member region has settled the order up to this timestamp, decimal.
    #[serde(rename = "final")]
    pub finals: String,
    /// How far that is behind this node's clock.
    pub final_lag_ms: u64,
    /// The region whose own `stable` is the lowest.
    pub final_held_by: String,
    /// How long ago that was last heard to rise.
    pub final_held_for_ms: u64,
    /// Why neither rises any more, if somebody must look.
    pub stopped: Option<String>,
}

/// How far the one order is settled here: as far as in the slowest partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Watermarks {
    /// Nothing at or below this timestamp can still arrive here, decimal.
    pub stable: String,
    /// How far that is behind this node's clock.
    pub stable_lag_ms: u64,
    /// Every member region has settled the order up to this timestamp, decimal.
    #[serde(rename = "final")]
    pub finals: String,
    /// How far that is behind this node's clock.
    pub final_lag_ms: u64,
    /// The partitions one by one.
    pub partitions: Vec<PartitionWatermarks>,
    /// Who holds either back by more than a second.
    #[serde(default)]
    pub held_back: Vec<HeldBack>,
}

/// What the regions decide together, as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ControlStatus {
    /// The region that leads; `None` when none is known to.
    pub leader: Option<String>,
    /// How many leaders there were.
    pub term: u64,
    /// The regions that vote.
    pub voters: Vec<String>,
    /// How many changes were decided, as far as this node knows.
    pub decisions: u64,
    /// How many streams were ever moved one by one.
    pub moved: u64,
    /// How many of them are being moved.
    pub moving: u64,
    /// The regions that are home to nothing.
    pub drained: Vec<String>,
    /// The regions that have yet to open what a drained or resumed region moves to them.
    pub opening: Vec<String>,
    /// The regions that are fenced: the others go on without them, or are about to.
    #[serde(default)]
    pub fenced: Vec<String>,
    /// The regions that a fence under way waits for.
    #[serde(default)]
    pub fence_waits_for: Vec<String>,
    /// The regions that were fenced, or are new, and are becoming members.
    #[serde(default)]
    pub joining: Vec<String>,
    /// The regions that are no members yet, and take over what the others write.
    #[serde(default)]
    pub learners: Vec<String>,
    /// The regions that are going for good.
    #[serde(default)]
    pub leaving: Vec<String>,
    /// The regions that have gone for good.
    #[serde(default)]
    pub left: Vec<String>,
    /// What is wrong, if something is.
    pub error: Option<String>,
}

/// The answer of `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// This node's region.
    pub region: String,
    /// The federation's id.
    pub federation: String,
    /// The build's version.
    pub version: String,
    /// The federation's partition count.
    pub partitions: u16,
    /// All regions.
    pub members: Vec<MemberStatus>,
    /// Links to every other region.
    pub links: Vec<LinkStatus>,
    /// Every origin log held here.
    pub logs: Vec<LogStatus>,
    /// How far the one order is settled here.
    pub watermarks: Watermarks,
    /// What the regions decide together.
    #[serde(default)]
    pub control: ControlStatus,
    /// What would strand if this region vanished now.
    #[serde(default)]
    pub at_stake: AtStake,
    /// What became of the events that this region had acknowledged alone when it was fenced, since the start.
    #[serde(default)]
    pub readmission: Readmission,
    /// How many events are durable here.
    pub events: u64,
    /// Why appends are refused now, if they are.
    pub refusing: Option<String>,
    /// Ranges of the log that are damaged and not served.
    pub damaged: Vec<String>,
}

/// One origin log's content in brief: equal position and chain mean equal bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DigestEntry {
    /// The name of the region that writes it.
    pub origin: String,
    /// The partition.
    pub partition: u16,
    /// The last position that is durable here.
    pub position: u64,
    /// The chain hash up to there, hexadecimal.
    pub chain: String,
}

/// Region names for everything that is shown to people.
pub(crate) struct Names(pub(crate) BTreeMap<RegionId, String>);

impl Names {
    pub(crate) fn id_of(&self, name: &str) -> Option<RegionId> {
        let named = self.0.iter().find(|(_, known)| *known == name);
        named.map(|(region, _)| *region)
    }

    pub(crate) fn of(&self, region: RegionId) -> String {
        self.0
            .get(&region)
            .cloned()
            .unwrap_or_else(|| format!("region-{region}"))
    }
}

/// What `node` says of itself now.
pub(crate) fn of(node: &Node) -> NodeStatus {
    let config = node.config();
    let names = node.names();
    let held = node.appends().held.borrow().clone();
    let logs = node.store().heads().into_iter().map(|head| LogStatus {
        origin: names.of(head.log.origin),
        partition: head.log.partition.0,
        position: head.position.0,
        timestamp: head.timestamp.to_string(),
        held_by: held
            .iter()
            .filter(|(region, _)| **region != config.region)
            .map(|(region, vector)| (names.of(*region), vector.get(head.log).0))
            .collect(),
    });
    let links = node.links().peers().into_iter().map(|peer| LinkStatus {
        region: names.of(peer.region),
        receiving: peer.connected_out,
        sending: peer.connected_in,
        last_heard_ms: peer.last_heard.map(millis),
        rtt_ms: peer.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
        clock_offset_ms: peer.clock_offset_nanos.map(|nanos| nanos as f64 / 1e6),
        lag_events: peer.lag_positions,
        alarm: peer.alarms.first().cloned().or(peer.last_error.clone()),
        last_error: peer.last_error,
    });
    let members = config.members.iter().map(|member| MemberStatus {
        id: member.id.0,
        name: member.name.clone(),
        http: member.http.to_string(),
        quic: member.quic.to_string(),
    });
    NodeStatus {
        region: names.of(config.region),
        federation: config.federation.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        partitions: config.partitions,
        members: members.collect(),
        links: links.collect(),
        logs: logs.collect(),
        watermarks: watermarks(node),
        control: control(node),
        at_stake: at_stake(node),
        readmission: node.conflicts().readmission(),
        events: node.store().stats().events,
        refusing: node.ready().err(),
        damaged: node
            .store()
            .damaged()
            .iter()
            .map(ToString::to_string)
            .collect(),
    }
}

/// How far the order is settled at `node` now.
fn watermarks(node: &Node) -> Watermarks {
    let names = node.names();
    let now = node.hlc().physical_now();
    let lag_ms = |mark: Timestamp| millis(now.after(mark));
    let partitions = node.links().watermarks();
    let lowest = |of: fn(&PartitionMarks) -> Timestamp| partitions.iter().map(of).min();
    let stable = lowest(|marks| marks.stable).unwrap_or_default();
    let finals = lowest(|marks| marks.finals).unwrap_or_default();
    Watermarks {
        stable: stable.to_string(),
        stable_lag_ms: lag_ms(stable),
        finals: finals.to_string(),
        final_lag_ms: lag_ms(finals),
        partitions: partitions
            .into_iter()
            .map(|marks| PartitionWatermarks {
                partition: marks.partition.0,
                stable: marks.stable.to_string(),
                stable_lag_ms: lag_ms(marks.stable),
                stable_held_by: names.of(marks.stable_held_by.region),
                stable_held_for_ms: millis(marks.stable_held_by.silent_for),
                finals: marks.finals.to_string(),
                final_lag_ms: lag_ms(marks.finals),
                final_held_by: names.of(marks.finals_held_by.region),
                final_held_for_ms: millis(marks.finals_held_by.silent_for),
                stopped: marks.stopped,
            })
            .collect(),
        held_back: held_back(node),
    }
}

fn control(node: &Node) -> ControlStatus {
    let names = node.names();
    let standing = node.consensus().standing();
    let federation = node.homes().federation();
    let others = federation.foundation.as_ref();
    let differs = others.is_some_and(|it| it.categories != node.config().categories);
    let moving = federation.moved.values().filter(|moved| !moved.opened);
    let rules = federation.rules.iter();
    let opening = rules.flat_map(|it| &(&it.gainers - &it.opened) - &it.voided);
    let opening: BTreeSet<RegionId> = opening.collect();
    let named = |regions: BTreeSet<RegionId>| regions.into_iter().map(|it| names.of(it)).collect();
    let is_joining = |region: &RegionId| federation.out[region].joining.is_some();
    let out = federation.out.keys().copied();
    let out = out.filter(|region| !federation.left.contains(region));
    let (joining, fenced) = out.partition(is_joining);
    let listed = names.0.keys().copied();
    let learners = listed.filter(|region| !federation.knows(*region)).collect();
    let lacking = federation.lacking(&names.0).map(|it| it.reason);
    let gone = federation.gone();
    let leaving = federation.leaving.keys().chain(&federation.left).copied();
    let leaving = leaving.filter(|region| !gone.contains(region)).collect();
    let running = federation.running_fence();
    ControlStatus {
        leader: standing.leader.map(|leader| names.of(leader)),
        term: standing.term,
        voters: standing.voters.iter().map(|it| names.of(*it)).collect(),
        decisions: federation.version,
        moved: federation.moved.len() as u64,
        moving: moving.count() as u64,
        drained: named(federation.drained()),
        opening: named(opening),
        fenced: named(fenced),
        fence_waits_for: running.map_or(Vec::new(), |fence| named(fence.waits_for())),
        joining: named(joining),
        learners: named(learners),
        leaving: named(leaving),
        left: named(gone),
        error: lacking.or(standing.error).or_else(|| {
            differs.then(|| {
                "the categories in this node's configuration are not those that the federation was \
                 founded on; make them the same in every region"
                    .to_owned()
            })
        }),
    }
}

fn held_back(node: &Node) -> Vec<HeldBack> {
    let links = node.links();
    blame::held_back(&Facts {
        me: node.config().region,
        now: node.hlc().physical_now(),
        names: node.names(),
        marks: &links.watermarks(),
        peers: &links.peers(),
        waiting: &links.waiting(),
        disagreements: &links.disagreements(),
        own_clock: node.hlc().skewed(),
        refusing: node.ready().err(),
        clock_allowed: SkewGuard::allowed_of(node.config().max_offset),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Brings `node`'s gauges up to date.
pub(crate) fn refresh_metrics(node: &Node) {
    let (metrics, names, stats) = (node.metrics(), node.names(), node.store().stats());
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    metrics.store_bytes.set(count(stats.bytes));
    metrics.store_segments.set(count(stats.segments));
    metrics.store_events.set(count(stats.events));
    metrics.damaged_ranges.set(count(stats.damaged));
    raise_to(&metrics.blocks_committed, stats.blocks_committed);
    raise_to(&metrics.commits, stats.fsyncs);
    raise_to(&metrics.syncs, stats.fsyncs);
    metrics
        .store_writable
        .set((node.store().health() == Health::Writable).into());
    metrics.ready.set(node.ready().is_ok().into());
    metrics
        .clock_trusted
        .set(node.hlc().skewed().is_none().into());
    let control = control(node);
    metrics.control_led.set(control.leader.is_some().into());
    metrics.control_decisions.set(count(control.decisions));
    let opening = control.opening.len() as u64;
    let fenced = control.fenced.len() + control.joining.len();
    metrics.regions_fenced.set(count(fenced as u64));
    let states = node.merging().size();
    metrics.merged_states.set(count(states.hot as u64));
    metrics
        .merged_state_bytes
        .set(count(states.hot_bytes as u64));
    metrics.merged_snapshots.set(count(states.kept as u64));
    metrics.merged_snapshot_bytes.set(count(states.kept_bytes));
    let at_stake = at_stake(node);
    metrics.at_stake_events.set(count(at_stake.events));
    let at_stake_for = Duration::from_millis(at_stake.for_ms);
    metrics.at_stake_seconds.set(at_stake_for.as_secs_f64());
    metrics.homes_moving.set(count(control.moving + opening));
    metrics
        .certificate_expiry_seconds
        .set(count(node.certificate_expires().as_secs()));
    for (partition, sequencer) in (0..).zip(&node.appends().sequencers) {
        let depth = metrics.queue_depth.get_or_create(&Partition { partition });
        depth.set(count(sequencer.waiting() as u64));
    }
    let heads = node.store().heads();
    for head in &heads {
        let log = Log {
            origin: names.of(head.log.origin),
            partition: head.log.partition.0,
        };
        metrics
            .log_position
            .get_or_create(&log)
            .set(count(head.position.0));
    }
    let own = heads
        .iter()
        .filter(|head| head.log.origin == node.config().region);
    let own: Vec<_> = own.map(|head| (head.log, head.position)).collect();
    let held = node.appends().held.borrow().clone();
    let gone = node.homes().federation().gone();
    for (region, events) in behind(&held, &own) {
        let events = match gone.contains(&region) {
            true => 0,
            false => events,
        };
        if region != node.config().region {
            let peer = Peer {
                peer: names.of(region),
            };
            metrics
                .unreplicated_events
                .get_or_create(&peer)
                .set(count(events));
        }
    }
    for peer in node.links().peers() {
        let label = Peer {
            peer: names.of(peer.region),
        };
        for (direction, up) in [
            (Direction::inbound, peer.connected_out),
            (Direction::outbound, peer.connected_in),
        ] {
            let link = Link {
                peer: label.peer.clone(),
                direction,
            };
            metrics.link_up.get_or_create(&link).set(up.into());
        }
        if let Some(rtt) = peer.rtt {
            metrics
                .link_rtt_seconds
                .get_or_create(&label)
                .set(rtt.as_secs_f64());
        }
        if let Some(ago) = peer.last_heard {
            metrics
                .link_silence_seconds
                .get_or_create(&label)
                .set(ago.as_secs_f64());
        }
        if let Some(offset) = peer.clock_offset_nanos {
            metrics
                .clock_offset_seconds
                .get_or_create(&label)
                .set(offset as f64 / 1e9);
        }
        for subscription in peer.subscriptions {
            let origin = names.of(subscription.log.origin);
            let log = Log {
                origin,
                partition: subscription.log.partition.0,
            };
            let lag = count(subscription.lag_positions);
            metrics.replication_lag_events.get_or_create(&log).set(lag);
            let seconds = subscription.lag.as_secs_f64();
            metrics
                .replication_lag_seconds
                .get_or_create(&log)
                .set(seconds);
        }
    }
    let left = match node.homes().lease() {
        Some(Hold::Held { left }) => Some(left),
        Some(Hold::Lapsed { .. }) | None => None,
    };
    metrics.lease_held.set(i64::from(left.is_some()));
    let left = left.unwrap_or_default().as_secs_f64();
    metrics.lease_left_seconds.set(left);
    let now = node.hlc().physical_now();
    for marks in node.links().watermarks() {
        for (tier, mark) in [(Tier::Stable, marks.stable), (Tier::Final, marks.finals)] {
            let label = Settling {
                tier,
                partition: marks.partition.0,
            };
            metrics
                .watermark_lag_seconds
                .get_or_create(&label)
                .set(now.after(mark).as_secs_f64());
        }
    }
    metrics.watermark_held_by_seconds.clear();
    for held in held_back(node) {
        let label = Blamed {
            tier: match held.tier {
                HeldTier::Stable => Tier::Stable,
                HeldTier::Final => Tier::Final,
            },
            region: held.region,
        };
        let level = metrics.watermark_held_by_seconds.get_or_create(&label);
        // A region may be named for several reasons.
        let seconds = Duration::from_millis(held.for_ms).as_secs_f64();
        level.set(level.get().max(seconds));
    }
    crate::projections::refresh_metrics(node);
    crate::consumers::refresh_metrics(node);
    metrics.alarms.clear();
    for _ in node.links().disagreements() {
        let label = Alarm {
            alarm: "disagreed".to_owned(),
        };
        metrics.alarms.get_or_create(&label).inc();
    }
    for alarm in node.links().alarms() {
        let label = Alarm {
            alarm: alarm_name(&alarm.kind).to_owned(),
        };
        metrics.alarms.get_or_create(&label).inc();
    }
}

// The store counts since it was opened, and so does the counter.
// How far `held` says that each other region is behind `heads`, in events.
fn behind(
    held: &BTreeMap<RegionId, VersionVector>,
    heads: &[(LogId, Position)],
) -> BTreeMap<RegionId, u64> {
    held.iter()
        .map(|(region, vector)| {
            let missing = heads
                .iter()
                .map(|(log, at)| at.0.saturating_sub(vector.get(*log).0));
            (*region, missing.sum())
        })
        .collect()
}

fn raise_to(counter: &prometheus_client::metrics::counter::Counter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

fn alarm_name(kind: &AlarmKind) -> &'static str {
    match kind {
        AlarmKind::Diverged { .. } => "diverged",
        AlarmKind::LaterIncarnation { .. } => "later_incarnation",
        AlarmKind::HoldsMoreOfOurs { .. } => "holds_more_of_ours",
    }
}

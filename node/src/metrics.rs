//! What a node counts and measures, for `/metrics`.
//!
//! [`Metrics`] holds one typed handle per metric. Core code calls the handles where something
//! happens; what can be asked for at any time (positions, lag, links) is set just before a scrape.
//!
//! Not here: deciding what is an alarm, and the HTTP route. Names carry the prefix `meridian_`, base
//! units (seconds, bytes) and, for counters, the suffix `_total`, which the encoder adds.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

/// A gauge of a measured quantity, such as seconds.
pub type Level = Gauge<f64, AtomicU64>;

/// How an append ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(
    non_camel_case_types,
    reason = "the variants are the label's values, and those are the API's error codes"
)]
pub enum AppendOutcome {
    /// It is durable at the level that was asked for.
    appended,
    /// Its events were recorded before; it was answered as the first time.
    repeated,
    /// Someone else wrote first.
    wrong_expected_revision,
    /// Another region orders the stream.
    not_home,
    /// Nothing was written.
    unavailable,
    /// It may be written.
    indeterminate,
    /// The request was refused as it stands.
    invalid,
    /// The request was larger than the limits.
    too_large,
    /// As things stood here, it could not be done.
    conflict,
}

/// Label: how an append ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// The outcome.
    pub outcome: AppendOutcome,
}

/// How a stranded event came home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variants are the label's values")]
pub enum ReadmittedAs {
    /// At the place in its stream that it had.
    spliced,
    /// In a stream that every region writes.
    applied,
    /// In a conflict record.
    conflict,
    /// It was there already.
    already,
}

/// Label: how a stranded event came home.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Readmitted {
    /// How.
    pub outcome: ReadmittedAs,
}

/// How a conflict was resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variants are the label's values")]
pub enum ResolvedAs {
    /// By policy: a later write won.
    superseded,
    /// A write that had lost was written again.
    reinstated,
    /// Stranded events were appended to their stream.
    rebased,
    /// What somebody made of stranded events was.
    merged,
    /// They were given up.
    discarded,
}

/// Labels: how a conflict was resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Resolution {
    /// The stream's category.
    pub category: String,
    /// Its policy: `home` or `lww`.
    pub policy: String,
    /// What became of it.
    pub outcome: ResolvedAs,
}

/// Label: a partition of this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Partition {
    /// Its number.
    pub partition: u16,
}

/// Labels: one origin log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Log {
    /// The name of the region that writes it.
    pub origin: String,
    /// Its partition.
    pub partition: u16,
}

/// Label: a region that wrote events first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Origin {
    /// Its name.
    pub origin: String,
}

/// Label: a region that this node talks with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Peer {
    /// Its name.
    pub peer: String,
}

/// Labels: one read model of a projection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReadModel {
    /// The projection.
    pub projection: String,
    /// `active`, `candidate` or `previous`.
    pub role: String,
}

/// Labels: one consumer group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConsumerGroup {
    /// The group.
    pub group: String,
}

/// Which way events go over a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variants are the label's values")]
pub enum Direction {
    /// From the peer to us.
    inbound,
    /// From us to the peer.
    outbound,
}

/// How settled the order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Nothing can still come before it here.
    Stable,
    /// Every member region has come as far.
    Final,
}

// Written out, for `final` is a word of Rust's own and cannot name a variant.
impl EncodeLabelValue for Tier {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let name = match self {
            Self::Stable => "stable",
            Self::Final => "final",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

/// Labels: one watermark of one partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Settling {
    /// Which watermark.
    pub tier: Tier,
    /// The partition.
    pub partition: u16,
}

/// Labels: a region that holds a watermark back.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Blamed {
    /// Which watermark.
    pub tier: Tier,
    /// The region's name.
    pub region: String,
}

/// Labels: one of the two links with a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Link {
    /// The peer's region.
    pub peer: String,
    /// Which way events go over it.
    pub direction: Direction,
}

/// Label: what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Alarm {
    /// A stable word for it, such as `divergence` or `clock_skew`.
    pub alarm: String,
}

/// Labels: one kind of HTTP request and how it was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HttpRequest {
    /// The request's method, `OTHER` for one that HTTP does not define.
    pub method: &'static str,
    /// The route's pattern, never the path itself: a stream's name would make a series each.
    pub route: String,
    /// The answer's status code.
    pub status: u16,
}

/// Label: one HTTP route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HttpRoute {
    /// The route's pattern.
    pub route: String,
}

/// Makes the latency histograms of a family.
#[derive(Clone, Copy, Debug)]
pub struct Latencies;

impl MetricConstructor<Histogram> for Latencies {
    fn new_metric(&self) -> Histogram {
        latencies()
    }
}

/// 100 µs (a commit takes about 200 µs) to 26 s, doubling.
fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 19))
}

/// Every metric of one node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,

    /// Appends that were answered, by outcome.
    pub appends: Family<Outcome, Counter>,
    /// From an append's arrival to its answer.
    pub append_seconds: Histogram,
    /// Appends that wait for their answer.
    pub appends_in_flight: Gauge,
    /// Events that this region appended.
    pub events_appended: Counter,
    /// Bytes of data and metadata that this region appended.
    pub bytes_appended: Counter,
    /// Whether this region holds its lease, under which it orders streams of fenced categories.
    pub lease_held: Gauge,
    /// How long it holds it if nobody answers any more.
    pub lease_left_seconds: Level,
    /// Appends that were sent on to their home.
    pub appends_forwarded: Family<Peer, Counter>,
    /// Appends that wait for a partition's sequencer.
    pub queue_depth: Family<Partition, Gauge>,

    /// Commit rounds: one write and one sync each.
    pub commits: Counter,
    /// From handing a block of this region to the log to its durability.
    pub commit_seconds: Histogram,
    /// Blocks made durable, of own and of other origins.
    pub blocks_committed: Counter,
    /// Calls that made the disk durable.
    pub syncs: Counter,
    /// Whether the store takes writes (1), or failed one and refuses all since (0).
    pub store_writable: Gauge,
    /// Bytes that segments and their indexes take up.
    pub store_bytes: Gauge,
    /// Segments of the physical log.
    pub store_segments: Gauge,
    /// Events held, of all origins.
    pub store_events: Gauge,
    /// Ranges of blocks that cannot be read now.
    pub damaged_ranges: Gauge,
    /// Whether the control plane has a leader (1), as far as this node knows, or not (0).
    pub control_led: Gauge,
    /// The number of the last change that the control plane decided, as far as this node knows.
    pub control_decisions: Gauge,
    /// Streams that are being moved one by one, and regions that have yet to open what moved there.
    pub homes_moving: Gauge,
    /// Regions that are fenced, or are becoming members again.
    pub regions_fenced: Gauge,
    /// States of merged streams that are in memory: what is held and what is settled count apart.
    pub merged_states: Gauge,
    /// What they take there, about.
    pub merged_state_bytes: Gauge,
    /// States that are kept in files.
    pub merged_snapshots: Gauge,
    /// The bytes of these files.
    pub merged_snapshot_bytes: Gauge,
    /// How often this region asked another one for rights to a stock.
    pub rights_asked: Counter,
    /// How often it was given some.
    pub rights_given: Counter,
    /// Takes, or several of one stock that waited together, for which there were none to be had.
    pub rights_refused: Counter,
    /// Events that no other region holds: they would strand if this one vanished now.
    pub at_stake_events: Gauge,
    /// How long ago the oldest of them was written.
    pub at_stake_seconds: Level,

    /// Conflict records that wait for a decision, or for it to be carried out.
    pub conflicts_open: Gauge,
    /// Conflicts that were resolved through this node: by somebody, or by their category's policy.
    pub resolutions: Family<Resolution, Counter>,
    /// Stranded events that were brought home, by how.
    pub events_readmitted: Family<Readmitted, Counter>,

    /// Whether a link with a peer stands (1) or not (0).
    pub link_up: Family<Link, Gauge>,
    /// Round-trip time of a link.
    pub link_rtt_seconds: Family<Peer, Level>,
    /// How long ago a peer was last heard.
    pub link_silence_seconds: Family<Peer, Level>,
    /// How far a peer's clock is ahead of ours.
    pub clock_offset_seconds: Family<Peer, Level>,
    /// Whether this node's clock may give out stamps (1) or is too far off (0).
    pub clock_trusted: Gauge,
    /// Position up to which an origin log is durable here.
    pub log_position: Family<Log, Gauge>,
    /// Positions that an origin log is known to be ahead of what is durable here.
    pub replication_lag_events: Family<Log, Gauge>,
    /// How long ago an origin log was last known complete here.
    pub replication_lag_seconds: Family<Log, Level>,
    /// How far a watermark is behind this node's clock.
    pub watermark_lag_seconds: Family<Settling, Level>,
    /// For how long a region has held a watermark back; only those that do, by more than a second.
    pub watermark_held_by_seconds: Family<Blamed, Level>,
    /// From an event's timestamp to its durability here.
    pub replication_delay_seconds: Family<Origin, Histogram, Latencies>,
    /// Events of this region's own logs that a peer has not made durable yet.
    pub unreplicated_events: Family<Peer, Gauge>,

    /// How far a read model is behind what is settled.
    pub projection_lag_seconds: Family<ReadModel, Level>,
    /// Events that a read model has applied.
    pub projection_applied_events: Family<ReadModel, Gauge>,
    /// Events that wait for a mended handler or an operator.
    pub projection_parked_events: Family<ReadModel, Gauge>,
    /// Events that were left out for good.
    pub projection_skipped_events: Family<ReadModel, Gauge>,
    /// When the last event was written that a read model is complete to, in seconds since 1970.
    pub projection_checkpoint_timestamp_seconds: Family<ReadModel, Level>,
    /// 1 while a read model's worker cannot go on: stopped, or without its database or log.
    pub projection_held_up: Family<ReadModel, Gauge>,
    /// How far a consumer group is behind what is settled.
    pub consumer_lag_seconds: Family<ConsumerGroup, Level>,
    /// Events that were read for a consumer group and are not acknowledged.
    pub consumer_waiting_events: Family<ConsumerGroup, Gauge>,
    /// Of those, given out.
    pub consumer_in_flight_events: Family<ConsumerGroup, Gauge>,
    /// Events that a consumer group has put aside.
    pub consumer_parked_events: Family<ConsumerGroup, Gauge>,
    /// 1 while something is wrong with a consumer group.
    pub consumer_held_up: Family<ConsumerGroup, Gauge>,
    /// Alarms that stand now, by kind.
    pub alarms: Family<Alarm, Gauge>,
    /// When this node's certificate ends, in seconds since 1970.
    pub certificate_expiry_seconds: Gauge,
    /// Whether the node answers `/readyz` with yes (1).
    pub ready: Gauge,

    /// HTTP requests that were answered, by method, route and status.
    pub http_requests: Family<HttpRequest, Counter>,
    /// From an HTTP request's arrival to the head of its answer.
    pub http_request_seconds: Family<HttpRoute, Histogram, Latencies>,
    /// HTTP connections that are open.
    pub http_connections: Gauge,
    /// Event streams that follow on.
    pub http_followers: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero, registered under their names.
    #[expect(clippy::too_many_lines, reason = "one entry per metric, in one list")]
    pub fn new() -> Self {
        let mut list = Registering(Registry::with_prefix("meridian"));
        list.0.register(
            "build",
            "The version of this build",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        Self {
            appends: list.add("appends", "Appends that were answered, by outcome"),
            append_seconds: list.timed(
                "append_duration",
                "From an append's arrival to its answer",
                latencies(),
            ),
            appends_in_flight: list.add("appends_in_flight", "Appends that wait for their answer"),
            events_appended: list.add("events_appended", "Events that this region appended"),
            bytes_appended: list.in_bytes(
                "appended",
                "Bytes of data and metadata that this region appended",
            ),
            lease_held: list.add(
                "lease_held",
                "1 while this region holds its lease; 0 while it does not, and where no category is fenced",
            ),
            lease_left_seconds: list.in_seconds(
                "lease_left",
                "How long this region holds its lease if no other region answers any more",
            ),
            appends_forwarded: list.add(
                "appends_forwarded",
                "Appends that were sent on to their home region",
            ),
            queue_depth: list.add(
                "sequencer_queue_depth",
                "Appends that wait for a partition's sequencer",
            ),
            commits: list.add("commits", "Commit rounds: one write and one sync each"),
            commit_seconds: list.timed(
                "commit_duration",
                "From handing a block of this region to the log to its durability",
                latencies(),
            ),
            blocks_committed: list.add(
                "blocks_committed",
                "Blocks made durable, of own and of other origins",
            ),
            syncs: list.add("syncs", "Calls that made the disk durable"),
            store_writable: list.add(
                "store_writable",
                "1 while the store takes writes; 0 once a write or sync failed: restart the node",
            ),
            store_bytes: list.in_bytes("store", "What segments and their indexes take up"),
            store_segments: list.add("store_segments", "Segments of the physical log"),
            store_events: list.add("store_events", "Events held, of all origins"),
            damaged_ranges: list.add(
                "damaged_ranges",
                "Ranges of blocks that cannot be read now; they are fetched again from a peer",
            ),
            control_led: list.add(
                "control_led",
                "1 while the control plane has a leader; 0 while nothing can be decided",
            ),
            control_decisions: list.add(
                "control_decisions",
                "The number of the last change that was decided; regions that differ for long do not hear each other",
            ),
            homes_moving: list.add(
                "homes_moving",
                "Streams being moved, and regions that have yet to open what moved there: their writers wait",
            ),
            regions_fenced: list.add(
                "regions_fenced",
                "Regions that are fenced, or are becoming members again",
            ),
            merged_states: list.add(
                "merged_states",
                "States of streams that every region writes which are in memory",
            ),
            merged_state_bytes: list.add(
                "merged_state_bytes",
                "About how many bytes of memory these states take",
            ),
            merged_snapshots: list.add(
                "merged_snapshots",
                "States of streams that every region writes which are kept in files",
            ),
            merged_snapshot_bytes: list.add(
                "merged_snapshot_bytes",
                "The bytes of these files",
            ),
            rights_asked: list.add(
                "rights_asked",
                "How often this region asked another one for rights to a stock",
            ),
            rights_given: list.add(
                "rights_given",
                "How often this region was given rights to a stock that it had asked for",
            ),
            rights_refused: list.add(
                "rights_refused",
                "How often there were no rights to be had for what was to be taken from a stock",
            ),
            at_stake_events: list.add(
                "at_stake_events",
                "Events that no other region holds: they would strand if this one vanished now",
            ),
            at_stake_seconds: list.in_seconds(
                "at_stake",
                "How long ago the oldest event was written that no other region holds",
            ),
            resolutions: list.add(
                "conflict_resolutions",
                "Conflicts resolved through this node, by somebody or by their category's policy",
            ),
            conflicts_open: list.add(
                "conflicts_open",
                "Conflict records that wait for a decision, or for it to be carried out",
            ),
            events_readmitted: list.add(
                "events_readmitted",
                "Stranded events that were brought home, by how: spliced, applied, conflict, already",
            ),
            link_up: list.add("link_up", "1 while a link with a peer stands"),
            link_rtt_seconds: list.in_seconds("link_rtt", "Round-trip time of a link"),
            link_silence_seconds: list
                .in_seconds("link_silence", "How long ago a peer was last heard"),
            clock_offset_seconds: list
                .in_seconds("clock_offset", "How far a peer's clock is ahead of ours"),
            clock_trusted: list.add(
                "clock_trusted",
                "1 while this node may give out stamps; 0 while its clock is too far off",
            ),
            log_position: list.add(
                "log_position",
                "Position up to which an origin log is durable here",
            ),
            replication_lag_events: list.add(
                "replication_lag_events",
                "Positions that an origin log is known to be ahead of what is durable here",
            ),
            watermark_lag_seconds: list.in_seconds(
                "watermark_lag",
                "How far the watermark of a partition, stable or final, is behind this node's clock",
            ),
            watermark_held_by_seconds: list.in_seconds(
                "watermark_held_by",
                "For how long a region has held the watermark back, for those that do by more than a second",
            ),
            replication_lag_seconds: list.in_seconds(
                "replication_lag",
                "How long ago an origin log was last known complete here",
            ),
            replication_delay_seconds: list.timed(
                "replication_delay",
                "From an event's timestamp to its durability here",
                Family::new_with_constructor(Latencies),
            ),
            unreplicated_events: list.add(
                "unreplicated_events",
                "Events of this region's own logs that a peer has not made durable yet",
            ),
            projection_lag_seconds: list.in_seconds(
                "projection_lag",
                "How far a read model is behind what is settled here",
            ),
            projection_applied_events: list.add(
                "projection_applied_events",
                "Events that a read model has applied",
            ),
            projection_parked_events: list.add(
                "projection_parked_events",
                "Events of a read model that wait for a mended handler or an operator",
            ),
            projection_skipped_events: list.add(
                "projection_skipped_events",
                "Events that a read model has left out for good",
            ),
            projection_checkpoint_timestamp_seconds: list.in_seconds(
                "projection_checkpoint_timestamp",
                "The timestamp that a read model is complete to, since 1970-01-01",
            ),
            projection_held_up: list.add(
                "projection_held_up",
                "1 while a read model's worker cannot go on: see its projection's status",
            ),
            consumer_lag_seconds: list.in_seconds(
                "consumer_lag",
                "How far a consumer group is behind what is settled here",
            ),
            consumer_waiting_events: list.add(
                "consumer_waiting_events",
                "Events that were read for a consumer group and are not acknowledged",
            ),
            consumer_in_flight_events: list.add(
                "consumer_in_flight_events",
                "Events that the consumers of a group have and did not acknowledge yet",
            ),
            consumer_parked_events: list.add(
                "consumer_parked_events",
                "Events that a consumer group has put aside for an operator",
            ),
            consumer_held_up: list.add(
                "consumer_held_up",
                "1 while something is wrong with a consumer group: see its status",
            ),
            alarms: list.add("alarms", "Alarms that stand now, by kind"),
            certificate_expiry_seconds: list.in_seconds(
                "certificate_expiry_timestamp",
                "When this node's certificate ends, since 1970-01-01",
            ),
            ready: list.add("ready", "1 while the node answers /readyz with yes"),
            http_requests: list.add(
                "http_requests",
                "HTTP requests that were answered, by method, route and status",
            ),
            http_request_seconds: list.timed(
                "http_request_duration",
                "From an HTTP request's arrival to the head of its answer",
                Family::new_with_constructor(Latencies),
            ),
            http_connections: list.add("http_connections", "HTTP connections that are open"),
            http_followers: list.add(
                "http_followers",
                "Event streams over HTTP that follow what is appended",
            ),
            registry: list.0,
        }
    }

    /// Counts an append that was answered with `outcome` after `took`.
    pub fn append_answered(&self, outcome: AppendOutcome, took: Duration) {
        self.appends.get_or_create(&Outcome { outcome }).inc();
        self.append_seconds.observe(took.as_secs_f64());
    }

    /// Counts an append as in flight until the guard is dropped, whether it was answered or its
    /// client went away.
    pub fn append_begun(&self) -> impl Drop + use<> {
        struct InFlight(Gauge);

        impl Drop for InFlight {
            fn drop(&mut self) {
                self.0.dec();
            }
        }

        self.appends_in_flight.inc();
        InFlight(self.appends_in_flight.clone())
    }

    /// All metrics as OpenMetrics text.
    ///
    /// # Errors
    /// When a metric cannot be formatted, which is a defect in its labels.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Makes a metric and lists it in one go, so that none is forgotten.
struct Registering(Registry);

impl Registering {
    fn add<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }

    fn in_bytes<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0
            .register_with_unit(name, help, Unit::Bytes, metric.clone());
        metric
    }

    fn in_seconds<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        self.timed(name, help, M::default())
    }

    fn timed<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0
            .register_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_the_prefix_and_a_help_text() {
        let text = Metrics::new().encode().expect("labels are sound");
        let helped = text.lines().filter(|line| line.starts_with("# HELP "));
        let typed = text.lines().filter(|line| line.starts_with("# TYPE "));
        assert_eq!(helped.count(), typed.count());
        for line in text.lines().filter(|line| !line.starts_with("# EOF")) {
            let name = line
                .trim_start_matches("# HELP ")
                .trim_start_matches("# TYPE ")
                .trim_start_matches("# UNIT ");
            assert!(name.starts_with("meridian_"), "{line}");
        }
    }

    #[test]
    fn an_answered_append_is_counted_by_outcome_and_timed() {
        let metrics = Metrics::new();
        metrics.append_answered(
            AppendOutcome::wrong_expected_revision,
            Duration::from_millis(3),
        );
        let text = metrics.encode().expect("labels are sound");
        assert!(
            text.contains("meridian_appends_total{outcome=\"wrong_expected_revision\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("meridian_append_duration_seconds_count 1"),
            "{text}"
        );
    }

    #[test]
    fn an_append_that_is_given_up_is_no_longer_in_flight() {
        let metrics = Metrics::new();
        let (first, second) = (metrics.append_begun(), metrics.append_begun());
        assert_eq!(metrics.appends_in_flight.get(), 2);
        drop(first);
        assert_eq!(metrics.appends_in_flight.get(), 1);
        drop(second);
        assert_eq!(metrics.appends_in_flight.get(), 0);
    }

    #[test]
    fn units_and_suffixes_follow_the_conventions() {
        let metrics = Metrics::new();
        metrics.bytes_appended.inc_by(7);
        metrics.certificate_expiry_seconds.set(1_900_000_000);
        let text = metrics.encode().expect("labels are sound");
        for line in [
            "meridian_appended_bytes_total 7",
            "meridian_certificate_expiry_timestamp_seconds 1900000000",
            "meridian_store_writable 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}

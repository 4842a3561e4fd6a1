//! Who holds the settled order back, since when, and why as far as this node can know.
//!
//! Holds no clock and asks nobody: it is told what the node knows at one moment.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_clock::{PartitionId, Position, Promise, RegionId, Timestamp};
use meridian_replication::PeerStatus;
use meridian_replication::link::{Disagreement, Holder, PartitionMarks};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::shown::rfc3339;
use crate::status::Names;

/// Heartbeats are 50 ms apart; what lags longer than this is not on its way.
const HELD_BACK: Duration = Duration::from_secs(1);

/// Which watermark is held back.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum HeldTier {
    /// `stable`, and `final` with it, for it never leads.
    Stable,
    /// `final` alone, or more than `stable` is.
    Final,
}

/// Why a watermark is held back, as far as this node can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeldReason {
    /// Regions settled different events: an operator must look.
    Disagreement,
    /// This node's own clock is not trusted, so it stamps nothing.
    OwnClock,
    /// This node takes no appends, and so may not promise either.
    OwnRefusal,
    /// A write of this node itself is under way and does not end.
    OwnWrite,
    /// This node cannot reach the region, and no other region passes on anything newer.
    NotLinked,
    /// The region promised more, but the events before that have not arrived here.
    NotArrived,
    /// The region's clock is so far off that it stops stamping.
    Clock,
    /// Its word rises, but is behind.
    CatchingUp,
    /// The region is linked and says nothing newer. It knows why.
    Silent,
}

/// A region that holds a watermark back by more than a second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldBack {
    /// Which watermark.
    pub tier: HeldTier,
    /// The name of the region whose word is missing.
    pub region: String,
    /// In which partitions.
    pub partitions: Vec<u16>,
    /// How far its word is behind this node's clock; null when it never gave one.
    pub behind_ms: Option<u64>,
    /// How long ago its word last rose, as seen here.
    pub for_ms: u64,
    /// When that was by this node's clock, RFC 3339.
    #[schema(format = "date-time")]
    pub since: String,
    /// Its word has not risen since this node started, so it may have been earlier.
    pub or_earlier: bool,
    /// Why.
    pub reason: HeldReason,
    /// Why, in a sentence.
    pub because: String,
}

/// What a node knows at one moment.
pub(crate) struct Facts<'a> {
    pub(crate) me: RegionId,
    /// The physical clock.
    pub(crate) now: Timestamp,
    pub(crate) names: &'a Names,
    pub(crate) marks: &'a [PartitionMarks],
    pub(crate) peers: &'a [PeerStatus],
    /// The newest promises whose prefix is not held, and what is held.
    pub(crate) waiting: &'a [(Position, Promise)],
    pub(crate) disagreements: &'a [Disagreement],
    /// Why our own clock is not trusted, if it is not.
    pub(crate) own_clock: Option<String>,
    /// Why appends are refused here, if they are.
    pub(crate) refusing: Option<String>,
    /// Beyond this a region stops stamping by itself.
    pub(crate) clock_allowed: Duration,
}

/// Everyone who holds a watermark back by more than a second: `stable` first, the longest first.
pub(crate) fn held_back(facts: &Facts<'_>) -> Vec<HeldBack> {
    let mut held = facts.disagreed();
    // One line for all partitions that a region holds back for the same reason.
    let mut lines: BTreeMap<(HeldTier, RegionId, HeldReason), Vec<(PartitionId, Holder)>> =
        BTreeMap::new();
    for marks in facts.marks.iter().filter(|marks| marks.stopped.is_none()) {
        let lags = |word: &&Holder| facts.now.after(word.through) > HELD_BACK;
        for word in marks.promised.iter().filter(lags) {
            let reason = facts.reason(HeldTier::Stable, marks.partition, word);
            let line = lines.entry((HeldTier::Stable, word.region, reason));
            line.or_default().push((marks.partition, *word));
        }
        for word in marks.reported.iter().filter(lags) {
            // What our own `stable` waits for, theirs waits for as well: named once, above.
            let waits_with_us = marks.stable.after(word.through) <= HELD_BACK;
            if word.region == facts.me || waits_with_us {
                continue;
            }
            let same_as_above = marks
                .promised
                .iter()
                .any(|it| it.region == word.region && lags(&it));
            if same_as_above {
                continue;
            }
            let reason = facts.reason(HeldTier::Final, marks.partition, word);
            let line = lines.entry((HeldTier::Final, word.region, reason));
            line.or_default().push((marks.partition, *word));
        }
    }
    held.extend(
        lines
            .into_iter()
            .map(|((tier, region, reason), words)| facts.line(tier, region, reason, &words)),
    );
    held.sort_by_key(|line| (line.tier, std::cmp::Reverse(line.for_ms)));
    held
}

impl Facts<'_> {
    fn peer(&self, region: RegionId) -> Option<&PeerStatus> {
        self.peers.iter().find(|peer| peer.region == region)
    }

    fn waits(&self, region: RegionId, partition: PartitionId) -> Option<&(Position, Promise)> {
        self.waiting
            .iter()
            .find(|(_, promise)| promise.log.origin == region && promise.log.partition == partition)
    }

    fn reason(&self, tier: HeldTier, partition: PartitionId, word: &Holder) -> HeldReason {
        let peer = self.peer(word.region);
        if word.region == self.me {
            return if self.own_clock.is_some() {
                HeldReason::OwnClock
            } else if self.refusing.is_some() {
                HeldReason::OwnRefusal
            } else {
                HeldReason::OwnWrite
            };
        }
        let waits = tier == HeldTier::Stable && self.waits(word.region, partition).is_some();
        let clock_is_off = peer.and_then(|peer| peer.clock_offset_nanos);
        let clock_is_off = clock_is_off
            .is_some_and(|nanos| Duration::from_nanos(nanos.unsigned_abs()) > self.clock_allowed);
        if peer.is_none_or(|peer| !peer.connected_out) {
            HeldReason::NotLinked
        } else if waits {
            HeldReason::NotArrived
        } else if self.own_clock.is_some() {
            HeldReason::OwnClock
        } else if clock_is_off {
            HeldReason::Clock
        } else if word.silent_for <= HELD_BACK {
            HeldReason::CatchingUp
        } else {
            HeldReason::Silent
        }
    }

    fn line(
        &self,
        tier: HeldTier,
        region: RegionId,
        reason: HeldReason,
        words: &[(PartitionId, Holder)],
    ) -> HeldBack {
        let lowest = words.iter().map(|(_, word)| word.through).min();
        let longest = words.iter().max_by_key(|(_, word)| word.silent_for);
        let (partition, word) = *longest.expect("a line has a partition");
        HeldBack {
            tier,
            region: self.names.of(region),
            partitions: words.iter().map(|(partition, _)| partition.0).collect(),
            behind_ms: lowest
                .filter(|through| *through > Timestamp::ZERO)
                .map(|through| millis(self.now.after(through))),
            for_ms: millis(word.silent_for),
            since: rfc3339(before(self.now, word.silent_for)),
            or_earlier: word.since_start,
            reason,
            because: self.because(reason, partition, &word),
        }
    }

    fn because(&self, reason: HeldReason, partition: PartitionId, word: &Holder) -> String {
        let peer = self.peer(word.region);
        let name = self.names.of(word.region);
        match reason {
            HeldReason::Disagreement => "regions settled different events".to_owned(),
            HeldReason::OwnClock => format!(
                "this node's own clock is not trusted: {}",
                self.own_clock.as_deref().unwrap_or("it is off")
            ),
            HeldReason::OwnRefusal => format!(
                "this node takes no appends: {}",
                self.refusing.as_deref().unwrap_or("it is not ready")
            ),
            HeldReason::OwnWrite => {
                "a write of this node is under way and does not end; its disk may hang".to_owned()
            }
            HeldReason::NotLinked => {
                let heard = match peer.and_then(|peer| peer.last_heard) {
                    Some(ago) => format!("last heard {} ago", rounded(ago)),
                    None => "not heard since this node started".to_owned(),
                };
                let error = peer.and_then(|peer| peer.last_error.as_deref());
                let error = error.map_or(String::new(), |error| format!(": {error}"));
                format!("no link to {name} ({heard}){error}")
            }
            HeldReason::NotArrived => match self.waits(word.region, partition) {
                Some((held, promise)) => format!(
                    "events of {name} have not arrived: partition {partition} is held here to \
                     position {held} and promised to {}",
                    promise.position
                ),
                None => format!("events of {name} have not arrived"),
            },
            HeldReason::Clock => {
                let nanos = peer
                    .and_then(|peer| peer.clock_offset_nanos)
                    .unwrap_or_default();
                let way = if nanos < 0 { "behind" } else { "ahead of" };
                format!(
                    "the clock of {name} is {} ms {way} this node's; beyond {} ms a region stops \
                     stamping by itself",
                    nanos.unsigned_abs() / 1_000_000,
                    self.clock_allowed.as_millis()
                )
            }
            HeldReason::CatchingUp => format!(
                "what {name} says is old but rises: it, or what lies between, is catching up"
            ),
            HeldReason::Silent => match peer.and_then(|peer| peer.last_heard) {
                Some(ago) if ago > HELD_BACK => format!(
                    "the link to {name} is open, but nothing was heard for {}: its process hangs, or \
                     the network does",
                    rounded(ago)
                ),
                _ => {
                    format!("the link to {name} is up, but {name} says nothing newer; it knows why")
                }
            },
        }
    }

    fn disagreed(&self) -> Vec<HeldBack> {
        let stopped = |disagreement: &Disagreement| {
            let partition = disagreement.ours.partition;
            let marks = self.marks.iter().find(|it| it.partition == partition)?;
            // The words go on rising; the watermark stands where it was when this was found.
            let behind = self.now.after(marks.stable);
            Some(HeldBack {
                tier: HeldTier::Stable,
                region: self.names.of(disagreement.peer),
                partitions: vec![partition.0],
                behind_ms: Some(millis(behind)),
                for_ms: millis(behind),
                since: rfc3339(marks.stable),
                or_earlier: false,
                reason: HeldReason::Disagreement,
                because: format!(
                    "this node and {} settled different events of partition {partition}: {} there \
                     and {} here up to {}",
                    self.names.of(disagreement.peer),
                    disagreement.theirs.events,
                    disagreement.ours.events,
                    rfc3339(disagreement.ours.through)
                ),
            })
        };
        self.disagreements.iter().filter_map(stopped).collect()
    }
}

fn before(now: Timestamp, ago: Duration) -> Timestamp {
    Timestamp::from_unix(now.since_unix().saturating_sub(ago))
}

/// A length of time as people say it.
fn rounded(length: Duration) -> String {
    match length.as_secs() {
        0 => format!("{} ms", length.as_millis()),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use meridian_clock::LogId;

    use super::*;

    const A: RegionId = RegionId(0);
    const B: RegionId = RegionId(1);
    const C: RegionId = RegionId(2);
    const NOW: Duration = Duration::from_secs(1_700_000_000);

    fn at(ago_ms: u64) -> Timestamp {
        Timestamp::from_unix(NOW - Duration::from_millis(ago_ms))
    }

    fn word(region: RegionId, ago_ms: u64) -> Holder {
        Holder {
            region,
            through: at(ago_ms),
            silent_for: Duration::from_millis(ago_ms),
            since_start: false,
        }
    }

    fn marks(partition: u16, promised: [u64; 3], reported: [u64; 3]) -> PartitionMarks {
        let words = |ago: [u64; 3]| vec![word(A, ago[0]), word(B, ago[1]), word(C, ago[2])];
        let lowest = |ago: [u64; 3]| ago.into_iter().max().unwrap_or_default();
        PartitionMarks {
            partition: PartitionId(partition),
            stable: at(lowest(promised)),
            stable_held_by: word(C, lowest(promised)),
            finals: at(lowest(reported)),
            finals_held_by: word(C, lowest(reported)),
            promised: words(promised),
            reported: words(reported),
            stopped: None,
        }
    }

    fn peer(region: RegionId) -> PeerStatus {
        PeerStatus {
            region,
            name: region.to_string(),
            connected_out: true,
            connected_in: true,
            last_heard: Some(Duration::from_millis(20)),
            rtt: None,
            clock_offset_nanos: Some(1_000_000),
            subscriptions: Vec::new(),
            lag_positions: 0,
            received_bytes: 0,
            sent_bytes: 0,
            connects: 1,
            last_error: None,
            alarms: Vec::new(),
        }
    }

    fn names() -> Names {
        let name = |(id, name): (RegionId, &str)| (id, name.to_owned());
        Names([(A, "a"), (B, "b"), (C, "c")].map(name).into())
    }

    fn facts<'a>(
        names: &'a Names,
        marks: &'a [PartitionMarks],
        peers: &'a [PeerStatus],
    ) -> Facts<'a> {
        Facts {
            me: A,
            now: at(0),
            names,
            marks,
            peers,
            waiting: &[],
            disagreements: &[],
            own_clock: None,
            refusing: None,
            clock_allowed: Duration::from_millis(400),
        }
    }

    #[test]
    fn nobody_is_blamed_while_heartbeats_come() {
        let (names, marks) = (names(), [marks(0, [20, 70, 120], [100, 150, 900])]);
        assert_eq!(held_back(&facts(&names, &marks, &[peer(B), peer(C)])), []);
    }

    #[test]
    fn a_region_that_is_gone_is_named_once_for_all_its_partitions_and_both_tiers() {
        let (names, mut gone) = (names(), peer(C));
        gone.connected_out = false;
        gone.last_heard = Some(Duration::from_secs(65));
        gone.last_error = Some("timed out".to_owned());
        // Everyone's `stable` waits for c, so theirs says nothing new about b.
        let one = marks(0, [20, 70, 65_000], [65_000, 65_060, 65_400]);
        let other = marks(1, [20, 70, 64_000], [64_000, 64_060, 64_400]);
        let all = [one, other];
        let held = held_back(&facts(&names, &all, &[peer(B), gone]));
        assert_eq!(held.len(), 1, "{held:#?}");
        let line = &held[0];
        assert_eq!(
            (line.tier, line.region.as_str(), line.reason),
            (HeldTier::Stable, "c", HeldReason::NotLinked)
        );
        assert_eq!(line.partitions, [0, 1]);
        assert_eq!(
            (line.for_ms, line.since.as_str()),
            (65_000, "2023-11-14T22:12:15Z")
        );
        assert_eq!(
            line.because,
            "no link to c (last heard 65 s ago): timed out"
        );
    }

    #[test]
    fn two_regions_that_are_gone_are_both_named() {
        let (names, marks) = (names(), [marks(0, [20, 5000, 9000], [9000, 9000, 9000])]);
        let held = held_back(&facts(&names, &marks, &[]));
        let regions: Vec<_> = held.iter().map(|line| line.region.as_str()).collect();
        assert_eq!(regions, ["c", "b"]);
    }

    #[test]
    fn events_that_were_promised_and_have_not_come_are_told_from_silence() {
        let (names, marks) = (names(), [marks(0, [20, 70, 3000], [3000, 3000, 3000])]);
        let promise = Promise {
            log: LogId::new(C, PartitionId(0)),
            timestamp: at(60),
            position: Position(25),
        };
        let peers = [peer(B), peer(C)];
        let mut facts = facts(&names, &marks, &peers);
        assert_eq!(held_back(&facts)[0].reason, HeldReason::Silent);
        let waiting = [(Position(17), promise)];
        facts.waiting = &waiting;
        let line = &held_back(&facts)[0];
        assert_eq!(line.reason, HeldReason::NotArrived);
        assert!(
            line.because.contains("position 17 and promised to 25"),
            "{}",
            line.because
        );
    }

    #[test]
    fn clocks_are_blamed_when_they_are_off() {
        let (names, marks) = (names(), [marks(0, [20, 70, 3000], [3000, 3000, 3000])]);
        let mut off = peer(C);
        off.clock_offset_nanos = Some(-10_000_000_000);
        let peers = [peer(B), off];
        let held = held_back(&facts(&names, &marks, &peers));
        assert_eq!(held[0].reason, HeldReason::Clock);
        assert!(
            held[0].because.contains("10000 ms behind"),
            "{}",
            held[0].because
        );
    }

    #[test]
    fn final_alone_is_held_by_whose_stable_is_old() {
        let (names, marks) = (names(), [marks(0, [20, 70, 120], [120, 6000, 120])]);
        let held = held_back(&facts(&names, &marks, &[peer(B), peer(C)]));
        assert_eq!(held.len(), 1);
        assert_eq!(
            (held[0].tier, held[0].region.as_str(), held[0].reason),
            (HeldTier::Final, "b", HeldReason::Silent)
        );
    }

    #[test]
    fn our_own_disk_is_blamed_when_our_own_promise_stands_still() {
        let (names, marks) = (names(), [marks(0, [4000, 70, 120], [4000, 120, 120])]);
        let held = held_back(&facts(&names, &marks, &[peer(B), peer(C)]));
        assert_eq!(
            (held[0].region.as_str(), held[0].reason),
            ("a", HeldReason::OwnWrite)
        );
    }

    #[test]
    fn a_region_that_was_never_heard_may_be_gone_for_longer() {
        let (names, mut marks) = (names(), [marks(0, [20, 70, 3000], [0, 0, 0])]);
        marks[0].promised[2].through = Timestamp::ZERO;
        marks[0].promised[2].since_start = true;
        let line = &held_back(&facts(&names, &marks, &[]))[0];
        assert_eq!((line.behind_ms, line.or_earlier), (None, true));
    }
}

//! Whether this node may give out positions of its own logs.
//!
//! A node that may have forgotten something must first take it back from its peers (the amnesia
//! guard): a position is never used twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_clock::{Hlc, LogId, RegionId, VersionVector};
use meridian_points::{Bug, planted, reached};

/// What a node knows of its own memory when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Nothing was ever written here, so nothing can be missing.
    Fresh,
    /// Everything that was ever durable here is there. Peers are asked for a moment all the same:
    /// the folder may have been put back from a backup, which cannot be told from inside.
    Whole,
    /// The end of the log was torn and cut off. What was cut had not been acknowledged, if the
    /// disk keeps what it says it has synced; peers are asked, but not waited for forever.
    Cut,
    /// The folder is empty although it may once have held a log.
    Lost,
}

/// Decides from peers' vectors whether positions may be given out. Holds no clock and does no I/O.
#[derive(Debug)]
pub(crate) struct Gate {
    memory: Memory,
    asked_for: Duration,
    region: RegionId,
    peers: Vec<RegionId>,
    clock_allowed: Duration,
}

/// What the gate says, and to the client if it is shut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Positions may be given out.
    Open,
    /// They may not; this is why.
    Shut(String),
}

/// How long a node with a cut tail waits for peers that do not answer.
const CUT_WAIT: Duration = Duration::from_secs(5);
/// How long every other node waits for them: about what their links take to come up.
const WHOLE_WAIT: Duration = Duration::from_millis(500);

impl Gate {
    /// `clock_allowed` is how far a clock may be off its peers' before its node stops stamping.
    pub(crate) fn new(
        memory: Memory,
        region: RegionId,
        peers: Vec<RegionId>,
        clock_allowed: Duration,
    ) -> Self {
        Self {
            memory,
            asked_for: Duration::ZERO,
            region,
            peers,
            clock_allowed,
        }
    }

    /// Nobody waits any more for the regions `left`: they are gone for good, and others hold what they held.
    pub(crate) fn forget(&mut self, left: &BTreeSet<RegionId>) {
        self.peers.retain(|peer| !left.contains(peer));
    }

    /// What `elapsed` more time, what each peer said it holds, what we hold, and why our clock is
    /// not trusted lead to.
    pub(crate) fn judge(
        &mut self,
        elapsed: Duration,
        seen: &BTreeMap<RegionId, VersionVector>,
        held: &VersionVector,
        skewed: Option<&str>,
    ) -> Verdict {
        self.asked_for = self.asked_for.saturating_add(elapsed);
        // Nothing is shipped before it is durable here, so a peer that is ahead of us in our own
        // log proves that we lost something, whatever we believed at the start.
        for (peer, vector) in seen {
            let ahead = vector
                .iter()
                .find(|(log, position)| log.origin == self.region && *position > held.get(*log));
            if let Some((log, position)) = ahead {
                reached("a peer was ahead in our own log");
                return Verdict::Shut(behind(*peer, log, position.0, held.get(log).0));
            }
        }
        let silent: Vec<_> = self
            .peers
            .iter()
            .filter(|peer| !seen.contains_key(peer))
            .map(ToString::to_string)
            .collect();
        let must_wait = match self.memory {
            Memory::Fresh => false,
            Memory::Whole => self.asked_for < WHOLE_WAIT,
            Memory::Cut => self.asked_for < CUT_WAIT,
            Memory::Lost => !planted(Bug::OpenGate),
        };
        if must_wait && !silent.is_empty() {
            match self.memory {
                Memory::Lost => reached("a node without its disk waited for every peer"),
                Memory::Cut => reached("a node whose tail was cut waited for its peers"),
                Memory::Fresh | Memory::Whole => {}
            }
            return Verdict::Shut(format!(
                "this node may have lost part of its log and must first ask its peers; \
                 no answer yet from region {}",
                silent.join(", ")
            ));
        }
        if self.memory == Memory::Lost
            && !planted(Bug::ForgetPromised)
            && let Some(reason) = self.clock_is_early(skewed)
        {
            return Verdict::Shut(reason);
        }
        self.memory = Memory::Fresh;
        Verdict::Open
    }

    /// Why it is too early after a start for stamps that lie `ahead` of our wall clock. They begin above what the life
    /// before may have given out, and a quick restart comes before that: peers would find them too far ahead to
    /// follow, and what is written there upon seeing one would stand before it in the order. A clock that was set
    /// back is not waited for.
    pub(crate) fn restarted_early(&self, ahead: Duration) -> Option<String> {
        // What it stamped may have followed clocks of peers.
        let longest = Hlc::CEILING_AHEAD + self.clock_allowed * 5 / 4;
        // The rest of the offset that is allowed is the clock's own.
        let is_early = ahead > self.clock_allowed / 4 && ahead <= longest;
        (is_early && self.asked_for < longest).then(|| {
            reached("a node that restarted quickly waited for its clock");
            "this node has just restarted, and waits a moment until its clock is past every timestamp that it may have \
             given out before"
                .to_owned()
        })
    }

    // Why our clock may be behind what we promised before we lost our memory. What nobody else had
    // heard yet binds us too: somebody may have read the order up to there from this very node.
    // That clock was at most the allowed offset ahead of our peers', this one is at most as much
    // behind them, and they have gone on since.
    fn clock_is_early(&self, skewed: Option<&str>) -> Option<String> {
        if let Some(reason) = skewed {
            reached("a node without its disk waited for its clock");
            return Some(format!(
                "this node lost its log, and its clock cannot be trusted: {reason}; correct the \
                 clock, appends are taken by themselves then"
            ));
        }
        (self.asked_for < self.clock_allowed * 2).then(|| {
            "this node lost its log, and waits a moment until its clock is surely past every \
             timestamp that it gave out before"
                .to_owned()
        })
    }
}

fn behind(peer: RegionId, log: LogId, theirs: u64, ours: u64) -> String {
    format!(
        "region {peer} holds {theirs} events of this region's partition {}, this node only {ours}; \
         it is taking them back",
        log.partition
    )
}

#[cfg(test)]
mod tests {
    use meridian_clock::{PartitionId, Position};

    use super::*;

    const US: RegionId = RegionId(0);
    const PEERS: [RegionId; 2] = [RegionId(1), RegionId(2)];
    const CLOCK_ALLOWED: Duration = Duration::from_millis(400);

    fn own_log_at(position: u64) -> VersionVector {
        VersionVector::from_iter([(LogId::new(US, PartitionId(0)), Position(position))])
    }

    fn answers(positions: &[(u16, u64)]) -> BTreeMap<RegionId, VersionVector> {
        positions
            .iter()
            .map(|(peer, position)| (RegionId(*peer), own_log_at(*position)))
            .collect()
    }

    fn gate(memory: Memory) -> Gate {
        Gate::new(memory, US, PEERS.to_vec(), CLOCK_ALLOWED)
    }

    #[test]
    fn a_node_with_its_memory_hardly_waits() {
        let nobody = BTreeMap::new();
        assert_eq!(
            gate(Memory::Fresh).judge(Duration::ZERO, &nobody, &own_log_at(0), None),
            Verdict::Open
        );
        let mut whole = gate(Memory::Whole);
        assert!(matches!(
            whole.judge(Duration::ZERO, &nobody, &own_log_at(5), None),
            Verdict::Shut(_)
        ));
        assert_eq!(
            whole.judge(WHOLE_WAIT, &nobody, &own_log_at(5), None),
            Verdict::Open
        );
    }

    #[test]
    fn an_empty_folder_waits_for_every_peer_and_for_what_they_hold() {
        let mut gate = gate(Memory::Lost);
        let hour = Duration::from_secs(3600);
        assert!(matches!(
            gate.judge(hour, &answers(&[(1, 0)]), &own_log_at(0), None),
            Verdict::Shut(_)
        ));
        let all = answers(&[(1, 0), (2, 7)]);
        assert!(matches!(
            gate.judge(hour, &all, &own_log_at(6), None),
            Verdict::Shut(_)
        ));
        assert_eq!(gate.judge(hour, &all, &own_log_at(7), None), Verdict::Open);
    }

    #[test]
    fn an_empty_folder_does_not_wait_for_a_region_that_left() {
        let mut gate = gate(Memory::Lost);
        let hour = Duration::from_secs(3600);
        let one = answers(&[(1, 7)]);
        gate.forget(&BTreeSet::from([RegionId(2)]));
        assert_eq!(gate.judge(hour, &one, &own_log_at(7), None), Verdict::Open);
    }

    #[test]
    fn an_empty_folder_waits_until_its_clock_is_past_what_it_gave_out_before() {
        let mut gate = gate(Memory::Lost);
        let (all, held) = (answers(&[(1, 7), (2, 7)]), own_log_at(7));
        let mut judge = |elapsed, skewed| gate.judge(elapsed, &all, &held, skewed);
        assert!(matches!(
            judge(CLOCK_ALLOWED * 2 - Duration::from_millis(1), None),
            Verdict::Shut(_)
        ));
        assert!(matches!(
            judge(Duration::from_secs(1), Some("it is off by 2 s")),
            Verdict::Shut(reason) if reason.contains("off by 2 s")
        ));
        assert_eq!(judge(Duration::ZERO, None), Verdict::Open);
        // Later the clock alone decides over stamps, as on every node.
        assert_eq!(
            judge(Duration::ZERO, Some("it is off by 2 s")),
            Verdict::Open
        );
    }

    #[test]
    fn a_quick_restart_waits_for_its_clock_and_not_for_one_that_was_set_back() {
        let mut gate = gate(Memory::Whole);
        let ms = Duration::from_millis;
        assert!(gate.restarted_early(ms(1400)).is_some());
        assert_eq!(gate.restarted_early(ms(100)), None);
        assert_eq!(gate.restarted_early(ms(3_600_000)), None);
        // A clock that stands still does not shut it for good.
        let nobody = BTreeMap::new();
        gate.judge(ms(1500), &nobody, &own_log_at(5), None);
        assert_eq!(gate.restarted_early(ms(900)), None);
    }

    #[test]
    fn a_cut_tail_asks_but_does_not_wait_forever() {
        let mut gate = gate(Memory::Cut);
        let some = answers(&[(1, 5)]);
        assert!(matches!(
            gate.judge(Duration::ZERO, &some, &own_log_at(5), None),
            Verdict::Shut(_)
        ));
        assert_eq!(
            gate.judge(CUT_WAIT, &some, &own_log_at(5), None),
            Verdict::Open
        );
    }

    #[test]
    fn a_peer_that_is_ahead_shuts_the_gate_whenever_it_is_heard() {
        let mut gate = gate(Memory::Whole);
        assert_eq!(
            gate.judge(WHOLE_WAIT, &BTreeMap::new(), &own_log_at(5), None),
            Verdict::Open
        );
        let ahead = answers(&[(2, 9)]);
        assert!(matches!(
            gate.judge(Duration::ZERO, &ahead, &own_log_at(5), None),
            Verdict::Shut(_)
        ));
        assert_eq!(
            gate.judge(Duration::ZERO, &ahead, &own_log_at(9), None),
            Verdict::Open
        );
    }
}

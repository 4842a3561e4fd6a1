//! Sees while a run goes on what its end does not show any more.
//!
//! What was said of durability is judged when it is said: a region that is believed to hold a block
//! must hold it, and an answer for several regions must find it in as many. At the end everyone holds
//! everything, whatever was said before.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_clock::{Epoch, LogId, Position};
use meridian_node::Node;
use meridian_store::{Generations, LogHead};

use crate::history::{Call, Outcome};
use crate::invariants::Members;

/// How far a log is held, and in which of its generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    /// How many came before it.
    generation: usize,
    position: Position,
}

impl Mark {
    pub(super) fn of(head: &LogHead) -> Self {
        Self {
            generation: generation(head.epoch),
            position: head.position,
        }
    }

    // How much of this stays once the generations ended where they did.
    fn kept(self, ended: &Generations) -> Position {
        match ended.cuts.get(self.generation) {
            Some(cut) => self.position.min(*cut),
            None => self.position,
        }
    }

    // How far whoever holds this holds the log as it was in `generation`.
    fn in_generation(self, generation: usize, ended: &Generations) -> Position {
        let earlier = self.generation.min(generation);
        match ended.cuts.get(earlier) {
            Some(cut) if self.generation != generation => self.position.min(*cut),
            _ => self.position,
        }
    }
}

/// How many generations came before the one that is written in `epoch`.
pub(crate) fn generation(epoch: Epoch) -> usize {
    usize::try_from(epoch.major.saturating_sub(Epoch::FIRST.major)).unwrap_or(usize::MAX)
}

/// What was seen so far.
#[derive(Default)]
pub(super) struct Witness {
    // The furthest that each node ever had committed, in each generation of a log. A lost disk takes
    // nothing back here: what was said before it was lost was true then.
    committed: BTreeMap<(usize, LogId), BTreeMap<usize, Position>>,
    // The most that any node was seen to know of where generations ended.
    ended: BTreeMap<LogId, Generations>,
    members: Members,
    broken: Vec<String>,
}

impl Witness {
    /// Takes note of how far the node of the region at `index` is.
    pub(super) fn see(&mut self, index: usize, node: &Node) {
        for head in node.store().heads() {
            let Mark {
                generation,
                position,
            } = Mark::of(&head);
            let committed = self.committed.entry((index, head.log)).or_default();
            let furthest = committed.entry(generation).or_default();
            *furthest = position.max(*furthest);
        }
    }

    /// All regions lost their disks at once, and with them what was decided on where logs ended.
    pub(super) fn all_lost(&mut self) {
        self.ended.clear();
    }

    /// Takes note of which regions `node` counts on, and of where logs ended.
    pub(super) fn see_members(&mut self, at: Duration, node: &Node) {
        self.members
            .see(at, node.config().region, node.members().len());
        for head in node.store().heads() {
            let known = node.generations(head.log);
            let ended = self.ended.entry(head.log).or_default();
            if known.cuts.len() > ended.cuts.len() {
                *ended = known;
            }
        }
    }

    /// Judges what `node` believes that others hold. To be asked once all were seen.
    pub(super) fn judge_beliefs(&mut self, name: &str, node: &Node) {
        for (region, vector) in &*node.held_elsewhere() {
            let holder = usize::from(region.0).saturating_sub(1);
            for (log, believed) in vector.iter() {
                // What others hold of our own log answers for what we write there now. A node that lost it takes it
                // back generation by generation, and writes none of it before it has the last.
                let own = log.origin == node.config().region;
                let furthest = match own {
                    true => {
                        let here = Mark::of(&node.store().head(log)).generation;
                        let there = self.latest_generation(holder, log);
                        self.furthest_in(holder, log, here.max(there))
                    }
                    false => self.furthest(holder, log),
                };
                if believed > furthest {
                    self.broken.push(format!(
                        "durable: {name} believes that region {region} holds log {log} to \
                         {believed}, and it never held more than {furthest}"
                    ));
                }
            }
        }
    }

    /// Judges answers that were just given, of so many regions, of which so many were members at first. To
    /// be asked once all were seen.
    pub(super) fn judge_answers(&mut self, calls: &[Call], regions: usize, founders: usize) {
        for call in calls {
            let Outcome::Written(appended) = &call.outcome else {
                continue;
            };
            let Some(last) = appended.dots.last() else {
                continue;
            };
            let fewest = self.members.fewest(call.invoked, Duration::MAX);
            let wanted = call.level(fewest.unwrap_or(founders));
            let log = LogId::new(last.origin, last.partition);
            let home = usize::from(last.origin.0).saturating_sub(1);
            // An answer does not say which generation of its home's log it is of.
            let written = self.committed.get(&(home, log));
            let holders = written
                .into_iter()
                .flatten()
                .filter_map(|(generation, head)| {
                    let is_there = *head >= last.position;
                    let holds =
                        |index: &usize| self.furthest_in(*index, log, *generation) >= last.position;
                    is_there.then(|| (0..regions).filter(holds).count())
                });
            let holders = holders.max().unwrap_or_default();
            if holders < wanted {
                self.broken.push(format!(
                    "durable: a call on {} was answered at {} as {last:?}, which {holders} \
                     regions held",
                    call.stream, call.durability
                ));
            }
        }
    }

    fn furthest(&self, index: usize, log: LogId) -> Position {
        let committed = self.committed.get(&(index, log)).into_iter().flatten();
        committed
            .map(|(_, position)| *position)
            .max()
            .unwrap_or_default()
    }

    fn latest_generation(&self, index: usize, log: LogId) -> usize {
        let committed = self.committed.get(&(index, log)).into_iter().flatten();
        committed
            .map(|(number, _)| *number)
            .max()
            .unwrap_or_default()
    }

    // How far the region at `index` ever held a log as it was in `generation`.
    fn furthest_in(&self, index: usize, log: LogId, generation: usize) -> Position {
        let none = Generations::default();
        let ended = self.ended.get(&log).unwrap_or(&none);
        let committed = self.committed.get(&(index, log)).into_iter().flatten();
        let held = committed.map(|(number, position)| {
            let mark = Mark {
                generation: *number,
                position: *position,
            };
            mark.in_generation(generation, ended)
        });
        held.max().unwrap_or_default()
    }

    /// How many members each node was seen to count on.
    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// What must never be, and was seen; the first of it.
    pub(super) fn broken(&mut self) -> Vec<String> {
        self.broken.truncate(5);
        std::mem::take(&mut self.broken)
    }
}

/// How what a machine holds after a start compares with what it had reported.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Compared {
    /// What is missing, in words.
    pub(super) lost: Vec<String>,
    /// The logs that went back to where a fence had cut them.
    pub(super) rewound: Vec<(LogId, Position)>,
}

/// Compares what a machine had `reported` as committed, before whatever it was that ended its node, with
/// what was `found` after a start, by what is known of where each log's generations ended.
pub(super) fn compare(
    reported: &BTreeMap<LogId, Mark>,
    found: &BTreeMap<LogId, Mark>,
    ended: impl Fn(LogId) -> Generations,
) -> Compared {
    let mut compared = Compared::default();
    for (log, reported) in reported {
        let found = found.get(log).copied().unwrap_or_default().position;
        let ended = ended(*log);
        if found >= reported.position {
            continue;
        }
        if found < reported.kept(&ended) {
            let reported = reported.position;
            compared.lost.push(format!(
                "log {log} was committed to {reported} and is at {found} after a start"
            ));
        } else {
            compared.rewound.push((*log, found));
        }
    }
    compared
}

#[cfg(test)]
mod tests {
    use meridian_clock::{PartitionId, RegionId};

    use super::*;

    const LOG: LogId = LogId {
        origin: RegionId(1),
        partition: PartitionId(0),
    };

    fn at(generation: usize, position: u64) -> Mark {
        Mark {
            generation,
            position: Position(position),
        }
    }

    fn cut_at(cut: u64) -> Generations {
        Generations {
            cuts: vec![Position(cut)],
            sealed: false,
        }
    }

    fn compared(reported: Mark, found: Mark) -> Compared {
        let (reported, found) = (
            BTreeMap::from([(LOG, reported)]),
            BTreeMap::from([(LOG, found)]),
        );
        compare(&reported, &found, |_| cut_at(80))
    }

    #[test]
    fn a_log_may_go_back_to_its_cut_and_no_further() {
        assert_eq!(compared(at(0, 100), at(0, 100)), Compared::default());
        assert_eq!(
            compared(at(0, 100), at(0, 80)).rewound,
            [(LOG, Position(80))]
        );
        assert_eq!(compared(at(0, 100), at(0, 79)).lost.len(), 1);
        assert_eq!(compared(at(1, 100), at(1, 90)).lost.len(), 1);
    }

    #[test]
    fn what_was_held_of_one_generation_is_not_held_of_another() {
        let ended = cut_at(80);
        assert_eq!(at(0, 100).in_generation(0, &ended), Position(100));
        assert_eq!(at(0, 100).in_generation(1, &ended), Position(80));
        assert_eq!(at(1, 100).in_generation(0, &ended), Position(80));
        assert_eq!(at(0, 70).in_generation(1, &ended), Position(70));
    }
}

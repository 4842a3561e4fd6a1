//! What is seen of fences while a run goes on: who was put out, and until when it did not know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use meridian_clock::RegionId;
use meridian_event::{RecordedEvent, StreamId};
use meridian_node::{ConflictStatus, Node, Standing};
use meridian_store::{Disk, SimDisk};

use super::{LOOK_EVERY, World, region_id};
use crate::invariants::Unaware;
use crate::load::is_shared;
use crate::plan::Plan;

/// One fence.
#[derive(Clone, Debug, Default)]
struct Seen {
    opened_at: Option<Duration>,
    // Those put out that have not learnt yet that the others go on.
    unaware: BTreeMap<RegionId, Option<Duration>>,
    // How many members there were when it began.
    of: usize,
}

/// All fences that any node was seen to know of, by their numbers.
pub(super) struct FencesSeen {
    fences: BTreeMap<u64, Seen>,
    runs: Vec<u64>,
    rewinds: Vec<usize>,
}

impl FencesSeen {
    pub(super) fn new(regions: usize) -> Self {
        Self {
            fences: BTreeMap::new(),
            runs: vec![0; regions],
            rewinds: vec![0; regions],
        }
    }

    fn see(&mut self, at: Duration, node: &Node) {
        let me = node.config().region;
        for fence in node.fences() {
            if !fence.opened {
                continue;
            }
            let seen = self.fences.entry(fence.change).or_default();
            // It may have been so since the last look.
            seen.opened_at.get_or_insert(at.saturating_sub(LOOK_EVERY));
            seen.of = fence.of;
            for region in fence.regions {
                let learnt = seen.unaware.entry(region).or_default();
                if region == me {
                    learnt.get_or_insert(at);
                }
            }
        }
    }

    /// The regions that each fence put out for lost; whoever only leaves, strands nothing.
    pub(super) fn fenced(&self, plan: &Plan) -> Vec<BTreeSet<RegionId>> {
        let regions = (0..plan.regions.len()).map(|index| (region_id(index), index));
        let only_leave = regions.filter(|(_, index)| plan.leaves(*index) && !plan.is_lost(*index));
        let only_leave: BTreeSet<_> = only_leave.map(|(region, _)| region).collect();
        let fences = self.fences.values();
        let fences = fences.map(|it| it.unaware.keys().copied().collect());
        fences
            .filter(|regions: &BTreeSet<_>| !regions.is_subset(&only_leave))
            .collect()
    }

    /// Whether all of them left a majority, without which `fenced` categories are promised nothing.
    pub(super) fn left_majorities(&self) -> bool {
        let mut fences = self.fences.values();
        fences.all(|it| it.of.saturating_sub(it.unaware.len()) > it.of / 2)
    }

    /// When regions went on as homes though others had taken over.
    pub(super) fn unaware(&self) -> Vec<Unaware> {
        let fences = self.fences.values();
        let unaware = fences.flat_map(|fence| {
            let from = fence.opened_at.unwrap_or_default();
            let regions = fence.unaware.values();
            regions.map(move |until| Unaware {
                from,
                until: until.unwrap_or(Duration::MAX),
            })
        });
        unaware.collect()
    }
}

impl World {
    /// Looks at a node that may have been started anew, and at what it knows of fences.
    pub(super) fn look_at_fences(&mut self, index: usize, node: &Node) {
        let machine = &self.machines[index];
        let runs = machine.runs.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.fences.runs[index], runs) != runs {
            self.settled.ended(index);
            let rewinds = machine.rewinds.count();
            if std::mem::replace(&mut self.fences.rewinds[index], rewinds) != rewinds {
                self.settled.stranded(index);
                self.states.forget(index);
                self.rare("a region stranded what a fence had cut off");
            }
        }
        if !self.plan.has_fences() {
            return;
        }
        let now = self.sim.elapsed();
        self.fences.see(now, node);
        self.witness.see_members(now, node);
        let leaving = self.machines.iter().filter(|it| self.plan.leaves(it.index));
        let has_left = leaving.filter(|it| {
            let standing = node.region_standing(&it.name);
            it.index != index && standing.is_ok_and(|it| it.standing == Standing::Left)
        });
        let has_left: Vec<_> = has_left.map(|it| it.index).collect();
        for region in has_left {
            self.switch_off(region);
        }
    }

    /// No two regions order a stream of a `fenced` category at once, however little one of them knows of the
    /// other.
    pub(super) fn judge_homes(&mut self) {
        if self.plan.load.fenced_percent == 0 || !self.fences.left_majorities() {
            return;
        }
        let ordered: Vec<_> = self.machines.iter().map(|it| it.ordered()).collect();
        // A node that does not run now said so earlier than the others.
        let last = ordered.iter().map(|(at, _)| *at).max().unwrap_or_default();
        let mut homes: BTreeMap<&StreamId, &str> = BTreeMap::new();
        for (machine, (_, ordered)) in self
            .machines
            .iter()
            .zip(&ordered)
            .filter(|(_, (at, _))| *at == last)
        {
            for stream in ordered {
                if let Some(other) = homes.insert(stream, &machine.name)
                    && self.two_homes.len() < 5
                {
                    let name = &machine.name;
                    self.two_homes.push(format!(
                        "one-home: at {last:?} {stream} was ordered by {other} and by {name}"
                    ));
                }
            }
        }
    }

    /// What is not yet as it was before all fences.
    pub(super) fn still_fenced(&self, name: &str, node: &Node) -> Vec<String> {
        let mut why = Vec::new();
        if !self.plan.has_fences() {
            return why;
        }
        if let Some(fence) = node.fences().iter().find(|fence| !fence.opened) {
            why.push(format!("{name} sees a fence that is not open: {fence:?}"));
        }
        for machine in &self.machines {
            let wanted = match self.plan.leaves(machine.index) {
                true => Standing::Left,
                false => Standing::Member,
            };
            match node.region_standing(&machine.name) {
                Ok(standing) if standing.standing == wanted => {}
                standing => why.push(format!(
                    "{name} has a region otherwise than {wanted:?}: {standing:?}"
                )),
            }
        }
        let left = node.conflicts().readmission().left;
        let others = match left {
            0 => 0,
            _ => self.left_to_others(node),
        };
        if left > others {
            why.push(format!(
                "{name} has yet to bring {left} stranded events home, {others} of them others'"
            ));
        }
        let (recording, _) =
            node.conflicts()
                .list(|status| status == ConflictStatus::Recording, None, None, 1);
        if !recording.is_empty() {
            why.push(format!(
                "{name} sees a conflict record that is not whole: {recording:?}"
            ));
        }
        let machine = self.machines.iter().find(|it| it.name == name);
        if machine.is_some_and(|it| node.members().contains(&region_id(it.index)))
            && node.must_restart().is_cancelled()
        {
            why.push(format!("{name} waits to be started anew"));
        }
        why
    }
}

impl World {
    // How many events `node` holds that another region brings home: that one alone writes again what it wrote
    // to streams that every region writes.
    fn left_to_others(&self, node: &Node) -> u64 {
        let me = node.config().region;
        let machine = self.machines.iter().find(|it| region_id(it.index) == me);
        let stranded = machine.map(|it| stranded_on(&it.disk()));
        let stranded = stranded.unwrap_or_default().into_iter();
        let of_another = stranded.filter(|it| it.dot.origin != me && is_shared(&it.stream));
        of_another.count() as u64
    }
}

/// All events that are stranded on a disk.
pub(super) fn stranded_on(disk: &SimDisk) -> Vec<RecordedEvent> {
    let disk: &dyn Disk = disk;
    let tails = meridian_store::stranded(disk).unwrap_or_default();
    let blocks = tails
        .iter()
        .filter_map(|tail| meridian_store::read_stranded(disk, tail).ok());
    let events = blocks.flatten().filter_map(|block| block.to_events().ok());
    events.flatten().collect()
}

//! What must hold, one file for each; the names are those of ARCHITECTURE.md.
//!
//! Each looks at the same evidence, after the run, and says what is broken. `heals` is judged by
//! the world itself, since it is about time.

mod accounted;
mod contained;
mod convergent;
mod dense;
mod durable;
pub mod exactly_once;
mod idempotent;
mod identical;
mod linearizable;
mod one_home;
mod promised;
mod revisions;
mod rising;
mod same_order;
mod sealed;
mod session;
mod watermark;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_clock::{Dot, LogId, Position, RegionId};
use meridian_event::{Block, EventId, RecordedEvent};
use meridian_store::Generations;

use crate::history::{Call, Read, Repeated, Seen};
use crate::settled::Settled;
use crate::states::StateRead;
use crate::world::LOOK_EVERY;

/// What one node holds in the end.
pub struct Copy {
    /// The node's region.
    pub name: String,
    /// The events of each log, block by block.
    pub logs: BTreeMap<LogId, Vec<Vec<RecordedEvent>>>,
    /// The blocks themselves.
    pub blocks: BTreeMap<LogId, Vec<Block>>,
}

/// What a region may have lost with its disk: nobody else held it yet.
#[derive(Clone, Debug)]
pub struct Forgiven {
    /// Its log.
    pub log: LogId,
    /// Others held the log up to here.
    pub after: Position,
    /// When the disk was lost.
    pub before: Duration,
    /// How many disks were lost then.
    pub disks: usize,
}

/// An event that a fence cut off, as it was put aside.
#[derive(Clone, Debug, Default)]
pub struct Stranded {
    /// Where it was; in two regions' files it is the same place.
    pub dots: BTreeSet<Dot>,
    /// Whether a file still has it.
    pub kept: bool,
}

/// A time in which a region may have gone on as a home though others had taken over: it had not heard of
/// its fence.
#[derive(Clone, Copy, Debug)]
pub struct Unaware {
    /// Since when.
    pub from: Duration,
    /// Until when.
    pub until: Duration,
}

/// How many regions each node took for members, whenever that changed.
#[derive(Clone, Debug, Default)]
pub struct Members(BTreeMap<RegionId, Vec<(Duration, usize)>>);

impl Members {
    /// Takes note of how many the node of `by` counts on; of none before the federation is founded.
    pub fn see(&mut self, at: Duration, by: RegionId, members: usize) {
        let seen = self.0.entry(by).or_default();
        if members > 0 && seen.last().is_none_or(|last| last.1 != members) {
            seen.push((at, members));
        }
    }

    /// The fewest that any node knew of in that time.
    pub fn fewest(&self, from: Duration, until: Duration) -> Option<usize> {
        let of_node = |seen: &Vec<(Duration, usize)>| {
            let before = seen.iter().rev().find(|(at, _)| *at <= from);
            let after = seen.iter().filter(|(at, _)| *at > from && *at <= until);
            before.into_iter().chain(after).map(|it| it.1).min()
        };
        self.0.values().filter_map(of_node).min()
    }
}

/// All that is known after a run.
pub struct Evidence {
    /// What clients did and were told.
    pub calls: Vec<Call>,
    /// What homes were seen to hold.
    pub reads: Vec<Read>,
    /// What each node holds.
    pub copies: Vec<Copy>,
    /// What may be missing.
    pub forgiven: Vec<Forgiven>,
    /// Whether each region's clock was never far off.
    pub sane: Vec<bool>,
    /// True time at the end.
    pub end: Duration,
    /// What readers of the one order saw.
    pub settled: Settled,
    /// What was read by those who had seen something before.
    pub seen: Vec<Seen>,
    /// Requests that were answered otherwise when they were repeated.
    pub repeated: Vec<Repeated>,
    /// What the nodes' read models hold.
    pub read_models: Vec<exactly_once::ReadModel>,
    /// What was put aside in any region, or had been when its disk was lost.
    pub stranded: BTreeMap<EventId, Stranded>,
    /// How often each event stands in conflict records, and whether they say that it is in its stream by now.
    pub in_conflict: BTreeMap<EventId, (usize, bool)>,
    /// Where the generations of each log ended.
    pub generations: BTreeMap<LogId, Generations>,
    /// The regions that each fence put out.
    pub fenced: Vec<BTreeSet<RegionId>>,
    /// When regions did not know of their fences.
    pub unaware: Vec<Unaware>,
    /// Whether every fence left a majority of the members, and never all regions lost their disks.
    pub left_majorities: bool,
    /// How many members there were.
    pub members: Members,
    /// How many regions there were at first.
    pub regions: usize,
    /// How regions are called.
    pub names: BTreeMap<String, RegionId>,
    /// What merged streams came to in each region.
    pub states: Vec<StateRead>,
}

impl Evidence {
    /// How many regions held what `call` wrote when it was answered.
    pub fn level(&self, call: &Call) -> usize {
        let answered = call.returned.unwrap_or(Duration::MAX);
        // A home may have heard of a change that is seen at the next look.
        let until = answered.saturating_add(LOOK_EVERY);
        let members = self.members.fewest(call.invoked, until);
        call.level(members.unwrap_or(self.regions))
    }

    /// Whether an event that was answered at `written` may have been lost with its region's disk.
    /// Then it stays lost, and its place may be another event's by now.
    pub fn may_be_lost(&self, dot: Dot, written: Duration) -> bool {
        self.forgiven
            .iter()
            .any(|lost| lost.log == dot.log() && dot.position > lost.after && written < lost.before)
    }

    /// Whether an event that was answered at `written` may not be there, or elsewhere: it was lost with its
    /// region's disk, or a fence cut it off.
    pub fn may_be_gone(&self, dot: Dot, written: Duration) -> bool {
        self.may_be_lost(dot, written) || self.stranded.values().any(|it| it.dots.contains(&dot))
    }

    /// Whether a fence may have cut off an event of `origin` that so many regions held: all of them were
    /// put out by it, or lost their disks.
    pub fn may_be_stranded(&self, origin: RegionId, held_by: usize) -> bool {
        let lost = self.forgiven.iter().map(|lost| lost.log.origin);
        let lost: BTreeSet<RegionId> = lost.collect();
        let mut fenced = self.fenced.iter();
        fenced.any(|regions| regions.contains(&origin) && regions.union(&lost).count() >= held_by)
    }

    /// Each event of the first node, by its id, with how often it is there.
    pub fn by_id(&self) -> BTreeMap<EventId, Vec<&RecordedEvent>> {
        let mut found: BTreeMap<EventId, Vec<&RecordedEvent>> = BTreeMap::new();
        for copy in self.copies.iter().take(1) {
            for event in copy.logs.values().flatten().flatten() {
                found.entry(event.id).or_default().push(event);
            }
        }
        found
    }
}

/// Everything that is broken, each with the name of the invariant in front.
pub fn check(evidence: &Evidence) -> Vec<String> {
    type Check = fn(&Evidence) -> Vec<String>;
    let all: [(&str, Check); 17] = [
        ("dense", dense::check),
        ("identical", identical::check),
        ("durable", durable::check),
        ("accounted", accounted::check),
        ("convergent", convergent::check),
        ("rising", rising::check),
        ("sealed", sealed::check),
        ("one-home", one_home::check),
        ("revisions", revisions::check),
        ("revisions", linearizable::check),
        ("idempotent", idempotent::check),
        ("contained", contained::check),
        ("promised", promised::check),
        ("same-order", same_order::check),
        ("watermark", watermark::check),
        ("session", session::check),
        ("exactly-once", exactly_once::check),
    ];
    all.into_iter()
        .flat_map(|(name, check)| {
            let broken = check(evidence).into_iter();
            broken.map(move |what| format!("{name}: {what}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_members_in_a_time_are_those_that_any_node_knew_of() {
        let (a, b) = (RegionId(1), RegionId(2));
        let at = Duration::from_secs;
        let mut members = Members::default();
        assert_eq!(members.fewest(at(0), at(9)), None);
        for (by, second, count) in [(a, 1, 3), (b, 1, 3), (a, 5, 2), (b, 6, 2), (a, 8, 3)] {
            members.see(at(second), by, count);
        }
        assert_eq!(members.fewest(at(1), at(4)), Some(3));
        assert_eq!(members.fewest(at(2), at(5)), Some(2));
        // B has not learnt yet that there are three again.
        assert_eq!(members.fewest(at(8), at(9)), Some(2));
    }
}

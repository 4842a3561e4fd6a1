//! Sees while a run goes on what its end does not show any more.
//!
//! What was said of durability is judged when it is said: a region that is believed to hold a block
//! must hold it, and an answer for several regions must find it in as many. At the end everyone holds
//! everything, whatever was said before.

use std::collections::BTreeMap;

use meridian_clock::{LogId, Position};
use meridian_node::Node;

use crate::history::{Call, Outcome};

/// What was seen so far.
#[derive(Default)]
pub(super) struct Witness {
    // The furthest that each node ever had committed. A lost disk takes nothing back here: what was
    // said before it was lost was true then.
    committed: BTreeMap<(usize, LogId), Position>,
    broken: Vec<String>,
}

impl Witness {
    /// Takes note of how far the node of the region at `index` is.
    pub(super) fn see(&mut self, index: usize, node: &Node) {
        for head in node.store().heads() {
            let furthest = self.committed.entry((index, head.log)).or_default();
            *furthest = head.position.max(*furthest);
        }
    }

    /// Judges what `node` believes that others hold. To be asked once all were seen.
    pub(super) fn judge_beliefs(&mut self, name: &str, node: &Node) {
        for (region, vector) in &*node.held_elsewhere() {
            let holder = usize::from(region.0).saturating_sub(1);
            for (log, believed) in vector.iter() {
                let furthest = self.furthest(holder, log);
                if believed > furthest {
                    self.broken.push(format!(
                        "durable: {name} believes that region {region} holds log {log} to \
                         {believed}, and it never held more than {furthest}"
                    ));
                }
            }
        }
    }

    /// Judges answers that were just given. To be asked once all were seen.
    pub(super) fn judge_answers(&mut self, calls: &[Call], regions: usize) {
        for call in calls {
            let Outcome::Written(appended) = &call.outcome else {
                continue;
            };
            let Some(last) = appended.dots.last() else {
                continue;
            };
            let wanted = call.durability.regions(regions);
            let log = LogId::new(last.origin, last.partition);
            let holders = (0..regions)
                .filter(|index| self.furthest(*index, log) >= last.position)
                .count();
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
        self.committed
            .get(&(index, log))
            .copied()
            .unwrap_or_default()
    }

    /// What must never be, and was seen; the first of it.
    pub(super) fn broken(&mut self) -> Vec<String> {
        self.broken.truncate(5);
        std::mem::take(&mut self.broken)
    }
}

/// The logs that `found` holds less of than a machine had reported as committed, before whatever it
/// was that ended its node.
pub(super) fn lost(
    reported: &BTreeMap<LogId, Position>,
    found: &BTreeMap<LogId, Position>,
) -> Vec<String> {
    let less = |(log, reported): (&LogId, &Position)| {
        let found = found.get(log).copied().unwrap_or_default();
        (found < *reported).then(|| {
            format!("log {log} was committed to {reported} and is at {found} after a start")
        })
    };
    reported.iter().filter_map(less).collect()
}

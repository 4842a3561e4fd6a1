//! Rare states: what a hunt has to have seen, or it has tried too little.
//!
//! Marks in our code ([`meridian_points::reached`]) and in the world count them. A state that no run
//! reaches is one that no run has tested.

use std::collections::BTreeSet;

/// Those that the seeds of every change must reach.
pub const REQUIRED: &[&str] = &[
    "a torn tail was cut at a start",
    "what was in doubt was written again at a start",
    "the state of a stream was dropped from memory",
    "a write lost to one whose writer had not seen it",
    "a segment was left for the next one",
    "the store failed and took no more blocks",
    "a block came by relay",
    "a promise waited for its prefix",
    "own positions were taken back from a peer",
    "a peer was ahead in our own log",
    "an append was answered from the memory of its ids",
    "an append was forwarded to its home",
    "an operation was refused for what its region held",
    "an answer waited for other regions",
    "a home was asked once more",
    "a stamp waited for the clock's ceiling",
    "a far-future stamp did not move the clock",
    "the power was cut inside a commit",
    "a failed log was restarted",
];

/// Those that more seeds reach.
pub const OTHERS: &[&str] = &[
    "a block came that was already held",
    "a folder was found to be a copy",
    "a folder was put back from a backup",
    "a home was declined for its timestamps",
    "a lost disk was replaced from a backup",
    "all regions were put back from backups at once",
    "a region created a stream",
    "a region left for good",
    "a region was listed before the federation was founded",
    "a region was told who had created a stream",
    "a region waited for the record of a stream that it is home to",
    "an arbiter waited for what a lost region left",
    "a home without its lease refused",
    "a successor waited for a lease to be over",
    "what a fenced home tells waited for a majority",
    "a home of a fenced category waited until a majority held its transfer",
    "a home was to be given up before it had opened",
    "a node that had forgotten decisions waited until it heard of them",
    "a node that had lost its disk knew again what was decided",
    "a request found that its stream had moved",
    "a transfer was here before all that it rests on",
    "what a new home wrote waited for what it had opened on",
    "an append waited while its stream was moved",
    "a bit flipped on disk",
    "a block of a fenced region was refused by the link",
    "a block of our own was refused by the log",
    "a node refused because of its clock",
    "a node stopped in order",
    "a node that did not start was started again",
    "a node waited for its peers before it gave out positions",
    "a node that restarted quickly waited for its clock",
    "a node whose tail was cut waited for its peers",
    "a block of a peer's earlier start was not taken",
    "a node without its disk waited for every peer",
    "a node without its disk waited for its clock",
    "a peer that brought nothing was passed over",
    "a peer that started anew ended what its earlier start had sent",
    "a region filled a fenced log up to its cut",
    "a region stranded what a fence had cut off",
    "a seal waited for what was on its way to the disk",
    "an answer waited for a block that held nothing of it",
    "a merged stream's end was looked for beside damage",
    "a session waited for what stands below a gap",
    "a state was read with what was not written after all",
    "a stream was folded while its own events were under way",
    "an operation counts again that a fence had cut off",
    "rights were not used before what was stranded was home",
    "catching up went over a connection of its own",
    "damage was known",
    "damage was mended from a peer",
    "the last survivor of the control plane went on alone",
    "the disk was full and what was queued was refused",
];

/// What is known and was not reached, the required ones first.
pub fn never_reached(reached: &BTreeSet<String>) -> Vec<(&'static str, bool)> {
    let required = REQUIRED.iter().map(|state| (*state, true));
    let others = OTHERS.iter().map(|state| (*state, false));
    required
        .chain(others)
        .filter(|(state, _)| !reached.contains(*state))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reached_leaves_all_of_them() {
        let all = never_reached(&BTreeSet::new());
        assert_eq!(all.len(), REQUIRED.len() + OTHERS.len());
        let distinct: BTreeSet<_> = all.iter().map(|(state, _)| *state).collect();
        assert_eq!(distinct.len(), all.len(), "each stands once");
    }
}

//! What happened in a run, for a picture of it: fewer words than the trace, and not part of its hash.

use std::time::Duration;

use crate::plan::FaultKind;

/// Something worth drawing, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// The virtual time since the start.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// The things worth drawing. Regions are indexes into the plan's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A node runs from now on.
    Runs(usize),
    /// A node does not any more, or could not begin to.
    Ends(usize),
    /// A node made a group of writes durable.
    Commits(usize),
    /// A node put aside what it held beyond the cuts of fences, and began anew.
    Strands(usize),
    /// How many events a node holds, of all logs.
    Holds(usize, u64),
    /// Nothing passes from the first to the second any more.
    Cut(usize, usize),
    /// Datagrams from the first to the second pass again.
    Repaired(usize, usize),
    /// A fault was done.
    Fault(FaultKind),
    /// A node sent a datagram to another's node.
    Sent {
        /// The sender.
        from: usize,
        /// The one it is meant for.
        to: usize,
        /// Whether the network loses it.
        lost: bool,
    },
    /// A client's append ended.
    Answered {
        /// The client's region.
        client: usize,
        /// When it was asked.
        asked: Duration,
        /// How it ended.
        answer: Answer,
    },
    /// Everything was healed.
    Healed,
    /// The run is over.
    Over,
}

/// How an append ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// It was acknowledged.
    Written,
    /// It was refused.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// The regions that a fault is about.
pub fn regions(kind: &FaultKind) -> Vec<usize> {
    let table = toml::Table::try_from(kind).unwrap_or_default();
    // Read from how it is written, so that a new kind of fault needs no line here.
    let mut regions: Vec<usize> = ["region", "a", "b", "from", "to", "by"]
        .iter()
        .filter_map(|key| table.get(*key)?.as_integer())
        .filter_map(|index| usize::try_from(index).ok())
        .collect();
    regions.dedup();
    regions
}

/// What else there is to say about a fault, for people.
pub fn detail(kind: &FaultKind) -> String {
    let table = toml::Table::try_from(kind).unwrap_or_default();
    let rest: Vec<_> = table
        .iter()
        .filter(|(key, _)| {
            !["what", "region", "a", "b", "from", "to", "by"].contains(&key.as_str())
        })
        .map(|(key, value)| format!("{} {value}", key.replace('_', " ")))
        .collect();
    rest.join(", ")
}

//! What is asked of the federation, and what becomes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use meridian_clock::{PartitionId, RegionId, Timestamp};
use meridian_conflict::CategoryPolicy;
use meridian_event::StreamId;
use serde::{Deserialize, Serialize};

use super::category::Set;
use super::federation::Federation;
use super::fence::Prefixes;

/// How many streams one command moves at most: commands are kept in a log that is written as a whole.
pub(crate) const MOVES_MAX: usize = 250;

/// What is asked of the federation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Begins it. The first one counts; all members say the same unless their configurations differ.
    Found(Foundation),
    /// Goes on from what the last survivor of an earlier group knew: the first command of a new one.
    GoOn(Box<Federation>),
    /// Moves streams to another home.
    Move {
        /// Which; at most [`MOVES_MAX`].
        streams: Vec<StreamId>,
        /// Where to.
        to: RegionId,
    },
    /// Region `by` holds all that it needs of what a change moves to it, and takes writes.
    Opened {
        /// The change.
        change: u64,
        /// The new home.
        by: RegionId,
    },
    /// The new home cannot take what region `from` gives up in a partition: that is stamped too far
    /// ahead of its clock. It goes back to where it was, handed over like any other.
    Declined {
        /// The change.
        change: u64,
        /// The old home, to be the home again.
        from: RegionId,
        /// The partition.
        partition: PartitionId,
    },
    /// Makes a region home to nothing, so that its node can be stopped without anyone waiting.
    Drain(RegionId),
    /// Gives a drained region its share of homes again.
    Resume(RegionId),
    /// Puts a lost region out.
    Fence {
        /// The region.
        region: RegionId,
        /// Also if fewer than a majority of the members remain.
        force: bool,
    },
    /// Puts a region out as well that does not answer during a fence.
    Evict {
        /// The region.
        region: RegionId,
        /// Also if fewer than a majority of the members remain.
        force: bool,
    },
    /// Region `by` takes nothing more of the fenced logs, and holds this much.
    Sealed {
        /// The fence, by its first change.
        fence: u64,
        /// Its round.
        round: u32,
        /// Who says so.
        by: RegionId,
        /// How far, durably.
        held: Prefixes,
    },
    /// Region `by` holds the fenced logs up to their cuts.
    Filled {
        /// The fence, by its first change.
        fence: u64,
        /// Its round.
        round: u32,
        /// Who says so.
        by: RegionId,
    },
    /// A region that was put out comes back. It has stranded what it wrote beyond its cut.
    Join {
        /// The region.
        region: RegionId,
    },
    /// A region that never was in the federation begins to become a member, home to nothing at first.
    Admit {
        /// The region. Its number was never used.
        region: RegionId,
        /// What it is called.
        name: String,
        /// How many partitions it has.
        partitions: u16,
    },
    /// A drained member begins to leave for good: it takes no more writes.
    Leave {
        /// The region.
        region: RegionId,
        /// Also if fewer than a majority of the members remain.
        force: bool,
    },
    /// All others hold whatever a leaving region holds, so they go on without it.
    Left {
        /// The region.
        region: RegionId,
    },
    /// Region `by` waits for the promises of one that joins.
    Welcomed {
        /// Who joins.
        region: RegionId,
        /// By which change.
        change: u64,
        /// Who says so.
        by: RegionId,
        /// Nothing that `by` has shown in settled order is stamped above this.
        above: Timestamp,
    },
    /// These regions are the ones that `by` does not hear any more.
    Suspect {
        /// Who says so.
        by: RegionId,
        /// Whom it does not hear.
        silent: BTreeSet<RegionId>,
    },
    /// Sets a category's policy, if no region holds an event of it.
    SetCategory {
        /// Its name.
        category: String,
        /// What is to count.
        set: Set,
    },
    /// Region `by` takes no writes to a category that is being set.
    AboutCategory {
        /// Its name.
        category: String,
        /// The change that sets it.
        change: u64,
        /// Who says so.
        by: RegionId,
        /// Whether it holds no event of it.
        is_free: bool,
    },
    /// Moves streams some of which have their homes where they were created.
    MoveCreated {
        /// Which; at most [`MOVES_MAX`].
        streams: Vec<StreamId>,
        /// Who created them, where that matters and they were not moved before.
        creators: BTreeMap<StreamId, RegionId>,
        /// The last change that was known before that was looked up.
        as_of: u64,
        /// Where to.
        to: RegionId,
    },
}

impl fmt::Display for Command {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found(_) => out.write_str("found the federation"),
            Self::GoOn(federation) => write!(out, "go on from change {}", federation.version),
            Self::Move { streams, to } | Self::MoveCreated { streams, to, .. } => {
                write!(out, "move {} streams to region {to}", streams.len())
            }
            Self::Declined { change, .. } => write!(out, "decline a part of change {change}"),
            Self::Opened { change, by } => {
                write!(out, "the homes of change {change} are open in region {by}")
            }
            Self::Drain(region) => write!(out, "drain region {region}"),
            Self::Resume(region) => write!(out, "resume region {region}"),
            Self::Fence { region, .. } => write!(out, "fence region {region}"),
            Self::Evict { region, .. } => write!(out, "evict region {region}"),
            Self::Sealed { fence, by, .. } => {
                write!(out, "region {by} has sealed for fence {fence}")
            }
            Self::Filled { fence, by, .. } => {
                write!(out, "region {by} has all that counts by fence {fence}")
            }
            Self::Join { region } => write!(out, "region {region} comes back"),
            Self::Admit { region, name, .. } => write!(out, "admit region {region}, {name}"),
            Self::Leave { region, .. } => write!(out, "region {region} begins to leave"),
            Self::Left { region } => write!(out, "region {region} has left"),
            Self::Welcomed { region, by, .. } => {
                write!(out, "region {by} waits for region {region} again")
            }
            Self::Suspect { by, silent } => {
                write!(out, "region {by} does not hear {} regions", silent.len())
            }
            Self::SetCategory { category, .. } => write!(out, "set category {category}"),
            Self::AboutCategory {
                category,
                by,
                is_free,
                ..
            } => {
                let holds = if *is_free { "no events" } else { "events" };
                write!(out, "region {by} holds {holds} of category {category}")
            }
        }
    }
}

/// What all members must agree on from the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Foundation {
    /// The members, and what they are called.
    pub(crate) members: BTreeMap<RegionId, String>,
    /// How many partitions streams are spread over.
    pub(crate) partitions: u16,
    /// The rules of categories.
    pub(crate) categories: BTreeMap<String, CategoryPolicy>,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// It is done, as the change of this number.
    Changed(u64),
    /// Everything was as it asks already.
    Unchanged,
    /// It was not done.
    Refused(Refusal),
}

/// Why a command was refused. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Refusal {
    /// The first command has not come yet.
    #[error(
        "the federation is not founded yet: more than half of its regions must be up; try again"
    )]
    NotFounded,
    /// There is no such region.
    #[error(
        "region {region} is not a member of the federation; `meridian status` lists the members"
    )]
    UnknownRegion {
        /// The region.
        region: RegionId,
    },
    /// The stream has no home.
    #[error("stream {stream} is written in every region, so it has no home to move")]
    NoHome {
        /// The stream.
        stream: StreamId,
    },
    /// The server needs it where it is.
    #[error("stream {stream} is the server's own; it stays where it is")]
    Internal {
        /// The stream.
        stream: StreamId,
    },
    /// Its last move is not over.
    #[error(
        "stream {stream} is still being moved from region {from} to region {to}; both must be up for \
         that to end, then move it again"
    )]
    Moving {
        /// The stream.
        stream: StreamId,
        /// Whence.
        from: RegionId,
        /// Whither.
        to: RegionId,
    },
    /// Homes are being moved from or to a region, or all at once.
    #[error(
        "the homes that change {change} moves are not all open yet; all regions must be up for that to \
         end, then try again"
    )]
    Draining {
        /// The change.
        change: u64,
    },
    /// It is home to nothing.
    #[error("region {region} is drained; resume it before anything is moved there")]
    Drained {
        /// The region.
        region: RegionId,
    },
    /// It would leave nobody to write.
    #[error("region {region} is the last that is home to streams; resume another one first")]
    LastRegion {
        /// The region.
        region: RegionId,
    },
    /// More than one command takes.
    #[error("{found} streams in one move; at most {MOVES_MAX} are moved at once")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// It is put out.
    #[error(
        "region {region} is fenced; it comes back by itself once its node runs and has stranded what \
         does not count any more"
    )]
    Fenced {
        /// The region.
        region: RegionId,
    },
    /// One at a time.
    #[error(
        "the fence of change {change} is not open yet; it waits for {} regions. When they answer it goes \
         on; if one of them is lost too, evict it",
        waits_for.len()
    )]
    FenceRunning {
        /// The change.
        change: u64,
        /// Who has still to do its part.
        waits_for: BTreeSet<RegionId>,
    },
    /// It is gone for good.
    #[error(
        "region {region} has left the federation for good; to have a region there again, add one with \
         another number and name"
    )]
    Left {
        /// The region.
        region: RegionId,
    },
    /// It is on its way out.
    #[error(
        "region {region} is leaving; its node leaves once every other region holds what it holds"
    )]
    Leaving {
        /// The region.
        region: RegionId,
    },
    /// It is on its way in.
    #[error("region {region} is still becoming a member; wait until it is one")]
    Joining {
        /// The region.
        region: RegionId,
    },
    /// It is home to streams.
    #[error("region {region} may be home to streams; drain it before it leaves")]
    NotDrained {
        /// The region.
        region: RegionId,
    },
    /// Numbers are never given out twice.
    #[error(
        "number {region} is, or was, that of region {name:?}, and numbers are never used again; give the \
         new region the next free one"
    )]
    IdUsed {
        /// The number.
        region: RegionId,
        /// Whose it is.
        name: String,
    },
    /// Names are never given out twice.
    #[error(
        "there is, or was, a region called {name:?}, of number {region}, and names are never used again; \
         call the new region something else"
    )]
    NameUsed {
        /// The name.
        name: String,
        /// Whose it is.
        region: RegionId,
    },
    /// Streams would be spread differently.
    #[error(
        "the new region has {found} partitions, the federation {expected}; set `partitions` to that"
    )]
    OtherPartitions {
        /// How many the region has.
        found: u16,
        /// How many it must have.
        expected: u16,
    },
    /// There is nothing to evict anyone from.
    #[error("no fence is under way; fence the region instead")]
    NoFence,
    /// One at a time.
    #[error(
        "another policy is being set for category {category}; that waits for every region to say that it \
         holds no events of it. Start those that are down, or fence them, then try again"
    )]
    BeingSet {
        /// The category.
        category: String,
    },
    /// Something that was acknowledged by a majority might be lost.
    #[error(
        "only {remain} of {of} members would remain, which is no majority: what the others \
         acknowledged might be left out; force it if that is accepted"
    )]
    MinorityRemains {
        /// How many.
        remain: usize,
        /// Of how many.
        of: usize,
    },
    /// It is home to nobody.
    #[error(
        "stream {stream} has no events yet, and its home is where its first one is written; append that in \
         the region that is to be its home"
    )]
    NotCreated {
        /// The stream.
        stream: StreamId,
    },
    /// What the request rests on may not count any more.
    #[error("a region was fenced, by change {change}, while the move was asked for; ask again")]
    FencedSince {
        /// The change.
        change: u64,
    },
}

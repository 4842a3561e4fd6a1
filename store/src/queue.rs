//! What writers and lanes share: the blocks that wait, the segment that is being written, and the
//! groups in flight.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use meridian_clock::LogId;
use meridian_event::{Block, BlockHeader, Chain};
use meridian_points::{Bug, buggify, planted, reached};

use crate::build::Heads;
use crate::core::Core;
use crate::envelope::entry_bytes;
use crate::index::EventKeys;
use crate::segment::SEGMENT_HEADER_BYTES;
use crate::store::Done;
use crate::{DiskFile, Generations, LogHead, LogOffset, SubmitError};

// While one group syncs, one more is written; a third brings nothing (measured).
pub(crate) const IN_FLIGHT_MAX: usize = 2;
// Beyond this many segments whose index is yet to be written, commits wait: each costs memory.
const UNSEALED_MAX: usize = 3;

/// A block that was taken and is not yet part of a group.
pub(crate) struct Waiting {
    pub(crate) block: Block,
    pub(crate) chain: Chain,
    pub(crate) keys: Vec<EventKeys>,
    pub(crate) done: Done,
}

impl Waiting {
    pub(crate) fn weight_bytes(&self) -> usize {
        self.block.bytes().len() + self.keys.len() * size_of::<EventKeys>()
    }

    pub(crate) fn entry_bytes(&self) -> u64 {
        entry_bytes(self.block.bytes().len())
    }
}

/// The segment that is being written.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) number: u64,
    pub(crate) len: u64,
    /// Where the next entry goes.
    pub(crate) tail: u64,
    pub(crate) events: u64,
    /// The last entry is a mark.
    pub(crate) marked: bool,
    pub(crate) fill: Fill,
}

/// How far zeros were written ahead.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fill {
    pub(crate) until: u64,
    /// Zeros are being written here right now: nothing else may be.
    pub(crate) claim: Option<(u64, u64)>,
}

/// An empty segment, ready to be written.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) number: u64,
    pub(crate) len: u64,
    pub(crate) fill: Fill,
}

/// Why no more blocks are taken.
#[derive(Clone, Debug)]
pub(crate) enum Stop {
    Closed,
    Failed(String),
}

pub(crate) struct InFlight {
    pub(crate) sequence: u64,
    pub(crate) end: u64,
    pub(crate) bytes: usize,
    // Set when its sync has ended.
    pub(crate) outcome: Option<(Vec<Placed>, Result<(), String>)>,
}

pub(crate) struct Queue {
    pub(crate) waiting: VecDeque<Waiting>,
    /// Of what waits and what is in flight.
    pub(crate) bytes: usize,
    pub(crate) submitted: Heads,
    /// Of the logs whose regions were fenced.
    pub(crate) generations: BTreeMap<LogId, Generations>,
    pub(crate) open: Open,
    pub(crate) next: Option<Prepared>,
    pub(crate) preparing: bool,
    /// Preparing ahead failed; it is tried again after everything else, or when there is no way around
    /// it.
    pub(crate) prepare_failed: bool,
    pub(crate) in_flight: VecDeque<InFlight>,
    pub(crate) next_sequence: u64,
    pub(crate) completing: bool,
    /// Everything before this is durable.
    pub(crate) durable: LogOffset,
    pub(crate) stop: Option<Stop>,
    pub(crate) disk_full: Option<String>,
    /// Sealed segments whose index file is yet to be written.
    pub(crate) to_seal: VecDeque<u64>,
    pub(crate) seal_failed: bool,
    /// Lanes that wait for work, and whether one of them was called and has not come yet.
    pub(crate) idle: usize,
    called: bool,
    /// Leave the open segment at the next chance, because it has to be repaired.
    pub(crate) roll_wanted: bool,
}

pub(crate) struct Placed {
    pub(crate) waiting: Waiting,
    pub(crate) offset: u64,
}

/// A group whose places are given.
pub(crate) struct Group {
    pub(crate) sequence: u64,
    pub(crate) segment: u64,
    pub(crate) start: u64,
    pub(crate) durable: LogOffset,
    pub(crate) placed: Vec<Placed>,
    // Of writing it; what remains is the sync.
    pub(crate) written: Result<Option<Arc<dyn DiskFile>>, String>,
}

/// What a lane found to do.
pub(crate) enum Taken {
    Group(Group),
    Nothing,
    Stopped,
}

pub(crate) enum Ready {
    Group,
    Wait,
    Prepare { number: u64, len: u64 },
    Extend { number: u64, len: u64 },
}

impl Queue {
    pub(crate) fn new(open: Open, durable: LogOffset, heads: Heads) -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes: 0,
            submitted: heads,
            generations: BTreeMap::new(),
            open,
            next: None,
            preparing: false,
            prepare_failed: false,
            in_flight: VecDeque::new(),
            next_sequence: 1,
            completing: false,
            durable,
            stop: None,
            disk_full: None,
            to_seal: VecDeque::new(),
            seal_failed: false,
            idle: 0,
            called: false,
            roll_wanted: false,
        }
    }

    pub(crate) fn submitted_head(&self, log: LogId) -> LogHead {
        self.submitted
            .get(&log)
            .copied()
            .unwrap_or(LogHead::empty(log))
    }

    /// Whether a lane should be called for what waits. One that was called takes all of it, so a
    /// second call would only split a group in two.
    pub(crate) fn should_call(&mut self) -> bool {
        let call = !self.waiting.is_empty() && self.idle > 0 && !self.called;
        self.called |= call;
        call
    }

    /// A lane came, called or not.
    pub(crate) fn came(&mut self) {
        self.idle -= 1;
        self.called = false;
    }

    /// Whether a lane would find something to do now.
    pub(crate) fn has_work(&self, core: &Core) -> bool {
        (!self.waiting.is_empty() || self.rolls_idle())
            && self.in_flight.len() < IN_FLIGHT_MAX
            && !matches!(self.ready(core), Ready::Wait)
    }

    // The open segment is to be repaired, and nothing comes that would make us leave it.
    fn rolls_idle(&self) -> bool {
        let is_empty = self.open.tail == SEGMENT_HEADER_BYTES;
        self.roll_wanted && !is_empty && self.waiting.is_empty()
    }

    pub(crate) fn admit(&self, block: &Block, bytes_max: usize) -> Result<(), SubmitError> {
        match &self.stop {
            Some(Stop::Closed) => return Err(SubmitError::Closed),
            Some(Stop::Failed(reason)) => {
                return Err(SubmitError::Poisoned {
                    reason: reason.clone(),
                });
            }
            None => {}
        }
        let header = block.header();
        let log = header.log;
        self.check_generation(header)?;
        let head = self.submitted_head(log);
        if header.incarnation < head.incarnation || header.epoch < head.epoch {
            return Err(SubmitError::Superseded {
                log,
                head: Box::new(head),
                incarnation: header.incarnation,
                epoch: header.epoch,
            });
        }
        let leaves_out = planted(Bug::AcceptGap) && header.first_position > head.position.plus(1);
        if header.first_position != head.position.plus(1) && !leaves_out {
            return Err(SubmitError::NotNext {
                log,
                expected: head.position.plus(1),
                actual: header.first_position,
            });
        }
        let any_chain = leaves_out || planted(Bug::SkipChainCheck);
        if header.prev_chain != head.chain && !any_chain {
            return Err(SubmitError::WrongChain {
                log,
                position: header.first_position,
                expected: head.chain,
                actual: header.prev_chain,
            });
        }
        if header.first_timestamp <= head.timestamp {
            return Err(SubmitError::NotRising {
                log,
                last: head.timestamp,
                actual: header.first_timestamp,
            });
        }
        if self.bytes > bytes_max {
            return Err(SubmitError::Full);
        }
        Ok(())
    }

    fn check_generation(&self, header: &BlockHeader) -> Result<(), SubmitError> {
        if planted(Bug::EpochUnchecked) {
            return Ok(());
        }
        let never_fenced = Generations::default();
        let log = header.log;
        let generations = self.generations.get(&log).unwrap_or(&never_fenced);
        generations
            .admits(header.epoch, header.first_position, header.last_position())
            .map_err(|source| SubmitError::Fenced { log, source })
    }

    // Whether the front block can be placed now, and what is needed first if not.
    pub(crate) fn ready(&self, core: &Core) -> Ready {
        let Some(front) = self.waiting.front() else {
            let is_behind = self.to_seal.len() >= UNSEALED_MAX;
            let can_roll = !self.preparing && self.in_flight.is_empty() && !is_behind;
            return match self.rolls_idle() && can_roll {
                true => Ready::Prepare {
                    number: self.open.number + 1,
                    len: core.options.segment_bytes,
                },
                false => Ready::Wait,
            };
        };
        if self.preparing {
            return Ready::Wait;
        }
        let need = front.entry_bytes();
        let count = u64::from(front.block.header().count);
        let open = &self.open;
        let is_empty = open.tail == SEGMENT_HEADER_BYTES;
        let wants_roll = self.roll_wanted && !is_empty;
        if !wants_roll && self.fits(need, count, core.options.segment_events_max) {
            return match self.claimed(open.tail, need) {
                true => Ready::Wait,
                false => Ready::Group,
            };
        }
        // Nothing of a segment may be in doubt once it is left.
        if !self.in_flight.is_empty() {
            return Ready::Wait;
        }
        if is_empty {
            return Ready::Extend {
                number: open.number,
                len: SEGMENT_HEADER_BYTES + need,
            };
        }
        // A store that closes has no housekeeper any more; what it leaves is made at opening.
        let is_behind = self.to_seal.len() >= UNSEALED_MAX;
        if is_behind && !self.seal_failed && self.stop.is_none() {
            return Ready::Wait;
        }
        Ready::Prepare {
            number: open.number + 1,
            len: core.options.segment_bytes.max(SEGMENT_HEADER_BYTES + need),
        }
    }

    fn fits(&self, need: u64, count: u64, events_max: u64) -> bool {
        let open = &self.open;
        open.tail + need <= open.len && (open.events == 0 || open.events + count <= events_max)
    }

    fn claimed(&self, offset: u64, bytes: u64) -> bool {
        self.open
            .fill
            .claim
            .is_some_and(|(start, end)| offset < end && offset + bytes > start)
    }

    pub(crate) fn form_group(&mut self, core: &Core) -> Group {
        let start = self.open.tail;
        let limit = match buggify("a group holds one block") {
            true => 1,
            false => core.options.group_bytes_max as u64,
        };
        let mut placed = Vec::new();
        let mut bytes = 0;
        while let Some(front) = self.waiting.front() {
            let need = front.entry_bytes();
            let count = u64::from(front.block.header().count);
            let group_full = !placed.is_empty() && self.open.tail + need > start + limit;
            if group_full
                || !self.fits(need, count, core.options.segment_events_max)
                || self.claimed(self.open.tail, need)
            {
                break;
            }
            let Some(waiting) = self.waiting.pop_front() else {
                break;
            };
            bytes += waiting.weight_bytes();
            placed.push(Placed {
                waiting,
                offset: self.open.tail,
            });
            self.open.tail += need;
            self.open.events += count;
        }
        self.open.marked = false;
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.in_flight.push_back(InFlight {
            sequence,
            end: self.open.tail,
            bytes,
            outcome: None,
        });
        Group {
            sequence,
            segment: self.open.number,
            start,
            durable: self.durable,
            placed,
            written: Ok(None),
        }
    }

    pub(crate) fn fail(&mut self, reason: &str) {
        if !matches!(self.stop, Some(Stop::Failed(_))) {
            tracing::error!(reason, "the store failed and takes no more blocks");
            reached("the store failed and took no more blocks");
            self.stop = Some(Stop::Failed(reason.to_owned()));
        }
    }

    /// Whether nothing failed.
    pub(crate) fn is_sound(&self) -> bool {
        !matches!(self.stop, Some(Stop::Failed(_)))
    }
}

//! The receiving end of one subscription.

use std::collections::VecDeque;

use meridian_clock::{Epoch, Incarnation, LogId, Position};
use meridian_event::{Block, Chain};
use meridian_points::{Bug, planted};

use crate::frame::{Ack, Head, Subscribe};

/// What to do with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It follows exactly on what we hold: hand it to the store.
    Persist,
    /// We hold it already: only give back the credit that it took, by sending this. Replays are
    /// normal after a reconnect.
    AlreadyHeld(Ack),
}

/// Why a block ends the subscription. Nothing of it was kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InboundError {
    /// A block of a log that this stream is not about.
    #[error("a block of log {found} came on the subscription of log {expected}")]
    OtherLog {
        /// The log that was subscribed to.
        expected: LogId,
        /// The block's.
        found: LogId,
    },
    /// It does not begin where ours ends.
    #[error("log {log} goes on at {found} where {expected} was expected")]
    Gap {
        /// The log.
        log: LogId,
        /// The position we need next.
        expected: Position,
        /// The block's first position.
        found: Position,
    },
    /// It follows on a history that is not ours: the two copies have diverged.
    #[error("log {log} differs at {position}: the block at hand was written after other bytes")]
    WrongChain {
        /// The log.
        log: LogId,
        /// The last position we hold.
        position: Position,
    },
    /// It belongs to another life of the log.
    #[error("log {log} is held in incarnation {expected}, a block is of incarnation {found}")]
    OtherIncarnation {
        /// The log.
        log: LogId,
        /// Ours.
        expected: Incarnation,
        /// The block's.
        found: Incarnation,
    },
    /// It was written by someone who may not write any more.
    #[error("log {log} is in epoch {held}, a block is of the earlier epoch {found}")]
    EarlierEpoch {
        /// The log.
        log: LogId,
        /// The epoch of our last block.
        held: Epoch,
        /// The block's.
        found: Epoch,
    },
    /// The sender does not keep to the credit it was given.
    #[error("the sender of log {log} sent more than the {granted_bytes} bytes it was allowed")]
    OverCredit {
        /// The log.
        log: LogId,
        /// What it was allowed.
        granted_bytes: u64,
    },
    /// The log grew on our disk by something that did not come from here.
    #[error("log {log} was written to {durable} by someone else; it came only to {accepted} here")]
    WrittenElsewhere {
        /// The log.
        log: LogId,
        /// What was accepted here.
        accepted: Position,
        /// What is on disk.
        durable: Position,
    },
}

/// What we keep of one origin log that a peer sends us, and how far we have acknowledged it.
///
/// `durable ≤ accepted`; an [`Ack`] never names more than `durable`, because a sender forgets what
/// was acknowledged and counts it as safe in this region.
#[derive(Debug)]
pub struct InboundSubscription {
    log: LogId,
    incarnation: Incarnation,
    epoch: Epoch,
    accepted: Position,
    chain: Chain,
    durable: Position,
    window_bytes: u64,
    received_bytes: u64,
    granted_bytes: u64,
    // Accepted but not yet durable: last position of each block, and all bytes received up to it.
    pending: VecDeque<(Position, u64)>,
}

impl InboundSubscription {
    /// Goes on from `accepted`, which the store was already given, of which `durable` is on disk.
    /// At most `window_bytes` (and one block) will be underway or waiting for the disk.
    ///
    /// # Panics
    /// When `durable` is beyond `accepted`.
    pub fn new(accepted: &Head, durable: Position, window_bytes: u64) -> Self {
        assert!(
            durable <= accepted.position,
            "durable to {durable}, accepted only to {}",
            accepted.position
        );
        Self {
            log: accepted.log,
            incarnation: accepted.incarnation,
            epoch: accepted.epoch,
            accepted: accepted.position,
            chain: accepted.chain,
            durable,
            window_bytes,
            received_bytes: 0,
            granted_bytes: window_bytes,
            pending: VecDeque::new(),
        }
    }

    /// What to ask the peer.
    pub fn subscribe(&self) -> Subscribe {
        Subscribe {
            log: self.log,
            incarnation: self.incarnation,
            after: self.accepted,
            chain: self.chain,
            credit_bytes: self.granted_bytes,
        }
    }

    /// The last position that was handed to the store.
    pub fn accepted(&self) -> Position {
        self.accepted
    }

    /// Judges a block that the peer sent.
    ///
    /// # Errors
    /// When it does not follow exactly on what we hold; the subscription is over then.
    pub fn handle_block(&mut self, block: &Block) -> Result<Verdict, InboundError> {
        let header = block.header();
        let log = self.log;
        if header.log != log {
            return Err(InboundError::OtherLog {
                expected: log,
                found: header.log,
            });
        }
        // One block may start within the credit and end beyond it, or large blocks could never
        // be sent.
        if self.received_bytes >= self.granted_bytes {
            return Err(InboundError::OverCredit {
                log,
                granted_bytes: self.granted_bytes,
            });
        }
        self.received_bytes += block.bytes().len() as u64;
        let is_new_log = self.accepted == Position::ZERO;
        if !is_new_log && header.incarnation != self.incarnation {
            return Err(InboundError::OtherIncarnation {
                log,
                expected: self.incarnation,
                found: header.incarnation,
            });
        }
        if header.last_position() <= self.accepted {
            self.granted_bytes += block.bytes().len() as u64;
            return Ok(Verdict::AlreadyHeld(self.ack()));
        }
        let expected = self.accepted.plus(1);
        let leaves_out = header.first_position > expected && planted(Bug::AcceptGap);
        if header.first_position != expected && !leaves_out {
            return Err(InboundError::Gap {
                log,
                expected,
                found: header.first_position,
            });
        }
        let any_chain = leaves_out || planted(Bug::SkipChainCheck);
        if header.prev_chain != self.chain && !any_chain {
            return Err(InboundError::WrongChain {
                log,
                position: self.accepted,
            });
        }
        if header.epoch < self.epoch {
            return Err(InboundError::EarlierEpoch {
                log,
                held: self.epoch,
                found: header.epoch,
            });
        }
        self.incarnation = header.incarnation;
        self.epoch = header.epoch;
        self.accepted = header.last_position();
        self.chain = block.chain();
        self.pending.push_back((self.accepted, self.received_bytes));
        Ok(Verdict::Persist)
    }

    /// Takes note that the log is on disk up to `position`. The answer, if any, is to be sent: one
    /// covers everything that became durable since the last.
    ///
    /// # Errors
    /// When more is on disk than we accepted: someone else writes this log.
    pub fn handle_durable(&mut self, position: Position) -> Result<Option<Ack>, InboundError> {
        if position <= self.durable {
            return Ok(None);
        }
        if position > self.accepted {
            return Err(InboundError::WrittenElsewhere {
                log: self.log,
                accepted: self.accepted,
                durable: position,
            });
        }
        self.durable = position;
        while let Some((last, received_bytes)) = self.pending.front()
            && *last <= position
        {
            self.granted_bytes = self.granted_bytes.max(received_bytes + self.window_bytes);
            self.pending.pop_front();
        }
        Ok(Some(self.ack()))
    }

    fn ack(&self) -> Ack {
        Ack {
            durable: self.durable,
            credit_bytes: self.granted_bytes,
        }
    }
}

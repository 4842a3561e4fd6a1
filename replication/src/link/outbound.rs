//! The sending end of one subscription.

use meridian_clock::{LogId, Position};
use meridian_event::{Block, BlockHeader, Chain};

use crate::frame::{Ack, Head, NotServed, Subscribe};

/// A receiver that says what cannot be: its subscription is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// It acknowledges what it was not sent.
    #[error("log {log} was acknowledged to {acknowledged} but sent only to {sent}")]
    NotSent {
        /// The log.
        log: LogId,
        /// What it acknowledged.
        acknowledged: Position,
        /// How far it was sent.
        sent: Position,
    },
}

/// How far we have sent one log to one peer, and how much more it will take.
#[derive(Debug)]
pub struct OutboundSubscription {
    log: LogId,
    sent: Position,
    chain: Chain,
    sent_bytes: u64,
    credit_bytes: u64,
    durable: Position,
}

impl OutboundSubscription {
    /// Begins to serve `subscribe`, if the asker's history is a prefix of ours. `head` is how far we
    /// hold the log, `next` the header of our block that holds the position after the asker's last.
    ///
    /// # Errors
    /// When the asker holds more than we do, or other bytes.
    pub fn start(
        subscribe: &Subscribe,
        head: &Head,
        next: Option<&BlockHeader>,
    ) -> Result<Self, NotServed> {
        let log = subscribe.log;
        let asked = subscribe.after;
        if asked > head.position {
            return Err(NotServed::Behind {
                log,
                held: head.position,
                asked,
            });
        }
        if asked > Position::ZERO && subscribe.incarnation != head.incarnation {
            return Err(NotServed::OtherIncarnation {
                log,
                held: head.incarnation,
                asked: subscribe.incarnation,
            });
        }
        // A block that begins elsewhere is as good as another chain: blocks are kept verbatim, so
        // the asker has cut its own differently.
        let ours = match next {
            _ if asked == head.position => Some(head.chain),
            Some(next) if next.first_position == asked.plus(1) => Some(next.prev_chain),
            _ => None,
        };
        if ours != Some(subscribe.chain) {
            return Err(NotServed::Diverged {
                log,
                position: asked,
            });
        }
        Ok(Self {
            log,
            sent: asked,
            chain: subscribe.chain,
            sent_bytes: 0,
            credit_bytes: subscribe.credit_bytes,
            // What it asks to go on from was accepted there, which is not to say that it is on disk.
            durable: Position::ZERO,
        })
    }

    /// The log.
    pub fn log(&self) -> LogId {
        self.log
    }

    /// The last position that was sent.
    pub fn sent(&self) -> Position {
        self.sent
    }

    /// The last position that the receiver said on this subscription is on its disk.
    pub fn durable(&self) -> Position {
        self.durable
    }

    /// How many bytes to read next, given how far the log is durable here; `None` when there is
    /// nothing to send or no credit to send it on.
    pub fn wants_bytes(&self, head: Position, bytes_max: usize) -> Option<usize> {
        let credit = self.credit_bytes.saturating_sub(self.sent_bytes);
        if head <= self.sent || credit == 0 {
            return None;
        }
        Some(bytes_max.min(usize::try_from(credit).unwrap_or(usize::MAX)))
    }

    /// Takes what was read after [`Self::sent`] and says how many of the blocks to send now: as many
    /// as begin within the credit.
    ///
    /// # Panics
    /// When the blocks do not follow on what was sent (`dense`, `identical`): our own store gave us
    /// something it must never give.
    pub fn handle_read(&mut self, blocks: &[Block]) -> usize {
        let mut count = 0;
        for block in blocks {
            if self.sent_bytes >= self.credit_bytes {
                break;
            }
            let header = block.header();
            assert!(
                header.first_position == self.sent.plus(1),
                "dense: log {} goes on at {} after {}",
                self.log,
                header.first_position,
                self.sent
            );
            self.sent = header.last_position();
            self.sent_bytes += block.bytes().len() as u64;
            count += 1;
        }
        // The receiver checks every link of the chain; here one look per read is enough to never
        // send what does not belong together.
        if let (Some(first), Some(last)) = (blocks.first(), blocks[..count].last()) {
            assert!(
                first.header().prev_chain == self.chain,
                "identical: log {} does not follow on what was sent before {}",
                self.log,
                first.header().first_position
            );
            self.chain = match blocks.get(count) {
                Some(next) => next.header().prev_chain,
                None => last.chain(),
            };
        }
        count
    }

    /// Takes the receiver's word for what it holds and will take.
    ///
    /// # Errors
    /// When it acknowledges more than was sent.
    pub fn handle_ack(&mut self, ack: Ack) -> Result<(), AckError> {
        if ack.durable > self.sent {
            return Err(AckError::NotSent {
                log: self.log,
                acknowledged: ack.durable,
                sent: self.sent,
            });
        }
        // Both only ever rise: an old message that comes late changes nothing.
        self.durable = self.durable.max(ack.durable);
        self.credit_bytes = self.credit_bytes.max(ack.credit_bytes);
        Ok(())
    }
}

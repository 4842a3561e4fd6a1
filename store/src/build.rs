//! Making a segment's index from the segment itself, and noticing what is missing from it.

use std::collections::BTreeMap;
use std::io;

use meridian_clock::{LogId, Position};
use meridian_event::{Block, Chain};
use meridian_points::{Bug, planted};

use crate::DiskFile;
use crate::LogHead;
use crate::envelope::{Envelope, Kind};
use crate::index::{DamagedRow, MemoryIndex, keys_of};
use crate::walk::{Bad, Entry, Item, Walked, walk};

/// The heads of logs, by log.
pub(crate) type Heads = BTreeMap<LogId, LogHead>;

/// A segment's index, just made.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) index: MemoryIndex,
    /// Where each log stands after this segment.
    pub(crate) heads: Heads,
    pub(crate) walked: Walked,
    /// The last entry is a mark, so that damage to anything before it will be noticed.
    pub(crate) ends_with_mark: bool,
}

/// Reads a whole segment and makes its index. `heads` is where each log stood before it.
///
/// # Errors
/// When the disk fails. Damage is no error: it is in the summary.
pub(crate) fn build_index(
    file: &dyn DiskFile,
    segment: u64,
    known_end: Option<u64>,
    heads: Heads,
) -> io::Result<Built> {
    let mut builder = Builder {
        heads,
        index: MemoryIndex::default(),
        ends_with_mark: false,
    };
    let walked = walk(file, segment, known_end, |item| {
        builder.visit(item);
        Ok::<_, io::Error>(())
    })?;
    builder.index.summary.end = walked.end;
    Ok(Built {
        index: builder.index,
        heads: builder.heads,
        walked,
        ends_with_mark: builder.ends_with_mark,
    })
}

/// Where a log stands after `block`, after which the chain is `chain`.
pub(crate) fn head_after(block: &Block, chain: Chain) -> LogHead {
    let header = block.header();
    LogHead {
        log: header.log,
        incarnation: header.incarnation,
        epoch: header.epoch,
        position: header.last_position(),
        chain,
        timestamp: header.last_timestamp,
    }
}

struct Builder {
    heads: Heads,
    index: MemoryIndex,
    ends_with_mark: bool,
}

impl Builder {
    fn visit(&mut self, item: Item) {
        self.ends_with_mark =
            matches!(&item, Item::Entry(entry) if entry.envelope.kind == Kind::Mark);
        match item {
            Item::Entry(Entry {
                offset,
                envelope,
                block: Some(block),
            }) => {
                if let Err(reason) = self.take(offset, &envelope, &block) {
                    self.take_bad(Bad {
                        offset,
                        end: offset + envelope.entry_bytes(),
                        reason,
                        envelope: Some(Box::new(envelope)),
                    });
                }
            }
            Item::Entry(Entry {
                offset, envelope, ..
            }) => {
                // Where a stranded block was nothing is missing, so no gap is to be looked for there.
                if envelope.kind == Kind::Void && !envelope.is_stranded() {
                    let end = offset + envelope.entry_bytes();
                    self.index.summary.voids.push((offset, end));
                }
            }
            Item::Bad(bad) => self.take_bad(bad),
        }
    }

    fn take(&mut self, offset: u64, envelope: &Envelope, block: &Block) -> Result<(), String> {
        let header = block.header();
        let chain = block.chain();
        if chain != envelope.chain {
            return Err("the block does not hash to the chain in its envelope".to_owned());
        }
        let mut keys = keys_of(block, |_| {}).map_err(|error| error.to_string())?;
        if planted(Bug::ForgetIds) {
            keys.iter_mut().for_each(|event| event.id = 0);
        }
        let head = self.head(header.log);
        if header.first_position <= head.position {
            tracing::warn!(
                log = %header.log, position = %header.first_position, offset,
                "a block is here twice; the first one counts"
            );
            return Ok(());
        }
        let follows = header.first_position == head.position.plus(1);
        // After a damaged block the chain before this one is known from that one's envelope; after
        // a gap it is not known at all.
        if follows && header.prev_chain != head.chain {
            return Err("the block does not continue its log's chain".to_owned());
        }
        if !follows {
            self.note_gap(header.log, head.position, header.first_position, offset);
        }
        let bytes = envelope.payload_bytes;
        self.index.insert(header, chain, offset, bytes, &keys);
        self.heads.insert(header.log, head_after(block, chain));
        Ok(())
    }

    fn take_bad(&mut self, bad: Bad) {
        let envelope = match bad.envelope {
            Some(envelope) if envelope.kind == Kind::Block && envelope.count > 0 => envelope,
            _ => {
                self.index.summary.holes.push((bad.offset, bad.end));
                return;
            }
        };
        let log = envelope.log;
        let head = self.head(log);
        if envelope.first_position <= head.position {
            self.index.summary.holes.push((bad.offset, bad.end));
            return;
        }
        if envelope.first_position > head.position.plus(1) {
            self.note_gap(log, head.position, envelope.first_position, bad.offset);
        }
        self.index.insert_damaged(&envelope);
        self.index.summary.damaged.push(DamagedRow {
            log,
            first: envelope.first_position,
            last: envelope.last_position(),
            offset: bad.offset,
            reason: bad.reason,
        });
        self.heads.insert(
            log,
            LogHead {
                incarnation: envelope.incarnation,
                position: envelope.last_position(),
                chain: envelope.chain,
                ..head
            },
        );
    }

    // The positions between `before` and `next` are nowhere; most likely they were in the last hole.
    fn note_gap(&mut self, log: LogId, before: Position, next: Position, offset: u64) {
        let summary = &mut self.index.summary;
        let hole = summary.holes.iter().chain(&summary.voids).max();
        let hole = hole.map(|(start, _)| *start);
        // Nothing of this log in this segment yet: the caller who knows the other segments says
        // where the gap is.
        if summary.span(log).is_none() && hole.is_none() {
            return;
        }
        summary.damaged.push(DamagedRow {
            log,
            first: before.plus(1),
            last: Position(next.0 - 1),
            offset: hole.unwrap_or(offset),
            reason: "positions are missing".to_owned(),
        });
    }

    fn head(&self, log: LogId) -> LogHead {
        self.heads.get(&log).copied().unwrap_or(LogHead::empty(log))
    }
}

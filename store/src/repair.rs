//! Putting refetched blocks back into their damaged places.
//!
//! A sealed segment is never written. Its sound copy is made beside it, synced, and renamed over it;
//! the damaged file is first kept in the folder `damaged`, so that nothing is destroyed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use meridian_event::{Block, Chain};

use crate::build::build_index;
use crate::core::{Core, Segment, heads_before};
use crate::envelope::{ALIGN_BYTES, ENVELOPE_BYTES, Envelope, Kind, entry_bytes};
use crate::index::BlockRow;
use crate::recovery::UNCERTAIN_PATH;
use crate::segment::{HeaderState, LOG_FOLDER, header_bytes, read_header, segment_path};
use crate::{DamagedRange, Disk, DiskFile, LogOffset, RepairError};

const DAMAGED_FOLDER: &str = "damaged";
// Of one segment; a disk that goes on flipping bits must not be filled with copies.
const KEPT_MAX: usize = 16;
// In one copy; more than a few are a disk to be replaced.
const LOOKS_MAX: u32 = 32;
const COPY_BYTES: usize = 1 << 20;

/// What is written over a damaged place.
pub(crate) struct Patch {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Core {
    pub(crate) fn repair_all(&self, blocks: Vec<Block>) -> Result<usize, RepairError> {
        let _one_at_a_time = self.mending();
        let mut known_places: BTreeMap<u64, Vec<(BlockRow, Block)>> = BTreeMap::new();
        let mut in_gaps = Vec::new();
        for block in blocks {
            let Some((segment, range)) = self.damaged_place(&block)? else {
                continue;
            };
            match self.row_of(&segment, &range, &block)? {
                Some(row) => known_places
                    .entry(segment.number)
                    .or_default()
                    .push((row, block)),
                None => in_gaps.push(block),
            }
        }
        let mut repaired = 0;
        for (number, blocks) in known_places {
            repaired += self.repair_known(number, blocks)?;
        }
        // The place of each is known only after the one before it is back.
        for block in in_gaps {
            if let Some((segment, range)) = self.damaged_place(&block)? {
                self.repair_gap(&segment, &range, &block)?;
                repaired += 1;
            }
        }
        Ok(repaired)
    }

    // The segment and the damaged range that a block belongs to, if it is damaged.
    fn damaged_place(
        &self,
        block: &Block,
    ) -> Result<Option<(Arc<Segment>, DamagedRange)>, RepairError> {
        let header = block.header();
        let covering = self
            .damage()
            .covering(header.log, header.first_position)
            .cloned();
        let Some(range) = covering else {
            return Ok(None);
        };
        if header.last_position() > range.last {
            return Err(wrong_range(block));
        }
        let mut queue = self.queue();
        if queue.open.number == range.segment {
            queue.roll_wanted = true;
            drop(queue);
            // Without a commit to come, somebody has to be told.
            self.work.notify_all();
            self.driver.notify_one();
            return Err(RepairError::SegmentOpen {
                segment: range.segment,
            });
        }
        drop(queue);
        let segment = self.segments().get(&range.segment).cloned();
        Ok(segment.map(|segment| (segment, range)))
    }

    fn row_of(
        &self,
        segment: &Segment,
        range: &DamagedRange,
        block: &Block,
    ) -> Result<Option<BlockRow>, RepairError> {
        let header = block.header();
        let row = self
            .ask(segment, |index| {
                index.block_at(header.log, header.first_position)
            })
            .map_err(|error| failed(range.segment)(io::Error::other(error)))?;
        let same = row.is_none_or(|row| {
            row.first == header.first_position
                && row.last() == header.last_position()
                && row.bytes as usize == block.bytes().len()
        });
        match same {
            true => Ok(row),
            false => Err(wrong_range(block)),
        }
    }

    fn repair_known(
        &self,
        number: u64,
        blocks: Vec<(BlockRow, Block)>,
    ) -> Result<usize, RepairError> {
        let io = failed(number);
        let Some(segment) = self.segments().get(&number).cloned() else {
            return Ok(0);
        };
        let mut patches = Vec::new();
        for (row, block) in &blocks {
            let chain = block.chain();
            self.check_chain(&segment, row.offset, block, chain)?;
            patches.push(self.patch(number, row.offset, block, chain).map_err(&io)?);
        }
        self.replace(number, &patches).map_err(&io)?;
        // An index that was made from the damaged segment lacks the events of these blocks.
        let lacking = |row: &BlockRow| {
            let index = segment.index();
            let mut damaged = index.summary().damaged.iter();
            damaged.any(|it| it.log == row.log && it.first == row.first)
        };
        if blocks.iter().any(|(row, _)| lacking(row)) {
            self.rebuild(&segment).map_err(&io)?;
        } else {
            let mut damage = self.damage();
            for (row, _) in &blocks {
                damage.forget(row.log, row.first);
            }
        }
        Ok(blocks.len())
    }

    // Nothing tells where exactly the block was, so it goes to the beginning of the bytes that were
    // lost; what remains of those is given up until the next block comes.
    fn repair_gap(
        &self,
        segment: &Segment,
        range: &DamagedRange,
        block: &Block,
    ) -> Result<(), RepairError> {
        let io = failed(range.segment);
        let header = block.header();
        if header.first_position != range.first {
            return Err(wrong_range(block));
        }
        let end = self.damage().room_at(range.segment, range.offset);
        let need = entry_bytes(block.bytes().len());
        let rest = end.and_then(|end| (end - range.offset).checked_sub(need));
        let Some(rest) = rest.filter(|it| *it == 0 || *it >= ENVELOPE_BYTES as u64) else {
            return Err(RepairError::NoPlace {
                log: header.log,
                first: header.first_position,
            });
        };
        let chain = block.chain();
        self.check_chain(segment, range.offset, block, chain)?;
        let mut patches = vec![
            self.patch(range.segment, range.offset, block, chain)
                .map_err(&io)?,
        ];
        if rest > 0 {
            patches.push(void(range.segment, range.offset + need, rest));
        }
        self.replace(range.segment, &patches).map_err(&io)?;
        self.rebuild(segment).map_err(&io)
    }

    // Refuses a block that is not what was here, as far as anything here still tells.
    fn check_chain(
        &self,
        segment: &Segment,
        offset: u64,
        block: &Block,
        actual: Chain,
    ) -> Result<(), RepairError> {
        let header = block.header();
        let other = |expected| {
            Err(RepairError::OtherBytes {
                log: header.log,
                first: header.first_position,
                expected,
                actual,
            })
        };
        let mut known = self.chain_in_envelope(segment.number, offset, block);
        if known.is_none() {
            let span = segment.index().summary().span(header.log).copied();
            known = span
                .filter(|span| span.last == header.last_position())
                .map(|span| span.chain);
        }
        if known.is_none() {
            let next = self.read_log(header.log, header.last_position(), 1);
            let next = next.ok().and_then(|blocks| blocks.into_iter().next());
            known = next
                .filter(|next| next.header().first_position == header.last_position().plus(1))
                .map(|next| next.header().prev_chain);
        }
        if let Some(expected) = known {
            return match expected == actual {
                true => Ok(()),
                false => other(expected),
            };
        }
        // Nothing after it is sound: it must at least continue what is before it.
        let before = header.first_position.0 - 1;
        let before = match before.checked_sub(1) {
            None => Some(Chain::EMPTY),
            Some(before_that) => {
                let read = self.read_log(header.log, meridian_clock::Position(before_that), 1);
                let block = read.ok().and_then(|blocks| blocks.into_iter().next());
                block
                    .filter(|it| it.header().last_position().0 == before)
                    .map(|it| it.chain())
            }
        };
        match before {
            Some(before) if before == header.prev_chain => Ok(()),
            Some(before) => other(before),
            None => Err(wrong_range(block)),
        }
    }

    fn chain_in_envelope(&self, segment: u64, offset: u64, block: &Block) -> Option<Chain> {
        let envelope = self.envelope_at(segment, offset)?;
        let same = envelope.kind == Kind::Block
            && envelope.log == block.header().log
            && envelope.first_position == block.header().first_position;
        same.then_some(envelope.chain)
    }

    fn envelope_at(&self, segment: u64, offset: u64) -> Option<Envelope> {
        let file = self.files.segment(segment).ok()?;
        let mut bytes = [0; ENVELOPE_BYTES];
        file.read_at(&mut bytes, offset).ok()?;
        Envelope::parse(&bytes, LogOffset::new(segment, offset)).ok()
    }

    fn patch(&self, segment: u64, offset: u64, block: &Block, chain: Chain) -> io::Result<Patch> {
        let own = LogOffset::new(segment, offset);
        // What the damaged envelope said of durability is lost, but all before it is durable now.
        let durable = self
            .envelope_at(segment, offset)
            .map_or(own, |envelope| envelope.durable);
        let mut bytes = Envelope::of_block(block, chain, own, durable)
            .to_bytes()
            .to_vec();
        bytes.extend_from_slice(block.bytes());
        let padded = usize::try_from(entry_bytes(block.bytes().len())).map_err(io::Error::other)?;
        bytes.resize(padded, 0);
        Ok(Patch { offset, bytes })
    }

    // Replaces a sealed segment's file by a copy with the patches applied.
    fn replace(&self, number: u64, patches: &[Patch]) -> io::Result<()> {
        keep_damaged(&*self.disk, number)?;
        replace_segment(&*self.disk, number, patches)?;
        self.files.forget_segment_file(number);
        Ok(())
    }

    /// Gives up damaged bytes that held no block, or none that anything misses: a mark that was
    /// hit, or blocks whose positions were written again after their loss was settled with the
    /// peers.
    pub(crate) fn void_holes(&self, segment: &Segment) -> io::Result<bool> {
        let _one_at_a_time = self.mending();
        let number = segment.number;
        let suspected = self.damage().holes().iter().any(|it| it.segment == number);
        let is_open = self.queue().open.number == number;
        if !suspected || is_open || self.damage().concerns(number) {
            return Ok(false);
        }
        // Known since the index was made: what they held is in no index, so only the peers can tell
        // whether anything is missing.
        let unexplained = !segment.index().summary().holes.is_empty();
        if unexplained && self.disk.exists(UNCERTAIN_PATH)? {
            return Ok(false);
        }
        // Giving bytes up destroys them, so the segment itself is asked once more.
        let file = self.files.segment(number)?;
        let heads = heads_before(&self.segments(), number);
        let end = segment.index().summary().end;
        let built = build_index(&*file, number, Some(end), heads)?.index.summary;
        if built.holes.is_empty() && built.damaged.is_empty() {
            // They were damaged on their way from the disk.
            self.rebuild(segment)?;
            return Ok(true);
        }
        let mut patches = Vec::new();
        for (start, end) in &built.holes {
            let held = self.ask(segment, |index| index.blocks_between(*start, *end));
            let held_nothing = held.map_err(io::Error::other)?.is_empty();
            let bytes = end - start;
            if held_nothing && bytes >= ENVELOPE_BYTES as u64 && bytes.is_multiple_of(ALIGN_BYTES) {
                patches.push(void(number, *start, bytes));
            }
        }
        if patches.is_empty() || !built.damaged.is_empty() {
            return Ok(false);
        }
        self.replace(number, &patches)?;
        self.rebuild(segment)?;
        Ok(true)
    }
}

fn void(segment: u64, offset: u64, bytes: u64) -> Patch {
    let own = LogOffset::new(segment, offset);
    let mut out = Envelope::of_void(own, bytes).to_bytes().to_vec();
    out.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
    Patch { offset, bytes: out }
}

fn failed(segment: u64) -> impl Fn(io::Error) -> RepairError {
    move |source| RepairError::Io { segment, source }
}

fn wrong_range(block: &Block) -> RepairError {
    RepairError::WrongRange {
        log: block.header().log,
        first: block.header().first_position,
        last: block.header().last_position(),
    }
}

/// Replaces a segment's file by a copy with the patches applied, durably: after a crash it is the old
/// file or the new one.
pub(crate) fn replace_segment(disk: &dyn Disk, number: u64, patches: &[Patch]) -> io::Result<()> {
    let path = segment_path(number);
    let fresh = format!("{path}.new");
    let old = disk.open(&path, false)?;
    let copy = disk.open(&fresh, true)?;
    copy_file(&*old, &*copy)?;
    let len = match read_header(&*old, number)? {
        HeaderState::Cut { len } => len,
        _ => old.len()?,
    };
    copy.allocate(len)?;
    copy.write_all_at(&header_bytes(number, len), 0)?;
    for patch in patches {
        copy.write_all_at(&patch.bytes, patch.offset)?;
    }
    copy.sync_data()?;
    disk.rename(&fresh, &path)?;
    disk.sync_dir(LOG_FOLDER)
}

/// Keeps a copy of a damaged segment in the folder `damaged`.
pub(crate) fn keep_damaged(disk: &dyn Disk, number: u64) -> io::Result<()> {
    disk.create_dir_all(DAMAGED_FOLDER)?;
    let prefix = format!("{number:08}.seg.");
    let kept = disk.list(DAMAGED_FOLDER)?;
    let count = kept.iter().filter(|name| name.starts_with(&prefix)).count();
    if count >= KEPT_MAX {
        return Ok(());
    }
    let path = format!("{DAMAGED_FOLDER}/{prefix}{}", count + 1);
    let damaged = disk.open(&segment_path(number), false)?;
    let copy = disk.open(&path, true)?;
    copy_file(&*damaged, &*copy)?;
    copy.sync_data()?;
    disk.sync_dir(DAMAGED_FOLDER)
}

/// Makes `to` the same as `from`. A bit that flips on its way from the disk must not get onto the disk.
pub(crate) fn copy_file(from: &dyn DiskFile, to: &dyn DiskFile) -> io::Result<()> {
    let len = from.len()?;
    to.set_len(0)?;
    to.allocate(len)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut again = vec![0; COPY_BYTES];
    let mut at = 0;
    let mut looks = 0;
    while at < len {
        let read = from.read_at(&mut buffer, at)?;
        if read == 0 {
            break;
        }
        if from.read_at(&mut again, at)? != read || again[..read] != buffer[..read] {
            looks += 1;
            if looks == LOOKS_MAX {
                return Err(io::Error::other(
                    "the disk reads the same place differently each time",
                ));
            }
            continue;
        }
        // Reserved bytes are zeros already.
        if buffer[..read].iter().any(|byte| *byte != 0) {
            to.write_all_at(&buffer[..read], at)?;
        }
        at += read as u64;
    }
    Ok(())
}

impl Core {
    /// The segments that are sealed, ascending.
    pub(crate) fn sealed_segments(&self) -> Vec<Arc<Segment>> {
        let open = self.queue().open.number;
        self.segments()
            .range(..open)
            .map(|(_, segment)| Arc::clone(segment))
            .collect()
    }

    /// Writes the header of a sealed segment anew, which says nothing that its name does not.
    pub(crate) fn restore_header(&self, number: u64) -> io::Result<()> {
        let _one_at_a_time = self.mending();
        self.replace(number, &[])
    }
}

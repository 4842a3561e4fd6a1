//! Checking a whole data folder that no node has open.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use meridian_clock::{LogId, Position, RegionId};
use meridian_event::Revision;

use crate::build::{Heads, build_index};
use crate::checked_file::{self, CheckedFileError};
use crate::core::{advance_heads, end_told_by_next};
use crate::files::Files;
use crate::index::{DamagedRow, FileIndex, Index, IndexError, MemoryIndex, Summary};
use crate::segment::{
    HeaderState, LOG_FOLDER, SEGMENT_HEADER_BYTES, index_path, numbers, read_header, segment_path,
};
use crate::store::LOCK_PATH;
use crate::stranded::{STRANDED_FOLDER, done_path, parse_done_name, parse_name, read_file};
use crate::walk::{Window, end_of_content, next_envelope};
use crate::{Disk, LogHead};

/// One thing that is wrong with a data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file it is in, below the data folder.
    pub file: String,
    /// Where in that file it begins.
    pub offset: u64,
    /// The origin log concerned, when that can be told.
    pub log: Option<LogId>,
    /// The positions concerned, when that can be told.
    pub positions: Option<(Position, Position)>,
    /// What is wrong.
    pub reason: String,
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// How far each origin log goes.
    pub logs: Vec<LogHead>,
    /// Everything that is wrong. Empty means that every block's checksum and chain is right, every
    /// log is dense, every index says what its segment says, every file of stranded blocks is whole,
    /// and revisions have no gap where one region wrote all there is.
    pub damage: Vec<Damage>,
    /// How many events could be read, without those that are stranded.
    pub events: u64,
    /// How many streams there are.
    pub streams: u64,
    /// In how many of them the revisions run 0, 1, 2… without a gap, per origin. Of the others, which moved between
    /// regions, one region's log goes further here than another's.
    pub streams_gapless: u64,
    /// How many bytes at the end were never acknowledged and will be cut when a node starts.
    pub torn_tail_bytes: u64,
    /// Index files that are missing and will be made when a node starts: no damage.
    pub indexes_missing: u64,
}

/// Why a data folder could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A node has the folder open. Stop it first.
    #[error("the data folder is in use by a running node; stop it, then verify again")]
    InUse,
    /// The folder could not be read.
    #[error("read {path}")]
    Io {
        /// What was being read.
        path: String,
        /// What the disk said.
        source: io::Error,
    },
}

/// Checks every byte of a data folder that no node has open. Changes nothing.
///
/// # Errors
/// When a node has the folder open, or it cannot be read at all.
pub fn verify<D: Disk + Clone>(disk: &D) -> Result<VerifyReport, VerifyError> {
    let at = |path: &str| {
        let path = path.to_owned();
        move |source| VerifyError::Io { path, source }
    };
    let _lock = match disk.lock(LOCK_PATH) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(VerifyError::InUse),
        lock => lock.map_err(at(LOCK_PATH))?,
    };
    let files = Arc::new(Files::new(Arc::new(disk.clone())));
    let mut verifier = Verifier {
        files,
        heads: Heads::new(),
        streams: BTreeMap::new(),
        report: VerifyReport::default(),
    };
    let mut numbers = numbers(disk, "seg").map_err(at(LOG_FOLDER))?;
    while let Some(number) = numbers.last().copied() {
        let content = verifier
            .content(number)
            .map_err(at(&segment_path(number)))?;
        match content {
            Content::Entries => break,
            Content::Bytes(count) => verifier.report.torn_tail_bytes += count,
            Content::Nothing => {}
        }
        numbers.pop();
    }
    for (place, number) in numbers.iter().enumerate() {
        let next = numbers.get(place + 1).copied();
        verifier
            .segment(*number, next)
            .map_err(at(&segment_path(*number)))?;
    }
    verifier.stranded(disk).map_err(at(STRANDED_FOLDER))?;
    Ok(verifier.finish())
}

enum Content {
    Entries,
    // Not zeros, but no entry either.
    Bytes(u64),
    Nothing,
}

// What an origin wrote to a stream so far: the first and last revision of each run without a gap.
// Between two of them another origin was its home, or something is missing.
type Runs = Vec<(Revision, Revision)>;

struct Verifier {
    files: Arc<Files>,
    heads: Heads,
    streams: BTreeMap<u128, BTreeMap<RegionId, Runs>>,
    report: VerifyReport,
}

impl Verifier {
    fn content(&self, number: u64) -> io::Result<Content> {
        let file = self.files.segment(number)?;
        let mut window = Window::new(&*file)?;
        let until = window.len();
        if next_envelope(&mut window, number, SEGMENT_HEADER_BYTES, until)?.is_some() {
            return Ok(Content::Entries);
        }
        let end = end_of_content(&mut window, SEGMENT_HEADER_BYTES)?;
        Ok(match end - SEGMENT_HEADER_BYTES {
            0 => Content::Nothing,
            count => Content::Bytes(count),
        })
    }

    fn segment(&mut self, number: u64, next: Option<u64>) -> io::Result<()> {
        let path = segment_path(number);
        let file = self.files.segment(number)?;
        match read_header(&*file, number)? {
            HeaderState::Sound => {}
            HeaderState::Cut { .. } => {
                let reason = "the file is shorter than it was made";
                self.damage(&path, file.len()?, None, reason);
            }
            HeaderState::Damaged | HeaderState::Newer(_) => {
                self.damage(&path, 0, None, "the segment's header is damaged");
            }
        }
        let known_end = match next {
            Some(next) => end_told_by_next(&self.files, number, next)?,
            None => None,
        };
        let built = build_index(&*file, number, known_end, self.heads.clone())?;
        if next.is_none() {
            self.report.torn_tail_bytes += built.walked.content_end - built.walked.end;
        }
        let summary = &built.index.summary;
        self.check_gaps(&path, summary);
        let is_sound = summary.damaged.is_empty() && summary.holes.is_empty();
        let index = self.check_index(number, next.is_none(), &built.index)?;
        self.heads = built.heads;
        let mut damaged = summary.damaged.clone();
        let mut holes = summary.holes.clone();
        // The index of a damaged segment knows more than the segment tells now.
        if let Some(index) = index.filter(|_| !is_sound).map(Index::File) {
            if let Ok(named) = name_damage(&index, summary) {
                (damaged, holes) = named;
            }
            advance_heads(&mut self.heads, index.summary());
        }
        for row in &damaged {
            let positions = Some((row.log, row.first, row.last));
            self.damage(&path, row.offset, positions, &row.reason);
        }
        for (start, end) in &holes {
            let reason = format!("{} bytes are no entry", end - start);
            self.damage(&path, *start, None, &reason);
        }
        self.report.events += summary.events;
        self.take_streams(&built.index);
        Ok(())
    }

    fn check_gaps(&mut self, path: &str, summary: &Summary) {
        for span in &summary.spans {
            let head = self.heads.get(&span.log).copied();
            let before = head.map_or(Position::ZERO, |head| head.position);
            let known = |row: &DamagedRow| row.log == span.log && row.first == before.plus(1);
            if span.first > before.plus(1) && !summary.damaged.iter().any(known) {
                let last = Position(span.first.0 - 1);
                let positions = Some((span.log, before.plus(1), last));
                let offset = SEGMENT_HEADER_BYTES;
                self.damage(path, offset, positions, "positions before are missing");
            }
            if let (Some(head), Some(chain)) = (head, span.chain_before)
                && span.first == head.position.plus(1)
                && chain != head.chain
            {
                let positions = Some((span.log, span.first, span.first));
                let offset = SEGMENT_HEADER_BYTES;
                self.damage(path, offset, positions, "the chain does not continue");
            }
        }
    }

    // The index file, if it is there and sound.
    fn check_index(
        &mut self,
        number: u64,
        is_last: bool,
        built: &MemoryIndex,
    ) -> io::Result<Option<FileIndex>> {
        let path = index_path(number);
        let index = match FileIndex::open(&self.files, number) {
            Ok(Some(index)) => index,
            Ok(None) => {
                self.report.indexes_missing += u64::from(!is_last);
                return Ok(None);
            }
            Err(IndexError::Io(error)) => return Err(error),
            Err(IndexError::Damaged(reason)) => {
                self.damage(&path, 0, None, reason);
                return Ok(None);
            }
        };
        let is_sound = built.summary.damaged.is_empty() && built.summary.holes.is_empty();
        let checked = match is_sound {
            true => index.check().and_then(|_| index.differs_from(built)),
            false => index.check().map(|_| None),
        };
        match checked {
            Ok(None) => Ok(Some(index)),
            Ok(Some(reason)) | Err(IndexError::Damaged(reason)) => {
                self.damage(&path, 0, None, reason);
                Ok(None)
            }
            Err(IndexError::Io(error)) => Err(error),
        }
    }

    // What was moved out of the log; it counts in nothing else of the report.
    fn stranded(&mut self, disk: &dyn Disk) -> io::Result<()> {
        for name in disk.list(STRANDED_FOLDER)? {
            if let Some((log, generation)) = parse_name(&name)
                && let Some(found) = read_file(disk, log, generation)?
                && let Some((offset, reason)) = found.damage
            {
                self.stranded_damage(name, offset, log, reason);
            } else if let Some((log, generation)) = parse_done_name(&name)
                && let Err(error) = checked_file::read(disk, &done_path(log, generation))
            {
                match error {
                    CheckedFileError::Io { source, .. } => return Err(source),
                    CheckedFileError::Damaged { reason, .. } => {
                        self.stranded_damage(name, 0, log, reason.to_owned());
                    }
                }
            }
        }
        Ok(())
    }

    fn stranded_damage(&mut self, name: String, offset: u64, log: LogId, reason: String) {
        self.report.damage.push(Damage {
            file: format!("{STRANDED_FOLDER}/{name}"),
            offset,
            log: Some(log),
            positions: None,
            reason,
        });
    }

    fn take_streams(&mut self, index: &MemoryIndex) {
        for (stream, origin, revision) in index.stream_keys() {
            let origins = self.streams.entry(stream).or_default();
            let runs = origins.entry(origin).or_default();
            match runs.last_mut() {
                Some((_, last)) if revision == *last || revision == last.next() => *last = revision,
                _ => runs.push((revision, revision)),
            }
        }
    }

    fn damage(
        &mut self,
        file: &str,
        offset: u64,
        positions: Option<(LogId, Position, Position)>,
        reason: &str,
    ) {
        self.report.damage.push(Damage {
            file: file.to_owned(),
            offset,
            log: positions.map(|(log, ..)| log),
            positions: positions.map(|(_, first, last)| (first, last)),
            reason: reason.to_owned(),
        });
    }

    fn finish(mut self) -> VerifyReport {
        self.report.logs = self.heads.values().copied().collect();
        self.report.streams = self.streams.len() as u64;
        let gapless = |origins: &&BTreeMap<RegionId, Runs>| is_gapless(origins);
        self.report.streams_gapless = self.streams.values().filter(gapless).count() as u64;
        let gaps = self.report.streams - self.report.streams_gapless;
        let origins: BTreeSet<RegionId> = self.heads.keys().map(|log| log.origin).collect();
        if gaps > 0 && origins.len() < 2 && self.report.damage.is_empty() {
            let reason = format!("the revisions of {gaps} streams have gaps");
            self.damage(LOG_FOLDER, 0, None, &reason);
        }
        self.report
    }
}

// What the damaged bytes of a segment held, by its index: blocks, and bytes that held none.
fn name_damage(
    index: &Index,
    summary: &Summary,
) -> Result<(Vec<DamagedRow>, Vec<(u64, u64)>), IndexError> {
    let mut damaged = Vec::new();
    let mut unnamed = Vec::new();
    for (start, end) in &summary.holes {
        let rows = index.blocks_between(*start, *end)?;
        if rows.is_empty() {
            unnamed.push((*start, *end));
        }
        damaged.extend(rows.into_iter().map(|row| DamagedRow {
            log: row.log,
            first: row.first,
            last: row.last(),
            offset: row.offset,
            reason: "no entry is here".to_owned(),
        }));
    }
    // Gaps are explained by now; what remains are blocks whose envelopes still name them.
    for row in &summary.damaged {
        let explained =
            |it: &DamagedRow| it.log == row.log && it.first >= row.first && it.last <= row.last;
        if !damaged.iter().any(explained) {
            damaged.push(row.clone());
        }
    }
    Ok((damaged, unnamed))
}

// Whether a stream's revisions run from 0 without a gap: for each origin, or, if it moved between
// origins, through all of them, however often.
fn is_gapless(origins: &BTreeMap<RegionId, Runs>) -> bool {
    let alone = |runs: &Runs| matches!(runs[..], [(first, _)] if first == Revision(0));
    if origins.values().all(alone) {
        return true;
    }
    let mut runs: Runs = origins.values().flatten().copied().collect();
    runs.sort_unstable();
    let begins = runs.first().is_some_and(|(first, _)| *first == Revision(0));
    begins && runs.windows(2).all(|pair| pair[0].1.next() == pair[1].0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gapless(origins: &[&[(u64, u64)]]) -> bool {
        let runs = |runs: &[(u64, u64)]| {
            let run = |(first, last): &(u64, u64)| (Revision(*first), Revision(*last));
            runs.iter().map(run).collect::<Runs>()
        };
        let origins = origins.iter().map(|it| runs(it));
        is_gapless(&(0..).map(RegionId).zip(origins).collect())
    }

    #[test]
    fn a_stream_may_move_back_and_forth_but_nothing_of_it_may_be_missing() {
        assert!(gapless(&[&[(0, 5)]]));
        assert!(gapless(&[&[(0, 5)], &[(6, 9)]]));
        assert!(gapless(&[&[(0, 5), (10, 12)], &[(6, 9)]]));
        assert!(gapless(&[&[(0, 5)], &[(0, 9)]]), "every region writes it");
        assert!(!gapless(&[&[(1, 5)]]));
        assert!(!gapless(&[&[(0, 5), (7, 9)]]));
        assert!(!gapless(&[&[(0, 5), (10, 12)], &[(6, 8)]]));
        assert!(!gapless(&[&[(0, 5), (9, 12)], &[(6, 9)]]));
    }
}

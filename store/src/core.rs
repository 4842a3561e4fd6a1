//! What the parts of an open store share.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard,
    RwLockWriteGuard,
};

use meridian_clock::Position;
use tokio::sync::{Notify, watch};

use crate::build::{Heads, build_index};
use crate::damage::Register;
use crate::envelope::{ENVELOPE_BYTES, Envelope};
use crate::files::Files;
use crate::index::{Index, IndexError, Summary};
use crate::queue::Queue;
use crate::segment::{SEGMENT_HEADER_BYTES, segment_path};
use crate::store::Dependencies;
use crate::walk::{Window, next_envelope};
use crate::{DamagedRange, Disk, LogHead, LogOffset, ReadError, StoreOptions};

/// A segment, open or sealed.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    index: RwLock<Index>,
}

/// What readers see: everything in it is durable.
#[derive(Debug)]
pub(crate) struct View {
    /// By number; the last one is open.
    pub(crate) segments: Arc<BTreeMap<u64, Arc<Segment>>>,
    pub(crate) heads: Heads,
    /// Where the committed log ends.
    pub(crate) end: LogOffset,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) blocks_committed: AtomicU64,
    pub(crate) fsyncs: AtomicU64,
}

/// An open store without its threads.
pub(crate) struct Core {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) options: StoreOptions,
    pub(crate) files: Arc<Files>,
    /// What writers and lanes share. Never held during a call to the disk.
    pub(crate) queue: Mutex<Queue>,
    /// Lanes wait here for blocks.
    pub(crate) work: Condvar,
    /// The housekeeper waits here.
    pub(crate) chores: Condvar,
    view: RwLock<View>,
    pub(crate) damage: Mutex<Register>,
    // One repair at a time; each may make an index anew, which readers may do too.
    mending: Mutex<()>,
    rebuilding: Mutex<()>,
    pub(crate) committed: watch::Sender<u64>,
    pub(crate) room: Notify,
    /// What events depend on in other logs, once somebody can tell.
    pub(crate) dependencies: OnceLock<Dependencies>,
    pub(crate) driver: Notify,
    pub(crate) counters: Counters,
    /// The folder's lock. Here, so that it outlives every lane that could still write.
    pub(crate) lock: Mutex<Option<Box<dyn Send + Sync>>>,
}

impl Segment {
    pub(crate) fn new(number: u64, index: Index) -> Arc<Self> {
        Arc::new(Self {
            number,
            index: RwLock::new(index),
        })
    }

    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        files: Arc<Files>,
        queue: Queue,
        view: View,
        damage: Register,
    ) -> Self {
        Self {
            disk,
            options,
            files,
            queue: Mutex::new(queue),
            work: Condvar::new(),
            chores: Condvar::new(),
            view: RwLock::new(view),
            damage: Mutex::new(damage),
            mending: Mutex::new(()),
            rebuilding: Mutex::new(()),
            committed: watch::Sender::new(0),
            room: Notify::new(),
            dependencies: OnceLock::new(),
            driver: Notify::new(),
            counters: Counters::default(),
            lock: Mutex::new(None),
        }
    }

    pub(crate) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn view_mut(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn damage(&self) -> MutexGuard<'_, Register> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn mending(&self) -> MutexGuard<'_, ()> {
        self.mending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn rebuilding(&self) -> MutexGuard<'_, ()> {
        self.rebuilding
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn segments(&self) -> Arc<BTreeMap<u64, Arc<Segment>>> {
        Arc::clone(&self.view().segments)
    }

    pub(crate) fn count(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    /// Asks a segment's index. A damaged index is made anew from its segment first.
    pub(crate) fn ask<T>(
        &self,
        segment: &Segment,
        question: impl Fn(&Index) -> Result<T, IndexError>,
    ) -> Result<T, ReadError> {
        let answer = question(&segment.index());
        let damaged = match answer {
            Ok(answer) => return Ok(answer),
            Err(IndexError::Io(source)) => return Err(self.read_error(segment.number, source)),
            Err(IndexError::Damaged(reason)) => reason,
        };
        tracing::warn!(
            segment = segment.number,
            reason = damaged,
            "an index file is damaged; making it anew from its segment"
        );
        self.rebuild(segment)
            .map_err(|source| self.read_error(segment.number, source))?;
        match question(&segment.index()) {
            Ok(answer) => Ok(answer),
            Err(IndexError::Io(source)) => Err(self.read_error(segment.number, source)),
            Err(IndexError::Damaged(reason)) => {
                Err(self.read_error(segment.number, io::Error::other(reason)))
            }
        }
    }

    pub(crate) fn read_error(&self, segment: u64, source: io::Error) -> ReadError {
        ReadError::Io {
            path: segment_path(segment),
            source,
        }
    }

    /// Makes a sealed segment's index anew, in memory, and asks the housekeeper to write it.
    pub(crate) fn rebuild(&self, segment: &Segment) -> io::Result<()> {
        let _one_at_a_time = self.rebuilding();
        let segments = self.segments();
        let heads = heads_before(&segments, segment.number);
        let file = self.files.segment(segment.number)?;
        let end = segment.index().summary().end;
        let built = build_index(&*file, segment.number, Some(end), heads)?;
        {
            let mut damage = self.damage();
            damage.forget_segment(segment.number);
            damage.take_summary(segment.number, &built.index.summary);
        }
        *segment.index_mut() = Index::Memory(built.index);
        note_gaps(&segments, &mut self.damage());
        self.queue().to_seal.push_back(segment.number);
        self.chores.notify_all();
        self.driver.notify_one();
        Ok(())
    }
}

/// Where each log stands before segment `number`.
pub(crate) fn heads_before(segments: &BTreeMap<u64, Arc<Segment>>, number: u64) -> Heads {
    let mut heads = Heads::new();
    for segment in segments.range(..number).map(|(_, segment)| segment) {
        advance_heads(&mut heads, segment.index().summary());
    }
    heads
}

/// Moves `heads` past a segment.
pub(crate) fn advance_heads(heads: &mut Heads, summary: &Summary) {
    for span in &summary.spans {
        let head = heads.entry(span.log).or_insert(LogHead::empty(span.log));
        *head = LogHead {
            log: span.log,
            incarnation: span.incarnation,
            epoch: span.epoch.max(head.epoch),
            position: span.last,
            chain: span.chain,
            timestamp: span.timestamp.max(head.timestamp),
        };
    }
}

/// Notes the positions that are in no segment although there are later ones.
pub(crate) fn note_gaps(segments: &BTreeMap<u64, Arc<Segment>>, damage: &mut Register) {
    let mut heads = Heads::new();
    for (number, segment) in segments {
        let index = segment.index();
        for span in &index.summary().spans {
            let before = heads
                .get(&span.log)
                .map_or(0, |head: &LogHead| head.position.0);
            if span.first.0 <= before + 1 {
                continue;
            }
            let (segment, offset) = damage
                .last_hole(*number)
                .unwrap_or((*number, SEGMENT_HEADER_BYTES));
            damage.note_unindexed(DamagedRange {
                log: span.log,
                first: Position(before + 1),
                last: Position(span.first.0 - 1),
                segment,
                offset,
                reason: "positions are missing".to_owned(),
            });
        }
        advance_heads(&mut heads, index.summary());
    }
}

/// Where segment `number` ends, if the segment after it says so.
pub(crate) fn end_told_by_next(files: &Files, number: u64, next: u64) -> io::Result<Option<u64>> {
    let file = files.segment(next)?;
    let mut window = Window::new(&*file)?;
    let until = window.len();
    let Some(at) = next_envelope(&mut window, next, SEGMENT_HEADER_BYTES, until)? else {
        return Ok(None);
    };
    let bytes = window.get(at, ENVELOPE_BYTES)?;
    let told = Envelope::parse(&bytes, LogOffset::new(next, at)).ok();
    Ok(told
        .filter(|envelope| envelope.durable.segment == number)
        .map(|envelope| envelope.durable.offset))
}

//! The store: one physical log that holds many origin logs.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};

use meridian_clock::{LogId, OrderKey, Position, RegionId};
use meridian_event::{Block, EventId, EventRef, RecordedEvent, Revision, StreamId};
use tokio::sync::watch;

use crate::commit::Lane;
use crate::core::Core;
use crate::housekeeping::Step;
use crate::queue::{Group, Stop, Taken};
use crate::recovery::{UNCERTAIN_PATH, recover};
use crate::{
    CommitError, DamagedRange, Direction, Disk, Found, Generations, Health, Lanes, LogHead,
    LogOffset, OpenError, OrderedReader, ReadError, Recovery, RepairError, ScanPage, ScrubCursor,
    ScrubStep, SmallState, StoreOptions, StoreStats, StreamRange, SubmitError, small,
};

/// The file whose lock says that a node has the folder open.
pub(crate) const LOCK_PATH: &str = "lock";

/// Runs when a block is durable and can be read, or is not.
pub type Done = Box<dyn FnOnce(Result<(), CommitError>) + Send>;

/// Tells an event's causal dependencies: what must be here of other logs before its own log goes on with it, each with
/// the position up to which it is needed. Asked for every event that is submitted.
pub type Dependencies = Box<dyn Fn(&EventRef<'_>) -> Vec<(LogId, Position)> + Send + Sync>;

/// A group of blocks that was written and is not yet synced; see [`Store::commit_begin`].
#[must_use = "what was written is lost to its writers until it is finished"]
pub struct CommitGroup(Group);

impl fmt::Debug for CommitGroup {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("CommitGroup")
    }
}

/// A node's disk, open. See the crate's page.
pub struct Store {
    core: Arc<Core>,
    lanes: Mutex<Vec<JoinHandle<()>>>,
    lane_ids: Vec<ThreadId>,
    small: OnceLock<Box<dyn SmallState>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Store")
    }
}

impl Store {
    /// Opens the store on `disk`, takes its lock and recovers from whatever ended its last life.
    ///
    /// # Errors
    /// When another node has the folder, the disk fails, or a newer build wrote it. Damage to the
    /// log is no error: see [`Recovery::damaged`].
    pub fn open(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
    ) -> Result<(Arc<Self>, Recovery), OpenError> {
        let held = take_lock(&*disk)?;
        let lanes = options.lanes;
        let (core, recovery) = recover(disk, options)?;
        *lock(&core.lock) = Some(held);
        let core = Arc::new(core);
        let lanes = match lanes {
            Lanes::Threads(count) => start(&core, count.max(1)).map_err(|source| {
                core.fail("the lanes could not be started");
                OpenError::Io {
                    path: "start the commit lanes".to_owned(),
                    source,
                }
            })?,
            Lanes::Driven => Vec::new(),
        };
        let store = Self {
            core,
            lane_ids: lanes.iter().map(|lane| lane.thread().id()).collect(),
            lanes: Mutex::new(lanes),
            small: OnceLock::new(),
        };
        Ok((Arc::new(store), recovery))
    }

    /// How far `log` is committed.
    pub fn head(&self, log: LogId) -> LogHead {
        let heads = &self.core.view().heads;
        heads.get(&log).copied().unwrap_or(LogHead::empty(log))
    }

    /// How far each log that has events is committed, ascending by log.
    pub fn heads(&self) -> Vec<LogHead> {
        self.core.view().heads.values().copied().collect()
    }

    /// How far `log` goes with what is queued but not yet durable: the next block must follow this.
    pub fn submitted_head(&self, log: LogId) -> LogHead {
        self.core.queue().submitted_head(log)
    }

    /// Says which generations of `log` there are. From the return of this call on no block is taken
    /// that they do not admit; what was submitted before may still become durable, up to
    /// [`Store::submitted_head`]. Not kept across an opening; until the first call a log's region
    /// counts as never fenced.
    pub fn set_generations(&self, log: LogId, generations: Generations) {
        self.core.queue().generations.insert(log, generations);
    }

    /// From the return of this call on no block is taken before what its events rest on is durable here. So of whatever
    /// part of a log is here, all is here that it rests on. Not kept across an opening; the first call counts.
    pub fn set_dependencies(&self, dependencies: Dependencies) {
        let _ = self.core.dependencies.set(dependencies);
    }

    /// Queues `block`, which must be the exact next one of its log.
    ///
    /// `done` runs on the thread that commits, once this block and every block submitted before it
    /// is durable and can be read, or with the reason why not. It must not wait for anything.
    ///
    /// # Errors
    /// When the block does not continue its log, or the store takes none now. `done` is then not
    /// called.
    pub fn submit(&self, block: Block, done: Done) -> Result<(), SubmitError> {
        self.core.submit(block, done)
    }

    /// Waits until the queue has room (or the store takes no more blocks at all).
    pub async fn room(&self) {
        loop {
            let room = self.core.room.notified();
            tokio::pin!(room);
            // Registered before the look, so that room made in between is not missed.
            room.as_mut().enable();
            {
                let queue = self.core.queue();
                if queue.stop.is_some() || queue.bytes <= self.core.options.queue_bytes_max {
                    return;
                }
            }
            room.await;
        }
    }

    /// A number that changes after each commit.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.core.committed.subscribe()
    }

    /// The committed blocks of `log`, verbatim and contiguous, from the block that holds the
    /// position after `after`; at least one if there is any, and no more than about `bytes_max`.
    ///
    /// # Errors
    /// When the first of them is damaged, or the disk fails.
    pub fn read_log(
        &self,
        log: LogId,
        after: Position,
        bytes_max: usize,
    ) -> Result<Vec<Block>, ReadError> {
        self.core.read_log(log, after, bytes_max)
    }

    /// The committed blocks of all logs in the order they arrived here, from `after` on.
    ///
    /// # Errors
    /// When the disk fails. Damaged blocks are left out and listed.
    pub fn scan(&self, after: LogOffset, bytes_max: usize) -> Result<ScanPage, ReadError> {
        self.core.scan(after, bytes_max)
    }

    /// A reader of the events of `logs` in the one total order, from the first one beyond `after`
    /// on; `after` need not be the key of any event. Nothing is read before
    /// [`OrderedReader::read`]. A log that has no events yet takes part once it has some.
    pub fn ordered(&self, logs: impl IntoIterator<Item = LogId>, after: OrderKey) -> OrderedReader {
        OrderedReader::new(&self.core, logs, after)
    }

    /// The committed event with this id, in whichever log. That there is none is said for sure of `logs`.
    ///
    /// # Errors
    /// When it is damaged, or may be among damaged events of `logs` that no index knows, or the disk
    /// fails.
    pub fn find_event(&self, id: EventId, logs: &[LogId]) -> Result<Option<Found>, ReadError> {
        self.core.find_event(id, logs)
    }

    /// The last committed event of `stream`, among those of `origin` if one is given: by revision
    /// within an origin, and across origins that write it in turn; by order key across others.
    ///
    /// # Errors
    /// When it is damaged, or the disk fails.
    pub fn stream_last(
        &self,
        stream: &StreamId,
        origin: Option<RegionId>,
        in_turn: bool,
    ) -> Result<Option<Found>, ReadError> {
        self.core.stream_last(stream, origin, in_turn)
    }

    /// Committed events of `stream`.
    ///
    /// A stream that regions write in turn (every home stream, moved or not), or whose revisions are
    /// distinct across origins all the same, is read by revision. A stream that several regions write is read in the order of order keys,
    /// and [`StreamRange::from`] counts in that order.
    ///
    /// # Errors
    /// When one of them is damaged and nothing before it could be given, or the disk fails.
    pub fn read_stream(
        &self,
        stream: &StreamId,
        range: StreamRange,
    ) -> Result<Vec<RecordedEvent>, ReadError> {
        self.core.read_stream(stream, range, None)
    }

    /// The first missing revision of `stream`, which regions write in turn, if because of it reads do not show an event
    /// among the first ones of its origins: up to the positions in `seen`, in the logs of the stream's partition.
    ///
    /// # Errors
    /// When it is damaged, or the disk fails.
    pub fn stream_hidden(
        &self,
        stream: &StreamId,
        seen: &[(RegionId, Position)],
    ) -> Result<Option<Revision>, ReadError> {
        self.core.stream_hidden(stream, seen)
    }

    /// Committed events of `stream` that were first written in region `origin`, in the order of their revisions,
    /// from `from` on: at most `limit` of them, and `bytes_max` of data and metadata, but at least one. Nothing is
    /// given that stands behind one that is not here.
    ///
    /// # Errors
    /// When the first of them is damaged, or the disk fails.
    pub fn read_stream_of(
        &self,
        stream: &StreamId,
        origin: RegionId,
        from: Revision,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<RecordedEvent>, ReadError> {
        let range = StreamRange {
            from,
            direction: Direction::Forwards,
            limit,
            bytes_max,
            in_turn: true,
        };
        self.core.read_stream(stream, range, Some(origin))
    }

    /// What is known to be damaged.
    pub fn damaged(&self) -> Vec<DamagedRange> {
        self.core.damage().ranges()
    }

    /// Puts a block that another region gave back into its damaged place. The damaged segment file
    /// is kept in the folder `damaged`; a sound copy takes its place atomically. Returns whether
    /// anything was damaged there.
    ///
    /// # Errors
    /// When the block is not what was there, or the disk fails.
    pub fn repair(&self, block: Block) -> Result<bool, RepairError> {
        Ok(self.core.repair_all(vec![block])? > 0)
    }

    /// As [`Store::repair`], for blocks of any logs at once: each segment is copied only once.
    /// Returns how many blocks were put back.
    ///
    /// # Errors
    /// At the first block that is not what was there, or when the disk fails.
    pub fn repair_all(&self, blocks: Vec<Block>) -> Result<usize, RepairError> {
        self.core.repair_all(blocks)
    }

    /// Reads the next `bytes_max` or so of the sealed segments again and checks every checksum and
    /// chain. What is damaged is remembered, see [`Store::damaged`]; a damaged index is made anew.
    pub fn scrub(&self, cursor: &mut ScrubCursor, bytes_max: usize) -> ScrubStep {
        self.core.scrub(cursor, bytes_max)
    }

    /// Notes that this node's own logs have been compared with what the peers hold, so that
    /// [`Recovery::heads_uncertain`] is not raised again at the next opening.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn settle_heads(&self) -> io::Result<()> {
        let disk = &self.core.disk;
        match disk.remove(UNCERTAIN_PATH) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => {
                removed?;
                disk.sync_dir("")
            }
        }
    }

    /// Whether the store takes blocks.
    pub fn health(&self) -> Health {
        let queue = self.core.queue();
        match (&queue.stop, &queue.disk_full) {
            (Some(Stop::Failed(reason)), _) => Health::Failed {
                reason: reason.clone(),
            },
            (Some(Stop::Closed), _) => Health::Failed {
                reason: "the store is closed".to_owned(),
            },
            (None, Some(reason)) => Health::DiskFull {
                reason: reason.clone(),
            },
            (None, None) => Health::Writable,
        }
    }

    /// Figures for operators.
    pub fn stats(&self) -> StoreStats {
        let segments = self.core.segments();
        let mut stats = StoreStats {
            segments: segments.len() as u64,
            blocks_committed: self.core.counters.blocks_committed.load(Ordering::Relaxed),
            fsyncs: self.core.counters.fsyncs.load(Ordering::Relaxed),
            queue_bytes: self.core.queue().bytes as u64,
            damaged: self.core.damage().len(),
            ..StoreStats::default()
        };
        for segment in segments.values() {
            let index = segment.index();
            stats.bytes += index.summary().end;
            stats.events += index.summary().events;
        }
        stats
    }

    /// Small derived state. Opened at the first call.
    pub fn small(&self) -> &dyn SmallState {
        &**self.small.get_or_init(|| small::open(&*self.core.disk))
    }

    /// Writes and syncs what is queued, stops the lanes and releases the lock. Later blocks are
    /// refused; reads go on.
    pub fn close(&self) {
        {
            let mut queue = self.core.queue();
            if queue.stop.is_none() {
                queue.stop = Some(Stop::Closed);
            }
        }
        self.core.work.notify_all();
        self.core.chores.notify_all();
        self.core.driver.notify_one();
        // A writer's callback may be what closes the store. A lane cannot wait for itself; the last
        // one to end releases the folder then.
        if self.lane_ids.contains(&thread::current().id()) {
            return;
        }
        // Held to the end, so that a second caller finds the store closed when it returns too.
        let mut lanes = lock(&self.lanes);
        for lane in lanes.drain(..) {
            if lane.join().is_err() {
                tracing::error!("a commit lane panicked");
            }
        }
        if self.core.options.lanes == Lanes::Driven {
            while let Some(group) = self.commit_begin() {
                self.commit_finish(group);
            }
        }
        self.core.refuse_waiting();
        let mut held = lock(&self.core.lock);
        if held.is_some()
            && let Err(error) = self.core.write_mark()
        {
            tracing::warn!(%error, "the closing mark cannot be written");
        }
        *held = None;
    }

    /// Waits until there is something to commit or to keep house about. For [`crate::Lanes::Driven`].
    pub async fn wants_commit(&self) {
        loop {
            {
                let queue = self.core.queue();
                if queue.stop.is_some()
                    || queue.has_work(&self.core)
                    || queue.has_chores(&self.core)
                {
                    return;
                }
            }
            self.core.driver.notified().await;
        }
    }

    /// Writes the next group, if any block is queued and fewer than two groups are in flight. For
    /// [`crate::Lanes::Driven`].
    pub fn commit_begin(&self) -> Option<CommitGroup> {
        match self.core.take_group(false) {
            Taken::Group(mut group) => {
                self.core.write_group(&mut group, &mut Lane::default());
                Some(CommitGroup(group))
            }
            Taken::Nothing | Taken::Stopped => None,
        }
    }

    /// Syncs a group, and completes it and its finished successors if all before it are complete.
    pub fn commit_finish(&self, group: CommitGroup) {
        self.core.finish_group(group.0);
    }

    /// Takes one bounded step of preparing the next segment or sealing the last one. Returns
    /// whether there was anything to do. For [`crate::Lanes::Driven`].
    pub fn housekeep(&self) -> bool {
        matches!(self.core.housekeep(), Step::Done | Step::DonePaced)
    }

    /// Whether a step of [`Store::housekeep`] failed and should be taken again after a while, though
    /// [`Store::wants_commit`] does not ask for it. For [`crate::Lanes::Driven`].
    pub fn housekeeping_failed(&self) -> bool {
        let queue = self.core.queue();
        queue.seal_failed || queue.prepare_failed
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // A driven store is dropped by a simulated crash too: only its lock goes then.
        if self.core.options.lanes != Lanes::Driven {
            self.close();
        }
    }
}

/// Takes the folder's lock.
pub(crate) fn take_lock(disk: &dyn Disk) -> Result<Box<dyn Send + Sync>, OpenError> {
    match disk.lock(LOCK_PATH) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(OpenError::InUse),
        held => held.map_err(|source| OpenError::Io {
            path: LOCK_PATH.to_owned(),
            source,
        }),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the commit lanes are the one place with threads: a sync blocks its thread"
)]
fn start(core: &Arc<Core>, count: usize) -> io::Result<Vec<JoinHandle<()>>> {
    let spawn = |name: String, work: fn(&Core)| {
        let core = Arc::clone(core);
        thread::Builder::new().name(name).spawn(move || {
            // A lane that dies must not leave writers waiting for ever.
            if catch_unwind(AssertUnwindSafe(|| work(&core))).is_err() {
                core.fail("a commit lane panicked; this is a bug");
            }
        })
    };
    let mut lanes = vec![spawn("store-house".to_owned(), Core::keep_house)?];
    for number in 0..count {
        lanes.push(spawn(format!("store-lane-{number}"), run_lane)?);
    }
    Ok(lanes)
}

fn run_lane(core: &Core) {
    let mut lane = Lane::default();
    while let Taken::Group(mut group) = core.take_group(true) {
        core.write_group(&mut group, &mut lane);
        core.finish_group(group);
    }
}

//! Snapshots: what long streams come to, as of `final`, each in a file, so that its state opens without reading
//! all that was ever written to it.
//!
//! What is final is never taken back, so a snapshot stays true whatever is fenced after it. It is derived: one that is
//! damaged or missing costs the reading of the whole stream.
//!
//! With a snapshot, what no operation to come can be about is let go of, in it and in memory (`State::collect`).
//! What was final when our clock stood at T, every region held by then. So once `final` has passed T, every operation
//! is here that was sequenced before, and those to come have seen it. What comes home after a fence breaks that rule,
//! having seen less; so does a region whose clock is far ahead. The state says so where it matters, and is then
//! folded again from the whole log.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_clock::{Hlc, OrderKey, RegionId, Timestamp};
use meridian_conflict::{Kind, Seen, State};
use meridian_event::{Revision, StreamId};
use meridian_points::{Bug, buggify, planted, reached};
use meridian_replication::link::Marks;
use meridian_store::{Disk, ReadError, checked_file};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Merging;
use super::folded::{Folded, STEPS_AT_ONCE};
use crate::conflicts::Conflicts;

const FOLDER: &str = "states";
const VERSION: u8 = 1;
/// How often it is looked whether a stream that grew has become final.
const EVERY: Duration = Duration::from_secs(1);
/// How many operations a snapshot must be better by than the one before.
const OPERATIONS_MIN: u64 = 1_000;
/// And for how many bytes of the state one more, so that writing it does not cost more than reading on.
const BYTES_PER_OPERATION: usize = 64;
/// How many streams of a partition may wait for one; the others are looked at when they are used again.
const DUE_MAX: usize = 4_096;

/// What a file holds.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u8,
    stream: StreamId,
    followed: Vec<(RegionId, Revision)>,
    last: OrderKey,
    skipped: u64,
    state: Vec<u8>,
}

// A stream's file, by a hash of its name.
type Name = [u8; 16];

/// The snapshots of a node.
pub(super) struct Snapshots {
    disk: Arc<dyn Disk>,
    kept: Mutex<BTreeMap<Name, u64>>,
}

impl Snapshots {
    /// Those that are on `disk`.
    pub(super) fn open(disk: Arc<dyn Disk>) -> Self {
        let kept = list(&*disk).unwrap_or_else(|error| {
            warn!(%error, "the states of streams cannot be listed; they are folded from the log again");
            BTreeMap::new()
        });
        Self {
            disk,
            kept: Mutex::new(kept),
        }
    }

    /// How many there are, and how many bytes they take.
    pub(super) fn totals(&self) -> (usize, u64) {
        let kept = self.lock();
        (kept.len(), kept.values().sum())
    }

    /// What is kept of `stream`, if that is of `kind`.
    pub(super) fn load(&self, stream: &StreamId, kind: Kind) -> Option<Folded> {
        let name = name(stream);
        if !self.lock().contains_key(&name) {
            return None;
        }
        let read = checked_file::read(&*self.disk, &path(name));
        let kept = match read {
            Ok(bytes) => parse(&bytes?),
            Err(error) => Err(error.to_string()),
        };
        let (kept, state) = match kept {
            Ok((kept, _)) if kept.stream != *stream => return None,
            Ok(kept) => kept,
            Err(error) => {
                reached("the state of a stream could not be read");
                warn!(%stream, error, "the kept state of a stream cannot be read; it is folded from the log again");
                self.remove(stream);
                return None;
            }
        };
        if state.kind() != kind {
            self.remove(stream);
            return None;
        }
        reached("the state of a stream was opened from a file");
        Some(Folded::from_kept(
            state,
            &kept.followed,
            kept.last,
            kept.skipped,
        ))
    }

    fn save(&self, stream: &StreamId, folded: &Folded) -> io::Result<()> {
        let name = name(stream);
        let kept = Kept {
            version: VERSION,
            stream: stream.clone(),
            followed: folded.revisions().collect(),
            last: folded.last,
            skipped: folded.skipped,
            state: folded.state.encode(),
        };
        let bytes = postcard::to_stdvec(&kept).expect("a state always encodes");
        checked_file::replace(&*self.disk, &path(name), &bytes)?;
        self.lock().insert(name, bytes.len() as u64);
        Ok(())
    }

    /// Does without the one of `stream`.
    pub(super) fn remove(&self, stream: &StreamId) {
        let name = name(stream);
        if self.lock().remove(&name).is_none() {
            return;
        }
        // Should it come back after a crash, then it is found out again.
        if let Err(error) = self.disk.remove(&path(name)) {
            warn!(%stream, %error, "the kept state of a stream cannot be removed");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, u64>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(stream: &StreamId) -> Name {
    let hash = blake3::hash(stream.as_str().as_bytes());
    let (name, _) = hash.as_bytes().split_first_chunk().expect("32 are enough");
    *name
}

fn path(name: Name) -> String {
    let text = data_encoding::HEXLOWER.encode(&name);
    format!("{FOLDER}/{}/{text}", &text[..2])
}

fn list(disk: &dyn Disk) -> io::Result<BTreeMap<Name, u64>> {
    let mut kept = BTreeMap::new();
    for folder in disk.list(FOLDER)? {
        for file in disk.list(&format!("{FOLDER}/{folder}"))? {
            // What an interrupted replacement left behind is no name.
            let name = data_encoding::HEXLOWER.decode(file.as_bytes()).ok();
            let Some(name) = name.and_then(|name| Name::try_from(name).ok()) else {
                continue;
            };
            kept.insert(name, disk.open(&path(name), false)?.len()?);
        }
    }
    Ok(kept)
}

fn parse(bytes: &[u8]) -> Result<(Kept, State), String> {
    if bytes.first() != Some(&VERSION) {
        return Err("it is of another version".to_owned());
    }
    let kept: Kept = postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
    let state = State::decode(&kept.state).map_err(|error| error.to_string())?;
    Ok((kept, state))
}

/// How many operations more than `saved` a state of `bytes` must have to be worth a snapshot.
pub(super) fn is_due(count: u64, saved: u64, bytes: usize) -> bool {
    let least = OPERATIONS_MIN.max((bytes / BYTES_PER_OPERATION) as u64);
    // Rare in a simulation, which has short streams.
    let is_short = buggify("snapshots are made of short streams") || planted(Bug::CollectAtStable);
    let least = if is_short { 4 } else { least };
    count >= saved.saturating_add(least)
}

/// What waits for a partition's next snapshots.
#[derive(Default)]
pub(super) struct Due {
    streams: BTreeMap<StreamId, Awaited>,
}

#[derive(Clone, Default)]
struct Awaited {
    // Whether there is enough for another one.
    is_due: bool,
    // Up to where it was looked at in vain: there is nothing new before more is final.
    tried: Timestamp,
    // What was final when our clock stood there.
    seen: Option<(Timestamp, Seen)>,
}

impl Due {
    /// `stream` has grown enough.
    pub(super) fn add(&mut self, stream: &StreamId) {
        if let Some(awaited) = self.streams.get_mut(stream) {
            awaited.is_due = true;
        } else if self.streams.len() < DUE_MAX {
            let awaited = Awaited {
                is_due: true,
                ..Awaited::default()
            };
            self.streams.insert(stream.clone(), awaited);
        }
    }

    fn streams(&self, settled: Timestamp) -> Vec<StreamId> {
        let is_due = |it: &Awaited| it.is_due && it.tried < settled;
        let due = self.streams.iter().filter(|(_, it)| is_due(it));
        due.map(|(stream, _)| stream.clone()).collect()
    }

    fn seen(&self, stream: &StreamId) -> Option<(Timestamp, Seen)> {
        self.streams.get(stream)?.seen.clone()
    }

    // There is too little before `settled` for one.
    fn tried(&mut self, stream: &StreamId, settled: Timestamp) {
        if let Some(awaited) = self.streams.get_mut(stream) {
            awaited.tried = settled;
        }
    }

    // There is one now. What is remembered goes first when there is no room for what is due.
    fn done(&mut self, stream: &StreamId, seen: (Timestamp, Seen)) {
        let awaited = Awaited {
            is_due: false,
            tried: Timestamp::ZERO,
            seen: Some(seen),
        };
        self.streams.insert(stream.clone(), awaited);
        if self.streams.len() >= DUE_MAX {
            self.streams.retain(|_, it| it.is_due);
        }
    }
}

/// Makes snapshots of the streams that grew, until `cancel`.
pub(crate) async fn keep(
    merging: Arc<Merging>,
    marks: watch::Receiver<Arc<Marks>>,
    hlc: Arc<Hlc>,
    conflicts: Arc<Conflicts>,
    cancel: CancellationToken,
) {
    let mut every = interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            _ = every.tick() => {}
        }
        for partition in 0..merging.partitions.len() {
            // In all partitions: no state is opened from one that is ahead of the order as readers are shown it.
            let settled = {
                let marks = marks.borrow();
                match planted(Bug::CollectAtStable) {
                    true => marks.stable(),
                    false => marks.finals(),
                }
            };
            for stream in merging.due(partition, settled) {
                let now = hlc.passed().max(hlc.physical_now());
                match merging.snapshot(&stream, settled, now, &conflicts).await {
                    Ok(()) => failing = false,
                    Err(_) if failing => {}
                    Err(error) => {
                        failing = true;
                        warn!(%stream, %error, "the state of a stream cannot be kept; it will be folded from the log again");
                    }
                }
                if cancel.is_cancelled() {
                    return;
                }
                yield_now().await;
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum SnapshotError {
    #[error("the log cannot be read: {0}")]
    Log(#[from] ReadError),
    #[error("the file cannot be written: {0}")]
    Disk(#[from] io::Error),
}

impl Merging {
    fn due(&self, partition: usize, settled: Timestamp) -> Vec<StreamId> {
        let hot = self.partitions[partition].lock();
        let hot = hot.unwrap_or_else(PoisonError::into_inner);
        hot.due.streams(settled)
    }

    // Keeps what `stream` comes to at `settled`, if that is worth it. Our clock stands at `now`.
    async fn snapshot(
        &self,
        stream: &StreamId,
        settled: Timestamp,
        now: Timestamp,
        conflicts: &Conflicts,
    ) -> Result<(), SnapshotError> {
        let Some(kind) = self.kind(stream) else {
            return Ok(());
        };
        let mut folded = self.begin(stream, kind);
        let before = folded.count();
        loop {
            while !folded.follow(self, stream, Some(settled), false, STEPS_AT_ONCE)? {
                yield_now().await;
            }
            if folded.is_exact() {
                break;
            }
            self.snapshots.remove(stream);
            folded = Folded::new(kind);
        }
        if !is_due(folded.count(), before, folded.state.bytes()) {
            let mut hot = self.hot(self.partition(stream));
            hot.due.tried(stream, settled);
            return Ok(());
        }
        let mut seen = self.hot(self.partition(stream)).due.seen(stream);
        if planted(Bug::CollectAtStable) {
            seen = Some((settled, folded.state.seen().clone()));
        }
        let is_complete = self.homes.watch().borrow().out.is_empty();
        let seen = seen.filter(|(then, _)| *then <= settled && is_complete);
        if let Some((_, seen)) = &seen {
            reached("what no operation to come is about was let go of");
            folded.state.collect(seen);
        }
        folded.forget_recorded(stream, conflicts);
        self.snapshots.save(stream, &folded)?;
        reached("the state of a stream was written to a file");
        let mut hot = self.hot(self.partition(stream));
        let hot = &mut *hot;
        for states in [&mut hot.live, &mut hot.settled] {
            let Some(state) = states.get_mut(stream).filter(|it| it.is(kind)) else {
                continue;
            };
            state.saved = folded.count();
            if let Some((_, seen)) = seen
                .as_ref()
                .filter(|(_, it)| state.state.seen().covers(it))
            {
                state.state.collect(seen);
            }
        }
        let final_now = folded.state.seen().clone();
        hot.due.done(stream, (now, final_now));
        Ok(())
    }
}

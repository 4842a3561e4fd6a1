//! What the control plane keeps on disk: its vote and log in one checked file, its state in another.
//!
//! Each change writes the whole file anew and renames it over the old one, so that a crash leaves the
//! one or the other, and nothing in it can be out of order. That is slow for a log that is written
//! all the time; this one is written a few times a day, and cut after [`SNAPSHOT_EVERY`] entries.
//!
//! Always true: what is said to be written is durable, and a state is durable before anyone hears of
//! it, so no restart takes a decision back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io::{self, Cursor};
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meridian_store::{Disk, checked_file};
use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    AnyError, EmptyNode, Entry, EntryPayload, LogId, LogState, RaftLogReader, RaftSnapshotBuilder,
    Snapshot, SnapshotMeta, StorageError, StorageIOError, StoredMembership, Vote,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::command::{Command, Outcome};
use super::federation::Federation;
use super::plane::{Life, Types};
use crate::projections::Lane;

const LOG_PATH: &str = "control/log";
const STATE_PATH: &str = "control/state";
/// What a node was told that does not vote.
const TOLD_PATH: &str = "control/told";
/// After so many entries the log is cut: the state stands for them.
pub(super) const SNAPSHOT_EVERY: u64 = 64;
/// So many entries are kept for peers that lag a little.
pub(super) const KEEP: u64 = 32;

/// Why there is no control plane on this disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The disk fails.
    #[error("the control plane's files cannot be read")]
    Read(#[from] checked_file::CheckedFileError),
    /// A file was written by another build.
    #[error("the control plane's file {path} is another version's; run the build that wrote it")]
    OtherVersion {
        /// The file.
        path: &'static str,
    },
    /// The disk fails.
    #[error("the control plane's files cannot be written")]
    Write(#[source] io::Error),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Log {
    // Who votes from this disk.
    life: u64,
    vote: Option<Vote<u64>>,
    purged: Option<LogId<u64>>,
    entries: BTreeMap<u64, Entry<Types>>,
    // What this life began with: nothing, or what the last survivor of another group knew.
    begun_with: Option<Federation>,
    // Who may have taken something of that group in, and so cannot join this one.
    refused: BTreeSet<u64>,
}

impl Log {
    fn of(life: u64, begun_with: Option<Federation>, refused: BTreeSet<u64>) -> Self {
        Self {
            life,
            vote: None,
            purged: None,
            entries: BTreeMap::new(),
            begun_with,
            refused,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    // Whose it is; that of another life counts for nothing.
    life: u64,
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, EmptyNode>,
    // Whether the group has been told what its first member began with.
    carried_on: bool,
    federation: Federation,
}

struct Inner {
    disk: Arc<dyn Disk>,
    lane: Lane,
    log: Mutex<Log>,
    state: Mutex<State>,
    told: watch::Sender<Arc<Federation>>,
}

/// The files, as the Raft library wants them.
#[derive(Clone)]
pub(super) struct Kept(Arc<Inner>);

fn load<T: serde::de::DeserializeOwned>(
    disk: &dyn Disk,
    path: &'static str,
) -> Result<Option<T>, OpenError> {
    let Some(bytes) = checked_file::read(disk, path)? else {
        return Ok(None);
    };
    match postcard::from_bytes(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(OpenError::OtherVersion { path }),
    }
}

fn store<T: Serialize>(disk: &dyn Disk, path: &str, value: &T) -> io::Result<()> {
    let bytes = postcard::to_stdvec(value).map_err(io::Error::other)?;
    checked_file::replace(disk, path, &bytes)
}

/// What this disk knows to be decided.
///
/// # Errors
/// When the files cannot be read.
pub(super) fn known(disk: &dyn Disk) -> Result<Federation, OpenError> {
    let Some(log) = load::<Log>(disk, LOG_PATH)? else {
        return Ok(Federation::default());
    };
    let state: Option<State> = load(disk, STATE_PATH)?;
    let state = state.filter(|state| state.life == log.life);
    let known = state.map(|state| state.federation);
    let known = known.or(log.begun_with).unwrap_or_default();
    let told: Option<Federation> = load(disk, TOLD_PATH)?;
    Ok(told
        .filter(|told| told.version > known.version)
        .unwrap_or(known))
}

/// Forgets how this region has voted and what it was about to decide, of a disk that may be older than its votes: it
/// votes as somebody else from now on. What it knows to be decided stays known.
///
/// # Errors
/// When the files cannot be read or written.
pub(super) fn forget_votes(disk: &dyn Disk) -> Result<(), OpenError> {
    let known = known(disk)?;
    let told: Option<Federation> = load(disk, TOLD_PATH)?;
    if told.is_none_or(|told| told.version < known.version) {
        store(disk, TOLD_PATH, &known).map_err(OpenError::Write)?;
    }
    for path in [LOG_PATH, STATE_PATH] {
        if disk.exists(path).map_err(OpenError::Write)? {
            disk.remove(path).map_err(OpenError::Write)?;
        }
    }
    disk.sync_dir("control").map_err(OpenError::Write)
}

impl Kept {
    /// Opens the files below `disk`. Where there are none, whoever votes from here does so as `life`.
    ///
    /// # Errors
    /// When they cannot be read or written.
    pub(super) fn open(
        disk: &Arc<dyn Disk>,
        lane: Lane,
        life: impl FnOnce() -> u64,
        told: watch::Sender<Arc<Federation>>,
    ) -> Result<Self, OpenError> {
        let log = match load(&**disk, LOG_PATH)? {
            Some(log) => log,
            None => {
                let log = Log::of(life(), None, BTreeSet::new());
                store(&**disk, LOG_PATH, &log).map_err(OpenError::Write)?;
                log
            }
        };
        let state: Option<State> = load(&**disk, STATE_PATH)?;
        let state = match state.filter(|state| state.life == log.life) {
            Some(state) => state,
            None => State {
                life: log.life,
                federation: log.begun_with.clone().unwrap_or_default(),
                ..State::default()
            },
        };
        tell(&told, Arc::new(state.federation.clone()));
        if let Some(heard) = load::<Federation>(&**disk, TOLD_PATH)? {
            tell(&told, Arc::new(heard));
        }
        Ok(Self(Arc::new(Inner {
            disk: Arc::clone(disk),
            lane,
            log: Mutex::new(log),
            state: Mutex::new(state),
            told,
        })))
    }

    /// Tells of what another region says is decided, once that is durable here.
    ///
    /// # Errors
    /// When it cannot be written; then nobody was told.
    pub(super) async fn hear(&self, federation: Federation) -> io::Result<()> {
        if federation.version <= self.0.told.borrow().version {
            return Ok(());
        }
        let disk = Arc::clone(&self.0.disk);
        let written = self
            .0
            .lane
            .run(move || store(&*disk, TOLD_PATH, &federation).map(|()| federation))
            .await
            .map_err(io::Error::other)??;
        tell(&self.0.told, Arc::new(written));
        Ok(())
    }

    /// As whom this disk votes.
    pub(super) fn life(&self) -> u64 {
        self.log().life
    }

    /// Whether this life goes on from what the last survivor of another group knew.
    pub(super) fn is_refounded(&self) -> bool {
        self.log().begun_with.is_some()
    }

    /// What this life began with, while the group has not been told: it must be the first that it decides.
    pub(super) fn to_carry_on(&self) -> Option<Federation> {
        match self.state().carried_on {
            true => None,
            false => self.log().begun_with.clone(),
        }
    }

    /// Begins a new life, alone, with all that this disk knows. Only for the one survivor of a group: its
    /// log has whatever was decided, and perhaps more, which is then decided by this; or for one of those who
    /// lost it, if nobody survived. Those `refused` may
    /// have taken in something of that group.
    ///
    /// # Errors
    /// When it cannot be written; then nothing has changed.
    pub(super) async fn refound(&self, life: u64, refused: BTreeSet<u64>) -> io::Result<()> {
        let State {
            applied,
            mut federation,
            ..
        } = self.state().clone();
        let entries = self.log().entries.clone();
        let is_new = |index: &u64| applied.is_none_or(|applied| *index > applied.index);
        for (_, entry) in entries.into_iter().filter(|(index, _)| is_new(index)) {
            if let EntryPayload::Normal(command) = entry.payload {
                federation.apply(&command);
            }
        }
        // One that has no vote knows what it was told.
        let told = Arc::clone(&self.0.told.borrow());
        if told.version > federation.version {
            federation = Federation::clone(&told);
        }
        federation.groups += 1;
        self.change_log(|log| *log = Log::of(life, Some(federation), refused))
            .await
    }

    /// Begins a new life that knows nothing.
    ///
    /// # Errors
    /// When it cannot be written; then nothing has changed.
    pub(super) async fn begin_anew(&self, life: u64) -> io::Result<()> {
        self.change_log(|log| *log = Log::of(life, None, BTreeSet::new()))
            .await
    }

    /// Whether `life` may have taken in something of the group before this one.
    pub(super) fn refuses(&self, life: u64) -> bool {
        self.log().refused.contains(&life)
    }

    /// Whether nothing was ever decided or voted on in this life.
    pub(super) fn is_untouched(&self) -> bool {
        let log = self.log();
        log.vote.is_none() && log.purged.is_none() && log.entries.is_empty()
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Changes the log, on disk first: what failed to be written never was. Calls come one after the
    // other, as the library promises.
    async fn change_log(&self, change: impl FnOnce(&mut Log)) -> io::Result<()> {
        let mut log = self.log().clone();
        change(&mut log);
        let disk = Arc::clone(&self.0.disk);
        let written = self
            .0
            .lane
            .run(move || store(&*disk, LOG_PATH, &log).map(|()| log))
            .await
            .map_err(io::Error::other)??;
        *self.log() = written;
        Ok(())
    }

    async fn put_state(&self, state: State) -> io::Result<()> {
        let disk = Arc::clone(&self.0.disk);
        let written = self
            .0
            .lane
            .run(move || store(&*disk, STATE_PATH, &state).map(|()| state))
            .await
            .map_err(io::Error::other)??;
        let federation = Arc::new(written.federation.clone());
        *self.state() = written;
        tell(&self.0.told, federation);
        Ok(())
    }

    fn snapshot(&self) -> Result<Option<Snapshot<Types>>, io::Error> {
        let state = self.state();
        let Some(applied) = state.applied else {
            return Ok(None);
        };
        let bytes = postcard::to_stdvec(&state.federation).map_err(io::Error::other)?;
        Ok(Some(Snapshot {
            meta: SnapshotMeta {
                last_log_id: Some(applied),
                last_membership: state.membership.clone(),
                snapshot_id: format!("{}-{}", applied.leader_id, applied.index),
            },
            snapshot: Box::new(Cursor::new(bytes)),
        }))
    }
}

/// Tells of `federation`, unless more is known already.
fn tell(told: &watch::Sender<Arc<Federation>>, federation: Arc<Federation>) {
    told.send_if_modified(|told| {
        let is_news = federation.version > told.version;
        if is_news {
            *told = federation;
        }
        is_news
    });
}

fn of_logs(error: &io::Error) -> StorageError<u64> {
    StorageIOError::write_logs(AnyError::new(error)).into()
}

fn of_state(error: &io::Error) -> StorageError<u64> {
    StorageIOError::write_state_machine(AnyError::new(error)).into()
}

impl RaftLogReader<Types> for Kept {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<Types>>, StorageError<u64>> {
        let bounds: (Bound<u64>, Bound<u64>) =
            (range.start_bound().cloned(), range.end_bound().cloned());
        let log = self.log();
        let entries = log.entries.range(bounds).map(|(_, entry)| entry.clone());
        Ok(entries.collect())
    }
}

impl RaftLogStorage<Types> for Kept {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<u64>> {
        let log = self.log();
        let last = log.entries.last_key_value().map(|(_, entry)| entry.log_id);
        Ok(LogState {
            last_purged_log_id: log.purged,
            last_log_id: last.or(log.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError<u64>> {
        let vote = *vote;
        self.change_log(|log| log.vote = Some(vote))
            .await
            .map_err(|error| StorageIOError::write_vote(AnyError::new(&error)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError<u64>> {
        Ok(self.log().vote)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<Types>> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let appended = self
            .change_log(|log| {
                let numbered = entries.into_iter().map(|entry| (entry.log_id.index, entry));
                log.entries.extend(numbered);
            })
            .await;
        let failed = appended.as_ref().err().map(of_logs);
        // Only now: it stands for the sync.
        callback.log_io_completed(appended);
        failed.map_or(Ok(()), Err)
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        self.change_log(|log| drop(log.entries.split_off(&log_id.index)))
            .await
            .map_err(|error| of_logs(&error))
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        self.change_log(|log| {
            log.purged = log.purged.max(Some(log_id));
            log.entries = log.entries.split_off(&(log_id.index + 1));
        })
        .await
        .map_err(|error| of_logs(&error))
    }
}

impl RaftSnapshotBuilder<Types> for Kept {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<u64>> {
        let none = || io::Error::other("there is no state yet");
        self.snapshot()
            .and_then(|snapshot| snapshot.ok_or_else(none))
            .map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)).into())
    }
}

impl RaftStateMachine<Types> for Kept {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, EmptyNode>), StorageError<u64>> {
        let state = self.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<Types>> + Send,
        I::IntoIter: Send,
    {
        let mut state = self.state().clone();
        let mut outcomes = Vec::new();
        for entry in entries {
            state.applied = Some(entry.log_id);
            outcomes.push(match entry.payload {
                EntryPayload::Blank => Outcome::Unchanged,
                EntryPayload::Normal(command) => {
                    state.carried_on |= matches!(command, Command::GoOn(_));
                    state.federation.apply(&command)
                }
                EntryPayload::Membership(membership) => {
                    state.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Outcome::Unchanged
                }
            });
        }
        self.put_state(state)
            .await
            .map_err(|error| of_state(&error))?;
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn begin_receiving_snapshot(
        &mut self,
    ) -> Result<Box<Cursor<Vec<u8>>>, StorageError<u64>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, EmptyNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<u64>> {
        let federation = postcard::from_bytes(snapshot.get_ref()).map_err(|error| {
            StorageIOError::read_snapshot(Some(meta.signature()), AnyError::new(&error))
        })?;
        let state = State {
            life: self.life(),
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            carried_on: true,
            federation,
        };
        self.put_state(state)
            .await
            .map_err(|error| of_state(&error))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<u64>> {
        self.snapshot()
            .map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)).into())
    }
}

impl Debug for Kept {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Kept")
            .field("life", &Life(self.life()))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use meridian_clock::{PartitionId, Position, RegionId, Timestamp};
    use meridian_event::StreamId;
    use meridian_store::SimDisk;
    use openraft::{CommittedLeaderId, Membership};

    use meridian_conflict::Kind;

    use super::*;
    use crate::control::Foundation;
    use crate::control::category::Set;

    fn id(term: u64, index: u64) -> LogId<u64> {
        LogId::new(CommittedLeaderId::new(term, 1 << 48), index)
    }

    fn foundation() -> Foundation {
        Foundation {
            members: BTreeMap::from([
                (RegionId(0), "us-east".to_owned()),
                (RegionId(1), "eu-west".to_owned()),
            ]),
            partitions: 4,
            categories: BTreeMap::new(),
        }
    }

    fn commands() -> Vec<Command> {
        let stream = StreamId::new("order-1").expect("a sound name");
        let at = |to| Command::Move {
            streams: vec![stream.clone()],
            to: RegionId(to),
        };
        let from =
            meridian_conflict::Policies::new(vec![RegionId(0), RegionId(1)], BTreeMap::new());
        let home = match from.expect("two members").route(&stream) {
            meridian_conflict::Route::Home(home) => home,
            other => panic!("orders have a home, not {other:?}"),
        };
        [
            Command::Found(foundation()),
            at(1 - home.0),
            Command::Opened {
                change: 2,
                by: RegionId(1 - home.0),
            },
            at(home.0),
            Command::Declined {
                change: 4,
                from: RegionId(1 - home.0),
                partition: PartitionId(stream.partition(4).0),
            },
            Command::Opened {
                change: 5,
                by: RegionId(1 - home.0),
            },
            Command::Drain(RegionId(1 - home.0)),
            Command::GoOn(Box::default()),
        ]
        .into_iter()
        .chain(of_fences(home))
        .chain(of_members(home))
        .collect()
    }

    // Region `home` is lost, put out and taken back.
    fn of_fences(home: RegionId) -> Vec<Command> {
        let other = RegionId(1 - home.0);
        let positions = vec![Position(300), Position(0), Position(1), Position(2)];
        vec![
            Command::Opened {
                change: 7,
                by: home,
            },
            Command::Resume(other),
            Command::Opened {
                change: 9,
                by: other,
            },
            Command::Suspect {
                by: other,
                silent: BTreeSet::from([home]),
            },
            Command::Fence {
                region: home,
                force: true,
            },
            Command::Sealed {
                fence: 12,
                round: 1,
                by: other,
                held: BTreeMap::from([(home, positions)]),
            },
            Command::Filled {
                fence: 12,
                round: 1,
                by: other,
            },
            Command::Join { region: home },
            Command::Welcomed {
                region: home,
                change: 15,
                by: other,
                above: Timestamp(1 << 60),
            },
        ]
    }

    // A third region comes in, and region `home` leaves.
    fn of_members(home: RegionId) -> Vec<Command> {
        let (other, third) = (RegionId(1 - home.0), RegionId(2));
        let welcomed = |by| Command::Welcomed {
            region: third,
            change: 18,
            by,
            above: Timestamp(1 << 61),
        };
        vec![
            Command::Opened {
                change: 12,
                by: other,
            },
            Command::Admit {
                region: third,
                name: "ap-south".to_owned(),
                partitions: 4,
            },
            welcomed(home),
            welcomed(other),
            Command::Leave {
                region: home,
                force: true,
            },
            Command::Left { region: home },
            Command::Evict {
                region: home,
                force: true,
            },
            Command::SetCategory {
                category: "cart".to_owned(),
                set: Set {
                    kind: Some(Kind::OrSet),
                    ..Set::default()
                },
            },
            Command::AboutCategory {
                category: "cart".to_owned(),
                change: 23,
                by: other,
                is_free: false,
            },
        ]
    }

    fn log() -> Log {
        let membership = Membership::new(vec![[0, 1 << 48].into()], ());
        let blank = Entry {
            log_id: id(2, 2),
            payload: EntryPayload::Blank,
        };
        let first = Entry {
            log_id: id(0, 1),
            payload: EntryPayload::Membership(membership),
        };
        let decided = (3..).zip(commands()).map(|(index, command)| Entry {
            log_id: id(2, index),
            payload: EntryPayload::Normal(command),
        });
        let entries = [first, blank].into_iter().chain(decided);
        Log {
            life: 1 << 48 | 7,
            vote: Some(Vote::new_committed(2, 1 << 48)),
            purged: Some(id(0, 0)),
            entries: entries.map(|entry| (entry.log_id.index, entry)).collect(),
            begun_with: Some(Federation::default()),
            refused: BTreeSet::from([9]),
        }
    }

    fn state() -> State {
        let mut federation = Federation::default();
        for command in commands() {
            let outcome = federation.apply(&command);
            // Who has left is not evicted.
            let is_new = !matches!(command, Command::GoOn(_) | Command::Evict { .. });
            assert_eq!(
                matches!(outcome, Outcome::Changed(_)),
                is_new,
                "{outcome:?}"
            );
        }
        let membership = Membership::new(vec![[0, 1 << 48].into()], ());
        State {
            life: 7,
            applied: Some(id(2, 10)),
            membership: StoredMembership::new(Some(id(0, 1)), membership),
            carried_on: true,
            federation,
        }
    }

    const GOLDEN: &[u8] = include_bytes!("../../golden/control-v1.bin");

    /// Nodes with these files are in the field: a build that cannot read them has lost their votes.
    #[test]
    fn the_files_are_written_as_they_ever_were() {
        let both = postcard::to_stdvec(&(log(), state())).expect("they encode");
        assert_eq!(both, GOLDEN);
        let (log, read): (Log, State) = postcard::from_bytes(GOLDEN).expect("they decode");
        assert_eq!(read, state());
        assert_eq!(log.entries.len(), 28);
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_a_crash_and_what_failed_never_was() {
        let disk = Arc::new(SimDisk::new(1));
        let open = || {
            let seam: Arc<dyn Disk> = Arc::clone(&disk) as Arc<dyn Disk>;
            Kept::open(&seam, Lane::Inline, || 7, watch::Sender::default())
        };
        let mut kept = open().expect("an empty disk");
        assert!(kept.is_untouched());
        let vote = Vote::new(3, 7);
        kept.save_vote(&vote).await.expect("the disk is sound");
        let state = state();
        kept.put_state(state.clone())
            .await
            .expect("the disk is sound");
        disk.crash_after(0);
        let later = Vote::new(4, 7);
        kept.save_vote(&later).await.expect_err("the power is gone");
        assert_eq!(kept.read_vote().await.expect("it is in memory"), Some(vote));
        disk.crash();
        let mut kept = open().expect("a crash is no damage");
        assert_eq!(kept.life(), 7);
        assert_eq!(kept.read_vote().await.expect("it is in memory"), Some(vote));
        assert_eq!(*kept.state(), state);
    }

    #[test]
    fn files_of_another_version_are_refused_and_kept() {
        for path in [LOG_PATH, STATE_PATH] {
            let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
            store(&*disk, LOG_PATH, &log()).expect("the disk is sound");
            checked_file::replace(&*disk, path, b"\xff\xff").expect("the disk is sound");
            let refused = Kept::open(&disk, Lane::Inline, || 9, watch::Sender::default());
            assert!(
                matches!(refused, Err(OpenError::OtherVersion { path: found }) if found == path),
                "{path}"
            );
            let kept = checked_file::read(&*disk, path).expect("it is sound");
            assert_eq!(kept.as_deref(), Some(&b"\xff\xff"[..]));
        }
    }

    #[test]
    fn a_log_of_another_life_does_not_keep_its_state() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        store(&*disk, STATE_PATH, &state()).expect("the disk is sound");
        let kept = Kept::open(&disk, Lane::Inline, || 9, watch::Sender::default());
        let kept = kept.expect("it begins anew");
        assert_eq!(kept.life(), 9);
        assert_eq!(kept.state().federation, Federation::default());
    }

    #[tokio::test]
    async fn what_was_heard_from_another_region_is_known_after_a_restart() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let told = watch::Sender::default();
        let open = || Kept::open(&disk, Lane::Inline, || 7, told.clone()).expect("it is sound");
        assert_eq!(known(&*disk).expect("it is sound"), Federation::default());
        let heard = state().federation;
        open().hear(heard.clone()).await.expect("the disk is sound");
        assert_eq!(**told.borrow(), heard);
        assert_eq!(known(&*disk).expect("it is sound"), heard);
        // What is older is no news.
        let older = Federation {
            version: 1,
            ..Federation::default()
        };
        open().hear(older).await.expect("the disk is sound");
        assert_eq!(known(&*disk).expect("it is sound"), heard);
    }

    #[tokio::test]
    async fn the_last_survivor_goes_on_from_all_that_its_log_has() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let mut federation = Federation::default();
        federation.apply(&Command::Found(foundation()));
        let known = State {
            life: log().life,
            applied: Some(id(2, 3)),
            federation,
            ..state()
        };
        store(&*disk, LOG_PATH, &log()).expect("the disk is sound");
        store(&*disk, STATE_PATH, &known).expect("the disk is sound");
        let open = || Kept::open(&disk, Lane::Inline, || 0, watch::Sender::default());
        let kept = open().expect("it is sound");
        assert_eq!(*kept.state(), known);
        kept.refound(9, BTreeSet::from([8]))
            .await
            .expect("the disk is sound");

        let kept = open().expect("it is sound");
        assert!(kept.is_untouched() && kept.is_refounded());
        assert_eq!(kept.life(), 9);
        assert!(kept.refuses(8) && !kept.refuses(9));
        let began = kept.state().clone();
        assert_eq!((began.applied, began.life), (None, 9));
        let knew = Federation {
            groups: 1,
            ..state().federation
        };
        assert_eq!(began.federation, knew);
        assert_eq!(kept.to_carry_on(), Some(began.federation));
    }
}

//! The projections of this node: which there are, and the read models of each.
//!
//! Definitions are events of the streams `$projections-<name>`, so every region has the same ones
//! (`follow`). Each region builds its own read models from its own copy of the log (`model`), because a
//! query must not leave the region. Which of them answers is up to the region's operator (`shelf`).
//! `driver` runs a worker, `feed` is what it reads.

mod build;
mod driver;
mod feed;
mod follow;
mod location;
mod model;
mod shelf;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use meridian_client::AppendError;
use meridian_clock::{LogId, Timestamp};
use meridian_projection::{
    Answer, CheckError, Checkpoint, Definition, DefinitionError, Doing, Drained, FeedTier, Now,
    Parked, Place, Query, QueryError, SinkError, SinkKind, Status, TableDiff, check_name,
    check_postgres, check_sqlite,
};
use meridian_replication::link::Marks;
use meridian_store::Store;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use driver::Lane;
pub(crate) use feed::end_of;
use model::Projection;

use crate::metrics::ReadModel;
use crate::session::Seen;
use crate::status::Names;
use crate::{Node, own};

/// The category of the streams that define projections.
pub(crate) const CATEGORY: &str = "$projections";
/// The type of an event that defines a projection, and of one that removes it.
const DEFINED: &str = "ProjectionDefined";
const REMOVED: &str = "ProjectionRemoved";
/// How long a call waits until what it asked for is in force here.
const IN_FORCE_WAIT: Duration = Duration::from_secs(10);
/// How long a promotion waits for the two read models to be equally far.
const LEVEL_WAIT: Duration = Duration::from_secs(10);
/// How many rows of each kind a comparison lists.
const EXAMPLES_MAX: usize = 20;
/// How many parked events one answer lists.
const PARKED_MAX: usize = 1_000;

/// Why a projection does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum ProjectionError {
    /// There is none of that name.
    #[error("there is no projection {0:?} here; `GET /v1/projections` lists them")]
    NotFound(String),
    /// There is no such parked event.
    #[error("projection {name:?} has no parked event {id}")]
    NotParked {
        /// The projection.
        name: String,
        /// The number.
        id: i64,
    },
    /// The definition is wrong.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// It is not in a state for that.
    #[error("{0}")]
    Conflict(String),
    /// It cannot be done now.
    #[error("{0}")]
    Unavailable(String),
    /// The read model is behind what the caller has seen.
    #[error("{0}")]
    Stale(String),
    /// The query is wrong, or too much.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The definition was not written.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl From<SinkError> for ProjectionError {
    fn from(error: SinkError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// One read model of a projection.
#[derive(Clone, Debug, Serialize)]
pub struct ModelStatus {
    /// Its number in this region.
    pub number: u32,
    /// The version of its definition.
    pub version: u32,
    /// What its worker is doing.
    #[serde(flatten)]
    pub status: Status,
    /// How far it is behind what is settled.
    pub lag: Duration,
    /// How much of what is settled it has looked at, by the time of the events; in the live tier, of what
    /// is held, by their number: 0 to 1.
    pub progress: f64,
}

/// A projection as it stands in this region.
#[derive(Clone, Debug)]
pub struct ProjectionStatus {
    /// What it is: the newest definition.
    pub definition: Definition,
    /// Whether its workers are held.
    pub paused: bool,
    /// The read model that answers.
    pub active: Option<ModelStatus>,
    /// The one that is being built to take over.
    pub candidate: Option<ModelStatus>,
    /// The one that answered before.
    pub previous: Option<ModelStatus>,
}

/// What all projections of a node share.
pub(crate) struct Shared {
    pub(crate) root: PathBuf,
    pub(crate) region: String,
    pub(crate) store: Arc<Store>,
    pub(crate) logs: Vec<LogId>,
    pub(crate) names: Arc<Names>,
    pub(crate) marks: watch::Receiver<Arc<Marks>>,
    pub(crate) now: Now,
    pub(crate) lane: Lane,
    pub(crate) jitter: u8,
    pub(crate) tasks: CancellationToken,
    pub(crate) tracker: TaskTracker,
    pub(crate) first: OnceLock<Timestamp>,
}

impl Shared {
    // When the first event that is held was stamped, about.
    fn first_timestamp(&self) -> Timestamp {
        if let Some(first) = self.first.get() {
            return *first;
        }
        let mut first = Timestamp::ZERO;
        let mut reader = self
            .store
            .ordered(self.logs.iter().copied(), meridian_clock::OrderKey::ZERO);
        // What cannot be read is not first; the worker will say so.
        let _ = reader.read(self.marks.borrow().stable(), |key, _, _| {
            first = key.timestamp;
            std::ops::ControlFlow::Break(())
        });
        match first {
            Timestamp::ZERO => first,
            first => *self.first.get_or_init(|| first),
        }
    }

    // How far a read model is on the way from the first event to `settled`, or in the live tier to all that
    // is held.
    fn progress(&self, checkpoint: &Checkpoint, settled: Timestamp) -> f64 {
        let through = checkpoint.through;
        if let Place::Logs(places) = &checkpoint.place {
            let held: u64 = self.store.heads().iter().map(|head| head.position.0).sum();
            let read: u64 = places.iter().map(|key| key.position.0).sum();
            return match read < held {
                true => read as f64 / held as f64,
                false => 1.0,
            };
        }
        let first = self.first_timestamp();
        let whole = settled.after(first).as_secs_f64();
        match through < settled && whole > 0.0 {
            true => through.after(first).as_secs_f64() / whole,
            false => 1.0,
        }
    }
}

/// The projections of a node.
pub struct Projections {
    shared: Arc<Shared>,
    node: OnceLock<Weak<Node>>,
    running: Mutex<BTreeMap<String, Arc<Projection>>>,
    // Changes when a definition came into force.
    changed: watch::Sender<u64>,
}

impl Projections {
    /// Takes up the read models that an earlier life left. [`Projections::open`] starts the rest.
    pub(crate) fn start(shared: Shared) -> io::Result<Arc<Self>> {
        let projections = Arc::new(Self {
            shared: Arc::new(shared),
            node: OnceLock::new(),
            running: Mutex::default(),
            changed: watch::Sender::default(),
        });
        let root = &projections.shared.root;
        if crate::files::exists(root) {
            for folder in crate::files::in_folder(root)? {
                let name = folder.file_name().and_then(|name| name.to_str());
                let Some(name) = name.filter(|name| check_name(name).is_ok()) else {
                    continue;
                };
                let projection = Projection::load(&projections.shared, name, &folder);
                projections
                    .lock()
                    .insert(name.to_owned(), Arc::new(projection));
            }
        }
        Ok(projections)
    }

    /// Follows the definitions in `node`'s log.
    pub(crate) fn open(self: &Arc<Self>, node: &Arc<Node>) {
        if self.node.set(Arc::downgrade(node)).is_ok() {
            let follow = follow::run(Arc::clone(self), Arc::downgrade(node));
            self.shared.tracker.spawn(follow);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Projection>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, name: &str) -> Result<Arc<Projection>, ProjectionError> {
        let found = self.lock().get(name).filter(|it| it.is_defined()).cloned();
        found.ok_or_else(|| ProjectionError::NotFound(name.to_owned()))
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<ProjectionStatus> {
        let all: Vec<_> = self.lock().values().cloned().collect();
        all.iter().filter_map(|it| it.status()).collect()
    }

    /// One of them.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn get(&self, name: &str) -> Result<ProjectionStatus, ProjectionError> {
        let found = self.find(name)?;
        found
            .status()
            .ok_or_else(|| ProjectionError::NotFound(name.to_owned()))
    }

    /// Checks a definition and writes it to the log, from where every region takes it. Answers once it
    /// is in force here.
    ///
    /// # Errors
    /// When it is wrong, or does not follow on the one before, or cannot be written.
    pub async fn put(&self, definition: Definition) -> Result<ProjectionStatus, ProjectionError> {
        definition.check()?;
        location::check(&definition, &self.shared.region)?;
        let checked = definition.clone();
        let check = move || match &checked.sink {
            SinkKind::Sqlite => check_sqlite(&checked).map_err(CheckError::from),
            SinkKind::Postgres { .. } => check_postgres(&checked),
        };
        let checked = self.shared.lane.run(check).await;
        match checked.map_err(ProjectionError::Unavailable)? {
            Ok(()) => {}
            Err(CheckError::Definition(error)) => return Err(error.into()),
            Err(other) => return Err(ProjectionError::Unavailable(other.to_string())),
        }
        let name = definition.name.clone();
        if let Ok(present) = self.find(&name) {
            present.check_follows(&definition)?;
        }
        let data = serde_json::to_vec(&definition)
            .map_err(|error| ProjectionError::Unavailable(error.to_string()))?;
        let revision = self.write(&name, DEFINED, data).await?;
        self.in_force(&name, revision).await?;
        self.get(&name)
    }

    /// Removes a projection in every region, and its read models.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot be written.
    pub async fn delete(&self, name: &str) -> Result<(), ProjectionError> {
        self.find(name)?;
        let revision = self.write(name, REMOVED, b"{}".to_vec()).await?;
        self.in_force(name, revision).await
    }

    async fn write(&self, name: &str, what: &str, data: Vec<u8>) -> Result<u64, ProjectionError> {
        let stopping = || ProjectionError::Unavailable("the node is stopping".to_owned());
        let node = self.node.get().and_then(Weak::upgrade);
        let node = node.ok_or_else(stopping)?;
        Ok(own::write(&node, CATEGORY, name, what, data).await?)
    }

    // Waits until the definition at `revision` is followed here.
    async fn in_force(&self, name: &str, revision: u64) -> Result<(), ProjectionError> {
        let mut changed = self.changed.subscribe();
        let waited = timeout(IN_FORCE_WAIT, async {
            loop {
                changed.borrow_and_update();
                let defined = self.lock().get(name).and_then(|it| it.defined_at());
                if defined.is_some_and(|defined| defined >= revision) {
                    return true;
                }
                if changed.changed().await.is_err() {
                    return false;
                }
            }
        });
        match waited.await {
            Ok(true) => Ok(()),
            _ => Err(ProjectionError::Unavailable(format!(
                "the definition is written and has not come back here within {IN_FORCE_WAIT:?}; it will come into force by itself"
            ))),
        }
    }

    /// Brings a definition into force in this region only, as if it had come in the log at `revision` of
    /// its stream.
    pub fn define_here(&self, revision: u64, definition: Definition) {
        let name = definition.name.clone();
        self.define(&name, revision, Some(definition));
    }

    // A definition came in the log.
    fn define(&self, name: &str, revision: u64, definition: Option<Definition>) {
        let projection = {
            let mut running = self.lock();
            let folder = self.shared.root.join(name);
            let found = running
                .entry(name.to_owned())
                .or_insert_with(|| Arc::new(Projection::load(&self.shared, name, &folder)));
            Arc::clone(found)
        };
        projection.define(revision, definition);
        let shown = Arc::clone(&projection);
        self.shared
            .tracker
            .spawn(async move { shown.publish_first().await });
        self.changed.send_modify(|count| *count += 1);
    }

    /// Holds the workers of a projection. Queries go on.
    ///
    /// # Errors
    /// When there is none of that name, or that cannot be noted.
    pub fn pause(&self, name: &str, paused: bool) -> Result<ProjectionStatus, ProjectionError> {
        self.find(name)?.pause(paused)?;
        self.get(name)
    }

    /// Builds a read model anew, beside the one that answers.
    ///
    /// # Errors
    /// When there is none of that name, or that cannot be noted.
    pub fn rebuild(&self, name: &str) -> Result<ProjectionStatus, ProjectionError> {
        self.find(name)?.rebuild()?;
        self.get(name)
    }

    /// Builds those read models anew that may have read events that do not count any more: all but those of
    /// the final order. Returns their names.
    ///
    /// # Errors
    /// When that cannot be noted; those before are being built.
    pub(crate) fn replay(&self) -> Result<Vec<String>, ProjectionError> {
        let all: Vec<_> = self.lock().values().cloned().collect();
        let mut replayed = Vec::new();
        for projection in all {
            let Some(status) = projection.status() else {
                continue;
            };
            if status.definition.tier == FeedTier::Final {
                continue;
            }
            projection.replay()?;
            replayed.push(status.definition.name.clone());
            self.shared
                .tracker
                .spawn(async move { projection.publish_first().await });
        }
        Ok(replayed)
    }

    /// Lets the candidate answer from here on; the one that answered is kept for a rollback.
    ///
    /// # Errors
    /// When there is no candidate, or it is not as far as the one that answers.
    pub async fn promote(&self, name: &str) -> Result<ProjectionStatus, ProjectionError> {
        self.find(name)?.promote().await?;
        self.get(name)
    }

    /// Lets the read model answer again that answered before.
    ///
    /// # Errors
    /// When there is none, or it is not as far as the one that answers.
    pub async fn rollback(&self, name: &str) -> Result<ProjectionStatus, ProjectionError> {
        self.find(name)?.roll_back().await?;
        self.get(name)
    }

    /// Compares the read model that answers with its candidate, or with the one that answered before, row
    /// by row at one place of the order. Returns up to where, and what differs.
    ///
    /// # Errors
    /// When there is nothing to compare with, or the two do not get to one place in time.
    pub async fn diff(&self, name: &str) -> Result<(Timestamp, Vec<TableDiff>), ProjectionError> {
        self.find(name)?.diff().await
    }

    /// The parked events of the read model that answers, after number `after`; with those left out for
    /// good if `skipped`.
    ///
    /// # Errors
    /// When there is none of that name, or its database cannot be read.
    pub async fn parked(
        &self,
        name: &str,
        after: i64,
        skipped: bool,
    ) -> Result<Vec<Parked>, ProjectionError> {
        let location = self.find(name)?.active_location()?;
        let list = move || location.parked(after, PARKED_MAX, skipped);
        let listed = self.shared.lane.run(list).await;
        Ok(listed.map_err(ProjectionError::Unavailable)??)
    }

    /// Tries a parked event again, with what its stream has parked behind it.
    ///
    /// # Errors
    /// When it is not there, or the database cannot be used.
    pub async fn retry(&self, name: &str, id: i64) -> Result<Drained, ProjectionError> {
        self.find(name)?.retry(id).await
    }

    /// Leaves a parked event out for good.
    ///
    /// # Errors
    /// When it is not there, or the database cannot be used.
    pub async fn drop_parked(
        &self,
        name: &str,
        id: i64,
        reason: String,
    ) -> Result<Drained, ProjectionError> {
        self.find(name)?.drop_parked(id, reason).await
    }

    /// Asks a read model, once everything that `at_least` has seen is in it.
    ///
    /// # Errors
    /// When the query is wrong or too much, or the read model is not that far within `wait`.
    pub async fn query(
        &self,
        name: &str,
        query: Query,
        at_least: &Seen,
        wait: Duration,
    ) -> Result<Answer, ProjectionError> {
        let projection = self.find(name)?;
        let deadline = Instant::now() + wait.min(crate::session::WAIT_MAX);
        let (number, location) = projection.answering(at_least, deadline).await?;
        let now = Arc::clone(&self.shared.now);
        let ask = move || location.ask(&query, &now);
        let answer = self.shared.lane.run(ask).await;
        let answer = answer.map_err(ProjectionError::Unavailable)??;
        projection.answered(number, &answer.checkpoint);
        Ok(answer)
    }
}

/// Waits until `reached` holds of what is watched.
async fn until<T>(
    watched: &mut watch::Receiver<T>,
    deadline: Instant,
    reached: impl Fn(&T) -> bool,
) -> bool {
    loop {
        if reached(&watched.borrow_and_update()) {
            return true;
        }
        if !matches!(timeout_at(deadline, watched.changed()).await, Ok(Ok(()))) {
            return false;
        }
    }
}

fn cannot_note(folder: &Path, error: &io::Error) -> ProjectionError {
    ProjectionError::Unavailable(format!(
        "that cannot be noted in {}: {error}; nothing has changed",
        folder.display()
    ))
}

/// Brings the gauges of all read models up to date.
pub(crate) fn refresh_metrics(node: &Node) {
    let metrics = node.metrics();
    let gauges = [
        &metrics.projection_applied_events,
        &metrics.projection_parked_events,
        &metrics.projection_skipped_events,
        &metrics.projection_held_up,
    ];
    // Those of a read model that went must not stay.
    gauges.iter().for_each(|gauge| {
        gauge.clear();
    });
    metrics.projection_lag_seconds.clear();
    metrics.projection_checkpoint_timestamp_seconds.clear();
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    for projection in node.projections().list() {
        let roles = [
            ("active", &projection.active),
            ("candidate", &projection.candidate),
            ("previous", &projection.previous),
        ];
        for (role, model) in roles {
            let Some(model) = model else {
                continue;
            };
            let label = ReadModel {
                projection: projection.definition.name.clone(),
                role: role.to_owned(),
            };
            let checkpoint = &model.status.checkpoint;
            let held_up = model.status.error.is_some() && model.status.doing != Doing::Following;
            for (gauge, value) in gauges.iter().zip([
                count(checkpoint.applied),
                count(model.status.parked),
                count(checkpoint.skipped),
                held_up.into(),
            ]) {
                gauge.get_or_create(&label).set(value);
            }
            metrics
                .projection_lag_seconds
                .get_or_create(&label)
                .set(model.lag.as_secs_f64());
            metrics
                .projection_checkpoint_timestamp_seconds
                .get_or_create(&label)
                .set(checkpoint.through.since_unix().as_secs_f64());
        }
    }
}

//! One projection in this region: its read models, and which of them answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_clock::Timestamp;
use meridian_projection::{
    Batches, Checkpoint, Definition, Doing, Drained, Feed, FeedTier, Place, SinkError, Status,
    TableDiff, Worker,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span, warn};

use super::build::Build;
use super::driver::{COMMANDS_MAX, Cab, Command, drive};
use super::feed::{LiveFeed, OrderFeed, settled};
use super::follow::forget_place;
use super::location::Location;
use super::shelf::{Floor, Shelf, forget_models};
use super::{
    EXAMPLES_MAX, LEVEL_WAIT, ModelStatus, ProjectionError, ProjectionStatus, Shared, cannot_note,
    until,
};
use crate::session::Seen;

/// How long a worker may take until it has done what it is told: a database may keep it waiting.
const OBEYED_WITHIN: Duration = Duration::from_secs(100);
/// How long before views are made again that could not be.
const PUBLISH_AGAIN: Duration = Duration::from_secs(5);

// A read model with its worker.
struct Model {
    definition: Definition,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Arc<Status>>,
    cancel: CancellationToken,
}

struct State {
    shelf: Shelf,
    models: BTreeMap<u32, Model>,
    // How far the read model that answers was seen to be. Its worker says so only after it has committed.
    answered: Floor,
}

/// One projection in this region.
pub(crate) struct Projection {
    shared: Arc<Shared>,
    name: String,
    folder: PathBuf,
    paused: watch::Sender<bool>,
    // How far its workers read at most.
    bound: watch::Sender<Option<Timestamp>>,
    state: Mutex<State>,
    // Held by whoever compares or exchanges read models.
    exchanging: tokio::sync::Mutex<()>,
}

impl Projection {
    /// Takes up what an earlier life left in `folder`.
    pub(super) fn load(shared: &Arc<Shared>, name: &str, folder: &Path) -> Self {
        let shelf = Shelf::load(folder).unwrap_or_else(|error| {
            tracing::error!(name, folder = %folder.display(), %error, "what is known of a projection's read models cannot be read; they are built anew");
            // Which definition made a file is not known any more, and definitions are followed anew.
            forget_models(folder);
            forget_place(&shared.root);
            Shelf::default()
        });
        let projection = Self {
            shared: Arc::clone(shared),
            name: name.to_owned(),
            folder: folder.to_owned(),
            paused: watch::Sender::new(shelf.paused),
            bound: watch::Sender::new(None),
            state: Mutex::new(State {
                shelf: Shelf::default(),
                models: BTreeMap::new(),
                answered: Floor::default(),
            }),
            exchanging: tokio::sync::Mutex::default(),
        };
        {
            let mut state = projection.lock();
            for (number, definition) in &shelf.models {
                let model = projection.start(*number, definition.clone());
                state.models.insert(*number, model);
            }
            state.shelf = shelf;
        }
        projection
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, number: u32, definition: Definition) -> Model {
        let shared = &self.shared;
        let (commands, obeys) = mpsc::channel(COMMANDS_MAX);
        let another = {
            let (shared, bound) = (Arc::clone(shared), self.bound.subscribe());
            let location = self.location(number, &definition);
            let definition = definition.clone();
            move || {
                let (marks, bound) = (shared.marks.clone(), bound.clone());
                let (store, logs, names) = (&shared.store, &shared.logs, &shared.names);
                let feed: Box<dyn Feed> = match definition.tier {
                    FeedTier::Live => Box::new(LiveFeed::new(store, logs, names, marks, bound)),
                    tier => Box::new(OrderFeed::new(store, logs, names, marks, tier, bound)),
                };
                Worker::new(
                    definition.clone(),
                    feed,
                    location.sink(&definition),
                    Batches::default(),
                    Arc::clone(&shared.now),
                    shared.jitter,
                )
            }
        };
        let worker = another();
        let (status, told) = watch::channel(Arc::new(worker.status()));
        let cancel = shared.tasks.child_token();
        let cab = Cab {
            lane: shared.lane,
            commands: obeys,
            status,
            marks: shared.marks.clone(),
            committed: (definition.tier == FeedTier::Live).then(|| shared.store.committed()),
            paused: self.paused.subscribe(),
            cancel: cancel.clone(),
            another: Box::new(another),
        };
        let span = info_span!("projection", name = %self.name, model = number);
        let build = Build::of(shared, &definition, self.location(number, &definition));
        let drive = async move {
            if let Some(build) = build
                && let Err(reason) = build.run(&cab.status, &cab.cancel).await
                && !cab.cancel.is_cancelled()
            {
                warn!(%reason, "a read model cannot be built in parts; one worker builds it");
            }
            drive(worker, cab).await;
        };
        shared.tracker.spawn(drive.instrument(span));
        Model {
            definition,
            commands,
            status: told,
            cancel,
        }
    }

    fn location(&self, number: u32, definition: &Definition) -> Location {
        Location::of(&self.folder, &self.shared.region, number, definition)
    }

    // Removes a read model's rows where that may take a while.
    fn remove(&self, number: u32, definition: &Definition) {
        let location = self.location(number, definition);
        let (lane, folder) = (self.shared.lane, self.folder.clone());
        self.shared.tracker.spawn(async move {
            // It has said itself what it could not do.
            let _ = lane.run(move || location.remove(&folder, number)).await;
        });
    }

    /// Whether there is a definition of it.
    pub(super) fn is_defined(&self) -> bool {
        self.lock().shelf.newest().is_some()
    }

    /// The revision of its definition's stream that is in force.
    pub(super) fn defined_at(&self) -> Option<u64> {
        self.lock().shelf.defined_at
    }

    /// Whether `definition` can follow on the newest one.
    pub(super) fn check_follows(&self, definition: &Definition) -> Result<(), ProjectionError> {
        let state = self.lock();
        let Some((_, newest)) = state.shelf.newest() else {
            return Ok(());
        };
        if definition.version < newest.version {
            return Err(ProjectionError::Conflict(format!(
                "version {} of {:?} is in force; write a higher one",
                newest.version, self.name
            )));
        }
        if definition.version == newest.version && !newest.can_go_on_as(definition) {
            return Err(ProjectionError::Conflict(format!(
                "version {} of {:?} has another source, tier, sink or schema; raise `version`, so that a new read model is built beside the present one",
                newest.version, self.name
            )));
        }
        Ok(())
    }

    /// Brings the definition at `revision` into force; `None` removes the projection.
    pub(super) fn define(&self, revision: u64, definition: Option<Definition>) {
        let mut state = self.lock();
        if state.shelf.defined_at.is_some_and(|at| at >= revision) {
            return;
        }
        let mut shelf = state.shelf.clone();
        shelf.defined_at = Some(revision);
        let mut update = None;
        match definition {
            None => {
                (shelf.active, shelf.candidate, shelf.previous) = (None, None, None);
                (shelf.paused, shelf.floor) = (false, Floor::default());
                state.answered = Floor::default();
            }
            Some(definition) => match shelf.newest().map(|(number, it)| (number, it.clone())) {
                None => shelf.active = Some(shelf.add(definition)),
                Some((number, newest))
                    if definition.version == newest.version && newest.can_go_on_as(&definition) =>
                {
                    shelf.models.insert(number, definition.clone());
                    update = (definition != newest).then_some((number, definition));
                }
                Some((_, newest)) if definition.version > newest.version => {
                    shelf.candidate = Some(shelf.add(definition));
                }
                Some((_, newest)) => {
                    tracing::warn!(name = %self.name, version = definition.version, in_force = newest.version, "two regions defined a projection at once; the higher version stays");
                }
            },
        }
        if let Err(error) = self.put(&mut state, shelf) {
            tracing::error!(name = %self.name, %error, "a definition cannot be brought into force");
            return;
        }
        if let Some((number, definition)) = update {
            let sink = self.location(number, &definition).sink(&definition);
            if let Some(model) = state.models.get_mut(&number) {
                model.definition = definition.clone();
                let command = Command::GoOnAs(Box::new(definition), sink);
                if model.commands.try_send(command).is_err() {
                    tracing::warn!(name = %self.name, "a worker is told of its new definition by starting it anew");
                    model.cancel.cancel();
                    let fresh = self.start(number, model.definition.clone());
                    *model = fresh;
                }
            }
        }
    }

    // Notes a new shelf, starts the read models that came and ends those that went.
    fn put(&self, state: &mut State, mut shelf: Shelf) -> Result<(), ProjectionError> {
        let gone = shelf.sweep();
        shelf
            .save(&self.folder)
            .map_err(|error| cannot_note(&self.folder, &error))?;
        for number in gone {
            if let Some(model) = state.models.remove(&number) {
                model.cancel.cancel();
                self.remove(number, &model.definition);
            }
        }
        for (number, definition) in &shelf.models {
            if !state.models.contains_key(number) {
                let model = self.start(*number, definition.clone());
                state.models.insert(*number, model);
            }
        }
        self.paused
            .send_if_modified(|paused| std::mem::replace(paused, shelf.paused) != shelf.paused);
        state.shelf = shelf;
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut Shelf)) -> Result<(), ProjectionError> {
        let mut state = self.lock();
        let mut shelf = state.shelf.clone();
        change(&mut shelf);
        self.put(&mut state, shelf)
    }

    /// Where it stands; `None` when it was removed.
    pub(super) fn status(&self) -> Option<ProjectionStatus> {
        let state = self.lock();
        let (_, newest) = state.shelf.newest()?;
        let of = |number: Option<u32>| {
            let number = number?;
            let model = state.models.get(&number)?;
            let status = Status::clone(&model.status.borrow());
            let settled = settled(&self.shared.marks.borrow(), model.definition.tier);
            Some(ModelStatus {
                number,
                version: model.definition.version,
                lag: settled.after(status.checkpoint.through),
                progress: self.shared.progress(&status.checkpoint, settled),
                status,
            })
        };
        Some(ProjectionStatus {
            definition: newest.clone(),
            paused: state.shelf.paused,
            active: of(state.shelf.active),
            candidate: of(state.shelf.candidate),
            previous: of(state.shelf.previous),
        })
    }

    /// Holds its workers, or lets them go on, also where the policy stopped them.
    pub(super) fn pause(&self, paused: bool) -> Result<(), ProjectionError> {
        self.change(|shelf| shelf.paused = paused)?;
        if !paused {
            for model in self.lock().models.values() {
                // A worker whose queue is full is not stopped.
                drop(model.commands.try_send(Command::Resume));
            }
        }
        Ok(())
    }

    /// Builds its newest definition's read model anew.
    pub(super) fn rebuild(&self) -> Result<(), ProjectionError> {
        self.change(|shelf| {
            if let Some((_, definition)) = shelf.newest() {
                shelf.candidate = Some(shelf.add(definition.clone()));
            }
        })
    }

    /// Builds its newest definition's read model anew, in the place of the one that answers: that has read
    /// events that do not count any more. What it answers begins again with it.
    ///
    /// # Errors
    /// When that cannot be noted.
    pub(super) fn replay(&self) -> Result<(), ProjectionError> {
        self.change(|shelf| {
            if let Some((_, definition)) = shelf.newest() {
                let definition = definition.clone();
                shelf.active = Some(shelf.add(definition));
                shelf.candidate = None;
                shelf.previous = None;
                shelf.floor = Floor::default();
            }
        })
    }

    fn number(
        &self,
        which: impl Fn(&Shelf) -> Option<u32>,
        what: &str,
    ) -> Result<u32, ProjectionError> {
        which(&self.lock().shelf).ok_or_else(|| {
            ProjectionError::Conflict(format!("projection {:?} has {what}", self.name))
        })
    }

    fn watch(&self, number: u32) -> Result<watch::Receiver<Arc<Status>>, ProjectionError> {
        let state = self.lock();
        let model = state.models.get(&number);
        model
            .map(|model| model.status.clone())
            .ok_or_else(|| ProjectionError::NotFound(self.name.clone()))
    }

    // How far the read model that answers has come.
    fn reached(&self) -> Checkpoint {
        let state = self.lock();
        let active = state
            .shelf
            .active
            .and_then(|number| state.models.get(&number));
        active.map_or_else(Checkpoint::default, |model| {
            model.status.borrow().checkpoint.clone()
        })
    }

    /// Lets the candidate answer.
    pub(super) async fn promote(&self) -> Result<(), ProjectionError> {
        let _one_at_a_time = self.exchanging.lock().await;
        let number = self.number(
            |shelf| shelf.candidate,
            "no candidate; put a higher version of its definition, or rebuild it",
        )?;
        self.level(number).await?;
        self.publish(number).await?;
        self.exchange(|shelf| {
            shelf.previous = shelf.active;
            shelf.active = Some(number);
            shelf.candidate = None;
        })
    }

    /// Lets the one answer again that answered before.
    pub(super) async fn roll_back(&self) -> Result<(), ProjectionError> {
        let _one_at_a_time = self.exchanging.lock().await;
        let number = self.number(
            |shelf| shelf.previous,
            "no read model that answered before; only a promotion can be rolled back",
        )?;
        self.level(number).await?;
        self.publish(number).await?;
        self.exchange(|shelf| {
            // It may be promoted again.
            shelf.candidate = shelf.candidate.or(shelf.active);
            shelf.active = Some(number);
            shelf.previous = None;
        })
    }

    // Nothing that was answered so far is newer than what will be.
    fn exchange(&self, change: impl FnOnce(&mut Shelf)) -> Result<(), ProjectionError> {
        let mut state = self.lock();
        let mut shelf = state.shelf.clone();
        shelf.floor.merge(&state.answered);
        change(&mut shelf);
        self.put(&mut state, shelf)?;
        state.answered = Floor::default();
        Ok(())
    }

    /// Read model `number` has answered as of `checkpoint`: what answers from here on is no older.
    pub(super) fn answered(&self, number: u32, checkpoint: &Checkpoint) {
        let mut state = self.lock();
        match state.shelf.active == Some(number) {
            true => state.answered.raise(checkpoint),
            // Another one took over meanwhile.
            false => state.shelf.floor.raise(checkpoint),
        }
    }

    // Waits until read model `number` is as far as the one that answers.
    async fn level(&self, number: u32) -> Result<(), ProjectionError> {
        let mut status = self.watch(number)?;
        let behind = |what: &str, status: &Status| {
            ProjectionError::Conflict(format!(
                "read model {number} of projection {:?} {what}: it is complete to {}, the one that answers to {}; try again when it has caught up",
                self.name,
                status.checkpoint.through,
                self.reached().through
            ))
        };
        let mut goal = Floor::default();
        goal.raise(&self.reached());
        {
            let now = status.borrow();
            if !matches!(now.doing, Doing::Following) && !goal.is_reached_by(&now.checkpoint) {
                return Err(behind("is still being built", &now));
            }
        }
        let deadline = Instant::now() + LEVEL_WAIT;
        let is_level = |it: &Arc<Status>| goal.is_reached_by(&it.checkpoint);
        if until(&mut status, deadline, is_level).await {
            return Ok(());
        }
        let now = Arc::clone(&status.borrow());
        Err(behind("does not catch up", &now))
    }

    /// Compares two read models at one place.
    pub(super) async fn diff(&self) -> Result<(Timestamp, Vec<TableDiff>), ProjectionError> {
        let _one_at_a_time = self.exchanging.lock().await;
        let active = self.number(|shelf| shelf.active, "no read model yet")?;
        let other = self.number(
            |shelf| shelf.candidate.or(shelf.previous),
            "no second read model to compare with; put a higher version, or rebuild it",
        )?;
        let locations = [self.location_of(active)?, self.location_of(other)?];
        let mut statuses = [self.watch(active)?, self.watch(other)?];
        let deadline = Instant::now() + LEVEL_WAIT;
        let stopped = StopAt(&self.bound);
        loop {
            // What is settled now, or what one of them read before it was told to stop: in the live tier
            // that may be settled only later.
            let furthest = |status: &Status| {
                let Checkpoint { through, place, .. } = &status.checkpoint;
                place.newest().max(*through)
            };
            let all = statuses.iter().map(|it| furthest(&it.borrow()));
            let read = all.max().unwrap_or_default();
            let tier = self.lock().shelf.models.get(&active).map(|it| it.tier);
            let settled = settled(&self.shared.marks.borrow(), tier.unwrap_or_default());
            let bound = settled.max(read);
            self.bound.send_replace(Some(bound));
            let mut is_level = true;
            for status in &mut statuses {
                let there = until(status, deadline, |it| {
                    it.checkpoint.through >= bound && it.doing == Doing::Following
                });
                if !there.await {
                    return Err(ProjectionError::Conflict(format!(
                        "the two read models of projection {:?} do not both get to {bound} within {LEVEL_WAIT:?}; compare them when both have caught up",
                        self.name
                    )));
                }
                is_level &= furthest(&status.borrow()) == bound;
            }
            if is_level {
                let [one, two] = locations.clone();
                let compare = move || one.diff(&two, EXAMPLES_MAX);
                let compared = self.shared.lane.run(compare).await;
                drop(stopped);
                let diffs = compared.map_err(ProjectionError::Unavailable)??;
                let diffs = diffs.ok_or_else(|| {
                    ProjectionError::Conflict(
                        "the two read models are in different databases and cannot be compared row by row"
                            .to_owned(),
                    )
                })?;
                return Ok((bound, diffs));
            }
        }
    }

    /// Where the read model that answers has its rows.
    pub(super) fn active_location(&self) -> Result<Location, ProjectionError> {
        let number = self.number(|shelf| shelf.active, "no read model yet")?;
        self.location_of(number)
    }

    fn location_of(&self, number: u32) -> Result<Location, ProjectionError> {
        let state = self.lock();
        let model = state.models.get(&number);
        model
            .map(|model| self.location(number, &model.definition))
            .ok_or_else(|| ProjectionError::NotFound(self.name.clone()))
    }

    /// Shows the read model that answers, once it is there, to those who ask its database themselves.
    pub(super) async fn publish_first(&self) {
        let Ok(number) = self.number(|shelf| shelf.active, "no read model yet") else {
            return;
        };
        let Ok(mut status) = self.watch(number) else {
            return;
        };
        loop {
            let is_there = |it: &Arc<Status>| has_begun(it);
            let cancelled = tokio::select! {
                biased;
                () = self.shared.tasks.cancelled() => true,
                there = status.wait_for(is_there) => there.is_err(),
            };
            if cancelled {
                return;
            }
            match self.publish(number).await {
                Ok(()) => return,
                Err(error) => {
                    // It answers no more, or was removed: what does now is shown by itself.
                    if self.lock().shelf.active != Some(number) {
                        return;
                    }
                    tracing::warn!(name = %self.name, %error, "the views of a read model cannot be made yet");
                    tokio::select! {
                        biased;
                        () = self.shared.tasks.cancelled() => return,
                        () = sleep(PUBLISH_AGAIN) => {}
                    }
                }
            }
        }
    }

    // Shows the read model that answers to those who ask its database themselves.
    async fn publish(&self, number: u32) -> Result<(), ProjectionError> {
        let location = self.location_of(number)?;
        let published = self.shared.lane.run(move || location.publish()).await;
        Ok(published.map_err(ProjectionError::Unavailable)??)
    }

    /// The read model that answers, and where it is, once it shows all that `at_least` has seen.
    pub(super) async fn answering(
        &self,
        at_least: &Seen,
        deadline: Instant,
    ) -> Result<(u32, Location), ProjectionError> {
        let number = self.number(|shelf| shelf.active, "no read model yet")?;
        let floor = self.lock().shelf.floor.clone();
        let mut status = self.watch(number)?;
        // Nothing answers before its worker has said how far it is.
        let answers = |it: &Arc<Status>| {
            has_begun(it) && floor.is_reached_by(&it.checkpoint) && shows(&it.checkpoint, at_least)
        };
        if until(&mut status, deadline, answers).await {
            return Ok((number, self.location_of(number)?));
        }
        let now = Arc::clone(&status.borrow());
        let missing = match &now.checkpoint.place {
            Place::Logs(places) => places.first_missing(&at_least.positions),
            Place::Order(_) => None,
        };
        let missing = missing.map(|(log, position)| {
            let region = self.shared.names.of(log.origin);
            let partition = log.partition;
            format!(", and not in it is position {position} of partition {partition} of {region}")
        });
        Err(ProjectionError::Stale(format!(
            "projection {:?} is complete to {}{}, before what was seen ({}); its worker is {}",
            self.name,
            now.checkpoint.through,
            missing.unwrap_or_default(),
            at_least.at,
            match &now.error {
                Some(error) => format!("held up: {error}"),
                None => format!("{:?}", now.doing),
            }
        )))
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<Option<T>, SinkError>>) -> Command,
        id: i64,
    ) -> Result<T, ProjectionError> {
        let number = self.number(|shelf| shelf.active, "no read model yet")?;
        let commands = {
            let state = self.lock();
            let model = state.models.get(&number);
            model.map(|model| model.commands.clone())
        };
        let commands = commands.ok_or_else(|| ProjectionError::NotFound(self.name.clone()))?;
        if self.watch(number)?.borrow().doing == Doing::Building {
            return Err(ProjectionError::Conflict(format!(
                "read model {number} of projection {:?} is still being built in parts; try again when it follows",
                self.name
            )));
        }
        let (answer, answered) = oneshot::channel();
        let ended = || {
            ProjectionError::Unavailable(format!(
                "the worker of projection {:?} has ended; the node's log says why",
                self.name
            ))
        };
        commands
            .try_send(command(answer))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => ProjectionError::Unavailable(format!(
                    "the worker of projection {:?} has more to do than it can take; try again",
                    self.name
                )),
                mpsc::error::TrySendError::Closed(_) => ended(),
            })?;
        let waited = timeout(OBEYED_WITHIN, answered).await;
        let answered = waited.map_err(|_| {
            ProjectionError::Unavailable(format!(
                "the worker of projection {:?} has not come to it within {OBEYED_WITHIN:?}; it may yet do it, look before you repeat it",
                self.name
            ))
        })?;
        let answer = answered.map_err(|_| ended())??;
        answer.ok_or_else(|| ProjectionError::NotParked {
            name: self.name.clone(),
            id,
        })
    }

    /// Tries a parked event again.
    pub(super) async fn retry(&self, id: i64) -> Result<Drained, ProjectionError> {
        self.ask(|answer| Command::Retry(id, answer), id).await
    }

    /// Leaves a parked event out for good.
    pub(super) async fn drop_parked(
        &self,
        id: i64,
        reason: String,
    ) -> Result<Drained, ProjectionError> {
        self.ask(|answer| Command::Drop(id, reason, answer), id)
            .await
    }
}

// Whether its worker has said how far it is: in the live tier also while nothing is settled.
fn has_begun(status: &Status) -> bool {
    let Checkpoint { through, place, .. } = &status.checkpoint;
    match place {
        Place::Order(_) => *through > Timestamp::ZERO,
        Place::Logs(places) => !places.is_empty() || status.doing == Doing::Following,
    }
}

// Whether a read model that has come so far shows all that was seen.
fn shows(checkpoint: &Checkpoint, seen: &Seen) -> bool {
    let has_positions = match &checkpoint.place {
        Place::Order(_) => false,
        // A stamp alone says nothing of positions: all before it may have been seen.
        Place::Logs(places) => {
            let positions = &seen.positions;
            positions.iter().next().is_some() && places.first_missing(positions).is_none()
        }
    };
    has_positions || checkpoint.through >= seen.at
}

// Lets workers go on when the comparison ends, however it does.
struct StopAt<'a>(&'a watch::Sender<Option<Timestamp>>);

impl Drop for StopAt<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

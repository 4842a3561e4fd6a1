//! Builds a read model with several workers: each a part of its own, which are put together in the end.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use meridian_clock::Timestamp;
use meridian_projection::{
    Batches, Checkpoint, Definition, Division, Doing, Place, SqliteSink, Status, Step, Worker,
    is_made_sqlite, merge_sqlite,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::feed::{OrderFeed, Part, end_of, settled};
use super::shelf::remove_file_of_sqlite;

/// A read model that is built in parts.
pub(super) struct Build {
    shared: Arc<Shared>,
    definition: Definition,
    path: PathBuf,
}

impl Build {
    /// What builds the read model at `path`; `None` when one worker does it all.
    pub(super) fn of(shared: &Arc<Shared>, definition: &Definition, path: &Path) -> Option<Self> {
        (definition.workers.count > 1).then(|| Self {
            shared: Arc::clone(shared),
            definition: definition.clone(),
            path: path.to_owned(),
        })
    }

    fn part_path(&self, number: u16) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".part-{number}"));
        name.into()
    }

    fn parts(&self) -> Vec<PathBuf> {
        let count = self.definition.workers.count;
        (0..count).map(|number| self.part_path(number)).collect()
    }

    /// Builds it, unless it is there already. Tells `status` how far that has come.
    ///
    /// # Errors
    /// Why it cannot be built in parts. Nothing of it is left then.
    pub(super) async fn run(
        self,
        status: &watch::Sender<Arc<Status>>,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let path = self.path.clone();
        let lane = self.shared.lane;
        let is_made = lane.run(move || is_made_sqlite(&path)).await?;
        if is_made.map_err(|error| error.to_string())? {
            self.clean_up();
            return Ok(());
        }
        remove_file_of_sqlite(&self.path);
        let built = self.build(status, cancel).await;
        if built.is_err() {
            remove_file_of_sqlite(&self.path);
        }
        if !cancel.is_cancelled() {
            self.clean_up();
        }
        built
    }

    fn clean_up(&self) {
        for part in self.parts() {
            remove_file_of_sqlite(&part);
        }
    }

    async fn build(
        &self,
        status: &watch::Sender<Arc<Status>>,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let shared = &self.shared;
        let until = settled(&shared.marks.borrow(), self.definition.tier);
        let count = self.definition.workers.count;
        if self.definition.workers.by == Division::Time {
            // The stretches are others than those of an attempt that was broken off.
            self.clean_up();
        }
        let first = shared.first_timestamp();
        let share = until.0.saturating_sub(first.0) / u64::from(count).max(1);
        let edge = |number: u16| match number {
            0 => Timestamp::ZERO,
            last if last == count => until,
            other => Timestamp(first.0.saturating_add(share.saturating_mul(other.into()))),
        };
        let statuses: Arc<Mutex<Vec<Status>>> = Arc::default();
        let mut workers = JoinSet::new();
        for number in 0..count {
            let part = match self.definition.workers.by {
                Division::Hash => Part::Streams { number, count },
                Division::Time => Part::Stretch(edge(number), edge(number + 1)),
            };
            let (_, bound) = watch::channel(Some(until));
            let feed = OrderFeed::new(
                &shared.store,
                &shared.logs,
                &shared.names,
                shared.marks.clone(),
                self.definition.tier,
                bound,
            );
            let path = self.part_path(number);
            let worker = Worker::new(
                self.definition.clone(),
                Box::new(feed.only(part)),
                Box::new(SqliteSink::new(&path, self.definition.clone())),
                Batches::default(),
                Arc::clone(&shared.now),
                shared.jitter,
            );
            lock(&statuses).push(worker.status());
            let tell = Tell {
                all: Arc::clone(&statuses),
                number: usize::from(number),
                status: status.clone(),
            };
            workers.spawn(work(worker, shared.lane, tell, cancel.clone()));
        }
        while let Some(worked) = workers.join_next().await {
            worked.map_err(|error| error.to_string())??;
        }
        let upto = Checkpoint {
            place: Place::Order(end_of(until)),
            through: until,
            ..Checkpoint::default()
        };
        let (path, definition, parts) = (self.path.clone(), self.definition.clone(), self.parts());
        let merge = move || {
            let parts: Vec<&Path> = parts.iter().map(PathBuf::as_path).collect();
            merge_sqlite(&path, &definition, &parts, upto)
        };
        let merged = shared.lane.run(merge).await?;
        merged.map(|_| ()).map_err(|error| error.to_string())
    }
}

fn lock(statuses: &Mutex<Vec<Status>>) -> std::sync::MutexGuard<'_, Vec<Status>> {
    statuses.lock().unwrap_or_else(PoisonError::into_inner)
}

// Tells how far all workers together have come.
struct Tell {
    all: Arc<Mutex<Vec<Status>>>,
    number: usize,
    status: watch::Sender<Arc<Status>>,
}

impl Tell {
    fn tell(&self, status: Status) {
        let mut all = lock(&self.all);
        if let Some(own) = all.get_mut(self.number) {
            *own = status;
        }
        let checkpoint = Checkpoint {
            applied: all.iter().map(|it| it.checkpoint.applied).sum(),
            skipped: all.iter().map(|it| it.checkpoint.skipped).sum(),
            ..Checkpoint::default()
        };
        self.status.send_replace(Arc::new(Status {
            doing: Doing::Building,
            error: all.iter().find_map(|it| it.error.clone()),
            checkpoint,
            parked: all.iter().map(|it| it.parked).sum(),
        }));
    }
}

// Takes steps until the part is built.
async fn work(
    mut worker: Worker,
    lane: super::Lane,
    tell: Tell,
    cancel: CancellationToken,
) -> Result<(), String> {
    loop {
        if cancel.is_cancelled() {
            return Err("it was broken off".to_owned());
        }
        let (back, step) = lane
            .run(move || {
                let step = worker.step();
                (worker, step)
            })
            .await?;
        worker = back;
        let status = worker.status();
        let reason = status.error.clone().unwrap_or_default();
        tell.tell(status);
        match step {
            Step::More => tokio::task::yield_now().await,
            Step::Idle => return Ok(()),
            Step::Stopped | Step::Fenced => return Err(reason),
            Step::Wait(time) => tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = sleep(time) => {}
            },
        }
    }
}

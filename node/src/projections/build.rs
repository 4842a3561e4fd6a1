//! Builds a read model with several workers: each a part of its own, which are put together in the end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use meridian_clock::Timestamp;
use meridian_projection::{
    Batches, Checkpoint, Definition, Division, Doing, Place, SinkError, Status, Step, Worker,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::feed::{OrderFeed, Part, end_of, settled};
use super::location::Location;

/// How long before a database that failed is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// A read model that is built in parts.
pub(super) struct Build {
    shared: Arc<Shared>,
    definition: Definition,
    location: Location,
}

type Told = watch::Sender<Arc<Status>>;

impl Build {
    /// What builds the read model at `location`; `None` when one worker does it all.
    pub(super) fn of(
        shared: &Arc<Shared>,
        definition: &Definition,
        location: Location,
    ) -> Option<Self> {
        (definition.workers.count > 1).then(|| Self {
            shared: Arc::clone(shared),
            definition: definition.clone(),
            location,
        })
    }

    /// Builds it, unless it is there already. Tells `status` how far that has come.
    ///
    /// # Errors
    /// Why it cannot be built in parts. Nothing of it is left then.
    pub(super) async fn run(self, status: &Told, cancel: &CancellationToken) -> Result<(), String> {
        let location = self.location.clone();
        let is_made = move || location.is_made();
        let built = match self.insist(status, cancel, is_made).await? {
            true => Ok(()),
            false => self.build(status, cancel).await,
        };
        if built.is_err() {
            self.location.remove_half_made();
        }
        // What was broken off goes on after the next start.
        if !cancel.is_cancelled()
            && let Err(error) = self.remove_parts(Vec::new(), status, cancel).await
        {
            tracing::warn!(%error, "the parts of a read model that are not needed any more cannot be removed");
        }
        built
    }

    async fn remove_parts(
        &self,
        kept: Vec<Location>,
        status: &Told,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let location = self.location.clone();
        let remove = move || location.remove_parts(&kept);
        self.insist(status, cancel, remove).await
    }

    // Does what a database may not answer to at first.
    async fn insist<T: Send + 'static>(
        &self,
        status: &Told,
        cancel: &CancellationToken,
        work: impl Fn() -> Result<T, SinkError> + Clone + Send + 'static,
    ) -> Result<T, String> {
        loop {
            let error = match self.shared.lane.run(work.clone()).await? {
                Ok(done) => return Ok(done),
                Err(error @ SinkError::Unavailable { .. }) => error.to_string(),
                Err(error) => return Err(error.to_string()),
            };
            let before = Status::clone(&status.borrow());
            status.send_replace(Arc::new(Status {
                doing: Doing::Building,
                error: Some(error),
                ..before
            }));
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err("it was broken off".to_owned()),
                () = sleep(AGAIN) => {}
            }
        }
    }

    async fn build(&self, status: &Told, cancel: &CancellationToken) -> Result<(), String> {
        let shared = &self.shared;
        let until = settled(&shared.marks.borrow(), self.definition.tier);
        let count = self.definition.workers.count;
        let parts = self.location.parts(&self.definition);
        let kept = match self.definition.workers.by {
            Division::Hash => parts.clone(),
            // The stretches are others than those of an attempt that was broken off.
            Division::Time => Vec::new(),
        };
        self.remove_parts(kept, status, cancel).await?;
        let first = shared.first_timestamp();
        let share = until.0.saturating_sub(first.0) / u64::from(count).max(1);
        let edge = |number: u16| match number {
            0 => Timestamp::ZERO,
            last if last == count => until,
            other => Timestamp(first.0.saturating_add(share.saturating_mul(other.into()))),
        };
        let statuses: Arc<Mutex<Vec<Status>>> = Arc::default();
        let mut workers = JoinSet::new();
        for (number, location) in (0..count).zip(&parts) {
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
            let worker = Worker::new(
                self.definition.clone(),
                Box::new(feed.only(part)),
                location.sink(&self.definition),
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
        let (location, definition) = (self.location.clone(), self.definition.clone());
        let merge = move || location.merge(&definition, &parts, upto.clone());
        self.insist(status, cancel, merge).await.map(|_| ())
    }
}

fn lock(statuses: &Mutex<Vec<Status>>) -> std::sync::MutexGuard<'_, Vec<Status>> {
    statuses.lock().unwrap_or_else(PoisonError::into_inner)
}

// Tells how far all workers together have come.
struct Tell {
    all: Arc<Mutex<Vec<Status>>>,
    number: usize,
    status: Told,
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

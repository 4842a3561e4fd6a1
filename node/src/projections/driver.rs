//! Drives one worker: decides when it takes a step, and where, and passes on what it is told.

use std::sync::Arc;
use std::time::Duration;

use meridian_points::buggify;
use meridian_projection::{Definition, Doing, Drained, Sink, SinkError, Status, Step, Worker};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use meridian_replication::link::Marks;

/// How many commands wait for a worker.
pub(super) const COMMANDS_MAX: usize = 16;
/// How long events are gathered before a worker that has nothing to do looks again.
const GATHER: Duration = Duration::from_millis(5);

/// What a worker is told between two steps.
pub(super) enum Command {
    /// Try a parked event again.
    Retry(i64, oneshot::Sender<Result<Option<Drained>, SinkError>>),
    /// Leave a parked event out for good.
    Drop(
        i64,
        String,
        oneshot::Sender<Result<Option<Drained>, SinkError>>,
    ),
    /// Try again what the policy stopped at.
    Resume,
    /// Handle events as this says from here on.
    GoOnAs(Box<Definition>, Box<dyn Sink>),
}

/// Where a step runs: a database blocks its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// On a thread for such things.
    Blocking,
    /// Right here, for a simulation.
    Inline,
}

impl Lane {
    /// Runs `work` where this lane does.
    ///
    /// # Errors
    /// When it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        match self {
            Self::Inline => Ok(work()),
            #[expect(
                clippy::disallowed_methods,
                reason = "a database's transaction takes as long as its events and its disk do"
            )]
            Self::Blocking => spawn_blocking(work)
                .await
                .map_err(|error| error.to_string()),
        }
    }
}

/// What a driver needs beside its worker.
pub(super) struct Cab {
    pub(super) lane: Lane,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) status: watch::Sender<Arc<Status>>,
    /// Changes when more is settled.
    pub(super) marks: watch::Receiver<Arc<Marks>>,
    /// Changes when more is held, for a worker that does not wait until it is settled.
    pub(super) committed: Option<watch::Receiver<u64>>,
    pub(super) paused: watch::Receiver<bool>,
    pub(super) cancel: CancellationToken,
    /// Another worker for the same read model.
    pub(super) another: Box<dyn Fn() -> Worker + Send + Sync>,
}

/// Drives `worker` until it is cancelled, or another one has taken its read model over.
pub(super) async fn drive(mut worker: Worker, mut cab: Cab) {
    let mut overtaken: Option<Worker> = None;
    loop {
        if cab.cancel.is_cancelled() {
            return;
        }
        while let Ok(command) = cab.commands.try_recv() {
            let Some(back) = obey(worker, command, cab.lane).await else {
                return;
            };
            worker = back;
        }
        // Before the step: what is settled or comes meanwhile wakes it again.
        cab.marks.borrow_and_update();
        if let Some(committed) = &mut cab.committed {
            committed.borrow_and_update();
        }
        let is_paused = *cab.paused.borrow_and_update();
        let (back, step) = match is_paused {
            true => (worker, Step::Idle),
            false => {
                let stepped = cab
                    .lane
                    .run(move || {
                        let step = worker.step();
                        (worker, step)
                    })
                    .await;
                match stepped {
                    Ok(stepped) => stepped,
                    Err(error) => {
                        tracing::error!(%error, "a projection's worker broke an assertion and ends");
                        return;
                    }
                }
            }
        };
        worker = back;
        // Parked events that wait to be tried again hold up nothing else.
        let follows = step == Step::Idle || worker.status().doing == Doing::Following;
        let listens = follows && !is_paused;
        let applied = |worker: &Worker| worker.status().checkpoint.applied;
        if let Some(mut earlier) = overtaken.take_if(|it| applied(it) < applied(&worker)) {
            // As on a node that was taken for dead: it goes on, which must come to nothing.
            earlier.step();
        }
        if overtaken.is_none() && buggify("a worker is overtaken by another one") {
            overtaken = Some(std::mem::replace(&mut worker, (cab.another)()));
        }
        cab.status.send_replace(Arc::new(worker.status()));
        let wait = match step {
            Step::More => {
                yield_now().await;
                continue;
            }
            Step::Fenced => {
                tracing::warn!("another worker has taken a read model over");
                return;
            }
            Step::Wait(time) => Some(time),
            Step::Idle | Step::Stopped => None,
        };
        let time = async {
            match wait {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let more = async {
            match &mut cab.committed {
                Some(committed) => committed.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = cab.cancel.cancelled() => return,
            command = cab.commands.recv() => {
                let Some(command) = command else { return };
                let Some(back) = obey(worker, command, cab.lane).await else { return };
                worker = back;
                cab.status.send_replace(Arc::new(worker.status()));
            }
            changed = cab.paused.changed() => if changed.is_err() { return },
            changed = cab.marks.changed(), if listens => {
                if changed.is_err() {
                    return;
                }
                sleep(GATHER).await;
            }
            changed = more, if listens => {
                if changed.is_err() {
                    return;
                }
                sleep(GATHER).await;
            }
            () = time => {}
        }
    }
}

async fn obey(mut worker: Worker, command: Command, lane: Lane) -> Option<Worker> {
    let obeyed = lane
        .run(move || {
            match command {
                // Whoever asked may have gone away meanwhile; it is done all the same.
                Command::Retry(id, answer) => drop(answer.send(worker.retry(id))),
                Command::Drop(id, reason, answer) => {
                    drop(answer.send(worker.drop_parked(id, &reason)));
                }
                Command::Resume => worker.resume(),
                Command::GoOnAs(definition, sink) => worker.go_on_as(*definition, sink),
            }
            worker
        })
        .await;
    obeyed
        .inspect_err(
            |error| tracing::error!(%error, "a projection's worker broke an assertion and ends"),
        )
        .ok()
}

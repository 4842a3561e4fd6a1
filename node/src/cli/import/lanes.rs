//! Many events in flight, each stream's in their order.
//!
//! A stream belongs to one lane, and a lane has one event in flight: so a stream's events keep
//! their order, and the number of lanes is the number of events in flight. Every queue is bounded;
//! the reader waits when a lane is full.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meridian_client::Durability;
use meridian_event::{EventId, partition_of};
use meridian_node::DigestEntry;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::line::Line;
use super::sender::{Failure, Place, Sender};

/// How many events wait in a lane. A few hundred streams share a lane, and events of one stream
/// come in bursts; this is how far the reader may run ahead of the slowest.
const LANE_QUEUE: usize = 64;
/// How long one attempt may take: whoever interrupts an import waits this long at most.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(10);
/// The longest pause between two attempts.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(2);

/// What is counted while an import runs.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Lines that held an event.
    pub(super) read: AtomicU64,
    /// Lines that were left out because their event was acknowledged before.
    pub(super) skipped: AtomicU64,
    /// Lines that hold no event, or one that can never be written.
    pub(super) bad: AtomicU64,
    /// Events that were acknowledged.
    pub(super) acknowledged: AtomicU64,
    /// Of these, how many were there before.
    pub(super) there_before: AtomicU64,
    /// Of these, of how many it is not known.
    pub(super) unknown: AtomicU64,
    /// Attempts that had to be repeated.
    pub(super) retries: AtomicU64,
}

pub(super) fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// What all lanes share.
pub(super) struct Work {
    pub(super) sender: Sender,
    pub(super) durability: Durability,
    /// How long an event may go without an answer.
    pub(super) give_up_after: Duration,
    /// How far each log went before.
    pub(super) heads: Heads,
    /// Takes the ids that were acknowledged.
    pub(super) acks: Option<mpsc::Sender<EventId>>,
    pub(super) counts: Arc<Counts>,
    /// Whether an event that can never be written is counted, instead of ending the import.
    pub(super) skip_bad: bool,
    /// What the input is called.
    pub(super) name: String,
    /// Ends the import: the reader stops, and lanes finish what is in flight.
    pub(super) stop: CancellationToken,
}

/// Where events are put to be sent.
pub(super) struct Lanes {
    queues: Vec<mpsc::Sender<Line>>,
}

impl Lanes {
    /// Starts `count` lanes in `running`.
    pub(super) fn start(
        count: u16,
        work: &Arc<Work>,
        running: &mut JoinSet<anyhow::Result<()>>,
    ) -> Self {
        let start = |_| {
            let (queue, lines) = mpsc::channel(LANE_QUEUE);
            running.spawn(run(work.clone(), lines));
            queue
        };
        Self {
            queues: (0..count).map(start).collect(),
        }
    }

    /// Puts an event in its stream's lane; waits while that is full. `false` when the lane is gone.
    pub(super) fn put(&self, line: Line) -> bool {
        let count = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        let lane = partition_of(line.stream.as_str(), count).0;
        self.queues[usize::from(lane)].blocking_send(line).is_ok()
    }
}

/// Sends a lane's events, one after the other.
async fn run(work: Arc<Work>, mut lines: mpsc::Receiver<Line>) -> anyhow::Result<()> {
    loop {
        let line = tokio::select! {
            biased;
            () = work.stop.cancelled() => break,
            line = lines.recv() => line,
        };
        let Some(line) = line else { break };
        if let Err(error) = deliver(&work, &line).await {
            work.stop.cancel();
            return Err(error);
        }
    }
    Ok(())
}

async fn deliver(work: &Work, line: &Line) -> anyhow::Result<()> {
    let until = Instant::now() + work.give_up_after;
    let mut pause = Duration::from_millis(50);
    loop {
        let attempt_until = until.min(Instant::now() + ATTEMPT_WITHIN);
        match work.sender.send(line, work.durability, attempt_until).await {
            Ok(place) => {
                count(work, place.as_ref());
                if let Some(acks) = &work.acks {
                    // The list's writer is gone only when it failed, and says so itself.
                    if acks.send(line.event.id).await.is_err() {
                        work.stop.cancel();
                    }
                }
                return Ok(());
            }
            Err(Failure::Retry { reason, after }) => {
                add(&work.counts.retries);
                let pause_now = pause.max(after).min(RETRY_AFTER_MAX);
                if Instant::now() + pause_now >= until {
                    anyhow::bail!(
                        "{}, line {}: given up after {:?}: {reason}; start the same import again to go on, it adds nothing twice",
                        work.name,
                        line.number,
                        work.give_up_after
                    );
                }
                tokio::select! {
                    () = sleep(pause_now) => {}
                    // Interrupted: this event has no answer, so it is not acknowledged.
                    () = work.stop.cancelled() => return Ok(()),
                }
                pause = (pause * 2).min(RETRY_AFTER_MAX);
            }
            Err(Failure::Refused(reason)) => {
                add(&work.counts.bad);
                let place = format!("{}, line {}", work.name, line.number);
                if !work.skip_bad {
                    anyhow::bail!(
                        "{place}: {reason}; correct the line, or leave such lines out with --skip-bad"
                    );
                }
                super::complain(&format!("{place}: left out: {reason}"));
                return Ok(());
            }
            Err(Failure::Stop(error)) => {
                return Err(error.context(format!("{}, line {}", work.name, line.number)));
            }
        }
    }
}

fn count(work: &Work, place: Option<&Place>) {
    let counts = &work.counts;
    add(&counts.acknowledged);
    match place.and_then(|place| work.heads.had(place)) {
        Some(true) => add(&counts.there_before),
        Some(false) => {}
        None => add(&counts.unknown),
    }
}

/// How far origin logs went before the import, by what their own regions said.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// The regions that said so.
    regions: BTreeSet<String>,
    logs: BTreeMap<(String, u16), u64>,
}

impl Heads {
    /// Notes what `region` says about the logs it writes.
    pub(super) fn note(&mut self, region: String, digest: Vec<DigestEntry>) {
        for entry in digest {
            if entry.origin == region {
                let log = (entry.origin, entry.partition);
                self.logs.insert(log, entry.position);
            }
        }
        self.regions.insert(region);
    }

    /// Whether the event at `place` was there before, if that can be told.
    fn had(&self, place: &Place) -> Option<bool> {
        if !self.regions.contains(&place.origin) {
            return None;
        }
        // A log without events need not be in a digest.
        let head = self.logs.get(&(place.origin.clone(), place.partition));
        Some(head.is_some_and(|head| place.position <= *head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_at_or_below_where_its_log_ended_was_there_before() {
        let entry = |origin: &str, position| DigestEntry {
            origin: origin.to_owned(),
            partition: 0,
            position,
            chain: String::new(),
        };
        let place = |origin: &str, partition, position| Place {
            origin: origin.to_owned(),
            partition,
            position,
        };
        let mut heads = Heads::default();
        // What a region holds of another's log may be behind: only its own log counts.
        heads.note("a".to_owned(), vec![entry("a", 5), entry("b", 9)]);
        assert_eq!(heads.had(&place("a", 0, 5)), Some(true));
        assert_eq!(heads.had(&place("a", 0, 6)), Some(false));
        assert_eq!(heads.had(&place("a", 1, 1)), Some(false));
        assert_eq!(heads.had(&place("b", 0, 1)), None);
    }
}

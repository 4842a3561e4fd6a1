//! The ledger: each write over which a later one won gets a conflict record, without anybody asking.
//!
//! Each region looks through what it has written itself, from where it got to, a batch at a time: one of two
//! writes that did not see each other was written here, or it is another region's turn. What regions wrote that are
//! no members now, the first of those that are looks through. It waits until what is known
//! now of the batch's streams is `final`, and then until `final` has passed the moment at which it was: from there on
//! everything that comes has seen it, so what lost by then has lost for good, to what it is listed with.
//!
//! The winner's region writes the record; the loser's does if it is not there after a while. Both would write the same.
//!
//! Always true: a place in a log is passed only when what was found before it is recorded or waits in memory
//! for it; so the next life looks again from there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::iter;
use meridian_client::StateTier;
use meridian_clock::{Hlc, LogId, PartitionId, Position, Timestamp};
use meridian_conflict::{Kind, Seen};
use meridian_event::{BlockError, EventId, StreamId};
use meridian_points::reached;
use meridian_replication::link::Marks;
use meridian_store::ReadError;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Merging;
use super::asked::SUPERSEDED_LISTED_MAX;
use super::folded::STEPS_AT_ONCE;
use crate::Node;
use crate::conflicts::{Conflicts, Loss};
use crate::surely::Surely;

/// Where the small state has how far the log of a partition was looked through.
const PASSED: &str = "ledger/passed/";
/// How often it is looked whether there is something to do.
const EVERY: Duration = Duration::from_millis(500);
/// How much of the log is read at once, and how many streams a batch has.
const READ_BYTES: usize = 1 << 20;
const STREAMS_MAX: usize = 4_096;
/// How many records are written at once, and how long one may take.
const WRITING_MAX: usize = 16;
const WITHIN: Duration = Duration::from_secs(10);
/// How many records of a partition may be waited for. While there are more, the log is not read on.
const AWAITED_MAX: usize = 16_384;
/// How long the other region may take to write a record before this one does, or this one before it tries again.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What the ledger works with.
pub(crate) struct Ledger {
    merging: Arc<Merging>,
    conflicts: Arc<Conflicts>,
    node: Weak<Node>,
    marks: watch::Receiver<Arc<Marks>>,
    hlc: Arc<Hlc>,
    parts: BTreeMap<LogId, Part>,
}

// One log.
struct Part {
    log: LogId,
    // All before is settled.
    passed: Position,
    // And this is noted of it.
    noted: Position,
    batch: Option<Batch>,
    // Streams of which something was listed that was not settled with its batch, and from where they are looked at.
    again: BTreeMap<StreamId, Position>,
    awaited: BTreeMap<(StreamId, EventId), Awaited>,
}

// Streams that are looked at together.
struct Batch {
    streams: BTreeMap<StreamId, (Position, Seen)>,
    upto: Position,
    // Our clock, when what is known of them was so; then, when that was final.
    since: Timestamp,
    is_final: bool,
}

// A record that is not here yet.
struct Awaited {
    loss: Loss,
    from: Position,
    write_at: Instant,
}

impl Part {
    // Nothing before it waits for anything.
    fn settled(&self) -> Position {
        let batch = self.batch.iter().flat_map(|batch| batch.streams.values());
        let batch = batch.map(|(from, _)| *from);
        let again = self.again.values().copied();
        let awaited = self.awaited.values().map(|it| it.from);
        let earliest = batch.chain(again).chain(awaited).min();
        earliest.map_or(self.passed, |it| it.min(self.passed))
    }
}

#[derive(Debug, thiserror::Error)]
enum LedgerError {
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("{0}")]
    Block(#[from] BlockError),
}

impl Ledger {
    /// Takes up where an earlier life of `node` was.
    pub(crate) fn open(node: &Arc<Node>, merging: Arc<Merging>, hlc: Arc<Hlc>) -> Self {
        Self {
            parts: BTreeMap::new(),
            conflicts: Arc::clone(node.conflicts()),
            node: Arc::downgrade(node),
            marks: node.links().marks(),
            hlc,
            merging,
        }
    }

    /// Keeps the ledger until `cancel`.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let mut every = interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                _ = every.tick() => {}
            }
            for log in self.logs() {
                match self.step(log).await {
                    Ok(()) => failing = false,
                    Err(_) if failing => {}
                    Err(error) => {
                        failing = true;
                        warn!(%error, "the log cannot be looked through for what lost to a later write; it is tried again");
                    }
                }
                self.write(log, &cancel).await;
                self.note(log);
                if cancel.is_cancelled() {
                    return;
                }
            }
        }
    }

    // Those that this region looks through now.
    fn logs(&mut self) -> Vec<LogId> {
        let members = self.merging.homes.federation().members();
        let is_first = members.first() == Some(&self.merging.region);
        let partitions = (0..).zip(&self.merging.partitions);
        let all = partitions.flat_map(|(partition, _)| {
            let logs = self.merging.homes.logs(PartitionId(partition));
            logs.iter().copied()
        });
        let is_ours = |log: &LogId| {
            log.origin == self.merging.region || (is_first && !members.contains(&log.origin))
        };
        let ours: Vec<LogId> = all.filter(is_ours).collect();
        self.parts.retain(|log, _| ours.contains(log));
        let Some(node) = self.node.upgrade() else {
            return Vec::new();
        };
        for log in &ours {
            self.parts.entry(*log).or_insert_with(|| {
                // Another life of the log may have had other events there; another region's may have been cut.
                let passed = match log.origin == self.merging.region {
                    true => passed(&node, &key(*log, self.merging.generation)),
                    false => Position::ZERO,
                };
                Part {
                    log: *log,
                    passed,
                    noted: passed,
                    batch: None,
                    again: BTreeMap::new(),
                    awaited: BTreeMap::new(),
                }
            });
        }
        ours
    }

    async fn step(&mut self, log: LogId) -> Result<(), LedgerError> {
        let Some(part) = self.parts.get_mut(&log) else {
            return Ok(());
        };
        let now = || self.hlc.passed().max(self.hlc.physical_now());
        let Some(batch) = &mut part.batch else {
            if part.awaited.len() < AWAITED_MAX {
                let batch = self.merging.batch(part).await?;
                part.batch = batch.map(|batch| Batch {
                    since: now(),
                    ..batch
                });
            }
            return Ok(());
        };
        let finals = Arc::clone(&self.marks.borrow());
        let partition = usize::from(log.partition.0);
        if finals.finals.get(partition).copied().unwrap_or_default() < batch.since {
            return Ok(());
        }
        if !batch.is_final {
            batch.is_final = true;
            batch.since = now();
            return Ok(());
        }
        for (stream, (from, seen)) in &batch.streams {
            let Some(kind) = self.merging.kind(stream).filter(|kind| has_losers(*kind)) else {
                continue;
            };
            let (_, losses) = self.merging.look(stream, kind).await?;
            for loss in losses {
                if !seen.contains(loss.lost.dot) || !seen.contains(loss.lost.by_dot) {
                    part.again.insert(stream.clone(), *from);
                } else if !self.conflicts.has_superseded(stream, loss.lost.id) {
                    let write_at = match self.merging.is_ours(&loss) {
                        true => Instant::now(),
                        false => Instant::now() + AGAIN_AFTER,
                    };
                    let key = (stream.clone(), loss.lost.id);
                    let awaited = Awaited {
                        loss,
                        from: *from,
                        write_at,
                    };
                    part.awaited.entry(key).or_insert(awaited);
                }
            }
            self.merging.forget_recorded(stream, &self.conflicts);
            yield_now().await;
        }
        part.passed = batch.upto;
        part.batch = None;
        Ok(())
    }

    // Writes the records whose time has come.
    async fn write(&mut self, log: LogId, cancel: &CancellationToken) {
        let Some(part) = self.parts.get_mut(&log) else {
            return;
        };
        let conflicts = &self.conflicts;
        part.awaited
            .retain(|(stream, id), _| !conflicts.has_superseded(stream, *id));
        let now = Instant::now();
        let due: Vec<Loss> = part
            .awaited
            .values_mut()
            .filter(|it| it.write_at <= now)
            .map(|it| {
                it.write_at = now + AGAIN_AFTER;
                it.loss.clone()
            })
            .collect();
        let surely = Surely::new(
            Weak::clone(&self.node),
            cancel.child_token(),
            Some(now + WITHIN),
        );
        let writing = due.into_iter().map(|loss| {
            let (conflicts, surely) = (Arc::clone(conflicts), surely.clone());
            async move { conflicts.supersede(&loss, &surely).await }
        });
        let mut written = iter(writing).buffer_unordered(WRITING_MAX);
        let mut first = None;
        while let Some(written) = written.next().await {
            first = first.or(written.err());
        }
        if let Some(error) = first.filter(|_| !cancel.is_cancelled()) {
            reached("a record of what lost was not written at once");
            warn!(%error, "it is not recorded yet that writes lost to later ones; it is tried again");
        }
    }

    // What waits in memory only is looked for again by the next life.
    fn note(&mut self, log: LogId) {
        let Some(part) = self.parts.get_mut(&log) else {
            return;
        };
        let settled = part.settled();
        let is_new = settled != part.noted && log.origin == self.merging.region;
        let Some(node) = self.node.upgrade().filter(|_| is_new) else {
            return;
        };
        let key = key(log, self.merging.generation);
        match node.store().small().put(&key, &settled.0.to_be_bytes()) {
            Ok(()) => part.noted = settled,
            Err(error) => {
                warn!(%error, "how far the ledger is cannot be noted; the next start looks again");
            }
        }
    }
}

fn key(log: LogId, generation: u32) -> Vec<u8> {
    format!("{PASSED}{}/{generation}", log.partition).into_bytes()
}

fn passed(node: &Node, key: &[u8]) -> Position {
    let noted = node.store().small().get(key).ok().flatten();
    let noted = noted.and_then(|bytes| bytes.try_into().ok());
    noted.map_or(Position::ZERO, |bytes| Position(u64::from_be_bytes(bytes)))
}

fn has_losers(kind: Kind) -> bool {
    matches!(kind, Kind::Document | Kind::Fields)
}

impl Merging {
    // The next streams to look at, with what is known of them now; none if there are none.
    async fn batch(&self, part: &mut Part) -> Result<Option<Batch>, LedgerError> {
        let head = self.store.head(part.log).position;
        // After a fence a log goes on from its cut.
        part.passed = part.passed.min(head);
        let policies = self.homes.policies();
        let mut names: BTreeMap<String, Position> = BTreeMap::new();
        // They stay there until the batch has them: the log may not be readable now.
        for (stream, from) in &part.again {
            names.insert(stream.as_str().to_owned(), *from);
        }
        let mut upto = part.passed;
        if !policies.kinds().any(has_losers) {
            upto = head;
        }
        while upto < head && names.len() < STREAMS_MAX {
            let blocks = self.store.read_log(part.log, upto, READ_BYTES)?;
            let Some(last) = blocks.last() else { break };
            let from = upto;
            upto = last.header().last_position();
            for block in &blocks {
                let block = block.open()?;
                for event in block.events() {
                    let stream = event?.stream;
                    let category = meridian_event::category_of(stream);
                    let has_losers = policies.kind(category).is_some_and(has_losers);
                    if has_losers && !names.contains_key(stream) {
                        names.insert(stream.to_owned(), from);
                    }
                }
            }
            yield_now().await;
        }
        if names.is_empty() {
            part.passed = upto;
            return Ok(None);
        }
        let mut streams = BTreeMap::new();
        for (name, from) in names {
            let Ok(stream) = StreamId::new(&name) else {
                continue;
            };
            let Some(kind) = self.kind(&stream) else {
                continue;
            };
            let (seen, _) = self.look(&stream, kind).await?;
            streams.insert(stream, (from, seen));
            yield_now().await;
        }
        part.again.clear();
        Ok(Some(Batch {
            streams,
            upto,
            since: Timestamp::ZERO,
            is_final: false,
        }))
    }

    // What is known of `stream`, all that has come included, and what is listed as superseded.
    async fn look(&self, stream: &StreamId, kind: Kind) -> Result<(Seen, Vec<Loss>), ReadError> {
        loop {
            self.fold(StateTier::Live, kind, stream, None).await?;
            if let Some(looked) = self.look_now(stream, kind)? {
                return Ok(looked);
            }
        }
    }

    // `None` when it has to be folded anew.
    fn look_now(
        &self,
        stream: &StreamId,
        kind: Kind,
    ) -> Result<Option<(Seen, Vec<Loss>)>, ReadError> {
        let mut hot = self.hot(self.partition(stream));
        let folded = hot.live.entry(stream.clone());
        let folded = folded.or_insert_with(|| self.begin(stream, kind));
        if !folded.is(kind) {
            *folded = self.begin(stream, kind);
        }
        // It is nearly there already.
        while !folded.follow(self, stream, None, false, STEPS_AT_ONCE)? {}
        if !folded.is_exact() {
            self.fold_anew(&mut hot, StateTier::Live, stream);
            return Ok(None);
        }
        let losses = folded.state.superseded().map(|lost| Loss {
            stream: stream.clone(),
            kind,
            lost,
        });
        let looked = (folded.state.seen().clone(), losses.collect());
        hot.touch(StateTier::Live, stream, self.bytes_max);
        Ok(Some(looked))
    }

    // Whether this region is the first to write the record: the winner's, the loser's if that is no member.
    fn is_ours(&self, loss: &Loss) -> bool {
        let members = self.homes.federation().members();
        let by = [loss.lost.by_dot, loss.lost.dot].map(|dot| dot.actor.region);
        let first = by.into_iter().find(|region| members.contains(region));
        first.or(members.first().copied()) == Some(self.region)
    }

    // Lets go of what is recorded, but for the latest: those are shown with the state.
    fn forget_recorded(&self, stream: &StreamId, conflicts: &Conflicts) {
        let mut hot = self.hot(self.partition(stream));
        let hot = &mut *hot;
        for states in [&mut hot.live, &mut hot.settled] {
            if let Some(folded) = states.get_mut(stream) {
                folded.forget_recorded(stream, conflicts);
            }
        }
    }
}

impl super::folded::Folded {
    /// Lets go of what is recorded as superseded, but for the latest.
    pub(super) fn forget_recorded(&mut self, stream: &StreamId, conflicts: &Conflicts) {
        let listed = self.state.superseded().count();
        let old = listed.saturating_sub(SUPERSEDED_LISTED_MAX);
        if old == 0 {
            return;
        }
        let old = self.state.superseded().take(old).map(|it| it.id);
        let told = old.filter(|id| conflicts.has_superseded(stream, *id));
        let told: BTreeSet<EventId> = told.collect();
        self.state.forget_superseded(&told);
    }
}

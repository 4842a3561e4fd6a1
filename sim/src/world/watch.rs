//! The one who watches: what can only be seen while it lasts, whether all is well again, and what
//! every node holds in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meridian_client::SettledTier;
use meridian_clock::{LogId, Position, Timestamp};
use meridian_event::{EventId, StreamId};
use meridian_node::ModelStatus;
use meridian_node::{ConflictId, LostEvents, Node};
use meridian_projection::{Doing, Place};
use meridian_store::{Disk, Generations, Health, ReadError};

use super::clock::EPOCH;
use super::fences::stranded_on;
use super::host::Machine;
use super::story::What;
use super::{World, region_id};
use crate::history::Outcome;
use crate::invariants::{self, Copy, Evidence, Stranded, exactly_once};
use crate::load::follow::{LogName, Written};
use crate::load::merged;
use crate::states::{self, StateRead};

// Not all the time: asking whether all is well reads all logs.
const SETTLED_EVERY: Duration = Duration::from_millis(200);

impl World {
    // Notes what can only be seen while it lasts, and restarts what has failed.
    pub(super) fn look(&mut self) {
        let now = self.sim.elapsed();
        for index in 0..self.machines.len() {
            let machine = Arc::clone(&self.machines[index]);
            let Some(node) = machine.node() else {
                // One that stopped in order after everything was healed.
                let healed = self.over.load(Ordering::Relaxed);
                if healed && machine.stopped.load(Ordering::Relaxed) && !self.down[index] {
                    self.kill(index, false, 100);
                }
                if machine.start_error().is_some() && !self.down[index] {
                    self.rare("a node that did not start was started again");
                    // The power may have gone while it started.
                    let dead = machine.disk().exists("lock").is_err();
                    self.kill(index, dead, 1_000);
                }
                continue;
            };
            self.look_at_fences(index, &node);
            machine.note_committed(&node);
            self.witness.see(index, &node);
            let mut held = 0;
            for head in node.store().heads() {
                held += head.position.0;
                self.committed.insert((index, head.log), head.position);
            }
            self.trace.tell(now, What::Holds(index, held));
            if let Err(reason) = node.ready() {
                let kind = if reason.contains("peers") {
                    Some("a node waited for its peers before it gave out positions")
                } else if reason.contains("clock") {
                    Some("a node refused because of its clock")
                } else {
                    None
                };
                if let Some(kind) = kind {
                    self.rare(kind);
                }
            }
            if !node.store().damaged().is_empty() {
                self.rare("damage was known");
            }
            let failed = matches!(node.store().health(), Health::Failed { .. });
            self.settled.look(index, &machine.name, &node, now);
            drop(node);
            match (failed, self.failing_since[index]) {
                (true, None) => self.failing_since[index] = Some(now),
                (true, Some(since)) if now - since > self.patience[index] => {
                    self.rare("a failed log was restarted");
                    self.kill(index, false, 100);
                }
                (true, Some(_)) => {}
                (false, _) => self.failing_since[index] = None,
            }
        }
        self.look_at_states(now);
        self.judge_homes();
        for machine in &self.machines {
            if let Some(node) = machine.node() {
                self.witness.judge_beliefs(&machine.name, &node);
            }
        }
        let answered = self.history.newly_ended();
        let regions = self.machines.len();
        let founders = regions - self.plan.newcomers;
        self.witness.judge_answers(&answered, regions, founders);
    }

    fn look_at_states(&mut self, now: Duration) {
        let streams = merged::streams(&self.plan.load);
        let nodes: Vec<_> = self
            .machines
            .iter()
            .filter_map(|it| Some((it.index, it.name.clone(), it.node()?)))
            .collect();
        let nodes: Vec<_> = nodes
            .iter()
            .map(|(index, name, node)| (*index, name.clone(), &**node))
            .collect();
        self.states.look(&nodes, &streams, now);
    }

    // Reads what merged streams come to once all is well, and gives out all that was ever read.
    fn read_states(&mut self) -> Vec<StateRead> {
        let streams = merged::streams(&self.plan.load);
        let now = self.sim.elapsed();
        for machine in &self.machines {
            if let Some(node) = machine.node().filter(|_| !self.gone[machine.index]) {
                let node = (machine.index, machine.name.as_str(), &*node);
                self.states.end(node, &streams, now);
            }
        }
        let reads = std::mem::take(&mut self.states).into_reads();
        let lost = |read: &StateRead| {
            read.shown
                .as_ref()
                .is_ok_and(|it| !it.superseded.is_empty())
        };
        if reads.iter().any(lost) {
            self.rare("a write lost to one whose writer had not seen it");
        }
        reads
    }

    // Runs until all is well; what is not, if time is up first.
    pub(super) fn settle(&mut self, within: Duration, idle: usize) -> anyhow::Result<Vec<String>> {
        let deadline = self.sim.elapsed() + within;
        let mut why = Vec::new();
        loop {
            let next = self.sim.elapsed() + SETTLED_EVERY;
            while self.sim.elapsed() < next {
                self.step()?;
            }
            if self.clients.idle.load(Ordering::Relaxed) >= idle {
                why = self.unsettled();
                if why.is_empty() {
                    return Ok(why);
                }
            }
            if self.sim.elapsed() >= deadline {
                if why.is_empty() {
                    why.push("clients still wait for answers".to_owned());
                }
                return Ok(why);
            }
        }
    }

    // Once all is healed everyone promises again, and everyone hears of it.
    fn held_back(&self, name: &str, node: &Node) -> Option<String> {
        let healed = Timestamp::from_unix(EPOCH + self.healed_at.unwrap_or_default());
        let finals = node.watermark(SettledTier::Final);
        (finals < healed).then(|| {
            let stable = node.watermark(SettledTier::Stable);
            let partitions = node.status().watermarks.partitions;
            let held = partitions.iter().map(|it| {
                format!(
                    "{}: stable by {}, final by {}",
                    it.partition, it.stable_held_by, it.final_held_by
                )
            });
            format!(
                "{name} has settled the order only to {stable}, finally to {finals}, and all was \
                 healed at {healed}; held back in {:?}",
                held.collect::<Vec<_>>()
            )
        })
    }

    fn unsettled(&self) -> Vec<String> {
        let mut why = Vec::new();
        let mut digests = Vec::new();
        for machine in &self.machines {
            if self.gone[machine.index] {
                continue;
            }
            let Some(node) = machine.node() else {
                let error = machine.start_error();
                why.push(format!(
                    "{} does not run: {}",
                    machine.name,
                    error.unwrap_or_default()
                ));
                continue;
            };
            if node.store().housekeeping_failed() {
                why.push(format!(
                    "{} has a segment or an index file yet to write",
                    machine.name
                ));
            }
            for projection in node.projections().list() {
                let is_done = |model: &ModelStatus| {
                    let is_live = matches!(model.status.checkpoint.place, Place::Logs(_));
                    model.status.doing == Doing::Following && (model.progress >= 1.0 || !is_live)
                };
                let active = projection.active;
                if !active.as_ref().is_some_and(is_done) {
                    why.push(format!("{} does not follow: {active:?}", machine.name));
                }
            }
            if let Err(reason) = node.ready() {
                why.push(format!("{} is not ready: {reason}", machine.name));
            }
            let control = node.status().control;
            let is_pending = control.moving > 0 || !control.opening.is_empty();
            if control.leader.is_none() || is_pending {
                why.push(format!(
                    "{} sees decisions pending: {control:?}",
                    machine.name
                ));
            }
            for damage in node.store().damaged() {
                why.push(format!("{} has damage: {damage}", machine.name));
            }
            digests.push(node.digest());
            why.extend(self.still_fenced(&machine.name, &node));
            why.extend(self.held_back(&machine.name, &node));
        }
        if digests.windows(2).any(|pair| pair[0] != pair[1]) {
            why.push(format!("digests differ: {digests:?}"));
        }
        if why.is_empty() {
            why.extend(self.unrecorded());
            let here = self.machines.iter().zip(&self.followed);
            for (machine, followers) in here.filter(|(it, _)| !self.gone[it.index]) {
                match copy_of(machine) {
                    Ok(copy) => {
                        let held = self.written(&copy);
                        for missing in followers.iter().filter_map(|seen| seen.missing(&held)) {
                            why.push(format!("a follower of {} misses {missing}", machine.name));
                        }
                    }
                    Err(error) => why.push(format!("{}: {error}", machine.name)),
                }
            }
        }
        why
    }

    // A write that lost to a later one, of which a region has no record yet (`accounted`).
    fn unrecorded(&self) -> Option<String> {
        let streams = merged::streams(&self.plan.load);
        for machine in &self.machines {
            let Some(node) = machine.node().filter(|_| !self.gone[machine.index]) else {
                continue;
            };
            for stream in &streams {
                let Some(report) = states::live(&node, stream) else {
                    continue;
                };
                if report.superseded.is_empty() {
                    continue;
                }
                let all = node
                    .conflicts()
                    .list(|_| true, Some(stream), None, usize::MAX - 1);
                let all: BTreeSet<ConflictId> = all.0.iter().map(|it| it.id).collect();
                let has_record = |id| all.contains(&ConflictId::of_superseded(stream, id));
                if let Some(lost) = report.superseded.iter().find(|it| !has_record(it.id)) {
                    return Some(format!(
                        "{} has no record that {} of {stream} lost to {}",
                        machine.name, lost.id, lost.by
                    ));
                }
            }
        }
        None
    }

    // What followers must have been sent of what a node holds.
    fn written(&self, copy: &Copy) -> BTreeMap<LogName, Vec<Written>> {
        let logs = copy.logs.iter().map(|(log, events)| {
            let origin = usize::from(log.origin.0).saturating_sub(1);
            let origin = self.machines.get(origin).map(|it| it.name.clone());
            let events = events.iter().flatten();
            let written = events.map(|it| (it.id.to_string(), it.timestamp.to_string()));
            (
                (origin.unwrap_or_default(), log.partition.0),
                written.collect(),
            )
        });
        logs.collect()
    }

    // What the read models of the running nodes hold.
    fn read_models(&self) -> Vec<exactly_once::ReadModel> {
        let mut read = Vec::new();
        for machine in &self.machines {
            let (Some(node), Some(folder)) = (machine.node(), machine.read_models()) else {
                continue;
            };
            for projection in node.projections().list() {
                // One that was built anew after a fence has another number.
                let number = projection.active.map_or(1, |model| model.number);
                let name = &projection.definition.name;
                read.push(exactly_once::read(&machine.name, name, number, &folder));
            }
        }
        read
    }

    // What is put aside on any disk, or was on a lost one.
    fn stranded(&mut self) -> BTreeMap<EventId, Stranded> {
        let mut stranded: BTreeMap<EventId, Stranded> = BTreeMap::new();
        for event in std::mem::take(&mut self.stranded_lost) {
            stranded.entry(event.id).or_default().dots.insert(event.dot);
        }
        for machine in &self.machines {
            for event in stranded_on(&machine.disk()) {
                let put_aside = stranded.entry(event.id).or_default();
                put_aside.dots.insert(event.dot);
                put_aside.kept = true;
            }
        }
        stranded
    }

    // What conflict records hold, by the first node that runs: of each event in how many, and whether each of them says
    // that it is in its stream by now.
    fn in_conflict(&self) -> BTreeMap<EventId, (usize, bool)> {
        let mut held = BTreeMap::new();
        let Some(node) = self.machines.iter().find_map(|machine| machine.node()) else {
            return held;
        };
        let (conflicts, _) = node.conflicts().list(|_| true, None, None, usize::MAX - 1);
        // What lost to a later write is in its stream, and its record holds none of it.
        for conflict in conflicts.into_iter().filter(|it| it.superseded.is_none()) {
            let mut from = Some(0);
            while let Some(begin) = from {
                let page = node.conflicts().get(conflict.id, begin, 1_000);
                let (_, page) = page.unwrap_or_else(|_| (conflict.clone(), LostEvents::default()));
                for (event, at) in page.events.iter().zip(&page.in_stream) {
                    let (records, is_known) = held.entry(event.id).or_insert((0, true));
                    *records += 1;
                    *is_known &= at.is_some();
                }
                from = page.next;
            }
        }
        held
    }

    // Where the generations of each log ended, by the first node that runs.
    fn generations(&self) -> BTreeMap<LogId, Generations> {
        let Some(node) = self.machines.iter().find_map(|machine| machine.node()) else {
            return BTreeMap::new();
        };
        let heads = node.store().heads().into_iter();
        heads
            .map(|head| (head.log, node.generations(head.log)))
            .collect()
    }

    // What is rare about merged streams and shows in the end.
    fn note_merging(&mut self, evidence: &Evidence) {
        let is_merged = |stream: &StreamId| merged::kind(stream.category()).is_some();
        for call in evidence.calls.iter().filter(|it| is_merged(&it.stream)) {
            if matches!(&call.outcome, Outcome::Refused { code, .. } if *code == "conflict") {
                self.rare("an operation was refused for what its region held");
            }
        }
        let events = evidence.copies.iter().take(1);
        let events = events.flat_map(|it| it.logs.values().flatten().flatten());
        for event in events.filter(|it| is_merged(&it.stream)) {
            if evidence.stranded.contains_key(&event.id) {
                self.rare("an operation counts again that a fence had cut off");
            }
        }
    }

    pub(super) fn audit(&mut self) {
        let mut copies = Vec::new();
        for machine in &self.machines {
            if machine.node().is_none() {
                continue;
            }
            match copy_of(machine) {
                Ok(copy) => copies.push(copy),
                Err(error) => {
                    self.report
                        .broken
                        .push(format!("durable: {} cannot be read: {error}", machine.name));
                }
            }
        }
        self.report.events = copies.first().map_or(0, |copy| {
            copy.logs.values().flatten().map(Vec::len).sum::<usize>() as u64
        });
        let calls = self.history.calls();
        self.report.stable_lag = self.settled.lag(SettledTier::Stable, &calls);
        self.report.final_lag = self.settled.lag(SettledTier::Final, &calls);
        let evidence = Evidence {
            calls,
            reads: self.history.reads(),
            copies,
            forgiven: std::mem::take(&mut self.forgiven),
            sane: self.clock_was_off.iter().map(|off| !off).collect(),
            end: EPOCH + self.sim.elapsed(),
            settled: std::mem::take(&mut self.settled),
            seen: self.history.all_seen(),
            repeated: self.history.all_repeated(),
            read_models: self.read_models(),
            stranded: self.stranded(),
            in_conflict: self.in_conflict(),
            generations: self.generations(),
            fenced: self.fences.fenced(&self.plan),
            unaware: self.fences.unaware(),
            left_majorities: self.fences.left_majorities() && !self.all_lost,
            members: self.witness.members().clone(),
            regions: self.machines.len() - self.plan.newcomers,
            names: self
                .machines
                .iter()
                .map(|it| (it.name.clone(), region_id(it.index)))
                .collect(),
            states: self.read_states(),
        };
        self.note_merging(&evidence);
        self.report.broken.append(&mut self.two_homes);
        self.report.broken.extend(self.witness.broken());
        for machine in &self.machines {
            let lost = machine.lost().into_iter();
            let broken = lost.map(|what| format!("durable: {}: {what}", machine.name));
            self.report.broken.extend(broken);
        }
        self.report.broken.extend(self.history.seen_broken());
        self.report.broken.extend(invariants::check(&evidence));
        self.report.broken.truncate(30);
    }
}

fn copy_of(machine: &Machine) -> Result<Copy, ReadError> {
    const PAGE_BYTES: usize = 1 << 20;
    let mut logs = BTreeMap::new();
    let mut blocks_by_log = BTreeMap::new();
    let Some(node) = machine.node() else {
        return Ok(Copy {
            name: machine.name.clone(),
            logs,
            blocks: blocks_by_log,
        });
    };
    for head in node.store().heads() {
        let mut after = Position::ZERO;
        let mut events = Vec::new();
        let mut all = Vec::new();
        while after < head.position {
            let blocks = node.store().read_log(head.log, after, PAGE_BYTES)?;
            if blocks.is_empty() {
                break;
            }
            for block in blocks {
                after = block.header().last_position();
                events.push(block.to_events().unwrap_or_default());
                all.push(block);
            }
        }
        logs.insert(head.log, events);
        blocks_by_log.insert(head.log, all);
    }
    Ok(Copy {
        name: machine.name.clone(),
        logs,
        blocks: blocks_by_log,
    })
}

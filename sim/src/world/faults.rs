//! How each fault is done to the world, and undone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use meridian_clock::{LogId, Position};
use meridian_store::{Disk, Lanes, LogHead, LogOffset, SimDisk, Store, StoreOptions};

use super::fences::stranded_on;
use super::network::Trouble;
use super::{World, client_ip, node_ip, region_id};
use crate::invariants::Forgiven;
use crate::load::fencer::{Ask, Order};
use crate::plan::FaultKind;
use crate::world::story::What;

/// How long after a region the next one is started anew, for a configuration that lists more.
const RESTARTED_EVERY_MS: u64 = 600;

/// Something to do at a moment.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Begin(FaultKind),
    Cut(usize, usize),
    Repair(usize, usize),
    RepairOneWay(usize, usize),
    Release(usize, usize),
    Start(usize),
    Stopped(usize, u64),
    Died(usize, u64, u64),
    Room(usize),
    Fast(usize),
    ClockRight(usize),
    Clear(usize, usize),
    Resume(usize),
    Certify(usize),
    ListAll(usize),
    Ask(usize, Order),
    BackUpAll,
}

impl World {
    pub(super) fn later(&mut self, at_ms: u64, act: Act) {
        self.acts_made += 1;
        self.acts.insert((at_ms, self.acts_made), act);
    }

    fn after(&mut self, by_ms: u64, act: Act) {
        let now = u64::try_from(self.sim.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.later(now + by_ms.max(1), act);
    }

    pub(super) fn act(&mut self, act: Act) {
        let at = self.sim.elapsed();
        self.trace.note(at, format_args!("{act:?}"));
        match act {
            Act::Begin(kind) => {
                let count = self.report.faults.entry(kind.name().to_owned());
                *count.or_default() += 1;
                self.trace.tell(at, What::Fault(kind.clone()));
                self.begin(kind);
            }
            Act::Cut(a, b) => {
                self.tell_both(a, b, What::Cut);
                self.each(a, b, |sim, a, b| sim.partition(a, b));
            }
            Act::Repair(a, b) => {
                self.tell_both(a, b, What::Repaired);
                self.each(a, b, |sim, a, b| sim.repair(a, b));
            }
            Act::RepairOneWay(a, b) => {
                self.trace.tell(at, What::Repaired(a, b));
                self.each(a, b, |sim, a, b| sim.repair_oneway(a, b));
            }
            Act::Release(a, b) => self.each(a, b, |sim, a, b| sim.release(a, b)),
            Act::Start(region) => self.start(region),
            Act::Stopped(region, down_ms) => {
                if self.machines[region].stopped.load(Ordering::Relaxed) {
                    self.rare("a node stopped in order");
                    self.kill(region, false, down_ms);
                } else if !self.down[region] {
                    self.after(50, Act::Stopped(region, down_ms));
                }
            }
            Act::Died(region, down_ms, patience) => {
                // The disk answers nothing once the power is gone.
                let dead = self.machines[region].disk().exists("lock").is_err();
                if self.down[region] {
                } else if dead || patience == 0 {
                    if dead {
                        self.rare("the power was cut inside a commit");
                    }
                    self.kill(region, true, down_ms);
                } else {
                    self.after(1, Act::Died(region, down_ms, patience - 1));
                }
            }
            Act::Room(region) => self.machines[region].disk().set_room(None),
            Act::Fast(region) => self.machines[region].slow.store(1, Ordering::Relaxed),
            Act::ClockRight(region) => {
                self.machines[region].clock.jump(0);
                self.machines[region].clock.repair(at);
            }
            Act::Clear(from, to) => self.trouble(from, to, None, |_| ()),
            Act::Resume(region) => self.resume(region),
            Act::Certify(region) => self.certify(region, false),
            Act::ListAll(region) => self.list_all(region),
            Act::Ask(by, order) => self.orders[by].give(order),
            Act::BackUpAll => self.machines.iter().for_each(|it| it.back_up()),
        }
    }

    fn tell_both(&self, a: usize, b: usize, what: impl Fn(usize, usize) -> What) {
        if a == b {
            return;
        }
        let at = self.sim.elapsed();
        self.trace.tell(at, what(a, b));
        self.trace.tell(at, what(b, a));
    }

    // Between the machines of two regions, clients included.
    fn each(
        &mut self,
        a: usize,
        b: usize,
        act: impl Fn(&mut turmoil::Sim<'static>, IpAddr, IpAddr),
    ) {
        if a == b {
            return;
        }
        for from in [node_ip(a), client_ip(a)] {
            for to in [node_ip(b), client_ip(b)] {
                act(&mut self.sim, from, to);
            }
        }
    }

    fn begin(&mut self, kind: FaultKind) {
        match kind {
            FaultKind::Cut { a, b, for_ms } => {
                self.act(Act::Cut(a, b));
                self.after(for_ms, Act::Repair(a, b));
            }
            FaultKind::CutOneWay { from, to, for_ms } => {
                self.trace.tell(self.sim.elapsed(), What::Cut(from, to));
                self.each(from, to, |sim, from, to| sim.partition_oneway(from, to));
                self.after(for_ms, Act::RepairOneWay(from, to));
            }
            FaultKind::Flap {
                a,
                b,
                times,
                each_ms,
            } => {
                for time in 0..times {
                    self.after(time * 2 * each_ms, Act::Cut(a, b));
                    self.after((time * 2 + 1) * each_ms, Act::Repair(a, b));
                }
            }
            FaultKind::Isolate { region, for_ms } => {
                for other in 0..self.machines.len() {
                    self.act(Act::Cut(region, other));
                    self.after(for_ms, Act::Repair(region, other));
                }
            }
            FaultKind::Stall { a, b, for_ms } => {
                self.each(a, b, |sim, a, b| sim.hold(a, b));
                self.after(for_ms, Act::Release(a, b));
            }
            FaultKind::Kill { region, down_ms } => self.kill(region, false, down_ms),
            FaultKind::Stop { region, down_ms } => {
                if !self.down[region] {
                    self.machines[region].stop.notify_one();
                    self.after(50, Act::Stopped(region, down_ms));
                }
            }
            FaultKind::PowerCut { region, down_ms } => self.kill(region, true, down_ms),
            FaultKind::PowerCutInCommit {
                region,
                after,
                down_ms,
            } => {
                if !self.down[region] {
                    self.machines[region].disk().crash_after(after);
                    self.after(1, Act::Died(region, down_ms, 2_000));
                }
            }
            // The one who looks after failed nodes restarts them.
            FaultKind::FailSync { region, restart_ms } => {
                self.patience[region] = Duration::from_millis(restart_ms);
                // The log's: what rests on the other files is looked after by itself.
                self.machines[region].disk().fail_next_sync_below("log");
            }
            FaultKind::FailWrite { region, restart_ms } => {
                self.patience[region] = Duration::from_millis(restart_ms);
                self.machines[region].disk().fail_next_write();
            }
            FaultKind::DiskFull {
                region,
                room_bytes,
                for_ms,
            } => {
                self.machines[region].disk().set_room(Some(room_bytes));
                self.after(for_ms, Act::Room(region));
            }
            FaultKind::BitRot { region } => self.rot(region),
            FaultKind::SlowDisk {
                region,
                factor,
                for_ms,
            } => {
                self.machines[region].slow.store(factor, Ordering::Relaxed);
                self.after(for_ms, Act::Fast(region));
            }
            FaultKind::ClockJump {
                region,
                by_ms,
                for_ms,
            } => {
                self.machines[region].clock.jump(by_ms);
                self.clock_was_off[region] = true;
                self.after(for_ms, Act::ClockRight(region));
            }
            FaultKind::Gray {
                a,
                b,
                bytes_max,
                for_ms,
            } => {
                for (from, to) in [(a, b), (b, a)] {
                    self.trouble(from, to, Some(for_ms), |it| it.bytes_max = Some(bytes_max));
                }
            }
            FaultKind::Narrow {
                a,
                b,
                kib_per_s,
                for_ms,
            } => {
                for (from, to) in [(a, b), (b, a)] {
                    self.trouble(from, to, Some(for_ms), |it| {
                        it.bytes_per_s = Some(kib_per_s << 10);
                    });
                }
            }
            FaultKind::Detour {
                from,
                to,
                by_ms,
                for_ms,
            } => self.trouble(from, to, Some(for_ms), |it| {
                it.longer = Duration::from_millis(by_ms);
            }),
            FaultKind::Pause { region, for_ms } => {
                self.machines[region].paused.store(true, Ordering::Relaxed);
                for other in self.all_but(region) {
                    self.sim.hold(node_ip(region), other);
                }
                self.after(for_ms, Act::Resume(region));
            }
            FaultKind::PowerCutBoth { a, b, down_ms } => {
                self.kill(a, true, down_ms);
                self.kill(b, true, down_ms);
            }
            FaultKind::ClockDrift { region, ppm } => {
                self.machines[region].clock.drift(self.sim.elapsed(), ppm);
                self.clock_was_off[region] = true;
            }
            FaultKind::ClockFreeze { region, for_ms } => {
                self.machines[region].clock.freeze(self.sim.elapsed());
                self.clock_was_off[region] = true;
                self.after(for_ms, Act::ClockRight(region));
            }
            FaultKind::MisRead { region, reads } => {
                self.machines[region].disk().misread(reads);
            }
            FaultKind::CertificateExpires { region, for_ms } => {
                self.certify(region, true);
                self.after(for_ms, Act::Certify(region));
            }
            FaultKind::CertificateReplaced { region } => self.certify(region, false),
            FaultKind::Fence {
                region,
                by,
                force,
                evict,
            } => self.orders[by].give(Order {
                region: self.machines[region].name.clone(),
                what: Ask::Fence { force, evict },
            }),
            FaultKind::Join { region, by } => self.join(region, by),
            FaultKind::Leave { region, by } => self.orders[by].give(Order {
                region: self.machines[region].name.clone(),
                what: Ask::Leave,
            }),
            FaultKind::Wipe { region, down_ms } => {
                self.forgive(region);
                self.settled.lost(region);
                self.states.forget(region);
                self.kill(region, true, down_ms);
                if self.machines[region].replace_disk() {
                    self.rare("a lost disk was replaced from a backup");
                }
            }
            FaultKind::BackUp { region } => self.machines[region].back_up(),
            FaultKind::PutAllBack { down_ms } => self.put_all_back(down_ms),
        }
    }

    // One region after the other is started anew with a configuration that lists the newcomer, whose own node
    // runs by then; the operator does not wait for them.
    fn join(&mut self, region: usize, by: usize) {
        let order = Order {
            region: self.machines[region].name.clone(),
            what: Ask::Join,
        };
        self.list_all(region);
        let mut after_ms = 0;
        for other in (0..self.machines.len()).filter(|it| *it != region) {
            after_ms += RESTARTED_EVERY_MS;
            self.after(after_ms, Act::ListAll(other));
        }
        self.after(after_ms, Act::Ask(by, order));
    }

    fn list_all(&mut self, region: usize) {
        let machine = Arc::clone(&self.machines[region]);
        let (is_newcomer, is_down) = (machine.is_newcomer(), self.down[region]);
        if !is_down && machine.node().is_none() {
            // It is starting, and has read the other one already.
            return self.after(50, Act::ListAll(region));
        }
        machine.lists_all.store(true, Ordering::Relaxed);
        if is_newcomer {
            self.start(region);
        } else if !is_down {
            let down_ms = 100;
            self.begin(FaultKind::Stop { region, down_ms });
        }
    }

    /// Switches the machine of a region off that has left.
    pub(super) fn switch_off(&mut self, region: usize) {
        if !self.gone[region] {
            self.rare("a region left for good");
            self.kill(region, false, 0);
            self.gone[region] = true;
        }
    }

    // Changes what is wrong with the way from one region to another, clients included; without a
    // time to end it, all is well there again.
    fn trouble(
        &mut self,
        from: usize,
        to: usize,
        for_ms: Option<u64>,
        change: impl Fn(&mut Trouble),
    ) {
        {
            let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
            for here in [node_ip(from), client_ip(from)] {
                for there in [node_ip(to), client_ip(to)] {
                    if for_ms.is_some() {
                        change(troubles.entry((here, there)).or_default());
                    } else {
                        troubles.remove(&(here, there));
                    }
                }
            }
        }
        if let Some(for_ms) = for_ms {
            self.after(for_ms, Act::Clear(from, to));
        }
    }

    // Every address but that of a region's node.
    fn all_but(&self, region: usize) -> Vec<IpAddr> {
        (0..self.machines.len())
            .flat_map(|other| [node_ip(other), client_ip(other)])
            .filter(|other| *other != node_ip(region))
            .collect()
    }

    fn resume(&mut self, region: usize) {
        let was_paused = self.machines[region].paused.swap(false, Ordering::Relaxed);
        if was_paused {
            for other in self.all_but(region) {
                self.sim.release(node_ip(region), other);
            }
        }
    }

    // Gives a region another certificate, which its node takes up as it runs.
    fn certify(&mut self, region: usize, expired: bool) {
        let machine = Arc::clone(&self.machines[region]);
        self.acts_made += 1;
        self.certificates
            .replace(&machine.name, self.acts_made, expired)
            .expect("the folder of certificates can be written");
        if let Some(node) = machine.node() {
            node.reload_certificates()
                .expect("a certificate of its own is taken, expired or not");
        }
    }

    /// Ends a region's process, with or without its machine, and starts it again later.
    pub(super) fn kill(&mut self, region: usize, power: bool, down_ms: u64) {
        if self.down[region] {
            return;
        }
        self.down[region] = true;
        self.settled.ended(region);
        self.failing_since[region] = None;
        let machine = Arc::clone(&self.machines[region]);
        machine.stopped.store(false, Ordering::Relaxed);
        if let Some(node) = machine.node() {
            machine.note_committed(&node);
            self.witness.see(region, &node);
        }
        if power {
            // First the disk: what runs while the process is taken down changes nothing any more.
            machine.disk().crash();
        }
        // A start that reads wrongly cannot tell the end of its log from damage; not modelled.
        machine.disk().misread(0);
        let sim = &mut self.sim;
        machine
            .network
            .connections
            .while_crashing(|| sim.crash(machine.ip));
        self.trace.tell(self.sim.elapsed(), What::Ends(region));
        self.after(down_ms, Act::Start(region));
    }

    fn start(&mut self, region: usize) {
        if self.down[region] && !self.gone[region] {
            self.down[region] = false;
            self.machines[region].forget_start_error();
            let machine = Arc::clone(&self.machines[region]);
            let sim = &mut self.sim;
            // A node that was stopped in order may have left something.
            machine
                .network
                .connections
                .while_crashing(|| sim.bounce(machine.ip));
        }
    }

    // What only the lost machine held of its own logs may be lost with it.
    fn forgive(&mut self, region: usize) {
        let heads: Vec<_> = self
            .committed
            .iter()
            .filter(|((_, log), _)| log.origin == region_id(region))
            .map(|((holder, log), position)| (*holder, *log, *position))
            .collect();
        for (_, log, _) in heads.iter().filter(|(holder, ..)| *holder == region) {
            let elsewhere = heads
                .iter()
                .filter(|(holder, other, _)| *holder != region && other == log)
                .map(|(_, _, position)| *position)
                .max()
                .unwrap_or_default();
            self.forgiven.push(Forgiven {
                log: *log,
                after: elsewhere,
                before: self.sim.elapsed(),
                disks: 1,
            });
        }
        // And what it had stranded.
        let stranded = stranded_on(&self.machines[region].disk());
        self.stranded_lost.extend(stranded);
    }

    // What no backup has is lost, whoever held it.
    fn put_all_back(&mut self, down_ms: u64) {
        let mut kept: BTreeMap<LogId, Position> = BTreeMap::new();
        for region in 0..self.machines.len() {
            let machine = Arc::clone(&self.machines[region]);
            let stranded = stranded_on(&machine.disk());
            self.stranded_lost.extend(stranded);
            let down_ms = down_ms * (region as u64 + 1);
            self.kill(region, true, down_ms);
            machine.replace_disk();
            for head in heads_on(&machine.disk()) {
                let furthest = kept.entry(head.log).or_default();
                *furthest = head.position.max(*furthest);
            }
        }
        let logs: BTreeSet<LogId> = self.committed.keys().map(|(_, log)| *log).collect();
        self.forgiven.extend(logs.into_iter().map(|log| Forgiven {
            log,
            after: kept.get(&log).copied().unwrap_or_default(),
            before: self.sim.elapsed(),
            disks: usize::MAX,
        }));
        self.all_lost = true;
        self.committed.clear();
        self.settled.all_lost();
        self.witness.all_lost();
        self.states.forget_all();
        self.rare("all regions were put back from backups at once");
    }

    // Flips a bit in a block of the older half of a disk, which all others hold.
    fn rot(&mut self, region: usize) {
        let machine = Arc::clone(&self.machines[region]);
        let Some(node) = machine.node() else { return };
        let Ok(page) = node.store().scan(LogOffset::default(), 64 << 20) else {
            return;
        };
        drop(node);
        // Damage of what was written last cannot be told from a write that was torn.
        let vouched = page
            .blocks
            .last()
            .and_then(|(place, _)| durable_before(&machine.disk(), *place));
        let half = page.blocks.len() / 2;
        let held: Vec<_> = page
            .blocks
            .into_iter()
            .take(half)
            .filter(|(place, _)| vouched.is_some_and(|vouched| *place < vouched))
            .filter(|(_, block)| {
                let header = block.header();
                (0..self.machines.len()).all(|holder| {
                    let held = self.committed.get(&(holder, header.log));
                    held.is_some_and(|held| *held >= header.last_position())
                })
            })
            .collect();
        if held.is_empty() {
            return;
        }
        let (place, block) = self.rng.pick(&held).clone();
        let within = self.rng.below(block.bytes().len() as u64);
        let mask = 1_u8 << self.rng.below(8);
        let path = format!("log/{:08}.seg", place.segment);
        if machine.disk().exists(&path).unwrap_or(false) {
            machine.disk().flip(&path, place.offset + within, mask);
            self.rare("a bit flipped on disk");
        }
    }

    /// Undoes everything that went wrong.
    pub(super) fn heal_all(&mut self) {
        let left_over = std::mem::take(&mut self.acts);
        let is_asked = |act: &Act| matches!(act, Act::ListAll(_) | Act::Ask(..));
        self.acts
            .extend(left_over.into_iter().filter(|(_, act)| is_asked(act)));
        self.healed_at = Some(self.sim.elapsed());
        self.calm.store(true, Ordering::Relaxed);
        self.trace.note(self.sim.elapsed(), format_args!("heal"));
        self.trace.tell(self.sim.elapsed(), What::Healed);
        for a in 0..self.machines.len() {
            for b in 0..self.machines.len() {
                self.each(a, b, |sim, a, b| {
                    sim.repair(a, b);
                    sim.release(a, b);
                });
            }
        }
        self.troubles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        let expired = self.report.faults.contains_key("certificate-expires");
        for region in 0..self.machines.len() {
            self.resume(region);
            if expired {
                self.certify(region, false);
            }
            let machine = Arc::clone(&self.machines[region]);
            machine.disk().set_room(None);
            machine.disk().misread(0);
            machine.disk().crash_after(u64::MAX);
            machine.slow.store(1, Ordering::Relaxed);
            machine.clock.jump(0);
            machine.clock.repair(self.sim.elapsed());
            let dead = machine.disk().exists("lock").is_err();
            // Damage is looked for after a start.
            let rotten = self.report.faults.contains_key("bit-rot");
            if dead || rotten || machine.stopped.load(Ordering::Relaxed) {
                self.kill(region, dead, 500);
            } else {
                self.start(region);
            }
            if self.down[region] {
                self.after(500, Act::Start(region));
            }
        }
    }
}

// What the entry at `place` says was durable when it was written: all before the result.
fn durable_before(disk: &dyn Disk, place: LogOffset) -> Option<LogOffset> {
    // Where `docs/format.md` has it in an envelope: the segment, then the offset.
    const DURABLE_AT: u64 = 24;
    let path = format!("log/{:08}.seg", place.segment);
    let file = disk.open(&path, false).ok()?;
    let mut bytes = [0; 16];
    let read = file.read_at(&mut bytes, place.offset + DURABLE_AT).ok()?;
    let (segment, offset) = bytes.split_first_chunk::<8>()?;
    let offset = offset.first_chunk::<8>()?;
    (read == bytes.len())
        .then(|| LogOffset::new(u64::from_le_bytes(*segment), u64::from_le_bytes(*offset)))
}

// How far each log is on a disk that no node has.
fn heads_on(disk: &SimDisk) -> Vec<LogHead> {
    let copy = Arc::new(disk.backup(0));
    let options = StoreOptions {
        lanes: Lanes::Driven,
        ..StoreOptions::default()
    };
    // If it could not, all would be forgiven.
    let (store, _) = Store::open(copy, options).expect("a copy of a disk can be opened");
    store.heads()
}

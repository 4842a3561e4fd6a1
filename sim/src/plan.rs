//! What happens in a run: the regions, the network, the load and the faults.
//!
//! A plan is drawn from a seed, and a run depends on its plan alone. Plans are what is kept of a
//! failure: a seed means something else once the drawing changes, a plan does not.

use meridian_conflict::Kind;
use serde::{Deserialize, Serialize};

use crate::rng::Rng;
use crate::{fences, losses, members, storms};

/// Everything that a run depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Draws what the plan leaves open: ids, sizes, which datagrams are lost.
    pub seed: u64,
    /// How long the load and the faults go on, in virtual milliseconds.
    pub chaos_ms: u64,
    /// How long links may take to drain once every fault is healed.
    pub heal_ms: u64,
    /// How many partitions the federation has.
    pub partitions: u16,
    /// How large a segment file is, in KiB.
    pub segment_kib: u64,
    /// How many of the points in our code, in a hundred, do what is right but unusual.
    #[serde(default)]
    pub points_percent: u32,
    /// When the disks of all regions are copied; a disk that is lost later is replaced by its copy. Zero for never.
    #[serde(default)]
    pub backup_ms: u64,
    /// Nobody tells a node that its disk was replaced by a copy.
    #[serde(default)]
    pub backup_untold: bool,
    /// Every node keeps a read model, in a SQLite file.
    #[serde(default)]
    pub read_models: bool,
    /// And another one of the `live` tier.
    #[serde(default)]
    pub live_read_models: bool,
    /// How long a region is silent before the others go on without it by themselves, in
    /// milliseconds; zero when operators decide that.
    #[serde(default)]
    pub failover_ms: u64,
    /// How many of the regions, the last ones, are no members at first, and do not run before they
    /// join.
    #[serde(default)]
    pub newcomers: usize,
    /// The regions, numbered from 1 in this sequence.
    pub regions: Vec<RegionPlan>,
    /// The network between each two regions.
    pub links: Vec<LinkPlan>,
    /// What clients do.
    pub load: LoadPlan,
    /// What goes wrong, and when.
    pub faults: Vec<Fault>,
}

/// One region's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionPlan {
    /// Its name.
    pub name: String,
    /// How far its clock is from true time, in milliseconds.
    pub skew_ms: i64,
    /// How much faster than true time its clock runs, in millionths.
    pub drift_ppm: i64,
    /// How much faster than true time the clock runs that it measures leases with, in millionths.
    #[serde(default)]
    pub pace_ppm: i64,
    /// How long a write and sync takes at least and at most, in microseconds.
    pub commit_us: (u64, u64),
}

/// The network between two regions, both ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkPlan {
    /// One end, an index into the regions.
    pub a: usize,
    /// The other end.
    pub b: usize,
    /// How long a datagram takes, in milliseconds.
    pub latency_ms: u64,
    /// How many datagrams in a million are lost.
    pub loss_ppm: u32,
    /// How many in a million arrive twice.
    pub duplicate_ppm: u32,
    /// How many in a million are held back by up to twice the latency, and so overtaken.
    pub reorder_ppm: u32,
}

/// What the clients of every region do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadPlan {
    /// How many appends each region's client keeps in flight.
    pub writers: usize,
    /// How many streams with a home are written.
    pub streams: u64,
    /// How many streams that every region may write.
    pub shared_streams: u64,
    /// The longest pause between two appends of a writer, in milliseconds.
    pub pause_ms: u64,
    /// The largest batch, in events.
    pub batch_max: u64,
    /// The largest event, in bytes of data.
    pub event_bytes_max: u64,
    /// How many appends in a hundred expect a revision.
    pub conditional_percent: u32,
    /// How many go to shared streams.
    pub shared_percent: u32,
    /// How many wait for two regions, and how many for all.
    pub regions_percent: u32,
    /// See above.
    pub all_percent: u32,
    /// How many answered appends are sent once more with the same ids.
    pub repeat_percent: u32,
    /// How long a client tries, in milliseconds.
    pub timeout_ms: u64,
    /// How many appends each region keeps in flight through its HTTP door.
    #[serde(default)]
    pub http_writers: usize,
    /// How many applications follow each region's events, as an event stream over HTTP.
    #[serde(default)]
    pub followers: usize,
    /// How many batches each region's import keeps in flight; each is repeated until it is
    /// acknowledged.
    #[serde(default)]
    pub import_lanes: usize,
    /// How long between two moves of streams to other homes, on the average and in each region, in
    /// milliseconds; zero for none.
    #[serde(default)]
    pub moves_ms: u64,
    /// Whether regions are drained and resumed as well.
    #[serde(default)]
    pub drains: bool,
    /// How many of the streams with a home, in a hundred, are of a fenced category: their home refuses
    /// while it is cut off.
    #[serde(default)]
    pub fenced_percent: u32,
    /// How many appends in a hundred are operations on streams that every region writes and that are merged.
    #[serde(default)]
    pub merged_percent: u32,
    /// How many such streams there are of each kind, at least one.
    #[serde(default)]
    pub merged_streams: u64,
    /// Which kinds; all of them if none is named.
    #[serde(default)]
    pub merged_kinds: Vec<Kind>,
    /// Whether the streams with a home have it where they are created.
    #[serde(default)]
    pub created: bool,
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// When, in virtual milliseconds since the start.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: FaultKind,
}

/// The ways in which things go wrong. Regions are indexes into [`Plan::regions`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum FaultKind {
    /// Nothing passes between two regions.
    Cut {
        /// One region.
        a: usize,
        /// The other.
        b: usize,
        /// How long.
        for_ms: u64,
    },
    /// Nothing passes from one region to another; the other direction works.
    CutOneWay {
        /// From here nothing arrives.
        from: usize,
        /// There.
        to: usize,
        /// How long.
        for_ms: u64,
    },
    /// A link goes down and up again and again.
    Flap {
        /// One region.
        a: usize,
        /// The other.
        b: usize,
        /// How often.
        times: u64,
        /// How long it is down, and then up.
        each_ms: u64,
    },
    /// Nothing passes between a region and all others.
    Isolate {
        /// The region.
        region: usize,
        /// How long.
        for_ms: u64,
    },
    /// Datagrams between two regions wait, and arrive all at once at the end.
    Stall {
        /// One region.
        a: usize,
        /// The other.
        b: usize,
        /// How long.
        for_ms: u64,
    },
    /// The process dies; what it wrote stays in the machine's cache.
    Kill {
        /// The region.
        region: usize,
        /// How long it stays down.
        down_ms: u64,
    },
    /// The process is told to stop, and ends in order.
    Stop {
        /// The region.
        region: usize,
        /// How long it stays down.
        down_ms: u64,
    },
    /// The machine loses power between two steps of its program.
    PowerCut {
        /// The region.
        region: usize,
        /// How long it stays down.
        down_ms: u64,
    },
    /// The machine loses power after so many more changes to its disk: inside a commit.
    PowerCutInCommit {
        /// The region.
        region: usize,
        /// How many changes still succeed.
        after: u64,
        /// How long it stays down.
        down_ms: u64,
    },
    /// The next sync fails; an operator restarts the node.
    FailSync {
        /// The region.
        region: usize,
        /// When, after the failure.
        restart_ms: u64,
    },
    /// The next write fails; an operator restarts the node.
    FailWrite {
        /// The region.
        region: usize,
        /// When, after the failure.
        restart_ms: u64,
    },
    /// The disk is full.
    DiskFull {
        /// The region.
        region: usize,
        /// How much room is left.
        room_bytes: u64,
        /// How long.
        for_ms: u64,
    },
    /// A bit flips in what is on disk, in a block that the other regions hold too.
    BitRot {
        /// The region.
        region: usize,
    },
    /// The disk is slow.
    SlowDisk {
        /// The region.
        region: usize,
        /// How much longer everything takes.
        factor: u64,
        /// How long.
        for_ms: u64,
    },
    /// The wall clock jumps, and is set right again later.
    ClockJump {
        /// The region.
        region: usize,
        /// How far, in milliseconds.
        by_ms: i64,
        /// How long it stays wrong.
        for_ms: u64,
    },
    /// Small datagrams pass between two regions and large ones do not: who asks whether the other
    /// is there is told yes, and nothing that matters arrives.
    Gray {
        /// One region.
        a: usize,
        /// The other.
        b: usize,
        /// The largest datagram that passes.
        bytes_max: usize,
        /// How long.
        for_ms: u64,
    },
    /// Little passes between two regions at a time; what does not fit in a short queue is lost.
    Narrow {
        /// One region.
        a: usize,
        /// The other.
        b: usize,
        /// How much passes, in KiB per second and direction.
        kib_per_s: u64,
        /// How long.
        for_ms: u64,
    },
    /// Datagrams from one region to another take longer; those that come back do not.
    Detour {
        /// From here.
        from: usize,
        /// To there.
        to: usize,
        /// How much longer.
        by_ms: u64,
        /// How long that lasts.
        for_ms: u64,
    },
    /// The machine stands still: nothing goes in or out, nothing is committed; then all at once.
    ///
    /// What it cannot do is stop the node's own timers: these go on.
    Pause {
        /// The region.
        region: usize,
        /// How long.
        for_ms: u64,
    },
    /// Two machines lose power at the same moment.
    PowerCutBoth {
        /// One region.
        a: usize,
        /// The other.
        b: usize,
        /// How long they stay down.
        down_ms: u64,
    },
    /// A wall clock runs at another speed, from here on and until all is healed.
    ClockDrift {
        /// The region.
        region: usize,
        /// How much faster than true time, in millionths.
        ppm: i64,
    },
    /// A wall clock stands still, and is right again afterwards.
    ClockFreeze {
        /// The region.
        region: usize,
        /// How long it stands.
        for_ms: u64,
    },
    /// Bits flip on their way from the disk, which itself is sound: each of the next reads of the
    /// log is wrong in one bit, once.
    MisRead {
        /// The region.
        region: usize,
        /// How many reads.
        reads: u64,
    },
    /// A region's certificate has expired: nobody new talks to it until there is another one.
    CertificateExpires {
        /// The region.
        region: usize,
        /// How long until an operator notices.
        for_ms: u64,
    },
    /// A region's certificate and key are replaced while it runs.
    CertificateReplaced {
        /// The region.
        region: usize,
    },
    /// The machine is lost with its disk; a new one takes its place.
    Wipe {
        /// The region.
        region: usize,
        /// How long it stays down.
        down_ms: u64,
    },
    /// A copy of a machine's disk is put away, in place of an earlier one.
    BackUp {
        /// The region.
        region: usize,
    },
    /// All machines are lost with their disks at the same moment; new ones take their places, with what was put away of
    /// each.
    PutAllBack {
        /// How long the first one stays down; each further one as long again.
        down_ms: u64,
    },
    /// An operator takes a region for lost, rightly or not, and has the others go on without it.
    Fence {
        /// The region.
        region: usize,
        /// Where the operator asks.
        by: usize,
        /// Also when fewer than a majority remain.
        #[serde(default)]
        force: bool,
        /// As part of the fence that is under way.
        #[serde(default)]
        evict: bool,
    },
    /// Operators list a newcomer everywhere, start its node, and have it join, however long that takes.
    Join {
        /// The region.
        region: usize,
        /// Where they ask.
        by: usize,
    },
    /// Operators drain a region and have it leave for good, however long that takes; then it is switched off.
    Leave {
        /// The region.
        region: usize,
        /// Where they ask.
        by: usize,
    },
}

impl FaultKind {
    /// Its name, as in a plan's file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cut { .. } => "cut",
            Self::CutOneWay { .. } => "cut-one-way",
            Self::Flap { .. } => "flap",
            Self::Isolate { .. } => "isolate",
            Self::Stall { .. } => "stall",
            Self::Kill { .. } => "kill",
            Self::Stop { .. } => "stop",
            Self::PowerCut { .. } => "power-cut",
            Self::PowerCutInCommit { .. } => "power-cut-in-commit",
            Self::FailSync { .. } => "fail-sync",
            Self::FailWrite { .. } => "fail-write",
            Self::DiskFull { .. } => "disk-full",
            Self::BitRot { .. } => "bit-rot",
            Self::SlowDisk { .. } => "slow-disk",
            Self::ClockJump { .. } => "clock-jump",
            Self::Gray { .. } => "gray",
            Self::Narrow { .. } => "narrow",
            Self::Detour { .. } => "detour",
            Self::Pause { .. } => "pause",
            Self::PowerCutBoth { .. } => "power-cut-both",
            Self::ClockDrift { .. } => "clock-drift",
            Self::ClockFreeze { .. } => "clock-freeze",
            Self::MisRead { .. } => "mis-read",
            Self::CertificateExpires { .. } => "certificate-expires",
            Self::CertificateReplaced { .. } => "certificate-replaced",
            Self::Wipe { .. } => "wipe",
            Self::BackUp { .. } => "back-up",
            Self::PutAllBack { .. } => "put-all-back",
            Self::Fence { .. } => "fence",
            Self::Join { .. } => "join",
            Self::Leave { .. } => "leave",
        }
    }
}

impl LoadPlan {
    // Half of all plans merge something, and a third of these only one kind, so that much of it meets.
    fn draw_merged(&mut self, rng: &mut Rng) {
        self.merged_percent = *rng.pick(&[0, 0, 0, 20, 50, 80]);
        if self.merged_percent > 0 {
            self.merged_streams = *rng.pick(&[1, 1, 3]);
            if rng.below(3) == 0 {
                self.merged_kinds = vec![*rng.pick(&Kind::ALL)];
            }
        }
    }
}

impl Plan {
    /// Three regions on a good network, with a moderate load and nothing going wrong: what
    /// scenarios begin with.
    pub fn calm(seed: u64) -> Self {
        Self {
            seed,
            chaos_ms: 10_000,
            heal_ms: 60_000,
            partitions: 2,
            segment_kib: 256,
            points_percent: 0,
            backup_ms: 0,
            backup_untold: false,
            read_models: false,
            live_read_models: false,
            failover_ms: 0,
            newcomers: 0,
            regions: Vec::new(),
            links: Vec::new(),
            load: LoadPlan {
                writers: 3,
                streams: 12,
                shared_streams: 3,
                pause_ms: 60,
                batch_max: 4,
                event_bytes_max: 200,
                conditional_percent: 40,
                shared_percent: 20,
                regions_percent: 20,
                all_percent: 5,
                repeat_percent: 10,
                timeout_ms: 5_000,
                http_writers: 1,
                followers: 1,
                import_lanes: 0,
                moves_ms: 0,
                drains: false,
                fenced_percent: 0,
                merged_percent: 0,
                merged_streams: 0,
                merged_kinds: Vec::new(),
                created: false,
            },
            faults: Vec::new(),
        }
        .among(3)
    }

    /// The same among `count` regions, two to five, with a good network between each two.
    #[must_use]
    pub fn among(mut self, count: usize) -> Self {
        self.regions.clear();
        self.links.clear();
        self.widen(count.max(2));
        self
    }

    /// Puts more regions beside those that are there, until there are `count`.
    pub(crate) fn widen(&mut self, count: usize) {
        let names = ["us-east", "eu-west", "ap-south", "sa-east", "af-south"];
        let there = self.regions.len();
        for (b, name) in names.into_iter().enumerate().take(count).skip(there) {
            self.regions.push(RegionPlan {
                name: name.to_owned(),
                skew_ms: 0,
                drift_ppm: 0,
                pace_ppm: 0,
                commit_us: (500, 2000),
            });
            self.links.extend((0..b).map(|a| LinkPlan {
                a,
                b,
                latency_ms: 20,
                loss_ppm: 0,
                duplicate_ppm: 0,
                reorder_ppm: 0,
            }));
        }
    }

    /// What speed is measured with: three regions, a few thousand events and one fault of each kind
    /// that a network and machines have every day, in about 60 virtual seconds.
    pub fn standard(seed: u64) -> Self {
        let mut rng = Rng::part(seed, "standard");
        let mut plan = Self::calm(seed);
        plan.chaos_ms = 55_000;
        plan.load.writers = 2;
        plan.load.pause_ms = 500;
        for link in &mut plan.links {
            link.latency_ms = *rng.pick(&[5, 15, 40]);
            link.loss_ppm = *rng.pick(&[0, 1_000, 10_000]);
        }
        let [a, b, c] = *rng.pick(&[[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]);
        let kinds = [
            FaultKind::Isolate {
                region: a,
                for_ms: 4_000,
            },
            FaultKind::PowerCut {
                region: b,
                down_ms: 2_000,
            },
            FaultKind::Cut {
                a,
                b: c,
                for_ms: 3_000,
            },
            FaultKind::Kill {
                region: c,
                down_ms: 700,
            },
            FaultKind::SlowDisk {
                region: a,
                factor: 10,
                for_ms: 4_000,
            },
        ];
        for (number, kind) in (1..).zip(kinds) {
            let at_ms = number * 9_000 + rng.below(3_000);
            plan.faults.push(Fault { at_ms, kind });
        }
        plan
    }

    /// A plan with every knob drawn from `seed`.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::part(seed, "plan");
        let mut plan = Self::calm(seed).among(*rng.pick(&[3, 3, 3, 3, 3, 2, 4, 5]));
        plan.chaos_ms = rng.between(8_000, 30_000);
        plan.partitions = *rng.pick(&[1, 1, 2, 4]);
        plan.segment_kib = *rng.pick(&[64, 64, 256, 1024]);
        plan.draw_world(&mut rng);
        let load = &mut plan.load;
        load.writers = usize::try_from(rng.between(1, 6)).unwrap_or(1);
        load.streams = *rng.pick(&[1, 4, 12, 60]);
        load.shared_streams = rng.between(1, 6);
        load.pause_ms = *rng.pick(&[5, 30, 100, 400]);
        load.batch_max = *rng.pick(&[1, 3, 3, 20]);
        load.event_bytes_max = *rng.pick(&[50, 300, 300, 3_000]);
        load.conditional_percent = *rng.pick(&[0, 30, 70, 100]);
        load.shared_percent = *rng.pick(&[0, 20, 60]);
        load.regions_percent = *rng.pick(&[0, 20, 40]);
        load.all_percent = *rng.pick(&[0, 5, 20]);
        load.repeat_percent = *rng.pick(&[0, 5, 30]);
        load.timeout_ms = *rng.pick(&[1_500, 4_000, 10_000]);
        load.http_writers = *rng.pick(&[0, 1, 1, 2]);
        load.followers = *rng.pick(&[0, 1, 1, 2]);
        load.import_lanes = *rng.pick(&[0, 0, 0, 2, 6]);

        let count = rng.below(9);
        let mut wiped = false;
        let mut rotten = 0;
        for _ in 0..count {
            let at_ms = rng.between(1_500, plan.chaos_ms);
            let mut kind = Self::draw_fault(&mut rng, plan.regions.len());
            // One lost disk, or damage on one fewer than there are copies: beyond that, what was
            // acknowledged may be gone.
            let copies = plan.regions.len() - usize::from(wiped);
            match kind {
                FaultKind::Wipe { region, down_ms } if wiped || rotten + 2 > plan.regions.len() => {
                    kind = FaultKind::PowerCut { region, down_ms };
                }
                FaultKind::Wipe { .. } => wiped = true,
                FaultKind::BitRot { region } if rotten + 2 > copies => {
                    kind = FaultKind::PowerCut {
                        region,
                        down_ms: 700,
                    };
                }
                FaultKind::BitRot { .. } => rotten += 1,
                _ => {}
            }
            plan.faults.push(Fault { at_ms, kind });
        }
        plan.faults
            .extend(storms::draw(seed, plan.regions.len(), plan.chaos_ms));
        plan.faults.sort_by_key(|fault| fault.at_ms);
        // Drawn apart, so that the rest of a seed's plan does not depend on it.
        plan.read_models = Rng::part(seed, "read models").below(2) == 0;
        plan.load.moves_ms = *Rng::part(seed, "moves").pick(&[0, 0, 0, 400, 1_500]);
        plan.live_read_models =
            plan.read_models && Rng::part(seed, "live read models").below(2) == 0;
        // What a region stamped far ahead of all clocks cannot be taken over before its time has come.
        let jumps = |fault: &Fault| matches!(fault.kind, FaultKind::ClockJump { by_ms, .. } if by_ms > 3_000);
        let drains = Rng::part(seed, "drains").below(2) == 0;
        plan.load.drains = drains && !plan.faults.iter().any(jumps);
        fences::draw(&mut plan);
        if !losses::draw(&mut plan) {
            members::draw(&mut plan);
        }
        plan.points_percent = *Rng::part(seed, "points").pick(&[0, 0, 25, 50]);
        if plan.points_percent > 0 {
            // A window of a few blocks that are acknowledged late takes its time, and is right.
            plan.heal_ms *= 3;
        }
        let mut rng = Rng::part(seed, "fenced categories");
        plan.load.fenced_percent = match plan.has_fences() {
            true => *rng.pick(&[0, 50, 100]),
            false => *rng.pick(&[0, 0, 0, 50]),
        };
        plan.load.draw_merged(&mut Rng::part(seed, "merged"));
        let mut rng = Rng::part(seed, "backups");
        if rng.below(2) == 0 {
            plan.backup_ms = rng.between(500, plan.chaos_ms);
        }
        plan.backup_untold = Rng::part(seed, "backups untold").percent(50);
        plan.load.created = Rng::part(seed, "created").below(3) == 0;
        if plan.load.created {
            // So many that some are created while things go wrong.
            plan.load.streams *= 8;
        }
        plan
    }

    /// Draws clocks, disks and the network.
    pub(crate) fn draw_world(&mut self, rng: &mut Rng) {
        for region in &mut self.regions {
            region.skew_ms = rng.between(0, 200).cast_signed() - 100;
            region.drift_ppm = rng.between(0, 400).cast_signed() - 200;
            let quickest = rng.between(100, 2_000);
            region.commit_us = (quickest, quickest + rng.below(20_000));
        }
        // As far as leases allow for, and drawn apart, as it came later.
        let mut apart = Rng::part(self.seed, "pace");
        for region in &mut self.regions {
            region.pace_ppm = *apart.pick(&[-10_000, 0, 10_000]);
        }
        for link in &mut self.links {
            link.latency_ms = *rng.pick(&[1, 5, 15, 40, 80]);
            link.loss_ppm = *rng.pick(&[0, 0, 1_000, 10_000, 30_000]);
            link.duplicate_ppm = *rng.pick(&[0, 0, 1_000, 20_000]);
            link.reorder_ppm = *rng.pick(&[0, 0, 5_000, 30_000]);
        }
    }

    /// Whether members may change: a region may be put out, join or leave.
    pub fn has_fences(&self) -> bool {
        let is_fence = |fault: &Fault| {
            matches!(
                fault.kind,
                FaultKind::Fence { .. } | FaultKind::Join { .. } | FaultKind::Leave { .. }
            )
        };
        self.failover_ms > 0 || self.faults.iter().any(is_fence)
    }

    /// Whether the region at `index` leaves for good.
    pub fn leaves(&self, index: usize) -> bool {
        let mut faults = self.faults.iter();
        faults.any(|it| matches!(it.kind, FaultKind::Leave { region, .. } if region == index))
    }

    /// Whether a region is ever put out for lost, and not only because it leaves.
    pub fn is_lost(&self, index: usize) -> bool {
        let mut faults = self.faults.iter();
        let is_fenced =
            faults.any(|it| matches!(it.kind, FaultKind::Fence { region, .. } if region == index));
        self.failover_ms > 0 || is_fenced
    }

    fn draw_fault(rng: &mut Rng, regions: usize) -> FaultKind {
        let index = |number: u64| usize::try_from(number).unwrap_or(0);
        let region = index(rng.below(regions as u64));
        let other = (region + index(rng.between(1, regions as u64 - 1))) % regions;
        let for_ms = *rng.pick(&[200, 1_000, 4_000, 10_000]);
        let down_ms = *rng.pick(&[100, 700, 3_000, 8_000]);
        let (a, b) = (region, other);
        match rng.below(36) {
            0 => FaultKind::Cut { a, b, for_ms },
            1 | 2 => FaultKind::CutOneWay {
                from: a,
                to: b,
                for_ms,
            },
            3 => FaultKind::Flap {
                a,
                b,
                times: rng.between(2, 6),
                each_ms: *rng.pick(&[100, 500, 2_000]),
            },
            4 | 5 => FaultKind::Isolate { region, for_ms },
            6 => FaultKind::Stall {
                a,
                b,
                for_ms: for_ms.min(4_000),
            },
            7 => FaultKind::Kill { region, down_ms },
            8 => FaultKind::Stop { region, down_ms },
            9 | 10 => FaultKind::PowerCut { region, down_ms },
            11 | 12 => FaultKind::PowerCutInCommit {
                region,
                after: rng.below(12),
                down_ms,
            },
            13 => FaultKind::FailSync {
                region,
                restart_ms: down_ms,
            },
            14 => FaultKind::FailWrite {
                region,
                restart_ms: down_ms,
            },
            15 => FaultKind::DiskFull {
                region,
                room_bytes: *rng.pick(&[0, 10_000, 100_000]),
                for_ms,
            },
            16 => FaultKind::BitRot { region },
            17 => FaultKind::SlowDisk {
                region,
                factor: *rng.pick(&[5, 30]),
                for_ms,
            },
            18 => FaultKind::ClockJump {
                region,
                by_ms: *rng.pick(&[
                    -3_600_000,
                    -2_000,
                    -300,
                    300,
                    2_000,
                    3_600_000,
                    10 * 365 * 86_400_000,
                ]),
                for_ms,
            },
            19 | 20 => FaultKind::Wipe { region, down_ms },
            21 | 22 => FaultKind::Gray {
                a,
                b,
                bytes_max: *rng.pick(&[80, 200, 600]),
                for_ms,
            },
            23 | 24 => FaultKind::Narrow {
                a,
                b,
                kib_per_s: *rng.pick(&[4, 30, 200]),
                for_ms,
            },
            25 => FaultKind::Detour {
                from: a,
                to: b,
                by_ms: *rng.pick(&[20, 150, 600]),
                for_ms,
            },
            26..=28 => FaultKind::Pause {
                region,
                for_ms: *rng.pick(&[300, 1_500, 5_000, 12_000]),
            },
            29 => FaultKind::PowerCutBoth { a, b, down_ms },
            30 => FaultKind::ClockDrift {
                region,
                ppm: *rng.pick(&[-100_000, -2_000, 2_000, 100_000]),
            },
            31 => FaultKind::ClockFreeze { region, for_ms },
            32 => FaultKind::Pause {
                region,
                for_ms: down_ms,
            },
            33 => FaultKind::MisRead {
                region,
                reads: *rng.pick(&[1, 3, 12]),
            },
            34 => FaultKind::CertificateExpires { region, for_ms },
            _ => FaultKind::CertificateReplaced { region },
        }
    }
}

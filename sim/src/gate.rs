//! The mutation gate: with each bug that can be planted, some plan must turn red.
//!
//! A bug that stays green is a hole in the checkers or in the plans, and is to be closed there.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use meridian_points::Bug;

use crate::hunt::run_alone;
use crate::plan::Plan;
use crate::world::RunOptions;
use crate::{kept, scenarios};

/// What the gate tries with each bug.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// The plan that is kept for the bug, if there is one, and the scenarios first: all bugs are seen
    /// there already.
    pub scenarios: bool,
    /// The first seed.
    pub from: u64,
    /// How many seeds.
    pub seeds: u64,
}

/// What became of one bug.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The bug.
    pub bug: Bug,
    /// How many plans were run.
    pub tried: u64,
    /// The plan that turned red, in words, and what it broke.
    pub red: Option<(String, Vec<String>)>,
}

impl Verdict {
    /// The invariant that named it first: what stands before the colon.
    pub fn invariant(&self) -> &str {
        let first = self.red.as_ref().and_then(|(_, broken)| broken.first());
        let name = first.and_then(|what| what.split(':').next());
        name.unwrap_or("none")
    }
}

/// Whether bugs can be planted in this build.
///
/// # Errors
/// How to build one in which they can.
pub fn can_plant() -> Result<(), String> {
    if cfg!(feature = "planted") {
        return Ok(());
    }
    Err("no bug can be planted in this build; build with `--features planted`".to_owned())
}

/// Tries every bug of `bugs`, on `jobs` threads, one bug on each; `each` is told of every verdict.
pub fn judge(
    bugs: &[Bug],
    trial: Trial,
    jobs: usize,
    each: impl Fn(&Verdict) + Sync,
) -> Vec<Verdict> {
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict = try_one(*bug, trial);
                    let mut verdicts = verdicts.lock().unwrap_or_else(PoisonError::into_inner);
                    each(&verdict);
                    verdicts.push(verdict);
                }
            });
        }
    });
    let mut verdicts = verdicts
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    verdicts.sort_by_key(|verdict| verdict.bug);
    verdicts
}

fn try_one(bug: Bug, trial: Trial) -> Verdict {
    let mut verdict = Verdict {
        bug,
        tried: 0,
        red: None,
    };
    let kept = trial.scenarios.then(kept::planted).transpose();
    let kept = kept.expect("the plans for planted bugs can be read, which a test claims");
    let kept = kept.and_then(|mut plans| plans.remove(bug.name()));
    let kept = kept.map(|plan| ("its kept plan".to_owned(), plan));
    let by_hand = trial.scenarios.then(scenarios::all).into_iter().flatten();
    let by_hand = by_hand.map(|(name, plan)| (format!("scenario {name}"), plan));
    let by_hand = kept.into_iter().chain(by_hand);
    let drawn = (trial.from..trial.from.saturating_add(trial.seeds))
        .map(|seed| (format!("seed {seed}"), Plan::draw(seed)));
    for (name, plan) in by_hand.chain(drawn) {
        let options = RunOptions {
            bug: Some(bug),
            ..RunOptions::default()
        };
        let report = run_alone(&plan, options).report;
        verdict.tried += 1;
        if !report.ok {
            verdict.red = Some((name, report.broken));
            break;
        }
    }
    verdict
}

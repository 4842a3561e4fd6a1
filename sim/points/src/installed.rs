//! What marks answer on a thread that a run is on.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;

use crate::Bug;

/// How marks behave in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    /// Draws which points are on and when they say yes.
    pub seed: u64,
    /// How many points in a hundred are on; 0 turns all off.
    pub points_percent: u32,
    /// The bug that is planted. Without the feature `planted` it has no effect.
    pub bug: Option<Bug>,
}

// One time in this many, a point that is on says yes.
const ONE_IN: u64 = 4;

#[derive(Debug)]
struct Run {
    setup: Setup,
    rare: BTreeMap<&'static str, u64>,
    // The generator of each point that was asked; `None` for one that is off in this run.
    points: BTreeMap<&'static str, Option<u64>>,
}

thread_local! {
    static RUN: RefCell<Option<Run>> = const { RefCell::new(None) };
}

/// Marks act on this thread for as long as this value lives.
#[derive(Debug)]
#[must_use = "marks act only while it lives"]
pub struct Installed(PhantomData<*const ()>);

/// Begins a run on this thread.
///
/// # Panics
/// When one is on it already.
pub fn install(setup: Setup) -> Installed {
    RUN.with_borrow_mut(|run| {
        assert!(run.is_none(), "one run at a time is on a thread");
        *run = Some(Run {
            setup,
            rare: BTreeMap::new(),
            points: BTreeMap::new(),
        });
    });
    Installed(PhantomData)
}

impl Installed {
    /// How often each rare state was reached so far.
    pub fn rare(&self) -> BTreeMap<&'static str, u64> {
        RUN.with_borrow(|run| run.as_ref().map(|run| run.rare.clone()))
            .unwrap_or_default()
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        RUN.set(None);
    }
}

pub(crate) fn reached(state: &'static str) {
    RUN.with_borrow_mut(|run| {
        if let Some(run) = run {
            *run.rare.entry(state).or_default() += 1;
        }
    });
}

pub(crate) fn buggify(point: &'static str) -> bool {
    RUN.with_borrow_mut(|run| {
        let Some(run) = run else { return false };
        let Setup {
            seed,
            points_percent,
            ..
        } = run.setup;
        let generator = run.points.entry(point).or_insert_with(|| {
            // FNV-1a, so that each point has a sequence of its own.
            let mut state = point
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
                });
            let is_on = next(&mut state) % 100 < u64::from(points_percent);
            is_on.then_some(state)
        });
        generator
            .as_mut()
            .is_some_and(|state| next(state).is_multiple_of(ONE_IN))
    })
}

#[cfg(feature = "planted")]
pub(crate) fn planted(bug: Bug) -> bool {
    RUN.with_borrow(|run| run.as_ref().is_some_and(|run| run.setup.bug == Some(bug)))
}

// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(setup: Setup) -> Vec<bool> {
        let _run = install(setup);
        (0..200).map(|_| buggify("a")).collect()
    }

    #[test]
    fn marks_do_nothing_without_a_run() {
        reached("nothing");
        assert!(!buggify("a"));
    }

    #[test]
    fn a_point_answers_the_same_whatever_others_are_asked() {
        let setup = Setup {
            seed: 7,
            points_percent: 100,
            bug: None,
        };
        let alone = answers(setup);
        let _run = install(setup);
        let among = (0..200).map(|_| {
            buggify("b");
            buggify("a")
        });
        assert_eq!(among.collect::<Vec<_>>(), alone);
        assert!(alone.contains(&true) && alone.contains(&false));
    }

    #[test]
    fn a_run_ends_with_its_value() {
        let run = install(Setup::default());
        reached("there");
        reached("there");
        assert_eq!(run.rare(), BTreeMap::from([("there", 2)]));
        drop(run);
        assert_eq!(install(Setup::default()).rare(), BTreeMap::new());
    }
}

//! Marks in our own code that a simulation can act on.
//!
//! Three kinds: [`reached`] counts a rare state, so that a hunt knows what it never saw; [`buggify`]
//! asks whether to be as slow, as eager or as small as is still right; [`planted`] asks whether to do
//! one known wrong thing, so that we know our checkers would see it.
//!
//! Without the features `sim` and `planted` each is a constant, and a build for users has nothing of
//! it. With them a mark still does nothing but on a thread that a run has [installed](install) itself
//! on: a run is one thread, so that many can go on side by side.
//!
//! Always true: what marks answer depends on the run's seed and on how often that same mark was
//! asked, never on time or on other marks.

mod bug;
#[cfg(feature = "sim")]
mod installed;

pub use bug::Bug;
#[cfg(feature = "sim")]
pub use installed::{Installed, Setup, install};

/// Takes note that a rare state was reached. Give it a sentence: it is printed as it is.
#[inline(always)]
pub fn reached(state: &'static str) {
    #[cfg(feature = "sim")]
    installed::reached(state);
    #[cfg(not(feature = "sim"))]
    let _ = state;
}

/// Whether the code at the mark called `point` should now do something that is right but unusual:
/// yield, wait a little, wake early, take a small buffer.
///
/// In each run some points are on and most are off; one that is on says yes now and then.
#[inline(always)]
pub fn buggify(point: &'static str) -> bool {
    #[cfg(feature = "sim")]
    return installed::buggify(point);
    #[cfg(not(feature = "sim"))]
    {
        let _ = point;
        false
    }
}

/// Whether to do the wrong thing that `bug` stands for.
#[inline(always)]
pub fn planted(bug: Bug) -> bool {
    #[cfg(feature = "planted")]
    return installed::planted(bug);
    #[cfg(not(feature = "planted"))]
    {
        let _ = bug;
        false
    }
}

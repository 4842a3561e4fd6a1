//! What happened in a run, as a hash: two runs of a plan are the same when their hashes are.
//!
//! Beside it, for those who ask, the steps themselves and a story that can be drawn. Neither has a part
//! in the hash, so a run is the same whatever is kept of it.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::story::{Happened, What};

/// Takes note of every step. Clones are the same trace.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    hasher: blake3::Hasher,
    steps: u64,
    line: String,
    kept: Option<Vec<String>>,
    story: Option<Vec<Happened>>,
}

/// What is kept of a run beside its report.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    /// Every step, as a line of text.
    pub lines: bool,
    /// What happened, to be drawn.
    pub story: bool,
}

impl Trace {
    /// A trace that keeps more than its hash.
    pub fn keeping(keep: Keep) -> Self {
        let inner = Inner {
            kept: keep.lines.then(Vec::new),
            story: keep.story.then(Vec::new),
            ..Inner::default()
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Notes one step at the virtual time `at`.
    pub fn note(&self, at: Duration, step: std::fmt::Arguments<'_>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = &mut *inner;
        inner.line.clear();
        let millis = at.as_micros();
        // Writing to a string does not fail.
        let _ = write!(inner.line, "{millis} {step}");
        inner.hasher.update(inner.line.as_bytes());
        inner.hasher.update(b"\n");
        inner.steps += 1;
        if let Some(kept) = &mut inner.kept {
            kept.push(inner.line.clone());
        }
    }

    /// Tells the story on, if anyone listens.
    pub fn tell(&self, at: Duration, what: What) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(story) = &mut inner.story {
            story.push(Happened { at, what });
        }
    }

    /// The story so far; empty if it was not asked for.
    pub fn story(&self) -> Vec<Happened> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.story.clone().unwrap_or_default()
    }

    /// The hash of all steps, in hex.
    pub fn hash(&self) -> String {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.hasher.finalize().to_hex()[..16].to_owned()
    }

    /// How many steps there were.
    pub fn steps(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).steps
    }

    /// The steps that were kept.
    pub fn lines(&self) -> Vec<String> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.kept.clone().unwrap_or_default()
    }
}

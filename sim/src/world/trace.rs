//! What happened in a run, as a hash: two runs of a plan are the same when their hashes are.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Takes note of every step. Clones are the same trace.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    hasher: blake3::Hasher,
    steps: u64,
    line: String,
    kept: Option<Vec<String>>,
}

impl Trace {
    /// A trace that keeps its lines as well as their hash.
    pub fn keeping() -> Self {
        let inner = Inner {
            kept: Some(Vec::new()),
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

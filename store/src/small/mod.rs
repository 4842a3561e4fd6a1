//! Small mutable state that is derived from what the logs hold: losing it costs a rebuild.

/// Why small state was not read or written. What it held can be derived again.
#[derive(Debug, thiserror::Error)]
pub enum SmallError {
    /// The value is longer than is kept here. Write it to a file instead.
    #[error("a value of {actual_bytes} bytes; small state keeps at most {limit_bytes}")]
    TooLarge {
        /// The longest value that is kept.
        limit_bytes: usize,
        /// How long this one is.
        actual_bytes: usize,
    },
    /// There are as many keys as small state keeps. Remove some.
    #[error("small state holds {limit} keys already; remove some")]
    TooMany {
        /// How many keys it keeps.
        limit: usize,
    },
    /// The disk or the library failed. Reopen the store; the state is then derived again.
    #[error("small state failed: {reason}; restart the node to derive it again")]
    Failed {
        /// What was reported.
        reason: String,
    },
}

/// A key and its value.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// Small mutable state, derived from the logs and never the only copy of anything.
///
/// A write is durable once [`SmallState::flush`] returns; after a crash, unflushed writes may or
/// may not be there, and all of it may be gone.
pub trait SmallState: Send + Sync {
    /// The value of `key`.
    ///
    /// # Errors
    /// When the disk fails.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, SmallError>;

    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// When the value is too large, there are too many keys, or the disk fails.
    fn put(&self, key: &[u8], value: &[u8]) -> Result<(), SmallError>;

    /// Removes `key`, if it is there.
    ///
    /// # Errors
    /// When the disk fails.
    fn remove(&self, key: &[u8]) -> Result<(), SmallError>;

    /// The keys that begin with `prefix`, ascending, with their values.
    ///
    /// # Errors
    /// When the disk fails.
    fn scan(&self, prefix: &[u8]) -> Result<Vec<KeyValue>, SmallError>;

    /// Makes all earlier writes durable.
    ///
    /// # Errors
    /// When the disk fails.
    fn flush(&self) -> Result<(), SmallError>;
}

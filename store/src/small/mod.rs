//! Small mutable state that is derived from what the logs hold: losing it costs a rebuild.

mod memory;
mod sled;

use crate::Disk;

pub(crate) use memory::MemoryState;

/// Where small state is, below the data folder.
const FOLDER: &str = "small";
const KEY_BYTES_MAX: usize = 1 << 10;
const VALUE_BYTES_MAX: usize = 64 << 10;
const KEYS_MAX: usize = 100_000;
const LIVE_BYTES_MAX: usize = 256 << 20;

/// The small state on `disk`, or, where that cannot be opened or there is no real disk, an empty
/// one in memory.
pub(crate) fn open(disk: &dyn Disk) -> Box<dyn SmallState> {
    let Some(path) = disk.real_path(FOLDER) else {
        return Box::new(MemoryState::default());
    };
    match sled::SledState::open(&path) {
        Ok(state) => Box::new(state),
        Err(error) => {
            tracing::error!(%error, "small state cannot be opened; it is kept in memory only");
            Box::new(MemoryState::default())
        }
    }
}

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
    /// There is as much as small state keeps. Remove some, or write it to a file instead.
    #[error("small state holds {limit_bytes} bytes already; remove some")]
    TooMuch {
        /// How many bytes of keys and values it keeps.
        limit_bytes: usize,
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

/// How much is held, kept within bounds: beyond them, the library behind gets slow and large.
#[derive(Debug, Default)]
struct Quota {
    keys: usize,
    bytes: usize,
}

impl Quota {
    /// Makes room for `value` in place of one of `old_bytes`.
    fn admit(
        &mut self,
        key: &[u8],
        value: &[u8],
        old_bytes: Option<usize>,
    ) -> Result<(), SmallError> {
        let too_large = |limit_bytes, actual_bytes| {
            Err(SmallError::TooLarge {
                limit_bytes,
                actual_bytes,
            })
        };
        if value.len() > VALUE_BYTES_MAX {
            return too_large(VALUE_BYTES_MAX, value.len());
        }
        if key.len() > KEY_BYTES_MAX {
            return too_large(KEY_BYTES_MAX, key.len());
        }
        if old_bytes.is_none() && self.keys >= KEYS_MAX {
            return Err(SmallError::TooMany { limit: KEYS_MAX });
        }
        let old = old_bytes.map_or(0, |old| old + key.len());
        let bytes = self.bytes.saturating_sub(old) + key.len() + value.len();
        if bytes > LIVE_BYTES_MAX {
            return Err(SmallError::TooMuch {
                limit_bytes: LIVE_BYTES_MAX,
            });
        }
        self.bytes = bytes;
        self.keys += usize::from(old_bytes.is_none());
        Ok(())
    }

    fn release(&mut self, key: &[u8], old_bytes: usize) {
        self.keys = self.keys.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(key.len() + old_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::sled::SledState;
    use super::*;

    fn claims(state: &dyn SmallState) {
        state.put(b"cursor/a", b"1").expect("it fits");
        state.put(b"cursor/b", b"2").expect("it fits");
        state.put(b"other", b"3").expect("it fits");
        state.put(b"cursor/a", b"4").expect("it fits");
        state.remove(b"cursor/b").expect("it is there");
        state.flush().expect("the disk is sound");
        assert_eq!(
            state.get(b"cursor/a").expect("readable"),
            Some(b"4".to_vec())
        );
        assert_eq!(
            state.scan(b"cursor/").expect("readable"),
            [(b"cursor/a".to_vec(), b"4".to_vec())]
        );
        let large = vec![0; VALUE_BYTES_MAX + 1];
        assert!(matches!(
            state.put(b"large", &large),
            Err(SmallError::TooLarge { .. })
        ));
        assert_eq!(state.get(b"large").expect("readable"), None);
    }

    #[test]
    fn both_kinds_keep_what_is_put_and_refuse_what_is_too_large() {
        claims(&MemoryState::default());
        let folder = tempfile::tempdir().expect("a folder for the test");
        claims(&SledState::open(&folder.path().join("small")).expect("it opens"));
    }

    #[test]
    fn what_was_flushed_is_there_after_reopening() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("small");
        for round in 0u32..5 {
            let state = SledState::open(&path).expect("it opens");
            let before = state.get(b"round").expect("readable");
            let expected = round.checked_sub(1).map(|it| it.to_le_bytes().to_vec());
            assert_eq!(before, expected);
            state.put(b"round", &round.to_le_bytes()).expect("it fits");
            state.flush().expect("the disk is sound");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test damages a real file")]
    fn a_damaged_folder_is_set_aside_and_state_begins_empty() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("small");
        drop(SledState::open(&path).expect("it opens"));
        std::fs::write(path.join("conf"), b"no such format").expect("the file can be damaged");
        let state = SledState::open(&path).expect("it begins anew");
        assert_eq!(state.get(b"round").expect("readable"), None);
        assert!(
            folder.path().join("small.aside").is_dir(),
            "the old one is kept"
        );
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let mut quota = Quota::default();
        for number in 0..KEYS_MAX {
            quota
                .admit(&number.to_le_bytes(), b"", None)
                .expect("it fits");
        }
        assert!(matches!(
            quota.admit(b"one more", b"", None),
            Err(SmallError::TooMany { .. })
        ));
        quota
            .admit(b"an old one", b"x", Some(0))
            .expect("no new key");
    }
}

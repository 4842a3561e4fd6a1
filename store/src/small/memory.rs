//! Small state that does not outlive the process: for disks that are not real.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{KeyValue, Quota, SmallError, SmallState};

/// Small state in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryState(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    quota: Quota,
}

impl MemoryState {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SmallState for MemoryState {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, SmallError> {
        Ok(self.lock().values.get(key).cloned())
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<(), SmallError> {
        let mut inner = self.lock();
        let old_bytes = inner.values.get(key).map(Vec::len);
        inner.quota.admit(key, value, old_bytes)?;
        inner.values.insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    fn remove(&self, key: &[u8]) -> Result<(), SmallError> {
        let mut inner = self.lock();
        if let Some(old) = inner.values.remove(key) {
            inner.quota.release(key, old.len());
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<KeyValue>, SmallError> {
        let inner = self.lock();
        let from = inner.values.range(prefix.to_vec()..);
        let of_prefix = from.take_while(|(key, _)| key.starts_with(prefix));
        Ok(of_prefix
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    fn flush(&self) -> Result<(), SmallError> {
        Ok(())
    }
}

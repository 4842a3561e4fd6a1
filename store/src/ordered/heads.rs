//! Whose turn it is: a heap of one key per log.

use meridian_clock::Timestamp;

/// A log's next key. Two logs never have the same one, and within one log positions rise with
/// timestamps, so the timestamp and the log's rank say all that an order key does, in one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Head(u128);

impl Head {
    const LAST: Self = Self(u128::MAX);

    pub(super) fn new(timestamp: Timestamp, rank: usize) -> Self {
        Self((u128::from(timestamp.0) << 64) | rank as u128)
    }

    /// Above every key with this timestamp, below every later one.
    pub(super) fn after_all_at(timestamp: Timestamp) -> Self {
        Self((u128::from(timestamp.0) << 64) | u128::from(u64::MAX))
    }

    pub(super) fn timestamp(self) -> Timestamp {
        Timestamp((self.0 >> 64) as u64)
    }

    pub(super) fn rank(self) -> usize {
        // It was made from one.
        self.0 as u64 as usize
    }
}

/// A binary heap, least first. Not the standard library's, because that one does not tell its
/// second element, up to which the first log is read without asking again.
#[derive(Debug)]
pub(super) struct Heads(Vec<Head>);

impl Heads {
    pub(super) fn new(heads: impl Iterator<Item = Head>) -> Self {
        // A sorted sequence is a heap.
        let mut heads: Vec<Head> = heads.collect();
        heads.sort_unstable();
        Self(heads)
    }

    pub(super) fn first(&self) -> Option<Head> {
        self.0.first().copied()
    }

    /// The least of the others.
    pub(super) fn second(&self) -> Head {
        let at = |place: usize| self.0.get(place).copied().unwrap_or(Head::LAST);
        at(1).min(at(2))
    }

    /// Puts the first log's next key in its place; `None` when it has no more.
    pub(super) fn replace_first(&mut self, head: Option<Head>) {
        match head {
            Some(head) => self.0[0] = head,
            None => {
                self.0.swap_remove(0);
            }
        }
        let mut at = 0;
        loop {
            let left = 2 * at + 1;
            let Some(mut least) = self.0.get(left).copied() else {
                return;
            };
            let mut place = left;
            if let Some(right) = self.0.get(left + 1).filter(|right| **right < least) {
                least = *right;
                place = left + 1;
            }
            if self.0[at] <= least {
                return;
            }
            self.0.swap(at, place);
            at = place;
        }
    }
}

//! A stock that never runs below zero, by rights that regions hold: the bounded counter of Balegas et al., "Extending
//! eventually consistent cloud databases for enforcing numeric invariants" (2015).
//!
//! Each region takes only what it holds rights to, which it can tell alone: only it uses them or gives them away. So
//! however regions are cut off, the sum of what all of them take stays within what was granted.

use std::collections::BTreeMap;

use meridian_clock::RegionId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

const BYTES: usize = 64;
const ACCOUNT_BYTES: usize = 80;

/// What a region was granted, took, gave and was given. Sums of `u64`, of which there is room for 2⁶⁴.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Account {
    granted: u128,
    taken: u128,
    given: u128,
    received: u128,
}

impl Account {
    fn rights(&self) -> u128 {
        let held = self.granted.saturating_add(self.received);
        held.saturating_sub(self.taken.saturating_add(self.given))
    }
}

/// The stock and the rights to it, by region; a region keeps its rights from one generation to the next.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Stock {
    accounts: BTreeMap<RegionId, Account>,
}

impl Stock {
    pub(super) fn grant(&mut self, region: RegionId, by: u64) {
        let granted = &mut self.account(region).granted;
        *granted = granted.saturating_add(by.into());
    }

    pub(super) fn take(&mut self, region: RegionId, by: u64) {
        let taken = &mut self.account(region).taken;
        *taken = taken.saturating_add(by.into());
    }

    pub(super) fn give(&mut self, region: RegionId, by: u64, to: RegionId) {
        let given = &mut self.account(region).given;
        *given = given.saturating_add(by.into());
        let received = &mut self.account(to).received;
        *received = received.saturating_add(by.into());
    }

    /// What `region` may still take or give, as far as is known here.
    ///
    /// Of another region it may show too few or too many, as some of its operations or of those that gave it rights are
    /// still to come; never below zero.
    pub(super) fn rights(&self, region: RegionId) -> u64 {
        let rights = self.accounts.get(&region).map_or(0, Account::rights);
        u64::try_from(rights).unwrap_or(u64::MAX)
    }

    /// The rights of all regions that have any, but for `but`.
    pub(super) fn others(&self, but: RegionId) -> BTreeMap<RegionId, u64> {
        let regions = self.accounts.keys().filter(|region| **region != but);
        let rights = regions.map(|region| (*region, self.rights(*region)));
        rights.filter(|(_, rights)| *rights > 0).collect()
    }

    /// What was granted and not taken, as far as is known here; never below zero, also while the grant of what was
    /// taken is still to come.
    pub(super) fn stock(&self) -> u64 {
        let taken = self.sum(|account| account.taken);
        let stock = self.sum(|account| account.granted).saturating_sub(taken);
        u64::try_from(stock).unwrap_or(u64::MAX)
    }

    /// Whether what was ever granted stays within a `u64` with `by` more.
    pub(super) fn room_for(&self, by: u64) -> bool {
        self.granted().saturating_add(by.into()) <= u128::from(u64::MAX)
    }

    pub(super) fn granted(&self) -> u128 {
        self.sum(|account| account.granted)
    }

    pub(super) fn value(&self) -> Value {
        let rights = self.accounts.keys().map(|region| {
            let rights = self.rights(*region);
            (region.to_string(), rights.into())
        });
        let rights: Map<String, Value> = rights.collect();
        json!({"stock": self.stock(), "rights": rights})
    }

    pub(super) fn bytes(&self) -> usize {
        BYTES + self.accounts.len() * ACCOUNT_BYTES
    }

    fn account(&mut self, region: RegionId) -> &mut Account {
        self.accounts.entry(region).or_default()
    }

    fn sum(&self, part: impl Fn(&Account) -> u128) -> u128 {
        let parts = self.accounts.values().map(part);
        parts.fold(0, u128::saturating_add)
    }
}

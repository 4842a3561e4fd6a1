//! Category policies: which region orders a stream's events, or that every region may write them.

use std::collections::{BTreeMap, BTreeSet};

use meridian_clock::RegionId;
use meridian_event::StreamId;
use serde::{Deserialize, Serialize};

use crate::Kind;

/// How writes to a category's streams are settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One home region gives out revisions.
    #[default]
    Home,
    /// Every region writes; the later write wins.
    Lww,
    /// Every region writes; operations merge.
    Crdt,
}

/// Which region is home to a stream of a `home` category.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HomeRule {
    /// Spread over the members by rendezvous hashing of the stream's name.
    #[default]
    Hash,
    /// Always this region.
    Fixed(RegionId),
    /// The region where the stream's first event was written. Which that is, is no part of the policies: it has
    /// to be looked up.
    Creator,
}

/// What the home of a category's streams does while it cannot reach the other regions.
///
/// Nodes only need it; clients compute homes without it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// It goes on taking writes. They strand if the others go on without it.
    #[default]
    Available,
    /// It refuses writes, and reads at home: whatever it acknowledged is held by a majority.
    Fenced,
}

/// The policy of one category.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CategoryPolicy {
    /// How writes are settled.
    pub mode: Mode,
    /// Who is home, in mode [`Mode::Home`].
    pub home: HomeRule,
}

/// Where an append to a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To this region, which orders the stream.
    Home(RegionId),
    /// To whichever region it reached.
    Anywhere,
    /// To the home of whoever created the stream, which any region can tell; a new one to the region that is to
    /// be its home.
    Creator,
}

/// Why policies cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A rule names a region that is no member.
    #[error(
        "category {category:?} is homed in region {region}, which is not a member; name a member"
    )]
    UnknownRegion {
        /// The category whose rule it is.
        category: String,
        /// The region it names.
        region: RegionId,
    },
    /// There is nowhere to route to.
    #[error("a federation needs at least one member region")]
    NoMembers,
}

/// All policies of a federation and the members they speak of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    members: Vec<RegionId>,
    categories: BTreeMap<String, CategoryPolicy>,
    isolations: BTreeMap<String, Isolation>,
    kinds: BTreeMap<String, Kind>,
}

impl Policies {
    /// Policies over `members`, in any order; a category that is not named is `home` by `hash`.
    ///
    /// # Errors
    /// When there are no members, or a rule names a region that is none.
    pub fn new(
        mut members: Vec<RegionId>,
        categories: BTreeMap<String, CategoryPolicy>,
    ) -> Result<Self, PolicyError> {
        members.sort_unstable();
        members.dedup();
        if members.is_empty() {
            return Err(PolicyError::NoMembers);
        }
        for (category, policy) in &categories {
            if let HomeRule::Fixed(region) = policy.home
                && !members.contains(&region)
            {
                return Err(PolicyError::UnknownRegion {
                    category: category.clone(),
                    region,
                });
            }
        }
        Ok(Self {
            members,
            categories,
            isolations: BTreeMap::new(),
            kinds: BTreeMap::new(),
        })
    }

    /// The same policies, with what homes do that are cut off; a category that is not named is available.
    #[must_use]
    pub fn with_isolations(mut self, isolations: BTreeMap<String, Isolation>) -> Self {
        self.isolations = isolations;
        self
    }

    /// The same policies, with what streams that every region may write are; those of a category that is not named
    /// are kept as they come, unmerged.
    #[must_use]
    pub fn with_kinds(mut self, kinds: BTreeMap<String, Kind>) -> Self {
        self.kinds = kinds;
        self
    }

    /// What the streams of `category` are, if every region may write them and they are merged.
    pub fn kind(&self, category: &str) -> Option<Kind> {
        match self.of(category).mode {
            Mode::Home => None,
            Mode::Lww | Mode::Crdt => self.kinds.get(category).copied(),
        }
    }

    /// What the streams of categories are that are merged, in no particular order.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        self.kinds.values().copied()
    }

    /// The same policies, but for this one of `category`.
    #[must_use]
    pub fn with(
        mut self,
        category: &str,
        policy: CategoryPolicy,
        isolation: Isolation,
        kind: Option<Kind>,
    ) -> Self {
        self.categories.insert(category.to_owned(), policy);
        self.isolations.insert(category.to_owned(), isolation);
        match kind {
            Some(kind) => self.kinds.insert(category.to_owned(), kind),
            None => self.kinds.remove(category),
        };
        self
    }

    /// The policies that are set, by category.
    pub fn categories(&self) -> &BTreeMap<String, CategoryPolicy> {
        &self.categories
    }

    /// What the homes of `category`'s streams do while they are cut off. Where every region may write there is
    /// no home to fence.
    pub fn isolation(&self, category: &str) -> Isolation {
        match self.of(category).mode {
            Mode::Home => self.isolations.get(category).copied().unwrap_or_default(),
            Mode::Lww | Mode::Crdt => Isolation::Available,
        }
    }

    /// The strictest isolation of any category.
    pub fn strictest_isolation(&self) -> Isolation {
        let is_fenced = |category: &String| self.isolation(category) == Isolation::Fenced;
        match self.isolations.keys().any(is_fenced) {
            true => Isolation::Fenced,
            false => Isolation::Available,
        }
    }

    /// The same policies over other members.
    ///
    /// # Errors
    /// As [`Policies::new`].
    pub fn over(&self, members: Vec<RegionId>) -> Result<Self, PolicyError> {
        let over = Self::new(members, self.categories.clone())?;
        let over = over.with_isolations(self.isolations.clone());
        Ok(over.with_kinds(self.kinds.clone()))
    }

    /// The policy of `category`.
    pub fn of(&self, category: &str) -> CategoryPolicy {
        self.categories.get(category).cloned().unwrap_or_default()
    }

    /// Where appends to `stream` go.
    pub fn route(&self, stream: &StreamId) -> Route {
        let policy = self.of(stream.category());
        match (policy.mode, policy.home) {
            (Mode::Home, HomeRule::Creator) => Route::Creator,
            _ => self.route_without(stream, &BTreeSet::new()),
        }
    }

    /// Where appends to `stream` go while the regions `drained` are home to nothing, as far as that can be told
    /// without knowing who created it; see [`Policies::home_by`].
    pub fn route_without(&self, stream: &StreamId, drained: &BTreeSet<RegionId>) -> Route {
        let policy = self.of(stream.category());
        match policy.mode {
            Mode::Lww | Mode::Crdt => Route::Anywhere,
            Mode::Home => Route::Home(self.home_by(&policy.home, stream, drained)),
        }
    }

    /// The home of `stream` by `rule`, while the regions `drained` are home to nothing. A stream that is fixed in
    /// one of those goes where hashing puts it, and so does one whose creator the rule leaves open: where that is
    /// known, it is [`HomeRule::Fixed`].
    pub fn home_by(
        &self,
        rule: &HomeRule,
        stream: &StreamId,
        drained: &BTreeSet<RegionId>,
    ) -> RegionId {
        match rule {
            HomeRule::Fixed(region) if !drained.contains(region) => *region,
            HomeRule::Fixed(_) | HomeRule::Hash | HomeRule::Creator => {
                rendezvous(stream, &self.members, drained)
            }
        }
    }
}

/// The member, but for those `drained`, with the highest weight for `stream`: highest-random-weight hashing (Thaler and
/// Ravishankar, 1998), so that a member that comes or goes moves only its own share of streams.
///
/// Were all of them drained, none would count as such.
///
/// # Panics
/// When `members` is empty, which [`Policies::new`] rules out.
fn rendezvous(stream: &StreamId, members: &[RegionId], drained: &BTreeSet<RegionId>) -> RegionId {
    let weight = |region: RegionId| {
        // The seed is the region, so that each region ranks every stream on its own.
        let seed = u64::from(region.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (
            xxhash_rust::xxh3::xxh3_64_with_seed(stream.as_str().as_bytes(), seed),
            region,
        )
    };
    let all = || members.iter().copied();
    all()
        .filter(|region| !drained.contains(region))
        .max_by_key(|region| weight(*region))
        .or_else(|| all().max_by_key(|region| weight(*region)))
        .expect("members is not empty")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: RegionId = RegionId(0);
    const B: RegionId = RegionId(1);
    const C: RegionId = RegionId(2);

    fn stream(name: &str) -> StreamId {
        StreamId::new(name).expect("a sound name")
    }

    fn policies(members: &[RegionId]) -> Policies {
        let categories = BTreeMap::from([
            (
                "cart".to_owned(),
                CategoryPolicy {
                    mode: Mode::Crdt,
                    home: HomeRule::Hash,
                },
            ),
            (
                "ledger".to_owned(),
                CategoryPolicy {
                    mode: Mode::Home,
                    home: HomeRule::Fixed(A),
                },
            ),
        ]);
        Policies::new(members.to_vec(), categories).expect("all rules name members")
    }

    #[test]
    fn each_mode_and_rule_routes_its_own_way() {
        let policies = policies(&[A, B, C]);
        assert_eq!(policies.route(&stream("cart-1")), Route::Anywhere);
        assert_eq!(policies.route(&stream("ledger-1")), Route::Home(A));
        assert!(matches!(policies.route(&stream("order-1")), Route::Home(_)));
    }

    #[test]
    fn who_created_a_stream_is_no_part_of_the_policies() {
        let created = CategoryPolicy {
            mode: Mode::Home,
            home: HomeRule::Creator,
        };
        let policies = policies(&[A, B, C]).with("visit", created, Isolation::Available, None);
        let (name, none) = (stream("visit-1"), BTreeSet::new());
        assert_eq!(policies.route(&name), Route::Creator);
        assert_eq!(policies.home_by(&HomeRule::Fixed(B), &name, &none), B);
        let hashed = policies.home_by(&HomeRule::Hash, &name, &none);
        assert_eq!(policies.home_by(&HomeRule::Creator, &name, &none), hashed);
    }

    #[test]
    fn only_what_has_a_home_is_fenced() {
        let isolations = ["ledger", "cart"].map(|name| (name.to_owned(), Isolation::Fenced));
        let plain = policies(&[A, B, C]);
        assert_eq!(plain.strictest_isolation(), Isolation::Available);
        let fenced = plain.with_isolations(isolations.into());
        assert_eq!(fenced.isolation("ledger"), Isolation::Fenced);
        assert_eq!(fenced.isolation("cart"), Isolation::Available);
        assert_eq!(fenced.isolation("order"), Isolation::Available);
        assert_eq!(fenced.strictest_isolation(), Isolation::Fenced);
    }

    #[test]
    fn a_rule_for_a_stranger_is_refused() {
        let categories = BTreeMap::from([(
            "ledger".to_owned(),
            CategoryPolicy {
                mode: Mode::Home,
                home: HomeRule::Fixed(RegionId(9)),
            },
        )]);
        let outcome = Policies::new(vec![A, B], categories);
        assert!(matches!(outcome, Err(PolicyError::UnknownRegion { .. })));
    }

    #[test]
    fn hashing_spreads_streams_evenly() {
        let policies = policies(&[A, B, C]);
        let mut homes = BTreeMap::new();
        for number in 0..3000 {
            let route = policies.route(&stream(&format!("order-{number}")));
            let Route::Home(home) = route else {
                panic!("orders have a home, not {route:?}")
            };
            *homes.entry(home).or_insert(0) += 1;
        }
        assert!(
            homes.values().all(|share| (900..1100).contains(share)),
            "{homes:?}"
        );
    }

    #[test]
    fn a_drained_region_is_home_to_nothing_and_nothing_else_moves() {
        let policies = policies(&[A, B, C]);
        let drained = BTreeSet::from([A]);
        for number in 0..300 {
            for category in ["order", "ledger", "cart"] {
                let name = stream(&format!("{category}-{number}"));
                let without = policies.route_without(&name, &drained);
                assert_ne!(without, Route::Home(A));
                if policies.route(&name) != Route::Home(A) {
                    assert_eq!(without, policies.route(&name));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_member_that_leaves_moves_only_its_own_streams(name in "[a-z]{1,12}-[0-9]{1,6}") {
            let all = policies(&[A, B, C]);
            let fewer = policies(&[C, A]);
            let name = stream(&name);
            if all.route(&name) != Route::Home(B) {
                prop_assert_eq!(all.route(&name), fewer.route(&name));
            }
        }
    }
}

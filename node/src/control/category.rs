//! The part of the federation's decisions that sets the policies of categories while nodes run.
//!
//! A policy says who may write a stream, so no two regions may go by different ones. It is set in two
//! steps: from the first on no region takes writes to the category's streams; each that does says whether
//! it holds any. Once all members have said that they hold none, the policy counts.
//!
//! Always true (`one-home`): between a region that goes by the old policy and one that goes by the new one
//! lies a time in which every region goes by none.

use std::collections::{BTreeMap, BTreeSet};

use meridian_clock::RegionId;
use meridian_conflict::{CategoryPolicy, HomeRule, Isolation, Kind, Policies};
use serde::{Deserialize, Serialize};

use super::command::{Outcome, Refusal};
use super::federation::Federation;

/// What is set for one category; a category without is `home` by `hash`, and available.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Set {
    /// How writes are settled, and who is home.
    pub(crate) policy: CategoryPolicy,
    /// What a home does that is cut off.
    pub(crate) isolation: Isolation,
    /// What streams are that every region may write.
    pub(crate) kind: Option<Kind>,
}

impl Set {
    /// What counts for `category`.
    pub(crate) fn of(policies: &Policies, category: &str) -> Self {
        Self {
            policy: policies.of(category),
            isolation: policies.isolation(category),
            kind: policies.kind(category),
        }
    }

    /// Whether it may take the place of `before` where there are events: what they come to and where their streams
    /// are at home is as it was. What a home does that is cut off is no matter of events.
    pub(crate) fn suits_events_of(&self, before: &Self) -> bool {
        self.policy == before.policy && self.kind == before.kind
    }
}

/// What a region is asked about a category that is being set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// By which change.
    pub(crate) change: u64,
    /// Whether it need not look for events: they suit the new policy.
    pub(crate) may_hold_events: bool,
}

/// A policy that does not count yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    /// By which change it was asked for.
    pub(crate) change: u64,
    /// What.
    pub(crate) set: Set,
    /// The regions that take no writes to the category, and hold no event of it that does not suit.
    pub(crate) ready: BTreeSet<RegionId>,
}

/// How one category stands whose policy was ever set while nodes ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setting {
    /// What counts; `None` while that is what the federation began with.
    pub(crate) counts: Option<Set>,
    /// What is to count.
    pub(crate) pending: Option<Pending>,
    /// The last change that was given up, and a region that held events.
    pub(crate) given_up: Option<(u64, RegionId)>,
}

impl Federation {
    /// The policies that count: `began_with`, and over it whatever was set since.
    pub(crate) fn over(&self, began_with: &Policies) -> Policies {
        let mut policies = began_with.clone();
        for (category, setting) in &self.categories {
            if let Some(set) = &setting.counts {
                policies = policies.with(category, set.policy.clone(), set.isolation, set.kind);
            }
        }
        policies
    }

    /// Whether nobody may write streams of `category` for now.
    pub(crate) fn is_being_set(&self, category: &str) -> bool {
        let setting = self.categories.get(category);
        setting.is_some_and(|it| it.pending.is_some())
    }

    /// The categories about which `region` has not answered yet.
    pub(crate) fn asks_about(&self, region: RegionId) -> BTreeMap<String, Asked> {
        let Ok((_, policies)) = self.policies() else {
            return BTreeMap::new();
        };
        if !self.members().contains(&region) {
            return BTreeMap::new();
        }
        let all = self.categories.iter();
        let asked = all.filter_map(|(category, setting)| {
            let pending = setting.pending.as_ref()?;
            let asked = Asked {
                change: pending.change,
                may_hold_events: pending.set.suits_events_of(&Set::of(&policies, category)),
            };
            (!pending.ready.contains(&region)).then(|| (category.clone(), asked))
        });
        asked.collect()
    }

    pub(super) fn set_category(&mut self, category: &str, set: &Set) -> Result<Outcome, Refusal> {
        let (foundation, policies) = self.policies()?;
        if let HomeRule::Fixed(region) = set.policy.home {
            self.member(region)?;
            if self.out.contains_key(&region) {
                return Err(Refusal::Fenced { region });
            }
        }
        let now = Set::of(&policies, category);
        // The foundation does not say how a category that it names is isolated, or what its streams are.
        let mut is_known = !foundation.categories.contains_key(category);
        if let Some(setting) = self.categories.get(category) {
            is_known |= setting.counts.is_some();
            match &setting.pending {
                Some(pending) if pending.set == *set => {
                    return Ok(Outcome::Changed(pending.change));
                }
                Some(_) => {
                    let category = category.to_owned();
                    return Err(Refusal::BeingSet { category });
                }
                None => {}
            }
        }
        if is_known && now == *set {
            return Ok(Outcome::Unchanged);
        }
        let setting = self.categories.entry(category.to_owned()).or_default();
        setting.pending = Some(Pending {
            change: self.version + 1,
            set: set.clone(),
            ready: BTreeSet::new(),
        });
        Ok(self.changed())
    }

    pub(super) fn answer_about(
        &mut self,
        category: &str,
        change: u64,
        by: RegionId,
        is_free: bool,
    ) -> Outcome {
        let Some(setting) = self.categories.get_mut(category) else {
            return Outcome::Unchanged;
        };
        let Some(pending) = setting.pending.as_mut().filter(|it| it.change == change) else {
            return Outcome::Unchanged;
        };
        if !is_free {
            setting.pending = None;
            setting.given_up = Some((change, by));
            return self.changed();
        }
        match pending.ready.insert(by) {
            true => self.changed(),
            false => Outcome::Unchanged,
        }
    }

    /// Lets those policies count that all members wait for. To be called after each change: a region that is
    /// put out is not waited for.
    pub(super) fn settle_categories(&mut self) {
        let members = self.members();
        for setting in self.categories.values_mut() {
            if let Some(pending) = setting.pending.take_if(|it| it.ready.is_superset(&members)) {
                setting.counts = Some(pending.set);
                self.categories_settled = self.version;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use meridian_conflict::Mode;
    use meridian_event::StreamId;

    use super::super::command::{Command, Foundation};
    use super::*;

    const A: RegionId = RegionId(0);
    const B: RegionId = RegionId(1);
    const C: RegionId = RegionId(2);

    fn founded() -> Federation {
        let mut federation = Federation::default();
        federation.apply(&Command::Found(Foundation {
            members: [A, B, C].map(|it| (it, format!("region-{it}"))).into(),
            partitions: 2,
            categories: BTreeMap::new(),
        }));
        federation
    }

    fn shared() -> Set {
        Set {
            policy: CategoryPolicy {
                mode: Mode::Lww,
                home: HomeRule::Hash,
            },
            isolation: Isolation::Available,
            kind: Some(Kind::Fields),
        }
    }

    fn set(federation: &mut Federation, set: Set) -> Outcome {
        federation.apply(&Command::SetCategory {
            category: "cart".to_owned(),
            set,
        })
    }

    fn answer(federation: &mut Federation, change: u64, by: RegionId, is_free: bool) -> Outcome {
        federation.apply(&Command::AboutCategory {
            category: "cart".to_owned(),
            change,
            by,
            is_free,
        })
    }

    fn has_home(federation: &Federation) -> bool {
        let (_, policies) = federation.policies().expect("it is founded");
        let stream = StreamId::new("cart-1").expect("a sound name");
        federation.seat(&policies, &stream).is_some()
    }

    #[test]
    fn a_policy_counts_once_all_members_wait_for_it() {
        let mut federation = founded();
        let Outcome::Changed(change) = set(&mut federation, shared()) else {
            panic!("it can be set")
        };
        assert_eq!(set(&mut federation, shared()), Outcome::Changed(change));
        for by in [A, B] {
            answer(&mut federation, change, by, true);
        }
        assert!(has_home(&federation) && federation.is_being_set("cart"));
        assert_eq!(federation.asks_about(C).len(), 1);
        answer(&mut federation, change, C, true);
        assert!(!has_home(&federation) && !federation.is_being_set("cart"));
        assert_eq!(set(&mut federation, shared()), Outcome::Unchanged);
    }

    #[test]
    fn one_region_that_holds_events_is_enough_to_give_it_up() {
        let mut federation = founded();
        let Outcome::Changed(change) = set(&mut federation, shared()) else {
            panic!("it can be set")
        };
        answer(&mut federation, change, A, true);
        answer(&mut federation, change, B, false);
        assert_eq!(answer(&mut federation, change, C, true), Outcome::Unchanged);
        assert!(has_home(&federation) && !federation.is_being_set("cart"));
        let given_up = federation.categories["cart"].given_up;
        assert_eq!(given_up, Some((change, B)));
    }

    #[test]
    fn a_region_that_is_put_out_is_not_waited_for() {
        let mut federation = founded();
        let Outcome::Changed(change) = set(&mut federation, shared()) else {
            panic!("it can be set")
        };
        for by in [A, B] {
            answer(&mut federation, change, by, true);
        }
        federation.apply(&Command::Fence {
            region: C,
            force: false,
        });
        assert!(!has_home(&federation));
    }

    #[test]
    fn events_are_looked_for_unless_they_suit_the_new_policy() {
        let may_hold = |federation: &Federation| {
            let asked = federation.asks_about(A);
            asked["cart"].may_hold_events
        };
        let mut federation = founded();
        let fenced = Set {
            isolation: Isolation::Fenced,
            ..Set::default()
        };
        let Outcome::Changed(change) = set(&mut federation, fenced.clone()) else {
            panic!("it can be set")
        };
        assert!(may_hold(&federation), "only the isolation is another");
        for by in [A, B, C] {
            answer(&mut federation, change, by, true);
        }
        let fixed = CategoryPolicy {
            mode: Mode::Home,
            home: HomeRule::Fixed(B),
        };
        for other in [
            shared(),
            Set {
                policy: fixed,
                ..fenced
            },
        ] {
            let Outcome::Changed(change) = set(&mut federation, other) else {
                panic!("it can be set")
            };
            assert!(!may_hold(&federation));
            answer(&mut federation, change, A, false);
        }
    }

    #[test]
    fn a_home_in_a_region_that_is_none_is_refused() {
        let mut federation = founded();
        let before = federation.clone();
        let mut stranger = Set::default();
        stranger.policy.home = HomeRule::Fixed(RegionId(9));
        let outcome = set(&mut federation, stranger);
        assert!(matches!(
            outcome,
            Outcome::Refused(Refusal::UnknownRegion { .. })
        ));
        assert_eq!(federation, before);
    }

    #[test]
    fn while_one_is_being_set_another_is_refused() {
        let mut federation = founded();
        set(&mut federation, shared());
        let outcome = set(&mut federation, Set::default());
        assert!(matches!(
            outcome,
            Outcome::Refused(Refusal::BeingSet { .. })
        ));
    }
}

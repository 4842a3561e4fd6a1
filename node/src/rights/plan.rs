//! Whom to ask for rights, and for how many.

use std::collections::{BTreeMap, BTreeSet};

use meridian_clock::RegionId;

/// What a region knows of a stock of which it lacks rights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shortfall {
    /// How many it holds.
    pub(crate) here: u64,
    /// How many more it needs.
    pub(crate) missing: u64,
    /// How many each other region holds, as far as is known here.
    pub(crate) others: BTreeMap<RegionId, u64>,
    /// What was granted and not taken, as far as is known here.
    pub(crate) stock: u64,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask this region to give so many.
    Ask { region: RegionId, by: u64 },
    /// There is more than is known who holds it: what says so is on its way.
    Wait,
    /// There are not enough.
    Refuse,
}

/// What became of those who were asked for one stock.
#[derive(Debug, Default)]
pub(super) struct Plan {
    // They hold fewer than was thought, and are asked for no more than is needed.
    overestimated: BTreeSet<RegionId>,
    // They are not asked any more.
    left_out: BTreeSet<RegionId>,
}

impl Plan {
    /// What to do about `short`, in a federation of so many regions that take from stocks.
    ///
    /// Whoever holds most is asked first, and for a fair share of all there is, so that not every take asks.
    pub(super) fn next(&self, short: &Shortfall, members: usize) -> Step {
        let others = || {
            let others = short.others.iter();
            others.filter(|(region, _)| !self.left_out.contains(region))
        };
        let elsewhere = others().fold(0_u64, |sum, (_, rights)| sum.saturating_add(*rights));
        if elsewhere < short.missing {
            let unaccounted = short.stock.saturating_sub(short.here) >= short.missing;
            return match unaccounted && self.left_out.is_empty() {
                true => Step::Wait,
                false => Step::Refuse,
            };
        }
        // Of those that hold as much the first.
        let richest = others().rev().max_by_key(|(_, rights)| **rights);
        let Some((region, rights)) = richest else {
            return Step::Refuse;
        };
        let all = elsewhere.saturating_add(short.here);
        let fair = all / u64::try_from(members.max(1)).unwrap_or(u64::MAX);
        let wanted = match self.overestimated.contains(region) {
            true => short.missing,
            false => short.missing.max(fair.saturating_sub(short.here)),
        };
        Step::Ask {
            region: *region,
            by: wanted.min(*rights),
        }
    }

    /// `region` holds fewer than it was asked for.
    pub(super) fn handle_refusal(&mut self, region: RegionId) {
        if !self.overestimated.insert(region) {
            self.left_out.insert(region);
        }
    }

    /// `region` cannot be asked.
    pub(super) fn handle_silence(&mut self, region: RegionId) {
        self.left_out.insert(region);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: RegionId = RegionId(0);
    const B: RegionId = RegionId(1);

    fn short(here: u64, missing: u64, others: &[(RegionId, u64)]) -> Shortfall {
        let elsewhere: u64 = others.iter().map(|(_, rights)| rights).sum();
        Shortfall {
            here,
            missing,
            others: others.iter().copied().collect(),
            stock: here + elsewhere,
        }
    }

    #[test]
    fn whoever_holds_most_is_asked_for_a_fair_share() {
        let plan = Plan::default();
        let ask = |region, by| Step::Ask { region, by };
        assert_eq!(plan.next(&short(0, 1, &[(A, 90)]), 3), ask(A, 30));
        assert_eq!(plan.next(&short(0, 50, &[(A, 90)]), 3), ask(A, 50));
        assert_eq!(plan.next(&short(2, 1, &[(A, 3), (B, 4)]), 3), ask(B, 1));
        // No one of them has enough.
        assert_eq!(plan.next(&short(0, 6, &[(A, 3), (B, 4)]), 3), ask(B, 4));
        assert_eq!(plan.next(&short(0, 8, &[(A, 3), (B, 4)]), 3), Step::Refuse);
        assert_eq!(plan.next(&short(0, 1, &[(A, 5), (B, 5)]), 3), ask(A, 3));
    }

    #[test]
    fn who_has_less_than_was_thought_is_asked_for_what_is_needed_and_then_left_out() {
        let mut plan = Plan::default();
        let known = short(0, 1, &[(A, 90), (B, 2)]);
        plan.handle_refusal(A);
        assert_eq!(plan.next(&known, 3), Step::Ask { region: A, by: 1 });
        plan.handle_refusal(A);
        assert_eq!(plan.next(&known, 3), Step::Ask { region: B, by: 1 });
        plan.handle_silence(B);
        assert_eq!(plan.next(&known, 3), Step::Refuse);
    }

    #[test]
    fn what_is_known_to_be_there_is_waited_for() {
        let unaccounted = Shortfall {
            stock: 5,
            ..short(0, 3, &[(A, 1)])
        };
        assert_eq!(Plan::default().next(&unaccounted, 3), Step::Wait);
        let gone = Shortfall {
            stock: 2,
            ..unaccounted
        };
        assert_eq!(Plan::default().next(&gone, 3), Step::Refuse);
    }

    proptest! {
        /// Nobody is asked for more than it holds, nor for nothing; and with all that is given there is enough.
        #[test]
        fn asking_ends(
            here in 0_u64..20,
            missing in 1_u64..60,
            rights in prop::collection::vec(0_u64..30, 0..5),
        ) {
            let others: Vec<_> = (1..).map(RegionId).zip(rights).collect();
            let mut known = short(here, missing, &others);
            let plan = Plan::default();
            let enough = others.iter().map(|(_, rights)| rights).sum::<u64>() >= missing;
            for _ in 0..=others.len() {
                match plan.next(&known, 3) {
                    Step::Ask { region, by } => {
                        let held = known.others.get_mut(&region).unwrap();
                        prop_assert!(by > 0 && by <= *held);
                        *held -= by;
                        known.here += by;
                        known.missing = known.missing.saturating_sub(by);
                        if known.missing == 0 {
                            break;
                        }
                    }
                    Step::Refuse => {
                        prop_assert!(!enough);
                        return Ok(());
                    }
                    Step::Wait => prop_assert!(false, "all is accounted for"),
                }
            }
            prop_assert_eq!(known.missing, 0);
        }
    }
}

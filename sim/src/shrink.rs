//! The smallest plan that still shows a failure.
//!
//! Delta debugging over the plan: leave something out or make it smaller, run, and keep the change if
//! the same invariant is broken. What is left says what the failure needs.

use meridian_conflict::Kind;

use crate::plan::Plan;
use crate::world::story::regions;

/// A smaller plan, and what was made smaller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// For people.
    pub what: String,
    /// The plan with that change.
    pub plan: Plan,
}

/// Shrinks `plan` while `red` says that it still shows the failure, asking at most `runs` times.
/// `accepted` is told of each step that is kept.
pub fn shrink(
    plan: &Plan,
    runs: u64,
    mut red: impl FnMut(&Plan) -> bool,
    mut accepted: impl FnMut(&Step),
) -> Plan {
    let mut smallest = plan.clone();
    let mut left = runs;
    loop {
        let mut shrunk = false;
        // Large steps come first, and every accepted step changes what can come next.
        let mut at = 0;
        while let Some(step) = smaller(&smallest).into_iter().nth(at) {
            if left == 0 {
                return smallest;
            }
            left -= 1;
            if red(&step.plan) {
                accepted(&step);
                smallest = step.plan;
                shrunk = true;
            } else {
                at += 1;
            }
        }
        if !shrunk {
            return smallest;
        }
    }
}

/// Every way to make `plan` a little smaller, the largest step first. None is the plan itself.
pub fn smaller(plan: &Plan) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut add = |what: String, change: &dyn Fn(&mut Plan)| {
        let mut changed = plan.clone();
        change(&mut changed);
        if changed != *plan {
            steps.push(Step {
                what,
                plan: changed,
            });
        }
    };
    // Halves of the faults, quarters, and so on down to single ones.
    let count = plan.faults.len();
    let mut size = count;
    while size > 0 {
        for from in (0..count).step_by(size) {
            let to = (from + size).min(count);
            add(format!("without faults {from}..{to}"), &|plan| {
                plan.faults.drain(from..to);
            });
        }
        size /= 2;
    }
    let calm = Plan::calm(plan.seed);
    add("an end after the last fault".to_owned(), &|plan| {
        let last = plan.faults.last().map_or(0, |fault| fault.at_ms);
        plan.chaos_ms = plan.chaos_ms.min(last + 3_000);
    });
    add("half the time".to_owned(), &|plan| {
        plan.chaos_ms = (plan.chaos_ms / 2).max(1_000);
    });
    if plan.regions.len() > 2
        && plan
            .faults
            .iter()
            .all(|it| !regions(&it.kind).contains(&(plan.regions.len() - 1)))
    {
        add("one region less".to_owned(), &|plan| {
            plan.regions.pop();
            let left = plan.regions.len();
            plan.links.retain(|link| link.a < left && link.b < left);
        });
    }
    add("one partition".to_owned(), &|plan| plan.partitions = 1);
    add("a good network".to_owned(), &|plan| {
        for link in &mut plan.links {
            (link.loss_ppm, link.duplicate_ppm, link.reorder_ppm) = (0, 0, 0);
        }
    });
    for index in 0..plan.links.len() {
        add(format!("no loss on link {index}"), &|plan| {
            plan.links[index].loss_ppm = 0;
        });
        add(format!("nothing twice on link {index}"), &|plan| {
            plan.links[index].duplicate_ppm = 0;
        });
        add(format!("nothing overtaken on link {index}"), &|plan| {
            plan.links[index].reorder_ppm = 0;
        });
    }
    add("sound clocks".to_owned(), &|plan| {
        for region in &mut plan.regions {
            (region.skew_ms, region.drift_ppm, region.pace_ppm) = (0, 0, 0);
        }
    });
    add("calm disks".to_owned(), &|plan| {
        for region in &mut plan.regions {
            region.commit_us = calm.regions[0].commit_us;
        }
    });
    add("half the writers".to_owned(), &|plan| {
        plan.load.writers = (plan.load.writers / 2).max(1);
    });
    add("twice the pause".to_owned(), &|plan| {
        plan.load.pause_ms = (plan.load.pause_ms * 2).clamp(1, 1_000);
    });
    add("single events".to_owned(), &|plan| plan.load.batch_max = 1);
    add("small events".to_owned(), &|plan| {
        plan.load.event_bytes_max = plan.load.event_bytes_max.min(20);
    });
    add("half the streams".to_owned(), &|plan| {
        plan.load.streams = (plan.load.streams / 2).max(1);
    });
    add("one shared stream".to_owned(), &|plan| {
        plan.load.shared_streams = plan.load.shared_streams.min(1);
    });
    add("no shared streams".to_owned(), &|plan| {
        plan.load.shared_percent = 0;
    });
    add("nothing merged".to_owned(), &|plan| {
        plan.load.merged_percent = 0;
    });
    add("one merged stream of a kind".to_owned(), &|plan| {
        plan.load.merged_streams = plan.load.merged_streams.min(1);
    });
    if plan.load.merged_percent > 0 && plan.load.merged_kinds.len() != 1 {
        for kind in Kind::ALL {
            add(format!("only {kind} merged"), &|plan| {
                plan.load.merged_kinds = vec![kind];
            });
        }
    }
    add("no expectations".to_owned(), &|plan| {
        plan.load.conditional_percent = 0;
    });
    add("level region only".to_owned(), &|plan| {
        (plan.load.regions_percent, plan.load.all_percent) = (0, 0);
    });
    add("nothing repeated".to_owned(), &|plan| {
        plan.load.repeat_percent = 0;
    });
    steps
}

/// The name of an invariant in what a report says is broken.
pub fn invariant(broken: &str) -> &str {
    broken.split(':').next().unwrap_or(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn() -> Plan {
        (0..)
            .map(Plan::draw)
            .find(|plan| plan.faults.len() > 4)
            .expect("some seed has many faults")
    }

    #[test]
    fn only_the_fault_that_matters_is_left() {
        let plan = drawn();
        let culprit = plan.faults[2].clone();
        let mut steps = 0;
        let smallest = shrink(
            &plan,
            1_000,
            |plan| plan.faults.contains(&culprit),
            |_| steps += 1,
        );
        assert_eq!(smallest.faults, [culprit]);
        assert_eq!((smallest.load.writers, smallest.load.batch_max), (1, 1));
        assert!(
            steps > 0
                && smaller(&smallest)
                    .iter()
                    .all(|it| it.plan.faults.is_empty())
        );
    }

    #[test]
    fn what_never_fails_stays_as_it_is_and_costs_a_bounded_number_of_runs() {
        let plan = drawn();
        let mut asked = 0;
        let same = shrink(
            &plan,
            7,
            |_| {
                asked += 1;
                false
            },
            |_| {},
        );
        assert_eq!((same, asked), (plan, 7));
    }
}

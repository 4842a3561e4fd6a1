//! What the simulator itself promises, and what nodes promise in it.

use meridian_sim::hunt::run_alone;
use meridian_sim::plan::Plan;
use meridian_sim::world::trace::Keep;
use meridian_sim::{kept, scenarios};

// Only with this flag does turmoil seed tokio's own choices; see `.cargo/config.toml` beside us.
#[cfg(tokio_unstable)]
#[test]
fn the_same_plan_runs_the_same_way_twice() {
    for seed in 0..2 {
        let plan = Plan::draw(seed);
        let (first, second) = (
            run_alone(
                &plan,
                Keep {
                    lines: true,
                    story: true,
                },
            ),
            run_alone(
                &plan,
                Keep {
                    lines: true,
                    story: true,
                },
            ),
        );
        let differ = first.lines.iter().zip(&second.lines).find(|(a, b)| a != b);
        assert_eq!(differ, None, "the first step at which seed {seed} differs");
        assert_eq!(first.report.trace, second.report.trace, "seed {seed}");
    }
}

#[test]
fn a_plan_survives_being_written_down() {
    for seed in 0..200 {
        let plan = Plan::draw(seed);
        let text = toml::to_string(&plan).expect("a plan can be written");
        let read: Plan = toml::from_str(&text).expect("and read");
        assert_eq!(read, plan);
    }
}

#[test]
fn scenarios_break_nothing() {
    for (name, plan) in scenarios::all() {
        let report = run_alone(&plan, Keep::default()).report;
        assert!(report.broken.is_empty(), "{name}: {:?}", report.broken);
        assert!(report.events > 50, "{name} wrote {} events", report.events);
    }
}

/// They are run by `meridian-sim replay`, which is built to be quick.
#[test]
fn every_kept_plan_can_be_read() {
    let plans = kept::all().expect("every kept plan can be read");
    assert!(!plans.is_empty());
}

#[test]
fn a_few_seeds_break_nothing() {
    for seed in 10..12 {
        let report = run_alone(&Plan::draw(seed), Keep::default()).report;
        assert!(report.broken.is_empty(), "seed {seed}: {:?}", report.broken);
    }
}

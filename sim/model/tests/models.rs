//! The models in small, so that an ordinary test run has them too; CI walks through all of their states.

use meridian_model::cases::{self, Expected, Size};

#[test]
fn the_right_rules_hold_in_small() {
    for case in cases::all(Size::Small)
        .iter()
        .filter(|case| case.expected == Expected::Holds)
    {
        let outcome = case.walk(1);
        assert!(
            case.is_met_by(&outcome),
            "{} {}: {outcome:#?}",
            case.model,
            case.rules
        );
    }
}

#[test]
fn every_known_wrong_rule_is_found_wrong() {
    for case in cases::all(Size::Small)
        .iter()
        .filter(|case| case.expected != Expected::Holds)
    {
        let outcome = case.walk(1);
        assert!(
            case.is_met_by(&outcome),
            "{} {} is not found: {outcome:#?}",
            case.model,
            case.rules
        );
    }
}

#[test]
fn a_story_is_a_shortest_one_and_the_same_each_time() {
    let told = || {
        let cases = cases::all(Size::Small);
        let case = cases
            .iter()
            .find(|case| case.rules == "PromiseUnfulfilled")
            .expect("there is such a case");
        case.walk(1)
            .breaks("same-order")
            .expect("it breaks")
            .steps
            .clone()
    };

    assert_eq!(told().len(), 2);
    assert_eq!(told(), told());
}

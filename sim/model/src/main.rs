//! `meridian-model`: walks through the models and says what came of it.

#![expect(clippy::print_stdout, reason = "a report is printed")]

use std::process::ExitCode;

use meridian_model::cases::{self, Case, Expected, Size};
use meridian_model::check::Outcome;

const USAGE: &str = "\
meridian-model check [--small]       every model, right and wrong: fails unless each comes out as expected
meridian-model story MODEL RULES     the shortest story that breaks a model under wrong rules";

/// The checker's threads where the count of states does not depend on them.
const THREADS: usize = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["check"] => check(Size::Full),
        ["check", "--small"] => check(Size::Small),
        ["story", model, rules] => story(model, rules),
        _ => {
            println!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn check(size: Size) -> ExitCode {
    let mut failed = 0;
    for case in cases::all(size) {
        let outcome = case.walk(THREADS);
        let is_met = case.is_met_by(&outcome);
        failed += usize::from(!is_met);
        let verdict = match case.expected {
            Expected::Holds => "holds".to_owned(),
            Expected::Breaks(property) => {
                let steps = outcome
                    .breaks(property)
                    .map_or(0, |broken| broken.steps.len());
                format!("breaks {property} in {steps} steps")
            }
        };
        println!(
            "{} {:<12} {:<26} {:>10} states  {verdict}  ({})",
            if is_met { "ok " } else { "RED" },
            case.model,
            case.rules,
            outcome.states,
            case.bounds,
        );
        if !is_met {
            explain(&case, &outcome);
        }
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn explain(case: &Case, outcome: &Outcome) {
    if case.expected != Expected::Holds {
        println!("    expected {:?}", case.expected);
    }
    for good_end in &outcome.unreached {
        println!("    never reached: {good_end}");
    }
    tell(outcome);
}

fn tell(outcome: &Outcome) {
    for broken in &outcome.broken {
        println!("    {} breaks:", broken.property);
        for (number, step) in broken.steps.iter().enumerate() {
            println!("    {:>3}. {step}", number + 1);
        }
        println!("    then: {}", broken.state);
    }
}

fn story(model: &str, rules: &str) -> ExitCode {
    let cases = cases::all(Size::Full);
    let wrong = cases.iter().find(|case| {
        case.model == model && case.rules == rules && matches!(case.expected, Expected::Breaks(_))
    });
    let Some(case) = wrong else {
        println!("there is no such story; there are:");
        for case in cases.iter().filter(|case| case.expected != Expected::Holds) {
            println!("    {} {}", case.model, case.rules);
        }
        return ExitCode::from(2);
    };
    let outcome = case.walk(1);
    println!(
        "{} {}, {}: {} states",
        case.model, case.rules, case.bounds, outcome.states
    );
    tell(&outcome);
    ExitCode::SUCCESS
}

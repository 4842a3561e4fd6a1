//! Plans in files: what is kept of a failure, and must be read for years.
//!
//! A plan's file names only what matters to it. A knob that came later than the file is as in
//! [`Plan::calm`], so that a kept plan goes on meaning what it meant; a key that no knob has is refused,
//! so that a slip of the pen is not a fault that never happens.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use meridian_points::Bug;
use toml::{Table, Value};

use crate::plan::Plan;

/// Reads a plan from its text.
///
/// # Errors
/// When it is not TOML, lacks what has no calm value (a region's name, a fault's time), or has keys
/// that no plan has.
pub fn parse(text: &str) -> anyhow::Result<Plan> {
    let asked: Table = toml::from_str(text).context("not TOML")?;
    let calm = Table::try_from(Plan::calm(0)).context("a calm plan")?;
    let mut whole = asked.clone();
    for (key, value) in &calm {
        match whole.get_mut(key) {
            None => {
                whole.insert(key.clone(), value.clone());
            }
            Some(there) => complete(there, value),
        }
    }
    let plan: Plan = Value::Table(whole).try_into().context("not a plan")?;
    let known = Table::try_from(&plan).context("a plan that was read")?;
    let mut unknown = Vec::new();
    find_unknown("", &Value::Table(asked), &Value::Table(known), &mut unknown);
    if !unknown.is_empty() {
        bail!("no plan has {}", unknown.join(", "));
    }
    Ok(plan)
}

// Which entry of a list a value stands for; these are never filled in.
const NAMES: [&str; 3] = ["name", "a", "b"];

// Puts in what is missing; in a list of tables, into each as in the first calm one.
fn complete(there: &mut Value, calm: &Value) {
    match (there, calm) {
        (Value::Table(there), Value::Table(calm)) => {
            for (key, value) in calm {
                match there.get_mut(key) {
                    Some(there) => complete(there, value),
                    None if NAMES.contains(&key.as_str()) => {}
                    None => {
                        there.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(there), Value::Array(calm)) => {
            if let Some(calm) = calm.first().filter(|it| it.is_table()) {
                for entry in there {
                    complete(entry, calm);
                }
            }
        }
        _ => {}
    }
}

fn find_unknown(path: &str, asked: &Value, known: &Value, unknown: &mut Vec<String>) {
    match (asked, known) {
        (Value::Table(asked), Value::Table(known)) => {
            for (key, value) in asked {
                let path = format!("{path}{}{key}", if path.is_empty() { "" } else { "." });
                match known.get(key) {
                    Some(known) => find_unknown(&path, value, known, unknown),
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(asked), Value::Array(known)) => {
            for (index, (asked, known)) in asked.iter().zip(known).enumerate() {
                find_unknown(&format!("{path}[{index}]"), asked, known, unknown);
            }
        }
        _ => {}
    }
}

/// The kept plans of this source tree by their names, each the file's without its ending.
///
/// # Errors
/// When the folder or one of its plans cannot be read.
pub fn all() -> anyhow::Result<BTreeMap<String, Plan>> {
    plans_in(concat!(env!("CARGO_MANIFEST_DIR"), "/plans"))
}

/// The plans that show planted bugs which drawn plans hardly ever show, or only after many, by the bugs' names.
///
/// # Errors
/// When the folder or one of its plans cannot be read, or is not named after a bug.
pub fn planted() -> anyhow::Result<BTreeMap<String, Plan>> {
    let plans = plans_in(concat!(env!("CARGO_MANIFEST_DIR"), "/plans/planted"))?;
    if let Some(name) = plans.keys().find(|name| Bug::named(name).is_none()) {
        bail!("no bug is called {name}");
    }
    Ok(plans)
}

#[expect(
    clippy::disallowed_methods,
    reason = "kept plans are files of the source tree, read before any run"
)]
fn plans_in(folder: &str) -> anyhow::Result<BTreeMap<String, Plan>> {
    let mut plans = BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {folder}"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|it| it != "toml") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let text = std::fs::read_to_string(&path)?;
        if !text.starts_with('#') {
            bail!("{name} does not say at its top which bug it showed");
        }
        let plan = parse(&text).with_context(|| format!("plan {name}"))?;
        plans.insert(name.into_owned(), plan);
    }
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plan_does_not_say_is_calm() {
        let plan = parse(
            "seed = 4\n[load]\nwriters = 9\n[[faults]]\nat_ms = 5\nwhat = 'bit-rot'\nregion = 1\n",
        )
        .expect("a plan");
        let mut expected = Plan::calm(4);
        expected.load.writers = 9;
        assert_eq!(plan.faults.len(), 1);
        expected.faults.clone_from(&plan.faults);
        assert_eq!(plan, expected);
    }

    #[test]
    fn regions_and_links_are_completed_one_by_one() {
        let text = "[[regions]]\nname = 'a'\nskew_ms = 70\n[[regions]]\nname = 'b'\n\
                    [[links]]\na = 0\nb = 1\nloss_ppm = 9\n";
        let plan = parse(text).expect("a plan");
        assert_eq!(plan.regions.len(), 2);
        assert_eq!(plan.regions[0].skew_ms, 70);
        assert_eq!(
            plan.regions[1].commit_us,
            Plan::calm(0).regions[0].commit_us
        );
        assert_eq!((plan.links.len(), plan.links[0].loss_ppm), (1, 9));
        assert_eq!(plan.links[0].latency_ms, Plan::calm(0).links[0].latency_ms);
    }

    #[test]
    fn a_region_without_a_name_is_refused() {
        assert!(parse("[[regions]]\nskew_ms = 70\n").is_err());
    }

    #[test]
    fn keys_that_no_plan_has_are_refused() {
        for text in [
            "sed = 4\n",
            "[load]\nwritters = 9\n",
            "[[faults]]\nat_ms = 5\nwhat = 'bit-rot'\nregion = 1\nfor_ms = 3\n",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}

//! Operations on streams that every region writes and that are merged: on few streams and of few values, so that
//! what regions do side by side meets.

use meridian_clock::RegionId;
use meridian_conflict::Kind;
use meridian_event::StreamId;

use crate::plan::LoadPlan;
use crate::rng::Rng;

/// The categories of such streams, one of each kind.
pub const CATEGORIES: [(&str, Kind); 9] = [
    ("visits", Kind::GCounter),
    ("balance", Kind::PnCounter),
    ("tags", Kind::GSet),
    ("cart", Kind::OrSet),
    ("label", Kind::MvRegister),
    ("profile", Kind::OrMap),
    ("stock", Kind::BoundedCounter),
    ("page", Kind::Document),
    ("settings", Kind::Fields),
];

/// Two pairs of them are spelled differently and the same, and two look the same and are not.
const VALUES: [&str; 6] = [
    r#""a""#,
    r#""b""#,
    "1",
    "1.0",
    r#"{"x":1,"y":[2,null]}"#,
    r#"{ "y": [2, null], "x": 1 }"#,
];

/// What the streams of `category` are, if they are merged.
pub fn kind(category: &str) -> Option<Kind> {
    let found = CATEGORIES.iter().find(|(name, _)| *name == category);
    found.map(|(_, kind)| *kind)
}

/// All merged streams of a plan.
pub fn streams(plan: &LoadPlan) -> Vec<StreamId> {
    if plan.merged_percent == 0 {
        return Vec::new();
    }
    let numbers = 0..plan.merged_streams.max(1);
    let names =
        numbers.flat_map(|number| of(plan).map(move |(name, _)| format!("{name}-{number}")));
    names
        .map(|name| StreamId::new(&name).expect("a sound name"))
        .collect()
}

fn of(plan: &LoadPlan) -> impl Iterator<Item = &'static (&'static str, Kind)> {
    let kinds = &plan.merged_kinds;
    let all = CATEGORIES.iter();
    all.filter(|(_, kind)| kinds.is_empty() || kinds.contains(kind))
}

/// The data of an operation on a stream of `kind`, among `regions`.
pub fn operation(rng: &mut Rng, kind: Kind, regions: &[RegionId]) -> String {
    match kind {
        Kind::GCounter => format!(r#"{{"op":"add"{}}}"#, by(rng)),
        Kind::PnCounter => {
            let op = *rng.pick(&["add", "subtract"]);
            format!(r#"{{"op":"{op}"{}}}"#, by(rng))
        }
        Kind::GSet => format!(r#"{{"op":"add","value":{}}}"#, value(rng)),
        Kind::OrSet => {
            let op = *rng.pick(&["add", "add", "remove"]);
            format!(r#"{{"op":"{op}","value":{}}}"#, value(rng))
        }
        Kind::MvRegister => format!(r#"{{"op":"set","value":{}}}"#, value(rng)),
        Kind::OrMap => {
            let key = *rng.pick(&["k", "l"]);
            if rng.percent(20) {
                return format!(r#"{{"op":"remove","key":"{key}"}}"#);
            }
            let kind = *rng.pick(&[
                Kind::GCounter,
                Kind::PnCounter,
                Kind::GSet,
                Kind::OrSet,
                Kind::MvRegister,
            ]);
            let change = operation(rng, kind, regions);
            format!(r#"{{"op":"update","key":"{key}","type":"{kind}","change":{change}}}"#)
        }
        Kind::BoundedCounter => match rng.below(10) {
            0..3 => format!(r#"{{"op":"grant","by":{}}}"#, rng.between(1, 8)),
            3..8 => format!(r#"{{"op":"take"{}}}"#, by(rng)),
            _ => {
                let to = *rng.pick(regions);
                format!(r#"{{"op":"give","to":{to}{}}}"#, by(rng))
            }
        },
        Kind::Document => match rng.percent(10) {
            true => "null".to_owned(),
            false => value(rng).to_owned(),
        },
        Kind::Fields => {
            let names = *rng.pick(&[&["f"][..], &["g"], &["f", "g"], &["h", "f"]]);
            let fields = names.iter().map(|name| match rng.percent(20) {
                true => format!(r#""{name}":null"#),
                false => format!(r#""{name}":{}"#, value(rng)),
            });
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
    }
}

fn value(rng: &mut Rng) -> &'static str {
    rng.pick::<&'static str>(&VALUES)
}

fn by(rng: &mut Rng) -> String {
    match rng.below(5) {
        0 => String::new(),
        by => format!(r#","by":{by}"#),
    }
}

#[cfg(test)]
mod tests {
    use meridian_conflict::Operation;

    use super::*;

    #[test]
    fn every_operation_is_one_on_its_kind() {
        let mut rng = Rng::new(7);
        for (category, kind) in CATEGORIES {
            assert_eq!(super::kind(category), Some(kind));
            for _ in 0..200 {
                let data = operation(&mut rng, kind, &[RegionId(1), RegionId(2)]);
                let read = Operation::parse(kind, data.as_bytes());
                assert!(read.is_ok(), "{data}: {read:?}");
            }
        }
    }
}

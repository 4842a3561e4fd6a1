//! Every model under every set of rules, with what is expected of it.

use std::fmt::Debug;
use std::hash::Hash;

use stateright::Model;

use crate::check::{self, Outcome};
use crate::{fence, lease, moves, readmission};

/// How far to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Seconds without optimisation: what `cargo test` runs.
    Small,
    /// Minutes with optimisation: what CI runs.
    Full,
}

/// What must come of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// No state is wrong, and every good end is reached.
    Holds,
    /// A story is found that breaks this property.
    Breaks(&'static str),
}

/// One model under one set of rules.
pub struct Case {
    /// The model's module.
    pub model: &'static str,
    /// The rules, as they are named there.
    pub rules: String,
    /// How much may happen.
    pub bounds: String,
    /// What must come of it.
    pub expected: Expected,
    walk: Box<dyn Fn(usize) -> Outcome>,
}

impl Case {
    /// A case of rules that hold.
    pub(crate) fn holds<M>(
        name: &'static str,
        rules: &impl Debug,
        bounds: &impl Debug,
        model: M,
    ) -> Case
    where
        M: Model + Clone + Send + Sync + 'static,
        M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
        M::Action: Clone + Debug + PartialEq,
    {
        Case {
            model: name,
            rules: format!("{rules:?}"),
            bounds: bounds_of(bounds),
            expected: Expected::Holds,
            walk: Box::new(move |threads| check::check(model.clone(), threads)),
        }
    }

    /// A case of rules that are known to break a property.
    pub(crate) fn breaks<M>(
        name: &'static str,
        rules: &impl Debug,
        bounds: &impl Debug,
        property: &'static str,
        model: M,
    ) -> Case
    where
        M: Model + Clone + Send + Sync + 'static,
        M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
        M::Action: Clone + Debug + PartialEq,
    {
        Case {
            model: name,
            rules: format!("{rules:?}"),
            bounds: bounds_of(bounds),
            expected: Expected::Breaks(property),
            walk: Box::new(move |_| check::find(model.clone(), property)),
        }
    }

    /// Walks through the model. Rules that are to break are looked at by one thread, so that the count of
    /// states is the same each time.
    #[must_use]
    pub fn walk(&self, threads: usize) -> Outcome {
        (self.walk)(threads)
    }

    /// Whether that came out as expected.
    #[must_use]
    pub fn is_met_by(&self, outcome: &Outcome) -> bool {
        match self.expected {
            Expected::Holds => outcome.is_right(),
            Expected::Breaks(property) => outcome.breaks(property).is_some(),
        }
    }
}

/// `Bounds { events: 2, … }` without its name and braces.
fn bounds_of(bounds: &impl Debug) -> String {
    let long = format!("{bounds:?}");
    long.trim_start_matches("Bounds")
        .trim_matches([' ', '{', '}'])
        .to_owned()
}

/// Every case there is.
#[must_use]
pub fn all(size: Size) -> Vec<Case> {
    let mut cases = fence::cases(size);
    cases.extend(moves::cases(size));
    cases.extend(lease::cases(size));
    cases.extend(readmission::cases(size));
    cases
}

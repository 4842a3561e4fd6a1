//! Walks through every state of a model, and tells what was broken and what was never reached.

use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// A property that does not hold, with the shortest steps to it that the checker kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The property's name.
    pub property: &'static str,
    /// What happened, from the beginning.
    pub steps: Vec<String>,
    /// The state in which it does not hold.
    pub state: String,
}

/// What a walk through a model found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Different states seen.
    pub states: usize,
    /// The most steps from the beginning to one of them.
    pub depth: usize,
    /// What does not hold, shortest story first. Empty means that every state was seen and none is wrong.
    pub broken: Vec<Broken>,
    /// Good ends that no state is an example of: such a model may hold because it does nothing.
    pub unreached: Vec<&'static str>,
}

impl Outcome {
    /// Whether every state was seen, all that must hold does, and every good end was reached.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.broken.is_empty() && self.unreached.is_empty()
    }

    /// The shortest story that breaks `property`.
    #[must_use]
    pub fn breaks(&self, property: &str) -> Option<&Broken> {
        self.broken
            .iter()
            .find(|broken| broken.property == property)
    }
}

/// Walks through `model` breadth first, until all states are seen or something is broken.
pub fn check<M>(model: M, threads: usize) -> Outcome
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq,
{
    walk(model, threads, &HasDiscoveries::AnyFailures, None)
}

/// Walks through `model` breadth first, until `property` is broken or all states are seen.
///
/// With one thread, so that it is the same walk each time; and the story it tells is a shortest one.
pub fn find<M>(model: M, property: &'static str) -> Outcome
where
    M: Model + Clone + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq,
{
    let until = HasDiscoveries::AllOf([property].into());
    let mut outcome = walk(model.clone(), 1, &until, None);
    // The checker looks on for a while after it has found something, and keeps the last story.
    while let Some(known) = outcome.breaks(property) {
        let fewer = walk(model.clone(), 1, &until, Some(known.steps.len()));
        if fewer.breaks(property).is_none() {
            break;
        }
        outcome.broken = fewer.broken;
    }
    outcome
}

/// With `fewer`, only through states that fewer steps lead to.
fn walk<M>(model: M, threads: usize, until: &HasDiscoveries, fewer: Option<usize>) -> Outcome
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq,
{
    let properties = model.properties();
    let mut builder = model.checker().threads(threads).finish_when(until.clone());
    if let Some(fewer) = fewer {
        // It counts states, the first one too, and leaves out those at the depth itself.
        builder = builder.target_max_depth(fewer + 1);
    }
    let checker = builder.spawn_bfs().join();

    let found = checker.discoveries();
    let mut broken: Vec<Broken> = properties
        .iter()
        .filter(|property| property.expectation.discovery_is_failure())
        .filter_map(|property| Some((property.name, found.get(property.name)?.clone())))
        .map(|(property, path)| Broken {
            property,
            state: format!("{:?}", path.last_state()),
            steps: path
                .into_actions()
                .iter()
                .map(|action| format!("{action:?}"))
                .collect(),
        })
        .collect();
    broken.sort_by_key(|broken| broken.steps.len());
    let unreached = properties
        .iter()
        .filter(|property| property.expectation == Expectation::Sometimes)
        .map(|property| property.name)
        .filter(|name| !found.contains_key(name))
        .collect();
    Outcome {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        broken,
        unreached,
    }
}

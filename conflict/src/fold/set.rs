//! Sets: grow-only, and observed-remove without tombstones after Bieniusa et al., "An optimized conflict-free
//! replicated set" (2012).

use std::collections::BTreeMap;

use crdts::orswot::{Op, Orswot};
use crdts::{CmRDT, Dot, GSet, VClock};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dot::{Actor, Context, OpDot, Seen};
use super::element::Element;

const BYTES: usize = 96;
const ELEMENT_BYTES: usize = 96;

/// A set that only grows.
#[derive(Debug, Default)]
pub(super) struct GrowingSet {
    set: GSet<Element>,
    bytes: usize,
}

impl GrowingSet {
    pub(super) fn add(&mut self, element: &Element) {
        if !self.set.contains(element) {
            self.bytes += ELEMENT_BYTES + element.as_str().len();
            self.set.insert(element.clone());
        }
    }

    pub(super) fn value(&self) -> Value {
        self.image().iter().map(Element::to_value).collect()
    }

    pub(super) fn bytes(&self) -> usize {
        BYTES + self.bytes
    }

    pub(super) fn image(&self) -> Vec<Element> {
        self.set.read().into_iter().collect()
    }

    pub(super) fn of_image(elements: &[Element]) -> Self {
        let mut set = Self::default();
        elements.iter().for_each(|element| set.add(element));
        set
    }
}

/// A set from which what was observed can be removed.
///
/// A removal drops exactly the additions that its context includes. `crdts` can wait for those that have not come yet,
/// but neither shows nor forgets what it waits for; so it is never told of a dot before that dot is here, and what is
/// still to come waits in `removed`.
#[derive(Debug, Default)]
pub(super) struct ObservedSet {
    set: Orswot<Element, Actor>,
    // Additions that are removed already and have not come yet. What the state's clock includes is out of date.
    removed: BTreeMap<Element, Seen>,
    bytes: usize,
}

/// An [`ObservedSet`] as it is encoded: sorted, and without what is out of date.
#[derive(Serialize, Deserialize)]
pub(super) struct ObservedSetImage {
    elements: Vec<(Element, Seen)>,
    removed: Vec<(Element, Seen)>,
}

impl ObservedSet {
    pub(super) fn contains(&self, element: &Element) -> bool {
        self.set.contains(element).val
    }

    pub(super) fn add(&mut self, dot: OpDot, element: &Element) {
        let is_removed = self
            .removed
            .get(element)
            .is_some_and(|seen| seen.contains(dot));
        if is_removed {
            return self.pass(dot);
        }
        if !self.contains(element) {
            self.bytes += ELEMENT_BYTES + element.as_str().len();
        }
        self.set.apply(Op::Add {
            dot: Dot::new(dot.actor, dot.counter),
            members: vec![element.clone()],
        });
    }

    /// Removes what `context` includes of `element`, where `clock` is what has come so far.
    pub(super) fn remove(&mut self, context: Context<'_>, clock: &Seen, element: &Element) {
        if self.contains(element) {
            let come = clock.iter().map(|dot| {
                let seen = context.get(dot.actor).min(dot.counter);
                Dot::new(dot.actor, seen)
            });
            let clock: VClock<Actor> = come.filter(|dot| dot.counter > 0).collect();
            self.set.apply(Op::Rm {
                clock,
                members: vec![element.clone()],
            });
            if !self.contains(element) {
                self.bytes -= ELEMENT_BYTES + element.as_str().len();
            }
        }
        let beyond = context.beyond(clock);
        if !beyond.is_empty() {
            self.removed
                .entry(element.clone())
                .or_default()
                .merge(&beyond);
        }
        self.pass(context.dot());
    }

    /// Counts a dot that adds nothing.
    pub(super) fn pass(&mut self, dot: OpDot) {
        self.set.apply(Op::Add {
            dot: Dot::new(dot.actor, dot.counter),
            members: Vec::new(),
        });
    }

    /// Forgets the removals of all that has come.
    pub(super) fn collect(&mut self, clock: &Seen) {
        self.removed.retain(|_, seen| !clock.covers(seen));
    }

    pub(super) fn value(&self) -> Value {
        let mut elements: Vec<&Element> = self.set.iter().map(|read| read.val).collect();
        elements.sort_unstable();
        elements.into_iter().map(Element::to_value).collect()
    }

    pub(super) fn bytes(&self) -> usize {
        BYTES + self.bytes + self.removed.len() * ELEMENT_BYTES
    }

    pub(super) fn image(&self, clock: &Seen) -> ObservedSetImage {
        let dots = |clock: VClock<Actor>| {
            let dots = clock.into_iter().map(|dot| dot.actor.dot(dot.counter));
            dots.collect::<Seen>()
        };
        let entries = self.set.iter();
        let mut elements: Vec<(Element, Seen)> = entries
            .map(|read| (read.val.clone(), dots(read.rm_clock)))
            .collect();
        elements.sort_unstable();
        let removed = self.removed.iter();
        let beyond = removed.map(|(element, seen)| (element.clone(), seen.beyond(clock)));
        ObservedSetImage {
            elements,
            removed: beyond.filter(|(_, seen)| !seen.is_empty()).collect(),
        }
    }

    /// `None` when the image has dots of operations that have not come.
    pub(super) fn of_image(image: ObservedSetImage, clock: &Seen) -> Option<Self> {
        let mut set = Self::default();
        if !image.elements.iter().all(|(_, seen)| clock.covers(seen)) {
            return None;
        }
        let mut added = Vec::new();
        for (element, seen) in &image.elements {
            added.extend(seen.iter().map(|dot| (dot, element)));
        }
        // In the order of each actor's dots, as they were added first.
        added.sort_unstable();
        for (dot, element) in added {
            set.add(dot, element);
        }
        clock.iter().for_each(|dot| set.pass(dot));
        set.removed = image.removed.into_iter().collect();
        Some(set)
    }
}

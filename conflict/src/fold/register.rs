//! A register that keeps all values which were set without knowing of each other, after Shapiro et al. (2011).
//!
//! Setting replaces exactly the values that the setter had seen. `crdts` compares whole clocks instead, which is the
//! same only where operations arrive after all that they observed. Here they may not: with c having seen b but not a,
//! which b had seen, comparing clocks would show b beside c, though c replaced it. So each value is held under its
//! dot alone, and what was seen resets it.

use crdts::mvreg::{MVReg, Op};
use crdts::{CmRDT, Dot, ResetRemove, VClock};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dot::{Actor, Context, OpDot, Seen};
use super::element::Element;

const BYTES: usize = 96;
const VALUE_BYTES: usize = 64;

/// A register with one value for each of the last writers that did not see each other.
#[derive(Debug, Default)]
pub(super) struct Register {
    values: MVReg<(OpDot, Element), Actor>,
    // Values that are replaced already and have not come yet. What the state's clock includes is out of date.
    replaced: Seen,
    bytes: usize,
}

/// A [`Register`] as it is encoded: sorted by dot, and without what is out of date.
#[derive(Serialize, Deserialize)]
pub(super) struct RegisterImage {
    values: Vec<(OpDot, Element)>,
    replaced: Seen,
}

impl Register {
    pub(super) fn set(&mut self, context: Context<'_>, clock: &Seen, value: &Element) {
        let dot = context.dot();
        if !self.replaced.contains(dot) {
            self.put(dot, value);
        }
        self.values.reset_remove(&vclock(&context.to_seen()));
        self.replaced.merge(&context.beyond(clock));
        self.weigh();
    }

    pub(super) fn collect(&mut self, clock: &Seen) {
        self.replaced = self.replaced.beyond(clock);
    }

    /// The values, sorted; one that several wrote is there once.
    pub(super) fn value(&self) -> Value {
        let mut values: Vec<Element> = self.held().into_iter().map(|(_, value)| value).collect();
        values.sort_unstable();
        values.dedup();
        values.iter().map(Element::to_value).collect()
    }

    pub(super) fn bytes(&self) -> usize {
        BYTES + self.bytes
    }

    pub(super) fn image(&self, clock: &Seen) -> RegisterImage {
        let mut values = self.held();
        values.sort_unstable();
        RegisterImage {
            values,
            replaced: self.replaced.beyond(clock),
        }
    }

    pub(super) fn of_image(image: RegisterImage) -> Self {
        let mut register = Self::default();
        for (dot, value) in &image.values {
            register.put(*dot, value);
        }
        register.replaced = image.replaced;
        register.weigh();
        register
    }

    fn put(&mut self, dot: OpDot, value: &Element) {
        self.values.apply(Op::Put {
            clock: VClock::from(Dot::new(dot.actor, dot.counter)),
            val: (dot, value.clone()),
        });
    }

    fn held(&self) -> Vec<(OpDot, Element)> {
        self.values.read().val
    }

    fn weigh(&mut self) {
        let held = self.held();
        let weights = held
            .iter()
            .map(|(_, value)| VALUE_BYTES + value.as_str().len());
        self.bytes = weights.sum();
    }
}

fn vclock(seen: &Seen) -> VClock<Actor> {
    seen.iter()
        .map(|dot| Dot::new(dot.actor, dot.counter))
        .collect()
}

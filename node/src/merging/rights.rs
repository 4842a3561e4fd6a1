//! What a stock lacks, and whom it is given to.

use meridian_client::{AppendError, AppendRequest, StateTier};
use meridian_clock::RegionId;
use meridian_conflict::{Kind, Operation};
use meridian_event::StreamId;
use serde_json::Value;

use super::{Merging, unavailable};
use crate::rights::Shortfall;

impl Merging {
    /// Whether `stream` is a stock.
    pub(crate) fn is_stock(&self, stream: &StreamId) -> bool {
        self.kind(stream) == Some(Kind::BoundedCounter)
    }

    /// Puts the numbers of regions in the place of their names in what `request` gives of a stock. Whatever else
    /// is wrong with it is found where it is recorded.
    ///
    /// # Errors
    /// When there is no such region, or it has left for good.
    pub(crate) fn number_regions(&self, request: &mut AppendRequest) -> Result<(), AppendError> {
        for event in &mut request.events {
            let Ok(Value::Object(mut operation)) = serde_json::from_slice(&event.data) else {
                continue;
            };
            let to = operation.get("to");
            let region = match to {
                Some(Value::String(name)) => self.names.get(name).copied(),
                Some(Value::Number(number)) => {
                    let number = number.as_u64().and_then(|it| u16::try_from(it).ok());
                    let known = |region: &RegionId| self.names.values().any(|it| it == region);
                    number.map(RegionId).filter(known)
                }
                _ => continue,
            };
            let Some(region) = region else {
                let known: Vec<&str> = self.names.keys().map(String::as_str).collect();
                return Err(AppendError::Invalid {
                    reason: format!(
                        "there is no region {} to give to; the regions are {}",
                        to.cloned().unwrap_or_default(),
                        known.join(", ")
                    ),
                });
            };
            if self.homes.federation().left.contains(&region) {
                return Err(AppendError::Conflict {
                    reason: format!(
                        "region {} has left, and what it was given would be lost; give to another one",
                        to.cloned().unwrap_or_default()
                    ),
                });
            }
            if to.is_some_and(Value::is_string) {
                operation.insert("to".to_owned(), region.0.into());
                event.data = Value::Object(operation).to_string().into();
            }
        }
        Ok(())
    }

    /// Whether `request`, about a stock, takes from it and gives nothing away.
    pub(crate) fn only_takes(request: &AppendRequest) -> bool {
        taking(request).is_some()
    }

    /// What `request`, of takes and grants, lacks of rights here; `None` if it lacks none, or is something else.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn shortfall(
        &self,
        request: &AppendRequest,
    ) -> Result<Option<Shortfall>, AppendError> {
        let (kind, stream) = (Kind::BoundedCounter, &request.stream);
        let operations = taking(request).filter(|_| self.is_stock(stream));
        let Some(operations) = operations else {
            return Ok(None);
        };
        let mut hot = self.hot(self.partition(stream));
        let folded = hot.of(StateTier::Live).entry(stream.clone());
        let folded = folded.or_insert_with(|| self.begin(stream, kind));
        if !folded.is(kind) {
            *folded = self.begin(stream, kind);
        }
        while !folded
            .follow(self, stream, None, false, super::STEPS_AT_ONCE)
            .map_err(|error| unavailable(error.to_string()))?
        {}
        let rights = |region: RegionId| folded.state.rights(region).unwrap_or(0);
        let here = rights(self.region);
        let missing = missing(here, &operations);
        let short = (missing > 0).then(|| Shortfall {
            here,
            missing,
            others: self
                .names
                .values()
                .filter(|region| **region != self.region)
                .map(|region| (*region, rights(*region)))
                .filter(|(_, rights)| *rights > 0)
                .collect(),
            stock: folded.state.value()["stock"].as_u64().unwrap_or(0),
        });
        hot.touch(StateTier::Live, stream, self.bytes_max);
        Ok(short)
    }
}

// What a request does that only takes from a stock, or grants as well.
fn taking(request: &AppendRequest) -> Option<Vec<Operation>> {
    let mut operations = Vec::with_capacity(request.events.len());
    for event in &request.events {
        match Operation::parse(Kind::BoundedCounter, &event.data) {
            Ok(operation @ (Operation::Grant(_) | Operation::Take(_))) => {
                operations.push(operation)
            }
            _ => return None,
        }
    }
    let takes = operations.iter().any(|it| matches!(it, Operation::Take(_)));
    takes.then_some(operations)
}

// How many more rights than `here` are needed for all of `operations`, one after the other.
fn missing(here: u64, operations: &[Operation]) -> u64 {
    let (mut left, mut missing) = (here, 0_u64);
    for operation in operations {
        match operation {
            Operation::Grant(by) => left = left.saturating_add(*by),
            Operation::Take(by) => {
                missing = missing.saturating_add(by.saturating_sub(left));
                left = left.saturating_sub(*by);
            }
            _ => {}
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_lacks_what_its_takes_lack_one_after_the_other() {
        let (grant, take) = (Operation::Grant, Operation::Take);
        assert_eq!(missing(5, &[take(5)]), 0);
        assert_eq!(missing(5, &[take(3), take(4)]), 2);
        assert_eq!(missing(0, &[take(3), grant(10), take(4)]), 3);
        assert_eq!(missing(0, &[grant(10), take(4), take(7)]), 1);
        assert_eq!(missing(0, &[take(u64::MAX), take(u64::MAX)]), u64::MAX);
    }
}

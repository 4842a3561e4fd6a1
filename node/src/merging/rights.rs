//! Whom rights to a stock are given to.

use meridian_client::{AppendError, AppendRequest};
use meridian_conflict::Kind;
use meridian_event::StreamId;
use serde_json::Value;

use super::Merging;

impl Merging {
    /// Whether `stream` is a stock.
    pub(crate) fn is_stock(&self, stream: &StreamId) -> bool {
        self.kind(stream) == Some(Kind::BoundedCounter)
    }

    /// Puts the numbers of regions in the place of their names in what `request` gives of a stock. Whatever else
    /// is wrong with it is found where it is recorded.
    ///
    /// # Errors
    /// When there is no such region.
    pub(crate) fn number_regions(&self, request: &mut AppendRequest) -> Result<(), AppendError> {
        for event in &mut request.events {
            let Ok(Value::Object(mut operation)) = serde_json::from_slice(&event.data) else {
                continue;
            };
            let Some(name) = operation.get("to").and_then(Value::as_str) else {
                continue;
            };
            let Some(region) = self.names.get(name) else {
                let known: Vec<&str> = self.names.keys().map(String::as_str).collect();
                return Err(AppendError::Invalid {
                    reason: format!(
                        "there is no region {name:?}; the regions are {}",
                        known.join(", ")
                    ),
                });
            };
            operation.insert("to".to_owned(), region.0.into());
            event.data = Value::Object(operation).to_string().into();
        }
        Ok(())
    }
}

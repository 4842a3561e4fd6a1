//! Cursors as clients see them: `region:place`.
//!
//! Each region has its own order of arrival, so a cursor of another region would point anywhere.
//! It is refused by name instead of being followed to the wrong place.

use meridian_client::LiveCursor;

use super::Door;
use super::problem::Problem;

/// `cursor` with the name of the region that it is good at.
pub(super) fn show(door: &Door, cursor: &LiveCursor) -> String {
    format!("{}:{}", door.region, cursor.0)
}

/// The place that `text` stands for; the beginning when it is empty.
///
/// # Errors
/// When it is another region's, or none of ours.
pub(super) fn parse(door: &Door, text: &str) -> Result<LiveCursor, Problem> {
    if text.is_empty() {
        return Ok(LiveCursor::default());
    }
    match text.rsplit_once(':') {
        Some((region, place)) if region == &*door.region && !place.is_empty() => {
            Ok(LiveCursor(place.to_owned()))
        }
        Some((region, _)) if door.regions.values().any(|known| known == region) => {
            Err(Problem::invalid(format!(
                "the cursor {text:?} is good in region {region} only, and this is {}; read on \
                 there, or leave the cursor out to begin here",
                door.region
            )))
        }
        _ => Err(Problem::invalid(format!(
            "{text:?} is not a cursor; use one that this region gave, or none to begin at the \
             beginning"
        ))),
    }
}

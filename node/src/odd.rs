//! Pauses that only a simulation makes.

use std::time::Duration;

use meridian_points::buggify;
use tokio::time::sleep;

/// Waits a little at the mark called `point`, if this run is odd there.
#[inline]
pub(crate) async fn pause(point: &'static str) {
    if buggify(point) {
        sleep(Duration::from_millis(3)).await;
    }
}

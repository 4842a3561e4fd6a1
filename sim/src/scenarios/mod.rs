//! Plans written by hand, each about one thing; to write another one, copy the nearest.

mod cut_home;
mod doubtful_sync;
mod far_future;
mod lost_disk;
mod power_cut;

use crate::plan::Plan;

/// Every scenario with its name.
pub fn all() -> Vec<(&'static str, Plan)> {
    vec![
        ("cut-home", cut_home::plan()),
        ("doubtful-sync", doubtful_sync::plan()),
        ("far-future", far_future::plan()),
        ("lost-disk", lost_disk::plan()),
        ("power-cut", power_cut::plan()),
    ]
}

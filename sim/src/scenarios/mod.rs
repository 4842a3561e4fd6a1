//! Plans written by hand, each about one thing; to write another one, copy the nearest.
//!
//! A plan that a hunt found and that showed a bug is kept in `plans/` instead, as it is.

mod clocks;
mod cut_home;
mod far_future;
mod lost_disk;
mod power_cut;
mod wrong_reads;

use crate::plan::Plan;

/// Every scenario with its name.
pub fn all() -> Vec<(&'static str, Plan)> {
    vec![
        ("calm", Plan::calm(10)),
        ("clock-400-ms-ahead", clocks::off_by(400)),
        ("clock-400-ms-behind", clocks::off_by(-400)),
        ("clock-set-back-while-down", clocks::set_back()),
        ("clock-set-back-and-stopped", clocks::set_back_and_stopped()),
        ("clock-ten-seconds-ahead", clocks::ten_ahead()),
        ("lost-disk-clock-back", clocks::lost_with_its_clock()),
        ("wide-links", clocks::wide()),
        ("all-emptied", lost_disk::all_put_back(&[])),
        (
            "all-put-back",
            lost_disk::all_put_back(&[3_600, 4_000, 4_400]),
        ),
        ("copied-back", lost_disk::copied_back()),
        ("cut-home", cut_home::plan()),
        ("far-future", far_future::plan()),
        ("lost-disk", lost_disk::plan()),
        ("power-cut", power_cut::plan()),
        ("wrong-reads", wrong_reads::plan()),
    ]
}

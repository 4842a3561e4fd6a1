//! `watermark`: `final` ≤ `stable`, both monotone within a life of the node; they stall, never jump,
//! when a member is silent. A jump would show as an event that comes too late for its place: see
//! `same-order`.

use super::Evidence;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    evidence.settled.broken().to_vec()
}

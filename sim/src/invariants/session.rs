//! `session`: no token holder reads older than the token, whichever region answers.

use super::Evidence;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for seen in &evidence.seen {
        if !seen.shown && !evidence.may_be_gone(seen.dot, seen.written) {
            broken.push(format!(
                "{} did not show {}, which its reader had seen",
                seen.read, seen.dot
            ));
        }
    }
    broken
}

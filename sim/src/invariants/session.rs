//! `session`: no token holder reads older than the token, whichever region answers.

use super::Evidence;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for seen in &evidence.seen {
        // What was lost with a disk stays lost, and its place may be another event's by now.
        let lost = evidence.forgiven.iter().any(|lost| {
            lost.log == seen.dot.log()
                && seen.dot.position > lost.after
                && seen.written < lost.before
        });
        if !seen.shown && !lost {
            broken.push(format!(
                "{} did not show {}, which its reader had seen",
                seen.read, seen.dot
            ));
        }
    }
    broken
}

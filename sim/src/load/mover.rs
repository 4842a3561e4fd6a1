//! An operator who moves streams between regions while they are written, and drains regions.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::follow::Source;
use super::homed;
use crate::http::Connection;
use crate::plan::LoadPlan;
use crate::rng::Rng;
use crate::world::clock::elapsed;
use crate::world::trace::Trace;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Moves streams through one region's door.
pub struct Mover {
    /// How often, and among how many streams.
    pub plan: LoadPlan,
    /// Draws what it does.
    pub rng: Rng,
    /// Its region's door.
    pub source: Source,
    /// The names of all regions.
    pub regions: Vec<String>,
    /// Where steps are noted.
    pub trace: Trace,
    /// Set when the time for load is over.
    pub over: Arc<AtomicBool>,
}

impl Mover {
    /// Moves until the load is over.
    pub async fn run(mut self) {
        while !self.over.load(Ordering::Relaxed) {
            let pause = self.rng.below(self.plan.moves_ms * 2 + 1);
            sleep(Duration::from_millis(pause)).await;
            let to = self.rng.pick(&self.regions).clone();
            let count = self.rng.between(1, 3);
            let mut names = String::new();
            for _ in 0..count {
                let number = self.rng.below(self.plan.streams);
                let comma = if names.is_empty() { "" } else { "," };
                // Writing to a string does not fail.
                let _ = write!(names, "{comma}\"{}\"", homed(&self.plan, number));
            }
            let wait_ms = self.rng.below(2_000);
            let (path, body, what) = match self.plan.drains && self.rng.percent(15) {
                true => {
                    let what = *self.rng.pick(&["drain", "resume", "resume"]);
                    let body = format!("{{\"wait_ms\":{wait_ms}}}");
                    (
                        format!("/v1/regions/{to}/{what}"),
                        body,
                        format!("{what} {to}"),
                    )
                }
                false => {
                    let body =
                        format!("{{\"streams\":[{names}],\"to\":\"{to}\",\"wait_ms\":{wait_ms}}}");
                    (
                        "/v1/homes".to_owned(),
                        body,
                        format!("move {names} to {to}"),
                    )
                }
            };
            // What became of it shows in what is written afterwards.
            let asked = async {
                let mut connection = Connection::open(self.source.addr).await.ok()?;
                connection.ask("POST", &path, &body).await.ok()
            };
            let status = timeout(PATIENCE, asked).await.ok().flatten();
            self.trace.note(
                elapsed(),
                format_args!(
                    "{} is asked to {what}: {:?}",
                    self.source.region,
                    status.map(|(status, _)| status)
                ),
            );
        }
    }
}

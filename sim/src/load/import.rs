//! Imports: many batches on their way at once, each repeated with the same ids until it is
//! acknowledged.

use std::sync::atomic::Ordering;
use std::time::Duration;

use meridian_client::{AppendError, Durability, Expected};
use meridian_event::StreamId;
use tokio::time::sleep;

use super::Writer;
use crate::history::{Call, Outcome};
use crate::world::clock::elapsed;

/// One lane of a region's import: it has one batch on its way at a time.
pub struct ImportLane(pub Writer);

impl ImportLane {
    /// Imports until the load is over.
    pub async fn run(mut self) {
        let mut number = 0;
        while !self.0.over.load(Ordering::Relaxed) {
            let pause = self.0.rng.below(self.0.plan.pause_ms + 1);
            sleep(Duration::from_millis(pause + 20)).await;
            number += 1;
            self.import(number).await;
        }
    }

    async fn import(&mut self, number: u64) {
        let writer = &mut self.0;
        let mut request = writer.draw();
        // Some streams are one lane's, and most are shared with others.
        let stream = format!("import-{}", (number + writer.rng.below(20)) % 25);
        request.stream = StreamId::new(&stream).expect("a sound name");
        request.expected = Expected::Any;
        request.durability = Durability::Region;
        let call = writer.history.begin(Call {
            client: writer.client,
            stream: request.stream.clone(),
            expected: request.expected,
            durability: request.durability,
            ids: request.events.iter().map(|event| event.id).collect(),
            invoked: elapsed(),
            returned: None,
            outcome: Outcome::Unknown,
        });
        let mut in_doubt = false;
        let outcome = loop {
            match writer.federation.append(request.clone()).await {
                Ok(appended) => break Outcome::Written(appended),
                Err(error) => {
                    in_doubt |= matches!(error, AppendError::Indeterminate { .. });
                    if writer.over.load(Ordering::Relaxed) {
                        break match in_doubt {
                            true => Outcome::Unknown,
                            false => Outcome::Refused {
                                code: error.code(),
                                why: error.to_string(),
                                found: None,
                            },
                        };
                    }
                }
            }
            sleep(Duration::from_millis(50)).await;
        };
        writer.trace.note(
            elapsed(),
            format_args!(
                "client {} import {call} {}",
                writer.client,
                matches!(outcome, Outcome::Written(_))
            ),
        );
        writer.history.end(call, elapsed(), outcome);
    }
}

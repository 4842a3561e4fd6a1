//! Waiting until one event is settled, here or in another region.

use std::time::Duration;

use meridian_client::wire::{Request, Response};
use meridian_client::{AwaitSettled, Awaited, ReadError, RequestError};
use meridian_clock::{Dot, Position, Timestamp};
use meridian_event::block::Block;
use tokio::time::{Instant, sleep, timeout_at};

use crate::Node;
use crate::forwarding::Home;
use crate::reads::unreadable;
use crate::session::WAIT_MAX;

/// How much longer than it waits a region has for its answer to come back.
const WAY_BACK: Duration = Duration::from_secs(2);
/// The pause between two attempts to ask a region.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);

impl Node {
    /// Waits until an event is settled in a region, up to `asked.wait_ms`, and says how far it came.
    /// The event need not have arrived yet.
    ///
    /// # Errors
    /// When there is no such region or partition, or the region cannot be asked.
    pub async fn await_settled(&self, asked: AwaitSettled) -> Result<Awaited, ReadError> {
        self.check_dot(asked.dot)?;
        let wait = Duration::from_millis(u64::from(asked.wait_ms)).min(WAIT_MAX);
        let began = Instant::now();
        let awaited = match asked
            .region
            .filter(|region| *region != self.config().region)
        {
            None => self.await_here(asked, began + wait).await,
            Some(region) => match self.appends().ways.get(&region) {
                Some(home) => await_there(home, asked, began + wait).await,
                None => Err(ReadError::UnknownRegion { region }),
            },
        };
        let waited = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        awaited.map(|awaited| Awaited {
            waited_ms: waited,
            ..awaited
        })
    }

    fn check_dot(&self, dot: Dot) -> Result<(), ReadError> {
        let partitions = self.config().partitions;
        if !self.region_names().contains_key(&dot.origin) {
            return Err(ReadError::UnknownRegion { region: dot.origin });
        }
        if dot.partition.0 >= partitions {
            return Err(ReadError::Invalid {
                reason: format!(
                    "there is no partition {}; this federation's are 0 to {}",
                    dot.partition,
                    partitions - 1
                ),
            });
        }
        if dot.position == Position::ZERO {
            return Err(ReadError::Invalid {
                reason: "positions count from 1".to_owned(),
            });
        }
        Ok(())
    }

    async fn await_here(
        &self,
        asked: AwaitSettled,
        deadline: Instant,
    ) -> Result<Awaited, ReadError> {
        let AwaitSettled { dot, tier, .. } = asked;
        let (mut committed, mut marks) = (self.committed(), self.marks());
        let mut timestamp = None;
        loop {
            committed.borrow_and_update();
            marks.borrow_and_update();
            if timestamp.is_none() && self.store().head(dot.log()).position >= dot.position {
                timestamp = self.stamp_of(dot)?;
            }
            let watermark = self.watermark(tier);
            let reached = timestamp.is_some_and(|timestamp| timestamp <= watermark);
            let more = !reached
                && tokio::select! {
                    biased;
                    () = self.doors().cancelled() => false,
                    // Once the event is here, only the watermark matters.
                    changed = timeout_at(deadline, committed.changed()), if timestamp.is_none() => {
                        matches!(changed, Ok(Ok(())))
                    }
                    changed = timeout_at(deadline, marks.changed()) => matches!(changed, Ok(Ok(()))),
                };
            if !more {
                return Ok(Awaited {
                    reached,
                    watermark,
                    timestamp,
                    region: self.config().region,
                    waited_ms: 0,
                });
            }
        }
    }

    // When the event at `dot`, which is held here, was stamped.
    fn stamp_of(&self, dot: Dot) -> Result<Option<Timestamp>, ReadError> {
        let before = Position(dot.position.0 - 1);
        let blocks = self
            .store()
            .read_log(dot.log(), before, 1)
            .map_err(unreadable)?;
        let stamp = |block: &Block| {
            let open = block.open().ok()?;
            let mut events = open.events().filter_map(Result::ok);
            events
                .find(|event| event.dot == dot)
                .map(|event| event.timestamp)
        };
        Ok(blocks.iter().find_map(stamp))
    }
}

// Asks another region to wait, again when it cannot be reached, for as long as there is time.
async fn await_there(
    home: &Home,
    asked: AwaitSettled,
    deadline: Instant,
) -> Result<Awaited, ReadError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let request = Request::Await(AwaitSettled {
            region: None,
            wait_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            ..asked
        });
        let reason = match home.ask(&request, deadline + WAY_BACK).await {
            Ok(Response::Await(answer)) => return answer,
            Ok(_) => {
                return Err(ReadError::Invalid {
                    reason: format!(
                        "region {} runs a version that cannot wait for an event; upgrade its node",
                        home.name()
                    ),
                });
            }
            Err(RequestError::TooLong(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if Instant::now() + ASK_AGAIN_AFTER >= deadline {
            return Err(ReadError::Unavailable {
                reason: format!("region {} cannot be asked: {reason}", home.name()),
                retry_after_ms: 1000,
            });
        }
        sleep(ASK_AGAIN_AFTER).await;
    }
}

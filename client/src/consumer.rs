//! What programs ask of a consumer group, and what they are told.
//!
//! A group gives each event of its source to one of its consumers, in the one order as far as streams
//! are concerned: a later event of a stream goes out only with or after the earlier ones, and to the
//! same consumer while any of them is under way. An event that is not acknowledged in time is given out
//! again. So each event is given out at least once, and what was acknowledged never again.

use std::time::Duration;

use meridian_clock::RegionId;
use meridian_event::RecordedEvent;
use serde::{Deserialize, Serialize};

use crate::client::not_an_answer;
use crate::wire::{Request, Response};
use crate::{Client, ReadError};

/// What is asked of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsumerRequest {
    /// Give out events.
    Fetch(ConsumerFetch),
    /// These were dealt with, or not.
    Settle(ConsumerSettle),
}

/// Gives out events to one consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerFetch {
    /// The group.
    pub group: String,
    /// What the consumer calls itself; each of a group has a name of its own.
    pub consumer: String,
    /// The most events wanted.
    pub limit: u32,
    /// How long to wait for an event when there is none yet.
    pub wait_ms: u32,
}

/// Says what became of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerSettle {
    /// The group.
    pub group: String,
    /// Which, by what came with them.
    pub deliveries: Vec<String>,
    /// What became of them.
    pub verdict: Verdict,
}

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It was dealt with.
    Done,
    /// It could not be; it is given out again, until the group's attempts are used up.
    Retry {
        /// How long to wait before that, at most a minute; longer from attempt to attempt when nobody says.
        delay_ms: Option<u32>,
        /// Why, for who looks at it later.
        reason: String,
    },
    /// It never can be; it is put aside, and the stream goes on without it.
    Park {
        /// Why, for who looks at it later.
        reason: String,
    },
}

/// An event that was given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The event.
    pub event: RecordedEvent,
    /// What it is settled by.
    pub delivery: String,
    /// Which attempt this is: 1, 2, 3…
    pub attempt: u32,
}

/// Events that were given out, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deliveries {
    /// The events, possibly none.
    pub events: Vec<Delivery>,
    /// How long they are this consumer's; after that they are given out again.
    pub ack_within_ms: u32,
}

/// A delivery that could not be settled: its event is no longer the consumer's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// The delivery.
    pub delivery: String,
    /// What became of its event.
    pub reason: String,
}

/// What a group answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsumerResponse {
    /// To [`ConsumerRequest::Fetch`].
    Fetched(Deliveries),
    /// To [`ConsumerRequest::Settle`]: all are settled, durably, but these.
    Settled(Vec<Gone>),
}

/// Why a group does not do what it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ConsumerError {
    /// There is none of that name.
    #[error("there is no consumer group {group:?} here; `GET /v1/consumers` lists them")]
    NotFound {
        /// The name.
        group: String,
    },
    /// Another region serves it.
    #[error("consumer group {group:?} is served in region {name}; ask there")]
    NotHere {
        /// The group.
        group: String,
        /// The region.
        region: RegionId,
        /// Its name.
        name: String,
    },
    /// The request is wrong as it stands.
    #[error("{reason}")]
    Invalid {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// It cannot be done now. What was to be settled may be settled; say it again.
    #[error("{reason}")]
    Unavailable {
        /// Why.
        reason: String,
        /// When to try again.
        retry_after_ms: u64,
    },
}

impl From<ReadError> for ConsumerError {
    fn from(error: ReadError) -> Self {
        Self::Unavailable {
            reason: error.to_string(),
            retry_after_ms: 1000,
        }
    }
}

/// One consumer of a group.
pub struct Consumer {
    client: Client,
    group: String,
    name: String,
    // Who serves the group, once that is known.
    region: Option<RegionId>,
}

impl Consumer {
    pub(crate) fn new(client: Client, group: &str, name: &str, region: Option<RegionId>) -> Self {
        Self {
            client,
            group: group.to_owned(),
            name: name.to_owned(),
            region,
        }
    }

    /// Takes up to `limit` events; waits up to `wait` (at most 30 s) when there is none yet. They are to
    /// be dealt with in the order in which they come, and settled within the group's time.
    ///
    /// # Errors
    /// When there is no such group, or the region that serves it cannot be asked in time.
    pub async fn fetch(&mut self, limit: u32, wait: Duration) -> Result<Deliveries, ConsumerError> {
        let request = ConsumerRequest::Fetch(ConsumerFetch {
            group: self.group.clone(),
            consumer: self.name.clone(),
            limit,
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
        });
        match self.ask(request, wait).await? {
            ConsumerResponse::Fetched(deliveries) => Ok(deliveries),
            ConsumerResponse::Settled(_) => Err(something_else()),
        }
    }

    /// Says what became of events. When it returns, all of them are settled durably but those that it
    /// returns: they are no longer this consumer's.
    ///
    /// # Errors
    /// When there is no such group, or the region that serves it cannot be asked in time; say it again.
    pub async fn settle(
        &mut self,
        deliveries: Vec<String>,
        verdict: Verdict,
    ) -> Result<Vec<Gone>, ConsumerError> {
        let request = ConsumerRequest::Settle(ConsumerSettle {
            group: self.group.clone(),
            deliveries,
            verdict,
        });
        match self.ask(request, Duration::ZERO).await? {
            ConsumerResponse::Settled(gone) => Ok(gone),
            ConsumerResponse::Fetched(_) => Err(something_else()),
        }
    }

    /// Says that these were dealt with: [`Consumer::settle`] with [`Verdict::Done`].
    ///
    /// # Errors
    /// As [`Consumer::settle`].
    pub async fn ack(&mut self, deliveries: Vec<String>) -> Result<Vec<Gone>, ConsumerError> {
        self.settle(deliveries, Verdict::Done).await
    }

    async fn ask(
        &mut self,
        request: ConsumerRequest,
        wait: Duration,
    ) -> Result<ConsumerResponse, ConsumerError> {
        let request = Request::Consume(request);
        let deadline = tokio::time::Instant::now() + self.client.request_timeout() + wait;
        // Whoever is asked knows who serves the group; it may have just moved.
        for _ in 0..2 {
            let answered = self.client.read_until(&request, self.region, deadline);
            let (region, answer) = match answered.await {
                Ok((region, Response::Consume(answer))) => (region, answer),
                Ok((region, _)) => return Err(not_an_answer(region).into()),
                Err(error) => {
                    // Another region may have taken the group over.
                    self.region = None;
                    return Err(error.into());
                }
            };
            match answer {
                Err(ConsumerError::NotHere { region: other, .. }) if other != region => {
                    self.region = Some(other);
                }
                Ok(response) => {
                    self.region = Some(region);
                    return Ok(response);
                }
                Err(error) => return Err(error),
            }
        }
        Err(ConsumerError::Unavailable {
            reason: format!(
                "consumer group {:?} is just being moved between regions; try again",
                self.group
            ),
            retry_after_ms: 1000,
        })
    }
}

fn something_else() -> ConsumerError {
    ConsumerError::Unavailable {
        reason: "the node answered something else than was asked".to_owned(),
        retry_after_ms: 0,
    }
}

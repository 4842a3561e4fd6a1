//! Where a projection's events come from.

use std::ops::ControlFlow;

use meridian_clock::{OrderKey, Timestamp};
use meridian_event::EventId;

use crate::place::Place;

/// One event as a handler sees it, borrowed from where it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedEvent<'a> {
    /// Its place in the one order.
    pub key: OrderKey,
    /// Its stream.
    pub stream: &'a str,
    /// Its place in the stream.
    pub revision: u64,
    /// Its identity.
    pub id: EventId,
    /// Its type.
    pub event_type: &'a str,
    /// What happened, as it was written: JSON, as a rule.
    pub data: &'a [u8],
    /// What the writer said of it.
    pub metadata: &'a [u8],
    /// The name of the region that wrote it.
    pub region: &'a str,
}

impl FeedEvent<'_> {
    /// The part of the stream's name before the first `-`.
    pub fn category(&self) -> &str {
        self.stream.split('-').next().unwrap_or_default()
    }

    /// How much of a batch it takes up, in bytes.
    pub fn weight_bytes(&self) -> usize {
        self.data.len() + self.metadata.len() + 64
    }
}

/// Why a read came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// All that the feed's tier has now was visited. Nothing at or below this can still come.
    Settled(Timestamp),
    /// The visitor did not take an event; it comes first next time. Or there may be more than was asked
    /// for.
    Refused,
}

/// Why a feed cannot go on. It is asked again later, from the same place.
#[derive(Debug, thiserror::Error)]
#[error("the log cannot be read on: {reason}")]
pub struct FeedError {
    /// What is wrong.
    pub reason: String,
}

/// Where a projection's events come from: each one once, in the one order, or in the `live` tier in the
/// order of each origin log.
pub trait Feed: Send {
    /// The next read begins after `place`.
    fn seek(&mut self, place: &Place);

    /// Visits what the feed's tier has, in order, and nothing that `upto` does not cover.
    /// [`ControlFlow::Continue`] takes the event, [`ControlFlow::Break`] does not and ends the read.
    ///
    /// # Errors
    /// When the log cannot be read. What was taken stays taken.
    fn read(
        &mut self,
        upto: Option<&Place>,
        visit: &mut dyn FnMut(&FeedEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Reached, FeedError>;

    /// How far events were taken, or where the last [`Feed::seek`] went.
    fn place(&self) -> Place;
}

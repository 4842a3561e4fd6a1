//! Reading: a stream, what arrived, and the one order.

use std::time::Duration;

use meridian_client::{
    Direction, LivePage, LiveRead, ReadError, SettledPage, SettledRead, SettledTier, StreamPage,
    StreamRead,
};
use meridian_clock::Timestamp;
use meridian_event::Revision;
use meridian_store::StreamRange;
use tokio::time::{Instant, sleep, timeout_at};

use crate::cursor::LiveCursor;
use crate::feed::Page;
use crate::homes::{Place, being_set};
use crate::sequencer::record_coming;
use crate::{Node, live};

/// The largest page of events that is read at once.
const PAGE_EVENTS_MAX: usize = 4096;
const PAGE_BYTES_MAX: usize = 8 << 20;
/// How often a read at home looks again whether its stream has arrived.
const COMING_AGAIN: Duration = Duration::from_millis(20);
/// The longest that a live read waits for something to read.
const LIVE_WAIT_MAX: Duration = Duration::from_secs(30);

impl Node {
    /// Reads a page of one stream as it is held here.
    ///
    /// # Errors
    /// When the log cannot be read there.
    pub fn read_stream(&self, read: &StreamRead) -> Result<StreamPage, ReadError> {
        let limit = (read.limit as usize).clamp(1, PAGE_EVENTS_MAX);
        let direction = match read.direction {
            Direction::Forwards => meridian_store::Direction::Forwards,
            Direction::Backwards => meridian_store::Direction::Backwards,
        };
        let from = Revision(read.from);
        let shared = !self.homes().has_home(&read.stream);
        // One more than asked tells whether there is more.
        let range = StreamRange {
            from,
            direction,
            limit: limit + 1,
            bytes_max: PAGE_BYTES_MAX,
            in_turn: !shared,
        };
        let mut events = self
            .store()
            .read_stream(&read.stream, range)
            .map_err(unreadable)?;
        // A page cut short by its bytes may claim more than there is; the next one is then empty.
        let cut_at = PAGE_BYTES_MAX.saturating_sub(self.config().limits.event_bytes_max);
        let more = events.len() > limit || bytes_of(&events) > cut_at;
        events.truncate(limit);
        let (first, count) = (read.from, events.len() as u64);
        let next = match (read.direction, events.last()) {
            // Forwards there is always a next one, be it not written yet.
            (Direction::Forwards, None) => Some(first),
            // Streams of several writers are counted, not numbered.
            (Direction::Forwards, Some(_)) if shared => Some(first + count),
            (Direction::Forwards, Some(last)) => Some(last.revision.0 + 1),
            (Direction::Backwards, Some(_)) if more && shared => first.checked_sub(count),
            (Direction::Backwards, Some(last)) if more => last.revision.0.checked_sub(1),
            (Direction::Backwards, _) => None,
        };
        Ok(StreamPage {
            end: !more || next.is_none(),
            events,
            next,
        })
    }

    /// Reads a page of one stream, if its home is here; waits until `deadline` while it is being moved
    /// here. Nothing that was answered before is missing.
    ///
    /// # Errors
    /// [`ReadError::NotHome`] when it is elsewhere, or as [`Node::read_stream`].
    pub(crate) async fn read_at_home(
        &self,
        read: &StreamRead,
        deadline: Instant,
    ) -> Result<StreamPage, ReadError> {
        loop {
            let federation = self.homes().federation();
            match self
                .homes()
                .place(&federation, &read.stream)
                .map_err(unreadable)?
            {
                Place::Anywhere | Place::Here { .. } => {
                    // A node that may have lost something is not the one to ask.
                    self.can_order().map_err(|reason| ReadError::Unavailable {
                        reason,
                        retry_after_ms: 1000,
                    })?;
                    let page = self.read_stream(read)?;
                    // What it shows, and that it shows no more, must stand whoever is home next.
                    let dots = page.events.iter().map(|event| event.dot);
                    let vouched = self.appends().vouch(&read.stream, dots, deadline).await;
                    return match vouched {
                        Ok(()) => Ok(page),
                        Err(reason) => Err(ReadError::Unavailable {
                            reason,
                            retry_after_ms: 1000,
                        }),
                    };
                }
                Place::Elsewhere { home, .. } => return Err(ReadError::NotHome { home }),
                Place::New => match self.home_of_new(&read.stream, deadline).await? {
                    // There is nothing in it.
                    None => return self.read_stream(read),
                    Some(home) if home != self.config().region => {
                        return Err(ReadError::NotHome { home });
                    }
                    Some(_) if Instant::now() + COMING_AGAIN >= deadline => {
                        return Err(ReadError::Unavailable {
                            reason: record_coming(&read.stream),
                            retry_after_ms: 1000,
                        });
                    }
                    Some(_) => sleep(COMING_AGAIN).await,
                },
                place @ (Place::Coming { .. } | Place::Undecided) => {
                    if Instant::now() + COMING_AGAIN >= deadline {
                        let reason = match place {
                            Place::Coming { from } => {
                                format!("the stream is being moved here from region {from}")
                            }
                            _ => being_set(&read.stream),
                        };
                        return Err(ReadError::Unavailable {
                            reason,
                            retry_after_ms: 1000,
                        });
                    }
                    sleep(COMING_AGAIN).await;
                }
            }
        }
    }

    /// Reads a page of the live tier; waits up to `read.wait_ms` when there is nothing yet.
    ///
    /// # Errors
    /// When the cursor is not one of ours, or the log cannot be read.
    pub async fn read_live(&self, read: &LiveRead) -> Result<LivePage, ReadError> {
        let mut after = self.read_cursor(&read.after)?;
        let limit = (read.limit as usize).clamp(1, PAGE_EVENTS_MAX);
        let wait = Duration::from_millis(u64::from(read.wait_ms)).min(LIVE_WAIT_MAX);
        let deadline = Instant::now() + wait;
        let mut committed = self.store().committed();
        loop {
            committed.borrow_and_update();
            let page =
                live::read_live(self.store(), after, &read.filter, limit).map_err(unreadable)?;
            if !page.events.is_empty() || !page.at_end {
                return Ok(page.sealed(self.cursors()));
            }
            after = page.cursor;
            let more = tokio::select! {
                biased;
                () = self.doors().cancelled() => false,
                changed = timeout_at(deadline, committed.changed()) => {
                    matches!(changed, Ok(Ok(())))
                }
            };
            if !more {
                return Ok(page.sealed(self.cursors()));
            }
        }
    }

    /// As [`Node::read_live`], without waiting.
    ///
    /// # Errors
    /// When the cursor is not one of ours, or the log cannot be read.
    pub fn read_live_now(&self, read: &LiveRead) -> Result<LivePage, ReadError> {
        let after = self.read_cursor(&read.after)?;
        let limit = (read.limit as usize).clamp(1, PAGE_EVENTS_MAX);
        let page = live::read_live(self.store(), after, &read.filter, limit).map_err(unreadable)?;
        Ok(page.sealed(self.cursors()))
    }

    pub(crate) fn read_cursor(
        &self,
        cursor: &meridian_client::LiveCursor,
    ) -> Result<LiveCursor, ReadError> {
        let place = self.cursors().read(&cursor.0);
        place.map_err(|error| ReadError::Invalid {
            reason: error.to_string(),
        })
    }

    /// Reads a page of the one order; waits up to `read.wait_ms` when nothing more is settled yet.
    ///
    /// # Errors
    /// When the log cannot be read there.
    pub async fn read_settled(&self, read: &SettledRead) -> Result<SettledPage, ReadError> {
        let wait = Duration::from_millis(u64::from(read.wait_ms)).min(LIVE_WAIT_MAX);
        let deadline = Instant::now() + wait;
        let mut marks = self.marks();
        let mut read = read.clone();
        loop {
            marks.borrow_and_update();
            let page = self.read_settled_now(&read)?;
            if !page.events.is_empty() || !page.at_end {
                return Ok(page);
            }
            read.after = page.cursor;
            let more = tokio::select! {
                biased;
                () = self.doors().cancelled() => false,
                changed = timeout_at(deadline, marks.changed()) => matches!(changed, Ok(Ok(()))),
            };
            if !more {
                return Ok(page);
            }
        }
    }

    /// As [`Node::read_settled`], without waiting.
    ///
    /// # Errors
    /// When the log cannot be read there.
    pub fn read_settled_now(&self, read: &SettledRead) -> Result<SettledPage, ReadError> {
        let limit = (read.limit as usize).clamp(1, PAGE_EVENTS_MAX);
        let until = self.watermark(read.tier);
        let page = self.feeds().read(read.after, until, &read.filter, limit)?;
        Ok(page.into())
    }

    /// The region that a tier waits for.
    pub(crate) fn holding_back(&self, tier: SettledTier) -> String {
        let partitions = self.links().watermarks().into_iter();
        let lowest = match tier {
            SettledTier::Stable => partitions
                .min_by_key(|marks| marks.stable)
                .map(|marks| marks.stable_held_by),
            SettledTier::Final => partitions
                .min_by_key(|marks| marks.finals)
                .map(|marks| marks.finals_held_by),
        };
        lowest.map_or(String::new(), |holder| self.names().of(holder.region))
    }

    /// Up to where a tier is settled now.
    pub fn watermark(&self, tier: SettledTier) -> Timestamp {
        settled(&self.marks().borrow(), tier)
    }
}

fn settled(marks: &meridian_replication::link::Marks, tier: SettledTier) -> Timestamp {
    match tier {
        SettledTier::Stable => marks.stable(),
        SettledTier::Final => marks.finals(),
    }
}

impl From<Page> for SettledPage {
    fn from(page: Page) -> Self {
        Self {
            events: page.events,
            cursor: page.cursor,
            watermark: page.watermark,
            at_end: page.at_end,
        }
    }
}

pub(crate) fn bytes_of(events: &[meridian_event::RecordedEvent]) -> usize {
    events
        .iter()
        .map(|event| event.data.len() + event.metadata.len())
        .sum()
}

pub(crate) fn unreadable(error: meridian_store::ReadError) -> ReadError {
    ReadError::Unavailable {
        reason: error.to_string(),
        retry_after_ms: 1000,
    }
}

//! Reading on and on: a stream to its end, a region's events without end.

use meridian_clock::{OrderKey, RegionId};

use crate::{
    Client, LiveCursor, LivePage, LiveRead, ReadAt, ReadError, SettledPage, SettledRead,
    StreamPage, StreamRead,
};

/// Reads a stream page by page.
pub struct StreamReader {
    client: Client,
    /// What to ask for next; `None` at the end.
    next: Option<StreamRead>,
    at: ReadAt,
}

impl StreamReader {
    pub(crate) fn new(client: Client, read: StreamRead, at: ReadAt) -> Self {
        Self {
            client,
            next: Some(read),
            at,
        }
    }

    /// The next page; `None` at the end.
    ///
    /// # Errors
    /// When it cannot be read in time. Asking again asks for the same page.
    pub async fn next_page(&mut self) -> Result<Option<StreamPage>, ReadError> {
        loop {
            let Some(read) = &self.next else {
                return Ok(None);
            };
            let page = self.client.read_stream(read.clone(), self.at).await?;
            let onwards = page.next.filter(|_| !page.end);
            self.next = match onwards {
                Some(from) if from == read.from => return Err(stuck(from)),
                Some(from) => Some(StreamRead {
                    from,
                    ..read.clone()
                }),
                None => None,
            };
            if !page.events.is_empty() {
                return Ok(Some(page));
            }
        }
    }
}

fn stuck(from: u64) -> ReadError {
    ReadError::Invalid {
        reason: format!("the node answered a page that does not move on from {from}; upgrade it"),
    }
}

/// Follows one region's events across reconnects.
pub struct LiveReader {
    client: Client,
    read: LiveRead,
    at: Option<RegionId>,
}

/// How long one request waits at the node when the caller did not say. Longer waits only save
/// requests; a lost connection is noticed within seconds anyway.
const WAIT_MS: u32 = 10_000;

impl LiveReader {
    pub(crate) fn new(client: Client, read: LiveRead, at: Option<RegionId>) -> Self {
        let wait_ms = if read.wait_ms == 0 {
            WAIT_MS
        } else {
            read.wait_ms
        };
        Self {
            client,
            read: LiveRead { wait_ms, ..read },
            at,
        }
    }

    /// The next page that holds an event; waits for one.
    ///
    /// # Errors
    /// When the region could not be reached for as long as a request may take. Asking again goes on
    /// where it stopped.
    pub async fn next_page(&mut self) -> Result<LivePage, ReadError> {
        loop {
            let (region, page) = self.client.read_live(&self.read, self.at).await?;
            // The cursor counts in that region's order of arrival and means nothing elsewhere.
            self.at = Some(region);
            self.read.after = page.cursor.clone();
            if !page.events.is_empty() {
                return Ok(page);
            }
        }
    }

    /// Where to go on from, for a reader that is made later.
    pub fn cursor(&self) -> &LiveCursor {
        &self.read.after
    }

    /// The region that is followed, once it is known.
    pub fn region(&self) -> Option<RegionId> {
        self.at
    }
}

/// Follows the one order, across reconnects and regions.
pub struct SettledReader {
    client: Client,
    read: SettledRead,
    at: Option<RegionId>,
}

impl SettledReader {
    pub(crate) fn new(client: Client, read: SettledRead, at: Option<RegionId>) -> Self {
        let wait_ms = if read.wait_ms == 0 {
            WAIT_MS
        } else {
            read.wait_ms
        };
        Self {
            client,
            read: SettledRead { wait_ms, ..read },
            at,
        }
    }

    /// The next page that holds an event; waits for one to be settled, for as long as a member that
    /// is away holds the watermark back.
    ///
    /// # Errors
    /// When no region could be reached for as long as a request may take. Asking again goes on where
    /// it stopped.
    pub async fn next_page(&mut self) -> Result<SettledPage, ReadError> {
        loop {
            let page = self.client.read_settled(&self.read, self.at).await?;
            self.read.after = page.cursor;
            if !page.events.is_empty() {
                return Ok(page);
            }
        }
    }

    /// Where to go on from, in whichever region, for a reader that is made later.
    pub fn cursor(&self) -> OrderKey {
        self.read.after
    }
}

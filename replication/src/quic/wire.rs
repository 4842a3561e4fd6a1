//! Messages on QUIC streams.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use meridian_event::frame::{FRAME_HEADER_BYTES, FrameError, FrameHeader};
use quinn::{RecvStream, SendStream, WriteError};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::frame::Message;

// Small enough that a block waiting for the disk does not keep much else in memory.
const READ_BYTES: usize = 16 << 10;

/// Why a stream cannot be used any further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// What came is not what we speak.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A message that has no place here.
    #[error("a {found} message where {expected} was expected")]
    Unexpected {
        expected: &'static str,
        found: &'static str,
    },
    /// It ended in the middle of a message, or where one was expected.
    #[error("the peer ended the stream early")]
    Ended,
    /// The connection or the stream broke.
    #[error("the stream broke: {0}")]
    Read(#[from] io::Error),
    /// The connection or the stream broke.
    #[error("the stream broke: {0}")]
    Write(#[from] WriteError),
    /// Nothing moved for too long.
    #[error("nothing moved for {} ms", within.as_millis())]
    TimedOut { within: Duration },
}

impl WireError {
    /// Whether the peer, rather than the network, is to blame.
    pub(crate) fn is_violation(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Unexpected { .. })
    }
}

/// Reads messages. Dropping a pending read loses nothing.
#[derive(Debug)]
pub(crate) struct MessageReader {
    stream: RecvStream,
    buffer: BytesMut,
}

impl MessageReader {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// The next message; `None` when the peer finished the stream after the last one.
    pub(crate) async fn read(&mut self) -> Result<Option<Message>, WireError> {
        loop {
            let needed_bytes = match self.buffer.first_chunk::<FRAME_HEADER_BYTES>() {
                None => FRAME_HEADER_BYTES,
                Some(header) => {
                    let header = FrameHeader::parse(header)?;
                    let frame_bytes = FRAME_HEADER_BYTES + header.body_bytes;
                    if self.buffer.len() >= frame_bytes {
                        let frame = self.buffer.split_to(frame_bytes).freeze();
                        let body = frame.slice(FRAME_HEADER_BYTES..);
                        header.check(&body)?;
                        return Ok(Some(Message::decode(header.kind, &body)?));
                    }
                    frame_bytes
                }
            };
            let missing_bytes = needed_bytes - self.buffer.len();
            self.buffer.reserve(missing_bytes.max(READ_BYTES));
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(WireError::Ended)
                };
            }
        }
    }

    /// The next message, which must come within `within`.
    pub(crate) async fn expect(&mut self, within: Duration) -> Result<Message, WireError> {
        timeout(within, self.read())
            .await
            .map_err(|_| WireError::TimedOut { within })??
            .ok_or(WireError::Ended)
    }
}

/// Writes messages; gives up when nothing moves for `stuck`.
#[derive(Debug)]
pub(crate) struct MessageWriter {
    stream: SendStream,
    stuck: Duration,
}

impl MessageWriter {
    pub(crate) fn new(stream: SendStream, stuck: Duration) -> Self {
        Self { stream, stuck }
    }

    /// Sends this stream's data before that of others. The stream may be gone already; whoever
    /// writes to it next will notice.
    pub(crate) fn prefer(&self) {
        let _ = self.stream.set_priority(1);
    }

    pub(crate) async fn write(&mut self, message: &Message) -> Result<(), WireError> {
        let mut rest = [Bytes::from(message.encode())];
        // Piece by piece, so that a large block on a slow line is not mistaken for a stuck peer.
        while !rest[0].is_empty() {
            let within = self.stuck;
            timeout(within, self.stream.write_chunks(&mut rest))
                .await
                .map_err(|_| WireError::TimedOut { within })??;
        }
        Ok(())
    }

    /// Says that nothing more comes and waits, briefly, until the peer has it all.
    pub(crate) async fn finish(mut self) {
        if self.stream.finish().is_ok() {
            let _ = timeout(Duration::from_secs(1), self.stream.stopped()).await;
        }
    }
}

pub(crate) fn unexpected(expected: &'static str, found: &Message) -> WireError {
    WireError::Unexpected {
        expected,
        found: found.name(),
    }
}

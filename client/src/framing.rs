//! Frames off a QUIC stream.

use bytes::{Buf, Bytes, BytesMut};
use meridian_event::frame::{FRAME_HEADER_BYTES, FrameError, FrameHeader};

/// Why no more frames can be read from a stream.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum FrameReadError {
    /// The connection or the stream is gone.
    #[error("the stream cannot be read any further")]
    Stream(#[from] quinn::ReadError),
    /// What arrives are no frames of ours.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    CutShort,
}

/// Reads frames from one stream.
pub(crate) struct FrameReader {
    stream: quinn::RecvStream,
    buffer: BytesMut,
    /// Of the frame at the start of the buffer, once it is there.
    header: Option<FrameHeader>,
}

// What is asked of quinn at a time; it hands out what it has, usually a packet's worth.
const READ_BYTES: usize = 256 << 10;

impl FrameReader {
    pub(crate) fn new(stream: quinn::RecvStream) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            header: None,
        }
    }

    /// The next frame's kind and body; `None` at the end of the stream. Safe to cancel: nothing that
    /// was received is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<(u8, Bytes)>, FrameReadError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            match self.stream.read_chunk(READ_BYTES, true).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None if self.buffer.is_empty() && self.header.is_none() => return Ok(None),
                None => return Err(FrameReadError::CutShort),
            }
        }
    }

    /// The next frame, if all of it has been received.
    fn buffered(&mut self) -> Result<Option<(u8, Bytes)>, FrameError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                let Some(bytes) = self.buffer.first_chunk::<FRAME_HEADER_BYTES>() else {
                    return Ok(None);
                };
                let header = FrameHeader::parse(bytes)?;
                self.buffer.advance(FRAME_HEADER_BYTES);
                *self.header.insert(header)
            }
        };
        if self.buffer.len() < header.body_bytes {
            return Ok(None);
        }
        self.header = None;
        let body = self.buffer.split_to(header.body_bytes).freeze();
        header.check(&body)?;
        Ok(Some((header.kind, body)))
    }
}

//! The envelope of every message between nodes and from clients.
//!
//! A frame is a fixed 16-byte header and a body. The header stands outside the body's encoding and
//! carries the format version, so that old and new nodes can at least tell each other apart:
//!
//! ```text
//! 0  magic "MRDF"        4
//! 4  format version      1   this module writes 1
//! 5  kind                1   what the body is; numbers belong to the protocol that uses them
//! 6  flags               2   zero; reserved
//! 8  body length         4   little-endian
//! 12 crc32c              4   of bytes 0..12 and the body
//! 16 body
//! ```

use serde::{Serialize, de::DeserializeOwned};

use crate::crc32c;

/// The length of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 16;
/// The largest body: one block at its largest, and its surroundings.
pub const FRAME_BODY_BYTES_MAX: usize = 24 << 20;
/// The format version that this build writes, and the highest that it reads.
pub const FRAME_VERSION: u8 = 1;

const MAGIC: [u8; 4] = *b"MRDF";
const _: () = assert!(
    crate::block::BLOCK_BYTES_MAX + 4096 <= FRAME_BODY_BYTES_MAX,
    "a block always fits in one frame, so that no receiver has to keep half a block"
);

/// A frame's header, checked as far as it can be without the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the body is.
    pub kind: u8,
    /// How long the body is.
    pub body_bytes: usize,
    crc: u32,
    checked: [u8; 12],
}

/// Why bytes are not a frame. The stream they came on cannot be read any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Something else is talking to this port.
    #[error(
        "not a Meridian frame: it begins with {found:02x?}; check what is connected to this port"
    )]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The other end is newer than we are.
    #[error(
        "frame format {found} is newer than {FRAME_VERSION}, the newest read here; upgrade this node"
    )]
    NewerVersion {
        /// The version it has.
        found: u8,
    },
    /// The length cannot be right.
    #[error("a frame body of {found_bytes} bytes is over the limit of {FRAME_BODY_BYTES_MAX}")]
    TooLong {
        /// The length it claims.
        found_bytes: usize,
    },
    /// Bytes changed on the way.
    #[error(
        "a frame of kind {kind} fails its checksum; it was damaged on the way or by its sender"
    )]
    Checksum {
        /// The kind it claims.
        kind: u8,
    },
    /// The body does not parse.
    #[error("a frame of kind {kind} has a body that does not parse: {reason}")]
    Body {
        /// Its kind.
        kind: u8,
        /// What the decoder said.
        reason: String,
    },
    /// A kind that this protocol does not have.
    #[error("a frame of unknown kind {kind}; the peer may be newer than this node")]
    UnknownKind {
        /// Its kind.
        kind: u8,
    },
}

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// When the bytes are no header, of a newer version, or claim an impossible length.
    pub fn parse(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Self, FrameError> {
        let [
            m0,
            m1,
            m2,
            m3,
            version,
            kind,
            _,
            _,
            l0,
            l1,
            l2,
            l3,
            c0,
            c1,
            c2,
            c3,
        ] = *bytes;
        let magic = [m0, m1, m2, m3];
        if magic != MAGIC {
            return Err(FrameError::Magic { found: magic });
        }
        if version > FRAME_VERSION {
            return Err(FrameError::NewerVersion { found: version });
        }
        let body_bytes = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if body_bytes > FRAME_BODY_BYTES_MAX {
            return Err(FrameError::TooLong {
                found_bytes: body_bytes,
            });
        }
        let crc = u32::from_le_bytes([c0, c1, c2, c3]);
        let checked = [
            m0, m1, m2, m3, version, kind, bytes[6], bytes[7], l0, l1, l2, l3,
        ];
        Ok(Self {
            kind,
            body_bytes,
            crc,
            checked,
        })
    }

    /// Checks `body`, which followed this header, against the checksum.
    ///
    /// # Errors
    /// When the length or the checksum is wrong.
    pub fn check(&self, body: &[u8]) -> Result<(), FrameError> {
        let crc = crc32c(&[&self.checked, body]);
        if body.len() == self.body_bytes && crc == self.crc {
            Ok(())
        } else {
            Err(FrameError::Checksum { kind: self.kind })
        }
    }
}

/// A whole frame around `body`.
///
/// # Panics
/// When the body is longer than [`FRAME_BODY_BYTES_MAX`], which no message of ours is.
pub fn encode(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
    encode_into(&mut frame, kind, body);
    frame
}

/// Appends a whole frame around `body` to `out`; see [`encode`].
///
/// # Panics
/// When the body is longer than [`FRAME_BODY_BYTES_MAX`].
pub fn encode_into(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    assert!(
        body.len() <= FRAME_BODY_BYTES_MAX,
        "a frame body of {} bytes",
        body.len()
    );
    let start = out.len();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[FRAME_VERSION, kind, 0, 0]);
    out.extend_from_slice(&length.to_le_bytes());
    let crc = crc32c(&[&out[start..], body]);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(body);
}

/// Splits the first whole frame off `bytes`: its kind, its body, and how many bytes it took.
/// `None` when more bytes are needed.
///
/// # Errors
/// When the bytes cannot be a frame.
pub fn split(bytes: &[u8]) -> Result<Option<(u8, &[u8], usize)>, FrameError> {
    let Some(header) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
        return Ok(None);
    };
    let header = FrameHeader::parse(header)?;
    let end = FRAME_HEADER_BYTES + header.body_bytes;
    let Some(body) = bytes.get(FRAME_HEADER_BYTES..end) else {
        return Ok(None);
    };
    header.check(body)?;
    Ok(Some((header.kind, body, end)))
}

/// A frame whose body is `message` in postcard.
///
/// # Panics
/// When the message cannot be encoded, which none of our types are.
pub fn encode_message<M: Serialize>(kind: u8, message: &M) -> Vec<u8> {
    let body = postcard::to_stdvec(message).expect("our messages always encode");
    encode(kind, &body)
}

/// Reads a body that [`encode_message`] wrote.
///
/// # Errors
/// When it does not parse as an `M`, or has bytes left over.
pub fn decode_message<M: DeserializeOwned>(kind: u8, body: &[u8]) -> Result<M, FrameError> {
    let fail = |reason: String| FrameError::Body { kind, reason };
    match postcard::take_from_bytes::<M>(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(fail(format!("{} bytes are left over", rest.len()))),
        Err(error) => Err(fail(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_of_a_newer_version_says_so() {
        let mut frame = encode(7, b"body");
        frame[4] = FRAME_VERSION + 1;
        assert_eq!(
            split(&frame),
            Err(FrameError::NewerVersion {
                found: FRAME_VERSION + 1
            })
        );
    }

    #[test]
    fn something_that_is_no_frame_is_named() {
        assert!(matches!(
            split(b"GET / HTTP/1.1\r\n"),
            Err(FrameError::Magic { .. })
        ));
    }

    #[test]
    fn left_over_bytes_are_refused() {
        let mut body = postcard::to_stdvec(&7u32).expect("a number encodes");
        body.push(0);
        assert!(matches!(
            decode_message::<u32>(1, &body),
            Err(FrameError::Body { .. })
        ));
    }

    proptest! {
        #[test]
        fn frames_survive_the_round_trip(kind: u8, body in prop::collection::vec(any::<u8>(), 0..600)) {
            let frame = encode(kind, &body);
            prop_assert_eq!(split(&frame), Ok(Some((kind, &body[..], frame.len()))));
            for end in 0..frame.len() {
                prop_assert_eq!(split(&frame[..end]), Ok(None));
            }
        }

        #[test]
        fn one_flipped_bit_is_noticed(
            body in prop::collection::vec(any::<u8>(), 0..300),
            place: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let mut frame = encode(3, &body);
            let place = place.index(frame.len());
            frame[place] ^= 1 << bit;
            // A longer claimed length waits for more; everything else is an error.
            let outcome = split(&frame);
            prop_assert!(matches!(outcome, Err(_) | Ok(None)), "{:?}", outcome);
        }
    }
}

//! A state as bytes, for snapshots: a version, a checksum, and what is left when all that depends on the order of
//! arrival is taken out.
//!
//! ```text
//! 0  u8       version, 1
//! 1  u32      crc32c of what follows, little-endian
//! 5  postcard the clock, the operations that wait, and the fold's own image
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::bounded::Stock;
use super::counter::{Counter, Growing};
use super::dot::{Actor, OpDot, Seen};
use super::element::Element;
use super::lww::Cells;
use super::map::ObservedMap;
use super::register::{Register, RegisterImage};
use super::set::{GrowingSet, ObservedSet, ObservedSetImage};
use super::{Applied, Body, State};

/// The version that is written.
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 5;

/// Why bytes are no state. A state is derived: fold its stream again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Cut off before its header ends.
    #[error("a state of {actual_bytes} bytes is cut off; fold the stream again")]
    Short {
        /// How long it is.
        actual_bytes: usize,
    },
    /// Written by another version of this program.
    #[error("a state of version {version} cannot be read, only {VERSION}; fold the stream again")]
    Version {
        /// The version.
        version: u8,
    },
    /// Not the bytes that were written.
    #[error("a state does not match its checksum; fold the stream again")]
    Checksum,
    /// It matches its checksum and is no state, or one that is not spelled as we spell it.
    #[error("a state does not parse; fold the stream again")]
    Malformed,
}

#[derive(Serialize, Deserialize)]
struct Image<'a> {
    seen: Cow<'a, Seen>,
    waiting: Vec<Cow<'a, Applied>>,
    body: BodyImage<'a>,
}

/// The order of variants is part of the format.
#[derive(Serialize, Deserialize)]
enum BodyImage<'a> {
    GCounter(Vec<(Actor, u64)>),
    PnCounter(Vec<(Actor, u64, u64)>),
    GSet(Vec<Element>),
    OrSet(ObservedSetImage),
    MvRegister(RegisterImage),
    OrMap(Cow<'a, ObservedMap>),
    BoundedCounter(Cow<'a, Stock>),
    Document(Cow<'a, Cells>),
    Fields(Cow<'a, Cells>),
}

impl State {
    /// Everything, as bytes: equal for equal operations and equal garbage collection, whatever the order of arrival.
    pub fn encode(&self) -> Vec<u8> {
        let seen = &self.seen;
        let body = match &self.body {
            Body::GCounter(counter) => BodyImage::GCounter(counter.image(seen)),
            Body::PnCounter(counter) => BodyImage::PnCounter(counter.image(seen)),
            Body::GSet(set) => BodyImage::GSet(set.image()),
            Body::OrSet(set) => BodyImage::OrSet(set.image(seen)),
            Body::MvRegister(register) => BodyImage::MvRegister(register.image(seen)),
            Body::OrMap(map) => BodyImage::OrMap(Cow::Owned(map.image(seen))),
            Body::BoundedCounter(stock) => BodyImage::BoundedCounter(Cow::Borrowed(stock)),
            Body::Document(cells) => BodyImage::Document(Cow::Borrowed(cells)),
            Body::Fields(cells) => BodyImage::Fields(Cow::Borrowed(cells)),
        };
        let image = Image {
            seen: Cow::Borrowed(seen),
            waiting: self.waiting.values().map(Cow::Borrowed).collect(),
            body,
        };
        let header = vec![0; HEADER_BYTES];
        let mut bytes = postcard::to_extend(&image, header).expect("a state always encodes");
        let checksum = meridian_event::crc32c(&[&bytes[HEADER_BYTES..]]);
        bytes[0] = VERSION;
        bytes[1..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads what [`State::encode`] wrote.
    ///
    /// Takes memory in proportion to `bytes`, whatever they say.
    ///
    /// # Errors
    /// When they are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let actual_bytes = bytes.len();
        let (header, body) = bytes
            .split_at_checked(HEADER_BYTES)
            .ok_or(DecodeError::Short { actual_bytes })?;
        if header[0] != VERSION {
            let version = header[0];
            return Err(DecodeError::Version { version });
        }
        if header[1..] != meridian_event::crc32c(&[body]).to_le_bytes() {
            return Err(DecodeError::Checksum);
        }
        let image = postcard::from_bytes(body).map_err(|_| DecodeError::Malformed)?;
        let state = Self::of_image(image).ok_or(DecodeError::Malformed)?;
        // What is sorted otherwise, said twice or left over at the end would make equal states look different.
        match state.encode() == bytes {
            true => Ok(state),
            false => Err(DecodeError::Malformed),
        }
    }

    fn of_image(image: Image<'_>) -> Option<Self> {
        let seen = image.seen.into_owned();
        if !seen.is_canonical() {
            return None;
        }
        let waiting = image.waiting.into_iter().map(|applied| {
            let applied = applied.into_owned();
            (applied.dot, applied)
        });
        let waiting: BTreeMap<OpDot, Applied> = waiting.collect();
        // One that is next would have been applied.
        let waits = |dot: &OpDot| dot.counter > 0 && dot.counter - 1 > seen.get(dot.actor);
        if !waiting.keys().all(waits) {
            return None;
        }
        let body = match image.body {
            BodyImage::GCounter(sums) => Body::GCounter(Growing::of_image(sums)),
            BodyImage::PnCounter(sums) => Body::PnCounter(Counter::of_image(sums)),
            BodyImage::GSet(elements) => Body::GSet(GrowingSet::of_image(&elements)),
            BodyImage::OrSet(image) => Body::OrSet(ObservedSet::of_image(image, &seen)?),
            BodyImage::MvRegister(image) => Body::MvRegister(Register::of_image(image)),
            BodyImage::OrMap(map) => Body::OrMap(ObservedMap::of_image(map.into_owned())?),
            BodyImage::BoundedCounter(stock) => Body::BoundedCounter(stock.into_owned()),
            BodyImage::Document(cells) => {
                Body::Document(Cells::of_image(cells.into_owned(), &seen)?)
            }
            BodyImage::Fields(cells) => Body::Fields(Cells::of_image(cells.into_owned(), &seen)?),
        };
        let waiting_bytes = waiting.values().map(Applied::weight_bytes).sum();
        Some(Self {
            seen,
            waiting,
            waiting_bytes,
            body,
        })
    }
}

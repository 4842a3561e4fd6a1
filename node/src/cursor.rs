//! Cursors of the live tier: places in one node's order of arrival, sealed.
//!
//! A place is good only in the data folder that it was given out for: another region, and the same
//! region after it lost its disk, has another order of arrival. Followed there, it would lose or
//! repeat events without a word, and one that points into the middle of a block would look like
//! damage. So a cursor carries the region's name and a seal that only its folder can make.

use meridian_store::LogOffset;

/// A place in this node's arrival order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LiveCursor {
    /// The block to go on in.
    pub(crate) block: LogOffset,
    /// How many of its events were read.
    pub(crate) events_read: u32,
}

/// Why a text is no cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CursorError {
    /// Another region gave it.
    #[error(
        "the cursor {text:?} is good in region {region} only, and this is {here}; read on there, \
         or leave it out to begin here"
    )]
    Elsewhere {
        /// The cursor.
        text: String,
        /// Who gave it.
        region: String,
        /// Who we are.
        here: String,
    },
    /// Nobody gave it, or this region did before it lost its data folder.
    #[error(
        "{text:?} is not a cursor of this node's data; use one that it gave, or none to begin at \
         the beginning"
    )]
    Unknown {
        /// What should have been a cursor.
        text: String,
    },
}

/// What a node writes cursors with, and knows its own by.
pub(crate) struct CursorSeal {
    region: String,
    key: [u8; 32],
}

impl CursorSeal {
    /// The seal of the data folder that keeps `secret`, in `region`.
    pub(crate) fn new(region: &str, secret: &[u8; 32]) -> Self {
        Self {
            region: region.to_owned(),
            key: blake3::derive_key("meridian 2026-11 live cursor", secret),
        }
    }

    /// `cursor` as readers see it.
    pub(crate) fn write(&self, cursor: LiveCursor) -> String {
        let LiveCursor { block, events_read } = cursor;
        let mut hash = blake3::Hasher::new_keyed(&self.key);
        hash.update(&block.segment.to_le_bytes());
        hash.update(&block.offset.to_le_bytes());
        hash.update(&events_read.to_le_bytes());
        let seal = hash.finalize();
        let [a, b, c, d, ..] = *seal.as_bytes();
        let seal = u32::from_be_bytes([a, b, c, d]);
        format!(
            "{}:{}.{}.{events_read}.{seal:08x}",
            self.region, block.segment, block.offset
        )
    }

    /// The place that `text` stands for: the beginning when it is empty.
    ///
    /// # Errors
    /// When it was given by somebody else, or by nobody.
    pub(crate) fn read(&self, text: &str) -> Result<LiveCursor, CursorError> {
        if text.is_empty() {
            return Ok(LiveCursor::default());
        }
        // What is read back is written again and compared: numbers have one spelling only.
        let cursor = self
            .place(text)
            .filter(|cursor| self.write(*cursor) == text);
        cursor.ok_or_else(|| {
            let text = text.to_owned();
            match text.rsplit_once(':') {
                Some((region, _)) if region != self.region => CursorError::Elsewhere {
                    region: region.to_owned(),
                    here: self.region.clone(),
                    text,
                },
                _ => CursorError::Unknown { text },
            }
        })
    }

    fn place(&self, text: &str) -> Option<LiveCursor> {
        let place = text.strip_prefix(&self.region)?.strip_prefix(':')?;
        let mut parts = place.split('.');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let block = LogOffset {
            segment: number()?,
            offset: number()?,
        };
        let events_read = u32::try_from(number()?).ok()?;
        Some(LiveCursor { block, events_read })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURSOR: LiveCursor = LiveCursor {
        block: LogOffset {
            segment: 3,
            offset: 4096,
        },
        events_read: 7,
    };

    #[test]
    fn a_cursor_survives_being_written_down() {
        let seal = CursorSeal::new("us-east", &[1; 32]);
        assert_eq!(seal.read(&seal.write(CURSOR)), Ok(CURSOR));
        assert_eq!(seal.read(""), Ok(LiveCursor::default()));
    }

    #[test]
    fn what_was_not_given_is_refused() {
        let seal = CursorSeal::new("us-east", &[1; 32]);
        let text = seal.write(CURSOR);
        let (place, _) = text.rsplit_once('.').expect("it ends with its seal");
        let bad = [
            place.to_owned(),
            format!("{text}.1"),
            text.replace("4096", "4104"),
            text.replace("3.", "03."),
            text.to_uppercase(),
            "us-east:".to_owned(),
            "us-east:1.2".to_owned(),
            "us-east:-1.2.3.00000000".to_owned(),
            "7".to_owned(),
        ];
        for text in bad {
            assert!(seal.read(&text).is_err(), "{text:?} was taken for a cursor");
        }
    }

    #[test]
    fn a_cursor_is_good_in_its_own_folder_only() {
        let seal = CursorSeal::new("us-east", &[1; 32]);
        let elsewhere = CursorSeal::new("eu-west", &[2; 32]).write(CURSOR);
        assert!(matches!(
            seal.read(&elsewhere),
            Err(CursorError::Elsewhere { region, .. }) if region == "eu-west"
        ));
        let before = CursorSeal::new("us-east", &[3; 32]).write(CURSOR);
        assert!(matches!(
            seal.read(&before),
            Err(CursorError::Unknown { .. })
        ));
    }
}

//! What a session's token holds, and the seal that keeps it honest.
//!
//! A token is a claim that certain events exist. Whoever could make one up could make every region
//! wait for events that nobody wrote, so it carries a checksum that only the federation's nodes can
//! make. Layout in `docs/format.md`.

use data_encoding::BASE64URL_NOPAD;
use meridian_client::{Appended, SessionToken};
use meridian_clock::{Timestamp, VersionVector};
use meridian_event::RecordedEvent;
use meridian_projection::Place;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The version of the layout that this build writes, and the only one it reads.
const VERSION: u8 = 1;
/// What newer nodes may write; beyond, a text is no token at all.
const VERSIONS_TO_COME: std::ops::RangeInclusive<u8> = 2..=15;
/// How much of the keyed hash is kept: enough that guessing one is hopeless.
const MAC_BYTES: usize = 16;
/// The longest text that is looked at: a token that names 1,024 partitions of a dozen regions.
const TEXT_BYTES_MAX: usize = 256 << 10;
/// How many tokens may be given together.
const TOKENS_MAX: usize = 32;

/// What the holder of a token has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// How far in each origin log.
    pub positions: VersionVector,
    /// The newest stamp.
    pub at: Timestamp,
}

impl Seen {
    /// Adds what `other` has seen.
    pub fn merge(&mut self, other: &Self) {
        self.positions.merge(&other.positions);
        self.at = self.at.max(other.at);
    }

    /// Adds events that were shown.
    pub fn read<'a>(&mut self, events: impl IntoIterator<Item = &'a RecordedEvent>) {
        for event in events {
            self.positions.advance(event.dot.log(), event.dot.position);
            self.at = self.at.max(event.timestamp);
        }
    }

    /// Adds what a read model that has come so far has shown.
    pub fn asked(&mut self, place: &Place) {
        if let Place::Logs(places) = place {
            for key in places.iter() {
                self.positions.advance(key.dot().log(), key.position);
            }
        }
        self.at = self.at.max(place.newest());
    }

    /// Adds events that became durable, here or at their home.
    pub fn wrote(&mut self, appended: &Appended) {
        for dot in &appended.dots {
            self.positions.advance(dot.log(), dot.position);
        }
        self.at = self.at.max(appended.timestamp);
    }
}

/// Which key a token is sealed with, so that a node can say why it cannot open it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeyName {
    /// The region whose own key it is; empty for the federation's.
    region: String,
    /// A hash of the key.
    id: [u8; 4],
}

#[derive(Serialize, Deserialize)]
struct Body {
    key: KeyName,
    seen: Seen,
}

/// Why a text is no token here. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is none, or was cut or changed on its way.
    #[error(
        "the session token cannot be read; send it exactly as it was given, or none to begin a new \
         session"
    )]
    Unreadable,
    /// Too many at once.
    #[error(
        "more than {TOKENS_MAX} session tokens were given; an answer's token stands for all before it"
    )]
    TooMany,
    /// A newer node wrote it.
    #[error(
        "the session token has version {found}, and this node reads {VERSION}; upgrade the node, or \
         begin a new session without a token"
    )]
    Version {
        /// The token's version.
        found: u8,
    },
    /// A region without the federation's key made it.
    #[error(
        "the session token was made by region {region} with a key of its own, which no other region \
         can check; set `session_key` to the same file in the configuration of every region, and \
         begin a new session"
    )]
    OwnKey {
        /// Who made it.
        region: String,
    },
    /// This node has no key of the federation.
    #[error(
        "this node cannot check tokens of other regions; set `session_key` in its configuration to \
         the file that they have, or go on in the region that gave the token"
    )]
    NoKey,
    /// It is sealed with another key.
    #[error(
        "the session token is of another federation, or of a region whose `session_key` differs from \
         this one's; use the same file in every region, or begin a new session without a token"
    )]
    OtherKey,
}

/// What a node seals tokens with, and knows the federation's own by.
#[derive(Clone)]
pub struct SessionSeal {
    key: [u8; 32],
    name: KeyName,
}

impl SessionSeal {
    /// The seal that every region of `federation` has which was given `secret`.
    pub fn of_federation(federation: Uuid, secret: &[u8; 32]) -> Self {
        Self::new(String::new(), federation, secret)
    }

    /// The seal of a region that was given none: its tokens are good at home only.
    pub fn of_region(region: &str, federation: Uuid, secret: &[u8; 32]) -> Self {
        Self::new(region.to_owned(), federation, secret)
    }

    fn new(region: String, federation: Uuid, secret: &[u8; 32]) -> Self {
        let mut material = secret.to_vec();
        material.extend_from_slice(federation.as_bytes());
        let key = blake3::derive_key("meridian 2026-11 session token", &material);
        let [a, b, c, d, ..] = blake3::derive_key("meridian 2026-11 session key id", &key);
        Self {
            key,
            name: KeyName {
                region,
                id: [a, b, c, d],
            },
        }
    }

    /// `seen` as its holder gets it.
    pub fn write(&self, seen: &Seen) -> SessionToken {
        let body = Body {
            key: self.name.clone(),
            seen: seen.clone(),
        };
        let mut bytes = vec![VERSION];
        bytes.extend(postcard::to_stdvec(&body).expect("our tokens always encode"));
        let mac = self.mac(&bytes);
        bytes.extend_from_slice(&mac);
        SessionToken(BASE64URL_NOPAD.encode(&bytes))
    }

    /// What the tokens in `text`, with commas between them, have seen together; nothing when there
    /// is none.
    ///
    /// # Errors
    /// When one of them is not ours.
    pub fn read(&self, text: &str) -> Result<Seen, TokenError> {
        let mut seen = Seen::default();
        if text.is_empty() {
            return Ok(seen);
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenError::Unreadable);
        }
        for (count, token) in text.split(',').enumerate() {
            if count == TOKENS_MAX {
                return Err(TokenError::TooMany);
            }
            seen.merge(&self.open(token.trim())?);
        }
        Ok(seen)
    }

    fn open(&self, token: &str) -> Result<Seen, TokenError> {
        let bytes = BASE64URL_NOPAD
            .decode(token.as_bytes())
            .map_err(|_| TokenError::Unreadable)?;
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&found) if VERSIONS_TO_COME.contains(&found) => {
                return Err(TokenError::Version { found });
            }
            _ => return Err(TokenError::Unreadable),
        }
        let (signed, mac) = bytes
            .split_last_chunk::<MAC_BYTES>()
            .ok_or(TokenError::Unreadable)?;
        let body = signed.get(1..).ok_or(TokenError::Unreadable)?;
        let (Body { key, seen }, rest) =
            postcard::take_from_bytes::<Body>(body).map_err(|_| TokenError::Unreadable)?;
        if !rest.is_empty() {
            return Err(TokenError::Unreadable);
        }
        if key != self.name {
            return Err(
                if !key.region.is_empty() && key.region != self.name.region {
                    TokenError::OwnKey { region: key.region }
                } else if key.region.is_empty() && !self.name.region.is_empty() {
                    TokenError::NoKey
                } else {
                    TokenError::OtherKey
                },
            );
        }
        // How long it takes must not tell how much of a guess was right.
        let differs = self
            .mac(signed)
            .iter()
            .zip(mac)
            .fold(0, |differs, (a, b)| differs | (a ^ b));
        if differs != 0 {
            return Err(TokenError::Unreadable);
        }
        Ok(seen)
    }

    fn mac(&self, signed: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = [0; MAC_BYTES];
        blake3::Hasher::new_keyed(&self.key)
            .update(signed)
            .finalize_xof()
            .fill(&mut mac);
        mac
    }
}

#[cfg(test)]
mod tests {
    use meridian_clock::{LogId, PartitionId, Position, RegionId};
    use proptest::prelude::*;

    use super::*;

    const FEDERATION: Uuid = Uuid::from_u128(0x5eed);

    fn seal() -> SessionSeal {
        SessionSeal::of_federation(FEDERATION, &[7; 32])
    }

    fn seen(entries: &[(u16, u16, u64)], at: u64) -> Seen {
        let positions = entries.iter().map(|(origin, partition, position)| {
            let log = LogId::new(RegionId(*origin), PartitionId(*partition));
            (log, Position(*position))
        });
        Seen {
            positions: positions.collect(),
            at: Timestamp(at),
        }
    }

    fn any_seen() -> impl Strategy<Value = Seen> {
        let entries = prop::collection::vec((0_u16..3, 0_u16..3, any::<u64>()), 0..8);
        (entries, any::<u64>()).prop_map(|(entries, at)| seen(&entries, at))
    }

    /// Tokens of this build are in clients' hands: if this fails, give the change a version.
    #[test]
    fn a_token_still_has_the_text_it_always_had() {
        let token = seal().write(&seen(&[(0, 1, 7), (2, 3, 70_000)], 0x0102_0304_0506_0708));
        assert_eq!(
            token.0,
            include_str!("../../golden/session-token-v1.txt").trim()
        );
    }

    #[test]
    fn a_change_of_any_bit_or_letter_is_refused() {
        let token = seal().write(&seen(&[(0, 1, 7), (2, 3, 70_000)], 99)).0;
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).expect("our own");
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[place] ^= 1 << bit;
                let text = BASE64URL_NOPAD.encode(&changed);
                assert!(seal().read(&text).is_err(), "byte {place}, bit {bit}");
            }
            assert!(
                seal()
                    .read(&BASE64URL_NOPAD.encode(&bytes[..place]))
                    .is_err()
                    || place == 0
            );
        }
        for place in 0..token.len() {
            for letter in ["A", "b", "9", "-", "=", "\u{e9}"] {
                let mut changed = token.clone();
                changed.replace_range(place..=place, letter);
                assert!(
                    changed == token || seal().read(&changed).is_err(),
                    "letter {place}"
                );
            }
            let mut longer = token.clone();
            longer.insert(place, 'A');
            assert!(seal().read(&longer).is_err(), "a letter more at {place}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let given = seen(&[(0, 0, 1)], 1);
        let read = |by: &SessionSeal, given_by: &SessionSeal| by.read(&given_by.write(&given).0);
        let other_federation = SessionSeal::of_federation(Uuid::from_u128(1), &[7; 32]);
        let other_secret = SessionSeal::of_federation(FEDERATION, &[8; 32]);
        let alone = SessionSeal::of_region("a", FEDERATION, &[1; 32]);
        let alone_too = SessionSeal::of_region("b", FEDERATION, &[2; 32]);
        let reborn = SessionSeal::of_region("a", FEDERATION, &[3; 32]);
        let own_key = || TokenError::OwnKey {
            region: "a".to_owned(),
        };
        assert_eq!(read(&seal(), &seal()), Ok(given.clone()));
        assert_eq!(read(&alone, &alone), Ok(given.clone()));
        assert_eq!(read(&seal(), &other_federation), Err(TokenError::OtherKey));
        assert_eq!(read(&seal(), &other_secret), Err(TokenError::OtherKey));
        assert_eq!(read(&seal(), &alone), Err(own_key()));
        assert_eq!(read(&alone_too, &alone), Err(own_key()));
        assert_eq!(read(&alone, &seal()), Err(TokenError::NoKey));
        assert_eq!(read(&reborn, &alone), Err(TokenError::OtherKey));
        let mut newer = BASE64URL_NOPAD
            .decode(seal().write(&given).0.as_bytes())
            .expect("ours");
        newer[0] = 2;
        let newer = BASE64URL_NOPAD.encode(&newer);
        assert_eq!(seal().read(&newer), Err(TokenError::Version { found: 2 }));
        for text in ["x", "!", "AQ", " ", "AQ,", ",", "null"] {
            assert_eq!(seal().read(text), Err(TokenError::Unreadable), "{text:?}");
        }
        let many = vec![seal().write(&given).0; TOKENS_MAX + 1].join(",");
        assert_eq!(seal().read(&many), Err(TokenError::TooMany));
    }

    proptest! {
        #[test]
        fn a_token_says_what_was_put_in(seen in any_seen()) {
            prop_assert_eq!(seal().read(&seal().write(&seen).0), Ok(seen));
        }

        #[test]
        fn no_text_makes_the_decoder_panic(text in "[A-Za-z0-9_,-]{0,120}") {
            let _ = seal().read(&text);
        }

        #[test]
        fn merging_ignores_order_and_repetition_and_forgets_nothing(
            a in any_seen(), b in any_seen(), c in any_seen(),
        ) {
            let merged = |parts: &[&Seen]| {
                let mut all = Seen::default();
                parts.iter().for_each(|part| all.merge(part));
                all
            };
            let ab = merged(&[&a, &b]);
            prop_assert_eq!(&ab, &merged(&[&b, &a, &b]));
            prop_assert_eq!(merged(&[&ab, &c]), merged(&[&a, &merged(&[&b, &c])]));
            prop_assert!(ab.at >= a.at && ab.at >= b.at);
            for (log, position) in a.positions.iter().chain(b.positions.iter()) {
                prop_assert!(ab.positions.get(log) >= position);
            }
            // Given together, tokens mean the same as merged.
            let together = seal().write(&a).and(&seal().write(&b));
            prop_assert_eq!(seal().read(&together.0), Ok(ab));
        }
    }
}

//! What an event first was, kept with it when it is written again: the key `$stranded` of its metadata.

use std::collections::BTreeMap;

use bytes::Bytes;
use data_encoding::BASE64;
use meridian_clock::{Position, Timestamp};
use meridian_event::RecordedEvent;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The key.
const KEY: &str = "$stranded";

/// Which life of which log an event was first written in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct First {
    /// The region's name.
    pub(crate) origin: String,
    /// The partition.
    pub(crate) partition: u16,
    /// The life of that log.
    pub(crate) generation: u32,
}

#[derive(Serialize)]
struct Stranded<'a> {
    origin: &'a str,
    partition: u16,
    generation: u32,
    position: u64,
    revision: u64,
    // In quotes, since half of the programs that read JSON round such numbers.
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_base64: Option<String>,
}

/// The metadata of `event` with what it first was, which was in the log `first`.
///
/// An object keeps all it has, byte for byte, and gets one more key at its end; unless it has that
/// already, of an earlier time: the first identity is what counts. Anything else cannot have a key, so it
/// moves into the new one as a whole.
pub(crate) fn keep(event: &RecordedEvent, first: &First) -> Bytes {
    let text = std::str::from_utf8(&event.metadata).ok();
    let raw = text.and_then(|text| serde_json::from_str::<&RawValue>(text).ok());
    let mut stranded = Stranded {
        origin: &first.origin,
        partition: first.partition,
        generation: first.generation,
        position: event.dot.position.0,
        revision: event.revision.0,
        timestamp: event.timestamp.to_string(),
        metadata: None,
        metadata_base64: None,
    };
    if let Some(raw) = raw
        && let Some(body) = raw.get().strip_suffix('}')
        && let Ok(keys) = serde_json::from_str::<BTreeMap<String, &RawValue>>(raw.get())
    {
        if keys.contains_key(KEY) {
            return event.metadata.clone();
        }
        let comma = if keys.is_empty() { "" } else { "," };
        return format!("{body}{comma}\"{KEY}\":{}}}", encode(&stranded)).into();
    }
    match raw {
        _ if event.metadata.is_empty() => {}
        Some(raw) if raw.get().len() == event.metadata.len() => stranded.metadata = Some(raw),
        _ => stranded.metadata_base64 = Some(BASE64.encode(&event.metadata)),
    }
    format!("{{\"{KEY}\":{}}}", encode(&stranded)).into()
}

/// Where an event was first written that was brought home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FirstPlace {
    /// The region's name.
    pub(crate) origin: String,
    /// Its position there.
    pub(crate) position: Position,
    /// When.
    pub(crate) timestamp: Timestamp,
}

/// Where the event with this metadata was first written, if it was brought home.
pub(crate) fn first_place(metadata: &[u8]) -> Option<FirstPlace> {
    #[derive(Deserialize)]
    struct Keys {
        #[serde(rename = "$stranded")]
        stranded: Place,
    }
    #[derive(Deserialize)]
    struct Place {
        origin: String,
        position: u64,
        timestamp: String,
    }
    // Hardly any event was ever stranded, and all that are folded are asked.
    let key = KEY.as_bytes();
    if !metadata.windows(key.len()).any(|it| it == key) {
        return None;
    }
    let keys: Keys = serde_json::from_slice(metadata).ok()?;
    Some(FirstPlace {
        origin: keys.stranded.origin,
        position: Position(keys.stranded.position),
        timestamp: Timestamp(keys.stranded.timestamp.parse().ok()?),
    })
}

fn encode(stranded: &Stranded<'_>) -> String {
    serde_json::to_string(stranded).expect("numbers and texts always encode")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::plan::tests::event;
    use super::*;

    fn kept(metadata: &[u8]) -> String {
        let first = First {
            origin: "us".to_owned(),
            partition: 3,
            generation: 2,
        };
        let mut event = event("order-1", 7, 4, 90);
        event.metadata = metadata.to_vec().into();
        String::from_utf8(keep(&event, &first).to_vec()).expect("it is text")
    }

    #[test]
    fn where_an_event_was_first_can_be_read_again() {
        let place = first_place(kept(br#"{"a":1}"#).as_bytes());
        let first = FirstPlace {
            origin: "us".to_owned(),
            position: Position(7),
            timestamp: Timestamp(90),
        };
        assert_eq!(place, Some(first));
        assert_eq!(first_place(b""), None);
        assert_eq!(first_place(br#"{"$stranded":5}"#), None);
    }

    const IS: &str = r#""$stranded":{"origin":"us","partition":3,"generation":2,"position":7,"revision":4,"timestamp":"90""#;

    #[test]
    fn an_object_keeps_what_it_has_and_gets_one_more_key() {
        assert_eq!(kept(b""), format!("{{{IS}}}}}"));
        assert_eq!(kept(b"{ }"), format!("{{ {IS}}}}}"));
        assert_eq!(
            kept(b"{\"z\": 1.0e400, \"a\":[ ] }"),
            format!("{{\"z\": 1.0e400, \"a\":[ ] ,{IS}}}}}")
        );
    }

    #[test]
    fn what_cannot_have_a_key_moves_into_it_as_a_whole() {
        assert_eq!(
            kept(b"[1, \"}\"]"),
            format!("{{{IS},\"metadata\":[1, \"}}\"]}}}}")
        );
        assert_eq!(kept(b"\"}\""), format!("{{{IS},\"metadata\":\"}}\"}}}}"));
        assert_eq!(
            kept(b"\xff"),
            format!("{{{IS},\"metadata_base64\":\"/w==\"}}}}")
        );
        assert_eq!(
            kept(b" 1"),
            format!("{{{IS},\"metadata_base64\":\"IDE=\"}}}}")
        );
    }

    #[test]
    fn the_first_identity_stays() {
        let first = kept(b"{}");
        assert_eq!(kept(first.as_bytes()), first);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_one_object_with_all_that_was_there(
            keys in prop::collection::btree_map(".{0,8}", ".{0,8}", 0..4),
        ) {
            let was = serde_json::to_string(&keys).expect("it encodes");
            let now: BTreeMap<String, Value> = serde_json::from_str(&kept(was.as_bytes())).expect("an object");
            prop_assert_eq!(now.len(), keys.len() + 1);
            for (key, value) in keys {
                prop_assert_eq!(&now[&key], &Value::String(value));
            }
        }
    }
}

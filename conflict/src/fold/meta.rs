//! An operation's dot and context, as they are recorded in its event's metadata under the key `$op`.

use std::collections::BTreeMap;

use meridian_clock::RegionId;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::dot::{Actor, OpDot, Seen};

/// The key.
pub const OP_KEY: &str = "$op";

/// What a sequencer adds to an operation when it records it.
///
/// `{"dot":[region,generation,counter],"seen":[[region,generation,counter],…]}`, `seen` sorted by region and generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpMeta {
    /// The operation's identity.
    pub dot: OpDot,
    /// What the writing region had applied of this stream when the operation was sequenced.
    pub seen: Seen,
}

/// Why metadata and an operation's dot and context do not go together.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// It must be an object, to have a key added or read.
    #[error(
        "the metadata of an event in a stream that every region may write is a JSON object or empty; send {{…}}"
    )]
    NotAnObject,
    /// The key is the server's.
    #[error("metadata has the key {OP_KEY:?}, which the server gives; leave it out")]
    Reserved,
    /// A recorded event has no dot, so it was not written as an operation.
    #[error("metadata has no key {OP_KEY:?}: the event was recorded without a dot")]
    Missing,
    /// What stands under the key is of another shape.
    #[error("{OP_KEY:?} in metadata is not {{\"dot\":[region,generation,counter],\"seen\":[…]}}")]
    Shape {
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Counters begin at 1.
    #[error("{OP_KEY:?} in metadata has a counter of 0; counters begin at 1")]
    ZeroCounter,
    /// Sorted, so that equal contexts are equal texts.
    #[error(
        "\"seen\" of {OP_KEY:?} in metadata is not sorted, or names a region's generation twice"
    )]
    Unsorted,
}

type Triple = (RegionId, u32, u64);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    dot: Triple,
    seen: Vec<Triple>,
}

fn dot((region, generation, counter): Triple) -> OpDot {
    Actor::new(region, generation).dot(counter)
}

impl OpMeta {
    /// The value of the key, as JSON text.
    pub fn encode(&self) -> String {
        let triple = |dot: OpDot| {
            let OpDot { actor, counter } = dot;
            format!("[{},{},{counter}]", actor.region, actor.generation)
        };
        let seen: Vec<String> = self.seen.iter().map(triple).collect();
        format!(
            "{{\"dot\":{},\"seen\":[{}]}}",
            triple(self.dot),
            seen.join(",")
        )
    }

    /// Reads it from a recorded event's `metadata`.
    ///
    /// # Errors
    /// When the key is not there, or what it holds was not written by [`OpMeta::encode`].
    pub fn parse(metadata: &[u8]) -> Result<Self, MetaError> {
        #[derive(Deserialize)]
        struct Keys {
            #[serde(rename = "$op")]
            op: Option<Box<RawValue>>,
        }
        if metadata.is_empty() {
            return Err(MetaError::Missing);
        }
        // Such a struct could be read from a list as well.
        if !metadata.trim_ascii_start().starts_with(b"{") {
            return Err(MetaError::NotAnObject);
        }
        let keys: Keys = serde_json::from_slice(metadata).map_err(|_| MetaError::NotAnObject)?;
        let op = keys.op.ok_or(MetaError::Missing)?;
        let shape: Shape =
            serde_json::from_str(op.get()).map_err(|source| MetaError::Shape { source })?;
        let seen: Vec<OpDot> = shape.seen.into_iter().map(dot).collect();
        let dot = dot(shape.dot);
        if seen.iter().chain([&dot]).any(|dot| dot.counter == 0) {
            return Err(MetaError::ZeroCounter);
        }
        if !seen.windows(2).all(|pair| pair[0].actor < pair[1].actor) {
            return Err(MetaError::Unsorted);
        }
        let seen = seen.into_iter().collect();
        Ok(Self { dot, seen })
    }

    /// `metadata` as a client sent it, with the key added at its end. All that it has stays, byte for byte.
    ///
    /// # Errors
    /// When it is neither empty nor a JSON object, or has the key already.
    pub fn into_metadata(&self, metadata: &[u8]) -> Result<Vec<u8>, MetaError> {
        if metadata.is_empty() {
            return Ok(format!("{{\"{OP_KEY}\":{}}}", self.encode()).into_bytes());
        }
        let keys: BTreeMap<String, &RawValue> =
            serde_json::from_slice(metadata).map_err(|_| MetaError::NotAnObject)?;
        if keys.contains_key(OP_KEY) {
            return Err(MetaError::Reserved);
        }
        let body = metadata.trim_ascii_end();
        let body = body.strip_suffix(b"}").ok_or(MetaError::NotAnObject)?;
        let comma = if keys.is_empty() { "" } else { "," };
        let key = format!("{comma}\"{OP_KEY}\":{}}}", self.encode());
        Ok([body, key.as_bytes()].concat())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meta() -> OpMeta {
        OpMeta {
            dot: Actor::new(RegionId(2), 1).dot(7),
            seen: [
                Actor::new(RegionId(2), 1).dot(6),
                Actor::new(RegionId(0), 0).dot(4),
            ]
            .into_iter()
            .collect(),
        }
    }

    const IS: &str = r#""$op":{"dot":[2,1,7],"seen":[[0,0,4],[2,1,6]]}"#;

    fn added(metadata: &str) -> String {
        let bytes = meta().into_metadata(metadata.as_bytes());
        String::from_utf8(bytes.expect("an object")).expect("text")
    }

    #[test]
    fn the_key_comes_last_and_the_rest_stays() {
        assert_eq!(added(""), format!("{{{IS}}}"));
        assert_eq!(added("{ }"), format!("{{ {IS}}}"));
        assert_eq!(
            added("{\"z\": 1.0e400, \"a\":[ ] } "),
            format!("{{\"z\": 1.0e400, \"a\":[ ] ,{IS}}}")
        );
    }

    #[test]
    fn what_is_recorded_reads_back() {
        for metadata in ["", "{}", "{\"a\":1}"] {
            let read = OpMeta::parse(added(metadata).as_bytes());
            assert_eq!(read.expect("it was written here"), meta());
        }
    }

    #[test]
    fn clients_cannot_give_a_dot_and_must_leave_room_for_one() {
        let add = |metadata: &str| meta().into_metadata(metadata.as_bytes());
        assert!(matches!(add(r#"{"$op":1}"#), Err(MetaError::Reserved)));
        assert!(matches!(add(r#"{"\u0024op":1}"#), Err(MetaError::Reserved)));
        for metadata in ["[]", "1", "{", "null", "\"}\"", "{} {}"] {
            assert!(matches!(add(metadata), Err(MetaError::NotAnObject)));
        }
    }

    #[test]
    fn what_no_sequencer_wrote_is_refused() {
        let parse = |text: &str| OpMeta::parse(text.as_bytes()).expect_err("not a sequencer's");
        assert!(matches!(parse(""), MetaError::Missing));
        assert!(matches!(parse("{}"), MetaError::Missing));
        assert!(matches!(parse("[1]"), MetaError::NotAnObject));
        for bad in [
            "1",
            r#"{"dot":[0,0,1]}"#,
            r#"{"dot":[0,0],"seen":[]}"#,
            r#"{"dot":[0,0,1],"seen":[],"more":1}"#,
            r#"{"dot":[70000,0,1],"seen":[]}"#,
            r#"{"dot":[0,0,-1],"seen":[]}"#,
        ] {
            assert!(
                matches!(
                    parse(&format!("{{\"$op\":{bad}}}")),
                    MetaError::Shape { .. }
                ),
                "{bad}"
            );
        }
        let zero = r#"{"$op":{"dot":[0,0,0],"seen":[]}}"#;
        assert!(matches!(parse(zero), MetaError::ZeroCounter));
        let twice = r#"{"$op":{"dot":[0,0,1],"seen":[[1,0,1],[1,0,2]]}}"#;
        assert!(matches!(parse(twice), MetaError::Unsorted));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = OpMeta::parse(&bytes);
            let _ = meta().into_metadata(&bytes);
        }
    }
}

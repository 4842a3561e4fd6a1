//! One line of NDJSON, made into an event.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use meridian_event::{EventId, EventType, NewEvent, StreamId};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

/// An event to import, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Its number in the file, from 1.
    pub(super) number: u64,
    /// The stream it belongs to.
    pub(super) stream: StreamId,
    /// The region that the map names for it.
    pub(super) region: Option<String>,
    /// The event.
    pub(super) event: NewEvent,
}

/// Which fields mean what.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// The field that says where the event happened.
    pub(super) region_field: String,
    /// From that field's values to regions; empty to pay no attention to it.
    pub(super) map: BTreeMap<String, String>,
}

impl Reading {
    /// Makes line `number`, which is `text`, into an event.
    ///
    /// # Errors
    /// What is wrong with the line.
    pub(super) fn parse(&self, number: u64, text: &[u8]) -> Result<Line, String> {
        let mut json = serde_json::Deserializer::from_slice(text);
        let fields = Fields {
            region_field: &self.region_field,
        };
        let found = fields
            .deserialize(&mut json)
            .and_then(|found| json.end().map(|()| found))
            .map_err(|error| said(&error))?;
        let id = found.id.ok_or_else(|| {
            "it has no `id`; without one, a repeated import would add it again: give each line a UUID"
                .to_owned()
        })?;
        let id = Uuid::try_parse(&id).map_err(|_| format!("its `id` {id:?} is not a UUID"))?;
        let stream = found.stream.ok_or("it has no `stream`")?;
        let stream = StreamId::new(&stream).map_err(|error| error.to_string())?;
        let event_type = found.event_type.ok_or("it has no `type`")?;
        let event_type = EventType::new(&event_type).map_err(|error| error.to_string())?;
        let data = found.data.ok_or("it has no `data`")?;
        let metadata = found.metadata.filter(|metadata| metadata.get() != "null");
        let bytes = |json: &RawValue| Bytes::copy_from_slice(json.get().as_bytes());
        Ok(Line {
            number,
            stream,
            region: self.region(found.region)?,
            event: NewEvent {
                id: EventId(id),
                event_type,
                data: bytes(data),
                metadata: metadata.map(bytes).unwrap_or_default(),
            },
        })
    }

    fn region(&self, found: Option<&RawValue>) -> Result<Option<String>, String> {
        if self.map.is_empty() {
            return Ok(None);
        }
        let field = &self.region_field;
        let found = found.ok_or_else(|| {
            format!("it has no `{field}`, which --map needs; check --region-field")
        })?;
        let value: Cow<'_, str> = serde_json::from_str(found.get())
            .map_err(|_| format!("its `{field}` is {}, which is no string", found.get()))?;
        match self.map.get(value.as_ref()) {
            Some(region) => Ok(Some(region.clone())),
            None => Err(format!(
                "its `{field}` is {value:?}, which --map does not name"
            )),
        }
    }
}

/// What a JSON error says, without its place: every line is line 1 to the parser.
fn said(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let column = error.column();
    match text.split_once(" at line ") {
        Some((what, _)) if column > 0 => format!("{what} (column {column})"),
        Some((what, _)) => what.to_owned(),
        None => text,
    }
}

#[derive(Default)]
struct Found<'a> {
    id: Option<Cow<'a, str>>,
    stream: Option<Cow<'a, str>>,
    event_type: Option<Cow<'a, str>>,
    data: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
    region: Option<&'a RawValue>,
}

#[derive(Clone, Copy)]
struct Fields<'f> {
    region_field: &'f str,
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = Found<'de>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Found<'de>, D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Found<'de>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an event: an object with id, stream, type and data")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found<'de>, A::Error> {
        let mut found = Found::default();
        while let Some(Text(key)) = map.next_key::<Text<'_>>()? {
            let twice = match key.as_ref() {
                "id" => found.id.replace(text(&mut map, "id")?).is_some(),
                "stream" => found.stream.replace(text(&mut map, "stream")?).is_some(),
                "type" => found.event_type.replace(text(&mut map, "type")?).is_some(),
                "data" => found.data.replace(map.next_value()?).is_some(),
                "metadata" => found.metadata.replace(map.next_value()?).is_some(),
                key if key == self.region_field => {
                    found.region.replace(map.next_value()?).is_some()
                }
                key => {
                    return Err(de::Error::custom(format_args!(
                        "unknown field `{key}`; an event has id, stream, type, data, metadata and {}",
                        self.region_field
                    )));
                }
            };
            if twice {
                return Err(de::Error::custom(format_args!(
                    "the field `{key}` is there twice"
                )));
            }
        }
        Ok(found)
    }
}

/// The next value, which `key` says must be a string.
fn text<'de, A: MapAccess<'de>>(map: &mut A, key: &str) -> Result<Cow<'de, str>, A::Error> {
    match map.next_value::<Text<'_>>() {
        Ok(Text(text)) => Ok(text),
        Err(error) => Err(de::Error::custom(format_args!("`{key}`: {error}"))),
    }
}

/// A string that is borrowed from the line where it can be, which serde's `Cow` never is.
struct Text<'a>(Cow<'a, str>);

impl<'de> de::Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Text<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        input.deserialize_str(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = r#"{"id":"de3f5477-64e7-5cfc-b8fb-ed8dd24f9f46","region":"EWR","stream":"aircraft-N14228","type":"FlightDeparted","data":{"carrier":"UA", "flight": 1545},"metadata":null}"#;

    fn mapped() -> Reading {
        Reading {
            region_field: "region".to_owned(),
            map: BTreeMap::from([("EWR".to_owned(), "a".to_owned())]),
        }
    }

    /// What parsing says when `what` of the sound line is `with` instead.
    fn refusal(what: &str, with: &str) -> String {
        assert!(SOUND.contains(what), "{what:?} is not in the sound line");
        let line = SOUND.replacen(what, with, 1);
        mapped().parse(7, line.as_bytes()).expect_err("a refusal")
    }

    #[test]
    fn a_line_becomes_its_event_with_the_data_verbatim() {
        let line = mapped().parse(7, SOUND.as_bytes()).expect("a sound line");
        assert_eq!(line.number, 7);
        assert_eq!(line.stream.as_str(), "aircraft-N14228");
        assert_eq!(line.region.as_deref(), Some("a"));
        assert_eq!(
            line.event.data.as_ref(),
            br#"{"carrier":"UA", "flight": 1545}"#
        );
        assert_eq!(line.event.event_type.as_str(), "FlightDeparted");
        assert!(line.event.metadata.is_empty(), "null is no metadata");
    }

    #[test]
    fn without_a_map_the_region_is_not_looked_at() {
        let reading = Reading {
            map: BTreeMap::new(),
            ..mapped()
        };
        let line = SOUND.replace("\"EWR\"", "[1]");
        let line = reading.parse(1, line.as_bytes()).expect("a sound line");
        assert_eq!(line.region, None);
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        let claims = [
            (
                "\"EWR\"",
                "\"SFO\"",
                "its `region` is \"SFO\", which --map does not name",
            ),
            ("\"EWR\"", "4", "its `region` is 4, which is no string"),
            (
                "\"region\":\"EWR\",",
                "",
                "it has no `region`, which --map needs",
            ),
            ("\"id\"", "\"metadate\"", "unknown field `metadate`"),
            ("de3f5477-", "", "is not a UUID"),
            ("\"stream\":\"aircraft-N14228\",", "", "it has no `stream`"),
            (
                "aircraft-N14228",
                "a\\u0007",
                "must not contain control characters",
            ),
            (
                "\"metadata\":null",
                "\"type\":\"x\"",
                "the field `type` is there twice",
            ),
            ("null}", "nulx}", "expected ident"),
            ("null}", "null}}", "trailing characters"),
            (
                "\"FlightDeparted\"",
                "3",
                "`type`: invalid type: integer `3`, expected a string",
            ),
            (SOUND, "[]", "expected an event"),
            (SOUND, "{", "EOF while parsing"),
        ];
        for (what, with, says) in claims {
            let message = refusal(what, with);
            assert!(message.contains(says), "{message:?} does not say {says:?}");
            assert!(!message.contains("at line"), "{message:?}");
        }
        assert!(refusal(SOUND, "{}").contains("it has no `id`"));
    }
}

//! `POST /v1/streams/{stream}/events`.

use std::fmt;

use axum::Json;
use axum::extract::{Request, State};
use bytes::Bytes;
use meridian_client::{AppendError, AppendRequest, Durability, Expected};
use meridian_event::{EventId, EventType, NewEvent, Revision, StreamId};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Door;
use super::body::{Object, parse, read_json_body};
use super::params::Stream;
use super::problem::Problem;
use super::session::{Session, SessionHeader};
use super::views::AppendedView;

/// A batch of events for one stream: all of them are written, or none.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, bound(deserialize = "'de: 'a"))]
#[schema(as = AppendRequest)]
pub(super) struct AppendBody<'a> {
    /// What must be true of the stream: `any` (the default), `none` (it has no events yet),
    /// `exists`, or the revision of its last event.
    #[serde(default)]
    #[schema(value_type = ExpectedView)]
    expected: ExpectedField,
    /// How safe the events must be before the answer: `region` (the default), `regions:N` or `all`.
    #[serde(default)]
    #[schema(value_type = String, pattern = "^(region|regions:[1-9][0-9]*|all)$", default = "region")]
    durability: DurabilityField,
    /// The events, at least one.
    #[serde(borrow)]
    #[schema(min_items = 1, value_type = Vec<EventBody>)]
    events: Vec<Object<EventBody<'a>>>,
}

/// An event to append.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewEvent)]
pub(super) struct EventBody<'a> {
    /// Makes repeating the request harmless: an id never appends twice. Made for the event when it
    /// is not given.
    #[schema(value_type = Option<String>, format = "uuid")]
    id: Option<Uuid>,
    /// What happened, such as `OrderPlaced`: 1 to 128 bytes.
    #[serde(rename = "type")]
    #[schema(value_type = String, min_length = 1, max_length = 128)]
    event_type: EventType,
    /// Any JSON; it is kept as it is.
    #[serde(borrow)]
    #[schema(value_type = serde_json::Value)]
    data: &'a RawValue,
    /// Any JSON; it is kept as it is. Null is the same as none.
    #[serde(borrow, default)]
    #[schema(value_type = Option<serde_json::Value>)]
    metadata: Option<&'a RawValue>,
}

/// What must be true of a stream for an append to happen.
#[derive(ToSchema)]
#[schema(as = Expected)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "it describes ExpectedField to readers of the API's document"
)]
pub(super) enum ExpectedView {
    /// One of three words.
    Word(ExpectedWord),
    /// Its last event has this revision.
    Revision(u64),
}

/// What must be true of a stream, whatever its revision.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(
    dead_code,
    reason = "it describes ExpectedField to readers of the API's document"
)]
pub(super) enum ExpectedWord {
    /// Nothing.
    Any,
    /// It has no events yet.
    None,
    /// It has at least one event.
    Exists,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ExpectedField(Expected);

impl<'de> Deserialize<'de> for ExpectedField {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct WordOrRevision;

        impl Visitor<'_> for WordOrRevision {
            type Value = Expected;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(r#""any", "none", "exists" or a revision (0, 1, 2…)"#)
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Expected, E> {
                match word {
                    "any" => Ok(Expected::Any),
                    "none" => Ok(Expected::None),
                    "exists" => Ok(Expected::Exists),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_u64<E: de::Error>(self, revision: u64) -> Result<Expected, E> {
                Ok(Expected::Revision(Revision(revision)))
            }
        }

        input.deserialize_any(WordOrRevision).map(Self)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct DurabilityField(Durability);

impl<'de> Deserialize<'de> for DurabilityField {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Level;

        impl Visitor<'_> for Level {
            type Value = Durability;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(r#""region", "regions:N" (N from 1) or "all""#)
            }

            fn visit_str<E: de::Error>(self, level: &str) -> Result<Durability, E> {
                parse_durability(level)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(level), &self))
            }
        }

        input.deserialize_str(Level).map(Self)
    }
}

fn parse_durability(level: &str) -> Option<Durability> {
    match level {
        "region" => Some(Durability::Region),
        "all" => Some(Durability::All),
        other => {
            let count = other.strip_prefix("regions:")?;
            // `parse` would also take a sign.
            if !count.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            let count = count.parse().ok().filter(|count| *count > 0)?;
            Some(Durability::Regions(count))
        }
    }
}

/// Appends a batch to a stream
///
/// Wherever it is sent, the batch goes to the region that orders the stream. It is one transaction:
/// all of its events or none. Repeating a request with the same event ids is harmless.
#[utoipa::path(
    post,
    path = "/v1/streams/{stream}/events",
    operation_id = "append_events",
    tag = "events",
    params(
        ("stream" = String, Path, description = "The stream's name, percent-encoded: 1 to 256 bytes, no control characters; its category is the part before the first `-`"),
        ("Meridian-Session" = Option<String>, Header, description = "What this caller has seen: the token of an earlier answer, from whichever region; several with commas between them"),
    ),
    request_body = AppendBody,
    responses(
        (status = 200, description = "The events are durable at the level asked for", body = AppendedView, headers(("Meridian-Session" = String, description = "A token for what the request's token stands for and what this answer shows"))),
        (status = 400, description = "`invalid`: the request is wrong as it stands", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "`timeout`: the body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`wrong_expected_revision`: someone else wrote first", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`too_large`: the request is over a limit", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "`invalid`: a browser sent something else than JSON", body = Problem, content_type = "application/problem+json"),
        (status = 421, description = "`not_home`: another region orders the stream, and it cannot be reached from here", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: nothing was written; see `Retry-After`", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may be written; repeat with the same ids", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn append(
    State(door): State<Door>,
    Stream(stream): Stream,
    mut session: Session,
    request: Request,
) -> Result<(SessionHeader, Json<AppendedView>), Problem> {
    let body = read_json_body(&door, request).await?;
    let request = to_request(&door, stream, &body)?;
    match door.backend.append(request).await {
        Ok(appended) => {
            session.seen.wrote(&appended);
            let token = door.backend.token(&session.seen);
            let view = AppendedView::new(&appended, &token, &door);
            Ok((session.header(&door), Json(view)))
        }
        Err(error) => {
            let mut shown = None;
            if let AppendError::WrongExpectedRevision { events_since, .. } = &error {
                session.seen.read(events_since);
                shown = Some(session.token(&door));
            }
            let problem = Problem::of_append(error, &door);
            Err(match shown {
                Some(token) => problem.in_session(token),
                None => problem,
            })
        }
    }
}

fn to_request(door: &Door, stream: StreamId, body: &Bytes) -> Result<AppendRequest, Problem> {
    let parsed: AppendBody<'_> = parse(body)?;
    let events = parsed.events.into_iter();
    let events = events
        .map(|Object(event)| event.event(door, body))
        .collect();
    // Limits, repeated ids and the like are the node's to check, whatever the door.
    Ok(AppendRequest {
        stream,
        expected: parsed.expected.0,
        durability: parsed.durability.0,
        events,
    })
}

impl EventBody<'_> {
    /// The event, which was parsed from `body`.
    pub(super) fn event(self, door: &Door, body: &Bytes) -> NewEvent {
        // The texts are parts of the body: they are shared, not copied.
        let shared = |text: &RawValue| body.slice_ref(text.get().as_bytes());
        NewEvent {
            id: self.id.map_or_else(|| door.backend.event_id(), EventId),
            event_type: self.event_type,
            data: shared(self.data),
            metadata: self.metadata.map(shared).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(text: &str) -> Result<Expected, String> {
        serde_json::from_str::<ExpectedField>(text)
            .map(|field| field.0)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_expectation_is_a_word_or_a_revision() {
        assert_eq!(expected(r#""any""#), Ok(Expected::Any));
        assert_eq!(expected(r#""none""#), Ok(Expected::None));
        assert_eq!(expected(r#""exists""#), Ok(Expected::Exists));
        assert_eq!(expected("0"), Ok(Expected::Revision(Revision(0))));
        for wrong in [r#""ANY""#, r#""3""#, "-1", "1.5", "null", "[]", "true"] {
            let message = expected(wrong).expect_err(wrong);
            assert!(message.contains("a revision (0, 1, 2…)"), "{message}");
        }
    }

    #[test]
    fn a_durability_is_one_of_three_shapes() {
        assert_eq!(parse_durability("region"), Some(Durability::Region));
        assert_eq!(parse_durability("all"), Some(Durability::All));
        assert_eq!(parse_durability("regions:2"), Some(Durability::Regions(2)));
        for wrong in [
            "",
            "Region",
            "regions",
            "regions:",
            "regions:0",
            "regions:-1",
            "regions:+1",
            "regions:x",
            "regions:65536",
            "regions: 2",
            "quorum",
        ] {
            assert_eq!(parse_durability(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn an_unknown_field_is_named() {
        for body in [
            r#"{"events": [], "expect": "any"}"#,
            r#"{"events": [{"type": "T", "data": 1, "when": 2}]}"#,
        ] {
            let error = serde_json::from_str::<AppendBody<'_>>(body).expect_err(body);
            assert!(error.to_string().contains("unknown field"), "{error}");
        }
    }
}

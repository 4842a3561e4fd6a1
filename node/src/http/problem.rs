//! Every error that HTTP answers: `application/problem+json` (RFC 9457) with a stable `code`.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use meridian_client::{AppendError, ConsumerError, ReadError, ReserveError};
use meridian_projection::QueryError;
use serde::Serialize;
use utoipa::ToSchema;

use super::Door;
use super::session::SESSION_HEADER;
use super::views::{EpochView, EventView};
use crate::shown::rfc3339;
use crate::{ConflictError, MoveError, ProjectionError, WhyError};

/// What went wrong, in one word that does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Code {
    /// 409: someone else wrote first. See `actual` and `events_since`, then decide again.
    WrongExpectedRevision,
    /// 409: it is not in a state for that. `detail` says what to do first.
    Conflict,
    /// 409: another owner holds the key. See `owner` and `until`.
    Reserved,
    /// 421: another region orders this stream, or serves this consumer group. Send the request to
    /// `home`.
    NotHome,
    /// 503: nothing was written, or it cannot be read now. Try again after `Retry-After` seconds.
    Unavailable,
    /// 503: this region does not hold yet what the session has seen. Try again after `Retry-After`
    /// seconds, or in another region.
    Stale,
    /// 504: the events may be written, or may yet be. Repeat the request with the same ids.
    Indeterminate,
    /// 400 or 415: the request is wrong as it stands. Nothing was written.
    Invalid,
    /// 413: the request is over a limit. Nothing was written.
    TooLarge,
    /// 404: there is nothing under this name.
    NotFound,
    /// 405: the path exists, but not with this method. See the header `Allow`.
    MethodNotAllowed,
    /// 408: the request's body did not arrive in time. Nothing was written.
    Timeout,
    /// 501: this build does not do that yet.
    NotImplemented,
    /// 500: a defect of the server; its log has more. The request may have been done.
    Internal,
}

impl Code {
    fn status(self) -> StatusCode {
        match self {
            Self::WrongExpectedRevision | Self::Conflict | Self::Reserved => StatusCode::CONFLICT,
            Self::NotHome => StatusCode::MISDIRECTED_REQUEST,
            Self::Unavailable | Self::Stale => StatusCode::SERVICE_UNAVAILABLE,
            Self::Indeterminate => StatusCode::GATEWAY_TIMEOUT,
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// An error. What it holds beyond the first four depends on its `code`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// The status in words.
    #[schema(value_type = String)]
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What went wrong, in one word that does not change.
    code: Code,
    /// What went wrong this time, and what to do next.
    #[schema(value_type = String)]
    detail: Cow<'static, str>,
    // In a box because nearly every function of this door may answer with a problem.
    #[serde(flatten)]
    #[schema(inline)]
    more: Box<More>,
}

/// What only some problems have.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
struct More {
    /// `wrong_expected_revision`, `not_home`: the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    /// `wrong_expected_revision`: the revision of the stream's last event, null when it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    actual: Option<Option<u64>>,
    /// `wrong_expected_revision`: what was written after the expected revision, as far as fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    events_since: Option<Vec<EventView>>,
    /// `not_home`: the name of the region that orders the stream, or serves the consumer group. `reserved`: of
    /// the region that decides about the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    home: Option<String>,
    /// `not_home`: since which epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<EpochView>,
    /// `unavailable`, `stale`: when trying again makes sense.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// `too_large`: the limit that was exceeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,

    /// `reserved`: who holds the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// `reserved`: since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    /// `reserved`: until when, by the clock of the region that decides about it then; null when it is held for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    until: Option<Option<String>>,

    #[serde(skip)]
    #[schema(ignore)]
    allow: Option<HeaderValue>,
    #[serde(skip)]
    #[schema(ignore)]
    session: Option<HeaderValue>,
}

impl Problem {
    fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::with_status(code, code.status(), detail)
    }

    fn with_status(code: Code, status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code,
            detail: detail.into(),
            more: Box::default(),
        }
    }

    fn and(mut self, more: More) -> Self {
        *self.more = more;
        self
    }

    /// The request is wrong as it stands.
    pub(super) fn invalid(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Invalid, detail)
    }

    /// The body says that it is something else than JSON.
    pub(super) fn not_json(content_type: &str) -> Self {
        Self::with_status(
            Code::Invalid,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "the body is {content_type:?}; send JSON with the header \
                 `Content-Type: application/json`"
            ),
        )
    }

    /// The body is over the limit, whatever is in it.
    pub(super) fn body_too_large(limit_bytes: u64) -> Self {
        Self::new(
            Code::TooLarge,
            format!(
                "the body is larger than {limit_bytes} bytes, the most that is read; split the \
                 batch"
            ),
        )
        .and(More {
            limit: Some(limit_bytes),
            ..More::default()
        })
    }

    /// There is nothing under this name.
    pub(super) fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::NotFound, detail)
    }

    /// This problem, which has shown the session something all the same.
    pub(super) fn in_session(mut self, token: HeaderValue) -> Self {
        self.more.session = Some(token);
        self
    }

    /// There is nothing at this path.
    pub(super) fn no_such_path(path: &str) -> Self {
        Self::new(
            Code::NotFound,
            format!("there is nothing at {path:?}; /openapi.json lists every path"),
        )
    }

    /// The path does not take this method.
    pub(super) fn method_not_allowed(method: &str, allow: Option<HeaderValue>) -> Self {
        Self::new(
            Code::MethodNotAllowed,
            format!("this path does not take {method}; the header Allow lists what it takes"),
        )
        .and(More {
            allow,
            ..More::default()
        })
    }

    /// The body did not arrive in time.
    pub(super) fn slow_body() -> Self {
        Self::new(
            Code::Timeout,
            "the body did not arrive in time; nothing was written, send it again",
        )
    }

    /// This build does not do that yet.
    pub(super) fn not_implemented(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::NotImplemented, detail)
    }

    /// It cannot be done now.
    pub(super) fn unavailable(detail: impl Into<Cow<'static, str>>, retry_after_ms: u64) -> Self {
        Self::new(Code::Unavailable, detail).and(More {
            retry_after_ms: Some(retry_after_ms),
            ..More::default()
        })
    }

    /// A defect of ours.
    pub(super) fn internal(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Internal, detail)
    }

    /// The answer to an append that was not done.
    pub(super) fn of_append(error: AppendError, door: &Door) -> Self {
        let detail = error.to_string();
        match error {
            AppendError::WrongExpectedRevision {
                stream,
                actual,
                events_since,
                ..
            } => Self::new(Code::WrongExpectedRevision, detail).and(More {
                stream: Some(stream.to_string()),
                actual: Some(actual.map(|revision| revision.0)),
                events_since: Some(
                    events_since
                        .iter()
                        .map(|event| EventView::new(event, door))
                        .collect(),
                ),
                ..More::default()
            }),
            AppendError::NotHome {
                stream,
                home,
                epoch,
            } => {
                let home = door.region_name(home);
                Self::new(
                    Code::NotHome,
                    format!("stream {stream} is ordered in region {home}; send the request there"),
                )
                .and(More {
                    stream: Some(stream.to_string()),
                    home: Some(home),
                    epoch: Some(epoch.into()),
                    ..More::default()
                })
            }
            AppendError::Unavailable { retry_after_ms, .. } => {
                Self::unavailable(detail, retry_after_ms)
            }
            AppendError::Indeterminate { .. } => Self::new(Code::Indeterminate, detail),
            AppendError::Invalid { .. } => Self::invalid(detail),
            AppendError::Conflict { .. } => Self::new(Code::Conflict, detail),
            AppendError::TooLarge { limit, .. } => Self::new(Code::TooLarge, detail).and(More {
                limit: Some(limit),
                ..More::default()
            }),
        }
    }

    /// The answer to a read that was not done.
    pub(super) fn of_read(error: &ReadError) -> Self {
        let detail = error.to_string();
        match error {
            ReadError::Unavailable { retry_after_ms, .. } => {
                Self::unavailable(detail, *retry_after_ms)
            }
            ReadError::Invalid { .. } => Self::invalid(detail),
            ReadError::UnknownRegion { .. } => Self::not_found(detail),
            ReadError::Stale { retry_after_ms, .. } => Self::new(Code::Stale, detail).and(More {
                retry_after_ms: Some(*retry_after_ms),
                ..More::default()
            }),
            ReadError::NotHome { .. } => Self::new(Code::NotHome, detail),
        }
    }

    /// The answer to a question that was not answered.
    pub(super) fn of_why(error: &WhyError) -> Self {
        match error {
            WhyError::Invalid { .. } => Self::invalid(error.to_string()),
            WhyError::NotHeld { .. } => Self::new(Code::NotFound, error.to_string()),
            WhyError::Read(error) => Self::of_read(error),
        }
    }

    /// The answer to what a projection did not do.
    pub(super) fn of_projection(error: ProjectionError, door: &Door) -> Self {
        let detail = error.to_string();
        match error {
            ProjectionError::NotFound(_) | ProjectionError::NotParked { .. } => {
                Self::not_found(detail)
            }
            ProjectionError::Definition(_) => Self::invalid(detail),
            ProjectionError::Conflict(_) => Self::new(Code::Conflict, detail),
            ProjectionError::Unavailable(_) => Self::unavailable(detail, 1000),
            ProjectionError::Stale(_) => Self::new(Code::Stale, detail).and(More {
                retry_after_ms: Some(1000),
                ..More::default()
            }),
            ProjectionError::Query(QueryError::Unavailable { .. }) => {
                Self::unavailable(detail, 1000)
            }
            ProjectionError::Query(_) => Self::invalid(detail),
            ProjectionError::Append(error) => Self::of_append(error, door),
        }
    }

    /// The answer to homes that were not moved.
    pub(super) fn of_move(error: &MoveError) -> Self {
        let detail = error.to_string();
        match error {
            MoveError::Invalid(_) => Self::invalid(detail),
            MoveError::Conflict(_) => Self::new(Code::Conflict, detail),
            MoveError::Unavailable(_) => Self::unavailable(detail, 1000),
            MoveError::Unknown(_) => Self::new(Code::Indeterminate, detail),
        }
    }

    /// The answer to what a conflict record did not do.
    pub(super) fn of_conflict(error: &ConflictError) -> Self {
        let detail = error.to_string();
        match error {
            ConflictError::NotFound(_) => Self::not_found(detail),
            ConflictError::Invalid(_) => Self::invalid(detail),
            ConflictError::Conflict(_) => Self::new(Code::Conflict, detail),
            ConflictError::Unavailable(_) => Self::unavailable(detail, 1000),
            ConflictError::Unknown(_) => Self::new(Code::Indeterminate, detail),
        }
    }

    /// The answer to a key that was neither reserved nor released.
    pub(super) fn of_reserve(error: &ReserveError, door: &Door) -> Self {
        let detail = error.to_string();
        match error {
            ReserveError::Reserved(held) => {
                let until = held.until.map(rfc3339);
                let how_long = match &until {
                    Some(until) => format!("until {until}"),
                    None => "for good".to_owned(),
                };
                let detail = format!(
                    "key {} is held by {:?}, {how_long}; nothing was changed",
                    held.key, held.owner
                );
                Self::new(Code::Reserved, detail).and(More {
                    home: Some(door.region_name(held.home)),
                    owner: Some(held.owner.clone()),
                    since: Some(rfc3339(held.since)),
                    until: Some(until),
                    ..More::default()
                })
            }
            ReserveError::Over { .. } => Self::new(Code::Conflict, detail),
            ReserveError::Invalid { .. } => Self::invalid(detail),
            ReserveError::Unavailable { retry_after_ms, .. } => {
                Self::unavailable(detail, *retry_after_ms)
            }
            ReserveError::Indeterminate { .. } => Self::new(Code::Indeterminate, detail),
        }
    }

    pub(super) fn of_consumer(error: &ConsumerError) -> Self {
        let detail = error.to_string();
        match error {
            ConsumerError::NotFound { .. } => Self::not_found(detail),
            ConsumerError::Invalid { .. } => Self::invalid(detail),
            ConsumerError::Unavailable { retry_after_ms, .. } => {
                Self::unavailable(detail, *retry_after_ms)
            }
            ConsumerError::NotHere { name, .. } => Self::new(Code::NotHome, detail).and(More {
                home: Some(name.clone()),
                ..More::default()
            }),
        }
    }

    /// This problem as JSON.
    pub(super) fn to_json(&self) -> Vec<u8> {
        // Every part serialises by construction; were that ever wrong, the status still tells.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(retry_after_ms) = self.more.retry_after_ms {
            // The header counts whole seconds; 0 would ask for a busy loop.
            let seconds = retry_after_ms.div_ceil(1000).max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(token) = self.more.session {
            headers.insert(SESSION_HEADER, token);
        }
        if let Some(allow) = self.more.allow {
            headers.insert(header::ALLOW, allow);
        }
        response
    }
}

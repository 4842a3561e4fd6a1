//! What comes in by path and query, checked.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use meridian_event::StreamId;
use serde::de::DeserializeOwned;

use super::Door;
use super::problem::Problem;

/// The most events on one page.
pub(super) const LIMIT_MAX: u32 = 10_000;
/// How many events are on a page when nobody says.
pub(super) const LIMIT_DEFAULT: u32 = 100;

/// The one name in a path, percent-decoded.
pub(super) struct Name(pub(super) String);

impl FromRequestParts<Door> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, door: &Door) -> Result<Self, Problem> {
        let name: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, door).await;
        name.map(|Path(name)| Self(name)).map_err(|rejection| {
            Problem::invalid(format!(
                "the path cannot be read: {}",
                rejection.body_text()
            ))
        })
    }
}

/// The stream named in a path.
pub(super) struct Stream(pub(super) StreamId);

impl FromRequestParts<Door> for Stream {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, door: &Door) -> Result<Self, Problem> {
        let Name(name) = Name::from_request_parts(parts, door).await?;
        StreamId::new(&name)
            .map(Self)
            .map_err(|error| Problem::invalid(error.to_string()))
    }
}

/// The query, every part of it known.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Door> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, door: &Door) -> Result<Self, Problem> {
        let query: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, door).await;
        query
            .map(|Query(query)| Self(query))
            .map_err(|rejection| Problem::invalid(rejection.body_text()))
    }
}

/// How many events were asked for.
///
/// # Errors
/// When it is none, or more than a page holds.
pub(super) fn check_limit(limit: Option<u32>) -> Result<u32, Problem> {
    match limit.unwrap_or(LIMIT_DEFAULT) {
        limit @ 1..=LIMIT_MAX => Ok(limit),
        other => Err(Problem::invalid(format!(
            "limit is {other}; ask for 1 to {LIMIT_MAX} events and read on from there"
        ))),
    }
}

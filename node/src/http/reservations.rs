//! `/v1/reservations/{namespace}/{key}`: names that only one owner may have in all regions.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use meridian_client::{Reservation, ReservationKey};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Door;
use super::body::{parse, read_json_body};
use super::params::Params;
use super::problem::Problem;
use super::session::{Session, SessionHeader};
use crate::reservations::stream_of;
use crate::session::Shown;
use crate::shown::rfc3339;

/// What makes a repeated request known.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The longest such header, in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;
/// Makes ids of such headers.
const NAMESPACE: Uuid = Uuid::from_u128(0x8c61_90d2_7b3e_4a54_a3d8_15f4_92e6_0b1c);

/// The key that is named in a path, percent-decoded.
pub(super) struct Key(ReservationKey);

impl FromRequestParts<Door> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, door: &Door) -> Result<Self, Problem> {
        let named: Result<Path<(String, String)>, PathRejection> =
            Path::from_request_parts(parts, door).await;
        let Path((namespace, key)) = named.map_err(|rejection| {
            Problem::invalid(format!(
                "the path cannot be read: {}",
                rejection.body_text()
            ))
        })?;
        let key = ReservationKey { namespace, key };
        key.check()
            .map_err(|error| Problem::invalid(error.to_string()))?;
        Ok(Self(key))
    }
}

/// What makes this request known when it is repeated.
pub(super) struct Once(Option<Uuid>);

impl FromRequestParts<Door> for Once {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Door) -> Result<Self, Problem> {
        once(&parts.headers).map(Self)
    }
}

fn once(headers: &HeaderMap) -> Result<Option<Uuid>, Problem> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (given.next(), given.next()) {
        (None, _) => Ok(None),
        (Some(one), None) if (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&one.len()) => {
            Ok(Some(Uuid::new_v5(&NAMESPACE, one.as_bytes())))
        }
        _ => Err(Problem::invalid(format!(
            "the header Idempotency-Key is given once, with 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes, or not at all"
        ))),
    }
}

/// Who is to hold a key, and for how long.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReserveRequest {
    /// Whose the key is to be: 1 to 256 bytes, such as an account's number.
    owner: String,
    /// For how long, from now on; for good when it is left out.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 316_224_000)]
    for_seconds: Option<u64>,
}

/// A key and who holds it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Reservation)]
pub(super) struct ReservationView {
    /// What kind of key.
    namespace: String,
    /// The key.
    key: String,
    /// Whose it is.
    owner: String,
    /// Since when, by the clock of the region that decided it.
    #[schema(format = "date-time")]
    since: String,
    /// Until when, by the clock of the region that decides about it then; null when it is held for good.
    #[schema(format = "date-time")]
    until: Option<String>,
    /// The region that decides about the key.
    home: String,
    /// The region that tells this: the home when a key is reserved; else the one that was asked, which may not
    /// have heard of the last change yet.
    told_by: String,
}

impl ReservationView {
    fn new(reservation: Reservation, told_by: String, door: &Door) -> Self {
        Self {
            namespace: reservation.key.namespace,
            key: reservation.key.key,
            owner: reservation.owner,
            since: rfc3339(reservation.since),
            until: reservation.until.map(rfc3339),
            home: door.region_name(reservation.home),
            told_by,
        }
    }
}

/// Reserves a key for an owner
///
/// Wherever it is sent, the region that orders the key decides. The same owner again renews it, or changes for how
/// long; another one is refused while it is held. It is acknowledged once a majority of the regions holds it.
#[utoipa::path(
    put,
    path = "/v1/reservations/{namespace}/{key}",
    operation_id = "reserve",
    tag = "reservations",
    params(
        ("namespace" = String, Path, description = "What kind of key, such as `email`, percent-encoded: 1 to 128 bytes"),
        ("key" = String, Path, description = "The key, percent-encoded: any text of 1 to 1,024 bytes"),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes repeating this very request harmless: what it did is not done twice"),
        ("Meridian-Session" = Option<String>, Header, description = "What this caller has seen: the token of an earlier answer, from whichever region; several with commas between them"),
    ),
    request_body = ReserveRequest,
    responses(
        (status = 200, description = "The owner holds it", body = ReservationView, headers(("Meridian-Session" = String, description = "A token for what the request's token stands for and what this answer shows"))),
        (status = 400, description = "`invalid`: no key can be held so", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "`timeout`: the body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`reserved`: another owner holds it; see `owner` and `until`. `conflict`: what this Idempotency-Key did is over", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`too_large`: the body is over the limit", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: nothing was changed; see `Retry-After`", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may be reserved; repeat the request", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn reserve(
    State(door): State<Door>,
    Key(key): Key,
    Once(once): Once,
    mut session: Session,
    request: Request,
) -> Result<(SessionHeader, Json<ReservationView>), Problem> {
    let body = read_json_body(&door, request).await?;
    let asked: ReserveRequest = parse(&body)?;
    let hold_for = asked.for_seconds.map(Duration::from_secs);
    let reserve = door.backend.reserve(key, asked.owner, hold_for, once);
    let reservation = reserve
        .await
        .map_err(|error| Problem::of_reserve(&error, &door))?;
    see(&mut session, &reservation);
    let home = door.region_name(reservation.home);
    let view = ReservationView::new(reservation, home, &door);
    Ok((session.header(&door), Json(view)))
}

/// Shows who holds a key
///
/// As far as this region has heard, and by its clock. With a session that has seen the key reserved it has.
#[utoipa::path(
    get,
    path = "/v1/reservations/{namespace}/{key}",
    operation_id = "get_reservation",
    tag = "reservations",
    params(
        ("namespace" = String, Path, description = "What kind of key, percent-encoded"),
        ("key" = String, Path, description = "The key, percent-encoded"),
        ("Meridian-Session" = Option<String>, Header, description = "What this caller has seen: the token of an earlier answer, from whichever region; several with commas between them"),
        ("Meridian-Wait-Ms" = Option<u32>, Header, description = "How long this region may take to catch up with the token before it answers `stale`: 0 to 30000, 2000 by default"),
    ),
    responses(
        (status = 200, description = "Who holds it", body = ReservationView, headers(("Meridian-Session" = String, description = "A token for what the request's token stands for and what this answer shows"))),
        (status = 400, description = "`invalid`: there can be no such key", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: nobody holds it, as far as this region knows", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`stale`: this region does not hold yet what the token stands for; `unavailable`: it cannot be read here now; see `Retry-After`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn read(
    State(door): State<Door>,
    Key(key): Key,
    mut session: Session,
) -> Result<(SessionHeader, Json<ReservationView>), Problem> {
    let stream = stream_of(&key);
    session.catch_up(&door, Shown::Stream(&stream)).await?;
    let here = door.region_name(door.backend.region());
    let found = door.backend.reservation(&key);
    let Some(reservation) = found.map_err(|error| Problem::of_read(&error))? else {
        return Err(Problem::not_found(format!(
            "nobody holds key {key}, as far as region {here} knows"
        )));
    };
    see(&mut session, &reservation);
    let view = ReservationView::new(reservation, here, &door);
    Ok((session.header(&door), Json(view)))
}

/// Who gives a key back.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReleaseParams {
    /// Whose the key is.
    owner: String,
}

/// How a key was released.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Released)]
pub(super) struct ReleasedView {
    /// What kind of key.
    namespace: String,
    /// The key.
    key: String,
    /// Whose it is not any more.
    owner: String,
    /// Whether it was until now.
    released: bool,
    /// The region that decides about the key.
    home: String,
}

/// Releases a key
///
/// It is free at once. What the owner does not hold any more is released already.
#[utoipa::path(
    delete,
    path = "/v1/reservations/{namespace}/{key}",
    operation_id = "release",
    tag = "reservations",
    params(
        ("namespace" = String, Path, description = "What kind of key, percent-encoded"),
        ("key" = String, Path, description = "The key, percent-encoded"),
        ReleaseParams,
        ("Idempotency-Key" = Option<String>, Header, description = "Makes repeating this very request harmless: what it did is not done twice"),
    ),
    responses(
        (status = 200, description = "The owner does not hold it", body = ReleasedView),
        (status = 400, description = "`invalid`: the request is wrong as it stands", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`reserved`: another owner holds it; see `owner` and `until`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: nothing was changed; see `Retry-After`", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may be released; repeat the request", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn release(
    State(door): State<Door>,
    Key(key): Key,
    Params(params): Params<ReleaseParams>,
    Once(once): Once,
) -> Result<Json<ReleasedView>, Problem> {
    let ReservationKey {
        namespace,
        key: name,
    } = key.clone();
    let release = door.backend.release(key, params.owner.clone(), once);
    let (released, home) = release
        .await
        .map_err(|error| Problem::of_reserve(&error, &door))?;
    Ok(Json(ReleasedView {
        namespace,
        key: name,
        owner: params.owner,
        released,
        home: door.region_name(home),
    }))
}

// What an answer shows, its reader has seen.
fn see(session: &mut Session, shown: &Reservation) {
    let seen = &mut session.seen;
    seen.positions.advance(shown.dot.log(), shown.dot.position);
    seen.at = seen.at.max(shown.timestamp);
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn of(values: &[&str]) -> Option<Option<Uuid>> {
        let mut headers = HeaderMap::new();
        for value in values {
            let value = HeaderValue::from_str(value).expect("a header");
            headers.append(IDEMPOTENCY_KEY, value);
        }
        once(&headers).ok()
    }

    #[test]
    fn a_request_is_known_again_by_one_header() {
        assert_eq!(of(&[]), Some(None));
        assert_eq!(of(&["a"]), of(&["a"]));
        assert_ne!(of(&["a"]), of(&["b"]));
        for wrong in [&[""][..], &["a", "a"], &[&*"x".repeat(257)]] {
            assert_eq!(of(wrong), None, "{wrong:?}");
        }
    }
}

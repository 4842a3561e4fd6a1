//! Which path leads where, and what every answer has in common.

use std::panic::AssertUnwindSafe;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use futures_util::FutureExt;
use jiff::Timestamp as WallTime;
use jiff::fmt::rfc2822::DateTimePrinter;
use tokio::time::Instant;

use super::problem::Problem;
use super::{
    Door, append, categories, conflicts, consumers, events, homes, openapi, operations,
    projections, regions, reservations, settling, state, stream, why,
};
use crate::metrics::{HttpRequest, HttpRoute};

/// Every path of the API. The document at `/openapi.json` has the same, which a test checks.
pub(super) fn paths() -> Vec<(&'static str, MethodRouter<Door>)> {
    vec![
        (
            "/v1/streams/{stream}/events",
            post(append::append).get(stream::read),
        ),
        ("/v1/streams/{stream}/state", get(state::read)),
        ("/v1/events", get(events::read)),
        ("/v1/await", get(settling::await_settled)),
        ("/v1/status", get(operations::status)),
        ("/v1/digest", get(operations::digest)),
        ("/v1/why/order", get(why::order)),
        ("/v1/homes", get(homes::list).post(homes::move_many)),
        ("/v1/homes/{stream}", get(homes::home)),
        ("/v1/homes/{stream}/move", post(homes::move_one)),
        ("/v1/regions/{name}", get(regions::region)),
        ("/v1/regions/{name}/fence", post(regions::fence)),
        ("/v1/regions/{name}/join", post(regions::join)),
        ("/v1/regions/{name}/leave", post(regions::leave)),
        ("/v1/conflicts", get(conflicts::list)),
        ("/v1/conflicts/{id}", get(conflicts::read)),
        ("/v1/conflicts/{id}/resolve", post(conflicts::resolve)),
        ("/v1/regions/{name}/drain", post(homes::drain)),
        ("/v1/regions/{name}/resume", post(homes::resume)),
        ("/v1/categories", get(categories::list)),
        (
            "/v1/categories/{category}",
            get(categories::read)
                .put(categories::set)
                .delete(categories::unset),
        ),
        ("/v1/projections", get(projections::list)),
        (
            "/v1/projections/{name}",
            get(projections::read)
                .put(projections::put)
                .delete(projections::delete),
        ),
        ("/v1/projections/{name}/rebuild", post(projections::rebuild)),
        ("/v1/projections/{name}/promote", post(projections::promote)),
        (
            "/v1/projections/{name}/rollback",
            post(projections::rollback),
        ),
        ("/v1/projections/{name}/pause", post(projections::pause)),
        ("/v1/projections/{name}/resume", post(projections::resume)),
        ("/v1/projections/{name}/diff", get(projections::diff)),
        ("/v1/projections/{name}/parked", get(projections::parked)),
        (
            "/v1/projections/{name}/parked/{id}/retry",
            post(projections::retry),
        ),
        (
            "/v1/projections/{name}/parked/{id}/drop",
            post(projections::drop_parked),
        ),
        ("/v1/projections/{name}/query", post(projections::query)),
        ("/v1/consumers", get(consumers::list)),
        (
            "/v1/consumers/{name}",
            get(consumers::read)
                .put(consumers::put)
                .delete(consumers::delete),
        ),
        ("/v1/consumers/{name}/fetch", post(consumers::fetch)),
        ("/v1/consumers/{name}/ack", post(consumers::ack)),
        ("/v1/consumers/{name}/nack", post(consumers::nack)),
        ("/v1/consumers/{name}/parked", get(consumers::parked)),
        (
            "/v1/consumers/{name}/parked/{event}/retry",
            post(consumers::retry),
        ),
        (
            "/v1/consumers/{name}/parked/{event}/drop",
            post(consumers::drop_parked),
        ),
        (
            "/v1/reservations/{namespace}/{key}",
            get(reservations::read)
                .put(reservations::reserve)
                .delete(reservations::release),
        ),
        ("/healthz", get(operations::healthz)),
        ("/readyz", get(operations::readyz)),
        ("/metrics", get(operations::metrics)),
        ("/openapi.json", get(openapi::document)),
    ]
}

/// The whole API over `door`.
pub(super) fn router(door: Door) -> Router {
    paths()
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| {
            router.route(path, methods)
        })
        .fallback(no_such_path)
        .layer(middleware::from_fn_with_state(door.clone(), observe))
        .with_state(door)
}

async fn no_such_path(request: Request) -> Problem {
    Problem::no_such_path(request.uri().path())
}

/// Counts and times every request, dates every answer, and words what axum answers by itself.
async fn observe(State(door): State<Door>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = known(request.method());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());

    // A handler that panics has broken an assertion. The process goes on, and so does this
    // connection; what was asked for may or may not have been done.
    let mut response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            tracing::error!(method, route, "a request broke an assertion");
            Problem::internal("a defect of the server, see its log; the request may have been done")
                .into_response()
        }
    };
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        let allow = response.headers_mut().remove(header::ALLOW);
        response = Problem::method_not_allowed(method, allow).into_response();
    }
    if let Some(date) = http_date(&door) {
        response.headers_mut().insert(header::DATE, date);
    }

    let status = response.status().as_u16();
    let took = begun.elapsed();
    tracing::debug!(method, route, status, ?took, "answered");
    let metrics = door.backend.metrics();
    metrics
        .http_request_seconds
        .get_or_create(&HttpRoute {
            route: route.clone(),
        })
        .observe(took.as_secs_f64());
    metrics
        .http_requests
        .get_or_create(&HttpRequest {
            method,
            route,
            status,
        })
        .inc();
    response
}

/// The method's name. One that HTTP does not define is `OTHER`: the client chooses it freely, and
/// each would be a time series of its own.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "OTHER",
    }
}

fn http_date(door: &Door) -> Option<HeaderValue> {
    let since = door.backend.wall_clock().since_unix();
    let at = WallTime::from_second(i64::try_from(since.as_secs()).ok()?).ok()?;
    let text = DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&at)
        .ok()?;
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_path_is_described_and_every_described_path_is_served() {
        let served: BTreeSet<_> = paths()
            .into_iter()
            .map(|(path, _)| path.to_owned())
            .collect();
        let described: BTreeSet<_> = openapi().paths.paths.into_keys().collect();
        assert_eq!(served, described);
    }
}

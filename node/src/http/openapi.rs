//! `/openapi.json`: the API described, from the handlers themselves.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;

use super::{
    append, categories, conflicts, consumers, events, homes, operations, projections, regions,
    reservations, settling, state, stream, why,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Meridian",
        description = "A multi-region, active-active event store.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    paths(
        append::append,
        stream::read,
        state::read,
        events::read,
        settling::await_settled,
        operations::status,
        operations::digest,
        why::order,
        homes::list,
        homes::move_many,
        homes::home,
        homes::move_one,
        regions::region,
        regions::fence,
        regions::join,
        regions::leave,
        conflicts::list,
        conflicts::read,
        conflicts::resolve,
        homes::drain,
        homes::resume,
        categories::list,
        categories::read,
        categories::set,
        categories::unset,
        projections::list,
        projections::read,
        projections::put,
        projections::delete,
        projections::rebuild,
        projections::promote,
        projections::rollback,
        projections::pause,
        projections::resume,
        projections::diff,
        projections::parked,
        projections::retry,
        projections::drop_parked,
        projections::query,
        consumers::list,
        consumers::read,
        consumers::put,
        consumers::delete,
        consumers::fetch,
        consumers::ack,
        consumers::nack,
        consumers::parked,
        consumers::retry,
        consumers::drop_parked,
        reservations::reserve,
        reservations::read,
        reservations::release,
        operations::healthz,
        operations::readyz,
        operations::metrics,
        document,
    ),
    tags(
        (name = "events", description = "Append and read"),
        (name = "categories", description = "How writes to a category's streams are settled"),
        (name = "consumers", description = "Durable places from which programs are given events, to acknowledge each"),
        (name = "reservations", description = "Names that only one owner may have in all regions"),
        (name = "projections", description = "Read models: define, follow, mend, exchange and ask them"),
        (name = "homes", description = "Which region orders a stream, and moving that to another"),
        (name = "conflicts", description = "Events that were acknowledged and lost their place, and what becomes of them"),
        (name = "operations", description = "What operators and their tools ask"),
    )
)]
struct Description;

/// The description of the whole HTTP API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Description::openapi()
}

/// Describes this API
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "get_description",
    tag = "operations",
    responses((status = 200, description = "This document, OpenAPI 3.1", body = serde_json::Value))
)]
pub(super) async fn document() -> Response {
    static TEXT: LazyLock<Bytes> =
        LazyLock::new(|| openapi().to_pretty_json().unwrap_or_default().into());
    let content_type = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, content_type)], TEXT.clone()).into_response()
}

//! `GET /v1/why/…`: questions that operators ask, answered in sentences.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Door;
use super::params::Params;
use super::problem::Problem;
use crate::OrderReason;

/// Which two events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OrderParams {
    /// An event: `origin/partition/position`, `stream@revision`, or its id.
    a: String,
    /// Another one, named in any of these ways.
    b: String,
}

/// Says which of two events stands first in the one order, and why
///
/// It also says how settled their places are at this node, and whether one could have known of the
/// other: the order is the same everywhere, but standing earlier does not mean having been the cause.
#[utoipa::path(
    get,
    path = "/v1/why/order",
    operation_id = "why_order",
    tag = "operations",
    params(OrderParams),
    responses(
        (status = 200, description = "Which stands first, and what decided", body = OrderReason),
        (status = 400, description = "`invalid`: one of the two names no event", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: this region does not hold one of the two", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: one of the two cannot be read here now; see `Retry-After`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn order(
    State(door): State<Door>,
    Params(params): Params<OrderParams>,
) -> Result<Json<OrderReason>, Problem> {
    let reason = door.backend.why_order(&params.a, &params.b);
    reason.map(Json).map_err(|error| Problem::of_why(&error))
}

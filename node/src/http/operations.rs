//! What operators and their tools ask: status, digest, health, metrics.

use std::sync::PoisonError;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::Door;
use super::problem::Problem;
use super::views::HealthView;
use crate::{DigestEntry, NodeStatus};

/// Says what this node knows of itself and its federation
#[utoipa::path(
    get,
    path = "/v1/status",
    operation_id = "get_status",
    tag = "operations",
    responses((status = 200, description = "Members, links and origin logs", body = NodeStatus))
)]
pub(super) async fn status(State(door): State<Door>) -> Json<NodeStatus> {
    Json(door.backend.status())
}

/// Says in brief what each origin log holds here
///
/// Two nodes with the same position and chain of a log hold the same bytes.
#[utoipa::path(
    get,
    path = "/v1/digest",
    operation_id = "get_digest",
    tag = "operations",
    responses((status = 200, description = "One entry per origin log", body = Vec<DigestEntry>))
)]
pub(super) async fn digest(State(door): State<Door>) -> Json<Vec<DigestEntry>> {
    Json(door.backend.digest())
}

/// Says that the process runs
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "get_health",
    tag = "operations",
    responses((status = 200, description = "It runs", body = HealthView))
)]
pub(super) async fn healthz() -> Json<HealthView> {
    Json(HealthView { status: "ok" })
}

/// Says whether this node can take requests
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "get_readiness",
    tag = "operations",
    responses(
        (status = 200, description = "It can", body = HealthView),
        (status = 503, description = "`unavailable`: it cannot, and why", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn readyz(State(door): State<Door>) -> Result<Json<HealthView>, Problem> {
    if door.draining.is_cancelled() {
        return Err(Problem::unavailable("this node is stopping", 1000));
    }
    match door.backend.ready() {
        Ok(()) => Ok(Json(HealthView { status: "ok" })),
        Err(reason) => Err(Problem::unavailable(
            format!("this node is not ready: {reason}"),
            1000,
        )),
    }
}

/// Everything this node counts, as OpenMetrics text
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "get_metrics",
    tag = "operations",
    responses(
        (status = 200, description = "All metrics", body = String, content_type = "application/openmetrics-text"),
        (status = 500, description = "`internal`: a defect", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn metrics(State(door): State<Door>) -> Result<Response, Problem> {
    // Two scrapes at once would each see the other's half-way state. The lock guards nothing that
    // a panic could leave half-changed.
    let _scraping = door.scrape.lock().unwrap_or_else(PoisonError::into_inner);
    door.backend.refresh_metrics();
    let text = door.backend.metrics().encode().map_err(|error| {
        tracing::error!(%error, "the metrics cannot be formatted");
        Problem::internal("the metrics cannot be formatted")
    })?;
    let content_type =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

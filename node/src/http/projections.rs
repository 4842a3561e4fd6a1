//! `/v1/projections`: read models, defined, followed, mended, exchanged and asked.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use meridian_clock::Timestamp;
use meridian_projection::{Answer, Definition, Drained, Parked, Query, TableDiff};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::Door;
use super::body::read_json_body;
use super::params::{Name, Params};
use super::problem::Problem;
use super::session::{Session, SessionHeader};
use super::views::raw_json;
use crate::shown::rfc3339;
use crate::{ModelStatus, ProjectionStatus, Projections};

/// All projections of this region.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Projections)]
pub(super) struct ProjectionsView {
    /// By name.
    projections: Vec<ProjectionView>,
}

/// A projection as it stands in this region.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Projection)]
pub(super) struct ProjectionView {
    /// Its name.
    name: String,
    /// The version of its newest definition.
    version: u32,
    /// Whether its workers are held.
    paused: bool,
    /// The read model that answers queries.
    active: Option<ModelView>,
    /// The one that is being built to take over.
    candidate: Option<ModelView>,
    /// The one that answered before, kept for a rollback.
    previous: Option<ModelView>,
    /// The newest definition.
    #[schema(value_type = serde_json::Value)]
    definition: Definition,
}

/// One read model.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ReadModel)]
pub(super) struct ModelView {
    /// Its number in this region.
    number: u32,
    /// The version of its definition.
    version: u32,
    /// What its worker is doing: `catching-up`, `following`, `retrying`, `stopped`, `waiting-for-sink`,
    /// `waiting-for-log`, `fenced`.
    doing: String,
    /// What is wrong, if anything is.
    error: Option<String>,
    /// The last event that was looked at: an order key; in the live tier `live` and the order key of the
    /// last one of each origin log, with spaces between them.
    checkpoint: String,
    /// Everything at or below this timestamp is in it.
    through: String,
    /// The wall-clock part of `through`, RFC 3339.
    #[schema(format = "date-time")]
    through_at: String,
    /// How far it is behind what is settled here, in milliseconds; null before its worker has begun.
    lag_ms: Option<u64>,
    /// How much of what is settled it has looked at, by the time of the events; in the live tier, of what
    /// is held, by their number: 0 to 1.
    progress: f64,
    /// How many events were applied.
    applied: u64,
    /// How many were left out for good.
    skipped: u64,
    /// How many are parked.
    parked: u64,
}

impl ModelView {
    fn new(model: &ModelStatus) -> Self {
        let doing = serde_json::to_value(&model.status.doing).unwrap_or_default();
        let checkpoint = &model.status.checkpoint;
        Self {
            number: model.number,
            version: model.version,
            doing: doing.as_str().unwrap_or_default().to_owned(),
            error: model.status.error.clone(),
            checkpoint: checkpoint.place.to_string(),
            through: checkpoint.through.to_string(),
            through_at: rfc3339(checkpoint.through),
            lag_ms: (checkpoint.through > Timestamp::ZERO)
                .then(|| u64::try_from(model.lag.as_millis()).unwrap_or(u64::MAX)),
            progress: model.progress,
            applied: checkpoint.applied,
            skipped: checkpoint.skipped,
            parked: model.status.parked,
        }
    }
}

impl ProjectionView {
    fn new(status: ProjectionStatus) -> Self {
        let of = |model: &Option<ModelStatus>| model.as_ref().map(ModelView::new);
        Self {
            name: status.definition.name.clone(),
            version: status.definition.version,
            paused: status.paused,
            active: of(&status.active),
            candidate: of(&status.candidate),
            previous: of(&status.previous),
            definition: status.definition.without_password(),
        }
    }
}

type Answered = Result<Json<ProjectionView>, Problem>;

fn projections(door: &Door) -> Result<Arc<Projections>, Problem> {
    let projections = door.backend.projections();
    projections.ok_or_else(|| Problem::not_implemented("this door has no projections"))
}

fn answer(door: &Door, result: Result<ProjectionStatus, crate::ProjectionError>) -> Answered {
    result
        .map(|status| Json(ProjectionView::new(status)))
        .map_err(|error| Problem::of_projection(error, door))
}

/// Lists the projections of this region
#[utoipa::path(
    get,
    path = "/v1/projections",
    operation_id = "list_projections",
    tag = "projections",
    responses((status = 200, description = "All of them, by name", body = ProjectionsView))
)]
pub(super) async fn list(State(door): State<Door>) -> Json<ProjectionsView> {
    let projections = door.backend.projections();
    let all = projections.map_or(Vec::new(), |projections| projections.list());
    Json(ProjectionsView {
        projections: all.into_iter().map(ProjectionView::new).collect(),
    })
}

/// Says where a projection stands
#[utoipa::path(
    get,
    path = "/v1/projections/{name}",
    operation_id = "get_projection",
    tag = "projections",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "Its definition and its read models", body = ProjectionView),
        (status = 404, description = "`not_found`: there is none of that name", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn read(State(door): State<Door>, Name(name): Name) -> Answered {
    answer(&door, projections(&door)?.get(&name))
}

/// Defines a projection in every region
///
/// The definition is checked, its SQL too, and written to the log. With the version in force, only
/// handlers, failure policy, workers and merge may differ: they hold from then on. A higher version is
/// built as a candidate beside the read model that answers, until it is promoted.
#[utoipa::path(
    put,
    path = "/v1/projections/{name}",
    operation_id = "put_projection",
    tag = "projections",
    params(("name" = String, Path, description = "Its name: 1 to 64 of a-z, 0-9, _ and -, beginning with a letter")),
    request_body(content = serde_json::Value, description = "`version`, `tier`, `source`, `sink`, `schema`, `on`, `failure`, `workers`, `merge`"),
    responses(
        (status = 200, description = "It is in force here", body = ProjectionView),
        (status = 400, description = "`invalid`: the definition is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: it does not follow on the version in force", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`too_large`: over a limit", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: it is not written, or has not come back here yet", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may be written; put it again", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn put(State(door): State<Door>, Name(name): Name, request: Request) -> Answered {
    let body = read_json_body(&door, request).await?;
    let mut definition = Definition::from_json(&body)
        .map_err(|error| Problem::of_projection(error.into(), &door))?;
    if !definition.name.is_empty() && definition.name != name {
        return Err(Problem::invalid(format!(
            "the definition is of {:?} and the path of {name:?}; use one name",
            definition.name
        )));
    }
    definition.name = name;
    answer(&door, projections(&door)?.put(definition).await)
}

/// Removes a projection and its read models in every region
#[utoipa::path(
    delete,
    path = "/v1/projections/{name}",
    operation_id = "delete_projection",
    tag = "projections",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "It is gone here", body = RemovedView),
        (status = 404, description = "`not_found`: there is none of that name", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: that is not written, or has not come back here yet", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete(
    State(door): State<Door>,
    Name(name): Name,
) -> Result<Json<RemovedView>, Problem> {
    let deleted = projections(&door)?.delete(&name).await;
    deleted.map_err(|error| Problem::of_projection(error, &door))?;
    Ok(Json(RemovedView { removed: name }))
}

/// What was removed.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Removed)]
pub(super) struct RemovedView {
    /// The projection.
    removed: String,
}

/// Builds a read model anew, beside the one that answers
#[utoipa::path(
    post,
    path = "/v1/projections/{name}/rebuild",
    operation_id = "rebuild_projection",
    tag = "projections",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "A candidate is being built", body = ProjectionView),
        (status = 404, description = "`not_found`: there is none of that name", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn rebuild(State(door): State<Door>, Name(name): Name) -> Answered {
    answer(&door, projections(&door)?.rebuild(&name))
}

/// Lets the candidate answer from here on
#[utoipa::path(
    post,
    path = "/v1/projections/{name}/promote",
    operation_id = "promote_projection",
    tag = "projections",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "It answers; the one before is kept", body = ProjectionView),
        (status = 404, description = "`not_found`: there is none of that name", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: there is no candidate, or it has not caught up", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn promote(State(door): State<Door>, Name(name): Name) -> Answered {
    answer(&door, projections(&door)?.promote(&name).await)
}

/// Lets the read model answer again that answered before
#[utoipa::path(
    post,
    path = "/v1/projections/{name}/rollback",
    operation_id = "rollback_projection",
    tag = "projections",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "It answers; the other one is a candidate again", body = ProjectionView),
        (status = 404, description = "`not_found`: there is none of that name", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: none answered before", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn rollback(State(door): State<Door>, Name(name): Name) -> Answered {
    answer(&door, projections(&door)?.rollback(&name).await)
}

/// Holds the workers of a projection; queries go on
#[utoipa::path(
    post,
    path = "/v1/projections/{name}/pause",
    operation_id = "pause_projection",
    tag = "projections",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "They are held", body = ProjectionView),
        (status = 404, description = "`not_found`: there is none of that name", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn pause(State(door): State<Door>, Name(name): Name) -> Answered {
    answer(&door, projections(&door)?.pause(&name, true))
}

/// Lets the workers go on, also where the failure policy stopped them
#[utoipa::path(
    post,
    path = "/v1/projections/{name}/resume",
    operation_id = "resume_projection",
    tag = "projections",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "They go on", body = ProjectionView),
        (status = 404, description = "`not_found`: there is none of that name", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn resume(State(door): State<Door>, Name(name): Name) -> Answered {
    answer(&door, projections(&door)?.pause(&name, false))
}

/// Two read models compared.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Diff)]
pub(super) struct DiffView {
    /// Both are complete to this timestamp, and no further.
    through: String,
    /// Whether all tables are the same in both.
    same: bool,
    /// By table: `rows` in each, rows `only_in` the active and only in the other one, `examples` of
    /// those, and why a table is `incomparable`.
    #[schema(value_type = Vec<serde_json::Value>)]
    tables: Vec<TableDiff>,
}

/// Compares the read model that answers with its candidate, or the one before, row by row
#[utoipa::path(
    get,
    path = "/v1/projections/{name}/diff",
    operation_id = "diff_projection",
    tag = "projections",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "What differs, at one place of the order", body = DiffView),
        (status = 404, description = "`not_found`: there is none of that name", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: there is nothing to compare, or the two do not get to one place", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn diff(
    State(door): State<Door>,
    Name(name): Name,
) -> Result<Json<DiffView>, Problem> {
    let compared = projections(&door)?.diff(&name).await;
    let (through, tables) = compared.map_err(|error| Problem::of_projection(error, &door))?;
    Ok(Json(DiffView {
        through: through.to_string(),
        same: tables.iter().all(TableDiff::is_same),
        tables,
    }))
}

/// An event that was not applied.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ParkedEvent)]
pub(super) struct ParkedView {
    /// Its number; rises in the order of parking.
    id: i64,
    /// Why it is here: `dead-letter`, `quarantined`, `behind`, `skipped`.
    kind: String,
    /// Its place in the one order.
    order_key: String,
    /// Its stream.
    stream: String,
    /// Its place in the stream.
    revision: u64,
    /// Its id.
    #[schema(format = "uuid")]
    event_id: String,
    /// Its type.
    #[serde(rename = "type")]
    event_type: String,
    /// The region that wrote it.
    origin: String,
    /// What happened.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// What the database said, or why it was dropped.
    reason: String,
    /// How often its handler was tried.
    attempts: u32,
}

/// Parked events.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ParkedEvents)]
pub(super) struct ParkedEventsView {
    /// In the order of parking.
    parked: Vec<ParkedView>,
}

impl ParkedView {
    fn new(parked: &Parked) -> Self {
        Self {
            id: parked.id,
            kind: parked.kind.name().to_owned(),
            order_key: parked.key.to_string(),
            stream: parked.stream.clone(),
            revision: parked.revision,
            event_id: parked.event_id.to_string(),
            event_type: parked.event_type.clone(),
            origin: parked.region.clone(),
            data: raw_json(&parked.data),
            reason: parked.reason.clone(),
            attempts: parked.attempts,
        }
    }
}

/// Which parked events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ParkedParams {
    /// Those after this number; all when it is left out.
    #[serde(default)]
    after: i64,
    /// Also those that were left out for good.
    #[serde(default)]
    skipped: bool,
}

/// Lists the events that the read model that answers has parked, at most 1,000
#[utoipa::path(
    get,
    path = "/v1/projections/{name}/parked",
    operation_id = "list_parked",
    tag = "projections",
    params(("name" = String, Path, description = "Its name"), ParkedParams),
    responses(
        (status = 200, description = "In the order of parking", body = ParkedEventsView),
        (status = 404, description = "`not_found`: there is no projection of that name", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: the database cannot be read", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn parked(
    State(door): State<Door>,
    Name(name): Name,
    Params(params): Params<ParkedParams>,
) -> Result<Json<ParkedEventsView>, Problem> {
    let all = projections(&door)?;
    let listed = all.parked(&name, params.after, params.skipped).await;
    let listed = listed.map_err(|error| Problem::of_projection(error, &door))?;
    Ok(Json(ParkedEventsView {
        parked: listed.iter().map(ParkedView::new).collect(),
    }))
}

/// The projection and the parked event in a path.
pub(super) struct ParkedPath {
    name: String,
    id: i64,
}

impl FromRequestParts<Door> for ParkedPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, door: &Door) -> Result<Self, Problem> {
        let path: Result<Path<(String, i64)>, PathRejection> =
            Path::from_request_parts(parts, door).await;
        path.map(|Path((name, id))| Self { name, id })
            .map_err(|rejection| {
                Problem::invalid(format!(
                    "the path cannot be read: {}",
                    rejection.body_text()
                ))
            })
    }
}

/// What became of parked events.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Drained)]
pub(super) struct DrainedView {
    /// How many were applied.
    applied: u64,
    /// Whether others of the stream are still parked.
    is_left: bool,
    /// Why the first of those failed.
    error: Option<String>,
}

impl DrainedView {
    fn new(drained: Drained) -> Self {
        Self {
            applied: drained.applied,
            is_left: drained.is_left,
            error: drained.error,
        }
    }
}

/// Tries a parked event again, with what its stream has parked, in order
#[utoipa::path(
    post,
    path = "/v1/projections/{name}/parked/{id}/retry",
    operation_id = "retry_parked",
    tag = "projections",
    params(("name" = String, Path, description = "The projection's name"), ("id" = i64, Path, description = "The parked event's number")),
    responses(
        (status = 200, description = "What became of it", body = DrainedView),
        (status = 404, description = "`not_found`: it is not parked", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: the database cannot be used", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn retry(
    State(door): State<Door>,
    path: ParkedPath,
) -> Result<Json<DrainedView>, Problem> {
    let drained = projections(&door)?.retry(&path.name, path.id).await;
    drained
        .map(|drained| Json(DrainedView::new(drained)))
        .map_err(|error| Problem::of_projection(error, &door))
}

/// Why a parked event is dropped.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DropRequest {
    /// Kept with the event.
    reason: String,
}

/// Leaves a parked event out for good, and tries what waited behind it
#[utoipa::path(
    post,
    path = "/v1/projections/{name}/parked/{id}/drop",
    operation_id = "drop_parked",
    tag = "projections",
    params(("name" = String, Path, description = "The projection's name"), ("id" = i64, Path, description = "The parked event's number")),
    request_body = DropRequest,
    responses(
        (status = 200, description = "It is listed as skipped; what became of those behind it", body = DrainedView),
        (status = 400, description = "`invalid`: it gives no reason", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: it is not parked", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`too_large`: over a limit", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: the database cannot be used", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn drop_parked(
    State(door): State<Door>,
    path: ParkedPath,
    request: Request,
) -> Result<Json<DrainedView>, Problem> {
    let body = read_json_body(&door, request).await?;
    let asked: DropRequest = serde_json::from_slice(&body)
        .map_err(|error| Problem::invalid(format!("send {{\"reason\": \"…\"}}: {error}")))?;
    if asked.reason.trim().is_empty() {
        return Err(Problem::invalid(
            "the reason is empty; say why the event is dropped, it is kept with it",
        ));
    }
    let all = projections(&door)?;
    let drained = all.drop_parked(&path.name, path.id, asked.reason).await;
    drained
        .map(|drained| Json(DrainedView::new(drained)))
        .map_err(|error| Problem::of_projection(error, &door))
}

/// A question to a read model.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct QueryRequest {
    /// One statement that reads.
    sql: String,
    /// Values for its named parameters, without the `:`.
    #[serde(default)]
    params: Map<String, Value>,
    /// A session token: the answer shows at least what it stands for.
    #[serde(default)]
    at_least: Option<String>,
}

/// What a read model says.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = QueryAnswer)]
pub(super) struct AnswerView {
    /// The names of the columns.
    columns: Vec<String>,
    /// The rows, each a list in the order of the columns.
    rows: Vec<Vec<Value>>,
    /// The last event that the read model had looked at; in the live tier `live` and the last one of each
    /// origin log.
    order_key: String,
}

/// Asks the read model that answers
///
/// Read-only, for at most 10 s, 10,000 rows and 16 MiB.
#[utoipa::path(
    post,
    path = "/v1/projections/{name}/query",
    operation_id = "query_projection",
    tag = "projections",
    params(("name" = String, Path, description = "Its name")),
    request_body = QueryRequest,
    responses(
        (status = 200, description = "The rows", body = AnswerView),
        (status = 400, description = "`invalid`: the query is not accepted, writes, or asks for too much", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: there is none of that name", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`too_large`: over a limit", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`stale`: the read model does not show what was seen in time; `unavailable`: it cannot be read", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn query(
    State(door): State<Door>,
    Name(name): Name,
    mut session: Session,
    request: Request,
) -> Result<(SessionHeader, Json<AnswerView>), Problem> {
    let body = read_json_body(&door, request).await?;
    let asked: QueryRequest = serde_json::from_slice(&body).map_err(|error| {
        Problem::invalid(format!(
            "send {{\"sql\": \"SELECT …\", \"params\": {{…}}}}: {error}"
        ))
    })?;
    if let Some(tokens) = &asked.at_least {
        let seen = door.backend.seen(tokens);
        session
            .seen
            .merge(&seen.map_err(|error| Problem::of_read(&error))?);
    }
    let query = Query {
        sql: asked.sql,
        params: asked.params,
    };
    let all = projections(&door)?;
    let answered = all.query(&name, query, &session.seen, session.wait());
    let Answer {
        columns,
        rows,
        checkpoint,
    } = answered
        .await
        .map_err(|error| Problem::of_projection(error, &door))?;
    session.seen.asked(&checkpoint.place);
    let answer = AnswerView {
        columns,
        rows,
        order_key: checkpoint.place.to_string(),
    };
    Ok((session.header(&door), Json(answer)))
}

//! Homes of streams: where they are, and moving them.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use meridian_event::{NameError, StreamId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Door;
use super::body::{parse, read_json_body};
use super::params::{Name, Params, Stream};
use super::problem::Problem;
use super::views::{HomeRuleView, HomeView};
use crate::StreamHome;

/// How many streams are listed at most.
const LIST_MAX: u32 = 1_000;
/// How many streams one request moves at most.
const STREAMS_MAX: usize = 10_000;
/// How long a move is waited for unless the request says otherwise, and at most.
const WAIT_MS: u64 = 5_000;
const WAIT_MS_MAX: u64 = 60_000;

/// Says which region orders a stream
#[utoipa::path(
    get,
    path = "/v1/homes/{stream}",
    operation_id = "get_home",
    tag = "homes",
    params(("stream" = String, Path, description = "The stream's name, percent-encoded")),
    responses(
        (status = 200, description = "Its home and epoch", body = HomeView),
        (status = 400, description = "`invalid`: no stream can have this name", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn home(State(door): State<Door>, Stream(stream): Stream) -> Json<HomeView> {
    Json(view(&door, door.backend.stream_home(&stream)))
}

/// Where a stream is to go.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MoveOne {
    /// The region's name.
    to: String,
    /// How long to wait until the region has opened it, in milliseconds; 5 s unless given.
    #[serde(default)]
    wait_ms: Option<u64>,
}

/// Which streams are to go where.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MoveMany {
    /// The streams' names, 10,000 at most.
    streams: Vec<String>,
    /// The region's name.
    to: String,
    /// How long to wait until the region has opened them, in milliseconds; 5 s unless given.
    #[serde(default)]
    wait_ms: Option<u64>,
}

/// Moves a stream's home to another region
///
/// The old home gives the stream up behind its last event, the new one opens once it holds that; who
/// writes meanwhile waits. An answer with `moving_from` means that this is still under way.
#[utoipa::path(
    post,
    path = "/v1/homes/{stream}/move",
    operation_id = "move_home",
    tag = "homes",
    params(("stream" = String, Path, description = "The stream's name, percent-encoded")),
    request_body = MoveOne,
    responses(
        (status = 200, description = "Its home now", body = HomeView),
        (status = 400, description = "`invalid`: no such region, or a stream without a home", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: its last move is not over, or it is to be created first", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: nothing can be decided now, nothing changed", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may have been decided; ask again", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn move_one(
    State(door): State<Door>,
    Stream(stream): Stream,
    request: Request,
) -> Result<Json<HomeView>, Problem> {
    let body = read_json_body(&door, request).await?;
    let asked: MoveOne = parse(&body)?;
    let wait = wait(asked.wait_ms)?;
    let moved = door
        .backend
        .move_homes(vec![stream.clone()], asked.to, wait)
        .await;
    let homes = moved.map_err(|error| Problem::of_move(&error))?;
    let home = homes.into_iter().next();
    Ok(Json(view(
        &door,
        home.unwrap_or_else(|| door.backend.stream_home(&stream)),
    )))
}

/// Moves the homes of many streams to another region
///
/// Like moving one. They are decided on 250 at a time; when one is refused, those before it may have
/// been moved.
#[utoipa::path(
    post,
    path = "/v1/homes",
    operation_id = "move_homes",
    tag = "homes",
    request_body = MoveMany,
    responses(
        (status = 200, description = "Their homes now", body = HomesView),
        (status = 400, description = "`invalid`: no such region, or a stream without a home", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: the last move of one is not over, or it is to be created first", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: nothing can be decided now", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may have been decided; ask again", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn move_many(
    State(door): State<Door>,
    request: Request,
) -> Result<Json<HomesView>, Problem> {
    let body = read_json_body(&door, request).await?;
    let asked: MoveMany = parse(&body)?;
    let wait = wait(asked.wait_ms)?;
    if asked.streams.len() > STREAMS_MAX {
        return Err(Problem::invalid(format!(
            "{} streams in one request; move at most {STREAMS_MAX} at once",
            asked.streams.len()
        )));
    }
    let streams: Result<Vec<StreamId>, NameError> =
        asked.streams.iter().map(|name| name.parse()).collect();
    let streams = streams.map_err(|error| Problem::invalid(error.to_string()))?;
    let moved = door.backend.move_homes(streams, asked.to, wait).await;
    let homes = moved.map_err(|error| Problem::of_move(&error))?;
    Ok(Json(HomesView::of(&door, homes, false)))
}

/// What of the list is wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    /// The last stream of the page before; none for the first page.
    after: Option<String>,
    /// How many at most; 100 unless given, 1,000 at most.
    limit: Option<u32>,
}

/// Streams and their homes.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Homes)]
pub(super) struct HomesView {
    /// In the order of their names, or as they were asked for.
    homes: Vec<HomeView>,
    /// Where the next page begins; null on the last one.
    next: Option<String>,
}

impl HomesView {
    fn of(door: &Door, homes: Vec<StreamHome>, has_more: bool) -> Self {
        let last = homes.last().map(|home| home.stream.to_string());
        Self {
            next: last.filter(|_| has_more),
            homes: homes.into_iter().map(|home| view(door, home)).collect(),
        }
    }
}

/// Lists the streams whose homes were ever moved
#[utoipa::path(
    get,
    path = "/v1/homes",
    operation_id = "list_moved_homes",
    tag = "homes",
    params(
        ("after" = Option<String>, Query, description = "The last stream of the page before; none for the first page"),
        ("limit" = Option<u32>, Query, description = "How many at most; 100 unless given, 1,000 at most"),
    ),
    responses(
        (status = 200, description = "A page of them", body = HomesView),
        (status = 400, description = "`invalid`: a parameter is wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(
    State(door): State<Door>,
    Params(params): Params<ListParams>,
) -> Result<Json<HomesView>, Problem> {
    let limit = params.limit.unwrap_or(100);
    if !(1..=LIST_MAX).contains(&limit) {
        return Err(Problem::invalid(format!(
            "limit is {limit}; give 1 to {LIST_MAX}"
        )));
    }
    let after: Option<Result<StreamId, NameError>> = params.after.map(|name| name.parse());
    let after = after
        .transpose()
        .map_err(|error| Problem::invalid(error.to_string()))?;
    let limit = limit as usize;
    let mut homes = door.backend.moved_streams(after.as_ref(), limit + 1);
    let has_more = homes.len() > limit;
    homes.truncate(limit);
    Ok(Json(HomesView::of(&door, homes, has_more)))
}

/// How long to wait.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainRequest {
    /// How long to wait until all that moves has been opened, in milliseconds; 5 s unless given.
    #[serde(default)]
    wait_ms: Option<u64>,
}

/// How a region was drained or resumed.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Drained)]
pub(super) struct DrainedView {
    /// The region.
    region: String,
    /// Whether it is home to nothing.
    drained: bool,
    /// Whether all that moves by it has been opened. If not, it will be.
    over: bool,
}

/// Makes a region home to nothing
///
/// Every stream that it is home to gets another home, new ones too, until it is resumed. Then its node
/// can be stopped and no writer waits for it.
#[utoipa::path(
    post,
    path = "/v1/regions/{name}/drain",
    operation_id = "drain_region",
    tag = "homes",
    params(("name" = String, Path, description = "The region's name")),
    request_body = DrainRequest,
    responses(
        (status = 200, description = "It is decided", body = DrainedView),
        (status = 400, description = "`invalid`: no such region", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: homes are being moved, or it is the last", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: nothing can be decided now", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may have been decided; ask again", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn drain(
    State(door): State<Door>,
    Name(region): Name,
    request: Request,
) -> Result<Json<DrainedView>, Problem> {
    set_drained(&door, region, true, request).await
}

/// Gives a drained region its share of homes again
#[utoipa::path(
    post,
    path = "/v1/regions/{name}/resume",
    operation_id = "resume_region",
    tag = "homes",
    params(("name" = String, Path, description = "The region's name")),
    request_body = DrainRequest,
    responses(
        (status = 200, description = "It is decided", body = DrainedView),
        (status = 400, description = "`invalid`: no such region", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: homes are being moved", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: nothing can be decided now", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may have been decided; ask again", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn resume(
    State(door): State<Door>,
    Name(region): Name,
    request: Request,
) -> Result<Json<DrainedView>, Problem> {
    set_drained(&door, region, false, request).await
}

async fn set_drained(
    door: &Door,
    region: String,
    drained: bool,
    request: Request,
) -> Result<Json<DrainedView>, Problem> {
    let body = read_json_body(door, request).await?;
    let asked: DrainRequest = parse(&body)?;
    let wait = wait(asked.wait_ms)?;
    let set = door
        .backend
        .set_drained(region.clone(), drained, wait)
        .await;
    let over = set.map_err(|error| Problem::of_move(&error))?;
    Ok(Json(DrainedView {
        region,
        drained,
        over,
    }))
}

fn view(door: &Door, home: StreamHome) -> HomeView {
    let policies = door.backend.categories();
    let policy = policies.get(home.stream.category());
    let name = |region| door.region_name(region);
    HomeView {
        stream: home.stream.to_string(),
        mode: policy.cloned().unwrap_or_default().mode.into(),
        home: home.home.map(name),
        epoch: home.epoch.into(),
        moving_from: home.moving_from.map(name),
        rule: home.rule.map(|rule| HomeRuleView::new(&rule, door)),
        creator: home.creator.map(name),
    }
}

/// How long a request waits that asks for `asked_ms`.
pub(super) fn wait(asked_ms: Option<u64>) -> Result<Duration, Problem> {
    let wait_ms = asked_ms.unwrap_or(WAIT_MS);
    if wait_ms > WAIT_MS_MAX {
        return Err(Problem::invalid(format!(
            "wait_ms is {wait_ms}; give at most {WAIT_MS_MAX}"
        )));
    }
    Ok(Duration::from_millis(wait_ms))
}

//! `GET /v1/streams/{stream}/events`.

use axum::Json;
use axum::extract::State;
use meridian_client::{Direction, StreamRead};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::Door;
use super::params::{Params, Stream, check_limit};
use super::problem::Problem;
use super::session::{Session, SessionHeader};
use super::views::{EventView, StreamPageView};
use crate::session::Shown;

/// Which page of a stream.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamParams {
    /// The revision of the first event. By default the first event going forwards, the last one
    /// going backwards. In a stream that several regions write, the place in its total order.
    from: Option<u64>,
    /// The most events; 100 by default.
    #[param(minimum = 1, maximum = 10_000, default = 100)]
    limit: Option<u32>,
    /// Which way to go; `forwards` by default.
    #[serde(default)]
    #[param(inline)]
    direction: DirectionParam,
}

/// Which way through a stream.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = Direction)]
enum DirectionParam {
    /// Oldest first.
    #[default]
    Forwards,
    /// Newest first.
    Backwards,
}

/// Reads a page of a stream
///
/// From what this region holds. A stream without events here is an empty page: it may just not have
/// arrived yet; with the session token of an answer that showed one it is waited for.
#[utoipa::path(
    get,
    path = "/v1/streams/{stream}/events",
    operation_id = "read_stream",
    tag = "events",
    params(
        ("stream" = String, Path, description = "The stream's name, percent-encoded"),
        StreamParams,
        ("Meridian-Session" = Option<String>, Header, description = "What this caller has seen: the token of an earlier answer, from whichever region; several with commas between them"),
        ("Meridian-Wait-Ms" = Option<u32>, Header, description = "How long this region may take to catch up with the token before it answers `stale`: 0 to 30000, 2000 by default"),
    ),
    responses(
        (status = 200, description = "A page of the stream", body = StreamPageView, headers(("Meridian-Session" = String, description = "A token for what the request's token stands for and what this answer shows"))),
        (status = 400, description = "`invalid`: the request is wrong as it stands", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`stale`: this region does not hold yet what the token stands for; `unavailable`: it cannot be read here now; see `Retry-After`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn read(
    State(door): State<Door>,
    Stream(stream): Stream,
    Params(params): Params<StreamParams>,
    mut session: Session,
) -> Result<(SessionHeader, Json<StreamPageView>), Problem> {
    let (direction, default_from) = match params.direction {
        DirectionParam::Forwards => (Direction::Forwards, 0),
        DirectionParam::Backwards => (Direction::Backwards, StreamRead::LAST),
    };
    let read = StreamRead {
        stream,
        from: params.from.unwrap_or(default_from),
        direction,
        limit: check_limit(params.limit)?,
    };
    session.catch_up(&door, Shown::Stream(&read.stream)).await?;
    let page = door
        .backend
        .read_stream(read)
        .await
        .map_err(|error| Problem::of_read(&error))?;
    session.seen.read(&page.events);
    let view = StreamPageView {
        events: page
            .events
            .iter()
            .map(|event| EventView::new(event, &door))
            .collect(),
        next: page.next,
        end: page.end,
    };
    Ok((session.header(&door), Json(view)))
}

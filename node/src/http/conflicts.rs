//! `/v1/conflicts`: events that lost their place, and what becomes of them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use meridian_clock::Timestamp;
use meridian_event::{NewEvent, RecordedEvent, Revision, StreamId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Door;
use super::append::EventBody;
use super::body::{Object, parse, read_json_body};
use super::params::{Name, Params};
use super::problem::Problem;
use super::views::raw_json;
use crate::shown::rfc3339;
use crate::{
    Conflict, ConflictAction, ConflictError, ConflictId, ConflictResolution, ConflictStatus,
    Conflicts, LostEvents,
};

/// How many records, or lost events, are on a page unless the request says otherwise, and at most.
const LIMIT: u32 = 100;
const LIMIT_MAX: u32 = 1_000;

/// Conflict records.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ConflictsPage)]
pub(super) struct ConflictsView {
    /// By id.
    conflicts: Vec<ConflictView>,
    /// Where the next page begins; null on the last one.
    #[schema(format = "uuid")]
    next: Option<String>,
}

/// Events of one stream that were acknowledged by a region, and could not be put back when that region
/// came back after it had been replaced.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Conflict)]
pub(super) struct ConflictView {
    /// The record's id.
    #[schema(format = "uuid")]
    id: String,
    /// How far it has come.
    status: StatusView,
    /// The events' stream.
    stream: String,
    /// The name of the region that had written them.
    origin: String,
    /// Their partition.
    partition: u16,
    /// The life of the log that they were in.
    generation: u32,
    /// The first one's and the last one's place in that log.
    positions: [u64; 2],
    /// Theirs in the stream, as it was then.
    revisions: [u64; 2],
    /// When the first and the last one were written: decimal numbers.
    timestamps: [String; 2],
    /// The revision that they build on; null when they began the stream.
    expected: Option<u64>,
    /// The stream's last revision when they were to be put back, where that was in the way.
    actual: Option<u64>,
    /// Why they were not put back.
    reason: String,
    /// How many events there are.
    count: u64,
    /// When the record was written, RFC 3339.
    #[schema(format = "date-time")]
    recorded_at: String,
    /// What was decided; null while nothing is.
    resolution: Option<ResolutionView>,
    /// What won; null unless the record is about a write that lost to a later one, by its category's policy.
    superseded: Option<SupersedingView>,
}

/// By which rule a write lost, and to what.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ConflictSuperseding)]
struct SupersedingView {
    /// The write's event, which is in its stream.
    #[schema(format = "uuid")]
    event: String,
    /// Its type.
    #[serde(rename = "type")]
    event_type: String,
    /// What the stream is: `document` or `fields`. Of both the last writer wins.
    kind: String,
    /// Which of the fields that it wrote it lost; none for a `document`.
    fields: Vec<String>,
    /// The event that won.
    #[schema(format = "uuid")]
    by: String,
    /// The name of the region that wrote that.
    by_origin: String,
}

/// How far a record has come.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = ConflictStatus)]
#[serde(rename_all = "lowercase")]
enum StatusView {
    /// It does not hold all of its events yet.
    Recording,
    /// It waits for a decision.
    Open,
    /// Its events are being appended to their stream.
    Rebasing,
    /// They are there.
    Rebased,
    /// They were given up, and stay in the record.
    Discarded,
    /// It is about a write that lost to a later one, by its category's policy. Nothing has to be done.
    Superseded,
    /// That write is being written once more.
    Reinstating,
    /// It is.
    Reinstated,
}

/// What was decided about a record.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ConflictResolution)]
struct ResolutionView {
    /// What to do.
    action: ActionView,
    /// Why.
    reason: String,
    /// The name of the region whose door was asked.
    region: String,
    /// When, RFC 3339.
    #[schema(format = "date-time")]
    resolved_at: String,
    /// The revisions that the events have in their stream since, from and to.
    revisions: Vec<[u64; 2]>,
    /// Events that could not be appended, since another stream has one with their id.
    left_out: Vec<String>,
    /// The event by which a write that had lost was written again.
    #[schema(format = "uuid")]
    reinstated: Option<String>,
}

/// What becomes of the events of a record.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = ConflictAction)]
#[serde(rename_all = "lowercase")]
enum ActionView {
    /// They are appended to their stream as it is now.
    Rebase,
    /// They stay in the record, for a reason.
    Discard,
    /// A write over which a later one won is written once more, as the latest.
    Reinstate,
}

/// A conflict record with events that it holds.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ConflictDetails)]
pub(super) struct DetailsView {
    #[serde(flatten)]
    #[schema(inline)]
    conflict: ConflictView,
    /// The events, as their writers sent them.
    events: Vec<LostView>,
    /// The next page's `from`; null on the last one.
    next: Option<usize>,
}

/// An event that a record holds.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = LostEvent)]
struct LostView {
    /// The id its writer gave it, or that was made for it: a UUID.
    #[schema(format = "uuid")]
    id: String,
    /// What happened.
    #[serde(rename = "type")]
    event_type: String,
    /// The revision that it had.
    revision: u64,
    /// The revision that it has in its stream by now, where the node knows it there: its writer has repeated the
    /// request since, the record is resolved, or it lost to a later write and was there all the time.
    in_stream: Option<u64>,
    /// Its place in the log that it was in.
    position: u64,
    /// When it was written: a decimal number.
    timestamp: String,
    /// The wall-clock part of `timestamp`, RFC 3339.
    #[schema(format = "date-time")]
    recorded_at: String,
    /// Any JSON, as its writer sent it.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// Any JSON, as its writer sent it; null when there is none.
    #[schema(value_type = serde_json::Value)]
    metadata: Option<Box<RawValue>>,
}

impl ConflictView {
    fn new(conflict: Conflict) -> Self {
        let branch = conflict.branch;
        Self {
            id: conflict.id.0.to_string(),
            status: match conflict.status {
                ConflictStatus::Recording => StatusView::Recording,
                ConflictStatus::Open => StatusView::Open,
                ConflictStatus::Rebasing => StatusView::Rebasing,
                ConflictStatus::Rebased => StatusView::Rebased,
                ConflictStatus::Discarded => StatusView::Discarded,
                ConflictStatus::Superseded => StatusView::Superseded,
                ConflictStatus::Reinstating => StatusView::Reinstating,
                ConflictStatus::Reinstated => StatusView::Reinstated,
            },
            stream: branch.stream.to_string(),
            origin: branch.origin,
            partition: branch.partition,
            generation: branch.generation,
            positions: branch.positions,
            revisions: branch.revisions,
            timestamps: branch.timestamps,
            expected: branch.expected,
            actual: branch.actual,
            reason: branch.reason,
            count: branch.count,
            recorded_at: rfc3339(conflict.recorded_at),
            resolution: conflict.resolution.map(ResolutionView::new),
            superseded: conflict.superseded.map(|it| SupersedingView {
                event: it.event.to_string(),
                event_type: it.event_type.to_string(),
                kind: it.kind,
                fields: it.fields,
                by: it.by.id.to_string(),
                by_origin: it.by.origin,
            }),
        }
    }
}

impl ResolutionView {
    fn new(resolution: ConflictResolution) -> Self {
        Self {
            action: match resolution.action {
                ConflictAction::Rebase => ActionView::Rebase,
                ConflictAction::Discard => ActionView::Discard,
                ConflictAction::Reinstate => ActionView::Reinstate,
            },
            reason: resolution.reason,
            region: resolution.region,
            resolved_at: rfc3339(resolution.at),
            revisions: resolution.revisions,
            left_out: resolution
                .left_out
                .iter()
                .map(ToString::to_string)
                .collect(),
            reinstated: resolution.reinstated.map(|it| it.to_string()),
        }
    }
}

impl DetailsView {
    fn new(conflict: Conflict, lost: LostEvents) -> Self {
        Self {
            conflict: ConflictView::new(conflict),
            events: {
                let events = lost.events.iter().zip(&lost.in_stream);
                let view = |(event, at): (_, &Option<Revision>)| LostView::new(event, *at);
                events.map(view).collect()
            },
            next: lost.next,
        }
    }
}

impl LostView {
    fn new(event: &RecordedEvent, in_stream: Option<Revision>) -> Self {
        let at: Timestamp = event.timestamp;
        Self {
            id: event.id.to_string(),
            event_type: event.event_type.to_string(),
            revision: event.revision.0,
            in_stream: in_stream.map(|revision| revision.0),
            position: event.dot.position.0,
            timestamp: at.to_string(),
            recorded_at: rfc3339(at),
            data: raw_json(&event.data),
            metadata: (!event.metadata.is_empty()).then(|| raw_json(&event.metadata)),
        }
    }
}

fn conflicts(door: &Door) -> Result<Arc<Conflicts>, Problem> {
    let conflicts = door.backend.conflicts();
    conflicts.ok_or_else(|| Problem::not_implemented("this door has no conflict records"))
}

fn problem(error: ConflictError) -> Problem {
    Problem::of_conflict(&error)
}

fn id(text: &str) -> Result<ConflictId, Problem> {
    let id = Uuid::try_parse(text).map(ConflictId);
    id.map_err(|_| {
        Problem::invalid(format!(
            "{text:?} is no conflict record's id, which is a UUID"
        ))
    })
}

fn limit(asked: Option<u32>) -> Result<usize, Problem> {
    match asked.unwrap_or(LIMIT) {
        limit @ 1..=LIMIT_MAX => Ok(limit as usize),
        limit => Err(Problem::invalid(format!(
            "limit is {limit}; give 1 to {LIMIT_MAX}"
        ))),
    }
}

/// Which records are wanted.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wanted {
    #[default]
    Open,
    Resolved,
    All,
}

/// What of the list is wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    #[serde(default)]
    status: Wanted,
    stream: Option<String>,
    after: Option<String>,
    limit: Option<u32>,
}

/// Lists the conflict records of the federation
#[utoipa::path(
    get,
    path = "/v1/conflicts",
    operation_id = "list_conflicts",
    tag = "conflicts",
    params(
        ("status" = Option<String>, Query, description = "`open` (the default): what waits for a decision, or for it to be carried out; `resolved`, by somebody or by a policy; or `all`"),
        ("stream" = Option<String>, Query, description = "Only those about this stream"),
        ("after" = Option<String>, Query, description = "The last record of the page before; none for the first page"),
        ("limit" = Option<u32>, Query, description = "How many at most; 100 unless given, 1,000 at most"),
    ),
    responses(
        (status = 200, description = "A page of them, by id", body = ConflictsView),
        (status = 400, description = "`invalid`: a parameter is wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(
    State(door): State<Door>,
    Params(params): Params<ListParams>,
) -> Result<Json<ConflictsView>, Problem> {
    let limit = limit(params.limit)?;
    let after = params.after.as_deref().map(id).transpose()?;
    let stream = params.stream.as_deref().map(StreamId::new).transpose();
    let stream = stream.map_err(|error| Problem::invalid(error.to_string()))?;
    let wanted = |status: ConflictStatus| match params.status {
        Wanted::Open => status.is_open(),
        Wanted::Resolved => !status.is_open(),
        Wanted::All => true,
    };
    let some = door
        .backend
        .conflicts()
        .map(|it| it.list(wanted, stream.as_ref(), after, limit));
    let (some, has_more) = some.unwrap_or_default();
    let last = some.last().map(|last| last.id.0.to_string());
    Ok(Json(ConflictsView {
        next: last.filter(|_| has_more),
        conflicts: some.into_iter().map(ConflictView::new).collect(),
    }))
}

/// What of a record's events is wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsParams {
    #[serde(default)]
    from: usize,
    limit: Option<u32>,
}

/// Shows a conflict record, with the events that it holds
#[utoipa::path(
    get,
    path = "/v1/conflicts/{id}",
    operation_id = "get_conflict",
    tag = "conflicts",
    params(
        ("id" = String, Path, description = "The record's id"),
        ("from" = Option<usize>, Query, description = "How many of its events to leave out; the `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "How many events at most; 100 unless given, 1,000 at most, and 8 MiB"),
    ),
    responses(
        (status = 200, description = "The record", body = DetailsView),
        (status = 400, description = "`invalid`: a parameter is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: no such record here", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: it cannot be read now", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn read(
    State(door): State<Door>,
    Name(name): Name,
    Params(params): Params<EventsParams>,
) -> Result<Json<DetailsView>, Problem> {
    let (id, limit) = (id(&name)?, limit(params.limit)?);
    let read = conflicts(&door)?.get(id, params.from, limit);
    let (conflict, lost) = read.map_err(problem)?;
    Ok(Json(DetailsView::new(conflict, lost)))
}

/// What is to become of a record's events.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, bound(deserialize = "'de: 'a"))]
#[schema(as = ConflictResolve)]
pub(super) struct ResolveBody<'a> {
    /// `rebase` or `discard`; `reinstate` where a write lost to a later one.
    action: ActionView,
    /// Why, for whoever looks later. Needed to discard.
    #[serde(default)]
    reason: String,
    /// With `rebase`: what to append in place of the record's events, which stay in the record.
    #[serde(borrow, default)]
    #[schema(value_type = Vec<EventBody>)]
    events: Vec<Object<EventBody<'a>>>,
}

/// Decides what becomes of a record's events
///
/// A record is resolved once; whoever comes later is told how. `rebase` appends the events to their stream
/// as it is now, with their ids, or the `events` of the request in their place: what somebody made of them and of
/// what the stream has come to; `reinstate` writes once more, as a new event, what lost to a later write. When
/// that is cut short, the same request ends it, or the server does by itself.
#[utoipa::path(
    post,
    path = "/v1/conflicts/{id}/resolve",
    operation_id = "resolve_conflict",
    tag = "conflicts",
    params(("id" = String, Path, description = "The record's id")),
    request_body = ResolveBody,
    responses(
        (status = 200, description = "The record, resolved", body = ConflictView),
        (status = 400, description = "`invalid`: not an action for this record, or no reason to discard", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: no such record here", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: it is resolved already, or not there as a whole yet; nothing changed", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: it cannot be done now, or not to its end; send it again", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may be decided; send it again", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn resolve(
    State(door): State<Door>,
    Name(name): Name,
    request: Request,
) -> Result<Json<ConflictView>, Problem> {
    let id = id(&name)?;
    let body = read_json_body(&door, request).await?;
    let asked: ResolveBody<'_> = parse(&body)?;
    let action = match asked.action {
        ActionView::Rebase => ConflictAction::Rebase,
        ActionView::Discard => ConflictAction::Discard,
        ActionView::Reinstate => ConflictAction::Reinstate,
    };
    let conflicts = conflicts(&door)?;
    let events = asked.events.into_iter();
    let events: Vec<NewEvent> = events
        .map(|Object(event)| event.event(&door, &body))
        .collect();
    let resolved = match (action, events.is_empty()) {
        (_, true) => conflicts.resolve(id, action, &asked.reason).await,
        (ConflictAction::Rebase, false) => conflicts.merge(id, &events, &asked.reason).await,
        (_, false) => {
            return Err(Problem::invalid(
                "events come with the action rebase only: they are appended in place of the record's",
            ));
        }
    };
    Ok(Json(ConflictView::new(resolved.map_err(problem)?)))
}

//! `/v1/consumers`: groups, defined and watched; their consumers, given events and heard.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use meridian_client::{
    ConsumerError, ConsumerFetch, ConsumerRequest, ConsumerResponse, ConsumerSettle, Delivery,
    Gone, Verdict,
};
use meridian_clock::OrderKey;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Door;
use super::body::read_json_body;
use super::params::{Name, Params};
use super::problem::Problem;
use super::views::EventView;
use crate::{Consumers, GroupDefinition, GroupServed, GroupStatus, ParkedEvent};

/// How many events are given out when nobody says.
const LIMIT_DEFAULT: u32 = 10;

/// All consumer groups.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ConsumerGroups)]
pub(super) struct GroupsView {
    /// By name.
    consumers: Vec<GroupView>,
}

/// A consumer group.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ConsumerGroup)]
pub(super) struct GroupView {
    /// Its name.
    name: String,
    /// The region that serves it.
    region: String,
    /// How it stands; null where another region serves it.
    served: Option<ServedView>,
    /// Its definition.
    #[schema(value_type = serde_json::Value)]
    definition: GroupDefinition,
}

/// How a consumer group stands in the region that serves it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ConsumerGroupServed)]
struct ServedView {
    /// Everything up to here is settled: an order key.
    cursor: String,
    /// How far that is behind what is settled in the order, in milliseconds; 0 when nothing waits.
    lag_ms: u64,
    /// Events that were read ahead and are not acknowledged.
    waiting: usize,
    /// Of those, given out.
    in_flight: usize,
    /// Events that were put aside.
    parked: usize,
    /// How many events each consumer has.
    consumers: std::collections::BTreeMap<String, usize>,
    /// The first event that is not acknowledged.
    first: Option<FirstView>,
    /// What is wrong, if anything is.
    error: Option<String>,
}

/// The first event that is not acknowledged.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ConsumerGroupFirst)]
struct FirstView {
    /// Its stream.
    stream: String,
    /// Its place there.
    revision: u64,
}

impl GroupView {
    fn new(status: GroupStatus) -> Self {
        Self {
            name: status.definition.name.clone(),
            region: status.definition.region.clone().unwrap_or_default(),
            served: status.served.map(ServedView::new),
            definition: status.definition,
        }
    }
}

impl ServedView {
    fn new(served: GroupServed) -> Self {
        Self {
            cursor: served.cursor.to_string(),
            lag_ms: u64::try_from(served.lag.as_millis()).unwrap_or(u64::MAX),
            waiting: served.waiting,
            in_flight: served.in_flight,
            parked: served.parked,
            consumers: served.consumers,
            first: served.first.map(|(stream, revision)| FirstView {
                stream: stream.to_string(),
                revision,
            }),
            error: served.error,
        }
    }
}

fn consumers(door: &Door) -> Result<Arc<Consumers>, Problem> {
    let consumers = door.backend.consumers();
    consumers.ok_or_else(|| Problem::not_implemented("this door has no consumer groups"))
}

fn problem(error: ConsumerError) -> Problem {
    Problem::of_consumer(&error)
}

async fn body<T: DeserializeOwned>(
    door: &Door,
    request: Request,
    shape: &str,
) -> Result<T, Problem> {
    let body = read_json_body(door, request).await?;
    serde_json::from_slice(&body)
        .map_err(|error| Problem::invalid(format!("send {shape}: {error}")))
}

/// Lists the consumer groups of the federation
#[utoipa::path(
    get,
    path = "/v1/consumers",
    operation_id = "list_consumers",
    tag = "consumers",
    responses((status = 200, description = "All of them, by name", body = GroupsView))
)]
pub(super) async fn list(State(door): State<Door>) -> Json<GroupsView> {
    let all = door.backend.consumers().map_or(Vec::new(), |it| it.list());
    Json(GroupsView {
        consumers: all.into_iter().map(GroupView::new).collect(),
    })
}

/// Says where a consumer group stands
#[utoipa::path(
    get,
    path = "/v1/consumers/{name}",
    operation_id = "get_consumer",
    tag = "consumers",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "Its definition and how it stands", body = GroupView),
        (status = 404, description = "`not_found`: there is none of that name", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn read(
    State(door): State<Door>,
    Name(name): Name,
) -> Result<Json<GroupView>, Problem> {
    let status = consumers(&door)?.get(&name).map_err(problem)?;
    Ok(Json(GroupView::new(status)))
}

/// Defines a consumer group
///
/// The region that it names serves it: where it names none the one that did, and a new group this one.
/// What it has acknowledged is kept; what is under way is given out again.
#[utoipa::path(
    put,
    path = "/v1/consumers/{name}",
    operation_id = "put_consumer",
    tag = "consumers",
    params(("name" = String, Path, description = "Its name: 1 to 64 of a-z, 0-9, _ and -, beginning with a letter")),
    request_body(content = serde_json::Value, description = "`region`, `tier`, `source`, `from`, `in_flight_max`, `ack_within_ms`, `attempts_max`; each may be left out"),
    responses(
        (status = 200, description = "It is in force here", body = GroupView),
        (status = 400, description = "`invalid`: the definition is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`too_large`: over a limit", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: it is not written, or has not come back here yet", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn put(
    State(door): State<Door>,
    Name(name): Name,
    request: Request,
) -> Result<Json<GroupView>, Problem> {
    let body = read_json_body(&door, request).await?;
    let mut definition = GroupDefinition::from_json(&body).map_err(Problem::invalid)?;
    if !definition.name.is_empty() && definition.name != name {
        return Err(Problem::invalid(format!(
            "the definition is of {:?} and the path of {name:?}; use one name",
            definition.name
        )));
    }
    definition.name = name;
    let status = consumers(&door)?.put(definition).await.map_err(problem)?;
    Ok(Json(GroupView::new(status)))
}

/// Removes a consumer group with its place
#[utoipa::path(
    delete,
    path = "/v1/consumers/{name}",
    operation_id = "delete_consumer",
    tag = "consumers",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "It is gone here", body = RemovedGroupView),
        (status = 404, description = "`not_found`: there is none of that name", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: that is not written, or has not come back here yet", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete(
    State(door): State<Door>,
    Name(name): Name,
) -> Result<Json<RemovedGroupView>, Problem> {
    consumers(&door)?.delete(&name).await.map_err(problem)?;
    Ok(Json(RemovedGroupView { removed: name }))
}

/// What was removed.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = RemovedConsumerGroup)]
pub(super) struct RemovedGroupView {
    /// The group.
    removed: String,
}

/// Who wants events, and how many.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ConsumerFetch)]
struct FetchRequest {
    /// What the consumer calls itself; each of a group has a name of its own.
    consumer: String,
    /// The most events wanted; 10 by default, and never more than the group lets a consumer have at once.
    limit: Option<u32>,
    /// How long to wait for an event when there is none yet, at most 30,000; 0 by default.
    wait_ms: Option<u32>,
}

/// Events that were given out.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Deliveries)]
pub(super) struct DeliveriesView {
    /// In order, possibly none.
    events: Vec<DeliveryView>,
    /// How long they are this consumer's; then they are given out again.
    ack_within_ms: u32,
}

/// An event that was given out.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Delivery)]
struct DeliveryView {
    /// What it is acknowledged by.
    delivery: String,
    /// Which attempt this is: 1, 2, 3…
    attempt: u32,
    /// The event.
    event: EventView,
}

impl DeliveryView {
    fn new(delivery: &Delivery, door: &Door) -> Self {
        Self {
            delivery: delivery.delivery.clone(),
            attempt: delivery.attempt,
            event: EventView::new(&delivery.event, door),
        }
    }
}

/// Gives out events to a consumer of a group
///
/// The events of a stream are with one consumer at a time, in order. What is not acknowledged in time is
/// given out again.
#[utoipa::path(
    post,
    path = "/v1/consumers/{name}/fetch",
    operation_id = "fetch_events",
    tag = "consumers",
    params(("name" = String, Path, description = "The group's name")),
    request_body = FetchRequest,
    responses(
        (status = 200, description = "The events, possibly none", body = DeliveriesView),
        (status = 400, description = "`invalid`: the request is wrong as it stands", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: there is no group of that name", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`too_large`: over a limit", body = Problem, content_type = "application/problem+json"),
        (status = 421, description = "`not_home`: another region serves the group", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: it is not served yet; see `Retry-After`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn fetch(
    State(door): State<Door>,
    Name(name): Name,
    request: Request,
) -> Result<Json<DeliveriesView>, Problem> {
    let shape = "{\"consumer\": \"…\", \"limit\": 10, \"wait_ms\": 5000}";
    let asked: FetchRequest = body(&door, request, shape).await?;
    let asked = ConsumerRequest::Fetch(ConsumerFetch {
        group: name,
        consumer: asked.consumer,
        limit: asked.limit.unwrap_or(LIMIT_DEFAULT),
        wait_ms: asked.wait_ms.unwrap_or(0),
    });
    match consumers(&door)?.consume(&asked).await.map_err(problem)? {
        ConsumerResponse::Fetched(given) => Ok(Json(DeliveriesView {
            events: given
                .events
                .iter()
                .map(|it| DeliveryView::new(it, &door))
                .collect(),
            ack_within_ms: given.ack_within_ms,
        })),
        ConsumerResponse::Settled(_) => {
            Err(Problem::internal("a fetch was answered by a settling"))
        }
    }
}

/// What was dealt with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ConsumerAck)]
struct AckRequest {
    /// What came as `delivery` with each event.
    deliveries: Vec<String>,
}

/// What could not be dealt with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ConsumerNack)]
struct NackRequest {
    /// What came as `delivery` with each event.
    deliveries: Vec<String>,
    /// `retry`, the default: they are given out again, until the group's attempts are used up; `park`:
    /// they are put aside, and their streams go on.
    #[serde(default)]
    action: NackAction,
    /// How long before an event is given out again, at most 60,000; 1 s, 2 s, 4 s… by default.
    delay_ms: Option<u32>,
    /// Why.
    #[serde(default)]
    reason: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum NackAction {
    #[default]
    Retry,
    Park,
}

/// What became of deliveries.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = SettledDeliveries)]
pub(super) struct SettledView {
    /// How many are settled, durably.
    settled: usize,
    /// The others: their events were not the consumer's any more.
    gone: Vec<GoneView>,
}

/// A delivery whose event was not the consumer's any more.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = GoneDelivery)]
struct GoneView {
    /// The delivery.
    delivery: String,
    /// What became of its event.
    reason: String,
}

async fn settle(
    door: &Door,
    group: String,
    deliveries: Vec<String>,
    verdict: Verdict,
) -> Result<Json<SettledView>, Problem> {
    let count = deliveries.len();
    let asked = ConsumerRequest::Settle(ConsumerSettle {
        group,
        deliveries,
        verdict,
    });
    match consumers(door)?.consume(&asked).await.map_err(problem)? {
        ConsumerResponse::Settled(gone) => {
            let gone: Vec<_> = gone
                .into_iter()
                .map(|Gone { delivery, reason }| GoneView { delivery, reason })
                .collect();
            Ok(Json(SettledView {
                settled: count.saturating_sub(gone.len()),
                gone,
            }))
        }
        ConsumerResponse::Fetched(_) => {
            Err(Problem::internal("a settling was answered by a fetch"))
        }
    }
}

/// Acknowledges events: they were dealt with
///
/// When it answers, all but those in `gone` are settled durably and never given out again.
#[utoipa::path(
    post,
    path = "/v1/consumers/{name}/ack",
    operation_id = "ack_events",
    tag = "consumers",
    params(("name" = String, Path, description = "The group's name")),
    request_body = AckRequest,
    responses(
        (status = 200, description = "What is settled, and what was not the consumer's any more", body = SettledView),
        (status = 400, description = "`invalid`: the request is wrong as it stands", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: there is no group of that name", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`too_large`: over a limit", body = Problem, content_type = "application/problem+json"),
        (status = 421, description = "`not_home`: another region serves the group", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: it may not be durable; say it again", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn ack(
    State(door): State<Door>,
    Name(name): Name,
    request: Request,
) -> Result<Json<SettledView>, Problem> {
    let asked: AckRequest = body(&door, request, "{\"deliveries\": [\"…\"]}").await?;
    settle(&door, name, asked.deliveries, Verdict::Done).await
}

/// Gives events back that could not be dealt with: to be tried again, or parked
#[utoipa::path(
    post,
    path = "/v1/consumers/{name}/nack",
    operation_id = "nack_events",
    tag = "consumers",
    params(("name" = String, Path, description = "The group's name")),
    request_body = NackRequest,
    responses(
        (status = 200, description = "What is given back, and what was not the consumer's any more", body = SettledView),
        (status = 400, description = "`invalid`: the request is wrong as it stands", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: there is no group of that name", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`too_large`: over a limit", body = Problem, content_type = "application/problem+json"),
        (status = 421, description = "`not_home`: another region serves the group", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: it may not be durable; say it again", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn nack(
    State(door): State<Door>,
    Name(name): Name,
    request: Request,
) -> Result<Json<SettledView>, Problem> {
    let shape = "{\"deliveries\": [\"…\"], \"action\": \"retry\" or \"park\", \"reason\": \"…\"}";
    let asked: NackRequest = body(&door, request, shape).await?;
    let verdict = match asked.action {
        NackAction::Retry => Verdict::Retry {
            delay_ms: asked.delay_ms,
            reason: asked.reason,
        },
        NackAction::Park => Verdict::Park {
            reason: asked.reason,
        },
    };
    settle(&door, name, asked.deliveries, verdict).await
}

/// Events that a group has put aside.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ConsumerParkedEvents)]
pub(super) struct GroupParkedView {
    /// In the one order, at most 100.
    parked: Vec<ParkedEventView>,
}

/// An event that a group has put aside.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ConsumerParkedEvent)]
struct ParkedEventView {
    /// Its place in the one order, by which it is retried or dropped.
    order_key: String,
    /// Its stream.
    stream: String,
    /// Its place there.
    revision: u64,
    /// What happened.
    #[serde(rename = "type")]
    event_type: String,
    /// How often it was tried.
    attempts: u32,
    /// Why the last attempt failed.
    reason: String,
    /// It is given out once more, or waits for that.
    retried: bool,
}

impl From<ParkedEvent> for ParkedEventView {
    fn from(parked: ParkedEvent) -> Self {
        Self {
            order_key: parked.key.to_string(),
            stream: parked.stream.to_string(),
            revision: parked.revision,
            event_type: parked.event_type,
            attempts: parked.attempts,
            reason: parked.reason,
            retried: parked.retried,
        }
    }
}

/// Which parked events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AfterParams {
    /// Those after this order key; all when it is left out.
    after: Option<String>,
}

fn order_key(text: &str) -> Result<OrderKey, Problem> {
    text.parse()
        .map_err(|error: meridian_clock::OrderKeyError| Problem::invalid(error.to_string()))
}

/// Lists the events that a group has put aside
#[utoipa::path(
    get,
    path = "/v1/consumers/{name}/parked",
    operation_id = "list_consumer_parked",
    tag = "consumers",
    params(("name" = String, Path, description = "The group's name"), AfterParams),
    responses(
        (status = 200, description = "In the one order", body = GroupParkedView),
        (status = 400, description = "`invalid`: after is no order key", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: there is no group of that name", body = Problem, content_type = "application/problem+json"),
        (status = 421, description = "`not_home`: another region serves the group", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: it is not served yet; see `Retry-After`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn parked(
    State(door): State<Door>,
    Name(name): Name,
    Params(params): Params<AfterParams>,
) -> Result<Json<GroupParkedView>, Problem> {
    let after = params
        .after
        .as_deref()
        .map_or(Ok(OrderKey::ZERO), order_key)?;
    let listed = consumers(&door)?.parked(&name, after).map_err(problem)?;
    Ok(Json(GroupParkedView {
        parked: listed.into_iter().map(ParkedEventView::from).collect(),
    }))
}

/// The group and the parked event in a path.
pub(super) struct ParkedPath {
    name: String,
    key: OrderKey,
}

impl FromRequestParts<Door> for ParkedPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, door: &Door) -> Result<Self, Problem> {
        let path: Result<Path<(String, String)>, PathRejection> =
            Path::from_request_parts(parts, door).await;
        let Path((name, event)) = path.map_err(|rejection| {
            Problem::invalid(format!(
                "the path cannot be read: {}",
                rejection.body_text()
            ))
        })?;
        Ok(Self {
            name,
            key: order_key(&event)?,
        })
    }
}

/// Gives a parked event out once more; it stays parked until it is acknowledged
#[utoipa::path(
    post,
    path = "/v1/consumers/{name}/parked/{event}/retry",
    operation_id = "retry_consumer_parked",
    tag = "consumers",
    params(("name" = String, Path, description = "The group's name"), ("event" = String, Path, description = "The event's order key")),
    responses(
        (status = 200, description = "It is given out to the next consumer that asks", body = GroupView),
        (status = 404, description = "`not_found`: it is not parked", body = Problem, content_type = "application/problem+json"),
        (status = 421, description = "`not_home`: another region serves the group", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: it cannot be read", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn retry(
    State(door): State<Door>,
    path: ParkedPath,
) -> Result<Json<GroupView>, Problem> {
    let all = consumers(&door)?;
    all.retry(&path.name, path.key).map_err(problem)?;
    let status = all.get(&path.name).map_err(problem)?;
    Ok(Json(GroupView::new(status)))
}

/// Why a parked event is dropped.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ConsumerDrop)]
struct DropParkedRequest {
    /// Kept in the group's stream.
    reason: String,
}

/// Leaves a parked event out for good
#[utoipa::path(
    post,
    path = "/v1/consumers/{name}/parked/{event}/drop",
    operation_id = "drop_consumer_parked",
    tag = "consumers",
    params(("name" = String, Path, description = "The group's name"), ("event" = String, Path, description = "The event's order key")),
    request_body = DropParkedRequest,
    responses(
        (status = 200, description = "It is left out", body = GroupView),
        (status = 400, description = "`invalid`: there is no reason", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: it is not parked", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`too_large`: over a limit", body = Problem, content_type = "application/problem+json"),
        (status = 421, description = "`not_home`: another region serves the group", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: that cannot be written", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn drop_parked(
    State(door): State<Door>,
    path: ParkedPath,
    request: Request,
) -> Result<Json<GroupView>, Problem> {
    let asked: DropParkedRequest = body(&door, request, "{\"reason\": \"…\"}").await?;
    if asked.reason.trim().is_empty() {
        return Err(Problem::invalid(
            "say why: an event is left out for good with a reason",
        ));
    }
    let all = consumers(&door)?;
    let dropped = all.drop_parked(&path.name, path.key, &asked.reason).await;
    dropped.map_err(problem)?;
    let status = all.get(&path.name).map_err(problem)?;
    Ok(Json(GroupView::new(status)))
}

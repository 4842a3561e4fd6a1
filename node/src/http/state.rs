//! `GET /v1/streams/{stream}/state`: what a stream comes to that every region writes.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use meridian_client::{SettledTier, StateTier};
use meridian_conflict::Superseded;
use meridian_event::StreamId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::sleep;
use utoipa::{IntoParams, ToSchema};

use super::following::{Place, beginning, event_stream, wants_event_stream};
use super::params::{Params, Stream};
use super::problem::Problem;
use super::session::Session;
use super::{Changes, Door, Tier, sse};
use crate::session::Shown;
use crate::{ConflictId, StateReport};

/// How often a follower is told at most what a stream comes to.
const TOLD_EVERY: Duration = Duration::from_millis(50);

/// How much of what was written counts.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StateParams {
    /// `live` (unless given): all that this region holds. `stable`: what is settled, the same in every region that
    /// has come as far.
    #[serde(default)]
    #[param(inline)]
    tier: StateTierParam,
}

/// How much of what was written counts.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = StateTier)]
enum StateTierParam {
    /// All that this region holds.
    #[default]
    Live,
    /// What is settled.
    Stable,
}

/// What a stream comes to.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = State)]
pub(super) struct StateView {
    /// The stream.
    stream: String,
    /// What it is: `g-counter`, `pn-counter`, `bounded-counter`, `g-set`, `or-set`, `mv-register`, `or-map`,
    /// `document` or `fields`.
    kind: &'static str,
    /// What it shows: a number, a list or an object, by its kind.
    value: Value,
    /// The last event that counts, in the one order.
    order_key: String,
    /// A hash of what it means, in hexadecimal digits: the same in all regions in which the same events count.
    digest: String,
    /// The writes that are shown, in `lww` categories.
    winners: Vec<WinnerView>,
    /// The latest writes that lost to one whose writer had not seen them, in `lww` categories, at most 64. Each has a
    /// conflict record: `GET /v1/conflicts?status=all&stream=…` lists them all.
    superseded: Vec<SupersededView>,
    /// Roughly how many bytes of memory it takes.
    bytes: u64,
    /// How many events of the stream are no operations on it, and do not count.
    skipped: u64,
}

/// A write that is shown.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Winner)]
pub(super) struct WinnerView {
    /// The field; null in a `document`.
    field: Option<String>,
    /// Its event.
    #[schema(format = "uuid")]
    id: String,
    /// Where it was first written.
    origin: String,
    /// When: the reading of the hybrid logical clock, in decimal digits.
    timestamp: String,
}

/// A write that lost to one whose writer had not seen it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Superseded)]
pub(super) struct SupersededView {
    /// Its event.
    #[schema(format = "uuid")]
    id: String,
    /// Where it was first written.
    origin: String,
    /// When: the reading of the hybrid logical clock, in decimal digits.
    timestamp: String,
    /// The fields that it lost, in a stream of kind `fields`.
    fields: Vec<String>,
    /// What it had written there.
    value: Value,
    /// The event that it lost to.
    #[schema(format = "uuid")]
    by: String,
    /// The id of its conflict record, which is written once nothing to come can change it.
    #[schema(format = "uuid")]
    conflict: String,
}

impl StateView {
    fn new(stream: &StreamId, report: StateReport, door: &Door) -> Self {
        let superseded = report.superseded.into_iter();
        Self {
            stream: stream.to_string(),
            kind: report.kind.name(),
            value: named(report.value, door),
            order_key: report.order_key.to_string(),
            digest: report.digest.iter().map(|it| format!("{it:02x}")).collect(),
            winners: report
                .winners
                .into_iter()
                .map(|it| WinnerView {
                    field: it.field,
                    id: it.id.to_string(),
                    origin: door.region_name(it.marker.region),
                    timestamp: it.marker.timestamp.to_string(),
                })
                .collect(),
            superseded: superseded.map(|it| view(it, stream, door)).collect(),
            bytes: report.bytes as u64,
            skipped: report.skipped,
        }
    }
}

fn view(lost: Superseded, stream: &StreamId, door: &Door) -> SupersededView {
    SupersededView {
        conflict: ConflictId::of_superseded(stream, lost.id).0.to_string(),
        id: lost.id.0.to_string(),
        origin: door.region_name(lost.marker.region),
        timestamp: lost.marker.timestamp.to_string(),
        fields: lost.fields,
        value: lost.value,
        by: lost.by.0.to_string(),
    }
}

// Rights are kept by the regions' numbers; people know their names.
fn named(mut value: Value, door: &Door) -> Value {
    let rights = value.get_mut("rights").map(Value::take);
    if let Some(Value::Object(rights)) = rights {
        let by_name = rights.into_iter().map(|(region, held)| {
            let number = region.parse().map(meridian_clock::RegionId);
            (number.map_or(region, |it| door.region_name(it)), held)
        });
        value["rights"] = Value::Object(by_name.collect());
    }
    value
}

/// Reads what a stream comes to
///
/// Of categories that every region may write: operations merge, or the last write wins. With
/// `Accept: text/event-stream` the answer goes on: one message now and one whenever it comes to something else, which
/// may be after several events, with the state's digest as its `id`. `Last-Event-ID` leaves the first one out if that is
/// what the reader has. A message named `error` holds a problem and ends the stream.
#[utoipa::path(
    get,
    path = "/v1/streams/{stream}/state",
    operation_id = "read_state",
    tag = "events",
    params(
        ("stream" = String, Path, description = "The stream's name, percent-encoded"),
        StateParams,
        ("Last-Event-ID" = Option<String>, Header, description = "The digest of the state that the reader has"),
        ("Meridian-Session" = Option<String>, Header, description = "What this caller has seen: the token of an earlier answer, from whichever region; several with commas between them"),
        ("Meridian-Wait-Ms" = Option<u32>, Header, description = "How long this region may take to catch up with the token before it answers `stale`: 0 to 30000, 2000 by default"),
    ),
    responses(
        (status = 200, description = "What it comes to, or an event stream of that", content(
            (StateView = "application/json"),
            (StateView = "text/event-stream"),
        ), headers(("Meridian-Session" = String, description = "A token for what the request's token stands for"))),
        (status = 400, description = "`invalid`: the stream's category is not merged, or the request is wrong as it stands", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`stale`: this region does not hold yet what the token stands for; `unavailable`: it cannot be read here now; see `Retry-After`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn read(
    State(door): State<Door>,
    Stream(stream): Stream,
    headers: HeaderMap,
    Params(params): Params<StateParams>,
    session: Session,
) -> Result<Response, Problem> {
    let (tier, waits_for) = match params.tier {
        StateTierParam::Live => (StateTier::Live, Tier::Live),
        StateTierParam::Stable => (StateTier::Stable, Tier::Settled(SettledTier::Stable)),
    };
    session.catch_up(&door, Shown::Tier(waits_for)).await?;
    if wants_event_stream(&headers) {
        let held = headers.get("last-event-id");
        let held = held.and_then(|held| held.to_str().ok()).map(str::to_owned);
        let header = session.header(&door);
        let mut follower = Follower {
            _place: Place::take(&door)?,
            changes: door.backend.changes(waits_for),
            door,
            stream,
            tier,
            shown: held.unwrap_or_default(),
            going: true,
        };
        // Read before the answer begins, so that a stream without a state is a plain problem.
        let mut first = beginning();
        follower.read(&mut first).await?;
        let rest = stream::unfold(follower, |mut follower| async move {
            follower.next().await.map(|bytes| (bytes, follower))
        });
        return Ok(event_stream(first, rest, header));
    }
    let view = view_of(&door, &stream, tier).await?;
    Ok((session.header(&door), Json(view)).into_response())
}

async fn view_of(door: &Door, stream: &StreamId, tier: StateTier) -> Result<StateView, Problem> {
    let report = door.backend.read_state(stream.clone(), tier).await;
    let report = report.map_err(|error| Problem::of_read(&error))?;
    Ok(StateView::new(stream, report, door))
}

/// One client that is told what a stream comes to.
struct Follower {
    door: Door,
    changes: Changes,
    stream: StreamId,
    tier: StateTier,
    // The digest of what it has.
    shown: String,
    // Cleared once the stream of messages is over.
    going: bool,
    _place: Place,
}

impl Follower {
    // What to send next; `None` when it is over.
    async fn next(&mut self) -> Option<Bytes> {
        let draining = self.door.draining.clone();
        let mut heartbeat = std::pin::pin!(sleep(self.door.options.heartbeat));
        let mut out = Vec::new();
        while self.going && out.is_empty() && !draining.is_cancelled() {
            tokio::select! {
                biased;
                () = draining.cancelled() => break,
                changed = self.changes.changed() => {
                    // The node is gone, so nothing more will come.
                    self.going = changed;
                }
                () = heartbeat.as_mut() => {
                    sse::write_heartbeat(&mut out, &self.shown);
                    break;
                }
            }
            // What many events change is told once.
            sleep(TOLD_EVERY).await;
            if let Err(problem) = self.read(&mut out).await {
                sse::write_message(&mut out, Some("error"), None, &problem.to_json());
                self.going = false;
            }
        }
        (!out.is_empty()).then(|| Bytes::from(out))
    }

    // Writes a message to `out` if it comes to something else than what was shown.
    async fn read(&mut self, out: &mut Vec<u8>) -> Result<(), Problem> {
        // Before reading: what is committed while we read wakes us again.
        self.changes.seen();
        let view = view_of(&self.door, &self.stream, self.tier).await?;
        if view.digest == self.shown {
            return Ok(());
        }
        let json = serde_json::to_vec(&view)
            .map_err(|error| Problem::internal(format!("a state cannot be shown: {error}")))?;
        sse::write_message(out, None, Some(&view.digest), &json);
        self.shown = view.digest;
        Ok(())
    }
}

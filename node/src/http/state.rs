//! `GET /v1/streams/{stream}/state`: what a stream comes to that every region writes.

use axum::Json;
use axum::extract::State;
use meridian_client::SettledTier;
use meridian_conflict::Superseded;
use meridian_event::StreamId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::params::{Params, Stream};
use super::problem::Problem;
use super::session::{Session, SessionHeader};
use super::{Door, Tier};
use crate::{ConflictId, StateReport, StateTier};

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
/// Of categories that every region may write: operations merge, or the last write wins.
#[utoipa::path(
    get,
    path = "/v1/streams/{stream}/state",
    operation_id = "read_state",
    tag = "events",
    params(
        ("stream" = String, Path, description = "The stream's name, percent-encoded"),
        StateParams,
        ("Meridian-Session" = Option<String>, Header, description = "What this caller has seen: the token of an earlier answer, from whichever region; several with commas between them"),
        ("Meridian-Wait-Ms" = Option<u32>, Header, description = "How long this region may take to catch up with the token before it answers `stale`: 0 to 30000, 2000 by default"),
    ),
    responses(
        (status = 200, description = "What it comes to", body = StateView, headers(("Meridian-Session" = String, description = "A token for what the request's token stands for"))),
        (status = 400, description = "`invalid`: the stream's category is not merged, or the request is wrong as it stands", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`stale`: this region does not hold yet what the token stands for; `unavailable`: it cannot be read here now; see `Retry-After`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn read(
    State(door): State<Door>,
    Stream(stream): Stream,
    Params(params): Params<StateParams>,
    session: Session,
) -> Result<(SessionHeader, Json<StateView>), Problem> {
    let (tier, waits_for) = match params.tier {
        StateTierParam::Live => (StateTier::Live, Tier::Live),
        StateTierParam::Stable => (StateTier::Stable, Tier::Settled(SettledTier::Stable)),
    };
    session.catch_up(&door, waits_for).await?;
    let report = door.backend.read_state(stream.clone(), tier).await;
    let report = report.map_err(|error| Problem::of_read(&error))?;
    let view = StateView::new(&stream, report, &door);
    Ok((session.header(&door), Json(view)))
}

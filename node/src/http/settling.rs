//! `GET /v1/await`: until one event is settled, here or in another region.

use axum::Json;
use axum::extract::State;
use meridian_client::{AwaitSettled, SettledTier};
use meridian_clock::{Dot, PartitionId, Position, RegionId};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::Door;
use super::params::Params;
use super::problem::Problem;
use super::views::AwaitedView;
use crate::session::WAIT_MAX;

/// How long is waited when nobody says.
const WAIT_MS_DEFAULT: u32 = 2000;

/// Which event, and how far it must come.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AwaitParams {
    /// The event: origin region's name, partition and position, as in `us-east/3/17`.
    dot: String,
    /// How settled it must be; `stable` by default.
    #[serde(default)]
    #[param(inline)]
    tier: SettledTierParam,
    /// The name of the region where; the one that is asked by default.
    region: Option<String>,
    /// How long to wait; 2000 by default.
    #[param(minimum = 0, maximum = 30_000, default = 2000)]
    wait_ms: Option<u32>,
}

/// How settled an event is.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = SettledTier)]
enum SettledTierParam {
    /// Nothing can come before it any more in that region.
    #[default]
    Stable,
    /// Every region knows that.
    Final,
}

/// Waits for an event to be settled
///
/// Until nothing can come before it any more in the named region (`stable`), or that region knows the
/// same of every region (`final`), or the time is up: `reached` says which. The event need not have
/// arrived there yet.
#[utoipa::path(
    get,
    path = "/v1/await",
    operation_id = "await_settled",
    tag = "events",
    params(AwaitParams),
    responses(
        (status = 200, description = "How far it came", body = AwaitedView),
        (status = 400, description = "`invalid`: the request is wrong as it stands", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: there is no such region", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: that region cannot be asked now; see `Retry-After`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn await_settled(
    State(door): State<Door>,
    Params(params): Params<AwaitParams>,
) -> Result<Json<AwaitedView>, Problem> {
    let wait_ms = params.wait_ms.unwrap_or(WAIT_MS_DEFAULT);
    if u128::from(wait_ms) > WAIT_MAX.as_millis() {
        return Err(Problem::invalid(format!(
            "wait_ms is {wait_ms}; wait up to {} ms and ask again",
            WAIT_MAX.as_millis()
        )));
    }
    let asked = AwaitSettled {
        dot: dot(&door, &params.dot)?,
        tier: match params.tier {
            SettledTierParam::Stable => SettledTier::Stable,
            SettledTierParam::Final => SettledTier::Final,
        },
        region: params.region.map(|name| region(&door, &name)).transpose()?,
        wait_ms,
    };
    let awaited = door.backend.await_settled(asked).await;
    let awaited = awaited.map_err(|error| Problem::of_read(&error))?;
    Ok(Json(AwaitedView::new(&awaited, &door)))
}

fn dot(door: &Door, text: &str) -> Result<Dot, Problem> {
    let wrong = || {
        Problem::invalid(format!(
            "dot is {text:?}; write region/partition/position as in us-east/3/17, from the `dots` of \
             an append or the origin, partition and position of an event"
        ))
    };
    let mut parts = text.split('/');
    let (Some(origin), Some(partition), Some(position), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(wrong());
    };
    Ok(Dot {
        partition: PartitionId(partition.parse().map_err(|_| wrong())?),
        position: Position(position.parse().map_err(|_| wrong())?),
        origin: region(door, origin)?,
    })
}

fn region(door: &Door, name: &str) -> Result<RegionId, Problem> {
    let named = door.regions.iter().find(|(_, known)| *known == name);
    named.map(|(id, _)| *id).ok_or_else(|| {
        let known: Vec<_> = door.regions.values().map(String::as_str).collect();
        Problem::not_found(format!(
            "there is no region {name:?}; this federation's are {}",
            known.join(", ")
        ))
    })
}

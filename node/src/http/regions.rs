//! Regions: how they stand, putting a lost one out, and letting them come in and go for good.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Door;
use super::body::{parse, read_json_body};
use super::homes::wait;
use super::params::Name;
use super::problem::Problem;
use crate::{MembershipReport, RegionStanding, Standing};

/// How a region stands, as far as this node knows.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Region)]
pub(super) struct RegionView {
    /// The region.
    region: String,
    /// Whether the federation counts on it: `learner`, `member`, `fencing`, `out`, `joining`, `leaving` or
    /// `left`.
    standing: &'static str,
    /// How long ago this node heard it, in milliseconds; null for its own region, or if it never was.
    silent_for_ms: Option<u64>,
    /// How many events it was seen to hold that are not here. With whatever else it acknowledged alone, they
    /// strand if it is fenced.
    not_here: u64,
    /// The regions that the fence under way waits for, or its joining.
    waits_for: Vec<String>,
}

impl From<RegionStanding> for RegionView {
    fn from(standing: RegionStanding) -> Self {
        Self {
            region: standing.region,
            standing: match standing.standing {
                Standing::Learner => "learner",
                Standing::Member => "member",
                Standing::Fencing => "fencing",
                Standing::Out => "out",
                Standing::Joining => "joining",
                Standing::Leaving => "leaving",
                Standing::Left => "left",
            },
            silent_for_ms: standing.silent_for.map(millis),
            not_here: standing.not_here,
            waits_for: standing.waits_for,
        }
    }
}

/// How far a fence came.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Fenced)]
pub(super) struct FencedView {
    /// How the region stands now.
    #[serde(flatten)]
    region: RegionView,
    /// How long it took until all who remain had sealed what it wrote, in milliseconds; null if they have
    /// not.
    sealed_after_ms: Option<u64>,
    /// How long it took until they went on without it, in milliseconds; null if they do not yet.
    opened_after_ms: Option<u64>,
}

/// How a region is to be put out.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FenceRequest {
    /// Also when fewer than a majority of the members remain, as in a federation of two: what the others
    /// acknowledged may then strand, too.
    #[serde(default)]
    force: bool,
    /// As part of the fence that is under way, which waits for it.
    #[serde(default)]
    evict: bool,
    /// How long to wait until the others go on without it, in milliseconds; 5 s unless given.
    #[serde(default)]
    wait_ms: Option<u64>,
}

/// Says how a region stands
#[utoipa::path(
    get,
    path = "/v1/regions/{name}",
    operation_id = "get_region",
    tag = "homes",
    params(("name" = String, Path, description = "The region's name")),
    responses(
        (status = 200, description = "How it stands", body = RegionView),
        (status = 400, description = "`invalid`: no such region", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn region(
    State(door): State<Door>,
    Name(region): Name,
) -> Result<Json<RegionView>, Problem> {
    let standing = door.backend.region_standing(&region);
    let standing = standing.map_err(|error| Problem::of_move(&error))?;
    Ok(Json(standing.into()))
}

/// Puts a lost region out
///
/// The others seal what it wrote, agree on how much of that counts (the longest prefix that one of them
/// holds), and go on: its streams get other homes, and the settled order does not wait for it. What none of
/// them holds is stranded in that region, and comes back when it does.
#[utoipa::path(
    post,
    path = "/v1/regions/{name}/fence",
    operation_id = "fence_region",
    tag = "homes",
    params(("name" = String, Path, description = "The region's name")),
    request_body = FenceRequest,
    responses(
        (status = 200, description = "It is decided", body = FencedView),
        (status = 400, description = "`invalid`: no such region", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: another fence is under way, or no majority would remain", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: nothing can be decided now", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may have been decided; ask again", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn fence(
    State(door): State<Door>,
    Name(region): Name,
    request: Request,
) -> Result<Json<FencedView>, Problem> {
    let body = read_json_body(&door, request).await?;
    let asked: FenceRequest = parse(&body)?;
    let wait = wait(asked.wait_ms)?;
    let fencing = door.backend.fence(region, asked.force, asked.evict, wait);
    let report = fencing.await.map_err(|error| Problem::of_move(&error))?;
    Ok(Json(FencedView {
        region: report.standing.into(),
        sealed_after_ms: report.sealed_after.map(millis),
        opened_after_ms: report.opened_after.map(millis),
    }))
}

/// How far a region has come in, or out.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Membership)]
pub(super) struct MembershipView {
    /// How the region stands now.
    #[serde(flatten)]
    region: RegionView,
    /// How long it took until it was a member, or had left, in milliseconds; null if it is not so yet.
    done_after_ms: Option<u64>,
}

impl From<MembershipReport> for MembershipView {
    fn from(report: MembershipReport) -> Self {
        Self {
            region: report.standing.into(),
            done_after_ms: report.done_after.map(millis),
        }
    }
}

/// How long to wait for a region to become a member.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct JoinRequest {
    /// How long to wait until it has caught up and is a member, in milliseconds; 5 s unless given.
    #[serde(default)]
    wait_ms: Option<u64>,
}

/// How a region is to leave.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LeaveRequest {
    /// Also when fewer than a majority of the members remain, as in a federation of two.
    #[serde(default)]
    force: bool,
    /// How long to wait until it has left, in milliseconds; 5 s unless given.
    #[serde(default)]
    wait_ms: Option<u64>,
}

/// Makes a new region a member
///
/// Its node runs already, and takes over what the others write. Every member says how far it has settled the
/// order; the region writes above all of that, gets its share of homes, and is waited for like any other.
#[utoipa::path(
    post,
    path = "/v1/regions/{name}/join",
    operation_id = "join_region",
    tag = "homes",
    params(("name" = String, Path, description = "The region's name")),
    request_body = JoinRequest,
    responses(
        (status = 200, description = "It is decided", body = MembershipView),
        (status = 400, description = "`invalid`: no such region in this node's configuration, or its number or name was used before", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: its node is not linked or has not caught up, a fence is under way, or it has left before", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: nothing can be decided now", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may have been decided; ask again", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn join(
    State(door): State<Door>,
    Name(region): Name,
    request: Request,
) -> Result<Json<MembershipView>, Problem> {
    let body = read_json_body(&door, request).await?;
    let asked: JoinRequest = parse(&body)?;
    let wait = wait(asked.wait_ms)?;
    let report = door.backend.join(region, wait).await;
    let report = report.map_err(|error| Problem::of_move(&error))?;
    Ok(Json(report.into()))
}

/// Lets a drained region go for good
///
/// It writes nothing any more. Once every other region holds what it holds, they go on without it; its number and
/// name are never used again.
#[utoipa::path(
    post,
    path = "/v1/regions/{name}/leave",
    operation_id = "leave_region",
    tag = "homes",
    params(("name" = String, Path, description = "The region's name")),
    request_body = LeaveRequest,
    responses(
        (status = 200, description = "It is decided", body = MembershipView),
        (status = 400, description = "`invalid`: no such region", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: it is not drained or has left before, a fence is under way, or no majority would remain", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: nothing can be decided now", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may have been decided; ask again", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn leave(
    State(door): State<Door>,
    Name(region): Name,
    request: Request,
) -> Result<Json<MembershipView>, Problem> {
    let body = read_json_body(&door, request).await?;
    let asked: LeaveRequest = parse(&body)?;
    let wait = wait(asked.wait_ms)?;
    let report = door.backend.leave(region, asked.force, wait).await;
    let report = report.map_err(|error| Problem::of_move(&error))?;
    Ok(Json(report.into()))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

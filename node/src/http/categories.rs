//! `/v1/categories`: their policies, and setting them.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use meridian_conflict::{CategoryPolicy, HomeRule, Isolation, Kind};
use meridian_event::Category;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Door;
use super::body::{parse, read_json_body};
use super::homes::wait;
use super::params::Name;
use super::problem::Problem;
use super::views::{CategoriesView, CategoryView, HomeRuleView, IsolationView, ModeView};

/// Lists the policies that were set
///
/// A category that is not listed is `home` by `hash`.
#[utoipa::path(
    get,
    path = "/v1/categories",
    operation_id = "list_categories",
    tag = "categories",
    responses((status = 200, description = "The policies, by name", body = CategoriesView))
)]
pub(super) async fn list(State(door): State<Door>) -> Json<CategoriesView> {
    let categories = door
        .backend
        .categories()
        .into_keys()
        .map(|category| CategoryView::new(&category, door.backend.category(&category), &door))
        .collect();
    Json(CategoriesView { categories })
}

/// Reads a category's policy
///
/// One that was never set is `home` by `hash`.
#[utoipa::path(
    get,
    path = "/v1/categories/{category}",
    operation_id = "get_category",
    tag = "categories",
    params(("category" = String, Path, description = "The category's name, percent-encoded")),
    responses(
        (status = 200, description = "Its policy", body = CategoryView),
        (status = 400, description = "`invalid`: no category can have this name", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn read(
    State(door): State<Door>,
    Name(name): Name,
) -> Result<Json<CategoryView>, Problem> {
    let category = check(&name)?;
    let report = door.backend.category(category.as_str());
    Ok(Json(CategoryView::new(category.as_str(), report, &door)))
}

/// What is to count for a category.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SetCategory {
    /// How writes to its streams are settled.
    mode: ModeView,
    /// Who is home to them, in mode `home`; `hash` unless given.
    #[serde(default)]
    home: Option<HomeRuleView>,
    /// What a home does that cannot reach a majority of the regions, in mode `home`; `available` unless given.
    #[serde(default)]
    isolation: Option<IsolationView>,
    /// What its streams are. In mode `crdt` one of `g-counter`, `pn-counter`, `bounded-counter`, `g-set`, `or-set`,
    /// `mv-register`, `or-map`; in mode `lww` `document` (unless given) or `fields`.
    #[serde(default)]
    r#type: Option<String>,
    /// How long to wait until it counts, in milliseconds; 5 s unless given.
    #[serde(default)]
    wait_ms: Option<u64>,
}

/// Sets a category's policy
///
/// In all regions at once, and over what their configurations say; only for a category of which no region holds
/// an event. Until every region has said that it holds none, nobody writes the category; an answer with
/// `waits_for` names those that have not.
#[utoipa::path(
    put,
    path = "/v1/categories/{category}",
    operation_id = "set_category",
    tag = "categories",
    params(("category" = String, Path, description = "The category's name, percent-encoded")),
    request_body = SetCategory,
    responses(
        (status = 200, description = "It is decided", body = CategoryView),
        (status = 400, description = "`invalid`: no category can have this name or policy", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: a region holds events of it, or another policy is being set", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: nothing can be decided now", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may have been decided; ask again", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn set(
    State(door): State<Door>,
    Name(name): Name,
    request: Request,
) -> Result<Json<CategoryView>, Problem> {
    let category = check(&name)?;
    let body = read_json_body(&door, request).await?;
    let asked: SetCategory = parse(&body)?;
    let wait = wait(asked.wait_ms)?;
    let home = match asked.home {
        None | Some(HomeRuleView::Hash) => HomeRule::Hash,
        Some(HomeRuleView::Fixed(region)) => HomeRule::Fixed(door.region_id(&region)?),
        Some(HomeRuleView::Creator) => HomeRule::Creator,
    };
    let policy = CategoryPolicy {
        mode: asked.mode.into(),
        home,
    };
    let isolation = match asked.isolation {
        None | Some(IsolationView::Available) => Isolation::Available,
        Some(IsolationView::Fenced) => Isolation::Fenced,
    };
    let kind = asked.r#type.as_deref().map(Kind::parse).transpose();
    let kind = kind.map_err(|error| Problem::invalid(error.to_string()))?;
    put(&door, &category, policy, isolation, kind, wait).await
}

/// Removes a category's policy
///
/// It is `home` by `hash` then, and available, whatever the configurations say. As when one is set, no region
/// may hold an event of it.
#[utoipa::path(
    delete,
    path = "/v1/categories/{category}",
    operation_id = "remove_category",
    tag = "categories",
    params(("category" = String, Path, description = "The category's name, percent-encoded")),
    responses(
        (status = 200, description = "It is decided", body = CategoryView),
        (status = 400, description = "`invalid`: no category can have this name", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: a region holds events of it, or another policy is being set", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: nothing can be decided now", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`indeterminate`: it may have been decided; ask again", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn unset(
    State(door): State<Door>,
    Name(name): Name,
) -> Result<Json<CategoryView>, Problem> {
    let category = check(&name)?;
    let (policy, isolation) = (CategoryPolicy::default(), Isolation::Available);
    put(&door, &category, policy, isolation, None, wait(None)?).await
}

async fn put(
    door: &Door,
    category: &Category,
    policy: CategoryPolicy,
    isolation: Isolation,
    kind: Option<Kind>,
    wait: Duration,
) -> Result<Json<CategoryView>, Problem> {
    let name = category.as_str();
    let set = door
        .backend
        .set_category(name.to_owned(), policy, isolation, kind, wait);
    let report = set.await.map_err(|error| Problem::of_move(&error))?;
    Ok(Json(CategoryView::new(name, report, door)))
}

fn check(name: &str) -> Result<Category, Problem> {
    let category = Category::new(name).map_err(|error| Problem::invalid(error.to_string()))?;
    if name.contains('-') {
        return Err(Problem::invalid(format!(
            "a category ends before the first `-`, so none is called {name:?}"
        )));
    }
    Ok(category)
}

//! `/v1/categories`: policies, which the configuration sets for now.

use axum::Json;
use axum::extract::State;
use meridian_event::Category;

use super::Door;
use super::params::Name;
use super::problem::Problem;
use super::views::{CategoriesView, CategoryView};

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
        .iter()
        .map(|(category, policy)| CategoryView::new(category, policy, &door))
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
    let policy = door
        .backend
        .categories()
        .remove(category.as_str())
        .unwrap_or_default();
    Ok(Json(CategoryView::new(category.as_str(), &policy, &door)))
}

/// Sets a category's policy (not yet: see the configuration)
#[utoipa::path(
    put,
    path = "/v1/categories/{category}",
    operation_id = "set_category",
    tag = "categories",
    params(("category" = String, Path, description = "The category's name, percent-encoded")),
    responses(
        (status = 400, description = "`invalid`: no category can have this name", body = Problem, content_type = "application/problem+json"),
        (status = 501, description = "`not_implemented`: policies are set in each node's configuration for now", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn set(Name(name): Name) -> Problem {
    static_for_now(&name)
}

/// Removes a category's policy (not yet: see the configuration)
#[utoipa::path(
    delete,
    path = "/v1/categories/{category}",
    operation_id = "remove_category",
    tag = "categories",
    params(("category" = String, Path, description = "The category's name, percent-encoded")),
    responses(
        (status = 400, description = "`invalid`: no category can have this name", body = Problem, content_type = "application/problem+json"),
        (status = 501, description = "`not_implemented`: policies are set in each node's configuration for now", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn unset(Name(name): Name) -> Problem {
    static_for_now(&name)
}

fn static_for_now(name: &str) -> Problem {
    match check(name) {
        Ok(category) => Problem::not_implemented(format!(
            "policies are static for now: set that of {category} in the configuration of every \
             node, the same in each, and restart them"
        )),
        Err(problem) => problem,
    }
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

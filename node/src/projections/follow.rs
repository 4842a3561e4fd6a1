//! Takes definitions from the log as they arrive.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use meridian_client::{EventFilter, LiveCursor, LiveRead};
use meridian_event::{Category, RecordedEvent};
use meridian_projection::Definition;
use tokio::time::sleep;

use super::shelf::remove;
use super::{CATEGORY, DEFINED, Projections, REMOVED};
use crate::Node;
use crate::files;

const FILE: &str = "followed";
/// How many events are looked through at once.
const PAGE: u32 = 1_000;
/// How long before the log is read again where it could not be.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Follows the definitions until the node stops.
pub(super) async fn run(projections: Arc<Projections>, node: Weak<Node>) {
    let Ok(category) = Category::new(CATEGORY) else {
        return;
    };
    let cancel = projections.shared.tasks.clone();
    let place = projections.shared.root.join(FILE);
    let mut after = remembered(&place);
    let Some(mut committed) = node.upgrade().map(|node| node.committed()) else {
        return;
    };
    loop {
        committed.borrow_and_update();
        let read = LiveRead {
            after: LiveCursor(after.clone()),
            filter: EventFilter {
                category: Some(category.clone()),
                event_type: None,
            },
            limit: PAGE,
            wait_ms: 0,
        };
        let Some(running) = node.upgrade() else {
            return;
        };
        let page = running.read_live_now(&read);
        drop(running);
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(%error, "the definitions of projections cannot be read on");
                // A place that the log does not know any more: definitions are few, and old ones
                // change nothing.
                after.clear();
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return,
                    () = sleep(AGAIN_AFTER) => continue,
                }
            }
        };
        for event in &page.events {
            take(&projections, event);
        }
        if !page.events.is_empty()
            && let Err(error) = files::make_private_folder(&projections.shared.root)
                .and_then(|()| files::replace(&place, &page.cursor.0, 0o600))
        {
            tracing::warn!(%error, "how far definitions are followed cannot be noted; they are read again after a restart");
        }
        after = page.cursor.0;
        if !page.at_end {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            changed = committed.changed() => if changed.is_err() { return },
        }
    }
}

/// Lets all definitions be followed from the first one on.
pub(super) fn forget_place(root: &Path) {
    remove(&root.join(FILE));
}

fn remembered(place: &Path) -> String {
    match files::exists(place) {
        true => files::read_text(place).unwrap_or_default(),
        false => String::new(),
    }
}

fn take(projections: &Projections, event: &RecordedEvent) {
    let name = event.stream.as_str().strip_prefix(CATEGORY);
    let Some(name) = name.and_then(|name| name.strip_prefix('-')) else {
        return;
    };
    if meridian_projection::check_name(name).is_err() {
        return;
    }
    let revision = event.revision.0;
    match event.event_type.as_str() {
        DEFINED => match Definition::from_json(&event.data) {
            Ok(mut definition) => {
                name.clone_into(&mut definition.name);
                projections.define(name, revision, Some(definition));
            }
            Err(error) => {
                tracing::error!(name, %error, "a projection's definition is of another version of Meridian; it is not followed here");
            }
        },
        REMOVED => projections.define(name, revision, None),
        other => tracing::warn!(name, other, "an event of no known type defines projections"),
    }
}

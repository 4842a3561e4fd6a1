//! Takes definitions from the log as they arrive.

use std::path::Path;
use std::sync::{Arc, Weak};

use meridian_event::RecordedEvent;
use meridian_projection::Definition;

use super::shelf::remove;
use super::{CATEGORY, DEFINED, Projections, REMOVED};
use crate::Node;
use crate::{files, own};

const FILE: &str = "followed";

/// Follows the definitions until the node stops.
pub(super) async fn run(projections: Arc<Projections>, node: Weak<Node>) {
    let cancel = projections.shared.tasks.clone();
    let place = projections.shared.root.join(FILE);
    let after = remembered(&place);
    let take_all = |events: &[RecordedEvent], cursor: &str| {
        for event in events {
            take(&projections, event);
        }
        if let Err(error) = files::make_private_folder(&projections.shared.root)
            .and_then(|()| files::replace(&place, cursor, 0o600))
        {
            tracing::warn!(%error, "how far definitions are followed cannot be noted; they are read again after a restart");
        }
    };
    own::follow(node, cancel, CATEGORY, after, take_all).await;
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
    let Some(name) = own::name_in(&event.stream, CATEGORY) else {
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

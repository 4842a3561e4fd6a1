//! `exactly-once`: a read model = the fold of its feed up to its checkpoint, after any crash.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use meridian_event::RecordedEvent;
use meridian_projection::{Answer, Definition, FeedTier, Limits, Now, Place, Query, QueryError};
use serde_json::Value;

use super::Evidence;
use crate::plan::Plan;

/// The type of the events that clients write.
pub const EVENT_TYPE: &str = "Happened";

/// The name of the projection of the `live` tier.
const LIVE: &str = "live_streams";
const DIGEST_MODULUS: u64 = 1_000_003;

/// What a node's read model held in the end.
#[derive(Clone, Debug)]
pub struct ReadModel {
    /// The node's region.
    pub name: String,
    /// The projection.
    pub projection: String,
    /// What it holds of each stream, with its checkpoint; or why it cannot be read.
    pub answer: Result<Answer, String>,
}

/// The projections that every node of a plan has.
pub fn definitions(plan: &Plan) -> Vec<Definition> {
    let ordered = plan.read_models.then(ordered);
    ordered
        .into_iter()
        .chain(plan.live_read_models.then(live))
        .collect()
}

/// Of each stream, how many events it has and a number that depends on each of them and on their order.
fn ordered() -> Definition {
    let text = format!(
        r#"
        name = "streams"
        version = 1
        schema = "CREATE TABLE streams (stream TEXT PRIMARY KEY, events INTEGER NOT NULL, digest INTEGER NOT NULL)"
        [on]
        {EVENT_TYPE} = """
            INSERT INTO streams VALUES (:stream, 1, (unicode(substr(:id, 1, 1)) * 257 + unicode(substr(:id, 2, 1)) + :revision) % {DIGEST_MODULUS})
            ON CONFLICT (stream) DO UPDATE SET
                events = events + 1, digest = (digest * 31 + excluded.digest) % {DIGEST_MODULUS}
        """
        "#
    );
    Definition::from_toml(&text).expect("the text is a definition")
}

/// The same without their order, of what is held.
fn live() -> Definition {
    let mut definition = ordered();
    definition.name = LIVE.to_owned();
    definition.tier = FeedTier::Live;
    definition.commutative = true;
    let statement = definition.on.get_mut(EVENT_TYPE);
    let statement = statement.expect("the projection handles what clients write");
    *statement = statement.replace("digest * 31 + ", "digest + ");
    definition
}

/// Reads a node's read model of `projection` in `folder`, the one of that number.
pub fn read(name: &str, projection: &str, number: u32, folder: &Path) -> ReadModel {
    let query = Query {
        sql: "SELECT stream, events, digest FROM streams ORDER BY stream".to_owned(),
        params: serde_json::Map::new(),
    };
    let limits = Limits {
        rows: usize::MAX,
        bytes: usize::MAX,
        ..Limits::default()
    };
    let never: Now = Arc::new(|| Duration::ZERO);
    let file = folder.join(projection).join(format!("model-{number}.db"));
    let answer = query.ask(&file, limits, &never);
    ReadModel {
        name: name.to_owned(),
        projection: projection.to_owned(),
        answer: answer.map_err(|error: QueryError| error.to_string()),
    }
}

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    for model in &evidence.read_models {
        let answer = match &model.answer {
            Ok(answer) => answer,
            Err(error) => {
                broken.push(format!(
                    "{}: its read model cannot be read: {error}",
                    model.name
                ));
                continue;
            }
        };
        let Some(copy) = evidence.copies.iter().find(|copy| copy.name == model.name) else {
            continue;
        };
        let (name, place) = (
            format!("{}: {}", model.name, model.projection),
            &answer.checkpoint.place,
        );
        let mut events: Vec<&RecordedEvent> = copy
            .logs
            .values()
            .flatten()
            .flatten()
            .filter(|event| {
                event.event_type.as_str() == EVENT_TYPE && place.covers(event.order_key())
            })
            .collect();
        events.sort_by_key(|event| event.order_key());
        let factor = if model.projection == LIVE { 1 } else { 31 };
        let folded = fold(&events, factor);
        if answer.checkpoint.applied != events.len() as u64 {
            broken.push(format!(
                "{name} counts {} events up to {place}, and there are {}",
                answer.checkpoint.applied,
                events.len()
            ));
        }
        if let Some(what) = difference(&folded, &answer.rows, place) {
            broken.push(format!("{name}: {what}"));
        }
    }
    broken
}

// What came before counts `factor` times in a digest, so that with any but 1 the order counts.
fn fold(events: &[&RecordedEvent], factor: u64) -> BTreeMap<String, (u64, u64)> {
    let mut folded = BTreeMap::<String, (u64, u64)>::new();
    for event in events {
        let id = event.id.to_string();
        let letter = |at: usize| id.as_bytes().get(at).copied().map_or(0, u64::from);
        let own = (letter(0) * 257 + letter(1) + event.revision.0) % DIGEST_MODULUS;
        let row = folded.entry(event.stream.to_string());
        row.and_modify(|(events, digest)| {
            *events += 1;
            *digest = (*digest * factor + own) % DIGEST_MODULUS;
        })
        .or_insert((1, own));
    }
    folded
}

fn difference(
    folded: &BTreeMap<String, (u64, u64)>,
    rows: &[Vec<Value>],
    place: &Place,
) -> Option<String> {
    let expected = folded
        .iter()
        .map(|(stream, (events, digest))| serde_json::json!([stream, events, digest]));
    let found = rows.iter().map(|row| Value::Array(row.clone()));
    let mut pairs = expected.zip(found);
    let first = pairs.find(|(expected, found)| expected != found);
    if let Some((expected, found)) = first {
        return Some(format!(
            "up to {place} its events come to {expected}, and its read model has {found}"
        ));
    }
    (folded.len() != rows.len()).then(|| {
        format!(
            "up to {place} there are {} streams, and its read model has {}",
            folded.len(),
            rows.len()
        )
    })
}

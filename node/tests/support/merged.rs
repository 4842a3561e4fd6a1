//! Categories that every region writes, and what their streams come to.

use serde_json::{Value, json};

use super::{Federation, get, put, until};

/// How many regions such a federation has.
const REGIONS: usize = 3;
/// The kinds of category `crdt`.
const KINDS: [&str; 7] = [
    "g-counter",
    "pn-counter",
    "g-set",
    "or-set",
    "mv-register",
    "or-map",
    "bounded-counter",
];

/// Sets a category for each kind, called as it is without hyphens.
pub fn set_up(federation: &Federation) {
    let categories = KINDS.map(|kind| (kind.replace('-', ""), "crdt", kind));
    let lww = [("document", "lww", "document"), ("fields", "lww", "fields")];
    let lww = lww.map(|(name, mode, kind)| (name.to_owned(), mode, kind));
    for (name, mode, kind) in categories.into_iter().chain(lww) {
        let url = federation.url(0, &format!("/v1/categories/{name}"));
        let body = json!({"mode": mode, "type": kind}).to_string();
        until("the category is set", || {
            put(&url, &body)
                .is_some_and(|(status, answer)| status == 200 && answer["waits_for"] == json!([]))
        });
    }
    for index in 0..REGIONS {
        until("the categories count here", || {
            let (_, last) =
                get(&federation.url(index, "/v1/categories/fields")).expect("an answer");
            last["type"] == "fields"
        });
    }
}

/// What a stream comes to in a region.
pub fn state(federation: &Federation, index: usize, stream: &str, tier: &str) -> Value {
    let url = federation.url(index, &format!("/v1/streams/{stream}/state?tier={tier}"));
    let (status, state) = get(&url).expect("an answer");
    assert_eq!(status, 200, "{state}");
    state
}

/// Waits until all regions come to the same in both tiers; what that is.
pub fn agreed(federation: &Federation, stream: &str) -> Value {
    let all = || {
        let indexes = 0..REGIONS;
        let both = indexes.flat_map(|it| ["live", "stable"].map(|tier| (it, tier)));
        both.map(|(it, tier)| state(federation, it, stream, tier))
            .collect::<Vec<_>>()
    };
    until("all regions come to the same", || {
        let all = all();
        all.iter()
            .all(|it| it["digest"] == all[0]["digest"] && it["value"] == all[0]["value"])
            && all[0]["order_key"] == all[1]["order_key"]
    });
    all().swap_remove(0)["value"].clone()
}

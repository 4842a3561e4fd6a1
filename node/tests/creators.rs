//! Streams that have their homes where they are created: real nodes, real kills.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use meridian_clock::RegionId;
use meridian_conflict::{HomeRule, Policies};
use meridian_event::StreamId;
use serde_json::{Value, json};
use support::{Federation, get, meridian, post, put, text, until};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn set(federation: &Federation, category: &str, home: Value) -> (u16, Value) {
    let policy = json!({ "mode": "home", "home": home, "wait_ms": 30_000 });
    let url = federation.url(0, &format!("/v1/categories/{category}"));
    put(&url, &policy.to_string()).expect("the door answers")
}

// Three regions, in which the streams of category `visit` are at home where they are created.
fn founded() -> Federation {
    let federation = Federation::running(&NAMES);
    until("the policy counts everywhere", || {
        let (status, shown) = set(&federation, "visit", json!("creator"));
        status == 200 && shown["home"] == "creator" && shown["waits_for"] == json!([])
    });
    until_known(&federation, "visit", &json!("creator"));
    federation
}

fn until_known(federation: &Federation, category: &str, rule: &Value) {
    for index in 0..NAMES.len() {
        until("the policy is known", || {
            let shown = get(&federation.url(index, &format!("/v1/categories/{category}")));
            shown.is_some_and(|(_, shown)| shown["home"] == *rule)
        });
    }
}

fn home(federation: &Federation, index: usize, stream: &str) -> Value {
    let (_, home) = get(&federation.url(index, &format!("/v1/homes/{stream}"))).unwrap();
    home
}

// Which region is asked who creates `stream`.
fn arbiter(stream: &str) -> usize {
    let members = (0..3).map(RegionId).collect();
    let policies = Policies::new(members, BTreeMap::new()).unwrap();
    let stream = StreamId::new(stream).unwrap();
    let home = policies.home_by(&HomeRule::Hash, &stream, &BTreeSet::new());
    usize::from(home.0)
}

// Names of new streams of which region `arbiter` keeps who creates them.
fn names(prefix: &str, of: usize, count: usize) -> Vec<String> {
    let all = (0..).map(|number| format!("{prefix}-{number}"));
    all.filter(|name| arbiter(name) == of).take(count).collect()
}

// The revisions, origins and ids of a stream's events, as one region tells them.
fn events(federation: &Federation, index: usize, stream: &str) -> Vec<(u64, String, String)> {
    let path = format!("/v1/streams/{stream}/events?limit=1000");
    let Some((200, page)) = get(&federation.url(index, &path)) else {
        return Vec::new();
    };
    let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
    let events = page["events"].as_array().unwrap().iter();
    events
        .map(|event| {
            let revision = event["revision"].as_u64().unwrap();
            (revision, text(event, "origin"), text(event, "id"))
        })
        .collect()
}

fn until_alike(federation: &Federation) {
    until("the regions agree", || {
        let digests: Vec<_> = (0..3).map(|it| federation.digest(it)).collect();
        digests[0].is_some() && digests.iter().all(|it| *it == digests[0])
    });
}

fn shown(arguments: &[&str]) -> String {
    let done = meridian(arguments);
    assert!(done.status.success(), "{}", text(&done.stderr));
    text(&done.stdout)
}

#[test]
fn each_region_is_home_to_the_streams_that_it_creates() {
    let mut federation = founded();
    let (status, hashed) = get(&federation.url(0, "/v1/homes/order-1")).unwrap();
    assert_eq!((status, &hashed["rule"]), (200, &json!("hash")), "{hashed}");
    assert_eq!(hashed["home"], NAMES[arbiter("order-1")], "{hashed}");

    let mut id = 0;
    let streams: Vec<String> = (0..24).map(|it| format!("visit-{it}")).collect();
    let new = home(&federation, 1, &streams[0]);
    assert_eq!(
        (&new["rule"], &new["home"]),
        (&json!("creator"), &Value::Null)
    );
    for round in 0..3 {
        for (number, stream) in streams.iter().enumerate() {
            id += 1;
            // Created in one region, written from all of them.
            let appended = federation.append_surely((number + round) % 3, stream, id);
            assert_eq!(appended["home"], NAMES[number % 3], "{appended}");
            assert_eq!(appended["first_revision"], round as u64, "{appended}");
        }
    }
    until_alike(&federation);
    for (number, stream) in streams.iter().enumerate() {
        for index in 0..3 {
            let shown = home(&federation, index, stream);
            let name = json!(NAMES[number % 3]);
            assert_eq!((&shown["home"], &shown["creator"]), (&name, &name));
            assert_eq!(shown["rule"], "creator");
            assert_eq!(shown["epoch"], json!({"major": 1, "minor": 0}), "{shown}");
            let held = events(&federation, index, stream);
            assert!(held.iter().map(|it| it.0).eq(0..3), "{held:?}");
        }
    }
    let url = federation.url(2, "");
    let said = shown(&["home", "show", &streams[1], "--url", &url]);
    assert!(said.contains("creator") && said.contains('b'), "{said}");

    // An override, and back.
    for (to, minor) in [("c", 1), ("b", 2)] {
        let body = json!({ "to": to, "wait_ms": 30_000 }).to_string();
        let url = federation.url(0, &format!("/v1/homes/{}/move", streams[1]));
        let (status, moved) = post(&url, &body).unwrap();
        assert_eq!(status, 200, "{moved}");
        assert_eq!(moved["home"], to, "{moved}");
        assert_eq!(moved["epoch"]["minor"], minor, "{moved}");
        assert_eq!(moved["creator"], "b", "{moved}");
        id += 1;
        let appended = federation.append_surely(0, &streams[1], id);
        assert_eq!(appended["home"], to, "{appended}");
        assert_eq!(appended["first_revision"], 2 + minor, "{appended}");
    }
    let body = json!({ "to": "b" }).to_string();
    let (status, refused) = post(&federation.url(0, "/v1/homes/visit-new/move"), &body).unwrap();
    assert_eq!(status, 409, "{refused}");
    assert!(
        refused.to_string().contains("has no events yet"),
        "{refused}"
    );

    // A drained creator is as a fixed region that is drained.
    let drain = json!({ "wait_ms": 30_000 }).to_string();
    let (status, drained) = post(&federation.url(0, "/v1/regions/c/drain"), &drain).unwrap();
    assert_eq!((status, &drained["over"]), (200, &json!(true)), "{drained}");
    id += 1;
    let appended = federation.append_surely(2, &streams[2], id);
    assert_ne!(appended["home"], "c", "{appended}");
    assert_eq!(appended["first_revision"], 3, "{appended}");
    id += 1;
    let created = federation.append_surely(2, "visit-drained", id);
    assert_ne!(created["home"], "c", "{created}");
    let (status, resumed) = post(&federation.url(0, "/v1/regions/c/resume"), &drain).unwrap();
    assert_eq!((status, &resumed["over"]), (200, &json!(true)), "{resumed}");
    id += 1;
    let appended = federation.append_surely(0, &streams[2], id);
    assert_eq!(
        (&appended["home"], &appended["first_revision"]),
        (&json!("c"), &json!(4))
    );
    id += 1;
    let appended = federation.append_surely(2, "visit-drained", id);
    assert_eq!(appended["home"], created["home"], "who created it is home");

    // All of it is found again.
    for index in 0..3 {
        federation.stop(index);
    }
    federation.start_all();
    for (number, stream) in streams.iter().enumerate().skip(3) {
        id += 1;
        let appended = federation.append_surely((number + 1) % 3, stream, id);
        assert_eq!(appended["home"], NAMES[number % 3], "{appended}");
        assert_eq!(appended["first_revision"], 3, "{appended}");
    }
}

#[test]
fn what_all_regions_create_at_once_has_one_home() {
    const STREAMS: usize = 200;
    let federation = founded();
    let urls: Vec<String> = (0..3).map(|it| federation.url(it, "")).collect();
    thread::scope(|scope| {
        for part in 0..2 {
            for (index, url) in urls.iter().enumerate() {
                scope.spawn(move || {
                    for number in (part..STREAMS).step_by(2) {
                        let id = (number * 3 + index + 1) as u128;
                        let id = uuid::Uuid::from_u128(id);
                        let body = json!({"events": [{"id": id, "type": "Tested", "data": {}}]});
                        let url = format!("{url}/v1/streams/visit-{number}/events");
                        let (status, said) = post(&url, &body.to_string()).unwrap();
                        assert_eq!(status, 200, "{said}");
                    }
                });
            }
        }
    });
    until_alike(&federation);
    let mut homes: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..STREAMS {
        let stream = format!("visit-{number}");
        let told = home(&federation, 0, &stream);
        let creator = told["creator"].as_str().unwrap().to_owned();
        assert_eq!(told["home"], creator, "{told}");
        for index in 0..3 {
            assert_eq!(home(&federation, index, &stream), told);
            let held = events(&federation, index, &stream);
            assert!(held.iter().map(|it| it.0).eq(0..3), "{stream}: {held:?}");
            assert!(held.iter().all(|it| it.1 == creator), "{stream}: {held:?}");
            let ids: BTreeSet<_> = held.iter().map(|it| &it.2).collect();
            assert_eq!(ids.len(), 3, "{stream}: {held:?}");
        }
        *homes.entry(creator).or_default() += 1;
    }
    assert_eq!(homes.len(), 3, "each wins some: {homes:?}");
}

#[test]
fn only_creating_waits_for_the_region_that_keeps_who_does() {
    let mut federation = founded();
    let (written, new) = (names("visit", 2, 6), names("visit-new", 2, 2));
    let mut id = 0;
    for stream in &written {
        id += 1;
        let appended = federation.append_surely(0, stream, id);
        assert_eq!(appended["home"], "a", "{appended}");
    }
    until_alike(&federation);
    federation.stop(2);
    for stream in &written {
        for (index, revision) in [(0, 1), (1, 2)] {
            id += 1;
            let (status, appended) = federation.append(index, stream, id);
            assert_eq!(status, 200, "{appended}");
            assert_eq!(appended["first_revision"], revision, "{appended}");
        }
    }
    for index in [0, 1] {
        let (status, refused) = federation.append(index, &new[index], 1000);
        assert_eq!(status, 503, "{refused}");
        assert_eq!(refused["code"], "unavailable", "{refused}");
        let said = refused.to_string();
        for part in ["region c", "Nothing was written", "fence it if it is lost"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        for index in [0, 1] {
            assert!(events(&federation, index, &new[index]).is_empty());
        }
    }
    for (index, of) in [(0, 1), (1, 0)] {
        let stream = &names("visit-other", of, 1)[0];
        id += 1;
        let (status, appended) = federation.append(index, stream, id);
        assert_eq!((status, &appended["home"]), (200, &json!(NAMES[index])));
    }
    // With the disk it loses nothing of what it had said.
    federation.wipe(2);
    federation.start(2);
    federation.until_ready(2);
    let more = names("visit-more", 2, 1);
    for stream in written.iter().chain(&more) {
        id += 1;
        let appended = federation.append_surely(1, stream, id);
        let creator = if more.contains(stream) { "b" } else { "a" };
        assert_eq!(appended["home"], creator, "{appended}");
    }
    for index in [0, 1] {
        id += 1;
        let appended = federation.append_surely(index, &new[index], id);
        assert_eq!(
            (&appended["home"], &appended["first_revision"]),
            (&json!(NAMES[index]), &json!(0))
        );
    }
    until_alike(&federation);
}

#[test]
fn a_lost_creator_is_as_a_lost_fixed_home() {
    let mut federation = founded();
    assert_eq!(set(&federation, "case", json!({"fixed": "c"})).0, 200);
    until_known(&federation, "case", &json!({"fixed": "c"}));
    let created: Vec<String> = (0..3).flat_map(|it| names("visit", it, 2)).collect();
    let fixed: Vec<String> = created
        .iter()
        .map(|it| it.replace("visit", "case"))
        .collect();
    let mut id = 0;
    for stream in created.iter().chain(&fixed) {
        id += 1;
        let appended = federation.append_surely(2, stream, id);
        assert_eq!(appended["home"], "c", "{appended}");
    }
    until_alike(&federation);
    // Created where nobody else hears of it: by the lost region's word alone.
    federation.kill(0);
    federation.kill(1);
    let alone = names("visit-alone", 2, 2);
    for stream in &alone {
        id += 1;
        let appended = federation.append_surely(2, stream, id);
        assert_eq!(appended["home"], "c", "{appended}");
    }
    federation.kill(2);
    federation.start(0);
    federation.start(1);
    federation.until_ready(0);
    federation.until_ready(1);
    let url = federation.url(0, "");
    shown(&["region", "fence", "c", "--wait-ms", "30000", "--url", &url]);

    // The epoch of all of them, and whether they are at home in c; nothing while they differ.
    let alike = |federation: &Federation, index: usize| {
        let of = |stream: &String| {
            let shown = home(federation, index, stream);
            (shown["epoch"].clone(), shown["home"] == "c")
        };
        let all: Vec<_> = created.iter().chain(&fixed).map(of).collect();
        let first = all[0].clone();
        all.iter().all(|it| *it == first).then_some(first)
    };
    assert_eq!(
        alike(&federation, 0),
        Some((json!({"major": 2, "minor": 0}), false))
    );
    for stream in created.iter().chain(&fixed) {
        id += 1;
        let appended = federation.append_surely(0, stream, id);
        assert_eq!(appended["first_revision"], 1, "{appended}");
    }
    // One of those that it alone knew of is created anew, and so is one whose record it would have kept.
    for stream in [&alone[0], &names("visit-new", 2, 1)[0]] {
        id += 1;
        let appended = federation.append_surely(1, stream, id);
        assert_eq!(
            (&appended["home"], &appended["first_revision"]),
            (&json!("b"), &json!(0))
        );
    }

    federation.start(2);
    until("c has its homes back", || {
        let shown = get(&federation.url(0, "/v1/regions/c"));
        shown.is_some_and(|(_, shown)| shown["standing"] == "member")
            && (0..3).all(|index| {
                let back = (json!({"major": 2, "minor": 1}), true);
                alike(&federation, index) == Some(back)
            })
    });
    for stream in created.iter().chain(&fixed) {
        id += 1;
        let appended = federation.append_surely(1, stream, id);
        assert_eq!(
            (&appended["home"], &appended["first_revision"]),
            (&json!("c"), &json!(2))
        );
    }
    // What it alone had is in its stream, or set aside where somebody else went on.
    until("what c alone had is accounted for", || {
        let conflicts = get(&federation.url(1, "/v1/conflicts"));
        conflicts.is_some_and(|(_, page)| {
            let conflicts = page["conflicts"].as_array().unwrap();
            conflicts.len() == 1 && conflicts[0]["stream"] == alone[0]
        }) && (0..3).all(|index| events(&federation, index, &alone[1]).len() == 1)
    });
    until_alike(&federation);
    for index in 0..3 {
        let told: Vec<_> = alone
            .iter()
            .map(|it| home(&federation, index, it))
            .collect();
        assert_eq!(told[0]["creator"], "b", "{told:?}");
        assert_eq!(told[1]["home"], told[1]["creator"], "{told:?}");
    }
    for index in 0..3 {
        federation.stop(index);
        let (sound, said) = federation.verify(index);
        assert!(sound, "{said}");
    }
}

#[test]
fn what_cannot_be_is_refused_and_creates_nothing() {
    let federation = founded();
    for rule in [
        json!("maker"),
        json!({"creator": "a"}),
        json!({"fixed": "x"}),
    ] {
        let (status, refused) = set(&federation, "stay", rule);
        assert_eq!(status, 400, "{refused}");
    }
    let shared = json!({ "mode": "lww", "home": "creator" }).to_string();
    let url = federation.url(0, "/v1/categories/stay");
    assert_eq!(put(&url, &shared).unwrap().0, 400);

    let (status, refused) = federation.append(0, &format!("visit-{}", "x".repeat(240)), 1);
    assert_eq!(status, 400, "{refused}");
    assert!(refused.to_string().contains("at most 240"), "{refused}");
    let (status, refused) = federation.append(0, "$creators-0-visit-1", 1);
    assert_eq!(status, 400, "{refused}");

    // Who expects something of it, creates nothing.
    for (index, expected) in [(0, json!(3)), (1, json!("exists"))] {
        let stream = &names("visit", 2, 1)[0];
        let body = json!({
            "expected": expected,
            "events": [{"type": "Tested", "data": {}}],
        });
        let url = federation.url(index, &format!("/v1/streams/{stream}/events"));
        let (status, refused) = post(&url, &body.to_string()).unwrap();
        assert_eq!(status, 409, "{refused}");
        assert_eq!(home(&federation, 2, stream)["creator"], Value::Null);
    }
    let stream = &names("visit", 2, 1)[0];
    assert_eq!(federation.append_surely(1, stream, 2)["home"], "b");
    let body = json!({
        "expected": "none",
        "events": [{"type": "Tested", "data": {}}],
    });
    let url = federation.url(0, &format!("/v1/streams/{stream}/events"));
    let (status, refused) = post(&url, &body.to_string()).unwrap();
    assert_eq!(status, 409, "{refused}");
}

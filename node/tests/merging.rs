//! Streams that every region writes, between real nodes: whatever is written where, all regions come to the
//! same, and to what was written.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "a test damages files from outside the node"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::merged::{agreed, set_up, state};
use support::{Federation, get, post, put, until};

const NAMES: [&str; 3] = ["a", "b", "c"];
fn write(federation: &Federation, index: usize, stream: &str, data: &Value) -> (u16, Value) {
    let body = json!({"events": [{"type": "T", "data": data}]});
    let url = federation.url(index, &format!("/v1/streams/{stream}/events"));
    post(&url, &body.to_string()).unwrap()
}

fn written(federation: &Federation, index: usize, stream: &str, data: &Value) {
    let (status, answer) = write(federation, index, stream, data);
    assert_eq!(status, 200, "{data}: {answer}");
    assert_eq!(answer["home"], NAMES[index]);
}

fn refused(federation: &Federation, index: usize, stream: &str, data: &Value, code: &str) {
    let before = state(federation, index, stream, "live");
    let (_, answer) = write(federation, index, stream, data);
    assert_eq!(answer["code"], code, "{data}: {answer}");
    assert_eq!(state(federation, index, stream, "live"), before);
}

#[test]
fn what_all_regions_write_merges_and_survives_restarts() {
    let mut federation = Federation::running(&NAMES);
    set_up(&federation);
    let mut total = 0;
    for round in 0..5 {
        for index in 0..NAMES.len() {
            let by = round * 3 + index + 1;
            total += by;
            written(
                &federation,
                index,
                "gcounter-1",
                &json!({"op": "add", "by": by}),
            );
            written(
                &federation,
                index,
                "pncounter-1",
                &json!({"op": "subtract", "by": by}),
            );
            let value = json!({"op": "add", "value": {"n": by}});
            written(&federation, index, "gset-1", &value);
            written(&federation, index, "orset-1", &value);
            written(
                &federation,
                index,
                "orset-1",
                &json!({"op": "add", "value": "x"}),
            );
            let change = json!({"op": "update", "key": "hits", "type": "pn-counter", "change": {"op": "add", "by": by}});
            written(&federation, index, "ormap-1", &change);
            let field = json!({format!("f{index}"): by});
            written(&federation, index, "fields-1", &field);
        }
    }
    assert_eq!(agreed(&federation, "gcounter-1"), json!(total));
    assert_eq!(
        agreed(&federation, "pncounter-1"),
        json!(-(i64::try_from(total).unwrap()))
    );
    let elements: BTreeSet<u64> = (1..=15).collect();
    let held = |value: Value| -> BTreeSet<u64> {
        let elements = value.as_array().unwrap().iter();
        elements.filter_map(|it| it["n"].as_u64()).collect()
    };
    assert_eq!(held(agreed(&federation, "gset-1")), elements);
    assert_eq!(held(agreed(&federation, "orset-1")), elements);
    assert_eq!(
        agreed(&federation, "ormap-1"),
        json!({"hits": {"pn-counter": total}})
    );
    assert_eq!(
        agreed(&federation, "fields-1"),
        json!({"f0": 13, "f1": 14, "f2": 15})
    );
    // A removal takes what its region has seen.
    written(
        &federation,
        1,
        "orset-1",
        &json!({"op": "remove", "value": {"n": 3}}),
    );
    written(
        &federation,
        2,
        "ormap-1",
        &json!({"op": "remove", "key": "hits"}),
    );
    for index in 0..NAMES.len() {
        federation.kill(index);
        federation.start(index);
    }
    for index in 0..NAMES.len() {
        federation.until_ready(index);
    }
    assert!(!held(agreed(&federation, "orset-1")).contains(&3));
    assert_eq!(agreed(&federation, "ormap-1"), json!({}));
    written(&federation, 0, "gcounter-1", &json!({"op": "add"}));
    assert_eq!(agreed(&federation, "gcounter-1"), json!(total + 1));
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_is_written() {
    let federation = Federation::running(&NAMES);
    set_up(&federation);
    let largest = json!({"op": "add", "by": u64::MAX});
    written(&federation, 0, "gcounter-1", &json!({"op": "add"}));
    for (stream, data, code) in [
        ("gcounter-1", json!({"op": "remove", "value": 1}), "invalid"),
        ("gcounter-1", json!({"op": "add", "by": -1}), "invalid"),
        ("gcounter-1", json!({"op": "add", "by": 0}), "invalid"),
        ("gcounter-1", json!({"op": "add", "of": 1}), "invalid"),
        ("gcounter-1", json!("add"), "invalid"),
        ("gcounter-1", largest, "conflict"),
        (
            "orset-1",
            json!({"op": "remove", "value": "never"}),
            "conflict",
        ),
        (
            "orset-1",
            json!({"op": "add", "value": "x".repeat(65 << 10)}),
            "invalid",
        ),
        (
            "ormap-1",
            json!({"op": "remove", "key": "never"}),
            "conflict",
        ),
        ("fields-1", json!([1]), "invalid"),
        (
            "boundedcounter-1",
            json!({"op": "take", "by": 1}),
            "conflict",
        ),
    ] {
        refused(&federation, 0, stream, &data, code);
    }
    // A batch is one transaction, and each event of it is judged with those before.
    let body = json!({"events": [
        {"type": "T", "data": {"op": "add", "value": "y"}},
        {"type": "T", "data": {"op": "remove", "value": "y"}},
        {"type": "T", "data": {"op": "remove", "value": "y"}},
    ]});
    let url = federation.url(0, "/v1/streams/orset-1/events");
    let (status, answer) = post(&url, &body.to_string()).unwrap();
    assert_eq!(status, 409, "{answer}");
    assert!(
        answer["detail"]
            .as_str()
            .unwrap()
            .contains("event 2 of the batch"),
        "{answer}"
    );
    let url = federation.url(0, "/v1/streams/orset-1/events");
    let body = json!({"events": [{"type": "T", "data": {"op": "add", "value": 1}, "metadata": {"$op": 1}}]});
    let (status, answer) = post(&url, &body.to_string()).unwrap();
    assert_eq!(
        (status, &answer["code"]),
        (400, &json!("invalid")),
        "{answer}"
    );
    assert_eq!(state(&federation, 0, "orset-1", "live")["value"], json!([]));
    // A category with data keeps its type.
    let url = federation.url(0, "/v1/categories/gcounter");
    let other = json!({"mode": "crdt", "type": "g-set"}).to_string();
    until("the other type is refused", || {
        let (status, answer) = put(&url, &other).unwrap();
        status == 409 && answer["detail"].as_str().unwrap().contains("holds events")
    });
}

#[test]
fn a_stock_is_taken_only_by_rights() {
    let federation = Federation::running(&NAMES);
    set_up(&federation);
    let stream = "boundedcounter-1";
    written(&federation, 0, stream, &json!({"op": "grant", "by": 10}));
    written(
        &federation,
        0,
        stream,
        &json!({"op": "give", "by": 4, "to": 1}),
    );
    let shown = agreed(&federation, stream);
    assert_eq!(shown, json!({"stock": 10, "rights": {"a": 6, "b": 4}}));
    written(&federation, 1, stream, &json!({"op": "take", "by": 4}));
    // More than all regions hold.
    refused(
        &federation,
        1,
        stream,
        &json!({"op": "take", "by": 7}),
        "conflict",
    );
    written(&federation, 0, stream, &json!({"op": "take", "by": 6}));
    refused(
        &federation,
        0,
        stream,
        &json!({"op": "take", "by": 1}),
        "conflict",
    );
    assert_eq!(agreed(&federation, stream)["stock"], json!(0));
}

#[test]
fn two_writes_side_by_side_both_stay_in_a_register_and_one_is_listed_as_superseded_in_a_document() {
    let mut federation = Federation::running(&NAMES);
    set_up(&federation);
    written(
        &federation,
        0,
        "mvregister-1",
        &json!({"op": "set", "value": 0}),
    );
    written(&federation, 0, "document-1", &json!({"v": 0}));
    agreed(&federation, "mvregister-1");
    agreed(&federation, "document-1");
    // While c is down, a and b write; c comes back alone and writes without having seen it.
    federation.kill(2);
    for (index, value) in [(0, "a"), (0, "a2")] {
        written(
            &federation,
            index,
            "mvregister-1",
            &json!({"op": "set", "value": value}),
        );
        written(&federation, index, "document-1", &json!({"v": value}));
    }
    federation.kill(0);
    federation.kill(1);
    federation.start(2);
    federation.until_ready(2);
    written(
        &federation,
        2,
        "mvregister-1",
        &json!({"op": "set", "value": "c"}),
    );
    written(&federation, 2, "document-1", &json!({"v": "c"}));
    federation.start(0);
    federation.start(1);
    federation.until_ready(0);
    federation.until_ready(1);
    assert_eq!(agreed(&federation, "mvregister-1"), json!(["a2", "c"]));
    assert_eq!(agreed(&federation, "document-1"), json!({"v": "c"}));
    let listed: BTreeMap<usize, Value> = (0..NAMES.len())
        .map(|it| {
            (
                it,
                state(&federation, it, "document-1", "stable")["superseded"].clone(),
            )
        })
        .collect();
    let first = listed[&0].as_array().unwrap();
    assert_eq!(first.len(), 1, "{listed:?}");
    assert_eq!(
        (&first[0]["value"], &first[0]["origin"]),
        (&json!({"v": "a2"}), &json!("a"))
    );
    assert!(listed.values().all(|it| it == &listed[&0]), "{listed:?}");
    let id = first[0]["conflict"].as_str().unwrap();
    recorded_and_reinstated(&federation, id, &first[0]);
}

fn records(federation: &Federation, index: usize, stream: &str) -> Vec<Value> {
    let path = format!("/v1/conflicts?status=resolved&stream={stream}");
    let (status, page) = get(&federation.url(index, &path)).unwrap();
    assert_eq!(status, 200, "{page}");
    page["conflicts"].as_array().unwrap().clone()
}

// What lost has one record, the same everywhere, and can be had back once.
fn recorded_and_reinstated(federation: &Federation, id: &str, lost: &Value) {
    for index in 0..NAMES.len() {
        until("it is recorded what lost", || {
            let records = records(federation, index, "document-1");
            records.len() == 1 && records[0]["id"] == id
        });
        let (_, record) = get(&federation.url(index, &format!("/v1/conflicts/{id}"))).unwrap();
        assert_eq!(record["status"], "superseded", "{record}");
        assert_eq!(record["superseded"]["event"], lost["id"]);
        assert_eq!(record["superseded"]["by"], lost["by"]);
        assert_eq!(record["superseded"]["by_origin"], "c");
        assert_eq!(record["events"][0]["data"], json!({"v": "a2"}));
    }
    let (_, open) = get(&federation.url(0, "/v1/conflicts")).unwrap();
    assert_eq!(open["conflicts"], json!([]), "nobody has to do anything");
    let resolve = |index: usize, action: &str| {
        let url = federation.url(index, &format!("/v1/conflicts/{id}/resolve"));
        post(
            &url,
            &json!({"action": action, "reason": "it was right"}).to_string(),
        )
        .unwrap()
    };
    for action in ["rebase", "discard"] {
        let (status, answer) = resolve(0, action);
        assert_eq!((status, &answer["code"]), (400, &json!("invalid")));
    }
    // Whoever merges in its own way is told of records by a consumer group.
    let group =
        json!({"source": {"categories": ["$conflicts"], "types": ["$conflict-superseded"]}});
    let url = federation.url(0, "/v1/consumers/ledger");
    until("a group follows conflict records", || {
        put(&url, &group.to_string()).is_some_and(|(status, _)| status == 200)
    });
    let asked = json!({"consumer": "one"}).to_string();
    until("the record is given out", || {
        let fetched = post(&format!("{url}/fetch"), &asked);
        fetched.is_some_and(|(_, page)| {
            page["events"][0]["event"]["stream"] == format!("$conflicts-{id}").as_str()
        })
    });
    let before = events_of(federation, 1, "document-1");
    let (status, answer) = resolve(1, "reinstate");
    assert_eq!((status, &answer["status"]), (200, &json!("reinstated")));
    assert_eq!(agreed(federation, "document-1"), json!({"v": "a2"}));
    assert_eq!(events_of(federation, 1, "document-1"), before + 1);
    let shown = state(federation, 1, "document-1", "live");
    assert_eq!(
        shown["winners"][0]["id"],
        answer["resolution"]["reinstated"]
    );
    let (status, answer) = resolve(2, "reinstate");
    assert_eq!((status, &answer["code"]), (409, &json!("conflict")));
    let url = federation.url(0, "");
    let why = support::meridian(&["why", "winner", "document-1", "--url", &url]);
    let said = support::text(&why.stdout);
    assert!(said.contains(id) && said.contains("reinstated"), "{said}");
}

fn events_of(federation: &Federation, index: usize, stream: &str) -> usize {
    let url = federation.url(index, &format!("/v1/streams/{stream}/events?limit=1000"));
    let (_, page) = get(&url).unwrap();
    page["events"].as_array().unwrap().len()
}

#[test]
fn what_a_lost_region_wrote_counts_again_when_it_comes_back_and_wins_over_nothing_newer() {
    let mut federation = Federation::running(&NAMES);
    set_up(&federation);
    for value in ["kept", "gone"] {
        written(
            &federation,
            0,
            "orset-1",
            &json!({"op": "add", "value": value}),
        );
    }
    written(
        &federation,
        2,
        "boundedcounter-1",
        &json!({"op": "grant", "by": 5}),
    );
    agreed(&federation, "orset-1");
    agreed(&federation, "boundedcounter-1");
    // Nobody else holds what c writes now.
    federation.kill(0);
    federation.kill(1);
    for (stream, data) in [
        ("pncounter-1", json!({"op": "add", "by": 5})),
        ("orset-1", json!({"op": "add", "value": "late"})),
        ("orset-1", json!({"op": "add", "value": "changed"})),
        ("orset-1", json!({"op": "remove", "value": "changed"})),
        ("orset-1", json!({"op": "remove", "value": "gone"})),
        (
            "ormap-1",
            json!({"op": "update", "key": "k", "type": "g-counter", "change": {"op": "add", "by": 2}}),
        ),
        ("boundedcounter-1", json!({"op": "take", "by": 4})),
        ("document-1", json!({"v": "late"})),
        ("fields-1", json!({"both": "late", "one": "late"})),
    ] {
        written(&federation, 2, stream, &data);
    }
    federation.kill(2);
    federation.start(0);
    federation.start(1);
    until("the others go on without it", || {
        let url = federation.url(0, "/v1/regions/c/fence");
        let fenced = post(&url, &json!({"wait_ms": 20_000}).to_string());
        fenced.is_some_and(|(status, fenced)| status == 200 && fenced["opened_after_ms"].is_u64())
    });
    for (stream, data) in [
        ("pncounter-1", json!({"op": "subtract", "by": 1})),
        ("orset-1", json!({"op": "add", "value": "newer"})),
        ("document-1", json!({"v": "newer"})),
        ("fields-1", json!({"both": "newer"})),
    ] {
        until("it is written", || {
            write(&federation, 1, stream, &data).0 == 200
        });
    }
    federation.start(2);
    until("all that it wrote is home", || {
        let status = get(&federation.url(2, "/v1/status"));
        status.is_some_and(|(_, status)| {
            let readmission = &status["readmission"];
            readmission["total"] == 9 && readmission["left"] == 0
        })
    });
    federation.until_ready(2);
    assert_eq!(agreed(&federation, "pncounter-1"), json!(4));
    assert_eq!(
        agreed(&federation, "orset-1"),
        json!(["kept", "late", "newer"])
    );
    assert_eq!(
        agreed(&federation, "ormap-1"),
        json!({"k": {"g-counter": 2}})
    );
    let stock = agreed(&federation, "boundedcounter-1");
    assert_eq!(stock, json!({"stock": 1, "rights": {"c": 1}}));
    assert_eq!(agreed(&federation, "document-1"), json!({"v": "newer"}));
    assert_eq!(
        agreed(&federation, "fields-1"),
        json!({"both": "newer", "one": "late"})
    );
    for index in 0..NAMES.len() {
        let lost = |stream| state(&federation, index, stream, "stable")["superseded"].clone();
        assert_eq!(lost("document-1")[0]["value"], json!({"v": "late"}));
        assert_eq!(lost("fields-1")[0]["value"], json!({"both": "late"}));
        assert_eq!(lost("fields-1")[0]["origin"], "c");
    }
    until("what it took before counts for what it may take", || {
        write(
            &federation,
            2,
            "boundedcounter-1",
            &json!({"op": "take", "by": 1}),
        )
        .0 == 200
    });
    refused(
        &federation,
        2,
        "boundedcounter-1",
        &json!({"op": "take", "by": 1}),
        "conflict",
    );
}

fn kept_states(federation: &Federation, index: usize) -> f64 {
    let metrics = federation.metrics(index);
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("meridian_merged_snapshots "));
    line.and_then(|value| value.parse().ok()).unwrap_or(0.0)
}

fn damage_states(federation: &Federation, index: usize) {
    let folder = federation.data(index).join("states");
    let mut damaged = 0;
    for folder in std::fs::read_dir(folder).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
}

#[test]
fn long_streams_are_opened_from_files_and_from_the_log_when_these_are_bad() {
    let mut federation = Federation::running(&NAMES);
    set_up(&federation);
    let mut held = BTreeSet::new();
    for round in 0..9_u32 {
        for index in 0..NAMES.len() {
            let operations: Vec<Value> = (0..100_u32)
                .flat_map(|it| {
                    let value = u32::try_from(index).unwrap() * 1_000 + (round * 37 + it) % 150;
                    held.insert(value);
                    [json!({"op": "add", "value": value})]
                })
                .collect();
            let events = operations
                .iter()
                .map(|data| json!({"type": "T", "data": data}));
            let body = json!({"events": events.collect::<Vec<_>>()}).to_string();
            for stream in ["orset-1", "gset-1"] {
                let url = federation.url(index, &format!("/v1/streams/{stream}/events"));
                let (status, answer) = post(&url, &body).unwrap();
                assert_eq!(status, 200, "{answer}");
            }
        }
    }
    let gone = 1_000;
    let removal = json!({"op": "remove", "value": gone});
    written(&federation, 1, "orset-1", &removal);
    assert!(held.remove(&gone));
    let expected = |value: &Value| {
        let elements = value.as_array().unwrap().iter();
        let elements: BTreeSet<u32> = elements
            .map(|it| u32::try_from(it.as_u64().unwrap()).unwrap())
            .collect();
        elements == held
    };
    assert!(expected(&agreed(&federation, "orset-1")));
    agreed(&federation, "gset-1");
    until("both are kept in files", || {
        kept_states(&federation, 0) >= 2.0
    });
    let before = state(&federation, 0, "orset-1", "live");
    federation.kill(0);
    federation.start(0);
    federation.until_ready(0);
    assert!(kept_states(&federation, 0) >= 2.0);
    let after = state(&federation, 0, "orset-1", "live");
    assert_eq!(after["digest"], before["digest"]);
    assert!(expected(&agreed(&federation, "orset-1")));
    assert_eq!(federation.stop(0).code(), Some(0));
    damage_states(&federation, 0);
    federation.start(0);
    federation.until_ready(0);
    let after = state(&federation, 0, "orset-1", "live");
    assert_eq!(after["digest"], before["digest"]);
    assert!(federation.log(0).contains("folded from the log again"));
    // And it goes on from there.
    written(
        &federation,
        0,
        "orset-1",
        &json!({"op": "add", "value": gone}),
    );
    held.insert(gone);
    let expected = |value: &Value| value.as_array().unwrap().len() == held.len();
    assert!(expected(&agreed(&federation, "orset-1")));
}

#[test]
fn the_command_follows_a_state_across_a_restart_and_says_nothing_twice() {
    let mut federation = Federation::running(&NAMES);
    set_up(&federation);
    let add = |by: u64| json!({"op": "add", "by": by});
    written(&federation, 0, "gcounter-1", &add(1));
    let mut following = Command::new(env!("CARGO_BIN_EXE_meridian"))
        .args(["state", "gcounter-1", "--follow", "--url"])
        .arg(federation.url(0, ""))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), "1");
    written(&federation, 0, "gcounter-1", &add(2));
    assert_eq!(next(), "3");
    federation.stop(0);
    federation.start(0);
    federation.until_ready(0);
    written(&federation, 0, "gcounter-1", &add(3));
    assert_eq!(next(), "6");
    following.kill().unwrap();
    following.wait().unwrap();
}

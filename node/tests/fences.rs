//! Regions that are lost, put out, and come back: real nodes, real kills.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "how long a failover took is printed for whoever looks, and judged by nobody"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use support::{Federation, get, meridian, post, text, until};
use uuid::Uuid;

const NAMES: [&str; 3] = ["a", "b", "c"];
const STREAMS: usize = 24;

fn control(federation: &Federation, index: usize) -> Value {
    let status = get(&federation.url(index, "/v1/status"));
    status.map_or(Value::Null, |(_, status)| status["control"].clone())
}

fn founded() -> Federation {
    let federation = Federation::running(&NAMES);
    for index in 0..NAMES.len() {
        until("the federation is founded", || {
            let control = control(&federation, index);
            control["leader"].is_string() && control["decisions"].as_u64() >= Some(1)
        });
    }
    federation
}

fn home(federation: &Federation, index: usize, stream: &str) -> String {
    let (_, home) = get(&federation.url(index, &format!("/v1/homes/{stream}"))).unwrap();
    home["home"].as_str().unwrap_or_default().to_owned()
}

fn fence(federation: &Federation, by: usize, region: &str, more: &[&str]) -> (Option<i32>, String) {
    let url = federation.url(by, "");
    let mut arguments = vec![
        "region",
        "fence",
        region,
        "--wait-ms",
        "30000",
        "--url",
        &url,
    ];
    arguments.extend(more);
    let done = meridian(&arguments);
    (done.status.code(), text(&done.stdout) + &text(&done.stderr))
}

// The ids and revisions of a stream's events, as one region tells them.
fn events(federation: &Federation, index: usize, stream: &str) -> Vec<Value> {
    let path = format!("/v1/streams/{stream}/events?limit=1000");
    match get(&federation.url(index, &path)) {
        Some((200, page)) => page["events"].as_array().unwrap().clone(),
        _ => Vec::new(),
    }
}

fn names() -> Vec<String> {
    (0..STREAMS).map(|it| format!("order-{it}")).collect()
}

#[test]
fn the_others_go_on_without_a_lost_region_and_take_it_back() {
    let mut federation = founded();
    let mut acknowledged: BTreeMap<String, BTreeSet<u128>> = BTreeMap::new();
    let mut id = 0_u128;
    for stream in names().iter().chain(&names()) {
        id += 1;
        federation.append_surely((id % 3) as usize, stream, id);
        acknowledged.entry(stream.clone()).or_default().insert(id);
    }
    federation.until_agreed(&[0, 1, 2], id as u64);
    let of_c: Vec<String> = names()
        .into_iter()
        .filter(|stream| home(&federation, 0, stream) == "c")
        .collect();
    assert!(of_c.len() >= 4, "{of_c:?}");

    // What c acknowledges now, nobody else has.
    federation.kill(0);
    federation.kill(1);
    for stream in &of_c {
        id += 1;
        federation.append_surely(2, stream, id);
        acknowledged.entry(stream.clone()).or_default().insert(id);
    }
    federation.kill(2);
    federation.start(0);
    federation.start(1);
    federation.until_ready(0);
    federation.until_ready(1);

    let (code, said) = fence(&federation, 0, "c", &[]);
    println!("{said}");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = fence(&federation, 1, "c", &[]);
    assert_eq!(code, Some(0), "fenced twice is fenced: {said}");
    for stream in &of_c {
        let now = home(&federation, 1, stream);
        assert!(now == "a" || now == "b", "{stream} is at home in {now}");
    }
    // Half of its streams are written to meanwhile.
    let (touched, untouched) = of_c.split_at(of_c.len() / 2);
    let mut written_since = BTreeMap::new();
    for stream in touched {
        id += 1;
        let appended = federation.append_surely(0, stream, id);
        assert_eq!(appended["first_revision"], 2, "{appended}");
        written_since.insert(stream.clone(), id);
        acknowledged.entry(stream.clone()).or_default().insert(id);
    }
    // The settled order does not wait for it.
    until("what is written since is final without c", || {
        let path = "/v1/events?tier=final&limit=1000&type=Tested";
        get(&federation.url(1, path)).is_some_and(|(_, page)| {
            let events = page["events"].as_array();
            events.is_some_and(|it| it.len() == 2 * STREAMS + touched.len())
        })
    });

    federation.start(2);
    until("c is a member again", || {
        let shown = get(&federation.url(0, "/v1/regions/c"));
        shown.is_some_and(|(_, shown)| shown["standing"] == "member")
    });
    for stream in untouched {
        until("what c alone had is back in its stream", || {
            (0..3).all(|index| events(&federation, index, stream).len() == 3)
        });
    }
    until("the rest is told of as conflicts", || {
        let conflicts = get(&federation.url(1, "/v1/conflicts"));
        conflicts.is_some_and(|(_, page)| {
            let conflicts = page["conflicts"].as_array();
            conflicts.is_some_and(|it| it.len() == touched.len())
        })
    });
    // Every acknowledged event is in its stream once, or in one conflict record.
    for (stream, ids) in &acknowledged {
        let held = events(&federation, 2, stream);
        let revisions: Vec<u64> = held
            .iter()
            .map(|it| it["revision"].as_u64().unwrap())
            .collect();
        assert!(
            revisions.iter().copied().eq(0..held.len() as u64),
            "{held:?}"
        );
        let lost = usize::from(touched.contains(stream));
        assert_eq!(held.len() + lost, ids.len(), "{stream}: {held:?}");
    }
    until("its homes are back", || {
        of_c.iter()
            .all(|stream| home(&federation, 0, stream) == "c")
    });
    a_record_says_what_was_repeated(&federation, &touched[0]);
    until_alike(&federation, 3);
    for index in 0..3 {
        federation.stop(index);
        let (sound, said) = federation.verify(index);
        assert!(sound, "{said}");
    }
}

// The writer of an event that was set aside repeats its request: it is written, and the record says where.
fn a_record_says_what_was_repeated(federation: &Federation, stream: &str) {
    let lost = |index: usize| {
        let (_, page) =
            get(&federation.url(index, &format!("/v1/conflicts?stream={stream}"))).unwrap();
        let id = page["conflicts"][0]["id"].as_str().unwrap().to_owned();
        let (_, record) = get(&federation.url(index, &format!("/v1/conflicts/{id}"))).unwrap();
        record["events"][0].clone()
    };
    let event = lost(1);
    assert_eq!(event["in_stream"], Value::Null, "{event}");
    let id = Uuid::parse_str(event["id"].as_str().unwrap()).unwrap();
    let appended = federation.append_surely(1, stream, id.as_u128());
    for index in 0..3 {
        until("the record says where it is", || {
            lost(index)["in_stream"] == appended["first_revision"]
        });
    }
}

// Acknowledged event ids, by stream.
type Acknowledged = BTreeMap<String, BTreeSet<String>>;

// Writes to all streams through the doors of all regions while `work` is done. What was acknowledged.
fn under_load(
    federation: &mut Federation,
    durability: &str,
    work: impl FnOnce(&mut Federation),
) -> Acknowledged {
    const WRITERS: usize = 6;
    let (over, acknowledged) = (AtomicBool::new(false), Mutex::new(Acknowledged::new()));
    let doors: Vec<String> = (0..3).map(|it| federation.url(it, "")).collect();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (over, acknowledged, doors) = (&over, &acknowledged, &doors);
            scope.spawn(move || {
                let mut number = 0_u128;
                while !over.load(Ordering::Relaxed) {
                    number += 1;
                    let id = Uuid::from_u128((writer as u128 + 1) << 64 | number).to_string();
                    let stream = format!("order-{}", (number as usize * 7 + writer) % STREAMS);
                    let url = format!("{}/v1/streams/{stream}/events", doors[writer % doors.len()]);
                    let body = json!({
                        "durability": durability,
                        "events": [{"id": id, "type": "Tested", "data": {}}],
                    });
                    // Refused or unknown: it counts for nothing, and the next one is tried.
                    if let Some((200, _)) = post(&url, &body.to_string()) {
                        let mut acknowledged = acknowledged.lock().unwrap();
                        acknowledged.entry(stream).or_default().insert(id);
                    }
                }
            });
        }
        // However the work ends, the writers do.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(federation)));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    acknowledged.into_inner().unwrap()
}

fn until_alike(federation: &Federation, regions: usize) {
    until("the regions agree", || {
        let digests: Vec<_> = (0..regions).map(|it| federation.digest(it)).collect();
        digests[0].is_some() && digests.iter().all(|it| *it == digests[0])
    });
}

fn standing(federation: &Federation, index: usize, region: &str) -> Value {
    let shown = get(&federation.url(index, &format!("/v1/regions/{region}")));
    shown.map_or(Value::Null, |(_, shown)| shown)
}

// The ids of the events in a stream, all of them, with their revisions checked.
fn ids_of(federation: &Federation, index: usize, stream: &str) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    loop {
        let path = format!("/v1/streams/{stream}/events?limit=1000&from={}", ids.len());
        let (status, page) = get(&federation.url(index, &path)).unwrap();
        assert_eq!(status, 200, "{page}");
        for event in page["events"].as_array().unwrap() {
            assert_eq!(
                event["revision"].as_u64(),
                Some(ids.len() as u64),
                "{event}"
            );
            let is_new = ids.insert(event["id"].as_str().unwrap().to_owned());
            assert!(is_new, "{event} is there twice");
        }
        if page["end"] == true {
            return ids;
        }
    }
}

// The ids of the events that conflict records hold.
fn ids_in_conflicts(federation: &Federation, index: usize) -> BTreeMap<String, usize> {
    let mut ids = BTreeMap::new();
    let (_, page) = get(&federation.url(index, "/v1/conflicts?limit=1000")).unwrap();
    for record in page["conflicts"].as_array().unwrap() {
        let id = record["id"].as_str().unwrap();
        let (status, record) = get(&federation.url(index, &format!("/v1/conflicts/{id}"))).unwrap();
        assert_eq!(status, 200, "{record}");
        for event in record["events"].as_array().unwrap() {
            *ids.entry(event["id"].as_str().unwrap().to_owned())
                .or_default() += 1;
        }
    }
    ids
}

fn until_home_again(federation: &Federation, lost: usize) {
    for index in 0..3 {
        until(
            "the region is a member again and its homes are back",
            || {
                let control = control(federation, index);
                standing(federation, index, NAMES[lost])["standing"] == "member"
                    && control["drained"] == json!([])
                    && control["opening"] == json!([])
            },
        );
    }
    until("what was stranded is home", || {
        let (status, body) = get(&federation.url(lost, "/v1/status")).unwrap_or_default();
        status == 200 && body["readmission"]["left"] == 0
    });
}

fn with_automatic_failover() -> Federation {
    started(configured_for_failover())
}

fn configured_for_failover() -> Federation {
    let federation = Federation::new(&NAMES);
    for index in 0..3 {
        federation.edit_config(index, "automatic = false", "automatic = true");
    }
    federation
}

// A federation in which a category's policy is set.
fn with_category(federation: Federation, name: &str, policy: &str) -> Federation {
    for index in 0..3 {
        let example = "# [categories.ledger]";
        let with = format!("[categories.{name}]\n{policy}\n{example}");
        federation.edit_config(index, example, &with);
    }
    federation
}

fn started(mut federation: Federation) -> Federation {
    federation.start_all();
    for index in 0..3 {
        federation.until_ready(index);
    }
    until("the federation is founded", || {
        (0..3).all(|index| control(&federation, index)["decisions"].as_u64() >= Some(1))
    });
    federation
}

// Region `lost` is killed under load, and the others go on without it by themselves. Prints how long that
// took, and returns what was acknowledged.
fn lose(federation: &mut Federation, lost: usize, durability: &str) -> Acknowledged {
    let other = (lost + 1) % 3;
    under_load(federation, durability, |federation| {
        thread::sleep(std::time::Duration::from_millis(700));
        let of_lost: Vec<String> = names()
            .into_iter()
            .filter(|stream| home(federation, other, stream) == NAMES[lost])
            .collect();
        federation.kill(lost);
        let killed = Instant::now();
        let mut phases = Vec::new();
        until("the others have noticed", || {
            !control(federation, other)["fenced"]
                .as_array()
                .is_none_or(Vec::is_empty)
        });
        phases.push(("detected", killed.elapsed()));
        until("the fence is open", || {
            standing(federation, other, NAMES[lost])["standing"] == "out"
        });
        phases.push(("opened", killed.elapsed()));
        until("its homes answer elsewhere", || {
            of_lost.iter().all(|stream| {
                let url = federation.url(other, &format!("/v1/streams/{stream}/events"));
                let body = json!({"events": [{"type": "Probed", "data": {}}]});
                let asked = Instant::now();
                let answer = post(&url, &body.to_string());
                let is_done = matches!(answer, Some((200, _)));
                if !is_done {
                    println!("{stream} after {:?}: {answer:?}", asked.elapsed());
                }
                is_done
            })
        });
        phases.push(("its homes answer", killed.elapsed()));
        println!("{} was killed: {phases:?}", NAMES[lost]);
        federation.start(lost);
        until_home_again(federation, lost);
    })
}

#[test]
fn a_killed_region_is_replaced_by_itself_and_every_acknowledged_event_is_accounted_for() {
    let mut federation = with_automatic_failover();
    let acknowledged = lose(&mut federation, 1, "region");
    until_home_again(&federation, 1);
    until_alike(&federation, 3);
    let conflicts = ids_in_conflicts(&federation, 0);
    let mut held = 0;
    for (stream, acknowledged) in &acknowledged {
        let ids = ids_of(&federation, 2, stream);
        held += ids.len();
        for id in acknowledged {
            let places = usize::from(ids.contains(id)) + conflicts.get(id).copied().unwrap_or(0);
            assert_eq!(places, 1, "{id} of {stream} is in {places} places");
        }
    }
    println!(
        "{held} events in streams, {} in conflict records",
        conflicts.len()
    );
}

#[test]
fn what_two_regions_acknowledged_never_strands() {
    let mut federation = with_automatic_failover();
    for lost in [0, 1, 2, 1, 0] {
        let acknowledged = lose(&mut federation, lost, "regions:2");
        until_home_again(&federation, lost);
        until_alike(&federation, 3);
        let mut count = 0;
        for (stream, acknowledged) in &acknowledged {
            let ids = ids_of(&federation, lost, stream);
            let missing: Vec<_> = acknowledged.difference(&ids).collect();
            assert!(missing.is_empty(), "{stream} lost {missing:?}");
            count += acknowledged.len();
        }
        println!("{count} events acknowledged by two regions are in their streams");
    }
}

#[test]
fn of_two_regions_an_operator_goes_on_with_one_by_force() {
    let mut federation = Federation::running(&["a", "b"]);
    until("the federation is founded", || {
        (0..2).all(|index| control(&federation, index)["decisions"].as_u64() >= Some(1))
    });
    for id in 0..40 {
        federation.append_surely((id % 2) as usize, &format!("order-{}", id % 12), id);
    }
    federation.until_agreed(&[0, 1], 40);
    federation.kill(1);
    let (code, said) = fence(&federation, 0, "b", &[]);
    assert_ne!(code, Some(0), "{said}");
    let (code, said) = fence(&federation, 0, "b", &["--force"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("may strand"), "{said}");
    for id in 40..60 {
        federation.append_surely(0, &format!("order-{}", id % 12), id);
    }
    until("what is written since is final", || {
        let page = get(&federation.url(0, "/v1/events?tier=final&limit=1000&type=Tested"));
        page.is_some_and(|(_, page)| page["events"].as_array().is_some_and(|it| it.len() == 60))
    });
    federation.start(1);
    until("it is a member again, and both decide", || {
        (0..2).all(|index| {
            let control = control(&federation, index);
            control["voters"] == json!(["a", "b"])
                && control["leader"].is_string()
                && control["drained"] == json!([])
                && standing(&federation, index, "b")["standing"] == "member"
        })
    });
    until_alike(&federation, 2);
}

/// Whoever is lost, under load and at the lowest durability that can be asked for.
#[test]
fn what_a_fenced_category_acknowledged_never_strands_whatever_durability_was_asked() {
    let federation = configured_for_failover();
    let mut federation = started(with_category(federation, "order", "isolation = \"fenced\""));
    // Each round sends the ids of the one before again. What was refused or unknown then may be in a record
    // since, and is written now.
    let mut earlier = BTreeMap::new();
    for lost in [1, 0, 2] {
        let acknowledged = lose(&mut federation, lost, "region");
        until_home_again(&federation, lost);
        until_alike(&federation, 3);
        let conflicts = ids_in_conflicts(&federation, lost);
        let mut count = 0;
        for (stream, acknowledged) in &acknowledged {
            let ids = ids_of(&federation, lost, stream);
            let missing: Vec<_> = acknowledged.difference(&ids).collect();
            assert!(missing.is_empty(), "{stream} lost {missing:?}");
            let is_told_of =
                |id: &&String| conflicts.contains_key(*id) && !earlier.contains_key(*id);
            let told_of = acknowledged.iter().find(is_told_of);
            assert_eq!(told_of, None, "in {stream} and in a conflict record");
            count += acknowledged.len();
        }
        earlier = conflicts;
        println!("{count} acknowledged events of a fenced category are in their streams");
    }
}

#[test]
fn a_home_that_is_cut_off_refuses_a_fenced_category_and_takes_the_others() {
    let federation = Federation::new(&NAMES);
    for index in 0..3 {
        let (from, to) = ("append_timeout_ms = 10000", "append_timeout_ms = 1000");
        federation.edit_config(index, from, to);
    }
    let federation = with_category(federation, "bill", "home = \"fixed:a\"");
    let fenced = "home = \"fixed:a\"\nisolation = \"fenced\"";
    let mut federation = started(with_category(federation, "ledger", fenced));
    let (_, shown) = get(&federation.url(1, "/v1/categories/ledger")).unwrap();
    assert_eq!(shown["isolation"], "fenced");

    let appended = federation.append_surely(1, "ledger-1", 1);
    assert_eq!(appended["durability"], "regions:2", "{appended}");
    assert_eq!(appended["could_strand"], false, "{appended}");
    let appended = federation.append_surely(1, "bill-1", 2);
    assert_eq!(appended["durability"], "region", "{appended}");

    federation.kill(1);
    federation.kill(2);
    let killed = Instant::now();
    let mut unknown = Vec::new();
    let mut id = 100;
    until("writes to the fenced category are refused", || {
        id += 1;
        let (status, answer) = federation.append(0, "ledger-1", id);
        assert_ne!(status, 200, "acknowledged by one region: {answer}");
        let detail = answer["detail"].as_str().unwrap_or_default();
        let is_refused = status == 503 && detail.contains("category ledger is fenced");
        if !is_refused {
            println!("{answer}");
            unknown.push(id);
        }
        is_refused
    });
    println!("refused {:?} after the kill", killed.elapsed());
    let (status, answer) = federation.append(0, "bill-1", 3);
    assert_eq!(status, 200, "{answer}");

    // One of them back is a majority again, and nothing that was not known has happened twice.
    federation.start(1);
    for id in &unknown {
        federation.append_surely(0, "ledger-1", *id);
    }
    federation.append_surely(1, "ledger-1", 200);
    let ids = ids_of(&federation, 0, "ledger-1");
    assert_eq!(ids.len(), 2 + unknown.len(), "{ids:?}");
}

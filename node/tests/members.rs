//! Regions that leave for good, and new ones that take their place: real nodes, under load.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "writers pause between their requests"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Federation, get, meridian, path, post, text, until};

const STREAMS: usize = 24;
const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

fn control(federation: &Federation, index: usize) -> Value {
    let status = get(&federation.url(index, "/v1/status"));
    status.map_or(Value::Null, |(_, status)| status["control"].clone())
}

fn standing(federation: &Federation, index: usize, region: &str) -> Value {
    let shown = get(&federation.url(index, &format!("/v1/regions/{region}")));
    shown.map_or(Value::Null, |(_, shown)| shown["standing"].clone())
}

fn refusing(federation: &Federation, index: usize) -> String {
    let status = get(&federation.url(index, "/v1/status"));
    let refusing = status.map(|(_, status)| status["refusing"].clone());
    refusing
        .unwrap_or_default()
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

// Runs `meridian region`, asking one node.
fn region(federation: &Federation, by: usize, arguments: &[&str]) -> (Option<i32>, String) {
    let url = federation.url(by, "");
    let mut all = vec!["region"];
    all.extend(arguments);
    all.extend(["--url", &url]);
    let done = meridian(&all);
    (done.status.code(), text(&done.stdout) + &text(&done.stderr))
}

fn done(federation: &Federation, by: usize, arguments: &[&str], says: &str) {
    let (code, said) = region(federation, by, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {said}");
    assert!(said.contains(says), "{arguments:?}: {said}");
}

fn refused(federation: &Federation, by: usize, arguments: &[&str], says: &str) {
    let (code, said) = region(federation, by, arguments);
    assert_ne!(code, Some(0), "{arguments:?}: {said}");
    assert!(said.contains(says), "{arguments:?}: {said}");
}

fn home(federation: &Federation, index: usize, stream: &str) -> String {
    let (_, home) = get(&federation.url(index, &format!("/v1/homes/{stream}"))).unwrap_or_default();
    home["home"].as_str().unwrap_or_default().to_owned()
}

fn homes(federation: &Federation, index: usize) -> Vec<String> {
    let streams = (0..STREAMS).map(|it| format!("order-{it}"));
    streams
        .map(|stream| home(federation, index, &stream))
        .collect()
}

// How many events of region `origin` a region holds.
fn held_of(federation: &Federation, index: usize, origin: &str) -> u64 {
    let digest = federation.digest(index).unwrap_or_default();
    let logs = digest.as_array().or_else(|| digest["logs"].as_array());
    let logs = logs
        .into_iter()
        .flatten()
        .filter(|log| log["origin"] == origin);
    logs.filter_map(|log| log["position"].as_u64()).sum()
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
            assert!(
                ids.insert(event["id"].as_str().unwrap().to_owned()),
                "{event}"
            );
        }
        if page["end"] == true {
            return ids;
        }
    }
}

// Writes through the doors of a and b, while another thread changes who is a member.
struct Load {
    over: AtomicBool,
    // While a node is stopped and started anew, requests may have to be repeated.
    restarting: AtomicBool,
    acknowledged: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

impl Load {
    fn write(&self, door: &str, writer: u128) {
        let mut number = 0_u128;
        while !self.over.load(Ordering::Relaxed) {
            number += 1;
            let id = uuid::Uuid::from_u128(writer << 64 | number).to_string();
            let stream = format!(
                "order-{}",
                (number as usize * 7 + writer as usize) % STREAMS
            );
            let url = format!("{door}/v1/streams/{stream}/events");
            let body = json!({"events": [{"id": id, "type": "Tested", "data": {}}]}).to_string();
            loop {
                let mut may_fail = self.restarting.load(Ordering::SeqCst);
                let answer = post(&url, &body);
                may_fail |= self.restarting.load(Ordering::SeqCst);
                if let Some((200, _)) = answer {
                    let mut acknowledged = self.acknowledged.lock().unwrap();
                    acknowledged.entry(stream).or_default().insert(id);
                    break;
                }
                let is_retriable = matches!(answer, None | Some((503 | 504, _)));
                assert!(may_fail && is_retriable, "{url}: {answer:?}");
                thread::sleep(Duration::from_millis(50));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn restart(federation: &mut Federation, load: &Load, index: usize) {
    load.restarting.store(true, Ordering::SeqCst);
    assert!(federation.stop(index).success());
    federation.start(index);
    federation.until_ready(index);
    // The others pass requests on to it again.
    until(
        "a stream that is at home there is written through every door",
        || {
            let stream = (0..STREAMS).map(|it| format!("order-{it}"));
            let name = federation.regions[index].name.clone();
            let mut of_it = stream.filter(|stream| home(federation, A, stream) == name);
            let Some(stream) = of_it.next() else {
                return true;
            };
            [A, B].iter().all(|door| {
                let body = json!({"events": [{"type": "Probed", "data": {}}]}).to_string();
                let url = federation.url(*door, &format!("/v1/streams/{stream}/events"));
                matches!(post(&url, &body), Some((200, _)))
            })
        },
    );
    load.restarting.store(false, Ordering::SeqCst);
}

#[test]
fn a_region_leaves_for_good_and_a_new_one_takes_its_place_while_others_write() {
    let mut federation = Federation::running(&["a", "b", "c"]);
    until("the federation is founded", || {
        (0..3).all(|index| control(&federation, index)["decisions"].as_u64() >= Some(1))
    });
    for number in 0..3 * STREAMS as u128 {
        let stream = format!("order-{}", number as usize % STREAMS);
        federation.append_surely((number % 3) as usize, &stream, 1 << 100 | number);
    }
    let load = Load {
        over: AtomicBool::new(false),
        restarting: AtomicBool::new(false),
        acknowledged: Mutex::default(),
    };
    let doors = [A, B].map(|index| federation.url(index, ""));
    let d = thread::scope(|scope| {
        let writers: Vec<_> = (1..)
            .zip(&doors)
            .map(|(writer, door)| {
                let load = &load;
                scope.spawn(move || load.write(door, writer))
            })
            .collect();
        // Writers end with this, however it ends.
        let over = scope.spawn(|| c_leaves_and_d_joins(&mut federation, &load));
        let joined = over.join();
        load.over.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().unwrap();
        }
        joined.unwrap()
    });

    until("a, b and d hold the same", || {
        let digests = [A, B, d].map(|index| federation.digest(index));
        digests[0].is_some() && digests.iter().all(|it| *it == digests[0])
    });
    for (stream, acknowledged) in &*load.acknowledged.lock().unwrap() {
        let held = ids_of(&federation, d, stream);
        let missing: Vec<_> = acknowledged.difference(&held).collect();
        assert!(missing.is_empty(), "{stream} lost {missing:?}");
    }
    until("the order goes on being settled, everywhere", || {
        [A, B, d].iter().all(|index| {
            let (_, status) = get(&federation.url(*index, "/v1/status")).unwrap_or_default();
            let lag = |of: &str| status["watermarks"][of].as_u64();
            lag("stable_lag_ms").is_some_and(|it| it < 3_000)
                && lag("final_lag_ms").is_some_and(|it| it < 3_000)
        })
    });

    // It is a member after a restart, too; and a file that does not list who left is refused.
    assert!(federation.stop(d).success());
    federation.edit_config(d, "name = \"c\"", "name = \"other\"");
    let config = path(&federation.regions[d].config).to_owned();
    let wrong = meridian(&["serve", "--config", &config]);
    assert!(!wrong.status.success());
    let said = text(&wrong.stderr);
    assert!(said.contains("region number 2 is called \"c\""), "{said}");
    federation.edit_config(d, "name = \"other\"", "name = \"c\"");
    federation.start(d);
    federation.until_ready(d);
    // Without its disk it asks whoever is there, not who left.
    federation.kill(d);
    federation.wipe(d);
    federation.start(d);
    federation.until_ready(d);
    federation.until_agreed(&[A, B, d], support::count(&federation.digest(A).unwrap()));
    until("d votes again", || {
        control(&federation, d)["voters"] == json!(["a", "b", "d"])
    });
    for index in [A, B, d] {
        assert!(federation.stop(index).success());
        let (sound, said) = federation.verify(index);
        assert!(sound, "{said}");
    }
}

fn c_leaves_and_d_joins(federation: &mut Federation, load: &Load) -> usize {
    let wait = "60000";
    refused(federation, A, &["leave", "c"], "drain");
    refused(federation, A, &["leave", "nowhere"], "there is no region");
    done(
        federation,
        A,
        &["drain", "c", "--wait-ms", wait],
        "home to nothing",
    );
    done(
        federation,
        B,
        &["leave", "c", "--wait-ms", wait],
        "has left for good",
    );
    refused(
        federation,
        A,
        &["leave", "c"],
        "has left the federation for good",
    );
    refused(
        federation,
        A,
        &["join", "c"],
        "has left the federation for good",
    );
    refused(
        federation,
        A,
        &["resume", "c"],
        "has left the federation for good",
    );
    for index in [A, B, C] {
        until("all know that c has left", || {
            standing(federation, index, "c") == "left"
        });
    }
    until("c says why it takes no writes", || {
        refusing(federation, C).contains("has left the federation")
    });
    assert!(
        !ids_of(federation, C, "order-0").is_empty(),
        "it can still be read"
    );
    until("c does not vote any more", || {
        control(federation, A)["voters"] == json!(["a", "b"])
    });
    let status = text(&meridian(&["status", "--url", &federation.url(A, "")]).stdout);
    let rows: Vec<&str> = status
        .lines()
        .filter(|line| line.contains("┆ c "))
        .collect();
    assert!(
        matches!(rows[..], [row, ..] if row.contains("left")),
        "{status}"
    );
    assert!(!status.contains("held in c"), "{status}");
    let of_c = held_of(federation, C, "c");
    assert!(of_c > 0);
    assert!(federation.stop(C).success());
    let (sound, said) = federation.verify(C);
    assert!(sound, "{said}");
    // Started again, it is still one that has left, and can be read.
    federation.start(C);
    until("c remembers that it has left", || {
        refusing(federation, C).contains("has left the federation")
    });
    assert!(!ids_of(federation, C, "order-1").is_empty());
    assert!(federation.stop(C).success());
    // Of two, neither goes without being forced.
    done(
        federation,
        A,
        &["drain", "b", "--wait-ms", wait],
        "home to nothing",
    );
    refused(federation, A, &["leave", "b"], "no majority");
    done(
        federation,
        A,
        &["resume", "b", "--wait-ms", wait],
        "its share of homes",
    );

    refused(federation, A, &["join", "d"], "not among the `members`");
    for (name, says) in [
        ("a", "there is, or was"),
        ("c", "there is, or was"),
        ("D", "cannot be the name"),
    ] {
        let (added, said) = federation.try_add(name);
        assert_eq!((added, said.contains(says)), (None, true), "{name}: {said}");
    }
    let (added, said) = federation.try_add("d");
    let d = added.unwrap_or_else(|| panic!("{said}"));
    restart(federation, load, A);
    restart(federation, load, B);
    refused(
        federation,
        A,
        &["join", "d", "--wait-ms", "300"],
        "there is no link to region d",
    );
    federation.start(d);
    until("d takes over what the others write", || {
        held_of(federation, d, "c") == of_c && standing(federation, A, "d") == "learner"
    });
    until("d says why it takes no writes", || {
        refusing(federation, d).contains("not a member yet")
    });
    // Its folder is not empty any more, and it is a learner all the same.
    assert!(federation.stop(d).success());
    federation.start(d);
    until("d is a learner after a restart", || {
        refusing(federation, d).contains("not a member yet")
    });
    refused(federation, d, &["join", "d"], "ask the node of a member");
    assert!(!homes(federation, d).contains(&"d".to_owned()));

    done(
        federation,
        B,
        &["join", "d", "--wait-ms", wait],
        "is a member",
    );
    done(federation, A, &["join", "d"], "is a member");
    federation.until_ready(d);
    for index in [A, B, d] {
        until("all know that d is a member", || {
            standing(federation, index, "d") == "member"
        });
        until("d has its share of homes", || {
            homes(federation, index).contains(&"d".to_owned())
                && control(federation, index)["opening"] == json!([])
        });
        until("d votes", || {
            control(federation, index)["voters"] == json!(["a", "b", "d"])
        });
        assert_eq!(control(federation, index)["left"], json!(["c"]));
        assert_eq!(control(federation, index)["error"], Value::Null);
    }
    assert_eq!(homes(federation, A), homes(federation, d));
    thread::sleep(Duration::from_secs(1));
    d
}

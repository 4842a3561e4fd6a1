//! Names that only one owner may have in all regions, over real processes.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

use std::collections::BTreeMap;
use std::thread;

use serde_json::{Value, json};
use support::{Federation, delete, get, meridian, post, put, text, until};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn url(federation: &Federation, index: usize, key: &str) -> String {
    federation.url(index, &format!("/v1/reservations/email/{key}"))
}

fn claim(
    federation: &Federation,
    index: usize,
    key: &str,
    owner: &str,
    seconds: Option<u64>,
) -> (u16, Value) {
    let mut body = json!({ "owner": owner });
    if let Some(seconds) = seconds {
        body["for_seconds"] = json!(seconds);
    }
    put(&url(federation, index, key), &body.to_string()).unwrap()
}

fn claimed(
    federation: &Federation,
    index: usize,
    key: &str,
    owner: &str,
    seconds: Option<u64>,
) -> Value {
    let (status, held) = claim(federation, index, key, owner, seconds);
    assert_eq!(status, 200, "{held}");
    assert_eq!((&held["key"], &held["owner"]), (&json!(key), &json!(owner)));
    held
}

fn refused(federation: &Federation, index: usize, key: &str, owner: &str, holder: &str) -> Value {
    let (status, problem) = claim(federation, index, key, owner, None);
    assert_eq!(
        (status, &problem["code"]),
        (409, &json!("reserved")),
        "{problem}"
    );
    assert_eq!(problem["owner"], holder, "{problem}");
    problem
}

fn release(federation: &Federation, index: usize, key: &str, owner: &str) -> (u16, Value) {
    let url = format!("{}?owner={owner}", url(federation, index, key));
    delete(&url).unwrap()
}

fn holder(federation: &Federation, index: usize, key: &str) -> Option<String> {
    match get(&url(federation, index, key)) {
        Some((200, shown)) => {
            assert_eq!(shown["told_by"], NAMES[index]);
            shown["owner"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

fn until_held(federation: &Federation, key: &str, owner: Option<&str>) {
    until(&format!("all regions say that {owner:?} has {key}"), || {
        (0..3).all(|index| holder(federation, index, key).as_deref() == owner)
    });
}

fn founded() -> Federation {
    let federation = Federation::running(&NAMES);
    for index in 0..NAMES.len() {
        until("the federation is founded", || {
            get(&federation.url(index, "/v1/status")).is_some_and(|(_, status)| {
                status["control"]["leader"].is_string()
                    && status["control"]["decisions"].as_u64() >= Some(1)
            })
        });
    }
    federation
}

// So many free keys whose home is the region called `home`.
fn keys_of(federation: &Federation, home: &str, count: usize) -> Vec<String> {
    let mut found = Vec::new();
    for number in 0.. {
        let key = format!("probe-{number}");
        let held = claimed(federation, 0, &key, "probe", None);
        let (status, released) = release(federation, 1, &key, "probe");
        assert_eq!((status, &released["released"]), (200, &json!(true)));
        if held["home"] == home {
            found.push(key);
        }
        if found.len() == count {
            break;
        }
    }
    found
}

#[test]
fn of_three_who_claim_a_key_at_once_one_has_it_and_all_regions_agree_who() {
    let mut federation = Federation::running(&NAMES);
    let keys: Vec<String> = (0..50).map(|it| format!("user-{it}@b.example")).collect();
    let answers: Vec<Vec<(u16, Value)>> = thread::scope(|scope| {
        let claims: Vec<_> = (0..3)
            .map(|index| {
                let (federation, keys) = (&federation, &keys);
                scope.spawn(move || {
                    let keys = keys.iter();
                    keys.map(|key| claim(federation, index, key, NAMES[index], None))
                        .collect()
                })
            })
            .collect();
        claims.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let mut winners = BTreeMap::new();
    for (number, key) in keys.iter().enumerate() {
        let all: Vec<_> = answers.iter().map(|of| &of[number]).collect();
        let won: Vec<_> = all.iter().filter(|(status, _)| *status == 200).collect();
        assert_eq!(won.len(), 1, "{key}: {all:?}");
        let winner = won[0].1["owner"].as_str().unwrap().to_owned();
        for (status, problem) in all.iter().filter(|(status, _)| *status != 200) {
            assert_eq!(
                (*status, &problem["code"]),
                (409, &json!("reserved")),
                "{problem}"
            );
            assert_eq!(problem["owner"], *winner, "{key}: {problem}");
            assert_eq!(problem["until"], Value::Null);
        }
        until_held(&federation, key, Some(&winner));
        winners.insert(key.clone(), winner);
    }
    // Each has a home, and all of them have some.
    let homes: BTreeMap<String, usize> =
        answers
            .iter()
            .flatten()
            .fold(BTreeMap::new(), |mut homes, (_, answer)| {
                *homes
                    .entry(answer["home"].as_str().unwrap().to_owned())
                    .or_default() += 1;
                homes
            });
    assert_eq!(homes.len(), 3, "{homes:?}");

    for index in 0..3 {
        federation.kill(index);
    }
    federation.start_all();
    for (key, winner) in winners.iter().take(10) {
        until_held(&federation, key, Some(winner));
        refused(&federation, 1, key, "late", winner);
        claimed(&federation, 2, key, winner, None);
    }
}

#[test]
fn a_key_is_renewed_runs_out_and_is_released() {
    let federation = Federation::running(&NAMES);
    let first = claimed(&federation, 0, "k", "one", Some(30));
    let problem = refused(&federation, 1, "k", "two", "one");
    assert_eq!(problem["until"], first["until"]);
    let renewed = claimed(&federation, 2, "k", "one", Some(60));
    assert_eq!(renewed["since"], first["since"]);
    assert!(
        renewed["until"].as_str() > first["until"].as_str(),
        "{renewed}"
    );
    // Its owner may also want it for less.
    let short = claimed(&federation, 1, "k", "one", Some(1));
    assert!(
        short["until"].as_str() < renewed["until"].as_str(),
        "{short}"
    );
    until("its time is over", || {
        let (status, answer) = claim(&federation, 1, "k", "two", None);
        assert!(status == 200 || answer["code"] == "reserved", "{answer}");
        status == 200
    });
    until_held(&federation, "k", Some("two"));
    refused(&federation, 0, "k", "one", "two");

    let (status, problem) = release(&federation, 0, "k", "one");
    assert_eq!(
        (status, &problem["code"]),
        (409, &json!("reserved")),
        "{problem}"
    );
    let (status, released) = release(&federation, 0, "k", "two");
    assert_eq!(
        (status, &released["released"]),
        (200, &json!(true)),
        "{released}"
    );
    let (status, released) = release(&federation, 2, "k", "two");
    assert_eq!(
        (status, &released["released"]),
        (200, &json!(false)),
        "{released}"
    );
    until_held(&federation, "k", None);
    claimed(&federation, 2, "k", "one", Some(60));

    // A key is any text; what runs out is shown no more.
    let strange = "a%2Fb%20%00%C3%BC";
    let (status, held) = claim(&federation, 0, strange, "one", Some(1));
    assert_eq!(
        (status, &held["key"]),
        (200, &json!("a/b \u{0}ü")),
        "{held}"
    );
    until("nobody is shown", || {
        holder(&federation, 0, strange).is_none()
    });
}

#[test]
fn a_request_that_is_repeated_does_nothing_twice() {
    let federation = Federation::running(&NAMES);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let ask = |index: usize, method: reqwest::Method, path: &str, owner: &str, once: &str| {
        let url = federation.url(index, &format!("/v1/reservations/email/{path}"));
        let request = reqwest::Client::new().request(method, url);
        let request = request.header("idempotency-key", once);
        let request = request.json(&json!({"owner": owner, "for_seconds": 60}));
        runtime.block_on(async {
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            (status, answer.json::<Value>().await.unwrap())
        })
    };
    let put = reqwest::Method::PUT;
    let first = ask(0, put.clone(), "k", "one", "x");
    assert_eq!(first.0, 200, "{first:?}");
    // Through whichever region, and whether or not it is the last that was written.
    assert_eq!(ask(0, put.clone(), "k", "one", "x"), first);
    assert_eq!(ask(2, put.clone(), "k", "one", "x"), first);
    let renewed = ask(1, put.clone(), "k", "one", "y");
    assert!(
        renewed.1["until"].as_str() > first.1["until"].as_str(),
        "{renewed:?}"
    );
    assert_eq!(ask(1, put.clone(), "k", "one", "x"), renewed);
    let release = "k?owner=one";
    let (_, released) = ask(1, reqwest::Method::DELETE, release, "one", "z");
    assert_eq!(released["released"], true);
    let (_, released) = ask(0, reqwest::Method::DELETE, release, "one", "z");
    assert_eq!(
        released["released"], true,
        "it is answered as the first time"
    );
    // What it did is over, and is not done again.
    let (status, over) = ask(2, put.clone(), "k", "one", "x");
    assert_eq!((status, &over["code"]), (409, &json!("conflict")), "{over}");
    let (status, _) = ask(2, put.clone(), "k", "two", "x");
    assert_eq!(status, 200, "another owner's request is another one");
    let (status, taken) = ask(2, put, "k", "one", "x");
    assert_eq!(
        (status, &taken["code"]),
        (409, &json!("reserved")),
        "{taken}"
    );
    // A release that is late does not take what was reserved since.
    let (_, held) = ask(0, reqwest::Method::PUT, "l", "one", "a");
    assert_eq!(held["owner"], "one");
    ask(0, reqwest::Method::DELETE, "l?owner=one", "one", "b");
    ask(0, reqwest::Method::PUT, "l", "one", "c");
    let (status, _) = ask(0, reqwest::Method::DELETE, "l?owner=one", "one", "b");
    assert_eq!(status, 200);
    until_held(&federation, "l", Some("one"));
}

#[test]
fn without_the_home_nothing_is_reserved_and_the_answer_names_it() {
    let mut federation = Federation::running(&NAMES);
    let key = keys_of(&federation, "c", 1).swap_remove(0);
    let digests = || [0, 1, 2].map(|index| federation.digest(index).unwrap());
    until("all is everywhere", || {
        let all = digests();
        all.iter().all(|one| *one == all[0])
    });
    let [before, ..] = digests();
    federation.stop(2);
    for index in [0, 1] {
        let (status, problem) = claim(&federation, index, &key, "one", None);
        assert_eq!(
            (status, &problem["code"]),
            (503, &json!("unavailable")),
            "{problem}"
        );
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("nothing was changed"), "{detail}");
        assert!(
            detail.contains("decided about in region c, which does not answer"),
            "{detail}"
        );
        let (status, problem) = release(&federation, index, &key, "one");
        assert_eq!(
            (status, &problem["code"]),
            (503, &json!("unavailable")),
            "{problem}"
        );
        assert_eq!(federation.digest(index).unwrap(), before);
    }
    federation.start(2);
    federation.until_ready(2);
    assert_eq!(federation.digest(2).unwrap(), before);
    until("it is reserved", || {
        claim(&federation, 0, &key, "two", None).0 == 200
    });
    until_held(&federation, &key, Some("two"));
}

#[test]
fn after_a_fence_claims_are_still_held_and_new_ones_are_judged_at_the_new_home() {
    let mut federation = founded();
    let keys = keys_of(&federation, "c", 4);
    let (lonely, held) = keys.split_last().unwrap();
    for (index, key) in held.iter().enumerate() {
        claimed(&federation, index % 2, key, "one", None);
    }
    // A home that nobody hears acknowledges nothing.
    federation.kill(0);
    federation.kill(1);
    let (status, answer) = claim(&federation, 2, lonely, "lonely", None);
    assert_eq!(
        (status, &answer["code"]),
        (504, &json!("indeterminate")),
        "{answer}"
    );
    federation.kill(2);
    federation.start(0);
    federation.start(1);
    federation.until_ready(0);
    federation.until_ready(1);
    let door = federation.url(0, "");
    let fence = ["region", "fence", "c", "--wait-ms", "30000", "--url", &door];
    let fenced = meridian(&fence);
    assert!(fenced.status.success(), "{}", text(&fenced.stderr));

    for key in held {
        refused(&federation, 0, key, "two", "one");
        let renewed = claimed(&federation, 1, key, "one", Some(600));
        assert!(
            renewed["home"] == "a" || renewed["home"] == "b",
            "{renewed}"
        );
    }
    claimed(&federation, 1, lonely, "second", None);

    federation.start(2);
    until("c is a member again", || {
        let shown = get(&federation.url(0, "/v1/regions/c"));
        shown.is_some_and(|(_, shown)| shown["standing"] == "member")
    });
    let mut record = String::new();
    until("the claim that was never acknowledged is told of", || {
        let (_, page) = get(&federation.url(0, "/v1/conflicts")).unwrap();
        let open = page["conflicts"].as_array().and_then(|all| all.first());
        let id = open.and_then(|it| it["id"].as_str());
        record = id.unwrap_or_default().to_owned();
        id.is_some()
    });
    let url = federation.url(0, &format!("/v1/conflicts/{record}/resolve"));
    let rebase = json!({"action": "rebase"}).to_string();
    until("it is not put on top of what counts", || {
        let (status, answer) = post(&url, &rebase).unwrap();
        assert_ne!(status, 200, "{answer}");
        let detail = answer["detail"].as_str().unwrap_or_default();
        status == 409 && detail.contains("and nowhere else; discard it")
    });
    until_held(&federation, lonely, Some("second"));
    for key in held {
        until_held(&federation, key, Some("one"));
        until("it is judged at its home", || {
            let (status, answer) = claim(&federation, 2, key, "two", None);
            assert_ne!(status, 200, "{answer}");
            answer["code"] == "reserved"
        });
    }
}

#[test]
fn the_command_takes_shows_and_releases() {
    let federation = Federation::running(&NAMES);
    let door = federation.url(1, "");
    let run = |arguments: &[&str]| {
        let done = meridian(&[&["reservation"], arguments, &["--url", &door]].concat());
        let said = text(&done.stdout) + &text(&done.stderr);
        (done.status.code(), said)
    };
    let (code, said) = run(&["take", "email", "a/b", "--owner", "one", "--for", "10m"]);
    assert!(code == Some(0) && said.contains("one"), "{said}");
    let (code, said) = run(&["take", "email", "a/b", "--owner", "two"]);
    assert!(
        code == Some(1) && said.contains("is held by \"one\", until"),
        "{said}"
    );
    let (code, said) = run(&["release", "email", "a/b", "--owner", "two"]);
    assert!(
        code == Some(1) && said.contains("is held by \"one\""),
        "{said}"
    );
    until("b has heard of it", || {
        run(&["show", "email", "a/b"]).0 == Some(0)
    });
    let (code, said) = run(&["release", "email", "a/b", "--owner", "one"]);
    assert!(code == Some(0) && said.contains("is released"), "{said}");
    until("b has heard of that, too", || {
        let (code, said) = run(&["show", "email", "a/b"]);
        code == Some(1) && said.contains("nobody holds key")
    });
    for wrong in [
        &["take", "email", "", "--owner", "one"][..],
        &["take", "email", "a", "--owner", ""],
        &["take", "email", "a", "--owner", "one", "--for", "0s"],
        &["take", "email", "a", "--owner", "one", "--for", "4000d"],
        &["take", "email", "a"],
        &["release", "email", "a"],
    ] {
        let (code, said) = run(wrong);
        assert_eq!(code, Some(2), "{wrong:?}: {said}");
    }
}

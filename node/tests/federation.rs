//! Real processes: what one region takes, every region holds, whatever is killed or cut.

mod support;

use support::{Federation, get, until};

const NAMES: [&str; 3] = ["a", "b", "c"];

#[test]
fn what_one_region_takes_every_region_holds_byte_for_byte() {
    let mut federation = Federation::running(&NAMES);
    for id in 0..60 {
        let (status, answer) = federation.append(id % 3, &format!("order-{}", id % 7), id as u128);
        assert_eq!(status, 200, "{answer}");
    }
    federation.until_agreed(&[0, 1, 2], 60);
    // The same requests again, through other regions, add nothing and get their first answers.
    for id in 0..60 {
        let (status, answer) =
            federation.append((id + 1) % 3, &format!("order-{}", id % 7), id as u128);
        assert_eq!(
            (status, &answer["first_revision"]),
            (200, &serde_json::json!(id / 7))
        );
    }
    federation.until_agreed(&[0, 1, 2], 60);
    let digest = federation.digest(0).expect("a digest");

    for index in 0..3 {
        assert!(federation.stop(index).success(), "SIGTERM ends with 0");
        let (sound, report) = federation.verify(index);
        assert!(sound, "{report}");
        for entry in digest.as_array().expect("entries") {
            let chain = entry["chain"].as_str().expect("a chain");
            assert!(report.contains(chain), "{chain} is not in {report}");
        }
    }
}

#[test]
fn a_killed_region_comes_back_with_everything_it_acknowledged() {
    let mut federation = Federation::running(&NAMES);
    for round in 0..4_usize {
        let victim = round % 3;
        for id in 0..30 {
            let id = round * 30 + id;
            federation.append_surely(id % 3, &format!("order-{}", id % 11), id as u128);
        }
        federation.kill(victim);
        federation.start(victim);
        federation.until_ready(victim);
    }
    federation.until_agreed(&[0, 1, 2], 120);
}

#[test]
fn two_regions_that_cannot_reach_each_other_converge_through_the_third() {
    let mut federation = Federation::new(&NAMES);
    // For a and c, each other's address leads nowhere.
    let (a, c) = (
        federation.regions[0].quic.clone(),
        federation.regions[2].quic.clone(),
    );
    let nowhere = format!("127.0.0.1:{}", support::free_ports(1));
    federation.edit_config(0, &c, &nowhere);
    federation.edit_config(
        2,
        &format!("quic = \"{a}\""),
        &format!("quic = \"{nowhere}\""),
    );
    federation.start_all();
    let mut written = 0;
    for id in 0..40 {
        // Streams that are homed across the cut are refused, and say so.
        let (status, answer) = federation.append(id % 3, &format!("order-{id}"), id as u128);
        assert!(
            status == 200 || answer["code"] == "unavailable",
            "{status} {answer}"
        );
        written += u64::from(status == 200);
    }
    assert!(written > 20, "only {written} of 40 were written");
    federation.until_agreed(&[0, 1, 2], written);
    let (_, status) = get(&federation.url(0, "/v1/status")).expect("a status");
    let link = |name: &str| {
        let links = status["links"].as_array().expect("links");
        links
            .iter()
            .find(|link| link["region"] == name)
            .expect("a link")
            .clone()
    };
    assert_eq!(
        link("c")["receiving"],
        false,
        "a reaches c after all: {status}"
    );
    assert_eq!(link("b")["receiving"], true);
}

#[test]
fn an_append_waits_for_the_regions_it_asks_for() {
    let mut federation = Federation::running(&NAMES);
    let body = |id: u128, durability: &str| {
        serde_json::json!({
            "durability": durability,
            "events": [{ "id": uuid::Uuid::from_u128(id), "type": "Tested", "data": {} }],
        })
        .to_string()
    };
    // A stream whose home is a, so that b and c are the others.
    let stream = (0..)
        .map(|number| format!("order-{number}"))
        .find(|stream| {
            get(&federation.url(0, &format!("/v1/homes/{stream}")))
                .is_some_and(|(_, home)| home["home"] == "a")
        })
        .expect("some stream is homed in a");
    let url = federation.url(0, &format!("/v1/streams/{stream}/events"));
    let (status, answer) = support::post(&url, &body(1, "all")).expect("an answer");
    assert_eq!(
        (status, &answer["durability"]),
        (200, &serde_json::json!("all")),
        "{answer}"
    );
    assert_eq!(answer["could_strand"], false);

    federation.kill(2);
    let (status, answer) = support::post(&url, &body(2, "regions:2")).expect("an answer");
    assert_eq!(status, 200, "{answer}");
    // All regions cannot be had now: it is written here, and the answer says what is unknown.
    let (status, answer) = support::post(&url, &body(3, "all")).expect("an answer");
    assert_eq!(
        (status, &answer["code"]),
        (504, &serde_json::json!("indeterminate")),
        "{answer}"
    );
    federation.start(2);
    until("the repeated append is durable everywhere", || {
        support::post(&url, &body(3, "all")).is_some_and(|(status, _)| status == 200)
    });
    federation.until_agreed(&[0, 1, 2], 3);
}

#[test]
fn a_folder_that_was_wiped_takes_its_log_back_before_it_writes() {
    let mut federation = Federation::running(&NAMES);
    for id in 0..30 {
        federation.append_surely(id % 3, &format!("order-{id}"), id as u128);
    }
    federation.until_agreed(&[0, 1, 2], 30);
    federation.kill(1);
    federation.wipe(1);
    federation.start(1);
    federation.until_ready(1);
    federation.until_agreed(&[0, 1, 2], 30);
    for id in 30..60 {
        federation.append_surely(id % 3, &format!("order-{}", id - 30), id as u128);
    }
    federation.until_agreed(&[0, 1, 2], 60);
}

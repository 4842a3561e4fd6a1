//! Bad input of every kind: a clear error that says what to do, and nothing written or lost.

mod support;

use serde_json::{Value, json};
use support::{Federation, get, meridian, path, post, text, until};

fn code(answer: Option<(u16, Value)>) -> (u16, String) {
    let (status, body) = answer.expect("the door answers");
    assert!(
        !body["detail"].as_str().unwrap_or_default().is_empty(),
        "no detail in {body}"
    );
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[test]
fn requests_that_cannot_be_meant_write_nothing() {
    let federation = Federation::running(&["a"]);
    let url = federation.url(0, "/v1/streams/order-1/events");
    let send = |body: &str| code(post(&url, body));
    let event = r#"{"type":"Tested","data":{}}"#;

    assert_eq!(send("{"), refused(400, "invalid"), "malformed JSON");
    assert_eq!(
        send(r#"{"events":[]}"#),
        refused(400, "invalid"),
        "no events"
    );
    let unknown = format!(r#"{{"events":[{event}],"durabilty":"all"}}"#);
    assert_eq!(send(&unknown), refused(400, "invalid"), "an unknown field");
    let durability = format!(r#"{{"events":[{event}],"durability":"regions:4"}}"#);
    assert_eq!(
        send(&durability),
        refused(400, "invalid"),
        "more regions than there are"
    );
    let twice = r#"{"id":"5bd1ab1e-54ef-4cb3-9a0d-36d3bd1ce4b8","type":"Tested","data":{}}"#;
    let twice = format!(r#"{{"events":[{twice},{twice}]}}"#);
    assert_eq!(send(&twice), refused(400, "invalid"), "one id twice");
    let large = format!(r#"{{"type":"Tested","data":"{}"}}"#, "x".repeat(1 << 20));
    let large_event = format!(r#"{{"events":[{large}]}}"#);
    assert_eq!(
        send(&large_event),
        refused(413, "too_large"),
        "an oversize event"
    );
    let half = format!(r#"{{"type":"Tested","data":"{}"}}"#, "x".repeat(900 << 10));
    let large_batch = format!(r#"{{"events":[{}]}}"#, vec![half; 5].join(","));
    assert_eq!(
        send(&large_batch),
        refused(413, "too_large"),
        "an oversize batch"
    );
    let many = format!(r#"{{"events":[{}]}}"#, vec![event; 4097].join(","));
    assert_eq!(send(&many), refused(413, "too_large"), "too many events");
    let control = federation.url(0, "/v1/streams/order%0A1/events");
    let good = format!(r#"{{"events":[{event}]}}"#);
    assert_eq!(
        code(post(&control, &good)),
        refused(400, "invalid"),
        "a control character"
    );
    let internal = federation.url(0, "/v1/streams/$mine-1/events");
    assert_eq!(
        code(post(&internal, &good)),
        refused(400, "invalid"),
        "the server's own streams"
    );
    let nowhere = federation.url(0, "/v1/nothing");
    assert_eq!(
        code(get(&nowhere)),
        refused(404, "not_found"),
        "an unknown path"
    );

    let (_, digest) = get(&federation.url(0, "/v1/digest")).expect("a digest");
    assert_eq!(
        support::count(&digest),
        0,
        "something was written: {digest}"
    );
}

#[test]
fn a_wrong_expected_revision_is_told_what_came_since() {
    let federation = Federation::running(&["a", "b"]);
    for id in 0..3 {
        federation.append_surely(0, "order-1", id);
    }
    let body = json!({ "expected": 0, "events": [{ "type": "Tested", "data": {} }] }).to_string();
    for index in [0, 1] {
        let url = federation.url(index, "/v1/streams/order-1/events");
        let (status, answer) = post(&url, &body).expect("an answer");
        assert_eq!(
            (status, &answer["code"]),
            (409, &json!("wrong_expected_revision"))
        );
        assert_eq!(answer["actual"], 2, "{answer}");
        let since = answer["events_since"].as_array().expect("events");
        assert_eq!(
            since
                .iter()
                .map(|event| event["revision"].as_u64())
                .collect::<Vec<_>>(),
            [Some(1), Some(2)]
        );
    }
    federation.until_agreed(&[0, 1], 3);
}

#[test]
fn two_nodes_on_one_data_folder_are_one_too_many() {
    let federation = Federation::running(&["a"]);
    let config = &federation.regions[0].config;
    let second = meridian(&["serve", "--config", path(config)]);
    let said = text(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("in use by another process"), "{said}");
    federation.append_surely(0, "order-1", 1);
}

#[test]
fn a_configuration_with_a_typo_is_refused_with_the_nearest_key() {
    let federation = Federation::new(&["a"]);
    federation.edit_config(0, "partitions =", "partitons =");
    let outcome = meridian(&["serve", "--config", path(&federation.regions[0].config)]);
    let said = text(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(2), "{said}");
    assert!(
        said.contains("partitons") && said.contains("partitions"),
        "{said}"
    );
}

/// Lets region 1 of `federation` run with something of another federation's, and waits until one of
/// the two sides has logged `words`.
fn strangers(disguise: impl FnOnce(&Federation, &Federation), words: &[&str]) {
    let mut federation = Federation::new(&["a", "b"]);
    let other = Federation::new(&["a", "b"]);
    disguise(&federation, &other);
    federation.start(0);
    federation.start(1);
    federation.until_ready(0);
    // A stream that a is home to goes on as if nothing were there.
    let stream = (0..)
        .map(|number| format!("order-{number}"))
        .find(|stream| {
            get(&federation.url(0, &format!("/v1/homes/{stream}")))
                .is_some_and(|(_, home)| home["home"] == "a")
        })
        .expect("some stream is homed in a");
    federation.append_surely(0, &stream, 1);
    until(&format!("one of {words:?} is logged"), || {
        let said = federation.log(0) + &federation.log(1);
        words.iter().any(|word| said.contains(word))
    });
    if let Some(digest) = federation.digest(1) {
        assert_eq!(
            support::count(&digest),
            0,
            "a stranger received events: {digest}"
        );
    }
}

fn copy_certificates(from: &Federation, region: usize, to: &Federation) {
    let (from, to) = (&from.regions[region], &to.regions[1]);
    for file in ["ca.pem", "region.pem", "region.key"] {
        let folder = |config: &std::path::Path| config.with_file_name("certificates").join(file);
        support::copy(&folder(&from.config), &folder(&to.config));
    }
}

#[test]
fn a_peer_with_a_certificate_of_another_authority_is_refused() {
    strangers(
        |federation, other| copy_certificates(other, 1, federation),
        &["signed by another CA", "another CA"],
    );
}

#[test]
fn a_peer_of_another_federation_is_refused() {
    let id = |federation: &Federation| {
        let config = support::read(&federation.regions[0].config);
        let line = config
            .lines()
            .find(|line| line.starts_with("federation"))
            .expect("an id");
        line.to_owned()
    };
    strangers(
        |federation, other| {
            federation.edit_config(1, &id(federation), &id(other));
            federation.wipe(1);
        },
        &["federation"],
    );
}

#[test]
fn a_node_with_another_regions_certificate_does_not_start() {
    let federation = Federation::new(&["a", "b"]);
    copy_certificates(&federation, 0, &federation);
    let outcome = meridian(&["serve", "--config", path(&federation.regions[1].config)]);
    let said = text(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(1), "{said}");
    assert!(said.contains("the certificate is for"), "{said}");
}

//! What disks do: flipped bits, lost indexes, no room, failing syncs.

mod support;

use support::{Federation, until};

#[test]
fn a_flipped_bit_is_found_reported_and_mended_from_a_peer() {
    let mut federation = Federation::new(&["a", "b"]);
    // The smallest segments that can be had, so that one is sealed soon.
    for index in 0..2 {
        federation.edit_config(index, "segment_bytes = ", "segment_bytes = 33554432 # ");
    }
    federation.start_all();
    let mut number = 0;
    let sealed = |federation: &Federation| federation.has(1, "log/00000001.idx");
    until("a segment is sealed", || {
        number += 1;
        let noise = support::noise(number, 900_000);
        let body = serde_json::json!({ "events": [{ "type": "Tested", "data": noise }] });
        let url = federation.url(0, &format!("/v1/streams/order-{number}/events"));
        let (status, answer) = support::post(&url, &body.to_string()).expect("an answer");
        assert_eq!(status, 200, "{answer}");
        sealed(&federation)
    });
    federation.until_agreed(&[0, 1], number);

    assert!(federation.stop(1).success());
    assert!(federation.verify(1).0, "it is sound before");
    federation.flip(1, "log/00000001.seg", 1 << 20);
    let (sound, report) = federation.verify(1);
    assert!(!sound && report.contains("00000001"), "{report}");

    federation.start(1);
    until("the damage is logged", || {
        federation.log(1).contains("damaged")
    });
    until("nothing is damaged any more", || {
        let status = support::get(&federation.url(1, "/v1/status"));
        status.is_some_and(|(_, status)| status["damaged"] == serde_json::json!([]))
            && federation.has(1, "damaged")
    });
    federation.until_agreed(&[0, 1], number);
    assert!(federation.stop(1).success());
    let (sound, report) = federation.verify(1);
    assert!(sound, "{report}");
}

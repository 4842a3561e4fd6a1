//! Real processes: the one order, read in three regions that write at once while a link flaps.

#![expect(
    clippy::disallowed_methods,
    reason = "these tests cut real sockets and wait for processes"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use support::{Federation, free_ports, get, meridian, text, until};

const NAMES: [&str; 3] = ["a", "b", "c"];
const ALL: [usize; 3] = [0, 1, 2];

/// Passes datagrams on to one address, and answers back, except while it is cut.
struct Relay {
    port: u16,
    cut: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Relay {
    fn to(target: &str) -> Self {
        let port = free_ports(1);
        let front = Arc::new(UdpSocket::bind(("127.0.0.1", port)).expect("a socket"));
        let tick = Some(Duration::from_millis(20));
        front.set_read_timeout(tick).expect("a time limit");
        let (cut, over): (Arc<AtomicBool>, Arc<AtomicBool>) = Default::default();
        let relay = Self {
            port,
            cut: Arc::clone(&cut),
            over: Arc::clone(&over),
        };
        let target = target.to_owned();
        std::thread::spawn(move || {
            let mut backs = BTreeMap::new();
            let mut datagram = [0; 65_536];
            while !over.load(Ordering::Relaxed) {
                let Ok((length, from)) = front.recv_from(&mut datagram) else {
                    continue;
                };
                // One socket per sender, so that answers find their way.
                let back = backs.entry(from).or_insert_with(|| {
                    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").expect("a socket"));
                    back.connect(&target).expect("an address");
                    back.set_read_timeout(tick).expect("a time limit");
                    let (back, front) = (Arc::clone(&back), Arc::clone(&front));
                    let (cut, over) = (Arc::clone(&cut), Arc::clone(&over));
                    let receiving = Arc::clone(&back);
                    std::thread::spawn(move || {
                        let mut datagram = [0; 65_536];
                        while !over.load(Ordering::Relaxed) {
                            if let Ok(length) = receiving.recv(&mut datagram)
                                && !cut.load(Ordering::Relaxed)
                            {
                                let _ = front.send_to(&datagram[..length], from);
                            }
                        }
                    });
                    back
                });
                if !cut.load(Ordering::Relaxed) {
                    let _ = back.send(&datagram[..length]);
                }
            }
        });
        relay
    }

    fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// All of a tier's events in a region after a cursor, each as its JSON text, and the last cursor.
fn feed(federation: &Federation, region: usize, tier: &str, after: &str) -> (Vec<String>, String) {
    let (mut events, mut cursor) = (Vec::new(), after.to_owned());
    loop {
        let path = format!("/v1/events?tier={tier}&limit=500&after={cursor}");
        let (status, page) = get(&federation.url(region, &path)).expect("an answer");
        assert_eq!(status, 200, "{page}");
        let page_events = page["events"].as_array().expect("events");
        events.extend(page_events.iter().map(Value::to_string));
        page["cursor"]
            .as_str()
            .expect("a cursor")
            .clone_into(&mut cursor);
        if page["end"] == true {
            return (events, cursor);
        }
    }
}

fn order_key(event: &str) -> (u64, String, u64, u64) {
    let event: Value = serde_json::from_str(event).expect("JSON");
    let number = |key: &str| event[key].as_u64().expect("a number");
    let timestamp = event["timestamp"].as_str().expect("a timestamp");
    (
        timestamp.parse().expect("a decimal number"),
        // The regions' numbers rise with their names.
        event["origin"].as_str().expect("a name").to_owned(),
        number("partition"),
        number("position"),
    )
}

fn cursor_of(event: &str) -> String {
    let (timestamp, origin, partition, position) = order_key(event);
    let region = NAMES.iter().position(|name| *name == origin);
    format!(
        "{timestamp}.{}.{partition}.{position}",
        region.expect("a region")
    )
}

fn until_settled(federation: &Federation, among: &[usize], tier: &str, events: usize) {
    until(&format!("{events} events are {tier} in {among:?}"), || {
        among
            .iter()
            .all(|region| feed(federation, *region, tier, "").0.len() == events)
    });
}

fn why_stuck(federation: &Federation, region: usize) -> (Option<i32>, Value) {
    let url = federation.url(region, "");
    let output = meridian(&["why", "stuck", "--json", "--url", &url]);
    let told = serde_json::from_slice(&output.stdout);
    let told = told.unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
    (output.status.code(), told)
}

#[test]
fn three_regions_that_write_at_once_over_a_flapping_link_read_one_order() {
    let mut federation = Federation::new(&NAMES);
    let (a, c) = (
        federation.regions[0].quic.clone(),
        federation.regions[2].quic.clone(),
    );
    // What a and c say to each other goes through the relays.
    let relays = [Relay::to(&c), Relay::to(&a)];
    let through = |relay: &Relay| format!("quic = \"127.0.0.1:{}\"", relay.port);
    federation.edit_config(0, &format!("quic = \"{c}\""), &through(&relays[0]));
    federation.edit_config(2, &format!("quic = \"{a}\""), &through(&relays[1]));
    federation.start_all();

    let each = 80;
    let writing = AtomicBool::new(true);
    let (acknowledged, read_meanwhile) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut cut = false;
            while writing.load(Ordering::Relaxed) {
                cut = !cut;
                relays.iter().for_each(|relay| relay.cut(cut));
                sleep(Duration::from_millis(700));
            }
            relays.iter().for_each(|relay| relay.cut(false));
        });
        let federation = &federation;
        let writers: Vec<_> = ALL
            .into_iter()
            .map(|region| {
                scope.spawn(move || {
                    let mut dots = Vec::new();
                    for number in 0..each {
                        let stream = format!("order-{}", number % 13);
                        let id = (region * each + number) as u128;
                        let answer = federation.append_surely(region, &stream, id);
                        dots.push(answer["dots"][0].to_string());
                    }
                    dots
                })
            })
            .collect();
        // Whoever reads while all that goes on, page by page, must not see anything else.
        let writing = &writing;
        let readers: Vec<_> = ALL
            .into_iter()
            .map(|region| {
                scope.spawn(move || {
                    let (mut seen, mut cursor) = (Vec::new(), String::new());
                    while writing.load(Ordering::Relaxed) {
                        let (more, after) = feed(federation, region, "stable", &cursor);
                        seen.extend(more);
                        cursor = after;
                    }
                    (seen, cursor)
                })
            })
            .collect();
        let dots: BTreeSet<String> = writers
            .into_iter()
            .flat_map(|writer| writer.join().expect("a writer"))
            .collect();
        writing.store(false, Ordering::Relaxed);
        let seen = readers.into_iter().map(|it| it.join().expect("a reader"));
        (dots, seen.collect::<Vec<_>>())
    });
    let count = ALL.len() * each;
    assert_eq!(acknowledged.len(), count, "a dot was given out twice");

    until_settled(&federation, &ALL, "final", count);
    let (stable, _) = feed(&federation, 0, "stable", "");
    for region in ALL {
        assert_eq!(feed(&federation, region, "stable", "").0, stable);
        assert_eq!(feed(&federation, region, "final", "").0, stable);
    }
    for (region, (mut seen, cursor)) in read_meanwhile.into_iter().enumerate() {
        assert!(
            !seen.is_empty(),
            "nothing was stable in {region} while it was written"
        );
        // It goes on elsewhere.
        seen.extend(feed(&federation, (region + 1) % 3, "stable", &cursor).0);
        assert_eq!(seen, stable, "read in {region} meanwhile");
    }
    // Sorted by the order key, strictly, and just what was acknowledged.
    assert!(stable.is_sorted_by(|one, next| order_key(one) < order_key(next)));
    let dots: BTreeSet<String> = stable
        .iter()
        .map(|event| {
            let event: Value = serde_json::from_str(event).expect("JSON");
            let field = |key: &str| event[key].clone();
            serde_json::json!({
                "origin": field("origin"),
                "partition": field("partition"),
                "position": field("position"),
            })
            .to_string()
        })
        .collect();
    assert_eq!(dots, acknowledged);

    // From every cursor of a's feed one can go on in b and c: each later event once.
    for (index, event) in stable.iter().enumerate() {
        let region = 1 + index % 2;
        let (later, _) = feed(&federation, region, "stable", &cursor_of(event));
        assert_eq!(
            later,
            stable[index + 1..],
            "after event {index} in {region}"
        );
    }
    // A page's own cursor, by the command: read some in a, and the rest in c.
    let tail = |region: usize, more: &[&str]| {
        let url = federation.url(region, "");
        let arguments = ["tail", "--json", "--tier", "stable", "--url", &url];
        let output = meridian(&[&arguments[..], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said = text(&output.stderr);
        let cursor = said
            .rsplit(' ')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned();
        (text(&output.stdout).lines().count(), cursor)
    };
    let (read, cursor) = tail(0, &["--limit", "100"]);
    let (rest, end) = tail(2, &["--after", &cursor]);
    assert_eq!((read, rest), (100, count - 100));
    let more = federation.append_surely(1, "order-1", 1 << 40);
    let (followed, _) = tail(1, &["--after", &end, "--follow", "--limit", "1"]);
    assert_eq!(followed, 1, "{more}");
}

#[test]
fn a_region_that_is_gone_is_named_and_what_it_holds_up_goes_on_when_it_is_back() {
    let mut federation = Federation::running(&NAMES);
    for id in 0..30 {
        federation.append_surely(id % 3, &format!("order-{id}"), id as u128);
    }
    until_settled(&federation, &ALL, "final", 30);
    until("nothing is stuck", || {
        why_stuck(&federation, 0).0 == Some(0)
    });

    federation.kill(2);
    for region in [0, 1] {
        until("c is blamed", || {
            let (code, told) = why_stuck(&federation, region);
            let held = told["watermarks"]["held_back"]
                .as_array()
                .expect("a list")
                .clone();
            code == Some(1)
                && held.iter().all(|held| held["region"] == "c")
                && held.iter().any(|held| {
                    held["reason"] == "not_linked"
                        && held["tier"] == "stable"
                        && held["partitions"] == serde_json::json!([0, 1, 2, 3])
                        && held["for_ms"].as_u64() > Some(1000)
                })
        });
    }
    let (_, status) = get(&federation.url(0, "/v1/status")).expect("a status");
    let stable_at = status["watermarks"]["stable"].clone();
    let since = status["watermarks"]["held_back"][0]["since"].clone();
    let url = federation.url(0, "");
    let shown = text(&meridian(&["status", "--url", &url]).stdout);
    assert!(shown.contains("held back by region c"), "{shown}");
    let metrics = federation.metrics(0);
    assert!(
        metrics.contains("watermark_held_by_seconds{tier=\"stable\",region=\"c\"}"),
        "{metrics}"
    );

    // Writes and the live tier go on; what is written now is not stable. Whoever asks the region that is
    // gone over a connection that is still open is told that nothing is known: it was gone before.
    let mut written = 0;
    for id in 100..160 {
        let (status, answer) = federation.append(id % 2, &format!("order-{id}"), id as u128);
        assert!(
            status == 200 || answer["code"] == "unavailable" || answer["code"] == "indeterminate",
            "{status} {answer}"
        );
        written += usize::from(status == 200);
    }
    assert!(written > 20, "only {written} of 60 were written");
    until("they are live in both regions", || {
        [0, 1]
            .iter()
            .all(|region| feed(&federation, *region, "live", "").0.len() == 30 + written)
    });
    assert_eq!(feed(&federation, 1, "stable", "").0.len(), 30);
    let (_, later) = get(&federation.url(0, "/v1/status")).expect("a status");
    assert_eq!(later["watermarks"]["stable"], stable_at, "a timer moved it");
    let moment = |since: &Value| -> jiff::Timestamp {
        let since = since.as_str().expect("a moment");
        since.parse().expect("RFC 3339")
    };
    let moved = moment(&later["watermarks"]["held_back"][0]["since"])
        .duration_since(moment(&since))
        .abs();
    assert!(
        moved < jiff::SignedDuration::from_secs(2),
        "`since` moved by {moved}"
    );

    federation.start(2);
    until_settled(&federation, &ALL, "final", 30 + written);
    let (stable, _) = feed(&federation, 0, "stable", "");
    for region in ALL {
        assert_eq!(feed(&federation, region, "final", "").0, stable);
    }
    for region in ALL {
        until("nothing is stuck", || {
            why_stuck(&federation, region).0 == Some(0)
        });
    }
}

#[test]
fn the_order_of_two_events_is_explained_wherever_both_are_held() {
    let federation = Federation::running(&NAMES);
    let url = |region: usize| federation.url(region, "");
    let first = federation.append_surely(0, "order-1", 1);
    let second = federation.append_surely(1, "order-2", 2);
    until_settled(&federation, &ALL, "final", 2);
    let dot = |answer: &Value| {
        let dot = &answer["dots"][0];
        format!(
            "{}/{}/{}",
            dot["origin"].as_str().expect("a name"),
            dot["partition"],
            dot["position"]
        )
    };
    let why = |region: usize, a: &str, b: &str| {
        let output = meridian(&["why", "order", a, b, "--json", "--url", &url(region)]);
        let told = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code(), told, text(&output.stderr))
    };
    let id = uuid::Uuid::from_u128(2).to_string();
    let (code, one, said) = why(0, &dot(&first), "order-2@0");
    assert_eq!(code, Some(0), "{said}");
    let (_, other, _) = why(2, "order-1@0", &id);
    assert_eq!(one, other, "a and c explain it otherwise");
    assert_eq!(one["first"]["stream"], "order-1");
    assert_eq!(one["decided_by"], "timestamp");
    assert_eq!(one["second"]["settled"], "final");
    assert_eq!(one["first"]["timestamp"], first["timestamp"]);
    assert_eq!(dot(&second), {
        let second = &one["second"];
        format!(
            "{}/{}/{}",
            second["origin"].as_str().expect("a name"),
            second["partition"],
            second["position"]
        )
    });
    let (code, _, said) = why(0, &dot(&first), "order-2@7");
    assert_eq!(code, Some(1));
    assert!(said.contains("its last revision here is 0"), "{said}");
    let (code, _, said) = why(0, "b/9/1", &dot(&second));
    assert_eq!(code, Some(1), "{said}");
    let (code, _, said) = why(0, "nonsense", &dot(&second));
    assert_eq!(code, Some(2));
    assert!(said.contains("stream@revision"), "{said}");
}

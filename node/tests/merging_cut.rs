//! Three regions that hear nothing of each other while each goes on writing the same merged streams, and what they
//! come to once they do: what all that was acknowledged says, worked out here in another way.
//!
//! `MERIDIAN_TEST_CUT_OPERATIONS` is how many operations of each type every region takes while it is cut off, and
//! `MERIDIAN_TEST_CUT_SECONDS` how long that lasts at least.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "tests look at time from outside the node"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use support::cuts::Cuts;
use support::merged::{agreed, set_up, state};
use support::{Federation, until};

const NAMES: [&str; 3] = ["a", "b", "c"];
const TYPES: [&str; 9] = [
    "gcounter",
    "pncounter",
    "boundedcounter",
    "gset",
    "orset",
    "mvregister",
    "ormap",
    "document",
    "fields",
];
/// How many streams of each type there are.
const STREAMS: u64 = 100;
/// How many operations a request has.
const BATCH: u64 = 10;

fn asked(key: &str, default: u64) -> u64 {
    std::env::var(key)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

// A thing that is there until somebody who sees it takes it away: an element, what was added under a key, a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Thing {
    // Who put it there: its region, and how many it had put before.
    tag: (usize, u64),
    key: String,
    value: String,
    amount: i64,
}

// What a region that hears nothing knows of one stream, and what it has done to it.
#[derive(Clone, Debug, Default)]
struct Known {
    things: BTreeSet<Thing>,
    put: u64,
    sum: i64,
    rights: i64,
    elements: BTreeSet<u64>,
    // By field, what was written last: when, where, and what.
    written: BTreeMap<String, ((u64, usize, u64), Value)>,
}

impl Known {
    fn put(&mut self, region: usize, key: &str, value: &Value, amount: i64) {
        self.put += 1;
        self.things.insert(Thing {
            tag: (region, self.put),
            key: key.to_owned(),
            value: value.to_string(),
            amount,
        });
    }

    fn take(&mut self, key: &str, value: Option<&Value>) -> bool {
        let before = self.things.len();
        let text = value.map(ToString::to_string);
        self.things
            .retain(|it| it.key != key || text.as_ref().is_some_and(|text| it.value != *text));
        self.things.len() < before
    }

    // The next operation of `region`, and what it does. Writes where the last one wins are noted when it is known when
    // they were made.
    fn next(&mut self, kind: &str, region: usize, number: u64) -> Value {
        let r = region as u64;
        match kind {
            "gcounter" => {
                let by = 1 + number % 7;
                self.sum += by as i64;
                json!({"op": "add", "by": by})
            }
            "pncounter" => {
                let by = 1 + number % 5;
                let is_added = !(number + r).is_multiple_of(3);
                self.sum += if is_added { by as i64 } else { -(by as i64) };
                json!({"op": if is_added { "add" } else { "subtract" }, "by": by})
            }
            "boundedcounter" => {
                let by = 1 + (number % 3) as i64;
                if self.rights < by {
                    self.rights += 10;
                    self.sum += 10;
                    return json!({"op": "grant", "by": 10});
                }
                self.rights -= by;
                self.sum -= by;
                json!({"op": "take", "by": by})
            }
            "gset" => {
                let element = (number * 7 + r) % 50;
                self.elements.insert(element);
                json!({"op": "add", "value": element})
            }
            "orset" => {
                let element = json!((number * 13) % 20);
                if number.is_multiple_of(3) && self.take("", Some(&element)) {
                    return json!({"op": "remove", "value": element});
                }
                self.put(region, "", &element, 0);
                json!({"op": "add", "value": element})
            }
            "mvregister" => {
                let value = json!({"region": r, "number": number});
                self.take("", None);
                self.put(region, "", &value, 0);
                json!({"op": "set", "value": value})
            }
            "ormap" => {
                let key = format!("k{}", number % 5);
                if number.is_multiple_of(11) && self.take(&key, None) {
                    return json!({"op": "remove", "key": key});
                }
                let by = 1 + number % 4;
                self.put(region, &key, &Value::Null, by as i64);
                let change = json!({"op": "add", "by": by});
                json!({"op": "update", "key": key, "type": "pn-counter", "change": change})
            }
            "document" => json!({"region": r, "number": number}),
            _ => json!({ format!("f{}", number % 4): number, "last": r }),
        }
    }

    // What was written, the `number`th of a batch, where the last one wins.
    fn wrote(&mut self, kind: &str, data: &Value, at: (u64, usize, u64)) {
        if kind == "document" {
            self.written.insert(String::new(), (at, data.clone()));
        }
        for (field, value) in data.as_object().into_iter().flatten() {
            if kind == "fields" {
                self.written.insert(field.clone(), (at, value.clone()));
            }
        }
    }
}

// What the regions come to together that know `known`, of whom each began with `before`.
fn together(kind: &str, before: &Known, known: &[Known]) -> Value {
    let sum = before.sum + known.iter().map(|it| it.sum - before.sum).sum::<i64>();
    let things: BTreeSet<&Thing> = {
        let own = known.iter().enumerate().flat_map(|(region, known)| {
            let of_before = move |it: &&Thing| before.things.contains(*it);
            known
                .things
                .iter()
                .filter(move |it| it.tag.0 == region && !of_before(it))
        });
        let in_all = |it: &&Thing| known.iter().all(|known| known.things.contains(*it));
        own.chain(before.things.iter().filter(in_all)).collect()
    };
    let mut last: BTreeMap<&String, &((u64, usize, u64), Value)> = BTreeMap::new();
    for (field, write) in known.iter().flat_map(|it| &it.written) {
        let latest = last.entry(field).or_insert(write);
        if write.0 > latest.0 {
            *latest = write;
        }
    }
    match kind {
        "gcounter" | "pncounter" => json!(sum),
        "boundedcounter" => {
            let rights = known.iter().zip(NAMES);
            let rights = rights.map(|(it, name)| (name.to_owned(), json!(it.rights)));
            let rights = rights.filter(|(_, rights)| *rights != json!(0));
            json!({"stock": sum, "rights": rights.collect::<Map<_, _>>()})
        }
        "gset" => {
            let all: BTreeSet<String> = known
                .iter()
                .flat_map(|it| &it.elements)
                .map(ToString::to_string)
                .collect();
            json!(all)
        }
        "orset" | "mvregister" => {
            let all: BTreeSet<&String> = things.iter().map(|it| &it.value).collect();
            json!(all)
        }
        "ormap" => {
            let mut keys: BTreeMap<&String, i64> = BTreeMap::new();
            for thing in things {
                *keys.entry(&thing.key).or_default() += thing.amount;
            }
            let keys = keys.into_iter();
            Value::Object(
                keys.map(|(key, sum)| (key.clone(), json!({"pn-counter": sum})))
                    .collect(),
            )
        }
        "document" => last.values().next().map_or(Value::Null, |it| it.1.clone()),
        _ => {
            let fields = last.into_iter();
            Value::Object(
                fields
                    .map(|(field, it)| (field.clone(), it.1.clone()))
                    .collect(),
            )
        }
    }
}

// As `together` says it: elements as texts, in a row.
fn comparable(kind: &str, shown: &Value) -> Value {
    match kind {
        "gset" | "orset" | "mvregister" => {
            let all = shown.as_array().unwrap().iter();
            // Keys of an object in one sequence, whoever writes it.
            let all: BTreeSet<String> = all.map(ToString::to_string).collect();
            json!(all)
        }
        "boundedcounter" => {
            let mut shown = shown.clone();
            let rights = shown["rights"].as_object_mut().unwrap();
            rights.retain(|_, rights| *rights != json!(0));
            shown
        }
        _ => shown.clone(),
    }
}

// One region's writer of one type.
struct Writer<'a> {
    url: String,
    kind: &'a str,
    region: usize,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl<'a> Writer<'a> {
    fn new(federation: &Federation, kind: &'a str, region: usize) -> Self {
        Self {
            url: federation.url(region, ""),
            kind,
            region,
            client: reqwest::Client::new(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    // One request with the operations from `number` on to one stream.
    fn write(&self, known: &mut Known, stream: &str, number: u64) {
        let data = (number..number + BATCH).map(|it| known.next(self.kind, self.region, it));
        let data: Vec<Value> = data.collect();
        let events = data.iter().map(|data| json!({"type": "T", "data": data}));
        let body = json!({"events": events.collect::<Vec<_>>()}).to_string();
        let url = format!("{}/v1/streams/{stream}/events", self.url);
        let answer: Value = self.runtime.block_on(async {
            let request = self.client.post(&url).body(body);
            let request = request.header("content-type", "application/json");
            let answer = request.send().await.unwrap();
            let status = answer.status();
            let answer = answer.bytes().await.unwrap();
            let said = String::from_utf8_lossy(&answer);
            assert_eq!(status.as_u16(), 200, "{stream} in {}: {said}", self.region);
            serde_json::from_slice(&answer).unwrap()
        });
        let timestamp: u64 = answer["timestamp"].as_str().unwrap().parse().unwrap();
        for (data, place) in data.iter().zip(0..) {
            known.wrote(self.kind, data, (timestamp, self.region, place));
        }
    }
}

#[test]
fn three_regions_that_hear_nothing_of_each_other_come_to_what_all_of_them_wrote() {
    let operations = asked("MERIDIAN_TEST_CUT_OPERATIONS", 300);
    let lasts = Duration::from_secs(asked("MERIDIAN_TEST_CUT_SECONDS", 3));
    let mut federation = Federation::new(&NAMES);
    let cuts = Cuts::between(&federation, NAMES.len());
    federation.start_all();
    set_up(&federation);
    let streams = STREAMS.min(operations / BATCH).max(1);
    let name = |kind: &str, number: u64| format!("{kind}-{number}");
    // Something that all of them have seen, written in turn.
    let mut before: BTreeMap<(&str, u64), Known> = BTreeMap::new();
    for kind in TYPES {
        for number in 0..streams {
            let region = (number % 3) as usize;
            let known = before.entry((kind, number)).or_default();
            if kind == "boundedcounter" {
                continue;
            }
            Writer::new(&federation, kind, region).write(known, &name(kind, number), 0);
        }
    }
    for kind in TYPES {
        agreed(&federation, &name(kind, streams - 1));
    }
    until("all hold what is there before", || {
        TYPES
            .iter()
            .filter(|kind| **kind != "boundedcounter")
            .all(|kind| {
                (0..streams).all(|number| {
                    let all = (0..3).map(|it| {
                        state(&federation, it, &name(kind, number), "live")["digest"].clone()
                    });
                    all.collect::<Vec<_>>().windows(2).all(|it| it[0] == it[1])
                })
            })
    });

    cuts.cut();
    let began = Instant::now();
    let known: BTreeMap<(&str, usize), Vec<Known>> = scope(|scope| {
        let (federation, before) = (&federation, &before);
        let mut writers = Vec::new();
        for kind in TYPES {
            for region in 0..NAMES.len() {
                let writer = scope.spawn(move || {
                    let begins = (0..streams).map(|number| before[&(kind, number)].clone());
                    let mut known: Vec<Known> = begins.collect();
                    let writer = Writer::new(federation, kind, region);
                    for (number, round) in (0..operations).step_by(BATCH as usize).zip(0..) {
                        let stream = round % streams;
                        let known = &mut known[usize::try_from(stream).unwrap()];
                        writer.write(known, &name(kind, stream), 1_000 + number);
                    }
                    known
                });
                writers.push(((kind, region), writer));
            }
        }
        let ended = writers.into_iter();
        ended
            .map(|(of, writer)| (of, writer.join().unwrap()))
            .collect()
    });
    println!(
        "{operations} operations of each of {} types in each of {} regions, cut off: {:.1} s",
        TYPES.len(),
        NAMES.len(),
        began.elapsed().as_secs_f64()
    );
    sleep(lasts.saturating_sub(began.elapsed()));
    // They did not hear each other.
    let shown: BTreeSet<String> = (0..3)
        .map(|it| state(&federation, it, "mvregister-0", "live")["value"].to_string())
        .collect();
    assert_eq!(shown.len(), 3, "{shown:?}");
    cuts.heal();
    let healed = Instant::now();
    for kind in TYPES {
        for number in 0..streams {
            let of = |region| known[&(kind, region)][usize::try_from(number).unwrap()].clone();
            let expected = together(kind, &before[&(kind, number)], &[of(0), of(1), of(2)]);
            let stream = name(kind, number);
            let shown = agreed(&federation, &stream);
            assert_eq!(comparable(kind, &shown), expected, "{stream}");
        }
    }
    println!(
        "all {} streams are the same in all regions, live and stable: {:.1} s after",
        streams * TYPES.len() as u64,
        healed.elapsed().as_secs_f64()
    );
}

//! The merge of origin logs into the one order, beside a plain scan of the same logs.
//!
//! ```sh
//! chrt -r 1 cargo run --release -p meridian-store --example ordered
//! ```
//!
//! Twelve logs of events of 256 B, in memory (the page cache): every event decoded, none kept. In
//! *round robin* the logs take turns block by block, as a node at work writes them; *apart* has one
//! log after the other, as a region that was away is caught up with.
#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_clock::{
    Epoch, Incarnation, LogId, OrderKey, PartitionId, Position, RegionId, Timestamp,
};
use meridian_event::{
    BlockBuilder, Chain, Codec, EventId, EventType, NewEvent, Revision, StreamId,
};
use meridian_store::{LogOffset, RealDisk, Store, StoreOptions, SubmitError};

const LOGS: u16 = 12;
const ROUNDS: usize = 5;
type Failure = Box<dyn std::error::Error>;

fn logs() -> impl Iterator<Item = LogId> {
    (0..LOGS).map(|number| LogId::new(RegionId(number % 3), PartitionId(number / 3)))
}

struct Case {
    block_events: u64,
    events: u64,
    compressible: bool,
    apart: bool,
}

fn main() -> Result<(), Failure> {
    println!(
        "| blocks | codec | on disk | merge, events/s | scan, events/s | merge/scan | a page of 100 |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (block_events, events, apart) in [
        (64, 1_000_000, false),
        (64, 1_000_000, true),
        (1, 150_000, false),
        (1, 150_000, true),
    ] {
        for compressible in [false, true] {
            if compressible && block_events == 1 {
                continue;
            }
            run(&Case {
                block_events,
                events,
                compressible,
                apart,
            })?;
        }
    }
    Ok(())
}

fn run(case: &Case) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let (store, _) = Store::open(
        Arc::new(RealDisk::new(dir.path())?),
        StoreOptions::default(),
    )?;
    let codec = write(&store, case)?;
    let (mut merged, mut scanned, mut paged) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        merged.push(per_second(
            case.events,
            timed(|| merge(&store, case.events))?,
        ));
        scanned.push(per_second(
            case.events,
            timed(|| scan(&store, case.events))?,
        ));
        paged.push(timed(|| pages(&store, case))?.as_secs_f64() * 1e6 / 100.0);
    }
    let (merged, scanned) = (median(merged), median(scanned));
    println!(
        "| {} events | {} | {} | {:.0} | {:.0} | {:.2} | {:.0} µs |",
        case.block_events,
        codec,
        if case.apart { "apart" } else { "round robin" },
        merged,
        scanned,
        merged / scanned,
        median(paged)
    );
    Ok(())
}

fn write(store: &Arc<Store>, case: &Case) -> Result<&'static str, Failure> {
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise
    };
    let mut heads = vec![(Position::ZERO, Chain::EMPTY); usize::from(LOGS)];
    let blocks = case.events / case.block_events;
    let per_log = blocks / u64::from(LOGS);
    let mut codec = "raw";
    let event_type = EventType::new("Happened")?;
    let streams: Vec<StreamId> = (0..1000)
        .map(|number| StreamId::new(&format!("order-{number}")))
        .collect::<Result<_, _>>()?;
    for number in 0..blocks {
        let which = match case.apart {
            true => (number / per_log).min(u64::from(LOGS) - 1),
            false => number % u64::from(LOGS),
        };
        let log = logs().nth(usize::try_from(which)?).ok_or("no such log")?;
        let (position, chain) = heads[usize::try_from(which)?];
        let mut builder = BlockBuilder::new(log, Incarnation(1), Epoch::FIRST);
        for event in 0..case.block_events {
            // All logs go at one pace, so that the order changes logs at nearly every event.
            let at = Timestamp(1000 * (position.0 + event + 1) + which);
            let data: Vec<u8> = match case.compressible {
                true => b"{\"carrier\":\"UA\",\"gate\":17}".repeat(10),
                false => (0..32).flat_map(|_| next().to_le_bytes()).collect(),
            };
            let event = NewEvent {
                id: EventId::from_random(
                    (u128::from(next()) << 64 | u128::from(next())).to_be_bytes(),
                ),
                event_type: event_type.clone(),
                data: Bytes::copy_from_slice(&data[..256]),
                metadata: Bytes::new(),
            };
            let stream = &streams[usize::try_from(next() % 1000)?];
            builder.push_batch(at, stream, Revision(position.0), &[event]);
        }
        let block = builder.seal(position.plus(1), chain);
        if block.header().codec == Codec::Zstd {
            codec = "zstd";
        }
        heads[usize::try_from(which)?] = (block.header().last_position(), block.chain());
        while let Err(refused) = store.submit(block.clone(), Box::new(|_| ())) {
            if refused != SubmitError::Full {
                return Err(refused.into());
            }
            std::thread::yield_now();
        }
    }
    let all = |store: &Store| -> u64 { store.heads().iter().map(|head| head.position.0).sum() };
    while all(store) < blocks * case.block_events {
        std::thread::yield_now();
    }
    Ok(codec)
}

fn merge(store: &Store, expected: u64) -> Result<(), Failure> {
    let mut reader = store.ordered(logs(), OrderKey::default());
    let (mut events, mut sum) = (0, 0);
    reader.read(Timestamp(u64::MAX), |_, _, event| {
        events += 1;
        sum += event.data.len() + event.stream.len();
        ControlFlow::Continue(())
    })?;
    check(events, expected, sum)
}

fn scan(store: &Store, expected: u64) -> Result<(), Failure> {
    let (mut at, mut events, mut sum) = (LogOffset::default(), 0, 0);
    loop {
        let page = store.scan(at, 1 << 20)?;
        for (_, block) in &page.blocks {
            let open = block.open()?;
            for event in open.events() {
                let event = event?;
                events += 1;
                sum += event.data.len() + event.stream.len();
            }
        }
        if page.at_end {
            return check(events, expected, sum);
        }
        at = page.next;
    }
}

// A hundred readers that each begin somewhere and read a hundred events.
fn pages(store: &Store, case: &Case) -> Result<(), Failure> {
    let per_log = case.events / u64::from(LOGS);
    for number in 0..100 {
        let after = OrderKey {
            timestamp: Timestamp(1000 * (per_log * number / 101)),
            ..OrderKey::default()
        };
        let mut left = 100;
        store
            .ordered(logs(), after)
            .read(Timestamp(u64::MAX), |_, _, _| {
                left -= 1;
                match left {
                    0 => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            })?;
    }
    Ok(())
}

fn check(events: u64, expected: u64, sum: usize) -> Result<(), Failure> {
    // What does not fill a block is not written.
    match expected - events < 64 && sum > 0 {
        true => Ok(()),
        false => Err(format!("{events} of {expected} events were read").into()),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "it measures, outside any simulation"
)]
fn timed(work: impl FnOnce() -> Result<(), Failure>) -> Result<Duration, Failure> {
    let began = std::time::Instant::now();
    work()?;
    Ok(began.elapsed())
}

fn per_second(events: u64, took: Duration) -> f64 {
    events as f64 / took.as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

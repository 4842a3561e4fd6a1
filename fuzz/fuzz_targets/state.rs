//! Merged streams: operations and what stands in metadata are refused or read, files of states are refused or are
//! spelled as we spell them, and whatever was read can be folded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use meridian_clock::{Position, RegionId, Timestamp};
use meridian_conflict::{Actor, Applied, Kind, Marker, OpMeta, Operation, State};
use meridian_event::EventId;
use uuid::Uuid;

/// The version and the checksum that stand before a state.
const HEADER_BYTES: usize = 5;

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    let kind = Kind::ALL[usize::from(*choice) % Kind::ALL.len()];
    if let Ok(meta) = OpMeta::parse(bytes) {
        let written = meta.into_metadata(b"").expect("nothing stands there yet");
        assert_eq!(OpMeta::parse(&written).expect("we wrote it"), meta);
    }
    let mut state = State::new(kind);
    if bytes.len() >= HEADER_BYTES {
        // With the checksum that it should have: what a search would hardly ever find.
        let mut file = State::new(kind).encode();
        file.truncate(HEADER_BYTES);
        file.extend_from_slice(&bytes[HEADER_BYTES..]);
        let checksum = meridian_event::crc32c(&[&file[HEADER_BYTES..]]);
        file[1..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        if let Ok(read) = State::decode(&file) {
            assert_eq!(read.encode(), file);
            state = read;
        }
    }
    let Ok(operation) = Operation::parse(kind, bytes) else {
        return;
    };
    if state.kind() == kind {
        let actor = Actor::new(RegionId(1), 0);
        let dot = actor.dot(state.seen().get(actor).saturating_add(1));
        let _outcome = state.apply(&Applied {
            dot,
            seen: state.seen().clone(),
            marker: Marker {
                timestamp: Timestamp(7),
                region: RegionId(1),
                position: Position(dot.counter),
            },
            id: EventId(Uuid::from_u128(9)),
            operation,
        });
        let read = State::decode(&state.encode()).expect("what we wrote can be read");
        assert_eq!(
            (read.value(), read.digest()),
            (state.value(), state.digest())
        );
    }
});

//! Session tokens: refused, or read and written back to the same thing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use meridian_node::session::{Seen, SessionSeal};
use uuid::Uuid;

fuzz_target!(|data: &[u8]| {
    let seal = SessionSeal::of_federation(Uuid::from_u128(0x5eed), &[7; 32]);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // As a client sends it: only what this seal wrote may be taken, but nothing may break it.
    let Ok(seen) = seal.read(text) else {
        return;
    };
    let written = seal.write(&seen);
    assert_eq!(seal.read(&written.0), Ok(seen.clone()));
    let mut twice = seen.clone();
    twice.merge(&Seen::default());
    twice.merge(&seen);
    assert_eq!(twice, seen, "seeing the same again changes nothing");
});

//! Every message that a peer region can send: refused, or read and written back to the same thing.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use meridian_event::frame::{self, FRAME_HEADER_BYTES};
use meridian_replication::frame::Message;

fuzz_target!(|data: &[u8]| {
    // The golden files are whole frames, one after the other.
    let mut rest = data;
    while let Ok(Some((kind, body, taken))) = frame::split(rest) {
        read(kind, body);
        rest = &rest[taken..];
    }
    // Else taken apart by hand: behind the checksum, random bytes would never reach a decoder.
    if let Some((header, body)) = data.split_first_chunk::<FRAME_HEADER_BYTES>() {
        read(header[5], body);
    }
});

fn read(kind: u8, body: &[u8]) {
    let Ok(message) = Message::decode(kind, &Bytes::copy_from_slice(body)) else {
        return;
    };
    assert_eq!(message.kind(), kind);
    let written = message.encode();
    let (kind, body, taken) = frame::split(&written)
        .expect("what we write is a frame")
        .expect("it is whole");
    assert_eq!(taken, written.len());
    let again = Message::decode(kind, &Bytes::copy_from_slice(body));
    assert_eq!(again.as_ref(), Ok(&message));
}

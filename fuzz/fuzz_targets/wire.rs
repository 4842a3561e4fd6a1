//! Every message of a client: refused, or read and written back to the same thing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use meridian_client::wire::{
    self, Hello, Refused, Welcome, decode_request, decode_response, encode_request, encode_response,
};
use meridian_event::frame::{self, FRAME_HEADER_BYTES};
use serde::{Serialize, de::DeserializeOwned};

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
    match kind {
        wire::kind::HELLO => same::<Hello>(wire::kind::HELLO, body),
        wire::kind::WELCOME => same::<Welcome>(wire::kind::WELCOME, body),
        wire::kind::REFUSED => same::<Refused>(wire::kind::REFUSED, body),
        wire::kind::REQUEST => {
            let Ok(asked) = decode_request(body) else {
                return;
            };
            let Ok(request) = &asked.request else {
                return;
            };
            let mut written = Vec::new();
            encode_request(&mut written, asked.id, asked.wait_ms, request)
                .expect("it came in a frame, so it fits in one");
            assert_eq!(decode_request(body_of(&written)).as_ref(), Ok(&asked));
        }
        _ => {
            let Ok((id, Ok(response))) = decode_response(body) else {
                return;
            };
            let mut written = Vec::new();
            encode_response(&mut written, id, &response);
            assert_eq!(decode_response(body_of(&written)), Ok((id, Ok(response))));
        }
    }
}

fn same<M: Serialize + DeserializeOwned + PartialEq>(kind: u8, body: &[u8]) {
    if let Ok(message) = frame::decode_message::<M>(kind, body) {
        let written = frame::encode_message(kind, &message);
        let again = frame::decode_message::<M>(kind, body_of(&written));
        assert!(
            again.is_ok_and(|again| again == message),
            "it was read, written and read as something else"
        );
    }
}

fn body_of(frame: &[u8]) -> &[u8] {
    &frame[FRAME_HEADER_BYTES..]
}

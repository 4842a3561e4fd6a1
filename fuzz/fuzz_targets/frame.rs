//! The envelope of every message: refused, waited for, or split off whole.

#![no_main]

use libfuzzer_sys::fuzz_target;
use meridian_event::frame;

fuzz_target!(|data: &[u8]| {
    if let Ok(Some((kind, body, taken))) = frame::split(data) {
        assert_eq!(taken, frame::FRAME_HEADER_BYTES + body.len());
        // The two reserved bytes are not part of what is encoded, everything else is.
        let again = frame::encode(kind, body);
        assert_eq!(frame::split(&again), Ok(Some((kind, body, taken))));
    }
    if let Some((kind, body)) = data.split_first() {
        let whole = frame::encode(*kind, body);
        assert_eq!(frame::split(&whole), Ok(Some((*kind, body, whole.len()))));
    }
});

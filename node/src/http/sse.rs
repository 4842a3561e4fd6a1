//! Server-Sent Events: how an event stream is written, byte by byte.

use std::io::Write;

/// Says that the stream is there and where a reader stands who was sent nothing: a client that
/// comes back goes on from `id` even when a filter held everything back.
pub(super) fn write_heartbeat(out: &mut Vec<u8>, id: &str) {
    out.extend_from_slice(b": heartbeat\n");
    write_id(out, id);
    out.push(b'\n');
}

/// One message with the given name (`message` when there is none).
pub(super) fn write_message(out: &mut Vec<u8>, name: Option<&str>, id: Option<&str>, data: &[u8]) {
    if let Some(id) = id {
        write_id(out, id);
    }
    if let Some(name) = name {
        // Writing to a vector does not fail.
        let _ = writeln!(out, "event: {name}");
    }
    // A line break inside the data would end the field; JSON has them only between its tokens,
    // where one is as good as another.
    for line in lines(data) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.push(b'\n');
}

fn write_id(out: &mut Vec<u8>, id: &str) {
    assert!(
        !id.contains(['\n', '\r', '\0']),
        "a cursor has characters that an id must not have: {id:?}"
    );
    let _ = writeln!(out, "id: {id}");
}

/// `data` cut at `\n`, `\r` and `\r\n`.
fn lines(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
            rest = None;
            return Some(text);
        };
        let (line, after) = text.split_at(end);
        rest = Some(after.strip_prefix(b"\r\n").unwrap_or(&after[1..]));
        Some(line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(data: &str) -> String {
        let mut out = Vec::new();
        write_message(&mut out, None, Some("7"), data.as_bytes());
        String::from_utf8(out).expect("the frame is text")
    }

    #[test]
    fn a_message_is_its_id_its_data_and_an_empty_line() {
        assert_eq!(message(r#"{"a":1}"#), "id: 7\ndata: {\"a\":1}\n\n");
    }

    #[test]
    fn data_with_line_breaks_stays_one_message() {
        assert_eq!(
            message("{\n\"a\":\r1\r\n}"),
            "id: 7\ndata: {\ndata: \"a\":\ndata: 1\ndata: }\n\n"
        );
        assert_eq!(message("1\n"), "id: 7\ndata: 1\ndata: \n\n");
    }

    #[test]
    fn a_heartbeat_moves_the_reader_without_a_message() {
        let mut out = Vec::new();
        write_heartbeat(&mut out, "9");
        assert_eq!(out, b": heartbeat\nid: 9\n\n");
    }
}

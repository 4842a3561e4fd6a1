//! The list of what was acknowledged: one id a line.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use meridian_event::EventId;
use meridian_node::files;
use tokio::sync::mpsc;
use uuid::Uuid;

/// Ids that were acknowledged before; only ever asked whether one is among them.
#[derive(Default)]
pub(super) struct Acknowledged(HashSet<Uuid>);

impl Acknowledged {
    /// Whether `id` was acknowledged before.
    pub(super) fn contains(&self, id: EventId) -> bool {
        self.0.contains(&id.0)
    }
}

/// Opens the list at `path`: what it holds, and the file to go on with.
///
/// # Errors
/// When it cannot be read or written, or holds something else.
pub(super) fn open(path: &Path) -> io::Result<(Acknowledged, File)> {
    let mut file = files::open_to_append(path)?;
    let mut known = HashSet::new();
    let mut whole_bytes = 0;
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        // A last line without its end was being written when the importer was stopped: that event
        // is sent again, which adds nothing.
        if read == 0 || line.last() != Some(&b'\n') {
            break;
        }
        let id = std::str::from_utf8(line.trim_ascii())
            .ok()
            .and_then(|text| Uuid::try_parse(text).ok());
        let Some(id) = id else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "line {} is no event id; name a list of an earlier import, or a new file",
                    known.len() + 1
                ),
            ));
        };
        known.insert(id);
        whole_bytes += read as u64;
    }
    drop(reader);
    file.set_len(whole_bytes)?;
    file.seek(SeekFrom::End(0))?;
    Ok((Acknowledged(known), file))
}

/// Writes each id that comes in; hands it to the system whenever none is waiting.
///
/// # Errors
/// When the list cannot be written.
pub(super) async fn write(file: File, mut ids: mpsc::Receiver<EventId>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(64 << 10, file);
    while let Some(id) = ids.recv().await {
        writeln!(out, "{id}")?;
        if ids.is_empty() {
            out.flush()?;
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> EventId {
        EventId(Uuid::from_u128(number))
    }

    async fn append(path: &Path, numbers: &[u128]) {
        let (_, file) = open(path).expect("a list");
        let (sender, ids) = mpsc::channel(16);
        for number in numbers {
            sender.send(id(*number)).await.expect("room");
        }
        drop(sender);
        write(file, ids).await.expect("written");
    }

    #[tokio::test]
    async fn a_list_goes_on_where_it_stopped_and_forgets_half_a_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("acks");
        append(&path, &[1, 2]).await;
        let mut torn = files::open_to_append(&path).expect("a list");
        torn.write_all(b"00000000-0000").expect("written");
        drop(torn);

        append(&path, &[3]).await;
        let (known, _) = open(&path).expect("a list");
        assert!([1, 2, 3].iter().all(|number| known.contains(id(*number))));
        assert!(!known.contains(id(4)));
        let text = files::read_text(&path).expect("a list");
        assert_eq!(text.lines().count(), 3, "{text}");
    }

    #[test]
    fn another_file_is_not_taken_for_a_list() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notes");
        let mut file = files::open_to_append(&path).expect("a file");
        file.write_all(b"dear diary\n").expect("written");
        let error = open(&path).map(|_| ()).expect_err("a refusal");
        assert!(error.to_string().contains("line 1 is no event id"));
        assert_eq!(files::read_text(&path).expect("a file"), "dear diary\n");
    }
}

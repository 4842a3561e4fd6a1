//! Lines from a file or standard input, decompressed on the way.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use meridian_node::files;

/// The longest line that is read: nothing longer could be taken by any node.
const LINE_BYTES_MAX: u64 = 40 << 20;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// Where lines come from.
pub(super) struct Source {
    name: String,
    reader: Box<dyn BufRead + Send>,
    line: u64,
    /// How large the input is, as far as that is known.
    pub(super) bytes: Option<u64>,
    /// How much of it has been read.
    pub(super) bytes_read: Arc<AtomicU64>,
}

/// Why there are no more lines.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    #[error("open {name}; check the path")]
    Open { name: String, source: io::Error },
    #[error(
        "read {name} after line {line}; the file may be damaged or cut short: check it, and run the command again"
    )]
    Read {
        name: String,
        line: u64,
        source: io::Error,
    },
    #[error("{name}, line {line}: it is longer than {LINE_BYTES_MAX} bytes; is this NDJSON?")]
    TooLong { name: String, line: u64 },
}

struct Counting<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Source {
    /// Opens `path`, or standard input for `-`. What compresses it is told from its first bytes, so
    /// that it may be piped in as well.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let name = if path == Path::new("-") {
            "standard input".to_owned()
        } else {
            path.display().to_string()
        };
        let failed = |source| SourceError::Open {
            name: name.clone(),
            source,
        };
        let (input, bytes): (Box<dyn Read + Send>, _) = if path == Path::new("-") {
            (Box::new(io::stdin()), None)
        } else {
            let file = files::open(path).map_err(failed)?;
            let bytes = plain_length(&file).map_err(failed)?;
            (Box::new(file), bytes)
        };
        let bytes_read = Arc::new(AtomicU64::new(0));
        let input = Counting {
            inner: input,
            count: bytes_read.clone(),
        };
        let reader = decompressed(input).map_err(failed)?;
        Ok(Self {
            name,
            reader,
            line: 0,
            bytes,
            bytes_read,
        })
    }

    /// What the input is called in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Reads the next line that is not blank into `text`, and returns its number from 1.
    pub(super) fn next(&mut self, text: &mut Vec<u8>) -> Result<Option<u64>, SourceError> {
        loop {
            text.clear();
            let read = self
                .reader
                .by_ref()
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', text);
            let read = read.map_err(|source| SourceError::Read {
                name: self.name.clone(),
                line: self.line,
                source,
            })?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if read as u64 == LINE_BYTES_MAX && text.last() != Some(&b'\n') {
                return Err(SourceError::TooLong {
                    name: self.name.clone(),
                    line: self.line,
                });
            }
            let blank = text.trim_ascii_end().len();
            text.truncate(blank);
            if !text.is_empty() {
                return Ok(Some(self.line));
            }
        }
    }
}

/// A regular file's length; a pipe or device has none.
fn plain_length(file: &File) -> io::Result<Option<u64>> {
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    Ok(metadata.is_file().then_some(metadata.len()))
}

fn decompressed(mut input: impl Read + Send + 'static) -> io::Result<Box<dyn BufRead + Send>> {
    let mut first = Vec::new();
    input
        .by_ref()
        .take(ZSTD_MAGIC.len() as u64)
        .read_to_end(&mut first)?;
    let (gzip, zstd) = (first.starts_with(GZIP_MAGIC), first.starts_with(ZSTD_MAGIC));
    let whole = BufReader::with_capacity(256 << 10, io::Cursor::new(first).chain(input));
    Ok(if gzip {
        // Files joined with `cat` have several members.
        let plain = flate2::bufread::MultiGzDecoder::new(whole);
        Box::new(BufReader::with_capacity(256 << 10, plain))
    } else if zstd {
        let plain = zstd::stream::read::Decoder::with_buffer(whole)?;
        Box::new(BufReader::with_capacity(256 << 10, plain))
    } else {
        Box::new(whole)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn lines(content: &[u8]) -> Result<Vec<(u64, String)>, SourceError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("events");
        let mut file = files::open_to_append(&path).expect("a file");
        file.write_all(content).expect("written");
        let mut source = Source::open(&path)?;
        assert_eq!(source.bytes, Some(content.len() as u64));
        let (mut found, mut text) = (Vec::new(), Vec::new());
        while let Some(number) = source.next(&mut text)? {
            found.push((number, String::from_utf8_lossy(&text).into_owned()));
        }
        let read = source.bytes_read.load(Ordering::Relaxed);
        assert_eq!(read, content.len() as u64, "the bar ends at its end");
        Ok(found)
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(content).expect("compressed");
        out.finish().expect("compressed")
    }

    #[test]
    fn lines_are_the_same_however_they_are_compressed() {
        let plain = b"one\n\n  \ntwo\r\nthree";
        let wanted = [(1, "one"), (4, "two"), (5, "three")];
        let wanted = wanted.map(|(number, text)| (number, text.to_owned()));
        let zstd = zstd::encode_all(&plain[..], 1).expect("compressed");
        for content in [plain.to_vec(), gzip(plain), zstd] {
            assert_eq!(lines(&content).expect("lines"), wanted);
        }
        let joined = [gzip(b"one\n"), gzip(b"two\n")].concat();
        assert_eq!(lines(&joined).expect("lines").len(), 2);
        assert_eq!(lines(b"").expect("lines"), []);
    }

    #[test]
    fn a_file_that_is_cut_short_says_after_which_line() {
        let text: Vec<u8> = (0..50_000u32)
            .flat_map(|n| format!("{n}\n").into_bytes())
            .collect();
        let whole = gzip(&text);
        let error = lines(&whole[..whole.len() / 2]).expect_err("cut short");
        assert!(error.to_string().contains("cut short"), "{error}");
        assert!(!error.to_string().contains("after line 0;"), "{error}");
    }
}

//! As much of an HTTP/1.1 client as applications in a run need, over simulated TCP.
//!
//! One connection, one request at a time, answers of a known length or in chunks. Written out here
//! because an answer that never ends, and is cut at any byte, is what a run is about.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use turmoil::net::TcpStream;

/// A connection to one node's HTTP door.
pub struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

/// An answer up to its body.
#[derive(Debug)]
pub struct Head {
    /// The status.
    pub status: u16,
    // `None` when the body comes in chunks.
    length: Option<usize>,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody answers there.
    pub async fn open(addr: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            stream: TcpStream::connect(addr).await?,
            read: Vec::new(),
        })
    }

    /// Asks for `path` and takes the whole answer.
    ///
    /// # Errors
    /// When the connection breaks; a request with a body may have been carried out by then.
    pub async fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> io::Result<(u16, Vec<u8>)> {
        let head = self.begin(method, path, "", body).await?;
        let mut answer = Vec::new();
        match head.length {
            Some(length) => answer = self.take(length).await?,
            None => {
                while let Some(chunk) = self.chunk().await? {
                    answer.extend(chunk);
                }
            }
        }
        Ok((head.status, answer))
    }

    /// Asks for `path` with further `headers`, each a line, and reads the answer's head only.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn begin(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> io::Result<Head> {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: node\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n{headers}\r\n{body}"
        );
        self.stream.write_all(request.as_bytes()).await?;
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|it| it == b"\r\n\r\n") {
                break end;
            }
            self.more().await?;
        };
        let head: Vec<u8> = self.read.drain(..end + 4).collect();
        let head = String::from_utf8(head).map_err(|_| broken("a head that is no text"))?;
        let mut lines = head.lines();
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1)?.parse().ok())
            .ok_or_else(|| broken("an answer without a status"))?;
        let length = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.trim().parse().ok())?
        });
        Ok(Head { status, length })
    }

    /// The next chunk of an answer that comes in chunks; `None` at its end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let end = loop {
            if let Some(end) = self.read.windows(2).position(|it| it == b"\r\n") {
                break end;
            }
            self.more().await?;
        };
        let line: Vec<u8> = self.read.drain(..end + 2).collect();
        let length = std::str::from_utf8(&line[..end])
            .ok()
            .and_then(|text| usize::from_str_radix(text, 16).ok())
            .ok_or_else(|| broken("a chunk without its length"))?;
        let mut chunk = self.take(length + 2).await?;
        chunk.truncate(length);
        Ok((length > 0).then_some(chunk))
    }

    async fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < length {
            self.more().await?;
        }
        Ok(self.read.drain(..length).collect())
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

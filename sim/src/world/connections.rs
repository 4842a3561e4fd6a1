//! The TCP connections that a host has accepted, which end in the order in which they began when it
//! crashes.
//!
//! A crash drops a runtime and with it all its tasks. In which order depends on the tasks' ids, and
//! tokio counts those for the whole process: a run would depend on what ran before it, and beside it.
//! Who is told first that its connection is gone is something that clients see.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::TcpStream;

/// One host's. Clones are the same.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    accepted: u64,
    open: usize,
    crashing: bool,
    // Dropped by a crash, waiting for the others.
    dropped: BTreeMap<u64, TcpStream>,
}

impl Connections {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in one more.
    pub fn accept(&self, stream: TcpStream) -> Connection {
        let mut inner = self.inner();
        inner.accepted += 1;
        inner.open += 1;
        Connection {
            number: inner.accepted,
            stream: Some(stream),
            all: self.clone(),
        }
    }

    /// Whatever `crash` drops of these, it drops in order.
    pub fn while_crashing(&self, crash: impl FnOnce()) {
        self.inner().crashing = true;
        crash();
        let kept = std::mem::take(&mut *self.inner());
        debug_assert!(kept.dropped.is_empty(), "a connection outlives its host");
    }

    fn end(&self, number: u64, stream: TcpStream) {
        let ended = {
            let mut inner = self.inner();
            inner.open = inner.open.saturating_sub(1);
            inner.dropped.insert(number, stream);
            // The peer is told by what drops the stream, so it must be someone on this host: the last.
            if inner.crashing && inner.open > 0 {
                return;
            }
            std::mem::take(&mut inner.dropped)
        };
        ended.into_values().for_each(drop);
    }
}

/// One of them.
pub struct Connection {
    number: u64,
    // `None` only while it is dropped.
    stream: Option<TcpStream>,
    all: Connections,
}

impl Connection {
    fn stream(self: Pin<&mut Self>) -> Pin<&mut TcpStream> {
        let stream = self.get_mut().stream.as_mut();
        Pin::new(stream.expect("it is not dropped yet"))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.all.end(self.number, stream);
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }
}

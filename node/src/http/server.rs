//! Takes connections, serves HTTP/1.1 on each, and ends them in good order.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Backend, Door, routes};
use crate::metrics::Metrics;
use crate::seams::{TcpListener, TcpStream};

/// How patient the HTTP door is, and how much it takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// The most connections at once; further ones wait to be accepted.
    pub connections_max: usize,
    /// The most event streams that are followed at once; further ones are told to come back, so
    /// that followers cannot take every connection.
    pub followers_max: usize,
    /// How long a connection may take to send a request's head, and how long it may be idle.
    pub head_timeout: Duration,
    /// How long a request's body may take to arrive.
    pub body_timeout: Duration,
    /// How long a client may leave an answer unread.
    pub write_timeout: Duration,
    /// How often an event stream without events says that it is still there.
    pub heartbeat: Duration,
    /// How long requests in progress may take once the node stops.
    pub drain_timeout: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            followers_max: 1024,
            // Clients keep idle connections for up to 90 s (reqwest, browsers less): closing
            // earlier than they do would now and then meet a request on its way.
            head_timeout: Duration::from_secs(100),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            heartbeat: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Serves HTTP on `listener` until `cancel`, then answers what is in progress and returns.
pub async fn serve(
    listener: Box<dyn TcpListener>,
    backend: Arc<dyn Backend>,
    options: ServeOptions,
    cancel: CancellationToken,
) {
    let draining = cancel.child_token();
    // Not a child: what is in progress gets its time after `cancel`.
    let giving_up = CancellationToken::new();
    let connections = TaskTracker::new();
    let router = routes::router(Door::new(backend.clone(), options, draining.clone()));
    let places = Arc::new(Semaphore::new(options.connections_max));

    let mut server = auto::Builder::new(TokioExecutor::new()).http1_only();
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(options.head_timeout)
        // With every connection in use, this is what their read buffers take at most: 256 MiB
        // were all of them hostile, next to nothing as it is.
        .max_buf_size(READ_BUFFER_BYTES_MAX)
        // The date comes from the node's own clock.
        .auto_date_header(false);

    loop {
        // A place before a connection: what we cannot serve waits in the listener's backlog.
        let accepted = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        let (place, stream) = match accepted {
            (Ok(place), Ok((stream, _from))) => (place, stream),
            (_, Err(error)) => {
                // Too many open files, or a client that was gone again: neither is cured by
                // trying at once.
                tracing::debug!(%error, "a connection was not accepted");
                tokio::select! {
                    () = cancel.cancelled() => break,
                    () = tokio::time::sleep(ACCEPT_AGAIN) => continue,
                }
            }
            // The semaphore is never closed.
            (Err(_), _) => break,
        };
        let io = TokioIo::new(Impatient::new(stream, options.write_timeout));
        let connection = server
            .serve_connection(io, TowerToHyperService::new(router.clone()))
            .into_owned();
        let (draining, giving_up) = (draining.clone(), giving_up.clone());
        let backend = backend.clone();
        connections.spawn(async move {
            let _open = Open::new(backend.metrics());
            let mut connection = std::pin::pin!(connection);
            let outcome = tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = draining.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        outcome = connection => outcome,
                        () = giving_up.cancelled() => Ok(()),
                    }
                }
            };
            if let Err(error) = outcome {
                tracing::debug!(error = &*error, "an HTTP connection broke off");
            }
            drop(place);
        });
    }

    connections.close();
    if tokio::time::timeout(options.drain_timeout, connections.wait())
        .await
        .is_err()
    {
        tracing::info!(
            connections = connections.len(),
            "HTTP requests in progress are given up"
        );
        giving_up.cancel();
        connections.wait().await;
    }
}

/// The longest head of a request, and how much of a body is read ahead.
const READ_BUFFER_BYTES_MAX: usize = 64 << 10;

/// How long to wait after a connection that was not accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Counts a connection for as long as it is open.
struct Open<'a>(&'a Metrics);

impl<'a> Open<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.http_connections.inc();
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.http_connections.dec();
    }
}

/// A byte stream whose writes fail when the other side does not read for too long.
///
/// Without this, a follower that went away without a word would keep its connection for as long as
/// the operating system hopes for it, a quarter of an hour and more.
struct Impatient {
    stream: Box<dyn TcpStream>,
    write_timeout: Duration,
    // Armed while a write waits.
    stuck: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Impatient {
    fn new(stream: Box<dyn TcpStream>, write_timeout: Duration) -> Self {
        Self {
            stream,
            write_timeout,
            stuck: Box::pin(tokio::time::sleep(write_timeout)),
            waiting: false,
        }
    }

    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = false;
            return written;
        }
        if !self.waiting {
            self.waiting = true;
            self.stuck
                .as_mut()
                .reset(Instant::now() + self.write_timeout);
        }
        match self.stuck.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, shut)
    }
}

//! The six ways a node touches the outside world, each replaceable by the simulator.
//!
//! The disk is `meridian_store::Disk`, the wall clock is `meridian_clock::PhysicalClock`, what TLS
//! draws and reads is `meridian_client::tls::TlsSeams`; the network, randomness and the clock that
//! leases are measured with are here, with what `meridian serve` uses for all six.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meridian_client::tls::TlsSeams;
use meridian_clock::{PhysicalClock, Timestamp};
use meridian_store::{Disk, RealDisk, StoreOptions};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// A byte stream of an accepted TCP connection.
pub trait TcpStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> TcpStream for T {}

/// A future that owns nothing but what it was given.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Takes TCP connections for the HTTP door.
pub trait TcpListener: Send + Sync {
    /// The next connection and where it comes from.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn TcpStream>, SocketAddr)>>;

    /// Where it listens.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// Sockets, and the runtime that quinn is given.
pub trait Network: Send + Sync {
    /// A UDP socket bound to `addr`.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    fn udp(&self, addr: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>>;

    /// A TCP listener bound to `addr`.
    fn tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListener>>>;

    /// What quinn spawns its tasks and timers on.
    fn quinn_runtime(&self) -> Arc<dyn quinn::Runtime>;
}

/// What is measured with that another region relies on: the length of leases, and of the waits for them to be over.
///
/// Other timers are tokio's.
pub trait SteadyClock: Send + Sync {
    /// Never runs backwards and never jumps; may be a little fast or slow.
    fn now(&self) -> Instant;
}

/// Where random bytes come from.
pub trait Random: Send + Sync {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// What a node is given to reach the outside world.
#[derive(Clone)]
pub struct Seams {
    /// The node's data folder.
    pub disk: Arc<dyn Disk>,
    /// The wall clock.
    pub clock: Arc<dyn PhysicalClock>,
    /// What leases are measured with.
    pub steady: Arc<dyn SteadyClock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Sockets.
    pub network: Arc<dyn Network>,
    /// How the store commits: on threads of its own, or driven by the simulator.
    pub lanes: meridian_store::Lanes,
    /// What TLS encrypts with and checks certificates against.
    pub tls: TlsSeams,
    /// The folder of the read models: databases that others read, so real files. It is created when
    /// it is needed.
    pub read_models: PathBuf,
}

impl Seams {
    /// The host's own disk (below `data`, which is created), clock, randomness and network.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn host(data: &Path) -> io::Result<Self> {
        Ok(Self {
            disk: Arc::new(RealDisk::new(data)?),
            clock: Arc::new(SystemClock),
            steady: Arc::new(SystemSteady),
            random: Arc::new(SystemRandom),
            network: Arc::new(HostNetwork),
            lanes: StoreOptions::default().lanes,
            tls: TlsSeams::default(),
            read_models: data.join("projections"),
        })
    }
}

/// The system's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl PhysicalClock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that reads the wall clock"
        )]
        let now = SystemTime::now();
        // A clock before 1970 is a clock that was never set: the HLC's floor holds time up.
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Timestamp::from_unix(since)
    }
}

/// The system's monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemSteady;

impl SteadyClock for SystemSteady {
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// The operating system's random number generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        use rustls::crypto::SecureRandom;
        let random: &dyn SecureRandom = rustls::crypto::ring::default_provider().secure_random;
        random
            .fill(bytes)
            .expect("the operating system has randomness");
    }
}

/// The host's own network.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostNetwork;

impl Network for HostNetwork {
    fn udp(&self, addr: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that opens UDP sockets"
        )]
        let socket = std::net::UdpSocket::bind(addr)?;
        quinn::Runtime::wrap_udp_socket(&quinn::TokioRuntime, socket)
    }

    fn tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListener>>> {
        Box::pin(async move {
            #[expect(
                clippy::disallowed_methods,
                reason = "the one place that listens on TCP"
            )]
            let listener = tokio::net::TcpListener::bind(addr).await?;
            Ok(Box::new(HostListener(listener)) as Box<dyn TcpListener>)
        })
    }

    fn quinn_runtime(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(quinn::TokioRuntime)
    }
}

struct HostListener(tokio::net::TcpListener);

impl TcpListener for HostListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn TcpStream>, SocketAddr)>> {
        Box::pin(async move {
            let (stream, from) = self.0.accept().await?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as Box<dyn TcpStream>, from))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

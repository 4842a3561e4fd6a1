//! Sockets over turmoil, with the losses that turmoil does not model per datagram.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use meridian_node::seams::{BoxFuture, Network, TcpListener, TcpStream};
use quinn::udp::{RecvMeta, Transmit};

use super::clock::elapsed;
use super::connections::Connections;
use super::node_at;
use super::story::What;
use super::trace::Trace;
use crate::rng::Rng;

/// What happens to datagrams on their way to one address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Road {
    /// How many in a million are lost.
    pub loss_ppm: u32,
    /// How many in a million arrive twice.
    pub duplicate_ppm: u32,
    /// How many in a million are held back.
    pub reorder_ppm: u32,
    /// For at most how long.
    pub hold_ms: u64,
}

/// What is wrong with the way from one address to another, for now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// The largest datagram that passes, if there is a limit.
    pub bytes_max: Option<usize>,
    /// How many bytes pass in a second, if there is a limit.
    pub bytes_per_s: Option<u64>,
    /// How much longer everything takes.
    pub longer: Duration,
    // When what is on its way will have passed a narrow place.
    free_at: Duration,
}

/// How much waits before a narrow place: what takes longer than this to pass is lost.
const QUEUE: Duration = Duration::from_millis(300);

/// What is wrong with the network, by where a datagram comes from and goes to.
pub type Troubles = Arc<Mutex<BTreeMap<(IpAddr, IpAddr), Trouble>>>;

impl Trouble {
    // How much longer a datagram takes; `None` when it is lost.
    fn passes(&mut self, now: Duration, bytes: usize) -> Option<Duration> {
        if self.bytes_max.is_some_and(|max| bytes > max) {
            return None;
        }
        let Some(rate) = self.bytes_per_s else {
            return Some(self.longer);
        };
        let micros = bytes as u64 * 1_000_000 / rate.max(1);
        let free_at = self.free_at.max(now) + Duration::from_micros(micros);
        let waits = free_at - now;
        if waits > QUEUE {
            return None;
        }
        self.free_at = free_at;
        Some(waits + self.longer)
    }
}

/// One host's network.
pub struct SimNetwork {
    /// Where the host is.
    pub here: IpAddr,
    /// Roads by where they lead.
    pub roads: Arc<BTreeMap<IpAddr, Road>>,
    /// What is wrong with them now.
    pub troubles: Troubles,
    /// Draws the losses.
    pub rng: Arc<Mutex<Rng>>,
    /// Notes each datagram.
    pub trace: Trace,
    /// Set once the network loses nothing any more.
    pub calm: Arc<AtomicBool>,
    /// What it has accepted over TCP.
    pub connections: Connections,
}

impl SimNetwork {
    /// A UDP socket for quinn, bound now.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn socket(&self, addr: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        // Binding looks asynchronous in turmoil, and never waits.
        let mut bind = Box::pin(turmoil::net::UdpSocket::bind(addr));
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(socket) = bind.as_mut().poll(&mut context) else {
            return Err(io::Error::other("turmoil's bind waited"));
        };
        Ok(Arc::new(SimSocket {
            here: self.here,
            socket: Arc::new(socket?),
            roads: Arc::clone(&self.roads),
            troubles: Arc::clone(&self.troubles),
            rng: Arc::clone(&self.rng),
            trace: self.trace.clone(),
            calm: Arc::clone(&self.calm),
        }))
    }
}

impl Network for SimNetwork {
    fn udp(&self, addr: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        self.socket(addr)
    }

    fn tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListener>>> {
        Box::pin(async move {
            let listener = turmoil::net::TcpListener::bind(addr).await?;
            Ok(Box::new(SimListener(listener, self.connections.clone())) as Box<dyn TcpListener>)
        })
    }

    fn quinn_runtime(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(quinn::TokioRuntime)
    }
}

struct SimListener(turmoil::net::TcpListener, Connections);

impl TcpListener for SimListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn TcpStream>, SocketAddr)>> {
        Box::pin(async move {
            let (stream, from) = self.0.accept().await?;
            Ok((Box::new(self.1.accept(stream)) as Box<dyn TcpStream>, from))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

struct SimSocket {
    here: IpAddr,
    socket: Arc<turmoil::net::UdpSocket>,
    roads: Arc<BTreeMap<IpAddr, Road>>,
    troubles: Troubles,
    rng: Arc<Mutex<Rng>>,
    trace: Trace,
    calm: Arc<AtomicBool>,
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("SimSocket")
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl quinn::UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl SimSocket {
    fn send(&self, bytes: &[u8], to: SocketAddr) {
        let road = match self.calm.load(Ordering::Relaxed) {
            true => Road::default(),
            false => self.roads.get(&to.ip()).copied().unwrap_or_default(),
        };
        let (lost, twice, held) = {
            let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
            let lost = rng.chance_ppm(road.loss_ppm);
            let twice = rng.chance_ppm(road.duplicate_ppm);
            let held = rng.chance_ppm(road.reorder_ppm);
            let held = held.then(|| Duration::from_millis(rng.between(1, road.hold_ms.max(1))));
            (lost, twice, held)
        };
        let length = bytes.len();
        let passes = {
            let troubles = self.troubles.lock();
            let mut troubles = troubles.unwrap_or_else(PoisonError::into_inner);
            match troubles.get_mut(&(self.here, to.ip())) {
                Some(trouble) => trouble.passes(elapsed(), length),
                None => Some(Duration::ZERO),
            }
        };
        let lost = lost || passes.is_none();
        let longer = passes.filter(|longer| !longer.is_zero());
        let held = match (held, longer) {
            (Some(held), Some(longer)) => Some(held + longer),
            (held, longer) => held.or(longer),
        };
        // What is in it too: a byte that two runs encrypt differently parts them here, not seconds
        // later when it has decided something.
        let hash = blake3::hash(bytes).to_hex();
        self.trace.note(
            elapsed(),
            format_args!(
                "{} sends {length}:{} to {to} {lost} {twice} {held:?}",
                self.here,
                &hash[..8]
            ),
        );
        if let (Some(from), Some(to)) = (node_at(self.here), node_at(to.ip())) {
            self.trace.tell(elapsed(), What::Sent { from, to, lost });
        }
        if lost {
            return;
        }
        // An error here would end quinn's driver; to it, a datagram that is not sent is lost.
        let _ = match held {
            None => self.socket.try_send_to(bytes, to).map(|_| ()),
            Some(held) => {
                let (socket, bytes) = (Arc::clone(&self.socket), bytes.to_vec());
                tokio::spawn(async move {
                    tokio::time::sleep(held).await;
                    let _ = socket.try_send_to(&bytes, to);
                });
                Ok(())
            }
        };
        if twice {
            let _ = self.socket.try_send_to(bytes, to);
        }
    }
}

impl quinn::AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn quinn::UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        for bytes in transmit.contents.chunks(size.max(1)) {
            self.send(bytes, transmit.destination);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buffer), Some(meta)) = (buffers.first_mut(), meta.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        loop {
            match self.socket.try_recv_from(buffer) {
                Ok((len, addr)) => {
                    *meta = RecvMeta::default();
                    meta.addr = addr;
                    meta.len = len;
                    meta.stride = len;
                    return Poll::Ready(Ok(1));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            let mut readable = Box::pin(self.socket.readable());
            match readable.as_mut().poll(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

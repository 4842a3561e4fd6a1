//! A network that can be cut: the host's own, until told otherwise.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use meridian_node::seams::{BoxFuture, HostNetwork, Network, TcpListener};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// Whether a region is cut off. While it is, no datagram leaves or enters it.
#[derive(Clone, Debug, Default)]
pub(super) struct Cut(Arc<AtomicBool>);

impl Cut {
    pub(super) fn set(&self, cut: bool) {
        self.0.store(cut, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The host's network with a [`Cut`] in its QUIC traffic. HTTP goes on.
pub(super) struct CuttableNetwork(pub(super) Cut);

impl Network for CuttableNetwork {
    fn udp(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let inner = HostNetwork.udp(addr)?;
        Ok(Arc::new(CuttableSocket {
            inner,
            cut: self.0.clone(),
        }))
    }

    fn tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListener>>> {
        HostNetwork.tcp(addr)
    }

    fn quinn_runtime(&self) -> Arc<dyn quinn::Runtime> {
        HostNetwork.quinn_runtime()
    }
}

struct CuttableSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    cut: Cut,
}

impl fmt::Debug for CuttableSocket {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("CuttableSocket")
            .field("cut", &self.cut)
            .finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for CuttableSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.cut.is_set() {
            return Ok(());
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let count = ready!(self.inner.poll_recv(context, buffers, meta))?;
            if !self.cut.is_set() {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

//! A line between two nodes that a test can cut or spoil: a UDP proxy.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use meridian_replication::link::Jitter;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

struct State {
    is_cut: AtomicBool,
    is_spoilt: AtomicBool,
    spoilt: AtomicU64,
    jitter: Mutex<Jitter>,
    // A datagram that the next one overtakes.
    held_back: Mutex<Option<Vec<u8>>>,
}

impl State {
    // What arrives at the other end when `datagram` is sent.
    fn carry(&self, datagram: &[u8]) -> Vec<Vec<u8>> {
        if self.is_cut.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let datagram = datagram.to_vec();
        if !self.is_spoilt.load(Ordering::Relaxed) {
            return vec![datagram];
        }
        let draw = self.jitter.lock().unwrap().next_u64() % 100;
        let held_back = self.held_back.lock().unwrap().take();
        self.spoilt
            .fetch_add(u64::from(draw < 6), Ordering::Relaxed);
        let mut arrive = match draw {
            0..2 => Vec::new(),
            2..4 => vec![datagram.clone(), datagram],
            4..6 => {
                *self.held_back.lock().unwrap() = Some(datagram);
                Vec::new()
            }
            _ => vec![datagram],
        };
        arrive.extend(held_back);
        arrive
    }
}

/// What is sent to `addr` arrives at the other end, and what is answered comes back.
pub struct Line {
    pub addr: SocketAddr,
    there: Arc<State>,
    back: Arc<State>,
    _tasks: JoinSet<()>,
}

impl Line {
    /// A line that ends at `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let state = |seed| {
            Arc::new(State {
                is_cut: AtomicBool::new(false),
                is_spoilt: AtomicBool::new(false),
                spoilt: AtomicU64::new(0),
                jitter: Mutex::new(Jitter::new(seed)),
                held_back: Mutex::new(None),
            })
        };
        let (there, back) = (state(1), state(2));
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let addr = front.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(carry_there(
            front,
            target,
            Arc::clone(&there),
            Arc::clone(&back),
        ));
        Self {
            addr,
            there,
            back,
            _tasks: tasks,
        }
    }

    /// From here on nothing arrives, or everything does again.
    pub fn cut(&self, is_cut: bool) {
        for state in [&self.there, &self.back] {
            state.is_cut.store(is_cut, Ordering::Relaxed);
        }
    }

    /// From here on some datagrams are lost, repeated or overtaken.
    pub fn spoil(&self, is_spoilt: bool) {
        for state in [&self.there, &self.back] {
            state.is_spoilt.store(is_spoilt, Ordering::Relaxed);
        }
    }

    /// How many datagrams were.
    pub fn spoilt(&self) -> u64 {
        [&self.there, &self.back]
            .map(|state| state.spoilt.load(Ordering::Relaxed))
            .iter()
            .sum()
    }
}

async fn carry_there(
    front: Arc<UdpSocket>,
    target: SocketAddr,
    there: Arc<State>,
    back: Arc<State>,
) {
    let mut callers: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut datagram = vec![0; 65_536];
    loop {
        // An error here is the answer to an earlier datagram that nobody took.
        let Ok((length, from)) = front.recv_from(&mut datagram).await else {
            continue;
        };
        let socket = match callers.get(&from) {
            Some(socket) => Arc::clone(socket),
            None => {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                let socket = Arc::new(socket);
                callers.insert(from, Arc::clone(&socket));
                tasks.spawn(carry_back(
                    Arc::clone(&socket),
                    Arc::clone(&front),
                    from,
                    Arc::clone(&back),
                ));
                socket
            }
        };
        for arriving in there.carry(&datagram[..length]) {
            let _ = socket.send_to(&arriving, target).await;
        }
    }
}

async fn carry_back(
    socket: Arc<UdpSocket>,
    front: Arc<UdpSocket>,
    caller: SocketAddr,
    state: Arc<State>,
) {
    let mut datagram = vec![0; 65_536];
    loop {
        let Ok((length, _)) = socket.recv_from(&mut datagram).await else {
            continue;
        };
        for arriving in state.carry(&datagram[..length]) {
            let _ = front.send_to(&arriving, caller).await;
        }
    }
}

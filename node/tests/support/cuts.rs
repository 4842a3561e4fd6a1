//! Links between regions that a test can cut: what each node sends to another goes through a socket of ours.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use super::Federation;

const LOOK_EVERY: Duration = Duration::from_millis(50);
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// The links of a federation, each of which goes through here.
pub struct Cuts {
    cut: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Cuts {
    /// Puts itself between the regions of `federation`, none of which runs yet.
    pub fn between(federation: &Federation, regions: usize) -> Self {
        let mut cuts = Self {
            cut: Arc::default(),
            over: Arc::default(),
            threads: Vec::new(),
        };
        for to in 0..regions {
            let real = federation.quic(to).to_owned();
            for from in (0..regions).filter(|from| *from != to) {
                let here = cuts.relay(real.parse().expect("an address"));
                // What a node listens on itself stands there without this key's table.
                federation.edit_config(
                    from,
                    &format!("quic = \"{real}\""),
                    &format!("quic = \"{here}\""),
                );
            }
        }
        cuts
    }

    /// Cuts every region off from every other one.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// Lets them hear each other again.
    pub fn heal(&self) {
        self.cut.store(false, Ordering::Relaxed);
    }

    // Passes on what comes to the address that is returned to `real`, and its answers back.
    fn relay(&mut self, real: SocketAddr) -> SocketAddr {
        let socket = || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
            socket
                .set_read_timeout(Some(LOOK_EVERY))
                .expect("it can be set");
            Arc::new(socket)
        };
        let (near, far) = (socket(), socket());
        let here = near.local_addr().expect("it is bound");
        let asking: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        for forth in [true, false] {
            let (near, far, asking) = (Arc::clone(&near), Arc::clone(&far), Arc::clone(&asking));
            let (cut, over) = (Arc::clone(&self.cut), Arc::clone(&self.over));
            self.threads.push(spawn(move || {
                let mut bytes = vec![0; DATAGRAM_BYTES_MAX];
                let (from, to) = if forth { (&near, &far) } else { (&far, &near) };
                while !over.load(Ordering::Relaxed) {
                    let Ok((count, sender)) = from.recv_from(&mut bytes) else {
                        continue;
                    };
                    if forth {
                        *asking.lock().expect("nobody panics") = Some(sender);
                    }
                    let target = match forth {
                        true => Some(real),
                        false => *asking.lock().expect("nobody panics"),
                    };
                    if let Some(target) = target.filter(|_| !cut.load(Ordering::Relaxed)) {
                        let _ = to.send_to(&bytes[..count], target);
                    }
                }
            }));
        }
        here
    }
}

impl Drop for Cuts {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

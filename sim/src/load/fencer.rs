//! Operators who take a region for lost and have the others go on without it, or have one join or leave.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::follow::Source;
use crate::http::Connection;
use crate::rng::Rng;
use crate::world::clock::elapsed;
use crate::world::trace::Trace;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(4);
/// How often an operator asks whom nobody answered.
const TRIES: u32 = 4;

/// What one operator is to do.
#[derive(Clone, Debug)]
pub struct Order {
    /// The name of the region that it is about.
    pub region: String,
    /// What becomes of it.
    pub what: Ask,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    /// The others go on without it.
    Fence {
        /// Also when fewer than a majority remain.
        force: bool,
        /// As part of the fence that is under way.
        evict: bool,
    },
    /// It becomes a member. Asked for until that is decided.
    Join,
    /// It is drained, and leaves for good. Asked for until that is decided.
    Leave,
}

/// What the operators of one region are still to do. Clones are the same.
#[derive(Clone, Default)]
pub struct Orders(Arc<Inner>);

#[derive(Default)]
struct Inner {
    waiting: Mutex<VecDeque<Order>>,
    more: Notify,
}

impl Orders {
    /// Has it done soon.
    pub fn give(&self, order: Order) {
        let waiting = self.0.waiting.lock();
        waiting
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(order);
        self.0.more.notify_one();
    }

    fn take(&self) -> Option<Order> {
        let waiting = self.0.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// Asks one region's door for what operators decide.
pub struct Fencer {
    /// What for.
    pub orders: Orders,
    /// Draws how long it waits.
    pub rng: Rng,
    /// Its region's door.
    pub source: Source,
    /// Where steps are noted.
    pub trace: Trace,
    /// Set when the time for load is over.
    pub over: Arc<AtomicBool>,
}

impl Fencer {
    /// Does what it is told for ever, one operator for each order.
    pub async fn run(mut self) {
        loop {
            while let Some(order) = self.orders.take() {
                let operator = Operator {
                    order,
                    rng: Rng::new(self.rng.next_u64()),
                    source: self.source.clone(),
                    trace: self.trace.clone(),
                    over: Arc::clone(&self.over),
                };
                tokio::spawn(operator.run());
            }
            self.orders.0.more.notified().await;
        }
    }
}

struct Operator {
    order: Order,
    rng: Rng,
    source: Source,
    trace: Trace,
    over: Arc<AtomicBool>,
}

impl Operator {
    // What became of it shows in what the regions do.
    async fn run(mut self) {
        let wait_ms = self.rng.below(2_000);
        match self.order.what {
            Ask::Fence { force, evict } => {
                let body = format!("{{\"force\":{force},\"evict\":{evict},\"wait_ms\":{wait_ms}}}");
                for _ in 0..TRIES {
                    if self.over.load(Ordering::Relaxed) {
                        return;
                    }
                    let status = self.ask("fence", &body).await;
                    if matches!(status, Some(200 | 400 | 409)) {
                        return;
                    }
                    self.pause().await;
                }
            }
            Ask::Join => {
                let body = format!("{{\"wait_ms\":{wait_ms}}}");
                while self.ask("join", &body).await != Some(200) {
                    self.pause().await;
                }
            }
            Ask::Leave => {
                let drain = format!("{{\"wait_ms\":{wait_ms}}}");
                let leave = format!("{{\"force\":false,\"wait_ms\":{wait_ms}}}");
                // Once it has left it can be drained no more.
                loop {
                    self.ask("drain", &drain).await;
                    if self.ask("leave", &leave).await == Some(200) {
                        return;
                    }
                    self.pause().await;
                }
            }
        }
    }

    async fn pause(&mut self) {
        sleep(Duration::from_millis(self.rng.between(200, 800))).await;
    }

    async fn ask(&self, what: &str, body: &str) -> Option<u16> {
        let region = &self.order.region;
        let path = format!("/v1/regions/{region}/{what}");
        let asked = async {
            let mut connection = Connection::open(self.source.addr).await.ok()?;
            connection.ask("POST", &path, body).await.ok()
        };
        let answer = timeout(PATIENCE, asked).await.ok().flatten();
        let status = answer.as_ref().map(|(status, _)| *status);
        self.trace.note(
            elapsed(),
            format_args!(
                "{} is asked to {what} {region}, {body}: {status:?}",
                self.source.region
            ),
        );
        status
    }
}

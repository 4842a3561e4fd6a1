//! What to ask for, from whom, what to keep and what to acknowledge: protocols as values.
//!
//! Nothing in here holds a socket, a disk or a clock. Each machine is told what happened and when,
//! and answers with what to do; the driver in `quic` does it, and a test can do it in a loop.
//!
//! One node has one [`Puller`], which chooses a peer for every log, one [`Held`], which knows how
//! far every region holds every log, one [`Promises`], and from those its [`Watermarks`] and
//! [`Agreements`]. Each subscription has an
//! [`InboundSubscription`] at the receiver and an [`OutboundSubscription`] at the sender. Links are
//! opened as [`handshake`] allows. Start reading at [`inbound`](InboundSubscription).

mod agreement;
mod backoff;
pub mod handshake;
mod held;
mod inbound;
mod instant;
mod outbound;
mod promises;
mod puller;
mod watermarks;

pub use agreement::{Agreements, Disagreement, cut_before};
pub use backoff::{Backoff, Jitter};
pub use held::Held;
pub use inbound::{InboundError, InboundSubscription, Verdict};
pub use instant::Instant;
pub use outbound::{AckError, OutboundSubscription};
pub use promises::Promises;
pub use puller::{Action, Alarm, AlarmKind, Ended, Puller, PullerTimings, Subscription};
pub use watermarks::{Holder, Marks, PartitionMarks, Watermarks};

//! Carries out what `link` decides: QUIC connections, tasks, and the store.
//!
//! [`Endpoint`] is a node's one UDP socket for links and clients alike. [`Links`] runs the links to
//! all peers over it: a dialer per peer (`dial`), a task per log that is pulled (`pull`), a task per
//! connection that came in and per log served on it (`serve`). All tasks end with
//! [`Links::shutdown`]; every queue is bounded and every wait has a time-out.
//!
//! The decisions sit behind one lock (`state`) that is never held across an await; each task tells
//! them what it saw and carries out the answer before it goes on.

mod ask;
mod config;
mod dial;
mod endpoint;
mod links;
mod odd;
mod pull;
mod repair;
mod serve;
mod state;
mod wire;

pub use ask::AskError;
pub use config::{
    ControlAnswer, ControlDoor, DelayObserver, LinksConfig, Member, Membership, PeerStatus,
    PromiseSource, Remembered, SubscriptionStatus, Timings,
};
pub use endpoint::{ConnectError, Endpoint, EndpointError, EndpointKeys, Incoming};
pub use links::{HeldByRegion, Links};

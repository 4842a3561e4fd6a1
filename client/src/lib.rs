//! What applications import, and the protocol that they and the nodes share.
//!
//! A [`Client`] learns from any node which regions there are and which of them is home to a stream,
//! keeps one connection per region, and repeats an append with the *same* event ids until it knows
//! what became of it or its time is up. [`Connection`] is one such connection; nodes use it too, to
//! forward an append to its home. [`server`] is the other end of it, generic over a
//! [`server::Service`]. [`tls`] holds what both ends prove about themselves.
//!
//! Not here: the rule that names a stream's home (`conflict`), how blocks travel between regions
//! (`replication`), and anything that touches a disk. Start reading at `request`, then `wire`, then
//! `connection`.
//!
//! Always true (`idempotent`): an outcome that is not known is never reported as a failure. It is
//! asked for again with the same ids, or reported as [`AppendError::Indeterminate`].

mod attempt;
mod awaiting;
mod backoff;
mod client;
mod connect_error;
mod connection;
mod consumer;
mod framing;
mod pending;
mod read;
mod readers;
mod regions;
mod request;
mod reservation;
mod reserving;
mod resolve;
pub mod server;
mod session;
mod state;
pub mod tls;
mod topology;
pub mod wire;

pub use awaiting::{AwaitSettled, Awaited};
pub use client::{Client, ClientConfig, ReadAt, Seed, bind};
pub use connect_error::ConnectError;
pub use connection::Connection;
pub use consumer::{
    Consumer, ConsumerError, ConsumerFetch, ConsumerRequest, ConsumerResponse, ConsumerSettle,
    Deliveries, Delivery, Gone, Verdict,
};
pub use pending::RequestError;
pub use read::{
    Direction, EventFilter, LiveCursor, LivePage, LiveRead, ReadError, SettledPage, SettledRead,
    SettledTier, StreamPage, StreamRead,
};
pub use readers::{LiveReader, SettledReader, StreamReader};
pub use request::{AppendError, AppendRequest, Appended, Durability, Expected, Limits};
pub use reservation::{
    Reservation, ReservationAct, ReservationAnswer, ReservationKey, ReservationRequest,
    ReserveError,
};
pub use resolve::Resolver;
pub use session::{Session, SessionRequest, SessionResponse, SessionToken};
pub use state::{StateRead, StateTier, StreamState};
pub use topology::{Member, Topology};

//! Time and order: what an event's place in the federation is made of.
//!
//! [`Hlc`] gives out [`Timestamp`]s that never run backwards, [`SkewGuard`] says when this node's
//! wall clock cannot be trusted, and [`Dot`], [`OrderKey`], [`VersionVector`] and [`Promise`] name
//! places in origin logs.
//!
//! Not here: reading the system clock or making anything durable. The wall clock is an argument
//! ([`PhysicalClock`]), and the ceiling is handed over by whoever wrote it to disk. Start reading at
//! `order`, then `hlc`.
//!
//! Always true (`rising`): two calls of [`Hlc::now`] never return the same or a smaller timestamp,
//! whatever the wall clock does in between.

mod hlc;
mod order;
mod skew;
mod timestamp;

pub use hlc::{ClockError, Hlc, HlcStart, Merge, PhysicalClock};
pub use order::{
    Dot, Epoch, Incarnation, LogId, OrderKey, OrderKeyError, PartitionId, Position, Promise,
    RegionId, VersionVector, Watermark,
};
pub use skew::{ClockSample, SkewGuard, SkewVerdict};
pub use timestamp::Timestamp;

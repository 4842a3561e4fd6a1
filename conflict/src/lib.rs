//! Category policies, and the folds of streams that every region may write.
//!
//! A [`Policies`] value is the same in every region; servers route by it and clients compute homes
//! with it, so both always agree. A [`State`] is what a stream of category mode `crdt` or `lww` shows, folded from
//! operations that every region may write at any time.
//!
//! Not here: any I/O, any clock, and re-admission's decisions (`node`). Start reading at [`Policies::route`] for where
//! a write goes, at the module `fold` and [`State`] for what becomes of it.
//!
//! Always true (`one-home`): with equal policies and members, every node names the same home.
//! Always true (`convergent`): with the same operations applied, in whatever order and however often, every state
//! shows the same.

mod fold;
mod policy;

pub use fold::{
    Actor, Applied, Change, CheckError, DEPTH_MAX, DecodeError, Element, ElementError, FlatKind,
    KEY_BYTES_MAX, Kind, KindError, Marker, MetaError, OP_KEY, OpDot, OpMeta, Operation,
    OperationError, Outcome, Seen, State, Superseded, VALUE_BYTES_MAX, Winner,
};
pub use policy::{CategoryPolicy, HomeRule, Isolation, Mode, Policies, PolicyError, Route};

//! Category policies: which region orders a stream's events, or that every region may write them.
//!
//! A [`Policies`] value is the same in every region; servers route by it and clients compute homes
//! with it, so both always agree.
//!
//! Not here: merging what several regions wrote (it is stored and shipped unmerged for now), and
//! any I/O. Start reading at [`Policies::route`].
//!
//! Always true (`one-home`): with equal policies and members, every node names the same home.

mod policy;

pub use policy::{CategoryPolicy, HomeRule, Isolation, Mode, Policies, PolicyError, Route};

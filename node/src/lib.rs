//! One region's node: takes appends, makes them durable, ships them and serves what is held.

pub mod metrics;

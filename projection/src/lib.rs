//! Folds the ordered feeds into read models: real databases, exact after any crash.
//!
//! A [`Definition`] says which events, and one SQL statement for each type. A [`Worker`] reads a
//! [`Feed`] and writes a [`Sink`]: rows, checkpoint and parked events in one transaction, so that a read
//! model is always the fold of its feed up to its checkpoint (`exactly-once`).
//!
//! Not here: where events come from and when there are more (`node`), HTTP (`node`). Start reading at
//! `definition`, then `worker`, then `sink`.
//!
//! Always true: nothing is left out silently. An event is applied, parked, or noted as skipped, in the
//! same transaction that moves the checkpoint past it.

pub mod definition;
mod diff;
mod feed;
mod parameter;
mod place;
mod postgres;
mod program;
mod query;
mod sink;
mod sqlite;
mod worker;

pub use definition::{
    Definition, DefinitionError, Division, Failure, FeedTier, Policy, SinkKind, Source, Workers,
    check_name,
};
pub use diff::TableDiff;
pub use feed::{Feed, FeedError, FeedEvent, Reached};
pub use place::{LogPlaces, Place, PlaceError};
pub use postgres::{
    CheckError, PostgresSink, check_postgres, diff_postgres, is_made_postgres,
    list_parked_postgres, merge_postgres, publish_postgres, remove_parts_postgres, remove_postgres,
};
pub use program::{HandlerError, Projection, Rows};
pub use query::{Answer, Limits, Query, QueryError};
pub use sink::{ApplyError, Batch, Checkpoint, Parked, ParkedKind, Sink, SinkError, Survives};
pub use sqlite::{
    SqliteSink, check_sqlite, diff_sqlite, is_made_sqlite, list_parked, merge_sqlite,
};
pub use worker::{Batches, Doing, Drained, Now, Status, Step, Worker};

/// The wall-clock part of a timestamp, RFC 3339 in UTC.
pub fn recorded_at(timestamp: meridian_clock::Timestamp) -> String {
    let since = timestamp.since_unix();
    // 32 bits of seconds end in 2106, so neither number can be out of range.
    let seconds = i64::try_from(since.as_secs()).unwrap_or(0);
    let nanos = i32::try_from(since.subsec_nanos()).unwrap_or(0);
    jiff::Timestamp::new(seconds, nanos)
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_string()
}

//! Questions to a read model, whatever database it is in.

use std::time::Duration;

use serde_json::Map;

use crate::sink::Checkpoint;

/// A question to a read model.
#[derive(Clone, Debug)]
pub struct Query {
    /// One statement that reads.
    pub sql: String,
    /// By name, without the `:`.
    pub params: Map<String, serde_json::Value>,
}

/// How much a query may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long it may run.
    pub time: Duration,
    /// How many rows it may give.
    pub rows: usize,
    /// How many bytes of them.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(10),
            rows: 10_000,
            bytes: 16 << 20,
        }
    }
}

/// What a read model says.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// Their values. Bytes are given as lower-case hexadecimal digits.
    pub rows: Vec<Vec<serde_json::Value>>,
    /// How far the read model had come.
    pub checkpoint: Checkpoint,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// It is not a query, or names what is not there.
    #[error("the query is not accepted: {reason}")]
    Refused {
        /// What the database says.
        reason: String,
    },
    /// It ran for too long.
    #[error("the query took longer than {} s; ask for less, or add an index to the schema", .limit.as_secs_f64())]
    TooLong {
        /// How long it may run.
        limit: Duration,
    },
    /// It gives too much.
    #[error("the query gives more than {limit} {what}; add a LIMIT, or a condition")]
    TooMuch {
        /// How much is allowed.
        limit: usize,
        /// Of what.
        what: &'static str,
    },
    /// The read model cannot be read.
    #[error("the read model cannot be read: {reason}")]
    Unavailable {
        /// Why not.
        reason: String,
    },
}

impl QueryError {
    pub(crate) fn unavailable(error: impl ToString) -> Self {
        Self::Unavailable {
            reason: error.to_string(),
        }
    }
}

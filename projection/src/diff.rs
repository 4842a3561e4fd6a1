//! What differs between two read models.

use serde::Serialize;

/// What differs between two read models in one table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TableDiff {
    /// The table.
    pub table: String,
    /// Why its rows cannot be compared, such as other columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incomparable: Option<String>,
    /// How many rows there are in each.
    pub rows: [u64; 2],
    /// How many rows only the one has, and only the other.
    pub only_in: [u64; 2],
    /// Some of those, as lists of values in the order of the columns.
    pub examples: [Vec<Vec<serde_json::Value>>; 2],
}

impl TableDiff {
    /// Whether the table is the same in both.
    pub fn is_same(&self) -> bool {
        self.incomparable.is_none() && self.only_in == [0, 0] && self.rows[0] == self.rows[1]
    }

    pub(crate) fn incomparable(table: &str, why: &str) -> Self {
        Self {
            table: table.to_owned(),
            incomparable: Some(why.to_owned()),
            ..Self::default()
        }
    }

    pub(crate) fn only_in_one(table: &str) -> Self {
        Self::incomparable(table, "only the active read model has it")
    }

    pub(crate) fn only_in_other(table: &str) -> Self {
        Self::incomparable(table, "only the other read model has it")
    }
}

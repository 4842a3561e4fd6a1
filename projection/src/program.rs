//! Projections whose handlers are Rust, for those who embed the engine.

use std::error::Error;

use rusqlite::{Connection, Params, Row};

use crate::{Definition, FeedEvent};

/// Why a handler failed: whatever it has to say. What the definition's policy does with the event is the
/// same as for a statement that fails.
pub type HandlerError = Box<dyn Error + Send + Sync>;

/// A projection whose handlers are Rust. [`crate::SqliteSink::running`] writes its rows, and a
/// [`crate::Worker`] drives it, with the same checkpoint, fence, policies and parked events as for one that
/// is defined in SQL.
///
/// ```
/// use meridian_projection::{Definition, FeedEvent, HandlerError, Projection, Rows};
///
/// struct Orders;
///
/// impl Projection for Orders {
///     fn definition(&self) -> Definition {
///         let text = r#"
///             name = "orders"
///             version = 1
///             schema = "CREATE TABLE orders (stream TEXT PRIMARY KEY, cents INTEGER NOT NULL)"
///             on = { OrderPlaced = "" }
///         "#;
///         Definition::from_toml(text).expect("it is sound")
///     }
///
///     fn handle(&mut self, event: &FeedEvent<'_>, rows: &Rows<'_>) -> Result<(), HandlerError> {
///         let order: serde_json::Value = serde_json::from_slice(event.data)?;
///         let euros = order["total"].as_f64().ok_or("an order has a total")?;
///         let cents = (euros * 100.0).round() as i64;
///         rows.execute("INSERT INTO orders VALUES (?1, ?2)", (event.stream, cents))?;
///         Ok(())
///     }
/// }
///
/// assert_eq!(Orders.definition().check(), Ok(()));
/// ```
pub trait Projection: Send {
    /// What it is, as a file would say it. Of `on` the event types count, and no statement is run.
    fn definition(&self) -> Definition;

    /// Deals with one event. What it writes is committed together with the checkpoint; where it fails, all
    /// that it wrote for this event is undone. It may be given an event again after a crash, so nothing
    /// outside of `rows` should change.
    ///
    /// # Errors
    /// When it cannot. The definition's policy decides what becomes of the event.
    fn handle(&mut self, event: &FeedEvent<'_>, rows: &Rows<'_>) -> Result<(), HandlerError>;
}

/// A read model's rows, in the transaction that the event is in.
pub struct Rows<'a>(pub(crate) &'a Connection);

impl Rows<'_> {
    /// Runs a statement that writes. Returns how many rows it changed.
    ///
    /// # Errors
    /// When SQLite refuses it, or it writes nothing, as what begins or ends a transaction.
    pub fn execute(&self, sql: &str, params: impl Params) -> Result<usize, HandlerError> {
        let mut statement = self.0.prepare_cached(sql)?;
        if statement.readonly() {
            return Err(format!(
                "{sql:?} writes no rows; read with `first`, and leave transactions to the engine"
            )
            .into());
        }
        Ok(statement.execute(params)?)
    }

    /// The first row of a query, if it has any.
    ///
    /// # Errors
    /// When SQLite refuses it, or `read` cannot read the row.
    pub fn first<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, HandlerError> {
        let mut statement = self.0.prepare_cached(sql)?;
        if !statement.readonly() {
            return Err(format!("{sql:?} writes; use `execute`").into());
        }
        let mut rows = statement.query(params)?;
        Ok(rows.next()?.map(read).transpose()?)
    }
}

//! Results on standard output: tables and short sentences for people, JSON for programs.

use std::io::{self, Write};

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

/// Standard output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write to standard output")]
pub(crate) struct PrintError(#[source] pub(crate) io::Error);

/// Where a command prints its results.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// An error and its causes on one line, each said once.
    pub(crate) fn error(error: &anyhow::Error) -> String {
        let mut text = String::new();
        for cause in error.chain() {
            let cause = cause.to_string();
            // Some libraries repeat their cause in their own message.
            if text.ends_with(&cause) {
                continue;
            }
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
        text
    }

    /// Whether results are printed as JSON.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints one line.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(crate) fn line(self, line: &str) -> Result<(), PrintError> {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")
            .and_then(|()| out.flush())
            .map_err(PrintError)
    }

    /// Prints `value` as indented JSON.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(crate) fn json(self, value: &impl Serialize) -> Result<(), PrintError> {
        let text = serde_json::to_string_pretty(value).map_err(io::Error::from);
        self.line(&text.map_err(PrintError)?)
    }

    /// Prints `value` as JSON on one line, for results that come one by one.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(crate) fn json_line(self, value: &impl Serialize) -> Result<(), PrintError> {
        let text = serde_json::to_string(value).map_err(io::Error::from);
        self.line(&text.map_err(PrintError)?)
    }

    /// Prints a table.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(crate) fn table(self, header: &[&str], rows: Vec<Vec<String>>) -> Result<(), PrintError> {
        let mut table = Table::new();
        table
            .load_style(UTF8_FULL_CONDENSED)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(header.to_vec());
        for row in rows {
            table.add_row(row);
        }
        self.line(&table.to_string())
    }
}

//! Every key that a configuration file may have.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The keys of one table.
#[derive(Debug)]
pub(super) struct Table {
    /// Its dotted name; `*` stands for a name that the operator chooses.
    pub(super) name: &'static str,
    /// What may be in it, tables included.
    pub(super) keys: &'static [&'static str],
}

/// All tables, the root first.
pub(super) const TABLES: &[Table] = &[
    Table {
        name: "",
        keys: &[
            "federation",
            "region",
            "partitions",
            "data",
            "session_key",
            "listen",
            "certificates",
            "operator",
            "members",
            "categories",
            "limits",
            "clock",
            "failover",
            "store",
        ],
    },
    Table {
        name: "listen",
        keys: &["http", "quic"],
    },
    Table {
        name: "certificates",
        keys: &["authority", "certificate", "key"],
    },
    Table {
        name: "operator",
        keys: &["certificate", "key"],
    },
    Table {
        name: "members",
        keys: &["id", "name", "quic", "http"],
    },
    Table {
        name: "categories.*",
        keys: &["mode", "home", "isolation", "type"],
    },
    Table {
        name: "limits",
        keys: &[
            "event_bytes_max",
            "batch_bytes_max",
            "batch_events_max",
            "append_timeout_ms",
        ],
    },
    Table {
        name: "clock",
        keys: &["max_offset_ms"],
    },
    Table {
        name: "failover",
        keys: &["automatic", "after_ms"],
    },
    Table {
        name: "store",
        keys: &["segment_bytes"],
    },
];

/// A key that no table has.
pub(super) struct Unknown {
    pub(super) table: String,
    pub(super) key: String,
    /// Where it starts in the text, in bytes.
    pub(super) at: usize,
    pub(super) known: &'static [&'static str],
}

/// The first key in the text that is unknown.
pub(super) fn first_unknown(root: &DeTable<'_>) -> Option<Unknown> {
    let mut found = Vec::new();
    check(root, "", "", &mut found);
    found.into_iter().min_by_key(|unknown| unknown.at)
}

/// Checks the keys of a table that `TABLES` has as `name`, and the file as `shown`.
fn check(table: &DeTable<'_>, name: &str, shown: &str, found: &mut Vec<Unknown>) {
    let known = TABLES.iter().find(|known| known.name == name);
    for (key, value) in table {
        let text = key.get_ref().as_ref();
        if let Some(known) = known
            && !known.keys.contains(&text)
        {
            found.push(Unknown {
                table: shown.to_owned(),
                key: text.to_owned(),
                at: key.span().start,
                known: known.keys,
            });
            continue;
        }
        // The operator names the tables in `categories`.
        let pattern = if name == "categories" { "*" } else { text };
        let (name, shown) = (below(name, pattern), below(shown, text));
        check_value(value, &name, &shown, found);
    }
}

fn below(table: &str, key: &str) -> String {
    if table.is_empty() {
        key.to_owned()
    } else {
        format!("{table}.{key}")
    }
}

fn check_value(value: &Spanned<DeValue<'_>>, name: &str, shown: &str, found: &mut Vec<Unknown>) {
    match value.get_ref() {
        DeValue::Table(table) => check(table, name, shown, found),
        DeValue::Array(items) => {
            for item in items.iter() {
                check_value(item, name, shown, found);
            }
        }
        _ => {}
    }
}

/// The name among `known` that `given` was most likely meant to be, if any is close.
pub(super) fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_ascii_lowercase();
    known
        .map(|name| (strsim::damerau_levenshtein(&given, name), name))
        .min()
        // Beyond half of its letters a name is another word, not a typo.
        .filter(|(distance, name)| *distance * 2 <= name.len().max(3))
        .map(|(_, name)| name)
}

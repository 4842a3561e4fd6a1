//! What a projection is: which events it reads, and what it does with each.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest name of a projection, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// What a handler's statement may name, beside `:recorded_at`: DESIGN's list.
pub const PARAMETERS: [&str; 9] = [
    "data",
    "metadata",
    "stream",
    "revision",
    "type",
    "id",
    "timestamp",
    "region",
    "recorded_at",
];
/// Tables of a read model whose names begin so are the engine's own.
pub const OWN_PREFIX: &str = "meridian_";
/// What stands in place of a password.
const HIDDEN: &str = "***";

/// A projection as its owner writes it, in TOML or JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Its name; in a call the path says it.
    #[serde(default)]
    pub name: String,
    /// Raised by its owner when the read model must be built anew.
    pub version: u32,
    /// How settled the events are.
    #[serde(default)]
    pub tier: FeedTier,
    /// Its handlers come to the same in whatever order the events come. What the `live` tier demands.
    #[serde(default)]
    pub commutative: bool,
    /// Which events it reads; all that have a handler when it is left out.
    #[serde(default)]
    pub source: Source,
    /// Where its rows go.
    #[serde(default)]
    pub sink: SinkKind,
    /// SQL that makes its tables, run once on an empty read model.
    pub schema: String,
    /// One SQL statement for each event type.
    pub on: BTreeMap<String, String>,
    /// What happens when a handler fails.
    #[serde(default)]
    pub failure: Failure,
    /// How the work is divided when a read model is rebuilt.
    #[serde(default)]
    pub workers: Workers,
    /// SQL that adds the rows of one part of the work, a database or schema that is called `part`, to the
    /// read model. Without it every table's rows are taken over as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<String>,
}

/// How settled the events are that a projection reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedTier {
    /// All that is held here, in the order of each origin log.
    Live,
    /// The one order, as far as nothing can come in between any more.
    #[default]
    Stable,
    /// The one order, as far as every region has settled it.
    Final,
}

/// Which events a projection reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Streams of these categories; of all when it is empty.
    #[serde(default)]
    pub categories: Vec<String>,
    /// Events of these types; of those that have a handler when it is empty.
    #[serde(default)]
    pub types: Vec<String>,
}

/// Where rows go.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum SinkKind {
    /// A SQLite file in the node's data folder.
    #[default]
    Sqlite,
    /// A schema in a PostgreSQL database.
    Postgres {
        /// Where it is: `postgresql://user:password@host:5432/database`, or
        /// `postgresql:///database?host=/folder/of/the/socket`. Serialized as it is; see
        /// [`Definition::without_password`].
        url: String,
    },
}

impl fmt::Debug for SinkKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite => out.write_str("Sqlite"),
            Self::Postgres { url } => out
                .debug_struct("Postgres")
                .field("url", &hide_passwords(url))
                .finish(),
        }
    }
}

/// The text without the passwords of URLs in it: rather too much is hidden than too little.
fn hide_passwords(text: &str) -> String {
    let hide_in_line = |line: &str| {
        let mut shown = line.to_owned();
        if let Some(begins) = shown.find("://").map(|at| at + 3)
            && let Some(at) = shown.rfind('@').filter(|at| *at > begins)
            && let Some(colon) = shown[begins..at].find(':').map(|it| begins + it)
        {
            shown.replace_range(colon + 1..at, HIDDEN);
        }
        let mut from = 0;
        while let Some(found) = shown[from..].find("password=") {
            let begins = from + found + "password=".len();
            let length = shown[begins..].find(['&', '"', '\'', ' ']);
            let end = length.map_or(shown.len(), |it| begins + it);
            shown.replace_range(begins..end, HIDDEN);
            from = begins + HIDDEN.len();
        }
        shown
    };
    let lines: Vec<_> = text.lines().map(hide_in_line).collect();
    lines.join("\n")
}

/// What happens when a handler fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Failure {
    /// Once all tries are used up.
    pub policy: Policy,
    /// How often it is tried again.
    pub retries: u32,
    /// How long before the first of those; each waits twice as long as the one before.
    pub first_ms: u64,
    /// The longest of those waits.
    pub longest_ms: u64,
}

impl Default for Failure {
    fn default() -> Self {
        Self {
            policy: Policy::Stop,
            retries: 3,
            first_ms: 1_000,
            longest_ms: 60_000,
        }
    }
}

impl Failure {
    /// How long to wait before try number `attempt` (the first repetition is 1): 1 s, 2 s, 4 s … up to
    /// the longest, minus up to a quarter, as `jitter` (0 to 255) says, so that many projections that
    /// failed together do not all come back together.
    pub fn wait(&self, attempt: u32, jitter: u8) -> Duration {
        let doubled = 1u64
            .checked_shl(attempt.saturating_sub(1))
            .unwrap_or(u64::MAX);
        let whole = self.first_ms.saturating_mul(doubled).min(self.longest_ms);
        Duration::from_millis(whole - whole / 4 * u64::from(jitter) / 255)
    }
}

/// What becomes of an event whose handler keeps failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// It is parked by itself; all others go on, those of its stream too.
    DeadLetter,
    /// It is left out, noted and counted.
    Skip,
    /// The projection stops before it.
    Stop,
    /// It is parked, and with it, in order, the later events of its stream; all others go on.
    Quarantine,
}

/// How the work is divided when a read model is rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workers {
    /// How many there are.
    pub count: u16,
    /// What decides which of them takes an event.
    pub by: Division,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            count: 1,
            by: Division::Hash,
        }
    }
}

/// What decides which worker takes an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Division {
    /// A hash of its stream: a stream's events stay together and in order.
    Hash,
    /// When it was written: each takes a stretch of the one order.
    Time,
}

/// What is wrong with a definition. Says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// It is not written in the given language, or has keys that no definition has.
    #[error("the definition cannot be read: {reason}")]
    Unreadable {
        /// Where and why.
        reason: String,
    },
    /// The name would not do as the name of a file and a table.
    #[error(
        "{name:?} is no name for a projection; write 1 to {NAME_BYTES_MAX} of a-z, 0-9, _ and -, beginning with a letter"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// It has no handlers.
    #[error("the projection handles nothing; give it at least one statement under [on]")]
    NoHandlers,
    /// The source names a type that no handler takes.
    #[error(
        "`source.types` names {event_type:?}, and no handler under [on] does{}; add one, or leave the type out",
        hint(.nearest)
    )]
    Unhandled {
        /// The type.
        event_type: String,
        /// A handler whose name is much like it.
        nearest: Option<String>,
    },
    /// A handler takes a type that the source does not name.
    #[error(
        "the handler on {event_type:?} would never run: `source.types` does not name the type; add it there, or leave `types` out"
    )]
    NeverRuns {
        /// The type.
        event_type: String,
    },
    /// A name is not one that events can have.
    #[error("{what} {name:?} cannot be: {reason}")]
    BadName {
        /// What it would name.
        what: &'static str,
        /// The name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// Rows of the `live` tier come in another order in every region.
    #[error(
        "the live tier comes in another order in every region; declare `commutative = true` if the handlers come to the same in any order, or use the stable tier"
    )]
    LiveOrder,
    /// Parts of the `live` tier have no place in common.
    #[error(
        "the live tier is built by one worker, since what is held moves on while others build their parts; leave `workers` out, or use the stable tier"
    )]
    LiveWorkers,
    /// A number is out of bounds.
    #[error("`{key}` is {value}; write {bounds}")]
    OutOfBounds {
        /// The key.
        key: &'static str,
        /// What it is.
        value: u64,
        /// What it may be.
        bounds: &'static str,
    },
    /// Its rows cannot go where it says.
    #[error("the sink cannot be: {reason}")]
    Sink {
        /// Why not, without any password.
        reason: String,
    },
    /// The database does not take the SQL.
    #[error("the SQL of {what} is not accepted: {reason}")]
    Sql {
        /// Which SQL.
        what: String,
        /// What the database says.
        reason: String,
    },
    /// A statement names a parameter that no event has.
    #[error(
        "the statement on {event_type:?} names {parameter:?}; events give {}{}",
        PARAMETERS.map(|name| format!(":{name}")).join(", "),
        hint(.nearest)
    )]
    Parameter {
        /// Whose statement.
        event_type: String,
        /// The name.
        parameter: String,
        /// One that is much like it.
        nearest: Option<String>,
    },
    /// The schema makes a table that the engine needs itself.
    #[error("the schema makes {table:?}; names that begin with {OWN_PREFIX} are the engine's own")]
    OwnTable {
        /// The table.
        table: String,
    },
}

fn hint(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|nearest| format!(" (did you mean {nearest:?}?)"))
        .unwrap_or_default()
}

/// The name among `known` that is most like `name`, if one is much like it.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let scored = known
        .into_iter()
        .map(|it| (strsim::jaro_winkler(name, it), it));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 > 0.8).then(|| best.1.to_owned())
}

impl Definition {
    /// Reads a definition from TOML.
    ///
    /// # Errors
    /// When it is not one. [`Definition::check`] looks further.
    pub fn from_toml(text: &str) -> Result<Self, DefinitionError> {
        toml::from_str(text).map_err(|error| DefinitionError::Unreadable {
            // It shows the line.
            reason: hide_passwords(error.to_string().trim_end()),
        })
    }

    /// Reads a definition from JSON.
    ///
    /// # Errors
    /// When it is not one. [`Definition::check`] looks further.
    pub fn from_json(text: &[u8]) -> Result<Self, DefinitionError> {
        serde_json::from_slice(text).map_err(|error| DefinitionError::Unreadable {
            reason: hide_passwords(&error.to_string()),
        })
    }

    /// Checks all that can be checked without its database.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), DefinitionError> {
        check_name(&self.name)?;
        if self.on.is_empty() {
            return Err(DefinitionError::NoHandlers);
        }
        for event_type in &self.source.types {
            if !self.on.contains_key(event_type) {
                return Err(DefinitionError::Unhandled {
                    event_type: event_type.clone(),
                    nearest: nearest(event_type, self.on.keys().map(String::as_str)),
                });
            }
        }
        for event_type in self.on.keys() {
            if !self.source.types.is_empty() && !self.source.types.contains(event_type) {
                return Err(DefinitionError::NeverRuns {
                    event_type: event_type.clone(),
                });
            }
            let bad = |error: meridian_event::NameError| DefinitionError::BadName {
                what: "the event type",
                name: event_type.clone(),
                reason: error.to_string(),
            };
            event_type
                .parse::<meridian_event::EventType>()
                .map_err(bad)?;
        }
        for category in &self.source.categories {
            let bad = |error: meridian_event::NameError| DefinitionError::BadName {
                what: "the category",
                name: category.clone(),
                reason: error.to_string(),
            };
            category.parse::<meridian_event::Category>().map_err(bad)?;
        }
        if let SinkKind::Postgres { url } = &self.sink {
            crate::postgres::check_url(url).map_err(|reason| DefinitionError::Sink { reason })?;
        }
        if self.tier == FeedTier::Live && !self.commutative {
            return Err(DefinitionError::LiveOrder);
        }
        if self.tier == FeedTier::Live && self.workers.count > 1 {
            return Err(DefinitionError::LiveWorkers);
        }
        let within = |key, value, min, max, bounds| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(DefinitionError::OutOfBounds { key, value, bounds }),
        };
        within(
            "version",
            self.version.into(),
            1,
            u32::MAX.into(),
            "1 or more",
        )?;
        within("workers.count", self.workers.count.into(), 1, 64, "1 to 64")?;
        let failure = &self.failure;
        within(
            "failure.retries",
            failure.retries.into(),
            0,
            100,
            "0 to 100",
        )?;
        within(
            "failure.first_ms",
            failure.first_ms,
            1,
            3_600_000,
            "1 to 3600000",
        )?;
        within(
            "failure.longest_ms",
            failure.longest_ms,
            1,
            86_400_000,
            "1 to 86400000",
        )?;
        Ok(())
    }

    /// The definition to show to others: no password is in its sink's URL.
    pub fn without_password(&self) -> Self {
        let mut shown = self.clone();
        if let SinkKind::Postgres { url } = &mut shown.sink {
            *url = hide_passwords(url);
        }
        shown
    }

    /// Whether a read model that `self` has built can go on with `later` as it is: only what happens
    /// to events from now on may differ.
    pub fn can_go_on_as(&self, later: &Self) -> bool {
        let rest = |it: &Self| Self {
            on: BTreeMap::new(),
            failure: Failure::default(),
            workers: Workers::default(),
            merge: None,
            ..it.clone()
        };
        let types = |it: &Self| it.on.keys().cloned().collect::<Vec<_>>();
        rest(self) == rest(later) && types(self) == types(later)
    }
}

/// Checks a projection's name: it becomes a folder's, and must not lead out of its place.
///
/// # Errors
/// When it is no such name.
pub fn check_name(name: &str) -> Result<(), DefinitionError> {
    let good =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
    match fits && name.as_bytes()[0].is_ascii_lowercase() && name.bytes().all(good) {
        true => Ok(()),
        false => Err(DefinitionError::Name {
            name: name.chars().take(2 * NAME_BYTES_MAX).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = r#"
        name = "carrier_delays"
        version = 1
        schema = "CREATE TABLE carrier_delays (carrier TEXT PRIMARY KEY, events INTEGER NOT NULL)"
        [source]
        categories = ["aircraft"]
        [on]
        FlightDeparted = "INSERT INTO carrier_delays VALUES (:data ->> 'carrier', 1)"
    "#;

    fn sound() -> Definition {
        Definition::from_toml(SOUND).unwrap()
    }

    #[test]
    fn a_sound_definition_is_taken_with_its_defaults() {
        let definition = sound();
        assert_eq!(definition.check(), Ok(()));
        assert_eq!(definition.tier, FeedTier::Stable);
        assert_eq!(definition.failure.policy, Policy::Stop);
        let json = serde_json::to_vec(&definition).unwrap();
        assert_eq!(Definition::from_json(&json), Ok(definition));
    }

    #[test]
    fn what_no_definition_has_is_refused_by_name() {
        let text = SOUND.replace("version = 1", "version = 1\nversoin = 2");
        let error = Definition::from_toml(&text).unwrap_err().to_string();
        assert!(error.contains("versoin"), "{error}");
    }

    #[test]
    fn a_type_that_no_handler_names_is_refused_with_the_one_that_was_meant() {
        let mut definition = sound();
        definition.source.types = vec!["FlightDepartd".to_owned()];
        let error = definition.check().unwrap_err().to_string();
        assert!(
            error.contains("did you mean \"FlightDeparted\"?"),
            "{error}"
        );
        definition.source.types = vec!["FlightDeparted".to_owned()];
        definition
            .on
            .insert("FlightCancelled".to_owned(), "SELECT 1".to_owned());
        assert!(matches!(
            definition.check(),
            Err(DefinitionError::NeverRuns { .. })
        ));
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        for url in [
            "postgresql://me:s3cret@host/db",
            "postgres://me:s3cret@with@host:5432/db?application_name=x",
            "postgresql:///db?host=/tmp&user=me&password=s3cret",
            "postgresql://me:s3cret@host:port/db",
            "postgresql://me:s3cret@/db",
        ] {
            let mut definition = sound();
            definition.sink = SinkKind::Postgres { url: url.into() };
            let inline = format!("sink = {{ kind = \"postgres\", url = \"{url}\", tsl = 1 }}\n");
            for shown in [
                format!("{definition:?}"),
                format!("{:?}", definition.check()),
                serde_json::to_string(&definition.without_password()).unwrap(),
                format!("{:?}", Definition::from_toml(&(inline + SOUND))),
            ] {
                assert!(!shown.contains("s3cret"), "{shown}");
            }
        }
    }

    #[test]
    fn a_url_that_would_not_do_is_refused_when_it_is_put() {
        for (url, reason) in [
            ("mysql://host/db", "postgresql://"),
            ("postgresql://me@host:port/db", "cannot be read"),
            ("postgresql:///db", "names no host"),
            ("postgresql://me@host/db?sslmode=require", "TLS"),
        ] {
            let mut definition = sound();
            definition.sink = SinkKind::Postgres { url: url.into() };
            let error = definition.check().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let text =
            format!("{SOUND}\n[sink]\nkind = \"postgres\"\nurl = \"postgresql:///db?host=/tmp\"");
        assert_eq!(Definition::from_toml(&text).unwrap().check(), Ok(()));
    }

    #[test]
    fn no_name_leads_out_of_its_folder() {
        for name in ["", "../x", "a/b", ".hidden", "A", "a b", "1st", "ä", "a\0"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert_eq!(check_name("a"), Ok(()));
        assert_eq!(check_name("carrier_delays-2"), Ok(()));
        assert!(check_name(&"a".repeat(65)).is_err());
    }

    #[test]
    fn the_live_tier_is_for_what_commutes() {
        let mut definition = sound();
        definition.tier = FeedTier::Live;
        assert_eq!(definition.check(), Err(DefinitionError::LiveOrder));
        definition.commutative = true;
        assert_eq!(definition.check(), Ok(()));
        definition.workers.count = 2;
        assert_eq!(definition.check(), Err(DefinitionError::LiveWorkers));
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let failure = Failure::default();
        let waits: Vec<u64> = (1..=8)
            .map(|attempt| failure.wait(attempt, 0).as_secs())
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(failure.wait(1, 255), Duration::from_millis(750));
        assert_eq!(failure.wait(u32::MAX, 0), Duration::from_secs(60));
    }

    #[test]
    fn only_what_happens_from_now_on_may_change_within_a_version() {
        let before = sound();
        let mut after = before.clone();
        after.failure.policy = Policy::Skip;
        after.on.insert(
            "FlightDeparted".to_owned(),
            "DELETE FROM carrier_delays".to_owned(),
        );
        assert!(before.can_go_on_as(&after));
        after.schema.push(' ');
        assert!(!before.can_go_on_as(&after));
    }
}

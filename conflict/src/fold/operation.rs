//! What a client may ask of a stream that every region may write, and how it is read from an event's data.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use meridian_clock::RegionId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::element::Element;
use crate::Mode;

/// The longest value in an operation, in bytes of its canonical spelling.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// The longest key of an `or-map`, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// How deep lists and objects may nest in an event's data.
pub const DEPTH_MAX: usize = 64;

/// How the operations on a category's streams merge.
///
/// The order of variants is part of the snapshot format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A counter that only grows.
    GCounter,
    /// A counter that grows and shrinks.
    PnCounter,
    /// A set that only grows.
    GSet,
    /// A set from which what was observed can be removed; an addition that the remover had not seen stays.
    OrSet,
    /// A register that keeps all values which were set without knowing of each other.
    MvRegister,
    /// Keys, each with counters, sets and registers of its own; removing a key drops what was observed of it.
    OrMap,
    /// A stock that never runs below zero: each region takes only what it holds rights to.
    BoundedCounter,
    /// One JSON value; the last write wins.
    Document,
    /// A JSON object; the last write wins, field by field.
    Fields,
}

impl Kind {
    /// All kinds, in the order in which messages list them.
    pub const ALL: [Self; 9] = [
        Self::GCounter,
        Self::PnCounter,
        Self::GSet,
        Self::OrSet,
        Self::MvRegister,
        Self::OrMap,
        Self::BoundedCounter,
        Self::Document,
        Self::Fields,
    ];

    /// Its name in policies, in the API and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::GCounter => "g-counter",
            Self::PnCounter => "pn-counter",
            Self::GSet => "g-set",
            Self::OrSet => "or-set",
            Self::MvRegister => "mv-register",
            Self::OrMap => "or-map",
            Self::BoundedCounter => "bounded-counter",
            Self::Document => "document",
            Self::Fields => "fields",
        }
    }

    /// The mode of the categories that may be of this kind.
    pub fn mode(self) -> Mode {
        match self {
            Self::Document | Self::Fields => Mode::Lww,
            _ => Mode::Crdt,
        }
    }

    /// The kinds of categories of `mode`; none for [`Mode::Home`].
    pub fn of_mode(mode: Mode) -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .filter(move |kind| kind.mode() == mode)
    }

    /// Reads a kind's name.
    ///
    /// # Errors
    /// When there is no such kind.
    pub fn parse(name: &str) -> Result<Self, KindError> {
        let mut all = Self::ALL.into_iter();
        all.find(|kind| kind.name() == name)
            .ok_or_else(|| KindError {
                name: name.to_owned(),
            })
    }

    /// An event's data that this kind takes, for messages.
    fn example(self) -> &'static str {
        match self {
            Self::GCounter => r#"{"op":"add","by":1}"#,
            Self::PnCounter => r#"{"op":"add","by":1} or {"op":"subtract","by":1}"#,
            Self::GSet => r#"{"op":"add","value":"x"}"#,
            Self::OrSet => r#"{"op":"add","value":"x"} or {"op":"remove","value":"x"}"#,
            Self::MvRegister => r#"{"op":"set","value":"x"}"#,
            Self::OrMap => {
                r#"{"op":"update","key":"k","type":"pn-counter","change":{"op":"add","by":1}} or {"op":"remove","key":"k"}"#
            }
            Self::BoundedCounter => {
                r#"{"op":"grant","by":1}, {"op":"take","by":1} or {"op":"give","by":1,"to":2}"#
            }
            Self::Document => "any JSON value",
            Self::Fields => r#"{"field":"value","another":null}"#,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = KindError;

    fn from_str(name: &str) -> Result<Self, KindError> {
        Self::parse(name)
    }
}

/// A name is not a kind's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no kind {name:?}; use one of {}", names(&Kind::ALL))]
pub struct KindError {
    /// The name.
    pub name: String,
}

fn names(kinds: &[Kind]) -> String {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    names.join(", ")
}

/// The kinds that a key of an `or-map` may hold: the ones without keys or rights of their own.
///
/// The order of variants is part of the snapshot format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlatKind {
    /// As [`Kind::GCounter`].
    GCounter,
    /// As [`Kind::PnCounter`].
    PnCounter,
    /// As [`Kind::GSet`].
    GSet,
    /// As [`Kind::OrSet`].
    OrSet,
    /// As [`Kind::MvRegister`].
    MvRegister,
}

impl From<FlatKind> for Kind {
    fn from(kind: FlatKind) -> Self {
        match kind {
            FlatKind::GCounter => Self::GCounter,
            FlatKind::PnCounter => Self::PnCounter,
            FlatKind::GSet => Self::GSet,
            FlatKind::OrSet => Self::OrSet,
            FlatKind::MvRegister => Self::MvRegister,
        }
    }
}

impl FlatKind {
    const NAMES: &str = "one of g-counter, pn-counter, g-set, or-set, mv-register";

    fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::GCounter => Some(Self::GCounter),
            Kind::PnCounter => Some(Self::PnCounter),
            Kind::GSet => Some(Self::GSet),
            Kind::OrSet => Some(Self::OrSet),
            Kind::MvRegister => Some(Self::MvRegister),
            _ => None,
        }
    }
}

/// What is done to a flat type.
///
/// Which of them a kind knows is settled when it is parsed; a fold passes over one that its kind does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A counter grows by so much.
    Increase(u64),
    /// A counter shrinks by so much.
    Decrease(u64),
    /// A set gets this element.
    Add(Element),
    /// A set loses this element.
    Remove(Element),
    /// A register gets this value, in place of all it had.
    Set(Element),
}

/// What one event does to its stream's state.
///
/// The order of variants is part of the snapshot format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// To a stream of a flat kind.
    Flat(FlatKind, Change),
    /// `or-map`: to what `key` holds of `kind`.
    Update {
        /// The key.
        key: Arc<str>,
        /// Which of the things under it.
        kind: FlatKind,
        /// What is done to that.
        change: Change,
    },
    /// `or-map`: drops what was observed under this key.
    RemoveKey(Arc<str>),
    /// `bounded-counter`: the stock grows, and the writing region holds the rights to it.
    Grant(u64),
    /// `bounded-counter`: the stock shrinks, by rights of the writing region.
    Take(u64),
    /// `bounded-counter`: rights of the writing region become another's.
    Give {
        /// How many.
        by: u64,
        /// Whose they become.
        to: RegionId,
    },
    /// `document`: the value from now on.
    Document(Element),
    /// `fields`: the values of these fields from now on; a field without one is deleted.
    Fields(BTreeMap<Arc<str>, Option<Element>>),
    /// An event of the stream whose data cannot be read as an operation here: it changes nothing, and its dot counts, so
    /// that what its region writes later is not held up.
    Unreadable,
}

/// Why an event's data is no operation. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// It does not parse.
    #[error("the data of a {kind} is not JSON; send {}", kind.example())]
    NotJson {
        /// The stream's kind.
        kind: Kind,
        /// Where it stops being JSON.
        source: serde_json::Error,
    },
    /// Lists and objects in each other, too many levels of them.
    #[error(
        "the data nests more than {DEPTH_MAX} lists and objects in each other; make it flatter"
    )]
    TooDeep,
    /// It would be rounded, and two such numbers be taken for one.
    #[error("the integer {number} does not fit 64 bits and would be rounded; send it as a string")]
    TooLarge {
        /// The number as it was sent, shortened.
        number: String,
    },
    /// An operation is an object.
    #[error("an operation on a {kind} is an object; send {}", kind.example())]
    NotAnObject {
        /// The kind it was meant for.
        kind: Kind,
    },
    /// There is no such operation on this kind.
    #[error("{op} is no operation on a {kind}; send {}", kind.example())]
    UnknownOperation {
        /// What was sent as `op`, shortened.
        op: String,
        /// The kind it was meant for.
        kind: Kind,
    },
    /// A member that this operation does not have.
    #[error("{member:?} is no member of this operation on a {kind}; send {}", kind.example())]
    UnknownMember {
        /// Its name, shortened.
        member: String,
        /// The kind it was meant for.
        kind: Kind,
    },
    /// A member that this operation needs.
    #[error("member {member:?} is missing from this operation on a {kind}; send {}", kind.example())]
    MissingMember {
        /// Its name.
        member: &'static str,
        /// The kind it was meant for.
        kind: Kind,
    },
    /// A member of the wrong type, or out of range.
    #[error("member {member:?} must be {expected}, not {actual}")]
    WrongMember {
        /// Its name.
        member: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What was sent, shortened.
        actual: String,
    },
    /// A value that is longer than is stored.
    #[error(
        "a value is at most {VALUE_BYTES_MAX} bytes long, this one has {actual_bytes}; store it elsewhere and send a reference"
    )]
    ValueTooLong {
        /// How long its canonical spelling is.
        actual_bytes: usize,
    },
    /// A write that sets no field.
    #[error("no field is set; send {}", Kind::Fields.example())]
    NoFields,
}

impl Operation {
    /// Reads the data of an event in a stream of `kind`.
    ///
    /// Values are taken in their canonical spelling, see [`Element`].
    ///
    /// # Errors
    /// When `data` is not an operation on that kind; the message says what is.
    pub fn parse(kind: Kind, data: &[u8]) -> Result<Self, OperationError> {
        scan(data)?;
        let value: Value = serde_json::from_slice(data)
            .map_err(|source| OperationError::NotJson { kind, source })?;
        match kind {
            Kind::Document => Ok(Self::Document(element(value)?)),
            Kind::Fields => fields(value),
            _ => {
                let mut members = Members::new(kind, value)?;
                let operation = members.operation()?;
                members.finish()?;
                Ok(operation)
            }
        }
    }

    /// Roughly what it holds, in bytes.
    pub(super) fn weight_bytes(&self) -> usize {
        match self {
            Self::Flat(_, change) => change.weight_bytes(),
            Self::Update { key, change, .. } => key.len() + change.weight_bytes(),
            Self::RemoveKey(key) => key.len(),
            Self::Document(value) => value.as_str().len(),
            Self::Fields(fields) => {
                let value = |value: &Option<Element>| {
                    value.as_ref().map_or(4, |value| value.as_str().len())
                };
                fields
                    .iter()
                    .map(|(name, set)| name.len() + value(set))
                    .sum()
            }
            Self::Grant(_) | Self::Take(_) | Self::Give { .. } | Self::Unreadable => 8,
        }
    }
}

impl Change {
    fn weight_bytes(&self) -> usize {
        match self {
            Self::Increase(_) | Self::Decrease(_) => 8,
            Self::Add(value) | Self::Remove(value) | Self::Set(value) => value.as_str().len(),
        }
    }
}

/// An operation's object, of which members are taken out one by one; what is left at the end is one too many.
struct Members {
    kind: Kind,
    object: Map<String, Value>,
}

impl Members {
    fn new(kind: Kind, value: Value) -> Result<Self, OperationError> {
        match value {
            Value::Object(object) => Ok(Self { kind, object }),
            _ => Err(OperationError::NotAnObject { kind }),
        }
    }

    fn operation(&mut self) -> Result<Operation, OperationError> {
        if let Some(kind) = FlatKind::of(self.kind) {
            return Ok(Operation::Flat(kind, self.change(kind)?));
        }
        let op = self.take("op")?;
        match (self.kind, op.as_str()) {
            (Kind::OrMap, Some("update")) => {
                let key = self.key()?;
                let kind = self.flat_kind()?;
                let mut inner = Self::new(kind.into(), self.take("change")?)?;
                let change = inner.change(kind)?;
                inner.finish()?;
                Ok(Operation::Update { key, kind, change })
            }
            (Kind::OrMap, Some("remove")) => Ok(Operation::RemoveKey(self.key()?)),
            (Kind::BoundedCounter, Some("grant")) => Ok(Operation::Grant(self.amount()?)),
            (Kind::BoundedCounter, Some("take")) => Ok(Operation::Take(self.amount()?)),
            (Kind::BoundedCounter, Some("give")) => {
                let by = self.amount()?;
                let to = self.region()?;
                Ok(Operation::Give { by, to })
            }
            _ => Err(self.unknown(&op)),
        }
    }

    fn change(&mut self, kind: FlatKind) -> Result<Change, OperationError> {
        let op = self.take("op")?;
        match (kind, op.as_str()) {
            (FlatKind::GCounter | FlatKind::PnCounter, Some("add")) => {
                Ok(Change::Increase(self.amount()?))
            }
            (FlatKind::PnCounter, Some("subtract")) => Ok(Change::Decrease(self.amount()?)),
            (FlatKind::GSet | FlatKind::OrSet, Some("add")) => Ok(Change::Add(self.value()?)),
            (FlatKind::OrSet, Some("remove")) => Ok(Change::Remove(self.value()?)),
            (FlatKind::MvRegister, Some("set")) => Ok(Change::Set(self.value()?)),
            _ => Err(self.unknown(&op)),
        }
    }

    fn unknown(&self, op: &Value) -> OperationError {
        OperationError::UnknownOperation {
            op: short(op),
            kind: self.kind,
        }
    }

    fn take(&mut self, member: &'static str) -> Result<Value, OperationError> {
        let kind = self.kind;
        let missing = || OperationError::MissingMember { member, kind };
        self.object.remove(member).ok_or_else(missing)
    }

    fn amount(&mut self) -> Result<u64, OperationError> {
        let Some(by) = self.object.remove("by") else {
            return Ok(1);
        };
        match by.as_u64() {
            Some(amount) if amount > 0 => Ok(amount),
            _ => Err(OperationError::WrongMember {
                member: "by",
                expected: "an integer from 1 to 18446744073709551615",
                actual: short(&by),
            }),
        }
    }

    fn region(&mut self) -> Result<RegionId, OperationError> {
        let to = self.take("to")?;
        let number = to.as_u64().and_then(|number| u16::try_from(number).ok());
        number
            .map(RegionId)
            .ok_or_else(|| OperationError::WrongMember {
                member: "to",
                expected: "a region's number, from 0 to 65535",
                actual: short(&to),
            })
    }

    fn key(&mut self) -> Result<Arc<str>, OperationError> {
        match self.take("key")? {
            Value::String(key) if key.len() <= KEY_BYTES_MAX => Ok(key.into()),
            other => Err(OperationError::WrongMember {
                member: "key",
                expected: "a string of at most 1024 bytes",
                actual: short(&other),
            }),
        }
    }

    fn flat_kind(&mut self) -> Result<FlatKind, OperationError> {
        let name = self.take("type")?;
        let kind = name.as_str().and_then(|name| Kind::parse(name).ok());
        kind.and_then(FlatKind::of)
            .ok_or_else(|| OperationError::WrongMember {
                member: "type",
                expected: FlatKind::NAMES,
                actual: short(&name),
            })
    }

    fn value(&mut self) -> Result<Element, OperationError> {
        element(self.take("value")?)
    }

    fn finish(self) -> Result<(), OperationError> {
        match self.object.into_iter().next() {
            None => Ok(()),
            Some((member, _)) => Err(OperationError::UnknownMember {
                member: shorten(member),
                kind: self.kind,
            }),
        }
    }
}

fn element(value: Value) -> Result<Element, OperationError> {
    let element = Element::new(value);
    match element.as_str().len() {
        0..=VALUE_BYTES_MAX => Ok(element),
        actual_bytes => Err(OperationError::ValueTooLong { actual_bytes }),
    }
}

fn fields(value: Value) -> Result<Operation, OperationError> {
    let Value::Object(object) = value else {
        return Err(OperationError::NotAnObject { kind: Kind::Fields });
    };
    if object.is_empty() {
        return Err(OperationError::NoFields);
    }
    let mut fields = BTreeMap::new();
    let mut actual_bytes = 0;
    for (name, value) in object {
        let value = match value {
            Value::Null => None,
            value => Some(element(value)?),
        };
        actual_bytes += name.len() + value.as_ref().map_or(4, |value| value.as_str().len());
        fields.insert(name.into(), value);
    }
    match actual_bytes {
        0..=VALUE_BYTES_MAX => Ok(Operation::Fields(fields)),
        _ => Err(OperationError::ValueTooLong { actual_bytes }),
    }
}

fn short(value: &Value) -> String {
    shorten(value.to_string())
}

/// The beginning of a text that someone else wrote, fit for a message.
pub(super) fn shorten(mut text: String) -> String {
    const CHARS_MAX: usize = 40;
    if let Some((at, _)) = text.char_indices().nth(CHARS_MAX) {
        text.truncate(at);
        text.push('…');
    }
    text
}

/// Refuses what would parse, but not mean what was sent: integers that would be rounded, and nesting that costs stack.
///
/// Looks at the bytes outside of strings only; what is not JSON at all is found by the parser.
fn scan(data: &[u8]) -> Result<(), OperationError> {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(byte) = data.get(at) {
        match byte {
            b'"' => at = string_end(data, at),
            b'[' | b'{' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(OperationError::TooDeep);
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'-' | b'0'..=b'9' => {
                let end = number_end(data, at);
                integer_fits(&data[at..end])?;
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Where the string that begins at `at` has its closing quote.
fn string_end(data: &[u8], mut at: usize) -> usize {
    at += 1;
    while let Some(byte) = data.get(at) {
        match byte {
            b'"' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    at
}

fn number_end(data: &[u8], from: usize) -> usize {
    let is_part = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
    let length = data[from..].iter().take_while(|byte| is_part(byte)).count();
    from + length
}

fn integer_fits(number: &[u8]) -> Result<(), OperationError> {
    let text = str::from_utf8(number).unwrap_or_default();
    let is_float = text.contains(['.', 'e', 'E']);
    if is_float || text.parse::<u64>().is_ok() || text.parse::<i64>().is_ok() {
        return Ok(());
    }
    // Anything that is no integer is no number either, which the parser says better.
    match text
        .trim_start_matches('-')
        .bytes()
        .all(|byte| byte.is_ascii_digit())
    {
        true if text.len() > 1 => Err(OperationError::TooLarge {
            number: shorten(text.to_owned()),
        }),
        _ => Ok(()),
    }
}

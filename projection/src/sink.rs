//! Where a projection's rows go: a database that commits rows and checkpoint together.

use meridian_clock::{OrderKey, Timestamp};
use meridian_event::{EventId, crc32c};
use serde::Serialize;

use crate::definition::FeedTier;
use crate::feed::FeedEvent;
use crate::place::Place;

/// How far a read model has come. Committed with its rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// What was looked at.
    pub place: Place,
    /// Everything at or below this is in it.
    pub through: Timestamp,
    /// How many events were applied.
    pub applied: u64,
    /// How many were left out by the policy `skip`.
    pub skipped: u64,
}

impl Checkpoint {
    /// That of a read model without any events.
    pub fn start(tier: FeedTier) -> Self {
        Self {
            place: Place::start(tier),
            ..Self::default()
        }
    }

    /// Whether the event at `key` is in it.
    pub fn has(&self, key: OrderKey) -> bool {
        key.timestamp <= self.through || self.place.covers(key)
    }

    /// What is kept beside it, to tell one that a worker wrote from one that was changed by hand.
    pub(crate) fn sum(&self) -> i64 {
        let text = format!(
            "{} {} {} {}",
            self.place, self.through, self.applied, self.skipped
        );
        crc32c(&[text.as_bytes()]).into()
    }
}

/// Why an event is among the parked ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ParkedKind {
    /// Its handler failed; later events of its stream went on.
    DeadLetter,
    /// Its handler failed; later events of its stream are parked behind it.
    Quarantined,
    /// It is parked behind one that failed.
    Behind,
    /// It was left out for good, by the policy or by an operator.
    Skipped,
}

impl ParkedKind {
    /// The name it has in a read model.
    pub fn name(self) -> &'static str {
        match self {
            Self::DeadLetter => "dead-letter",
            Self::Quarantined => "quarantined",
            Self::Behind => "behind",
            Self::Skipped => "skipped",
        }
    }

    /// The kind that a name stands for.
    pub fn of_name(name: &str) -> Option<Self> {
        let all = [
            Self::DeadLetter,
            Self::Quarantined,
            Self::Behind,
            Self::Skipped,
        ];
        all.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether later events of its stream wait for it.
    pub fn holds_stream(self) -> bool {
        matches!(self, Self::Quarantined | Self::Behind)
    }
}

/// An event that was not applied, with all that is needed to apply it later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Parked {
    /// Its number in this read model; rises in the order of parking.
    pub id: i64,
    /// Why it is here.
    pub kind: ParkedKind,
    /// Its place in the one order.
    pub key: OrderKey,
    /// Its stream.
    pub stream: String,
    /// Its place in the stream.
    pub revision: u64,
    /// Its identity.
    pub event_id: EventId,
    /// Its type.
    pub event_type: String,
    /// The region that wrote it.
    pub region: String,
    /// What happened.
    #[serde(skip)]
    pub data: Vec<u8>,
    /// What the writer said of it.
    #[serde(skip)]
    pub metadata: Vec<u8>,
    /// What the handler's database said, or why an operator dropped it.
    pub reason: String,
    /// How often its handler was tried.
    pub attempts: u32,
}

/// What is left of a transaction after a statement in it has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survives {
    /// All but that statement.
    Yes,
    /// Nothing.
    No,
}

/// Why a sink cannot go on. It is tried again later; nothing is lost by that.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Another worker has taken this read model over; this one must end.
    #[error("another worker has taken this read model over; this one ends")]
    Fenced,
    /// The database cannot be reached, or fails.
    #[error("the database does not answer: {reason}; it is tried again, no event is lost")]
    Unavailable {
        /// What it says.
        reason: String,
    },
    /// It has rows, and nothing that can be believed says of which events.
    #[error(
        "the read model's checkpoint is {what}, so nothing tells which events are in its rows; rebuild it: `meridian projection rebuild`"
    )]
    NoCheckpoint {
        /// Missing, or changed by hand.
        what: &'static str,
    },
    /// Several workers built its parts, and their rows do not go together.
    #[error(
        "the rows of two parts do not go together ({reason}); say with `merge` how they are added up, or use one worker"
    )]
    Parts {
        /// What the database says.
        reason: String,
    },
    /// There is something else in its place.
    #[error(
        "{what} exists with other columns than the schema gives it; drop it, or raise `version` so that a new read model is built"
    )]
    OtherSchema {
        /// The table.
        what: String,
    },
}

impl SinkError {
    pub(crate) fn unavailable(error: impl ToString) -> Self {
        Self::Unavailable {
            reason: error.to_string(),
        }
    }
}

/// Why an event was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Its statement failed: a matter of the failure policy.
    #[error("{0}")]
    Handler(String),
    /// The database failed: a matter of trying again.
    #[error(transparent)]
    Sink(#[from] SinkError),
}

/// The events of one transaction, one after the other. It may keep at hand what all of them need.
pub trait Batch {
    /// Runs the handler of an event.
    ///
    /// # Errors
    /// When the handler or the database fails.
    fn apply(&mut self, event: &FeedEvent<'_>) -> Result<(), ApplyError>;

    /// Parks an event.
    ///
    /// # Errors
    /// When the database fails.
    fn park(
        &mut self,
        event: &FeedEvent<'_>,
        kind: ParkedKind,
        reason: &str,
        attempts: u32,
    ) -> Result<(), SinkError>;
}

/// A read model that one worker writes.
///
/// Between [`Sink::begin`] and [`Sink::commit`] all calls are one transaction; a crash or
/// [`Sink::rollback`] undoes all of it.
pub trait Sink: Send {
    /// Takes the read model over, making it first if there is none, and says how far it has come.
    /// From here on no other worker that claimed it before can commit.
    ///
    /// # Errors
    /// When the database cannot be reached, or holds something else there.
    fn claim(&mut self) -> Result<Checkpoint, SinkError>;

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`SinkError::Fenced`] when it was claimed by another worker since.
    fn begin(&mut self) -> Result<(), SinkError>;

    /// Takes the events of the transaction that was begun.
    ///
    /// # Errors
    /// When the database is not there.
    fn batch(&mut self) -> Result<Box<dyn Batch + '_>, SinkError>;

    /// What is left of the transaction after [`ApplyError::Handler`].
    fn survives_failure(&self) -> Survives;

    /// Commits rows, parked events and checkpoint.
    ///
    /// # Errors
    /// When it cannot. What then is in the database is only known after the next [`Sink::claim`].
    fn commit(&mut self, checkpoint: &Checkpoint) -> Result<(), SinkError>;

    /// Undoes the transaction, if there is one.
    fn rollback(&mut self);

    /// Takes a parked event away, in the transaction, or with `reason` notes that it is left out for
    /// good.
    ///
    /// # Errors
    /// When the database fails.
    fn unpark(&mut self, id: i64, reason: Option<&str>) -> Result<(), SinkError>;

    /// Notes that a parked event failed once more, in the transaction; it is now the one that holds its
    /// stream back, if it was parked behind another.
    ///
    /// # Errors
    /// When the database fails.
    fn failed_again(&mut self, id: i64, reason: &str) -> Result<(), SinkError>;

    /// The streams that parked events hold back.
    ///
    /// # Errors
    /// When the database fails.
    fn held_streams(&mut self) -> Result<Vec<String>, SinkError>;

    /// One parked event.
    ///
    /// # Errors
    /// When the database fails.
    fn parked(&mut self, id: i64) -> Result<Option<Parked>, SinkError>;

    /// The parked events that hold `stream` back, in order, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    fn parked_of(&mut self, stream: &str, limit: usize) -> Result<Vec<Parked>, SinkError>;

    /// How many events are parked, and not skipped.
    ///
    /// # Errors
    /// When the database fails.
    fn parked_count(&mut self) -> Result<u64, SinkError>;
}

//! What peers say to each other: every message of the protocol `meridian-link/1`.
//!
//! A message is one frame of `meridian_event::frame`. Its body is postcard, except that of
//! [`Message::Blocks`], where the blocks follow verbatim behind a postcard prefix.
//!
//! A link has one control stream, opened by the side that pulls ([`Hello`] and its answer, then
//! [`Vector`], [`Heartbeat`], [`Settled`] and [`Agreement`]), and beside it one stream per subscription ([`Subscribe`], then
//! blocks one way and [`Ack`] the other), per [`Fetch`], and per [`Message::Ask`] of the control plane.

use bytes::Bytes;
use meridian_clock::{
    Epoch, Incarnation, LogId, PartitionId, Position, Promise, RegionId, Timestamp,
};
use meridian_event::frame::{self, FRAME_HEADER_BYTES, FrameError};
use meridian_event::{Block, Chain};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The newest protocol version that this build speaks.
pub const LINK_VERSION: u16 = 5;
/// The oldest protocol version that this build still understands.
pub const LINK_VERSION_MIN: u16 = 1;
/// From this version on, [`Settled`] and [`Agreement`] are understood.
pub const SETTLED_SINCE: u16 = 2;
/// From this version on, [`Start`] and [`Taken`] are understood.
pub const START_SINCE: u16 = 3;
/// From this version on, [`Message::Ask`] is understood.
pub const ASK_SINCE: u16 = 4;
/// From this version on, [`SettledUnder`] and [`AgreementUnder`] are understood, and sent instead of [`Settled`]
/// and [`Agreement`].
pub const SETTLED_UNDER_SINCE: u16 = 5;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lane {
    /// What is written now, and everything else that must not wait.
    Live,
    /// Catching up: a connection of its own, so that it cannot starve the live tail.
    Bulk,
}

/// Who is talking. The dialing side sends it first; [`Message::Welcome`] answers with the other's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest protocol version the sender understands.
    pub version_min: u16,
    /// The newest protocol version the sender understands.
    pub version_max: u16,
    /// The federation the sender belongs to.
    pub federation: Uuid,
    /// The sender's number in it.
    pub region: RegionId,
    /// The sender's name in it, which must be the one in its certificate.
    pub name: String,
    /// Which life of its own logs the sender is in.
    pub incarnation: Incarnation,
    /// How many partitions the sender's federation has.
    pub partitions: u16,
    /// What this connection is for.
    pub lane: Lane,
}

/// Which start of the sender this is; each side sends it once, after the handshake. Whoever still has
/// a connection to an earlier start takes nothing more from it: the sender may have lost its disk in
/// between, and is about to ask how much of its own logs others have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Drawn at each start.
    pub id: u64,
}

/// How far the sender has taken in the receiver's own logs, durable or not. Sent before each
/// [`Vector`]: what waits for the sender's disk will be held by it, though it is not yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// One entry for each of the receiver's logs of which the sender has anything.
    pub logs: Vec<(LogId, Position)>,
}

/// Why one side will not talk to the other. Both log it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The two belong to different federations.
    #[error(
        "region {name} belongs to federation {theirs}, this is {ours}; check `federation` in both configurations"
    )]
    OtherFederation {
        /// The name the peer gave.
        name: String,
        /// The peer's federation.
        theirs: Uuid,
        /// The federation of the side that refuses.
        ours: Uuid,
    },
    /// Nobody told the refusing side about this region.
    #[error("region {region} ({name}) is not a member here; add it to `members`")]
    UnknownRegion {
        /// The number the peer claims.
        region: RegionId,
        /// The name the peer gave.
        name: String,
    },
    /// The certificate speaks for another region than the one claimed.
    #[error(
        "the certificate is for {certificate}, but the peer claims to be region {claimed}, which is called {configured} here; give it the certificate of its own region"
    )]
    WrongRegion {
        /// Who the certificate says it is.
        certificate: String,
        /// The number the peer claims.
        claimed: RegionId,
        /// What the refusing side calls that number.
        configured: String,
    },
    /// Someone else answered at the address of the member that was dialled.
    #[error(
        "region {found} answered where region {expected} was expected; check the addresses in `members`"
    )]
    OtherRegion {
        /// The region that was dialled.
        expected: RegionId,
        /// The region that answered.
        found: RegionId,
    },
    /// A node dialled its own region.
    #[error("region {region} is this node's own region; check the addresses in `members`")]
    Itself {
        /// Our region.
        region: RegionId,
    },
    /// The partition count was chosen differently.
    #[error(
        "the peer has {theirs} partitions, this federation has {ours}; the count is fixed at `init` and must be the same everywhere"
    )]
    OtherPartitions {
        /// The peer's count.
        theirs: u16,
        /// The count of the side that refuses.
        ours: u16,
    },
    /// There is no protocol version that both understand.
    #[error(
        "the peer speaks link protocol {theirs_min} to {theirs_max}, this node {ours_min} to {ours_max}; upgrade the older of the two"
    )]
    Version {
        /// The oldest the peer understands.
        theirs_min: u16,
        /// The newest the peer understands.
        theirs_max: u16,
        /// The oldest the refusing side understands.
        ours_min: u16,
        /// The newest the refusing side understands.
        ours_max: u16,
    },
}

impl Refusal {
    /// A stable name for logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OtherFederation { .. } => "other_federation",
            Self::UnknownRegion { .. } => "unknown_region",
            Self::WrongRegion { .. } => "wrong_region",
            Self::OtherRegion { .. } => "other_region",
            Self::Itself { .. } => "itself",
            Self::OtherPartitions { .. } => "other_partitions",
            Self::Version { .. } => "version",
        }
    }
}

/// How far one origin log is held, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The log.
    pub log: LogId,
    /// Its life.
    pub incarnation: Incarnation,
    /// The epoch of its last block.
    pub epoch: Epoch,
    /// Its last position.
    pub position: Position,
    /// Its chain hash there.
    pub chain: Chain,
    /// The stamp of its last event.
    pub timestamp: Timestamp,
}

impl Head {
    /// A log of which nothing is held.
    pub fn empty(log: LogId) -> Self {
        Self {
            log,
            incarnation: Incarnation::default(),
            epoch: Epoch::default(),
            position: Position::ZERO,
            chain: Chain::EMPTY,
            timestamp: Timestamp::ZERO,
        }
    }

    /// What holding a log this far amounts to: a stamp rises with each batch, and a block is shipped
    /// only once its origin can no longer lose it, so nothing at or before the last stamp is to come.
    pub fn promise(&self) -> Promise {
        Promise {
            log: self.log,
            timestamp: self.timestamp,
            position: self.position,
        }
    }
}

/// How far a third region was heard to hold a log, so that acknowledgements travel over relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The region that holds it.
    pub region: RegionId,
    /// The log.
    pub log: LogId,
    /// The life of the log that is meant.
    pub incarnation: Incarnation,
    /// How far.
    pub position: Position,
}

/// Our last reading of the receiver's clock, so that it can compare clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockEcho {
    /// The receiver's wall clock, as it stood in its last [`Vector`].
    pub sent: Timestamp,
    /// The sender's wall clock when that came.
    pub received: Timestamp,
}

/// Sent both ways on connecting and every second: what the sender holds, and what it knows of what
/// others hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vector {
    /// The sender's wall clock, unaltered.
    pub sent: Timestamp,
    /// What the sender last read of ours.
    pub echo: Option<ClockEcho>,
    /// One entry for each log that the sender holds anything of.
    pub heads: Vec<Head>,
    /// What the sender heard of third regions.
    pub holdings: Vec<Holding>,
}

/// Sent every 50 ms to the side that pulls, whether or not anything was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// What the sender knows to be complete: its own logs and those it relays.
    pub promises: Vec<Promise>,
}

/// How far one region has settled the order of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stable {
    /// The region.
    pub region: RegionId,
    /// The partition.
    pub partition: PartitionId,
    /// Nothing at or below this can still arrive there.
    pub through: Timestamp,
}

/// Sent with every [`Heartbeat`]: the `stable` watermarks of the sender, and those that it heard of
/// third regions, so that `final` is known across relays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// One entry for each region and partition that is known.
    pub stable: Vec<Stable>,
}

/// As [`Settled`], with how much each region knew of who takes part when it said so: whoever knows less does
/// not use the word, for it may not wait for a region that the reader still waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledUnder {
    /// One entry for each region and partition that is known, with the number of the last decision on
    /// members that the region had learnt.
    pub stable: Vec<(Stable, u64)>,
}

/// What the sender read of one partition in the one order, up to a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    /// The partition.
    pub partition: PartitionId,
    /// Up to here, inclusive.
    pub through: Timestamp,
    /// How many events that is.
    pub events: u64,
    /// The chained hash of their order keys.
    pub chain: Chain,
}

/// Sent every second: what the sender's `stable` feed has come to, to be compared with ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// One entry for each partition.
    pub agreed: Vec<Agreed>,
}

/// As [`Agreement`], with how much the sender knows of who takes part. Only who knows the same compares: a
/// region that was put out, and has not learnt it, settled what does not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgreementUnder {
    /// The number of the last decision on members that the sender has learnt.
    pub under: u64,
    /// One entry for each partition that has a cut.
    pub agreed: Vec<Agreed>,
}

/// Asks for a log from a place on, on a stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribe {
    /// The log.
    pub log: LogId,
    /// The life of the log that the asker holds; of no meaning after position 0.
    pub incarnation: Incarnation,
    /// The last position the asker holds.
    pub after: Position,
    /// The asker's chain hash there.
    pub chain: Chain,
    /// How many bytes of blocks may be sent before the next [`Ack`] allows more.
    pub credit_bytes: u64,
}

/// Why a log is not served from where it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NotServed {
    /// The asker holds more than the sender.
    #[error("the sender holds log {log} only to {held}, not to {asked}")]
    Behind {
        /// The log.
        log: LogId,
        /// How far the sender holds it.
        held: Position,
        /// After what it was asked.
        asked: Position,
    },
    /// The asker's history of this log is not the sender's.
    #[error(
        "log {log} differs at {position}: one side holds other bytes; `meridian verify` on both tells which"
    )]
    Diverged {
        /// The log.
        log: LogId,
        /// Where the chains were compared.
        position: Position,
    },
    /// The two hold different lives of the log.
    #[error("log {log} is in incarnation {held} at the sender, the asker holds {asked}")]
    OtherIncarnation {
        /// The log.
        log: LogId,
        /// The sender's.
        held: Incarnation,
        /// The asker's.
        asked: Incarnation,
    },
    /// The sender's own copy is damaged there.
    #[error("the sender's copy of log {log} is damaged after {after}")]
    Damaged {
        /// The log.
        log: LogId,
        /// Up to where it can be served.
        after: Position,
    },
    /// The sender cannot read its disk.
    #[error("the sender cannot read log {log}: {reason}")]
    Unreadable {
        /// The log.
        log: LogId,
        /// What its disk said.
        reason: String,
    },
    /// More subscriptions than a link has logs.
    #[error("too many streams are open on this link")]
    TooMany,
}

/// The start of what was asked for: how far the sender is, so that the lag is known at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribed {
    /// The sender's own position.
    pub head: Position,
}

/// Both ends of what a receiver says while blocks flow. Cumulative: the last one says it all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Everything up to here is on the receiver's disk.
    pub durable: Position,
    /// How many bytes of blocks may have been sent in all since [`Subscribe`].
    pub credit_bytes: u64,
}

/// Asks for one range again, to mend a damaged copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// The log.
    pub log: LogId,
    /// The life of the log.
    pub incarnation: Incarnation,
    /// The position before the first one wanted.
    pub after: Position,
    /// The last position wanted.
    pub until: Position,
}

/// Blocks of one log, verbatim, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The newest promise of the log that these blocks fulfil, if there is one.
    pub promise: Option<Promise>,
    /// At least one block.
    pub blocks: Vec<Block>,
}

/// Everything that can be said on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Opens the control stream.
    Hello(Hello),
    /// Accepts a [`Message::Hello`].
    Welcome(Hello),
    /// Refuses a [`Message::Hello`], or the answer to one.
    Refused(Refusal),
    /// What the sender holds.
    Vector(Vector),
    /// What the sender knows to be complete.
    Heartbeat(Heartbeat),
    /// Opens a subscription's stream.
    Subscribe(Subscribe),
    /// Accepts a [`Message::Subscribe`].
    Subscribed(Subscribed),
    /// Refuses or ends a subscription or a fetch.
    NotServed(NotServed),
    /// What was asked for.
    Blocks(Blocks),
    /// What became durable at the receiver.
    Ack(Ack),
    /// Opens a fetch's stream.
    Fetch(Fetch),
    /// How far the order is settled.
    Settled(Settled),
    /// How far regions have settled the order, and who took part.
    SettledUnder(SettledUnder),
    /// What the settled order came to, and who took part.
    AgreementUnder(AgreementUnder),
    /// What the settled order came to.
    Agreement(Agreement),
    /// Which start of the sender this is.
    Start(Start),
    /// What the sender has of the receiver's own logs, durable or not.
    Taken(Taken),
    /// Opens a stream with a question of the control plane's, whose bytes mean nothing to the link.
    Ask(Bytes),
    /// The answer to it.
    Answer(Bytes),
}

impl Message {
    /// The number that stands in the frame's header.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Welcome(_) => 2,
            Self::Refused(_) => 3,
            Self::Vector(_) => 4,
            Self::Heartbeat(_) => 5,
            Self::Subscribe(_) => 6,
            Self::Subscribed(_) => 7,
            Self::NotServed(_) => 8,
            Self::Blocks(_) => 9,
            Self::Ack(_) => 10,
            Self::Fetch(_) => 11,
            Self::Settled(_) => 12,
            Self::Agreement(_) => 13,
            Self::Start(_) => 14,
            Self::Taken(_) => 15,
            Self::Ask(_) => 16,
            Self::Answer(_) => 17,
            Self::SettledUnder(_) => 18,
            Self::AgreementUnder(_) => 19,
        }
    }

    /// What it is called, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Welcome(_) => "Welcome",
            Self::Refused(_) => "Refused",
            Self::Vector(_) => "Vector",
            Self::Heartbeat(_) => "Heartbeat",
            Self::Subscribe(_) => "Subscribe",
            Self::Subscribed(_) => "Subscribed",
            Self::NotServed(_) => "NotServed",
            Self::Blocks(_) => "Blocks",
            Self::Ack(_) => "Ack",
            Self::Fetch(_) => "Fetch",
            Self::Settled(_) => "Settled",
            Self::Agreement(_) => "Agreement",
            Self::Start(_) => "Start",
            Self::Taken(_) => "Taken",
            Self::Ask(_) => "Ask",
            Self::Answer(_) => "Answer",
            Self::SettledUnder(_) => "SettledUnder",
            Self::AgreementUnder(_) => "AgreementUnder",
        }
    }

    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        let kind = self.kind();
        match self {
            Self::Hello(hello) | Self::Welcome(hello) => frame::encode_message(kind, hello),
            Self::Refused(refusal) => frame::encode_message(kind, refusal),
            Self::Vector(vector) => frame::encode_message(kind, vector),
            Self::Heartbeat(heartbeat) => frame::encode_message(kind, heartbeat),
            Self::Subscribe(subscribe) => frame::encode_message(kind, subscribe),
            Self::Subscribed(subscribed) => frame::encode_message(kind, subscribed),
            Self::NotServed(reason) => frame::encode_message(kind, reason),
            Self::Ack(ack) => frame::encode_message(kind, ack),
            Self::Fetch(fetch) => frame::encode_message(kind, fetch),
            Self::Settled(settled) => frame::encode_message(kind, settled),
            Self::SettledUnder(settled) => frame::encode_message(kind, settled),
            Self::AgreementUnder(agreement) => frame::encode_message(kind, agreement),
            Self::Agreement(agreement) => frame::encode_message(kind, agreement),
            Self::Start(start) => frame::encode_message(kind, start),
            Self::Taken(taken) => frame::encode_message(kind, taken),
            Self::Ask(body) | Self::Answer(body) => {
                let mut out = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
                frame::encode_into(&mut out, kind, body);
                out
            }
            Self::Blocks(blocks) => {
                let mut body = postcard::to_stdvec(&blocks.promise).unwrap_or_default();
                let block_bytes: usize = blocks.blocks.iter().map(|b| b.bytes().len()).sum();
                body.reserve(block_bytes);
                for block in &blocks.blocks {
                    body.extend_from_slice(block.bytes());
                }
                let mut out = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
                frame::encode_into(&mut out, kind, &body);
                out
            }
        }
    }

    /// Reads the body of a frame whose header and checksum are sound.
    ///
    /// # Errors
    /// When the kind is unknown, or the body is not one of that kind.
    pub fn decode(kind: u8, body: &Bytes) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => Self::Hello(frame::decode_message(kind, body)?),
            2 => Self::Welcome(frame::decode_message(kind, body)?),
            3 => Self::Refused(frame::decode_message(kind, body)?),
            4 => Self::Vector(frame::decode_message(kind, body)?),
            5 => Self::Heartbeat(frame::decode_message(kind, body)?),
            6 => Self::Subscribe(frame::decode_message(kind, body)?),
            7 => Self::Subscribed(frame::decode_message(kind, body)?),
            8 => Self::NotServed(frame::decode_message(kind, body)?),
            9 => Self::Blocks(decode_blocks(kind, body)?),
            10 => Self::Ack(frame::decode_message(kind, body)?),
            11 => Self::Fetch(frame::decode_message(kind, body)?),
            12 => Self::Settled(frame::decode_message(kind, body)?),
            13 => Self::Agreement(frame::decode_message(kind, body)?),
            14 => Self::Start(frame::decode_message(kind, body)?),
            15 => Self::Taken(frame::decode_message(kind, body)?),
            16 => Self::Ask(body.clone()),
            17 => Self::Answer(body.clone()),
            18 => Self::SettledUnder(frame::decode_message(kind, body)?),
            19 => Self::AgreementUnder(frame::decode_message(kind, body)?),
            _ => return Err(FrameError::UnknownKind { kind }),
        })
    }
}

fn decode_blocks(kind: u8, body: &Bytes) -> Result<Blocks, FrameError> {
    let fail = |reason: String| FrameError::Body { kind, reason };
    let (promise, rest) = postcard::take_from_bytes::<Option<Promise>>(body)
        .map_err(|error| fail(error.to_string()))?;
    let mut rest = body.slice_ref(rest);
    let mut blocks = Vec::new();
    while !rest.is_empty() {
        let block = Block::parse(&rest).map_err(|error| fail(error.to_string()))?;
        rest = rest.slice(block.bytes().len()..);
        blocks.push(block);
    }
    if blocks.is_empty() {
        return Err(fail("it has no blocks".to_owned()));
    }
    Ok(Blocks { promise, blocks })
}

/// Every log of a federation, own ones included, in ascending order.
pub(crate) fn all_logs(
    regions: impl IntoIterator<Item = RegionId>,
    partitions: u16,
) -> impl Iterator<Item = LogId> {
    regions.into_iter().flat_map(move |origin| {
        (0..partitions).map(move |partition| LogId::new(origin, PartitionId(partition)))
    })
}

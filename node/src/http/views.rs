//! What HTTP answers hold, field by field.

use meridian_client::{Appended, Awaited, SessionToken};
use meridian_clock::{Dot, Epoch};
use meridian_conflict::{HomeRule, Isolation, Kind, Mode};
use meridian_event::RecordedEvent;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::Door;
use crate::CategoryReport;
use crate::shown::rfc3339;

/// An event as it was written.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub(super) struct EventView {
    /// The id its writer gave it, or that was made for it: a UUID.
    #[schema(format = "uuid")]
    id: String,
    /// The stream it belongs to.
    stream: String,
    /// Its place in the stream: 0, 1, 2… In a stream that every region may write, its place among
    /// the events of its origin.
    revision: u64,
    /// What happened.
    #[serde(rename = "type")]
    event_type: String,
    /// Any JSON, as its writer sent it.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// Any JSON, as its writer sent it; null when there is none.
    #[schema(value_type = serde_json::Value)]
    metadata: Option<Box<RawValue>>,
    /// The name of the region that wrote it first.
    origin: String,
    /// The partition of its stream.
    partition: u16,
    /// Its place in the log of its origin and partition: 1, 2, 3…
    position: u64,
    /// The hybrid logical clock's reading when its batch was written, a decimal number: NTP64,
    /// seconds since 1970 in the upper 32 bits and their fraction in the lower.
    timestamp: String,
    /// The wall-clock part of `timestamp`, RFC 3339.
    #[schema(format = "date-time")]
    recorded_at: String,
}

impl EventView {
    pub(super) fn new(event: &RecordedEvent, door: &Door) -> Self {
        Self {
            id: event.id.to_string(),
            stream: event.stream.to_string(),
            revision: event.revision.0,
            event_type: event.event_type.to_string(),
            data: raw_json(&event.data),
            metadata: (!event.metadata.is_empty()).then(|| raw_json(&event.metadata)),
            origin: door.region_name(event.dot.origin),
            partition: event.dot.partition.0,
            position: event.dot.position.0,
            timestamp: event.timestamp.to_string(),
            recorded_at: rfc3339(event.timestamp),
        }
    }
}

/// The JSON text in `bytes`. Every door takes JSON only; what is none all the same came from a
/// broken peer and is shown as a string rather than hidden.
pub(super) fn raw_json(bytes: &[u8]) -> Box<RawValue> {
    serde_json::from_slice(bytes)
        .or_else(|_| serde_json::value::to_raw_value(&String::from_utf8_lossy(bytes)))
        .unwrap_or_default()
}

/// Who may write: a failover raises `major`, a planned move raises `minor`.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = Epoch)]
pub(super) struct EpochView {
    /// Raised by a failover.
    major: u32,
    /// Raised by a planned move.
    minor: u32,
}

impl From<Epoch> for EpochView {
    fn from(epoch: Epoch) -> Self {
        Self {
            major: epoch.major,
            minor: epoch.minor,
        }
    }
}

/// An event's identity in the federation.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Dot)]
pub(super) struct DotView {
    /// The name of the region that wrote it first.
    origin: String,
    /// The partition of its stream.
    partition: u16,
    /// Its place in that origin log.
    position: u64,
}

impl DotView {
    fn new(dot: Dot, door: &Door) -> Self {
        Self {
            origin: door.region_name(dot.origin),
            partition: dot.partition.0,
            position: dot.position.0,
        }
    }
}

/// What became durable.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Appended)]
pub(super) struct AppendedView {
    /// The stream the events are in.
    stream: String,
    /// The first event's revision.
    first_revision: u64,
    /// The last event's revision.
    last_revision: u64,
    /// The name of the region that gave out the revisions.
    home: String,
    /// Each event's identity, in the sequence of the request.
    dots: Vec<DotView>,
    /// When the batch was written: the hybrid logical clock's reading, a decimal number.
    timestamp: String,
    /// The level that was reached: `region`, `regions:N` or `all`.
    durability: String,
    /// Whether a failover of the home could still set these events aside.
    could_strand: bool,
    /// What the writer has seen now, these events included. Sent as the header `Meridian-Session`
    /// to any region, it makes them visible there, or the answer is `stale`.
    token: String,
}

impl AppendedView {
    pub(super) fn new(appended: &Appended, token: &SessionToken, door: &Door) -> Self {
        Self {
            stream: appended.stream.to_string(),
            first_revision: appended.first_revision.0,
            last_revision: appended.last_revision.0,
            home: door.region_name(appended.home),
            dots: appended
                .dots
                .iter()
                .map(|dot| DotView::new(*dot, door))
                .collect(),
            timestamp: appended.timestamp.to_string(),
            durability: appended.durability.to_string(),
            could_strand: appended.could_strand,
            token: token.0.clone(),
        }
    }
}

/// How far an event came that was waited for.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Awaited)]
pub(super) struct AwaitedView {
    /// Whether the event is settled in that region.
    reached: bool,
    /// Up to where the tier is settled there: a timestamp, a decimal number.
    watermark: String,
    /// When the event was written; null when it has not arrived there.
    timestamp: Option<String>,
    /// The region's name.
    region: String,
    /// How long it was waited for.
    waited_ms: u64,
}

impl AwaitedView {
    pub(super) fn new(awaited: &Awaited, door: &Door) -> Self {
        Self {
            reached: awaited.reached,
            watermark: awaited.watermark.to_string(),
            timestamp: awaited.timestamp.map(|at| at.to_string()),
            region: door.region_name(awaited.region),
            waited_ms: awaited.waited_ms,
        }
    }
}

/// A page of one stream.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = StreamPage)]
pub(super) struct StreamPageView {
    /// The events, in the direction asked for. None when the stream has none here (yet).
    pub(super) events: Vec<EventView>,
    /// The next page's `from`; null when reading backwards has reached the beginning.
    pub(super) next: Option<u64>,
    /// Whether there was nothing more in this direction when it was read.
    pub(super) end: bool,
}

/// A page of the events of all streams.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = EventsPage)]
pub(super) struct EventsPageView {
    /// The events, possibly none although there are more: the filter wanted none of a long stretch.
    pub(super) events: Vec<EventView>,
    /// The next page's `after`. In tier `live` good only at the region that gave it; in `stable` and
    /// `final` an order key, `timestamp.region.partition.position`, and good in every region.
    pub(super) cursor: String,
    /// The timestamp up to which the tier is complete; null in tier `live`, which has none.
    pub(super) watermark: Option<String>,
    /// Whether there was nothing more when it was read.
    pub(super) end: bool,
}

/// Who orders a stream.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Home)]
pub(super) struct HomeView {
    /// The stream.
    pub(super) stream: String,
    /// How writes to it are settled.
    pub(super) mode: ModeView,
    /// The name of its home region; null when every region may write it, or when its home is where it is created
    /// and this node knows of nobody who did.
    pub(super) home: Option<String>,
    /// By which rule, unless it was moved; null when every region may write it.
    pub(super) rule: Option<HomeRuleView>,
    /// The region that created it, where its home rests on that and this node knows it; null otherwise.
    pub(super) creator: Option<String>,
    /// Since which epoch.
    pub(super) epoch: EpochView,
    /// The region that it comes from, while that has not handed it over; null otherwise.
    pub(super) moving_from: Option<String>,
}

/// How writes to a category's streams are settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[schema(as = Mode)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ModeView {
    /// One home region gives out revisions.
    Home,
    /// Every region writes; the later write wins.
    Lww,
    /// Every region writes; operations merge.
    Crdt,
}

impl From<Mode> for ModeView {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Home => Self::Home,
            Mode::Lww => Self::Lww,
            Mode::Crdt => Self::Crdt,
        }
    }
}

impl From<ModeView> for Mode {
    fn from(mode: ModeView) -> Self {
        match mode {
            ModeView::Home => Self::Home,
            ModeView::Lww => Self::Lww,
            ModeView::Crdt => Self::Crdt,
        }
    }
}

/// Which region is home to a category's streams.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[schema(as = HomeRule)]
#[serde(rename_all = "kebab-case")]
pub(super) enum HomeRuleView {
    /// Spread over the members by the stream's name.
    Hash,
    /// Always the region of this name.
    Fixed(String),
    /// The region where the stream's first event was written.
    Creator,
}

impl HomeRuleView {
    pub(super) fn new(rule: &HomeRule, door: &Door) -> Self {
        match rule {
            HomeRule::Hash => Self::Hash,
            HomeRule::Fixed(region) => Self::Fixed(door.region_name(*region)),
            HomeRule::Creator => Self::Creator,
        }
    }
}

/// What a home does that cannot reach a majority of the regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = Isolation)]
pub(super) enum IsolationView {
    /// It goes on taking writes, which are set aside if the others go on without it.
    Available,
    /// It refuses writes; what it acknowledged is never set aside.
    Fenced,
}

/// The policy of one category.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Category)]
pub(super) struct CategoryView {
    /// Its name: the part of its streams' names before the first `-`.
    category: String,
    /// How writes to its streams are settled.
    mode: ModeView,
    /// Who is home to them; null when every region may write them.
    home: Option<HomeRuleView>,
    /// What a home does that cannot reach a majority of the regions; null when every region may write them.
    isolation: Option<IsolationView>,
    /// What its streams are; null when one region orders each, or they are kept as they come, unmerged.
    r#type: Option<&'static str>,
    /// While another policy is being set: the regions that have not said yet that they hold no events of the
    /// category. Nobody writes it meanwhile.
    waits_for: Vec<String>,
}

impl CategoryView {
    pub(super) fn new(category: &str, report: CategoryReport, door: &Door) -> Self {
        let policy = &report.policy;
        let home = match policy.mode {
            Mode::Lww | Mode::Crdt => None,
            Mode::Home => Some(HomeRuleView::new(&policy.home, door)),
        };
        let isolation = match (policy.mode, report.isolation) {
            (Mode::Lww | Mode::Crdt, _) => None,
            (Mode::Home, Isolation::Available) => Some(IsolationView::Available),
            (Mode::Home, Isolation::Fenced) => Some(IsolationView::Fenced),
        };
        Self {
            category: category.to_owned(),
            mode: policy.mode.into(),
            home,
            isolation,
            r#type: report.kind.map(Kind::name),
            waits_for: report.waits_for,
        }
    }
}

/// The categories whose policy is set; every other one is `home` by `hash`.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Categories)]
pub(super) struct CategoriesView {
    /// Their policies, by name.
    pub(super) categories: Vec<CategoryView>,
}

/// That all is well.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = Health)]
pub(super) struct HealthView {
    /// `ok`.
    #[schema(value_type = String)]
    pub(super) status: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_shown_as_it_was_sent() {
        let sent = r#"{"b": 1.10,  "a":[1e400, "\u00e9"]}"#;
        assert_eq!(raw_json(sent.as_bytes()).get(), sent);
    }

    #[test]
    fn bytes_that_are_no_json_are_shown_rather_than_hidden() {
        assert_eq!(raw_json(b"{oops").get(), r#""{oops""#);
    }
}

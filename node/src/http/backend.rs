//! What the HTTP door needs of the node behind it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_client::{
    AppendError, AppendRequest, Appended, AwaitSettled, Awaited, EventFilter, Limits, LiveCursor,
    ReadError, Reservation, ReservationKey, ReserveError, SessionToken, SettledTier, StateTier,
    StreamPage, StreamRead,
};
use meridian_clock::{OrderKey, RegionId, Timestamp};
use meridian_conflict::{CategoryPolicy, Isolation, Kind};
use meridian_event::{EventId, RecordedEvent, StreamId};
use meridian_replication::link::Marks;
use tokio::sync::watch;
use uuid::Uuid;

use crate::live;
use crate::metrics::Metrics;
use crate::projections::Projections;
use crate::reads::unreadable;
use crate::seams::BoxFuture;
use crate::session::{Seen, Shown};
use crate::{
    CategoryReport, Conflicts, Consumers, DigestEntry, FenceReport, MembershipReport, MoveError,
    Node, NodeStatus, OrderReason, RegionStanding, StateReport, StreamHome, WhyError,
};

/// How settled the events are that a reader sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tier {
    /// All that is held here, in the order it arrived.
    #[default]
    Live,
    /// The one order, as far as it is settled.
    Settled(SettledTier),
}

/// A page of events that is asked for.
#[derive(Clone, Debug, Default)]
pub struct EventsRead {
    /// How settled they must be.
    pub tier: Tier,
    /// Read on after this cursor of the same tier; from the beginning when it is empty.
    pub after: String,
    /// Which events are wanted.
    pub filter: EventFilter,
    /// The most events wanted.
    pub limit: u32,
}

/// A page of events.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// The events, possibly none, each with the cursor that stands right after it.
    pub events: Vec<(String, RecordedEvent)>,
    /// Where to read on. It moves even when the filter wanted nothing.
    pub cursor: String,
    /// Up to where the tier was settled; `None` for the live tier.
    pub watermark: Option<Timestamp>,
    /// Whether there was nothing more when it was read.
    pub at_end: bool,
}

/// Tells when there may be more to read in a tier.
#[derive(Clone, Debug)]
pub enum Changes {
    /// Something became durable.
    Committed(watch::Receiver<u64>),
    /// A watermark rose.
    Settled(watch::Receiver<Arc<Marks>>),
}

impl Changes {
    /// What happened so far is known.
    pub fn seen(&mut self) {
        match self {
            Self::Committed(changes) => drop(changes.borrow_and_update()),
            Self::Settled(changes) => drop(changes.borrow_and_update()),
        }
    }

    /// Waits for the next change; false when there will be none.
    pub async fn changed(&mut self) -> bool {
        match self {
            Self::Committed(changes) => changes.changed().await.is_ok(),
            Self::Settled(changes) => changes.changed().await.is_ok(),
        }
    }
}

/// The node, as the HTTP door sees it; tests put their own in its place.
pub trait Backend: Send + Sync + 'static {
    /// Appends a batch wherever its stream is ordered.
    fn append(&self, request: AppendRequest) -> BoxFuture<'_, Result<Appended, AppendError>>;

    /// Reads a page of one stream, from what is held here.
    fn read_stream(&self, read: StreamRead) -> BoxFuture<'_, Result<StreamPage, ReadError>>;

    /// Reads a page of a tier, without waiting for more.
    fn read_events(&self, read: EventsRead) -> BoxFuture<'_, Result<Events, ReadError>>;

    /// Changes whenever something more can be read in a tier.
    fn changes(&self, tier: Tier) -> Changes;

    /// What the holder of these tokens has seen.
    ///
    /// # Errors
    /// When one of them is not the federation's.
    fn seen(&self, tokens: &str) -> Result<Seen, ReadError>;

    /// A token for what was seen.
    fn token(&self, seen: &Seen) -> SessionToken;

    /// Waits, up to `wait`, until reads of `shown` show everything that was seen.
    fn catch_up<'a>(
        &'a self,
        seen: &'a Seen,
        shown: Shown<'a>,
        wait: Duration,
    ) -> BoxFuture<'a, Result<(), ReadError>>;

    /// Waits until an event is settled in a region.
    fn await_settled(&self, asked: AwaitSettled) -> BoxFuture<'_, Result<Awaited, ReadError>>;

    /// What this node knows of itself and its federation.
    fn status(&self) -> NodeStatus;

    /// What each origin log holds here.
    fn digest(&self) -> Vec<DigestEntry>;

    /// Which of two events stands first, and why.
    ///
    /// # Errors
    /// When one of them is no event, is not held here, or cannot be read.
    fn why_order(&self, a: &str, b: &str) -> Result<OrderReason, WhyError>;

    /// The projections of this region, if it has a place for any.
    fn projections(&self) -> Option<Arc<Projections>>;

    /// The consumer groups, if it has a place for any.
    fn consumers(&self) -> Option<Arc<Consumers>>;

    /// The conflict records, if it has a place for any.
    fn conflicts(&self) -> Option<Arc<Conflicts>>;

    /// All member regions and their names.
    fn regions(&self) -> BTreeMap<RegionId, String>;

    /// Which region orders `stream`.
    fn stream_home(&self, stream: &StreamId) -> StreamHome;

    /// The streams that were ever moved, from the one behind `after` on.
    fn moved_streams(&self, after: Option<&StreamId>, limit: usize) -> Vec<StreamHome>;

    /// Moves streams to the region called `to`, and waits so long until it has opened them.
    fn move_homes(
        &self,
        streams: Vec<StreamId>,
        to: String,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Vec<StreamHome>, MoveError>>;

    /// Drains the region called `name`, or resumes it; whether all that moves has been opened by then.
    fn set_drained(
        &self,
        name: String,
        drained: bool,
        wait: Duration,
    ) -> BoxFuture<'_, Result<bool, MoveError>>;

    /// How the region called `name` stands.
    ///
    /// # Errors
    /// When there is no such region.
    fn region_standing(&self, name: &str) -> Result<RegionStanding, MoveError>;

    /// Puts the region called `name` out; see [`Node::fence_region`].
    fn fence(
        &self,
        name: String,
        force: bool,
        evict: bool,
        wait: Duration,
    ) -> BoxFuture<'_, Result<FenceReport, MoveError>>;

    /// Makes the region called `name` a member; see [`Node::join_region`].
    fn join(
        &self,
        name: String,
        wait: Duration,
    ) -> BoxFuture<'_, Result<MembershipReport, MoveError>>;

    /// Lets the region called `name` go for good; see [`Node::leave_region`].
    fn leave(
        &self,
        name: String,
        force: bool,
        wait: Duration,
    ) -> BoxFuture<'_, Result<MembershipReport, MoveError>>;

    /// The policies that were set, by category.
    fn categories(&self) -> BTreeMap<String, CategoryPolicy>;

    /// What `stream` comes to.
    fn read_state(
        &self,
        stream: StreamId,
        tier: StateTier,
    ) -> BoxFuture<'_, Result<StateReport, ReadError>>;

    /// The region that answers.
    fn region(&self) -> RegionId;

    /// Reserves `key` for `owner`, as [`Node::reserve`] does.
    fn reserve(
        &self,
        key: ReservationKey,
        owner: String,
        hold_for: Option<Duration>,
        id: Option<Uuid>,
    ) -> BoxFuture<'_, Result<Reservation, ReserveError>>;

    /// Releases `key`, as [`Node::release`] does.
    fn release(
        &self,
        key: ReservationKey,
        owner: String,
        id: Option<Uuid>,
    ) -> BoxFuture<'_, Result<(bool, RegionId), ReserveError>>;

    /// Who holds `key`, as far as is known here.
    ///
    /// # Errors
    /// When that cannot be read.
    fn reservation(&self, key: &ReservationKey) -> Result<Option<Reservation>, ReadError>;

    /// How `category` stands.
    fn category(&self, category: &str) -> CategoryReport;

    /// Sets the policy of `category`, as [`Node::set_category`] does.
    fn set_category(
        &self,
        category: String,
        policy: CategoryPolicy,
        isolation: Isolation,
        kind: Option<Kind>,
        wait: Duration,
    ) -> BoxFuture<'_, Result<CategoryReport, MoveError>>;

    /// The largest requests that are taken.
    fn limits(&self) -> Limits;

    /// Whether the node can do its work, or what is in the way.
    ///
    /// # Errors
    /// The reason why it cannot.
    fn ready(&self) -> Result<(), String>;

    /// What the node counts, with everything that can be asked for at any time brought up to date.
    fn metrics(&self) -> &Metrics;

    /// Brings up to date what only changes the metrics when it is asked for.
    fn refresh_metrics(&self);

    /// An id for an event that came without one.
    fn event_id(&self) -> EventId;

    /// The physical clock, for the header `Date`.
    fn wall_clock(&self) -> Timestamp;
}

impl Backend for Node {
    fn append(&self, request: AppendRequest) -> BoxFuture<'_, Result<Appended, AppendError>> {
        Box::pin(Self::append(self, request))
    }

    fn read_stream(&self, read: StreamRead) -> BoxFuture<'_, Result<StreamPage, ReadError>> {
        Box::pin(async move { Self::read_stream(self, &read) })
    }

    fn read_events(&self, read: EventsRead) -> BoxFuture<'_, Result<Events, ReadError>> {
        Box::pin(async move {
            let limit = read.limit as usize;
            match read.tier {
                Tier::Live => {
                    let after = self.read_cursor(&LiveCursor(read.after))?;
                    let page = live::read_live(self.store(), after, &read.filter, limit)
                        .map_err(unreadable)?;
                    let written = |cursor| self.cursors().write(cursor);
                    let events = page.events.into_iter();
                    Ok(Events {
                        events: events
                            .map(|(cursor, event)| (written(cursor), event))
                            .collect(),
                        cursor: written(page.cursor),
                        watermark: None,
                        at_end: page.at_end,
                    })
                }
                Tier::Settled(tier) => {
                    let after = order_key(&read.after)?;
                    let until = self.watermark(tier);
                    let page = self.feeds().read(after, until, &read.filter, limit)?;
                    let cursor = |event: &RecordedEvent| {
                        OrderKey::new(event.timestamp, event.dot).to_string()
                    };
                    let events = page.events.into_iter();
                    Ok(Events {
                        events: events.map(|event| (cursor(&event), event)).collect(),
                        cursor: page.cursor.to_string(),
                        watermark: Some(page.watermark),
                        at_end: page.at_end,
                    })
                }
            }
        })
    }

    fn changes(&self, tier: Tier) -> Changes {
        match tier {
            Tier::Live => Changes::Committed(self.committed()),
            Tier::Settled(_) => Changes::Settled(self.marks()),
        }
    }

    fn seen(&self, tokens: &str) -> Result<Seen, ReadError> {
        Self::seen(self, tokens)
    }

    fn token(&self, seen: &Seen) -> SessionToken {
        self.session_seal().write(seen)
    }

    fn catch_up<'a>(
        &'a self,
        seen: &'a Seen,
        shown: Shown<'a>,
        wait: Duration,
    ) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(Self::catch_up(self, seen, shown, wait))
    }

    fn await_settled(&self, asked: AwaitSettled) -> BoxFuture<'_, Result<Awaited, ReadError>> {
        Box::pin(Self::await_settled(self, asked))
    }

    fn status(&self) -> NodeStatus {
        Self::status(self)
    }

    fn digest(&self) -> Vec<DigestEntry> {
        Self::digest(self)
    }

    fn why_order(&self, a: &str, b: &str) -> Result<OrderReason, WhyError> {
        Self::why_order(self, a, b)
    }

    fn projections(&self) -> Option<Arc<Projections>> {
        Some(Arc::clone(Self::projections(self)))
    }

    fn consumers(&self) -> Option<Arc<Consumers>> {
        Some(Arc::clone(Self::consumers(self)))
    }

    fn conflicts(&self) -> Option<Arc<Conflicts>> {
        Some(Arc::clone(Self::conflicts(self)))
    }

    fn regions(&self) -> BTreeMap<RegionId, String> {
        self.region_names().clone()
    }

    fn stream_home(&self, stream: &StreamId) -> StreamHome {
        Self::stream_home(self, stream)
    }

    fn moved_streams(&self, after: Option<&StreamId>, limit: usize) -> Vec<StreamHome> {
        Self::moved_streams(self, after, limit)
    }

    fn move_homes(
        &self,
        streams: Vec<StreamId>,
        to: String,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Vec<StreamHome>, MoveError>> {
        Box::pin(async move { Self::move_homes(self, streams, &to, wait).await })
    }

    fn set_drained(
        &self,
        name: String,
        drained: bool,
        wait: Duration,
    ) -> BoxFuture<'_, Result<bool, MoveError>> {
        Box::pin(async move { Self::set_drained(self, &name, drained, wait).await })
    }

    fn region_standing(&self, name: &str) -> Result<RegionStanding, MoveError> {
        Self::region_standing(self, name)
    }

    fn fence(
        &self,
        name: String,
        force: bool,
        evict: bool,
        wait: Duration,
    ) -> BoxFuture<'_, Result<FenceReport, MoveError>> {
        Box::pin(async move { self.fence_region(&name, force, evict, wait).await })
    }

    fn join(
        &self,
        name: String,
        wait: Duration,
    ) -> BoxFuture<'_, Result<MembershipReport, MoveError>> {
        Box::pin(async move { self.join_region(&name, wait).await })
    }

    fn leave(
        &self,
        name: String,
        force: bool,
        wait: Duration,
    ) -> BoxFuture<'_, Result<MembershipReport, MoveError>> {
        Box::pin(async move { self.leave_region(&name, force, wait).await })
    }

    fn categories(&self) -> BTreeMap<String, CategoryPolicy> {
        self.policies().categories().clone()
    }

    fn read_state(
        &self,
        stream: StreamId,
        tier: StateTier,
    ) -> BoxFuture<'_, Result<StateReport, ReadError>> {
        Box::pin(async move { Self::read_state(self, &stream, tier).await })
    }

    fn region(&self) -> RegionId {
        self.config().region
    }

    fn reserve(
        &self,
        key: ReservationKey,
        owner: String,
        hold_for: Option<Duration>,
        id: Option<Uuid>,
    ) -> BoxFuture<'_, Result<Reservation, ReserveError>> {
        Box::pin(async move { Self::reserve(self, key, &owner, hold_for, id).await })
    }

    fn release(
        &self,
        key: ReservationKey,
        owner: String,
        id: Option<Uuid>,
    ) -> BoxFuture<'_, Result<(bool, RegionId), ReserveError>> {
        Box::pin(async move { Self::release(self, key, &owner, id).await })
    }

    fn reservation(&self, key: &ReservationKey) -> Result<Option<Reservation>, ReadError> {
        Self::reservation(self, key)
    }

    fn category(&self, category: &str) -> CategoryReport {
        Self::category(self, category)
    }

    fn set_category(
        &self,
        category: String,
        policy: CategoryPolicy,
        isolation: Isolation,
        kind: Option<Kind>,
        wait: Duration,
    ) -> BoxFuture<'_, Result<CategoryReport, MoveError>> {
        Box::pin(
            async move { Self::set_category(self, &category, policy, isolation, kind, wait).await },
        )
    }

    fn limits(&self) -> Limits {
        self.config().limits
    }

    fn ready(&self) -> Result<(), String> {
        Self::ready(self)
    }

    fn metrics(&self) -> &Metrics {
        Self::metrics(self)
    }

    fn refresh_metrics(&self) {
        Self::refresh_metrics(self);
    }

    fn event_id(&self) -> EventId {
        let mut bytes = [0; 16];
        self.random().fill(&mut bytes);
        EventId::from_random(bytes)
    }

    fn wall_clock(&self) -> Timestamp {
        self.hlc().physical_now()
    }
}

// A place in the one order; the beginning when there is none.
fn order_key(text: &str) -> Result<OrderKey, ReadError> {
    if text.is_empty() {
        return Ok(OrderKey::ZERO);
    }
    text.parse::<OrderKey>().map_err(|_| ReadError::Invalid {
        reason: format!(
            "{text:?} is not a cursor of the tiers stable and final; use one that was given with \
             these tiers, by whichever region, or none to begin at the beginning"
        ),
    })
}

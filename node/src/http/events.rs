//! `GET /v1/events`: everything that is held here, by pages or followed as it comes.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use meridian_client::{EventFilter, SettledTier};
use meridian_event::{Category, EventType};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::following::{Place, beginning, event_stream, wants_event_stream};
use super::params::{Params, check_limit};
use super::problem::Problem;
use super::session::Session;
use super::views::{EventView, EventsPageView};
use super::{Changes, Door, EventsRead, Tier, sse};
use crate::session::Shown;

/// How many events a follower is sent in one go.
const FOLLOW_PAGE_EVENTS: u32 = 256;

/// Which events, from where.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsParams {
    /// How settled the events must be; `live` by default.
    #[serde(default)]
    #[param(inline)]
    tier: TierParam,
    /// Read on after this `cursor`; from the beginning by default. One of `live` is good in the region
    /// that gave it, one of `stable` and `final` in every region. The header `Last-Event-ID` goes
    /// before it.
    after: Option<String>,
    /// The most events: of a page (100 by default), or of an event stream (no end by default).
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<u32>,
    /// Only events of this category's streams.
    #[param(value_type = Option<String>)]
    category: Option<Category>,
    /// Only events of this type.
    #[serde(rename = "type")]
    #[param(value_type = Option<String>)]
    event_type: Option<EventType>,
}

/// How settled the events are that a reader sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = Tier)]
enum TierParam {
    /// All that is held here, in the order it arrived.
    #[default]
    Live,
    /// What no earlier event can still come before, in the same order in every region.
    Stable,
    /// What every region knows to be stable.
    Final,
}

impl From<TierParam> for Tier {
    fn from(tier: TierParam) -> Self {
        match tier {
            TierParam::Live => Self::Live,
            TierParam::Stable => Self::Settled(SettledTier::Stable),
            TierParam::Final => Self::Settled(SettledTier::Final),
        }
    }
}

/// Reads the events of all streams
///
/// A page at a time: in tier `live` all that this region holds, in the order it arrived here; in
/// `stable` and `final` the one order that is the same in every region, as far as it is settled. With `Accept: text/event-stream` the answer goes
/// on with what comes, one message per event with its cursor as `id`; `Last-Event-ID` resumes. A
/// message named `error` holds a problem and ends the stream. A session's token is waited for before
/// the first message, and stands for what was sent by then; after that the cursor says where one is.
#[utoipa::path(
    get,
    path = "/v1/events",
    operation_id = "read_events",
    tag = "events",
    params(
        EventsParams,
        ("Last-Event-ID" = Option<String>, Header, description = "Read on after this cursor; goes before `after`"),
        ("Meridian-Session" = Option<String>, Header, description = "What this caller has seen: the token of an earlier answer, from whichever region; several with commas between them"),
        ("Meridian-Wait-Ms" = Option<u32>, Header, description = "How long this region may take to catch up with the token before it answers `stale`: 0 to 30000, 2000 by default"),
    ),
    responses(
        (status = 200, description = "A page, or an event stream", content(
            (EventsPageView = "application/json"),
            (EventView = "text/event-stream"),
        ), headers(("Meridian-Session" = String, description = "A token for what the request's token stands for and what this answer shows"))),
        (status = 400, description = "`invalid`: the request is wrong as it stands", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`stale`: this region does not hold yet what the token stands for; `unavailable`: it cannot be read here now; see `Retry-After`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn read(
    State(door): State<Door>,
    headers: HeaderMap,
    Params(params): Params<EventsParams>,
    mut session: Session,
) -> Result<Response, Problem> {
    let after = match headers.get("last-event-id") {
        Some(id) => Some(
            id.to_str()
                .map_err(|_| Problem::invalid("the header Last-Event-ID is no cursor"))?
                .to_owned(),
        ),
        None => params.after,
    };
    let mut read = EventsRead {
        tier: params.tier.into(),
        after: after.unwrap_or_default(),
        filter: EventFilter {
            category: params.category,
            event_type: params.event_type,
        },
        limit: 0,
    };
    let limit = params.limit.map(|limit| check_limit(Some(limit)));
    if wants_event_stream(&headers) {
        let remaining = limit.transpose()?;
        session.catch_up(&door, Shown::Tier(read.tier)).await?;
        return follow(door, read, remaining, session).await;
    }

    read.limit = limit.unwrap_or_else(|| check_limit(None))?;
    session.catch_up(&door, Shown::Tier(read.tier)).await?;
    let page = door
        .backend
        .read_events(read)
        .await
        .map_err(|error| Problem::of_read(&error))?;
    session
        .seen
        .read(page.events.iter().map(|(_, event)| event));
    let view = EventsPageView {
        events: page
            .events
            .iter()
            .map(|(_, event)| EventView::new(event, &door))
            .collect(),
        cursor: page.cursor,
        watermark: page.watermark.map(|at| at.to_string()),
        end: page.at_end,
    };
    Ok((session.header(&door), Json(view)).into_response())
}

/// One client that follows on.
///
/// It holds a place in the log and nothing else: the next page is read when the client took the
/// one before, so a slow client costs a page, and one far behind reads from disk at its own pace.
struct Follower {
    door: Door,
    changes: Changes,
    read: EventsRead,
    remaining: Option<u32>,
    // Cleared once the stream is over.
    going: bool,
    // What was shown so far; it is told once, when the stream begins.
    session: Session,
    _place: Place,
}

/// Answers with an event stream. The first page is read before the answer begins, so that a wrong
/// cursor is a plain problem.
async fn follow(
    door: Door,
    read: EventsRead,
    remaining: Option<u32>,
    session: Session,
) -> Result<Response, Problem> {
    let place = Place::take(&door)?;
    let mut follower = Follower {
        changes: door.backend.changes(read.tier),
        door,
        read,
        remaining,
        going: true,
        session,
        _place: place,
    };
    let mut first = beginning();
    follower.read(&mut first).await?;
    let session = follower.session.header(&follower.door);
    let rest = stream::unfold(follower, |mut follower| async move {
        follower.next().await.map(|bytes| (bytes, follower))
    });
    Ok(event_stream(first, rest, session))
}

impl Follower {
    /// What to send next; `None` when the stream is over.
    async fn next(&mut self) -> Option<Bytes> {
        let draining = self.door.draining.clone();
        let mut heartbeat = std::pin::pin!(tokio::time::sleep(self.door.options.heartbeat));
        let mut out = Vec::new();
        while self.going && !draining.is_cancelled() {
            let at_end = match self.read(&mut out).await {
                Ok(at_end) => at_end,
                Err(problem) => {
                    sse::write_message(&mut out, Some("error"), None, &problem.to_json());
                    self.going = false;
                    break;
                }
            };
            if !out.is_empty() {
                break;
            }
            if !at_end {
                // The filter wanted nothing of a long stretch: give way, then read on.
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                biased;
                () = draining.cancelled() => break,
                changed = self.changes.changed() => {
                    // The node is gone, so nothing more will come.
                    self.going = changed;
                }
                () = heartbeat.as_mut() => {
                    sse::write_heartbeat(&mut out, &self.read.after);
                    break;
                }
            }
        }
        (!out.is_empty()).then(|| Bytes::from(out))
    }

    /// Writes the next page to `out`. Returns whether there was nothing more.
    async fn read(&mut self, out: &mut Vec<u8>) -> Result<bool, Problem> {
        // Before reading: what is committed while we read wakes us again.
        self.changes.seen();
        self.read.limit = self
            .remaining
            .map_or(FOLLOW_PAGE_EVENTS, |left| left.min(FOLLOW_PAGE_EVENTS));
        let page = self
            .door
            .backend
            .read_events(self.read.clone())
            .await
            .map_err(|error| Problem::of_read(&error))?;
        self.session
            .seen
            .read(page.events.iter().map(|(_, event)| event));
        for (cursor, event) in &page.events {
            let json = serde_json::to_vec(&EventView::new(event, &self.door))
                .map_err(|error| Problem::internal(format!("an event cannot be shown: {error}")))?;
            sse::write_message(out, None, Some(cursor), &json);
        }
        self.read.after = page.cursor;
        if let Some(left) = &mut self.remaining {
            *left = left.saturating_sub(u32::try_from(page.events.len()).unwrap_or(u32::MAX));
            self.going = *left > 0;
        }
        Ok(page.at_end)
    }
}

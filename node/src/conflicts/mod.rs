//! Conflict records: events that were acknowledged and lost their place, kept with all their bytes until
//! somebody decides what becomes of them.
//!
//! A record is a stream, `$conflicts-<id>`, so every region has it and its home orders what is decided.
//! It is named by what was lost, so writing it again changes nothing. `record` says what its events add up
//! to, `set_aside` writes it, `resolve` decides.
//!
//! What was settled by a policy has a record, too (`superseded`): it says what won, and the write can be reinstated.
//!
//! Not here: what could be put back where it was (`readmission`), which write wins (`conflict`).
//!
//! Always true (`accounted`): a record is decided once, by the first decision in its stream; whoever comes
//! later is told so. What a record holds it holds for good. A writer that repeats a request whose events are in a record
//! has them written, as the stream does not have them; the record then says where, and a rebase leaves them there.

mod record;
mod resolve;
mod set_aside;
mod superseded;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use meridian_client::{Direction, ReadError, StreamRead};
use meridian_event::{RecordedEvent, Revision, StreamId};
use meridian_points::reached;
use meridian_store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::record::{CATEGORY, Record, lost};
pub use self::record::{
    Conflict, ConflictAction, ConflictId, ConflictResolution, ConflictStatus, LostBranch,
    Superseding, WinnerPlace,
};
pub use self::resolve::ConflictError;
pub(crate) use self::set_aside::{Lost, branch_of, is_begun, set_aside};
pub(crate) use self::superseded::Loss;
use crate::metrics::Metrics;
use crate::readmission::Readmission;
use crate::{Node, own};

/// How many records are listed. Beyond it, those that are resolved are left out first; each can still be
/// read by its id.
const LISTED_MAX: usize = 65_536;
/// Where the small state has what is known of a record, and how far they are followed.
const KNOWN: &str = "conflict/known/";
const FOLLOWED: &[u8] = b"conflict/followed";
/// How much of a record is read at once.
const PAGE: u32 = 1_000;
/// The most bytes of lost events that one answer has.
const LOST_BYTES_MAX: usize = 8 << 20;

/// What the records of a node work with.
pub(crate) struct Shared {
    pub(crate) region: String,
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tasks: CancellationToken,
    pub(crate) tracker: TaskTracker,
    pub(crate) node: OnceLock<Weak<Node>>,
}

/// The conflict records of a federation, as one node knows them, and what it knows of re-admission.
pub struct Conflicts {
    shared: Shared,
    known: Mutex<BTreeMap<ConflictId, Record>>,
    readmission: watch::Sender<Readmission>,
}

/// Some of the lost events that a record holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostEvents {
    /// As they were. Where they were first is told by their record.
    pub events: Vec<RecordedEvent>,
    /// The revision that each of them has in its stream by now, if it has one: its writer has repeated it since, the
    /// record is resolved, or it lost to a later write there.
    pub in_stream: Vec<Option<Revision>>,
    /// How many come before the next page; `None` on the last one.
    pub next: Option<usize>,
}

impl Conflicts {
    pub(crate) fn new(shared: Shared) -> Arc<Self> {
        Arc::new(Self {
            shared,
            known: Mutex::default(),
            readmission: watch::Sender::default(),
        })
    }

    /// Takes up what an earlier life knew, follows the records in `node`'s log, and ends rebases that
    /// another life began.
    pub(crate) fn open(self: &Arc<Self>, node: &Arc<Node>) {
        let node = Arc::downgrade(node);
        if self.shared.node.set(Weak::clone(&node)).is_err() {
            return;
        }
        let after = self.take_up();
        self.count_open();
        let (conflicts, cancel) = (Arc::clone(self), self.shared.tasks.clone());
        self.shared.tracker.spawn(async move {
            let take = |events: &[RecordedEvent], cursor: &str| conflicts.take(events, cursor);
            own::follow(node, cancel, CATEGORY, after, take).await;
        });
        self.shared.tracker.spawn(Arc::clone(self).end_rebases());
    }

    /// How re-admission goes, since the start.
    pub fn readmission(&self) -> Readmission {
        *self.readmission.borrow()
    }

    pub(crate) fn readmitting(&self, change: impl FnOnce(&mut Readmission)) {
        self.readmission.send_modify(change);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ConflictId, Record>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self) -> Option<Arc<Node>> {
        self.shared.node.get().and_then(Weak::upgrade)
    }

    // Returns from where on records are to be followed: from the first, unless all are known.
    fn take_up(&self) -> String {
        let small = self.shared.store.small();
        let (known, followed) = match (small.scan(KNOWN.as_bytes()), small.get(FOLLOWED)) {
            (Ok(known), Ok(followed)) => (known, followed),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "what is known of conflict records cannot be read; they are read again");
                return String::new();
            }
        };
        let mut records = self.lock();
        for (key, value) in known {
            let id = std::str::from_utf8(&key[KNOWN.len()..]);
            let id = id.ok().and_then(|text| text.parse().ok()).map(ConflictId);
            let record = serde_json::from_slice(&value).ok();
            let (Some(id), Some(record)) = (id, record) else {
                tracing::warn!(
                    "what is known of a conflict record is another version's; all are read again"
                );
                records.clear();
                return String::new();
            };
            records.insert(id, record);
        }
        followed.map_or(String::new(), |text| {
            String::from_utf8_lossy(&text).into_owned()
        })
    }

    fn take(&self, events: &[RecordedEvent], cursor: &str) {
        let small = self.shared.store.small();
        let mut records = self.lock();
        let mut changed = BTreeSet::new();
        // There may be many records, and they come one by one: not all are counted each time.
        let mut more_open = 0;
        for event in events {
            if let Some(id) = ConflictId::of_stream(&event.stream) {
                let was_open = records.get(&id).is_some_and(|it| it.status().is_open());
                let record = records.entry(id).or_default();
                record.take(event);
                more_open += i64::from(record.status().is_open()) - i64::from(was_open);
                changed.insert(id);
            }
        }
        for id in &changed {
            let value = records.get(id).map(serde_json::to_vec);
            let Some(Ok(value)) = value else { continue };
            if let Err(error) = small.put(format!("{KNOWN}{}", id.0).as_bytes(), &value) {
                tracing::warn!(%error, "what is known of a conflict record cannot be noted; it is read again after a restart");
            }
        }
        while records.len() > LISTED_MAX {
            let resolved = records.iter().find(|(_, it)| !it.status().is_open());
            let Some(id) = resolved.or(records.iter().next()).map(|(id, _)| *id) else {
                break;
            };
            reached("a conflict record was left out of the list");
            let left_out = records.remove(&id);
            more_open -= i64::from(left_out.is_some_and(|it| it.status().is_open()));
            if let Err(error) = small.remove(format!("{KNOWN}{}", id.0).as_bytes()) {
                tracing::warn!(%error, "what is known of an old conflict record cannot be forgotten");
            }
        }
        drop(records);
        // Durable before it counts as followed.
        let noted = small
            .flush()
            .and_then(|()| small.put(FOLLOWED, cursor.as_bytes()));
        if let Err(error) = noted {
            tracing::warn!(%error, "how far conflict records are followed cannot be noted; they are read again after a restart");
        }
        self.shared.metrics.conflicts_open.inc_by(more_open);
    }

    fn count_open(&self) {
        let open = self
            .lock()
            .values()
            .filter(|it| it.status().is_open())
            .count();
        let open = i64::try_from(open).unwrap_or(i64::MAX);
        self.shared.metrics.conflicts_open.set(open);
    }

    /// The records behind `after` that `wanted` wants, by id, and whether there are more. Those about `stream`, if one
    /// is given.
    pub fn list(
        &self,
        wanted: impl Fn(ConflictStatus) -> bool,
        stream: Option<&StreamId>,
        after: Option<ConflictId>,
        limit: usize,
    ) -> (Vec<Conflict>, bool) {
        let records = self.lock();
        let from = after.map_or(Unbounded, Excluded);
        let wanted = records
            .range((from, Unbounded))
            .filter(|(_, record)| wanted(record.status()))
            .filter(|(_, record)| {
                let about = record.branch().map(|it| &it.stream);
                stream.is_none_or(|stream| about == Some(stream))
            })
            .filter_map(|(id, record)| record.shown(*id));
        let mut some: Vec<Conflict> = wanted.take(limit + 1).collect();
        let has_more = some.len() > limit;
        some.truncate(limit);
        (some, has_more)
    }

    /// One record, and up to `limit` of the events that it holds, from the one behind the first `from` on.
    ///
    /// # Errors
    /// When there is none of that id, or it cannot be read now.
    pub fn get(
        &self,
        id: ConflictId,
        from: usize,
        limit: usize,
    ) -> Result<(Conflict, LostEvents), ConflictError> {
        let mut page = LostEvents::default();
        let (mut index, mut bytes) = (0, 0);
        let mut record = Record::default();
        self.read(id, |event| {
            record.take(event);
            let lost = record.branch().and_then(|branch| lost(event, branch));
            let Some(lost) = lost else { return };
            index += 1;
            if index <= from || page.next.is_some() {
                return;
            }
            bytes += lost.data.len() + lost.metadata.len();
            if page.events.len() == limit || (bytes > LOST_BYTES_MAX && !page.events.is_empty()) {
                page.next = Some(index - 1);
                return;
            }
            page.events.push(lost);
        })?;
        let conflict = record.shown(id).ok_or(ConflictError::NotFound(id))?;
        if let Some(superseding) = record.superseded()
            && from == 0
            && limit > 0
        {
            page.events
                .push(self.superseded_event(&conflict.branch, superseding)?);
        }
        for event in &page.events {
            // Of this node's own events alone: what it has not yet, or cannot read now, it says nothing of.
            let found = self.shared.store.find_event(event.id, &[]).ok().flatten();
            let found = found.filter(|it| it.stream == event.stream);
            page.in_stream.push(found.map(|it| it.revision));
        }
        Ok((conflict, page))
    }

    // Hands all events of a record to `take`, as they are held here; returns how many.
    fn read(
        &self,
        id: ConflictId,
        mut take: impl FnMut(&RecordedEvent),
    ) -> Result<u64, ConflictError> {
        let mut from = 0;
        loop {
            let page = self.read_page(id, from)?;
            page.events.iter().for_each(&mut take);
            from = page.next.unwrap_or(from);
            if page.end || page.events.is_empty() {
                return Ok(from);
            }
        }
    }

    fn read_page(
        &self,
        id: ConflictId,
        from: u64,
    ) -> Result<meridian_client::StreamPage, ConflictError> {
        let node = self.node().ok_or_else(resolve::stopping)?;
        let read = StreamRead {
            stream: id.stream(),
            from,
            direction: Direction::Forwards,
            limit: PAGE,
        };
        node.read_stream(&read).map_err(|error| match error {
            ReadError::Invalid { reason } => ConflictError::Invalid(reason),
            other => ConflictError::Unavailable(other.to_string()),
        })
    }
}

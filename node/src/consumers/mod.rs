//! Consumer groups: durable places from which programs are given events, to acknowledge each.
//!
//! A group is defined by events of the stream `$consumers-<name>`, so every region knows it. One region
//! serves it, because its consumers must not be given the same event twice; any region can be told to
//! take it over, from the checkpoints in the same stream. `group` says which events are whose, `running`
//! serves it, `progress` is what outlives the node.
//!
//! Always true: an event is settled only once it was acknowledged, or parked for everyone to see; what
//! was acknowledged is never given out again by a region that kept its disk; the events of a stream are
//! with one consumer at a time, in order.

mod definition;
mod delivery;
mod group;
mod progress;
mod running;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use meridian_client::{AppendError, ConsumerError, ConsumerRequest, ConsumerResponse, Verdict};
use meridian_clock::OrderKey;
use meridian_event::RecordedEvent;
use meridian_projection::check_name;
use meridian_store::Store;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use definition::{From as GroupFrom, GroupDefinition, GroupSource, Part as GroupPart};
use running::Running;
pub use running::{GroupServed, ParkedEvent};

use crate::metrics::ConsumerGroup;
use crate::projections::Lane;
use crate::status::Names;
use crate::{Node, own};

/// The category of the streams that define groups.
const CATEGORY: &str = "$consumers";
/// The type of an event that defines a group, and of one that removes it.
const DEFINED: &str = "ConsumerGroupDefined";
const REMOVED: &str = "ConsumerGroupRemoved";
/// The type of an event that says how far a group is, and of one that says what it has parked.
const CHECKPOINT: &str = "ConsumerGroupCheckpoint";
const PARKED: &str = "ConsumerGroupParked";
/// The type of an event that says why a parked event was left out.
const DROPPED: &str = "ConsumerGroupDropped";
/// Where the small state has what is known of a group, and how far definitions are followed.
const KNOWN: &str = "consumer/known/";
const FOLLOWED: &[u8] = b"consumer/followed";
/// How long a call waits until what it asked for is in force here.
const IN_FORCE_WAIT: Duration = Duration::from_secs(10);
/// How many parked events one answer lists.
const LISTED_MAX: usize = 100;
/// The longest name of a consumer.
const CONSUMER_BYTES_MAX: usize = 100;
/// How many deliveries one call settles.
const SETTLED_MAX: usize = 10_000;

/// A group as it stands.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    /// What it is. The region that serves it is always named.
    pub definition: GroupDefinition,
    /// How it stands; none where another region serves it.
    pub served: Option<GroupServed>,
}

/// What all groups of a node share.
pub(crate) struct Shared {
    pub(crate) region: String,
    pub(crate) names: Arc<Names>,
    pub(crate) store: Arc<Store>,
    pub(crate) lane: Lane,
    pub(crate) doors: CancellationToken,
    pub(crate) tasks: CancellationToken,
    pub(crate) tracker: TaskTracker,
    pub(crate) node: OnceLock<Weak<Node>>,
}

impl Shared {
    fn node(&self) -> Option<Arc<Node>> {
        self.node.get().and_then(Weak::upgrade)
    }
}

/// What is known of a group, also of one that was removed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Known {
    /// The revision up to which its stream is followed.
    revision: u64,
    /// The revision of the definition that gave it to the region that serves it.
    epoch: u64,
    removed_at: Option<u64>,
    definition: Option<GroupDefinition>,
}

#[derive(Default)]
struct Entry {
    known: Option<Known>,
    running: Option<Arc<Running>>,
    // One that was removed, and may not have ended.
    ending: Option<Arc<Running>>,
}

impl Entry {
    // What it is, and what serves it here.
    fn defined(&self) -> Option<(GroupDefinition, Option<Arc<Running>>)> {
        let definition = self.known.as_ref()?.definition.clone()?;
        Some((definition, self.running.clone()))
    }
}

fn status((definition, running): (GroupDefinition, Option<Arc<Running>>)) -> GroupStatus {
    GroupStatus {
        definition,
        served: running.map(|running| running.served()),
    }
}

/// The consumer groups of a node.
pub struct Consumers {
    shared: Arc<Shared>,
    groups: Mutex<BTreeMap<String, Entry>>,
    // Changes when a definition came into force.
    changed: watch::Sender<u64>,
}

impl Consumers {
    pub(crate) fn new(shared: Shared) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(shared),
            groups: Mutex::default(),
            changed: watch::Sender::default(),
        })
    }

    /// Takes up what an earlier life knew, and follows the definitions in `node`'s log.
    pub(crate) fn open(self: &Arc<Self>, node: &Arc<Node>) {
        if self.shared.node.set(Arc::downgrade(node)).is_err() {
            return;
        }
        let after = self.take_up();
        let (groups, cancel) = (Arc::clone(self), self.shared.tasks.clone());
        let node = Arc::downgrade(node);
        self.shared.tracker.spawn(async move {
            let take = |events: &[RecordedEvent], cursor: &str| groups.take(events, cursor);
            own::follow(node, cancel, CATEGORY, after, take).await;
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Returns from where on definitions are to be followed: from the first, unless all are known.
    fn take_up(&self) -> String {
        let small = self.shared.store.small();
        let known = small.scan(KNOWN.as_bytes());
        let followed = small.get(FOLLOWED);
        let (known, followed) = match (known, followed) {
            (Ok(known), Ok(followed)) => (known, followed),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "what is known of consumer groups cannot be read; their definitions are read again");
                return String::new();
            }
        };
        let mut groups = self.lock();
        for (key, value) in known {
            let name = String::from_utf8_lossy(&key[KNOWN.len()..]).into_owned();
            let Ok(known) = serde_json::from_slice::<Known>(&value) else {
                tracing::warn!(
                    name,
                    "what is known of a consumer group is another version's; all definitions are read again"
                );
                groups.clear();
                return String::new();
            };
            let running = self.serve(&known, None);
            let known = Some(known);
            let entry = Entry {
                known,
                running,
                ending: None,
            };
            groups.insert(name, entry);
        }
        followed.map_or(String::new(), |text| {
            String::from_utf8_lossy(&text).into_owned()
        })
    }

    // Serves a group if this is the region for that.
    fn serve(&self, known: &Known, earlier: Option<Arc<Running>>) -> Option<Arc<Running>> {
        let definition = known.definition.as_ref()?;
        (definition.region.as_ref() == Some(&self.shared.region)).then(|| {
            Running::start(
                &self.shared,
                definition.clone(),
                known.epoch,
                known.removed_at,
                earlier,
            )
        })
    }

    fn take(&self, events: &[RecordedEvent], cursor: &str) {
        for event in events {
            let Some(name) = own::name_in(&event.stream, CATEGORY) else {
                continue;
            };
            if check_name(name).is_err() {
                continue;
            }
            let definition = match event.event_type.as_str() {
                DEFINED => match GroupDefinition::from_json(&event.data) {
                    Ok(mut definition) => {
                        name.clone_into(&mut definition.name);
                        Some(definition)
                    }
                    Err(error) => {
                        tracing::error!(name, %error, "a consumer group's definition is of another version of Meridian; it is not followed here");
                        continue;
                    }
                },
                REMOVED => None,
                _ => continue,
            };
            self.define(name, event.revision.0, definition);
        }
        if let Err(error) = self.shared.store.small().put(FOLLOWED, cursor.as_bytes()) {
            tracing::warn!(%error, "how far the definitions of consumer groups are followed cannot be noted; they are read again after a restart");
        }
    }

    // A definition came in the log; none removes the group.
    fn define(&self, name: &str, revision: u64, definition: Option<GroupDefinition>) {
        let mut groups = self.lock();
        let entry = groups.entry(name.to_owned()).or_default();
        if entry
            .known
            .as_ref()
            .is_some_and(|it| it.revision >= revision)
        {
            return;
        }
        let was = entry.known.take().unwrap_or_default();
        let region = |definition: &Option<GroupDefinition>| {
            definition.as_ref().and_then(|it| it.region.clone())
        };
        let goes_on = definition.is_some() && region(&definition) == region(&was.definition);
        let known = Known {
            revision,
            epoch: if goes_on { was.epoch } else { revision },
            removed_at: match definition {
                None => Some(revision),
                Some(_) => was.removed_at,
            },
            definition,
        };
        let small = self.shared.store.small();
        let value = serde_json::to_vec(&known).unwrap_or_default();
        // Durable before it counts as followed.
        let noted = small
            .put(format!("{KNOWN}{name}").as_bytes(), &value)
            .and_then(|()| small.flush());
        if let Err(error) = noted {
            tracing::warn!(name, %error, "the definition of a consumer group cannot be noted; it is read again after a restart");
        }
        let earlier = entry.running.take().or_else(|| entry.ending.take());
        if let Some(earlier) = &earlier {
            earlier.stop();
        }
        match known.definition {
            None => {
                entry.ending = earlier;
                // What it still writes is known by its epoch.
                if let Err(error) = progress::forget(small, name) {
                    tracing::warn!(name, %error, "the progress of a consumer group that was removed cannot be forgotten");
                }
            }
            Some(_) => entry.running = self.serve(&known, earlier),
        }
        entry.known = Some(known);
        drop(groups);
        self.changed.send_modify(|count| *count += 1);
    }

    /// All groups that are defined, by name.
    pub fn list(&self) -> Vec<GroupStatus> {
        let all: Vec<_> = self.lock().values().filter_map(Entry::defined).collect();
        all.into_iter().map(status).collect()
    }

    /// One of them.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn get(&self, name: &str) -> Result<GroupStatus, ConsumerError> {
        let found = self.lock().get(name).and_then(Entry::defined);
        found.map(status).ok_or_else(|| not_found(name))
    }

    // The group, if this region serves it.
    fn running(&self, name: &str) -> Result<Arc<Running>, ConsumerError> {
        let groups = self.lock();
        let entry = groups.get(name).ok_or_else(|| not_found(name))?;
        let known = entry.known.as_ref().and_then(|it| it.definition.as_ref());
        let definition = known.ok_or_else(|| not_found(name))?;
        entry.running.clone().ok_or_else(|| {
            let serves = definition.region.clone().unwrap_or_default();
            ConsumerError::NotHere {
                group: name.to_owned(),
                region: self.shared.names.id_of(&serves).unwrap_or_default(),
                name: serves,
            }
        })
    }

    /// Defines a group in every region; answers once that is in force here. The region that it names
    /// serves it from then on: where it says none the one that did, and for a new group this one.
    ///
    /// # Errors
    /// When it is wrong, or cannot be written.
    pub async fn put(&self, mut definition: GroupDefinition) -> Result<GroupStatus, ConsumerError> {
        let invalid = |reason: String| ConsumerError::Invalid { reason };
        definition.check().map_err(invalid)?;
        let name = definition.name.clone();
        if definition.region.is_none() {
            let present = self.get(&name).ok().and_then(|it| it.definition.region);
            definition.region = present.or_else(|| Some(self.shared.region.clone()));
        }
        let region = definition.region.as_deref().unwrap_or_default();
        if self.shared.names.id_of(region).is_none() {
            let members: Vec<_> = self.shared.names.0.values().cloned().collect();
            return Err(invalid(format!(
                "region is {region:?}, which is no member; write one of {}",
                members.join(", ")
            )));
        }
        let data = serde_json::to_vec(&definition).map_err(|error| invalid(error.to_string()))?;
        let revision = self.write(&name, DEFINED, data).await?;
        let deadline = Instant::now() + IN_FORCE_WAIT;
        self.in_force(&name, revision).await?;
        if let Ok(running) = self.running(&name) {
            running.started(deadline).await;
        }
        self.get(&name)
    }

    /// Removes a group in every region, with its place.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot be written.
    pub async fn delete(&self, name: &str) -> Result<(), ConsumerError> {
        self.get(name)?;
        let revision = self.write(name, REMOVED, b"{}".to_vec()).await?;
        self.in_force(name, revision).await
    }

    async fn write(&self, name: &str, what: &str, data: Vec<u8>) -> Result<u64, ConsumerError> {
        let unavailable = |reason: String| ConsumerError::Unavailable {
            reason,
            retry_after_ms: 1000,
        };
        let node = self.shared.node();
        let node = node.ok_or_else(|| unavailable("the node is stopping".to_owned()))?;
        let written = own::write(&node, CATEGORY, name, what, data).await;
        written.map_err(|error| match error {
            AppendError::Invalid { reason } => ConsumerError::Invalid { reason },
            other => unavailable(other.to_string()),
        })
    }

    // Waits until the definition at `revision` is followed here.
    async fn in_force(&self, name: &str, revision: u64) -> Result<(), ConsumerError> {
        let mut changed = self.changed.subscribe();
        let is_known = || {
            let groups = self.lock();
            let known = groups.get(name).and_then(|it| it.known.as_ref());
            known.is_some_and(|it| it.revision >= revision)
        };
        let waited = timeout(IN_FORCE_WAIT, changed.wait_for(|_| is_known())).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ConsumerError::Unavailable {
                reason: format!(
                    "the definition is written and has not come back here within {IN_FORCE_WAIT:?}; it will come into force by itself"
                ),
                retry_after_ms: 1000,
            }),
        }
    }

    /// Does what a program asks for.
    ///
    /// # Errors
    /// When there is no such group here, or it cannot do that now.
    pub async fn consume(
        &self,
        asked: &ConsumerRequest,
    ) -> Result<ConsumerResponse, ConsumerError> {
        match asked {
            ConsumerRequest::Fetch(fetch) => {
                let running = self.running(&fetch.group)?;
                if fetch.consumer.is_empty() || fetch.consumer.len() > CONSUMER_BYTES_MAX {
                    return Err(ConsumerError::Invalid {
                        reason: format!(
                            "a consumer has a name of 1 to {CONSUMER_BYTES_MAX} bytes, which no other of its group has"
                        ),
                    });
                }
                Ok(ConsumerResponse::Fetched(running.fetch(fetch).await?))
            }
            ConsumerRequest::Settle(settle) => {
                let running = self.running(&settle.group)?;
                if settle.deliveries.len() > SETTLED_MAX {
                    return Err(ConsumerError::Invalid {
                        reason: format!("at most {SETTLED_MAX} deliveries are settled by one call"),
                    });
                }
                if let Verdict::Park { reason } = &settle.verdict
                    && reason.is_empty()
                {
                    return Err(ConsumerError::Invalid {
                        reason: "say why: an event is parked with a reason".to_owned(),
                    });
                }
                Ok(ConsumerResponse::Settled(running.settle(settle).await?))
            }
        }
    }

    /// The parked events of a group after `after`.
    ///
    /// # Errors
    /// When there is no such group here, or it is not served yet.
    pub fn parked(&self, name: &str, after: OrderKey) -> Result<Vec<ParkedEvent>, ConsumerError> {
        self.running(name)?.parked(after, LISTED_MAX)
    }

    /// Gives a parked event out once more; it stays parked until it is acknowledged.
    ///
    /// # Errors
    /// When it is not parked, or cannot be read.
    pub fn retry(&self, name: &str, key: OrderKey) -> Result<(), ConsumerError> {
        match self.running(name)?.retry(key)? {
            true => Ok(()),
            false => Err(not_parked(name, key)),
        }
    }

    /// Leaves a parked event out for good; `reason` is written to the group's stream before.
    ///
    /// # Errors
    /// When it is not parked, or that cannot be written or kept.
    pub async fn drop_parked(
        &self,
        name: &str,
        key: OrderKey,
        reason: &str,
    ) -> Result<(), ConsumerError> {
        let running = self.running(name)?;
        if !running.is_parked(key)? {
            return Err(not_parked(name, key));
        }
        let dropped = serde_json::json!({ "order_key": key.to_string(), "reason": reason });
        self.write(name, DROPPED, dropped.to_string().into_bytes())
            .await?;
        match running.drop_parked(key).await? {
            true => Ok(()),
            false => Err(not_parked(name, key)),
        }
    }
}

fn not_found(group: &str) -> ConsumerError {
    ConsumerError::NotFound {
        group: group.to_owned(),
    }
}

fn not_parked(name: &str, key: OrderKey) -> ConsumerError {
    ConsumerError::NotFound {
        group: format!("{name}/parked/{key}"),
    }
}

/// Brings the gauges of all groups that are served here up to date.
pub(crate) fn refresh_metrics(node: &Node) {
    let metrics = node.metrics();
    let gauges = [
        &metrics.consumer_waiting_events,
        &metrics.consumer_in_flight_events,
        &metrics.consumer_parked_events,
        &metrics.consumer_held_up,
    ];
    // Those of a group that went must not stay.
    gauges.iter().for_each(|gauge| {
        gauge.clear();
    });
    metrics.consumer_lag_seconds.clear();
    for group in node.consumers().list() {
        let Some(served) = group.served else {
            continue;
        };
        let label = ConsumerGroup {
            group: group.definition.name,
        };
        for (gauge, value) in gauges.iter().zip([
            served.waiting,
            served.in_flight,
            served.parked,
            usize::from(served.error.is_some()),
        ]) {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            gauge.get_or_create(&label).set(value);
        }
        let lag = metrics.consumer_lag_seconds.get_or_create(&label);
        lag.set(served.lag.as_secs_f64());
    }
}

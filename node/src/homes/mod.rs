//! Which region orders a stream, and whether this one may: the categories' rules, and the streams that
//! were moved.
//!
//! The control plane says where a stream's home is. That alone lets nobody write: the old home may not
//! have heard of it yet, and the new one may lack what the old one wrote. So a home is handed over in
//! the logs themselves ([`transfer`]). The old home appends `$home-transfer` behind the last event that
//! it will ever give a revision to, with how far it held the partition's other logs. The new home opens
//! once it holds all of that. In between nobody writes; whoever wants to, waits. In front of what it writes first it says
//! in its log what it opened on ([`opening`]): no other region takes that part of its log before it holds as much.
//!
//! In some categories a stream's home rests on who created it, which [`creators`] tell.
//!
//! Start reading at [`Homes::place`].
//!
//! What a lost region leaves behind opens once all up to its cut is here; and, in `fenced` categories, once
//! no [`lease`] of its can last any more.
//!
//! Always true (`one-home`): after its transfer a region gives out no revision of the stream, and before
//! it holds that transfer, and all that came before it, no other region does.

mod arrival;
mod asked;
pub(crate) mod creators;
mod lease;
mod opening;
mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use meridian_client::{AppendRequest, Durability, Expected};
use meridian_clock::{Epoch, Hlc, LogId, PartitionId, Position, RegionId};
use meridian_conflict::{Isolation, Mode, Policies};
use meridian_event::{EventId, EventType, NewEvent, StreamId, partition_of};
use meridian_points::{Bug, planted, reached};
use meridian_store::{ReadError, Store};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;
use uuid::Uuid;

use self::arrival::GivenUp;
pub use self::asked::{MoveError, StreamHome};
use self::creators::Creators;
pub(crate) use self::lease::{Hold, keep_lease, majority};
use self::lease::{Lease, Waits};
pub(crate) use self::opening::rests_on;
pub(crate) use self::transfer::hand_over;
use crate::append::Held;
use crate::control::Federation;
use crate::control::federation::Seat;
use crate::seams::SteadyClock;

/// The category of the streams that transfers are written to. Every region writes its own there.
pub(crate) const CATEGORY: &str = "$homes";
/// The type of a transfer.
const TRANSFER: &str = "$home-transfer";
/// Names the ids of transfers, so that one that is repeated is not written twice.
const NAMESPACE: Uuid = Uuid::from_u128(0x6b7d_31f0_55c2_4f0e_9a41_0d8e_2f1c_7730);

/// The data of a `$home-transfer` event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transfer {
    /// The number of the decision that it follows.
    pub(crate) change: u64,
    /// The regions that order the streams from here on, each its own.
    pub(crate) to: BTreeSet<RegionId>,
    /// How far the old home held the other regions' logs of this partition, by region.
    pub(crate) held: BTreeMap<RegionId, Position>,
}

/// Where a stream stands, for this region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Every region writes it.
    Anywhere,
    /// This region orders it.
    Here {
        /// The change that brought it here; zero if it was always here.
        change: u64,
    },
    /// This region will order it once it holds what the old home wrote.
    Coming {
        /// The old home.
        from: RegionId,
    },
    /// Another region orders it.
    Elsewhere {
        /// Which.
        home: RegionId,
        /// Since when.
        epoch: Epoch,
    },
    /// Nobody writes it while its category's policy is being set.
    Undecided,
    /// Its home is where it was created, and nothing here says yet that it was.
    New,
}

/// Why nobody writes `stream` for now.
pub(crate) fn being_set(stream: &StreamId) -> String {
    let category = stream.category();
    format!(
        "the policy of category {category} is being set, which waits for every region; \
         `meridian category show {category}` says for which"
    )
}

/// Where streams have their homes.
pub(crate) struct Homes {
    region: RegionId,
    partitions: u16,
    // By partition, those of all members.
    logs: Vec<Vec<LogId>>,
    // As configured.
    policies: Arc<Policies>,
    // Over the members that are decided, and with the policies that were set since, by how many those are
    // (none is ever taken from them) and the last change of these.
    decided: Mutex<Option<(usize, u64, Arc<Policies>)>>,
    store: Arc<Store>,
    federation: watch::Receiver<Arc<Federation>>,
    hlc: Arc<Hlc>,
    steady: Arc<dyn SteadyClock>,
    // What was seen to be complete, and for streams of which categories, which it stays.
    complete: Mutex<BTreeMap<GivenUp, Isolation>>,
    // How far the other regions hold what is here, once there are links to them.
    held: OnceLock<Held>,
    // Of this region, and of those that it succeeds.
    lease: Mutex<Lease>,
    waits: Mutex<Waits>,
    // Whether all that this region stranded is home again.
    brought_home: AtomicBool,
    // Of streams whose homes rest on that.
    creators: Creators,
}

/// The clocks that homes go by.
pub(crate) struct Clocks {
    /// What a home stamps with comes behind what the one before it did.
    pub(crate) hlc: Arc<Hlc>,
    /// Leases are measured with it.
    pub(crate) steady: Arc<dyn SteadyClock>,
}

/// What a stream's home rests on.
enum Sitting {
    /// Nothing: it has none.
    Anywhere,
    /// Who creates it, which is not known here.
    New,
    /// This is it.
    At(Seat),
}

impl Homes {
    pub(crate) fn new(
        region: RegionId,
        members: &[RegionId],
        partitions: u16,
        policies: Arc<Policies>,
        store: Arc<Store>,
        clocks: Clocks,
        federation: watch::Receiver<Arc<Federation>>,
    ) -> Self {
        Self {
            region,
            logs: (0..partitions)
                .map(|partition| {
                    let members = members.iter();
                    let log = |member: &RegionId| LogId::new(*member, PartitionId(partition));
                    members.map(log).collect()
                })
                .collect(),
            partitions,
            policies,
            decided: Mutex::default(),
            store,
            federation,
            hlc: clocks.hlc,
            steady: clocks.steady,
            complete: Mutex::default(),
            held: OnceLock::new(),
            lease: Mutex::default(),
            waits: Mutex::default(),
            brought_home: AtomicBool::new(false),
            creators: Creators::default(),
        }
    }

    /// Whether all that this region stranded is home again, as far as this node remembers over restarts. Until
    /// then it may have to write some of it, even if it is to leave.
    pub(crate) fn brought_home(&self) -> bool {
        self.brought_home.load(Ordering::Acquire)
    }

    /// It is, and that is remembered.
    pub(crate) fn note_brought_home(&self) {
        self.brought_home.store(true, Ordering::Release);
    }

    /// Tells how far the other regions hold what is here; the first call counts.
    pub(crate) fn follow_held(&self, held: Held) {
        let _ = self.held.set(held);
    }

    /// What is decided now.
    pub(crate) fn federation(&self) -> Arc<Federation> {
        Arc::clone(&self.federation.borrow())
    }

    /// Changes when more is decided.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Federation>> {
        self.federation.clone()
    }

    /// The logs of all members for `partition`; none when there is no such partition.
    pub(crate) fn logs(&self, partition: PartitionId) -> &[LogId] {
        let logs = self.logs.get(usize::from(partition.0));
        logs.map_or(&[], Vec::as_slice)
    }

    /// Whether one region orders `stream`, be it known here which or not.
    pub(crate) fn has_home(&self, stream: &StreamId) -> bool {
        let is_shared = matches!(stream.category(), CATEGORY | creators::CATEGORY);
        !is_shared && self.policies().of(stream.category()).mode == Mode::Home
    }

    /// Where `stream`'s home is; `None` when every region writes it, or nothing here tells who created it.
    pub(crate) fn seat(&self, stream: &StreamId) -> Option<Seat> {
        match self.sitting(&self.federation(), stream) {
            Ok(Sitting::At(seat)) => Some(seat),
            Ok(Sitting::Anywhere | Sitting::New) => None,
            Err(error) => {
                warn!(%stream, %error, "who created a stream cannot be read");
                None
            }
        }
    }

    fn sitting(&self, federation: &Federation, stream: &StreamId) -> Result<Sitting, ReadError> {
        if stream.category() == CATEGORY {
            return Ok(Sitting::Anywhere);
        }
        if self.rests_on_creator(federation, stream) {
            let creator = self.creator(stream)?;
            return Ok(creator.map_or(Sitting::New, |creator| {
                Sitting::At(self.seat_if(federation, stream, creator))
            }));
        }
        let seat = federation.seat(&self.policies_in(federation), stream);
        Ok(seat.map_or(Sitting::Anywhere, Sitting::At))
    }

    /// The policies that count now.
    pub(crate) fn policies(&self) -> Arc<Policies> {
        self.policies_in(&self.federation())
    }

    // The policies over the members that `federation` knows: configurations may list a region that is none yet,
    // and every region must come to the same home.
    fn policies_in(&self, federation: &Federation) -> Arc<Policies> {
        let Some(foundation) = &federation.foundation else {
            return Arc::clone(&self.policies);
        };
        let count = foundation.members.len();
        let settled = federation.categories_settled;
        let mut decided = self.decided.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, by, policies)) = &*decided
            && (*of, *by) == (count, settled)
        {
            return Arc::clone(policies);
        }
        let members = || foundation.members.keys().copied().collect();
        // A rule of this configuration that names a region that is no member cannot count.
        let policies = self
            .policies
            .over(members())
            .or_else(|_| Policies::new(members(), foundation.categories.clone()));
        let policies = match policies {
            Ok(policies) => Arc::new(federation.over(&policies)),
            Err(_) => Arc::clone(&self.policies),
        };
        *decided = Some((count, settled, Arc::clone(&policies)));
        policies
    }

    /// Where `stream` stands, by what `federation` says.
    ///
    /// # Errors
    /// When the log that would tell cannot be read.
    pub(crate) fn place(
        &self,
        federation: &Federation,
        stream: &StreamId,
    ) -> Result<Place, ReadError> {
        let of_record = creators::of_record(stream, self.partitions);
        let category = of_record.as_ref().unwrap_or(stream).category();
        if federation.is_being_set(category) {
            return Ok(Place::Undecided);
        }
        if let Some(stream) = of_record {
            return self.place_of_record(federation, &stream);
        }
        let seat = match self.sitting(federation, stream)? {
            Sitting::Anywhere => return Ok(Place::Anywhere),
            Sitting::New => return Ok(Place::New),
            Sitting::At(seat) => seat,
        };
        let from = seat.needs.first().map(|(from, _)| *from);
        if planted(Bug::KeepHome) && from == Some(self.region) {
            return Ok(Place::Here { change: 0 });
        }
        if seat.home != self.region {
            return Ok(Place::Elsewhere {
                home: seat.home,
                epoch: seat.epoch,
            });
        }
        let partition = stream.partition(self.partitions);
        let isolation = self.isolation(stream);
        let is_here = self.all_complete(federation, &seat.needs, partition, isolation)?;
        match from {
            Some(from) if !is_here && !planted(Bug::OpenEarly) => Ok(Place::Coming { from }),
            _ => Ok(Place::Here {
                change: seat.change,
            }),
        }
    }

    /// Whether this region orders `stream` now: it has opened as its home and, for a `fenced` category, has its
    /// lease. Only asks, unlike [`Homes::place`], by which a home opens.
    pub(crate) fn orders(&self, stream: &StreamId) -> bool {
        let federation = self.federation();
        let sitting = self.sitting(&federation, stream);
        let seat = match sitting {
            Ok(Sitting::At(seat)) if seat.home == self.region => seat,
            _ => return false,
        };
        let partition = stream.partition(self.partitions);
        let is_fenced = self.isolation(stream) == Isolation::Fenced;
        let has_opened = seat.needs.iter().all(|(from, change)| {
            let fence = federation.fence_by(*from, *change);
            let may_open = |fence| self.lease_is_over(&federation, fence, *change);
            self.is_complete((*from, *change, partition), self.isolation(stream))
                && (!is_fenced || fence.is_none_or(may_open))
        });
        has_opened && (!is_fenced || !matches!(self.lease(), Some(Hold::Lapsed { .. })))
    }

    // Asks for an event that hands a home over in `partition`, in this region's own stream for such.
    fn event(
        &self,
        partition: PartitionId,
        id: EventId,
        name: &str,
        data: &impl Serialize,
    ) -> AppendRequest {
        let event_type = EventType::new(name).expect("a short name without controls");
        let data = serde_json::to_vec(data).expect("numbers always encode");
        AppendRequest {
            stream: stream_of(partition, self.partitions),
            expected: Expected::Any,
            durability: Durability::Region,
            events: vec![NewEvent {
                id,
                event_type,
                data: data.into(),
                metadata: Bytes::new(),
            }],
        }
    }

    /// Why this region may not order anything yet: its own log tells of a decision that this node does
    /// not know. It lost its disk, or an older one was put back.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn ignorance(&self) -> Result<Option<String>, ReadError> {
        let version = self.federation.borrow().version;
        for partition in (0..self.partitions).map(PartitionId) {
            let stream = stream_of(partition, self.partitions);
            let Some(last) = self.store.stream_last(&stream, Some(self.region), false)? else {
                continue;
            };
            let log = LogId::new(self.region, partition);
            if let Some(change) = self.read_change(log, last.dot.position)?
                && change > version
            {
                reached("a node that had forgotten decisions waited until it heard of them");
                return Ok(Some(format!(
                    "this region's log tells of decision {change} of the control plane, this node \
                     knows only {version}; it waits until another region tells it"
                )));
            }
        }
        Ok(None)
    }
}

/// The id of the event by which `log`'s region follows `change` there.
fn transfer_id(change: u64, log: LogId) -> EventId {
    let name = format!("{change} {log}");
    EventId(Uuid::new_v5(&NAMESPACE, name.as_bytes()))
}

/// The stream for transfers that lies in `partition`: the first such name that hashes there.
fn stream_of(partition: PartitionId, partitions: u16) -> StreamId {
    (0_u32..)
        .map(|number| format!("{CATEGORY}-{number}"))
        .find(|name| partition_of(name, partitions) == partition)
        .and_then(|name| StreamId::new(&name).ok())
        .expect("a hash reaches every partition within a few names")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_has_a_stream_for_transfers() {
        for partitions in [1, 4, 64] {
            for partition in (0..partitions).map(PartitionId) {
                let stream = stream_of(partition, partitions);
                assert_eq!(stream.partition(partitions), partition);
                assert!(stream.is_internal());
            }
        }
    }

    #[test]
    fn a_transfers_data_is_written_as_it_ever_was() {
        let transfer = Transfer {
            change: 7,
            to: BTreeSet::from([RegionId(2)]),
            held: BTreeMap::from([(RegionId(1), Position(90)), (RegionId(2), Position(0))]),
        };
        let text = r#"{"change":7,"to":[2],"held":{"1":90,"2":0}}"#;
        assert_eq!(serde_json::to_string(&transfer).expect("it encodes"), text);
        let read: Transfer = serde_json::from_str(text).expect("it decodes");
        assert_eq!(read, transfer);
    }
}

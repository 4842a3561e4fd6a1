//! Hands homes over: gives up what this region loses, and says when it has opened what it gains.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meridian_clock::{LogId, PartitionId};
use meridian_points::{buggify, reached};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::arrival::Arrival;
use super::{Homes, TRANSFER, Transfer, transfer_id};
use crate::control::federation::GiveUp;
use crate::control::{Command, Consensus, Federation};
use crate::sequencer::{Outcome, Sequencer};

/// How often a hand-over that waits for something is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long one step of it may take.
const STEP_WITHIN: Duration = Duration::from_secs(5);

/// Hands over what the control plane decides to move, until `cancel`.
pub(crate) async fn hand_over(
    homes: Arc<Homes>,
    sequencers: Vec<Arc<Sequencer>>,
    consensus: Arc<dyn Consensus>,
    cancel: CancellationToken,
) {
    let mut federation = homes.watch();
    let mut given_up = BTreeSet::new();
    loop {
        let now = Arc::clone(&federation.borrow_and_update());
        homes.note_cuts(&now);
        let work = async {
            let gives = give_up(&homes, &sequencers, &now, &mut given_up).await;
            let gains = say_opened(&homes, &*consensus, &now).await;
            gives || gains
        };
        let is_waiting = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            is_waiting = work => is_waiting,
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            changed = federation.changed() => if changed.is_err() { return },
            () = sleep(LOOK_EVERY), if is_waiting => {}
        }
    }
}

// Writes the transfers of what this region loses. Whether some still wait.
async fn give_up(
    homes: &Homes,
    sequencers: &[Arc<Sequencer>],
    federation: &Federation,
    given_up: &mut BTreeSet<(u64, PartitionId)>,
) -> bool {
    let mut is_waiting = false;
    let all = federation.gives_up(homes.region);
    // What is over needs no memory.
    given_up.retain(|part| all.contains_key(part));
    for (part, lost) in all {
        if given_up.contains(&part) {
            continue;
        }
        if buggify("a transfer is written late") {
            is_waiting = true;
            continue;
        }
        let (change, partition) = part;
        match write(homes, sequencers, federation, change, partition, lost).await {
            Ok(()) => {
                info!(change, %partition, "this region gave up the homes that it loses");
                given_up.insert(part);
            }
            Err(reason) => {
                debug!(change, %partition, reason, "a home is not given up yet");
                is_waiting = true;
            }
        }
    }
    is_waiting
}

async fn write(
    homes: &Homes,
    sequencers: &[Arc<Sequencer>],
    federation: &Federation,
    change: u64,
    partition: PartitionId,
    lost: GiveUp,
) -> Result<(), String> {
    // It may be a `fenced` stream's: its next home does not ask whose lease came before ours.
    let strictest = homes.policies_in(federation).strictest_isolation();
    let may = homes.all_complete(federation, &lost.before, partition, strictest);
    if !may.map_err(|error| error.to_string())? {
        reached("a home was to be given up before it had opened");
        return Err("what came before is not all here".to_owned());
    }
    let heads = homes.store.heads().into_iter();
    let others = heads.filter(|it| it.log.partition == partition && it.log.origin != homes.region);
    let transfer = Transfer {
        change,
        to: lost.to,
        held: others.map(|it| (it.log.origin, it.position)).collect(),
    };
    let own = LogId::new(homes.region, partition);
    let request = homes.event(partition, transfer_id(change, own), TRANSFER, &transfer);
    let sequencer = sequencers
        .get(usize::from(partition.0))
        .ok_or("there is no such partition")?;
    // Whatever becomes of it, it is asked for again under the same id.
    let append = async {
        let answered = sequencer
            .enqueue(request, true)
            .await
            .ok_or("the node stops")?;
        answered.await.map_err(|_| "the node stops")
    };
    match timeout(STEP_WITHIN, append).await {
        Ok(Ok(Outcome::Appended(_))) => Ok(()),
        Ok(Ok(Outcome::Refused(error))) => Err(error.to_string()),
        Ok(Ok(Outcome::WrongRevision { .. } | Outcome::Moved(_))) => {
            Err("the log refuses it".to_owned())
        }
        Ok(Err(reason)) => Err(reason.to_owned()),
        Err(_) => Err("the log does not answer".to_owned()),
    }
}

// Tells the federation what this region has opened. Whether some of it is still to come.
async fn say_opened(homes: &Homes, consensus: &dyn Consensus, federation: &Federation) -> bool {
    let mut is_waiting = false;
    for (change, gain) in federation.gains(homes.region) {
        is_waiting = true;
        let mut is_complete = true;
        let mut declined = BTreeSet::new();
        for ((from, of), partition) in gain.needs {
            let strictest = homes.policies_in(federation).strictest_isolation();
            let arrival = homes.arrival(federation, from, of, partition, strictest);
            let arrival = arrival.unwrap_or_else(|error| {
                warn!(change, %error, "whether a home may open cannot be read");
                Arrival::NotYet
            });
            is_complete &= arrival == Arrival::Complete;
            if arrival == Arrival::TooFarAhead && of == change {
                declined.insert((from, partition));
            }
        }
        for (from, partition) in declined.intersection(&gain.declinable).copied() {
            reached("a home was declined for its timestamps");
            warn!(change, %from, %partition, "streams stay where they are: they are stamped too far ahead of this region's clock");
            let declined = Command::Declined {
                change,
                from,
                partition,
            };
            propose(consensus, declined).await;
        }
        let opened = Command::Opened {
            change,
            by: homes.region,
        };
        if is_complete && propose(consensus, opened).await {
            info!(
                change,
                "this region takes writes for the homes that it gained"
            );
        }
    }
    is_waiting
}

// Whether it was decided. It is proposed again as long as it is not seen to be.
async fn propose(consensus: &dyn Consensus, command: Command) -> bool {
    let deadline = Instant::now() + STEP_WITHIN;
    match consensus.propose(command, deadline).await {
        Ok(_) => true,
        Err(error) => {
            debug!(%error, "how a move goes on cannot be decided yet");
            false
        }
    }
}

//! What a region that was put out does once it is back: its read models forget what does not count, what it
//! had acknowledged alone is written again where it belongs, and its homes come back.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use meridian_clock::LogId;
use meridian_store::{Disk, StrandedTail, checked_file, read_stranded};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::Node;
use crate::control::{Command, Outcome};
use crate::readmission::{Tail, readmit};

/// Present while read models have yet to be built anew.
const REPLAY_PATH: &str = "replay-read-models";
/// The tails whose events are all home again.
const HOME_PATH: &str = "stranded-home";
/// How often what did not work is tried again.
const AGAIN_EVERY: Duration = Duration::from_secs(1);
/// How long a decision may take.
const DECIDE_WITHIN: Duration = Duration::from_secs(5);

/// Notes that read models have to be built anew; before the events that they read are put aside.
///
/// # Errors
/// When the disk fails.
pub(crate) fn note_replay(disk: &dyn Disk) -> io::Result<()> {
    checked_file::replace(disk, REPLAY_PATH, b"")
}

/// Takes that back: nothing was put aside.
///
/// # Errors
/// When the disk fails.
pub(crate) fn forget_replay(disk: &dyn Disk) -> io::Result<()> {
    match disk.remove(REPLAY_PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => {
            removed?;
            disk.sync_dir("")
        }
    }
}

/// Whether read models have yet to be built anew.
///
/// # Errors
/// When the disk fails.
pub(crate) fn must_replay(disk: &dyn Disk) -> io::Result<bool> {
    disk.exists(REPLAY_PATH)
}

/// Does all of it for `node`, which keeps its data on `disk`, until `cancel`.
pub(crate) async fn come_home(node: Weak<Node>, disk: Arc<dyn Disk>, cancel: CancellationToken) {
    let work = async {
        replay(&node, &*disk).await;
        if until_member(&node).await {
            tokio::join!(
                bring_home(&node, &*disk, &cancel),
                take_homes_back(&node, &cancel)
            );
        }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => {}
        () = work => {}
    }
}

async fn replay(node: &Weak<Node>, disk: &dyn Disk) {
    loop {
        match must_replay(disk) {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => warn!(%error, "whether read models must be built anew cannot be read"),
        }
        let Some(running) = node.upgrade() else {
            return;
        };
        let replayed = running.projections().replay();
        drop(running);
        match replayed {
            Ok(names) => match forget_replay(disk) {
                Ok(()) => {
                    if !names.is_empty() {
                        info!(
                            ?names,
                            "these read models are built anew: they had read events that do not count any more"
                        );
                    }
                    return;
                }
                Err(error) => warn!(%error, "that read models were built anew cannot be noted"),
            },
            Err(error) => warn!(%error, "read models cannot be built anew yet"),
        }
        sleep(AGAIN_EVERY).await;
    }
}

// Waits until this region is a member; whether there is anything to come home from.
async fn until_member(node: &Weak<Node>) -> bool {
    let Some((me, mut federation)) = node
        .upgrade()
        .map(|node| (node.config().region, node.homes().watch()))
    else {
        return false;
    };
    federation
        .wait_for(|now| now.members().contains(&me))
        .await
        .is_ok()
}

async fn bring_home(node: &Weak<Node>, disk: &dyn Disk, cancel: &CancellationToken) {
    let tails = match waiting(disk) {
        Ok(tails) => tails,
        Err(error) => {
            error!(%error, "what was stranded here cannot be listed; restart the node to try again");
            return;
        }
    };
    let mut whole = Vec::new();
    let mut read = Vec::new();
    for tail in tails {
        match read_stranded(disk, &tail) {
            Ok(blocks) => {
                read.push(Tail {
                    log: tail.log,
                    generation: tail.generation,
                    blocks,
                });
                whole.push(tail);
            }
            Err(error) => {
                error!(log = %tail.log, %error, "what was stranded here cannot be read; it is kept as it is");
            }
        }
    }
    if read.is_empty() {
        return;
    }
    let others = left_to_others(node, &read);
    let counts = readmit(Weak::clone(node), read, cancel.clone()).await;
    if counts.left > others {
        return;
    }
    if let Err(error) = note_home(disk, &whole) {
        // Doing it all again changes nothing.
        warn!(%error, "that stranded events are home again cannot be noted");
    }
    if let (Ok(true), Some(node)) = (is_home(disk), node.upgrade()) {
        node.homes().note_brought_home();
    }
}

// How many events in `tails` are another region's to bring home.
fn left_to_others(node: &Weak<Node>, tails: &[Tail]) -> u64 {
    let Some(node) = node.upgrade() else { return 0 };
    let me = node.config().region;
    let blocks = tails.iter().filter(|tail| tail.log.origin != me);
    let blocks = blocks.flat_map(|tail| &tail.blocks);
    let events = blocks.filter_map(|block| block.to_events().ok()).flatten();
    let theirs = events.filter(|event| !node.homes().has_home(&event.stream));
    theirs.count() as u64
}

type Home = BTreeSet<(LogId, u32)>;

fn home(disk: &dyn Disk) -> io::Result<Home> {
    let kept = checked_file::read(disk, HOME_PATH).map_err(io::Error::other)?;
    let home = kept.map(|bytes| postcard::from_bytes(&bytes));
    home.transpose()
        .map(Option::unwrap_or_default)
        .map_err(io::Error::other)
}

/// Whether this region has nothing to bring home any more of what was ever stranded on `disk`.
///
/// # Errors
/// When the disk fails.
pub(crate) fn is_home(disk: &dyn Disk) -> io::Result<bool> {
    Ok(waiting(disk)?.is_empty())
}

// The tails of which this region has yet to bring something home.
fn waiting(disk: &dyn Disk) -> io::Result<Vec<StrandedTail>> {
    let home = home(disk)?;
    let mut tails = meridian_store::stranded(disk)?;
    tails.retain(|tail| !home.contains(&(tail.log, tail.generation)));
    Ok(tails)
}

fn note_home(disk: &dyn Disk, tails: &[StrandedTail]) -> io::Result<()> {
    let mut home = home(disk)?;
    home.extend(tails.iter().map(|tail| (tail.log, tail.generation)));
    let bytes = postcard::to_stdvec(&home).map_err(io::Error::other)?;
    checked_file::replace(disk, HOME_PATH, &bytes)
}

// Asks for this region's share of homes, unless an operator had taken it away before.
async fn take_homes_back(node: &Weak<Node>, cancel: &CancellationToken) {
    while !cancel.is_cancelled() {
        let Some(running) = node.upgrade() else {
            return;
        };
        let me = running.config().region;
        let federation = running.homes().federation();
        let is_due = federation
            .returned
            .get(&me)
            .is_some_and(|returned| !returned.was_drained && federation.drained().contains(&me));
        if !is_due {
            return;
        }
        let consensus = running.consensus_of();
        drop(running);
        let deadline = Instant::now() + DECIDE_WITHIN;
        if let Ok(Outcome::Changed(_)) = consensus.propose(Command::Resume(me), deadline).await {
            info!("this region takes its share of homes");
            return;
        }
        sleep(AGAIN_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use meridian_clock::{PartitionId, Position, RegionId};
    use meridian_store::SimDisk;

    use super::*;

    #[test]
    fn what_is_home_is_not_brought_home_again_and_read_models_are_replayed_once() {
        let disk = SimDisk::new(1);
        assert!(!must_replay(&disk).expect("the disk is sound"));
        note_replay(&disk).expect("the disk is sound");
        assert!(must_replay(&disk).expect("the disk is sound"));
        forget_replay(&disk).expect("the disk is sound");
        forget_replay(&disk).expect("twice is no error");
        assert!(!must_replay(&disk).expect("the disk is sound"));

        let tail = |generation| StrandedTail {
            log: LogId::new(RegionId(1), PartitionId(3)),
            generation,
            after: Position(7),
        };
        note_home(&disk, &[tail(1)]).expect("the disk is sound");
        note_home(&disk, &[tail(2)]).expect("the disk is sound");
        assert_eq!(home(&disk).expect("it is sound").len(), 2);
    }
}

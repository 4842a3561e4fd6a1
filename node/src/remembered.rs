//! What is known of the settled order, kept over a restart.
//!
//! All of it is heard again once every member answers. Until then, and a member may be away for
//! days, a node that had forgotten it would take nothing for settled that was so before.

use std::sync::Arc;
use std::time::Duration;

use meridian_replication::{Links, Remembered};
use meridian_store::{Disk, checked_file};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

const PATH: &str = "watermarks";
/// The most that a restart takes back of what was settled, as long as a member is away.
const EVERY: Duration = Duration::from_secs(1);

/// What the last life of the node kept; nothing when that cannot be read, for it is heard again.
pub(crate) fn load(disk: &dyn Disk) -> Remembered {
    let kept = match checked_file::read(disk, PATH) {
        Ok(kept) => kept,
        Err(error) => {
            warn!(%error, "the watermarks of the last run cannot be read; they are heard again");
            return Remembered::default();
        }
    };
    let Some(bytes) = kept else {
        return Remembered::default();
    };
    postcard::from_bytes(&bytes).unwrap_or_else(|error| {
        warn!(%error, "the watermarks of the last run are another version's; they are heard again");
        Remembered::default()
    })
}

/// Forgets it: this region was put out, and part of what it had settled does not count any more.
///
/// # Errors
/// When the disk fails.
pub(crate) fn forget(disk: &dyn Disk) -> std::io::Result<()> {
    match disk.remove(PATH) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => {
            removed?;
            disk.sync_dir("")
        }
    }
}

/// Keeps what `links` know, until `cancel`.
pub(crate) async fn keep(links: Arc<Links>, disk: Arc<dyn Disk>, cancel: CancellationToken) {
    let mut every = interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kept = Remembered::default();
    let mut failing = false;
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            _ = every.tick() => {}
        }
        let now = links.remember();
        if now == kept {
            continue;
        }
        let bytes = postcard::to_stdvec(&now).expect("what is remembered always encodes");
        match checked_file::replace(&*disk, PATH, &bytes) {
            Ok(()) => {
                kept = now;
                failing = false;
            }
            // A full disk is reported by what really needs it.
            Err(error) if !failing => {
                failing = true;
                warn!(%error, "the watermarks cannot be kept; a restart may take some back");
            }
            Err(_) => {}
        }
    }
}

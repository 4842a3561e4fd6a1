//! The clock's durable ceiling: time that was ever given out survives a restart.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use meridian_clock::{ClockError, Hlc, Timestamp};
use meridian_points::{Bug, planted, reached};
use meridian_store::{Disk, checked_file};

const PATH: &str = "clock-ceiling";

/// Keeps the ceiling of an [`Hlc`] on disk ahead of the clock.
pub(crate) struct TimeKeeper {
    hlc: Arc<Hlc>,
    disk: Arc<dyn Disk>,
    // Writers take turns, so that a lower ceiling never replaces a higher one.
    writing: Mutex<()>,
}

/// Why there is no timestamp now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StampError {
    #[error(transparent)]
    Clock(#[from] ClockError),
    #[error("the clock ceiling cannot be made durable; check the disk")]
    Ceiling(#[source] io::Error),
}

impl TimeKeeper {
    /// The ceiling that an earlier life of the node left behind.
    pub(crate) fn load(disk: &dyn Disk) -> Result<Timestamp, checked_file::CheckedFileError> {
        let bytes = checked_file::read(disk, PATH)?;
        let number = bytes.as_deref().and_then(|bytes| bytes.try_into().ok());
        let number = number.filter(|_| !planted(Bug::ForgetCeiling));
        Ok(number.map_or(Timestamp::ZERO, |bytes| {
            Timestamp(u64::from_le_bytes(bytes))
        }))
    }

    pub(crate) fn new(hlc: Arc<Hlc>, disk: Arc<dyn Disk>) -> Self {
        Self {
            hlc,
            disk,
            writing: Mutex::new(()),
        }
    }

    pub(crate) fn hlc(&self) -> &Arc<Hlc> {
        &self.hlc
    }

    /// Moves the durable ceiling ahead when the clock has come near it. Called by a background
    /// task twice as often as needed, so that stamping itself hardly ever waits for the disk.
    pub(crate) fn keep_ahead(&self) -> io::Result<()> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ceiling) = self.hlc.wants_ceiling() {
            checked_file::replace(&*self.disk, PATH, &ceiling.0.to_le_bytes())?;
            self.hlc.raise_ceiling(ceiling);
        }
        Ok(())
    }

    /// Gives back what was only room, as the node stops: the next life then need not wait for its clock. Should anything
    /// be stamped all the same, the ceiling is raised before.
    pub(crate) fn lay_down(&self) -> io::Result<()> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let ceiling = match planted(Bug::GiveBackCeiling) {
            true => Timestamp::ZERO,
            false => self.hlc.lower_ceiling(),
        };
        checked_file::replace(&*self.disk, PATH, &ceiling.0.to_le_bytes())
    }

    /// The next timestamp, above `floor`.
    pub(crate) fn stamp_above(&self, floor: Timestamp) -> Result<Timestamp, StampError> {
        // One attempt may find the ceiling reached, the next one the floor ahead of the clock.
        for _ in 0..3 {
            match self.hlc.now() {
                Ok(stamp) if stamp > floor => return Ok(stamp),
                Ok(_) => {
                    self.hlc.merge(floor);
                }
                Err(ClockError::CeilingReached { .. }) => {
                    reached("a stamp waited for the clock's ceiling");
                    self.keep_ahead().map_err(StampError::Ceiling)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let ahead = floor.after(self.hlc.physical_now());
        Err(ClockError::Skewed {
            reason: format!(
                "its own log was last stamped {} ms ahead of it",
                ahead.as_millis()
            ),
        }
        .into())
    }
}

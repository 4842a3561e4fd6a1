//! The hybrid logical clock of one node.

use std::cell::Cell;
use std::num::NonZeroU8;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::Timestamp;

/// Where wall-clock time comes from: the system in `meridian serve`, the simulator in `sim`.
pub trait PhysicalClock: Send + Sync {
    /// Time since 1970 as NTP64. May jump either way; [`Hlc`] copes.
    fn now(&self) -> Timestamp;
}

thread_local! {
    // uhlc takes its clock as a plain `fn`, without state. The wrapper puts the reading here just
    // before each call, on the same thread, which also lets it hold time above the durable floor.
    static READING: Cell<u64> = const { Cell::new(0) };
}

fn handed_over() -> uhlc::NTP64 {
    uhlc::NTP64(READING.with(Cell::get))
}

/// Where a clock begins after a restart, both read back from disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HlcStart {
    /// The highest ceiling that was ever made durable; nothing above it was ever given out.
    pub ceiling: Timestamp,
    /// The last stamp found in this node's own origin logs.
    pub last_stamp: Timestamp,
}

/// Why no timestamp can be given out now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// Time has reached what is durable. Write a higher ceiling to disk, call
    /// [`Hlc::raise_ceiling`] and ask again.
    #[error("the durable clock ceiling {ceiling} is reached; a higher one must be written first")]
    CeilingReached {
        /// What is durable now.
        ceiling: Timestamp,
    },
    /// This node's wall clock disagrees with its peers. Reads go on; correct the clock.
    #[error(
        "this node's clock cannot be trusted: {reason}; correct it, stamping resumes by itself"
    )]
    Skewed {
        /// What the skew guard saw.
        reason: String,
    },
}

/// What became of another node's timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Our clock is now at or past it.
    Merged,
    /// It lies further ahead of our wall clock than the allowed offset: our clock did not move, so
    /// a far-future clock does not spread. The event it came with is stored all the same.
    TooFarAhead {
        /// How far ahead of our wall clock it is.
        by: Duration,
    },
}

// One counter step above, since what is given may itself have been given out.
fn above(used: Timestamp) -> Timestamp {
    Timestamp(used.0.saturating_add(16))
}

struct State {
    ceiling: Timestamp,
    // The furthest uhlc has come: it has no getter for it.
    reached: Timestamp,
    skewed: Option<String>,
}

/// A node's hybrid logical clock: [`uhlc`] over a [`PhysicalClock`], held above what earlier lives
/// of the node may have given out and below what is durable.
pub struct Hlc {
    inner: uhlc::HLC,
    physical: Arc<dyn PhysicalClock>,
    // A timestamp; read without the lock.
    floor: AtomicU64,
    max_offset: Duration,
    state: Mutex<State>,
}

impl Hlc {
    /// How far ahead of now the durable ceiling is kept, as DESIGN §5 sets it.
    pub const CEILING_AHEAD: Duration = Duration::from_secs(1);

    /// A clock that starts above `start`, whatever `physical` says.
    ///
    /// `max_offset` is how far ahead of our wall clock a received timestamp may lie and still move
    /// this clock.
    pub fn new(physical: Arc<dyn PhysicalClock>, start: HlcStart, max_offset: Duration) -> Self {
        // An id that cannot be zero, as uhlc demands; it only breaks ties inside uhlc and is not
        // stored, order keys carry the region themselves.
        let id = uhlc::ID::from(NonZeroU8::MIN);
        let inner = uhlc::HLCBuilder::new()
            .with_id(id)
            .with_clock(handed_over)
            .with_max_delta(max_offset)
            .build();
        Self {
            inner,
            physical,
            floor: AtomicU64::new(above(start.ceiling.max(start.last_stamp)).0),
            max_offset,
            state: Mutex::new(State {
                ceiling: start.ceiling,
                reached: Timestamp::ZERO,
                skewed: None,
            }),
        }
    }

    /// What the wall clock says, unaltered.
    pub fn physical_now(&self) -> Timestamp {
        self.physical.now()
    }

    /// The next timestamp: above every earlier one of this node and every merged one.
    ///
    /// # Errors
    /// [`ClockError::CeilingReached`] until a higher ceiling is durable, [`ClockError::Skewed`]
    /// while the wall clock is not trusted.
    pub fn now(&self) -> Result<Timestamp, ClockError> {
        let mut state = self.lock();
        if let Some(reason) = &state.skewed {
            return Err(ClockError::Skewed {
                reason: reason.clone(),
            });
        }
        self.hand_over();
        let stamp = Timestamp(self.inner.new_timestamp().get_time().as_u64());
        assert!(
            stamp > state.reached,
            "rising: {stamp} was given out at or after {}",
            state.reached
        );
        state.reached = stamp;
        if stamp >= state.ceiling {
            return Err(ClockError::CeilingReached {
                ceiling: state.ceiling,
            });
        }
        Ok(stamp)
    }

    /// Takes note of a timestamp that another node gave out.
    pub fn merge(&self, received: Timestamp) -> Merge {
        let mut state = self.lock();
        let ahead = received.after(self.physical.now().max(self.floor()));
        if ahead > self.max_offset {
            return Merge::TooFarAhead { by: ahead };
        }
        self.hand_over();
        let stamp = uhlc::Timestamp::new(uhlc::NTP64(received.0), *self.inner.get_id());
        match self.inner.update_with_timestamp(&stamp) {
            Ok(()) => {
                // uhlc is now at most one count above what it was given, its own last value plus
                // one, or the wall clock; `now` asserts that it only rises from here.
                state.reached = state.reached.max(received);
                Merge::Merged
            }
            Err(_) => Merge::TooFarAhead { by: ahead },
        }
    }

    /// Stamps rise above `used` from here on, however far ahead of the wall clock it is: a node that
    /// lost its disk learns from others what it had given out.
    pub fn start_above(&self, used: Timestamp) {
        self.floor.fetch_max(above(used).0, Ordering::Relaxed);
    }

    /// How far the next stamp lies ahead of the wall clock for what earlier lives of the node may have given out:
    /// up to [`Hlc::CEILING_AHEAD`] right after a restart, and more where peers' clocks are ahead of it or it was set
    /// back.
    pub fn ahead(&self) -> Duration {
        self.floor().after(self.physical.now())
    }

    /// The highest timestamp that no later stamp of this node, after a restart neither, will be at
    /// or below. It rises with stamps and merged timestamps only, so it can be promised while the
    /// wall clock is not trusted.
    pub fn passed(&self) -> Timestamp {
        let state = self.lock();
        // A restart begins above the ceiling, which is all that a later life knows.
        state
            .reached
            .min(Timestamp(state.ceiling.0.saturating_sub(1)))
    }

    /// The ceiling that should be made durable now, if the present one is less than half of
    /// [`Hlc::CEILING_AHEAD`] away.
    pub fn wants_ceiling(&self) -> Option<Timestamp> {
        let now = self.reading();
        let ceiling = self.ceiling();
        (now.plus(Self::CEILING_AHEAD / 2) > ceiling).then(|| now.plus(Self::CEILING_AHEAD))
    }

    /// Lets stamps rise to below `durable`, which the caller has on disk. A lower value is ignored.
    pub fn raise_ceiling(&self, durable: Timestamp) {
        let mut state = self.lock();
        state.ceiling = state.ceiling.max(durable);
    }

    /// Lets stamps rise hardly any further before another ceiling is durable, and returns what may be made durable in
    /// the place of this one: nothing above it was given out in this life or those before, so that the next one need not
    /// begin above what was only room.
    pub fn lower_ceiling(&self) -> Timestamp {
        let mut state = self.lock();
        // A life that stamped nothing knows of what was promised before it by its floor alone.
        let used = state.reached.max(self.floor());
        state.ceiling = state.ceiling.min(above(used));
        state.ceiling
    }

    /// What stamps stay below.
    pub fn ceiling(&self) -> Timestamp {
        self.lock().ceiling
    }

    /// Stops or resumes stamping, as a [`crate::SkewGuard`] found.
    pub fn set_skewed(&self, reason: Option<String>) {
        self.lock().skewed = reason;
    }

    /// Why stamping is stopped, if it is.
    pub fn skewed(&self) -> Option<String> {
        self.lock().skewed.clone()
    }

    // The later of the wall clock and the last stamp given out. What earlier lives may have used counts where the wall
    // clock does not come past it soon: else each of a row of quick restarts would begin further ahead.
    fn reading(&self) -> Timestamp {
        let (now, reached) = (self.physical.now(), self.lock().reached);
        let floor = self.floor();
        match floor < now.plus(Self::CEILING_AHEAD) {
            true => now.max(reached),
            false => floor.max(reached),
        }
    }

    fn floor(&self) -> Timestamp {
        Timestamp(self.floor.load(Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_over(&self) {
        let now = self.physical.now().max(self.floor());
        READING.with(|reading| reading.set(now.0));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX_OFFSET: Duration = Duration::from_millis(500);

    struct SetClock(AtomicU64);

    impl PhysicalClock for SetClock {
        fn now(&self) -> Timestamp {
            Timestamp(self.0.load(Ordering::Relaxed))
        }
    }

    fn noon() -> Timestamp {
        Timestamp::from_unix(Duration::from_secs(1_700_000_000))
    }

    fn clock_at(wall: Timestamp, start: HlcStart) -> (Arc<SetClock>, Hlc) {
        let physical = Arc::new(SetClock(AtomicU64::new(wall.0)));
        let hlc = Hlc::new(
            Arc::clone(&physical) as Arc<dyn PhysicalClock>,
            start,
            MAX_OFFSET,
        );
        (physical, hlc)
    }

    #[test]
    fn nothing_is_stamped_before_a_ceiling_is_durable() {
        let (_, hlc) = clock_at(noon(), HlcStart::default());
        assert!(matches!(hlc.now(), Err(ClockError::CeilingReached { .. })));
        hlc.raise_ceiling(hlc.wants_ceiling().expect("a fresh clock wants a ceiling"));
        assert!(hlc.now().is_ok());
    }

    #[test]
    fn a_restart_with_the_wall_clock_set_back_an_hour_stamps_above_the_old_ceiling() {
        let ceiling = noon().plus(Duration::from_secs(1));
        let start = HlcStart {
            ceiling,
            last_stamp: noon(),
        };
        let an_hour_ago = Timestamp(noon().0 - (3600 << 32));
        let (_, hlc) = clock_at(an_hour_ago, start);
        assert!(hlc.ahead() > Duration::from_secs(3600));
        hlc.raise_ceiling(hlc.wants_ceiling().expect("the old ceiling is used up"));
        assert!(hlc.now().expect("the new ceiling is durable") > ceiling);
    }

    #[test]
    fn quick_restarts_do_not_add_up() {
        let ceiling = noon().plus(Duration::from_millis(900));
        let start = HlcStart {
            ceiling,
            last_stamp: noon(),
        };
        let (clock, hlc) = clock_at(noon(), start);
        hlc.raise_ceiling(hlc.wants_ceiling().unwrap_or_default());
        assert!(hlc.ceiling() <= noon().plus(Hlc::CEILING_AHEAD));
        // Nor is there a lack of room once the clock is past them.
        clock.0.store(ceiling.0, Ordering::Relaxed);
        hlc.raise_ceiling(hlc.wants_ceiling().expect("it is used up"));
        assert!(hlc.now().expect("there is room") > ceiling);
    }

    #[test]
    fn a_ceiling_is_lowered_to_what_was_given_out_and_no_further() {
        let (_, hlc) = clock_at(noon(), HlcStart::default());
        hlc.raise_ceiling(noon().plus(Duration::from_secs(1)));
        let last = hlc.now().expect("there is room");
        let kept = hlc.lower_ceiling();
        assert!(kept > last && kept.after(last) < Duration::from_millis(1));
        assert_eq!(hlc.passed(), last);
        // Whatever is given out all the same stays below what is durable.
        let given: Vec<_> = (0..20).map_while(|_| hlc.now().ok()).collect();
        assert!(given.len() < 20 && given.iter().all(|it| *it < kept));
        let start = HlcStart {
            ceiling: kept,
            last_stamp: last,
        };
        let (_, next) = clock_at(noon(), start);
        next.raise_ceiling(next.wants_ceiling().expect("there is none yet"));
        assert!(next.now().expect("there is room") > last);
    }

    #[test]
    fn a_life_that_stamped_nothing_does_not_give_back_what_those_before_it_used() {
        let ceiling = noon().plus(Duration::from_secs(1));
        let start = HlcStart {
            ceiling,
            last_stamp: noon(),
        };
        let (_, hlc) = clock_at(noon(), start);
        assert_eq!(hlc.lower_ceiling(), ceiling);
        hlc.raise_ceiling(noon().plus(Duration::from_secs(3600)));
        assert!(hlc.lower_ceiling() >= ceiling);
    }

    #[test]
    fn a_far_future_stamp_moves_nothing() {
        let (_, hlc) = clock_at(noon(), HlcStart::default());
        hlc.raise_ceiling(noon().plus(Duration::from_secs(60)));
        let before = hlc.now().expect("stamping is allowed");
        let merged = hlc.merge(noon().plus(Duration::from_secs(10)));
        assert!(matches!(merged, Merge::TooFarAhead { .. }));
        let after = hlc.now().expect("stamping is allowed");
        assert!(
            after.after(before) < Duration::from_millis(1),
            "{before} then {after}"
        );
    }

    #[test]
    fn a_near_stamp_carries_a_slow_clock_with_it() {
        let (_, hlc) = clock_at(noon(), HlcStart::default());
        hlc.raise_ceiling(noon().plus(Duration::from_secs(60)));
        let ahead = noon().plus(Duration::from_millis(400));
        assert_eq!(hlc.merge(ahead), Merge::Merged);
        assert!(hlc.now().expect("stamping is allowed") > ahead);
    }

    #[test]
    fn a_skewed_clock_still_passes_what_it_merges() {
        let (_, hlc) = clock_at(noon(), HlcStart::default());
        hlc.raise_ceiling(noon().plus(Duration::from_secs(60)));
        hlc.set_skewed(Some("off by 900 ms".to_owned()));
        let ahead = noon().plus(Duration::from_millis(300));
        hlc.merge(ahead);
        assert_eq!(hlc.passed(), ahead);
        hlc.set_skewed(None);
        assert!(hlc.now().expect("it is trusted again") > ahead);
    }

    #[test]
    fn nothing_is_passed_that_a_restart_could_stamp() {
        let (_, hlc) = clock_at(noon(), HlcStart::default());
        let ceiling = noon().plus(Duration::from_millis(100));
        hlc.raise_ceiling(ceiling);
        hlc.merge(noon().plus(Duration::from_millis(400)));
        assert!(hlc.passed() < ceiling);
    }

    #[test]
    fn what_others_know_was_given_out_is_not_given_out_again() {
        let (_, hlc) = clock_at(noon(), HlcStart::default());
        let used = noon().plus(Duration::from_secs(3600));
        hlc.start_above(used);
        hlc.raise_ceiling(hlc.wants_ceiling().expect("the ceiling is far below"));
        assert!(hlc.now().expect("the ceiling is raised") > used);
    }

    #[test]
    fn a_skewed_clock_does_not_stamp_and_recovers() {
        let (_, hlc) = clock_at(noon(), HlcStart::default());
        hlc.raise_ceiling(noon().plus(Duration::from_secs(60)));
        hlc.set_skewed(Some("off by 900 ms".to_owned()));
        assert!(matches!(hlc.now(), Err(ClockError::Skewed { .. })));
        hlc.set_skewed(None);
        assert!(hlc.now().is_ok());
    }

    proptest! {
        #[test]
        fn stamps_rise_whatever_the_wall_clock_does(
            jumps in prop::collection::vec((-2_000i64..2_000, any::<bool>(), -900i64..900), 1..200),
        ) {
            let (physical, hlc) = clock_at(noon(), HlcStart::default());
            let mut last = Timestamp::ZERO;
            for (jump_ms, merges, offset_ms) in jumps {
                let shift = |from: u64, ms: i64| from.saturating_add_signed(ms << 22);
                physical.0.store(shift(noon().0, jump_ms), Ordering::Relaxed);
                if merges {
                    hlc.merge(Timestamp(shift(noon().0, offset_ms)));
                }
                if let Some(ceiling) = hlc.wants_ceiling() {
                    hlc.raise_ceiling(ceiling);
                }
                let stamp = hlc.now().expect("the ceiling was just raised");
                prop_assert!(stamp > last);
                prop_assert!(stamp < hlc.ceiling());
                last = stamp;
            }
        }
    }
}

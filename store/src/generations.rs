//! Which blocks of a log are taken, now that its region was fenced or has come back.
//!
//! A fence ends a *generation* of a region's logs, [`Epoch::major`], at a cut: one position for each
//! log, on which the remaining regions agree. What the region wrote beyond it is not taken any more,
//! and the region goes on behind the cut in its next generation.

use meridian_clock::{Epoch, Position};

/// What is known of the generations of one log.
///
/// The default is a log whose region was never fenced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generations {
    /// `cuts[i]` is where generation [`Epoch::FIRST`]`.major + i` of the log ended; never falling.
    pub cuts: Vec<Position>,
    /// The generation after those is fenced and its cut is not known yet: none of its blocks is
    /// taken.
    pub sealed: bool,
}

/// Why a block is not taken, going by its generation. Whoever sends it sends what no region takes,
/// or knows of a fence or a return that this node is yet to hear of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Its generation ended before it. What its region wrote there is stranded.
    #[error(
        "generation {generation} was cut at {cut} and the block ends at {last}; what is beyond the \
         cut is stranded in its region"
    )]
    BeyondCut {
        /// The block's generation.
        generation: u32,
        /// Where that ended.
        cut: Position,
        /// The position of the block's last event.
        last: Position,
    },
    /// Its generation goes on behind a cut that the block does not stand behind.
    #[error(
        "generation {generation} goes on after {cut}, where the one before it was cut, and the \
         block begins at {first}; its writer has to learn of the fence"
    )]
    BeforeStart {
        /// The block's generation.
        generation: u32,
        /// Where the one before it ended.
        cut: Position,
        /// The position of the block's first event.
        first: Position,
    },
    /// Its generation is fenced, and the remaining regions are yet to agree on its cut.
    #[error("generation {generation} is fenced; offer the block again once its cut is known")]
    Sealed {
        /// The block's generation.
        generation: u32,
    },
    /// Its generation begins with a return of the region that this node has not heard of.
    #[error(
        "the block is of generation {generation} and this node is at {current}; this node has not \
         learnt yet that the region came back, offer the block again once it has"
    )]
    NotLearnt {
        /// The block's generation.
        generation: u32,
        /// The last one that this node knows of.
        current: u32,
    },
}

impl Generations {
    /// Whether a block of `epoch` that goes from `first` to `last` may be taken. A generation below
    /// the first one counts as the first.
    ///
    /// # Errors
    /// With the reason when it may not.
    pub fn admits(&self, epoch: Epoch, first: Position, last: Position) -> Result<(), NotAdmitted> {
        let generation = epoch.major;
        let place = generation.saturating_sub(Epoch::FIRST.major) as usize;
        if place > self.cuts.len() {
            let ended = u32::try_from(self.cuts.len()).unwrap_or(u32::MAX);
            return Err(NotAdmitted::NotLearnt {
                generation,
                current: Epoch::FIRST.major.saturating_add(ended),
            });
        }
        match self.cuts.get(place) {
            Some(cut) if last > *cut => {
                return Err(NotAdmitted::BeyondCut {
                    generation,
                    cut: *cut,
                    last,
                });
            }
            None if self.sealed => return Err(NotAdmitted::Sealed { generation }),
            _ => {}
        }
        let before = place.checked_sub(1).and_then(|it| self.cuts.get(it));
        match before {
            Some(cut) if first <= *cut => Err(NotAdmitted::BeforeStart {
                generation,
                cut: *cut,
                first,
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn admits(generations: &Generations, major: u32, first: u64, last: u64) -> bool {
        let epoch = Epoch { major, minor: 3 };
        let admitted = generations.admits(epoch, Position(first), Position(last));
        admitted.is_ok()
    }

    fn cut_at(cuts: &[u64], sealed: bool) -> Generations {
        Generations {
            cuts: cuts.iter().copied().map(Position).collect(),
            sealed,
        }
    }

    #[test]
    fn a_log_that_was_never_fenced_takes_its_first_generation_only() {
        let never = Generations::default();
        assert!(admits(&never, 1, 1, u64::MAX));
        assert!(admits(&never, 0, 1, 9));
        assert_eq!(
            never.admits(Epoch { major: 2, minor: 0 }, Position(1), Position(1)),
            Err(NotAdmitted::NotLearnt {
                generation: 2,
                current: 1,
            })
        );
    }

    #[test]
    fn a_sealed_generation_takes_nothing_until_its_cut_is_known() {
        let sealed = cut_at(&[], true);
        assert!(!admits(&sealed, 1, 1, 1));
        let known = cut_at(&[10], false);
        assert!(admits(&known, 1, 8, 10));
        assert!(!admits(&known, 1, 8, 11), "it reaches beyond the cut");
        assert!(!admits(&known, 1, 11, 11));
    }

    #[test]
    fn a_region_that_came_back_goes_on_behind_its_cut() {
        let back = cut_at(&[10], false);
        assert!(admits(&back, 2, 11, 40));
        assert!(
            !admits(&back, 2, 10, 40),
            "the cut is in the old generation"
        );
        assert!(!admits(&back, 3, 41, 41), "nobody has fenced it again");
        let again = cut_at(&[10, 40], true);
        assert!(admits(&again, 1, 1, 10));
        assert!(admits(&again, 2, 11, 40));
        assert!(!admits(&again, 2, 11, 41));
        assert!(!admits(&again, 2, 10, 10));
        assert!(!admits(&again, 3, 41, 41), "fenced a third time");
    }

    proptest! {
        /// At each position at most one generation may write, and without a seal exactly one.
        #[test]
        fn every_position_belongs_to_one_generation(
            steps in prop::collection::vec(0u64..20, 0..5),
            sealed: bool,
            position in 1u64..120,
        ) {
            let cuts: Vec<u64> = steps
                .iter()
                .scan(0, |at, step| { *at += step; Some(*at) })
                .collect();
            let generations = cut_at(&cuts, sealed);
            let takers = (1..10).filter(|major| admits(&generations, *major, position, position));
            let takers: Vec<u32> = takers.collect();
            let beyond_all = cuts.last().is_none_or(|last| position > *last);
            let expected = usize::from(!(sealed && beyond_all));
            prop_assert_eq!(takers.len(), expected, "{:?}", takers);
        }

        /// A block that may be taken may be taken event by event, too.
        #[test]
        fn what_is_admitted_is_admitted_in_pieces(
            steps in prop::collection::vec(0u64..20, 0..5),
            sealed: bool,
            major in 0u32..8,
            first in 1u64..120,
            count in 1u64..9,
        ) {
            let cuts: Vec<u64> = steps
                .iter()
                .scan(0, |at, step| { *at += step; Some(*at) })
                .collect();
            let generations = cut_at(&cuts, sealed);
            let last = first + count - 1;
            let whole = admits(&generations, major, first, last);
            let pieces = (first..=last).all(|at| admits(&generations, major, at, at));
            prop_assert_eq!(whole, pieces);
        }
    }
}

//! What the federation has decided: who its members are, and which region is home to streams that
//! were moved.
//!
//! A pure state machine. Every region applies the same commands in the same order, so every region
//! comes to the same state; a command that is refused changes nothing, in every region alike.

use std::collections::BTreeMap;

use meridian_clock::{Epoch, PartitionId, RegionId};
use meridian_conflict::{CategoryPolicy, Policies, Route};
use meridian_event::StreamId;
use serde::{Deserialize, Serialize};

/// How many streams one command moves at most: commands are kept in a log that is written as a whole.
pub(crate) const MOVES_MAX: usize = 250;

/// What is asked of the federation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Begins it. The first one counts; all members say the same unless their configurations differ.
    Found(Foundation),
    /// Moves streams to another home.
    Move {
        /// Which; at most [`MOVES_MAX`].
        streams: Vec<StreamId>,
        /// Where to.
        to: RegionId,
    },
    /// The new home of what a change moves holds all that it needs and takes writes.
    Opened {
        /// The change.
        change: u64,
    },
    /// The new home cannot take what region `from` gives up in a partition: that is stamped too far
    /// ahead of its clock. It goes back to where it was, handed over like any other.
    Declined {
        /// The change.
        change: u64,
        /// The old home, to be the home again.
        from: RegionId,
        /// The partition.
        partition: PartitionId,
    },
}

/// What all members must agree on from the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Foundation {
    /// The members, and what they are called.
    pub(crate) members: BTreeMap<RegionId, String>,
    /// How many partitions streams are spread over.
    pub(crate) partitions: u16,
    /// The rules of categories.
    pub(crate) categories: BTreeMap<String, CategoryPolicy>,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// It is done, as the change of this number.
    Changed(u64),
    /// Everything was as it asks already.
    Unchanged,
    /// It was not done.
    Refused(Refusal),
}

/// Why a command was refused. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Refusal {
    /// The first command has not come yet.
    #[error(
        "the federation is not founded yet: more than half of its regions must be up; try again"
    )]
    NotFounded,
    /// There is no such region.
    #[error(
        "region {region} is not a member of the federation; `meridian status` lists the members"
    )]
    UnknownRegion {
        /// The region.
        region: RegionId,
    },
    /// The stream has no home.
    #[error("stream {stream} is written in every region, so it has no home to move")]
    NoHome {
        /// The stream.
        stream: StreamId,
    },
    /// The server needs it where it is.
    #[error("stream {stream} is the server's own; it stays where it is")]
    Internal {
        /// The stream.
        stream: StreamId,
    },
    /// Its last move is not over.
    #[error(
        "stream {stream} is still being moved from region {from} to region {to}; both must be up for \
         that to end, then move it again"
    )]
    Moving {
        /// The stream.
        stream: StreamId,
        /// Whence.
        from: RegionId,
        /// Whither.
        to: RegionId,
    },
    /// More than one command takes.
    #[error("{found} streams in one move; at most {MOVES_MAX} are moved at once")]
    TooMany {
        /// How many.
        found: usize,
    },
}

/// The last move of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moved {
    /// Its home since.
    pub(crate) home: RegionId,
    /// Its home before.
    pub(crate) from: RegionId,
    /// The number of the change that moved it.
    pub(crate) change: u64,
    /// How often it was moved so far.
    pub(crate) minor: u32,
    /// Whether the new home has opened.
    pub(crate) opened: bool,
    /// The transfers that the new home must hold: who wrote each, and following which change.
    pub(crate) needs: Vec<(RegionId, u64)>,
    /// Those that the old home must hold before it gives the stream up.
    pub(crate) before: Vec<(RegionId, u64)>,
}

impl Moved {
    /// The epoch of its home.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch {
            minor: self.minor,
            ..Epoch::FIRST
        }
    }
}

/// What is decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Federation {
    /// The number of the last change; they count from 1.
    pub(crate) version: u64,
    /// How it began; `None` before it did.
    pub(crate) foundation: Option<Foundation>,
    /// The streams that were ever moved.
    pub(crate) moved: BTreeMap<StreamId, Moved>,
}

impl Federation {
    /// Applies a command.
    pub(crate) fn apply(&mut self, command: &Command) -> Outcome {
        let done = match command {
            Command::Found(foundation) => self.found(foundation),
            Command::Move { streams, to } => self.move_streams(streams, *to),
            Command::Opened { change } => Ok(self.open(*change)),
            Command::Declined {
                change,
                from,
                partition,
            } => self.decline(*change, *from, *partition),
        };
        done.unwrap_or_else(Outcome::Refused)
    }

    fn found(&mut self, foundation: &Foundation) -> Result<Outcome, Refusal> {
        if self.foundation.is_some() {
            return Ok(Outcome::Unchanged);
        }
        self.foundation = Some(foundation.clone());
        Ok(self.changed())
    }

    fn changed(&mut self) -> Outcome {
        self.version += 1;
        Outcome::Changed(self.version)
    }

    fn move_streams(&mut self, streams: &[StreamId], to: RegionId) -> Result<Outcome, Refusal> {
        let foundation = self.foundation.as_ref().ok_or(Refusal::NotFounded)?;
        if !foundation.members.contains_key(&to) {
            return Err(Refusal::UnknownRegion { region: to });
        }
        if streams.len() > MOVES_MAX {
            return Err(Refusal::TooMany {
                found: streams.len(),
            });
        }
        let members = foundation.members.keys().copied().collect();
        let policies = Policies::new(members, foundation.categories.clone())
            .map_err(|_| Refusal::NotFounded)?;
        let mut moves = BTreeMap::new();
        for stream in streams {
            if stream.is_internal() {
                return Err(Refusal::Internal {
                    stream: stream.clone(),
                });
            }
            let Route::Home(rule) = policies.route(stream) else {
                return Err(Refusal::NoHome {
                    stream: stream.clone(),
                });
            };
            let last = self.moved.get(stream);
            let from = last.map_or(rule, |last| last.home);
            if from == to {
                continue;
            }
            if let Some(last) = last.filter(|last| !last.opened) {
                return Err(Refusal::Moving {
                    stream: stream.clone(),
                    from: last.from,
                    to: last.home,
                });
            }
            let moved = Moved {
                home: to,
                from,
                change: self.version + 1,
                minor: last.map_or(0, |last| last.minor) + 1,
                opened: false,
                needs: vec![(from, self.version + 1)],
                before: last.map_or_else(Vec::new, |last| last.needs.clone()),
            };
            moves.insert(stream.clone(), moved);
        }
        if moves.is_empty() {
            return Ok(Outcome::Unchanged);
        }
        self.moved.append(&mut moves);
        Ok(self.changed())
    }

    fn decline(
        &mut self,
        change: u64,
        from: RegionId,
        partition: PartitionId,
    ) -> Result<Outcome, Refusal> {
        let foundation = self.foundation.as_ref().ok_or(Refusal::NotFounded)?;
        let partitions = foundation.partitions;
        let next = self.version + 1;
        let mut is_any = false;
        for (stream, moved) in &mut self.moved {
            let is_meant = moved.change == change
                && moved.from == from
                && !moved.opened
                && stream.partition(partitions) == partition;
            if !is_meant {
                continue;
            }
            is_any = true;
            // Should the home that declines have written after all, its transfer stands behind that. It
            // holds less than it would need to, so what the old home needed still counts.
            let mut needs = vec![(moved.home, next)];
            needs.append(&mut moved.before);
            *moved = Moved {
                home: from,
                from: moved.home,
                change: next,
                minor: moved.minor + 1,
                opened: false,
                needs,
                before: Vec::new(),
            };
        }
        Ok(match is_any {
            true => self.changed(),
            false => Outcome::Unchanged,
        })
    }

    fn open(&mut self, change: u64) -> Outcome {
        let mut is_new = false;
        for moved in self.moved.values_mut() {
            if moved.change == change && !moved.opened {
                moved.opened = true;
                is_new = true;
            }
        }
        match is_new {
            true => self.changed(),
            false => Outcome::Unchanged,
        }
    }
}

#[cfg(test)]
mod tests {
    use meridian_conflict::{HomeRule, Mode};
    use proptest::prelude::*;

    use super::*;

    const A: RegionId = RegionId(0);
    const B: RegionId = RegionId(1);
    const C: RegionId = RegionId(2);

    fn founded() -> Federation {
        let mut federation = Federation::default();
        let policy = |mode, home| CategoryPolicy { mode, home };
        let foundation = Foundation {
            members: [(A, "a"), (B, "b"), (C, "c")]
                .map(|(region, name)| (region, name.to_owned()))
                .into(),
            partitions: 4,
            categories: BTreeMap::from([
                ("cart".to_owned(), policy(Mode::Crdt, HomeRule::Hash)),
                ("order".to_owned(), policy(Mode::Home, HomeRule::Fixed(A))),
            ]),
        };
        let outcome = federation.apply(&Command::Found(foundation));
        assert_eq!(outcome, Outcome::Changed(1));
        federation
    }

    fn moving(names: &[&str], to: RegionId) -> Command {
        Command::Move {
            streams: names.iter().map(|name| stream(name)).collect(),
            to,
        }
    }

    fn stream(name: &str) -> StreamId {
        StreamId::new(name).expect("a sound name")
    }

    #[test]
    fn a_move_begins_at_the_rules_home_and_ends_when_the_new_one_opens() {
        let mut federation = founded();
        assert_eq!(
            federation.apply(&moving(&["order-1"], B)),
            Outcome::Changed(2)
        );
        let moved = &federation.moved[&stream("order-1")];
        assert_eq!((moved.from, moved.home, moved.minor), (A, B, 1));
        assert!(!moved.opened);

        let refused = federation.apply(&moving(&["order-1"], C));
        assert!(
            matches!(refused, Outcome::Refused(Refusal::Moving { .. })),
            "{refused:?}"
        );
        assert_eq!(
            federation.apply(&Command::Opened { change: 2 }),
            Outcome::Changed(3)
        );
        assert!(federation.moved[&stream("order-1")].opened);
        assert_eq!(
            federation.apply(&moving(&["order-1"], C)),
            Outcome::Changed(4)
        );
        let moved = &federation.moved[&stream("order-1")];
        assert_eq!((moved.from, moved.home, moved.minor), (B, C, 2));
        assert_eq!(
            (&moved.needs[..], &moved.before[..]),
            (&[(B, 4)][..], &[(A, 2)][..])
        );
    }

    #[test]
    fn what_the_new_home_declines_goes_back_to_where_it_was() {
        let mut federation = founded();
        let name = stream("order-1");
        federation.apply(&moving(&["order-1"], B));
        federation.apply(&Command::Opened { change: 2 });
        federation.apply(&moving(&["order-1"], C));
        let decline = Command::Declined {
            change: 4,
            from: B,
            partition: name.partition(4),
        };
        assert_eq!(federation.apply(&decline), Outcome::Changed(5));
        assert_eq!(federation.apply(&decline), Outcome::Unchanged);
        let moved = &federation.moved[&name];
        assert_eq!((moved.home, moved.from, moved.change), (B, C, 5));
        assert!(!moved.opened && moved.minor == 3);
        // C gives it up at once; B still needs what it needed to be home at first.
        assert_eq!(moved.before, []);
        assert_eq!(moved.needs, [(C, 5), (A, 2)]);
        let opened = Command::Opened { change: 5 };
        assert_eq!(federation.apply(&opened), Outcome::Changed(6));
    }

    #[test]
    fn what_is_asked_twice_changes_nothing_the_second_time() {
        let mut federation = founded();
        federation.apply(&moving(&["order-1", "order-2"], B));
        let before = federation.clone();
        assert_eq!(
            federation.apply(&moving(&["order-1", "order-2"], B)),
            Outcome::Unchanged
        );
        let again = before.foundation.clone().expect("it is founded");
        assert_eq!(federation.apply(&Command::Found(again)), Outcome::Unchanged);
        assert_eq!(federation, before);
    }

    #[test]
    fn what_cannot_be_moved_is_refused_whole() {
        let mut federation = founded();
        let before = federation.clone();
        let mut refuse = |command: &Command| match federation.apply(command) {
            Outcome::Refused(refusal) => refusal,
            other => panic!("{command:?} was not refused: {other:?}"),
        };
        let unknown = refuse(&moving(&["order-1"], RegionId(9)));
        assert_eq!(
            unknown,
            Refusal::UnknownRegion {
                region: RegionId(9)
            }
        );
        let shared = refuse(&moving(&["order-1", "cart-1"], B));
        assert!(matches!(shared, Refusal::NoHome { .. }), "{shared:?}");
        let own = refuse(&moving(&["$projections-x"], B));
        assert!(matches!(own, Refusal::Internal { .. }), "{own:?}");
        let names: Vec<String> = (0..=MOVES_MAX).map(|it| format!("order-{it}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(
            refuse(&moving(&names, B)),
            Refusal::TooMany {
                found: MOVES_MAX + 1
            }
        );
        assert_eq!(federation, before);
        let mut unborn = Federation::default();
        let refused = unborn.apply(&moving(&["order-1"], B));
        assert_eq!(refused, Outcome::Refused(Refusal::NotFounded));
    }

    proptest! {
        #[test]
        fn each_move_begins_where_the_last_one_ended(
            moves in proptest::collection::vec((0..4u16, 0..3u16, any::<bool>()), 1..40),
        ) {
            let mut federation = founded();
            let mut homes = BTreeMap::new();
            for (name, to, opens) in moves {
                let name = stream(&format!("order-{name}"));
                let command = Command::Move { streams: vec![name.clone()], to: RegionId(to) };
                let before = homes.get(&name).copied().unwrap_or(A);
                if let Outcome::Changed(change) = federation.apply(&command) {
                    let moved = &federation.moved[&name];
                    prop_assert_eq!(moved.from, before);
                    prop_assert_ne!(moved.home, before);
                    prop_assert_eq!(moved.change, change);
                    homes.insert(name, moved.home);
                    if opens {
                        federation.apply(&Command::Opened { change });
                    }
                }
            }
        }
    }
}

//! What a store takes of a region that was fenced.

use meridian_clock::Position;
use meridian_event::Block;
use meridian_store::{Generations, NotAdmitted, SimDisk, Store, SubmitError};

use crate::world::{Writer, commit, log, open, settle};

fn refusal(store: &Store, block: Block) -> Option<SubmitError> {
    let refused = Box::new(|_| panic!("it was refused"));
    store.submit(block, refused).err()
}

fn cut_at(cuts: &[u64], sealed: bool) -> Generations {
    Generations {
        cuts: cuts.iter().copied().map(Position).collect(),
        sealed,
    }
}

#[test]
fn a_sealed_log_takes_nothing_and_the_others_go_on() {
    let (store, _) = open(&SimDisk::new(1));
    let mut writer = Writer::default();
    commit(&store, writer.block(&store, log(1), &[("a", 3)], 9));
    store.set_generations(log(1), cut_at(&[], true));
    let before = store.submitted_head(log(1));

    let block = writer.block(&store, log(1), &[("a", 1)], 9);
    assert_eq!(
        refusal(&store, block),
        Some(SubmitError::Fenced {
            log: log(1),
            source: NotAdmitted::Sealed { generation: 1 },
        })
    );
    assert_eq!(store.submitted_head(log(1)), before);
    commit(&store, writer.block(&store, log(2), &[("b", 1)], 9));
}

#[test]
fn what_was_submitted_before_a_seal_becomes_durable_and_no_more_does() {
    let (store, _) = open(&SimDisk::new(1));
    let mut writer = Writer::default();
    let block = writer.block(&store, log(1), &[("a", 3)], 9);
    store.submit(block, Box::new(|_| {})).expect("it is taken");
    store.set_generations(log(1), cut_at(&[], true));

    assert_eq!(store.head(log(1)).position, Position::ZERO);
    settle(&store);
    assert_eq!(store.head(log(1)), store.submitted_head(log(1)));
    assert_eq!(store.head(log(1)).position, Position(3));
}

#[test]
fn a_fenced_generation_is_taken_up_to_its_cut_and_the_next_one_behind_it() {
    let (store, _) = open(&SimDisk::new(1));
    let mut writer = Writer::default();
    commit(&store, writer.block(&store, log(1), &[("a", 3)], 9));
    let early = writer.block_of(2, &store, log(1), &[("a", 1)], 9);
    assert!(
        matches!(
            refusal(&store, early),
            Some(SubmitError::Fenced {
                source: NotAdmitted::NotLearnt { current: 1, .. },
                ..
            })
        ),
        "nobody has told this node of a fence"
    );

    let mut writer = Writer::default();
    writer.clock = 100;
    store.set_generations(log(1), cut_at(&[5], false));
    let over = writer.block(&store, log(1), &[("a", 3)], 9);
    assert!(matches!(
        refusal(&store, over),
        Some(SubmitError::Fenced {
            source: NotAdmitted::BeyondCut { .. },
            ..
        })
    ));
    let too_soon = writer.block_of(2, &store, log(1), &[("a", 1)], 9);
    assert!(matches!(
        refusal(&store, too_soon),
        Some(SubmitError::Fenced {
            source: NotAdmitted::BeforeStart { .. },
            ..
        })
    ));
    commit(&store, writer.block(&store, log(1), &[("a", 2)], 9));
    let beyond = writer.block(&store, log(1), &[("a", 1)], 9);
    assert!(refusal(&store, beyond).is_some());
    commit(&store, writer.block_of(2, &store, log(1), &[("a", 1)], 9));
    assert_eq!(store.head(log(1)).epoch.major, 2);
}

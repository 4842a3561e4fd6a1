//! What a store takes of a log that goes on only behind others.

use meridian_clock::Position;
use meridian_event::Block;
use meridian_store::{SimDisk, Store, SubmitError};

use crate::world::{Answers, Writer, commit, log, open, settle, submit};

fn missing(store: &Store, block: &Block) -> Vec<u64> {
    let refused = Box::new(|_| panic!("it was refused"));
    match store.submit(block.clone(), refused) {
        Err(SubmitError::MissingDependencies { log: of, missing }) => {
            assert_eq!(of, block.header().log);
            let each = missing.into_iter();
            each.map(|(other, position)| {
                assert_eq!(other, log(1));
                position.0
            })
            .collect()
        }
        other => panic!("what it rests on is not here: {other:?}"),
    }
}

#[test]
fn a_log_goes_on_once_what_it_rests_on_is_durable() {
    let (store, _) = open(&SimDisk::new(1));
    store.set_dependencies(Box::new(|event| match event.stream {
        "opened" => vec![(log(1), Position(3))],
        _ => Vec::new(),
    }));
    let mut writer = Writer::default();
    commit(&store, writer.block(&store, log(2), &[("b", 2)], 9));
    let behind = writer.block(&store, log(2), &[("b", 1), ("opened", 1)], 9);
    let before = store.submitted_head(log(2));
    assert_eq!(missing(&store, &behind), [3]);

    commit(&store, writer.block(&store, log(1), &[("a", 2)], 9));
    assert_eq!(missing(&store, &behind), [3], "not all of it is here");

    // What is queued may fail while what came behind it does not.
    let answers = Answers::default();
    let last = writer.block(&store, log(1), &[("a", 1)], 9);
    submit(&store, last, &answers);
    assert_eq!(missing(&store, &behind), [3], "it is not durable");
    assert_eq!(store.submitted_head(log(2)), before);

    settle(&store);
    commit(&store, behind);
    assert_eq!(store.head(log(2)).position, Position(4));
}

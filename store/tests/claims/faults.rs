//! Disks that refuse.

use std::sync::Arc;

use meridian_store::{
    CommitError, Health, Lanes, OpenError, SimDisk, Store, StoreOptions, SubmitError,
};

use crate::world::{
    Answers, Writer, blocks_of, check, commit, filled, log, open, options, settle, submit,
};

fn answers_of(answers: &Answers) -> Vec<Result<(), CommitError>> {
    let answers = answers.lock().expect("no test panics here");
    answers.iter().map(|(_, answer)| answer.clone()).collect()
}

fn refuses_for_good(store: &Store, writer: &mut Writer) {
    let block = writer.block(store, log(1), &[("a", 1)], 10);
    let refused = store.submit(
        block,
        Box::new(|_| panic!("a refused block has no outcome")),
    );
    assert!(
        matches!(refused, Err(SubmitError::Poisoned { .. })),
        "{refused:?}"
    );
    assert!(matches!(store.health(), Health::Failed { .. }));
}

#[test]
fn a_failed_sync_fails_what_is_in_flight_and_refuses_everything_after() {
    let disk = SimDisk::new(1);
    let (store, blocks) = filled(&disk, 3);
    let mut writer = Writer::default();
    let answers = Answers::default();
    submit(
        &store,
        writer.block(&store, log(1), &[("a", 1)], 10),
        &answers,
    );
    let first = store.commit_begin().expect("a block is queued");
    submit(
        &store,
        writer.block(&store, log(1), &[("a", 1)], 10),
        &answers,
    );
    let second = store.commit_begin().expect("a block is queued");
    submit(
        &store,
        writer.block(&store, log(1), &[("a", 1)], 10),
        &answers,
    );
    disk.fail_next_sync();
    store.commit_finish(first);
    store.commit_finish(second);
    let failed = answers_of(&answers);
    assert_eq!(failed.len(), 3);
    assert!(
        failed
            .iter()
            .all(|it| matches!(it, Err(CommitError::Failed { .. })))
    );
    refuses_for_good(&store, &mut writer);
    assert_eq!(blocks_of(&store, log(1)), blocks, "reads go on");
    assert_eq!(store.head(log(1)).position.0, 9);
    drop(store);
    disk.crash();
    let (store, _) = open(&disk);
    assert_eq!(blocks_of(&store, log(1))[..3], blocks);
    check(&store);
}

#[test]
fn a_sync_that_failed_on_the_other_lane_fails_this_group_too() {
    let disk = SimDisk::new(1);
    let (store, _) = filled(&disk, 1);
    let mut writer = Writer::default();
    let answers = Answers::default();
    submit(
        &store,
        writer.block(&store, log(2), &[("a", 1)], 10),
        &answers,
    );
    let first = store.commit_begin().expect("a block is queued");
    submit(
        &store,
        writer.block(&store, log(2), &[("a", 1)], 10),
        &answers,
    );
    let second = store.commit_begin().expect("a block is queued");
    disk.fail_next_sync();
    store.commit_finish(second);
    store.commit_finish(first);
    assert!(answers_of(&answers).iter().all(Result::is_err));
    assert_eq!(answers_of(&answers).len(), 2);
}

#[test]
fn a_failed_write_refuses_everything_after() {
    let disk = SimDisk::new(1);
    let (store, _) = filled(&disk, 3);
    let mut writer = Writer::default();
    let answers = Answers::default();
    disk.fail_next_write();
    submit(
        &store,
        writer.block(&store, log(1), &[("a", 1)], 10),
        &answers,
    );
    settle(&store);
    assert!(matches!(
        answers_of(&answers)[..],
        [Err(CommitError::Failed { .. })]
    ));
    refuses_for_good(&store, &mut writer);
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    let disk = SimDisk::new(1);
    let (store, _) = filled(&disk, 10);
    let mut writer = Writer::default();
    writer.learn(&store);
    writer.next_id = 10_000;
    disk.set_room(Some(0));
    let mut kept = store.head(log(1)).position.0;
    loop {
        let answers = Answers::default();
        submit(
            &store,
            writer.block(&store, log(1), &[("a", 1)], 200),
            &answers,
        );
        submit(
            &store,
            writer.block(&store, log(1), &[("a", 1)], 200),
            &answers,
        );
        settle(&store);
        let outcome = answers_of(&answers);
        assert_eq!(outcome.len(), 2);
        kept += outcome.iter().filter(|it| it.is_ok()).count() as u64;
        if outcome
            .iter()
            .any(|it| matches!(it, Err(CommitError::DiskFull { .. })))
        {
            break;
        }
    }
    assert!(matches!(store.health(), Health::DiskFull { .. }));
    assert_eq!(
        store.head(log(1)).position.0,
        kept,
        "what was acknowledged is kept"
    );
    assert_eq!(store.submitted_head(log(1)), store.head(log(1)));
    disk.set_room(None);
    settle(&store);
    assert_eq!(store.health(), Health::Writable, "nobody need try in vain");
    writer.learn(&store);
    commit(&store, writer.block(&store, log(1), &[("a", 1)], 200));
    check(&store);
}

#[test]
fn a_segment_that_could_not_be_prepared_is_tried_again() {
    let disk = SimDisk::new(1);
    let (store, _) = open(&disk);
    let mut writer = Writer::default();
    disk.set_room(Some(0));
    for _ in 0..100 {
        if store.housekeeping_failed() {
            break;
        }
        commit(&store, writer.block(&store, log(1), &[("a", 1)], 200));
    }
    assert!(store.housekeeping_failed(), "there is no room for another");
    assert!(!store.housekeep(), "nor is there now");
    disk.set_room(None);
    settle(&store);
    assert!(!store.housekeeping_failed());
    check(&store);
}

#[test]
fn a_block_that_does_not_continue_its_log_is_refused_before_anything_is_written() {
    let disk = SimDisk::new(1);
    let (store, blocks) = filled(&disk, 3);
    let refusal = |block| {
        store
            .submit(block, Box::new(|_| panic!("it was refused")))
            .err()
    };
    let again = refusal(blocks[2].clone());
    assert!(
        matches!(again, Some(SubmitError::NotNext { .. })),
        "{again:?}"
    );

    let (other, _) = open(&SimDisk::new(2));
    let mut writer = Writer::default();
    for _ in 0..9 {
        commit(&other, writer.block(&other, log(1), &[("b", 1)], 1));
    }
    writer.clock += 1000;
    let diverged = refusal(writer.block(&other, log(1), &[("b", 1)], 1));
    assert!(
        matches!(diverged, Some(SubmitError::WrongChain { .. })),
        "{diverged:?}"
    );

    let mut behind = Writer::default();
    let mut head = store.submitted_head(log(1));
    head.timestamp = meridian_clock::Timestamp(0);
    let block = {
        use meridian_event::{BlockBuilder, Revision};
        let mut builder = BlockBuilder::new(log(1), head.incarnation, head.epoch);
        behind.next_id += 1;
        builder.push_batch(
            meridian_clock::Timestamp(1),
            &crate::world::stream("b"),
            Revision(0),
            &[crate::world::event(1, 1)],
        );
        builder.seal(head.position.plus(1), head.chain)
    };
    let back_in_time = refusal(block);
    assert!(
        matches!(back_in_time, Some(SubmitError::NotRising { .. })),
        "{back_in_time:?}"
    );
    assert_eq!(store.stats().queue_bytes, 0);
}

#[test]
fn the_queue_is_bounded() {
    let disk = SimDisk::new(1);
    let small = StoreOptions {
        queue_bytes_max: 4000,
        ..options()
    };
    let (store, _) = Store::open(Arc::new(disk), small).expect("the folder opens");
    let mut writer = Writer::default();
    let mut taken = 0;
    let refused = loop {
        let block = writer.block(&store, log(1), &[("a", 1)], 500);
        match store.submit(block, Box::new(|_| {})) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, SubmitError::Full);
    assert!(taken < 12);
    settle(&store);
    assert_eq!(store.stats().queue_bytes, 0);
    let mut writer = Writer::default();
    writer.clock = store.head(log(1)).timestamp.0;
    commit(&store, writer.block(&store, log(1), &[("a", 1)], 500));
}

#[test]
fn two_nodes_cannot_have_one_folder() {
    let disk = SimDisk::new(1);
    let (store, _) = open(&disk);
    let second = Store::open(Arc::new(disk.clone()), options());
    assert!(matches!(second, Err(OpenError::InUse)));
    assert!(meridian_store::verify(&disk).is_err());
    store.close();
    assert!(Store::open(Arc::new(disk), options()).is_ok());
}

#[test]
fn threads_commit_and_close_drains_what_is_queued() {
    let disk = SimDisk::new(1);
    let threads = StoreOptions {
        lanes: Lanes::Threads(2),
        ..options()
    };
    let (store, _) = Store::open(Arc::new(disk.clone()), threads).expect("the folder opens");
    let mut writer = Writer::default();
    let answers = Answers::default();
    for number in 0..500 {
        let name = format!("order-{}", number % 5);
        submit(
            &store,
            writer.block(&store, log(number % 3), &[(&name, 2)], 90),
            &answers,
        );
    }
    store.close();
    let outcomes = answers_of(&answers);
    assert_eq!(outcomes.len(), 500);
    assert!(outcomes.iter().all(Result::is_ok));
    let submitted: Vec<u64> = (0..3).map(|it| store.head(log(it)).position.0).collect();
    assert_eq!(submitted.iter().sum::<u64>(), 1000);
    let refused = store.submit(
        writer.block(&store, log(1), &[("a", 1)], 1),
        Box::new(|_| {}),
    );
    assert_eq!(refused, Err(SubmitError::Closed));
    check(&store);
    drop(store);
    let report = crate::world::verified(&disk);
    assert_eq!(report.damage, []);
    assert_eq!(report.events, 1000);
}

#[test]
fn a_writer_that_waits_for_each_answer_gets_each() {
    let disk = SimDisk::new(1);
    let threads = StoreOptions {
        lanes: Lanes::Threads(2),
        ..options()
    };
    let (store, _) = Store::open(Arc::new(disk), threads).expect("the folder opens");
    std::thread::scope(|scope| {
        for origin in 0..4 {
            let store = &store;
            scope.spawn(move || {
                let mut writer = Writer::default();
                writer.next_id = u128::from(origin) << 64;
                let (answered, answers) = std::sync::mpsc::channel();
                for _ in 0..500 {
                    let block = writer.block(store, log(origin), &[("a", 1)], 20);
                    let answered = answered.clone();
                    let done = move |answer| answered.send(answer).expect("the writer waits");
                    store
                        .submit(block, Box::new(done))
                        .expect("it continues its log");
                    let patience = std::time::Duration::from_secs(20);
                    let answer = answers.recv_timeout(patience).expect("nobody is forgotten");
                    assert_eq!(answer, Ok(()));
                }
            });
        }
    });
    assert_eq!(store.stats().events, 2000);
    check(&store);
}

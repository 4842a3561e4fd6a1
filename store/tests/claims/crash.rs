//! Power cuts at any moment.

use std::sync::Arc;

use meridian_event::Block;
use meridian_store::{SimDisk, Store};
use proptest::prelude::*;

use crate::world::{
    Answers, Writer, blocks_of, check, commit, filled, log, open, settle, stream, submit, verified,
};

#[derive(Clone, Debug)]
enum Act {
    Submit {
        origin: u16,
        stream: u8,
        count: usize,
        bytes: usize,
    },
    Begin,
    Finish {
        newest_first: bool,
    },
    Housekeep,
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1u16..4, 0u8..5, 1usize..5, 1usize..900).prop_map(|(origin, stream, count, bytes)| {
            Act::Submit { origin, stream, count, bytes }
        }),
        3 => Just(Act::Begin),
        3 => any::<bool>().prop_map(|newest_first| Act::Finish { newest_first }),
        1 => Just(Act::Housekeep),
    ]
}

// Carries out what it can; the machine may die at any point in between.
fn act_out(store: &Store, writer: &mut Writer, acts: &[Act], answers: &Answers) {
    let mut groups = Vec::new();
    for act in acts {
        match act {
            Act::Submit {
                origin,
                stream,
                count,
                bytes,
            } => {
                let name = format!("order-{stream}");
                let block = writer.block(store, log(*origin), &[(&name, *count)], *bytes);
                let answers = Arc::clone(answers);
                let kept = block.clone();
                let done = move |answer| {
                    answers
                        .lock()
                        .expect("no test panics here")
                        .push((kept, answer));
                };
                // Refused after the simulated crash, which poisons the store.
                let _ = store.submit(block, Box::new(done));
            }
            Act::Begin => groups.extend(store.commit_begin()),
            Act::Finish { newest_first } => {
                let group = match newest_first {
                    true => groups.pop(),
                    false if groups.is_empty() => None,
                    false => Some(groups.remove(0)),
                };
                if let Some(group) = group {
                    store.commit_finish(group);
                }
            }
            Act::Housekeep => {
                store.housekeep();
            }
        }
    }
}

fn acknowledged(answers: &Answers) -> Vec<Block> {
    let answers = answers.lock().expect("no test panics here");
    answers
        .iter()
        .filter(|(_, answer)| answer.is_ok())
        .map(|(block, _)| block.clone())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nothing_acknowledged_is_lost_whenever_the_power_goes(
        seed: u64,
        lives in prop::collection::vec(
            (prop::collection::vec(any_act(), 1..120), prop::option::of(0u64..60), 0u64..12),
            1..5,
        ),
    ) {
        let disk = SimDisk::new(seed);
        let mut writer = Writer::default();
        let mut held: Vec<Block> = Vec::new();
        for (acts, dies_after, dies_in_recovery_after) in lives {
            let (store, recovery) = open(&disk);
            prop_assert_eq!(&recovery.damaged, &[]);
            prop_assert_eq!(&recovery.holes, &[]);
            let answers = Answers::default();
            if let Some(count) = dies_after {
                disk.crash_after(count);
            }
            act_out(&store, &mut writer, &acts, &answers);
            held.extend(acknowledged(&answers));
            // Whatever was given a place and not acknowledged may or may not be there.
            disk.crash();
            drop(store);

            // Recovery itself may be cut off, at any step, and begins anew.
            disk.crash_after(dies_in_recovery_after);
            drop(Store::open(Arc::new(disk.clone()), crate::world::options()));
            disk.crash();

            let (store, recovery) = open(&disk);
            prop_assert_eq!(&recovery.damaged, &[]);
            prop_assert_eq!(&recovery.holes, &[]);
            check(&store);
            for block in &held {
                let header = block.header();
                let found = blocks_of(&store, header.log)
                    .into_iter()
                    .find(|it| it.header().first_position == header.first_position);
                prop_assert_eq!(found.as_ref(), Some(block), "durable");
            }
            // What recovery kept beyond that is durable from now on too.
            held = crate::world::scanned(&store);
            writer.learn(&store);
            let heads = store.heads();
            store.close();
            let report = verified(&disk);
            prop_assert_eq!(&report.damage, &[]);
            prop_assert_eq!(report.logs, heads.clone());
            prop_assert_eq!(report.streams, report.streams_gapless);

            let (store, again) = open(&disk);
            prop_assert!(!again.tail_cut, "recovery is idempotent");
            prop_assert_eq!(store.heads(), heads);
            store.close();
        }
    }
}

#[test]
fn an_unfinished_group_is_cut_silently_and_its_places_are_used_again() {
    let mut cut = 0;
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        let (store, blocks) = filled(&disk, 5);
        let mut writer = Writer::default();
        writer.learn(&store);
        writer.next_id = 1000;
        let answers = Answers::default();
        let torn = writer.block(&store, log(1), &[("order-9", 8)], 700);
        submit(&store, torn, &answers);
        let group = store.commit_begin().expect("a block is queued");
        disk.crash();
        drop((store, group));
        let (store, recovery) = open(&disk);
        assert_eq!(recovery.damaged, []);
        cut += u32::from(recovery.tail_cut);
        assert_eq!(recovery.tail_cut, recovery.heads_uncertain);
        assert_eq!(blocks_of(&store, log(1))[..5], blocks);
        writer.learn(&store);
        let next = writer.block(&store, log(1), &[("order-9", 1)], 10);
        commit(&store, next);
        check(&store);
    }
    assert!(cut > 0, "some crash must tear the group");
}

#[test]
fn uncertain_heads_stay_uncertain_until_they_are_settled() {
    let disk = (0..)
        .map(|seed| {
            let disk = SimDisk::new(seed);
            let (store, _) = filled(&disk, 3);
            let block = Writer::default().block(&store, log(2), &[("a", 8)], 700);
            submit(&store, block, &Answers::default());
            let group = store.commit_begin();
            disk.crash();
            drop((store, group));
            disk
        })
        .find(|disk| {
            let (store, recovery) = open(disk);
            store.close();
            recovery.tail_cut
        })
        .expect("some crash tears the group");
    let (store, recovery) = open(&disk);
    assert!(recovery.heads_uncertain && !recovery.tail_cut);
    store.settle_heads().expect("the disk is sound");
    store.close();
    let (_, recovery) = open(&disk);
    assert!(!recovery.heads_uncertain);
}

#[test]
fn a_group_that_is_synced_first_is_not_acknowledged_before_its_predecessor() {
    let disk = SimDisk::new(1);
    let (store, _) = open(&disk);
    let mut writer = Writer::default();
    let answers = Answers::default();
    let count = || answers.lock().expect("no test panics here").len();
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
    store.commit_finish(second);
    assert_eq!(count(), 0);
    assert_eq!(store.head(log(1)).position.0, 0);
    store.commit_finish(first);
    assert_eq!(count(), 2);
    assert_eq!(store.head(log(1)).position.0, 2);
}

#[test]
fn a_killed_process_leaves_a_log_that_opens_where_it_stopped() {
    let disk = SimDisk::new(3);
    let (store, blocks) = filled(&disk, 200);
    drop(store);
    let (store, recovery) = open(&disk);
    assert!(!recovery.tail_cut && !recovery.was_empty);
    assert_eq!(blocks_of(&store, log(1)), blocks);
    assert!(store.stats().segments > 3);
    assert!(
        store
            .find_event(meridian_event::EventId::from_random([0xff; 16]), &[])
            .expect("readable")
            .is_none()
    );
    assert!(
        store
            .stream_last(&stream("order-0"), None, false)
            .expect("readable")
            .is_some()
    );
    settle(&store);
}

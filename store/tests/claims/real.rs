//! On the real file system.

use std::sync::Arc;

use meridian_store::{Lanes, OpenError, RealDisk, Store, StoreOptions, verify};

use crate::world::{Answers, Writer, check, log, submit};

fn options() -> StoreOptions {
    StoreOptions {
        segment_bytes: 256 << 10,
        segment_events_max: 2000,
        lanes: Lanes::Threads(2),
        ..StoreOptions::default()
    }
}

#[test]
fn a_real_folder_holds_what_was_acknowledged() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let disk = RealDisk::new(folder.path().join("data")).expect("it can be made");
    let mut writer = Writer::default();
    let mut expected = 0;
    for round in 0..3 {
        let (store, recovery) =
            Store::open(Arc::new(disk.clone()), options()).expect("the folder opens");
        assert_eq!(recovery.was_empty, round == 0);
        assert!(!recovery.tail_cut);
        assert!(matches!(
            Store::open(Arc::new(disk.clone()), options()),
            Err(OpenError::InUse)
        ));
        let answers = Answers::default();
        for number in 0..400 {
            let name = format!("order-{}", number % 11);
            let block = writer.block(&store, log(number % 3), &[(&name, 3)], 200);
            submit(&store, block, &answers);
            expected += 3;
        }
        store.close();
        let answers = answers.lock().expect("no test panics here");
        assert!(answers.iter().all(|(_, answer)| answer.is_ok()));
        check(&store);
        drop(store);
        let report = verify(&disk).expect("no node has the folder open");
        assert_eq!(report.damage, []);
        assert_eq!(report.events, expected);
        assert_eq!(report.streams, report.streams_gapless);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test removes a real folder")]
fn deleting_the_folder_of_small_state_costs_nothing() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let disk = RealDisk::new(folder.path()).expect("it can be made");
    let mut writer = Writer::default();
    let (store, _) = Store::open(Arc::new(disk.clone()), options()).expect("the folder opens");
    let answers = Answers::default();
    submit(
        &store,
        writer.block(&store, log(1), &[("order-1", 3)], 100),
        &answers,
    );
    store.small().put(b"cursor", b"3").expect("it fits");
    store.small().flush().expect("the disk is sound");
    let heads = {
        store.close();
        store.heads()
    };
    drop(store);
    std::fs::remove_dir_all(folder.path().join("small")).expect("it is there");
    let (store, recovery) = Store::open(Arc::new(disk.clone()), options()).expect("it opens");
    assert_eq!(store.heads(), heads);
    assert_eq!(recovery.damaged, []);
    assert_eq!(store.small().get(b"cursor").expect("readable"), None);
    check(&store);
    drop(store);
    assert_eq!(verify(&disk).expect("readable").damage, []);
}

#[test]
fn a_gap_in_revisions_is_damage_only_where_no_other_log_can_fill_it() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let disk = RealDisk::new(folder.path()).expect("it can be made");
    let mut writer = Writer::default();
    let mut write = |number, elsewhere| {
        let (store, _) = Store::open(Arc::new(disk.clone()), options()).expect("it opens");
        writer.write_elsewhere(log(number), "order-1", elsewhere);
        let block = writer.block(&store, log(number), &[("order-1", 2)], 100);
        submit(&store, block, &Answers::default());
        store.close();
        drop(store);
        let report = verify(&disk).expect("no node has the folder open");
        (report.streams - report.streams_gapless, report.damage.len())
    };
    assert_eq!(write(1, 0), (0, 0));
    assert_eq!(write(1, 1), (1, 1));
    // What is missing may be in the log of the region that wrote this.
    assert_eq!(write(2, 9), (1, 0));
}

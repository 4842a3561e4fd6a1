//! A data folder that was put back from a backup: positions are never given out twice.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "files of a node that is stopped are put back, and it is waited for what must not happen"
)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;
use support::{Federation, count, get, meridian, until};

const NAMES: [&str; 3] = ["a", "b", "c"];
const C: usize = 2;
/// Longer than a node with a sound log waits for peers that do not answer.
const A_WHILE: Duration = Duration::from_secs(2);

/// So many streams whose home is region `c`, each with one event, and how many events were written to find them.
fn streams_of_c(federation: &Federation, wanted: usize) -> (Vec<String>, u64) {
    let mut found = Vec::new();
    let mut written = 0;
    for number in 0u32.. {
        let stream = format!("order-{number}");
        let appended = federation.append_surely(C, &stream, u128::from(number) + 1);
        written += 1;
        if appended["home"] == "c" {
            found.push(stream);
        }
        if found.len() == wanted {
            break;
        }
    }
    (found, written)
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

fn put_back(backup: &Path, data: &Path) {
    fs::remove_dir_all(data).unwrap();
    copy(backup, data);
}

#[test]
fn a_folder_that_was_put_back_is_written_to_once_all_peers_have_said_what_it_lacks() {
    let told = |data: &Path| fs::write(data.join("restored"), "").unwrap();
    put_back_then_written(told);
}

/// Whoever put it back need not say so: the copies of its files were made later.
#[test]
fn a_folder_that_was_copied_back_is_known_for_a_copy() {
    let folder = tempfile::tempdir().unwrap();
    if folder.path().metadata().unwrap().created().is_err() {
        println!("SKIPPED: this file system does not say when files were made");
        return;
    }
    put_back_then_written(|data| {
        assert!(fs::read(data.join("made-here")).unwrap().ends_with(b"\n"));
    });
}

fn put_back_then_written(tell: impl FnOnce(&Path)) {
    let mut federation = Federation::running(&NAMES);
    // What other homes took of it may come to `c` later.
    let (streams, written) = streams_of_c(&federation, 5);
    let all = [0, 1, 2];
    federation.until_agreed(&all, written);
    federation.stop(C);
    let backup = federation.folder().join("backup");
    copy(federation.data(C), &backup);
    federation.start(C);
    federation.until_ready(C);
    for (id, stream) in (10_000..).zip(streams.iter().cycle().take(50)) {
        federation.append_surely(C, stream, id);
    }
    let written = count(&federation.digest(C).unwrap());
    federation.until_agreed(&all, written);
    let before = federation.digest(C).unwrap();

    federation.kill(C);
    federation.stop(0);
    federation.stop(1);
    put_back(&backup, federation.data(C));
    tell(federation.data(C));
    federation.start(C);
    sleep(A_WHILE);
    let (status, refused) = federation.append(C, &streams[0], 20_000);
    assert_eq!(
        (status, &refused["code"]),
        (503, &json!("unavailable")),
        "{refused}"
    );
    let why = refused["detail"].as_str().unwrap();
    assert!(why.contains("no answer yet from region"), "{why}");
    assert!(!federation.has(C, "restored"), "it is dealt with");
    // One answer is not enough: the other peer may hold more.
    federation.start(0);
    federation.until_ready(0);
    sleep(A_WHILE);
    let (status, refused) = federation.append(C, &streams[0], 20_000);
    assert_eq!(status, 503, "{refused}");

    federation.start(1);
    federation.until_ready(C);
    federation.until_agreed(&all, written);
    assert_eq!(federation.digest(C).unwrap(), before);
    for (id, stream) in (30_000..).zip(&streams) {
        federation.append_surely(C, stream, id);
    }
    federation.until_agreed(&all, written + 5);
    for index in all {
        federation.stop(index);
        let (sound, said) = federation.verify(index);
        assert!(sound, "{said}");
    }
}

/// Nobody has a vote any more then, and decisions are taken again all the same.
#[test]
fn a_federation_that_was_put_back_as_a_whole_decides_again() {
    let mut federation = Federation::running(&NAMES);
    let (streams, written) = streams_of_c(&federation, 1);
    let all = [0, 1, 2];
    federation.until_agreed(&all, written);
    let drain = |federation: &Federation, action: &str| {
        let url = federation.url(0, "");
        let said = meridian(&["region", action, "c", "--url", &url]);
        said.status.success()
    };
    until("what is to be remembered is decided", || {
        drain(&federation, "drain")
    });
    let decided = federation.digest(0).map(|it| count(&it)).unwrap();
    federation.until_agreed(&all, decided);
    for index in all {
        federation.stop(index);
        let backup = federation.folder().join(format!("backup-{index}"));
        copy(federation.data(index), &backup);
        put_back(&backup, federation.data(index));
        fs::write(federation.data(index).join("restored"), "").unwrap();
    }
    federation.start_all();
    for index in all {
        federation.until_ready(index);
        let (_, status) = get(&federation.url(index, "/v1/status")).unwrap();
        assert_eq!(status["control"]["drained"], json!(["c"]), "{status}");
    }
    until("it is decided that c takes its homes back", || {
        drain(&federation, "resume")
    });
    let appended = federation.append_surely(0, &streams[0], 20_000);
    assert_eq!(appended["home"], "c", "{appended}");
}

/// Whoever begins from the start removes all data folders; nobody knows then of a federation that was founded.
#[test]
fn a_federation_whose_folders_were_all_emptied_is_founded_again() {
    let mut federation = Federation::running(&NAMES);
    let (streams, written) = streams_of_c(&federation, 1);
    let all = [0, 1, 2];
    federation.until_agreed(&all, written);
    for index in all {
        federation.stop(index);
        fs::remove_dir_all(federation.data(index)).unwrap();
    }
    federation.start_all();
    for index in all {
        federation.until_ready(index);
    }
    let appended = federation.append_surely(0, &streams[0], 20_000);
    assert_eq!(appended["first_revision"], 0, "{appended}");
}

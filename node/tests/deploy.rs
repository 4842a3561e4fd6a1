//! What operators copy: it loads, it is complete, and systemd takes it.

#![expect(
    clippy::disallowed_methods,
    reason = "these tests look at files in the repository"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use meridian_node::config;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

#[test]
fn the_configuration_template_loads() {
    let loaded = config::load(&deploy().join("systemd/meridian.toml")).expect("it loads");
    let node = loaded.node;
    assert_eq!(node.members.len(), 3);
    assert_eq!(node.own().expect("it is a member").name, "us-east");
    assert_eq!(node.data, Path::new("/var/lib/meridian"));
    assert!(node.listen_http.ip().is_loopback(), "HTTP is not offered");
    assert!(node.policies().is_ok());
}

#[test]
fn the_configuration_template_has_every_key_that_init_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("fed");
    let made = Command::new(env!("CARGO_BIN_EXE_meridian"))
        .args(["init", "--regions", "us-east", "--dir"])
        .arg(&dir)
        .output()
        .expect("the binary runs");
    assert!(made.status.success());
    let written = fs::read_to_string(dir.join("us-east/meridian.toml")).expect("a file");
    let template = fs::read_to_string(deploy().join("systemd/meridian.toml")).expect("a file");
    let keys = |text: &str| -> Vec<String> {
        let key = |line: &str| {
            let line = line.trim_start_matches("# ");
            let key = line.split(" = ").next().unwrap_or_default();
            let is_key = line.starts_with('[') || (line.contains(" = ") && !key.contains(' '));
            is_key.then(|| key.to_owned())
        };
        text.lines().filter_map(key).collect()
    };
    let (written, template) = (keys(&written), keys(&template));
    assert!(written.len() > 25, "{written:?}");
    for key in written {
        assert!(template.contains(&key), "{key} is not in the template");
    }
}

/// The unit with this build's binary in the place of the installed one, which systemd looks for.
fn unit(folder: &Path) -> PathBuf {
    let unit = fs::read_to_string(deploy().join("systemd/meridian.service")).expect("a unit");
    assert!(unit.contains("/usr/local/bin/meridian serve"));
    let path = folder.join("meridian.service");
    let here = unit.replace("/usr/local/bin/meridian", env!("CARGO_BIN_EXE_meridian"));
    fs::write(&path, here).expect("written");
    path
}

#[test]
fn systemd_takes_the_unit_and_finds_it_tight() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("systemd-analyze is not here: the unit was not checked");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let unit = unit(folder.path());
    let verified = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&unit)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&verified.stderr);
    // It speaks of units of this machine too; what it says of ours names it.
    let ours: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("meridian.service"))
        .collect();
    assert!(verified.status.success() && ours.is_empty(), "{said}");

    let rated = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=15"])
        .arg(&unit)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&rated.stdout);
    assert!(rated.status.success(), "{said}");
}

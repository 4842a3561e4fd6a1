//! The real binary: what it prints, what it leaves behind, and how it exits.

#![expect(
    clippy::disallowed_methods,
    reason = "these tests look at the files that the binary makes"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use meridian_node::{certificates, config};

fn meridian(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meridian"))
        .args(arguments)
        .env_remove("MERIDIAN_URL")
        .output()
        .expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Makes a federation of regions a, b and c below a new folder.
fn federation() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("fed");
    let made = meridian(&["init", "--dir", path(&dir), "--regions", "a,b,c"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    folder
}

#[test]
fn init_makes_configurations_that_load_and_certificates_that_fit() {
    let folder = federation();
    let dir = folder.path().join("fed");
    for (index, region) in (0..).zip(["a", "b", "c"]) {
        let loaded = config::load(&dir.join(region).join("meridian.toml")).expect("it loads");
        let node = &loaded.node;
        let own = node.own().expect("it is a member");
        assert_eq!(own.name, region);
        assert_eq!(own.http.port(), 7100 + 10 * index);
        assert_eq!(own.quic.port(), 7101 + 10 * index);
        assert_eq!((node.listen_http, node.listen_quic), (own.http, own.quic));
        assert_eq!(node.members.len(), 3);
        assert!(dir.join(region).join("data").is_dir());
        let described =
            certificates::describe(&node.certificates.certificate).expect("a certificate");
        assert_eq!(
            described.names,
            [format!("{region}.region.meridian.internal")]
        );
        let operator = loaded.operator.expect("an operator");
        let described = certificates::describe(&operator.certificate).expect("a certificate");
        assert_eq!(described.names, ["operator.client.meridian.internal"]);
        for key in [&node.certificates.key, &operator.key] {
            assert!(!meridian_node::files::readable_by_others(key).expect("a key"));
        }
        let session_key = node.session_key.as_ref().expect("a session key");
        assert!(!meridian_node::files::readable_by_others(session_key).expect("a key"));
        let of_a = fs::read(dir.join("a/certificates/session.key")).expect("a key");
        assert_eq!(fs::read(session_key).expect("a key"), of_a, "one for all");
        let checked = meridian(&[
            "serve",
            "--check",
            "--config",
            path(&dir.join(region).join("meridian.toml")),
        ]);
        assert!(checked.status.success(), "{}", text(&checked.stderr));
    }
}

#[test]
fn init_prints_a_table_or_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("fed");
    let made = meridian(&["init", "--dir", path(&dir), "--regions", "x,y", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    assert_eq!(value["regions"][1]["http"], "127.0.0.1:7110");
    assert_eq!(value["partitions"], 4);

    let dir = folder.path().join("other");
    let made = meridian(&["init", "--dir", path(&dir), "--regions", "x,y"]);
    assert!(text(&made.stdout).contains("http://127.0.0.1:7110"));
}

#[test]
fn init_never_writes_into_a_folder_that_is_in_use() {
    let folder = federation();
    let dir = folder.path().join("fed");
    let before = fs::read(dir.join("authority/ca.pem")).expect("an authority");
    let again = meridian(&["init", "--dir", path(&dir), "--regions", "a,b,c"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("is not empty; choose a new folder"));
    assert_eq!(
        fs::read(dir.join("authority/ca.pem")).expect("an authority"),
        before
    );
}

#[test]
fn init_with_hosts_names_them_and_keeps_http_to_the_host() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("fed");
    let made = meridian(&[
        "init",
        "--dir",
        path(&dir),
        "--regions",
        "eu,us",
        "--host",
        "eu=192.0.2.1",
        "--host",
        "us=2001:db8::1",
    ]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let eu = config::load(&dir.join("eu/meridian.toml"))
        .expect("it loads")
        .node;
    assert_eq!(eu.listen_http.to_string(), "127.0.0.1:7100");
    assert_eq!(eu.listen_quic.to_string(), "0.0.0.0:7101");
    assert_eq!(eu.members[1].quic.to_string(), "[2001:db8::1]:7101");
    assert!(dir.join("us/data/identity").exists());
    let us = config::load(&dir.join("us/meridian.toml"))
        .expect("it loads")
        .node;
    assert_eq!(us.listen_quic.to_string(), "[::]:7101");
}

#[test]
fn init_adds_a_region_and_keeps_what_the_others_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("fed");
    let hosts = ["--host", "eu=192.0.2.1", "--host", "us=192.0.2.2"];
    let mut arguments = vec!["init", "--dir", path(&dir), "--regions", "eu,us"];
    arguments.extend(hosts);
    assert!(meridian(&arguments).status.success());
    let of = |region: &str| dir.join(region).join("meridian.toml");
    let eu = fs::read_to_string(of("eu")).expect("it can be read");
    for region in ["eu", "us"] {
        let text = fs::read_to_string(of(region)).expect("it can be read");
        let with = text
            + "\n# A comment of ours.\n[categories.cart]\nmode = \"crdt\"\ntype = \"or-set\"\n";
        fs::write(of(region), with).expect("it can be written");
    }
    let add = |name: &str, more: &[&str]| {
        let mut arguments = vec!["init", "--dir", path(&dir), "--add", name];
        arguments.extend(more);
        let added = meridian(&arguments);
        (
            added.status.code(),
            text(&added.stdout) + &text(&added.stderr),
        )
    };
    for (name, more, says) in [
        ("us", &[][..], "there is, or was, a region called \"us\""),
        ("ap", &[][..], "--host ap=HOST"),
        (
            "ap",
            &["--host", "us=192.0.2.3"][..],
            "not the region that is added",
        ),
        ("ap", &["--regions", "ap"][..], "cannot be used with"),
    ] {
        let (code, said) = add(name, more);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(says), "{said}");
    }
    assert!(!dir.join("ap").exists());
    let (code, said) = add("ap", &["--host", "ap=192.0.2.3"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("meridian region join ap"), "{said}");
    for region in ["eu", "us", "ap"] {
        let loaded = config::load(&of(region)).expect("it loads").node;
        assert_eq!(loaded.own().expect("a member").name, region);
        assert_eq!(loaded.categories.len(), 1);
        let ap = &loaded.members[2];
        assert_eq!(
            (ap.id.0, ap.quic.to_string()),
            (2, "192.0.2.3:7101".to_owned())
        );
        assert_eq!(loaded.listen_quic.to_string(), "0.0.0.0:7101");
    }
    let text = fs::read_to_string(of("eu")).expect("it can be read");
    assert!(text.contains("# A comment of ours.") && text.len() > eu.len());
    let key = |region: &str| fs::read(dir.join(region).join("certificates/session.key")).ok();
    assert!(key("ap").is_some() && key("ap") == key("eu"));
    // Its node asks the others before it writes.
    assert!(!dir.join("ap/data/identity").exists());
}

#[test]
fn init_takes_hosts_that_this_machine_cannot_resolve() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("fed");
    let made = meridian(&[
        "init",
        "--dir",
        path(&dir),
        "--regions",
        "eu",
        "--host",
        "eu=node.eu.invalid",
    ]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let error = config::load(&dir.join("eu/meridian.toml")).expect_err("it cannot be reached");
    assert!(error.to_string().contains("cannot be resolved"), "{error}");
}

#[test]
fn init_refuses_what_cannot_be_meant_before_it_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("fed");
    let claims: [(&[&str], &str); 8] = [
        (&["--regions", "a,a"], "names \"a\" twice"),
        (&["--regions", "a,B"], "\"B\" cannot be the name"),
        (
            &["--regions", "a,authority"],
            "call the region something else",
        ),
        (
            &["--regions", "a,b", "--partitions", "0"],
            "0 is not in 1..=1024",
        ),
        (
            &["--regions", "a,b", "--base-port", "65530"],
            "choose a lower --base-port",
        ),
        (
            &["--regions", "a,b", "--host", "a=h"],
            "no --host for region \"b\"",
        ),
        (
            &["--regions", "a", "--host", "a=h", "--host", "z=h"],
            "names \"z\"",
        ),
        (
            &["--regions", "a,b", "--nodes-per-region", "3"],
            "one node in this version",
        ),
    ];
    for (arguments, says) in claims {
        let whole = [&["init", "--dir", path(&dir)], arguments].concat();
        let refused = meridian(&whole);
        let stderr = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
        assert!(!dir.exists(), "{arguments:?} left something behind");
    }
}

#[test]
fn serve_refuses_a_typo_with_its_line_and_exit_code_2() {
    let folder = federation();
    let file = folder.path().join("fed/a/meridian.toml");
    let sound = fs::read_to_string(&file).expect("a configuration");
    fs::write(&file, sound.replace("partitions =", "partitoins =")).expect("written");
    let refused = meridian(&["serve", "--config", path(&file)]);
    assert_eq!(refused.status.code(), Some(2));
    let stderr = text(&refused.stderr);
    assert!(
        stderr.contains("there is no key `partitoins`; did you mean `partitions`?"),
        "{stderr}"
    );
    assert!(stderr.contains(", line "), "{stderr}");
}

#[test]
fn serve_says_which_certificate_is_missing() {
    let folder = federation();
    let dir = folder.path().join("fed/a");
    fs::remove_file(dir.join("certificates/region.key")).expect("removed");
    let refused = meridian(&["serve", "--config", path(&dir.join("meridian.toml"))]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("region.key, which does not exist"));
}

#[test]
fn a_renewed_certificate_replaces_the_old_one_and_nothing_else() {
    let folder = federation();
    let dir = folder.path().join("fed");
    let certificate = |region: &str| {
        fs::read(dir.join(region).join("certificates/region.pem")).expect("a certificate")
    };
    let (a, b) = (certificate("a"), certificate("b"));
    let renew = |arguments: &[&str]| {
        meridian(&[&["certificate", "renew", "--dir", path(&dir)], arguments].concat())
    };
    let renewed = renew(&["--region", "a", "--days", "30"]);
    assert!(renewed.status.success(), "{}", text(&renewed.stderr));
    assert_ne!(certificate("a"), a);
    assert_eq!(certificate("b"), b);
    let config = dir.join("a/meridian.toml");
    let shown = meridian(&["certificate", "show", "--config", path(&config)]);
    assert!(shown.status.success());
    assert!(text(&shown.stdout).contains("a.region.meridian.internal"));

    let stranger = renew(&["--region", "aa"]);
    assert_eq!(stranger.status.code(), Some(2));
    assert!(!dir.join("aa").exists());
    assert_eq!(renew(&[]).status.code(), Some(2));
}

/// How many authorities a file of trusted ones has.
fn authorities(file: &Path) -> usize {
    let text = fs::read_to_string(file).expect("authorities");
    text.matches("BEGIN CERTIFICATE").count()
}

#[test]
fn an_authority_is_replaced_without_a_moment_of_distrust() {
    let folder = federation();
    let dir = folder.path().join("fed");
    let step = |name: &str| meridian(&["certificate", "authority", name, "--dir", path(&dir)]);
    let trusted = [
        dir.join("a/certificates/ca.pem"),
        dir.join("operator/ca.pem"),
    ];
    let signed = || fs::read(dir.join("a/certificates/region.pem")).expect("a certificate");
    let (old_root, old) = (
        fs::read_to_string(dir.join("authority/ca.pem")).expect("an authority"),
        signed(),
    );
    assert_eq!(step("switch").status.code(), Some(2), "nothing was begun");

    for _ in 0..2 {
        let begun = step("begin");
        assert!(begun.status.success(), "{}", text(&begun.stderr));
        assert!(trusted.iter().all(|file| authorities(file) == 2));
        assert_eq!(signed(), old);
    }
    assert_eq!(
        step("finish").status.code(),
        Some(2),
        "regions have old ones"
    );
    assert!(step("switch").status.success());
    assert!(trusted.iter().all(|file| authorities(file) == 2));
    assert_ne!(signed(), old);
    let new_root = fs::read_to_string(dir.join("authority/ca.pem")).expect("an authority");
    assert_ne!(new_root, old_root);
    assert!(step("finish").status.success());
    for file in &trusted {
        assert_eq!(fs::read_to_string(file).expect("authorities"), new_root);
    }
}

#[test]
fn a_client_gets_a_certificate_of_its_own() {
    let folder = federation();
    let dir = folder.path().join("fed");
    let out = folder.path().join("billing");
    let issue = || {
        meridian(&[
            "certificate",
            "issue",
            "--dir",
            path(&dir),
            "--client",
            "billing",
            "--out",
            path(&out),
        ])
    };
    assert!(issue().status.success());
    let described = certificates::describe(&out.join("billing.pem")).expect("a certificate");
    assert_eq!(described.names, ["billing.client.meridian.internal"]);
    assert_eq!(
        fs::read(out.join("ca.pem")).expect("an authority"),
        fs::read(dir.join("authority/ca.pem")).expect("an authority")
    );
    assert_eq!(issue().status.code(), Some(2), "a key is never overwritten");
}

#[test]
fn wrong_arguments_exit_with_2_and_help_with_0() {
    assert_eq!(meridian(&["serve"]).status.code(), Some(2));
    assert_eq!(meridian(&["frobnicate"]).status.code(), Some(2));
    assert_eq!(meridian(&["--help"]).status.code(), Some(0));
    assert_eq!(meridian(&["--version"]).status.code(), Some(0));
}

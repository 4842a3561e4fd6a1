//! Two regions as an operator runs them: real processes, real files, real signals.

#![expect(
    clippy::disallowed_methods,
    reason = "these tests run processes and wait for them"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

const MERIDIAN: &str = env!("CARGO_BIN_EXE_meridian");
/// Far longer than anything here takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)))
}

/// A federation of regions a and b, and the processes that serve it.
struct Federation {
    folder: tempfile::TempDir,
    base_port: u16,
    nodes: Vec<(&'static str, Child)>,
}

impl Federation {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let base_port = free_ports();
        let made = Command::new(MERIDIAN)
            .args(["init", "--regions", "a,b", "--base-port"])
            .arg(base_port.to_string())
            .arg("--dir")
            .arg(folder.path().join("fed"))
            .output()
            .expect("the binary runs");
        assert!(made.status.success(), "{}", text(&made.stderr));
        Self {
            folder,
            base_port,
            nodes: Vec::new(),
        }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("fed")
    }

    fn config(&self, region: &str) -> PathBuf {
        self.dir().join(region).join("meridian.toml")
    }

    fn url(&self, region: &str) -> String {
        let port = self.base_port + if region == "a" { 0 } else { 10 };
        format!("http://127.0.0.1:{port}")
    }

    fn serve(&self, region: &str) -> Command {
        let log = fs::File::create(self.folder.path().join(format!("{region}.log")));
        let mut command = Command::new(MERIDIAN);
        command
            .args(["serve", "--config"])
            .arg(self.config(region))
            .stderr(log.expect("a log"));
        command
    }

    fn log(&self, region: &str) -> String {
        fs::read_to_string(self.folder.path().join(format!("{region}.log"))).unwrap_or_default()
    }

    /// Starts both regions and waits until appends in either are held in the other.
    fn running() -> Self {
        let mut federation = Self::new();
        for region in ["a", "b"] {
            let node = federation.serve(region).spawn().expect("it starts");
            federation.nodes.push((region, node));
        }
        for region in ["a", "b"] {
            wait_for(&format!("region {region} to be linked"), || {
                let status = federation.run(&["status", "--json"], region);
                let ready = status.status.success();
                ready && json(&status)["links"][0]["receiving"] == true
            });
        }
        federation
    }

    fn run(&self, arguments: &[&str], region: &str) -> Output {
        Command::new(MERIDIAN)
            .args(arguments)
            .env("MERIDIAN_URL", self.url(region))
            .output()
            .expect("the binary runs")
    }

    fn import(&self, lines: &str, arguments: &[&str]) -> Output {
        let mut child = Command::new(MERIDIAN)
            .args(["import", "-", "--json"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut input = child.stdin.take().expect("its standard input");
        // It may stop reading at a bad line.
        let _ = input.write_all(lines.as_bytes());
        drop(input);
        child.wait_with_output().expect("it ends")
    }

    fn signal(&self, region: &str, signal: &str) {
        let node = self.nodes.iter().find(|(name, _)| *name == region);
        let id = node.expect("it runs").1.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Tells all nodes to stop and returns their exit codes.
    fn stop(&mut self) -> Vec<Option<i32>> {
        for (region, _) in &self.nodes {
            self.signal(region, "-TERM");
        }
        self.wait()
    }

    /// Waits for all nodes to end and returns their exit codes.
    fn wait(&mut self) -> Vec<Option<i32>> {
        let ended = |node: &mut Child| node.wait().expect("it ends").code();
        self.nodes
            .drain(..)
            .map(|(_, mut node)| ended(&mut node))
            .collect()
    }
}

impl Drop for Federation {
    fn drop(&mut self) {
        for (region, node) in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
            if std::thread::panicking() {
                let log = self.folder.path().join(format!("{region}.log"));
                eprintln!("{region}:\n{}", fs::read_to_string(log).unwrap_or_default());
            }
        }
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        sleep(Duration::from_millis(50));
    }
}

/// A port such that what two regions listen on is free; below those of outgoing connections.
fn free_ports() -> u16 {
    // Tests run side by side, in this process and in others: each begins to look elsewhere.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let process = (std::process::id() % 60) as u16 * 300;
    let free = |port: u16| {
        let at = ("127.0.0.1", port);
        std::net::TcpListener::bind(at).is_ok() && std::net::UdpSocket::bind(at).is_ok()
    };
    loop {
        let taken = NEXT.fetch_add(20, Ordering::Relaxed);
        assert!(taken < 10_000, "no free ports");
        let base = 12_000 + (process + taken) % 18_000;
        if [0, 1, 10, 11].iter().all(|offset| free(base + offset)) {
            return base;
        }
    }
}

fn lines(count: u32) -> String {
    (0..count)
        .map(|number| {
            format!(
                "{{\"id\":\"00000000-0000-4000-8000-{number:012}\",\"region\":\"{}\",\"stream\":\"thing-{}\",\"type\":\"Seen\",\"data\":{{\"n\":{number}}}}}\n",
                if number % 2 == 0 { "X" } else { "Y" },
                number % 7,
            )
        })
        .collect()
}

#[test]
fn what_is_appended_in_one_region_is_read_in_the_other() {
    let mut federation = Federation::running();
    let append = |expected: &str| {
        let data = ["--data", "{\"n\": 1.50}", "--expected", expected];
        let whole = [&["append", "order-1", "--type", "Placed"], &data[..]].concat();
        federation.run(&[&whole[..], &["--durability", "all"]].concat(), "a")
    };
    let appended = append("none");
    assert!(appended.status.success(), "{}", text(&appended.stderr));

    let read = federation.run(&["read", "order-1", "--json"], "b");
    // The bytes of the data stay as they were written.
    assert!(
        text(&read.stdout).contains("{\"n\": 1.50}"),
        "{}",
        text(&read.stdout)
    );
    assert_eq!(json(&read)["events"][0]["revision"], 0);
    assert_eq!(json(&read)["end"], true);

    let conflict = append("none");
    assert_eq!(conflict.status.code(), Some(1));
    assert!(text(&conflict.stderr).contains("order-1 is at revision 0, not none"));
    assert!(
        text(&conflict.stdout).contains("Placed"),
        "it shows what was written since"
    );

    let wrong = federation.run(&["append", "a\u{7}b", "--type", "T", "--data", "1"], "a");
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));

    let tail = federation.run(&["tail", "--type", "Placed"], "b");
    assert!(
        text(&tail.stdout).contains("order-1@0"),
        "{}",
        text(&tail.stdout)
    );
    assert!(text(&tail.stderr).contains("--after "));
    assert!(federation.run(&["status"], "b").status.success());
    assert_eq!(federation.stop(), [Some(0), Some(0)]);
    assert!(federation.log("a").contains("stopped"));
}

#[test]
fn tail_follows_what_comes() {
    let mut federation = Federation::running();
    let mut tail = Command::new(MERIDIAN)
        .args([
            "tail",
            "--follow",
            "--limit",
            "2",
            "--url",
            &federation.url("b"),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut printed = BufReader::new(tail.stdout.take().expect("its output")).lines();
    for revision in 0..2 {
        let append = ["append", "order-1", "--type", "Placed", "--data", "{}"];
        assert!(federation.run(&append, "a").status.success());
        let line = printed.next().expect("a line").expect("a line");
        assert!(line.contains(&format!("order-1@{revision}")), "{line}");
    }
    assert!(tail.wait().expect("it ends").success());
    federation.stop();
}

#[test]
fn importing_again_adds_nothing_over_quic_and_over_http() {
    let mut federation = Federation::running();
    let (config, url) = (federation.config("a"), federation.url("b"));
    let config = config.to_str().expect("UTF-8");
    let acks = federation.folder.path().join("acks");
    let acks = acks.to_str().expect("UTF-8");
    let map = ["--map", "X=a,Y=b"];
    let lines = lines(500);

    let quic = [&["--config", config, "--acks", acks], &map[..]].concat();
    let first = json(&federation.import(&lines, &quic));
    assert_eq!(
        (&first["new"], &first["there_before"]),
        (&500.into(), &0.into()),
        "{first}"
    );
    let listed = fs::read_to_string(acks).expect("a list");
    assert_eq!(listed.lines().count(), 500);

    let again = json(&federation.import(&lines, &quic));
    assert_eq!(
        (&again["acknowledged"], &again["skipped_by_acks"]),
        (&0.into(), &500.into())
    );

    let http = [&["--url", &url], &map[..]].concat();
    let again = json(&federation.import(&lines, &http));
    assert_eq!(
        (&again["new"], &again["there_before"]),
        (&0.into(), &500.into()),
        "{again}"
    );

    let digest = |region: &str| {
        let status = json(&federation.run(&["status", "--json"], region));
        status["events"].as_u64()
    };
    wait_for("both regions to hold all events", || {
        digest("a") == Some(500) && digest("b") == Some(500)
    });
    let in_use = federation.run(&["verify", "--config", config], "a");
    assert_eq!(in_use.status.code(), Some(1));
    assert!(text(&in_use.stderr).contains("in use by a running node; stop it"));

    federation.stop();
    let verified = |region: &str| {
        let data = federation.dir().join(region).join("data");
        let verified = federation.run(
            &["verify", "--json", "--data", data.to_str().expect("UTF-8")],
            region,
        );
        assert!(verified.status.success(), "{}", text(&verified.stdout));
        json(&verified)["logs"].clone()
    };
    assert_eq!(verified("a"), verified("b"));
}

#[test]
fn a_bad_line_is_named_and_ends_the_import_or_is_counted() {
    let mut federation = Federation::running();
    let config = federation.config("a");
    let config = ["--config", config.to_str().expect("UTF-8")];
    let lines = format!("{}{{\"id\": 3}}\n", lines(20));

    let stopped = federation.import(&lines, &config);
    assert_eq!(stopped.status.code(), Some(1));
    let stderr = text(&stopped.stderr);
    assert!(
        stderr.contains("standard input, line 21: `id`:"),
        "{stderr}"
    );
    assert!(stderr.contains("--skip-bad"), "{stderr}");
    let summary = json(&stopped);
    assert_eq!(
        (&summary["complete"], &summary["acknowledged"]),
        (&false.into(), &20.into())
    );

    let skipped = federation.import(&lines, &[&config[..], &["--skip-bad"]].concat());
    assert_eq!(skipped.status.code(), Some(0));
    assert_eq!(json(&skipped)["bad"], 1);

    let stranger = [&config[..], &["--map", "X=a,Y=bb"]].concat();
    assert_eq!(federation.import(&lines, &stranger).status.code(), Some(2));
    federation.stop();
}

#[test]
fn a_second_node_on_a_data_folder_is_turned_away() {
    let mut federation = Federation::running();
    // Ports of its own, so that the folder is all that they share.
    let text = fs::read_to_string(federation.config("a")).expect("a configuration");
    let other = free_ports();
    let (http, quic) = (federation.base_port, federation.base_port + 1);
    let text = text
        .replace(
            &format!("http = \"127.0.0.1:{http}\""),
            &format!("http = \"127.0.0.1:{other}\""),
        )
        .replace(
            &format!("quic = \"127.0.0.1:{quic}\""),
            &format!("quic = \"127.0.0.1:{}\"", other + 1),
        );
    let config = federation.dir().join("a/second.toml");
    fs::write(&config, text).expect("written");
    let second = Command::new(MERIDIAN)
        .args(["serve", "--config"])
        .arg(&config)
        .output()
        .expect("the binary runs");
    assert_eq!(second.status.code(), Some(1));
    assert_eq!(
        federation.stop(),
        [Some(0), Some(0)],
        "the first one goes on"
    );
}

#[test]
fn a_hangup_reads_certificates_again_and_refuses_what_does_not_fit() {
    let mut federation = Federation::running();
    let dir = federation.dir();
    let renewed = Command::new(MERIDIAN)
        .args(["certificate", "renew", "--region", "a", "--dir"])
        .arg(&dir)
        .output()
        .expect("the binary runs");
    assert!(renewed.status.success());
    federation.signal("a", "-HUP");
    wait_for("the reload", || {
        federation.log("a").contains("certificates were read again")
    });

    let key = |region: &str| dir.join(region).join("certificates/region.key");
    fs::copy(key("b"), key("a")).expect("another region's key");
    federation.signal("a", "-HUP");
    wait_for("the refusal", || {
        federation
            .log("a")
            .contains("certificates could not be read again")
    });
    assert!(federation.run(&["status"], "a").status.success());
    federation.stop();
}

#[test]
fn a_supervisor_is_told_when_the_node_serves() {
    let mut federation = Federation::new();
    let path = federation.folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let receive = || {
        let mut message = [0; 64];
        let length = socket.recv(&mut message).expect("a message");
        text(&message[..length])
    };
    let mut serve = federation.serve("a");
    let node = serve.env("NOTIFY_SOCKET", Path::new(&path)).spawn();
    federation.nodes.push(("a", node.expect("it starts")));
    assert_eq!(receive(), "READY=1");
    federation.signal("a", "-TERM");
    assert_eq!(receive(), "STOPPING=1");
    assert_eq!(federation.wait(), [Some(0)]);
}

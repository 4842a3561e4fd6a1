//! Federations of real `meridian` processes, for tests: made, started, killed, asked, compared.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part of this"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "tests look at files and time from outside the node"
)]

pub mod cuts;
pub mod merged;

use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take before a test fails; far more than it should.
pub const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(20);

/// Runs the real binary to its end.
pub fn meridian(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meridian"))
        .args(arguments)
        .env_remove("MERIDIAN_URL")
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// One region of a [`Federation`].
pub struct Region {
    pub name: String,
    pub config: PathBuf,
    pub data: PathBuf,
    pub http: String,
    pub quic: String,
    log: PathBuf,
    child: Option<Child>,
}

/// Regions on this machine, each a process of its own. All are killed when it is dropped.
pub struct Federation {
    folder: tempfile::TempDir,
    pub regions: Vec<Region>,
}

impl Federation {
    /// Makes one, and starts nothing yet.
    pub fn new(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("fed");
        let base = free_ports(names.len());
        let made = meridian(&[
            "init",
            "--dir",
            path(&dir),
            "--regions",
            &names.join(","),
            "--base-port",
            &base.to_string(),
            "--json",
        ]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let made: Value = serde_json::from_slice(&made.stdout).expect("JSON");
        let of = |value: &Value, key: &str| value[key].as_str().expect("a string").to_owned();
        let regions = made["regions"]
            .as_array()
            .expect("regions")
            .iter()
            .map(|region| Region {
                name: of(region, "region"),
                config: PathBuf::from(of(region, "config")),
                data: dir.join(of(region, "region")).join("data"),
                http: of(region, "http"),
                quic: of(region, "quic"),
                log: folder.path().join(format!("{}.log", of(region, "region"))),
                child: None,
            });
        Self {
            regions: regions.collect(),
            folder,
        }
    }

    /// Adds one more region, and starts nothing: its index, if it could be, and what was said.
    pub fn try_add(&mut self, name: &str) -> (Option<usize>, String) {
        let dir = self.folder.path().join("fed");
        let added = meridian(&["init", "--dir", path(&dir), "--add", name, "--json"]);
        let said = text(&added.stdout) + &text(&added.stderr);
        if !added.status.success() {
            return (None, said);
        }
        let added: Value = serde_json::from_slice(&added.stdout).expect("JSON");
        let of = |key: &str| added[key].as_str().expect("a string").to_owned();
        self.regions.push(Region {
            name: of("region"),
            config: PathBuf::from(of("config")),
            data: dir.join(name).join("data"),
            http: of("http"),
            quic: of("quic"),
            log: self.folder.path().join(format!("{name}.log")),
            child: None,
        });
        (Some(self.regions.len() - 1), said)
    }

    /// Makes one and starts all its regions.
    pub fn running(names: &[&str]) -> Self {
        let mut federation = Self::new(names);
        federation.start_all();
        federation
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn start_all(&mut self) {
        for index in 0..self.regions.len() {
            self.start(index);
        }
        for index in 0..self.regions.len() {
            self.until_ready(index);
        }
    }

    /// Starts one region without waiting for it.
    pub fn start(&mut self, index: usize) {
        let region = &mut self.regions[index];
        assert!(region.child.is_none(), "{} runs already", region.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&region.log)
            .expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_meridian"))
            .args(["serve", "--config", path(&region.config)])
            .env_remove("MERIDIAN_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        region.child = Some(child.expect("the binary runs"));
    }

    /// Waits until a region takes appends.
    pub fn until_ready(&self, index: usize) {
        let region = &self.regions[index];
        until(&format!("{} is ready", region.name), || {
            get(&format!("http://{}/readyz", region.http)).is_some_and(|(status, _)| status == 200)
        });
    }

    /// `kill -9`.
    pub fn kill(&mut self, index: usize) {
        let mut child = self.regions[index].child.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    /// Removes everything from a region's data folder, as a lost disk would.
    pub fn wipe(&self, index: usize) {
        fs::remove_dir_all(&self.regions[index].data).expect("the folder can be wiped");
    }

    /// Whether a region's data folder has this file or folder.
    pub fn has(&self, index: usize, file: &str) -> bool {
        self.regions[index].data.join(file).exists()
    }

    /// Where a region is reached by links.
    pub fn quic(&self, index: usize) -> &str {
        &self.regions[index].quic
    }

    /// Where a region keeps what it has.
    pub fn data(&self, index: usize) -> &Path {
        &self.regions[index].data
    }

    /// What a region's `/metrics` says; nothing when it does not answer.
    pub fn metrics(&self, index: usize) -> String {
        let url = self.url(index, "/metrics");
        block_on(async {
            let answer = reqwest::Client::new().get(url).timeout(PATIENCE).send();
            answer.await.ok()?.text().await.ok()
        })
        .unwrap_or_default()
    }

    /// Flips one bit of a region's file.
    pub fn flip(&self, index: usize, file: &str, offset: u64) {
        let file = self.regions[index].data.join(file);
        let mut bytes = fs::read(&file).expect("the file can be read");
        bytes[usize::try_from(offset).expect("a small file")] ^= 4;
        fs::write(&file, bytes).expect("the file can be written");
    }

    /// SIGTERM, and how the process ended.
    pub fn stop(&mut self, index: usize) -> ExitStatus {
        let mut child = self.regions[index].child.take().expect("it runs");
        let signalled = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        assert!(signalled.expect("kill runs").success());
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{} does not stop",
                self.regions[index].name
            );
            sleep(AGAIN);
        }
    }

    /// What a region logged so far.
    pub fn log(&self, index: usize) -> String {
        fs::read_to_string(&self.regions[index].log).unwrap_or_default()
    }

    pub fn url(&self, index: usize, path: &str) -> String {
        format!("http://{}{path}", self.regions[index].http)
    }

    pub fn digest(&self, index: usize) -> Option<Value> {
        get(&self.url(index, "/v1/digest")).map(|(_, digest)| digest)
    }

    /// Waits until the regions `among` hold `events` events and the same chains.
    pub fn until_agreed(&self, among: &[usize], events: u64) {
        until(
            &format!("regions {among:?} agree on {events} events"),
            || {
                let digests: Vec<_> = among.iter().map(|index| self.digest(*index)).collect();
                digests
                    .iter()
                    .all(|digest| digest.as_ref().is_some_and(|d| count(d) == events))
                    && digests.windows(2).all(|pair| pair[0] == pair[1])
            },
        );
    }

    /// Appends one event through a region's HTTP door.
    pub fn append(&self, index: usize, stream: &str, id: u128) -> (u16, Value) {
        let body = serde_json::json!({
            "events": [{ "id": uuid::Uuid::from_u128(id), "type": "Tested", "data": { "id": id as u64 } }],
        });
        post(
            &self.url(index, &format!("/v1/streams/{stream}/events")),
            &body.to_string(),
        )
        .expect("the door answers")
    }

    /// Appends, trying again with the same id until it is written.
    pub fn append_surely(&self, index: usize, stream: &str, id: u128) -> Value {
        let mut answer = None;
        until(&format!("event {id} is written"), || {
            let (status, body) = self.append(index, stream, id);
            answer = Some(body);
            status == 200
        });
        answer.expect("it was answered")
    }

    /// The lines of `meridian verify` on a stopped region's data, and whether it found no damage.
    pub fn verify(&self, index: usize) -> (bool, String) {
        let output = meridian(&["verify", "--data", path(&self.regions[index].data)]);
        let all = format!("{}{}", text(&output.stdout), text(&output.stderr));
        (output.status.success() && !all.contains("have gaps"), all)
    }

    /// Replaces `from` by `to` in a region's configuration.
    pub fn edit_config(&self, index: usize, from: &str, to: &str) {
        let file = &self.regions[index].config;
        let before = fs::read_to_string(file).expect("a configuration");
        assert!(before.contains(from), "{from:?} is not in {before}");
        fs::write(file, before.replace(from, to)).expect("it can be written");
    }
}

impl Drop for Federation {
    fn drop(&mut self) {
        for region in &mut self.regions {
            if let Some(mut child) = region.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            if std::thread::panicking() {
                let log = fs::read_to_string(&region.log).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(25).collect();
                eprintln!(
                    "--- the last lines of {}'s log, newest first\n{}",
                    region.name,
                    tail.join("\n")
                );
            }
        }
    }
}

/// How many events a digest counts.
pub fn count(digest: &Value) -> u64 {
    let entries = digest.as_array().or_else(|| digest["logs"].as_array());
    entries.map_or(0, |logs| {
        logs.iter().filter_map(|log| log["position"].as_u64()).sum()
    })
}

/// Waits for `condition`.
///
/// # Panics
/// When it takes longer than [`PATIENCE`].
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain until {what}"
        );
        sleep(AGAIN);
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future)
}

/// `GET`: the status and the body as JSON (null if it is none); `None` when nobody answers.
pub fn get(url: &str) -> Option<(u16, Value)> {
    block_on(async {
        let answer = reqwest::Client::new()
            .get(url)
            .timeout(PATIENCE)
            .send()
            .await
            .ok()?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.ok()?;
        Some((status, serde_json::from_slice(&body).unwrap_or_default()))
    })
}

/// Sends a request with a JSON body; the answer's status and JSON, if there is an answer.
pub fn post(url: &str, body: &str) -> Option<(u16, Value)> {
    send(reqwest::Method::POST, url, body).map(|(status, _, answer)| (status, answer))
}

/// As [`post`], with PUT.
pub fn put(url: &str, body: &str) -> Option<(u16, Value)> {
    send(reqwest::Method::PUT, url, body).map(|(status, _, answer)| (status, answer))
}

/// As [`post`], with DELETE and no body.
pub fn delete(url: &str) -> Option<(u16, Value)> {
    send(reqwest::Method::DELETE, url, "").map(|(status, _, answer)| (status, answer))
}

/// As [`post`], with the session token that came with the answer.
pub fn post_for_token(url: &str, body: &str) -> Option<(u16, Option<String>, Value)> {
    send(reqwest::Method::POST, url, body)
}

fn send(method: reqwest::Method, url: &str, body: &str) -> Option<(u16, Option<String>, Value)> {
    block_on(async {
        let request = reqwest::Client::new()
            .request(method, url)
            .header("content-type", "application/json");
        let answer = request
            .body(body.to_owned())
            .timeout(PATIENCE)
            .send()
            .await
            .ok()?;
        let status = answer.status().as_u16();
        let token = answer.headers().get("meridian-session");
        let token = token
            .and_then(|token| token.to_str().ok())
            .map(str::to_owned);
        Some((status, token, answer.json().await.ok()?))
    })
}

/// A port from which on everything that so many regions listen on is free. Tests of one process
/// get different ports; those of another process are unlikely to pick the same.
pub fn free_ports(regions: usize) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let process = u16::try_from(std::process::id() % 600).unwrap_or(0) * 40;
    for _ in 0..200 {
        let base = 8_000 + (process + NEXT.fetch_add(40, Ordering::Relaxed)) % 24_000;
        let free = (0..regions).all(|index| {
            let port = base + 10 * u16::try_from(index).expect("few regions");
            TcpListener::bind(("127.0.0.1", port)).is_ok()
                && UdpSocket::bind(("127.0.0.1", port + 1)).is_ok()
        });
        if free {
            return base;
        }
    }
    panic!("no free ports on this machine");
}

/// Copies a file.
pub fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).expect("the file can be copied");
}

/// What a file says.
pub fn read(file: &Path) -> String {
    fs::read_to_string(file).expect("the file can be read")
}

/// So many letters that no codec makes shorter by much, different for each seed.
pub fn noise(seed: u64, bytes: usize) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = || {
        // Marsaglia's xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'A' + u8::try_from(state >> 58).unwrap_or(0) % 58)
    };
    let letters: String = std::iter::repeat_with(letter).take(bytes).collect();
    letters.replace('\\', "/")
}

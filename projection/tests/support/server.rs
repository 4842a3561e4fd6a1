//! A PostgreSQL server of our own, in a temporary folder, reached over its socket there.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// Runs as long as its standard input is open, however its owner ends, and then stops the server and
/// takes its folder away.
const KEEPER: &str = r#"
    cat >/dev/null
    for pid in $(pids); do kill -QUIT "$pid" 2>/dev/null; done
    sleep 0.2
    for pid in $(pids); do kill -KILL "$pid" 2>/dev/null; done
    rm -rf "$folder"
"#;
/// The server and all its processes: each works in the folder of its data.
const PIDS: &str = r#"
    pids() {
        find /proc/[0-9]*/cwd -maxdepth 0 -lname "$folder/data" 2>/dev/null | cut -d/ -f3
    }
"#;

/// One server. It is stopped, and its folder removed, when this is dropped or the process ends.
pub(crate) struct Server {
    folder: PathBuf,
    programs: PathBuf,
    keeper: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Where PostgreSQL's programs are, if they are installed.
fn programs() -> Option<PathBuf> {
    let listed = Command::new("sh")
        .args(["-c", "ls -d /usr/lib/postgresql/*/bin /usr/local/pgsql/bin \"$(dirname \"$(command -v initdb || echo /nowhere)\")\" 2>/dev/null"])
        .output()
        .ok()?;
    let listed = String::from_utf8(listed.stdout).ok()?;
    let mut folders = listed.lines().map(PathBuf::from);
    folders.rfind(|folder| {
        let version = Command::new(folder.join("initdb"))
            .arg("--version")
            .output();
        version.is_ok_and(|it| it.status.success())
    })
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout.trim_ascii() == b"0"
}

fn pause(time: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "a real server takes real time to come and go"
    )]
    std::thread::sleep(time);
}

impl Server {
    /// A new, running server; `None`, and a line that says so, where PostgreSQL is not installed.
    pub(crate) fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!(
                "SKIPPED: PostgreSQL is not installed, so nothing is known of the sink for it; apt-get install postgresql"
            );
            return None;
        };
        let folder: PathBuf = TempDir::with_prefix("meridian-pg-").unwrap().keep();
        let script = format!("folder='{}'\n{PIDS}\n{KEEPER}", folder.display());
        let keeper = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What ends the tests, Ctrl-C or a time limit, must not end it with them.
            .process_group(0)
            .spawn()
            .unwrap();
        let server = Self {
            folder,
            programs,
            keeper,
        };
        if is_root() {
            let owned = Command::new("chown")
                .arg("postgres")
                .arg(&server.folder)
                .status();
            assert!(owned.unwrap().success());
        }
        let folder = server.folder.display();
        server.run(
            "initdb",
            &format!(
                "-D {folder}/data -U meridian --auth=trust --encoding=UTF8 --locale=C --no-sync"
            ),
        );
        server.go_on();
        Some(server)
    }

    // Runs one of PostgreSQL's programs, which refuse to be root.
    fn run(&self, program: &str, arguments: &str) {
        let program = self.programs.join(program);
        let line = format!(
            "cd '{}' && exec '{}' {arguments}",
            self.folder.display(),
            program.display()
        );
        let mut command = match is_root() {
            true => {
                let mut command = Command::new("setpriv");
                command.args([
                    "--reuid=postgres",
                    "--regid=postgres",
                    "--clear-groups",
                    "sh",
                ]);
                command
            }
            false => Command::new("sh"),
        };
        let mut child = command
            .args(["-c", &line])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let status = child.wait().unwrap();
        let mut said = String::new();
        if !status.success() {
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut said)
                .unwrap();
        }
        let log = Command::new("tail")
            .arg(self.folder.join("log"))
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&log.stdout);
        assert!(status.success(), "{line}: {said}\n{log}");
    }

    /// Starts it again after it was stopped or killed, and waits until it answers.
    pub(crate) fn go_on(&self) {
        let folder = self.folder.display();
        // No disk fails here, only processes end: what they wrote is seen by the next ones. They write
        // often, so that a kill finds some commits written and some not.
        self.run("pg_ctl", &format!(
            "-D {folder}/data -l {folder}/log -w -t 60 -o \"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c max_connections=100 -c wal_writer_delay=10ms\" start"
        ));
    }

    /// Stops it in order.
    pub(crate) fn stop(&self) {
        let folder = self.folder.display();
        self.run("pg_ctl", &format!("-D {folder}/data -w -m fast stop"));
    }

    /// Ends all its processes at once, with no chance to do anything more, and waits until they are gone:
    /// until somebody has asked how they ended, the next server takes them for alive.
    pub(crate) fn kill(&self) {
        // The first of them is stopped before, so that it has no new ones.
        let script = format!(
            "folder='{}'\n{PIDS}
            kill -STOP $(head -n 1 \"$folder/data/postmaster.pid\"); all=$(pids); kill -KILL $all
            for pid in $all; do while kill -0 $pid 2>/dev/null; do sleep 0.01; done; done",
            self.folder.display()
        );
        let killed = Command::new("sh").args(["-c", &script]).status();
        assert!(killed.unwrap().success());
    }

    /// Lets a moment pass.
    pub(crate) fn pause(&self, time: Duration) {
        pause(time);
    }

    pub(crate) fn url(&self) -> String {
        format!(
            "postgresql://meridian@/postgres?host={}",
            self.folder.display()
        )
    }
}

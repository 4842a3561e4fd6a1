//! `meridian serve`: one node, in the foreground.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use meridian_node::config::NodeConfig;
use meridian_node::seams::Seams;
use meridian_node::{Node, StartError};
use meridian_node::{config, files, session};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;
use tracing_subscriber::EnvFilter;

use super::{Outcome, wrong_use};

/// How often, and how many times, a node that starts anew tries to listen.
const LISTEN_AGAIN: Duration = Duration::from_millis(100);
const LISTEN_ATTEMPTS: u32 = 100;

/// What `meridian serve` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node's configuration, as `meridian init` writes it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How log lines on standard error look
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What is logged, as in `info` or `warn,meridian_replication=debug`
    #[arg(long, env = "MERIDIAN_LOG", default_value = "info")]
    log: String,
    /// The data folder was put back from a backup: take no writes before every other region has said what this one
    /// wrote since. Needed for one start only; an empty file `restored` in the folder says the same
    #[arg(long)]
    restored: bool,
    /// Check the configuration and the certificates it names, then stop
    #[arg(long)]
    check: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Outcome> {
    let loaded = config::load(&args.config)?;
    let certificates = &loaded.node.certificates;
    for path in [
        &certificates.authority,
        &certificates.certificate,
        &certificates.key,
    ] {
        if !files::exists(path) {
            return Err(wrong_use(format!(
                "{} names {}, which does not exist; put it there, or make it with `meridian certificate renew`",
                args.config.display(),
                path.display()
            )));
        }
    }
    if let Some(path) = &loaded.node.session_key {
        let key = files::read_text(path).with_context(|| format!("read {}", path.display()));
        let key = key.map_err(|error| {
            wrong_use(format!(
                "{error:#}; `session_key` in {} names it: copy it from another region, or take the key out",
                args.config.display()
            ))
        })?;
        if session::parse_key(&key).is_none() {
            return Err(wrong_use(format!(
                "{} holds no session key, which is 64 hexadecimal digits, the same in every region",
                path.display()
            )));
        }
    }
    if args.check {
        return Ok(Outcome::Done);
    }
    start_logging(&args.log, args.log_format)?;
    let secrets = std::iter::once(&certificates.key).chain(&loaded.node.session_key);
    for key in secrets {
        if files::readable_by_others(key).unwrap_or(false) {
            tracing::warn!(
                key = %key.display(),
                "the private key is readable by others; chmod 600 it"
            );
        }
    }

    // Taken before the node starts: a signal that arrives meanwhile must not kill it half-way.
    let mut signals = Signals::new()?;
    let seams = Seams::host(&loaded.node.data)
        .with_context(|| format!("open the data folder {}", loaded.node.data.display()))?;
    let config = loaded.node;
    let started = match args.restored {
        true => Node::start_restored(config.clone(), seams.clone()).await,
        false => Node::start(config.clone(), seams.clone()).await,
    };
    let mut node = started.context("start the node")?;
    tracing::info!(
        config = %args.config.display(),
        http = %node.http_addr(),
        quic = %node.quic_addr(),
        "serving"
    );
    tell_supervisor("READY=1");
    loop {
        let received = tokio::select! {
            received = signals.next() => received,
            () = node.must_restart().cancelled() => Received::Restart,
        };
        match received {
            Received::Restart => {
                node.shutdown().await;
                drop(node);
                node = start_anew(&config, &seams).await?;
            }
            Received::Reload => match node.reload_certificates() {
                Ok(()) => tracing::info!("certificates were read again"),
                Err(error) => tracing::error!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "certificates could not be read again; the node goes on with the old ones"
                ),
            },
            Received::Stop(name) => {
                tracing::info!(signal = name, "draining; a second signal stops at once");
                break;
            }
        }
    }
    tell_supervisor("STOPPING=1");
    tokio::select! {
        () = node.shutdown() => {
            tracing::info!("stopped");
            Ok(Outcome::Done)
        }
        name = signals.stop() => {
            anyhow::bail!("stopped by a second {name} before all work was finished; nothing acknowledged is lost")
        }
    }
}

// Starts the node again in the place of one that has stopped, whose sockets close a moment later.
async fn start_anew(config: &NodeConfig, seams: &Seams) -> anyhow::Result<Arc<Node>> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match Node::start(config.clone(), seams.clone()).await {
            Err(StartError::Listen { .. }) if attempts < LISTEN_ATTEMPTS => {
                sleep(LISTEN_AGAIN).await;
            }
            started => return started.context("start the node anew"),
        }
    }
}

/// What a signal asks for.
enum Received {
    Reload,
    Restart,
    Stop(&'static str),
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let take = |kind| signal(kind).context("take over signals");
        Ok(Self {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
            hangup: take(SignalKind::hangup())?,
        })
    }

    /// Waits for any signal.
    async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.hangup.recv() => Received::Reload,
            _ = self.terminate.recv() => Received::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Received::Stop("SIGINT"),
        }
    }

    /// Waits for a signal to stop and names it.
    async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Sends the log to standard error; later calls in the same process change nothing.
pub(crate) fn start_logging(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    // The Raft library calls it an error that a peer is away, each time; what matters we say ourselves.
    let quieter = match filter.contains("openraft") {
        true => filter.to_owned(),
        false => format!("{filter},openraft=off"),
    };
    let filter = EnvFilter::builder().parse(quieter).map_err(|error| {
        wrong_use(format!(
            "the log filter {filter:?} is wrong: {error}; write a level such as info"
        ))
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let _ = match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Tells systemd how far we are, where it asked for that (`Type=notify`).
fn tell_supervisor(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let told = supervisor(&socket).and_then(|address| {
        let from = UnixDatagram::unbound()?;
        from.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = told {
        tracing::warn!(%error, state, "the supervisor could not be told");
    }
}

/// The address of the supervisor's socket; one that begins with `@` is in no folder.
fn supervisor(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(socket),
    }
}

//! What a node is made of before it runs: what its configuration, its files and its log say.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use meridian_client::tls::{Identity as TlsIdentity, PeerName, TlsError, TlsSeams};
use meridian_clock::{Hlc, HlcStart, LogId, PartitionId, RegionId, Timestamp};
use meridian_conflict::PolicyError;
use meridian_points::{Bug, planted};
use meridian_replication::quic::{DelayObserver, EndpointError};
use meridian_replication::{LinksConfig, Member, Remembered};
use meridian_store::{
    Disk, OpenError, Recovery, Store, StrandError, checked_file::CheckedFileError,
};
use tracing::{error, info, warn};

use crate::config::{MemberConfig, NodeConfig};
use crate::control::{Federation, Foundation};
use crate::fencing::{forget_replay, must_replay, note_replay, to_strand};
use crate::gate::Memory;
use crate::identity::{Identity, IdentityError};
use crate::seams::{Random, Seams};
use crate::session::{SessionSeal, parse_key};

/// Why a node did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder of the read models cannot be looked through.
    #[error("the folder of the read models cannot be read; check its permissions")]
    ReadModels(#[source] io::Error),
    /// The configuration contradicts itself.
    #[error("the configuration cannot be used: {0}")]
    Config(String),
    /// A category's rule names a stranger.
    #[error("the configuration's categories cannot be used")]
    Policies(#[from] PolicyError),
    /// A certificate file cannot be read.
    #[error("read {path}; check `certificates` in the configuration")]
    CertificateFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The certificates do not fit together.
    #[error("the certificates cannot be used")]
    Certificates(#[from] TlsError),
    /// The certificate is another region's.
    #[error("the certificate is for {found}, this node is region {expected}; use its own")]
    ForeignCertificate {
        /// Who it is for.
        found: String,
        /// Who this node is.
        expected: String,
    },
    /// The file with the federation's key for session tokens cannot be read.
    #[error("read {path}; check `session_key` in the configuration")]
    SessionKeyFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file with the federation's key for session tokens holds something else.
    #[error(
        "{path} holds no session key, which is 64 hexadecimal digits; copy the file that \
         `meridian init` made, or one made by `openssl rand -hex 32`, to every region"
    )]
    SessionKey {
        /// The file.
        path: PathBuf,
    },
    /// The data folder is another node's, or damaged.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The clock's ceiling cannot be read: time could run backwards.
    #[error("the clock's ceiling cannot be read")]
    Ceiling(#[source] CheckedFileError),
    /// The log cannot be opened.
    #[error("the log cannot be opened")]
    Store(#[from] OpenError),
    /// What is decided cannot be read.
    #[error("{0}")]
    Control(String),
    /// What does not count any more cannot be put aside.
    #[error("what does not count any more cannot be put aside")]
    Strand(#[from] StrandError),
    /// The clock's ceiling cannot be written.
    #[error("the data folder cannot be written")]
    Disk(#[source] io::Error),
    /// QUIC does not start.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// An address is taken or not ours.
    #[error("listen on {addr} for {door}; stop what holds it, or change the configuration")]
    Listen {
        /// Which door.
        door: &'static str,
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

pub(super) fn check(config: &NodeConfig) -> Result<&MemberConfig, StartError> {
    if config.partitions == 0 {
        return Err(StartError::Config(
            "a federation has at least one partition".to_owned(),
        ));
    }
    let own = config.own();
    own.ok_or_else(|| StartError::Config(format!("region {} is not a member", config.region)))
}

/// The regions that `config` lists, with their names.
pub(super) fn listed(config: &NodeConfig) -> BTreeMap<RegionId, String> {
    let members = config.members.iter();
    members
        .map(|member| (member.id, member.name.clone()))
        .collect()
}

/// The logs of all regions that `config` lists but the node's own.
pub(super) fn others_logs(config: &NodeConfig) -> Vec<LogId> {
    let others = config.members.iter().map(|member| member.id);
    let others = others.filter(|region| *region != config.region);
    let partitions = || (0..config.partitions).map(PartitionId);
    others
        .flat_map(|region| partitions().map(move |partition| LogId::new(region, partition)))
        .collect()
}

/// Every region that `known` says ever was a member, or is becoming one, must be in `config`.
pub(super) fn check_listed(config: &NodeConfig, known: &Federation) -> Result<(), StartError> {
    match known.lacking(&listed(config)) {
        Some(lacking) => Err(StartError::Config(lacking.reason)),
        None => Ok(()),
    }
}

pub(super) fn load_certificates(
    config: &NodeConfig,
    own: &MemberConfig,
    seams: &TlsSeams,
) -> Result<TlsIdentity, StartError> {
    let paths = &config.certificates;
    let authority = read_file(&paths.authority)?;
    let certificate = read_file(&paths.certificate)?;
    let key = read_file(&paths.key)?;
    let identity = TlsIdentity::load_with(&authority, &certificate, &key, seams.clone())?;
    let expected = PeerName::Region(own.name.clone());
    if *identity.name() != expected {
        let found = identity.name().to_string();
        return Err(StartError::ForeignCertificate {
            found,
            expected: own.name.clone(),
        });
    }
    Ok(identity)
}

pub(super) fn load_session_key(config: &NodeConfig) -> Result<Option<[u8; 32]>, StartError> {
    let Some(path) = &config.session_key else {
        return Ok(None);
    };
    let text = crate::files::read_text(path).map_err(|source| StartError::SessionKeyFile {
        path: path.clone(),
        source,
    })?;
    match parse_key(&text) {
        Some(key) => Ok(Some(key)),
        None => Err(StartError::SessionKey { path: path.clone() }),
    }
}

pub(super) fn session_seal(
    config: &NodeConfig,
    own: &MemberConfig,
    key: Option<[u8; 32]>,
    secret: &[u8; 32],
) -> SessionSeal {
    if let Some(key) = key {
        return SessionSeal::of_federation(config.federation, &key);
    }
    if config.members.len() > 1 {
        warn!(
            "there is no `session_key` in the configuration: session tokens are good in the region \
             that gave them only"
        );
    }
    SessionSeal::of_region(&own.name, config.federation, secret)
}

fn read_file(path: &Path) -> Result<Vec<u8>, StartError> {
    let text = crate::files::read_text(path).map(String::into_bytes);
    text.map_err(|source| StartError::CertificateFile {
        path: path.to_owned(),
        source,
    })
}

/// What was put aside before the log was opened.
#[derive(Default)]
pub(super) struct Stranded {
    /// The fences that it was done for, by their first changes.
    pub(super) fences: BTreeSet<u64>,
    /// How many events were put aside now.
    pub(super) events: u64,
}

/// Puts aside what `disk` holds beyond the cuts of fences that are open, as far as it knows of them.
pub(super) fn strand(
    disk: &Arc<dyn Disk>,
    me: RegionId,
) -> Result<(Federation, Stranded), StartError> {
    let known = crate::control::known(&**disk).map_err(StartError::Control)?;
    let mut stranded = Stranded::default();
    let cuts = to_strand(&known);
    let me_out = known.out.contains_key(&me) && !known.left.contains(&me);
    // Also a region that was never put out may hold, and have read, what a fence cut off.
    let may_strand = me_out || cuts.iter().any(|cuts| !cuts.is_empty());
    let noted = must_replay(&**disk).map_err(StartError::Disk)?;
    if may_strand && !noted {
        note_replay(&**disk).map_err(StartError::Disk)?;
    }
    for cuts in &cuts {
        for stranded_now in meridian_store::strand(Arc::clone(disk), cuts)? {
            warn!(
                log = %stranded_now.tail.log,
                from = %stranded_now.first,
                to = %stranded_now.last,
                events = stranded_now.events,
                "events that no other region has are put aside: the region was fenced before they came there"
            );
            stranded.events += stranded_now.events;
        }
    }
    if may_strand && !noted && stranded.events == 0 {
        forget_replay(&**disk).map_err(StartError::Disk)?;
    }
    let open = known.fences.iter().filter(|fence| fence.opened);
    stranded.fences = open.map(|fence| fence.change).collect();
    Ok((known, stranded))
}

pub(super) fn memory_of(identity: Option<&Identity>, recovery: &Recovery) -> Memory {
    match identity {
        Some(identity) if recovery.was_empty && identity.fresh => Memory::Fresh,
        Some(_) if !recovery.was_empty && !recovery.heads_uncertain => Memory::Whole,
        Some(_) if !recovery.was_empty => Memory::Cut,
        _ => Memory::Lost,
    }
}

/// A clock above everything that was stamped here. Of what others stamped it takes over what it
/// would have taken over when it came: one far-future clock must not move ours at a restart either.
pub(super) fn clock_over(
    config: &NodeConfig,
    store: &Store,
    ceiling: Timestamp,
    seams: &Seams,
) -> Hlc {
    let heads = store.heads();
    let (own, others): (Vec<_>, Vec<_>) = heads
        .into_iter()
        .partition(|head| head.log.origin == config.region || planted(Bug::FollowFarFuture));
    let last_stamp = own.iter().map(|head| head.timestamp).max();
    let start = HlcStart {
        ceiling,
        last_stamp: last_stamp.unwrap_or_default(),
    };
    let hlc = Hlc::new(Arc::clone(&seams.clock), start, config.max_offset);
    for head in others {
        hlc.merge(head.timestamp);
    }
    hlc
}

pub(super) fn report(recovery: &Recovery, memory: Memory) {
    if recovery.tail_cut {
        info!("the end of the log was torn and is cut; none of it had been acknowledged");
    }
    for range in &recovery.damaged {
        error!(%range, "the log is damaged here; the range is fetched from a peer");
    }
    for hole in &recovery.holes {
        error!(
            ?hole,
            "bytes of the log are damaged, and nothing tells what they held"
        );
    }
    if memory == Memory::Lost {
        let why = match recovery.was_empty {
            true => "it is empty: either it once held a log, or this region is new",
            false => "it was put back from a backup, or is still being filled again",
        };
        warn!("the data folder may lack what this region wrote, and every peer is asked: {why}");
    }
}

pub(super) fn links_config(
    config: &NodeConfig,
    identity: &Identity,
    delays: DelayObserver,
    remembered: Remembered,
) -> LinksConfig {
    let members = config.members.iter().map(|member| Member {
        id: member.id,
        name: member.name.clone(),
        addr: member.quic,
    });
    LinksConfig {
        max_offset: config.max_offset,
        delays: Some(delays),
        remembered,
        ..LinksConfig::new(
            config.federation,
            config.region,
            identity.incarnation,
            config.partitions,
            members.collect(),
        )
    }
}

pub(super) fn foundation(config: &NodeConfig) -> Foundation {
    Foundation {
        members: listed(config),
        partitions: config.partitions,
        categories: config.categories.clone(),
    }
}

pub(super) fn random_array<const N: usize>(random: &dyn Random) -> [u8; N] {
    let mut bytes = [0; N];
    random.fill(&mut bytes);
    bytes
}

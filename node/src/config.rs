//! What an operator may change about a node, and the TOML file that says it.
//!
//! [`load`] reads a file into a [`NodeConfig`]; [`FileText::render`] writes one, with every key
//! explained. Unknown keys are refused, with the line and the nearest known key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use meridian_client::Limits;
use meridian_clock::RegionId;
use meridian_conflict::{CategoryPolicy, Isolation, Kind, Policies};
use uuid::Uuid;

mod error;
mod file;
mod keys;
mod written;

pub use error::ConfigError;
pub use file::{Loaded, load, parse};
pub use written::{FileMember, FileText};

/// One region of the federation, as every node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberConfig {
    /// Its number, never reused.
    pub id: RegionId,
    /// Its name, as in its certificate.
    pub name: String,
    /// Where its node takes links and clients over QUIC.
    pub quic: SocketAddr,
    /// Where its node answers HTTP.
    pub http: SocketAddr,
}

/// Where this node's certificate, key and trusted authority are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificatePaths {
    /// The federation's certificate authority, PEM.
    pub authority: PathBuf,
    /// This region's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Everything that one node needs to know to run.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Which federation this node belongs to; nodes of another one are refused.
    pub federation: Uuid,
    /// This node's region, one of `members`.
    pub region: RegionId,
    /// How many partitions the federation has, fixed at `init`.
    pub partitions: u16,
    /// All regions, this one included.
    pub members: Vec<MemberConfig>,
    /// Where the node keeps its data.
    pub data: PathBuf,
    /// Where HTTP is served; port 0 lets the system choose.
    pub listen_http: SocketAddr,
    /// Where QUIC is served; port 0 lets the system choose.
    pub listen_quic: SocketAddr,
    /// Certificate files.
    pub certificates: CertificatePaths,
    /// The file with the federation's key for session tokens, the same in every region. Without
    /// it tokens are good in the region that gave them only.
    pub session_key: Option<PathBuf>,
    /// Policies of categories that are not `home` by `hash`.
    pub categories: BTreeMap<String, CategoryPolicy>,
    /// What homes do that are cut off, for categories where that is not [`Isolation::Available`].
    pub isolations: BTreeMap<String, Isolation>,
    /// What the streams are of categories that every region may write; those without are not merged.
    pub kinds: BTreeMap<String, Kind>,
    /// The largest requests that are taken.
    pub limits: Limits,
    /// How long an append may wait for its durability before it is indeterminate.
    pub append_timeout: Duration,
    /// How far clocks may be apart before stamping stops.
    pub max_offset: Duration,
    /// How long a region is silent before the others go on without it by themselves; `None` when an
    /// operator decides that.
    pub failover_after: Option<Duration>,
    /// How large a log segment file is, in bytes.
    pub segment_bytes: u64,
}

impl NodeConfig {
    /// This node's own entry among the members.
    pub fn own(&self) -> Option<&MemberConfig> {
        self.members.iter().find(|member| member.id == self.region)
    }

    /// The category policies over these members.
    ///
    /// # Errors
    /// When a rule names a region that is no member.
    pub fn policies(&self) -> Result<Policies, meridian_conflict::PolicyError> {
        let members = self.members.iter().map(|member| member.id).collect();
        let policies = Policies::new(members, self.categories.clone())?;
        let policies = policies.with_isolations(self.isolations.clone());
        Ok(policies.with_kinds(self.kinds.clone()))
    }
}

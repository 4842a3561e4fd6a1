//! What a client must know of a federation to send its requests to the right region.

use std::collections::BTreeMap;

use meridian_clock::RegionId;
use meridian_conflict::{CategoryPolicy, Policies, PolicyError};
use serde::{Deserialize, Serialize};

/// A member region and where to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number.
    pub id: RegionId,
    /// Its name, the one in its certificate.
    pub name: String,
    /// Where it takes QUIC, `host:port`.
    pub quic: String,
    /// Where it takes HTTP, `host:port`.
    pub http: String,
}

/// The regions of a federation and the rules that name a stream's home.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// How many partitions there are.
    pub partitions: u16,
    /// The members, in ascending order of their numbers.
    pub members: Vec<Member>,
    /// The policies of the categories that were set.
    pub categories: BTreeMap<String, CategoryPolicy>,
}

impl Topology {
    /// The member with this number.
    pub fn member(&self, id: RegionId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The member of this name.
    pub fn named(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }

    /// The policies, checked against the members.
    ///
    /// # Errors
    /// When there are no members, or a policy names a region that is none.
    pub fn policies(&self) -> Result<Policies, PolicyError> {
        let members = self.members.iter().map(|member| member.id).collect();
        Policies::new(members, self.categories.clone())
    }
}

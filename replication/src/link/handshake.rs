//! Whether two nodes may talk at all.

use std::collections::BTreeMap;

use meridian_clock::{Incarnation, RegionId};
use uuid::Uuid;

use crate::frame::{Hello, LINK_VERSION, LINK_VERSION_MIN, Lane, Refusal};

/// Who we are, and who we were told the others are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Our federation.
    pub federation: Uuid,
    /// Our number in it.
    pub region: RegionId,
    /// Our incarnation.
    pub incarnation: Incarnation,
    /// The federation's partition count.
    pub partitions: u16,
    /// The configured names of all members, ours included.
    pub names: BTreeMap<RegionId, String>,
}

impl Credentials {
    /// What we say first on a connection.
    pub fn hello(&self, lane: Lane) -> Hello {
        Hello {
            version_min: LINK_VERSION_MIN,
            version_max: LINK_VERSION,
            federation: self.federation,
            region: self.region,
            name: self.names.get(&self.region).cloned().unwrap_or_default(),
            incarnation: self.incarnation,
            partitions: self.partitions,
            lane,
        }
    }

    /// Judges a peer's hello. `certificate` is the region name in its certificate, `expected` the
    /// member we dialled, if it was we who dialled. Returns the protocol version to speak.
    ///
    /// The federation is compared first: in another federation nothing else means the same.
    ///
    /// # Errors
    /// The reason to refuse it, to be told to the peer and logged on both sides.
    pub fn judge(
        &self,
        hello: &Hello,
        certificate: &str,
        expected: Option<RegionId>,
    ) -> Result<u16, Refusal> {
        let version = hello.version_max.min(LINK_VERSION);
        if version < hello.version_min || version < LINK_VERSION_MIN {
            return Err(Refusal::Version {
                theirs_min: hello.version_min,
                theirs_max: hello.version_max,
                ours_min: LINK_VERSION_MIN,
                ours_max: LINK_VERSION,
            });
        }
        if hello.federation != self.federation {
            return Err(Refusal::OtherFederation {
                name: hello.name.clone(),
                theirs: hello.federation,
                ours: self.federation,
            });
        }
        let Some(configured) = self.names.get(&hello.region) else {
            return Err(Refusal::UnknownRegion {
                region: hello.region,
                name: hello.name.clone(),
            });
        };
        if certificate != configured || hello.name != *configured {
            return Err(Refusal::WrongRegion {
                certificate: certificate.to_owned(),
                claimed: hello.region,
                configured: configured.clone(),
            });
        }
        if hello.region == self.region {
            return Err(Refusal::Itself {
                region: self.region,
            });
        }
        if let Some(expected) = expected
            && hello.region != expected
        {
            return Err(Refusal::OtherRegion {
                expected,
                found: hello.region,
            });
        }
        if hello.partitions != self.partitions {
            return Err(Refusal::OtherPartitions {
                theirs: hello.partitions,
                ours: self.partitions,
            });
        }
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: RegionId = RegionId(1);
    const THERE: RegionId = RegionId(2);

    fn of(region: RegionId) -> Credentials {
        Credentials {
            federation: Uuid::from_u128(7),
            region,
            incarnation: Incarnation(1),
            partitions: 4,
            names: [(HERE, "us-east".to_owned()), (THERE, "eu-west".to_owned())].into(),
        }
    }

    fn theirs() -> Hello {
        of(THERE).hello(Lane::Live)
    }

    #[test]
    fn a_member_with_its_own_certificate_is_welcome() {
        assert_eq!(of(HERE).judge(&theirs(), "eu-west", None), Ok(LINK_VERSION));
        assert_eq!(
            of(HERE).judge(&theirs(), "eu-west", Some(THERE)),
            Ok(LINK_VERSION)
        );
    }

    #[test]
    fn a_certificate_of_one_region_does_not_speak_for_another() {
        let refused = of(HERE).judge(&theirs(), "us-east", None);
        assert_eq!(refused.map_err(|r| r.code()), Err("wrong_region"));
    }

    #[test]
    fn a_name_that_is_not_the_configured_one_is_refused() {
        let mut hello = theirs();
        hello.name = "eu-central".to_owned();
        let refused = of(HERE).judge(&hello, "eu-west", None);
        assert_eq!(refused.map_err(|r| r.code()), Err("wrong_region"));
    }

    #[test]
    fn each_other_mismatch_has_its_own_refusal() {
        let judge = |change: &dyn Fn(&mut Hello)| {
            let mut hello = theirs();
            change(&mut hello);
            of(HERE)
                .judge(&hello, "eu-west", None)
                .map_err(|refusal| refusal.code())
        };
        assert_eq!(
            judge(&|hello| hello.federation = Uuid::from_u128(8)),
            Err("other_federation")
        );
        assert_eq!(
            judge(&|hello| hello.region = RegionId(9)),
            Err("unknown_region")
        );
        assert_eq!(
            judge(&|hello| hello.partitions = 8),
            Err("other_partitions")
        );
        assert_eq!(
            judge(&|hello| {
                hello.version_min = LINK_VERSION + 1;
                hello.version_max = LINK_VERSION + 3;
            }),
            Err("version")
        );
        assert_eq!(judge(&|hello| hello.version_max = 0), Err("version"));
    }

    #[test]
    fn a_newer_peer_that_still_speaks_our_version_is_spoken_to_in_ours() {
        let mut hello = theirs();
        hello.version_max = LINK_VERSION + 5;
        assert_eq!(of(HERE).judge(&hello, "eu-west", None), Ok(LINK_VERSION));
    }

    #[test]
    fn dialling_oneself_or_the_wrong_member_is_noticed() {
        let own = of(HERE).hello(Lane::Live);
        let itself = of(HERE).judge(&own, "us-east", Some(THERE));
        assert_eq!(itself.map_err(|r| r.code()), Err("itself"));
        let other = of(HERE).judge(&theirs(), "eu-west", Some(RegionId(3)));
        assert_eq!(other.map_err(|r| r.code()), Err("other_region"));
    }
}

//! The federation's certificates: its authority, one for each region, one for each client.
//!
//! All keys are Ed25519. A certificate carries exactly one name, under
//! [`REGION_SUFFIX`] or [`CLIENT_SUFFIX`]; that name, and nothing else about the connection, says
//! who the other end is. Each file is replaced atomically; a node reads them again when it is told
//! to, and keeps what it has when a certificate and its key do not match.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use meridian_clock::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use uuid::Uuid;

use crate::files;

/// What follows a region's name in its certificate.
pub const REGION_SUFFIX: &str = "region.meridian.internal";
/// What follows a client's name in its certificate.
pub const CLIENT_SUFFIX: &str = "client.meridian.internal";

/// How long an authority is valid.
pub const AUTHORITY_VALID: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// How long a region's or client's certificate is valid when nothing else is asked for.
pub const CERTIFICATE_VALID: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A certificate is valid from a little earlier on, for hosts whose clock is behind.
const VALID_SINCE: Duration = Duration::from_secs(60 * 60);

/// Why certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The name cannot be part of a certificate's name.
    #[error(
        "{name:?} cannot be the name of a region or client; use 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends"
    )]
    Name {
        /// The name as given.
        name: String,
    },
    /// There is an authority in this folder already; a second one would shut out all regions.
    #[error(
        "there is a certificate authority in {} already; use it, or choose another folder",
        folder.display()
    )]
    AuthorityExists {
        /// The folder.
        folder: PathBuf,
    },
    /// A file could not be read.
    #[error("read {}; check that the path is right and that you may read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("write {}; check the space and permissions there", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{} is not {what}; restore it from a copy, or make it anew", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
    },
    /// The key does not belong to the certificate.
    #[error(
        "the key {} does not belong to the authority's certificate; put back the pair that was made together",
        path.display()
    )]
    KeyMismatch {
        /// The key's file.
        path: PathBuf,
    },
    /// The authority is no longer valid, so nothing it signs would be accepted.
    #[error(
        "the certificate authority expired at {at}; make a new one and give it to every region before using it"
    )]
    AuthorityExpired {
        /// When it ended.
        at: String,
    },
    /// Making or signing a certificate failed.
    #[error("make a certificate")]
    Make(#[from] rcgen::Error),
}

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The node of a region: both ends of links, and the serving end for clients.
    Region(String),
    /// A client: only ever the calling end.
    Client(String),
}

impl Subject {
    /// The one name that the certificate carries.
    pub fn dns_name(&self) -> String {
        match self {
            Self::Region(name) => format!("{name}.{REGION_SUFFIX}"),
            Self::Client(name) => format!("{name}.{CLIENT_SUFFIX}"),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Region(name) | Self::Client(name) => name,
        }
    }
}

/// Checks that `name` can name a region or a client: it becomes one label of a DNS name.
///
/// # Errors
/// When it cannot.
pub fn check_name(name: &str) -> Result<(), CertificateError> {
    let allowed = |character: char| {
        character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-'
    };
    let sound = (1..=63).contains(&name.len())
        && name.chars().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if sound {
        Ok(())
    } else {
        Err(CertificateError::Name {
            name: name.to_owned(),
        })
    }
}

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
    /// When it ends.
    pub not_after: Timestamp,
}

/// Signs the certificates of one federation.
pub struct Authority {
    certificate_pem: String,
    key_pem: String,
    not_after: Timestamp,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The certificate's file in the authority's folder.
    pub const CERTIFICATE_FILE: &str = "ca.pem";
    /// The key's file in the authority's folder.
    pub const KEY_FILE: &str = "ca.key";

    /// Makes the authority of `federation`, valid from `now` on.
    ///
    /// # Errors
    /// When the key or certificate cannot be made.
    pub fn create(federation: Uuid, now: Timestamp) -> Result<Self, CertificateError> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let not_after = now.plus(AUTHORITY_VALID);
        let mut params = params(now, not_after);
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Meridian {federation}"));
        // It signs regions and clients, never a further authority.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate_pem,
            key_pem: key.serialize_pem(),
            not_after,
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads the authority that [`Authority::save`] wrote into `folder`.
    ///
    /// # Errors
    /// When its files are missing, unreadable or do not belong together.
    pub fn load(folder: &Path) -> Result<Self, CertificateError> {
        let certificate_path = folder.join(Self::CERTIFICATE_FILE);
        let key_path = folder.join(Self::KEY_FILE);
        let certificate_pem = read(&certificate_path)?;
        let key_pem = read(&key_path)?;
        let key = KeyPair::from_pem(&key_pem).map_err(|_| CertificateError::Parse {
            path: key_path.clone(),
            what: "a private key in PEM",
        })?;
        let described = describe_pem(&certificate_path, &certificate_pem)?;
        if described.public_key != key.public_key_raw() {
            return Err(CertificateError::KeyMismatch { path: key_path });
        }
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)?;
        Ok(Self {
            certificate_pem,
            key_pem,
            not_after: described.not_after,
            issuer,
        })
    }

    /// Writes the authority into `folder`, which is made if need be; the key is readable by its
    /// owner only.
    ///
    /// # Errors
    /// When there is one already, or the files cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), CertificateError> {
        if files::exists(&folder.join(Self::KEY_FILE)) {
            return Err(CertificateError::AuthorityExists {
                folder: folder.to_owned(),
            });
        }
        make_private_folder(folder)?;
        write(&folder.join(Self::KEY_FILE), &self.key_pem, 0o600)?;
        write(
            &folder.join(Self::CERTIFICATE_FILE),
            &self.certificate_pem,
            0o644,
        )
    }

    /// The federation it signs for, as its certificate says.
    pub fn federation(&self) -> Option<Uuid> {
        let described = describe_pem(Path::new(Self::CERTIFICATE_FILE), &self.certificate_pem);
        let issuer = described.ok()?.issuer;
        Uuid::try_parse(issuer.strip_prefix("CN=Meridian ")?).ok()
    }

    /// The authority's certificate: what every region and client trusts.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Makes a key and a certificate for `subject`, valid from `now` for `valid`, but never longer
    /// than the authority itself.
    ///
    /// # Errors
    /// When the name is unsound, the authority has expired, or the certificate cannot be made.
    pub fn issue(
        &self,
        subject: &Subject,
        now: Timestamp,
        valid: Duration,
    ) -> Result<Issued, CertificateError> {
        check_name(subject.name())?;
        if now >= self.not_after {
            return Err(CertificateError::AuthorityExpired {
                at: rfc3339(self.not_after),
            });
        }
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let not_after = now.plus(valid).min(self.not_after);
        let mut params = params(now, not_after);
        params
            .distinguished_name
            .push(DnType::CommonName, subject.name());
        params.subject_alt_names = vec![SanType::DnsName(subject.dns_name().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match subject {
            Subject::Region(_) => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            Subject::Client(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            not_after,
        })
    }
}

/// The three files of one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The trusted authority.
    pub authority: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key, readable by its owner only.
    pub key: PathBuf,
}

impl Files {
    /// The files of a region or client, called `name`, in `folder`.
    pub fn in_folder(folder: &Path, name: &str) -> Self {
        Self {
            authority: folder.join("ca.pem"),
            certificate: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        }
    }

    /// Writes the authority's certificate, `issued` and its key; replaces what was there.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, authority: &Authority, issued: &Issued) -> Result<(), CertificateError> {
        for path in [&self.authority, &self.certificate, &self.key] {
            if let Some(folder) = path.parent() {
                make_private_folder(folder)?;
            }
        }
        // A bundle stays: while an authority is being replaced, nodes trust the old and the new.
        let trusted = match files::read_text(&self.authority) {
            Ok(present) if present.contains(authority.certificate_pem.trim()) => present,
            _ => authority.certificate_pem.clone(),
        };
        write(&self.authority, &trusted, 0o644)?;
        write(&self.key, &issued.key_pem, 0o600)?;
        write(&self.certificate, &issued.certificate_pem, 0o644)
    }
}

/// Makes the file `trusted` name `authorities`, and no others.
///
/// # Errors
/// When it cannot be written.
pub fn trust(trusted: &Path, authorities: &[&Authority]) -> Result<(), CertificateError> {
    let bundle: Vec<&str> = authorities
        .iter()
        .map(|authority| authority.certificate_pem())
        .collect();
    write(trusted, &bundle.concat(), 0o644)
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The DNS names it carries.
    pub names: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// From when on it is valid.
    pub not_before: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
    public_key: Vec<u8>,
}

/// Reads what the first certificate in `path` says.
///
/// # Errors
/// When the file is missing or holds no certificate.
pub fn describe(path: &Path) -> Result<Described, CertificateError> {
    describe_pem(path, &read(path)?)
}

fn describe_pem(path: &Path, pem: &str) -> Result<Described, CertificateError> {
    let refused = || CertificateError::Parse {
        path: path.to_owned(),
        what: "a certificate in PEM",
    };
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| refused())?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|_| refused())?;
    let names = match parsed.subject_alternative_name() {
        Ok(Some(extension)) => extension
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    let at = |seconds: i64| {
        Timestamp::from_unix(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    };
    Ok(Described {
        names,
        issuer: parsed.issuer().to_string(),
        not_before: at(parsed.validity().not_before.timestamp()),
        not_after: at(parsed.validity().not_after.timestamp()),
        public_key: parsed.public_key().subject_public_key.data.to_vec(),
    })
}

/// `at` as RFC 3339, to the second.
pub fn rfc3339(at: Timestamp) -> String {
    let seconds = i64::try_from(at.since_unix().as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| at.to_string(), |at| at.to_string())
}

fn params(now: Timestamp, not_after: Timestamp) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let whole_seconds = |at: Timestamp| Duration::from_secs(at.since_unix().as_secs());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = epoch + whole_seconds(now).saturating_sub(VALID_SINCE);
    params.not_after = epoch + whole_seconds(not_after);
    params
}

fn read(path: &Path) -> Result<String, CertificateError> {
    files::read_text(path).map_err(|source| CertificateError::Read {
        path: path.to_owned(),
        source,
    })
}

fn make_private_folder(folder: &Path) -> Result<(), CertificateError> {
    files::make_private_folder(folder).map_err(|source| CertificateError::Write {
        path: folder.to_owned(),
        source,
    })
}

fn write(path: &Path, content: &str, mode: u32) -> Result<(), CertificateError> {
    files::replace(path, content, mode).map_err(|source| CertificateError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::RootCertStore;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000 << 32);

    fn authority() -> Authority {
        Authority::create(Uuid::from_u128(7), NOW).expect("an authority")
    }

    fn verify(authority: &Authority, issued: &Issued, name: &str, at: Timestamp) -> bool {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes());
        roots.add(root.expect("PEM")).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .expect("a verifier");
        let end = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).expect("PEM");
        let name = ServerName::try_from(name).expect("a DNS name").to_owned();
        let at = UnixTime::since_unix_epoch(at.since_unix());
        verifier
            .verify_server_cert(&end, &[], &name, &[], at)
            .is_ok()
    }

    #[test]
    fn a_regions_certificate_stands_for_that_region_and_its_validity_only() {
        let authority = authority();
        let region = Subject::Region("us-east".to_owned());
        let issued = authority
            .issue(&region, NOW, CERTIFICATE_VALID)
            .expect("a certificate");
        let name = "us-east.region.meridian.internal";
        assert!(verify(&authority, &issued, name, NOW));
        assert!(!verify(
            &authority,
            &issued,
            "eu-west.region.meridian.internal",
            NOW
        ));
        let later = NOW.plus(CERTIFICATE_VALID + Duration::from_secs(1));
        assert!(!verify(&authority, &issued, name, later));
        let other = Authority::create(Uuid::from_u128(7), NOW).expect("an authority");
        assert!(!verify(&other, &issued, name, NOW));
    }

    #[test]
    fn a_clients_certificate_cannot_serve() {
        let authority = authority();
        let client = Subject::Client("operator".to_owned());
        let issued = authority
            .issue(&client, NOW, CERTIFICATE_VALID)
            .expect("a certificate");
        assert!(!verify(&authority, &issued, &client.dns_name(), NOW));
        let folder = tempfile::tempdir().expect("a folder");
        let files = Files::in_folder(folder.path(), "operator");
        files.write(&authority, &issued).expect("written");
        let described = describe(&files.certificate).expect("described");
        assert_eq!(described.names, ["operator.client.meridian.internal"]);
        assert_eq!(described.not_after, NOW.plus(CERTIFICATE_VALID));
    }

    #[test]
    fn an_authority_read_back_from_its_files_signs_for_the_same_root() {
        let folder = tempfile::tempdir().expect("a folder");
        let made = authority();
        made.save(&folder.path().join("ca")).expect("saved");
        let loaded = Authority::load(&folder.path().join("ca")).expect("loaded");
        assert_eq!(loaded.federation(), Some(Uuid::from_u128(7)));
        let region = Subject::Region("a".to_owned());
        let issued = loaded
            .issue(&region, NOW, CERTIFICATE_VALID)
            .expect("a certificate");
        assert!(verify(&made, &issued, "a.region.meridian.internal", NOW));
        assert!(matches!(
            made.save(&folder.path().join("ca")),
            Err(CertificateError::AuthorityExists { .. })
        ));
    }

    #[test]
    fn an_authority_with_anothers_key_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        authority().save(folder.path()).expect("saved");
        let other = authority();
        write(
            &folder.path().join(Authority::KEY_FILE),
            &other.key_pem,
            0o600,
        )
        .expect("written");
        assert!(matches!(
            Authority::load(folder.path()),
            Err(CertificateError::KeyMismatch { .. })
        ));
    }

    #[test]
    fn keys_are_readable_by_their_owner_only_also_after_a_renewal() {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = authority();
        let files = Files::in_folder(folder.path(), "a");
        let region = Subject::Region("a".to_owned());
        let mut seen = Vec::new();
        for _ in 0..2 {
            let issued = authority
                .issue(&region, NOW, CERTIFICATE_VALID)
                .expect("a certificate");
            files.write(&authority, &issued).expect("written");
            assert!(!files::readable_by_others(&files.key).expect("a key"));
            seen.push(read(&files.key).expect("a key"));
        }
        assert_ne!(seen[0], seen[1], "a renewal makes a new key");
    }

    #[test]
    fn a_renewal_keeps_a_bundle_of_trusted_authorities() {
        let folder = tempfile::tempdir().expect("a folder");
        let (old, new) = (authority(), authority());
        let files = Files::in_folder(folder.path(), "a");
        let bundle = format!("{}{}", old.certificate_pem(), new.certificate_pem());
        write(&files.authority, &bundle, 0o644).expect("written");
        let issued = new
            .issue(&Subject::Region("a".to_owned()), NOW, CERTIFICATE_VALID)
            .expect("a certificate");
        files.write(&new, &issued).expect("written");
        assert_eq!(read(&files.authority).expect("a bundle"), bundle);
    }

    #[test]
    fn names_that_are_no_dns_label_are_refused() {
        for name in ["", "US", "a.b", "-a", "a-", "ü", "a b", &"x".repeat(64)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("us-east-1").is_ok());
    }

    #[test]
    fn a_certificate_never_outlives_its_authority() {
        let authority = authority();
        let late = NOW.plus(AUTHORITY_VALID - Duration::from_secs(60));
        let region = Subject::Region("a".to_owned());
        let issued = authority
            .issue(&region, late, CERTIFICATE_VALID)
            .expect("a certificate");
        assert_eq!(issued.not_after, NOW.plus(AUTHORITY_VALID));
        let too_late = NOW.plus(AUTHORITY_VALID);
        assert!(matches!(
            authority.issue(&region, too_late, CERTIFICATE_VALID),
            Err(CertificateError::AuthorityExpired { .. })
        ));
    }
}

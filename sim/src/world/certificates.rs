//! Certificates that are the same in every run: what differs in length would differ in datagrams.

use std::path::{Path, PathBuf};

use meridian_client::tls::{Identity, PeerName};
use meridian_node::config::CertificatePaths;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};
use rustls_pki_types::PrivatePkcs8KeyDer;

use super::cryptography;

// What stands before the 32 secret bytes of an Ed25519 key in PKCS#8 (RFC 8410, section 10.3).
const PKCS8_ED25519: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The files of a whole federation, in a folder that goes with this value.
pub struct Certificates {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    authority: String,
    clients: Vec<(String, String, String)>,
}

impl Certificates {
    /// Makes an authority, and a certificate for the region and the client of each name.
    ///
    /// # Errors
    /// When they cannot be made or written.
    #[expect(
        clippy::disallowed_methods,
        reason = "nodes read their certificates from real files"
    )]
    pub fn make(names: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let key = key_of("authority")?;
        let mut params = dated(CertificateParams::default());
        params
            .distinguished_name
            .push(DnType::CommonName, "simulated authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        std::fs::write(folder.path().join("authority.pem"), &authority)?;

        std::fs::write(folder.path().join("session.key"), "07".repeat(32))?;

        let mut clients = Vec::new();
        for name in names {
            for peer in [
                PeerName::Region((*name).to_owned()),
                PeerName::Client((*name).to_owned()),
            ] {
                let (certificate, key) = sign(&issuer, &peer, 0, false)?;
                if matches!(peer, PeerName::Region(_)) {
                    write_pair(folder.path(), name, &certificate, &key)?;
                } else {
                    clients.push(((*name).to_owned(), certificate, key));
                }
            }
        }
        Ok(Self {
            folder,
            issuer,
            authority,
            clients,
        })
    }

    /// Gives the region `name` another certificate and key, its `serial`th; an expired one if so
    /// asked.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn replace(&self, name: &str, serial: u64, expired: bool) -> anyhow::Result<()> {
        let peer = PeerName::Region(name.to_owned());
        let (certificate, key) = sign(&self.issuer, &peer, serial, expired)?;
        write_pair(self.folder.path(), name, &certificate, &key)
    }

    /// Where the key of the federation's session tokens is.
    pub fn session_key(&self) -> PathBuf {
        self.folder.path().join("session.key")
    }

    /// Where the files of the region `name` are.
    pub fn of_region(&self, name: &str) -> CertificatePaths {
        let path = |file: String| -> PathBuf { self.folder.path().join(file) };
        CertificatePaths {
            authority: path("authority.pem".to_owned()),
            certificate: path(format!("{name}.pem")),
            key: path(format!("{name}.key")),
        }
    }

    /// What the client `name` proves about itself.
    ///
    /// # Errors
    /// When there is no such client.
    pub fn of_client(&self, name: &str) -> anyhow::Result<Identity> {
        let found = self.clients.iter().find(|(client, _, _)| client == name);
        let (_, certificate, key) = found.ok_or_else(|| anyhow::anyhow!("no client {name}"))?;
        Ok(Identity::load_with(
            self.authority.as_bytes(),
            certificate.as_bytes(),
            key.as_bytes(),
            cryptography::seams(),
        )?)
    }
}

fn sign(
    issuer: &Issuer<'_, KeyPair>,
    peer: &PeerName,
    serial: u64,
    expired: bool,
) -> anyhow::Result<(String, String)> {
    let key = key_of(&format!("{} {serial}", peer.dns_name()))?;
    let mut params = dated(CertificateParams::default());
    if expired {
        params.not_after = rcgen::date_time_ymd(2020, 2, 1);
    }
    params.subject_alt_names = vec![SanType::DnsName(peer.dns_name().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = params.signed_by(&key, issuer)?.pem();
    Ok((certificate, key.serialize_pem()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "nodes read their certificates from real files"
)]
fn write_pair(folder: &Path, name: &str, certificate: &str, key: &str) -> anyhow::Result<()> {
    std::fs::write(folder.join(format!("{name}.pem")), certificate)?;
    std::fs::write(folder.join(format!("{name}.key")), key)?;
    Ok(())
}

fn key_of(name: &str) -> anyhow::Result<KeyPair> {
    let secret = blake3::derive_key("meridian simulated certificates", name.as_bytes());
    let mut der = PKCS8_ED25519.to_vec();
    der.extend_from_slice(&secret);
    let der = PrivatePkcs8KeyDer::from(der);
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)?)
}

fn dated(mut params: CertificateParams) -> CertificateParams {
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2090, 1, 1);
    params
}

//! What both ends of a connection prove about themselves.
//!
//! TLS 1.3 only, certificates on both sides, signed by the federation's own CA. A certificate says
//! who its holder is in its subject alternative names: `<region>.region.meridian.internal` or
//! `<name>.client.meridian.internal`, exactly one of them; addresses and other names beside it do
//! not count. A region's certificate must be good for both ends of a connection (extended key usage
//! `serverAuth` and `clientAuth`, or none at all), a client's for `clientAuth`.
//!
//! Sessions are never resumed: after a certificate was withdrawn, an old ticket must not speak for
//! it, and a replayed 0-RTT request would be an append that nobody made.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quinn::ConnectionId;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::CertificateError;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, SecureRandom};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::extensions::GeneralName;

/// The server name to dial with when a node of any region will do.
///
/// It can be no region's own name, since those have one label more.
pub const ANY_REGION: &str = "any-region.meridian.internal";

const REGION_SUFFIX: &str = ".region.meridian.internal";
const CLIENT_SUFFIX: &str = ".client.meridian.internal";

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alpn {
    /// Replication between regions.
    Link,
    /// Requests: from clients, and from nodes that forward.
    Client,
}

impl Alpn {
    /// Its name on the wire.
    pub fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Link => b"meridian-link/1",
            Self::Client => b"meridian-client/1",
        }
    }

    /// What was agreed on `connection`.
    pub fn of(connection: &quinn::Connection) -> Option<Self> {
        let data = connection.handshake_data()?.downcast::<HandshakeData>();
        let protocol = data.ok()?.protocol?;
        [Self::Link, Self::Client]
            .into_iter()
            .find(|alpn| alpn.as_bytes() == protocol)
    }
}

/// Who holds a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerName {
    /// A node of the region of this name.
    Region(String),
    /// A client of this name.
    Client(String),
}

impl PeerName {
    /// Who is at the other end of `connection`.
    ///
    /// # Errors
    /// When its certificate does not name exactly one region or client.
    pub fn of(connection: &quinn::Connection) -> Result<Self, TlsError> {
        let chain = connection
            .peer_identity()
            .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
            .ok_or(TlsError::NoCertificate)?;
        let certificate = chain.first().ok_or(TlsError::NoCertificate)?;
        Self::in_certificate(certificate)
    }

    /// Whom `certificate` names.
    ///
    /// # Errors
    /// When it does not name exactly one region or client.
    pub fn in_certificate(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let names = dns_names(certificate)?;
        let mut peers = names.iter().filter_map(|name| Self::from_dns_name(name));
        match (peers.next(), peers.next()) {
            (Some(peer), None) => Ok(peer),
            // Two would let one certificate speak for two parties.
            _ => Err(TlsError::Name { found: names }),
        }
    }

    /// The name as it stands in a certificate.
    pub fn dns_name(&self) -> String {
        match self {
            Self::Region(name) => format!("{name}{REGION_SUFFIX}"),
            Self::Client(name) => format!("{name}{CLIENT_SUFFIX}"),
        }
    }

    /// The opposite of [`PeerName::dns_name`]; `None` for any other name.
    pub fn from_dns_name(name: &str) -> Option<Self> {
        let label = |suffix| name.strip_suffix(suffix).filter(|label| is_label(label));
        if let Some(region) = label(REGION_SUFFIX) {
            return Some(Self::Region(region.to_owned()));
        }
        label(CLIENT_SUFFIX).map(|client| Self::Client(client.to_owned()))
    }
}

/// Whether `name` can be a region's or a client's name: one DNS label of lower-case letters, digits
/// and inner hyphens, at most 63 bytes.
pub fn is_label(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

impl fmt::Display for PeerName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(name) => write!(out, "region {name}"),
            Self::Client(name) => write!(out, "client {name}"),
        }
    }
}

/// Why an identity cannot be used, or a peer's cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM text does not hold what it should.
    #[error("the {what} is not usable PEM: {reason}")]
    Pem {
        /// Which of them.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A certificate does not say who its holder is.
    #[error(
        "the certificate is for {found:?}; it must name exactly one \
         <region>.region.meridian.internal or <name>.client.meridian.internal"
    )]
    Name {
        /// The DNS names it has.
        found: Vec<String>,
    },
    /// The other side showed no certificate.
    #[error("the peer showed no certificate; give it one of this federation's CA")]
    NoCertificate,
    /// A certificate does not parse.
    #[error("the certificate does not parse: {reason}")]
    Certificate {
        /// What the parser said.
        reason: String,
    },
    /// Our certificate would not be believed by anyone who believes our CA.
    #[error(
        "the certificate of {name} is not usable with this CA; have it signed by the federation's \
         CA, for both server and client authentication if it is a region's"
    )]
    Untrusted {
        /// Whose it is.
        name: PeerName,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The TLS library refused the CA, the certificate or the key.
    #[error("the {what} cannot be used")]
    Refused {
        /// Which of them.
        what: &'static str,
        /// Why.
        source: rustls::Error,
    },
}

/// What TLS takes from outside: its cryptography, which draws randomness, and the time that
/// certificates are checked at.
#[derive(Clone, Debug)]
pub struct TlsSeams {
    /// The cryptography, ring's by default.
    pub provider: Arc<CryptoProvider>,
    /// The time, the system's by default.
    pub time: Arc<dyn TimeProvider>,
}

impl Default for TlsSeams {
    fn default() -> Self {
        Self {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            time: Arc::new(DefaultTimeProvider),
        }
    }
}

/// What we prove about ourselves, and whom we believe.
///
/// An expired certificate loads: a region goes on serving whoever is connected, and
/// [`Identity::expires`] is what to warn by.
#[derive(Clone)]
pub struct Identity {
    name: PeerName,
    expires: Duration,
    server: Arc<QuicServerConfig>,
    link: Arc<QuicClientConfig>,
    client: Arc<QuicClientConfig>,
    random: &'static dyn SecureRandom,
}

impl fmt::Debug for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Identity")
            .field("name", &self.name)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the federation's CA (one certificate or several, while one replaces another), our
    /// certificate chain and its private key, all PEM.
    ///
    /// # Errors
    /// When one of them does not parse, they do not belong together, or the certificate does not
    /// say who we are.
    pub fn load(ca_pem: &[u8], cert_pem: &[u8], key_pem: &[u8]) -> Result<Self, TlsError> {
        Self::load_with(ca_pem, cert_pem, key_pem, TlsSeams::default())
    }

    /// [`Identity::load`] with other sources of randomness and time.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn load_with(
        ca_pem: &[u8],
        cert_pem: &[u8],
        key_pem: &[u8],
        seams: TlsSeams,
    ) -> Result<Self, TlsError> {
        let ca = read_certificates("CA", ca_pem)?;
        let chain = read_certificates("certificate", cert_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| TlsError::Pem {
            what: "private key",
            reason: error.to_string(),
        })?;
        let leaf = chain.first().ok_or(TlsError::NoCertificate)?;
        let name = PeerName::in_certificate(leaf)?;
        let expires = expiry(leaf)?;

        let trust = Trust::new(ca, &seams)?;
        trust.check(&name, &chain, seams.time.as_ref())?;
        Ok(Self {
            server: trust.server(&seams, chain.clone(), key.clone_key())?,
            link: trust.client(&seams, Alpn::Link, chain.clone(), key.clone_key())?,
            client: trust.client(&seams, Alpn::Client, chain, key)?,
            random: seams.provider.secure_random,
            name,
            expires,
        })
    }

    /// Who we are, as our certificate says.
    pub fn name(&self) -> &PeerName {
        &self.name
    }

    /// When our certificate expires, since 1970.
    pub fn expires(&self) -> Duration {
        self.expires
    }

    /// How we dial, with [`transport_config`].
    pub fn client_config(&self, alpn: Alpn) -> quinn::ClientConfig {
        let crypto = match alpn {
            Alpn::Link => Arc::clone(&self.link),
            Alpn::Client => Arc::clone(&self.client),
        };
        let mut config = quinn::ClientConfig::new(crypto);
        config.transport_config(transport_config());
        // The first packets are encrypted under this id, so it must come from the same source as all
        // else that a handshake draws: quinn's own choice cannot be replaced in a simulation.
        let random = self.random;
        config.initial_dst_cid_provider(Arc::new(move || first_destination(random)));
        config
    }

    /// How we accept both [`Alpn`]s, with [`transport_config`].
    pub fn server_config(&self) -> quinn::ServerConfig {
        let mut config = quinn::ServerConfig::with_crypto(self.server_crypto());
        config.transport_config(transport_config());
        config
    }

    /// The cryptographic part of [`Identity::server_config`], for callers that bring their own
    /// address validation key.
    pub fn server_crypto(&self) -> Arc<dyn quinn::crypto::ServerConfig> {
        Arc::clone(&self.server) as Arc<dyn quinn::crypto::ServerConfig>
    }
}

/// The id that a server is called by until it has named one of its own, as long as QUIC allows.
fn first_destination(random: &dyn SecureRandom) -> ConnectionId {
    let mut id = [0; 20];
    random
        .fill(&mut id)
        .expect("whoever does cryptography has randomness");
    ConnectionId::new(&id)
}

/// Windows for 1 Gb/s at 200 ms; a peer is lost after 3 s of silence; a keep-alive each second.
///
/// Segmentation offload and Cubic are quinn's defaults.
pub fn transport_config() -> Arc<quinn::TransportConfig> {
    const STREAM_WINDOW_BYTES: u32 = 32 << 20;
    const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
    const IDLE_MS: u32 = 3000;

    let mut config = quinn::TransportConfig::default();
    config
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .max_idle_timeout(Some(quinn::VarInt::from_u32(IDLE_MS).into()))
        .keep_alive_interval(Some(Duration::from_secs(1)))
        .max_concurrent_bidi_streams(1024_u32.into())
        .max_concurrent_uni_streams(1024_u32.into())
        // Nothing here is sent as a datagram, so nothing needs to be kept for one.
        .datagram_receive_buffer_size(None);
    Arc::new(config)
}

/// Whom a federation believes: everything its CA signed.
struct Trust {
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Trust {
    fn new(ca: Vec<CertificateDer<'static>>, seams: &TlsSeams) -> Result<Self, TlsError> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in ca {
            roots
                .add(certificate)
                .map_err(|source| TlsError::Refused { what: "CA", source })?;
        }
        let roots = Arc::new(roots);
        let refused = |error: &dyn fmt::Display| TlsError::Refused {
            what: "CA",
            source: rustls::Error::General(error.to_string()),
        };
        let provider = || Arc::clone(&seams.provider);
        Ok(Self {
            servers: WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), provider())
                .build()
                .map_err(|error| refused(&error))?,
            clients: WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|error| refused(&error))?,
        })
    }

    /// Checks our own certificate as our peers will, so that a mistake shows here and not there.
    fn check(
        &self,
        name: &PeerName,
        chain: &[CertificateDer<'static>],
        time: &dyn TimeProvider,
    ) -> Result<(), TlsError> {
        let (Some((leaf, rest)), Some(now)) = (chain.split_first(), time.current_time()) else {
            return Ok(());
        };
        let as_client = self.clients.verify_client_cert(leaf, rest, now).map(drop);
        let as_server = match name {
            PeerName::Client(_) => Ok(()),
            PeerName::Region(_) => self.servers.verify(leaf, rest, &name.dns_name(), now),
        };
        match as_client.and(as_server) {
            Err(rustls::Error::InvalidCertificate(reason)) if is_about_time(&reason) => Ok(()),
            Err(source) => Err(TlsError::Untrusted {
                name: name.clone(),
                source,
            }),
            Ok(()) => Ok(()),
        }
    }

    fn server(
        &self,
        seams: &TlsSeams,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Arc<QuicServerConfig>, TlsError> {
        let mut config = rustls::ServerConfig::builder_with_details(
            Arc::clone(&seams.provider),
            Arc::clone(&seams.time),
        )
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable_cryptography)?
        .with_client_cert_verifier(Arc::clone(&self.clients))
        .with_single_cert(chain, key)
        .map_err(unusable_certificate)?;
        config.alpn_protocols = [Alpn::Client, Alpn::Link]
            .map(|alpn| alpn.as_bytes().to_vec())
            .into();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        quic(QuicServerConfig::try_from(config))
    }

    fn client(
        &self,
        seams: &TlsSeams,
        alpn: Alpn,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Arc<QuicClientConfig>, TlsError> {
        let verifier = RegionVerifier(Arc::clone(&self.servers));
        let mut config = rustls::ClientConfig::builder_with_details(
            Arc::clone(&seams.provider),
            Arc::clone(&seams.time),
        )
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable_cryptography)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)
        .map_err(unusable_certificate)?;
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        quic(QuicClientConfig::try_from(config))
    }
}

/// `verify_server_cert` with a name that we made.
trait VerifyName {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &str,
        now: UnixTime,
    ) -> Result<(), rustls::Error>;
}

impl VerifyName for WebPkiServerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &str,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let name = ServerName::try_from(name)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::NotValidForName))?;
        self.verify_server_cert(leaf, rest, &name, &[], now)
            .map(drop)
    }
}

/// Everything the library checks, and beside a region's own name also "any region".
#[derive(Debug)]
struct RegionVerifier(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for RegionVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let not_for_name = || rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        let asked = server_name.to_str();
        let name = if asked == ANY_REGION {
            match PeerName::in_certificate(leaf) {
                Ok(peer @ PeerName::Region(_)) => peer.dns_name(),
                Ok(PeerName::Client(_)) | Err(_) => return Err(not_for_name()),
            }
        } else {
            asked.into_owned()
        };
        self.0.verify(leaf, rest, &name, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn is_about_time(error: &CertificateError) -> bool {
    matches!(
        error,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    )
}

fn unusable_cryptography(source: rustls::Error) -> TlsError {
    TlsError::Refused {
        what: "cryptography",
        source,
    }
}

fn unusable_certificate(source: rustls::Error) -> TlsError {
    TlsError::Refused {
        what: "certificate with this private key",
        source,
    }
}

/// QUIC needs one cipher suite more than TLS does; ring's provider has it.
fn quic<C, E: fmt::Display>(config: Result<C, E>) -> Result<Arc<C>, TlsError> {
    config.map(Arc::new).map_err(|error| {
        unusable_cryptography(rustls::Error::General(format!("no use for QUIC: {error}")))
    })
}

fn read_certificates(
    what: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let fail = |reason| TlsError::Pem { what, reason };
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(fail("there is no CERTIFICATE in it".to_owned()))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(fail(error.to_string())),
    }
}

fn unparsable(error: &dyn fmt::Display) -> TlsError {
    TlsError::Certificate {
        reason: error.to_string(),
    }
}

fn dns_names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, TlsError> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| unparsable(&error))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| unparsable(&error))?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    Ok(names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect())
}

fn expiry(certificate: &CertificateDer<'_>) -> Result<Duration, TlsError> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| unparsable(&error))?;
    let seconds = parsed.validity().not_after.timestamp();
    Ok(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

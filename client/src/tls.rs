//! What both ends of a connection prove about themselves.
//!
//! TLS 1.3 only, certificates on both sides, signed by the federation's own CA. A certificate says
//! who its holder is in its subject alternative name: `<region>.region.meridian.internal` or
//! `<name>.client.meridian.internal`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The server name to dial with when any region's node will do.
pub const ANY_REGION: &str = "any-region.meridian.internal";

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
        let _ = connection;
        todo!()
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
        let _ = connection;
        todo!()
    }

    /// The name as it stands in a certificate.
    pub fn dns_name(&self) -> String {
        match self {
            Self::Region(name) => format!("{name}.region.meridian.internal"),
            Self::Client(name) => format!("{name}.client.meridian.internal"),
        }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(name) => write!(out, "region {name}"),
            Self::Client(name) => write!(out, "client {name}"),
        }
    }
}

/// Why an identity cannot be used.
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
        "the certificate names {found:?}; it must name exactly one <region>.region.meridian.internal \
         or <name>.client.meridian.internal"
    )]
    Name {
        /// The DNS names it has.
        found: Vec<String>,
    },
    /// The other side showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// A certificate does not parse.
    #[error("the certificate does not parse: {reason}")]
    Certificate {
        /// What the parser said.
        reason: String,
    },
    /// The TLS library refused the certificate or the key.
    #[error("the {what} is refused")]
    Refused {
        /// Which of them.
        what: &'static str,
        /// Why.
        source: rustls::Error,
    },
}

/// What we prove about ourselves, and whom we believe.
#[derive(Clone)]
pub struct Identity {
    name: PeerName,
    expires: Duration,
}

impl Identity {
    /// Reads the federation's CA, our certificate chain and its private key, all PEM.
    ///
    /// # Errors
    /// When one of them does not parse, they do not belong together, or the certificate does not
    /// say who we are.
    pub fn load(ca_pem: &[u8], cert_pem: &[u8], key_pem: &[u8]) -> Result<Self, TlsError> {
        let _ = (ca_pem, cert_pem, key_pem);
        todo!()
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
        let _ = alpn;
        todo!()
    }

    /// How we accept both [`Alpn`]s, with [`transport_config`].
    pub fn server_config(&self) -> quinn::ServerConfig {
        todo!()
    }

    /// The cryptographic part of [`Identity::server_config`], for callers that bring their own
    /// address validation key.
    pub fn server_crypto(&self) -> Arc<dyn quinn::crypto::ServerConfig> {
        todo!()
    }
}

/// Windows for 1 Gb/s at 200 ms, a peer is lost after 3 s of silence, a keep-alive each second.
pub fn transport_config() -> Arc<quinn::TransportConfig> {
    todo!()
}

//! Why there is no connection, in words that say what to change.

use std::net::SocketAddr;
use std::time::Duration;

use meridian_clock::RegionId;

use crate::tls::{PeerName, TlsError};
use crate::wire::RefusedCode;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no node to dial.
    #[error("no node to connect to is configured; give at least one seed")]
    NoSeeds,
    /// The region to prefer does not exist.
    #[error("there is no region {name:?} to prefer; the federation has {}", members.join(", "))]
    NoSuchRegion {
        /// The name that was given.
        name: String,
        /// The regions there are.
        members: Vec<String>,
    },
    /// An address cannot be dialled at all.
    #[error("cannot dial {addr}")]
    Dial {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: quinn::ConnectError,
    },
    /// Nobody answered in time.
    #[error("{addr} did not answer within {after:?}; check the address and that a node runs there")]
    Timeout {
        /// The address.
        addr: SocketAddr,
        /// How long it was waited for.
        after: Duration,
    },
    /// We do not believe the node's certificate.
    #[error(
        "{addr} is not {expected}, or its certificate is not of our CA: {reason}; check that both \
         sides have certificates of the same federation"
    )]
    Untrusted {
        /// The address.
        addr: SocketAddr,
        /// The name it had to prove.
        expected: String,
        /// What is wrong with its certificate.
        reason: String,
    },
    /// The node does not believe our certificate.
    #[error(
        "{addr} does not accept our certificate ({reason}); use one that is signed by the CA of \
         that federation and has not expired"
    )]
    NotAccepted {
        /// The address.
        addr: SocketAddr,
        /// What the node said.
        reason: String,
    },
    /// The node speaks something else.
    #[error("{addr} does not speak meridian-client/1; it is older or newer than this build")]
    Protocol {
        /// The address.
        addr: SocketAddr,
    },
    /// The node's certificate does not name a region, or not the one the node says it is.
    #[error("{addr} says that it is region {claimed}, and its certificate says {peer}")]
    Impostor {
        /// The address.
        addr: SocketAddr,
        /// What it says.
        claimed: RegionId,
        /// What its certificate says.
        peer: PeerName,
    },
    /// The node's certificate cannot be read.
    #[error("the certificate of {addr} cannot be used")]
    Certificate {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: Box<TlsError>,
    },
    /// The node refused us.
    #[error("{addr} refused the connection: {reason}")]
    Refused {
        /// Who refused.
        addr: SocketAddr,
        /// Which kind of reason.
        code: RefusedCode,
        /// What it said.
        reason: String,
    },
    /// The connection was lost before it was of use.
    #[error("the connection to {addr} was lost while it was being opened")]
    Lost {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: quinn::ConnectionError,
    },
    /// What the node answered could not be read.
    #[error("{addr} answered what cannot be read: {reason}")]
    Unreadable {
        /// The address.
        addr: SocketAddr,
        /// What is wrong with it.
        reason: String,
    },
}

/// Says what a failed handshake means.
pub(crate) fn explain(
    addr: SocketAddr,
    server_name: &str,
    error: quinn::ConnectionError,
) -> ConnectError {
    // TLS alerts travel as QUIC error codes from 0x100 on (RFC 9001, 4.8).
    let alert = |code: quinn::TransportErrorCode| {
        let code = u64::from(code);
        (0x100..0x200).contains(&code).then_some(code & 0xff)
    };
    const NO_APPLICATION_PROTOCOL: u64 = 120;
    match &error {
        quinn::ConnectionError::TransportError(ours) => match alert(ours.code) {
            Some(NO_APPLICATION_PROTOCOL) => ConnectError::Protocol { addr },
            Some(_) => ConnectError::Untrusted {
                addr,
                expected: server_name.to_owned(),
                reason: ours.reason.clone(),
            },
            None => ConnectError::Lost {
                addr,
                source: error,
            },
        },
        quinn::ConnectionError::ConnectionClosed(theirs) => match alert(theirs.error_code) {
            Some(NO_APPLICATION_PROTOCOL) => ConnectError::Protocol { addr },
            Some(alert) => ConnectError::NotAccepted {
                addr,
                reason: alert_name(alert),
            },
            None => ConnectError::Lost {
                addr,
                source: error,
            },
        },
        _ => ConnectError::Lost {
            addr,
            source: error,
        },
    }
}

/// The alerts that speak of certificates (RFC 8446, 6).
fn alert_name(alert: u64) -> String {
    match alert {
        42 => "bad certificate".to_owned(),
        43 => "unsupported certificate".to_owned(),
        44 => "certificate revoked".to_owned(),
        45 => "certificate expired".to_owned(),
        46 => "certificate not usable".to_owned(),
        48 => "signed by an unknown CA".to_owned(),
        49 => "access denied".to_owned(),
        // What rustls says when both CAs go by the same name.
        51 => "signed by another CA".to_owned(),
        116 => "certificate required".to_owned(),
        other => format!("TLS alert {other}"),
    }
}

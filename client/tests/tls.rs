//! Who is believed, and what those who are not are told.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "real sockets on loopback, which is what is tested here"
)]

mod common;

use std::time::Duration;

use common::{Ca, EAST, FEDERATION, FakeNode, Lone, chain, hello, listen, open, topology};
use meridian_client::tls::{ANY_REGION, Alpn, Identity, PeerName, TlsError};
use meridian_client::wire::{Hello, RefusedCode, Request, Response};
use meridian_client::{ConnectError, Connection};
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use uuid::Uuid;

fn load(ca: &Ca, (certificate, key): &(String, String)) -> Result<Identity, TlsError> {
    Identity::load(ca.pem().as_bytes(), certificate.as_bytes(), key.as_bytes())
}

const REGION: &str = "east.region.meridian.internal";
const CLIENT: &str = "app.client.meridian.internal";

async fn not_understood(_: meridian_client::server::Caller, _: Request) -> Response {
    let reason = "this node does nothing".to_owned();
    Response::NotUnderstood { reason }
}

#[test]
fn a_certificate_says_who_we_are_and_until_when() {
    let ca = Ca::new();
    let both = [ServerAuth, ClientAuth];
    let region = load(&ca, &ca.sign(&["localhost", REGION], &both)).unwrap();
    assert_eq!(region.name(), &PeerName::Region("east".to_owned()));
    let client = load(&ca, &ca.sign(&[CLIENT], &[ClientAuth])).unwrap();
    assert_eq!(client.name(), &PeerName::Client("app".to_owned()));
    // rcgen's default is the first of January 4096.
    assert_eq!(client.expires(), Duration::from_secs(67_090_118_400));
}

#[test]
fn a_certificate_for_two_parties_or_none_is_refused() {
    let ca = Ca::new();
    let refused = |names: &[&str]| {
        let error = load(&ca, &ca.sign(names, &[])).unwrap_err();
        assert!(matches!(error, TlsError::Name { .. }), "{error}");
    };
    refused(&[REGION, CLIENT]);
    refused(&[REGION, "west.region.meridian.internal"]);
    refused(&["localhost"]);
    refused(&["EAST.region.meridian.internal"]);
    refused(&["a.b.region.meridian.internal"]);
    refused(&[]);
}

#[test]
fn what_does_not_belong_together_is_refused_when_it_is_loaded() {
    let (ca, other) = (Ca::new(), Ca::new());
    let ours = ca.sign(&[REGION], &[]);
    let stranger = load(&other, &ours).unwrap_err();
    assert!(matches!(stranger, TlsError::Untrusted { .. }), "{stranger}");

    let (_, other_key) = ca.sign(&[REGION], &[]);
    let mixed = load(&ca, &(ours.0.clone(), other_key)).unwrap_err();
    assert!(matches!(mixed, TlsError::Refused { .. }), "{mixed}");

    let half = load(&ca, &ca.sign(&[REGION], &[ClientAuth])).unwrap_err();
    assert!(matches!(half, TlsError::Untrusted { .. }), "{half}");

    let swapped = load(&ca, &(ours.1.clone(), ours.0.clone())).unwrap_err();
    assert!(matches!(swapped, TlsError::Pem { .. }), "{swapped}");
    let empty = Identity::load(b"", ours.0.as_bytes(), ours.1.as_bytes()).unwrap_err();
    assert!(empty.to_string().contains("the CA is not usable PEM"));
}

#[tokio::test]
async fn a_client_of_another_ca_is_refused_and_told_so() {
    let lone = Lone::start(not_understood);
    // It believes our CA beside its own, so that only its own certificate stands in the way.
    let other = Ca::new();
    let (certificate, key) = other.sign(&[CLIENT], &[]);
    let both = lone.ca.pem() + &other.pem();
    let stranger = Identity::load(both.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap();

    let error = lone
        .open_as(&stranger, "east", &hello())
        .await
        .err()
        .unwrap();
    assert!(
        matches!(error, ConnectError::NotAccepted { .. }),
        "{error:?}"
    );
    assert!(chain(&error).contains("signed by another CA"), "{error}");
}

#[tokio::test]
async fn a_node_of_another_ca_is_not_believed() {
    let lone = Lone::start(not_understood);
    let stranger = Ca::new().client();
    let error = lone
        .open_as(&stranger, "east", &hello())
        .await
        .err()
        .unwrap();
    assert!(matches!(error, ConnectError::Untrusted { .. }), "{error:?}");
}

#[tokio::test]
async fn a_node_must_be_of_the_region_that_was_dialled() {
    let lone = Lone::start(not_understood);
    let client = lone.ca.client();
    let error = lone.open_as(&client, "west", &hello()).await.err().unwrap();
    assert!(matches!(error, ConnectError::Untrusted { .. }), "{error:?}");

    let any = open(&client, lone.node.addr, ANY_REGION, &hello())
        .await
        .unwrap();
    assert_eq!(any.peer(), &PeerName::Region("east".to_owned()));
}

#[tokio::test]
async fn a_clients_certificate_is_no_nodes() {
    let ca = Ca::new();
    let endpoint = listen(&ca.client());
    let addr = endpoint.local_addr().unwrap();
    let _node = FakeNode::start(endpoint, EAST, topology(addr, addr), not_understood);
    for name in [ANY_REGION, REGION] {
        let error = open(&ca.client(), addr, name, &hello())
            .await
            .err()
            .unwrap();
        assert!(matches!(error, ConnectError::Untrusted { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_node_that_claims_another_regions_number_is_not_believed() {
    let ca = Ca::new();
    let endpoint = listen(&ca.region("west"));
    let addr = endpoint.local_addr().unwrap();
    let _node = FakeNode::start(endpoint, EAST, topology(addr, addr), not_understood);
    let error = open(&ca.client(), addr, ANY_REGION, &hello())
        .await
        .err()
        .unwrap();
    assert!(matches!(error, ConnectError::Impostor { .. }), "{error:?}");
}

#[tokio::test]
async fn another_federation_is_refused_by_name() {
    let mut lone = Lone::start(not_understood);
    let hello = Hello::new(Uuid::from_u128(9), "a stray");
    let error = lone
        .open_as(&lone.ca.client(), "east", &hello)
        .await
        .err()
        .unwrap();
    let ConnectError::Refused { code, reason, .. } = error else {
        panic!("it was not refused but {error:?}")
    };
    assert_eq!(code, RefusedCode::Federation);
    assert!(reason.contains(&FEDERATION.to_string()), "{reason}");
    assert!(lone.node.ended().await.contains("a stray"));
}

#[tokio::test]
async fn a_client_that_is_too_new_is_refused_with_the_versions() {
    let lone = Lone::start(not_understood);
    let hello = Hello {
        version_min: 8,
        version: 9,
        ..hello()
    };
    let error = lone
        .open_as(&lone.ca.client(), "east", &hello)
        .await
        .err()
        .unwrap();
    assert!(chain(&error).contains("speaks 8 to 9"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_said_in_time() {
    let ca = Ca::new();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = Connection::open(
        &common::dialler(),
        ca.client().client_config(Alpn::Client),
        silent.local_addr().unwrap(),
        ANY_REGION,
        &hello(),
        Duration::from_millis(200),
    )
    .await
    .err()
    .unwrap();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error:?}");
}

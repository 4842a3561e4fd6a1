//! What TLS draws in a simulated run: from the plan's seed, so that every byte on the wire is the
//! same in every run.
//!
//! The bytes matter although nobody reads them. A node that has restarted may receive the rest of a
//! handshake with the life before; it unmasks that packet's header with a key that does not fit, and
//! by what then stands in two bits it drops the packet at once or begins a connection that fails.
//!
//! Always true: nothing here is secret. That is why it exists in the simulator only.

use std::cell::RefCell;
use std::sync::Arc;

use meridian_client::tls::TlsSeams;
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, SecureRandom, SharedSecret,
    SupportedKxGroup, ring,
};
use rustls::time_provider::TimeProvider;
use rustls::{Error, NamedGroup, PeerMisbehaved};
use rustls_pki_types::UnixTime;

use super::clock::EPOCH;
use crate::rng::Rng;

thread_local! {
    // TLS wants a source that lives as long as the process, a run wants one of its own: every run
    // has a thread of its own.
    static RUN: RefCell<Option<Rng>> = const { RefCell::new(None) };
}

/// Begins the run of the plan with this seed on this thread.
pub fn begin(seed: u64) {
    RUN.set(Some(Rng::part(seed, "cryptography")));
}

/// What nodes and clients are given.
///
/// Ciphers, signatures and certificates are ring's. Its X25519 takes randomness from the operating
/// system and from nowhere else, so keys are exchanged here, with secrets
/// that are drawn and do not stay secret.
pub fn seams() -> TlsSeams {
    TlsSeams {
        provider: Arc::new(CryptoProvider {
            secure_random: &Drawn,
            kx_groups: vec![&OpenExchange],
            ..ring::default_provider()
        }),
        time: Arc::new(Begun),
    }
}

fn draw(bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
    RUN.with_borrow_mut(|run| {
        run.as_mut().ok_or(GetRandomFailed)?.fill(bytes);
        Ok(())
    })
}

/// Draws from this thread's run.
#[derive(Debug)]
struct Drawn;

impl SecureRandom for Drawn {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        draw(bytes)
    }
}

/// Certificates are checked at the time at which every run begins; machines' clocks are wrong by far
/// less than what decides about one.
#[derive(Debug)]
struct Begun;

impl TimeProvider for Begun {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(EPOCH))
    }
}

const SHARE_BYTES: usize = 32;

/// Stands in for X25519, byte for byte as long: both sides hash the two public values, which anyone
/// who listens could do as well.
#[derive(Debug)]
struct OpenExchange;

impl SupportedKxGroup for OpenExchange {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let mut share = [0; SHARE_BYTES];
        draw(&mut share)?;
        Ok(Box::new(OpenShare(share)))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

struct OpenShare([u8; SHARE_BYTES]);

impl ActiveKeyExchange for OpenShare {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        if peer.len() != SHARE_BYTES {
            return Err(PeerMisbehaved::InvalidKeyShare.into());
        }
        let own = self.0.as_slice();
        // Neither side knows which of the two it is.
        let both = [own.min(peer), own.max(peer)].concat();
        Ok(blake3::hash(&both).as_bytes().as_slice().into())
    }

    fn pub_key(&self) -> &[u8] {
        &self.0
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sixteen_bytes() -> [u8; 16] {
        let mut bytes = [0; 16];
        seams()
            .provider
            .secure_random
            .fill(&mut bytes)
            .expect("a run has begun");
        bytes
    }

    #[test]
    fn a_seed_draws_the_same_again_and_another_draws_something_else() {
        begin(1);
        let first = [sixteen_bytes(), sixteen_bytes()];
        begin(1);
        assert_eq!([sixteen_bytes(), sixteen_bytes()], first);
        assert_ne!(first[0], first[1]);
        begin(2);
        assert_ne!(sixteen_bytes(), first[0]);
    }

    #[test]
    fn outside_of_a_run_nothing_is_drawn() {
        RUN.set(None);
        assert!(draw(&mut [0; 16]).is_err());
    }

    #[test]
    fn both_sides_of_an_exchange_agree() {
        begin(1);
        let [dials, listens] = [(); 2].map(|()| OpenExchange.start().expect("a run has begun"));
        let (to_listener, to_dialer) = (dials.pub_key().to_vec(), listens.pub_key().to_vec());
        let dialed = dials
            .complete(&to_dialer)
            .expect("a share of the right length");
        let heard = listens.complete(&to_listener).expect("and another");
        assert_eq!(dialed.secret_bytes(), heard.secret_bytes());
    }
}

//! A peer at the door of the outer connection, without a wire: for the tests of the rooms above. Not part of the program.

use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use keystore::ssh::{Certificate, PublicKey};
use russh::keys::ssh_key::certificate::Builder;
use russh::keys::{Algorithm, PrivateKey};
use russh::server::Auth;

use super::jump::{Arrival, reachable};
use super::login::Gate;
use super::stream::Phase;
use crate::auth::{Authenticated, SignedKey};
use crate::session::House;

pub(crate) struct Peer(Gate);

/// What the peer hears.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    In,
    More,
    Asked,
    Refused,
}

impl From<Auth> for Heard {
    fn from(auth: Auth) -> Self {
        match auth {
            Auth::Accept => Self::In,
            Auth::Partial { .. } => Self::Asked,
            Auth::Reject { partial_success: true, .. } => Self::More,
            Auth::Reject { .. } | Auth::UnsupportedMethod => Self::Refused,
        }
    }
}

impl Peer {
    /// From this address; `None` if it is banned.
    pub(crate) async fn from(house: &Arc<House>, source: SocketAddr) -> Option<Self> {
        let admitted = house.guard.admit(source, Timestamp::now()).ok()?;
        Some(Self(Gate::new(Arc::clone(house), admitted, Phase::new()).await))
    }

    /// It has enrolled, and reads its recovery codes.
    pub(crate) fn enrolled(mut self, caller: Authenticated) -> Self {
        self.0.enrolled_as(caller);
        self
    }

    pub(crate) async fn offers(&mut self, user: &str, key: &PublicKey) -> Heard {
        self.0.offered(user, key).await.into()
    }

    pub(crate) async fn signs(&mut self, user: &str, key: &PublicKey) -> Heard {
        self.0.signed(user, SignedKey::from(key)).await.into()
    }

    /// Offers a certificate of an authority that nobody knows.
    pub(crate) async fn offers_certificate(&mut self, user: &str, key: &PublicKey) -> Heard {
        self.0.certificate_offered(user, &certificate(user, key)).await.into()
    }

    pub(crate) async fn asks(&mut self, user: &str) -> Heard {
        self.0.question(user).await.into()
    }

    pub(crate) async fn answers(&mut self, user: &str, answer: &str) -> Heard {
        self.0.answer(user, answer).await.into()
    }
}

/// Whether a jump of `caller` to `asked` is let through; the error is what the trail hears.
pub(crate) async fn reaches(
    house: &Arc<House>,
    caller: &Arc<Authenticated>,
    asked: &str,
) -> Result<bool, String> {
    let (house, caller, asked) = (Arc::clone(house), Arc::clone(caller), asked.to_owned());
    let arrival = Arrival { house, caller, asked, port: 22, stdio: false, within: None };
    reachable(&arrival).await.map(|found| found.is_some()).map_err(|fault| fault.to_string())
}

fn certificate(user: &str, key: &PublicKey) -> Certificate {
    let ca = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    let mut builder = Builder::new([7; 16], key.key_data().clone(), 0, u64::MAX).unwrap();
    builder.valid_principal(user).unwrap();
    builder.sign(&ca).unwrap()
}

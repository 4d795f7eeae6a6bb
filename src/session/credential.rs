//! Which credential a session signs in with, and what is remembered of its being accepted.

use std::sync::Arc;

use jiff::Timestamp;
use keystore::signing::{InstanceKey, UserCa};
use keystore::{Credential, SignsIn};

use super::House;
use crate::egress::{self, EgressError, Leg, Means, Passage, Proofs, Upstream};

/// Dials with what the instance is to be entered with. Of two user CAs the newer is tried first: an instance that was
/// not told of it yet is entered with the other.
pub(super) async fn dial(
    house: &House,
    proofs: Proofs<'_>,
    way: (&str, &Arc<Passage>),
) -> Result<Upstream, EgressError> {
    let now = Timestamp::now();
    let instance = proofs.authorized.instance();
    if instance.credential == SignsIn::Managed {
        return managed(house, proofs, way, now).await;
    }
    let authorities = house.signers.authorities();
    let newest_first: Vec<&UserCa> = authorities.next_user_ca.iter().chain([&authorities.user_ca]).collect();
    let upstream = egress::dial(proofs, Means::Certificates(&newest_first), leg(house, way), now).await?;
    // What is not remembered is noticed again at the next session.
    if let Err(error) = egress::accepted(&house.vault, instance, upstream.accepted(), now).await {
        tracing::warn!(%error, "ca.acceptance_not_remembered");
    }
    Ok(upstream)
}

async fn managed(
    house: &House,
    proofs: Proofs<'_>,
    way: (&str, &Arc<Passage>),
    now: Timestamp,
) -> Result<Upstream, EgressError> {
    let unusable = |e: String| EgressError::Credential(e);
    let id = Credential::id_of(&proofs.authorized.instance().name, proofs.authorized.login());
    let held = house.vault.get::<Credential>(&id).await.map_err(|e| unusable(e.to_string()))?;
    let held = held.ok_or_else(|| unusable(format!("there is none for {id}")))?;
    let key = InstanceKey::load(&house.vault, &held.key).await.map_err(|e| unusable(e.to_string()))?;
    let upstream = egress::dial(proofs, Means::Key(&key), leg(house, way), now).await?;
    let seen = egress::proven((&house.vault, &house.trail), (&id, upstream.accepted()), now);
    if let Err(error) = seen.await {
        tracing::warn!(%error, "credential.acceptance_not_remembered");
    }
    Ok(upstream)
}

/// `way`: the session's id, and its passage.
fn leg<'a>(house: &House, (session, passage): (&'a str, &'a Arc<Passage>)) -> Leg<'a> {
    Leg { session, passage, transport: house.config().transport }
}

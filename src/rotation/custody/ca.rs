//! The way of a CA to its successor: announced, both trusted for a while, then the one before is forgotten.

use jiff::Timestamp;
use keystore::signing::{Signers, announcement, retirement};
use keystore::{Accepted, CaKind, CaRotation, Instance, InstanceName, SignsIn, Vault};

use super::{Custody, RotationFault};
use crate::audit::Event;

impl Custody<'_> {
    /// Makes and announces a successor of a CA, which takes its place at `ends_at`.
    ///
    /// # Errors
    /// [`RotationFault::NotNow`] if one is announced already.
    pub async fn announce(
        &self,
        signers: &Signers,
        (which, by): (CaKind, &str),
        ends_at: Timestamp,
        now: Timestamp,
    ) -> Result<CaRotation, RotationFault> {
        if let Some(announced) = self.vault.get::<CaRotation>(which.as_str()).await? {
            return Err(RotationFault::NotNow(format!(
                "the {which} CA has a successor already, announced {}; the one before retires {}, or at once: keyward ca \
                 retire {which}",
                announced.begun_at, announced.ends_at
            )));
        }
        let (rotation, batch) = announcement(self.vault, which, (by.to_owned(), now, ends_at)).await?;
        let CaRotation { from, to, by, .. } = rotation.clone();
        let until = ends_at.to_string();
        self.trail
            .append(
                Event::CaRotationBegun { ca: which.to_string(), key: from, successor: to, until, by },
                now,
            )
            .await?;
        keystore::failpoint::reach("ca.announce.told");
        self.vault.commit(batch).await?;
        keystore::failpoint::reach("ca.announce.kept");
        signers.reload(self.vault).await?;
        Ok(rotation)
    }

    /// The successor takes the CA's place, whose private key is forgotten. Says which instances were not yet seen to
    /// accept it.
    ///
    /// # Errors
    /// [`RotationFault::NotNow`] if none is announced.
    pub async fn retire(
        &self,
        signers: &Signers,
        (which, by): (CaKind, &str),
        now: Timestamp,
    ) -> Result<Vec<InstanceName>, RotationFault> {
        // An administrator and the clock may want it at the same moment; it is told and done once.
        let _turn = RETIRING.lock().await;
        if self.vault.get::<CaRotation>(which.as_str()).await?.is_none() {
            return Err(RotationFault::NotNow(format!(
                "the {which} CA has no successor; announce one: keyward ca rotate {which}"
            )));
        }
        let left = lagging(self.vault, which).await?;
        let (rotation, batch) = retirement(self.vault, which).await?;
        let event = Event::CaRotated {
            ca: which.to_string(),
            key: rotation.to,
            replaced: rotation.from,
            by: by.to_owned(),
            not_seen_on: left.iter().map(ToString::to_string).collect(),
        };
        self.trail.append(event, now).await?;
        keystore::failpoint::reach("ca.retire.told");
        self.vault.commit(batch).await?;
        keystore::failpoint::reach("ca.retire.kept");
        signers.reload(self.vault).await?;
        Ok(left)
    }

    /// Retires every CA whose time has come.
    ///
    /// # Errors
    /// The store or the trail.
    pub async fn retire_due(&self, signers: &Signers, now: Timestamp) -> Result<(), RotationFault> {
        for which in CaKind::ALL {
            let rotation = self.vault.get::<CaRotation>(which.as_str()).await?;
            if rotation.is_some_and(|rotation| rotation.ends_at <= now) {
                match self.retire(signers, (which, super::BY_ITSELF), now).await {
                    Ok(left) => tracing::info!(ca = %which, not_seen_on = left.len(), "ca.retired"),
                    // Somebody was faster.
                    Err(RotationFault::NotNow(why)) => tracing::debug!(%why, "ca.retired_already"),
                    Err(fault) => return Err(fault),
                }
            }
        }
        Ok(())
    }
}

/// The instances that were not yet seen to accept the announced user CA; none while no successor is announced.
///
/// # Errors
/// The store.
pub async fn lagging(vault: &Vault, which: CaKind) -> Result<Vec<InstanceName>, keystore::Error> {
    let rotation = match which {
        CaKind::User => vault.get::<CaRotation>(which.as_str()).await?,
        CaKind::Host => None,
    };
    let Some(rotation) = rotation else { return Ok(Vec::new()) };
    let seen: Vec<Accepted> = vault.list().await?;
    let ready = |name: &InstanceName| seen.iter().any(|a| a.instance == *name && a.ca == rotation.to);
    let all: Vec<Instance> = vault.list().await?;
    let trusting = all.into_iter().filter(|i| i.credential == SignsIn::Certificate).map(|i| i.name);
    Ok(trusting.filter(|name| !ready(name)).collect())
}

static RETIRING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

//! Whether instances trust the announced user CA: asked by a login of Keyward's own, before the one of now retires.
//!
//! An instance that was seen to trust it is not asked. One that does not is told of in the trail, once for each reason, and
//! in `status`; nothing is changed on it.

use jiff::Timestamp;
use keystore::signing::{Signers, UserCa};
use keystore::{Accepted, Batch, CaKind, CaProbe, CaRotation, Instance, Login};

use super::managed::VisitFault;
use super::{Custody, PAUSE, RotationFault, lagging, visit_all};
use crate::audit::Event;

/// One login that shows which user CA an instance trusts.
#[derive(Clone, Copy)]
pub struct Probe<'a> {
    /// Where.
    pub instance: &'a Instance,
    /// As whom.
    pub login: &'a Login,
    /// Whose certificates are tried, in this order.
    pub authorities: &'a [&'a UserCa],
    /// When.
    pub now: Timestamp,
}

/// Which instances are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Those that were not asked for an hour, and everybody once more shortly before the end.
    Due,
    /// Everybody who was not seen to trust it.
    All,
}

impl Custody<'_> {
    /// Asks the instances that were not seen to accept the announced user CA; how many. None while none is announced.
    ///
    /// # Errors
    /// The store or the trail. What an instance says is written down with it instead.
    pub async fn probe(
        &self,
        signers: &Signers,
        asked: Asked,
        now: Timestamp,
    ) -> Result<usize, RotationFault> {
        let Some(rotation) = self.vault.get::<CaRotation>(CaKind::User.as_str()).await? else { return Ok(0) };
        let mut wanted = Vec::new();
        for name in lagging(self.vault, CaKind::User).await? {
            let before = self.vault.get::<CaProbe>(name.as_str()).await?.filter(|p| p.ca == rotation.to);
            if (asked == Asked::All || is_due(before.as_ref(), &rotation, now))
                && let Some(instance) = self.vault.get::<Instance>(name.as_str()).await?
            {
                wanted.push((instance, before));
            }
        }
        // Who did not answer the last time may not do so now: the others are not kept waiting.
        wanted.sort_by_key(|(_, before)| before.as_ref().is_some_and(|before| before.fault.is_some()));
        let count = wanted.len();
        let asking = |(instance, before)| self.ask(signers, instance, (&rotation, before), now);
        visit_all(wanted.into_iter().map(asking)).await?;
        Ok(count)
    }

    async fn ask(
        &self,
        signers: &Signers,
        instance: Instance,
        (rotation, before): (&CaRotation, Option<CaProbe>),
        now: Timestamp,
    ) -> Result<(), RotationFault> {
        let authorities = signers.authorities();
        let newest_first: Vec<&UserCa> =
            authorities.next_user_ca.iter().chain([&authorities.user_ca]).collect();
        let (mut accepted, mut fault) = (None, Some("it has no login to ask for".to_owned()));
        for login in instance.logins.iter().take(MOST_LOGINS) {
            let probe = Probe { instance: &instance, login, authorities: &newest_first, now };
            match self.reach.probe(probe).await {
                Ok(ca) => {
                    fault = (ca != rotation.to).then(|| "it trusts the one before alone".to_owned());
                    accepted = Some(ca);
                    break;
                }
                // Perhaps there is no such account.
                Err(VisitFault::NotAccepted) => fault = Some("it trusts neither".to_owned()),
                Err(VisitFault::Failed(why)) => {
                    fault = Some(why);
                    break;
                }
            }
        }
        if let Some(reason) = &fault
            && before.is_none_or(|before| before.fault.as_ref() != Some(reason))
        {
            let (instance, key) = (instance.name.to_string(), rotation.to.clone());
            let event =
                Event::CaNotTrusted { ca: CaKind::User.to_string(), instance, key, reason: reason.clone() };
            self.trail.append(event, now).await?;
        }
        let name = &instance.name;
        let probe = CaProbe { instance: name.clone(), ca: rotation.to.clone(), asked_at: now, fault };
        // Nothing is written of one that was removed meanwhile.
        let mut batch = Batch::default().if_unchanged(&instance)?.put(&probe)?;
        let known = self.vault.get::<Accepted>(name.as_str()).await?;
        if let Some(ca) = accepted.filter(|ca| known.is_none_or(|known| known.ca != *ca)) {
            batch = batch.put(&Accepted { instance: name.clone(), ca, since: now })?;
        }
        match self.vault.commit(batch).await {
            Ok(()) | Err(keystore::Error::Changed { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_due(before: Option<&CaProbe>, rotation: &CaRotation, now: Timestamp) -> bool {
    let Some(before) = before else { return true };
    let (asked, now) = (before.asked_at.as_second(), now.as_second());
    let last_look = rotation.ends_at.as_second() - LAST_LOOK;
    now - asked >= PAUSE || (now >= last_look && asked < last_look)
}

/// Accounts of an instance that are tried.
const MOST_LOGINS: usize = 4;
/// Seconds before the end at which everybody is asked once more.
const LAST_LOOK: i64 = 600;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::testing::at;

    fn asked(second: i64) -> CaProbe {
        let (instance, ca) = ("db-1".parse().unwrap(), "SHA256:new".to_owned());
        CaProbe { instance, ca, asked_at: at(second), fault: None }
    }

    #[test]
    fn an_instance_is_asked_every_hour_and_once_more_before_the_end() {
        let rotation = CaRotation {
            which: CaKind::User,
            from: "SHA256:old".to_owned(),
            to: "SHA256:new".to_owned(),
            begun_at: at(0),
            ends_at: at(9000),
            by: "root".to_owned(),
        };
        let due = |before: Option<i64>, now: i64| is_due(before.map(asked).as_ref(), &rotation, at(now));
        assert!(due(None, 0) && due(Some(0), 3600));
        assert!(!due(Some(0), 3599));
        assert!(due(Some(8000), 8400), "the last look");
        assert!(!due(Some(8000), 8399) && !due(Some(8400), 8460));
    }
}

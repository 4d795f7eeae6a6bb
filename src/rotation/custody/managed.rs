//! A key that Keyward holds on an instance, and its way to its successor: made, put there, proven by a login, in use; then
//! the old one is removed there.
//!
//! Each step is written down before the next, and can be taken again: a crash repeats one, and no crash locks out, since
//! the key that is in use is always one that the instance has accepted. The instance is reached through [`Reach`] alone.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use keystore::signing::InstanceKey;
use keystore::{Batch, Credential, HeldKey, Instance, InstanceName, Login, Vault, failpoint};

use super::probe::Probe;
use super::{Custody, RotationFault, script};
use crate::audit::Event;
use crate::egress::{self, NotRemembered};

/// The way to an instance.
pub trait Reach: Send + Sync {
    /// Signs in with `visit.key`, runs `visit.script` if there is one, and gives back what it printed. Audited and
    /// recorded, or it does not happen.
    fn visit<'a>(&'a self, visit: Visit<'a>) -> BoxFuture<'a, Result<String, VisitFault>>;

    /// Signs in with a certificate, and leaves at once; the fingerprint of the user CA whose certificate was accepted.
    /// Audited and recorded, or it does not happen.
    fn probe<'a>(&'a self, probe: Probe<'a>) -> BoxFuture<'a, Result<String, VisitFault>>;
}

/// One login of Keyward's own.
#[derive(Clone, Copy)]
pub struct Visit<'a> {
    /// Where.
    pub instance: &'a Instance,
    /// As whom.
    pub login: &'a Login,
    /// With which key.
    pub key: &'a HeldKey,
    /// What is run there.
    pub script: Option<&'a str>,
    /// When.
    pub now: Timestamp,
}

/// Why a visit came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VisitFault {
    /// Instance: it does not accept the key.
    #[error("it does not accept the key")]
    NotAccepted,
    /// Instance, or Keyward itself: anything else, in words.
    #[error("{0}")]
    Failed(String),
}

impl Custody<'_> {
    /// Adds the key for an account to what `batch` makes. It works once it is installed on the instance.
    ///
    /// # Errors
    /// The system gave no random bytes.
    pub fn fresh(
        (instance, login): (&InstanceName, &Login),
        batch: Batch,
        now: Timestamp,
    ) -> Result<(Credential, Batch), RotationFault> {
        let (key, batch) = InstanceKey::make(batch, now)?;
        let credential = Credential {
            instance: instance.clone(),
            login: login.clone(),
            key,
            proven_at: None,
            next: None,
            installed: false,
            old: None,
            tried_at: None,
            fault: None,
        };
        let batch = batch.put(&credential)?;
        Ok((credential, batch))
    }

    /// Forgets the credential, with its keys, once `batch` is committed.
    #[must_use]
    pub fn forgotten(credential: &Credential, batch: Batch) -> Batch {
        let keys = [Some(&credential.key), credential.next.as_ref(), credential.old.as_ref()];
        let batch = keys.into_iter().flatten().fold(batch, InstanceKey::forget);
        batch.remove::<Credential>(&Credential::id_of(&credential.instance, &credential.login))
    }

    /// Brings the key of an account to its successor, or goes on with what was begun.
    ///
    /// # Errors
    /// [`RotationFault::NotNow`] says how far it came and why no further; the key in use works as before.
    pub async fn rotate(
        &self,
        (instance, login): (&Instance, &Login),
        by: &str,
        now: Timestamp,
    ) -> Result<Credential, RotationFault> {
        let id = Credential::id_of(&instance.name, login);
        let _turn = Turn::take(self.vault, &id)?;
        let found: Option<Credential> = self.vault.get(&id).await?;
        let mut credential =
            found.ok_or_else(|| RotationFault::NotNow(format!("Keyward holds no key for {id}")))?;
        let mut begun = credential.is_rotating();
        loop {
            let visits = Visits { reach: self.reach, instance, credential: &credential, now };
            let step = match Step::due(&credential) {
                None if begun => return Ok(credential),
                due => due.unwrap_or(Step::Make),
            };
            begun = begun || step == Step::Make;
            let taken = match step {
                Step::Prove => visits.prove().await,
                Step::Make => Ok(()),
                Step::Install => visits.install().await,
                Step::Switch => visits.prove_next().await,
                Step::Remove => visits.remove().await,
            };
            credential = match taken {
                Ok(()) => self.took(step, credential, by, now).await?,
                Err(why) => return Err(self.stuck(step, &credential, why, now).await?),
            };
        }
    }

    /// Writes down that `step` was taken; the event first.
    async fn took(
        &self,
        step: Step,
        credential: Credential,
        by: &str,
        now: Timestamp,
    ) -> Result<Credential, RotationFault> {
        failpoint::reach(step.point().0);
        let after = match step {
            Step::Prove => self.proved(&credential, now).await?,
            _ => self.went_on(step, credential, by, now).await?,
        };
        failpoint::reach(step.point().2);
        Ok(after)
    }

    /// As a session would say it too.
    async fn proved(&self, credential: &Credential, now: Timestamp) -> Result<Credential, RotationFault> {
        let id = Credential::id_of(&credential.instance, &credential.login);
        let key = &credential.key.fingerprint;
        match egress::proven((self.vault, self.trail), (&id, key), now).await {
            Err(NotRemembered::Store(keystore::Error::NotFound { .. })) => Err(removed(credential)),
            Err(NotRemembered::Store(error)) => Err(error.into()),
            Err(NotRemembered::Trail(error)) => Err(error.into()),
            Ok(()) => {
                let held = self.vault.get::<Credential>(&id).await?;
                held.filter(|held| held.key == credential.key).ok_or_else(|| removed(credential))
            }
        }
    }

    async fn went_on(
        &self,
        step: Step,
        before: Credential,
        by: &str,
        now: Timestamp,
    ) -> Result<Credential, RotationFault> {
        let (instance, login) = (before.instance.to_string(), before.login.to_string());
        let key = before.key.fingerprint.clone();
        let mut batch = Batch::default();
        let mut after = Credential { tried_at: Some(now), fault: None, ..before.clone() };
        let event = match step {
            // Said by `proved`.
            Step::Prove => None,
            Step::Make => {
                let (next, made) = InstanceKey::make(batch, now)?;
                batch = made;
                let successor = next.fingerprint.clone();
                after.next = Some(next);
                Some(Event::CredentialRotationBegun { instance, login, key, successor, by: by.to_owned() })
            }
            Step::Install => {
                after.installed = true;
                None
            }
            Step::Switch => match after.next.take() {
                Some(next) => {
                    let old = std::mem::replace(&mut after.key, next);
                    let (replaced, key) = (old.fingerprint.clone(), after.key.fingerprint.clone());
                    (after.old, after.installed, after.proven_at) = (Some(old), false, Some(now));
                    Some(Event::CredentialRotated { instance, login, key, replaced })
                }
                None => None,
            },
            Step::Remove => match after.old.take() {
                Some(old) => {
                    batch = InstanceKey::forget(batch, &old);
                    Some(Event::CredentialRetired { instance, login, key: old.fingerprint })
                }
                None => None,
            },
        };
        let batch = batch.if_unchanged(&before)?.put(&after)?;
        let written = async {
            failpoint::reach(step.point().1);
            self.write(&before, batch).await
        };
        self.trail.ahead_of(event.into_iter().collect(), now, written).await?;
        Ok(after)
    }

    /// Nothing is written of an instance that was removed while one of its keys was rotated.
    async fn write(&self, credential: &Credential, batch: Batch) -> Result<(), RotationFault> {
        match self.vault.commit(batch).await {
            Err(keystore::Error::Changed { .. }) => Err(removed(credential)),
            done => Ok(done?),
        }
    }

    /// Writes down why `step` was not taken; told in the trail when it is something new.
    async fn stuck(
        &self,
        step: Step,
        credential: &Credential,
        why: String,
        now: Timestamp,
    ) -> Result<RotationFault, RotationFault> {
        let Credential { instance, login, .. } = credential;
        let fault = format!("{}: {why}", step.words());
        if credential.fault.as_ref() != Some(&fault) {
            let (instance, login) = (instance.to_string(), login.to_string());
            let (key, reason) = (credential.key.fingerprint.clone(), fault.clone());
            self.trail.append(Event::CredentialRotationFailed { instance, login, key, reason }, now).await?;
        }
        let mut after = Credential { tried_at: Some(now), fault: Some(fault.clone()), ..credential.clone() };
        // Whoever writes that file may have written over the new key: it is put there again.
        after.installed = after.installed && step != Step::Switch;
        self.write(credential, Batch::default().if_unchanged(credential)?.put(&after)?).await?;
        let again = format!("keyward instances rotate {instance}");
        let holds = match (step, &credential.old) {
            (Step::Prove, _) => {
                format!("Install it, as keyward instances trust-script {instance} says; then: {again}")
            }
            (_, Some(_)) => {
                format!(
                    "The new key works; the old one is still accepted there. Tried again by itself, or now: {again}"
                )
            }
            _ => format!("The key in use works as before. Tried again by itself, or now: {again}"),
        };
        Ok(RotationFault::NotNow(format!("{login}@{instance}: {fault}. {holds}")))
    }
}

fn removed(credential: &Credential) -> RotationFault {
    RotationFault::NotNow(format!("{} was removed or changed meanwhile", credential.instance))
}

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The key in use was never accepted: try it.
    Prove,
    /// Make a successor.
    Make,
    /// Put it on the instance.
    Install,
    /// Log in with it; then it is the key in use.
    Switch,
    /// Remove the old one from the instance.
    Remove,
}

impl Step {
    /// The next step of what was begun.
    fn due(credential: &Credential) -> Option<Self> {
        match credential {
            Credential { old: Some(_), .. } => Some(Self::Remove),
            Credential { proven_at: None, .. } => Some(Self::Prove),
            Credential { next: Some(_), installed: false, .. } => Some(Self::Install),
            Credential { next: Some(_), .. } => Some(Self::Switch),
            Credential { next: None, .. } => None,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Prove => "its key was never accepted",
            Self::Make => "no new key could be made",
            Self::Install => "the new key could not be installed",
            Self::Switch => "the new key was installed but does not log in",
            Self::Remove => "the old key could not be removed",
        }
    }

    /// Where a test may let the daemon die: done there, told here, written down.
    fn point(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Prove => ("credential.prove.done", "credential.prove.told", "credential.prove.kept"),
            Self::Make => ("credential.make.done", "credential.make.told", "credential.make.kept"),
            Self::Install => {
                ("credential.install.done", "credential.install.told", "credential.install.kept")
            }
            Self::Switch => ("credential.switch.done", "credential.switch.told", "credential.switch.kept"),
            Self::Remove => ("credential.remove.done", "credential.remove.told", "credential.remove.kept"),
        }
    }
}

struct Visits<'a> {
    reach: &'a dyn Reach,
    instance: &'a Instance,
    credential: &'a Credential,
    now: Timestamp,
}

impl Visits<'_> {
    async fn prove(&self) -> Result<(), String> {
        self.go(&self.credential.key, None).await.map(drop)
    }

    async fn prove_next(&self) -> Result<(), String> {
        match &self.credential.next {
            Some(next) => self.go(next, None).await.map(drop),
            None => Ok(()),
        }
    }

    async fn install(&self) -> Result<(), String> {
        let Some(next) = &self.credential.next else { return Ok(()) };
        let mark = mark();
        let script = script::install(self.credential, next, &mark);
        script::answer(&self.go(&self.credential.key, Some(&script)).await?, &mark)
    }

    async fn remove(&self) -> Result<(), String> {
        let Some(old) = &self.credential.old else { return Ok(()) };
        let mark = mark();
        let script = script::remove(self.credential, old, &mark);
        script::answer(&self.go(&self.credential.key, Some(&script)).await?, &mark)
    }

    async fn go(&self, key: &HeldKey, script: Option<&str>) -> Result<String, String> {
        let (instance, login, now) = (self.instance, &self.credential.login, self.now);
        let visit = Visit { instance, login, key, script, now };
        self.reach.visit(visit).await.map_err(|fault| fault.to_string())
    }
}

/// What only this script's answer begins with.
fn mark() -> String {
    format!("keyward-{:032x}", rand::random::<u128>())
}

/// One rotation of a credential at a time.
#[derive(Debug)]
struct Turn(String);

static TURNS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

impl Turn {
    fn take(vault: &Vault, id: &str) -> Result<Self, RotationFault> {
        // Of this store: another in the same process (tests have many) has ids of its own.
        let turn = format!("{vault:p} {id}");
        if TURNS.lock().unwrap_or_else(PoisonError::into_inner).insert(turn.clone()) {
            Ok(Self(turn))
        } else {
            Err(RotationFault::NotNow(format!("the key for {id} is being rotated at this moment")))
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURNS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

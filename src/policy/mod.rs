//! Who may do what, where: pure decisions, and the only mint of [`Authorized`].
//!
//! Access rules become Cedar policies ([`Rulebook::compile`]); a decision is a function of the rules, the facts and
//! the time, and of nothing else. Nothing is allowed by default, a deny beats every allow, and whatever cannot be
//! evaluated is denied. Takes [`Authenticated`], mints [`Authorized`]; never reads the store, never audits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use keystore::{Capability, Instance, InstanceName, InvalidName, Login, Recording, Role, Rule, UserName};

use crate::auth::{Authenticated, CertificateId};

mod cedar;

/// What a decision is about, besides instance and login.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Who.
    pub user: &'a UserName,
    /// With which roles.
    pub roles: &'a BTreeSet<Role>,
    /// From where.
    pub source: IpAddr,
}

/// All access rules, compiled.
pub struct Rulebook {
    policies: cedar_policy::PolicySet,
    ends: BTreeMap<String, Option<Timestamp>>,
    recordings: BTreeMap<String, Option<Recording>>,
}

impl Rulebook {
    /// Compiles the rules.
    ///
    /// # Errors
    /// [`PolicyError`] names the rule at fault; a rulebook is whole or not at all, since one that lacks a deny rule
    /// would allow too much.
    pub fn compile(rules: &[Rule]) -> Result<Self, PolicyError> {
        let mut policies = cedar_policy::PolicySet::new();
        let (mut ends, mut recordings) = (BTreeMap::new(), BTreeMap::new());
        for rule in rules {
            policies
                .add(cedar::policy(rule)?)
                .map_err(|e| PolicyError::Rule { rule: rule.id.clone(), why: e.to_string() })?;
            ends.insert(rule.id.clone(), rule.expires_at);
            recordings.insert(rule.id.clone(), rule.recording);
        }
        Ok(Self { policies, ends, recordings })
    }

    /// What `facts.user` may do as `login` on `instance` at `now`.
    pub fn decide(&self, facts: &Facts<'_>, instance: &Instance, login: &Login, now: Timestamp) -> Decision {
        if !instance.logins.contains(login) {
            return Decision::default();
        }
        let answers = cedar::Question { facts, instance, login, now }.ask(&self.policies);
        match answers {
            Ok(answers) => self.decision(answers),
            Err(error) => {
                // Fail closed: a policy that cannot be evaluated may be the one that denies.
                tracing::error!(%error, "policy.evaluation.failed");
                Decision { denied_by: vec![UNEVALUATED.to_owned()], ..Decision::default() }
            }
        }
    }

    fn decision(&self, answers: Vec<cedar::Answer>) -> Decision {
        let mut decision = Decision::default();
        let (mut rules, mut denied_by) = (BTreeSet::new(), BTreeSet::new());
        for answer in answers {
            if !answer.allowed {
                denied_by.extend(answer.rules);
                continue;
            }
            decision.can.insert(answer.capability);
            let ends = answer.rules.iter().map(|rule| self.ends.get(rule).copied().flatten());
            // A capability lasts as long as the longest rule that gives it; the decision, as its shortest capability.
            let lasts = ends.max_by_key(|end| end.unwrap_or(Timestamp::MAX)).flatten();
            decision.until = match (decision.until, lasts) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            rules.extend(answer.rules);
        }
        decision.recording = self.strictest(&rules);
        decision.rules = rules.into_iter().collect();
        decision.denied_by = denied_by.into_iter().collect();
        decision
    }

    /// Of several rules the strictest: one that says nothing stands for the bastion's own default.
    fn strictest(&self, rules: &BTreeSet<String>) -> Option<Recording> {
        let said: Vec<_> = rules.iter().map(|rule| self.recordings.get(rule).copied().flatten()).collect();
        match () {
            () if said.contains(&Some(Recording::Strict)) => Some(Recording::Strict),
            () if said.contains(&None) => None,
            () => said.first().copied().flatten(),
        }
    }

    /// The proof that a login may open a session as `login` on `instance`, with the roles that the user has now.
    ///
    /// # Errors
    /// [`Denied`] if it may do nothing there.
    pub fn authorize(
        &self,
        by: &Authenticated,
        roles: &BTreeSet<Role>,
        (instance, login): (&Instance, &Login),
        now: Timestamp,
    ) -> Result<Authorized, Denied> {
        let facts = Facts { user: by.user(), roles, source: by.source().ip() };
        let decision = match by.only_exchanges() {
            true => Decision::default(),
            false => self.decide(&facts, instance, login, now),
        };
        if decision.can.is_empty() {
            return Err(Denied {
                user: by.user().clone(),
                instance: instance.name.clone(),
                login: login.clone(),
                denied_by: decision.denied_by,
            });
        }
        Ok(Authorized {
            user: by.user().clone(),
            key: by.key().to_owned(),
            certificate: by.certificate_id(),
            source: by.source(),
            instance: instance.clone(),
            login: login.clone(),
            decision,
        })
    }

    /// Every login on `instance` that may do something, and what.
    pub fn reachable(
        &self,
        facts: &Facts<'_>,
        instance: &Instance,
        now: Timestamp,
    ) -> BTreeMap<Login, BTreeSet<Capability>> {
        instance
            .logins
            .iter()
            .map(|login| (login.clone(), self.decide(facts, instance, login, now).can))
            .filter(|(_, can)| !can.is_empty())
            .collect()
    }
}

/// What the rules say. Empty `can`: nothing is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// What is allowed.
    pub can: BTreeSet<Capability>,
    /// The ids of the rules that allow it.
    pub rules: Vec<String>,
    /// The ids of the rules that deny something; empty where simply no rule allows.
    pub denied_by: Vec<String>,
    /// When the first of `can` ends, if the rules say so.
    pub until: Option<Timestamp>,
    /// What happens if recording fails; as the bastion is configured, if the rules do not say.
    pub recording: Option<Recording>,
}

/// Proof that the rules let this login open a session. Only [`Rulebook::authorize`] makes one:
///
/// ```
/// # use keyward::{auth::Authenticated, policy::{Authorized, Denied, Rulebook}};
/// # use keystore::{Instance, Login};
/// fn asked(rules: &Rulebook, by: &Authenticated, to: &Instance, login: &Login) -> Result<Authorized, Denied> {
///     rules.authorize(by, by.roles(), (to, login), jiff::Timestamp::UNIX_EPOCH)
/// }
/// ```
/// ```compile_fail,E0451
/// # use keyward::{auth::Authenticated, policy::{Authorized, Decision}};
/// # use keystore::{Instance, Login};
/// fn forged(by: &Authenticated, instance: Instance, login: Login) -> Authorized {
///     Authorized {
///         user: by.user().clone(),
///         key: by.key().to_owned(),
///         certificate: by.certificate_id(),
///         source: by.source(),
///         instance,
///         login,
///         decision: Decision::default(),
///     }
/// }
/// ```
/// ```compile_fail,E0599
/// fn copied(proof: &keyward::policy::Authorized) -> keyward::policy::Authorized {
///     proof.clone()
/// }
/// ```
pub struct Authorized {
    user: UserName,
    key: String,
    certificate: Option<CertificateId>,
    source: SocketAddr,
    instance: Instance,
    login: Login,
    decision: Decision,
}

impl Authorized {
    /// The proof that Keyward itself may run commands as `login` on `instance`, with the key `key` that it holds there: to
    /// look after that key, and for nothing that anybody asks for. No rule gives it, and no user has its name.
    pub(crate) fn housekeeping(instance: &Instance, login: &Login, key: &str) -> Result<Self, InvalidName> {
        Ok(Self {
            user: HOUSEKEEPER.parse()?,
            key: key.to_owned(),
            certificate: None,
            source: SocketAddr::from(([127, 0, 0, 1], 0)),
            instance: instance.clone(),
            login: login.clone(),
            decision: Decision {
                can: [Capability::Exec].into(),
                recording: Some(Recording::Strict),
                ..Decision::default()
            },
        })
    }

    /// Who.
    pub fn user(&self) -> &UserName {
        &self.user
    }

    /// The fingerprint of the key that logged in, `SHA256:…`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The certificate that the login was made with, if it was one.
    pub fn certificate(&self) -> Option<CertificateId> {
        self.certificate
    }

    /// From where.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Where to.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// As whom.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// Whether this may be done in the session.
    pub fn may(&self, capability: Capability) -> bool {
        self.decision.can.contains(&capability)
    }

    /// All that may be done; never empty.
    pub fn can(&self) -> &BTreeSet<Capability> {
        &self.decision.can
    }

    /// The ids of the rules that allow it.
    pub fn rules(&self) -> &[String] {
        &self.decision.rules
    }

    /// What happens to the session if its recording fails; as the bastion is configured, if the rules do not say.
    pub fn recording(&self) -> Option<Recording> {
        self.decision.recording
    }

    /// When a right of this session ends, if the rules say so; decide again then.
    pub fn until(&self) -> Option<Timestamp> {
        self.decision.until
    }
}

/// The rules do not let the user in. The text is meant for the user.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
#[error("no access rule allows {user} to log in as {login} on {instance}")]
pub struct Denied {
    /// Who.
    pub user: UserName,
    /// Where to.
    pub instance: InstanceName,
    /// As whom.
    pub login: Login,
    /// The rules that deny; empty where none allows. For the audit trail and for admins, not for the user.
    pub denied_by: Vec<String>,
}

/// Why rules cannot be used. The operator is at fault, or the program.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A rule that would mean nothing.
    #[error("rule {rule} has no {what}; remove it with: keyward access remove {rule}")]
    Empty {
        /// The rule's id.
        rule: String,
        /// What it lacks.
        what: &'static str,
    },
    /// A rule that Cedar does not take.
    #[error("rule {rule} cannot be compiled: {why}")]
    Rule {
        /// The rule's id.
        rule: String,
        /// What Cedar says.
        why: String,
    },
    /// A request that Cedar could not evaluate.
    #[error("the access rules cannot be evaluated: {0}")]
    Evaluation(String),
}

/// Whose name stands where Keyward acts by itself; no user may have it.
pub const HOUSEKEEPER: &str = "_keyward";
/// Stands in `denied_by` where no rule could be asked.
const UNEVALUATED: &str = "(rules could not be evaluated)";

#[cfg(test)]
mod tests;
